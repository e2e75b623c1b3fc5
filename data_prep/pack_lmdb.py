"""Packs a data set into one LMDB file per split: few large files in place of millions of small ones.

    python data_prep/pack_lmdb.py --src data/ucf101 --dst data/ucf101_lmdb        # folders of frames: their images
    python data_prep/pack_lmdb.py --src videos --dst videos_lmdb                  # video files: their bytes
    python data_prep/pack_lmdb.py --src data/ucf101 --dst data/ucf101_lmdb --verify

Bytes are packed as they are, so a packed data set gives the same pixels. A run that was stopped resumes with the videos
that are not in yet; a video that is in is not looked at again.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.pool import ThreadPool
from pathlib import Path

import lmdb
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the project, wherever this is run from
from clips.frame_sources import (
    LMDB_INDEX,
    BadVideo,
    VideoFile,
    check_open_files,
    check_whole,
    check_whole_lmdb,
    file_content,
    frames_and_others,
    lmdb_key,
    pack_images,
    pack_index,
    pack_video,
    packed_frames,
)
from clips.listing import Entries, first_few, holds_images
from data_prep import extract
from engine.command_line import Parser, arguments, exit_code
from utils import UserError, print_note

LMDB_KIND = b"//kind"
BATCH = 32  # videos read at a time and written in one transaction: what a kill takes back
FIRST_MAP_SIZE = 1 << 30  # bytes of addresses, doubled when used up; the file is no larger than its content

Listing = dict[str, dict[str, Path]]  # class -> video -> a folder of frames or a video file


def list_split(root: Path) -> tuple[str, Listing]:
    """('images' or 'video', listing) of a split folder. Raises UserError where it holds both or none."""
    entries = Entries.of(root)
    kinds = {
        kind: {label: {name: Path(path) for name, path in videos.items()} for label, videos in paths.items()}
        for kind, paths in (("images", entries.folders), ("video", entries.files))
        if any(paths.values())
    }
    others = entries.others
    if len(kinds) == 2:
        folders = [path for videos in kinds["images"].values() for path in videos.values()]
        if not any(map(holds_images, folders)):  # beside video files they are no videos, as a run has it
            del kinds["images"]
            others = sorted([*others, *(str(path.relative_to(root)) for path in folders)])
    if len(kinds) != 1:
        found = "both" if kinds else "neither"
        raise UserError(f"{root} holds {found}: expected folders of frames or video files in class folders")
    if others:
        print_note(f"{root}: {len(others):,} passed over, being no videos: {first_few(others)}")
    return kinds.popitem()


def packed(video: Path) -> tuple[bytes | str, list[str]]:
    """(the value to store, or what is wrong with the video; names of images that are no frames of it)."""
    try:
        if not video.is_dir():
            return pack_video(VideoFile(video).num_frames, file_content(video)), []
        names, others = frames_and_others(video)
        if not names:
            return "the folder holds no .jpg or .png file", others
        images = [video / name for name in names]
        check_whole(images)
        return pack_images([file_content(image) for image in images]), others
    except BadVideo as error:
        return str(error), []
    except OSError as error:  # it has gone, or may not be read
        check_open_files(error)
        return f"{error.filename} could not be read ({error.strerror})", []
    except (MemoryError, UserError):
        raise
    except Exception as error:  # whatever it is, it is this video's failure alone
        return f"{type(error).__name__}: {error}", []


def name_of(key: bytes) -> str:
    """The '<class>/<video>' of which `lmdb_key` made the key."""
    return key.decode(errors="surrogateescape")


class Pack:
    """An LMDB file under construction. Only what a transaction has finished is in it, whatever ends the process."""

    def __init__(self, path: Path, kind: str) -> None:
        self.path = path
        if path.exists():
            try:
                check_whole_lmdb(path)
            except BadVideo as error:
                raise UserError(str(error)) from error
        # A lock of our own keeps other writers away, and readers do without: no lock file beside the data.
        with self._writing():
            self._file = lmdb.open(str(path), subdir=False, lock=False, map_size=FIRST_MAP_SIZE, readahead=False)
        made = (self.get(LMDB_KIND) or b"").decode()
        if made and made != kind:
            raise UserError(f"{path} was begun with {made}, --src holds {kind}: give another --dst")
        if not made:
            self.put({LMDB_KIND: kind.encode()})

    def get(self, key: bytes) -> bytes | None:
        with self._file.begin() as transaction:
            return transaction.get(key)

    def frames(self, key: bytes) -> int | None:
        """Number of frames of a video that is in, else None; its other bytes are not read."""
        with self._file.begin(buffers=True) as transaction:
            value = transaction.get(key)
            return None if value is None else packed_frames(value)

    def put(self, values: dict[bytes, bytes]) -> None:
        """Stores all of them or none."""
        try:
            with self._writing(), self._file.begin(write=True) as transaction:
                for key, value in values.items():
                    transaction.put(key, value)
        except lmdb.MapFullError:
            self._file.set_mapsize(2 * self._file.info()["map_size"])
            self.put(values)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Turns what LMDB or the disk refuses into a UserError, but for a full map, which is no mistake."""
        try:
            yield
        except lmdb.MapFullError:
            raise
        except lmdb.Error as error:
            if any(os.strerror(code) in str(error) for code in extract.NEVER_FITS):
                raise extract.DiskFull(self.path.parent) from error
            raise UserError(f"could not write {self.path} ({error}); remove it and pack again") from error

    def close(self) -> None:
        self._file.close()


def pack_split(root: Path, path: Path, jobs: int) -> dict[str, str]:
    """Packs a split folder. Returns what could not be packed: {video: reason}."""
    kind, listing = list_split(root)
    videos = {lmdb_key(label, name): video for label, names in listing.items() for name, video in names.items()}
    failures: dict[str, str] = {}
    beside: list[str] = []
    pack = Pack(path, kind)
    todo = [key for key in videos if pack.frames(key) is None]
    print(f"{root.name}: {len(videos):,} videos, {len(todo):,} to do")
    with tqdm(total=len(todo), desc=root.name, unit=" videos", disable=not todo) as bar, ThreadPool(jobs) as pool:
        for start in range(0, len(todo), BATCH):
            batch = todo[start : start + BATCH]
            values = dict(zip(batch, pool.map(packed, [videos[key] for key in batch]), strict=True))
            pack.put({key: value for key, (value, _) in values.items() if isinstance(value, bytes)})
            failures |= {name_of(key): value for key, (value, _) in values.items() if isinstance(value, str)}
            beside += [f"{name_of(key)}/{other}" for key, (_, others) in values.items() for other in others]
            bar.update(len(batch))
    if beside:
        print_note(f"{root}: left out {len(beside):,} images that are no frames of their videos: {first_few(beside)}")
    # The index comes last: its presence says that the split is whole.
    counts = {
        label: {name: count for name in names if (count := pack.frames(lmdb_key(label, name)))}
        for label, names in listing.items()
    }
    pack.put({LMDB_INDEX: pack_index(kind, counts)})
    pack.close()
    return failures


def verify_split(root: Path, path: Path, jobs: int) -> dict[str, str]:
    """Compares every byte with the source. Returns what differs: {video: reason}."""
    kind, listing = list_split(root)
    pack = Pack(path, kind)
    videos = [(lmdb_key(label, name), video) for label, names in listing.items() for name, video in names.items()]

    def compare(pair: tuple[bytes, Path]) -> tuple[str, str]:
        key, video = pair
        return name_of(key), "" if pack.get(key) == packed(video)[0] else "it differs from its source or is not in"

    differing = {name: reason for name, reason in extract.in_parallel(compare, videos, jobs, doing=root.name) if reason}
    pack.close()
    print(f"{root.name}: {len(videos) - len(differing):,} of {len(videos):,} videos are as in the source")
    return differing


def run(args: argparse.Namespace) -> int:
    src, dst = extract.check_folders(args.src, args.dst)
    splits = extract.splits_of(src)
    failures: dict[str, str] = {}
    with extract.writing_to(dst), extract.alone(dst, "pack"):
        for split in splits:
            path = dst / f"{split}.lmdb"
            if args.verify and not path.exists():
                raise UserError(f"no file at {path}: pack first, then verify")
            work = verify_split if args.verify else pack_split
            failures |= {f"{split}/{video}": reason for video, reason in work(src / split, path, args.jobs).items()}
        return extract.name_failures(dst, failures)


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument(
        "--src",
        type=Path,
        required=True,
        metavar="FOLDER",
        help="{train,val,test}/<class>/ with folders of frames or video files; is only read",
    )
    parser.add_argument(
        "--dst", type=Path, required=True, metavar="FOLDER", help="where train.lmdb, ... are written, or resumed"
    )
    parser.add_argument("--verify", action="store_true", help="pack nothing, compare what is packed with the source")
    extract.add_jobs(parser, "videos read at a time")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    return exit_code(lambda: run(parse_args(arguments(argv))), resume=extract.RESUME)


if __name__ == "__main__":
    sys.exit(main())
