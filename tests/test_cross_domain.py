"""run.py --test_dataset: trained on one data set, tested on the test split of another, and said to be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import Program, tiny_run, write_split
from run_folders import assert_same_answers, results, rows

import run
from utils import FINAL


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of a test split alone."""
    root = tmp_path_factory.mktemp("elsewhere") / "other set"
    write_split(root / "test", ["bend", "crawl", "throw"], videos=4)
    return root


def test_another_set_is_tested_on_and_every_place_says_so(
    dataset: Path, other: Path, tmp_path: Path, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    there, later, home = tmp_path / "there", tmp_path / "later", tmp_path / "home"
    out = program(*tiny_run(dataset, there, "--test_dataset", other, "-m", FINAL))
    mark = f"trained on {dataset.name}"
    assert mark in out
    found = results(there)
    assert (found["dataset"], found["trained_on"], found["marks"]) == (str(other), str(dataset), [mark])
    assert json.loads((there / "args.json").read_text())["test_dataset"] == str(other)
    assert mark in (there / "report.html").read_text()
    assert rows(there, "results.csv")[0]["marks"] == mark
    assert {row["true"] for row in rows(there, "predictions.csv")} <= {"bend", "crawl", "throw"}
    assert {row["split"] for row in rows(there) if row["accuracy"]} == {"train", "val"}

    monkeypatch.setattr(run, "write_report", lambda *_: None)  # one page is enough
    # A later test of the same weights is of its own set again, unless it names the other one.
    program("-c", later, "--test_only", "-m", there / FINAL, "--test_dataset", other)
    assert_same_answers(there, later)
    assert results(later)["marks"] == [mark]
    program("-c", home, "--test_only", "-m", there / FINAL)
    assert (results(home)["dataset"], results(home)["marks"]) == (str(dataset), [])

    untrained = tmp_path / "untrained"
    program(*tiny_run(dataset, untrained, "--test_dataset", other, "-i", 0))
    assert (results(untrained)["trained_on"], results(untrained)["trained_parameters"]) == (None, 0)


def test_a_wrong_one_is_one_sentence_before_anything_is_written(
    dataset: Path, other: Path, tmp_path: Path, program: Program
) -> None:
    folder = tmp_path / "run"
    missing = program.fails(*tiny_run(dataset, folder, "--test_dataset", tmp_path / "nowhere"))
    assert f"no data set at {tmp_path / 'nowhere'}" in missing
    itself = program.fails(*tiny_run(dataset, folder, "--test_dataset", f"{dataset}/."))
    assert "--test_dataset is the --dataset itself" in itself
    few = program.fails(*tiny_run(dataset, folder, "--test_dataset", other, "--way_test", 4))
    assert f"{other}/test has 3 classes" in few
    assert not folder.exists()
