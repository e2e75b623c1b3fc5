"""Every way in which an image or a video can be stored turned or mirrored gives the same upright frames from everywhere."""

from __future__ import annotations

import io
import itertools
from pathlib import Path

import numpy as np
import pytest
from conftest import textured_frames
from PIL import ExifTags, Image, ImageOps
from video_clips import make_clip, show_by

from clips.frame_sources import BadVideo, FrameFolder, FrameSource, LmdbStore, VideoFile, decode_image
from data_prep import extract_folder, pack_lmdb, shrink

LOSSLESS = ("-c:v", "libx264rgb", "-qp", "0", "-preset", "ultrafast")
MATRICES = [
    (x, 0, 0, y) if straight else (0, x, y, 0) for straight, x, y in itertools.product((True, False), (1, -1), (1, -1))
]


def shown(frame: np.ndarray, matrix: tuple[int, int, int, int]) -> np.ndarray:
    """By the definition: pixel (p, q) is seen at (a p + c q, b p + d q)."""
    a, b, c, d = matrix
    q, p = np.indices(frame.shape[:2])
    x, y = a * p + c * q, b * p + d * q
    x, y = x - x.min(), y - y.min()
    seen = np.empty((y.max() + 1, x.max() + 1, 3), np.uint8)
    seen[y, x] = frame
    return seen


def prepare(module, src: Path, dst: Path, *flags: object) -> Path:
    assert module.main(["--src", str(src), "--dst", str(dst), "--jobs", "1", *map(str, flags)]) == 0
    return dst


def test_display_matrices_give_the_same_upright_frames_from_everywhere(tmp_path):
    plain = make_clip(tmp_path / "plain.mp4", *LOSSLESS, frames=3, size="32x24")
    stored = VideoFile(plain).read(range(3))
    names = [f"v{number}" for number in range(8)]
    for name, matrix in zip(names, MATRICES, strict=True):
        show_by(plain, matrix, tmp_path / "video/train/a" / f"{name}.mp4")
    png = prepare(extract_folder, tmp_path / "video", tmp_path / "png", "--image", "png", "--size", "original")
    packed = prepare(pack_lmdb, tmp_path / "video", tmp_path / "video_lmdb")
    packed_png = prepare(pack_lmdb, png, tmp_path / "png_lmdb")
    for name, matrix in zip(names, MATRICES, strict=True):
        sources: list[FrameSource] = [
            VideoFile(tmp_path / "video/train/a" / f"{name}.mp4"),
            FrameFolder(png / "train/a" / name),
            LmdbStore(packed / "train.lmdb").video("a", name),
            LmdbStore(packed_png / "train.lmdb").video("a", name),
        ]
        wanted = np.stack([shown(frame, matrix) for frame in stored])
        for source in sources:
            assert source.num_frames == 3
            np.testing.assert_array_equal(source.read(range(3)), wanted)
    contents = VideoFile(tmp_path / "video/train/a/v4.mp4").contents()
    assert (contents.width, contents.height) == (24, 32)


def test_a_matrix_that_turns_by_another_angle_is_named(tmp_path):
    plain = make_clip(tmp_path / "plain.mp4", frames=2)
    slanted = show_by(plain, (0.866, 0.5, -0.5, 0.866), tmp_path / "slanted.mp4")
    with pytest.raises(BadVideo, match=r"slanted\.mp4.* turned by 30 degrees: expected a multiple of 90"):
        _ = VideoFile(slanted).num_frames
    half_a_degree = show_by(plain, (1, 0.0087, -0.0087, 1), tmp_path / "nearly.mp4")
    nothing = show_by(plain, (0, 0, 0, 0), tmp_path / "nothing.mp4")
    for clip in (half_a_degree, nothing):
        np.testing.assert_array_equal(VideoFile(clip).read([1]), VideoFile(plain).read([1]))


def tagged(frame: np.ndarray, kind: str, orientation: int) -> bytes:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, kind, exif=exif, **({"quality": 95} if kind == "JPEG" else {}))
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_exif_orientations_give_the_same_upright_frames_from_everywhere(kind, tmp_path):
    suffix = {"JPEG": "jpg", "PNG": "png"}[kind]
    frames = textured_frames(0, 3)[:, :24, :32]
    wanted = {}
    for value in range(1, 9):
        folder = tmp_path / "src/train/a" / f"v{value}"
        folder.mkdir(parents=True)
        images = [tagged(frame, kind, value) for frame in frames]
        for number, data in enumerate(images, start=1):
            (folder / f"{number:05d}.{suffix}").write_bytes(data)
        upright = [ImageOps.exif_transpose(Image.open(io.BytesIO(data))) for data in images]
        wanted[f"v{value}"] = np.stack([np.asarray(image.convert("RGB")) for image in upright]).astype(int)
    src = tmp_path / "src"
    original = ("--size", "original")
    made = [
        src,
        prepare(extract_folder, src, tmp_path / "copied", "--image", suffix, *original),
        prepare(extract_folder, src, tmp_path / "png", "--image", "png", *original),
        prepare(shrink, src, tmp_path / "small", "--frames", 3),
    ]
    if kind == "PNG":
        made.append(prepare(shrink, src, tmp_path / "encoded", "--frames", 3, "--by", "encode"))
    store = LmdbStore(prepare(pack_lmdb, src, tmp_path / "lmdb") / "train.lmdb")
    for name, upright in wanted.items():
        sources: list[FrameSource] = [FrameFolder(root / "train/a" / name) for root in made]
        direct = sources[0].read(range(3))
        assert np.abs(direct - upright).max() <= (1 if kind == "JPEG" else 0)
        for source in (*sources, store.video("a", name)):
            np.testing.assert_array_equal(source.read(range(3)), direct)
    assert len({upright.tobytes() for upright in wanted.values()}) == 8


def test_a_tag_that_is_damaged_or_unknown_does_not_stop_an_image():
    frame = textured_frames(0, 1)[0]
    for kind in ("JPEG", "PNG"):
        plain = decode_image(tagged(frame, kind, 1), "frame")
        np.testing.assert_array_equal(decode_image(tagged(frame, kind, 77), "frame"), plain)
        assert decode_image(tagged(frame, kind, 6), "frame").shape == (*frame.shape[1::-1], 3)
    broken = bytearray(tagged(frame, "JPEG", 6))
    start = broken.index(b"Exif") + 6
    broken[start : start + 12] = b"\xff" * 12
    np.testing.assert_array_equal(decode_image(bytes(broken), "frame"), decode_image(tagged(frame, "JPEG", 1), "frame"))
