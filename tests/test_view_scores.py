"""Scores of views become scores of videos and accuracies: by literal loops, with ties, missing labels and wrong files."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from results.view_scores import (
    ViewScores,
    average_precisions,
    best,
    class_accuracies,
    in_top,
    save_predictions,
    summary,
)
from utils import UserError

CLASSES = ["clap", "jump; up", "überholen", "wave", "a", "b", "c"]


def scores_of(count: int = 6, views: int = 4, **changes: Any) -> ViewScores:
    rng = np.random.default_rng(0)
    fields = {
        "videos": [f"class/video {number}" for number in range(count)],
        "classes": CLASSES,
        "labels": rng.integers(len(CLASSES), size=(count, 1)),
        "logits": rng.normal(scale=3, size=(count, views, len(CLASSES))).astype(np.float32),
        "protocol": "clips x 1 crop",
        "num_crops": 1,
        "num_clips": views,
    }
    return ViewScores(**(fields | changes))


# Fusion --------------------------------------------------------------------------------------------------------------


def literal_softmax(logits: list[float]) -> list[float]:
    exponents = [math.exp(value - max(logits)) for value in logits]
    return [value / sum(exponents) for value in exponents]


def literal_fusion(scores: ViewScores, fusion: str) -> list[list[float]]:
    fused = []
    for views in scores.logits.astype(np.float64).tolist():
        if fusion == "probabilities":
            views = [literal_softmax(view) for view in views]
        fused.append([sum(view[c] for view in views) / len(views) for c in range(len(scores.classes))])
    return fused


@pytest.mark.parametrize("fusion", ["logits", "probabilities"])
def test_fusion_is_the_mean_over_views(fusion: str) -> None:
    scores = scores_of()
    found = scores.fused(fusion)
    found = np.exp(found) if fusion == "probabilities" else found  # they come as logits
    np.testing.assert_allclose(found, literal_fusion(scores, fusion), rtol=1e-5, atol=1e-6)


def test_the_two_fusions_may_disagree() -> None:
    """One view that is very sure outweighs two in the mean of logits, not in the mean of probabilities."""
    logits = np.array([[[9, 0], [0, 3], [0, 3]]], dtype=np.float32)
    scores = scores_of(1, classes=["x", "y"], labels=np.array([[1]]), logits=logits, num_clips=3)
    assert [scores.summary(fusion)["accuracy"] for fusion in ("logits", "probabilities")] == [0, 100]


@pytest.mark.parametrize("fusion", ["logits", "probabilities"])
def test_confidence_is_the_probability_of_the_fused_scores(fusion: str) -> None:
    scores = scores_of()
    expected = literal_fusion(scores, fusion)
    if fusion == "logits":
        expected = [literal_softmax(row) for row in expected]
    np.testing.assert_allclose(scores.confidence(fusion), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(scores.confidence(fusion).sum(axis=1), 1, rtol=1e-5)


def test_with_several_labels_every_class_has_a_probability_of_its_own() -> None:
    scores = scores_of(multi_label=True)
    expected = [[1 / (1 + math.exp(-value)) for value in row] for row in literal_fusion(scores, "logits")]
    np.testing.assert_allclose(scores.confidence(), expected, rtol=1e-5, atol=1e-6)


# Accuracies ----------------------------------------------------------------------------------------------------------


def literal_top(row: list[float], k: int) -> list[int]:
    return sorted(range(len(row)), key=lambda c: (-row[c], c))[:k]


@pytest.mark.parametrize("rounded", [False, True])
def test_the_summary_counts_what_loops_count(rounded: bool) -> None:
    """Rounded scores have ties, also at the fifth place."""
    scores = scores_of(60)
    if rounded:
        scores = scores_of(60, logits=(scores.logits / 6).round())
    fused = scores.fused().tolist()
    right: dict[int, list[float]] = {}
    for row, (label,) in zip(fused, scores.labels.tolist(), strict=True):
        right.setdefault(label, []).append(100 * (literal_top(row, 1) == [label]))
    every = [value for values in right.values() for value in values]
    found = scores.summary()
    assert found["videos"] == 60
    assert found["accuracy"] == pytest.approx(sum(every) / 60)
    variance = sum((value - found["accuracy"]) ** 2 for value in every) / 59
    assert found["ci95"] == pytest.approx(1.96 * math.sqrt(variance / 60))
    top5 = [label in literal_top(row, 5) for row, (label,) in zip(fused, scores.labels.tolist(), strict=True)]
    assert found["top5"] == pytest.approx(100 * sum(top5) / 60)
    assert 0 < found["accuracy"] < found["top5"] < 100
    means = [sum(values) / len(values) for values in right.values()]
    assert found["mean_class_accuracy"] == pytest.approx(sum(means) / len(means))


def test_a_network_that_says_nothing_is_right_by_chance_in_the_first_five_too() -> None:
    """Where all scores are equal, the first five classes are the answer, not all of them."""
    equal, labels = np.zeros((10, 10)), np.arange(10)
    assert best(equal, 5)[3].tolist() == [0, 1, 2, 3, 4]
    assert in_top(equal, labels, 1).tolist() == [True] + [False] * 9
    assert in_top(equal, labels, 5).tolist() == [True] * 5 + [False] * 5


def test_every_label_is_among_five_of_fewer_classes() -> None:
    assert in_top(np.random.default_rng(0).normal(size=(8, 3)), np.zeros(8, dtype=int), 5).all()


def test_class_accuracies_leave_out_classes_without_a_video() -> None:
    found = class_accuracies(np.array([0, 0, 2, 2]), np.array([0, 2, 2, 2]), 4)
    np.testing.assert_allclose(found, [100, np.nan, 200 / 3, np.nan])


def test_videos_without_a_label_do_not_count() -> None:
    scores = scores_of(20)
    labels = scores.labels.copy()
    labels[5:] = -1
    assert scores_of(20, labels=labels).summary() == scores_of(5, labels=labels[:5], logits=scores.logits[:5]).summary()
    assert scores_of(20, labels=np.full((20, 1), -1)).summary() == {}


# Several labels ------------------------------------------------------------------------------------------------------


def mean_average_precision(scores: np.ndarray, labels: np.ndarray) -> float:
    return float(np.nanmean(average_precisions(scores, labels)))


def literal_mean_average_precision(scores: np.ndarray, labels: list[set[int]]) -> float:
    """Walks down the ranking of every class and writes down the precision at each video that has it."""
    averages = []
    for c in range(scores.shape[1]):
        precisions, seen = [], 0
        for rank, video in enumerate(sorted(range(len(labels)), key=lambda v: (-scores[v, c], v)), start=1):
            if c in labels[video]:
                seen += 1
                precisions.append(seen / rank)
        if precisions:
            averages.append(sum(precisions) / len(precisions))
    return 100 * sum(averages) / len(averages)


@pytest.mark.parametrize("rounded", [False, True])
def test_mean_average_precision_walks_down_every_ranking(rounded: bool) -> None:
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(40, 6))
    scores = scores.round() if rounded else scores
    labels = [set(rng.choice(5, size=rng.integers(1, 4), replace=False).tolist()) for _ in range(40)]  # none of class 5
    table = np.array([[*own, *[-1] * (3 - len(own))] for own in labels])
    expected = literal_mean_average_precision(scores, labels)
    assert mean_average_precision(scores, table) == pytest.approx(expected)
    found = summary(scores, table, multi_label=True)
    assert found == {"videos": 40, "mean_average_precision": pytest.approx(expected)}


def test_mean_average_precision_of_a_ranking_by_hand() -> None:
    """Right at ranks 1, 3 and 4 of four: (1/1 + 2/3 + 3/4) / 3; the second class is right at the last rank: 1/4."""
    scores = np.array([[0.9, 0.4], [0.7, 0.8], [0.5, 0.6], [0.1, 0.9]])
    labels = np.array([[0, 1], [-1, -1], [0, -1], [0, -1]])
    expected = 100 * ((1 + 2 / 3 + 3 / 4) / 3 + 1 / 4) / 2
    assert mean_average_precision(scores, labels) == pytest.approx(expected)


def test_a_perfect_ranking_is_100_percent_and_its_opposite_the_worst() -> None:
    labels = np.array([[0]] * 3 + [[1]] * 5)
    perfect = np.eye(2)[labels[:, 0]]
    assert mean_average_precision(perfect, labels) == 100
    worst = mean_average_precision(-perfect, labels)
    shuffled = mean_average_precision(np.random.default_rng(1).normal(size=(8, 2)), labels)
    assert worst < shuffled < 100


# Files ---------------------------------------------------------------------------------------------------------------


def test_scores_come_back_from_their_file(tmp_path: Path) -> None:
    scores = scores_of(videos=["a/ü", "b/\udcff", "c"] * 2, multi_label=True)
    scores.save(tmp_path / "scores.npz")
    again = ViewScores.load(tmp_path / "scores.npz")
    assert (again.videos, again.classes, again.protocol) == (scores.videos, scores.classes, scores.protocol)
    assert again.multi_label is True
    np.testing.assert_array_equal(again.labels, scores.labels)
    np.testing.assert_array_equal(again.logits, scores.logits)
    assert again.logits.dtype == np.float32
    assert not list(tmp_path.glob(".*.tmp"))


def test_a_file_that_holds_no_scores_is_refused(tmp_path: Path) -> None:
    scores_of().save(tmp_path / "whole.npz")
    (tmp_path / "cut.npz").write_bytes((tmp_path / "whole.npz").read_bytes()[:-300])
    (tmp_path / "empty.npz").write_bytes(b"")
    (tmp_path / "text.npz").write_text("video,true")
    np.save(tmp_path / "array.npy", np.zeros(3))
    np.savez(tmp_path / "other.npz", logits=np.zeros(3))
    np.savez(tmp_path / "objects.npz", videos=np.array([{}], dtype=object))
    for name in ("absent.npz", "cut.npz", "empty.npz", "text.npz", "array.npy", "other.npz", "objects.npz"):
        with pytest.raises(UserError, match=f"could not read scores from .*{name} .*expected scores.npz of a test"):
            ViewScores.load(tmp_path / name)


@pytest.mark.parametrize("fusion", ["logits", "probabilities"])
def test_predictions_name_videos_classes_and_confidence(fusion: str, tmp_path: Path) -> None:
    labels = np.array([[1, -1], [-1, -1], [2, 0]])
    scores = scores_of(3, labels=labels)
    path = tmp_path / "predictions.csv"
    fused, confidence = scores.fused(fusion), scores.confidence(fusion)
    save_predictions(path, scores.videos, scores.classes, labels, fused, confidence)
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["video"] for row in rows] == scores.videos
    assert [row["true"] for row in rows] == ["jump; up", "", "überholen;clap"]
    for row, own, sure in zip(rows, fused.tolist(), confidence.tolist(), strict=True):
        top = literal_top(own, 5)
        assert row["predicted"] == CLASSES[top[0]]
        assert row["top5"] == ";".join(CLASSES[c] for c in top)
        assert float(row["confidence"]) == pytest.approx(sure[top[0]], abs=1e-6)


def test_predictions_hold_names_that_are_no_unicode(tmp_path: Path) -> None:
    scores = scores_of(1, videos=["a/\udcff.avi"])
    save_predictions(
        tmp_path / "p.csv", scores.videos, scores.classes, scores.labels, scores.fused(), scores.confidence()
    )
    assert b"a/\xff.avi" in (tmp_path / "p.csv").read_bytes()
