"""Jobs of several processes, started by torchrun: the same results as one process, and what becomes of a lost one."""

from __future__ import annotations

import copy
import itertools
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tiny_run
from jobs import ROOT, as_one_job, finish, free_port, job, wait_for, workers_of
from run_folders import assert_same_answers, rows
from torch import nn

import run
from engine.command_line import TERMINATED
from engine.processes import Processes, RunningStatistics, synchronise_batch_norms
from engine.program import resumed_if_restarted
from utils import FINAL, LATEST, load_checkpoint

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--monitor-interval=0.1"]
# Dropout, batch norms in training, batches that two processes share unequally, a validation, frames and stored features.
LEARNS = shlex.split(
    "--method trx --trans_linear_out_dim 8 --trans_dropout 0.5 -i 7 --tasks_per_batch 3 --val_iters 3 6 --num_val_tasks 5 "
    "--num_test_tasks 19 -lr 0.1 --momentum 0.9 --query_per_class 2 --print_freq 2"
)


@pytest.fixture
def torchrun() -> list[str]:
    """torchrun with two processes, on a port that is free."""
    return [*TORCHRUN, "--master-port", str(free_port())]


def assert_same_outcome(folder: Path, other: Path) -> None:
    """Up to the order in which sums are added."""
    assert_same_weights(folder, other)
    assert_same_answers(folder, other, near=1e-3)
    found, expected = ([(row["tasks"], row["split"]) for row in rows(path)] for path in (folder, other))
    assert found == expected


def assert_same_weights(folder: Path, other: Path) -> None:
    found, expected = (load_checkpoint(path / FINAL) for path in (folder, other))
    torch.testing.assert_close(found["model"], expected["model"], rtol=1e-4, atol=3e-5)
    assert found["progress"]["tasks_done"] == expected["progress"]["tasks_done"]


# One result ----------------------------------------------------------------------------------------------------------


def together(argv: list[str]) -> None:
    """The run by two processes."""
    assert as_one_job([argv, argv], run.main) == [0, 0]


@pytest.mark.parametrize(
    "flags",
    ["-lr 0.1", "--direct --tasks_per_call 3 --tasks_per_batch 6", "--freeze_backbone"],
    ids=lambda flags: flags.split()[0],
)
def test_two_processes_learn_and_answer_as_one(flags: str, dataset: Path, tmp_path: Path) -> None:
    assert run.main(tiny_run(dataset, tmp_path / "one", *LEARNS, *flags.split())) == 0
    together(tiny_run(dataset, tmp_path / "two", *LEARNS, *flags.split()))
    assert_same_outcome(tmp_path / "two", tmp_path / "one")
    assert len(rows(tmp_path / "two", "predictions.csv")) == 19 * 2
    assert not (tmp_path / "two" / "features").exists()


def test_synchronised_batch_norm_is_batch_norm_over_the_clips_of_all(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2)).double()
    inputs = torch.randn(8, 3, 6, 6, dtype=torch.float64)

    def work(_: list[str]) -> int:
        processes = Processes(timeout=60)
        own = copy.deepcopy(net)
        unused = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(3))
        synchronise_batch_norms(own)
        share = inputs[:5] if processes.is_first else inputs[5:]  # unequal shares
        own(share).square().sum().backward()
        if not processes.is_first:
            unused[0].grad = torch.ones(2)  # which the first process has none of
        processes.add_gradients([*own.parameters(), *unused])
        assert torch.equal(unused[0].grad, torch.ones(2))
        assert unused[1].grad is None
        assert processes.gather(processes.rank) == [0, 1]
        shares = processes.gather(list(processes.share(range(7))))
        assert shares == [[0, 2, 4, 6], [1, 3, 5]]
        assert processes.in_order(shares) == list(range(7))
        if not processes.is_first:
            own[1].weight.data.zero_()
        processes.broadcast(own)
        torch.save((own.state_dict(), [p.grad for p in own.parameters()]), tmp_path / f"rank{processes.rank}.pt")
        processes.close()
        return 0

    assert as_one_job([[], []], work) == [0, 0]
    net(inputs).square().sum().backward()
    for rank in (0, 1):
        state, gradients = torch.load(tmp_path / f"rank{rank}.pt")
        torch.testing.assert_close(state, dict(net.state_dict()))
        torch.testing.assert_close(gradients, [parameter.grad for parameter in net.parameters()])


def test_synchronised_batch_norms_train_in_a_job(dataset: Path, tmp_path: Path) -> None:
    """Two processes with one task each see the clips of both, as one process with both in one call does."""
    flags = [*LEARNS, "--trans_dropout", "0", "-i", "4", "--tasks_per_batch", "2"]
    assert run.main(tiny_run(dataset, tmp_path / "one", *flags, "--tasks_per_call", "2")) == 0
    together(tiny_run(dataset, tmp_path / "two", *flags, "--bn", "sync"))
    assert_same_weights(tmp_path / "two", tmp_path / "one")


def test_running_statistics_are_replayed_in_the_order_of_tasks() -> None:
    norm = nn.BatchNorm2d(3, momentum=0.3).double().train()
    tasks = [torch.randn(4, 3, 2, 2, dtype=torch.float64) + i for i in range(5)]
    expected = nn.BatchNorm2d(3, momentum=0.3).double().train()
    for task in tasks:
        expected(task), expected(task)
    parts = []
    for rank in (0, 1):
        statistics = RunningStatistics(norm)
        before = {name: value.clone() for name, value in norm.state_dict().items()}
        for task in tasks[rank::2]:
            with statistics.collect():
                norm(task), norm(task)
        torch.testing.assert_close(dict(norm.state_dict()), before)
        parts.append(statistics.passes)
    statistics.merge(Processes().in_order(parts))
    torch.testing.assert_close(norm.state_dict(), expected.state_dict())


@pytest.fixture
def two_hosts() -> Iterator[list[list[str]]]:
    """Command prefixes that run something on one of two hosts, network namespaces of this machine, joined by a cable."""
    names = [f"few{os.getpid()}{end}" for end in "ab"]
    setup = [f"netns add {name}" for name in names]
    setup.append(f"link add {names[0]} netns {names[0]} type veth peer name {names[1]} netns {names[1]}")
    for number, name in enumerate(names, start=1):
        setup.append(f"-n {name} addr add 10.77.0.{number}/24 dev {name}")
        setup += [f"-n {name} link set {device} up" for device in (name, "lo")]
    try:
        for command in setup:
            subprocess.run(["ip", *command.split()], check=True, capture_output=True)
        yield [["ip", "netns", "exec", name, "env", f"GLOO_SOCKET_IFNAME={name}"] for name in names]
    except (FileNotFoundError, subprocess.CalledProcessError):
        pytest.skip("two hosts on one machine need the ip command and the right to make network namespaces")
    finally:
        for name in names if shutil.which("ip") else []:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


def test_two_hosts_learn_and_answer_as_one(dataset: Path, tmp_path: Path, two_hosts: list[list[str]]) -> None:
    argv = tiny_run(dataset, tmp_path / "two", *LEARNS)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=1", "--nnodes=2"]
    first = ["--master-addr=10.77.0.1", "--master-port=29500"]
    hosts = [
        [*host, *torchrun, *first, f"--node-rank={number}", "run.py", *argv] for number, host in enumerate(two_hosts)
    ]
    with job(hosts[1]) as second:
        finish(hosts[0])
        out, _ = second.communicate(timeout=60)
    assert second.returncode == 0, out
    assert run.main(tiny_run(dataset, tmp_path / "one", *LEARNS)) == 0
    assert_same_outcome(tmp_path / "two", tmp_path / "one")


FAKE_SLURM = {
    "srun": 'shift; exec "$@"',
    "scontrol": 'if [ "$1" = show ]; then echo localhost; else echo "$@" >> "$REQUESTS"; fi',
}


def test_the_slurm_script_starts_goes_on_and_asks_to_be_queued_again(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, torchrun: list[str]
) -> None:
    """With stand-ins for SLURM's own commands: one that starts on this machine, one that notes what it is asked for."""
    for name, does in FAKE_SLURM.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{does}\n")
        (tmp_path / name).chmod(0o755)
    requests = tmp_path / "requests"
    given = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_NODELIST": "localhost", "SLURM_JOB_NUM_NODES": "1",
        "SLURM_JOB_ID": "7", "SLURM_GPUS_ON_NODE": "2", "SLURM_SUBMIT_DIR": str(ROOT), "REQUESTS": str(requests),
        "LAUNCH": f"{sys.executable} -m torch.distributed.run", "MASTER_PORT": torchrun[-1],
    }  # fmt: skip
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    folder = tmp_path / "run"
    script = ["bash", "scripts/slurm.sh", *tiny_run(dataset, folder, *LONG)]
    with job([*script, "-lr", "0.001", "-i", "100000", "--save_freq", "0", "--val_iters", "999999"]) as process:
        wait_for(lambda: (folder / "log.csv").exists() and "train" in (folder / "log.csv").read_text(), process)
        os.killpg(process.pid, signal.SIGTERM)  # as srun passes on what --signal asks for
        out, _ = process.communicate(timeout=60)
    assert process.returncode != 0
    assert (folder / LATEST).exists(), out
    assert load_checkpoint(folder / LATEST)["progress"]["tasks_done"] > 0


# Losing one ----------------------------------------------------------------------------------------------------------

LONG = [*LEARNS, "-i", "12", "--save_freq", "3", "--val_iters", "6"]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the workers through /proc")
def test_a_worker_that_is_killed_is_started_again_and_the_run_ends_as_if_undisturbed(
    dataset: Path, tmp_path: Path, torchrun: list[str]
) -> None:
    together(tiny_run(dataset, tmp_path / "whole", *LONG))
    folder = tmp_path / "killed"
    with job([*torchrun, "--max-restarts", 3, "run.py", *tiny_run(dataset, folder, *LONG), "-r"]) as process:
        wait_for((folder / LATEST).exists, process)
        os.kill(workers_of(process)[1], signal.SIGKILL)
        out, _ = process.communicate(timeout=120)
    assert process.returncode == 0, out
    assert "resuming after" in (folder / "log.txt").read_text()
    for name in ("log.csv", "predictions.csv"):
        assert (folder / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    ends = [load_checkpoint(path / FINAL)["model"] for path in (folder, tmp_path / "whole")]
    torch.testing.assert_close(*ends, rtol=0, atol=0)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the workers through /proc")
def test_a_process_that_hangs_is_named(dataset: Path, tmp_path: Path, torchrun: list[str]) -> None:
    folder = tmp_path / "run"
    flags = [*LEARNS, "-lr", "0.001", "-i", "100000", "--save_freq", "3", "--val_iters", "999999", "--timeout", "3"]
    said = tmp_path / "said.txt"
    with said.open("w") as output, job([*torchrun, "run.py", *tiny_run(dataset, folder, *flags)], output) as process:
        wait_for((folder / LATEST).exists, process)
        os.kill(workers_of(process)[1], signal.SIGSTOP)
        wait_for(lambda: "error: " in said.read_text(), process)
    (sentence,) = [line for line in said.read_text().splitlines() if line.startswith("error: ")]
    assert "rank 1 of 2 did not answer rank 0 within 3 s" in sentence
    assert "resume from the last checkpoint with -r" in sentence


def test_a_run_that_is_terminated_saves_and_goes_on_exactly(dataset: Path, tmp_path: Path) -> None:
    flags = [*LONG, *shlex.split("-i 120 --save_freq 0 --val_iters 999 --num_test_tasks 4 --num_workers 1 -lr 0.001")]
    assert run.main(tiny_run(dataset, tmp_path / "whole", *flags)) == 0
    folder = tmp_path / "terminated"
    with job([sys.executable, "run.py", *tiny_run(dataset, folder, *flags)]) as process:
        wait_for(lambda: (folder / "log.csv").exists() and (folder / "log.csv").read_text().count("train") > 3, process)
        os.killpg(process.pid, signal.SIGTERM)  # as a scheduler does, which signals the readers too
        out, _ = process.communicate(timeout=60)
    assert process.returncode == TERMINATED, out
    assert "terminated; resume from the last checkpoint with -r" in out
    assert "Traceback" not in out
    done = load_checkpoint(folder / LATEST)["progress"]["tasks_done"]
    assert 0 < done < 120
    assert run.main(["-c", str(folder), "-r", "--num_workers", "0"]) == 0
    for name in ("log.csv", "predictions.csv"):
        assert (folder / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_all_processes_stop_when_one_is_terminated(dataset: Path, tmp_path: Path) -> None:
    """The last task of all is far away."""
    folder = tmp_path / "run"
    argv = tiny_run(
        dataset, folder, *LEARNS, "-i", "100000", "--save_freq", "0", "--val_iters", "999999", "-lr", "0.001"
    )

    def main(flags: list[str]) -> int:
        if os.environ["RANK"] == "1":
            train_call, calls = run.Learner.train_call, itertools.count()

            def terminated_in(learner: run.Learner, *args: Any) -> Any:
                if next(calls) == 4:
                    os.kill(os.getpid(), signal.SIGTERM)
                return train_call(learner, *args)

            run.Learner.train_call = terminated_in  # type: ignore[method-assign]
        return run.main(flags)

    assert as_one_job([argv, argv], main) == [TERMINATED, TERMINATED]
    assert load_checkpoint(folder / LATEST)["progress"]["tasks_done"] > 0


# Mistakes ------------------------------------------------------------------------------------------------------------


def test_a_mistake_is_told_once(dataset: Path, tmp_path: Path, torchrun: list[str]) -> None:
    with job([*torchrun, "run.py", *tiny_run(dataset, tmp_path / "run", "--way", 99)]) as process:
        out, _ = process.communicate(timeout=60)
    assert process.returncode != 0
    assert out.count("a 99-way episode needs 99") == 1
    assert not (tmp_path / "run").exists()


def test_a_restarted_process_goes_on_and_a_first_start_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    restarted = resumed_if_restarted
    flags = ["-c", str(tmp_path / "run"), "--way", "5"]
    assert restarted([*flags, "-r"]) == [*flags, "-r"], "without torchrun nothing is changed"
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    assert restarted([*flags, "-r"]) == flags
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "args.json").write_text("{}")
    assert restarted(flags) == flags
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert restarted(flags) == [*flags, "-r"]
    assert restarted([*flags, "--test_only"]) == [*flags, "--test_only"]


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ("--frames_per_call 8", "add --bn frozen"),
        ("--tasks_per_call 3 --tasks_per_batch 4", "expected a divisor of --tasks_per_batch 4"),
        ("--compile --checkpoint_activations", "give one of them"),
        ("--timeout 0", "--timeout is 0.0: expected more than 0"),
        ("--num_gpus 99", "but this machine has"),
    ],
)
def test_settings_that_contradict_each_other(
    flags: str, sentence: str, dataset: Path, tmp_path: Path, program: Any
) -> None:
    assert sentence in program.fails(*tiny_run(dataset, tmp_path / "run", *flags.split()))
