"""Folders of frames: which images, in what order, and what happens to odd and damaged ones."""

from __future__ import annotations

import io
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from conftest import FRAMES, HEIGHT, WIDTH, textured_frames, write_video
from PIL import Image

from clips.frame_sources import BadVideo, FrameFolder, decode_image

FRAME = textured_frames(0, 1)[0]
PICTURE = Image.fromarray(FRAME)


def encoded(image: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


@pytest.fixture
def video(tmp_path: Path) -> Path:
    write_video(tmp_path / "video")
    return tmp_path / "video"


# Reading -------------------------------------------------------------------------------------------------------------


def test_frames_come_in_any_order_with_repeats(video: Path) -> None:
    source = FrameFolder(video)
    every = source.read(range(FRAMES))
    assert source.num_frames == FRAMES
    assert every.shape == (FRAMES, HEIGHT, WIDTH, 3)
    assert every.dtype == np.uint8
    for indices in ([3, 0, 5, 3], [2], np.array([1, 1, 1])):
        np.testing.assert_array_equal(source.read(indices), every[np.asarray(indices)])
    np.testing.assert_allclose(every, textured_frames(0), atol=80)
    assert np.abs(every.astype(int) - textured_frames(0)).mean() < 8, "the right frames, in RGB"


def test_frames_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    names = ["f1.png", "f2.png", "f9.png", "f10.png", "f100.png"]
    for value, name in enumerate(names):
        Image.new("RGB", (4, 4), (value, 0, 0)).save(tmp_path / name)
    assert FrameFolder(tmp_path).read(range(5))[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4]


def test_other_files_are_passed_over_and_suffixes_may_be_upper_case(video: Path) -> None:
    (video / "1.jpg").rename(video / "1.JPEG")
    (video / "2.jpg").rename(video / "2.PNG")  # the content decides, not the suffix
    for name in ("Thumbs.db", "labels.csv", ".3.jpg", "._1.jpg", "8.jpg.part"):
        (video / name).write_bytes(b"x")
    assert FrameFolder(video).num_frames == FRAMES
    FrameFolder(video).read(range(FRAMES))


def test_images_of_another_name_are_no_frames_and_an_uncertain_order_is_a_bad_video(video: Path) -> None:
    every = FrameFolder(video).read(range(FRAMES))
    for name in ("flow_x_1.jpg", "2 copy.jpg", "thumbnail.jpg"):
        shutil.copy(video / "4.jpg", video / name)
    np.testing.assert_array_equal(FrameFolder(video).read(range(FRAMES)), every)
    shutil.copy(video / "4.jpg", video / "04.jpg")
    with pytest.raises(
        BadVideo, match=r"video: '04.jpg' and '4.jpg' are one frame by their numbers .expected 00001.jpg"
    ):
        FrameFolder(video).read([0])


# Odd images that are converted ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1"])
def test_png_of_any_kind_becomes_the_rgb_of_pillow(mode: str) -> None:
    image = PICTURE.convert(mode)
    if mode == "RGBA":
        image.putalpha(Image.fromarray(FRAME[..., 0]))
    data = encoded(image, "PNG")
    wanted = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    np.testing.assert_array_equal(decode_image(data, "frame"), wanted)
    if mode == "RGB":
        np.testing.assert_array_equal(wanted, FRAME)


@pytest.mark.parametrize(("mode", "tolerance"), [("L", 0), ("CMYK", 1)])
def test_grey_and_cmyk_jpeg_become_the_rgb_of_pillow(mode: str, tolerance: int) -> None:
    data = encoded(PICTURE.convert(mode), "JPEG")
    wanted = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
    assert np.abs(decode_image(data, "frame") - wanted).max() <= tolerance
    assert wanted.std() > 10


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"subsampling": 1, "quality": 30}])
def test_colour_jpeg_has_the_pixels_of_pillow(options: dict[str, int]) -> None:
    buffer = io.BytesIO()
    PICTURE.save(buffer, "JPEG", **options)
    wanted = np.asarray(Image.open(buffer).convert("RGB")).astype(int)
    assert np.abs(decode_image(buffer.getvalue(), "frame") - wanted).max() <= 1


# Damaged images ------------------------------------------------------------------------------------------------------


def png_with_16_bits(channels: int) -> bytes:
    """A PNG that Pillow cannot write: colour with 16 bits per sample."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    colour_type = {1: 0, 3: 2, 4: 6}[channels]
    pixels = np.random.default_rng(0).integers(0, 2**16, size=(4, 4 * channels)).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", 4, 4, 16, colour_type, 0, 0, 0)
    chunks = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_images_of_16_bits_are_refused(channels: int) -> None:
    with pytest.raises(BadVideo, match=r"a/1\.png .*8 bits"):
        decode_image(png_with_16_bits(channels), "a/1.png")


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.7, 0.95])
def test_truncated_images_are_named(kind: str, share: float) -> None:
    data = encoded(PICTURE, kind)
    with pytest.raises(BadVideo, match=r"^a/1\.img is (damaged|no image).*--on_bad_video skip$"):
        decode_image(data[: int(len(data) * share)], "a/1.img")


@pytest.mark.parametrize("data", [b"", b"hello", b"\xff\xd8", b"\xff\xd8\xff\xe0" + bytes(100), b"\x89PNG\r\n\x1a\n"])
def test_bytes_that_are_no_image_are_named(data: bytes) -> None:
    with pytest.raises(BadVideo, match=r"^a/1\.jpg is (empty|damaged|no image)"):
        decode_image(data, "a/1.jpg")


def test_a_damaged_image_never_ends_in_another_error() -> None:
    rng = np.random.default_rng(0)
    for data in (encoded(PICTURE, "JPEG"), encoded(PICTURE, "PNG"), encoded(PICTURE.convert("CMYK"), "JPEG")):
        for _ in range(60):
            damaged = bytearray(data)
            for place in rng.integers(0, len(data), size=rng.integers(1, 20)):
                damaged[place] = rng.integers(256)
            try:
                decoded = decode_image(bytes(damaged), "frame")
            except BadVideo:
                continue
            assert decoded.dtype == np.uint8
            assert decoded.shape[2] == 3


def test_a_frame_of_another_size_is_named_with_both_sizes(video: Path) -> None:
    PICTURE.resize((30, 20)).save(video / "4.jpg")
    FrameFolder(video).read([0, 1, 2])
    with pytest.raises(BadVideo, match=r"video/4\.jpg is 30x20 pixels where .* 48x40; extract"):
        FrameFolder(video).read([0, 3, 5])


def test_a_frame_or_folder_that_is_gone_is_named(video: Path) -> None:
    source = FrameFolder(video)
    assert source.num_frames == FRAMES
    with pytest.raises(BadVideo, match="video has 6 frames, but frame 9 was expected"):
        source.read([0, 8])
    (video / "3.jpg").unlink()
    with pytest.raises(BadVideo, match=r"video/3\.jpg could not be read \(No such file"):
        source.read([2])
    shutil.rmtree(video)
    with pytest.raises(BadVideo, match="video could not be listed"):
        FrameFolder(video).read([0])
