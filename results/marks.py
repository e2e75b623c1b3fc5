"""What a reader of a number has to know of it: short labels that go with it wherever it is shown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

CHOSEN_ON_TEST, CHOSEN_ON_THESE = "chosen on test", "chosen on these videos"


def marks(results: Mapping[str, Any]) -> list[str]:
    """Labels of whatever makes a test other than an ordinary one; none of an ordinary test.

    results: the content of a results.json of either program, of any age: what it does not hold gets no label. Labels are

    uses class names          the method is told what the classes are called (--prompt), beside their videos
    transductive              it sees all queries of an episode at once
    1 noisy shot              of the support videos of each class, so many show other classes (--noisy_support)
    chosen on test            the checkpoint is the best on the test split (--val_on_test): comparable with nothing
    chosen on these videos    the checkpoint is the best on the very videos that it was tested on
    trained on ssv2small      and tested on another data set (--test_dataset)
    untrained                 weights of it have only ever been random; of results that do not say so, no task or step of
                              the run has trained it
    sealed episodes           they were read from a file (--episodes)
    2 videos left out         they could not be read (--on_bad_video skip)
    bf16, fp16                the precision, where it is not fp32
    """
    noisy, left_out, precision = (results.get(name) for name in ("noisy_support", "left_out", "precision"))
    chosen_on, trained_on = results.get("selected_on"), results.get("trained_on")
    trained = results.get("checkpoint_tasks", results.get("checkpoint_steps"))
    labels = {
        "uses class names": results.get("uses_class_text"),
        "transductive": results.get("inductive") is False,
        counted(noisy or 0, "noisy shot"): noisy,
        CHOSEN_ON_TEST: chosen_on == "test",
        CHOSEN_ON_THESE: chosen_on == "val" == results.get("split"),
        f"trained on {Path(trained_on or '').name}": trained_on,
        "untrained": results.get("untrained", trained == 0),
        "sealed episodes": results.get("sealed_episodes"),
        f"{counted(left_out or 0, 'video')} left out": left_out,
        f"{precision}": precision not in (None, "fp32"),
    }
    return [label for label, holds in labels.items() if holds]


def origin(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Of a checkpoint of run.py, what `marks` looks at: how many tasks have trained it, and what it was chosen on."""
    progress = checkpoint["progress"]
    chosen_on = "test" if checkpoint["args"].get("val_on_test") else "val"
    return {
        "checkpoint_tasks": progress["tasks_done"],
        "selected_on": checkpoint.get("selected_on") or (chosen_on if progress["validations"] else "nothing"),
    }


def counted(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"


def after(text: str, labels: Iterable[str], gap: str = " ") -> str:
    """A text with labels in parentheses behind it, where there are any."""
    words = ", ".join(labels)
    return f"{text}{gap}({words})" if words else text
