"""Methods in checkpoints: of this library, and of TRX-style libraries, {"iteration", "model_state_dict", ...}.

HEADS says for each method how its head's tensors are known there and what ours are called. Names: tobyperrett/trx,
tobyperrett/few-shot-action-recognition, codehome-jl/dual-prototypes-network. Their backbones are ResNets whose layers lie
in one row, trained on pixels in [0, 1].
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from backbones.own_code import is_own_code
from backbones.resnet2d import STAGES
from backbones.weight_files import state_dict_in
from backbones.weights import load_weights
from clips.transforms import InputSpec
from engine.command_line import Parser
from engine.devices import default_device, use_channels_last
from engine.settings import build_parser, find_method
from engine.training import input_spec_of, load_model_state
from methods import METHODS, build_head
from model import CNN_FSHead
from results.marks import origin
from utils import UserError, checked_checkpoint, is_checkpoint, load_tensors

BACKBONE = r"(?:backbone|resnet)\.(?:module\.)?"


@dataclasses.dataclass(frozen=True)
class Head:
    """mark: of the head's tensors. renames: patterns of their names, and ours. ignored: of what decides nothing there.
    settings: flags that make a head as theirs."""

    mark: str
    renames: tuple[tuple[str, str], ...]
    ignored: str
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)


# Tables of positions and of tuples are made anew here; the norms of values are in the files and were never used.
HEADS = {
    "trx": Head(r"transformers\.", (), r"transformers\.\d+\.(pe\.pe|norm_v\.\w+|tuples\.\d+)"),
    "dual_prototypes": Head(
        r"model\.",
        ((r"^model\.", "branches."), (r"\.W_([QKV])\.", r".\1_linear."), (r"\.norm_k\.", ".norm.")),
        r"model\.\d+\.(pe\.pe|norm_v\.\w+)",
        {"dp_variant": "code"},
    ),
    "pal": Head(
        r"mha\.",
        ((r"^mha\.", "attention."),),
        r"$^",
        {"pal_scale": 1.0, "pal_lambda": 1.0, "pal_prototype_loss": "sigmoid"},
    ),
}
WITHOUT_WEIGHTS = {"tsn": {"tsn_distance": "mean_cosine", "tsn_scale": 1.0}}


def add_library_flags(parser: Parser) -> None:
    """For scripts that show a checkpoint's answers: what a file of a TRX-style library may not tell."""
    parser.add_argument(
        "--method", metavar="NAME", help="of a file of a TRX-style library that holds no head: its method"
    )
    parser.add_argument(
        "--seq_len", metavar="N", type=int, least=1, help="of a file of a TRX-style library: the frames of its clips"
    )


class LoadedHead(NamedTuple):
    """A method that is ready to answer: in eval mode on this machine's device. about: what its answers are worth, for
    `results.marks.marks`."""

    model: CNN_FSHead
    settings: argparse.Namespace
    spec: InputSpec
    about: dict[str, Any]


def load_head(
    path: Path, *, trusted: bool = False, method: str | None = None, seq_len: int | None = None
) -> LoadedHead:
    """The method in a checkpoint.

    trusted: also if that takes code from a file that the checkpoint names. method, seq_len: what a file of a TRX-style
    library may not tell.
    """
    saved = settings_in(path, argparse.Namespace(method=method, seq_len=seq_len))
    if "method" not in saved:
        raise UserError(f"{path} is of run_supervised.py: expected a checkpoint of run.py")
    for name, given in {"method": method, "seq_len": seq_len}.items():
        if given not in (None, saved[name]):
            raise UserError(f"{path} is of --{name} {saved[name]}, not {given}: leave the flag out")
    own = [saved[name] for name in ("method", "backbone") if is_own_code(saved[name])]
    if own and not trusted:
        files = ", ".join(reference.rpartition(":")[0] for reference in own)
        raise UserError(f"{path} wants to run code from {files}: if that is what you want, add --trust_checkpoint")
    defaults = build_parser(METHODS, find_method(saved["method"], METHODS)).parse_args(
        []
    )  # of flags newer than the file
    args = argparse.Namespace(**{**vars(defaults), **saved})
    checkpoint, _ = read_head(path, args)
    model = build_head(args, load_pretrained=False)
    load_model_state(model, checkpoint, path)
    use_channels_last(model)
    model = model.to(default_device()).eval()
    return LoadedHead(model, args, input_spec_of(model.backbone, args), origin(checkpoint))


def settings_in(path: Path, early: argparse.Namespace) -> dict[str, Any]:
    """Those in a checkpoint of this library; of one of a TRX-style library those that it decides, and else the defaults.

    early: the flags of which it may need --method and --seq_len.
    """
    content = load_tensors(path)
    if is_checkpoint(content):
        return checked_checkpoint(content, path)["args"]
    state = library_state(content, path)
    name = method_of(state, path, early.method)
    defaults = vars(build_parser(METHODS, METHODS[name]).parse_args([]))
    return {**defaults, **decided(name, state, path, early), "normalise": "none"}


def read_head(path: Path, args: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """The checkpoint in a file, and a sentence on what was taken of one of a TRX-style library ("" for one of ours)."""
    content = load_tensors(path)
    if is_checkpoint(content):
        return checked_checkpoint(content, path), ""
    state = library_state(content, path)
    model = build_head(args, load_pretrained=False)
    in_row = {re.sub(f"^{BACKBONE}", "", name): tensor for name, tensor in state.items() if re.match(BACKBONE, name)}
    report = load_weights(model.backbone.get_submodule("net"), in_row, str(path))
    head, left_out = renamed_head(args.method, state)
    ours = model.state_dict()
    # A factor on all logits changes no answer; theirs have none.
    wanted = {name for name, tensor in ours.items() if not name.startswith("backbone.") and tensor.ndim}
    wrong = [*sorted(wanted - head.keys()), *sorted(head.keys() - wanted), *report.missing, *report.unexpected]
    wrong += [name for name in wanted & head.keys() if head[name].shape != ours[name].shape]
    if wrong:
        raise UserError(
            f"{path} does not fit --method {args.method} over {args.backbone}: {len(wrong)} tensors are not of both, the first "
            f"is {wrong[0]}; expected a whole checkpoint of a TRX-style library"
        )
    model.load_state_dict(head, strict=False)
    iteration = content.get("iteration") if isinstance(content, dict) else None
    checkpoint = {
        "args": {},
        "progress": {"tasks_done": iteration, "validations": []},
        "model": model.state_dict(),
        "untrained": False,
        "selected_on": "unknown",
    }
    taken = len(report.loaded) + len(head)
    return checkpoint, (
        f"{path}: {args.method} over {args.backbone} of a TRX-style library; {taken} tensors taken under other names, "
        f"{left_out} left out that decide nothing; its pixels are not normalised (--normalise none)"
    )


def library_state(content: Any, path: Path) -> dict[str, Tensor]:
    state = state_dict_in(content, str(path))
    if not any(re.match(f"{BACKBONE}0\\.weight$", name) for name in state):
        raise UserError(
            f"{path} is not a checkpoint of this library, nor of a TRX-style library, whose backbone begins with "
            "backbone.0.weight: give another; a backbone is given with --pretrained_backbone"
        )
    return state


def method_of(state: Mapping[str, Tensor], path: Path, asked: str | None) -> str:
    """The method whose head is in a file; of a backbone alone the one that was asked for."""
    for name, head in HEADS.items():
        if any(re.match(head.mark, tensor) for tensor in state):
            return name
    if others := [name for name in state if not re.match(BACKBONE, name)]:
        raise UserError(
            f"{path} has {others[0]} beside its backbone, which no head of this library has: give it with -pt"
        )
    if asked is None or asked in HEADS or asked not in METHODS:
        raise UserError(
            f"{path} holds a backbone and no head: give a --method without weights of its own, such as otam, or give the file "
            "with -pt"
        )
    return asked


def decided(name: str, state: Mapping[str, Tensor], path: Path, early: argparse.Namespace) -> dict[str, Any]:
    """The flags that the tensors decide: backbone, frames of a clip, tuples, widths."""
    blocks = [re.match(rf"{BACKBONE}([4-7])\.(\d+)\.", tensor) for tensor in state]
    places = {(block[1], block[2]) for block in blocks if block}
    stages = tuple(sum(stage == row for stage, _ in places) for row in "4567")
    deep = any(re.match(rf"{BACKBONE}4\.0\.conv3\.", tensor) for tensor in state)
    depth = next((d for d, found in STAGES.items() if found == stages and (d >= 50) == deep), None)
    if depth not in (18, 34, 50, 101, 152):
        raise UserError(
            f"{path} has {stages} blocks in its stages: expected those of a ResNet, give a whole checkpoint"
        )
    as_theirs = HEADS[name].settings if name in HEADS else WITHOUT_WEIGHTS.get(name, {})
    settings: dict[str, Any] = {"method": name, "backbone": f"resnet{depth}", **as_theirs}
    width = 512 if depth < 50 else 2048
    keys = [tensor for tensor in state if re.search(r"\.(k_linear|W_K)\.weight$", tensor)]
    if keys:
        settings["temp_set"] = [state[tensor].shape[1] // width for tensor in sorted(keys, key=branch_number)]
        settings["trans_linear_out_dim"] = len(state[keys[0]])
    positions = [tensor.shape[1] for tensor_name, tensor in state.items() if tensor_name.endswith(".pe.pe")]
    frames = math.ceil(positions[0] * 2 / 3) if positions else early.seq_len  # a table has half as many again
    if frames is None:
        raise UserError(f"{path} does not tell how many frames its clips had in training: give --seq_len")
    return {**settings, "seq_len": frames}


def branch_number(name: str) -> int:
    return int(re.findall(r"\d+", name)[0])


def renamed_head(method: str, state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], int]:
    """The tensors of a file's head under our names, and how many there are that decide nothing."""
    theirs = {name: tensor for name, tensor in state.items() if not re.match(BACKBONE, name)}
    if method not in HEADS:
        return theirs, 0
    rule = HEADS[method]
    kept = {name: tensor for name, tensor in theirs.items() if not re.fullmatch(rule.ignored, name)}
    head = {}
    for name, tensor in kept.items():
        for pattern, replacement in rule.renames:
            name = re.sub(pattern, replacement, name)
        head[re.sub(r"\.([QKV])_linear\.", lambda match: f".{match[1].lower()}_linear.", name)] = tensor
    return head, len(theirs) - len(kept)
