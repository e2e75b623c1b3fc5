"""The demo set: same bytes for the same seed, pairs that only the order of frames tells apart, safe folders."""

from __future__ import annotations

import json
import os
import select
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from data_prep import make_demo_set
from data_prep.demo.actions import CLASSES, PAIRS
from data_prep.demo.axes import AXES, LEVELS, Change, sweep_order
from data_prep.demo.film import Film
from data_prep.extract import UNFINISHED, alone
from data_prep.make_demo_set import SETTINGS_FILE, Settings, draw_video, end_with, main

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


# ---------------------------------------------------------------------------------------------------------------------
# Axes and levels

BASE = Settings(size=24, frames=8, videos_per_class=2, seed=0)
HARDEST = [BASE._replace(axis=axis, level=4) for axis in AXES]


def test_the_demo_set_stays_what_it_is() -> None:
    """Means of frames of the first version: its videos are in use, and results are told of them."""
    expected = {
        "moving_right": 165.4, "moving_up_right": 55.2, "circling_clockwise": 197.1, "entering": 23.4, "opening": 103.2,
        "extending": 167.9, "filling": 161.1, "crowding": 53.8, "hiding": 75.0, "folding": 125.9, "growing": 160.8,
    }  # fmt: skip
    first = BASE._replace(size=16, frames=3)
    assert {name: first.draw(None, name, 1)[0].mean() for name in expected} == pytest.approx(expected, abs=0.1)


@pytest.mark.parametrize("settings", HARDEST, ids=lambda settings: settings.axis)
def test_an_axis_changes_pixels_and_nothing_else(settings: Settings) -> None:
    name = "growing" if settings.axis != "background_bias" else "moving_right"
    split = CLASSES[name].split
    levels = [settings._replace(level=level).draw(split, name, 1) for level in LEVELS]
    assert np.array_equal(levels[0], BASE.draw(split, name, 1))
    assert settings._replace(level=0).record() == BASE.record()
    assert all(not np.array_equal(video, levels[0]) for video in levels[2:])
    assert np.array_equal(levels[4], settings.draw(split, name, 1))

    # The action, and all else that is drawn of the video, comes from the same numbers as without the axis.
    plain, own = np.random.default_rng(3), np.random.default_rng(3)
    draw_video(name, plain, 8, 24)
    change = Change(AXES[settings.axis], 4, np.random.default_rng(4))
    draw_video(name, own, 8, 24, change, np.random.default_rng(5))
    assert own.bit_generator.state == plain.bit_generator.state


@pytest.mark.parametrize("axis", [axis for axis in AXES if axis not in ("order", "background_bias")])
def test_pairs_stay_one_film_in_two_directions(axis: str) -> None:
    def draw(name: str) -> np.ndarray:
        return draw_video(name, np.random.default_rng(1), 8, 24, Change(AXES[axis], 4, np.random.default_rng(2)))

    assert np.array_equal(draw("growing"), draw("shrinking")[::-1])


def test_mean_frames_tell_nothing_of_order() -> None:
    """The two classes of a pair, and the pair without the axis, hold the same frames in other orders."""
    plain = draw_video("growing", np.random.default_rng(1), 12, 24)
    for level in (1, 2, 3, 4):
        grow, shrink = (
            draw_video(name, np.random.default_rng(1), 12, 24, Change(AXES["order"], level, np.random.default_rng(2)))
            for name in ("growing", "shrinking")
        )
        assert sorted(map(bytes, grow)) == sorted(map(bytes, shrink)) == sorted(map(bytes, plain))
        place = {bytes(frame): number for number, frame in enumerate(plain)}
        assert [place[bytes(frame)] for frame in grow] == [11 - place[bytes(frame)] for frame in shrink]


def order_bias(directions: str, length: int) -> float:
    """How far the classes of a pair differ, 0 to 1, in how often early (0) and late (1) states come as 01, 10, 011, ..."""
    one: Counter[tuple[int, ...]] = Counter()
    for seed in range(8):
        one.update(combinations(sweep_order(directions, 16, np.random.default_rng(seed)) // 8, length))
    other = {tuple(1 - state for state in states): count for states, count in one.items()}
    return sum(max(0, one[states] - other.get(states, 0)) for states in one) / one.total()


def test_higher_levels_of_order_need_longer_sequences() -> None:
    evidence = [order_bias(directions, 2) for directions in ("+", *AXES["order"].amounts)]
    assert evidence[0] > 0.5 > evidence[1] > 0.25 > 0.1 > evidence[2] > 0.05
    assert evidence[3] == evidence[4] == 0
    pairs, longest = AXES["order"].amounts[2:]
    assert order_bias(pairs, 3) > 0.3
    assert order_bias(longest, 3) == 0
    assert order_bias(longest, 4) > 0.2


def test_viewpoint_keeps_which_way_things_move() -> None:
    """A step down in the scene is a step down in the picture, and one to the right one to the right."""
    change = Change(AXES["viewpoint"], 4, np.random.default_rng(0))
    turns = []
    for _ in range(300):
        film = Film(np.random.default_rng(0), 1, 16)
        change(film, "view")
        right, down = (film.x + 1j * film.y)[0, 0, 1:3], (film.x + 1j * film.y)[0, 1:3, 0]
        start = (film.x + 1j * film.y)[0, 0, 0]
        step = [[(right[0] - start).real, (down[0] - start).real], [(right[0] - start).imag, (down[0] - start).imag]]
        picture = np.linalg.inv(step)
        assert picture[0, 0] > 0
        assert picture[1, 1] > 0
        turns.append(np.degrees(np.arctan2(picture[0, 1], picture[1, 1])))
    assert max(turns) > 40
    assert min(turns) < -40


def test_places_tell_the_class_in_training_only() -> None:
    """The share of the variance of background colours that lies between classes: eta squared."""

    def eta_squared(split: str, level: int) -> float:
        settings = BASE._replace(size=16, frames=2, axis="background_bias", level=level)
        names = [name for name, role in CLASSES.items() if role.split == split][:6]
        colours = np.array(
            [[settings.draw(split, name, index)[0, :2, :2].mean((0, 1)) for index in range(10)] for name in names]
        )
        means = colours.mean(1, keepdims=True)
        within = ((colours - means) ** 2).sum()
        return float(1 - within / ((colours - colours.mean((0, 1))) ** 2).sum())

    plain, half, full = (eta_squared("train", level) for level in (0, 1, 4))
    assert plain < 0.1 < half < 0.5 < 0.95 < full
    for split in ("val", "test"):
        for name in ("hiding", "growing"):
            biased = BASE._replace(axis="background_bias", level=4)
            assert np.array_equal(biased.draw(split, name, 0), BASE.draw(split, name, 0))


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


def test_suite_is_drawn_and_resumed(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    suite = [str(tmp_path / "suite"), "--suite", "--axis", "order", "--levels", "0", "4", *TINY, "--jobs", "1"]
    assert main([*suite, "--picture", str(tmp_path / "axes.jpg")]) == 0
    assert sorted(path.name for path in (tmp_path / "suite").iterdir()) == ["base", "order_4"]
    assert content(tmp_path / "suite" / "base") == content(tiny), "level 0 is the demo set"
    hardest = content(tmp_path / "suite" / "order_4")
    assert json.loads(hardest[SETTINGS_FILE])["amount"] == "+--+"
    with Image.open(tmp_path / "axes.jpg") as sheet:
        assert sheet.format == "JPEG"

    shutil.rmtree(tmp_path / "suite" / "order_4" / "val" / "hiding" / "hiding_0001")
    capsys.readouterr()
    assert main(suite) == 0
    out = capsys.readouterr().out
    assert "base: already complete" in out
    assert "order_4: drew 1 videos" in out
    assert content(tmp_path / "suite" / "order_4") == hardest

    assert main([str(tmp_path / "suite" / "order_4"), *TINY, "--axis", "order", "--level", "3"]) == 2
    assert "'amount': '+--+'" in capsys.readouterr().err
    assert main([str(tmp_path / "suite" / "base"), "--suite", *TINY]) == 2
    assert "found a demo set" in capsys.readouterr().err
    with alone(tmp_path / "suite" / "base", "demo_set"):
        assert main(suite) == 2
    assert "another process is at work" in capsys.readouterr().err


def test_ctrl_c_leaves_the_rest_undrawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(written: Iterator[None], **_: object) -> Iterator[None]:
        yield next(written)
        raise KeyboardInterrupt

    monkeypatch.setattr(make_demo_set, "tqdm", interrupted)
    flags = ["--size", "16", "--frames", "2", "--videos_per_class", "30", "--jobs", "1"]
    assert main([str(tmp_path / "set"), *flags]) == 130
    assert capsys.readouterr().err == "stopped: the same command resumes from here\n"
    assert 0 < len(list((tmp_path / "set").glob("*/*/*"))) < len(CLASSES) * 30 // 2


def test_workers_end_with_a_killed_parent() -> None:
    ended, held = os.pipe()
    if (parent := os.fork()) == 0:
        try:
            number = os.getpid()
            if os.fork() == 0:
                end_with(number)
                time.sleep(60)
        finally:
            os._exit(0)  # whatever happened, or it would go on as a second process of the tests
    os.close(held)
    os.waitpid(parent, 0)
    readable, _, _ = select.select([ended], [], [], 20)  # at its end when nobody holds the other side
    assert readable
    os.close(ended)


@pytest.mark.parametrize(
    "flags",
    [
        ["--size", "15"],
        ["--frames", "1"],
        ["--videos_per_class", "0"],
        ["--seed", "-1"],
        ["--jobs", "0"],
        ["--picture", "strip.gif"],
        ["--axis", "colour"],
        ["--axis", "order"],
        ["--level", "1"],
        ["--level", "5"],
        ["--levels", "2"],
        ["--suite", "--level", "2"],
        ["--picture", "no/such/folder/strip.png"],
    ],
)
def test_bad_flags_are_refused(
    tmp_path: Path, flags: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([str(tmp_path / "set"), *TINY, *flags]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert all(word in error for word in flags)
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
