"""Names and lists from outside: none leads out of its folder, none is misread, and what cannot be used is named."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from conftest import FRAMES, write_split, write_video
from video_clips import write_clip

from clips.labelled_videos import ListedVideos
from clips.list_files import MOST_CLASSES, label_by_folder, read_list
from clips.video_split import Split
from data_prep import annotate, extract, extract_folder, extract_ssv1, extract_ssv2
from utils import UserError, path_part, printable

LATIN = os.fsdecode(b"caf\xe9")


def everything(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


# Names that become paths ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a b", "a\\b", "v1.5 (take)", "überholen", "跳", LATIN, "-x", "a..", "é" * 127])
def test_names_of_files_are_parts_of_paths(name: str, tmp_path: Path) -> None:
    (tmp_path / path_part(name, "the class")).mkdir()
    assert os.listdir(tmp_path) == [name]


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "/abs", "hat/cap", ".hidden", "a\0b", "é" * 128, "\ud800"])
def test_what_leads_elsewhere_or_cannot_be_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="the class '.*' cannot be the name of a folder") as error:
        path_part(name, "the class")
    printable(str(error.value)).encode()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_video(tmp_path / "root/run/a", frames=4)
    return tmp_path / "root"


def read(root: Path, lines: str, names: str, *flags: str) -> int:
    where = root.parent
    (where / "train.txt").write_text(lines)
    (where / "names.txt").write_text(names)
    return annotate.main(
        ["read", "--list", f"{where}/train.txt", "--root", str(root), "--dst", f"{where}/in/dst", *flags]
        + (["--names", f"{where}/names.txt"] if names else [])
    )


@pytest.mark.parametrize(
    ("lines", "names"),
    [
        ("run/a 4 0\n", "../../../evil\n"),
        ("run/a 4 0\n", "/abs\n"),
        ("run/a 4 0\n", "hat/cap\n"),
        ("run/a 4 0\n", "..\n"),
        ("run/a/.. 4 0\n", ""),
        ("run/a/. 4 0\n", "x\n"),
    ],
)
def test_no_class_and_no_video_of_a_list_is_linked_elsewhere(
    lines: str, names: str, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = everything(root.parent)
    assert read(root, lines, names) == 2
    error = capsys.readouterr().err
    assert "cannot be the name of a folder" in error
    assert "Traceback" not in error
    assert everything(root.parent) - before <= {"train.txt", "names.txt"}
    assert not Path("/abs").exists()


def test_an_extraction_goes_nowhere_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_video(tmp_path / "src/7", frames=3)
    (tmp_path / "labels").mkdir()
    flags = ["--src", f"{tmp_path}/src", "--dst", f"{tmp_path}/in/dst", "--annotations", f"{tmp_path}/labels"]
    for line in ("7;../../evil", "../src/7;run", "7;hat/cap"):
        (tmp_path / "labels/train.csv").write_text(f"{line}\n")
        (tmp_path / "labels/validation.csv").write_text("7;run\n")
        before = everything(tmp_path)
        assert extract_ssv1.main(flags) == 2, line
        assert "cannot be the name of a folder" in capsys.readouterr().err
        assert everything(tmp_path) == before


# UCF101's own lists --------------------------------------------------------------------------------------------------

CLASSES = ["ApplyEyeMakeup", "Archery", "BabyCrawling"]


@pytest.fixture
def ucf(tmp_path: Path) -> Path:
    """UCF101 in small: folders of frames called as its videos, and its lists."""
    for label in CLASSES:
        for group in ("g01", "g08"):
            write_video(tmp_path / f"UCF-101/{label}/v_{label}_{group}_c01.avi")
    lists = tmp_path / "ucfTrainTestlist"
    lists.mkdir()
    (lists / "classInd.txt").write_text("".join(f"{n} {label}\r\n" for n, label in enumerate(CLASSES, start=1)))
    (lists / "trainlist01.txt").write_text(
        "".join(f"{label}/v_{label}_g08_c01.avi {n}\r\n" for n, label in enumerate(CLASSES, start=1))
    )
    (lists / "testlist01.txt").write_text("".join(f"{label}/v_{label}_g01_c01.avi\r\n" for label in CLASSES[1:]))
    return lists


def labels_of(path: Path, names: list[str] | None = None) -> tuple[list[tuple[int, ...]], list[str] | None]:
    rows, found = label_by_folder(read_list(path, "video", first_label=1), path, names)
    return [row.labels for row in rows], found


def test_the_labels_of_the_test_list_are_those_of_the_folders(ucf: Path) -> None:
    assert labels_of(ucf / "trainlist01.txt") == ([(0,), (1,), (2,)], None)
    assert labels_of(ucf / "testlist01.txt") == ([(1,), (2,)], CLASSES), "by classInd.txt"
    assert labels_of(ucf / "testlist01.txt", list(reversed(CLASSES)))[0] == [(1,), (0,)], "by given names"
    assert labels_of(ucf / "testlist01.txt", ["0", "1", "2"])[0] == [(1,), (2,)], "numbers stand for those of classInd"
    (ucf / "classInd.txt").unlink()
    assert labels_of(ucf / "testlist01.txt") == ([(0,), (1,)], CLASSES[1:]), "the folders in order"
    with pytest.raises(
        UserError, match=r"testlist01.txt has no labels, and the folder 'Archery' .* no class of --class_names"
    ):
        labels_of(ucf / "testlist01.txt", ["0", "1", "2"])
    with pytest.raises(UserError, match=r"folder 'Archery' .*, whose nearest is 'archery'"):
        labels_of(ucf / "testlist01.txt", ["archery", "BabyCrawling"])


def test_a_list_without_labels_and_folders_and_one_with_some_labels_are_refused(ucf: Path) -> None:
    (ucf / "testlist01.txt").write_text("v_x.avi\n")
    with pytest.raises(UserError, match=r"testlist01.txt: 'v_x.avi' has no label, and no folder .*; see --list_form"):
        labels_of(ucf / "testlist01.txt")
    (ucf / "testlist01.txt").write_text("Archery/a.avi 2\nArchery/b.avi\n")
    with pytest.raises(
        UserError, match=r"testlist01.txt, line 2: .*'Archery/b.avi' is no 'video' line.*--list_form and --l"
    ):
        labels_of(ucf / "testlist01.txt")


def test_annotate_links_both_lists_and_speaks_of_its_own_flags(
    ucf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "files"
    for label in CLASSES:
        (root / label).mkdir(parents=True)
        for group in ("g01", "g08"):
            (root / label / f"v_{label}_{group}_c01.avi").write_text("video")
    flags = ["--root", str(root), "--dst", str(tmp_path / "out"), "--format", "video", "--first_label", "1"]
    lists = [str(ucf / "trainlist01.txt"), str(ucf / "testlist01.txt")]
    assert annotate.main(["read", "--list", *lists, *flags, "--names", str(ucf / "classInd.txt")]) == 0
    links = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.avi")}
    assert links == {
        *(f"train/{label}/v_{label}_g08_c01.avi" for label in CLASSES),
        *(f"test/{label}/v_{label}_g01_c01.avi" for label in CLASSES[1:]),
    }
    assert annotate.main(["read", "--list", *lists[1:], *flags[:-4], "--format", "frames"]) == 2
    error = capsys.readouterr().err
    assert "testlist01.txt, line 1" in error
    assert "see --format and --separator" in error


def test_a_test_list_is_opened_with_the_classes_of_the_training(ucf: Path, tmp_path: Path) -> None:
    root = tmp_path / "files"
    for row in (
        *read_list(ucf / "trainlist01.txt", "video", first_label=1),
        *read_list(ucf / "testlist01.txt", "video"),
    ):
        write_clip(root / row.path, frames=4)
    trained = ListedVideos.open(ucf / "trainlist01.txt", root, form="video", first_label=1)
    assert trained.classes == ["0", "1", "2"]
    tested = ListedVideos.open(ucf / "testlist01.txt", root, form="video", first_label=1, classes=trained.classes)
    assert tested.labels.tolist() == [[1], [2]]
    assert ListedVideos.open(ucf / "testlist01.txt", root, form="video").classes == CLASSES


# Lists of a wrong shape ----------------------------------------------------------------------------------------------


def test_numbers_out_of_all_bounds_are_refused_at_once(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = root.parent / "train.txt"
    for line, words in {
        "run/a 4 99999999999": f"has label 99999999999: expected less than {MOST_CLASSES:,} classes",
        f"run/a 4 {'9' * 5000}": "holds a number of 5000 digits",
        "run/a 99999999999 0": "has frame 99999999999",
    }.items():
        path.write_text(f"{line}\n")
        with pytest.raises(UserError, match=f"train.txt, line 1: .*{words}"):
            ListedVideos.open(path, root)
    assert read(root, "run/a 4 99999999999\n", "") == 2
    assert "99999999999" in capsys.readouterr().err


def test_lists_that_are_no_text_are_named(root: Path) -> None:
    (root.parent / "train.txt").write_bytes("run/a 4 0\n".encode("utf-16"))
    with pytest.raises(UserError, match=r"train.txt, which holds zero bytes; give a text file in UTF-8"):
        ListedVideos.open(root.parent / "train.txt", root)
    with pytest.raises(UserError, match=r"could not read .*root \(Is a directory\)"):
        ListedVideos.open(root, root)


def test_odd_line_breaks_are_parts_of_names(root: Path) -> None:
    write_video(root / "a\x85b\u2028c", frames=2)
    (root.parent / "train.txt").write_text("a\x85b\u2028c 2 0\n", encoding="utf-8")
    assert ListedVideos.open(root.parent / "train.txt", root).source(0).num_frames == 2


@pytest.mark.parametrize(
    "content",
    [
        {"train": 5},
        {"train": "abc"},
        {"train": [["a"]]},
        {"train": [1, 2]},
        {"train": {"a": "many"}},
        {"train": {"a": -3}},
        {"train": {"a": True}},
        {"train": None},
        {"training": ["a"]},
        ["a"],
        {},
        7,
    ],
)
def test_splits_of_a_wrong_shape_are_refused(content: object, tmp_path: Path) -> None:
    (tmp_path / "mine.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"mine.json (is no split|has .* for train): expected"):
        extract.read_classes(tmp_path / "mine.json")


def test_label_files_of_a_wrong_shape_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_video(tmp_path / "src/7")
    for content in ({"a": 1}, [5], [{"id": "7"}]):
        (tmp_path / "x-train.json").write_text(json.dumps(content))
        flags = ["--src", f"{tmp_path}/src", "--dst", f"{tmp_path}/dst", "--annotations", str(tmp_path)]
        assert extract_ssv2.main([*flags, "--split", "official"]) == 2
        assert "is no label file" in capsys.readouterr().err


# What an extraction finds --------------------------------------------------------------------------------------------


def found(src: Path) -> list[str]:
    return sorted(str(path.relative_to(src)) for path in extract.find_videos(src))


def test_frames_and_videos_are_found_and_the_rest_is_said_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_video(tmp_path / "run/frames", frames=2)
    write_video(tmp_path / "run/frames/thumbs", frames=2)
    for name in ("run/v.ts", "run/cover.jpg", "run/w.xyz", "jump/._a.jpg", "jump/.b.mp4", "jump/a.mp4", LATIN):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "run/gone.mp4").symlink_to("nowhere.mp4")
    os.mkfifo(tmp_path / "run/pipe.mp4")
    assert found(tmp_path) == ["jump/a.mp4", "run/frames", "run/gone.mp4", "run/v.ts"], (
        "a dead link is a video that fails"
    )
    error = capsys.readouterr().err
    assert error.startswith("note: 5 passed over, being no videos: ")
    assert error.count("\n") == 1


def test_links_that_lead_back_end(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        write_video(tmp_path / folder / "v", frames=1)
        (tmp_path / folder / "up").symlink_to("..")
        (tmp_path / folder / "self").symlink_to("self")
    (tmp_path / "a/other").symlink_to(tmp_path / "b")
    (tmp_path / "b/other").symlink_to(tmp_path / "a")
    links = ["a/other/self", "a/self", "b/other/self", "b/self"]  # to themselves: videos that fail, by name
    assert found(tmp_path) == sorted(["a/other/v", "a/v", "b/other/v", "b/v", *links])


def test_a_folder_that_may_not_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = os.scandir

    def scandir(path: str) -> object:
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", path)
        return original(path)

    (tmp_path / "run/locked").mkdir(parents=True)
    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(UserError, match=r"locked could not be listed \(Permission denied\)"):
        found(tmp_path)


@pytest.mark.parametrize(
    "flags",
    [("--fps", "-1"), ("--fps", "nan"), ("--fps", "inf"), ("--fps", "x"), ("--fps", "1e9"), ("--size", "99999x9")],
)
def test_rates_and_sizes_are_refused_before_anything_is_made(
    flags: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_split(tmp_path / "src/train", ["run"], videos=1)
    assert extract_folder.main(["--src", f"{tmp_path}/src", "--dst", f"{tmp_path}/dst", *flags]) == 2
    sentence = capsys.readouterr().err
    assert sentence.count("\n") == 1
    assert flags[0] in sentence
    assert flags[1] in sentence or "expected" in sentence
    assert not (tmp_path / "dst").exists()


def test_a_rate_for_folders_of_frames_is_refused_before_anything_is_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_split(tmp_path / "src/train", ["run"], videos=1)
    assert extract_folder.main(["--src", f"{tmp_path}/src", "--dst", f"{tmp_path}/dst", "--fps", "5"]) == 2
    assert "--fps needs videos" in capsys.readouterr().err
    assert not (tmp_path / "dst").exists()


def test_names_that_are_no_utf8_are_extracted_and_gone_on_with(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_split(tmp_path / "src/train", [LATIN], videos=2)
    (tmp_path / "src/train" / LATIN / f"{LATIN}_001" / "1.jpg").write_bytes(b"x")
    flags = ["--src", f"{tmp_path}/src", "--dst", f"{tmp_path}/dst", "--size", "original", "--jobs", "1"]
    assert extract_folder.main(flags) == 1
    assert b"train/caf\xe9/caf\xe9_001\t" in (tmp_path / "dst/failed.txt").read_bytes()
    assert Split.open(tmp_path / "dst", "train").num_frames == [[FRAMES]]
    (tmp_path / "dst/manifest.jsonl").read_text(encoding="utf-8")
    capsys.readouterr()
    assert extract_folder.main(flags) == 1
    assert "2 videos: 1 to do" in capsys.readouterr().out
