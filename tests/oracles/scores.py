"""Scores of videos fused and judged as the definitions are written down, one number at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence

Views = Sequence[Sequence[float]]
"""Logits of one video: [view][class]."""


def softmax(logits: Sequence[float]) -> list[float]:
    total = sum(math.exp(value) for value in logits)
    return [math.exp(value) / total for value in logits]


def mean_over_views(views: Views, fusion: str) -> list[float]:
    """Of one model: means of logits, probabilities or positive logits, [class]."""
    of_view = {
        "logits": list,
        "probabilities": softmax,
        "relu_logits": lambda logits: [max(value, 0.0) for value in logits],
    }[fusion]
    changed = [of_view(view) for view in views]
    return [sum(view[c] for view in changed) / len(changed) for c in range(len(changed[0]))]


def ensemble(models: Sequence[Views], weights: Sequence[float], fusion: str) -> list[float]:
    """Of several models' views of one video, [class]."""
    means = [mean_over_views(views, fusion) for views in models]
    classes = range(len(means[0]))
    return [sum(w * mean[c] for w, mean in zip(weights, means, strict=True)) / sum(weights) for c in classes]


def ranking(scores: Sequence[float]) -> list[int]:
    """Classes from the best on."""
    return sorted(range(len(scores)), key=lambda c: -scores[c])


def top(scores: Sequence[Sequence[float]], labels: Sequence[int], k: int) -> float:
    """Percent of the videos whose label is among the k best classes."""
    hits = [label in ranking(own)[:k] for own, label in zip(scores, labels, strict=True)]
    return 100 * sum(hits) / len(hits)


def class_accuracy(scores: Sequence[Sequence[float]], labels: Sequence[int], c: int) -> float | None:
    """Percent of the videos of class c that were recognised; None where there is none."""
    hits = [ranking(own)[0] == c for own, label in zip(scores, labels, strict=True) if label == c]
    return 100 * sum(hits) / len(hits) if hits else None


def average_precision(scores: Sequence[Sequence[float]], labels: Sequence[Sequence[int]], c: int) -> float | None:
    """Percent: at each video of class c, in the order of the class's scores, the share of its videos so far."""
    order = sorted(range(len(scores)), key=lambda video: -scores[video][c])
    seen = [c in labels[video] for video in order]
    shares = [sum(seen[: place + 1]) / (place + 1) for place, hit in enumerate(seen) if hit]
    return 100 * sum(shares) / len(shares) if shares else None
