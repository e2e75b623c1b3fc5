"""Labelled videos of folders, LMDB and lists: which they are, which frames they have, and which classes mirror which."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import CLASSES, FRAMES, VIDEOS, textured_frames, write_video
from video_clips import make_clip

from clips import labelled_videos
from clips.frame_sources import BadVideo, FrameFolder
from clips.labelled_videos import ListedVideos, SplitVideos, held_out, mirrored_classes
from clips.video_split import Split
from data_prep import annotate, pack_lmdb
from utils import UserError

# Folders and LMDB ----------------------------------------------------------------------------------------------------


def test_a_split_gives_its_videos_class_after_class(dataset: Path) -> None:
    split = Split.open(dataset, "val")
    videos = SplitVideos(split)
    assert len(videos) == len(CLASSES["val"]) * VIDEOS
    assert videos.classes == sorted(CLASSES["val"])
    assert videos.num_frames.tolist() == [FRAMES] * len(videos)
    for index in (0, VIDEOS - 1, VIDEOS, len(videos) - 1):
        label, video = divmod(index, VIDEOS)
        assert videos.labels_of(index) == [label]
        assert videos.video_name(index) == split.video_name(label, video)
        np.testing.assert_array_equal(videos.source(index).read([4, 1]), split.source(label, video).read([4, 1]))


def test_lmdb_gives_the_same_videos(dataset: Path, tmp_path: Path) -> None:
    assert pack_lmdb.main(["--src", str(dataset), "--dst", str(tmp_path)]) == 0
    folders, packed = (SplitVideos(Split.open(place, "val")) for place in (dataset, tmp_path))
    assert packed.fingerprint == folders.fingerprint
    np.testing.assert_array_equal(packed.source(9).read([0, 5]), folders.source(9).read([0, 5]))


def test_classes_are_numbered_as_in_the_training(dataset: Path) -> None:
    split = Split.open(dataset, "val")
    trained = ["zebra", *reversed(split.classes)]
    videos = SplitVideos(split, trained)
    assert videos.classes == trained
    assert videos.labels_of(0) == [len(split.classes)]
    assert videos.labels_of(len(videos) - 1) == [1]
    with pytest.raises(UserError, match=r"val has 5 class\(es\) that the training does not have, the first is 'clap'"):
        SplitVideos(split, [split.classes[2]])


# Lists ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Videos a of 6 frames numbered from 1, b of 4 numbered from 0, c of 9."""
    write_video(tmp_path / "root/run/a", frames=6)
    write_video(tmp_path / "root/b", seed=1, frames=4)
    for number in range(1, 5):
        (tmp_path / f"root/b/{number}.jpg").rename(tmp_path / f"root/b/img_{number - 1:05d}.jpg")
    write_video(tmp_path / "root/c d", seed=2, frames=9)
    return tmp_path / "root"


def listed(root: Path, text: str, **settings: object) -> ListedVideos:
    path = root.parent / "train.txt"
    path.write_text(text)
    return ListedVideos.open(path, root, **settings)


def test_a_list_names_videos_frames_and_labels(root: Path) -> None:
    videos = listed(root, "run/a 6 1\nb 4 0\nrun/a 3 2\n")
    assert (videos.name, videos.classes) == ("train", ["0", "1", "2"])
    assert videos.num_frames.tolist() == [6, 4, 3]
    assert [videos.labels_of(index) for index in range(3)] == [[1], [0], [2]]
    assert [videos.video_name(index) for index in range(3)] == ["run/a", "b", "run/a"]
    np.testing.assert_array_equal(videos.source(1).read([3, 0]), FrameFolder(root / "b").read([3, 0]))


def test_frames_beyond_those_of_the_list_are_no_part_of_the_video(root: Path) -> None:
    source = listed(root, "run/a 3 0\n").source(0)
    assert source.num_frames == 3
    with pytest.raises(BadVideo):
        source.read([3])


def test_ranges_are_of_the_numbers_in_the_frames_names_with_both_ends(root: Path) -> None:
    videos = listed(root, "run/a;3;5;0\nb;1;3;1\nc d;9;9;1\n", form="ranges", separator=";")
    assert videos.num_frames.tolist() == [3, 3, 1]
    assert videos.video_name(0) == "run/a:3-5"
    for index, (folder, frames) in enumerate({"run/a": [2, 3, 4], "b": [1, 2, 3], "c d": [8]}.items()):
        source = videos.source(index)
        assert source.num_frames == len(frames)
        np.testing.assert_array_equal(source.read(range(len(frames))), FrameFolder(root / folder).read(frames))


def test_lists_may_hold_multi_label_or_none(root: Path) -> None:
    videos = listed(root, "run/a 1 6 2 0\nb 0 3 1\n", form="ranges", multi_label=True)
    assert [videos.labels_of(0), videos.labels_of(1)] == [[2, 0], [1]]
    assert len(videos.classes) == 3
    videos = listed(root, "run/a 1 6\nb 0 3\n", form="unlabelled", classes=["x", "y"])
    assert [videos.labels_of(0), videos.labels_of(1)] == [[], []]


def test_lists_of_video_files_are_counted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_clip(tmp_path / "root/one two.avi", frames=5)
    make_clip(tmp_path / "root/three.mp4", frames=7)
    counted = []
    original = labelled_videos.frames_in_file
    monkeypatch.setattr(labelled_videos, "frames_in_file", lambda path: counted.append(path) or original(path))
    for path in (tmp_path / "root").iterdir():
        os.utime(path, (1e9, 1e9))
    for _ in range(2):
        videos = listed(
            tmp_path / "root", "one two.avi 1\nthree 2\n", form="video", first_label=1
        )  # .mp4 is understood
        assert videos.num_frames.tolist() == [5, 7]
    assert len(counted) == 2
    assert videos.source(1).read([6]).shape == (1, 48, 64, 3)
    counted_by_the_list = listed(tmp_path / "root", "three.mp4 7 0\n")
    assert counted_by_the_list.source(0).read([6]).shape == (1, 48, 64, 3)


@pytest.mark.parametrize("form", ["frames", "ranges"])
def test_lists_that_annotate_writes_hold_what_the_folders_hold(form: str, dataset: Path, tmp_path: Path) -> None:
    flags = ["--src", str(dataset), "--dst", str(tmp_path), "--format", form, "--separator", ";"]
    assert annotate.main(["write", *flags]) == 0
    names = (tmp_path / "category.txt").read_text().splitlines()
    videos = ListedVideos.open(tmp_path / "val.txt", dataset, form=form, separator=";", classes=names)
    folders = SplitVideos(Split.open(dataset, "val"), names)
    assert videos.num_frames.tolist() == folders.num_frames.tolist()
    assert videos.labels.tolist() == folders.labels.tolist()
    np.testing.assert_array_equal(videos.source(11).read([2]), folders.source(11).read([2]))


def test_only_a_few_videos_are_looked_at_when_a_list_is_opened(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "run/a 6 0\n" * 3000
    seen = []
    monkeypatch.setattr(labelled_videos.os.path, "exists", lambda path: seen.append(path) or Path(path).is_dir())
    monkeypatch.setattr(labelled_videos, "frames_in_file", None)
    assert len(listed(root, text)) == 3000
    assert len(seen) < 100


@pytest.mark.parametrize(
    ("text", "settings", "words"),
    [
        ("\n", {}, "train.txt names no video"),
        ("gone 6 0\n", {}, "names 'gone', which is not in .*root: give the folder that its paths start from"),
        ("run/a 6 2\n", {"classes": ["x", "y"]}, "has label 2 for 'run/a', and there are 2 classes"),
        ("b 4 0\nrun/a 0 0\n", {}, r"names 1 video\(s\) without a frame that can be read, the first is run/a"),
        ("run/a 5 3 0\n", {"form": "ranges"}, r"1 video\(s\) without a frame"),
        ("run/a 0\n", {"form": "video"}, r"1 video\(s\) without a frame"),
        ("run/a 6 0\n", {"form": "ranges"}, "is no 'ranges' line"),
    ],
)
def test_lists_that_do_not_fit_are_refused(root: Path, text: str, settings: dict[str, object], words: str) -> None:
    with pytest.raises(UserError, match=words):
        listed(root, text, **settings)


def test_videos_without_frames_may_be_left_out(root: Path) -> None:
    videos = listed(root, "b 4 1\nrun/a 0 0\nc d 9 0\n", on_bad_video="skip")
    assert [videos.video_name(index) for index in range(len(videos))] == ["b", "c d"]
    assert videos.labels[:, 0].tolist() == [1, 0]
    with pytest.raises(UserError, match="without a frame"):
        listed(root, "run/a 0 0\n", on_bad_video="skip")


@pytest.mark.parametrize(
    ("text", "form", "words"),
    [
        (
            "b 4 0\nrun/a 7 0\n",
            "frames",
            "run/a holds 6 frames, and not all of those that the list asks for, its first 7",
        ),
        ("b 0 3 0\nrun/a 5 7 0\n", "ranges", "run/a holds 6 frames, and not all .*, 5 to 7"),
        ("b 4 0\ngone 7 0\n", "frames", r"gone could not be listed \(No such file"),
    ],
)
def test_frames_that_a_list_promises_and_are_not_there_are_named(root: Path, text: str, form: str, words: str) -> None:
    with pytest.raises(BadVideo, match=words):
        listed(root, text, form=form).source(1)


def test_frames_without_numbers_are_no_range(root: Path) -> None:
    (root / "run/a/cover.jpg").touch()
    assert listed(root, "run/a 1 6 0\n", form="ranges").source(0).num_frames == 6
    write_video(root / "one", frames=1)
    (root / "one/1.jpg").rename(root / "one/cover.jpg")
    with pytest.raises(BadVideo, match="'cover.jpg' has no number in its name"):
        listed(root, "one 1 1 0\n", form="ranges").source(0)


# Fingerprints --------------------------------------------------------------------------------------------------------


def test_the_fingerprint_is_that_of_the_list_and_not_of_its_place(root: Path) -> None:
    text = "run/a 6 1\nb 4 0\n"
    fingerprint = listed(root, text).fingerprint
    moved = Path(shutil.copytree(root, root.parent / "elsewhere/root"))
    assert listed(moved, text).fingerprint == fingerprint
    changed = {
        "order": "b 4 0\nrun/a 6 1\n",
        "label": "run/a 6 0\nb 4 1\n",
        "frames": "run/a 5 1\nb 4 0\n",
        "video": "run/a 6 1\nc 4 0\n",
        "more": text + "b 4 0\n",
    }
    assert fingerprint not in {change: listed(root, lines).fingerprint for change, lines in changed.items()}.values()
    assert listed(root, text, classes=["x", "y"]).fingerprint != fingerprint
    ranges = {listed(root, lines, form="ranges").fingerprint for lines in ("run/a 1 5 0\n", "run/a 2 6 0\n")}
    assert len(ranges) == 2


def test_the_fingerprint_of_folders_changes_with_videos_and_classes(dataset: Path) -> None:
    split = Split.open(dataset, "val")
    fingerprint = SplitVideos(split).fingerprint
    assert SplitVideos(split, [*split.classes, "more"]).fingerprint != fingerprint
    renamed = dataclasses.replace(split, videos=[[f"{name}_" for name in videos] for videos in split.videos])
    assert SplitVideos(renamed).fingerprint != fingerprint


# Mirror images -------------------------------------------------------------------------------------------------------


def pairs(classes: list[str], **options: bool) -> set[tuple[int, int]]:
    """Classes that are each other's mirror image. All others must be their own."""
    mirrored = mirrored_classes(classes, **options)
    found = {(c, m) for c, m in enumerate(mirrored) if m is not None and c < m}
    assert all(mirrored[m] == c for c, m in found)
    assert [m for c, m in enumerate(mirrored) if c not in {c for pair in found for c in pair}] == [
        c for c in range(len(classes)) if c not in {c for pair in found for c in pair}
    ]
    return found


def at(numbers: dict[int, str], count: int) -> list[str]:
    """`count` classes, of which these are named."""
    return [numbers.get(number, f"doing [something] {number}") for number in range(count)]


SOMETHING = {
    "pulling": ("Pulling [something] from left to right", "Pulling [something] from right to left"),
    "pushing": ("Pushing something from left to right", "Pushing something from right to left"),
    "turning": ("Turning the camera left while filming something", "Turning the camera right while filming something"),
}
JESTER = [
    "Swiping Left", "Swiping Right", "Swiping Down", "Swiping Up", "Pushing Hand Away", "Pulling Hand In",
    "Sliding Two Fingers Left", "Sliding Two Fingers Right", "Sliding Two Fingers Down", "Sliding Two Fingers Up",
    "Pushing Two Fingers Away", "Pulling Two Fingers In", "Rolling Hand Forward", "Rolling Hand Backward",
    "Turning Hand Clockwise", "Turning Hand Counterclockwise", "Zooming In With Full Hand", "Zooming Out With Full Hand",
    "Zooming In With Two Fingers", "Zooming Out With Two Fingers", "Thumb Up", "Thumb Down", "Shaking Hand", "Stop Sign",
    "Drumming Fingers", "No gesture", "Doing other things",
]  # fmt: skip


def test_mirrored_classes_of_something_something_in_both_orders() -> None:
    alphabetical = {86: "pulling", 93: "pushing", 166: "turning"}
    classes = at({n + i: SOMETHING[name][i] for n, name in alphabetical.items() for i in range(2)}, 174)
    assert pairs(classes) == {(86, 87), (93, 94), (166, 167)}
    as_in_the_csv = {"turning": (2, 4), "pushing": (30, 41), "pulling": (52, 66)}
    classes = at({number: SOMETHING[name][i] for name, ns in as_in_the_csv.items() for i, number in enumerate(ns)}, 174)
    assert pairs(classes) == {(2, 4), (30, 41), (52, 66)}


def test_mirrored_classes_of_jester_in_both_orders() -> None:
    assert pairs(JESTER, rotations=False) == {(0, 1), (6, 7)}
    assert pairs(JESTER) == {(0, 1), (6, 7), (14, 15)}
    assert pairs(sorted(JESTER), rotations=False) == {(11, 12), (16, 17)}
    assert pairs(sorted(JESTER)) == {(11, 12), (16, 17), (21, 22)}


def test_a_class_whose_mirror_image_is_no_class_cannot_be_mirrored() -> None:
    assert mirrored_classes(["turn left", "wave", "turning right"]) == [None, 1, None]
    assert mirrored_classes(["spin clockwise", "wave"]) == [None, 1]
    assert mirrored_classes(["spin clockwise", "wave"], rotations=False) == [0, 1]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("TURN_LEFT", "turn_right"),
        ("spin anti-clockwise", "spin clockwise"),
        ("spin counter clockwise", "Spin Clockwise"),
        ("turn left clockwise", "turn right counter-clockwise"),
    ],
)
def test_spellings_of_one_word_are_the_same(one: str, other: str) -> None:
    assert mirrored_classes([one, other]) == [1, 0]


def test_words_that_only_hold_left_or_right_are_their_own_mirror_image() -> None:
    assert mirrored_classes(["cleft chin", "fighting upright"]) == [0, 1]


def test_videos_of_a_list_can_be_sent_to_other_processes(root: Path) -> None:
    videos = pickle.loads(pickle.dumps(listed(root, "run/a 6 1\nb 4 0\n")))
    assert videos.source(0).read([0]).shape == textured_frames(0, 1).shape


# Part of the videos held out -----------------------------------------------------------------------------------------


def test_held_out_videos_depend_on_names_alone(dataset: Path, tmp_path: Path) -> None:
    whole = SplitVideos(Split.open(dataset, "train"))
    train, val = held_out(whole, 0.25)
    names = [{part.video_name(index) for index in range(len(part))} for part in (train, val)]
    assert names[0].isdisjoint(names[1])
    assert names[0] | names[1] == {whole.video_name(index) for index in range(len(whole))}
    for part, number in ((train, 6), (val, 2)):
        assert part.classes == whole.classes
        assert np.bincount(part.labels[:, 0]).tolist() == [number] * len(whole.classes)
        name = part.video_name(3)
        assert name.startswith(f"{whole.classes[part.labels_of(3)[0]]}/")
        np.testing.assert_array_equal(part.source(3).read([0]), FrameFolder(f"{whole.root}/{name}").read([0]))
    for label in whole.classes:  # literally: those with the smallest hashes of their names
        videos = [name for names_of in names for name in names_of if name.startswith(f"{label}/")]
        smallest = sorted(videos, key=lambda name: hashlib.sha256(name.encode()).hexdigest())[:2]
        assert set(smallest) == {name for name in names[1] if name.startswith(f"{label}/")}
    moved = Path(shutil.copytree(dataset / "train", tmp_path / "elsewhere" / "train")).parent
    again = held_out(SplitVideos(Split.open(moved, "train")), 0.25)[1]
    assert again.fingerprint == val.fingerprint != train.fingerprint
    with pytest.raises(UserError, match=r"has 8 video\(s\), of which --holdout 0.99 keeps back 8: expected some"):
        held_out(whole, 0.99)
