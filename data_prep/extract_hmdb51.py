"""Frames of HMDB51 (hmdb51_org.rar and the archive of each class in it, unpacked).

    python data_prep/extract_hmdb51.py --src hmdb51_org --dst data/hmdb51
    python data_prep/extract_hmdb51.py --src hmdb51_org --dst data/hmdb51_1 --split official1 \\
        --annotations testTrainMulti_7030_splits

'arn' is the few-shot split with 31, 10 and 10 classes; see splits/hmdb51_arn/SOURCE.md. The official splits are for
supervised recognition: every class is in train and in test, and some videos are in neither.
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

OFFICIAL_PARTS = {"1": "train", "2": "test"}  # 0 stands for unused


def official_rows(folder: Path, number: str) -> extract.Rows:
    """Rows of the files <class>_test_split<number>.txt with lines `name.avi part`."""
    suffix = f"_test_split{number}.txt"
    files = sorted(folder.glob(f"*{suffix}"))
    if not files:
        raise UserError(f"{folder} holds no file *{suffix}: expected the unpacked folder testTrainMulti_7030_splits")
    rows: extract.Rows = {"train": [], "test": []}
    for file in files:
        for line in read_lines(file):
            name, _, part = line.rpartition(" ")
            if not name or part not in ("0", *OFFICIAL_PARTS):
                raise UserError(f"{file} has the line '{line[:80]}': expected a video's name and 0, 1 or 2")
            if part in OFFICIAL_PARTS:
                rows[OFFICIAL_PARTS[part]].append((file.name.removesuffix(suffix), extract.stem(name.strip())))
    return rows


def wanted(args: argparse.Namespace) -> list[extract.Video]:
    found = [(path.parent.name, path) for path in extract.find_videos(args.src)]
    if args.split == "arn":
        return extract.by_class(extract.read_classes("hmdb51_arn"), found)
    if not args.annotations:
        raise UserError(f"--split {args.split} needs --annotations, the unpacked folder testTrainMulti_7030_splits")
    paths = {(label, extract.stem(path.name)): path for label, path in found}
    return extract.by_list(official_rows(args.annotations, args.split[-1]), None, lambda *video: paths.get(video))


def main(argv: Sequence[str] | None = None) -> int:
    parser = extract.build_parser(__doc__)
    splits = parser.add_argument_group("split")
    splits.add_argument("--split", choices=("arn", "official1", "official2", "official3"), default="arn")
    splits.add_argument(
        "--annotations", type=Path, metavar="FOLDER", help="testTrainMulti_7030_splits, for the official splits"
    )
    return extract.main(parser, wanted, argv)


if __name__ == "__main__":
    sys.exit(main())
