"""CLIP-FSAR as its equations read, with the weights of a head: one clip, class and query after the other.

One episode at a time, labels 0..K-1: support (N, S, D), labels (N,), target (Q, S, D), class text (K, D).

Letters: K way, N support videos, Q queries, S feature steps, D feature width, C training classes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from methods.clip_fsar import CNN_CLIPFSAR, Modulation
from tests.oracles.heads import classes, cosine_matrix, otam_cell_by_cell
from tests.oracles.hyrsm import step_attention


def block(modulation: Modulation, steps: Tensor) -> Tensor:
    """(S, D) -> (S, D): attention behind a layer norm, then a network without one."""
    steps = step_attention(modulation.attention, steps[None])[0]
    first, second = modulation.network[0], modulation.network[3]
    return steps + F.gelu(steps @ first.weight.T + first.bias) @ second.weight.T + second.bias


def distances(head: CNN_CLIPFSAR, support: Tensor, labels: Tensor, target: Tensor, text: Tensor) -> Tensor:
    """(Q, K)."""
    steps = support.shape[1]
    prototypes = []
    for shots, name in zip(classes(support, labels), text, strict=True):
        clips = [shots.mean(dim=0)] if head.merge == "before" else list(shots)
        seen = [block(head.modulation, torch.cat([clip, name[None]]))[:steps] for clip in clips]
        prototypes.append(sum(seen) / len(seen))
    queries = [block(head.modulation, query) for query in target]
    rows = [torch.stack([1 - cosine_matrix(query, prototype) for prototype in prototypes]) for query in queries]
    costs = torch.stack(rows)
    return otam_cell_by_cell(costs, 0.5) + otam_cell_by_cell(costs.transpose(-1, -2), 0.5)


def named(head: CNN_CLIPFSAR, clips: Tensor, text: Tensor) -> Tensor:
    """Clips (V, S, D), text (C, D) -> (V, C)."""
    return head.text_scale * torch.stack([cosine_matrix(clip.mean(dim=0)[None], text)[0] for clip in clips])


def combined(head: CNN_CLIPFSAR, found: Tensor, target: Tensor, text: Tensor, share: float) -> Tensor:
    """Distances (Q, K) of clips of 8 steps -> probabilities of names to the power of `share` times those of videos."""
    by_name, by_video = named(head, target, text).softmax(dim=1), ((8 - found) / 8).softmax(dim=1)
    return by_name**share * by_video ** (1 - share)
