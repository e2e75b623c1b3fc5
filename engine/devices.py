"""What a program computes on: device, memory and number formats."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from typing import Any

import torch
from torch import nn


def default_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def keep_freed_memory() -> None:
    """Lets a process on a CPU keep the memory that tensors leave, unless its environment says how malloc is to behave.

    glibc gives large pieces back, and the system fills their pages with zeros for the next tensor: up to a quarter of a
    training step. Threads get an arena each, which gives back whatever it is told, so they share one. Other C libraries are
    left alone. Called before the first tensor, for GPUs it does nothing.
    """
    told = any(name == "GLIBC_TUNABLES" or name.startswith("MALLOC_") for name in os.environ)
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None and not told and not torch.cuda.is_available():
        trim_threshold, mmap_max, arena_max = -1, -4, -8  # parameters of mallopt, from malloc.h
        mallopt(trim_threshold, 2**31 - 1)
        mallopt(mmap_max, 0)
        mallopt(arena_max, 1)


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


PRECISIONS = ("fp32", "bf16", "fp16")


def computes_in(device: torch.device, precision: str) -> bool:
    """Whether a device has units for numbers of this format. It takes the others too, and goes a long way round for them."""
    if precision == "fp32":
        return True
    if device.type == "cuda":  # half precision is as old as what torch still runs on
        return (
            precision == "fp16" or torch.version.hip is not None or torch.cuda.get_device_capability(device) >= (8, 0)
        )
    has = torch.cpu.get_capabilities()
    return any(has.get(f"{units}_{precision}", False) for units in ("avx512", "amx"))


def own_precision(device: torch.device) -> str:
    """What `--precision auto` stands for on a device."""
    return "bf16" if computes_in(device, "bf16") else "fp32"


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[Any]:
    """The number format of networks: fp32 leaves it as it is."""
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    return torch.autocast(device.type, dtype=dtype) if dtype else contextlib.nullcontext()
