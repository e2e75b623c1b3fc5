"""TRX and TSN as their equations read: explicit tuples, prototypes and differences, one class after the other.

The fast forms in model/ are tested against these and timed against them. One episode at a time, labels 0..K-1.

Letters: K way, N support videos, Q queries, S feature steps, D feature width, W tuple cardinality, M tuples of a video,
E width of projected tuples, U tuples of all shots of a class.
"""

from __future__ import annotations

import math
from itertools import combinations

import torch
from torch import Tensor

from model import CNN_TRX, CNN_TSN, TemporalCrossTransformer


def positional_encoding(num_steps: int, width: int) -> Tensor:
    """0.1 sin(t / 10000^(2i/D)) in column 2i, 0.1 cos of the same angle in column 2i+1: (S, D)."""
    table = torch.zeros(num_steps, width)
    for column in range(width):
        angles = torch.arange(num_steps) / 10000 ** (2 * (column // 2) / width)
        table[:, column] = 0.1 * (angles.sin() if column % 2 == 0 else angles.cos())
    return table


def explicit_tuples(steps: Tensor, cardinality: int) -> Tensor:
    """(N, S, D) -> (N, M, W*D), the steps of every ordered tuple one after the other."""
    tuples = [torch.tensor(indices) for indices in combinations(range(steps.shape[1]), cardinality)]
    return torch.stack([steps.index_select(1, indices).flatten(1) for indices in tuples], dim=1)


def trx_branch(branch: TemporalCrossTransformer, support: Tensor, labels: Tensor, target: Tensor) -> Tensor:
    """Equations 1 to 7 of TRX for one cardinality, with the weights of `branch`: logits (Q, K)."""
    cardinality, width = branch.k_linear.cardinality, branch.k_linear.out_features
    support_tuples = explicit_tuples(branch.pe(support), cardinality)
    target_tuples = explicit_tuples(branch.pe(target), cardinality)
    support_keys = branch.norm_k(_linear(branch.k_linear, support_tuples))  # (N, M, E)
    target_keys = branch.norm_k(_linear(branch.k_linear, target_tuples))  # (Q, M, E)
    support_values = _linear(branch.v_linear, support_tuples)
    target_values = _linear(branch.v_linear, target_tuples)

    logits = []
    for label in range(int(labels.max()) + 1):
        class_keys = support_keys[labels == label].flatten(0, 1)  # (U, E)
        class_values = support_values[labels == label].flatten(0, 1)
        scores = torch.matmul(target_keys, class_keys.T) / math.sqrt(width)  # (Q, M, U)
        weights = torch.stack([torch.softmax(query_scores, dim=-1) for query_scores in scores])
        prototypes = torch.matmul(weights, class_values)  # (Q, M, E)
        differences = target_values - prototypes
        distances = torch.norm(differences, dim=[-2, -1]) ** 2 / target_tuples.shape[1]  # (Q,)
        logits.append(-distances)
    return torch.stack(logits, dim=1)


def _linear(layer: torch.nn.Linear, inputs: Tensor) -> Tensor:
    return torch.nn.functional.linear(inputs, layer.weight, layer.bias)


def trx(head: CNN_TRX, support: Tensor, labels: Tensor, target: Tensor) -> Tensor:
    """Support (N, S, D), labels (N,), target (Q, S, D) -> logits (Q, K), the mean over the head's cardinalities."""
    branches = [trx_branch(branch, support, labels, target) for branch in head.transformers]
    return torch.stack(branches).mean(dim=0)


def tsn(head: CNN_TSN, support: Tensor, labels: Tensor, target: Tensor) -> Tensor:
    """Support (N, S, D), labels (N,), target (Q, S, D) -> logits (Q, K) by the head's distance.

    Minus the squared distance per feature is whole here; the head leaves out its part that all classes share.
    """
    support, target = support.mean(dim=1), target.mean(dim=1)
    logits = torch.zeros(len(target), int(labels.max()) + 1, dtype=support.dtype)
    for q, query in enumerate(target):
        for label in range(logits.shape[1]):
            shots = support[labels == label]
            mean = shots.mean(dim=0)
            if head.distance == "cosine":
                logits[q, label] = query @ mean / (query.norm() * mean.norm() + 0.01)
            elif head.distance == "mean_cosine":
                cosines = [query @ shot / (query.norm() * shot.norm() + 0.01) for shot in shots]
                logits[q, label] = torch.stack(cosines).mean()
            else:
                logits[q, label] = -(torch.norm(query - mean) ** 2) / support.shape[-1]
    return logits * head.scale.log_scale.exp()
