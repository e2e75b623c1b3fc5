"""STRM against its equations written out, and the head that its release leaves out of training and checkpoints."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from small_heads import EXACT, SHOTS, STEPS, build, features, num_parameters, on_meta, outputs_of, stir
from torch import Tensor

from model import CNN_FSHead
from tests.oracles import strm as literal
from tests.oracles.trx_tsn import positional_encoding
from utils import UserError

WIDTH = 16


def head_of(*flags: str) -> CNN_FSHead:
    return stir(build("--method", "strm", "--backbone_options", f"width={WIDTH}", *flags))


def episode(labels: Tensor, side: tuple[int, int] = (7, 7)) -> tuple[Tensor, Tensor, Tensor]:
    support, target = (features(n, WIDTH, STEPS, *side, seed=n) for n in (len(labels), 2))
    return support, labels, target


@pytest.mark.parametrize("side", [(7, 7), (2, 5)], ids=["7 x 7", "2 x 5"])
@pytest.mark.parametrize("labels", SHOTS.values(), ids=SHOTS)
def test_strm_equals_its_equations(labels, side):
    head, case = head_of("--strm_aux_weight", "0.3"), episode(labels, side)
    outputs = outputs_of(head, *case)
    relations, nearness = literal.parts(head, *case)
    torch.testing.assert_close(outputs["relations"], relations, **EXACT)
    torch.testing.assert_close(outputs["nearness"], nearness, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(outputs["logits"], relations + 0.3 * nearness, rtol=1e-6, atol=1e-6)
    labels = torch.tensor([1, 0])
    expected = F.cross_entropy(relations, labels) + 0.3 * F.cross_entropy(nearness, labels)
    torch.testing.assert_close(head.loss({"target_labels": labels}, outputs), expected, rtol=1e-6, atol=1e-6)


def test_patches_are_the_same_in_every_memory_order():
    head, (support, labels, target) = head_of(), episode(SHOTS["one shot"])
    channels_last = support.to(memory_format=torch.channels_last_3d)
    assert not channels_last.is_contiguous()
    torch.testing.assert_close(
        outputs_of(head, channels_last, labels, target)["logits"], outputs_of(head, support, labels, target)["logits"]
    )


def test_attention_of_patches_starts_without_effect():
    head, case = build("--method", "strm", "--backbone_options", f"width={WIDTH}"), episode(SHOTS["one shot"])
    before = outputs_of(head, *case)["logits"]
    head.patches.v_linear.weight.data.normal_()
    assert torch.equal(outputs_of(head, *case)["logits"], before)
    head.patches.gain.data += 1
    assert not torch.allclose(outputs_of(head, *case)["logits"], before)


def test_the_score_of_near_pairs_can_be_left_out():
    head, case = head_of("--strm_aux", "off"), episode(SHOTS["unequal"])
    outputs = outputs_of(head, *case)
    assert list(outputs) == ["logits"]
    torch.testing.assert_close(outputs["logits"], literal.parts(head, *case)[0], **EXACT)
    labels = torch.tensor([1, 0])
    torch.testing.assert_close(
        head.loss({"target_labels": labels}, outputs), F.cross_entropy(outputs["logits"], labels), **EXACT
    )


@pytest.mark.parametrize(("aux", "learnt"), [("trained", True), ("random", False)])
def test_the_layer_behind_near_pairs_is_kept_and_trained_or_random(aux, learnt):
    head, (support, labels, target) = head_of("--strm_aux", aux), episode(SHOTS["unequal"])
    target.requires_grad_()
    assert {"pairs.project.weight", "pairs.project.bias"} <= head.state_dict().keys()
    outputs_of(head, support, labels, target)["nearness"].sum().backward()
    assert (head.pairs.project.weight.grad is not None) == learnt
    assert target.grad.any()  # features learn from a random layer too


@pytest.mark.parametrize(("flags", "expected"), [([], 39_868_305 - 2_304), (["--strm_aux", "off"], 35_672_977 - 2_304)])
def test_strm_has_the_parameters_of_the_release_but_for_a_norm_that_has_no_use_there(flags, expected):
    assert num_parameters(on_meta("--method", "strm", *flags)) == expected


def test_one_step_makes_no_pair():
    with pytest.raises(UserError, match="compares pairs of steps: backbone conv4 gives 1 for --seq_len 1"):
        head_of("--seq_len", "1")


def test_strm_explains_by_the_pairs_that_pairs_of_a_query_look_at():
    head, (support, labels, target) = head_of(), episode(SHOTS["unequal"])
    shown = {name: value[0] for name, value in head.explain(support[None], labels[None], target[None]).items()}
    assert shown["tuples_2"].tolist() == [[0, 1], [0, 2], [0, 3], [1, 2], [1, 3], [2, 3]]
    looks = shown["attention_2"].sum(dim=(-2, -1))  # (Q, K, M)
    torch.testing.assert_close(looks, torch.ones_like(looks))
    torch.testing.assert_close(shown["logits"], outputs_of(head, support, labels, target)["logits"], **EXACT)
    patches = literal.patches_of(support[labels == 2][3][:, 1])  # of the second step of the fourth shot
    patches = patches + positional_encoding(*patches.shape).to(patches)
    looks = head.patches.q_linear(patches) @ head.patches.k_linear(patches).T
    expected = torch.stack([row.softmax(dim=0) for row in looks]).mean(dim=0).reshape(4, 4)
    torch.testing.assert_close(shown["support_spatial"][2, 3, 1], expected, **EXACT)
    assert shown["target_spatial"].shape == (len(target), STEPS, 4, 4)
