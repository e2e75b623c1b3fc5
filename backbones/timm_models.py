"""Image networks of timm over the frames of a clip: CLIP (Radford et al., ICML 2021), DINOv2 (Oquab et al., TMLR 2024),
DINOv3 (Simeoni et al., 2025), SigLIP (Zhai et al., ICCV 2023), and every other one that it names.

Letters: N clips, T frames, D width, L tokens, h w cells of a map or patches of a frame.
"""

from __future__ import annotations

import copy
import math
import re
import sys
from contextlib import redirect_stdout
from io import StringIO
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from backbones.backbone import Backbone, one_of
from backbones.optional import imported
from backbones.timm_names import timm_names
from backbones.weight_files import Activation, WeightsFile
from clips.transforms import InputSpec
from utils import UserError, unknown_name

# Short names: timm's name of a network with its weights', and the size of frames where it is not timm's.
SHORT: dict[str, tuple[str, int | None]] = {
    "clip_vit_b16": ("vit_base_patch16_clip_quickgelu_224.openai", None),
    "clip_vit_l14": ("vit_large_patch14_clip_quickgelu_224.openai", None),
    "clip_rn50": ("resnet50_clip.openai", None),
    # 518 pixels are five times the work of 224, with which its authors train for most of the time.
    "dinov2_vit_s14": ("vit_small_patch14_dinov2.lvd142m", 224),
    "dinov2_vit_b14": ("vit_base_patch14_dinov2.lvd142m", 224),
    "dinov3_vit_s16": ("vit_small_patch16_dinov3.lvd1689m", None),
    "dinov3_vit_b16": ("vit_base_patch16_dinov3.lvd1689m", None),
    "siglip_b16": ("vit_base_patch16_siglip_224.webli", None),
}
POOLS = ("own", "cls", "mean", "proj")
ACTIVATIONS = ("", "quick_gelu", "gelu")


class ImageModel(Backbone):
    """A timm network, every frame alone: S = T.

    Maps are its last ones, or its patch tokens after the last norm. A transformer takes frames of any multiple of its
    patches, with positions interpolated, where timm lets it.
    """

    net: Any

    def __init__(
        self,
        net: nn.Module,
        *,
        name: str,
        pool: str,
        feature_dim: int,
        input_spec: InputSpec,
        seq_len: int,
        fixed: bool,
        patch: int,
        activation: Activation,
        activation_given: bool,
    ) -> None:
        """fixed: frames must be of the network's own size. patch: their sides are multiples of it. activation: of a CLIP
        transformer, or "" where nothing needs to be known; activation_given: by the user, not by the network's name."""
        super().__init__(feature_dim=feature_dim, input_spec=input_spec, seq_len=seq_len)
        self.net = net
        self.name, self.pool, self.fixed, self.patch = name, pool, fixed, patch
        self.activation, self.activation_given = activation, activation_given

    def features(self, clips: Tensor) -> Tensor:
        if self.pool == "mean":
            return super().features(clips)
        found = self.tokens_of(clips)
        pooled = (
            self.normed(found[:, 0])
            if self.pool == "cls"
            else self.net.forward_head(found, pre_logits=self.pool == "own")
        )
        return rearrange(pooled, "(n t) d -> n t d", n=len(clips))

    def feature_maps(self, clips: Tensor) -> Tensor:
        if self.map_width != self.feature_dim:
            raise UserError(
                f"features of {self.name} with pool={self.pool} are {self.feature_dim} wide and its maps {self.map_width}: "
                "a method that reads maps needs --backbone_options pool=mean"
            )
        found = self.tokens_of(clips)
        if found.ndim == 3:
            tokens = self.normed(found[:, getattr(self.net, "num_prefix_tokens", 0) :])
            if self.pool == "proj":
                tokens = self.net.head(tokens)
            rows = round(math.sqrt(tokens.shape[1] * clips.shape[-2] / clips.shape[-1]))
            return rearrange(tokens, "(n t) (h w) d -> n d t h w", n=len(clips), h=rows)
        if getattr(self.net, "output_fmt", "NCHW") == "NHWC":
            found = rearrange(found, "b h w d -> b d h w")
        return rearrange(self.normed(found), "(n t) d h w -> n d t h w", n=len(clips))

    def tokens_of(self, clips: Tensor) -> Tensor:
        """What the network makes of every frame before it pools: tokens (N T, L, D), or maps as it has them."""
        found: Tensor = self.net.forward_features(self.frames_of(clips))
        return found

    @property
    def map_width(self) -> int:
        transformer_projects = self.pool == "proj" and isinstance(self.net.head, nn.Linear)
        return self.feature_dim if transformer_projects else int(self.net.num_features)

    def normed(self, found: Tensor) -> Tensor:
        """Tokens (..., D) or maps (B, D, h, w) after the norm that some networks have only behind their pooling."""
        norm = getattr(self.net, "fc_norm", None) or getattr(getattr(self.net, "head", None), "norm", None)
        return found if norm is None else norm(found)

    def frames_of(self, clips: Tensor) -> Tensor:
        height, width = clips.shape[-2:]
        size, patch = self.input_spec.size, self.patch
        if self.fixed and (height, width) != (size, size):
            raise UserError(
                f"{self.name} takes frames of {size}x{size} pixels, found {height}x{width}: give --img_size {size}"
            )
        if height % patch or width % patch:
            raise UserError(
                f"{self.name} takes frames whose sides are multiples of its patches of {patch} pixels, found "
                f"{height}x{width}: give --img_size {max(1, round(height / patch)) * patch}"
            )
        return rearrange(clips, "n t c h w -> (n t) c h w")

    def translate(self, file: WeightsFile) -> dict[str, Tensor]:
        """See `Backbone.translate`. Raises UserError where the file's network has, or may have, another activation."""
        self.check_activation(file)
        if file.path.suffix == ".npz":
            return self.from_big_vision(file)
        state = timm_names(file.state, self.net)
        convert = getattr(sys.modules[type(self.net).__module__], "checkpoint_filter_fn", None)
        if convert is None:
            return state
        with redirect_stdout(StringIO()):  # one of these functions prints what it leaves out
            converted: dict[str, Tensor] = convert(state, self.net)
        return converted

    def check_activation(self, file: WeightsFile) -> None:
        if not self.activation:
            return
        expected, found = self.activation, file.activation or saved_activation(file.settings)
        if not found and not self.activation_given:
            raise UserError(
                f"{file.path} does not say whether its network has QuickGELU (OpenAI's weights) or GELU (LAION's), and a wrong "
                "guess costs accuracy: add --backbone_options activation=quick_gelu or activation=gelu"
            )
        if found and found != expected:
            raise UserError(
                f"{file.path} is of a network with {found}, expected {expected}: add --backbone_options activation={found}"
            )

    def from_big_vision(self, file: WeightsFile) -> dict[str, Tensor]:
        """JAX's arrays as timm reads them into a copy of the network. What was not in the file stays not-a-number there."""
        if not hasattr(self.net, "load_pretrained"):
            raise UserError(f"{file.path} holds arrays of JAX, which {self.name} cannot take: give weights for PyTorch")
        net = copy.deepcopy(self.net)
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.fill_(torch.nan)
        try:
            net.load_pretrained(str(file.path))
        except (KeyError, ValueError, RuntimeError) as error:
            raise UserError(
                f"{file.path} does not fit {self.name} ({error}); give weights of the same --backbone"
            ) from error
        return {name: tensor for name, tensor in net.state_dict().items() if not tensor.isnan().any()}


def timm_model(
    name: str,
    size: int | None,
    kind: type[ImageModel] = ImageModel,
    /,
    *,
    seq_len: int,
    pool: str = "own",
    activation: Activation = "",
) -> ImageModel:
    """timm's network `name` for frames of `size` pixels (None: its own): D is its width, S = T. kind: what it becomes.

    pool: what is made of a frame. own: what timm's network gives to its classifier (class token, mean or attention
    pooling); cls: the class token; mean: the mean of maps or patch tokens; proj: the projection of CLIP, in the space of
    its text (D = 512 of ViT-B, 768 of ViT-L, 1024 of RN50; SigLIP's own pooling is there already).
    activation: quick_gelu or gelu in the blocks of a CLIP transformer; unset: as `name` says.
    """
    timm = imported("timm", f"--backbone {name}")
    one_of("pool", pool, POOLS)
    one_of("activation", activation, ACTIVATIONS)
    if not timm.is_model(name):
        raise unknown_name("network of timm", name, similar(timm, name))
    if activation and not activation_of(name):
        raise UserError(f"{name} has no activation to choose, which is for the transformers of CLIP: leave it out")
    projects = pool == "proj" and "siglip" not in name
    arguments: dict[str, Any] = {"num_classes": projection_width(timm, name) if projects else 0}
    if activation:
        arguments["act_layer"] = activation
    if "siglip" in name:
        arguments["act_layer"] = "gelu_tanh"  # as it was trained in JAX; timm's exact GELU differs in the fourth digit
    net, resizes = created(timm, name, arguments)
    if pool == "cls" and getattr(net, "cls_token", None) is None:
        raise UserError(f"{name} has no class token: give --backbone_options pool=own or pool=mean")
    if projects and isinstance(net.head, nn.Linear):
        net.head = nn.Linear(net.head.in_features, net.head.out_features, bias=False)  # CLIP's has no bias, timm's has
    if pool in ("cls", "mean"):
        without_own_pool(net)
    cfg, embedding = net.pretrained_cfg, getattr(net, "patch_embed", None)
    return kind(
        net,
        name=name,
        pool=pool,
        feature_dim=width_of(net, pool, arguments["num_classes"]),
        input_spec=InputSpec(
            size=size or cfg["input_size"][-1],
            mean=tuple(cfg["mean"]),
            std=tuple(cfg["std"]),
            interpolation="bicubic" if cfg["interpolation"] == "bicubic" else "bilinear",
        ),
        seq_len=seq_len,
        fixed=bool(cfg.get("fixed_input_size")) and not resizes,
        patch=embedding.patch_size[0] if isinstance(embedding, timm.layers.PatchEmbed) else 1,
        activation=activation or activation_of(name),
        activation_given=bool(activation),
    )


def activation_of(name: str) -> Activation:
    """What timm's name of a CLIP transformer says; "" for any other network."""
    if "vit" not in name or "_clip_" not in name:
        return ""
    return "quick_gelu" if "quickgelu" in name else "gelu"


def saved_activation(settings: dict[str, Any]) -> Activation:
    """That of the backbone in a checkpoint of this library; "" for any other file."""
    options = settings.get("backbone_options") or {}
    backbone = str(settings.get("backbone")).removeprefix("d2st_")  # which is that network with adapters
    name, _ = SHORT.get(backbone, (backbone, None))
    return options.get("activation") or activation_of(name)


def similar(timm: Any, name: str) -> list[str]:
    """Names of timm that share their first part with `name`: it has more than a thousand."""
    first = re.split(r"[_.\d]", name)[0]
    return timm.list_models(f"{first}*") or timm.list_models("*clip*") + timm.list_models("*dino*")


def created(timm: Any, name: str, arguments: dict[str, Any]) -> tuple[Any, bool]:
    """The network with random weights, and whether it fits its positions to frames of any size, as timm's attention
    pooling over maps does by itself."""
    try:
        return timm.create_model(name, pretrained=False, dynamic_img_size=True, **arguments), True
    except TypeError as error:
        if "dynamic_img_size" not in str(error):
            raise
    net = timm.create_model(name, pretrained=False, **arguments)
    return net, isinstance(getattr(net, "head", None), timm.layers.AttentionPool2d)


def projection_width(timm: Any, name: str) -> int:
    """How wide the projection of a CLIP network is: the "classes" of its weights that were not fine-tuned."""
    base, _, tag = name.partition(".")
    tags = [name] if tag else timm.list_pretrained(f"{base}.*")
    widths = [timm.get_pretrained_cfg(full).num_classes for full in tags if "_ft_" not in full]
    if "clip" not in base or not widths or not widths[0]:
        raise UserError(f"{name} has no projection, which is for CLIP: give --backbone_options pool=own, cls or mean")
    return int(widths[0])


def without_own_pool(net: Any) -> None:
    """Takes the attention pooling away, which would be left without a gradient."""
    if getattr(net, "attn_pool", None) is not None:
        net.attn_pool = None
    if not hasattr(net, "head") or hasattr(net.head, "norm"):
        return
    net.head = nn.Identity()


def width_of(net: Any, pool: str, projection: int) -> int:
    if projection:
        return projection
    return int(net.head_hidden_size if pool in ("own", "proj") else net.num_features)
