"""Writes and reads the list files by which other libraries say what a data set holds.

    python data_prep/annotate.py write --src data/ssv2 --dst lists                        # lists/train.txt, category.txt ...
    python data_prep/annotate.py write --src data/k400 --dst lists --format ranges --separator ';'
    python data_prep/annotate.py read --list lists/train.txt lists/val.txt --root frames --names lists/category.txt \\
        --dst data/theirs                                                                 # links, no copies

frames:  `path num_frames label`     TSN, TSM, TDN and their kin, for folders of frames
video:   `path label`                the same family, for video files
ranges:  `path first last label`     the Action Recognition Study; frame numbers as in the file names, both included

Labels count from --first_label in the order of category.txt, a line per class. Paths are relative to --src or --root.
"""

from __future__ import annotations

import argparse
import sys
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the project, wherever this is run from
from clips.frame_sources import VIDEO_SUFFIXES, frame_files
from clips.list_files import FORMS, Row, format_row, frame_number, frames_of, read_class_names, read_list
from data_prep import extract
from utils import UserError, atomic_write

CATEGORIES = "category.txt"
LABELLED_FORMS = [form for form in FORMS if form != "unlabelled"]


# ---------------------------------------------------------------------------------------------------------------------
# Folders -> lists


def rows_of(folder: Path, form: str, path: str, label: int) -> Iterator[Row]:
    """A row for every video of a class folder."""
    for video in sorted(folder.iterdir()):
        name = f"{path}/{video.name}"
        if form == "video" and video.suffix.lower() in VIDEO_SUFFIXES and video.name[0] != ".":
            yield Row(name, (), (label,))
        elif form != "video" and video.is_dir() and (frames := frame_files(video)):
            numbers = (len(frames),) if form == "frames" else (frame_number(frames[0]), frame_number(frames[-1]))
            yield Row(name, numbers, (label,))


def write(args: argparse.Namespace) -> int:
    folders = list(extract.class_folders(args.src))
    classes = sorted({folder.name for _, folder in folders})
    lists: dict[str, list[str]] = {}
    for split, folder in folders:
        rows = rows_of(folder, args.format, f"{split}/{folder.name}", classes.index(folder.name))
        lists.setdefault(split, []).extend(format_row(row, args.separator, args.first_label) for row in rows)
    if not any(lists.values()):
        raise UserError(f"{args.src} holds no video for --format {args.format}: see --help for what it lists")
    args.dst.mkdir(parents=True, exist_ok=True)
    for name, lines in {CATEGORIES: classes, **{f"{split}.txt": lines for split, lines in lists.items()}}.items():
        with atomic_write(args.dst / name) as file:
            file.write("".join(f"{line}\n" for line in lines).encode())
        print(f"{args.dst / name}: {len(lines):,} lines")
    return 0


# ---------------------------------------------------------------------------------------------------------------------
# Lists -> folders of links


def link_row(row: Row, root: Path, target: Path, work: Path, prefix: str) -> bool:
    """Makes `target` a link to a video file, or a folder of links to frames. False when they are not all there."""
    source = root / row.path
    if not row.numbers:
        file = next((file for file in (source, source.with_name(f"{source.name}.mp4")) if file.is_file()), None)
        if file and not (link := target.with_name(file.name)).is_symlink():
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(file)
        return file is not None
    images = [name for name in frame_files(source) if name.startswith(prefix)] if source.is_dir() else []
    names = frames_of(images, row.numbers)
    if names:
        folder = work / uuid.uuid4().hex
        folder.mkdir()
        for name in names:
            (folder / name).symlink_to(source / name)
        extract.install(folder, target)
    return bool(names)


def read(args: argparse.Namespace) -> int:
    root = args.root.resolve()
    names = read_class_names(args.names) if args.names else []
    targets: dict[Path, Row] = {}
    for split, path in extract.list_files(args.list).items():
        for row in read_list(path, args.format, separator=args.separator, first_label=args.first_label):
            (number,) = row.labels
            if names and number >= len(names):
                raise UserError(
                    f"{path} has label {number}, {args.names} has {len(names)} classes from 0: give its own"
                )
            label = extract.folder_name(names[number]) if names else f"{number:04d}"
            part = "_{}_{}".format(*row.numbers) if len(row.numbers) == 2 else ""
            target = args.dst.resolve() / split / label / f"{Path(row.path).name}{part}"
            if targets.setdefault(target, row) != row:
                raise UserError(f"'{targets[target].path}' and '{row.path}' would both be {target}: rename one of them")
    with extract.writing_to(args.dst), extract.alone(args.dst, "annotate"):
        work = extract.empty_folder(args.dst / extract.UNFINISHED / "annotate")
        todo = {target: row for target, row in targets.items() if not (target.exists() or target.is_symlink())}
        failures = {
            row.path: f"not in {root}, or not with the frames that its line says"
            for target, row in todo.items()
            if not link_row(row, root, target, work, args.prefix)
        }
        print(f"{len(targets):,} videos listed, {len(targets) - len(failures):,} linked in {args.dst}")
        return extract.name_failures(args.dst, failures)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=extract.HelpFormatter, allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True, metavar="write|read")
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--format", choices=LABELLED_FORMS, default="frames", help="what a line holds")
    shared.add_argument(
        "--separator", default=" ", metavar="LETTER", help="between columns; ';' where names have blanks"
    )
    shared.add_argument("--first_label", type=int, choices=(0, 1), default=0, help="number of the first class")

    options: dict[str, Any] = {"parents": [shared], "formatter_class": extract.HelpFormatter, "allow_abbrev": False}
    writing = commands.add_parser("write", help="lists of a data set in folders", **options)
    writing.add_argument("--src", type=Path, required=True, metavar="FOLDER", help="{train,val,test}/<class>/<video>")
    writing.add_argument("--dst", type=Path, required=True, metavar="FOLDER", help="for the lists and category.txt")
    reading = commands.add_parser("read", help="folders, of links, of a data set in lists", **options)
    reading.add_argument(
        "--list", type=Path, nargs="+", required=True, metavar="FILE", help="whose names say train, val or test"
    )
    reading.add_argument("--root", type=Path, required=True, metavar="FOLDER", help="what the paths are relative to")
    reading.add_argument("--dst", type=Path, required=True, metavar="FOLDER", help="the data set to make")
    reading.add_argument(
        "--names", type=Path, metavar="FILE", help="class names, a line each; else numbers name classes"
    )
    reading.add_argument("--prefix", default="", help="of the frames, where a folder also holds others: img_")
    args = parser.parse_args(argv)
    return extract.guarded(lambda: {"write": write, "read": read}[args.command](args))


if __name__ == "__main__":
    sys.exit(main())
