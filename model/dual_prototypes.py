"""Dual prototypes: a class is described once by itself, and once more for each query.

Letters: B episodes, K way, N support videos, J shots of a class, Q queries, S feature steps, D feature width,
W tuple cardinality, M tuples of a video, E width of projected tuples, R = Q*M query tuples, U = J*M support tuples of a
class; in index patterns t and u are the tuples of two videos.
"""

from __future__ import annotations

import argparse
import math
from itertools import combinations
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

from model.head import CNN_FSHead, LogitScale, group_by_class
from model.trx import PositionalEncoding, TupleLinear, check_cardinalities


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
        keys, values = self.norm_k(self.k_linear(support)), self.v_linear(support)
        query_keys, query_values = self.norm_k(self.k_linear(target)), self.v_linear(target)

        log_weights = shot_log_weights(values, present, self.log_temperature.exp().clamp(0.02, 1.0))
        class_prototypes = self.class_prototypes(keys, values, log_weights.exp(), present)
        attention = self.query_attention(query_keys, keys, log_weights)

        class_logits = self.scale(tuple_cosines(query_values, class_prototypes))
        query_logits = self.scale(attended_cosines(attention, values, query_values))
        logits = torch.lerp(query_logits, class_logits, self.balance.sigmoid())
        return DualScores(logits, class_logits, query_logits, log_weights.exp())

    def class_prototypes(self, keys: Tensor, values: Tensor, weights: Tensor, present: Tensor) -> Tensor:
        """The weighted mean of a class's shots, each of which may attend to itself as its peers would: (B, K, M, E)."""
        peers = leave_one_out_mean(keys, present)
        attention = (peers @ keys.mT / math.sqrt(keys.shape[-1])).softmax(dim=-1)
        has_peers = rearrange(present.sum(dim=-1) > 1, "b k -> b k 1 1 1")
        moved = values + self.attended * has_peers * (attention @ values - values)
        return torch.einsum("bkj,bkjte->bkte", weights, moved)

    def query_attention(self, query_keys: Tensor, keys: Tensor, log_weights: Tensor) -> Tensor:
        """TRX's attention of each query tuple over all shots and tuples of a class, with a prior on shots: (B, K, R, U)."""
        prior = repeat(log_weights, "b k j -> b k 1 (j u)", u=keys.shape[3])  # -inf where there is no shot
        return (attention_scores(query_keys, keys) + prior).softmax(dim=-1)


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
        keys, values = self.norm(self.k_linear(support)), self.norm(self.v_linear(support))
        query_keys, query_values = self.norm(self.q_linear(target)), self.v_linear(target)
        values = values * rearrange(present, "b k j -> b k j 1 1")  # what is no shot adds nothing to a prototype

        class_prototypes = self.class_prototypes(leave_one_out_mean(support, present), keys, values)
        attention = rearrange(attention_scores(query_keys, keys), "b k r (j u) -> b k r j u", u=keys.shape[3])
        attention = attention.softmax(dim=-1).flatten(-2)  # of each shot by itself

        class_logits = self.scale * tuple_cosines(query_values, class_prototypes)
        if self.cosine_axis == "feature":
            query_logits = self.scale * attended_cosines(attention, values, query_values)
        else:
            query_logits = self.scale * self.channel_cosines(attention, values, query_values)
        shot_weights = present / present.sum(dim=-1, keepdim=True)
        return DualScores(class_logits + query_logits, class_logits, query_logits, shot_weights)

    def class_prototypes(self, peers: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """What the tuples of a shot's peers (B, K, J, S, D) find in it, added up over shots: (B, K, M, E).

        A tuple of peers times a key is the sum over positions of a step times a part of the key, so that S products for
        each part of a key replace M products with it.
        """
        cardinality = self.tuples.shape[1]
        parts = rearrange(keys, "b k j u (w d) -> b k j u w d", w=cardinality)
        products = torch.einsum("bkjsd,bkjuwd->bkjswu", peers, parts)
        scores = products[..., self.tuples, torch.arange(cardinality, device=keys.device), :].sum(dim=-2)
        attention = (scores / math.sqrt(keys.shape[-1])).softmax(dim=-1)
        return torch.einsum("bkjtu,bkjue->bkte", attention, values)

    def channel_cosines(self, attention: Tensor, values: Tensor, queries: Tensor) -> Tensor:
        """Cosine over tuples in each channel, its mean over channels: (B, Q, K). The code takes this one, by a default."""
        prototypes = attention @ rearrange(values, "b k j u e -> b k (j u) e")
        prototypes = rearrange(prototypes, "b k (q t) e -> b q k t e", q=queries.shape[1])
        return F.cosine_similarity(prototypes, queries[:, :, None], dim=-2).mean(dim=-1)


def leave_one_out_mean(values: Tensor, present: Tensor) -> Tensor:
    """For each shot, the mean of the other shots of its class: (B, K, J, X, Y), bool (B, K, J) -> (B, K, J, X, Y).

    A lone shot stands for its missing peers itself.
    """
    present = rearrange(present, "b k j -> b k j 1 1")
    values = values * present
    shots = present.sum(dim=2, keepdim=True)
    others = (values.sum(dim=2, keepdim=True) - values) / (shots - 1).clamp_min(1)
    return torch.where(shots > 1, others, values)


def shot_log_weights(values: Tensor, present: Tensor, temperature: Tensor | float) -> Tensor:
    """Logarithm of how much each shot of a class counts, by its mean similarity to the others: (B, K, J).

    Tuple values (B, K, J, M, E) are compared by cosine at equal tuples. Weights add up to 1 in each class; what is not
    `present`, bool (B, K, J), has weight 0. A high temperature makes all shots equal.
    """
    directions = rearrange(F.normalize(values, dim=-1), "b k j t e -> b k j (t e)")
    similarities = directions @ directions.mT / values.shape[3]  # (B, K, J, J)
    are_peers = (
        present[..., None] & present[..., None, :] & ~torch.eye(values.shape[2], dtype=torch.bool, device=values.device)
    )
    to_peers = (similarities * are_peers).sum(dim=-1) / are_peers.sum(dim=-1).clamp_min(1)
    return (to_peers / temperature).masked_fill(~present, -math.inf).log_softmax(dim=-1)


def attention_scores(query_keys: Tensor, keys: Tensor) -> Tensor:
    """Scaled products of all query tuples with all support tuples: (B, Q, M, E), (B, K, J, M, E) -> (B, K, R, U)."""
    queries = rearrange(query_keys, "b q t e -> b (q t) e") / math.sqrt(keys.shape[-1])
    return torch.einsum("bre,bkue->bkru", queries, rearrange(keys, "b k j u e -> b k (j u) e"))


def tuple_cosines(queries: Tensor, prototypes: Tensor) -> Tensor:
    """Mean over tuples of the cosine at equal tuples: (B, Q, M, E), (B, K, M, E) -> (B, Q, K)."""
    cosines = torch.einsum("bqte,bkte->bqk", F.normalize(queries, dim=-1), F.normalize(prototypes, dim=-1))
    return cosines / queries.shape[2]


def attended_cosines(attention: Tensor, values: Tensor, queries: Tensor) -> Tensor:
    """Mean over tuples of the cosine of query tuples to their own prototypes `attention @ values`: (B, Q, K).

    attention (B, K, R, U), values (B, K, J, M, E), queries (B, Q, M, E). <q, aV> = a(Vq) and |aV|^2 = a(VV')a' need U
    numbers for each query tuple and class where the prototype has E, so this is used where U is the smaller.
    """
    values = rearrange(values, "b k j u e -> b k (j u) e")
    flat = rearrange(queries, "b q t e -> b (q t) e")
    if values.shape[2] >= values.shape[3]:
        cosines = F.cosine_similarity(attention @ values, flat[:, None], dim=-1)
    else:
        products = (attention * torch.einsum("bre,bkue->bkru", flat, values)).sum(dim=-1)
        squares = (attention * (attention @ (values @ values.mT))).sum(dim=-1)
        norms = squares.clamp_min(1e-16).sqrt() * flat.norm(dim=-1).clamp_min(1e-8)[:, None]
        cosines = products / norms
    return rearrange(cosines, "b k (q t) -> b q k t", q=queries.shape[1]).mean(dim=-1)


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
