"""ResNet3D: ResNets of 3x3x3 convolutions (Hara, Kataoka, Satoh; CVPR 2018), under the names of their released weights.

Letters: N clips, T frames, S steps, D width, C channels, h w cells of a map.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from backbones.backbone import ClipBackbone, one_of
from backbones.inflate import conv3d, inflate_resnet, resnet_width
from clips.transforms import InputSpec

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
) -> ClipBackbone:
    """ResNet3D of `depth`: D = 512 below depth 50, 2048 from there on; S = T/16, rounded up.

    shortcut: 'B' projects where the shape changes, 'A' has no parameters (the released 18 and 34 of 2018).
    conv1_t_size, conv1_t_stride: frames and stride of the first convolution. no_max_pool: without the pool after it, S
    = T/8.
    """

    def convolution(name: str, conv: nn.Conv2d) -> nn.Module:
        if name == "conv1":
            return conv3d(conv, conv1_t_size, conv1_t_stride)
        return conv3d(conv, frames=conv.kernel_size[0], stride=conv.stride[0])

    net = inflate_resnet(depth, convolution)
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
