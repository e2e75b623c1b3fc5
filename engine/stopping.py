"""How a run is stopped from outside: `Termination`."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator


class Terminated(Exception):
    """The machine is wanted for something else: a signal came, and what has to be kept is kept."""


class Termination:
    """Catches SIGTERM, which schedulers send some time before they take the machine away, and SIGHUP, of a closed terminal.

    It interrupts by `Terminated`; within `deferred` it only sets `asked`, until the processes agree. A signal
    that is ignored, as SIGHUP under nohup, stays so.
    """

    def __init__(self) -> None:
        self.asked = False
        self._deferred = False

    def __enter__(self) -> Termination:
        caught = [n for n in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) is not signal.SIG_IGN]
        self._terminals = [stream for stream in (1, 2) if os.isatty(stream)]
        self._earlier = {number: signal.signal(number, self._handle) for number in caught}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._earlier.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _: object) -> None:
        self.asked = True
        if number == signal.SIGHUP:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            for stream in self._terminals:  # they are gone, and what is printed would be an error
                os.dup2(nowhere, stream)
            os.close(nowhere)
        if not self._deferred:
            raise Terminated

    def deferred(self) -> contextlib.AbstractContextManager[None]:
        return self._set(deferred=True)

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Undoes `deferred` for something long that need not end."""
        with self._set(deferred=False):
            if self.asked:
                raise Terminated
            yield

    @contextlib.contextmanager
    def _set(self, *, deferred: bool) -> Iterator[None]:
        before, self._deferred = self._deferred, deferred
        try:
            yield
        finally:
            self._deferred = before
