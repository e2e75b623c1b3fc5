"""compare.py: paired numbers against hand computation, its files, what it refuses; plot_log.py beside it."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
from conftest import Program, tiny_run
from PIL import Image
from script_runs import Script, untrained

from results.terminal import WIDTH, shown_width
from scripts import compare, plot_log
from scripts.compare import Difference, latex_table, markdown_table, read_run, short_names


@pytest.fixture
def script(capsys: pytest.CaptureFixture[str]) -> Script:
    return Script(compare.main, capsys)


def write_run(folder: Path, right: list[list[int]], **changes: object) -> Path:
    """A run whose queries were answered right (1) or wrong (0), a list for each episode."""
    folder.mkdir(parents=True)
    accuracies = 100 * np.mean(right, axis=1)
    size = {
        "way": 2, "shot": 1, "accuracy": accuracies.mean(), "ci95": 1.5, "class_interval_low": 1, "class_interval_high": 2,
        "calibration_error": 3, "episodes": "abc",
    }  # fmt: skip
    results = {
        **size, "tasks": len(right), "seed": 0, "queries_per_class": 1, "noisy_support": 0, "split": "test",
        "dataset": "data/small", "split_fingerprint": "def", "sealed_episodes": None, "method": "tsn", "backbone": "conv4",
        "selected_on": "val", "sizes": [size], **changes,
    }  # fmt: skip
    (folder / "results.json").write_text(json.dumps(results))
    rows = [f"{task},v,run,{'run' if hit else 'sit'},0.5" for task, hits in enumerate(right) for hit in hits]
    (folder / "predictions.csv").write_text("\n".join(["task,video,true,predicted,confidence", *rows]) + "\n")
    return folder


@pytest.fixture
def two_runs(tmp_path: Path) -> list[Path]:
    """Episode accuracies 100 50 50 0 and 50 50 0 0."""
    return [
        write_run(tmp_path / "mine", [[1, 1], [1, 0], [0, 1], [0, 0]]),
        write_run(tmp_path / "base", [[1, 0], [0, 1], [0, 0], [0, 0]]),
    ]


def test_difference_agrees_with_hand_computation(two_runs: list[Path]) -> None:
    difference = Difference.between(*(read_run(path, path.name) for path in two_runs))
    assert difference.points == 25  # of 50, 0, 50, 0
    assert difference.ci95 == pytest.approx(1.96 * np.sqrt(2500 / 3) / 2)  # the variance is 4 * 25^2 / 3
    assert (difference.wins, difference.ties, difference.losses) == (2, 2, 0)
    assert not difference.is_clear


def test_table_has_the_best_run_first_and_differences_from_the_first_named(
    two_runs: list[Path], script: Script
) -> None:
    lines = script(two_runs[1], two_runs[0]).splitlines()
    assert lines[0] == "2-way 1-shot, 4 episodes of small/test, chance 50 %"
    assert lines[2].split() == ["run", "accuracy,", "%", "minus", "base", "win", "/", "tie", "/", "loss"]
    assert lines[4].split() == ["mine", "50.00", "±", "1.50", "+25.00", "±", "28.29", "2", "/", "2", "/", "0"]
    assert lines[5].split() == ["base", "25.00", "±", "1.50"]
    against_mine = script(*two_runs).splitlines()
    assert against_mine[5].split()[4:] == ["−25.00", "±", "28.29", "0", "/", "2", "/", "2"]
    assert script(two_runs[1], two_runs[0], "--against", two_runs[0]).splitlines()[4:6] == against_mine[4:6]


def test_star_marks_intervals_without_zero(tmp_path: Path, script: Script) -> None:
    better = write_run(tmp_path / "better", [[1, 1], [1, 1], [1, 0]])
    worse = write_run(tmp_path / "worse", [[0, 0], [0, 1], [0, 0]])
    assert re.search(r"\+66\.67 ± 32\.67 \*", script(worse, better))


def test_a_run_chosen_on_test_is_marked(tmp_path: Path, script: Script) -> None:
    runs = [write_run(tmp_path / name, [[1], [0]], selected_on=on) for name, on in (("a", "val"), ("b", "test"))]
    out = script(*runs)
    assert "b †" in out
    assert "a †" not in out
    assert "† checkpoint chosen on the test split" in out


@pytest.mark.parametrize("key", ["episodes", "split_fingerprint"])
def test_other_episodes_are_refused_by_name(tmp_path: Path, script: Script, key: str) -> None:
    first, same = (write_run(tmp_path / name, [[1], [0]]) for name in ("first", "same"))
    other = write_run(tmp_path / "other", [[1], [0]], seed=5, **{key: "xyz"})
    sentence = script.fails(first, same, other)
    assert "other was not tested on the episodes of first: " in sentence
    assert "seed is 0 and 5 (--seed)" in sentence
    assert "--episodes FILE" in sentence
    assert "same was" not in sentence


def test_what_is_no_tested_run_is_refused(tmp_path: Path, two_runs: list[Path], script: Script) -> None:
    assert "holds no results.json" in script.fails(tmp_path, two_runs[0])
    assert "two or more" in script.fails(two_runs[0])
    assert "named twice" in script.fails(two_runs[0], two_runs[0])
    single = write_run(tmp_path / "single", [[1]])
    assert "one episode" in script.fails(single, single)[:200] or "named twice" in script.fails(single, single)
    (two_runs[0] / "predictions.csv").write_text("task,video\n0,v\n")
    assert "--test_only" in script.fails(*two_runs)


def test_names_are_as_short_as_tells_them_apart() -> None:
    assert short_names([Path("/r/a"), Path("/r/b")]) == ["a", "b"]
    assert short_names([Path("/r/a/x"), Path("/r/b/x")]) == ["a/x", "b/x"]


def test_files_hold_the_same_numbers(tmp_path: Path, two_runs: list[Path], script: Script) -> None:
    script(two_runs[1], two_runs[0], "--out", tmp_path / "out")
    markdown = (tmp_path / "out" / "comparison.md").read_text(encoding="utf-8")
    assert "| mine | 50.00 ± 1.50 | +25.00 ± 28.29 | 2 / 2 / 0 |" in markdown
    tex = (tmp_path / "out" / "comparison.tex").read_text(encoding="utf-8")
    assert r"mine & 50.00 $\pm$ 1.50 & +25.00 $\pm$ 28.29 & 2 / 2 / 0 \\" in tex
    assert tex.isascii() or tex.partition("\n")[2].isascii()  # but for the comment in its first line
    with open(tmp_path / "out" / "differences.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["run"], row["minus"], float(row["points"]), row["losses"]) == ("base", "mine", -25.0, "2")
    with open(tmp_path / "out" / "comparison.csv", newline="") as file:
        assert [float(row["accuracy"]) for row in csv.DictReader(file)] == [25.0, 50.0]
    with Image.open(tmp_path / "out" / "comparison.png") as picture:
        assert picture.width > 1000
        assert np.asarray(picture.convert("RGB")).std() > 10


def test_special_letters_are_escaped() -> None:
    table = [["run", "a|b"], ["my_run 50%", "1 *"]]
    assert markdown_table(table).splitlines()[0] == "| run | a\\|b |"
    assert r"my\_run 50\% & 1 * \\" in latex_table(table)


def test_real_runs_are_compared_at_every_size_in_80_columns(dataset: Path, tmp_path: Path, script: Script) -> None:
    flags = ("--num_test_tasks", 6, "--way_test", 2, 3, "--shot_test", 1, 2, 3)
    runs = [untrained(dataset, tmp_path / method, method, *flags) for method in ("tsn", "diag")]
    out = script(*runs)
    assert max(map(shown_width, out.splitlines())) <= WIDTH
    for size in ("2-way 1-shot", "2-way 3-shot", "3-way 3-shot"):
        assert size in out
    sizes = json.loads((runs[1] / "results.json").read_text())["sizes"]
    assert f"{sizes[-1]['accuracy']:.2f} ± {sizes[-1]['ci95']:.2f}" in out
    other = untrained(dataset, tmp_path / "other", "tsn", *flags, "--seed", 1)
    assert "seed is 0 and 1" in script.fails(*runs, other)


def test_training_curves_are_drawn(
    dataset: Path, tmp_path: Path, program: Program, capsys: pytest.CaptureFixture[str]
) -> None:
    program(*tiny_run(dataset, tmp_path / "run"))
    curves = plot_log.read_log(tmp_path / "run")
    assert curves.training[:, 0].tolist() == [2, 4]
    assert curves.validation[:, 0].tolist() == [2, 4]
    script = Script(plot_log.main, capsys)
    script(tmp_path / "run", "-o", tmp_path / "curves.png", "--smooth", 2)
    with Image.open(tmp_path / "curves.png") as picture:
        pixels = np.asarray(picture.convert("RGB"))
    assert (pixels == (0x3B, 0x76, 0xD1)).all(axis=-1).any()  # the run's line
    assert "no_such" in script.fails(tmp_path / "no_such")
    assert "--out" in script.fails(tmp_path / "run", "-o", tmp_path / "curves.bmp")


def test_running_mean_is_over_the_rows_before() -> None:
    assert plot_log.running_mean(np.array([1.0, 3.0, 5.0, 7.0]), 2).tolist() == [1.0, 2.0, 4.0, 6.0]
    assert plot_log.running_mean(np.array([1.0, 3.0]), 1).tolist() == [1.0, 3.0]
