"""How a run is stopped from outside: `Termination`."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator


class Terminated(Exception):
    """The machine is wanted for something else: a SIGTERM came, and what has to be kept is kept."""


class Termination:
    """Catches SIGTERM, which schedulers send some time before they take the machine away.

    It ends what is going on by `Terminated`; within `deferred` only `asked` says that it came, until processes agree.
    """

    def __init__(self) -> None:
        self.asked = False
        self._deferred = False

    def __enter__(self) -> Termination:
        self._earlier = signal.signal(signal.SIGTERM, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGTERM, self._earlier)

    def _handle(self, *_: object) -> None:
        self.asked = True
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
