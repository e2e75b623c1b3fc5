"""Train, validate and test few-shot action recognition on episodes.

python run.py -c runs/first --dataset demo --method trx --backbone resnet18    a run: train, validate, test
python run.py -c runs/first -r                                                 go on after a stop, exactly
python run.py -c runs/first --test_only --shot_test 1                          test its best checkpoint another way
python run.py @scripts/trx_ssv2_otam_5shot.args --dataset DATA -c runs/trx     a recipe of a published row
python run.py --list                                                           methods and backbones
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import dataclasses
import os
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from backbones import BACKBONES, build_backbone, import_from_file
from frame_sources import BadVideo
from model import CNN_TRX, CNN_TSN, CNN_FSHead
from transforms import ClipTransform, InputSpec
from utils import (
    RunFolder,
    UserError,
    accuracy_interval,
    is_time,
    load_checkpoint,
    read_json,
    save_checkpoint,
    seed_everything,
    unknown_name,
    versions,
    write_json,
)
from video_reader import SAMPLINGS, Split, VideoDataset, read_episodes

METHODS: dict[str, type[CNN_FSHead]] = {"tsn": CNN_TSN, "trx": CNN_TRX}

LATEST, BEST, FINAL = "checkpoint.pt", "checkpoint_best_val.pt", "checkpoint_final.pt"

# What may change when a run goes on: how it is run, how long, and how it is tested. All else makes it another run.
MAY_CHANGE_ON_RESUME = {
    "resume_from_checkpoint", "checkpoint_dir", "dataset", "num_workers", "num_gpus", "print_freq", "save_freq",
    "training_iterations", "val_iters", "num_test_tasks", "way_test", "shot_test", "query_per_class_test",
    "test_model_name", "patience",
}  # fmt: skip

# What a run or test that goes on from another does not take from it: where it runs, and what it was asked to do.
NOT_INHERITED = {
    "checkpoint_dir", "resume_from_checkpoint", "test_only", "test_model_name", "list", "num_workers", "num_gpus",
}  # fmt: skip

# ---------------------------------------------------------------------------------------------------------------------
# The command line


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows defaults, and the commands at the top as they are written."""


class RecipeParser(argparse.ArgumentParser):
    """Reads `@file.args` recipes: several flags to a line, # begins a comment. A wrong flag is one sentence, exit code 2."""

    def convert_arg_line_to_args(self, arg_line: str) -> list[str]:
        return shlex.split(arg_line, comments=True)

    def error(self, message: str) -> Any:
        raise UserError(f"{message}; see python {Path(sys.argv[0]).name} --help")


def build_parser(own_method: type[CNN_FSHead] | None = None, *, add_help: bool = True) -> argparse.ArgumentParser:
    """All flags, with those of every method, and of one's own method class if it declares any."""
    parser = RecipeParser(
        description=__doc__,
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
    group.add_argument("--num_workers", type=int, default=min(8, os.cpu_count() or 1),
                       help="processes that read episodes ahead; 0 reads in the main process")  # fmt: skip
    group.add_argument("--num_gpus", type=int, default=1, help="GPUs to spread the backbone over, by whole clips")
    group.add_argument(
        "--precision", choices=["fp32", "bf16", "fp16"], default="fp32",
        help="of the backbone; heads compute in float32. bf16 is several times faster where the hardware has it",
    )  # fmt: skip

    group = parser.add_argument_group("data")
    group.add_argument("--dataset", default="data/ssv2small", help="folder with {train,val,test}/<class>/<video>/*.jpg")
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
    group.add_argument("--way_test", type=int, help="classes per episode in val and test; unset: as --way")
    group.add_argument("--shot_test", type=int, help="support videos per class in val and test; unset: as --shot")
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
        "--bn", choices=["train", "frozen"], default="train",
        help="batch norms of the backbone: batch statistics in training, or the stored ones throughout",
    )  # fmt: skip
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
        "--patience", type=int, default=0, help="stop after so many validations without a new best; 0: never"
    )
    group.add_argument(
        "--val_on_test", action="store_true",
        help="danger: validate on the test split; results are marked as chosen on test and comparable with nothing",
    )  # fmt: skip

    group = parser.add_argument_group("model")
    group.add_argument("--method", default="trx", help=f"{', '.join(METHODS)}, or path/to/file.py:Class of one's own")
    group.add_argument("--backbone", default="resnet50", help=f"{', '.join(BACKBONES)}, or path/to/file.py:function")
    group.add_argument("--pretrained_backbone", "-pt", help="file with backbone weights; unset: ImageNet ones by name")
    group.add_argument("--no_pretrained", action="store_true", help="start the backbone from random weights")

    for name, head in METHODS.items():
        if "add_arguments" in vars(head):
            head.add_arguments(parser.add_argument_group(f"method {name}"))
    if own_method is not None and "add_arguments" in vars(own_method):
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


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    """The settings of a run: defaults, below those of the run or checkpoint that goes on, below the given flags."""
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
    parser = build_parser(find_method(given_method) if ":" in given_method else None)
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
        "num_test_tasks", "print_freq", "num_gpus", "img_size", "way_test", "shot_test",
    )  # fmt: skip
    at_least_zero = ("training_iterations", "save_freq", "num_workers", "patience", "seed", "momentum", "weight_decay")
    for least, names in ((1, at_least_one), (0, at_least_zero)):
        for name in names:
            value = getattr(args, name)
            if value is not None and value < least:
                raise UserError(f"--{name} is {value}: expected {least} or more")
    if not args.learning_rate > 0:
        raise UserError(f"--learning_rate is {args.learning_rate}: expected a positive number")
    if args.no_pretrained and args.pretrained_backbone:
        raise UserError("--no_pretrained and --pretrained_backbone contradict each other: give one of them")
    if args.momentum and args.opt != "sgd":
        raise UserError(f"--momentum has no effect with --opt {args.opt}: leave it out or use --opt sgd")
    available = torch.cuda.device_count()
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
        print(f"  {name:14}{parameters / 1e6:9.2f} M  {(head.__doc__ or '').splitlines()[0]}")
    print("backbones (--backbone), parameters, feature width, input side:")
    for name in BACKBONES:
        with torch.device("meta"):
            backbone = build_backbone(name, seq_len=8)
        parameters = sum(p.numel() for p in backbone.parameters())
        print(f"  {name:14}{parameters / 1e6:9.2f} M{backbone.feature_dim:6}{backbone.input_spec.size:6} px")


# ---------------------------------------------------------------------------------------------------------------------
# Building and loading


def build_head(args: argparse.Namespace, *, load_pretrained: bool = True) -> CNN_FSHead:
    """The method `args` names, on its own copy of them.

    The copy also holds `trans_linear_in_dim`, the backbone's feature width, where classes written for the TRX-style
    libraries look for it. `load_pretrained=False` leaves the backbone's weights to a checkpoint.
    """
    own_args = argparse.Namespace(**copy.deepcopy(vars(args)))
    with torch.device("meta"):
        own_args.trans_linear_in_dim = build_backbone(args.backbone, seq_len=args.seq_len).feature_dim
    if not load_pretrained:
        own_args.pretrained_backbone, own_args.no_pretrained = None, True
    return find_method(args.method)(own_args)


def load_model_state(model: CNN_FSHead, checkpoint: dict[str, Any], path: Path) -> None:
    """Copies a checkpoint's weights into the model; every name and shape must agree."""
    try:
        model.load_state_dict(checkpoint["model"])
    except (RuntimeError, KeyError) as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise UserError(f"{path} does not fit the model: {reason}; give the settings it was trained with") from error


def input_spec_of(model: CNN_FSHead, args: argparse.Namespace) -> InputSpec:
    """What frames must be like: the backbone's own spec, with the size and normalisation that the flags ask for."""
    spec = model.backbone.input_spec
    if args.normalise == "none":
        spec = spec.unnormalised()
    return dataclasses.replace(spec, size=args.img_size or spec.size, frames=args.seq_len)


def use_channels_last(model: torch.nn.Module) -> None:
    """Stores convolution weights channels-last: frames arrive that way, and convolutions are faster on it."""
    for parameter in model.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)


def learning_rate_at(tasks_done: int, args: argparse.Namespace) -> float:
    """The base rate, divided by ten at every milestone of --sch that has passed."""
    return args.learning_rate * 0.1 ** sum(tasks_done >= milestone for milestone in args.sch)


def build_optimizer(model: torch.nn.Module, args: argparse.Namespace) -> torch.optim.Optimizer:
    parameters = [p for p in model.parameters() if p.requires_grad]
    if args.opt == "sgd":
        return torch.optim.SGD(
            parameters, lr=args.learning_rate, momentum=args.momentum, weight_decay=args.weight_decay
        )
    optimizer = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[args.opt]
    return optimizer(parameters, lr=args.learning_rate, weight_decay=args.weight_decay)


def accuracy_of(logits: Tensor, labels: Tensor) -> float:
    """Share of the queries (Q,) whose largest logit (Q, K) is their label's."""
    return int((logits.argmax(dim=-1) == labels).sum()) / len(labels)


def episode_picture(task: dict[str, Any], clips: int = 6) -> Tensor:
    """The first support and target clips as film strips, one a row: uint8 (3, height, width)."""
    frames = len(task["support_set"]) // len(task["support_labels"])
    strips = torch.cat([task["support_set"][: clips // 2 * frames], task["target_set"][: clips // 2 * frames]])
    rows, columns = len(strips) // frames, frames
    return strips.unflatten(0, (rows, columns)).permute(2, 0, 3, 1, 4).flatten(3, 4).flatten(1, 2)


# ---------------------------------------------------------------------------------------------------------------------
# The loops


@dataclasses.dataclass
class Progress:
    """Where a run stands: all of it is in every checkpoint. Counters count finished tasks."""

    tasks_done: int = 0
    in_batch: int = 0  # tasks whose gradients wait for the next optimiser step
    batch_size: int = 0  # tasks that step will be the mean of
    window: list[list[float]] = dataclasses.field(default_factory=list)  # [loss, accuracy] of tasks since the last row
    validations: list[list[float]] = dataclasses.field(default_factory=list)  # [tasks_done, accuracy, ci95]
    best_accuracy: float = -1.0
    best_tasks: int = 0
    rows_size: int = 0  # bytes of log.csv that belong to these tasks


class Learner:
    """Trains, validates and tests one method as `args` say, in the run folder."""

    def __init__(self, args: argparse.Namespace, run: RunFolder) -> None:
        self.args = args
        self.run = run
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.way_test = args.way_test or args.way
        self.shot_test = args.shot_test or args.shot
        self.progress = Progress()
        self.checkpoint = self.starting_checkpoint()

        seed_everything(args.seed)
        self.model = build_head(args, load_pretrained=self.checkpoint is None)
        self.input_spec = input_spec_of(self.model, args)
        use_channels_last(self.model)
        self.model.to(self.device)
        if args.num_gpus > 1:
            self.model.distribute_model()
        self.datasets = self.open_datasets()
        self.optimizer = build_optimizer(self.model, args)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=args.precision == "fp16")
        if self.checkpoint is not None:
            self.restore(self.checkpoint)

    # Data ------------------------------------------------------------------------------------------------------------

    def open_datasets(self) -> dict[str, VideoDataset]:
        """The splits that will be used, each checked for enough classes and videos before anything long starts."""
        args = self.args
        selection = "test" if args.val_on_test else "val"
        validates = any(0 < tasks <= args.training_iterations for tasks in args.val_iters)
        roles = {"test": "test"}
        if not args.test_only and args.training_iterations:
            roles = {"train": "train", **({"val": selection} if validates else {}), **roles}
        return {role: self.open_dataset(split, train=role == "train") for role, split in roles.items()}

    def open_dataset(self, split_name: str, *, train: bool) -> VideoDataset:
        args = self.args
        split = Split.open(args.dataset, split_name, on_bad_video=args.on_bad_video)
        flip = args.flip == "on" or (args.flip == "auto" and not split.direction_classes())
        if train and args.flip == "auto" and not flip:
            self.run.log(
                f"training clips are not mirrored: class '{split.direction_classes()[0]}' names a direction (--flip on|off)"
            )
        return VideoDataset(
            split,
            way=args.way if train else self.way_test,
            shot=args.shot if train else self.shot_test,
            queries=args.query_per_class if train else args.query_per_class_test,
            seq_len=args.seq_len,
            transform=ClipTransform(self.input_spec.size, train=train, flip=flip),
            seed=args.seed,
            sampling=args.sampling,
            on_bad_video=args.on_bad_video,
        )

    def prepare_task(self, task: dict[str, Any]) -> dict[str, Any]:
        """Moves a task to the device; frames travel as uint8 and become normalised floats there."""
        for message in task["bad_videos"]:
            self.run.log(f"left out: {message}")
        moved = {k: v.to(self.device, non_blocking=True) if isinstance(v, Tensor) else v for k, v in task.items()}
        for frames in ("support_set", "target_set"):
            moved[frames] = self.input_spec.normalise(moved[frames])
        return moved

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.args.precision)
        return torch.autocast(self.device.type, dtype=dtype) if dtype else contextlib.nullcontext()

    # Training --------------------------------------------------------------------------------------------------------

    def train(self) -> None:
        args, progress = self.args, self.progress
        if progress.tasks_done >= args.training_iterations or self.out_of_patience():
            return
        self.model.train()
        tasks = read_episodes(
            self.datasets["train"], range(progress.tasks_done, args.training_iterations), args.num_workers
        )
        bar = tqdm(total=args.training_iterations, initial=progress.tasks_done, desc="train", unit="task", disable=None)
        waiting_since, data_seconds, compute_seconds = time.perf_counter(), 0.0, 0.0
        for task in tasks:
            arrived = time.perf_counter()
            data_seconds += arrived - waiting_since
            if progress.tasks_done == 0:
                self.run.picture(0, "first training episode", episode_picture(task))
            loss, accuracy = self.train_task(task)
            progress.window.append([loss, accuracy])
            bar.update()
            bar.set_postfix(loss=f"{loss:.3f}", accuracy=f"{100 * accuracy:.0f}%", refresh=False)
            compute_seconds += time.perf_counter() - arrived

            is_last = progress.tasks_done == args.training_iterations
            if is_time(progress.tasks_done, args.print_freq) or is_last:
                self.log_window(data_seconds, compute_seconds)
                data_seconds = compute_seconds = 0.0
            if progress.tasks_done in args.val_iters:
                self.validate()
            elif is_time(progress.tasks_done, args.save_freq):
                self.save(LATEST)
            waiting_since = time.perf_counter()
            if self.out_of_patience():
                self.run.log(f"no new best in {args.patience} validations: stopped at {progress.tasks_done} tasks")
                break
        bar.close()

    def train_task(self, task: dict[str, Any]) -> tuple[float, float]:
        """Forward, backward, and an optimiser step when a batch of tasks is complete. Returns loss and accuracy."""
        args, progress = self.args, self.progress
        seed_everything(args.seed, task["index"])
        if progress.in_batch == 0:
            progress.batch_size = min(args.tasks_per_batch, args.training_iterations - progress.tasks_done)
        task = self.prepare_task(task)
        with self.autocast():
            outputs = self.model(task["support_set"], task["support_labels"], task["target_set"])
            loss = self.model.loss(task, outputs)
        if not torch.isfinite(loss):
            names = [self.datasets["train"].split.classes[label] for label in task["batch_class_list"].tolist()]
            raise UserError(
                f"the loss became {float(loss)} in training task {task['index']} (classes {', '.join(names)}): lower "
                "--learning_rate or use --precision fp32; the last checkpoint is kept"
            )
        self.scaler.scale(loss / progress.batch_size).backward()
        progress.tasks_done += 1
        progress.in_batch += 1
        if progress.in_batch == progress.batch_size:
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate_at(progress.tasks_done - 1, args)
            self.scaler.step(self.optimizer)
            self.scaler.update()
            self.optimizer.zero_grad(set_to_none=True)
            progress.in_batch = 0
        return float(loss.detach()), accuracy_of(outputs["logits"], task["target_labels"])

    def log_window(self, data_seconds: float, compute_seconds: float) -> None:
        """A row for the tasks since the last one."""
        progress, args = self.progress, self.args
        loss, accuracy = (float(mean) for mean in np.mean(progress.window, axis=0))
        seen = len(progress.window)
        progress.window.clear()
        rate = learning_rate_at(progress.tasks_done - 1, args)
        self.run.row(
            tasks=progress.tasks_done, split="train", loss=repr(loss), accuracy=repr(100 * accuracy), learning_rate=rate
        )
        self.run.log(
            f"task {progress.tasks_done}/{args.training_iterations}  loss {loss:.4f}  accuracy {100 * accuracy:.2f} %  "
            f"{data_seconds / seen:.3f} s data + {compute_seconds / seen:.3f} s compute per task"
        )
        self.run.scalars(
            progress.tasks_done, train__loss=loss, train__accuracy=100 * accuracy, train__learning_rate=rate,
            seconds_per_task__data=data_seconds / seen, seconds_per_task__compute=compute_seconds / seen,
        )  # fmt: skip

    def out_of_patience(self) -> bool:
        later = [tasks for tasks, *_ in self.progress.validations if tasks > self.progress.best_tasks]
        return 0 < self.args.patience <= len(later)

    # Evaluation ------------------------------------------------------------------------------------------------------

    def evaluate(self, role: str, num_tasks: int) -> list[float]:
        """Accuracy of each of the first `num_tasks` episodes of a split, in percent."""
        self.model.eval()
        accuracies: list[float] = []
        tasks = read_episodes(self.datasets[role], range(num_tasks), self.args.num_workers)
        bar = tqdm(tasks, total=num_tasks, desc=role, unit="task", disable=None, leave=False)
        with torch.inference_mode(), self.autocast():
            for raw in bar:
                task = self.prepare_task(raw)
                outputs = self.model(task["support_set"], task["support_labels"], task["target_set"])
                accuracies.append(100 * accuracy_of(outputs["logits"], task["target_labels"]))
                bar.set_postfix(accuracy=f"{np.mean(accuracies):.1f}%", refresh=False)
        self.model.train()
        return accuracies

    def validate(self) -> None:
        """Validates, keeps the model if it is the best so far, and saves."""
        progress, split = self.progress, self.datasets["val"].split.name
        accuracy, ci95 = accuracy_interval(self.evaluate("val", self.args.num_val_tasks))
        progress.validations.append([progress.tasks_done, accuracy, ci95])
        is_best = accuracy > progress.best_accuracy
        if is_best:
            progress.best_accuracy, progress.best_tasks = accuracy, progress.tasks_done
        self.run.row(tasks=progress.tasks_done, split=split, accuracy=repr(accuracy), ci95=repr(ci95))
        warning = "  (on the TEST split: not comparable)" if self.args.val_on_test else ""
        self.run.log(
            f"validation after {progress.tasks_done} tasks: {accuracy:.2f} +/- {ci95:.2f} % on {split}{warning}"
            f"{', the best so far' if is_best else ''}"
        )
        self.run.scalars(progress.tasks_done, **{f"{split}__accuracy": accuracy, f"{split}__ci95": ci95})
        if is_best:
            self.save(BEST)
        self.save(LATEST)

    def test(self, checkpoint_path: Path) -> None:
        """Tests the weights of a checkpoint and writes results.json."""
        args = self.args
        checkpoint = load_checkpoint(checkpoint_path)
        load_model_state(self.model, checkpoint, checkpoint_path)
        accuracies = self.evaluate("test", args.num_test_tasks)
        accuracy, ci95 = accuracy_interval(accuracies)
        validations = checkpoint["progress"]["validations"]
        selected_on = "nothing" if not validations else "test" if checkpoint["args"]["val_on_test"] else "val"
        split = self.datasets["test"].split
        results = {
            "accuracy": accuracy,
            "ci95": ci95,
            "tasks": args.num_test_tasks,
            "seed": args.seed,
            "way": self.way_test,
            "shot": self.shot_test,
            "queries_per_class": args.query_per_class_test,
            "split": split.name,
            "dataset": args.dataset,
            "split_fingerprint": split.fingerprint,
            "method": args.method,
            "backbone": args.backbone,
            "checkpoint": checkpoint_path.name,
            "checkpoint_tasks": checkpoint["progress"]["tasks_done"],
            "selected_on": selected_on,
            "precision": args.precision,
            "versions": versions(),
        }
        self.run.retire("results.json")
        if self.run.writes:
            write_json(self.run.path / "results.json", results)
        chance = 100 / self.way_test
        self.run.log(
            f"test: {accuracy:.2f} +/- {ci95:.2f} %  ({self.way_test}-way {self.shot_test}-shot, {args.num_test_tasks} "
            f"tasks, {args.method} on {args.backbone}, {checkpoint_path.name} after {results['checkpoint_tasks']} tasks)"
        )
        if selected_on == "test":
            self.run.log("this checkpoint was CHOSEN ON THE TEST SPLIT (--val_on_test): comparable with nothing")
        if accuracy - ci95 < chance + 5:
            self.run.log(
                f"this is close to chance ({chance:.0f} %): expected after few tasks from random weights; train longer, or "
                "start from pretrained weights"
            )
        self.run.scalars(results["checkpoint_tasks"], test__accuracy=accuracy, test__ci95=ci95)

    # Checkpoints -----------------------------------------------------------------------------------------------------

    def starting_checkpoint(self) -> dict[str, Any] | None:
        """What a resumed run goes on from, or a test takes its weights from; None for a new run."""
        if self.args.test_only:
            return load_checkpoint(Path(self.args.test_model_name))
        path = self.run.path / LATEST
        if not self.args.resume_from_checkpoint:
            return None
        if not path.exists():
            self.run.log("the run was stopped before its first checkpoint: it starts again from task 0")
            self.run.rewind_rows(0)
            return None
        return load_checkpoint(path)

    def save(self, name: str) -> None:
        """Everything that an exact continuation needs, under a name in the run folder."""
        self.progress.rows_size = self.run.rows_size()
        content = {
            "args": vars(self.args),
            "progress": dataclasses.asdict(self.progress),
            "input_spec": dataclasses.asdict(self.input_spec),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "gradients": [p.grad for p in self.model.parameters()] if self.progress.in_batch else [],
        }
        if self.run.writes:
            save_checkpoint(self.run.path / name, content)

    def restore(self, checkpoint: dict[str, Any]) -> None:
        """Takes up a checkpoint; only its weights are used when testing."""
        source = Path(self.args.test_model_name or self.run.path / LATEST)
        load_model_state(self.model, checkpoint, source)
        if self.args.test_only:
            return
        self.progress = Progress(**checkpoint["progress"])
        self.optimizer.load_state_dict(checkpoint["optimizer"])
        self.scaler.load_state_dict(checkpoint["scaler"])
        for parameter, gradient in zip(self.model.parameters(), checkpoint["gradients"]):  # noqa: B905  [] between batches
            parameter.grad = None if gradient is None else gradient.to(parameter)
        self.run.rewind_rows(self.progress.rows_size)
        self.run.log(f"going on after {self.progress.tasks_done} tasks")

    # All of it -------------------------------------------------------------------------------------------------------

    def learn(self) -> None:
        """Train, then test the checkpoint that validation chose (the final one if there was no validation)."""
        args = self.args
        if args.test_only:
            self.test(Path(args.test_model_name))
            return
        if args.resume_from_checkpoint and (self.run.path / FINAL).exists() and self.is_finished():
            self.run.log(
                f"this run is finished ({self.progress.tasks_done} tasks): raise -i to train on, or use --test_only"
            )
            return
        self.run.open_board(self.progress.tasks_done)
        if args.training_iterations and "val" not in self.datasets:
            self.run.log("no validation: none of --val_iters lies within -i, so the final model will be tested")
        self.train()
        self.save(LATEST)
        self.save(FINAL)
        self.test(find_checkpoint(self.run.path, args.test_model_name))

    def is_finished(self) -> bool:
        reached_end = self.progress.tasks_done >= self.args.training_iterations or self.out_of_patience()
        return reached_end and (self.run.path / "results.json").exists()


def main(argv: Sequence[str] | None = None) -> int:
    argv = list(sys.argv[1:] if argv is None else argv)
    run = None
    try:
        args = parse_args(argv)
        if args.list:
            print_list()
            return 0
        adds_test = args.test_only and (Path(args.checkpoint_dir) / "args.json").exists()
        run = RunFolder(args.checkpoint_dir, resume=args.resume_from_checkpoint or adds_test)
        learner = Learner(args, run)
        run.start(vars(args), [Path(__file__).name, *argv], keep_settings=adds_test)
        learner.learn()
        return 0
    except (UserError, BadVideo) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; go on from the last checkpoint with -r", file=sys.stderr)
        return 130
    finally:
        if run is not None:
            run.close()


if __name__ == "__main__":
    sys.exit(main())
