"""What the scripts draw alike: clips as film strips, classes as colours, probabilities as bars. In the look of report.html.

Letters: T frames, S feature steps, H W pixels, h w cells of a feature map, K way.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from torch import Tensor

from results.style import LIGHT, SERIES
from utils import atomic_write, printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

PICTURE_SUFFIXES = (".png", ".svg", ".pdf")


def class_colour(k: int) -> str:
    """The colour of class k of an episode, the same in all its drawings."""
    return SERIES[k % len(SERIES)]


def readable(name: str) -> str:
    """A class name as words, in letters that a font can draw."""
    return printable(name.replace("_", " "))


def wrapped(text: str, width: int = 24, lines: int = 2) -> str:
    """A text in so many lines at most."""
    return textwrap.fill(text, width, max_lines=lines, placeholder=" …")


def save_picture(figure: Figure, path: Path) -> None:
    """Writes a figure as its file's suffix says; pixels for screens and print."""
    with atomic_write(path) as file:
        figure.savefig(file, format=path.suffix[1:].lower(), dpi=160)


def heading(panel: Figure | SubFigure, text: str) -> None:
    """The line above a panel or a picture."""
    panel.suptitle(text, x=0.008, ha="left", fontsize=12, fontweight="bold")


def film_strip(frames: np.ndarray, gap: int = 3, fill: float = 255) -> np.ndarray:
    """Frames (T, H, W, channels) side by side, `fill` between them: (H, T*W + (T-1)*gap, channels)."""
    padded = np.pad(frames, ((0, 0), (0, 0), (0, gap), (0, 0)), constant_values=fill)
    strip = np.concatenate(list(padded), axis=1)
    return strip[:, : strip.shape[1] - gap]


def evenly(length: int, count: int) -> np.ndarray:
    """`count` places among so many, evenly spaced; all of them where there are fewer."""
    return np.linspace(0, length - 1, min(count, length)).round().astype(int)


def thinned(frames: np.ndarray, count: int) -> np.ndarray:
    """`count` frames of a clip (T, H, W, 3), evenly spaced; all of them where it has fewer."""
    return frames[evenly(len(frames), count)]


def draw_strip(axes: Axes, frames: np.ndarray, colour: str | None = None) -> None:
    """A clip (T, H, W, 3) as a film strip that fills the axes' width, with a band in its class's colour at the left."""
    bare(axes)
    axes.imshow(film_strip(frames), interpolation="antialiased")
    axes.set_anchor("W")
    if colour is not None:
        axes.spines["left"].set(visible=True, color=colour, linewidth=4, position=("outward", 4))


def draw_veil(axes: Axes, attention: np.ndarray, frames: int, size: tuple[int, ...], count: int) -> None:
    """Darkens a strip of `count` of `frames` frames where attention is low.

    attention (S, h, w): of the steps of the clip, each of which covers frames / S frames; a tenth of its cells is all dark, a
    tenth all light, so that a lone peak does not leave the others in the dark. size: H and W of a frame.
    """
    from matplotlib.colors import LinearSegmentedColormap

    shade = LinearSegmentedColormap.from_list("shade", [(0.08, 0.11, 0.24, 0.8), (0.08, 0.11, 0.24, 0)])
    low, high = np.quantile(attention, [0.1, 0.9])
    scaled = np.clip((attention - low) / max(high - low, 1e-9), 0, 1)
    steps = evenly(frames, count) * len(attention) // frames
    veil = np.stack([shade(enlarged(scaled[step], (size[0], size[1]))) for step in steps])
    axes.imshow(film_strip(veil, fill=0), interpolation="antialiased")


def enlarged(cells: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(h, w) -> (H, W), smooth."""
    image = Image.fromarray(cells.astype(np.float32), mode="F")
    return np.asarray(image.resize((size[1], size[0]), Image.Resampling.BILINEAR))


def draw_probabilities(
    axes: Axes,
    names: Sequence[str],
    values: np.ndarray,
    *,
    colours: Sequence[str],
    true: int | None = None,
    width: int = 24,
    lines: int = 2,
) -> None:
    """Bars of the probabilities (K,) of classes, the first on top, the answer in bold.

    true: the class it should be, whose name is green; the answer then gets a tick or a cross. width, lines: letters in a
    line, and lines, of a name that are shown.
    """
    answer = int(values.argmax())
    places = range(len(values))
    axes.barh(places, values, height=0.7, color=colours)
    for k, value in enumerate(values):
        mark = "" if true is None or k != answer else "  ✓" if answer == true else "  ✗"
        colour = LIGHT["ink"] if not mark else LIGHT["right" if answer == true else "wrong"]
        weight = "bold" if k == answer else "normal"
        axes.text(
            value + 0.02, k, f"{100 * value:.0f} %{mark}", va="center", color=colour, fontweight=weight, fontsize=8
        )
    bare(axes)
    axes.set_yticks(places, [wrapped(readable(name), width, lines) for name in names], fontsize=8)
    axes.get_yticklabels()[answer].set_fontweight("bold")
    if true is not None:
        axes.get_yticklabels()[true].set_color(LIGHT["right"])
    axes.set(xlim=(0, 1.25), ylim=(len(values) - 0.4, -0.6))


def bare(axes: Axes) -> None:
    """Takes away ticks and frame."""
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


def episode_picture(task: Mapping[str, Any], clips: int = 6) -> Tensor:
    """The first support and target clips as film strips, one a row: uint8 (3, height, width)."""
    frames = len(task["support_set"]) // len(task["support_labels"])
    strips = torch.cat([task["support_set"][: clips // 2 * frames], task["target_set"][: clips // 2 * frames]])
    return rearrange(strips, "(n t) c h w -> c (n h) (t w)", t=frames)
