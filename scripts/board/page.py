"""What is known of the runs of a plan, as the board that results/leaderboard.py draws."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from results.leaderboard import Board, Entry, Place
from results.runs import read_run, read_test
from scripts.board.plan import DataSet, Plan
from scripts.board.runs import COST, Cell, Runs, is_done
from utils import read_json, unknown_name, versions

ROOT = Path(__file__).resolve().parents[2]


def entry_of(runs: Runs, cell: Cell, place: str, folder_of: Callable[[int], Path]) -> Entry | None:
    """What is known of a cell; None where no run of it is finished."""
    plan, folders = runs.plan, [folder_of(seed) for seed in runs.plan.seeds]
    done = {seed: folder for seed, folder in zip(plan.seeds, folders, strict=True) if is_done(folder)}
    if not done:
        return None
    costs = [read_json(folder / COST) for folder in done.values() if (folder / COST).exists()]
    return Entry(
        place=place,
        backbone=cell.backbone.name,
        method=cell.method,
        runs={
            seed: read_run(read_test(folder / "results.json"), f"{cell}, seed {seed}") for seed, folder in done.items()
        },
        rate=runs.chosen(cell),
        validations={rate: accuracy for rate, accuracy in runs.validations(cell).items() if rate is not None},
        seconds=[cost["seconds"] for cost in costs],
        memory=max((cost["memory"] for cost in costs), default=0),
    )


def board_of(runs: Runs, missing: Mapping[str, str], command: str) -> Board:
    """All that is finished. missing: what is not, and why. command: that made it."""
    plan = runs.plan
    entries: list[Entry | None] = []
    for cell in runs.cells():
        if runs.validations(cell):
            entries.append(entry_of(runs, cell, cell.data.name, partial(runs.folder, cell, runs.chosen(cell))))
            for name, both in plan.cross_domain.items():
                if both["train"] == cell.data.name:
                    entries.append(entry_of(runs, cell, name, partial(runs.cross_folder, name, cell)))
    places = [place_of(data.name, data) for data in plan.sets]
    for name, both in plan.cross_domain.items():
        there = place_of(name, plan.set_named[both["test"]])
        places.append(dataclasses.replace(there, axis=None, level=0, trained_on=both["train"]))
    return Board(
        title=plan.title,
        note=plan.note,
        budget=plan.budget,
        control=plan.control,
        rates=plan.learning_rates,
        seeds=plan.seeds,
        places=places,
        backbones=plan.backbones,
        methods=plan.methods,
        method_flags=plan.method_flags | {m: flags_of_own(plan, m) for m in plan.own_methods},
        entries=[entry for entry in entries if entry is not None],
        missing=missing,
        command=command,
        versions=versions(),
    )


def flags_of_own(plan: Plan, method: str) -> str:
    return f"--method {plan.own_methods[method]} {plan.method_flags.get(method, '')}".rstrip()


def place_of(name: str, data: DataSet) -> Place:
    """A set to test on, with what splits/ knows of its test classes."""
    place = Place(name, data.path is None, data.axis, data.level)
    if data.split is None:
        return place
    folder = ROOT / "splits" / data.split
    if not (folder / "overlap.json").exists():
        raise unknown_name("split", data.split, [path.parent.name for path in folder.parent.glob("*/overlap.json")])
    pretraining = read_json(folder / "overlap.json")["pretraining"]
    return dataclasses.replace(
        place,
        classes=list(read_json(folder / "classes.json")["test"]),
        overlap={name: found["classes"] for name, found in pretraining.items()},
    )
