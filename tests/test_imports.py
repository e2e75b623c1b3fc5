"""Who may import whom: floors of a house, and nobody looks up."""

from __future__ import annotations

import ast
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# From the ground up. A module or room imports from the floors below its own, and from its own room; rooms of one floor do
# not know each other. Of the programs nobody knows anything.
FLOORS = [
    {"utils"},
    {"clips"},
    {"backbones", "results", "video_reader"},
    {"engine"},
    {"model"},
    {"methods"},
    {"run", "run_supervised"},
]
OUTSIDE = {"scripts", "data_prep", "tests"}
"""Commands: they may import from every floor and from their own room, and nothing imports them."""

TOP_LEVEL = 5  # files that users open first: the two programs, model.py, video_reader.py, utils.py


def room_of(path: Path) -> str:
    """The top-level module or package that a file belongs to."""
    return path.parts[0].removesuffix(".py")


def floor_of(room: str) -> int:
    return next(number for number, rooms in enumerate(FLOORS) if room in rooms)


@cache
def imports(source: str) -> list[tuple[int, str]]:
    """(line, top-level module) of every import in it, wherever it stands. '.' is a relative one."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name.partition(".")[0]) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found.append((node.lineno, "." if node.level else (node.module or "").partition(".")[0]))
    return found


def allowed_in(room: str) -> set[str]:
    if room in OUTSIDE:
        return {room, *set().union(*FLOORS)} | ({"data_prep", "scripts"} if room == "tests" else set())
    return {room, *set().union(*FLOORS[: floor_of(room)])} - {"run", "run_supervised"}


def violations(files: dict[Path, str]) -> list[str]:
    """What the rule forbids in files {path from the root: source}."""
    ours = set().union(*FLOORS) | OUTSIDE
    return [
        f"{path}:{line} imports {name}"
        for path, source in files.items()
        for line, name in imports(source)
        if name == "." or (name in ours and name not in allowed_in(room_of(path)))
    ]


@cache
def our_files() -> dict[Path, str]:
    rooms = [path for path in ROOT.iterdir() if path.is_dir() and path.name[0] != "."]
    paths = [*ROOT.glob("*.py"), *(path for room in rooms for path in room.rglob("*.py"))]
    return {path.relative_to(ROOT): path.read_text(encoding="utf-8") for path in paths}


def test_every_file_has_its_floor() -> None:
    rooms = {room_of(path) for path in our_files()}
    assert rooms == set().union(*FLOORS) | OUTSIDE
    assert len(list(ROOT.glob("*.py"))) == TOP_LEVEL


def test_an_installation_has_every_floor() -> None:
    """`pip install -e .` makes importable what pyproject.toml lists."""
    tomllib = pytest.importorskip("tomllib")
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert {*listed["py-modules"], *listed["packages"]} == set().union(*FLOORS)
    assert all((ROOT / room / "__init__.py").exists() for room in listed["packages"])


def test_imports_go_downwards() -> None:
    # The benchmark compares methods with their literal forms, which are written for the tests.
    exceptions = {"scripts/benchmark.py imports tests"}
    found = {f"{line.partition(':')[0]} imports {line.split()[-1]}" for line in violations(our_files())}
    assert found == exceptions


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("utils.py", "import clips.transforms"),
        ("backbones/tsm.py", "def late():\n    from model import CNN_FSHead"),
        ("backbones/tsm.py", "from .resnet2d import resnet"),
        ("backbones/tsm.py", "import video_reader as v"),
        ("model.py", "from run import main"),
        ("model.py", "import torch, methods"),
        ("video_reader.py", "from backbones import Backbone"),
        ("clips/clip_dataset.py", "from video_reader import VideoDataset"),
        ("clips/list_files.py", "from data_prep import extract"),
        ("results/report.py", "from engine.flags import first_look"),
        ("engine/settings.py", "from methods import METHODS"),
        ("methods/pal.py", "from run_supervised import Trainer"),
        ("run.py", "import run_supervised"),
        ("run.py", "from scripts.compare import main"),
        ("data_prep/shrink.py", "from scripts.compare import main"),
    ],
)
def test_a_forbidden_import_is_found(path: str, line: str) -> None:
    files = our_files()
    broken = {**files, Path(path): files[Path(path)] + "\n" + line + "\n"}
    (found,) = set(violations(broken)) - set(violations(files))
    assert found.startswith(f"{path}:")


def modules_of(room: str) -> dict[str, set[str]]:
    """Which modules of a room import which of it."""
    graph = {}
    for path, source in our_files().items():
        if path.parts[0] == room and len(path.parts) > 1:
            name = ".".join(path.with_suffix("").parts)
            nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom)]
            graph[name] = {node.module for node in nodes if node.module and node.module.startswith(f"{room}.")}
    return graph


def circle_in(graph: dict[str, set[str]]) -> list[str]:
    """The modules that are left when one that imports none of the others is taken away, again and again."""
    left = dict(graph)
    while free := [name for name, needs in left.items() if not needs & left.keys()]:
        for name in free:
            del left[name]
    return sorted(left)


@pytest.mark.parametrize("room", sorted({"backbones", "clips", "data_prep", "engine", "methods", "results", "scripts"}))
def test_no_room_has_a_circle(room: str) -> None:
    graph = modules_of(room)
    assert len(graph) > 3
    assert circle_in(graph) == []


def test_a_circle_is_found() -> None:
    assert circle_in({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}) == ["a", "b", "c"]


def test_only_programs_exit() -> None:
    for path, source in our_files().items():
        if room_of(path) not in OUTSIDE | FLOORS[-1]:
            exits = [
                node.lineno
                for node in ast.walk(ast.parse(source))
                if isinstance(node, ast.Attribute) and node.attr == "exit" and ast.unparse(node.value) == "sys"
            ]
            assert not exits, f"{path} exits in line {exits}"


def test_our_modules_shadow_none_of_the_standard_library() -> None:
    assert not {room_of(path) for path in our_files()} & set(sys.stdlib_module_names)
