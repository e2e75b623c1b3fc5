"""The list files by which other libraries say which videos a data set holds, and the files with class names beside them.

    frames      `path num_frames label`     TSN, TSM, TDN and their kin, for folders of frames
    video       `path label`                the same family, for video files
    ranges      `path first last label`     the Action Recognition Study; frame numbers as in the file names, both included
    unlabelled  `path first last`           the Study's test lists

With several labels, they are the last columns: `path first last label label ...`. The video lists of UCF101's test parts
hold paths alone: their label is that of the folder in the path.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from clips.frame_names import frame_numbers
from utils import UserError, printable

FORMS = {"frames": ("num_frames",), "video": (), "ranges": ("first", "last"), "unlabelled": ("first", "last")}


MOST_CLASSES = 100_000
MOST_FRAMES = 1_000_000_000


class Row(NamedTuple):
    """One line. numbers: (), (num_frames,) or (first, last) by the form. labels count from 0; () where there is none."""

    path: str
    numbers: tuple[int, ...]
    labels: tuple[int, ...]


class ListFlags(NamedTuple):
    """What the program that reads a list calls its flags, for errors."""

    form: str = "--list_form"
    separator: str = "--list_separator"
    first_label: str = "--first_label"
    class_names: str = "--class_names"


FLAGS = ListFlags()


def read_lines(path: Path) -> list[str]:
    """The lines that are not empty, without blanks around them. Raises UserError when there is no such text file.

    A byte that is no UTF-8 is kept as Python keeps it in file names.
    """
    return [line for _, line in _numbered_lines(path)]


def _numbered_lines(path: Path) -> list[tuple[int, str]]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"could not read {path} ({error.strerror}); give a text file") from error
    if b"\0" in content:  # UTF-16, or no text at all
        raise UserError(f"could not read {path}, which holds zero bytes; give a text file in UTF-8")
    text = content.decode("utf-8-sig", errors="surrogateescape")
    lines = re.split(r"\r\n|\n|\r", text)  # alone, as names may hold what Python also takes for the end of a line
    return [(number, line.strip()) for number, line in enumerate(lines, start=1) if line.strip()]


def read_list(
    path: Path,
    form: str,
    *,
    separator: str = " ",
    first_label: int = 0,
    multi_label: bool = False,
    flags: ListFlags = FLAGS,
) -> list[Row]:
    """All rows of a list file. Raises UserError, with the first line that is no row of this form.

    separator: between columns; ' ' stands for any number of blanks and tabs. first_label: the number of the first class.
    multi_label: rows have any number of them. Where no line of a 'video' list has a label, all rows have none.
    """
    parse = parse_multi_label_row if multi_label else parse_row
    lines = _numbered_lines(path)
    if form == "video" and not any(_has_label(line, separator) for _, line in lines):
        return [Row(line, (), ()) for _, line in lines]
    rows = []
    for number, line in lines:
        try:
            rows.append(parse(line, form, separator, first_label, flags))
        except UserError as error:
            raise UserError(f"{path}, line {number}: {error}") from error
    return rows


def _has_label(line: str, separator: str) -> bool:
    *path, label = line.rsplit(None if separator == " " else separator, 1)
    return bool(path) and label.strip().isdecimal()


def parse_row(line: str, form: str, separator: str = " ", first_label: int = 0, flags: ListFlags = FLAGS) -> Row:
    """From the right, so that a path may hold the separator. Raises UserError where the line is of another form."""
    columns = len(FORMS[form]) + (form != "unlabelled")
    path, *words = line.rsplit(None if separator == " " else separator, columns)
    if len(words) < columns:
        raise _no_row(line, form, separator, flags)
    return _row(line, path, words, form, separator, first_label, flags)


def parse_multi_label_row(
    line: str, form: str, separator: str = " ", first_label: int = 0, flags: ListFlags = FLAGS
) -> Row:
    """A row with one label or more: from the left, so that a path may not hold the separator."""
    path, *words = line.split(None if separator == " " else separator)
    if len(words) <= len(FORMS[form]):
        raise _no_row(line, form, separator, flags)
    return _row(line, path, words, form, separator, first_label, flags)


def _row(
    line: str, path: str, words: Sequence[str], form: str, separator: str, first_label: int, flags: ListFlags
) -> Row:
    words = [word.strip() for word in words]
    if not all(map(str.isdecimal, words)):
        raise _no_row(line, form, separator, flags)
    count = len(FORMS[form])
    if too_long := next(
        (word for word in words if len(word) > 18), None
    ):  # before it is made a number, which takes long
        raise UserError(f"'{line[:80]}' holds a number of {len(too_long)} digits: correct the list")
    values = tuple(map(int, words))
    numbers, labels = values[:count], values[count:]
    if labels and min(labels) < first_label:
        raise UserError(
            f"'{line[:80]}' has label {min(labels)}: labels count from {first_label}; see {flags.first_label}"
        )
    if labels and max(labels) - first_label >= MOST_CLASSES:
        raise UserError(
            f"'{line[:80]}' has label {max(labels)}: expected less than {MOST_CLASSES:,} classes; correct the list, or see "
            f"{flags.form}"
        )
    if numbers and max(numbers) > MOST_FRAMES:
        raise UserError(f"'{line[:80]}' has frame {max(numbers)}: no video has so many; correct the list")
    return Row(path, numbers, tuple(label - first_label for label in labels))


def _no_row(line: str, form: str, separator: str, flags: ListFlags) -> UserError:
    return UserError(
        f"'{line[:80]}' is no '{form}' line: expected {form_words(form, separator)}; see {flags.form} and {flags.separator}"
    )


def label_by_folder(
    rows: Sequence[Row], path: Path, class_names: Sequence[str] | None, flags: ListFlags = FLAGS
) -> tuple[list[Row], list[str] | None]:
    """Rows of a 'video' list without labels get that of the folder in their path: (rows, class names). Others stay.

    The names are `class_names`, or those of classInd.txt beside the list, or all folders in alphabetical order: the first of
    these that there is, and where `class_names` are mere numbers classInd.txt says what they stand for. Raises UserError,
    naming the file, where a folder is no class.
    """
    names = None if class_names is None else list(class_names)
    if not rows or any(row.labels for row in rows):
        return list(rows), names
    folders = [row.path.rpartition("/")[0].rpartition("/")[2] for row in rows]
    if "" in folders:
        row = rows[folders.index("")]
        raise UserError(
            f"{path}: '{row.path}' has no label, and no folder that names its class: expected 'path label' or 'class/path'; "
            f"see {flags.form}"
        )
    beside = path.with_name("classInd.txt")
    known, source = names, flags.class_names
    if (names is None or names == [str(number) for number in range(len(names))]) and beside.is_file():
        known, source = read_class_names(beside), str(beside)
    if known is None:
        known, source = sorted(set(folders)), str(path)
    number = {name: number for number, name in enumerate(known)}
    if unknown := next((folder for folder in folders if folder not in number), None):
        nearest = difflib.get_close_matches(unknown, known, n=1)
        hint = f", whose nearest is '{nearest[0]}'" if nearest else ""
        raise UserError(
            f"{path} has no labels, and the folder '{unknown}' in its paths is no class of {source}{hint}: give its class "
            f"names with {flags.class_names}, or as classInd.txt beside it"
        )
    labelled = [row._replace(labels=(number[folder],)) for row, folder in zip(rows, folders, strict=True)]
    return labelled, known if names is None else names


def form_words(form: str, separator: str) -> str:
    """What a line of this form holds, for errors."""
    return f"'{separator.join(['path', *FORMS[form], *(['label'] if form != 'unlabelled' else [])])}'"


def format_row(row: Row, separator: str, first_label: int) -> str:
    """Raises UserError where a name holds the separator, which the readers of these formats would stumble over."""
    if separator in row.path or re.search(r"\s" if separator == " " else r"[\r\n]", row.path):
        raise UserError(
            f"'{printable(row.path)}' holds the separator '{separator}' or a line break: rename it or give another --separator"
        )
    return separator.join(map(str, [row.path, *row.numbers, *(label + first_label for label in row.labels)]))


# ---------------------------------------------------------------------------------------------------------------------
# Frames


def frames_of(names: Sequence[str], numbers: tuple[int, ...]) -> list[str]:
    """Those of a folder's frames (in the order of `frame_files`) that a row's numbers mean: all of them, or none.

    Raises UserError where a range is asked for of frames without numbers.
    """
    if len(numbers) == 1:
        chosen, count = list(names[: numbers[0]]), numbers[0]
    else:
        first, last = numbers
        try:
            numbered = list(zip(names, frame_numbers(names), strict=True))
        except ValueError as error:
            raise UserError(f"{error}: expected names like 00001.jpg or img_00001.jpg") from error
        chosen, count = [name for name, number in numbered if first <= number <= last], last - first + 1
    return chosen if len(chosen) == count else []


# ---------------------------------------------------------------------------------------------------------------------
# Class names


def read_class_names(path: Path) -> list[str]:
    """Class names in the order of their numbers: a name per line (category.txt), or `number name` (classInd.txt of UCF101).

    Raises UserError when there is none or two classes have one name.
    """
    lines = read_lines(path)
    numbered = [re.fullmatch(r"(\d+)\s+(\S.*)", line) for line in lines]
    numbers = [int(match[1]) for match in numbered if match]
    if numbers in (list(range(len(lines))), list(range(1, len(lines) + 1))):
        lines = [match[2] for match in numbered if match]
    if not lines:
        raise UserError(f"{path} holds no class name: expected one per line")
    if twice := next((name for name in lines if lines.count(name) > 1), None):
        raise UserError(f"{path} has two classes called '{twice}': expected different names, one per line")
    return lines
