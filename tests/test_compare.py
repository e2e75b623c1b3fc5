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
from script_runs import Script, untrained, write_run, write_test

from results.runs import Difference, read_run, read_test
from results.tables import latex_table, markdown_table
from results.terminal import WIDTH, shown_width
from scripts import compare, plot_log
from scripts.compare import short_names


@pytest.fixture
def script(capsys: pytest.CaptureFixture[str]) -> Script:
    return Script(compare.main, capsys)


@pytest.fixture
def two_runs(tmp_path: Path) -> list[Path]:
    """Episode accuracies 100 50 50 0 and 50 50 0 0."""
    return [
        write_run(tmp_path / "mine", [[1, 1], [1, 0], [0, 1], [0, 0]]),
        write_run(tmp_path / "base", [[1, 0], [0, 1], [0, 0], [0, 0]]),
    ]


def test_difference_agrees_with_hand_computation(two_runs: list[Path]) -> None:
    difference = Difference.between(*(read_run(read_test(path / "results.json"), path.name) for path in two_runs))
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


RIGHT = [[1, 1], [0, 0]]


def test_marks_of_one_run_stand_by_its_name_and_those_of_all_by_the_conditions(tmp_path: Path, script: Script) -> None:
    changes = {"a": {"selected_on": "val"}, "b": {"selected_on": "test", "checkpoint_tasks": 0}}
    runs = [write_run(tmp_path / name, RIGHT, noisy_support=1, **changes[name]) for name in changes]
    out = script(*runs, "--out", tmp_path / "out")
    lines = out.splitlines()
    assert lines[0] == "2-way 1-shot, 2 episodes of small/test, chance 50 %; all: 1 noisy shot"
    assert {line.partition("  ")[0] for line in lines[4:6]} == {"a", "b (chosen on test, untrained)"}
    assert "chosen on test: the checkpoint is the best on the test split, comparable with nothing" in lines
    for name in ("comparison.md", "comparison.tex"):
        text = (tmp_path / "out" / name).read_text(encoding="utf-8")
        assert "b (chosen on test, untrained)" in text
        assert "all: 1 noisy shot" in "".join(line for line in text.splitlines() if line[:1] != "%"), "no comment"
    rows = list(csv.DictReader((tmp_path / "out" / "comparison.csv").read_text(encoding="utf-8").splitlines()))
    assert [row["marks"] for row in rows] == ["1 noisy shot", "1 noisy shot; chosen on test; untrained"]
    assert [row["noisy_support"] for row in rows] == ["1", "1"]
    (pair,) = csv.DictReader((tmp_path / "out" / "differences.csv").read_text(encoding="utf-8").splitlines())
    assert (pair["tasks"], pair["marks"]) == ("2", "1 noisy shot")
    assert pair["marks_of_minus"] == "1 noisy shot; chosen on test; untrained"


def test_the_picture_says_the_marks(tmp_path: Path, two_runs: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written into it, since pixels are hard to read."""
    noisy = [
        write_run(tmp_path / name, RIGHT, noisy_support=1, selected_on=on) for name, on in (("a", "val"), ("b", "test"))
    ]
    runs = [read_run(read_test(path / "results.json"), path.name) for path in noisy]
    figures = []
    monkeypatch.setattr(compare, "save_picture", lambda figure, path: figures.append(figure))
    compare.draw_comparison(runs, runs[0], tmp_path / "x.png")
    (figure,) = figures
    assert sorted(label.get_text() for label in figure.axes[0].get_yticklabels()) == ["a", "b\n(chosen on test)"]
    assert "2 episodes of small/test, chance 50 %; all: 1 noisy shot" in figure.get_supxlabel()


# ---------------------------------------------------------------------------------------------------------------------
# Which test of a run


@pytest.fixture
def retested(tmp_path: Path) -> Path:
    """A run tested on clean episodes, then on noisy ones."""
    folder = write_run(tmp_path / "retested", [[1, 1], [1, 1]], number=1)
    return write_test(folder, [[0, 0], [1, 1]], noisy_support=1, episodes="noisy")


def test_the_test_that_fits_the_others_is_taken(tmp_path: Path, retested: Path, script: Script) -> None:
    clean, noisy = (
        write_run(tmp_path / "clean", RIGHT),
        write_run(tmp_path / "noisy", RIGHT, noisy_support=1, episodes="noisy"),
    )
    out = script(clean, retested)
    assert re.search(r"retested +100\.00", out)
    assert "noisy" not in out.partition("retested has 2 tests")[0]
    assert "retested has 2 tests, this is results_1.json (2-way 1-shot, 2 tasks, " in out
    out = script(noisy, retested)
    assert re.search(r"retested +50\.00", out)
    assert "all: 1 noisy shot" in out
    assert "retested has 2 tests, this is results.json (2-way 1-shot, 2 tasks, 1 noisy shot" in out
    assert "tests, this is" not in script(noisy, retested / "results.json")


def test_a_test_is_chosen_by_its_file(tmp_path: Path, retested: Path, script: Script) -> None:
    noisy = write_run(tmp_path / "noisy", RIGHT, noisy_support=1, episodes="noisy")
    sentence = script.fails(noisy, retested / "results_1.json")
    assert "retested was not tested on the episodes of noisy: noisy_support is 1 and 0 (--noisy_support)" in sentence
    both = [retested / "results_1.json", write_test(retested, RIGHT, number=2) / "results_2.json"]
    out = script(*both)
    assert [line.split()[:2] for line in out.splitlines()[4:6]] == [
        ["results_1.json", "100.00"],
        ["results_2.json", "50.00"],
    ]


def test_several_tests_that_fit_are_refused_with_their_names(tmp_path: Path, retested: Path, script: Script) -> None:
    write_test(retested, [[1, 1], [0, 0]], number=2, checkpoint="checkpoint_final.pt", precision="bf16")
    clean = write_run(tmp_path / "clean", RIGHT)
    sentence = script.fails(clean, retested)
    assert "retested has 2 that fit those of the others: results_2.json (2-way 1-shot, 2 tasks, bf16, " in sentence
    assert "checkpoint_final.pt), results_1.json (" in sentence
    assert f"name one instead of the folder, as {retested / 'results_2.json'}" in sentence
    assert re.search(r"retested +100\.00", script(clean, retested / "results_1.json"))


def test_the_tenth_test_is_later_than_the_ninth(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", RIGHT)
    for number in (10, 9, 1):
        write_test(folder, RIGHT, number=number)
    (folder / "results_old.json").write_text("mine")
    names = [file.name for file in compare.files_of(folder)]
    assert names == ["results.json", "results_10.json", "results_9.json", "results_1.json"]


def test_where_no_test_fits_the_latest_are_told_apart(tmp_path: Path, retested: Path, script: Script) -> None:
    other = write_run(tmp_path / "other", RIGHT, seed=3, episodes="xyz")
    assert "seed is 3 and 0 (--seed); noisy_support is 0 and 1" in script.fails(other, retested)


@pytest.mark.parametrize("key", ["episodes", "split_fingerprint"])
def test_other_episodes_are_refused_by_name(tmp_path: Path, script: Script, key: str) -> None:
    first, same = (write_run(tmp_path / name, RIGHT) for name in ("first", "same"))
    other = write_run(tmp_path / "other", RIGHT, seed=5, **{key: "xyz"})
    sentence = script.fails(first, same, other)
    assert "other was not tested on the episodes of first: " in sentence
    assert "seed is 0 and 5 (--seed)" in sentence
    assert "--episodes FILE" in sentence
    assert "same was" not in sentence


def test_what_is_no_tested_run_is_refused(tmp_path: Path, two_runs: list[Path], script: Script) -> None:
    assert "holds no results.json" in script.fails(tmp_path, two_runs[0])
    assert "two or more" in script.fails(two_runs[0])
    assert "named twice" in script.fails(two_runs[0], two_runs[0])
    single = write_run(tmp_path / "single", [[1, 1]])
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
    assert r"\multicolumn{4}{l}{\footnotesize 2-way 1-shot, 4 episodes of small/test, chance 50 \%} \\" in tex
    assert tex.isascii()
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


def test_curves_say_how_they_were_validated(
    dataset: Path, tmp_path: Path, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ("--val_on_test", "--noisy_support", 1, "--shot_test", 2, "--num_val_tasks", 1, "--num_test_tasks", 2)
    program(*tiny_run(dataset, tmp_path / "marked", *flags))
    program(*tiny_run(dataset, tmp_path / "plain"))
    figures = []
    monkeypatch.setattr(plot_log, "save_picture", lambda figure, path: figures.append(figure))
    for runs in (["marked"], ["plain"], ["marked", "plain"]):
        plot_log.draw_curves([tmp_path / name for name in runs], 1, tmp_path / "x.png")
    marked, plain, both = (
        [[text.get_text() for text in legend.get_texts()] for legend in (*figure.legends, figure.axes[1].get_legend())]
        for figure in figures
    )
    assert marked == [
        ["marked (1 noisy shot, chosen on test)"],
        ["training", "validation on 1 episodes, 95 % interval"],
    ]
    assert plain == [["training", "validation on 2 episodes, 95 % interval"]]
    assert both[0] == ["marked (1 noisy shot, chosen on test)", "plain"]
    assert both[1][1] == "validation on 1 to 2 episodes, 95 % interval"


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
