"""Which weights of a large backbone are trained, and how: its last blocks, its norms, or small maps added to its attention
(LoRA: Hu et al., ICLR 2022).

LoRA is thirty lines on torch's parametrisations rather than a package: weights keep their place in the network, every way in
which a network reads them sees the sum, and `merged` gives plain weights back.
"""

from __future__ import annotations

import math
from collections import Counter

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize

from backbones.passes import blocks_of
from utils import UserError

NORMS = (_BatchNorm, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


def choose_trained(backbone: nn.Module, layers: str | None, rank: int) -> None:
    """`train_layers`, unset: all, or none where there is a rank for `add_lora`."""
    if layers or rank:
        train_layers(backbone, layers or "none")
    if rank:
        add_lora(backbone, rank)


def train_layers(backbone: nn.Module, which: str) -> None:
    """Leaves gradients to some weights only. Call it before `add_lora`.

    which: all; none; norm: those of norms (batch, layer, group norms); last:N: those of the last N blocks and of whatever
    follows them. Raises UserError for anything else, and where there are fewer blocks.
    """
    kind, _, number = which.partition(":")
    if which == "all":
        backbone.requires_grad_(True)
        return
    trained: list[nn.Parameter] = []
    if which == "norm":
        trained = [p for module in backbone.modules() if isinstance(module, NORMS) for p in module.parameters()]
    elif kind == "last" and number.isdecimal() and int(number) > 0:
        trained = from_block(backbone, int(number))
    elif which != "none":
        raise UserError(f"unknown layers to train '{which}': expected all, none, norm or last:N, such as last:2")
    backbone.requires_grad_(False)
    for parameter in trained:
        parameter.requires_grad_(True)


def from_block(backbone: nn.Module, last: int) -> list[nn.Parameter]:
    """The parameters of the last blocks and of what is registered after them."""
    blocks = main_blocks(backbone)
    if last > len(blocks):
        raise UserError(
            f"last:{last} was asked for, and the backbone has {len(blocks)} blocks: give last:{len(blocks)} or all"
        )
    parameters = list(backbone.parameters())
    starts = {id(parameter) for parameter in blocks[-last].parameters()}
    first = next(number for number, parameter in enumerate(parameters) if id(parameter) in starts)
    return parameters[first:]


def main_blocks(backbone: nn.Module) -> list[nn.Module]:
    """The blocks of the kind that the network has most of, first to last; a stem or a pooling with parts is none."""
    blocks = blocks_of(backbone)
    if not blocks:
        raise UserError("the backbone is no sequence of blocks: give --train_layers all, norm or none")
    (kind, _), *_ = Counter(type(block) for block in blocks).most_common(1)
    return [block for block in blocks if type(block) is kind]


class LowRank(nn.Module):
    """Weight (O, I) -> weight + scale * up (O, R) down (R, I), which starts as nothing added."""

    def __init__(self, weight: Tensor, rank: int, scale: float) -> None:
        super().__init__()
        self.down = nn.Parameter(weight.new_empty(rank, weight.shape[1]))
        self.up = nn.Parameter(weight.new_zeros(weight.shape[0], rank))
        self.scale = scale
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.scale * (self.up @ self.down)


def attention_maps(backbone: nn.Module) -> list[nn.Linear]:
    """The linear maps inside attention: to queries, keys, values, and back."""
    return [
        module
        for name, module in backbone.named_modules()
        if isinstance(module, nn.Linear) and ("attn" in name or "attention" in name)
    ]


def add_lora(backbone: nn.Module, rank: int, alpha: float | None = None) -> None:
    """Freezes what the maps inside attention are and trains low-rank sums to them; other weights keep their gradients or
    lack of them.

    alpha: the sum is weighed by alpha / rank (unset: alpha = rank). Raises UserError where there is no attention.
    """
    maps = attention_maps(backbone)
    if rank < 1:
        raise UserError(f"--lora {rank}: expected a rank of 1 or more, such as 8")
    if not maps:
        raise UserError("--lora adds to the maps inside attention, and this backbone has none: leave it out")
    for module in maps:
        module.requires_grad_(False)
        scale = (rank if alpha is None else alpha) / rank
        parametrize.register_parametrization(module, "weight", LowRank(module.weight, rank, scale))


def merged(backbone: nn.Module) -> None:
    """Makes the sums of `add_lora` plain weights, with the names that they had before."""
    for module in attention_maps(backbone):
        if parametrize.is_parametrized(module, "weight"):
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
