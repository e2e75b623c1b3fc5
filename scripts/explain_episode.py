"""Draws one episode and why its queries were answered as they were: for a paper, a talk, or one's own understanding.

    python scripts/explain_episode.py --checkpoint runs/otam/checkpoint_best_val.pt
    python scripts/explain_episode.py --checkpoint C --task 7 --query 2 --shot 1 -o episode.png
    python scripts/explain_episode.py --checkpoint C --dataset other_data --split val -o episode.pdf
    python scripts/explain_episode.py --checkpoint C --query 2 --gif query.gif

Support and query clips are film strips with their class's colour, then come probabilities with right and wrong marked, and
what the method compared for one query: TRX's strongest tuple matches, OTAM's alignments, the similarity matrices of the
matching methods with the cells that made the score, the shot weights and both scores of dual prototypes, TSN's cosines, where
ARN looks. --gif also writes the query as a film, in a green frame where the answer is right, in a red one where it is wrong.

Letters: K way, J shots of a class, Q queries, T frames, S feature steps, W tuple cardinality, M tuples of a video, L and M
steps (or tuples) of a query and of a support video.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
from collections.abc import Callable, Sequence
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

# Python puts the folder of a script on its path, not the project's.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from clips.transforms import ClipTransform, InputSpec
from clips.video_split import SPLITS, Split
from engine.command_line import Parser, arguments, check_output, exit_code
from methods import load_head
from methods.arn import CNN_ARN
from methods.otam import CNN_OTAM
from methods.similarity import CNN_Similarity
from model import CNN_TRX, CNN_TSN, CNN_DualPrototypes, CNN_FSHead, TemporalCrossTransformer, group_by_class
from results.answer_film import write_answer_film
from results.attention_panel import attention_height, draw_attention
from results.drawing import (
    PICTURE_SUFFIXES,
    bare,
    class_colour,
    draw_probabilities,
    draw_strip,
    film_strip,
    readable,
    save_picture,
    thinned,
    wrapped,
)
from results.style import LIGHT, SERIES, house_style
from utils import UserError, cos_sim
from video_reader import VideoDataset

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import SubFigure

WIDTH = 15.0  # inches


@dataclasses.dataclass
class Episode:
    """One episode with its answers.

    classes: names of its K classes. support[k][j], target[q]: frames uint8 (T, H, W, 3). impostors[k][j]: the class that a
    support video really shows, where it is another one. labels: the classes of the queries, (Q,). probabilities: (Q, K).
    """

    model: CNN_FSHead
    classes: list[str]
    support: list[list[np.ndarray]]
    impostors: list[list[str]]
    target: list[np.ndarray]
    labels: np.ndarray
    probabilities: np.ndarray
    features: tuple[Tensor, Tensor, Tensor] | None  # support (1, N, S, D), labels (1, N), target (1, Q, S, D)

    @property
    def colours(self) -> list[str]:
        return [class_colour(k) for k in range(len(self.classes))]

    @cached_property
    def explanation(self) -> dict[str, Tensor]:
        """What the method's `explain` says, without the axis of episodes."""
        explain = getattr(self.model, "explain", None)
        if explain is None or self.features is None:
            return {}
        with torch.inference_mode():
            return {name: value[0] for name, value in explain(*self.features).items()}


def answer_episode(model: CNN_FSHead, spec: InputSpec, dataset: VideoDataset, index: int) -> Episode:
    """Reads task `index` and answers it."""
    task = dataset[index]
    device = next(model.parameters()).device
    classes = [dataset.split.classes[label] for label in task["batch_class_list"].tolist()]
    frames = {part: task[f"{part}_set"].unflatten(0, (-1, dataset.seq_len)) for part in ("support", "target")}
    pictures = {part: list(clips.permute(0, 1, 3, 4, 2).numpy()) for part, clips in frames.items()}
    support: list[list[np.ndarray]] = [[] for _ in classes]
    impostors: list[list[str]] = [[] for _ in classes]
    labels = task["support_labels"].tolist()
    for k, real, clip in zip(labels, task["real_support_labels"].tolist(), pictures["support"], strict=True):
        name = dataset.split.classes[real]
        support[k].append(clip)
        impostors[k].append("" if name == classes[k] else name)

    support_labels = task["support_labels"].to(device)
    features = None
    with torch.inference_mode():
        if model.works_on_features:
            encoded = {
                part: torch.cat([model.encode(spec.normalise(clip[None].to(device))) for clip in clips])
                for part, clips in frames.items()
            }
            features = (encoded["support"][None].float(), support_labels[None], encoded["target"][None].float())
            logits = model.classify_episodes(*features)["logits"][0]
        else:
            images = [spec.normalise(task[f"{part}_set"].to(device)) for part in frames]
            logits = model(images[0], support_labels, images[1])["logits"]
        probabilities = logits.float().softmax(dim=-1).cpu().numpy()
    return Episode(
        model, classes, support, impostors, pictures["target"], task["target_labels"].numpy(), probabilities, features
    )


# ---------------------------------------------------------------------------------------------------------------------
# The clips and the answers, of any method


def draw_episode(episode: Episode, query: int, path: Path) -> None:
    """The picture: support, queries with their probabilities, and what the method compared for one of them."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    way, shots = len(episode.classes), max(map(len, episode.support))
    strip_frames = max(2, min(8, 20 // shots))
    support_row = min(1.0, 0.86 * WIDTH / (shots * strip_frames)) + 0.2
    query_row = max(1.0, 0.2 * way)
    method = next((panel for head, panel in METHOD_PANELS.items() if isinstance(episode.model, head)), None)
    heights = [0.45 + way * support_row, 0.55 + len(episode.target) * (query_row + 0.1)]
    if method is not None and episode.features is not None:
        heights.append(method.height(episode))
    with house_style():
        margins = ConstrainedLayoutEngine(rect=(0.008, 0.008, 0.984, 0.984))
        figure = Figure((WIDTH, sum(heights)), layout=margins)
        panels = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
        draw_support(panels[0], episode, strip_frames)
        draw_queries(panels[1], episode, query if len(heights) == 3 else None)
        if len(heights) == 3 and method is not None:
            method.draw(panels[2], episode, query)
        save_picture(figure, path)


def heading(panel: SubFigure, text: str) -> None:
    panel.suptitle(text, x=0.008, ha="left", fontsize=12, fontweight="bold")


def draw_support(panel: SubFigure, episode: Episode, strip_frames: int) -> None:
    """A row for each class, with the film strips of its shots."""
    heading(panel, "Support")
    shots = max(map(len, episode.support))
    grid = panel.subplots(len(episode.classes), 1 + shots, squeeze=False, width_ratios=[0.16 * shots, *[1] * shots])
    weights = episode.explanation.get("shot_weights")
    for k, (name_axes, *row) in enumerate(grid):
        bare(name_axes)
        name = wrapped(readable(episode.classes[k]), 20, 3)
        name_axes.text(1, 0.5, name, ha="right", va="center", color=episode.colours[k], fontweight="bold")
        for j, axes in enumerate(row):
            bare(axes)
            if j == len(episode.support[k]):
                break
            draw_strip(axes, thinned(episode.support[k][j], strip_frames), episode.colours[k])
            notes = [f"weight {weights[k, j]:.2f}"] if weights is not None else []
            if stranger := episode.impostors[k][j]:
                notes.append(f"shows {readable(stranger)}")
            colour = LIGHT["wrong"] if stranger else LIGHT["quiet"]
            axes.set_title(", ".join(notes), fontsize=8, fontweight="normal", color=colour, pad=2)


def draw_queries(panel: SubFigure, episode: Episode, explained: int | None) -> None:
    """A row for each query: its film strip, and the probabilities of the classes."""
    heading(panel, "Queries")
    grid = panel.subplots(len(episode.target), 2, squeeze=False, width_ratios=[8, 4.6])
    for q, (strip, bars) in enumerate(grid):
        true = int(episode.labels[q])
        draw_strip(strip, episode.target[q], episode.colours[true])
        arrow = " ▸" if q == explained else ""
        strip.set_ylabel(f"{q}{arrow}", rotation=0, ha="right", va="center", fontweight="bold", labelpad=14)
        draw_probabilities(bars, episode.classes, episode.probabilities[q], colours=episode.colours, true=true, lines=1)


# ---------------------------------------------------------------------------------------------------------------------
# What a method compared


def draw_matrices(panel: SubFigure, episode: Episode, query: int) -> None:
    """For each class, the similarities of the query (down) and the shot (across) that it found the most like it."""
    from matplotlib.colors import LinearSegmentedColormap

    model = episode.model
    assert isinstance(model, CNN_Similarity)
    similarities = episode.explanation["similarities"][query].cpu()  # (K, J, L, M)
    used = used_cells(episode, query)
    best = best_shots(episode, query, similarities, used)
    steps = similarities.shape[-2:]
    frames_fit = steps == (model.num_steps, model.num_steps)  # else they are tuples
    what = "steps" if frames_fit else "tuples of steps"
    lines = "; solid: alignment of support steps, dotted: of query steps" if isinstance(model, CNN_OTAM) else ""
    heading(panel, f"Query {query} (down) and the best shot of each class (across): cosines of {what}{lines}")
    colours = LinearSegmentedColormap.from_list("similarity", [LIGHT["panel"], SERIES[0]])
    shown = [similarities[k, j].numpy() for k, j in enumerate(best)]
    low, high = min(matrix.min() for matrix in shown), max(matrix.max() for matrix in shown)
    way, rows = len(shown), steps[0] if frames_fit else 16
    grid = panel.subplots(2, way + 1, width_ratios=[1, *[rows] * way], height_ratios=[1, rows], squeeze=False)
    for axes in grid.flat:
        bare(axes)
    if frames_fit:
        column = thinned(episode.target[query], rows)
        grid[1, 0].imshow(np.concatenate(column), aspect="auto", extent=(0, 1, rows - 0.5, -0.5))
    for k, (j, above, axes) in enumerate(zip(best, grid[0, 1:], grid[1, 1:], strict=True)):
        percent = 100 * episode.probabilities[query, k]
        shot = "mean of shots" if len(similarities[k]) < len(episode.support[k]) else f"shot {j + 1}"
        title = f"{wrapped(readable(episode.classes[k]), 30)}\n{percent:.0f} %, {shot}"
        above.set_title(title, fontsize=9, color=episode.colours[k])
        if frames_fit and shot.startswith("shot"):
            strip = film_strip(thinned(episode.support[k][j], rows), gap=0)
            above.imshow(strip, aspect="auto", extent=(-0.5, rows - 0.5, 1, 0))
        axes.imshow(shown[k], cmap=colours, vmin=low, vmax=high, aspect="auto", interpolation="nearest")
        if isinstance(model, CNN_OTAM):
            for name, style in (("path", "-"), ("reverse_path", ":")):
                cells = episode.explanation[name][query, k, j].cpu().numpy() > 0.25
                rows_down, columns = np.argwhere(cells)[np.lexsort(np.argwhere(cells).T)].T
                axes.plot(columns, rows_down, style, color=LIGHT["ink"], linewidth=2, marker="o", markersize=4)
        else:
            mark_cells(axes, used[k, j].numpy())
    image = grid[1, -1].images[0]
    panel.colorbar(image, ax=list(grid[:, -1]), fraction=0.08, label="cosine").outline.set_visible(False)


def used_cells(episode: Episode, query: int) -> Tensor:
    """How much each cell of the query's similarity matrices counts for its class: the gradient of the score, (K, J, L, M)."""
    assert isinstance(episode.model, CNN_Similarity)
    similarities = episode.explanation["similarities"][None, query : query + 1].clone().requires_grad_()
    scores = episode.model.class_similarity(similarities, episode.explanation["present"][None])
    (gradient,) = torch.autograd.grad(scores.sum(), similarities)
    return gradient[0, 0].cpu()


def best_shots(episode: Episode, query: int, similarities: Tensor, used: Tensor) -> list[int]:
    """For each class, the shot that adds most to its score."""
    if isinstance(episode.model, CNN_OTAM):
        parts = (episode.explanation["path"][query].cpu() * (similarities - 1)).sum(dim=(-2, -1))
    else:
        parts = (used * similarities).sum(dim=(-2, -1))
    return parts.masked_fill(~episode.explanation["present"].cpu(), -torch.inf).argmax(dim=-1).tolist()


def mark_cells(axes: Axes, used: np.ndarray) -> None:
    """Dots on the cells that count, larger where they count more; none where all count the same."""
    strength = np.abs(used) / max(np.abs(used).max(), 1e-12)
    if strength.min() > 0.99:
        return
    rows, columns = np.nonzero(strength > 0.05)
    size = max(6, 40 * (8 / len(used)) ** 2)
    axes.scatter(columns, rows, size * strength[rows, columns], color=LIGHT["ink"], linewidths=0)


class TupleMatch(NamedTuple):
    """A query tuple that looks at a support tuple, both as step numbers from 0, and with what share of its attention."""

    query_steps: tuple[int, ...]
    shot: int
    support_steps: tuple[int, ...]
    attention: float


def strongest_matches(
    episode: Episode, transformer: TemporalCrossTransformer, query: int, k: int, count: int
) -> list[TupleMatch]:
    """The query tuples that look hardest at a single support tuple of class k, and at which one."""
    assert episode.features is not None
    support, labels, target = (part[0] for part in episode.features)
    with torch.inference_mode():
        keys, query_keys = (
            transformer.norm_k(transformer.k_linear(transformer.pe(steps)))
            for steps in (support[labels == k], target[query])
        )
        scores = torch.einsum("te,jue->tju", query_keys / math.sqrt(query_keys.shape[-1]), keys)
        shares, places = scores.flatten(1).softmax(dim=-1).cpu().max(dim=-1)  # equation 4 of the TRX paper
    tuples = list(combinations(range(episode.model.num_steps), transformer.k_linear.cardinality))
    matches = []
    for of_query in shares.argsort(descending=True, stable=True)[:count].tolist():
        shot, of_support = divmod(int(places[of_query]), len(tuples))
        matches.append(TupleMatch(tuples[of_query], shot, tuples[of_support], float(shares[of_query])))
    return matches


def draw_tuple_matches(panel: SubFigure, episode: Episode, query: int, rows: int = 3) -> None:
    """Of each cardinality, the strongest matches in two classes: the answer, and the true one (or where that is the
    answer, the second)."""
    model = episode.model
    assert isinstance(model, CNN_TRX)
    heading(
        panel, f"Query {query}: its strongest tuple matches, query tuple left, support tuple right, share of attention"
    )
    answer, second = np.argsort(-episode.probabilities[query], kind="stable")[:2].tolist()
    true = int(episode.labels[query])
    columns = [
        (transformer, k) for transformer in model.transformers for k in (answer, second if answer == true else true)
    ]
    grid = panel.subplots(rows, len(columns), squeeze=False)
    for axes in grid.flat:
        bare(axes)
    target = thinned(episode.target[query], model.num_steps)
    for (transformer, k), column in zip(columns, grid.T, strict=True):
        assert isinstance(transformer, TemporalCrossTransformer)
        role = "answer" if k == answer else "true" if k == true else "second"
        title = f"{wrapped(readable(episode.classes[k]), 34, 1)}, {role}; tuples of {transformer.k_linear.cardinality}"
        column[0].set_title(title, fontsize=9, color=episode.colours[k])
        # fewer matches than rows where a clip has few tuples
        for axes, match in zip(column, strongest_matches(episode, transformer, query, k, rows), strict=False):
            support = thinned(episode.support[k][match.shot], model.num_steps)
            draw_match(axes, target[list(match.query_steps)], support[list(match.support_steps)])
            left, right = (
                ", ".join(str(step + 1) for step in steps) for steps in (match.query_steps, match.support_steps)
            )
            label = f"steps {left} → shot {match.shot + 1}, steps {right}: {100 * match.attention:.1f} %"
            axes.set_xlabel(label, fontsize=8)


def draw_match(axes: Axes, left: np.ndarray, right: np.ndarray) -> None:
    """Two tuples of frames beside each other, with an arrow between them."""
    strips = [film_strip(frames) for frames in (left, right)]
    height, width = strips[0].shape[:2]
    space = np.full((height, height // 3, 3), 255, np.uint8)
    axes.imshow(np.concatenate([strips[0], space, strips[1]], axis=1), interpolation="antialiased")
    axes.text(width + height / 6, height / 2, "→", ha="center", va="center", fontsize=14, color=LIGHT["quiet"])


def draw_dual_scores(panel: SubFigure, episode: Episode, query: int) -> None:
    """The probabilities by either prototype and by both, and how much each shot counts in its class."""
    heading(panel, f"Query {query} by each prototype, and the shots' weights")
    scores = {"class_logits": "Class-specific", "query_logits": "Query-specific", "logits": "Both"}
    *bars, weights_axes = panel.subplots(1, 4, squeeze=False)[0]
    for axes, (name, title) in zip(bars, scores.items(), strict=True):
        probabilities = episode.explanation[name][query].float().softmax(dim=-1).cpu().detach().numpy()
        true = int(episode.labels[query])
        draw_probabilities(axes, episode.classes, probabilities, colours=episode.colours, true=true)
        axes.set_title(title)
    weights = episode.explanation["shot_weights"].cpu().detach().numpy()
    draw_shots(weights_axes, episode, weights, "weight of a shot in its class")


def draw_cosines(panel: SubFigure, episode: Episode, query: int) -> None:
    """The query's cosine to every support video, by class."""
    assert episode.features is not None
    heading(panel, f"Query {query}: cosine of frame-averaged features to every support video, and its mean in a class")
    support, _ = group_by_class(episode.features[0].mean(dim=2), episode.features[1])
    cosines = cos_sim(episode.features[2][0, query].mean(dim=0, keepdim=True), support[0].flatten(0, 1))
    axes = panel.subplots()
    draw_shots(axes, episode, cosines.reshape(support.shape[1:3]).cpu().numpy(), "cosine")
    for k, clips in enumerate(episode.support):
        mean = float(cosines.reshape(support.shape[1:3])[k, : len(clips)].mean())
        axes.plot([k - 0.42, k + 0.42], [mean, mean], color=LIGHT["ink"], linewidth=1.6)


def draw_shots(axes: Axes, episode: Episode, values: np.ndarray, label: str) -> None:
    """A number (K, J) of each support video as bars, in groups of classes."""
    width = 0.84 / values.shape[1]
    for k, clips in enumerate(episode.support):
        places = k - 0.42 + width * (np.arange(len(clips)) + 0.5)
        bars = axes.bar(places, values[k, : len(clips)], 0.86 * width, color=episode.colours[k])
        for shown, stranger in zip(bars, episode.impostors[k], strict=True):
            if stranger:
                shown.set(hatch="//", edgecolor=LIGHT["paper"])
    names = [wrapped(readable(name), 80 // len(episode.classes), 3) for name in episode.classes]
    axes.set_xticks(range(len(names)), names, fontsize=8)
    axes.set(ylabel=label)
    axes.grid(axis="y")


@dataclasses.dataclass(frozen=True)
class MethodPanel:
    """How to draw a method's comparison, and the inches that takes."""

    draw: Callable[[SubFigure, Episode, int], None]
    height: Callable[[Episode], float]


METHOD_PANELS: dict[type[CNN_FSHead], MethodPanel] = {
    CNN_Similarity: MethodPanel(draw_matrices, lambda episode: 1.2 + 0.9 * WIDTH / (1 + len(episode.classes))),
    CNN_TRX: MethodPanel(draw_tuple_matches, lambda episode: 4.0),
    CNN_DualPrototypes: MethodPanel(draw_dual_scores, lambda episode: 0.9 + 0.38 * len(episode.classes)),
    CNN_TSN: MethodPanel(draw_cosines, lambda episode: 3.0),
    CNN_ARN: MethodPanel(draw_attention, attention_height),
}


# ---------------------------------------------------------------------------------------------------------------------
# The program


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument("--checkpoint", required=True, type=Path, help="a checkpoint that run.py has written")
    parser.add_argument("--dataset", help="another data set than the checkpoint's")
    parser.add_argument("--split", choices=SPLITS, default="test", help="of the data set")
    parser.add_argument("--task", type=int, default=0, help="number of the episode")
    parser.add_argument("--query", type=int, default=0, help="number of the query that is explained")
    parser.add_argument("--seed", type=int, help="decides the episode; unset: as the checkpoint's run")
    parser.add_argument("--way", type=int, help="classes; unset: as the checkpoint's run is tested")
    parser.add_argument("--shot", type=int, help="support videos per class; unset: as the checkpoint's run is tested")
    parser.add_argument("--noisy_support", type=int, default=0, help="support videos of each class that are of others")
    parser.add_argument("-o", "--out", metavar="FILE", type=Path, default=Path("episode.png"),
                        help="the picture: .png, .svg or .pdf")  # fmt: skip
    parser.add_argument("--gif", metavar="FILE", type=Path, help="also the query as a film, with its answer")
    return parser.parse_args(argv)


def explain(args: argparse.Namespace) -> None:
    check_output(args.out, "--out", PICTURE_SUFFIXES)
    if args.gif:
        check_output(args.gif, "--gif", (".gif",))
    if args.task < 0:
        raise UserError(f"--task is {args.task}: expected 0 or more")
    model, settings, spec = load_head(args.checkpoint)
    dataset = VideoDataset(
        Split.open(args.dataset or settings.dataset, args.split, on_bad_video=settings.on_bad_video),
        way=args.way or (settings.way_test or [settings.way])[0],
        shot=args.shot or (settings.shot_test or [settings.shot])[0],
        queries=1,
        seq_len=settings.seq_len,
        transform=ClipTransform(spec.size),
        seed=settings.seed if args.seed is None else args.seed,
        sampling=settings.sampling,
        frames_per_step=model.backbone.frames_per_step,
        noisy=args.noisy_support,
        on_bad_video=settings.on_bad_video,
    )
    if not 0 <= args.query < dataset.way:
        raise UserError(f"--query is {args.query}: expected 0 to {dataset.way - 1}, one query per class")
    episode = answer_episode(model, spec, dataset, args.task)
    draw_episode(episode, args.query, args.out)
    if args.gif:
        shares = episode.probabilities[args.query]
        names = (episode.classes[int(episode.labels[args.query])], episode.classes[int(shares.argmax())])
        write_answer_film(
            args.gif, episode.target[args.query], true=names[0], answer=names[1], probability=float(shares.max())
        )
    right = int((episode.probabilities.argmax(axis=1) == episode.labels).sum())
    print(f"{settings.method} answers {right} of {len(episode.labels)} queries of task {args.task}; wrote {args.out}")


def main(argv: Sequence[str] | None = None) -> int:
    return exit_code(lambda: explain(parse_args(arguments(argv))))


if __name__ == "__main__":
    sys.exit(main())
