"""The frames of episodes: `VideoDataset`.

Letters: T frames of a clip, H W pixels of a frame; an episode has `way` classes with `shot` support videos and `queries`
target videos each.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import numpy as np
import torch
from einops import rearrange
from torch import Tensor
from torch.utils.data import Dataset

from clips.episodes import PIXELS, Drawn, EpisodePlan, draw_episode, episode_rng, fill_episode
from clips.frame_sampling import sample_frames
from clips.frame_sources import BadVideo
from clips.read_ahead import read_ahead
from clips.transforms import ClipTransform
from clips.video_split import Split
from utils import UserError


class VideoDataset(Dataset[dict[str, Any]]):
    """Item i is task i of a split, read and cropped.

    dataset[i] is a dict of
      support_set     uint8 (way*shot*T, 3, H, W), clip after clip      target_set     uint8 (way*queries*T, 3, H, W)
      support_labels  int64 (way*shot,), 0..way-1                       target_labels  int64 (way*queries,)
      real_support_labels, real_target_labels: int64, class numbers of the split; batch_class_list: int64 (way,)
      support_videos, target_videos: lists of "class/video"; index: i; bad_videos: messages about videos left out.

    noisy: how many support videos of each class are of other classes, to test robustness. plans: episodes that were drawn
    before, to be used instead of drawing them. support_transform: of support clips, where it is another one. frames_per_step,
    interval: how many neighbouring frames are taken together, as some backbones want (`Backbone.frames_per_step`), and how
    many are left out between them; they count among the T.
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
        support_transform: ClipTransform | None = None,
        seed: int,
        sampling: str = "linspace",
        frames_per_step: int = 1,
        interval: int = 0,
        noisy: int = 0,
        on_bad_video: Literal["error", "skip"] = "error",
        plans: Sequence[EpisodePlan] | None = None,
    ) -> None:
        split.check_episodes(way, shot, queries)
        if noisy and noisy >= shot:
            raise UserError(f"{noisy} noisy support videos of {shot}: expected fewer, lower --noisy_support")
        # What cannot be sampled is refused here, before any work.
        sample_frames(1, seq_len, sampling, frames_per_step=frames_per_step, interval=interval)
        self.split = split
        self.way, self.shot, self.queries, self.noisy = way, shot, queries, noisy
        self.seq_len = seq_len
        self.transform = transform
        self.support_transform = support_transform or transform
        self.seed = seed
        self.sampling = sampling
        self.frames_per_step, self.interval = frames_per_step, interval
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

    def clip(self, label: int, video: int, rng: np.random.Generator, transform: ClipTransform | None = None) -> Tensor:
        """One video's sampled and cropped frames, uint8 (T, 3, H, W). Without augmentation `rng` plays no part."""
        source = self.split.source(label, video)
        frames = sample_frames(
            self.split.num_frames[label][video],
            self.seq_len,
            self.sampling,
            rng if self.transform.train else None,
            frames_per_step=self.frames_per_step,
            interval=self.interval,
        )
        return (transform or self.transform)(source.read(frames), rng)

    def read_clips(
        self,
        drawn: Sequence[Drawn],
        index: int,
        unreadable: dict[tuple[int, int], BadVideo],
        transform: ClipTransform,
    ) -> Tensor:
        """The clips of drawn videos, whose content is their position, for task `index`: uint8 (N*T, 3, H, W).

        Adds videos that cannot be read to `unreadable`, by class and number, and leaves their pixels undefined.
        """
        # By numpy, which asks the system for large pages: in small ones the memory of an episode takes as long to get as
        # a third of its frames takes to decode.
        frames = np.empty((len(drawn), self.seq_len, self.transform.size, self.transform.size, 3), dtype=np.uint8)
        clips = rearrange(torch.from_numpy(frames), "n t h w c -> n t c h w")
        for clip, (_, label, video, position) in zip(clips, drawn, strict=True):
            rng = episode_rng(self.seed, self.split.name, index, PIXELS, label, position)
            try:
                clip.copy_(self.clip(label, video, rng, transform))
            except BadVideo as error:
                unreadable[label, video] = error
        return rearrange(clips, "n t c h w -> (n t) c h w")

    def __getitem__(self, index: int) -> dict[str, Any]:
        plan = self.plan(index)
        unreadable: dict[tuple[int, int], BadVideo] = {}

        def position_of(label: int, video: int, position: int) -> int:
            if (label, video) in unreadable:
                raise unreadable[label, video]
            return position

        # Places are given before anything is read, so that each clip is written once, where it belongs. They are given
        # anew in the rare case that a video cannot be read.
        known = -1
        while known < len(unreadable):
            known = len(unreadable)
            support, target, bad_videos = self.fill(plan, position_of)
            support_set = self.read_clips(support, index, unreadable, self.support_transform)
            target_set = self.read_clips(target, index, unreadable, self.transform)
        return {
            "support_set": support_set,
            "support_labels": torch.tensor([drawn.k for drawn in support]),
            "real_support_labels": torch.tensor([drawn.label for drawn in support]),
            "support_videos": [self.split.video_name(drawn.label, drawn.video) for drawn in support],
            "target_set": target_set,
            "target_labels": torch.tensor([drawn.k for drawn in target]),
            "real_target_labels": torch.tensor([drawn.label for drawn in target]),
            "target_videos": [self.split.video_name(drawn.label, drawn.video) for drawn in target],
            "batch_class_list": torch.tensor(plan.labels),
            "index": index,
            "bad_videos": bad_videos,
        }


def read_episodes(dataset: VideoDataset, indices: Sequence[int], num_workers: int) -> Iterator[dict[str, Any]]:
    """The tasks `indices`, in that order, read ahead by `num_workers` processes (0: in this one). Raises BadVideo."""
    return read_ahead(dataset.__getitem__, indices, num_workers)
