"""Frame sampling as its formulas are written down, one number at a time, with fractions that are not rounded."""

from __future__ import annotations

from fractions import Fraction
from itertools import combinations, combinations_with_replacement, product


def tsm_centre(num_frames: int, segments: int) -> list[int]:
    tick = Fraction(num_frames, segments)
    return [int(tick / 2 + tick * k) for k in range(segments)]


def tsm_twice(num_frames: int, segments: int) -> list[int]:
    return [int(Fraction(num_frames, segments) * k) for k in range(segments)]


def study_clips(num_frames: int, segments: int, clips: int) -> list[list[int]]:
    tick, least = Fraction(num_frames, segments), Fraction(1, 10**4)
    found = []
    for offset in range(-clips // 2 + 1, clips // 2 + 1):
        moved = min(max(Fraction(offset), -tick / 2), tick / 2 - least)
        found.append([int(tick / 2 + moved + tick * k) for k in range(segments)])
    return found


def tdn_clips(num_frames: int, segments: int, length: int, clips: int) -> list[list[list[int]]]:
    """Windows of `length` frames, each clamped to the last frame: [clip][segment][frame]."""
    width = Fraction(max(num_frames - length + 1, 1), segments)
    found = []
    for clip in range(clips):
        starts = [
            min(int(width * (s + (clip + Fraction(1, 2)) / clips)), max(num_frames - length, 0))
            for s in range(segments)
        ]
        found.append([[min(start + j, num_frames - 1) for j in range(length)] for start in starts])
    return found


def dense_clips(num_frames: int, frames: int, stride: int, window: int, clips: int) -> list[list[int]]:
    last = max(1, 1 + num_frames - window) - 1
    starts = [int(Fraction(last * clip, clips - 1)) for clip in range(clips)] if clips > 1 else [0]
    return [[(start + k * stride) % num_frames for k in range(frames)] for start in starts]


def lsnet_window(number: int, num_frames: int, count: int, interval: int) -> list[int]:
    """Frame numbers from 1, as the code of LSNet shifts them into the video."""
    span = count + (count - 1) * interval
    if number < span // 2 + 1:
        number += span // 2
    elif number > num_frames - span // 2:
        number -= span // 2
    return [number - span // 2 + j * (1 + interval) for j in range(count)]


# All clips that a training may draw


def tsm_drawn(length: int, segments: int) -> set[tuple[int, ...]]:
    part = length // segments
    if part == 0:
        return set(combinations_with_replacement(range(length), segments))
    return set(product(*(range(k * part, (k + 1) * part) for k in range(segments))))


def study_drawn(num_frames: int, groups: int, per_group: int) -> set[tuple[int, ...]]:
    part, total = num_frames // groups, groups * per_group
    if part >= per_group:
        offsets = combinations(range(part), per_group)
        return {tuple(k * part + o for k in range(groups) for o in chosen) for chosen in offsets}
    if num_frames < total:
        return set(combinations_with_replacement(range(num_frames), total))
    return set(combinations(range(num_frames), total))


def dense_drawn(num_frames: int, frames: int, stride: int, window: int) -> set[tuple[int, ...]]:
    starts = range(max(1, 1 + num_frames - window))
    return {tuple((start + k * stride) % num_frames for k in range(frames)) for start in starts}
