"""annotate.py writes the list formats of others and makes folders of them."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from conftest import write_video

from clips.frame_sources import FrameFolder
from clips.video_split import Split
from data_prep import annotate, extract


@pytest.fixture
def src(tmp_path) -> Path:
    folder = tmp_path / "data"
    for name, frames in {
        "train/run/a": 4,
        "train/run/b": 6,
        "train/jump/c": 5,
        "val/jump/d": 3,
        "val/swim/e": 2,
    }.items():
        write_video(folder / name, frames=frames)
    return folder


def write(src: Path, dst: Path, *flags: str) -> int:
    return annotate.main(["write", "--src", str(src), "--dst", str(dst), *flags])


def read(lists: Path, root: Path, dst: Path, *flags: str) -> int:
    files = sorted(str(path) for path in lists.glob("*.txt") if path.name != "category.txt")
    return annotate.main(["read", "--list", *files, "--root", str(root), "--dst", str(dst), *flags])


def test_frame_lists_number_classes_over_all_parts(src, tmp_path):
    assert write(src, tmp_path / "lists") == 0
    assert (tmp_path / "lists/category.txt").read_text() == "jump\nrun\nswim\n"
    assert (tmp_path / "lists/train.txt").read_text() == "train/jump/c 5 0\ntrain/run/a 4 1\ntrain/run/b 6 1\n"
    assert (tmp_path / "lists/val.txt").read_text() == "val/jump/d 3 0\nval/swim/e 2 2\n"
    assert not (tmp_path / "lists/test.txt").exists()


def test_lists_of_ranges_and_of_videos(src, tmp_path):
    assert write(src, tmp_path / "ranges", "--format", "ranges", "--separator", ";") == 0
    assert (tmp_path / "ranges/val.txt").read_text() == "val/jump/d;1;3;0\nval/swim/e;1;2;2\n"
    (src / "val/swim/clip.webm").touch()
    assert write(src, tmp_path / "videos", "--format", "video", "--first_label", "1") == 0
    assert (tmp_path / "videos/val.txt").read_text() == "val/swim/clip.webm 3\n"


@pytest.mark.parametrize("form", ["frames", "ranges"])
def test_reading_back_gives_the_same_data_set(form, src, tmp_path):
    write(src, tmp_path / "lists", "--format", form)
    names = str(tmp_path / "lists/category.txt")
    for _ in range(2):  # the second time all is there
        assert read(tmp_path / "lists", src, tmp_path / "again", "--format", form, "--names", names) == 0
    for split in ("train", "val"):
        before, after = Split.open(src, split), Split.open(tmp_path / "again", split)
        assert (before.classes, before.num_frames) == (after.classes, after.num_frames)
    folders = extract.video_folders(tmp_path / "again")
    assert folders[0] == ("train/jump/c" if form == "frames" else "train/jump/c_1_5")
    linked = FrameFolder(tmp_path / "again" / folders[0])
    np.testing.assert_array_equal(linked.read(range(5)), FrameFolder(src / "train/jump/c").read(range(5)))


def test_a_range_takes_its_frames_alone(src, tmp_path):
    (tmp_path / "train.txt").write_text("train/run/b 2 4 1\ntrain/run/b 5 6 0\n")
    (tmp_path / "category.txt").write_text("sit down\nstand up\n")
    names = ("--names", str(tmp_path / "category.txt"))
    assert read(tmp_path, src, tmp_path / "out", "--format", "ranges", *names) == 0
    assert extract.video_folders(tmp_path / "out") == ["train/sit_down/b_5_6", "train/stand_up/b_2_4"]
    linked = FrameFolder(tmp_path / "out/train/stand_up/b_2_4")
    np.testing.assert_array_equal(linked.read(range(3)), FrameFolder(src / "train/run/b").read([1, 2, 3]))


def test_images_of_another_kind_are_told_by_their_prefix(src, tmp_path):
    folder = src / "train/run/a"
    for number in range(1, 5):
        (folder / f"{number}.jpg").rename(folder / f"img_{number:05d}.jpg")
        (folder / f"flow_x_{number:05d}.jpg").symlink_to(f"img_{number:05d}.jpg")
    (tmp_path / "train.txt").write_text("train/run/a 4 0\n")
    assert read(tmp_path, src, tmp_path / "out", "--prefix", "img_") == 0
    names = sorted(os.listdir(tmp_path / "out/train/0000/a"))
    assert names == [f"img_{number:05d}.jpg" for number in range(1, 5)]


def test_videos_are_linked_with_or_without_their_suffix(tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    (root / "one two.avi").write_text("1")
    (root / "three.mp4").write_text("3")
    (tmp_path / "trainlist01.txt").write_text("one two.avi 1\nthree 2\n")
    for _ in range(2):
        assert read(tmp_path, root, tmp_path / "out", "--format", "video", "--first_label", "1") == 0
    assert (tmp_path / "out/train/0000/one two.avi").read_text() == "1"
    assert (tmp_path / "out/train/0001/three.mp4").read_text() == "3"


def test_what_is_not_there_is_named(src, tmp_path, capsys):
    (tmp_path / "val.txt").write_text("val/jump/d 3 0\nval/jump/../swim/e 4 0\nval/jump/gone 3 0\n")
    assert read(tmp_path, src, tmp_path / "out") == 1
    failed = (tmp_path / "out/failed.txt").read_text()
    assert "val/jump/gone\t" in failed
    assert "val/jump/../swim/e\t" in failed
    assert "3 videos listed, 1 linked" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("lines", "flags", "words"),
    [
        ("train/run/a four 0\n", (), "'path num_frames label'"),
        ("train/run/a 0\n", (), "'path num_frames label'"),
        ("train/run/a 4 0\n", ("--separator", ";"), "'path;num_frames;label'"),
        ("train/run/a 4 0\n", ("--first_label", "1"), "--first_label"),
        ("train/run/a 4 7\n", ("--names", "{names}"), "has 1 classes"),
        ("train/run/a 4 0\nother/a 4 0\n", (), "would both be"),
    ],
)
def test_lists_that_do_not_fit_are_refused(lines, flags, words, src, tmp_path, capsys):
    (tmp_path / "train.txt").write_text(lines)
    (tmp_path / "category.txt").write_text("run\n")
    flags = [flag.format(names=tmp_path / "category.txt") for flag in flags]
    assert read(tmp_path, src, tmp_path / "out", *flags) == 2
    assert words in capsys.readouterr().err


def test_names_that_hold_the_separator_are_refused(src, tmp_path, capsys):
    (src / "train/run").rename(src / "train/run fast")
    assert write(src, tmp_path / "lists") == 2
    assert "--separator" in capsys.readouterr().err
    assert write(src, tmp_path / "lists", "--separator", ";") == 0
