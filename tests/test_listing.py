"""What a split's folder may hold beside a split: it is read, or named once, and never ends in a stack trace."""

from __future__ import annotations

import multiprocessing
import os
import re
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import FRAMES, VIDEOS, textured_frames, write_split
from video_clips import in_a_process, write_clip

from clips import listing
from clips.episodes import draw_episode, seal_episodes, unseal_episodes
from clips.frame_sources import VIDEO_SUFFIXES, BadVideo, FrameFolder
from clips.labelled_videos import ListedVideos, SplitVideos
from clips.list_files import read_class_names
from clips.listing import Entries
from clips.video_split import Split
from data_prep import annotate, pack_lmdb
from utils import UserError, read_json, write_json

LATIN = os.fsdecode(b"caf\xe9")  # a name whose bytes are no UTF-8


def opened(dataset: Path, name: str = "train", **settings: str) -> tuple[Split, list[str]]:
    """A split and what was said of it."""
    notes: list[str] = []
    return Split.open(dataset, name, note=notes.append, **settings), notes


@pytest.fixture
def train(tmp_path: Path) -> Path:
    return write_split(tmp_path / "train", ["clap", "wave"], videos=3)


# What is passed over -------------------------------------------------------------------------------------------------


def test_a_clean_split_has_no_notes(train: Path) -> None:
    assert opened(train.parent)[1] == []


def test_what_is_passed_over_is_said_once_at_every_opening(train: Path) -> None:
    before, _ = opened(train.parent)
    for name in ("README.txt", "clap/Thumbs.db", "clap/v.mp4", "wave/cover.jpg", ".hidden", "wave/.DS_Store"):
        (train / name).touch()
    for name in ("flow_x_1.jpg", "2 copy.jpg"):
        shutil.copy(train / "wave/wave_001/1.jpg", train / "wave/wave_001" / name)
    for cached in (False, True):
        split, notes = opened(train.parent)
        assert split == before, cached
        assert notes == [
            f"{train}: 4 passed over, being no folder of frames: README.txt, clap/Thumbs.db, clap/v.mp4 and 1 more",
            f"{train}: 1 video(s) hold images that are not of the series of their frames and are left out, the first is "
            f"wave/wave_001: 2 beside {FRAMES} frames, as 2 copy.jpg",
        ]


def test_notes_go_to_the_error_stream_unless_somebody_takes_them(
    train: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (train / LATIN).touch()
    Split.open(train.parent, "train")
    note = f"note: {train}: 1 passed over, being no folder of frames: caf\N{REPLACEMENT CHARACTER}\n"
    assert capsys.readouterr() == ("", note)


def test_videos_that_are_left_out_are_named_with_the_reason(train: Path) -> None:
    (train / "clap/clap_000/01.jpg").touch()
    (train / "wave/empty").mkdir()
    with pytest.raises(
        UserError, match=r"2 video\(s\) .* the first is .*clap_000: .*'01.jpg' and '1.jpg' are one frame"
    ):
        opened(train.parent)
    split, notes = opened(train.parent, on_bad_video="skip")
    assert split.videos == [["clap_001", "clap_002"], ["wave_000", "wave_001", "wave_002"]]
    (note,) = notes
    assert "left out 2 video(s) without a frame that can be read, the first is" in note
    assert "clap_000: '01.jpg' and '1.jpg' are one frame" in note


# Folders of frames and video files -----------------------------------------------------------------------------------


def test_a_folder_of_frames_beside_video_files_is_passed_over_where_it_holds_none(tmp_path: Path) -> None:
    for name in ("clap/a", "clap/b", "wave/a"):
        write_clip(tmp_path / f"train/{name}.avi")
    (tmp_path / "train/clap/annotations").mkdir()
    split, notes = opened(tmp_path)
    assert (split.format, split.videos) == ("video", [["a", "b"], ["a"]])
    assert notes == [f"{tmp_path}/train: 1 passed over, being no video file: clap/annotations"]


def test_a_class_of_the_other_form_is_named_with_what_it_holds(train: Path) -> None:
    for name in ("a.avi", "b.mp4", "c.webm"):
        (train / "pour").mkdir(exist_ok=True)
        (train / "pour" / name).touch()
    with pytest.raises(
        UserError, match=r"class 'pour' in .*train has no folder of frames, but a.avi, b.mp4, c.webm: a split"
    ):
        opened(train.parent)
    for name in ("a.avi", "b.mp4", "c.webm"):
        (train / "pour" / name).unlink()
    write_clip(train / "pour/a.avi")
    with pytest.raises(
        UserError, match=r"class 'clap' in .* has no video file, but clap_000, clap_001, clap_002: a split"
    ):
        opened(train.parent, format="video")


def test_an_empty_class_is_named_and_files_without_a_class_are(train: Path) -> None:
    (train / "nothing").mkdir()
    with pytest.raises(
        UserError, match=r"class 'nothing' in .*train has no video: expected .*; remove the empty folder"
    ):
        opened(train.parent)
    (train.parent / "val").mkdir()
    (train.parent / "val/v.mp4").touch()
    with pytest.raises(UserError, match=r"val holds no class folder, but v.mp4: expected"):
        opened(train.parent, "val")


def test_video_files_are_listed_by_class_without_their_suffix(tmp_path: Path) -> None:
    for name in ("b/2.webm", "b/10.MP4", "b/2 x.ts", "a/x.avi", "a/notes.txt", "a/.hidden.mp4", "c/d/e.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).touch()
    found = Entries.of(tmp_path)
    assert found.files == {
        "a": {"x": f"{tmp_path}/a/x.avi"},
        "b": {"10": f"{tmp_path}/b/10.MP4", "2": f"{tmp_path}/b/2.webm", "2 x": f"{tmp_path}/b/2 x.ts"},
        "c": {},
    }
    assert list(found.files["b"]) == ["10", "2", "2 x"]
    assert found.folders == {"a": {}, "b": {}, "c": {"d": f"{tmp_path}/c/d"}}
    assert found.others == ["a/notes.txt"]
    (tmp_path / "b/2.avi").touch()
    with pytest.raises(UserError, match="two videos called 2"):
        Entries.of(tmp_path)


@pytest.mark.parametrize(
    ("suffix", "codec", "format"),
    [
        (".ts", "mpeg2video", "mpegts"),
        (".m2ts", "mpeg2video", "mpegts"),
        (".3gp", "mpeg4", "3gp"),
        (".mpg", "mpeg2video", "mpeg"),
        (".vob", "mpeg2video", "vob"),
        (".m2v", "mpeg2video", "mpeg2video"),
        (".asf", "mpeg4", "asf"),
        (".mxf", "mpeg2video", "mxf"),
        (".f4v", "mpeg4", "mp4"),
        (".divx", "mpeg4", "avi"),
        (".TS", "mpeg2video", "mpegts"),
    ],
)
def test_files_of_every_container_are_videos(suffix: str, codec: str, format: str, tmp_path: Path) -> None:
    assert suffix.lower() in VIDEO_SUFFIXES
    write_clip(tmp_path / f"train/clap/v{suffix}", codec, format)
    split, notes = opened(tmp_path)
    assert (split.videos, split.num_frames, notes) == ([["v"]], [[FRAMES]], [])
    frames = split.source(0, 0).read(range(FRAMES))
    assert frames.shape == (FRAMES, 48, 64, 3)
    assert np.abs(frames.astype(int) - textured_frames(0, FRAMES, 48, 64)).mean() < 30


# Links and entries that go -------------------------------------------------------------------------------------------


def test_links_to_nothing_and_to_themselves_are_bad_videos(train: Path) -> None:
    (train / "clap/dead").symlink_to(train / "gone")
    (train / "wave/loop").symlink_to("loop")
    with pytest.raises(UserError, match=r"2 video\(s\) .*clap/dead could not be read \(No such file or directory\)"):
        opened(train.parent)
    split, notes = opened(train.parent, on_bad_video="skip")
    assert split.num_videos == 6
    assert len(notes) == 1
    (train / "ghost").symlink_to(train / "gone")
    assert "1 passed over, being no folder of frames: ghost" in opened(train.parent, on_bad_video="skip")[1][0]


def test_links_of_video_files_to_nothing_are_bad_videos(tmp_path: Path) -> None:
    write_clip(tmp_path / "train/clap/v.avi")
    (tmp_path / "train/clap/dead.mp4").symlink_to(tmp_path / "gone.mp4")
    os.mkfifo(tmp_path / "train/clap/pipe.mp4")
    split, notes = opened(tmp_path, on_bad_video="skip")
    assert split.videos == [["v"]]
    assert "no video file: clap/pipe.mp4" in notes[0]
    assert "dead.mp4 could not be read (No such file or directory)" in notes[1]
    with pytest.raises(UserError, match=r"dead.mp4 could not be read"):
        opened(tmp_path)


def test_a_video_that_goes_while_the_split_is_listed_is_named(train: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = listing.frames_and_others

    def late(path: str) -> tuple[list[str], list[str]]:
        shutil.rmtree(train / "clap/clap_001", ignore_errors=True)
        return original(path)

    monkeypatch.setattr(listing, "frames_and_others", late)
    with pytest.raises(UserError, match=r"clap_001 could not be read \(No such file or directory\)"):
        opened(train.parent)


def test_a_folder_that_may_not_be_read_is_named(train: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = os.listdir

    def listdir(path: str) -> list[str]:
        if str(path).endswith("clap_001"):
            raise PermissionError(13, "Permission denied", path)
        return original(path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "listdir", listdir)
        for video in train.glob("*/*"):
            os.utime(video, (1e9, 1e9))
        with pytest.raises(UserError, match=r"clap_001 could not be read \(Permission denied\)"):
            opened(train.parent)
    assert opened(train.parent)[0].num_videos == 6, "nor does it stay so when the right is given"

    def scandir(path: str) -> None:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(UserError, match=r"train could not be listed \(Permission denied\): expected a folder that may"):
        opened(train.parent)


# A listing that is stopped -------------------------------------------------------------------------------------------


def kept_counts(monkeypatch: pytest.MonkeyPatch, dataset: Path, stop: Callable[[int], None]) -> list[str]:
    """The videos that are counted in a listing; `stop` is called with the number of those before."""
    counted: list[str] = []
    original = listing.frames_in_folder

    def count(path: str) -> tuple[int, str]:
        stop(len(counted))
        counted.append(path)
        return original(path)

    monkeypatch.setattr(listing, "frames_in_folder", count)
    try:
        opened(dataset)
    finally:
        monkeypatch.setattr(listing, "frames_in_folder", original)
    return counted


@pytest.fixture
def old_videos(tmp_path: Path) -> Path:
    root = tmp_path / "data"
    for number in range(200):
        folder = root / "train/clap" / f"v{number:03d}"
        folder.mkdir(parents=True)
        (folder / "1.jpg").touch()
        os.utime(folder, (1e9, 1e9))
    return root


def test_a_stopped_listing_goes_on_where_it_was(old_videos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def ctrl_c(done: int) -> None:
        if done >= 50:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        kept_counts(monkeypatch, old_videos, ctrl_c)
    rest = kept_counts(monkeypatch, old_videos, lambda done: None)
    assert 100 <= len(rest) <= 150
    assert kept_counts(monkeypatch, old_videos, lambda done: None) == []
    assert opened(old_videos)[0].num_videos == 200


def test_a_killed_listing_goes_on_from_what_it_has_saved(old_videos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def kill(done: int) -> None:
        if done >= 50:
            time.sleep(0.2)
        if done >= 70:
            os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(listing, "SECONDS_PER_SAVE", 0.05)
    assert in_a_process(lambda: len(kept_counts(monkeypatch, old_videos, kill))) == -signal.SIGKILL
    rest = kept_counts(monkeypatch, old_videos, lambda done: None)
    assert 100 <= len(rest) <= 150


def test_processes_of_one_job_count_a_video_once(old_videos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = [f"{old_videos}/counts{number}" for number in range(2)]

    def write(path: str) -> int:
        counted = kept_counts(monkeypatch, old_videos, lambda done: time.sleep(0.001))
        Path(path).write_text(str(len(counted)))
        return 0

    processes = [multiprocessing.get_context("fork").Process(target=write, args=(path,)) for path in counts]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert sorted(int(Path(path).read_text()) for path in counts) == [0, 200]


def test_a_long_listing_shows_where_it_is(
    old_videos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(listing, "SECONDS_PER_LINE", 0.02)
    kept_counts(monkeypatch, old_videos, lambda done: time.sleep(0.005))
    assert re.search(r"list train: +\d+%.* \d+/200 \[", capsys.readouterr().err)


# Names that are no UTF-8 ---------------------------------------------------------------------------------------------


@pytest.fixture
def latin(tmp_path: Path) -> Path:
    """A data set whose data set, class and video names are no UTF-8."""
    root = tmp_path / LATIN
    for split in ("train", "val"):
        write_split(root / split, [LATIN, "tea"], videos=3)
    return root


def test_listings_of_such_names_are_kept(latin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for video in latin.glob("*/*/*"):
        os.utime(video, (1e9, 1e9))
    first, _ = opened(latin)
    monkeypatch.setattr(listing, "frames_in_folder", None)
    assert opened(latin)[0] == first
    assert first.videos[0] == [f"{LATIN}_{number:03d}" for number in range(3)]


def test_such_names_are_packed_and_verified(latin: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.truncate(latin / "val" / LATIN / f"{LATIN}_001" / "2.jpg", 30)
    flags = ["--src", str(latin), "--dst", str(tmp_path / "packed"), "--jobs", "1"]
    assert pack_lmdb.main(flags) == 1
    failed = (tmp_path / "packed/failed.txt").read_bytes()
    assert failed == b"val/caf\xe9/caf\xe9_001\t2.jpg is cut short\n"
    assert pack_lmdb.main([*flags, "--verify"]) == 1
    assert "train: 6 of 6" in capsys.readouterr().out
    folders, packed = opened(latin)[0], opened(tmp_path / "packed")[0]
    assert packed.fingerprint == folders.fingerprint
    np.testing.assert_array_equal(packed.source(0, 2).read([1]), folders.source(0, 2).read([1]))


def test_such_names_are_in_lists_and_come_back(latin: Path, tmp_path: Path) -> None:
    lists = tmp_path / "lists"
    assert annotate.main(["write", "--src", str(latin), "--dst", str(lists)]) == 0
    assert b"train/caf\xe9/caf\xe9_000 6 0\n" in (lists / "train.txt").read_bytes()
    names = read_class_names(lists / "category.txt")
    assert sorted(names) == sorted([LATIN, "tea"])
    videos = ListedVideos.open(lists / "train.txt", latin, classes=names)
    assert [videos.video_name(index) for index in range(6)] == [
        f"train/{name}" for name in map(SplitVideos(opened(latin)[0]).video_name, range(6))
    ]
    files = [str(lists / "train.txt"), str(lists / "val.txt"), "--root", str(latin), "--dst", str(tmp_path / "again")]
    assert annotate.main(["read", "--list", *files, "--names", str(lists / "category.txt")]) == 0
    assert opened(tmp_path / "again")[0].fingerprint == opened(latin)[0].fingerprint


def test_episodes_of_such_names_are_sealed_in_json_and_come_back(latin: Path, tmp_path: Path) -> None:
    split, _ = opened(latin)
    plans = [draw_episode(split, 3, index, way=2, shot=1, queries=1) for index in range(4)]
    seal_episodes(tmp_path / "episodes.json", split, plans, 3)
    (tmp_path / "episodes.json").read_text(encoding="utf-8")  # every program can read it
    _, again = unseal_episodes(tmp_path / "episodes.json", split)
    assert [plan.labels for plan in again] == [plan.labels for plan in plans]
    assert [plan.candidates for plan in again] == [[videos[:2] for videos in plan.candidates] for plan in plans]


def test_json_keeps_such_names(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {LATIN: ["é", "跳"]})
    assert read_json(tmp_path / "a.json") == {LATIN: ["é", "跳"]}


def test_such_videos_are_read_directly(latin: Path) -> None:
    folder = latin / "train" / LATIN / f"{LATIN}_000"
    assert FrameFolder(folder).num_frames == FRAMES
    (folder / "3.jpg").unlink()
    with pytest.raises(BadVideo):
        FrameFolder(folder, ["3.jpg"]).read([0])


# All of it at once ---------------------------------------------------------------------------------------------------


def test_a_folder_of_odd_things_opens_with_exactly_its_good_videos(tmp_path: Path) -> None:
    train = write_split(tmp_path / "train", ["clap", LATIN], videos=VIDEOS)
    good = {f"{label}_{v:03d}" for label in ("clap", LATIN) for v in range(VIDEOS)}
    bad = {"dead", "loop", "empty", "twice", "unnumbered", "two series"}
    (train / "clap/dead").symlink_to("nowhere")
    (train / "clap/loop").symlink_to("loop")
    (train / "clap/empty").mkdir()
    for video, *names in (
        ("twice", "1.jpg", "01.jpg"),
        ("unnumbered", "a.jpg", "b.jpg"),
        ("two series", "a1.jpg", "b1.jpg"),
    ):
        (train / "clap" / video).mkdir()
        for name in names:
            shutil.copy(train / "clap/clap_000/1.jpg", train / "clap" / video / name)
    for name in ("a.txt", "b.mp4", "c.jpg", os.fsdecode(b"\xff.db")):
        (train / LATIN / name).touch()
    split, notes = opened(tmp_path, on_bad_video="skip")
    assert {video for videos in split.videos for video in videos} == good
    assert f"left out {len(bad)} video(s)" in " ".join(notes)
    assert "4 passed over" in " ".join(notes)
