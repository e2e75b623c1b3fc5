"""A board of many runs as a page: leaderboard.html, .md, .csv and .tex, and profile.png.

Letters: E episodes of all seeds together, Q queries of an episode, C classes.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import combinations
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from results.charts import new_figure
from results.drawing import readable, save_picture
from results.pages import page
from results.runs import Difference, Run
from results.statistics import class_interval, holm, mean_interval, p_value
from results.style import LIGHT, SERIES, house_style, svg
from results.tables import latex_table, markdown_table
from results.terminal import Row
from utils import UserError, atomic_write, write_csv

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CLEAR = 0.05  # below it a corrected p value is taken for a difference
MANY = 6  # sets: with more of them, they stand below each other and methods beside


@dataclasses.dataclass(frozen=True)
class Place:
    """What is tested on. classes: of its test split, where they are listed; overlap: by pretraining set, those that it has.
    trained_on: where that is another set."""

    name: str
    made_up: bool = False
    axis: str | None = None
    level: int = 0
    classes: Sequence[str] = ()
    overlap: Mapping[str, Mapping[str, Sequence[str]]] = dataclasses.field(default_factory=dict)
    trained_on: str | None = None


@dataclasses.dataclass(frozen=True)
class Backbone:
    """flags: of run.py. pretraining: what its weights have seen; "kinetics400" and "imagenet1k" are looked up in
    splits/*/overlap.json. base: flags of run_supervised.py, by which it is first trained on the training classes of
    `base_set`, or where that is not given of each set."""

    name: str
    flags: str
    pretraining: str = "nothing"
    frozen: bool = False
    base: str | None = None
    base_set: str | None = None


@dataclasses.dataclass(frozen=True)
class Entry:
    """A method on a backbone, tested in one place: its runs by seed, at the learning rate that was chosen."""

    place: str
    backbone: str
    method: str
    runs: Mapping[int, Run]
    rate: float | None
    validations: Mapping[float, float]
    seconds: Sequence[float]
    memory: int

    @property
    def results(self) -> Mapping[str, Any]:
        return next(iter(self.runs.values())).results

    @cached_property
    def accuracies(self) -> list[tuple[float, float]]:
        """At each way and shot that was tested, the mean over seeds and the half-width of its 95 % interval by Student's t,
        in %; infinite of one seed."""
        by_size = zip(*(run.results["sizes"] for run in self.runs.values()), strict=True)
        return [mean_interval([size["accuracy"] for size in of_seeds]) for of_seeds in by_size]

    @property
    def accuracy(self) -> tuple[float, float]:
        """At the first of them."""
        return self.accuracies[0]

    @cached_property
    def by_class(self) -> dict[str, tuple[int, int]]:
        """How many queries of each class were asked and recognised, of all seeds; by the plain name of the class."""
        true, right = (
            np.concatenate([getattr(run.answers, n) for run in self.runs.values()]) for n in ("true", "right")
        )
        labels, places = np.unique(true, return_inverse=True)
        asked, recognised = (np.bincount(places.ravel(), weights).astype(int) for weights in (None, right.ravel()))
        return {plain_name(label): (int(a), int(r)) for label, a, r in zip(labels, asked, recognised, strict=True)}

    @cached_property
    def over_classes(self) -> tuple[float, float]:
        """95 % interval when classes are drawn again, in %."""
        return class_interval(np.array([100 * right / asked for asked, right in self.by_class.values()]))

    def without(self, classes: Iterable[str]) -> float:
        """Accuracy in % over the queries of all other classes; nan where there are none."""
        left_out = {plain_name(label) for label in classes}
        asked, right = np.sum([n for label, n in self.by_class.items() if label not in left_out] or [(0, 0)], axis=0)
        return float(100 * right / asked) if asked else float("nan")

    def tested(self, classes: Iterable[str]) -> list[str]:
        """Those of the classes that were asked for."""
        return [label for label in classes if plain_name(label) in self.by_class]

    @property
    def marks(self) -> list[str]:
        """What is to be known of any of its runs."""
        return list(dict.fromkeys(mark for run in self.runs.values() for mark in run.test.marks))


def plain_name(label: str) -> str:
    """A class's letters and digits, in which the spellings of folders and lists agree."""
    return re.sub(r"[^a-z0-9]", "", label.casefold())


class Comparison(NamedTuple):
    """An entry beside another one on the same episodes. p: corrected by Holm for all comparisons of its kind on the board."""

    difference: Difference
    p: float
    same_sign: bool
    """Whether the difference has one sign at every seed."""

    @property
    def is_clear(self) -> bool:
        return self.p < CLEAR and self.same_sign

    @property
    def mark(self) -> str:
        """▲ or ▼ where it is clear."""
        return "" if not self.is_clear else "▲" if self.difference.points > 0 else "▼"


class Reversal(NamedTuple):
    """Two methods of which one is clearly better on one axis, and clearly worse on another."""

    better: str
    worse: str
    axis: str
    points: float
    other: str
    other_points: float


@dataclasses.dataclass(frozen=True)
class Board:
    """All that the page tells. missing: why runs are not there, by their names."""

    title: str
    note: str
    budget: str
    control: str
    rates: Sequence[float]
    seeds: Sequence[int]
    places: Sequence[Place]
    backbones: Sequence[Backbone]
    methods: Sequence[str]
    method_flags: Mapping[str, str]
    entries: Sequence[Entry]
    missing: Mapping[str, str]
    command: str
    versions: Mapping[str, str]

    @cached_property
    def by_place(self) -> dict[tuple[str, str, str], Entry]:
        return {(entry.backbone, entry.place, entry.method): entry for entry in self.entries}

    def entry(self, backbone: str, place: str, method: str) -> Entry | None:
        return self.by_place.get((backbone, place, method))

    @cached_property
    def against_control(self) -> dict[tuple[str, str, str], Comparison]:
        """Each entry beside the control of its backbone and place, corrected for all of them together."""
        pairs = {
            key: (entry, control)
            for key, entry in self.by_place.items()
            if entry.method != self.control
            and (control := self.entry(entry.backbone, entry.place, self.control)) is not None
            and entry.runs.keys() & control.runs.keys()
        }
        differences = {key: paired(*pair) for key, pair in pairs.items()}
        return corrected(differences)

    def places_of(self, backbone: str) -> list[Place]:
        """Those with an entry."""
        return [p for p in self.places if any((backbone, p.name, method) in self.by_place for method in self.methods)]

    def methods_in(self, backbone: str, place: str) -> list[Entry]:
        """The best first."""
        found = [self.by_place[backbone, place, m] for m in self.methods if (backbone, place, m) in self.by_place]
        return sorted(found, key=lambda entry: -entry.accuracy[0])

    @property
    def axes(self) -> list[str]:
        return list(dict.fromkeys(place.axis for place in self.places if place.axis is not None))

    def on_axis(self, axis: str) -> list[Place]:
        """Its sets by level, the first of them the set that is at level 0 of every axis."""
        easiest = [p for p in self.places if p.axis is None and p.made_up and p.trained_on is None][:1]
        return easiest + sorted((p for p in self.places if p.axis == axis), key=lambda p: p.level)

    def reversals(self, backbone: str) -> list[Reversal]:
        """Pairs of methods whose order is clearly another on another axis, one for each pair, the largest.

        Of each axis all levels but 0 are taken together; the correction is for all pairs on all axes.
        """
        found: dict[tuple[str, str, str], dict[int, np.ndarray]] = {}
        for axis in self.axes:
            places = [place.name for place in self.on_axis(axis) if place.level]
            for a, b in combinations(self.methods, 2):
                both = [(self.entry(backbone, place, a), self.entry(backbone, place, b)) for place in places]
                parts = [paired(one, other) for one, other in both if one is not None and other is not None]
                seeds = {seed for part in parts for seed in part}
                if seeds:
                    found[axis, a, b] = {s: np.concatenate([part[s] for part in parts if s in part]) for s in seeds}
        clear = {key: c.difference.points for key, c in corrected(found).items() if c.is_clear}
        reversals = []
        for a, b in combinations(self.methods, 2):
            points = {axis: clear[axis, a, b] for axis in self.axes if (axis, a, b) in clear}
            if points and min(points.values()) < 0 < max(points.values()):
                up, down = max(points, key=lambda axis: points[axis]), min(points, key=lambda axis: points[axis])
                reversals.append(Reversal(a, b, up, points[up], down, points[down]))
        return sorted(reversals, key=lambda r: -min(r.points, -r.other_points))


def paired(entry: Entry, other: Entry) -> dict[int, np.ndarray]:
    """By seed, the differences in percentage points in each episode. Raises UserError where these are not the same ones."""
    differences = {}
    for seed in sorted(entry.runs.keys() & other.runs.keys()):
        run, control = entry.runs[seed], other.runs[seed]
        if run.test.episodes != control.test.episodes:
            raise UserError(
                f"{run.name} and {control.name} were not tested on the same episodes: remove one, to run it again"
            )
        differences[seed] = run.accuracies - control.accuracies
    return differences


def corrected(differences: Mapping[Any, Mapping[int, np.ndarray]]) -> dict[Any, Comparison]:
    """Comparisons of differences by seed. The p values are over all episodes and corrected for their number."""
    together = {key: np.concatenate(list(parts.values())) for key, parts in differences.items()}
    p_values = holm([p_value(values) for values in together.values()])
    return {
        key: Comparison(
            Difference.of(values), p, len({np.sign(part.mean()) for part in differences[key].values()}) == 1
        )
        for (key, values), p in zip(together.items(), p_values, strict=True)
    }


# ---------------------------------------------------------------------------------------------------------------------
# Tables


def number(value: float, digits: int = 1) -> str:
    """With a real minus, and as little as can be of what is not known."""
    return "–" if not np.isfinite(value) else f"{value:.{digits}f}".replace("-", "−")


def plus_minus(mean: float, error: float) -> str:
    return f"{number(mean)} ± {number(error)}" if np.isfinite(error) else number(mean)


def accuracy_cell(board: Board, entry: Entry | None) -> str:
    """Mean and interval over seeds, with a mark where it is clearly above or below the control."""
    if entry is None:
        return "–"
    comparison = board.against_control.get((entry.backbone, entry.place, entry.method))
    return f"{plus_minus(*entry.accuracy)} {comparison.mark if comparison else ''}".strip()


class Matrix(NamedTuple):
    """Accuracies of all methods in all places on one backbone. entries: of the cells, row by row."""

    table: list[Row]
    entries: list[list[Entry | None]]


def matrix(board: Board, backbone: str) -> Matrix:
    """Methods below each other and places beside; the other way round where there are many places."""
    places = [place.name for place in board.places_of(backbone)]
    methods = [m for m in board.methods if any((backbone, p, m) in board.by_place for p in places)]
    turned = len(places) > MANY
    rows, columns = (places, methods) if turned else (methods, places)
    entries = [[board.entry(backbone, r if turned else c, c if turned else r) for c in columns] for r in rows]
    shown = dict(zip(places, map(readable, places), strict=True))
    head = ["set" if turned else "method", *(shown.get(column, column) for column in columns)]
    cells = [[accuracy_cell(board, entry) for entry in row] for row in entries]
    return Matrix([head, *([shown.get(r, r), *row] for r, row in zip(rows, cells, strict=True))], entries)


DETAILS = ("over classes, %", "minus control", "p (Holm)", "rate", "time, s", "memory, MB", "chosen on", "marks")


def details(board: Board, backbone: str, place: str) -> list[Row]:
    """One place on one backbone, the best method first. What follows the accuracies is of the first way and shot."""
    entries, rows = board.methods_in(backbone, place), []
    sizes = [f"{size['way']}-way {size['shot']}-shot, %" for size in entries[0].results["sizes"]]
    for entry in entries:
        comparison = board.against_control.get((backbone, place, entry.method))
        difference = (
            [plus_minus(comparison.difference.points, comparison.difference.ci95), shown_p(comparison.p)]
            if comparison
            else ["control" if entry.method == board.control else "–", ""]
        )
        low, high = entry.over_classes
        rows.append([
            entry.method, accuracy_cell(board, entry), *(plus_minus(*found) for found in entry.accuracies[1:]),
            f"{number(low)} to {number(high)}", *difference,
            "–" if entry.rate is None else f"{entry.rate:g}", number(median(entry.seconds)) if entry.seconds else "–",
            f"{entry.memory / 1e6:.0f}" if entry.memory else "–", entry.results["selected_on"], ", ".join(entry.marks),
        ])  # fmt: skip
    return [["method", *sizes, *DETAILS], *rows]


def shown_p(p: float) -> str:
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def shown_count(parameters: int | None) -> str:
    return "–" if parameters is None else f"{parameters:,}"


def yes(holds: bool | None) -> str:
    return "–" if holds is None else "yes" if holds else "no"


def methods_table(board: Board) -> list[Row]:
    """What each method is: how many weights were trained on each backbone, and what it needs beside the frames of a query."""
    names = [backbone.name for backbone in board.backbones]
    rows = []
    for method in board.methods:
        own = [entry for entry in board.entries if entry.method == method]
        if not own:
            continue
        first = {entry.backbone: entry.results.get("trained_parameters") for entry in reversed(own)}
        rows.append([
            f"{method} (control)" if method == board.control else method, yes(own[0].results.get("inductive")),
            yes(own[0].results.get("uses_class_text")), *(shown_count(first.get(name)) for name in names),
            " ".join(map(str, own[0].runs)), board.method_flags.get(method, ""),
        ])  # fmt: skip
    return [
        ["method", "inductive", "uses class names", *(f"trained on {name}" for name in names), "seeds", "flags"],
        *rows,
    ]


def trust_table(board: Board) -> list[Row]:
    """What the weights of each backbone have seen of each place: pretraining, test classes in it, accuracy without these."""
    table = [
        [
            "backbone",
            "set",
            "pretraining",
            "test classes in it",
            f"{board.control}, all / others, %",
            "best, all / others, %",
        ]
    ]
    for backbone in board.backbones:
        places = board.places_of(backbone.name)
        if drawn := [place for place in places if place.made_up]:
            names = f"all {len(drawn)} that are made up" if len(drawn) > 1 else readable(drawn[0].name)
            table.append([backbone.name, names, pretraining_of(backbone), "made up", "–", "–"])
        for place in places:
            if place.made_up:
                continue
            entries = board.methods_in(backbone.name, place.name)
            control = board.entry(backbone.name, place.name, board.control)
            known = place.overlap.get(backbone.pretraining)
            row = [backbone.name, readable(place.name), pretraining_of(backbone)]
            if known is None or not is_of(entries[0], place.classes):
                reason = "not listed" if known is None else "its classes have other names"
                table.append([*row, reason, "–", "–"])
                continue
            both = [
                f"{number(e.accuracy[0])} / {number(e.without(known))}" if e else "–" for e in (control, entries[0])
            ]
            shared = f"{len(entries[0].tested(known))} of {len(entries[0].by_class)}"
            table.append([*row, shared, both[0], f"{entries[0].method}: {both[1]}"])
    return table


def is_of(entry: Entry, classes: Sequence[str]) -> bool:
    """Whether all classes that were asked for are among these."""
    return entry.by_class.keys() <= {plain_name(label) for label in classes}


def pretraining_of(backbone: Backbone) -> str:
    known = {"kinetics400": "Kinetics-400", "imagenet1k": "ImageNet-1k"}
    if backbone.base is not None:
        return f"training classes of {'the set' if backbone.base_set is None else readable(backbone.base_set)}"
    return known.get(backbone.pretraining, backbone.pretraining)


def tuning_table(board: Board) -> list[Row]:
    """Validation accuracy in % at each rate, the chosen one marked; without methods that have nothing to train."""
    head = ["set", "backbone", "method", *(f"{rate:g}" for rate in board.rates)]
    rows = [
        [
            readable(entry.place), entry.backbone, entry.method,
            *(f"{number(entry.validations.get(rate, np.nan))}{' ✓' if rate == entry.rate else ''}" for rate in board.rates),
        ]
        for entry in board.entries
        if entry.validations and all(place.trained_on is None for place in board.places if place.name == entry.place)
    ]  # fmt: skip
    return [head, *rows]


def notes(board: Board) -> list[str]:
    """How the numbers are to be read."""
    seeds = len(board.seeds)
    made_up = [place.name for place in board.places if place.made_up]
    lines = [
        f"Accuracies are means over {seeds} {'seed' if seeds == 1 else 'seeds'}, "
        + ("± is" if seeds > 1 else "without")
        + " the 95 % interval over seeds by Student's t. A seed decides initial weights, training tasks and test episodes; "
        "where nothing is trained, the episodes alone.",
        f"Differences are from {board.control} on the same backbone and the same episodes, ± is their 95 % interval over all "
        "paired episodes of all seeds. ▲ and ▼: above or below it with p < 0.05 over these episodes, corrected by Holm for "
        f"all {len(board.against_control)} differences on this page, and with one sign at every seed. It is about these "
        "trained weights on these classes: how far new trainings and new classes would move it, the other intervals tell.",
        "Over classes: 95 % interval when the test classes are drawn again.",
        "The learning rate of each method and set is the best on the validation split at the first seed, of "
        f"{', '.join(f'{rate:g}' for rate in board.rates)}, and then used for all seeds. Test splits have no part in it.",
        "Inductive: every query is answered by itself. Trained: how many weights a run trained.",
        "Time is the median over seeds of a run's training, validation and test on the machine below, in which several runs "
        "may have shared its cores; memory the most that a run took.",
    ]
    if made_up:
        lines.insert(0, f"{'All' if len(made_up) == len(board.places) else 'Some'} of these sets are made up "
                        "(data_prep/make_demo_set.py): they show what a method can and cannot see, not its rank on real "
                        "actions.")  # fmt: skip
    return lines


def order_sentence(board: Board, backbone: str) -> str:
    """On how many axes the order of methods differs beyond chance."""
    reversals = board.reversals(backbone)
    axes = {axis for r in reversals for axis in (r.axis, r.other)}
    if not reversals:
        return (
            "No two methods clearly change their order from one axis to another (paired episodes, Holm's correction)."
        )
    examples = "; ".join(
        f"{r.better} is {number(r.points)} points above {r.worse} on {readable(r.axis)} and {number(-r.other_points)} below "
        f"on {readable(r.other)}"
        for r in reversals[:4]
    )
    return (
        f"The order of methods differs beyond chance on {len(axes)} of {len(board.axes)} axes ({len(reversals)} pairs of "
        f"methods; paired episodes of an axis, Holm's correction): {examples}."
    )


def by_reason(board: Board) -> dict[str, list[str]]:
    """The runs that are missing, by what is said of them."""
    runs: dict[str, list[str]] = {}
    for name, why in board.missing.items():
        runs.setdefault(why, []).append(name)
    return runs


# ---------------------------------------------------------------------------------------------------------------------
# The picture


def profile_figure(board: Board, backbone: str, columns: int = 5) -> Figure:
    """For each axis the accuracy by level, a line for each method with its interval over all episodes. Where there are more
    methods than colours, those of one colour have markers of their own."""
    axes = board.axes
    rows, columns = -(-len(axes) // columns), min(columns, len(axes))
    figure = new_figure(0.6 + 2.35 * columns, 0.75 + 2.3 * rows)
    panels = figure.subplots(rows, columns, sharey=True, squeeze=False).ravel()
    for panel, axis in zip(panels, axes, strict=False):
        places = board.on_axis(axis)
        levels = [place.level for place in places]
        for number_, method in enumerate(board.methods):
            entries = [board.entry(backbone, place.name, method) for place in places]
            there = [(level, entry) for level, entry in zip(levels, entries, strict=True) if entry is not None]
            if not there:
                continue
            offset = 0.05 * (number_ - (len(board.methods) - 1) / 2)
            errors = [Difference.of(np.concatenate([r.accuracies for r in e.runs.values()])).ci95 for _, e in there]
            is_control = method == board.control
            again, colour = divmod(number_, len(SERIES))
            panel.errorbar(
                [level + offset for level, _ in there], [e.accuracy[0] for _, e in there], errors,
                color=LIGHT["quiet"] if is_control else SERIES[colour], marker="osD^"[again % 4], markersize=3.2,
                linewidth=1.3, elinewidth=1, linestyle="--" if is_control else "-", label=method,
            )  # fmt: skip
        way = next(iter(board.entries)).results["way"]
        panel.axhline(100 / way, color=LIGHT["line"], linewidth=1, zorder=0)
        panel.set(title=readable(axis), xticks=levels)
        panel.grid(axis="y")
    for panel in panels[len(axes) :]:
        panel.set_visible(False)
    panels[0].set_ylabel("accuracy, %")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=max(3, int(2.6 * columns)), fontsize=8)
    figure.supxlabel("level of difficulty; 0 is the demo set on every axis", fontsize=8, color=LIGHT["quiet"])
    return figure


# ---------------------------------------------------------------------------------------------------------------------
# The files


def write_board(board: Board, folder: Path) -> list[Path]:
    """Writes the page in all its forms into a folder. Returns the files."""
    if not board.entries:
        reasons = "; ".join(f"{name}: {why}" for name, why in list(board.missing.items())[:3])
        raise UserError(f"no run of the board is finished, so there is no page yet ({reasons})")
    texts = {"leaderboard.html": html(board), "leaderboard.md": markdown(board), "leaderboard.tex": latex(board)}
    for name, text in texts.items():
        with atomic_write(folder / name) as file:
            file.write(text.encode())
    write_csv(folder / "leaderboard.csv", COLUMNS, csv_rows(board))
    files = [*(folder / name for name in texts), folder / "leaderboard.csv"]
    if board.axes:
        for backbone in board.backbones:
            path = folder / ("profile.png" if len(board.backbones) == 1 else f"profile_{backbone.name}.png")
            with house_style():
                save_picture(profile_figure(board, backbone.name), path)
            files.append(path)
    return files


def html(board: Board) -> str:
    with house_style():
        profiles = {
            backbone.name: svg(profile_figure(board, backbone.name), "accuracy by axis and level")
            for backbone in board.backbones
            if board.axes
        }
    return page(
        "leaderboard.html.j2",
        board=board,
        matrices={backbone.name: matrix(board, backbone.name) for backbone in board.backbones},
        profiles=profiles,
        sentences={backbone.name: order_sentence(board, backbone.name) for backbone in board.backbones if board.axes},
        details={
            (backbone.name, place.name): details(board, backbone.name, place.name)
            for backbone in board.backbones
            for place in board.places_of(backbone.name)
        },
        methods=methods_table(board),
        trust=trust_table(board),
        tuning=tuning_table(board),
        notes=notes(board),
        missing=by_reason(board),
        shade=shade,
        readable=readable,
        pretraining_of=pretraining_of,
    )


def shade(entry: Entry | None) -> int:
    """How much of the accent colour lies behind an accuracy, in %: none at chance."""
    if entry is None:
        return 0
    chance = 100 / entry.results["way"]
    return round(55 * max(0.0, (entry.accuracy[0] - chance) / (100 - chance)) ** 1.5)


def sections(board: Board) -> Iterator[tuple[str, list[Row]]]:
    """Headings with their tables, as Markdown and LaTeX have them."""
    for backbone in board.backbones:
        yield f"Accuracy on {backbone.name}, %", matrix(board, backbone.name).table
    yield "The methods", methods_table(board)
    yield "What the weights have seen", trust_table(board)
    for backbone in board.backbones:
        for place in board.places_of(backbone.name):
            yield f"{readable(place.name)} on {backbone.name}", details(board, backbone.name, place.name)
    if board.rates and len(tuning := tuning_table(board)) > 1:
        yield "Validation accuracy by learning rate, %", tuning


def markdown(board: Board) -> str:
    parts = [f"# {board.title}", board.note, f"Budget: `{board.budget}`", *notes(board)]
    parts += [order_sentence(board, backbone.name) for backbone in board.backbones if board.axes]
    for heading, table in sections(board):
        parts += [f"## {heading}", markdown_table(table)]
    if board.missing:
        parts += ["## Not there", "\n".join(f"- {why}: {', '.join(names)}" for why, names in by_reason(board).items())]
    parts += [f"`{board.command}`", ", ".join(f"{name} {version}" for name, version in board.versions.items())]
    return "\n\n".join(part for part in parts if part) + "\n"


def latex(board: Board) -> str:
    """Each table with what its numbers are of."""
    tables = [f"% {heading}\n{latex_table(table, [board.title])}" for heading, table in sections(board)]
    return "\n\n".join(tables) + "\n"


COLUMNS = ("set", "backbone", "method", "way", "shot", "seeds", "accuracy", "seeds_ci95", "class_interval_low",
           "class_interval_high", "minus_control", "minus_control_ci95", "p_holm", "clear", "learning_rate", "seconds",
           "memory_bytes", "trained_parameters", "inductive", "uses_class_text", "selected_on", "pretraining",
           "overlapping_classes", "accuracy_without_them", "trained_on", "tasks", "marks")  # fmt: skip


def csv_rows(board: Board) -> Iterator[dict[str, Any]]:
    """A row for each entry and each way and shot that it was tested at; what is of the first size alone stands there."""
    backbones = {backbone.name: backbone for backbone in board.backbones}
    places = {place.name: place for place in board.places}
    for key, entry in board.by_place.items():
        place, backbone = places[entry.place], backbones[entry.backbone]
        comparison = board.against_control.get(key)
        known = place.overlap.get(backbone.pretraining) if is_of(entry, place.classes) else None
        first = {
            "class_interval_low": entry.over_classes[0], "class_interval_high": entry.over_classes[1],
            "minus_control": comparison.difference.points if comparison else "",
            "minus_control_ci95": comparison.difference.ci95 if comparison else "",
            "p_holm": comparison.p if comparison else "", "clear": comparison.is_clear if comparison else "",
            "overlapping_classes": "; ".join(entry.tested(known)) if known is not None else "",
            "accuracy_without_them": entry.without(known) if known is not None else "",
        }  # fmt: skip
        for index, (size, (mean, error)) in enumerate(zip(entry.results["sizes"], entry.accuracies, strict=True)):
            yield {
                "set": entry.place, "backbone": entry.backbone, "method": entry.method, "way": size["way"],
                "shot": size["shot"], "seeds": " ".join(map(str, entry.runs)), "accuracy": mean,
                "seeds_ci95": error if np.isfinite(error) else "", **(first if index == 0 else {}),
                "learning_rate": "" if entry.rate is None else entry.rate,
                "seconds": median(entry.seconds) if entry.seconds else "", "memory_bytes": entry.memory or "",
                "trained_parameters": entry.results.get("trained_parameters", ""),
                "inductive": entry.results.get("inductive", ""), "uses_class_text": entry.results.get("uses_class_text", ""),
                "selected_on": entry.results["selected_on"], "pretraining": pretraining_of(backbone),
                "trained_on": place.trained_on or "", "tasks": entry.results["tasks"], "marks": "; ".join(entry.marks),
            }  # fmt: skip
