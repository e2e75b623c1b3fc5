"""Rows that are written in any order by any number of processes, stopped at any moment: right, or said to be absent."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from jobs import in_a_fork
from torch import nn

from engine import row_store
from engine.row_store import UNKNOWN, WRITTEN, RowStore, weights_hash
from utils import UserError

KEY = {"weights": "a", "seed": 0}


def values(rows: list[int], shape: tuple[int, ...] = (2, 3)) -> np.ndarray:
    """Something of its own for every row."""
    return np.stack([np.arange(np.prod(shape), dtype=np.float32).reshape(shape) + 100 * (row + 1) for row in rows])


@pytest.fixture
def store(tmp_path: Path) -> RowStore:
    return RowStore(tmp_path, KEY, (5, 2, 3))


def test_rows_come_back_in_any_order(store: RowStore) -> None:
    store.write([3, 0], values([3, 0]))
    store.write([4], values([4]))
    assert store.known.tolist() == [WRITTEN, UNKNOWN, UNKNOWN, WRITTEN, WRITTEN]
    np.testing.assert_array_equal(store.read([4, 0, 4]).numpy(), values([4, 0, 4]))
    nested = store.read([[0, 3], [3, 4]])
    assert nested.shape == (2, 2, 2, 3)
    np.testing.assert_array_equal(nested[1, 0].numpy(), values([3])[0])
    assert nested.dtype == torch.float32


@pytest.mark.parametrize("rows", [[1], [0, 1], [[0], [1]]])
def test_a_row_that_nobody_wrote_is_no_row_of_zeros(rows: list[int], store: RowStore) -> None:
    store.write([0], values([0]))
    with pytest.raises(UserError, match="lacks rows that another process should have written"):
        store.read(rows)


def test_an_unfinished_store_is_gone_on_with_under_its_key_only(tmp_path: Path) -> None:
    first = RowStore(tmp_path, KEY, (5, 2, 3))
    first.write([1, 2], values([1, 2]))
    first.close(keep=True)
    assert json.loads((first.folder / "key.json").read_text()) == KEY
    again = RowStore(tmp_path, {"seed": 0, "weights": "a"}, (5, 2, 3))
    assert again.folder == first.folder
    assert again.known.tolist() == [0, 1, 1, 0, 0]
    np.testing.assert_array_equal(again.read([2, 1]).numpy(), values([2, 1]))
    other = RowStore(tmp_path, {**KEY, "seed": 1}, (5, 2, 3))
    assert not other.known.any()
    again.close(keep=False)
    assert other.folder.exists()
    other.close(keep=False)
    assert not tmp_path.exists()


def test_processes_write_rows_of_their_own_into_one_store(store: RowStore, tmp_path: Path) -> None:
    def work(rows: list[int]) -> int:
        own = RowStore(tmp_path, KEY, (5, 2, 3))
        own.write(rows, values(rows))
        own.close(keep=True)
        return 0

    assert [in_a_fork(lambda rows=rows: work(rows)) for rows in ([0, 2, 4], [1, 3])] == [0, 0]
    assert not store.known.any()
    store.refresh()
    np.testing.assert_array_equal(store.read(range(5)).numpy(), values(list(range(5))))


def test_a_kill_while_a_row_is_written_loses_rows_only(store: RowStore, tmp_path: Path) -> None:
    def work() -> int:
        pwrite, calls = os.pwrite, []

        def dying(*args: object) -> int:
            calls.append(args)
            if len(calls) == 3:
                os.kill(os.getpid(), 9)
            return pwrite(*args)

        os.pwrite = dying
        own = RowStore(tmp_path, KEY, (5, 2, 3))
        own.write([0], values([0]))
        own.write([1, 2], values([1, 2]))
        return 0

    assert in_a_fork(work) == -9
    store.refresh()
    assert store.known.tolist() == [WRITTEN, 0, 0, 0, 0]
    np.testing.assert_array_equal(store.read([0]).numpy(), values([0]))


def test_a_kill_while_a_store_is_made_leaves_one_to_go_on_with(store: RowStore, tmp_path: Path) -> None:
    store.write([0], values([0]))
    for name in ("marks", "rows.f32"):  # made, and not filled yet
        os.truncate(store.folder / name, 0)
    again = RowStore(tmp_path, KEY, (5, 2, 3))
    assert again.known.tolist() == [0] * 5
    again.write([4], values([4]))
    np.testing.assert_array_equal(again.read([4]).numpy(), values([4]))


@pytest.mark.parametrize("survivors", [["marks"], ["rows.f32"], ["marks", "key.json"], ["rows.f32", "key.json"]])
def test_a_kill_while_a_store_is_removed_leaves_no_row_without_its_values(
    survivors: list[str], store: RowStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files of a folder are removed in any order."""

    def interrupted(folder: Path) -> None:
        for path in folder.iterdir():
            if path.name not in survivors:
                path.unlink()
        raise KeyboardInterrupt

    store.write([0, 1], values([0, 1]))
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", interrupted)
        with pytest.raises(KeyboardInterrupt):
            store.close(keep=False)
    again = RowStore(tmp_path, KEY, (5, 2, 3))
    known = np.flatnonzero(again.known).tolist()
    assert not known or np.array_equal(again.read(known).numpy(), values(known))


def test_rows_take_no_room_before_they_are_written(tmp_path: Path) -> None:
    store = RowStore(tmp_path, KEY, (10_000, 30, 400))
    assert (store.folder / "rows.f32").stat().st_size == 10_000 * 30 * 400 * 4
    assert (store.folder / "rows.f32").stat().st_blocks * 512 < 1e6
    store.write([9_999], np.full((1, 30, 400), 7))
    assert (store.read([9_999]) == 7).all()


def test_a_disk_that_refuses_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="could not keep what is computed in .*give another folder"):
        RowStore(tmp_path / "file", KEY, (5, 2, 3))

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    store = RowStore(tmp_path, KEY, (5, 2, 3))
    monkeypatch.setattr(row_store.os, "pwrite", full)
    with pytest.raises(UserError, match="could not write to .*No space left on device; free some space"):
        store.write([0], values([0]))
    assert not store.known.any()


def test_the_hash_of_weights_changes_with_every_number_and_name() -> None:
    def net() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3)).to(memory_format=torch.channels_last)

    same = weights_hash(net())
    assert weights_hash(net()) == same
    assert weights_hash(net().to(memory_format=torch.contiguous_format)) == same
    hashes = {same, weights_hash(nn.Sequential(net()))}
    for name in net().state_dict():
        changed = net()
        changed.state_dict()[name].view(-1)[-1:].add_(1)
        hashes.add(weights_hash(changed))
    assert len(hashes) == 2 + len(net().state_dict())
