"""What happens to pixels: normalisation, resizing, and one random draw per clip."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import textured_frames
from PIL import Image

from transforms import IMAGENET_MEAN, IMAGENET_STD, ClipTransform, InputSpec, resize_short_side


def clip_of(seed: int = 0, height: int = 40, width: int = 48, frames: int = 4) -> torch.Tensor:
    return torch.from_numpy(textured_frames(seed, frames, height, width)).permute(0, 3, 1, 2)


# Normalisation -------------------------------------------------------------------------------------------------------


def test_imagenet_pixels_are_scaled_to_one_and_normalised_per_channel() -> None:
    frames = clip_of()
    pixels = frames.double().numpy() / 255
    expected = (pixels - np.reshape(IMAGENET_MEAN, (3, 1, 1))) / np.reshape(IMAGENET_STD, (3, 1, 1))
    normalised = InputSpec().normalise(frames)
    assert normalised.dtype == torch.float32
    np.testing.assert_allclose(normalised.numpy(), expected, atol=1e-5)


def test_caffe_pixels_are_blue_first_and_reach_255() -> None:
    spec = InputSpec(mean=(104.0, 117.0, 128.0), std=(1.0, 1.0, 1.0), colour_order="bgr", value_range=255.0)
    red = torch.tensor([200, 10, 20], dtype=torch.uint8).reshape(1, 3, 1, 1)
    torch.testing.assert_close(spec.normalise(red).flatten(), torch.tensor([20.0 - 104, 10.0 - 117, 200.0 - 128]))


def test_unnormalised_pixels_lie_between_zero_and_one() -> None:
    spec = InputSpec(size=84, mean=(104.0,) * 3, std=(2.0,) * 3, value_range=255.0, frames=16).unnormalised()
    ends = torch.tensor([0, 255], dtype=torch.uint8).reshape(2, 1, 1, 1).expand(2, 3, 1, 1)
    torch.testing.assert_close(spec.normalise(ends), ends.float() / 255)
    assert (spec.size, spec.frames) == (84, 16)


def test_normalising_keeps_the_frames_and_their_layout() -> None:
    frames = clip_of().contiguous(memory_format=torch.channels_last)
    before = frames.clone()
    normalised = InputSpec(mean=(0.1, 0.2, 0.3)).normalise(frames)
    assert torch.equal(frames, before)
    assert normalised.shape == frames.shape
    assert normalised.is_contiguous(memory_format=torch.channels_last)
    batched = InputSpec(mean=(0.1, 0.2, 0.3)).normalise(frames[None, :, None])
    assert torch.equal(batched[0, :, 0], normalised)


# Size ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("height", "width", "short_side", "expected"),
    [
        (40, 48, 24, (24, 29)),
        (48, 40, 24, (29, 24)),
        (40, 48, 40, (40, 48)),
        (40, 48, 80, (80, 96)),
        (9, 90, 8, (8, 80)),
    ],
)
def test_the_shorter_side_becomes_what_was_asked_and_the_aspect_stays(
    height: int, width: int, short_side: int, expected: tuple[int, int]
) -> None:
    resized = resize_short_side(clip_of(height=height, width=width), short_side)
    assert tuple(resized.shape) == (4, 3, *expected)
    assert resized.dtype == torch.uint8


@pytest.mark.parametrize("short_side", [18, 31, 64])
def test_resizing_looks_like_that_of_pillow(short_side: int) -> None:
    """Antialiased bilinear, to within the rounding of its fixed-point arithmetic."""
    clip = clip_of()
    resized = resize_short_side(clip, short_side)
    for frame, ours in zip(clip, resized, strict=True):
        image = Image.fromarray(frame.permute(1, 2, 0).numpy())
        wanted = image.resize((ours.shape[2], ours.shape[1]), Image.Resampling.BILINEAR)
        difference = np.abs(ours.permute(1, 2, 0).numpy().astype(int) - np.asarray(wanted))
        assert difference.max() <= 2
        assert difference.mean() < 0.3


@pytest.mark.parametrize("size", [16, 17, 33, 84])
@pytest.mark.parametrize(("height", "width"), [(40, 48), (48, 40), (20, 100), (16, 16)])
@pytest.mark.parametrize("train", [False, True])
def test_any_frames_give_clips_of_the_asked_size(size: int, height: int, width: int, train: bool) -> None:
    clip = ClipTransform(size, train=train, flip=True)(textured_frames(0, 3, height, width), np.random.default_rng(0))
    assert clip.shape == (3, 3, size, size)
    assert clip.dtype == torch.uint8


# Crop and flip -------------------------------------------------------------------------------------------------------


def numbered_frames(height: int, width: int, frames: int = 3) -> np.ndarray:
    """Every pixel holds its row, its column and 0."""
    rows, columns = np.mgrid[:height, :width]
    return np.repeat(np.stack([rows, columns, 0 * rows], axis=-1)[None], frames, axis=0).astype(np.uint8)


def corner(clip: torch.Tensor) -> tuple[int, int]:
    return int(clip[0, 0, 0, 0]), int(clip[0, 1, 0, 0])


def test_the_test_crop_is_the_centre_of_the_frame_with_its_short_side_at_8_7_of_the_size() -> None:
    frames = numbered_frames(32, 60)  # 28 * 8 / 7 = 32: not resized
    for rng in (np.random.default_rng(0), np.random.default_rng(1)):
        clip = ClipTransform(28, flip=True)(frames, rng)
        assert corner(clip) == ((32 - 28) // 2, (60 - 28) // 2)
        assert corner(clip.flip(2, 3)) == (2 + 27, 16 + 27)


def test_the_test_crop_takes_no_random_number() -> None:
    rng = np.random.default_rng(0)
    ClipTransform(28, flip=True)(numbered_frames(32, 60), rng)
    assert rng.random() == np.random.default_rng(0).random()


def test_random_crops_reach_every_corner_and_hold_for_the_whole_clip() -> None:
    transform, rng, frames = ClipTransform(28, train=True), np.random.default_rng(0), numbered_frames(32, 34)
    clips = [transform(frames, rng) for _ in range(400)]
    assert {corner(clip) for clip in clips} == {(top, left) for top in range(5) for left in range(7)}
    assert all((clip == clip[:1]).all() for clip in clips)


@pytest.mark.parametrize(("flip", "share"), [(True, 0.5), (False, 0.0)])
def test_training_clips_are_mirrored_half_of_the_time_or_never(flip: bool, share: float) -> None:
    transform, rng, frames = ClipTransform(28, train=True, flip=flip), np.random.default_rng(0), numbered_frames(32, 34)
    clips = [transform(frames, rng) for _ in range(400)]
    mirrored = [bool(clip[0, 1, 0, 0] > clip[0, 1, 0, -1]) for clip in clips]
    assert np.mean(mirrored) == pytest.approx(share, abs=0.08)
    assert all((clip == clip[:1]).all() for clip in clips)
    assert all((clip[0, 0].diff(dim=0) == 1).all() for clip in clips), "never upside down"


def test_the_same_generator_gives_the_same_clip() -> None:
    transform, frames = ClipTransform(28, train=True, flip=True), textured_frames(0, 3, 50, 60)
    one, two, other = (transform(frames, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


def test_frames_are_not_changed() -> None:
    frames = textured_frames(0, 3, 32, 34)
    before = frames.copy()
    for seed in range(4):
        ClipTransform(28, train=True, flip=True)(frames, np.random.default_rng(seed)).fill_(0)
        InputSpec().normalise(torch.from_numpy(frames).permute(0, 3, 1, 2))
    assert frames.shape == before.shape
