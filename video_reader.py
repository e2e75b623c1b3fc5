"""Episodes: which videos a data set holds (`Split`), which of them task i asks for (`draw_episode`), and their frames
(`VideoDataset`).

A data set is a folder `<dataset>/{train,val,test}/<class>/<video>/*.jpg|png`.

Letters: T frames of a clip, H W pixels of a frame; an episode has `way` classes with `shot` support videos and `queries`
target videos each.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import time
import zlib
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from frame_sources import BadVideo, FrameFolder, FrameSource, frame_files
from transforms import ClipTransform
from utils import UserError

SPLITS = ("train", "val", "test")
SAMPLINGS = ("linspace", "segment", "jittered")

# ---------------------------------------------------------------------------------------------------------------------
# Which frames


def sample_frames(
    num_frames: int, seq_len: int, how: str = "linspace", rng: np.random.Generator | None = None
) -> np.ndarray:
    """Frame numbers (seq_len,) from 0, in order, of a video of `num_frames`.

    linspace: evenly from the first to the last frame, always the same.
    segment: one frame of each of `seq_len` equal parts; its middle one, or with `rng` a random one (TSN, ECCV 2016).
    jittered: evenly between a random start and a random end near the video's ends, at most 5 frames away from them (TRX,
    CVPR 2021); without `rng` from the second to the last but one.

    A video shorter than `seq_len` is never dropped: positions are rounded down, so that each frame repeats, in order.
    """
    last = num_frames - 1
    if how == "linspace":
        positions = np.linspace(0, last, seq_len)
    elif how == "segment":
        offsets = np.full(seq_len, 0.5) if rng is None else rng.random(seq_len)
        positions = (np.arange(seq_len) + offsets) * num_frames / seq_len
    elif how == "jittered":
        room = min(5, max(0, (num_frames - seq_len) // 2))
        if rng is None:
            start, end = min(1, room), last - min(1, room)
        else:
            start, end = int(rng.integers(room + 1)), last - int(rng.integers(room + 1))
        positions = np.linspace(start, end, seq_len)
    else:
        raise UserError(f"unknown frame sampling '{how}': expected one of {', '.join(SAMPLINGS)}")
    return np.clip(positions.astype(np.int64), 0, last)


# ---------------------------------------------------------------------------------------------------------------------
# Which videos


@dataclasses.dataclass(frozen=True)
class Split:
    """The classes of one split, in alphabetical order, and the videos of each, in alphabetical order.

    root: the folder that holds the class folders. videos[c][v] is a name, num_frames[c][v] its number of frames.
    """

    name: str
    root: str
    classes: list[str]
    videos: list[list[str]]
    num_frames: list[list[int]]

    @classmethod
    def open(cls, dataset: str | Path, name: str, *, on_bad_video: str = "error") -> Split:
        """Lists a split of a data set, quickly where it was listed before and has not changed.

        Raises UserError when there is no such split, it has no class, a class has no video, or a video no frame (with
        on_bad_video="skip" such a video is left out; `empty_videos` of the listing says which).
        """
        root = Path(dataset) / name
        layout = f"expected {dataset}/{{{','.join(SPLITS)}}}/<class>/<video>/*.jpg; see data_prep/"
        if not Path(dataset).is_dir():
            raise UserError(f"no data set at {dataset}: {layout}")
        if not root.is_dir():
            raise UserError(f"{dataset} has no {name}/ folder: {layout}")
        listing = list_videos(root)
        if not listing:
            raise UserError(f"{root} holds no class folder: {layout}")
        empty = [f"{root}/{label}/{video}" for label, videos in listing.items() for video, n in videos.items() if not n]
        if empty and on_bad_video == "error":
            raise UserError(
                f"{len(empty)} video folder(s) without a frame, the first is {empty[0]}: expected *.jpg or *.png; extract "
                "again, remove them, or leave them out with --on_bad_video skip"
            )
        kept = {label: {v: n for v, n in videos.items() if n} for label, videos in listing.items()}
        for label, videos in kept.items():
            if not videos:
                raise UserError(f"class '{label}' in {root} has no video: {layout}; remove the empty folder")
        return cls(
            name=name,
            root=str(root),
            classes=list(kept),
            videos=[list(videos) for videos in kept.values()],
            num_frames=[list(videos.values()) for videos in kept.values()],
        )

    @property
    def num_videos(self) -> int:
        return sum(len(videos) for videos in self.videos)

    @cached_property
    def fingerprint(self) -> str:
        """A short hash of the class names, video names and frame counts: equal for the same data set anywhere."""
        content = json.dumps([self.classes, self.videos, self.num_frames], ensure_ascii=False)
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    def path(self, label: int, video: int) -> str:
        return f"{self.root}/{self.classes[label]}/{self.videos[label][video]}"

    def source(self, label: int, video: int) -> FrameSource:
        """The frames of one video. Raises BadVideo when they have changed since the split was listed."""
        return FrameFolder(self.path(label, video))

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
        return [label for label in self.classes if re.search(r"(?<![a-z])(left|right)", label, re.IGNORECASE)]


def list_videos(root: Path) -> dict[str, dict[str, int]]:
    """{class: {video: number of frames}} of a split folder, both levels in alphabetical order.

    The listing is kept in the user's cache folder. A video folder is listed again when its modification time has moved,
    which adding, removing or renaming a frame does; so 100,000 unchanged videos cost one look at each folder's time.
    """
    cache_file = _cache_folder() / f"{hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:24]}.json"
    known = _read_cache(cache_file)
    started = time.time_ns()
    fresh: dict[str, dict[str, list[int]]] = {}
    changed = False
    for label in _folders(root):
        before = known.get(label.name, {})
        fresh[label.name] = {}
        for video in _folders(label.path):
            modified = video.stat().st_mtime_ns
            entry = before.get(video.name)
            if entry is None or entry[0] != modified:
                # A folder that was touched a moment ago may change again within the clock's tick: do not trust its time.
                settled = started - modified > 2_000_000_000
                entry = [modified if settled else 0, len(frame_files(video.path))]
                changed = True
            fresh[label.name][video.name] = entry
        changed |= len(before) != len(fresh[label.name])
    if changed or len(known) != len(fresh):
        _write_cache(cache_file, fresh)
    return {label: {video: entry[1] for video, entry in videos.items()} for label, videos in fresh.items()}


def _folders(path: str | Path) -> list[os.DirEntry[str]]:
    with os.scandir(path) as entries:
        return sorted((e for e in entries if e.is_dir() and e.name[0] != "."), key=lambda entry: entry.name)


def _cache_folder() -> Path:
    """Never inside the data set, which may be read-only or shared."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "few_shot_action_recognition" / "listings"


def _read_cache(path: Path) -> dict[str, dict[str, list[int]]]:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}  # absent or damaged: it is only a cache, the folders are listed again


def _write_cache(path: Path, listing: dict[str, dict[str, list[int]]]) -> None:
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(listing, separators=(",", ":")), encoding="utf-8")
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)  # no room or no right to write: the next start lists again


# ---------------------------------------------------------------------------------------------------------------------
# Which episode


@dataclasses.dataclass(frozen=True)
class EpisodePlan:
    """What task `index` asks for: `labels` (way,) are class numbers of the split; row k of `candidates` is the order in
    which class k's videos are drawn: first `queries` target videos, then `shot` support videos, then replacements."""

    index: int
    labels: list[int]
    candidates: list[list[int]]
    shot: int
    queries: int


def episode_rng(seed: int, split: str, index: int, *stream: int) -> np.random.Generator:
    """The generator of task `index`, the same on every machine; further numbers give independent streams of the task."""
    return np.random.default_rng([seed, zlib.crc32(split.encode()), index, *stream])


def draw_episode(split: Split, seed: int, index: int, *, way: int, shot: int, queries: int) -> EpisodePlan:
    """Task `index`: a function of (seed, split, index) alone.

    Target videos are drawn before support videos, so that episodes with more shots keep the same targets and only add
    support videos.
    """
    rng = episode_rng(seed, split.name, index)
    labels = rng.choice(len(split.classes), size=way, replace=False).tolist()
    candidates = [rng.permutation(len(split.videos[label])).tolist() for label in labels]
    return EpisodePlan(index, labels, candidates, shot, queries)


class VideoDataset(Dataset[dict[str, Any]]):
    """Item i is task i of a split, read and cropped.

    dataset[i] is a dict of
      support_set     uint8 (way*shot*T, 3, H, W), clip after clip      target_set     uint8 (way*queries*T, 3, H, W)
      support_labels  int64 (way*shot,), 0..way-1                       target_labels  int64 (way*queries,)
      real_support_labels, real_target_labels: int64, class numbers of the split; batch_class_list: int64 (way,)
      support_videos, target_videos: lists of "class/video"; index: i; bad_videos: messages about videos left out.
    Clips come in random order, so that a head that relied on it would fail.
    """

    def __init__(
        self,
        split: Split,
        *,
        way: int,
        shot: int,
        queries: int,
        seq_len: int,
        transform: ClipTransform,
        seed: int,
        sampling: str = "linspace",
        on_bad_video: Literal["error", "skip"] = "error",
    ) -> None:
        split.check_episodes(way, shot, queries)
        self.split = split
        self.way, self.shot, self.queries = way, shot, queries
        self.seq_len = seq_len
        self.transform = transform
        self.seed = seed
        self.sampling = sampling
        self.on_bad_video = on_bad_video

    def plan(self, index: int) -> EpisodePlan:
        return draw_episode(self.split, self.seed, index, way=self.way, shot=self.shot, queries=self.queries)

    def clip(self, label: int, video: int, rng: np.random.Generator) -> Tensor:
        """One video's sampled and cropped frames, uint8 (T, 3, H, W)."""
        source = self.split.source(label, video)
        frames = sample_frames(
            self.split.num_frames[label][video], self.seq_len, self.sampling, rng if self.transform.train else None
        )
        return self.transform(source.read(frames), rng)

    def __getitem__(self, index: int) -> dict[str, Any]:
        plan = self.plan(index)
        support, target, bad_videos = [], [], []
        for k, (label, candidates) in enumerate(zip(plan.labels, plan.candidates, strict=True)):
            clips: list[tuple[Tensor, int, int, str]] = []
            for position, video in enumerate(candidates):
                if len(clips) == plan.queries + plan.shot:
                    break
                try:
                    clip = self.clip(label, video, episode_rng(self.seed, self.split.name, index, k, position))
                except BadVideo as error:
                    if self.on_bad_video == "error":
                        raise
                    bad_videos.append(str(error))
                    continue
                clips.append((clip, k, label, f"{self.split.classes[label]}/{self.split.videos[label][video]}"))
            if len(clips) < plan.queries + plan.shot:
                raise BadVideo(
                    f"class '{self.split.classes[label]}' in {self.split.root} has {len(clips)} readable videos, an episode "
                    f"needs {plan.queries + plan.shot}; extract the damaged ones again, the last: {bad_videos[-1]}"
                )
            target += clips[: plan.queries]
            support += clips[plan.queries :]
        order = episode_rng(self.seed, self.split.name, index, -1 % 2**32)
        order.shuffle(support)
        order.shuffle(target)
        return {
            "support_set": torch.cat([clip for clip, *_ in support]),
            "support_labels": torch.tensor([k for _, k, _, _ in support]),
            "real_support_labels": torch.tensor([label for _, _, label, _ in support]),
            "support_videos": [name for *_, name in support],
            "target_set": torch.cat([clip for clip, *_ in target]),
            "target_labels": torch.tensor([k for _, k, _, _ in target]),
            "real_target_labels": torch.tensor([label for _, _, label, _ in target]),
            "target_videos": [name for *_, name in target],
            "batch_class_list": torch.tensor(plan.labels),
            "index": index,
            "bad_videos": bad_videos,
        }


class _Caught:
    """Carries a BadVideo out of a worker process: the loader would bury its sentence in a stack trace."""

    def __init__(self, dataset: VideoDataset) -> None:
        self.dataset = dataset

    def __getitem__(self, index: int) -> dict[str, Any] | BadVideo:
        # One thread per worker: the parallelism is in the workers, and their threads would fight over the same cores.
        if torch.utils.data.get_worker_info() is not None:
            torch.set_num_threads(1)
        try:
            return self.dataset[index]
        except BadVideo as error:
            return error


def read_episodes(dataset: VideoDataset, indices: Sequence[int], num_workers: int) -> Iterator[dict[str, Any]]:
    """The tasks `indices`, in that order, read ahead by `num_workers` processes (0: in this one). Raises BadVideo."""
    loader: DataLoader[Any] = DataLoader(
        _Caught(dataset),  # type: ignore[arg-type]  # a map from indices, all that a loader asks for
        batch_size=None,
        sampler=indices,
        num_workers=num_workers,
        pin_memory=torch.cuda.is_available(),
    )
    for item in loader:
        if isinstance(item, BadVideo):
            raise item
        yield item
