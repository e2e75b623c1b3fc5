"""The methods beside TRX and TSN as their equations read: explicit tuples, one class, shot, query or cell after the other.

The fast forms in model/ are tested against these and timed against them. One episode at a time, labels 0..K-1:
support (N, S, D), labels (N,), target (Q, S, D) -> logits (Q, K).

Letters: K way, N support videos, J shots of a class, Q queries, S feature steps, D feature width, M tuples of a video,
E width of projected tuples, L and M rows and columns of a matrix of costs.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.oracles.trx_tsn import explicit_tuples


def classes(videos: Tensor, labels: Tensor) -> list[Tensor]:
    return [videos[labels == label] for label in range(int(labels.max()) + 1)]


def cosine_matrix(x: Tensor, y: Tensor, epsilon: float = 0.01) -> Tensor:
    """(L, D), (M, D) -> (L, M), with `epsilon` added to the product of the norms."""
    rows = [torch.stack([row @ column / (row.norm() * column.norm() + epsilon) for column in y]) for row in x]
    return torch.stack(rows)


# ---------------------------------------------------------------------------------------------------------------------
# OTAM


def otam_cell_by_cell(costs: Tensor, smoothing: float) -> Tensor:
    """The cumulative costs of one direction: (..., L, M) -> (...), with a padded column on either side."""

    def softmin(*values: Tensor) -> Tensor:
        if smoothing == 0:
            return torch.stack(values).amin(dim=0)
        return -smoothing * torch.logsumexp(-torch.stack(values) / smoothing, dim=0)

    rows, columns = costs.shape[-2:]
    total: dict[tuple[int, int], Tensor] = {}
    for row in range(rows):
        total[row, 0] = torch.zeros_like(costs[..., 0, 0])
        for column in range(1, columns + 2):
            cost = costs[..., row, column - 1] if column <= columns else torch.zeros_like(costs[..., 0, 0])
            if row == 0:
                before = total[row, column - 1]
            elif column in (1, columns + 1):
                before = softmin(total[row - 1, column - 1], total[row - 1, column], total[row, column - 1])
            else:
                before = softmin(total[row - 1, column - 1], total[row, column - 1])
            total[row, column] = cost + before
    return total[rows - 1, columns + 1]


def otam(support: Tensor, labels: Tensor, target: Tensor, smoothing: float = 0.1) -> Tensor:
    """All pairs of videos at once, as the public code has it; the cells one after the other."""
    products = torch.einsum("qld,nmd->qnlm", target, support)
    norms = torch.einsum("ql,nm->qnlm", target.norm(dim=-1), support.norm(dim=-1))
    costs = 1 - products / (norms + 0.01)
    distances = otam_cell_by_cell(costs, smoothing) + otam_cell_by_cell(costs.transpose(-1, -2), smoothing)
    return torch.stack([-distances[:, labels == label].mean(dim=1) for label in range(int(labels.max()) + 1)], dim=1)


# ---------------------------------------------------------------------------------------------------------------------
# Similarity matrices


def chamfer_query(matrix: Tensor) -> Tensor:
    return sum(max(row) for row in matrix) / len(matrix)


def chamfer(matrix: Tensor) -> Tensor:
    return (chamfer_query(matrix) + chamfer_query(matrix.T)) / 2


def bimhm(matrix: Tensor) -> Tensor:
    distances = 1 - matrix
    return -(sum(min(row) for row in distances) + sum(min(column) for column in distances.T))


REDUCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda matrix: sum(cell for row in matrix for cell in row) / matrix.numel(),
    "max": lambda matrix: max(cell for row in matrix for cell in row),
    "diag": lambda matrix: sum(matrix[i, i] for i in range(len(matrix))) / len(matrix),
    "chamfer_q": chamfer_query,
    "chamfer_s": lambda matrix: chamfer_query(matrix.T),
    "chamfer": chamfer,
    "bimhm": bimhm,
}


def similarity(
    support: Tensor, labels: Tensor, target: Tensor, reduction: Callable[[Tensor], Tensor], epsilon: float = 0.01
) -> Tensor:
    """Mean over the shots of a class of the reduced cosine matrix, without a scale."""
    logits = [
        [
            torch.stack([reduction(cosine_matrix(query, shot, epsilon)) for shot in shots]).mean()
            for shots in classes(support, labels)
        ]
        for query in target
    ]
    return torch.stack([torch.stack(row) for row in logits])


def chamfer_plus_plus(support: Tensor, labels: Tensor, target: Tensor, cardinality: int) -> Tensor:
    """Chamfer both ways between a query's tuples and those of all shots of a class, without a scale."""
    support, target = explicit_tuples(support, cardinality), explicit_tuples(target, cardinality)
    logits = [
        [chamfer(cosine_matrix(query, shots.flatten(0, 1))) for shots in classes(support, labels)] for query in target
    ]
    return torch.stack([torch.stack(row) for row in logits])


# ---------------------------------------------------------------------------------------------------------------------
# Dual prototypes


def _linear(layer: nn.Linear, inputs: Tensor) -> Tensor:
    return F.linear(inputs, layer.weight, layer.bias)


def dual_prototypes_code(branch: nn.Module, support: Tensor, labels: Tensor, target: Tensor) -> Tensor:
    """The `code` variant for one cardinality, with the weights of `branch`: logits (Q, K)."""
    cardinality = branch.k_linear.cardinality
    support_tuples = explicit_tuples(branch.pe(support), cardinality)  # (N, M, E)
    target_tuples = explicit_tuples(branch.pe(target), cardinality)
    root = math.sqrt(support_tuples.shape[-1])
    keys = branch.norm(_linear(branch.k_linear, support_tuples))
    values = branch.norm(_linear(branch.v_linear, support_tuples))
    query_keys = branch.norm(_linear(branch.q_linear, target_tuples))
    query_values = _linear(branch.v_linear, target_tuples)

    logits = []
    for tuples, class_keys, class_values in zip(
        classes(support_tuples, labels), classes(keys, labels), classes(values, labels), strict=True
    ):
        shots = range(len(tuples))
        class_prototype = torch.zeros_like(class_values[0])  # (M, E)
        for k in shots:
            peers = [tuples[j] for j in shots if j != k] or [tuples[k]]
            scores = torch.stack([peer @ class_keys[k].T / root for peer in peers]).mean(dim=0)
            class_prototype = class_prototype + scores.softmax(dim=-1) @ class_values[k]
        scores = torch.matmul(query_keys[:, None], class_keys.transpose(-1, -2)) / root  # (Q, J, M, M)
        query_prototypes = torch.matmul(scores.softmax(dim=-1), class_values).sum(dim=1)  # (Q, M, E)

        axis = {"feature": 2, "tuple": 1}[branch.cosine_axis]
        class_score = F.cosine_similarity(class_prototype[None], query_values, dim=2).mean(dim=1)
        query_score = F.cosine_similarity(query_prototypes, query_values, dim=axis).mean(dim=1)
        logits.append(branch.scale * (class_score + query_score))
    return torch.stack(logits, dim=1)


def shot_weights(values: Tensor, temperature: Tensor) -> Tensor:
    """Of one class's tuple values (J, M, E): (J,)."""
    similarities = []
    for k, own in enumerate(values):
        peers = [F.cosine_similarity(own, other, dim=-1).mean() for j, other in enumerate(values) if j != k]
        similarities.append(sum(peers) / len(peers) if peers else values.new_tensor(0.0))
    return torch.softmax(torch.stack(similarities) / temperature, dim=0)


def dual_prototypes_robust(branch: nn.Module, support: Tensor, labels: Tensor, target: Tensor) -> tuple[Tensor, ...]:
    """The `robust` variant for one cardinality, with the weights of `branch`: logits, class and query logits (Q, K)."""
    cardinality, width = branch.k_linear.cardinality, branch.k_linear.out_features
    support_tuples = explicit_tuples(branch.pe(support), cardinality)
    target_tuples = explicit_tuples(branch.pe(target), cardinality)
    keys, query_keys = (branch.norm_k(_linear(branch.k_linear, tuples)) for tuples in (support_tuples, target_tuples))
    values, query_values = (_linear(branch.v_linear, tuples) for tuples in (support_tuples, target_tuples))
    gamma, scale = branch.attended, branch.scale.log_scale.exp()

    class_logits = torch.zeros(len(target), int(labels.max()) + 1, dtype=target.dtype)
    query_logits = torch.zeros_like(class_logits)
    for label, (class_keys, class_values) in enumerate(
        zip(classes(keys, labels), classes(values, labels), strict=True)
    ):
        weights = shot_weights(class_values, branch.log_temperature.exp())
        shots = range(len(class_values))
        class_prototype = torch.zeros_like(class_values[0])
        for k in shots:
            attended = class_values[k]
            if len(shots) > 1:
                peers = sum(class_keys[j] for j in shots if j != k) / (len(shots) - 1)
                attended = torch.softmax(peers @ class_keys[k].T / math.sqrt(width), dim=-1) @ class_values[k]
            class_prototype = class_prototype + weights[k] * ((1 - gamma) * class_values[k] + gamma * attended)
        for q in range(len(target)):
            scores = [query_keys[q] @ class_keys[k].T / math.sqrt(width) + weights[k].log() for k in shots]
            query_prototype = torch.softmax(torch.cat(scores, dim=1), dim=1) @ class_values.flatten(0, 1)
            class_logits[q, label] = scale * F.cosine_similarity(class_prototype, query_values[q], dim=1).mean()
            query_logits[q, label] = scale * F.cosine_similarity(query_prototype, query_values[q], dim=1).mean()
    part = torch.sigmoid(branch.balance)
    return part * class_logits + (1 - part) * query_logits, class_logits, query_logits


# ---------------------------------------------------------------------------------------------------------------------
# PAL


def pal(head: nn.Module, support: Tensor, labels: Tensor, target: Tensor) -> Tensor:
    """Cosines (Q, K) of attended queries to the means of attended supports, without the scale."""
    weights = head.attention.in_proj_weight.chunk(3)
    biases = head.attention.in_proj_bias.chunk(3)

    def attend(video: Tensor, memory: Tensor) -> Tensor:
        query = weights[0] @ video + biases[0]
        keys = [weights[1] @ other + biases[1] for other in memory]
        values = [weights[2] @ other + biases[2] for other in memory]
        scores = torch.stack([query @ key / math.sqrt(len(query)) for key in keys]).softmax(dim=0)
        return head.attention.out_proj(sum(score * value for score, value in zip(scores, values, strict=True)))

    means = support.mean(dim=1)
    attended = torch.stack([video + attend(video, means) for video in means])
    queries = torch.stack([video + attend(video, attended) for video in target.mean(dim=1)])
    return cosine_matrix(queries, torch.stack([shots.mean(dim=0) for shots in classes(attended, labels)]))


def prototype_centred(evidence: Tensor, labels: Tensor, floor: float = 0.0) -> Tensor:
    """PAL's second loss from evidence (Q, K) that is positive: mean over the classes that have queries."""
    losses = []
    for label in range(evidence.shape[1]):
        own = [evidence[q, label] for q in range(len(labels)) if labels[q] == label]
        if own:
            losses.append(-torch.log(sum(own) / (evidence[:, label].sum() + floor)))
    return torch.stack(losses).mean()


# ---------------------------------------------------------------------------------------------------------------------
# CMN-lite


def cmn(head: nn.Module, support: Tensor, labels: Tensor, target: Tensor) -> Tensor:
    slots, merge = head.descriptor.slots, head.descriptor.merge

    def describe(steps: Tensor) -> Tensor:
        shares = torch.softmax(steps @ slots.T / math.sqrt(steps.shape[1]), dim=1)  # (S, H)
        residuals = [sum(shares[t, h] * (steps[t] - slots[h]) for t in range(len(steps))) for h in range(len(slots))]
        return merge(torch.cat([residual / residual.norm() for residual in residuals]))

    prototypes = [torch.stack([describe(shot) for shot in shots]).mean(dim=0) for shots in classes(support, labels)]
    logits = [[-(describe(query) - prototype).square().sum() for prototype in prototypes] for query in target]
    return torch.stack([torch.stack(row) for row in logits])


# ---------------------------------------------------------------------------------------------------------------------
# Paths of OTAM, written out


def alignment_paths(rows: int, columns: int) -> list[list[tuple[int, int]]]:
    """Every path from the padded column on the left to the end of that on the right, as the real cells it goes through."""

    def paths_to(row: int, column: int) -> list[list[tuple[int, int]]]:
        if column == 0:
            return [[]]
        if row == 1:
            before = [(row, column - 1)]
        elif column in (1, columns + 1):
            before = [(row - 1, column - 1), (row - 1, column), (row, column - 1)]
        else:
            before = [(row - 1, column - 1), (row, column - 1)]
        here = [(row - 1, column - 1)] if column <= columns else []
        return [path + here for cell in before for path in paths_to(*cell)]

    return paths_to(rows, columns + 1)
