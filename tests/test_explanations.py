"""What methods say that they compared: the logits are those of `classify`, the rest is its equations written out."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from engine.settings import build_parser
from methods import METHODS, build_head
from model import CNN_FSHead
from tests.oracles import heads as literal
from tests.oracles.trx_tsn import explicit_tuples, tsn

STEPS, WIDTH = 4, 64  # of conv4 on clips of four frames
UNEQUAL = torch.tensor([0, 2, 1, 0, 2, 2, 0, 2])  # 3, 1 and 4 shots
PRESENT = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 1, 1]], dtype=torch.bool)
EXACT = {"rtol": 1e-9, "atol": 1e-9}


def build(*flags: str) -> CNN_FSHead:
    """A head on a small backbone, in float64, with random weights where it has any."""
    torch.manual_seed(0)
    settings = ["-c", "unused", "--backbone", "conv4", "--no_pretrained", "--seq_len", str(STEPS), "--method"]
    small = ["--trans_linear_out_dim", "24"]
    head = build_head(build_parser(METHODS).parse_args([*settings, *flags, *small])).double().eval()
    for name, parameter in head.named_parameters():
        if not name.startswith("backbone."):
            parameter.data += 0.1 * torch.randn_like(parameter)
    return head


def videos(count: int, seed: int) -> Tensor:
    """Features (count, S, D): not negative and unlike each other, as after a ReLU."""
    return torch.randn(count, STEPS, WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).relu()


SUPPORT, TARGET = videos(len(UNEQUAL), seed=1), videos(2, seed=2)


@torch.inference_mode()
def explain(head: CNN_FSHead) -> dict[str, Tensor]:
    """Of one episode, without its axis."""
    return {name: value[0] for name, value in head.explain(SUPPORT[None], UNEQUAL[None], TARGET[None]).items()}


def shots_of(label: int) -> Tensor:
    return SUPPORT[label == UNEQUAL]


@torch.no_grad()
def test_trx_shows_the_attention_of_explicit_tuples():
    head = build("trx")
    shown = explain(head)
    assert shown["cardinalities"].tolist() == [2, 3]
    assert shown["tuples_3"].tolist() == [[0, 1, 2], [0, 1, 3], [0, 2, 3], [1, 2, 3]]
    for transformer, cardinality in zip(head.transformers, (2, 3), strict=True):

        def keys(steps: Tensor, transformer=transformer, cardinality=cardinality) -> Tensor:
            linear, tuples = transformer.k_linear, explicit_tuples(transformer.pe(steps), cardinality)
            return transformer.norm_k(torch.nn.functional.linear(tuples, linear.weight, linear.bias))

        attention = shown[f"attention_{cardinality}"]
        for label in range(3):
            shots = shots_of(label)
            scores = keys(TARGET) @ keys(shots).flatten(0, 1).T / math.sqrt(24)
            found = attention[:, label, :, : len(shots)]
            torch.testing.assert_close(found.flatten(2), scores.softmax(dim=-1), **EXACT)
        torch.testing.assert_close(attention.sum(dim=(-2, -1)), torch.ones_like(attention[..., 0, 0]))


@torch.no_grad()
@pytest.mark.parametrize("distance", ["cosine", "mean_cosine", "sqeuclid"])
def test_tsn_shows_what_each_support_video_says_alone(distance):
    head = build("tsn", "--tsn_distance", distance)
    shown, lone = explain(head)["shot_logits"], torch.zeros(1, dtype=torch.long)
    for label in range(3):
        alone = torch.cat([tsn(head, shot[None], lone, TARGET) for shot in shots_of(label)], dim=1)
        if distance == "sqeuclid":  # the literal form has a part that all classes share
            alone = alone + head.scale(TARGET.mean(dim=1).square().mean(dim=-1, keepdim=True))
        torch.testing.assert_close(shown[:, label, : alone.shape[1]], alone, **EXACT)
    assert not shown[:, ~PRESENT].any()


@torch.no_grad()
def test_pal_shows_the_attention_written_out():
    head = build("pal")
    shown = explain(head)
    weights, biases = head.attention.in_proj_weight.chunk(3), head.attention.in_proj_bias.chunk(3)

    def attention(video: Tensor, support: Tensor) -> Tensor:
        query = weights[0] @ video + biases[0]
        scores = [query @ (weights[1] @ other + biases[1]) / math.sqrt(WIDTH) for other in support]
        return torch.stack(scores).softmax(dim=0)

    means = SUPPORT.mean(dim=1)
    of_support = torch.stack([attention(video, means) for video in means])
    values = means @ weights[2].T + biases[2]
    attended = means + head.attention.out_proj(of_support @ values)
    of_target = torch.stack([attention(video.mean(dim=0), attended) for video in TARGET])

    by_class = torch.cat([torch.nonzero(label == UNEQUAL)[:, 0] for label in range(3)])
    torch.testing.assert_close(shown["target_attention"][:, PRESENT], of_target[:, by_class], **EXACT)
    torch.testing.assert_close(
        shown["support_attention"][PRESENT][:, PRESENT], of_support[by_class][:, by_class], **EXACT
    )
    assert not shown["target_attention"][:, ~PRESENT].any()
    assert not shown["support_attention"][~PRESENT].any()
    torch.testing.assert_close(shown["target_attention"].sum(dim=(-2, -1)), torch.ones(2, dtype=torch.float64))
    assert of_target.std() > 1e-3  # so that the comparison says something


@torch.no_grad()
def test_cmn_shows_how_steps_are_shared_out_and_how_near_each_shot_is():
    head = build("cmn", "--cmn_slots", "3")
    shown, slots = explain(head), head.descriptor.slots
    for label in range(3):
        for j, shot in enumerate(shots_of(label)):
            shares = [torch.stack([step @ slot / math.sqrt(WIDTH) for slot in slots]).softmax(dim=0) for step in shot]
            torch.testing.assert_close(shown["support_saliency"][label, j], torch.stack(shares), **EXACT)
            alone = literal.cmn(head, shot[None], torch.zeros(1, dtype=torch.long), TARGET)
            torch.testing.assert_close(shown["shot_logits"][:, label, j], alone[:, 0], **EXACT)
    torch.testing.assert_close(shown["target_saliency"].sum(dim=-1), torch.ones(2, STEPS, dtype=torch.float64))
    assert not shown["shot_logits"][:, ~PRESENT].any()


@torch.no_grad()
@pytest.mark.parametrize(
    "method", ["mean", "max", "diag", "linear", "chamfer_q", "chamfer_s", "chamfer", "chamfer++", "bimhm"]
)
def test_cells_of_a_matrix_add_up_to_the_logits(method):
    """Each method takes so much of each cell of a matrix; BiMHM takes it off the number of steps of both videos."""
    head = build(method)
    shown = explain(head)
    total = (shown["cells"] * shown["similarities"]).sum(dim=(-3, -2, -1))
    expected = total - 2 * STEPS if method == "bimhm" else head.scale(total)
    torch.testing.assert_close(shown["logits"], expected, **EXACT)
    torch.testing.assert_close(shown["shot_similarities"].sum(dim=-1), total, **EXACT)
    assert not shown["cells"][:, ~PRESENT].any()
    if method != "chamfer++":
        assert "tuples" not in shown
        expected = literal.cosine_matrix(TARGET[1], shots_of(2)[3], 0.0 if method == "bimhm" else 0.01)
        torch.testing.assert_close(shown["similarities"][1, 2, 3], expected, **EXACT)
    else:
        query, shot = (explicit_tuples(video[None], 3)[0] for video in (TARGET[1], shots_of(2)[3]))
        torch.testing.assert_close(shown["similarities"][1, 2, 3], literal.cosine_matrix(query, shot), **EXACT)
        assert shown["tuples"].tolist() == [[0, 1, 2], [0, 1, 3], [0, 2, 3], [1, 2, 3]]


@torch.no_grad()
def test_max_counts_the_best_cell_of_every_shot():
    shown = explain(build("max"))
    for label, shots in enumerate([3, 1, 4]):
        matrices = shown["similarities"][:, label, :shots].flatten(-2)
        expected = torch.nn.functional.one_hot(matrices.argmax(dim=-1), STEPS**2) / shots
        torch.testing.assert_close(shown["cells"][:, label, :shots].flatten(-2), expected.double())


@torch.no_grad()
@pytest.mark.parametrize("flags", [[], ["--otam_hard_test"], ["--otam_shot_reduce", "feature"]])
def test_otam_shows_what_aligning_with_each_shot_costs(flags):
    head = build("otam", *flags)
    shown = explain(head)
    if "feature" in flags:
        torch.testing.assert_close(shown["shot_similarities"][..., 0], shown["logits"], **EXACT)
        return
    smoothing = 0.0 if flags else 0.1
    for label in range(3):
        alone = [
            literal.otam(shot[None], torch.zeros(1, dtype=torch.long), TARGET, smoothing) for shot in shots_of(label)
        ]
        torch.testing.assert_close(shown["shot_similarities"][:, label, : len(alone)], torch.cat(alone, 1), **EXACT)
    if flags:  # then the score is what the two paths cost
        cost = ((shown["path"] + shown["reverse_path"]) * (1 - shown["similarities"])).sum(dim=(-2, -1))
        torch.testing.assert_close(shown["shot_similarities"][:, PRESENT], -cost[:, PRESENT], **EXACT)
