"""How clips go through a backbone, which itself knows nothing of it: in portions, over several devices, compiled, or with
activations that are computed again in the backward pass instead of being kept.

Letters: N clips, T frames.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from utils import UserError

Pass = Callable[[Tensor], Tensor]


class ClipPass:
    """Calls `function(clips)` of a network, (N, T, 3, H, W) -> (N, ...), in the way that was chosen once for it.

    devices: clips are dealt out to them in equal, whole parts; the first is where the network and its input are, and
    where the results are gathered. frames_per_call: no more frames at a time than these, at least one clip; 0: all.
    recompute_portions: of each portion only its result is kept until the backward pass.
    """

    def __init__(
        self, *, devices: Sequence[torch.device] = (), frames_per_call: int = 0, recompute_portions: bool = False
    ) -> None:
        self.devices = list(devices)
        self.frames_per_call = frames_per_call
        self.recompute_portions = recompute_portions

    def __call__(self, network: nn.Module, function: Pass, clips: Tensor) -> Tensor:
        if len(self.devices) < 2:
            return self.in_portions(function, clips)
        results = []
        for number, (device, part) in enumerate(zip(self.devices, clips.chunk(len(self.devices)), strict=False)):
            # Every device is given its work without waiting for it, so that all of them work at the same time.
            there = self.in_portions(function if number == 0 else on_device(network, function, device), part.to(device))
            results.append(there.to(clips.device))
        return torch.cat(results)

    def in_portions(self, function: Pass, clips: Tensor) -> Tensor:
        size = max(1, self.frames_per_call // clips.shape[1]) if self.frames_per_call else len(clips)
        if self.recompute_portions and torch.is_grad_enabled():
            function = partial(checkpoint, function, use_reentrant=False)
        return function(clips) if size >= len(clips) else torch.cat([function(part) for part in clips.split(size)])


class _Method(nn.Module):
    """A bound method of a network as a module, whose parameters are the network's."""

    def __init__(self, network: nn.Module, function: Pass) -> None:
        super().__init__()
        self.network = network
        self.function = function

    def forward(self, clips: Tensor) -> Tensor:
        return self.function(clips)


def on_device(network: nn.Module, function: Pass, device: torch.device) -> Pass:
    """`function` of the network with copies of its weights on another device; gradients flow back to the weights.

    Buffers are copied too and what is written to the copies is lost: running statistics are those of the first device.
    """
    module = _Method(network, function)
    tensors = {name: parameter.to(device) for name, parameter in module.named_parameters()}
    tensors |= {name: buffer.to(device, copy=True) for name, buffer in module.named_buffers()}
    return lambda clips: functional_call(module, tensors, (clips,))


# ---------------------------------------------------------------------------------------------------------------------
# Activations computed again


def blocks_of(network: nn.Module) -> list[nn.Module]:
    """The blocks that a deep network is a sequence of.

    They are the modules with parts that are met first on the way down from the network, its children, and whatever
    containers (Sequential, ModuleList, ModuleDict) are in these. Single layers between them, as in a stem, are in none.
    """
    return [block for child in network.children() for part in child.children() for block in _blocks(part)]


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    parts = list(module.children())
    is_container = isinstance(module, (nn.Sequential, nn.ModuleList, nn.ModuleDict))
    if is_container and any(True for part in parts for _ in part.children()):
        for part in parts:
            yield from _blocks(part)
    elif parts and any(True for _ in module.parameters()):
        yield module


def recompute_blocks(network: nn.Module) -> None:
    """From now on only the input of each block is kept for the backward pass; what is inside is computed again there.

    Outputs and gradients stay as they are. Batch norms update their running statistics in the forward pass only, and
    dropout draws the same again. Names of weights do not change. (Chen et al., "Training deep nets with sublinear memory
    cost", 2016.) Raises UserError for a network that is no sequence of blocks.
    """
    blocks = blocks_of(network)
    if not blocks:
        raise UserError(
            "--checkpoint_activations finds no blocks in this backbone, whose layers stand alone: leave it out, or add "
            "--frames_per_call, which recomputes by portions of clips"
        )
    for block in blocks:
        block.forward = partial(_recomputed, block, block.forward)


def _recomputed(block: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    return checkpoint(forward, *args, use_reentrant=False, context_fn=partial(_contexts, block), **kwargs)


def _contexts(block: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    return nullcontext(), statistics_left_alone(block)


@contextmanager
def statistics_left_alone(network: nn.Module) -> Iterator[None]:
    """Within it, batch norms add what they see to their running statistics with weight 0, and do not count it."""
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
        norm.num_batches_tracked = None if norm.num_batches_tracked is None else norm.num_batches_tracked.clone()
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count
