"""CLIP-FSAR, CLIP-guided prototype modulating, and the control for it: recognition by the names of classes alone.

"CLIP-guided prototype modulating for few-shot action recognition" (Wang et al., IJCV 2024, arXiv 2303.02982).

Letters: B episodes, K way, N support videos, J shots of a class, Q queries, V videos of an episode (N + Q), S feature steps,
D feature width, which is that of class text, C training classes.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange, reduce, repeat
from torch import Tensor, nn

from backbones.text import zero_shot_logits
from methods.described import training_class_loss
from methods.hyrsm import StepAttention, check_heads, feed_forward
from methods.otam import alignment_cost, best_path
from methods.similarity import step_similarities
from model import CNN_FSHead, group_by_class, mean_over_shots
from utils import cos_sim


class CNN_ZeroShot(CNN_FSHead):
    """Zero-shot CLIP: a query is of the class whose name its mean frame is most like. Looks at no support video.

    Radford et al., ICML 2021: cosines of image and text features, times `--text_scale`. There is nothing to train but the
    backbone.
    """

    uses_class_text = True

    def __init__(self, args: argparse.Namespace) -> None:
        super().__init__(args)
        self.class_text_width = self.backbone.feature_dim
        self.scale = args.text_scale or 100.0

    def classify(
        self, support_features: Tensor, support_labels: Tensor, target_features: Tensor, class_text: Tensor
    ) -> Tensor:
        """As `CNN_FSHead.classify`, with class text (B, K, D)."""
        return zero_shot_logits(target_features, class_text, self.scale)

    def explain(
        self, support_features: Tensor, support_labels: Tensor, target_features: Tensor, class_text: Tensor
    ) -> dict[str, Tensor]:
        """ "logits" (B, Q, K), which are "text_logits", and "text_similarities" (B, Q, S, K), cosines of steps and names."""
        logits = self.classify(support_features, support_labels, target_features, class_text)
        return {
            "logits": logits,
            "text_logits": logits,
            "text_similarities": step_text_cosines(target_features, class_text),
        }


class Modulation(nn.Module):
    """A transformer block that the steps of a query go through by themselves, those of a class beside the text of its name."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attention = StepAttention(width)
        self.network = feed_forward(width)

    def forward(self, steps: Tensor) -> Tensor:
        """(..., S, D) -> (..., S, D)."""
        seen = self.attention(steps.flatten(0, -3))
        return (seen + self.network(seen)).unflatten(0, steps.shape[:-2])

    def beside_text(self, steps: Tensor, text: Tensor) -> Tensor:
        """Steps (..., S, D), each clip's with text (..., D) as one step more -> (..., S, D)."""
        return self(torch.cat([steps, text[..., None, :]], dim=-2))[..., :-1, :]


class CNN_CLIPFSAR(CNN_FSHead):
    """CLIP-FSAR: steps of a class look at the text of its name, then are aligned with a query's in order.

    CLIP-guided prototype modulating (Wang et al., IJCV 2024). The distance is OTAM's, soft and both ways. In training every
    clip is also named among the training classes, by the cosines of its mean step and their text. `--clip_fsar_text` gives
    the names of the episode's classes a say of their own in tests.
    """

    uses_class_text = True

    def __init__(self, args: argparse.Namespace) -> None:
        super().__init__(args)
        width = self.backbone.feature_dim
        check_heads(args, width)
        self.class_text_width = width
        self.modulation = Modulation(width)
        self.merge = args.clip_fsar_merge
        self.smoothing = args.clip_fsar_lambda
        self.aux_weight = args.clip_fsar_aux_weight
        self.text_share = args.clip_fsar_text
        # Without a weight in the loss it stays what it is.
        self.text_scale = nn.Parameter(torch.tensor(args.text_scale or 1.0), requires_grad=self.aux_weight > 0)

    @staticmethod
    def add_arguments(group: Any) -> None:
        group.add_argument(
            "--clip_fsar_merge",
            choices=["before", "after"],
            default="before",
            help="average the steps of a class's shots before they look at its name, as published for 5 shots, or after, as "
            "for 1; with one shot both are the same",
        )
        group.add_argument(
            "--clip_fsar_lambda",
            type=float,
            least=0,
            default=0.5,
            help="smoothing of the minimum over alignments, in cosine distance; see --otam_lambda",
        )
        group.add_argument(
            "--clip_fsar_aux_weight",
            type=float,
            least=0,
            default=1.0,
            help="weight of the loss of naming every clip of a training episode among the training classes",
        )
        group.add_argument(
            "--clip_fsar_text",
            type=float,
            least=0,
            most=1,
            default=0.0,
            of_model=False,
            help="in val and test, the share of class names in the score: 0 compares videos alone, 0.9 is the authors' "
            "combination, 1 is names alone",
        )
        group.add_argument(
            "--text_scale",
            type=float,
            above=0,
            help="factor on cosines of video and class text; unset: 1 and learnt from there (clip_fsar, as published; CLIP's "
            "own is 100), or 100 (clip_zero_shot)",
        )

    def classify(
        self, support_features: Tensor, support_labels: Tensor, target_features: Tensor, class_text: Tensor
    ) -> dict[str, Tensor]:
        """As `CNN_FSHead.classify`, with class text (B, K, D); in training also "clip_means" (B, V, D)."""
        cosines = self.step_cosines(support_features, support_labels, target_features, class_text)
        distances = self.distances(cosines)
        if not self.training:
            return {"logits": self.with_names(distances, target_features, class_text)}
        if self.aux_weight == 0:
            return {"logits": -distances}
        clips = torch.cat([support_features, target_features], dim=1)
        return {"logits": -distances, "clip_means": reduce(clips, "b v s d -> b v d", "mean")}

    def step_cosines(self, support: Tensor, labels: Tensor, target: Tensor, class_text: Tensor) -> Tensor:
        """Of all steps of every query and every class, both through the block: (B, Q, K, S, S)."""
        prototypes = self.prototypes(support, labels, class_text)
        cosines = step_similarities(self.modulation(target), rearrange(prototypes, "b k s d -> b k 1 s d"))
        return rearrange(cosines, "b q k 1 l m -> b q k l m")

    def prototypes(self, support: Tensor, labels: Tensor, class_text: Tensor) -> Tensor:
        """Support (B, N, S, D), labels (B, N), class text (B, K, D) -> steps of each class (B, K, S, D)."""
        shots, present = group_by_class(support, labels)
        present = present[..., None, None]
        if self.merge == "before":
            return self.modulation.beside_text(mean_over_shots(shots, present, dim=2), class_text)
        text = repeat(class_text, "b k d -> b k j d", j=shots.shape[2])
        return mean_over_shots(self.modulation.beside_text(shots, text), present, dim=2)

    def distances(self, cosines: Tensor) -> Tensor:
        """(B, Q, K, L, M) -> (B, Q, K), what aligning either video along the other costs."""
        costs = 1 - cosines
        return alignment_cost(torch.stack([costs, costs.mT]), self.smoothing).sum(dim=0)

    def name_logits(self, clip_means: Tensor, text: Tensor) -> Tensor:
        """Means of clips (..., V, D) and text (..., C, D) -> (..., V, C)."""
        return self.text_scale * cos_sim(clip_means, text)

    def with_names(self, distances: Tensor, target: Tensor, class_text: Tensor) -> Tensor:
        """Logits (B, Q, K) of distances, or with `--clip_fsar_text` the logarithms of names' and videos' weighted scores."""
        share = self.text_share
        if share == 0:
            return -distances
        by_name = self.name_logits(target.mean(dim=-2), class_text).log_softmax(dim=-1)
        by_video = (-distances / target.shape[-2]).log_softmax(dim=-1)
        return share * by_name + (1 - share) * by_video

    def loss(self, task_dict: dict[str, Any], model_dict: dict[str, Tensor]) -> Tensor:
        """Cross entropy of the queries, plus `--clip_fsar_aux_weight` times that of all clips' names."""
        labels = task_dict["target_labels"]
        loss = self.query_loss(model_dict["logits"], labels)
        if "clip_means" not in model_dict:
            return loss
        named = self.name_logits(model_dict["clip_means"], task_dict["base_text"])
        return self.with_extra(loss, self.aux_weight * training_class_loss(named, task_dict), labels)

    def explain(
        self, support_features: Tensor, support_labels: Tensor, target_features: Tensor, class_text: Tensor
    ) -> dict[str, Tensor]:
        """What the logits (B, Q, K) are made of.

        As of OTAM, with one prototype in the place of the shots: "similarities", "path", "reverse_path" and, where these are,
        "cells", all (B, Q, K, 1, S, S), and "shot_similarities" (B, Q, K, 1), minus the distances. "text_logits" (B, Q, K):
        by the names of classes; "text_similarities" (B, Q, S, K): cosines of steps and names.
        """
        cosines = self.step_cosines(support_features, support_labels, target_features, class_text)
        distances = self.distances(cosines)
        similarities = rearrange(cosines, "b q k l m -> b q k 1 l m")
        path, reverse_path = best_path(1 - similarities), best_path((1 - similarities).mT).mT
        return {
            "logits": self.with_names(distances, target_features, class_text),
            "similarities": similarities,
            "cells": path + reverse_path,
            "path": path,
            "reverse_path": reverse_path,
            "shot_similarities": -distances[..., None],
            "text_logits": self.name_logits(target_features.mean(dim=-2), class_text),
            "text_similarities": step_text_cosines(target_features, class_text),
        }


def step_text_cosines(target: Tensor, class_text: Tensor) -> Tensor:
    """Steps (B, Q, S, D) and class text (B, K, D) -> (B, Q, S, K)."""
    steps, text = F.normalize(target, dim=-1), F.normalize(class_text, dim=-1)
    return torch.einsum("bqsd,bkd->bqsk", steps, text)
