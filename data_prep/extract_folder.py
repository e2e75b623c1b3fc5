"""Frames of any data set that lies in class folders: a video file or a folder of frames each.

    python data_prep/extract_folder.py --src videos --dst data/mine                   # videos/{train,val,test}/<class>/
    python data_prep/extract_folder.py --src videos --dst data/mine --split mine.json # videos/<class>/

The split file says which class is for what: {"train": ["juggling", ...], "val": [...], "test": [...]}; with
{"train": {"juggling": 120, ...}, ...} the numbers of videos are checked, too.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the project, wherever this is run from
from clips.listing import first_few
from data_prep import extract
from utils import UserError, print_note


def labelled(folder: Path) -> list[tuple[str, Path]]:
    """(class, video) of all videos in class folders below a folder, which need not be there."""
    videos = list(extract.find_videos(folder)) if folder.is_dir() else []
    if stray := [path.name for path in videos if path.parent == folder]:
        print_note(f"{folder}: {len(stray):,} video(s) passed over, being in no class folder: {first_few(stray)}")
    return [(path.parent.name, path) for path in videos if path.parent != folder]


def wanted(args: argparse.Namespace) -> list[extract.Video]:
    if args.split != "folders":
        return extract.by_class(extract.read_classes(args.split), labelled(args.src))
    videos = []
    for split in extract.SPLITS:
        found = labelled(args.src / split)
        videos += extract.by_class({split: dict.fromkeys(label for label, _ in found)}, found)
    if not videos:
        raise UserError(f"{args.src} has no train/, val/ or test/ with class folders: say which is what with --split")
    return videos


def main(argv: Sequence[str] | None = None) -> int:
    parser = extract.build_parser(__doc__)
    parser.add_argument("--split", default="folders", metavar="JSON", help="a split file, or 'folders': they say it")
    return extract.main(parser, wanted, argv)


if __name__ == "__main__":
    sys.exit(main())
