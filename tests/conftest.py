"""A tiny data set of textured frames, and the flags of a run on it that takes a fraction of a second."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
import torch

import run
from methods import METHODS

HEIGHT, WIDTH, FRAMES, VIDEOS = 40, 48, 6, 8
CLASSES = {
    "train": ["Closing [something]", "catch", "draw v1.5", "jump", "pour", "swing_baseball", "überholen"],
    "val": ["clap", "eat", "fall", "hug", "kick", "push"],
    "test": ["climb stairs", "dive", "golf", "hit", "run", "sit", "wave"],
}

LABELS = ["clap", "jump up", "wave"]
LABELLED_VIDEOS = {"train": 4, "val": 2, "test": 3}  # of each label; nine test videos cannot be shared evenly by two

# A run of a second: 2-way 1-shot on 16-pixel clips of 3 frames. Flags given after these win.
TINY = shlex.split(
    "--method tsn --backbone conv4 --no_pretrained --precision fp32 --img_size 16 --seq_len 3 --way 2 --shot 1 -qpc 1 -i 4 "
    "--num_workers 0 --tasks_per_batch 2 --val_iters 2 4 --num_val_tasks 2 --num_test_tasks 3 --print_freq 2 --save_freq 0"
)


@pytest.fixture(autouse=True, scope="session")
def _cache_in_a_temporary_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Listings go into no user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """So that sums are added in the same order in every test and in the programs that tests start."""
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"


@contextlib.contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """For a test of what several threads do."""
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(1)


def textured_frames(seed: int, frames: int = FRAMES, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """A moving random texture with some noise: uint8 (T, H, W, 3)."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 200, size=(height // 8 + 1, width // 8 + 1, 3))
    texture = coarse.repeat(8, axis=0).repeat(8, axis=1)[:height, :width]
    moved = np.stack([np.roll(texture, 3 * number, axis=(0, 1)) for number in range(frames)])
    return (moved + rng.integers(0, 56, size=moved.shape)).astype(np.uint8)


def write_video(folder: Path, *, seed: int = 0, frames: int = FRAMES, height: int = HEIGHT, width: int = WIDTH) -> None:
    """A folder of JPEGs, 1.jpg and on."""
    folder.mkdir(parents=True)
    for number, frame in enumerate(textured_frames(seed, frames, height, width), start=1):
        (folder / f"{number}.jpg").write_bytes(simplejpeg.encode_jpeg(frame, quality=95))


def write_split(split: Path, classes: Sequence[str], *, videos: int = VIDEOS, frames: int = FRAMES) -> Path:
    """Class folders with videos that differ from each other."""
    for c, label in enumerate(classes):
        for v in range(videos):
            write_video(split / label / f"{label}_{v:03d}", seed=1000 * c + v, frames=frames)
    return split


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set that tests only read."""
    root = tmp_path_factory.mktemp("dataset")
    for split, classes in CLASSES.items():
        write_split(root / split, classes)
    return root


@pytest.fixture(scope="session")
def text_features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Features of the names of its classes, as wide as conv4's and unlike each other."""
    names = sorted(name for split in CLASSES.values() for name in split)
    vectors = torch.randn(len(names), 64, generator=torch.Generator().manual_seed(0))
    path = tmp_path_factory.mktemp("text") / "features.pt"
    torch.save(dict(zip(names, vectors, strict=True)), path)
    return path


@pytest.fixture(scope="session")
def text_flags(text_features: Path) -> Callable[[str], list[str]]:
    """What a method needs on the command line where it uses class names, and nothing where it does not."""
    return lambda method: ["--text_features", str(text_features)] if METHODS[method].uses_class_text else []


@pytest.fixture(scope="session")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set whose splits have the same classes, for supervised training; tests only read it."""
    root = tmp_path_factory.mktemp("labelled")
    for split, videos in LABELLED_VIDEOS.items():
        write_split(root / split, LABELS, videos=videos)
    return root


@pytest.fixture
def own_labelled(labelled: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may damage."""
    return Path(shutil.copytree(labelled, tmp_path / "own labelled"))


@pytest.fixture
def own_dataset(dataset: Path, tmp_path: Path) -> Path:
    """A copy of the data set that a test may damage."""
    return Path(shutil.copytree(dataset, tmp_path / "own dataset"))


def first_videos(dataset: Path, split: str) -> list[Path]:
    """The first video folder of every class."""
    return [min(label.iterdir()) for label in sorted((dataset / split).iterdir())]


def tiny_run(dataset: Path, folder: Path, *flags: object) -> list[str]:
    """The command line of a tiny run, changed by `flags`."""
    return [*TINY, "--dataset", str(dataset), "-c", str(folder), *map(str, flags)]


class Program:
    """Calls the program as the shell would, and keeps what it printed."""

    def __init__(self, capture: pytest.CaptureFixture[str], main: Callable[[list[str]], int] = run.main) -> None:
        self._capture, self._main = capture, main
        self.out = ""

    def __call__(self, *argv: object) -> str:
        """What a program that succeeds prints, which must be nothing on stderr."""
        self._capture.readouterr()
        code = self._main([str(flag) for flag in argv])
        self.out, err = self._capture.readouterr()
        assert (code, err) == (0, "")
        return self.out

    def fails(self, *argv: object) -> str:
        """The one sentence of a program that is used wrongly, without 'error: ' before it."""
        (sentence,) = self.fails_in_own_code(*argv)
        return sentence

    def fails_in_own_code(self, *argv: object) -> list[str]:
        """The sentence of a program that fails, and the lines below it: the traceback of code that its user has brought."""
        self._capture.readouterr()
        code = self._main([str(flag) for flag in argv])
        self.out, err = self._capture.readouterr()
        assert code == 2, err
        assert err.startswith("error: ")
        assert err.endswith("\n")
        assert "Traceback" not in self.out + err
        return err[len("error: ") : -1].split("\n")


@pytest.fixture
def program(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Program:
    monkeypatch.setattr(sys, "argv", ["run.py"])
    return Program(capsys)
