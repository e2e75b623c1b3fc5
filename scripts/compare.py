"""Compares runs that were tested on the same episodes: accuracies, paired differences, wins and losses.

    python scripts/compare.py runs/tsn runs/trx runs/otam                  a table in the terminal
    python scripts/compare.py runs/* --against runs/tsn --out comparison   and as Markdown, LaTeX, CSV and a picture

On the same episodes, two methods find the same ones hard: the interval of their paired difference is narrower than their
own intervals suggest. An episode is won by the run that recognises more of its queries. Differences are on the first way
and shot of each run, whose answers predictions.csv holds; accuracies at further sizes are shown where all runs have them.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import sys
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

# Python puts the folder of a script on its path, not the project's.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from engine.command_line import Parser, arguments, exit_code
from results.drawing import save_picture
from results.style import LIGHT, SERIES, house_style
from results.terminal import Row, terminal_table
from utils import UserError, accuracy_interval, atomic_write, printable, read_json, write_csv

# What decides the episodes of a test, and the flag that sets it.
EPISODE_SETTINGS = {
    "split_fingerprint": "--dataset",
    "split": "--dataset",
    "sealed_episodes": "--episodes",
    "seed": "--seed",
    "tasks": "--num_test_tasks",
    "way": "--way_test",
    "shot": "--shot_test",
    "queries_per_class": "--query_per_class_test",
    "noisy_support": "--noisy_support",
}


@dataclasses.dataclass(frozen=True)
class Run:
    """A tested run: results.json, and the accuracy of each episode in percent, (E,)."""

    name: str
    path: Path
    results: dict[str, Any]
    accuracies: np.ndarray

    @property
    def chosen_on_test(self) -> bool:
        return self.results["selected_on"] == "test"

    @property
    def marked_name(self) -> str:
        return f"{self.name} †" if self.chosen_on_test else self.name


@dataclasses.dataclass(frozen=True)
class Difference:
    """How one run does beside another on the same episodes: percentage points, half-width of the 95 % interval, and in
    how many episodes it is better, equal and worse."""

    points: float
    ci95: float
    wins: int
    ties: int
    losses: int

    @classmethod
    def between(cls, run: Run, other: Run) -> Difference:
        paired = run.accuracies - other.accuracies
        points, ci95 = accuracy_interval(paired)
        return cls(points, ci95, int((paired > 0).sum()), int((paired == 0).sum()), int((paired < 0).sum()))

    @property
    def is_clear(self) -> bool:
        """Whether the interval leaves out zero."""
        return abs(self.points) > self.ci95


def read_run(path: Path, name: str) -> Run:
    """A run folder's test. Raises UserError when there is none."""
    if not (path / "results.json").is_file():
        raise UserError(f"{path} holds no results.json: expected the folder of a run that was tested (-c of run.py)")
    run = Run(name, path, read_json(path / "results.json"), episode_accuracies(path / "predictions.csv"))
    if len(run.accuracies) < 2:
        raise UserError(f"{path} was tested on one episode, which tells nothing: raise --num_test_tasks")
    return run


def episode_accuracies(path: Path) -> np.ndarray:
    """Percent of the queries of each episode that were recognised, (E,), from predictions.csv."""
    try:
        with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
            answers = [(int(row["task"]), row["true"] == row["predicted"]) for row in csv.DictReader(file)]
    except (OSError, KeyError, ValueError) as error:
        raise UserError(f"could not read {path} ({error!r}): test the run again with --test_only") from error
    tasks, right = np.array(answers).T
    return 100 * np.bincount(tasks, right) / np.bincount(tasks)


def short_names(paths: Sequence[Path]) -> list[str]:
    """The last parts of the paths, as few as tell them apart."""
    resolved = [path.resolve() for path in paths]
    for depth in range(1, 1 + max(len(path.parts) for path in resolved)):
        names = ["/".join(path.parts[-depth:]) for path in resolved]
        if len(set(names)) == len(names):
            return names
    raise UserError("a run was named twice: expected different run folders")


def check_same_episodes(runs: Sequence[Run]) -> None:
    """Raises UserError naming the runs whose episodes are not those of the first, and what makes them equal."""
    first, *others = runs
    different = [run for run in others if fingerprints(run) != fingerprints(first)]
    if not different:
        return
    reasons = []
    for key, flag in EPISODE_SETTINGS.items():
        values = {str(run.results[key]): None for run in (first, *different)}
        if len(values) > 1:
            reasons.append(f"{key} is {' and '.join(values)} ({flag})")
    names = ", ".join(run.name for run in different)
    raise UserError(
        f"{names} {'was' if len(different) == 1 else 'were'} not tested on the episodes of {first.name}: "
        f"{'; '.join(reasons) or 'they were drawn differently'}; test them again with --test_only and the same data, "
        "--seed, --way_test, --shot_test and --num_test_tasks, or with one --episodes FILE for all"
    )


def fingerprints(run: Run) -> tuple[str, str, int]:
    return run.results["split_fingerprint"], run.results["episodes"], run.results["tasks"]


# ---------------------------------------------------------------------------------------------------------------------
# Tables


def accuracy_table(runs: Sequence[Run], against: Run) -> list[Row]:
    """The main table, the best run first: accuracies, and how each differs from `against`."""
    table = [["run", "accuracy, %", f"minus {against.name}", "win / tie / loss"]]
    for run in sorted(runs, key=lambda run: -run.results["accuracy"]):
        row = [run.marked_name, with_interval(run.results)]
        if run is against:
            row += ["", ""]
        else:
            difference = Difference.between(run, against)
            star = "*" if difference.is_clear else " "
            row += [f"{difference.points:+.2f} ± {difference.ci95:.2f} {star}".replace("-", "−")]
            row += [f"{difference.wins} / {difference.ties} / {difference.losses}"]
        table.append(row)
    return table


def sizes_table(runs: Sequence[Run]) -> list[Row]:
    """Accuracies at every way and shot that all runs were tested at on the same episodes; empty if that is only one."""
    tested = [{(size["way"], size["shot"], size["episodes"]): size for size in run.results["sizes"]} for run in runs]
    common = sorted(key for key in tested[0] if all(key in sizes for sizes in tested))
    if len(common) < 2:
        return []
    rows = [
        [run.marked_name, *(with_interval(sizes[key]) for key in common)]
        for run, sizes in zip(runs, tested, strict=True)
    ]
    return [["run", *(f"{way}-way {shot}-shot" for way, shot, _ in common)], *rows]


def with_interval(result: dict[str, Any]) -> str:
    return f"{result['accuracy']:.2f} ± {result['ci95']:.2f}"


def conditions(run: Run) -> str:
    """What was tested, in words."""
    results = run.results
    return (
        f"{results['way']}-way {results['shot']}-shot, {results['tasks']:,} episodes of "
        f"{printable(Path(results['dataset']).name)}/{results['split']}, chance {100 / results['way']:.0f} %"
    )


def notes(runs: Sequence[Run]) -> list[str]:
    lines = ["± is the 95 % interval over episodes; differences are paired, * excludes zero"]
    if any(run.chosen_on_test for run in runs):
        lines.append("† checkpoint chosen on the test split: comparable with nothing")
    return lines


def markdown_table(table: Sequence[Row]) -> str:
    cells = [[cell.strip().replace("|", "\\|").replace("*", "\\*") for cell in row] for row in table]
    rule = ["---", *["---:"] * (len(table[0]) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in [cells[0], rule, *cells[1:]])


def latex_table(table: Sequence[Row]) -> str:
    """A tabular with the rules of booktabs, for a paper."""
    lines = [" & ".join(latex(cell.strip()) for cell in row) + r" \\" for row in table]
    body = "\n".join([r"\toprule", lines[0], r"\midrule", *lines[1:], r"\bottomrule"])
    return f"\\begin{{tabular}}{{l{'r' * (len(table[0]) - 1)}}}\n{body}\n\\end{{tabular}}"


def latex(text: str) -> str:
    special = {
        "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$",
        "†": r"$\dagger$", "−": "$-$",
        **{letter: f"\\{letter}" for letter in "&%$#_{}"},
    }  # fmt: skip
    return "".join(special.get(letter, letter) for letter in text)


def write_runs(runs: Sequence[Run], path: Path) -> None:
    """A row for each run and size, with all its numbers."""
    columns = ["run", "method", "backbone", "way", "shot", "tasks", "accuracy", "ci95", "class_interval_low",
               "class_interval_high", "calibration_error", "selected_on", "episodes"]  # fmt: skip
    rows = ({"run": run.name, **run.results, **size} for run in runs for size in run.results["sizes"])
    write_csv(path, columns, rows)


def write_differences(runs: Sequence[Run], path: Path) -> None:
    """A row for each pair of runs: the first minus the second."""
    columns = ["run", "minus", *(field.name for field in dataclasses.fields(Difference))]
    pairs = (
        {"run": run.name, "minus": other.name, **dataclasses.asdict(Difference.between(run, other))}
        for run, other in combinations(runs, 2)
    )
    write_csv(path, columns, pairs)


# ---------------------------------------------------------------------------------------------------------------------
# The picture


def draw_comparison(runs: Sequence[Run], against: Run, path: Path) -> None:
    """Left the accuracies, right the differences from one run, with their intervals; the best run on top."""
    from matplotlib.figure import Figure

    ordered = sorted(runs, key=lambda run: run.results["accuracy"])
    colours = {run.name: SERIES[i % len(SERIES)] for i, run in enumerate(runs)}
    with house_style():
        figure = Figure((8.2, 1.3 + 0.36 * len(runs)), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
        for y, run in enumerate(ordered):
            style = {"fmt": "o", "color": colours[run.name], "markersize": 6, "capsize": 3, "elinewidth": 1.6}
            left.errorbar(run.results["accuracy"], y, xerr=run.results["ci95"], **style)
            if run is not against:
                difference = Difference.between(run, against)
                right.errorbar(difference.points, y, xerr=difference.ci95, **style)
        right.axvline(0, color=LIGHT["quiet"], linewidth=0.9)
        left.set_yticks(range(len(ordered)), [run.marked_name for run in ordered])
        left.set(title="Accuracy", xlabel="%", ylim=(-0.6, len(ordered) - 0.4))
        right.set(title=f"Paired difference from {against.name}", xlabel="percentage points")
        for axes in (left, right):
            axes.grid(axis="x")
            axes.spines["left"].set_visible(False)
        figure.supxlabel(f"{conditions(against)}; bars are 95 % intervals", fontsize=8, color=LIGHT["quiet"])
        save_picture(figure, path)


# ---------------------------------------------------------------------------------------------------------------------
# The program


def write_comparison(runs: Sequence[Run], against: Run, folder: Path) -> None:
    """comparison.md, .tex, .csv and .png, and differences.csv with every pair of runs."""
    tables = [table for table in (accuracy_table(runs, against), sizes_table(runs)) if table]
    footer = "\n".join(notes(runs))
    texts = {
        "comparison.md": "\n\n".join(
            [f"**{conditions(against)}**", *map(markdown_table, tables), footer.replace("*", "\\*")]
        ),
        "comparison.tex": "\n\n".join(
            [f"% {conditions(against)}; {footer}".replace("\n", "; "), *map(latex_table, tables)]
        ),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"could not make the folder {folder}: {error.strerror}; give another --out") from error
    for name, text in texts.items():
        with atomic_write(folder / name) as file:
            file.write(f"{text}\n".encode())
    write_runs(runs, folder / "comparison.csv")
    write_differences(runs, folder / "differences.csv")
    draw_comparison(runs, against, folder / "comparison.png")


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN", type=Path, help="run folders (-c of run.py) that were tested")
    parser.add_argument(
        "--against", metavar="RUN", type=Path, help="the run that others are compared with; unset: the first"
    )
    parser.add_argument("--out", metavar="DIR", type=Path, help="folder for the tables as files and the picture")
    return parser.parse_args(argv)


def compare(args: argparse.Namespace) -> None:
    paths = [*args.runs]
    if args.against is not None and args.against.resolve() not in [path.resolve() for path in paths]:
        paths.insert(0, args.against)
    if len(paths) < 2:
        raise UserError("one run cannot be compared: name two or more run folders")
    runs = [read_run(path, printable(name)) for path, name in zip(paths, short_names(paths), strict=True)]
    check_same_episodes(runs)
    place = 0 if args.against is None else [path.resolve() for path in paths].index(args.against.resolve())
    print(f"{conditions(runs[0])}\n\n{terminal_table(accuracy_table(runs, runs[place]))}\n")
    if sizes := sizes_table(runs):
        print(f"{terminal_table(sizes)}\n")
    print("\n".join(notes(runs)))
    if args.out is not None:
        write_comparison(runs, runs[place], args.out)
        print(f"\nwrote comparison.md, .tex, .csv, .png and differences.csv to {args.out}")


def main(argv: Sequence[str] | None = None) -> int:
    return exit_code(lambda: compare(parse_args(arguments(argv))))


if __name__ == "__main__":
    sys.exit(main())
