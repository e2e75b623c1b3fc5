"""Writes the weights of a run under the names of another library, which loads them as its own.

    python scripts/export.py runs/tsm --to tsm              TSM_..._segment8_e50.pth, which TSM's test_models.py takes
    python scripts/export.py runs/r2plus1d --to torchvision  a state_dict of torchvision's network of that name
    python scripts/export.py runs/trx --to safetensors       every tensor under its own name, and the settings

RUN is a run's folder, of which the checkpoint that a test takes is written, or a checkpoint. A run of run.py has no
classifier: of it tsm and torchvision get the backbone alone. Nothing is rounded: what is read back is equal in every bit.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

# Python puts the folder of a script on its path, not the project's.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from backbones import build_backbone
from backbones.resnet2d import Slots
from backbones.tsm import Shift
from engine.command_line import Parser, arguments, check_output, exit_code
from engine.flags import find_checkpoint
from utils import UserError, atomic_write, load_checkpoint

State = dict[str, Tensor]

# Networks that are torchvision's own, layer by layer, and what their classifier is called there.
OF_TORCHVISION = {
    r"resnet\d+|inception_v1|r3d_18|mc3_18|r2plus1d_18": "fc",
    r"mobilenet_v2": "classifier.1",
    r"swin3d_[tsb]": "head",
    r"mvit_v\d_[bs]": "head.1",
}
ALIKE = {"token": "class"}  # options under which they still are


def main(argv: Sequence[str] | None = None) -> int:
    return exit_code(lambda: export(arguments(argv)))


def export(argv: Sequence[str]) -> None:
    args = build_parser().parse_args(argv)
    run = Path(args.run)
    path = find_checkpoint(run, None) if run.is_dir() else run
    checkpoint = load_checkpoint(path)
    folder = run if run.is_dir() else run.parent
    out = Path(args.out) if args.out else folder / DEFAULT_NAMES[args.to](checkpoint["args"])
    check_output(out, "--out", (".safetensors",) if args.to == "safetensors" else (".pth", ".pt", ".tar"))
    if out.exists():
        raise UserError(f"{out} exists: give another name with --out, or remove it")
    count = WRITERS[args.to](checkpoint, path, out)
    print(f"{count} tensors of {path} in {out}, under the names of {args.to}")


def build_parser() -> Parser:
    parser = Parser(__doc__)
    parser.add_argument("run", metavar="RUN", help="a run's folder, or a checkpoint")
    parser.add_argument("--to", choices=sorted(WRITERS), required=True, help="whose names and container")
    parser.add_argument(
        "--out", metavar="FILE", help="unset: in the run's folder, under a name that the other library reads"
    )
    return parser


# ---------------------------------------------------------------------------------------------------------------------
# To each library


def to_safetensors(checkpoint: dict[str, Any], _: Path, out: Path) -> int:
    try:
        from safetensors.torch import save
    except ImportError as error:
        raise UserError("--to safetensors needs the package safetensors: pip install safetensors") from error
    state = {name: tensor.contiguous() for name, tensor in checkpoint["model"].items()}
    settings = {"args": json.dumps(checkpoint["args"]), "classes": json.dumps(checkpoint.get("classes"))}
    with atomic_write(out) as file:
        file.write(save(state, metadata=settings))
    return len(state)


def to_torchvision(checkpoint: dict[str, Any], path: Path, out: Path) -> int:
    backbone, options = checkpoint["args"]["backbone"], checkpoint["args"]["backbone_options"]
    classifier = next((name for names, name in OF_TORCHVISION.items() if re.fullmatch(names, backbone)), None)
    if classifier is None or not options.items() <= ALIKE.items():
        raise UserError(
            f"{path} is of {backbone} {options or ''}, which torchvision does not have: expected one of its own networks"
        )
    state = backbone_of(checkpoint) | classifier_of(checkpoint, classifier)
    save(state, out)
    return len(state)


def to_tsm(checkpoint: dict[str, Any], path: Path, out: Path) -> int:
    args = checkpoint["args"]
    if not re.fullmatch(r"(tsm_)?resnet\d+", args["backbone"]) or args["backbone_options"].get("non_local"):
        raise UserError(f"{path} is of {args['backbone']}: expected a ResNet of TSM or TSN, without non-local blocks")
    held = held_by_shifts(args)
    pooled = args["backbone_options"].get("temporal_pool", 0)
    if pooled > 1 or args["backbone_options"].get("online"):
        raise UserError(
            f"{path} pools time {pooled} times or shifts one way, which TSM does not: expected at most one pool"
        )

    def theirs(name: str) -> str:
        place = next((place for place in held if name.startswith(place)), None)
        if place:
            name = f"{place}net.{name.removeprefix(place)}"
        if pooled and name.startswith("layer2."):
            name = name.replace("layer2.", "layer2.net.", 1)
        return f"module.base_model.{name}"

    state = {theirs(name): tensor for name, tensor in backbone_of(checkpoint).items()}
    state |= classifier_of(checkpoint, "module.new_fc")
    save({"epoch": args.get("epochs", 0), "arch": architecture(args), "state_dict": state}, out)
    return len(state)


def save(content: Any, out: Path) -> None:
    with atomic_write(out) as file:
        torch.save(content, file)


WRITERS = {"safetensors": to_safetensors, "torchvision": to_torchvision, "tsm": to_tsm}


# ---------------------------------------------------------------------------------------------------------------------
# What of it, and what it is called


def backbone_of(checkpoint: dict[str, Any]) -> State:
    found = {name: tensor for name, tensor in checkpoint["model"].items() if name.startswith("backbone.")}
    return {re.sub(r"^backbone\.(net\.)?", "", name): tensor for name, tensor in found.items()}


def classifier_of(checkpoint: dict[str, Any], name: str) -> State:
    """That of a recogniser; nothing of a few-shot method."""
    found = {leaf: checkpoint["model"].get(f"classifier.{leaf}") for leaf in ("weight", "bias")}
    return {f"{name}.{leaf}": tensor for leaf, tensor in found.items() if tensor is not None}


def held_by_shifts(args: dict[str, Any]) -> list[str]:
    """The names, to their last point, of blocks or first convolutions that a shift stands before."""
    with torch.device("meta"):
        net = build_backbone(args["backbone"], seq_len=args["seq_len"], **args["backbone_options"]).get_submodule("net")
    blocks = {name: module for name, module in net.named_modules() if isinstance(module, Slots)}
    whole = [f"{name}." for name, block in blocks.items() if isinstance(block.enter, Shift)]
    return whole + [f"{name}.conv1." for name, block in blocks.items() if isinstance(block.branch, Shift)]


def architecture(args: dict[str, Any]) -> str:
    return str(args["backbone"]).removeprefix("tsm_")


def tsm_name(args: dict[str, Any]) -> str:
    """The name from which TSM's programs read the network."""
    options = args["backbone_options"]
    shift = f"_shift{options.get('shift_div', 8)}_{options.get('place', 'blockres')}"
    shift = shift if str(args["backbone"]).startswith("tsm_") else ""
    pool = "_tpool" if options.get("temporal_pool") else ""
    data = Path(args["dataset"] or "lists").name
    return f"TSM_{data}_RGB_{architecture(args)}{shift}{pool}_avg_segment{args['seq_len']}_e{args.get('epochs', 0)}.pth"


DEFAULT_NAMES = {
    "safetensors": lambda _: "weights.safetensors",
    "torchvision": lambda args: f"{args['backbone']}.pth",
    "tsm": tsm_name,
}

if __name__ == "__main__":
    sys.exit(main())
