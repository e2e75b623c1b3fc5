"""The command line of run.py: its flags, with those of the methods in a table such as METHODS."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from backbones.own_code import import_from_file, is_own_code
from clips.frame_sampling import SAMPLINGS
from clips.video_split import FORMATS
from engine.command_line import Parser
from engine.flags import (
    SettingsIn,
    add_backbone_flags,
    add_clip_flags,
    add_optimiser_flags,
    add_run_flags,
    add_speed_flags,
    check_common,
    check_test_model,
    parse_run,
    settings_in_own,
)
from utils import UserError, unknown_name

Methods = Mapping[str, type[Any]]
"""Names of methods and their classes."""


def build_parser(methods: Methods, own_method: type[Any] | None = None, *, description: str | None = None) -> Parser:
    """All flags, with those of every method, and of the user's own method class if it declares any."""
    parser = Parser(description, recipes=True)
    add_run_flags(parser, unit="task", print_freq=1000, save_freq=5000)
    group = add_speed_flags(parser)
    group.add_argument(
        "--tasks_per_call", type=int, default=1, least=1,
        help="training tasks that pass through the model together: faster on small inputs; batch norms in training then "
        "take their statistics over all of them",
    )  # fmt: skip

    group = parser.add_argument_group("data")
    group.add_argument(
        "--dataset", default="data/ssv2small", resumable=True, help="folder with {train,val,test}/<class>/<video>/*.jpg"
    )
    group.add_argument(
        "--test_dataset", metavar="FOLDER", resumable=True,
        help="test on the test split of this data set instead, across domains; results are marked by what was trained on. A "
        "later --test_only names it anew",
    )  # fmt: skip
    group.add_argument(
        "--format", choices=["auto", *FORMATS], default="auto", resumable=True,
        help="how the data set is stored: folders of frames, video files, or LMDB; auto: looks",
    )  # fmt: skip
    add_clip_flags(group, seq_len="frames sampled per video", skip="draw another one of its class")
    group.add_argument(
        "--sampling", choices=SAMPLINGS, default="linspace",
        help="frames: evenly spaced; one per equal segment, random in training; evenly between random ends in training",
    )  # fmt: skip
    group.add_argument(
        "--flip", choices=["auto", "on", "off", "queries"], default="auto",
        help="mirror training clips half of the time; auto: not when a class name holds left or right; queries: target clips "
        "alone, and those of every class",
    )  # fmt: skip

    group = parser.add_argument_group("episodes")
    group.add_argument("--way", type=int, default=5, least=2, help="classes per episode")
    group.add_argument("--shot", type=int, default=5, least=1, help="support videos per class")
    group.add_argument(
        "--query_per_class", "-qpc", type=int, default=5, least=1, help="query videos per class in training"
    )
    group.add_argument(
        "--way_test", nargs="+", type=int, least=2, resumable=True,
        help="classes per episode in val and test; several are tested one after the other, the first is the result. "
        "Unset: as --way",
    )  # fmt: skip
    group.add_argument(
        "--shot_test", nargs="+", type=int, least=1, resumable=True,
        help="support videos per class in val and test; several are tested one after the other, the first is the result. "
        "Unset: as --shot",
    )  # fmt: skip
    group.add_argument(
        "--query_per_class_test", "-qpct", type=int, default=1, least=1, resumable=True,
        help="query videos per class in val and test",
    )  # fmt: skip
    group.add_argument(
        "--noisy_support", type=int, default=0, least=0,
        help="in val and test, so many support videos of each class are of other classes: tests robustness",
    )  # fmt: skip
    group.add_argument(
        "--episodes", metavar="FILE", resumable=True,
        help="the test's episodes, sealed: read from FILE if it exists, else drawn and written to it",
    )  # fmt: skip

    group = parser.add_argument_group("training and evaluation")
    group.add_argument(
        "--training_iterations", "-i", type=int, default=250020, least=0, resumable=True,
        help="training tasks; 0: test as initialised",
    )  # fmt: skip
    group.add_argument(
        "--tasks_per_batch", type=int, default=16, least=1, help="tasks whose mean gradient makes one optimiser step"
    )
    add_optimiser_flags(group, learning_rate=0.001, momentum=0.0, weight_decay=0.0)
    group.add_argument("--opt", choices=["sgd", "adam", "adamw"], default="sgd", help="optimiser")
    group.add_argument(
        "--sch", "--lr_steps", nargs="+", type=int, default=[1000000], least=1,
        help="tasks after which the learning rate changes, to a tenth of what it was or as --lr_factors says",
    )  # fmt: skip
    group.add_argument(
        "--lr_factors", nargs="+", type=float, least=0,
        help="the learning rate after each of --sch, as a part of that at the start; unset: 0.1 0.01 ...",
    )  # fmt: skip
    group.add_argument(
        "--warmup_tasks", type=int, default=0, least=0, help="in which the rate rises evenly, task by task"
    )
    group.add_argument(
        "--warmup_from", type=float, default=0.0, least=0, below=1,
        help="where the warm-up begins, as a part of the learning rate",
    )  # fmt: skip
    group.add_argument(
        "--backbone_rate", type=float, default=1.0, above=0, help="factor on the learning rate of the backbone"
    )
    group.add_argument("--no_norm_decay", action="store_true", help="weight decay leaves out norms and biases")
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
        "--freeze_backbone", action="store_true",
        help="train only what comes after the backbone, on features that are encoded once: thousands of tasks a minute, but "
        "without augmentation",
    )  # fmt: skip
    group.add_argument(
        "--separate_backbone_calls", action="store_true",
        help="pass support and query videos through the backbone one after the other, as the TRX-style libraries do; "
        "differs in batch norm statistics",
    )  # fmt: skip
    group.add_argument(
        "--val_iters", nargs="+", type=int, least=0, resumable=True,
        default=[10000, 20000, 30000, 50000, 70000, 100000, 150000, 200000, 250000],
        help="numbers of finished tasks to validate at; the best is kept for the test; 0: never",
    )  # fmt: skip
    group.add_argument(
        "--num_val_tasks", type=int, default=1000, least=1, help="episodes per validation, always the same ones"
    )
    group.add_argument(
        "--num_test_tasks", type=int, default=10000, least=1, resumable=True, help="episodes of the test"
    )
    group.add_argument(
        "--direct", action="store_true", resumable=True,
        help="in val and test read and encode every video of every episode, instead of each video once",
    )  # fmt: skip
    group.add_argument(
        "--features", metavar="DIR", resumable=True,
        help="keep the features of val and test videos in DIR, for later tests of the same weights; unset: removed after use",
    )  # fmt: skip
    group.add_argument(
        "--patience", type=int, default=0, least=0, resumable=True,
        help="stop after so many validations without a new best; 0: never",
    )  # fmt: skip
    group.add_argument(
        "--val_on_test", action="store_true",
        help="danger: validate on the test split; results are marked as chosen on test and comparable with nothing",
    )  # fmt: skip

    group = parser.add_argument_group("model")
    group.add_argument("--method", default="trx", help=f"{', '.join(methods)}, or path/to/file.py:Class of your own")
    add_backbone_flags(group, default="resnet50")
    group.add_argument(
        "--prompt", nargs="+", metavar="SENTENCE", of_model=False,
        help="what is said of a class to the text tower in the file of -pt, with {} for its name, for a method that uses class "
        "names; features of several sentences are averaged. Unset: 'a photo of {}.'",
    )  # fmt: skip
    group.add_argument(
        "--text_features", metavar="FILE", of_model=False,
        help="features of class names by any text tower, in place of those: a file of names and vectors",
    )  # fmt: skip

    for name, head in methods.items():
        if "add_arguments" in vars(head):
            head.add_arguments(parser.add_argument_group(f"method {name}"))
    if own_method and own_method not in methods.values() and "add_arguments" in vars(own_method):
        own_method.add_arguments(parser.add_argument_group(f"method {own_method.__name__}"))
    return parser


def find_method(name: str, methods: Methods) -> type[Any]:
    """The head class of a name in `methods`, or of path/to/file.py:Class."""
    if name in methods:
        return methods[name]
    if not is_own_code(name):
        raise unknown_name("method", name, methods)
    head = import_from_file(name, "method")
    if not isinstance(head, type):
        raise UserError(f"--method {name} is no subclass of CNN_FSHead: expected a class that extends model.CNN_FSHead")
    return head


def will_validate(args: argparse.Namespace) -> bool:
    return any(0 < tasks <= args.training_iterations for tasks in args.val_iters)


def parse_args(
    argv: Sequence[str], methods: Methods, *, description: str | None = None, settings_in: SettingsIn = settings_in_own
) -> argparse.Namespace:
    """The settings of a run: defaults, below those of the run or checkpoint it inherits from, below the given flags.

    description: what --help says on top. settings_in: those in a file that is tested, given a first look at the flags.
    """

    def parser_of(early: argparse.Namespace, saved: dict[str, Any]) -> Parser:
        if saved and "method" not in saved:
            raise UserError(
                "that run or checkpoint is of run_supervised.py: expected one of run.py; its backbone is given with -pt"
            )
        if early.test_only and (early.prompt or early.text_features):  # one takes the place of the other
            saved.pop("prompt", None)
            saved.pop("text_features", None)
        name = early.method or saved.get("method")
        return build_parser(methods, find_method(name, methods) if name else None, description=description)

    def averages_steps(args: argparse.Namespace) -> bool:
        return getattr(find_method(args.method, methods), "averages_steps", False)

    text = ["--prompt", "--text_features"]
    args = parse_run(argv, parser_of, decisive=text, settings_in=settings_in, averages_steps=averages_steps)
    if not args.list:
        check_args(args)
    return args


def check_args(args: argparse.Namespace) -> None:
    """Raises UserError for flags that contradict each other."""
    check_common(args)
    if args.momentum and args.opt != "sgd":
        raise UserError(f"--momentum has no effect with --opt {args.opt}: leave it out or use --opt sgd")
    if args.lr_factors and len(args.lr_factors) != len(args.sch):
        raise UserError(
            f"--lr_factors has {len(args.lr_factors)} numbers for {len(args.sch)} of --sch: give one for each"
        )
    if args.warmup_from and not args.warmup_tasks:
        raise UserError("--warmup_from has no effect without --warmup_tasks: leave it out")
    if args.no_norm_decay and not args.weight_decay:
        raise UserError("--no_norm_decay has no effect without --weight_decay: leave it out")
    if args.freeze_backbone and (args.train_layers or args.lora):
        raise UserError("--freeze_backbone trains nothing of the backbone: leave out --train_layers and --lora")
    if args.backbone_rate != 1 and (args.freeze_backbone or args.train_layers == "none"):
        raise UserError("--backbone_rate has no effect where the backbone is not trained: leave it out")
    if args.prompt and args.text_features:
        raise UserError("--prompt makes the class text that --text_features holds: give one of them")
    if args.test_dataset and Path(args.test_dataset).resolve() == Path(args.dataset).resolve():
        raise UserError(
            "--test_dataset is the --dataset itself, which is tested on anyway: leave it out, or give another"
        )
    if args.direct and args.features:
        raise UserError("--features keeps what --direct does not make: give one of them")
    check_test_model(args, validates=will_validate(args))
    if args.frames_per_call and args.bn != "frozen" and args.training_iterations and not args.test_only:
        raise UserError(
            "--frames_per_call changes what batch norms in training take their statistics over: add --bn frozen, or leave "
            "it out"
        )
    if args.tasks_per_batch % args.tasks_per_call:
        raise UserError(
            f"--tasks_per_call is {args.tasks_per_call}: expected a divisor of --tasks_per_batch {args.tasks_per_batch}"
        )
