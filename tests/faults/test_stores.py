"""What is kept of features and scores: damaged, it is named and made again, and never changes a number."""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import Program, tiny_run
from jobs import as_one_job, nth, quietly, signalled_when
from run_folders import assert_same_answers
from supervised_runs import supervised_run

import run
import run_supervised
from engine.row_store import UNKNOWN, WRITTEN, RowStore
from engine.view_calls import ViewCalls
from faults.conditions import ending_of
from results.view_scores import ViewScores
from utils import UserError

KEY = {"weights": "a"}
ROW = 6 * 4  # bytes
TEST = ["-i", 0, "--num_test_tasks", 40]


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def swap_halves(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[len(content) // 2 :] + content[: len(content) // 2])


def make_zeros(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def fill(path: Path) -> None:
    path.write_bytes(b"\1" * path.stat().st_size)


def empty(path: Path) -> None:
    os.truncate(path, 0)


DAMAGES: list[tuple[str, Callable[[Path], None]]] = [
    ("rows.f32", cut),
    ("rows.f32", flip_a_bit),
    ("rows.f32", swap_halves),
    ("rows.f32", make_zeros),
    ("rows.f32", Path.unlink),
    ("rows.f32", lambda path: os.truncate(path, path.stat().st_size * 2)),
    ("marks", cut),
    ("marks", flip_a_bit),
    ("marks", fill),
]
LOST = [("marks", make_zeros), ("marks", Path.unlink), ("marks", empty)]  # like a store that was just begun


@pytest.fixture(scope="module")
def kept(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the features of a test, and the folder of the run that made them."""
    folder = tmp_path_factory.mktemp("kept")
    argv = tiny_run(dataset, folder / "run", *TEST, "--features", folder / "features")
    assert run.main([str(flag) for flag in argv]) == 0
    return folder


@pytest.mark.parametrize(("name", "damage"), [DAMAGES[0], DAMAGES[1], DAMAGES[-1]])
def test_a_damaged_feature_store_is_named_and_gives_the_same_accuracy(
    name: str, damage: Callable[[Path], None], kept: Path, dataset: Path, tmp_path: Path, program: Program
) -> None:
    (path,) = (kept / "features").glob(f"*/{name}")
    damage(path)
    for folder in ("after", "later"):
        said = program(*tiny_run(dataset, tmp_path / folder, *TEST, "--features", kept / "features"))
        assert_same_answers(tmp_path / folder, kept / "run")
        assert ("is damaged" in said) == (folder == "after")  # and mended
    assert "is damaged" in (tmp_path / "after/log.txt").read_text()


def test_processes_of_a_job_mend_a_store_together(kept: Path, dataset: Path, tmp_path: Path) -> None:
    (path,) = (kept / "features").glob("*/rows.f32")
    cut(path)
    argv = tiny_run(dataset, tmp_path / "run", *TEST, "--features", kept / "features")
    assert as_one_job([argv, argv], run.main) == [0, 0]
    assert_same_answers(tmp_path / "run", kept / "run")
    assert (tmp_path / "run/log.txt").read_text().count("is damaged") == 2  # the file, and its rows


def test_a_test_of_labelled_clips_that_was_stopped_mends_its_scores(labelled: Path, tmp_path: Path) -> None:
    flags = ["--epochs", 1, "--val_freq", 0, "--views_per_call", 2]
    assert quietly(supervised_run(labelled, tmp_path / "whole", *flags), run_supervised.main) == 0
    argv, folder = supervised_run(labelled, tmp_path / "run", *flags), tmp_path / "run"
    stopped = signalled_when(nth(3, "logits_of"), argv, [(ViewCalls, "logits_of")], main=run_supervised.main)
    assert stopped == -signal.SIGKILL
    (path,) = (folder / "scores").glob("*/rows.f32")
    content = path.read_bytes()
    path.write_bytes(bytes(len(content) // 9) + content[len(content) // 9 :])  # the first of nine rows
    assert quietly(["-c", folder, "-r"], run_supervised.main) == 0
    assert "rows.f32 is damaged: 1 of its rows, the first 0" in (folder / "log.txt").read_text()
    scores = [ViewScores.load(place / "scores.npz").logits for place in (folder, tmp_path / "whole")]
    np.testing.assert_array_equal(*scores)


# The store itself ----------------------------------------------------------------------------------------------------


def values(*rows: int) -> np.ndarray:
    return np.stack([np.arange(6, dtype=np.float32).reshape(2, 3) + 100 * row for row in rows])


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def store(tmp_path: Path, said: list[str]) -> RowStore:
    """Four rows of five are written; the first is zeros."""
    store = RowStore(tmp_path, KEY, (5, 2, 3), said.append)
    store.write([0, 1, 2, 4], np.concatenate([np.zeros((1, 2, 3)), values(1, 2, 4)]))
    return store


@pytest.mark.parametrize(("name", "damage"), [*DAMAGES, *LOST])
def test_a_row_is_what_was_written_or_unknown(
    name: str, damage: Callable[[Path], None], store: RowStore, tmp_path: Path, said: list[str]
) -> None:
    whole = store.read([0, 1, 2, 4])
    store.close(keep=True)
    damage(store.folder / name)
    again = RowStore(tmp_path, KEY, (5, 2, 3), said.append)
    again.check(range(5))
    assert bool(said) == ((name, damage) not in LOST)
    found = {row: value for row, value in zip([0, 1, 2, 4], whole, strict=True) if again.known[row] == WRITTEN}
    assert len(found) < 4 or damage is not cut
    for row, value in found.items():
        np.testing.assert_array_equal(again.read([row])[0], value)
    lacking = [row for row in range(5) if again.known[row] == UNKNOWN]
    assert 3 in lacking
    again.write(lacking, values(*lacking))
    again.check(range(5))
    np.testing.assert_array_equal(again.read(lacking), values(*lacking))


def test_a_row_that_is_damaged_in_use_is_a_sentence(store: RowStore) -> None:
    with open(store.folder / "rows.f32", "r+b") as file:
        file.seek(2 * ROW)
        file.write(b"\0\0\0\1")
    np.testing.assert_array_equal(store.read([4, 1]), values(4, 1))
    with pytest.raises(UserError, match=r"rows\.f32 was damaged while in use: row 2 is not what was written"):
        store.read([[4, 2]])


def test_a_disk_that_damages_what_is_made_again_is_not_tried_for_ever(store: RowStore, said: list[str]) -> None:
    def spoil() -> None:
        with open(store.folder / "rows.f32", "r+b") as file:
            file.seek(2 * ROW)
            file.write(b"\0\0\0\1")

    spoil()
    store.check(range(5))
    assert "1 of its rows, the first 2, are not what was written" in said[0]
    store.write([2], values(2))
    spoil()
    with pytest.raises(UserError, match="row 2 was made again, and is damaged again; give another folder"):
        store.check(range(5))


def test_a_disk_that_takes_half_a_row_is_a_sentence(store: RowStore, tmp_path: Path) -> None:
    def work() -> int:
        resource.setrlimit(resource.RLIMIT_FSIZE, (3 * ROW + 7, 3 * ROW + 7))
        with pytest.raises(UserError, match="could not write to .*File too large; free some space"):
            store.write([3], values(3))
        return 0

    assert ending_of(work, tmp_path).code == 0
    store.refresh()
    assert store.known.tolist() == [WRITTEN, WRITTEN, WRITTEN, UNKNOWN, WRITTEN]
