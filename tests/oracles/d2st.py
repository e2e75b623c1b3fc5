"""D2ST-Adapter as its equations say it, of one clip, with a loop over everything that the fast form does at once."""

from __future__ import annotations

import math
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbones.d2st import Adapter, DeformableAttention, Window

Volume = dict[tuple[int, int, int], Tensor]
"""What stands in each cell (frame, row, column)."""


def volume(tokens: Tensor, height: int, width: int) -> Volume:
    """The patches of a clip (T, L, C), the last height * width of each frame, row by row."""
    first = tokens.shape[1] - height * width
    return {
        (t, y, x): tokens[t, first + y * width + x]
        for t, y, x in product(range(len(tokens)), range(height), range(width))
    }


def linear(layer: nn.Linear, vector: Tensor) -> Tensor:
    mapped = torch.stack([(row * vector).sum() for row in layer.weight])
    return mapped if layer.bias is None else mapped + layer.bias


def norm(layer: nn.LayerNorm, vector: Tensor) -> Tensor:
    centred = vector - vector.mean()
    return centred / (centred.square().mean() + layer.eps).sqrt() * layer.weight + layer.bias


def depthwise(layer: nn.Conv3d, cells: Volume, corner: tuple[int, int, int]) -> Tensor:
    """The kernel laid on cells from a corner, zeros beyond them."""
    total = layer.bias.clone()
    for offset in product(*map(range, layer.kernel_size)):
        place = tuple(c + o for c, o in zip(corner, offset, strict=True))
        if place in cells:
            total = total + layer.weight[(slice(None), 0, *offset)] * cells[place]
    return total


def trilinear(cells: Volume, size: tuple[int, int, int], place: list[Tensor]) -> Tensor:
    """What is at a place from -1, the middle of the first cell, to 1, that of the last."""
    at = [(float(p) + 1) / 2 * (n - 1) for p, n in zip(place, size, strict=True)]
    total = torch.zeros_like(next(iter(cells.values())))
    for corner in product((0, 1), repeat=3):
        cell = tuple(math.floor(a) + c for a, c in zip(at, corner, strict=True))
        share = math.prod(1 - abs(a - n) for a, n in zip(at, cell, strict=True))
        if cell in cells:
            total = total + share * cells[cell]
    return total


def attention(layer: DeformableAttention, tokens: Tensor, window: Window) -> Tensor:
    """(T, L, C) -> (T, L, C)."""
    size = (len(tokens), *layer.cells[1:])
    own = tokens.shape[-1] // layer.groups
    queries = torch.stack([torch.stack([linear(layer.q_linear, token) for token in frame]) for frame in tokens])
    counts = [(n - k) // s + 1 for n, k, s in zip(size, window.size, window.step, strict=True)]
    points = []
    for point in product(*map(range, counts)):
        parts = []
        for group in range(layer.groups):
            channels = slice(group * own, (group + 1) * own)
            asked, seen = (volume(values[..., channels], *size[1:]) for values in (queries, tokens))
            corner = tuple(p * s for p, s in zip(point, window.step, strict=True))
            around = F.gelu(norm(layer.norm, depthwise(layer.gather, asked, corner)))
            moved = linear(layer.offset, around)
            place = [
                (p + 0.5) / n * 2 - 1 + min(1, 2 / n) * math.tanh(m)
                for p, n, m in zip(point, counts, moved.tolist(), strict=True)
            ]
            parts.append(trilinear(seen, size, place))
        points.append(torch.cat(parts))
    keys, values = ([linear(layer_, point) for point in points] for layer_ in (layer.k_linear, layer.v_linear))
    result = torch.empty_like(tokens)
    for t, token in product(range(tokens.shape[0]), range(tokens.shape[1])):
        heads = []
        for group in range(layer.groups):
            channels = slice(group * own, (group + 1) * own)
            scores = torch.stack([(queries[t, token, channels] * key[channels]).sum() / math.sqrt(own) for key in keys])
            shares = scores.exp() / scores.exp().sum()
            heads.append(sum(share * value[channels] for share, value in zip(shares, values, strict=True)))
        result[t, token] = linear(layer.out, torch.cat(heads))
    return result


def adapter(layer: Adapter, tokens: Tensor, windows: tuple[Window, Window], *, activated: bool) -> Tensor:
    """(T, L, D) -> (T, L, D)."""
    activation = F.gelu if activated else lambda vector: vector
    height, width = layer.cells[1:]
    inner = torch.stack([torch.stack([activation(linear(layer.down, token)) for token in frame]) for frame in tokens])
    cells = volume(inner, height, width)
    first = tokens.shape[1] - height * width
    mixed = inner.clone()
    for t, y, x in cells:
        mixed[t, first + y * width + x] += depthwise(layer.local, cells, (t - 1, y - 1, x - 1))
    paths = []
    for path, path_norm, window in zip(layer.paths, layer.norms, windows, strict=True):
        normed = torch.stack([torch.stack([norm(path_norm, token) for token in frame]) for frame in mixed])
        paths.append(mixed + attention(path, normed, window))
    result = tokens.clone()
    for t, token in product(range(tokens.shape[0]), range(tokens.shape[1])):
        both = F.gelu((paths[0][t, token] + paths[1][t, token]) / 2)
        result[t, token] += activation(linear(layer.up, both))
    return result
