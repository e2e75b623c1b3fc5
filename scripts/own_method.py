"""A few-shot method of your own, as an example to start from. Nothing in the library has to be edited:

    python run.py -c runs/own --dataset demo --method scripts/own_method.py:OrderedMean --start_weight 0.5

Its idea: a class is the mean of its support videos, step by step, and a query is as similar to it as their steps at equal
times are on average; how much each time counts is learnt.

Letters: B episodes, K way, N support videos, J shots of a class, Q queries, S feature steps, D feature width.
"""

import torch
from torch import nn
from torch.nn.functional import normalize

from model import CNN_FSHead, LogitScale, group_by_class, mean_over_shots


class OrderedMean(CNN_FSHead):
    """Ordered mean: learnt weights of times on the cosine to a class's mean steps."""

    def __init__(self, args):
        super().__init__(args)  # makes self.backbone and says how many steps it gives: self.num_steps
        self.weights = nn.Parameter(torch.full((self.num_steps,), args.start_weight))
        self.scale = LogitScale()

    @staticmethod
    def add_arguments(group):
        group.add_argument("--start_weight", type=float, default=1.0, help="weight of every time at the start")

    def classify(self, support_features, support_labels, target_features):
        """(B, N, S, D), (B, N) in 0..K-1, (B, Q, S, D) -> logits (B, Q, K)."""
        support, present = group_by_class(support_features, support_labels)  # (B, K, J, S, D), which exist (B, K, J)
        prototypes = mean_over_shots(support, present[..., None, None], dim=2)  # (B, K, S, D)
        cosines = torch.einsum("bqsd,bksd->bqks", normalize(target_features, dim=-1), normalize(prototypes, dim=-1))
        return self.scale((cosines * self.weights).mean(dim=-1))
