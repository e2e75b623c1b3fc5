"""Videos with their class numbers, in a fixed order, for supervised training and tests: in folders or named by a list.

Letters: V videos.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from clips.frame_sources import BadVideo, FrameFolder, FrameSource, VideoFile
from clips.list_files import Row, frames_of, label_by_folder, read_list
from clips.listing import count_frames, frames_in_file, the_others
from clips.video_split import DIRECTION, Split
from utils import UserError, print_note

NO_LABEL = -1


class LabelledVideos:
    """Videos 0 to V - 1 with what is known of them. A subclass says where their frames are.

    classes: names, in the order of their numbers. num_frames: int64 (V,). labels: int64 (V, most labels of a video), the
    rest of a row NO_LABEL. multi_label: whether a video may have any number of them.

    What there is for each video is held in arrays: Python objects, once touched, would be copied to every worker process.
    """

    def __init__(
        self,
        name: str,
        root: str | Path,
        classes: Sequence[str],
        num_frames: ArrayLike,
        labels: ArrayLike,
        *,
        multi_label: bool = False,
    ) -> None:
        self.name = name
        self.root = os.fspath(root)
        self.classes = list(classes)
        self.num_frames = np.asarray(num_frames, dtype=np.int64)
        self.labels = np.asarray(labels, dtype=np.int64)
        self.multi_label = multi_label

    def __len__(self) -> int:
        return len(self.num_frames)

    @property
    def has_no_names(self) -> bool:
        """Whether the classes are called by their numbers."""
        return self.classes == [str(number) for number in range(len(self.classes))]

    def video_name(self, index: int) -> str:
        """What names the video in results, wherever the data set lies."""
        raise NotImplementedError

    def source(self, index: int) -> FrameSource:
        """Its `num_frames` frames. Raises BadVideo when they are not there."""
        raise NotImplementedError

    def labels_of(self, index: int) -> list[int]:
        """Its class numbers."""
        return self.labels[index][self.labels[index] != NO_LABEL].tolist()

    @cached_property
    def fingerprint(self) -> str:
        """A short hash of classes, videos, frame counts and labels: equal for the same videos in the same order anywhere."""
        digest = hashlib.sha256(json.dumps([self.classes, self.multi_label]).encode())
        digest.update("\n".join(map(self.video_name, range(len(self)))).encode(errors="surrogateescape"))
        digest.update(self.num_frames.astype("<i8").tobytes() + self.labels.astype("<i8").tobytes())
        return digest.hexdigest()[:16]


class SplitVideos(LabelledVideos):
    """The videos of a split in folders or LMDB: class after class, and in a class in alphabetical order.

    classes: those of the training, whose numbers are to be used; unset: the split's own.
    """

    def __init__(self, split: Split, classes: Sequence[str] | None = None) -> None:
        classes = split.classes if classes is None else classes
        if unknown := [label for label in split.classes if label not in classes]:
            raise UserError(
                f"{split.root} has {len(unknown)} class(es) that the training does not have, the first is '{unknown[0]}': "
                "expected the same classes; of few-shot splits, whose classes differ, --holdout 0.1 takes the base classes, "
                "train, alone, and data_prep/extract_*.py --split official makes splits with the same classes"
            )
        number = {label: number for number, label in enumerate(classes)}
        sizes = [len(videos) for videos in split.videos]
        super().__init__(
            split.name,
            split.root,
            classes,
            np.concatenate(split.num_frames),
            np.repeat([number[label] for label in split.classes], sizes)[:, None],
        )
        self.split = split
        self._places = np.array([(label, video) for label, size in enumerate(sizes) for video in range(size)])

    def video_name(self, index: int) -> str:
        return self.split.video_name(*self._places[index].tolist())

    def source(self, index: int) -> FrameSource:
        return self.split.source(*self._places[index].tolist())


class Part(LabelledVideos):
    """Some of the videos of another collection, in its order."""

    def __init__(self, whole: LabelledVideos, name: str, indices: Sequence[int]) -> None:
        places = np.array(indices, dtype=np.int64)
        super().__init__(
            name, whole.root, whole.classes, whole.num_frames[places], whole.labels[places],
            multi_label=whole.multi_label,
        )  # fmt: skip
        self.whole = whole
        self._indices = places

    def video_name(self, index: int) -> str:
        return self.whole.video_name(int(self._indices[index]))

    def source(self, index: int) -> FrameSource:
        return self.whole.source(int(self._indices[index]))


def held_out(whole: LabelledVideos, fraction: float) -> tuple[Part, Part]:
    """The videos to train on and those to validate on: of each class the `fraction` whose hashed names come first, at least
    one. It depends on the names of a class's videos alone: not on a seed, a format, or on where the data set lies.

    Raises UserError for a class of which no video would be left.
    """
    kept, held = [], []
    for label, name in enumerate(whole.classes):
        videos = np.flatnonzero((whole.labels == label).any(axis=1)).tolist()
        number = max(1, round(fraction * len(videos)))
        if number >= len(videos):
            raise UserError(
                f"class '{name}' in {whole.root} has {len(videos)} video(s), of which --holdout {fraction} keeps back "
                f"{number}: expected some to train on, lower it or add videos"
            )
        ranked = sorted(videos, key=lambda index: hashlib.sha256(os.fsencode(whole.video_name(index))).digest())
        held += ranked[:number]
        kept += ranked[number:]
    return Part(whole, "train", sorted(kept)), Part(whole, "val", sorted(held))


class ListedVideos(LabelledVideos):
    """The videos that a list file names, in its order; see list_files for the forms.

    A line's frames are those it names, whatever else lies in the folder: the first `num_frames`, or `first` to `last`.
    """

    def __init__(
        self,
        name: str,
        root: str | Path,
        classes: Sequence[str],
        rows: Sequence[Row],
        num_frames: ArrayLike,
        *,
        multi_label: bool = False,
    ) -> None:
        most = max([1, *(len(row.labels) for row in rows)])
        labels = [row.labels + (NO_LABEL,) * (most - len(row.labels)) for row in rows]
        super().__init__(name, root, classes, num_frames, labels, multi_label=multi_label)
        self._paths = np.array([os.fsencode(row.path) for row in rows])
        self._numbers = np.array([row.numbers for row in rows])

    @classmethod
    def open(
        cls,
        path: str | Path,
        root: str | Path,
        *,
        form: str = "frames",
        separator: str = " ",
        first_label: int = 0,
        multi_label: bool = False,
        classes: Sequence[str] | None = None,
        on_bad_video: str = "error",
        note: Callable[[str], None] = print_note,
    ) -> ListedVideos:
        """Reads a list of videos under the folder `root`. Opens none, unless it does not say their numbers of frames.

        classes: the class names; unset: the numbers are the names, or of a list without labels the folders (`label_by_folder`).
        note: takes a sentence on whatever is left out. Raises UserError when the list is of another form, has
        a label that no class has, names videos that are not under `root`, or one without frames (with on_bad_video="skip"
        such a video is left out).
        """
        path, root = Path(path), Path(root)
        rows = read_list(path, form, separator=separator, first_label=first_label, multi_label=multi_label)
        if not rows:
            raise UserError(f"{path} names no video: expected a line per video")
        _check_root(path, root, rows)
        if form == "video":
            rows, classes = label_by_folder(rows, path, classes)
        if classes is None:
            classes = [str(number) for number in range(max(max(row.labels, default=-1) for row in rows) + 1)]
        if wrong := next((row for row in rows if max(row.labels, default=-1) >= len(classes)), None):
            raise UserError(
                f"{path} has label {max(wrong.labels)} for '{wrong.path}', and there are {len(classes)} classes, counted "
                "from 0: give the class names of this list, or see --first_label"
            )
        if form == "video":
            num_frames, reasons = _frames_of_files(path, root, rows)
        else:
            num_frames, reasons = [_frames_of_row(row) for row in rows], {}
        empty = [row.path for row, frames in zip(rows, num_frames, strict=True) if frames < 1]
        if empty:
            reason = f": {reasons[empty[0]]}" if empty[0] in reasons else ""
            found = f"{len(empty)} video(s) without a frame that can be read, the first is {empty[0]}{reason}"
            if on_bad_video == "error" or len(empty) == len(rows):
                raise UserError(f"{path} names {found}; correct the list, or leave them out with --on_bad_video skip")
            note(f"{path}: left out {found}{the_others(empty[1:])}")
        kept = [number for number, frames in enumerate(num_frames) if frames > 0]
        return cls(
            path.stem,
            root,
            classes,
            [rows[number] for number in kept],
            np.array(num_frames)[kept],
            multi_label=multi_label,
        )

    def video_name(self, index: int) -> str:
        numbers = self._numbers[index]
        return os.fsdecode(self._paths[index]) + (":{}-{}".format(*numbers) if len(numbers) == 2 else "")

    def source(self, index: int) -> FrameSource:
        path = _existing(f"{self.root}/{os.fsdecode(self._paths[index])}")
        numbers = tuple(self._numbers[index].tolist())
        if not numbers or (len(numbers) == 1 and os.path.isfile(path)):
            return VideoFile(path, num_frames=int(self.num_frames[index]))
        folder = FrameFolder(path)
        try:
            chosen = frames_of(folder.names, numbers)
        except UserError as error:
            raise BadVideo(f"{path}: {error}") from error
        if not chosen:
            asked = f"its first {numbers[0]}" if len(numbers) == 1 else f"{numbers[0]} to {numbers[1]}"
            raise BadVideo(
                f"{path} holds {folder.num_frames} frames, and not all of those that the list asks for, {asked}; extract the "
                "video again, correct the list, or leave it out with --on_bad_video skip"
            )
        return FrameFolder(path, chosen)


def _check_root(path: Path, root: Path, rows: Sequence[Row]) -> None:
    """Raises UserError when none of a few rows spread over the list is under `root`."""
    some = [rows[number] for number in np.linspace(0, len(rows) - 1, 20).astype(int)]
    if not any(os.path.exists(_existing(f"{root}/{row.path}")) for row in some):
        raise UserError(
            f"{path} names '{rows[0].path}', which is not in {root}: give the folder that its paths start from"
        )


def _existing(path: str) -> str:
    """The path of a video, to which lists of TSN's kin need not write the suffix .mp4."""
    return path if os.path.exists(path) or not os.path.exists(f"{path}.mp4") else f"{path}.mp4"


def _frames_of_row(row: Row) -> int:
    return row.numbers[0] if len(row.numbers) == 1 else row.numbers[1] - row.numbers[0] + 1


def _frames_of_files(path: Path, root: Path, rows: Sequence[Row]) -> tuple[list[int], dict[str, str]]:
    """(the number of frames of each video file, kept for the next time; why those that cannot be read have none)."""
    files = {row.path: _existing(f"{root}/{row.path}") for row in rows}
    kept_for = Path(root.resolve(), *path.resolve().parts[1:])  # one list may be read with several roots
    counts, remarks = count_frames(kept_for, {"": files}, frames_in_file)
    return [counts[""][row.path] for row in rows], {name: remark for (_, name), remark in remarks.items()}


# ---------------------------------------------------------------------------------------------------------------------
# Mirror images


def mirrored_classes(classes: Sequence[str], *, rotations: bool = True) -> list[int | None]:
    """The class number of each class's mirror image: by exchanging left and right in its name.

    A name without such words is its own mirror image. Where no class has the exchanged name it is None: clips of that class
    cannot be mirrored. rotations: also exchange clockwise and counterclockwise (mmaction2's table for Jester does not).
    """
    words = {"left": "right", "right": "left"}
    pattern = DIRECTION.pattern
    if rotations:
        words |= {"counterclockwise": "clockwise", "clockwise": "counterclockwise"}
        pattern += "|(counterclockwise|clockwise)"
    names = [re.sub(r"(counter|anti)[- _]?clockwise", "counterclockwise", name.casefold()) for name in classes]
    number = {name: number for number, name in enumerate(names)}
    mirrored = [re.sub(pattern, lambda match: words[match[0]], name) for name in names]
    return [
        itself if image == name else number.get(image)
        for itself, (name, image) in enumerate(zip(names, mirrored, strict=True))
    ]


def mirrors_by_flag(flip: str, classes: Sequence[str]) -> list[int | None] | None:
    """The class of each class's mirrored clips, None where they are not to be mirrored; None for all: none is."""
    if flip == "off":
        return None
    if flip == "on":
        return list(range(len(classes)))
    mirrored = mirrored_classes(classes)
    return mirrored if flip == "label" else [image if image == own else None for own, image in enumerate(mirrored)]
