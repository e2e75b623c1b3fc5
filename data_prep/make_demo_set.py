"""Draws the demo set: short made-up videos of actions that come in time-reversed pairs, in the layout of the real sets.

    python data_prep/make_demo_set.py demo                                  # 44 classes x 24 videos x 12 frames, 64 px
    python data_prep/make_demo_set.py demo --picture demo.png               # and a film strip of every class
    python data_prep/make_demo_set.py big --size 112 --frames 32 --videos_per_class 100
    python data_prep/make_demo_set.py demo_supervised --supervised          # the 32 train classes in train and val
    python data_prep/make_demo_set.py clutter_3 --axis clutter --level 3    # harder in one way, level 0 (not) to 4
    python data_prep/make_demo_set.py graded --suite --picture graded.jpg   # graded/base, graded/order_1, order_2, ...

A video of the second class of a pair is drawn as one of the first and then run backwards. So the frames of the two
classes have the same distribution and only their order tells them apart: a method that averages frames has to guess.
Shapes, colours, textures, backgrounds, places, speeds, bystanders and the camera's shake change from video to video.
Each video depends on (seed, class, index) and on axis and level alone, whatever the number of processes; a stopped run resumes
where it was. What is painted and what the axes change: data_prep/demo/.
"""

from __future__ import annotations

import argparse
import os
import sys
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import simplejpeg
from numpy import ndarray as Array
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

# Python puts the folder of a script on its path, not the project's.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from data_prep import extract
from data_prep.demo.actions import CLASSES
from data_prep.demo.axes import AXES, LEVELS, Change, Stage, unchanged
from data_prep.demo.film import Film
from engine.command_line import Parser, arguments, check_output, exit_code
from utils import UserError, read_json, write_json

VERSION = 1  # raise it when the same settings draw other pixels, so that no old set is completed with new videos
SETTINGS_FILE = "demo_set.json"
JPEG_QUALITY = 92


class Settings(NamedTuple):
    """What the pixels of a set depend on."""

    size: int
    frames: int
    videos_per_class: int
    seed: int
    supervised: bool = False
    axis: str = ""
    level: int = 0
    version: int = VERSION

    @property
    def folder(self) -> str:
        """Its name in a suite."""
        return f"{self.axis}_{self.level}" if self.level else "base"

    def record(self) -> dict[str, Any]:
        """What is kept with the set. Level 0 of any axis is the demo set itself."""
        settings = self._asdict()
        if not self.supervised:
            del settings["supervised"]
        if self.level:
            settings["amount"] = AXES[self.axis].amounts[self.level - 1]
        else:
            del settings["axis"], settings["level"]
        return settings

    def split_of(self, name: str, index: int) -> str | None:
        """Where a video belongs: its class's split; of a supervised set, which has the train classes only, three videos
        in four to train and one to val."""
        if not self.supervised:
            return CLASSES[name].split
        if CLASSES[name].split != "train":
            return None
        return "train" if index < self.videos_per_class * 3 // 4 else "val"

    def videos(self) -> Iterator[tuple[str, str, int]]:
        """(split, class, index) of each."""
        for name in CLASSES:
            for index in range(self.videos_per_class):
                if split := self.split_of(name, index):
                    yield split, name, index

    def draw(self, split: str | None, name: str, index: int) -> Array:
        """One video: uint8 (T, H, W, 3)."""

        def stream(*purpose: str | int) -> np.random.Generator:
            words = (zlib.crc32(word.encode()) if isinstance(word, str) else word for word in purpose)
            return np.random.default_rng([self.seed, *words])

        change = Change(AXES[self.axis], self.level, stream(name, index, self.axis)) if self.level else unchanged
        home = stream(name, "home") if split == "train" else None
        return draw_video(name, stream(name, index), self.frames, self.size, change, home)


def draw_video(
    name: str,
    rng: np.random.Generator,
    num_frames: int,
    size: int,
    change: Callable[[Film, Stage], None] = unchanged,
    home: np.random.Generator | None = None,
) -> Array:
    """One video of class `name`, changed along an axis: uint8 (T, H, W, 3). home: see `Film`.

    From equal states of the generators the two classes of a pair get the same frames, in reverse order.
    """
    role = CLASSES[name]
    film = Film(rng, num_frames, size, home)
    change(film, "view")
    film.paint_place()
    change(film, "place")
    film.bystanders()
    film.p = film.progress()
    change(film, "action")
    role.action(film, film.p)
    film.shown[:] = 1
    change(film, "front")
    grain = rng.normal(0, 0.01, film.frames.shape)
    frames = np.round(255 * np.clip(film.frames + grain, 0, 1)).astype(np.uint8)
    return (frames[::-1] if role.backwards else frames)[film.order]


# ---------------------------------------------------------------------------------------------------------------------
# The folder


def claim(out: Path, settings: Settings) -> None:
    """Makes `out` the folder of this set. Raises UserError when it holds anything else."""
    record = out / SETTINGS_FILE
    if out.exists() and not out.is_dir():
        raise UserError(f"expected a folder at {out}, found a file; give another OUT")
    if record.exists():
        if (found := read_json(record)) != settings.record():
            raise UserError(
                f"expected {out} to be a demo set of {settings.record()}, found {found}; "
                "give another OUT, or the settings that were found"
            )
    elif out.exists() and any(out.iterdir()):
        raise UserError(f"expected {out} to be new, empty or a demo set, found other files in it; give another OUT")
    else:
        out.mkdir(parents=True, exist_ok=True)
        write_json(record, settings.record())


def video_folder(out: Path, split: str, name: str, index: int) -> Path:
    return out / split / name / f"{name}_{index:04d}"


def write_video(out: Path, settings: Settings, split: str, name: str, index: int) -> None:
    """Writes one video's frames as <split>/<class>/<video>/00001.jpg, ...; the folder is there when it is whole."""
    video = video_folder(out, split, name, index)
    with extract.unfinished(out, video.name) as drawn:
        for number, frame in enumerate(settings.draw(split, name, index), start=1):
            jpeg = simplejpeg.encode_jpeg(np.ascontiguousarray(frame), quality=JPEG_QUALITY, colorspace="RGB")
            (drawn / f"{number:05d}.jpg").write_bytes(jpeg)
        extract.install(drawn, video)


def end_with(parent: int) -> None:
    """Lets this process end soon after its parent, however that ended; until then it would hold the parent's locks."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def make_demo_sets(sets: dict[Path, Settings], jobs: int = 1) -> dict[Path, int]:
    """Draws the videos that the folders lack, in `jobs` processes, and returns how many these were in each."""
    with ExitStack() as locks:
        for out, settings in sets.items():
            claim(out, settings)
            locks.enter_context(extract.alone(out, "demo_set"))
        missing = [
            (out, settings, *video)
            for out, settings in sets.items()
            for video in settings.videos()
            if not video_folder(out, *video).exists()
        ]
        if missing:
            pool = ProcessPoolExecutor(jobs, initializer=end_with, initargs=(os.getpid(),))
            try:
                written = pool.map(write_video, *zip(*missing, strict=True), chunksize=4)
                for _ in tqdm(written, total=len(missing), unit="video", disable=None):
                    pass
            finally:
                pool.shutdown(cancel_futures=True)  # so that Ctrl-C does not wait for all the rest
    drawn = Counter(out for out, *_ in missing)
    return {out: drawn[out] for out in sets}


# ---------------------------------------------------------------------------------------------------------------------
# Pictures


def draw_picture(settings: Settings, strip: int = 6) -> Image.Image:
    """A contact sheet: one row per pair, and for each of its classes the name and `strip` frames of a video."""
    size, gap, label = settings.size, 3, 155
    cell = size + gap
    font = ImageFont.load_default(15)
    columns = label + strip * cell + 12
    sheet = Image.new("RGB", (2 * columns + gap, len(CLASSES) // 2 * (cell + gap) + gap), "white")
    pen = ImageDraw.Draw(sheet)
    for place, (name, role) in enumerate(CLASSES.items()):
        left, top = place % 2 * columns + gap, place // 2 * (cell + gap) + gap
        pen.text((left + label - 10, top + size / 2), name.replace("_", " "), "black", font, anchor="rm")
        frames = settings.draw(role.split, name, 0)
        for column, t in enumerate(np.linspace(0, settings.frames - 1, strip).round().astype(int)):
            sheet.paste(Image.fromarray(frames[t]), (left + label + column * cell, top))
    return sheet


def draw_suite_picture(suite: Sequence[Settings], strip: int = 6) -> Image.Image:
    """A contact sheet: one row per axis, and in it `strip` frames of the same video at each level.

    Of background_bias a strip shows as many videos of a class.
    """
    size, gap, label = suite[0].size, 2, 130
    axes = [axis for axis in AXES if any(settings.axis == axis for settings in suite)]
    levels = sorted({settings.level for settings in suite})
    wide, high = strip * (size + gap) + 10, size + 8
    sheet = Image.new("RGB", (label + len(levels) * wide, 24 + len(axes) * high), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(15)
    for column, level in enumerate(levels):
        pen.text((label + (column + 0.5) * wide, 12), f"level {level}", "black", font, anchor="mm")
    for row, axis in enumerate(axes):
        top = 24 + row * high
        pen.text((label - 8, top + size / 2), axis.replace("_", " "), "black", font, anchor="rm")
        for column, level in enumerate(levels):
            settings = suite[0]._replace(axis=axis, level=level)
            if axis == "background_bias":
                frames = [settings.draw("train", "moving_right", index)[settings.frames // 2] for index in range(strip)]
            else:
                film = settings.draw("test", "moving_down", 0)
                frames = [film[t] for t in np.linspace(0, settings.frames - 1, strip).round().astype(int)]
            for place, frame in enumerate(frames):
                sheet.paste(Image.fromarray(frame), (label + column * wide + place * (size + gap), top))
    return sheet


# ---------------------------------------------------------------------------------------------------------------------
# The command line


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument("out", type=Path, metavar="OUT", help="folder of the set: new, empty, or one to resume")
    parser.add_argument("--size", type=int, default=64, least=16, help="height and width of a frame, in pixels")
    parser.add_argument(
        "--frames", type=int, default=12, least=2, help="frames per video; at least what a method samples"
    )
    parser.add_argument("--videos_per_class", type=int, default=24, least=1, help="at least shot + queries per class")
    parser.add_argument(
        "--supervised", action="store_true", help="for ordinary recognition: the train classes only, in train and val"
    )
    parser.add_argument("--axis", choices=AXES, help="what is harder than in the demo set; see docs/data.md")
    parser.add_argument("--level", type=int, least=0, most=LEVELS[-1], help="how much, with --axis: 0 is the demo set")
    parser.add_argument(
        "--suite", action="store_true", help="OUT/base and OUT/AXIS_LEVEL for every axis, or for the one of --axis"
    )
    parser.add_argument(
        "--levels", type=int, nargs="+", least=0, most=LEVELS[-1], help="of --suite; all if not given; 0 is base"
    )
    parser.add_argument("--seed", type=int, default=0, least=0, help="another number draws other videos")
    extract.add_jobs(parser, "processes; any number draws the same")
    parser.add_argument(
        "--picture", type=Path, metavar="FILE", help="also draw film strips here (.png, .jpg): of every class, or axis"
    )
    args = parser.parse_args(argv)
    if args.suite and args.level is not None:
        parser.error(f"--suite with --level {args.level}: give --levels {args.level}")
    if args.levels and not args.suite:
        parser.error(f"--levels {args.levels[0]} without --suite: give --level for one set")
    if args.axis and args.level is None and not args.suite:
        parser.error(f"--axis {args.axis} does not say how hard: give --level too, or --suite for all levels")
    if args.level is not None and not args.axis:
        parser.error(f"--level {args.level} does not say of what: give --axis too")
    return args


def sets_of(args: argparse.Namespace) -> dict[Path, Settings]:
    """The folders that are asked for, and what they shall hold."""
    base = Settings(args.size, args.frames, args.videos_per_class, args.seed, args.supervised)
    if not args.suite:
        return {args.out: base._replace(axis=args.axis, level=args.level) if args.level else base}
    if (args.out / SETTINGS_FILE).exists():
        raise UserError(f"expected {args.out} to be new, empty or a suite, found a demo set; give another OUT")
    axes, levels = [args.axis] if args.axis else list(AXES), sorted(set(args.levels or LEVELS))
    suite = [base._replace(axis=axis, level=level) for axis in axes for level in levels]
    return {args.out / settings.folder: settings for settings in suite}


def run(args: argparse.Namespace) -> None:
    if args.picture is not None:
        check_output(args.picture, "--picture", (".png", ".jpg"))
    sets = sets_of(args)
    with extract.writing_to(args.out):
        drawn = make_demo_sets(sets, args.jobs)
        if args.picture is not None:
            sheet = draw_suite_picture(list(sets.values())) if args.suite else draw_picture(sets[args.out])
            sheet.save(args.picture, quality=80)
    for out, settings in sets.items():
        classes = len({name for _, name, _ in settings.videos()})
        done = (
            f"drew {drawn[out]} videos of {classes} classes" if drawn[out] else "already complete with these settings"
        )
        print(f"{out}: {done}")


def main(argv: Sequence[str] | None = None) -> int:
    return exit_code(lambda: run(parse_args(arguments(argv))), resume=extract.RESUME)


if __name__ == "__main__":
    sys.exit(main())
