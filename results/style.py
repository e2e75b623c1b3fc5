"""The library's look: colours of a light and a dark page, matplotlib's settings, figures as SVG in their page's colours."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from markupsafe import Markup, escape

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Matplotlib is imported where a figure is made: it takes a second that training and --help need not pay.

LIGHT = {
    "paper": "#fefefe",
    "panel": "#f4f6f9",
    "ink": "#1a2332",
    "quiet": "#5d6878",
    "line": "#d3dae3",
    "accent": "#2a62c4",
    "right": "#1b8457",
    "wrong": "#c8374b",
}
DARK = {
    "paper": "#11151c",
    "panel": "#1a202a",
    "ink": "#e7ebf2",
    "quiet": "#9aa5b5",
    "line": "#333d4c",
    "accent": "#78a9ff",
    "right": "#4cc38a",
    "wrong": "#ff7a88",
}
SERIES = ("#3b76d1", "#e0782f", "#2f9e6e", "#b5529f", "#c99a12", "#2b9db8", "#8a63d2", "#d1495b", "#7a8594", "#6d9b2c")
"""Colours of runs, ways and classes, told apart on white and on black."""

STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.size": 9,
    "text.color": LIGHT["ink"],
    "text.parse_math": False,  # a '$' in a class name is just a letter
    "axes.edgecolor": LIGHT["line"],
    "axes.labelcolor": LIGHT["quiet"],
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.facecolor": "none",
    "figure.facecolor": LIGHT["paper"],
    "grid.color": LIGHT["line"],
    "grid.linewidth": 0.6,
    "xtick.color": LIGHT["line"],
    "ytick.color": LIGHT["line"],
    "xtick.labelcolor": LIGHT["quiet"],
    "ytick.labelcolor": LIGHT["ink"],
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "svg.fonttype": "none",  # text stays text: it can be searched, and is set in the page's font
    "svg.hashsalt": "report",  # equal results give equal bytes
}


@contextmanager
def house_style() -> Iterator[None]:
    """Figures made and saved in this block have the library's look."""
    import matplotlib

    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        # Names in scripts that the measuring font lacks are still written, in a font of the reader's.
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        yield


def cycled_series() -> Iterator[str]:
    """The colours of SERIES, again and again."""
    while True:
        yield from SERIES


def svg(figure: Figure, description: str) -> Markup:
    """A figure as SVG to be put in a page: colours of LIGHT become the page's variables of these names."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, bbox_inches="tight", pad_inches=0.05)
    drawing = buffer.getvalue()
    drawing = drawing[drawing.index("<svg") :]
    drawing = re.sub(r"\s*<metadata>.*?</metadata>", "", drawing, flags=re.DOTALL)
    drawing = re.sub(r'<g id="[\w.]+_\d+"', "<g", drawing)  # numbers that start anew in every figure of a page
    for name, colour in LIGHT.items():
        drawing = drawing.replace(colour, f"var(--{name})")
    widest = 108 * figure.get_figwidth()  # pixels: letters of figures are then as large as those of the page
    head = f'<svg role="img" aria-label="{escape(description)}" style="max-width: {widest:.0f}px"'
    return Markup(drawing.replace("<svg", head, 1))
