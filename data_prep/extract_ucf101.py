"""Frames of UCF101 (UCF101.rar, unpacked).

    python data_prep/extract_ucf101.py --src UCF-101 --dst data/ucf101
    python data_prep/extract_ucf101.py --src UCF-101 --dst data/ucf101_1 --split official1 \\
        --annotations ucfTrainTestlist

'arn' is the few-shot split with 70, 10 and 21 classes; see splits/ucf101_arn/SOURCE.md. The official splits are for
supervised recognition: every class is in train and in test.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the project, wherever this is run from
from data_prep import extract
from utils import UserError


def found_videos(src: Path) -> Iterator[tuple[str, Path]]:
    """The class is read from the file's name, so that a flat folder will do. `extract.same` joins the one class that is
    spelled in two ways, HandstandPushups/v_HandStandPushups_g01_c01.avi."""
    for path in extract.find_videos(src):
        match = re.fullmatch(r"v_(.+)_g\d+_c\d+", extract.stem(path.name))
        if match:
            yield match[1], path


def wanted(args: argparse.Namespace) -> list[extract.Video]:
    found = found_videos(args.src)
    if args.split == "arn":
        return extract.by_class(extract.read_classes("ucf101_arn"), found)
    if not args.annotations:
        raise UserError(f"--split {args.split} needs --annotations, the unpacked folder ucfTrainTestlist")
    lists = [args.annotations / f"{part}list0{args.split[-1]}.txt" for part in ("train", "test")]
    paths = {path.stem.casefold(): path for _, path in found}
    return extract.by_list(extract.read_rows(lists), None, lambda label, name: paths.get(name.casefold()))


def main(argv: Sequence[str] | None = None) -> int:
    parser = extract.build_parser(__doc__)
    splits = parser.add_argument_group("split")
    splits.add_argument("--split", choices=("arn", "official1", "official2", "official3"), default="arn")
    splits.add_argument("--annotations", type=Path, metavar="FOLDER", help="ucfTrainTestlist, for the official splits")
    return extract.main(parser, wanted, argv)


if __name__ == "__main__":
    sys.exit(main())
