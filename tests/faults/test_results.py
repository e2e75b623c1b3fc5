"""Results, logs and scores that are cut, empty, foreign or changed: one sentence by each program that reads them, and never
a number of what is left of them."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Program, tiny_run
from run_folders import rows
from script_runs import Script, write_run

from results.view_scores import ViewScores
from scripts import compare, fuse_scores, plot_log
from utils import LOG_COLUMNS, RunFolder, UserError, read_json

RIGHT = [[1, 1], [1, 0], [0, 1]]
ZIP_END = 22  # bytes of the record at the end of an archive


def changed(**changes: Any) -> Callable[[bytes], bytes]:
    """results.json with other values."""
    return lambda content: json.dumps({**json.loads(content), **changes}).encode()


def size_changed(**changes: Any) -> Callable[[bytes], bytes]:
    def change(content: bytes) -> bytes:
        results = json.loads(content)
        return json.dumps({**results, "sizes": [{**results["sizes"][0], **changes}]}).encode()

    return change


# ---------------------------------------------------------------------------------------------------------------------
# compare


@pytest.fixture
def comparison(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[[], str]:
    """The sentence that refuses to compare a run with another one, which are called "damaged" and "whole"."""
    runs = [write_run(tmp_path / name, RIGHT) for name in ("damaged", "whole")]
    script = Script(compare.main, capsys)
    script(*runs)
    return lambda: script.fails(*runs)


RESULTS = {
    "empty": (lambda content: b"", "as JSON"),
    "a list": (lambda content: b"[]", "it is no object"),
    "an object": (lambda content: b"{}", "it has no 'sizes'"),
    "a tower of brackets": (lambda content: b"[" * 100_000, "as JSON"),
    "no text": (lambda content: bytes(range(256)), "as JSON"),
    "of the other program": (changed(views=3), "is of run_supervised.py"),
    "no accuracy": (changed(accuracy=None), "'accuracy' is null, expected 0 to 100"),
    "NaN": (changed(accuracy=float("nan")), "'accuracy' is NaN"),
    "infinite": (changed(ci95=float("inf")), "'ci95' is Infinity"),
    "a word": (changed(accuracy="50"), "'accuracy' is \"50\""),
    "above 100": (changed(accuracy=101), "'accuracy' is 101"),
    "no way": (changed(way=0), "'way' is 0, expected 1 or more"),
    "half a task": (changed(tasks=2.5), "'tasks' is 2.5"),
    "another number of tasks": (changed(tasks=4), "expected 2 rows for each of 4 tasks"),
    "very many tasks": (changed(tasks=10**400), "expected 2 rows for each of 1000"),
    "no fingerprint": (changed(episodes=None), "'episodes' is null, expected text"),
    "no sizes": (changed(sizes=[]), "it has no 'sizes'"),
    "sizes of another kind": (changed(sizes=[1]), "it has no 'sizes'"),
    "a size without numbers": (changed(sizes=[{}]), "'episodes' is null"),
    "a size with NaN": (size_changed(class_interval_low=float("nan")), "'class_interval_low' is NaN"),
    "another accuracy": (changed(accuracy=60.0), "says 60.0000 %, and of predictions.csv 66.6667 % are right"),
}
PREDICTIONS = {
    "empty": (lambda content: b"", "its first line is ''"),
    "another table": (lambda content: b"a,b\n1,2\n", "its first line is 'a,b', expected columns task, true"),
    "a task less": (lambda content: content[: content.index(b"2,v")], "of 3 tasks in their order, 4 are there"),
    "rows in another order": (lambda content: content.replace(b"\n1,v", b"\n2,v"), "in their order, 6 are there"),
    "a huge task": (lambda content: content.replace(b"\n2,v", b"\n99999999999999,v"), "in their order"),
    "a task that is a word": (lambda content: content.replace(b"\n2,v", b"\nx,v"), "invalid literal"),
    "NaN": (lambda content: content.replace(b",0.5", b",nan"), "expected confidences from 0 to 1"),
    "more cells": (lambda content: content.replace(b"run,0.5", b"run,0.5,1"), "has more than 5 cells"),
    "other answers": (
        lambda content: content.replace(b"run,sit", b"run,run"),
        "says 66.6667 %, and of predictions.csv 100.",
    ),
    "no text": (lambda content: b"task,video,true,predicted,confidence\n\x00\xff\n", "could not read"),
}


@pytest.mark.parametrize("damage", RESULTS)
def test_damaged_results_are_not_compared(damage: str, comparison: Callable[[], str], tmp_path: Path) -> None:
    change, expected = RESULTS[damage]
    path = tmp_path / "damaged" / "results.json"
    path.write_bytes(change(path.read_bytes()))
    sentence = comparison()
    assert str(path.parent) in sentence
    assert expected in sentence


@pytest.mark.parametrize("damage", PREDICTIONS)
def test_damaged_predictions_are_not_compared(damage: str, comparison: Callable[[], str], tmp_path: Path) -> None:
    change, expected = PREDICTIONS[damage]
    path = tmp_path / "damaged" / "predictions.csv"
    path.write_bytes(change(path.read_bytes()))
    sentence = comparison()
    assert str(path.parent) in sentence
    assert expected in sentence


@pytest.mark.parametrize("name", ["results.json", "predictions.csv"])
def test_a_file_that_is_cut_anywhere_is_not_compared(name: str, comparison: Callable[[], str], tmp_path: Path) -> None:
    path = tmp_path / "damaged" / name
    content = path.read_bytes()
    for length in range(0, len(content.rstrip()), 7):
        path.write_bytes(content[:length])
        assert str(path) in comparison(), length


@pytest.mark.parametrize("name", ["results.json", "predictions.csv"])
def test_a_file_that_is_gone_or_a_folder_is_named(name: str, comparison: Callable[[], str], tmp_path: Path) -> None:
    path = tmp_path / "damaged" / name
    path.unlink()
    assert "damaged" in comparison()
    path.mkdir()
    assert "damaged" in comparison()


def test_names_that_lead_nowhere_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loop, whole = tmp_path / "loop", write_run(tmp_path / "whole", RIGHT)
    loop.symlink_to(loop)
    scripts = [Script(main, capsys) for main in (compare.main, plot_log.main, fuse_scores.main)]
    for name in (loop, tmp_path / ("x" * 300), whole / "results.json" / "more"):
        for script in scripts:
            script.fails(name, whole)
            script.fails(name)


# ---------------------------------------------------------------------------------------------------------------------
# plot_log

LOG = ",".join(LOG_COLUMNS) + "\r\n2,train,1.5,50.0,,0.001\r\n2,val,,50.0,12.5,\r\n4,train,1.25,75.0,,0.001\r\n"
LOGS = {
    "empty": (b"", "its first line is ''"),
    "only a header": (LOG.partition("\r\n")[0].encode() + b"\r\n", "has no row yet"),
    "without a header": (LOG.partition("\r\n")[2].encode(), "its first line is '2,train,1.5,50.0,,0.001'"),
    "of the other program": (
        b"steps,epoch,split,loss,accuracy,top5,learning_rate\n",
        "its first line is 'steps,epoch,",
    ),
    "NaN": (LOG.replace("1.25", "nan").encode(), "loss is 'nan' after 4 tasks, expected a number"),
    "infinite": (LOG.replace("75.0", "inf").encode(), "accuracy is 'inf' after 4 tasks"),
    "a word": (LOG.replace("1.25", "low").encode(), "loss is 'low'"),
    "a cell less": (
        LOG.replace(",,0.001\r\n4", ",0.001\r\n4").replace("4,train,1.25,", "4,train,").encode(),
        "after 4 tasks",
    ),
    "another split": (LOG.replace("val", "night").encode(), "there is no split night"),
    "no text": (LOG.encode() + bytes(range(256)), "could not read"),
}


@pytest.mark.parametrize("damage", LOGS)
def test_damaged_logs_are_not_drawn(damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content, expected = LOGS[damage]
    (tmp_path / "log.csv").write_bytes(content)
    sentence = Script(plot_log.main, capsys).fails(tmp_path, "-o", tmp_path / "x.png")
    assert f"{tmp_path / 'log.csv'}" in sentence
    assert expected in sentence
    assert not (tmp_path / "x.png").exists()


def test_a_log_that_is_cut_is_drawn_only_between_its_lines(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text(LOG, newline="")
    whole = plot_log.read_log(tmp_path)
    for length in range(len(LOG)):
        (tmp_path / "log.csv").write_text(LOG[:length], newline="")
        if LOG[:length].endswith("\n") and length > len(LOG.partition("\n")[0]) + 1:
            left = plot_log.read_log(tmp_path)
            assert left.training.tolist() == whole.training.tolist()[: len(left.training)]
        else:
            with pytest.raises(UserError, match=r"log\.csv"):
                plot_log.read_log(tmp_path)


@pytest.mark.parametrize("settings", ["", "[1]", "{"])
def test_damaged_settings_are_named(settings: str, tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text(LOG, newline="")
    (tmp_path / "args.json").write_text(settings)
    with pytest.raises(UserError, match=r"args\.json"):
        plot_log.read_log(tmp_path)


def test_a_validation_of_one_episode_has_no_bar(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "log.csv").write_text(LOG.replace("12.5", "inf"), newline="")
    Script(plot_log.main, capsys)(tmp_path, "-o", tmp_path / "x.png")


# ---------------------------------------------------------------------------------------------------------------------
# fuse_scores

SCORES = ViewScores(
    videos=["a", "b", "c"], classes=["run", "sit"], labels=np.array([[0], [1], [1]]),
    logits=np.arange(12, dtype=np.float32).reshape(3, 2, 2), protocol="in a test", num_crops=1, num_clips=2, marks=["bf16"],
)  # fmt: skip


def with_logit(value: float) -> np.ndarray:
    logits = SCORES.logits.copy()
    logits[1, 0, 0] = value
    return logits


CONTENTS = {
    "NaN": ({"logits": with_logit(np.nan)}, "a logit of 'b' is infinite or not a number"),
    "infinite": ({"logits": with_logit(np.inf)}, "a logit of 'b' is infinite or not a number"),
    "whole numbers": ({"logits": SCORES.logits.astype(int)}, "logits are of type int64"),
    "another shape": ({"logits": SCORES.logits[:, :1]}, r"logits are (3, 1, 2), expected (3, 2, 2)"),
    "no videos": (
        {"videos": np.array([], dtype=str), "labels": SCORES.labels[:0], "logits": SCORES.logits[:0]}, "which are none"
    ),
    "no views": ({"logits": SCORES.logits[:, :0], "num_clips": np.array(0)}, "which are none"),
    "a label of no class": ({"labels": np.array([[0], [2], [1]])}, "labels are 0 to 2, of 2 classes"),
    "a negative label": ({"labels": np.array([[0], [-2], [1]])}, "labels are -2 to 1"),
    "flat labels": ({"labels": SCORES.labels[:, 0]}, "expected a row of integers for each video"),
    "too few labels": ({"labels": SCORES.labels[:2]}, "expected a row of integers for each video"),
    "labels with a comma": ({"labels": SCORES.labels.astype(float)}, "expected a row of integers for each video"),
    "names that are numbers": ({"videos": np.arange(3)}, "names of videos and classes are no list of texts"),
    "objects": ({"videos": np.array(["a", None, "c"], dtype=object)}, "Object arrays cannot be loaded"),
    "one name for all": ({"videos": np.array("abc")}, "names of videos and classes are no list of texts"),
}  # fmt: skip


def refused(path: Path) -> str:
    with pytest.raises(UserError, match=r"could not read scores from .*scores\.npz") as error:
        ViewScores.load(path)
    return str(error.value)


@pytest.fixture
def scores_file(tmp_path: Path) -> Path:
    SCORES.save(tmp_path / "scores.npz")
    return tmp_path / "scores.npz"


@pytest.mark.parametrize("damage", CONTENTS)
def test_scores_that_no_test_leaves_are_refused(
    damage: str, scores_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change, expected = CONTENTS[damage]
    with np.load(scores_file) as file:
        content = dict(file)
    np.savez(scores_file, **{**content, **change})
    assert expected in Script(fuse_scores.main, capsys).fails(scores_file)


def test_scores_that_are_cut_anywhere_are_refused(scores_file: Path) -> None:
    content = scores_file.read_bytes()
    for length in [*range(0, len(content), 23), *range(len(content) - ZIP_END, len(content))]:
        scores_file.write_bytes(content[:length])
        refused(scores_file)


def test_scores_with_a_changed_byte_are_refused_or_are_the_same(scores_file: Path) -> None:
    """Headers of an archive have bytes that say nothing; whatever is said is under a checksum."""
    content = scores_file.read_bytes()
    refusals = 0
    for place in range(0, len(content), 5):
        scores_file.write_bytes(content[:place] + bytes([content[place] ^ 0x41]) + content[place + 1 :])
        try:
            found = ViewScores.load(scores_file)
        except UserError:
            refusals += 1
            continue
        for name, value in dataclasses.asdict(SCORES).items():
            if name != "marks":  # its name in the archive was changed: as that of an old file
                np.testing.assert_array_equal(getattr(found, name), value)
    assert refusals > 100


def test_other_files_are_no_scores(scores_file: Path) -> None:
    for content in (b"", b"no scores", b"\x93NUMPY", b"PK\x03\x04", os.urandom(500)):
        scores_file.write_bytes(content)
        refused(scores_file)
    with open(scores_file, "wb") as file:
        np.save(file, SCORES.logits)
    refused(scores_file)
    with open(scores_file, "wb") as file:
        np.savez(file, other=SCORES.logits)
    refused(scores_file)


# ---------------------------------------------------------------------------------------------------------------------
# log.csv of a run that goes on


def test_a_log_that_is_gone_comes_back_with_its_header(dataset: Path, tmp_path: Path, program: Program) -> None:
    program(*tiny_run(dataset, tmp_path / "run"))
    expected = rows(tmp_path / "run")
    (tmp_path / "run" / "log.csv").unlink()
    out = program("-c", tmp_path / "run", "-r", "-i", 8, "--num_workers", 0)
    assert "warning: log.csv is gone or was cut: rows of before this resume are lost" in out
    found = rows(tmp_path / "run")
    assert [row["tasks"] for row in found] == ["6", "8"]
    assert found[0].keys() == expected[0].keys()


HEADER = ",".join(LOG_COLUMNS) + "\r\n"


@pytest.fixture
def run_folder(tmp_path: Path) -> RunFolder:
    """Three rows in its log.csv."""
    run = RunFolder(tmp_path / "run")
    run.start({}, [])
    for tasks in (2, 4, 6):
        run.row(tasks=tasks, split="train")
    run.close()
    return run


def test_a_log_that_vanishes_under_a_run_begins_with_its_header(run_folder: RunFolder) -> None:
    (run_folder.path / "log.csv").unlink()
    assert run_folder.rows_size() == 0
    run_folder.row(tasks=8, split="train")
    assert [row["tasks"] for row in rows(run_folder.path)] == ["8"]


@pytest.mark.parametrize(
    ("cut", "left"), [(0, []), (3, []), (len(HEADER), []), (len(HEADER) + 16, ["2"]), (-1, ["2", "4"])]
)
def test_of_a_log_that_was_cut_whole_rows_stay(run_folder: RunFolder, cut: int, left: list[str]) -> None:
    path = run_folder.path / "log.csv"
    size, content = run_folder.rows_size(), path.read_bytes()
    path.write_bytes(content[:cut])
    run_folder.rewind_rows(size)
    assert path.read_bytes().startswith(HEADER.encode())
    assert [row["tasks"] for row in rows(run_folder.path)] == left
    assert "warning: log.csv is gone or was cut" in (run_folder.path / "log.txt").read_text()
    run_folder.row(tasks=8, split="train")
    assert [row["tasks"] for row in rows(run_folder.path)] == [*left, "8"]


def test_a_log_without_its_header_is_kept_under_another_name(run_folder: RunFolder) -> None:
    path = run_folder.path / "log.csv"
    foreign = path.read_bytes().partition(b"\n")[2]
    path.write_bytes(foreign)
    run_folder.rewind_rows(len(foreign))
    assert path.read_bytes() == HEADER.encode()
    assert path.with_name("log_1.csv").read_bytes() == foreign


def test_an_unharmed_log_is_cut_back_without_a_word(run_folder: RunFolder) -> None:
    size = run_folder.rows_size()
    content = (run_folder.path / "log.csv").read_bytes()
    run_folder.row(tasks=8, split="train")
    run_folder.rewind_rows(size)
    assert (run_folder.path / "log.csv").read_bytes() == content
    assert "warning" not in (run_folder.path / "log.txt").read_text()


def test_results_are_read_again_after_they_were_written(dataset: Path, tmp_path: Path, program: Program) -> None:
    """A test that was damaged is done again, and its marks and numbers are the same."""
    program(*tiny_run(dataset, tmp_path / "run"))
    path = tmp_path / "run" / "results.json"
    expected = read_json(path)
    path.write_text('{"accuracy": ')
    out = program("-c", tmp_path / "run", "-r", "--num_workers", 0)
    assert "the test is done again" in out
    assert read_json(path) == expected
