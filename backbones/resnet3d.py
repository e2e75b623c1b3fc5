"""ResNet3D: ResNets of 3x3x3 convolutions (Hara, Kataoka, Satoh; CVPR 2018), under the names of their released weights,
and the R(2+1)D that is released beside them.

Letters: N clips, T frames, S steps, D width, C channels, h w cells of a map.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from backbones.backbone import ClipBackbone, one_of
from backbones.inflate import conv3d, inflate_resnet, resnet_width, side
from clips.transforms import InputSpec
from utils import UserError

# 16 frames of 112 pixels, with the channel statistics of Kinetics that the released weights were trained with.
KINETICS = InputSpec(size=112, mean=(0.4345, 0.4051, 0.3775), std=(0.2768, 0.2713, 0.2737), frames=16)


class ShortcutA(nn.Module):
    """The shortcut without parameters: every `stride`-th cell and frame, and zeros for the new channels."""

    def __init__(self, stride: int, new_channels: int) -> None:
        super().__init__()
        self.stride = stride
        self.new_channels = new_channels

    def forward(self, maps: Tensor) -> Tensor:
        """(N, C, T, h, w) -> (N, C + new_channels, T/stride, h/stride, w/stride)."""
        s = self.stride
        return F.pad(maps[:, :, ::s, ::s, ::s], (0, 0, 0, 0, 0, 0, 0, self.new_channels))


def resnet(
    depth: int,
    *,
    seq_len: int,
    shortcut: str = "B",
    conv1_t_size: int = 7,
    conv1_t_stride: int = 1,
    no_max_pool: bool = False,
    width: int = 64,
) -> ClipBackbone:
    """ResNet3D of `depth`: D = 512 below depth 50, 2048 from there on; S = T/16, rounded up.

    shortcut: 'B' projects where the shape changes, 'A' has no parameters (the released 18 and 34 of 2018).
    conv1_t_size, conv1_t_stride: frames and stride of the first convolution. no_max_pool: without the pool after it, S
    = T/8. width: inner channels of the first bottlenecks, from depth 50 on; 128 is the released Wide ResNet-50.
    """
    if depth < 50 and width != 64:
        raise UserError(f"width is for depths of 50 and more, found {depth}: leave it out")
    return build(depth, conv3d, seq_len, shortcut, conv1_t_size, conv1_t_stride, no_max_pool, width)


def resnet2p1d(
    depth: int,
    *,
    seq_len: int,
    shortcut: str = "B",
    conv1_t_size: int = 7,
    conv1_t_stride: int = 1,
    no_max_pool: bool = False,
    form: str = "hara",
) -> ClipBackbone:
    """R(2+1)D in the form of 3D-ResNets: as `resnet`, each convolution over time and space in two halves. D, S and options
    are the same. It has a pool and another first convolution than torchvision's r2plus1d_18.

    form: 'mmaction2', for depths below 50, is that of MMAction2: 3 frames in the first convolution, whose pool leaves time
    whole (S = T/8), shortcuts in two halves as well, and batch norms at 1e-3. It has no other options.
    """
    if one_of("form", form, ("hara", "mmaction2")) == "hara":
        return build(depth, factored, seq_len, shortcut, conv1_t_size, conv1_t_stride, no_max_pool)
    if depth >= 50 or (shortcut, conv1_t_size, conv1_t_stride, no_max_pool) != ("B", 7, 1, False):
        raise UserError("form=mmaction2 is for depths below 50, and has no further options: leave the others out")
    backbone = build(depth, factored_thrice, seq_len, "B", conv1_t_size=3, conv1_t_stride=1, no_max_pool=True)
    net = backbone.net
    net.set_submodule("maxpool", nn.MaxPool3d((1, 3, 3), stride=(1, 2, 2), padding=(0, 1, 1)))
    for name, module in net.named_modules():
        if isinstance(module, nn.BatchNorm3d) and not re.search(r"(conv\d|downsample\.0)\.bn$", name):
            module.eps = 1e-3
    return backbone


def factored(conv: nn.Conv2d, frames: int = 1, stride: int = 1) -> nn.Module:
    """`conv3d` as a convolution over space, a norm, a ReLU and a convolution over time, with about as many parameters
    (Tran et al., CVPR 2018, section 3.5); one over a single frame stays whole."""
    if frames == 1:
        return conv3d(conv, frames, stride)
    return halves(conv, frames, stride, width_of=frames)


def factored_thrice(conv: nn.Conv2d, frames: int = 1, stride: int = 1) -> nn.Module:
    """`factored`, one over a single frame as well, at the inner width of one over three."""
    return halves(conv, frames, stride, width_of=3)


def halves(conv: nn.Conv2d, frames: int, stride: int, width_of: int) -> nn.Module:
    """width_of: the frames of the whole convolution that has the parameters of both."""
    c_in, c_out, area = conv.in_channels, conv.out_channels, side(conv.kernel_size) ** 2
    middle = width_of * area * c_in * c_out // (area * c_in + width_of * c_out)
    kernel, step, padding = (side(size) for size in (conv.kernel_size, conv.stride, conv.padding))
    spatial = nn.Conv2d(c_in, middle, kernel, step, padding, bias=False)
    return nn.Sequential(
        OrderedDict(
            spatial=conv3d(spatial),
            bn=nn.BatchNorm3d(middle),
            relu=nn.ReLU(inplace=True),
            temporal=nn.Conv3d(middle, c_out, (frames, 1, 1), (stride, 1, 1), (frames // 2, 0, 0), bias=False),
        )
    )


def build(
    depth: int,
    form: Callable[[nn.Conv2d, int, int], nn.Module],
    seq_len: int,
    shortcut: str,
    conv1_t_size: int,
    conv1_t_stride: int,
    no_max_pool: bool,
    width: int = 64,
) -> ClipBackbone:
    """form: makes a convolution over so many frames at such a stride of a 2D one."""

    def convolution(name: str, conv: nn.Conv2d) -> nn.Module:
        if name == "conv1":
            return form(conv, conv1_t_size, conv1_t_stride)
        return form(conv, conv.kernel_size[0], conv.stride[0])

    net = inflate_resnet(depth, convolution, width)
    net.set_submodule("maxpool", nn.Identity() if no_max_pool else nn.MaxPool3d(3, stride=2, padding=1))
    if one_of("shortcut", shortcut, ("A", "B")) == "A":
        for name, module in list(net.named_modules()):
            if name.endswith("downsample"):
                project = module.get_submodule("0")
                assert isinstance(project, nn.Conv3d)
                net.set_submodule(name, ShortcutA(project.stride[0], project.out_channels - project.in_channels))
    return ClipBackbone(
        net,
        feature_dim=resnet_width(depth),
        input_spec=KINETICS,
        seq_len=seq_len,
        time_path=[(conv1_t_size, conv1_t_stride, conv1_t_size // 2)] + [(3, 2, 1)] * (3 if no_max_pool else 4),
    )
