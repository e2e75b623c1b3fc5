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
import os
import sys
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the project, wherever this is run from
from clips.frame_names import frame_numbers
from clips.frame_sources import BadVideo, frame_files
from clips.list_files import (
    FORMS,
    ListFlags,
    Row,
    format_row,
    frames_of,
    label_by_folder,
    read_class_names,
    read_list,
)
from clips.listing import first_few, videos_and_others
from data_prep import extract
from engine.command_line import Parser, arguments, exit_code
from utils import UserError, atomic_write, path_part, print_note

CATEGORIES = "category.txt"
FLAGS = ListFlags("--format", "--separator", "--first_label", "--names")
LABELLED_FORMS = [form for form in FORMS if form != "unlabelled"]


# ---------------------------------------------------------------------------------------------------------------------
# Folders -> lists


def rows_of(folders: dict[str, str], files: dict[str, str], form: str, path: str, label: int) -> Iterator[Row]:
    """A row for every video of a class: of its folders of frames, or of its video files. Raises BadVideo."""
    if form == "video":
        yield from (Row(f"{path}/{Path(file).name}", (), (label,)) for file in sorted(files.values()))
        return
    for name, folder in folders.items():
        try:
            frames = frame_files(folder)
        except OSError as error:
            raise BadVideo(f"{folder} could not be listed ({error.strerror})") from error
        if frames and form == "frames":
            yield Row(f"{path}/{name}", (len(frames),), (label,))
        elif frames:
            try:
                numbers = frame_numbers(frames)
            except ValueError as error:
                raise BadVideo(f"{folder}: {error}; write --format frames") from error
            yield Row(f"{path}/{name}", (numbers[0], numbers[-1]), (label,))


def write(args: argparse.Namespace) -> int:
    folders = list(extract.class_folders(args.src))
    classes = sorted({folder.name for _, folder in folders})
    lists: dict[str, list[str]] = {}
    others: list[str] = []
    for split, folder in folders:
        path, label = f"{split}/{folder.name}", classes.index(folder.name)
        frames, files, strange = videos_and_others(folder)
        try:
            rows = list(rows_of(frames, files, args.format, path, label))
        except BadVideo as error:
            raise UserError(str(error)) from error
        lists.setdefault(split, []).extend(format_row(row, args.separator, args.first_label) for row in rows)
        listed = {row.path for row in rows}
        of_class = [*strange, *map(os.path.basename, [*frames.values(), *files.values()])]
        others += sorted(path for name in of_class if (path := f"{split}/{folder.name}/{name}") not in listed)
    if others:
        print_note(f"{len(others):,} passed over, which --format {args.format} does not list: {first_few(others)}")
    if not any(lists.values()):
        raise UserError(f"{args.src} holds no video for --format {args.format}: see --help for what it lists")
    args.dst.mkdir(parents=True, exist_ok=True)
    for name, lines in {CATEGORIES: classes, **{f"{split}.txt": lines for split, lines in lists.items()}}.items():
        with atomic_write(args.dst / name) as file:
            file.write("".join(f"{line}\n" for line in lines).encode(errors="surrogateescape"))
        print(f"{args.dst / name}: {len(lines):,} lines")
    return 0


# ---------------------------------------------------------------------------------------------------------------------
# Lists -> folders of links


def link_row(row: Row, root: Path, target: Path, work: Path, prefix: str) -> None:
    """Makes `target` a link to a video file, or a folder of links to frames. Raises BadVideo when they are not all there."""
    source = root / row.path
    lacking = BadVideo(f"not in {root}, or not with the frames that its line says")
    if not row.numbers:
        file = next((file for file in (source, source.with_name(f"{source.name}.mp4")) if file.is_file()), None)
        if file is None:
            raise lacking
        if not (link := target.with_name(file.name)).is_symlink():
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(file)
        return
    try:
        names = frames_of(frame_files(source, prefix), row.numbers)
    except OSError as error:
        raise lacking from error
    except UserError as error:
        raise BadVideo(str(error)) from error
    if not names:
        raise lacking
    folder = work / uuid.uuid4().hex
    folder.mkdir()
    for name in names:
        (folder / name).symlink_to(source / name)
    extract.install(folder, target)


def target_of(row: Row, folder: Path, names: Sequence[str]) -> Path:
    """Where in the folder of a split the links to a row's video go. Raises UserError where a name leads elsewhere."""
    (number,) = row.labels
    label = extract.folder_name(names[number]) if names else f"{number:04d}"
    part = "_{}_{}".format(*row.numbers) if len(row.numbers) == 2 else ""
    return folder / label / path_part(f"{row.path.rstrip('/').rpartition('/')[2]}{part}", f"the video '{row.path}', as")


def read(args: argparse.Namespace) -> int:
    root = args.root.resolve()
    given = read_class_names(args.names) if args.names else None
    targets: dict[Path, Row] = {}
    for split, path in extract.list_files(args.list).items():
        rows, names = (
            read_list(path, args.format, separator=args.separator, first_label=args.first_label, flags=FLAGS),
            given,
        )
        if args.format == "video":
            rows, names = label_by_folder(rows, path, given, FLAGS)
        for row in rows:
            if names and row.labels[0] >= len(names):
                raise UserError(
                    f"{path} has label {row.labels[0]}, {args.names} has {len(names)} classes from 0: give its own"
                )
            target = target_of(row, args.dst.resolve() / split, names or ())
            if targets.setdefault(target, row) != row:
                raise UserError(f"'{targets[target].path}' and '{row.path}' would both be {target}: rename one of them")
    dst = args.dst
    with extract.writing_to(dst), extract.alone(dst, "annotate"), extract.unfinished(dst, "annotate") as work:
        todo = {target: row for target, row in targets.items() if not (target.exists() or target.is_symlink())}
        failures = {}
        for target, row in todo.items():
            try:
                link_row(row, root, target, work, args.prefix)
            except BadVideo as error:
                failures[row.path] = str(error)
        print(f"{len(targets):,} videos listed, {len(targets) - len(failures):,} linked in {dst}")
        return extract.name_failures(dst, failures)


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser(__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="write|read")
    shared = Parser(add_help=False)
    shared.add_argument("--format", choices=LABELLED_FORMS, default="frames", help="what a line holds")
    shared.add_argument(
        "--separator", default=" ", metavar="LETTER", help="between columns; ';' where names have blanks"
    )
    shared.add_argument("--first_label", type=int, choices=(0, 1), default=0, help="number of the first class")

    writing = commands.add_parser("write", parents=[shared], help="lists of a data set in folders")
    writing.add_argument("--src", type=Path, required=True, metavar="FOLDER", help="{train,val,test}/<class>/<video>")
    writing.add_argument("--dst", type=Path, required=True, metavar="FOLDER", help="for the lists and category.txt")
    reading = commands.add_parser("read", parents=[shared], help="folders, of links, of a data set in lists")
    reading.add_argument(
        "--list", type=Path, nargs="+", required=True, metavar="FILE", help="whose names say train, val or test"
    )
    reading.add_argument("--root", type=Path, required=True, metavar="FOLDER", help="what the paths are relative to")
    reading.add_argument("--dst", type=Path, required=True, metavar="FOLDER", help="the data set to make")
    reading.add_argument(
        "--names", type=Path, metavar="FILE", help="class names, a line each; else numbers name classes"
    )
    reading.add_argument("--prefix", default="", help="of the frames, where a folder also holds others: img_")
    return parser.parse_args(argv)


def annotate(args: argparse.Namespace) -> int:
    return {"write": write, "read": read}[args.command](args)


def main(argv: Sequence[str] | None = None) -> int:
    return exit_code(lambda: annotate(parse_args(arguments(argv))), resume=extract.RESUME)


if __name__ == "__main__":
    sys.exit(main())
