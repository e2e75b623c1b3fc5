"""ARN against its sections written out, its published figures, and what its parts must keep."""

from __future__ import annotations

import math
import shlex
from itertools import permutations, product

import pytest
import torch
from conftest import tiny_run
from torch import Tensor, nn

import run
from engine.settings import build_parser, parse_args
from methods import METHODS, arn, build_head
from methods.arn import CNN_ARN, Attention, Discriminator, RelationNet, Rotation, SpatialJigsaw, TemporalJigsaw
from tests.oracles import arn as literal
from utils import RunFolder, UserError

EXACT = {"rtol": 1e-9, "atol": 1e-9}
UNEQUAL = torch.tensor([1, 0, 1])
FLAGS = {
    "sosn": "--arn_variant sosn",
    "sa": "--arn_variant sa --arn_floor_space 0.7",
    "ta": "--arn_variant ta --arn_floor_time 0.3 --arn_sigma 30",
    "parallel": "--arn_floor_space 1.5 --arn_floor_time 0.5",
    "serial": "--arn_attention serial --arn_floor_space 1.5 --arn_floor_time 0.5",
}
KINDS = ("temporal_jigsaw", "spatial_jigsaw", "rotation")


def build(flags: str = "", *, backbone: str = "conv4_3d", seq_len: int = 8) -> CNN_ARN:
    """A head with random weights, always the same ones, whose batch norms have seen something."""
    torch.manual_seed(0)
    settings = f"-c unused --no_pretrained --method arn --backbone {backbone} --seq_len {seq_len} {flags}"
    head = build_head(build_parser(METHODS).parse_args(shlex.split(settings)))
    assert isinstance(head, CNN_ARN)
    for module in head.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.3, 0.3)
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    for layer in head.relation.score:
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=0.1 if layer.in_features == 8 else 3.2)
    return head


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def maps_of(videos: int, *, seed: int, steps: int = 4, side: int = 8) -> Tensor:
    """Maps after a ReLU, whose channels are active to different degrees."""
    strength = torch.linspace(0.2, 2, 64, dtype=torch.float64)[:, None, None, None]
    return noise(videos, 64, steps, side, side, seed=seed).relu() * strength


@pytest.fixture
def in_double(monkeypatch) -> None:
    """What is made of frames is computed in single precision; within this, in the one it has."""
    monkeypatch.setattr(Tensor, "float", lambda values: values)


def count(module: nn.Module) -> int:
    """Parameters, with those of biases that a batch norm takes away again: the authors' convolutions have them."""
    biases = sum(
        conv.out_channels for conv in module.modules() if isinstance(conv, (nn.Conv2d, nn.Conv3d)) and conv.bias is None
    )
    return sum(parameter.numel() for parameter in module.parameters()) + biases


# ---------------------------------------------------------------------------------------------------------------------
# The method as a whole


@pytest.mark.parametrize("training", [False, True], ids=["testing", "training"])
@pytest.mark.parametrize("variant", FLAGS)
def test_arn_equals_its_literal_form_with_gradients(variant, training):
    head = build(FLAGS[variant]).double().train(training)
    support, target = (maps_of(3, seed=1).requires_grad_(), maps_of(2, seed=2).requires_grad_())
    inputs = [support, target, *head.attention.parameters(), *head.relation.parameters()]
    slow = literal.arn(head, support, UNEQUAL, target)
    fast = head.classify(support[None], UNEQUAL[None], target[None])[0]
    torch.testing.assert_close(fast, slow, **EXACT)
    assert (fast[0] - fast[1]).abs().min() > 1e-4
    cotangent = noise(*fast.shape)
    found, expected = (torch.autograd.grad(logits, inputs, cotangent) for logits in (fast, slow))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-9)


def test_frames_become_the_logits_of_the_literal_form_in_any_number_of_episodes(in_double):
    head = build().double().eval()
    clips = noise(5, 8, 3, 32, 32)
    maps = literal.encode(head.backbone.net, clips)
    assert maps.shape == (5, 64, 2, 8, 8)
    expected = literal.arn(head, maps[:3], UNEQUAL, maps[3:])
    support, target = clips[:3].flatten(0, 1), clips[3:].flatten(0, 1)
    torch.testing.assert_close(head(support, UNEQUAL, target)["logits"], expected, **EXACT)
    order = torch.tensor([2, 0, 1])
    labels = torch.stack([UNEQUAL, UNEQUAL[order]])
    both = head(torch.stack([support, clips[order].flatten(0, 1)]), labels, torch.stack([target, target]))["logits"]
    torch.testing.assert_close(both, torch.stack([expected, expected]), **EXACT)


@pytest.mark.parametrize("backbone", ["conv4", "resnet3d10", "c3d"])
def test_maps_of_any_width_are_reduced_to_64_channels(backbone):
    head = build(backbone=backbone, seq_len=16 if backbone == "c3d" else 4)
    frames = head.args.seq_len
    logits = head.eval()(noise(2 * frames, 3, 32, 32).float(), torch.arange(2), noise(frames, 3, 32, 32).float())[
        "logits"
    ]
    assert logits.shape == (1, 2)
    assert logits.isfinite().all()
    width = head.backbone.feature_dim
    assert sum(p.numel() for p in head.reduce.parameters()) == (0 if width == 64 else width * 64 + 2 * 64)
    features = noise(2, width, 1, 2, 2).float()
    if width != 64:
        convolution, norm, _ = head.reduce
        expected = torch.einsum("ldshw,cd->lcshw", features, convolution.weight[:, :, 0, 0, 0])
        torch.testing.assert_close(
            head.reduce(features), literal.batch_norm(norm, expected).relu(), rtol=1e-4, atol=1e-5
        )


def test_parts_have_as_many_parameters_as_the_authors():
    with torch.device("meta"):
        assert count(Attention("space")) == count(Attention("time")) == 34_673
        assert count(RelationNet()) == 120_721
        assert [count(Discriminator(ways)) for ways in (4, 10, 24)] == [4_420_996, 4_427_146, 4_441_496]
    head = build("--arn_variant sa", seq_len=20)
    assert count(head) == 493_122
    assert sum(parameter.numel() for parameter in head.parameters()) == 492_577 + 1  # a bias of the gate
    assert sum(p.numel() for p in head.backbone.parameters()) == 337_472


@pytest.mark.parametrize(("seq_len", "size", "steps", "side"), [(20, 128, 5, 32), (16, 112, 4, 28), (8, 128, 2, 32)])
def test_maps_have_a_quarter_of_the_clips_length_height_and_width(seq_len, size, steps, side):
    with torch.device("meta"):
        backbone = build(seq_len=seq_len).backbone.to("meta")
        assert backbone(torch.empty(1, seq_len, 3, size, size), maps=True).shape == (1, 64, steps, side, side)


# ---------------------------------------------------------------------------------------------------------------------
# Attention


@pytest.mark.parametrize(("steps", "side"), [(1, 1), (2, 28), (5, 7), (8, 3), (20, 56)])
def test_attention_fits_maps_of_any_size(steps, side):
    maps = noise(2, 64, steps, side, side).float()
    space, time = (Attention(along).eval()(maps) for along in ("space", "time"))
    assert space.shape == (2, 1, 1, side, side)
    assert time.shape == (2, 1, steps, 1, 1)
    assert ((space > 0) & (space < 1)).all()
    assert ((time > 0) & (time < 1)).all()


@pytest.mark.parametrize("steps", [4, 5])
def test_attention_pools_as_the_authors_do_where_theirs_fits(steps):
    head, maps = build().double().eval(), maps_of(2, seed=3, steps=steps, side=32)
    own = literal.attention(head.attention.spatial, maps, (2, 1, 1), (2, 1, 1))
    torch.testing.assert_close(head.attention.spatial(maps), own, **EXACT)
    own = literal.attention(head.attention.temporal, maps, (1, 4, 4), (1, 8, 8))
    torch.testing.assert_close(head.attention.temporal(maps), own, **EXACT)


@pytest.mark.parametrize("side", [8, 32])
def test_the_discriminator_equals_its_literal_form(side):
    net, maps = build("--arn_selfsup rotation").double().eval().discriminator, maps_of(2, seed=3, steps=5, side=side)
    torch.testing.assert_close(net(maps), literal.discriminate(net, maps), **EXACT)


def test_explanations_are_the_attention_that_the_logits_come_from():
    support, target = maps_of(3, seed=1)[None], maps_of(2, seed=2)[None]
    head = build().double().eval()
    shown = head.explain(support, UNEQUAL[None], target)
    _, spatial, temporal = literal.attended(head, torch.cat([support[0], target[0]]))
    assert shown["support_spatial"].shape == (1, 2, 2, 4, 8, 8)
    (k, j), order = torch.tensor([[0, 1, 1], [0, 0, 1]]), UNEQUAL.argsort(stable=True)  # one shot and two
    assert shown["support_temporal"][0, 0, 1].tolist() == [0] * 4
    assert shown["target_temporal"].shape == (1, 2, 4)
    torch.testing.assert_close(shown["logits"], head.classify(support, UNEQUAL[None], target))
    for name, values in (("spatial", spatial[:, 0].expand(-1, 4, -1, -1)), ("temporal", temporal[:, 0, :, 0, 0])):
        torch.testing.assert_close(shown[f"support_{name}"][0, k, j], values[:3][order])
        torch.testing.assert_close(shown[f"target_{name}"][0], values[3:])
    assert set(build("--arn_variant ta").double().explain(support, UNEQUAL[None], target)) == {
        "logits", "support_temporal", "target_temporal",
    }  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------------
# Pooling and comparing


def descriptors(maps: Tensor) -> Tensor:
    return arn.power_normalised(arn.second_order(maps), 100.0)


def test_descriptors_do_not_change_when_cells_are_shuffled_or_features_scaled():
    maps = maps_of(2, seed=1)
    expected = descriptors(maps)
    order = torch.randperm(4 * 8 * 8, generator=torch.Generator().manual_seed(0))
    shuffled = maps.flatten(2)[..., order].reshape(maps.shape)
    torch.testing.assert_close(descriptors(shuffled), expected, **EXACT)
    for factor in (1e-6, 7.0, 1e6):
        torch.testing.assert_close(descriptors(factor * maps), expected, **EXACT)
    assert (descriptors(maps.flip(1)) - expected).abs().max() > 0.1
    torch.testing.assert_close(expected, expected.mT, **EXACT)
    assert expected.min() >= 0
    assert expected.max() < 1


def test_second_order_pooling_is_the_sum_of_the_outer_products_of_all_cells():
    maps = maps_of(2, seed=1, steps=2, side=3)
    for found, clip in zip(arn.second_order(maps), maps, strict=True):
        products = sum(
            torch.outer(clip[:, s, y, x], clip[:, s, y, x]) for s, y, x in product(range(2), range(3), range(3))
        )
        torch.testing.assert_close(found, products / products.trace(), **EXACT)


def test_descriptors_of_a_black_clip_are_zero_with_finite_gradients():
    maps = torch.zeros(1, 64, 2, 3, 3, requires_grad=True)
    found = descriptors(maps)
    found.sum().backward()
    assert not found.any()
    assert maps.grad.isfinite().all()


def test_descriptors_of_single_precision_are_kept_under_autocast():
    """Sums of thousands of products and a steep slope after them, of which bfloat16 would leave little."""
    head = build("--arn_variant sosn").eval()
    support, target = (maps_of(2, seed=seed).float().bfloat16()[None] for seed in (1, 2))
    labels = torch.arange(2)[None]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = head.classify_episodes(support, labels, target)["logits"]
    expected = head.classify(support.float(), labels, target.float())
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)


def test_large_steps_do_not_silence_the_relation_network():
    """Units that fall silent give every pair the same score, which costs a third here, and never learn again."""
    torch.manual_seed(3)
    net = RelationNet()
    classes, queries = descriptors(maps_of(3, seed=1)).float()[None], descriptors(maps_of(4, seed=2)).float()[None]
    optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
    own = nn.functional.one_hot(torch.tensor([[0, 1, 2, 0]]), 3).bool()
    for _ in range(40):
        loss = arn.squared_error(net(classes, queries), own).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.25


def test_the_class_comes_first_in_a_pair():
    head = build("--arn_variant sosn").double().eval()
    one, other = maps_of(1, seed=1)[None], maps_of(1, seed=2)[None]
    label = torch.zeros(1, 1, dtype=torch.long)
    assert abs(head.classify(one, label, other).item() - head.classify(other, label, one).item()) > 1e-4


def test_shots_are_averaged_after_power_normalisation():
    head = build("--arn_variant sosn").double().eval()
    support, target = maps_of(3, seed=1), maps_of(2, seed=2)
    early = arn.second_order(support)
    mean = torch.stack([early[1], early[[0, 2]].mean(0)])
    found = head.classify(support[None], UNEQUAL[None], target[None])
    averaged_before = head.relation(arn.power_normalised(mean, 100.0)[None], descriptors(target)[None])
    torch.testing.assert_close(found[..., 0], averaged_before[..., 0])
    assert (found[..., 1] - averaged_before[..., 1]).abs().max() > 1e-4


# ---------------------------------------------------------------------------------------------------------------------
# Losses


def test_a_constant_guess_of_a_fifth_costs_0_16():
    labels, logits = torch.arange(5), torch.full((5, 5), math.log(0.2 / 0.8))
    head = build()
    assert head.loss({"target_labels": labels}, {"logits": logits}).item() == pytest.approx(0.16)
    assert build("--arn_loss balanced_mse").loss({"target_labels": labels}, {"logits": logits}).item() == pytest.approx(
        (0.8**2 + 0.2**2) / 2
    )
    for loss in ("bce", "cross_entropy"):
        entropy = math.log(5) if loss == "cross_entropy" else -(math.log(0.2) + 4 * math.log(0.8)) / 5
        found = build(f"--arn_loss {loss}").loss(
            {"target_labels": labels}, {"logits": torch.full((5, 5), math.log(0.25))}
        )
        assert found.item() == pytest.approx(entropy)


@pytest.mark.parametrize("loss", arn.LOSSES)
def test_losses_equal_their_definitions(loss):
    logits, labels = noise(2, 4, 3), torch.tensor([[0, 2, 1, 1], [2, 2, 0, 1]])
    own = nn.functional.one_hot(labels, 3).double()
    scores = logits.sigmoid()
    expected = {
        "mse": torch.stack([literal.squared_error(*episode) for episode in zip(logits, labels, strict=True)]).mean(),
        "balanced_mse": ((scores - own).square() * (own + 0.5 * (1 - own))).sum(-1).mean() / 2,
        "bce": -(own * scores.log() + (1 - own) * (1 - scores).log()).mean(),
        "cross_entropy": nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten()),
    }
    for reduction, factor in (("mean", 1), ("sum", 4)):
        head = build(f"--arn_loss {loss} --loss_reduction {reduction}")
        found = head.loss({"target_labels": labels}, {"logits": logits})
        torch.testing.assert_close(found, factor * expected[loss])


def test_an_episode_of_one_class_has_a_loss():
    for loss in arn.LOSSES:
        found = build(f"--arn_loss {loss}").loss({"target_labels": torch.zeros(2).long()}, {"logits": noise(2, 1)})
        assert found.isfinite()


# ---------------------------------------------------------------------------------------------------------------------
# Clips changed for self-supervision


def augmentation(kind: str) -> arn.Augmentation:
    made = {
        "temporal_jigsaw": lambda: TemporalJigsaw(4, 10),
        "spatial_jigsaw": lambda: SpatialJigsaw(10),
        "rotation": Rotation,
    }
    return made[kind]()


def orders_of(change: arn.Augmentation) -> list:
    return [tuple(order) for order in change.orders.tolist()] if isinstance(change, arn.Jigsaw) else list(range(4))


@pytest.mark.parametrize("kind", KINDS)
def test_clips_and_attention_are_changed_as_written_out(kind):
    change = augmentation(kind)
    orders = orders_of(change)
    labels = torch.tensor([3, 0, 1, 2, change.number - 1])
    attention = noise(5, 4) if change.seen_by == "temporal" else noise(5, 6, 6)
    for values in (noise(5, 8, 3, 6, 6), attention):
        expected = [
            literal.changed(kind, orders[label], value) for label, value in zip(labels.tolist(), values, strict=True)
        ]
        found = change(values, labels)
        assert torch.equal(found, torch.stack(expected))
        assert torch.equal(found[1], values[1])
        assert not any(torch.equal(found[i], values[i]) for i in (0, 2, 3, 4))


@pytest.mark.parametrize("kind", KINDS)
def test_attention_that_follows_the_clip_is_aligned(kind):
    """Brightness stands for attention: of a block of frames, of a cell. Changing the clip must change it the same way."""
    change = augmentation(kind)
    clips = noise(4, 8, 3, 8, 8)
    labels = torch.tensor([1, 2, 3, 0])

    def attend(values: Tensor) -> Tensor:
        if change.seen_by == "temporal":
            return values.unflatten(1, (4, 2)).mean(dim=(2, 3, 4, 5))
        return nn.functional.avg_pool2d(values.mean(dim=(1, 2)), 4)

    torch.testing.assert_close(attend(change(clips, labels)), change(attend(clips), labels), **EXACT)
    assert (attend(change(clips, labels)) - attend(clips)).abs().max() > 0.01


def test_turning_four_times_and_putting_pieces_back_give_the_clip_again():
    clip, once = noise(1, 4, 3, 6, 6), torch.ones(1, dtype=torch.long)
    turned = clip
    for _ in range(4):
        turned = Rotation()(turned, once)
    assert torch.equal(turned, clip)
    for change in (TemporalJigsaw(4, 24), SpatialJigsaw(24)):
        orders = orders_of(change)
        for label, order in enumerate(orders):
            back = orders.index(tuple(sorted(range(4), key=order.__getitem__)))
            changed = change(clip, torch.tensor([label]))
            assert torch.equal(change(changed, torch.tensor([back])), clip)


@pytest.mark.parametrize(("pieces", "number"), [(2, 10), (3, 10), (4, 10), (4, 24), (5, 10), (8, 10)])
def test_orders_of_a_jigsaw_are_fixed_different_and_start_with_the_one_there_is(pieces, number):
    orders = arn.jigsaw_orders(pieces, number)
    assert orders == arn.jigsaw_orders(pieces, number)
    assert len(orders) == len(set(orders)) == min(number, math.factorial(pieces))
    assert orders[0] == tuple(range(pieces))
    assert all(sorted(order) == list(range(pieces)) for order in orders)


def test_each_order_is_as_far_as_can_be_from_those_before():
    def distance(one: tuple[int, ...], other: tuple[int, ...]) -> int:
        return sum(a != b for a, b in zip(one, other, strict=True))

    orders = arn.jigsaw_orders(5, 10)
    for number in range(1, 10):
        reached = min(distance(orders[number], before) for before in orders[:number])
        assert reached == max(
            min(distance(other, before) for before in orders[:number]) for other in permutations(range(5))
        )


# ---------------------------------------------------------------------------------------------------------------------
# Self-supervised training


@pytest.mark.parametrize("kind", KINDS)
def test_self_supervised_training_equals_its_literal_form_with_gradients(kind, in_double, monkeypatch):
    flags = f"--arn_selfsup {kind} --arn_beta 0.3 --arn_gamma 0.2 --arn_lambda 0.05 --arn_orders 4"
    head = build(flags, seq_len=16).double().train()
    assert head.augmentation is not None
    orders = orders_of(head.augmentation)
    clips = noise(4, 16, 3, 16, 16)
    support, labels, target, answers = (
        clips[:2].flatten(0, 1),
        torch.arange(2),
        clips[2:].flatten(0, 1),
        torch.tensor([1, 0]),
    )
    changes = [3, 0, 1, 2]
    monkeypatch.setattr(torch, "randint", lambda *_: torch.tensor(changes))
    outputs = head(support, labels, target)
    assert outputs["change_labels"].tolist() == changes
    loss = head.loss({"target_labels": answers}, outputs)

    ways = [orders[label] for label in changes]
    altered = [literal.changed(kind, way, clip) for way, clip in zip(ways, clips, strict=True)]
    unlike = [i for i, label in enumerate(changes) if label]
    maps = literal.encode(head.backbone.net, torch.cat([clips, torch.stack([altered[i] for i in unlike])]))
    own = maps[:4]
    seen = torch.stack([maps[4 + unlike.index(i)] if i in unlike else own[i] for i in range(4)])
    expected = literal.squared_error(literal.arn(head, own[:2], labels, own[2:]), answers)
    guesses = literal.discriminate(head.discriminator, seen)
    expected = expected + 0.3 * nn.functional.cross_entropy(guesses, torch.tensor(changes))
    _, *before = literal.attended(head, own)
    _, *after = literal.attended(head, seen)
    temporal = kind == "temporal_jigsaw"
    pair = [attention[temporal][:, 0].squeeze() for attention in (before, after)]
    expected = expected + 0.2 * literal.misalignment(kind, ways, 0.05, *pair) / 4
    torch.testing.assert_close(loss, expected, **EXACT)
    parameters = [head.backbone.net[0][0].weight, head.discriminator.score[2].weight, head.relation.first.weight]
    parameters.append((head.attention.temporal if temporal else head.attention.spatial).conv1.weight)
    found, literally = (torch.autograd.grad(value, parameters) for value in (loss, expected))
    for one, other in zip(found, literally, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_training_is_self_supervised_in_many_episodes_at_once_and_testing_is_not(kind):
    head = build(f"--arn_selfsup {kind} --arn_gamma 0.1", seq_len=8).train()
    support, labels, target = noise(2, 24, 3, 16, 16).float(), UNEQUAL.expand(2, -1), noise(2, 16, 3, 16, 16).float()
    outputs = head(support, labels, target)
    ways = head.augmentation.number
    assert {name: value.shape for name, value in outputs.items()} == {
        "logits": (2, 2, 2), "change_logits": (2, 5, ways), "change_labels": (2, 5), "misalignment": (2, 5),
    }  # fmt: skip
    task = {"target_labels": torch.tensor([[0, 1], [1, 0]])}
    head.loss(task, outputs).backward()
    assert [name for name, p in head.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []
    alone = [
        head.loss({"target_labels": task["target_labels"][b]}, {n: v[b] for n, v in outputs.items()}) for b in range(2)
    ]
    torch.testing.assert_close(head.loss(task, outputs), torch.stack(alone).mean())
    assert set(head.eval()(support, labels, target)) == {"logits"}


def test_the_losses_of_a_sum_keep_their_balance():
    outputs = {
        "logits": noise(4, 3), "change_logits": noise(7, 10), "change_labels": torch.arange(7), "misalignment": noise(7).abs(),
    }  # fmt: skip
    task, flags = (
        {"target_labels": torch.tensor([0, 2, 1, 1])},
        "--arn_selfsup rotation --arn_gamma 0.1 --loss_reduction",
    )
    mean, total = (build(f"{flags} {reduction}").loss(task, outputs) for reduction in ("mean", "sum"))
    torch.testing.assert_close(total, 4 * mean)


def test_clips_that_are_left_as_they_are_pass_through_the_backbone_once(monkeypatch):
    head = build("--arn_selfsup rotation --arn_gamma 0.1", seq_len=8).train()
    clips = []
    monkeypatch.setattr(head, "encode", lambda group, f=head.encode: clips.append(len(group)) or f(group))
    episode = noise(24, 3, 16, 16).float(), UNEQUAL, noise(16, 3, 16, 16).float()
    for draw in ([0, 1, 0, 3, 0], [0, 0, 0, 0, 0]):
        monkeypatch.setattr(torch, "randint", lambda *_, labels=draw: torch.tensor(labels))
        assert head(*episode)["change_labels"].tolist() == draw
    assert clips == [5 + 2, 5]


def test_what_is_stored_with_the_weights_is_what_was_learnt():
    state = build("--arn_selfsup temporal_jigsaw", seq_len=20).state_dict()
    assert state["augmentation.orders"].tolist() == [list(order) for order in arn.jigsaw_orders(5, 10)]


# ---------------------------------------------------------------------------------------------------------------------
# What it is used through


def test_episodes_of_descriptions_have_the_logits_of_their_maps():
    head = build().double().eval()
    support, target = maps_of(3, seed=1), maps_of(2, seed=2)
    described = head.classify_described(head.describe(support)[None], UNEQUAL[None], head.describe(target)[None])
    torch.testing.assert_close(described[0], literal.arn(head, support, UNEQUAL, target), **EXACT)


def test_tests_keep_descriptions_as_long_as_classify_is_its_own(dataset, tmp_path):
    class Other(CNN_ARN):
        def classify(self, support_features, support_labels, target_features):
            return -super().classify(support_features, support_labels, target_features)

    assert build().condenses
    assert not Other(build().args).condenses
    # A method that is trained on stored features is another one at every validation: what is kept are the features.
    for more, shape in ([], (64, 64)), (["--freeze_backbone"], (64, 2, 4, 4)):
        flags = ["--method", "arn", "--backbone", "conv4_3d", "--seq_len", 8, "-i", 0, *more]
        made = run.Learner(
            parse_args(tiny_run(dataset, tmp_path / "run", *flags), METHODS), RunFolder(tmp_path / "run")
        )
        with made.calls.feature_store(made.datasets["test"]) as store:
            assert store.shape[1:] == shape
        with torch.no_grad():
            made.model.attention.spatial.gate.bias += 1
        with made.calls.feature_store(made.datasets["test"]) as other:
            assert (other.folder == store.folder) is bool(more)


def test_it_takes_stored_features_and_many_episodes_as_long_as_forward_is_its_own():
    class Own(CNN_ARN):
        def forward(self, *episode):
            return super().forward(*episode)

    head = build("--arn_selfsup rotation")
    assert head.works_on_features
    assert head.takes_episodes
    head.__class__ = Own
    assert not head.works_on_features
    assert not head.takes_episodes


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            "--arn_selfsup temporal_jigsaw --arn_blocks 3",
            "3 blocks does not fit 8 frames and 2 feature steps: give --arn_blocks",
        ),
        ("--arn_selfsup temporal_jigsaw --arn_blocks 1", "--arn_blocks is 1: expected 2 or more"),
        ("--arn_selfsup spatial_jigsaw --arn_orders 1", "--arn_orders is 1: expected 2 or more"),
        ("--arn_selfsup rotation --arn_blocks 2", "--arn_blocks are those of --arn_selfsup temporal_jigsaw"),
        ("--arn_selfsup rotation --arn_lambda 0.1", "--arn_lambda is a part of the alignment: add --arn_gamma"),
        ("--arn_gamma 0.1", "add --arn_selfsup"),
        (
            "--arn_gamma 0.1 --arn_selfsup rotation --arn_variant ta",
            "aligns spatial attention with --arn_selfsup rotation",
        ),
        ("--arn_gamma 0.1 --arn_selfsup temporal_jigsaw --arn_variant sa", "aligns temporal attention"),
        ("--arn_selfsup rotation --freeze_backbone", "--freeze_backbone trains on features: leave one out"),
    ],
)
def test_flags_that_make_no_sense_are_refused(flags, message):
    with pytest.raises(UserError, match=message):
        build(flags)


def test_an_odd_number_of_cells_cannot_be_cut_into_quarters():
    with pytest.raises(UserError, match="7 x 7 cells into quarters"):
        SpatialJigsaw(10)(torch.zeros(1, 7, 7), torch.zeros(1).long())


@pytest.mark.parametrize("selfsup", KINDS)
def test_a_run_trains_and_tests_with_self_supervision(selfsup, dataset, tmp_path, program):
    from conftest import tiny_run

    flags = f"--method arn --backbone conv4_3d --seq_len 8 --arn_selfsup {selfsup} --arn_gamma 0.01 --tasks_per_call 2"
    program(*tiny_run(dataset, tmp_path / "run", *flags.split(), "-i", 2, "--val_iters", 2))
    assert (tmp_path / "run" / "results.json").exists()
