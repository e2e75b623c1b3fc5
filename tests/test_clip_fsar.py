"""CLIP-FSAR against its equations written out, its loss, and what names of classes do in a test."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from small_heads import EXACT, SHOTS, build, features, num_parameters, on_meta, stir, without_dropout
from torch import Tensor

from model import CNN_FSHead
from tests.oracles import clip_fsar as literal
from utils import UserError

WIDTH, STEPS = 64, 8  # of conv4; the authors' combination is of clips of eight steps
TEXT = torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
BASE_TEXT = torch.randn(6, WIDTH, generator=torch.Generator().manual_seed(6), dtype=torch.float64)


def head_of(*flags: str) -> CNN_FSHead:
    return stir(build("--method", "clip_fsar", "--seq_len", str(STEPS), *flags))


def episode(labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    support, target = (features(n, STEPS, WIDTH, seed=n) for n in (len(labels), 4))
    return support, labels, target


def outputs_of(head: CNN_FSHead, support: Tensor, labels: Tensor, target: Tensor) -> dict[str, Tensor]:
    outputs = head.classify(support[None], labels[None], target[None], class_text=TEXT[None])
    return {name: value[0] for name, value in outputs.items()}


@pytest.mark.parametrize("merge", ["before", "after"])
@pytest.mark.parametrize("labels", SHOTS.values(), ids=SHOTS)
def test_clip_fsar_equals_its_equations(labels, merge):
    head, case = head_of("--clip_fsar_merge", merge), episode(labels)
    expected = -literal.distances(head, *case, TEXT)
    tested, trained = outputs_of(head, *case), outputs_of(without_dropout(head), *case)
    assert list(tested) == ["logits"]
    for outputs in (tested, trained):
        torch.testing.assert_close(outputs["logits"], expected, **EXACT)


def test_merging_shots_before_or_after_is_the_same_for_one_shot_alone():
    heads = [head_of("--clip_fsar_merge", merge) for merge in ("before", "after")]
    for name, labels in SHOTS.items():
        logits = [outputs_of(head, *episode(labels))["logits"] for head in heads]
        assert torch.allclose(*logits, rtol=1e-12) == (name == "one shot")


def test_the_loss_names_every_clip_among_the_training_classes():
    head, case = (
        without_dropout(head_of("--clip_fsar_aux_weight", "3", "--text_scale", "20")),
        episode(SHOTS["unequal"]),
    )
    labels = torch.tensor([1, 2, 0, 0])
    task = {
        "target_labels": labels,
        "real_support_labels": torch.tensor([3, 5, 0])[SHOTS["unequal"]],
        "real_target_labels": torch.tensor([5, 0, 3, 3]),
        "base_text": BASE_TEXT,
    }
    named = literal.named(head, torch.cat([case[0], case[2]]), BASE_TEXT)
    assert head.text_scale > 15
    expected = F.cross_entropy(-literal.distances(head, *case, TEXT), labels) + 3 * F.cross_entropy(
        named, torch.cat([task["real_support_labels"], task["real_target_labels"]])
    )
    torch.testing.assert_close(head.loss(task, outputs_of(head, *case)), expected, **EXACT)


@pytest.mark.parametrize("share", [0.9, 1.0])
def test_names_have_their_share_of_the_score_in_tests(share):
    flags = ("--clip_fsar_text", str(share), "--text_scale", "50")
    head, (support, labels, target) = head_of(*flags), episode(SHOTS["two shots"])
    found = literal.distances(head, support, labels, target, TEXT)
    expected = literal.combined(head, found, target, TEXT, share)
    logits = outputs_of(head, support, labels, target)["logits"]
    torch.testing.assert_close(logits.softmax(dim=1), expected / expected.sum(dim=1, keepdim=True), **EXACT)
    by_name, by_video = literal.named(head, target, TEXT), -found
    if share == 1.0:
        torch.testing.assert_close(logits.softmax(dim=1), by_name.softmax(dim=1), **EXACT)
    assert not torch.equal(by_name.argmax(dim=1), by_video.argmax(dim=1))  # so that the share matters
    trained = outputs_of(without_dropout(head), support, labels, target)
    torch.testing.assert_close(trained["logits"], by_video, **EXACT)


def test_without_a_weight_the_factor_on_names_stays():
    head = head_of("--clip_fsar_aux_weight", "0").train()
    assert list(outputs_of(head, *episode(SHOTS["one shot"]))) == ["logits"]
    assert not head.text_scale.requires_grad
    assert head_of().text_scale.requires_grad


@pytest.fixture
def backbone_of_width(tmp_path) -> Callable[[int], list[str]]:
    """The flags of a head on a backbone that says that it gives so many features."""
    file = tmp_path / "own.py"
    file.write_text(
        "from backbones import build_backbone\n\n\ndef build(seq_len, width):\n"
        "    net = build_backbone('conv4', seq_len=seq_len)\n    net.feature_dim = width\n    return net\n"
    )
    return lambda width: [
        "--method",
        "clip_fsar",
        "--backbone",
        f"{file}:build",
        "--backbone_options",
        f"width={width}",
    ]


@pytest.mark.parametrize(("width", "expected"), [(512, 3_149_825), (1024, 8_394_753)])
def test_clip_fsar_has_the_parameters_of_the_release(width, expected, backbone_of_width):
    assert num_parameters(on_meta(*backbone_of_width(width))) == expected


def test_features_that_heads_of_attention_cannot_share_are_refused(backbone_of_width):
    with pytest.raises(UserError, match="has 8 heads of attention"):
        on_meta(*backbone_of_width(12))


def test_zero_shot_is_the_name_of_the_mean_frame_and_looks_at_no_support():
    head, (support, labels, target) = build("--method", "clip_zero_shot"), episode(SHOTS["unequal"])
    assert num_parameters(head) == 0
    logits = head.classify(support[None], labels[None], target[None], class_text=TEXT[None])[0]
    for query, row in zip(target, logits, strict=True):
        mean = F.normalize(query, dim=1).mean(dim=0)
        expected = torch.stack([100 * mean @ name / (mean.norm() * name.norm()) for name in TEXT])
        torch.testing.assert_close(row, expected, **EXACT)


def test_what_is_explained_is_what_makes_the_logits():
    head, (support, labels, target) = head_of("--clip_fsar_text", "0.9"), episode(SHOTS["two shots"])
    shown = head.explain(support[None], labels[None], target[None], class_text=TEXT[None])
    torch.testing.assert_close(shown["logits"][0], outputs_of(head, support, labels, target)["logits"], **EXACT)
    found = literal.distances(head, support, labels, target, TEXT)
    torch.testing.assert_close(shown["shot_similarities"][0, ..., 0], -found, **EXACT)
    torch.testing.assert_close(shown["text_logits"][0], literal.named(head, target, TEXT), **EXACT)
    cosine = F.cosine_similarity(target[2, 5], TEXT[1], dim=0)
    torch.testing.assert_close(shown["text_similarities"][0, 2, 5, 1], cosine, **EXACT)
