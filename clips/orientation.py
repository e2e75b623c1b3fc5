"""How a stored image is to be turned and mirrored to be upright: the eight orientations of EXIF and of display matrices.

Letters: H height, W width.
"""

from __future__ import annotations

import io
import struct
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image


class Orientation(NamedTuple):
    """What makes an image upright, in this order: rows become columns, left and right change places, top and bottom."""

    transpose: bool
    mirror: bool
    flip: bool

    def upright(self, image: np.ndarray) -> np.ndarray:
        """A view of (H, W, 3) as it is to be seen: (W, H, 3) where it lies on its side."""
        if self.transpose:
            image = image.swapaxes(0, 1)
        return image[:: -1 if self.flip else 1, :: -1 if self.mirror else 1]

    @property
    def ffmpeg_filters(self) -> list[str]:
        """The same for the ffmpeg program."""
        names = ("transpose=cclock_flip", "hflip", "vflip")  # this transpose turns and flips: rows become columns
        return [name for name, needed in zip(names, self, strict=True) if needed]


UPRIGHT = Orientation(False, False, False)

# By the value of the tag: where row 0 and column 0 of what is stored are to be seen (EXIF 2.32, table 7).
EXIF = {
    1: UPRIGHT,  # top, left
    2: Orientation(False, True, False),  # top, right
    3: Orientation(False, True, True),  # bottom, right
    4: Orientation(False, False, True),  # bottom, left
    5: Orientation(True, False, False),  # left, top
    6: Orientation(True, True, False),  # right, top
    7: Orientation(True, True, True),  # right, bottom
    8: Orientation(True, False, True),  # left, bottom
}


def exif_orientation(image: Image.Image) -> Orientation:
    """That of an image's EXIF tag. A tag that is damaged or unknown says nothing: the pixels are whole without it."""
    try:
        return EXIF.get(image.getexif().get(ExifTags.Base.Orientation, 1), UPRIGHT)
    except Exception:  # of whatever kind: Pillow reads tags with struct, and what that says of nonsense is not listed
        return UPRIGHT


def jpeg_orientation(jpeg: bytes) -> Orientation:
    """That of a JPEG, which is not decoded for it."""
    if not _may_hold_exif(jpeg):  # nearly all frames, and opening them twice would be felt
        return UPRIGHT
    try:
        with Image.open(io.BytesIO(jpeg)) as image:
            return exif_orientation(image)
    except Exception:
        return UPRIGHT


def _may_hold_exif(jpeg: bytes) -> bool:
    place = 2
    while jpeg[place : place + 1] == b"\xff" and (kind := jpeg[place + 1 : place + 2]) not in (b"\xda", b""):
        if kind == b"\xe1":
            return True
        # Any number of 0xff may stand before a marker.
        place += 1 if kind == b"\xff" else 2 + int.from_bytes(jpeg[place + 2 : place + 4], "big")
    return False


def matrix_orientation(matrix: bytes) -> Orientation:
    """That of a display matrix (a b u, c d v, x y w), nine int32, which shows pixel (p, q) at (a p + c q, b p + d q).

    Raises ValueError where it turns by no multiple of 90 degrees. A matrix of zeros says nothing, as ffmpeg sees it.
    """
    a, b, _, c, d, *_ = struct.unpack("=9i", matrix)
    straight, crossed = max(abs(a), abs(d)), max(abs(b), abs(c))
    if not straight and not crossed:
        return UPRIGHT
    if min(straight, crossed) > 0.0175 * max(straight, crossed):  # a degree, the tolerance of ffmpeg
        degrees = np.degrees(np.arctan2(b, a))
        raise ValueError(f"it is to be shown turned by {degrees:.0f} degrees: expected a multiple of 90")
    return Orientation(False, a < 0, d < 0) if straight > crossed else Orientation(True, c < 0, b < 0)
