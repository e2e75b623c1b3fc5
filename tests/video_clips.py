"""Small videos and trees of them for the tests of data_prep and frame_sources. Most need the program ffmpeg."""

from __future__ import annotations

import multiprocessing
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
from conftest import FRAMES, textured_frames

from clips.frame_sources import VideoFile


def make_clip(path: Path, *options: str, frames: int = 10, size: str = "64x48", rate: int = 10) -> Path:
    """Encodes a moving test picture; the suffix says the container, `options` go to ffmpeg before the output."""
    path.parent.mkdir(parents=True, exist_ok=True)
    source = ["-f", "lavfi", "-i", f"testsrc=size={size}:rate={rate}"]
    command = ["ffmpeg", "-v", "error", "-y", *source, "-frames:v", str(frames), *options, f"file:{path}"]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    return path


def write_clip(path: Path, codec: str = "mpeg4", format: str | None = None, frames: int = FRAMES) -> Path:
    """Encodes the textured frames with PyAV, which needs no program; the suffix says the container, unless `format` does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", format=format) as container:
        stream = container.add_stream(codec, rate=25, width=64, height=48, pix_fmt="yuv420p")
        for frame in textured_frames(0, frames, 48, 64):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame)))
        container.mux(stream.encode(None))
    return path


def turn(clip: Path, degrees: int, path: Path) -> Path:
    """Copies a clip to an mp4 or mov whose metadata says to turn it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    copy = ["-i", clip, "-c", "copy"]
    options = [["-display_rotation:v:0", str(degrees), *copy], [*copy, "-metadata:s:v:0", f"rotate={degrees}"]]
    for words in options:  # ffmpeg 6 and later, earlier ones
        if not subprocess.run(["ffmpeg", "-v", "error", "-y", *words, path], capture_output=True).returncode:
            return path
    raise AssertionError("ffmpeg could not turn the clip")


def show_by(clip: Path, matrix: tuple[int, int, int, int], path: Path) -> Path:
    """Copies an mp4 and writes a display matrix (a, b, c, d) into it, as a phone does that was held another way."""
    content = bytearray(clip.read_bytes())
    a, b, c, d = (round(65536 * value) for value in matrix)
    place = content.index(b"tkhd") + 44
    content[place : place + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def cut(video: Path, path: Path, share: float = 0.6) -> Path:
    """Copies the beginning of a file, to an odd number of bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = video.read_bytes()
    path.write_bytes(content[: int(share * len(content)) | 1])
    return path


def decoded_by_ffmpeg(path: Path) -> np.ndarray:
    """Every frame, uint8 (T, H, W, 3), of the video stream that ffmpeg prefers."""
    height, width = VideoFile(path).read([0]).shape[1:3]
    command = ["ffmpeg", "-v", "error", "-r", "25", "-i", f"file:{path}", "-vsync", "passthrough"]
    raw = subprocess.run([*command, "-f", "rawvideo", "-pix_fmt", "rgb24", "-"], capture_output=True, check=True).stdout
    return np.frombuffer(raw, np.uint8).reshape(-1, height, width, 3)


def place(clip: Path, *paths: Path) -> None:
    """Copies a clip to other names."""
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(clip.read_bytes())


def in_a_process(work: Callable[[], object]) -> int:
    """Runs `work` in a forked process and returns its exit code: -9 when it was killed, else what `work` returned."""

    def run() -> None:
        raise SystemExit(work())

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    process.join(60)
    assert process.exitcode is not None
    return process.exitcode


def tree(folder: Path) -> dict[str, bytes]:
    """{relative path: content} of the frames of a data set."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for split in ("train", "val", "test")
        for path in sorted((folder / split).rglob("*"))
        if path.is_file()
    }
