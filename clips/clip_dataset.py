"""Labelled clips for supervised training (`ClipDataset`) and all test views of a video (`ViewDataset`).

Letters: V videos, B clips of a batch, T frames of a clip, H W pixels of a frame, K clips of a test and C crops of each.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Generator, Iterator, Sequence
from typing import Any, Literal, Protocol

import numpy as np
import torch
from einops import rearrange
from torch import Tensor
from torch.utils.data import Dataset

from clips.frame_sampling import ClipSampling
from clips.frame_sources import BadVideo
from clips.labelled_videos import NO_LABEL, LabelledVideos
from clips.read_ahead import read_ahead
from clips.transforms import ViewCrops
from utils import UserError

MOST_STAND_INS = 10  # tried in the place of a video that cannot be read; where none of them can be, more is wrong

# Streams of a clip's generator, so that a change of one draw leaves the others as they are.
FRAMES, PIXELS, MIRROR, STAND_INS, ORDER = range(1, 6)


class TrainingTransform(Protocol):
    """A random crop, as ClipTransform, MultiScaleCrop and ScaleJitterCrop: one draw for all frames of a clip."""

    @property
    def size(self) -> int: ...

    def __call__(self, frames: np.ndarray, rng: np.random.Generator) -> Tensor:
        """uint8 (T, H, W, 3) -> uint8 (T, 3, size, size)."""
        ...


class ClipDataset(Dataset[dict[str, Any]]):
    """Item (epoch, i) is a random clip of video i, a function of (seed, epoch, i) alone.

    dataset[epoch, i] is a dict of
      clip    uint8 (T, 3, size, size)
      label   int64 (), or of videos with several labels float32 (classes,) of 0 and 1
      index: i; video: its name; bad_videos: messages about videos that could not be read, in whose place another one is.

    mirror: for each class that of its mirror image (`mirrored_classes`), or None where its clips cannot be mirrored; half of
    the clips are then mirrored, with their labels. Unset: none is. on_bad_video: error raises BadVideo, skip takes a clip of
    another video, drawn from all.
    """

    def __init__(
        self,
        videos: LabelledVideos,
        *,
        sampling: ClipSampling,
        transform: TrainingTransform,
        seed: int,
        mirror: Sequence[int | None] | None = None,
        on_bad_video: Literal["error", "skip"] = "error",
    ) -> None:
        if (videos.labels == NO_LABEL).all(axis=1).any() and not videos.multi_label:
            raise UserError(f"{videos.name} holds videos without a label: training needs one of each")
        assert mirror is None or len(mirror) == len(videos.classes)
        self.videos = videos
        self.sampling = sampling
        self.transform = transform
        self.seed = seed
        self.mirror = mirror
        self.on_bad_video = on_bad_video

    def __len__(self) -> int:
        """Clips of an epoch: one of each video."""
        return len(self.videos)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        epoch, index = key
        bad_videos: list[str] = []
        for video in self._candidates(epoch, index):
            try:
                clip, labels = self._clip(epoch, index, video)
            except BadVideo as error:
                if self.on_bad_video == "error":
                    raise
                bad_videos.append(str(error))
            else:
                return {
                    "clip": clip,
                    "label": target(self.videos, labels),
                    "video": self.videos.video_name(video),
                    "index": index,
                    "bad_videos": bad_videos,
                }
        raise BadVideo(f"{len(bad_videos)} videos of {self.videos.root} in a row could not be read; {bad_videos[-1]}")

    def batch(self, epoch: int, indices: Sequence[int] | np.ndarray) -> dict[str, Any]:
        """Items of an epoch together: clips uint8 (B, T, 3, size, size), labels (B,) or (B, classes), indices int64 (B,),
        videos, and bad_videos of all of them."""
        size = self.transform.size
        # By numpy, which asks the system for large pages, and in the layout in which frames are decoded.
        frames = np.empty((len(indices), self.sampling.seq_len, size, size, 3), dtype=np.uint8)
        clips = rearrange(torch.from_numpy(frames), "b t h w c -> b t c h w")
        items = []
        for clip, index in zip(clips, indices, strict=True):
            items.append(self[epoch, int(index)])
            clip.copy_(items[-1].pop("clip"))
        return {
            "clips": clips,
            "labels": torch.stack([item["label"] for item in items]),
            "indices": torch.tensor([item["index"] for item in items]),
            "videos": [item["video"] for item in items],
            "bad_videos": [message for item in items for message in item["bad_videos"]],
        }

    def _rng(self, epoch: int, index: int, stream: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, epoch, index, stream])

    def _candidates(self, epoch: int, index: int) -> Iterator[int]:
        """Video `index`, then those that may stand in for it."""
        yield index
        yield from self._rng(epoch, index, STAND_INS).integers(len(self.videos), size=MOST_STAND_INS).tolist()

    def _clip(self, epoch: int, index: int, video: int) -> tuple[Tensor, list[int]]:
        """A clip of a video for item `index`, and its labels."""
        places = self.sampling.train(int(self.videos.num_frames[video]), self._rng(epoch, index, FRAMES))
        frames = self.videos.source(video).read(places)
        clip, labels = self.transform(frames, self._rng(epoch, index, PIXELS)), self.videos.labels_of(video)
        if self.mirror is None:
            return clip, labels
        mirrored = [label for label in map(self.mirror.__getitem__, labels) if label is not None]
        if len(mirrored) < len(labels) or self._rng(epoch, index, MIRROR).random() < 0.5:
            return clip, labels
        return clip.flip(-1), mirrored


def target(videos: LabelledVideos, labels: Sequence[int]) -> Tensor:
    """What a classifier is to say: a class number, int64 (), or with several labels float32 (classes,) of 0 and 1."""
    if not videos.multi_label:
        return torch.tensor(labels[0] if labels else NO_LABEL)
    hot = torch.zeros(len(videos.classes))
    hot[list(labels)] = 1
    return hot


# ---------------------------------------------------------------------------------------------------------------------
# Batches of a training


@functools.lru_cache(maxsize=2)
def epoch_order(seed: int, epoch: int, num_videos: int) -> np.ndarray:
    """The order in which an epoch takes its videos: int64 (num_videos,), not to be written to."""
    order = np.random.default_rng([seed, epoch, ORDER]).permutation(num_videos)
    order.flags.writeable = False
    return order


def steps_per_epoch(num_videos: int, batch_size: int) -> int:
    """Full batches of an epoch. Videos that are left over wait for the next one, whose order is another."""
    if not 1 <= batch_size <= num_videos:
        raise UserError(f"a batch of {batch_size} clips was asked for, of {num_videos} videos: give 1 to {num_videos}")
    return num_videos // batch_size


def read_batches(
    dataset: ClipDataset,
    steps: Sequence[int],
    *,
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    num_workers: int = 0,
) -> Generator[dict[str, Any]]:
    """Batches of a training, as `ClipDataset.batch` with the epoch and the step added. Raises BadVideo.

    steps: which, counted from 0 over all epochs, so that range(done, total) resumes a training.
    batch_size: clips of all processes together; process `rank` of `world_size` reads every world_size-th of them.
    """
    steps_per_epoch(len(dataset), batch_size)
    if batch_size % world_size:
        raise UserError(
            f"a batch of {batch_size} clips cannot be shared by {world_size} processes: give a multiple of {world_size}"
        )
    read = functools.partial(_batch, dataset, batch_size, slice(rank, None, world_size))
    yield from read_ahead(read, steps, num_workers)


def _batch(dataset: ClipDataset, batch_size: int, share: slice, step: int) -> dict[str, Any]:
    epoch, number = divmod(step, steps_per_epoch(len(dataset), batch_size))
    order = epoch_order(dataset.seed, epoch, len(dataset))
    videos = order[number * batch_size : (number + 1) * batch_size][share]
    return {**dataset.batch(epoch, videos), "epoch": epoch, "step": step}


# ---------------------------------------------------------------------------------------------------------------------
# Views of a test


class ViewDataset(Dataset[dict[str, Any]]):
    """Item i is all views of video i: K clips of its frames, and of each the same crops.

    dataset[i] is a dict of
      views   uint8 (C * K, T, 3, size, size): crop after crop, and of each crop clip after clip
      label   as that of a ClipDataset, -1 where there is none
      index: i; video: its name; distinct_views: how many views differ, since clips of short videos may be the same.
      bad_videos: a message where the video cannot be read, and with on_bad_video="skip" there is no view of it then.

    clips: fixed ones of `sampling`, always the same, or random ones by its training rule, which are the published protocols
    of TDN on Kinetics, of TSM's dense validation and of the Study's random sampling; they depend on (seed, video name).
    """

    def __init__(
        self,
        videos: LabelledVideos,
        *,
        sampling: ClipSampling,
        crops: ViewCrops,
        num_clips: int = 1,
        clips: Literal["fixed", "random"] = "fixed",
        seed: int = 0,
        on_bad_video: Literal["error", "skip"] = "error",
    ) -> None:
        if clips == "fixed":
            sampling.test(1, num_clips)  # a number of clips that the rule does not have is refused here
        self.videos = videos
        self.sampling = sampling
        self.crops = crops
        self.num_clips = num_clips
        self.clips = clips
        self.seed = seed
        self.on_bad_video = on_bad_video

    def __len__(self) -> int:
        return len(self.videos)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.with_views(self.frames(index))

    def clip_frames(self, index: int) -> np.ndarray:
        """The frames of the video's clips: int64 (K, T)."""
        num_frames = int(self.videos.num_frames[index])
        if self.clips == "fixed":
            return self.sampling.test(num_frames, self.num_clips)
        video = zlib.crc32(self.videos.video_name(index).encode(errors="surrogateescape"))
        rngs = [np.random.default_rng([self.seed, video, clip, FRAMES]) for clip in range(self.num_clips)]
        return np.stack([self.sampling.train(num_frames, rng) for rng in rngs])

    def frames(self, index: int) -> dict[str, Any]:
        """Item i with each frame once instead of the views: frames uint8 (U, 3, H, W), and their numbers in the clips,
        int64 (K, T). It is several times smaller, and `with_views` makes the item of it."""
        item = {
            "label": target(self.videos, self.videos.labels_of(index)),
            "video": self.videos.video_name(index),
            "index": index,
            "bad_videos": [],
        }
        wanted, numbers = np.unique(self.clip_frames(index), return_inverse=True)
        clips = torch.from_numpy(numbers).reshape(-1, self.sampling.seq_len)
        try:
            frames = self.crops.resize(self.videos.source(index).read(wanted))
        except BadVideo as error:
            if self.on_bad_video == "error":
                raise
            size = self.crops.size
            nothing = torch.empty(0, 3, size, size, dtype=torch.uint8)
            return {**item, "frames": nothing, "clips": clips[:0], "distinct_views": 0, "bad_videos": [str(error)]}
        distinct = len(torch.unique(clips, dim=0)) * len(set(self.crops.places(*frames.shape[-2:])))
        return {**item, "frames": frames, "clips": clips, "distinct_views": distinct}

    def with_views(self, item: dict[str, Any], device: torch.device | str = "cpu") -> dict[str, Any]:
        """An item of `frames` with its views, which are cropped on `device`, in the place of frames and clips."""
        frames, clips = (item[name].to(device, non_blocking=True) for name in ("frames", "clips"))
        kept = {name: value for name, value in item.items() if name not in ("frames", "clips")}
        return {"views": self.crops.take(frames, clips), **kept}


def read_views(
    dataset: ViewDataset, videos: Sequence[int], *, num_workers: int = 0, device: torch.device | str = "cpu"
) -> Iterator[dict[str, Any]]:
    """The items of `videos`, in that order, with their views on `device`. Raises BadVideo."""
    for item in read_ahead(dataset.frames, videos, num_workers):
        yield dataset.with_views(item, device)
