"""Which images of a folder are the frames of its video, and in which order: by the numbers in their names.

Names that are alike but for their digits, the suffix and the case of letters are a series: img_0001.jpg, IMG_12.jpeg. The
frames are the longest series of a folder; all its other images (flow_x_0001.jpg, '0001 copy.jpg', cover.jpg) are none.
They come in natural order, as a file manager shows them: number by number from the left, each as a whole number. Where
the names can be read in another way that gives another order, no order is taken.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from fractions import Fraction
from itertools import pairwise
from typing import NamedTuple, NoReturn

DIGITS = re.compile(r"[0-9]+")
BLANK = "\0"  # stands for the digits in what a series is called; no file name holds it
# A minus belongs to a number where neither a letter nor a digit is before it, as in -1 and img_-1, but not in img-1.
SIGN = re.compile(rf"(?<![^\W_])(?<!{BLANK})-(?={BLANK})")
# Two numbers that may be one: 0.04. Three with two points, as in 1.2.3, are not.
DECIMAL = re.compile(rf"(?<!{BLANK}\.){BLANK}\.{BLANK}(?!\.{BLANK})")
# Optical flow lies beside the frames that it was made of, as often as they, or twice as often.
NO_FRAME = "flow"


class Image(NamedTuple):
    """An image's name and the digits in it. negative: the place of a number with a minus before it, -1 for none."""

    name: str
    digits: tuple[str, ...]
    negative: int = -1


Numbers = tuple[int | Fraction, ...]
Series = dict[str, list[Image]]  # what its names have in common -> its images


def frame_order(names: Sequence[str]) -> tuple[list[str], list[str]]:
    """(the frames among the images of a folder, in order; its other images).

    Raises ValueError, with two of the names, where no name holds a number, two series are the longest, two images have the
    same numbers, or the order is not certain.
    """
    if (order := _plain_order(names)) is not None:
        return order, []
    series = _series(sorted(names))
    called = _frames_among(series)
    images = series.pop(called)
    order = _plain_order([image.name for image in images]) or _ordered(images, called)
    return order, sorted(image.name for others in series.values() for image in others)


def frame_numbers(frames: Sequence[str]) -> list[int]:
    """The number of each of a folder's frames, given in their order: 12 of img_00012.jpg.

    Where names hold several it is the first that grows from frame to frame, and that of a single frame is its last one.
    Raises ValueError where there is none.
    """
    images = {image.name: image for images in _series(frames).values() for image in images}
    rows = [_whole(images[name]) for name in frames]
    if unnumbered := next((name for name, row in zip(frames, rows, strict=True) if not row), None):
        raise ValueError(f"frame '{unnumbered}' has no number in its name")
    if len(rows) == 1:
        return [int(rows[0][-1])]
    for numbers in zip(*rows, strict=True):
        if all(a < b for a, b in pairwise(numbers)):
            return [int(number) for number in numbers]
    raise ValueError(f"no number grows from frame to frame: '{frames[0]}', '{frames[1]}'")


def _plain_order(names: Sequence[str]) -> list[str] | None:
    """Their order where all are a common beginning, a number that nothing makes doubtful and a common suffix, else None.

    It is so nearly always, and quick.
    """
    if not names:
        return []
    beginning = os.path.commonprefix([min(names), max(names)]).rstrip("0123456789")
    suffix = os.path.splitext(names[0])[1]
    text = f"/{'/'.join(names)}/"
    if text.count(f"{suffix}/") < len(names):
        return None
    numbers = text.replace(f"{suffix}/", "/").replace(f"/{beginning}", "/")[1:-1].split("/")
    every, widths = "".join(numbers), set(map(len, numbers))
    if 0 in widths or not (every.isascii() and every.isdecimal()):
        return None
    if len(widths) == 1:
        return sorted(names)
    padded = any(number[0] == "0" and len(number) > min(widths) for number in numbers)
    if padded or re.search(r"[0-9]\.$", beginning):  # 01 and 1; 0.5 and 0.10
        return None
    return sorted(names, key=lambda name: (len(name), name))


def _series(names: Iterable[str]) -> Series:
    series: Series = {}
    for name in names:
        stem = os.path.splitext(name)[0].casefold()
        series.setdefault(DIGITS.sub(BLANK, stem), []).append(Image(name, tuple(DIGITS.findall(stem))))
    for called in list(series):  # -1 and 1 are of one series; what all names begin with is no sign
        for sign in SIGN.finditer(called):
            unsigned = called[: sign.start()] + called[sign.end() :]
            if unsigned in series:
                place = called[: sign.start()].count(BLANK)
                series[unsigned] += [image._replace(negative=place) for image in series.pop(called)]
                break
    return series


def _frames_among(series: Series) -> str:
    """What the series of the frames is called."""
    numbered = [called for called in series if BLANK in called]
    if not numbered:
        one, *more = (image.name for images in series.values() for image in images)
        if more:
            raise ValueError(f"no number in the names of its images says their order: '{one}', '{more[0]}'")
        return next(iter(series))
    candidates = [called for called in numbered if NO_FRAME not in called] or numbered
    longest = max(len(series[called]) for called in candidates)
    one, *others = (called for called in candidates if len(series[called]) == longest)
    if others:
        raise ValueError(
            f"it holds two series of images, as '{min(series[one]).name}' and '{min(series[others[0]]).name}', and either may "
            "be its frames"
        )
    return one


def _ordered(images: Sequence[Image], called: str) -> list[str]:
    """The names in their order. Raises ValueError where it is not certain."""
    numbers = {image: _whole(image) for image in images}
    order = sorted(images, key=numbers.__getitem__)
    for one, other in pairwise(order):
        if numbers[one] == numbers[other]:
            raise ValueError(f"'{one.name}' and '{other.name}' are one frame by their numbers")
    if decimals := [called[: match.start()].count(BLANK) for match in DECIMAL.finditer(called)]:
        other_numbers = {image: _with_decimals(image, decimals) for image in images}
        other_order = sorted(images, key=other_numbers.__getitem__)
        if len(set(other_numbers.values())) == len(images):  # 1.1 and 1.10 are no decimals
            counts = _first_counts(order, numbers)
            if order != other_order and counts == _first_counts(other_order, other_numbers):
                _refuse(order, other_order)
            if order == other_order or not counts:
                order, numbers = other_order, other_numbers
    # Whatever counts evenly may be the frame's number, so it must count in this order.
    for column in _columns(order, numbers):
        if _is_even(column) and list(column) != sorted(column):
            _refuse(order, [image for _, image in sorted(zip(column, order, strict=True))])
    return [image.name for image in order]


def _whole(image: Image) -> Numbers:
    """Its numbers, each as a whole one."""
    return tuple(-int(d) if place == image.negative else int(d) for place, d in enumerate(image.digits))


def _with_decimals(image: Image, places: Sequence[int]) -> Numbers:
    """The same, but one number of each two that begin at `places` and have a point between them."""
    numbers: list[Fraction | int] = list(_whole(image))
    for place in reversed(places):
        decimal = Fraction(f"{image.digits[place]}.{image.digits[place + 1]}")
        numbers[place : place + 2] = [-decimal if place == image.negative else decimal]
    return tuple(numbers)


def _columns(order: Sequence[Image], numbers: dict[Image, Numbers]) -> list[tuple[int | Fraction, ...]]:
    """The first number of each image, their second one, and so on."""
    return list(zip(*(numbers[image] for image in order), strict=True))


def _first_counts(order: Sequence[Image], numbers: dict[Image, Numbers]) -> bool:
    """Whether the first number that is not the same in all images counts evenly."""
    return _is_even(next(column for column in _columns(order, numbers) if len(set(column)) > 1))


def _is_even(numbers: Sequence[int | Fraction]) -> bool:
    """Whether they are, in some order, equally far from each other; two of them: whether they are neighbours."""
    steps = {b - a for a, b in pairwise(sorted(numbers))}
    return len(steps) == 1 and (steps == {1} if len(numbers) == 2 else steps != {0})


def _refuse(order: Sequence[Image], other: Sequence[Image]) -> NoReturn:
    one, another = next((a, b) for a, b in zip(order, other, strict=True) if a != b)
    raise ValueError(f"the order of '{one.name}' and '{another.name}' is not certain from their numbers")
