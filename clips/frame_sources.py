"""Where frames come from. Every source has `num_frames` and `read(indices) -> uint8 (T, H, W, 3)` RGB.

Letters: T frames asked for, H height, W width.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import av
import lmdb
import numpy as np
import simplejpeg
from av.container import InputContainer
from av.video.stream import VideoStream
from PIL import Image, UnidentifiedImageError

from clips.frame_names import frame_order

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
# What PyAV's FFmpeg reads and people have.
VIDEO_SUFFIXES = (
    ".avi", ".mp4", ".webm", ".mkv", ".mov", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv", ".gif", ".ts", ".mts", ".m2ts", ".3gp",
    ".3g2", ".ogv", ".vob", ".m2v", ".asf", ".f4v", ".divx", ".mxf", ".dv",
)  # fmt: skip


class BadVideo(ValueError):
    """A video whose frames cannot be had. The message names the file, what is wrong with it and what to do."""


class FrameSource(Protocol):
    """One video, wherever its frames lie."""

    @property
    def num_frames(self) -> int: ...

    def read(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Frame numbers from 0, in any order and with repeats -> uint8 (T, H, W, 3). Raises BadVideo."""
        ...


def decode_image(data: bytes, name: str, room: np.ndarray | None = None) -> np.ndarray:
    """The bytes of a JPEG or PNG -> uint8 (H, W, 3) RGB. Grey, palette, CMYK and RGBA images are converted.

    `name` is for the error: BadVideo when the bytes are empty, truncated, of another kind, or hold 16-bit samples.
    `room`, uint8 (H, W, 3), is where most JPEGs of its size are decoded to; the answer is then a view of it.
    """
    if data[:2] == b"\xff\xd8":
        try:
            return simplejpeg.decode_jpeg(data, colorspace="RGB", strict=True, buffer=room)
        except ValueError:
            pass  # too little room, a form it does not know, or a damaged file; Pillow decides
    return _decode_with_pillow(data, name)


def _decode_with_pillow(data: bytes, name: str) -> np.ndarray:
    advice = "extract the video again, or leave it out with --on_bad_video skip"
    if not data:
        raise BadVideo(f"{name} is empty: expected a JPEG or PNG image; {advice}")
    if data[:8] == b"\x89PNG\r\n\x1a\n" and data[24:25] == b"\x10":  # Pillow would cut colours to 8 bits in silence
        raise BadVideo(f"{name} holds 16-bit samples: expected 8 bits per channel; {advice}")
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            return np.asarray(image.convert("RGB"))
    except UnidentifiedImageError as error:
        raise BadVideo(f"{name} is no image that can be read: expected a JPEG or PNG; {advice}") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise BadVideo(f"{name} is damaged ({error}): expected a whole JPEG or PNG; {advice}") from error


def decode_frames(images: Iterable[tuple[str, bytes]], count: int) -> np.ndarray:
    """The names and bytes of a video's `count` images -> uint8 (count, H, W, 3). Raises BadVideo where one differs in size.

    They are decoded next to each other where they stay: frames of their own would cost a copy and, fresh memory being
    slow to get, more than that.
    """
    frames: np.ndarray | None = None
    for number, (name, data) in enumerate(images):
        image = decode_image(data, name, None if frames is None else frames[number])
        if frames is None:
            frames = np.empty((count, *image.shape), dtype=np.uint8)
        if image.shape != frames.shape[1:]:
            raise BadVideo(
                f"{name} is {image.shape[1]}x{image.shape[0]} pixels where the video's other frames are "
                f"{frames.shape[2]}x{frames.shape[1]}; extract the video again"
            )
        if not np.may_share_memory(image, frames):
            frames[number] = image
    assert frames is not None
    return frames


def frame_files(folder: str | Path, beginning: str = "") -> list[str]:
    """Names of the images in a folder that are frames, in the order of their numbers; see frame_names.

    beginning: of the names of images that are looked at at all. Raises BadVideo where they have no certain order.
    """
    return frames_and_others(folder, beginning)[0]


def frames_and_others(folder: str | Path, beginning: str = "") -> tuple[list[str], list[str]]:
    """The same, and the names of the images that are no frames."""
    names = [
        name
        for name in os.listdir(folder)
        if name.lower().endswith(IMAGE_SUFFIXES) and name[0] != "." and name.startswith(beginning)
    ]
    try:
        return frame_order(names)
    except ValueError as error:
        raise BadVideo(f"{folder}: {error} (expected 00001.jpg, 00002.jpg, ...)") from error


class FrameFolder:
    """A video as a folder of JPEG or PNG images, in the order of `frame_files`.

    names: those of its images that are the video; unset: all.
    """

    def __init__(self, path: str | Path, names: list[str] | None = None) -> None:
        self.path = os.fspath(path)
        self._names = names

    @property
    def names(self) -> list[str]:
        if self._names is None:
            try:
                self._names = frame_files(self.path)
            except OSError as error:
                raise BadVideo(
                    f"{self.path} could not be listed ({error.strerror}); has the data set moved?"
                ) from error
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
        names = [self.names[index] for index in wanted]
        frames = decode_frames(((f"{self.path}/{name}", self._content(name)) for name in names), len(names))
        return frames if np.array_equal(wanted, indices) else frames[positions]

    def _content(self, name: str) -> bytes:
        path = f"{self.path}/{name}"
        try:
            with open(path, "rb", buffering=0) as file:
                return file.read()
        except OSError as error:
            raise BadVideo(f"{path} could not be read ({error.strerror}); has the data set moved?") from error


# ---------------------------------------------------------------------------------------------------------------------
# Video files


def best_video_stream(container: InputContainer) -> VideoStream:
    """The stream that ffmpeg itself would take: usually the one with most pixels, never a cover picture."""
    stream = container.streams.best("video")
    if not isinstance(stream, VideoStream):
        raise BadVideo("it has no video stream")
    return stream


def claimed_frames(container: InputContainer, stream: VideoStream) -> int:
    """How many frames the file's header promises to show, 0 where it does not say. Reads no frame."""
    # An edit list hides samples of an mp4 or mov: its index knows which, its count does not.
    if "mp4" in container.format.name:
        return sum(not entry.is_discard for entry in stream.index_entries)
    return stream.frames


class VideoFile:
    """A video file, decoded as needed: frames in the order in which they are shown, turned as the file's metadata says.

    Frame i is the i-th that decoding the whole stream gives, whatever its time stamp: image i + 1 of an extraction by
    ffmpeg, pixel for pixel where that keeps the size and writes PNG (8-bit videos).

    data: the content of the file where it does not lie at `path`, which then only names it in errors.
    """

    def __init__(self, path: str | Path, data: bytes | memoryview | None = None) -> None:
        self.path = os.fspath(path)
        self._data = data
        self._num_frames: int | None = None

    @property
    def num_frames(self) -> int:
        """From the index of an mp4 or mov that agrees with its header, else by counting packets; decodes nothing."""
        if self._num_frames is None:
            with self._open() as (container, stream):
                if "mp4" in container.format.name and stream.frames == len(stream.index_entries) > 0:
                    self._check_not_truncated(container, stream)
                    self._num_frames = claimed_frames(container, stream)
                else:
                    self._num_frames = sum(1 for _ in _shown_packets(container, stream))
        return self._num_frames

    def read(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        wanted, positions = np.unique(np.asarray(indices), return_inverse=True)
        with self._open() as (container, stream):
            frames = self._by_time_stamp(container, stream, wanted)
        if frames is None:
            with self._open() as (container, stream):
                frames = self._by_counting(container, stream, wanted)
        if any(frame.shape != frames[0].shape for frame in frames):
            raise BadVideo(f"{self.path} changes its frame size on the way; leave it out with --on_bad_video skip")
        return np.stack([frames[position] for position in positions])

    @contextmanager
    def _open(self) -> Iterator[tuple[InputContainer, VideoStream]]:
        try:
            # With the protocol spelled out, a ':' in a file's name is just a letter.
            file = f"file:{self.path}" if self._data is None else io.BytesIO(self._data)
            with av.open(file) as container:
                stream = best_video_stream(container)
                stream.codec_context.thread_count = 1  # data loader workers are the threads
                yield container, stream
        except av.FFmpegError as error:
            raise BadVideo(f"{self.path} can't be decoded: {error.strerror}; {_VIDEO_ADVICE}") from error
        except BadVideo as error:
            if str(error).startswith(self.path):
                raise
            raise BadVideo(f"{self.path}: {error}; {_VIDEO_ADVICE}") from error

    def _check_not_truncated(self, container: InputContainer, stream: VideoStream) -> None:
        end = max(entry.pos + entry.size for entry in stream.index_entries)
        if end > container.size:
            raise BadVideo(f"the file is cut short, at {container.size:,} of {end:,} bytes")

    def _by_time_stamp(
        self, container: InputContainer, stream: VideoStream, wanted: np.ndarray
    ) -> list[np.ndarray] | None:
        """Decodes from the key frame before each wanted frame. None where time stamps don't number the frames."""
        # Others store the order of decoding or nothing: frames of a packed AVI (Xvid, as in UCF101) get swapped stamps.
        if not {"mp4", "matroska"} & set(container.format.name.split(",")):
            return None
        packets = [(packet.pts, packet.is_keyframe) for packet in _shown_packets(container, stream)]
        stamps = [stamp for stamp, _ in packets if stamp is not None]
        keys = np.sort([stamp for stamp, is_key in packets if is_key and stamp is not None])
        if len(set(stamps)) < len(packets) or not len(keys) or len(packets) <= wanted[-1]:
            return None
        frames: list[np.ndarray] = []
        decoded: Iterator[av.VideoFrame] = iter(())
        reached = None
        for stamp in np.sort(stamps)[wanted]:
            key = keys[max(0, np.searchsorted(keys, stamp, side="right") - 1)]
            if reached is None or key > reached:
                container.seek(int(key), stream=stream)
                decoded = container.decode(stream)
            frame = next((frame for frame in decoded if frame.pts is not None and frame.pts >= stamp), None)
            if frame is None or frame.pts != stamp:
                return None
            frames.append(_upright_rgb(frame))
            reached = stamp
        return frames

    def _by_counting(self, container: InputContainer, stream: VideoStream, wanted: np.ndarray) -> list[np.ndarray]:
        """Decodes from the first frame to the last wanted one."""
        frames: list[np.ndarray] = []
        number = -1
        for number, frame in enumerate(container.decode(stream)):
            if number == wanted[len(frames)]:
                frames.append(_upright_rgb(frame))
            if len(frames) == len(wanted):
                return frames
        raise BadVideo(f"frame {wanted[len(frames)] + 1} was expected, decoding gives {number + 1}")


_VIDEO_ADVICE = "get or encode the file again, or leave it out with --on_bad_video skip"


def _shown_packets(container: InputContainer, stream: VideoStream) -> Iterator[av.Packet]:
    """Every packet that becomes a frame; empty ones repeat the last frame or end the stream."""
    return (packet for packet in container.demux(stream) if packet.size and not packet.is_discard)


def _upright_rgb(frame: av.VideoFrame) -> np.ndarray:
    return np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90)


# ---------------------------------------------------------------------------------------------------------------------
# One LMDB file per split

LMDB_INDEX = b"//index"  # no '<class>/<video>' begins so


def lmdb_key(label: str, video: str) -> bytes:
    """Two file names of 255 bytes and a '/' are just the 511 bytes that LMDB takes."""
    return f"{label}/{video}".encode(errors="surrogateescape")


def pack_images(images: Sequence[bytes]) -> bytes:
    """The LMDB value of a video's images: their number, their sizes, their bytes."""
    head = np.array([len(images), *map(len, images)], dtype="<u4")
    return b"".join([head.tobytes(), *images])


def pack_video(num_frames: int, content: bytes) -> bytes:
    """The LMDB value of a video file: its number of frames, its bytes."""
    return np.uint32(num_frames).astype("<u4").tobytes() + content


def packed_frames(value: memoryview) -> int:
    """The number of frames, which both kinds of value begin with."""
    return int(np.frombuffer(value, "<u4", 1)[0])


def image_bounds(value: memoryview) -> np.ndarray:
    """Of a value by `pack_images`: image i lies from byte bounds[i] to bounds[i + 1]."""
    count = packed_frames(value)
    sizes = np.frombuffer(value, "<u4", count, offset=4)
    return 4 * (1 + count) + np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])


class LmdbStore:
    """The videos of a split in one file, as data_prep/pack_lmdb.py writes it: images joined per video, or video files.

    Opened anew in every process at its first read, so that it may be handed to data loader workers however they start.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = os.path.realpath(path)
        self._index: dict[str, Any] | None = None

    @property
    def index(self) -> dict[str, Any]:
        """{"kind": "images" or "video", "videos": {class: {video: number of frames}}}, in alphabetical order."""
        if self._index is None:
            with self._environment().begin() as transaction:
                content = transaction.get(LMDB_INDEX)
            if content is None:
                raise BadVideo(f"{self.path} was never finished: run data_prep/pack_lmdb.py again, it goes on")
            self._index = json.loads(content)
        return self._index

    def video(self, label: str, name: str) -> PackedVideo:
        return PackedVideo(self, label, name)

    @contextmanager
    def value(self, label: str, name: str) -> Iterator[memoryview]:
        """What is stored for a video, without a copy: it must not be used after the block."""
        with self._environment().begin(buffers=True) as transaction:
            value = transaction.get(lmdb_key(label, name))
            if value is None:
                raise BadVideo(f"{self.path} holds no video {label}/{name}; has it changed since it was indexed?")
            yield value

    def _environment(self) -> lmdb.Environment:
        if self.path not in _ENVIRONMENTS:
            try:
                _ENVIRONMENTS[self.path] = lmdb.open(
                    self.path, subdir=False, readonly=True, lock=False, readahead=False, meminit=False, max_spare_txns=4
                )
            except lmdb.Error as error:
                raise BadVideo(f"{self.path} is no LMDB file that can be read ({error}); pack it again") from error
        return _ENVIRONMENTS[self.path]


# One handle per file, as LMDB allows a process no second one. A forked process must not use those it inherits, and may
# open its own only when they are closed.
_ENVIRONMENTS: dict[str, lmdb.Environment] = {}


def _close_environments() -> None:
    for environment in _ENVIRONMENTS.values():
        environment.close()
    _ENVIRONMENTS.clear()


os.register_at_fork(after_in_child=_close_environments)


class PackedVideo:
    """One video of an LmdbStore."""

    def __init__(self, store: LmdbStore, label: str, name: str) -> None:
        self._store, self._label, self._name = store, label, name

    @property
    def num_frames(self) -> int:
        return self._store.index["videos"][self._label][self._name]

    def read(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        name = f"{self._store.path}:{self._label}/{self._name}"
        wanted, positions = np.unique(np.asarray(indices), return_inverse=True)
        with self._store.value(self._label, self._name) as value:
            if self._store.index["kind"] == "video":
                return VideoFile(name, value[4:]).read(indices)
            bounds = image_bounds(value)
            if wanted[-1] > len(bounds) - 2:
                raise BadVideo(f"{name} has {len(bounds) - 1} frames, but frame {wanted[-1] + 1} was expected")
            images = (
                (f"{name} frame {index + 1}", bytes(value[bounds[index] : bounds[index + 1]])) for index in wanted
            )
            frames = decode_frames(images, len(wanted))
        return frames if np.array_equal(wanted, indices) else frames[positions]
