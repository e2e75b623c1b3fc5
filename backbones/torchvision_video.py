"""The video networks of torchvision, up to their last maps, with the inputs that their Kinetics-400 weights want.

R3D, MC3, R(2+1)D (Tran et al., CVPR 2018), S3D (Xie et al., ECCV 2018), MViT (Fan et al., ICCV 2021; Li et al., CVPR
2022) and Video Swin (Liu et al., CVPR 2022).

Letters: N clips, T frames, S steps, D width, h w cells of a map.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from einops import rearrange
from torch import Tensor, nn

from backbones.backbone import Backbone, ClipBackbone, one_of
from backbones.resnet2d import STAGES, layers_of
from backbones.torchvision_import import torchvision
from clips.transforms import InputSpec
from utils import UserError

video = torchvision.models.video
MEAN, STD = (0.43216, 0.394666, 0.37645), (0.22803, 0.22145, 0.216989)


# ---------------------------------------------------------------------------------------------------------------------
# Convolutional networks


def r3d_18(*, seq_len: int) -> ClipBackbone:
    """ResNet-18 of 3x3x3 convolutions: D = 512, S = T/8, rounded up."""
    return video_resnet(video.r3d_18(), seq_len, halvings=3)


def mc3_18(*, seq_len: int) -> ClipBackbone:
    """ResNet-18 with 3x3x3 convolutions in its first stage and 1x3x3 after: D = 512, S = T."""
    return video_resnet(video.mc3_18(), seq_len, halvings=0)


class Conv2Plus1D(torchvision.models.video.resnet.Conv2Plus1D):
    """The factored convolution with the paper's width between its halves: it has the parameters of the 3x3x3 one."""

    def __init__(self, in_planes: int, out_planes: int, midplanes: int, stride: int = 1, padding: int = 1) -> None:
        midplanes = 27 * in_planes * out_planes // (9 * in_planes + 3 * out_planes)
        super().__init__(in_planes, out_planes, midplanes, stride, padding)


def r2plus1d(depth: int, *, seq_len: int, midplanes: str = "torchvision") -> ClipBackbone:
    """R(2+1)D of depth 18 or 34: D = 512, S = T/8, rounded up.

    midplanes: channels between the halves of a convolution. 'torchvision' computes them once per block, as its weights
    need; 'paper' for every convolution.
    """
    convolutions = {"torchvision": video.resnet.Conv2Plus1D, "paper": Conv2Plus1D}
    conv = convolutions[one_of("midplanes", midplanes, convolutions)]
    net = video.resnet.VideoResNet(video.resnet.BasicBlock, [conv] * 4, STAGES[depth], video.resnet.R2Plus1dStem)
    return video_resnet(net, seq_len, halvings=3)


def video_resnet(net: nn.Module, seq_len: int, halvings: int) -> ClipBackbone:
    return ClipBackbone(
        nn.Sequential(OrderedDict(layers_of(net))),
        feature_dim=512,
        input_spec=InputSpec(size=112, mean=MEAN, std=STD, frames=16),
        seq_len=seq_len,
        time_path=[(3, 2, 1)] * halvings,
    )


def s3d(*, seq_len: int, steps: str = "single") -> ClipBackbone:
    """S3D: D = 1024, S = T/8; 5 frames at least. Its weights were trained on clips of 128 frames.

    steps: 'pairs' averages neighbouring steps, S - 1 of them, whose mean torchvision's own classifier reads: of frames of
    224 pixels, with clips of 16 frames at least.
    """
    layers = OrderedDict(features=video.s3d().features)
    time_path = [(7, 2, 3), (3, 2, 1), (2, 2, 0)]
    if one_of("steps", steps, ("single", "pairs")) == "pairs":
        layers["pairs"] = nn.AvgPool3d((2, 1, 1), stride=1)
        time_path.append((2, 1, 0))
    return ClipBackbone(
        nn.Sequential(layers),
        feature_dim=1024,
        input_spec=InputSpec(mean=MEAN, std=STD, frames=128),
        seq_len=seq_len,
        time_path=time_path,
    )


# ---------------------------------------------------------------------------------------------------------------------
# Transformers


class MViT(Backbone):
    """MViT: S = T/2, means of the patch tokens of each step; or S = 1, the class token, which its own classifier reads.

    Its positions are learned for one size of clip, so T and H = W are those that `net` was built for.
    """

    net: Any

    def __init__(
        self, net: nn.Module, *, feature_dim: int, input_spec: InputSpec, seq_len: int, token: str = "patches"
    ) -> None:
        super().__init__(feature_dim=feature_dim, input_spec=input_spec, seq_len=seq_len)
        self.net = net
        self.net.head = nn.Identity()
        self.reads_class_token = one_of("token", token, ("patches", "class")) == "class"
        self.num_steps(seq_len)

    def num_steps(self, seq_len: int) -> int:
        frames = self.input_spec.frames
        if seq_len != frames:
            raise UserError(
                f"MViT's positions are for clips of {frames} frames, found {seq_len}: give --seq_len {frames}"
            )
        return 1 if self.reads_class_token else frames // 2

    def features(self, clips: Tensor) -> Tensor:
        if not self.reads_class_token:
            return super().features(clips)
        tokens, _ = self.tokens(clips)
        return tokens[:, :1]

    def feature_maps(self, clips: Tensor) -> Tensor:
        if self.reads_class_token:
            raise UserError("the class token of an MViT has no map: leave --backbone_options token=class out")
        tokens, (s, h, w) = self.tokens(clips)
        return rearrange(tokens[:, 1:], "n (s h w) d -> n d s h w", s=s, h=h, w=w)

    def tokens(self, clips: Tensor) -> tuple[Tensor, tuple[int, ...]]:
        """Clips (N, T, 3, H, W) -> the class token and those of patches (N, 1 + s*h*w, D), and (s, h, w)."""
        spec = self.input_spec
        if clips.shape[1:] != (spec.frames, 3, spec.size, spec.size):
            raise UserError(
                f"MViT's positions are for {spec.frames} frames of {spec.size}x{spec.size} pixels, found clips of "
                f"{tuple(clips.shape[1:])}: give --seq_len {spec.frames} and --img_size {spec.size}"
            )
        patches = self.net.conv_proj(rearrange(clips, "n t c h w -> n c t h w"))
        tokens = self.net.pos_encoding(rearrange(patches, "n d s h w -> n (s h w) d"))
        grid = tuple(patches.shape[2:])
        for block in self.net.blocks:
            tokens, grid = block(tokens, grid)
        return self.net.norm(tokens), grid


def mvit(name: str, *, seq_len: int, token: str = "patches") -> MViT:
    """torchvision's mvit_v1_b or mvit_v2_s: D = 768, for 16 frames of 224 pixels.

    token: 'patches' gives a feature for each of 8 steps, as heads that compare steps need; 'class' the one that
    torchvision's classifier reads of a clip.
    """
    spec = InputSpec(mean=(0.45, 0.45, 0.45), std=(0.225, 0.225, 0.225), frames=16)
    return MViT(getattr(video, name)(), feature_dim=768, input_spec=spec, seq_len=seq_len, token=token)


class VideoSwin(Backbone):
    """Video Swin transformer: S = T/2, rounded up."""

    net: Any

    def __init__(self, net: nn.Module, *, feature_dim: int, input_spec: InputSpec, seq_len: int) -> None:
        super().__init__(feature_dim=feature_dim, input_spec=input_spec, seq_len=seq_len)
        self.net = net
        self.net.head = nn.Identity()

    def num_steps(self, seq_len: int) -> int:
        return (seq_len + 1) // 2

    def feature_maps(self, clips: Tensor) -> Tensor:
        patches = self.net.pos_drop(self.net.patch_embed(rearrange(clips, "n t c h w -> n c t h w")))
        return rearrange(self.net.norm(self.net.features(patches)), "n s h w d -> n d s h w")


def swin3d(name: str, *, seq_len: int) -> VideoSwin:
    """torchvision's swin3d_t, swin3d_s (D = 768) or swin3d_b (D = 1024)."""
    net = getattr(video, name)()
    return VideoSwin(net, feature_dim=net.num_features, input_spec=InputSpec(frames=32), seq_len=seq_len)
