"""Which images are frames and in which order: the names of real folders, and those that have no certain order."""

from __future__ import annotations

import random
from itertools import permutations

import pytest

from clips.frame_names import frame_numbers, frame_order


def shuffled(names: list[str], seed: int = 0) -> list[str]:
    return random.Random(seed).sample(names, len(names))


def counted(form: str, numbers: range) -> list[str]:
    return [form.format(number) for number in numbers]


# In their right order, which is said here by hand.
ORDERS = {
    "growing": ["f1.jpg", "f2.jpg", "f9.jpg", "f10.jpg", "f100.jpg"],
    "padded, then overflowing": ["00001.jpg", "99999.jpg", "100000.jpg"],
    "suffixes of different length": ["1.jpeg", "2.jpg", "3.JPEG", "10.png"],
    "padded and not": ["img_01.jpg", "img_2.jpg", "img_003.jpg", "img_10.jpg"],
    "letter case": ["IMG_1.JPG", "img_2.jpg"],
    "below zero": ["-10.jpg", "-2.jpg", "-1.jpg", "0.jpg", "1.jpg"],
    "below zero behind a line": ["img_-2.jpg", "img_-1.jpg", "img_0.jpg"],
    "what all begin with is no sign": ["-1.jpg", "-2.jpg", "-10.jpg"],
    "hyphen behind a letter": ["img-1.jpg", "img-2.jpg", "img-10.jpg"],
    "with times": [f"frame_{n}_t{n * 0.04:.2f}.jpg" for n in range(1, 31)],
    "with times as Python prints them": [f"frame_{n}_t{n / 25}.jpg" for n in range(1, 31)],
    "times alone": [f"t{n * 0.04:.2f}.jpg" for n in range(1, 60)],
    "decimals that count evenly": ["t0.1.jpg", "t0.15.jpg", "t0.2.jpg"],
    "sections, which are no decimals": ["1.8.jpg", "1.9.jpg", "1.10.jpg", "1.11.jpg"],
    "the last of three numbers": ["s01_e02_0001.jpg", "s01_e02_0002.jpg", "s01_e02_0010.jpg"],
    "two of three numbers": ["s01_e1_9.jpg", "s01_e1_10.jpg", "s01_e2_1.jpg", "s01_e10_1.jpg"],
    "a number that goes on": ["s1_1.jpg", "s1_2.jpg", "s2_3.jpg", "s2_4.jpg"],
    "clock times": ["00-00-58.jpg", "00-00-59.jpg", "00-01-00.jpg"],
    "gaps": ["frame_1_t0.04.jpg", "frame_2_t0.08.jpg", "frame_4_t0.16.jpg", "frame_9_t0.36.jpg"],
    "names of videos before them": ["#20_Rhythm_2.jpg", "#20_Rhythm_10.jpg"],
    "one image without a number": ["frame.jpg"],
    "no image": [],
}


@pytest.mark.parametrize("kind", ORDERS)
def test_frames_come_in_the_order_of_their_numbers(kind: str) -> None:
    names = ORDERS[kind]
    for seed in range(5):
        assert frame_order(shuffled(names, seed)) == (names, [])


def test_any_padding_and_any_beginning_give_the_order_of_the_integers() -> None:
    rng = random.Random(0)
    for _ in range(300):
        numbers = rng.sample(range(2000), rng.randint(1, 40))
        beginning, width = rng.choice(["", "a", "img_", "v1_", "x 2-"]), rng.choice([1, 3, 5])
        name = {n: f"{beginning}{n:0{rng.choice([width, width, 1])}d}.{rng.choice(['jpg', 'jpeg'])}" for n in numbers}
        assert frame_order(list(name.values())) == ([name[n] for n in sorted(numbers)], [])


@pytest.mark.parametrize(
    "others",
    [
        ["cover.jpg"],
        ["thumbnail.jpg", "Thumbs.png"],
        ["img_0003 copy.jpg", "img_0004 (1).jpg", "Copy of img_0001.jpg"],
        [*counted("flow_x_{:04d}.jpg", range(1, 9)), *counted("flow_y_{:04d}.jpg", range(1, 9))],
        counted("flow_{:04d}.jpg", range(1, 17)),
        counted("mask_{:04d}.png", range(1, 8)),
    ],
)
def test_images_of_another_name_are_no_frames(others: list[str]) -> None:
    frames = counted("img_{:04d}.jpg", range(1, 9))
    assert frame_order(shuffled(frames + others)) == (frames, sorted(others))


def test_a_folder_of_flow_alone_has_frames() -> None:
    assert frame_order(["flow_x_2.jpg", "flow_x_1.jpg"]) == (["flow_x_1.jpg", "flow_x_2.jpg"], [])


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["b.jpg", "a.jpg", "c.jpg"], "no number in the names of its images says their order: 'a.jpg', 'b.jpg'"),
        (["img_1.jpg", "img_01.jpg", "img_2.jpg"], "'img_01.jpg' and 'img_1.jpg' are one frame"),
        (["1.jpg", "1.png"], "'1.jpg' and '1.png' are one frame"),
        (
            [f"{eye}_{n}.jpg" for eye in ("left", "right") for n in (1, 2)],
            "two series .* 'left_1.jpg' and 'right_1.jpg'",
        ),
        (["05_frame_1.jpg", "03_frame_2.jpg"], "the order of '03_frame_2.jpg' and '05_frame_1.jpg' is not certain"),
        (["cam3_0001.jpg", "cam1_0002.jpg", "cam2_0003.jpg"], "is not certain"),
        (["t0.1.jpg", "t0.15.jpg", "t0.3.jpg"], "the order of 't0.3.jpg' and 't0.15.jpg' is not certain"),
    ],
)
def test_names_without_a_certain_order_are_refused_with_two_of_them(names: list[str], words: str) -> None:
    for order in permutations(names):
        with pytest.raises(ValueError, match=words):
            frame_order(order)


def test_the_number_of_a_frame_is_the_one_that_grows() -> None:
    assert frame_numbers(["img_00003.jpg", "img_00007.jpg"]) == [3, 7]
    assert frame_numbers(ORDERS["with times"]) == list(range(1, 31))
    assert frame_numbers(ORDERS["the last of three numbers"]) == [1, 2, 10]
    assert frame_numbers(ORDERS["a number that goes on"]) == [1, 2, 3, 4]
    assert frame_numbers(ORDERS["below zero"]) == [-10, -2, -1, 0, 1]
    assert frame_numbers(["v1_0012.jpg"]) == [12]
    with pytest.raises(ValueError, match="'cover.jpg' has no number"):
        frame_numbers(["cover.jpg"])
    with pytest.raises(ValueError, match="no number grows from frame to frame: 's01_e1_9.jpg'"):
        frame_numbers(ORDERS["two of three numbers"])
