"""Tests of run folders as a comparison sees them: results, the accuracy of each episode, paired differences.

Letters: E episodes, Q queries of an episode.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from results.marks import after, marks
from utils import UserError, accuracy_interval, read_csv, read_json


@dataclasses.dataclass(frozen=True)
class Test:
    """One test of a run: the file of its results, and what that holds."""

    path: Path
    results: dict[str, Any]

    @property
    def episodes(self) -> tuple[str, str, int]:
        """Equal for tests on the same episodes, noise included."""
        return self.results["split_fingerprint"], self.results["episodes"], self.results["tasks"]

    @property
    def marks(self) -> list[str]:
        return marks(self.results)

    @property
    def predictions(self) -> Path:
        """The answers of a results_1.json are in predictions_1.csv."""
        return self.path.with_name(f"predictions{self.path.stem.removeprefix('results')}.csv")

    def __str__(self) -> str:
        results = self.results
        how = [f"{results['way']}-way {results['shot']}-shot", f"{results['tasks']} tasks", *self.marks]
        return after(self.path.name, [*how, str(results.get("checkpoint"))])


@dataclasses.dataclass(frozen=True)
class Run:
    """A run in a comparison: a test and its answers."""

    name: str
    test: Test
    answers: Answers

    @property
    def accuracies(self) -> np.ndarray:
        """Of each episode in percent, (E,)."""
        accuracies: np.ndarray = 100 * self.answers.right.mean(axis=1)
        return accuracies

    @property
    def results(self) -> dict[str, Any]:
        return self.test.results

    def labelled(self, runs: Sequence[Run], gap: str = " ") -> str:
        """Its name with the marks that not all of the runs have; those of all are among the conditions."""
        return after(self.name, [mark for mark in self.test.marks if mark not in common_marks(runs)], gap)


def common_marks(runs: Sequence[Run]) -> list[str]:
    """What is to be known of every one of the runs."""
    return [mark for mark in runs[0].test.marks if all(mark in run.test.marks for run in runs)]


@dataclasses.dataclass(frozen=True)
class Difference:
    """How one run does beside another on the same episodes: percentage points, half-width of the 95 % interval, and in
    how many episodes it is better, equal and worse."""

    points: float
    ci95: float
    wins: int
    ties: int
    losses: int

    @classmethod
    def between(cls, run: Run, other: Run) -> Difference:
        return cls.of(run.accuracies - other.accuracies)

    @classmethod
    def of(cls, paired: np.ndarray) -> Difference:
        """Of the differences in each episode, (E,)."""
        points, ci95 = accuracy_interval(paired)
        return cls(points, ci95, int((paired > 0).sum()), int((paired == 0).sum()), int((paired < 0).sum()))

    @property
    def is_clear(self) -> bool:
        """Whether the interval leaves out zero."""
        return abs(self.points) > self.ci95


def read_test(path: Path) -> Test:
    """The results in a file. Raises UserError where they are not those of a test by run.py, or damaged."""
    results = read_json(path)
    if isinstance(results, dict) and "views" in results:
        raise UserError(
            f"{path} is of run_supervised.py, whose tests scripts/fuse_scores.py compares: expected run.py's"
        )
    if wrong := wrong_in(results):
        raise UserError(
            f"{path} holds no results of run.py ({wrong}): restore it, or test the run again with --test_only"
        )
    return Test(path, results)


def wrong_in(results: Any) -> str | None:
    """What is not as in the results.json of a test, in words."""
    if not isinstance(results, dict):
        return "it is no object"
    sizes = results.get("sizes")
    if not isinstance(sizes, list) or not sizes or not all(isinstance(size, dict) for size in sizes):
        return "it has no 'sizes'"
    percentages = ["accuracy", "class_interval_low", "class_interval_high", "calibration_error"]
    if results.get("tasks") != 1:  # the interval of a single episode is null
        percentages.append("ci95")
    checks = [
        (results, ["split", "dataset", "split_fingerprint", "selected_on"], is_text, "text"),
        (results, ["tasks", "queries_per_class"], is_count, "1 or more"),
    ]
    for content in (results, *sizes):
        checks.append((content, ["episodes"], is_text, "text"))
        checks.append((content, ["way", "shot"], is_count, "1 or more"))
        checks.append((content, percentages, is_percentage, "0 to 100"))
    for content, names, fits, expected in checks:
        for name in names:
            if not fits(content.get(name)):
                return f"'{name}' is {json.dumps(content.get(name))[:40]}, expected {expected}"
    return None


def is_text(value: Any) -> bool:
    return isinstance(value, str)


def is_count(value: Any) -> bool:
    return isinstance(value, int) and value >= 1


def is_percentage(value: Any) -> bool:
    return isinstance(value, (int, float)) and 0 <= value <= 100


def read_run(test: Test, name: str) -> Run:
    """A test with its answers. Raises UserError where they do not belong to its results."""
    results = test.results
    if results["tasks"] < 2:
        raise UserError(f"{test.path} is of one episode, which tells nothing: raise --num_test_tasks")
    answers = read_answers(test.predictions, results["tasks"], results["way"] * results["queries_per_class"])
    accuracies = 100 * answers.right.mean(axis=1)
    if abs(accuracies.mean() - results["accuracy"]) > 1e-6:
        raise UserError(
            f"{test.path} says {results['accuracy']:.4f} %, and of {test.predictions.name} {accuracies.mean():.4f} % are "
            "right: one of them is damaged or of another test; test the run again with --test_only"
        )
    return Run(name, test, answers)


class Answers(NamedTuple):
    """The class of each query of a test, and whether it was recognised, (E, Q) each."""

    true: np.ndarray
    right: np.ndarray


def read_answers(path: Path, tasks: int, queries: int) -> Answers:
    """What predictions.csv holds: `queries` rows a task. Raises UserError where it is damaged or of another test."""
    try:
        rows = [
            (int(row["task"]), row["true"], row["true"] == row["predicted"], float(row["confidence"]))
            for row in read_csv(path, ("task", "true", "predicted", "confidence"))
        ]
        if len(rows) != tasks * queries or any(row[0] != place // queries for place, row in enumerate(rows)):
            raise ValueError(f"expected {queries} rows for each of {tasks} tasks in their order, {len(rows)} are there")
        if not all(is_percentage(100 * confidence) for *_, confidence in rows):
            raise ValueError("expected confidences from 0 to 1")
    except (OSError, ValueError) as error:
        raise UserError(f"could not read {path} ({error}): test the run again with --test_only") from error
    _, true, right, _ = zip(*rows, strict=True)
    return Answers(np.reshape(true, (tasks, queries)), np.reshape(right, (tasks, queries)))
