"""Frames of Something-Something V1 (20bn-something-something-v1/<id>/00001.jpg ... and the csv files).

    python data_prep/extract_ssv1.py --src 20bn-something-something-v1 --dst data/ssv1 --annotations labels
    python data_prep/extract_ssv1.py ... --split mine.json        # a few-shot split of your own

The download holds frames 100 pixels high. They are copied as they are unless --size or --short_side asks for more.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the project, wherever this is run from
from clips.list_files import read_lines
from data_prep import extract
from utils import UserError

OFFICIAL_PARTS = {"train": "train", "val": "validation"}  # the videos of the official test part have no labels


def official_rows(folder: Path) -> extract.Rows:
    """Rows of *train.csv and *validation.csv with lines `id;class`."""
    rows: extract.Rows = {}
    for split, part in OFFICIAL_PARTS.items():
        files = [file for file in sorted(folder.glob(f"*{part}.csv")) if file.name[0] != "."]
        if not files:
            raise UserError(f"{folder} holds no file *{part}.csv: expected the label files of the data set")
        rows[split] = []
        for line in read_lines(files[0]):
            name, _, label = line.partition(";")
            if not label:
                raise UserError(f"{files[0]} has the line '{line[:80]}': expected id;class")
            rows[split].append((label, name))
    return rows


def wanted(args: argparse.Namespace) -> list[extract.Video]:
    def find(label: str, name: str) -> Path | None:
        # Asked one by one, as listing 100,000 folders of frames takes long.
        return args.src / name if (args.src / name).is_dir() else None

    rows = official_rows(args.annotations)
    if args.split == "official":
        return extract.by_list(rows, None, find)
    classes = extract.read_classes(args.split)
    labelled = [row for part in rows.values() for row in part]
    of_class = {split: {extract.same(label) for label in labels} for split, labels in classes.items()}
    chosen = {split: [row for row in labelled if extract.same(row[0]) in of_class[split]] for split in classes}
    return extract.by_list(chosen, classes, find)


def main(argv: Sequence[str] | None = None, doc: str | None = __doc__) -> int:
    parser = extract.build_parser(doc)
    splits = parser.add_argument_group("split")
    splits.add_argument("--split", default="official", metavar="JSON", help="a split file, see extract_folder.py")
    splits.add_argument("--annotations", type=Path, required=True, metavar="FOLDER", help="with the csv files")
    parser.set_defaults(size="original")
    return extract.main(parser, wanted, argv)


if __name__ == "__main__":
    sys.exit(main())
