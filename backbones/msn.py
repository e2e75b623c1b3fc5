"""MSN: Motion Sensitive Network for Action Recognition (Gu, Yi, Li; Frontiers in Neuroscience 18:1370024, 2024).

TDN's frame (see tdn.py) with two other modules: a pyramid of differences over one, two and four frames (STP-ME), and
between steps differences to a next step whose parts deformable convolutions have moved (VS-ME).

Of the paper only the abstract was available to us; the equations are those of its public code. What that code computes
and trains is the variant `released`: deformable kernels stay as they were drawn, their sampling starts at random
places, and VS-ME takes 8 steps for a clip. In the variant `repaired` all of it is trained. No trained weights were
published, so neither is known to reach the paper's accuracies.

Letters: N clips, S steps, F frames of a step, C channels, M = C/4, K taps along a side of a kernel, h w cells of a map.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from torch import Tensor, nn

from backbones.backbone import StackBackbone, Temporal, initialise_convs, one_of
from backbones.layers3d import Conv3d
from backbones.tdn import FRAMES, MotionPath, Weights, conv_norm, differences, path_weights, two_path_resnet
from backbones.torchvision_import import HAS_OPERATORS, torchvision
from utils import UserError

RELEASED_STEPS = 8  # the steps that the released code groups, whatever a clip has
AFTER: Weights = (0.75, 0.25)  # of the two paths, after the first stage


# ---------------------------------------------------------------------------------------------------------------------
# Deformable convolution


def deform_conv2d(maps: Tensor, offsets: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Deformable convolution (Dai et al., ICCV 2017) that keeps the size of maps (B, C, h, w) -> (B, C', h, w).

    offsets (B, K*K*2, h, w): how far each tap is moved, in cells, down and to the right, tap after tap in reading
    order. A value between cells is interpolated bilinearly; zeros lie around the map. weight (C', C, K, K), bias (C').

    By torchvision's operator on a GPU, where it loaded. On a CPU that operator takes several times as long as
    `sampled_deform_conv2d`, which stands in everywhere else.
    """
    # In float32 at least: half precision cannot tell neighbouring fractions of a large coordinate.
    dtype = torch.promote_types(maps.dtype, torch.float32)
    convolve = torchvision_deform_conv2d if HAS_OPERATORS and maps.is_cuda else sampled_deform_conv2d
    return convolve(maps.to(dtype), offsets.to(dtype), weight.to(dtype), bias.to(dtype)).to(maps.dtype)


def torchvision_deform_conv2d(maps: Tensor, offsets: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`deform_conv2d` by torchvision's operator."""
    return torchvision.ops.deform_conv2d(maps, offsets, weight, bias, padding=weight.shape[-1] // 2)


def sampled_deform_conv2d(maps: Tensor, offsets: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`deform_conv2d` in plain PyTorch: all taps are sampled, then mixed."""
    taps = weight.shape[-1]
    h, w = maps.shape[-2:]
    down, right = rearrange(offsets, "b (i j yx) h w -> yx b i j h w", i=taps, j=taps)
    tap = torch.arange(taps, device=maps.device) - taps // 2
    y = down + (rearrange(tap, "i -> i 1 1 1") + rearrange(torch.arange(h, device=maps.device), "h -> h 1"))
    x = right + (rearrange(tap, "j -> j 1 1") + torch.arange(w, device=maps.device))
    # grid_sample wants -1 and 1 at the outer edges. On sides that are powers of two whole coordinates survive this
    # scaling, so that an offset of zero, where the gradient jumps, gets that towards the next cell, as in torchvision.
    height, width = (1 << (side - 1).bit_length() for side in (h, w))
    grid = torch.stack([(2 * x + 1) / width - 1, (2 * y + 1) / height - 1], dim=-1)
    sampled = F.grid_sample(
        F.pad(maps, (0, width - w, 0, height - h)),
        rearrange(grid, "b i j h w xy -> b (i j h) w xy"),
        align_corners=False,
    )
    sampled = rearrange(sampled, "b c (k h) w -> b (c k) h w", h=h)
    return F.conv2d(sampled, rearrange(weight, "o c i j -> o (c i j) 1 1"), bias)


class DeformConv2d(nn.Conv2d):
    """A KxK deformable convolution whose offsets a second convolution predicts from the same maps; they start at zero."""

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__(channels, channels, kernel, padding=kernel // 2)
        self.offset = nn.Conv2d(channels, 2 * kernel**2, kernel, padding=kernel // 2)
        for parameter in self.offset.parameters():
            nn.init.zeros_(parameter)

    def forward(self, maps: Tensor) -> Tensor:
        assert self.bias is not None
        return deform_conv2d(maps, self.offset(maps), self.weight, self.bias)


# ---------------------------------------------------------------------------------------------------------------------
# The two modules


class PyramidModule(MotionPath):
    """STP-ME, spatial-temporal pyramid motion extraction: differences over one, two and four frames, with kernels that
    grow with them: frames (B, F, 3, H, W) -> maps (B, 64, H/4, W/4), and `layer1` takes them on.

    In training, batch norm takes its statistics over all steps at once; in the authors' code over one after the other.
    """

    def __init__(self, layer1: nn.Module) -> None:
        super().__init__(layer1)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        self.over_one = nn.Conv2d(12, 64, 7, stride=2, padding=3, bias=False)
        self.norm_one = nn.BatchNorm2d(64)
        self.frame = nn.Conv2d(3, 16, 7, stride=2, padding=3, bias=False)
        self.over_two = nn.Conv2d(32, 64, 5, padding=2, bias=False)
        self.norm_two = nn.BatchNorm2d(64)
        self.over_four = nn.Conv2d(16, 64, 5, padding=2, bias=False)

    def forward(self, frames: Tensor) -> Tensor:
        one = self.norm_one(self.over_one(self.pool(differences(frames)))).relu()
        # Without biases a convolution of a difference is the difference of the convolutions, so that each runs once.
        late, early = self.frame(frames[:, 4] - frames[:, 2]), self.frame(frames[:, 2] - frames[:, 0])
        two = self.norm_two(self.over_two(self.pool(torch.cat([late, early], dim=1)))).relu()
        four = self.pool(self.over_four(late + early))
        return one + two + four


class VariableScaleModule(Temporal):
    """VS-ME, variable-scale motion excitation: features times a gate per channel and step, between 0.5 and 1.5.

    The next step, its parts moved by two deformable convolutions and pooled once, minus this step, is what moved. The
    last step has a summary of the clip in the place of a next one. group: counts so many steps as a clip, however many
    it has.
    """

    def __init__(self, channels: int, group: int | None = None) -> None:
        super().__init__()
        narrow = channels // 4
        self.group = group
        self.squeeze = conv_norm(channels, narrow, 1)
        self.summary = nn.Sequential(Conv3d(narrow, narrow, 3, padding=1, bias=False), nn.BatchNorm3d(narrow))
        self.small = DeformConv2d(narrow, 3)
        self.large = DeformConv2d(narrow, 5)
        self.still = nn.Sequential(nn.MaxPool2d(3, stride=1, padding=1), *conv_norm(narrow, narrow, 1))
        self.expand = conv_norm(narrow, channels, 1)
        for part in (self.squeeze, self.still, self.expand):
            initialise_convs(part)

    def num_steps(self, seq_len: int) -> int:
        if seq_len < 2:
            raise UserError(
                f"MSN compares steps with the next ones, found one step: give a --seq_len of {2 * FRAMES} or more"
            )
        if self.group and seq_len % self.group:
            raise UserError(
                f"the released MSN takes steps by {self.group}, found {seq_len}: give a --seq_len in multiples of "
                f"{self.group * FRAMES}, or variant=repaired"
            )
        return seq_len

    def forward(self, maps: Tensor, clips: int) -> Tensor:
        if self.group:
            clips = len(maps) // self.group
        steps = rearrange(self.squeeze(maps), "(n s) c h w -> n s c h w", n=clips)
        following = rearrange(steps[:, 1:], "n s c h w -> (n s) c h w")
        moved = self.small(following) + self.large(following) + self.still(following)
        motion = (rearrange(moved, "(n s) c h w -> n s c h w", n=clips) - 3 * steps[:, :-1]).abs()
        summary = reduce(self.summary(rearrange(steps, "n s c h w -> n c s h w")), "n c s h w -> n 1 c h w", "mean")
        pooled = reduce(torch.cat([motion, summary], dim=1), "n s c h w -> (n s) c 1 1", "mean")
        return maps + maps * (self.expand(pooled).sigmoid() - 0.5)


def resnet(
    depth: int, *, seq_len: int, variant: str = "repaired", alpha: float | None = None, beta: float | None = None
) -> StackBackbone:
    """MSN of ResNet-50 or -101: D = 2048, S = T / 5.

    variant: 'repaired', or 'released', which computes and trains what the authors' code does (see above). alpha, beta:
    as in tdn.resnet, before the first stage; after it they are 0.75 and 0.25.
    """
    released = one_of("variant", variant, ("repaired", "released")) == "released"
    backbone = two_path_resnet(
        depth,
        seq_len=seq_len,
        short=PyramidModule,
        long=partial(VariableScaleModule, group=RELEASED_STEPS if released else None),
        before=path_weights(seq_len // FRAMES, alpha, beta),
        after=AFTER,
    )
    if released:
        for module in backbone.modules():
            if isinstance(module, DeformConv2d):
                initialise_convs(module.offset)
                for parameter in module.parameters(recurse=False):
                    parameter.requires_grad_(False)
    return backbone
