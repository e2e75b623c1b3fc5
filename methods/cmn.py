"""CMN-lite, the multi-saliency descriptors of compound memory networks without their memory.

Letters: B episodes, K way, N support videos, J shots of a class, Q queries, S feature steps, D feature width, H slots.
"""

from __future__ import annotations

import argparse
import math
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from model import CNN_FSHead, group_by_class, mean_over_shots


class SaliencyDescriptor(nn.Module):
    """A video of any length as one vector: its steps shared out to learnt slots, and what each slot gets beyond itself.

    Zhu and Yang, "Compound memory networks for few-shot video classification" (ECCV 2018), its multi-saliency descriptor.
    """

    def __init__(self, width: int, num_slots: int) -> None:
        super().__init__()
        # Small, so that at first all slots share all steps, but unlike each other: equal ones would stay equal for ever.
        self.slots = nn.Parameter(0.02 * torch.randn(num_slots, width))
        self.merge = nn.Linear(num_slots * width, width)
        with torch.no_grad():
            self.merge.weight.copy_(torch.eye(width).repeat(1, num_slots))  # at first, the sum of the slots
            self.merge.bias.zero_()

    def saliency(self, steps: Tensor) -> Tensor:
        """How each step is shared out to the slots: (..., S, D) -> (..., S, H), 1 in all for a step."""
        return (steps @ self.slots.mT / math.sqrt(steps.shape[-1])).softmax(dim=-1)

    def forward(self, steps: Tensor) -> Tensor:
        """(..., S, D) -> (..., D)."""
        shares = self.saliency(steps)
        residuals = shares.mT @ steps - rearrange(shares.sum(dim=-2), "... h -> ... h 1") * self.slots  # (..., H, D)
        return self.merge(F.normalize(residuals, dim=-1).flatten(-2))


class CNN_CMN(CNN_FSHead):
    """CMN-lite: videos as learnt saliency descriptors without order, compared with class means by squared distance.

    The comparison of Zhu et al. in "A closer look at few-shot video classification" (2021): the descriptors of compound
    memory networks, without memory and its training.
    """

    condenses = True

    def __init__(self, args: argparse.Namespace) -> None:
        super().__init__(args)
        self.descriptor = SaliencyDescriptor(self.backbone.feature_dim, args.cmn_slots)

    @staticmethod
    def add_arguments(group: Any) -> None:
        group.add_argument(
            "--cmn_slots",
            type=int,
            least=1,
            default=8,
            help="saliency slots; each adds a square map of the feature width",
        )

    def describe(self, features: Tensor) -> Tensor:
        """Steps (V, S, D) -> (V, D)."""
        return self.descriptor(features)

    def classify_described(self, support: Tensor, support_labels: Tensor, target: Tensor) -> Tensor:
        """Descriptors (B, N, D), labels (B, N), descriptors (B, Q, D) -> logits (B, Q, K)."""
        shots, present = group_by_class(support, support_labels)
        prototypes = mean_over_shots(shots, present[..., None], dim=2)  # (B, K, D)
        return -(rearrange(target, "b q d -> b q 1 d") - rearrange(prototypes, "b k d -> b 1 k d")).square().sum(dim=-1)

    def explain(self, support_features: Tensor, support_labels: Tensor, target_features: Tensor) -> dict[str, Tensor]:
        """Beside "logits" (B, Q, K), how steps are shared out to slots, and how near each shot is.

        "support_saliency" (B, K, J, S, H) and "target_saliency" (B, Q, S, H), 1 in all for a step; "shot_logits"
        (B, Q, K, J): minus the squared distance of a query to each shot, 0 where there is none.
        """
        support, present = group_by_class(support_features, support_labels)
        shots, target = self.descriptor(support), self.descriptor(target_features)
        apart = rearrange(target, "b q d -> b q 1 1 d") - rearrange(shots, "b k j d -> b 1 k j d")
        return {
            "logits": self.classify(support_features, support_labels, target_features),
            "shot_logits": -apart.square().sum(dim=-1).masked_fill(~present[:, None], 0),
            "support_saliency": self.descriptor.saliency(support),
            "target_saliency": self.descriptor.saliency(target_features),
        }
