"""Video transformers in a Hugging Face folder, whose config.json says which one it is: VideoMAE (Tong et al., NeurIPS
2022; v2: Wang et al., CVPR 2023), V-JEPA 2 (Assran et al., 2025), TimeSformer (Bertasius et al., ICML 2021), ViViT (Arnab
et al., ICCV 2021), X-CLIP (Ni et al., ECCV 2022).

Letters: N clips, T frames, S steps, D width, h w patches of a frame.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from torch import Tensor, nn

from backbones.backbone import Backbone
from backbones.optional import imported
from backbones.timm_names import PREFIXES
from backbones.weight_files import WeightsFile
from clips.transforms import IMAGENET_MEAN, IMAGENET_STD, InputSpec, Interpolation
from utils import UserError, read_json, unknown_name

Triple = tuple[float, float, float]
PILLOWS_BICUBIC = 3


class VideoTransformer(Backbone):
    """A transformer over the patches of a whole clip; steps are the mean of their patches unless `pool` says otherwise.

    `net` holds the parts of transformers' network that are used. Positions that were learned for another number of frames
    or pixels are interpolated, except where the network does that itself (TimeSformer) or needs none (V-JEPA 2).
    """

    tubelet: int = 1
    """frames of a step"""
    pools: tuple[str, ...] = ("mean", "cls")
    """what may be made of patches, the usual first; cls is one step, the clip's class token"""
    normalisation: tuple[Triple, Triple, float] = (IMAGENET_MEAN, IMAGENET_STD, 1.0)
    """mean, std and range of pixels where the folder has no preprocessor_config.json"""
    net: Any

    def __init__(self, config: Any, folder: Path, *, seq_len: int, pool: str = "") -> None:
        self.config, self.folder = config, folder
        self.pool = pool or self.pools[0]
        if self.pool not in self.pools:
            raise unknown_name(f"pool of {config.model_type}", self.pool, self.pools)
        spec = input_spec_of(folder, *self.normalisation, size=self.trained_size, frames=self.trained_frames)
        super().__init__(feature_dim=self.width, input_spec=spec, seq_len=seq_len)
        self.net = self.parts(self.whole())
        self.num_steps(seq_len)

    @property
    def width(self) -> int:
        return int(self.config.hidden_size)

    @property
    def trained_size(self) -> int:
        return int(self.config.image_size)

    @property
    def trained_frames(self) -> int:
        return int(self.config.num_frames)

    @property
    def patch(self) -> int:
        return int(self.config.patch_size)

    def whole(self) -> nn.Module:
        """transformers' network with random weights."""
        raise NotImplementedError

    def parts(self, whole: Any) -> nn.ModuleDict:
        """What is used of it."""
        raise NotImplementedError

    def tokens(self, clips: Tensor) -> tuple[Tensor | None, Tensor]:
        """Clips -> class token (N, D), where there is one, and patch tokens (N, S, h*w, D), after the last norm."""
        raise NotImplementedError

    def num_steps(self, seq_len: int) -> int:
        if seq_len < self.tubelet or seq_len % self.tubelet:
            raise UserError(
                f"{self.config.model_type} takes frames by {self.tubelet}, found {seq_len}: give a --seq_len of a multiple "
                f"of {self.tubelet}"
            )
        return 1 if self.pool == "cls" else seq_len // self.tubelet

    def features(self, clips: Tensor) -> Tensor:
        self.check_size(clips)
        class_token, patches = self.tokens(clips)
        if self.pool == "cls":
            assert class_token is not None
            return rearrange(class_token, "n d -> n 1 d")
        return reduce(patches, "n s p d -> n s d", "mean")

    def feature_maps(self, clips: Tensor) -> Tensor:
        if self.pool != "mean":
            raise UserError(
                f"pool={self.pool} of {self.config.model_type} has no maps: a method that reads maps needs "
                "--backbone_options pool=mean"
            )
        self.check_size(clips)
        return rearrange(self.tokens(clips)[1], "n s (h w) d -> n d s h w", h=clips.shape[-2] // self.patch)

    def check_size(self, clips: Tensor) -> None:
        height, width = clips.shape[-2:]
        if height % self.patch or width % self.patch:
            raise UserError(
                f"{self.config.model_type} takes frames whose sides are multiples of its patches of {self.patch} pixels, found "
                f"{height}x{width}: give --img_size {max(1, round(height / self.patch)) * self.patch}"
            )

    def grid(self, clips: Tensor) -> tuple[int, int, int]:
        """Steps, rows and columns of the patches of clips."""
        return clips.shape[1] // self.tubelet, clips.shape[-2] // self.patch, clips.shape[-1] // self.patch

    @property
    def trained_grid(self) -> tuple[int, int, int]:
        side = self.trained_size // self.patch
        return self.trained_frames // self.tubelet, side, side

    def translate(self, file: WeightsFile) -> dict[str, Tensor]:
        """See `Backbone.translate`. transformers loads what is in the folder, as it renames what it has saved itself."""
        bare = {re.sub(PREFIXES, "", name): tensor for name, tensor in file.state.items()}
        if self.net.state_dict().keys() <= bare.keys():  # a checkpoint of this library
            return bare
        whole = self.whole()
        if self.has_authors_names(bare):
            state = self.authors_names(bare)
        elif file.path.resolve().parent == self.folder.resolve():
            state = self.from_folder(type(whole))
        else:
            raise UserError(
                f"{file.path} holds other names than --backbone hf:{self.folder} has: put it into that folder as "
                "model.safetensors or pytorch_model.bin, beside its config.json, and leave -pt out"
            )
        names = {id(tensor): name for name, tensor in whole.state_dict(keep_vars=True).items()}
        own = self.parts(whole).state_dict(keep_vars=True)
        return {name: state[names[id(tensor)]] for name, tensor in own.items() if names[id(tensor)] in state}

    def from_folder(self, kind: Any) -> dict[str, Tensor]:
        """What transformers finds in the folder, under its own names."""
        try:
            whole, info = kind.from_pretrained(
                self.folder, config=self.config, local_files_only=True, output_loading_info=True, dtype=torch.float32
            )
        except (OSError, ValueError, RuntimeError) as error:
            reason = f"{error}".partition("\n")[0]
            raise UserError(
                f"{self.folder} holds no weights of its config.json ({reason}); copy the folder again"
            ) from error
        return {name: tensor for name, tensor in whole.state_dict().items() if name not in set(info["missing_keys"])}

    def has_authors_names(self, state: dict[str, Tensor]) -> bool:
        return False

    def authors_names(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Weights as the network's authors name them under transformers' names."""
        raise NotImplementedError


def interpolated(positions: Tensor, trained: tuple[int, int, int], grid: tuple[int, int, int]) -> Tensor:
    """Positions (1, S*h*w, D) of the grid they were trained on at the points of another: bicubic over space, then linear
    over time."""
    if trained == grid:
        return positions
    steps, rows, _ = trained
    maps = rearrange(positions, "1 (s h w) d -> s d h w", s=steps, h=rows)
    if trained[1:] != grid[1:]:
        maps = F.interpolate(maps, size=grid[1:], mode="bicubic", antialias=True)
    lines = rearrange(maps, "s d h w -> (h w) d s")
    if steps != grid[0]:
        lines = F.interpolate(lines, size=grid[0], mode="linear")
    return rearrange(lines, "p d s -> 1 (s p) d")


# ---------------------------------------------------------------------------------------------------------------------
# The families


class VideoMAE(VideoTransformer):
    """S = T/2. A network that was fine-tuned has its last norm behind the mean over patches, and so has this."""

    pools = ("mean",)

    def __init__(self, config: Any, folder: Path, **options: Any) -> None:
        self.tubelet = int(config.tubelet_size)
        is_classifier = any("Classification" in name for name in config.architectures or ())
        self.norm_behind_mean = bool(config.use_mean_pooling) and is_classifier
        super().__init__(config, folder, **options)

    def whole(self) -> nn.Module:
        name = "VideoMAEForVideoClassification" if self.norm_behind_mean else "VideoMAEModel"
        return made(name, self.config)

    def parts(self, whole: Any) -> nn.ModuleDict:
        body = getattr(whole, "videomae", whole)
        norm = whole.fc_norm if self.norm_behind_mean else body.layernorm
        # Its positions are no parameter: waves of a token's number, which a file does not hold.
        self.waves = body.embeddings.position_embeddings
        patches = body.embeddings.patch_embeddings.projection
        return nn.ModuleDict({"patches": patches, "layers": body.encoder.layer, "norm": norm or nn.Identity()})

    def tokens(self, clips: Tensor) -> tuple[Tensor | None, Tensor]:
        grid = self.grid(clips)
        tokens = rearrange(self.net["patches"](rearrange(clips, "n t c h w -> n c t h w")), "n d s h w -> n (s h w) d")
        tokens = tokens + interpolated(self.waves.to(tokens), self.trained_grid, grid)
        for layer in self.net["layers"]:
            tokens = layer(tokens)
        if not self.norm_behind_mean:
            tokens = self.net["norm"](tokens)
        return None, rearrange(tokens, "n (s p) d -> n s p d", s=grid[0])

    def features(self, clips: Tensor) -> Tensor:
        features = super().features(clips)
        return self.net["norm"](features) if self.norm_behind_mean else features

    def feature_maps(self, clips: Tensor) -> Tensor:
        maps = super().feature_maps(clips)
        if not self.norm_behind_mean:
            return maps
        return rearrange(self.net["norm"](rearrange(maps, "n d s h w -> n s h w d")), "n s h w d -> n d s h w")

    def has_authors_names(self, state: dict[str, Tensor]) -> bool:
        return any(re.match(r"(encoder\.|model\.)?blocks\.0\.", name) for name in state)

    def authors_names(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Of VideoMAE's and VideoMAE v2's own code: pre-trained (`encoder.`), fine-tuned, or in a folder (`model.`)."""
        body = "videomae." if self.norm_behind_mean else ""
        table = (
            (r"^(encoder|model)\.", ""),
            (r"^patch_embed\.proj\.", f"{body}embeddings.patch_embeddings.projection."),
            (r"^norm\.", f"{body}layernorm."),
            (r"^blocks\.(\d+)\.", rf"{body}encoder.layer.\1."),
            (r"\.norm1\.", ".layernorm_before."),
            (r"\.norm2\.", ".layernorm_after."),
            (r"\.mlp\.fc1\.", ".intermediate.dense."),
            (r"\.mlp\.fc2\.", ".output.dense."),
            (r"\.attn\.proj\.", ".attention.output.dense."),
            (r"\.attn\.q_bias$", ".attention.attention.query.bias"),
            (r"\.attn\.v_bias$", ".attention.attention.value.bias"),
        )
        result = {}
        for name, tensor in state.items():
            for pattern, replacement in table:
                name = re.sub(pattern, replacement, name)
            if name.endswith(".attn.qkv.weight"):
                stem = name.removesuffix(".attn.qkv.weight")
                for part, rows in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                    result[f"{stem}.attention.attention.{part}.weight"] = rows
            else:
                result[name] = tensor
        return result


class VJEPA2(VideoTransformer):
    """S = T/2. Its positions are rotations by the patch's place, which go on beyond what it was trained with."""

    pools = ("mean",)

    def __init__(self, config: Any, folder: Path, **options: Any) -> None:
        self.tubelet = int(config.tubelet_size)
        super().__init__(config, folder, **options)

    @property
    def trained_size(self) -> int:
        return int(self.config.crop_size)

    @property
    def trained_frames(self) -> int:
        return int(self.config.frames_per_clip)

    def whole(self) -> nn.Module:
        return made("VJEPA2Model", self.config)

    def parts(self, whole: Any) -> nn.ModuleDict:
        encoder = whole.encoder
        return nn.ModuleDict({"embeddings": encoder.embeddings, "layers": encoder.layer, "norm": encoder.layernorm})

    def tokens(self, clips: Tensor) -> tuple[Tensor | None, Tensor]:
        steps, rows, columns = self.grid(clips)
        if rows != columns:
            raise UserError(f"vjepa2 takes square frames, found {clips.shape[-2]}x{clips.shape[-1]}: give --img_size")
        tokens = self.net["embeddings"](clips)
        for layer in self.net["layers"]:
            layer.attention.grid_size = rows  # from which it tells a token's place
            tokens = layer(tokens)[0]
        return None, rearrange(self.net["norm"](tokens), "n (s p) d -> n s p d", s=steps)


class TimeSformer(VideoTransformer):
    """S = T."""

    normalisation = ((0.45, 0.45, 0.45), (0.225, 0.225, 0.225), 1.0)

    def whole(self) -> nn.Module:
        return made("TimesformerModel", self.config)

    def parts(self, whole: Any) -> nn.ModuleDict:
        return nn.ModuleDict({"embeddings": whole.embeddings, "layers": whole.encoder.layer, "norm": whole.layernorm})

    def tokens(self, clips: Tensor) -> tuple[Tensor | None, Tensor]:
        steps, _, columns = self.grid(clips)
        tokens = self.net["embeddings"](clips)
        for layer in self.net["layers"]:
            # It takes its tokens apart by these two numbers, which are those of the clip, not of its training.
            layer.config.num_frames, layer.config.image_size = steps, columns * self.patch
            tokens = layer(tokens)[0]
        tokens = self.net["norm"](tokens)
        if self.config.attention_type == "space_only":
            tokens = rearrange(tokens, "(n t) l d -> n t l d", t=steps)
            return tokens[:, :, 0].mean(1), tokens[:, :, 1:]
        return tokens[:, 0], rearrange(tokens[:, 1:], "n (p t) d -> n t p d", t=steps)


class ViViT(VideoTransformer):
    """S = T over the frames of a tubelet, 2 in what was published."""

    normalisation = ((1.5, 1.5, 1.5), (0.5, 0.5, 0.5), 2.0)  # pixels to [-1, 1], then less 0.5 and by 0.5

    def __init__(self, config: Any, folder: Path, **options: Any) -> None:
        self.tubelet = int(config.tubelet_size[0])
        super().__init__(config, folder, **options)

    @property
    def patch(self) -> int:
        return int(self.config.tubelet_size[1])

    def whole(self) -> nn.Module:
        return made("VivitModel", self.config, add_pooling_layer=False)

    def parts(self, whole: Any) -> nn.ModuleDict:
        return nn.ModuleDict({"embeddings": whole.embeddings, "layers": whole.layers, "norm": whole.layernorm})

    def tokens(self, clips: Tensor) -> tuple[Tensor | None, Tensor]:
        grid, embeddings = self.grid(clips), self.net["embeddings"]
        first, others = embeddings.position_embeddings[:, :1], embeddings.position_embeddings[:, 1:]
        patches = embeddings.patch_embeddings(clips) + interpolated(others, self.trained_grid, grid)
        tokens = torch.cat([(embeddings.cls_token + first).expand(len(clips), -1, -1), patches], dim=1)
        for layer in self.net["layers"]:
            tokens = layer(tokens)
        tokens = self.net["norm"](tokens)
        return tokens[:, 0], rearrange(tokens[:, 1:], "n (s p) d -> n s p d", s=grid[0])


class XCLIP(VideoTransformer):
    """S = T. cls: the class token of each frame, which messages between frames have reached; mean: of its patches; proj:
    in the space of text, after the transformer over frames; its mean over the steps is X-CLIP's embedding of a video."""

    pools = ("cls", "mean", "proj")

    @property
    def vision(self) -> Any:
        return self.config.vision_config

    @property
    def width(self) -> int:
        return int(self.config.projection_dim if self.pool == "proj" else self.vision.hidden_size)

    @property
    def trained_size(self) -> int:
        return int(self.vision.image_size)

    @property
    def trained_frames(self) -> int:
        return int(self.vision.num_frames)

    @property
    def patch(self) -> int:
        return int(self.vision.patch_size)

    def whole(self) -> nn.Module:
        return made("XCLIPModel", self.config)

    def parts(self, whole: Any) -> nn.ModuleDict:
        vision = whole.vision_model
        parts = {
            "embeddings": vision.embeddings,
            "first_norm": vision.pre_layernorm,
            "layers": vision.encoder.layers,
            "norm": vision.post_layernorm,
        }
        if self.pool == "proj":
            parts |= {"projection": whole.visual_projection, "over_frames": whole.mit}
        return nn.ModuleDict(parts)

    def num_steps(self, seq_len: int) -> int:
        return seq_len

    def tokens(self, clips: Tensor) -> tuple[Tensor | None, Tensor]:
        """As there, with a class token for each frame (N, T, D)."""
        frames = rearrange(clips, "n t c h w -> (n t) c h w")
        tokens = self.net["first_norm"](self.net["embeddings"](frames, interpolate_pos_encoding=True))
        for layer in self.net["layers"]:
            layer.num_frames = clips.shape[1]
            tokens = layer(tokens, None)
        tokens = rearrange(self.net["norm"](tokens), "(n t) l d -> n t l d", n=len(clips))
        return tokens[:, :, 0], tokens[:, :, 1:]

    def features(self, clips: Tensor) -> Tensor:
        self.check_size(clips)
        class_tokens, patches = self.tokens(clips)
        assert class_tokens is not None
        if self.pool == "mean":
            return reduce(patches, "n t p d -> n t d", "mean")
        return self.over_frames(self.net["projection"](class_tokens)) if self.pool == "proj" else class_tokens

    def over_frames(self, frames: Tensor) -> Tensor:
        mit = self.net["over_frames"]
        trained = (mit.position_embedding.shape[1], 1, 1)
        positions = interpolated(mit.position_embedding, trained, (frames.shape[1], 1, 1))
        tokens = frames + positions
        for layer in mit.encoder.layers:
            tokens = layer(tokens, None)
        return tokens + frames


FAMILIES: dict[str, tuple[str, type[VideoTransformer]]] = {
    "videomae": ("VideoMAEConfig", VideoMAE),
    "vjepa2": ("VJEPA2Config", VJEPA2),
    "timesformer": ("TimesformerConfig", TimeSformer),
    "vivit": ("VivitConfig", ViViT),
    "xclip": ("XCLIPConfig", XCLIP),
}


# ---------------------------------------------------------------------------------------------------------------------
# From a folder to a backbone


def video_transformer(folder: str, /, *, seq_len: int, pool: str = "") -> VideoTransformer:
    """The network that config.json in `folder` describes: D is its width, S = T or T/2.

    pool: mean (of the patches of a step); cls (class token; of the clip, S = 1, but of each frame in X-CLIP); proj (X-CLIP:
    in the space of text). Unset: mean, X-CLIP's cls.
    """
    path = Path(folder)
    if not (path / "config.json").is_file():
        raise UserError(
            f"no {path / 'config.json'}: expected --backbone hf:FOLDER with a folder as Hugging Face has them"
        )
    content = read_json(path / "config.json")
    if "VideoMAEv2" in str(content.get("model_type")):
        content = from_videomae_v2(content)
    kind = content.get("model_type")
    if kind not in FAMILIES:
        raise unknown_name(f"model_type in {path / 'config.json'}", str(kind), FAMILIES)
    transformers = imported("transformers", f"--backbone hf:{folder}")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    config_class, family = FAMILIES[kind]
    return family(getattr(transformers, config_class).from_dict(content), path, seq_len=seq_len, pool=pool)


def made(name: str, config: Any, **options: Any) -> nn.Module:
    """transformers' network of that name with random weights."""
    net: nn.Module = getattr(imported("transformers", name), name)(config, **options)
    return net


def from_videomae_v2(content: dict[str, Any]) -> dict[str, Any]:
    """The configuration of VideoMAE v2's own code, in transformers' terms; that code itself, which may lie beside it, is
    not needed."""
    own = content["model_config"]
    return {
        "model_type": "videomae",
        "architectures": ["VideoMAEForVideoClassification"],
        "image_size": own["img_size"],
        "patch_size": own["patch_size"],
        "num_frames": own["num_frames"],
        "tubelet_size": own["tubelet_size"],
        "hidden_size": own["embed_dim"],
        "num_hidden_layers": own["depth"],
        "num_attention_heads": own["num_heads"],
        "intermediate_size": int(own["embed_dim"] * own["mlp_ratio"]),
        "layer_norm_eps": own.get("layer_norm_eps", 1e-6),
        "use_mean_pooling": own.get("use_mean_pooling", True),
    }


def input_spec_of(folder: Path, mean: Triple, std: Triple, value_range: float, *, size: int, frames: int) -> InputSpec:
    """What pixels must be like: as the folder's preprocessor says, or where it has none, as its family is published."""
    interpolation: Interpolation = "bilinear"
    for name in ("preprocessor_config.json", "video_preprocessor_config.json"):
        if not (folder / name).is_file():
            continue
        found = read_json(folder / name)
        value_range = 255 * found.get("rescale_factor", 1 / 255) if found.get("do_rescale", True) else 255.0
        # Pixels lose 1 before the mean, where they are scaled to [-1, 1].
        offset = float(bool(found.get("offset", value_range == 2.0)))
        normalises = found.get("do_normalize", True)
        means = found.get("image_mean", IMAGENET_MEAN) if normalises else (0.0, 0.0, 0.0)
        red, green, blue = (value + offset for value in means)
        mean = (red, green, blue)
        std = tuple(found.get("image_std", IMAGENET_STD)) if normalises else (1.0, 1.0, 1.0)
        interpolation = "bicubic" if found.get("resample") == PILLOWS_BICUBIC else "bilinear"
    return InputSpec(size=size, mean=mean, std=std, value_range=value_range, frames=frames, interpolation=interpolation)
