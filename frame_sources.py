"""Where frames come from. Every source has `num_frames` and `read(indices) -> uint8 (T, H, W, 3)` RGB.

Letters: T frames asked for, H height, W width.
"""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")


class BadVideo(ValueError):
    """A video whose frames cannot be had. The message names the file, what is wrong with it and what to do."""


class FrameSource(Protocol):
    """One video, wherever its frames lie."""

    @property
    def num_frames(self) -> int: ...

    def read(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Frame numbers from 0, in any order and with repeats -> uint8 (T, H, W, 3). Raises BadVideo."""
        ...


def decode_image(data: bytes, name: str) -> np.ndarray:
    """The bytes of a JPEG or PNG -> uint8 (H, W, 3) RGB. Grey, palette, CMYK and RGBA images are converted.

    `name` is for the error: BadVideo when the bytes are empty, truncated, of another kind, or hold 16-bit samples.
    """
    if data[:2] == b"\xff\xd8":
        try:
            return simplejpeg.decode_jpeg(data, colorspace="RGB", strict=True)
        except ValueError:
            pass  # CMYK JPEGs are beyond simplejpeg; Pillow decides whether this is one or a damaged file
    return _decode_with_pillow(data, name)


def _decode_with_pillow(data: bytes, name: str) -> np.ndarray:
    advice = "extract the video again, or leave it out with --on_bad_video skip"
    if not data:
        raise BadVideo(f"{name} is empty: expected a JPEG or PNG image; {advice}")
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            if image.mode.startswith(("I", "F")):
                raise BadVideo(f"{name} holds {image.mode} samples: expected 8 bits per channel; {advice}")
            return np.asarray(image.convert("RGB"))
    except UnidentifiedImageError as error:
        raise BadVideo(f"{name} is no image that can be read: expected a JPEG or PNG; {advice}") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        if isinstance(error, BadVideo):
            raise
        raise BadVideo(f"{name} is damaged ({error}): expected a whole JPEG or PNG; {advice}") from error


def frame_files(folder: str | Path) -> list[str]:
    """Names of the images in a folder, in the order of their numbers: shorter names first, so 'f9.jpg' < 'f10.jpg'."""
    names = [name for name in os.listdir(folder) if name.lower().endswith(IMAGE_SUFFIXES) and name[0] != "."]
    return sorted(names, key=lambda name: (len(name), name))


class FrameFolder:
    """A video as a folder of JPEG or PNG images, in the order of `frame_files`."""

    def __init__(self, path: str | Path) -> None:
        self.path = os.fspath(path)
        self._names: list[str] | None = None

    @property
    def names(self) -> list[str]:
        if self._names is None:
            try:
                self._names = frame_files(self.path)
            except OSError as error:
                raise BadVideo(f"{self.path} could not be listed ({error.strerror}); has the data set moved?") from error
        return self._names

    @property
    def num_frames(self) -> int:
        return len(self.names)

    def read(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        wanted, positions = np.unique(np.asarray(indices), return_inverse=True)
        if len(wanted) and wanted[-1] >= self.num_frames:
            raise BadVideo(
                f"{self.path} has {self.num_frames} frames, but frame {wanted[-1] + 1} was expected; "
                "the folder has changed since it was indexed, start again"
            )
        frames = [self._decode(self.names[index]) for index in wanted]
        for index, frame in zip(wanted, frames, strict=True):
            if frame.shape != frames[0].shape:
                raise BadVideo(
                    f"{self.path}/{self.names[index]} is {frame.shape[1]}x{frame.shape[0]} pixels where the video's other "
                    f"frames are {frames[0].shape[1]}x{frames[0].shape[0]}; extract the video again"
                )
        return np.stack([frames[position] for position in positions])

    def _decode(self, name: str) -> np.ndarray:
        path = f"{self.path}/{name}"
        try:
            with open(path, "rb", buffering=0) as file:
                data = file.read()
        except OSError as error:
            raise BadVideo(f"{path} could not be read ({error.strerror}); has the data set moved?") from error
        return decode_image(data, path)
