"""The demo set: same bytes for the same seed, pairs that only the order of frames tells apart, safe folders."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from data_prep.extract import UNFINISHED
from data_prep.make_demo_set import CLASSES, PAIRS, SETTINGS_FILE, draw_video, main

TINY = ["--size", "16", "--frames", "3", "--videos_per_class", "2"]
ALL_PAIRS = [pair for pairs in PAIRS.values() for pair in pairs]


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished set that tests only read."""
    out = tmp_path_factory.mktemp("demo") / "set"
    assert main([str(out), *TINY, "--jobs", "1"]) == 0
    return out


@pytest.fixture
def own(tiny: Path, tmp_path: Path) -> Path:
    """A copy of the finished set that a test may change."""
    return Path(shutil.copytree(tiny, tmp_path / "set"))


def test_layout(tiny: Path) -> None:
    frames = [path for path in content(tiny) if path != SETTINGS_FILE]
    assert sorted(frames) == sorted(
        f"{role.split}/{name}/{name}_{index:04d}/{number:05d}.jpg"
        for name, role in CLASSES.items()
        for index in range(2)
        for number in (1, 2, 3)
    )
    assert {simplejpeg.decode_jpeg((tiny / path).read_bytes()).shape for path in frames} == {(16, 16, 3)}
    assert json.loads((tiny / SETTINGS_FILE).read_text())["frames"] == 3


def test_splits_keep_pairs_together() -> None:
    names = [name for pair in ALL_PAIRS for name in pair]
    assert len(names) == len(set(names)) == len(CLASSES) >= 24
    assert set(PAIRS) == {"train", "val", "test"}
    assert all(2 * len(pairs) >= 5 for pairs in PAIRS.values()), "every split must hold 5-way episodes"


def test_bytes_depend_on_the_seed_and_not_on_jobs(tiny: Path, tmp_path: Path) -> None:
    assert main([str(tmp_path / "jobs"), *TINY, "--jobs", "2"]) == 0
    assert content(tmp_path / "jobs") == content(tiny)
    assert main([str(tmp_path / "seed"), *TINY, "--seed", "1"]) == 0
    other = content(tmp_path / "seed")
    assert not any(other[path] == data for path, data in content(tiny).items())


def test_videos_of_a_class_differ(tiny: Path) -> None:
    files = [data for path, data in content(tiny).items() if path.endswith("00001.jpg")]
    assert len(files) == len(set(files))


@pytest.mark.parametrize("pair", ALL_PAIRS, ids="/".join)
def test_pair_is_one_film_in_two_directions(pair: tuple[str, str]) -> None:
    forwards, backwards = (draw_video(name, np.random.default_rng(5), num_frames=6, size=24) for name in pair)
    assert forwards.shape == (6, 24, 24, 3)
    assert forwards.dtype == np.uint8
    assert np.array_equal(backwards, forwards[::-1])
    # The ends differ by more than the camera's shake and the grain, so there is an order to be seen.
    assert np.abs(forwards[0].astype(int) - forwards[-1]).max() > 60


def test_motion_goes_where_the_name_says() -> None:
    """The centre of what differs from the clip's median picture moves right, and down, over many videos."""
    for name, axis, sign in [
        ("moving_right", 1, 1),
        ("moving_left", 1, -1),
        ("moving_down", 0, 1),
        ("moving_up", 0, -1),
    ]:
        went = []
        for seed in range(20):
            film = draw_video(name, np.random.default_rng(seed), num_frames=6, size=32).astype(float)
            moved = np.abs(film - np.median(film, axis=0)).sum(-1) > 100
            places = [np.argwhere(frame)[:, axis].mean() for frame in moved if frame.any()]
            went.append(places[-1] - places[0])
        assert sign * np.median(went) > 8, name


def test_continues_where_it_stopped(own: Path, tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(own / "train" / "moving_left" / "moving_left_0001")
    shutil.rmtree(own / "test")
    half_drawn = own / UNFINISHED / "moving_left_0001"
    half_drawn.mkdir(parents=True)
    (half_drawn / "00001.jpg").write_bytes(b"cut off")
    assert main([str(own), *TINY]) == 0
    assert f"drew {1 + 2 * 2 * len(PAIRS['test'])} videos" in capsys.readouterr().out
    assert content(own) == content(tiny)
    assert not (own / UNFINISHED).exists()


def test_finished_set_is_left_alone(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in own.rglob("*")}
    assert main([str(own), *TINY]) == 0
    assert "already complete" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in own.rglob("*")} == before


@pytest.mark.parametrize("change", [["--size", "20"], ["--frames", "4"], ["--videos_per_class", "3"], ["--seed", "9"]])
def test_other_settings_are_refused(
    own: Path, tiny: Path, change: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(own), *TINY, *change]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: expected ")
    assert f"'{change[0][2:]}': {change[1]}" in error
    assert content(own) == content(tiny)


def test_foreign_folder_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    assert main([str(tmp_path), *TINY]) == 2
    assert "found other files" in capsys.readouterr().err
    assert content(tmp_path) == {"thesis.txt": b"mine"}
    assert main([str(tmp_path / "thesis.txt"), *TINY]) == 2
    assert "found a file" in capsys.readouterr().err


def test_damaged_record_is_refused(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for damaged in ("{", "[]"):
        (own / SETTINGS_FILE).write_text(damaged)
        assert main([str(own), *TINY]) == 2
        assert capsys.readouterr().err.startswith("error: ")


@pytest.mark.parametrize(
    "flags",
    [
        ["--size", "15"],
        ["--frames", "1"],
        ["--videos_per_class", "0"],
        ["--seed", "-1"],
        ["--jobs", "0"],
        ["--picture", "strip.gif"],
        ["--picture", "no/such/folder/strip.png"],
    ],
)
def test_bad_flags_are_refused(
    tmp_path: Path, flags: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([str(tmp_path / "set"), *TINY, *flags]) == 2
    error = capsys.readouterr().err
    assert flags[0] in error
    assert flags[1] in error
    assert not (tmp_path / "set").exists()


def test_picture_shows_every_class(own: Path, tmp_path: Path) -> None:
    picture = tmp_path / "strips.png"
    assert main([str(own), *TINY, "--picture", str(picture)]) == 0
    with Image.open(picture) as sheet:
        assert sheet.height > 16 * len(ALL_PAIRS)
        assert len(sheet.getcolors(maxcolors=2**20)) > 100


def test_a_supervised_set_has_the_train_classes_in_train_and_val(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--size", "16", "--frames", "2", "--videos_per_class", "4", "--jobs", "1"]
    assert main([str(tmp_path / "set"), *flags, "--supervised"]) == 0
    assert "drew 128 videos of 32 classes" in capsys.readouterr().out
    for split, videos in (("train", 3), ("val", 1)):
        folders = {folder.name: len(list(folder.iterdir())) for folder in (tmp_path / "set" / split).iterdir()}
        assert folders == {name: videos for name, role in CLASSES.items() if role.split == "train"}
    assert not (tmp_path / "set" / "test").exists()
    assert main([str(tmp_path / "set"), *flags]) == 2
    assert "expected" in capsys.readouterr().err
