"""LSNet, Long Short Temporal Network: short motion in the input channels, long motion by TSM or TAM between segments.

No paper was found; this follows the code of gitxdf/LSNet (2021), which is TSM on stacks of grey frames. Close to it in
print is GrayST (Kim et al., BMVC 2022).

Letters: N clips, T frames, S steps, F frames of a stack.
"""

from __future__ import annotations

from collections.abc import Callable

from einops import rearrange, reduce
from torch import Tensor, nn

from backbones import resnet2d, tam, tsm
from backbones.backbone import FrameBackbone, FrameNet, StackBackbone, one_of
from clips.transforms import InputSpec
from utils import UserError

# One mean and deviation for all channels, so that the luma of normalised frames is the normalised luma.
GREY = InputSpec(mean=(0.449, 0.449, 0.449), std=(0.226, 0.226, 0.226), frames=24)
LUMA = (0.299, 0.587, 0.114)


class LSNet(StackBackbone):
    """A 2D network over stacks of F grey frames in the place of RGB frames: T = S * F frames, one stack per step.

    The first convolution takes F channels. `frames_per_step` neighbouring frames come from one segment of the video;
    with `fuse` all T frames are one stack, and S = 1.
    """

    def __init__(self, net: FrameNet, *, feature_dim: int, seq_len: int, frames_per_step: int, fuse: bool) -> None:
        stack = seq_len if fuse else frames_per_step
        stem = nn.Conv2d(stack, 64, 7, stride=2, padding=3, bias=False)
        nn.init.kaiming_normal_(stem.weight, mode="fan_out", nonlinearity="relu")
        net.set_submodule("conv1", stem)
        super().__init__(
            net,
            feature_dim=feature_dim,
            input_spec=GREY,
            seq_len=seq_len,
            stack=stack,
            frames_per_step=frames_per_step,
        )

    def feature_maps(self, clips: Tensor) -> Tensor:
        weights = rearrange(clips.new_tensor(LUMA), "c -> c 1 1")
        return super().feature_maps(reduce(clips * weights, "n t c h w -> n t 1 h w", "sum"))


def resnet(
    depth: int, *, seq_len: int, num_frame: int = 3, temporal: str = "tsm", fuse_before_net: bool = False
) -> LSNet:
    """LSNet of ResNet-`depth`: D = 512 for depths 18 and 34, 2048 for the others; S = T / num_frame.

    num_frame: F, neighbouring frames per segment. temporal: what links segments: tsm, tam or none. fuse_before_net: all
    frames of the clip are one stack.
    """
    families: dict[str, Callable[..., FrameBackbone]] = {"tsm": tsm.resnet, "tam": tam.resnet, "none": resnet2d.resnet}
    if fuse_before_net and temporal != "none":
        raise UserError(
            f"fuse_before_net leaves one step, and nothing for {temporal} to link: give temporal=none as well"
        )
    inner = families[one_of("temporal", temporal, families)](depth, seq_len=seq_len)
    assert isinstance(inner.net, FrameNet)
    return LSNet(
        inner.net,
        feature_dim=inner.feature_dim,
        seq_len=seq_len,
        frames_per_step=num_frame,
        fuse=fuse_before_net,
    )
