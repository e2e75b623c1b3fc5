"""Optimiser steps of all processes of a job, and a profile of one of them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from engine.processes import Processes


class Steps:
    """Optimiser steps that all processes of a job take alike, with loss scaling where half precision needs it.

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
