"""Which videos an episode is made of: drawn, sealed in a file, and read with stand-ins for what cannot be read.

An episode has `way` classes with `shot` support videos and `queries` target videos each.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import zlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from clips.frame_sources import BadVideo
from clips.video_split import Split
from utils import UserError, atomic_write, read_json

EPISODES_FORMAT = "few-shot-episodes/1"


@dataclasses.dataclass(frozen=True)
class EpisodePlan:
    """What task `index` of `seed` asks for: classes and videos by their numbers in the split.

    labels[k] is the class that the episode calls k. candidates[k] are its videos in the order in which they are taken:
    `queries` target videos, then support videos, then replacements of unreadable ones. distractors[k] are (class, video) pairs
    of other classes; the first `noisy` of them stand in for the last support videos of class k.
    """

    seed: int
    index: int
    labels: list[int]
    candidates: list[list[int]]
    distractors: list[list[tuple[int, int]]]
    shot: int
    queries: int
    noisy: int = 0

    def narrowed(self, way: int, shot: int) -> EpisodePlan:
        """The same episode with fewer classes and support videos."""
        return dataclasses.replace(
            self,
            labels=self.labels[:way],
            candidates=self.candidates[:way],
            distractors=self.distractors[:way],
            shot=shot,
        )


class Drawn(NamedTuple):
    """One video of an episode: the episode's label for it, its true class and number in the split, and what was read."""

    k: int
    label: int
    video: int
    content: Any


def episode_rng(seed: int, split: str, index: int, *stream: int) -> np.random.Generator:
    """The generator of task `index`, the same on every machine; further numbers give independent streams of the task."""
    return np.random.default_rng([seed, zlib.crc32(split.encode()), index, *stream])


# Streams of a task's generator, so that a change of one draw leaves the others as they are.
VIDEOS_OF_CLASS, STRANGERS_TO_CLASS, PIXELS, ORDER = range(1, 5)


def draw_episode(
    split: Split, seed: int, index: int, *, way: int, shot: int, queries: int, noisy: int = 0
) -> EpisodePlan:
    """Task `index`: a function of (seed, split, index) alone.

    Episodes nest: with more shots the targets stay and support videos are added, with more ways classes are added. So
    accuracies at different shots and ways are compared on as much common ground as there is.
    """
    labels = episode_rng(seed, split.name, index).permutation(len(split.classes))[:way].tolist()
    candidates = [
        episode_rng(seed, split.name, index, VIDEOS_OF_CLASS, label).permutation(len(split.videos[label])).tolist()
        for label in labels
    ]
    distractors: list[list[tuple[int, int]]] = [[] for _ in labels]
    if noisy:
        taken = {(label, v) for label, videos in zip(labels, candidates, strict=True) for v in videos[: shot + queries]}
        for k, label in enumerate(labels):
            rng = episode_rng(seed, split.name, index, STRANGERS_TO_CLASS, label)
            others = [(c, v) for c, videos in enumerate(split.videos) if c != label for v in range(len(videos))]
            distractors[k] = [others[i] for i in rng.permutation(len(others)) if others[i] not in taken]
            taken.update(distractors[k][:noisy])
    return EpisodePlan(seed, index, labels, candidates, distractors, shot, queries, noisy)


def fill_episode(
    split: Split, plan: EpisodePlan, read: Callable[[int, int, int], Any], on_bad_video: str = "error"
) -> tuple[list[Drawn], list[Drawn], list[str]]:
    """Reads a plan's videos: (support, target, messages about unreadable videos that others stand in for), both shuffled.

    `read(label, video, position)` gives a video's content or raises BadVideo; position counts a class's candidates. Which
    video stands in depends on the plan and the files alone, so the episode is the same wherever it is read.
    """
    support: list[Drawn] = []
    target: list[Drawn] = []
    bad_videos: list[str] = []

    def first_readable(k: int, wanted: int, candidates: Iterable[tuple[int, int]]) -> list[Drawn]:
        drawn: list[Drawn] = []
        for position, (label, video) in enumerate(candidates):
            if len(drawn) == wanted:
                break
            try:
                drawn.append(Drawn(k, label, video, read(label, video, position)))
            except BadVideo as error:
                if on_bad_video == "error":
                    raise
                bad_videos.append(str(error))
        if len(drawn) < wanted:
            last = f"; extract the damaged ones again, the last: {bad_videos[-1]}" if bad_videos else ""
            raise BadVideo(
                f"class '{split.classes[plan.labels[k]]}' in {split.root} has {len(drawn)} readable videos, an episode needs "
                f"{wanted}{last}"
            )
        return drawn

    for k, label in enumerate(plan.labels):
        own = first_readable(k, plan.queries + plan.shot - plan.noisy, ((label, v) for v in plan.candidates[k]))
        target += own[: plan.queries]
        support += own[plan.queries :] + first_readable(k, plan.noisy, plan.distractors[k])
    # Shuffled, so that a head that relied on the order of classes would fail.
    order = episode_rng(plan.seed, split.name, plan.index, ORDER)
    order.shuffle(support)
    order.shuffle(target)
    return support, target, bad_videos


def seal_episodes(path: Path, split: Split, plans: Sequence[EpisodePlan], seed: int) -> None:
    """Writes drawn episodes to a readable JSON file, by class and video names, with the split's fingerprint."""
    first = plans[0]
    tasks = []
    for plan in plans:
        taken = plan.queries + plan.shot
        tasks.append(
            [
                {
                    "class": split.classes[label],
                    "target": [split.videos[label][video] for video in videos[: plan.queries]],
                    "support": [split.videos[label][video] for video in videos[plan.queries : taken]],
                    "strangers": [split.video_name(*distractor) for distractor in distractors[: plan.noisy]],
                }
                for label, videos, distractors in zip(plan.labels, plan.candidates, plan.distractors, strict=True)
            ]
        )
    content = {
        "format": EPISODES_FORMAT,
        "split": split.name,
        "split_fingerprint": split.fingerprint,
        "seed": seed,
        "way": len(first.labels),
        "shot": first.shot,
        "queries_per_class": first.queries,
        "noisy_support": first.noisy,
    }
    lines = [json.dumps(task, ensure_ascii=False) for task in tasks]
    header = json.dumps(content, ensure_ascii=False, indent=1)[:-2]
    with atomic_write(path) as file:  # one task to a line: readable, and quick to compare with diff
        # A byte of a name that is no UTF-8 becomes an escape that JSON knows.
        file.write((header + ',\n "tasks": [\n' + ",\n".join(lines) + "\n]}\n").encode(errors="backslashreplace"))


def unseal_episodes(path: Path, split: Split) -> tuple[dict[str, Any], list[EpisodePlan]]:
    """Reads what `seal_episodes` wrote: (its settings, the plans). Raises UserError naming videos that are missing, or the
    first place in the file at which it holds no fair episode."""
    content = read_json(path)
    if not isinstance(content, dict) or content.get("format") != EPISODES_FORMAT:
        raise UserError(f"{path} holds no sealed episodes: expected format '{EPISODES_FORMAT}'; give another file")
    try:
        _check_sealed(content)
    except ValueError as error:
        raise UserError(f"{path} is damaged or was changed: {error}; restore it, or give another file") from error
    if content["split"] != split.name:
        raise UserError(f"{path} holds episodes of '{content['split']}', not of '{split.name}'; give another file")
    place = {
        f"{name}/{video}": (label, number)
        for label, name in enumerate(split.classes)
        for number, video in enumerate(split.videos[label])
    }
    named = {
        f"{entry['class']}/{video}"
        for task in content["tasks"]
        for entry in task
        for video in entry["target"] + entry["support"]
    } | {name for task in content["tasks"] for entry in task for name in entry["strangers"]}
    if missing := sorted(named - place.keys()):
        raise UserError(
            f"{path} asks for {len(missing)} video(s) that {split.root} does not hold: {', '.join(missing[:5])}"
            f"{', ...' if len(missing) > 5 else ''}; complete the data set or give another file"
        )
    plans = []
    for index, task in enumerate(content["tasks"]):
        videos = [[place[f"{entry['class']}/{v}"] for v in entry["target"] + entry["support"]] for entry in task]
        plans.append(
            EpisodePlan(
                content["seed"],
                index,
                labels=[drawn[0][0] for drawn in videos],
                candidates=[[video for _, video in drawn] for drawn in videos],
                distractors=[[place[name] for name in entry["strangers"]] for entry in task],
                shot=content["shot"],
                queries=content["queries_per_class"],
                noisy=content["noisy_support"],
            )
        )
    return content, plans


def _check_sealed(content: dict[str, Any]) -> None:
    """Raises ValueError that names the place of what `seal_episodes` would not have written."""
    least = {"seed": 0, "way": 1, "shot": 1, "queries_per_class": 1, "noisy_support": 0}
    for name, smallest in least.items():
        found = content.get(name)
        if type(found) is not int or found < smallest:
            raise ValueError(f"expected '{name}' to be a whole number from {smallest}, found {_shown(found)}")
    if content["noisy_support"] >= content["shot"]:
        raise ValueError(
            f"'noisy_support' is {content['noisy_support']}, of a shot of {content['shot']}: expected fewer"
        )
    if not isinstance(content.get("split"), str):
        raise ValueError(f"expected 'split' to be a name, found {_shown(content.get('split'))}")
    tasks = content.get("tasks")
    if not isinstance(tasks, list) or not tasks:
        raise ValueError(f"expected 'tasks' to be a list of episodes, found {_shown(tasks)}")
    for number, task in enumerate(tasks):
        try:
            _check_sealed_task(task, content)
        except ValueError as error:
            raise ValueError(f"task {number} (from 0): {error}") from error


def _check_sealed_task(task: Any, sizes: dict[str, Any]) -> None:
    """An episode of as many classes and videos as the file says, each of them once."""
    if not isinstance(task, list) or len(task) != sizes["way"]:
        raise ValueError(f"expected a list of {sizes['way']} classes, found {_shown(task)}")
    lengths = {"target": sizes["queries_per_class"], "support": sizes["shot"], "strangers": sizes["noisy_support"]}
    classes: set[str] = set()
    parts: dict[str, str] = {}  # of each video, by "class/video"
    for entry in task:
        label = entry.get("class") if isinstance(entry, dict) else entry
        if not isinstance(entry, dict) or not isinstance(label, str):
            raise ValueError(f"expected a class with a name, found {_shown(label)}")
        if label in classes:
            raise ValueError(f"class '{label}' is in it twice")
        classes.add(label)
        for part, length in lengths.items():
            videos = entry.get(part)
            if not isinstance(videos, list) or not all(isinstance(video, str) for video in videos):
                raise ValueError(f"class '{label}': expected '{part}' to be a list of names, found {_shown(videos)}")
            if len(videos) != length:
                raise ValueError(f"class '{label}': expected {length} video(s) in '{part}', found {len(videos)}")
            for video in videos:
                name = video if part == "strangers" else f"{label}/{video}"
                if name in parts:
                    twice = f"'{parts[name]}' and in '{part}'" if parts[name] != part else f"'{part}' twice"
                    raise ValueError(f"class '{label}': video {name} is in {twice}")
                if part == "strangers" and name.startswith(f"{label}/"):
                    raise ValueError(f"class '{label}': its distractor {name} is of the class itself")
                parts[name] = part


def _shown(value: Any) -> str:
    """A value as JSON, cut where it is long."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."


def episodes_fingerprint(plans: Iterable[EpisodePlan]) -> str:
    """A short hash of which videos play which part in which task: equal for runs that are tested on the same episodes."""
    digest = hashlib.sha256()
    for plan in plans:
        taken = [videos[: plan.queries + plan.shot] for videos in plan.candidates]
        distractors = [pairs[: plan.noisy] for pairs in plan.distractors]
        digest.update(json.dumps([plan.labels, taken, distractors, plan.shot, plan.queries]).encode())
    return digest.hexdigest()[:16]
