"""Two processes that want the same run folder: one of them has it, until it ends, however it ends."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Program, tiny_run
from jobs import ROOT

from utils import FINAL, LOCK, RunFolder, UserError

HOLD = """\
import time
from utils import RunFolder
folder = RunFolder({path!r}, resume={resume})
{more}
print(1, flush=True)
time.sleep(60)
"""


def holding(path: Path, *, resume: bool) -> subprocess.Popen[str]:
    """A process that has the folder, and keeps it."""
    code = HOLD.format(path=str(path), resume=resume, more="" if resume else "folder.start({}, ['run.py'])")
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "1\n"
    return process


def test_a_run_is_resumed_by_one_process_at_a_time(dataset: Path, tmp_path: Path, program: Program) -> None:
    folder = tmp_path / "run"
    program(*tiny_run(dataset, folder))
    assert not (folder / LOCK).exists()
    with holding(folder, resume=True) as other:
        for how in (["-r", "-i", 6], ["--test_only"]):
            assert "another process is at work in" in program.fails("-c", folder, *how, "--num_workers", 0)
        other.send_signal(signal.SIGKILL)
    assert (folder / LOCK).exists(), "a killed process leaves the file, and not the lock"
    program("-c", folder, "-r", "-i", 6, "--num_workers", 0)
    assert not (folder / LOCK).exists()


def test_of_two_new_runs_one_is_refused(tmp_path: Path) -> None:
    late = RunFolder(tmp_path / "run")  # nothing is there yet
    with holding(tmp_path / "run", resume=False) as other:
        with pytest.raises(UserError, match="another process is at work in"):
            late.start({}, ["run.py"])
        other.kill()
    with pytest.raises(UserError, match="already holds a run"):
        late.start({}, ["run.py"])


def test_two_runs_that_start_at_once_leave_one_run(dataset: Path, tmp_path: Path) -> None:
    argv = [sys.executable, "run.py", *tiny_run(dataset, tmp_path / "run")]
    both = [
        subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) for _ in "ab"
    ]
    errors = [process.communicate(timeout=120)[1] for process in both]
    codes = [process.returncode for process in both]
    assert sorted(codes) == [0, 2], errors
    assert "another process is at work" in errors[codes.index(2)] or "already holds a run" in errors[codes.index(2)]
    assert (tmp_path / "run" / FINAL).exists()
    assert (tmp_path / "run" / "command.txt").read_text().count("run.py") == 1
