"""shrink.py keeps the frames that training would read, and survives what stops it."""

from __future__ import annotations

import os
import resource
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import write_video
from video_clips import in_a_process, tree

from clips.frame_sampling import sample_frames
from clips.frame_sources import FrameFolder, frame_files
from clips.transforms import ClipTransform
from clips.video_split import Split
from data_prep import extract, shrink
from video_reader import VideoDataset

LENGTHS = {"short": 3, "even": 8, "odd": 13, "long": 30}


@pytest.fixture
def src(tmp_path) -> Path:
    """Two train classes, one test class, videos shorter and longer than 8 frames."""
    folder = tmp_path / "whole"
    for number, label in enumerate(("train/jump", "train/run", "test/eat #1")):
        for video, (name, frames) in enumerate(LENGTHS.items()):
            write_video(folder / label / name, seed=10 * number + video, frames=frames)
    return folder


def run(src: Path, dst: Path, *flags: str) -> int:
    return shrink.main(["--src", str(src), "--dst", str(dst), "--frames", "8", "--jobs", "1", *flags])


@pytest.mark.parametrize("by", ["copy", "link"])
def test_kept_frames_are_those_that_linspace_reads(by, src, tmp_path):
    before = tree(src)
    assert run(src, tmp_path / "small", "--by", by) == 0
    for name, frames in LENGTHS.items():
        whole, small = FrameFolder(src / "train/run" / name), FrameFolder(tmp_path / "small/train/run" / name)
        assert small.names == [f"{number:05d}.jpg" for number in range(1, 9)]
        expected = whole.read(sample_frames(frames, 8, "linspace"))
        np.testing.assert_array_equal(small.read(sample_frames(8, 8, "linspace")), expected)
    assert tree(src) == before
    links = (src / "train/run/long/1.jpg").stat().st_nlink
    assert links == (2 if by == "link" else 1)


def test_episodes_of_the_small_set_are_those_of_the_whole(src, tmp_path):
    run(src, tmp_path / "small")

    def episode(dataset: Path) -> dict:
        episodes = VideoDataset(
            Split.open(dataset, "train"),
            way=2,
            shot=1,
            queries=2,
            seq_len=8,
            transform=ClipTransform(24, train=True),
            seed=3,
        )
        return episodes[5]

    whole, small = episode(src), episode(tmp_path / "small")
    assert whole["support_videos"] == small["support_videos"]
    assert torch.equal(whole["support_set"], small["support_set"])
    assert torch.equal(whole["target_set"], small["target_set"])


def test_encode_scales(src, tmp_path):
    assert run(src, tmp_path / "small", "--by", "encode", "--size", "20x10") == 0
    small = FrameFolder(tmp_path / "small/train/jump/odd").read(range(8))
    assert small.shape == (8, 10, 20, 3)
    whole = FrameFolder(src / "train/jump/odd").read(sample_frames(13, 8))
    means = whole.reshape(8, -1, 3).mean(1), small.reshape(8, -1, 3).mean(1)
    np.testing.assert_allclose(*means, atol=4)


def test_sizes_need_encode(src, tmp_path, capsys):
    assert run(src, tmp_path / "small", "--size", "20x10") == 2
    assert "--by encode" in capsys.readouterr().err
    assert not (tmp_path / "small").exists()


def test_after_a_kill_the_same_command_completes_it(src, tmp_path, monkeypatch):
    dst = tmp_path / "small"
    calls = []

    def copy_then_die(image: Path, target: Path) -> None:
        calls.append(image)
        if len(calls) >= 30 and any(dst.glob("*/*/*")):  # when one video is whole and another is not
            os.kill(os.getpid(), signal.SIGKILL)
        target.write_bytes(image.read_bytes())

    with monkeypatch.context() as patch:
        patch.setattr(shrink, "copy", copy_then_die)
        assert in_a_process(lambda: run(src, dst)) == -9
    finished = extract.video_folders(dst)
    assert 0 < len(finished) < 12
    assert all(len(frame_files(dst / video)) == 8 for video in finished)
    assert any((dst / extract.UNFINISHED).rglob("*.jpg"))
    assert run(src, dst) == 0
    run(src, tmp_path / "unbroken")
    assert tree(dst) == tree(tmp_path / "unbroken")
    assert len(extract.video_folders(dst)) == 12


def test_damaged_videos_are_named_and_the_others_made(src, tmp_path, capsys):
    (src / "train/run/empty").mkdir()
    os.truncate(src / "train/run/odd/13.jpg", 50)
    assert run(src, tmp_path / "small") == 1
    failed = (tmp_path / "small" / "failed.txt").read_text().splitlines()
    assert sorted(failed) == [
        "train/run/empty\tthe folder holds no .jpg or .png file",
        "train/run/odd\t13.jpg is cut short",
    ]
    assert len(extract.video_folders(tmp_path / "small")) == 11


def test_a_full_disk_stops_and_goes_on(src, tmp_path, capfd):
    dst = tmp_path / "small"

    def limited() -> int:
        resource.setrlimit(resource.RLIMIT_FSIZE, (800, 800))
        return run(src, dst)

    assert in_a_process(limited) == 2
    assert "full" in capfd.readouterr().err
    assert run(src, dst) == 0
    assert len(tree(dst)) == 12 * 8


def test_mistakes_are_sentences(src, tmp_path, capsys):
    dst = tmp_path / "small"
    assert run(src, src / "small") == 2
    assert run(tmp_path / "nothing", dst) == 2
    assert run(src, dst) == 0
    assert shrink.main(["--src", str(src), "--dst", str(dst), "--frames", "4"]) == 2
    assert "begun with frames 8, now frames is 4" in capsys.readouterr().err
    with extract.alone(dst, "shrink"):
        assert run(src, dst) == 2
    assert "another process" in capsys.readouterr().err
