"""Methods x backbones x sets x seeds under one budget: trains, tests, compares, and writes leaderboard.html.

    python scripts/leaderboard.py scripts/leaderboard_quick.toml                     made-up sets, minutes on 2 cores
    python scripts/leaderboard.py scripts/leaderboard_real.toml --set ssv2small=data/ssv2small
    python scripts/leaderboard.py my_board.toml --list                               what it would run, and what is done
    python scripts/leaderboard.py my_board.toml --shard 2/8                          one of eight jobs on one folder

The file says all: sets (made-up ones are drawn), backbones, methods, seeds, the budget, and the learning rates that every
method is tried at. The rate is chosen by validation accuracy at the first seed and then used for all of them; no test split
has a part in it. Each run is an ordinary run folder of run.py. What is finished is passed over, what was stopped is gone on
with, what fails is named on the page and the others go on. docs/leaderboard.md describes the file.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import multiprocessing
import os
import re
import resource
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import torch

# Python puts the folder of a script on its path, not the project's.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import run
import run_supervised
from engine.command_line import STOPPED, TERMINATED, Parser, arguments, exit_code
from engine.settings import parse_args as settings_of_run
from engine.stopping import Terminated, Termination
from methods import METHODS, build_head
from results.leaderboard import Board, Entry, Place, Weights, write_board
from results.runs import read_run, read_test
from utils import (
    BEST,
    FINAL,
    UserError,
    locked,
    path_part,
    print_note,
    read_csv,
    read_json,
    unknown_name,
    versions,
    write_json,
)

ROOT = Path(__file__).resolve().parents[1]
COST = "cost.json"  # in a run folder: what the run took, which its own files do not tell


# ---------------------------------------------------------------------------------------------------------------------
# The file


@dataclasses.dataclass(frozen=True)
class DataSet:
    """path: of a set that is there; else `make`, the flags of make_demo_set.py that draw it. split: the folder in splits/
    whose classes its test split has. axis, level: its place in the profile."""

    name: str
    path: str | None = None
    make: str | None = None
    split: str | None = None
    axis: str | None = None
    level: int = 0


@dataclasses.dataclass(frozen=True)
class Backbone:
    """flags: of run.py. base: flags of run_supervised.py, by which it is first trained on the training classes of `base_set`,
    or where that is not given of each set. pretraining: what its weights have seen; "kinetics400" and "imagenet1k" are
    looked up in splits/*/overlap.json."""

    name: str
    flags: str
    pretraining: str = "nothing"
    frozen: bool = False
    base: str | None = None
    base_set: str | None = None


@dataclasses.dataclass(frozen=True)
class Plan:
    """The content of the file."""

    title: str
    budget: str
    methods: list[str]
    backbones: list[Backbone]
    sets: list[DataSet]
    seeds: list[int]
    learning_rates: list[float]
    note: str = ""
    control: str = "tsn"
    method_flags: dict[str, str] = dataclasses.field(default_factory=dict)
    cross_domain: dict[str, dict[str, str]] = dataclasses.field(default_factory=dict)

    @property
    def set_named(self) -> dict[str, DataSet]:
        return {data.name: data for data in self.sets}


def read_plan(path: Path, given: Mapping[str, str]) -> Plan:
    """The plan in a TOML file. given: paths of sets by name, which win over those in the file.

    Raises UserError where something is missing, unknown or of another kind than expected.
    """
    content = read_toml(path)
    suite = content.pop("suite", None)
    sets = table(content, "sets", path)
    if unknown := given.keys() - sets.keys():
        raise unknown_name("set", min(unknown), sets)
    methods = list(METHODS) if content.get("methods") == "all" else content.get("methods")
    known = {field.name for field in dataclasses.fields(Plan)}
    if extra := content.keys() - known:
        raise unknown_name(f"entry of {path}", min(extra), known | {"suite"})
    content |= {
        "methods": methods,
        "backbones": [
            made(Backbone, path, {"name": n, **entry}) for n, entry in table(content, "backbones", path).items()
        ],
        "sets": [
            *(made(DataSet, path, {"name": n, **entry, **given_path(given, n)}) for n, entry in sets.items()),
            *(suite_sets(suite, path) if suite else []),
        ],
    }
    plan = made(Plan, path, content)
    check_plan(plan, path)
    return plan


def read_toml(path: Path) -> dict[str, Any]:
    try:
        tomllib = importlib.import_module("tomllib")
    except ImportError as error:
        raise UserError("the leaderboard reads TOML, which takes Python 3.11 or later: use one") from error
    try:
        content: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
        return content
    except (OSError, ValueError) as error:
        raise UserError(
            f"could not read {path} as TOML ({error}): expected a file as docs/leaderboard.md describes"
        ) from error


def table(content: Mapping[str, Any], name: str, path: Path) -> dict[str, Any]:
    found = content.get(name, {})
    if not isinstance(found, dict) or not all(isinstance(entry, dict) for entry in found.values()):
        raise UserError(f"{path}: expected [{name}.NAME] with entries below it")
    return found


def given_path(given: Mapping[str, str], name: str) -> dict[str, str]:
    return {"path": given[name]} if name in given else {}


def made(kind: type[Any], source: Path, entries: Mapping[str, Any]) -> Any:
    """A dataclass of entries of the file. Raises UserError where they are not its fields, or not of their types."""
    fields = {field.name: field for field in dataclasses.fields(kind)}
    if extra := entries.keys() - fields.keys():
        raise unknown_name(f"entry of {source}", min(extra), fields)
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if name not in entries and required:
            raise UserError(f"{source} lacks '{name}': docs/leaderboard.md describes the file")
        expected = re.split(r"[\[ ]", str(field.type))[0]
        value = entries.get(name)
        if name in entries and type(value).__name__ != expected and value is not None:
            raise UserError(f"{source}: '{name}' is {value!r}, expected {field.type}")
    return kind(**entries)


def suite_sets(suite: Mapping[str, Any], path: Path) -> list[DataSet]:
    """The made-up sets of a profile: the demo set, and each axis at each level but 0, which is the demo set on every axis."""
    if extra := suite.keys() - {"axes", "levels", "make"}:
        raise unknown_name(f"entry of [suite] in {path}", min(extra), ("axes", "levels", "make"))
    axes, levels, make = suite.get("axes", []), suite.get("levels", []), suite.get("make", "")
    if not axes or not levels or not all(isinstance(level, int) and level > 0 for level in levels):
        raise UserError(f"{path}: [suite] needs axes, and levels above 0, which is the demo set and always there")
    return [
        DataSet("base", make=make),
        *(
            DataSet(f"{a}_{n}", make=f"--axis {a} --level {n} {make}".strip(), axis=a, level=n)
            for a in axes
            for n in levels
        ),
    ]


def check_plan(plan: Plan, path: Path) -> None:
    for method in [*plan.methods, *plan.method_flags, plan.control]:
        if method not in plan.methods and method in (plan.control, *plan.method_flags):
            raise unknown_name(f"method of {path}", method, plan.methods)
    names = [*plan.methods, *(b.name for b in plan.backbones), *plan.set_named, *plan.cross_domain]
    for name in names:
        path_part(name, f"{path}:")
    if len(names) != len(set(names)):
        raise UserError(f"{path} names something twice: {', '.join(sorted({n for n in names if names.count(n) > 1}))}")
    for what in ("methods", "backbones", "sets", "seeds", "learning_rates"):
        if not getattr(plan, what):
            raise UserError(f"{path}: expected at least one of {what}")
    for backbone in plan.backbones:
        if backbone.base_set is not None and backbone.base_set not in plan.set_named:
            raise unknown_name(f"set of backbone '{backbone.name}' in {path}", backbone.base_set, plan.set_named)
    for name, both in plan.cross_domain.items():
        if both.keys() != {"train", "test"}:
            raise UserError(f"{path}: [cross_domain] '{name}' is {both}, expected {{train = SET, test = SET}}")
        for role in both.values():
            if role not in plan.set_named:
                raise unknown_name(f"set of '{name}' in {path}", role, plan.set_named)


# ---------------------------------------------------------------------------------------------------------------------
# The runs


@dataclasses.dataclass(frozen=True)
class Cell:
    """A method on a backbone on a set: a place of the board."""

    data: DataSet
    backbone: Backbone
    method: str

    def __str__(self) -> str:
        return f"{self.data.name} {self.backbone.name} {self.method}"


class Runs:
    """Where the runs of a plan are, what they are asked for, and how they stand."""

    def __init__(self, plan: Plan, out: Path, weights: Mapping[str, str], num_workers: int = 0) -> None:
        """weights: files of backbones by name. num_workers: processes that read ahead for each run."""
        self.plan, self.out, self.weights = plan, out, weights
        self.reading = ["--num_workers", str(num_workers)]
        self._trains: dict[tuple[str, str], bool] = {}

    def path_of(self, data: DataSet) -> Path:
        return Path(data.path) if data.path is not None else self.out / "sets" / data.name

    def base_set(self, data: DataSet, backbone: Backbone) -> DataSet:
        """The set that a backbone for `data` is first trained on."""
        return data if backbone.base_set is None else self.plan.set_named[backbone.base_set]

    def base_folder(self, data: DataSet, backbone: Backbone) -> Path:
        return self.out / "base" / self.base_set(data, backbone).name / backbone.name

    def folder(self, cell: Cell, rate: float | None, seed: int) -> Path:
        name = f"seed_{seed}" if rate is None else f"rate_{rate:g}-seed_{seed}"
        return self.out / "runs" / cell.data.name / cell.backbone.name / cell.method / name

    def cross_folder(self, name: str, cell: Cell, seed: int) -> Path:
        return self.out / "cross_domain" / name / cell.backbone.name / cell.method / f"seed_{seed}"

    def base_argv(self, data: DataSet, backbone: Backbone) -> list[str]:
        path = self.path_of(self.base_set(data, backbone))
        where = ["-c", str(self.base_folder(data, backbone)), "--dataset", str(path), *self.reading]
        return [*where, *shlex.split(backbone.flags), *shlex.split(backbone.base or "")]

    def argv(self, cell: Cell, rate: float | None, seed: int) -> list[str]:
        """The command line of run.py for a new run: first where things are, then what is asked for."""
        backbone = cell.backbone
        where = ["-c", str(self.folder(cell, rate, seed)), "--dataset", str(self.path_of(cell.data)), *self.reading]
        if backbone.frozen:
            where += ["--features", str(self.out / "features")]
        if backbone.base is not None:
            where += ["-pt", str(self.base_folder(cell.data, backbone) / FINAL)]
        elif backbone.name in self.weights:
            where += ["-pt", self.weights[backbone.name]]
        return [*where, *self.asked(cell, rate, seed)]

    def asked(self, cell: Cell, rate: float | None, seed: int) -> list[str]:
        flags = [
            flag for flag in shlex.split(cell.backbone.flags) if cell.backbone.base is None or flag != "--no_pretrained"
        ]
        flags += ["--freeze_backbone"] if cell.backbone.frozen and rate is not None else []
        own = shlex.split(self.plan.method_flags.get(cell.method, ""))
        budget = [*shlex.split(self.plan.budget), "--seed", str(seed)]
        budget += ["-i", "0"] if rate is None else ["--learning_rate", f"{rate:g}"]
        return ["--method", cell.method, *flags, *own, *budget]

    def rates(self, cell: Cell) -> list[float | None]:
        """Those that a method is tried at; None alone where it has nothing to train."""
        key = cell.backbone.name, cell.method
        if key not in self._trains:
            argv = ["-c", "unused", *self.asked(cell, self.plan.learning_rates[0], 0)]
            settings = settings_of_run(argv, METHODS)
            try:
                with torch.device("meta"):
                    head = build_head(settings, load_pretrained=False, num_train_classes=2)
                self._trains[key] = any(parameter.requires_grad for parameter in head.parameters())
            except UserError:  # its run will fail, and say why
                self._trains[key] = True
        return [*self.plan.learning_rates] if self._trains[key] else [None]

    def chosen(self, cell: Cell) -> float | None:
        """The rate with the best validation at the first seed, the smaller one of two that are equal. Raises UserError
        where no run has been validated."""
        found = self.validations(cell)
        if not found:
            raise UserError(f"{cell} has no run that was validated")
        return max(sorted(found, key=lambda rate: rate or 0), key=lambda rate: found[rate])

    def validations(self, cell: Cell) -> dict[float | None, float]:
        """The best validation accuracy in % at each rate, of finished runs of the first seed. 0 where nothing is trained."""
        rates = self.rates(cell)
        folders = {rate: self.folder(cell, rate, self.plan.seeds[0]) for rate in rates}
        tested = {rate: folder for rate, folder in folders.items() if is_done(folder)}
        return {rate: best_validation(folder) if rate is not None else 0.0 for rate, folder in tested.items()}

    def cells(self) -> list[Cell]:
        """Set by set and backbone by backbone, the control first."""
        methods = sorted(self.plan.methods, key=lambda method: method != self.plan.control)
        return [Cell(d, b, m) for d in self.plan.sets for b in self.plan.backbones for m in methods]


def is_done(folder: Path) -> bool:
    return (folder / "results.json").exists()


def best_validation(folder: Path) -> float:
    """In %, from a run's log.csv."""
    rows = read_csv(folder / "log.csv", ("split", "accuracy"))
    return max((float(row["accuracy"]) for row in rows if row["split"] == "val"), default=0.0)


def outcome_file(folder: Path) -> Path:
    """What a run printed."""
    return folder.with_name(f"{folder.name}.txt")


def reason(folder: Path) -> str:
    """Why a run is not finished, in words, from what it printed last."""
    path = outcome_file(folder)
    lines = path.read_text(errors="replace").split("\n") if path.exists() else []
    said = [line for line in lines if line.strip()]
    return said[-1].removeprefix("error: ") if said else "not run yet"


# ---------------------------------------------------------------------------------------------------------------------
# The work: several processes at a time, each for one run. They are forks of this one, which has imported everything.


@dataclasses.dataclass(frozen=True)
class Job:
    """A run to be made: its folder, the command line of a new one, and whether its work is done."""

    name: str
    folder: Path
    argv: list[str]
    main: Callable[[list[str]], int] = run.main
    done: Callable[[Path], bool] = is_done
    asked: list[str] = dataclasses.field(default_factory=list)

    def check(self) -> None:
        """Raises UserError where the folder holds a run that was asked for something else."""
        path = self.folder / "command.txt"
        if self.asked and path.exists():
            begun = path.read_text(errors="replace").partition("\n")[0]
            if not begun.endswith(f" {shlex.join(self.asked)}"):
                raise UserError(
                    f"{self.folder} holds a run with other settings ({begun}), expected {shlex.join(self.asked)}: give another "
                    "--out, or remove it"
                )

    def run(self) -> int:
        """Makes, or goes on with, the run in this process. Returns its exit code."""
        with locked(self.folder.with_name(f".{self.folder.name}.lock"), wait=True):
            if self.done(self.folder):  # by another shard, meanwhile
                return 0
            started = time.perf_counter()
            resumes = (self.folder / "args.json").exists()
            place = self.argv.index("--num_workers")
            again = ["-c", str(self.folder), "-r", *self.argv[place : place + 2]]
            code = self.main(again if resumes else self.argv)
            if (self.folder / "args.json").exists():
                add_cost(self.folder, time.perf_counter() - started)
            return code


def add_cost(folder: Path, seconds: float) -> None:
    """Keeps the seconds of all starts of a run, and the most memory that any of them took, in bytes: of the GPU, or of the
    process where there is none."""
    memory = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if torch.cuda.is_available():
        memory = torch.cuda.max_memory_allocated()
    path = folder / COST
    cost = read_json(path) if path.exists() else {"seconds": 0.0, "memory": 0}
    write_json(path, {"seconds": cost["seconds"] + seconds, "memory": max(cost["memory"], memory)})


def work(job: Job, threads: int, gpu: str | None) -> None:
    """What a process of its own does: one run, with what it prints in a file beside its folder."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    torch.set_num_threads(threads)
    path = outcome_file(job.folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout, sys.stderr = (os.fdopen(n, "w", errors="replace", closefd=False) for n in (1, 2))
    sys.exit(job.run())


def import_all() -> None:
    """Imports what a run imports late, so that its process has it already."""
    import jinja2  # noqa: F401
    import torch.utils.tensorboard  # noqa: F401


class Workers:
    """Runs jobs, `slots` at a time. Stops them all when this process is stopped."""

    def __init__(self, slots: int, gpus: Sequence[str]) -> None:
        self.slots, self.gpus = slots, gpus
        self.finished = self.failed = 0

    def do(self, jobs: Iterable[Job]) -> None:
        """Runs those of the jobs that are not done. A job that fails is told and left."""
        jobs = list(jobs)
        for job in jobs:
            job.check()
        todo = [job for job in jobs if not job.done(job.folder)]
        if todo:
            import_all()
        threads = max(1, torch.get_num_threads() // max(1, min(self.slots, len(todo))))
        context = multiprocessing.get_context("fork")
        free = list(range(self.slots))
        at_work: dict[Any, tuple[Any, Job, int, float]] = {}  # by sentinel: process, job, slot, start
        try:
            while todo or at_work:
                while todo and free:
                    slot, job = free.pop(0), todo.pop(0)
                    gpu = self.gpus[slot % len(self.gpus)] if self.gpus else None
                    process = context.Process(target=work, args=(job, threads, gpu))
                    process.start()
                    at_work[process.sentinel] = process, job, slot, time.perf_counter()
                for sentinel in wait(list(at_work)):
                    process, job, slot, started = at_work.pop(sentinel)
                    process.join()
                    free.append(slot)
                    self.tell(job, process.exitcode, time.perf_counter() - started)
        finally:
            for process, *_ in at_work.values():  # each saves, and ends
                process.terminate()
            for process, *_ in at_work.values():
                process.join()

    def tell(self, job: Job, code: int | None, seconds: float) -> None:
        """Prints how a job ended. Raises what stopped it, where it was stopped from outside."""
        if code == TERMINATED:
            raise Terminated
        if code == STOPPED:
            raise KeyboardInterrupt
        self.finished += 1
        if code == 0:
            how = said_of(job.folder)
        else:
            self.failed += 1
            if code is not None and code < 0:
                with open(outcome_file(job.folder), "a", encoding="utf-8") as file:
                    file.write(f"killed by signal {-code}; of 9, the machine may have run out of memory\n")
            how = f"FAILED: {reason(job.folder)}"
        print(f"{job.name}  {how}  ({seconds:.0f} s)", flush=True)


def said_of(folder: Path) -> str:
    results = read_json(folder / "results.json") if is_done(folder) else {}
    return f"{results['accuracy']:.1f} %" if "sizes" in results else "done"


# ---------------------------------------------------------------------------------------------------------------------
# The board


def make_sets(runs: Runs, sets: Iterable[DataSet], jobs: int) -> None:
    """Draws the made-up sets that are not there yet."""
    for data in sets:
        if data.path is not None:
            continue
        path = runs.path_of(data)
        command = [sys.executable, str(ROOT / "data_prep" / "make_demo_set.py"), str(path), "--jobs", str(jobs)]
        with locked(path.with_name(f".{path.name}.lock"), wait=True):
            code = subprocess.run([*command, *shlex.split(data.make or "")], check=False).returncode
        if code < 0:
            raise Terminated
        if code:
            raise UserError(f"the set {data.name} could not be made, for the reason above: mend its 'make'")


def base_jobs(runs: Runs, cells: Iterable[Cell]) -> list[Job]:
    trained = {runs.base_folder(cell.data, cell.backbone): cell for cell in cells if cell.backbone.base is not None}
    return [
        Job(
            f"base training of {cell.backbone.name} on {runs.base_set(cell.data, cell.backbone).name}",
            runs.base_folder(cell.data, cell.backbone),
            runs.base_argv(cell.data, cell.backbone),
            run_supervised.main,
            lambda folder: (folder / FINAL).exists(),
            [*shlex.split(cell.backbone.flags), *shlex.split(cell.backbone.base or "")],
        )
        for cell in trained.values()
    ]


def job_of(runs: Runs, cell: Cell, rate: float | None, seed: int) -> Job:
    at = "" if rate is None else f" at rate {rate:g}"
    asked = runs.asked(cell, rate, seed)
    return Job(f"{cell}, seed {seed}{at}", runs.folder(cell, rate, seed), runs.argv(cell, rate, seed), asked=asked)


def tuning_jobs(runs: Runs, cells: Iterable[Cell]) -> list[Job]:
    return [job_of(runs, cell, rate, runs.plan.seeds[0]) for cell in cells for rate in runs.rates(cell)]


def leaders(runs: Runs, cells: Iterable[Cell]) -> list[Job]:
    """A run for each set and backbone, which stores the features that the others read."""
    first = {(cell.data.name, cell.backbone.name): cell for cell in reversed(list(cells)) if cell.backbone.frozen}
    return [tuning_jobs(runs, [cell])[0] for cell in first.values()]


def seed_jobs(runs: Runs, cells: Iterable[Cell]) -> list[Job]:
    """All seeds at the chosen rate; none where no rate could be chosen."""
    return [
        job_of(runs, cell, runs.chosen(cell), seed)
        for cell in cells
        if runs.validations(cell)
        for seed in runs.plan.seeds
    ]


def cross_jobs(runs: Runs, cells: Iterable[Cell]) -> list[Job]:
    """Tests of finished runs on the test split of another set."""
    jobs = []
    for name, both in runs.plan.cross_domain.items():
        other = runs.path_of(runs.plan.set_named[both["test"]])
        for cell in cells:
            if cell.data.name != both["train"] or not runs.validations(cell):
                continue
            for seed in runs.plan.seeds:
                trained = runs.folder(cell, runs.chosen(cell), seed)
                checkpoint = next((trained / n for n in (BEST, FINAL) if (trained / n).exists()), None)
                if checkpoint is not None and is_done(trained):
                    folder = runs.cross_folder(name, cell, seed)
                    argv = ["-c", str(folder), "--test_only", "-m", str(checkpoint), "--test_dataset", str(other)]
                    jobs.append(Job(f"{name}: {cell}, seed {seed}", folder, [*argv, *runs.reading]))
    return jobs


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


def board_of(runs: Runs, command: str) -> Board:
    """All that is finished, and what is not and why. command: that made it."""
    plan = runs.plan
    entries: list[Entry | None] = []
    missing: dict[str, str] = {}
    for cell in runs.cells():
        rated = bool(runs.validations(cell))
        wanted = tuning_jobs(runs, [cell]) + (seed_jobs(runs, [cell]) if rated else [])
        missing |= {job.name: reason(job.folder) for job in wanted if not is_done(job.folder)}
        if rated:
            entries.append(entry_of(runs, cell, cell.data.name, partial(runs.folder, cell, runs.chosen(cell))))
            for name, both in plan.cross_domain.items():
                if both["train"] == cell.data.name:
                    entries.append(entry_of(runs, cell, name, partial(runs.cross_folder, name, cell)))
    missing |= {job.name: reason(job.folder) for job in cross_jobs(runs, runs.cells()) if not is_done(job.folder)}
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
        weights=[Weights(b.name, b.pretraining, b.frozen, b.flags, b.base, b.base_set) for b in plan.backbones],
        methods=plan.methods,
        method_flags=plan.method_flags,
        entries=[entry for entry in entries if entry is not None],
        missing=missing,
        command=command,
        versions=versions(),
    )


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


# ---------------------------------------------------------------------------------------------------------------------
# The program


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument("file", type=Path, metavar="FILE.toml", help="the plan; see docs/leaderboard.md")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of the board; unset: runs/ and the file's name")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=PATH", help="where a set of the file lies; may be repeated"
    )
    parser.add_argument(
        "--weights", action="append", default=[], metavar="NAME=FILE",
        help="weights of a backbone of the file, as -pt of run.py; may be repeated",
    )  # fmt: skip
    parser.add_argument("--shard", default="1/1", metavar="I/N", help="do the I-th of N parts, each a job of its own")
    parser.add_argument("--jobs", type=int, least=1, help="runs at a time; unset: one for each GPU, or else each core")
    parser.add_argument("--num_workers", type=int, default=0, least=0, help="processes that read ahead, for each run")
    parser.add_argument("--list", action="store_true", help="print all runs and how they stand, and stop")
    return parser.parse_args(argv)


def shard_of(text: str) -> tuple[int, int]:
    """(i, n) of 'i/n'."""
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise UserError(f"--shard is {text}: expected I/N with I from 1 to N, such as 2/8")
    return int(found[1]), int(found[2])


def places_of(flag: str, words: Sequence[str]) -> dict[str, str]:
    """Paths by name, of words such as NAME=PATH."""
    pairs = [word.partition("=") for word in words]
    if wrong := [word for word, (_, equals, path) in zip(words, pairs, strict=True) if not equals or not path]:
        raise UserError(f"{flag} is {wrong[0]}: expected NAME=PATH")
    return {name: path for name, _, path in pairs}


def visible_gpus() -> list[str]:
    """Their names for CUDA_VISIBLE_DEVICES. Asked of the driver's library: CUDA itself must not be started before a fork."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()
    return named.split(",")[:count] if named else [str(number) for number in range(count)]


def with_places(plan: Plan) -> Plan:
    """The plan without sets that nobody has said the place of, which is told."""
    known = [data for data in plan.sets if data.path is not None or data.make is not None]
    unknown = [data.name for data in plan.sets if data not in known]
    if not known:
        raise UserError(f"no set has a path: say where they lie, by --set {unknown[0]}=FOLDER")
    for name in unknown:
        print_note(f"the set {name} is left out: --set {name}=FOLDER says where it lies")
    crossing = {n: both for n, both in plan.cross_domain.items() if not set(both.values()) & set(unknown)}
    return dataclasses.replace(plan, sets=known, cross_domain=crossing)


def make_board(args: argparse.Namespace, words: Sequence[str]) -> int:
    plan = with_places(read_plan(args.file, places_of("--set", args.set)))
    weights = places_of("--weights", args.weights)
    if unknown := weights.keys() - {backbone.name for backbone in plan.backbones}:
        raise unknown_name("backbone", min(unknown), [backbone.name for backbone in plan.backbones])
    runs = Runs(plan, args.out or Path("runs") / args.file.stem, weights, args.num_workers)
    index, count = shard_of(args.shard)
    cells = runs.cells()
    own = cells[index - 1 :: count]
    if args.list:
        print_list(runs, own)
        return 0
    gpus = visible_gpus()
    workers = Workers(args.jobs or len(gpus) or os.cpu_count() or 1, gpus)
    with Termination():
        tested_on = {both["test"] for both in plan.cross_domain.values() if both["train"] in {c.data.name for c in own}}
        needed = {cell.data.name for cell in own} | tested_on
        needed |= {runs.base_set(cell.data, cell.backbone).name for cell in own if cell.backbone.base is not None}
        make_sets(runs, [data for data in plan.sets if data.name in needed], workers.slots)
        stages: list[Callable[[Runs, Sequence[Cell]], list[Job]]]
        stages = [base_jobs, leaders, tuning_jobs, seed_jobs, cross_jobs]
        for stage in stages:
            workers.do(stage(runs, own))
        pages = write_board(board_of(runs, shlex.join(["python", "scripts/leaderboard.py", *words])), runs.out)
    print(
        f"{workers.finished} runs made, {workers.failed} of them failed; wrote {', '.join(p.name for p in pages)} to {runs.out}"
    )
    return 0


def print_list(runs: Runs, cells: Sequence[Cell]) -> None:
    jobs = [*base_jobs(runs, cells), *tuning_jobs(runs, cells), *seed_jobs(runs, cells), *cross_jobs(runs, cells)]
    for job in {job.folder: job for job in jobs}.values():
        begun = (job.folder / "args.json").exists()
        state = "done" if job.done(job.folder) else f"{'begun' if begun else 'to do'}: {reason(job.folder)}"
        print(f"{job.name}  {state}")
    untuned = [cell for cell in cells if not runs.validations(cell)]
    print(f"and {len(runs.plan.seeds) - 1} more seeds of {len(untuned)} methods whose rate is not chosen yet")


def main(argv: Sequence[str] | None = None) -> int:
    words = arguments(argv)
    return exit_code(lambda: make_board(parse_args(words), words), resume="; start it again to go on")


if __name__ == "__main__":
    sys.exit(main())
