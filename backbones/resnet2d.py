"""2D networks that see one frame at a time: the backbones of TSN-style methods.

ResNet (He et al., CVPR 2016), MobileNetV2 (Sandler et al., CVPR 2018), both as torchvision builds them, and Conv-4
(Vinyals et al., NeurIPS 2016), the small network of few-shot learning.
"""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from backbones.backbone import FrameBackbone
from backbones.torchvision_import import torchvision
from transforms import InputSpec


def resnet(depth: int, *, seq_len: int) -> FrameBackbone:
    """ResNet-`depth` up to its last feature map: D = 512 for depths 18 and 34, 2048 for the others."""
    full = torchvision.models.get_model(f"resnet{depth}", weights=None)
    layers = OrderedDict((name, child) for name, child in full.named_children() if name not in ("avgpool", "fc"))
    return FrameBackbone(
        nn.Sequential(layers), feature_dim=full.fc.in_features, input_spec=InputSpec(), seq_len=seq_len
    )


def mobilenet_v2(*, seq_len: int) -> FrameBackbone:
    """MobileNetV2 1.0 up to its last feature map: D = 1280."""
    full = torchvision.models.mobilenet_v2(weights=None)
    return FrameBackbone(
        nn.Sequential(OrderedDict(features=full.features)),
        feature_dim=full.last_channel,
        input_spec=InputSpec(),
        seq_len=seq_len,
    )


def conv4(*, seq_len: int, width: int = 64) -> FrameBackbone:
    """Four blocks of 3x3 convolution, batch norm, ReLU and 2x2 max pooling: D = `width`. Made to be trained from scratch."""

    def block(channels: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2)
        )

    net = nn.Sequential(block(3), block(width), block(width), block(width))
    spec = InputSpec(size=84, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    return FrameBackbone(net, feature_dim=width, input_spec=spec, seq_len=seq_len)
