"""predict.py: probabilities against the model's own, films and pictures read back, and every mistake as one sentence."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from conftest import CLASSES, FRAMES, textured_frames, write_video
from PIL import Image, ImageSequence
from script_runs import Script, untrained

from clips.frame_sources import VideoFile
from clips.transforms import ClipTransform
from methods.checkpoints import load_head
from results.drawing import class_colour
from scripts import predict
from scripts.predict import FILM_SIZE, FRAME_BOX, bar

LABELS = CLASSES["test"][:3]


@pytest.fixture
def script(capsys: pytest.CaptureFixture[str]) -> Script:
    return Script(predict.main, capsys)


@pytest.fixture(scope="module")
def checkpoint(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return untrained(dataset, tmp_path_factory.mktemp("runs") / "tsn", "tsn") / "checkpoint_final.pt"


@pytest.fixture
def support(dataset: Path, tmp_path: Path) -> Path:
    """Three actions with 1, 2 and 3 example videos."""
    for shots, label in enumerate(LABELS, start=1):
        for video in sorted((dataset / "test" / label).iterdir())[:shots]:
            shutil.copytree(video, tmp_path / "support" / label / video.name)
    return tmp_path / "support"


def write_film_file(path: Path, frames: np.ndarray) -> Path:
    """A lossless video file."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=6)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "bgr0"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, "rgb24").reformat(format="bgr0")))
        container.mux(stream.encode())
    return path


def test_probabilities_are_those_of_the_model(
    script: Script, checkpoint: Path, support: Path, dataset: Path, tmp_path: Path
) -> None:
    queries = sorted((dataset / "test" / LABELS[1]).iterdir())[-2:]
    out = script("--checkpoint", checkpoint, "--support", support, "--query", *queries, "--json", tmp_path / "a.json")
    answers = json.loads((tmp_path / "a.json").read_text())
    assert answers["examples"] == dict(zip(LABELS, (1, 2, 3), strict=True))

    model, settings, spec, _ = load_head(checkpoint)
    examples = [video for label in LABELS for video in sorted((support / label).iterdir())]
    images = [
        torch.cat([predict.read_clip(predict.open_video(video), settings, spec) for video in videos])
        for videos in (examples, queries)
    ]
    with torch.inference_mode():
        logits = model(spec.normalise(images[0]), torch.tensor([0, 1, 1, 2, 2, 2]), spec.normalise(images[1]))["logits"]
    for row, answer in zip(logits.softmax(-1).tolist(), answers["queries"], strict=True):
        assert list(answer["probabilities"]) == LABELS
        assert list(answer["probabilities"].values()) == pytest.approx(row, abs=1e-5)
        assert answer["answer"] == LABELS[int(np.argmax(row))]
        assert f"{100 * max(row):.1f} %" in out


def test_backbones_that_want_neighbouring_frames_get_them(checkpoint: Path, dataset: Path) -> None:
    _, settings, spec, _ = load_head(checkpoint)
    video = predict.open_video(min((dataset / "test" / LABELS[0]).iterdir()))
    assert (settings.seq_len, settings.sampling) == (3, "linspace")
    clip = predict.read_clip(video, settings, spec, frames_per_step=3)
    assert torch.equal(clip, ClipTransform(spec.size)(video.read([0, 1, 2]), np.random.default_rng(0)))


def test_a_method_that_needs_images_gives_the_same(
    script: Script, checkpoint: Path, support: Path, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    query = min((dataset / "test" / LABELS[0]).iterdir())
    flags = ("--checkpoint", checkpoint, "--support", support, "--query", query, query)
    script(*flags, "--json", tmp_path / "features.json")
    monkeypatch.setattr("model.CNN_FSHead.works_on_features", False)
    script(*flags, "--json", tmp_path / "images.json")
    with_features, with_images = (
        [list(q["probabilities"].values()) for q in json.loads((tmp_path / f"{name}.json").read_text())["queries"]]
        for name in ("features", "images")
    )
    np.testing.assert_allclose(with_features, with_images, atol=1e-5)


def test_what_is_no_video_is_passed_over_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a.mkv", "b.ts", "notes.txt", "loop", ".hidden"):
        (tmp_path / name).touch()
    (tmp_path / "loop").unlink()
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "frames").mkdir()
    assert [path.name for path in predict.example_paths(tmp_path)] == ["a.mkv", "b.ts", "frames"]
    assert capsys.readouterr().err == f"note: {tmp_path}: 2 passed over, being no videos: loop, notes.txt\n"


def test_an_example_is_recognised_as_itself_from_a_video_file(script: Script, checkpoint: Path, tmp_path: Path) -> None:
    for seed, label in enumerate(("jump", "run")):
        (tmp_path / "support" / label).mkdir(parents=True)
        write_film_file(tmp_path / "support" / label / "a.mkv", textured_frames(seed))
    write_video(tmp_path / "query", seed=1)  # the frames of 'run', as JPEGs
    out = script(
        "--checkpoint", checkpoint, "--support", tmp_path / "support", "--query", tmp_path / "query", "--top", 1
    )
    assert "examples: jump 1, run 1" in out
    assert [line.split()[:2] for line in out.splitlines() if line.startswith("query")] == [["query", "run"]]


@pytest.mark.parametrize("suffix", [".gif", ".mp4"])
def test_films_show_the_query_and_its_answer(
    script: Script, checkpoint: Path, support: Path, tmp_path: Path, suffix: str
) -> None:
    frames = np.repeat(np.linspace(40, 220, 12, dtype=np.uint8), 40 * 40 * 3).reshape(12, 40, 40, 3)  # ever lighter
    query = write_film_file(tmp_path / "query.mkv", frames)
    film = tmp_path / f"film{suffix}"
    script("--checkpoint", checkpoint, "--support", support, "--query", query, "--picture", film)
    if suffix == ".gif":
        with Image.open(film) as image:
            assert image.info["duration"] == pytest.approx(167, abs=10)  # 12 frames of a video of 2 seconds
            shown = np.stack([np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(image)])
    else:
        source = VideoFile(film)
        shown = source.read(range(source.num_frames))
        assert predict.seconds(source) == pytest.approx(2, abs=0.1)
    assert shown.shape == (12, FILM_SIZE[1], FILM_SIZE[0], 3)
    middles = shown[:, FILM_SIZE[1] // 2, 10 + FRAME_BOX[0] // 2].mean(axis=-1)
    assert np.abs(middles - frames[:, 0, 0, 0]).max() < 12
    panel = shown[5, :, FRAME_BOX[0] + 20 :].astype(int)
    for k in range(3):
        colour = [int(class_colour(k)[i : i + 2], 16) for i in (1, 3, 5)]
        assert (np.abs(panel - colour).max(axis=-1) < 25).sum() > 200  # a bar


def test_picture_has_a_strip_for_every_query(
    script: Script, checkpoint: Path, support: Path, dataset: Path, tmp_path: Path
) -> None:
    queries = sorted((dataset / "test" / LABELS[0]).iterdir())[:3]
    heights = []
    for count in (1, 3):
        path = tmp_path / f"{count}.png"
        script("--checkpoint", checkpoint, "--support", support, "--query", *queries[:count], "--picture", path)
        with Image.open(path) as image:
            heights.append(image.height)
    line = 48  # pixels of the heading
    assert heights[1] - line == 3 * (heights[0] - line)


def test_answers_say_what_they_are_worth(
    script: Script, checkpoint: Path, support: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = []
    for name in ("heading", "wrapped"):  # above a picture, and below a film
        draw = getattr(predict, name)
        monkeypatch.setattr(predict, name, lambda *words, draw=draw: (written.extend(words), draw(*words))[1])
    query = next((support / LABELS[0]).iterdir())
    for picture in ("answer.png", "answer.gif"):
        flags = ["--query", query, "--json", tmp_path / "answer.json", "--picture", tmp_path / picture]
        out = script("--checkpoint", checkpoint, "--support", support, *flags)
        assert "tsn on conv4 (untrained); examples" in out
    assert json.loads((tmp_path / "answer.json").read_text())["marks"] == ["untrained"]
    assert [words for words in written if "conv4" in str(words)] == [
        "Answers of tsn on conv4 (untrained)",
        "tsn on conv4 (untrained)",
    ]


def test_a_folder_of_frames_lasts_as_its_frames_at_12_a_second(tmp_path: Path) -> None:
    write_video(tmp_path / "clip")
    assert predict.seconds(predict.open_video(tmp_path / "clip")) == FRAMES / 12


def test_bars_are_exact_to_an_eighth() -> None:
    assert bar(1.0) == "█" * 20
    assert bar(0.5 + 1 / 40) == "█" * 10 + "▌"
    assert bar(0.0) == ""


def test_bad_queries_are_named_and_the_others_answered(
    checkpoint: Path, support: Path, tmp_path: Path, script: Script
) -> None:
    good = [next((support / label).iterdir()) for label in LABELS]
    (tmp_path / "bad.mp4").write_bytes(b"no video at all")
    flags = ["--checkpoint", checkpoint, "--support", support, "--json", tmp_path / "answers.json", "--query"]
    sentence = script.fails(*flags, good[0], tmp_path / "bad.mp4", good[1])
    assert "1 of 3 queries could not be read" in sentence
    assert "bad.mp4" in sentence
    answered = json.loads((tmp_path / "answers.json").read_text())["queries"]
    assert [query["video"] for query in answered] == [str(good[0]), str(good[1])]


def test_mistakes_are_one_sentence(script: Script, checkpoint: Path, support: Path, tmp_path: Path) -> None:
    query = next((support / LABELS[0]).iterdir())

    def fails(**changes: object) -> str:
        flags = {"checkpoint": checkpoint, "support": support, "query": query, **changes}
        return script.fails(*(word for name, value in flags.items() for word in (f"--{name}", value)))

    assert "no checkpoint at" in fails(checkpoint=tmp_path / "no.pt")
    assert "no folder" in fails(support=tmp_path / "no")
    assert "no video" in fails(query=tmp_path / "no.mp4")
    assert "expected 1 or more" in fails(top=0)
    assert ".png, .gif, .mp4" in fails(picture="answer.bmp")
    assert "no folder" in fails(picture=tmp_path / "no" / "answer.png")
    assert "--json" in fails(json="answers.txt")
    assert "holds 1 action folder(s)" in fails(support=support.parent)
    assert "a film shows one query" in script.fails(
        "--checkpoint", checkpoint, "--support", support, "--query", query, query, "--picture", tmp_path / "a.gif"
    )
    (tmp_path / "bad.mp4").write_bytes(b"no video at all")
    sentence = fails(query=tmp_path / "bad.mp4")
    assert "bad.mp4" in sentence
    assert "--on_bad_video" not in sentence  # a flag of another program
    assert "none of the queries could be read" in sentence
    (tmp_path / "empty").mkdir()
    assert "holds no frame" in fails(query=tmp_path / "empty")
    (support / "nothing").mkdir()
    assert "nothing holds no video" in fails()
