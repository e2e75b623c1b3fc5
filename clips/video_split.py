"""Which videos a data set holds: `Split`.

A data set is a folder with train, val and test, each in one of three formats:

    frames   <dataset>/<split>/<class>/<video>/*.jpg|png
    video    <dataset>/<split>/<class>/<video>.mp4|avi|webm|...
    lmdb     <dataset>/<split>.lmdb                               written by data_prep/pack_lmdb.py
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path

from clips.frame_sources import BadVideo, FrameFolder, FrameSource, LmdbStore, VideoFile
from clips.listing import LISTERS, Listing, first_few, holds_images, the_others, videos_and_others, visible_folders
from utils import UserError, print_note

SPLITS = ("train", "val", "test")
FORMATS = ("frames", "video", "lmdb")

DIRECTION = re.compile(r"(?<![a-z])(left|right)", re.IGNORECASE)


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
    def open(
        cls,
        dataset: str | Path,
        name: str,
        *,
        format: str = "auto",
        on_bad_video: str = "error",
        note: Callable[[str], None] = print_note,
    ) -> Split:
        """Lists a split of a data set, quickly where it was listed before and has not changed.

        note: takes a sentence on whatever is left out. Raises UserError when there is no such split, it has no class, a class
        has no video, or a video no frame (with on_bad_video="skip" such a video is left out).
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
            listing = LISTERS[format](root)
        except BadVideo as error:
            raise UserError(str(error)) from error
        if not listing.counts:
            found = f", but {first_few(listing.others)}" if listing.others else ""
            raise UserError(f"{root} holds no class folder{found}: {layout(dataset, name)}")
        empty = [(label, video) for label, videos in listing.counts.items() for video, n in videos.items() if not n]
        if empty and on_bad_video == "error":
            raise UserError(
                f"{len(empty)} video(s) without a frame that can be read, the first is {_reason(listing, empty[0])}; mend or "
                "remove them, or leave them out with --on_bad_video skip"
            )
        kept = {label: {v: n for v, n in videos.items() if n} for label, videos in listing.counts.items()}
        for label, videos in kept.items():
            if not videos:
                raise UserError(f"class '{label}' in {root} has no {_lacking(label, listing, format, dataset, name)}")
        for text in left_out(listing, KINDS[format]):
            note(f"{root}: {text}")
        return cls(
            name=name,
            root=str(root),
            format=format,
            classes=list(kept),
            videos=[list(videos) for videos in kept.values()],
            num_frames=[list(videos.values()) for videos in kept.values()],
            suffixes=[[listing.suffixes.get((label, video), "") for video in videos] for label, videos in kept.items()],
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
        path = self.path(label, video)
        return (
            FrameFolder(path) if self.format == "frames" else VideoFile(path, num_frames=self.num_frames[label][video])
        )

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
    for label in visible_folders(root):
        folders, files, _ = videos_and_others(label)
        if folders and not (files and not any(map(holds_images, folders.values()))):
            return "frames"
        if files:
            return "video"
    return "frames"


# ---------------------------------------------------------------------------------------------------------------------
# What a listing leaves out, in words

KINDS = {"frames": "folder of frames", "video": "video file", "lmdb": "video"}


def left_out(listing: Listing, kind: str) -> Iterator[str]:
    """A sentence on each kind of thing that is in a split's folder and not in the split."""
    if listing.others:
        yield f"{len(listing.others):,} passed over, being no {kind}: {first_few(listing.others)}"
    bad = [place for place in listing.remarks if not listing.counts[place[0]][place[1]]]
    if bad:
        yield (
            f"left out {len(bad):,} video(s) without a frame that can be read, the first is {_reason(listing, bad[0])}"
            f"{the_others(['/'.join(place) for place in bad[1:]])}"
        )
    beside = [place for place in listing.remarks if listing.counts[place[0]][place[1]]]
    if beside:
        yield (
            f"{len(beside):,} video(s) hold images that are not of the series of their frames and are left out, the first is "
            f"{'/'.join(beside[0])}: {listing.remarks[beside[0]]}"
        )


def _reason(listing: Listing, place: tuple[str, str]) -> str:
    """A video without a frame, and why it has none, without the advice that is for one video alone."""
    return listing.remarks.get(place, f"{'/'.join(place)}, which was packed so").partition(";")[0]


def _lacking(label: str, listing: Listing, format: str, dataset: str | Path, name: str) -> str:
    """What a class without a video holds, and what is to be done."""
    unreadable = [place for place in listing.remarks if place[0] == label]
    if unreadable:
        return (
            f"video with a frame that can be read, the first of {len(unreadable)} is {_reason(listing, unreadable[0])}"
        )
    others = [other.partition("/")[2] for other in listing.others if other.startswith(f"{label}/")]
    if others:
        return (
            f"{KINDS[format]}, but {first_few(others)}: a split is made of folders of frames or of video files, not of both; "
            "move them, or extract frames with data_prep/extract_folder.py"
        )
    return f"video: {layout(dataset, name)}; remove the empty folder"
