"""STRM as its equations read, with the weights of a head: one step, pair, query and class after the other.

One episode at a time, labels 0..K-1: support (N, D, S, h, w), labels (N,), target (Q, D, S, h, w) -> logits (Q, K).

Letters: K way, N support videos, Q queries, S feature steps, D feature width, h w cells of a map, P patches of a step.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from methods.strm import CNN_STRM
from tests.oracles.trx_tsn import explicit_tuples, positional_encoding, trx_branch


def patches_of(cells: Tensor) -> Tensor:
    """The map of a step (D, h, w) -> the largest value of each channel in each of 4 x 4 windows, row by row, (16, D)."""
    height, width = cells.shape[1:]
    patches = []
    for row in range(4):
        for column in range(4):
            # Windows of an adaptive pool: from floor(i h / 4) to ceil((i + 1) h / 4); they overlap where 4 does not divide h.
            top, bottom = row * height // 4, -(-(row + 1) * height // 4)
            left, right = column * width // 4, -(-(column + 1) * width // 4)
            patches.append(cells[:, top:bottom, left:right].flatten(1).max(dim=1).values)
    return torch.stack(patches)


def step_vector(head: CNN_STRM, cells: Tensor) -> Tensor:
    """The map of a step (D, h, w) -> (D,)."""
    enrichment = head.patches
    patches = patches_of(cells)
    patches = patches + positional_encoding(*patches.shape).to(patches)
    queries, keys, values = (
        F.linear(patches, part.weight, part.bias)
        for part in (enrichment.q_linear, enrichment.k_linear, enrichment.v_linear)
    )
    attended = torch.stack([torch.softmax(keys @ query, dim=0) @ values for query in queries])
    patches = enrichment.gain * attended + patches
    return (patches + mlp(enrichment.network, patches)).mean(dim=0)


def mlp(layers: torch.nn.Sequential, inputs: Tensor) -> Tensor:
    """Linear maps with a ReLU between each two."""
    first, *others = (layer for layer in layers if isinstance(layer, torch.nn.Linear))
    outputs = F.linear(inputs, first.weight, first.bias)
    for layer in others:
        outputs = F.linear(torch.relu(outputs), layer.weight, layer.bias)
    return outputs


def mixed(head: CNN_STRM, steps: Tensor) -> Tensor:
    """(S, D) -> (S, D)."""
    steps = steps + positional_encoding(*steps.shape).to(steps)
    steps = steps + torch.stack([mlp(head.frames.over_steps, channel) for channel in steps.T], dim=1)
    return steps + torch.stack([mlp(head.frames.over_channels, step) for step in steps])


def nearness(head: CNN_STRM, support: Tensor, labels: Tensor, target: Tensor) -> Tensor:
    """Steps (N, S, D), labels (N,), steps (Q, S, D) -> minus the mean distance of a query's pairs to the nearest ones."""
    layer = head.pairs.project
    pairs, query_pairs = (
        torch.relu(F.linear(explicit_tuples(steps, 2), layer.weight, layer.bias)) for steps in (support, target)
    )
    scores = torch.zeros(len(target), int(labels.max()) + 1, dtype=support.dtype)
    for q, query in enumerate(query_pairs):
        for k in range(scores.shape[1]):
            of_class = pairs[labels == k].flatten(0, 1)
            scores[q, k] = -torch.stack([(of_class - pair).norm(dim=1).min() for pair in query]).mean()
    return scores


def parts(head: CNN_STRM, support: Tensor, labels: Tensor, target: Tensor) -> tuple[Tensor, Tensor | None]:
    """TRX's logits and the scores of near pairs, each (Q, K)."""
    support, target = (
        torch.stack(
            [torch.stack([step_vector(head, clip[:, step]) for step in range(clip.shape[1])]) for clip in clips]
        )
        for clips in (support, target)
    )
    mixed_support, mixed_target = (torch.stack([mixed(head, steps) for steps in clips]) for clips in (support, target))
    relations = trx_branch(head.transformer, mixed_support, labels, mixed_target)
    return relations, None if head.pairs is None else nearness(head, support, labels, target)
