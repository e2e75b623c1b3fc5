"""Forty odd files as people have them, half of them bad, go through all programs: each names the bad ones and no other."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import simplejpeg
from conftest import textured_frames, tiny_run
from PIL import Image
from script_runs import Script
from test_damaged_videos import OPEN_GOPS, damage, seconds_at_most
from test_orientation import tagged
from video_clips import cut, make_clip, show_by, turn

import run
from clips.video_split import Split
from data_prep import extract_folder, pack_lmdb
from engine.settings import parse_args
from methods import METHODS
from scripts import predict
from utils import RunFolder, printable, write_json

LATIN = os.fsdecode(b"caf\xe9")  # no UTF-8
X264 = ("-c:v", "libx264", "-preset", "ultrafast")
FRAMES = 3  # of a folder: as many as a run reads of it, so that a damaged one is met


@dataclasses.dataclass(frozen=True)
class Odd:
    """A folder of videos. good, bad: '<class>/<video>'; late: those of the bad that only reading finds."""

    root: Path
    good: set[str]
    bad: set[str]
    late: set[str]

    @property
    def path_of(self) -> dict[str, Path]:
        """{'<class>/<video>': where it lies}."""
        return {
            f"{path.parent.name}/{path.name if path.is_dir() else extract_folder.extract.stem(path.name)}": path
            for path in self.root.glob("train/*/*")
        }


def write_images(folder: Path, *names: str, seed: int = 0) -> Path:
    folder.mkdir(parents=True)
    for name, frame in zip(names, textured_frames(seed, len(names)), strict=True):
        if name.endswith("png"):
            Image.fromarray(frame).save(folder / name)
        else:
            (folder / name).write_bytes(simplejpeg.encode_jpeg(frame))
    return folder


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Odd:
    """Video files: 11 good, 10 bad, and 4 that are no videos."""
    root = tmp_path_factory.mktemp("files")
    jump, cafe = root / "train/jump", root / "train" / LATIN
    plain = make_clip(jump / "plain.mp4", *X264)
    whole = make_clip(root / "whole.mkv", *X264, "-pix_fmt", "yuv420p", "-x264-params", OPEN_GOPS, frames=24)
    make_clip(jump / "title.avi", "-metadata", os.fsdecode(b"title=\x8c"))
    show_by(plain, (-1, 0, 0, 1), jump / "mirrored.mp4")
    turn(plain, 90, jump / "turned.mov")
    subprocess.run(
        ["ffmpeg", "-v", "error", "-i", whole, "-ss", "0.95", "-c", "copy", jump / "open_gop.mkv"], check=True
    )
    avi = make_clip(jump / "no_index.avi", frames=20)
    avi.write_bytes(avi.read_bytes().partition(b"idx1")[0])
    make_clip(cafe / "ten_bits.mkv", *X264, "-pix_fmt", "yuv420p10le")
    make_clip(cafe / "stream.TS", *X264, "-f", "mpegts")
    make_clip(cafe / "picture.gif")
    make_clip(cafe / "interlaced.mpg", "-c:v", "mpeg2video", "-r", "25", "-flags", "+ilme+ildct", "-top", "1")
    shutil.copy(plain, cafe / os.fsdecode(b"-na\xefve '%05d' #1.mp4"))
    good = {*Odd(root, set(), set(), set()).path_of}

    cut(plain, jump / "cut.mp4")
    cut(whole, jump / "short.mkv")
    damage(make_clip(root / "whole.avi", "-bf", "2", frames=20), jump / "hit.avi")
    (jump / "zero.mp4").touch()
    (jump / "dead.mp4").symlink_to(root / "gone.mp4")
    (cafe / "self.mp4").symlink_to("self.mp4")
    (cafe / "text.mp4").write_text("<html>404 Not Found</html>")
    show_by(plain, (0.866, 0.5, -0.5, 0.866), cafe / "slanted.mp4")
    sound = ["-f", "lavfi", "-i", "sine=duration=0.2", cafe / "sound.mp4"]
    subprocess.run(["ffmpeg", "-v", "error", *sound], check=True)
    cut(make_clip(root / "whole.webm", "-c:v", "libvpx"), cafe / os.fsdecode(b"\xff\xfe.webm"))
    bad = {*Odd(root, set(), set(), set()).path_of} - good

    os.mkfifo(jump / "pipe.mp4")
    (jump / "Thumbs.db").touch()
    (cafe / "notes.txt").touch()
    (cafe / "nothing").mkdir()
    assert (len(good), len(bad)) == (11, 10)
    return _finished(root, good, bad, set())


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Odd:
    """Folders of frames: 9 good, 11 bad, and 3 things that are no videos."""
    root = tmp_path_factory.mktemp("folders")
    jump, cafe = root / "train/jump", root / "train" / LATIN
    numbers = [f"{number:05d}.jpg" for number in range(1, FRAMES + 1)]
    plain = write_images(jump / "plain", *numbers)
    flow = write_images(jump / "flow", *numbers)
    for number in range(4):
        shutil.copy(plain / numbers[0], flow / f"flow_x_{number}.jpg")
    thumbnails = write_images(jump / "thumbnails", *numbers)
    for name in ("cover.jpg", "00001 copy.jpg", ".hidden.jpg"):
        shutil.copy(plain / numbers[0], thumbnails / name)
    write_images(jump / "unpadded", "9.jpg", "10.jpeg", "11.JPG")
    write_images(jump / "pictures", "1.png", "2.PNG", "3.png")
    write_images(cafe / "below zero", "img_-1.jpg", "img_0.jpg", "img_1.jpg")
    turned = write_images(cafe / "turned", *numbers)
    for name, frame in zip(numbers, textured_frames(0, FRAMES), strict=True):
        (turned / name).write_bytes(tagged(frame, "JPEG", 6))
    write_images(root / "elsewhere", *numbers, seed=7)
    (cafe / "linked").symlink_to(root / "elsewhere")
    write_images(cafe / os.fsdecode(b"\xe9t\xe9 #1 %05d"), *numbers, seed=8)
    good = {*Odd(root, set(), set(), set()).path_of}

    (jump / "empty").mkdir()
    write_images(jump / "twice", "1.jpg", "01.jpg")
    write_images(jump / "unnumbered", "a.jpg", "b.jpg")
    write_images(jump / "two series", "a1.jpg", "b1.jpg")
    (jump / "dead").symlink_to(root / "gone")
    (cafe / "self").symlink_to("self")
    second = numbers[1]
    os.truncate(write_images(jump / "cut", *numbers) / second, 300)
    (write_images(jump / "text", *numbers) / second).write_text("<html>404 Not Found</html>")
    (write_images(cafe / "zero", *numbers) / second).write_bytes(b"")
    for name in ("pipe", os.fsdecode(b"l\xf6op")):
        (write_images(cafe / name, *numbers) / second).unlink()
    os.mkfifo(cafe / "pipe" / second)
    (cafe / os.fsdecode(b"l\xf6op") / second).symlink_to(second)
    bad = {*Odd(root, set(), set(), set()).path_of} - good

    os.mkfifo(jump / "pipe.jpg")
    (jump / "Thumbs.db").touch()
    (root / "train" / "README.txt").touch()
    assert (len(good), len(bad)) == (9, 11)
    late = {"jump/cut", "jump/text", f"{LATIN}/zero", f"{LATIN}/pipe", f"{LATIN}/" + os.fsdecode(b"l\xf6op")}
    return _finished(root, good, bad, late)


def _finished(root: Path, good: set[str], bad: set[str], late: set[str]) -> Odd:
    (root / "test").symlink_to("train")  # tested on the same
    for path in root.glob("train/*/*"):
        os.utime(path, (1e9, 1e9), follow_symlinks=False)
    return Odd(root, good, bad, late)


@pytest.fixture(params=["files", "folders"])
def odd(request: pytest.FixtureRequest) -> Odd:
    return request.getfixturevalue(request.param)


def named_in(text: str, odd: Odd) -> set[str]:
    """The videos of `odd` that a text names, by their paths or as '<class>/<video>'."""
    return {name for name in odd.good | odd.bad if re.search(rf"{re.escape(name)}(?!\w)", text)}


def failed(dst: Path) -> set[str]:
    """The videos in failed.txt, without their split."""
    lines = (dst / "failed.txt").read_text(errors="surrogateescape").splitlines()
    assert all(line.count("\t") == 1 and line.split("\t")[1] for line in lines)
    return {line.split("\t")[0].partition("/")[2] for line in lines}


def videos_of(split: Split) -> set[str]:
    return {f"{label}/{name}" for label, names in zip(split.classes, split.videos, strict=True) for name in names}


def test_a_listing_names_the_bad_ones(odd: Odd) -> None:
    notes: list[str] = []
    split = Split.open(odd.root, "train", on_bad_video="skip", note=notes.append)
    assert videos_of(split) == odd.good | odd.late
    (left_out,) = (note for note in notes if "without a frame that can be read" in note)
    assert named_in(left_out, odd) == odd.bad - odd.late
    assert sum(" passed over, being no " in note for note in notes) == 1


def test_extraction_names_the_bad_ones_and_packing_too(
    odd: Odd, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with seconds_at_most(120):
        write_json(tmp_path / "split.json", {"train": ["jump", LATIN]})
        flags = ["--split", str(tmp_path / "split.json"), "--size", "32x24", "--jobs", "2"]
        assert extract_folder.main(["--src", f"{odd.root}/train", "--dst", str(tmp_path / "frames"), *flags]) == 1
        assert failed(tmp_path / "frames") == odd.bad - {"jump/empty"}  # no one can tell that it should be a video
        (note,) = {line.split(" passed")[0] for line in capsys.readouterr().err.splitlines() if " passed over" in line}
        assert note == "note: 4"
        split = Split.open(tmp_path / "frames", "train")
        assert videos_of(split) == odd.good
        assert pack_lmdb.main(["--src", str(odd.root), "--dst", str(tmp_path / "packed"), "--jobs", "2"]) == 1
        assert failed(tmp_path / "packed") == odd.bad
        packed = Split.open(tmp_path / "packed", "train")
        assert videos_of(packed) == odd.good
    assert "Traceback" not in capsys.readouterr().err


FLAGS = ("--on_bad_video", "skip", "--val_iters", 0, "--num_test_tasks", 60, "--tasks_per_batch", 5)


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Odd], Path]:
    """Trains and tests on odd videos, once."""
    folder = tmp_path_factory.mktemp("runs")

    def of(odd: Odd) -> Path:
        path = folder / odd.root.name
        if not path.exists():
            # So many tasks draw every video, where some of the bad ones are found only then.
            assert run.main(tiny_run(odd.root, path, *FLAGS, "-i", 30 if odd.late else 5)) == 0
        return path

    return of


def test_a_run_names_the_bad_ones_once_and_reports_on_the_others(
    odd: Odd, run_folder: Callable[[Odd], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    with seconds_at_most(120):
        folder = run_folder(odd)
    out, err = capsys.readouterr()
    assert err == ""
    log = (folder / "log.txt").read_text(errors="surrogateescape")
    told = [line for line in log.splitlines() if "left out" in line and "of the series" not in line]
    left_out = [line for line in told if "tasks, tsn on" not in line]
    assert len(told) - len(left_out) == bool(odd.late)  # the result is marked where videos were found bad in the test
    assert named_in("\n".join(left_out), odd) == odd.bad
    assert len(left_out) == len(set(left_out)) == (2 if odd.bad - odd.late else 0) + 2 * len(odd.late)  # train and test
    assert [printable(line).split("  ", 1)[1] for line in log.splitlines()] == out.splitlines()
    assert "note: " not in out
    answers = (folder / "predictions.csv").read_text(errors="surrogateescape")
    assert named_in(answers, odd) == odd.good
    page = (folder / "report.html").read_text()
    assert "caf\N{REPLACEMENT CHARACTER}" in page
    assert "warning" not in log


def test_a_process_that_is_not_the_first_says_nothing(
    odd: Odd, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = parse_args(tiny_run(odd.root, tmp_path / "run", *FLAGS), METHODS)
    run.Learner(args, RunFolder(tmp_path / "run", writes=False))
    assert capsys.readouterr() == ("", "")


def test_predict_answers_the_good_ones_and_names_each_bad_one(
    odd: Odd, run_folder: Callable[[Odd], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = Script(predict.main, capsys)
    support = tmp_path / "support"
    for name in odd.good:
        (support / name).parent.mkdir(parents=True, exist_ok=True)
        (support / name).with_name(odd.path_of[name].name).symlink_to(odd.path_of[name])
    flags = ("--checkpoint", run_folder(odd) / "checkpoint_final.pt", "--support", support)
    queries = [odd.path_of[name] for name in sorted(odd.good)]
    script(*flags, "--query", *queries, "--json", tmp_path / "a.json", "--picture", tmp_path / "a.png")
    answers = json.loads((tmp_path / "a.json").read_text())
    assert len(answers["queries"]) == len(odd.good)
    with seconds_at_most(120):
        for name in odd.bad:
            sentence = script.fails(*flags, "--query", queries[0], odd.path_of[name])
            assert printable(name) in sentence
            assert "--on_bad_video" not in sentence
