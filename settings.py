"""The command line of run.py: its flags, what a continued run or a test takes over, and the method that they name."""

from __future__ import annotations

import argparse
import copy
import json
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from backbones import BACKBONES, build_backbone, import_from_file
from backbones.figures import figures
from model import (
    CNN_CMN,
    CNN_OTAM,
    CNN_PAL,
    CNN_TRX,
    CNN_TSN,
    CNN_BiMHM,
    CNN_Chamfer,
    CNN_ChamferPlusPlus,
    CNN_ChamferQuery,
    CNN_ChamferSupport,
    CNN_Diagonal,
    CNN_DualPrototypes,
    CNN_FSHead,
    CNN_Linear,
    CNN_Max,
    CNN_Mean,
)
from utils import RunFolder, UserError, load_checkpoint, read_json, unknown_name
from video_reader import SAMPLINGS
from video_split import FORMATS

METHODS: dict[str, type[CNN_FSHead]] = {
    "tsn": CNN_TSN,
    "trx": CNN_TRX,
    "dual_prototypes": CNN_DualPrototypes,
    "otam": CNN_OTAM,
    "pal": CNN_PAL,
    "cmn": CNN_CMN,
    "mean": CNN_Mean,
    "max": CNN_Max,
    "diag": CNN_Diagonal,
    "linear": CNN_Linear,
    "chamfer_q": CNN_ChamferQuery,
    "chamfer_s": CNN_ChamferSupport,
    "chamfer": CNN_Chamfer,
    "chamfer++": CNN_ChamferPlusPlus,
    "bimhm": CNN_BiMHM,
}

LATEST, BEST, FINAL = "checkpoint.pt", "checkpoint_best_val.pt", "checkpoint_final.pt"

# What may change when a run goes on: how it is run, how long, and how it is tested. All else makes it another run.
MAY_CHANGE_ON_RESUME = {
    "resume_from_checkpoint", "checkpoint_dir", "dataset", "format", "num_workers", "num_gpus", "print_freq", "save_freq",
    "training_iterations", "val_iters", "num_test_tasks", "way_test", "shot_test", "query_per_class_test",
    "test_model_name", "patience", "on_bad_video", "episodes", "direct", "features", "checkpoint_activations",
    "frames_per_call", "compile", "profile", "timeout",
}  # fmt: skip

# What a run or test that goes on from another does not take from it: where it runs, and what it was asked to do.
NOT_INHERITED = {
    "checkpoint_dir", "resume_from_checkpoint", "test_only", "test_model_name", "list", "num_workers", "num_gpus",
    "profile", "timeout",
}  # fmt: skip


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows defaults, and the commands at the top as they are written."""


class RecipeParser(argparse.ArgumentParser):
    """Reads `@file.args` recipes: several flags to a line, # begins a comment. A wrong flag is one sentence, exit code 2."""

    def convert_arg_line_to_args(self, arg_line: str) -> list[str]:
        try:
            return shlex.split(arg_line, comments=True)
        except ValueError as error:
            raise UserError(f"a recipe holds the line {arg_line!r}, which cannot be read: {error}") from error

    def _get_option_tuples(self, option_string: str) -> list[Any]:
        # `allow_abbrev=False` is about --long flags only: argparse would still take -l for -lr.
        return [found for found in super()._get_option_tuples(option_string) if option_string.startswith(found[1])]

    def error(self, message: str) -> Any:
        raise UserError(f"{message}; see python {Path(sys.argv[0]).name} --help")


class KeyValues(argparse.Action):
    """key=value words as a dict; values are numbers or true/false where they read so, else text."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        pairs = {}
        for word in values:
            key, equals, value = word.partition("=")
            if not key or not equals:
                parser.error(f"argument {option_string}: expected key=value, found '{word}'")
            try:
                pairs[key] = json.loads(value.lower())
            except ValueError:
                pairs[key] = value
        setattr(namespace, self.dest, pairs)


def build_parser(
    own_method: type[CNN_FSHead] | None = None, *, add_help: bool = True, description: str | None = None
) -> argparse.ArgumentParser:
    """All flags, with those of every method, and of one's own method class if it declares any."""
    parser = RecipeParser(
        description=description,
        formatter_class=HelpFormatter,
        fromfile_prefix_chars="@",
        allow_abbrev=False,
        add_help=add_help,
    )
    parser.add_argument("--list", action="store_true", help="print methods and backbones with their sizes, and stop")

    group = parser.add_argument_group("run")
    group.add_argument(
        "--checkpoint_dir", "-c", help="folder of the run: logs, checkpoints and results are written there"
    )
    group.add_argument(
        "--resume_from_checkpoint", "-r", action="store_true",
        help="go on with the run in -c where it was stopped; settings that are not given come from it",
    )  # fmt: skip
    group.add_argument(
        "--test_only", action="store_true",
        help="test a checkpoint without training; settings that are not given come from the checkpoint",
    )  # fmt: skip
    group.add_argument(
        "--test_model_name", "-m",
        help="checkpoint to test: a path, or a file name in -c; unset: the best on validation, else the final one",
    )  # fmt: skip
    group.add_argument("--seed", type=int, default=0, help="decides initial weights, dropout and every episode")
    group.add_argument("--print_freq", type=int, default=1000, help="log mean loss and accuracy every so many tasks")
    group.add_argument(
        "--save_freq", type=int, default=5000, help="save checkpoint.pt every so many tasks; 0: never between"
    )
    group.add_argument(
        "--num_workers", type=int, default=min(8, (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", 1))),
        help="processes that read episodes ahead, for each process of the job; 0 reads in the process itself",
    )  # fmt: skip
    group.add_argument(
        "--timeout", type=float, default=600,
        help="seconds that a process of a torchrun job waits for the others, before the run ends and names them",
    )  # fmt: skip
    group.add_argument("--profile", action="store_true", help="profile the second optimiser step, into profile/ of -c")

    group = parser.add_argument_group("speed and memory")
    group.add_argument(
        "--precision", choices=["fp32", "bf16", "fp16"], default="fp32",
        help="of the backbone; heads compute in float32. bf16 is several times faster where the hardware has it",
    )  # fmt: skip
    group.add_argument(
        "--no_tf32", action="store_true", help="on GPUs multiply float32 in full precision, several times slower"
    )
    group.add_argument("--num_gpus", type=int, default=1,
                       help="GPUs of this one process to spread the backbone over, by whole clips; see torchrun")  # fmt: skip
    group.add_argument(
        "--checkpoint_activations", action="store_true",
        help="keep only the input of each block of the backbone and compute the rest again in the backward pass: same "
        "results, a third more time, a fraction of the memory",
    )  # fmt: skip
    group.add_argument(
        "--frames_per_call", type=int, default=0,
        help="pass no more frames than these through the backbone at a time, whole clips, at least one; needs --bn frozen "
        "in training. With --checkpoint_activations only one portion's activations exist at a time. 0: all at once",
    )  # fmt: skip
    group.add_argument(
        "--tasks_per_call", type=int, default=1,
        help="training tasks that pass through the model together: faster on small inputs; batch norms in training then "
        "take their statistics over all of them",
    )  # fmt: skip
    group.add_argument(
        "--compile", action="store_true", help="have torch.compile translate the backbone, which takes a minute"
    )

    group = parser.add_argument_group("data")
    group.add_argument("--dataset", default="data/ssv2small", help="folder with {train,val,test}/<class>/<video>/*.jpg")
    group.add_argument(
        "--format",
        choices=["auto", *FORMATS],
        default="auto",
        help="how the data set is stored: folders of frames, video files, or LMDB; auto: looks",
    )
    group.add_argument("--seq_len", type=int, default=8, help="frames sampled per video")
    group.add_argument("--img_size", type=int, help="side of the square input, pixels; unset: the backbone's own (224)")
    group.add_argument(
        "--sampling", choices=SAMPLINGS, default="linspace",
        help="frames: evenly spaced; one per equal segment, random in training; evenly between random ends in training",
    )  # fmt: skip
    group.add_argument(
        "--flip", choices=["auto", "on", "off"], default="auto",
        help="mirror training clips half of the time; auto: not when a class name holds left or right",
    )  # fmt: skip
    group.add_argument(
        "--normalise", choices=["backbone", "none"], default="backbone",
        help="pixel statistics of the backbone's weights, or none, as weights of the TRX-style libraries were trained",
    )  # fmt: skip
    group.add_argument(
        "--on_bad_video", choices=["error", "skip"], default="error",
        help="stop at a video that cannot be read, or draw another one of its class and say so",
    )  # fmt: skip

    group = parser.add_argument_group("episodes")
    group.add_argument("--way", type=int, default=5, help="classes per episode")
    group.add_argument("--shot", type=int, default=5, help="support videos per class")
    group.add_argument("--query_per_class", "-qpc", type=int, default=5, help="query videos per class in training")
    group.add_argument(
        "--way_test",
        nargs="+",
        type=int,
        help="classes per episode in val and test; several are tested one after the other, the first is the result. "
        "Unset: as --way",
    )
    group.add_argument(
        "--shot_test",
        nargs="+",
        type=int,
        help="support videos per class in val and test; several are tested one after the other, the first is the result. "
        "Unset: as --shot",
    )
    group.add_argument(
        "--noisy_support",
        type=int,
        default=0,
        help="in val and test, so many support videos of each class are of other classes: tests robustness",
    )
    group.add_argument(
        "--episodes",
        metavar="FILE",
        help="the test's episodes, sealed: read from FILE if it exists, else drawn and written to it",
    )
    group.add_argument(
        "--query_per_class_test", "-qpct", type=int, default=1, help="query videos per class in val and test"
    )

    group = parser.add_argument_group("training and evaluation")
    group.add_argument(
        "--training_iterations", "-i", type=int, default=250020, help="training tasks; 0: test as initialised"
    )
    group.add_argument(
        "--tasks_per_batch", type=int, default=16, help="tasks whose mean gradient makes one optimiser step"
    )
    group.add_argument("--learning_rate", "-lr", type=float, default=0.001, help="at the start")
    group.add_argument("--opt", choices=["sgd", "adam", "adamw"], default="sgd", help="optimiser")
    group.add_argument("--momentum", type=float, default=0.0, help="of sgd")
    group.add_argument("--weight_decay", type=float, default=0.0, help="L2 penalty; decoupled with adamw")
    group.add_argument(
        "--sch", nargs="+", type=int, default=[1000000], help="tasks after which the learning rate falls to a tenth"
    )
    group.add_argument(
        "--loss_reduction", choices=["mean", "sum"], default="mean",
        help="over an episode's queries; sum with the rate of the TRX authors equals mean with 25 times that rate",
    )  # fmt: skip
    group.add_argument(
        "--bn", choices=["train", "frozen", "sync"], default="train",
        help="batch norms of the backbone: statistics of each call's clips in training; the stored ones throughout; or "
        "those of the clips of all processes of a torchrun job",
    )  # fmt: skip
    group.add_argument(
        "--freeze_backbone",
        action="store_true",
        help="train only what comes after the backbone, on features that are encoded once: thousands of tasks a minute, but "
        "without augmentation",
    )
    group.add_argument(
        "--separate_backbone_calls", action="store_true",
        help="pass support and query videos through the backbone one after the other, as the TRX-style libraries do; "
        "differs in batch norm statistics",
    )  # fmt: skip
    group.add_argument(
        "--val_iters", nargs="+", type=int, help="numbers of finished tasks to validate at; the best is kept for the test",
        default=[10000, 20000, 30000, 50000, 70000, 100000, 150000, 200000, 250000],
    )  # fmt: skip
    group.add_argument("--num_val_tasks", type=int, default=1000, help="episodes per validation, always the same ones")
    group.add_argument("--num_test_tasks", type=int, default=10000, help="episodes of the test")
    group.add_argument(
        "--direct",
        action="store_true",
        help="in val and test read and encode every video of every episode, instead of each video once",
    )
    group.add_argument(
        "--features",
        metavar="DIR",
        help="keep the features of val and test videos in DIR, for later tests of the same weights; unset: removed after use",
    )
    group.add_argument(
        "--patience", type=int, default=0, help="stop after so many validations without a new best; 0: never"
    )
    group.add_argument(
        "--val_on_test", action="store_true",
        help="danger: validate on the test split; results are marked as chosen on test and comparable with nothing",
    )  # fmt: skip

    group = parser.add_argument_group("model")
    group.add_argument("--method", default="trx", help=f"{', '.join(METHODS)}, or path/to/file.py:Class of one's own")
    group.add_argument("--backbone", default="resnet50", help=f"{', '.join(BACKBONES)}, or path/to/file.py:function")
    group.add_argument(
        "--backbone_options",
        nargs="+",
        action=KeyValues,
        default={},
        metavar="KEY=VALUE",
        help="keywords of the backbone's builder, such as shift_div=4 for TSM; README.md lists them",
    )
    group.add_argument("--pretrained_backbone", "-pt", help="file with backbone weights; unset: ImageNet ones by name")
    group.add_argument("--no_pretrained", action="store_true", help="start the backbone from random weights")

    for name, head in METHODS.items():
        if "add_arguments" in vars(head):
            head.add_arguments(parser.add_argument_group(f"method {name}"))
    if own_method and own_method not in METHODS.values() and "add_arguments" in vars(own_method):
        own_method.add_arguments(parser.add_argument_group(f"method {own_method.__name__}"))
    return parser


def find_method(name: str) -> type[CNN_FSHead]:
    """The head class of a name in METHODS, or of path/to/file.py:Class."""
    if name in METHODS:
        return METHODS[name]
    if ":" not in name:
        raise unknown_name("method", name, METHODS)
    head = import_from_file(name, "method")
    if not (isinstance(head, type) and issubclass(head, CNN_FSHead)):
        raise UserError(f"--method {name} is no subclass of CNN_FSHead: expected a class that extends model.CNN_FSHead")
    return head


def resumed_if_restarted(argv: list[str]) -> list[str]:
    """The command line of a process that torchrun has started, which gives the same one to every start.

    After a restart the run goes on: -r is added. A first start with -r, of a run that is not there yet, begins it.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return argv
    given, _ = build_parser(add_help=False).parse_known_args(argv)
    exists = given.checkpoint_dir is not None and (Path(given.checkpoint_dir) / "args.json").exists()
    if exists and int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0 and not given.test_only:
        return [*argv, "-r"]
    return argv if exists else [flag for flag in argv if flag not in ("-r", "--resume_from_checkpoint")]


def parse_args(argv: Sequence[str], *, description: str | None = None) -> argparse.Namespace:
    """The settings of a run: defaults, below those of the run or checkpoint that goes on, below the given flags.

    description: what --help says on top.
    """
    first_look = build_parser(add_help=False)
    early, _ = first_look.parse_known_args(argv)
    if early.list:
        return early
    if early.checkpoint_dir is None and not {"-h", "--help"} & set(argv):
        raise UserError("a run folder is needed: give -c FOLDER, where logs, checkpoints and results are written")
    if early.resume_from_checkpoint and early.test_only:
        raise UserError("-r goes on with training and --test_only does not train: give one of them")

    saved: dict[str, Any] = {}
    folder = Path(early.checkpoint_dir or ".")
    if early.resume_from_checkpoint:
        RunFolder(folder, resume=True, writes=False)
        saved = read_json(folder / "args.json")
        if not isinstance(saved, dict) or "test_only" not in saved:
            raise UserError(
                f"{folder}/args.json holds no settings of a run: restore it or start a new run with another -c"
            )
        if saved["test_only"]:
            raise UserError(
                f"{folder} holds a test without training, nothing to go on with: leave out -r, give another -c"
            )
    elif early.test_only:
        early.test_model_name = str(find_checkpoint(folder, early.test_model_name))
        saved = load_checkpoint(Path(early.test_model_name))["args"]
    given_method = (
        early.method if early.method != first_look.get_default("method") else saved.get("method", early.method)
    )
    parser = build_parser(find_method(given_method), description=description)
    inherited = {name: value for name, value in saved.items() if name not in NOT_INHERITED}
    parser.set_defaults(**inherited)
    args = parser.parse_args(argv)
    args.test_model_name = early.test_model_name
    changed = {name for name, value in inherited.items() if getattr(args, name, value) != value}
    if args.resume_from_checkpoint and (forbidden := changed - MAY_CHANGE_ON_RESUME):
        name = min(forbidden)
        raise UserError(
            f"--{name} was {saved[name]} when this run was started and is {getattr(args, name)} now: leave it out to go on, "
            "or start a new run with another -c"
        )
    model_flags = {
        action.dest
        for group in parser._action_groups
        if group.title and group.title.startswith(("model", "method"))
        for action in group._group_actions
    } | {"seq_len"}
    if args.test_only and (forbidden := changed & model_flags):
        name = min(forbidden)
        raise UserError(
            f"the checkpoint {args.test_model_name} was trained with --{name} {saved[name]}, not {getattr(args, name)}: "
            "leave the flag out, or give another checkpoint with -m"
        )
    check_args(args)
    return args


def check_args(args: argparse.Namespace) -> None:
    """Raises UserError for values that no run can use and flags that contradict each other."""
    find_method(args.method)
    at_least_one = (
        "seq_len", "way", "shot", "query_per_class", "query_per_class_test", "tasks_per_batch", "num_val_tasks",
        "num_test_tasks", "print_freq", "num_gpus", "img_size", "way_test", "shot_test", "tasks_per_call",
    )  # fmt: skip
    at_least_zero = (
        "training_iterations",
        "save_freq",
        "num_workers",
        "patience",
        "seed",
        "momentum",
        "weight_decay",
        "noisy_support",
        "frames_per_call",
    )
    for least, names in ((1, at_least_one), (0, at_least_zero)):
        for name in names:
            given = getattr(args, name)
            for value in given if isinstance(given, list) else [given]:
                if value is not None and value < least:
                    raise UserError(f"--{name} is {value}: expected {least} or more")
    if not args.learning_rate > 0:
        raise UserError(f"--learning_rate is {args.learning_rate}: expected a positive number")
    if not args.timeout > 0:
        raise UserError(f"--timeout is {args.timeout}: expected a positive number of seconds")
    if args.no_pretrained and args.pretrained_backbone:
        raise UserError("--no_pretrained and --pretrained_backbone contradict each other: give one of them")
    if args.momentum and args.opt != "sgd":
        raise UserError(f"--momentum has no effect with --opt {args.opt}: leave it out or use --opt sgd")
    if args.direct and args.features:
        raise UserError("--features keeps what --direct does not make: give one of them")
    if args.test_model_name and not args.test_only:
        will_validate = any(0 < tasks <= args.training_iterations for tasks in args.val_iters)
        if args.test_model_name not in {LATEST, FINAL, *([BEST] if will_validate else [])}:
            find_checkpoint(Path(args.checkpoint_dir), args.test_model_name)
    if args.frames_per_call and args.bn != "frozen" and args.training_iterations and not args.test_only:
        raise UserError(
            "--frames_per_call changes what batch norms in training take their statistics over: add --bn frozen, or leave "
            "it out"
        )
    if args.compile and args.checkpoint_activations:
        raise UserError("--compile cannot translate what --checkpoint_activations computes again: give one of them")
    if args.tasks_per_batch % args.tasks_per_call:
        raise UserError(
            f"--tasks_per_call is {args.tasks_per_call}: expected a divisor of --tasks_per_batch {args.tasks_per_batch}"
        )
    available = torch.cuda.device_count()
    if args.num_gpus > 1 and int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise UserError(
            "--num_gpus spreads one process over GPUs, torchrun gives each process one GPU: use one of them"
        )
    if args.num_gpus > max(1, available):
        raise UserError(f"--num_gpus is {args.num_gpus}, but this machine has {available}: lower it")
    if args.img_size is not None and args.img_size < 16:
        raise UserError(f"--img_size is {args.img_size}: expected 16 pixels or more")


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
        f"{folder} holds no checkpoint to test: give one with -m, or test a model as it is initialised with -i 0 instead of "
        "--test_only"
    )


def print_list() -> None:
    """Methods with their descriptions, backbones with parameters and feature widths."""
    print("methods (--method), parameters of the head on resnet50:")
    for name, head in METHODS.items():
        args = build_parser().parse_args(["--method", name, "--no_pretrained"])
        with torch.device("meta"):
            model = build_head(args)
        parameters = sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in model.backbone.parameters())
        print(f"  {name:16}{parameters / 1e6:9.2f} M  {(head.__doc__ or '').splitlines()[0]}")
    print("\nbackbones (--backbone): clip, parameters, multiply-accumulates, steps x width of the features")
    for name, cost in figures().items():
        print(
            f"  {name:18}{cost.frames:4} x {cost.size:3} px{cost.parameters / 1e6:9.2f} M{cost.macs / 1e9:9.1f} G"
            f"{cost.steps:6} x {cost.feature_dim}"
        )


def build_head(args: argparse.Namespace, *, load_pretrained: bool = True) -> CNN_FSHead:
    """The method `args` names, on its own copy of them.

    The copy also holds `trans_linear_in_dim`, the backbone's feature width, where classes written for the TRX-style
    libraries look for it. `load_pretrained=False` leaves the backbone's weights to a checkpoint.
    """
    own_args = argparse.Namespace(**copy.deepcopy(vars(args)))
    with torch.device("meta"):
        backbone = build_backbone(args.backbone, seq_len=args.seq_len, **args.backbone_options)
        own_args.trans_linear_in_dim = backbone.feature_dim
    if not load_pretrained:
        own_args.pretrained_backbone, own_args.no_pretrained = None, True
    return find_method(args.method)(own_args)
