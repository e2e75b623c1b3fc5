"""A run that is killed at any moment and gone on with ends as one that was never stopped, to the bit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import tiny_run
from jobs import IsTime, in_a_fork, learnt, nth, quietly, signalled_when
from run_folders import curves, live_many_lives

import run
from engine.feature_store import FeatureStore
from utils import BEST, FINAL, LATEST, RunFolder

# Dropout, an optimiser with a memory, and batches of three tasks, whose ends are not when a save is due.
TRX = ["--method", "trx", "--trans_linear_out_dim", 8, "--trans_dropout", 0.5, "--tasks_per_batch", 3, "--save_freq", 2]
LONG = [*TRX, "-i", 7, "--val_iters", 4, 6, "--sch", 5]
CASES = {
    "adam, no workers": [*LONG, "--opt", "adam", "-lr", 0.01, "--num_workers", 0],
    "momentum, two workers": [*LONG, "--momentum", 0.9, "-lr", 0.1, "--num_workers", 2],
}


def outcome(folder: Path) -> dict[str, Any]:
    """All that must not depend on whether the run was stopped."""
    results = json.loads((folder / "results.json").read_text())
    del results["versions"]  # names the commit of this moment
    return {
        "results.json": results,
        "curves": curves(folder),
        **{name: (folder / name).read_bytes() for name in ("log.csv", "predictions.csv")},
        **{name: learnt(folder / name) for name in (LATEST, BEST, FINAL)},
    }


def assert_as_if_never_stopped(folder: Path, unbroken: dict[str, Any]) -> None:
    found = outcome(folder)
    assert [name for name in unbroken if found[name] != unbroken[name]] == []
    assert not list(folder.rglob("*.tmp"))
    assert not (folder / "features").exists()


@pytest.fixture(scope="session")
def unbroken(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """{case: outcome of a run that was never stopped}."""
    outcomes = {}
    for case, flags in CASES.items():
        folder = tmp_path_factory.mktemp("runs") / "unbroken"
        assert quietly(tiny_run(dataset, folder, *flags)) == 0
        outcomes[case] = outcome(folder)
    return outcomes


# Kills at chosen moments, in a forked process ------------------------------------------------------------------------

# Moments at which a run has just begun to do something that must be whole or not there.
MOMENTS = [
    (os, "fsync"), (os, "replace"), (RunFolder, "log"), (RunFolder, "row"), (RunFolder, "retire"),
    (run.Learner, "train_call"), (FeatureStore, "write"),
]  # fmt: skip


def go_on(folder: Path, num_workers: int = 0) -> int:
    return in_a_fork(lambda: quietly(["-c", folder, "-r", "--num_workers", num_workers]))


def killed_when(is_time: IsTime, argv: list[Any]) -> bool:
    """Runs the program; whether it was killed, which it is before the first moment that `is_time` holds for."""
    code = signalled_when(is_time, argv, MOMENTS)
    assert code in (0, -signal.SIGKILL)
    return code != 0


@pytest.mark.parametrize(
    ("name", "number", "file"),
    [
        ("train_call", 1, None),
        ("replace", 1, LATEST),
        ("replace", 2, LATEST),
        ("replace", 1, BEST),
        ("row", 1, None),
        ("write", 2, None),
        ("replace", 1, FINAL),
        ("replace", 1, "predictions.csv"),
        ("replace", 1, "results.json"),
    ],
)
def test_a_kill_at_one_moment_changes_nothing(
    name: str, number: int, file: str | None, dataset: Path, tmp_path: Path, unbroken: dict[str, dict[str, Any]]
) -> None:
    case = "adam, no workers"
    assert killed_when(nth(number, name, file), tiny_run(dataset, tmp_path / "run", *CASES[case]))
    assert go_on(tmp_path / "run") == 0
    assert_as_if_never_stopped(tmp_path / "run", unbroken[case])


@pytest.mark.parametrize("case", CASES)
def test_kills_again_and_again_change_nothing(
    case: str, dataset: Path, tmp_path: Path, unbroken: dict[str, dict[str, Any]]
) -> None:
    """The n-th process lives for 5 + 2n moments, whatever they are."""
    folder = tmp_path / "run"
    argv = tiny_run(dataset, folder, *CASES[case])
    live_many_lives(lambda lives, argv: killed_when(nth(5 + 2 * lives, "any"), argv), folder, argv, CASES[case][-1])
    assert_as_if_never_stopped(folder, unbroken[case])


def test_a_row_that_was_half_written_is_taken_back(
    dataset: Path, tmp_path: Path, unbroken: dict[str, dict[str, Any]]
) -> None:
    case = "adam, no workers"
    assert killed_when(nth(2, "row"), tiny_run(dataset, tmp_path / "run", *CASES[case]))
    with open(tmp_path / "run/log.csv", "a") as file:
        file.write("6,val,,3")
    assert go_on(tmp_path / "run") == 0
    assert_as_if_never_stopped(tmp_path / "run", unbroken[case])


def test_a_run_that_was_killed_while_it_started_can_be_started_again(dataset: Path, tmp_path: Path) -> None:
    argv = tiny_run(dataset, tmp_path / "run", "-i", 1)
    assert killed_when(nth(1, "fsync"), argv)
    assert list((tmp_path / "run").glob(".*.tmp")), "killed in the middle of writing"
    assert quietly(argv) == 0


@pytest.mark.parametrize("method", ["hyrsm", "hyrsm++", "team", "strm", "molo", "clip_fsar"])
def test_every_method_with_losses_of_its_own_goes_on_to_the_bit(
    method: str,
    dataset: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    text_flags: Callable[[str], list[str]],
) -> None:
    """With their dropout, their classifiers of training classes, their decoders: what is drawn and kept is theirs alone."""
    monkeypatch.setattr(run, "write_report", lambda *_: None)  # half of the time, and of other tests
    small = ["--img_size", 32, "--seq_len", 4, "--trans_linear_out_dim", 8, "--trans_dropout", 0.5, "--team_tokens", 3]
    flags = ["--method", method, *text_flags(method), *small, "--opt", "adam", "-lr", 0.01]
    flags += ["--val_iters", 4, "--save_freq", 2, "--direct"]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert quietly(tiny_run(dataset, whole, *flags)) == 0
    assert killed_when(nth(4, "train_call"), tiny_run(dataset, stopped, *flags))
    assert learnt(stopped / LATEST) != learnt(whole / LATEST)
    assert quietly(["-c", stopped, "-r", "--num_workers", 0]) == 0
    for name in (LATEST, BEST, FINAL):
        assert learnt(stopped / name) == learnt(whole / name)
    assert (stopped / "log.csv").read_bytes() == (whole / "log.csv").read_bytes()


# Kills from outside, as a scheduler would ----------------------------------------------------------------------------


def kill_once(argv: list[Any], is_time: Callable[[], bool]) -> bool:
    """Starts the program and kills it once `is_time`; whether it was still running then."""
    command = [sys.executable, "run.py", *map(str, argv)]
    root = Path(run.__file__).parent
    with (
        tempfile.TemporaryFile() as err,
        subprocess.Popen(command, cwd=root, stdout=subprocess.DEVNULL, stderr=err) as process,
    ):
        give_up = time.monotonic() + 120
        while process.poll() is None and not is_time():
            assert time.monotonic() < give_up, "the moment never came"
            time.sleep(0.001)
        process.kill()
        process.wait()
        err.seek(0)
        assert err.read() == b""
    return process.returncode == -signal.SIGKILL


def test_programs_that_are_killed_while_they_save_and_validate_end_as_if_never_stopped(
    dataset: Path, tmp_path: Path, unbroken: dict[str, dict[str, Any]]
) -> None:
    case, folder = "momentum, two workers", tmp_path / "run"

    def is_saving() -> bool:
        return any(folder.glob(f".{LATEST}.*.tmp")) or (folder / LATEST).exists()

    def is_validating() -> bool:
        return (folder / "features").exists()

    argv = tiny_run(dataset, folder, *CASES[case])
    assert kill_once(argv, is_saving)
    assert kill_once(["-c", folder, "-r", "--num_workers", 2], is_validating)
    assert go_on(folder) == 0
    assert_as_if_never_stopped(folder, unbroken[case])


def test_a_data_set_that_has_changed_is_not_gone_on_with(
    own_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    assert run.main(tiny_run(own_dataset, folder, "--save_freq", 2)) == 0
    (folder / "results.json").unlink()
    (own_dataset / "train/jump/jump_000").rename(own_dataset / "train/jump/leap")
    capsys.readouterr()
    assert run.main(["-c", str(folder), "-r", "--num_workers", "0"]) == 2
    assert "are not those this run was started on" in capsys.readouterr().err
