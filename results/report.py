"""What a test says, as a page to show and a table to compute with: report.html and results.csv of a run folder.

report.html is one file without links: figures are SVG in the page, drawn in colours that follow the reader's light or dark
theme and turn light for printing. The scripts that draw pictures take their colours and style from here.

Letters: C classes of the split.
"""

from __future__ import annotations

import csv
import io
import json
import re
import textwrap
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from results.evaluation import Predictions
from utils import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
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

FEW = 16  # classes whose figures have half the page's width

RESULT_COLUMNS = (
    "method", "backbone", "dataset", "split", "way", "shot", "accuracy", "ci95", "class_interval_low",
    "class_interval_high", "calibration_error", "tasks", "queries_per_class", "noisy_support", "seed", "checkpoint",
    "checkpoint_tasks", "selected_on", "episodes",
)  # fmt: skip


def write_report(run_folder: Path, results: Mapping[str, Any], predictions: Predictions) -> None:
    """Writes report.html and results.csv into a run folder.

    results: the content of results.json; predictions: those of its first size, which the figures show. The folder's
    args.json and command.txt are shown where they exist.
    """
    with atomic_write(run_folder / "results.csv") as file:
        file.write(results_table(results).encode())
    with atomic_write(run_folder / "report.html") as file:
        file.write(report_page(run_folder, results, predictions).encode())


def results_table(results: Mapping[str, Any]) -> str:
    """CSV with one row for each way and shot that was tested."""
    text = io.StringIO()
    rows = csv.DictWriter(text, RESULT_COLUMNS, extrasaction="ignore")
    rows.writeheader()
    rows.writerows({**results, **size} for size in results["sizes"])
    return text.getvalue()


# ---------------------------------------------------------------------------------------------------------------------
# Figures


@contextmanager
def house_style() -> Iterator[None]:
    """Figures made and saved in this block have the library's look."""
    import matplotlib

    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        # Names in scripts that the measuring font lacks are still written, in a font of the reader's.
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        yield


def in_two_lines(name: str) -> str:
    """A class name in two lines at most."""
    return textwrap.fill(name, 34, max_lines=2, placeholder=" …")


def new_axes(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure of so many inches with one pair of axes."""
    from matplotlib.figure import Figure

    figure = Figure((width, height), layout="constrained")
    return figure, figure.add_subplot()


def svg(figure: Figure, description: str) -> str:
    """A figure as SVG to be put in a page: colours of LIGHT become the page's variables of these names."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, bbox_inches="tight", pad_inches=0.05)
    drawing = buffer.getvalue()
    drawing = drawing[drawing.index("<svg") :]
    drawing = re.sub(r"\s*<metadata>.*?</metadata>", "", drawing, flags=re.DOTALL)
    for name, colour in LIGHT.items():
        drawing = drawing.replace(colour, f"var(--{name})")
    widest = 108 * figure.get_figwidth()  # pixels: letters of figures are then as large as those of the page
    head = f'<svg role="img" aria-label="{escape(description)}" style="max-width: {widest:.0f}px"'
    return drawing.replace("<svg", head, 1)


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
    names = [in_two_lines(predictions.classes[c]) for c in order]
    row = 0.34 if any("\n" in name for name in names) else 0.24
    figure, axes = new_axes(5.4 if len(order) <= FEW else 9.5, 0.75 + row * len(order))
    axes.barh(range(len(order)), accuracies[order], height=0.66, color=LIGHT["accent"])
    for y, accuracy in enumerate(accuracies[order]):
        axes.text(accuracy + 1, y, f"{accuracy:.0f}", va="center", color=LIGHT["quiet"], fontsize=8)
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
    names = [in_two_lines(predictions.classes[c]) for c in asked]
    longest = max(len(line) for name in names for line in name.split("\n"))
    numbered = len(asked) > FEW or longest > 20  # names of columns would take more room than the matrix
    side = max(3.0, min(0.36, 7.6 / len(asked)) * len(asked))
    figure, axes = new_axes(side + 0.5 + 0.065 * longest, side + (0.5 if numbered else 0.4 + 0.05 * longest))
    # One colour, more or less opaque, is readable on white and on black.
    cells = np.dstack([*(np.full(shares.shape, part) for part in to_rgb(SERIES[0])), shares])
    axes.imshow(cells, interpolation="none", aspect="equal")
    if len(asked) <= 2 * FEW:
        for (row, column), share in np.ndenumerate(shares):
            if share >= 0.005:
                colour = "white" if share > 0.6 else LIGHT["ink"]
                axes.text(column, row, f"{100 * share:.0f}", ha="center", va="center", color=colour, fontsize=8)
    axes.set(xlabel="answered", ylabel="true")
    numbers = [str(number) for number in range(1, 1 + len(names))]
    points = min(9.0, 60 * side / len(asked) / (2 if longest > 20 else 1))
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
    from matplotlib.figure import Figure

    share, confidence, accuracy = (100 * values for values in predictions.calibration_bins())
    middles, width = (np.arange(len(share)) + 0.5) * 100 / len(share), 100 / len(share)
    figure = Figure((5.4, 4.4), layout="constrained")
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


def cycled_series() -> Iterator[str]:
    """The colours of SERIES, again and again."""
    while True:
        yield from SERIES


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


# ---------------------------------------------------------------------------------------------------------------------
# The page

CSS = """
body { margin: 0 auto; max-width: 1120px; padding: 2.5rem 1.5rem; background: var(--paper); color: var(--ink);
       font: 16px/1.5 system-ui, "Segoe UI", "Helvetica Neue", Arial, sans-serif; }
h1 { margin: 0; font-size: 1.7rem; line-height: 1.2; letter-spacing: -0.01em; overflow-wrap: anywhere; }
h2 { margin: 0 0 0.2rem; font-size: 1.05rem; }
p { margin: 0.2rem 0; }
.quiet, figcaption { color: var(--quiet); font-size: 0.88rem; }
.stamp { margin: 1.5rem 0 0; padding: 0.7rem 1rem; border: 2px solid var(--wrong); border-radius: 8px; color: var(--wrong); }
.headline { display: flex; flex-wrap: wrap; gap: 1rem 2.5rem; align-items: center; margin: 1.5rem 0 2rem; }
.headline svg { flex: 1 1 420px; min-width: 0; height: auto; }
.accuracy { font-size: 3.4rem; font-weight: 700; line-height: 1.1; letter-spacing: -0.03em; white-space: nowrap; }
.accuracy small { font-size: 1.5rem; font-weight: 400; letter-spacing: 0; color: var(--quiet); }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 440px), 1fr)); gap: 1.25rem; }
.cards > * { margin: 0; padding: 1.1rem 1.25rem; background: var(--panel); border-radius: 12px; min-width: 0; overflow-x: auto;
             break-inside: avoid; }
figure svg { display: block; width: 100%; height: auto; margin: 0.8rem auto 0; }
.wide { grid-column: 1 / -1; }
svg text { font-family: inherit !important; }
table { border-collapse: collapse; width: 100%; font-size: 0.9rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.28rem 0.8rem 0.28rem 0; text-align: left; vertical-align: top; border-top: 1px solid var(--line);
         overflow-wrap: anywhere; }
tr:first-child > * { border-top: 0; }
th { font-weight: 400; color: var(--quiet); white-space: nowrap; }
td.number, th.number { text-align: right; white-space: nowrap; }
.number:last-child { padding-right: 0; }
pre { margin: 0.5rem 0 0; white-space: pre-wrap; overflow-wrap: anywhere; font-size: 0.8rem; line-height: 1.6; }
details { margin-top: 0.6rem; }
pre span { display: inline-block; }
summary { cursor: pointer; color: var(--accent); font-size: 0.9rem; }
@media print { body { padding: 0; max-width: none; font-size: 11pt; } .cards > * { border: 1px solid var(--line); } }
"""


def report_page(run_folder: Path, results: Mapping[str, Any], predictions: Predictions) -> str:
    """The page as text; see `write_report`."""
    title = f"{results['method']} on {results['backbone']}"
    with house_style():
        headline = svg(interval_figure(results), "accuracy with its intervals")
        figures = "".join(figure_cards(results, predictions))
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(title)}: {results["accuracy"]:.2f} %</title>
<style>
:root {{ color-scheme: light dark; {css_variables(LIGHT)} }}
@media screen and (prefers-color-scheme: dark) {{ :root {{ {css_variables(DARK)} }} }}
{CSS}</style>
</head>
<body>
<header>
<h1>{escape(title)}</h1>
<p class="quiet">{results["way"]}-way {results["shot"]}-shot action recognition on
{escape(Path(results["dataset"]).name)}/{results["split"]}, {results["tasks"]:,} episodes of
{results["way"] * results["queries_per_class"]} queries</p>
</header>
{warning_stamp(results)}
<section class="headline">
<div>
<div class="accuracy">{results["accuracy"]:.2f} <small>&plusmn; {results["ci95"]:.2f} %</small></div>
<p class="quiet">mean accuracy, 95 % interval over episodes<br>
{results["class_interval_low"]:.1f} to {results["class_interval_high"]:.1f} % when classes are drawn again</p>
</div>
{headline}
</section>
<main class="cards">
{figures}
<section><h2>Settings</h2>{settings_table(results)}{all_settings(run_folder)}</section>
<section class="wide"><h2>Made by</h2>{made_by(run_folder, results)}</section>
</main>
</body>
</html>
"""


def css_variables(colours: Mapping[str, str]) -> str:
    return " ".join(f"--{name}: {colour};" for name, colour in colours.items())


def warning_stamp(results: Mapping[str, Any]) -> str:
    if results["selected_on"] != "test":
        return ""
    return (
        '<p class="stamp"><strong>Chosen on the test split.</strong> This checkpoint was picked by its accuracy on the '
        "episodes' own classes: the figures below are too good and comparable with nothing.</p>"
    )


def figure_cards(results: Mapping[str, Any], predictions: Predictions) -> Iterator[str]:
    """The figures with their captions, as HTML."""

    def card(figure: Figure, title: str, caption: str, kind: str = "") -> str:
        return f"<figure{kind}><h2>{title}</h2><figcaption>{caption}</figcaption>{svg(figure, title)}</figure>\n"

    sizes = results["sizes"]
    if len(sizes) > 1:
        yield card(sizes_figure(sizes), "Ways and shots", "Accuracy at every tested size, bars are 95 % intervals over "
                   "episodes. The other figures show the first size.")  # fmt: skip
        yield f"<section><h2>All sizes</h2>{sizes_table(sizes)}</section>\n"
    many = ' class="wide"' if len(np.unique(predictions.true)) > FEW else ""
    yield card(
        class_figure(predictions, results["way"]), "Classes", "Queries of each class that were recognised, %.", many
    )
    yield card(confusion_figure(predictions), "Confusion",
               "Share of each class's queries, in %, by the answer they got.", many)  # fmt: skip
    yield card(reliability_figure(predictions), "Reliability",
               f"Expected calibration error (ECE) {results['calibration_error']:.1f} %: the mean distance between confidence "
               "and accuracy.")  # fmt: skip


def html_table(rows: Sequence[tuple[str, Any]]) -> str:
    cells = (f"<tr><th>{escape(name)}</th><td>{escape(str(value))}</td></tr>" for name, value in rows)
    return f"<table>{''.join(cells)}</table>"


def sizes_table(sizes: Sequence[Mapping[str, Any]]) -> str:
    heads = ("ways", "shots", "accuracy, %", "over classes", "ECE, %")
    rows = [
        (
            str(size["way"]),
            str(size["shot"]),
            f"{size['accuracy']:.2f} &plusmn; {size['ci95']:.2f}",
            f"{size['class_interval_low']:.1f} to {size['class_interval_high']:.1f}",
            f"{size['calibration_error']:.1f}",
        )
        for size in sorted(sizes, key=lambda size: (size["way"], size["shot"]))
    ]
    lines = [(heads, "th"), *((row, "td") for row in rows)]
    cells = ("".join(f'<{tag} class="number">{cell}</{tag}>' for cell in line) for line, tag in lines)
    return f"<table>{''.join(f'<tr>{row}</tr>' for row in cells)}</table>"


def settings_table(results: Mapping[str, Any]) -> str:
    """What the accuracy depends on, in words."""
    chosen = {
        "val": "the best on validation",
        "test": "the best on TEST",
        "nothing": "not chosen among others",
    }[results["selected_on"]]
    asked, noise = results["queries_per_class"], results["noisy_support"]
    return html_table(
        [
            ("Method", results["method"]),
            ("Backbone", results["backbone"]),
            ("Data", f"{results['dataset']}, split {results['split']} ({results['split_fingerprint']})"),
            ("Episodes", f"{results['tasks']:,} of {results['way']}-way {results['shot']}-shot, "
                         f"{asked} {'query' if asked == 1 else 'queries'} per class"),
            ("Drawn by", results["sealed_episodes"] or f"seed {results['seed']}"),
            ("Fingerprint", results["episodes"]),
            ("Noisy support", f"{noise} of {results['shot']} videos of a class are of others" if noise else "none"),
            ("Checkpoint", f"{results['checkpoint']} after {results['checkpoint_tasks']:,} tasks, {chosen}"),
            ("Precision", results["precision"]),
        ]
    )  # fmt: skip


def all_settings(run_folder: Path) -> str:
    path = run_folder / "args.json"
    if not path.exists():
        return ""
    settings = json.loads(path.read_text(encoding="utf-8"))
    words = [(f"--{name}", json.dumps(value, ensure_ascii=False)) for name, value in sorted(settings.items())]
    return f"<details><summary>all flags of the run</summary>{html_table(words)}</details>"


def made_by(run_folder: Path, results: Mapping[str, Any]) -> str:
    """Versions, the day, and the commands of the run folder."""
    path = run_folder / "command.txt"
    commands = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    # Each word in a span, so that lines are broken between words and never after the dashes of a flag.
    lines = (" ".join(f"<span>{escape(word)}</span>" for word in command.split(" ")) for command in commands)
    words = [*(f"{name} {version}" for name, version in results["versions"].items()), time.strftime("%Y-%m-%d")]
    return f'<p class="quiet">{escape(" · ".join(words))}</p><pre>{"<br>".join(lines)}</pre>'
