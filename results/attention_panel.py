"""Where ARN looks: its spatial attention over the frames of clips, and its temporal attention per step.

Letters: N support videos, S feature steps, h w cells of a feature map, T frames, H W pixels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from PIL import Image
from torch import Tensor

from results.drawing import bare, film_strip, readable, thinned, wrapped
from results.style import LIGHT, SERIES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import SubFigure

    from scripts.explain_episode import Episode

FRAMES = 8  # of a clip that are shown


def attention_height(episode: Episode) -> float:
    """Inches."""
    return 0.7 + 1.15 * (1 + len(episode.classes))


def draw_attention(panel: SubFigure, episode: Episode, query: int) -> None:
    """The query and the first support video of each class, a row each: where attention is high, frames keep their light."""
    assert episode.features is not None
    said = episode.explanation
    labels = episode.features[1][0].tolist()
    shots = [labels.index(k) for k in range(len(episode.classes))]
    rows = [("target", query, f"query {query}", episode.target[query])]
    rows += [("support", shot, episode.classes[k], episode.support[k][0]) for k, shot in enumerate(shots)]
    seen = [name for name in ("spatial", "temporal") if f"support_{name}" in said]
    meaning = {"spatial": "spatial attention (low where it is dark)", "temporal": "temporal attention (bars, per step)"}
    shown = ", ".join(meaning[name] for name in seen) or "this variant has no attention"
    panel.suptitle(
        f"Query {query} and a support video of each class: {shown}", x=0.008, ha="left", fontsize=12, fontweight="bold"
    )
    grid = panel.subplots(len(rows), 2, squeeze=False, width_ratios=[8, 2.6])
    for (strip_axes, bar_axes), (part, place, name, frames) in zip(grid, rows, strict=True):
        colour = LIGHT["ink"] if part == "target" else episode.colours[episode.classes.index(name)]
        spatial = said[f"{part}_spatial"][place] if "spatial" in seen else None
        draw_looked_at(strip_axes, frames, spatial)
        strip_axes.set_ylabel(
            wrapped(readable(name), 16), rotation=0, ha="right", va="center", fontsize=8, color=colour
        )
        if "temporal" in seen:
            draw_steps(bar_axes, said[f"{part}_temporal"][place].float().cpu().numpy(), colour)
        else:
            bar_axes.set_axis_off()


def draw_looked_at(axes: Axes, frames: np.ndarray, attention: Tensor | None) -> None:
    """A clip (T, H, W, 3) as a film strip, dark where the attention (S, h, w) of its step is low."""
    bare(axes)
    chosen = np.linspace(0, len(frames) - 1, min(FRAMES, len(frames))).round().astype(int)
    shown = thinned(frames, FRAMES)
    axes.imshow(film_strip(shown))
    axes.set_anchor("W")
    if attention is None:
        return
    maps = attention.float().cpu().numpy()
    steps = chosen * len(maps) // len(frames)
    low, high = maps.min(), maps.max()
    scaled = [resized((maps[step] - low) / max(high - low, 1e-9), frames.shape[1:3]) for step in steps]
    shade = LinearSegmentedColormap.from_list("shade", [(*np.array([20, 28, 60]) / 255, 0.82), (1, 0.75, 0.2, 0.18)])
    veil = np.stack([shade(cells) for cells in scaled])
    axes.imshow(film_strip_rgba(veil), interpolation="antialiased")


def resized(cells: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """(h, w) -> (H, W), smooth."""
    image = Image.fromarray(cells.astype(np.float32), mode="F")
    return np.asarray(image.resize((size[1], size[0]), Image.Resampling.BILINEAR))


def film_strip_rgba(frames: np.ndarray, gap: int = 3) -> np.ndarray:
    """float (T, H, W, 4) side by side as `film_strip` lays frames, transparent between them."""
    padded = np.pad(frames, ((0, 0), (0, 0), (0, gap), (0, 0)))
    strip = np.concatenate(list(padded), axis=1)
    return strip[:, : strip.shape[1] - gap]


def draw_steps(axes: Axes, values: np.ndarray, colour: str) -> None:
    """Attention (S,) per step, as bars from 0 to 1."""
    axes.bar(range(len(values)), values, width=0.85, color=colour if colour != LIGHT["ink"] else SERIES[0])
    axes.set(ylim=(0, 1), yticks=[0, 1], xticks=[0, len(values) - 1], xlim=(-0.6, len(values) - 0.4))
    axes.tick_params(labelsize=7)
