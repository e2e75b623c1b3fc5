"""What the tests of scripts share: calling one as the shell would, and runs for it to read."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from conftest import tiny_run

import run


class Script:
    """Calls a script's main and keeps what it printed."""

    def __init__(self, main: Callable[[Sequence[str]], int], capture: pytest.CaptureFixture[str]) -> None:
        self._main, self._capture = main, capture

    def __call__(self, *argv: object) -> str:
        """What a script that succeeds prints, which must be nothing on stderr."""
        code, out, err = self._call(argv)
        assert (code, err) == (0, "")
        return out

    def fails(self, *argv: object) -> str:
        """The one sentence of a script that is used wrongly."""
        code, _, err = self._call(argv)
        assert code == 2
        assert err.startswith("error: ")
        assert err.count("\n") == 1
        return err

    def _call(self, argv: Sequence[object]) -> tuple[int, str, str]:
        self._capture.readouterr()
        code = self._main([str(word) for word in argv])
        return code, *self._capture.readouterr()


def untrained(dataset: Path, folder: Path, method: str, *flags: object) -> Path:
    """A run that tests a method as it is initialised; returns its folder."""
    assert run.main(tiny_run(dataset, folder, "-i", 0, "--method", method, *flags)) == 0
    return folder


def write_run(folder: Path, right: list[list[int]], number: int | None = None, **changes: object) -> Path:
    """A run whose queries were answered right (1) or wrong (0), a list for each episode, two classes in each."""
    folder.mkdir(parents=True)
    return write_test(folder, right, number, **changes)


def write_test(folder: Path, right: list[list[int]], number: int | None = None, **changes: object) -> Path:
    """A test in its run folder: of several the one with this number, or the latest."""
    accuracies = 100 * np.mean(right, axis=1)
    size = {
        "way": 2, "shot": 1, "accuracy": accuracies.mean(), "ci95": 1.5, "class_interval_low": 1, "class_interval_high": 2,
        "calibration_error": 3, "episodes": changes.pop("episodes", "abc"),
    }  # fmt: skip
    results = {
        **size, "tasks": len(right), "seed": 0, "queries_per_class": len(right[0]) // 2, "noisy_support": 0, "split": "test",
        "dataset": "data/small", "split_fingerprint": "def", "sealed_episodes": None, "method": "tsn", "backbone": "conv4",
        "selected_on": "val", "sizes": [size], **changes,
    }  # fmt: skip
    suffix = "" if number is None else f"_{number}"
    (folder / f"results{suffix}.json").write_text(json.dumps(results))
    rows = [f"{task},v,run,{'run' if hit else 'sit'},0.5" for task, hits in enumerate(right) for hit in hits]
    (folder / f"predictions{suffix}.csv").write_text("\n".join(["task,video,true,predicted,confidence", *rows]) + "\n")
    return folder
