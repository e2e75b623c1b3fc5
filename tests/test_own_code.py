"""Code that users bring: where it is found, what it may import, whose fault an error is; and a checkpoint gives no orders."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Program, tiny_run

import utils
from backbones.own_code import import_from_file
from methods.checkpoints import load_head
from utils import BEST, FINAL, UserError, load_checkpoint

MINE = """
from model import CNN_FSHead

class Mine(CNN_FSHead):
    def classify(self, support, labels, target):
        return target.mean(2) @ support.mean(2).mT[..., :2]
"""

# As TRX-style files were released: a base class of their own, frames of all clips in one batch, no word of ours.
RELEASED = """
import torch
import torch.nn as nn
import torch.nn.functional as F
from utils import split_first_dim_linear

class CNN_FSHead(nn.Module):
    def __init__(self, args):
        super(CNN_FSHead, self).__init__()
        self.args = args
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1))

    def get_feats(self, support_images, target_images):
        support_features = self.backbone(support_images).squeeze()
        target_features = self.backbone(target_images).squeeze()
        dim = int(support_features.shape[1])
        return (support_features.reshape(-1, self.args.seq_len, dim), target_features.reshape(-1, self.args.seq_len, dim))

    def forward(self, support_images, support_labels, target_images):
        raise NotImplementedError

    def distribute_model(self):
        if self.args.num_gpus > 1:
            self.backbone.cuda(0)

    def loss(self, task_dict, model_dict):
        return F.cross_entropy(model_dict["logits"], task_dict["target_labels"].long())

class CNN_Mean(CNN_FSHead):
    def forward(self, support_images, support_labels, target_images):
        support, target = self.get_feats(support_images, target_images)
        way = len(torch.unique(support_labels))
        prototypes = torch.stack([support[support_labels == k].mean((0, 1)) for k in range(way)])
        return {"logits": -torch.cdist(target.mean(1), prototypes)}
"""


@pytest.fixture(autouse=True)
def _path_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_a_file_may_be_called_as_ours_and_replaces_none_of_ours(tmp_path: Path) -> None:
    """model.py is the name that all forks of TRX use; their utils.py lies beside it."""
    ours = sys.modules["model"], sys.modules["utils"]
    written(tmp_path / "utils.py", "def helper():\n    return 'theirs'\n")
    written(tmp_path / "neighbour.py", "value = 3\n")
    mine = written(
        tmp_path / "model.py",
        f"from utils import helper\nfrom neighbour import value\n{MINE}    made_of = helper(), value\n",
    )
    head = import_from_file(f"{mine}:Mine", "method")
    assert head.made_of == ("theirs", 3)
    assert issubclass(head, sys.modules["model"].CNN_FSHead)
    assert (sys.modules["model"], sys.modules["utils"]) == ours
    assert sys.modules["utils"] is utils
    assert import_from_file(f"{mine}:Mine", "method") is head, "loaded once"


@pytest.mark.parametrize("name", ["model.py", "utils.py", "run.py", "own head.py"])
def test_a_file_of_any_name_trains_and_tests(name: str, dataset: Path, tmp_path: Path, program: Program) -> None:
    method = f"{written(tmp_path / name, MINE)}:Mine"
    program(*tiny_run(dataset, tmp_path / "run", "--method", method, "-i", 2))
    program("-c", tmp_path / "run", "--test_only", "--method", method, "--num_workers", 0)


def test_a_released_class_with_a_base_class_of_its_own_runs(dataset: Path, tmp_path: Path, program: Program) -> None:
    written(tmp_path / "utils.py", "def split_first_dim_linear(x, dims):\n    return x.reshape(*dims, -1)\n")
    method = f"{written(tmp_path / 'model.py', RELEASED)}:CNN_Mean"
    program(*tiny_run(dataset, tmp_path / "run", "--method", method, "-i", 2, "-lr", 0.1))
    trained, untrained = load_checkpoint(tmp_path / "run" / FINAL)["model"], tmp_path / "untrained"
    program(*tiny_run(dataset, untrained, "--method", method, "-i", 0))
    assert not torch.equal(
        trained["backbone.0.weight"], load_checkpoint(untrained / FINAL)["model"]["backbone.0.weight"]
    )
    for flags in (["--freeze_backbone"], ["--bn", "frozen"], ["--checkpoint_activations"], ["--tasks_per_call", 2]):
        assert "leave it out" in program.fails(*tiny_run(dataset, tmp_path / "no", "--method", method, *flags))


@pytest.mark.parametrize(
    ("code", "sentence"),
    [
        ("import nowhere\n" + MINE, r"your own code in .*/mine.py, line 1, raised ModuleNotFoundError"),
        (MINE + "    x = 1 / 0\n", r"mine.py, line 7, raised ZeroDivisionError: division by zero"),
        (MINE.replace("return", "retrun"), r"mine.py is not valid Python: .* \(line 6\)"),
        (MINE + "\n    def __init__(self, args):\n        raise KeyError('a')\n", "line 9, raised KeyError: 'a'"),
        (MINE.replace("return target", "return oops"), "line 6, raised NameError: name 'oops' is not defined"),
        (
            MINE + "\n    def loss(self, task, answer):\n        import sys\n        sys.exit(0)\n",
            "line 10, raised SystemExit",
        ),
        (MINE + "\nimport sys\nsys.exit(0)\n", "line 9, raised SystemExit: 0"),
        (
            "class Mine:\n    def __init__(self, args):\n        pass\n",
            "makes a Mine without forward, loss, distribute_model",
        ),
        pytest.param(
            MINE.replace("return target", "return target.cuda()"),
            "line 6, raised .*(CUDA|NVIDIA)",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
        ),
    ],
)
def test_an_error_in_it_is_told_as_the_users(
    code: str, sentence: str, dataset: Path, tmp_path: Path, program: Program
) -> None:
    method = f"{written(tmp_path / 'mine.py', code)}:Mine"
    first, *traceback = program.fails_in_own_code(*tiny_run(dataset, tmp_path / "run", "--method", method, "-i", 2))
    assert re.search(sentence, first), first
    assert all("run.py" not in line for line in traceback)


def test_a_backbone_that_is_none_is_named(dataset: Path, tmp_path: Path, program: Program) -> None:
    backbone = f"{written(tmp_path / 'net.py', 'def build(seq_len):' + chr(10) + '    return 3' + chr(10))}:build"
    sentence = program.fails(*tiny_run(dataset, tmp_path / "run", "--backbone", backbone))
    assert "gives a int: expected a backbones.Backbone" in sentence


# A checkpoint is data ------------------------------------------------------------------------------------------------


@pytest.fixture
def run_with_own_code(dataset: Path, tmp_path: Path, program: Program) -> tuple[Path, str, Path]:
    """A run folder, its method, and the file that is there once the method's file has been run."""
    mark = tmp_path / "was run"
    file = written(tmp_path / "mine.py", MINE)
    program(*tiny_run(dataset, tmp_path / "run", "--method", f"{file}:Mine"))
    written(file, f"open({str(mark)!r}, 'w').close()\n{MINE}")
    for name in [name for name in sys.modules if name.startswith("own_code_")]:
        del sys.modules[name]  # as in a new process
    return tmp_path / "run", f"{file}:Mine", mark


@pytest.mark.parametrize("how", [["--test_only"], ["-r", "-i", 6]])
def test_code_runs_only_where_the_command_line_names_it(
    how: list[Any], run_with_own_code: tuple[Path, str, Path], program: Program
) -> None:
    folder, method, mark = run_with_own_code
    sentence = program.fails("-c", folder, *how, "--num_workers", 0)
    assert "wants to run code from" in sentence
    assert f"--method {method}" in sentence
    assert not mark.exists()
    out = program("-c", folder, *how, "--num_workers", 0, "--method", method)
    assert mark.exists()
    assert "mine.py has changed since the run was started" in out


def test_trust_can_be_given(run_with_own_code: tuple[Path, str, Path], program: Program) -> None:
    folder, _, mark = run_with_own_code
    program("-c", folder, "--test_only", "--trust_checkpoint", "--num_workers", 0)
    assert mark.exists()


def test_a_checkpoint_that_is_loaded_to_answer_runs_no_code(run_with_own_code: tuple[Path, str, Path]) -> None:
    folder, _, mark = run_with_own_code
    with pytest.raises(UserError, match="add --trust_checkpoint"):
        load_head(folder / BEST)
    assert not mark.exists()
    load_head(folder / BEST, trusted=True)
    assert mark.exists()


def test_a_test_writes_to_no_path_of_its_checkpoint(dataset: Path, tmp_path: Path, program: Program) -> None:
    sealed, features = tmp_path / "sealed.json", tmp_path / "features"
    flags = ["--episodes", sealed, "--features", features]
    program(*tiny_run(dataset, tmp_path / "run", *flags))
    test = ["-c", tmp_path / "test", "--test_only", "-m", tmp_path / "run" / BEST, "--num_workers", 0]
    before = sorted(features.rglob("*"))
    program(*test)
    assert json.loads((tmp_path / "test" / "args.json").read_text())["features"] is None
    assert sorted(features.rglob("*")) == before
    sealed.unlink()
    test[1] = tmp_path / "later"
    assert "are not there: give them with --episodes" in program.fails(*test)
    assert not sealed.exists()
    program(*test, "--episodes", tmp_path / "other.json")
