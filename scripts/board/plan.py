"""What leaderboard.py is asked for: a TOML file, read and checked. docs/leaderboard.md describes it."""

from __future__ import annotations

import dataclasses
import importlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from methods import METHODS
from results.leaderboard import Backbone
from utils import UserError, path_part, print_note, unknown_name


@dataclasses.dataclass(frozen=True)
class DataSet:
    """path: of a set that is there; else `make`, the flags of make_demo_set.py that draw it. split: the folder in splits/
    whose classes its test split has. flags: of run.py, for what is trained or tested on it. test_only: it is there for
    [cross_domain] alone. axis, level: its place in the profile."""

    name: str
    path: str | None = None
    make: str | None = None
    split: str | None = None
    flags: str = ""
    test_only: bool = False
    axis: str | None = None
    level: int = 0


@dataclasses.dataclass(frozen=True)
class Plan:
    """The content of the file. own_methods: where methods that are not the library's are found, as --method of run.py."""

    title: str
    budget: str
    methods: list[str]
    backbones: list[Backbone]
    sets: list[DataSet]
    seeds: list[int]
    learning_rates: list[float]
    note: str = ""
    control: str = "tsn"
    own_methods: dict[str, str] = dataclasses.field(default_factory=dict)
    method_flags: dict[str, str] = dataclasses.field(default_factory=dict)
    cross_domain: dict[str, dict[str, str]] = dataclasses.field(default_factory=dict)
    keep_checkpoints: bool = True

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
    for method in (*plan.own_methods, *plan.method_flags, plan.control):
        if method not in plan.methods:
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
    if plan.cross_domain and not plan.keep_checkpoints:
        raise UserError(f"{path}: [cross_domain] tests checkpoints again, so keep_checkpoints cannot be false")
    for name, both in plan.cross_domain.items():
        if both.keys() != {"train", "test"}:
            raise UserError(f"{path}: [cross_domain] '{name}' is {both}, expected {{train = SET, test = SET}}")
        for role in both.values():
            if role not in plan.set_named:
                raise unknown_name(f"set of '{name}' in {path}", role, plan.set_named)
        if plan.set_named[both["train"]].test_only:
            raise UserError(f"{path}: [cross_domain] '{name}' trains on {both['train']}, which is test_only")


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
