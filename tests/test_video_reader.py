"""Which videos, which episodes: golden values, purity, and a listing that notices what changes."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import CLASSES, FRAMES, VIDEOS, first_videos, write_split, write_video

from clips.episodes import (
    EpisodePlan,
    draw_episode,
    episode_rng,
    episodes_fingerprint,
    seal_episodes,
    unseal_episodes,
)
from clips.frame_sources import BadVideo
from clips.read_ahead import read_ahead
from clips.transforms import ClipTransform
from clips.video_split import Split
from utils import UserError
from video_reader import VideoDataset, read_episodes

# Which videos --------------------------------------------------------------------------------------------------------


def test_a_split_is_listed_in_alphabetical_order(dataset: Path) -> None:
    split = Split.open(dataset, "train")
    assert split.classes == sorted(CLASSES["train"])
    assert split.videos[0] == [f"{split.classes[0]}_{v:03d}" for v in range(VIDEOS)]
    assert split.num_frames == [[FRAMES] * VIDEOS] * len(CLASSES["train"])
    assert split.num_videos == VIDEOS * len(CLASSES["train"])
    assert Path(split.path(1, 2)).is_dir()


def test_class_and_video_names_may_hold_dots_blanks_brackets_and_other_scripts(tmp_path: Path) -> None:
    names = [
        "Putting [something] next to [x]",
        "a b",
        "v1.5 (take.two)",
        "überholen",
        "跳",
        "100%_{curly}",
        'it\'s "so"',
    ]
    write_split(tmp_path / "train", names, videos=2, frames=2)
    split = Split.open(tmp_path, "train")
    assert split.classes == sorted(names)
    data = video_dataset(split, way=len(names), shot=1, queries=1)
    named = {name for item in (data[0],) for name in item["support_videos"] + item["target_videos"]}
    assert named == {f"{name}/{name}_{v:03d}" for name in names for v in (0, 1)}


def test_names_that_are_no_unicode_work_too(tmp_path: Path) -> None:
    write_split(tmp_path / "train", [os.fsdecode(b"caf\xe9"), "tea"], videos=2, frames=2)
    split = Split.open(tmp_path, "train")
    assert len(split.fingerprint) == 16
    assert len(video_dataset(split, way=2, shot=1, queries=1)[0]["support_labels"]) == 2


def test_files_and_hidden_folders_beside_classes_and_videos_are_passed_over(own_dataset: Path) -> None:
    before = Split.open(own_dataset, "val")
    (own_dataset / "val/README.txt").touch()
    (own_dataset / "val/.cache").mkdir()
    (own_dataset / "val/clap/labels.csv").touch()
    (own_dataset / "val/clap/.thumbs").mkdir()
    (own_dataset / "val/clap/clap_000/notes.txt").touch()
    assert Split.open(own_dataset, "val") == before


def test_the_fingerprint_is_that_of_the_content_and_not_of_the_place(own_dataset: Path, dataset: Path) -> None:
    assert Split.open(own_dataset, "val").fingerprint == Split.open(dataset, "val").fingerprint
    (own_dataset / "val/clap/clap_000/6.jpg").unlink()
    assert Split.open(own_dataset, "val").fingerprint != Split.open(dataset, "val").fingerprint


def test_missing_and_empty_data_sets_splits_and_classes_say_what_was_expected(tmp_path: Path) -> None:
    layout = r"expected .*/\{train,val,test\}/<class>/<video>/\*\.jpg"
    with pytest.raises(UserError, match=f"no data set at .*nowhere: {layout}"):
        Split.open(tmp_path / "nowhere", "train")
    with pytest.raises(UserError, match=f"has no train/ folder: {layout}"):
        Split.open(tmp_path, "train")
    (tmp_path / "train").mkdir()
    with pytest.raises(UserError, match=f"train holds no class folder: {layout}"):
        Split.open(tmp_path, "train")
    (tmp_path / "train/jump").mkdir()
    with pytest.raises(UserError, match=f"class 'jump' in .*train has no video: {layout}"):
        Split.open(tmp_path, "train")


def test_video_folders_without_a_frame_are_an_error_or_left_out(own_dataset: Path) -> None:
    for video in ("clap/clap_003", "push/push_007"):
        for frame in (own_dataset / "val" / video).iterdir():
            frame.unlink()
    with pytest.raises(
        UserError, match=r"2 video\(s\) without a frame that can be read, the first is .*val/clap/clap_003"
    ):
        Split.open(own_dataset, "val")
    split = Split.open(own_dataset, "val", on_bad_video="skip")
    assert split.num_videos == VIDEOS * len(CLASSES["val"]) - 2
    assert "clap_003" not in split.videos[split.classes.index("clap")]


def test_too_few_videos_or_classes_are_named_with_both_numbers(own_dataset: Path) -> None:
    shutil.rmtree(own_dataset / "val/eat/eat_005")
    split = Split.open(own_dataset, "val")
    split.check_episodes(way=6, shot=5, queries=2)
    with pytest.raises(
        UserError, match=r"class 'eat' in .*val has 7 videos, an episode needs 8 \(5 support \+ 3 query\)"
    ):
        split.check_episodes(way=2, shot=5, queries=3)
    with pytest.raises(UserError, match="val has 6 classes, a 7-way episode needs 7"):
        video_dataset(split, way=7)


@pytest.mark.parametrize(
    ("name", "is_direction"),
    [
        ("Pushing [something] from left to right", True),
        ("turn_left", True),
        ("RightHandWave", True),
        ("fighting upright", False),
        ("bright light", False),
        ("cleft", False),
    ],
)
def test_direction_classes_are_those_that_say_left_or_right(name: str, is_direction: bool) -> None:
    split = Split("train", "root", "frames", [name], [["v"]], [[6]], [[""]])
    assert split.direction_classes() == ([name] if is_direction else [])


# The listing that is kept --------------------------------------------------------------------------------------------


@pytest.fixture
def settled(own_dataset: Path) -> Path:
    """A data set that nobody has touched in the last hour, listed once."""
    for video in own_dataset.glob("*/*/*"):
        os.utime(video, (time.time() - 3600,) * 2)
    Split.open(own_dataset, "val")
    return own_dataset


@pytest.fixture
def listed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the folders whose entries are asked for."""
    seen: list[str] = []

    def spy(original: Callable[..., Any]) -> Callable[..., Any]:
        def listing(path: Any = ".") -> Any:
            seen.append(Path(os.fsdecode(path)).name)
            return original(path)

        return listing

    monkeypatch.setattr(os, "listdir", spy(os.listdir))
    monkeypatch.setattr(os, "scandir", spy(os.scandir))
    return seen


def test_unchanged_video_folders_are_not_listed_again(settled: Path, listed: list[str]) -> None:
    split = Split.open(settled, "val")
    assert set(listed) == {"val", *CLASSES["val"]}
    assert split.num_frames == [[FRAMES] * VIDEOS] * len(CLASSES["val"])


def test_file_systems_that_give_every_file_the_time_0_are_listed(own_dataset: Path) -> None:
    for video in own_dataset.glob("val/*/*"):
        os.utime(video, (0, 0))
    for cached in (False, True):
        assert Split.open(own_dataset, "val").num_videos == VIDEOS * len(CLASSES["val"]), cached


def test_a_folder_that_was_touched_a_moment_ago_is_listed_again(own_dataset: Path, listed: list[str]) -> None:
    os.utime(own_dataset / "val/clap/clap_000")
    Split.open(own_dataset, "val")
    listed.clear()
    Split.open(own_dataset, "val")
    assert "clap_000" in listed


def add_frame(val: Path) -> None:
    shutil.copy(val / "clap/clap_002/6.jpg", val / "clap/clap_002/7.jpg")


def remove_frame(val: Path) -> None:
    (val / "clap/clap_002/6.jpg").unlink()


def remove_video(val: Path) -> None:
    shutil.rmtree(val / "clap/clap_002")


def rename_video(val: Path) -> None:
    (val / "clap/clap_002").rename(val / "clap/another name")


def exchange_names(val: Path) -> None:
    write_video(val / "clap/longer", frames=9)
    (val / "clap/clap_002").rename(val / "clap/aside")
    (val / "clap/longer").rename(val / "clap/clap_002")
    (val / "clap/aside").rename(val / "clap/longer")


def add_class(val: Path) -> None:
    write_video(val / "new class/video")


def remove_class(val: Path) -> None:
    shutil.rmtree(val / "clap")


def rename_class(val: Path) -> None:
    (val / "clap").rename(val / "zap")


@pytest.mark.parametrize(
    "change",
    [add_frame, remove_frame, remove_video, rename_video, exchange_names, add_class, remove_class, rename_class],
)
def test_the_listing_notices(change: Callable[[Path], None], settled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = Split.open(settled, "val")
    change(settled / "val")
    after = Split.open(settled, "val")
    monkeypatch.setenv("XDG_CACHE_HOME", str(settled / "no cache"))
    assert after != before
    assert after == Split.open(settled, "val")


def test_a_removed_video_does_not_come_back_from_the_cache(settled: Path) -> None:
    shutil.rmtree(settled / "val/clap/clap_002")
    Split.open(settled, "val")
    (settled / "val/clap/clap_002").mkdir()
    with pytest.raises(UserError, match="clap_002"):
        Split.open(settled, "val")


@pytest.mark.parametrize("damage", ["", "{", "[]", "null", "7", '{"clap": 3}', '{"clap": {"clap_000": "x"}}', '"text"'])
def test_a_damaged_cache_is_named_and_as_good_as_none(
    damage: str, own_dataset: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(own_dataset / "cache"))
    before = Split.open(own_dataset, "val")
    (cache,) = (path for path in (own_dataset / "cache").rglob("*") if path.is_file())
    for content in (damage.encode(), cache.read_bytes()[:100]):
        cache.write_bytes(content)
        capsys.readouterr()
        assert Split.open(own_dataset, "val") == before
        assert f"note: the listing {cache} is damaged" in capsys.readouterr().err


def test_a_cache_that_cannot_be_written_is_done_without(own_dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (own_dataset / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(own_dataset / "file"))
    assert Split.open(own_dataset, "val").num_videos == VIDEOS * len(CLASSES["val"])


# Which episode -------------------------------------------------------------------------------------------------------


def video_dataset(split: Split, *, train: bool = False, size: int = 16, **changes: Any) -> VideoDataset:
    settings = {"way": 3, "shot": 2, "queries": 1, "seq_len": 3, "seed": 0, "sampling": "segment", **changes}
    return VideoDataset(split, transform=ClipTransform(size, train=train, flip=True), **settings)


@pytest.fixture(scope="module")
def train_split(dataset: Path) -> Split:
    return Split.open(dataset, "train")


def is_equal(a: dict[str, Any], b: dict[str, Any]) -> bool:
    same = (torch.equal(a[k], b[k]) if isinstance(a[k], torch.Tensor) else a[k] == b[k] for k in a)
    return a.keys() == b.keys() and all(same)


def test_an_episode_has_the_promised_shapes_and_labels(train_split: Split) -> None:
    item = video_dataset(train_split, train=True, way=4, shot=3, queries=2)[5]
    assert item["support_set"].shape == (4 * 3 * 3, 3, 16, 16)
    assert item["target_set"].shape == (4 * 2 * 3, 3, 16, 16)
    assert item["support_set"].dtype == item["target_set"].dtype == torch.uint8
    assert item["support_labels"].bincount().tolist() == [3] * 4
    assert item["target_labels"].bincount().tolist() == [2] * 4
    assert item["index"] == 5
    assert item["bad_videos"] == []
    for role in ("support", "target"):
        real = item["batch_class_list"][item[f"{role}_labels"]]
        assert torch.equal(item[f"real_{role}_labels"], real)
        names = [train_split.classes[label] for label in real.tolist()]
        assert [video.partition("/")[0] for video in item[f"{role}_videos"]] == names


def test_clips_are_in_the_order_of_their_names(train_split: Split) -> None:
    data = video_dataset(train_split)
    item = data[0]
    for video, clip in zip(item["target_videos"], item["target_set"].split(3), strict=True):
        label, name = video.split("/")
        c = train_split.classes.index(label)
        assert torch.equal(clip, data.clip(c, train_split.videos[c].index(name), np.random.default_rng(9)))


@pytest.mark.parametrize(
    ("sampling", "frames_per_step", "interval", "frames"),
    [
        ("linspace", 3, 0, [0, 1, 2, 3, 4, 5]),
        ("linspace", 2, 1, [0, 2, 1, 3, 3, 5]),
        ("segment", 2, 1, [0, 2, 2, 4, 3, 5]),
    ],
)
def test_clips_hold_the_neighbours_of_each_sampled_frame_for_backbones_that_want_them(
    train_split: Split, sampling: str, frames_per_step: int, interval: int, frames: list[int]
) -> None:
    windows = {"frames_per_step": frames_per_step, "interval": interval}
    data, rng = video_dataset(train_split, seq_len=6, sampling=sampling, **windows), np.random.default_rng(0)
    assert torch.equal(data.clip(2, 1, rng), data.transform(train_split.source(2, 1).read(frames), rng))
    assert data[0]["support_set"].shape == (3 * 2 * 6, 3, 16, 16)


def test_what_cannot_be_sampled_is_refused_before_anything_is_read(train_split: Split) -> None:
    with pytest.raises(UserError, match="clips of 8 frames do not divide into steps of 3"):
        video_dataset(train_split, seq_len=8, frames_per_step=3)
    with pytest.raises(UserError, match="unknown frame sampling 'dense'"):
        video_dataset(train_split, sampling="dense")


@pytest.mark.parametrize("train", [False, True])
def test_an_episode_is_the_same_in_any_order_in_any_process_and_after_reopening(dataset: Path, train: bool) -> None:
    first = video_dataset(Split.open(dataset, "train"), train=train)
    expected = [first[i] for i in range(6)]
    again = video_dataset(Split.open(dataset, "train"), train=train)
    for index in (4, 0, 3, 0):
        torch.manual_seed(index)
        np.random.seed(index)
        assert is_equal(again[index], expected[index])
    for num_workers in (0, 2):
        read = list(read_episodes(again, [5, 1, 2], num_workers))
        assert all(is_equal(item, expected[i]) for item, i in zip(read, [5, 1, 2], strict=True))


def drawn(plan: EpisodePlan) -> tuple[list[int], list[list[int]]]:
    return plan.labels, plan.candidates


def test_episodes_differ_across_seeds_splits_and_numbers(train_split: Split, dataset: Path) -> None:
    # Twin splits of other names: only the name can make their episodes differ.
    twins = [dataclasses.replace(train_split, name=name) for name in ("train", "val", "test")]
    episodes = {
        str(drawn(draw_episode(split, seed, index, way=5, shot=1, queries=1)))
        for split, seed, index in product(twins, range(5), range(20))
    }
    assert len(episodes) == 3 * 5 * 20


def test_augmentation_differs_between_clips_episodes_and_seeds(dataset: Path, tmp_path: Path) -> None:
    """Every video is the same one, so that only augmentation can make clips differ."""
    for label, video in product("ab", range(4)):
        write_video(tmp_path / "train" / label / str(video), frames=30)
    split = Split.open(tmp_path, "train")
    clips = [
        clip
        for seed, index in product(range(2), range(2))
        for role in ("support_set", "target_set")
        for clip in video_dataset(split, train=True, seed=seed, way=2, shot=1, size=16)[index][role].split(3)
    ]
    assert len({clip.numpy().tobytes() for clip in clips}) == len(clips) == 16
    still = [video_dataset(split, way=2, shot=1)[0][role] for role in ("support_set", "target_set")]
    assert len({clip.numpy().tobytes() for frames in still for clip in frames.split(3)}) == 1


def test_every_class_and_video_is_drawn_equally_often(train_split: Split) -> None:
    ways, videos, episodes = len(train_split.classes), np.zeros(VIDEOS), 2000
    classes = np.zeros(ways)
    for index in range(episodes):
        plan = draw_episode(train_split, 0, index, way=2, shot=1, queries=1)
        classes[plan.labels] += 1
        for candidates in plan.candidates:
            videos[candidates[:2]] += 1
    for counts in (classes, videos):
        expected = counts.sum() / len(counts)
        assert abs(counts - expected).max() < 5 * expected**0.5


def test_support_and_query_are_disjoint_and_classes_are_drawn_once(train_split: Split) -> None:
    data = video_dataset(train_split, way=5, shot=5, queries=3)  # all eight videos of a class
    for index in range(10):
        item = data[index]
        assert len(set(item["support_videos"] + item["target_videos"])) == 5 * 8
        assert len(set(item["batch_class_list"].tolist())) == 5


def test_clips_are_shuffled_across_classes(train_split: Split) -> None:
    data = video_dataset(train_split)
    for role in ("support_labels", "target_labels"):
        assert any(data[i][role].tolist() != sorted(data[i][role].tolist()) for i in range(5))


def test_more_shots_and_ways_keep_the_queries_and_support_videos_of_fewer(train_split: Split) -> None:
    small, large = video_dataset(train_split, way=2, shot=1), video_dataset(train_split, way=5, shot=5)
    for index in range(5):
        few, many = small[index], large[index]
        assert set(few["support_videos"]) < set(many["support_videos"])
        assert set(few["target_videos"]) < set(many["target_videos"])
        assert few["batch_class_list"].tolist() == many["batch_class_list"].tolist()[:2]
        assert is_equal(large.narrowed(2, 1)[index], few)


def test_noisy_support_swaps_exactly_so_many_support_videos_of_each_class(train_split: Split) -> None:
    clean = video_dataset(train_split, shot=4)[3]
    noisy = video_dataset(train_split, shot=4, noisy=1)[3]
    assert noisy["target_videos"] == clean["target_videos"]
    strange = noisy["batch_class_list"][noisy["support_labels"]] != noisy["real_support_labels"]
    assert noisy["support_labels"][strange].bincount().tolist() == [1, 1, 1]
    assert not set(noisy["target_videos"]) & set(noisy["support_videos"])
    with pytest.raises(UserError, match="4 noisy support videos of 4"):
        video_dataset(train_split, shot=4, noisy=4)


def test_the_generators_streams_are_independent() -> None:
    streams = [(), (0,), (1,), (0, 0), (0, 1), (1, 0), (0, 0, 0)]
    draws = {float(episode_rng(0, "train", 5, *stream).random()) for stream in streams if stream != (0,)}
    assert len(draws) == len(streams) - 1


# Sealed episodes -----------------------------------------------------------------------------------------------------


@pytest.fixture
def sealed(train_split: Split, tmp_path: Path) -> Path:
    data = video_dataset(train_split, noisy=1)
    seal_episodes(tmp_path / "episodes.json", train_split, [data.plan(i) for i in range(4)], seed=0)
    return tmp_path / "episodes.json"


def test_sealed_episodes_come_back_as_they_were_drawn(sealed: Path, train_split: Split) -> None:
    content, plans = unseal_episodes(sealed, train_split)
    assert {name: content[name] for name in ("way", "shot", "queries_per_class", "noisy_support", "seed")} == {
        "way": 3, "shot": 2, "queries_per_class": 1, "noisy_support": 1, "seed": 0
    }  # fmt: skip
    fresh, again = video_dataset(train_split, noisy=1), video_dataset(train_split, noisy=1, plans=plans)
    assert all(is_equal(fresh[i], again[i]) for i in range(4))
    assert episodes_fingerprint(plans) == episodes_fingerprint(fresh.plan(i) for i in range(4))
    assert episodes_fingerprint(plans) != episodes_fingerprint(plans[::-1])
    assert len(sealed.read_text().splitlines()) > 4, "one task to a line"


def test_sealed_episodes_do_not_fit_another_split_and_name_missing_videos(
    sealed: Path, dataset: Path, own_dataset: Path
) -> None:
    with pytest.raises(UserError, match="episodes of 'train', not of 'val'"):
        unseal_episodes(sealed, Split.open(dataset, "val"))
    used = json.loads(sealed.read_text())["tasks"][0][0]
    shutil.rmtree(own_dataset / "train" / used["class"] / used["target"][0])
    with pytest.raises(UserError) as error:
        unseal_episodes(sealed, Split.open(own_dataset, "train"))
    assert f"{used['class']}/{used['target'][0]}" in str(error.value)
    sealed.write_text("[1]")
    with pytest.raises(UserError, match="holds no sealed episodes"):
        unseal_episodes(sealed, Split.open(dataset, "train"))


# Videos that cannot be read ------------------------------------------------------------------------------------------


@pytest.fixture
def damaged(own_dataset: Path) -> Split:
    """Every class of train has one video whose first frame is cut short."""
    for video in first_videos(own_dataset, "train"):
        frame = video / "1.jpg"
        frame.write_bytes(frame.read_bytes()[:300])
    return Split.open(own_dataset, "train")


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_bad_video_stops_with_its_name_and_no_trace(damaged: Split, num_workers: int) -> None:
    data = video_dataset(damaged, way=7, shot=7, sampling="linspace")
    with pytest.raises(BadVideo, match=r"_000/1\.jpg is damaged") as error:
        list(read_episodes(data, range(3), num_workers))
    assert "Traceback" not in str(error.value)


def test_skipping_a_bad_video_draws_the_same_other_one_everywhere_and_says_so(damaged: Split) -> None:
    settings: dict[str, Any] = {"sampling": "linspace", "way": 4, "shot": 2, "queries": 2}
    skipping = video_dataset(damaged, on_bad_video="skip", **settings)
    read = {
        workers: {item["index"]: item for item in read_episodes(skipping, order, workers)}
        for workers, order in [(0, range(6)), (2, [3, 5, 1, 0, 4, 2])]
    }
    assert all(is_equal(read[0][i], read[2][i]) for i in range(6))
    skipped = [message for i in range(6) for message in read[0][i]["bad_videos"]]
    assert skipped
    assert all("_000/1.jpg is damaged" in message for message in skipped)
    for index in range(6):
        item, wanted = read[0][index], skipping.plan(index)
        taken = {
            f"{damaged.classes[c]}/{damaged.videos[c][v]}"
            for c, candidates in zip(wanted.labels, wanted.candidates, strict=True)
            for v in [v for v in candidates if v != 0][:4]
        }
        assert set(item["support_videos"] + item["target_videos"]) == taken
        assert item["support_labels"].bincount().tolist() == [2] * 4


def test_a_class_without_enough_readable_videos_is_named(damaged: Split) -> None:
    data = video_dataset(damaged, way=2, shot=7, on_bad_video="skip", sampling="linspace")
    with pytest.raises(
        BadVideo, match=r"class '.*' in .*train has 7 readable videos, an episode needs 8; .*is damaged"
    ):
        data[0]


def test_a_video_that_has_lost_frames_since_it_was_listed_is_named(own_dataset: Path) -> None:
    split = Split.open(own_dataset, "train")
    for frame in (own_dataset / "train" / "jump" / "jump_000").glob("[456].jpg"):
        frame.unlink()
    jump = split.classes.index("jump")
    with pytest.raises(BadVideo, match="jump_000 has 3 frames, but frame 6 was expected"):
        video_dataset(split, sampling="linspace").clip(jump, 0, np.random.default_rng(0))


def test_a_reader_that_is_killed_is_one_sentence() -> None:
    def read(index: int) -> int:
        if index == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return index

    with pytest.raises(UserError, match="a process that reads ahead has died .* lower --num_workers"):
        list(read_ahead(read, range(6), 2))
