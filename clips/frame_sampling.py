"""Which frames of a video become a clip: `sample_frames` for episodes, `CLIP_SAMPLINGS` for labelled videos.

Letters: N frames of a video, T frames of a clip, S places of the video that a clip is taken from, F neighbouring frames
taken at each (T = S * F), K test clips. Frames count from 0. Fractions are rounded down, and exactly: in integers.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from utils import UserError, unknown_name

SAMPLINGS = ("linspace", "segment", "jittered")


def sample_frames(
    num_frames: int,
    seq_len: int,
    how: str = "linspace",
    rng: np.random.Generator | None = None,
    *,
    frames_per_step: int = 1,
    interval: int = 0,
) -> np.ndarray:
    """Frame numbers (seq_len,) from 0, of a video of `num_frames`; in order, with `frames_per_step` 1.

    linspace: evenly from the first to the last frame, always the same.
    segment: one frame of each of S equal parts; its middle one, or with `rng` a random one (TSN, ECCV 2016).
    jittered: evenly between a random start and a random end near the video's ends, at most 5 frames away from them (TRX,
    CVPR 2021); without `rng` from the second to the last but one.

    A video shorter than that is never dropped: positions are rounded down, so that each frame repeats, in order.
    frames_per_step, interval: with each of the S = seq_len / frames_per_step frames come its `neighbours`.
    """
    steps = num_places(seq_len, frames_per_step, interval)
    last = num_frames - 1
    if how == "linspace":
        positions = np.linspace(0, last, steps)
    elif how == "segment":
        offsets = np.full(steps, 0.5) if rng is None else rng.random(steps)
        positions = (np.arange(steps) + offsets) * num_frames / steps
    elif how == "jittered":
        room = min(5, max(0, (num_frames - steps) // 2))
        if rng is None:
            start, end = min(1, room), last - min(1, room)
        else:
            start, end = int(rng.integers(room + 1)), last - int(rng.integers(room + 1))
        positions = np.linspace(start, end, steps)
    else:
        raise UserError(f"unknown frame sampling '{how}': expected one of {', '.join(SAMPLINGS)}")
    return neighbours(np.clip(positions.astype(np.int64), 0, last), num_frames, frames_per_step, interval)


def neighbours(places: np.ndarray, num_frames: int, count: int, interval: int = 0) -> np.ndarray:
    """`count` frames around each of places (..., S) -> (..., S * count), leaving out `interval` between one and the next.

    A window that would leave the video is moved to its end; in a video shorter than a window the last frame repeats.
    (The code of LSNet moves such a window by half its length: the same for 3 frames in a row, but windows of short videos
    would go back in time.)
    """
    span = window_span(count, interval)
    first = np.clip(places - span // 2, 0, max(num_frames - span, 0))
    frames = first[..., None] + np.arange(count) * (interval + 1)
    return np.minimum(frames, num_frames - 1).reshape(*places.shape[:-1], -1)


def window_span(count: int, interval: int) -> int:
    """Frames from the first to the last of a window of `neighbours`, both included."""
    return count + (count - 1) * interval


def num_places(seq_len: int, frames_per_step: int, interval: int) -> int:
    """S = T / F. Raises UserError where that is no whole number, or the interval has no effect."""
    if frames_per_step < 1 or seq_len < 1 or seq_len % frames_per_step:
        raise UserError(
            f"clips of {seq_len} frames do not divide into steps of {frames_per_step} neighbouring frames: give a --seq_len "
            f"that is a multiple of {max(1, frames_per_step)}"
        )
    if interval < 0 or (interval and frames_per_step == 1):
        raise UserError(
            f"an interval of {interval} between neighbouring frames was asked for, with {frames_per_step} frame(s) per "
            "step: expected 0 or more, and more than 0 only with several frames per step"
        )
    return seq_len // frames_per_step


# ---------------------------------------------------------------------------------------------------------------------
# Clips of labelled videos


@dataclasses.dataclass(frozen=True)
class ClipSampling:
    """A published rule for training clips, random, and test clips, always the same.

    seq_len: T. frames_per_step, interval: F `neighbours` with each of S = T / F places. Short videos repeat frames, in
    order.
    """

    seq_len: int
    frames_per_step: int = 1
    interval: int = 0

    def __post_init__(self) -> None:
        num_places(self.seq_len, self.frames_per_step, self.interval)  # what can't be is refused before any work

    @property
    def places(self) -> int:
        """S."""
        return num_places(self.seq_len, self.frames_per_step, self.interval)

    def train(self, num_frames: int, rng: np.random.Generator) -> np.ndarray:
        """Frames (T,) of a training clip of a video of N frames."""
        return self._frames(self.train_places(num_frames, rng), num_frames)

    def test(self, num_frames: int, num_clips: int = 1) -> np.ndarray:
        """Frames (K, T) of K test clips. Where a video has fewer frames than that takes, some clips are the same."""
        if num_clips < 1:
            raise UserError(f"{num_clips} test clips were asked for: expected 1 or more")
        return self._frames(self.test_places(num_frames, num_clips), num_frames)

    def _frames(self, places: np.ndarray, num_frames: int) -> np.ndarray:
        return neighbours(places, num_frames, self.frames_per_step, self.interval)

    def train_places(self, num_frames: int, rng: np.random.Generator) -> np.ndarray:
        """The places (S,) of a training clip."""
        raise NotImplementedError

    def test_places(self, num_frames: int, num_clips: int) -> np.ndarray:
        """The places (K, S) of K test clips."""
        raise NotImplementedError


def random_of_each_segment(length: int, segments: int, rng: np.random.Generator) -> np.ndarray:
    """One of each of `segments` equal parts of range(length), each drawn by itself; sorted draws where parts are empty."""
    part = length // segments
    if not part:
        return np.sort(rng.integers(length, size=segments))
    return np.arange(segments) * part + rng.integers(part, size=segments)


@dataclasses.dataclass(frozen=True)
class TsmSampling(ClipSampling):
    """TSN, TSM and LSNet: one frame of each of S segments, drawn by itself in training, the middle one in tests.

    A second test clip has the first frame of each segment ("twice sample"). Videos of up to S frames, of which the code of
    TSM repeats the first, are sampled like the others.
    """

    def train_places(self, num_frames: int, rng: np.random.Generator) -> np.ndarray:
        return random_of_each_segment(num_frames, self.places, rng)

    def test_places(self, num_frames: int, num_clips: int) -> np.ndarray:
        if num_clips > 2:
            raise UserError(
                f"sampling tsm has 1 or 2 test clips, {num_clips} were asked for: give 2, or sampling tdn or study"
            )
        segments = np.arange(self.places)
        middle, first = (2 * segments + 1) * num_frames // (2 * self.places), segments * num_frames // self.places
        return np.stack([middle, first][:num_clips])


@dataclasses.dataclass(frozen=True)
class TdnSampling(ClipSampling):
    """TDN: the first frame of each window of F is drawn from one of S segments, so that windows never leave the video.

    K test clips start at the middles of K equal parts of every segment; with one that is TDN's centre rule.
    """

    def train_places(self, num_frames: int, rng: np.random.Generator) -> np.ndarray:
        return self._middles(random_of_each_segment(self._starts(num_frames), self.places, rng))

    def test_places(self, num_frames: int, num_clips: int) -> np.ndarray:
        parts = np.arange(self.places) * num_clips + np.arange(num_clips)[:, None]
        return self._middles((2 * parts + 1) * self._starts(num_frames) // (2 * self.places * num_clips))

    def _starts(self, num_frames: int) -> int:
        """In how many places a window can start."""
        return max(num_frames - window_span(self.frames_per_step, self.interval) + 1, 1)

    def _middles(self, starts: np.ndarray) -> np.ndarray:
        return starts + window_span(self.frames_per_step, self.interval) // 2


@dataclasses.dataclass(frozen=True)
class StudySampling(ClipSampling):
    """Action Recognition Study: in training the same random frames of each of S / frames_per_group segments.

    Test clips have the middles of S segments, moved by ..., -1, 0, 1, ... frames but not out of their segment. (The
    study's own test clips have one frame per training segment, whatever frames_per_group, and are drawn where N <= T.)
    """

    frames_per_group: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.frames_per_group < 1 or self.places % self.frames_per_group:
            raise UserError(
                f"{self.places} places of a clip do not divide into groups of {self.frames_per_group} frames: give a "
                "--frames_per_group that divides them"
            )

    def train_places(self, num_frames: int, rng: np.random.Generator) -> np.ndarray:
        groups = self.places // self.frames_per_group
        part = num_frames // groups
        if part < self.frames_per_group:
            return np.sort(rng.integers(num_frames, size=self.places))
        offsets = rng.choice(part, self.frames_per_group, replace=False)
        return np.sort((np.arange(groups)[:, None] * part + offsets).flatten())

    def test_places(self, num_frames: int, num_clips: int) -> np.ndarray:
        segments = np.arange(self.places)
        middle = (2 * segments + 1) * num_frames // (2 * self.places)
        first, end = (edge * num_frames for edge in (segments, segments + 1))
        moves = np.arange(num_clips)[:, None] - (num_clips - 1) // 2
        return np.clip(middle + moves, first // self.places, (end - 1) // self.places)


DENSE_WINDOW = 64


def evenly(last: int, count: int) -> np.ndarray:
    """`count` numbers evenly from 0 to `last`."""
    return np.arange(count) * last // max(count - 1, 1)


def run_of_frames(num_frames: int, starts: np.ndarray, count: int, stride: int) -> np.ndarray:
    """starts (..., 1) -> (..., count) frames `stride` apart; after the video's last frame comes its first."""
    return (starts + np.arange(count) * stride) % num_frames


@dataclasses.dataclass(frozen=True)
class TsmDenseSampling(ClipSampling):
    """TSM's dense sampling: S frames of 64 in a row, from a random one in training.

    K test clips start evenly from the first frame to the last that 64 follow; a single one is in the middle, where the
    code of TSM draws it at random.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.places > DENSE_WINDOW:
            raise UserError(
                f"sampling tsm_dense takes up to {DENSE_WINDOW} places of {DENSE_WINDOW} frames in a row, {self.places} "
                "were asked for: give sampling study_dense with a stride, or shorter clips"
            )

    def train_places(self, num_frames: int, rng: np.random.Generator) -> np.ndarray:
        return self._run(num_frames, rng.integers(self._starts(num_frames), size=1))

    def test_places(self, num_frames: int, num_clips: int) -> np.ndarray:
        last = self._starts(num_frames) - 1
        starts = np.array([last // 2]) if num_clips == 1 else evenly(last, num_clips)
        return self._run(num_frames, starts[:, None])

    def _starts(self, num_frames: int) -> int:
        return max(num_frames - DENSE_WINDOW + 1, 1)

    def _run(self, num_frames: int, starts: np.ndarray) -> np.ndarray:
        return run_of_frames(num_frames, starts, self.places, DENSE_WINDOW // self.places)


@dataclasses.dataclass(frozen=True)
class StudyDenseSampling(ClipSampling):
    """Dense sampling of the Action Recognition Study: S frames `stride` apart, from a random one in training.

    K test clips start evenly from the first frame to the last possible one; a single one starts at the first frame.
    """

    stride: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.stride < 1:
            raise UserError(f"frames of a dense clip are {self.stride} apart: expected a stride of 1 or more")

    def train_places(self, num_frames: int, rng: np.random.Generator) -> np.ndarray:
        return run_of_frames(num_frames, rng.integers(self._starts(num_frames), size=1), self.places, self.stride)

    def test_places(self, num_frames: int, num_clips: int) -> np.ndarray:
        starts = evenly(self._starts(num_frames) - 1, num_clips)
        return run_of_frames(num_frames, starts[:, None], self.places, self.stride)

    def _starts(self, num_frames: int) -> int:
        return max(num_frames - self.places * self.stride + 1, 1)


CLIP_SAMPLINGS: dict[str, type[ClipSampling]] = {
    "tsm": TsmSampling,
    "tsm_dense": TsmDenseSampling,
    "study": StudySampling,
    "study_dense": StudyDenseSampling,
    "tdn": TdnSampling,
}


def clip_sampling(name: str, *, seq_len: int, **options: Any) -> ClipSampling:
    """The rule `name` of CLIP_SAMPLINGS with its options. Raises UserError for options that it does not have."""
    if name not in CLIP_SAMPLINGS:
        raise unknown_name("clip sampling", name, CLIP_SAMPLINGS)
    known = [field.name for field in dataclasses.fields(CLIP_SAMPLINGS[name])]
    for option in sorted(options.keys() - set(known)):
        raise UserError(f"clip sampling {name} has no option {option}: expected {', '.join(known)}; leave it out")
    return CLIP_SAMPLINGS[name](seq_len=seq_len, **options)
