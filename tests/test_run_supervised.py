"""The supervised program, called as a user calls it: what a run leaves, steps and views by hand, and every mistake."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import json
import math
import re
import shutil
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from conftest import CLASSES, LABELLED_VIDEOS, LABELS, Program, tiny_run, write_video
from PIL import Image
from run_folders import curves, results, rows, weights
from supervised_runs import listed_run, same_weights, supervised_run
from torch import Tensor, nn

import run
import run_supervised
from backbones import build_backbone
from backbones.torchvision_import import torchvision
from clips.clip_dataset import epoch_order
from clips.frame_sources import FrameFolder
from clips.labelled_videos import mirrors_by_flag
from clips.transforms import mixup, resize_short_side
from data_prep import annotate, pack_lmdb
from engine import supervised_settings, training
from results.view_scores import ViewScores
from run_supervised import COLUMNS, Trainer, learning_rate_at
from utils import BEST, FINAL, LATEST, RunFolder, load_checkpoint, seed_everything

PROTOCOL = "3 frames by tsm sampling, 1 fixed clip(s) x 1 crop(s) of 16 px from a shorter side of 18 px"


@pytest.fixture
def program(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Program:
    monkeypatch.setattr("sys.argv", ["run_supervised.py"])
    return Program(capsys, run_supervised.main)


@pytest.fixture
def few_shot(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Program:
    monkeypatch.setattr("sys.argv", ["run.py"])
    return Program(capsys, run.main)


@pytest.fixture(scope="session")
def finished(labelled: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of 2 epochs that tests only read."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    with contextlib.redirect_stdout(io.StringIO()):
        assert run_supervised.main(supervised_run(labelled, folder)) == 0
    return folder


@pytest.fixture
def own_run(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run that a test may resume."""
    return Path(shutil.copytree(finished, tmp_path / "own run"))


def trainer_of(argv: list[str]) -> Trainer:
    """A trainer that is ready, with its run folder started."""
    args = supervised_settings.parse_args(argv)
    folder = RunFolder(args.checkpoint_dir, columns=COLUMNS)
    trainer = Trainer(args, folder)
    folder.start(vars(args), argv)
    return trainer


def assert_says(sentence: str, pattern: str) -> None:
    assert re.search(pattern, sentence), sentence


# What a run leaves ---------------------------------------------------------------------------------------------------


def test_the_run_folder_holds_what_is_promised(finished: Path) -> None:
    assert {path.name for path in finished.iterdir()} == {
        "args.json", "command.txt", "log.txt", "log.csv", "tensorboard", "predictions.csv", "results.json", "scores.npz",
        LATEST, BEST, FINAL,
    }  # fmt: skip
    assert "run_supervised.py --backbone conv4" in (finished / "command.txt").read_text()
    assert json.loads((finished / "args.json").read_text())["learning_rate"] == 0.1


def test_log_csv_has_fixed_columns_and_a_row_for_every_event(finished: Path) -> None:
    found = rows(finished)
    assert tuple(found[0]) == COLUMNS
    assert [(row["steps"], row["epoch"], row["split"]) for row in found] == [
        ("2", "0", "train"), ("3", "0", "train"), ("3", "0", "val"),
        ("4", "1", "train"), ("6", "1", "train"), ("6", "1", "val"),
    ]  # fmt: skip
    for row in found:
        filled = {name for name, value in row.items() if value}
        numbers = {"loss", "accuracy", "learning_rate"} if row["split"] == "train" else {"accuracy", "top5"}
        assert filled == {"steps", "epoch", "split"} | numbers
        assert all(np.isfinite(float(row[name])) for name in numbers)


def test_every_accuracy_is_told_with_its_protocol(finished: Path) -> None:
    log = (finished / "log.txt").read_text().splitlines()
    validations = [line for line in log if "validation after epoch" in line]
    assert len(validations) == 2
    assert all(f"({PROTOCOL})" in line for line in validations)
    (test,) = (line for line in log if "test on test" in line)
    assert f"(conv4, {PROTOCOL}, mean of logits, {BEST})" in test


def test_results_say_all_that_a_comparison_needs(finished: Path, labelled: Path) -> None:
    found = results(finished)
    known = {
        "videos": 9, "seed": 0, "split": "test", "dataset": str(labelled), "protocol": f"{PROTOCOL}, mean of logits",
        "views": 1, "left_out": 0, "backbone": "conv4", "checkpoint": BEST, "selected_on": "val", "precision": "fp32",
        "untrained": False,
    }  # fmt: skip
    assert {name: found[name] for name in known} == known
    assert found["checkpoint_steps"] in (3, 6)
    assert {"accuracy", "ci95", "top5", "mean_class_accuracy", "split_fingerprint"} <= found.keys()


def test_predictions_scores_and_results_agree(finished: Path) -> None:
    found, scores, answers = (
        results(finished),
        ViewScores.load(finished / "scores.npz"),
        rows(finished, "predictions.csv"),
    )
    assert scores.logits.shape == (9, 1, 3)
    assert [row["video"] for row in answers] == scores.videos
    assert scores.videos == [f"{label}/{label}_{number:03d}" for label in LABELS for number in range(3)]
    assert [row["true"] for row in answers] == [LABELS[label] for label in scores.labels[:, 0]]
    assert [row["predicted"] for row in answers] == [LABELS[label] for label in scores.fused().argmax(axis=1)]
    assert 100 * np.mean([row["true"] == row["predicted"] for row in answers]) == pytest.approx(found["accuracy"])
    assert {name: found[name] for name in scores.summary()} == scores.summary()
    assert f"{scores.protocol}, mean of logits" == found["protocol"]


def test_checkpoints_hold_plain_values_and_unwrapped_names(finished: Path) -> None:
    for name in (LATEST, BEST, FINAL):
        checkpoint = torch.load(finished / name, weights_only=True)
        assert (checkpoint["args"]["backbone"], checkpoint["classes"]) == ("conv4", LABELS)
        assert checkpoint["input_spec"]["size"] == 16
        assert checkpoint["splits"].keys() == {"train", "val", "test"}
        assert all(name.startswith(("backbone.net.", "classifier.")) for name in checkpoint["model"])
    assert same_weights(weights(finished), weights(finished, LATEST))
    assert load_checkpoint(finished / FINAL)["progress"]["steps_done"] == 6


def test_tensorboard_shows_the_curves_of_the_log(finished: Path) -> None:
    found = curves(finished)
    assert found.keys() == {"train/loss", "train/accuracy", "train/learning_rate", "val/accuracy"}
    for tag, points in found.items():
        split, _, column = tag.partition("/")
        expected = [(int(row["steps"]), float(row[column])) for row in rows(finished) if row["split"] == split]
        assert [step for step, _ in points] == [step for step, _ in expected]
        assert [value for _, value in points] == pytest.approx([value for _, value in expected])


def test_the_same_command_leaves_the_same_numbers(
    labelled: Path, finished: Path, tmp_path: Path, program: Program
) -> None:
    program(*supervised_run(labelled, tmp_path / "run", "--num_workers", 1))
    assert same_weights(weights(tmp_path / "run"), weights(finished))
    for name in ("log.csv", "predictions.csv"):
        assert (tmp_path / "run" / name).read_bytes() == (finished / name).read_bytes()
    assert results(tmp_path / "run") == results(finished)
    program(*supervised_run(labelled, tmp_path / "seed", "--seed", 1))
    assert not same_weights(weights(tmp_path / "seed"), weights(finished))


# The same videos, however they are kept ------------------------------------------------------------------------------


def encode(frames: np.ndarray, path: Path) -> None:
    """A video file from which exactly these frames are decoded."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=Fraction(10))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "bgr0"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode(None))


@pytest.fixture(scope="session")
def forms(labelled: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """{form: the flags that name the labelled data set}."""
    root = tmp_path_factory.mktemp("forms")
    for video in labelled.glob("*/*/*"):
        name = video.relative_to(labelled)
        encode(FrameFolder(video).read(range(6)), root / "videos" / name.with_name(f"{video.name}.mkv"))
    with contextlib.redirect_stdout(io.StringIO()):
        assert pack_lmdb.main(["--src", str(labelled), "--dst", str(root / "lmdb"), "--jobs", "1"]) == 0
        flags = {}
        for form, source, first in (("frames", labelled, 0), ("ranges", labelled, 1), ("video", root / "videos", 1)):
            lists = root / f"lists of {form}"
            words = ["--format", form, "--separator", ";", "--first_label", str(first)]
            assert annotate.main(["write", "--src", str(source), "--dst", str(lists), *words]) == 0
            flags[f"list of {form}"] = [
                "--root", source, "--list_form", form, "--list_separator", ";", "--first_label", first,
                *(word for split in LABELLED_VIDEOS for word in (f"--{split}_list", lists / f"{split}.txt")),
                "--class_names", lists / "category.txt",
            ]  # fmt: skip
    return {"video files": ["--dataset", root / "videos"], "lmdb": ["--dataset", root / "lmdb"], **flags}


@pytest.mark.parametrize("form", ["video files", "lmdb", "list of frames", "list of ranges", "list of video"])
def test_every_form_of_a_data_set_gives_the_same_numbers(
    form: str, forms: dict[str, list[Any]], finished: Path, tmp_path: Path, program: Program
) -> None:
    program(*listed_run(tmp_path / "run", *forms[form]))
    assert (tmp_path / "run/log.csv").read_bytes() == (finished / "log.csv").read_bytes()
    assert same_weights(weights(tmp_path / "run"), weights(finished))
    found, expected = (ViewScores.load(folder / "scores.npz") for folder in (tmp_path / "run", finished))
    np.testing.assert_array_equal(found.logits, expected.logits)
    assert (found.classes, found.labels.tolist()) == (expected.classes, expected.labels.tolist())
    assert all(Path(name).stem in other for name, other in zip(expected.videos, found.videos, strict=True))


def test_a_test_may_be_of_other_data_than_the_training(
    forms: dict[str, list[Any]], own_run: Path, finished: Path, labelled: Path, tmp_path: Path, program: Program
) -> None:
    """Lists take the place of the folders that the checkpoint was trained on, and the other way round."""
    expected = ViewScores.load(finished / "scores.npz").logits
    program("-c", own_run, "--test_only", "--num_workers", 0, *forms["list of frames"])
    np.testing.assert_array_equal(ViewScores.load(own_run / "scores.npz").logits, expected)
    program(*listed_run(tmp_path / "lists", *forms["list of video"]))
    program("-c", tmp_path / "lists", "--test_only", "--num_workers", 0, "--dataset", labelled)
    np.testing.assert_array_equal(ViewScores.load(tmp_path / "lists/scores.npz").logits, expected)


# Learning rates ------------------------------------------------------------------------------------------------------

COSINE = [1.0, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2]  # (1 + cos(pi e / 4)) / 2


@pytest.mark.parametrize(
    ("flags", "rates"),
    [
        ({}, [1, 1, 1, 1, 1, 1, 1, 1]),
        ({"lr_steps": [1, 3]}, [1, 1, 0.1, 0.1, 0.1, 0.1, 0.01, 0.01]),
        ({"lr_steps": [3, 1]}, [1, 1, 0.1, 0.1, 0.1, 0.1, 0.01, 0.01]),
        ({"lr_steps": [1.5]}, [1, 1, 1, 1, 0.1, 0.1, 0.1, 0.1]),
        ({"lr_steps": [2, 2]}, [1, 1, 1, 1, 0.01, 0.01, 0.01, 0.01]),
        ({"lr_type": "cosine"}, [rate for rate in COSINE for _ in range(2)]),
        ({"warmup_epochs": 1}, [0.5, 1, 1, 1, 1, 1, 1, 1]),
        ({"warmup_epochs": 2}, [0.25, 0.5, 0.75, 1, 1, 1, 1, 1]),
        ({"warmup_epochs": 1.5, "lr_type": "cosine"}, [1 / 3, 2 / 3, 1, COSINE[1], *COSINE[2:3] * 2, *COSINE[3:] * 2]),
        ({"warmup_epochs": 2, "lr_steps": [1, 3]}, [0.25, 0.5, 0.75, 1, 0.1, 0.1, 0.01, 0.01]),
    ],
)  # fmt: skip
def test_learning_rates_of_four_epochs_of_two_steps(flags: dict[str, Any], rates: list[float]) -> None:
    """Steps and cosine as TSM and the Action Recognition Study have them, by whole epochs; with base rate 1."""
    settings = {"learning_rate": 1.0, "epochs": 4, "lr_type": "step", "lr_steps": [20, 40], "warmup_epochs": 0, **flags}
    args = argparse.Namespace(**settings)
    assert [learning_rate_at(step, 2, args) for step in range(8)] == pytest.approx(rates)
    assert learning_rate_at(3, 2, argparse.Namespace(**settings | {"learning_rate": 0.02})) == pytest.approx(
        0.02 * rates[3]
    )


def test_rates_reach_every_group_and_the_log(
    labelled: Path, tmp_path: Path, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates, step = [], torch.optim.SGD.step

    def noting(self: torch.optim.SGD, *args: Any) -> Any:
        rates.append({group["name"]: group["lr"] for group in self.param_groups})
        return step(self, *args)

    monkeypatch.setattr(torch.optim.SGD, "step", noting)
    flags = ["--layer_rates", "tsm_fc5", "--lr_steps", 1, "--warmup_epochs", 0.5, "--print_freq", 1, "--epochs", 2]
    program(*supervised_run(labelled, tmp_path / "run", *flags))
    expected = [0.1 * 2 / 3, 0.1, 0.1, 0.01, 0.01, 0.01]
    factors = {"weights": 1, "norms": 1, "classifier weight": 5, "classifier bias": 10}
    for found, rate in zip(rates, expected, strict=True):
        assert found == pytest.approx({name: rate * factor for name, factor in factors.items()})
    logged = [float(row["learning_rate"]) for row in rows(tmp_path / "run") if row["split"] == "train"]
    assert logged == pytest.approx(expected)


# Steps by hand -------------------------------------------------------------------------------------------------------


def literal_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean over clips of the cross-entropy with targets (B, C) that sum to one."""
    total = torch.zeros(())
    for row, target in zip(logits, targets, strict=True):
        log_sum = torch.log(sum(torch.exp(value) for value in row))
        total = total + sum(share * (log_sum - value) for value, share in zip(row, target, strict=True))
    return total / len(logits)


def literal_multi_label_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean over clips of the sum over classes of the two-way cross-entropy."""
    total = torch.zeros(())
    for row, target in zip(logits, targets, strict=True):
        for value, wanted in zip(row, target, strict=True):
            right = torch.sigmoid(value)
            total = total - (wanted * torch.log(right) + (1 - wanted) * torch.log(1 - right))
    return total / len(logits)


def one_hot(labels: Tensor, smoothing: float = 0.0) -> Tensor:
    targets = torch.full((len(labels), len(LABELS)), smoothing / len(LABELS))
    for row, label in zip(targets, labels.tolist(), strict=True):
        row[label] += 1 - smoothing
    return targets


@pytest.fixture
def several_labels(labelled: Path, tmp_path: Path) -> list[Any]:
    """The flags of lists in which each video also has the next class's label."""
    for split, videos in LABELLED_VIDEOS.items():
        lines = [
            f"{split}/{label}/{label}_{number:03d};6;{c};{(c + 1) % 3}"
            for c, label in enumerate(LABELS)
            for number in range(videos)
        ]
        (tmp_path / f"{split}.txt").write_text("\n".join(lines))
    return [
        "--root", labelled, "--multi_label", "--list_separator", ";",
        *(word for split in LABELLED_VIDEOS for word in (f"--{split}_list", tmp_path / f"{split}.txt")),
    ]  # fmt: skip


def trained_by_hand(trainer: Trainer, loss_of: Callable[..., Tensor], *, calls: int, clip: float) -> list[float]:
    """Trains the trainer's model by plain torch, and returns the loss of every step."""
    model, losses = trainer.model.train(), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    for step in range(6):
        order = epoch_order(0, step // 3, 12)[step % 3 * 4 :][:4]
        batch = trainer.clips.batch(step // 3, order)
        seed_everything(0, step + 1, 0)
        portions = []
        for call in range(calls):  # the first of calls has clips 0, calls, 2 calls, ...
            clips = trainer.input_spec.normalise(batch["clips"][call::calls])
            labels = batch["labels"][call::calls]
            portions.append(loss_of(model, clips, labels) * len(labels) / 4)
        losses.append(sum(portions))
        optimizer.zero_grad()
        losses[-1].backward()
        if clip:
            norm = torch.stack([p.grad.square().sum() for p in model.parameters()]).sum().sqrt()
            assert norm > clip, "nothing to shorten"
            for parameter in model.parameters():
                parameter.grad *= clip / (norm + 1e-6)
        optimizer.step()
    return [float(loss.detach()) for loss in losses]


def plain(model: nn.Module, clips: Tensor, labels: Tensor) -> Tensor:
    return literal_loss(model(clips), one_hot(labels))


def smoothed(model: nn.Module, clips: Tensor, labels: Tensor) -> Tensor:
    return literal_loss(model(clips), one_hot(labels, 0.2))


def of_several_labels(model: nn.Module, clips: Tensor, labels: Tensor) -> Tensor:
    return literal_multi_label_loss(model(clips), labels)


def of_mixed(model: nn.Module, clips: Tensor, labels: Tensor) -> Tensor:
    clips, targets = mixup(clips, one_hot(labels), 0.4, 3)
    return literal_loss(model(clips), targets)


@pytest.mark.parametrize(
    ("flags", "loss_of", "calls"),
    [
        ([], plain, 1),
        (["--label_smoothing", 0.2], smoothed, 1),
        (["--multi_label"], of_several_labels, 1),
        (["--mixup", 0.4], of_mixed, 1),
        (["--clip_gradient", 0.003], plain, 1),
        (["--clips_per_call", 2], plain, 2),
        (["--clips_per_call", 3], plain, 2),
        (["--clips_per_call", 4], plain, 1),
        (["--clips_per_call", 1, "--bn", "frozen"], plain, 4),
    ],
    ids=lambda value: str(getattr(value, "__name__", value)),
)
def test_training_is_what_plain_torch_does(
    flags: list[Any], loss_of: Callable[..., Tensor], calls: int, labelled: Path, several_labels: list[Any],
    tmp_path: Path, program: Program,
) -> None:  # fmt: skip
    flags = [*flags, "--dropout", 0, "--momentum", 0.9, "--weight_decay", 0.01, "--print_freq", 1]
    flags = [*flags, *(several_labels if "--multi_label" in flags else ["--dataset", labelled])]
    program(*listed_run(tmp_path / "run", *flags))
    trainer = trainer_of(listed_run(tmp_path / "by hand", *flags))
    losses = trained_by_hand(trainer, loss_of, calls=calls, clip=0.003 * ("--clip_gradient" in flags))
    logged = [float(row["loss"]) for row in rows(tmp_path / "run") if row["split"] == "train"]
    assert logged == pytest.approx(losses, rel=1e-4)
    torch.testing.assert_close(weights(tmp_path / "run"), dict(trainer.model.state_dict()), rtol=1e-3, atol=1e-5)


def test_mixup_gives_clips_and_labels_the_same_share_of_another_clip() -> None:
    """Clip b is the number b everywhere, so that the share can be read off."""
    labels = torch.arange(6)
    clips = labels.float()[:, None].expand(6, 10)
    shares = []
    for seed in range(200):
        seed_everything(seed)
        found, targets = mixup(clips, labels, 0.4, 6)
        torch.testing.assert_close(targets.sum(dim=1), torch.ones(6))
        # A clip is its own number and another one in the shares of its target.
        torch.testing.assert_close(found, (targets @ labels.float())[:, None].expand(6, 10))
        own = targets.diagonal()
        partners = targets - torch.diag(own)
        mixed_ones = own < 1
        if mixed_ones.any():
            assert len(own[mixed_ones].unique()) <= 2, "one share for all, up to rounding"
            assert (partners[mixed_ones] > 0).sum(dim=1).eq(1).all()
            assert ((partners > 0).sum(dim=0) <= 1).all(), "each clip is the partner of one at most"
            shares.append(float(own[mixed_ones][0]))
    # Beta(a, a) has mean 1/2 and variance 1 / (4 (2 a + 1)).
    assert np.mean(shares) == pytest.approx(0.5, abs=0.08)
    assert np.var(shares) == pytest.approx(1 / (4 * 1.8), abs=0.03)


def test_mixup_mixes_sets_of_labels_too() -> None:
    hot = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    for seed in range(20):
        seed_everything(seed)
        found, targets = mixup(torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]), hot, 1.0, 3)
        torch.testing.assert_close(found, targets)


def test_dropout_differs_from_step_to_step_and_not_from_run_to_run(
    labelled: Path, tmp_path: Path, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    masks: list[bytes] = []
    forward = nn.Dropout.forward

    def noting(self: nn.Dropout, features: Tensor) -> Tensor:
        kept = forward(self, torch.ones_like(features))
        if self.training:
            masks.append((kept > 0).numpy().tobytes())
        return features * kept

    monkeypatch.setattr(nn.Dropout, "forward", noting)
    for name in ("a", "b"):
        program(*supervised_run(labelled, tmp_path / name, "--dropout", 0.5))
    assert len(masks) == 12
    assert masks[:6] == masks[6:]
    assert len(set(masks)) == 6


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_videos(
    labelled: Path, tmp_path: Path, program: Program
) -> None:
    sentence = program.fails(*supervised_run(labelled, tmp_path / "run", "-lr", 1e38))
    assert_says(sentence, r"the loss became \S+ in step \d \(videos .*_00\d, .*\): lower --learning_rate")


@pytest.mark.parametrize("flags", [["--precision", "bf16"], ["--checkpoint_activations"], ["--clip_gradient", 20]])
def test_what_changes_the_numbers_little_or_not_at_all(
    flags: list[Any], labelled: Path, finished: Path, tmp_path: Path, program: Program
) -> None:
    program(*supervised_run(labelled, tmp_path / "run", *flags))
    near = 5e-2 if "bf16" in flags else 1e-6
    found, expected = ([float(row["loss"]) for row in rows(f) if row["loss"]] for f in (tmp_path / "run", finished))
    assert found == pytest.approx(expected, rel=near)
    assert (found == expected) == ("bf16" not in flags)


# Batch norms ---------------------------------------------------------------------------------------------------------


def norm_tensors(state: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """Weights, biases and statistics of each of Conv-4's batch norms."""
    kinds = ("weight", "bias", "running_mean", "running_var")
    return [{kind: state[f"backbone.net.{block}.1.{kind}"] for kind in kinds} for block in range(4)]


@pytest.mark.parametrize(("bn", "first", "rest"), [("partial", True, False), ("frozen", False, False)])
def test_which_batch_norms_a_run_changes(
    bn: str, first: bool, rest: bool, labelled: Path, finished: Path, tmp_path: Path, program: Program
) -> None:
    """With validations between the epochs. What is not learnt is as initialised: mean 0, variance 1."""
    program(*supervised_run(labelled, tmp_path / "run", "--bn", bn))
    for tensors, learns in zip(norm_tensors(weights(tmp_path / "run")), [first, rest, rest, rest], strict=True):
        assert bool(tensors["running_mean"].any()) == learns
        assert bool((tensors["running_var"] != 1).any()) == learns
        trained = learns or bn == "frozen"
        assert bool((tensors["weight"] != 1).any()) == trained
    # It does not last: what is tuned from it trains all of them.
    program(*supervised_run(labelled, tmp_path / "next", "--tune_from", tmp_path / "run" / FINAL))
    for before, after in zip(*(norm_tensors(weights(tmp_path / name)) for name in ("run", "next")), strict=True):
        assert not any(torch.equal(before[kind], after[kind]) for kind in before)


# Views ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def shapes(tmp_path: Path) -> Path:
    """Test videos that lie, stand, and are nearly square, of 9 and of 4 frames."""
    root = tmp_path / "shapes"
    for number, (height, width, frames) in enumerate([(40, 60, 9), (60, 40, 9), (33, 32, 4), (30, 40, 9)]):
        write_video(root / "test" / "clap" / f"v{number}", seed=number, frames=frames, height=height, width=width)
    return root


def literal_places(height: int, width: int, size: int, crops: int) -> list[tuple[int, int, bool]]:
    """(top, left, mirrored) of the crops in resized frames, in the order of the views."""
    if crops == 1:
        (square,) = torchvision.transforms.CenterCrop(size)(torch.arange(height * width).reshape(1, height, width))
        return [(int(square[0, 0]) // width, int(square[0, 0]) % width, False)]
    end_y, end_x = (height - size) // 4 * 4, (width - size) // 4 * 4
    centre = (end_y // 2, end_x // 2, False)
    if crops == 3:
        ends = [(end_y // 2, 0), (end_y // 2, end_x)] if width >= height else [(0, end_x // 2), (end_y, end_x // 2)]
        return [*((top, left, False) for top, left in ends), centre]
    five = [(0, 0, False), (0, end_x, False), (end_y, 0, False), (end_y, end_x, False), centre]
    if crops == 5:
        return five
    return [(top, left, mirrored) for top, left, _ in five for mirrored in (False, True)]


TSM_CLIPS = {9: [[1, 4, 7], [0, 3, 6]], 4: [[0, 2, 3], [0, 1, 2]]}  # the middles of three parts, and their first frames


def literal_views(video: Path, size: int, short_side: int, crops: int, clips: int) -> list[Tensor]:
    """Every view of a video by itself: (3, 3, size, size), normalised with 0.5 and 0.5."""
    frames = FrameFolder(video).read(range(len(list(video.iterdir()))))
    resized = resize_short_side(torch.from_numpy(frames).permute(0, 3, 1, 2), short_side)
    views = []
    for top, left, mirrored in literal_places(*resized.shape[-2:], size, crops):
        for clip in TSM_CLIPS[len(frames)][:clips]:
            view = resized[clip][..., top : top + size, left : left + size]
            view = view.flip(-1) if mirrored else view
            views.append((view.double() / 255 - 0.5) / 0.5)
    return views


@pytest.mark.parametrize("per_call", [1, 7, 1000])
@pytest.mark.parametrize(
    ("crops", "clips", "sides"),
    [(1, 1, []), (3, 2, []), (5, 1, []), (10, 2, []), (3, 2, ["--crop_size", 20, "--short_side", 20])],
)
def test_logits_of_views_are_those_of_each_view_by_itself(
    crops: int,
    clips: int,
    sides: list[Any],
    per_call: int,
    own_run: Path,
    labelled: Path,
    shapes: Path,
    program: Program,
) -> None:
    """The last case is the full-resolution form: three crops that cover the frames."""
    flags = ["--num_crops", crops, "--num_clips", clips, *sides, "--views_per_call", per_call, "--num_workers", 0]
    program("-c", own_run, "--test_only", "-m", FINAL, "--dataset", shapes, *flags)
    size, short_side = (20, 20) if sides else (16, 18)
    protocol = f"3 frames by tsm sampling, {clips} fixed clip(s) x {crops} crop(s) of {size} px from a shorter side of"
    assert results(own_run)["protocol"] == f"{protocol} {short_side} px, mean of logits"
    assert results(own_run)["views"] == crops * clips
    scores = ViewScores.load(own_run / "scores.npz")
    assert scores.logits.shape == (4, crops * clips, 3)
    model = trainer_of(supervised_run(labelled, own_run.parent / "by hand", "--epochs", 1)).model.double().eval()
    model.load_state_dict(weights(own_run))
    with torch.inference_mode():
        for name, logits in zip(scores.videos, scores.logits, strict=True):
            views = literal_views(shapes / "test" / name, size, short_side, crops, clips)
            expected = torch.cat([model(view[None]) for view in views])
            np.testing.assert_allclose(logits, expected.numpy(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("fusion", ["logits", "probabilities"])
def test_the_asked_fusion_is_that_of_results_and_predictions(fusion: str, own_run: Path, program: Program) -> None:
    flags = ["--num_crops", 3, "--num_clips", 2, "--fusion", fusion, "--num_workers", 0]
    out = program("-c", own_run, "--test_only", *flags)
    assert f"mean of {fusion}, {BEST})" in out
    scores = ViewScores.load(own_run / "scores.npz")
    found = results(own_run)
    assert found["protocol"].endswith(f"mean of {fusion}")
    assert {name: found[name] for name in scores.summary(fusion)} == scores.summary(fusion)
    confidence = scores.confidence(fusion).max(axis=1)
    assert [float(row["confidence"]) for row in rows(own_run, "predictions.csv")] == pytest.approx(confidence, abs=1e-6)


def test_training_and_test_resize_frames_as_the_network_wants(
    labelled: Path, own_run: Path, tmp_path: Path, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted, trained, tested = training.input_spec_of, {}, {}
    for interpolation in ("bilinear", "bicubic"):
        monkeypatch.setattr(
            training, "input_spec_of",
            lambda *of, by=interpolation: dataclasses.replace(wanted(*of), interpolation=by),
        )  # fmt: skip
        program(*supervised_run(labelled, tmp_path / interpolation, "--epochs", 1))
        trained[interpolation] = weights(tmp_path / interpolation, FINAL)
        program("-c", own_run, "--test_only")
        tested[interpolation] = ViewScores.load(own_run / "scores.npz").logits
    assert not same_weights(*trained.values())
    assert np.abs(tested["bilinear"] - tested["bicubic"]).max() > 1e-4


def test_random_clips_are_the_same_again_with_the_same_seed(own_run: Path, program: Program) -> None:
    logits = {}
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        out = program("-c", own_run, "--test_only", "--clips", "random", "--num_clips", 4, "--seed", seed)
        assert "4 random clip(s)" in out
        logits[name] = ViewScores.load(own_run / "scores.npz").logits
    np.testing.assert_array_equal(logits["a"], logits["b"])
    assert not np.array_equal(logits["a"], logits["c"])


# Tests ---------------------------------------------------------------------------------------------------------------


def test_a_later_test_keeps_the_earlier_results_and_settings(own_run: Path, program: Program) -> None:
    before = {path.name: path.read_bytes() for path in own_run.iterdir() if path.is_file()}
    out = program("-c", own_run, "--test_only", "--num_clips", 2, "--num_workers", 0)
    assert "2 fixed clip(s)" in out
    for name in ("results.json", "predictions.csv", "scores.npz"):
        path = own_run / name
        assert path.with_stem(f"{path.stem}_1").read_bytes() == before[name]
        assert path.read_bytes() != before[name]
    for name in ("args.json", "log.csv", LATEST, BEST, FINAL):
        assert (own_run / name).read_bytes() == before[name]
    assert not (own_run / "scores").exists()


def test_a_test_elsewhere_takes_its_settings_from_the_checkpoint(
    finished: Path, tmp_path: Path, program: Program
) -> None:
    program("-c", tmp_path / "test", "--test_only", "-m", finished / BEST, "--num_workers", 0)
    expected = results(finished)
    assert results(tmp_path / "test") == expected
    assert (tmp_path / "test/predictions.csv").read_bytes() == (finished / "predictions.csv").read_bytes()
    assert json.loads((tmp_path / "test/args.json").read_text())["test_only"] is True


def test_without_test_videos_the_final_model_is_tested_on_val(
    labelled: Path, own_labelled: Path, finished: Path, tmp_path: Path, program: Program
) -> None:
    shutil.rmtree(own_labelled / "test")
    program(*supervised_run(own_labelled, tmp_path / "run"))
    found = results(tmp_path / "run")
    assert (found["split"], found["checkpoint"], found["selected_on"], found["videos"]) == ("val", FINAL, "nothing", 6)
    assert found["accuracy"] == float(rows(tmp_path / "run")[-1]["accuracy"])
    out = program("-c", tmp_path / "run", "--test_only", "-m", BEST, "--num_workers", 0)
    assert "CHOSEN ON THESE VIDEOS" in out
    assert f"{BEST}, chosen on these videos)" in out
    assert results(tmp_path / "run")["marks"] == ["chosen on these videos"]
    assert ViewScores.load(tmp_path / "run/scores.npz").marks == ["chosen on these videos"]
    out = program(*supervised_run(labelled, tmp_path / "asked", "--test_on", "val"))
    assert results(tmp_path / "asked") == {**found, "dataset": str(labelled)}
    assert "CHOSEN" not in out


def test_without_validation_the_final_model_is_tested(labelled: Path, tmp_path: Path, program: Program) -> None:
    program(*supervised_run(labelled, tmp_path / "run", "--val_freq", 0))
    assert {row["split"] for row in rows(tmp_path / "run")} == {"train"}
    assert not (tmp_path / "run" / BEST).exists()
    assert results(tmp_path / "run")["checkpoint"] == FINAL


def test_validations_come_every_so_many_epochs_and_at_the_end(labelled: Path, tmp_path: Path, program: Program) -> None:
    program(*supervised_run(labelled, tmp_path / "run", "--val_freq", 2, "--epochs", 5))
    assert [row["steps"] for row in rows(tmp_path / "run") if row["split"] == "val"] == ["6", "12", "15"]


def test_the_best_of_the_validations_is_tested(
    labelled: Path, tmp_path: Path, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only a better one is taken: of equal ones the earliest stays."""
    accuracies, original = iter([50.0, 60.0, 60.0, 55.0]), ViewScores.summary

    def summary(self: ViewScores, *args: Any) -> dict[str, Any]:
        found = original(self, *args)
        return {**found, "accuracy": next(accuracies)} if len(self.videos) == 6 else found

    monkeypatch.setattr(ViewScores, "summary", summary)
    program(*supervised_run(labelled, tmp_path / "run", "--epochs", 4))
    assert (results(tmp_path / "run")["checkpoint"], results(tmp_path / "run")["checkpoint_steps"]) == (BEST, 6)
    assert load_checkpoint(tmp_path / "run" / FINAL)["progress"]["best_accuracy"] == 60


def test_an_untrained_classifier_is_tested_only_where_that_is_asked_for(
    labelled: Path, finished: Path, tmp_path: Path, program: Program
) -> None:
    untrained = supervised_run(labelled, tmp_path / "run", "--epochs", 0)
    assert_says(program.fails(*untrained), "^--epochs 0 would test a classifier that nothing has trained.*--untrained")
    assert not (tmp_path / "run").exists()
    assert "the classifier is UNTRAINED" in program(*untrained, "--untrained")
    found = results(tmp_path / "run")
    assert (found["checkpoint"], found["checkpoint_steps"], found["selected_on"]) == (FINAL, 0, "nothing")
    assert found["marks"] == ["untrained"]
    assert found["untrained"] is True
    again = ["-c", tmp_path / "again", "--test_only", "-m", tmp_path / "run" / FINAL]
    assert_says(program.fails(*again), f"{FINAL} would test a classifier that nothing has trained")
    tuned = supervised_run(labelled, tmp_path / "again", "--epochs", 0, "--tune_from", tmp_path / "run" / FINAL)
    assert_says(program.fails(*tuned), "would test a classifier that nothing has trained")
    program(*again, "--untrained")
    assert results(tmp_path / "again")["untrained"] is True
    program("-c", tmp_path / "run", "-r", "--epochs", 1, "--num_workers", 0)
    assert results(tmp_path / "run")["untrained"] is False
    trained = ["-c", tmp_path / "trained", "--test_only", "-m", finished / FINAL, "--untrained"]
    assert "warning: --untrained has no effect" in program(*trained)
    assert results(tmp_path / "trained")["untrained"] is False


def test_videos_without_labels_are_answered_and_not_counted(
    labelled: Path, own_run: Path, tmp_path: Path, program: Program
) -> None:
    names = [f"test/{label}/{label}_00{number};1;6" for label in LABELS for number in range(3)]
    (tmp_path / "test.txt").write_text("\n".join(names))
    lists = ["--test_list", tmp_path / "test.txt", "--root", labelled, "--list_separator", ";"]
    before = [row["predicted"] for row in rows(own_run, "predictions.csv")]
    out = program("-c", own_run, "--test_only", *lists, "--list_form", "unlabelled", "--num_workers", 0)
    assert "test on test: videos without labels, no accuracy" in out
    answers = rows(own_run, "predictions.csv")
    assert [row["predicted"] for row in answers] == before
    assert {row["true"] for row in answers} == {""}
    assert "accuracy" not in results(own_run)
    assert results(own_run)["left_out"] == 0


def test_videos_with_several_labels_are_measured_by_mean_average_precision(
    several_labels: list[Any], tmp_path: Path, program: Program
) -> None:
    out = program(*listed_run(tmp_path / "run", *several_labels))
    scores, found = ViewScores.load(tmp_path / "run/scores.npz"), results(tmp_path / "run")
    assert scores.multi_label
    assert scores.labels.tolist() == [[c, (c + 1) % 3] for c in range(3) for _ in range(3)]
    expected = scores.summary()["mean_average_precision"]
    assert found["mean_average_precision"] == expected
    assert f"test on test: mean average precision {expected:.2f} %, 9 videos" in out
    validations = [row for row in rows(tmp_path / "run") if row["split"] == "val"]
    assert [bool(row["accuracy"]) for row in validations] == [True, True]
    assert {row["top5"] for row in validations} == {""}
    answers = rows(tmp_path / "run", "predictions.csv")
    assert [row["true"] for row in answers] == [f"{c};{(c + 1) % 3}" for c in range(3) for _ in range(3)]


# Going on ------------------------------------------------------------------------------------------------------------


def test_a_finished_run_says_so_and_changes_nothing(own_run: Path, program: Program) -> None:
    before = {path.name: path.read_bytes() for path in own_run.iterdir() if path.is_file()}
    assert "this run is finished (6 steps): raise --epochs" in program("-c", own_run, "-r", "--num_workers", 0)
    after = {path.name: path.read_bytes() for path in own_run.iterdir() if path.is_file()}
    assert after.keys() == before.keys()
    assert {name for name in before if before[name] != after[name]} <= {"args.json", "command.txt", "log.txt"}


def test_more_epochs_end_as_if_they_had_been_asked_for_at_once(
    labelled: Path, own_run: Path, finished: Path, tmp_path: Path, program: Program
) -> None:
    program("-c", own_run, "-r", "--epochs", 3, "--num_workers", 0)
    program(*supervised_run(labelled, tmp_path / "run", "--epochs", 3))
    for name in ("log.csv", "predictions.csv"):
        assert (own_run / name).read_bytes() == (tmp_path / "run" / name).read_bytes()
    assert same_weights(weights(own_run), weights(tmp_path / "run"))
    assert (own_run / "results_1.json").read_bytes() == (finished / "results.json").read_bytes()
    assert curves(own_run) == curves(tmp_path / "run")


def test_results_of_a_shorter_training_do_not_pass_for_those_of_a_longer_one(
    own_run: Path, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that was finished goes on for longer, and is stopped when only its test is missing."""

    def stop(self: Trainer, path: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "test", stop)
        assert run_supervised.main(["-c", str(own_run), "-r", "--epochs", "3", "--num_workers", "0"]) == 130
    program("-c", own_run, "-r", "--num_workers", 0)
    assert load_checkpoint(own_run / FINAL)["progress"]["steps_done"] == 9
    assert (own_run / "results.json").exists()
    assert (own_run / "results_1.json").exists()


@pytest.mark.parametrize(
    ("flags", "pattern"),
    [
        (["-lr", 0.5], "--learning_rate was 0.1 .* is 0.5 now"),
        (["--bn", "frozen"], "--bn was train .* is frozen now"),
        (["--seed", 3], "--seed was 0 .* is 3 now"),
        (["--batch_size", 2], "--batch_size was 4 .* is 2 now"),
        (["--mixup", 1], "--mixup was 0.0 .* is 1.0 now"),
        (["--sampling", "tdn"], "--sampling was tsm .* is tdn now"),
        (["--backbone", "resnet18"], "--backbone was conv4 .* is resnet18 now"),
    ],
)
def test_going_on_with_another_setting_is_refused(
    flags: list[Any], pattern: str, own_run: Path, program: Program
) -> None:
    before = {path.name: path.read_bytes() for path in own_run.iterdir() if path.is_file()}
    assert_says(program.fails("-c", own_run, "-r", "--epochs", 9, *flags), f"{pattern}.*another -c")
    assert {path.name: path.read_bytes() for path in own_run.iterdir() if path.is_file()} == before


def test_a_data_set_that_has_changed_is_not_gone_on_with(own_labelled: Path, tmp_path: Path, program: Program) -> None:
    program(*supervised_run(own_labelled, tmp_path / "run"))
    (own_labelled / "train/clap/clap_000").rename(own_labelled / "train/clap/other")
    sentence = program.fails("-c", tmp_path / "run", "-r", "--epochs", 3, "--num_workers", 0)
    assert "are not those this run was started on" in sentence


# Weights from elsewhere, and for others ------------------------------------------------------------------------------


def backbone_of(state: dict[str, Tensor], prefix: str = "backbone.") -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def test_tuning_takes_the_classifier_where_the_classes_are_the_same(
    labelled: Path, finished: Path, tmp_path: Path, program: Program
) -> None:
    out = program(*supervised_run(labelled, tmp_path / "run", "--epochs", 0, "--tune_from", finished / FINAL))
    assert "0 missing, 0 unexpected; with its classifier" in out
    assert same_weights(weights(tmp_path / "run"), weights(finished))
    assert results(tmp_path / "run")["untrained"] is False


def test_tuning_on_other_classes_starts_a_new_classifier(
    dataset: Path, own_labelled: Path, finished: Path, tmp_path: Path, program: Program
) -> None:
    for split in LABELLED_VIDEOS:
        (own_labelled / split / "wave").rename(own_labelled / split / "walk")  # as many, one of them another
    flags = ["--epochs", 0, "--untrained", "--tune_from", finished / FINAL]
    out = program(*supervised_run(own_labelled, tmp_path / "run", *flags))
    assert "with a new classifier" in out
    found, expected = weights(tmp_path / "run"), weights(finished)
    assert same_weights(backbone_of(found), backbone_of(expected))
    assert not found["classifier.bias"].any()
    for split in LABELLED_VIDEOS:  # more of them
        shutil.copytree(own_labelled / split / "walk", own_labelled / split / "jump")
    program(*supervised_run(own_labelled, tmp_path / "more", *flags))
    assert weights(tmp_path / "more")["classifier.weight"].shape == (4, 8)


def test_a_run_that_was_tuned_goes_on_without_the_file(
    labelled: Path, own_run: Path, tmp_path: Path, program: Program
) -> None:
    program(*supervised_run(labelled, tmp_path / "run", "--tune_from", own_run / FINAL))
    shutil.rmtree(own_run)
    program("-c", tmp_path / "run", "-r", "--epochs", 3, "--num_workers", 0)


def test_a_trained_backbone_goes_on_into_few_shot_learning(
    dataset: Path, finished: Path, tmp_path: Path, few_shot: Program, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = [flag for flag in tiny_run(dataset, tmp_path / "run", "-i", 0) if flag != "--no_pretrained"]
    capsys.readouterr()
    assert run.main([*argv, "--backbone_options", "width=8", "-pt", str(finished / FINAL)]) == 0
    said = capsys.readouterr()
    assert "24 tensors loaded, 0 missing, 0 unexpected" in said.err
    assert "start from pretrained weights" not in said.out, "it does"
    expected = backbone_of(weights(finished))
    assert same_weights(backbone_of(weights(tmp_path / "run")), expected)
    backbone = build_backbone("conv4", seq_len=3, pretrained=str(finished / BEST), width=8)
    assert same_weights(dict(backbone.state_dict()), backbone_of(weights(finished, BEST)))


def test_a_few_shot_backbone_goes_on_into_supervised_training(
    dataset: Path, labelled: Path, tmp_path: Path, few_shot: Program, program: Program
) -> None:
    few_shot(*tiny_run(dataset, tmp_path / "few", "-i", 2, "-lr", 0.1, "--backbone_options", "width=8"))
    flags = ["--epochs", 0, "--untrained", "--tune_from", tmp_path / "few" / FINAL]
    out = program(*supervised_run(labelled, tmp_path / "run", *flags))
    assert "with a new classifier" in out
    assert same_weights(backbone_of(weights(tmp_path / "run")), backbone_of(weights(tmp_path / "few")))


HEADS_ON_BASE = ["tsn", "trx", "otam", "pal", "dual_prototypes", "bimhm"]


def test_base_training_on_a_few_shot_set_goes_on_under_every_head(
    own_dataset: Path, tmp_path: Path, program: Program, capsys: pytest.CaptureFixture[str]
) -> None:
    """Base classes alone are read: the others are not there while the backbone is trained."""
    base = tmp_path / "base"
    for split in ("val", "test"):
        (own_dataset / split).rename(tmp_path / split)
    out = program(*supervised_run(own_dataset, base, "--holdout", 0.25))
    assert "validation after epoch 2" in out
    found = results(base)
    assert (found["split"], found["videos"], found["checkpoint"]) == ("val", 2 * len(CLASSES["train"]), FINAL)
    program("-c", base, "-r", "--epochs", 3, "--num_workers", 0)
    program("-c", base, "--test_only", "--num_workers", 0)
    assert results(base)["split_fingerprint"] == found["split_fingerprint"]
    for split in ("val", "test"):
        (tmp_path / split).rename(own_dataset / split)
    for method in HEADS_ON_BASE:
        argv = [flag for flag in tiny_run(own_dataset, tmp_path / method, "-i", 2) if flag != "--no_pretrained"]
        assert run.main([*argv, "--method", method, "-pt", str(base / FINAL), "--backbone_options", "width=8"]) == 0
        assert "24 tensors loaded, 0 missing, 0 unexpected" in capsys.readouterr().err


def test_few_shot_splits_are_named_where_the_classes_of_one_were_meant(
    dataset: Path, tmp_path: Path, program: Program
) -> None:
    sentence = program.fails(*supervised_run(dataset, tmp_path / "run"))
    assert_says(sentence, "/val has 6 class.* the training does not have, .* --holdout 0.1 takes the base classes")
    for flags, pattern in [
        (["--holdout", 0.25, "--test_on", "test"], "leave --test_on test out"),
        (["--holdout", 0.99], "of which --holdout 0.99 keeps back 8"),
        (["--holdout", 1], "--holdout is 1.0: expected"),
    ]:
        assert_says(program.fails(*supervised_run(dataset, tmp_path / "run", *flags)), pattern)
    lists = ["--root", dataset, "--train_list", "list", "--holdout", 0.1]
    assert_says(program.fails(*listed_run(tmp_path / "run", *lists)), "--holdout is for --dataset: leave it out")
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_of_the_other_program_is_refused(
    dataset: Path, own_run: Path, tmp_path: Path, few_shot: Program, program: Program
) -> None:
    few_shot(*tiny_run(dataset, tmp_path / "few", "-i", 2))
    for other, folder, name in [(program, tmp_path / "few", "run.py"), (few_shot, own_run, "run_supervised.py")]:
        asked = ["-c", tmp_path / "test", "--test_only", "-m", folder / FINAL]
        for argv in (asked, ["-c", folder, "-r"], ["-c", folder, "--test_only"]):
            assert_says(other.fails(*argv), f"that run or checkpoint is of {name}")
            assert not (tmp_path / "test").exists()


def test_files_that_are_no_checkpoint_are_refused(
    labelled: Path, own_run: Path, tmp_path: Path, program: Program
) -> None:
    torch.save({"conv1.weight": torch.zeros(3)}, tmp_path / "other.pth")
    torch.save({"words": "only"}, tmp_path / "words.pth")
    (tmp_path / "cut.pt").write_bytes((own_run / FINAL).read_bytes()[:-4000])
    test = ["-c", tmp_path / "test", "--test_only", "-m"]
    tune = supervised_run(labelled, tmp_path / "test", "--tune_from")
    for argv, pattern in [
        ([*test, tmp_path / "other.pth"], "other.pth is not a checkpoint of this library"),
        ([*test, tmp_path / "cut.pt"], "cut.pt is truncated or no PyTorch file"),
        ([*test, own_run / "scores.npz"], "scores.npz is truncated or no PyTorch file"),
        ([*test, tmp_path / "absent.pt"], "no checkpoint .*absent.pt"),
        ([*tune, tmp_path / "other.pth"], "expected every weight of the backbone"),
        ([*tune, tmp_path / "words.pth"], "words.pth holds no weights"),
        ([*tune, tmp_path / "absent.pt"], "no checkpoint at .*absent.pt"),
        ([*tune, own_run / FINAL, "--backbone_options", "width=6"], "does not fit: .* give weights of the same"),
        ([*tune, own_run / FINAL, "--backbone", "resnet18"], "has no option width|expected every weight"),
    ]:
        assert_says(program.fails(*argv), pattern)
        assert not (tmp_path / "test").exists()


def test_a_checkpoint_of_another_network_is_refused(labelled: Path, own_run: Path, program: Program) -> None:
    checkpoint = load_checkpoint(own_run / LATEST)
    checkpoint["model"]["classifier.weight"] = torch.zeros(3, 5)
    torch.save(checkpoint, own_run / LATEST)
    for argv in (["-r", "--epochs", 3], ["--test_only", "-m", LATEST]):
        assert_says(program.fails("-c", own_run, *argv), f"{LATEST} does not fit the model: .*classifier.weight")


# Classes -------------------------------------------------------------------------------------------------------------


def test_a_test_on_other_classes_is_refused(
    own_labelled: Path, labelled: Path, own_run: Path, tmp_path: Path, program: Program
) -> None:
    (own_labelled / "test/wave").rename(own_labelled / "test/zoom")
    sentence = program.fails("-c", own_run, "--test_only", "--dataset", own_labelled)
    assert_says(sentence, "has 1 class.* that the training does not have, the first is 'zoom'")
    lines = [f"test/{label}/{label}_000;6;{c}" for c, label in enumerate(LABELS)]
    (tmp_path / "test.txt").write_text("\n".join(lines))
    lists = ["--test_list", tmp_path / "test.txt", "--root", labelled, "--list_separator", ";"]
    for names in (["clap", "jump up", "zoom"], ["jump up", "clap", "wave"], [*LABELS, "zoom"], LABELS[:2]):
        (tmp_path / "names.txt").write_text("\n".join(names))
        sentence = program.fails("-c", own_run, "--test_only", *lists, "--class_names", tmp_path / "names.txt")
        assert_says(sentence, "names other classes than those of the checkpoint|has label 2 .* there are 2 classes")
    (tmp_path / "names.txt").write_text("\n".join(LABELS))
    program("-c", own_run, "--test_only", *lists, "--class_names", tmp_path / "names.txt", "--num_workers", 0)
    (tmp_path / "test.txt").write_text("\n".join([*lines, "test/wave/wave_000;6;3"]))
    assert_says(program.fails("-c", own_run, "--test_only", *lists), "has label 3 .* there are 3 classes")


def test_a_test_of_fewer_classes_keeps_the_numbers_of_the_training(
    own_labelled: Path, finished: Path, own_run: Path, program: Program
) -> None:
    shutil.rmtree(own_labelled / "test/clap")
    program("-c", own_run, "--test_only", "--dataset", own_labelled, "--num_workers", 0)
    found, expected = (ViewScores.load(folder / "scores.npz") for folder in (own_run, finished))
    # Other videos are in a batch together now, so sums may be rounded otherwise.
    np.testing.assert_allclose(found.logits, expected.logits[3:], rtol=1e-5, atol=1e-7)
    assert found.labels.tolist() == expected.labels[3:].tolist()
    right = found.fused().argmax(axis=1) == found.labels[:, 0]
    assert results(own_run)["mean_class_accuracy"] == pytest.approx(100 * right.reshape(2, 3).mean())


SIDES = ["push left", "push right", "look left", "wave"]


@pytest.mark.parametrize(
    ("flip", "expected"),
    [
        ("off", None),
        ("on", [0, 1, 2, 3]),
        ("label", [1, 0, None, 3]),
        ("auto", [None, None, None, 3]),
    ],
)
def test_mirrored_clips_have_the_label_of_what_they_show(flip: str, expected: list[int | None] | None) -> None:
    assert mirrors_by_flag(flip, SIDES) == expected


@pytest.mark.parametrize(("flip", "told"), [("auto", True), ("label", False), ("on", False), ("off", False)])
def test_the_flip_that_was_asked_for_reaches_the_clips(
    flip: str, told: bool, own_labelled: Path, tmp_path: Path, program: Program
) -> None:
    for split in LABELLED_VIDEOS:
        for old, new in zip(LABELS, ["look left", "look right", "wave"], strict=True):
            (own_labelled / split / old).rename(own_labelled / split / new)
    flags = ["--flip", flip, "--epochs", 1]
    out = program(*supervised_run(own_labelled, tmp_path / "run", *flags))
    assert ("clips of 2 classes are not mirrored, as of 'look left' (--flip label|on|off)" in out) == told
    trainer = trainer_of(supervised_run(own_labelled, tmp_path / "other", *flags))
    assert trainer.clips.mirror == mirrors_by_flag(flip, trainer.classes)


# Videos that cannot be read ------------------------------------------------------------------------------------------


def damage(*videos: Path) -> None:
    for frame in (frame for video in videos for frame in video.iterdir()):
        frame.write_bytes(frame.read_bytes()[:200])


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_training_video_stops_the_run_or_another_one_stands_in(
    workers: int, own_labelled: Path, tmp_path: Path, program: Program
) -> None:
    damage(own_labelled / "train/wave/wave_001")
    argv = supervised_run(own_labelled, tmp_path / "run", "--num_workers", workers)
    assert_says(program.fails(*argv), r"train/wave/wave_001/\d\.jpg is damaged .* --on_bad_video skip")
    out = program("-c", tmp_path / "run", "-r", "--on_bad_video", "skip", "--num_workers", workers)
    told = re.findall(r"^left out: .*wave_001/.*$", out, re.MULTILINE)
    assert len(set(told)) == len(told) > 0
    assert len(rows(tmp_path / "run")) == 6


def test_a_bad_test_video_stops_the_test_or_is_left_out(
    own_labelled: Path, finished: Path, own_run: Path, program: Program
) -> None:
    damage(own_labelled / "test/clap/clap_001", own_labelled / "test/wave/wave_002")
    test = ["-c", own_run, "--test_only", "--dataset", own_labelled, "--num_workers", 0]
    before = results(own_run)
    assert_says(program.fails(*test), r"test/clap/clap_001/\d\.jpg is damaged .* --on_bad_video skip")
    assert results(own_run) == before
    out = program(*test, "--on_bad_video", "skip")
    assert len(re.findall(r"^left out: ", out, re.MULTILINE)) == 2
    found = results(own_run)
    assert (found["videos"], found["left_out"]) == (7, 2)
    kept = [0, 2, 3, 4, 5, 6, 7]
    expected = ViewScores.load(finished / "scores.npz")
    scores = ViewScores.load(own_run / "scores.npz")
    assert scores.videos == [expected.videos[number] for number in kept]
    np.testing.assert_allclose(scores.logits, expected.logits[kept], rtol=1e-5)
    np.testing.assert_array_equal(scores.labels, expected.labels[kept])


def test_a_test_of_bad_videos_alone_is_one_sentence(own_labelled: Path, own_run: Path, program: Program) -> None:
    damage(*own_labelled.glob("test/*/*"))
    flags = ["--dataset", own_labelled, "--num_workers", 0, "--on_bad_video", "skip"]
    sentence = program.fails("-c", own_run, "--test_only", *flags)
    assert_says(sentence, "none of the 9 videos of .*test could be read: .*test/clap/clap_000/2.jpg is damaged")


# Motion --------------------------------------------------------------------------------------------------------------

SMALL_NETWORK = """
from torch import nn
from backbones.backbone import FrameBackbone, FrameNet
from backbones.tsm import Shift
from clips.transforms import InputSpec


def build(*, seq_len, shift=False):
    net = {"conv1": nn.Conv2d(3, 16, 5, stride=2, padding=2), "relu1": nn.ReLU()}
    if shift:
        net["shift"] = Shift(4)
    net |= {"conv2": nn.Conv2d(16, 16, 5, stride=2, padding=2), "relu2": nn.ReLU()}
    spec = InputSpec(size=16, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    return FrameBackbone(FrameNet(net), feature_dim=16, input_spec=spec, seq_len=seq_len)
"""


@pytest.fixture
def moving(tmp_path: Path) -> Path:
    """Four bars that move from left to right, and the same frames in the opposite order."""
    for number in range(4):
        frames = np.full((4, 18, 18, 3), 60, dtype=np.uint8)
        for time in range(4):
            frames[time, :, 3 * time + number : 3 * time + number + 3] = 230 - 20 * number
        for split in ("train", "val"):
            for label, order in (("onwards", frames), ("backwards", frames[::-1])):
                folder = tmp_path / "moving" / split / label / str(number)
                folder.mkdir(parents=True)
                for time, frame in enumerate(order, start=1):
                    Image.fromarray(frame).save(folder / f"{time}.png")
    return tmp_path / "moving"


@pytest.mark.parametrize(("shift", "accuracy"), [("true", 100), ("false", 50)])
def test_what_only_the_order_of_frames_tells_apart_needs_a_network_that_sees_it(
    shift: str, accuracy: float, moving: Path, tmp_path: Path, program: Program
) -> None:
    """TSM learns its training clips, TSN stays at chance: to it a clip and its reverse are the same set of frames."""
    (tmp_path / "small.py").write_text(SMALL_NETWORK)
    flags = ["--backbone", f"{tmp_path}/small.py:build", "--backbone_options", f"shift={shift}", "--seq_len", 4]
    learns = [
        "--epochs",
        60,
        "--batch_size",
        8,
        "-lr",
        0.2,
        "--lr_steps",
        40,
        "--layer_rates",
        "tsm_fc5",
        "--dropout",
        0,
    ]
    pixels = ["--crop", "random", "--flip", "off"]
    program(*supervised_run(moving, tmp_path / "run", *flags, *learns, *pixels, "--val_freq", 0))
    assert results(tmp_path / "run")["accuracy"] == accuracy
    assert results(tmp_path / "run")["videos"] == 8


# The command line ----------------------------------------------------------------------------------------------------


def test_every_flag_has_its_help() -> None:
    parser = supervised_settings.build_parser()
    flags = [action for group in parser._action_groups for action in group._group_actions]
    assert len(flags) > 60
    assert [action.dest for action in flags if len(action.help or "") < 5] == []
    assert all(group.title for group in parser._action_groups if group._group_actions)


def test_help_begins_with_commands_and_shows_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        run_supervised.main(["--help"])
    out = " ".join(capsys.readouterr().out.split())
    assert stop.value.code == 0
    assert "python run_supervised.py -c" in out
    assert "(default: tsm_resnet50)" in out


def test_the_list_names_backbones(program: Program) -> None:
    assert re.search(r"^ +tsm_resnet50 ", program("--list"), re.MULTILINE)


def test_recipes_are_read_and_flags_after_them_win(labelled: Path, tmp_path: Path, program: Program) -> None:
    (tmp_path / "recipe.args").write_text("--epochs 1 --momentum 0.5  # a comment\n--lr_steps 3 5\n")
    program(*supervised_run(labelled, tmp_path / "run", f"@{tmp_path}/recipe.args", "--momentum", 0.7))
    args = json.loads((tmp_path / "run/args.json").read_text())
    assert (args["epochs"], args["momentum"], args["lr_steps"]) == (1, 0.7, [3, 5])


def test_ctrl_c_says_how_to_go_on(
    labelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(self: Trainer) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "train", stop)
    assert run_supervised.main(supervised_run(labelled, tmp_path / "run")) == 130
    assert capsys.readouterr().err == "stopped; resume from the last checkpoint with -r\n"


@pytest.mark.parametrize(
    ("flags", "pattern"),
    [
        (["--backbone", "tsm_resnet5"], "unknown backbone 'tsm_resnet5': expected one of .*did you mean 'tsm_resnet"),
        (["--backbone_options", "depth=3"], "backbone conv4 has no option depth"),
        (["--backbone", "tdn_resnet50", "--backbone_options", "early=true"], "has no option|full stacks|--seq_len"),
        (["--lr_type", "linear"], "--lr_type.*invalid choice: 'linear'"),
        (["--num_crops", 2], "--num_crops.*invalid choice"),
        (["--epoch", 3], "unrecognized arguments"),
        (["--num_c", 3], "unrecognized arguments"),
        (["--epochs", -1], "--epochs is -1: expected 0 or more"),
        (["--batch_size", 0], "--batch_size is 0: expected 1 or more"),
        (["--batch_size", 13], "a batch of 13 clips was asked for, of 12 videos"),
        (["-lr", 0], "--learning_rate is 0.0: expected more than 0"),
        (["-lr", "nan"], "--learning_rate is nan: expected more than 0"),
        (["--weight_decay", "nan"], "--weight_decay is nan: expected 0 or more"),
        (["--dropout", 1], "--dropout is 1.0: expected 0 or more, less than 1"),
        (["--label_smoothing", -0.1], "--label_smoothing is -0.1: expected 0 or more"),
        (["--mixup", -1], "--mixup is -1.0: expected 0 or more"),
        (["--img_size", 8], "--img_size is 8: expected 16 to 4096"),
        (["--img_size", 0], "--img_size is 0: expected 16 to 4096"),
        (["--crop_size", 0], "--crop_size is 0: expected 16 to 4096"),
        (["--short_side", 0], "--short_side is 0: expected 16 to 4096"),
        (["--crop_size", 20, "--short_side", 18], "crops of 20 pixels do not fit into frames whose shorter side is 18"),
        (["--img_size", 20, "--crop", "scale_jitter", "--scale_range", 18, 24], "18 to 24 pixels, and 20 are cropped from it"),
        (["--crop", "scale_jitter", "--scale_range", 30, 20], "the smaller one first"),
        (["--scale_range", 30, 40], "--scale_range is for --crop scale_jitter, not multi_scale"),
        (["--num_clips", 3], "sampling tsm has 1 or 2 test clips, 3 were asked for"),
        (["--stride", 2], "--stride is for --sampling study_dense, not tsm"),
        (["--frames_per_group", 2], "--frames_per_group is for --sampling study, not tsm"),
        (["--sampling", "study", "--frames_per_group", 2], "do not divide into groups of 2 frames"),
        (["--interval", 1], "an interval of 1 .* with 1 frame"),
        (["--warmup_epochs", 3], "--warmup_epochs is 3.0, of 2 epochs"),
        (["--nesterov", "--momentum", 0], "--nesterov is a kind of momentum"),
        (["--frames_per_call", 6], "--frames_per_call changes what batch norms .* --clips_per_call, or add --bn frozen"),
        (["--compile", "--checkpoint_activations"], "give one of them"),
        (["--num_gpus", 99], "--num_gpus is 99, but this machine has"),
        (["-pt", "weights.pth"], "--no_pretrained and --pretrained_backbone contradict each other"),
        (["--dataset", "nowhere"], "no data set at nowhere"),
        (["--val_list", "val.txt"], "expected either --dataset, a folder of classes, or --train_list"),
        (["--multi_label"], "--multi_label is for lists of videos"),
        (["--root", "videos"], "--root is for lists of videos"),
        (["--class_names", "names.txt"], "--class_names is for lists of videos"),
        (["--first_label", 1], "--first_label is for lists of videos"),
        (["-r"], "nothing to resume.*leave out -r"),
        (["-r", "--test_only"], "give one of them"),
        (["--test_only"], "holds no checkpoint to test.*--epochs 0"),
        (["--test_only", "-m", "absent.pt"], "no checkpoint absent.pt"),
        (["-m", "absent.pt"], "no checkpoint absent.pt"),
        (["-m", BEST, "--val_freq", 0], f"no checkpoint {BEST}"),
        (["--timeout", 0], "--timeout is 0.0: expected more than 0"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, list) else "",
)  # fmt: skip
def test_wrong_flags_are_one_sentence_before_anything_is_written(
    flags: list[Any], pattern: str, labelled: Path, tmp_path: Path, program: Program
) -> None:
    assert_says(program.fails(*supervised_run(labelled, tmp_path / "run", *flags)), pattern)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("flags", "pattern"),
    [
        ([], "expected either --dataset, a folder of classes, or --train_list"),
        (["--train_list", "LIST"], "lists name videos from a folder on: give it with --root"),
        (["--train_list", "LIST", "--root", "ROOT", "--format", "frames"], "--format is for --dataset"),
        (["--train_list", "LIST", "--root", "ROOT"], "there are no val videos: give --val_list"),
        (["--train_list", "LIST", "--val_list", "LIST", "--root", "ROOT", "--list_form", "unlabelled"], "none .* has a label"),
        (["--val_list", "LIST", "--root", "ROOT"], "there are no train videos: give --train_list"),
        (["--train_list", "LIST", "--root", "ROOT", "--test_on", "test"], "there are no test videos: give --test_list"),
        (["--train_list", "absent.txt", "--root", "ROOT"], "could not read absent.txt"),
        (["--train_list", "LIST", "--root", "nowhere"], "which is not in nowhere"),
        (["--train_list", "LIST", "--root", "ROOT", "--multi_label", "--label_smoothing", 0.1], "--multi_label has neither"),
        (["--train_list", "LIST", "--root", "ROOT", "--multi_label", "--fusion", "probabilities"], "--multi_label has nei"),
        (["--train_list", "LIST", "--root", "ROOT", "--class_names", "absent.txt"], "could not read absent.txt"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, list) else "",
)  # fmt: skip
def test_wrong_lists_are_one_sentence_before_anything_is_written(
    flags: list[Any], pattern: str, labelled: Path, tmp_path: Path, program: Program
) -> None:
    (tmp_path / "list.txt").write_text("".join(f"train/clap/clap_00{v} {v + 1} 6\n" for v in range(4)))
    given = {"LIST": tmp_path / "list.txt", "ROOT": labelled}
    argv = listed_run(tmp_path / "run", *(given.get(word, word) for word in flags), "--batch_size", 2)
    assert_says(program.fails(*argv), pattern)
    assert not (tmp_path / "run").exists()


def test_two_sources_of_weights_are_refused(labelled: Path, tmp_path: Path, program: Program) -> None:
    argv = [flag for flag in supervised_run(labelled, tmp_path / "run") if flag != "--no_pretrained"]
    sentence = program.fails(*argv, "-pt", "a.pt", "--tune_from", "b.pt")
    assert_says(sentence, "--tune_from and --pretrained_backbone both give the backbone its weights")
    assert not (tmp_path / "run").exists()


def test_a_run_without_a_folder_asks_for_one(labelled: Path, program: Program) -> None:
    assert "give -c FOLDER" in program.fails("--dataset", labelled)


def test_a_run_is_not_started_over(labelled: Path, own_run: Path, program: Program) -> None:
    before = (own_run / FINAL).read_bytes()
    assert_says(program.fails(*supervised_run(labelled, own_run)), "already holds a run; add -r .* or give another -c")
    assert (own_run / FINAL).read_bytes() == before


def test_a_network_that_sees_single_frames_is_tested_on_clips_of_any_length(own_run: Path, program: Program) -> None:
    program("-c", own_run, "--test_only", "--seq_len", 4)
    assert results(own_run)["protocol"].startswith("4 frames")
    checkpoint = load_checkpoint(own_run / FINAL)
    checkpoint["args"]["backbone"] = "tsm_resnet18"
    torch.save(checkpoint, own_run / "tsm.pt")
    sentence = program.fails("-c", own_run, "--test_only", "-m", "tsm.pt", "--seq_len", 4)
    assert_says(sentence, "was trained with --seq_len 3, not 4")


@pytest.mark.parametrize("flag", ["--backbone", "--backbone_options"])
def test_a_test_with_another_network_is_refused(flag: str, own_run: Path, program: Program) -> None:
    value = {"--backbone": "resnet18", "--backbone_options": "width=4"}[flag]
    assert_says(
        program.fails("-c", own_run, "--test_only", flag, value),
        f"was trained with {flag} .*, not .*{value}|'width': 4",
    )
