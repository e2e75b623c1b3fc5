"""The logits of a recogniser for every view of every test video, and what follows from them: fused scores and accuracies.

Letters: V videos, A views of each (crops times clips), C classes, L most labels of a video.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from utils import UserError, accuracy_interval, atomic_write, write_csv

FUSIONS = ("logits", "probabilities", "relu_logits")


@dataclasses.dataclass(frozen=True)
class ViewScores:
    """logits float32 (V, A, C) of the views of `videos`; labels int64 (V, L), -1 where there is none.

    Views are crop after crop, and of each crop clip after clip: A = num_crops * num_clips. protocol: how they were taken,
    in words. multi_label: a video may have any number of labels. marks: what else is to be known, see results/marks.py.
    """

    videos: list[str]
    classes: list[str]
    labels: np.ndarray
    logits: np.ndarray
    protocol: str
    num_crops: int
    num_clips: int
    multi_label: bool = False
    marks: Sequence[str] = ()

    def __post_init__(self) -> None:
        expected = (len(self.videos), self.num_crops * self.num_clips, len(self.classes))
        if self.logits.shape != expected:
            raise ValueError(f"logits are {self.logits.shape}, expected {expected}")

    def check(self) -> None:
        """Raises ValueError for what no test leaves, in the words of what is wrong."""
        if not self.logits.size:
            raise ValueError(f"logits are {self.logits.shape}, which are none")
        if not np.issubdtype(self.logits.dtype, np.floating):
            raise ValueError(f"logits are of type {self.logits.dtype}, expected float32")
        for names in (self.videos, self.classes):
            if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
                raise ValueError("names of videos and classes are no list of texts")
        if not np.isfinite(self.logits).all():
            video = int(np.argmin(np.isfinite(self.logits).all(axis=(1, 2))))
            raise ValueError(f"a logit of '{self.videos[video]}' is infinite or not a number")
        labels = self.labels
        if labels.ndim != 2 or len(labels) != len(self.videos) or not np.issubdtype(labels.dtype, np.integer):
            raise ValueError(f"labels are {labels.dtype} {labels.shape}, expected a row of integers for each video")
        if labels.size and not -1 <= labels.min() <= labels.max() < len(self.classes):
            raise ValueError(f"labels are {labels.min()} to {labels.max()}, of {len(self.classes)} classes")

    def views(self, crops: Sequence[int] | None = None, clips: Sequence[int] | None = None) -> ViewScores:
        """Only these crops of these clips, counted from 0; unset: all. Raises UserError for one that there is not."""
        kept = []
        for kind, numbers, count in (("crop", crops, self.num_crops), ("clip", clips, self.num_clips)):
            kept.append(list(range(count)) if numbers is None else list(dict.fromkeys(numbers)))
            if wrong := [number for number in kept[-1] if not 0 <= number < count]:
                raise UserError(
                    f"{kind} {wrong[0]} was asked for, and there are {count} {kind}s: expected 0 to {count - 1}; "
                    f"{self.protocol}"
                )
        chosen_crops, chosen_clips = kept
        chosen = [crop * self.num_clips + clip for crop in chosen_crops for clip in chosen_clips]
        return dataclasses.replace(
            self, logits=self.logits[:, chosen], num_crops=len(chosen_crops), num_clips=len(chosen_clips)
        )

    def fused(self, fusion: str = "logits") -> np.ndarray:
        """Scores (V, C) of the videos; see `fuse`."""
        return fuse(self.logits, fusion)

    def confidence(self, fusion: str = "logits") -> np.ndarray:
        """The probabilities (V, C) of the fused scores; see `probabilities`."""
        return probabilities(self.fused(fusion), multi_label=self.multi_label)

    def summary(self, fusion: str = "logits") -> dict[str, Any]:
        """Percentages over the videos that have a label: top-1 with its 95 % interval, top-5, the mean of the classes'
        accuracies; of videos with several labels the mean average precision over classes."""
        return summary(self.fused(fusion), self.labels, multi_label=self.multi_label)

    def save(self, path: Path) -> None:
        with atomic_write(path) as file:
            np.savez(
                file,
                videos=np.array(self.videos),
                classes=np.array(self.classes),
                labels=self.labels,
                logits=self.logits,
                protocol=np.array(self.protocol),
                num_crops=np.array(self.num_crops),
                num_clips=np.array(self.num_clips),
                multi_label=np.array(self.multi_label),
                marks=np.array(self.marks, dtype=str),
            )

    @classmethod
    def load(cls, path: Path) -> ViewScores:
        """Raises UserError when there is no such file, when it is another, or damaged. An old one has no marks."""
        try:
            with np.load(path) as file:
                scores = cls(
                    videos=file["videos"].tolist(),
                    classes=file["classes"].tolist(),
                    labels=file["labels"],
                    logits=file["logits"],
                    protocol=str(file["protocol"]),
                    num_crops=int(file["num_crops"]),
                    num_clips=int(file["num_clips"]),
                    multi_label=bool(file["multi_label"]),
                    marks=file["marks"].tolist() if "marks" in file else (),
                )
            scores.check()
        except Exception as error:  # any kind: the reader follows whatever damaged bytes say until it stumbles
            reason = f"{error}".partition("\n")[0] or type(error).__name__
            raise UserError(
                f"could not read scores from {path} ({reason}): expected scores.npz of a test by run_supervised.py"
            ) from error
        return scores


def fuse(logits: np.ndarray, fusion: str = "logits", weights: Sequence[float] | None = None) -> np.ndarray:
    """What views, or models, say together: logits (V, A, C) -> scores (V, C), whose order ranks the classes.

    logits: the weighted mean. probabilities: the logarithm of that of the softmax, so that the scores are logits again.
    relu_logits: that of positive logits, with 0 for the others (TDN's code, for two models). weights: (A,); unset: equal.
    Scores that are fused again, alone, stay as they are, and so models are fused by the scores of each.
    """
    values = torch.from_numpy(logits)
    shares = torch.ones(values.shape[1]) if weights is None else torch.tensor(weights, dtype=torch.float64)
    shares = (shares / shares.sum()).to(values.dtype)
    if fusion == "probabilities":
        return torch.logsumexp(values.log_softmax(dim=-1) + shares.log()[:, None], dim=1).numpy()
    if fusion == "relu_logits":
        values = values.relu()
    return torch.einsum("vac,a->vc", values, shares).numpy()


def summary(scores: np.ndarray, labels: np.ndarray, *, multi_label: bool = False) -> dict[str, Any]:
    """What `ViewScores.summary` says, of scores (V, C) and labels (V, L)."""
    known = (labels >= 0).any(axis=1)
    if not known.any():
        return {}
    scores, labels = scores[known], labels[known]
    if multi_label:
        mean = float(np.nanmean(average_precisions(scores, labels)))
        return {"videos": len(scores), "mean_average_precision": mean}
    right = 100.0 * (scores.argmax(axis=1) == labels[:, 0])
    accuracy, ci95 = accuracy_interval(right)
    classes = class_accuracies(scores.argmax(axis=1), labels[:, 0], scores.shape[1])
    return {
        "videos": len(scores),
        "accuracy": accuracy,
        "ci95": ci95,
        "top5": 100 * float(in_top(scores, labels[:, 0], 5).mean()),
        "mean_class_accuracy": float(np.nanmean(classes)),
    }


def in_top(scores: np.ndarray, labels: np.ndarray, k: int) -> np.ndarray:
    """Whether the label is among the k `best`, bool (V,)."""
    return (best(scores, k) == labels[:, None]).any(axis=1)


def best(scores: np.ndarray, k: int) -> np.ndarray:
    """The k classes (V, k) with the highest scores, highest first; of equal ones the first class, as argmax has it."""
    return np.argsort(-scores, axis=1, kind="stable")[:, :k]


def class_accuracies(predicted: np.ndarray, labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Percent of each class's videos that were recognised, (C,); nan where a class has none."""
    asked = np.bincount(labels, minlength=num_classes)
    right = np.bincount(labels[predicted == labels], minlength=num_classes)
    return 100 * np.divide(right, asked, out=np.full(num_classes, np.nan), where=asked > 0)


def average_precisions(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Percent, (C,): the mean of the precision at each of the class's videos, ordered by score (VOC 2010's area); nan where
    a class has none."""
    wanted = np.zeros(scores.shape, dtype=bool)
    rows, columns = np.nonzero(labels >= 0)
    wanted[rows, labels[rows, columns]] = True
    order = np.argsort(-scores, axis=0, kind="stable")
    hits = np.take_along_axis(wanted, order, axis=0)
    precision = hits.cumsum(axis=0) / np.arange(1, len(scores) + 1)[:, None]
    found = hits.sum(axis=0)
    total = (precision * hits).sum(axis=0)
    return 100 * np.divide(total, found, out=np.full(len(total), np.nan), where=found > 0)


def probabilities(scores: np.ndarray, *, multi_label: bool = False) -> np.ndarray:
    """Of fused scores (V, C), (V, C): they add up to 1 over classes; with several labels each class has its own."""
    values = torch.from_numpy(scores)
    return (values.sigmoid() if multi_label else values.softmax(dim=-1)).numpy()


def save_predictions(
    path: Path,
    videos: Sequence[str],
    classes: Sequence[str],
    labels: np.ndarray,
    scores: np.ndarray,
    confidence: np.ndarray,
) -> None:
    """One row per video: its name, true classes, the five best by scores (V, C), and the confidence (V, C) in the first."""
    rows = (
        {
            "video": video,
            "true": ";".join(classes[label] for label in own if label >= 0),
            "predicted": classes[top[0]],
            "confidence": f"{share[top[0]]:.6f}",
            "top5": ";".join(classes[c] for c in top),
        }
        for video, own, top, share in zip(videos, labels, best(scores, 5), confidence, strict=True)
    )
    write_csv(path, ["video", "true", "predicted", "confidence", "top5"], rows)


def in_words(summary: dict[str, Any]) -> str:
    """The figures of a summary, for a log."""
    if not summary:
        return "videos without labels, no accuracy"
    if "mean_average_precision" in summary:
        return f"mean average precision {summary['mean_average_precision']:.2f} %, {summary['videos']} videos"
    return (
        f"top-1 {summary['accuracy']:.2f} +/- {summary['ci95']:.2f} %, top-5 {summary['top5']:.2f} %, mean over classes "
        f"{summary['mean_class_accuracy']:.2f} %, {summary['videos']} videos"
    )
