"""TRX, and the projection of frame tuples that other methods use too.

Letters: B episodes, K way, N support videos, J shots of a class, Q queries, S feature steps, D feature width,
W tuple cardinality, M tuples of a video, E width of projected tuples, R rows that a video's tuples are mixed of. In
patterns i and j are two shots, t and u tuples of two videos, r and s rows of two videos.
"""

from __future__ import annotations

import argparse
import math
from itertools import combinations
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from torch import Tensor, nn

from model import CNN_FSHead, group_by_class
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


class Tuples(NamedTuple):
    """The M tuples of a video as few rows and how each tuple mixes them: mix (..., M, R) @ rows (..., R, E).

    A linear map of a tuple of steps is a sum of one row for each of its positions and the bias. 18 rows and the bias make
    all 56 triples of 8 steps; products, layer norms and weighted means of tuples follow from those of rows, so tuples
    themselves are not built.
    """

    mix: Tensor
    rows: Tensor

    @staticmethod
    def project(linear: TupleLinear, steps: Tensor) -> Tuples:
        """The linear map of all tuples of steps (..., S, D)."""
        return project_together(linear, steps)[0]

    def layer_norm(self, norm: nn.LayerNorm) -> Tuples:
        """The layer norm of every tuple: its centred rows by its own deviation, and one more row for the norm's bias."""
        centred = Tuples(self.mix, self.rows - self.rows.mean(dim=-1, keepdim=True))
        deviation = (centred.squares() / self.rows.shape[-1] + norm.eps).sqrt()
        mix = F.pad(self.mix / deviation[..., None], (0, 1), value=1.0)
        return Tuples(mix, with_row(centred.rows * norm.weight, norm.bias))

    def squares(self) -> Tensor:
        """Squared norms of the tuples, (..., M)."""
        return (self.mix * (self.mix @ (self.rows @ self.rows.mT))).sum(dim=-1).clamp_min(0)


def project_together(linear: TupleLinear, *groups: Tensor) -> list[Tuples]:
    """`Tuples.project` of several groups of videos, each (..., S, D).

    In one product per position: large products are faster, and so is one gradient of the weights than one per group.
    """
    videos = linear.rows(torch.cat([steps.flatten(0, -3) for steps in groups]))
    projected = []
    for steps, rows in zip(groups, videos.split([steps.shape[:-2].numel() for steps in groups]), strict=True):
        mix = F.pad(linear.choice, (0, 1), value=1.0).expand(*steps.shape[:-2], -1, -1)
        projected.append(Tuples(mix, with_row(rows.unflatten(0, steps.shape[:-2]), linear.bias)))
    return projected


def with_row(rows: Tensor, row: Tensor) -> Tensor:
    """(..., R, E) and one row (E,) for all -> (..., R+1, E)."""
    return torch.cat([rows, row.expand(*rows.shape[:-2], 1, -1)], dim=-2)


def row_products(queries: Tuples, rows: Tensor) -> Tensor:
    """Products of query tuples (B, Q, M, E) with the rows of support videos (B, K, J, R, E): (B, K, Q, M, J, R)."""
    return torch.einsum("bqtr,bkqrjs->bkqtjs", queries.mix, torch.einsum("bqre,bkjse->bkqrjs", queries.rows, rows))


def attention_scores(query_keys: Tuples, keys: Tuples) -> Tensor:
    """Scaled products of all query tuples with all support tuples: (B, K, Q, M, J, M)."""
    products = torch.einsum("bkqtjr,bkjur->bkqtju", row_products(query_keys, keys.rows), keys.mix)
    return products / math.sqrt(keys.rows.shape[-1])


def row_products_of_shots(tuples: Tuples) -> Tensor:
    """Products of the rows of all shots of a class with each other, (B, K, J, R, J, R)."""
    return torch.einsum("bkire,bkjse->bkirjs", tuples.rows, tuples.rows)


def squared_distances(mix: Tensor, values: Tuples, queries: Tuples) -> Tensor:
    """Of query tuples (B, Q, M, E) to their prototypes in each class, (B, K, Q, M), never negative.

    A prototype is a mixture p = mix @ rows of the rows of a class, mix (B, K, Q, M, J, R); it is not built either, since
    |q - p|^2 = |q|^2 - 2 mix.(rows q) + mix (rows rows') mix'.
    """
    spread = torch.einsum("bkqtir,bkirjs->bkqtjs", mix, row_products_of_shots(values))
    squares = (mix * (spread - 2 * row_products(queries, values.rows))).sum(dim=(-2, -1))
    return (squares + rearrange(queries.squares(), "b q t -> b 1 q t")).clamp_min(0)


class TemporalCrossTransformer(nn.Module):
    """TRX for tuples of one cardinality: a prototype of each class for each query, made of the tuples that match it.

    Perrett et al., CVPR 2021, section 3.
    """

    def __init__(self, step_width: int, out_width: int, cardinality: int, num_steps: int, dropout: float) -> None:
        super().__init__()
        self.pe = PositionalEncoding(step_width, num_steps, dropout)
        self.k_linear = TupleLinear(step_width, cardinality, out_width, num_steps)
        self.v_linear = TupleLinear(step_width, cardinality, out_width, num_steps)
        self.norm_k = nn.LayerNorm(out_width)

    def attention(self, support: Tensor, present: Tensor, target: Tensor) -> Tensor:
        """How much each query tuple looks at each support tuple of a class: softmax over all its shots and tuples.

        Encoded steps (B, K, J, S, D), which shots exist (B, K, J), encoded steps (B, Q, S, D) -> (B, K, Q, M, J, M).
        """
        keys, query_keys = (keys.layer_norm(self.norm_k) for keys in project_together(self.k_linear, support, target))
        scores = attention_scores(query_keys, keys)
        scores = scores.masked_fill(rearrange(~present, "b k j -> b k 1 1 j 1"), -math.inf)
        return scores.flatten(-2).softmax(dim=-1).unflatten(-1, scores.shape[-2:])

    def forward(self, support: Tensor, present: Tensor, target: Tensor) -> Tensor:
        """Support (B, K, J, S, D), which of it exists (B, K, J), target (B, Q, S, D) -> logits (B, Q, K)."""
        support, target = self.pe(support), self.pe(target)
        attention = self.attention(support, present, target)
        values, query_values = project_together(self.v_linear, support, target)
        prototypes = torch.einsum("bkqtju,bkjur->bkqtjr", attention, values.mix)  # as mixtures of rows
        distances = squared_distances(prototypes, values, query_values)
        return -reduce(distances, "b k q t -> b q k", "mean")


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
