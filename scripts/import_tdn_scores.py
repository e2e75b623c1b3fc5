"""Scores that the test programs of TDN and MSN have left, as a file that fuse_scores.py reads.

    python scripts/import_tdn_scores.py result_8f --list val_videofolder.txt --class_names category.txt --out tdn_8f.npz
    python scripts/import_tdn_scores.py result_k400 --list val.txt --list_form video --class_names names.txt --out k400.npz
    python scripts/fuse_scores.py tdn_8f.npz tdn_16f.npz --fusion relu_logits

Those programs write a pickle for each clip and crop, 0_crop0.pkl and on: a list with the logits, (1, classes), and the label
of each video, in the order of their list and without names. So the list is needed, and every label is compared with it.

A pickle is a program, and these come from elsewhere: nothing but NumPy's arrays and numbers is let out of it.
"""

from __future__ import annotations

import argparse
import pickle
import re
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

# Python puts the folder of a script on its path, not the project's.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from clips.list_files import Row, read_class_names, read_list
from engine.command_line import Parser, arguments, check_output, exit_code
from results.view_scores import ViewScores
from utils import UserError

LEAST_FRAMES = (
    8  # their programs pass over shorter videos of lists of the form `frames`, unless they test several models
)

# What pickles of NumPy's arrays and numbers call, under the names of its versions 1 and 2. None of it runs code.
ALLOWED = {
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    *(
        (f"numpy.{core}.{module}", name)
        for core in ("core", "_core")
        for module, name in (("multiarray", "_reconstruct"), ("multiarray", "scalar"), ("numeric", "_frombuffer"))
    ),
}


class ArrayUnpickler(pickle.Unpickler):
    """Reads lists of arrays and numbers. Raises UnpicklingError for anything else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # that NumPy 2 has moved it
            return super().find_class(module, name)


def read_view(path: Path) -> tuple[np.ndarray, list[int]]:
    """Logits float32 (V, C) and labels of one clip and crop. Raises UserError when the file is another."""
    try:
        with open(path, "rb") as file:
            answers = ArrayUnpickler(file).load()
        logits = np.stack([np.asarray(scores, dtype=np.float32).reshape(-1) for scores, _ in answers])
        return logits, [int(label) for _, label in answers]
    except (
        OSError,
        EOFError,
        pickle.UnpicklingError,
        AttributeError,
        ImportError,
        IndexError,
        TypeError,
        ValueError,
    ) as error:
        raise UserError(
            f"could not read {path} ({error}): expected a list of logits and labels, as TDN's test programs write it"
        ) from error


def view_files(folder: Path) -> list[list[Path]]:
    """The files of all views, [crop][clip]. Raises UserError where one is missing."""
    named = {path: re.fullmatch(r"(\d+)_crop(\d+)\.pkl", path.name) for path in folder.glob("*.pkl")}
    places = {(int(match[2]), int(match[1])): path for path, match in named.items() if match}
    if not places:
        raise UserError(f"{folder} holds no 0_crop0.pkl: expected the --output_dir of TDN's test programs")
    crops, clips = (1 + max(numbers) for numbers in zip(*places, strict=True))
    for crop in range(crops):
        for clip in range(clips):
            if (crop, clip) not in places:
                raise UserError(
                    f"{folder} has {crops} crop(s) and {clips} clip(s), but no {clip}_crop{crop}.pkl: test that one again, or "
                    "move incomplete ones away"
                )
    return [[places[crop, clip] for clip in range(clips)] for crop in range(crops)]


def tested_rows(rows: Sequence[Row], form: str, count: int, path: Path) -> list[Row]:
    """The rows of a list that `count` answers are about. Raises UserError where there is another number of them."""
    kept = [row for row in rows if form != "frames" or row.numbers[0] >= LEAST_FRAMES]
    for found in (list(rows), kept):
        if len(found) == count:
            return found
    raise UserError(
        f"{path} names {len(rows)} videos, {len(kept)} of them of {LEAST_FRAMES} frames or more, and {count} were tested: give "
        "the list that they were tested with"
    )


def import_scores(folder: Path, list_path: Path, form: str, class_names: Path | None) -> ViewScores:
    """The scores in `folder`, named by a list. Raises UserError where the labels are not those of the list."""
    files = view_files(folder)
    views = [read_view(path) for crop in files for path in crop]
    labels = views[0][1]
    for path, (logits, own_labels) in zip((path for crop in files for path in crop), views, strict=True):
        if own_labels != labels or logits.shape != views[0][0].shape:
            raise UserError(f"{path} is not about the videos of {files[0][0]}: expected views of one test")
    rows = tested_rows(read_list(list_path, form), form, len(labels), list_path)
    for row, label in zip(rows, labels, strict=True):
        if row.labels != (label,):
            raise UserError(
                f"{list_path} gives '{row.path}' label {row.labels[0]}, and it was tested with {label}: give the list that it "
                "was tested with"
            )
    num_classes = views[0][0].shape[1]
    classes = read_class_names(class_names) if class_names else [str(number) for number in range(num_classes)]
    if len(classes) != num_classes:
        raise UserError(
            f"{class_names} names {len(classes)} classes, and there are logits of {num_classes}: give theirs"
        )
    return ViewScores(
        videos=[row.path for row in rows],
        classes=classes,
        labels=np.array(labels, dtype=np.int64)[:, None],
        logits=np.stack([logits for logits, _ in views], axis=1),
        protocol=f"{folder.name}, by TDN's test programs: {len(files[0])} clip(s) x {len(files)} crop(s)",
        num_crops=len(files),
        num_clips=len(files[0]),
    )


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument("folder", type=Path, help="where the test programs wrote to (their --output_dir)")
    parser.add_argument("--list", required=True, metavar="FILE", type=Path, help="the list of videos that was tested")
    parser.add_argument(
        "--list_form",
        choices=("frames", "video"),
        default="frames",
        help="of its lines: path num_frames label, or path label",
    )
    parser.add_argument(
        "--class_names", metavar="FILE", type=Path, help="one per line; unset: the numbers are the names"
    )
    parser.add_argument("--out", required=True, metavar="FILE", type=Path, help="the .npz to write")
    return parser.parse_args(argv)


def program(args: argparse.Namespace) -> None:
    check_output(args.out, "--out", [".npz"])
    scores = import_scores(args.folder, args.list, args.list_form, args.class_names)
    scores.save(args.out)
    found = scores.summary()
    print(f"{scores.protocol}, {len(scores.videos):,} videos: top-1 {found['accuracy']:.2f} % by the mean of logits")


def main(argv: Sequence[str] | None = None) -> int:
    return exit_code(lambda: program(parse_args(arguments(argv))))


if __name__ == "__main__":
    sys.exit(main())
