"""How much memory a training step takes: measured on a GPU, and computed where there is none.

Computed means that every tensor of the step is counted while it lives, without being made: the backbone runs on tensors
that have a shape and no content, the head for real. What a GPU's libraries take for themselves comes on top of it: about
half a GiB of context, and the convolutions' workspace.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from engine.devices import autocast, default_device, use_channels_last
from engine.settings import build_parser
from methods import METHODS, build_head
from model import CNN_FSHead
from results.terminal import Row

GIB = 2**30
CARDS = (8, 12, 24, 80)  # GB
CONTEXT = 0.6  # GiB that a CUDA context and its libraries take, and half a GiB is left for fragmentation
SLACK = 0.5

SETTINGS = {
    "--method trx --backbone resnet50": (
        "--precision fp32",
        "--precision bf16",
        "--precision fp32 --checkpoint_activations",
        "--precision bf16 --checkpoint_activations",
        "--precision bf16 --bn frozen --frames_per_call 80 --checkpoint_activations",
    ),
    "--method otam --backbone clip_vit_b16": (
        "--precision fp32",
        "--precision bf16",
        "--precision bf16 --checkpoint_activations",
        "--precision bf16 --checkpoint_activations --frames_per_call 16",
        "--precision bf16 --train_layers last:2",
        "--precision bf16 --train_layers last:2 --checkpoint_activations",
        "--precision bf16 --lora 16",
        "--precision bf16 --lora 16 --checkpoint_activations",
        "--precision bf16 --lora 16 --checkpoint_activations --frames_per_call 16",
    ),
}
HEADER: Row = ["network", "setting", "peak", "how", "fits on"]


def build(flags: str) -> CNN_FSHead:
    args = build_parser(METHODS).parse_args(["-c", "unused", "--no_pretrained", *flags.split()])
    head = build_head(args)
    use_channels_last(head)
    return head.train()


def step(head: CNN_FSHead, clips: int, size: int, way: int = 5) -> Callable[[], object]:
    """Forward and backward of an episode with as many support as query clips, `clips` together."""
    frames = torch.zeros(clips // 2 * head.args.seq_len, 3, size, size, device=next(head.parameters()).device)
    labels = torch.arange(way, device=frames.device).repeat(clips // 2 // way)

    def work() -> None:
        with autocast(frames.device, head.args.precision):
            outputs = head(frames, labels, frames.clone())
        head.loss({"target_labels": labels}, outputs).backward()

    return work


def measured_peak(flags: str, clips: int, size: int) -> float:
    """Bytes on the GPU, the second of two steps."""
    head = build(flags).to(default_device())
    work = step(head, clips, size)
    work()
    torch.cuda.reset_peak_memory_stats()
    work()
    return float(torch.cuda.max_memory_allocated())


class LiveBytes(TorchDispatchMode):
    """Counts the memory of all tensors that are made under it, while they live. peak: the most bytes at one time."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.known = WeakIdKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(made):
            if isinstance(leaf, Tensor):
                self.count(leaf)
        return made

    def count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()  # which views share
        if storage not in self.known:
            self.known[storage] = True
            self.change(storage.nbytes())
            weakref.finalize(storage, self.change, -storage.nbytes())

    def change(self, number: int) -> None:
        self.now += number
        self.peak = max(self.peak, self.now)


def computed_peak(flags: str, clips: int, size: int, head_bytes: Callable[[CNN_FSHead, Tensor], float]) -> float:
    """Bytes of the step's tensors: the backbone's largest sum, and the head's on top as `head_bytes` finds it."""
    head = build(flags)
    with FakeTensorMode(allow_non_fake_inputs=True) as no_content, LiveBytes() as live:
        # Held in a list: one that nobody holds would be counted off again.
        weights = [no_content.from_tensor(t) for t in (*head.backbone.parameters(), *head.backbone.buffers())]
        for tensor in weights:
            live.count(tensor)
        frames = torch.zeros(clips, head.args.seq_len, 3, size, size)
        with autocast(frames.device, head.args.precision):
            features = head.encode(frames)
        features.float().sum().backward()
        shape = tuple(features.shape)
    return live.peak + head_bytes(head, torch.randn(shape).relu())


def memory_rows(peak_bytes: Callable[[Callable[[], object]], float], *, quick: bool) -> Iterator[Row]:
    """5-way 5-shot with 25 queries, 8 frames of 224 pixels, per setting. peak_bytes: of tensors that some work makes."""
    clips, size = (20, 32) if quick else (50, 224)

    def head_bytes(head: CNN_FSHead, features: Tensor) -> float:
        """What comes after the backbone, with its weights' gradients and its part of the optimiser."""
        own = [p for name, p in head.named_parameters() if not name.startswith("backbone.")]
        support, target = features.requires_grad_().split(clips // 2)
        labels = torch.arange(5).repeat(clips // 10)

        def work() -> None:
            outputs = head.classify_episodes(support[None], labels[None], target[None])
            head.query_loss(outputs["logits"], labels[None]).backward()

        return peak_bytes(work) + sum(p.numel() * p.element_size() for p in own)

    for network, settings in SETTINGS.items():
        for setting in settings:
            flags = f"{network} --seq_len 8 {setting}"
            if torch.cuda.is_available():
                peak, how = measured_peak(flags, clips, size) / GIB, "measured"
            else:
                peak, how = computed_peak(flags, clips, size, head_bytes) / GIB, "computed"
            needed = peak + CONTEXT + SLACK
            smallest = next((f"{card} GB" for card in CARDS if needed < card * 1e9 / GIB), "none of them")
            yield [network, setting, f"{peak:.1f} GiB", how, smallest]
