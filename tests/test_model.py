"""TSN, TRX and what they share with every method: against literal forms, and through the base class."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from unittest import mock

import pytest
import torch
from einops import rearrange, repeat
from torch import Tensor, nn

from engine.settings import build_parser
from methods import METHODS, build_head
from model import (
    CNN_FSHead,
    LogitScale,
    PositionalEncoding,
    TemporalCrossTransformer,
    TupleLinear,
    Tuples,
    distribute,
    group_by_class,
    squared_distances,
)
from tests.oracles import trx_tsn as literal
from utils import UserError

STEPS, WIDTH = 5, 64  # of conv4 on clips of five frames
EQUAL_SHOTS = torch.tensor([1, 0, 2, 2, 1, 0])
ONE_SHOT = torch.tensor([2, 0, 1])
UNEQUAL_SHOTS = torch.tensor([0, 2, 1, 0, 2, 2, 0, 2])


def build(*flags: str) -> CNN_FSHead:
    """A head on a small backbone with random weights, always the same ones."""
    torch.manual_seed(0)
    settings = ["-c", "unused", "--backbone", "conv4", "--no_pretrained", "--seq_len", str(STEPS)]
    return build_head(build_parser(METHODS).parse_args([*settings, *flags]))


def build_trx(*cardinalities: int, width: int = 24) -> CNN_FSHead:
    flags = ["--method", "trx", "--trans_linear_out_dim", str(width), "--temp_set", *map(str, cardinalities)]
    return build(*flags).eval()


def features(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Not negative and unlike each other, as after a ReLU."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=dtype).relu()


def frames(clips: int, *episodes: int, size: int = 16) -> Tensor:
    generator = torch.Generator().manual_seed(clips)
    return torch.randn(*episodes, clips * STEPS, 3, size, size, generator=generator)


def relative_error(found: Tensor, expected: Tensor) -> float:
    return ((found - expected).norm() / expected.norm()).item()


# ---------------------------------------------------------------------------------------------------------------------
# TRX


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("labels", [ONE_SHOT, EQUAL_SHOTS, UNEQUAL_SHOTS], ids=["one shot", "equal", "unequal"])
@pytest.mark.parametrize("cardinalities", [[1], [2], [3], [2, 3], [4], [STEPS]])
def test_trx_equals_its_equations(cardinalities, labels, dtype):
    head = build_trx(*cardinalities).to(dtype)
    support, target = features(len(labels), STEPS, WIDTH, dtype=dtype), features(4, STEPS, WIDTH, dtype=dtype)
    logits = head.classify(support[None], labels[None], target[None])[0]
    torch.testing.assert_close(logits, literal.trx(head, support, labels, target), **TOLERANCE[dtype])


TOLERANCE = {torch.float64: {"rtol": 1e-9, "atol": 1e-9}, torch.float32: {"rtol": 1e-4, "atol": 1e-5}}


def test_trx_gradients_equal_those_of_its_equations():
    head = build_trx(2, 3).double()
    support, target = features(len(UNEQUAL_SHOTS), STEPS, WIDTH), features(4, STEPS, WIDTH)
    inputs = [support.requires_grad_(), target.requires_grad_(), *head.transformers.parameters()]
    fast = head.classify(support[None], UNEQUAL_SHOTS[None], target[None])[0]
    slow = literal.trx(head, support, UNEQUAL_SHOTS, target)
    cotangent = torch.randn_like(fast)
    for found, expected in zip(
        torch.autograd.grad(fast, inputs, cotangent), torch.autograd.grad(slow, inputs, cotangent), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_trx_with_the_whole_clip_as_its_only_tuple_and_one_shot_compares_values():
    head = build_trx(STEPS).double()
    support, target = features(3, STEPS, WIDTH), features(4, STEPS, WIDTH)
    branch = head.transformers[0]
    values = [branch.v_linear(branch.pe(steps))[:, 0] for steps in (support, target)]
    expected = -(values[1][:, None] - values[0]).square().sum(-1)
    torch.testing.assert_close(head.classify(support[None], torch.arange(3)[None], target[None])[0], expected)


def test_trx_tells_a_clip_from_its_reverse():
    """By its encoding of time; without it, only tuples of two and more frames can."""
    support = features(2, STEPS, WIDTH)
    support = torch.stack([support[0], support[0].flip(0)])
    labels, target = torch.arange(2)[None], support[None]
    for cardinality in (1, 2):
        head = build_trx(cardinality).double()
        head.transformers[0].pe.table.zero_()
        logits = head.classify(support[None], labels, target)[0]
        assert ((logits[0, 0] - logits[0, 1]).abs().item() > 1e-3) == (cardinality > 1)


def test_distances_are_never_negative():
    """Queries that are their own prototypes have distance 0, which rounding must not turn below."""
    mix, rows = features(20, 6, dtype=torch.float32), features(6, 64, dtype=torch.float32)
    same_shots = Tuples(repeat(mix, "t r -> 1 1 2 t r"), repeat(rows, "r e -> 1 1 2 r e"))
    queries = Tuples(mix[None, None], rows[None, None])
    own = torch.einsum("j,tr->tjr", torch.tensor([0.3, 0.7]), mix)
    distances = squared_distances(rearrange(own, "t j r -> 1 1 1 t j r"), same_shots, queries)
    assert distances.shape == (1, 1, 1, 20)
    assert distances.min() >= 0
    assert distances.max() < 1e-5 * queries.squares().max()


def test_attention_is_shared_out_over_the_shots_and_tuples_of_each_class():
    head = build_trx(2).double()
    branch = head.transformers[0]
    support, target = (branch.describe(features(videos, STEPS, WIDTH))[None] for videos in (8, 3))
    attention = branch.attention(support, UNEQUAL_SHOTS[None], target)
    _, present = group_by_class(support, UNEQUAL_SHOTS[None])
    assert attention.shape == (1, 3, 3, 10, 4, 10)
    torch.testing.assert_close(attention.sum(dim=(-2, -1)), torch.ones(1, 3, 3, 10).double())
    assert torch.equal(attention.sum(dim=(2, 3, 5)) > 0, present)


@pytest.mark.parametrize("cardinality", [1, 2, 3, STEPS])
def test_tuple_linear_equals_a_linear_map_of_built_tuples(cardinality):
    layer = TupleLinear(WIDTH, cardinality, 7, STEPS).double()
    plain = nn.Linear(cardinality * WIDTH, 7).double()
    plain.load_state_dict(layer.state_dict())
    steps = features(2, 3, STEPS, WIDTH).requires_grad_()
    tuples = torch.stack(
        [torch.cat([steps[:, :, t] for t in c], -1) for c in combinations(range(STEPS), cardinality)], 2
    )
    fast, slow = layer(steps), plain(tuples)
    torch.testing.assert_close(fast, slow, rtol=1e-9, atol=1e-9)
    cotangent = torch.randn_like(fast)
    found = torch.autograd.grad(fast, [steps, layer.weight, layer.bias], cotangent)
    expected = torch.autograd.grad(slow, [steps, plain.weight, plain.bias], cotangent)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("width", [WIDTH, 7])
def test_positional_encoding_equals_the_published_formula(width):
    encoding = PositionalEncoding(width, max_steps=12, dropout=0.0)
    zeros = torch.zeros(2, STEPS, width)
    torch.testing.assert_close(encoding(zeros)[1], literal.positional_encoding(12, width)[:STEPS])


def test_dropout_acts_on_frames_before_tuples_and_differs_between_cardinalities(monkeypatch):
    head = build("--method", "trx", "--temp_set", "2", "3", "--trans_dropout", "0.5").train()
    seen: list[Tensor] = []
    for branch in head.transformers:
        rows = branch.k_linear.rows
        monkeypatch.setattr(branch.k_linear, "rows", lambda steps, rows=rows: seen.append(steps) or rows(steps))
    steps = 1 + features(1, 2, STEPS, WIDTH, dtype=torch.float32)
    head.classify(steps, torch.arange(2)[None], steps)
    dropped = [encoded == 0 for encoded in torch.stack(seen).flatten(0, 1)]  # of 2 cardinalities, 4 videos each
    assert len(dropped) == 8
    assert all(mask.shape == (STEPS, WIDTH) for mask in dropped)
    assert all(0.4 < mask.float().mean() < 0.6 for mask in dropped)
    assert not any(torch.equal(a, b) for a, b in combinations(dropped, 2))


@pytest.mark.parametrize(("cardinality", "parameters"), [(2, 9_441_792), (3, 14_160_384)])
def test_trx_has_as_many_parameters_as_the_published_one(cardinality, parameters):
    with torch.device("meta"):
        branch = TemporalCrossTransformer(2048, 1152, cardinality, num_steps=8, dropout=0.1)
    assert sum(p.numel() for p in branch.parameters()) == parameters
    assert list(branch.state_dict()) == [
        "k_linear.weight", "k_linear.bias", "v_linear.weight", "v_linear.bias", "norm_k.weight", "norm_k.bias",
    ]  # fmt: skip


def test_trx_refuses_tuples_longer_than_the_clip():
    with pytest.raises(UserError, match=f"--temp_set 2 6 needs tuples of 1 to {STEPS} steps"):
        build("--method", "trx", "--temp_set", "2", "6")


# ---------------------------------------------------------------------------------------------------------------------
# TSN


@pytest.mark.parametrize("labels", [ONE_SHOT, EQUAL_SHOTS, UNEQUAL_SHOTS], ids=["one shot", "equal", "unequal"])
@pytest.mark.parametrize("distance", ["cosine", "mean_cosine", "sqeuclid"])
def test_tsn_equals_its_literal_form_up_to_a_constant_of_each_query(distance, labels):
    head = build("--method", "tsn", "--tsn_distance", distance).double()
    support, target = features(len(labels), STEPS, WIDTH), features(6, STEPS, WIDTH)
    logits = head.classify(support[None], labels[None], target[None])[0]
    expected = literal.tsn(head, support, labels, target)
    if distance != "sqeuclid":
        torch.testing.assert_close(logits, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(logits.softmax(-1), expected.softmax(-1), rtol=1e-9, atol=1e-9)
    assert torch.equal(logits.argmax(-1), expected.argmax(-1))


@pytest.mark.parametrize("distance", ["cosine", "mean_cosine", "sqeuclid"])
def test_tsn_is_blind_to_the_order_of_frames(distance):
    head = build("--method", "tsn", "--tsn_distance", distance).double()
    support, target = features(1, 6, STEPS, WIDTH), features(1, 4, STEPS, WIDTH)
    reversed_logits = head.classify(support.flip(2), EQUAL_SHOTS[None], target.flip(2))
    torch.testing.assert_close(reversed_logits, head.classify(support, EQUAL_SHOTS[None], target))


def test_squared_distances_do_not_change_when_all_features_move_together():
    head = build("--method", "tsn", "--tsn_distance", "sqeuclid").double()
    support, target, shift = features(1, 6, STEPS, WIDTH), features(1, 4, STEPS, WIDTH), features(WIDTH)
    probabilities = head.classify(support, EQUAL_SHOTS[None], target).softmax(-1)
    shifted = head.classify(support + shift, EQUAL_SHOTS[None], target + shift).softmax(-1)
    torch.testing.assert_close(shifted, probabilities)


@pytest.mark.parametrize(("log_scale", "factor"), [(-9.0, 1.0), (0.0, 1.0), (9.0, 100.0)])
def test_logit_scale_stays_within_its_range(log_scale, factor):
    scale = LogitScale(10.0)
    torch.testing.assert_close(scale(torch.ones(2)), torch.full((2,), 10.0))
    scale.log_scale.data.fill_(log_scale)
    torch.testing.assert_close(scale(torch.ones(2)), torch.full((2,), factor))


# ---------------------------------------------------------------------------------------------------------------------
# Grouping by class


def test_group_by_class_equals_a_loop_and_keeps_order():
    labels = torch.stack([UNEQUAL_SHOTS, torch.tensor([2, 2, 2, 2, 2, 1, 0, 0])])
    support = features(2, 8, 3)
    grouped, present = group_by_class(support, labels)
    assert grouped.shape == (2, 3, 5, 3)
    for b, k in torch.cartesian_prod(torch.arange(2), torch.arange(3)):
        shots = support[b][labels[b] == k]
        assert torch.equal(grouped[b, k][: len(shots)], shots)
        assert not grouped[b, k][len(shots) :].any()
        assert present[b, k].tolist() == [True] * len(shots) + [False] * (5 - len(shots))


def test_a_class_without_support_is_named():
    labels = torch.tensor([[0, 1, 2, 3], [0, 1, 3, 3]])
    with pytest.raises(ValueError, match=r"class 2 of episode 1 has no support video: expected labels 0\.\.3"):
        group_by_class(features(2, 4, 3), labels)


# ---------------------------------------------------------------------------------------------------------------------
# The base class


def test_support_and_query_in_one_backbone_call_or_two():
    joint, separate = build("--method", "tsn"), build("--method", "tsn", "--separate_backbone_calls")
    images = 2 * frames(6) + 1, frames(4)
    for features_joint, features_separate in zip(
        joint.eval().get_feats(*images), separate.eval().get_feats(*images), strict=True
    ):
        torch.testing.assert_close(features_joint, features_separate, rtol=1e-5, atol=1e-5)
    # In training, batch norm's statistics are those of the call.
    for features_joint, features_separate in zip(
        joint.train().get_feats(*images), separate.train().get_feats(*images), strict=True
    ):
        assert relative_error(features_joint, features_separate) > 0.01


@pytest.mark.parametrize("method", METHODS)
def test_many_episodes_of_images_equal_one_after_the_other(method):
    """Of another way and other shots than the flags say, and with other shots in each episode."""
    head = build("--method", method, "--way", "2", "--shot", "7").eval()
    labels = torch.stack([UNEQUAL_SHOTS, torch.tensor([1, 1, 0, 2, 0, 1, 2, 0])])
    support, target = frames(8, 2), frames(4, 2)
    text = {"class_text": torch.randn(2, 3, WIDTH)} if head.uses_class_text else {}
    together = head(support, labels, target, **text)["logits"]
    assert together.shape == (2, 4, 3)
    for b in range(2):
        own_text = {name: features[b] for name, features in text.items()}
        alone = head(support[b], labels[b], target[b], **own_text)["logits"]
        torch.testing.assert_close(together[b], alone, rtol=1e-4, atol=1e-4)


def test_head_computes_in_float32_whatever_the_backbone_ran_in():
    head = build("--method", "trx").eval()
    precisions = []
    head.backbone.register_forward_hook(lambda _, inputs, features: precisions.append(features.dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = head(frames(6), EQUAL_SHOTS, frames(4))["logits"]
    assert precisions == [torch.bfloat16]
    assert logits.dtype == torch.float32


def test_features_are_those_of_the_clips_in_order():
    head = build("--method", "tsn").eval()
    support, target = head.get_feats(frames(3), frames(2))
    assert support.shape == (3, STEPS, WIDTH)
    torch.testing.assert_close(target, head.backbone(rearrange(frames(2), "(n t) c h w -> n t c h w", t=STEPS)))


def test_a_head_may_read_maps():
    head = build("--method", "tsn").eval()
    head.reads = "maps"
    support, target = head.get_feats(frames(3, size=32), frames(2, size=32))
    assert (support.shape, target.shape) == ((3, WIDTH, STEPS, 2, 2), (2, WIDTH, STEPS, 2, 2))


@pytest.mark.parametrize(("bn", "moves"), [("train", True), ("frozen", False)])
def test_frozen_batch_norm_keeps_its_statistics_and_trains_its_weights(bn, moves):
    head = build("--method", "tsn", "--bn", bn).train()
    norm = next(module for module in head.backbone.modules() if isinstance(module, nn.BatchNorm2d))
    before = norm.running_mean.clone()
    head.eval().train()  # as after a validation
    outputs = head(frames(6), EQUAL_SHOTS, frames(4))
    assert torch.equal(norm.running_mean, before) != moves
    head.loss({"target_labels": torch.tensor([0, 1, 2, 0])}, outputs).backward()
    assert norm.weight.grad is not None


@pytest.mark.parametrize(("reduction", "factor"), [("mean", 1), ("sum", 4)])
def test_loss_is_the_mean_or_the_sum_over_an_episodes_queries(reduction, factor):
    head = build("--method", "tsn", "--loss_reduction", reduction)
    logits, labels = features(2, 4, 3, dtype=torch.float32), torch.tensor([[0, 1, 2, 0], [2, 2, 1, 0]])
    expected = -logits.log_softmax(-1).gather(-1, labels[..., None]).mean()
    torch.testing.assert_close(head.loss({"target_labels": labels}, {"logits": logits}), factor * expected)
    # Classes written for the TRX-style libraries carry labels as floats.
    alone = head.loss({"target_labels": labels[0].float()}, {"logits": logits[0]})
    torch.testing.assert_close(alone, head.loss({"target_labels": labels[:1]}, {"logits": logits[:1]}))


# ---------------------------------------------------------------------------------------------------------------------
# Classes written for the TRX-style libraries

FOREIGN_CLASSES = """
import torch
import torch.nn as nn
import torch.nn.functional as F

from model import CNN_FSHead
from utils import extract_class_indices, cos_sim


class ThroughGetFeats(CNN_FSHead):
    def __init__(self, args):
        super(ThroughGetFeats, self).__init__(args)
        self.project = nn.Linear(self.args.trans_linear_in_dim, self.args.trans_linear_in_dim, bias=False)
        nn.init.eye_(self.project.weight)

    def forward(self, support_images, support_labels, target_images):
        support_features, target_features = self.get_feats(support_images, target_images)
        unique_labels = torch.unique(support_labels)
        support_features = torch.mean(self.project(support_features), dim=1)
        target_features = torch.mean(self.project(target_features), dim=1)
        class_sim = cos_sim(target_features, support_features)
        class_sim = [torch.mean(torch.index_select(class_sim, 1, extract_class_indices(support_labels, c)), dim=1)
                     for c in unique_labels]
        return {"logits": torch.stack(class_sim).transpose(0, 1)}

    def loss(self, task_dict, model_dict):
        return F.cross_entropy(model_dict["logits"], task_dict["target_labels"].long())

    def distribute_model(self):
        if self.args.num_gpus > 1:
            self.backbone.cuda(0)
            self.backbone = torch.nn.DataParallel(self.backbone, device_ids=[i for i in range(0, self.args.num_gpus)])
            self.project.cuda(0)


class ThroughBackbone(ThroughGetFeats):
    def forward(self, support_images, support_labels, target_images):
        support_features = self.backbone(support_images).squeeze()
        target_features = self.backbone(target_images).squeeze()
        dim = int(support_features.shape[1])
        assert dim == self.args.trans_linear_in_dim
        support_features = support_features.reshape(-1, self.args.seq_len, dim).mean(dim=1)
        target_features = target_features.reshape(-1, self.args.seq_len, dim).mean(dim=1)
        sims = cos_sim(target_features, support_features)
        all_logits = torch.zeros(target_features.shape[0], self.args.way)
        for label_idx, c in enumerate(torch.unique(support_labels)):
            all_logits[:, label_idx] = sims[:, extract_class_indices(support_labels, c)].mean(dim=1)
        return {"logits": all_logits}
"""


class StandIn(nn.Module):
    """In the place of DataParallel, which wants GPUs."""

    def __init__(self, module: nn.Module, device_ids: list[int]) -> None:
        super().__init__()
        self.module = module


def test_a_class_of_the_trx_style_libraries_runs_as_it_is(tmp_path: Path):
    file = tmp_path / "foreign.py"
    file.write_text(FOREIGN_CLASSES)
    task = {"target_labels": torch.tensor([0.0, 1.0, 2.0, 0.0])}
    same_in_ours = build("--method", "tsn", "--tsn_distance", "mean_cosine", "--tsn_scale", "1").eval()
    expected = same_in_ours(frames(6), EQUAL_SHOTS, frames(4))["logits"]
    for name in ("ThroughGetFeats", "ThroughBackbone"):
        head = build("--method", f"{file}:{name}", "--way", "3", "--num_gpus", "2")
        names = list(head.state_dict())
        with mock.patch.object(nn.Module, "cuda"), mock.patch.object(nn, "DataParallel", StandIn):
            distribute(head)
        assert list(head.state_dict()) == names
        assert head.backbone.clip_pass.devices == [torch.device("cuda", 0), torch.device("cuda", 1)]
        head.backbone.clip_pass.devices = [torch.device("cpu")] * 2
        logits = head.eval()(frames(6), EQUAL_SHOTS.float(), frames(4))["logits"]
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)
        head.train()
        head.loss(task, head(frames(6), EQUAL_SHOTS, frames(4))).backward()
        assert all(p.grad is not None for p in head.backbone.parameters())
