"""What methods share that, in training, also tell which of the training classes each clip is of.

Letters: V videos of an episode (support, then queries), S feature steps, C training classes.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model import CNN_FSHead


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
