"""What every backbone costs and gives for one clip of the input it was made for.

figures.csv holds the figures of the whole table, as measuring them takes some seconds; a test compares the two. After a
change, or for a new backbone:

    python -m backbones.figures
"""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path
from typing import Any

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


def measure(name: str, *, frames: int | None = None, size: int | None = None, **options: Any) -> Figures:
    """The figures of a backbone, found on the meta device: nothing is computed or allocated.

    frames, size: of the clip, in the place of those it was made for. options: keywords of the backbone's builder.
    """
    frames = frames or BACKBONES[name].frames
    with torch.device("meta"):
        backbone = build_backbone(name, seq_len=frames, **options).eval().requires_grad_(False)
        size = size or backbone.input_spec.size
        with FlopCounterMode(display=False) as counter, torch.inference_mode():
            _, steps, feature_dim = backbone(torch.empty(1, frames, 3, size, size)).shape
    return Figures(
        frames=frames,
        size=size,
        parameters=sum(parameter.numel() for parameter in backbone.parameters()),
        macs=counter.get_total_flops() // 2,
        steps=steps,
        feature_dim=feature_dim,
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


def print_backbones() -> None:
    """The table's names with what they take and give, and what some lack here."""
    print("backbones (--backbone): clip, parameters, multiply-accumulates, steps x width of the features")
    for name, cost in figures().items():
        print(
            f"  {name:18}{cost.frames:4} x {cost.size:3} px{cost.parameters / 1e6:9.2f} M{cost.macs / 1e9:9.1f} G"
            f"{cost.steps:6} x {cost.feature_dim:<6}{BACKBONES[name].lacks}".rstrip()
        )
