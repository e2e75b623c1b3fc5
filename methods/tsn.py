"""TSN, the baseline without temporal order.

Letters: B episodes, K way, N support videos, J shots of a class, Q queries, S feature steps, D feature width.
"""

from __future__ import annotations

import argparse
from typing import Any

from einops import rearrange, reduce
from torch import Tensor

from model import CNN_FSHead, LogitScale, group_by_class, mean_over_shots
from utils import cos_sim


class CNN_TSN(CNN_FSHead):
    """TSN baseline: similarity of frame-averaged features, blind to the order of frames.

    Temporal Segment Networks (Wang et al., ECCV 2016) as the few-shot literature uses them: no parameters but the scale.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        super().__init__(args)
        self.distance = args.tsn_distance
        self.scale = LogitScale(args.tsn_scale)

    @staticmethod
    def add_arguments(group: Any) -> None:
        group.add_argument(
            "--tsn_distance",
            choices=["cosine", "mean_cosine", "sqeuclid"],
            default="cosine",
            help="cosine to the mean of a class's support videos; mean_cosine: mean of the cosines to each, as in the "
            "TRX-style libraries, weaker with several shots; sqeuclid: minus the squared distance per feature to the mean",
        )
        group.add_argument(
            "--tsn_scale",
            type=float,
            default=10.0,
            help="factor on TSN's similarities at the start, learnt from there within [1, 100]; larger is more confident",
        )

    def classify(self, support_features: Tensor, support_labels: Tensor, target_features: Tensor) -> Tensor:
        support, present = group_by_class(reduce(support_features, "b n s d -> b n d", "mean"), support_labels)
        target = reduce(target_features, "b q s d -> b q d", "mean")
        if self.distance == "mean_cosine":
            cosines = cos_sim(target, rearrange(support, "b k j d -> b (k j) d"))
            cosines = rearrange(cosines, "b q (k j) -> b q k j", j=support.shape[2])
            return self.scale(mean_over_shots(cosines, present[:, None], dim=-1))
        prototypes = mean_over_shots(support, present[..., None], dim=2)  # (B, K, D)
        if self.distance == "cosine":
            return self.scale(cos_sim(target, prototypes))
        # |f - p|^2 without |f|^2, which is the same for every class of a query and so changes neither loss nor answer.
        similarities = 2 * target @ prototypes.mT - rearrange(prototypes.square().sum(-1), "b k -> b 1 k")
        return self.scale(similarities / target.shape[-1])
