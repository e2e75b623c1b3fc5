"""What the command lines of these scripts have in common."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from frame_sources import BadVideo
from utils import UserError


def new_parser(description: str | None) -> argparse.ArgumentParser:
    """A parser that shows the commands at the top of a script as they are written."""
    return argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )


def exit_code(work: Callable[[], None]) -> int:
    """Does the work of a script. A mistake of its user is printed as one sentence, with code 2."""
    try:
        work()
    except (UserError, BadVideo) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def check_output(path: Path, flag: str, suffixes: Sequence[str]) -> None:
    """Raises UserError, before any long work, where a file could not be written."""
    if path.suffix.lower() not in suffixes:
        raise UserError(f"{flag} is {path}: expected a name that ends in {', '.join(suffixes)}")
    if not path.absolute().parent.is_dir():
        raise UserError(f"{flag} is {path}, but there is no folder {path.absolute().parent}: make it first")
