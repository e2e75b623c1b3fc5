"""Which frames become a clip: golden values of the public samplers, the rules as they are written down, properties."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from oracles import frame_sampling as oracle

from clips.frame_sampling import CLIP_SAMPLINGS, clip_sampling, neighbours, sample_frames
from utils import UserError

# Clips of episodes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_frames", [1, 2, 5, 7, 8, 9, 37, 100, 301])
@pytest.mark.parametrize("seq_len", [1, 2, 8, 16])
def test_linspace_is_the_rule_of_the_trx_style_libraries(num_frames: int, seq_len: int) -> None:
    expected = np.linspace(0, num_frames - 1, seq_len).astype(int)
    for rng in (None, np.random.default_rng(0)):
        assert sample_frames(num_frames, seq_len, "linspace", rng).tolist() == expected.tolist()


@pytest.mark.parametrize(
    ("num_frames", "expected"),
    [
        (100, [7, 19, 32, 44, 57, 69, 82, 94]),  # numbers from 1, of the public TSM and AR samplers
        (37, [3, 7, 12, 17, 21, 26, 31, 35]),
        (9, [1, 2, 3, 4, 6, 7, 8, 9]),
        (8, [1, 2, 3, 4, 5, 6, 7, 8]),
        (5, [1, 1, 2, 3, 3, 4, 5, 5]),
    ],
)
def test_segment_centres_are_those_of_the_public_samplers(num_frames: int, expected: list[int]) -> None:
    assert (sample_frames(num_frames, 8, "segment") + 1).tolist() == expected


def test_random_segment_frames_stay_in_their_segments_and_reach_all_of_them() -> None:
    rng = np.random.default_rng(0)
    drawn = np.stack([sample_frames(37, 8, "segment", rng) for _ in range(1000)])
    for segment, frames in enumerate(drawn.T):
        # frame f covers the time from f to f + 1, segment s that from s * 37 / 8 to (s + 1) * 37 / 8
        touched = range(segment * 37 // 8, -(-(segment + 1) * 37 // 8))
        assert set(frames.tolist()) == set(touched)


def test_jittered_frames_without_randomness_leave_out_the_first_and_the_last() -> None:
    assert sample_frames(100, 8, "jittered").tolist() == np.linspace(1, 98, 8).astype(int).tolist()
    assert sample_frames(8, 8, "jittered").tolist() == list(range(8))


def test_jittered_frames_start_and_end_at_most_five_frames_from_the_ends() -> None:
    rng = np.random.default_rng(0)
    drawn = np.stack([sample_frames(40, 8, "jittered", rng) for _ in range(500)])
    assert set(drawn[:, 0].tolist()) == set(range(6))
    assert set(drawn[:, -1].tolist()) == set(range(34, 40))
    short = np.stack([sample_frames(12, 8, "jittered", rng) for _ in range(100)])  # room for 2 frames at either end
    assert set(short[:, 0].tolist()) == {0, 1, 2}
    assert (np.diff(short) >= 1).all()


@pytest.mark.parametrize("how", ["linspace", "segment", "jittered"])
@pytest.mark.parametrize("num_frames", [1, 2, 3, 5, 7])
def test_short_videos_repeat_every_frame_in_order(how: str, num_frames: int) -> None:
    frames = sample_frames(num_frames, 8, how)
    assert len(frames) == 8
    assert sorted(frames) == frames.tolist()
    assert set(frames.tolist()) == set(range(num_frames))


@pytest.mark.parametrize("how", ["linspace", "segment", "jittered"])
@pytest.mark.parametrize("num_frames", [1, 2, 3, 9, 64])
def test_random_frames_are_always_in_the_video_and_in_order(how: str, num_frames: int) -> None:
    rng = np.random.default_rng(num_frames)
    for _ in range(50):
        frames = sample_frames(num_frames, 8, how, rng)
        assert frames[0] >= 0
        assert frames[-1] < num_frames
        assert (np.diff(frames) >= 0).all()


def test_unknown_sampling_lists_the_known_ones() -> None:
    with pytest.raises(UserError, match="'dense': expected one of linspace, segment, jittered"):
        sample_frames(10, 8, "dense")


# Neighbouring frames -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("interval", "expected"),
    [
        (0, [6, 7, 8, 18, 19, 20, 31, 32, 33, 43, 44, 45, 56, 57, 58, 68, 69, 70, 81, 82, 83, 93, 94, 95]),
        (1, [5, 7, 9, 17, 19, 21, 30, 32, 34, 42, 44, 46, 55, 57, 59, 67, 69, 71, 80, 82, 84, 92, 94, 96]),
    ],
)
def test_windows_are_those_of_lsnet(interval: int, expected: list[int]) -> None:
    sampling = clip_sampling("tsm", seq_len=24, frames_per_step=3, interval=interval)
    assert (sampling.test(100)[0] + 1).tolist() == expected


@pytest.mark.parametrize("num_frames", [3, 4, 5, 9, 30])
def test_three_frames_in_a_row_are_moved_into_the_video_as_lsnet_does(num_frames: int) -> None:
    for place in range(num_frames):
        expected = oracle.lsnet_window(place + 1, num_frames, 3, 0)
        assert (neighbours(np.array([place]), num_frames, 3) + 1).tolist() == expected


@pytest.mark.parametrize(("count", "interval"), [(1, 0), (2, 0), (3, 2), (4, 1), (5, 0), (5, 3)])
def test_windows_lie_in_the_video_around_their_places_and_in_their_order(count: int, interval: int) -> None:
    span = count + (count - 1) * interval
    for num_frames in range(1, 40):
        windows = neighbours(np.arange(num_frames), num_frames, count, interval).reshape(num_frames, count)
        assert windows.min() == 0
        assert windows.max() < num_frames
        assert (np.diff(windows[:, 0]) >= 0).all(), "never back in time"
        for place, window in enumerate(windows.tolist()):
            if num_frames >= span:
                assert np.diff(window).tolist() == [interval + 1] * (count - 1)
            if span // 2 <= place <= num_frames - span + span // 2:
                assert window == [place - span // 2 + j * (interval + 1) for j in range(count)]


def test_clips_of_episodes_have_the_neighbours_of_each_sampled_frame() -> None:
    for how in ("linspace", "segment", "jittered"):
        places = sample_frames(50, 4, how, np.random.default_rng(1))
        frames = sample_frames(50, 12, how, np.random.default_rng(1), frames_per_step=3, interval=1)
        assert frames.tolist() == neighbours(places, 50, 3, 1).tolist()
    assert sample_frames(2, 6, frames_per_step=3).tolist() == [0, 1, 1, 0, 1, 1]


def test_what_does_not_divide_or_has_no_effect_is_refused() -> None:
    with pytest.raises(UserError, match="clips of 8 frames do not divide into steps of 3 .* a multiple of 3"):
        sample_frames(10, 8, frames_per_step=3)
    with pytest.raises(UserError, match="clips of 8 frames do not divide into steps of 5"):
        clip_sampling("tdn", seq_len=8, frames_per_step=5)
    with pytest.raises(UserError, match="an interval of 1 .* with 1 frame"):
        clip_sampling("tsm", seq_len=8, interval=1)


# Test clips of labelled videos ---------------------------------------------------------------------------------------


def numbers_from_1(name: str, num_frames: int, num_clips: int = 1, **options: Any) -> list[list[int]]:
    """As the public samplers number them."""
    options.setdefault("seq_len", 8)
    return (clip_sampling(name, **options).test(num_frames, num_clips) + 1).tolist()


@pytest.mark.parametrize(
    ("num_frames", "expected"),
    [
        (100, [7, 19, 32, 44, 57, 69, 82, 94]),
        (37, [3, 7, 12, 17, 21, 26, 31, 35]),
        (9, [1, 2, 3, 4, 6, 7, 8, 9]),
        (8, [1, 2, 3, 4, 5, 6, 7, 8]),
        (5, [1, 1, 2, 3, 3, 4, 5, 5]),
    ],
)
@pytest.mark.parametrize("name", ["tsm", "study", "tdn"])
def test_a_single_clip_is_that_of_the_public_samplers(name: str, num_frames: int, expected: list[int]) -> None:
    assert numbers_from_1(name, num_frames) == [expected]


def test_several_clips_are_those_of_the_public_samplers() -> None:
    centre = [7, 19, 32, 44, 57, 69, 82, 94]
    assert numbers_from_1("tsm", 100, 2) == [centre, [1, 13, 26, 38, 51, 63, 76, 88]]
    before, after = ([number + move for number in centre] for move in (-1, 1))
    assert numbers_from_1("study", 100, 3) == [before, centre, after]
    assert numbers_from_1("study", 100, 2) == [centre, after]


TEN_STARTS = [1, 27, 53, 79, 105, 132, 158, 184, 210, 237]


def test_dense_clips_are_those_of_the_public_samplers() -> None:
    tsm = numbers_from_1("tsm_dense", 300, 10)
    assert [clip[0] for clip in tsm] == TEN_STARTS
    assert (tsm[0], tsm[-1]) == ([1, 9, 17, 25, 33, 41, 49, 57], list(range(237, 294, 8)))
    study = numbers_from_1("study_dense", 300, 10, seq_len=32, stride=2)
    assert [clip[0] for clip in study] == TEN_STARTS
    assert numbers_from_1("study_dense", 100, 3, stride=8) == [
        [1, 9, 17, 25, 33, 41, 49, 57],
        [19, 27, 35, 43, 51, 59, 67, 75],
        [37, 45, 53, 61, 69, 77, 85, 93],
    ]
    for name, options in (("tsm_dense", {}), ("study_dense", {"stride": 8})):
        assert numbers_from_1(name, 40, **options) == [[1, 9, 17, 25, 33, 1, 9, 17]], "wraps around"


def test_a_single_dense_clip_is_in_the_middle_or_as_the_study_has_it_at_the_start() -> None:
    assert numbers_from_1("tsm_dense", 300)[0][0] == 1 + (300 - 64) // 2
    assert numbers_from_1("study_dense", 300, stride=2)[0][0] == 1


@pytest.mark.parametrize(
    ("num_frames", "segments", "starts"),
    [
        (40, 8, [3, 7, 12, 16, 21, 25, 30, 34]),
        (13, 8, [1, 2, 3, 4, 6, 7, 8, 9]),
        (20, 16, list(range(1, 17))),  # where the public code repeats the first frames sixteen times
        (3, 8, [1] * 8),
    ],
)
def test_windows_start_where_those_of_tdn_do(num_frames: int, segments: int, starts: list[int]) -> None:
    (clip,) = numbers_from_1("tdn", num_frames, seq_len=5 * segments, frames_per_step=5)
    assert clip[::5] == starts
    assert clip == [min(start + j, num_frames) for start in starts for j in range(5)]


LENGTHS = [*range(1, 45), 63, 64, 65, 100, 127, 300]


@pytest.mark.parametrize("segments", [1, 3, 7, 8, 16])
def test_test_clips_follow_their_written_rule(segments: int) -> None:
    for num_frames in LENGTHS:
        tsm = clip_sampling("tsm", seq_len=segments).test(num_frames, 2).tolist()
        assert tsm == [oracle.tsm_centre(num_frames, segments), oracle.tsm_twice(num_frames, segments)]
        for clips in (1, 2, 3, 10):
            study = clip_sampling("study", seq_len=segments).test(num_frames, clips).tolist()
            assert study == oracle.study_clips(num_frames, segments, clips)
            for length in (1, 3, 4, 5):
                tdn = clip_sampling("tdn", seq_len=length * segments, frames_per_step=length)
                expected = oracle.tdn_clips(num_frames, segments, length, clips)
                assert tdn.test(num_frames, clips).reshape(clips, segments, length).tolist() == expected
            for stride in (1, 5):
                dense = clip_sampling("study_dense", seq_len=segments, stride=stride).test(num_frames, clips).tolist()
                assert dense == oracle.dense_clips(num_frames, segments, stride, segments * stride, clips)
            if clips > 1:
                dense = clip_sampling("tsm_dense", seq_len=segments).test(num_frames, clips).tolist()
                assert dense == oracle.dense_clips(num_frames, segments, 64 // segments, 64, clips)


def test_groups_of_the_study_give_test_clips_as_long_as_those_of_training() -> None:
    sampling = clip_sampling("study", seq_len=16, frames_per_group=2)
    assert sampling.test(100).tolist() == clip_sampling("study", seq_len=16).test(100).tolist()


# Training clips of labelled videos -----------------------------------------------------------------------------------


def drawn(name: str, num_frames: int, draws: int, **options: Any) -> set[tuple[int, ...]]:
    sampling, rng = clip_sampling(name, **options), np.random.default_rng(0)
    return {tuple(sampling.train(num_frames, rng).tolist()) for _ in range(draws)}


@pytest.mark.parametrize(("num_frames", "segments"), [(7, 2), (9, 3), (3, 3), (5, 3), (2, 3), (1, 4)])
def test_tsm_draws_each_segment_by_itself(num_frames: int, segments: int) -> None:
    assert drawn("tsm", num_frames, 600, seq_len=segments) == oracle.tsm_drawn(num_frames, segments)


@pytest.mark.parametrize(
    ("num_frames", "groups", "per_group"), [(9, 3, 1), (9, 3, 2), (8, 2, 3), (6, 2, 3), (5, 2, 2), (3, 2, 2), (1, 2, 1)]
)
def test_the_study_draws_the_same_frames_of_every_segment(num_frames: int, groups: int, per_group: int) -> None:
    found = drawn("study", num_frames, 1500, seq_len=groups * per_group, frames_per_group=per_group)
    assert found == oracle.study_drawn(num_frames, groups, per_group)


@pytest.mark.parametrize(("num_frames", "segments", "length"), [(9, 2, 5), (9, 3, 3), (6, 3, 5), (4, 2, 5), (1, 2, 5)])
def test_tdn_draws_where_windows_start(num_frames: int, segments: int, length: int) -> None:
    found = drawn("tdn", num_frames, 600, seq_len=segments * length, frames_per_step=length)
    starts = oracle.tsm_drawn(max(num_frames - length + 1, 1), segments)
    assert found == {tuple(min(s + j, num_frames - 1) for s in chosen for j in range(length)) for chosen in starts}


@pytest.mark.parametrize("num_frames", [1, 10, 40, 64, 65, 70])
def test_dense_clips_start_at_any_frame_that_leaves_room(num_frames: int) -> None:
    tsm = drawn("tsm_dense", num_frames, 200, seq_len=8)
    assert tsm == oracle.dense_drawn(num_frames, 8, 8, 64)
    study = drawn("study_dense", num_frames, 1000, seq_len=8, stride=3)
    assert study == oracle.dense_drawn(num_frames, 8, 3, 24)


# Any rule ------------------------------------------------------------------------------------------------------------

UNIFORM = ("tsm", "study", "tdn")


@pytest.mark.parametrize("name", CLIP_SAMPLINGS)
def test_clips_are_whole_in_the_video_and_where_they_do_not_wrap_in_order(name: str) -> None:
    sampling, rng = clip_sampling(name, seq_len=8), np.random.default_rng(0)
    for num_frames in LENGTHS:
        tests = sampling.test(num_frames, 2)
        assert tests.tolist() == sampling.test(num_frames, 2).tolist()
        for clip in (*tests, sampling.train(num_frames, rng)):
            assert clip.shape == (8,)
            assert clip.dtype == np.int64
            assert 0 <= clip.min() <= clip.max() < num_frames
            assert name not in UNIFORM or (np.diff(clip) >= 0).all()
        if name in UNIFORM and num_frames <= 8:
            assert set(sampling.test(num_frames)[0].tolist()) == set(range(num_frames)), "each frame of a short video"


@pytest.mark.parametrize("name", CLIP_SAMPLINGS)
def test_any_rule_takes_neighbouring_frames(name: str) -> None:
    sampling = clip_sampling(name, seq_len=24, frames_per_step=3, interval=1)
    for num_frames in (1, 4, 7, 50, 300):
        for clip in (*sampling.test(num_frames, 2), sampling.train(num_frames, np.random.default_rng(0))):
            windows = clip.reshape(8, 3)
            assert 0 <= windows.min() <= windows.max() < num_frames
            assert num_frames < 5 or (np.diff(windows) == 2).all()


def test_ten_clips_of_a_long_video_all_differ() -> None:
    for name, options in {
        "study": {},
        "tdn": {"frames_per_step": 5},
        "tsm_dense": {},
        "study_dense": {"stride": 2},
    }.items():
        clips = clip_sampling(name, seq_len=40, **options).test(500, 10)
        assert len(np.unique(clips, axis=0)) == 10, name


def test_wrong_settings_of_a_rule_say_what_was_expected() -> None:
    with pytest.raises(UserError, match="unknown clip sampling 'tsn': expected one of study, .*; did you mean"):
        clip_sampling("tsn", seq_len=8)
    with pytest.raises(UserError, match="clip sampling tsm has no option stride: expected seq_len, frames_per_step"):
        clip_sampling("tsm", seq_len=8, stride=2)
    with pytest.raises(UserError, match="tsm has 1 or 2 test clips, 10 were asked for"):
        clip_sampling("tsm", seq_len=8).test(100, 10)
    with pytest.raises(UserError, match="0 test clips"):
        clip_sampling("tdn", seq_len=8).test(100, 0)
    with pytest.raises(UserError, match="8 places of a clip do not divide into groups of 3"):
        clip_sampling("study", seq_len=8, frames_per_group=3)
    with pytest.raises(UserError, match="up to 64 places .* 65 were asked for"):
        clip_sampling("tsm_dense", seq_len=65)
    with pytest.raises(UserError, match="0 apart: expected a stride of 1"):
        clip_sampling("study_dense", seq_len=8, stride=0)
