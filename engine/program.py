"""A training program from its command line to its exit code."""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from engine.command_line import MISTAKE, TERMINATED, outcome_of
from engine.devices import keep_freed_memory
from engine.flags import first_look
from engine.processes import Processes
from engine.stopping import Termination
from engine.training import Training
from utils import RunFolder, printable

AnyTraining = TypeVar("AnyTraining", bound=Training)


class Program:
    """`with Program(file, argv) as program:` - what goes wrong in the block becomes a sentence and an exit code.

    0: done; 2: a user's mistake, told in one sentence; 128 + the number of the signal that stopped it.
    """

    def __init__(self, file: str, argv: Sequence[str] | None = None) -> None:
        self.name = Path(file).name
        self.rank = int(os.environ.get("RANK", 0))
        self._given = list(sys.argv[1:] if argv is None else argv)
        self.exit_code = 0
        self._open = contextlib.ExitStack()

    def __enter__(self) -> Program:
        if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # as the programs leave it while they import
            signal.signal(signal.SIGINT, signal.default_int_handler)
        keep_freed_memory()
        return self

    @functools.cached_property
    def argv(self) -> list[str]:
        return resumed_if_restarted(self._given)

    def build(self, training: type[AnyTraining], args: argparse.Namespace) -> AnyTraining:
        """The training that `args` name, joined to the other processes of its job. Only when all of it is there, the run
        folder is made: a start that is refused leaves none."""
        adds_test = args.test_only and (Path(args.checkpoint_dir) / "args.json").exists()
        resume = args.resume_from_checkpoint or adds_test
        run = RunFolder(args.checkpoint_dir, resume=resume, writes=self.rank == 0, columns=training.columns)
        self._open.callback(run.close)
        processes = Processes(args.timeout)
        self._open.callback(processes.close)
        built = training(args, run, processes, self._open.enter_context(Termination()))
        run.start(vars(args), [self.name, *self.argv], keep_settings=adds_test)
        return built

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        with self._open:
            if error is None:
                return False
            code, sentence = outcome_of(error, resume="; resume from the last checkpoint with -r")
            if code is None:
                return False
            self.exit_code = code
            self._tell(sentence)
            return True

    def _tell(self, sentence: str) -> None:
        if self.exit_code == MISTAKE:
            sentence = f"error: {sentence}"
            if self.rank > 0:
                # A mistake that all processes meet is told by the first: then torchrun ends this one while it waits.
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
                time.sleep(5)
                sentence = f"{sentence} (rank {self.rank})"
        elif self.exit_code == TERMINATED and self.rank > 0:
            return
        print(printable(sentence), file=sys.stderr, flush=True)


def resumed_if_restarted(argv: list[str]) -> list[str]:
    """The command line of a process that torchrun has started, which gives the same one to every start.

    After a restart the run is resumed: -r is added. A first start with -r, of a run that is not there yet, begins it.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return argv
    given = first_look(argv)
    exists = given.checkpoint_dir is not None and (Path(given.checkpoint_dir) / "args.json").exists()
    if exists and int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0 and not given.test_only:
        return [*argv, "-r"]
    return argv if exists else [flag for flag in argv if flag not in ("-r", "--resume_from_checkpoint")]
