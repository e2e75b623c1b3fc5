"""What the tests of run_supervised.py share: labelled videos, and the flags of a run on them that takes a tenth of a second."""

from __future__ import annotations

import shlex
from pathlib import Path

import torch

# 2 epochs of 3 steps of 4 clips. Flags given after these win.
TINY = shlex.split(
    "--backbone conv4 --backbone_options width=8 --no_pretrained --precision fp32 --img_size 16 --seq_len 3 "
    "--batch_size 4 --epochs 2 -lr 0.1 --num_workers 0 --print_freq 2 --save_freq 0 --views_per_call 5"
)


def listed_run(folder: Path, *flags: object) -> list[str]:
    """The command line of a tiny run without its data set, changed by `flags`."""
    return [*TINY, "-c", str(folder), *map(str, flags)]


def supervised_run(labelled: Path, folder: Path, *flags: object) -> list[str]:
    """The command line of a tiny run on folders of classes, changed by `flags`."""
    return listed_run(folder, "--dataset", labelled, *flags)


def same_weights(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
