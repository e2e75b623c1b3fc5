"""Dual prototypes: a class is described once by itself, and once more for each query.

Letters: B episodes, K way, N support videos, J shots of a class, Q queries, S feature steps, D feature width,
W tuple cardinality, M tuples of a video, E width of projected tuples, R rows that a video's tuples are mixed of. In
patterns i and j are two shots, t and u tuples of two videos, r and s rows of two videos.
"""

from __future__ import annotations

import argparse
import math
from itertools import combinations
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from torch import Tensor, nn

from methods.trx import (
    PositionalEncoding,
    TupleLinear,
    Tuples,
    attention_scores,
    check_cardinalities,
    row_products,
    row_products_of_shots,
)
from model import CNN_FSHead, LogitScale, group_by_class


def peer_weights(present: Tensor, dtype: torch.dtype) -> Tensor:
    """The mean of the other shots of its class, for each shot, as weights: bool (B, K, J) -> (B, K, J, J).

    A lone shot stands for its missing peers itself.
    """
    itself = torch.eye(present.shape[-1], dtype=torch.bool, device=present.device)
    are_alone = rearrange(present.sum(dim=-1) == 1, "b k -> b k 1 1")
    are_peers = (present[..., None, :] & (itself == are_alone)).to(dtype)
    return are_peers / are_peers.sum(dim=-1, keepdim=True).clamp_min(1)


def prototype_cosines(
    class_mix: Tensor, query_mix: Tensor, values: Tuples, query_values: Tuples
) -> tuple[Tensor, Tensor]:
    """Mean over tuples of a query's cosines to class-specific and to query-specific prototypes: two of (B, Q, K).

    Prototypes are mixtures of the rows of a class, (B, K, M, J, R) and (B, K, Q, M, J, R). With p = mix @ rows,
    p.u = mix.(rows u) and p.p = mix (rows rows') mix', so prototypes are not built either.
    """
    products = row_products(query_values, values.rows)
    between_rows = row_products_of_shots(values)
    query_squares = rearrange(query_values.squares(), "b q t -> b 1 q t")

    def cosines(mix: Tensor) -> Tensor:
        squares = (mix * torch.einsum("bkqtir,bkirjs->bkqtjs", mix, between_rows)).sum(dim=(-2, -1)) * query_squares
        return reduce((mix * products).sum(dim=(-2, -1)) * squares.clamp_min(1e-16).rsqrt(), "b k q t -> b q k", "mean")

    return cosines(rearrange(class_mix, "b k t j r -> b k 1 t j r")), cosines(query_mix)


class DualScores(NamedTuple):
    """What one cardinality says: three logits (B, Q, K), and how much each shot counts in its class, (B, K, J)."""

    logits: Tensor
    class_logits: Tensor
    query_logits: Tensor
    shot_weights: Tensor


class RobustDualPrototypes(nn.Module):
    """Prototypes in which shots that are unlike the others of their class count less, for tuples of one cardinality.

    This follows what the paper's abstract claims, not its code. Shots are weighted by their mean similarity to the other
    shots of the class, and both prototypes use the weights. With two shots these are equal by symmetry: only from three
    shots on can one be found wrong.
    """

    def __init__(
        self, step_width: int, out_width: int, cardinality: int, num_steps: int, dropout: float, scale: float
    ) -> None:
        super().__init__()
        self.pe = PositionalEncoding(step_width, num_steps, dropout)
        self.k_linear = TupleLinear(step_width, cardinality, out_width, num_steps)
        self.v_linear = TupleLinear(step_width, cardinality, out_width, num_steps)
        self.norm_k = nn.LayerNorm(out_width)
        self.log_temperature = nn.Parameter(torch.tensor(math.log(0.1)))  # of the softmax over shots
        self.attended = nn.Parameter(torch.tensor(0.0))  # part of attention in the class-specific prototype
        self.balance = nn.Parameter(torch.tensor(0.0))  # of the two scores; 0 is half and half
        self.scale = LogitScale(scale)

    def forward(self, support: Tensor, present: Tensor, target: Tensor) -> DualScores:
        """Support (B, K, J, S, D), which of it exists (B, K, J), target (B, Q, S, D)."""
        support, target = self.pe(support), self.pe(target)
        keys, query_keys = (Tuples.project(self.k_linear, steps).layer_norm(self.norm_k) for steps in (support, target))
        values, query_values = (Tuples.project(self.v_linear, steps) for steps in (support, target))

        log_weights = shot_log_weights(values, present, self.log_temperature.exp().clamp(0.02, 1.0))
        class_mix = self.class_mix(keys, values, present) * rearrange(log_weights.exp(), "b k j -> b k 1 j 1")
        query_mix = self.query_mix(query_keys, keys, values, log_weights)

        class_logits, query_logits = map(self.scale, prototype_cosines(class_mix, query_mix, values, query_values))
        logits = torch.lerp(query_logits, class_logits, self.balance.sigmoid())
        return DualScores(logits, class_logits, query_logits, log_weights.exp())

    def class_mix(self, keys: Tuples, values: Tuples, present: Tensor) -> Tensor:
        """Each shot's values, which may move to what its peers' keys find in it: (B, K, M, J, R)."""
        from_rows = torch.einsum("bkitr,bkirjs->bkitjs", keys.mix, row_products_of_shots(keys))
        from_peers = torch.einsum("bkji,bkitjs->bkjts", peer_weights(present, from_rows.dtype), from_rows)
        attention = (from_peers @ keys.mix.mT / math.sqrt(keys.rows.shape[-1])).softmax(dim=-1)  # (B, K, J, M, M)
        has_peers = rearrange(present.sum(dim=-1) > 1, "b k -> b k 1 1 1")
        moved = values.mix + self.attended * has_peers * (attention @ values.mix - values.mix)
        return rearrange(moved, "b k j t r -> b k t j r")

    def query_mix(self, query_keys: Tuples, keys: Tuples, values: Tuples, log_weights: Tensor) -> Tensor:
        """TRX's attention of each query tuple over all shots and tuples of a class, with a prior on shots."""
        prior = rearrange(log_weights, "b k j -> b k 1 1 j 1")  # -inf where there is no shot
        attention = (attention_scores(query_keys, keys) + prior).flatten(-2).softmax(dim=-1)
        attention = attention.unflatten(-1, (keys.mix.shape[2], -1))
        return torch.einsum("bkqtju,bkjur->bkqtjr", attention, values.mix)


def shot_log_weights(values: Tuples, present: Tensor, temperature: Tensor | float) -> Tensor:
    """Logarithm of how much each shot of a class counts, by its mean similarity to the others: (B, K, J).

    Shots are compared by the cosines of their values at equal tuples. Weights add up to 1 in each class; what is not
    `present`, bool (B, K, J), has weight 0. A high temperature makes all shots equal.
    """
    products = torch.einsum("bkitr,bkirjs,bkjts->bkijt", values.mix, row_products_of_shots(values), values.mix)
    squares = values.squares()  # (B, K, J, M)
    norms = (squares[:, :, :, None] * squares[:, :, None]).clamp_min(1e-16).sqrt()
    to_peers = (peer_weights(present, products.dtype) * (products / norms).mean(dim=-1)).sum(dim=-1)
    return (to_peers / temperature).masked_fill(~present, -math.inf).log_softmax(dim=-1)


class PublishedDualPrototypes(nn.Module):
    """The method as its authors' code computes it, for tuples of one cardinality.

    All maps are square on concatenated tuples. Each shot has its own softmax in both attentions, and shots are added up:
    every one of them counts the same, whatever it shows.
    """

    def __init__(
        self,
        step_width: int,
        cardinality: int,
        num_steps: int,
        dropout: float,
        scale: float,
        cosine_axis: Literal["feature", "tuple"],
    ) -> None:
        super().__init__()
        width = cardinality * step_width
        self.pe = PositionalEncoding(step_width, num_steps, dropout)
        self.q_linear = TupleLinear(step_width, cardinality, width, num_steps)
        self.k_linear = TupleLinear(step_width, cardinality, width, num_steps)
        self.v_linear = TupleLinear(step_width, cardinality, width, num_steps)
        self.norm = nn.LayerNorm(width)
        self.scale = scale
        self.cosine_axis = cosine_axis
        self.tuples: Tensor
        tuples = torch.tensor(list(combinations(range(num_steps), cardinality)))  # (M, W)
        self.register_buffer("tuples", tuples, persistent=False)

    def forward(self, support: Tensor, present: Tensor, target: Tensor) -> DualScores:
        """Support (B, K, J, S, D), which of it exists (B, K, J), target (B, Q, S, D)."""
        support, target = self.pe(support), self.pe(target)
        class_attention, query_attention = self.attend(support, present, target)
        values = Tuples.project(self.v_linear, support).layer_norm(self.norm)
        query_values = Tuples.project(self.v_linear, target)

        own_mix = values.mix * rearrange(present, "b k j -> b k j 1 1")  # what is no shot adds nothing to a prototype
        class_mix = torch.einsum("bkjtu,bkjur->bktjr", class_attention, own_mix)
        query_mix = torch.einsum("bkqtju,bkjur->bkqtjr", query_attention, own_mix)

        class_score, query_score = prototype_cosines(class_mix, query_mix, values, query_values)
        if self.cosine_axis == "tuple":
            query_score = channel_cosines(query_mix, values, query_values)
        class_logits, query_logits = self.scale * class_score, self.scale * query_score
        shot_weights = present / present.sum(dim=-1, keepdim=True)
        return DualScores(class_logits + query_logits, class_logits, query_logits, shot_weights)

    def attend(self, support: Tensor, present: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """How a shot's peers and how queries look at its tuples: (B, K, J, M, M) and (B, K, Q, M, J, M), each adds up to 1."""
        keys = Tuples.project(self.k_linear, support).layer_norm(self.norm)
        query_keys = Tuples.project(self.q_linear, target).layer_norm(self.norm)
        peers = torch.einsum("bkji,bkisd->bkjsd", peer_weights(present, support.dtype), support)
        # A tuple of peers, which is not projected, times a row is a sum over positions: a step times a part of the row.
        parts = rearrange(keys.rows, "b k j r (w d) -> b k j r w d", w=self.tuples.shape[1])
        products = torch.einsum("bkjsd,bkjrwd->bkjswr", peers, parts)
        positions = torch.arange(self.tuples.shape[1], device=support.device)
        from_peers = products[..., self.tuples, positions, :].sum(dim=-2)  # (B, K, J, M, R)
        class_scores = from_peers @ keys.mix.mT / math.sqrt(keys.rows.shape[-1])
        return class_scores.softmax(dim=-1), attention_scores(query_keys, keys).softmax(dim=-1)


def channel_cosines(query_mix: Tensor, values: Tuples, query_values: Tuples) -> Tensor:
    """Cosine across tuples in each channel to query-specific prototypes, its mean over channels: (B, Q, K).

    What the published code takes for its query-specific score, by the default axis of a function.
    """
    prototypes = torch.einsum("bkqtjr,bkjre->bqkte", query_mix, values.rows)
    tuples = query_values.mix @ query_values.rows
    return F.cosine_similarity(prototypes, rearrange(tuples, "b q t e -> b q 1 t e"), dim=-2).mean(dim=-1)


class CNN_DualPrototypes(CNN_FSHead):
    """Dual prototypes: class-specific and query-specific attentive prototypes over frame tuples.

    "A dual-prototype network combining query-specific and class-specific attentive learning for few-shot action
    recognition" (Jiang, Zhan, Jiang, Tang, Neurocomputing 2024). `--dp_variant robust` weights shots by within-class
    similarity, as the paper's abstract says, and trains with a loss on either score beside that on both; `code` is the
    computation of the code that its authors published. Logits are means over the cardinalities of `--temp_set`, which it
    shares with TRX, as it does `--trans_dropout` and, in the robust variant, `--trans_linear_out_dim`.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        super().__init__(args)
        check_cardinalities(args, self.num_steps)
        shape = {"step_width": self.backbone.feature_dim, "num_steps": self.num_steps, "dropout": args.trans_dropout}
        self.branches: nn.ModuleList
        if args.dp_variant == "robust":
            shape |= {"out_width": args.trans_linear_out_dim, "scale": args.dp_scale or 20.0}
            self.branches = nn.ModuleList(RobustDualPrototypes(cardinality=w, **shape) for w in args.temp_set)
        else:
            shape |= {"cosine_axis": args.dp_cosine_axis, "scale": args.dp_scale or 1000.0}
            self.branches = nn.ModuleList(PublishedDualPrototypes(cardinality=w, **shape) for w in args.temp_set)
        self.dual_weight = args.dp_dual_weight if args.dp_variant == "robust" else 0.0

    @staticmethod
    def add_arguments(group: Any) -> None:
        group.add_argument(
            "--dp_variant",
            choices=["robust", "code"],
            default="robust",
            help="robust: shots unlike the others of their class count less, needs 3 shots to have an effect; code: as the "
            "authors' code computes it, with square maps (164 M parameters on resnet50)",
        )
        group.add_argument(
            "--dp_cosine_axis",
            choices=["feature", "tuple"],
            default="feature",
            help="of the code variant's query-specific score; tuple, across tuples in each channel, is what the code does",
        )
        group.add_argument(
            "--dp_scale",
            type=float,
            help="factor on cosines; unset: 20, learnt from there within [1, 100] (robust), 1000, fixed (code)",
        )
        group.add_argument(
            "--dp_dual_weight",
            type=float,
            default=0.5,
            help="weight of the loss on either score alone, beside that on both; the code variant has none",
        )

    def classify(self, support_features: Tensor, support_labels: Tensor, target_features: Tensor) -> dict[str, Tensor]:
        support, present = group_by_class(support_features, support_labels)
        branches = [branch(support, present, target_features) for branch in self.branches]
        means = (torch.stack(scores).mean(dim=0) for scores in zip(*branches, strict=True))
        return DualScores(*means)._asdict()

    def loss(self, task_dict: dict[str, Any], model_dict: dict[str, Tensor]) -> Tensor:
        """Cross entropy of the queries by both scores, plus `--dp_dual_weight` times its mean over the single scores."""
        labels = task_dict["target_labels"]
        loss = self.query_loss(model_dict["logits"], labels)
        if self.dual_weight == 0:
            return loss
        single = self.query_loss(model_dict["class_logits"], labels) + self.query_loss(
            model_dict["query_logits"], labels
        )
        return loss + self.dual_weight * single / 2

    def explain(self, support_features: Tensor, support_labels: Tensor, target_features: Tensor) -> dict[str, Tensor]:
        """Means over cardinalities: "logits", "class_logits" and "query_logits" (B, Q, K), "shot_weights" (B, K, J).

        Shots are in the order of `group_by_class`; the weights of a class add up to 1.
        """
        return self.classify(support_features, support_labels, target_features)
