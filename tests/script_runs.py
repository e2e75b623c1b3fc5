"""What the tests of scripts share: calling one as the shell would, and runs for it to read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from conftest import tiny_run

import run


class Script:
    """Calls a script's main and keeps what it printed."""

    def __init__(self, main: Callable[[Sequence[str]], int], capture: pytest.CaptureFixture[str]) -> None:
        self._main, self._capture = main, capture

    def __call__(self, *argv: object) -> str:
        """What a script that succeeds prints, which must be nothing on stderr."""
        code, out, err = self._call(argv)
        assert (code, err) == (0, "")
        return out

    def fails(self, *argv: object) -> str:
        """The one sentence of a script that is used wrongly."""
        code, _, err = self._call(argv)
        assert code == 2
        assert err.startswith("error: ")
        assert err.count("\n") == 1
        return err

    def _call(self, argv: Sequence[object]) -> tuple[int, str, str]:
        self._capture.readouterr()
        code = self._main([str(word) for word in argv])
        return code, *self._capture.readouterr()


def untrained(dataset: Path, folder: Path, method: str, *flags: object) -> Path:
    """A run that tests a method as it is initialised; returns its folder."""
    assert run.main(tiny_run(dataset, folder, "-i", 0, "--method", method, *flags)) == 0
    return folder
