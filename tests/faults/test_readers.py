"""Processes that read ahead: whatever becomes of them, the run goes on right or ends in seconds with a sentence."""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import resource
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Program, tiny_run

import run
from clips.frame_sources import BadVideo
from clips.read_ahead import read_ahead
from faults.conditions import ending_of, program, with_small_shm
from utils import UserError
from video_reader import VideoDataset

SECONDS = 40  # an error ends a run in far less, were the machine not busy
WORKERS = ["--num_workers", 2]

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="limits and /proc are Linux's")


@on_linux
def test_a_small_shm_is_no_limit(dataset: Path, tmp_path: Path) -> None:
    size = ["--img_size", 64, "-i", 6]
    assert 4 * 3 * 3 * 64 * 64 > 8 * 16384  # the frames of one episode
    assert run.main([str(flag) for flag in tiny_run(dataset, tmp_path / "plain", *size)]) == 0
    there = program(tiny_run(dataset, tmp_path / "small", *size, *WORKERS))
    ending = ending_of(with_small_shm(there, 16384), tmp_path)
    assert ending.code == 0, ending.said
    for name in ("log.csv", "predictions.csv"):
        assert (tmp_path / "small" / name).read_bytes() == (tmp_path / "plain" / name).read_bytes()


@pytest.mark.parametrize("cause", ["SIGKILL", "SIGBUS"])
def test_a_reader_that_dies_ends_the_run_at_once(
    cause: str, dataset: Path, tmp_path: Path, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, here = VideoDataset.__getitem__, os.getpid()

    def dying(self: VideoDataset, index: int) -> dict[str, Any]:
        if index == 3 and os.getpid() != here:
            faulthandler.disable()  # pytest's would tell of it
            os.kill(os.getpid(), getattr(signal, cause))
        return read(self, index)

    monkeypatch.setattr(VideoDataset, "__getitem__", dying)
    started = time.monotonic()
    sentence = program.fails(*tiny_run(dataset, tmp_path / "run", *WORKERS))
    assert time.monotonic() - started < SECONDS
    assert f"has died ({cause})" in sentence
    assert "each such process keeps 2 items ready, the last of 0.0 MB" in sentence
    assert "lower --num_workers" in sentence
    assert not multiprocessing.active_children()


def test_a_damaged_frame_ends_a_training_with_workers_in_seconds(own_dataset: Path, tmp_path: Path) -> None:
    """In a process of its own: it was the end of the process that took a minute."""
    argv = tiny_run(own_dataset, tmp_path / "run", *WORKERS, "-i", 40, "--val_iters", 40)
    for video in (own_dataset / "train").glob("swing_baseball/*_00[1-4]"):
        frame = video / "6.jpg"
        frame.write_bytes(frame.read_bytes()[:300])
    ending = ending_of(program(argv), tmp_path)
    sentence = ending.sentence()
    assert "task 2/40" in ending.said  # the first picture of a run is read without workers
    assert "6.jpg is damaged" in sentence
    assert "extract the video again, or leave it out with --on_bad_video skip" in sentence
    assert ending.seconds < SECONDS


def few_files(argv: list[str], more: int) -> Any:
    def work() -> int:
        limit = len(os.listdir("/proc/self/fd")) + more
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
        return program(argv)()

    return work


@on_linux
def test_few_open_files_are_enough_or_a_sentence(dataset: Path, tmp_path: Path) -> None:
    enough = ending_of(few_files(tiny_run(dataset, tmp_path / "enough", "-i", 2, *WORKERS), 40), tmp_path)
    assert enough.code == 0, enough.said
    many = tiny_run(dataset, tmp_path / "many", "-i", 60, "--num_workers", 25)
    ending = ending_of(few_files(many, 40), tmp_path)
    assert "could not start process" in ending.sentence()
    assert "of the 25 that read ahead (Too many open files): lower --num_workers" in ending.sentence()
    assert ending.seconds < SECONDS


@on_linux
@pytest.mark.parametrize("where", ["in the reader", "here"])
def test_no_room_to_hand_an_item_over_is_a_sentence(where: str, request: pytest.FixtureRequest) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)

    def read(index: int) -> torch.Tensor:
        if where == "in the reader":
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        return torch.ones(10_000)

    items = read_ahead(read, range(9), 1)
    kept = []
    if where == "here":
        kept.append(next(items))
        lowest_free = os.dup(0)
        os.close(lowest_free)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, hard))
        request.addfinalizer(lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard)))
    with pytest.raises(UserError, match="no room to hand over .*(File too large|Too many open files).* --num_workers"):
        kept.extend(items)


@on_linux
def test_readers_end_with_a_process_that_is_killed(tmp_path: Path) -> None:
    def work() -> int:
        for pid in read_ahead(lambda index: os.getpid(), range(1000), 3):
            with open(tmp_path / "readers.txt", "a") as file:
                file.write(f"{pid}\n")
            if (tmp_path / "readers.txt").read_text().count("\n") == 6:
                os.kill(os.getpid(), signal.SIGKILL)
        return 0

    assert ending_of(work, tmp_path).code == -signal.SIGKILL
    readers = {int(pid) for pid in (tmp_path / "readers.txt").read_text().split()}
    assert len(readers) == 3
    give_up = time.monotonic() + SECONDS
    while any(_lives(pid) for pid in readers):
        assert time.monotonic() < give_up
        time.sleep(0.01)


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_items_that_nobody_takes_leave_no_process() -> None:
    items = read_ahead(lambda index: index, range(1000), 2)
    assert next(items) == 0
    assert len(multiprocessing.active_children()) == 2
    del items
    assert not multiprocessing.active_children()


def test_items_arrive_as_they_were_read() -> None:
    frames = torch.arange(2 * 4 * 5 * 3, dtype=torch.uint8).view(2, 4, 5, 3)
    item = {
        "channels last": frames.permute(0, 3, 1, 2),
        "one of a size": frames[:1, :, :, :1].permute(0, 3, 1, 2),
        "with gaps": frames[:, ::2, 1:],
        "repeated": torch.tensor([1.5, 2.5]).expand(3, 2),
        "empty": torch.empty(0, 3, dtype=torch.int64),
        "number": torch.tensor(3, dtype=torch.bfloat16),
        "bool": torch.tensor([True, False]),
        "others": [BadVideo("it is bad"), None, ("überholen", b"\0" * 300_000)],
    }
    there = list(read_ahead(lambda index: {**item, "index": index}, range(5), 2))
    assert [got["index"] for got in there] == list(range(5))
    for got in there:
        for name in list(item)[:7]:
            assert got[name].dtype == item[name].dtype
            assert torch.equal(got[name], item[name])
        assert got["channels last"].stride() == item["channels last"].stride()
        assert str(got["others"][0]) == "it is bad"
        assert got["others"][1:] == item["others"][1:]
        got["channels last"].zero_()  # an item is its owner's
    assert frames.any()


def test_what_goes_wrong_in_a_reader_is_told_with_its_trace() -> None:
    def read(index: int) -> Any:
        return {0: 0}[index] if index < 2 else (lambda: 0)

    with pytest.raises(RuntimeError, match=r"a process that reads ahead failed(.|\n)*KeyError: 1"):
        list(read_ahead(read, range(2), 1))
    with pytest.raises(RuntimeError, match=r"a process that reads ahead failed(.|\n)*Pickler"):
        list(read_ahead(read, range(2, 4), 1))
