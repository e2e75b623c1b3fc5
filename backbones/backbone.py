"""The contract of every backbone.

Letters: N clips, T frames, S feature steps, D width, H W pixels, h w cells of a feature map.
"""

from __future__ import annotations

from einops import rearrange, reduce
from torch import Tensor, nn

from transforms import InputSpec


class Backbone(nn.Module):
    """Turns clips into features: frames (N, T, 3, H, W) float -> (N, S, D).

    A subclass writes `feature_maps` (or `forward`, where the network has no maps) and `num_steps`, where S differs from T.
    It knows nothing of flags, devices or logs.

    Attributes: `feature_dim` is D. `input_spec` says what the frames must be like. `seq_len` is T of the clips that come
    flattened, as the TRX-style libraries pass them: frames (N*T, 3, H, W) -> (N*S, D, 1, 1).
    """

    feature_dim: int
    input_spec: InputSpec
    seq_len: int

    def __init__(self, *, feature_dim: int, input_spec: InputSpec, seq_len: int) -> None:
        super().__init__()
        self.feature_dim = feature_dim
        self.input_spec = input_spec
        self.seq_len = seq_len

    def num_steps(self, seq_len: int) -> int:
        """S for clips of `seq_len` frames."""
        return seq_len

    def feature_maps(self, clips: Tensor) -> Tensor:
        """Clips (N, T, 3, H, W) -> maps (N, D, S, h, w) before pooling over space."""
        raise NotImplementedError(f"{type(self).__name__} has no feature maps")

    def features(self, clips: Tensor) -> Tensor:
        """Clips (N, T, 3, H, W) -> (N, S, D): the maps' mean over space."""
        return reduce(self.feature_maps(clips), "n d s h w -> n s d", "mean")

    def forward(self, clips: Tensor) -> Tensor:
        if clips.ndim == 5:
            return self.features(clips)
        features = self.features(rearrange(clips, "(n t) c h w -> n t c h w", t=self.seq_len))
        return rearrange(features, "n s d -> (n s) d 1 1")


class FrameBackbone(Backbone):
    """A 2D network applied to every frame by itself (S = T): frames (N, 3, H, W) -> maps (N, D, h, w)."""

    def __init__(self, net: nn.Module, *, feature_dim: int, input_spec: InputSpec, seq_len: int) -> None:
        super().__init__(feature_dim=feature_dim, input_spec=input_spec, seq_len=seq_len)
        self.net = net

    def feature_maps(self, clips: Tensor) -> Tensor:
        maps = self.net(rearrange(clips, "n t c h w -> (n t) c h w"))
        return rearrange(maps, "(n t) d h w -> n d t h w", t=clips.shape[1])
