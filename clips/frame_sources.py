"""Where frames come from. Every source has `num_frames` and `read(indices) -> uint8 (T, H, W, 3)` RGB.

Letters: T frames asked for, H height, W width.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import stat
import struct
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast

import av
import lmdb
import numpy as np
import simplejpeg
from av.container import InputContainer
from av.video.stream import VideoStream
from PIL import Image, UnidentifiedImageError

from clips.container_size import promised_size
from clips.frame_names import frame_order
from clips.orientation import UPRIGHT, Orientation, exif_orientation, jpeg_orientation, matrix_orientation
from utils import UserError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
# What PyAV's FFmpeg reads and people have.
VIDEO_SUFFIXES = (
    ".avi", ".mp4", ".webm", ".mkv", ".mov", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv", ".gif", ".ts", ".mts", ".m2ts", ".3gp",
    ".3g2", ".ogv", ".vob", ".m2v", ".asf", ".f4v", ".divx", ".mxf", ".dv",
)  # fmt: skip

JPEG_START, PNG_START = b"\xff\xd8", b"\x89PNG\r\n\x1a\n"


class BadVideo(ValueError):
    """A video whose frames cannot be had. The message names the file, what is wrong with it and what to do."""


class FrameSource(Protocol):
    """One video, wherever its frames lie."""

    @property
    def num_frames(self) -> int: ...

    def read(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Frame numbers from 0, in any order and with repeats -> uint8 (T, H, W, 3). Raises BadVideo."""
        ...


def check_open_files(error: Exception) -> None:
    """Raises UserError where `error` says that no more files can be opened, which is not the fault of a video."""
    # By its words, as the errors of LMDB have no number.
    if any(os.strerror(number) in str(error) for number in (errno.EMFILE, errno.ENFILE)):
        raise UserError(
            f"no more files can be opened ({error}): raise 'ulimit -n', or lower --num_workers (of data_prep: --jobs)"
        ) from error


def open_file(path: str | Path) -> BinaryIO:
    """Opens a file to be read, at once and without a buffer. Raises BadVideo where there is none.

    Of a pipe or a device it does not wait for what may never come.
    """
    try:
        file = open(path, "rb", buffering=0, opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))  # noqa: SIM115
    except OSError as error:
        check_open_files(error)
        raise BadVideo(f"{path} could not be read ({error.strerror}); has the data set moved?") from error
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise BadVideo(f"{path} is a pipe or a device: expected a file; remove it")
    return cast(BinaryIO, file)


def file_content(path: str | Path) -> bytes:
    """All bytes of a file. Raises BadVideo where they cannot be had."""
    with open_file(path) as file:
        try:
            return file.read()
        except OSError as error:
            raise BadVideo(f"{path} could not be read ({error.strerror}); has the data set moved?") from error


def is_whole(image: str | Path) -> bool:
    """Whether a JPEG or PNG file has its beginning and its end; a write that was cut short leaves no end."""
    with open_file(image) as file:
        head = file.read(8)
        file.seek(-min(8, os.fstat(file.fileno()).st_size), os.SEEK_END)
        tail = file.read()
    if head == PNG_START:
        return tail.startswith(b"IEND")
    return head.startswith(JPEG_START) and tail.endswith(b"\xff\xd9")


def check_whole(images: Iterable[Path]) -> None:
    """Raises BadVideo, which names the first image that was cut short."""
    for image in images:
        if not is_whole(image):
            raise BadVideo(f"{image.name} is cut short")


def decode_image(data: bytes, name: str, room: np.ndarray | None = None) -> np.ndarray:
    """The bytes of a JPEG or PNG -> uint8 (H, W, 3) RGB, upright as its EXIF tag says.

    Grey, palette, CMYK and RGBA images are converted. `name` is for the error: BadVideo when the bytes are empty,
    truncated, of another kind, or hold 16-bit samples. `room`, uint8 (H, W, 3), is where most JPEGs of its size are decoded
    to; the answer is then a view of it.
    """
    if data[:2] == JPEG_START:
        orientation = jpeg_orientation(data)
        room = room if orientation == UPRIGHT else None
        try:
            pixels = simplejpeg.decode_jpeg(data, colorspace="RGB", strict=True, buffer=room)
        except ValueError:  # too little room, a form it does not know, or a damaged file; Pillow decides
            return _decode_with_pillow(data, name)
        return np.ascontiguousarray(orientation.upright(pixels))
    return _decode_with_pillow(data, name)


def _decode_with_pillow(data: bytes, name: str) -> np.ndarray:
    advice = "extract the video again, or leave it out with --on_bad_video skip"
    if not data:
        raise BadVideo(f"{name} is empty: expected a JPEG or PNG image; {advice}")
    if data[:8] == PNG_START and data[24:25] == b"\x10":  # Pillow would cut colours to 8 bits in silence
        raise BadVideo(f"{name} holds 16-bit samples: expected 8 bits per channel; {advice}")
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            return np.ascontiguousarray(exif_orientation(image).upright(np.asarray(image.convert("RGB"))))
    except UnidentifiedImageError as error:
        raise BadVideo(f"{name} is no image that can be read: expected a JPEG or PNG; {advice}") from error
    except MemoryError:
        raise
    except Exception as error:  # Pillow's own, and whatever a damaged file makes it stumble over
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
                check_open_files(error)
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
        paths = [f"{self.path}/{self.names[index]}" for index in wanted]
        frames = decode_frames(((path, file_content(path)) for path in paths), len(paths))
        return frames if np.array_equal(wanted, indices) else frames[positions]


# ---------------------------------------------------------------------------------------------------------------------
# Video files


def best_video_stream(container: InputContainer) -> VideoStream:
    """The stream that ffmpeg itself would take: usually the one with most pixels, never a cover picture."""
    stream = container.streams.best("video")
    if not isinstance(stream, VideoStream):
        raise BadVideo("it has no video stream")
    return stream


JPEG_MATRICES = (0, 2, 5, 6)  # AVColorSpace: RGB, not said, and the two names of BT.601

# Cuts cost an honest video a few frames of those that its header promises; a damaged one loses more.
MIN_SHARE_OF_PROMISE = 0.9


@dataclass(frozen=True)
class Contents:
    """What decoding a whole video gives. width, height: of a frame as it is seen; fps: 0 where the file gives no rate.

    stream: the number of the decoded one in the file; orientation: how its frames are stored; hd_colours: whether their
    colours are coded otherwise than those of a JPEG, by BT.709 as HD videos or by another matrix than BT.601.
    """

    frames: int
    width: int
    height: int
    fps: float
    stream: int
    orientation: Orientation
    hd_colours: bool = False


class VideoFile:
    """A video file, decoded as needed: frames in the order in which they are shown, turned as the file's metadata says.

    Frame i is the i-th that decoding the whole stream gives, whatever its time stamp: image i + 1 of an extraction by
    ffmpeg, pixel for pixel where that keeps the size and writes PNG.

    data: the content of the file where it does not lie at `path`, which then only names it in errors. num_frames: where it
    is known from an earlier look; unset, the first question decodes the whole.
    """

    def __init__(self, path: str | Path, data: bytes | memoryview | None = None, num_frames: int | None = None) -> None:
        self.path = os.fspath(path)
        self._data = data
        self._num_frames = num_frames

    @property
    def num_frames(self) -> int:
        """Raises BadVideo as `contents` does."""
        if self._num_frames is None:
            self._num_frames = self.contents().frames
        return self._num_frames

    @property
    def seconds(self) -> float:
        """How long it lasts by its header, 0 where that does not say."""
        with self._open() as (container, _):
            return (container.duration or 0) / av.time_base

    def contents(self) -> Contents:
        """Decodes the whole. Raises BadVideo where that fails, gives damaged frames, or less than the file promises."""
        with self._open() as (container, stream):
            self._check_size(container)
            stream.codec_context.options = {"skip_loop_filter": "all"}  # a quarter of the time; no pixel is looked at
            forms: set[tuple[int, int, Orientation]] = set()
            count, damaged, end, matrix = 0, 0, 0.0, 2
            for packet in container.demux():
                if packet.pts is not None and packet.time_base is not None:
                    end = max(end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
                if packet.stream.index != stream.index:
                    continue
                for frame in cast("list[av.VideoFrame]", packet.decode()):
                    count += 1
                    damaged += frame.is_corrupt
                    matrix = int(frame.colorspace)
                    forms.add((frame.width, frame.height, _orientation(frame)))
            if not count:
                raise BadVideo("it holds no frame that can be decoded")
            if damaged:
                raise BadVideo(f"{damaged} of its {count} frames are damaged")
            if len(forms) > 1:
                raise BadVideo("its frames change their size or orientation on the way")
            self._check_promises(container, stream, count, end)
            (width, height, orientation), rate = forms.pop(), float(stream.average_rate or 0)
            width, height = (height, width) if orientation.transpose else (width, height)
            return Contents(
                count, width, height, round(rate, 3), stream.index, orientation, matrix not in JPEG_MATRICES
            )

    def read(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        wanted, positions = np.unique(np.asarray(indices), return_inverse=True)
        if len(wanted) and wanted[-1] >= self.num_frames:
            raise BadVideo(
                f"{self.path}: frame {wanted[-1] + 1} was expected, decoding gives {self.num_frames}; {_VIDEO_ADVICE}"
            )
        with self._open() as (container, stream):
            frames = self._by_time_stamp(container, stream, wanted)
        if frames is None:
            with self._open() as (container, stream):
                frames = self._by_counting(container, stream, wanted)
        if any(frame.shape != frames[0].shape for frame in frames):
            raise BadVideo(f"{self.path}: its frames change their size on the way; {_VIDEO_ADVICE}")
        return np.stack([frames[position] for position in positions])

    @contextmanager
    def _open(self) -> Iterator[tuple[InputContainer, VideoStream]]:
        """The container and its best stream. Whatever goes wrong with them is this video's failure, a BadVideo."""
        try:
            if self._data is None:
                with open_file(self.path) as content:
                    if not content.read(1):
                        raise BadVideo("the file is empty")
            # With the protocol spelled out, a ':' in a file's name is just a letter. Titles may be in any encoding.
            file = f"file:{self.path}" if self._data is None else io.BytesIO(self._data)
            with av.open(file, "r", metadata_errors="ignore") as container:
                stream = best_video_stream(container)
                stream.codec_context.thread_count = 1  # data loader workers are the threads
                yield container, stream
        except (MemoryError, UserError):
            raise
        except BadVideo as error:
            if str(error).startswith(self.path):
                raise
            raise BadVideo(f"{self.path}: {error}; {_VIDEO_ADVICE}") from error
        except Exception as error:
            check_open_files(error)
            words = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
            raise BadVideo(f"{self.path} can't be decoded: {words}; {_VIDEO_ADVICE}") from error

    def _check_size(self, container: InputContainer) -> None:
        with open_file(self.path) if self._data is None else io.BytesIO(self._data) as file:
            promised = promised_size(file, container.format.name)
        if container.size < promised:
            raise BadVideo(f"the file is cut short, at {container.size:,} of {promised:,} bytes")

    def _check_promises(self, container: InputContainer, stream: VideoStream, count: int, end: float) -> None:
        """Raises BadVideo where less came than the header promises. end: seconds at which the last packet ends."""
        # An edit list hides frames of an mp4 or mov that its header counts.
        promised = 0 if "mp4" in container.format.name else stream.frames
        if count < MIN_SHARE_OF_PROMISE * promised:
            raise BadVideo(f"its header claims {promised} frames, decoding gives {count}")
        if {"matroska", "asf", "flv"} & set(container.format.name.split(",")):  # others only estimate it
            seconds = (container.duration or 0) / av.time_base
            if end < MIN_SHARE_OF_PROMISE * seconds:
                raise BadVideo(f"its header claims {seconds:.2f} seconds, {end:.2f} came")

    def _by_time_stamp(
        self, container: InputContainer, stream: VideoStream, wanted: np.ndarray
    ) -> list[np.ndarray] | None:
        """Decodes from the key frame before each wanted frame. None where time stamps don't number the frames."""
        # Others store the order of decoding or nothing: the packed frames of Xvid, as in UCF101, get swapped stamps, and keep
        # them when they are copied to another container.
        if not {"mp4", "matroska"} & set(container.format.name.split(",")) or stream.codec_context.name == "mpeg4":
            return None
        packets = [(packet.pts, packet.is_keyframe) for packet in _shown_packets(container, stream)]
        stamps = [stamp for stamp, _ in packets if stamp is not None]
        keys = np.sort([stamp for stamp, is_key in packets if is_key and stamp is not None])
        # A packet need not become a frame: a hidden one of VP8, one that refers to what a cut has removed.
        if len(set(stamps)) < len(packets) or not len(keys) or len(packets) != self.num_frames:
            return None
        frames: list[np.ndarray] = []
        upright_rgb = UprightRgb()
        decoded: Iterator[av.VideoFrame] = iter(())
        reached = None
        for stamp in np.sort(stamps)[wanted]:
            key = keys[max(0, np.searchsorted(keys, stamp, side="right") - 1)]
            if reached is None or key > reached:
                container.seek(int(key), stream=stream)
                decoded = container.decode(stream)
            frame = next((frame for frame in decoded if frame.pts is not None and frame.pts >= stamp), None)
            if frame is None or frame.pts != stamp or frame.is_corrupt:
                return None
            frames.append(upright_rgb(frame))
            reached = stamp
        return frames

    def _by_counting(self, container: InputContainer, stream: VideoStream, wanted: np.ndarray) -> list[np.ndarray]:
        """Decodes from the first frame to the last wanted one."""
        frames: list[np.ndarray] = []
        upright_rgb = UprightRgb()
        number = -1
        for number, frame in enumerate(container.decode(stream)):
            if number == wanted[len(frames)]:
                if frame.is_corrupt:
                    raise BadVideo(f"frame {number + 1} is damaged")
                frames.append(upright_rgb(frame))
            if len(frames) == len(wanted):
                return frames
        raise BadVideo(f"frame {wanted[len(frames)] + 1} was expected, decoding gives {number + 1}")


_VIDEO_ADVICE = "get or encode the file again, or leave it out with --on_bad_video skip"


def _shown_packets(container: InputContainer, stream: VideoStream) -> Iterator[av.Packet]:
    """Every packet that should become a frame; empty ones repeat the last frame or end the stream."""
    return (packet for packet in container.demux(stream) if packet.size and not packet.is_discard)


def _orientation(frame: av.VideoFrame) -> Orientation:
    matrix: Any = frame.side_data.get("DISPLAYMATRIX")
    return UPRIGHT if matrix is None else matrix_orientation(bytes(matrix))


class UprightRgb:
    """Decoded frames -> uint8 (H, W, 3) RGB, with the very pixels of the ffmpeg program.

    Its filter `scale` does it, as that program has it done. PyAV's own conversion places the colour of 10-bit and interlaced
    videos otherwise, and what it does with HD colours depends on its version.
    """

    def __init__(self) -> None:
        self._form: tuple[Any, ...] | None = None
        self._graph = av.filter.Graph()

    def __call__(self, frame: av.VideoFrame) -> np.ndarray:
        form = (frame.width, frame.height, frame.format.name, frame.colorspace, frame.color_range)
        if form != self._form:
            self._form, self._graph = form, _scale_to_rgb(frame)
        self._graph.push(frame)
        return _orientation(frame).upright(self._graph.vpull().to_ndarray())


def _scale_to_rgb(frame: av.VideoFrame) -> av.filter.Graph:
    graph = av.filter.Graph()
    if hasattr(graph, "threads"):  # PyAV 16 has no such setting
        graph.threads = 1  # data loader workers are the threads
    source = graph.add_buffer(
        width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base or Fraction(1)
    )
    graph.link_nodes(source, graph.add("scale"), graph.add("format", "pix_fmts=rgb24"), graph.add("buffersink"))
    graph.configure()
    return graph


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
    """Of a value by `pack_images`: image i lies from byte bounds[i] to bounds[i + 1]. Raises ValueError if it lacks some."""
    count = packed_frames(value)
    sizes = np.frombuffer(value, "<u4", count, offset=4)
    bounds = 4 * (1 + count) + np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
    if bounds[-1] != len(value):
        raise ValueError(f"it has {len(value):,} bytes of {bounds[-1]:,}")
    return bounds


def pack_index(kind: str, videos: dict[str, dict[str, int]]) -> bytes:
    """What stands under LMDB_INDEX: the listing as a line of JSON, and its checksum."""
    text = json.dumps({"kind": kind, "videos": videos}, ensure_ascii=False)
    listing = text.encode(errors="backslashreplace")  # bytes of names that are not UTF-8 as escapes of JSON
    return listing + b"\n" + hashlib.sha256(listing).hexdigest().encode()


def unpack_index(content: bytes) -> dict[str, Any]:
    """The listing that `pack_index` packed; older ones have no checksum. Raises ValueError where it is damaged."""
    listing, _, checksum = content.partition(b"\n")
    if checksum and checksum != hashlib.sha256(listing).hexdigest().encode():
        raise ValueError("its checksum differs")
    index = json.loads(listing)
    if not (
        isinstance(index, dict)
        and index.get("kind") in ("images", "video")
        and isinstance(index.get("videos"), dict)
        and all(isinstance(videos, dict) for videos in index["videos"].values())
        and all(type(frames) is int and frames > 0 for videos in index["videos"].values() for frames in videos.values())
    ):
        raise ValueError('expected {"kind": "images" or "video", "videos": {class: {video: number of frames}}}')
    return index


# The first two pages of an LMDB file each begin with 16 bytes about the page, then (lmdb.h, MDB_meta): magic number, version,
# two fields, the page's size and what else is known of two databases, the last page, and the number of the transaction.
_LMDB_META = struct.Struct("=16x II 16x I 92x QQ")
_LMDB_MAGIC = 0xBEEFC0DE


def check_whole_lmdb(path: str | Path) -> None:
    """Raises BadVideo where the file ends before the last page it tells of: to read that would end the process by SIGBUS.

    What is no LMDB file, or cannot be read at all, is left to LMDB to refuse.
    """
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            metas, page_size = [], 0
            for page in range(2):
                file.seek(page * page_size)
                head = file.read(_LMDB_META.size)
                if len(head) < _LMDB_META.size:
                    return
                magic, _, page_size, last_page, transaction = _LMDB_META.unpack(head)
                if magic != _LMDB_MAGIC:
                    return
                metas.append((transaction, (last_page + 1) * page_size))
    except OSError:
        return
    _, expected = max(metas)
    if size < expected:
        raise BadVideo(f"{path} is cut short, at {size:,} of {expected:,} bytes; {_LMDB_ADVICE}")


_LMDB_ADVICE = "copy it again, or remove it and pack it again by data_prep/pack_lmdb.py"


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
            with self._reading() as transaction:
                found = transaction.get(LMDB_INDEX)
                content = None if found is None else bytes(found)
                entries = transaction.stat()["entries"]
            if content is None:
                raise BadVideo(f"{self.path} was never finished: run data_prep/pack_lmdb.py again, which resumes it")
            try:
                index = unpack_index(content)
            except ValueError as error:
                raise BadVideo(f"the index in {self.path} is damaged ({error}); {_LMDB_ADVICE}") from error
            listed = sum(map(len, index["videos"].values()))
            if entries <= listed:  # the index is one itself
                raise BadVideo(f"{self.path} holds {entries - 1} of the {listed} videos in its index; {_LMDB_ADVICE}")
            self._index = index
        return self._index

    def video(self, label: str, name: str) -> PackedVideo:
        return PackedVideo(self, label, name)

    @contextmanager
    def value(self, label: str, name: str) -> Iterator[memoryview]:
        """What is stored for a video, without a copy: it must not be used after the block."""
        with self._reading() as transaction:
            value = transaction.get(lmdb_key(label, name))
            if value is None:
                raise BadVideo(f"{self.path} holds no video {label}/{name}; has it changed since it was indexed?")
            yield value

    @contextmanager
    def _reading(self) -> Iterator[lmdb.Transaction[memoryview]]:
        try:
            with self._environment().begin(buffers=True) as transaction:
                yield transaction
        except lmdb.Error as error:
            raise BadVideo(f"{self.path} is damaged ({error}); {_LMDB_ADVICE}") from error

    def _environment(self) -> lmdb.Environment:
        if self.path not in _ENVIRONMENTS:
            check_whole_lmdb(self.path)
            try:
                _ENVIRONMENTS[self.path] = lmdb.open(
                    self.path, subdir=False, readonly=True, lock=False, readahead=False, meminit=False, max_spare_txns=4
                )
            except lmdb.Error as error:
                check_open_files(error)
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
                return VideoFile(name, value[4:], self.num_frames).read(indices)
            try:
                bounds = image_bounds(value)
            except ValueError as error:
                raise BadVideo(f"{name} is damaged ({error}); {_LMDB_ADVICE}") from error
            if wanted[-1] > len(bounds) - 2:
                raise BadVideo(f"{name} has {len(bounds) - 1} frames, but frame {wanted[-1] + 1} was expected")
            images = (
                (f"{name} frame {index + 1}", bytes(value[bounds[index] : bounds[index + 1]])) for index in wanted
            )
            frames = decode_frames(images, len(wanted))
        return frames if np.array_equal(wanted, indices) else frames[positions]
