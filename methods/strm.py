"""STRM, spatio-temporal relation modeling: TRX on steps that patches and frames have enriched first.

"Spatio-temporal relation modeling for few-shot action recognition" (Thatipelli et al., CVPR 2022).

Letters: B episodes, K way, N support videos, J shots of a class, Q queries, V videos, S feature steps, D feature width,
h w cells of a feature map, P patches of a step, M pairs of steps, E width of projected pairs.
"""

from __future__ import annotations

import argparse
import math
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from torch import Tensor, nn

from model import CNN_FSHead, PositionalEncoding, TemporalCrossTransformer, TupleLinear, group_by_class, pack, unpack
from utils import UserError

GRID = 4  # patches of a step, along each side


class PatchEnrichment(nn.Module):
    """The patches of a step look at each other, then each goes through a small network of its own."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.encoding = PositionalEncoding(width, GRID * GRID, dropout)
        self.q_linear, self.k_linear, self.v_linear = (nn.Linear(width, width) for _ in range(3))
        self.gain = nn.Parameter(torch.zeros(()))
        half = width // 2
        self.network = nn.Sequential(
            nn.Linear(width, half), nn.ReLU(), nn.Linear(half, half), nn.ReLU(), nn.Linear(half, width)
        )

    def attention(self, patches: Tensor) -> Tensor:
        """How much each encoded patch looks at each: (..., P, D) -> (..., P, P). Products are not scaled down."""
        return (self.q_linear(patches) @ self.k_linear(patches).mT).softmax(dim=-1)

    def forward(self, patches: Tensor) -> Tensor:
        """(..., P, D) -> (..., P, D)."""
        patches = self.encoding(patches)
        patches = patches + self.gain * (self.attention(patches) @ self.v_linear(patches))
        return patches + self.network(patches)


class FrameEnrichment(nn.Module):
    """The steps of a clip are mixed, then the channels of each step (an MLP-mixer without norms)."""

    def __init__(self, width: int, num_steps: int, dropout: float) -> None:
        super().__init__()
        self.encoding = PositionalEncoding(width, num_steps, dropout)
        self.over_steps, self.over_channels = (
            nn.Sequential(nn.Linear(size, size), nn.ReLU(), nn.Linear(size, size)) for size in (num_steps, width)
        )

    def forward(self, steps: Tensor) -> Tensor:
        """(..., S, D) -> (..., S, D)."""
        steps = self.encoding(steps)
        steps = steps + self.over_steps(steps.mT).mT
        return steps + self.over_channels(steps)


class PairClassifier(nn.Module):
    """How near the pairs of a query's steps are to the nearest pairs of each class, behind one layer."""

    def __init__(self, width: int, num_steps: int, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.project = TupleLinear(width, 2, width // 2, num_steps)

    def describe(self, steps: Tensor) -> Tensor:
        """(V, S, D) -> pairs (V, M, E)."""
        return F.relu(self.project(self.dropout(steps)))

    def forward(self, pairs: Tensor, support_labels: Tensor, query_pairs: Tensor) -> Tensor:
        """Described support (B, N, M, E), labels (B, N), described target (B, Q, M, E) -> scores (B, Q, K), not positive."""
        grouped, present = group_by_class(pairs, support_labels)  # (B, K, J, M, E)
        way, shots = present.shape[1:]
        distances = torch.cdist(query_pairs.flatten(1, 2), grouped.flatten(1, 3))
        distances = rearrange(distances, "b (q m) (k j n) -> b q m k j n", m=query_pairs.shape[2], k=way, j=shots)
        distances = distances.masked_fill(~rearrange(present, "b k j -> b 1 1 k j 1"), math.inf)
        return -reduce(distances.amin(dim=(-2, -1)), "b q m k -> b q k", "mean")


class CNN_STRM(CNN_FSHead):
    """STRM: TRX on pairs of steps whose patches and frames were enriched, beside a score of how near pairs are.

    Spatio-Temporal Relation Modeling (Thatipelli et al., CVPR 2022). In the authors' code the
    layer behind that score is not among the model's parameters: it is neither trained nor kept, and its score at test is
    that of other random weights. Here it is trained; `--strm_aux random` keeps it as drawn, and kept with the checkpoint.
    The frame mixer fits the steps of `--seq_len` only.
    """

    reads = "maps"
    condenses = True

    def __init__(self, args: argparse.Namespace) -> None:
        super().__init__(args)
        if self.num_steps < 2:
            raise UserError(
                f"--method strm compares pairs of steps: backbone {args.backbone} gives {self.num_steps} for --seq_len "
                f"{args.seq_len}; raise it"
            )
        width, dropout = self.backbone.feature_dim, args.trans_dropout
        self.patches = PatchEnrichment(width, dropout)
        self.frames = FrameEnrichment(width, self.num_steps, dropout)
        self.transformer = TemporalCrossTransformer(width, args.trans_linear_out_dim, 2, self.num_steps, dropout)
        self.aux_weight = args.strm_aux_weight
        self.pairs = PairClassifier(width, self.num_steps, dropout) if args.strm_aux != "off" else None
        if self.pairs is not None and args.strm_aux == "random":
            self.pairs.requires_grad_(False)
        self.shapes: list[tuple[int, ...]] = [(self.transformer.size,)]
        if self.pairs is not None:
            self.shapes.append((len(self.pairs.project.choice), width // 2))

    @staticmethod
    def add_arguments(group: Any) -> None:
        group.add_argument(
            "--strm_aux",
            choices=["trained", "random", "off"],
            default="trained",
            help="the layer behind the score of near pairs: trained; random and fixed, as by their code; or no such score",
        )
        group.add_argument(
            "--strm_aux_weight",
            type=float,
            least=0,
            default=0.1,
            help="weight of the score of near pairs, in the loss and in logits",
        )

    def describe(self, features: Tensor) -> Tensor:
        """Maps (V, D, S, h, w) -> what TRX makes of enriched frames, and the pairs whose nearness is scored: (V, F)."""
        steps = self.steps_of(features)
        described = self.transformer.describe(self.frames(steps))
        return described if self.pairs is None else pack(described, self.pairs.describe(steps))

    def steps_of(self, features: Tensor) -> Tensor:
        """Steps that are the mean of their enriched patches: maps (V, D, S, h, w) -> (V, S, D)."""
        return reduce(self.patches(patches_of(features)), "v s p d -> v s d", "mean")

    def classify_described(self, support: Tensor, support_labels: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Of described videos (B, N, F) and (B, Q, F): "logits" (B, Q, K), and the two they are the sum of."""
        (of_support, *pairs), (of_target, *query_pairs) = (unpack(videos, self.shapes) for videos in (support, target))
        relations = self.transformer(of_support, support_labels, of_target)
        if self.pairs is None:
            return {"logits": relations}
        nearness = self.pairs(*pairs, support_labels, *query_pairs)
        return {"logits": relations + self.aux_weight * nearness, "relations": relations, "nearness": nearness}

    def explain(self, support_features: Tensor, support_labels: Tensor, target_features: Tensor) -> dict[str, Tensor]:
        """ "logits" (B, Q, K), and as of TRX how much pairs of steps look at each other: "cardinalities" (B, 1), which is 2,

        "tuples_2" (B, M, 2): the steps of pairs, from 0; "attention_2" (B, Q, K, M, J, M). "target_spatial" (B, Q, S, y, x) and
        "support_spatial" (B, K, J, S, y, x): how much the patches of a step look at each of them, in the mean.
        """
        support, target = self.described(support_features, target_features)
        size = self.transformer.size
        attention = self.transformer.attention(support[..., :size], support_labels, target[..., :size])
        batch = len(support)
        support_looks, target_looks = (
            self.looks(maps.flatten(0, 1)).unflatten(0, maps.shape[:2]) for maps in (support_features, target_features)
        )
        return {
            "logits": self.classify_described(support, support_labels, target)["logits"],
            "cardinalities": torch.full((batch, 1), 2),
            "tuples_2": torch.combinations(torch.arange(self.num_steps)).expand(batch, -1, -1),
            "attention_2": rearrange(attention, "b k q t j u -> b q k t j u"),
            "target_spatial": target_looks,
            "support_spatial": group_by_class(support_looks, support_labels)[0],
        }

    def looks(self, maps: Tensor) -> Tensor:
        """How much the patches of a step look at each of them, in the mean: maps (V, D, S, h, w) -> (V, S, y, x)."""
        attention = self.patches.attention(self.patches.encoding(patches_of(maps)))
        return rearrange(attention.mean(dim=-2), "v s (y x) -> v s y x", y=GRID)

    def loss(self, task_dict: dict[str, Any], model_dict: dict[str, Tensor]) -> Tensor:
        """Cross entropy of TRX's logits, plus `--strm_aux_weight` times that of the score of near pairs."""
        labels = task_dict["target_labels"]
        if "nearness" not in model_dict:
            return self.query_loss(model_dict["logits"], labels)
        losses = (self.query_loss(model_dict[name], labels) for name in ("relations", "nearness"))
        return next(losses) + self.aux_weight * next(losses)


def patches_of(maps: Tensor) -> Tensor:
    """The largest value of each channel in each of 4 x 4 windows of a step: (V, D, S, h, w) -> (V, S, P, D)."""
    pooled = F.adaptive_max_pool2d(rearrange(maps, "v d s h w -> (v s) d h w"), GRID)
    return rearrange(pooled, "(v s) d y x -> v s (y x) d", v=len(maps))
