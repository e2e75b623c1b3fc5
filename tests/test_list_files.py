"""The list formats of other libraries: every form is read as it is written, and what is no such line is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from clips.list_files import (
    FORMS,
    Row,
    format_row,
    frames_of,
    parse_multi_label_row,
    parse_row,
    read_class_names,
    read_list,
)
from utils import UserError

ROWS = {
    "frames": [Row("train/run/a", (40,), (0,)), Row("b", (7,), (173,))],
    "video": [Row("ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi", (), (0,)), Row("b.mp4", (), (100,))],
    "ranges": [Row("abseiling/-3B32lodo2M_000059", (1, 300), (0,)), Row("b", (31, 60), (399,))],
    "unlabelled": [Row("1001", (1, 38), ()), Row("1002", (1, 9), ())],
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("separator", [" ", ";", "\t", ", "])
@pytest.mark.parametrize("first_label", [0, 1])
def test_lists_come_back_as_they_were_written(form: str, separator: str, first_label: int, tmp_path: Path) -> None:
    lines = [format_row(row, separator, first_label) for row in ROWS[form]]
    (tmp_path / "list.txt").write_text("\n".join(lines) + "\n")
    settings = {"separator": separator, "first_label": first_label}
    assert read_list(tmp_path / "list.txt", form, **settings) == ROWS[form]
    if form != "unlabelled":
        assert read_list(tmp_path / "list.txt", form, multi_label=True, **settings) == ROWS[form]


@pytest.mark.parametrize(
    ("line", "form", "separator", "first_label", "expected"),
    [
        ("20bn/78687 36 7", "frames", " ", 0, Row("20bn/78687", (36,), (7,))),  # TSM
        ("abseiling/a b c;1;300;0", "ranges", ";", 0, Row("abseiling/a b c", (1, 300), (0,))),  # the study, Kinetics
        ("riding a bike/v 1 1 90 3", "ranges", " ", 0, Row("riding a bike/v 1", (1, 90), (3,))),  # from the right
        ("Archery/v_Archery_g01_c01.avi 3", "video", " ", 1, Row("Archery/v_Archery_g01_c01.avi", (), (2,))),  # UCF101
        ("a\t12   3", "frames", " ", 0, Row("a", (12,), (3,))),  # any blanks
        ("7;1;38", "unlabelled", ";", 0, Row("7", (1, 38), ())),
    ],
)
def test_lines_of_the_public_lists(line: str, form: str, separator: str, first_label: int, expected: Row) -> None:
    assert parse_row(line, form, separator, first_label) == expected


def test_a_line_may_have_multi_label() -> None:
    assert parse_multi_label_row("charades/46GP8;1;720;92;95;109", "ranges", ";") == Row(
        "charades/46GP8", (1, 720), (92, 95, 109)
    )
    assert parse_multi_label_row("a 5 1 2", "frames", " ", 1) == Row("a", (5,), (0, 1))


@pytest.mark.parametrize(
    ("line", "form", "separator", "words"),
    [
        ("a four 0", "frames", " ", "'a four 0' is no 'frames' line: expected 'path num_frames label'"),
        ("a 0", "frames", " ", "'path num_frames label'"),
        ("a;1;5;0", "ranges", " ", "'path first last label'"),
        ("a 1 5 -2", "ranges", " ", "'path first last label'"),
        ("a", "video", ";", "'path;label'"),
        ("a 3", "unlabelled", " ", "'path first last'"),
        ("a 1_0 0", "frames", " ", "'path num_frames label'"),
    ],
)
def test_lines_of_another_form_are_named(line: str, form: str, separator: str, words: str) -> None:
    with pytest.raises(UserError) as error:
        parse_row(line, form, separator)
    assert words in str(error.value)


def test_labels_below_the_first_one_and_lines_without_a_label_are_refused() -> None:
    with pytest.raises(UserError, match="has label 0: labels count from 1"):
        parse_row("a 5 0", "frames", " ", 1)
    with pytest.raises(UserError, match="'path;first;last;label'"):
        parse_multi_label_row("a;1;5", "ranges", ";")
    with pytest.raises(UserError, match="'path first last label'"):
        parse_multi_label_row("a video 1 5 0", "ranges", " ")


def test_a_path_that_holds_the_separator_is_not_written() -> None:
    with pytest.raises(UserError, match="'a b' holds the separator ' '"):
        format_row(Row("a b", (5,), (0,)), " ", 0)
    assert format_row(Row("a b", (5,), (0, 2)), ";", 1) == "a b;5;1;3"


def test_a_missing_list_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"could not read .*none\.txt"):
        read_list(tmp_path / "none.txt", "frames")


# Frames --------------------------------------------------------------------------------------------------------------

NAMES = [f"img_{number:05d}.jpg" for number in range(3, 11)]


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        ((8,), NAMES),
        ((2,), NAMES[:2]),
        ((9,), []),
        ((3, 10), NAMES),
        ((5, 6), NAMES[2:4]),
        ((2, 6), []),
        ((9, 11), []),
        ((7, 5), []),
    ],
)
def test_rows_mean_frames_that_are_all_there_or_none(numbers: tuple[int, ...], expected: list[str]) -> None:
    assert frames_of(NAMES, numbers) == expected


def test_images_without_a_number_are_no_frames_of_a_range() -> None:
    assert frames_of(["frame_1_t0.04.jpg", "frame_2_t0.08.jpg", "frame_3_t0.12.jpg"], (2, 3)) == [
        "frame_2_t0.08.jpg",
        "frame_3_t0.12.jpg",
    ]
    with pytest.raises(UserError, match="'cover.jpg' has no number"):
        frames_of(["cover.jpg"], (1, 1))


# Class names ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Archery\nBasketball Dunk\n", ["Archery", "Basketball Dunk"]),  # category.txt
        (
            "1 ApplyEyeMakeup\n2 ApplyLipstick\n3 Archery\n",
            ["ApplyEyeMakeup", "ApplyLipstick", "Archery"],
        ),  # classInd.txt
        ("0 a\n1 b\n", ["a", "b"]),
        ("\ufeffa\r\nb\r\n\r\n", ["a", "b"]),
        ("2 on 2 basketball\n3 point shot\n", ["2 on 2 basketball", "3 point shot"]),  # names that begin with a number
    ],
)
def test_class_names_are_a_line_each_with_or_without_their_numbers(
    text: str, expected: list[str], tmp_path: Path
) -> None:
    (tmp_path / "names.txt").write_bytes(text.encode())
    assert read_class_names(tmp_path / "names.txt") == expected


def test_no_class_names_and_twice_the_same_are_refused(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("\n")
    with pytest.raises(UserError, match="holds no class name"):
        read_class_names(tmp_path / "names.txt")
    (tmp_path / "names.txt").write_text("run\njump\nrun\n")
    with pytest.raises(UserError, match="two classes called 'run'"):
        read_class_names(tmp_path / "names.txt")
