"""S3D: each 3D convolution as one over space and one over time (Xie et al., ECCV 2018), in the forms of the IBM study.

The paper's own network is torchvision's s3d (torchvision_video.py); these put it on Inception-v1 and on ResNets, with a
first convolution that is whole and keeps time (Chen et al., CVPR 2021).

Letters: T frames, S steps, D width.
"""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

from backbones.backbone import Added, ClipBackbone
from backbones.i3d import pool3d
from backbones.inflate import conv3d, inflate_inception, inflate_resnet, resnet_width
from backbones.resnet2d import HALF_RANGE
from clips.transforms import InputSpec


class TemporalConv(Added):
    """A convolution over three frames and its batch norm."""

    def __init__(self, channels: int, *, stride: int, depthwise: bool, bias: bool, eps: float) -> None:
        super().__init__()
        groups = channels if depthwise else 1
        self.conv = nn.Conv3d(channels, channels, (3, 1, 1), (stride, 1, 1), (1, 0, 0), groups=groups, bias=bias)
        self.bn = nn.BatchNorm3d(channels, eps=eps)

    def forward(self, maps: Tensor) -> Tensor:
        return self.bn(self.conv(maps))


class SeparableConv(nn.Sequential):
    """What stands for a 2D convolution and its batch norm: these, a ReLU, and the same over time."""

    def __init__(
        self, conv: nn.Conv2d, *, stride: int = 1, depthwise: bool = False, bias: bool = False, eps: float = 1e-5
    ) -> None:
        channels = conv.out_channels
        super().__init__(
            OrderedDict(
                spatial=conv3d(conv),
                bn=nn.BatchNorm3d(channels, eps=eps),
                relu=nn.ReLU(inplace=True),
                temporal=TemporalConv(channels, stride=stride, depthwise=depthwise, bias=bias, eps=eps),
            )
        )


def drop_outer_norms(net: nn.Module) -> None:
    """Takes away the batch norm after every SeparableConv (bn2 after conv2), which has it inside."""
    for name, module in list(net.named_modules()):
        if isinstance(module, SeparableConv):
            parent, _, own = name.rpartition(".")
            net.set_submodule(f"{parent}.{own.replace('conv', 'bn')}", nn.Identity())


def inception(
    *, seq_len: int, temporal_stride: bool = False, dw_t_conv: bool = False, pooling: str = "max"
) -> ClipBackbone:
    """S3D of Inception-v1: D = 1024.

    temporal_stride: three pools halve time as well, S = T/8; without it S = T - 1, as the last pool joins two frames.
    dw_t_conv: depthwise convolutions over time. pooling: max or avg, of the pools between stages.
    """
    t = 2 if temporal_stride else 1

    def convolution(name: str, conv: nn.Conv2d) -> nn.Module:
        if conv.kernel_size[0] == 3:
            return SeparableConv(conv, depthwise=dw_t_conv, bias=True, eps=1e-3)
        return conv3d(conv, frames=3 if name == "conv1.conv" else 1)

    cube = pool3d(pooling, (3, 3, 3), (t, 2, 2), (1, 1, 1))
    pools = {
        "maxpool1": pool3d(pooling, (1, 3, 3), (1, 2, 2), (0, 1, 1)),
        "maxpool2": cube,
        "maxpool3": cube,
        "maxpool4": pool3d(pooling, (2, 2, 2), (t, 2, 2), (0, 0, 0)),
    }
    net = inflate_inception(convolution, pools)
    drop_outer_norms(net)
    return ClipBackbone(
        net,
        feature_dim=1024,
        input_spec=HALF_RANGE,
        seq_len=seq_len,
        time_path=[(3, t, 1), (3, t, 1), (2, t, 0)],
    )


def resnet(depth: int, *, seq_len: int, temporal_stride: bool = False, dw_t_conv: bool = False) -> ClipBackbone:
    """S3D of ResNet-`depth`: D = 512 for depths 18 and 34, 2048 for the others.

    temporal_stride: time is halved three times, S = T/8; without it S = T. dw_t_conv: depthwise convolutions over time.
    """
    t = 2 if temporal_stride else 1

    def convolution(name: str, conv: nn.Conv2d) -> nn.Module:
        if name == "conv1":
            return conv3d(conv, frames=3)
        stride = t if conv.stride[0] == 2 else 1
        if conv.kernel_size[0] == 3:
            return SeparableConv(conv, stride=stride, depthwise=dw_t_conv)
        return conv3d(conv, stride=stride)

    net = inflate_resnet(depth, convolution)
    drop_outer_norms(net)
    return ClipBackbone(
        net,
        feature_dim=resnet_width(depth),
        input_spec=InputSpec(),
        seq_len=seq_len,
        time_path=[(3, t, 1)] * 3,
    )
