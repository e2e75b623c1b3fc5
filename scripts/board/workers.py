"""The work: several processes at a time, each for one run. They are forks of this one, which has imported everything."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import resource
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import torch

import run
from engine.command_line import STOPPED, TERMINATED
from engine.stopping import Terminated
from scripts.board.runs import COST, is_done, outcome_file, reason
from utils import BEST, FINAL, LATEST, UserError, locked, read_json, write_json


@dataclasses.dataclass(frozen=True)
class Job:
    """A run to be made: its folder, the command line of a new one, whether its work is done, and whether the checkpoint that
    was tested stays."""

    name: str
    folder: Path
    argv: list[str]
    main: Callable[[list[str]], int] = run.main
    done: Callable[[Path], bool] = is_done
    asked: list[str] = dataclasses.field(default_factory=list)
    keeps_checkpoint: bool = True

    def check(self) -> None:
        """Raises UserError where the folder holds a run that was asked for something else."""
        path = self.folder / "command.txt"
        if self.asked and path.exists():
            begun = path.read_text(errors="replace").partition("\n")[0]
            if not begun.endswith(f" {shlex.join(self.asked)}"):
                raise UserError(
                    f"{self.folder} holds a run with other settings ({begun}), expected {shlex.join(self.asked)}: give another "
                    "--out, or remove it"
                )

    def run(self) -> int:
        """Makes, or goes on with, the run in this process. Returns its exit code."""
        with locked(self.folder.with_name(f".{self.folder.name}.lock"), wait=True):
            if self.done(self.folder):  # by another shard, meanwhile
                return 0
            started = time.perf_counter()
            resumes = (self.folder / "args.json").exists()
            place = self.argv.index("--num_workers")
            again = ["-c", str(self.folder), "-r", *self.argv[place : place + 2]]
            code = self.main(again if resumes else self.argv)
            if (self.folder / "args.json").exists():
                add_cost(self.folder, time.perf_counter() - started)
            if code == 0 and self.main is run.main:
                drop_checkpoints(self.folder, but_tested=self.keeps_checkpoint)
            return code


def drop_checkpoints(folder: Path, *, but_tested: bool) -> None:
    """Removes a finished run's checkpoints, or all but the one that was tested: those of hundreds of runs would fill a disk."""
    tested = next((name for name in (BEST, FINAL) if (folder / name).exists()), None)
    for name in {BEST, FINAL, LATEST} - ({tested} if but_tested else set()):
        (folder / name).unlink(missing_ok=True)


def add_cost(folder: Path, seconds: float) -> None:
    """Keeps the seconds of all starts of a run, and the most memory that any of them took, in bytes: of the GPU, or of the
    process where there is none."""
    memory = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if torch.cuda.is_available():
        memory = torch.cuda.max_memory_allocated()
    path = folder / COST
    cost = read_json(path) if path.exists() else {"seconds": 0.0, "memory": 0}
    write_json(path, {"seconds": cost["seconds"] + seconds, "memory": max(cost["memory"], memory)})


def work(job: Job, threads: int, gpu: str | None) -> None:
    """What a process of its own does: one run, with what it prints in a file beside its folder."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    torch.set_num_threads(threads)
    path = outcome_file(job.folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout, sys.stderr = (os.fdopen(n, "w", errors="replace", closefd=False) for n in (1, 2))
    sys.exit(job.run())


def import_all() -> None:
    """Imports what a run imports late, so that its process has it already: of a short run's seconds, a quarter."""
    import jinja2  # noqa: F401
    import matplotlib.backends.backend_svg
    import matplotlib.figure  # noqa: F401
    import torch.utils.tensorboard  # noqa: F401


class Workers:
    """Runs jobs, `slots` at a time. Stops them all when this process is stopped."""

    def __init__(self, slots: int, gpus: Sequence[str]) -> None:
        self.slots, self.gpus = slots, gpus
        self.finished = self.failed = 0

    def do(self, jobs: Iterable[Job]) -> None:
        """Runs those of the jobs that are not done. A job that fails is told and left."""
        jobs = list(jobs)
        for job in jobs:
            job.check()
        todo = [job for job in jobs if not job.done(job.folder)]
        if todo:
            import_all()
        threads = max(1, torch.get_num_threads() // max(1, min(self.slots, len(todo))))
        context = multiprocessing.get_context("fork")
        free = list(range(self.slots))
        at_work: dict[Any, tuple[Any, Job, int, float]] = {}  # by sentinel: process, job, slot, start
        try:
            while todo or at_work:
                while todo and free:
                    slot, job = free.pop(0), todo.pop(0)
                    gpu = self.gpus[slot % len(self.gpus)] if self.gpus else None
                    process = context.Process(target=work, args=(job, threads, gpu))
                    process.start()
                    at_work[process.sentinel] = process, job, slot, time.perf_counter()
                for sentinel in wait(list(at_work)):
                    process, job, slot, started = at_work.pop(sentinel)
                    process.join()
                    free.append(slot)
                    self.tell(job, process.exitcode, time.perf_counter() - started)
        finally:
            for process, *_ in at_work.values():  # each saves, and ends
                process.terminate()
            for process, *_ in at_work.values():
                process.join()

    def tell(self, job: Job, code: int | None, seconds: float) -> None:
        """Prints how a job ended. Raises what stopped it, where it was stopped from outside."""
        if code == TERMINATED:
            raise Terminated
        if code == STOPPED:
            raise KeyboardInterrupt
        self.finished += 1
        if code == 0:
            how = said_of(job.folder)
        else:
            self.failed += 1
            if code is not None and code < 0:
                with open(outcome_file(job.folder), "a", encoding="utf-8") as file:
                    file.write(f"killed by signal {-code}; of 9, the machine may have run out of memory\n")
            how = f"FAILED: {reason(job.folder)}"
        print(f"{job.name}  {how}  ({seconds:.0f} s)", flush=True)


def said_of(folder: Path) -> str:
    results = read_json(folder / "results.json") if is_done(folder) else {}
    return f"{results['accuracy']:.1f} %" if "sizes" in results else "done"


def visible_gpus() -> list[str]:
    """Their names for CUDA_VISIBLE_DEVICES. Asked of the driver's library: CUDA itself must not be started before a fork."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()
    return named.split(",")[:count] if named else [str(number) for number in range(count)]
