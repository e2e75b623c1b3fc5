"""explain_episode.py: what it draws is what the method computed; every method is drawn."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CLASSES
from PIL import Image
from script_runs import Script, untrained

from clips.transforms import ClipTransform
from clips.video_split import Split
from methods import load_head
from methods.otam import CNN_OTAM
from model import CNN_TRX, CNN_FSHead
from results.answer_film import write_answer_film
from results.drawing import class_colour, film_strip, thinned, wrapped
from results.style import LIGHT
from scripts import explain_episode
from scripts.explain_episode import Episode, answer_episode, best_shots, strongest_matches, used_cells
from video_reader import VideoDataset

FLAGS = ("--num_test_tasks", 2, "--seq_len", 4, "--trans_linear_out_dim", 8)


@pytest.fixture
def script(capsys: pytest.CaptureFixture[str]) -> Script:
    return Script(explain_episode.main, capsys)


@pytest.fixture(scope="module")
def checkpoint_of(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The checkpoint of an untrained method, made when it is first asked for."""
    folder = tmp_path_factory.mktemp("runs")

    def checkpoint(method: str) -> Path:
        if not (folder / method).exists():
            untrained(dataset, folder / method, method, *FLAGS)
        return folder / method / "checkpoint_final.pt"

    return checkpoint


def episode_of(checkpoint: Path, dataset: Path, *, way: int = 3, shot: int = 2, noisy: int = 0) -> Episode:
    model, settings, spec = load_head(checkpoint)
    data = VideoDataset(
        Split.open(dataset, "test"), way=way, shot=shot, queries=1, seq_len=settings.seq_len,
        transform=ClipTransform(spec.size), seed=0, noisy=noisy,
    )  # fmt: skip
    return answer_episode(model, spec, data, 0)


@pytest.mark.parametrize(("answer", "colour"), [("jump", "right"), ("hop_high", "wrong")])
def test_the_film_of_an_answer_is_framed_by_whether_it_is_right(tmp_path: Path, answer: str, colour: str) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (5, 32, 48, 3), dtype=np.uint8)
    write_answer_film(tmp_path / "a.gif", frames, true="jump", answer=answer, probability=0.8)
    with Image.open(tmp_path / "a.gif") as film:
        assert film.n_frames == 5
        assert film.info["loop"] == 0
        corner = np.array(film.convert("RGB"))[2, 2]
    expected = np.array([int(LIGHT[colour][i : i + 2], 16) for i in (1, 3, 5)])
    assert np.abs(corner.astype(int) - expected).max() < 12  # of a palette


def test_the_film_shows_the_query_that_is_explained(
    checkpoint_of: Callable[[str], Path], script: Script, tmp_path: Path
) -> None:
    script("--checkpoint", checkpoint_of("tsn"), "-o", tmp_path / "e.png", "--gif", tmp_path / "q.gif", "--query", 1)
    with Image.open(tmp_path / "q.gif") as film:
        assert film.n_frames == 4
    assert "expected a name that ends in .gif" in script.fails(
        "--checkpoint", checkpoint_of("tsn"), "--gif", tmp_path / "q.mp4"
    )


@pytest.mark.parametrize("method", ["tsn", "trx", "otam", "dual_prototypes", "chamfer++", "mean", "arn", "pal"])
def test_every_kind_of_method_is_drawn(
    checkpoint_of: Callable[[str], Path], script: Script, tmp_path: Path, method: str
) -> None:
    flags = ("--way", 3, "--shot", 3, "--noisy_support", 1, "--query", 1, "--task", 4)
    out = script("--checkpoint", checkpoint_of(method), *flags, "-o", tmp_path / "episode.png")
    assert f"{method} answers" in out
    assert "of 3 queries of task 4" in out
    with Image.open(tmp_path / "episode.png") as image:
        pixels = np.asarray(image.convert("RGB"))
    for k in range(3):
        colour = [int(class_colour(k)[i : i + 2], 16) for i in (1, 3, 5)]
        assert (pixels == colour).all(axis=-1).sum() > 1000
    with_panel = method != "pal"  # of which there is nothing to show but the answers
    assert (len(pixels) > 1250) == with_panel


def test_clips_and_answers_belong_together(checkpoint_of: Callable[[str], Path], dataset: Path) -> None:
    episode = episode_of(checkpoint_of("tsn"), dataset, noisy=1)
    support, labels, target = episode.features
    clips = [clip for clips in episode.support for clip in clips]
    order = [place for k in range(3) for place in (labels[0] == k).nonzero()[:, 0].tolist()]
    _, _, spec = load_head(checkpoint_of("tsn"))
    with torch.inference_mode():
        images = torch.from_numpy(np.stack(clips)).permute(0, 1, 4, 2, 3)
        torch.testing.assert_close(episode.model.encode(spec.normalise(images)), support[0, order])
    assert [sum(map(bool, names)) for names in episode.impostors] == [1, 1, 1]
    assert all(name in ["", *CLASSES["test"]] for names in episode.impostors for name in names)
    np.testing.assert_allclose(episode.probabilities.sum(axis=1), 1, rtol=1e-5)
    logits = episode.model.classify_episodes(support, labels, target)["logits"][0]
    np.testing.assert_allclose(episode.probabilities, logits.softmax(-1).detach(), rtol=1e-5)


def test_tuple_matches_are_the_largest_attention(checkpoint_of: Callable[[str], Path], dataset: Path) -> None:
    episode = episode_of(checkpoint_of("trx"), dataset)
    assert isinstance(episode.model, CNN_TRX)
    transformer = episode.model.transformers[1]  # triples, of which 4 steps have 4
    support, labels, target = (part[0] for part in episode.features)
    triples = [(0, 1, 2), (0, 1, 3), (0, 2, 3), (1, 2, 3)]

    def keys(video: torch.Tensor) -> torch.Tensor:
        steps = transformer.pe(video)
        tuples = torch.stack([steps[list(triple)].flatten() for triple in triples])
        return transformer.norm_k(
            torch.nn.functional.linear(tuples, transformer.k_linear.weight, transformer.k_linear.bias)
        )

    with torch.inference_mode():
        shots = torch.cat([keys(video) for video in support[labels == 2]])  # (J*M, E)
        attention = (keys(target[1]) @ shots.T / 8**0.5).softmax(dim=-1)
    matches = strongest_matches(episode, transformer, query=1, k=2, count=10)
    assert len(matches) == 4
    assert [match.attention for match in matches] == pytest.approx(
        sorted(attention.amax(-1).tolist(), reverse=True), rel=1e-4
    )
    for match in matches:
        row, column = triples.index(match.query_steps), 4 * match.shot + triples.index(match.support_steps)
        assert float(attention[row, column]) == pytest.approx(match.attention, rel=1e-4)
        assert attention[row].argmax() == column


def test_cells_that_count_are_those_the_method_takes(checkpoint_of: Callable[[str], Path], dataset: Path) -> None:
    episode = episode_of(checkpoint_of("max"), dataset)
    similarities = episode.explanation["similarities"][0]
    used = used_cells(episode, query=0)
    assert (used != 0).sum(dim=(-2, -1)).tolist() == [[1, 1]] * 3
    assert used.flatten(-2).argmax(-1).tolist() == similarities.flatten(-2).argmax(-1).tolist()
    assert best_shots(episode, 0, similarities, used) == similarities.amax(dim=(-2, -1)).argmax(dim=-1).tolist()


def test_otam_shows_the_shot_with_the_cheapest_alignment(checkpoint_of: Callable[[str], Path], dataset: Path) -> None:
    episode = episode_of(checkpoint_of("otam"), dataset, shot=3)
    assert isinstance(episode.model, CNN_OTAM)
    similarities = episode.explanation["similarities"][1]
    path = episode.explanation["path"][1]
    costs = (path * (1 - similarities)).sum(dim=(-2, -1))
    best = best_shots(episode, 1, similarities, used_cells(episode, 1))
    assert best == costs.argmin(dim=-1).tolist()


def test_a_method_that_needs_images_is_drawn_without_a_panel(
    checkpoint_of: Callable[[str], Path], script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CNN_FSHead, "works_on_features", False)
    script("--checkpoint", checkpoint_of("tsn"), "-o", tmp_path / "episode.svg")
    text = (tmp_path / "episode.svg").read_text()
    assert "Support" in text
    assert "cosine" not in text


def test_mistakes_are_one_sentence(checkpoint_of: Callable[[str], Path], script: Script, tmp_path: Path) -> None:
    flags = ("--checkpoint", checkpoint_of("tsn"), "-o", tmp_path / "e.png")
    assert "no checkpoint at" in script.fails("--checkpoint", tmp_path / "no.pt", "-o", tmp_path / "e.png")
    assert "--query is 2: expected 0 to 1" in script.fails(*flags, "--query", 2)
    assert "--task is -1" in script.fails(*flags, "--task", -1)
    assert "needs 9" in script.fails(*flags, "--way", 9)
    assert "no data set at" in script.fails(*flags, "--dataset", tmp_path / "no")
    assert "--out" in script.fails("--checkpoint", checkpoint_of("tsn"), "-o", tmp_path / "e.gif")


def test_strips_hold_their_frames() -> None:
    frames = np.arange(3, dtype=np.uint8)[:, None, None, None] * np.ones((3, 4, 5, 3), np.uint8)
    strip = film_strip(frames, gap=2)
    assert strip.shape == (4, 3 * 5 + 2 * 2, 3)
    assert strip[0, :, 0].tolist() == [0] * 5 + [255] * 2 + [1] * 5 + [255] * 2 + [2] * 5
    assert film_strip(frames, gap=0).shape == (4, 15, 3)
    assert thinned(frames, 2)[:, 0, 0, 0].tolist() == [0, 2]
    assert len(thinned(frames, 8)) == 3
    assert wrapped("Pushing something from left to right", 20, 1) == "Pushing something …"
