"""What several tests of run_supervised.py say together, or one of them by fewer views; nothing is run again.

    python scripts/fuse_scores.py runs/tdn_8f runs/tdn_16f                         the mean of two models' logits
    python scripts/fuse_scores.py runs/rgb runs/grey --fusion probabilities --weights 1 0.5
    python scripts/fuse_scores.py runs/tdn_8f --crops 2 --clips 0-4                one crop of each of five clips
    python scripts/fuse_scores.py runs/a/scores.npz runs/a/scores_1.npz --json fused.json --csv classes.csv --out fused.npz

A test leaves scores.npz in its run folder: the logits of every view of every video, and the videos' names, by which those of
several files are matched. They have to be the same videos with the same labels and classes. The views of a file are fused
first, and then the files, by their weights.

Crops and clips are counted from 0. Of three crops 0 and 1 are the ends of the longer side and 2 is the centre; of five, 4 is.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

# Python puts the folder of a script on its path, not the project's.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from engine.command_line import Parser, arguments, check_output, exit_code
from results.marks import CHOSEN_ON_THESE, after
from results.terminal import Row, terminal_table
from results.view_scores import (
    FUSIONS,
    ViewScores,
    average_precisions,
    class_accuracies,
    fuse,
    in_top,
    probabilities,
    save_predictions,
    summary,
)
from scripts.compare import short_names, with_interval
from utils import UserError, write_csv, write_json

MOST_VIEWS = 10_000


@dataclasses.dataclass(frozen=True)
class Member:
    """A file of scores: its weight among the others, which views of it were taken, and what they say, (V, C).

    marks: what is to be known of its test, see results/marks.py.
    """

    name: str
    path: Path
    weight: float
    views: str
    protocol: str
    marks: list[str]
    scores: np.ndarray


@dataclasses.dataclass(frozen=True)
class Ensemble:
    """Members that have the videos of the first one, in its order. labels: (V, L), as those of ViewScores."""

    members: list[Member]
    videos: list[str]
    classes: list[str]
    labels: np.ndarray
    multi_label: bool
    fusion: str

    @functools.cached_property
    def scores(self) -> np.ndarray:
        """What the members say together, (V, C)."""
        scores = np.stack([member.scores for member in self.members], axis=1)
        return fuse(scores, self.fusion, [member.weight for member in self.members])

    @property
    def protocol(self) -> str:
        """How the scores came about, in words."""
        parts = [
            f"{member.weight:g} x {member.name} ({member.views} views: {member.protocol})" for member in self.members
        ]
        return f"mean of {self.fusion} of {' + '.join(parts)}"

    @property
    def marks(self) -> list[str]:
        """What is to be known of any member is to be known of what they say together."""
        return list(dict.fromkeys(mark for member in self.members for mark in member.marks))

    @property
    def has_labels(self) -> bool:
        return bool((self.labels >= 0).any())

    def summary_of(self, scores: np.ndarray) -> dict[str, Any]:
        """Accuracies of scores (V, C)."""
        return summary(scores, self.labels, multi_label=self.multi_label)

    def order_of(self, scores: ViewScores, path: Path) -> np.ndarray:
        """Where the ensemble's videos stand in `scores`, (V,). Raises UserError where they are not the same."""
        first = self.members[0].path if self.members else path
        if scores.classes != self.classes:
            pairs = zip(scores.classes, self.classes, strict=False)
            differ = next((f", '{one}' in the place of '{other}'" for one, other in pairs if one != other), "")
            raise UserError(
                f"{path} has {len(scores.classes)} classes{differ}, {first} has {len(self.classes)}: expected the same, in "
                "the same order, of one data set"
            )
        place = {video: place for place, video in enumerate(scores.videos)}
        if len(place) < len(scores.videos):
            raise UserError(f"{path} has a video twice, and videos are matched by name: expected a list with each once")
        absent, beside = (
            sorted(set(one).difference(other)) for one, other in ((self.videos, place), (place, self.videos))
        )
        if absent or beside:
            named = f"'{absent[0]}' is only in {first}" if absent else f"'{beside[0]}' is only in {path}"
            raise UserError(
                f"{path} lacks {len(absent)} video(s) of {first} and has {len(beside)} others ({named}): expected the same "
                "videos, test both on one list"
            )
        order = np.array([place[video] for video in self.videos])
        wrong = np.flatnonzero(
            (label_rows(scores.labels[order], self.labels) != label_rows(self.labels, scores.labels)).any(axis=1)
        )
        if len(wrong):
            own, other = (
                [self.classes[label] for label in labels if label >= 0]
                for labels in (self.labels[wrong[0]], scores.labels[order[wrong[0]]])
            )
            raise UserError(
                f"{path} gives {len(wrong)} video(s) other labels than {first}: '{self.videos[wrong[0]]}' is "
                f"{', '.join(other) or 'without one'}, and {', '.join(own) or 'without one'} there; test both on one list"
            )
        return order


def label_rows(labels: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Rows of labels sorted, and as wide as those of `other` at least, so that rows of the same labels are equal."""
    room = max(0, other.shape[1] - labels.shape[1])
    return np.sort(np.pad(labels, ((0, 0), (0, room)), constant_values=-1), axis=1)


def read_ensemble(
    paths: Sequence[Path],
    weights: Sequence[float],
    fusion: str,
    crops: Sequence[int] | None = None,
    clips: Sequence[int] | None = None,
) -> Ensemble:
    """The scores of files, or of run folders' scores.npz. crops, clips: which views of each to take; unset: all.

    One file's views at a time are in memory. Raises UserError for files that cannot be read or do not belong together.
    """
    ensemble: Ensemble | None = None
    for given, name, weight in zip(paths, short_names(paths), weights, strict=True):
        path = given / "scores.npz" if os.path.isdir(given) else given
        whole = ViewScores.load(path)
        if whole.multi_label and fusion != "logits":
            raise UserError(
                f"videos of {path} have any number of labels, each with a logit of its own: leave out --fusion"
            )
        try:
            taken = whole.views(crops, clips)
        except UserError as error:
            raise UserError(f"{path}: {error}") from error
        if ensemble is None:
            ensemble = Ensemble([], whole.videos, whole.classes, whole.labels, whole.multi_label, fusion)
        scores = taken.fused(fusion)
        if len(paths) > 1:
            scores = scores[ensemble.order_of(whole, path)]
        views = f"{taken.logits.shape[1]} of {whole.logits.shape[1]}"
        ensemble.members.append(Member(name, path, weight, views, whole.protocol, list(whole.marks), scores))
    assert ensemble is not None
    return ensemble


# ---------------------------------------------------------------------------------------------------------------------
# Tables and files


def accuracy_table(ensemble: Ensemble) -> list[Row]:
    """A row for each member, and for several of them one for what they say together."""
    rows = [
        (after(member.name, member.marks), f"{member.weight:g}", member.views, member.scores)
        for member in ensemble.members
    ]
    if len(rows) > 1:
        rows.append((after("fused", ensemble.marks), "", "", ensemble.scores))
    measures = (
        ["mean average precision, %"] if ensemble.multi_label else ["top-1, %", "top-5, %", "mean over classes, %"]
    )
    table = [["scores", "weight", "views", *measures]]
    for name, weight, views, scores in rows:
        found = ensemble.summary_of(scores)
        if ensemble.multi_label:
            cells = [f"{found['mean_average_precision']:.2f}"]
        else:
            cells = [with_interval(found), f"{found['top5']:.2f}", f"{found['mean_class_accuracy']:.2f}"]
        table.append([name, weight, views, *cells])
    return table


def class_rows(ensemble: Ensemble) -> list[dict[str, Any]]:
    """Of every class: its videos, the percentages of them, and the class that they were most often taken for."""
    known = (ensemble.labels >= 0).any(axis=1)
    scores, labels = ensemble.scores[known], ensemble.labels[known]
    counts = np.bincount(labels[labels >= 0], minlength=len(ensemble.classes))
    rows: list[dict[str, Any]] = [
        {"class": label, "videos": int(count)} for label, count in zip(ensemble.classes, counts, strict=True)
    ]
    if ensemble.multi_label:
        for row, precision in zip(rows, average_precisions(scores, labels), strict=True):
            row["average_precision"] = percent(precision)
        return rows
    own, predicted, top5 = labels[:, 0], scores.argmax(axis=1), in_top(scores, labels[:, 0], 5)
    for number, (row, accuracy) in enumerate(zip(rows, class_accuracies(predicted, own, len(rows)), strict=True)):
        answers = np.bincount(predicted[own == number], minlength=len(rows))
        answers[number] = 0
        row["accuracy"] = percent(accuracy)
        if row["videos"]:
            row["top5"] = percent(100 * top5[own == number].mean())
        if answers.any():
            row["taken_for"] = ensemble.classes[int(answers.argmax())]
            row["taken_for_it"] = percent(100 * answers.max() / row["videos"])
    return rows


def percent(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.4f}"


def results(ensemble: Ensemble) -> dict[str, Any]:
    """All numbers, as JSON holds them."""
    return {
        "fusion": ensemble.fusion,
        "members": [
            {
                "name": member.name,
                "path": str(member.path),
                "weight": member.weight,
                "views": member.views,
                "protocol": member.protocol,
                "marks": member.marks,
                **ensemble.summary_of(member.scores),
            }
            for member in ensemble.members
        ],
        "marks": ensemble.marks,
        "fused": ensemble.summary_of(ensemble.scores),
    }


def fused_scores(ensemble: Ensemble) -> ViewScores:
    """The fused scores as those of a test of one view: the same fusion of them alone leaves them as they are."""
    return ViewScores(
        ensemble.videos,
        ensemble.classes,
        ensemble.labels,
        ensemble.scores[:, None],
        ensemble.protocol,
        num_crops=1,
        num_clips=1,
        multi_label=ensemble.multi_label,
        marks=ensemble.marks,
    )


# ---------------------------------------------------------------------------------------------------------------------
# The program


def index_range(word: str) -> range:
    """The numbers that '3' or '0-4' means."""
    first, dash, last = word.partition("-")
    if not first.isdecimal() or (dash and not last.isdecimal()):
        raise argparse.ArgumentTypeError(f"'{word}' is no number and no range of numbers, such as 2 or 0-4")
    numbers = range(int(first), int(last if dash else first) + 1)
    if numbers.stop > MOST_VIEWS:
        raise argparse.ArgumentTypeError(f"'{word}' is beyond the {MOST_VIEWS:,} views that a test can have")
    return numbers


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument("scores", nargs="+", metavar="SCORES", type=Path, help="run folders, or scores.npz of them")
    parser.add_argument(
        "--weights", nargs="+", type=float, above=0, metavar="W", help="of the files, in their order; unset: equal"
    )
    parser.add_argument(
        "--fusion", choices=FUSIONS, default="logits",
        help="what is averaged, over views and then over files; relu_logits: positive logits, as the code of TDN adds up two "
        "models; default: logits",
    )  # fmt: skip
    for kind in ("crops", "clips"):
        parser.add_argument(
            f"--{kind}",
            nargs="+",
            type=index_range,
            metavar="N",
            help=f"take only these {kind}, such as 2 or 0-4; unset: all",
        )
    parser.add_argument("--json", metavar="FILE", type=Path, help="write all accuracies there")
    parser.add_argument("--csv", metavar="FILE", type=Path, help="write a row for each class there")
    parser.add_argument(
        "--predictions", metavar="FILE", type=Path, help="write a row for each video there: its five best classes"
    )
    parser.add_argument(
        "--out", metavar="FILE", type=Path, help="write the fused scores there, an .npz that this program reads"
    )
    return parser.parse_args(argv)


def check_args(args: argparse.Namespace) -> None:
    if args.weights is not None and len(args.weights) != len(args.scores):
        raise UserError(f"--weights has {len(args.weights)} numbers for {len(args.scores)} files: give one for each")
    for flag, suffix in (("json", ".json"), ("csv", ".csv"), ("predictions", ".csv"), ("out", ".npz")):
        if (path := getattr(args, flag)) is not None:
            check_output(path, f"--{flag}", [suffix])


def fuse_scores(args: argparse.Namespace) -> None:
    check_args(args)
    weights = args.weights or [1.0] * len(args.scores)
    crops, clips = (
        None if ranges is None else [number for numbers in ranges for number in numbers]
        for ranges in (args.crops, args.clips)
    )
    ensemble = read_ensemble(args.scores, weights, args.fusion, crops, clips)
    print(f"{len(ensemble.videos):,} videos of {len(ensemble.classes)} classes, mean of {ensemble.fusion}\n")
    if ensemble.has_labels:
        print(f"{terminal_table(accuracy_table(ensemble))}\n")
    else:
        print("none of them has a label, so there is no accuracy\n")
    for member in ensemble.members:
        print(f"{member.name}: {', '.join([member.protocol, *member.marks])}")
    if CHOSEN_ON_THESE in ensemble.marks:
        print(f"\n{CHOSEN_ON_THESE}: too good, a figure to publish is that of final checkpoints (--test_only -m)")
    if args.json:
        write_json(args.json, results(ensemble))
    if args.csv:
        rows = class_rows(ensemble)
        columns = list(dict.fromkeys(column for row in rows for column in row))
        write_csv(args.csv, columns, rows)
    if args.predictions:
        confidence = probabilities(ensemble.scores, multi_label=ensemble.multi_label)
        save_predictions(
            args.predictions, ensemble.videos, ensemble.classes, ensemble.labels, ensemble.scores, confidence
        )
    if args.out:
        fused_scores(ensemble).save(args.out)


def main(argv: Sequence[str] | None = None) -> int:
    return exit_code(lambda: fuse_scores(parse_args(arguments(argv))))


if __name__ == "__main__":
    sys.exit(main())
