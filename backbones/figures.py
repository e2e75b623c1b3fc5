"""What every backbone costs and gives for one clip of the input it was made for.

figures.csv holds the figures of the whole table, as measuring them takes some seconds; a test compares the two. After a
change, or for a new backbone:

    python -m backbones.figures
"""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from backbones import BACKBONES, build_backbone

TABLE = Path(__file__).with_name("figures.csv")


@dataclasses.dataclass(frozen=True)
class Figures:
    """parameters and macs are those of the backbone without a classifier, for a clip of `frames` square frames of
    `size`.

    macs: multiply-accumulates of convolutions and matrix products, as the IBM study counts them; not of normalisation,
    pooling and sums. steps: S, feature_dim: D.
    """

    frames: int
    size: int
    parameters: int
    macs: int
    steps: int
    feature_dim: int


def measure(name: str) -> Figures:
    """The figures of a backbone with default options, found on the meta device: nothing is computed or allocated."""
    frames = BACKBONES[name].frames
    with torch.device("meta"):
        backbone = build_backbone(name, seq_len=frames).eval()
        size = backbone.input_spec.size
        with FlopCounterMode(display=False) as counter, torch.inference_mode():
            steps = backbone(torch.empty(1, frames, 3, size, size)).shape[1]
    return Figures(
        frames=frames,
        size=size,
        parameters=sum(parameter.numel() for parameter in backbone.parameters()),
        macs=counter.get_total_flops() // 2,
        steps=steps,
        feature_dim=backbone.feature_dim,
    )


def figures() -> dict[str, Figures]:
    """The figures of every backbone of the table, as figures.csv has them; of one that is not in it yet, measured."""
    with open(TABLE, newline="") as file:
        written = {
            row.pop("name"): Figures(**{key: int(value) for key, value in row.items()}) for row in csv.DictReader(file)
        }
    return {name: written.get(name) or measure(name) for name in BACKBONES}


if __name__ == "__main__":
    columns = ["name", *(field.name for field in dataclasses.fields(Figures))]
    with open(TABLE, "w", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(columns)
        rows.writerows([name, *dataclasses.astuple(measure(name))] for name in BACKBONES)
