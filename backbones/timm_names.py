"""Weights of image networks under the names of other packages, renamed as timm names its own.

timm converts OpenAI's, the DINO authors' and big_vision's names itself; here are those of transformers (CLIP, SigLIP,
DINOv2, DINOv3) and of the EfficientNets of lukemelas and RangiLyu.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor, nn

from utils import UserError

# What a network is called inside what it was trained in.
PREFIXES = r"^((module|backbone|net|base_model|_orig_mod)\.)+"

CLIP = (
    (r"^vision_model\.", ""),
    (r"^embeddings\.class_embedding$", "cls_token"),
    (r"^embeddings\.patch_embedding\.", "patch_embed.proj."),
    (r"^embeddings\.position_embedding\.weight$", "pos_embed"),
    (r"^pre_layrnorm\.", "norm_pre."),
    (r"^post_layernorm\.", "norm."),
    (r"^encoder\.layers\.", "blocks."),
    (r"\.layer_norm(\d)\.", r".norm\1."),
    (r"\.self_attn\.out_proj\.", ".attn.proj."),
    (r"\.self_attn\.(q|k|v)_proj\.", r".attn.\1."),
    (r"^visual_projection\.", "head."),
    (r"^head\.probe$", "attn_pool.latent"),
    (r"^head\.attention\.in_proj_(weight|bias)$", r"attn_pool.in.\1"),
    (r"^head\.attention\.out_proj\.", "attn_pool.proj."),
    (r"^head\.layernorm\.", "attn_pool.norm."),
    (r"^head\.mlp\.", "attn_pool.mlp."),
)
DINO = (
    (r"^embeddings\.cls_token$", "cls_token"),
    (r"^embeddings\.register_tokens$", "reg_token"),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.patch_embeddings\.(projection\.)?", "patch_embed.proj."),
    (r"^(encoder\.|model\.)?layer\.", "blocks."),
    (r"^layernorm\.", "norm."),
    (r"\.attention\.attention\.(q|k|v)\w+\.", r".attn.\1."),
    (r"\.attention\.output\.dense\.", ".attn.proj."),
    (r"\.attention\.(q|k|v)_proj\.", r".attn.\1."),
    (r"\.attention\.o_proj\.", ".attn.proj."),
    (r"\.layer_scale(\d)\.lambda1$", r".ls\1.gamma"),
    (r"\.mlp\.up_proj\.", ".mlp.fc1."),
    (r"\.mlp\.down_proj\.", ".mlp.fc2."),
    (r"\.mlp\.weights_in\.", ".mlp.fc1."),
    (r"\.mlp\.weights_out\.", ".mlp.fc2."),
)
EFFICIENTNET = (
    (r"^_conv_stem\.", "conv_stem."),
    (r"^_bn0\.", "bn1."),
    (r"^_conv_head\.", "conv_head."),
    (r"^_bn1\.", "bn2."),
    (r"^_fc\.", "classifier."),
)
# Layers of its blocks, of those that do not widen first and of those that do.
SQUEEZE = {"_depthwise_conv": "conv_dw", "_se_reduce": "se.conv_reduce", "_se_expand": "se.conv_expand"}
PLAIN = {**SQUEEZE, "_project_conv": "conv_pw", "_bn1": "bn1", "_bn2": "bn2"}
EXPANDING = {
    **SQUEEZE, "_expand_conv": "conv_pw", "_bn0": "bn1", "_bn1": "bn2", "_project_conv": "conv_pwl", "_bn2": "bn3",
}  # fmt: skip


def timm_names(state: dict[str, Tensor], net: nn.Module) -> dict[str, Tensor]:
    """`state` under the names of `net`, as far as it is in transformers' or an EfficientNet's; otherwise without what it
    was trained in."""
    own = net.state_dict()
    state = {re.sub(PREFIXES, "", name): tensor for name, tensor in state.items()}
    if any(re.match(r"(vision_model\.)?embeddings\.patch_embedding\.", name) for name in state):
        return from_clip(state)
    if "embeddings.cls_token" in state:
        return from_dino(state, own)
    if "_conv_stem.weight" in state:
        return from_efficientnet(state, net)
    if "storage_tokens" in state:
        return without_zero_biases(state, own)
    return state


def renamed(state: dict[str, Tensor], table: tuple[tuple[str, str], ...]) -> dict[str, Tensor]:
    result = {}
    for name, tensor in state.items():
        for pattern, replacement in table:
            name = re.sub(pattern, replacement, name)
        result[name] = tensor
    return result


def with_joined_attention(state: dict[str, Tensor], part: str = r"blocks\.\d+\.attn") -> dict[str, Tensor]:
    """Query, key and value (D, D) of a block as one map (3D, D). Where only some have a bias, the others' is zero."""
    joined = {
        name: tensor for name, tensor in state.items() if not re.fullmatch(rf"{part}\.[qkv]\.(weight|bias)", name)
    }
    for name in state:
        if match := re.fullmatch(rf"({part})\.([qkv])\.(weight|bias)", name):
            like = state[name]
            parts = [state.get(f"{match[1]}.{key}.{match[3]}", torch.zeros_like(like)) for key in "qkv"]
            joined[f"{match[1]}.qkv.{match[3]}"] = torch.cat(parts)
    return joined


def from_clip(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The image tower of transformers' CLIPModel, CLIPVisionModel, SiglipModel or SiglipVisionModel."""
    if any(name.startswith("vision_model.") for name in state):
        state = {name: state[name] for name in state if name.startswith(("vision_model.", "visual_projection."))}
    state = with_joined_attention(renamed(state, CLIP))
    if "cls_token" in state:
        state["cls_token"] = state["cls_token"][None, None]
    state["pos_embed"] = state["pos_embed"][None]
    for kind in ("weight", "bias"):  # SigLIP's attention pooling: its query apart from its keys and values
        if f"attn_pool.in.{kind}" in state:
            query, key, value = state.pop(f"attn_pool.in.{kind}").chunk(3)
            state[f"attn_pool.q.{kind}"] = query
            state[f"attn_pool.kv.{kind}"] = torch.cat([key, value])
    return {name: tensor for name, tensor in state.items() if not name.endswith("position_ids")}


def from_dino(state: dict[str, Tensor], own: dict[str, Tensor]) -> dict[str, Tensor]:
    """transformers' Dinov2Model, Dinov2WithRegistersModel or DINOv3ViTModel."""
    state = renamed(state, DINO)
    state.pop("embeddings.mask_token", None)
    if "blocks.0.gamma_1" in own:
        state = renamed(state, ((r"\.ls(\d)\.gamma$", r".gamma_\1"),))
        state = with_joined_attention(state)
    else:
        state = with_joined_attention(state)
        if "reg_token" in state:  # timm adds positions to patches only: the class token's goes into the token
            state["cls_token"] = state["cls_token"] + state["pos_embed"][:, :1]
            state["pos_embed"] = state["pos_embed"][:, 1:]
    return without_zero_biases(state, own)


def without_zero_biases(state: dict[str, Tensor], own: dict[str, Tensor]) -> dict[str, Tensor]:
    """DINOv3's distilled networks have biases in their attention that are all zero, and timm leaves them out."""
    masks = {name: state[name] for name in state if name.endswith(".qkv.bias_mask")}
    if any(name.endswith(".q_bias") for name in own):
        return state
    result = {}
    for name, tensor in state.items():
        if name.endswith(".qkv.bias") and name not in own:
            if (tensor * masks.get(f"{name}_mask", torch.ones(()))).nan_to_num().any():
                raise UserError(
                    f"the weights have biases in {name}, which this network lacks: give --backbone timm:NAME with NAME "
                    "ending in _qkvb"
                )
            continue
        result[name] = tensor
    return result


def from_efficientnet(state: dict[str, Tensor], net: nn.Module) -> dict[str, Tensor]:
    """Blocks in one row, named as in the EfficientNets of lukemelas, in timm's stages.

    That code adds 0.001 to the variances of batch norms, and most of timm's networks 0.00001: the stored variances take up
    the difference, so that outputs stay what they were.
    """
    stages = [name for name in net.state_dict() if name.startswith("blocks.")]
    places = list(dict.fromkeys(".".join(name.split(".")[:3]) for name in stages))
    expanding = {name.split(".")[1] for name in state if name.endswith("._expand_conv.weight")}

    def in_stages(name: str) -> str:
        _, number, *inner = name.split(".")
        if int(number) >= len(places):
            return name
        table = EXPANDING if number in expanding else PLAIN
        return ".".join([places[int(number)], table.get(inner[0], inner[0].lstrip("_")), *inner[1:]])

    named = {in_stages(name) if name.startswith("_blocks.") else name: tensor for name, tensor in state.items()}
    named = renamed(named, EFFICIENTNET)
    for name, module in net.named_modules():
        if isinstance(module, nn.BatchNorm2d) and f"{name}.running_var" in named:
            named[f"{name}.running_var"] = named[f"{name}.running_var"] + (1e-3 - module.eps)
    return named
