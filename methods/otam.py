"""OTAM, ordered temporal alignment.

Letters: B episodes, K way, N support videos, J shots of a class, Q queries, S feature steps, D feature width,
L and M steps of the two videos of an alignment.
"""

from __future__ import annotations

import argparse
import math
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from methods.similarity import CNN_Similarity


def alignment_cost(costs: Tensor, smoothing: float) -> Tensor:
    """Cost of aligning two videos in order, with free begin and end: pairwise costs (..., L, M) -> (...).

    The relaxed dynamic time warping of Cao et al. (CVPR 2020). A path begins in the first column and ends in the last, in
    any row. It goes right or diagonally down, so that each column is used once, and in the first also straight down.
    Its cost is the soft minimum over paths, -smoothing * log sum exp(-cost / smoothing), which may be below zero and lies
    at most smoothing * log(number of paths) below the hard minimum; smoothing 0 is the hard minimum.

    The scan is over columns, all rows at once, on the logarithms of path weights, which do not underflow. The padding
    columns of the paper stand in the ways: any row but the first is entered in two ways (from the side and from the
    corner), any but the last is left in two ways. Only the soft minimum counts them.
    """
    soft = smoothing > 0
    either = torch.logaddexp if soft else torch.maximum
    # In one copy with the pairs last, so that columns and rows are pieces of memory.
    first, *columns = rearrange(-costs / smoothing if soft else -costs, "... l m -> m l ...").contiguous()
    log_ways = torch.zeros_like(first)
    log_ways[1:] = math.log(2) if soft else 0.0

    down = first.cumsum(dim=0)
    above = down - first  # what a path that enters in this row leaves out of the way down
    entries = log_ways - above
    paths = down + (entries.logcumsumexp(dim=0) if soft else entries.cummax(dim=0).values)
    for column in columns:
        paths = column + torch.cat([paths[:1], either(paths[1:], paths[:-1])])
    exits = paths + log_ways.flip(0)
    return -smoothing * exits.logsumexp(dim=0) if soft else -exits.amax(dim=0)


def best_path(costs: Tensor) -> Tensor:
    """Which cells the hard alignment of `alignment_cost` takes: (..., L, M) -> 0 or 1 in the same shape; ties share a 1."""
    with torch.inference_mode(False), torch.enable_grad():
        costs = costs.detach().clone().requires_grad_()
        (path,) = torch.autograd.grad(alignment_cost(costs, smoothing=0.0).sum(), costs)
    return path


class CNN_OTAM(CNN_Similarity):
    """OTAM: cost of the best alignment of two clips that keeps the order of their steps, with free begin and end.

    Ordered Temporal Alignment Module (Cao, Ji, Cao, Chang, Niebles, "Few-shot video classification via temporal
    alignment", CVPR 2020), as it is used since: the cost of either clip along the other, added up.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        super().__init__(args)
        self.scale = nn.Identity()  # costs add up over steps and have a range of their own
        self.smoothing = args.otam_lambda
        self.hard_at_test = args.otam_hard_test
        self.averages_shots = args.otam_shot_reduce == "feature"

    @staticmethod
    def add_arguments(group: Any) -> None:
        group.add_argument(
            "--otam_lambda",
            type=float,
            least=0,
            default=0.1,
            help="smoothing of the minimum over alignments, in cosine distance; 0 is the hard minimum, larger values spread "
            "the gradient over more alignments",
        )
        group.add_argument(
            "--otam_hard_test",
            action="store_true",
            help="take the hard minimum in validation and test, whatever the smoothing",
        )
        group.add_argument(
            "--otam_shot_reduce",
            choices=["cost", "feature"],
            default="cost",
            help="cost: align with every shot and average the costs; feature: average the features of shots and align once",
        )

    def video_similarity(self, similarities: Tensor) -> Tensor:
        smoothing = 0.0 if self.hard_at_test and not self.training else self.smoothing
        costs = 1 - similarities
        return -alignment_cost(torch.stack([costs, costs.mT]), smoothing).sum(dim=0)

    def explain(self, support_features: Tensor, support_labels: Tensor, target_features: Tensor) -> dict[str, Tensor]:
        """As of every similarity method, and the best alignments, 1 where two steps meet, all (B, Q, K, J, L, M).

        "path": every support step meets one query step; "reverse_path": every query step meets one support step.
        "shot_similarities" (B, Q, K, J) are minus the costs of aligning with each shot, 0 where there is none.
        """
        shown = super().explain(support_features, support_labels, target_features)
        similarities = shown["similarities"]
        _, present = self.group_support(support_features, support_labels)
        return {
            **shown,
            "shot_similarities": self.video_similarity(similarities).masked_fill(~present[:, None], 0),
            "path": best_path(1 - similarities),
            "reverse_path": best_path((1 - similarities).mT).mT,
        }
