"""Episodes: which videos a data set holds (`Split`), which of them task i asks for (`draw_episode`), and their frames
(`VideoDataset`).

A data set is a folder `<dataset>/{train,val,test}/<class>/<video>/*.jpg|png`.

Letters: T frames of a clip, H W pixels of a frame; an episode has `way` classes with `shot` support videos and `queries`
target videos each.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import hashlib
import json
import os
import re
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from frame_sources import BadVideo, FrameFolder, FrameSource, frame_files
from transforms import ClipTransform
from utils import UserError, atomic_write, read_json

SPLITS = ("train", "val", "test")
SAMPLINGS = ("linspace", "segment", "jittered")
EPISODES_FORMAT = "few-shot-episodes/1"

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
        return hashlib.sha256(content.encode(errors="surrogateescape")).hexdigest()[:16]  # names need not be Unicode

    def video_name(self, label: int, video: int) -> str:
        return f"{self.classes[label]}/{self.videos[label][video]}"

    def path(self, label: int, video: int) -> str:
        return f"{self.root}/{self.video_name(label, video)}"

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


# ---------------------------------------------------------------------------------------------------------------------
# Which episode


@dataclasses.dataclass(frozen=True)
class EpisodePlan:
    """What task `index` of `seed` asks for: classes and videos by their numbers in the split.

    labels[k] is the class that the episode calls k. candidates[k] are its videos in the order in which they are taken:
    `queries` target videos, then support videos, then replacements of unreadable ones. strangers[k] are (class, video) pairs
    of other classes; the first `noisy` of them stand in for the last support videos of class k.
    """

    seed: int
    index: int
    labels: list[int]
    candidates: list[list[int]]
    strangers: list[list[tuple[int, int]]]
    shot: int
    queries: int
    noisy: int = 0

    def narrowed(self, way: int, shot: int) -> EpisodePlan:
        """The same episode with fewer classes and support videos."""
        return dataclasses.replace(
            self,
            labels=self.labels[:way],
            candidates=self.candidates[:way],
            strangers=self.strangers[:way],
            shot=shot,
        )


class Drawn(NamedTuple):
    """One video of an episode: the episode's label for it, its true class and number in the split, and what was read."""

    k: int
    label: int
    video: int
    content: Any


def episode_rng(seed: int, split: str, index: int, *stream: int) -> np.random.Generator:
    """The generator of task `index`, the same on every machine; further numbers give independent streams of the task."""
    return np.random.default_rng([seed, zlib.crc32(split.encode()), index, *stream])


# Streams of a task's generator, so that a change of one draw leaves the others as they are.
VIDEOS_OF_CLASS, STRANGERS_TO_CLASS, PIXELS, ORDER = range(1, 5)


def draw_episode(
    split: Split, seed: int, index: int, *, way: int, shot: int, queries: int, noisy: int = 0
) -> EpisodePlan:
    """Task `index`: a function of (seed, split, index) alone.

    Episodes nest: with more shots the targets stay and support videos are added, with more ways classes are added. So
    accuracies at different shots and ways are compared on as much common ground as there is.
    """
    labels = episode_rng(seed, split.name, index).permutation(len(split.classes))[:way].tolist()
    candidates = [
        episode_rng(seed, split.name, index, VIDEOS_OF_CLASS, label).permutation(len(split.videos[label])).tolist()
        for label in labels
    ]
    strangers: list[list[tuple[int, int]]] = [[] for _ in labels]
    if noisy:
        taken = {(label, v) for label, videos in zip(labels, candidates, strict=True) for v in videos[: shot + queries]}
        for k, label in enumerate(labels):
            rng = episode_rng(seed, split.name, index, STRANGERS_TO_CLASS, label)
            others = [(c, v) for c, videos in enumerate(split.videos) if c != label for v in range(len(videos))]
            strangers[k] = [others[i] for i in rng.permutation(len(others)) if others[i] not in taken]
    return EpisodePlan(seed, index, labels, candidates, strangers, shot, queries, noisy)


def fill_episode(
    split: Split, plan: EpisodePlan, read: Callable[[int, int, int], Any], on_bad_video: str = "error"
) -> tuple[list[Drawn], list[Drawn], list[str]]:
    """Reads a plan's videos: (support, target, messages about unreadable videos that others stand in for), both shuffled.

    `read(label, video, position)` gives a video's content or raises BadVideo; position counts a class's candidates. Which
    video stands in depends on the plan and the files alone, so the episode is the same wherever it is read.
    """
    support: list[Drawn] = []
    target: list[Drawn] = []
    bad_videos: list[str] = []

    def first_readable(k: int, wanted: int, candidates: Iterable[tuple[int, int]]) -> list[Drawn]:
        drawn: list[Drawn] = []
        for position, (label, video) in enumerate(candidates):
            if len(drawn) == wanted:
                break
            try:
                drawn.append(Drawn(k, label, video, read(label, video, position)))
            except BadVideo as error:
                if on_bad_video == "error":
                    raise
                bad_videos.append(str(error))
        if len(drawn) < wanted:
            last = f"; extract the damaged ones again, the last: {bad_videos[-1]}" if bad_videos else ""
            raise BadVideo(
                f"class '{split.classes[plan.labels[k]]}' in {split.root} has {len(drawn)} readable videos, an episode needs "
                f"{wanted}{last}"
            )
        return drawn

    for k, label in enumerate(plan.labels):
        own = first_readable(k, plan.queries + plan.shot - plan.noisy, ((label, v) for v in plan.candidates[k]))
        target += own[: plan.queries]
        support += own[plan.queries :] + first_readable(k, plan.noisy, plan.strangers[k])
    # Shuffled, so that a head that relied on the order of classes would fail.
    order = episode_rng(plan.seed, split.name, plan.index, ORDER)
    order.shuffle(support)
    order.shuffle(target)
    return support, target, bad_videos


def seal_episodes(path: Path, split: Split, plans: Sequence[EpisodePlan], seed: int) -> None:
    """Writes drawn episodes to a readable JSON file, by class and video names, with the split's fingerprint."""
    first = plans[0]
    tasks = []
    for plan in plans:
        taken = plan.queries + plan.shot
        tasks.append(
            [
                {
                    "class": split.classes[label],
                    "target": [split.videos[label][video] for video in videos[: plan.queries]],
                    "support": [split.videos[label][video] for video in videos[plan.queries : taken]],
                    "strangers": [split.video_name(*stranger) for stranger in strangers[: plan.noisy]],
                }
                for label, videos, strangers in zip(plan.labels, plan.candidates, plan.strangers, strict=True)
            ]
        )
    content = {
        "format": EPISODES_FORMAT,
        "split": split.name,
        "split_fingerprint": split.fingerprint,
        "seed": seed,
        "way": len(first.labels),
        "shot": first.shot,
        "queries_per_class": first.queries,
        "noisy_support": first.noisy,
    }
    lines = [json.dumps(task, ensure_ascii=False) for task in tasks]
    header = json.dumps(content, ensure_ascii=False, indent=1)[:-2]
    with atomic_write(path) as file:  # one task to a line: readable, and quick to compare with diff
        file.write((header + ',\n "tasks": [\n' + ",\n".join(lines) + "\n]}\n").encode())


def unseal_episodes(path: Path, split: Split) -> tuple[dict[str, Any], list[EpisodePlan]]:
    """Reads what `seal_episodes` wrote: (its settings, the plans). Raises UserError naming videos that are missing."""
    content = read_json(path)
    if not isinstance(content, dict) or content.get("format") != EPISODES_FORMAT:
        raise UserError(f"{path} holds no sealed episodes: expected format '{EPISODES_FORMAT}'; give another file")
    if content["split"] != split.name:
        raise UserError(f"{path} holds episodes of '{content['split']}', not of '{split.name}'; give another file")
    place = {
        f"{name}/{video}": (label, number)
        for label, name in enumerate(split.classes)
        for number, video in enumerate(split.videos[label])
    }
    named = {
        f"{entry['class']}/{video}"
        for task in content["tasks"]
        for entry in task
        for video in entry["target"] + entry["support"]
    } | {name for task in content["tasks"] for entry in task for name in entry["strangers"]}
    if missing := sorted(named - place.keys()):
        raise UserError(
            f"{path} asks for {len(missing)} video(s) that {split.root} does not hold: {', '.join(missing[:5])}"
            f"{', ...' if len(missing) > 5 else ''}; complete the data set or give another file"
        )
    plans = []
    for index, task in enumerate(content["tasks"]):
        videos = [[place[f"{entry['class']}/{v}"] for v in entry["target"] + entry["support"]] for entry in task]
        plans.append(
            EpisodePlan(
                content["seed"],
                index,
                labels=[drawn[0][0] for drawn in videos],
                candidates=[[video for _, video in drawn] for drawn in videos],
                strangers=[[place[name] for name in entry["strangers"]] for entry in task],
                shot=content["shot"],
                queries=content["queries_per_class"],
                noisy=content["noisy_support"],
            )
        )
    return content, plans


def episodes_fingerprint(plans: Iterable[EpisodePlan]) -> str:
    """A short hash of which videos play which part in which task: equal for runs that are tested on the same episodes."""
    digest = hashlib.sha256()
    for plan in plans:
        taken = [videos[: plan.queries + plan.shot] for videos in plan.candidates]
        strangers = [pairs[: plan.noisy] for pairs in plan.strangers]
        digest.update(json.dumps([plan.labels, taken, strangers, plan.shot, plan.queries]).encode())
    return digest.hexdigest()[:16]


class VideoDataset(Dataset[dict[str, Any]]):
    """Item i is task i of a split, read and cropped.

    dataset[i] is a dict of
      support_set     uint8 (way*shot*T, 3, H, W), clip after clip      target_set     uint8 (way*queries*T, 3, H, W)
      support_labels  int64 (way*shot,), 0..way-1                       target_labels  int64 (way*queries,)
      real_support_labels, real_target_labels: int64, class numbers of the split; batch_class_list: int64 (way,)
      support_videos, target_videos: lists of "class/video"; index: i; bad_videos: messages about videos left out.

    noisy: how many support videos of each class are of other classes, to test robustness. plans: episodes that were drawn
    before, to be used instead of drawing them.
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
        noisy: int = 0,
        on_bad_video: Literal["error", "skip"] = "error",
        plans: Sequence[EpisodePlan] | None = None,
    ) -> None:
        split.check_episodes(way, shot, queries)
        if noisy and noisy >= shot:
            raise UserError(f"{noisy} noisy support videos of {shot}: expected fewer, lower --noisy_support")
        self.split = split
        self.way, self.shot, self.queries, self.noisy = way, shot, queries, noisy
        self.seq_len = seq_len
        self.transform = transform
        self.seed = seed
        self.sampling = sampling
        self.on_bad_video = on_bad_video
        self.plans = plans

    def narrowed(self, way: int, shot: int) -> VideoDataset:
        """The same episodes with fewer classes and support videos."""
        narrow = copy.copy(self)
        narrow.way, narrow.shot = way, shot
        narrow.plans = self.plans and [plan.narrowed(way, shot) for plan in self.plans]
        return narrow

    def plan(self, index: int) -> EpisodePlan:
        """What task `index` asks for."""
        if self.plans is not None:
            return self.plans[index]
        sizes = {"way": self.way, "shot": self.shot, "queries": self.queries, "noisy": self.noisy}
        return draw_episode(self.split, self.seed, index, **sizes)

    def fill(
        self, plan: EpisodePlan, read: Callable[[int, int, int], Any]
    ) -> tuple[list[Drawn], list[Drawn], list[str]]:
        """`fill_episode` by this data set's rule for unreadable videos."""
        return fill_episode(self.split, plan, read, self.on_bad_video)

    def clip(self, label: int, video: int, rng: np.random.Generator) -> Tensor:
        """One video's sampled and cropped frames, uint8 (T, 3, H, W). Without augmentation `rng` plays no part."""
        source = self.split.source(label, video)
        frames = sample_frames(
            self.split.num_frames[label][video], self.seq_len, self.sampling, rng if self.transform.train else None
        )
        return self.transform(source.read(frames), rng)

    def __getitem__(self, index: int) -> dict[str, Any]:
        def read(label: int, video: int, position: int) -> Tensor:
            return self.clip(label, video, episode_rng(self.seed, self.split.name, index, PIXELS, label, position))

        plan = self.plan(index)
        support, target, bad_videos = self.fill(plan, read)
        return {
            "support_set": torch.cat([drawn.content for drawn in support]),
            "support_labels": torch.tensor([drawn.k for drawn in support]),
            "real_support_labels": torch.tensor([drawn.label for drawn in support]),
            "support_videos": [self.split.video_name(drawn.label, drawn.video) for drawn in support],
            "target_set": torch.cat([drawn.content for drawn in target]),
            "target_labels": torch.tensor([drawn.k for drawn in target]),
            "real_target_labels": torch.tensor([drawn.label for drawn in target]),
            "target_videos": [self.split.video_name(drawn.label, drawn.video) for drawn in target],
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
