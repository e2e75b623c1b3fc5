"""One kernel, the cosines of all steps of a query to all steps of a support video, and the methods that reduce it.

Bertrand et al., "Rethinking matching-based few-shot action recognition" (SCIA 2023), compare most of them.

Letters: B episodes, K way, N support videos, J shots of a class, Q queries, S feature steps, D feature width,
W tuple cardinality, L and M steps (or tuples of steps) of a query and of a support video.
"""

from __future__ import annotations

import argparse
from itertools import combinations
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from methods.described import build_aux_classifier, loss_with_classes
from model import CNN_FSHead, LogitScale, group_by_class, mean_over_shots
from utils import UserError, cos_sim


def step_similarities(target: Tensor, support: Tensor, epsilon: float = 0.01) -> Tensor:
    """Cosine of every query step to every support step, as `cos_sim` takes it: (B, Q, L, D), (B, K, J, M, D) ->
    (B, Q, K, J, L, M)."""
    steps = rearrange(target, "b q l d -> b (q l) d"), rearrange(support, "b k j m d -> b (k j m) d")
    cosines = cos_sim(*steps, epsilon)
    queries, way, shots = target.shape[1], *support.shape[1:3]
    return rearrange(cosines, "b (q l) (k j m) -> b q k j l m", q=queries, k=way, j=shots)


def tuple_similarities(target: Tensor, support: Tensor, tuples: Tensor, epsilon: float = 0.01) -> Tensor:
    """Cosine of every concatenated tuple of query steps to every one of support steps, as `cos_sim` takes it.

    (B, Q, S, D), (B, K, J, S, D) and the steps of each tuple, int64 (M, W) -> (B, Q, K, J, M, M). No tuple is built: the
    product of two concatenations is the sum of the products of their parts, and S*S products hold all of them.
    """
    products = torch.einsum("bqld,bkjmd->bqkjlm", target, support)[..., tuples[:, None], tuples].sum(-1)
    target_norms, support_norms = (steps.norm(dim=-1)[..., tuples].norm(dim=-1) for steps in (target, support))
    return products / (torch.einsum("bql,bkjm->bqkjlm", target_norms, support_norms) + epsilon)


class CNN_Similarity(CNN_FSHead):
    """Base of the similarity family: a reduction of the cosine matrix of two videos is their similarity.

    A method of the family writes `video_similarity`. A class scores the mean over its shots times a learnt factor.
    """

    averages_shots = False
    """Whether queries are compared with the mean steps of a class's shots, and not with each shot."""

    def __init__(self, args: argparse.Namespace) -> None:
        super().__init__(args)
        self.scale: nn.Module = LogitScale()

    def group_support(self, support_features: Tensor, support_labels: Tensor) -> tuple[Tensor, Tensor]:
        """(B, N, S, D), (B, N) -> the videos a query is compared with (B, K, J, S, D) and which exist, bool (B, K, J)."""
        support, present = group_by_class(support_features, support_labels)
        if not self.averages_shots:
            return support, present
        means = mean_over_shots(support, present[..., None, None], dim=2)
        return rearrange(means, "b k s d -> b k 1 s d"), present.any(dim=-1, keepdim=True)

    def similarities(self, target: Tensor, support: Tensor) -> Tensor:
        """(B, Q, S, D), (B, K, J, S, D) -> the matrices that are reduced, (B, Q, K, J, L, M)."""
        return step_similarities(target, support)

    def video_similarity(self, similarities: Tensor) -> Tensor:
        """Reduces matrices (..., L, M) of a query's and a support video's steps to numbers (...)."""
        raise NotImplementedError(f"{type(self).__name__} must define video_similarity()")

    def class_similarity(self, similarities: Tensor, present: Tensor) -> Tensor:
        """Matrices (B, Q, K, J, L, M) and which shots exist, bool (B, K, J) -> (B, Q, K)."""
        return mean_over_shots(self.video_similarity(similarities), present[:, None], dim=-1)

    def classify(self, support_features: Tensor, support_labels: Tensor, target_features: Tensor) -> Any:
        support, present = self.group_support(support_features, support_labels)
        return self.scale(self.class_similarity(self.similarities(target_features, support), present))

    def explain(self, support_features: Tensor, support_labels: Tensor, target_features: Tensor) -> dict[str, Tensor]:
        """What the logits (B, Q, K) are made of.

        "similarities" (B, Q, K, J, L, M): the matrices that are reduced. "cells" of the same shape: how much each of their
        cells counts, the gradient of the class's similarity. "shot_similarities" (B, Q, K, J): what each shot adds to it.
        "tuples" (B, M, W), if rows and columns are tuples of steps: those steps.
        """
        support, present = self.group_support(support_features, support_labels)
        similarities = self.similarities(target_features, support)
        cells = self.cells_that_count(similarities, present)
        return {
            "logits": self.scale(self.class_similarity(similarities, present)),
            "similarities": similarities,
            "cells": cells,
            "shot_similarities": (cells * similarities).sum(dim=(-2, -1)),
        }

    def cells_that_count(self, similarities: Tensor, present: Tensor) -> Tensor:
        """The gradient of `class_similarity` with respect to the matrices, in their shape."""
        with torch.inference_mode(False), torch.enable_grad():
            similarities = similarities.detach().clone().requires_grad_()
            score = self.class_similarity(similarities, present.clone()).sum()
            (cells,) = torch.autograd.grad(score, similarities)
        return cells


class CNN_Mean(CNN_Similarity):
    """Mean matching: mean cosine of all pairs of a query step and a support step."""

    def video_similarity(self, similarities: Tensor) -> Tensor:
        return similarities.mean(dim=(-2, -1))


class CNN_Max(CNN_Similarity):
    """Max matching: cosine of the single best pair of a query step and a support step."""

    def video_similarity(self, similarities: Tensor) -> Tensor:
        return similarities.amax(dim=(-2, -1))


class CNN_Diagonal(CNN_Similarity):
    """Diagonal matching: mean cosine of the steps at equal times."""

    def video_similarity(self, similarities: Tensor) -> Tensor:
        return similarities.diagonal(dim1=-2, dim2=-1).mean(dim=-1)


class CNN_Linear(CNN_Similarity):
    """Linear matching: cosines of all pairs of steps, weighted by what was learnt for their two times."""

    def __init__(self, args: argparse.Namespace) -> None:
        super().__init__(args)
        self.weight = nn.Parameter(torch.full((self.num_steps, self.num_steps), self.num_steps**-2.0))  # the mean

    def video_similarity(self, similarities: Tensor) -> Tensor:
        return (similarities * self.weight).sum(dim=(-2, -1))


class CNN_ChamferQuery(CNN_Similarity):
    """Chamfer matching of the query: mean over query steps of the cosine of their best support step."""

    def video_similarity(self, similarities: Tensor) -> Tensor:
        return similarities.amax(dim=-1).mean(dim=-1)


class CNN_ChamferSupport(CNN_Similarity):
    """Chamfer matching of the support: mean over support steps of the cosine of their best query step."""

    def video_similarity(self, similarities: Tensor) -> Tensor:
        return similarities.amax(dim=-2).mean(dim=-1)


class CNN_Chamfer(CNN_Similarity):
    """Chamfer matching both ways: every step of either video finds its best one in the other."""

    def video_similarity(self, similarities: Tensor) -> Tensor:
        return (similarities.amax(dim=-1).mean(dim=-1) + similarities.amax(dim=-2).mean(dim=-1)) / 2


class CNN_ChamferPlusPlus(CNN_Similarity):
    """Chamfer++: matching both ways of ordered step tuples, a query's among those of all shots of a class at once.

    With `--chamfer_tuples 1`, Chamfer matching with joint shots.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        super().__init__(args)
        cardinality = args.chamfer_tuples
        if not 1 <= cardinality <= self.num_steps:
            raise UserError(
                f"--chamfer_tuples is {cardinality}: expected 1 to {self.num_steps}, the feature steps that backbone "
                f"{args.backbone} gives for --seq_len {args.seq_len}"
            )
        self.tuples: Tensor
        tuples = torch.tensor(list(combinations(range(self.num_steps), cardinality)))  # (M, W)
        self.register_buffer("tuples", tuples, persistent=False)

    @staticmethod
    def add_arguments(group: Any) -> None:
        group.add_argument(
            "--chamfer_tuples", type=int, least=1, default=3, help="steps in a tuple; 1 matches single steps"
        )

    def similarities(self, target: Tensor, support: Tensor) -> Tensor:
        return tuple_similarities(target, support, self.tuples)

    def class_similarity(self, similarities: Tensor, present: Tensor) -> Tensor:
        present = present[:, None]  # (B, 1, K, J)
        among_shots = similarities.masked_fill(~present[..., None, None], -torch.inf).amax(dim=(-3, -1))  # (B, Q, K, L)
        support_best = similarities.amax(dim=-2).mean(dim=-1)  # (B, Q, K, J)
        return (among_shots.mean(dim=-1) + mean_over_shots(support_best, present, dim=-1)) / 2

    def explain(self, support_features: Tensor, support_labels: Tensor, target_features: Tensor) -> dict[str, Tensor]:
        shown = super().explain(support_features, support_labels, target_features)
        return {**shown, "tuples": self.tuples.expand(len(support_features), -1, -1)}


def hausdorff_distance(distances: Tensor) -> Tensor:
    """Distances of all steps of two videos (..., L, M) -> (...), those of every step to its best one, added up."""
    return distances.amin(dim=-1).sum(dim=-1) + distances.amin(dim=-2).sum(dim=-1)


def matched_cells(similarities: Tensor) -> Tensor:
    """How often `hausdorff_distance` counts each cell of the matrices (..., L, M): 0, 1, or 2 where both steps agree."""
    with torch.inference_mode(False), torch.enable_grad():
        similarities = similarities.detach().clone().requires_grad_()
        (cells,) = torch.autograd.grad(-hausdorff_distance(1 - similarities).sum(), similarities)
    return cells


class CNN_BiMHM(CNN_Similarity):
    """Bidirectional mean Hausdorff metric of HyRSM: minus the cosine distances of all steps to their best ones.

    HyRSM (Wang et al., CVPR 2022), its matching alone. As the head of D2ST-Adapter (ICCV 2025) it also classifies, in
    training, the mean step of every clip among the training classes.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        super().__init__(args)
        self.scale = nn.Identity()  # sums of up to 2S distances have a range of their own
        self.averages_shots = args.bimhm_shots == "mean_first"
        self.aux_weight = args.bimhm_aux_weight
        self.aux_classifier = build_aux_classifier(args, self.backbone.feature_dim, self.aux_weight)

    @staticmethod
    def add_arguments(group: Any) -> None:
        group.add_argument(
            "--bimhm_shots",
            choices=["mean_distance", "mean_first"],
            default="mean_distance",
            help="compare with every shot and average the distances, or average the steps of a class's shots, as under "
            "D2ST-Adapter; with one shot both are the same",
        )
        group.add_argument(
            "--bimhm_aux_weight",
            type=float,
            least=0,
            default=0.0,
            help="weight of the loss of classifying the mean step of every clip of a training episode among the training "
            "classes",
        )

    def similarities(self, target: Tensor, support: Tensor) -> Tensor:
        return step_similarities(target, support, epsilon=1e-12)  # plain cosines, 0 of a step that is 0

    def video_similarity(self, similarities: Tensor) -> Tensor:
        return -hausdorff_distance(1 - similarities)

    def classify(self, support_features: Tensor, support_labels: Tensor, target_features: Tensor) -> dict[str, Tensor]:
        outputs = {"logits": super().classify(support_features, support_labels, target_features)}
        if self.training and self.aux_classifier is not None:
            clips = torch.cat([support_features, target_features], dim=1).mean(dim=2)
            outputs["class_logits"] = self.aux_classifier(clips)
        return outputs

    def loss(self, task_dict: dict[str, Any], model_dict: dict[str, Tensor]) -> Tensor:
        """Cross entropy of the queries, plus `--bimhm_aux_weight` times that of all clips among the training classes."""
        return loss_with_classes(self, task_dict, model_dict, self.aux_weight)
