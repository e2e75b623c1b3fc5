"""Draws the training curves of one run or several: loss, accuracy, validation with its 95 % interval, learning rate.

python scripts/plot_log.py runs/trx                            writes training_curves.png
python scripts/plot_log.py runs/tsn runs/trx -o curves.png     runs on top of each other
python scripts/plot_log.py runs/trx --smooth 20                the mean of 20 rows, each row faint behind it
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

# Python puts the folder of a script on its path, not the project's.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from engine.command_line import Parser, arguments, check_output, exit_code
from results.drawing import PICTURE_SUFFIXES, save_picture
from results.style import LIGHT, cycled_series, house_style
from scripts.compare import short_names
from utils import UserError


class Curves(NamedTuple):
    """Rows of log.csv. training: (rows, 4) of tasks, loss, accuracy, learning rate; validation: (rows, 3) of tasks,
    accuracy, half-width of its interval; both accuracies in percent."""

    training: np.ndarray
    validation: np.ndarray


def read_log(folder: Path) -> Curves:
    """The curves in a run folder. Raises UserError when there are none."""
    path = folder / "log.csv"
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        training = [row for row in rows if row["split"] == "train"]
        validation = [row for row in rows if row["split"] != "train"]
        curves = Curves(
            numbers(training, ("tasks", "loss", "accuracy", "learning_rate")),
            numbers(validation, ("tasks", "accuracy", "ci95")),
        )
    except (OSError, KeyError, ValueError) as error:
        raise UserError(f"could not read {path} ({error}): expected the folder of a run (-c of run.py)") from error
    if not rows:
        raise UserError(f"{path} has no row yet: wait for the first --print_freq tasks of the training")
    return curves


def numbers(rows: Sequence[dict[str, str]], columns: Sequence[str]) -> np.ndarray:
    return np.array([[float(row[column]) for column in columns] for row in rows]).reshape(-1, len(columns))


def running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Mean of each value and the `window - 1` before it; of fewer at the beginning."""
    sums = np.cumsum(np.concatenate([[0.0], values]))
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(0, ends - window)
    return (sums[ends] - sums[starts]) / (ends - starts)


def draw_curves(runs: Sequence[Path], smooth: int, path: Path) -> None:
    """One above the other: loss, accuracy with validation, learning rate, over finished tasks."""
    from matplotlib.figure import Figure

    logs = [read_log(folder) for folder in runs]
    with house_style():
        figure = Figure((8, 7), layout="constrained")
        loss_axes, accuracy_axes, rate_axes = figure.subplots(3, 1, sharex=True, height_ratios=[3, 4, 1.4])
        for name, colour, (training, validation) in zip(short_names(runs), cycled_series(), logs, strict=False):
            tasks, losses, accuracies, rates = training.T
            for axes, values in ((loss_axes, losses), (accuracy_axes, accuracies)):
                if smooth > 1:
                    axes.plot(tasks, values, color=colour, linewidth=0.8, alpha=0.3)
                axes.plot(tasks, running_mean(values, smooth), color=colour, linewidth=1.4, label=name)
            val_tasks, val_accuracies, errors = validation.T
            accuracy_axes.errorbar(
                val_tasks, val_accuracies, errors, color=colour, fmt="o--", markersize=5, capsize=3, linewidth=0.9
            )
            rate_axes.step(tasks, rates, where="pre", color=colour, linewidth=1.4)
        loss_axes.set(title="Loss")
        accuracy_axes.set(title="Accuracy, %")
        rate_axes.set(title="Learning rate", xlabel="training tasks", yscale="log")
        rate_axes.yaxis.set_major_formatter("{x:g}")
        rate_axes.minorticks_off()
        accuracy_axes.plot([], [], "-", color=LIGHT["quiet"], label="training")
        accuracy_axes.errorbar(
            [], [], [], fmt="o--", color=LIGHT["quiet"], capsize=3, label="validation, 95 % interval"
        )
        handles, labels = accuracy_axes.get_legend_handles_labels()
        accuracy_axes.legend(handles[len(runs) :], labels[len(runs) :], loc="lower right")
        if len(runs) > 1:
            figure.legend(*loss_axes.get_legend_handles_labels(), loc="outside upper center", ncols=4)
        for axes in (loss_axes, accuracy_axes, rate_axes):
            axes.grid()
            axes.tick_params(labelcolor=LIGHT["quiet"])
        save_picture(figure, path)


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN", type=Path, help="run folders (-c of run.py)")
    parser.add_argument("-o", "--out", metavar="FILE", type=Path, default=Path("training_curves.png"),
                        help="the picture: .png, .svg or .pdf")  # fmt: skip
    parser.add_argument(
        "--smooth", type=int, default=1, least=1, metavar="ROWS", help="rows of log.csv that a point is the mean of"
    )
    return parser.parse_args(argv)


def plot(args: argparse.Namespace) -> None:
    check_output(args.out, "--out", PICTURE_SUFFIXES)
    draw_curves(args.runs, args.smooth, args.out)
    print(f"wrote {args.out}")


def main(argv: Sequence[str] | None = None) -> int:
    return exit_code(lambda: plot(parse_args(arguments(argv))))


if __name__ == "__main__":
    sys.exit(main())
