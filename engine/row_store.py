"""Rows of numbers on disk, written one by one, of which a killed process has left what it had finished."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from utils import UserError, write_json

UNKNOWN, WRITTEN = 0, 1  # what is known of a row


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
    unfinished is gone on with: `known` (R,) says which rows it holds. Rows are read through a memory map: memory stays
    bounded whatever their number. Processes on several machines need a `parent` that all of them share.
    """

    def __init__(self, parent: Path, key: dict[str, Any], shape: Sequence[int]) -> None:
        self.folder = parent / hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
        self.shape = tuple(shape)
        self._known_path = self.folder / "known.u8"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not (self.folder / "key.json").exists():
                write_json(self.folder / "key.json", key)
            self._file = os.open(self.folder / "rows.f32", os.O_RDWR | os.O_CREAT, 0o644)
            os.truncate(self._file, int(np.prod(self.shape)) * 4)  # sparse: rows take room when they are written
            with open(self._known_path, "ab") as file:
                file.truncate(self.shape[0])  # adds zeros: UNKNOWN
        except OSError as error:
            raise UserError(
                f"could not keep what is computed in {parent}: {error.strerror}; give another folder"
            ) from error
        self.refresh()

    def refresh(self) -> None:
        """Takes up what other processes have written, which a network file system shows only when a file is opened."""
        os.fsync(self._file)
        self.known = np.frombuffer(self._known_path.read_bytes(), dtype=np.uint8).copy()
        self._rows = np.memmap(self.folder / "rows.f32", dtype=np.float32, mode="r", shape=self.shape)

    def write(self, rows: Sequence[int], values: np.ndarray) -> None:
        """Keeps values (len(rows), ...). Written before they are marked as known, so that a kill loses rows only."""
        size = int(np.prod(self.shape[1:])) * 4
        try:
            for row, value in zip(rows, values, strict=True):
                os.pwrite(self._file, np.ascontiguousarray(value, dtype=np.float32).tobytes(), row * size)
            self.known[list(rows)] = WRITTEN
            with open(self._known_path, "r+b") as file:
                for row in rows:
                    file.seek(row)
                    file.write(bytes([WRITTEN]))
        except OSError as error:
            raise UserError(
                f"could not write to {self.folder}: {error.strerror}; free some space, or give another folder"
            ) from error

    def read(self, rows: Any) -> Tensor:
        """Row numbers as nested lists or an array (...,) -> float32 (..., *shape of a row). Raises UserError for rows that
        nobody has written."""
        rows = np.asarray(rows)
        if not (self.known[rows] == WRITTEN).all():
            raise UserError(
                f"{self.folder} lacks rows that another process should have written: give a folder that all machines of the "
                "job share"
            )
        return torch.from_numpy(self._rows[rows])

    def close(self, *, keep: bool) -> None:
        """Lets go of the files; without `keep` they are removed."""
        del self._rows
        os.close(self._file)
        if not keep:
            self._known_path.unlink()  # first: a kill must not leave it without the rows that it is about
            shutil.rmtree(self.folder)
            with contextlib.suppress(OSError):  # other stores may be in there
                self.folder.parent.rmdir()
