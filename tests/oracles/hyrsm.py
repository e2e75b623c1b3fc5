"""HyRSM and HyRSM++ as their equations read, with the weights of a head: every query has its own copy of the support.

One episode at a time, labels 0..K-1: support (N, S, D), labels (N,), target (Q, S, D) -> logits (Q, K).

Letters: K way, N support videos, I items of the support, Q queries, V clips, S feature steps, D feature width.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from methods.hyrsm import CNN_HyRSM, CNN_HyRSMPlusPlus, ScaledEncoding, StepAttention, TaskAttention

HEADS = 8


def sinusoids(num_steps: int, width: int) -> Tensor:
    """Column by column: sin(p / 10000^(2i/D)) in an even column i, cos(p / 10000^(2(i+1)/D)) in the next: (S, D)."""
    table = torch.zeros(num_steps, width)
    for step in range(num_steps):
        for i in range(0, width, 2):
            table[step, i] = math.sin(step / 10000 ** (2 * i / width))
            table[step, i + 1] = math.cos(step / 10000 ** (2 * (i + 1) / width))
    return table


def multi_head(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """(V, L, D), (V, M, D), (V, M, D) -> (V, L, D), one head after the other."""
    found = []
    for q, k, v in zip(*(part.chunk(HEADS, dim=-1) for part in (queries, keys, values)), strict=True):
        found.append(torch.softmax(q @ k.transpose(1, 2) / math.sqrt(q.shape[-1]), dim=-1) @ v)
    return torch.cat(found, dim=-1)


def step_attention(attention: StepAttention, steps: Tensor) -> Tensor:
    """y = x + W_o MHA(LN(x)), (V, S, D) -> (V, S, D)."""
    queries, keys, values = F.linear(attention.norm(steps), attention.qkv.weight).chunk(3, dim=-1)
    found = F.linear(multi_head(queries, keys, values), attention.out.weight, attention.out.bias)
    return steps + attention.dropout(found)


def encode(encoding: ScaledEncoding, attention: StepAttention, clips: Tensor) -> Tensor:
    return F.relu(step_attention(attention, encoding(clips)))


def task_tokens(attention: TaskAttention, items: Tensor, target: Tensor) -> Tensor:
    """Item steps (I, S, D), query steps (Q, S, D) -> a task's tokens for each query, (Q, I + 1, D), its own one last."""
    tokens = torch.cat([items.mean(dim=1).expand(len(target), -1, -1), target.mean(dim=1)[:, None]], dim=1)
    parts = [F.linear(tokens, part.weight) for part in (attention.q_linear, attention.k_linear, attention.v_linear)]
    found = F.linear(multi_head(*parts), attention.out.weight, attention.out.bias)
    return F.relu(attention.norm(tokens + attention.dropout(found)))


def fused(head: CNN_HyRSM, support: Tensor, labels: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Steps (N, S, D), labels (N,), steps (Q, S, D) -> those of items for each query (Q, I, S, D), those of queries."""
    support, target = (encode(head.encoding, head.step_attention, clips) for clips in (support, target))
    items = support
    if head.shots == "mean_first":
        items = torch.stack([support[labels == label].mean(dim=0) for label in range(int(labels.max()) + 1)])
    tokens = task_tokens(head.task_attention, items, target)
    steps = items.shape[1]
    items = torch.cat([items.expand(len(target), -1, -1, -1), tokens[:, :-1, None].expand(-1, -1, steps, -1)], dim=-1)
    target = torch.cat([target, tokens[:, -1:].expand(-1, steps, -1)], dim=-1)
    return F.linear(items, head.fuse.weight, head.fuse.bias), F.linear(target, head.fuse.weight, head.fuse.bias)


def hyrsm(head: CNN_HyRSM, support: Tensor, labels: Tensor, target: Tensor) -> Tensor:
    items, target = fused(head, support, labels, target)
    distances = 1 - torch.einsum("qld,qimd->qilm", F.normalize(target, dim=-1), F.normalize(items, dim=-1))
    logits = -(distances.min(dim=-1).values.sum(dim=-1) + distances.min(dim=-2).values.sum(dim=-1))  # (Q, I)
    if head.shots == "mean_first":
        return logits
    return torch.stack([logits[:, labels == label].mean(dim=1) for label in range(int(labels.max()) + 1)], dim=1)


def clip_incoherence(head: CNN_HyRSMPlusPlus, steps: Tensor) -> Tensor:
    """Fused steps of a clip (S, D) -> its mean cost over all pairs of steps, one after the other."""
    costs = []
    for i, first in enumerate(steps):
        for j, second in enumerate(steps):
            distance = 1 - F.cosine_similarity(first, second, dim=0)
            apart = abs(i - j)
            if apart <= head.window:
                costs.append(distance / (apart**2 + 1))
            else:
                margin = 1 - math.exp(-((apart - head.window) ** 2) / head.slope)
                costs.append(head.push * torch.clamp(margin - distance, min=0))
    return torch.stack(costs).mean()


def incoherence(head: CNN_HyRSMPlusPlus, support: Tensor, labels: Tensor, target: Tensor) -> Tensor:
    items, target = fused(head, support, labels, target)
    of_items = torch.stack([clip_incoherence(head, item) for query in items for item in query]).mean()
    return of_items + torch.stack([clip_incoherence(head, query) for query in target]).mean()
