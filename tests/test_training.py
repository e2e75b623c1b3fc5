"""What the programs do to the process that they run in."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from conftest import Program, tiny_run
from jobs import ROOT

from engine import settings, supervised_settings
from engine.devices import computes_in
from engine.flags import decided_precision
from methods import METHODS
from utils import FINAL, read_json

REUSES_MEMORY = """
import resource, threading, torch
from engine.devices import keep_freed_memory
keep_freed_memory()

def work():
    for _ in range(6):
        first, second = torch.ones(10_000_000), torch.ones(2_500_000)
        del first
        third = torch.ones(5_000_000)

def count():
    for _ in range(4):
        work()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        work()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

thread = threading.Thread(target=count)
thread.start()
thread.join()
count()
"""


@pytest.mark.skipif(sys.platform != "linux" or torch.cuda.is_available(), reason="glibc's memory, for work on CPUs")
def test_freed_tensors_leave_their_pages_to_the_next_ones_unless_the_environment_says_otherwise() -> None:
    faults = {}
    for told in (False, True):
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
        environment |= {"PYTHONPATH": str(ROOT)} | ({"MALLOC_MMAP_THRESHOLD_": "65536"} if told else {})
        command = [sys.executable, "-c", REUSES_MEMORY]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100, check=True)
        faults[told] = [int(count) for count in done.stdout.split()]
    for kept, otherwise in zip(faults[False], faults[True], strict=True):  # in another thread, and in the first one
        assert 20 * kept < otherwise


# Number formats ------------------------------------------------------------------------------------------------------


@pytest.fixture
def cpu_has(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes this machine one without a GPU and with a CPU that has these units."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    return lambda *units: monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: dict.fromkeys(units, True))


def test_gpus_compute_in_bf16_from_sm_80_on_and_all_in_fp16(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, has = torch.device("cuda", 0), {"bf16": [], "fp16": [], "fp32": []}
    for capability in ((7, 0), (7, 5), (8, 0), (9, 0)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, capability=capability: capability)
        for precision, found in has.items():
            found.append(computes_in(gpu, precision))
    assert has == {"bf16": [False, False, True, True], "fp16": [True] * 4, "fp32": [True] * 4}


@pytest.mark.parametrize(
    ("units", "precision"),
    [((), "fp32"), (("avx512_f", "amx_fp16"), "fp32"), (("avx512_bf16",), "bf16"), (("amx_bf16",), "bf16")],
)
def test_auto_is_bf16_where_the_cpu_computes_in_it(
    units: Sequence[str], precision: str, cpu_has: Callable[..., None], tmp_path: Path
) -> None:
    cpu_has(*units)
    for parse in (lambda argv: settings.parse_args(argv, METHODS), supervised_settings.parse_args):
        assert parse(["-c", str(tmp_path), "--dataset", "any"]).precision == precision
        assert parse(["-c", str(tmp_path), "--dataset", "any", "--precision", "fp16"]).precision == "fp16"


def test_networks_of_other_code_bases_are_tested_in_fp32(cpu_has: Callable[..., None]) -> None:
    cpu_has("avx512_bf16")
    decided = [
        decided_precision(argparse.Namespace(precision="auto", test_only=True), inherited)
        for inherited in ({}, {"precision": "auto"}, {"precision": "fp16"})
    ]
    assert decided == ["fp32", "fp32", "fp16"]


def test_a_run_keeps_its_format_on_other_machines_and_says_what_it_costs_there(
    dataset: Path, tmp_path: Path, program: Program, cpu_has: Callable[..., None]
) -> None:
    cpu_has("avx512_bf16")
    folder, sentence = (
        tmp_path / "run",
        "warning: this CPU has no units for bf16 and emulates it, 2 to 10 times as slow",
    )
    assert "warning" not in program(*tiny_run(dataset, folder, "--precision", "auto", "-i", 2))
    assert read_json(folder / "args.json")["precision"] == "bf16"
    cpu_has()
    for more in (["-i", 4], ["-i", 6, "--precision", "auto"]):
        assert program("-r", "-c", folder, *more).count(sentence) == 1
        assert read_json(folder / "args.json")["precision"] == "bf16"
    program("--test_only", "-c", tmp_path / "test", "-m", folder / FINAL, "--precision", "auto", "--num_workers", 0)
    assert read_json(tmp_path / "test" / "results.json")["precision"] == "bf16"
