"""The figures of a test's report: accuracy with its intervals, classes, confusion, sizes, reliability.

Figures are made and saved within `house_style`. Letters: C classes of the split.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from results.drawing import wrapped
from results.evaluation import Predictions
from results.style import LIGHT, SERIES, cycled_series
from utils import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FEW = 16  # classes whose figures have half the page's width


def interval_figure(results: Mapping[str, Any]) -> Figure:
    """The accuracy on the scale from 0 to 100 %, with both intervals and chance."""
    figure, axes = new_axes(7.4, 1.15)
    accuracy, ci95 = results["accuracy"], results["ci95"]
    intervals = (
        (1, accuracy - ci95, accuracy + ci95, "over episodes"),
        (0, results["class_interval_low"], results["class_interval_high"], "over classes"),
    )
    for y, low, high, _ in intervals:
        axes.plot([low, high], [y, y], color=LIGHT["accent"], linewidth=7, solid_capstyle="butt", alpha=0.45)
        axes.plot(accuracy, y, "|", color=LIGHT["accent"], markersize=13, markeredgewidth=2.2)
    mark_chance(axes, results["way"])
    axes.set(xlim=(0, 100), ylim=(-0.6, 1.6), yticks=[1, 0], yticklabels=[label for *_, label in intervals])
    percent_axis(axes)
    return figure


def class_figure(predictions: Predictions, way: int) -> Figure:
    """Bars of each class's accuracy, the best on top."""
    accuracies = predictions.class_accuracies()
    asked = np.flatnonzero(~np.isnan(accuracies))
    order = asked[np.argsort(accuracies[asked], kind="stable")]
    few = len(order) <= FEW
    names = [shown_name(predictions.classes[c], 34 if few else 50) for c in order]
    row = 0.34 if any("\n" in name for name in names) else 0.24
    figure, axes = new_axes(5.4 if few else 9.5, 0.75 + row * len(order))
    axes.barh(range(len(order)), accuracies[order], height=0.66, color=LIGHT["accent"])
    for y, accuracy in enumerate(accuracies[order]):
        axes.text(
            accuracy + 1, y, f"{accuracy:.0f}", va="center", color=LIGHT["quiet"], fontsize=8,
            bbox={"facecolor": LIGHT["panel"], "edgecolor": "none", "pad": 0.6},  # the line of chance stops at it
        )  # fmt: skip
    mark_chance(axes, way)
    axes.set(xlim=(0, 106), ylim=(-0.6, len(order) - 0.4))
    axes.set_yticks(range(len(order)), names)
    percent_axis(axes)
    return figure


def confusion_figure(predictions: Predictions) -> Figure:
    """Which class (row) was answered with which (column), percent of the row."""
    from matplotlib.colors import to_rgb

    confusion = predictions.confusion()
    asked = np.flatnonzero(confusion.sum(axis=1))
    shares = confusion[np.ix_(asked, asked)] / confusion[asked].sum(axis=1, keepdims=True)
    width, lines = (34, 2) if len(asked) <= FEW else (50, 1)
    names = [shown_name(predictions.classes[c], width, lines) for c in asked]
    longest = max(len(line) for name in names for line in name.split("\n"))
    numbered = len(asked) > FEW or longest > 20  # names of columns would take more room than the matrix
    side = max(3.0, min(0.36, 7.6 / len(asked)) * len(asked))
    figure, axes = new_axes(side + 0.5 + 0.065 * longest, side + (0.5 if numbered else 0.4 + 0.05 * longest))
    # One colour, more or less opaque, is readable on white and on black; the power lets a few percent be seen.
    opacity = shares**0.7
    cells = np.dstack([*(np.full(shares.shape, part) for part in to_rgb(SERIES[0])), opacity])
    axes.imshow(cells, interpolation="none", aspect="equal")
    if len(asked) <= 2 * FEW:
        for (row, column), share in np.ndenumerate(shares):
            if share >= 0.005:
                colour = "white" if opacity[row, column] > 0.6 else LIGHT["ink"]
                axes.text(column, row, f"{100 * share:.0f}", ha="center", va="center", color=colour, fontsize=8)
    axes.set(xlabel="answered", ylabel="true")
    numbers = [str(number) for number in range(1, 1 + len(names))]
    points = min(9.0, 60 * side / len(asked) / (1 + max(name.count("\n") for name in names)))
    if numbered:
        axes.set_xticks(range(len(names)), numbers, fontsize=points)
        names = [f"{name}  {number}" for name, number in zip(names, numbers, strict=True)]
    else:
        axes.set_xticks(range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor", fontsize=points)
    axes.set_yticks(range(len(names)), names, fontsize=points)
    axes.tick_params(labelcolor=LIGHT["ink"])
    axes.spines[:].set_visible(False)
    return figure


def sizes_figure(sizes: Sequence[Mapping[str, Any]]) -> Figure:
    """Accuracy with its interval against shots, a line for each way; against ways where one shot was tested."""
    along, across = ("shot", "way") if len({size["shot"] for size in sizes}) > 1 else ("way", "shot")
    figure, axes = new_axes(5.4, 3.4)
    for colour, fixed in zip(cycled_series(), sorted({size[across] for size in sizes}), strict=False):
        line = sorted((size for size in sizes if size[across] == fixed), key=lambda size: size[along])
        places = [size[along] for size in line]
        accuracies, errors = ([size[name] for size in line] for name in ("accuracy", "ci95"))
        label = f"{fixed}-{across}"
        axes.errorbar(places, accuracies, errors, color=colour, marker="o", markersize=5, capsize=3, label=label)
    ways = sorted({size["way"] for size in sizes})
    if along == "way":
        axes.plot(ways, [100 / way for way in ways], "--", color=LIGHT["quiet"], linewidth=0.9, label="chance")
    axes.set(xlabel=f"{along}s", xticks=sorted({size[along] for size in sizes}), ylabel="accuracy, %")
    axes.grid(axis="y")
    axes.legend(loc="best")
    return figure


def reliability_figure(predictions: Predictions) -> Figure:
    """Accuracy of the answers by their confidence: on the diagonal, a confidence is what it says."""
    figure = new_figure(5.4, 4.4)
    share, confidence, accuracy = (100 * values for values in predictions.calibration_bins())
    middles, width = (np.arange(len(share)) + 0.5) * 100 / len(share), 100 / len(share)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[4, 1])
    used = share > 0
    above.plot([0, 100], [0, 100], "--", color=LIGHT["quiet"], linewidth=0.9)
    above.bar(middles[used], accuracy[used], width * 0.88, color=LIGHT["accent"], label="accuracy")
    above.hlines(
        confidence[used], (middles - width / 2)[used], (middles + width / 2)[used],
        color=LIGHT["wrong"], linewidth=2.2, label="mean confidence",
    )  # fmt: skip
    above.set(xlim=(0, 100), ylim=(0, 100), ylabel="accuracy, %")
    above.grid(axis="y")
    above.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderpad=0)
    below.bar(middles, share, width * 0.88, color=LIGHT["quiet"], alpha=0.6)
    below.set(xlabel="confidence of the answer, %", ylabel="queries, %")
    below.grid(axis="y")
    return figure


def shown_name(name: str, width: int, lines: int = 2) -> str:
    """A class name in so many lines of so many letters at most, which a font can draw."""
    return wrapped(printable(name), width, lines)


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of so many inches."""
    from matplotlib.figure import Figure

    return Figure((width, height), layout="constrained")


def new_axes(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure of so many inches with one pair of axes."""
    figure = new_figure(width, height)
    return figure, figure.add_subplot()


def mark_chance(axes: Axes, way: int) -> None:
    """A line at the accuracy of guessing, with its name above the axes."""
    axes.axvline(100 / way, color=LIGHT["quiet"], linewidth=0.9, linestyle="--")
    axes.annotate(
        "chance", (100 / way, 1), xycoords=("data", "axes fraction"), xytext=(3, 1), textcoords="offset points",
        color=LIGHT["quiet"], fontsize=8, annotation_clip=False,
    )  # fmt: skip


def percent_axis(axes: Axes) -> None:
    """Ticks of the x axis every 20 %, with grid lines."""
    axes.set_xticks(range(0, 101, 20), [f"{tick} %" for tick in range(0, 101, 20)])
    axes.grid(axis="x")
    axes.spines["left"].set_visible(False)
