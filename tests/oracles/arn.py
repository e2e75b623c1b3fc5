"""ARN as its sections read: one clip and one pair of a class and a query after the other, in float32 or float64.

The fast form in arn.py is tested against this and timed against it. One episode at a time, labels 0..K-1.

Letters: K way, N support videos, Q queries, L clips, T frames, S feature steps, C channels, h w cells of a map.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def batch_norm(layer: nn.Module, maps: Tensor) -> Tensor:
    """By the statistics of these maps in training, by the stored ones in testing; stores nothing."""
    statistics = (None, None) if layer.training else (layer.running_mean, layer.running_var)
    return F.batch_norm(maps, *statistics, layer.weight, layer.bias, training=layer.training, eps=layer.eps)


def encode(net: nn.Module, clips: Tensor) -> Tensor:
    """Conv-4-64: clips (L, T, 3, H, W) -> maps (L, C, S, h, w)."""
    maps = clips.permute(0, 2, 1, 3, 4).contiguous()
    for number, block in enumerate(net):
        maps = F.relu(batch_norm(block[1], F.conv3d(maps, block[0].weight, padding=1)))
        if number < 2:
            maps = F.max_pool3d(maps, 2)
    return maps


def attention(
    unit: nn.Module, maps: Tensor, first_pool: tuple[int, int, int], last_pool: tuple[int, int, int]
) -> Tensor:
    """With pools of fixed sizes, as the authors have them."""
    for conv, norm, pool in ((unit.conv1, unit.norm1, first_pool), (unit.conv2, unit.norm2, last_pool)):
        maps = F.max_pool3d(F.relu(batch_norm(norm, F.conv3d(maps, conv.weight, padding=1))), pool)
    return torch.sigmoid(F.conv3d(maps, unit.gate.weight, unit.gate.bias))


def attended(head: nn.Module, maps: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """(alpha_t + T) (alpha_s + S) maps, S and T: for maps of 2 to 5 steps and of 8 x 8 to 32 x 32 cells."""
    units, steps, side = head.attention, maps.shape[2], maps.shape[3]
    floor_space, floor_time = units.floors
    spatial = temporal = None
    result = maps
    if units.spatial is not None:
        spatial = attention(units.spatial, maps, (2, 1, 1), (max(1, steps // 2), 1, 1))
        result = result * (floor_space + spatial)
    if units.temporal is not None:
        temporal = attention(units.temporal, result if units.serial else maps, (1, 4, 4), (1, side // 4, side // 4))
        result = result * (floor_time + temporal)
    return result, spatial, temporal


def descriptor(maps: Tensor, sigma: float) -> Tensor:
    """Of one clip (C, S, h, w): 1/N times the maps by themselves over N cells, and both normalisations: (C, C)."""
    cells = maps.flatten(1)
    products = cells @ cells.T / cells.shape[1]
    products = products / products.trace()
    return 2 * torch.sigmoid(sigma * products) - 1


def relate(net: nn.Module, pairs: Tensor) -> Tensor:
    """Pairs (L, 2, C, C), class first -> logits (L,)."""
    maps = F.max_pool2d(F.relu(batch_norm(net.first_norm, F.conv2d(pairs, net.first.weight, padding=1))), 2)
    for block in net.blocks:
        maps = F.max_pool2d(maps + F.relu(batch_norm(block[1], F.conv2d(maps, block[0].weight, padding=1))), 2)
    hidden = F.relu(F.linear(maps.flatten(1), net.score[0].weight / 32, net.score[0].bias))
    return F.linear(hidden, net.score[2].weight, net.score[2].bias)[:, 0]


def logits_of_descriptors(head: nn.Module, support: Tensor, labels: Tensor, target: Tensor) -> Tensor:
    """Descriptors (N, C, C) and (Q, C, C) -> (Q, K), with the mean of a class's descriptors."""
    classes = [support[labels == label].mean(dim=0) for label in range(int(labels.max()) + 1)]
    pairs = [torch.stack([of_class, query]) for query in target for of_class in classes]
    return relate(head.relation, torch.stack(pairs)).reshape(len(target), len(classes))


def arn(head: nn.Module, support: Tensor, labels: Tensor, target: Tensor) -> Tensor:
    """Maps of support (N, C, S, h, w) and target (Q, C, S, h, w) -> logits (Q, K)."""
    maps, _, _ = attended(head, torch.cat([support, target]))
    descriptors = torch.stack([descriptor(clip, head.sigma) for clip in maps])
    return logits_of_descriptors(head, descriptors[: len(support)], labels, descriptors[len(support) :])


def squared_error(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over all pairs of (score - 1)^2 for the own class and score^2 for another."""
    losses = [
        (torch.sigmoid(logits[q, k]) - (1.0 if k == labels[q] else 0.0)) ** 2
        for q in range(logits.shape[0])
        for k in range(logits.shape[1])
    ]
    return sum(losses) / len(losses)


# ---------------------------------------------------------------------------------------------------------------------
# Self-supervision


def changed(kind: str, order: tuple[int, ...] | int, clip: Tensor) -> Tensor:
    """A clip (T, 3, H, W), or attention (S,) or (h, w), cut up and put together again; order: what goes where, or turns."""
    if kind == "temporal_jigsaw":
        blocks = clip.chunk(len(order))
        return torch.cat([blocks[place] for place in order])
    if kind == "rotation":
        for _ in range(order):  # the right column becomes the top row
            clip = clip.transpose(-2, -1).flip(-2)
        return clip
    top, bottom = clip.chunk(2, dim=-2)
    quarters = [*top.chunk(2, dim=-1), *bottom.chunk(2, dim=-1)]
    first, second, third, fourth = (quarters[place] for place in order)
    return torch.cat([torch.cat([first, second], dim=-1), torch.cat([third, fourth], dim=-1)], dim=-2)


def discriminate(net: nn.Module, maps: Tensor) -> Tensor:
    """Maps of 4 to 7 steps and of 4 x 4 to 32 x 32 cells (L, C, S, h, w) -> (L, ways); 32 x 32 is what the authors have.

    Where two pools leave less than 8 x 8 cells, each counts for a block of them.
    """
    for block in net.blocks:
        maps = F.max_pool3d(F.relu(batch_norm(block[1], F.conv3d(maps, block[0].weight, padding=1))), 2)
    repeats = 8 // maps.shape[-1]
    maps = maps.repeat_interleave(repeats, dim=-1).repeat_interleave(repeats, dim=-2)
    hidden = F.relu(F.linear(maps.flatten(1), net.score[0].weight, net.score[0].bias))
    return F.linear(hidden, net.score[2].weight, net.score[2].bias)


def misalignment(kind: str, orders: list, tolerance: float, before: Tensor, after: Tensor) -> Tensor:
    """Sum over clips of || |g(A) - A'| - lambda ||^2, attention of clips and changed clips (L, S) or (L, h, w)."""
    total = torch.zeros((), dtype=before.dtype)
    for order, own, other in zip(orders, before, after, strict=True):
        total = total + ((changed(kind, order, own) - other).abs() - tolerance).square().sum()
    return total
