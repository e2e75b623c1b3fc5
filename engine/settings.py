"""The command line of run.py: its flags, and the method that they name."""

from __future__ import annotations

import argparse
import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from backbones import build_backbone, import_from_file
from backbones.figures import print_backbones
from clips.frame_sampling import SAMPLINGS
from clips.video_split import FORMATS
from engine.flags import (
    BEST,
    FINAL,
    LATEST,
    MAY_CHANGE,
    add_backbone_flags,
    add_run_flags,
    add_speed_flags,
    check_common,
    check_numbers,
    find_checkpoint,
    new_parser,
    parse_run,
)
from methods.arn import CNN_ARN
from methods.cmn import CNN_CMN
from methods.otam import CNN_OTAM
from methods.pal import CNN_PAL
from methods.similarity import (
    CNN_BiMHM,
    CNN_Chamfer,
    CNN_ChamferPlusPlus,
    CNN_ChamferQuery,
    CNN_ChamferSupport,
    CNN_Diagonal,
    CNN_Linear,
    CNN_Max,
    CNN_Mean,
)
from model import CNN_TRX, CNN_TSN, CNN_DualPrototypes, CNN_FSHead
from utils import UserError, unknown_name

METHODS: dict[str, type[CNN_FSHead]] = {
    "tsn": CNN_TSN,
    "trx": CNN_TRX,
    "dual_prototypes": CNN_DualPrototypes,
    "otam": CNN_OTAM,
    "pal": CNN_PAL,
    "cmn": CNN_CMN,
    "arn": CNN_ARN,
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

# What may change when a run goes on: how it is run, how long, and how it is tested. All else makes it another run.
MAY_CHANGE_ON_RESUME = MAY_CHANGE | {
    "training_iterations", "val_iters", "num_test_tasks", "way_test", "shot_test", "query_per_class_test", "patience",
    "episodes", "direct", "features",
}  # fmt: skip


def build_parser(
    own_method: type[CNN_FSHead] | None = None, *, add_help: bool = True, description: str | None = None
) -> argparse.ArgumentParser:
    """All flags, with those of every method, and of one's own method class if it declares any."""
    parser = new_parser(description=description, add_help=add_help)
    parser.add_argument("--list", action="store_true", help="print methods and backbones with their sizes, and stop")
    add_run_flags(parser, unit="task", print_freq=1000, save_freq=5000)
    group = add_speed_flags(parser)
    group.add_argument(
        "--tasks_per_call", type=int, default=1,
        help="training tasks that pass through the model together: faster on small inputs; batch norms in training then "
        "take their statistics over all of them",
    )  # fmt: skip

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
    add_backbone_flags(group, default="resnet50")

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
    check_numbers(args, at_least_one, at_least_zero)
    check_common(args)
    if not args.learning_rate > 0:
        raise UserError(f"--learning_rate is {args.learning_rate}: expected a positive number")
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
    if args.tasks_per_batch % args.tasks_per_call:
        raise UserError(
            f"--tasks_per_call is {args.tasks_per_call}: expected a divisor of --tasks_per_batch {args.tasks_per_batch}"
        )
    if args.img_size is not None and args.img_size < 16:
        raise UserError(f"--img_size is {args.img_size}: expected 16 pixels or more")


def print_list() -> None:
    """Methods with their descriptions, backbones with parameters and feature widths."""
    print("methods (--method), parameters of the head on resnet50:")
    for name, head in METHODS.items():
        args = build_parser().parse_args(["--method", name, "--no_pretrained"])
        with torch.device("meta"):
            model = build_head(args)
        parameters = sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in model.backbone.parameters())
        print(f"  {name:16}{parameters / 1e6:9.2f} M  {(head.__doc__ or '').splitlines()[0]}")
    print()
    print_backbones()


def parse_args(argv: Sequence[str], *, description: str | None = None) -> argparse.Namespace:
    """The settings of a run: defaults, below those of the run or checkpoint that goes on, below the given flags.

    description: what --help says on top.
    """
    first_look = build_parser(add_help=False)

    def parser_for(early: argparse.Namespace, saved: dict[str, Any]) -> argparse.ArgumentParser:
        if saved and "method" not in saved:
            raise UserError(
                "that run or checkpoint is of run_supervised.py: expected one of run.py; its backbone is given with -pt"
            )
        is_given = early.method != first_look.get_default("method")
        method = early.method if is_given else saved.get("method", early.method)
        return build_parser(find_method(method), description=description)

    args = parse_run(argv, first_look, parser_for, MAY_CHANGE_ON_RESUME, also_fixed={"seq_len"})
    if not args.list:
        check_args(args)
    return args


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
