"""Heads on a small backbone in float64, and episodes of features for them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from engine.settings import build_parser
from methods import METHODS, build_head
from model import CNN_FSHead

STEPS = 4  # of clips of four frames
SHOTS = {
    "one shot": torch.tensor([2, 0, 1]),
    "two shots": torch.tensor([1, 0, 2, 2, 1, 0]),
    "unequal": torch.tensor([0, 2, 1, 0, 2, 2, 0, 2]),
}
EXACT = {"rtol": 1e-9, "atol": 1e-9}


def build(*flags: str, num_train_classes: int = 0) -> CNN_FSHead:
    """A head on conv4, in float64, always with the same random weights."""
    torch.manual_seed(0)
    settings = ["-c", "unused", "--backbone", "conv4", "--no_pretrained", "--seq_len", str(STEPS)]
    small = ["--trans_linear_out_dim", "24", "--cmn_slots", "3"]
    args = build_parser(METHODS).parse_args([*settings, *small, *flags])
    return build_head(args, num_train_classes=num_train_classes).double().eval()


def stir(head: CNN_FSHead) -> CNN_FSHead:
    """Moves the head's own weights off the values they start from, where some have no effect and others are equal."""
    generator = torch.Generator().manual_seed(1)
    for name, parameter in head.named_parameters():
        if not name.startswith("backbone."):
            noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
            parameter.data += (
                0.3 * noise * (parameter.std().nan_to_num() if parameter.numel() > 1 else 1) + 0.01 * noise
            )
    return head


def features(*shape: int, seed: int = 0) -> Tensor:
    """Not negative and unlike each other, as after a ReLU."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).relu()


def outputs_of(head: CNN_FSHead, support: Tensor, labels: Tensor, target: Tensor) -> dict[str, Tensor]:
    """What the head makes of one episode."""
    outputs: Any = head.classify(support[None], labels[None], target[None])
    outputs = outputs if isinstance(outputs, dict) else {"logits": outputs}
    return {name: value[0] for name, value in outputs.items()}


def without_dropout(head: CNN_FSHead) -> CNN_FSHead:
    """In training, but for what dropout drops, so that it can be compared with a literal form."""
    for module in head.train().modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return head


def num_parameters(head: CNN_FSHead) -> int:
    """Of the head alone."""
    return sum(p.numel() for name, p in head.named_parameters() if not name.startswith("backbone."))


def on_meta(*flags: str, num_train_classes: int = 64) -> CNN_FSHead:
    """A head of any size, by default that on ResNet-50, without memory for its weights."""
    args = build_parser(METHODS).parse_args(["-c", "unused", "--no_pretrained", *flags])
    with torch.device("meta"):
        return build_head(args, num_train_classes=num_train_classes)
