"""The picture of one episode: its clips, its answers, and what the method compared for one query."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from results.drawing import (
    bare,
    draw_probabilities,
    draw_strip,
    heading,
    readable,
    save_picture,
    thinned,
    wrapped,
)
from results.panels import WIDTH, Episode, panels_of
from results.style import LIGHT, house_style

if TYPE_CHECKING:
    from matplotlib.figure import SubFigure


def draw_episode(episode: Episode, query: int, path: Path) -> None:
    """The picture: support, queries with their probabilities, and what the method compared for one of them."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    strip_frames = max(2, min(8, 20 // episode.shots))
    support_row = min(1.0, 0.86 * WIDTH / (episode.shots * strip_frames)) + 0.2
    query_row = max(1.0, 0.2 * len(episode.classes))
    compared = panels_of(episode)
    heights = [0.45 + len(episode.classes) * support_row, 0.55 + len(episode.target) * (query_row + 0.1)]
    heights += [panel.height(episode) for panel in compared]
    with house_style():
        margins = ConstrainedLayoutEngine(rect=(0.008, 0.008, 0.984, 0.984))
        figure = Figure((WIDTH, sum(heights)), layout=margins)
        support, queries, *parts = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
        draw_support(support, episode, strip_frames)
        draw_queries(queries, episode, query if compared else None)
        for panel, part in zip(compared, parts, strict=True):
            panel.draw(part, episode, query)
        save_picture(figure, path)


def draw_support(panel: SubFigure, episode: Episode, strip_frames: int) -> None:
    """A row for each class, with the film strips of its shots."""
    heading(panel, f"Support of {episode.title}")
    shots = episode.shots
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
            room = max(12, 195 // shots - (20 if notes else 6))  # letters
            if impostor := episode.impostors[k][j]:
                notes.append(f"shows {wrapped(readable(impostor), room, 1)}")
            colour = LIGHT["wrong"] if impostor else LIGHT["quiet"]
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
        draw_probabilities(
            bars, episode.classes, episode.probabilities[q], colours=episode.colours, true=true, width=42, lines=1
        )
