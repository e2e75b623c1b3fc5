"""Class text on its way to the methods that use it: by name, in every kind of call, made once; and what is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import CLASSES, Program, tiny_run
from run_folders import results, rows, weights
from script_runs import Script

import run
from backbones import build_backbone
from backbones.text import read_text_features
from engine.class_text import RunText
from engine.processes import Processes
from engine.settings import parse_args
from methods import METHODS
from model import CNN_FSHead
from scripts import explain_episode, predict
from utils import LATEST, RunFolder, UserError


@pytest.fixture(autouse=True)
def _no_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports are drawn in other tests."""
    monkeypatch.setattr(run, "write_report", lambda *_: None)


CLIP_FSAR = ["--method", "clip_fsar", "--query_per_class", 2]


def learner(dataset: Path, folder: Path, *flags: Any) -> run.Learner:
    return run.Learner(parse_args(tiny_run(dataset, folder, *flags), METHODS), RunFolder(folder))


# By name -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("freeze", [[], ["--freeze_backbone"]], ids=["frames", "stored features"])
def test_every_call_holds_the_text_of_its_own_classes(
    freeze: list[str], dataset: Path, tmp_path: Path, text_features: Path
) -> None:
    vectors = torch.load(text_features)
    flags = ["--text_features", text_features, "--tasks_per_call", 2, "--way_test", 3]
    made = learner(dataset, tmp_path / "run", *CLIP_FSAR, *flags, *freeze)

    def check(call: dict[str, Any], role: str) -> None:
        classes = made.splits[role].classes
        for labels, text in zip(call["batch_class_list"], call["class_text"], strict=True):
            assert torch.equal(text, torch.stack([vectors[classes[label]] for label in labels]))

    train = made.datasets["train"]
    batches = list(made.processes.shard(range(4), 2, 2))
    calls = list(made.calls.of_training(train, batches))
    assert len(calls) == 2
    for call in calls:
        check(call, "train")
        assert call["base_text"].shape == (2, 7, 64)
        assert torch.equal(call["base_text"][1], torch.stack([vectors[name] for name in CLASSES["train"]]))
    for role in ("val", "test"):
        dataset_of = made.datasets[role]
        with made.calls.feature_store(dataset_of) as store:
            for kind in (store, None):
                tested = list(made.calls.of_evaluation(dataset_of, 3, kind))
                assert sum(len(call["class_text"]) for call in tested) == 3
                for call in tested:
                    check(call, role)
                    assert "base_text" not in call


def test_another_order_of_classes_changes_no_name(dataset: Path, tmp_path: Path, text_features: Path) -> None:
    made = learner(dataset, tmp_path / "run", *CLIP_FSAR, "--text_features", text_features)
    text, split = made.calls.text, made.splits["test"]
    shuffled = dataclasses.replace(split, classes=split.classes[::-1])
    assert torch.equal(text.of(shuffled), text.of(split).flip(0))
    in_another_order = dict(reversed(torch.load(text_features).items()))
    torch.save(in_another_order, tmp_path / "other.pt")
    other = learner(dataset, tmp_path / "run", *CLIP_FSAR, "--text_features", tmp_path / "other.pt")
    assert torch.equal(other.calls.text.of(split), text.of(split))


def test_names_in_any_letters_are_told_apart(tmp_path: Path) -> None:
    torch.save({"跳": torch.zeros(2), "跑": torch.ones(2), "Über_holen": torch.full((2,), 2.0)}, tmp_path / "text.pt")
    found = read_text_features(tmp_path / "text.pt", ["跑", "跳", "über holen"])
    assert found[:, 0].tolist() == [1, 0, 2]


def test_the_first_process_makes_it_for_all(dataset: Path, tmp_path: Path, text_features: Path) -> None:
    made = learner(dataset, tmp_path / "run", *CLIP_FSAR, "--text_features", text_features)
    sent: list[Any] = []

    class First(Processes):
        def gather(self, value: Any) -> list[Any]:
            sent.append(value)
            return [value, None]

    class Second(Processes):
        is_first = False

        def gather(self, value: Any) -> list[Any]:
            assert value is None
            return [sent[0], value]

    args, splits = made.args, made.splits.values()
    first = RunText(args, made.model, splits, First(), tmp_path)
    args.text_features = tmp_path / "a file that only the first process sees"
    second = RunText(args, made.model, splits, Second(), tmp_path)
    assert torch.equal(first.of(made.splits["val"]), second.of(made.splits["val"]))


# A run with the tower of a file of weights ---------------------------------------------------------------------------


@pytest.fixture
def clip_flags(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Any]:
    """A CLIP of both towers, built as that of ViT-B/16 is and much smaller."""
    pytest.importorskip("open_clip", reason="needs pip install -r requirements-foundation.txt")
    from test_foundation_images import SIZE, TRANSFORMER, clip, timm

    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, **options: create(name, **{**options, **TRANSFORMER}))
    torch.save(clip(2).state_dict(), tmp_path / "ViT-B-16.pt")
    options = ["--backbone_options", "pool=proj", "activation=quick_gelu"]
    small = ["--backbone", "clip_vit_b16", "--img_size", SIZE, *options]
    return [*CLIP_FSAR, *small, "-pt", tmp_path / "ViT-B-16.pt"]


def own_run(dataset: Path, folder: Path, flags: list[Any]) -> list[Any]:
    return [
        flag for flag in tiny_run(dataset, folder, *flags, "--opt", "adam", "-lr", 0.001) if flag != "--no_pretrained"
    ]


def test_a_run_on_clip_trains_resumes_to_the_bit_tests_and_is_shown(
    dataset: Path,
    tmp_path: Path,
    clip_flags: list[Any],
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    prompts = ["--prompt", "a video of {}.", "someone does {}"]
    assert run.main(list(map(str, own_run(dataset, whole, [*clip_flags, *prompts])))) == 0
    (kept,) = whole.glob("class_text_*.pt")
    assert len(torch.load(kept)["features"]) == sum(map(len, CLASSES.values()))
    found = results(whole)
    assert (found["uses_class_text"], found["inductive"], found["prompt"]) == (True, True, prompts[1:])
    assert found["marks"] == ["uses class names"]
    assert "uses class names" in capfd.readouterr().out

    assert run.main(list(map(str, own_run(dataset, broken, [*clip_flags, *prompts, "-i", 2])))) == 0
    with monkeypatch.context() as patch:  # what was made is not made again
        patch.setattr("backbones.text.text_tower", None)
        assert run.main(["-c", str(broken), "-r", "-i", "4"]) == 0
    assert rows(broken, "predictions.csv") == rows(whole, "predictions.csv")
    learnt, resumed = weights(whole, LATEST), weights(broken, LATEST)
    assert [name for name in learnt if not torch.equal(learnt[name], resumed[name])] == []

    tests = {"other prompt": ["--prompt", "{}"], "by name": ["--clip_fsar_text", "1"]}
    answers = {}
    for name, flags in tests.items():
        argv = [
            "-c",
            tmp_path / name,
            "--test_only",
            "-m",
            whole / "checkpoint_best_val.pt",
            *flags,
            "--num_workers",
            0,
        ]
        assert run.main(list(map(str, argv))) == 0
        answers[name] = [row["confidence"] for row in rows(tmp_path / name, "predictions.csv")]
    answers["own"] = [row["confidence"] for row in rows(whole, "predictions.csv")]
    assert len(set(map(tuple, answers.values()))) == 3
    assert results(tmp_path / "other prompt")["prompt"] == ["{}"]

    checkpoint = ["--checkpoint", whole / LATEST]
    explained = [*checkpoint, "--way", 3, "-o", tmp_path / "episode.svg"]
    assert explain_episode.main(list(map(str, explained))) == 0
    picture = (tmp_path / "episode.svg").read_text(encoding="utf-8")
    assert "which name each of its steps is like" in picture
    shown = [
        *checkpoint,
        "--support",
        dataset / "val",
        "--query",
        dataset / "val/eat/eat_001",
        "--json",
        tmp_path / "a.json",
    ]
    assert predict.main(list(map(str, shown))) == 0


def test_scripts_take_class_text_from_elsewhere(
    dataset: Path, tmp_path: Path, text_features: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [*CLIP_FSAR, "--text_features", text_features, "-i", 0, "--clip_fsar_text", 1]
    assert run.main(tiny_run(dataset, tmp_path / "run", *flags)) == 0
    script = Script(predict.main, capsys)
    words = ["--support", dataset / "val", "--query", dataset / "val/eat/eat_001"]
    asked = ["--checkpoint", tmp_path / "run" / LATEST, *words]
    vectors = torch.load(text_features)
    torch.save({name: vectors[name].flip(0) for name in vectors}, tmp_path / "other.pt")
    assert script(*asked) != script(*asked, "--text_features", tmp_path / "other.pt")
    assert "no file nowhere.pt" in script.fails(*asked, "--text_weights", "nowhere.pt")
    both = ["--text_weights", "nowhere.pt", "--text_features", tmp_path / "other.pt"]
    assert "give one of them" in script.fails(*asked, *both)
    assert run.main(tiny_run(dataset, tmp_path / "tsn", "-i", 0)) == 0
    refused = script.fails("--checkpoint", tmp_path / "tsn" / LATEST, *words, "--text_features", text_features)
    assert "--text_features has no effect on --method tsn, which uses no class names" in refused


# What is refused -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--method", "clip_fsar"],
            "--method clip_fsar compares videos with the names of classes: give weights of CLIP",
        ),
        (["--method", "trx", "--prompt", "{}"], "--prompt has no effect on --method trx"),
        (["--method", "clip_fsar", "--text_features", "FILE", "--prompt", "{}"], "--prompt makes the class text"),
        (["--method", "clip_fsar", "--text_features", "narrow.pt"], "found 6 wide, with features that are 64 wide"),
        (["--method", "clip_fsar", "--text_features", "few.pt"], "has no features of class 'Closing [something]'"),
    ],
)
def test_what_cannot_be_had_is_one_sentence_and_leaves_nothing(
    flags: list[str], message: str, dataset: Path, tmp_path: Path, text_features: Path, program: Program
) -> None:
    vectors = torch.load(text_features)
    torch.save({name: vector[:6] for name, vector in vectors.items()}, tmp_path / "narrow.pt")
    torch.save({"run": vectors["run"]}, tmp_path / "few.pt")
    files = {"FILE": text_features, "narrow.pt": tmp_path / "narrow.pt", "few.pt": tmp_path / "few.pt"}
    sentence = program.fails(*tiny_run(dataset, tmp_path / "run", *[files.get(flag, flag) for flag in flags]))
    assert message in sentence
    assert not (tmp_path / "run").exists()


def test_weights_without_a_text_tower_say_so(dataset: Path, tmp_path: Path) -> None:
    torch.save(build_backbone("conv4", seq_len=3).state_dict(), tmp_path / "conv4.pt")
    args = parse_args(tiny_run(dataset, tmp_path / "run", *CLIP_FSAR), METHODS)
    args.no_pretrained, args.pretrained_backbone = False, str(tmp_path / "conv4.pt")
    with pytest.raises(UserError) as error:
        run.Learner(args, RunFolder(tmp_path / "run"))
    assert "holds no text tower of CLIP: give the weights of both towers, or --text_features FILE" in str(error.value)
    assert not (tmp_path / "run").exists()


# Methods of one's own ------------------------------------------------------------------------------------------------

OWN = """
import torch
from model import CNN_FSHead
from methods.clip_fsar import CNN_ZeroShot


class Names(CNN_FSHead):
    uses_class_text = True

    def __init__(self, args):
        super().__init__(args)
        self.project = torch.nn.Linear(self.backbone.feature_dim, 6)

    def classify(self, support, labels, target, class_text):
        return self.project(target.mean(dim=2)) @ class_text.mT

    def loss(self, task, outputs):
        assert task["base_text"].shape == (7, 6)
        return super().loss(task, outputs)


class OnFrames(CNN_FSHead):
    uses_class_text = True

    def forward(self, support_images, support_labels, target_images, class_text):
        support, target = self.get_feats(support_images, target_images)
        return {"logits": target.mean(dim=1)[:, :6] @ class_text.mT}


class WithoutNames(CNN_ZeroShot):
    def forward(self, support_images, support_labels, target_images):
        return {"logits": self.get_feats(support_images, target_images)[1].mean(dim=1)[:, :2]}
"""


@pytest.mark.parametrize("name", ["Names", "OnFrames"])
def test_a_method_of_ones_own_states_that_it_uses_names(
    name: str, dataset: Path, tmp_path: Path, text_features: Path
) -> None:
    (tmp_path / "own.py").write_text(OWN)
    torch.save({name: vector[:6] for name, vector in torch.load(text_features).items()}, tmp_path / "text.pt")
    flags = ["--method", f"{tmp_path}/own.py:{name}", "--text_features", tmp_path / "text.pt"]
    assert run.main(tiny_run(dataset, tmp_path / "run", *flags)) == 0
    assert results(tmp_path / "run")["uses_class_text"]


def test_a_class_with_a_forward_of_its_own_that_says_nothing_gets_no_names(dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN)
    assert run.main(tiny_run(dataset, tmp_path / "run", "--method", f"{tmp_path}/own.py:WithoutNames")) == 0
    assert not results(tmp_path / "run")["uses_class_text"]
    assert not CNN_FSHead.uses_class_text
