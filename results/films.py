"""An answered query as a small film: its frames in a green frame where the answer is right, in a red one where it is wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from results.drawing import readable
from results.style import LIGHT
from utils import atomic_write

SIDE, BORDER, CAPTION = 288, 8, 58  # pixels
SECONDS = 2.4  # that the film lasts, whatever its number of frames


def write_answer_film(path: Path, frames: np.ndarray, *, true: str, answer: str, probability: float) -> None:
    """A GIF of frames uint8 (T, H, W, 3), with the answer and its probability, and where that is wrong the true class."""
    right = true == answer
    colour = LIGHT["right" if right else "wrong"]
    font, small = ImageFont.load_default(16), ImageFont.load_default(13)
    pictures = []
    for frame in frames:
        picture = Image.new("RGB", (SIDE + 2 * BORDER, SIDE + 2 * BORDER + CAPTION), colour)
        height = round(SIDE * frame.shape[0] / frame.shape[1])
        picture.paste(Image.fromarray(frame).resize((SIDE, height)).crop((0, 0, SIDE, SIDE)), (BORDER, BORDER))
        pen = ImageDraw.Draw(picture)
        above = captioned("", readable(answer), f"  {100 * probability:.0f} %", font)
        below = "right" if right else captioned("wrong: it is ", readable(true), "", small)
        pen.text((BORDER + 4, SIDE + 2 * BORDER + 4), above, "white", font)
        pen.text((BORDER + 4, SIDE + 2 * BORDER + 29), below, "white", small)
        pictures.append(picture)
    with atomic_write(path) as file:
        pictures[0].save(
            file,
            format="GIF",
            save_all=True,
            append_images=pictures[1:],
            duration=round(1000 * SECONDS / len(frames)),
            loop=0,
        )


def captioned(before: str, name: str, after: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """The three in one line, with as many letters of the name as fit below a film."""
    kept = name
    while font.getlength(before + kept + after) > SIDE:
        name = name[:-1]
        kept = f"{name.rstrip()} …"
    return before + kept + after
