"""3D layers that keep to PyTorch's, and mend what it does with them under autocast on a CPU.

Letters: N clips, C channels, T frames, S steps, h w cells of a map.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Conv3d(nn.Conv3d):
    """A convolution whose gradients are right in bfloat16 on a CPU as well.

    Where a kernel is as long as the clip, oneDNN's gradient of the weights reads memory that nobody wrote, as soon as it
    has to pad the clip itself (torch 2.13, CPUs with bfloat16 units; two frames under a kernel of three are enough).
    Clips that come padded give the same numbers and the right gradient.
    """

    def forward(self, maps: Tensor) -> Tensor:
        """(N, C, T, h, w) -> (N, C', S, h', w')."""
        safe = maps.device.type != "cpu" or not torch.is_autocast_enabled("cpu") or maps.shape[2] > self.kernel_size[0]
        if safe or isinstance(self.padding, str) or self.padding_mode != "zeros":
            return super().forward(maps)
        time, *space = self.padding
        maps = F.pad(maps, (0, 0, 0, 0, time, time))
        return F.conv3d(maps, self.weight, self.bias, self.stride, (0, *space), self.dilation, self.groups)


def with_right_gradients(net: nn.Module) -> nn.Module:
    """`net`, its 3D convolutions being of the kind above, whoever built them."""
    for module in net.modules():
        if isinstance(module, nn.Conv3d) and type(module).forward is nn.Conv3d.forward:
            module.__class__ = Conv3d  # it has all that the other has, and nothing besides
    return net


class MaxPool3d(nn.MaxPool3d):
    """Max pooling in the number format of its maps, which rounds nothing.

    Autocast on a CPU takes maps to float32 for it. Those of the first layers are so large that this was a quarter of a
    training step of Conv-4-64 in bfloat16.
    """

    def forward(self, maps: Tensor) -> Tensor:
        """(N, C, T, h, w) -> (N, C, S, h', w'), in the same format."""
        if maps.device.type != "cpu":
            return super().forward(maps)
        with torch.autocast("cpu", enabled=False):
            return super().forward(maps)
