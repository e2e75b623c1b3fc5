"""The list files by which other libraries say which videos a data set holds, and the files with class names beside them.

    frames      `path num_frames label`     TSN, TSM, TDN and their kin, for folders of frames
    video       `path label`                the same family, for video files
    ranges      `path first last label`     the Action Recognition Study; frame numbers as in the file names, both included
    unlabelled  `path first last`           the Study's test lists

With several labels, they are the last columns: `path first last label label ...`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from utils import UserError

FORMS = {"frames": ("num_frames",), "video": (), "ranges": ("first", "last"), "unlabelled": ("first", "last")}


class Row(NamedTuple):
    """One line. numbers: (), (num_frames,) or (first, last) by the form. labels count from 0; () where there is none."""

    path: str
    numbers: tuple[int, ...]
    labels: tuple[int, ...]


def read_lines(path: Path) -> list[str]:
    """The lines that are not empty, without blanks around them. Raises UserError when there is no such text file."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"could not read {path} ({error}); give a text file in UTF-8") from error
    return [line.strip() for line in text.splitlines() if line.strip()]


def read_list(
    path: Path, form: str, *, separator: str = " ", first_label: int = 0, multi_label: bool = False
) -> list[Row]:
    """All rows of a list file. Raises UserError, with the first line that is no row of this form.

    separator: between columns; ' ' stands for any number of blanks and tabs. first_label: the number of the first class.
    multi_label: rows have any number of them.
    """
    parse = parse_multi_label_row if multi_label else parse_row
    return [parse(line, form, separator, first_label) for line in read_lines(path)]


def parse_row(line: str, form: str, separator: str = " ", first_label: int = 0) -> Row:
    """From the right, so that a path may hold the separator. Raises UserError where the line is of another form."""
    columns = len(FORMS[form]) + (form != "unlabelled")
    path, *words = line.rsplit(None if separator == " " else separator, columns)
    if len(words) < columns:
        raise _no_row(line, form, separator)
    return _row(line, path, words, form, separator, first_label)


def parse_multi_label_row(line: str, form: str, separator: str = " ", first_label: int = 0) -> Row:
    """A row with one label or more: from the left, so that a path may not hold the separator."""
    path, *words = line.split(None if separator == " " else separator)
    if len(words) <= len(FORMS[form]):
        raise _no_row(line, form, separator)
    return _row(line, path, words, form, separator, first_label)


def _row(line: str, path: str, words: Sequence[str], form: str, separator: str, first_label: int) -> Row:
    words = [word.strip() for word in words]
    if not all(map(str.isdecimal, words)):
        raise _no_row(line, form, separator)
    values, count = tuple(map(int, words)), len(FORMS[form])
    numbers, labels = values[:count], values[count:]
    if labels and min(labels) < first_label:
        raise UserError(
            f"the line '{line[:80]}' has label {min(labels)}: labels count from {first_label}; see --first_label"
        )
    return Row(path, numbers, tuple(label - first_label for label in labels))


def _no_row(line: str, form: str, separator: str) -> UserError:
    return UserError(
        f"the line '{line[:80]}' is no '{form}' line: expected {form_words(form, separator)}; see --format"
    )


def form_words(form: str, separator: str) -> str:
    """What a line of this form holds, for errors."""
    return f"'{separator.join(['path', *FORMS[form], *(['label'] if form != 'unlabelled' else [])])}'"


def format_row(row: Row, separator: str, first_label: int) -> str:
    """Raises UserError where a name holds the separator, which the readers of these formats would stumble over."""
    if separator in row.path:
        raise UserError(f"'{row.path}' holds the separator '{separator}': rename it or give another --separator")
    return separator.join(map(str, [row.path, *row.numbers, *(label + first_label for label in row.labels)]))


# ---------------------------------------------------------------------------------------------------------------------
# Frames


def frame_number(name: str) -> int:
    """The last number in a frame's file name: 12 of 'img_00012.jpg'."""
    digits = re.findall(r"\d+", os.path.splitext(name)[0])
    if not digits:
        raise UserError(f"frame '{name}' has no number in its name: expected names like 00001.jpg or img_00001.jpg")
    return int(digits[-1])


def frames_of(names: Sequence[str], numbers: tuple[int, ...]) -> list[str]:
    """Those of a folder's images (in the order of `frame_files`) that a row's numbers mean: all of them, or none."""
    if len(numbers) == 1:
        chosen, count = list(names[: numbers[0]]), numbers[0]
    else:
        first, last = numbers
        chosen, count = [name for name in names if first <= frame_number(name) <= last], last - first + 1
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
