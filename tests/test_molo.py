"""MoLo against its equations written out, its losses and its decoder."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from small_heads import (
    EXACT,
    SHOTS,
    STEPS,
    build,
    features,
    num_parameters,
    on_meta,
    outputs_of,
    stir,
    without_dropout,
)
from torch import Tensor

from methods.molo import Motion, MotionDecoder
from model import CNN_FSHead
from tests.oracles import molo as literal
from utils import UserError

WIDTH = 16


def head_of(*flags: str, num_train_classes: int = 0) -> CNN_FSHead:
    head = build(
        "--method", "molo", "--backbone_options", f"width={WIDTH}", *flags, num_train_classes=num_train_classes
    )
    return stir(head)


def episode(labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    support, target = (features(n, WIDTH, STEPS, 3, 2, seed=n) for n in (len(labels), 3))
    return support, labels, target


@pytest.mark.parametrize("labels", SHOTS.values(), ids=SHOTS)
def test_molo_equals_its_equations(labels):
    head, case = head_of(), episode(labels)
    expected = literal.molo(head, *case)
    tested = outputs_of(head, *case)
    assert list(tested) == ["logits"]
    torch.testing.assert_close(tested["logits"], expected["logits"], **EXACT)
    trained = outputs_of(without_dropout(head), *case)
    for name in ("logits", "contrasts"):
        torch.testing.assert_close(trained[name], expected[name], **EXACT)
    motion = torch.stack([literal.motion_maps(head, clip) for clip in (*case[0], *case[2])])
    torch.testing.assert_close(trained["motion_maps"], motion, **EXACT)


def task_of(labels: Tensor) -> dict[str, Tensor]:
    return {
        "target_labels": torch.tensor([1, 2, 0]),
        "real_support_labels": torch.tensor([3, 5, 0])[labels],
        "real_target_labels": torch.tensor([5, 0, 3]),
        "support_set": features(len(labels) * STEPS, 3, 12, 9, seed=3),
        "target_set": features(3 * STEPS, 3, 12, 9, seed=4),
    }


def test_the_loss_is_the_sum_of_its_parts():
    weights = "--molo_contrast 0.2 --molo_reconstruction 0.7 --molo_aux_weight 0.3"
    head, case = without_dropout(head_of(*weights.split(), num_train_classes=6)), episode(SHOTS["unequal"])
    outputs, task = outputs_of(head, *case), task_of(SHOTS["unequal"])
    expected, labels = literal.molo(head, *case), task["target_labels"]
    loss = F.cross_entropy(expected["logits"], labels)
    loss = loss + 0.2 * sum(F.cross_entropy(contrast, labels) for contrast in expected["contrasts"])
    classes = torch.cat([task["real_support_labels"], task["real_target_labels"]])
    loss = loss + 0.3 * F.cross_entropy(head.aux_classifier(expected["pooled"]), classes)

    clips = torch.cat([task["support_set"], task["target_set"]]).unflatten(0, (-1, STEPS))
    differences = torch.stack([clip[t + 1] - clip[t] for clip in clips for t in range(STEPS - 1)])
    motion = torch.cat([literal.motion_maps(head, clip) for clip in (*case[0], *case[2])])
    drawn = head.decoder(motion, (12, 9))
    loss = loss + 0.7 * (drawn - differences).square().mean()
    torch.testing.assert_close(head.loss(task, outputs), loss, **EXACT)


def test_decoder_has_the_factors_of_the_release_on_its_maps():
    head = head_of()
    head.decoder.train()
    motion = features(2, WIDTH // 8, 2, 3)
    torch.testing.assert_close(head.decoder(motion, (64, 96)), literal.drawn(head, motion), **EXACT)


def test_decoder_draws_frames_of_any_size():
    decoder = MotionDecoder(4)
    for cells, frame in (((1, 1), (16, 16)), ((3, 2), (20, 33)), ((5, 5), (84, 84))):
        assert decoder(torch.randn(2, 4, *cells), frame).shape == (2, 3, *frame)


def test_the_decoder_learns_to_draw_what_moves():
    """From maps of a bright spot that moves: its error falls far below that of drawing nothing."""
    torch.manual_seed(0)
    frames = torch.zeros(4, 3, 8, 8)
    for t, frame in enumerate(frames):
        frame[:, 2 * t : 2 * t + 2, 2:4] = 1.0
    differences = frames[1:] - frames[:-1]
    maps = F.avg_pool2d(frames, 4)[None].transpose(1, 2)  # (1, 3, 4, 2, 2)
    motion, decoder = Motion(3, 4), MotionDecoder(4)
    optimizer = torch.optim.Adam([*motion.parameters(), *decoder.parameters()], lr=0.02)
    for _ in range(30):
        loss = F.mse_loss(decoder(motion(maps)[0], (8, 8)), differences)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.4 * differences.square().mean()


def test_parts_without_weight_are_not_built():
    head = head_of("--molo_reconstruction", "0", "--molo_contrast", "0", "--molo_aux_weight", "0", num_train_classes=6)
    assert not head.loss_needs_pixels
    assert head.decoder is None
    assert head.aux_classifier is None
    assert list(outputs_of(head.train(), *episode(SHOTS["one shot"]))) == ["logits"]


@pytest.mark.parametrize(("classes", "expected"), [(64, 66_096_597), (0, 66_096_597 - 131_136)])
def test_molo_has_the_parameters_of_the_release(classes, expected):
    assert num_parameters(on_meta("--method", "molo", num_train_classes=classes)) == expected


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--seq_len 1", "looks at the motion between steps: backbone resnet50 gives 1 steps for --seq_len 1"),
        ("--freeze_backbone", "draws frames and --freeze_backbone trains on features"),
        ("--backbone c3d --seq_len 16", "differences of successive frames: backbone c3d gives 2 steps"),
    ],
)
def test_what_molo_cannot_use_is_refused(flags, message):
    with pytest.raises(UserError, match=message):
        on_meta("--method", "molo", *flags.split())


def test_molo_explains_the_logits_that_steps_alone_would_give():
    head, (support, labels, target) = head_of("--molo_motion", "0"), episode(SHOTS["unequal"])
    shown = {name: value[0] for name, value in head.explain(support[None], labels[None], target[None]).items()}
    assert shown["similarities"].shape == (3, 3, 1, STEPS, STEPS)
    torch.testing.assert_close(shown["shot_similarities"][..., 0], shown["logits"], **EXACT)
    for found, clip in (
        (shown["target_motion"][1], target[1]),
        (shown["support_motion"][2, 3], support[labels == 2][3]),
    ):
        expected = literal.motion_maps(head, clip).square().sum(dim=1).sqrt()
        torch.testing.assert_close(found, expected, **EXACT)
