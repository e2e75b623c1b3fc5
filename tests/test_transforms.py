"""What happens to pixels: normalisation, resizing, and one random draw per clip."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from conftest import textured_frames
from PIL import Image

from backbones.torchvision_import import torchvision
from clips.transforms import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    ClipTransform,
    InputSpec,
    Interpolation,
    MultiScaleCrop,
    ScaleJitterCrop,
    ViewCrops,
    resize_short_side,
)
from utils import UserError


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
        (40, 48, 24, (24, 28)),
        (48, 40, 24, (28, 24)),
        (320, 426, 256, (256, 340)),
        (240, 427, 256, (256, 455)),
        (40, 48, 40, (40, 48)),
        (40, 48, 80, (80, 96)),
        (9, 90, 8, (8, 80)),
    ],
)
def test_the_shorter_side_becomes_what_was_asked_and_the_aspect_stays(
    height: int, width: int, short_side: int, expected: tuple[int, int]
) -> None:
    frames = clip_of(height=height, width=width)
    resized = resize_short_side(frames, short_side)
    assert tuple(resized.shape) == (4, 3, *expected)
    assert resized.shape == torchvision.transforms.Resize(short_side)(frames).shape
    assert resized.dtype == torch.uint8


@pytest.mark.parametrize(
    ("interpolation", "resampling"), [("bilinear", Image.Resampling.BILINEAR), ("bicubic", Image.Resampling.BICUBIC)]
)
@pytest.mark.parametrize("short_side", [18, 31, 64])
def test_resizing_looks_like_that_of_pillow(short_side: int, interpolation: Any, resampling: Any) -> None:
    """Antialiased, to within the rounding of its fixed-point arithmetic."""
    clip = clip_of()
    resized = resize_short_side(clip, short_side, interpolation)
    for frame, ours in zip(clip, resized, strict=True):
        image = Image.fromarray(frame.permute(1, 2, 0).numpy())
        wanted = image.resize((ours.shape[2], ours.shape[1]), resampling)
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


# Crops of a training -------------------------------------------------------------------------------------------------


def test_multi_scale_crops_have_ten_shapes_and_thirteen_places() -> None:
    shapes = MultiScaleCrop(224).shapes(256, 340)
    sides = [256, 224, 192, 168]
    assert sorted(shapes) == sorted((a, b) for i, a in enumerate(sides) for j, b in enumerate(sides) if abs(i - j) < 2)
    assert len(shapes) == 10
    corners = MultiScaleCrop.corners(256 - 224, 340 - 224)
    assert len(set(corners)) == 13
    assert set(corners) == {
        (0, 0), (0, 116), (32, 0), (32, 116),  # corners
        (16, 58),  # centre
        (0, 58), (16, 0), (16, 116), (32, 58),  # middles of the edges
        (8, 29), (8, 87), (24, 29), (24, 87),  # quarter points
    }  # fmt: skip


@pytest.mark.parametrize(
    ("side", "expected"), [(222, 224), (223, 224), (226, 224), (221, 221), (227, 227)], ids=lambda side: str(side)
)
def test_sides_within_two_pixels_of_the_size_are_the_size(side: int, expected: int) -> None:
    crop = MultiScaleCrop(224, scales=(side / 400,))
    assert crop.shapes(400, 500) == [(expected, expected)]


def test_crops_fit_into_frames_that_are_a_little_smaller_than_the_size() -> None:
    assert MultiScaleCrop(224).shapes(223, 300)[0] == (223, 223)
    assert MultiScaleCrop(16)(textured_frames(0, 2, 15, 20), np.random.default_rng(0)).shape == (2, 3, 16, 16)
    assert MultiScaleCrop(16)(textured_frames(0, 2, 1, 1), np.random.default_rng(0)).shape == (2, 3, 16, 16)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_multi_scale_crops_are_cut_from_the_frames_as_they_are_and_then_resized(interpolation: Interpolation) -> None:
    """Every clip is one of those that cutting and resizing by Pillow gives, and all of them are drawn."""
    transform, rng = MultiScaleCrop(12, interpolation=interpolation), np.random.default_rng(0)
    frames, resampling = textured_frames(0, 2, 20, 26), Image.Resampling[interpolation.upper()]
    wanted = {}
    for height, width in transform.shapes(20, 26):
        for top, left in transform.corners(20 - height, 26 - width):
            crops = [Image.fromarray(frame[top : top + height, left : left + width]) for frame in frames]
            wanted[height, width, top, left] = np.stack(
                [np.asarray(crop.resize((12, 12), resampling), dtype=int) for crop in crops]
            )
    places, pictures = list(wanted), np.stack(list(wanted.values()))
    drawn = set()
    for _ in range(1500):
        clip = transform(frames, rng)
        difference = np.abs(pictures - clip.permute(0, 2, 3, 1).numpy()).max(axis=(1, 2, 3, 4))
        assert difference.min() <= 2
        drawn.add(places[difference.argmin()])
    assert drawn == set(places)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_scale_jitter_reaches_every_size_and_place(interpolation: Interpolation) -> None:
    transform, rng = ScaleJitterCrop(16, (16, 18), interpolation), np.random.default_rng(0)
    frames = textured_frames(0, 2, 20, 24)
    wanted = {}
    for short_side in (16, 17, 18):
        resized = resize_short_side(torch.from_numpy(frames).permute(0, 3, 1, 2), short_side, interpolation)
        for top in range(resized.shape[2] - 15):
            for left in range(resized.shape[3] - 15):
                crop = resized[..., top : top + 16, left : left + 16]
                wanted[crop.contiguous().numpy().tobytes()] = short_side, top, left
    drawn = {wanted[transform(frames, rng).contiguous().numpy().tobytes()] for _ in range(600)}
    assert drawn == set(wanted.values())


@pytest.mark.parametrize("transform", [MultiScaleCrop(16), ScaleJitterCrop(16, (18, 24))])
def test_a_training_crop_depends_on_its_generator_alone_and_holds_for_the_whole_clip(transform: MultiScaleCrop) -> None:
    frames = np.repeat(textured_frames(0, 1, 30, 40), 3, axis=0)
    one, two, other = (transform(frames, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert one.dtype == torch.uint8
    assert torch.equal(one, two)
    assert not torch.equal(one, other)
    assert (one == one[:1]).all()


@pytest.mark.parametrize("short_sides", [(15, 20), (20, 18)])
def test_frames_too_small_to_crop_from_are_refused(short_sides: tuple[int, int]) -> None:
    with pytest.raises(UserError, match="two numbers of 16 or more, the smaller one first"):
        ScaleJitterCrop(16, short_sides)


# Crops of a test -----------------------------------------------------------------------------------------------------


def test_test_crops_lie_where_the_public_code_has_them() -> None:
    corners = [(0, 0), (0, 116), (32, 0), (32, 116)]
    assert [place[:2] for place in ViewCrops(224, 5).places(256, 340)] == [*corners, (16, 58)]
    assert [place[:2] for place in ViewCrops(224, 3).places(256, 340)] == [(16, 0), (16, 116), (16, 58)]
    assert [place[:2] for place in ViewCrops(256, 3, 256).places(256, 340)] == [(0, 0), (0, 84), (0, 42)]
    assert [place[:2] for place in ViewCrops(224).places(256, 340)] == [(16, 58)]
    assert not any(place.mirrored for place in ViewCrops(224, 5).places(256, 340))


def test_three_crops_of_an_upright_video_are_at_its_top_bottom_and_middle() -> None:
    assert [place[:2] for place in ViewCrops(256, 3, 256).places(454, 256)] == [(0, 0), (196, 0), (98, 0)]
    assert [place[:2] for place in ViewCrops(224, 3).places(340, 256)] == [(0, 16), (116, 16), (58, 16)]


def test_several_crops_lie_in_whole_fourths_of_the_room_and_one_in_its_middle() -> None:
    for width in range(256, 300):
        left, right, middle = (place.left for place in ViewCrops(256, 3, 256).places(256, width))
        assert (left, right, middle) == (0, 4 * ((width - 256) // 4), 2 * ((width - 256) // 4))
    (one,) = ViewCrops(224).places(256, 455)
    assert one[:2] == (16, 116)  # a half goes to the even side


def test_ten_crops_are_the_five_each_followed_by_its_mirror_image() -> None:
    five, ten = (ViewCrops(224, count).places(256, 340) for count in (5, 10))
    assert [place[:2] for place in ten] == [place[:2] for place in five for _ in range(2)]
    assert [place.mirrored for place in ten] == [False, True] * 5


@pytest.mark.parametrize(("size", "expected"), [(224, 256), (112, 128), (256, 293), (84, 96)])
def test_frames_are_resized_to_eight_sevenths_of_the_crop_unless_told(size: int, expected: int) -> None:
    frames = np.zeros((1, 30, 40, 3), dtype=np.uint8)
    assert min(ViewCrops(size).resize(frames).shape[-2:]) == expected == int(size / 0.875 + 0.5)
    assert tuple(ViewCrops(size, short_side=size).resize(frames).shape[-2:]) == (size, size * 4 // 3)


@pytest.mark.parametrize("num_crops", [1, 3, 5, 10])
@pytest.mark.parametrize(("height", "width"), [(20, 30), (30, 20)])
def test_views_go_crop_by_crop_and_clip_by_clip(num_crops: int, height: int, width: int) -> None:
    crops = ViewCrops(16, num_crops, short_side=20)
    frames = crops.resize(textured_frames(0, 5, height, width))
    clips = torch.tensor([[0, 2, 2], [4, 1, 0]])
    views = crops.take(frames, clips)
    assert views.shape == (num_crops * 2, 3, 3, 16, 16)
    expected = []
    for top, left, mirrored in crops.places(height, width):
        for clip in clips.tolist():
            crop = [frames[number, :, top : top + 16, left : left + 16] for number in clip]
            expected.append(torch.stack([frame.flip(-1) if mirrored else frame for frame in crop]))
    assert torch.equal(views, torch.stack(expected))
    assert len({view.contiguous().numpy().tobytes() for view in views}) == num_crops * 2, "all views differ"
    assert views[0].is_contiguous(memory_format=torch.channels_last), "as frames are decoded"


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_one_crop_is_that_of_the_few_shot_test(interpolation: Interpolation) -> None:
    frames = textured_frames(0, 3, 40, 50)
    crops = ViewCrops(24, interpolation=interpolation)
    views = crops.take(crops.resize(frames), torch.arange(3)[None])
    assert torch.equal(views[0], ClipTransform(24, interpolation=interpolation)(frames, np.random.default_rng(0)))


def test_crops_that_cannot_be_are_refused() -> None:
    with pytest.raises(UserError, match="2 crops were asked for: expected one of 1, 3, 5, 10"):
        ViewCrops(224, 2)
    with pytest.raises(UserError, match="crops of 256 pixels do not fit into frames whose shorter side is 224"):
        ViewCrops(256, 3, short_side=224)
