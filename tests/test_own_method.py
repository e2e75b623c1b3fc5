"""The example of a method of one's own runs as its first lines say, and does what they say."""

from __future__ import annotations

from pathlib import Path

import torch
from torch.nn.functional import cosine_similarity

import run
from engine.settings import build_parser, find_method
from methods import METHODS, build_head
from utils import read_json

EXAMPLE = f"{Path(__file__).parents[1] / 'scripts' / 'own_method.py'}:OrderedMean"


def test_the_example_trains_and_is_tested_by_its_file_name(dataset: Path, tmp_path: Path) -> None:
    settings = "--backbone conv4 --no_pretrained --img_size 16 --seq_len 3 --way 2 --shot 1 -qpc 1 -i 2 --num_workers 0"
    flags = ["--method", EXAMPLE, "--start_weight", "0.5", "--tasks_per_batch", "1", "--num_test_tasks", "3"]
    folder = tmp_path / "run"
    assert run.main(["-c", str(folder), "--dataset", str(dataset), *settings.split(), *flags]) == 0
    assert read_json(folder / "results.json")["method"] == EXAMPLE
    weights = torch.load(folder / "checkpoint_final.pt", weights_only=True)["model"]["weights"]
    assert weights.shape == (3,)
    assert not torch.equal(weights, torch.full((3,), 0.5)), "the flag's value, trained"
    assert run.main(["-c", str(folder), "--test_only", "--shot_test", "2", "--num_workers", "0"]) == 0


def test_the_example_averages_cosines_at_equal_times() -> None:
    argv = ["--method", EXAMPLE, "--backbone", "conv4", "--no_pretrained", "--seq_len", "3"]
    args = build_parser(METHODS, find_method(EXAMPLE, METHODS)).parse_args(argv)
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
