"""What is to be known of a number, by its results: one label for each, none of an ordinary test, and none that is guessed."""

from __future__ import annotations

from typing import Any

import pytest

from results.marks import after, marks, origin

ORDINARY = {
    "noisy_support": 0, "selected_on": "val", "split": "test", "checkpoint_tasks": 1000, "sealed_episodes": None,
    "precision": "fp32", "left_out": 0,
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "labels"),
    [
        ({}, []),
        ({"selected_on": "nothing"}, []),
        ({"uses_class_text": True, "inductive": False}, ["uses class names", "transductive"]),
        ({"uses_class_text": False, "inductive": None}, []),
        ({"noisy_support": 1}, ["1 noisy shot"]),
        ({"noisy_support": 2}, ["2 noisy shots"]),
        ({"selected_on": "test"}, ["chosen on test"]),
        ({"split": "val"}, ["chosen on these videos"]),
        ({"split": "val", "selected_on": "nothing"}, []),
        ({"checkpoint_tasks": 0}, ["untrained"]),
        ({"sealed_episodes": "episodes.json"}, ["sealed episodes"]),
        ({"left_out": 1}, ["1 video left out"]),
        ({"precision": "bf16"}, ["bf16"]),
        (
            {"precision": "fp16", "noisy_support": 3, "checkpoint_tasks": 0, "selected_on": "test", "left_out": 2},
            ["3 noisy shots", "chosen on test", "untrained", "2 videos left out", "fp16"],
        ),
    ],
)
def test_each_mark_has_its_label(change: dict[str, Any], labels: list[str]) -> None:
    assert marks({**ORDINARY, **change}) == labels


def test_a_supervised_test_counts_steps_and_an_old_one_says_what_it_holds() -> None:
    assert marks({"checkpoint_steps": 0, "split": "val", "selected_on": "nothing"}) == ["untrained"]
    assert marks({"checkpoint_steps": 10, "split": "val", "selected_on": "val"}) == ["chosen on these videos"]
    assert marks({}) == []


@pytest.mark.parametrize(
    ("tasks", "validations", "val_on_test", "labels"),
    [(4, [[2, 50.0]], False, []), (4, [[2, 50.0]], True, ["chosen on test"]), (4, [], True, []), (0, [], False, ["untrained"])],
)  # fmt: skip
def test_a_checkpoint_says_what_it_was_chosen_on(
    tasks: int, validations: list[Any], val_on_test: bool, labels: list[str]
) -> None:
    checkpoint = {"progress": {"tasks_done": tasks, "validations": validations}, "args": {"val_on_test": val_on_test}}
    assert marks(origin(checkpoint)) == labels


def test_labels_stand_in_parentheses_or_nothing_does() -> None:
    assert after("trx", ["bf16", "untrained"]) == "trx (bf16, untrained)"
    assert after("trx", []) == "trx"
