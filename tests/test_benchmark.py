"""The benchmark runs, and counts time and memory as it says."""

from __future__ import annotations

import time

import pytest
import torch

from scripts import benchmark
from scripts.bench import memory, timing


def test_every_section_runs_and_is_in_the_table(capsys):
    assert benchmark.main(["--quick"]) == 0
    table = capsys.readouterr().out
    for what in ("episode of 80 frames", "tsn head, training", "trx head, forward, memory", "ARN's training step",
                 "training step", "test episode", "opening 60 videos", "2 processes", "supervised training step", "6 views",
                 torch.__version__):  # fmt: skip
        assert what in table


def test_memory_table_and_computed_peak(capsys):
    """What is computed without making a tensor is what the tensors of a real step occupy."""
    assert benchmark.main(["--memory", "--quick"]) == 0
    table = capsys.readouterr().out
    assert table.count("computed") == 5
    assert table.count(" 8 GB") == 5
    flags = "--method tsn --backbone resnet18 --seq_len 2"
    computed = memory.computed_peak(flags, 10, 64, lambda head, features: 0.0)
    head = memory.build(flags)
    weights = sum(tensor.numel() * tensor.element_size() for tensor in head.state_dict().values())
    measured = timing.peak_bytes(memory.step(head, 10, 64)) + weights
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
