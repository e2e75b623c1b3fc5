"""The brush of the demo set: shapes, textures, and a film of an empty place to paint them on.

A picture spans -1..1 from left to right (x) and from top to bottom (y); angles in radians, clockwise. Letters: T frames of
H x W pixels.
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy import ndarray as Array

Number = float | Array  # one value for the whole film, or one per frame (T,)


def polygon(u: Array, v: Array, corners: int) -> Array:
    """Distance to a regular polygon with corners at radius 1, one of them on top."""
    sector = 2 * np.pi / corners
    angle = np.mod(np.arctan2(u, -v), sector) - sector / 2
    return np.hypot(u, v) * np.cos(angle) - np.cos(sector / 2)


def star(u: Array, v: Array) -> Array:
    """Distance to a star with five points at radius 1, one of them on top."""
    angle = np.abs(np.mod(np.arctan2(u, -v) + np.pi / 5, 2 * np.pi / 5) - np.pi / 5)
    return np.hypot(u, v) * np.cos(angle - 0.9) - np.cos(0.9)


# How far the point (u, v) lies outside a shape of half-width and half-height 1; negative inside.
SHAPES: dict[str, Callable[[Array, Array], Array]] = {
    "disc": lambda u, v: np.hypot(u, v) - 1,
    "box": lambda u, v: np.maximum(np.abs(u), np.abs(v)) - 1,
    "ring": lambda u, v: np.abs(np.hypot(u, v) - 0.75) - 0.25,
    "cross": lambda u, v: np.maximum(np.maximum(np.abs(u), np.abs(v)) - 1, np.minimum(np.abs(u), np.abs(v)) - 0.35),
    "triangle": lambda u, v: polygon(u, v, 3),
    "hexagon": lambda u, v: polygon(u, v, 6),
    "star": star,
}

# Which of its two colours a shape shows at (u, v), 0..1.
TEXTURES: dict[str, Callable[[Array, Array], Array]] = {
    "plain": lambda u, v: np.zeros_like(u),
    "shaded": lambda u, v: np.clip(0.5 + 0.5 * v, 0, 1),
    "striped": lambda u, v: np.clip(0.5 + 2 * np.sin(7 * u), 0, 1),
    "checked": lambda u, v: np.clip(0.5 + 3 * np.sin(5 * u) * np.sin(5 * v), 0, 1),
    "rimmed": lambda u, v: np.clip(8 * (np.maximum(np.abs(u), np.abs(v)) - 0.55), 0, 1),
}


class Look(NamedTuple):
    shape: str
    texture: str
    colours: Array  # (2, 3) RGB, 0..1


class Place(NamedTuple):
    """An empty place: a colour, dark by night and bright by day, in soft waves of brightness."""

    night: bool
    colour: tuple[float, float, float]  # RGB, 0..1
    direction: float
    waves: float  # in radians per unit
    phase: float
    contrast: float


class Film:
    """T frames of an empty place, painted from back to front, seen by a camera that is not quite still.

    Everything random comes from `rng`, and nothing in it prefers a direction of time. Before `paint_place`, the camera (x, y,
    pixel) and the place may be changed; before an action is painted, what of it is seen and when (p, shown); `order` is
    kept for the end. home: draws the place that belongs to the film's class, if it may be filmed there.
    """

    frames: Array  # (T, H, W, 3) RGB, 0..1
    p: Array  # how far the action has come in each frame, (T,)

    def __init__(
        self, rng: np.random.Generator, num_frames: int, size: int, home: np.random.Generator | None = None
    ) -> None:
        self.rng = rng
        self.home = home
        self.num_frames = num_frames
        self.pixel = 2 / size
        axis = (np.arange(size, dtype=np.float32) + 0.5) * self.pixel - 1
        shake = rng.normal(0, 0.012, (2, num_frames, 1, 1)).astype(np.float32)
        self.x = axis[None, None, :] + shake[0]  # (T, 1, W)
        self.y = axis[None, :, None] + shake[1]  # (T, H, 1)
        self.place = self.draw_place()
        self.shown: np.ndarray = np.ones(num_frames, np.float32)  # opacity of what is painted, per frame
        self.order = np.arange(num_frames)

    def uniform(self, low: float, high: float) -> float:
        return float(self.rng.uniform(low, high))

    def direction(self) -> float:
        """Any angle."""
        return self.uniform(0, 2 * np.pi)

    def colour(self, saturation: tuple[float, float], value: tuple[float, float]) -> tuple[float, float, float]:
        return colorsys.hsv_to_rgb(self.uniform(0, 1), self.uniform(*saturation), self.uniform(*value))

    def draw_place(self) -> Place:
        night = bool(self.rng.random() < 0.5)
        colour = self.colour((0, 0.5), (0.08, 0.3) if night else (0.75, 0.95))
        return Place(
            night, colour, self.direction(), self.uniform(1, 5), self.direction(), contrast=self.uniform(0.05, 0.2)
        )

    def paint_place(self) -> None:
        _, colour, direction, waves, phase, contrast = self.place
        wave = 1 + contrast * np.sin(waves * (np.cos(direction) * self.x + np.sin(direction) * self.y) + phase)
        self.frames = (wave[..., None] * np.array(colour, np.float32)).astype(np.float32)

    def look(self, shape: str | None = None) -> Look:
        """A random texture, shape unless one is given, and two colours, bright by night and dark by day."""
        colours = [self.colour((0.45, 1), (0.75, 1) if self.place.night else (0.2, 0.55)) for _ in range(2)]
        shape = shape or str(self.rng.choice(list(SHAPES)))
        return Look(shape, str(self.rng.choice(list(TEXTURES))), np.array(colours, np.float32))

    def paint(
        self,
        look: Look,
        x: Number,
        y: Number,
        width: Number,
        height: Number | None = None,
        angle: Number = 0.0,
        opacity: Number = 1.0,
    ) -> None:
        """Puts a shape over the frames, its centre at (x, y); `width` and `height` are halves, edges a pixel soft."""
        values = (x, y, width, width if height is None else height, angle, opacity)
        x, y, width, height, angle, opacity = (np.asarray(value, np.float32)[..., None, None] for value in values)
        width, height = np.maximum(width, 1e-3), np.maximum(height, 1e-3)
        right, down = self.x - x, self.y - y
        u = (np.cos(angle) * right + np.sin(angle) * down) / width
        v = (np.cos(angle) * down - np.sin(angle) * right) / height
        distance = SHAPES[look.shape](u, v) * np.where(np.abs(u) > np.abs(v), width, height)
        cover = self.shown[:, None, None] * opacity * np.clip(0.5 - distance / self.pixel, 0, 1)
        first, second = look.colours
        ink = first + TEXTURES[look.texture](u, v)[..., None] * (second - first)
        self.frames += cover[..., None] * (ink - self.frames)

    def bystanders(self) -> None:
        """Up to two small things that sway on the spot."""
        for _ in range(self.rng.integers(3)):
            phase = self.direction() + np.linspace(0, self.uniform(2, 9), self.num_frames)
            sway, direction = self.uniform(0, 0.08) * np.sin(phase), self.direction()
            x, y = self.rng.uniform(-0.9, 0.9, 2)
            self.paint(
                self.look(), x + sway * np.cos(direction), y + sway * np.sin(direction), self.uniform(0.06, 0.11)
            )

    def progress(self) -> Array:
        """How far the action has come in each frame, (T,): rising from about 0 to about 1, at an uneven speed."""
        time = np.linspace(0, 1, self.num_frames)
        uneven = time + self.uniform(-0.1, 0.1) * np.sin(2 * np.pi * time)
        start, end = self.uniform(0, 0.12), self.uniform(0.88, 1)
        return start + (end - start) * uneven


def steps(p: Array, count: int) -> Array:
    """Progress of `count` things that happen one after the other: (count, T), each from 0 to 1."""
    return np.clip(p * count - np.arange(count)[:, None], 0, 1)


def blend(start: Number, end: Number, p: Array) -> Array:
    return start + (end - start) * p
