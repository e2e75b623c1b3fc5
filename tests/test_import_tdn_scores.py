"""import_tdn_scores.py: files written as TDN's programs do, matched with their list, and fused as TDN's merger does."""

from __future__ import annotations

import io
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from script_runs import Script

from results.view_scores import ViewScores
from scripts import import_tdn_scores
from scripts.fuse_scores import read_ensemble
from scripts.import_tdn_scores import ArrayUnpickler

CROPS, CLIPS, CLASSES = 3, 2, 4
LABELS = [0, 3, 1, 1, 2]
LINES = [
    f"videos/v{number} {length} {label}"
    for number, (length, label) in enumerate(zip((9, 8, 60, 30, 12), LABELS, strict=True))
]


def write_views(folder: Path, seed: int = 0, protocol: int = pickle.HIGHEST_PROTOCOL) -> np.ndarray:
    """A pickle for each clip and crop. Returns the logits [clip][crop][video][class]."""
    folder.mkdir()
    logits = np.random.default_rng(seed).normal(size=(CLIPS, CROPS, len(LABELS), CLASSES)).astype(np.float32)
    for clip in range(CLIPS):
        for crop in range(CROPS):
            answers = [
                [scores[None, ...], label] for scores, label in zip(logits[clip, crop], np.array(LABELS), strict=True)
            ]
            (folder / f"{clip}_crop{crop}.pkl").write_bytes(pickle.dumps(answers, protocol))
    return logits


def merged(folders: list[np.ndarray]) -> np.ndarray:
    """What TDN's merger adds up: probabilities of one model's views, positive logits of two models'. [video][class]."""
    total = np.zeros((len(LABELS), CLASSES))
    for logits in folders:
        for clip in range(CLIPS):
            for crop in range(CROPS):
                for video in range(len(LABELS)):
                    scores = logits[clip, crop, video].astype(np.float64)
                    if len(folders) == 1:
                        scores = np.exp(scores) / np.exp(scores).sum()
                    total[video] += np.maximum(scores, 0)
    return total / (CLIPS * CROPS)


@pytest.fixture
def script(capsys: pytest.CaptureFixture[str]) -> Script:
    return Script(import_tdn_scores.main, capsys)


@pytest.fixture
def listed(tmp_path: Path) -> Path:
    (tmp_path / "val.txt").write_text("\n".join(LINES))
    return tmp_path / "val.txt"


@pytest.mark.parametrize("protocol", [4, 5])
def test_views_keep_their_places_and_videos_get_their_names(
    tmp_path: Path, script: Script, listed: Path, protocol: int
) -> None:
    logits = write_views(tmp_path / "result", protocol=protocol)
    out = script(tmp_path / "result", "--list", listed, "--out", tmp_path / "tdn.npz")
    scores = ViewScores.load(tmp_path / "tdn.npz")
    assert scores.videos == [f"videos/v{number}" for number in range(len(LABELS))]
    assert scores.labels[:, 0].tolist() == LABELS
    assert scores.classes == ["0", "1", "2", "3"]
    for clip in range(CLIPS):
        for crop in range(CROPS):
            np.testing.assert_array_equal(scores.views([crop], [clip]).logits[:, 0], logits[clip, crop])
    assert f"top-1 {scores.summary()['accuracy']:.2f} %" in out


def test_files_of_older_numpy_versions_are_read(tmp_path: Path, script: Script, listed: Path) -> None:
    """They have the names of before NumPy 2."""
    write_views(tmp_path / "result", protocol=3)
    for path in (tmp_path / "result").iterdir():
        path.write_bytes(path.read_bytes().replace(b"numpy._core.", b"numpy.core."))
    script(tmp_path / "result", "--list", listed, "--out", tmp_path / "tdn.npz")
    assert callable(ArrayUnpickler(io.BytesIO()).find_class("numpy.core.numeric", "_frombuffer"))


def test_fusions_are_those_of_the_authors_merger(tmp_path: Path, script: Script, listed: Path) -> None:
    both = [write_views(tmp_path / name, seed) for seed, name in enumerate(("8f", "16f"))]
    paths = [tmp_path / "8f.npz", tmp_path / "16f.npz"]
    for path in paths:
        script(path.with_suffix(""), "--list", listed, "--out", path)
    one = np.exp(ViewScores.load(paths[0]).fused("probabilities"))
    np.testing.assert_allclose(one, merged(both[:1]), rtol=1e-5)
    two = read_ensemble(paths, [1, 1], "relu_logits").scores
    np.testing.assert_allclose(2 * two, merged(both), rtol=1e-5, atol=1e-6)


def test_short_videos_that_were_passed_over_are_not_named(tmp_path: Path, script: Script) -> None:
    write_views(tmp_path / "result")
    (tmp_path / "val.txt").write_text("\n".join(["videos/short 7 2", *LINES]))
    script(tmp_path / "result", "--list", tmp_path / "val.txt", "--out", tmp_path / "tdn.npz")
    assert ViewScores.load(tmp_path / "tdn.npz").videos[0] == "videos/v0"


def test_lists_of_files_and_class_names(tmp_path: Path, script: Script) -> None:
    write_views(tmp_path / "result")
    (tmp_path / "val.txt").write_text("\n".join(f"v {number}.mp4 {label}" for number, label in enumerate(LABELS)))
    (tmp_path / "names.txt").write_text("run\nsit\nwave\njump")
    flags = ["--list", tmp_path / "val.txt", "--list_form", "video", "--out", tmp_path / "tdn.npz"]
    script(tmp_path / "result", *flags, "--class_names", tmp_path / "names.txt")
    scores = ViewScores.load(tmp_path / "tdn.npz")
    assert (scores.videos[1], scores.classes) == ("v 1.mp4", ["run", "sit", "wave", "jump"])
    (tmp_path / "names.txt").write_text("run\nsit")
    assert "2 classes" in script.fails(tmp_path / "result", *flags, "--class_names", tmp_path / "names.txt")


def test_what_does_not_fit_the_list_is_refused(tmp_path: Path, script: Script, listed: Path) -> None:
    folder, out = tmp_path / "result", tmp_path / "tdn.npz"
    write_views(folder)
    listed.write_text("\n".join(LINES[:-1]))
    assert "names 4 videos" in script.fails(folder, "--list", listed, "--out", out)
    listed.write_text("\n".join([*LINES[:-1], "videos/v4 12 1"]))
    assert "'videos/v4' label 1, and it was tested with 2" in script.fails(folder, "--list", listed, "--out", out)
    listed.write_text("\n".join(LINES))
    (folder / "1_crop2.pkl").write_bytes(pickle.dumps([[np.zeros((1, CLASSES)), 0]] * len(LABELS)))
    assert "1_crop2.pkl is not about the videos of" in script.fails(folder, "--list", listed, "--out", out)
    (folder / "1_crop2.pkl").unlink()
    assert "no 1_crop2.pkl" in script.fails(folder, "--list", listed, "--out", out)
    assert "no 0_crop0.pkl" in script.fails(tmp_path, "--list", listed, "--out", out)
    assert not out.exists()


class Hostile:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("made by a pickle",)


@pytest.mark.parametrize(
    "content", [Hostile(), [[np.zeros((1, CLASSES)), Hostile()]], [[{"a": print}, 0]], {"no": "list"}, [1], []]
)
def test_a_pickle_that_holds_anything_else_is_refused_and_runs_nothing(
    tmp_path: Path, script: Script, listed: Path, content: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "result").mkdir()
    (tmp_path / "result" / "0_crop0.pkl").write_bytes(pickle.dumps(content))
    assert "as TDN's test programs write it" in script.fails("result", "--list", listed, "--out", "tdn.npz")
    assert not Path("made by a pickle").exists()


def test_a_damaged_pickle_is_refused(tmp_path: Path, script: Script, listed: Path) -> None:
    write_views(tmp_path / "result")
    path = tmp_path / "result" / "0_crop0.pkl"
    for content in (path.read_bytes()[:50], b"", b"\x80\x05no pickle."):
        path.write_bytes(content)
        sentence = script.fails(tmp_path / "result", "--list", listed, "--out", tmp_path / "x.npz")
        assert "as TDN's test programs write it" in sentence
