"""HyRSM and HyRSM++, hybrid relations: steps see their clip, clips see their task, steps are matched as sets.

"Hybrid relation guided set matching for few-shot action recognition" (Wang et al., CVPR 2022), and "HyRSM++: Hybrid
relation guided temporal set matching for few-shot action recognition" (Wang et al., 2023).

Letters: B episodes, K way, N support videos, I items of the support (its classes or its videos), Q queries, V videos of an
episode, S feature steps, D feature width, H attention heads, L and M steps of a query and of an item.
"""

from __future__ import annotations

import argparse
import math
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

from methods.described import build_aux_classifier, loss_with_classes
from methods.similarity import hausdorff_distance, matched_cells
from model import CNN_FSHead, group_by_class, mean_over_shots
from utils import UserError

HEADS = 8


class ScaledEncoding(nn.Module):
    """Steps times sqrt(D / `divisor`), plus `amplitude` times sinusoids of their time, then dropout.

    The sinusoids are the authors': the angle of column c is time / 10000^(2c/D), of a cosine as of a sine, where Vaswani et
    al. (NeurIPS 2017) have 10000^(c/D) for both columns of a pair.
    """

    def __init__(self, width: int, max_steps: int, divisor: float, amplitude: float) -> None:
        super().__init__()
        columns = torch.arange(width)
        angles = torch.arange(max_steps)[:, None] * torch.exp(columns * (-2 * math.log(10000.0) / width))
        self.table: Tensor
        self.register_buffer(
            "table", amplitude * torch.where(columns % 2 == 0, angles.sin(), angles.cos()), persistent=False
        )
        self.factor = math.sqrt(width / divisor)
        self.dropout = nn.Dropout(0.1)

    @staticmethod
    def add_argument(group: Any, flag: str) -> None:
        """Declares the flag that holds `divisor` and `amplitude`."""
        group.add_argument(
            flag,
            nargs=2,
            type=float,
            above=0,
            default=[10.0, 1.0],
            metavar=("A", "B"),
            help="features times the root of their width over A, plus B times the positional encoding",
        )

    def forward(self, steps: Tensor) -> Tensor:
        """(..., S, D) -> (..., S, D)."""
        return self.dropout(self.factor * steps + self.table[: steps.shape[-2]])


class StepAttention(nn.Module):
    """Steps look at the steps of their own clip, behind a layer norm, and keep what they are."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width)
        self.dropout = nn.Dropout(0.2)

    def forward(self, steps: Tensor) -> Tensor:
        """(V, S, D) -> (V, S, D)."""
        heads = rearrange(self.qkv(self.norm(steps)), "v s (part h c) -> part v h s c", part=3, h=HEADS)
        found = rearrange(F.scaled_dot_product_attention(*heads), "v h s c -> v s (h c)")
        return steps + self.dropout(self.out(found))


def feed_forward(width: int) -> nn.Sequential:
    """What methods of the same authors have behind `StepAttention`, to be added to the steps: (..., D) -> (..., D)."""
    return nn.Sequential(nn.Linear(width, 2048), nn.GELU(), nn.Dropout(0.05), nn.Linear(2048, width), nn.Dropout(0.05))


class TaskAttention(nn.Module):
    """The items of the support and one query look at each other, for every query anew.

    Keys and values of an item are the same for all queries, and the outgoing map is linear: it is applied to the values
    before they are mixed, so that no product grows with items times queries times width squared.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.q_linear, self.k_linear, self.v_linear = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.out = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.attention_dropout, self.dropout = nn.Dropout(0.1), nn.Dropout(0.05)
        for linear in (self.q_linear, self.k_linear, self.v_linear):
            nn.init.normal_(linear.weight, std=math.sqrt(2 / (width + width // HEADS)))
        nn.init.xavier_normal_(self.out.weight)

    def weights(self, items: Tensor, queries: Tensor) -> Tensor:
        """How much each of a query's I + 1 tokens, the query last, looks at each: (B, H, Q, I + 1, I + 1)."""
        count = items.shape[1]
        tokens = torch.cat([items, queries], dim=1)
        looking, seen = (
            rearrange(linear(tokens), "b n (h c) -> b h n c", h=HEADS) for linear in (self.q_linear, self.k_linear)
        )
        scores = looking @ seen.mT / math.sqrt(looking.shape[-1])  # of all items and all queries
        of_items = repeat(scores[..., :count, :count], "b h i j -> b h q i j", q=queries.shape[1])
        of_query = rearrange(scores[..., count:, :count], "b h q j -> b h q 1 j")
        to_query = rearrange(scores[..., :count, count:], "b h i q -> b h q i 1")
        to_itself = rearrange(scores[..., count:, count:].diagonal(dim1=-2, dim2=-1), "b h q -> b h q 1 1")
        rows = torch.cat([torch.cat([of_items, to_query], -1), torch.cat([of_query, to_itself], -1)], dim=-2)
        return rows.softmax(dim=-1)

    def forward(self, items: Tensor, queries: Tensor) -> Tensor:
        """Items (B, I, D), queries (B, Q, D) -> tokens (B, Q, I + 1, D), of each query the items and itself."""
        count = items.shape[1]
        weights = self.attention_dropout(self.weights(items, queries))
        values = rearrange(self.v_linear(torch.cat([items, queries], dim=1)), "b n (h c) -> b h n c", h=HEADS)
        values = torch.einsum("bhnc,hcd->bhnd", values, rearrange(self.out.weight, "d (h c) -> h c d", h=HEADS))
        found = torch.einsum("bhqij,bhjd->bqid", weights[..., :count], values[:, :, :count])
        found = found + torch.einsum("bhqi,bhqd->bqid", weights[..., count], values[:, :, count:])
        tokens = torch.cat([repeat(items, "b i d -> b q i d", q=queries.shape[1]), queries[:, :, None]], dim=2)
        return F.relu(self.norm(tokens + self.dropout(found + self.out.bias)))


class Fuse(nn.Linear):
    """A linear map of [step; token of its clip], 2D -> D, as the sum of a map of steps and one of tokens.

    A step's part is the same for all queries. Of the steps of an item, which differ for every query by a vector that all
    of them share, nothing is built but their products.
    """

    def __init__(self, width: int) -> None:
        super().__init__(2 * width, width)

    def of_steps(self, steps: Tensor) -> Tensor:
        return steps @ self.weight[:, : self.out_features].mT

    def of_tokens(self, tokens: Tensor) -> Tensor:
        """With the bias."""
        return F.linear(tokens, self.weight[:, self.out_features :], self.bias)


class ShiftedSteps:
    """The steps of items as each query sees them: item steps (B, I, M, D) plus a shift (B, Q, I, D) for all steps of one.

    `cosines` and `self_cosines` are of these Q * I * M vectors, none of which is built, since products are linear.
    """

    def __init__(self, steps: Tensor, shifts: Tensor) -> None:
        self.steps, self.shifts = steps, shifts
        self.mixed = torch.einsum("bimd,bqid->bqim", steps, shifts)
        self.shift_squares = shifts.square().sum(dim=-1)[..., None]  # (B, Q, I, 1)
        step_squares = rearrange(steps.square().sum(dim=-1), "b i m -> b 1 i m")
        most = step_squares + self.shift_squares
        # A step that its shift all but undoes is as long as rounding leaves it, and not shorter.
        self.norms = (most + 2 * self.mixed).clamp_min(0).maximum(torch.finfo(steps.dtype).eps * most + 1e-24).sqrt()

    def cosines(self, queries: Tensor) -> Tensor:
        """With the steps of each query, (B, Q, L, D) -> (B, Q, I, L, M)."""
        products = torch.einsum("bqld,bimd->bqilm", queries, self.steps)
        products = products + torch.einsum("bqld,bqid->bqil", queries, self.shifts)[..., None]
        lengths = queries.norm(dim=-1).clamp_min(1e-12)
        return products / (rearrange(lengths, "b q l -> b q 1 l 1") * self.norms[..., None, :])

    def self_cosines(self) -> Tensor:
        """Of the steps of each item with each other, (B, Q, I, M, M)."""
        products = rearrange(self.steps @ self.steps.mT, "b i l m -> b 1 i l m")
        products = products + self.mixed[..., None] + self.mixed[..., None, :] + self.shift_squares[..., None]
        return products / (self.norms[..., None] * self.norms[..., None, :])


class CNN_HyRSM(CNN_FSHead):
    """HyRSM: steps enriched by their clip and by the task, matched with a query's as sets by a mean Hausdorff metric.

    Hybrid Relation guided Set Matching (Wang et al., CVPR 2022), with the logits of the authors' code, whose distances are
    sums over steps where the paper has means. Each query sees the support in its own way, whatever other queries there are.
    In training every enriched step is also classified among the training classes.
    """

    condenses = True

    def __init__(self, args: argparse.Namespace) -> None:
        super().__init__(args)
        width = self.backbone.feature_dim
        check_heads(args, width)
        self.encoding = ScaledEncoding(width, self.num_steps, *args.hyrsm_encoding)
        self.step_attention = StepAttention(width)
        self.task_attention = TaskAttention(width)
        self.fuse = Fuse(width)
        self.shots = args.hyrsm_shots
        self.aux_weight = args.hyrsm_aux_weight
        self.aux_classifier = build_aux_classifier(args, width, self.aux_weight)

    @staticmethod
    def add_arguments(group: Any) -> None:
        group.add_argument(
            "--hyrsm_shots",
            choices=["mean_first", "mean_distance"],
            default="mean_first",
            help="average the steps of a class's shots, as published for 5 shots, or compare with every shot and average "
            "the distances, as published for 1; with one shot both are the same",
        )
        ScaledEncoding.add_argument(group, "--hyrsm_encoding")
        group.add_argument(
            "--hyrsm_aux_weight",
            type=float,
            least=0,
            default=0.15,
            help="weight of the loss of classifying every step of a training episode among the training classes",
        )

    def describe(self, features: Tensor) -> Tensor:
        """Steps that have seen their clip: (V, S, D) -> (V, S, D)."""
        return F.relu(self.step_attention(self.encoding(features)))

    def classify_described(self, support: Tensor, support_labels: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Enriched steps (B, N, S, D), labels (B, N), steps (B, Q, S, D) -> logits (B, Q, K) and what `loss` needs."""
        item_steps, query_steps = self.relate(self.items_of(support, support_labels), target)
        distances = hausdorff_distance(1 - item_steps.cosines(query_steps))  # (B, Q, I)
        outputs = {"logits": -self.over_shots(distances, support_labels)}
        if self.training:
            outputs |= self.for_loss(torch.cat([support, target], dim=1), item_steps, query_steps)
        return outputs

    def items_of(self, support: Tensor, labels: Tensor) -> Tensor:
        """What queries are compared with, the mean of each class or every video: (B, N, S, D) -> (B, I, S, D)."""
        if self.shots == "mean_distance":
            return support
        grouped, present = group_by_class(support, labels)
        return mean_over_shots(grouped, present[..., None, None], dim=2)

    def relate(self, items: Tensor, target: Tensor) -> tuple[ShiftedSteps, Tensor]:
        """Steps with what their clip sees of the task: items (B, I, S, D) as every query sees them, and (B, Q, S, D)."""
        tokens = self.task_attention(items.mean(dim=2), target.mean(dim=2))
        shifts = self.fuse.of_tokens(tokens)  # (B, Q, I + 1, D)
        item_steps, query_steps = self.fuse.of_steps(torch.cat([items, target], dim=1)).split(
            [items.shape[1], target.shape[1]], dim=1
        )
        return ShiftedSteps(item_steps, shifts[:, :, :-1]), query_steps + shifts[:, :, -1:]

    def over_shots(self, distances: Tensor, labels: Tensor) -> Tensor:
        """Distances to items (B, Q, I) -> to classes (B, Q, K)."""
        if self.shots == "mean_first":
            return distances
        grouped, present = group_by_class(distances.mT, labels)  # (B, K, J, Q)
        return mean_over_shots(grouped, present[..., None], dim=2).mT

    def for_loss(self, steps: Tensor, item_steps: ShiftedSteps, query_steps: Tensor) -> dict[str, Tensor]:
        """Of all clips' enriched steps (B, V, S, D), and items and queries within the task: what `loss` needs beside logits."""
        return {} if self.aux_classifier is None else {"class_logits": self.aux_classifier(steps)}

    def loss(self, task_dict: dict[str, Any], model_dict: dict[str, Tensor]) -> Tensor:
        """Cross entropy of the queries, plus `--hyrsm_aux_weight` times that of all steps among the training classes."""
        return loss_with_classes(self, task_dict, model_dict, self.aux_weight)

    def explain(self, support_features: Tensor, support_labels: Tensor, target_features: Tensor) -> dict[str, Tensor]:
        """ "logits" (B, Q, K) and, as of the similarity family with one or all shots J of a class,

        "similarities" (B, Q, K, J, S, S): cosines of a query's steps and a class's within the task; "cells": how often each
        of them is the best of its row or column; "shot_similarities" (B, Q, K, J): minus the distances. "relation"
        (B, Q, I + 1, I + 1): how much each item, and last the query, looks at each, mean over heads; "relation_classes" (B, I):
        of the items.
        """
        support, target = self.described(support_features, target_features)
        items = self.items_of(support, support_labels)
        item_steps, query_steps = self.relate(items, target)
        cosines = item_steps.cosines(query_steps)  # (B, Q, I, S, S)
        if self.shots == "mean_first":
            similarities = rearrange(cosines, "b q k l m -> b q k 1 l m")
            item_classes = torch.arange(items.shape[1], device=items.device).expand(len(items), -1)
        else:
            grouped, _ = group_by_class(rearrange(cosines, "b q n l m -> b n q l m"), support_labels)
            similarities = rearrange(grouped, "b k j q l m -> b q k j l m")
            item_classes = support_labels
        return {
            "logits": -self.over_shots(hausdorff_distance(1 - cosines), support_labels),
            "similarities": similarities,
            "cells": matched_cells(similarities),
            "shot_similarities": -hausdorff_distance(1 - similarities),
            "relation": self.task_attention.weights(items.mean(dim=2), target.mean(dim=2)).mean(dim=1),
            "relation_classes": item_classes,
        }


class CNN_HyRSMPlusPlus(CNN_HyRSM):
    """HyRSM++: HyRSM whose steps, in training, are kept alike where they are near in time and unlike where they are far.

    "HyRSM++: Hybrid relation guided temporal set matching for few-shot action recognition" (Wang et al., 2023): a temporal
    coherence term on the fused steps of both the support, as each query sees it, and the queries.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        super().__init__(args)
        self.coherence_weight = args.hyrsm_coherence_weight
        self.window, self.slope, self.push = args.hyrsm_window, args.hyrsm_slope, args.hyrsm_push

    @staticmethod
    def add_arguments(group: Any) -> None:
        group.add_argument(
            "--hyrsm_coherence_weight",
            type=float,
            least=0,
            default=0.1,
            help="weight of the temporal coherence of steps",
        )
        group.add_argument(
            "--hyrsm_window",
            type=int,
            least=0,
            default=1,
            help="steps of a clip that are at most this far apart are pulled together",
        )
        group.add_argument(
            "--hyrsm_slope",
            type=float,
            above=0,
            default=51.0,
            help="the margin of steps t beyond the window is 1 - exp(-t^2 / this); lower: far steps are pushed apart sooner",
        )
        group.add_argument("--hyrsm_push", type=float, least=0, default=10.0, help="weight of pushing beside pulling")

    def for_loss(self, steps: Tensor, item_steps: ShiftedSteps, query_steps: Tensor) -> dict[str, Tensor]:
        directions = F.normalize(query_steps, dim=-1)
        coherences = [
            self.incoherence(1 - item_steps.self_cosines()).mean(dim=(-2, -1)),
            self.incoherence(1 - directions @ directions.mT).mean(dim=-1),
        ]
        return super().for_loss(steps, item_steps, query_steps) | {"incoherence": torch.stack(coherences).sum(dim=0)}

    def incoherence(self, distances: Tensor) -> Tensor:
        """Cosine distances of the steps of a clip to each other (..., S, S) -> (...), their mean cost.

        Within the window a distance costs itself over 1 + the squared time between; beyond, what it lacks of a margin.
        """
        times = torch.arange(distances.shape[-1], device=distances.device, dtype=distances.dtype)
        apart = (times[:, None] - times).abs()
        pulled = distances / (apart.square() + 1)
        margins = 1 - torch.exp(-(apart - self.window).square() / self.slope)
        pushed = self.push * F.relu(margins - distances)
        return torch.where(apart <= self.window, pulled, pushed).mean(dim=(-2, -1))

    def loss(self, task_dict: dict[str, Any], model_dict: dict[str, Tensor]) -> Tensor:
        """HyRSM's, plus `--hyrsm_coherence_weight` times the incoherence of steps."""
        loss = super().loss(task_dict, model_dict)
        if "incoherence" not in model_dict:
            return loss
        extra = self.coherence_weight * model_dict["incoherence"].mean()
        return self.with_extra(loss, extra, task_dict["target_labels"])


def check_heads(args: argparse.Namespace, width: int) -> None:
    """Raises UserError for a backbone whose features cannot be shared out evenly to the heads of attention."""
    if width % HEADS:
        raise UserError(
            f"--method {args.method} has {HEADS} heads of attention: backbone {args.backbone} gives {width} features, expected "
            f"a multiple of {HEADS}"
        )
