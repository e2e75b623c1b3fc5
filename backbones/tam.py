"""TAM: temporal aggregation by depthwise convolution over time, in 2D networks (Fan et al., NeurIPS 2019).

Not the temporal adaptive module of TANet, which shares its name.

Letters: N clips, T frames, C channels, h w cells of a map.
"""

from __future__ import annotations

import math

import torch
from einops import rearrange
from torch import Tensor, nn

from backbones import resnet2d
from backbones.backbone import FrameBackbone, FrameNet, Temporal, one_of
from utils import UserError


class TAM(Temporal):
    """ReLU of a learned mix of each channel with itself in the neighbouring frames; zeros stand beyond the ends.

    frames: how many are mixed (odd). blend: their 'sum', or 'max'. depthwise=False mixes channels as well.
    """

    def __init__(self, channels: int, frames: int = 3, blend: str = "sum", depthwise: bool = True) -> None:
        super().__init__()
        if frames % 2 == 0:
            raise UserError(f"TAM mixes an odd number of frames, found {frames}: give blend_frames 3, 5 or 7")
        self.blend = one_of("blend", blend, ("sum", "max"))
        groups = channels if depthwise else 1
        self.mix = nn.Conv2d(channels, channels, (frames, 1), padding=(frames // 2, 0), groups=groups, bias=False)
        nn.init.normal_(self.mix.weight, std=math.sqrt(2 / channels))  # Kaiming fan-out of a single frame's convolution

    def forward(self, maps: Tensor, clips: int) -> Tensor:
        x = rearrange(maps, "(n t) c h w -> n c t (h w)", n=clips)
        mixed = self.mix(x) if self.blend == "sum" else self.strongest(x)
        return rearrange(mixed.relu(), "n c t (h w) -> (n t) c h w", h=maps.shape[-2])

    def strongest(self, x: Tensor) -> Tensor:
        """The largest of the weighted neighbours (N, C, T, h*w), where `mix` would add them."""
        taps = torch.eye(self.mix.kernel_size[0], device=x.device, dtype=self.mix.weight.dtype)
        alone = [self.mix._conv_forward(x, self.mix.weight * rearrange(tap, "k -> k 1"), None) for tap in taps]
        return torch.stack(alone).amax(dim=0)


def resnet(
    depth: int,
    *,
    seq_len: int,
    blend_frames: int = 3,
    blend: str = "sum",
    depthwise: bool = True,
    shortcut: str = "pre",
    temporal_pool: int = 0,
    pooling: str = "max",
) -> FrameBackbone:
    """ResNet-`depth` with a TAM at the start of every residual branch.

    blend_frames, blend, depthwise: of every TAM. shortcut: a block's projection sees its input before the TAM ('pre',
    as the IBM study's released weights) or after it ('post', as bLVNet-TAM). temporal_pool, pooling: as in
    resnet2d.resnet.
    """
    backbone = resnet2d.resnet(depth, seq_len=seq_len, temporal_pool=temporal_pool, pooling=pooling)
    for stage in resnet2d.residual_blocks(backbone):
        for block in stage:
            block.branch = TAM(block.conv1.in_channels, blend_frames, blend, depthwise)
            block.project_from_branch = one_of("shortcut", shortcut, ("pre", "post")) == "post"
    return backbone


def inception_v1(
    *,
    seq_len: int,
    blend_frames: int = 3,
    blend: str = "sum",
    depthwise: bool = True,
    temporal_pool: int = 0,
    pooling: str = "max",
) -> FrameBackbone:
    """Inception-v1 with a TAM after each of three convolutions and nine inception blocks; options as in `resnet`."""
    backbone = resnet2d.inception_v1(seq_len=seq_len, temporal_pool=temporal_pool, pooling=pooling)
    net = backbone.net
    assert isinstance(net, FrameNet)
    for name, layer in list(net.items()):
        if name.startswith(("conv", "inception")):
            place = name.removeprefix("conv").removeprefix("inception")
            net.insert_after(name, f"tam{place}", TAM(width_of(layer), blend_frames, blend, depthwise))
    return backbone


def width_of(layer: nn.Module) -> int:
    """Channels that a convolution, or the branches of an inception block together, give."""
    branches = [layer] if hasattr(layer, "conv") else layer.children()
    last = [[module for module in branch.modules() if isinstance(module, nn.Conv2d)][-1] for branch in branches]
    return sum(conv.out_channels for conv in last)
