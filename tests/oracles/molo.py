"""MoLo as its equations read, with the weights of a head: one clip, step, query and class after the other.

One episode at a time, labels 0..K-1: support (N, D, S, h, w), labels (N,), target (Q, D, S, h, w).

Letters: K way, N support videos, Q queries, S feature steps, D feature width, C channels of motion, h w cells of a map.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from methods.molo import CNN_MoLo, LongShort
from tests.oracles.heads import bimhm, classes, cosine_matrix
from tests.oracles.hyrsm import step_attention


def long_short(branch: LongShort, steps: Tensor) -> Tensor:
    """(S, D) -> (1 + S, D)."""
    steps = branch.encoding(torch.cat([branch.token, steps]))
    steps = step_attention(branch.attention, steps[None])[0]
    first, second = branch.network[0], branch.network[3]
    hidden = F.gelu(F.linear(steps, first.weight, first.bias))
    return torch.relu(steps + F.linear(hidden, second.weight, second.bias))


def motion_maps(head: CNN_MoLo, clip: Tensor) -> Tensor:
    """(D, S, h, w) -> (S - 1, C, h, w)."""
    reduced = F.conv3d(clip[None], head.motion.reduce.weight, head.motion.reduce.bias, padding=1)[0]  # (C, S, h, w)
    differences = []
    for step in range(clip.shape[1] - 1):
        later = F.conv2d(reduced[None, :, step + 1], head.motion.later.weight, head.motion.later.bias, padding=1)[0]
        differences.append(later - reduced[:, step])
    return torch.stack(differences)


def views(head: CNN_MoLo, clip: Tensor) -> tuple[Tensor, Tensor]:
    """(D, S, h, w) -> steps (1 + S, D), motion (S, D)."""
    steps = torch.stack([clip[:, step].mean(dim=(1, 2)) for step in range(clip.shape[1])])
    weight, bias = head.expand.weight[:, :, 0, 0], head.expand.bias
    of_motion = [torch.relu(weight @ cells.flatten(1) + bias[:, None]).mean(dim=1) for cells in motion_maps(head, clip)]
    return long_short(head.steps, steps), long_short(head.motion_steps, torch.stack(of_motion))


def molo(head: CNN_MoLo, support: Tensor, labels: Tensor, target: Tensor) -> dict[str, Tensor]:
    """ "logits" (Q, K), "contrasts" (4, Q, K), and what the classifier of training classes sees, (N + Q, D)."""
    pairs = [[views(head, clip) for clip in clips] for clips in (support, target)]
    distances, contrasts = [], []
    for number in range(2):
        of_support = torch.stack([pair[number] for pair in pairs[0]])
        of_class = [shots.mean(dim=0) for shots in classes(of_support, labels)]
        of_target = [pair[number] for pair in pairs[1]]
        table = [[-bimhm(cosine_matrix(query[1:], shown[1:])) for shown in of_class] for query in of_target]
        distances.append(torch.stack([torch.stack(row) for row in table]))
        scale = head.contrast_scales[number]
        for table in (
            [[(1 - cosine_matrix(shown[1:], query[:1])).sum() for shown in of_class] for query in of_target],
            [[(1 - cosine_matrix(query[1:], shown[:1])).sum() for shown in of_class] for query in of_target],
        ):
            contrasts.append(-scale * torch.stack([torch.stack(row) for row in table]))
    return {
        "logits": -(distances[0] + 0.3 * distances[1]),
        "contrasts": torch.stack(contrasts),
        "pooled": torch.stack([steps.mean(dim=0) + motion.mean(dim=0) for steps, motion in pairs[0] + pairs[1]]),
    }


def drawn(head: CNN_MoLo, motion: Tensor) -> Tensor:
    """Motion maps (L, C, h, w) -> (L, 3, 32 h, 32 w) by factors 2, 4 and 4, as from 7 x 7 cells to 224 x 224 pixels."""
    for block, factor in zip(head.decoder.blocks, (2, 4, 4), strict=True):
        motion = F.interpolate(motion, scale_factor=factor, mode="bilinear", align_corners=True)
        convolution, norm = block[0], block[1]
        motion = F.conv2d(motion, convolution.weight, padding=1)
        mean, variance = motion.mean(dim=(0, 2, 3)), motion.var(dim=(0, 2, 3), unbiased=False)
        motion = (motion - mean[:, None, None]) / (variance[:, None, None] + norm.eps).sqrt()
        motion = torch.relu(motion * norm.weight[:, None, None] + norm.bias[:, None, None])
    return F.conv2d(motion, head.decoder.draw.weight, head.decoder.draw.bias)
