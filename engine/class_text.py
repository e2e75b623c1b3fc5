"""Class text of a run: features of the names of classes, for methods that compare videos with them.

Letters: C classes of a split, B episodes, K way, P width of class text.
"""

from __future__ import annotations

import argparse
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from backbones.text import PROMPT, ClassText, ReadyText
from clips.video_split import Split
from engine.command_line import Parser
from engine.processes import Processes
from utils import UserError


def open_text(args: argparse.Namespace, folder: Path | None = None) -> ClassText | ReadyText:
    """Where the settings `args` say that class text comes from. folder: where it is kept, if it has to be made."""
    if args.text_features:
        return ReadyText(args.text_features)
    if not args.pretrained_backbone:
        raise UserError(
            f"--method {args.method} compares videos with the names of classes: give weights of CLIP that have a text tower "
            "by -pt, or --text_features FILE"
        )
    activation = args.backbone_options.get("activation", "")
    return ClassText(args.pretrained_backbone, folder=folder, prompts=args.prompt or [PROMPT], activation=activation)


def check_text(features: Tensor, model: Any, args: argparse.Namespace) -> Tensor:
    """The same features (C, P). Raises UserError where the method cannot compare its own with them."""
    wanted, found = model.class_text_width, features.shape[-1]
    if wanted not in (None, found):
        raise UserError(
            f"--method {args.method} compares class text, found {found} wide, with features that are {wanted} wide on backbone "
            f"{args.backbone}: give --backbone_options pool=proj (CLIP), or other --text_features"
        )
    return features


def refuse_text_flags(args: argparse.Namespace, method: str, names: Sequence[str]) -> None:
    """Raises UserError for flags that ask for class text of a method that uses none."""
    for name in names:
        if getattr(args, name):
            raise UserError(f"--{name} has no effect on --method {method}, which uses no class names: leave it out")


def add_text_flags(parser: Parser) -> None:
    """For scripts that show a checkpoint's answers: where class text comes from, if not from where its run had it."""
    parser.add_argument(
        "--text_weights", metavar="FILE",
        help="of a method that uses class names: weights with the text tower; unset: those that its run was started from",
    )  # fmt: skip
    parser.add_argument(
        "--text_features", metavar="FILE", help="of such a method: features of the names, ready-made, in place of that"
    )


def text_of_episode(
    given: argparse.Namespace, settings: argparse.Namespace, model: Any, classes: Sequence[str]
) -> dict[str, Any]:
    """What a method is given of the names of one episode's classes: "class_text" (1, K, P), or nothing.

    given: what `add_text_flags` has added, which goes before the settings of the checkpoint's run.
    """
    if not model.uses_class_text:
        refuse_text_flags(given, settings.method, ["text_weights", "text_features"])
        return {}
    if given.text_weights and given.text_features:
        raise UserError("--text_weights makes the class text that --text_features holds: give one of them")
    changed = argparse.Namespace(**vars(settings))
    if given.text_weights or given.text_features:
        changed.pretrained_backbone, changed.text_features = given.text_weights, given.text_features
    features = check_text(open_text(changed).of(classes), model, changed)
    return {"class_text": features[None].to(next(model.parameters()).device)}


class RunText:
    """Features of all class names of a run's splits, by name, the same in all its processes."""

    def __init__(
        self, args: argparse.Namespace, model: Any, splits: Iterable[Split], processes: Processes, folder: Path
    ) -> None:
        """folder: where features that have to be made are kept, from `keep` on."""
        names = sorted({name for split in splits for name in split.classes})
        self._source = open_text(args, folder) if processes.is_first else None
        own = check_text(self._source.of(names), model, args) if self._source else None
        self._features: Mapping[str, Tensor] = dict(zip(names, processes.gather(own)[0], strict=True))

    def keep(self) -> None:
        if self._source:
            self._source.keep()

    def of(self, split: Split) -> Tensor:
        """Features (C, P) of a split's classes, in its own order."""
        return torch.stack([self._features[name] for name in split.classes])

    def added_to(
        self, calls: Generator[dict[str, Any]], split: Split, *, training: bool = False
    ) -> Generator[dict[str, Any]]:
        """The calls of a split with "class_text" (B, K, P), and in training "base_text" (B, C, P), of all its classes."""
        self.keep()
        of_split = self.of(split)
        with closing(calls):
            for call in calls:
                call["class_text"] = of_split[call["batch_class_list"]]
                if training:
                    call["base_text"] = of_split.expand(len(call["class_text"]), -1, -1)
                yield call


def open_run_text(
    args: argparse.Namespace, model: Any, splits: Mapping[str, Split], processes: Processes, folder: Path
) -> RunText | None:
    """None for a method that uses no class text. Raises UserError where flags ask for some all the same."""
    if model.uses_class_text:
        return RunText(args, model, splits.values(), processes, folder)
    refuse_text_flags(args, args.method, ["prompt", "text_features"])
    return None
