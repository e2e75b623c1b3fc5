"""The actions of the demo set: each paints on a film what happens as p (T,) rises from 0 to 1.

Its reversal is the pair's other class.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy import ndarray as Array

from data_prep.demo.film import Film, blend, steps


def move(film: Film, p: Array, degrees: float) -> None:
    """Something crosses the picture."""
    angle = np.radians(degrees)
    along, across = film.uniform(0.6, 0.8) * (2 * p - 1), film.uniform(-0.5, 0.5)
    x = np.cos(angle) * along - np.sin(angle) * across
    y = np.sin(angle) * along + np.cos(angle) * across
    film.paint(film.look(), x, y, film.uniform(0.18, 0.3))


def grow(film: Film, p: Array) -> None:
    x, y = film.rng.uniform(-0.3, 0.3, 2)
    film.paint(film.look(), x, y, film.uniform(0.1, 0.15) * film.uniform(4, 6) ** p)


def widen(film: Film, p: Array) -> None:
    x, y = film.rng.uniform(-0.2, 0.2, 2)
    film.paint(film.look(), x, y, blend(0.06, film.uniform(0.6, 0.8), p), film.uniform(0.25, 0.4))


def turn(film: Film, p: Array) -> None:
    """The hand of a dial turns."""
    x, y = film.rng.uniform(-0.25, 0.25, 2)
    radius, angle = film.uniform(0.45, 0.65), film.direction() + film.uniform(2.5, 4) * p
    film.paint(film.look("disc")._replace(texture="plain"), x, y, radius)
    hand = film.look("box")._replace(colours=film.frames[0, 0, :2])  # as if one saw the background through it
    x, y = x + 0.45 * radius * np.cos(angle), y + 0.45 * radius * np.sin(angle)
    film.paint(hand, x, y, 0.5 * radius, 0.14 * radius, angle)


def circle(film: Film, p: Array) -> None:
    """Something goes round something else."""
    x, y = film.rng.uniform(-0.15, 0.15, 2)
    angle, radius = film.direction() + film.uniform(2.5, 4) * p, film.uniform(0.55, 0.7)
    film.paint(film.look(), x, y, film.uniform(0.2, 0.3))
    film.paint(film.look(), x + radius * np.cos(angle), y + radius * np.sin(angle), film.uniform(0.14, 0.2))


def approach(film: Film, p: Array) -> None:
    """Something small comes up to something big."""
    direction = film.direction()
    x, y = -0.4 * np.cos(direction), -0.4 * np.sin(direction)
    big, small = film.uniform(0.3, 0.38), film.uniform(0.13, 0.18)
    away = blend(film.uniform(1.1, 1.3), big + small, p)
    film.paint(film.look(), x, y, big)
    film.paint(film.look(), x + away * np.cos(direction), y + away * np.sin(direction), small)


def enter(film: Film, p: Array) -> None:
    """Something comes in over an edge of the picture, as far as its middle."""
    direction, away, across = film.direction(), blend(1.5, 0, p), film.uniform(-0.2, 0.2)
    x = away * np.cos(direction) - across * np.sin(direction)
    y = away * np.sin(direction) + across * np.cos(direction)
    film.paint(film.look(), x, y, film.uniform(0.28, 0.4))


def stack(film: Film, p: Array) -> None:
    """Blocks come down one after the other on to a pile."""
    blocks = 4
    x, height, width = film.uniform(-0.4, 0.4), 0.2, film.uniform(0.25, 0.4)
    for level, fallen in enumerate(steps(p, blocks)):
        y = blend(-1.3, 0.95 - height * (2 * level + 1), fallen)
        film.paint(film.look("box"), x + film.uniform(-0.06, 0.06), y, width, height)


def gather(film: Film, p: Array) -> None:
    """Scattered dots draw together."""
    x, y = film.rng.uniform(-0.2, 0.2, 2)
    look, dots = film.look("disc"), 8
    for direction in film.direction() + np.arange(dots) * 2 * np.pi / dots:
        away = blend(film.uniform(0.7, 1.1), film.uniform(0.05, 0.2), p)
        film.paint(look, x + away * np.cos(direction), y + away * np.sin(direction), 0.1)


def fall_apart(film: Film, p: Array) -> None:
    """A sheet breaks into tiles that fly off, turning."""
    look, tilt, tile = film.look("box"), film.direction(), film.uniform(0.14, 0.18)
    for row in (-2, 0, 2):
        for column in (-2, 0, 2):
            spread = tile * blend(1, film.uniform(1.8, 2.6), p)
            x = spread * (column * np.cos(tilt) - row * np.sin(tilt))
            y = spread * (column * np.sin(tilt) + row * np.cos(tilt))
            film.paint(look, x, y, tile, angle=tilt + film.uniform(-2, 2) * p)


def open_curtains(film: Film, p: Array) -> None:
    """Two curtains are drawn aside from something."""
    x, y = film.rng.uniform(-0.1, 0.1, 2)
    width, height = film.uniform(0.65, 0.85), film.uniform(0.5, 0.75)
    film.paint(film.look(), x, y, 0.7 * height)
    curtain, cloth = film.look("box"), blend(width / 2, 0.06, p)
    for side in (-1, 1):
        film.paint(curtain, x + side * (width - cloth), y, cloth, height)


def hide(film: Film, p: Array) -> None:
    """Something slips behind a wall."""
    direction, wall = film.direction(), film.uniform(0.35, 0.45)
    x, y = -0.4 * np.cos(direction), -0.4 * np.sin(direction)
    away = blend(film.uniform(0.9, 1.1), 0, p)
    film.paint(film.look(), x + away * np.cos(direction), y + away * np.sin(direction), film.uniform(0.2, 0.26))
    film.paint(film.look("box"), x, y, wall, 0.6, direction)


def fold(film: Film, p: Array) -> None:
    """One half of a sheet is turned over on to the other; its back has another colour."""
    x, y = film.rng.uniform(-0.1, 0.1, 2)
    tilt, width, height = film.direction(), film.uniform(0.3, 0.38), film.uniform(0.35, 0.55)
    front, back, lift = film.look("box"), film.look("box"), np.cos(np.pi * p)
    for look, side, opacity in ((front, -np.ones_like(p), 1), (front, lift, lift > 0), (back, lift, lift <= 0)):
        middle = side * width
        film.paint(look, x + middle * np.cos(tilt), y + middle * np.sin(tilt), abs(middle), height, tilt, opacity)


def fade_in(film: Film, p: Array) -> None:
    x, y = film.rng.uniform(-0.35, 0.35, 2)
    film.paint(film.look(), x, y, film.uniform(0.35, 0.55), opacity=p)


def fill(film: Film, p: Array) -> None:
    """Something liquid rises in a glass."""
    x, y = film.rng.uniform(-0.2, 0.2, 2)
    width, height, wall = film.uniform(0.3, 0.5), film.uniform(0.5, 0.7), 0.06
    level = height * p
    film.paint(film.look("box")._replace(texture="shaded"), x, y + height - level, width, level)
    glass = film.look("box")._replace(texture="plain")
    film.paint(glass, x, y + height, width + wall, wall)
    for side in (-1, 1):
        film.paint(glass, x + side * width, y, wall, height)


def extend(film: Film, p: Array) -> None:
    """A rod gets longer at one end."""
    direction, reach = film.direction(), blend(0.08, film.uniform(0.6, 0.75), p)
    start = film.uniform(-0.8, -0.6)
    x, y = (start + reach) * np.cos(direction), (start + reach) * np.sin(direction)
    film.paint(film.look("box"), x, y, reach, film.uniform(0.1, 0.18), direction)


def bend(film: Film, p: Array) -> None:
    """A rod of two halves bends at its middle."""
    x, y = film.rng.uniform(-0.15, 0.15, 2)
    first, length, thick = film.direction(), film.uniform(0.35, 0.45), film.uniform(0.09, 0.14)
    look = film.look("box")._replace(texture="plain")
    for direction in (first, first + np.pi + film.rng.choice((-1, 1)) * film.uniform(2, 2.5) * p):
        film.paint(look, x + length * np.cos(direction), y + length * np.sin(direction), length, thick, direction)
    film.paint(look._replace(shape="disc"), x, y, 1.3 * thick)


def crowd(film: Film, p: Array) -> None:
    """Things appear one after the other all over the picture."""
    places = film.rng.permutation(9)[:7]
    for place, shown in zip(places, steps(p, len(places)), strict=True):
        x, y = 0.6 * (place % 3 - 1), 0.6 * (place // 3 - 1)
        film.paint(film.look(), x + film.uniform(-0.1, 0.1), y + film.uniform(-0.1, 0.1), 0.22, opacity=shown)


def split(film: Film, p: Array) -> None:
    """One thing comes apart into two."""
    direction, half, apart = film.direction(), film.uniform(0.18, 0.26), film.uniform(0.55, 0.7)
    look = film.look()
    for side in (-1, 1):
        x, y = side * apart * p * np.cos(direction), side * apart * p * np.sin(direction)
        film.paint(look, x, y, half)


# The classes of each split: an action, and the names of its film run forwards and run backwards.
Action = Callable[[Film, Array], None]
PAIRS: dict[str, dict[tuple[str, str], Action]] = {
    "train": {
        ("moving_right", "moving_left"): functools.partial(move, degrees=0),
        ("moving_down_right", "moving_up_left"): functools.partial(move, degrees=45),
        ("moving_up_right", "moving_down_left"): functools.partial(move, degrees=-45),
        ("turning_clockwise", "turning_anticlockwise"): turn,
        ("circling_clockwise", "circling_anticlockwise"): circle,
        ("approaching", "leaving"): approach,
        ("entering", "exiting"): enter,
        ("gathering", "scattering"): gather,
        ("opening", "closing"): open_curtains,
        ("widening", "narrowing"): widen,
        ("extending", "retracting"): extend,
        ("fading_in", "fading_out"): fade_in,
        ("filling", "emptying"): fill,
        ("bending", "straightening"): bend,
        ("crowding", "clearing"): crowd,
        ("splitting", "merging"): split,
    },
    "val": {
        ("hiding", "emerging"): hide,
        ("stacking", "unstacking"): stack,
        ("folding", "unfolding"): fold,
    },
    "test": {
        ("moving_down", "moving_up"): functools.partial(move, degrees=90),
        ("growing", "shrinking"): grow,
        ("falling_apart", "assembling"): fall_apart,
    },
}


class Role(NamedTuple):
    split: str
    action: Action
    backwards: bool


CLASSES = {
    name: Role(split, action, bool(backwards))
    for split, pairs in PAIRS.items()
    for pair, action in pairs.items()
    for backwards, name in enumerate(pair)
}
