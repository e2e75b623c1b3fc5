"""pack_lmdb.py keeps every byte, and survives what stops it."""

from __future__ import annotations

import os
import resource
import signal
from pathlib import Path

import numpy as np
import pytest
from conftest import write_video
from video_clips import in_a_process, make_clip

from clips.frame_sources import BadVideo, FrameFolder, LmdbStore, VideoFile
from data_prep import extract, pack_lmdb

VIDEOS = 10


@pytest.fixture
def src(tmp_path) -> Path:
    folder = tmp_path / "frames"
    for number in range(VIDEOS):
        write_video(
            folder / "train" / ("run", "jump [x] é")[number % 2] / f"#v {number}", seed=number, frames=2 + number
        )
    write_video(folder / "val" / "eat" / "v", seed=99)
    return folder


def run(src: Path, dst: Path, *flags: str) -> int:
    return pack_lmdb.main(["--src", str(src), "--dst", str(dst), "--jobs", "2", *flags])


def test_every_frame_and_count_is_kept(src, tmp_path):
    assert run(src, tmp_path / "packed") == 0
    assert sorted(path.name for path in (tmp_path / "packed").iterdir()) == ["train.lmdb", "val.lmdb"]
    store = LmdbStore(tmp_path / "packed" / "train.lmdb")
    assert list(store.index["videos"]) == ["jump [x] é", "run"]
    assert store.index["videos"]["run"] == {f"#v {number}": 2 + number for number in (0, 2, 4, 6, 8)}
    for label, videos in store.index["videos"].items():
        for name, frames in videos.items():
            whole = FrameFolder(src / "train" / label / name).read(range(frames))
            np.testing.assert_array_equal(store.video(label, name).read(range(frames)), whole)


def test_video_files_are_packed_as_they_are(tmp_path):
    clip = make_clip(tmp_path / "videos" / "test" / "run" / "v.mp4")
    assert run(tmp_path / "videos", tmp_path / "packed") == 0
    video = LmdbStore(tmp_path / "packed" / "test.lmdb").video("run", "v")
    assert video.num_frames == 10
    np.testing.assert_array_equal(video.read([9, 2]), VideoFile(clip).read([9, 2]))


def test_after_a_kill_the_same_command_completes_it(src, tmp_path, monkeypatch, capfd):
    dst = tmp_path / "packed"
    calls = []

    def packed_then_die(video: Path) -> bytes | str:
        calls.append(video)
        if len(calls) == 7:  # in the second batch
            os.kill(os.getpid(), signal.SIGKILL)
        return packed(video)

    packed = pack_lmdb.packed
    monkeypatch.setattr(pack_lmdb, "BATCH", 4)
    with monkeypatch.context() as patch:
        patch.setattr(pack_lmdb, "packed", packed_then_die)
        assert in_a_process(lambda: run(src, dst)) == -9
    with pytest.raises(BadVideo, match="never finished"):
        _ = LmdbStore(dst / "train.lmdb").index
    _forget(dst / "train.lmdb")
    capfd.readouterr()
    assert run(src, dst) == 0
    assert "train: 10 videos, 6 to do" in capfd.readouterr().out
    assert run(src, dst, "--verify") == 0
    assert "train: 10 of 10 videos are as in the source" in capfd.readouterr().out


def _forget(path: Path) -> None:
    """Closes this process's handle, as a process of its own would have ended by now."""
    from clips import frame_sources

    frame_sources._ENVIRONMENTS.pop(str(path)).close()


def test_the_map_grows_with_the_content(src, tmp_path, monkeypatch):
    monkeypatch.setattr(pack_lmdb, "FIRST_MAP_SIZE", 64 * 1024)
    assert run(src, tmp_path / "packed") == 0
    assert run(src, tmp_path / "packed", "--verify") == 0
    assert (tmp_path / "packed" / "train.lmdb").stat().st_size > 64 * 1024


def test_a_full_disk_stops_and_goes_on(src, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(pack_lmdb, "BATCH", 2)

    def limited() -> int:
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))
        return run(src, tmp_path / "packed")

    assert in_a_process(limited) == 2
    assert "full" in capfd.readouterr().err
    assert run(src, tmp_path / "packed") == 0
    assert run(src, tmp_path / "packed", "--verify") == 0


def test_damaged_videos_are_named_and_left_out(src, tmp_path, capsys):
    (src / "val/eat/empty").mkdir()
    os.truncate(src / "train/run/#v 0/2.jpg", 30)
    assert run(src, tmp_path / "packed") == 1
    failed = dict(line.split("\t") for line in (tmp_path / "packed" / "failed.txt").read_text().splitlines())
    assert failed.pop("train/run/#v 0") == "2.jpg is cut short"
    assert failed.pop("val/eat/empty") == "the folder holds no .jpg or .png file"
    assert not failed
    index = LmdbStore(tmp_path / "packed" / "train.lmdb").index
    assert "#v 0" not in index["videos"]["run"]


def test_the_longest_names_are_keys(tmp_path):
    label, name = "é" * 127 + "v", "v" + "é" * 127
    write_video(tmp_path / "frames" / "train" / label / name, frames=3)
    assert run(tmp_path / "frames", tmp_path / "packed") == 0
    assert LmdbStore(tmp_path / "packed" / "train.lmdb").video(label, name).num_frames == 3


def test_verify_finds_what_differs(src, tmp_path, capsys):
    run(src, tmp_path / "packed")
    write_video(src / "train" / "run" / "new", seed=5)
    image = src / "val/eat/v/1.jpg"
    image.write_bytes(image.read_bytes()[:-3] + b"\x00\xff\xd9")
    assert run(src, tmp_path / "packed", "--verify") == 1
    failed = (tmp_path / "packed" / "failed.txt").read_text()
    assert failed.count("\n") == 2
    assert "train/run/new\t" in failed
    assert "val/eat/v\t" in failed


def test_mistakes_are_sentences(src, tmp_path, capsys):
    dst = tmp_path / "packed"
    assert run(src, dst, "--verify") == 2
    assert "pack first" in capsys.readouterr().err
    assert run(src / "train", dst) == 2
    make_clip(src / "train" / "run" / "v.mp4")
    assert run(src, dst) == 2
    assert "holds both" in capsys.readouterr().err
    (src / "train" / "run" / "v.mp4").unlink()
    assert run(src, dst) == 0
    make_clip(tmp_path / "videos" / "train" / "run" / "v.mp4")
    assert run(tmp_path / "videos", dst) == 2
    assert "begun with images" in capsys.readouterr().err
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "train.lmdb").write_bytes(b"no database" * 1000)
    assert run(src, tmp_path / "other") == 2
    assert "could not write" in capsys.readouterr().err
    with extract.alone(dst, "pack"):
        assert run(src, dst) == 2
    assert "another process" in capsys.readouterr().err
