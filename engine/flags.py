"""What the command lines of the training programs have in common: recipes, shared flags, what a continued run takes over."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import sys
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from backbones import BACKBONES
from engine.processes import Processes
from engine.training import Termination, Training, exit_code_of, keep_freed_memory
from utils import BEST, FINAL, LATEST, RunFolder, UserError, load_checkpoint, read_json

# What may change when a run goes on: how it is run, and how it is tested. All else makes it another run.
MAY_CHANGE = {
    "resume_from_checkpoint", "checkpoint_dir", "dataset", "format", "num_workers", "num_gpus", "print_freq", "save_freq",
    "test_model_name", "on_bad_video", "checkpoint_activations", "frames_per_call", "compile", "profile", "timeout",
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


def new_parser(*, description: str | None = None, add_help: bool = True) -> argparse.ArgumentParser:
    return RecipeParser(
        description=description,
        formatter_class=HelpFormatter,
        fromfile_prefix_chars="@",
        allow_abbrev=False,
        add_help=add_help,
    )


def add_run_flags(parser: argparse.ArgumentParser, *, unit: str, print_freq: int, save_freq: int) -> None:
    """The run folder, going on, testing, and how often what is written. unit: what is counted."""
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
    group.add_argument("--seed", type=int, default=0, help="decides initial weights, dropout and all that is drawn")
    group.add_argument(
        "--print_freq", type=int, default=print_freq, help=f"log mean loss and accuracy every so many {unit}s"
    )
    group.add_argument(
        "--save_freq", type=int, default=save_freq, help=f"save checkpoint.pt every so many {unit}s; 0: never between"
    )
    group.add_argument(
        "--num_workers", type=int, default=min(8, (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", 1))),
        help="processes that read ahead, for each process of the job; 0 reads in the process itself",
    )  # fmt: skip
    group.add_argument(
        "--timeout", type=float, default=600,
        help="seconds that a process of a torchrun job waits for the others, before the run ends and names them",
    )  # fmt: skip
    group.add_argument("--profile", action="store_true", help="profile the second optimiser step, into profile/ of -c")


def add_speed_flags(parser: argparse.ArgumentParser) -> Any:
    """Number formats, devices and memory. Returns the group, for more of them."""
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
        help="pass no more frames than these through the backbone at a time, whole clips, at least one; needs frozen "
        "batch norms in training. With --checkpoint_activations only one portion's activations exist at a time. 0: all at once",
    )  # fmt: skip
    group.add_argument(
        "--compile", action="store_true", help="have torch.compile translate the backbone, which takes a minute"
    )
    return group


def add_backbone_flags(group: Any, *, default: str) -> None:
    group.add_argument("--backbone", default=default, help=f"{', '.join(BACKBONES)}, or path/to/file.py:function")
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


# ---------------------------------------------------------------------------------------------------------------------
# A command line and what it goes on from


def resumed_if_restarted(argv: list[str], parser: argparse.ArgumentParser) -> list[str]:
    """The command line of a process that torchrun has started, which gives the same one to every start.

    After a restart the run goes on: -r is added. A first start with -r, of a run that is not there yet, begins it.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return argv
    given, _ = parser.parse_known_args(argv)
    exists = given.checkpoint_dir is not None and (Path(given.checkpoint_dir) / "args.json").exists()
    if exists and int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0 and not given.test_only:
        return [*argv, "-r"]
    return argv if exists else [flag for flag in argv if flag not in ("-r", "--resume_from_checkpoint")]


def parse_run(
    argv: Sequence[str],
    first_look: argparse.ArgumentParser,
    parser_for: Callable[[argparse.Namespace, dict[str, Any]], argparse.ArgumentParser],
    may_change: Collection[str],
    *,
    also_fixed: Collection[str] = (),
) -> argparse.Namespace:
    """The settings of a run: defaults, below those of the run or checkpoint that goes on, below the given flags.

    first_look: knows the flags whose values decide about the others. parser_for: the parser, from that look and what is
    gone on from. may_change: what a continued run may be given anew. also_fixed: what, beside the flags of groups that are
    called model or method, a test may not change.
    """
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
    parser = parser_for(early, saved)
    inherited = {name: value for name, value in saved.items() if name not in NOT_INHERITED}
    parser.set_defaults(**inherited)
    args = parser.parse_args(argv)
    args.test_model_name = early.test_model_name
    changed = {name for name, value in inherited.items() if getattr(args, name, value) != value}
    if args.resume_from_checkpoint and (forbidden := changed - set(may_change)):
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
    } | set(also_fixed)
    if args.test_only and (forbidden := changed & model_flags):
        name = min(forbidden)
        raise UserError(
            f"the checkpoint {args.test_model_name} was trained with --{name} {saved[name]}, not {getattr(args, name)}: "
            "leave the flag out, or give another checkpoint with -m"
        )
    return args


def check_numbers(args: argparse.Namespace, at_least_one: Iterable[str], at_least_zero: Iterable[str]) -> None:
    """Raises UserError for settings, or members of lists, that are too small."""
    for least, names in ((1, at_least_one), (0, at_least_zero)):
        for name in names:
            given = getattr(args, name)
            for value in given if isinstance(given, list) else [given]:
                if value is not None and not value >= least:
                    raise UserError(f"--{name} is {value}: expected {least} or more")


def check_common(args: argparse.Namespace) -> None:
    """Raises UserError for values of the shared flags that no run can use, and those that contradict each other."""
    if not args.timeout > 0:
        raise UserError(f"--timeout is {args.timeout}: expected a positive number of seconds")
    if args.no_pretrained and args.pretrained_backbone:
        raise UserError("--no_pretrained and --pretrained_backbone contradict each other: give one of them")
    if args.compile and args.checkpoint_activations:
        raise UserError("--compile cannot translate what --checkpoint_activations computes again: give one of them")
    available = torch.cuda.device_count()
    if args.num_gpus > 1 and int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise UserError(
            "--num_gpus spreads one process over GPUs, torchrun gives each process one GPU: use one of them"
        )
    if args.num_gpus > max(1, available):
        raise UserError(f"--num_gpus is {args.num_gpus}, but this machine has {available}: lower it")


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
        "or --epochs 0 (run_supervised.py), instead of --test_only"
    )


# ---------------------------------------------------------------------------------------------------------------------
# A program from its command line to its exit code


def run_program(
    argv: Sequence[str],
    *,
    name: str,
    first_look: argparse.ArgumentParser,
    parse: Callable[[Sequence[str]], argparse.Namespace],
    print_list: Callable[[], None],
    training: type[Training],
) -> int:
    """Parses flags, joins the other processes of the job, and lets a training learn. Returns the exit code."""
    rank = int(os.environ.get("RANK", 0))
    keep_freed_memory()
    with contextlib.ExitStack() as stack:

        def program() -> None:
            args = parse(resumed_if_restarted(list(argv), first_look))
            if args.list:
                print_list()
                return
            adds_test = args.test_only and (Path(args.checkpoint_dir) / "args.json").exists()
            resume = args.resume_from_checkpoint or adds_test
            run = RunFolder(args.checkpoint_dir, resume=resume, writes=rank == 0, columns=training.columns)
            stack.callback(run.close)
            processes = Processes(args.timeout)
            stack.callback(processes.close)
            learner = training(args, run, processes, stack.enter_context(Termination()))
            run.start(vars(args), [name, *argv], keep_settings=adds_test)
            learner.learn()

        return exit_code_of(program, rank)
