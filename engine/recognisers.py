"""Recognisers from files: checkpoints of run_supervised.py, and what other code bases have released."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from backbones.recogniser import Recogniser
from backbones.released import released
from backbones.weight_files import read_content
from backbones.weights import load_weights, state_dict_in
from engine.supervised_settings import class_names_of, read_names, recogniser_in
from utils import UserError, checked_checkpoint, is_checkpoint


def read_recogniser(path: Path, args: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """A checkpoint of this library, or in its form a recogniser that another code base has released, with a sentence about
    what was taken of that."""
    content = read_content(path)
    found = recogniser_in(content, path)
    if found is None:
        if args.dataset and args.class_names:
            raise UserError(f"--class_names is for lists, and {path} knows its classes: leave it out")
        return checked_checkpoint(content, path), ""
    classes = class_names_of(found, args)
    model, report = found.recogniser(vars(args))
    checkpoint = {
        "args": {}, "progress": {"steps_done": None}, "model": model.state_dict(), "classes": classes, "untrained": False
    }  # fmt: skip
    return checkpoint, found.sentence(report)


def tune_from(model: Recogniser, path: Path, classes: Sequence[str], args: argparse.Namespace) -> tuple[bool, str]:
    """Takes the backbone of another recogniser, and its classifier where the classes are the same.

    Returns whether `model` now has a trained classifier, and a sentence about what was taken.
    """
    content = read_content(path)
    state = state_dict_in(content, str(path))
    found = None if is_checkpoint(content) else released(content, path)
    if found:
        found.check(args.backbone, args.backbone_options)
    report = load_weights(getattr(model.backbone, "net", model.backbone), state, str(path))
    if found:
        # Lists with other classes have names of their own; those for videos in folders can only be the file's.
        names = class_names_of(found, args) if args.class_names and args.dataset else read_names(args)
        same = names == list(classes) and found.fits(model.classifier)
        classifier: dict[str, Any] = {"weight": found.weight, "bias": found.bias}
    else:
        if args.dataset and args.class_names:
            raise UserError(f"--class_names is for lists, and for released recognisers, not for {path}: leave it out")
        same = isinstance(content, dict) and content.get("classes") == list(classes)
        classifier = {name: state.get(f"classifier.{name}") for name in ("weight", "bias")}
    if same:
        model.classifier.load_state_dict(classifier)
    taken = found.sentence(report) if found else report
    sentence = f"{taken}; {'with its classifier' if same else 'with a new classifier'}"
    return same and (found is not None or not is_untrained(content)), sentence


def is_untrained(checkpoint: dict[str, Any]) -> bool:
    """Whether the classifier in it was never trained, here or elsewhere."""
    return bool(checkpoint.get("untrained", checkpoint["progress"]["steps_done"] == 0))


def check_untrained(source: str, args: argparse.Namespace) -> None:
    """Raises UserError where numbers of an untrained classifier are not what was asked for."""
    if not args.untrained:
        raise UserError(
            f"{source} would test a classifier that nothing has trained, which answers at random: train it, give a trained "
            "recogniser of the same classes with --tune_from, or add --untrained to have its numbers, marked so"
        )
