"""Joins the manifests of a data set that was extracted in parts (--shard), and names all that is missing or failed.

    python data_prep/merge_manifests.py data/k400

The one manifest takes their place; later runs of the extraction, whole or in parts, resume from it.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the project, wherever this is run from
from data_prep import extract
from engine.command_line import Parser, arguments, exit_code
from utils import UserError, atomic_write


def check_shards(files: Sequence[Path]) -> None:
    """Raises UserError where a part of the shards has left no manifest."""
    shards = [match for file in files if (match := re.search(r"\.shard-(\d+)-of-(\d+)", file.name))]
    if not shards:
        raise UserError("no manifest of a shard is there: nothing to join")
    counts = {int(match[2]) for match in shards}
    if len(counts) > 1:
        raise UserError(f"manifests of {' and of '.join(map(str, sorted(counts)))} shards are there: finish one set")
    lacking = sorted(set(range(counts.pop())) - {int(match[1]) for match in shards})
    if lacking:
        raise UserError(f"shard {', '.join(map(str, lacking))} has left no manifest: run it, or copy its manifest here")


def merge(dst: Path, *, allow_missing: bool) -> int:
    """Writes <dst>/manifest.jsonl, takes away those of the shards, and reports as an extraction does."""
    files = extract.manifest_files(dst)
    check_shards(files)
    settings: dict[str, Any] = {}
    missing: dict[str, int] = {}
    for path in files:
        runs = [line for line in extract.manifest_lines(path) if "video" not in line]
        settings = next(line["settings"] for line in runs if "settings" in line)
        missing |= [line["missing"] for line in runs if "missing" in line][-1]
    entries = extract.read_entries(files, settings)
    with atomic_write(dst / "manifest.jsonl") as file:
        for line in ({"settings": settings}, {"missing": missing}, *(entries[folder] for folder in sorted(entries))):
            file.write((json.dumps(line, ensure_ascii=False) + "\n").encode(errors="backslashreplace"))
    for path in dst.glob("*.shard-*-of-*"):
        path.unlink()
    return extract.report(dst, "", entries.values(), missing, allow_missing=allow_missing)


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument("dst", type=Path, metavar="FOLDER", help="the data set, with the manifests of all shards")
    parser.add_argument("--allow_missing", action="store_true", help="end with code 0 even if some are missing")
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> int:
    if not args.dst.is_dir():
        raise UserError(f"no folder at {args.dst}: expected a data set made with --shard")
    with extract.writing_to(args.dst), extract.alone(args.dst, "all"):
        return merge(args.dst, allow_missing=args.allow_missing)


def main(argv: Sequence[str] | None = None) -> int:
    return exit_code(lambda: run(parse_args(arguments(argv))), resume=extract.RESUME)


if __name__ == "__main__":
    sys.exit(main())
