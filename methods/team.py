"""TEAM: clips as a fixed set of learnt patterns that are compared one by one, without aligning their steps.

"Temporal alignment-free video matching for few-shot action recognition" (Lee et al., CVPR 2025).

Letters: B episodes, K way, N support videos, J shots of a class, Q queries, V clips, S feature steps, D feature width,
R pattern tokens. In patterns k is a class and j another one.
"""

from __future__ import annotations

import argparse
import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from torch import Tensor, nn

from model import CNN_FSHead, PositionalEncoding, group_by_class, mean_over_shots


class Halfway(NamedTuple):
    """Tokens (..., R, D) before a two-layer network, and behind its first map, which sums and multiples pass through."""

    tokens: Tensor
    hidden: Tensor

    def plus(self, other: Halfway, sign: int = 1) -> Halfway:
        """self + other, or self - other where sign is -1."""
        return Halfway(*(torch.add(mine, its, alpha=sign) for mine, its in zip(self, other, strict=True)))

    def away_from(self, other: Halfway, amount: Tensor) -> Halfway:
        """self + amount * (self - other), with an amount for each token, (..., R, 1)."""
        return Halfway(*(torch.addcmul(mine, amount, mine - its) for mine, its in zip(self, other, strict=True)))

    def of(self, clips: Tensor) -> Halfway:
        """Those of some of V clips, (B, V, R, D)."""
        return Halfway(self.tokens[:, clips], self.hidden[:, clips])


class PatternTokens(nn.Module):
    """Learnt patterns, what each of them finds in a clip, and the network that makes tokens of both."""

    def __init__(self, width: int, num_tokens: int, num_steps: int) -> None:
        super().__init__()
        self.patterns = nn.Parameter(torch.randn(num_tokens, width))
        self.encoding = PositionalEncoding(width, num_steps, dropout=0.1)
        self.norm = nn.LayerNorm(width)
        self.weight_dropout, self.dropout = nn.Dropout(0.1), nn.Dropout(0.1)
        self.first, self.second = nn.Linear(width, width), nn.Linear(width, width)
        self.temperature = math.sqrt(width / 8)

    def learnt(self) -> Halfway:
        """The patterns themselves, (R, D). The bias of the first map is theirs."""
        return Halfway(self.patterns, self.first(self.patterns))

    def seen(self, clips: Tensor) -> Tensor:
        """What patterns see of clips, their steps normalised: (..., S, D) -> (..., S, D)."""
        return self.norm(self.encoding(clips))

    def attention(self, steps: Tensor) -> Tensor:
        """How much each pattern looks at each of the steps that it sees: (..., S, D) -> (..., R, S)."""
        return (self.norm(self.patterns) @ steps.mT / self.temperature).softmax(dim=-1)

    def find(self, clips: Tensor) -> Halfway:
        """What each pattern finds in clips: (B, V, S, D) -> (B, V, R, D)."""
        steps = self.seen(clips)
        attention = self.weight_dropout(self.attention(steps))
        found = self.dropout(attention @ steps)
        if self.training:  # dropout stands between the two maps
            return Halfway(found, found @ self.first.weight.mT)
        return Halfway(found, attention @ (steps @ self.first.weight.mT))  # a clip has fewer steps than patterns

    def refine(self, halfway: Halfway) -> Tensor:
        """The rest of the network, on top of what tokens are: not negative."""
        return F.relu(halfway.tokens + self.second(F.relu(halfway.hidden)))


class CNN_TEAM(CNN_FSHead):
    """TEAM: learnt pattern tokens of clips, made unlike other classes of the task, compared token by token.

    Temporal Alignment-free video Matching (Lee et al., CVPR 2025). A class is near where its instance tokens are a query's,
    and where those of other classes are what the query excludes. Its shots are averaged first. Unlike in the authors' code,
    in training a class's own tokens and the adapted ones come from the same draw of dropout.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        super().__init__(args)
        self.tokens = PatternTokens(self.backbone.feature_dim, args.team_tokens, self.num_steps)

    @staticmethod
    def add_arguments(group: Any) -> None:
        group.add_argument(
            "--team_tokens", type=int, least=1, default=60, help="pattern tokens of a clip; the paper has 50 to 80"
        )

    def classify(self, support_features: Tensor, support_labels: Tensor, target_features: Tensor) -> dict[str, Tensor]:
        """As of every method; "instance" and "exclusive" (B, Q, K) are the two parts that logits are the sum of."""
        shots, present = group_by_class(support_features, support_labels)
        classes = mean_over_shots(shots, present[..., None, None], dim=2)  # (B, K, S, D)
        way = classes.shape[1]
        if way < 2:
            raise ValueError("TEAM tells a class from the others of its task: expected 2 classes or more, found 1")
        patterns, found = self.tokens.learnt(), self.tokens.find(torch.cat([classes, target_features], dim=1))
        shown, absent = (self.tokens.refine(patterns.plus(found, sign)) for sign in (1, -1))  # (B, K + Q, R, D)
        shown_by_class, absent_in_class = (
            self.adapt(patterns, found, tokens[:, :way], sign) for tokens, sign in ((shown, 1), (absent, -1))
        )
        shown, absent = shown[:, way:], absent[:, way:]  # of queries
        instance = -token_distances(shown, shown_by_class)
        farthest = farthest_other(token_distances(absent, shown_by_class))
        farthest = farthest + farthest_other(token_distances(shown, absent_in_class))
        exclusive = -farthest / 2
        return {"logits": instance + exclusive, "instance": instance, "exclusive": exclusive}

    def adapt(self, patterns: Halfway, found: Halfway, tokens: Tensor, sign: int) -> Tensor:
        """Tokens of classes (B, K, R, D), their instance (sign 1) or exclusive (-1) ones, as the task makes them.

        What a class shows is moved off what every other one shows, the more the more alike their tokens are; mean over the
        other classes.
        """
        way = tokens.shape[1]
        k, j = (~torch.eye(way, dtype=torch.bool, device=tokens.device)).nonzero(as_tuple=True)
        alike = token_cosines(tokens)[:, k, j, :, None]  # (B, K * (K - 1), R, 1)
        moved = found.of(k).away_from(found.of(j), alike)
        return reduce(self.tokens.refine(patterns.plus(moved, sign)), "b (k j) r d -> b k r d", "mean", k=way)

    def explain(self, support_features: Tensor, support_labels: Tensor, target_features: Tensor) -> dict[str, Tensor]:
        """ "logits" (B, Q, K), and "shot_logits" (B, Q, K, J): what they would be were every support video a class.

        "target_tokens" (B, Q, R, S): how much each pattern looks at each step of a query; "support_tokens" (B, K, J, R, S): of
        a support video, as if it were its class.
        """
        episode = support_features, support_labels, target_features
        support, target = (self.tokens.attention(self.tokens.seen(clips)) for clips in episode[::2])
        return {
            "logits": self.classify(*episode)["logits"],
            "shot_logits": self.shot_logits(*episode),
            "target_tokens": target,
            "support_tokens": group_by_class(support, support_labels)[0],
        }

    def loss(self, task_dict: dict[str, Any], model_dict: dict[str, Tensor]) -> Tensor:
        """Cross entropy of the queries by their instance tokens, plus that by their exclusive ones."""
        labels = task_dict["target_labels"]
        return self.query_loss(model_dict["instance"], labels) + self.query_loss(model_dict["exclusive"], labels)


def token_cosines(tokens: Tensor) -> Tensor:
    """Of the tokens of every two clips, one by one: (B, K, R, D) -> (B, K, K, R)."""
    directions = F.normalize(tokens, dim=-1)
    return torch.einsum("bkrd,bjrd->bkjr", directions, directions)


def token_distances(queries: Tensor, classes: Tensor) -> Tensor:
    """Cosine distances of tokens, one by one, added up: (B, Q, R, D), (B, K, R, D) -> (B, Q, K)."""
    directions = [rearrange(F.normalize(tokens, dim=-1), "b v r d -> b v (r d)") for tokens in (queries, classes)]
    return queries.shape[2] - directions[0] @ directions[1].mT


def farthest_other(distances: Tensor) -> Tensor:
    """Of distances to classes (..., K), for each class the largest to any other: (..., K)."""
    own = torch.eye(distances.shape[-1], dtype=torch.bool, device=distances.device)
    return distances[..., None, :].masked_fill(own, -math.inf).amax(dim=-1)
