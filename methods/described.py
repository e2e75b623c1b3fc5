"""What methods of two stages share: each clip is described by itself, then the descriptions of an episode are compared.

Letters: B episodes, N support videos, Q queries, V videos of an episode (N + Q), K way, C training classes.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model import CNN_FSHead


class CNN_Described(CNN_FSHead):
    """Base of methods that write `describe` and `classify_described`, and state that they condense."""

    aux_classifier: nn.Linear | None
    """Scores descriptions against the training classes. In training only: no test needs its weights."""

    def classify(self, support_features: Tensor, support_labels: Tensor, target_features: Tensor) -> Any:
        support, target = self.described(support_features, target_features)
        return self.classify_described(support, support_labels, target)

    def described(self, support_features: Tensor, target_features: Tensor) -> tuple[Tensor, Tensor]:
        """`describe` of the videos of episodes, (B, N, ...) and (B, Q, ...), in one call."""
        videos = torch.cat([support_features, target_features], dim=1)
        described = self.describe(videos.flatten(0, 1)).unflatten(0, videos.shape[:2])
        support, target = described.split([support_features.shape[1], target_features.shape[1]], dim=1)
        return support, target


def build_aux_classifier(args: argparse.Namespace, width: int, weight: float) -> nn.Linear | None:
    """A classifier of the training classes; None where it has no weight in the loss, or there are no such classes."""
    return nn.Linear(width, args.num_train_classes) if args.num_train_classes and weight else None


def training_class_loss(class_logits: Tensor, task_dict: dict[str, Any]) -> Tensor:
    """Mean cross entropy of the training classes of all videos, support first: logits (..., V, C) or (..., V, S, C)."""
    classes = torch.cat([task_dict["real_support_labels"], task_dict["real_target_labels"]], dim=-1)  # (..., V)
    if class_logits.ndim > classes.ndim + 1:
        classes = classes[..., None].expand(class_logits.shape[:-1])
    return F.cross_entropy(class_logits.flatten(0, -2), classes.flatten())


def loss_with_classes(
    head: CNN_FSHead, task_dict: dict[str, Any], model_dict: dict[str, Tensor], weight: float
) -> Tensor:
    """Cross entropy of the queries, plus `weight` times that of "class_logits", where there are any."""
    labels = task_dict["target_labels"]
    loss = head.query_loss(model_dict["logits"], labels)
    if "class_logits" not in model_dict:
        return loss
    return head.with_extra(loss, weight * training_class_loss(model_dict["class_logits"], task_dict), labels)
