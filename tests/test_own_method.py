"""The examples of a method of one's own, in README.md and as a file, run as they say, and do what they say."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cosine_similarity

import run
from engine.settings import build_parser, find_method
from methods import METHODS, build_head
from utils import read_json

ROOT = Path(__file__).parents[1]
SETTINGS = shlex.split(
    "--backbone conv4 --no_pretrained --img_size 16 --seq_len 3 --way 2 --shot 1 -qpc 1 -i 2 --num_workers 0"
)


@pytest.fixture(params=["README.md", "scripts/own_method.py"])
def example(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The name of its class on the command line. That of the README is the text of its one block of Python."""
    path = ROOT / request.param
    if path.suffix == ".md":
        (block,) = re.findall(r"^```python\n(.*?)^```$", path.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
        path = tmp_path / "my_file.py"
        path.write_text(block, encoding="utf-8")
    return f"{path}:OrderedMean"


def test_an_example_trains_and_is_tested_by_its_file_name(example: str, dataset: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    flags = ["--method", example, "--tasks_per_batch", "1", "--num_test_tasks", "3"]
    assert run.main(["-c", str(folder), "--dataset", str(dataset), *SETTINGS, *flags]) == 0
    assert read_json(folder / "results.json")["method"] == example
    weights = torch.load(folder / "checkpoint_final.pt", weights_only=True)["model"]["weights"]
    assert weights.shape == (3,)
    assert not torch.equal(weights, torch.ones(3)), "trained"
    again = ["-c", str(folder), "--test_only", "--method", example, "--shot_test", "2", "--num_workers", "0"]
    assert run.main(again) == 0


@pytest.mark.parametrize("example", ["README.md"], indirect=True)
def test_an_example_runs_by_a_name_in_the_table(
    example: str, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(METHODS, "ordered_mean", find_method(example, METHODS))
    folder = tmp_path / "run"
    flags = ["--method", "ordered_mean", "--tasks_per_batch", "2", "--num_test_tasks", "3"]
    assert run.main(["-c", str(folder), "--dataset", str(dataset), *SETTINGS, *flags]) == 0
    assert read_json(folder / "results.json")["method"] == "ordered_mean"


def test_the_flag_of_an_example_reaches_it() -> None:
    name = f"{ROOT}/scripts/own_method.py:OrderedMean"
    parser = build_parser(METHODS, find_method(name, METHODS))
    head = build_head(parser.parse_args(["--method", name, *SETTINGS, "--start_weight", "0.5"]))
    assert torch.equal(head.weights.detach(), torch.full((3,), 0.5))


def test_an_example_averages_cosines_at_equal_times(example: str) -> None:
    args = build_parser(METHODS, find_method(example, METHODS)).parse_args(["--method", example, *SETTINGS])
    head = build_head(args).double()
    torch.nn.init.uniform_(head.weights)
    support, target = torch.randn(4, 3, 64).double(), torch.randn(2, 3, 64).double()
    labels = torch.tensor([1, 0, 1, 1])
    logits = head.classify(support[None], labels[None], target[None])[0]
    for q in range(2):
        for k in range(2):
            mean = support[labels == k].mean(dim=0)
            expected = 10 * (cosine_similarity(target[q], mean, dim=-1) * head.weights).mean()
            torch.testing.assert_close(logits[q, k], expected)
