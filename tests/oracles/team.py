"""TEAM as its equations read, with the weights of a head: one class and one other class after the other.

One episode at a time, labels 0..K-1: support (N, S, D), labels (N,), target (Q, S, D) -> logits (Q, K).

Letters: K way, N support videos, Q queries, S feature steps, D feature width, R pattern tokens.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from methods.team import CNN_TEAM, PatternTokens


def found_in(tokens: PatternTokens, clip: Tensor) -> Tensor:
    """A(x), what patterns find in a clip: (S, D) -> (R, D)."""
    patterns, steps = tokens.norm(tokens.patterns), tokens.norm(tokens.encoding(clip))
    weights = torch.softmax(patterns @ steps.T / math.sqrt(steps.shape[-1] / 8), dim=-1)
    return tokens.dropout(tokens.weight_dropout(weights) @ steps)


def phi(tokens: PatternTokens, y: Tensor) -> Tensor:
    return torch.relu(y + tokens.second(torch.relu(tokens.first(y))))


def parts(head: CNN_TEAM, support: Tensor, labels: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """-pos and -neg, each (Q, K)."""
    tokens, patterns = head.tokens, head.tokens.patterns
    classes = range(int(labels.max()) + 1)
    found = [found_in(tokens, support[labels == k].mean(dim=0)) for k in classes]
    positive, negative = ([phi(tokens, patterns + sign * a) for a in found] for sign in (1, -1))
    adapted_positive, adapted_negative = [], []
    for k in classes:
        moved_positive, moved_negative = [], []
        for j in classes:
            if j == k:
                continue
            w_positive = F.cosine_similarity(positive[k], positive[j], dim=-1)[:, None]  # (R, 1)
            w_negative = F.cosine_similarity(negative[k], negative[j], dim=-1)[:, None]
            moved_positive.append(phi(tokens, patterns + found[k] - w_positive * (found[j] - found[k])))
            moved_negative.append(phi(tokens, patterns - found[k] + w_negative * (found[j] - found[k])))
        adapted_positive.append(torch.stack(moved_positive).mean(dim=0))
        adapted_negative.append(torch.stack(moved_negative).mean(dim=0))

    near, apart = [], []
    for query in target:
        found_in_query = found_in(tokens, query)
        query_positive, query_negative = phi(tokens, patterns + found_in_query), phi(tokens, patterns - found_in_query)
        near.append(torch.stack([-token_distance(adapted_positive[k], query_positive) for k in classes]))
        t = [token_distance(adapted_positive[k], query_negative) for k in classes]
        t_other = [token_distance(adapted_negative[k], query_positive) for k in classes]
        apart.append(
            torch.stack([-(max(t[:k] + t[k + 1 :]) + max(t_other[:k] + t_other[k + 1 :])) / 2 for k in classes])
        )
    return torch.stack(near), torch.stack(apart)


def token_distance(tokens: Tensor, others: Tensor) -> Tensor:
    """sum_r 1 - cos: (R, D), (R, D) -> ()."""
    return (1 - F.cosine_similarity(tokens, others, dim=-1)).sum()


def team(head: CNN_TEAM, support: Tensor, labels: Tensor, target: Tensor) -> Tensor:
    return sum(parts(head, support, labels, target))
