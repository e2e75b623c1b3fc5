"""What a run left in its folder, for tests of either program."""

from __future__ import annotations

import csv
import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from utils import FINAL, load_checkpoint


def rows(folder: Path, name: str = "log.csv") -> list[dict[str, str]]:
    with open(folder / name, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def results(folder: Path) -> dict[str, Any]:
    """results.json without the versions, which name the commit of this moment."""
    content = json.loads((folder / "results.json").read_text())
    del content["versions"]
    return content


def weights(folder: Path, name: str = FINAL) -> dict[str, torch.Tensor]:
    return load_checkpoint(folder / name)["model"]


def curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """TensorBoard's curves, without times.

    TensorBoard reads a run's files in the order of their names, which within one second is that of the process numbers
    as text: no order at all where these begin anew. Nobody starts a program twice in a second but a test's forks, whose
    files are named here in the order of their last writing."""
    written = sorted((folder / "tensorboard").iterdir(), key=lambda path: path.stat().st_mtime_ns)
    with tempfile.TemporaryDirectory() as in_order:
        for number, path in enumerate(written):
            (Path(in_order) / f"tfevents.{number:04d}").symlink_to(path.resolve())
        board = EventAccumulator(in_order).Reload()
        found = {tag: [(event.step, event.value) for event in board.Scalars(tag)] for tag in board.Tags()["scalars"]}
    return {tag: points for tag, points in found.items() if "seconds" not in tag}


def assert_same_answers(folder: Path, other: Path, *, near: float = 1e-4) -> None:
    """Two tests of run.py whose batches hold other videos together, so that logits differ in their last bits: the same
    queries with confidences that are `near`, and the same answers, but for one at most whose two likeliest classes tie."""
    pairs = list(zip(rows(folder, "predictions.csv"), rows(other, "predictions.csv"), strict=True))
    for row, same in pairs:
        assert [row[name] for name in ("task", "video", "true")] == [same[name] for name in ("task", "video", "true")]
        assert float(row["confidence"]) == pytest.approx(float(same["confidence"]), abs=near)
    ties = [row for row, same in pairs if row["predicted"] != same["predicted"]]
    assert len(ties) <= 1
    assert all(float(row["confidence"]) < 0.5 + near for row in ties)
    share = 100 * len(ties) / len(pairs)
    assert results(folder)["accuracy"] == pytest.approx(results(other)["accuracy"], abs=share + 1e-9)


def live_many_lives(
    killed: Callable[[int, Sequence[Any]], Any], folder: Path, argv: Sequence[Any], workers: Any
) -> None:
    """Goes on with a run in process after process, until one is not `killed` (number of the life, its command line)."""
    lives = 1
    while killed(lives, argv):
        argv = ["-c", folder, "-r", "--num_workers", workers] if (folder / "args.json").exists() else argv
        lives += 1
        assert lives < 30, "it never ends"
    assert lives > 4
