"""Questions answered on several cores at a time: the same answers, in the same order, and nothing that threads share."""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from conftest import Program, tiny_run, torch_threads
from torch import nn

from engine import feature_store, side_by_side
from engine.side_by_side import twin


@pytest.fixture
def two_threads() -> Iterator[None]:
    with torch_threads(2):
        yield


class Keeps(nn.Module):
    """Leaves on itself what it computes with, as methods do that are not made for several threads."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(1, 1)
        self.part = nn.Sequential(nn.Identity())

    def forward(self, number: int) -> int:
        self.kept = self.part[0].kept = number
        time.sleep(0.01)
        return self.kept + self.part[0].kept


def test_a_twin_has_the_same_weights_and_attributes_of_its_own() -> None:
    model = Keeps().eval()
    other = twin(model)
    assert [id(weight) for weight in other.parameters()] == [id(weight) for weight in model.parameters()]
    assert not other.training
    other(1)
    assert not hasattr(model, "kept")
    assert not hasattr(model.part[0], "kept")


@pytest.mark.usefixtures("two_threads")
def test_answers_come_in_order_from_one_thread_for_each_model_and_not_far_ahead() -> None:
    models, asked, at_work = [twin(Keeps()) for _ in range(2)], [], [0, 0]
    seen: set[tuple[int, int, bool]] = set()
    meeting = threading.Barrier(2, timeout=20)

    def answer_of(number: int) -> Callable[[int], int]:
        def answer(question: int) -> int:
            at_work[number] += 1
            seen.add((at_work[number], torch.get_num_threads(), torch.is_inference_mode_enabled()))
            if question < 2:
                meeting.wait()  # for the other one, which is at work as well
            found = models[number](question)
            at_work[number] -= 1
            return found

        return answer

    def questions() -> Iterator[int]:
        for number in range(20):
            asked.append(torch.get_num_threads())
            yield number

    for expected, (question, found) in enumerate(side_by_side.side_by_side([answer_of(0), answer_of(1)], questions())):
        assert (question, found) == (expected, 2 * expected)
        assert len(asked) <= expected + 3
    assert seen == {(1, 1, True)}, "one question at a time for a model, one core for each"
    assert asked == [2] + [1] * 19, "the first question may take all cores"
    assert torch.get_num_threads() == 2


@pytest.mark.usefixtures("two_threads")
def test_a_mistake_reaches_who_asks_and_leaves_no_thread() -> None:
    def answer(question: int) -> int:
        if question == 3:
            raise ValueError("no answer to 3")
        return question

    threads = threading.active_count()
    answered = side_by_side.side_by_side([answer, answer], itertools.count())
    found = []
    with contextlib.closing(answered), pytest.raises(ValueError, match="no answer to 3"):
        found += [number for number, _ in answered]
    assert threading.active_count() == threads
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("planned_ahead", [10_000, 16], ids=["one portion", "two portions"])
def test_a_run_has_the_same_answers_whatever_its_cores(
    planned_ahead: int, dataset: Path, tmp_path: Path, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feature_store, "TASKS_PLANNED_AHEAD", planned_ahead)
    (tmp_path / "keeps.py").write_text(KEEPS)
    for cores in (1, 2):
        method = f"{tmp_path}/keeps.py:Keeps"
        with torch_threads(cores):
            program(*tiny_run(dataset, tmp_path / str(cores), "-i", 0, "--method", method, "--num_test_tasks", 30))
    one, two = ((tmp_path / str(cores) / "predictions.csv").read_bytes() for cores in (1, 2))
    assert one == two
    assert len(one.splitlines()) == 1 + 30 * 2


KEEPS = """
import time

from model import CNN_TSN


class Keeps(CNN_TSN):
    def classify(self, support_features, support_labels, target_features):
        self.support = support_features
        time.sleep(0.005)
        return super().classify(self.support, support_labels, target_features)
"""


def test_many_cores_are_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[int] = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 16)
    monkeypatch.setattr(torch, "set_num_threads", told.append)
    found = [x for _, x in side_by_side.side_by_side([lambda x: x + 1] * 8, iter([torch.tensor(1), torch.tensor(2)]))]
    assert found == [torch.tensor(2), torch.tensor(3)]
    assert set(told[:-1]) == {2}
    assert told[-1] == 16
