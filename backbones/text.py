"""Class names as features in the space of CLIP's image projection (Radford et al., ICML 2021), by open_clip.

A method that compares videos with text states `uses_class_text` and is given `class_text` (K, P) of its episodes.

Letters: K classes, P width of the common space, L tokens of a sentence, Q videos, S steps.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from einops import reduce
from torch import Tensor, nn

from backbones.optional import imported
from backbones.weight_files import Activation, file_in, read_weights
from utils import UserError, load_tensors, printable, read_json, save_checkpoint

PROMPT = "a photo of {}."
SPLITS = Path(__file__).parent.parent / "splits"
HEAD_WIDTH = 64  # of every text tower that OpenAI and LAION published

# transformers' names of CLIP's text tower.
NAMES = (
    (r"^text_model\.embeddings\.token_embedding\.", "token_embedding."),
    (r"^text_model\.embeddings\.position_embedding\.weight$", "positional_embedding"),
    (r"^text_model\.final_layer_norm\.", "ln_final."),
    (r"^text_model\.encoder\.layers\.", "transformer.resblocks."),
    (r"\.layer_norm(\d)\.", r".ln_\1."),
    (r"\.self_attn\.out_proj\.", ".attn.out_proj."),
    (r"\.self_attn\.([qkv])_proj\.", r".attn.\1."),
    (r"\.mlp\.fc1\.", ".mlp.c_fc."),
    (r"\.mlp\.fc2\.", ".mlp.c_proj."),
)


# ---------------------------------------------------------------------------------------------------------------------
# The tower


class TextTower(nn.Module):
    """Sentences -> features (K, P), not scaled to any length. scale: what cosines are multiplied by, as it was learnt."""

    def __init__(self, net: Any, tokenise: Callable[..., Tensor], scale: float) -> None:
        super().__init__()
        self.net, self.tokenise, self.scale = net, tokenise, scale

    @torch.no_grad()
    def encode(self, sentences: Sequence[str]) -> Tensor:
        device = next(self.parameters()).device
        tokens = self.tokenise(list(sentences), context_length=self.net.context_length).to(device)
        # One by one, so that the bits of a sentence's features do not depend on what else is asked for.
        return torch.cat([self.net(sentence).float().cpu() for sentence in tokens.split(1)])


def text_tower(path: str | Path, activation: Activation = "") -> TextTower:
    """The text tower in a file of CLIP's weights: OpenAI's archive, open_clip's or transformers' files.

    Its sizes are read off its tensors. activation: needed where the file does not say (see `weight_files`). Raises UserError
    for a file without a text tower, and for SigLIP, whose tokens come from a file that no package holds.
    """
    open_clip = imported("open_clip", "class text")
    file = read_weights(path)
    state = text_names(file.state, str(path))
    found = file.activation or activation
    if not found or (activation and activation != found):
        said = f"is of a network with {file.activation}" if file.activation else "does not say which activation it has"
        raise UserError(
            f"{path} {said}, and a wrong one costs accuracy: add --backbone_options activation=quick_gelu (OpenAI) or "
            "activation=gelu (LAION), or give --text_features FILE"
        )
    width = len(state["ln_final.weight"])
    blocks = {name.split(".")[2] for name in state if name.startswith("transformer.resblocks.")}
    net = open_clip.model.TextTransformer(
        context_length=len(state["positional_embedding"]),
        vocab_size=len(state["token_embedding.weight"]),
        width=width,
        heads=max(1, width // HEAD_WIDTH),
        layers=len(blocks),
        mlp_ratio=len(state.get("transformer.resblocks.0.mlp.c_fc.weight", state["ln_final.weight"])) / width,
        output_dim=state["text_projection"].shape[1],
        act_layer=open_clip.model.QuickGELU if found == "quick_gelu" else nn.GELU,
    )
    try:
        net.load_state_dict(state)
    except RuntimeError as error:
        reason = f"{error}".partition("\n\t")[2].partition("\n")[0]
        raise UserError(
            f"the text tower in {path} does not fit CLIP's ({reason}); give --text_features FILE"
        ) from error
    scale = file.state["logit_scale"].float().exp().item() if "logit_scale" in file.state else 100.0
    return TextTower(net.eval(), tokeniser(), scale)


@cache
def tokeniser() -> Callable[..., Tensor]:
    """CLIP's byte pairs, whose table open_clip brings along."""
    made: Callable[..., Tensor] = imported("open_clip", "class text").SimpleTokenizer()
    return made


def text_names(state: dict[str, Tensor], source: str) -> dict[str, Tensor]:
    """The text tower's tensors, in float32, under open_clip's names."""
    state = {re.sub(r"^(module\.)?(text\.)?", "", name): tensor.float() for name, tensor in state.items()}
    if "text_projection.weight" in state and "text_model.final_layer_norm.weight" in state:
        state["text_projection"] = state.pop("text_projection.weight").T.contiguous()
    if "text_projection.weight" in state or "text_model.head.weight" in state:
        raise UserError(
            f"{source} is of SigLIP, whose tokeniser is in none of the packages: make features of the class names where you "
            "have it, and give them with --text_features FILE"
        )
    renamed = {}
    for name, tensor in state.items():
        for pattern, replacement in NAMES:
            name = re.sub(pattern, replacement, name)
        renamed[name] = tensor
    for name in [name for name in renamed if re.search(r"\.attn\.q\.(weight|bias)$", name)]:
        stem, _, leaf = name.rpartition(".q.")
        renamed[f"{stem}.in_proj_{leaf}"] = torch.cat([renamed.pop(f"{stem}.{part}.{leaf}") for part in "qkv"])
    wanted = ("token_embedding.", "positional_embedding", "transformer.resblocks.", "ln_final.", "text_projection")
    tower = {name: tensor for name, tensor in renamed.items() if name.startswith(wanted)}
    if not {"token_embedding.weight", "positional_embedding", "ln_final.weight", "text_projection"} <= tower.keys():
        raise UserError(
            f"{source} holds no text tower of CLIP: give the weights of both towers, or --text_features FILE"
        )
    return tower


# ---------------------------------------------------------------------------------------------------------------------
# From class names to features


class ClassText:
    """Features (P,) of class names by the text tower in `weights`, each made once.

    `keep` writes them to a file of `folder`, by what is said of a class, so that the order of classes is of no account. Its
    name depends on prompts, activation and the bytes of the weights. prompts: sentences with {} in the place of the name,
    whose features are averaged.
    """

    def __init__(
        self,
        weights: str | Path,
        *,
        folder: Path | None = None,
        prompts: Sequence[str] = (PROMPT,),
        activation: Activation = "",
    ) -> None:
        for prompt in prompts:
            if prompt.count("{}") != 1:
                raise UserError(f"--prompt '{prompt}': expected one {{}} where the name of the class goes")
        self.weights, self.prompts, self.activation = weights, list(prompts), activation
        key = hashlib.sha256(json.dumps([self.prompts, activation, sha256_of(weights)]).encode()).hexdigest()[:16]
        self.path = folder / f"class_text_{key}.pt" if folder else None
        self.features: dict[str, Tensor] = {}
        if self.path and self.path.is_file():
            try:
                self.features = load_tensors(self.path)["features"]
            except (UserError, KeyError, TypeError) as error:
                raise UserError(f"{self.path} is damaged: remove it, and the class text is made again") from error
        self.is_kept = True

    def of(self, classes: Sequence[str]) -> Tensor:
        """Features (K, P) of classes, in their order."""
        names = [spoken(name) for name in display_names(classes)]
        lacking = [name for name in dict.fromkeys(names) if name not in self.features]
        if lacking:
            tower = text_tower(self.weights, self.activation)
            sentences = [prompt.format(name) for name in lacking for prompt in self.prompts]
            made = reduce(tower.encode(sentences), "(k prompts) p -> k p", "mean", k=len(lacking))
            self.features.update(zip(lacking, made, strict=True))
            self.is_kept = False
        return torch.stack([self.features[name] for name in names])

    def keep(self) -> None:
        if self.path and not self.is_kept:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            features = {
                name: vector.clone() for name, vector in self.features.items()
            }  # not all of their common memory
            save_checkpoint(self.path, {"prompts": self.prompts, "features": features})
            self.is_kept = True


class ReadyText:
    """Features of class names that a file holds ready-made, as `read_text_features` finds them there."""

    def __init__(self, path: str | Path) -> None:
        self.path = path

    def of(self, classes: Sequence[str]) -> Tensor:
        return read_text_features(self.path, classes)

    def keep(self) -> None:
        """Nothing: they are in a file already."""


def sha256_of(weights: str | Path) -> str:
    path = file_in(Path(weights))
    if not path.is_file():
        raise UserError(f"no file {path}: expected weights of CLIP, or --text_features FILE")
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def read_text_features(path: str | Path, classes: Sequence[str]) -> Tensor:
    """Features (K, P) of `classes` out of a file of ready-made ones: a dict of name -> vector, or of "names" and "features"
    (K, P), written by torch.save; or such vectors by name in safetensors.

    A class is found under its own name or its display name, whatever case, brackets and underscores.
    """
    content: Any = read_weights(path).state if Path(path).suffix == ".safetensors" else load_tensors(Path(path))
    if isinstance(content, dict) and {"names", "features"} <= content.keys():
        content = dict(zip(content["names"], content["features"], strict=True))
    found = content.items() if isinstance(content, dict) else ()
    named = {str(name): vector.float() for name, vector in found if isinstance(vector, Tensor) and vector.ndim == 1}
    vectors = {normal(name): vector for name, vector in named.items()}
    if not vectors or len({len(vector) for vector in vectors.values()}) != 1:
        raise UserError(f"{path} holds no text features: expected a dict of class names and vectors of one width")
    rows = []
    for name, display in zip(classes, display_names(classes), strict=True):
        places = [(named, name), (named, display), (vectors, normal(name)), (vectors, normal(display))]
        row = next((table[key] for table, key in places if key and key in table), None)
        if row is None:
            raise UserError(
                f"{path} has no features of class '{printable(name)}': it needs those of every class of the data set"
            )
        rows.append(row)
    return torch.stack(rows)


def zero_shot_logits(videos: Tensor, text: Tensor, scale: float = 100.0) -> Tensor:
    """Videos (..., Q, S, P) and classes (..., K, P) -> logits (..., Q, K): scaled cosines of the mean frame and the text.

    Frames count by direction only: each is scaled to unit length before the mean.
    """
    frames = F.normalize(videos, dim=-1).mean(-2)
    return scale * F.normalize(frames, dim=-1) @ F.normalize(text, dim=-1).transpose(-1, -2)


# ---------------------------------------------------------------------------------------------------------------------
# Display names


def display_names(classes: Sequence[str], tables: Mapping[str, str] | None = None) -> list[str]:
    """Readable names of classes: those of splits/*/class_names.json, and otherwise a folder's name with spaces between its
    words ('CleanAndJerk' -> 'clean and jerk', 'brush_hair' -> 'brush hair')."""
    known = published_names() if tables is None else {normal(name): text for name, text in tables.items()}
    return [known.get(normal(name)) or separated(name) for name in classes]


@cache
def published_names() -> dict[str, str]:
    tables = [read_json(path) for path in sorted(SPLITS.glob("*/class_names.json"))]
    return {normal(name): text for table in tables for name, text in table.items()}


def normal(name: str) -> str:
    """What names of a class have in common, however a data set's folders write it."""
    return re.sub(r"[\W_]+", "", name.casefold())


def separated(name: str) -> str:
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", name).replace("_", " ")
    return words.lower() if words != name else words


def spoken(name: str) -> str:
    """A display name as it stands in a sentence: Something-Something's brackets are no part of it."""
    return printable(name).replace("[", "").replace("]", "")
