"""TRX, and the projection of frame tuples that other methods use too.

Letters: B episodes, K way, N support videos, J shots of a class, Q queries, S feature steps, D feature width,
W tuple cardinality, M tuples of a video, E width of projected tuples.
"""

from __future__ import annotations

import argparse
import math
from itertools import combinations
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from torch import Tensor, nn

from model.head import CNN_FSHead, group_by_class
from utils import UserError


class PositionalEncoding(nn.Module):
    """Adds a tenth of the sinusoids of Vaswani et al. (NeurIPS 2017) to the steps of a video, then drops out."""

    def __init__(self, width: int, max_steps: int, dropout: float) -> None:
        super().__init__()
        angles = torch.arange(max_steps)[:, None] * torch.exp(torch.arange(0, width, 2) * (-math.log(10000.0) / width))
        table = torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)[:, :width]
        self.table: Tensor
        self.register_buffer("table", 0.1 * table, persistent=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, steps: Tensor) -> Tensor:
        """(..., S, D) -> (..., S, D)."""
        return self.dropout(steps + self.table[: steps.shape[-2]])


class TupleLinear(nn.Linear):
    """A linear map on concatenated tuples of steps, (W*D) -> E, without building the tuples.

    W_map [x_t1; ...; x_tW] = sum_i W_i x_ti: each step is projected once per position it can take, and a tuple is a sum of
    such projections. For 8 steps that is 3.5 times (pairs) to 7 times (triples) less work than mapping every tuple.
    """

    def __init__(self, step_width: int, cardinality: int, out_width: int, num_steps: int) -> None:
        super().__init__(step_width * cardinality, out_width)
        self.cardinality = cardinality
        tuples = torch.tensor(list(combinations(range(num_steps), cardinality)))  # (M, W), in lexicographic order
        # Position i of a tuple never holds the first i or the last W-1-i steps, so only `reach` of them are projected.
        self.reach = num_steps - cardinality + 1
        choice = F.one_hot(tuples - torch.arange(cardinality), self.reach)  # (M, W, reach)
        self.choice: Tensor
        self.register_buffer("choice", choice.flatten(1).to(torch.get_default_dtype()), persistent=False)

    def rows(self, steps: Tensor) -> Tensor:
        """Each step in each position it can take: (..., S, D) -> (..., W * reach, E), without the bias."""
        weights = self.weight.chunk(self.cardinality, dim=1)
        projected = [steps[..., i : i + self.reach, :] @ weight.mT for i, weight in enumerate(weights)]
        return torch.cat(projected, dim=-2)

    def forward(self, steps: Tensor) -> Tensor:
        """(..., S, D) -> (..., M, E)."""
        # The sum over a tuple's positions as a product with 0/1 rows: its backward is a product too, not a scatter.
        return self.choice @ self.rows(steps) + self.bias


class TemporalCrossTransformer(nn.Module):
    """TRX for tuples of one cardinality: a prototype of each class for each query, made of the tuples that match it.

    Equations 1 to 7 of Perrett et al., CVPR 2021.
    """

    def __init__(self, step_width: int, out_width: int, cardinality: int, num_steps: int, dropout: float) -> None:
        super().__init__()
        self.pe = PositionalEncoding(step_width, num_steps, dropout)
        self.k_linear = TupleLinear(step_width, cardinality, out_width, num_steps)
        self.v_linear = TupleLinear(step_width, cardinality, out_width, num_steps)
        self.norm_k = nn.LayerNorm(out_width)

    def attention(self, query_keys: Tensor, class_keys: Tensor, present: Tensor) -> Tensor:
        """How much each query tuple looks at each support tuple of a class: softmax over all its shots and tuples.

        (B, Q, M, E), (B, K, J, M, E), bool (B, K, J) -> (B, K, Q*M, J*M).
        """
        scores = torch.einsum(
            "bqe,bkse->bkqs",
            rearrange(query_keys, "b q m e -> b (q m) e") / math.sqrt(query_keys.shape[-1]),
            rearrange(class_keys, "b k j m e -> b k (j m) e"),
        )
        if not bool(present.all()):
            missing = ~present.repeat_interleave(class_keys.shape[3], dim=-1)  # (B, K, J*M)
            scores = scores.masked_fill(missing[:, :, None], -math.inf)
        return scores.softmax(dim=-1)

    def forward(self, support: Tensor, present: Tensor, target: Tensor) -> Tensor:
        """Support (B, K, J, S, D), which of it exists (B, K, J), target (B, Q, S, D) -> logits (B, Q, K)."""
        support, target = self.pe(support), self.pe(target)
        class_values, query_values = self.v_linear(support), self.v_linear(target)
        weights = self.attention(self.norm_k(self.k_linear(target)), self.norm_k(self.k_linear(support)), present)
        values = rearrange(class_values, "b k j m e -> b k (j m) e")
        queries = rearrange(query_values, "b q m e -> b (q m) e")
        distances = prototype_distances(weights, values, queries)  # (B, K, Q*M)
        return -reduce(distances, "b k (q m) -> b q k", "mean", q=target.shape[1])


def prototype_distances(weights: Tensor, values: Tensor, queries: Tensor) -> Tensor:
    """Squared distances of queries (B, R, E) to their own prototypes `weights @ values`: (B, K, R), never negative.

    weights (B, K, R, U) mix a class's values (B, K, U, E). |q - wV|^2 = |q|^2 - 2 w(Vq) + w(VV')w' needs U numbers for
    each query and class where the prototype has E, so it is used where U is the smaller.
    """
    if values.shape[2] >= values.shape[3]:
        return (queries[:, None] - weights @ values).square().sum(-1)
    agreement = torch.einsum("bre,bkue->bkru", queries, values)
    spread = weights @ (values @ values.mT)
    squared = (weights * (spread - 2 * agreement)).sum(-1) + rearrange(queries.square().sum(-1), "b r -> b 1 r")
    return squared.clamp_min(0)


def check_cardinalities(args: argparse.Namespace, num_steps: int) -> None:
    """Raises UserError when `--temp_set` asks for tuples that a clip of `num_steps` feature steps does not have."""
    if max(args.temp_set) > num_steps or min(args.temp_set) < 1:
        raise UserError(
            f"--temp_set {' '.join(map(str, args.temp_set))} needs tuples of 1 to {num_steps} steps: backbone "
            f"{args.backbone} gives {num_steps} for --seq_len {args.seq_len}; lower it or raise --seq_len"
        )


class CNN_TRX(CNN_FSHead):
    """TRX: query-specific class prototypes from ordered frame tuples.

    Temporal-Relational CrossTransformers (Perrett, Masullo, Burghardt, Mirmehdi, Damen, CVPR 2021): logits are the mean
    over the cardinalities of `--temp_set` of minus the mean squared distance of a query's tuples to their prototypes.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        super().__init__(args)
        check_cardinalities(args, self.num_steps)
        self.transformers = nn.ModuleList(
            TemporalCrossTransformer(
                self.backbone.feature_dim, args.trans_linear_out_dim, cardinality, self.num_steps, args.trans_dropout
            )
            for cardinality in args.temp_set
        )

    @staticmethod
    def add_arguments(group: Any) -> None:
        group.add_argument(
            "--temp_set",
            nargs="+",
            type=int,
            default=[2, 3],
            help="tuple cardinalities, in frames; 2 3 is the paper's choice, larger ones cost more and gain little",
        )
        group.add_argument(
            "--trans_linear_out_dim", type=int, default=1152, help="width of the keys and values of tuples"
        )
        group.add_argument(
            "--trans_dropout", type=float, default=0.1, help="dropout on frame features before tuples are made, 0 to 1"
        )

    def classify(self, support_features: Tensor, support_labels: Tensor, target_features: Tensor) -> Tensor:
        support, present = group_by_class(support_features, support_labels)
        logits = [transformer(support, present, target_features) for transformer in self.transformers]
        return torch.stack(logits).mean(dim=0)
