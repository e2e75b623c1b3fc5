"""Processes in which something is scarce, and what they said before they ended."""

from __future__ import annotations

import ctypes
import dataclasses
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from jobs import in_a_fork

import run

REFUSED = 77  # exit code of a process that was not allowed to make its condition


@dataclasses.dataclass(frozen=True)
class Ending:
    """How a process ended: its exit code, what it printed, and the seconds that it took."""

    code: int
    said: str
    seconds: float

    def sentence(self) -> str:
        """The one sentence of a refusal."""
        assert self.code == 2, self.said
        assert "Traceback" not in self.said, self.said
        (sentence,) = [line for line in self.said.splitlines() if line.startswith("error: ")]
        return sentence


def ending_of(work: Callable[[], int], folder: Path) -> Ending:
    """Lets a copy of this process do some work; `folder` is for what it prints."""

    def noted() -> int:
        with open(folder / "said.txt", "w") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1) for number in (1, 2))
        return work()

    started = time.monotonic()
    code = in_a_fork(noted)
    seconds = time.monotonic() - started
    said = (folder / "said.txt").read_text()
    if code == REFUSED:
        pytest.skip(said)
    return Ending(code, said, seconds)


def program(argv: Sequence[Any], main: Callable[[list[str]], int] = run.main) -> Callable[[], int]:
    return lambda: main([str(flag) for flag in argv])


def with_small_shm(work: Callable[[], int], size: int) -> Callable[[], int]:
    """The work where /dev/shm has `size` bytes, as in a container. Only root may make that."""

    def there() -> int:
        system = ctypes.CDLL(None, use_errno=True)
        new_mounts, recursive, private = 0x20000, 0x4000, 1 << 18
        if (
            system.unshare(new_mounts)
            or system.mount(b"none", b"/", None, recursive | private, None)
            or system.mount(b"none", b"/dev/shm", b"tmpfs", 0, f"size={size}".encode())
        ):
            print(f"a /dev/shm of its own was refused: {os.strerror(ctypes.get_errno())}")
            return REFUSED
        assert os.statvfs("/dev/shm").f_blocks * os.statvfs("/dev/shm").f_frsize == size
        return work()

    return there
