"""From decoded frames to network input: what a backbone expects (`InputSpec`) and which crop of a clip it gets.

`ClipTransform` crops the clips of episodes, `MultiScaleCrop` and `ScaleJitterCrop` those of supervised training, and
`ViewCrops` takes the crops of a test.

Pixels stay uint8 until they are on the device: a clip is cropped here, in the reading process, and scaled and normalised
by `InputSpec.normalise`, next to the network.

Letters: T frames, H height, W width.
"""

from __future__ import annotations

import dataclasses
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from utils import UserError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
Interpolation = Literal["bilinear", "bicubic"]


@dataclasses.dataclass(frozen=True)
class InputSpec:
    """The input a backbone was made for; it travels with the weights.

    size: side of the square crop, pixels. mean, std: per channel, in the unit of `value_range` and in `colour_order`.
    value_range: pixels are scaled to [0, value_range] before mean and std apply. frames: clip length it was trained with.
    interpolation: how frames are resized before the crop.
    """

    size: int = 224
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    colour_order: Literal["rgb", "bgr"] = "rgb"
    value_range: float = 1.0
    frames: int = 8
    interpolation: Interpolation = "bilinear"

    def normalise(self, frames: Tensor) -> Tensor:
        """uint8 RGB frames (..., 3, H, W) -> float32 of the same shape and memory layout, on the frames' device."""
        if self.colour_order == "bgr":
            frames = frames.flip(-3)
        scale = torch.tensor([self.value_range / 255 / std for std in self.std], device=frames.device)
        shift = torch.tensor([-mean / std for mean, std in zip(self.mean, self.std, strict=True)], device=frames.device)
        return frames.float().mul_(scale[:, None, None]).add_(shift[:, None, None])

    def unnormalised(self) -> InputSpec:
        """The same input with pixels in [0, 1] and nothing subtracted, as the TRX-style libraries train."""
        return dataclasses.replace(self, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), value_range=1.0)


def resize_short_side(frames: Tensor, short_side: int, interpolation: Interpolation = "bilinear") -> Tensor:
    """uint8 (T, 3, H, W) -> the same with the shorter side `short_side`, aspect kept, with antialiasing.

    The longer side is rounded down, as torchvision and the libraries of the field do: 320 x 426 gives 256 x 340.
    """
    sides = frames.shape[-2:]
    if min(sides) == short_side:
        return frames
    size = [short_side * side // min(sides) for side in sides]
    return F.interpolate(frames, size=size, mode=interpolation, antialias=True)


def short_side_for(size: int) -> int:
    """The shorter side of the frames that a crop of `size` pixels is taken from: 8/7 of it (224 -> 256, 84 -> 96)."""
    return round(size * 8 / 7)


def centre_of(room: int) -> int:
    """Where a crop begins that has so many pixels of room: in the middle, a half to the even side as torchvision rounds."""
    return round(room / 2)


def channels_first(frames: np.ndarray) -> Tensor:
    """uint8 (T, H, W, 3) -> a view (T, 3, H, W) of the same memory."""
    return rearrange(torch.from_numpy(frames), "t h w c -> t c h w")


def random_crop(clip: Tensor, size: int, rng: np.random.Generator) -> Tensor:
    """uint8 (T, 3, H, W) -> (T, 3, size, size) from a random place, the same in all frames."""
    top, left = (int(rng.integers(side - size + 1)) for side in clip.shape[-2:])
    return clip[..., top : top + size, left : left + size]


@dataclasses.dataclass(frozen=True)
class ClipTransform:
    """Resize the shorter side to 8/7 of `size` (224 -> 256, 84 -> 96) and crop `size` x `size`.

    In training the crop is random and, with `flip`, the clip is mirrored half of the time; otherwise it is the centre.
    One draw holds for all frames of the clip.
    """

    size: int
    train: bool = False
    flip: bool = False
    interpolation: Interpolation = "bilinear"

    def __call__(self, frames: np.ndarray, rng: np.random.Generator) -> Tensor:
        """uint8 (T, H, W, 3) -> uint8 (T, 3, size, size), stored channels-last."""
        clip = resize_short_side(channels_first(frames), short_side_for(self.size), self.interpolation)
        if not self.train:
            top, left = (centre_of(side - self.size) for side in clip.shape[-2:])
            return clip[..., top : top + self.size, left : left + self.size]
        clip = random_crop(clip, self.size, rng)
        return clip.flip(-1) if self.flip and rng.random() < 0.5 else clip


# ---------------------------------------------------------------------------------------------------------------------
# Crops for training on labelled videos. They never mirror: that may change the label, and is up to who knows it.


@dataclasses.dataclass(frozen=True)
class MultiScaleCrop:
    """Crops a random part of the frames as they are and resizes it to `size` (TSN, ECCV 2016; TSM, TDN, the Study's v1).

    Its height and width are random among `scales` of the shorter side, at most `max_distort` steps of that list apart, and
    it lies at one of 13 places: corners, centre, middles of the edges, and quarter points.
    """

    size: int
    scales: tuple[float, ...] = (1.0, 0.875, 0.75, 0.66)
    max_distort: int = 1
    interpolation: Interpolation = "bilinear"

    def __call__(self, frames: np.ndarray, rng: np.random.Generator) -> Tensor:
        """uint8 (T, H, W, 3) -> uint8 (T, 3, size, size)."""
        shapes = self.shapes(*frames.shape[1:3])
        height, width = shapes[rng.integers(len(shapes))]
        corners = self.corners(frames.shape[1] - height, frames.shape[2] - width)
        top, left = corners[rng.integers(len(corners))]
        crop = channels_first(frames)[..., top : top + height, left : left + width]
        if (height, width) == (self.size, self.size):
            return crop
        return F.interpolate(crop, size=(self.size, self.size), mode=self.interpolation, antialias=True)

    def shapes(self, height: int, width: int) -> list[tuple[int, int]]:
        """(height, width) of the crops; a side within 2 pixels of `size` is taken as `size`, where the frames allow."""
        shorter = min(height, width)
        sides = [max(1, int(shorter * scale)) for scale in self.scales]
        sides = [min(self.size, shorter) if abs(side - self.size) <= 2 else side for side in sides]
        numbered = list(enumerate(sides))
        return [(tall, wide) for i, tall in numbered for j, wide in numbered if abs(i - j) <= self.max_distort]

    @staticmethod
    def corners(room_y: int, room_x: int) -> list[tuple[int, int]]:
        """(top, left) of the 13 places of a crop that has so much room beside it, in fourths of which they are given."""
        fourths = [(y, x) for y in (0, 2, 4) for x in (0, 2, 4)] + [(y, x) for y in (1, 3) for x in (1, 3)]
        return [(y * (room_y // 4), x * (room_x // 4)) for y, x in fourths]


@dataclasses.dataclass(frozen=True)
class ScaleJitterCrop:
    """Resizes the shorter side to a random number of pixels and crops `size` x `size` at random (the Study's v2)."""

    size: int
    short_sides: tuple[int, int] = (256, 320)
    interpolation: Interpolation = "bilinear"

    def __post_init__(self) -> None:
        low, high = self.short_sides
        if not self.size <= low <= high:
            raise UserError(
                f"the shorter side of frames is to be {low} to {high} pixels, and {self.size} are cropped from it: expected "
                f"two numbers of {self.size} or more, the smaller one first"
            )

    def __call__(self, frames: np.ndarray, rng: np.random.Generator) -> Tensor:
        """uint8 (T, H, W, 3) -> uint8 (T, 3, size, size)."""
        low, high = self.short_sides
        short_side = int(rng.integers(low, high + 1))
        return random_crop(resize_short_side(channels_first(frames), short_side, self.interpolation), self.size, rng)


# ---------------------------------------------------------------------------------------------------------------------
# Crops of a test


class CropPlace(NamedTuple):
    """Where a square crop lies, in pixels, and whether it is mirrored afterwards."""

    top: int
    left: int
    mirrored: bool = False


NUM_CROPS = (1, 3, 5, 10)


def training_crop(
    kind: str, size: int, scale_range: tuple[int, int], interpolation: Interpolation
) -> ClipTransform | MultiScaleCrop | ScaleJitterCrop:
    """A crop for training on labelled videos: multi_scale, scale_jitter (within `scale_range`), or random."""
    if kind == "multi_scale":
        return MultiScaleCrop(size, interpolation=interpolation)
    if kind == "scale_jitter":
        return ScaleJitterCrop(size, scale_range, interpolation)
    return ClipTransform(size, train=True, interpolation=interpolation)


def mixup(clips: Tensor, targets: Tensor, alpha: float, num_classes: int) -> tuple[Tensor, Tensor]:
    """Each clip (N, T, 3, H, W) with a share of another one, and so its target: labels (N,), or a row for each (N, C).

    Zhang et al., ICLR 2018. One share is drawn for all, from Beta(alpha, alpha), by the global generators.
    """
    share = float(np.random.beta(alpha, alpha))
    other = torch.randperm(len(clips), device=clips.device)
    if targets.ndim == 1:
        targets = F.one_hot(targets, num_classes).float()
    return torch.lerp(clips[other], clips, share), torch.lerp(targets[other], targets, share)


@dataclasses.dataclass(frozen=True)
class ViewCrops:
    """Which crops of a video's frames are tested, `size` x `size` each.

    1: the centre. 3: both ends and the middle of the longer side. 5: the four corners and the centre. 10: these five, each
    followed by its mirror image. Several crops lie in fourths of the room, rounded down, as TSM's do: up to three pixels
    at the right and below are not seen.

    short_side: to which the frames are resized before; unset: `short_side_for(size)`. Where it is `size`, three crops
    cover frames of up to 3:1 whole, which is called full resolution.
    """

    size: int
    num_crops: int = 1
    short_side: int | None = None
    interpolation: Interpolation = "bilinear"

    def __post_init__(self) -> None:
        if self.num_crops not in NUM_CROPS:
            raise UserError(f"{self.num_crops} crops were asked for: expected one of {', '.join(map(str, NUM_CROPS))}")
        if self.short_side is not None and self.short_side < self.size:
            raise UserError(
                f"crops of {self.size} pixels do not fit into frames whose shorter side is {self.short_side}: give smaller "
                "crops or larger frames"
            )

    @property
    def resized_side(self) -> int:
        """The shorter side of the frames that crops are taken from, in pixels."""
        return self.short_side or short_side_for(self.size)

    def resize(self, frames: np.ndarray) -> Tensor:
        """uint8 (T, H, W, 3) -> uint8 (T, 3, h, w), the frames that crops are taken from."""
        return resize_short_side(channels_first(frames), self.resized_side, self.interpolation)

    def places(self, height: int, width: int) -> list[CropPlace]:
        """The crops of resized frames, in the order of the views."""
        room_y, room_x = height - self.size, width - self.size
        if self.num_crops == 1:
            return [CropPlace(centre_of(room_y), centre_of(room_x))]
        middle_y, middle_x, end_y, end_x = (n * (room // 4) for n in (2, 4) for room in (room_y, room_x))
        centre = CropPlace(middle_y, middle_x)
        corners = [CropPlace(top, left) for top in (0, end_y) for left in (0, end_x)]
        if self.num_crops == 3 and width >= height:
            return [CropPlace(middle_y, 0), CropPlace(middle_y, end_x), centre]
        if self.num_crops == 3:
            return [CropPlace(0, middle_x), CropPlace(end_y, middle_x), centre]
        if self.num_crops == 5:
            return [*corners, centre]
        return [place._replace(mirrored=mirrored) for place in [*corners, centre] for mirrored in (False, True)]

    def take(self, frames: Tensor, clips: Tensor) -> Tensor:
        """Every view of a video: resized frames (U, 3, h, w) and the numbers (K, T) of those in each clip
        -> (crops * K, T, 3, size, size), crop after crop, and of each crop clip after clip.

        It works where the frames are, in memory or on a GPU.
        """
        pixels = rearrange(frames, "u c h w -> u h w c")
        places = self.places(*frames.shape[-2:])
        views = pixels.new_empty((len(places), *clips.shape, self.size, self.size, 3))
        for view, (top, left, mirrored) in zip(views, places, strict=True):
            crop = pixels[:, top : top + self.size, left : left + self.size]
            crop = crop.flip(2) if mirrored else crop.contiguous()  # copied row by row once, then frame by frame
            torch.index_select(crop, 0, clips.flatten(), out=view.flatten(0, 1))
        return rearrange(views, "v k t h w c -> (v k) t c h w")
