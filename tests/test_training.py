"""What the programs do to the process that they run in."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from jobs import ROOT

REUSES_MEMORY = """
import resource, torch
from engine.devices import keep_freed_memory
keep_freed_memory()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(40):
    torch.ones(4_000_000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux" or torch.cuda.is_available(), reason="glibc's memory, for work on CPUs")
def test_freed_tensors_leave_their_pages_to_the_next_ones_unless_the_environment_says_otherwise() -> None:
    faults = {}
    for told in (False, True):
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
        environment |= {"PYTHONPATH": str(ROOT)} | ({"MALLOC_MMAP_THRESHOLD_": "65536"} if told else {})
        command = [sys.executable, "-c", REUSES_MEMORY]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100, check=True)
        faults[told] = int(done.stdout)
    assert 3 * faults[False] < faults[True]
