"""TSM: Temporal Shift Module for Efficient Video Understanding (Lin, Gan, Han; ICCV 2019), and its streaming form.

Some channels of every frame are exchanged with the neighbouring frames before a convolution: a 2D network that sees
time, without a parameter or a multiplication more.

Letters: N clips, T frames, C channels, h w cells of a map, F folds: channels that move one way.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from backbones import resnet2d
from backbones.backbone import FrameBackbone, Temporal, one_of
from utils import UserError


class Shift(Temporal):
    """Moves the first C/div channels one frame back in time and the next C/div one frame on; zeros enter at the ends.

    online: only the first C/div channels move, and from the past: frame t sees nothing later than itself.
    """

    def __init__(self, div: int = 8, *, online: bool = False) -> None:
        super().__init__()
        if div < 2:
            raise UserError(f"1/shift_div of the channels moves each way: expected shift_div of 2 or more, found {div}")
        self.div = div
        self.online = online

    def forward(self, maps: Tensor, clips: int) -> Tensor:
        frames = rearrange(maps, "(n t) c h w -> n t c h w", n=clips)
        fold = frames.shape[2] // self.div
        from_future = slice(0, 0 if self.online else fold)
        from_past = slice(from_future.stop, from_future.stop + fold)
        shifted = torch.zeros_like(frames)
        shifted[:, :-1, from_future] = frames[:, 1:, from_future]
        shifted[:, 1:, from_past] = frames[:, :-1, from_past]
        shifted[:, :, from_past.stop :] = frames[:, :, from_past.stop :]
        return rearrange(shifted, "n t c h w -> (n t) c h w")


class NonLocal(Temporal):
    """Non-local block (Wang et al., CVPR 2018): every cell of every frame attends to all cells of the clip, in a
    residual.

    Embedded Gaussian form at half the width; keys and values are max-pooled 2x2 in space. It starts as the identity,
    because the weight of its last batch norm is zero.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = channels // 2
        self.theta = nn.Conv2d(channels, inner, 1)
        self.phi = nn.Sequential(nn.Conv2d(channels, inner, 1), nn.MaxPool2d(2))
        self.g = nn.Sequential(nn.Conv2d(channels, inner, 1), nn.MaxPool2d(2))
        norm = nn.BatchNorm2d(channels)
        nn.init.zeros_(norm.weight)
        self.W = nn.Sequential(nn.Conv2d(inner, channels, 1), norm)

    def forward(self, maps: Tensor, clips: int) -> Tensor:
        query, key, value = (
            rearrange(project(maps), "(n t) c h w -> n 1 (t h w) c", n=clips)
            for project in (self.theta, self.phi, self.g)
        )
        seen = F.scaled_dot_product_attention(query, key, value, scale=1.0)
        h, w = maps.shape[-2:]
        return maps + self.W(rearrange(seen, "n 1 (t h w) c -> (n t) c h w", h=h, w=w))


def resnet(
    depth: int,
    *,
    seq_len: int,
    shift_div: int = 8,
    place: str = "blockres",
    online: bool = False,
    non_local: bool = False,
    temporal_pool: int = 0,
    pooling: str = "max",
) -> FrameBackbone:
    """ResNet-`depth` with shifts.

    shift_div: 1/shift_div of the channels moves each way. place: 'blockres' shifts inside the residual branch, 'block'
    the whole input of a block. online: one-directional, for streams. non_local: five non-local blocks in stages 2 and
    3, for depths of 50 and more. temporal_pool, pooling: as in resnet2d.resnet; TSM's own is 1.
    """
    backbone = resnet2d.resnet(depth, seq_len=seq_len, temporal_pool=temporal_pool, pooling=pooling)
    stages = resnet2d.residual_blocks(backbone)
    slot = {"blockres": "branch", "block": "enter"}[one_of("shift place", place, ("blockres", "block"))]
    # In ResNet-101 and 152 every second residual branch is left alone, as in the published networks.
    step = 2 if place == "blockres" and len(stages[2]) >= 23 else 1
    for stage in stages:
        for block in stage[::step]:
            setattr(block, slot, Shift(shift_div, online=online))
    if non_local:
        if depth < 50:
            raise UserError(f"non_local needs depth 50 or more, found {depth}: give --backbone tsm_resnet50")
        for block in (*stages[1][0:3:2], *stages[2][0:5:2]):
            block.leave = NonLocal(block.bn3.num_features)
    return backbone


def mobilenet_v2(*, seq_len: int, shift_div: int = 8, online: bool = False) -> FrameBackbone:
    """MobileNetV2 with shifts in the ten blocks that have a skip connection."""
    backbone = resnet2d.mobilenet_v2(seq_len=seq_len)
    for block in backbone.modules():
        if isinstance(block, resnet2d.InvertedResidual) and block.use_res_connect:
            block.branch = Shift(shift_div, online=online)
    return backbone


# ---------------------------------------------------------------------------------------------------------------------
# One frame at a time


class StreamingShift(Temporal):
    """The one-directional shift for T = 1: what it takes from the past is what it kept of the frame before."""

    def __init__(self, div: int) -> None:
        super().__init__()
        self.div = div
        self.past: Tensor | None = None

    def forward(self, maps: Tensor, clips: int) -> Tensor:
        fold = maps.shape[1] // self.div
        present = maps[:, :fold]
        past = torch.zeros_like(present) if self.past is None else self.past
        self.past = present.detach().clone()
        return torch.cat([past, maps[:, fold:]], dim=1)


class StreamingRecogniser(nn.Module):
    """Recognises a running video: each call takes the next frame of N streams and keeps what the one after it needs.

    backbone: a TSM network built with `online=True`; it is copied. classifier: (N, D) -> (N, K) scores of one frame;
    without it the features come out. The scores of a clip are the mean of its frames' scores, as in training.
    """

    def __init__(self, backbone: FrameBackbone, classifier: nn.Module | None = None) -> None:
        super().__init__()
        self.backbone = copy.deepcopy(backbone).eval()
        self.classifier = nn.Identity() if classifier is None else classifier
        shifts = {name: module for name, module in self.backbone.named_modules() if isinstance(module, Shift)}
        others = [m for m in self.backbone.modules() if isinstance(m, Temporal) and not isinstance(m, Shift)]
        if not shifts or others or not all(shift.online for shift in shifts.values()):
            raise UserError("a stream needs a one-directional TSM network: build it with online=True and no more")
        for name, shift in shifts.items():
            self.backbone.set_submodule(name, StreamingShift(shift.div))

    def reset(self) -> None:
        """Forgets the frames seen so far; the next one starts new streams."""
        for module in self.backbone.modules():
            if isinstance(module, StreamingShift):
                module.past = None

    @torch.inference_mode()
    def forward(self, frame: Tensor) -> Tensor:
        """The next frame (N, 3, H, W) -> its scores (N, K)."""
        return self.classifier(self.backbone.features(rearrange(frame, "n c h w -> n 1 c h w"))[:, 0])
