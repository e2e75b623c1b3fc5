"""Every backbone by name. `build_backbone` makes one and loads its weights."""

from __future__ import annotations

import dataclasses
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from backbones import blvnet, c3d, d2st, i3d, lsnet, msn, resnet2d, resnet3d, s3d, tam, tdn, tsm
from backbones import torchvision_video as video
from backbones.backbone import Backbone, FrameBackbone
from backbones.huggingface import video_transformer
from backbones.optional import INSTALL, is_installed
from backbones.own_code import import_from_file, is_own_code
from backbones.timm_models import SHORT, timm_model
from backbones.torchvision_import import torchvision
from backbones.weights import load_weights, load_weights_file
from utils import UserError, unknown_name

__all__ = ["BACKBONES", "Backbone", "FrameBackbone", "build_backbone"]


@dataclasses.dataclass(frozen=True)
class BackboneEntry:
    """How to build a backbone, which torchvision weights are its pretrained ones (None: it has none), its usual clip, which
    package beside torchvision it needs, and the options with which it has a feature of the whole clip, for what would
    average its steps."""

    build: Callable[..., Backbone]
    weights: str | None = None
    frames: int = 8
    package: str = ""
    of_clips: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def lacks(self) -> str:
        """What to do before it can be built, or nothing."""
        return f"needs {INSTALL}" if self.package and not is_installed(self.package) else ""


def of_timm(name: str, size: int | None = None) -> BackboneEntry:
    return BackboneEntry(partial(timm_model, name, size), package="timm")


# ImageNet weights are torchvision's first ones (V1): those the published few-shot figures started from.
RESNET = "ResNet{}_Weights.IMAGENET1K_V1"
INCEPTION = "GoogLeNet_Weights.IMAGENET1K_V1"
MOBILENET = "MobileNet_V2_Weights.IMAGENET1K_V1"

TOKEN = {"token": "class"}


def per_depth(
    name: str, build: Callable[..., Backbone], depths: Sequence[int], weights: str | None = None, frames: int = 8
) -> dict[str, BackboneEntry]:
    """An entry per depth; '{}' stands for it in the name and in the name of the weights."""
    return {
        name.format(depth): BackboneEntry(partial(build, depth), weights and weights.format(depth), frames)
        for depth in depths
    }


BACKBONES: dict[str, BackboneEntry] = {
    **per_depth("resnet{}", resnet2d.resnet, (18, 34, 50, 101, 152), RESNET),
    "inception_v1": BackboneEntry(resnet2d.inception_v1, INCEPTION),
    "mobilenet_v2": BackboneEntry(resnet2d.mobilenet_v2, MOBILENET),
    "conv4": BackboneEntry(resnet2d.conv4),
    **per_depth("tsm_resnet{}", tsm.resnet, (18, 34, 50, 101, 152), RESNET),
    "tsm_mobilenet_v2": BackboneEntry(tsm.mobilenet_v2, MOBILENET),
    **per_depth("tam_resnet{}", tam.resnet, (18, 34, 50, 101, 152), RESNET),
    "tam_inception_v1": BackboneEntry(tam.inception_v1, INCEPTION),
    **per_depth("blvnet_tam{}", blvnet.blvnet_tam, (50, 101, 152), frames=16),
    **per_depth("lsnet_resnet{}", lsnet.resnet, (18, 34, 50, 101, 152), RESNET, frames=24),
    **per_depth("tdn_resnet{}", tdn.resnet, (50, 101), RESNET, frames=40),
    **per_depth("msn_resnet{}", msn.resnet, (50, 101), RESNET, frames=40),
    "i3d": BackboneEntry(i3d.inception, INCEPTION),
    **per_depth("i3d_resnet{}", i3d.resnet, (18, 34, 50, 101, 152), RESNET),
    **per_depth("resnet3d{}", resnet3d.resnet, (10, 18, 34, 50, 101, 152, 200), frames=16),
    **per_depth("resnet2p1d{}", resnet3d.resnet2p1d, (18, 34, 50), frames=16),
    "c3d": BackboneEntry(c3d.c3d, frames=16),
    "conv4_3d": BackboneEntry(c3d.conv4_3d, frames=20),
    "s3d_inception_v1": BackboneEntry(s3d.inception, INCEPTION),
    **per_depth("s3d_resnet{}", s3d.resnet, (18, 34, 50, 101, 152), RESNET),
    "r3d_18": BackboneEntry(video.r3d_18, "R3D_18_Weights.KINETICS400_V1", 16),
    "mc3_18": BackboneEntry(video.mc3_18, "MC3_18_Weights.KINETICS400_V1", 16),
    "r2plus1d_18": BackboneEntry(partial(video.r2plus1d, 18), "R2Plus1D_18_Weights.KINETICS400_V1", 16),
    "r2plus1d_34": BackboneEntry(partial(video.r2plus1d, 34, midplanes="paper"), None, 16),
    "s3d": BackboneEntry(video.s3d, "S3D_Weights.KINETICS400_V1", 128),
    "mvit_v1_b": BackboneEntry(
        partial(video.mvit, "mvit_v1_b"), "MViT_V1_B_Weights.KINETICS400_V1", 16, of_clips=TOKEN
    ),
    "mvit_v2_s": BackboneEntry(
        partial(video.mvit, "mvit_v2_s"), "MViT_V2_S_Weights.KINETICS400_V1", 16, of_clips=TOKEN
    ),
    "swin3d_t": BackboneEntry(partial(video.swin3d, "swin3d_t"), "Swin3D_T_Weights.KINETICS400_V1", 32),
    "swin3d_s": BackboneEntry(partial(video.swin3d, "swin3d_s"), "Swin3D_S_Weights.KINETICS400_V1", 32),
    "swin3d_b": BackboneEntry(partial(video.swin3d, "swin3d_b"), "Swin3D_B_Weights.KINETICS400_V1", 32),
    **{name: of_timm(*long) for name, long in SHORT.items()},
    "d2st_clip_vit_b16": BackboneEntry(partial(d2st.clip_vit, SHORT["clip_vit_b16"][0]), package="timm"),
    "d2st_resnet50": BackboneEntry(d2st.resnet50, RESNET.format(50)),
}


def entry_of(name: str) -> BackboneEntry:
    """The entry of a key of BACKBONES, of 'timm:NAME', 'hf:FOLDER', or 'path/to/file.py:function'."""
    if name in BACKBONES:
        return BACKBONES[name]
    family, _, rest = name.partition(":")
    if family == "timm":
        return of_timm(rest)
    if family == "hf":
        return BackboneEntry(partial(video_transformer, rest), weights=rest, package="transformers")
    if is_own_code(name):
        return BackboneEntry(import_from_file(name, "backbone"))
    raise unknown_name("backbone", name, [*BACKBONES, "timm:NAME", "hf:FOLDER"])


def build_backbone(
    name: str, *, seq_len: int, pretrained: str | bool = False, inflation: str = "mean", **options: Any
) -> Backbone:
    """The backbone `name` for clips of `seq_len` frames.

    name: a key of BACKBONES, 'timm:NAME' for a network of timm, 'hf:FOLDER' for a video transformer in a Hugging Face
    folder, or 'path/to/file.py:function' of the user's own that takes `seq_len`.
    pretrained: False for random weights, True for the table's (downloaded once) or the folder's, the path of a file, or
    torchvision weights by name, such as 'ResNet50_Weights.IMAGENET1K_V2'. inflation: how 2D weights become 3D kernels, see
    weights.load_weights. options: keywords of the backbone's builder.
    """
    entry = entry_of(name)
    if entry.lacks:
        raise UserError(f"--backbone {name} needs {entry.package}, which is not installed: {INSTALL}")
    unknown = options.keys() - inspect.signature(entry.build).parameters.keys()
    if unknown:
        raise UserError(f"backbone {name} has no option {', '.join(sorted(unknown))}; see its builder's docstring")
    backbone = entry.build(seq_len=seq_len, **options)
    if not isinstance(backbone, Backbone):
        raise UserError(
            f"backbone {name} gives a {type(backbone).__name__}: expected a backbones.Backbone, such as FrameBackbone"
        )
    net = getattr(backbone, "net", backbone)
    if pretrained is True:
        if entry.weights is None:
            raise UserError(f"backbone {name} has no pretrained weights: add --no_pretrained or give a file with -pt")
        pretrained = entry.weights
    if pretrained and "_Weights." in pretrained:
        print(load_weights(net, download_weights(pretrained), pretrained, inflation), file=sys.stderr)
    elif pretrained:
        print(load_weights_file(net, pretrained, inflation, backbone.translate), file=sys.stderr)
    return backbone


def download_weights(name: str) -> dict[str, Any]:
    """The state dict of torchvision's weights `name`, from its cache or from the network."""
    try:
        return torchvision.models.get_weight(name).get_state_dict(progress=True, check_hash=True)
    except (ValueError, KeyError) as error:
        raise UserError(f"torchvision has no weights '{name}': give names as it has them, or a file") from error
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"could not download {name} ({error}); give a local file with --pretrained_backbone, or start from random "
            "weights with --no_pretrained"
        ) from error
