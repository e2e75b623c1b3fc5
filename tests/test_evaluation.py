"""The statistics of a test against figures counted by hand."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch

from results.evaluation import Predictions, Tally

CLASSES = ["a", "b", "c"]


@pytest.fixture
def predictions() -> Predictions:
    true = np.array([[0, 1], [0, 2], [1, 2], [0, 1]])
    predicted = np.array([[0, 0], [0, 2], [1, 0], [2, 1]])
    confidence = np.array([[0.9, 0.6], [0.8, 0.7], [0.55, 0.95], [0.5, 0.99]])
    videos = np.array([[f"v{task}{q}" for q in range(2)] for task in range(4)])
    return Predictions(CLASSES, true, predicted, confidence, videos)


def test_episode_accuracies_and_their_interval(predictions: Predictions) -> None:
    assert predictions.episode_accuracies.tolist() == [50, 100, 50, 50]
    summary = predictions.summary()
    assert summary["accuracy"] == 62.5
    assert summary["ci95"] == pytest.approx(1.96 * 25 / 2)


def test_class_accuracies_and_confusion(predictions: Predictions) -> None:
    assert predictions.class_accuracies() == pytest.approx([200 / 3, 200 / 3, 50])
    assert predictions.confusion().tolist() == [[2, 0, 1], [1, 2, 0], [1, 0, 1]]


def test_a_class_that_was_never_asked_for_has_no_accuracy(predictions: Predictions) -> None:
    more = Predictions(
        [*CLASSES, "d"], predictions.true, predictions.predicted, predictions.confidence, predictions.videos
    )
    assert np.isnan(more.class_accuracies()[3])
    assert more.class_interval() == predictions.class_interval()


def test_the_class_interval_is_that_of_redrawn_classes(predictions: Predictions) -> None:
    low, high = predictions.class_interval()
    # Of 27 draws of three classes from 2/3, 2/3 and 1/2: one in 27 is all of the lowest, eight are none of it.
    assert low == pytest.approx(50)
    assert high == pytest.approx(200 / 3)


def test_classes_that_are_all_alike_leave_no_interval(predictions: Predictions) -> None:
    right = Predictions(CLASSES, predictions.true, predictions.true, predictions.confidence, predictions.videos)
    assert right.class_interval() == (100, 100)


def test_calibration_error_is_the_mean_gap_over_bins() -> None:
    true = np.zeros((10, 1), dtype=int)
    predicted = np.array([[0]] * 7 + [[1]] * 3)
    videos = np.full((10, 1), "v")
    sure = Predictions(CLASSES, true, predicted, np.full((10, 1), 0.9), videos)
    assert sure.calibration_error() == pytest.approx(20)
    fair = Predictions(CLASSES, true, predicted, np.full((10, 1), 0.7), videos)
    assert fair.calibration_error() == pytest.approx(0)
    half = np.array([[0.9]] * 5 + [[0.4]] * 5)  # 5 of 5 right at 0.9, 2 of 5 right at 0.4
    assert Predictions(CLASSES, true, predicted, half, videos).calibration_error() == pytest.approx(5)


def test_full_confidence_falls_into_the_last_bin() -> None:
    one = Predictions(CLASSES, np.zeros((1, 1), int), np.zeros((1, 1), int), np.ones((1, 1)), np.array([["v"]]))
    share, confidence, accuracy = one.calibration_bins(10)
    assert (share[-1], confidence[-1], accuracy[-1]) == (1, 1, 1)


def test_predictions_are_saved_row_by_row(predictions: Predictions, tmp_path: Path) -> None:
    predictions.save(tmp_path / "p.csv")
    with open(tmp_path / "p.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 8
    assert rows[1] == {"task": "0", "video": "v01", "true": "b", "predicted": "a", "confidence": "0.600000"}


def test_a_tally_turns_logits_into_classes_of_the_split() -> None:
    tally = Tally(CLASSES)
    logits = torch.tensor([[[0.0, 3.0], [2.0, 0.0]]])
    second = {"index": [7], "real_target_labels": [[2, 1]], "batch_class_list": [[1, 2]], "target_videos": [["z", "w"]],
              "bad_videos": ["a is bad"]}  # fmt: skip
    first = {"index": [3], "real_target_labels": [[0, 2]], "batch_class_list": [[2, 0]], "target_videos": [["x", "y"]],
             "bad_videos": []}  # fmt: skip
    for call in (second, first):  # as they come from several processes
        tensors = {name: torch.tensor(call[name]) for name in ("real_target_labels", "batch_class_list")}
        tally.add(logits, {**call, **tensors})
    found = tally.predictions()
    assert found.predicted.tolist() == [[0, 2], [2, 1]]
    assert found.correct.all()
    assert found.confidence[0] == pytest.approx([1 / (1 + np.exp(-3)), 1 / (1 + np.exp(-2))])
    assert found.videos.tolist() == [["x", "y"], ["z", "w"]]
    assert (tally.right, tally.asked) == (4, 4)
    assert found.bad_videos == {"a is bad"}


def test_shares_of_several_processes_are_one_tally() -> None:
    whole, *shares = (Tally(CLASSES) for _ in range(3))
    for index, share in enumerate(shares):
        call = {"index": [index], "target_videos": [[f"v{index}"]], "bad_videos": [f"{index} is bad"]}
        labels = {"real_target_labels": torch.tensor([[0]]), "batch_class_list": torch.tensor([[0, 1]])}
        share.add(torch.tensor([[[1.0, 0.0]]]), {**call, **labels})
    whole.merge(reversed(shares))
    assert whole.predictions().videos.tolist() == [["v0"], ["v1"]]
    assert whole.predictions().bad_videos == {"0 is bad", "1 is bad"}
