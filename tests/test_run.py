"""The program, called as a user calls it: what a run leaves, exact counting, tests, and every mistake in one sentence."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import resource
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import CLASSES, Program, first_videos, textured_frames, tiny_run, write_split
from PIL import Image
from run_folders import assert_same_answers, curves, results, rows, weights
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from video_clips import in_a_process

import run
from backbones import BACKBONES
from clips.frame_sources import FrameFolder
from clips.video_split import Split
from engine.settings import build_parser, parse_args
from methods import METHODS
from utils import BEST, FINAL, LATEST, LOG_COLUMNS, RunFolder, load_checkpoint

# Gradients of the tiny network are large enough that each of these steps changes what is printed.
LEARNS = ("-lr", 0.1)


def same_weights(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="session")
def finished(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of 4 tasks, validated after 2 and 4, that tests only read."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    with contextlib.redirect_stdout(io.StringIO()):
        assert run.main(tiny_run(dataset, folder, *LEARNS)) == 0
    return folder


@pytest.fixture
def own_run(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run that a test may resume."""
    return Path(shutil.copytree(finished, tmp_path / "own run"))


@pytest.fixture
def log_of(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], list[Any]]:
    """log_of('validate') replaces that method of Learner by one that first notes how many tasks are done."""

    def spy(method: str) -> list[Any]:
        original, noted = getattr(run.Learner, method), []

        def noting(self: run.Learner, *args: Any, **kwargs: Any) -> Any:
            noted.append((self.progress.tasks_done, *args))
            return original(self, *args, **kwargs)

        monkeypatch.setattr(run.Learner, method, noting)
        return noted

    return spy


def learner_of(argv: list[str]) -> run.Learner:
    """A learner that is ready to train, with its run folder started."""
    args = parse_args(argv, METHODS)
    folder = RunFolder(args.checkpoint_dir)
    learner = run.Learner(args, folder)
    folder.start(vars(args), argv)
    return learner


# What a run leaves ---------------------------------------------------------------------------------------------------


def test_the_run_folder_holds_what_is_promised(finished: Path) -> None:
    assert {path.name for path in finished.iterdir()} == {
        "args.json", "command.txt", "log.txt", "log.csv", "tensorboard", "predictions.csv", "results.json", "results.csv",
        "report.html",
        LATEST, BEST, FINAL,
    }  # fmt: skip
    assert "run.py --method tsn" in (finished / "command.txt").read_text()
    assert json.loads((finished / "args.json").read_text())["learning_rate"] == 0.1
    log = (finished / "log.txt").read_text()
    assert "validation after 2 tasks" in log
    assert "test: " in log


def test_log_csv_has_fixed_columns_and_a_row_for_every_event(finished: Path) -> None:
    found = rows(finished)
    assert list(found[0]) == list(LOG_COLUMNS)
    assert [(row["tasks"], row["split"]) for row in found] == [
        ("2", "train"),
        ("2", "val"),
        ("4", "train"),
        ("4", "val"),
    ]
    for row in found:
        filled = {name for name, value in row.items() if value}
        numbers = {"loss", "accuracy", "learning_rate"} if row["split"] == "train" else {"accuracy", "ci95"}
        assert filled == {"tasks", "split"} | numbers
        assert all(np.isfinite(float(row[name])) for name in numbers)


def test_results_say_all_that_a_comparison_needs(finished: Path, dataset: Path) -> None:
    found = json.loads((finished / "results.json").read_text())
    known = {
        "way": 2, "shot": 1, "queries_per_class": 1, "tasks": 3, "seed": 0, "split": "test", "method": "tsn",
        "backbone": "conv4", "checkpoint": BEST, "selected_on": "val", "precision": "fp32", "dataset": str(dataset),
        "untrained": False,
    }  # fmt: skip
    assert {name: found[name] for name in known} == known
    assert found["split_fingerprint"] == Split.open(dataset, "test").fingerprint
    assert 0 <= found["accuracy"] <= 100
    assert found["checkpoint_tasks"] in (2, 4)
    assert {"torch", "commit"} <= found["versions"].keys()
    right = [row["true"] == row["predicted"] for row in rows(finished, "predictions.csv")]
    assert len(right) == 3 * 2
    assert 100 * np.mean(right) == pytest.approx(found["accuracy"])


def test_results_are_json_for_every_reader_even_after_a_single_task(
    dataset: Path, tmp_path: Path, program: Program
) -> None:
    program(*tiny_run(dataset, tmp_path / "run", "-i", 0, "--num_test_tasks", 1))

    def refuse(constant: str) -> None:
        pytest.fail(f"{constant} is no JSON")

    json.loads((tmp_path / "run/results.json").read_text(), parse_constant=refuse)


def test_checkpoints_hold_plain_values_and_unwrapped_names(finished: Path) -> None:
    for name in (LATEST, BEST, FINAL):
        checkpoint = torch.load(finished / name, weights_only=True)
        assert checkpoint["args"]["method"] == "tsn"
        assert checkpoint["progress"]["tasks_done"] in (2, 4)
        assert all(name.startswith(("backbone.net.", "scale.")) for name in checkpoint["model"])
    assert same_weights(weights(finished), weights(finished, LATEST))


def test_tensorboard_shows_curves_and_a_picture(finished: Path) -> None:
    board = EventAccumulator(str(finished / "tensorboard")).Reload()
    curves = {tag: [event.step for event in board.Scalars(tag)] for tag in board.Tags()["scalars"]}
    every = ("train/loss", "train/accuracy", "train/learning_rate", "val/accuracy", "val/ci95",
             "seconds_per_task/data", "seconds_per_task/compute")  # fmt: skip
    assert {tag: curves.get(tag) for tag in every} == dict.fromkeys(every, [2, 4])
    assert {f"test/{name}, 2-way 1-shot, 3 tasks" for name in ("accuracy", "ci95")} <= curves.keys()
    losses = [float(row["loss"]) for row in rows(finished) if row["loss"]]
    assert [event.value for event in board.Scalars("train/loss")] == pytest.approx(losses)
    (picture,) = (event for tag in board.Tags()["images"] for event in board.Images(tag))
    assert (picture.height, picture.width) == (2 * 2 * 16, 3 * 16)  # two support and two target clips of three frames


def test_the_same_command_leaves_the_same_numbers(
    dataset: Path, finished: Path, tmp_path: Path, program: Program
) -> None:
    program(*tiny_run(dataset, tmp_path / "run", *LEARNS, "--num_workers", 2))
    assert same_weights(weights(tmp_path / "run"), weights(finished))
    for name in ("log.csv", "predictions.csv"):
        assert (tmp_path / "run" / name).read_bytes() == (finished / name).read_bytes()
    assert results(tmp_path / "run") == results(finished)
    program(*tiny_run(dataset, tmp_path / "seed", *LEARNS, "--seed", 1))
    assert not same_weights(weights(tmp_path / "seed"), weights(finished))
    assert results(tmp_path / "seed")["episodes"] != results(finished)["episodes"]


# Exact counting ------------------------------------------------------------------------------------------------------


def test_steps_validations_saves_and_rows_are_counted_exactly(
    dataset: Path, tmp_path: Path, program: Program, log_of: Callable[..., list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    trained, validations, saves = log_of("train_call"), log_of("validate"), log_of("save")
    steps, step = [], torch.optim.SGD.step

    def counted(self: torch.optim.SGD, *args: Any) -> Any:
        steps.append(len(trained))
        return step(self, *args)

    monkeypatch.setattr(torch.optim.SGD, "step", counted)
    flags = "-i 8 --tasks_per_batch 3 --val_iters 3 8 9 --save_freq 2 --print_freq 5".split()  # noqa: SIM905
    program(*tiny_run(dataset, tmp_path / "run", *flags))
    assert [done for done, *_ in trained] == [0, 0, 0, 3, 3, 3, 6, 6]
    assert [call["index"] for _, call, _ in trained] == [[index] for index in range(8)]
    assert steps == [3, 6, 8]
    assert validations == [(3,), (8,)]
    assert [done for done, name in saves if name == LATEST] == [3, 6, 8, 8]
    assert [done for done, name in saves if name == FINAL] == [8]
    assert (3, BEST) in saves
    assert [(row["tasks"], row["split"]) for row in rows(tmp_path / "run")] == [
        ("3", "val"), ("5", "train"), ("8", "train"), ("8", "val")
    ]  # fmt: skip


def test_every_optimiser_step_is_one_mean_over_its_tasks(dataset: Path, tmp_path: Path, program: Program) -> None:
    """Five tasks in batches of three: the second batch is the mean of two."""
    argv = partial(tiny_run, dataset)
    flags = ["-i", 5, "--tasks_per_batch", 3, *LEARNS, "--momentum", 0.5, "--val_iters", 9]
    program(*argv(tmp_path / "run", *flags))
    learner = learner_of(argv(tmp_path / "by hand", *flags))
    model = learner.model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.5)
    for batch in ([0, 1, 2], [3, 4]):
        losses = []
        for index in batch:
            task = learner.calls.prepare(learner.datasets["train"][index])
            logits = model(task["support_set"], task["support_labels"], task["target_set"])["logits"]
            losses.append(F.cross_entropy(logits, task["target_labels"]))
        optimizer.zero_grad()
        torch.stack(losses).mean().backward()
        optimizer.step()
    learner.run.close()
    trained = weights(tmp_path / "run")
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(trained[name], tensor, rtol=1e-4, atol=1e-6)


def test_the_rate_falls_to_a_tenth_after_each_milestone(
    dataset: Path, tmp_path: Path, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates, step = [], torch.optim.SGD.step

    def noting(self: torch.optim.SGD, *args: Any) -> Any:
        rates.append(self.param_groups[0]["lr"])
        return step(self, *args)

    monkeypatch.setattr(torch.optim.SGD, "step", noting)
    flags = ["-i", 6, "--tasks_per_batch", 1, "-lr", 0.1, "--sch", 4, 2, "--val_iters", 9, "--print_freq", 1]
    program(*tiny_run(dataset, tmp_path / "run", *flags))
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])
    assert [float(row["learning_rate"]) for row in rows(tmp_path / "run")] == pytest.approx(rates)


def test_loss_is_the_mean_or_the_sum_over_queries(dataset: Path, tmp_path: Path, program: Program) -> None:
    queries, flags = 2 * 3, ["-qpc", 3, "-i", 2, "--val_iters", 9]
    program(*tiny_run(dataset, tmp_path / "mean", *flags, "-lr", 0.06))
    program(*tiny_run(dataset, tmp_path / "sum", *flags, "-lr", 0.06 / queries, "--loss_reduction", "sum"))
    mean, total = (float(rows(tmp_path / name)[0]["loss"]) for name in ("mean", "sum"))
    assert total == pytest.approx(queries * mean, rel=1e-5)
    for name, tensor in weights(tmp_path / "sum").items():
        torch.testing.assert_close(tensor, weights(tmp_path / "mean")[name], rtol=1e-4, atol=1e-6)


def test_training_stops_when_validation_has_lost_patience(
    dataset: Path, tmp_path: Path, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    accuracies = iter([50.0, 60.0, 55.0, 60.0, 99.0])
    monkeypatch.setattr(run, "accuracy_interval", lambda _: (next(accuracies), 1.0))
    out = program(
        *tiny_run(
            dataset,
            tmp_path / "run",
            *["--tasks_per_batch", "1", "-i", "5", "--val_iters", "1", "2", "3", "4", "5", "--patience", "2"],
        )
    )
    assert "no new best in 2 validations: stopped at 4 tasks" in out
    assert load_checkpoint(tmp_path / "run" / FINAL)["progress"]["tasks_done"] == 4
    assert results(tmp_path / "run")["checkpoint_tasks"] == 2


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_task(
    dataset: Path, tmp_path: Path, program: Program
) -> None:
    sentence = program.fails(*tiny_run(dataset, tmp_path / "run", "-lr", 1e38, "-i", 9, "--val_iters", 99))
    assert "the loss became nan in training task 2 (classes " in sentence


def test_a_profile_of_one_step_is_left_and_told(dataset: Path, tmp_path: Path, program: Program) -> None:
    out = program(*tiny_run(dataset, tmp_path / "run", "--profile", "-i", 6))
    trace = json.loads((tmp_path / "run/profile/step.pt.trace.json").read_text())
    names = {event.get("name") for event in trace["traceEvents"]}
    assert {"aten::mkldnn_convolution", "Optimizer.step#SGD.step"} <= names
    assert out.count("profile of one step in") == 1
    assert "convolution_backward" in out


def test_several_tasks_in_a_call_are_several_tasks(dataset: Path, tmp_path: Path, program: Program) -> None:
    """With frozen batch norms they do not know of each other."""
    flags = [*LEARNS, "--bn", "frozen", "-i", 8, "--tasks_per_batch", 4, "--print_freq", 1]
    program(*tiny_run(dataset, tmp_path / "single", *flags))
    program(*tiny_run(dataset, tmp_path / "together", *flags, "--tasks_per_call", 2))
    torch.testing.assert_close(weights(tmp_path / "together"), weights(tmp_path / "single"), rtol=1e-4, atol=1e-6)
    losses = [[float(row["loss"] or 0) for row in rows(tmp_path / name)] for name in ("single", "together")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_zero_tasks_test_the_model_as_it_is_initialised(dataset: Path, tmp_path: Path, program: Program) -> None:
    out = program(*tiny_run(dataset, tmp_path / "run", "-i", 0))
    assert "UNTRAINED" in out
    assert (
        "close to chance (50 %), as one expects after few tasks: train longer, or start from pretrained weights" in out
    )
    found = results(tmp_path / "run")
    assert (found["checkpoint"], found["checkpoint_tasks"], found["selected_on"]) == (FINAL, 0, "nothing")
    assert found["untrained"] is True


@pytest.mark.parametrize(("method", "untrained"), [("tsn", False), ("otam", False), ("trx", True), ("pal", True)])
def test_untrained_weights_of_a_head_are_marked_under_a_trained_backbone(
    method: str, untrained: bool, dataset: Path, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A factor on all logits is no such weight: it changes no answer."""
    argv = [flag for flag in tiny_run(dataset, tmp_path / "run", "-i", 0) if flag != "--no_pretrained"]
    assert run.main([*argv, "-pt", str(finished / FINAL), "--method", method]) == 0
    assert results(tmp_path / "run")["untrained"] is untrained
    assert ("UNTRAINED" in capsys.readouterr().out) is untrained


# Which videos are seen when ------------------------------------------------------------------------------------------


@pytest.fixture
def splits_read(monkeypatch: pytest.MonkeyPatch) -> dict[str, set[str]]:
    """{phase: names of the splits whose frames were read in it}."""
    seen: dict[str, set[str]] = {"train": set(), "validate": set(), "test": set()}
    phase = ["train"]

    def within(name: str) -> None:
        original = getattr(run.Learner, name)

        def method(self: run.Learner, *args: Any) -> Any:
            before, phase[0] = phase[0], name
            found = original(self, *args)
            phase[0] = before
            return found

        monkeypatch.setattr(run.Learner, name, method)

    read = FrameFolder.read

    def noting(self: FrameFolder, indices: Any) -> np.ndarray:
        seen[phase[0]].add(Path(self.path).parts[-3])
        return read(self, indices)

    within("validate")
    within("test")
    monkeypatch.setattr(FrameFolder, "read", noting)
    return seen


@pytest.mark.parametrize("how", [[], ["--direct"]])
def test_frames_of_the_test_split_are_read_by_the_test_alone(
    how: list[str], dataset: Path, tmp_path: Path, program: Program, splits_read: dict[str, set[str]]
) -> None:
    program(*tiny_run(dataset, tmp_path / "run", *how))
    assert splits_read == {"train": {"train"}, "validate": {"val"}, "test": {"test"}}


def test_validating_on_test_is_stamped_on_every_result(
    dataset: Path, tmp_path: Path, program: Program, splits_read: dict[str, set[str]]
) -> None:
    out = program(*tiny_run(dataset, tmp_path / "run", "--val_on_test"))
    assert splits_read["validate"] == {"test"}
    assert "on test  (2 tasks, chosen on test; on the TEST split: not comparable)" in out
    assert "CHOSEN ON THE TEST SPLIT" in out
    assert {row["split"] for row in rows(tmp_path / "run")} == {"train", "test"}
    assert results(tmp_path / "run")["selected_on"] == "test"
    out = program("-c", tmp_path / "later", "--test_only", "-m", tmp_path / "run" / FINAL, "--num_workers", 0)
    assert "CHOSEN ON THE TEST SPLIT" in out
    assert results(tmp_path / "later")["selected_on"] == "test"


def test_every_place_of_a_number_says_what_it_is(dataset: Path, tmp_path: Path, program: Program) -> None:
    marked = ["1 noisy shot", "chosen on test", "sealed episodes", "bf16"]
    flags = ["--shot_test", 2, "--noisy_support", 1, "--val_on_test", "--precision", "bf16"]
    out = program(*tiny_run(dataset, tmp_path / "run", *flags, "--episodes", tmp_path / "sealed.json"))
    validations = re.findall(r"validation after . tasks: .*\((.*); on the TEST split", out)
    assert validations == ["2 tasks, 1 noisy shot, chosen on test, bf16"] * 2
    (tested,) = re.findall(r"test: .*\((.*)\)", out)
    assert tested.startswith("2-way 2-shot, 3 tasks, tsn on conv4, ")
    assert tested.endswith(", ".join(marked))
    assert results(tmp_path / "run")["marks"] == marked
    assert rows(tmp_path / "run", "results.csv")[0]["marks"] == "; ".join(marked)
    tags = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload().Tags()["scalars"]
    assert "test/accuracy, 1 noisy shot, chosen on test, bf16" in tags  # of validations
    assert f"test/accuracy, 2-way 2-shot, 3 tasks, {', '.join(marked)}" in tags
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert all(f"<span>{mark}</span>" in page for mark in marked)


def test_each_size_of_a_test_has_its_own_curve(dataset: Path, tmp_path: Path, program: Program) -> None:
    program(*tiny_run(dataset, tmp_path / "run", "-i", 0, "--shot_test", 2, 1))
    board = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    for size in results(tmp_path / "run")["sizes"]:
        (point,) = board.Scalars(f"test/accuracy, 2-way {size['shot']}-shot, 3 tasks, untrained")
        assert (point.step, point.value) == (0, pytest.approx(size["accuracy"]))


def test_two_methods_see_identical_episodes(
    dataset: Path, tmp_path: Path, program: Program, log_of: Callable[..., list[Any]]
) -> None:
    seen = {}
    trained = log_of("train_call")
    for method in ("tsn", "trx"):
        trained.clear()
        program(*tiny_run(dataset, tmp_path / method, "--method", method, "--trans_linear_out_dim", 8))
        asked = [(row["task"], row["video"], row["true"]) for row in rows(tmp_path / method, "predictions.csv")]
        tasks = [
            {k: v.tolist() if isinstance(v, torch.Tensor) else v for k, v in call.items()} for _, call, _ in trained
        ]
        seen[method] = (tasks, asked, results(tmp_path / method)["episodes"])
    assert len(seen["tsn"][0]) == 4
    assert seen["tsn"] == seen["trx"]


def test_stored_features_and_frames_give_the_same_numbers(
    dataset: Path, finished: Path, tmp_path: Path, program: Program
) -> None:
    program(*tiny_run(dataset, tmp_path / "run", *LEARNS, "--direct"))
    assert_same_answers(tmp_path / "run", finished)
    trained, expected = (
        [row for row in rows(folder) if row["split"] == "train"] for folder in (tmp_path / "run", finished)
    )
    assert trained == expected


@pytest.mark.parametrize(("flip", "mirrored"), [("auto", False), ("on", True), ("off", False)])
def test_clips_of_direction_classes_are_not_mirrored_unless_asked(
    flip: str, mirrored: bool, own_dataset: Path, tmp_path: Path, program: Program
) -> None:
    (own_dataset / "train/jump").rename(own_dataset / "train/Moving [it] from left to right")
    out = program(*tiny_run(own_dataset, tmp_path / "run", "--flip", flip, "-i", 1))
    says = "not mirrored: class 'Moving [it] from left to right' names a direction" in out
    assert says == (flip == "auto")
    learner = learner_of(tiny_run(own_dataset, tmp_path / "again", "--flip", flip))
    assert learner.datasets["train"].transform.flip == mirrored
    assert not learner.datasets["val"].transform.train


def test_clips_of_other_classes_are_mirrored(dataset: Path, tmp_path: Path) -> None:
    assert learner_of(tiny_run(dataset, tmp_path / "run")).datasets["train"].transform.flip
    assert not learner_of(tiny_run(dataset, tmp_path / "off", "--flip", "off")).datasets["train"].transform.flip


def test_a_video_that_is_left_out_is_named_in_the_log(own_dataset: Path, tmp_path: Path, program: Program) -> None:
    for video in first_videos(own_dataset, "train") + first_videos(own_dataset, "test"):
        (video / "1.jpg").write_bytes(b"")
    flags = ["--on_bad_video", "skip", "--way", 6, "--shot", 5, "-qpct", 2, "-i", 2, "--val_iters", 9]
    for how in ([], ["--direct"]):
        folder = tmp_path / f"run{how}"
        out = program(*tiny_run(own_dataset, folder, *flags, *how))
        for split in ("train", "test"):
            assert f"left out: {own_dataset}/{split}/" in out
        missing = out.count(f"left out: {own_dataset}/test/")
        assert results(folder)["left_out"] == missing > 1
        assert f"{missing} videos left out" in results(folder)["marks"]
    assert_same_answers(tmp_path / "run[]", tmp_path / "run['--direct']")


# Tests of a checkpoint -----------------------------------------------------------------------------------------------


def test_a_later_test_repeats_the_first_and_keeps_its_results(finished: Path, own_run: Path, program: Program) -> None:
    first = (own_run / "results.json").read_bytes()
    log = (own_run / "log.csv").read_bytes()
    settings_before = (own_run / "args.json").read_bytes()
    out = program("-c", own_run, "--test_only", "--num_workers", 0)
    assert "kept the earlier results.json as results_1.json" in out
    assert (own_run / "results_1.json").read_bytes() == first
    assert results(own_run) == results(finished)
    assert (own_run / "log.csv").read_bytes() == log
    assert (own_run / "args.json").read_bytes() == settings_before
    program("-c", own_run, "--test_only", "--num_workers", 0, "--shot_test", 3, "-m", LATEST)
    assert (own_run / "results_1.json").read_bytes() == first
    assert (own_run / "results_2.json").exists()
    found = results(own_run)
    assert (found["shot"], found["way"], found["checkpoint"]) == (3, 2, LATEST)


def test_a_checkpoint_is_tested_in_another_folder_with_its_own_settings(
    finished: Path, tmp_path: Path, program: Program
) -> None:
    program("-c", tmp_path / "test", "--test_only", "-m", finished / BEST, "--num_workers", 0)
    assert results(tmp_path / "test") == results(finished)
    assert not list((tmp_path / "test").glob("*.pt"))
    assert "holds a test without training" in program.fails("-c", tmp_path / "test", "-r")
    program("-c", tmp_path / "test", "--test_only", "-m", finished / BEST, "--num_workers", 0)
    assert (tmp_path / "test/results_1.json").exists()


def test_several_ways_and_shots_are_tested_at_once(own_run: Path, program: Program) -> None:
    program("-c", own_run, "--test_only", "--num_workers", 0, "--way_test", 3, 5, "--shot_test", 1, 2)
    sizes = results(own_run)["sizes"]
    assert [(size["way"], size["shot"]) for size in sizes] == [(3, 1), (3, 2), (5, 1), (5, 2)]
    program("-c", own_run, "--test_only", "--num_workers", 0, "--way_test", 5, "--shot_test", 2)
    alone = results(own_run)
    assert {name: alone[name] for name in sizes[3]} == sizes[3]


# Going on ------------------------------------------------------------------------------------------------------------


def test_going_on_with_a_finished_run_says_so_and_changes_nothing(own_run: Path, program: Program) -> None:
    names = (LATEST, BEST, FINAL, "log.csv", "results.json")
    before = {name: (own_run / name).read_bytes() for name in names}
    out = program("-c", own_run, "-r", "--num_workers", 0)
    assert "this run is finished (4 tasks): raise -i to train on, or use --test_only" in out
    assert {name: (own_run / name).read_bytes() for name in names} == before
    assert not list(own_run.glob("results_*"))


def test_more_tasks_than_at_first_end_as_if_they_had_been_asked_for_at_once(
    dataset: Path, own_run: Path, tmp_path: Path, program: Program
) -> None:
    program("-c", own_run, "-r", "-i", 8, "--val_iters", 2, 4, 6, "--num_workers", 0)
    program(*tiny_run(dataset, tmp_path / "at once", *LEARNS, "-i", 8, "--val_iters", 2, 4, 6))
    assert same_weights(weights(own_run), weights(tmp_path / "at once"))
    assert (own_run / "log.csv").read_bytes() == (tmp_path / "at once/log.csv").read_bytes()
    assert results(own_run) == results(tmp_path / "at once")
    assert (own_run / "results_1.json").exists()


@pytest.mark.parametrize(
    ("flags", "name", "values"),
    [
        (["-lr", 0.5], "learning_rate", "was 0.1 .* is 0.5"),
        (["--method", "trx"], "method", "was tsn .* is trx"),
        (["--seed", 3], "seed", "was 0 .* is 3"),
        (["--way", 3], "way", "was 2 .* is 3"),
        (["--val_on_test"], "val_on_test", "was False .* is True"),
    ],
)
def test_going_on_with_another_setting_is_refused(
    flags: list[Any], name: str, values: str, own_run: Path, program: Program
) -> None:
    before = {path.name: path.read_bytes() for path in own_run.iterdir() if path.is_file()}
    assert_says(
        program.fails("-c", own_run, "-r", "-i", 9, *flags), f"--{name} {values}.*start a new run with another -c"
    )
    assert {path.name: path.read_bytes() for path in own_run.iterdir() if path.is_file()} == before


def test_a_run_that_a_bad_video_stopped_goes_on_without_it(own_dataset: Path, tmp_path: Path, program: Program) -> None:
    for video in first_videos(own_dataset, "val"):
        (video / "1.jpg").write_bytes(b"")
    argv = tiny_run(own_dataset, tmp_path / "run", "--way_test", 6, "--shot_test", 6)
    assert_says(program.fails(*argv), "is empty: expected .* --on_bad_video skip")
    out = program("-c", tmp_path / "run", "-r", "--num_workers", 0, "--on_bad_video", "skip")
    assert "validation after 4 tasks" in out


# The command line ----------------------------------------------------------------------------------------------------


def test_every_flag_has_its_help() -> None:
    parser = build_parser(METHODS)
    flags = [action for group in parser._action_groups for action in group._group_actions]
    assert len(flags) > 40
    assert [action.dest for action in flags if len(action.help or "") < 5] == []
    assert all(group.title for group in parser._action_groups if group._group_actions)


def test_help_begins_with_commands_and_shows_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        run.main(["--help"])
    out = " ".join(capsys.readouterr().out.split())
    assert stop.value.code == 0
    assert "python run.py -c" in out
    assert "(default: 250020)" in out
    assert "--temp_set" in out


def test_the_list_names_every_method_and_backbone(program: Program) -> None:
    out = program("--list")
    names = [line.split()[0] for line in out.splitlines() if line.startswith("  ")]
    assert names == [*METHODS, *BACKBONES]
    assert re.search(r"trx +23\.60 M", out)
    assert re.search(r"conv4 +8 x +84 px +0\.11 M", out)


@pytest.mark.parametrize("flag", [["--learning", 0.1], ["--num_w", 2], ["-qp", 2], ["-l", 0.1], ["--sho=1"]])
def test_abbreviated_flags_are_refused(flag: list[Any], dataset: Path, tmp_path: Path, program: Program) -> None:
    assert_says(program.fails(*tiny_run(dataset, tmp_path / "run", *flag)), "unrecognized arguments.*--help")
    assert not (tmp_path / "run").exists()


def test_ctrl_c_says_how_to_go_on(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(self: run.Learner) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run.Learner, "train", stop)
    assert run.main(tiny_run(dataset, tmp_path / "run")) == 130
    assert capsys.readouterr().err == "stopped; resume from the last checkpoint with -r\n"


def test_a_head_of_ones_own_is_trained_and_gone_on_with(dataset: Path, tmp_path: Path, program: Program) -> None:
    (tmp_path / "own.py").write_text(
        "import torch\n"
        "from model import CNN_FSHead\n\n\n"
        "class Own(CNN_FSHead):\n"
        "    @staticmethod\n"
        "    def add_arguments(group):\n"
        "        group.add_argument('--own_scale', type=float, default=1.0, help='factor')\n\n"
        "    def classify(self, support, labels, target):\n"
        "        return self.args.own_scale * target.mean(2) @ support.mean(2).mT[..., :2]\n"
    )
    method = f"{tmp_path}/own.py:Own"
    program(*tiny_run(dataset, tmp_path / "run", "--method", method, "--own_scale", 0.5, "-i", 2))
    program("-c", tmp_path / "run", "-r", "-i", 4, "--num_workers", 0, "--method", method)
    program("-c", tmp_path / "run", "--test_only", "--num_workers", 0, "--method", method)
    assert results(tmp_path / "run")["method"] == method
    assert load_checkpoint(tmp_path / "run" / FINAL)["args"]["own_scale"] == 0.5


# Mistakes: one sentence each, and nothing in the way of the next try --------------------------------------------------


def assert_says(sentence: str, pattern: str) -> None:
    assert re.search(pattern, sentence), sentence


@pytest.mark.parametrize(
    ("flags", "pattern"),
    [
        (["--method", "trxx"], "unknown method 'trxx': expected one of .*did you mean 'trx'"),
        (["--backbone", "resnet81"], "unknown backbone 'resnet81': expected one of .*did you mean 'resnet18'"),
        (["--method", "nowhere.py:Own"], "no file nowhere.py"),
        (["--method", f"{__file__}:assert_says"], "is no subclass of CNN_FSHead"),
        (["--method", f"{__file__}:Owm"], "unknown method in .*'Owm'"),
        (["--opt", "sdg"], "--opt.*invalid choice: 'sdg'"),
        (["--way", "two"], "--way.*'two'"),
        (["--way", 0], "--way is 0: expected 2 or more"),
        (["-lr", 0], "--learning_rate is 0.0: expected more than 0"),
        (["-lr", "nan"], "--learning_rate is nan: expected more than 0"),
        (["--img_size", 8], "--img_size is 8: expected 16"),
        (["--save_freq", -1], "--save_freq is -1: expected 0 or more"),
        (["--num_gpus", 99], "--num_gpus is 99, but this machine has"),
        (["-pt", "weights.pth"], "--no_pretrained and --pretrained_backbone contradict each other"),
        (["--momentum", 0.9, "--opt", "adam"], "--momentum has no effect with --opt adam"),
        (["-r", "--test_only"], "give one of them"),
        (["--test_only"], "holds no checkpoint to test"),
        (["--test_only", "-m", "absent.pt"], "no checkpoint absent.pt"),
        (["-m", "absent.pt"], "no checkpoint absent.pt"),
        (["-m", BEST, "--val_iters", 99], f"no checkpoint {BEST}"),
        (["-r"], "nothing to resume.*leave out -r"),
        (["--method", "trx", "--temp_set", 4], "--temp_set 4 needs tuples of 1 to 3 steps"),
        (["--way", 8], "train has 7 classes, a 8-way episode needs 8"),
        (["--way_test", 7], "val has 6 classes, a 7-way episode needs 7"),
        (["--shot", 8], r"class '.*' in .*train has 8 videos, an episode needs 9 \(8 support \+ 1 query\)"),
        (["--shot_test", 5, "-qpct", 4], r"class '.*' in .*val has 8 videos, an episode needs 9"),
        (["--val_iters", 99, "--shot_test", 8], r"class '.*' in .*test has 8 videos, an episode needs 9"),
        (["--dataset", "nowhere"], "no data set at nowhere"),
    ],
    ids=lambda value: " ".join(map(str, value)).replace(__file__, "file")[-40:] if isinstance(value, list) else "",
)
def test_wrong_flags_are_one_sentence_before_anything_is_written(
    flags: list[Any], pattern: str, dataset: Path, tmp_path: Path, program: Program
) -> None:
    assert_says(program.fails(*tiny_run(dataset, tmp_path / "run", *flags)), pattern)
    assert not (tmp_path / "run").exists()


def test_a_run_without_a_folder_asks_for_one(dataset: Path, program: Program) -> None:
    assert "give -c FOLDER" in program.fails("--dataset", dataset)


@pytest.mark.parametrize("split", list(CLASSES))
def test_what_is_missing_in_a_data_set_is_said_before_anything_is_written(
    split: str, own_dataset: Path, tmp_path: Path, program: Program
) -> None:
    folder, label = tmp_path / "run", sorted(CLASSES[split])[0]
    argv = tiny_run(own_dataset, folder)

    def says(pattern: str) -> None:
        assert_says(program.fails(*argv), pattern)
        assert not folder.exists()

    for video in sorted((own_dataset / split / label).iterdir())[1:]:
        shutil.rmtree(video)
    says(rf"class '.*' in .*{split} has 1 videos, an episode needs 2 \(1 support \+ 1 query\)")
    shutil.rmtree(min((own_dataset / split / label).iterdir()))
    says(f"class '.*' in .*{split} has no video: expected .*remove the empty folder")
    shutil.rmtree(own_dataset / split)
    (own_dataset / split).mkdir()
    says(f"{split} holds no class folder: expected")
    (own_dataset / split).rmdir()
    says(f"has no {split}/ folder: expected")
    write_split(own_dataset / split, ["a", "b"], videos=2)
    program(*argv)


def grey(path: Path) -> None:
    Image.open(path).convert("L").save(path)


def cmyk(path: Path) -> None:
    Image.open(path).convert("CMYK").save(path)


def rgba(path: Path) -> None:
    Image.open(path).convert("RGBA").save(path, "PNG")


def test_images_of_other_kinds_are_converted(own_dataset: Path, tmp_path: Path, program: Program) -> None:
    for number, change in enumerate([grey, cmyk, rgba], start=1):
        for frame in own_dataset.glob(f"*/*/*/{2 * number}.jpg"):
            change(frame)
    program(*tiny_run(own_dataset, tmp_path / "run", "-i", 1, "--seq_len", 6))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-400])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def sixteen_bits(path: Path) -> None:
    Image.fromarray(textured_frames(0, 1)[0, ..., 0].astype(np.uint16) * 200).save(path, "PNG")


def other_size(path: Path) -> None:
    Image.new("RGB", (20, 20)).save(path)


def test_a_bad_frame_is_named_and_the_run_goes_on_once_it_is_mended(
    own_dataset: Path, dataset: Path, tmp_path: Path, program: Program
) -> None:
    damages = {
        truncate: r"/6\.jpg is damaged",
        empty: r"/6\.jpg is empty",
        sixteen_bits: r"/6\.jpg holds .* samples: expected 8 bits",
        other_size: r"/6\.jpg is 20x20 pixels where .* 48x40",
    }
    for number, (damage, pattern) in enumerate(damages.items()):
        folder, frames = tmp_path / str(number), list((own_dataset / "train").glob("*/*/6.jpg"))
        for frame in frames:
            damage(frame)
        assert_says(program.fails(*tiny_run(own_dataset, folder, "--num_workers", number % 2)), pattern)
        for frame in frames:
            shutil.copy(dataset / frame.relative_to(own_dataset), frame)
        program("-c", folder, "-r", "--num_workers", 0)
        assert len(rows(folder)) == 4


def test_a_test_adds_to_the_curves_of_its_run(own_run: Path, program: Program) -> None:
    before = curves(own_run)
    assert len(before["train/loss"]) == 2
    program("-c", own_run, "--test_only", "--shot_test", 3, "--num_workers", 0)
    after = curves(own_run)
    assert {tag: after[tag][: len(values)] for tag, values in before.items()} == before
    assert after.keys() - before.keys() == {f"test/{name}, 2-way 3-shot, 3 tasks" for name in ("accuracy", "ci95")}
    program("-c", own_run, "--test_only", "--num_workers", 0)
    again = "test/accuracy, 2-way 1-shot, 3 tasks"
    assert curves(own_run)[again] == before[again] * 2


def test_a_run_is_not_started_over(own_run: Path, dataset: Path, program: Program) -> None:
    before = (own_run / FINAL).read_bytes()
    assert_says(program.fails(*tiny_run(dataset, own_run)), "already holds a run; add -r .*or give another -c")
    assert (own_run / FINAL).read_bytes() == before


def test_a_checkpoint_of_another_method_backbone_or_library_is_refused(
    dataset: Path, own_run: Path, tmp_path: Path, program: Program
) -> None:
    torch.save({"conv1.weight": torch.zeros(3)}, tmp_path / "resnet.pth")
    program(*tiny_run(dataset, tmp_path / "trx", "--method", "trx", "--trans_linear_out_dim", 8, "-i", 1))
    asked = ["-c", tmp_path / "test", "--test_only", "-m"]
    checkpoint = tmp_path / "trx" / FINAL
    for flags, pattern in [
        ([tmp_path / "resnet.pth"], "not a checkpoint of this library"),
        ([checkpoint, "--method", "tsn"], "was trained with --method trx, not tsn"),
        ([checkpoint, "--backbone", "resnet18"], "was trained with --backbone conv4, not resnet18"),
        ([checkpoint, "--seq_len", 4], "was trained with --seq_len 3, not 4"),
    ]:
        assert_says(program.fails(*asked, *flags), pattern)
        assert not (tmp_path / "test").exists()
    for stranger, pattern in [(checkpoint, "does not fit the model"), (tmp_path / "resnet.pth", "not a checkpoint of")]:
        shutil.copy(stranger, own_run / LATEST)
        assert_says(program.fails("-c", own_run, "-r", "-i", 8), pattern)


def test_a_truncated_or_malicious_checkpoint_is_refused(own_run: Path, tmp_path: Path, program: Program) -> None:
    class Malicious:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "victim"),)

    path = own_run / LATEST
    path.write_bytes(path.read_bytes()[:-5000])
    for argv in (["-c", own_run, "-r", "-i", 8], ["-c", own_run, "--test_only", "-m", LATEST]):
        assert_says(program.fails(*argv), f"{LATEST} is truncated or no PyTorch file")
    torch.save({"format": "few-shot-action-recognition/1", "args": Malicious()}, path)
    for argv in (["-c", own_run, "-r", "-i", 8], ["-c", own_run, "--test_only", "-m", LATEST]):
        assert_says(program.fails(*argv), f"{LATEST} was refused")
    assert not (tmp_path / "victim").exists()


def test_a_checkpoint_of_a_diverged_training_leaves_no_run_folder(
    own_run: Path, tmp_path: Path, program: Program
) -> None:
    content = torch.load(own_run / FINAL, weights_only=True)
    name = next(iter(content["model"]))
    content["model"][name][0] = float("nan")
    torch.save(content, tmp_path / "nan.pt")
    test = ["-c", tmp_path / "test", "--test_only", "-m", tmp_path / "nan.pt", "--num_workers", 0]
    assert_says(program.fails(*test), rf"nan.pt holds NaN or infinite weights \({name}\)")
    assert not (tmp_path / "test").exists()


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '"x"'])
def test_a_damaged_args_json_is_one_sentence(content: str, own_run: Path, program: Program) -> None:
    (own_run / "args.json").write_text(content)
    assert_says(program.fails("-c", own_run, "-r"), "args.json")


# A full disk ---------------------------------------------------------------------------------------------------------


def on_a_disk_with_room_for(size: int, argv: list[Any], err: Path) -> int:
    """Runs the program where no file can grow beyond `size` bytes; what it prints on stderr goes to `err`."""

    def work() -> int:
        printed = io.StringIO()
        with contextlib.redirect_stderr(printed), contextlib.redirect_stdout(io.StringIO()):
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
            code = run.main([str(flag) for flag in argv])
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        err.write_text(printed.getvalue())
        return code

    return in_a_process(work)


@pytest.mark.parametrize("room", [300, 20_000, 250_000])
def test_a_full_disk_is_one_sentence_and_the_earlier_checkpoint_survives(
    room: int, own_run: Path, tmp_path: Path, program: Program
) -> None:
    """Room for no more log, for no checkpoint, and for half of one."""
    before = {name: (own_run / name).read_bytes() for name in (LATEST, BEST, FINAL, "results.json")}
    code = on_a_disk_with_room_for(room, ["-c", own_run, "-r", "-i", 8, "--num_workers", 0], tmp_path / "err")
    err = (tmp_path / "err").read_text()
    assert (code, err.count("\n"), err[:7]) == (2, 1, "error: "), err
    assert "File too large" in err
    assert {name: (own_run / name).read_bytes() for name in before} == before
    assert not list(own_run.rglob("*.tmp"))
    program("-c", own_run, "-r", "-i", 8, "--num_workers", 0)


@pytest.mark.parametrize("room", [0, 300, 250_000])
def test_a_disk_that_is_full_from_the_start_is_one_sentence(room: int, dataset: Path, tmp_path: Path) -> None:
    code = on_a_disk_with_room_for(room, tiny_run(dataset, tmp_path / "run"), tmp_path / "err")
    err = (tmp_path / "err").read_text()
    assert (code, err.count("\n"), err[:7]) == (2, 1, "error: "), err
    assert not list(tmp_path.rglob("*.tmp"))
