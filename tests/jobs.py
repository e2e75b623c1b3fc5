"""Programs in processes of their own: killed at chosen moments, ended from outside, or several as one job."""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

import run
from utils import load_checkpoint

ROOT = Path(run.__file__).parent
Main = Callable[[list[str]], int]
IsTime = Callable[[str, tuple[Any, ...]], bool]


def learnt(path: Path) -> dict[str, Any]:
    """A checkpoint without the flags, its tensors as bytes."""

    def comparable(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return value.dtype, tuple(value.shape), value.contiguous().numpy().tobytes()
        if isinstance(value, dict):
            return {name: comparable(content) for name, content in value.items()}
        return [comparable(content) for content in value] if isinstance(value, (list, tuple)) else value

    checkpoint = load_checkpoint(path)
    del checkpoint["args"]
    return comparable(checkpoint)


# Forks of this process -----------------------------------------------------------------------------------------------


def quietly(argv: Sequence[Any], main: Main = run.main) -> int:
    with contextlib.redirect_stdout(io.StringIO()):
        return main([str(flag) for flag in argv])


def in_a_fork(work: Callable[[], int]) -> int:
    """Exit code of `work` in a process of its own; its data loader's workers, if it left any, are not waited for."""
    process = multiprocessing.get_context("fork").Process(target=lambda: sys.exit(work()))
    process.start()
    while process.exitcode is None:
        time.sleep(0.005)
    return process.exitcode


def signalled_when(
    is_time: IsTime,
    argv: Sequence[Any],
    moments: Sequence[tuple[Any, str]],
    *,
    main: Main = run.main,
    number: int = signal.SIGKILL,
) -> int:
    """Exit code of the program, which gets a signal just before the first moment that `is_time` holds for.

    moments: (owner, name) of the functions at whose calls `is_time(name, arguments)` is asked.
    """

    def watched(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if is_time(name, args):
                os.kill(os.getpid(), number)
            return original(*args, **kwargs)

        return call

    def work() -> int:
        for owner, name in moments:
            setattr(owner, name, watched(name, getattr(owner, name)))
        return quietly(argv, main)

    return in_a_fork(work)


def nth(wanted: int, name: str, file: str | None = None) -> IsTime:
    """The wanted-th time, from 1, that `name` is called, for replace: with the target `file`."""
    count = 0

    def is_time(moment: str, args: tuple[Any, ...]) -> bool:
        nonlocal count
        if name in (moment, "any") and (file is None or Path(args[1]).name == file):
            count += 1
            return count == wanted
        return False

    return is_time


# Programs as the shell starts them -----------------------------------------------------------------------------------


@contextlib.contextmanager
def job(command: list[Any], output: Any = subprocess.PIPE) -> Iterator[subprocess.Popen[str]]:
    """A running program, ended with all its processes at the latest when the block ends."""
    with subprocess.Popen(
        [str(word) for word in command], cwd=ROOT, text=True, start_new_session=True, stdout=output,
        stderr=subprocess.STDOUT,
    ) as process:  # fmt: skip
        try:
            yield process
        finally:
            if process.poll() is None:
                children = workers_of(process)
                os.killpg(process.pid, signal.SIGKILL)
                for child in children:  # each leads a group of its own
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(child, signal.SIGKILL)


def finish(command: list[Any]) -> str:
    """What a job that succeeds within two minutes prints."""
    with job(command) as process:
        out, _ = process.communicate(timeout=120)
    assert process.returncode == 0, out
    return out


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    give_up = time.monotonic() + 60
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < give_up, "it never came to it"
        time.sleep(0.01)


def workers_of(process: subprocess.Popen[str]) -> list[int]:
    """The processes that torchrun has started, by rank."""
    ranks = {}
    for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
        variables = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
        rank = next((v[5:] for v in variables if v.startswith(b"RANK=")), None)
        if rank is not None:
            ranks[int(rank)] = int(child)
    return [ranks[rank] for rank in sorted(ranks)]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def as_one_job(argvs: Sequence[Sequence[Any]], main: Main) -> list[int | None]:
    """Exit codes of a program in several processes, with the variables that torchrun would give them."""
    port = free_port()

    def work(rank: int, argv: Sequence[Any]) -> None:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(len(argvs))}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        sys.exit(quietly(argv, main))

    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=work, args=(rank, argv)) for rank, argv in enumerate(argvs)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        process.kill()
        process.join()
    return [process.exitcode for process in processes]
