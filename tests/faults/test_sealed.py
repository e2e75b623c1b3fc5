"""Sealed episodes that were changed: an unfair or broken one is refused, with the file and the place."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Program, tiny_run

from clips.episodes import draw_episode, seal_episodes, unseal_episodes
from clips.video_split import Split
from utils import UserError

SIZES = {"way": 3, "shot": 2, "queries": 2, "noisy": 1}
Content = dict[str, Any]


@pytest.fixture(scope="module")
def split(dataset: Path) -> Split:
    return Split.open(dataset, "test")


@pytest.fixture(scope="module")
def sealed(split: Split, tmp_path_factory: pytest.TempPathFactory) -> Content:
    """Four episodes as they are written."""
    path = tmp_path_factory.mktemp("sealed") / "episodes.json"
    seal_episodes(path, split, [draw_episode(split, 3, index, **SIZES) for index in range(4)], 3)
    return json.loads(path.read_text())


def leave_out(name: str) -> Callable[[Content], None]:
    return lambda content: content.pop(name)


def give(name: str, value: Any) -> Callable[[Content], None]:
    return lambda content: content.update({name: value})


def in_task_2(change: Callable[[list[Any]], Any]) -> Callable[[Content], None]:
    return lambda content: change(content["tasks"][2]) and None


def in_an_entry(change: Callable[[dict[str, Any]], Any]) -> Callable[[Content], None]:
    return in_task_2(lambda task: change(task[1]))


def query_among_supports(entry: dict[str, Any]) -> None:
    entry["support"][1] = entry["target"][0]


def stranger_among_supports(task: list[Any]) -> None:
    task[1]["strangers"][0] = f"{task[0]['class']}/{task[0]['support'][0]}"


def own_stranger(entry: dict[str, Any]) -> None:
    used = entry["target"] + entry["support"]
    unused = next(name for name in (f"{entry['class']}_00{v}" for v in range(8)) if name not in used)
    entry["strangers"][0] = f"{entry['class']}/{unused}"


CHANGES: dict[str, tuple[Callable[[Content], None], str]] = {
    "a query among the supports": (in_an_entry(query_among_supports), "task 2 .*class '.*': .* 'target' and in 'support'"),
    "a query twice": (in_an_entry(lambda e: e["target"].__setitem__(1, e["target"][0])), "is in 'target' twice"),
    "a support twice": (in_an_entry(lambda e: e["support"].__setitem__(1, e["support"][0])), "is in 'support' twice"),
    "a stranger among the supports": (in_task_2(stranger_among_supports), "is in 'support' and in 'strangers'"),
    "a stranger of the class itself": (in_an_entry(own_stranger), "its distractor .* is of the class itself"),
    "a class twice": (in_task_2(lambda task: task.__setitem__(1, task[0])), "task 2 .*: class '.*' is in it twice"),
    "a class too few": (in_task_2(lambda task: task.pop()), "task 2 .*: expected a list of 3 classes"),
    "a query too few": (in_an_entry(lambda e: e["target"].pop()), r"expected 2 video\(s\) in 'target', found 1"),
    "a support too many": (in_an_entry(lambda e: e["support"].append("x")), r"expected 2 video\(s\) in 'support', found 3"),
    "no strangers": (in_an_entry(lambda e: e.pop("strangers")), "expected 'strangers' to be a list of names, found null"),
    "a class without name": (in_an_entry(lambda e: e.pop("class")), "expected a class with a name, found null"),
    "a class that is text": (in_task_2(lambda task: task.__setitem__(1, "golf")), 'a class with a name, found "golf"'),
    "videos that are text": (in_an_entry(lambda e: e.update(target="ab")), "'target' to be a list of names, found \"ab\""),
    "a number for a video": (in_an_entry(lambda e: e["target"].__setitem__(0, 7)), r"list of names, found \[7"),
    "a task that is a number": (lambda content: content["tasks"].__setitem__(0, 7), "task 0 .* found 7"),
    "no way": (leave_out("way"), "'way' to be a whole number from 1, found null"),
    "a way of text": (give("way", "5"), "'way' .* found \"5\""),
    "a way of none": (give("way", 0), "'way' .* found 0"),
    "a shot that is true": (give("shot", True), "'shot' .* found true"),
    "a shot of a half": (give("shot", 0.5), "'shot' .* found 0.5"),
    "a negative seed": (give("seed", -1), "'seed' to be a whole number from 0, found -1"),
    "no queries": (leave_out("queries_per_class"), "'queries_per_class'"),
    "no noise": (leave_out("noisy_support"), "'noisy_support' .* found null"),
    "all noise": (give("noisy_support", 2), "'noisy_support' is 2, of a shot of 2"),
    "no split": (leave_out("split"), "'split' to be a name, found null"),
    "no tasks": (leave_out("tasks"), "'tasks' to be a list of episodes, found null"),
    "empty tasks": (give("tasks", []), r"'tasks' .* found \[\]"),
    "tasks of text": (give("tasks", "x" * 99), "'tasks' .* found \"x+[.][.][.];"),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_file_is_refused_with_the_place(change: str, sealed: Content, split: Split, tmp_path: Path) -> None:
    path, content = tmp_path / "episodes.json", copy.deepcopy(sealed)
    path.write_text(json.dumps(content))
    assert len(unseal_episodes(path, split)[1]) == 4
    make, sentence = CHANGES[change]
    make(content)
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=f"episodes.json is damaged or was changed: .*{sentence}") as error:
        unseal_episodes(path, split)
    assert "\n" not in str(error.value)


def test_a_test_on_unfair_episodes_is_one_sentence(dataset: Path, tmp_path: Path, program: Program) -> None:
    flags = ["-i", 0, "--episodes", tmp_path / "episodes.json"]
    program(*tiny_run(dataset, tmp_path / "first", *flags))
    content = json.loads((tmp_path / "episodes.json").read_text())
    entry = content["tasks"][1][0]
    entry["support"] = entry["target"]
    (tmp_path / "episodes.json").write_text(json.dumps(content))
    sentence = program.fails(*tiny_run(dataset, tmp_path / "second", *flags))
    assert "episodes.json is damaged or was changed: task 1 (from 0): class '" in sentence
    assert sentence.endswith("is in 'target' and in 'support'; restore it, or give another file")
