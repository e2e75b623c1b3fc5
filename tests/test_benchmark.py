"""The benchmark runs, and counts time and memory as it says."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Iterator

import numpy as np
import pytest
import torch

import run
from clips.frame_sources import VideoFile
from methods import METHODS
from results.terminal import Row
from scripts import benchmark
from scripts.bench import files, floors, gpu_check, memory, stored_tests, timing


def test_every_section_runs_and_is_in_the_table(capsys, monkeypatch):
    """Programs are not started, which takes seconds, but called."""
    started, otherwise = [], subprocess.run

    def call(command, **how):
        if "run.py" not in command:
            return otherwise(command, **how)
        started.append(command[: command.index("run.py")])
        assert run.main(command[len(started[-1]) + 1 :]) == 0
        return None

    monkeypatch.setattr(benchmark.subprocess, "run", call)
    assert benchmark.main(["--quick"]) == 0
    assert ["torch.distributed.run" in launcher for launcher in started] == [True, False]
    table = capsys.readouterr().out
    for what in ("episode of 80 frames", "tsn head, training", "trx head, forward, memory", "ARN's training step",
                 "training step", "test episode", "opening 60 videos", "2 processes", "supervised training step", "6 views",
                 torch.__version__):  # fmt: skip
        assert what in table


def test_every_table_has_its_rows(capsys, monkeypatch):
    monkeypatch.setattr(memory, "SETTINGS", {"--method trx --backbone resnet18": ("--precision bf16", "--bn frozen")})
    assert benchmark.main(["--quick", "--table", *benchmark.TABLES]) == 0
    out = capsys.readouterr().out
    assert out.count("computed") == out.count(" 8 GB") == 2
    for first in ("conv4", "trx", "jpeg", "lmdb", "mp4", "training tasks", "test episodes"):
        assert re.search(rf"^{first} ", out, re.MULTILINE), first


def test_a_stored_test_is_measured_of_a_method_that_reads_names():
    rows = stored_tests.stored_test_rows(quick=True, methods=("clip_fsar",))
    assert [row[0] for row in rows] == ["clip_fsar"]


def test_a_busy_machine_is_measured_by_the_time_of_one_thread(monkeypatch, capsys):
    monkeypatch.setattr(timing.clock, "read", time.perf_counter)
    assert benchmark.main(["--quick", "--busy", "--only", "alignment"]) == 0
    assert torch.get_num_threads() == 1
    started = timing.clock()
    time.sleep(0.2)
    assert timing.clock() - started < 0.1


def test_the_parts_of_a_training_step_are_all_of_it():
    step = floors.TrainingStep("conv4", 32, 1, "fp32")
    weights = [parameter.clone() for parameter in step.head.parameters()]
    began = timing.clock()
    step()
    assert sum(step.seconds.values()) == pytest.approx(timing.clock() - began, rel=0.2)
    assert min(step.seconds.values()) > 0
    moved = [
        name.partition(".")[0]
        for (name, now), before in zip(step.head.named_parameters(), weights, strict=True)
        if not torch.equal(now, before)
    ]
    assert set(moved) == {"backbone", "transformers"}
    with torch.utils.flop_counter.FlopCounterMode(display=False) as counter:
        torch.ones(8, 8) @ torch.ones(8, 8)
    assert counter.get_total_flops() == 2 * 8**3  # as peak_flops counts


def test_spans_of_a_video_are_the_frames_that_the_library_reads(tmp_path):
    frames = files.moving_frames(np.random.default_rng(0), 64, 60)
    files.write_mp4(tmp_path / "video.mp4", frames)
    wanted = [0, 8, 24, 25, 59]
    clip, own = (
        files.decode_spans(tmp_path / "video.mp4", wanted, (64, 64, 3)),
        VideoFile(tmp_path / "video.mp4").read(wanted),
    )
    assert abs(clip.astype(int) - own).max() <= 2


# A machine with a GPU -------------------------------------------------------------------------------------------------


def test_without_a_gpu_one_sentence_says_so(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu_check.main([str(tmp_path)]) == 2
    assert capsys.readouterr().err == "no GPU that torch can use is in this machine: run this on one that has one\n"
    assert not list(tmp_path.iterdir())


def test_parts_that_fail_or_take_too_long_leave_the_others_their_rows():
    def failing() -> Iterator[Row]:
        yield ["1"]
        raise AssertionError("no good")

    def endless() -> Iterator[Row]:
        while True:
            time.sleep(0.01)
            yield ["2"]

    rows = {"fine": lambda: iter([["3"], ["4"]]), "bad": failing, "long": endless, "late": endless}
    parts = [gpu_check.Part(title, ["number"], function) for title, function in rows.items()]
    outcomes = list(gpu_check.measured(parts, time.monotonic() + 0.2, show=lambda line: None))
    assert [outcome.complete for outcome in outcomes] == [True, False, False, False]
    assert [len(outcome.rows) for outcome in outcomes[:2]] == [2, 1]
    assert len(outcomes[2].rows) > 1
    assert not outcomes[3].rows
    text = gpu_check.markdown({"device": "a GPU", "torch": "2"}, outcomes)
    assert "## fine\n\n| number |\n| --- |\n| 3 |\n| 4 |\n\n## bad" in text
    assert "**Failed**: AssertionError: no good" in text
    assert text.count("The time was up before the end.") == 2


@pytest.mark.parametrize(
    "flags",
    [
        "--backbone resnet18",
        "--backbone resnet18 --checkpoint_activations",
        "--backbone timm:vit_tiny_patch16_224 --img_size 64",
        "--backbone timm:vit_tiny_patch16_224 --img_size 64 --lora 4",
        "--backbone timm:vit_tiny_patch16_224 --img_size 64 --train_layers last:1",
    ],
)
def test_computed_peak_memory(flags: str):
    """What is computed without making a tensor is what the tensors of a real step occupy."""
    flags = f"--method tsn --seq_len 2 {flags}"
    computed = memory.computed_peak(flags, 10, 64, lambda head, features: 0.0)
    head = memory.build(flags)
    measured = timing.peak_bytes(memory.step(head, 10, 64)) + sum(
        tensor.nbytes for tensor in head.state_dict().values()
    )
    # Room that convolutions take while they work is measured and not computed; it differs from processor to processor.
    assert 0.95 < measured / computed < 1.35


def test_one_section_alone(capsys):
    assert benchmark.main(["--quick", "--only", "start_up"]) == 0
    assert "trx" not in capsys.readouterr().out
    assert benchmark.main(["--only", "everything"]) == 2


def test_a_race_counts_seconds_of_both_in_turn_after_a_run_of_each():
    order = []

    def work(name: str, seconds: float) -> None:
        order.append(name)
        time.sleep(seconds)

    comparison = timing.race("a", "b", lambda: work("ours", 0.01), lambda: work("other", 0.03), 3)
    assert order == ["ours", "other"] * 4
    assert len(comparison.ours) == len(comparison.other) == 3
    assert min(comparison.ours) >= 0.01
    assert min(comparison.other) >= 0.03


def test_ratio_is_the_median_of_pairs():
    comparison = timing.Comparison("ours", "other", ours=[1.0, 2.0, 1.0], other=[3.0, 4.0, 9.0])
    assert comparison.row() == ["ours", "other", "3.00", "2.00 to 9.00", "1.000 s", "4.000 s"]


def test_peak_memory_is_what_tensors_occupy_at_one_time():
    megabyte = 250_000  # float32 numbers

    def work() -> None:
        kept = torch.zeros(2 * megabyte)
        for _ in range(3):
            torch.zeros(3 * megabyte)
        del kept
        torch.zeros(4 * megabyte)

    assert timing.peak_bytes(work) == pytest.approx(5e6, rel=0.01)


def test_pillow_form_reads_the_pixels_of_the_dataset(tmp_path):
    """So that both ways do the same work; only crops are drawn differently."""
    timing.write_videos(tmp_path / "train", videos_per_class=2, side=64)
    split = benchmark.Split.open(tmp_path, "train")
    dataset = benchmark.VideoDataset(
        split, way=5, shot=1, queries=1, seq_len=8, transform=benchmark.ClipTransform(56), seed=0
    )
    episode = dataset[0]
    folders = [tmp_path / "train" / name for name in episode["support_videos"]]
    frames = benchmark.read_with_pillow(folders, 56)
    assert frames.shape == episode["support_set"].shape
    assert frames.dtype == torch.float32
    assert (frames.mean(dim=(1, 2, 3)) * 255 - episode["support_set"].float().mean(dim=(1, 2, 3))).abs().max() < 15


def test_the_check_on_a_gpu_asks_every_method():
    rows = list(gpu_check.equal_to_cpu("conv4"))  # here with the CPU on both sides
    assert rows == [[method, "0.0e+00", "0.0e+00"] for method in METHODS]
