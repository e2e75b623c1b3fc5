"""Draws the training curves of one run or several: loss, accuracy, validation with its 95 % interval, learning rate.

python scripts/plot_log.py runs/trx                            writes training_curves.png
python scripts/plot_log.py runs/tsn runs/trx -o curves.png     runs on top of each other
python scripts/plot_log.py runs/trx --smooth 20                the mean of 20 rows, each row faint behind it
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

# Python puts the folder of a script on its path, not the project's.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from clips.video_split import SPLITS
from engine.command_line import Parser, arguments, check_output, exit_code
from results.drawing import PICTURE_SUFFIXES, save_picture
from results.marks import after, marks
from results.style import LIGHT, cycled_series, house_style
from scripts.compare import short_names
from utils import LOG_COLUMNS, UserError, printable, read_csv, read_json


class Curves(NamedTuple):
    """Rows of log.csv. training: (rows, 4) of tasks, loss, accuracy, learning rate; validation: (rows, 3) of tasks,
    accuracy, half-width of its interval, infinite of a single episode; both accuracies in percent.

    marks: what is to be known of the validations, see results/marks.py; episodes: of each of them, if that is known.
    """

    training: np.ndarray
    validation: np.ndarray
    marks: list[str]
    episodes: int | None


def read_log(folder: Path) -> Curves:
    """The curves in a run folder. Raises UserError when there are none, or what is there is no log of run.py."""
    path = folder / "log.csv"
    try:
        rows = list(read_csv(path, LOG_COLUMNS))
        if odd := [row["split"] for row in rows if row["split"] not in SPLITS]:
            raise ValueError(f"there is no split {odd[0]}")
        training = [row for row in rows if row["split"] == "train"]
        validation = [row for row in rows if row["split"] != "train"]
        figures = (
            numbers(training, ("tasks", "loss", "accuracy", "learning_rate")),
            numbers(validation, ("tasks", "accuracy", "ci95")),
        )
    except (OSError, ValueError) as error:
        raise UserError(f"could not read {path} ({error}): expected the folder of a run (-c of run.py)") from error
    if not rows:
        raise UserError(f"{path} has no row yet: wait for the first --print_freq tasks of the training")
    return Curves(*figures, *validated_how(folder, {row["split"] for row in validation}))


def numbers(rows: Sequence[dict[str, str]], columns: Sequence[str]) -> np.ndarray:
    """Those columns of rows, (rows, columns). Raises ValueError naming a cell that holds no number."""
    for row in rows:
        for column in columns:
            value = as_number(row[column])
            if math.isnan(value) or (math.isinf(value) and column != "ci95"):
                raise ValueError(f"{column} is '{row[column]}' after {row['tasks']} tasks, expected a number")
    return np.array([[float(row[column]) for column in columns] for row in rows]).reshape(-1, len(columns))


def as_number(text: str) -> float:
    """NaN of what is none."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def validated_how(folder: Path, splits: set[str]) -> tuple[list[str], int | None]:
    """The marks of a run's validations, which were on these splits, and their number of episodes, if that is known."""
    path = folder / "args.json"
    settings = read_json(path) if path.exists() else {}
    if not isinstance(settings, dict):
        raise UserError(f"{path} holds no settings: expected the args.json that run.py has written, restore it")
    episodes = settings.get("num_val_tasks")
    labels = marks({**settings, "selected_on": "test" if "test" in splits else "nothing"})
    return labels, episodes if isinstance(episodes, int) else None


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
        for name, colour, log in zip(map(printable, short_names(runs)), cycled_series(), logs, strict=False):
            tasks, losses, accuracies, rates = log.training.T
            for axes, values in ((loss_axes, losses), (accuracy_axes, accuracies)):
                if smooth > 1:
                    axes.plot(tasks, values, color=colour, linewidth=0.8, alpha=0.3)
                label = after(name, log.marks)
                axes.plot(tasks, running_mean(values, smooth), color=colour, linewidth=1.4, label=label)
            val_tasks, val_accuracies, errors = log.validation.T
            bars = np.where(np.isinf(errors), np.nan, errors)
            accuracy_axes.errorbar(
                val_tasks, val_accuracies, bars, color=colour, fmt="o--", markersize=5, capsize=3, linewidth=0.9
            )
            rate_axes.step(tasks, rates, where="pre", color=colour, linewidth=1.4)
        loss_axes.set(title="Loss")
        accuracy_axes.set(title="Accuracy, %")
        rate_axes.set(title="Learning rate", xlabel="training tasks", yscale="log")
        rate_axes.yaxis.set_major_formatter("{x:g}")
        rate_axes.minorticks_off()
        accuracy_axes.plot([], [], "-", color=LIGHT["quiet"], label="training")
        accuracy_axes.errorbar([], [], [], fmt="o--", color=LIGHT["quiet"], capsize=3, label=validation_label(logs))
        handles, labels = accuracy_axes.get_legend_handles_labels()
        accuracy_axes.legend(handles[len(runs) :], labels[len(runs) :], loc="lower right")
        if len(runs) > 1 or any(log.marks for log in logs):
            figure.legend(*loss_axes.get_legend_handles_labels(), loc="outside upper center", ncols=4)
        for axes in (loss_axes, accuracy_axes, rate_axes):
            axes.grid()
            axes.tick_params(labelcolor=LIGHT["quiet"])
        save_picture(figure, path)


def validation_label(logs: Sequence[Curves]) -> str:
    """What the points are, with their number of episodes where that is known."""
    known = sorted({log.episodes for log in logs if log.episodes is not None})
    on = " to ".join(f"{number:,}" for number in known[:1] + known[1:][-1:])
    return f"validation{f' on {on} episodes' if on else ''}, 95 % interval"


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
