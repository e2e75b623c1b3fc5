"""What benchmarks measure with: two ways of doing the same, in turn, and videos to do it on."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from unittest import mock

import numpy as np
import simplejpeg
import torch

from engine.devices import default_device, own_precision
from results.terminal import Row

WAY, SEQ_LEN = 5, 8
PRECISION = own_precision(default_device())  # of the backbone, as runs have it


class Clock:
    """Seconds of the wall; or, where others are at work, those that the processor spent on this process, in one thread."""

    def __init__(self) -> None:
        self.read = time.perf_counter

    def count_processor_time(self) -> None:
        torch.set_num_threads(1)
        self.read = time.process_time

    def __call__(self) -> float:
        return self.read()


clock = Clock()


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Ours beside another way of doing the same: seconds of each repetition, or bytes, in the order they were taken."""

    what: str
    against: str
    ours: list[float]
    other: list[float]
    unit: str = "s"

    def row(self) -> Row:
        ratios = sorted(other / ours for ours, other in zip(self.ours, self.other, strict=True))
        spread = f"{ratios[0]:.2f} to {ratios[-1]:.2f}" if len(ratios) > 1 else ""
        return [self.what, self.against, f"{median(ratios):.2f}", spread, self.shown(self.ours), self.shown(self.other)]

    def shown(self, values: Sequence[float]) -> str:
        return f"{median(values) / 1e6:.0f} MB" if self.unit == "B" else f"{median(values):.3f} s"


HEADER = ["what", "against", "ratio", "from, to", "ours", "other"]


def race(
    what: str, against: str, ours: Callable[[], object], other: Callable[[], object], repetitions: int
) -> Comparison:
    """Seconds of both, taken in turn, after one run of each that is not counted."""
    seconds: dict[Callable[[], object], list[float]] = {ours: [], other: []}
    for repetition in range(repetitions + 1):
        for work, taken in seconds.items():
            started = clock()
            work()
            if repetition > 0:
                taken.append(clock() - started)
    return Comparison(what, against, seconds[ours], seconds[other])


def peak_flops(dtype: torch.dtype = torch.float32, size: int = 1024, repetitions: int = 3) -> float:
    """Floating point operations in a second of the best of a few products of square matrices: what this machine can do now."""
    device = default_device()
    factors = torch.randn(2, size, size, device=device).to(dtype)
    best = math.inf
    for _ in range(repetitions + 1):
        wait(device)
        started = clock()
        factors[0] @ factors[1]
        wait(device)
        best = min(best, clock() - started)
    return 2 * size**3 / best


def wait(device: torch.device) -> None:
    """For a GPU to be done."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def peak_bytes(work: Callable[[], object]) -> float:
    """The most that tensors made by `work` occupy at one time, beyond what was there before."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        work()
    assert profile.profiler is not None
    assert profile.profiler.kineto_results is not None
    changes = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    sizes = [event.nbytes() for event in sorted(changes, key=lambda event: event.start_ns())]
    return float(np.cumsum(sizes).max(initial=0))


def memory(what: str, against: str, ours: Callable[[], object], other: Callable[[], object]) -> Comparison:
    return Comparison(what, against, [peak_bytes(ours)], [peak_bytes(other)], unit="B")


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """As in a process that reads episodes ahead."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@contextlib.contextmanager
def cached_in(folder: Path) -> Iterator[None]:
    """Keeps listings there instead of in the user's cache."""
    with mock.patch.dict(os.environ, XDG_CACHE_HOME=str(folder)):
        yield


def textured_picture(rng: np.random.Generator, side: int) -> np.ndarray:
    """Noise of every size, as strong as it is coarse, which a JPEG finds about as hard as a photograph: (side, side, 3)."""
    picture = np.zeros((side, side, 3))
    for cell in (2, 4, 8, 16, 32, 64):
        noise = rng.normal(size=(side // cell + 1, side // cell + 1, 3)) * cell**0.7
        picture += noise.repeat(cell, axis=0).repeat(cell, axis=1)[:side, :side]
    return (128 + 50 * picture / picture.std()).clip(0, 255).astype(np.uint8)


def write_videos(split: Path, *, videos_per_class: int, side: int, frames: int = SEQ_LEN) -> None:
    """A split of WAY classes with such videos of square frames."""
    rng = np.random.default_rng(0)
    for label in range(WAY):
        for video in range(videos_per_class):
            folder = split / f"class{label}" / f"video{video}"
            folder.mkdir(parents=True)
            for frame in range(frames):
                data = simplejpeg.encode_jpeg(textured_picture(rng, side), quality=90, colorsubsampling="420")
                (folder / f"{frame + 1:05d}.jpg").write_bytes(data)
