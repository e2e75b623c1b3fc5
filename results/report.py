"""What a test says, as a page to show and a table to compute with: report.html and results.csv of a run folder.

report.html is one file without links, made from report.html.j2 and report.css: figures are SVG in the page, drawn in colours
that follow the reader's light or dark theme and turn light for printing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from results.charts import (
    FEW,
    class_figure,
    confusion_figure,
    interval_figure,
    reliability_figure,
    sizes_figure,
)
from results.evaluation import Predictions
from results.marks import marks
from results.pages import page
from results.style import house_style, svg
from utils import atomic_write, read_json, write_csv

RESULT_COLUMNS = (
    "method", "backbone", "dataset", "split", "way", "shot", "accuracy", "ci95", "class_interval_low",
    "class_interval_high", "calibration_error", "tasks", "queries_per_class", "noisy_support", "seed", "checkpoint",
    "checkpoint_tasks", "selected_on", "episodes", "precision", "marks",
)  # fmt: skip


def write_report(run_folder: Path, results: Mapping[str, Any], predictions: Predictions) -> None:
    """Writes results.csv, with one row for each way and shot that was tested, and then report.html into a run folder.

    results: the content of results.json; predictions: those of its first size, which the figures show. The folder's
    args.json and command.txt are shown where they exist. Whatever stops a figure or the page is an Exception, and no half
    a page is left; numbers that are to outlive it are to be written before.
    """
    rows = ({**results, **size, "marks": "; ".join(marks(results))} for size in results["sizes"])
    write_csv(run_folder / "results.csv", RESULT_COLUMNS, rows)
    text = report_page(run_folder, results, predictions)
    with atomic_write(run_folder / "report.html") as file:
        file.write(text.encode())


def report_page(run_folder: Path, results: Mapping[str, Any], predictions: Predictions) -> str:
    """The page as text; see `write_report`."""
    with house_style():
        return page(
            "report.html.j2",
            results=results,
            marks=marks(results),
            dataset=Path(results["dataset"]).name,
            sizes=sorted(results["sizes"], key=lambda size: (size["way"], size["shot"])),
            drawings=drawings(results, predictions),
            many_classes=len(np.unique(predictions.true)) > FEW,
            flags=flags_of(run_folder),
            commands=commands_of(run_folder),
        )


def drawings(results: Mapping[str, Any], predictions: Predictions) -> dict[str, Markup]:
    """The page's figures by name; `sizes` only where there are more than one."""
    figures = {
        "intervals": svg(interval_figure(results), "accuracy with its intervals"),
        "classes": svg(class_figure(predictions, results["way"]), "accuracy of each class"),
        "confusion": svg(confusion_figure(predictions), "answers to each class"),
        "reliability": svg(reliability_figure(predictions), "accuracy by confidence"),
    }
    if len(results["sizes"]) > 1:
        figures["sizes"] = svg(sizes_figure(results["sizes"]), "accuracy by ways and shots")
    return figures


def flags_of(run_folder: Path) -> dict[str, str]:
    """The flags in args.json with their values as JSON, in the order of the alphabet; none where there is no such file."""
    path = run_folder / "args.json"
    settings = read_json(path) if path.exists() else {}
    return {f"--{name}": json.dumps(value, ensure_ascii=False) for name, value in sorted(settings.items())}


def commands_of(run_folder: Path) -> list[list[str]]:
    """The words of each command in command.txt, so that lines can be broken between words and not after a flag's dashes."""
    path = run_folder / "command.txt"
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
    return [line.split(" ") for line in lines]
