"""Keeps a few frames of each video: those that training with `--seq_len N --sampling linspace` reads of the whole one.

    python data_prep/shrink.py --src data/ucf101 --dst data/ucf101_8 --frames 8
    python data_prep/shrink.py --src data/ucf101 --dst data/ucf101_8 --frames 8 --by link
    python data_prep/shrink.py --src data/ucf101 --dst data/ucf101_8 --frames 8 --by encode --size 128x128

So 8 kept frames train what the whole videos train with 8, from a small part of the disk. Sampling that draws times at
random needs more frames to draw from. A video shorter than N repeats frames, as reading it would.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import simplejpeg
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the project, wherever this is run from
from clips.frame_sampling import sample_frames
from clips.frame_sources import BadVideo, check_whole, decode_image, file_content, frames_and_others
from clips.listing import first_few
from data_prep import extract
from engine.command_line import Parser, arguments, exit_code
from utils import UserError, print_note, read_json, write_json

SETTINGS_FILE = "shrink.json"
PutImage = Callable[[Path, Path], None]  # from an image of the source to a file that is not there yet


def copy(image: Path, target: Path) -> None:
    shutil.copyfile(image, target)


def link(image: Path, target: Path) -> None:
    """A second name for the same bytes on the disk."""
    try:
        os.link(image, target)
    except OSError as error:
        raise UserError(
            f"could not link to {image} ({error.strerror}): links stay on one disk; use --by copy"
        ) from error


def encoder(size: str, quality: int) -> PutImage:
    """Decodes, scales to 'WxH' ('original' does not) and writes what the name asks for; quality of JPEG in percent."""

    def encode(image: Path, target: Path) -> None:
        pixels = decode_image(file_content(image), str(image))
        if size != "original":
            width, height = map(int, size.split("x"))
            pixels = np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC))
        if target.suffix == ".png":
            Image.fromarray(pixels).save(target)
        else:
            target.write_bytes(simplejpeg.encode_jpeg(pixels, quality=quality))

    return encode


def shrink_video(source: Path, work: Path, frames: int, put: PutImage) -> tuple[Path, list[str]]:
    """Puts the sampled frames into a new folder in `work`: (the folder, images of the source that are no frames).

    Raises BadVideo when the source has no frame or a damaged one.
    """
    names, others = frames_and_others(source)
    if not names:
        raise BadVideo("the folder holds no .jpg or .png file")
    kept = [source / names[index] for index in sample_frames(len(names), frames, "linspace")]
    check_whole(kept)
    folder = work / uuid.uuid4().hex
    folder.mkdir()
    for number, image in enumerate(kept, start=1):
        put(image, folder / f"{number:05d}{image.suffix.lower()}")
    return folder, others


def run(args: argparse.Namespace) -> int:
    src, dst = extract.check_folders(args.src, args.dst)
    if args.by != "encode" and args.size != "original":
        raise UserError(f"--by {args.by} keeps images as they are, --size {args.size} changes them: add --by encode")
    put = {"copy": copy, "link": link, "encode": encoder(args.size, args.quality)}[args.by]
    settings = {"source": str(src), "frames": args.frames, "by": args.by, "size": args.size}
    with extract.writing_to(dst), extract.alone(dst, "shrink"), extract.unfinished(dst, "shrink") as work:
        if (dst / SETTINGS_FILE).exists():
            extract.check_settings(read_json(dst / SETTINGS_FILE), settings, dst)
        write_json(dst / SETTINGS_FILE, settings)
        videos = extract.video_folders(src)
        todo = [video for video in videos if not (dst / video).exists()]
        print(f"{len(videos):,} videos: {len(todo):,} to do")

        def shrink(video: str) -> tuple[str, Path | str, list[str]]:
            try:
                return video, *shrink_video(src / video, work, args.frames, put)
            except BadVideo as error:
                return video, str(error), []
            except FileNotFoundError as error:  # it has gone since it was listed
                return video, f"{error.filename} could not be read ({error.strerror})", []

        failures, beside = {}, []
        for video, made, others in extract.in_parallel(shrink, todo, args.jobs, doing="shrink"):
            beside += [f"{video}/{other}" for other in others]
            if isinstance(made, Path):
                extract.install(made, dst / video)
            else:
                failures[video] = made
        if beside:
            print_note(f"left out {len(beside):,} images that are no frames of their videos: {first_few(beside)}")
        return extract.name_failures(dst, failures)


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument("--src", type=Path, required=True, metavar="FOLDER", help="a data set of frames; is only read")
    parser.add_argument("--dst", type=Path, required=True, metavar="FOLDER", help="the small one to make or to resume")
    parser.add_argument(
        "--frames",
        type=int,
        required=True,
        least=1,
        most=100_000,
        help="frames to keep of each video, the later --seq_len",
    )
    parser.add_argument(
        "--by",
        choices=("copy", "link", "encode"),
        default="copy",
        help="link takes no space while the source stays on the same disk, encode is needed for another --size",
    )
    parser.add_argument("--size", type=extract.size, default="original", metavar="WxH", help="pixels, with --by encode")
    parser.add_argument("--quality", type=int, default=95, least=1, most=100, help="percent of JPEG, with --by encode")
    extract.add_jobs(parser, "videos at a time")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    return exit_code(lambda: run(parse_args(arguments(argv))), resume=extract.RESUME)


if __name__ == "__main__":
    sys.exit(main())
