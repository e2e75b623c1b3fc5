"""Features that are encoded once give the answers that frames give, are never stale, and survive stops and bad videos."""

from __future__ import annotations

import csv
import json
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Program, tiny_run, torch_threads
from run_folders import assert_same_answers, rows

import run
from clips.transforms import ClipTransform, InputSpec
from clips.video_split import Split
from engine import episode_calls
from engine.feature_store import FeatureStore, fingerprint
from engine.settings import parse_args
from methods import METHODS
from utils import FINAL, RunFolder, UserError
from video_reader import VideoDataset


def learner(dataset: Path, folder: Path, *flags: Any) -> run.Learner:
    args = parse_args(tiny_run(dataset, folder, "-i", 0, "--trans_linear_out_dim", 16, *flags), METHODS)
    return run.Learner(args, RunFolder(folder))


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> Counter[tuple[str, int, int]]:
    """Counts how often each video of a split is read as a clip."""
    read: Counter[tuple[str, int, int]] = Counter()
    original = VideoDataset.clip

    def counting(self: VideoDataset, label: int, video: int, *how: Any) -> torch.Tensor:
        read[self.split.name, label, video] += 1
        return original(self, label, video, *how)

    monkeypatch.setattr(VideoDataset, "clip", counting)
    return read


@pytest.mark.parametrize("method", METHODS)
def test_stored_features_give_the_logits_that_frames_give(
    method: str, dataset: Path, tmp_path: Path, text_flags: Callable[[str], list[str]]
) -> None:
    sizes = ["--way_test", 3, "--shot_test", 2, "-qpct", 2]
    made = learner(dataset, tmp_path / "run", "--method", method, *sizes, *text_flags(method))
    made.model.eval()
    episodes = made.datasets["test"]
    with torch.inference_mode(), made.calls.feature_store(episodes) as store:
        assert store is not None
        stored = torch.cat([made.calls.logits(call) for call in made.calls.of_evaluation(episodes, 10, store)])
        direct = torch.cat([made.calls.logits(call) for call in made.calls.of_evaluation(episodes, 10, None)])
        with torch_threads(2):  # two calls side by side, one core each: to the same bits
            answered = list(made.calls.answered(episodes, 10, store))
    assert torch.equal(torch.cat([logits for _, logits in answered]), stored)
    assert sum((call["index"] for call, _ in answered), []) == list(range(10))
    assert stored.shape == (10, 6, 3)
    torch.testing.assert_close(stored, direct, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", [name for name, head in METHODS.items() if head.condenses])
def test_with_a_frozen_backbone_a_test_describes_each_video_once(
    method: str, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text_flags: Callable[[str], list[str]]
) -> None:
    flags = ["--method", method, "--freeze_backbone", *text_flags(method)]
    made = learner(dataset, tmp_path / "run", *flags, *(["--molo_reconstruction", 0] if method == "molo" else []))
    episodes, described, describe = made.datasets["test"], [], made.model.describe
    monkeypatch.setattr(made.model, "describe", lambda features: described.append(len(features)) or describe(features))
    logits = {}
    with torch.inference_mode(), made.calls.feature_store(episodes) as store:
        assert store is not None
        assert not store.described
        for most in (2**31, 0):
            monkeypatch.setattr(episode_calls, "MOST_IN_MEMORY", most)
            described.clear()
            logits[most] = torch.cat(
                [made.calls.logits(call) for call in made.calls.of_evaluation(episodes, 60, store)]
            )
            if most:  # one more is described, to see how large it is
                assert 1 < sum(described) <= sum(map(len, episodes.split.videos)) + 1
    torch.testing.assert_close(*logits.values(), rtol=1e-4, atol=1e-4)


def test_descriptions_too_large_for_a_split_are_made_of_stored_features(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the same answers; and those that are smaller than features are stored in any case."""
    logits, sizes = [], []
    for number, most in enumerate((10**9, 0)):
        monkeypatch.setattr(episode_calls, "MOST_DESCRIBED", most)
        made = learner(dataset, tmp_path / f"run{number}", "--method", "trx", "--trans_linear_out_dim", 64)
        made.model.eval()
        with torch.inference_mode(), made.calls.feature_store(made.datasets["test"]) as store:
            assert store is not None
            sizes.append(store.shape)
            logits.append(
                [made.calls.logits(call) for call in made.calls.of_evaluation(made.datasets["test"], 4, store)]
            )
    assert [len(shape) for shape in sizes] == [2, 3]
    torch.testing.assert_close(*logits, rtol=1e-4, atol=1e-4)
    smaller = learner(dataset, tmp_path / "smaller", "--method", "cmn")
    with smaller.calls.feature_store(smaller.datasets["test"]) as store:
        assert store is not None
        assert store.described


def test_direct_and_stored_tests_answer_every_query_alike(dataset: Path, tmp_path: Path, program: Program) -> None:
    for name, flags in {"stored": [], "direct": ["--direct"]}.items():
        program(*tiny_run(dataset, tmp_path / name, "-i", 0, "--num_test_tasks", 20, *flags))
    assert_same_answers(tmp_path / "stored", tmp_path / "direct")
    assert len(rows(tmp_path / "stored", "predictions.csv")) == 40


def test_each_video_is_read_once_however_many_episodes_ask_for_it(
    dataset: Path, tmp_path: Path, program: Program, encoded: Counter[tuple[str, int, int]]
) -> None:
    program(*tiny_run(dataset, tmp_path / "run", "-i", 0, "--num_test_tasks", 60, "--shot_test", 1, 2, 3))
    assert set(encoded.values()) == {1}
    assert not (tmp_path / "run" / "features").exists()


def test_only_videos_of_the_episodes_are_read(
    dataset: Path, tmp_path: Path, program: Program, encoded: Counter[tuple[str, int, int]]
) -> None:
    program(*tiny_run(dataset, tmp_path / "run", "-i", 0, "--num_test_tasks", 2))
    assert 0 < len(encoded) <= 2 * 2 * 2


def test_kept_features_serve_later_tests_of_the_same_weights_only(
    dataset: Path, tmp_path: Path, program: Program, encoded: Counter[tuple[str, int, int]]
) -> None:
    kept = ["--features", tmp_path / "features", "--num_test_tasks", 40]
    program(*tiny_run(dataset, tmp_path / "one", "-i", 0, *kept))
    first = Counter(encoded)
    program(*tiny_run(dataset, tmp_path / "same", "-i", 0, *kept))
    assert encoded == first
    for change in (
        ["--seed", 1],
        ["--img_size", 17],
        ["--seq_len", 2],
        ["--sampling", "segment"],
        ["--normalise", "none"],
    ):
        encoded.clear()
        program(*tiny_run(dataset, tmp_path / f"other {change[0]}", "-i", 0, *kept, *change))
        assert encoded, change


def test_runs_at_the_same_time_share_kept_features(
    dataset: Path, tmp_path: Path, encoded: Counter[tuple[str, int, int]]
) -> None:
    """Each has opened the store before the other writes: what one has encoded, the other takes over."""
    first, second = (learner(dataset, tmp_path / name, "--features", tmp_path / "kept") for name in ("one", "two"))
    tasks = 10
    with torch.inference_mode(), first.calls.feature_store(first.datasets["test"]) as store:
        assert store is not None
        with second.calls.feature_store(second.datasets["test"]) as other:
            calls = list(first.calls.of_evaluation(first.datasets["test"], tasks, store))
            for ours, theirs in zip(
                calls, second.calls.of_evaluation(second.datasets["test"], tasks, other), strict=True
            ):
                assert torch.equal(ours["target_features"], theirs["target_features"])
    assert set(encoded.values()) == {1}


def test_a_changed_data_set_is_another_key(own_dataset: Path) -> None:
    def key() -> dict[str, Any]:
        split = Split.open(own_dataset, "val")
        episodes = VideoDataset(split, way=2, shot=1, queries=1, seq_len=3, transform=ClipTransform(16), seed=0)
        return fingerprint(torch.nn.Linear(2, 2, bias=False).requires_grad_(False).to_empty(device="cpu").apply(
            lambda layer: layer.weight.fill_(1.0)), InputSpec(), episodes)  # fmt: skip

    before = key()
    assert key() == before
    os.utime(own_dataset / "val/clap/clap_001", ns=(1, 1))
    assert key() != before
    before = key()
    (own_dataset / "val/clap/clap_000").rename(own_dataset / "val/clap/clap_100")
    assert key() != before


def test_other_frames_of_the_videos_are_another_key(dataset: Path) -> None:
    settings: dict[str, Any] = {"way": 2, "shot": 1, "queries": 1, "seq_len": 4, "seed": 0}
    keys = [
        str(fingerprint(torch.nn.Identity(), InputSpec(), VideoDataset(
            Split.open(dataset, "val"), transform=ClipTransform(16), **settings, **frames)))
        for frames in ({}, {"frames_per_step": 2}, {"frames_per_step": 2, "interval": 1}, {"sampling": "segment"})
    ]  # fmt: skip
    assert len(set(keys)) == 4


def test_a_stopped_encoding_goes_on_with_the_rows_that_are_missing(dataset: Path, tmp_path: Path) -> None:
    split = Split.open(dataset, "val")
    episodes = VideoDataset(split, way=2, shot=1, queries=1, seq_len=3, transform=ClipTransform(16), seed=0)
    seen: list[int] = []

    def features_of(clips: torch.Tensor) -> torch.Tensor:
        if len(seen) == 4:
            raise KeyboardInterrupt
        seen.append(len(clips))
        return clips.float().mean(dim=(2, 3, 4))

    def store() -> FeatureStore:
        return FeatureStore(tmp_path, {"key": 1}, split, (3,))

    rows = list(range(20))
    with pytest.raises(KeyboardInterrupt):
        store().encode(rows, episodes, features_of, num_workers=0, clips_per_call=3)
    seen.clear()
    again = store()
    again.encode(rows, episodes, features_of, num_workers=0, clips_per_call=4)
    assert sum(seen) == 20 - 4 * 3
    for row in (0, 11, 12, 19):
        clip = episodes.clip(*again.place(row), np.random.default_rng(0))
        torch.testing.assert_close(again.read([row])[0], clip.float().mean(dim=(1, 2, 3)))


def test_what_a_stop_has_left_is_encoded_in_the_batches_of_an_unbroken_run(dataset: Path, tmp_path: Path) -> None:
    """Features that are rounded differently in another batch: here all but the rounding is in the batch."""
    split = Split.open(dataset, "val")
    episodes = VideoDataset(split, way=2, shot=1, queries=1, seq_len=2, transform=ClipTransform(16), seed=0)

    def features_of(clips: torch.Tensor) -> torch.Tensor:
        return clips.float().mean(dim=(1, 2, 3, 4))[:, None] + clips.float().sum()

    def encoded(name: str, *, known: list[int]) -> torch.Tensor:
        store = FeatureStore(tmp_path / name, {}, split, (1,))
        if known:
            store.write(known, whole[known].numpy())
        store.encode(range(20), episodes, features_of, num_workers=0)
        return store.read(range(20))

    whole = encoded("whole", known=[])
    assert torch.equal(encoded("left", known=[0, 1, 2, 9, 19]), whole)
    assert torch.equal(encoded("other", known=list(range(0, 20, 2))), whole)


def test_rows_and_places_are_each_others_inverse(dataset: Path, tmp_path: Path) -> None:
    split = Split.open(dataset, "val")
    store = FeatureStore(tmp_path, {}, split, (1,))
    places = [(label, video) for label, videos in enumerate(split.videos) for video in range(len(videos))]
    assert [store.row(*place) for place in places] == list(range(split.num_videos))
    assert [store.place(row) for row in range(split.num_videos)] == places


@pytest.mark.parametrize("how", ["stored", "direct"])
def test_an_unreadable_video_stops_the_test_or_another_stands_in(
    how: str, own_dataset: Path, tmp_path: Path, program: Program
) -> None:
    for folder in (own_dataset / "test").glob("*/*_003"):
        (folder / "3.jpg").write_bytes(b"\xff\xd8 not a picture")
    flags = ["-i", 0, "--num_test_tasks", 30, *(["--direct"] if how == "direct" else [])]
    assert "_003/3.jpg" in program.fails(*tiny_run(own_dataset, tmp_path / "error", *flags))
    out = program(*tiny_run(own_dataset, tmp_path / "skip", "--on_bad_video", "skip", *flags))
    messages = [line for line in out.splitlines() if line.startswith("left out: ")]
    assert messages
    assert len(messages) == len(set(messages))
    videos = (tmp_path / "skip" / "predictions.csv").read_text()
    assert "_003" not in videos
    assert videos.count("\n") == 1 + 30 * 2


def test_the_stand_ins_are_the_same_on_frames_and_on_features(
    own_dataset: Path, tmp_path: Path, program: Program
) -> None:
    for folder in (own_dataset / "test").glob("*/*_00[36]"):
        (folder / "3.jpg").write_bytes(b"")
    videos = []
    for name, flags in {"stored": [], "direct": ["--direct"]}.items():
        flags = ["-i", 0, "--num_test_tasks", 30, "--on_bad_video", "skip", *flags]
        program(*tiny_run(own_dataset, tmp_path / name, *flags))
        with open(tmp_path / name / "predictions.csv", newline="", encoding="utf-8") as file:
            videos.append([row["video"] for row in csv.DictReader(file)])
    assert videos[0] == videos[1]


def test_a_frozen_backbone_is_trained_on_features_and_stays_as_it_was(
    dataset: Path, tmp_path: Path, program: Program, encoded: Counter[tuple[str, int, int]]
) -> None:
    head = ["--method", "trx", "--trans_linear_out_dim", 8, "--temp_set", 2]
    flags = [*head, "--freeze_backbone", "-lr", 1, "-i", 40, "--val_iters", 20, 40]
    program(*tiny_run(dataset, tmp_path / "run", *flags))
    train_reads = {key: count for key, count in encoded.items() if key[0] == "train"}
    # One video more is read for TensorBoard's picture: each of the first episode's, at most.
    assert sum(train_reads.values()) <= len(train_reads) + 4
    trained = torch.load(tmp_path / "run" / FINAL, weights_only=True)["model"]
    program(*tiny_run(dataset, tmp_path / "untrained", *head, "-i", 0))
    initial = torch.load(tmp_path / "untrained" / FINAL, weights_only=True)["model"]
    changed = {name for name in trained if not torch.equal(trained[name], initial[name])}
    assert changed
    assert all(name.startswith("transformers.") for name in changed)


def test_a_frozen_backbone_without_a_head_to_train_is_one_sentence(
    dataset: Path, tmp_path: Path, program: Program
) -> None:
    flags = ["--method", "otam", "--freeze_backbone"]
    assert "nothing is left to train" in program.fails(*tiny_run(dataset, tmp_path / "run", *flags))


def test_a_frozen_run_goes_on_exactly(
    dataset: Path, tmp_path: Path, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = ["--method", "trx", "--trans_linear_out_dim", 8, "--temp_set", 2, "--freeze_backbone", "-i", 12, "-lr", 0.1]
    flags = [*head, "--val_iters", 6, "--save_freq", 5, "--tasks_per_batch", 4]
    program(*tiny_run(dataset, tmp_path / "whole", *flags))

    original: Callable[..., Any] = run.Learner.train_batch

    def stopping(self: run.Learner, *args: Any) -> Any:
        if self.progress.tasks_done == 8:
            raise KeyboardInterrupt
        return original(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(run.Learner, "train_batch", stopping)
        assert run.main([str(flag) for flag in tiny_run(dataset, tmp_path / "cut", *flags)]) == 130
    program("-c", tmp_path / "cut", "-r", "--num_workers", 0)
    ends = [torch.load(tmp_path / name / FINAL, weights_only=True)["model"] for name in ("whole", "cut")]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
    assert (tmp_path / "whole/log.csv").read_bytes() == (tmp_path / "cut/log.csv").read_bytes()


def test_a_folder_that_cannot_be_written_is_one_sentence(dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="give another folder"):
        FeatureStore(tmp_path / "file", {}, Split.open(dataset, "val"), (1,))


# Sealed and noisy episodes -------------------------------------------------------------------------------------------


def test_sealed_episodes_are_written_read_and_stated(dataset: Path, tmp_path: Path, program: Program) -> None:
    sealed = tmp_path / "episodes.json"
    flags = ["-i", 0, "--episodes", sealed, "--num_test_tasks", 5]
    program(*tiny_run(dataset, tmp_path / "first", *flags))
    program(*tiny_run(dataset, tmp_path / "second", *flags, "--seed", 7))
    results = [json.loads((tmp_path / name / "results.json").read_text()) for name in ("first", "second")]
    assert results[0]["episodes"] == results[1]["episodes"]
    assert results[1]["sealed_episodes"] == str(sealed)
    program(*tiny_run(dataset, tmp_path / "drawn", "-i", 0, "--num_test_tasks", 5, "--seed", 7))
    assert json.loads((tmp_path / "drawn/results.json").read_text())["episodes"] != results[0]["episodes"]


def test_sealed_episodes_of_other_sizes_are_refused(dataset: Path, tmp_path: Path, program: Program) -> None:
    flags = ["-i", 0, "--episodes", tmp_path / "episodes.json", "--num_test_tasks", 5]
    program(*tiny_run(dataset, tmp_path / "first", *flags))
    for change, named in (
        (["--shot_test", 2], "shot 1"),
        (["-qpct", 2], "queries_per_class 1"),
        (["--way", 3], "way 2"),
    ):
        sentence = program.fails(*tiny_run(dataset, tmp_path / "other", *flags, *change))
        assert named in sentence


def test_sealed_episodes_whose_videos_are_gone_name_them(own_dataset: Path, tmp_path: Path, program: Program) -> None:
    flags = ["-i", 0, "--episodes", tmp_path / "episodes.json", "--num_test_tasks", 40]
    program(*tiny_run(own_dataset, tmp_path / "first", *flags))
    (own_dataset / "test/golf/golf_001").rename(own_dataset / "test/golf/moved")
    assert "golf/golf_001" in program.fails(*tiny_run(own_dataset, tmp_path / "second", *flags))


def test_noisy_support_takes_that_many_videos_of_other_classes(dataset: Path) -> None:
    split = Split.open(dataset, "test")
    sizes = {"way": 3, "shot": 3, "queries": 2, "seq_len": 2, "transform": ClipTransform(16), "seed": 0}
    clean, noisy = VideoDataset(split, **sizes), VideoDataset(split, **sizes, noisy=2)
    for index in range(5):
        plain, task = clean[index], noisy[index]
        classes = task["batch_class_list"]
        wrong = task["real_support_labels"] != classes[task["support_labels"]]
        assert [int(wrong[task["support_labels"] == k].sum()) for k in range(3)] == [2, 2, 2]
        assert sorted(task["target_videos"]) == sorted(plain["target_videos"])
        assert not set(task["support_videos"]) & set(task["target_videos"])
        assert len(set(task["support_videos"])) == 9


def test_noisy_support_is_stated_and_needs_a_clean_shot(dataset: Path, tmp_path: Path, program: Program) -> None:
    flags = ["-i", 0, "--noisy_support", 1]
    program(*tiny_run(dataset, tmp_path / "run", *flags, "--shot_test", 2))
    assert json.loads((tmp_path / "run/results.json").read_text())["noisy_support"] == 1
    assert "--noisy_support" in program.fails(*tiny_run(dataset, tmp_path / "no", *flags))
