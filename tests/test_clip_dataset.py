"""Labelled clips and test views: which they are, in any order, process and number of processes, and what they cost."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import CLASSES, VIDEOS, first_videos, write_video
from PIL import Image

from clips.clip_dataset import ClipDataset, ViewDataset, epoch_order, read_batches, read_views, steps_per_epoch
from clips.frame_sampling import clip_sampling
from clips.frame_sources import BadVideo, FrameFolder
from clips.labelled_videos import ListedVideos, SplitVideos
from clips.transforms import ClipTransform, MultiScaleCrop, ScaleJitterCrop, ViewCrops
from clips.video_split import Split
from utils import UserError

SIZE = 16


@pytest.fixture(scope="module")
def videos(dataset: Path) -> SplitVideos:
    return SplitVideos(Split.open(dataset, "train"))


def clip_dataset(videos: Any, *, frames: int = 3, rule: str = "tsm", **settings: Any) -> ClipDataset:
    settings = {"transform": MultiScaleCrop(SIZE), "seed": 0, **settings}
    return ClipDataset(videos, sampling=clip_sampling(rule, seq_len=frames), **settings)


def view_dataset(
    videos: Any, *, frames: int = 3, rule: str = "tsm", num_crops: int = 1, **settings: Any
) -> ViewDataset:
    return ViewDataset(
        videos,
        sampling=clip_sampling(rule, seq_len=frames),
        crops=ViewCrops(SIZE, num_crops, short_side=20),
        **settings,
    )


def is_equal(a: dict[str, Any], b: dict[str, Any]) -> bool:
    same = (torch.equal(a[k], b[k]) if isinstance(a[k], torch.Tensor) else a[k] == b[k] for k in a)
    return a.keys() == b.keys() and all(same)


# Clips ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "transform", [MultiScaleCrop(SIZE), ScaleJitterCrop(SIZE, (18, 24)), ClipTransform(SIZE, train=True)]
)
def test_a_clip_has_the_promised_shape_and_label(videos: SplitVideos, transform: Any) -> None:
    item = clip_dataset(videos, transform=transform)[3, VIDEOS + 1]
    assert item["clip"].shape == (3, 3, SIZE, SIZE)
    assert item["clip"].dtype == torch.uint8
    assert (item["label"].dtype, int(item["label"])) == (torch.int64, 1)
    assert (item["index"], item["bad_videos"]) == (VIDEOS + 1, [])
    assert item["video"] == f"{videos.classes[1]}/{videos.classes[1]}_001"


def test_a_clip_is_made_of_frames_of_its_video(tmp_path: Path) -> None:
    """Every frame of every video has a brightness of its own, which tells what was read."""
    for video in range(4):
        folder = tmp_path / str(video)
        write_video(folder, frames=6)
        for frame in range(6):
            shutil.copy(brightness(tmp_path, 10 * (1 + 6 * video + frame)), folder / f"{frame + 1}.jpg")
    (tmp_path / "train.txt").write_text("".join(f"{video} 6 {video}\n" for video in range(4)))
    data = clip_dataset(ListedVideos.open(tmp_path / "train.txt", tmp_path))
    for video in range(4):
        drawn = {tuple(frame_numbers(data[epoch, video]["clip"])) for epoch in range(60)}
        assert drawn == {
            (6 * video + a, 6 * video + 2 + b, 6 * video + 4 + c) for a in (0, 1) for b in (0, 1) for c in (0, 1)
        }


def brightness(folder: Path, value: int) -> Path:
    path = folder / "grey.png"
    Image.new("RGB", (24, 20), (value, value, value)).save(path, format="PNG")
    return path


def frame_numbers(clip: torch.Tensor) -> list[int]:
    return [round(float(frame.float().mean()) / 10) - 1 for frame in clip]


def test_a_clip_is_the_same_in_any_order_and_after_reopening(videos: SplitVideos, dataset: Path) -> None:
    first = clip_dataset(videos, mirror=range(len(videos.classes)))
    keys = [(0, 0), (0, 7), (1, 0), (5, 30)]
    expected = [first[key] for key in keys]
    again = clip_dataset(SplitVideos(Split.open(dataset, "train")), mirror=range(len(videos.classes)))
    for number in (2, 0, 3, 1, 0):
        torch.manual_seed(number)
        np.random.seed(number)
        assert is_equal(again[keys[number]], expected[number])


def test_clips_differ_between_epochs_videos_and_seeds(tmp_path: Path) -> None:
    """Every video is the same one, so that only what is drawn can make clips differ."""
    for video in range(3):
        write_video(tmp_path / str(video), frames=30)
    (tmp_path / "list.txt").write_text("0 30 0\n1 30 0\n2 30 0\n")
    listed = ListedVideos.open(tmp_path / "list.txt", tmp_path)
    clips = {
        clip_dataset(listed, seed=seed)[epoch, video]["clip"].contiguous().numpy().tobytes()
        for seed in range(3)
        for epoch in range(3)
        for video in range(3)
    }
    assert len(clips) == 27


def test_neighbouring_frames_count_among_those_of_the_clip(videos: SplitVideos) -> None:
    sampling = clip_sampling("tdn", seq_len=10, frames_per_step=5)
    clips = ClipDataset(videos, sampling=sampling, transform=MultiScaleCrop(SIZE), seed=0)
    assert clips[0, 0]["clip"].shape == (10, 3, SIZE, SIZE)
    views = ViewDataset(videos, sampling=sampling, crops=ViewCrops(SIZE, 3), num_clips=2)
    assert views[0]["views"].shape == (6, 10, 3, SIZE, SIZE)


# Labels --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def still(tmp_path: Path) -> ListedVideos:
    """Four classes of one-frame videos, darker at the left."""
    for name in "abcd":
        write_video(tmp_path / name, frames=1)
        ramp = np.tile(np.linspace(0, 250, 24, dtype=np.uint8)[None, :, None], (20, 1, 3))
        Image.fromarray(ramp).save(tmp_path / name / "1.jpg", format="PNG")
    (tmp_path / "list.txt").write_text("a 1 0\nb 1 1\nc 1 2\nd 1 3\n")
    return ListedVideos.open(tmp_path / "list.txt", tmp_path)


def is_mirrored(clip: torch.Tensor) -> bool:
    return bool(clip[0, 0, 0, 0] > clip[0, 0, 0, -1])


def test_a_mirrored_clip_has_the_label_of_its_mirror_image(still: ListedVideos) -> None:
    data = clip_dataset(still, mirror=[1, 0, 2, None])
    seen = Counter()
    for epoch in range(200):
        for index in range(4):
            item = data[epoch, index]
            seen[index, is_mirrored(item["clip"]), int(item["label"])] += 1
    assert set(seen) == {
        (0, False, 0),
        (0, True, 1),
        (1, False, 1),
        (1, True, 0),
        (2, False, 2),
        (2, True, 2),
        (3, False, 3),
    }
    assert all(65 < count < 135 for (index, *_), count in seen.items() if index != 3)


def test_without_a_mirror_no_clip_is_mirrored(still: ListedVideos) -> None:
    data = clip_dataset(still)
    assert not any(is_mirrored(data[epoch, index]["clip"]) for epoch in range(30) for index in range(4))


def test_multi_label_are_ones_among_zeros_and_mirrored_together(tmp_path: Path, still: ListedVideos) -> None:
    (tmp_path / "several.txt").write_text("a 1 0 2\nb 1 3\nc 1 0 3\n")
    listed = ListedVideos.open(tmp_path / "several.txt", tmp_path, multi_label=True)
    assert clip_dataset(listed)[0, 0]["label"].tolist() == [1, 0, 1, 0]
    data = clip_dataset(listed, mirror=[1, 0, 2, None])
    seen = {(index, is_mirrored((item := data[epoch, index])["clip"]), tuple(item["label"].tolist()))
            for epoch in range(40) for index in range(3)}  # fmt: skip
    assert seen == {
        (0, False, (1, 0, 1, 0)),
        (0, True, (0, 1, 1, 0)),
        (1, False, (0, 0, 0, 1)),
        (2, False, (1, 0, 0, 1)),
    }
    batch = next(read_batches(data, [0], batch_size=3))
    assert (batch["labels"].shape, batch["labels"].dtype) == ((3, 4), torch.float32)
    assert view_dataset(listed, frames=1)[0]["label"].tolist() == [1, 0, 1, 0]


def test_videos_without_labels_can_be_tested_and_not_trained_on(tmp_path: Path, still: ListedVideos) -> None:
    (tmp_path / "test.txt").write_text("a 1 1\nb 1 1\n")
    listed = ListedVideos.open(tmp_path / "test.txt", tmp_path, form="unlabelled", classes=still.classes)
    assert [int(item["label"]) for item in read_views(view_dataset(listed), [0, 1])] == [-1, -1]
    with pytest.raises(UserError, match="test holds videos without a label"):
        clip_dataset(listed)


# Batches -------------------------------------------------------------------------------------------------------------


def test_an_epoch_takes_every_video_once_in_an_order_of_its_own() -> None:
    orders = [tuple(epoch_order(seed, epoch, 50).tolist()) for seed in range(3) for epoch in range(3)]
    assert len(set(orders)) == 9
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert epoch_order(1, 2, 50).tolist() == np.random.default_rng([1, 2, 5]).permutation(50).tolist()


def test_batches_go_through_the_epochs(videos: SplitVideos) -> None:
    data, size = clip_dataset(videos, frames=1), 16
    assert steps_per_epoch(len(videos), size) == 3  # of 56 videos
    batches = list(read_batches(data, range(7), batch_size=size))
    assert [batch["epoch"] for batch in batches] == [0, 0, 0, 1, 1, 1, 2]
    assert [batch["step"] for batch in batches] == list(range(7))
    for epoch in range(2):
        taken = torch.cat([batch["indices"] for batch in batches if batch["epoch"] == epoch])
        assert taken.tolist() == epoch_order(0, epoch, len(videos))[: 3 * size].tolist()
    batch = batches[4]
    assert batch["clips"].shape == (size, 1, 3, SIZE, SIZE)
    for place, index in enumerate(batch["indices"].tolist()):
        item = data[1, index]
        assert torch.equal(batch["clips"][place], item["clip"])
        assert (int(batch["labels"][place]), batch["videos"][place]) == (int(item["label"]), item["video"])


def test_batches_are_the_same_by_any_number_of_workers_and_from_any_step(videos: SplitVideos) -> None:
    data = clip_dataset(videos, mirror=range(len(videos.classes)))
    whole = list(read_batches(data, range(6), batch_size=20))
    for num_workers in (0, 2):
        rest = read_batches(data, range(3, 6), batch_size=20, num_workers=num_workers)
        assert all(is_equal(a, b) for a, b in zip(rest, whole[3:], strict=True))


@pytest.mark.parametrize("world_size", [2, 4])
def test_processes_share_each_batch(videos: SplitVideos, world_size: int) -> None:
    data = clip_dataset(videos, frames=1)
    whole = list(read_batches(data, range(4), batch_size=20))
    shares = [
        list(read_batches(data, range(4), batch_size=20, rank=rank, world_size=world_size))
        for rank in range(world_size)
    ]
    for step in range(4):
        for name in ("clips", "labels", "indices"):
            together = torch.stack([share[step][name] for share in shares], dim=1).flatten(0, 1)
            assert torch.equal(together, whole[step][name])


def test_batches_that_cannot_be_are_refused(videos: SplitVideos) -> None:
    data = clip_dataset(videos)
    with pytest.raises(UserError, match="a batch of 57 clips was asked for, of 56 videos: give 1 to 56"):
        next(read_batches(data, [0], batch_size=57))
    with pytest.raises(UserError, match="a batch of 10 clips cannot be shared by 4 processes: give a multiple of 4"):
        next(read_batches(data, [0], batch_size=10, world_size=4))


# Views ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_crops", [1, 3, 5, 10])
def test_views_are_the_crops_of_the_clips_in_their_order(videos: SplitVideos, num_crops: int) -> None:
    data = view_dataset(videos, rule="tdn", num_crops=num_crops, num_clips=2)
    item = data[9]
    clips = clip_sampling("tdn", seq_len=3).test(int(videos.num_frames[9]), 2)
    expected = []
    crops = data.crops
    resized = [crops.resize(videos.source(9).read(clip)) for clip in clips]
    for top, left, mirrored in crops.places(*resized[0].shape[-2:]):
        for frames in resized:
            crop = frames[..., top : top + SIZE, left : left + SIZE]
            expected.append(crop.flip(-1) if mirrored else crop)
    assert torch.equal(item["views"], torch.stack(expected))
    assert item["views"].dtype == torch.uint8
    assert len({view.contiguous().numpy().tobytes() for view in item["views"]}) == num_crops * 2
    assert item["distinct_views"] == num_crops * 2
    assert (int(item["label"]), item["index"], item["video"]) == (1, 9, videos.video_name(9))


def test_all_views_of_a_video_decode_each_frame_once(videos: SplitVideos, monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    original = FrameFolder.read
    monkeypatch.setattr(
        FrameFolder, "read", lambda self, indices: read.append(list(indices)) or original(self, indices)
    )
    data = view_dataset(videos, rule="study", frames=4, num_crops=10, num_clips=3)
    assert data[0]["views"].shape == (30, 4, 3, SIZE, SIZE)
    (frames,) = read
    assert frames == sorted(set(frames))


def test_views_that_are_the_same_are_not_counted_twice(tmp_path: Path) -> None:
    write_video(tmp_path / "short", frames=2, height=20, width=20)
    write_video(tmp_path / "long", frames=40, height=20, width=30)
    (tmp_path / "list.txt").write_text("short 2 0\nlong 40 0\n")
    data = view_dataset(ListedVideos.open(tmp_path / "list.txt", tmp_path), rule="tdn", num_crops=3, num_clips=10)
    data.crops = ViewCrops(SIZE, 3, SIZE)  # a square frame has one such crop
    short, long = data[0], data[1]
    assert short["views"].shape == long["views"].shape == (30, 3, 3, SIZE, SIZE)
    for item, clips in ((short, 2), (long, 10)):
        assert item["distinct_views"] == len({view.contiguous().numpy().tobytes() for view in item["views"]})
        assert item["distinct_views"] <= 3 * clips
    assert short["distinct_views"] < 6
    assert long["distinct_views"] == 30


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("world_size", [1, 5])
def test_processes_share_the_videos_without_one_missing_or_twice(
    dataset: Path, num_workers: int, world_size: int
) -> None:
    videos = SplitVideos(Split.open(dataset, "val"))
    data = view_dataset(videos, rule="study", num_clips=2)
    read: dict[int, dict[str, Any]] = {}
    for rank in range(world_size):
        shard = list(read_views(data, range(rank, len(data), world_size), num_workers=num_workers))
        assert [item["index"] for item in shard] == list(range(rank, len(CLASSES["val"]) * VIDEOS, world_size))
        read.update((item["index"], item) for item in shard)
    assert sorted(read) == list(range(len(videos)))
    assert all(is_equal(read[index], data[index]) for index in (0, 1, 2, 17))


def test_random_test_clips_follow_the_training_rule_and_are_repeatable(tmp_path: Path) -> None:
    for name in "ab":
        write_video(tmp_path / name, frames=60)
    (tmp_path / "list.txt").write_text("a 60 0\nb 60 0\n")
    (tmp_path / "other.txt").write_text("b 60 0\n")
    listed = ListedVideos.open(tmp_path / "list.txt", tmp_path)
    settings = {"rule": "tdn", "frames": 4, "num_clips": 10, "clips": "random"}
    data = view_dataset(listed, **settings)
    clips = data.clip_frames(0)
    assert clips.shape == (10, 4)
    assert (clips // 15 == np.arange(4)).all(), "one frame of each of four segments"
    assert len(np.unique(clips, axis=0)) == 10
    assert (data.clip_frames(0) == clips).all()
    assert (data.clip_frames(1) != clips).any(), "videos have draws of their own"
    assert (view_dataset(listed, seed=1, **settings).clip_frames(0) != clips).any()
    alone = view_dataset(ListedVideos.open(tmp_path / "other.txt", tmp_path), **settings)
    assert (alone.clip_frames(0) == data.clip_frames(1)).all(), "whatever the list"
    assert view_dataset(listed, rule="tsm", num_clips=10, clips="random")[0]["views"].shape[0] == 10


def test_a_number_of_clips_that_the_rule_does_not_have_is_refused_at_once(videos: SplitVideos) -> None:
    with pytest.raises(UserError, match="tsm has 1 or 2 test clips"):
        view_dataset(videos, num_clips=10)


# Videos that cannot be read ------------------------------------------------------------------------------------------


@pytest.fixture
def damaged(own_dataset: Path) -> SplitVideos:
    """The first video of every class has frames that are cut short."""
    for video in first_videos(own_dataset, "train"):
        for frame in video.iterdir():
            frame.write_bytes(frame.read_bytes()[:300])
    return SplitVideos(Split.open(own_dataset, "train"))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_bad_video_stops_with_its_name_and_no_trace(damaged: SplitVideos, num_workers: int) -> None:
    for items in (
        read_batches(clip_dataset(damaged), range(3), batch_size=56, num_workers=num_workers),
        read_views(view_dataset(damaged), range(len(damaged)), num_workers=num_workers),
    ):
        with pytest.raises(BadVideo, match=r"_000/\d\.jpg is damaged") as error:
            list(items)
        assert "Traceback" not in str(error.value)


def test_in_training_another_video_stands_in_with_its_own_label(damaged: SplitVideos) -> None:
    data = clip_dataset(damaged, on_bad_video="skip")
    for epoch in range(5):
        item = data[epoch, 2 * VIDEOS]
        label = item["video"].partition("/")[0]
        assert not item["video"].endswith("_000")
        assert item["index"] == 2 * VIDEOS
        assert damaged.classes[int(item["label"])] == label
        assert all("_000/" in message for message in item["bad_videos"])
        assert item["bad_videos"]
        assert is_equal(item, data[epoch, 2 * VIDEOS])
    assert len({data[epoch, 0]["video"] for epoch in range(8)}) > 1
    batches = list(read_batches(data, range(2), batch_size=28))
    assert {message for batch in batches for message in batch["bad_videos"]}


def test_in_tests_a_bad_video_has_no_views(damaged: SplitVideos) -> None:
    items = list(read_views(view_dataset(damaged, on_bad_video="skip", num_crops=3, num_clips=2), range(len(damaged))))
    assert len(items) == len(damaged)
    for item in items:
        bad = item["video"].endswith("_000")
        assert item["views"].shape == (0 if bad else 6, 3, 3, SIZE, SIZE)
        assert (len(item["bad_videos"]), item["distinct_views"]) == ((1, 0) if bad else (0, 6))


def test_where_no_video_can_be_read_training_stops(own_dataset: Path) -> None:
    videos = SplitVideos(Split.open(own_dataset, "train"))
    shutil.rmtree(own_dataset / "train")
    with pytest.raises(BadVideo, match=r"11 videos of .*train in a row could not be read; .* could not be listed"):
        clip_dataset(videos, on_bad_video="skip")[0, 0]
