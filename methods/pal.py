"""PAL, prototype-centred attentive learning.

Letters: B episodes, K way, N support videos, J shots of a class, Q queries, S feature steps, D feature width.
"""

from __future__ import annotations

import argparse
import math
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from torch import Tensor, nn

from model import CNN_FSHead, LogitScale, group_by_class, mean_over_shots
from utils import cos_sim


class CNN_PAL(CNN_FSHead):
    """PAL: support and query videos attend to the whole support; a second loss asks which queries a class has.

    "Few-shot action recognition with prototype-centered attentive learning" (Zhu, Toisoul, Perez-Rua, Zhang, Martinez,
    Xiang, BMVC 2021). Its backbone is first trained to classify the training classes, and given with
    `--pretrained_backbone`. Since queries attend to all classes, a logit depends on which other classes there are.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        super().__init__(args)
        self.attention = nn.MultiheadAttention(self.backbone.feature_dim, num_heads=1)
        self.scale = LogitScale(args.pal_scale)
        self.prototype_weight = args.pal_lambda
        self.prototype_loss_form = args.pal_prototype_loss

    @staticmethod
    def add_arguments(group: Any) -> None:
        group.add_argument(
            "--pal_scale",
            type=float,
            least=1,
            most=100,
            default=10.0,
            help="factor on PAL's cosines at the start, learnt from there within [1, 100]",
        )
        group.add_argument(
            "--pal_lambda",
            type=float,
            least=0,
            default=0.5,
            help="weight of the prototype-centred loss beside that of the queries",
        )
        group.add_argument(
            "--pal_prototype_loss",
            choices=["softmax", "sigmoid"],
            default="softmax",
            help="how a query counts for a prototype: exp of its logit, or sigmoid of its cosine, as in the TRX-style library; "
            "the latter is nearly flat",
        )

    def classify(self, support_features: Tensor, support_labels: Tensor, target_features: Tensor) -> dict[str, Tensor]:
        support = reduce(support_features, "b n s d -> b n d", "mean")
        target = reduce(target_features, "b q s d -> b q d", "mean")
        support = support + self.attend(support, support)[0]
        target = target + self.attend(target, support)[0]

        shots, present = group_by_class(support, support_labels)
        cosines = cos_sim(target, mean_over_shots(shots, present[..., None], dim=2))
        return {"logits": self.scale(cosines), "cosines": cosines}

    def attend(self, videos: Tensor, support: Tensor, *, need_weights: bool = False) -> tuple[Tensor, Any]:
        """What videos (B, V, D) find in the support (B, N, D) of all classes, (B, V, D); and how much each looks at each
        support video (B, V, N), None unless asked for."""
        # Of videos that come transposed, torch would make a small product for each one instead of one of all.
        keys = rearrange(support, "b n d -> n b d").contiguous()
        queries = keys if videos is support else rearrange(videos, "b v d -> v b d").contiguous()
        found, weights = self.attention(queries, keys, keys, need_weights=need_weights)
        return rearrange(found, "v b d -> b v d"), weights

    def explain(self, support_features: Tensor, support_labels: Tensor, target_features: Tensor) -> dict[str, Tensor]:
        """Beside "logits" and "cosines" (B, Q, K), how much videos look at each support video, 1 in all for each of them.

        "support_attention" (B, K, J, K, J): shots (first K, J) at shots; "target_attention" (B, Q, K, J): queries at shots.
        """
        support = reduce(support_features, "b n s d -> b n d", "mean")
        target = reduce(target_features, "b q s d -> b q d", "mean")
        attended, of_support = self.attend(support, support, need_weights=True)
        _, of_target = self.attend(target, support + attended, need_weights=True)

        def by_class(attention: Tensor) -> Tensor:
            """(B, V, N) -> (B, V, K, J)."""
            grouped, _ = group_by_class(rearrange(attention, "b v n -> b n v"), support_labels)
            return rearrange(grouped, "b k j v -> b v k j")

        of_shots, _ = group_by_class(by_class(of_support), support_labels)
        shown = {"support_attention": of_shots, "target_attention": by_class(of_target)}
        return self.classify(support_features, support_labels, target_features) | shown

    def loss(self, task_dict: dict[str, Any], model_dict: dict[str, Tensor]) -> Tensor:
        """Cross entropy of the queries plus `--pal_lambda` times the prototype-centred loss.

        With `--loss_reduction sum` both count once per query, so that their balance stays the same.
        """
        labels = task_dict["target_labels"].long()
        if self.prototype_loss_form == "softmax":
            prototype_loss = prototype_centred_loss(model_dict["logits"], labels)
        else:
            prototype_loss = prototype_centred_loss(F.logsigmoid(model_dict["cosines"]), labels, floor=0.1)
        if self.loss_reduction == "sum":
            prototype_loss = prototype_loss * labels.shape[-1]
        return self.query_loss(model_dict["logits"], labels) + self.prototype_weight * prototype_loss


def prototype_centred_loss(log_evidence: Tensor, labels: Tensor, floor: float = 0.0) -> Tensor:
    """How badly each class finds its own queries among all of the episode: log evidence (..., Q, K), labels (..., Q) -> ().

    Minus the logarithm of the evidence of a class's own queries over that of all queries (plus `floor`), its mean over the
    classes of an episode that have queries.
    """
    own = F.one_hot(labels, log_evidence.shape[-1]).bool()  # (..., Q, K)
    asked = own.any(dim=-2)  # (..., K)
    own_evidence = log_evidence.masked_fill(~own, -math.inf).logsumexp(dim=-2)
    evidence = log_evidence.logsumexp(dim=-2)
    if floor:
        evidence = torch.logaddexp(evidence, evidence.new_tensor(math.log(floor)))
    losses = (evidence - own_evidence).masked_fill(~asked, 0.0)
    return (losses.sum(dim=-1) / asked.sum(dim=-1)).mean()
