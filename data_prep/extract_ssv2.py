"""Frames of Something-Something V2 (20bn-something-something-v2/*.webm and the folder with the label files).

    python data_prep/extract_ssv2.py --src 20bn-something-something-v2 --dst data/ssv2_otam --annotations labels
    python data_prep/extract_ssv2.py --src 20bn-something-something-v2 --dst data/ssv2_small --split cmn_small \\
        --list lists

otam:       few-shot, 64, 12 and 24 classes, all their videos; "SSv2-full". Needs --annotations.
cmn_small:  few-shot, 64, 12 and 24 other classes, 100 chosen videos each; "SSv2-small". Needs --list, public files that
            splits/ssv2_cmn_small/SOURCE.md says where to find.
official:   supervised, all 174 classes in train and in val. Needs --annotations.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the project, wherever this is run from
from data_prep import extract
from utils import UserError, read_json


def official_rows(folder: Path, part: str) -> list[tuple[str, str]]:
    """(class, id) of the official `part`, train or validation. A class is the template without its brackets."""
    files = [file for file in sorted(folder.glob(f"*{part}.json")) if file.name[0] != "."]
    if not files:
        raise UserError(f"{folder} holds no file *{part}.json: expected the label files of Something-Something V2")
    items = read_json(files[0])
    if not isinstance(items, list) or not all(isinstance(i, dict) and {"template", "id"} <= set(i) for i in items):
        raise UserError(f"{files[0]} is no label file: expected a list of entries that have a template and an id")
    return [(str(item["template"]).replace("[", "").replace("]", ""), str(item["id"])) for item in items]


def otam_rows(folder: Path, classes: extract.Classes) -> extract.Rows:
    """Train classes come from the official train part, the others from the official validation part."""
    official = {part: official_rows(folder, part) for part in ("train", "validation")}
    rows: extract.Rows = {}
    for split, labels in classes.items():
        known = {extract.same(label) for label in labels}
        part = official["train" if split == "train" else "validation"]
        rows[split] = [(label, name) for label, name in part if extract.same(label) in known]
    return rows


def wanted(args: argparse.Namespace) -> list[extract.Video]:
    needed = "list" if args.split == "cmn_small" else "annotations"
    if not getattr(args, needed):
        raise UserError(f"--split {args.split} needs --{needed}; see --help")
    paths = {extract.stem(path.name): path for path in extract.find_videos(args.src)}

    def find(label: str, name: str) -> Path | None:
        return paths.get(name)

    if args.split == "official":
        parts = {"train": "train", "val": "validation"}
        return extract.by_list({split: official_rows(args.annotations, parts[split]) for split in parts}, None, find)
    classes = extract.read_classes(f"ssv2_{args.split}")
    rows = extract.read_rows(args.list) if args.list else otam_rows(args.annotations, classes)
    return extract.by_list(rows, classes, find)


def main(argv: Sequence[str] | None = None) -> int:
    parser = extract.build_parser(__doc__)
    splits = parser.add_argument_group("split")
    splits.add_argument("--split", choices=("otam", "cmn_small", "official"), default="otam")
    splits.add_argument("--annotations", type=Path, metavar="FOLDER", help="with *train.json and *validation.json")
    splits.add_argument("--list", type=Path, nargs="+", metavar="PATH", help="train, val, test lists, or their folder")
    return extract.main(parser, wanted, argv)


if __name__ == "__main__":
    sys.exit(main())
