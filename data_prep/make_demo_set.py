"""Draws the demo set: short made-up videos of actions that come in time-reversed pairs, in the layout of the real sets.

    python data_prep/make_demo_set.py demo                                  # 44 classes x 24 videos x 12 frames, 64 px
    python data_prep/make_demo_set.py demo --picture demo.png               # and a film strip of every class
    python data_prep/make_demo_set.py big --size 112 --frames 32 --videos_per_class 100
    python data_prep/make_demo_set.py demo_supervised --supervised          # the 32 train classes in train and val

A video of the second class of a pair is drawn as one of the first and then run backwards. So the frames of the two
classes have the same distribution and only their order tells them apart: a method that averages frames has to guess.
Shapes, colours, textures, backgrounds, places, speeds, bystanders and the camera's shake change from video to video.
Each video depends on (seed, class, index) alone, whatever the number of processes; a stopped run resumes where it was.
"""

from __future__ import annotations

import argparse
import colorsys
import functools
import shutil
import sys
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import simplejpeg
from numpy import ndarray as Array
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

# Python puts the folder of a script on its path, not the project's.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from data_prep import extract
from engine.command_line import Parser, arguments, check_output, exit_code
from utils import UserError, read_json, write_json

VERSION = 1  # raise it when the same settings draw other pixels, so that no old set is completed with new videos
SETTINGS_FILE = "demo_set.json"
JPEG_QUALITY = 92

Number = float | Array  # one value for the whole film, or one per frame (T,)


# ---------------------------------------------------------------------------------------------------------------------
# The brush. A picture spans -1..1 from left to right (x) and from top to bottom (y); angles in radians, clockwise.


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


class Film:
    """T frames of an empty place, painted from back to front, seen by a camera that is not quite still.

    Everything random comes from `rng`, and nothing in it prefers a direction of time.
    """

    def __init__(self, rng: np.random.Generator, num_frames: int, size: int) -> None:
        self.rng = rng
        self.num_frames = num_frames
        self.pixel = 2 / size
        axis = (np.arange(size, dtype=np.float32) + 0.5) * self.pixel - 1
        shake = rng.normal(0, 0.012, (2, num_frames, 1, 1)).astype(np.float32)
        self.x = axis[None, None, :] + shake[0]  # (T, 1, W)
        self.y = axis[None, :, None] + shake[1]  # (T, H, 1)
        self.night = rng.random() < 0.5
        self.frames = self.background()

    def uniform(self, low: float, high: float) -> float:
        return float(self.rng.uniform(low, high))

    def direction(self) -> float:
        """Any angle."""
        return self.uniform(0, 2 * np.pi)

    def colour(self, saturation: tuple[float, float], value: tuple[float, float]) -> tuple[float, float, float]:
        return colorsys.hsv_to_rgb(self.uniform(0, 1), self.uniform(*saturation), self.uniform(*value))

    def background(self) -> Array:
        """A colour in soft waves of brightness, dark by night and bright by day: (T, H, W, 3)."""
        colour = np.array(self.colour((0, 0.5), (0.08, 0.3) if self.night else (0.75, 0.95)), np.float32)
        direction, waves = self.direction(), self.uniform(1, 5)
        phase = waves * (np.cos(direction) * self.x + np.sin(direction) * self.y) + self.direction()
        wave = 1 + self.uniform(0.05, 0.2) * np.sin(phase)
        return (wave[..., None] * colour).astype(np.float32)

    def look(self, shape: str | None = None) -> Look:
        """A random texture, shape unless one is given, and two colours, bright by night and dark by day."""
        colours = [self.colour((0.45, 1), (0.75, 1) if self.night else (0.2, 0.55)) for _ in range(2)]
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
        cover = opacity * np.clip(0.5 - distance / self.pixel, 0, 1)
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


# ---------------------------------------------------------------------------------------------------------------------
# The actions: each paints on a film what happens as p (T,) rises from 0 to 1. Its reversal is the pair's other class.


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


def draw_video(name: str, rng: np.random.Generator, num_frames: int, size: int) -> Array:
    """One video of class `name`: uint8 (T, H, W, 3).

    From equal states of `rng` the two classes of a pair get the same frames, one of them in reverse order.
    """
    role = CLASSES[name]
    film = Film(rng, num_frames, size)
    film.bystanders()
    role.action(film, film.progress())
    grain = rng.normal(0, 0.01, film.frames.shape)
    frames = np.round(255 * np.clip(film.frames + grain, 0, 1)).astype(np.uint8)
    return frames[::-1] if role.backwards else frames


def video_rng(seed: int, name: str, index: int) -> np.random.Generator:
    return np.random.default_rng([seed, zlib.crc32(name.encode()), index])


# ---------------------------------------------------------------------------------------------------------------------
# The folder


class Settings(NamedTuple):
    """What the pixels of a set depend on."""

    size: int
    frames: int
    videos_per_class: int
    seed: int
    supervised: bool = False
    version: int = VERSION

    def record(self) -> dict[str, int]:
        """What is kept with the set."""
        return {name: value for name, value in self._asdict().items() if name != "supervised" or value}

    def split_of(self, name: str, index: int) -> str | None:
        """Where a video belongs: its class's split; of a supervised set, which has the train classes only, three videos
        in four to train and one to val."""
        if not self.supervised:
            return CLASSES[name].split
        if CLASSES[name].split != "train":
            return None
        return "train" if index < self.videos_per_class * 3 // 4 else "val"


def claim(out: Path, settings: Settings) -> None:
    """Makes `out` the folder of this set. Raises UserError when it holds anything else."""
    record = out / SETTINGS_FILE
    if out.exists() and not out.is_dir():
        raise UserError(f"expected a folder at {out}, found a file; give another OUT")
    if record.exists():
        if (found := read_json(record)) != settings.record():
            raise UserError(
                f"expected {out} to be a demo set of {settings.record()}, found {found}; "
                "give another OUT, or the settings that were found"
            )
    elif out.exists() and any(out.iterdir()):
        raise UserError(f"expected {out} to be new, empty or a demo set, found other files in it; give another OUT")
    else:
        out.mkdir(parents=True, exist_ok=True)
        write_json(record, settings.record())


def video_folder(out: Path, split: str, name: str, index: int) -> Path:
    return out / split / name / f"{name}_{index:04d}"


def write_video(out: Path, settings: Settings, split: str, name: str, index: int) -> None:
    """Writes one video's frames as <split>/<class>/<video>/00001.jpg, ...; the folder is there when it is whole."""
    frames = draw_video(name, video_rng(settings.seed, name, index), settings.frames, settings.size)
    video = video_folder(out, split, name, index)
    drawn = out / extract.UNFINISHED / video.name
    drawn.mkdir(parents=True)
    for number, frame in enumerate(frames, start=1):
        jpeg = simplejpeg.encode_jpeg(np.ascontiguousarray(frame), quality=JPEG_QUALITY, colorspace="RGB")
        (drawn / f"{number:05d}.jpg").write_bytes(jpeg)
    video.parent.mkdir(parents=True, exist_ok=True)
    drawn.rename(video)


def make_demo_set(out: Path, settings: Settings, jobs: int = 1) -> int:
    """Draws the videos that `out` lacks, in `jobs` processes, and returns how many these were."""
    claim(out, settings)
    shutil.rmtree(out / extract.UNFINISHED, ignore_errors=True)
    places = ((name, index) for name in CLASSES for index in range(settings.videos_per_class))
    videos = [(split, *place) for place in places if (split := settings.split_of(*place))]
    missing = [video for video in videos if not video_folder(out, *video).exists()]
    if missing:
        write = functools.partial(write_video, out, settings)
        with ProcessPoolExecutor(jobs) as pool:
            written = pool.map(write, *zip(*missing, strict=True), chunksize=4)
            for _ in tqdm(written, total=len(missing), unit="video", disable=None):
                pass
        (out / extract.UNFINISHED).rmdir()
    return len(missing)


def draw_picture(settings: Settings, strip: int = 6) -> Image.Image:
    """A contact sheet: one row per pair, and for each of its classes the name and `strip` frames of a video."""
    size, gap, label = settings.size, 3, 155
    cell = size + gap
    font = ImageFont.load_default(15)
    columns = label + strip * cell + 12
    sheet = Image.new("RGB", (2 * columns + gap, len(CLASSES) // 2 * (cell + gap) + gap), "white")
    pen = ImageDraw.Draw(sheet)
    for place, name in enumerate(CLASSES):
        left, top = place % 2 * columns + gap, place // 2 * (cell + gap) + gap
        pen.text((left + label - 10, top + size / 2), name.replace("_", " "), "black", font, anchor="rm")
        frames = draw_video(name, video_rng(settings.seed, name, 0), settings.frames, size)
        for column, t in enumerate(np.linspace(0, settings.frames - 1, strip).round().astype(int)):
            sheet.paste(Image.fromarray(frames[t]), (left + label + column * cell, top))
    return sheet


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument("out", type=Path, metavar="OUT", help="folder of the set: new, empty, or one to resume")
    parser.add_argument("--size", type=int, default=64, least=16, help="height and width of a frame, in pixels")
    parser.add_argument(
        "--frames", type=int, default=12, least=2, help="frames per video; at least what a method samples"
    )
    parser.add_argument("--videos_per_class", type=int, default=24, least=1, help="at least shot + queries per class")
    parser.add_argument(
        "--supervised", action="store_true", help="for ordinary recognition: the train classes only, in train and val"
    )
    parser.add_argument("--seed", type=int, default=0, least=0, help="another number draws other videos")
    extract.add_jobs(parser, "processes; any number draws the same")
    parser.add_argument("--picture", type=Path, metavar="FILE.png", help="also draw a film strip of every class here")
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> None:
    if args.picture is not None:
        check_output(args.picture, "--picture", (".png",))
    settings = Settings(args.size, args.frames, args.videos_per_class, args.seed, args.supervised)
    with extract.writing_to(args.out):
        drawn = make_demo_set(args.out, settings, args.jobs)
        if args.picture is not None:
            draw_picture(settings).save(args.picture)
    count = sum(settings.split_of(name, 0) is not None for name in CLASSES)
    done = f"drew {drawn} videos of {count} classes" if drawn else "already complete with these settings"
    print(f"{args.out}: {done}")


def main(argv: Sequence[str] | None = None) -> int:
    return exit_code(lambda: run(parse_args(arguments(argv))), resume=extract.RESUME)


if __name__ == "__main__":
    sys.exit(main())
