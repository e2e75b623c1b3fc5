"""explain_episode.py: what it draws is what the method computed; every method is drawn."""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CLASSES
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image, ImageFont
from script_runs import Script, untrained
from small_heads import STEPS, build, features

from engine.class_text import text_of_episode
from methods import METHODS
from methods.checkpoints import load_head
from model import CNN_FSHead
from results.drawing import class_colour, film_strip, thinned, wrapped
from results.episode_picture import draw_episode, draw_queries, draw_support
from results.films import SIDE, captioned, write_answer_film
from results.panels import PANELS, WIDTH, Episode, panels_of, strongest_matches
from results.style import LIGHT, house_style
from scripts import explain_episode

FLAGS = ("--num_test_tasks", 2, "--seq_len", 4, "--trans_linear_out_dim", 8)


@pytest.fixture
def script(capsys: pytest.CaptureFixture[str]) -> Script:
    return Script(explain_episode.main, capsys)


@pytest.fixture(scope="module")
def checkpoint_of(
    dataset: Path, tmp_path_factory: pytest.TempPathFactory, text_flags: Callable[[str], list[str]]
) -> Callable[[str], Path]:
    """The checkpoint of an untrained method, made when it is first asked for."""
    folder = tmp_path_factory.mktemp("runs")

    def checkpoint(method: str) -> Path:
        if not (folder / method).exists():
            untrained(dataset, folder / method, method, *FLAGS, *text_flags(method))
        return folder / method / "checkpoint_final.pt"

    return checkpoint


def read(checkpoint: Path, *flags: object) -> tuple[Episode, dict, CNN_FSHead]:
    """The episode that the script draws with these flags, its task and its model."""
    args = explain_episode.parse_args(["--checkpoint", str(checkpoint), *map(str, flags)])
    model, settings, spec, _ = load_head(checkpoint)
    data = explain_episode.open_dataset(args, settings, model, spec)
    task = data[args.task]
    text = text_of_episode(args, settings, model, explain_episode.classes_of(task, data))
    explanation = explain_episode.answer(model, spec, task, data.seq_len, text)
    return explain_episode.episode_of(task, data, explanation, "an episode"), task, model


def episode_with(explanation: dict[str, np.ndarray], probabilities: np.ndarray, shots: int = 3) -> Episode:
    """One of black frames."""
    queries, way = probabilities.shape
    clip = np.zeros((4, 8, 8, 3), np.uint8)
    names, impostors = [f"class {k}" for k in range(way)], [[""] * shots for _ in range(way)]
    labels = np.arange(queries) % way
    support = [[clip] * shots for _ in range(way)]
    return Episode("made up", names, support, impostors, [clip] * queries, labels, probabilities, explanation)


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


def test_a_film_has_as_many_letters_of_a_name_as_fit() -> None:
    font = ImageFont.load_default(16)
    assert captioned("it is ", "jump", " 80 %", font) == "it is jump 80 %"
    line = captioned("it is ", "Failing to put something into something because it does not fit", " 80 %", font)
    assert line.startswith("it is Failing to put some")
    assert line.endswith(" … 80 %")
    assert 0.9 * SIDE < font.getlength(line) <= SIDE


def test_the_film_shows_the_query_that_is_explained(
    checkpoint_of: Callable[[str], Path], script: Script, tmp_path: Path
) -> None:
    script("--checkpoint", checkpoint_of("tsn"), "-o", tmp_path / "e.png", "--gif", tmp_path / "q.gif", "--query", 1)
    with Image.open(tmp_path / "q.gif") as film:
        assert film.n_frames == 4
    assert "expected a name that ends in .gif" in script.fails(
        "--checkpoint", checkpoint_of("tsn"), "--gif", tmp_path / "q.mp4"
    )


def test_a_film_alone_leaves_no_picture_behind(
    checkpoint_of: Callable[[str], Path], script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert script("--checkpoint", checkpoint_of("tsn"), "--gif", "q.gif").endswith("wrote q.gif\n")
    assert [path.name for path in tmp_path.iterdir()] == ["q.gif"]
    script("--checkpoint", checkpoint_of("tsn"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["episode.png", "q.gif"]


def explained(method: str, way: int, shots: int) -> Episode:
    """An episode of black frames with what an untrained method says to random features."""
    head = build("--method", method).float()
    shape = (head.backbone.feature_dim, STEPS, 3, 3) if head.reads == "maps" else (STEPS, head.backbone.feature_dim)
    support, target = (features(1, way * number, *shape, seed=number).float() for number in (shots, 1))
    labels = torch.arange(way).repeat(shots)[None]
    text = {"class_text": features(1, way, head.class_text_width or 8)} if head.uses_class_text else {}
    with torch.inference_mode():
        shown = head.explain(support, labels, target, **{name: value.float() for name, value in text.items()})
    explanation = {name: value[0].numpy() for name, value in shown.items()}
    probabilities = torch.from_numpy(explanation["logits"]).softmax(dim=-1).numpy()
    return episode_with(explanation, probabilities, shots)


# Together they have panels of all kinds.
DRAWN = [
    "dual_prototypes",
    "pal",
    "cmn",
    "trx",
    "otam",
    "chamfer++",
    "arn",
    "hyrsm",
    "team",
    "strm",
    "molo",
    "clip_fsar",
]


def test_every_method_has_panels() -> None:
    """And those that are drawn in these tests have all that there are."""
    panels = {method: panels_of(explained(method, way=2, shots=2)) for method in METHODS}
    assert all(panels.values())
    assert {panel for method in DRAWN for panel in panels[method]} == set(PANELS.values())


def test_an_episode_is_drawn_as_the_script_is_told(
    checkpoint_of: Callable[[str], Path], script: Script, tmp_path: Path, dataset: Path
) -> None:
    flags = ("--way", 2, "--shot", 1, "--query", 1, "--task", 4)
    out = script("--checkpoint", checkpoint_of("otam"), *flags, "-o", tmp_path / "episode.svg")
    assert "otam answers" in out
    assert "of 2 queries of task 4" in out
    picture = (tmp_path / "episode.svg").read_text(encoding="utf-8")
    assert f"Support of task 4 of {dataset.name}/test, seed 0, answered by otam on conv4" in picture
    assert all(class_colour(k) in picture for k in range(2))
    assert "Query 1 (down)" in picture  # what a panel says above itself


def texts_in(figure: Figure) -> list[Text]:
    """Those that are drawn; an axis also keeps labels of ticks beyond its ends."""
    beyond = {
        label
        for axes in figure.findobj(Axes)
        for axis in (axes.xaxis, axes.yaxis)
        for tick in axis.get_major_ticks()
        for label in (tick.label1, tick.label2)
        if not min(axis.get_view_interval()) <= tick.get_loc() <= max(axis.get_view_interval())
    }
    return [t for t in figure.findobj(Text) if t not in beyond and t.get_visible() and t.get_text().strip()]


@pytest.mark.parametrize("method", DRAWN)
def test_no_text_lies_on_another(method: str) -> None:
    """Nor beyond the edge, where names are long."""
    episode = explained(method, way=5, shots=2)
    episode.classes = [f"Putting_something_similar_to_{k}_others_onto_the_table" for k in range(5)]
    episode.impostors = [["", episode.classes[k - 1]] for k in range(5)]
    drawn = [
        (panel.height(episode), lambda part, panel=panel: panel.draw(part, episode, 0)) for panel in panels_of(episode)
    ]
    if method == "dual_prototypes":  # which has most to say there
        drawn += [
            (6.0, lambda part: draw_support(part, episode, 4)),
            (6.0, lambda part: draw_queries(part, episode, 0)),
        ]
    for height, draw in drawn:
        with house_style():
            figure = Figure((WIDTH, height), layout="constrained", dpi=40)
            draw(figure.subfigures(1, 1))
            FigureCanvasAgg(figure).draw()
            texts = texts_in(figure)
            boxes = [text.get_window_extent().padded(-0.6) for text in texts]
        assert len(texts) > 5
        for i, box in enumerate(boxes):
            assert 0 <= box.x0 < box.x1 <= figure.bbox.x1, texts[i]
            assert [texts[j] for j in range(i) if boxes[j].overlaps(box)] == [], texts[i]


def test_the_title_says_what_the_answers_are_worth(
    checkpoint_of: Callable[[str], Path], script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    titles = []
    monkeypatch.setattr(explain_episode, "draw_episode", lambda episode, *_: titles.append(episode.title))
    flags = ("--checkpoint", checkpoint_of("tsn"), "-o", tmp_path / "x.png", "--shot", 2)
    assert "queries of task 0 right (1 noisy shot, untrained); wrote" in script(*flags, "--noisy_support", 1)
    script(*flags)
    assert [title.partition("tsn on ")[2] for title in titles] == [
        "conv4 (1 noisy shot, untrained)",
        "conv4 (untrained)",
    ]


def test_clips_and_answers_belong_together(checkpoint_of: Callable[[str], Path]) -> None:
    episode, task, model = read(checkpoint_of("tsn"), "--way", 3, "--shot", 2, "--noisy_support", 1)
    clips = torch.from_numpy(np.stack([clip for clips in episode.support for clip in clips]))
    order = [place for k in range(3) for place in (task["support_labels"] == k).nonzero()[:, 0].tolist()]
    frames = task["support_set"].unflatten(0, (-1, 4))
    assert torch.equal(clips.permute(0, 1, 4, 2, 3), frames[order])
    assert [sum(map(bool, names)) for names in episode.impostors] == [1, 1, 1]
    assert all(name in ["", *CLASSES["test"]] for names in episode.impostors for name in names)
    np.testing.assert_allclose(episode.probabilities.sum(axis=1), 1, rtol=1e-5)
    spec = load_head(checkpoint_of("tsn")).spec
    with torch.inference_mode():
        images = [spec.normalise(task[f"{part}_set"]) for part in ("support", "target")]
        logits = model(images[0], task["support_labels"], images[1])["logits"]
    np.testing.assert_allclose(episode.probabilities, logits.softmax(-1), rtol=1e-4)


def test_tuple_matches_are_the_largest_attention() -> None:
    tuples = np.array([[0, 1], [0, 2], [1, 2]])
    attention = np.random.default_rng(0).random((3, 2, 3))  # of query tuples, at two shots with three tuples each
    matches = strongest_matches(attention, tuples, count=10)
    assert [match.attention for match in matches] == sorted(attention.max(axis=(1, 2)), reverse=True)
    for match in matches:
        row, column = tuples.tolist().index(match.query_steps), tuples.tolist().index(match.support_steps)
        assert attention[row, match.shot, column] == match.attention
    assert strongest_matches(attention, tuples, count=1) == matches[:1]


def test_the_classes_with_room_are_the_true_one_and_the_likeliest() -> None:
    probabilities = np.array([[0.01, 0.3, 0.2, 0.25, 0.24], [0.01, 0.3, 0.2, 0.25, 0.24]])
    episode = episode_with({}, probabilities)
    assert episode.likeliest(0, 3) == [0, 1, 3]
    assert episode.likeliest(1, 3) == [1, 3, 4]
    assert episode.likeliest(1, 9) == [0, 1, 2, 3, 4]
    assert episode.best_shots(np.array([[1, 2, 0, 9]] * 5)) == [1] * 5  # there are three


def test_a_method_has_the_panels_of_the_names_it_explains_itself_by(tmp_path: Path) -> None:
    """An own method's too: what it takes is a name of the table."""
    probabilities, logits = np.full((2, 2), 0.5), np.zeros((2, 2))
    assert panels_of(episode_with({"logits": logits}, probabilities)) == []
    maps = {"target_spatial": np.zeros((2, 2, 4, 4)), "target_temporal": np.zeros((2, 2))}
    assert panels_of(episode_with(maps, probabilities)) == [PANELS["target_temporal"]]
    shots = {"shot_logits": np.random.default_rng(0).random((2, 2, 3)), "logits": logits}
    relation = {"target_attention": np.full((2, 2, 3), 1 / 6), "support_attention": np.full((2, 3, 2, 3), 1 / 6)}
    both = episode_with(shots | relation, probabilities)
    assert panels_of(both) == [PANELS["shot_logits"], PANELS["target_attention"]]
    draw_episode(both, 1, tmp_path / "e.svg")
    assert "by each support video alone" in (tmp_path / "e.svg").read_text()


def test_what_draws_knows_neither_methods_nor_scripts() -> None:
    """So that there is no circle between the rooms: results imports clips and utils alone, and nobody imports scripts."""
    root = Path(__file__).parent.parent
    rooms = {path.name for path in root.iterdir() if path.is_dir()} | {path.stem for path in root.glob("*.py")}

    def imported(path: Path) -> set[str]:
        nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
        names += [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]
        return {name.partition(".")[0] for name in names} & rooms

    assert {room for path in (root / "results").glob("*.py") for room in imported(path)} <= {
        "results",
        "clips",
        "utils",
    }
    importers = [*root.glob("*.py"), *(path for room in ("results", "methods", "engine", "clips", "backbones")
                                       for path in (root / room).glob("*.py"))]  # fmt: skip
    assert [path for path in importers if "scripts" in imported(path)] == []
    assert "scripts" not in imported(root / "scripts" / "explain_episode.py")


def test_a_method_that_needs_images_is_drawn_without_a_panel(
    checkpoint_of: Callable[[str], Path], script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CNN_FSHead, "works_on_features", False)
    script("--checkpoint", checkpoint_of("tsn"), "-o", tmp_path / "episode.svg")
    text = (tmp_path / "episode.svg").read_text()
    assert "Support" in text
    assert "by each support video alone" not in text


def test_mistakes_are_one_sentence(checkpoint_of: Callable[[str], Path], script: Script, tmp_path: Path) -> None:
    flags = ("--checkpoint", checkpoint_of("tsn"), "-o", tmp_path / "e.png")
    assert "no checkpoint at" in script.fails("--checkpoint", tmp_path / "no.pt", "-o", tmp_path / "e.png")
    assert "--query is 2: expected 0 to 1" in script.fails(*flags, "--query", 2)
    assert "--query is -1: expected 0 or more" in script.fails(*flags, "--query", -1)
    assert "--task is -1" in script.fails(*flags, "--task", -1)
    assert "--seed is -1: expected 0 or more" in script.fails(*flags, "--seed", -1)
    assert "--way is 0: expected 2 or more" in script.fails(*flags, "--way", 0)
    assert "--way is 1: expected 2 or more" in script.fails(*flags, "--way", 1)
    assert "--shot is 0: expected 1 or more" in script.fails(*flags, "--shot", 0)
    assert "--noisy_support is -1" in script.fails(*flags, "--noisy_support", -1)
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
