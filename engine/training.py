"""What the programs that train have in common: device and number formats, optimiser steps, how a run is stopped, how it ends.

Letters: R processes of a job.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import dataclasses
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from clips.frame_sources import BadVideo
from engine.processes import Processes
from utils import LATEST, LOG_COLUMNS, RunFolder, UserError, load_checkpoint, save_checkpoint

STOPPED, TERMINATED = 130, 143  # exit codes by the shell's custom: 128 + the signal's number


def default_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def keep_freed_memory() -> None:
    """Lets a process on a CPU keep the memory that tensors leave, unless its environment says how malloc is to behave.

    glibc gives large pieces back, and the system fills their pages with zeros for the next tensor: up to a quarter of a
    training step. Other C libraries are left alone. Called before the first tensor, for GPUs it does nothing.
    """
    told = any(name == "GLIBC_TUNABLES" or name.startswith("MALLOC_") for name in os.environ)
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None and not told and not torch.cuda.is_available():
        trim_threshold, mmap_max = -1, -4  # parameters of mallopt, from malloc.h
        mallopt(trim_threshold, 2**31 - 1)
        mallopt(mmap_max, 0)


def use_channels_last(model: nn.Module) -> None:
    """Stores convolution weights channels-last: frames arrive that way, and convolutions are faster on it."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    for parameter in model.parameters():
        if parameter.ndim in formats:
            parameter.data = parameter.data.contiguous(memory_format=formats[parameter.ndim])


def use_tf32(allowed: bool) -> None:
    """Whether GPUs may round the factors of float32 products to 10 bits, several times faster; CPUs never do."""
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[Any]:
    """The number format of networks: fp32 leaves it as it is."""
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    return torch.autocast(device.type, dtype=dtype) if dtype else contextlib.nullcontext()


class Steps:
    """Optimiser steps of all processes together, with loss scaling where half precision needs it.

    Each process adds its gradients by `backward`; `take` sums them over the processes. A parameter group may have an
    "lr_mult", a factor on the learning rate. clip_norm: gradients longer than this are shortened to it; 0: never.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, processes: Processes, *, precision: str, clip_norm: float = 0.0
    ) -> None:
        self.optimizer = optimizer
        self.processes = processes
        self.clip_norm = clip_norm
        self.scaler = torch.amp.GradScaler(processes.device.type, enabled=precision == "fp16")

    @property
    def parameters(self) -> list[Tensor]:
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    def backward(self, loss: Tensor) -> None:
        self.scaler.scale(loss).backward()

    def take(self, learning_rate: float) -> None:
        self.processes.add_gradients(self.parameters)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate * group.get("lr_mult", 1.0)
        if self.clip_norm:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.parameters, self.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        return {"optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])


# ---------------------------------------------------------------------------------------------------------------------
# Being stopped


class Terminated(Exception):
    """The machine is wanted for something else: a SIGTERM came, and what has to be kept is kept."""


class Termination:
    """Catches SIGTERM, which schedulers send some time before they take the machine away.

    It ends what is going on by `Terminated`; within `deferred` only `asked` says that it came, until processes agree.
    """

    def __init__(self) -> None:
        self.asked = False
        self._deferred = False

    def __enter__(self) -> Termination:
        self._earlier = signal.signal(signal.SIGTERM, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGTERM, self._earlier)

    def _handle(self, *_: object) -> None:
        self.asked = True
        if not self._deferred:
            raise Terminated

    def deferred(self) -> contextlib.AbstractContextManager[None]:
        return self._set(deferred=True)

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Undoes `deferred` for something long that need not end."""
        with self._set(deferred=False):
            if self.asked:
                raise Terminated
            yield

    @contextlib.contextmanager
    def _set(self, *, deferred: bool) -> Iterator[None]:
        before, self._deferred = self._deferred, deferred
        try:
            yield
        finally:
            self._deferred = before


# ---------------------------------------------------------------------------------------------------------------------
# Looking at a step


class StepProfile:
    """Profiles one optimiser step, the second of a start, by torch.profiler into a folder; None: profiles nothing.

    The folder gets a trace for Perfetto, chrome://tracing or TensorBoard; `table` says which operations took the time.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.table = ""
        self._steps = 0

    @property
    def is_new(self) -> bool:
        """Whether the step that just ended was profiled."""
        return self.folder is not None and self._steps == 2

    @contextlib.contextmanager
    def around_step(self) -> Iterator[None]:
        self._steps += 1
        if not self.is_new:
            yield
            return
        with torch.profiler.profile(record_shapes=True, profile_memory=True) as profile:
            yield
        assert self.folder is not None
        self.folder.mkdir(parents=True, exist_ok=True)
        profile.export_chrome_trace(str(self.folder / "step.pt.trace.json"))
        order = "self_device_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
        self.table = profile.key_averages().table(sort_by=order, row_limit=15, max_name_column_width=50)


# ---------------------------------------------------------------------------------------------------------------------
# What a training is


def load_model_state(model: nn.Module, checkpoint: dict[str, Any], path: Path) -> None:
    """Copies a checkpoint's weights into the model; every name and shape must agree."""
    try:
        model.load_state_dict(checkpoint["model"])
    except (RuntimeError, KeyError) as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise UserError(f"{path} does not fit the model: {reason}; give the settings it was trained with") from error


class Training:
    """Settings, run folder, processes and device of a training, and the checkpoints that it writes and goes on from.

    A subclass makes `model`, `input_spec`, `steps`, `progress` (a dataclass with `rows_size`) and says what it `opened`.
    `unit` is what it counts, `columns` are those of its log.csv.
    """

    unit = "task"
    columns: Sequence[str] = LOG_COLUMNS
    model: nn.Module
    input_spec: Any
    steps: Steps
    progress: Any

    def __init__(
        self,
        args: argparse.Namespace,
        run: RunFolder,
        processes: Processes | None = None,
        termination: Termination | None = None,
    ) -> None:
        self.args = args
        self.run = run
        self.processes = processes or Processes()
        self.termination = termination or Termination()
        self.device = self.processes.device
        self.ending = False  # whether the processes have agreed to end after this step
        self.left_out: set[str] = set()  # messages about unreadable videos, each logged once
        self.seconds = np.zeros(2)  # spent on data and on computing since the last row
        self.checkpoint = self.starting_checkpoint()

    def opened(self) -> Mapping[str, Any]:
        """The videos of each split, each with a `fingerprint` and a `root`."""
        raise NotImplementedError

    def learn(self) -> None:
        """Trains and tests."""
        raise NotImplementedError

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        return autocast(self.device, self.args.precision)

    def leave_out(self, messages: Iterable[str]) -> None:
        """Logs what was found out about videos that cannot be read, once."""
        for message in sorted(set(messages) - self.left_out):
            self.run.log(f"left out: {message}")
            self.left_out.add(message)

    def bar(self, total: int, what: str, unit: str = "", **options: Any) -> tqdm[Any]:
        """A progress bar of the first process, where there is a terminal."""
        hidden = None if self.run.writes else True
        return tqdm(total=total, desc=what, unit=unit or self.unit, disable=hidden, **options)

    def starting_checkpoint(self) -> dict[str, Any] | None:
        """What a resumed run goes on from, or a test takes its weights from; None for a new run."""
        if self.args.test_only:
            return load_checkpoint(Path(self.args.test_model_name))
        path = self.run.path / LATEST
        if not self.args.resume_from_checkpoint:
            return None
        if not path.exists():
            self.run.log(f"the run was stopped before its first checkpoint: it starts again from {self.unit} 0")
            self.run.rewind_rows(0)
            return None
        return load_checkpoint(path)

    def save(self, name: str, **more: Any) -> None:
        """Everything that an exact continuation needs, under a name in the run folder."""
        self.progress.rows_size = self.run.rows_size()
        self.run.flush_board()
        content = {
            "args": vars(self.args),
            "progress": dataclasses.asdict(self.progress),
            "input_spec": dataclasses.asdict(self.input_spec),
            "splits": {name: videos.fingerprint for name, videos in self.opened().items()},
            "model": self.model.state_dict(),
            **self.steps.state_dict(),
            **more,
        }
        if self.run.writes:
            save_checkpoint(self.run.path / name, content)

    def restore(self, checkpoint: dict[str, Any]) -> None:
        """Takes up a checkpoint; only its weights are used when testing."""
        load_model_state(self.model, checkpoint, Path(self.args.test_model_name or self.run.path / LATEST))
        if self.args.test_only:
            return
        videos = self.opened()
        for name in checkpoint["splits"].keys() & videos.keys() - {"test"}:
            if videos[name].fingerprint != checkpoint["splits"][name]:
                raise UserError(
                    f"the videos of {videos[name].root} are not those this run was started on: restore them to go on, or "
                    "start a new run with another -c"
                )
        self.progress = type(self.progress)(**checkpoint["progress"])
        self.steps.load_state_dict(checkpoint)
        self.run.rewind_rows(self.progress.rows_size)


# ---------------------------------------------------------------------------------------------------------------------
# The frame of a program


def exit_code_of(program: Callable[[], None], rank: int = 0) -> int:
    """Runs a program to its end: 0, 2 after one sentence about a user's mistake, or 128 + the signal that stopped it."""
    try:
        program()
        return 0
    except torch.OutOfMemoryError as error:
        return _say(
            f"the GPU's memory is full ({str(error).partition('. ')[0]}): use --precision bf16, --checkpoint_activations, "
            "--frames_per_call with --bn frozen, or fewer frames, pixels or queries",
            rank,
        )
    except (UserError, BadVideo) as error:
        return _say(str(error), rank)
    except KeyboardInterrupt:
        print("stopped; go on from the last checkpoint with -r", file=sys.stderr)
        return STOPPED
    except Terminated:
        if rank == 0:
            print("terminated; go on from the last checkpoint with -r", file=sys.stderr)
        return TERMINATED


def _say(sentence: str, rank: int) -> int:
    if rank > 0:
        # A mistake that all processes meet is told by the first: then torchrun ends this one while it waits.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(2)
        sentence = f"{sentence} (rank {rank})"
    print(f"error: {sentence}", file=sys.stderr, flush=True)
    return 2
