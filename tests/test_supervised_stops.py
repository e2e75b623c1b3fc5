"""A supervised run that is stopped at any moment, or shared by processes, ends as one that had neither."""

from __future__ import annotations

import os
import shlex
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from jobs import ROOT, as_one_job, finish, free_port, in_a_fork, learnt, nth, quietly, signalled_when
from run_folders import curves, live_many_lives, results, rows
from supervised_runs import supervised_run

import run_supervised
from engine.command_line import TERMINATED
from engine.processes import Processes
from engine.row_store import RowStore
from engine.view_calls import ViewCalls
from results.view_scores import ViewScores
from run_supervised import Trainer
from utils import BEST, FINAL, LATEST, RunFolder, load_checkpoint

# Dropout, mixed clips, an optimiser with a memory, rates that change with every step, saves beside the ends of epochs, and
# six views of each test video in calls of four, so that a validation takes two calls and a test eighteen.
LONG = shlex.split(
    "--mixup 0.4 --layer_rates tsm_fc5 --clip_gradient 1 --warmup_epochs 1 --lr_type cosine --save_freq 2 --num_clips 2 "
    "--num_crops 3 --views_per_call 4"
)
CASES = {
    "no workers": [*LONG, "--num_workers", 0],
    "a worker, frozen norms": [*LONG, "--bn", "partial", "--clips_per_call", 3, "--num_workers", 1],
}
MOMENTS = [
    (os, "fsync"), (os, "replace"), (RunFolder, "log"), (RunFolder, "row"), (RunFolder, "retire"), (RowStore, "write"),
    (RowStore, "close"), (Trainer, "train_call"), (ViewCalls, "logits_of"), (Processes, "gather"),
]  # fmt: skip


def outcome(folder: Path) -> dict[str, Any]:
    """All that must not depend on whether the run was stopped."""
    scores = ViewScores.load(folder / "scores.npz")
    return {
        "results.json": results(folder),
        "curves": curves(folder),
        "scores.npz": (scores.videos, scores.logits.tobytes()),
        **{name: (folder / name).read_bytes() for name in ("log.csv", "predictions.csv")},
        **{name: learnt(folder / name) for name in (LATEST, BEST, FINAL)},
    }


def assert_as_if_never_stopped(folder: Path, unbroken: dict[str, Any]) -> None:
    found = outcome(folder)
    assert [name for name in unbroken if found[name] != unbroken[name]] == []
    assert not list(folder.rglob("*.tmp"))
    assert not (folder / "scores").exists()


@pytest.fixture(scope="module")
def unbroken(labelled: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """{case: outcome of a run that was never stopped}."""
    outcomes = {}
    for case, flags in CASES.items():
        folder = tmp_path_factory.mktemp("runs") / "unbroken"
        assert quietly(supervised_run(labelled, folder, *flags), run_supervised.main) == 0
        outcomes[case] = outcome(folder)
    return outcomes


def stopped_when(is_time: Any, argv: list[Any], number: int = signal.SIGKILL) -> int:
    return signalled_when(is_time, argv, MOMENTS, main=run_supervised.main, number=number)


def go_on(folder: Path, *flags: Any) -> int:
    return in_a_fork(lambda: quietly(["-c", folder, "-r", "--num_workers", 0, *flags], run_supervised.main))


# Stopped once --------------------------------------------------------------------------------------------------------

MIDST = [
    ("train_call", 1, None),  # before there is anything
    ("train_call", 5, None),  # in the middle of an epoch, after a save
    ("replace", 2, LATEST),
    ("row", 2, None),
    ("logits_of", 2, None),  # in a validation
    ("write", 2, None),
    ("close", 1, None),
    ("replace", 1, BEST),
    ("logits_of", 3, None),  # in the second validation, which a checkpoint came before
    ("replace", 1, FINAL),
    ("logits_of", 5, None),  # in the test
    ("logits_of", 14, None),
    ("write", 9, None),
    ("replace", 1, "scores.npz"),
    ("replace", 1, "predictions.csv"),
    ("replace", 1, "results.json"),
]


@pytest.mark.parametrize(("name", "number", "file"), MIDST)
def test_a_kill_at_one_moment_changes_nothing(
    name: str, number: int, file: str | None, labelled: Path, tmp_path: Path, unbroken: dict[str, dict[str, Any]]
) -> None:
    case, folder = "no workers", tmp_path / "run"
    assert stopped_when(nth(number, name, file), supervised_run(labelled, folder, *CASES[case])) == -signal.SIGKILL
    assert go_on(folder) == 0
    assert_as_if_never_stopped(folder, unbroken[case])


@pytest.mark.parametrize(
    ("name", "number", "file", "steps", "due"),
    [
        ("train_call", 1, None, 1, False),
        ("train_call", 3, None, 3, True),
        ("gather", 1, None, 2, False),  # too late for the step that it comes in: one more is made
        ("gather", 3, None, 3, True),  # but no validation
        ("replace", 1, LATEST, 3, True),
        ("logits_of", 2, None, 3, True),
        ("write", 1, None, 3, True),
        ("row", 3, None, 4, False),
        ("replace", 1, BEST, 4, False),
        ("logits_of", 14, None, 6, False),
        ("replace", 1, "predictions.csv", 6, False),
    ],
)
def test_a_termination_saves_what_is_done_and_changes_nothing(
    name: str, number: int, file: str | None, steps: int, due: bool, labelled: Path, tmp_path: Path,
    unbroken: dict[str, dict[str, Any]],
) -> None:  # fmt: skip
    """steps: those that need not be done again; due: whether a validation comes first."""
    case, folder = "no workers", tmp_path / "run"
    argv = supervised_run(labelled, folder, *CASES[case])
    assert stopped_when(nth(number, name, file), argv, signal.SIGTERM) == TERMINATED
    progress = load_checkpoint(folder / LATEST)["progress"]
    assert (progress["steps_done"], progress["validation_due"]) == (steps, due)
    assert go_on(folder) == 0
    assert_as_if_never_stopped(folder, unbroken[case])


def test_a_termination_in_the_last_moment_of_training_is_heeded_before_the_test(labelled: Path, tmp_path: Path) -> None:
    argv = supervised_run(labelled, tmp_path / "run", "--val_freq", 0)
    assert stopped_when(nth(6, "gather"), argv, signal.SIGTERM) == TERMINATED
    assert load_checkpoint(tmp_path / "run" / FINAL)["progress"]["steps_done"] == 6
    assert not list((tmp_path / "run").glob("scores*"))
    assert go_on(tmp_path / "run") == 0


# Stopped again and again ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_kills_again_and_again_change_nothing(
    case: str, labelled: Path, tmp_path: Path, unbroken: dict[str, dict[str, Any]]
) -> None:
    """The n-th process lives for 9 + 4n moments, whatever they are."""
    folder = tmp_path / "run"
    argv = supervised_run(labelled, folder, *CASES[case])
    live_many_lives(lambda lives, argv: stopped_when(nth(9 + 4 * lives, "any"), argv), folder, argv, CASES[case][-1])
    assert_as_if_never_stopped(folder, unbroken[case])


def test_a_row_that_was_half_written_is_taken_back(
    labelled: Path, tmp_path: Path, unbroken: dict[str, dict[str, Any]]
) -> None:
    case, folder = "no workers", tmp_path / "run"
    assert stopped_when(nth(3, "row"), supervised_run(labelled, folder, *CASES[case]))
    with open(folder / "log.csv", "a") as file:
        file.write("3,0,val,,3")
    assert go_on(folder) == 0
    assert_as_if_never_stopped(folder, unbroken[case])


def test_a_test_that_was_stopped_computes_what_it_lacks_and_no_more(
    labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, calls = tmp_path / "run", []
    assert stopped_when(nth(8, "write"), supervised_run(labelled, folder, *LONG)) == -signal.SIGKILL
    logits_of = ViewCalls.logits_of

    def counted(self: ViewCalls, views: torch.Tensor) -> torch.Tensor:
        calls.append(len(views))
        return logits_of(self, views)

    monkeypatch.setattr(ViewCalls, "logits_of", counted)
    assert quietly(["-c", folder, "-r", "--num_workers", 0], run_supervised.main) == 0
    assert calls == [4, 2] * (9 - 3), "two validations wrote twice each, the test three times"


# What was computed before a stop is never taken for something else ---------------------------------------------------


def test_a_validation_that_was_stopped_is_not_gone_on_with_by_other_weights(labelled: Path, tmp_path: Path) -> None:
    """The run starts again, and with calls of another size its batch norms learn something else."""
    flags = [*LONG, "--save_freq", 0, "--num_workers", 0]
    assert stopped_when(nth(2, "logits_of"), supervised_run(labelled, tmp_path / "run", *flags)) == -signal.SIGKILL
    assert list((tmp_path / "run/scores").iterdir())
    assert go_on(tmp_path / "run", "--clips_per_call", 2) == 0
    whole = supervised_run(labelled, tmp_path / "whole", *flags, "--clips_per_call", 2)
    assert quietly(whole, run_supervised.main) == 0
    assert_as_if_never_stopped(tmp_path / "run", outcome(tmp_path / "whole"))


@pytest.mark.parametrize(
    ("stopped", "change"),
    [
        ("", "--precision bf16"),
        ("", "--normalise none"),
        ("", "--sampling tdn"),
        ("--sampling study_dense", "--sampling study_dense --stride 2"),
        ("--clips random", "--clips random --seed 1"),
    ],
)
def test_a_test_that_was_stopped_is_not_gone_on_with_under_other_settings(
    stopped: str, change: str, labelled: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    assert quietly(supervised_run(labelled, folder, "--epochs", 1), run_supervised.main) == 0
    test = ["--test_only", "--num_workers", 0, "--num_clips", 2, "--views_per_call", 4]
    found = {}
    for name, flags in {"stopped": stopped, "changed": change}.items():
        elsewhere = ["-c", tmp_path / name, "-m", folder / BEST, *test, *flags.split()]
        assert quietly(elsewhere, run_supervised.main) == 0
        found[name] = ViewScores.load(tmp_path / name / "scores.npz").logits
    assert not np.array_equal(found["stopped"], found["changed"])
    assert stopped_when(nth(3, "logits_of"), ["-c", folder, *test, *stopped.split()]) == -signal.SIGKILL
    assert quietly(["-c", folder, *test, *change.split()], run_supervised.main) == 0
    np.testing.assert_array_equal(ViewScores.load(folder / "scores.npz").logits, found["changed"])


# Several processes ---------------------------------------------------------------------------------------------------

SHARED = ["--dropout", 0, "--lr_type", "cosine", "--num_clips", 2, "--num_crops", 3, "--print_freq", 1]


def assert_same_run(folder: Path, other: Path) -> None:
    """Weights, statistics, momenta, rows, predictions and scores, up to the order in which sums are added."""
    found, expected = (load_checkpoint(path / FINAL) for path in (folder, other))
    torch.testing.assert_close(found["model"], expected["model"], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found["optimizer"]["state"], expected["optimizer"]["state"], rtol=1e-3, atol=1e-5)
    for row, same in zip(rows(folder), rows(other), strict=True):
        assert {name: float(value) for name, value in row.items() if name != "split" and value} == pytest.approx(
            {name: float(value) for name, value in same.items() if name != "split" and value}, rel=1e-4
        )
        assert row["split"] == same["split"]
    one, two = ViewScores.load(folder / "scores.npz"), ViewScores.load(other / "scores.npz")
    assert one.videos == two.videos
    np.testing.assert_allclose(one.logits, two.logits, rtol=1e-3, atol=1e-5)
    second, first = np.sort(two.fused())[:, -2:].T
    is_tie = np.isclose(second, first, rtol=1e-3, atol=1e-5)
    answers = zip(rows(folder, "predictions.csv"), rows(other, "predictions.csv"), is_tie, strict=True)
    for row, same, tie in answers:
        assert (row["video"], row["true"]) == (same["video"], same["true"])
        assert row["predicted"] == same["predicted"] or tie
    found, expected = results(folder), results(other)
    for name, value in expected.items():
        same = pytest.approx(value, rel=1e-6, abs=100.0 * int(is_tie.sum())) if isinstance(value, float) else value
        assert found[name] == same


@pytest.mark.parametrize(
    ("alone", "together"),
    [
        (["--bn", "frozen"], ["--bn", "frozen"]),
        (["--bn", "partial", "--clips_per_call", 2], ["--bn", "partial"]),
        # Statistics of the whole batch.
        (["--bn", "train"], ["--bn", "sync"]),
        # Statistics of each process's clips: a process alone goes through its batch in as many calls.
        (["--clips_per_call", 2], []),
        (["--clips_per_call", 1], ["--clips_per_call", 1]),
        (["--clips_per_call", 2, "--clip_gradient", 0.01, "--layer_rates", "tsm"],
         ["--clip_gradient", 0.01, "--layer_rates", "tsm"]),
    ],
    ids=lambda flags: " ".join(map(str, flags)) or "as it is",
)  # fmt: skip
def test_two_processes_learn_and_answer_as_one(
    alone: list[Any], together: list[Any], labelled: Path, tmp_path: Path
) -> None:
    """Nine test videos: neither process has one twice."""
    assert quietly(supervised_run(labelled, tmp_path / "one", *SHARED, *alone), run_supervised.main) == 0
    argv = supervised_run(labelled, tmp_path / "two", *SHARED, *together)
    assert as_one_job([argv, argv], run_supervised.main) == [0, 0]
    assert_same_run(tmp_path / "two", tmp_path / "one")
    assert len(rows(tmp_path / "two", "predictions.csv")) == 9
    assert not (tmp_path / "two/scores").exists()


def test_three_processes_share_an_epoch_of_four_steps(labelled: Path, tmp_path: Path) -> None:
    flags = [*SHARED, "--batch_size", 6]
    assert quietly(supervised_run(labelled, tmp_path / "one", *flags, "--clips_per_call", 2), run_supervised.main) == 0
    argv = supervised_run(labelled, tmp_path / "three", *flags)
    assert as_one_job([argv] * 3, run_supervised.main) == [0, 0, 0]
    assert_same_run(tmp_path / "three", tmp_path / "one")


def test_torchrun_starts_it(labelled: Path, tmp_path: Path) -> None:
    argv = supervised_run(labelled, tmp_path / "two", *SHARED, "--num_workers", 1)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--monitor-interval=0.1"]
    finish([*torchrun, "--master-port", free_port(), ROOT / "run_supervised.py", *argv])
    alone = supervised_run(labelled, tmp_path / "one", *SHARED, "--clips_per_call", 2)
    assert quietly(alone, run_supervised.main) == 0
    assert_same_run(tmp_path / "two", tmp_path / "one")


def test_two_processes_go_on_where_one_was_stopped(labelled: Path, tmp_path: Path) -> None:
    """In the middle of an epoch and of a test."""
    flags = [*SHARED, "--bn", "frozen", "--save_freq", 2, "--num_workers", 0]
    folder = tmp_path / "run"
    assert quietly(supervised_run(labelled, tmp_path / "one", *flags), run_supervised.main) == 0
    assert stopped_when(nth(5, "train_call"), supervised_run(labelled, folder, *flags)) == -signal.SIGKILL
    again = ["-c", folder, "-r", "--num_workers", 0]
    assert as_one_job([again, again], run_supervised.main) == [0, 0]
    assert_same_run(folder, tmp_path / "one")
    test = ["-c", folder, "--test_only", "--num_workers", 0, "--views_per_call", 6]
    assert stopped_when(nth(5, "write"), test) == -signal.SIGKILL
    assert as_one_job([test, test], run_supervised.main) == [0, 0]
    assert_same_run(folder, tmp_path / "one")


def test_two_processes_leave_out_the_same_bad_videos_as_one(own_labelled: Path, tmp_path: Path) -> None:
    for name in ("train/clap/clap_001", "val/wave/wave_001", "test/clap/clap_001", "test/wave/wave_000"):
        for frame in (own_labelled / name).iterdir():
            frame.write_bytes(b"")
    flags = [*SHARED, "--bn", "frozen", "--on_bad_video", "skip", "--num_workers", 0]
    assert quietly(supervised_run(own_labelled, tmp_path / "one", *flags), run_supervised.main) == 0
    argv = supervised_run(own_labelled, tmp_path / "two", *flags)
    assert as_one_job([argv, argv], run_supervised.main) == [0, 0]
    assert_same_run(tmp_path / "two", tmp_path / "one")
    assert results(tmp_path / "two")["left_out"] == 2
    told = [(tmp_path / name / "log.txt").read_text().count("left out: ") for name in ("one", "two")]
    assert told[0] == told[1] > 3


def test_a_process_that_is_slow_to_look_loses_no_video(labelled: Path, tmp_path: Path) -> None:
    """The second process opens the store of the test only when the first has already written to it."""
    assert quietly(supervised_run(labelled, tmp_path / "one", "--epochs", 1), run_supervised.main) == 0
    argv = [
        "-c",
        tmp_path / "test",
        "--test_only",
        "-m",
        tmp_path / "one" / BEST,
        "--num_workers",
        0,
        "--views_per_call",
        1,
    ]

    def slow(own: list[str]) -> int:
        fill = ViewCalls.fill

        def late(self: ViewCalls, store: RowStore, dataset: Any) -> Any:
            if not self.processes.is_first:
                while not store.known.any():
                    store.refresh()
            return fill(self, store, dataset)

        ViewCalls.fill = late  # type: ignore[method-assign]
        return run_supervised.main(own)

    assert as_one_job([argv, argv], slow) == [0, 0]
    found, expected = (ViewScores.load(tmp_path / name / "scores.npz").logits for name in ("test", "one"))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_processes_that_do_not_share_their_folder_are_told_so(
    labelled: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    argvs = [supervised_run(labelled, tmp_path / name, *SHARED) for name in ("a", "b")]
    (tmp_path / "b").mkdir()
    assert as_one_job(argvs, run_supervised.main) == [2, 2]
    assert "give a folder that all machines of the job share" in capfd.readouterr().err
    assert not (tmp_path / "a" / "results.json").exists()


@pytest.mark.parametrize(("flags", "code"), [(["--batch_size", 3], 2), (["--test_only"], 0)])
def test_a_batch_that_cannot_be_shared_matters_in_training_only(
    flags: list[Any], code: int, labelled: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    argv = supervised_run(labelled, folder, *flags)
    if "--test_only" in flags:
        assert quietly(supervised_run(labelled, folder, "--batch_size", 3), run_supervised.main) == 0
        argv = ["-c", folder, "--test_only", "--num_workers", 0]
    assert as_one_job([argv, argv], run_supervised.main) == [code, code]
    assert ("--batch_size is 3: expected a multiple of 2 processes" in capfd.readouterr().err) == (code == 2)
