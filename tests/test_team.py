"""TEAM against its equations written out, one pair of classes after the other."""

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

from model import CNN_FSHead
from tests.oracles import team as literal

WIDTH = 16


def head_of(*flags: str) -> CNN_FSHead:
    return stir(build("--method", "team", "--team_tokens", "5", "--backbone_options", f"width={WIDTH}", *flags))


def episode(labels: Tensor, queries: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    return features(len(labels), STEPS, WIDTH), labels, features(queries, STEPS, WIDTH, seed=1)


@pytest.mark.parametrize("labels", [*SHOTS.values(), torch.tensor([1, 0]), torch.arange(6)], ids=str)
def test_team_equals_its_equations(labels):
    head, case = head_of(), episode(labels)
    instance, exclusive = literal.parts(head, *case)
    for outputs in (outputs_of(head, *case), outputs_of(without_dropout(head), *case)):  # which go other ways
        torch.testing.assert_close(outputs["instance"], instance, **EXACT)
        torch.testing.assert_close(outputs["exclusive"], exclusive, **EXACT)
        torch.testing.assert_close(outputs["logits"], instance + exclusive, **EXACT)


@pytest.mark.parametrize("training", [False, True])
def test_team_has_the_gradients_of_its_equations(training):
    head, (support, labels, target) = head_of(), episode(SHOTS["unequal"])
    head = without_dropout(head).train(training)
    learnt = [support.requires_grad_(), target.requires_grad_()]
    learnt += [p for name, p in head.named_parameters() if not name.startswith("backbone.")]
    fast, slow = outputs_of(head, support, labels, target)["logits"], literal.team(head, support, labels, target)
    cotangent = torch.randn_like(fast)
    found, expected = (torch.autograd.grad(logits, learnt, cotangent) for logits in (fast, slow))
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-9)


def test_both_parts_are_learnt_and_their_sum_is_not():
    head, case = head_of(), episode(SHOTS["two shots"])
    outputs, task = outputs_of(head, *case), {"target_labels": torch.tensor([1, 2, 0])}
    expected = sum(F.cross_entropy(part, task["target_labels"]) for part in literal.parts(head, *case))
    torch.testing.assert_close(head.loss(task, outputs), expected, **EXACT)


@pytest.mark.parametrize(("flags", "expected"), [([], 8_519_680), (["--team_tokens", "80"], 8_519_680 + 20 * 2048)])
def test_team_has_the_parameters_of_the_release(flags, expected):
    assert num_parameters(on_meta("--method", "team", *flags)) == expected


def test_one_class_alone_is_refused():
    with pytest.raises(ValueError, match="expected 2 classes or more, found 1"):
        outputs_of(head_of(), *episode(torch.tensor([0, 0])))


def test_team_explains_where_its_patterns_look():
    head, (support, labels, target) = head_of(), episode(SHOTS["unequal"])
    shown = {name: value[0] for name, value in head.explain(support[None], labels[None], target[None]).items()}
    tokens = head.tokens
    for looks, clip in (
        (shown["target_tokens"][1], target[1]),
        (shown["support_tokens"][2, 3], support[labels == 2][3]),
    ):
        assert looks.shape == (5, STEPS)
        found = looks @ tokens.norm(tokens.encoding(clip))  # what they find is all that is compared
        torch.testing.assert_close(found, literal.found_in(tokens, clip), **EXACT)
