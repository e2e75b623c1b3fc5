"""Few runs and many comparisons: intervals of Student's t, two-sided p values, Holm's correction."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def t_share(t: float, freedom: int) -> float:
    """Probability that |T| < t for Student's T of so many degrees of freedom, 1 or more.

    The finite sums of Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.3 and 26.7.4.
    """
    angle = math.atan(t / math.sqrt(freedom))
    odd = freedom % 2
    term = math.cos(angle) if odd else 1.0
    total = term if freedom > 1 else 0.0
    for k in range(3 if odd else 2, freedom, 2):
        term *= math.cos(angle) ** 2 * (k - 1) / k
        total += term
    return (angle + math.sin(angle) * total) * 2 / math.pi if odd else math.sin(angle) * total


def t_quantile(freedom: int, share: float = 0.95) -> float:
    """The t within which, on both sides of 0, lies this share of Student's distribution."""
    low, high = 0.0, 1.0
    while t_share(high, freedom) < share:
        low, high = high, 2 * high
    while (middle := (low + high) / 2) not in (low, high):
        low, high = (middle, high) if t_share(middle, freedom) < share else (low, middle)
    return high


def mean_interval(values: Sequence[float] | np.ndarray) -> tuple[float, float]:
    """Mean of a few values and the half-width of its 95 % interval by Student's t; infinite of a single one."""
    numbers = np.asarray(values, dtype=np.float64)
    if len(numbers) < 2:
        return float(numbers.mean()), math.inf
    error = numbers.std(ddof=1) / math.sqrt(len(numbers))
    return float(numbers.mean()), float(t_quantile(len(numbers) - 1) * error)


def p_value(differences: np.ndarray) -> float:
    """Two-sided p of a mean of 0 of many paired differences, by the normal approximation; 1 where all are 0."""
    spread = differences.std(ddof=1) / math.sqrt(len(differences))
    if spread == 0:
        return 0.0 if differences.any() else 1.0
    return math.erfc(abs(float(differences.mean())) / spread / math.sqrt(2))


def holm(p_values: Sequence[float]) -> list[float]:
    """p values corrected for their number (Holm, Scandinavian Journal of Statistics 1979), in their order.

    Those below 0.05 are rejected together with a chance of 5 % at most that any of them is so by accident.
    """
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=lambda place: p_values[place])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        corrected[place] = largest
    return corrected


def class_interval(accuracies: np.ndarray, resamples: int = 10_000) -> tuple[float, float]:
    """95 % interval of the mean accuracy when classes are drawn again, with replacement.

    accuracies (C,) of classes, of which those that are nan were never asked for. The interval over episodes ignores that a
    split has few classes: with other classes of the same kind the mean would vary by this much.
    """
    asked = accuracies[~np.isnan(accuracies)]
    drawn = np.random.default_rng(0).choice(asked, size=(resamples, len(asked)))
    low, high = np.percentile(drawn.mean(axis=1), [2.5, 97.5])
    return float(low), float(high)
