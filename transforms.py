"""From decoded frames to network input: what a backbone expects (`InputSpec`) and the crop of a clip (`ClipTransform`).

Pixels stay uint8 until they are on the device: a clip is cropped here, in the reading process, and scaled and normalised
by `InputSpec.normalise`, next to the network.

Letters: T frames, H height, W width.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclasses.dataclass(frozen=True)
class InputSpec:
    """The input a backbone was made for; it travels with the weights.

    size: side of the square crop, pixels. mean, std: per channel, in the unit of `value_range` and in `colour_order`.
    value_range: pixels are scaled to [0, value_range] before mean and std apply. frames: clip length it was trained with.
    """

    size: int = 224
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    colour_order: Literal["rgb", "bgr"] = "rgb"
    value_range: float = 1.0
    frames: int = 8

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


def resize_short_side(frames: Tensor, short_side: int) -> Tensor:
    """uint8 (T, 3, H, W) -> the same with the shorter side `short_side`, aspect kept, bilinear with antialiasing."""
    height, width = frames.shape[-2:]
    if min(height, width) == short_side:
        return frames
    scale = short_side / min(height, width)
    size = [max(short_side, round(height * scale)), max(short_side, round(width * scale))]
    return F.interpolate(frames, size=size, mode="bilinear", antialias=True)


@dataclasses.dataclass(frozen=True)
class ClipTransform:
    """Resize the shorter side to 8/7 of `size` (224 -> 256, 84 -> 96) and crop `size` x `size`.

    In training the crop is random and, with `flip`, the clip is mirrored half of the time; otherwise it is the centre.
    One draw holds for all frames of the clip.
    """

    size: int
    train: bool = False
    flip: bool = False

    def __call__(self, frames: np.ndarray, rng: np.random.Generator) -> Tensor:
        """uint8 (T, H, W, 3) -> uint8 (T, 3, size, size), stored channels-last."""
        clip = resize_short_side(rearrange(torch.from_numpy(frames), "t h w c -> t c h w"), round(self.size * 8 / 7))
        room_y, room_x = clip.shape[-2] - self.size, clip.shape[-1] - self.size
        if self.train:
            top, left = int(rng.integers(room_y + 1)), int(rng.integers(room_x + 1))
        else:
            top, left = room_y // 2, room_x // 2
        clip = clip[..., top : top + self.size, left : left + self.size]
        if self.train and self.flip and rng.random() < 0.5:
            clip = clip.flip(-1)
        return clip
