"""Clips per second that one process reads from each form of a data set, beside the decoding alone of the same frames.

Videos of ten seconds, 256 px: textures that move, as folders of JPEG, in LMDB, and as mp4 (H.264, a key frame a second).
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import simplejpeg

from clips.frame_sampling import sample_frames
from clips.transforms import ClipTransform
from clips.video_split import Split
from results.terminal import Row
from scripts.bench.timing import SEQ_LEN, cached_in, one_thread, race, textured_picture
from video_reader import VideoDataset

RATE = 25  # frames a second
HEADER: Row = ["form", "clips a second", "decoding alone", "share of it"]


def moving_frames(rng: np.random.Generator, side: int, frames: int) -> list[np.ndarray]:
    """A window that moves over a larger picture: uint8 (side, side, 3) each."""
    picture, (across, down) = textured_picture(rng, 2 * side), rng.uniform(0.2, 1.0, size=2)
    reach = side / frames
    return [
        np.ascontiguousarray(picture[int(reach * down * t) :, int(reach * across * t) :][:side, :side])
        for t in range(frames)
    ]


def write_mp4(path: Path, frames: Sequence[np.ndarray]) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=RATE, options={"g": str(RATE), "crf": "23"})
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt, stream.time_base = "yuv420p", Fraction(1, RATE)
        for number, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, "rgb24")
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def decode_spans(path: Path, wanted: Sequence[int], shape: tuple[int, ...]) -> np.ndarray:
    """Frames of an mp4 with a key frame a second, by nothing but PyAV: from the key frame before each on, as RGB."""
    clip = np.empty((len(wanted), *shape), dtype=np.uint8)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        assert stream.time_base is not None
        tick = round(1 / RATE / stream.time_base)
        span = -1
        decoded: Iterator[av.VideoFrame] = iter(())
        for number, index in enumerate(wanted):
            if index // RATE != span:
                span = index // RATE
                container.seek(span * RATE * tick, stream=stream)
                decoded = container.decode(stream)
            frame = next(frame for frame in decoded if frame.pts == index * tick)
            clip[number] = frame.to_ndarray(format="rgb24")
    return clip


def file_rows(*, quick: bool) -> Iterator[Row]:
    side, frames, count, repetitions = (64, 50, 2, 1) if quick else (256, 10 * RATE, 6, 5)
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as temporary, cached_in(Path(temporary) / "cache"), one_thread():
        folder = Path(temporary)
        for video in range(count):
            pictures = moving_frames(rng, side, frames)
            images = folder / "jpeg" / "test" / "class" / f"video{video}"
            images.mkdir(parents=True)
            for number, picture in enumerate(pictures):
                data = simplejpeg.encode_jpeg(picture, quality=90, colorsubsampling="420")
                (images / f"{number + 1:05d}.jpg").write_bytes(data)
            (folder / "mp4" / "test" / "class").mkdir(parents=True, exist_ok=True)
            write_mp4(folder / "mp4" / "test" / "class" / f"video{video}.mp4", pictures)
        pack = [sys.executable, "data_prep/pack_lmdb.py", "--src", str(folder / "jpeg"), "--dst", str(folder / "lmdb")]
        subprocess.run(pack, cwd=Path(__file__).parents[2], check=True, capture_output=True)
        wanted = sample_frames(frames, SEQ_LEN, "linspace").tolist()
        shape = (side, side, 3)

        def decode_images() -> None:
            clip = np.empty((SEQ_LEN, *shape), dtype=np.uint8)
            for video in range(count):
                for number, index in enumerate(wanted):
                    simplejpeg.decode_jpeg(contents[video][index], buffer=clip[number])

        def decode_videos() -> None:
            for video in range(count):
                decode_spans(folder / "mp4" / "test" / "class" / f"video{video}.mp4", wanted, shape)

        contents = [
            {index: (folder / f"jpeg/test/class/video{video}/{index + 1:05d}.jpg").read_bytes() for index in wanted}
            for video in range(count)
        ]
        for form, alone in (("jpeg", decode_images), ("lmdb", decode_images), ("mp4", decode_videos)):
            dataset = VideoDataset(
                Split.open(folder / form, "test"), way=1, shot=1, queries=1, seq_len=SEQ_LEN,
                transform=ClipTransform(side * 7 // 8), seed=0,
            )  # fmt: skip
            comparison = race(form, "decoding alone", reader(dataset, count), alone, repetitions)
            ours, other = (count / np.median(seconds) for seconds in (comparison.ours, comparison.other))
            yield [form, f"{ours:.1f}", f"{other:.1f}", comparison.row()[2]]


def reader(dataset: VideoDataset, count: int) -> Callable[[], None]:
    def read() -> None:
        for video in range(count):
            dataset.clip(0, video, np.random.default_rng(0))

    return read
