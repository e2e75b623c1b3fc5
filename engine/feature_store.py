"""Features of a split's videos, each encoded once.

In validation and test the weights and the frames of a video are fixed, so its features are too: an episode needs no images
once every video in it has been through the backbone.

Letters: V videos of a split, S feature steps, D feature width.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from clips.episodes import Drawn, EpisodePlan
from clips.frame_sources import BadVideo
from clips.read_ahead import read_ahead
from clips.transforms import InputSpec
from clips.video_split import Split
from engine.processes import Batch
from engine.row_store import UNKNOWN, RowStore, weights_hash
from video_reader import VideoDataset

BAD = 2  # beside what a RowStore knows of a row: its video cannot be read
TASKS_PLANNED_AHEAD = 10_000


PIXELS = 2  # raised when frames are resized or cropped otherwise than before, so that older features are not taken


def fingerprint(encoder: nn.Module, input_spec: InputSpec, dataset: VideoDataset, **settings: Any) -> dict[str, Any]:
    """All that a video's features depend on; equal for equal features."""
    return {
        "weights": weights_hash(encoder),
        "pixels": PIXELS,
        "input_spec": dataclasses.asdict(input_spec),
        "seq_len": dataset.seq_len,
        "sampling": dataset.sampling,
        "frames_per_step": dataset.frames_per_step,
        "interval": dataset.interval,
        "root": os.path.realpath(dataset.split.root),
        "split": dataset.split.fingerprint,
        "modified": modification_times(dataset.split),
        **settings,
    }


def modification_times(split: Split) -> str:
    """A hash of when each video was last changed: one that was extracted anew under its old name has a new time."""
    places = ((label, video) for label, videos in enumerate(split.videos) for video in range(len(videos)))
    paths = [split.root] if split.format == "lmdb" else [split.path(*place) for place in places]
    return hashlib.sha256(np.array([os.stat(path).st_mtime_ns for path in paths]).tobytes()).hexdigest()


class FeatureStore(RowStore):
    """Features of the V videos of a split. Why a video is bad is not kept: it may have been mended, so it is tried again."""

    def __init__(
        self,
        parent: Path,
        key: dict[str, Any],
        split: Split,
        shape: Sequence[int],
        log: Callable[[str], None] = print,
        *,
        described: bool = False,
    ) -> None:
        """described: rows are what a method's `describe` makes of features."""
        self.described = described
        self.first_row = np.concatenate([[0], np.cumsum([len(videos) for videos in split.videos])])
        self.bad: dict[int, str] = {}
        super().__init__(parent, key, (int(self.first_row[-1]), *shape), log)

    def row(self, label: int, video: int) -> int:
        return int(self.first_row[label]) + video

    def place(self, row: int) -> tuple[int, int]:
        """The class and video number of a row."""
        label = int(np.searchsorted(self.first_row, row, side="right")) - 1
        return label, row - int(self.first_row[label])

    def encode(
        self,
        rows: Sequence[int],
        dataset: VideoDataset,
        features_of: Callable[[Tensor], Tensor],
        *,
        num_workers: int,
        clips_per_call: int = 8,
    ) -> None:
        """Fills those of the rows that are not known yet. `features_of` maps uint8 clips (N, T, 3, H, W) to (N, *shape).

        A video that cannot be read is remembered in `bad` with its message.
        """
        rows = sorted(set(rows))
        calls = [rows[start : start + clips_per_call] for start in range(0, len(rows), clips_per_call)]
        # Whole calls, so that one that was stopped computes the rest in the same batches, to the same bits.
        calls = [call for call in calls if UNKNOWN in self.known[call]]

        def read(number: int) -> list[Tensor | BadVideo]:
            return [self._clip(dataset, row) for row in calls[number]]

        bar = tqdm(
            total=sum(map(len, calls)), desc=f"encode {dataset.split.name}", unit="video", disable=None, leave=False
        )
        for own_rows, clips in zip(calls, read_ahead(read, range(len(calls)), num_workers), strict=True):
            good: dict[int, Tensor] = {}
            for row, clip in zip(own_rows, clips, strict=True):
                if isinstance(clip, BadVideo):
                    self.known[row], self.bad[row] = BAD, str(clip)
                else:
                    good[row] = clip
            if lacking := [number for number, row in enumerate(good) if self.known[row] == UNKNOWN]:
                features = features_of(torch.stack(list(good.values()))).float().cpu().numpy()
                self.write([list(good)[number] for number in lacking], features[lacking])
            bar.update(len(clips))
        bar.close()

    def _clip(self, dataset: VideoDataset, row: int) -> Tensor | BadVideo:
        """A video's clip, or what stands in its way."""
        try:
            return dataset.clip(*self.place(row), np.random.default_rng(0))
        except BadVideo as error:
            return error

    def refresh(self) -> None:
        """As of any RowStore; which videos are bad stays known."""
        super().refresh()
        self.known[list(self.bad)] = BAD

    def merge(self, bad: Sequence[dict[int, str]]) -> None:
        """After several processes have each encoded some rows: takes in what they wrote and which videos are bad."""
        if len(bad) > 1:
            self.refresh()
        for messages in bad:
            self.bad.update(messages)
        self.known[list(self.bad)] = BAD


class DescribedRows:
    """What a method makes of rows of features (V, *shape), one vector or more for each (V, ...), in memory.

    Each is described once, eight at a time.
    """

    described = True

    def __init__(self, store: FeatureStore, rows: Sequence[int], describe: Callable[[Tensor], Tensor]) -> None:
        self._place = {row: number for number, row in enumerate(rows)}
        self._table = torch.cat([describe(store.read(rows[first : first + 8])) for first in range(0, len(rows), 8)])

    def read(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """Those of B x N rows: (B, N, ...)."""
        return self._table[torch.tensor([[self._place[row] for row in some] for some in rows])]


def stored_episodes(
    store: FeatureStore,
    dataset: VideoDataset,
    batches: Sequence[Batch],
    encode: Callable[[list[int]], bool],
    describe: Callable[[Tensor], Tensor] | None = None,
) -> Generator[dict[str, Any]]:
    """The own calls of batches on features: dicts as a VideoDataset's with B in front.

    support_features (B, N, *shape) and target_features (B, Q, *shape) replace the frames; "described" says what they are.
    `encode` is called with the rows that are needed, for many tasks at once, and for the tasks of all processes, so that they
    can share it; also where this one lacks none, since others may. It says whether any of them did. describe: of a store of
    features, makes descriptions in their place.
    """
    for ahead in planned_ahead(batches):
        tasks = [index for batch in ahead for index in batch.tasks]
        plans = {index: dataset.plan(index) for index in tasks}
        filled = dict(zip(tasks, filled_episodes(store, dataset, list(plans.values()), encode), strict=True))
        content: FeatureStore | DescribedRows = store
        own = [index for batch in ahead for call in batch.own_calls for index in call]
        if describe and own:
            drawn = (drawn for index in own for videos in filled[index][:2] for drawn in videos)
            content = DescribedRows(store, sorted({video.content for video in drawn}), describe)
        for call in (call for batch in ahead for call in batch.own_calls):
            support, target, bad_videos = zip(*(filled[index] for index in call), strict=True)
            yield {
                "index": list(call),
                "described": content.described,
                "support_features": content.read([[drawn.content for drawn in videos] for videos in support]),
                "support_labels": torch.tensor([[drawn.k for drawn in videos] for videos in support]),
                "real_support_labels": torch.tensor([[drawn.label for drawn in videos] for videos in support]),
                "target_features": content.read([[drawn.content for drawn in videos] for videos in target]),
                "target_labels": torch.tensor([[drawn.k for drawn in videos] for videos in target]),
                "real_target_labels": torch.tensor([[drawn.label for drawn in videos] for videos in target]),
                "batch_class_list": torch.tensor([plans[index].labels for index in call]),
                "target_videos": [[dataset.split.video_name(d.label, d.video) for d in videos] for videos in target],
                "bad_videos": [message for messages in bad_videos for message in messages],
            }


def planned_ahead(batches: Iterable[Batch]) -> Iterator[list[Batch]]:
    """Whole batches, as many at a time as have TASKS_PLANNED_AHEAD tasks."""
    ahead: list[Batch] = []
    for batch in batches:
        ahead.append(batch)
        if batch.tasks.stop - ahead[0].tasks.start >= TASKS_PLANNED_AHEAD:
            yield ahead
            ahead = []
    if ahead:
        yield ahead


def filled_episodes(
    store: FeatureStore, dataset: VideoDataset, plans: Sequence[EpisodePlan], encode: Callable[[list[int]], bool]
) -> list[tuple[list[Drawn], list[Drawn], list[str]]]:
    """(support, target, messages) of each plan, with rows of the store for content, all of them encoded."""
    needed: set[int] = set()

    def read(label: int, video: int, position: int) -> int:
        row = store.row(label, video)
        if store.known[row] == BAD:
            raise BadVideo(store.bad[row])
        needed.add(row)
        return row

    while True:  # again, where a video could not be read and another one stands in
        needed.clear()
        filled = [dataset.fill(plan, read) for plan in plans]
        rows = sorted(needed)
        store.check(rows)
        if not encode(rows):
            return filled
