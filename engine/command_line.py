"""Command lines of all programs and scripts: flags with their ranges, recipes, and exit codes."""

from __future__ import annotations

import argparse
import io
import json
import math
import shlex
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from clips.frame_sources import BadVideo
from engine.stopping import Terminated
from utils import UserError, printable

# Exit codes: a user's mistake, and by the shell's custom 128 + the number of the signal that stopped a program.
MISTAKE, STOPPED, TERMINATED = 2, 130, 143


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows defaults, and the commands at the top as they are written."""


class Range:
    """The numbers that a flag takes; None leaves a side open."""

    def __init__(self, least: float | None, above: float | None, most: float | None, below: float | None) -> None:
        self.least, self.above, self.most, self.below = least, above, most, below

    def holds(self, value: float) -> bool:
        return (
            math.isfinite(value)
            and (self.least is None or value >= self.least)
            and (self.above is None or value > self.above)
            and (self.most is None or value <= self.most)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        if self.least is not None and self.most is not None:
            return f"{self.least} to {self.most}"
        low = [f"{self.least} or more"] if self.least is not None else []
        low += [f"more than {self.above}"] if self.above is not None else []
        high = [f"at most {self.most}"] if self.most is not None else []
        high += [f"less than {self.below}"] if self.below is not None else []
        return ", ".join(low + high) or "a finite number"


class Declaring(argparse._ActionsContainer):
    """Declares each flag with all that is known of it."""

    def add_argument(
        self,
        *names: Any,
        least: float | None = None,
        above: float | None = None,
        most: float | None = None,
        below: float | None = None,
        resumable: bool = False,
        per_start: bool = False,
        of_model: bool | None = None,
        **options: Any,
    ) -> Any:
        """As argparse's, with more to say.

        least, above, most, below: the range of its number, or of each number of its list; floats have to be finite.
        resumable: may be given anew when a run is resumed. per_start: belongs to one start of a program, so that a resumed
        run or a later test does not inherit it. of_model: decides what the model is, so that a test may not change it; unless
        they say otherwise, all flags of groups that are called model or method do.
        """
        action: Any = super().add_argument(*names, **options)
        action.range = Range(least, above, most, below)
        action.resumable, action.per_start = resumable, per_start
        decides = (getattr(self, "title", None) or "").startswith(("model", "method"))
        action.of_model = decides if of_model is None else of_model
        return action

    def add_mutually_exclusive_group(self, **options: Any) -> Alternatives:
        group = Alternatives(self, **options)
        self._mutually_exclusive_groups.append(group)
        return group


class FlagGroup(Declaring, argparse._ArgumentGroup):
    """Flags under a title."""


class Alternatives(Declaring, argparse._MutuallyExclusiveGroup):
    """Flags of which one may be given."""


class Parser(Declaring, argparse.ArgumentParser):
    """A parser whose complaints are one sentence (UserError).

    recipes: `@file.args` stands for the flags in a file, several to a line; # begins a comment.
    """

    def __init__(self, description: str | None = None, *, recipes: bool = False, **options: Any) -> None:
        settings: dict[str, Any] = {"formatter_class": HelpFormatter, "allow_abbrev": False}
        settings |= {"fromfile_prefix_chars": "@"} if recipes else {}
        super().__init__(description=description, **settings | options)

    def add_argument_group(self, title: str | None = None, **options: Any) -> FlagGroup:  # type: ignore[override]
        group = FlagGroup(self, title, **options)
        self._action_groups.append(group)
        return group

    def flags(self) -> Iterator[Any]:
        """All but --help."""
        return (action for action in self._actions if action.dest != "help")

    def parse_args(self, *arguments: Any, **options: Any) -> Any:
        args = super().parse_args(*arguments, **options)
        self.check_ranges(args)
        return args

    def check_ranges(self, args: argparse.Namespace) -> None:
        """Raises UserError for a number that is out of its flag's range."""
        for action in self.flags():
            given = getattr(args, action.dest, None)
            for value in given if isinstance(given, list) else [given]:
                if isinstance(value, (int, float)) and not action.range.holds(value):
                    raise UserError(f"--{action.dest} is {value}: expected {action.range}")

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


def outcome_of(error: BaseException, *, resume: str = "") -> tuple[int | None, str]:
    """Exit code and sentence of a program that ends by `error`; None as the code of an error that is ours.

    Below the sentence about an error of the user's own code stands its traceback. resume: how a stopped program continues.
    """
    if isinstance(error, torch.OutOfMemoryError):
        return MISTAKE, (
            f"the GPU's memory is full ({str(error).partition('. ')[0]}): use --precision bf16, --checkpoint_activations, "
            "--frames_per_call with --bn frozen, or fewer frames, pixels or queries"
        )
    if isinstance(error, (UserError, BadVideo)):
        return MISTAKE, str(error)
    if isinstance(error, KeyboardInterrupt):
        return STOPPED, f"stopped{resume}"
    if isinstance(error, Terminated):
        return TERMINATED, f"terminated{resume}"
    from backbones.own_code import blame  # late: with the backbones comes torchvision, which data_prep does without

    sentence = blame(error)
    return (MISTAKE if sentence else None), sentence or ""


def exit_code(work: Callable[[], int | None], *, resume: str = "") -> int:
    """Does the work of a script. Returns its exit code; see `outcome_of`."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal without ± or bars gets question marks, not a stack trace
    try:
        return work() or 0
    except (Exception, KeyboardInterrupt) as error:
        code, sentence = outcome_of(error, resume=resume)
        if code is None:
            raise
        print(printable(f"error: {sentence}" if code == MISTAKE else sentence), file=sys.stderr)
        return code


def check_output(path: Path, flag: str, suffixes: Collection[str]) -> None:
    """Raises UserError, before any long work, where a file could not be written."""
    if path.suffix.lower() not in suffixes:
        raise UserError(f"{flag} is {path}: expected a name that ends in {', '.join(suffixes)}")
    if not path.absolute().parent.is_dir():
        raise UserError(f"{flag} is {path}, but there is no folder {path.absolute().parent}: make it first")


def arguments(argv: Sequence[str] | None) -> list[str]:
    return list(sys.argv[1:] if argv is None else argv)
