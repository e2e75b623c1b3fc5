"""Compares runs that were tested on the same episodes: accuracies, paired differences, wins and losses.

    python scripts/compare.py runs/tsn runs/trx runs/otam                  a table in the terminal
    python scripts/compare.py runs/* --against runs/tsn --out comparison   and as Markdown, LaTeX, CSV and a picture
    python scripts/compare.py runs/tsn/results_1.json runs/trx             an earlier test of a run

On the same episodes, two methods find the same ones hard: the interval of their paired difference is narrower than their
own intervals suggest. An episode is won by the run that recognises more of its queries. Differences are on the first way
and shot of each run, whose answers predictions.csv holds; accuracies at further sizes are shown where all runs have them.

A run may have been tested several times: its earlier tests are results_1.json, results_2.json, ... The latest are compared,
or where these do not fit together, the tests of the runs that do. What makes a test other than an ordinary one stands with
its numbers: noisy support, chosen on test, untrained, sealed episodes, precision.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

# Python puts the folder of a script on its path, not the project's.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from engine.command_line import Parser, arguments, exit_code
from results.drawing import save_picture
from results.marks import CHOSEN_ON_TEST
from results.runs import Difference, Run, Test, common_marks, read_run, read_test
from results.style import LIGHT, SERIES, house_style
from results.tables import latex_table, markdown_table
from results.terminal import Row, terminal_table
from utils import UserError, atomic_write, printable, write_csv

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


def files_of(path: Path) -> list[Path]:
    """The results of the tests in a run folder, the latest first; or the one file that was named. Raises UserError where
    there is none."""
    if os.path.isfile(path):  # unlike pathlib's, it takes what cannot be looked at for no file
        return [path]
    latest = path / "results.json"
    if not os.path.isfile(latest):
        raise UserError(f"{path} holds no results.json: expected the folder of a run that was tested (-c of run.py)")
    numbered = {file: file.stem.removeprefix("results_") for file in path.glob("results_*.json")}
    earlier = sorted((int(number), file) for file, number in numbered.items() if number.isdecimal())
    return [latest, *(file for _, file in reversed(earlier))]


def choose_tests(paths: Sequence[Path], names: Sequence[str]) -> list[Test]:
    """Of each run one test, all on the same episodes: the latest ones if these fit together, else those that do.

    The latest ones also where none fit. Raises UserError where it is open which are meant.
    """
    files = [files_of(path) for path in paths]
    latest = [read_test(own[0]) for own in files]
    if len({test.episodes for test in latest}) == 1:
        return latest
    tests = [[read_test(file) for file in own] for own in files]
    shared = set.intersection(*({test.episodes for test in own} for own in tests))
    fitting = [[test for test in own if test.episodes in shared] for own in tests]
    for name, own in zip(names, fitting, strict=True):
        if len(own) > 1:
            raise UserError(
                f"the latest tests are not of the same episodes, and {name} has {len(own)} that fit those of the others: "
                f"{', '.join(map(str, own))}; name one instead of the folder, as {own[0].path}"
            )
    return [own[0] for own in fitting] if shared else latest


def short_names(paths: Sequence[Path]) -> list[str]:
    """The last parts of the paths, as few as tell them apart."""
    resolved = [Path(os.path.realpath(path)) for path in paths]
    for depth in range(1, 1 + max(len(path.parts) for path in resolved)):
        names = ["/".join(path.parts[-depth:]) for path in resolved]
        if len(set(names)) == len(names):
            return names
    raise UserError("a run was named twice: expected different run folders")


def run_names(paths: Sequence[Path]) -> list[str]:
    """The shortest names of the folders; of the files where two are of one folder."""
    folders = [path.parent if os.path.isfile(path) else path for path in paths]
    return short_names(folders if len(set(map(os.path.realpath, folders))) == len(paths) else paths)


def check_same_episodes(runs: Sequence[Run]) -> None:
    """Raises UserError naming the runs whose episodes are not those of the first, and what makes them equal."""
    first, *others = runs
    different = [run for run in others if run.test.episodes != first.test.episodes]
    if not different:
        return
    reasons = []
    for key, flag in EPISODE_SETTINGS.items():
        values = {str(run.results.get(key)): None for run in (first, *different)}
        if len(values) > 1:
            reasons.append(f"{key} is {' and '.join(values)} ({flag})")
    names = ", ".join(run.name for run in different)
    raise UserError(
        f"{names} {'was' if len(different) == 1 else 'were'} not tested on the episodes of {first.name}: "
        f"{'; '.join(reasons) or 'they were drawn differently'}; test them again with --test_only and the same data, "
        "--seed, --way_test, --shot_test, --num_test_tasks and --noisy_support, or with one --episodes FILE for all"
    )


# ---------------------------------------------------------------------------------------------------------------------
# Tables


def accuracy_table(runs: Sequence[Run], against: Run) -> list[Row]:
    """The main table, the best run first: accuracies, and how each differs from `against`."""
    table = [["run", "accuracy, %", f"minus {against.name}", "win / tie / loss"]]
    for run in sorted(runs, key=lambda run: -run.results["accuracy"]):
        row = [run.labelled(runs), with_interval(run.results)]
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
        [run.labelled(runs), *(with_interval(sizes[key]) for key in common)]
        for run, sizes in zip(runs, tested, strict=True)
    ]
    return [["run", *(f"{way}-way {shot}-shot" for way, shot, _ in common)], *rows]


def with_interval(result: dict[str, Any]) -> str:
    return f"{result['accuracy']:.2f} ± {result['ci95']:.2f}"


def conditions(runs: Sequence[Run], *, of_all_sizes: bool = False) -> str:
    """What was tested, in words, with what is to be known of every run. of_all_sizes: without the first way and shot."""
    results, labels = runs[0].results, common_marks(runs)
    words = [f"{results['tasks']:,} episodes of {printable(Path(results['dataset']).name)}/{results['split']}"]
    if not of_all_sizes:
        words = [f"{results['way']}-way {results['shot']}-shot", *words, f"chance {100 / results['way']:.0f} %"]
    return f"{', '.join(words)}{'; all: ' if labels else ''}{', '.join(labels)}"


def notes(runs: Sequence[Run]) -> list[str]:
    lines = ["± is the 95 % interval over episodes; differences are paired, * excludes zero"]
    if any(CHOSEN_ON_TEST in run.test.marks for run in runs):
        lines.append(f"{CHOSEN_ON_TEST}: the checkpoint is the best on the test split, comparable with nothing")
    return lines


def choices(paths: Sequence[Path], runs: Sequence[Run]) -> list[str]:
    """Which test was taken of each run that has several."""
    counts = [len(files_of(path)) for path in paths]
    return [
        f"{run.name} has {count} tests, this is {run.test}; to choose, name the file"
        for run, count in zip(runs, counts, strict=True)
        if count > 1
    ]


def write_runs(runs: Sequence[Run], path: Path) -> None:
    """A row for each run and size, with all its numbers."""
    columns = ["run", "method", "backbone", "way", "shot", "tasks", "accuracy", "ci95", "class_interval_low",
               "class_interval_high", "calibration_error", "noisy_support", "precision", "checkpoint", "checkpoint_tasks",
               "selected_on", "episodes", "marks", "file"]  # fmt: skip
    rows = (
        {"run": run.name, **run.results, **size, "marks": "; ".join(run.test.marks), "file": run.test.path.name}
        for run in runs
        for size in run.results["sizes"]
    )
    write_csv(path, columns, rows)


def write_differences(runs: Sequence[Run], path: Path) -> None:
    """A row for each pair of runs: the first minus the second."""
    fields = [field.name for field in dataclasses.fields(Difference)]
    pairs = (
        {
            **dataclasses.asdict(Difference.between(run, other)),
            "tasks": len(run.accuracies),
            "run": run.name,
            "marks": "; ".join(run.test.marks),
            "minus": other.name,
            "marks_of_minus": "; ".join(other.test.marks),
        }
        for run, other in combinations(runs, 2)
    )
    write_csv(path, ["run", "minus", *fields, "tasks", "marks", "marks_of_minus"], pairs)


# ---------------------------------------------------------------------------------------------------------------------
# The picture


def draw_comparison(runs: Sequence[Run], against: Run, path: Path) -> None:
    """Left the accuracies, right the differences from one run, with their intervals; the best run on top."""
    from matplotlib.figure import Figure

    ordered = sorted(runs, key=lambda run: run.results["accuracy"])
    labels = [run.labelled(runs, "\n") for run in ordered]
    row = 0.5 if any("\n" in label for label in labels) else 0.36
    colours = {run.name: SERIES[i % len(SERIES)] for i, run in enumerate(runs)}
    with house_style():
        figure = Figure((8.2, 1.3 + row * len(runs)), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
        for y, run in enumerate(ordered):
            style = {"fmt": "o", "color": colours[run.name], "markersize": 6, "capsize": 3, "elinewidth": 1.6}
            left.errorbar(run.results["accuracy"], y, xerr=run.results["ci95"], **style)
            if run is not against:
                difference = Difference.between(run, against)
                right.errorbar(difference.points, y, xerr=difference.ci95, **style)
        right.axvline(0, color=LIGHT["quiet"], linewidth=0.9)
        left.set_yticks(range(len(ordered)), labels)
        left.set(title="Accuracy", xlabel="%", ylim=(-0.6, len(ordered) - 0.4))
        right.set(title=f"Paired difference from {against.name}", xlabel="percentage points")
        for axes in (left, right):
            axes.grid(axis="x")
            axes.spines["left"].set_visible(False)
        figure.supxlabel(f"{conditions(runs)}; bars are 95 % intervals", fontsize=8, color=LIGHT["quiet"])
        save_picture(figure, path)


# ---------------------------------------------------------------------------------------------------------------------
# The program


def write_comparison(runs: Sequence[Run], against: Run, folder: Path) -> None:
    """comparison.md, .tex, .csv and .png, and differences.csv with every pair of runs."""
    tables = {conditions(runs): accuracy_table(runs, against)}
    if sizes := sizes_table(runs):
        tables[conditions(runs, of_all_sizes=True)] = sizes
    remarks = notes(runs)
    markdown = [part for tested, table in tables.items() for part in (f"**{tested}**", markdown_table(table))]
    texts = {
        "comparison.md": "\n\n".join([*markdown, "\n\n".join(remarks).replace("*", "\\*")]),
        "comparison.tex": "\n\n".join(latex_table(table, [tested, *remarks]) for tested, table in tables.items()),
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
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        type=Path,
        help="run folders (-c of run.py) that were tested, or a results.json of one",
    )
    parser.add_argument(
        "--against", metavar="RUN", type=Path, help="the run that others are compared with; unset: the first"
    )
    parser.add_argument("--out", metavar="DIR", type=Path, help="folder for the tables as files and the picture")
    return parser.parse_args(argv)


def compare(args: argparse.Namespace) -> None:
    paths = [*args.runs]
    against = os.path.realpath(args.against or paths[0])
    if against not in map(os.path.realpath, paths):
        paths.insert(0, args.against)
    if len(paths) < 2:
        raise UserError("one run cannot be compared: name two or more run folders")
    names = [printable(name) for name in run_names(paths)]
    runs = [read_run(test, name) for test, name in zip(choose_tests(paths, names), names, strict=True)]
    check_same_episodes(runs)
    place = [os.path.realpath(path) for path in paths].index(against)
    print(f"{conditions(runs)}\n\n{terminal_table(accuracy_table(runs, runs[place]))}\n")
    if sizes := sizes_table(runs):
        print(f"{terminal_table(sizes)}\n")
    print("\n".join([*notes(runs), *choices(paths, runs)]))
    if args.out is not None:
        write_comparison(runs, runs[place], args.out)
        print(f"\nwrote comparison.md, .tex, .csv, .png and differences.csv to {args.out}")


def main(argv: Sequence[str] | None = None) -> int:
    return exit_code(lambda: compare(parse_args(arguments(argv))))


if __name__ == "__main__":
    sys.exit(main())
