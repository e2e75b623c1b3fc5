"""What a test says: accuracy with its intervals, per class, confusion, calibration.

Letters: E episodes, Q queries of an episode, C classes of the split.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from results.statistics import class_interval
from utils import accuracy_interval, write_csv


@dataclasses.dataclass(frozen=True)
class Predictions:
    """Every answer of a test. Arrays (E, Q): `true` and `predicted` are class numbers of the split, `confidence` is the
    probability given to the predicted class, `videos` names each query, `classes` the split's classes; `bad_videos`
    are messages about videos that others of their class stood in for."""

    classes: list[str]
    true: np.ndarray
    predicted: np.ndarray
    confidence: np.ndarray
    videos: np.ndarray
    bad_videos: frozenset[str] = frozenset()

    @property
    def correct(self) -> np.ndarray:
        return self.true == self.predicted

    @property
    def episode_accuracies(self) -> np.ndarray:
        """Percent, (E,)."""
        return 100 * self.correct.mean(axis=1)

    def summary(self) -> dict[str, float]:
        """Mean accuracy in percent with its interval over episodes and over classes, and the calibration error."""
        accuracy, ci95 = accuracy_interval(self.episode_accuracies)
        low, high = self.class_interval()
        return {
            "accuracy": accuracy,
            "ci95": ci95,
            "class_interval_low": low,
            "class_interval_high": high,
            "calibration_error": self.calibration_error(),
        }

    def class_accuracies(self) -> np.ndarray:
        """Percent of each class's queries that were recognised, (C,); nan where a class was never asked for."""
        asked = np.bincount(self.true.ravel(), minlength=len(self.classes))
        right = np.bincount(self.true[self.correct], minlength=len(self.classes))
        return 100 * np.divide(right, asked, out=np.full(len(self.classes), np.nan), where=asked > 0)

    def class_interval(self) -> tuple[float, float]:
        """95 % interval of the accuracy when the split's classes are drawn again."""
        return class_interval(self.class_accuracies())

    def confusion(self) -> np.ndarray:
        """How often class row was answered with class column, (C, C)."""
        count = len(self.classes)
        cells = np.bincount(self.true.ravel() * count + self.predicted.ravel(), minlength=count * count)
        return cells.reshape(count, count)

    def calibration_bins(self, bins: int = 15) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Queries by confidence in equal bins of [0, 1]: (share of queries, mean confidence, accuracy), each (bins,)."""
        place = np.minimum((self.confidence.ravel() * bins).astype(int), bins - 1)
        count = np.bincount(place, minlength=bins)
        size = np.maximum(count, 1)
        confidence = np.bincount(place, self.confidence.ravel(), minlength=bins) / size
        accuracy = np.bincount(place, self.correct.ravel(), minlength=bins) / size
        return count / count.sum(), confidence, accuracy

    def calibration_error(self) -> float:
        """Expected calibration error in percent (Guo et al., ICML 2017): mean gap of confidence and accuracy over bins."""
        share, confidence, accuracy = self.calibration_bins()
        return float(100 * (share * np.abs(confidence - accuracy)).sum())

    def save(self, path: Path) -> None:
        """One row per query: task, video, true and predicted class, confidence."""
        rows = (
            {
                "task": task,
                "video": self.videos[task, q],
                "true": self.classes[self.true[task, q]],
                "predicted": self.classes[self.predicted[task, q]],
                "confidence": f"{self.confidence[task, q]:.6f}",
            }
            for task, q in np.ndindex(self.true.shape)
        )
        write_csv(path, ["task", "video", "true", "predicted", "confidence"], rows)


class Tally:
    """Collects the answers of a test. `answers` holds them by the number of their first episode; `merge` adds those of
    other processes."""

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = list(classes)
        self.answers: dict[int, tuple[np.ndarray, np.ndarray, np.ndarray, list[list[str]]]] = {}
        self.bad_videos: set[str] = set()
        self.right = self.asked = 0

    def add(self, logits: Tensor, call: dict[str, Any]) -> None:
        """Logits (B, Q, K) of episodes, of which `call` holds "index" (B,), "real_target_labels" (B, Q), the class number
        of each logit as "batch_class_list" (B, K), "target_videos", B lists of Q names, and "bad_videos"."""
        true = call["real_target_labels"]
        confidence, answer = logits.float().softmax(dim=-1).max(dim=-1)
        predicted = call["batch_class_list"].gather(1, answer)
        self.answers[int(call["index"][0])] = (
            true.cpu().numpy(), predicted.cpu().numpy(), confidence.cpu().numpy(), call["target_videos"],
        )  # fmt: skip
        self.bad_videos.update(call["bad_videos"])
        self.right += int((predicted == true).sum())
        self.asked += true.numel()

    def merge(self, shares: Iterable[Tally]) -> None:
        for share in shares:
            self.answers.update(share.answers)
            self.bad_videos.update(share.bad_videos)

    def predictions(self) -> Predictions:
        true, predicted, confidence, videos = zip(*(self.answers[i] for i in sorted(self.answers)), strict=True)
        return Predictions(
            self.classes,
            np.concatenate(true),
            np.concatenate(predicted),
            np.concatenate(confidence),
            np.array([names for batch in videos for names in batch]),
            frozenset(self.bad_videos),
        )
