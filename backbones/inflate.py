"""From 2D networks to 3D ones, as I3D does it (Carreira and Zisserman, CVPR 2017).

The layers of a 2D network are replaced by 3D ones and keep their names, so that its image weights are found by name;
weights.py then spreads them over time.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from torch import nn

from backbones.backbone import initialise_convs
from backbones.resnet2d import STAGES, layers_of
from backbones.torchvision_import import torchvision


def conv3d(conv: nn.Conv2d, frames: int = 1, stride: int = 1) -> nn.Conv3d:
    """`conv` over `frames` frames at a time, every `stride`-th frame, padded so that stride 1 keeps their number."""
    k, s, p = side(conv.kernel_size), side(conv.stride), side(conv.padding)
    return nn.Conv3d(
        conv.in_channels,
        conv.out_channels,
        (frames, k, k),
        stride=(stride, s, s),
        padding=(frames // 2, p, p),
        bias=False,
    )


def side(size: int | str | tuple[int, ...]) -> int:
    """The side of a square size, as layers keep it: 3 of 3 or of (3, 3)."""
    return int(size[0] if isinstance(size, tuple) else size)


def inflate(net: nn.Module, convolution: Callable[[str, nn.Conv2d], nn.Module]) -> nn.Sequential:
    """The layers of an image network before its head, in 3D: (N, 3, T, H, W) -> maps (N, D, S, h, w).

    convolution: gives the module in the place of a named 2D convolution. Pools stay as wide as one frame.
    """
    layers = nn.Sequential(OrderedDict(layers_of(net)))
    for name, module in list(layers.named_modules()):
        if isinstance(module, nn.Conv2d):
            layers.set_submodule(name, convolution(name, module))
        elif isinstance(module, nn.BatchNorm2d):
            layers.set_submodule(name, nn.BatchNorm3d(module.num_features, eps=module.eps))
        elif isinstance(module, nn.MaxPool2d):
            k, s, p = side(module.kernel_size), side(module.stride), side(module.padding)
            layers.set_submodule(name, nn.MaxPool3d((1, k, k), stride=(1, s, s), padding=(0, p, p)))
    initialise_convs(layers)
    return layers


def inflate_resnet(depth: int, convolution: Callable[[str, nn.Conv2d], nn.Module], width: int = 64) -> nn.Sequential:
    """ResNet-`depth` in 3D. width: inner channels of the first stage's bottlenecks, 128 of Wide ResNet-50."""
    blocks = torchvision.models.resnet
    block = blocks.BasicBlock if depth < 50 else blocks.Bottleneck
    return inflate(torchvision.models.ResNet(block, STAGES[depth], width_per_group=width), convolution)


def resnet_width(depth: int) -> int:
    """D of ResNet-`depth`."""
    return 512 if depth < 50 else 2048


def inflate_inception(convolution: Callable[[str, nn.Conv2d], nn.Module], pools: dict[str, nn.Module]) -> nn.Sequential:
    """Inception-v1 in 3D (D = 1024). pools: those between its stages, maxpool1 to maxpool4."""
    net = inflate(torchvision.models.GoogLeNet(aux_logits=False, init_weights=False), convolution)
    for name in [name for name, _ in net.named_modules() if name.endswith("branch4.0")]:
        net.set_submodule(name, nn.MaxPool3d(3, stride=1, padding=1))
    for name, pool in pools.items():
        net.set_submodule(name, pool)
    return net
