"""Ten ways in which the demo set gets harder, each in four levels: the axes of the graded sets.

An axis changes one thing of a film and nothing else: the class, the action and all that the demo set draws at random stay
those of the same video at level 0, because an axis draws from a random stream of its own. The stream is the same at all of its
levels, so that a higher level is the same change, only more of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy import ndarray as Array

from data_prep.demo.film import Film


def sweep_order(directions: str, num_frames: int, rng: np.random.Generator) -> Array:
    """The frames 0..T-1 in the order in which sweeps through the film show them, each once: (T,).

    A sweep runs forwards (+) or backwards (-) through its share of the frames. Of as many frames in a row as there are sweeps
    each gets one, dealt at random, so that no sweep is ahead of another.
    """
    count = len(directions)
    sweep_of = np.concatenate([rng.permutation(count) for _ in range(0, num_frames, count)])[:num_frames]
    sweeps = (np.flatnonzero(sweep_of == sweep)[:: 1 if way == "+" else -1] for sweep, way in enumerate(directions))
    return np.concatenate(list(sweeps))


def order(film: Film, directions: str) -> None:
    """The action runs several times, forwards and backwards; in the pair's other class the other way round.

    With as many sweeps forwards as backwards ("+-"), each state of the action comes as often before any other as after it, in
    both classes: which of two comes first tells nothing, only longer sequences do. By "+--+", the Thue-Morse sequence, not even
    three do.
    """
    film.order = sweep_order(directions, film.num_frames, film.rng)


def speed(film: Film, most: float) -> None:
    """The pace differs from video to video: slow ones show a part of the action, fast ones repeat it."""
    pace = most ** film.uniform(-1, 0.5)
    time = pace * np.linspace(0, 1, film.num_frames) + film.uniform(0, 1) * max(0, 1 - pace)
    film.p = np.interp(np.mod(time, 1), np.linspace(0, 1, film.num_frames), film.p)


def offset(film: Film, empty: float) -> None:
    """The action fills a part of the clip, anywhere; before and after it the place is empty."""
    time = np.linspace(0, 1, film.num_frames)
    since = time - film.uniform(0, empty)
    film.p = np.interp(since, (1 - empty) * time, film.p)
    film.shown = ((since >= 0) & (since <= 1 - empty)).astype(np.float32)


def clutter(film: Film, contrast: float) -> None:
    """Coloured waves run through the background."""
    time = np.linspace(0, 1, film.num_frames)[:, None, None]
    for _ in range(3):
        direction, waves = film.direction(), film.uniform(3, 9)
        drift = film.direction() + film.uniform(2, 8) * time
        wave = np.sin(waves * (np.cos(direction) * film.x + np.sin(direction) * film.y) + drift)
        film.frames += contrast * wave[..., None].astype(np.float32) * film.rng.uniform(-1, 1, 3).astype(np.float32)
    np.clip(film.frames, 0, 1, out=film.frames)


def camera(film: Film, reach: float) -> None:
    """The camera pans at an even speed in any direction, and shakes."""
    direction, time = film.direction(), np.linspace(-1, 1, film.num_frames)
    shake = film.rng.normal(0, 0.15, (2, film.num_frames))
    x, y = reach * (time * np.array([[np.cos(direction)], [np.sin(direction)]]) + shake)
    film.x = film.x + x[:, None, None].astype(np.float32)
    film.y = film.y + y[:, None, None].astype(np.float32)


def viewpoint(film: Film, most: float) -> None:
    """The plane is seen askew: turned a little, and up to `most` times narrower in any direction.

    What moves down moves down still, if less so: narrowing turns no direction by more than asin((most - 1) / (most + 1)), and
    with the turn that is less than a right angle.
    """
    turn, narrower, direction = film.uniform(-0.7, 0.7) * (1 - 1 / most), most ** film.uniform(0, 1), film.direction()
    seen = (film.x + 1j * film.y) * np.exp(1j * direction)
    plane = (narrower * seen.real + 1j * seen.imag) * np.exp(1j * (turn - direction))
    film.x, film.y = plane.real.astype(np.float32), plane.imag.astype(np.float32)


def scale(film: Film, most: float) -> None:
    """Everything is up to `most` times smaller, anywhere in the picture."""
    smaller = most ** film.uniform(0, 1)
    film.pixel *= smaller
    film.x = smaller * film.x + (smaller - 1) * film.uniform(-0.7, 0.7)
    film.y = smaller * film.y + (smaller - 1) * film.uniform(-0.7, 0.7)


def distractor(film: Film, count: int) -> None:
    """Other things cross the picture, behind the action."""
    for _ in range(count):
        direction, across = film.direction(), film.uniform(-0.8, 0.8)
        along = film.uniform(0.3, 1.2) * np.linspace(-1, 1, film.num_frames) + film.uniform(-0.4, 0.4)
        x = along * np.cos(direction) - across * np.sin(direction)
        y = along * np.sin(direction) + across * np.cos(direction)
        film.paint(film.look(), x, y, film.uniform(0.14, 0.22))


def occlusion(film: Film, count: int) -> None:
    """Boards stand between the camera and the action."""
    for _ in range(count):
        x, y = film.rng.uniform(-0.9, 0.9, 2)
        film.paint(film.look("box"), x, y, film.uniform(0.2, 0.4), film.uniform(0.2, 0.4), film.direction())


def background_bias(film: Film, share: float) -> None:
    """In training, `share` of a class's videos are filmed at a place of its own; elsewhere places tell nothing."""
    if film.rng.random() < share and film.home is not None:
        film.rng = film.home
        film.place = film.draw_place()


Stage = Literal["view", "place", "action", "front"]
"""How far a film has come: nothing is painted; the place is; the action begins; all is painted."""


class Axis(NamedTuple):
    """What gets harder: at its stage a film is handed to `change`, with one of `amounts` (levels 1 to 4)."""

    change: Callable[[Film, Any], None]
    stage: Stage
    amounts: Sequence[float | str]


AXES: dict[str, Axis] = {
    "order": Axis(order, "view", ("++", "++-", "+-", "+--+")),
    "speed": Axis(speed, "action", (2, 4, 8, 16)),
    "offset": Axis(offset, "action", (0.2, 0.35, 0.5, 0.65)),
    "clutter": Axis(clutter, "place", (0.1, 0.2, 0.35, 0.6)),
    "camera": Axis(camera, "view", (0.25, 0.5, 0.75, 1.0)),
    "occlusion": Axis(occlusion, "front", (1, 2, 3, 5)),
    "distractor": Axis(distractor, "place", (1, 2, 4, 7)),
    "viewpoint": Axis(viewpoint, "view", (2, 3, 5, 8)),
    "scale": Axis(scale, "view", (1.5, 2.5, 4, 6)),
    "background_bias": Axis(background_bias, "view", (0.5, 0.8, 0.95, 1.0)),
}
LEVELS = range(5)


@dataclass
class Change:
    """An axis at one of its levels, 1 to 4, as it befalls one video."""

    axis: Axis
    level: int
    rng: np.random.Generator

    def __call__(self, film: Film, stage: Stage) -> None:
        if stage == self.axis.stage:
            film.rng, own = self.rng, film.rng
            self.axis.change(film, self.axis.amounts[self.level - 1])
            film.rng = own


def unchanged(film: Film, stage: Stage) -> None:
    """Level 0 of every axis."""
