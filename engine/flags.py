"""What the command lines of the training programs share: flags, and the settings that a resumed run or a test inherits."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from backbones import BACKBONES, entry_of
from backbones.own_code import content_hash, is_own_code
from engine.command_line import FlagGroup, KeyValues, Parser
from engine.devices import PRECISIONS, default_device, own_precision
from utils import BEST, FINAL, LATEST, RunFolder, UserError, load_checkpoint, read_json

LARGEST_SEED = 2**32 - 1
PIXELS: dict[str, Any] = {"type": int, "least": 16, "most": 4096}  # of the side of a square


def add_run_flags(parser: Parser, *, unit: str, print_freq: int, save_freq: int) -> None:
    """The run folder, resuming, testing, and how often what is written. unit: what is counted."""
    group = parser.add_argument_group("run")
    group.add_argument(
        "--checkpoint_dir", "-c", per_start=True,
        help="folder of the run: logs, checkpoints and results are written there",
    )  # fmt: skip
    group.add_argument(
        "--resume_from_checkpoint", "-r", action="store_true", per_start=True,
        help="resume the run in -c where it was stopped; settings that are not given come from it",
    )  # fmt: skip
    group.add_argument(
        "--test_only", action="store_true", per_start=True,
        help="test a checkpoint without training; settings that are not given come from the checkpoint",
    )  # fmt: skip
    group.add_argument(
        "--test_model_name", "-m", per_start=True,
        help="checkpoint to test: a path, or a file name in -c; unset: the best on validation, else the final one",
    )  # fmt: skip
    group.add_argument(
        "--trust_checkpoint", action="store_true", per_start=True,
        help="run code from files that the run or checkpoint names and this command line does not",
    )  # fmt: skip
    group.add_argument(
        "--list", action="store_true", per_start=True, help="print what can be named, with sizes, and stop"
    )
    group.add_argument(
        "--seed", type=int, default=0, least=0, most=LARGEST_SEED,
        help="decides initial weights, dropout and all that is drawn",
    )  # fmt: skip
    group.add_argument(
        "--print_freq", type=int, default=print_freq, least=1, resumable=True,
        help=f"log mean loss and accuracy every so many {unit}s",
    )  # fmt: skip
    group.add_argument(
        "--save_freq", type=int, default=save_freq, least=0, resumable=True,
        help=f"save checkpoint.pt every so many {unit}s; 0: never between",
    )  # fmt: skip
    group.add_argument(
        "--num_workers", type=int, least=0, most=1024, per_start=True,
        default=min(8, (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", 1))),
        help="processes that read ahead, for each process of the job; 0 reads in the process itself",
    )  # fmt: skip
    group.add_argument(
        "--timeout", type=float, default=600, above=0, most=10**6, per_start=True,
        help="seconds that a process of a torchrun job waits for the others, before the run ends and names them",
    )  # fmt: skip
    group.add_argument(
        "--profile", action="store_true", per_start=True,
        help="profile the second optimiser step, into profile/ of -c",
    )  # fmt: skip


def add_speed_flags(parser: Parser) -> FlagGroup:
    """Number formats, devices and memory. Returns the group, for more of them."""
    group = parser.add_argument_group("speed and memory")
    group.add_argument(
        "--precision", choices=["auto", *PRECISIONS], default="auto",
        help="of the backbone; heads compute in float32. auto: bf16 on a device that computes in it, else fp32, decided when a "
        "run is started; a test takes that of the training",
    )  # fmt: skip
    group.add_argument(
        "--no_tf32", action="store_true", help="on GPUs multiply float32 in full precision, several times slower"
    )
    group.add_argument(
        "--num_gpus", type=int, default=1, least=1, per_start=True,
        help="GPUs of this one process to spread the backbone over, by whole clips; see torchrun",
    )  # fmt: skip
    group.add_argument(
        "--checkpoint_activations", action="store_true", resumable=True,
        help="keep only the input of each block of the backbone and compute the rest again in the backward pass: same "
        "results, a third more time, a fraction of the memory",
    )  # fmt: skip
    group.add_argument(
        "--frames_per_call", type=int, default=0, least=0, resumable=True,
        help="pass no more frames than these through the backbone at a time, whole clips, at least one; needs frozen "
        "batch norms in training. With --checkpoint_activations only one portion's activations exist at a time. 0: all at once",
    )  # fmt: skip
    group.add_argument(
        "--compile", action="store_true", resumable=True,
        help="have torch.compile translate the backbone, which takes a minute",
    )  # fmt: skip
    return group


def add_clip_flags(group: FlagGroup, *, seq_len: str, skip: str) -> None:
    """Frames and pixels of a clip, and unreadable videos. seq_len: what is counted; skip: what stands in for such a video."""
    group.add_argument("--seq_len", type=int, default=8, least=1, most=4096, of_model=True, help=seq_len)
    group.add_argument("--img_size", **PIXELS, help="side of the square input, pixels; unset: the backbone's own (224)")
    group.add_argument(
        "--normalise", choices=["backbone", "none"], default="backbone",
        help="pixel statistics of the backbone's weights, or none, as weights of the TRX-style libraries were trained",
    )  # fmt: skip
    group.add_argument(
        "--on_bad_video", choices=["error", "skip"], default="error", resumable=True,
        help=f"stop at a video that cannot be read, or {skip}, and say so",
    )  # fmt: skip


def add_optimiser_flags(group: FlagGroup, *, learning_rate: float, momentum: float, weight_decay: float) -> None:
    group.add_argument(
        "--learning_rate", "-lr", type=float, default=learning_rate, above=0, help="at the start, after any warm-up"
    )
    group.add_argument("--momentum", type=float, default=momentum, least=0, below=1, help="of sgd")
    group.add_argument("--nesterov", action="store_true", help="Nesterov's momentum")
    group.add_argument(
        "--weight_decay", "--wd", type=float, default=weight_decay, least=0, help="L2 penalty; decoupled with adamw"
    )
    group.add_argument(
        "--clip_gradient", "--gd", type=float, default=0, least=0,
        help="shorten longer gradients to this norm; 0: never",
    )  # fmt: skip


def add_backbone_flags(group: FlagGroup, *, default: str) -> None:
    group.add_argument(
        "--backbone", default=default, help=f"{', '.join(BACKBONES)}, timm:NAME, hf:FOLDER, or path/to/file.py:function"
    )
    group.add_argument(
        "--backbone_options",
        nargs="+",
        action=KeyValues,
        default={},
        metavar="KEY=VALUE",
        help="keywords of the backbone's builder, such as shift_div=4 for TSM; docs/backbones.md lists them",
    )
    group.add_argument("--pretrained_backbone", "-pt", help="file with backbone weights; unset: ImageNet ones by name")
    group.add_argument("--no_pretrained", action="store_true", help="start the backbone from random weights")
    group.add_argument(
        "--train_layers", metavar="all|none|norm|last:N",
        help="which weights of the backbone are trained: all, none, those of its norms, or of its last N blocks; unset: all, "
        "or with --lora none",
    )  # fmt: skip
    group.add_argument(
        "--lora", type=int, default=0, least=0, most=1024, metavar="RANK",
        help="train sums of this rank to the maps inside attention, which stay as they are (Hu et al., ICLR 2022); 0: none",
    )  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------------
# A command line and what it inherits

SettingsIn = Callable[[Path, argparse.Namespace], dict[str, Any]]
"""The settings in a file that is tested. Of the flags that are given it may need what the file does not tell."""


def settings_in_own(path: Path, early: argparse.Namespace) -> dict[str, Any]:
    """Those in a checkpoint of this library."""
    settings: dict[str, Any] = load_checkpoint(path)["args"]
    return settings


def first_look(argv: Sequence[str], names: Sequence[str] = ()) -> argparse.Namespace:
    """The flags that decide what all others mean: those of the run folder, and `names`."""
    parser = Parser(add_help=False, recipes=True)
    add_run_flags(parser, unit="step", print_freq=1, save_freq=1)
    for name in ("--method", "--backbone", "--episodes", *names):
        parser.add_argument(name)
    parser.add_argument("--seq_len", type=int)
    parser.add_argument("--backbone_options", nargs="+", action=KeyValues, default={})
    return parser.parse_known_args(argv)[0]


def parse_run(
    argv: Sequence[str],
    build_parser: Callable[[argparse.Namespace, dict[str, Any]], Parser],
    *,
    decisive: Sequence[str] = (),
    settings_in: SettingsIn = settings_in_own,
    averages_steps: Callable[[argparse.Namespace], bool] = lambda args: True,
) -> argparse.Namespace:
    """The settings of a run: defaults, below those of the run or checkpoint it inherits from, below the given flags.

    build_parser: from a first look at the `decisive` flags, and from what is inherited. settings_in: those in a file that is
    tested, given a first look. averages_steps: whether what comes after the backbone does; then one that has a feature of
    the whole clip gives that.
    """
    early = first_look(argv, decisive)
    if early.list:
        return early
    if early.checkpoint_dir is None and not {"-h", "--help"} & set(argv):
        raise UserError("a run folder is needed: give -c FOLDER, where logs, checkpoints and results are written")
    if early.resume_from_checkpoint and early.test_only:
        raise UserError("-r resumes training and --test_only does not train: give one of them")
    saved = inherited_settings(early, settings_in)
    check_trust(early, saved)
    parser = build_parser(early, saved)
    per_start = {action.dest for action in parser.flags() if action.per_start}
    inherited = {name: value for name, value in saved.items() if name not in per_start}
    parser.set_defaults(**inherited)
    args = parser.parse_args(argv)
    args.test_model_name = early.test_model_name
    if args.test_only:  # of a network's options those that are given have to agree, and the others are inherited
        args.backbone_options = {**inherited.get("backbone_options", {}), **args.backbone_options}
    if not saved and averages_steps(args):
        args.backbone_options = {**entry_of(args.backbone).of_clips, **args.backbone_options}
    args.precision = decided_precision(args, inherited)
    check_inherited(args, inherited, parser)
    named = [name for name in (getattr(args, "method", ""), args.backbone) if is_own_code(name)]
    args.own_code = {name: content_hash(name) for name in named}
    args.num_threads = torch.get_num_threads()  # sums are rounded differently by another number of them
    return args


def decided_precision(args: argparse.Namespace, inherited: Mapping[str, Any]) -> str:
    """What `--precision auto` stands for: what the run was started with or the model trained in, for good; in a new run what
    this machine computes in. Networks of other code bases are tested as those do, in fp32."""
    if args.precision != "auto":
        return str(args.precision)
    kept = inherited.get("precision", "auto")
    if kept != "auto":
        return str(kept)
    return "fp32" if args.test_only else own_precision(default_device())


def check_trust(early: argparse.Namespace, saved: dict[str, Any]) -> None:
    """A run or checkpoint is data, not orders. Raises UserError where it would run code that this command line does not
    name, and forgets the folder it kept features in, where a test would write, and the set it was tested on."""
    for name in ("method", "backbone"):
        found = saved.get(name)
        is_named = early.trust_checkpoint or getattr(early, name, None) == found
        if isinstance(found, str) and is_own_code(found) and not is_named:
            raise UserError(
                f"{early.test_model_name or early.checkpoint_dir} wants to run code from {found.rpartition(':')[0]}: if that "
                f"is what you want, say so by --{name} {found}, or by --trust_checkpoint"
            )
    if early.test_only:
        saved.pop("features", None)
        saved.pop("test_dataset", None)
        if saved.get("episodes") and not early.episodes and not Path(saved["episodes"]).exists():
            raise UserError(
                f"the sealed episodes {saved['episodes']} of {early.test_model_name} are not there: give them with --episodes"
            )


def inherited_settings(early: argparse.Namespace, settings_in: SettingsIn) -> dict[str, Any]:
    """Those of the run that is resumed, or of the checkpoint that is tested; else none."""
    folder = Path(early.checkpoint_dir or ".")
    if early.test_only:
        early.test_model_name = str(find_checkpoint(folder, early.test_model_name))
        return settings_in(Path(early.test_model_name), early)
    if not early.resume_from_checkpoint:
        return {}
    RunFolder(folder, resume=True, writes=False)
    saved = read_json(folder / "args.json")
    if not isinstance(saved, dict) or "test_only" not in saved:
        raise UserError(f"{folder}/args.json holds no settings of a run: restore it or start a new run with another -c")
    if saved["test_only"]:
        raise UserError(f"{folder} holds a test without training, nothing to resume: leave out -r, give another -c")
    return saved


def check_inherited(args: argparse.Namespace, inherited: dict[str, Any], parser: Parser) -> None:
    """Raises UserError where a flag would make another run, or another model, of what it inherits from."""
    for action in parser.flags():
        name = action.dest
        if name not in inherited or (now := getattr(args, name)) == inherited[name]:
            continue
        if args.resume_from_checkpoint and not action.resumable:
            raise UserError(
                f"--{name} was {inherited[name]} when this run was started and is {now} now: leave it out to resume it, "
                "or start a new run with another -c"
            )
        if args.test_only and action.of_model:
            raise UserError(
                f"the checkpoint {args.test_model_name} was trained with --{name} {inherited[name]}, not {now}: leave the "
                "flag out, or give another checkpoint with -m"
            )


def check_common(args: argparse.Namespace) -> None:
    """Raises UserError for shared flags that contradict each other, or the machine."""
    if args.no_pretrained and args.pretrained_backbone:
        raise UserError("--no_pretrained and --pretrained_backbone contradict each other: give one of them")
    if args.nesterov and not args.momentum:
        raise UserError("--nesterov is a kind of momentum: leave it out, or give --momentum")
    if args.compile and args.checkpoint_activations:
        raise UserError("--compile cannot translate what --checkpoint_activations computes again: give one of them")
    available = torch.cuda.device_count()
    if args.num_gpus > 1 and int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise UserError(
            "--num_gpus spreads one process over GPUs, torchrun gives each process one GPU: use one of them"
        )
    if args.num_gpus > max(1, available):
        raise UserError(f"--num_gpus is {args.num_gpus}, but this machine has {available}: lower it")


def check_test_model(args: argparse.Namespace, *, validates: bool) -> None:
    """Raises UserError for a checkpoint to test that neither exists nor will be written by this run."""
    written = {LATEST, FINAL, *([BEST] if validates else [])}
    if args.test_model_name and not args.test_only and args.test_model_name not in written:
        find_checkpoint(Path(args.checkpoint_dir), args.test_model_name)


def find_checkpoint(folder: Path, name: str | None) -> Path:
    """The checkpoint to test: `name` as a path or in the run folder, else the best on validation, else the final one."""
    if name is not None:
        for path in (Path(name), folder / name):
            if path.is_file():
                return path
        raise UserError(f"no checkpoint {name}, neither as a path nor in {folder}: give one that exists with -m")
    for path in (folder / BEST, folder / FINAL, folder / LATEST):
        if path.is_file():
            return path
    raise UserError(
        f"{folder} holds no checkpoint to test: give one with -m, or test a model as it is initialised, with -i 0 (run.py) "
        "or --epochs 0 --untrained (run_supervised.py), instead of --test_only"
    )
