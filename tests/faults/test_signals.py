"""Signals of a terminal: one that is closed, and Ctrl-C before the program has begun."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
from conftest import tiny_run
from jobs import ROOT

import run
from engine.command_line import TERMINATED
from engine.stopping import Termination
from utils import LATEST, load_checkpoint


def wait(condition: object, what: str) -> None:
    give_up = time.monotonic() + 60
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < give_up, what
        time.sleep(0.01)


def test_a_run_whose_terminal_is_closed_saves_and_ends(dataset: Path, tmp_path: Path) -> None:
    flags = ["-i", 100_000, "--save_freq", 0, "--val_iters", 100_000, "--num_workers", 1]
    folder, ending = tmp_path / "closed", tmp_path / "ending.txt"
    pid, terminal = pty.fork()
    if pid == 0:
        try:
            signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may have been started by nohup
            sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1) for number in (1, 2))
            code = run.main([str(flag) for flag in tiny_run(dataset, folder, *flags)])
            ending.write_text(str(code))
        finally:
            os._exit(0)  # whatever happened, or it would go on as a second process of the tests
    wait(
        lambda: (folder / "log.csv").exists() and (folder / "log.csv").read_text().count("train") > 3, "it never began"
    )
    os.close(terminal)
    os.waitpid(pid, 0)
    assert ending.read_text() == str(TERMINATED)
    assert load_checkpoint(folder / LATEST)["progress"]["tasks_done"] > 3


def test_a_signal_that_is_ignored_stays_so() -> None:
    """As nohup wants it."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Termination() as termination:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not termination.asked
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.skipif(sys.platform != "linux", reason="sees through /proc that torch is being imported")
@pytest.mark.parametrize("program", ["run.py", "run_supervised.py"])
def test_ctrl_c_during_the_imports_prints_nothing(program: str) -> None:
    command = [sys.executable, program, "--list"]
    # Ctrl-C as a terminal has it: what a shell starts in the background ignores it.
    as_in_a_terminal = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=as_in_a_terminal,
    ) as process:
        wait(lambda: "libtorch" in Path(f"/proc/{process.pid}/maps").read_text(), "it never imported torch")
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=60)
    assert (process.returncode, out) == (-signal.SIGINT, "")


def test_ctrl_c_later_is_told_in_a_sentence(dataset: Path, tmp_path: Path) -> None:
    """The programs leave Ctrl-C to the system while they import."""
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        assert run.main([str(flag) for flag in tiny_run(dataset, tmp_path / "run", "-i", 0)]) == 0
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
