"""Which videos a data set holds: `Split`.

A data set is a folder with train, val and test, each in one of three formats:

    frames   <dataset>/<split>/<class>/<video>/*.jpg|png
    video    <dataset>/<split>/<class>/<video>.mp4|avi|webm|...
    lmdb     <dataset>/<split>.lmdb                               written by data_prep/pack_lmdb.py
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path

from tqdm import tqdm

from clips.frame_sources import (
    BadVideo,
    FrameFolder,
    FrameSource,
    LmdbStore,
    VideoFile,
    frame_files,
    list_video_files,
)
from utils import UserError

SPLITS = ("train", "val", "test")
FORMATS = ("frames", "video", "lmdb")

DIRECTION = re.compile(r"(?<![a-z])(left|right)", re.IGNORECASE)

Listing = dict[str, dict[str, int]]  # {class: {video: number of frames}}, both in alphabetical order


@dataclasses.dataclass(frozen=True)
class Split:
    """The classes of one split, in alphabetical order, and the videos of each, in alphabetical order.

    root: the folder that holds the class folders, or the LMDB file. videos[c][v] is a name, num_frames[c][v] its number of
    frames, suffixes[c][v] what its file's name has beside it. The same videos in another format make an equal split.
    """

    name: str
    root: str
    format: str
    classes: list[str]
    videos: list[list[str]]
    num_frames: list[list[int]]
    suffixes: list[list[str]]

    @classmethod
    def open(cls, dataset: str | Path, name: str, *, format: str = "auto", on_bad_video: str = "error") -> Split:
        """Lists a split of a data set, quickly where it was listed before and has not changed.

        Raises UserError when there is no such split, it has no class, a class has no video, or a video no frame (with
        on_bad_video="skip" such a video is left out).
        """
        if not Path(dataset).is_dir():
            raise UserError(f"no data set at {dataset}: {layout(dataset, name)}")
        if format == "auto":
            format = find_format(Path(dataset), name)
        root = Path(dataset) / (f"{name}.lmdb" if format == "lmdb" else name)
        if not root.exists():
            raise UserError(
                f"{dataset} has no {root.name}{'' if format == 'lmdb' else '/ folder'}: {layout(dataset, name)}"
            )
        try:
            listing, suffixes = LISTERS[format](root)
        except BadVideo as error:
            raise UserError(str(error)) from error
        if not listing:
            raise UserError(f"{root} holds no class folder: {layout(dataset, name)}")
        empty = [f"{root}/{label}/{video}" for label, videos in listing.items() for video, n in videos.items() if not n]
        if empty and on_bad_video == "error":
            raise UserError(
                f"{len(empty)} video(s) without a frame that can be read, the first is {empty[0]}: expected "
                f"{'*.jpg or *.png in its folder' if format == 'frames' else 'a whole video file'}; extract again, remove "
                "them, or leave them out with --on_bad_video skip"
            )
        kept = {label: {v: n for v, n in videos.items() if n} for label, videos in listing.items()}
        for label, videos in kept.items():
            if not videos:
                raise UserError(
                    f"class '{label}' in {root} has no video: {layout(dataset, name)}; remove the empty folder"
                )
        return cls(
            name=name,
            root=str(root),
            format=format,
            classes=list(kept),
            videos=[list(videos) for videos in kept.values()],
            num_frames=[list(videos.values()) for videos in kept.values()],
            suffixes=[[suffixes.get((label, video), "") for video in videos] for label, videos in kept.items()],
        )

    @property
    def num_videos(self) -> int:
        return sum(len(videos) for videos in self.videos)

    @cached_property
    def fingerprint(self) -> str:
        """A short hash of the class names, video names and frame counts: equal for the same data set anywhere."""
        content = json.dumps([self.classes, self.videos, self.num_frames], ensure_ascii=False)
        return hashlib.sha256(content.encode(errors="surrogateescape")).hexdigest()[:16]  # names need not be Unicode

    def video_name(self, label: int, video: int) -> str:
        return f"{self.classes[label]}/{self.videos[label][video]}"

    def path(self, label: int, video: int) -> str:
        return f"{self.root}/{self.video_name(label, video)}{self.suffixes[label][video]}"

    def source(self, label: int, video: int) -> FrameSource:
        """The frames of one video. Raises BadVideo when they have changed since the split was listed."""
        if self.format == "lmdb":
            return self._store.video(self.classes[label], self.videos[label][video])
        return (FrameFolder if self.format == "frames" else VideoFile)(self.path(label, video))

    @cached_property
    def _store(self) -> LmdbStore:
        return LmdbStore(self.root)

    def check_episodes(self, way: int, shot: int, queries: int) -> None:
        """Raises UserError when the split cannot give such episodes, naming the class and both numbers."""
        if way > len(self.classes):
            raise UserError(
                f"{self.root} has {len(self.classes)} classes, a {way}-way episode needs {way}; lower the way of this split"
            )
        for label, videos in zip(self.classes, self.videos, strict=True):
            if len(videos) < shot + queries:
                raise UserError(
                    f"class '{label}' in {self.root} has {len(videos)} videos, an episode needs {shot + queries} "
                    f"({shot} support + {queries} query); lower the shots or queries of this split, or add videos"
                )

    def direction_classes(self) -> list[str]:
        """Class names that mention left or right: a mirrored clip of theirs shows another class."""
        return [label for label in self.classes if DIRECTION.search(label)]


def layout(dataset: str | Path, name: str) -> str:
    """What a data set must look like, for errors."""
    return (
        f"expected {dataset}/{{{','.join(SPLITS)}}}/<class>/<video>/*.jpg, <class>/<video>.mp4 in place of the folders, or "
        f"{dataset}/{name}.lmdb; see data_prep/"
    )


def find_format(dataset: Path, name: str) -> str:
    """How a split is stored: folders of frames or video files where there is a folder of its name, else an LMDB file."""
    root = dataset / name
    if not root.is_dir():
        return "lmdb" if (dataset / f"{name}.lmdb").exists() else "frames"
    for label in _folders(root):
        if _folders(label.path):
            return "frames"
        if list_video_files(root)[label.name]:
            return "video"
    return "frames"


# ---------------------------------------------------------------------------------------------------------------------
# Listing a split


def list_frame_folders(root: Path) -> tuple[Listing, dict[tuple[str, str], str]]:
    """Classes, videos and their numbers of frames in folders of images."""
    found = {
        label.name: {v.name: (v.path, v.stat().st_mtime_ns) for v in _folders(label.path)} for label in _folders(root)
    }
    return count_frames(root, found, lambda path: len(frame_files(path))), {}


def list_videos(root: Path) -> tuple[Listing, dict[tuple[str, str], str]]:
    """The same of a folder of video files, with the suffixes of their names. A file that cannot be read has 0 frames."""
    files = list_video_files(root)
    found = {
        label: {video: (path, os.stat(path).st_mtime_ns) for video, path in videos.items()}
        for label, videos in files.items()
    }
    suffixes = {
        (label, video): os.path.splitext(path)[1] for label, videos in files.items() for video, path in videos.items()
    }
    return count_frames(root, found, frames_in_file), suffixes


def list_lmdb(path: Path) -> tuple[Listing, dict[tuple[str, str], str]]:
    """The same of an LMDB file, which holds its own listing."""
    return LmdbStore(path).index["videos"], {}


UNTRUSTED = -1  # as a modification time; 0 is one that some file systems give to all files
LISTERS = {"frames": list_frame_folders, "video": list_videos, "lmdb": list_lmdb}


def frames_in_file(path: str) -> int:
    """The number of frames of a video file, 0 where it cannot be read."""
    try:
        return VideoFile(path).num_frames
    except BadVideo:
        return 0


def count_frames(
    root: Path, found: dict[str, dict[str, tuple[str, int]]], count: Callable[[str], int]
) -> dict[str, dict[str, int]]:
    """Numbers of frames of the videos in {class: {video: (path, modification time)}}, kept for `root`.

    They are kept in the user's cache folder. A video is counted again when its modification time has moved; that of a
    folder moves when a frame is added, removed or renamed. So 100,000 unchanged videos cost one look at each one's time.
    """
    cache_file = _cache_folder() / f"{hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:24]}.json"
    known = _read_cache(cache_file)
    started = time.time_ns()
    counts = {
        label: {video: known.get(label, {}).get(video, [UNTRUSTED, 0]) for video in videos}
        for label, videos in found.items()
    }
    changed = [
        (label, video)
        for label, videos in found.items()
        for video, (_, modified) in videos.items()
        if counts[label][video][0] != modified
    ]
    if changed:
        paths = [found[label][video][0] for label, video in changed]
        with ThreadPoolExecutor(max_workers=8) as pool:  # waiting for the disk is most of it
            bar = tqdm(pool.map(count, paths), total=len(paths), desc=f"list {root.name}", disable=None, leave=False)
            for (label, video), frames in zip(changed, bar, strict=True):
                modified = found[label][video][1]
                # What was touched a moment ago may change again within the clock's tick: its time is not trusted.
                settled = started - modified > 2_000_000_000
                counts[label][video] = [modified if settled else UNTRUSTED, frames]
    if counts != known:
        _write_cache(cache_file, counts)
    return {label: {video: entry[1] for video, entry in videos.items()} for label, videos in counts.items()}


def _folders(path: str | Path) -> list[os.DirEntry[str]]:
    with os.scandir(path) as entries:
        return sorted((e for e in entries if e.is_dir() and e.name[0] != "."), key=lambda entry: entry.name)


def _cache_folder() -> Path:
    """Never inside the data set, which may be read-only or shared."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "few_shot_action_recognition" / "listings"


def _read_cache(path: Path) -> dict[str, dict[str, list[int]]]:
    try:
        checksum, _, content = path.read_bytes().partition(b"\n")
    except OSError:
        return {}
    # Where it is damaged, or of another form, the folders are listed again: it is only a cache.
    return json.loads(content) if checksum == _checksum(content) else {}


def _write_cache(path: Path, listing: dict[str, dict[str, list[int]]]) -> None:
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        content = json.dumps(listing, separators=(",", ":")).encode()
        temporary.write_bytes(_checksum(content) + b"\n" + content)
        temporary.replace(path)
    except OSError:  # no room or no right to write: the next start lists again
        with contextlib.suppress(OSError):
            temporary.unlink()


def _checksum(content: bytes) -> bytes:
    return hashlib.sha256(content).hexdigest().encode()
