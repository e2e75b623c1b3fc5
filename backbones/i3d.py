"""I3D: inflated 3D networks (Carreira and Zisserman, CVPR 2017), of Inception-v1 and of ResNets.

The default forms are those of the IBM study (Chen et al., CVPR 2021), which keep time whole before the first pools.

Letters: N clips, T frames, S steps, D width.
"""

from __future__ import annotations

import re
from collections import OrderedDict

from torch import nn

from backbones.backbone import ClipBackbone, one_of
from backbones.inflate import conv3d, inflate_inception, inflate_resnet, resnet_width
from backbones.resnet2d import HALF_RANGE
from clips.transforms import InputSpec
from utils import UserError

Size = tuple[int, int, int]
SLOW_INFLATED = r"layer[34]\.\d+\.conv1$"


def pool3d(kind: str, kernel: Size, stride: Size, padding: Size) -> nn.Module:
    """A 'max' or 'avg' pool over (time, height, width)."""
    pool = {"max": nn.MaxPool3d, "avg": nn.AvgPool3d}[one_of("pooling", kind, ("max", "avg"))]
    return pool(kernel, stride=stride, padding=padding)


def inception(
    *, seq_len: int, temporal_stride: bool = False, pooling: str = "max", form: str = "study"
) -> ClipBackbone:
    """I3D of Inception-v1: D = 1024.

    temporal_stride: three pools halve time as well, S = T/8; without it S = T. pooling: max or avg, of the pools
    between stages. form: 'original' halves time in the first convolution and the last two pools, as the paper does (S =
    T/8).
    """
    original = one_of("form", form, ("study", "original")) == "original"
    t = 2 if temporal_stride else 1
    cube = pool3d(pooling, (3, 3, 3), (t, 2, 2), (1, 1, 1))
    flat = pool3d(pooling, (1, 3, 3), (1, 2, 2), (0, 1, 1))
    pools = {"maxpool1": flat, "maxpool2": cube, "maxpool3": cube, "maxpool4": cube}
    time_path = [(3, t, 1)] * 3
    if original:
        pools["maxpool2"] = flat
        pools["maxpool3"] = pool3d(pooling, (3, 3, 3), (2, 2, 2), (1, 1, 1))
        pools["maxpool4"] = pool3d(pooling, (2, 2, 2), (2, 2, 2), (0, 0, 0))
        time_path = [(7, 2, 3), (3, 2, 1), (2, 2, 0)]

    def convolution(name: str, conv: nn.Conv2d) -> nn.Module:
        stem_stride = 2 if original and name == "conv1.conv" else 1
        return conv3d(conv, frames=conv.kernel_size[0], stride=stem_stride)

    return ClipBackbone(
        inflate_inception(convolution, pools),
        feature_dim=1024,
        input_spec=HALF_RANGE,
        seq_len=seq_len,
        time_path=time_path,
    )


def resnet(depth: int, *, seq_len: int, temporal_stride: bool = False, kernels: str = "3x3x3") -> ClipBackbone:
    """I3D of ResNet-`depth`: D = 512 for depths 18 and 34, 2048 for the others. With 18 and 34 it is the study's
    ResNet3D.

    temporal_stride: time is halved three times, S = T/8; without it S = T. kernels: '3x3x3' inflates every 3x3;
    '3x1x1', for depths of 50 and more, inflates the first 1x1 of every other block instead (Wang et al., CVPR 2018:
    non-local); 'slow' that of every block of the last two stages and nothing before, without temporal strides
    (Feichtenhofer et al., ICCV 2019: the slow pathway, SlowOnly).
    """
    t = 2 if temporal_stride else 1
    if one_of("kernels", kernels, ("3x3x3", "3x1x1", "slow")) == "3x3x3":
        net = inflate_resnet(
            depth,
            lambda name, conv: conv3d(
                conv,
                frames=1 if conv.kernel_size[0] == 1 else 3,
                stride=t if conv.stride[0] == 2 and name != "conv1" else 1,
            ),
        )
        time_path = [(3, t, 1)] * 3
    elif depth < 50:
        raise UserError(f"kernels {kernels} need depth 50 or more, found {depth}: give --backbone i3d_resnet50")
    elif kernels == "slow":
        if temporal_stride:
            raise UserError("kernels=slow has no temporal strides: leave temporal_stride=true out")
        net = inflate_resnet(depth, lambda name, conv: conv3d(conv, 3 if re.match(SLOW_INFLATED, name) else 1))
        time_path = []
    else:
        net = alternately_inflated(depth, t)
        time_path = [(5, t, 2), (1, t, 0), (2, t, 0)] if temporal_stride else []
    return ClipBackbone(
        net, feature_dim=resnet_width(depth), input_spec=InputSpec(), seq_len=seq_len, time_path=time_path
    )


def alternately_inflated(depth: int, t: int) -> nn.Sequential:
    """The '3x1x1' form; with t = 2 the first convolution, the pool after it and a pool after stage 1 halve time."""

    def convolution(name: str, conv: nn.Conv2d) -> nn.Module:
        if name == "conv1":
            return conv3d(conv, frames=5, stride=t)
        stage, block, layer = name.split(".")[:3]
        # In every block of the first stage, in blocks 0, 2, 4 ... of the next two, in 1, 3 ... of the last.
        chosen = stage == "layer1" or int(block) % 2 == (stage == "layer4")
        return conv3d(conv, frames=3 if chosen and layer == "conv1" else 1)

    layers = dict(inflate_resnet(depth, convolution).named_children())
    layers["maxpool"] = nn.MaxPool3d((1, 3, 3), stride=(t, 2, 2), padding=(0, 1, 1))
    after = [(name, layers.pop(name)) for name in ("layer2", "layer3", "layer4")]
    return nn.Sequential(OrderedDict([*layers.items(), ("pool2", nn.MaxPool3d((t, 1, 1))), *after]))
