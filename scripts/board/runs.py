"""The runs of a plan: their folders, the command lines they are started by, what is done, and the rates that were chosen."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Mapping
from pathlib import Path

import torch

from engine.settings import parse_args as settings_of_run
from methods import METHODS, build_head
from results.leaderboard import Backbone
from scripts.board.plan import DataSet, Plan
from utils import FINAL, UserError, read_csv

COST = "cost.json"  # in a run folder: what the run took, which its own files do not tell


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
        budget = [*shlex.split(self.plan.budget), *shlex.split(cell.data.flags), "--seed", str(seed)]
        budget += ["-i", "0"] if rate is None else ["--learning_rate", f"{rate:g}"]
        method = self.plan.own_methods.get(cell.method, cell.method)
        return ["--method", method, *flags, *own, *budget]

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
        """What is trained, set by set and backbone by backbone, the control first."""
        methods = sorted(self.plan.methods, key=lambda method: method != self.plan.control)
        trained_on = [data for data in self.plan.sets if not data.test_only]
        return [Cell(d, b, m) for d in trained_on for b in self.plan.backbones for m in methods]


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
