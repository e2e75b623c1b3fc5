"""What methods of later years ask of the training loop: rates and decays by task and by part, labels of training classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import CLASSES, Program, tiny_run

import run
from engine.settings import parse_args
from methods import METHODS
from methods.checkpoints import load_head
from utils import FINAL, RunFolder, load_checkpoint


def learner(dataset: Path, folder: Path, *flags: Any) -> run.Learner:
    return run.Learner(parse_args(tiny_run(dataset, folder, *flags), METHODS), RunFolder(folder))


@pytest.mark.parametrize(
    ("flags", "rates"),
    [
        ("--sch 3 5", [1, 1, 1, 0.1, 0.1, 0.01, 0.01]),
        ("--lr_steps 3 5 --lr_factors 0.5 0.2", [1, 1, 1, 0.5, 0.5, 0.2, 0.2]),
        ("--warmup_tasks 4 --sch 5", [0.25, 0.5, 0.75, 1, 1, 0.1, 0.1]),
        ("--warmup_tasks 4 --warmup_from 0.2", [0.4, 0.6, 0.8, 1, 1, 1, 1]),
    ],
)
def test_the_rate_follows_tasks(flags: str, rates: list[float], dataset: Path, tmp_path: Path) -> None:
    made = learner(dataset, tmp_path / "run", "-lr", 2, *flags.split())
    assert [made.learning_rate_at(task) for task in range(7)] == pytest.approx([2 * rate for rate in rates])


def test_parts_have_rates_and_decays_of_their_own(dataset: Path, tmp_path: Path) -> None:
    flags = ["--method", "hyrsm", "--backbone_rate", 0.1, "--no_norm_decay", "--weight_decay", 0.01]
    made = learner(dataset, tmp_path / "run", *flags)
    found = {
        id(parameter): (group["lr_mult"], group["weight_decay"])
        for group in made.steps.optimizer.param_groups
        for parameter in group["params"]
    }
    for name, parameter in made.model.named_parameters():
        rate = 0.1 if name.startswith("backbone.") else 1.0
        assert found[id(parameter)] == (rate, 0.0 if parameter.ndim < 2 else 0.01), name


def test_one_step_by_hand(dataset: Path, tmp_path: Path) -> None:
    """SGD: the backbone moves a tenth as far as it does without its factor, and vectors do not decay."""
    flags = ["-lr", 0.5, "--weight_decay", 0.1, "-i", 1, "--tasks_per_batch", 1, "--val_iters", 0]
    ends = []
    for more in ([], ["--backbone_rate", 0.1], ["--no_norm_decay"]):
        made = learner(dataset, tmp_path / f"run {len(ends)}", *flags, *more)
        before = {name: tensor.clone() for name, tensor in made.model.named_parameters()}
        made.run.start({}, ["run.py"])
        made.train()
        ends.append({name: tensor.detach() - before[name] for name, tensor in made.model.named_parameters()})
        made.run.close()
    whole, slow, undecayed = ends
    for name, moved in whole.items():
        part = 0.1 if name.startswith("backbone.") else 1.0
        torch.testing.assert_close(slow[name], moved * part, rtol=1e-4, atol=1e-7)
        decay = 0.5 * 0.1 * before[name] if moved.ndim < 2 else torch.zeros(())
        torch.testing.assert_close(undecayed[name], moved + decay, rtol=1e-4, atol=1e-7)


def test_long_gradients_are_shortened(dataset: Path, tmp_path: Path) -> None:
    flags = ["-lr", 0.5, "-i", 1, "--tasks_per_batch", 1, "--val_iters", 0]
    lengths = []
    for clip in (0, 1e-3):
        made = learner(dataset, tmp_path / f"run {clip}", *flags, "--clip_gradient", clip)
        before = [parameter.detach().clone() for parameter in made.model.parameters()]
        made.run.start({}, ["run.py"])
        made.train()
        moved = [now.detach() - then for now, then in zip(made.model.parameters(), before, strict=True)]
        lengths.append(float(torch.cat([part.flatten() for part in moved]).double().norm()))
        made.run.close()
    assert lengths[0] > 1e-2
    assert lengths[1] == pytest.approx(0.5 * 1e-3, rel=1e-3)


def test_queries_alone_are_mirrored(dataset: Path, tmp_path: Path) -> None:
    on, queries = (learner(dataset, tmp_path / flip, "--flip", flip, "-qpc", 4) for flip in ("on", "queries"))
    differ = {"support_set": 0, "target_set": 0}
    for index in range(6):
        both, own = on.datasets["train"][index], queries.datasets["train"][index]
        for name in differ:
            differ[name] += int(not torch.equal(both[name], own[name]))
    assert differ["target_set"] == 0
    assert differ["support_set"] > 0


@pytest.mark.parametrize("how", [[], ["--freeze_backbone"]])
def test_a_method_learns_the_training_classes_and_is_tested_without_them(
    how: list[str], dataset: Path, tmp_path: Path, program: Program
) -> None:
    program(*tiny_run(dataset, tmp_path / "run", "--method", "hyrsm", "-m", FINAL, *how))
    trained = load_checkpoint(tmp_path / "run" / FINAL)["model"]
    assert len(trained["aux_classifier.weight"]) == len(CLASSES["train"])
    program("-c", tmp_path / "test", "--test_only", "-m", tmp_path / "run" / FINAL, "--num_workers", 0)
    model, *_ = load_head(tmp_path / "run" / FINAL)
    assert model.aux_classifier is None
    with_it, without = ((tmp_path / name / "predictions.csv").read_bytes() for name in ("run", "test"))
    assert with_it == without


def test_stored_features_come_with_the_classes_that_frames_come_with(dataset: Path, tmp_path: Path) -> None:
    made = learner(dataset, tmp_path / "run", "--way_test", 3)
    episodes = made.datasets["test"]
    with made.calls.feature_store(episodes) as store:
        stored = list(made.calls.of_evaluation(episodes, 9, store))
    frames = list(made.calls.of_evaluation(episodes, 9, None))
    for name in ("real_support_labels", "real_target_labels", "support_labels", "target_labels"):
        np.testing.assert_array_equal(
            torch.cat([call[name] for call in stored]), torch.cat([call[name] for call in frames])
        )


def test_a_loss_that_sees_frames_is_not_trained_on_features(dataset: Path, tmp_path: Path, program: Program) -> None:
    flags = ["--method", "molo", "--freeze_backbone", "--backbone", "resnet18", "--img_size", 32]
    assert "--molo_reconstruction draws frames and --freeze_backbone trains on features" in program.fails(
        *tiny_run(dataset, tmp_path / "run", *flags)
    )


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ("--lr_factors 0.1", None),
        ("--sch 3 5 --lr_factors 0.1", "has 1 numbers for 2 of --sch"),
        ("--no_norm_decay", "no effect without --weight_decay"),
        ("--nesterov", "--nesterov is a kind of momentum"),
        ("--warmup_tasks -1", "--warmup_tasks is -1: expected 0 or more"),
        ("--warmup_from 0.2", "--warmup_from has no effect without --warmup_tasks"),
        ("--backbone_rate 0", "--backbone_rate is 0.0: expected more than 0"),
        ("--backbone_rate 0.1 --freeze_backbone", "--backbone_rate has no effect"),
        ("--method otam --train_layers none", "nothing is left to train of --method otam"),
    ],
)
def test_contradictions_are_one_sentence(
    flags: str, sentence: str | None, dataset: Path, tmp_path: Path, program: Program
) -> None:
    argv = tiny_run(dataset, tmp_path / "run", *flags.split())
    if sentence is None:
        program(*argv)
    else:
        assert sentence in program.fails(*argv)


def test_so_is_a_users_own_loss_refused(dataset: Path, tmp_path: Path, program: Program) -> None:
    file = tmp_path / "own.py"
    file.write_text("from model import CNN_TRX\n\n\nclass Sees(CNN_TRX):\n    loss_needs_pixels = True\n")
    flags = ["--method", f"{file}:Sees", "--freeze_backbone"]
    assert "sees frames: leave it out" in program.fails(*tiny_run(dataset, tmp_path / "run", *flags))
