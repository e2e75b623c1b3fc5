"""Classes and functions that users bring in files of their own, named as path/to/file.py:Name."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

from utils import UserError, unknown_name

PREFIX = (
    "own_code_"  # of the names under which such files are registered, so that no model.py or utils.py replaces ours
)

_files: set[str] = set()  # that were run


def is_own_code(reference: str) -> bool:
    """Whether a method or backbone is named as path/to/file.py:Name; timm:NAME and hf:FOLDER are no code of a user's."""
    return ":" in reference and not reference.startswith(("timm:", "hf:"))


def path_of(reference: str, kind: str) -> Path:
    """The file of a reference. Raises UserError when there is none."""
    path = reference.rpartition(":")[0]
    if not Path(path).is_file():
        raise UserError(f"no file {path or reference} for {kind} '{reference}': expected path/to/file.py:Name")
    return Path(path).resolve()


def content_hash(reference: str) -> str:
    return hashlib.sha256(path_of(reference, "code").read_bytes()).hexdigest()


def import_from_file(reference: str, kind: str) -> Any:
    """The object behind 'path/to/file.py:Name', imported from where it lies, once.

    The file imports its neighbours as if it had been started as a program, except that names of ours are ours: only what
    these do not hold is looked for in a neighbour of the same name.
    """
    path, name = path_of(reference, kind), reference.rpartition(":")[2]
    module = sys.modules.get(_private_name(path)) or _load(path)
    if not hasattr(module, name):
        found = [n for n, value in vars(module).items() if getattr(value, "__module__", None) == module.__name__]
        raise unknown_name(f"{kind} in {path}", name, found)
    return getattr(module, name)


def _private_name(path: Path) -> str:
    return PREFIX + hashlib.sha256(str(path).encode(errors="surrogateescape")).hexdigest()[:16]


def _load(path: Path) -> ModuleType:
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))  # last: ours come first
    neighbours: dict[str, ModuleType] = {}
    while True:
        ours = {name: sys.modules[name] for name in neighbours}
        sys.modules.update(neighbours)
        try:
            return _execute(path)
        except ImportError as error:
            neighbour = path.with_name(f"{error.name}.py")
            known = sys.modules.get(error.name or "")
            if known is None or error.name in neighbours or not neighbour.is_file() or neighbour == path:
                raise
            neighbours[str(error.name)] = _load(neighbour)
        finally:
            sys.modules.update(ours)


def _execute(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(_private_name(path), path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    _files.add(str(path))
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[spec.name]
        raise
    return module


def blame(error: BaseException) -> str | None:
    """A sentence that says that code of the user's raised `error`, with its traceback below; None where it did not."""
    if isinstance(error, SyntaxError) and error.filename in _files:
        return f"your own code in {error.filename} is not valid Python: {error.msg} (line {error.lineno})"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "<frozen importlib" not in frame.filename]
    first = next((number for number, frame in enumerate(frames) if frame.filename in _files), None)
    if first is None:
        return None
    last = [frame for frame in frames if frame.filename in _files][-1]
    return (
        f"your own code in {last.filename}, line {last.lineno}, raised {type(error).__name__}: {error}\n"
        f"{''.join(traceback.format_list(frames[first:])).rstrip()}"
    )
