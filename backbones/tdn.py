"""TDN: Temporal Difference Networks for Efficient Action Recognition (Wang, Tong, Ji, Wu; CVPR 2021).

Five neighbouring frames stand for each step. A ResNet sees the middle one; a second path sees the differences between
all five (S-TDM) and joins it before and after the first stage. In the blocks of the other stages, differences between
steps weigh the features (L-TDM), and a learned shift mixes those of neighbouring steps.

Where the paper's text differs from the authors' code (MCG-NJU/TDN), this is the code. It gives the convolutions biases
that the batch norms behind them cancel; here there are none, and weights.py folds those of released files.

Letters: N clips, S steps, F frames of a step, C channels, M = C/16, h w cells of a map.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from backbones import resnet2d
from backbones.backbone import Added, FrameNet, StackBackbone, Temporal, initialise_convs, over_frames
from clips.transforms import InputSpec
from utils import UserError

FRAMES = 5  # of a step

Weights = tuple[float, float]
"""With which two paths are added: of the frames' and of the differences'."""


def conv_norm(width_in: int, width: int, kernel: int) -> nn.Sequential:
    """A convolution that keeps the size of maps, and its batch norm."""
    return nn.Sequential(nn.Conv2d(width_in, width, kernel, padding=kernel // 2, bias=False), nn.BatchNorm2d(width))


# ---------------------------------------------------------------------------------------------------------------------
# Between the frames of a step


def differences(frames: Tensor) -> Tensor:
    """Frames (B, F, 3, H, W) -> those between neighbours, later minus earlier, in order: (B, (F-1)*3, H, W)."""
    return rearrange(frames[:, 1:] - frames[:, :-1], "b f c h w -> b (f c) h w")


class MotionPath(Added, nn.ModuleDict):
    """What sees all frames of a step: frames (B, F, 3, H, W) -> maps (B, 64, h, w), and `layer1` takes them on.

    A container of its layers as the ResNet beside it is, so that the blocks of `layer1` count as blocks of the network.
    """

    starts_as: tuple[str, ...] = ("layer1",)

    def __init__(self, layer1: nn.Module) -> None:
        super().__init__()
        self.layer1 = layer1


class ShortTermModule(MotionPath):
    """S-TDM, the short-term temporal difference module (section 3.2): the stem and first stage of a second ResNet.

    It sees differences at half the resolution: frames (B, F, 3, H, W) -> maps (B, 64, H/8, W/8). Its first convolution
    starts as the image network's, with the mean over colours for each of the 12 channels.
    """

    starts_as = ("conv1", "layer1")

    def __init__(self, layer1: nn.Module) -> None:
        super().__init__(layer1)
        self.conv1 = nn.Conv2d((FRAMES - 1) * 3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, frames: Tensor) -> Tensor:
        half = F.avg_pool2d(differences(frames), 2)
        return F.max_pool2d(self.bn1(self.conv1(half)).relu(), 3, stride=2, padding=1)


class TwoPaths(FrameNet):
    """A ResNet over the middle frames of steps, and beside its first layers a path of differences.

    before, after: with which weights the paths are added before and after the first stage.
    """

    short: MotionPath

    def __init__(self, layers: FrameNet, short: MotionPath, before: Weights, after: Weights) -> None:
        super().__init__({**layers, "short": short})
        self.before = before
        self.after = after

    def forward(self, maps: Tensor, clips: int) -> Tensor:
        """Stacks (N*S, F*3, H, W) -> (N*S, D, h, w)."""
        frames = rearrange(maps, "b (f c) h w -> b f c h w", f=FRAMES)
        maps = self["maxpool"](self["relu"](self["bn1"](self["conv1"](frames[:, FRAMES // 2]))))
        motion = self.short(frames)
        maps = added(maps, motion, self.before)
        maps, motion = self["layer1"](maps, clips), over_frames(self.short.layer1, motion, clips)
        maps = added(maps, motion, self.after)
        for stage in ("layer2", "layer3", "layer4"):
            maps = self[stage](maps, clips)
        return maps


def added(maps: Tensor, motion: Tensor, weights: Weights) -> Tensor:
    """The weighted sum; motion is brought to the size of the maps by repeating its cells."""
    of_maps, of_motion = weights
    return of_maps * maps + of_motion * F.interpolate(motion, maps.shape[-2:])


# ---------------------------------------------------------------------------------------------------------------------
# Between steps


class LongTermModule(Temporal):
    """L-TDM, the long-term temporal difference module (section 3.3): features times a gate between 0.5 and 1.5.

    The gate of a step is the mean of two, from the differences to the step after it and to the step before it. The last
    step and the first have zeros in the place of the one that they lack.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        narrow = channels // 16
        self.squeeze = conv_norm(channels, narrow, 1)
        self.smooth = nn.Conv2d(narrow, narrow, 3, padding=1, groups=narrow, bias=False)
        self.coarse = nn.Sequential(nn.AvgPool2d(2), *conv_norm(narrow, narrow, 3))
        self.fine = conv_norm(narrow, narrow, 3)
        self.expand = conv_norm(narrow, channels, 1)
        initialise_convs(self)

    def forward(self, maps: Tensor, clips: int) -> Tensor:
        if min(maps.shape[-2:]) < 2:
            raise UserError("TDN halves maps that are a single cell already: give --img_size 33 or more")
        narrow = self.squeeze(maps)
        here, there = (rearrange(m, "(n s) c h w -> n s c h w", n=clips) for m in (narrow, self.smooth(narrow)))
        ahead, behind = torch.zeros_like(here), torch.zeros_like(here)
        ahead[:, :-1] = there[:, 1:] - here[:, :-1]
        behind[:, 1:] = there[:, :-1] - here[:, 1:]
        gates = [self.gate(rearrange(steps, "n s c h w -> (n s) c h w")) for steps in (ahead, behind)]
        return maps + maps * (gates[0] + gates[1]) / 2

    def gate(self, difference: Tensor) -> Tensor:
        """(N*S, M, h, w) -> (N*S, C, h, w) in [-0.5, 0.5]; seen as it is, at half the resolution and at the full one."""
        coarse = F.interpolate(self.coarse(difference), difference.shape[-2:])
        return self.expand((difference + coarse + self.fine(difference)) / 3).sigmoid() - 0.5


class LearnedShift(Temporal):
    """A depthwise convolution over three steps that starts as TSM's shift of an eighth of the channels each way."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        fold = channels // 8
        self.mix = nn.Conv2d(channels, channels, (3, 1), padding=(1, 0), groups=channels, bias=False)
        with torch.no_grad():
            self.mix.weight.zero_()
            self.mix.weight[:fold, :, 2] = 1
            self.mix.weight[fold : 2 * fold, :, 0] = 1
            self.mix.weight[2 * fold :, :, 1] = 1

    def forward(self, maps: Tensor, clips: int) -> Tensor:
        mixed = self.mix(rearrange(maps, "(n s) c h w -> n c s (h w)", n=clips))
        return rearrange(mixed, "n c s (h w) -> (n s) c h w", h=maps.shape[-2])


# ---------------------------------------------------------------------------------------------------------------------
# Backbones


def path_weights(steps: int, alpha: float | None, beta: float | None) -> Weights:
    """`alpha` and `beta`; for one that is unset the authors': equal for eight steps, 3 to 1 for any other number."""
    own_alpha, own_beta = (0.5, 0.5) if steps == 8 else (0.75, 0.25)
    return own_alpha if alpha is None else alpha, own_beta if beta is None else beta


def two_path_resnet(
    depth: int,
    *,
    seq_len: int,
    short: Callable[[nn.Module], MotionPath],
    long: Callable[[int], Temporal],
    before: Weights,
    after: Weights,
) -> StackBackbone:
    """ResNet-`depth` with a path of differences and, in all blocks of stages 2 to 4, what links steps.

    short: of a first stage, makes the second path. long: of a number of channels, makes what stands before the shift.
    """
    backbone = resnet2d.resnet(depth, seq_len=seq_len)
    assert isinstance(backbone.net, FrameNet)
    for stage in resnet2d.residual_blocks(backbone)[1:]:
        for block in stage:
            width = block.conv1.out_channels
            block.middle = FrameNet({"difference": long(width), "shift": LearnedShift(width)})
    layer1 = copy.deepcopy(backbone.net["layer1"])
    initialise_convs(layer1)
    return StackBackbone(
        TwoPaths(backbone.net, short(layer1), before, after),
        feature_dim=backbone.feature_dim,
        input_spec=InputSpec(frames=8 * FRAMES),
        seq_len=seq_len,
        stack=FRAMES,
        frames_per_step=FRAMES,
    )


def resnet(depth: int, *, seq_len: int, alpha: float | None = None, beta: float | None = None) -> StackBackbone:
    """TDN of ResNet-50 or -101: D = 2048, S = T / 5.

    alpha, beta: weights of the frames and of the differences where their paths are added; unset, the authors' for the
    number of steps (see `path_weights`).
    """
    weights = path_weights(seq_len // FRAMES, alpha, beta)
    return two_path_resnet(
        depth, seq_len=seq_len, short=ShortTermModule, long=LongTermModule, before=weights, after=weights
    )
