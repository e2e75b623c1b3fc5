"""The contract of every backbone, and what networks are made of that meet it.

Letters: N clips, T frames, S feature steps, D width, C channels, H W pixels, h w cells of a feature map.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import count

import torch
from einops import rearrange, reduce
from torch import Tensor, nn

from backbones.layers3d import with_right_gradients
from backbones.passes import ClipPass, recompute_blocks
from backbones.weight_files import WeightsFile
from clips.transforms import InputSpec
from utils import UserError, unknown_name


class Backbone(nn.Module):
    """Turns clips into features: frames (N, T, 3, H, W) float -> (N, S, D).

    A subclass writes `feature_maps` (or `features`, where the network has no maps) and `num_steps`, where S differs
    from T. It knows nothing of flags, devices or logs.

    Attributes: `feature_dim` is D. `input_spec` says what the frames must be like. `seq_len` is T of the clips that
    come flattened, as the TRX-style libraries pass them: frames (N*T, 3, H, W) -> (N*S, D, 1, 1). `frames_per_step` is
    how many neighbouring frames the network wants of every segment of a video: 1, unless it looks at short motion
    (LSNet, TDN, MSN). `clip_pass` is the way in which its owner lets clips go through it.
    """

    feature_dim: int
    input_spec: InputSpec
    seq_len: int
    frames_per_step: int = 1
    clip_pass: ClipPass = ClipPass()

    def __init__(self, *, feature_dim: int, input_spec: InputSpec, seq_len: int) -> None:
        super().__init__()
        self.feature_dim = feature_dim
        self.input_spec = input_spec
        self.seq_len = seq_len

    def translate(self, file: WeightsFile) -> dict[str, Tensor]:
        """The tensors of a file under the names of the network's own; for networks of other packages, and their files."""
        return file.state

    def num_steps(self, seq_len: int) -> int:
        """S for clips of `seq_len` frames. Raises UserError for lengths that the network cannot take."""
        return seq_len

    def feature_maps(self, clips: Tensor) -> Tensor:
        """Clips (N, T, 3, H, W) -> maps (N, D, S, h, w) before pooling over space."""
        raise NotImplementedError(f"{type(self).__name__} has no feature maps")

    def features(self, clips: Tensor) -> Tensor:
        """Clips (N, T, 3, H, W) -> (N, S, D): the maps' mean over space."""
        return reduce(self.feature_maps(clips), "n d s h w -> n s d", "mean")

    def forward(self, clips: Tensor, *, maps: bool = False) -> Tensor:
        """Clips -> `features`, or with `maps` their `feature_maps`, by way of `clip_pass`."""
        if clips.ndim == 4:
            features = self(rearrange(clips, "(n t) c h w -> n t c h w", t=self.seq_len))
            return rearrange(features, "n s d -> (n s) d 1 1")
        return self.clip_pass(self, self.feature_maps if maps else self.features, clips)

    def set_passes(self, *, frames_per_call: int = 0, recompute: bool = False) -> None:
        """Clips pass in portions of so many frames, whole clips (0: all at once). recompute: activations are computed again
        in the backward pass: those of a portion, or where there are none, those inside each block."""
        self.clip_pass = ClipPass(frames_per_call=frames_per_call, recompute_portions=recompute and frames_per_call > 0)
        if recompute and not frames_per_call:
            recompute_blocks(self)

    def compile_passes(self) -> None:
        """Has torch.compile make faster forms of `features` and `feature_maps`; names of weights stay as they are."""
        for name in ("features", "feature_maps"):
            setattr(self, name, torch.compile(getattr(self, name)))


# ---------------------------------------------------------------------------------------------------------------------
# 2D networks over frames, with modules between their layers that look across time


class OverFrames(nn.Module):
    """A module that is told where clips begin: maps (N*T, C, h, w) of all frames and N -> maps (N*S, C', h, w).

    N is passed on, not T, because T may shrink on the way and is then still known from the maps.
    """


class Added(nn.Module):
    """A part that the image network under a backbone does not have: that network's weights may leave it as it is.

    starts_as: names of layers of the part that start with the weights of the image network's layers of these names.
    """

    starts_as: tuple[str, ...] = ()


class Temporal(OverFrames, Added):
    """What is put into the slots of a 2D network: shift, aggregation, pooling, attention over the frames of a clip."""

    def num_steps(self, seq_len: int) -> int:
        """How many frames it gives for `seq_len` of them."""
        return seq_len


class Keep(OverFrames):
    """An empty slot."""

    def forward(self, maps: Tensor, clips: int) -> Tensor:
        return maps


def over_frames(module: nn.Module, maps: Tensor, clips: int) -> Tensor:
    """Applies a per-frame module, or one that also wants the number of clips."""
    return module(maps, clips) if isinstance(module, OverFrames) else module(maps)


class FrameNet(OverFrames, nn.ModuleDict):
    """Named layers in a row, any of which may look across frames. State-dict keys are those of nn.Sequential."""

    def forward(self, maps: Tensor, clips: int) -> Tensor:
        for layer in self.values():
            maps = over_frames(layer, maps, clips)
        return maps

    def insert_after(self, place: str, name: str, module: nn.Module) -> None:
        layers = list(self.items())
        layers.insert(list(self).index(place) + 1, (name, module))
        self.clear()
        self.update(dict(layers))


class FrameBackbone(Backbone):
    """A 2D network over the frames of all clips: (N*T, 3, H, W) -> (N*S, D, h, w), where S = T unless it pools time."""

    def __init__(self, net: nn.Module, *, feature_dim: int, input_spec: InputSpec, seq_len: int) -> None:
        super().__init__(feature_dim=feature_dim, input_spec=input_spec, seq_len=seq_len)
        self.net = net
        self.num_steps(seq_len)  # a clip of a wrong length is refused here, before any work

    def num_steps(self, seq_len: int) -> int:
        for module in self.net.modules():
            if isinstance(module, Temporal):
                seq_len = module.num_steps(seq_len)
        return seq_len

    def feature_maps(self, clips: Tensor) -> Tensor:
        maps = over_frames(self.net, rearrange(clips, "n t c h w -> (n t) c h w"), len(clips))
        return rearrange(maps, "(n s) d h w -> n d s h w", n=len(clips))


class StackBackbone(FrameBackbone):
    """A 2D network over stacks of neighbouring frames in the place of single ones: T = S * `stack`.

    The frames of a stack lie one after the other in the channels: (N*S, stack*C, H, W) -> (N*S, D, h, w).
    """

    def __init__(
        self, net: nn.Module, *, feature_dim: int, input_spec: InputSpec, seq_len: int, stack: int, frames_per_step: int
    ) -> None:
        self.stack = stack
        self.frames_per_step = frames_per_step
        super().__init__(net, feature_dim=feature_dim, input_spec=input_spec, seq_len=seq_len)

    def num_steps(self, seq_len: int) -> int:
        if seq_len % self.stack:
            raise UserError(
                f"the backbone takes stacks of {self.stack} frames, found {seq_len}: give a --seq_len of full stacks, "
                f"{self.stack} frames for every step"
            )
        return super().num_steps(seq_len // self.stack)

    def feature_maps(self, clips: Tensor) -> Tensor:
        return super().feature_maps(rearrange(clips, "n (s f) c h w -> n s (f c) h w", f=self.stack))


# ---------------------------------------------------------------------------------------------------------------------
# 3D networks over clips


class ClipBackbone(Backbone):
    """A 3D network over whole clips: (N, 3, T, H, W) -> maps (N, D, S, h, w).

    time_path: (kernel, stride, padding) along time of every layer that changes the number of frames, first to last.
    """

    def __init__(
        self,
        net: nn.Module,
        *,
        feature_dim: int,
        input_spec: InputSpec,
        seq_len: int,
        time_path: Sequence[tuple[int, int, int]] = (),
    ) -> None:
        super().__init__(feature_dim=feature_dim, input_spec=input_spec, seq_len=seq_len)
        self.net = with_right_gradients(net)
        self.time_path = time_path
        self.num_steps(seq_len)  # a clip that is too short is refused here, before any work

    def num_steps(self, seq_len: int) -> int:
        steps = self._steps(seq_len)
        if steps < 1:
            shortest = next(frames for frames in count(1) if self._steps(frames) >= 1)
            raise UserError(f"clips of {seq_len} frames are too short: give --seq_len {shortest} or more")
        return steps

    def _steps(self, frames: int) -> int:
        for kernel, stride, padding in self.time_path:
            frames = max(0, (frames + 2 * padding - kernel) // stride + 1)
        return frames

    def feature_maps(self, clips: Tensor) -> Tensor:
        return self.net(rearrange(clips, "n t c h w -> n c t h w"))


# ---------------------------------------------------------------------------------------------------------------------
# What builders share


def one_of(kind: str, value: str, allowed: Iterable[str]) -> str:
    """`value`, when it is allowed. Raises UserError with the allowed ones otherwise."""
    if value not in allowed:
        raise unknown_name(kind, value, allowed)
    return value


def initialise_convs(net: nn.Module) -> None:
    """Gives every convolution Kaiming normal weights by fan-out and zero biases (He et al., ICCV 2015)."""
    for module in net.modules():
        if isinstance(module, (nn.Conv2d, nn.Conv3d)):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
