"""Rows of numbers on disk, written one by one, of which a killed process has left what it had finished."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from utils import UserError, write_json

UNKNOWN, WRITTEN = 0, 1  # what is known of a row
# Beside its row each written one has a mark: WRITTEN and the checksum of its bytes. Zeros, which a hole reads as, mark none.
MARK = np.dtype([("known", "<u4"), ("checksum", "<u4")])


def weights_hash(module: nn.Module) -> str:
    """Equal for equal weights and buffers under equal names."""
    digest = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


class RowStore:
    """float32 rows (R, ...) in a file, in any order, by one process or several, each of which writes rows of its own.

    Lives in `parent/<hash of key>`, so that rows made under another key are never taken for these. A store that was left
    unfinished is resumed: `known` (R,) says which rows it holds. `check` takes back those that were damaged since they
    were written, and says so by `log`. Rows are read through a memory map: memory stays bounded whatever their number.
    Processes on several machines need a `parent` that all of them share.
    """

    def __init__(
        self, parent: Path, key: dict[str, Any], shape: Sequence[int], log: Callable[[str], None] = print
    ) -> None:
        self.folder = parent / hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
        self.shape = tuple(shape)
        self.log = log
        self._marks_path, self._rows_path = self.folder / "marks", self.folder / "rows.f32"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not (self.folder / "key.json").exists():
                write_json(self.folder / "key.json", key)
            self._marks_file = self._open(self._marks_path, self.shape[0] * MARK.itemsize)
            self._rows_file = self._open(self._rows_path, int(np.prod(self.shape)) * 4)
        except OSError as error:
            raise UserError(
                f"could not keep what is computed in {parent}: {error.strerror}; give another folder"
            ) from error
        self._marks: np.ndarray = np.zeros(self.shape[0], dtype=MARK)
        self.known: np.ndarray = np.zeros(self.shape[0], dtype=np.uint8)
        self._checked = np.zeros(self.shape[0], dtype=bool)
        self._damaged: set[int] = set()  # rows that were found so, once
        self.refresh()

    def _open(self, path: Path, size: int) -> int:
        """A file of that size; one that has another is damaged, but for an empty one, which was being made."""
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        found = os.fstat(file).st_size
        if found not in (0, size):
            self.log(f"{path} is damaged: it has {found:,} bytes of {size:,}; what it lacks is made again")
        os.truncate(file, size)  # adds zeros, and sparse ones: rows take room when they are written
        return file

    def refresh(self) -> None:
        """Rereads what other processes have written, which a network file system shows only when a file is opened."""
        os.fsync(self._rows_file)
        marks = np.frombuffer(self._marks_path.read_bytes(), dtype=MARK)
        self._checked &= marks == self._marks
        self._marks, self.known = marks.copy(), np.where(marks["known"] == UNKNOWN, UNKNOWN, WRITTEN)
        self._rows = np.memmap(self._rows_path, dtype=np.float32, mode="r", shape=self.shape)

    def take_over(self) -> None:
        """`refresh`, of what other runs have written. A row that was found damaged stays UNKNOWN until it is made again."""
        lacking = np.flatnonzero(self.known == UNKNOWN).tolist()
        self.refresh()
        self.known[[row for row in lacking if self.known[row] == WRITTEN and not self._is_whole(row)]] = UNKNOWN

    def check(self, rows: Iterable[int]) -> None:
        """Makes those UNKNOWN whose bytes are not the ones that were written. Each row is looked at once."""
        damaged = [row for row in rows if self.known[row] == WRITTEN and not self._is_whole(row)]
        if not damaged:
            return
        if again := self._damaged.intersection(damaged):
            raise UserError(
                f"{self._rows_path} does not keep what is written: row {min(again)} was made again, and is damaged again; "
                "give another folder, on a disk that is sound"
            )
        self._damaged.update(damaged)
        self.known[damaged] = UNKNOWN
        self.log(
            f"{self._rows_path} is damaged: {len(damaged)} of its rows, the first {damaged[0]}, are not what was written; they "
            "are made again"
        )

    def _is_whole(self, row: int) -> bool:
        if not self._checked[row]:
            self._checked[row] = self._marks[row].item() == (WRITTEN, _checksum(row, self._rows[row]))
        return bool(self._checked[row])

    def write(self, rows: Sequence[int], values: np.ndarray) -> None:
        """Keeps values (len(rows), ...). Written before they are marked as known, so that a kill loses rows only."""
        try:
            for row, value in zip(rows, values, strict=True):
                content = np.ascontiguousarray(value, dtype=np.float32)
                _write_at(self._rows_file, content.tobytes(), row * content.nbytes)
                self._marks[row] = WRITTEN, _checksum(row, content)
                self._checked[row] = False
            for row in rows:
                _write_at(self._marks_file, self._marks[row].tobytes(), row * MARK.itemsize)
            self.known[list(rows)] = WRITTEN
        except OSError as error:
            raise UserError(
                f"could not write to {self.folder}: {error.strerror}; free some space, or give another folder"
            ) from error

    def read(self, rows: Any) -> Tensor:
        """Row numbers as nested lists or an array (...,) -> float32 (..., *shape of a row). Raises UserError for rows that
        nobody has written, or that are damaged."""
        rows = np.asarray(rows)
        if not (self.known[rows] == WRITTEN).all():
            raise UserError(
                f"{self.folder} lacks rows that another process should have written: give a folder that all machines of the "
                "job share"
            )
        damaged = [row for row in np.unique(rows[~self._checked[rows]]).tolist() if not self._is_whole(row)]
        if damaged:
            raise UserError(
                f"{self._rows_path} was damaged while in use: row {damaged[0]} is not what was written; see to the disk, "
                "and start again: the row is made again"
            )
        return torch.from_numpy(self._rows[rows])

    def close(self, *, keep: bool) -> None:
        """Lets go of the files; without `keep` they are removed."""
        del self._rows
        os.close(self._rows_file)
        os.close(self._marks_file)
        if not keep:
            self._marks_path.unlink()  # first: a kill must not leave it without the rows that it is about
            shutil.rmtree(self.folder)
            with contextlib.suppress(OSError):  # other stores may be in there
                self.folder.parent.rmdir()


def _write_at(file: int, content: bytes, place: int) -> None:
    """All of it: a disk that is nearly full takes a part, and says so at the next."""
    while content:
        written = os.pwrite(file, content, place)
        content, place = content[written:], place + written


def _checksum(row: int, values: np.ndarray) -> int:
    """Of a row's bytes and its number, so that no row passes for another."""
    return zlib.crc32(np.ascontiguousarray(values).data, row)
