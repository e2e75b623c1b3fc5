"""A training step beside what the machine can do: its operations, the share of the peak, and where the time goes.

The peak is that of a product of two square matrices in the same number format, taken just before.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from engine.devices import autocast, default_device, own_precision, use_channels_last, use_tf32
from engine.settings import build_parser
from methods import METHODS, build_head
from results.terminal import Row
from scripts.bench.timing import SEQ_LEN, WAY, clock, peak_flops, wait

NETWORKS = [("resnet18", 84), ("resnet18", 224), ("resnet50", 224), ("tsm_resnet50", 224), ("clip_vit_b16", 224)]
FORMATS = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# Of the operations of a step by their names, the first that fits.
KINDS = {
    "convolutions": ("conv",),
    "norms": ("batch_norm", "layer_norm"),
    "products": ("mm", "bmm", "attention", "linear", "matmul"),
}
PARTS = ("data", "backbone", "head", "optimiser")
HEADER: Row = ["network", "px", "shot", "format", "GFLOP", "seconds", "of peak", *KINDS, *PARTS]


class TrainingStep:
    """A step of TRX, 5-way with one query a class, from uint8 frames to the optimiser, with a stopwatch for its parts.

    The features are cut off the backbone, so that the head's part of the backward pass is one of its own.
    """

    def __init__(self, backbone: str, size: int, shot: int, precision: str, *, compile: bool = False) -> None:
        torch.manual_seed(0)
        flags = f"-c unused --no_pretrained --method trx --backbone {backbone} --seq_len {SEQ_LEN}"
        self.device, self.precision = default_device(), precision
        self.head = build_head(build_parser(METHODS).parse_args(shlex.split(flags))).train()
        use_channels_last(self.head)
        self.head.to(self.device)
        if compile:
            self.head.backbone.compile_passes()
        self.optimizer = torch.optim.SGD(self.head.parameters(), lr=1e-4)
        frames = torch.randint(0, 256, (WAY * (shot + 1), SEQ_LEN, size, size, 3), dtype=torch.uint8)
        self.frames = frames.permute(0, 1, 4, 2, 3).to(self.device)
        self.labels = torch.arange(WAY, device=self.device).repeat(shot)
        self.seconds = dict.fromkeys(PARTS, 0.0)

    def __call__(self) -> None:
        self.seconds, self.started = dict.fromkeys(PARTS, 0.0), clock()
        clips = self.head.backbone.input_spec.normalise(self.frames)
        self.took("data")
        with autocast(self.device, self.precision):
            features = self.head.encode(clips)
        self.took("backbone")
        cut = features.detach().float().requires_grad_()
        support, target = cut.split([len(self.labels), WAY])
        logits = self.head.classify_episodes(support[None], self.labels[None], target[None])["logits"]
        F.cross_entropy(logits[0], self.labels[:WAY]).backward()
        self.took("head")
        assert isinstance(cut.grad, Tensor)
        features.backward(cut.grad.to(features.dtype))
        self.took("backbone")
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.took("optimiser")

    def took(self, part: str) -> None:
        wait(self.device)
        now = clock()
        self.seconds[part] += now - self.started
        self.started = now


def floor_row(backbone: str, size: int, shot: int, precision: str, repetitions: int, *, compile: bool = False) -> Row:
    """precision: as of run.py; or tf32, fp32 whose products a GPU rounds."""
    use_tf32(precision == "tf32")
    step = TrainingStep(backbone, size, shot, precision, compile=compile)
    with FlopCounterMode(display=False) as counter:  # the first step is not timed
        step()
    peak, taken = peak_flops(FORMATS[precision]), []
    for _ in range(repetitions):
        step()
        taken.append(sum(step.seconds.values()))
    seconds, parts = median(taken), step.seconds
    of_kind = shares(step)
    flops = counter.get_total_flops()
    return [
        backbone, str(size), str(shot), precision + (" compiled" if compile else ""), f"{flops / 1e9:.0f}", f"{seconds:.2f}",
        f"{flops / seconds / peak:.0%}", *(f"{of_kind[kind]:.0%}" for kind in KINDS),
        *(f"{parts[part] / sum(parts.values()):.0%}" for part in PARTS),
    ]  # fmt: skip


def shares(step: TrainingStep) -> dict[str, float]:
    """What part of the time of a step its operations of each kind take, without what they call."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if step.device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profile:
        step()
    times = {
        event.key: event.self_device_time_total if step.device.type == "cuda" else event.self_cpu_time_total
        for event in profile.key_averages()
    }
    found = dict.fromkeys(KINDS, 0.0)
    for name, microseconds in times.items():
        kind = next((kind for kind, words in KINDS.items() if any(word in name for word in words)), None)
        if kind and name.startswith("aten::"):
            found[kind] += microseconds
    return {kind: microseconds / max(sum(times.values()), 1e-9) for kind, microseconds in found.items()}


def floor_rows(*, quick: bool) -> Iterator[Row]:
    """On a CPU, ResNet-18 also compiled, and nothing else with 5 shots, for which the others take 24 GB and more."""
    precision = own_precision(default_device())
    if quick:
        yield floor_row("conv4", 32, 1, precision, 1)
        return
    on_cpu = default_device().type == "cpu"
    for backbone, size in NETWORKS:
        yield floor_row(backbone, size, 1, precision, 3)
        if on_cpu and backbone == "resnet18":
            yield floor_row(backbone, size, 1, precision, 3, compile=True)
        if not on_cpu or backbone == "resnet18":
            yield floor_row(backbone, size, 5, precision, 3)
