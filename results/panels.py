"""What a method compared in one episode, a panel for each kind of comparison.

A method's `explain` says what it compared as tensors under names. PANELS has, for the names that can be drawn, a function
that draws them, so that a new method gets its panel by an `explain` and one entry here, or by one of the names below.

  "similarities" (Q, K, J, L, M)       matrices of a query's and a support video's steps; "cells" (Q, K, J, L, M): how much
                                       each counts; "shot_similarities" (Q, K, J); where rows are tuples "tuples" (M, W);
                                       where steps are aligned "path" and "reverse_path" (Q, K, J, L, M), 0 to 1
  "cardinalities" (C,)                 with "tuples_W" (M, W) and "attention_W" (Q, K, M, J, M) for each W of them
  "query_logits" (Q, K)                beside "class_logits" and "logits" (Q, K), with "shot_weights" (K, J)
  "shot_logits" (Q, K, J)              by each support video alone, beside "logits" (Q, K)
  "text_logits" (Q, K)                 by the names of classes alone, with "text_similarities" (Q, S, K) of steps and names
  "target_attention" (Q, K, J)         of queries at support videos, with "support_attention" (K, J, K, J) of those
  "relation" (Q, I + 1, I + 1)         of the items of the support, and last the query, at each other; items are classes or
                                       support videos, with "relation_classes" (I,)
  "target_tokens" (Q, R, S)            of pattern tokens at steps, with "support_tokens" (K, J, R, S)
  "target_saliency" (Q, S, H)          how steps are shared out to slots, with "support_saliency" (K, J, S, H)
  "target_spatial" (Q, S, h, w)        attention, with "support_spatial" (K, J, S, h, w)
  "target_temporal" (Q, S)             attention, with "support_temporal" (K, J, S)
  "target_motion" (Q, S - 1, h, w)     how large it is between steps, with "support_motion" (K, J, S - 1, h, w)

Letters: K way, J shots of a class, I items of the support, Q queries, T frames, S feature steps, H slots, R tokens, h w cells
of a feature map, W tuple cardinality, M tuples of a video, L and M steps (or tuples) of a query and of a support video.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from results.drawing import (
    bare,
    class_colour,
    draw_probabilities,
    draw_strip,
    draw_veil,
    film_strip,
    heading,
    readable,
    thinned,
    wrapped,
)
from results.style import LIGHT, SERIES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import SubFigure
    from matplotlib.image import AxesImage

# Matplotlib is imported where a figure is made: it takes a second that --help need not pay.

WIDTH = 15.0  # inches
MOST_CLASSES = 6  # that have room beside each other
ROW_FRAMES = 8  # of a clip that has a row to itself


@dataclasses.dataclass
class Episode:
    """One episode with its answers.

    title: whose and which it is. classes: names of its K classes. support[k][j], target[q]: frames uint8 (T, H, W, 3).
    impostors[k][j]: the class that a support video really shows, where it is another one. labels: the classes of the
    queries, (Q,). probabilities: (Q, K). explanation: what the method's `explain` says, without the axis of episodes.
    """

    title: str
    classes: list[str]
    support: list[list[np.ndarray]]
    impostors: list[list[str]]
    target: list[np.ndarray]
    labels: np.ndarray
    probabilities: np.ndarray
    explanation: dict[str, np.ndarray]

    @property
    def colours(self) -> list[str]:
        return [class_colour(k) for k in range(len(self.classes))]

    @property
    def shots(self) -> int:
        """Of the class that has most."""
        return max(map(len, self.support))

    def answer(self, query: int) -> int:
        return int(self.probabilities[query].argmax())

    def likeliest(self, query: int, most: int) -> list[int]:
        """In their own order, the true class of a query and the likeliest others, so many in all."""
        true = int(self.labels[query])
        others = [k for k in np.argsort(-self.probabilities[query], kind="stable").tolist() if k != true]
        return sorted([true, *others][:most])

    def best_shots(self, values: np.ndarray) -> list[int]:
        """For each class, the shot with the largest of values (K, J)."""
        return [int(row[: len(clips)].argmax()) for row, clips in zip(values, self.support, strict=True)]


@dataclasses.dataclass(frozen=True)
class Panel:
    """How to draw a kind of comparison for one query, and the inches that takes."""

    draw: Callable[[SubFigure, Episode, int], None]
    height: Callable[[Episode], float]


def panels_of(episode: Episode) -> list[Panel]:
    """Those that draw what the method explains, in the order of the table."""
    return list(dict.fromkeys(panel for name, panel in PANELS.items() if name in episode.explanation))


# ---------------------------------------------------------------------------------------------------------------------
# Matrices of steps


def draw_matrices(panel: SubFigure, episode: Episode, query: int) -> None:
    """For each class, the similarities of the query (down) and the shot (across) that it found the most like it."""
    shown = {
        name: values[query] for name, values in episode.explanation.items() if name != "tuples" and values.ndim > 2
    }
    matrices = shown["similarities"]  # (K, J, L, M)
    of_steps = episode.explanation.get("tuples", np.zeros((1, 1))).shape[-1] == 1
    one_prototype = matrices.shape[1] < episode.shots
    heading(panel, matrices_heading(query, of_steps, lines="path" in shown, dots=not is_even(shown["cells"][0, 0])))
    chosen = [(k, episode.best_shots(shown["shot_similarities"])[k]) for k in episode.likeliest(query, MOST_CLASSES)]
    low, high = (extreme([matrices[place] for place in chosen]) for extreme in (np.min, np.max))

    rows = matrices.shape[-2] if of_steps else 16
    has_strips = of_steps and not one_prototype
    height_ratios = [1 if has_strips else 0.01, rows]
    grid = panel.subplots(
        2, len(chosen) + 1, width_ratios=[1, *[rows] * len(chosen)], height_ratios=height_ratios, squeeze=False
    )
    for axes in grid.flat:
        bare(axes)
    if of_steps:
        column = thinned(episode.target[query], rows)
        grid[1, 0].imshow(np.concatenate(column), aspect="auto", extent=(0, 1, rows - 0.5, -0.5))
    for (k, j), above, axes in zip(chosen, grid[0, 1:], grid[1, 1:], strict=True):
        shot = "mean of shots" if one_prototype else f"shot {j + 1}"
        title = (
            f"{in_columns(episode.classes[k], len(chosen) + 1)}\n{100 * episode.probabilities[query, k]:.0f} %, {shot}"
        )
        above.set_title(title, fontsize=9, color=episode.colours[k])
        if has_strips:
            strip = film_strip(thinned(episode.support[k][j], matrices.shape[-1]), gap=0)
            above.imshow(strip, aspect="auto", extent=(-0.5, matrices.shape[-1] - 0.5, 1, 0))
        image = axes.imshow(matrices[k, j], cmap=blues(), vmin=low, vmax=high, aspect="auto", interpolation="nearest")
        if "path" in shown:
            draw_path(axes, shown["path"][k, j], "-")
            draw_path(axes, shown["reverse_path"][k, j], ":")
        else:
            mark_cells(axes, shown["cells"][k, j])
    panel.colorbar(image, ax=list(grid[:, -1]), fraction=0.08, label="cosine").ax.spines["outline"].set_visible(False)


def matrices_heading(query: int, of_steps: bool, lines: bool, dots: bool) -> str:
    what = "steps" if of_steps else "tuples of steps"
    marks = "all cells count the same"
    if lines:
        marks = "solid: support steps aligned, dotted: query steps"
    elif dots:
        marks = "dots: cells that count"
    return f"Query {query} (down) and the best shot of each class (across): cosines of {what}; {marks}"


def draw_path(axes: Axes, path: np.ndarray, style: str) -> None:
    """An alignment (L, M) as a line through its cells, from left to right."""
    cells = np.argwhere(path > 0.25)  # ties share a cell's 1
    rows, columns = cells[np.lexsort(cells.T)].T
    axes.plot(columns, rows, style, color=LIGHT["ink"], linewidth=2, marker="o", markersize=4)


def mark_cells(axes: Axes, used: np.ndarray) -> None:
    """Dots on the cells (L, M) that count, larger where they count more; none where all count the same."""
    if is_even(used):
        return
    strength = np.abs(used) / max(np.abs(used).max(), 1e-12)
    rows, columns = np.nonzero(strength > 0.05)
    size = max(6, 40 * (8 / len(used)) ** 2)
    axes.scatter(columns, rows, size * strength[rows, columns], color=LIGHT["ink"], linewidths=0)


def is_even(used: np.ndarray) -> bool:
    """Whether all cells count the same."""
    return bool(np.abs(used).min() >= 0.99 * np.abs(used).max())


# ---------------------------------------------------------------------------------------------------------------------
# Tuples


class TupleMatch(NamedTuple):
    """A query tuple that looks at a support tuple, both as step numbers from 0, and with what share of its attention."""

    query_steps: list[int]
    shot: int
    support_steps: list[int]
    attention: float


def strongest_matches(attention: np.ndarray, tuples: np.ndarray, count: int) -> list[TupleMatch]:
    """The query tuples that look hardest at one support tuple of a class, and at which one.

    attention (M, J, M): of query tuples at the tuples of the class's shots; tuples (M, W): their steps.
    """
    by_query = attention.reshape(len(attention), -1)
    shares, places = by_query.max(axis=1), by_query.argmax(axis=1)
    matches = []
    for of_query in np.argsort(-shares, kind="stable")[:count]:
        shot, of_support = divmod(int(places[of_query]), len(tuples))
        steps = tuples[of_query].tolist(), tuples[of_support].tolist()
        matches.append(TupleMatch(steps[0], shot, steps[1], float(shares[of_query])))
    return matches


def draw_tuple_matches(panel: SubFigure, episode: Episode, query: int, rows: int = 3) -> None:
    """Of each cardinality, the strongest matches in two classes: the answer, and the true one (or where that is the
    answer, the second)."""
    heading(
        panel, f"Query {query}: its strongest tuple matches, query tuple left, support tuple right, share of attention"
    )
    answer, second = np.argsort(-episode.probabilities[query], kind="stable")[:2].tolist()
    true = int(episode.labels[query])
    cardinalities = episode.explanation["cardinalities"].tolist()
    columns = [(int(w), k) for w in cardinalities for k in (answer, second if answer == true else true)]
    grid = panel.subplots(rows, len(columns), squeeze=False)
    for axes in grid.flat:
        bare(axes)
    for (cardinality, k), column in zip(columns, grid.T, strict=True):
        attention = episode.explanation[f"attention_{cardinality}"][query, k]
        tuples = episode.explanation[f"tuples_{cardinality}"].astype(int)
        steps = int(tuples.max()) + 1
        role = "answer" if k == answer else "true" if k == true else "second"
        title = f"{in_columns(episode.classes[k], len(columns))}\n{role}, tuples of {cardinality}"
        column[0].set_title(title, fontsize=9, color=episode.colours[k])
        # fewer matches than rows where a clip has few tuples
        for axes, match in zip(column, strongest_matches(attention, tuples, rows), strict=False):
            clips = episode.target[query], episode.support[k][match.shot]
            draw_match(axes, *(thinned(clip, steps)[chosen] for clip, chosen in zip(clips, match[::2], strict=True)))
            left, right = (", ".join(str(step + 1) for step in chosen) for chosen in match[::2])
            label = f"steps {left} → shot {match.shot + 1}, steps {right}: {100 * match.attention:.1f} %"
            axes.set_xlabel(label, fontsize=8)


def draw_match(axes: Axes, left: np.ndarray, right: np.ndarray) -> None:
    """Two tuples of frames beside each other, with an arrow between them."""
    strips = [film_strip(frames) for frames in (left, right)]
    height, width = strips[0].shape[:2]
    space = np.full((height, height // 3, 3), 255, np.uint8)
    axes.imshow(np.concatenate([strips[0], space, strips[1]], axis=1), interpolation="antialiased")
    axes.set_anchor("NW")
    axes.text(width + height / 6, height / 2, "→", ha="center", va="center", fontsize=14, color=LIGHT["quiet"])


# ---------------------------------------------------------------------------------------------------------------------
# Numbers of support videos


def draw_dual_scores(panel: SubFigure, episode: Episode, query: int) -> None:
    """The probabilities by either prototype and by both, and how much each shot counts in its class."""
    heading(panel, f"Query {query} by each prototype, and the shots' weights")
    scores = {"class_logits": "Class-specific", "query_logits": "Query-specific", "logits": "Both"}
    *bars, weights_axes = panel.subplots(1, 4, squeeze=False)[0]
    true = int(episode.labels[query])
    for axes, (name, title) in zip(bars, scores.items(), strict=True):
        probabilities = softmax(episode.explanation[name][query])
        draw_probabilities(axes, episode.classes, probabilities, colours=episode.colours, true=true)
        axes.set_title(title)
    draw_shares(weights_axes, episode, episode.explanation["shot_weights"])
    weights_axes.set_title("Weight of a shot in its class")
    for axes in (*bars[1:], weights_axes):
        axes.set_yticks([])  # the rows are those of the first


def draw_shot_logits(panel: SubFigure, episode: Episode, query: int) -> None:
    """The query's logit by every support video alone, and by its class."""
    heading(panel, f"Query {query}: its logits by each support video alone (dots) and by the class (lines)")
    axes = panel.subplots()
    logits = episode.explanation["logits"][query]
    for k, values in enumerate(episode.explanation["shot_logits"][query]):
        colour = episode.colours[k]
        for place, value, impostor in zip(shot_rows(episode, k), values, episode.impostors[k], strict=False):
            axes.plot(value, place, "o", color=colour, markersize=5, markerfacecolor="none" if impostor else colour)
        axes.plot([logits[k]] * 2, [k - 0.4, k + 0.4], color=colour, linewidth=2)
    axes.set_xlabel("logit; a hollow dot is a support video of another class" if any_impostor(episode) else "logit")
    axes.grid(axis="x")
    axes.margins(x=0.02)
    name_rows(axes, episode, query)


def draw_text_scores(panel: SubFigure, episode: Episode, query: int) -> None:
    """The probabilities by the names of classes and, where videos are compared too, by these, and how like each name every
    step of the query is."""
    explanation, colours, true = episode.explanation, episode.colours, int(episode.labels[query])
    heading(panel, f"Query {query} by the names of classes, and which name each of its steps is like")
    scores = {"By name alone": explanation["text_logits"][query]}
    if "shot_similarities" in explanation:
        scores["By video alone"] = explanation["shot_similarities"][query, :, 0]
    left, right = panel.subfigures(1, 2, squeeze=False, width_ratios=[3 * len(scores), 5])[0]
    bars = left.subplots(1, len(scores), squeeze=False)[0]
    for axes, (title, logits) in zip(bars, scores.items(), strict=True):
        draw_probabilities(axes, episode.classes, softmax(logits), colours=colours, true=true)
        axes.set_title(title)
    for axes in bars[1:]:
        axes.set_yticks([])  # the rows are those of the first

    similarities = explanation["text_similarities"][query]  # (S, K)
    steps = len(similarities)
    above, axes = right.subplots(2, 1, sharex=True, height_ratios=[1, 3])
    bare(above)
    strip = film_strip(thinned(episode.target[query], steps), gap=0)
    above.imshow(strip, aspect="auto", extent=(-0.5, steps - 0.5, 1, 0))
    for k, colour in enumerate(colours):
        axes.plot(range(steps), similarities[:, k], "o-", color=colour, linewidth=3 if k == true else 1.5, markersize=4)
    axes.set_ylabel("cosine to a name")
    axes.set_xticks(range(steps), [str(step + 1) for step in range(steps)])
    axes.set_xlabel("step; the thick line is the query's own class")
    axes.grid(axis="y")


def draw_video_attention(panel: SubFigure, episode: Episode, query: int) -> None:
    """How much the query looks at every support video, and how much those look at each other."""
    heading(panel, f"Attention over all support videos: of query {query}, and of the support videos themselves")
    bars, axes = panel.subplots(1, 2, squeeze=False, width_ratios=[1.25, 1])[0]
    draw_shares(bars, episode, episode.explanation["target_attention"][query])
    bars.set_title(f"Share of query {query}'s attention")
    name_rows(bars, episode, query)

    shots = [(k, j) for k, clips in enumerate(episode.support) for j in range(len(clips))]
    ks, js = np.array(shots).T
    attention = episode.explanation["support_attention"][ks, js][:, ks, js]  # of support videos (down) at them (across)
    image = axes.imshow(attention, cmap=blues(), vmin=0, aspect="auto", interpolation="nearest")
    bare(axes)
    for k, colour in enumerate(np.array(episode.colours)[ks]):
        axes.barh(k, 0.025 * len(shots), 1, -0.04 * len(shots) - 0.5, color=colour)
        axes.bar(k, 0.025 * len(shots), 1, -0.04 * len(shots) - 0.5, color=colour)
    axes.set(xlim=(-0.05 * len(shots) - 0.5, len(shots) - 0.5), ylim=(len(shots) - 0.5, -0.05 * len(shots) - 0.5))
    axes.set_title("Of support videos (down) at support videos (across)")
    draw_scale(panel, image, [axes], "share of attention")


MOST_WRITTEN = 12  # rows of a matrix whose cells have room for their numbers


def draw_relation(panel: SubFigure, episode: Episode, query: int) -> None:
    """How much each item of the support and the query (down) look at each (across), beside a frame of each."""
    relation, classes = episode.explanation["relation"][query], episode.explanation["relation_classes"].astype(int)
    order = np.argsort(classes, kind="stable")
    with_query = [*order, len(order)]
    relation, items = relation[with_query][:, with_query], classes[order].tolist()
    are_means = len(items) < sum(map(len, episode.support))
    kind = "classes (means of their shots)" if are_means else "support videos"
    heading(
        panel, f"Relation of clips: how much {kind} and query {query} (down) look at each other (across), in percent"
    )
    count = len(items) + 1
    shots = [0 if are_means else items[:place].count(k) for place, k in enumerate(items)]
    clips = [episode.support[k][j] for k, j in zip(items, shots, strict=True)] + [episode.target[query]]
    colours = [*(episode.colours[k] for k in items), LIGHT["ink"]]
    left, right = panel.subfigures(1, 2, width_ratios=[1, 1.25], squeeze=False)[0]

    grid = left.subplots(
        2, 2, width_ratios=[1, count], height_ratios=[1, count], gridspec_kw={"wspace": 0, "hspace": 0}
    )
    for axes in grid.flat:
        bare(axes)
    thumbnails = np.stack([clip[len(clip) // 2] for clip in clips])
    grid[0, 1].imshow(np.concatenate(thumbnails, axis=1), aspect="auto", extent=(0, count, 1, 0))
    grid[1, 0].imshow(np.concatenate(thumbnails, axis=0), aspect="auto", extent=(0, 1, count, 0))
    axes = grid[1, 1]
    image = axes.imshow(
        relation, cmap=blues(), vmin=0, aspect="auto", interpolation="nearest", extent=(0, count, count, 0)
    )
    for place, colour in enumerate(colours):
        grid[0, 1].barh(1, 1, 0.12, place, color=colour)
        grid[1, 0].bar(1, 1, 0.12, place, color=colour)
    if count <= MOST_WRITTEN:
        for (row, column), share in np.ndenumerate(relation):
            colour = LIGHT["paper" if share > 0.6 * relation.max() else "ink"]
            axes.text(column + 0.5, row + 0.5, f"{100 * share:.0f}", ha="center", va="center", fontsize=8, color=colour)
    else:
        draw_scale(left, image, [axes], "share of attention")

    bars = right.subplots()
    bars.barh(range(count), relation[-1], color=colours)
    names = [f"{episode.classes[k]}{'' if are_means else f', shot {j + 1}'}" for k, j in zip(items, shots, strict=True)]
    bars.set_yticks(range(count), [*(wrapped(readable(name), 30, 1) for name in names), "itself"], fontsize=8)
    for label, colour in zip(bars.get_yticklabels(), colours, strict=True):
        label.set_color(colour)
    bars.axvline(1 / count, color=LIGHT["quiet"], linewidth=1, linestyle=":")
    bars.xaxis.set_major_formatter(percent)
    bars.grid(axis="x")
    bars.set(ylim=(count - 0.4, -0.6))
    bars.set_title(f"Share of query {query}'s attention; dotted: an equal share")


def draw_shares(axes: Axes, episode: Episode, values: np.ndarray) -> None:
    """Shares (K, J) of the support videos as bars, a row for each class; hatched where a video shows another one."""
    height = 0.8 / episode.shots
    for k, row in enumerate(values):
        for place, value, impostor in zip(shot_rows(episode, k), row, episode.impostors[k], strict=False):
            hatch = "//////" if impostor else None
            axes.barh(place, value, 0.8 * height, color=episode.colours[k], hatch=hatch, edgecolor=LIGHT["paper"])
    axes.xaxis.set_major_formatter(percent)
    axes.grid(axis="x")
    axes.set(ylim=(len(values) - 0.4, -0.6))


def shot_rows(episode: Episode, k: int) -> np.ndarray:
    """The heights at which the shots of class k stand in its row, which reaches from k - 0.4 to k + 0.4."""
    shots = len(episode.support[k])
    return k + 0.8 / episode.shots * (np.arange(shots) - (shots - 1) / 2)


def name_rows(axes: Axes, episode: Episode, query: int) -> None:
    """Class names beside the rows of a chart, the query's own in green."""
    axes.set_yticks(range(len(episode.classes)), [wrapped(readable(name), 30) for name in episode.classes], fontsize=8)
    axes.get_yticklabels()[int(episode.labels[query])].set_color(LIGHT["right"])
    axes.set(ylim=(len(episode.classes) - 0.4, -0.6))


def any_impostor(episode: Episode) -> bool:
    return any(name for names in episode.impostors for name in names)


# ---------------------------------------------------------------------------------------------------------------------
# Videos, a row each


class VideoRow(NamedTuple):
    """The query, or a support video: its frames, and where its values stand in the explanation."""

    label: str
    colour: str
    frames: np.ndarray
    part: str
    place: tuple[int, ...]

    def of(self, episode: Episode, name: str) -> np.ndarray:
        return episode.explanation[f"{self.part}_{name}"][self.place]


def rows_of(episode: Episode, query: int) -> list[VideoRow]:
    """The query, and of its likeliest classes the shot that is most like it, or the first where no shot logits are given."""
    shot_logits = episode.explanation.get("shot_logits")
    best = [0] * len(episode.classes) if shot_logits is None else episode.best_shots(shot_logits[query])
    rows = [VideoRow(f"query {query}", LIGHT["ink"], episode.target[query], "target", (query,))]
    for k in episode.likeliest(query, MOST_CLASSES):
        place = (k, best[k])
        name = wrapped(readable(episode.classes[k]), 22, 3)
        rows.append(VideoRow(name, episode.colours[k], episode.support[k][best[k]], "support", place))
    return rows


def height_of_rows(episode: Episode) -> float:
    return 0.7 + 1.15 * (1 + min(MOST_CLASSES, len(episode.classes)))


def grid_of_rows(panel: SubFigure, rows: Sequence[VideoRow]) -> list[tuple[Axes, Axes]]:
    """The axes of film strips, which are drawn, and beside each those for what was made of it."""
    grid = panel.subplots(len(rows), 3, squeeze=False, width_ratios=[1.15, 6, 3])
    for (label, strip, _), row in zip(grid, rows, strict=True):
        draw_row(label, strip, row)
    return [(strip, beside) for _, strip, beside in grid]


def columns_of_rows(panel: SubFigure, rows: Sequence[VideoRow]) -> list[Axes]:
    """The axes of film strips, which are drawn, in two columns."""
    count = -(-len(rows) // 2)
    halves = panel.subfigures(1, 2, squeeze=False)[0]
    places = [place for half in halves for place in half.subplots(count, 2, squeeze=False, width_ratios=[1.15, 6])]
    for label, strip in places[len(rows) :]:
        bare(label)
        bare(strip)
    for (label, strip), row in zip(places, rows, strict=False):
        draw_row(label, strip, row)
    return [strip for _, strip in places[: len(rows)]]


def draw_row(label: Axes, strip: Axes, row: VideoRow) -> None:
    bare(label)
    label.text(1, 0.5, row.label, ha="right", va="center", fontsize=8, color=row.colour)
    draw_strip(strip, thinned(row.frames, ROW_FRAMES))


def draw_looks(panel: SubFigure, episode: Episode, query: int) -> None:
    """Where attention along space is high, frames keep their light; that along time are bars, one for each step."""
    seen = [name for name in ("spatial", "temporal") if f"target_{name}" in episode.explanation]
    meaning = {"spatial": "attention along space (low where it is dark)", "temporal": "along time (bars, one per step)"}
    shown = " and ".join(meaning[name] for name in seen)
    heading(panel, f"Query {query} and a support video of each class: {shown}")
    rows = rows_of(episode, query)
    if "temporal" in seen:
        pairs = grid_of_rows(panel, rows)
        strips = [strip for strip, _ in pairs]
        for (_, bars), row in zip(pairs, rows, strict=True):
            draw_steps(bars, row.of(episode, "temporal"), SERIES[0] if row.part == "target" else row.colour)
    else:
        strips = columns_of_rows(panel, rows)
    if "spatial" in seen:
        for strip, row in zip(strips, rows, strict=True):
            draw_veil(strip, row.of(episode, "spatial"), len(row.frames), row.frames.shape[1:3], ROW_FRAMES)


def height_of_looks(episode: Episode) -> float:
    """In two columns where nothing stands beside the strips."""
    if "target_temporal" in episode.explanation:
        return height_of_rows(episode)
    rows = 1 + min(MOST_CLASSES, len(episode.classes))
    return 0.5 + 0.85 * -(-rows // 2)


def draw_steps(axes: Axes, values: np.ndarray, colour: str, first: int = 1) -> None:
    """Numbers (S,) of steps, as bars from 0 to 1. first: the number of the first step."""
    axes.bar(range(len(values)), values, width=0.85, color=colour)
    axes.set(ylim=(0, 1), yticks=[0, 1], xlim=(-0.6, len(values) - 0.4))
    axes.set_xticks([0, len(values) - 1], [str(first), str(first + len(values) - 1)])
    axes.tick_params(labelsize=7)


def draw_saliency(panel: SubFigure, episode: Episode, query: int) -> None:
    """How the steps of a video (across) are shared out to the slots (down)."""
    heading(
        panel, f"Query {query} and the nearest shot of each class: how steps (across) are shared out to slots (down)"
    )
    rows = rows_of(episode, query)
    draw_share_matrices(panel, rows, [row.of(episode, "saliency").T for row in rows], "share of a step")


def draw_tokens(panel: SubFigure, episode: Episode, query: int) -> None:
    """How much each pattern token looks at each step, in the order in which tokens look at the query."""
    heading(
        panel,
        f"Query {query} and the nearest shot of each class: which steps (across) pattern tokens look at (down, in "
        "the order of the query)",
    )
    rows = rows_of(episode, query)
    looks = [row.of(episode, "tokens") for row in rows]  # (R, S) each
    order = np.argsort(looks[0] @ np.arange(looks[0].shape[-1]), kind="stable")
    draw_share_matrices(panel, rows, [values[order] for values in looks], "share of a token")


def draw_share_matrices(panel: SubFigure, rows: Sequence[VideoRow], shares: Sequence[np.ndarray], label: str) -> None:
    """A matrix (down, across) beside the frames of each row, all on one scale."""
    pairs = grid_of_rows(panel, rows)
    for (_, axes), values in zip(pairs, shares, strict=True):
        image = axes.imshow(values, cmap=blues(), vmin=0, vmax=np.max(shares), aspect="auto", interpolation="nearest")
        bare(axes)
    draw_scale(panel, image, [axes for _, axes in pairs], label)


def draw_motion(panel: SubFigure, episode: Episode, query: int) -> None:
    """The frames after each step but the first, light where motion is large; its mean over a frame as bars."""
    heading(
        panel,
        f"Query {query} and a support video of each class: motion from the step before (small where it is dark), and its "
        "mean over the frame",
    )
    rows = rows_of(episode, query)
    maps = [row.of(episode, "motion") for row in rows]  # (S - 1, h, w) each
    means = [values.mean(axis=(1, 2)) for values in maps]
    rows = [row._replace(frames=row.frames[len(row.frames) // (len(maps[0]) + 1) :]) for row in rows]
    for (strip, bars), row, values, mean in zip(grid_of_rows(panel, rows), rows, maps, means, strict=True):
        draw_veil(strip, values, len(row.frames), row.frames.shape[1:3], ROW_FRAMES)
        draw_steps(bars, mean / np.max(means), SERIES[0] if row.part == "target" else row.colour, first=2)


# ---------------------------------------------------------------------------------------------------------------------
# What several of them need


def in_columns(name: str, columns: int) -> str:
    """A class name above one of so many columns, in two lines."""
    return wrapped(readable(name), max(10, 150 // columns))


def blues() -> Colormap:
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("similarity", [LIGHT["panel"], SERIES[0]])


def draw_scale(panel: SubFigure, image: AxesImage, axes: Sequence[Axes], label: str) -> None:
    """The colours of shares, in percent, beside axes that stand under each other."""
    scale = panel.colorbar(image, ax=axes, fraction=0.04, label=label, format=percent)
    scale.ax.spines["outline"].set_visible(False)


def percent(share: float, _: object = None) -> str:
    """A tick's label."""
    return f"{100 * share:.3g} %"


def softmax(logits: np.ndarray) -> np.ndarray:
    exponentials = np.exp(logits - logits.max())
    return exponentials / exponentials.sum()


def height_of_classes(episode: Episode) -> float:
    """A row for each class, with the shots under each other."""
    return 0.9 + max(0.38, 0.1 * episode.shots) * len(episode.classes)


PANELS: dict[str, Panel] = {
    "similarities": Panel(
        draw_matrices, lambda episode: 1.3 + 0.9 * WIDTH / (1 + min(MOST_CLASSES, len(episode.classes)))
    ),
    "cardinalities": Panel(draw_tuple_matches, lambda episode: 4.3),
    "query_logits": Panel(draw_dual_scores, height_of_classes),
    "shot_logits": Panel(draw_shot_logits, height_of_classes),
    "text_logits": Panel(draw_text_scores, lambda episode: max(3.0, height_of_classes(episode))),
    "target_attention": Panel(draw_video_attention, lambda episode: max(3.2, height_of_classes(episode))),
    "relation": Panel(draw_relation, lambda episode: 4.5),
    "target_tokens": Panel(draw_tokens, height_of_rows),
    "target_saliency": Panel(draw_saliency, height_of_rows),
    **dict.fromkeys(("target_spatial", "target_temporal"), Panel(draw_looks, height_of_looks)),
    "target_motion": Panel(draw_motion, height_of_rows),
}
