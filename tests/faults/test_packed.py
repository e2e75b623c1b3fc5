"""A packed data set that is cut, or holds something else than it should: a sentence, never the end of the process."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import pytest
from conftest import tiny_run, write_split

from clips import frame_sources
from clips.frame_sources import LMDB_INDEX, BadVideo, LmdbStore, lmdb_key, pack_images, unpack_index
from clips.video_split import Split
from data_prep import pack_lmdb
from faults.conditions import ending_of, program
from utils import UserError

ADVICE = "copy it again, or remove it and pack it again by data_prep/pack_lmdb.py"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set whose test split is packed: 3 classes of 4 videos."""
    root = tmp_path_factory.mktemp("packed")
    write_split(root / "frames/test", ["dive", "golf", "run"], videos=4)
    assert pack_lmdb.main(["--src", str(root / "frames"), "--dst", str(root / "packed")]) == 0
    return root / "packed"


@pytest.fixture
def own(whole: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(whole, tmp_path / "own"))


def read_all(dataset: Path) -> list[np.ndarray]:
    split = Split.open(dataset, "test")
    places = [(label, video) for label, videos in enumerate(split.videos) for video in range(len(videos))]
    return [split.source(*place).read(range(6)) for place in places]


def put(dataset: Path, key: bytes, value: bytes | None) -> None:
    with (
        lmdb.open(str(dataset / "test.lmdb"), subdir=False, lock=False, map_size=1 << 26) as file,
        file.begin(write=True) as t,
    ):
        t.delete(key) if value is None else t.put(key, value)


def test_a_run_on_a_file_cut_to_half_is_one_sentence(own: Path, tmp_path: Path) -> None:
    size = (own / "test.lmdb").stat().st_size
    os.truncate(own / "test.lmdb", size // 2)
    argv = tiny_run(own, tmp_path / "run", "-i", 0)
    sentence = ending_of(program(argv), tmp_path).sentence()
    assert f"test.lmdb is cut short, at {size // 2:,} of {size:,} bytes; {ADVICE}" in sentence
    with pytest.raises(UserError, match="test.lmdb is cut short"):  # nor is it packed on
        pack_lmdb.Pack(own / "test.lmdb", "images")


def test_a_file_cut_anywhere_never_ends_the_process(own: Path, tmp_path: Path) -> None:
    size = (own / "test.lmdb").stat().st_size

    def work() -> int:
        for cut in [*range(size - 1, 0, -max(1, size // 60)), 8192, 4096, 152, 151, 1, 0]:
            os.truncate(own / "test.lmdb", cut)
            with pytest.raises((UserError, BadVideo), match=r"test\.lmdb is (cut short|no LMDB file)"):
                read_all(own)
        return 0

    ending = ending_of(work, tmp_path)
    assert ending.code == 0, ending.said


def test_a_page_of_zeros_never_ends_the_process(own: Path, tmp_path: Path) -> None:
    """Within an image it may pass: what decodes is not compared with anything."""
    content = (own / "test.lmdb").read_bytes()

    def work() -> int:
        refused = 0
        for page in range(0, len(content), 4096):
            damaged = own / str(page)
            damaged.mkdir()
            (damaged / "test.lmdb").write_bytes(content[:page] + bytes(4096) + content[page + 4096 :])
            try:
                assert [frames.shape for frames in read_all(damaged)] == [(6, 40, 48, 3)] * 12
            except (UserError, BadVideo):
                refused += 1
        assert refused > 10
        return 0

    ending = ending_of(work, tmp_path)
    assert ending.code == 0, ending.said


INDEX: dict[str, Any] = {"kind": "images", "videos": {"dive": {"dive_000": 6}}}


@pytest.mark.parametrize(
    "index",
    [
        b"", b"{", b"\xff", b"[]", b"7", b"null", b"{}",
        *[json.dumps({**INDEX, **change}).encode() for change in (
            {"kind": "films"}, {"kind": None}, {"videos": []}, {"videos": {"dive": ["dive_000"]}},
            {"videos": {"dive": {"dive_000": "6"}}}, {"videos": {"dive": {"dive_000": -6}}},
            {"videos": {"dive": {"dive_000": 6.5}}}, {"videos": {"dive": {"dive_000": True}}},
        )],
        json.dumps(INDEX).encode() + b"\n" + b"0" * 64,
    ],
)  # fmt: skip
def test_an_index_of_another_shape_is_a_sentence(index: bytes, own: Path) -> None:
    put(own, LMDB_INDEX, index)
    with pytest.raises(UserError, match=f"the index in .*test.lmdb is damaged .*; {ADVICE}"):
        Split.open(own, "test")


def test_an_index_of_more_videos_than_there_are_is_a_sentence(own: Path) -> None:
    for video in range(3):
        put(own, lmdb_key("golf", f"golf_00{video}"), None)
    with pytest.raises(UserError, match=r"test\.lmdb holds 10 of the 12 videos in its index"):
        Split.open(own, "test")


def test_an_index_is_checked_and_an_older_one_is_read(own: Path) -> None:
    with lmdb.open(str(own / "test.lmdb"), subdir=False, readonly=True, lock=False) as file, file.begin() as t:
        content = t.get(LMDB_INDEX)
    before = Split.open(own, "test")
    frame_sources._close_environments()
    put(own, LMDB_INDEX, content.replace(b"dive_001", b"dive_007"))
    with pytest.raises(UserError, match="its checksum differs"):
        Split.open(own, "test")
    frame_sources._close_environments()
    older = json.dumps(unpack_index(content)).encode()
    put(own, LMDB_INDEX, older)
    assert Split.open(own, "test") == before


@pytest.mark.parametrize(
    "value", [b"", b"\6", b"\6\0\0\0", pack_images([b"x" * 9] * 6)[:-1], pack_images([b"x"]) + b"y"]
)
def test_a_value_of_another_length_is_a_sentence(value: bytes, own: Path) -> None:
    put(own, lmdb_key("dive", "dive_000"), value)
    with pytest.raises(BadVideo, match=f"test.lmdb:dive/dive_000 is damaged .*; {ADVICE}"):
        LmdbStore(own / "test.lmdb").video("dive", "dive_000").read([0])
