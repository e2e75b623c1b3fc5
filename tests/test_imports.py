"""Who may import whom: the core does not know the programs, and leaves do not know each other."""

from __future__ import annotations

import ast
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# What the modules of a layer may import of ours, besides their own package. Programs and tools may import everything
# that is listed here, and nothing imports them.
LEAVES = {"utils", "transforms", "frame_sources"}
ALLOWED = {
    "utils": set(),
    "transforms": {"utils"},
    "frame_sources": set(),
    "frame_sampling": {"utils"},
    "list_files": {"utils"},
    "read_ahead": {"frame_sources", "utils"},
    "backbones": LEAVES,
    "video_split": LEAVES,
    "episodes": {*LEAVES, "video_split"},
    "video_reader": {*LEAVES, "frame_sampling", "read_ahead", "video_split", "episodes"},
    "labelled_videos": {*LEAVES, "list_files", "video_split"},
    "clip_dataset": {*LEAVES, "frame_sampling", "read_ahead", "labelled_videos"},
    "evaluation": {"utils"},
    "processes": {"utils"},
    "training": {"utils", "frame_sources", "processes"},
    "row_store": {"utils"},
    "recogniser": {"backbones"},
    "view_scores": {"utils"},
    "feature_store": {*LEAVES, "read_ahead", "video_split", "episodes", "video_reader", "processes", "row_store"},
    "model": {"backbones", "utils"},
    "arn": {"model", "backbones", "utils"},
}
TOOLS = {"scripts", "data_prep", "tests"}


def module_of(path: Path) -> str:
    """The top-level module or package that a file belongs to."""
    return path.parts[0].removesuffix(".py")


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


def violations(files: dict[Path, str]) -> list[str]:
    """What the rule forbids in files {path from the root: source}."""
    ours = {module_of(path) for path in files} | TOOLS
    found = []
    for path, source in files.items():
        module = module_of(path)
        if module in TOOLS:
            allowed = ours
        elif module in ALLOWED:
            allowed = ALLOWED[module] | ({module} if len(path.parts) > 1 else set())
        else:
            allowed = ours - TOOLS
        found += [
            f"{path}:{line} imports {name}"
            for line, name in imports(source)
            if name == "." or (name in ours and name not in allowed)
        ]
    return found


def our_files() -> dict[Path, str]:
    paths = [
        *ROOT.glob("*.py"),
        *(path for path in ROOT.glob("*/**/*.py") if path.relative_to(ROOT).parts[0][0] != "."),
    ]
    return {
        path.relative_to(ROOT): path.read_text(encoding="utf-8")
        for path in paths
        if path.relative_to(ROOT).parts[0] in {*ALLOWED, *TOOLS} or path.parent == ROOT
    }


def test_imports_go_in_one_direction() -> None:
    files = our_files()
    files = {path: source for path, source in files.items() if path.parts[0] != "tests"}
    assert len(files) > 20
    assert violations(files) == []


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("utils.py", "import transforms"),
        ("backbones/tsm.py", "def late():\n    from model.head import CNN_FSHead"),
        ("backbones/tsm.py", "from .resnet2d import resnet"),
        ("backbones/tsm.py", "import video_reader as v"),
        ("model/trx.py", "from run import main"),
        ("model/trx.py", "import torch, video_reader"),
        ("video_reader.py", "from backbones import Backbone"),
        ("clip_dataset.py", "from video_reader import VideoDataset"),
        ("list_files.py", "from data_prep import extract"),
        ("run.py", "from scripts.benchmark import main"),
        ("settings.py", "from data_prep.extract import main"),
    ],
)
def test_a_forbidden_import_is_found(path: str, line: str) -> None:
    files = our_files()
    broken = {**files, Path(path): files[Path(path)] + "\n" + line + "\n"}
    (found,) = set(violations(broken)) - set(violations(files))
    assert found.startswith(f"{path}:")


def test_programs_are_not_imported_by_what_they_are_made_of() -> None:
    """Only programs parse flags, print and exit."""
    core = [path for path in our_files() if module_of(path) in ALLOWED]
    for path in core:
        names = {name for _, name in imports((ROOT / path).read_text(encoding="utf-8"))}
        assert not {name for name in names if name.startswith("run")}, path
        exits = [
            node.lineno
            for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8")))
            if isinstance(node, ast.Attribute) and node.attr == "exit" and ast.unparse(node.value) == "sys"
        ]
        assert not exits, f"{path} exits in line {exits}"


def test_our_modules_shadow_none_of_the_standard_library() -> None:
    assert not {module_of(path) for path in our_files()} & set(sys.stdlib_module_names)
