"""The methods beside TRX and TSN: each against its equations written out, and what is particular to it."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from small_heads import EXACT, SHOTS, STEPS, build, features, on_meta, stir
from small_heads import outputs_of as classify
from torch import Tensor

from methods.otam import alignment_cost, best_path
from methods.pal import prototype_centred_loss
from methods.similarity import step_similarities, tuple_similarities
from model import TupleLinear, Tuples, peer_weights, prototype_cosines, shot_log_weights
from tests.oracles import heads as literal
from utils import UserError

WIDTH = 64  # of conv4


def episode(labels: Tensor, queries: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    return features(len(labels), STEPS, WIDTH), labels, features(queries, STEPS, WIDTH, seed=1)


@pytest.fixture(params=SHOTS)
def labels(request) -> Tensor:
    return SHOTS[request.param]


# ---------------------------------------------------------------------------------------------------------------------
# OTAM

SIZES = [(1, 1), (1, 3), (3, 1), (2, 2), (2, 3), (3, 2), (4, 4)]


def path_costs(costs: Tensor) -> Tensor:
    """The cost of every path: (L, M) -> (number of paths,)."""
    paths = literal.alignment_paths(*costs.shape)
    return torch.stack([sum((costs[cell] for cell in path), torch.zeros((), dtype=costs.dtype)) for path in paths])


@pytest.mark.parametrize(("rows", "columns", "paths"), [(1, 1, 1), (2, 1, 5), (2, 2, 6), (3, 1, 13), (1, 5, 1)])
def test_paths_of_equal_cost_are_counted(rows, columns, paths):
    """Two rows and columns, by hand. The first column is entered in its first row in 1 way, in the second in 2, and in 1
    from above: 1 and 3 ways. The second column has 1 and 3 + 1 ways; the first row is left in 2 ways, the last in 1.
    """
    cost = alignment_cost(torch.zeros(rows, columns, dtype=torch.float64), smoothing=0.1)
    assert len(literal.alignment_paths(rows, columns)) == paths
    assert cost.item() == pytest.approx(-0.1 * math.log(paths))


@pytest.mark.parametrize(("rows", "columns"), SIZES)
@pytest.mark.parametrize("smoothing", [0.05, 0.1, 1.0])
def test_alignment_cost_is_the_soft_minimum_over_all_paths(rows, columns, smoothing):
    costs = features(5, rows, columns)
    expected = [-smoothing * torch.logsumexp(-path_costs(pair) / smoothing, dim=0) for pair in costs]
    torch.testing.assert_close(alignment_cost(costs, smoothing), torch.stack(expected), **EXACT)


@pytest.mark.parametrize(("rows", "columns"), SIZES)
def test_hard_alignment_is_the_cheapest_path(rows, columns):
    costs = torch.randn(5, rows, columns, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = torch.stack([path_costs(pair).min() for pair in costs])
    torch.testing.assert_close(alignment_cost(costs, 0.0), expected, **EXACT)
    torch.testing.assert_close(alignment_cost(costs, 1e-4), expected, rtol=0, atol=1e-4 * math.log(1000))


def test_smoothing_lowers_the_cost_by_at_most_the_logarithm_of_the_number_of_paths():
    costs = features(7, 4, 4)
    paths = len(literal.alignment_paths(4, 4))
    gap = alignment_cost(costs, 0.0) - alignment_cost(costs, 0.1)
    assert gap.min() > 0
    assert gap.max() <= 0.1 * math.log(paths)


@pytest.mark.parametrize("smoothing", [0.1, 0.0])
@pytest.mark.parametrize("size", [8, 64])
@pytest.mark.parametrize("cost", [0.0, 1.0, 50.0])
def test_alignment_of_long_and_costly_clips_is_finite(cost, size, smoothing):
    costs = torch.full((2, size, size), cost, requires_grad=True)
    total = alignment_cost(costs, smoothing)
    total.sum().backward()
    assert total.isfinite().all()
    assert costs.grad.isfinite().all()
    torch.testing.assert_close(total, torch.full((2,), cost * size), rtol=1e-4, atol=0.1 * math.log(4) * size)


def test_alignment_has_the_gradient_of_its_value():
    costs = features(2, 3, 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda values: alignment_cost(values, 0.1), costs)
    found, expected = (
        torch.autograd.grad(form(costs, 0.1).sum(), costs)[0] for form in (alignment_cost, literal.otam_cell_by_cell)
    )
    torch.testing.assert_close(found, expected, **EXACT)


def test_otam_equals_its_cells_one_after_the_other(labels):
    case = episode(labels)
    torch.testing.assert_close(classify(build("--method", "otam"), *case)["logits"], literal.otam(*case), **EXACT)


def test_otam_takes_the_hard_minimum_at_test_only():
    head, case = build("--method", "otam", "--otam_hard_test"), episode(SHOTS["unequal"])
    torch.testing.assert_close(classify(head, *case)["logits"], literal.otam(*case, smoothing=0.0), **EXACT)
    torch.testing.assert_close(classify(head.train(), *case)["logits"], literal.otam(*case, smoothing=0.1), **EXACT)


def test_otam_may_align_with_the_mean_of_the_shots_instead():
    head, (support, labels, target) = (
        build("--method", "otam", "--otam_shot_reduce", "feature"),
        episode(SHOTS["unequal"]),
    )
    means = torch.stack([shots.mean(dim=0) for shots in literal.classes(support, labels)])
    expected = literal.otam(means, torch.arange(3), target)
    torch.testing.assert_close(classify(head, support, labels, target)["logits"], expected, **EXACT)


def test_best_path_is_the_cheapest_of_all_paths():
    costs = torch.rand(6, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with torch.inference_mode():
        found = best_path(costs)
    for pair, path in zip(costs, found, strict=True):
        cheapest = literal.alignment_paths(4, 4)[int(path_costs(pair).argmin())]
        assert sorted(cheapest) == [tuple(cell) for cell in path.nonzero().tolist()]
        assert path.sum() == len(cheapest)


def test_otam_explains_a_clip_that_starts_later():
    """The query shows steps 2 to 4 and two steps more; its support shows steps 1 to 4."""
    steps = torch.eye(6, WIDTH, dtype=torch.float64)
    query, shot = steps[[1, 2, 3, 5]], steps[[0, 1, 2, 3]]
    shown = build("--method", "otam").explain(shot[None, None], torch.zeros(1, 1, dtype=torch.long), query[None, None])
    assert (
        shown["path"].shape == shown["reverse_path"].shape == shown["similarities"].shape == (1, 1, 1, 1, STEPS, STEPS)
    )
    meetings = shown["path"].flatten(0, 3)[0]
    assert [meetings[q, s].item() for q, s in [(0, 1), (1, 2), (2, 3)]] == [1.0, 1.0, 1.0]
    assert shown["path"].sum(dim=-2).flatten().tolist() == [1.0] * STEPS
    assert shown["reverse_path"].sum(dim=-1).flatten().tolist() == [1.0] * STEPS


# ---------------------------------------------------------------------------------------------------------------------
# Similarity matrices


@pytest.mark.parametrize("method", literal.REDUCTIONS)
def test_similarity_methods_equal_their_reductions_written_out(method, labels):
    case = episode(labels)
    scale, epsilon = (1.0, 0.0) if method == "bimhm" else (10.0, 0.01)
    expected = scale * literal.similarity(*case, literal.REDUCTIONS[method], epsilon)
    torch.testing.assert_close(classify(build("--method", method), *case)["logits"], expected, rtol=1e-6, atol=1e-6)


def test_linear_matching_weighs_cells_and_starts_as_the_mean(labels):
    head, case = build("--method", "linear"), episode(labels)
    mean = 10 * literal.similarity(*case, literal.REDUCTIONS["mean"])
    torch.testing.assert_close(classify(head, *case)["logits"], mean, rtol=1e-6, atol=1e-6)
    head.weight.data = features(STEPS, STEPS)
    expected = 10 * literal.similarity(*case, lambda matrix: (matrix * head.weight).sum())
    torch.testing.assert_close(classify(head, *case)["logits"], expected, rtol=1e-6, atol=1e-6)


def test_bimhm_as_the_head_of_d2st_averages_shots_first_and_classifies_mean_steps():
    labels = torch.tensor([0, 2, 1, 0, 2, 2, 0, 2])
    support, labels, target = episode(labels)
    head = build("--method", "bimhm", "--bimhm_shots", "mean_first", "--bimhm_aux_weight", "2.5", num_train_classes=5)
    means = torch.stack([support[labels == label].mean(dim=0) for label in range(3)])
    expected = literal.similarity(means, torch.arange(3), target, literal.bimhm, 0.0)
    outputs = classify(head, support, labels, target)
    assert outputs.keys() == {"logits"}
    torch.testing.assert_close(outputs["logits"], expected, **EXACT)

    real = torch.tensor([4, 0, 3])
    queries = torch.arange(len(target)) % 3
    task = {"target_labels": queries, "real_support_labels": real[labels], "real_target_labels": real[queries]}
    classes = torch.stack([head.aux_classifier(clip.mean(dim=0)) for clip in [*support, *target]])
    losses = F.cross_entropy(expected, queries), F.cross_entropy(classes, real[torch.cat([labels, queries])])
    found = head.loss(task, classify(head.train(), support, labels, target))
    torch.testing.assert_close(found, losses[0] + 2.5 * losses[1], **EXACT)


@pytest.mark.parametrize("cardinality", [1, 2, 3, STEPS])
def test_chamfer_plus_plus_equals_explicit_tuples_of_joint_shots(cardinality, labels):
    head, case = build("--method", "chamfer++", "--chamfer_tuples", str(cardinality)), episode(labels)
    expected = 10 * literal.chamfer_plus_plus(*case, cardinality)
    torch.testing.assert_close(classify(head, *case)["logits"], expected, rtol=1e-6, atol=1e-6)


def test_a_missing_shot_wins_no_maximum():
    """Also where all cosines are negative, so that the zeros it is filled with would be the best match."""
    support, labels, _ = episode(torch.tensor([0, 1, 1, 1]))
    case = support, labels, -features(2, STEPS, WIDTH, seed=1)
    for method in ("max", "chamfer", "otam"):
        alone = classify(build("--method", method), support[:1], labels[:1], case[2])["logits"]
        torch.testing.assert_close(classify(build("--method", method), *case)["logits"][:, :1], alone, **EXACT)
    expected = 10 * literal.chamfer_plus_plus(*case, 3)
    assert expected.max() < 0
    torch.testing.assert_close(
        classify(build("--method", "chamfer++"), *case)["logits"], expected, rtol=1e-6, atol=1e-6
    )


def test_tuples_of_one_step_are_steps():
    target, support = features(1, 2, STEPS, WIDTH), features(1, 3, 2, STEPS, WIDTH, seed=1)
    tuples = torch.arange(STEPS)[:, None]
    torch.testing.assert_close(tuple_similarities(target, support, tuples), step_similarities(target, support), **EXACT)


def test_chamfer_plus_plus_refuses_tuples_longer_than_the_clip():
    with pytest.raises(UserError, match=rf"--chamfer_tuples is 5: expected 1 to {STEPS}"):
        build("--method", "chamfer++", "--chamfer_tuples", "5")


# ---------------------------------------------------------------------------------------------------------------------
# Dual prototypes


@pytest.mark.parametrize("axis", ["feature", "tuple"])
@pytest.mark.parametrize("cardinalities", [[1], [2], [2, 3], [STEPS]])
def test_code_variant_equals_the_published_computation(cardinalities, axis, labels):
    flags = ["--dp_variant", "code", "--dp_cosine_axis", axis, "--temp_set", *map(str, cardinalities)]
    head, case = stir(build("--method", "dual_prototypes", *flags)), episode(labels)
    expected = torch.stack([literal.dual_prototypes_code(branch, *case) for branch in head.branches]).mean(dim=0)
    torch.testing.assert_close(classify(head, *case)["logits"], expected, **EXACT)


@pytest.mark.parametrize("width", [5, 200], ids=["fewer channels than tuples", "more"])
@pytest.mark.parametrize("cardinalities", [[1], [2], [2, 3], [STEPS]])
def test_robust_variant_equals_its_equations(cardinalities, width, labels):
    flags = ["--temp_set", *map(str, cardinalities), "--trans_linear_out_dim", str(width)]
    head, case = stir(build("--method", "dual_prototypes", *flags)), episode(labels)
    outputs = classify(head, *case)
    branches = [literal.dual_prototypes_robust(branch, *case) for branch in head.branches]
    for name, scores in zip(("logits", "class_logits", "query_logits"), zip(*branches, strict=True), strict=True):
        torch.testing.assert_close(outputs[name], torch.stack(scores).mean(dim=0), **EXACT)


@pytest.mark.parametrize("variant", ["robust", "code"])
def test_dual_prototypes_have_the_gradients_of_their_equations(variant):
    head = stir(build("--method", "dual_prototypes", "--temp_set", "2", "--dp_variant", variant))
    support, labels, target = episode(SHOTS["unequal"])
    branch = head.branches[0]
    inputs = [support.requires_grad_(), target.requires_grad_(), branch.k_linear.weight, branch.v_linear.weight]
    inputs += [branch.log_temperature, branch.attended] if variant == "robust" else [branch.q_linear.weight]
    fast = classify(head, support, labels, target)["logits"]
    if variant == "robust":
        slow = literal.dual_prototypes_robust(branch, support, labels, target)[0]
    else:
        slow = literal.dual_prototypes_code(branch, support, labels, target)
    cotangent = torch.randn_like(fast) / branch.scale if variant == "code" else torch.randn_like(fast)
    found, expected = (torch.autograd.grad(logits, inputs, cotangent) for logits in (fast, slow))
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-9)


def as_tuples(values: Tensor) -> Tuples:
    """Tuples (..., M, E) as mixtures of rows that are not themselves."""
    mix = features(*values.shape[:-1], values.shape[-2], seed=9) + torch.eye(values.shape[-2], dtype=values.dtype)
    return Tuples(mix, torch.linalg.solve(mix, values))


@pytest.mark.parametrize("cardinality", [1, 2, 3, STEPS])
def test_tuples_kept_as_rows_are_the_projected_and_normalised_ones(cardinality):
    linear = TupleLinear(WIDTH, cardinality, 7, STEPS).double()
    norm = torch.nn.LayerNorm(7).double()
    norm.weight.data, norm.bias.data = features(7), features(7, seed=1)
    steps = features(2, 3, STEPS, WIDTH)
    plain = Tuples.project(linear, steps)
    torch.testing.assert_close(plain.mix @ plain.rows, linear(steps), **EXACT)
    torch.testing.assert_close(plain.squares(), linear(steps).square().sum(dim=-1), **EXACT)
    normed = plain.layer_norm(norm)
    torch.testing.assert_close(normed.mix @ normed.rows, norm(linear(steps)), **EXACT)


def test_squared_norms_of_tuples_whose_rows_cancel_are_not_negative():
    rows = torch.randn(64, 1, 7, generator=torch.Generator().manual_seed(0))
    cancelling = Tuples(torch.ones(64, 1, 3), torch.cat([300 * rows, -200 * rows, -100 * rows], dim=1))
    assert cancelling.squares().min() >= 0


@pytest.mark.parametrize(("shots", "expected"), [(1, 1.0), (2, 0.5)])
def test_one_or_two_shots_count_the_same(shots, expected):
    values = as_tuples(features(1, 3, shots, 6, 8))
    weights = shot_log_weights(values, torch.ones(1, 3, shots, dtype=torch.bool), 0.1).exp()
    torch.testing.assert_close(weights, torch.full_like(weights, expected), rtol=0, atol=1e-14)


def test_a_corrupted_shot_of_three_counts_least_and_none_at_high_temperature():
    values = features(1, 1, 1, 6, 8) + 0.2 * features(1, 4, 3, 6, 8, seed=1)
    values[0, 2, 1] = features(6, 8, seed=2)
    present = torch.ones(1, 4, 3, dtype=torch.bool)
    values = as_tuples(values)
    weights = shot_log_weights(values, present, 0.1).exp()
    assert weights[0, 2].argmin() == 1
    assert weights[0, 2, 1] < 0.5 * weights[0, 2, 0]
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(1, 4, dtype=torch.float64))
    uniform = shot_log_weights(values, present, 1e6).exp()
    torch.testing.assert_close(uniform, torch.full_like(uniform, 1 / 3), rtol=1e-5, atol=0)


def test_a_corrupted_shot_moves_the_robust_prototypes_less_than_plain_means():
    support, labels = features(1, STEPS, WIDTH).repeat(4, 1, 1), torch.zeros(4, dtype=torch.long)
    support = support + 0.1 * features(4, STEPS, WIDTH, seed=1)
    target = support[:1]
    corrupted = support.clone()
    corrupted[3] = 2 * features(STEPS, WIDTH, seed=2)
    head = build("--method", "dual_prototypes")
    falls = {}
    for kind, temperature in (("weighted", 0.1), ("nearly uniform", 1.0)):
        for branch in head.branches:
            branch.log_temperature.data.fill_(math.log(temperature))
        clean, noisy = (classify(head, videos, labels, target)["class_logits"] for videos in (support, corrupted))
        falls[kind] = (clean - noisy).item()
    assert abs(falls["weighted"]) < 0.3 * falls["nearly uniform"]


def test_shots_that_are_missing_count_nothing():
    present = torch.tensor([[[True, True, False], [True, False, False]]])
    weights = shot_log_weights(as_tuples(features(1, 2, 3, 6, 8)), present, 0.1).exp()
    torch.testing.assert_close(weights[0], torch.tensor([[0.5, 0.5, 0], [1, 0, 0]], dtype=torch.float64))


def test_peers_are_the_other_shots_or_a_lone_shot_itself():
    present = torch.tensor([[[True, True, True], [True, True, False], [True, False, False]]])
    three, two, one = peer_weights(present, torch.float64)[0].tolist()
    assert three == [[0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]]
    assert two[:2] == [[0, 1, 0], [1, 0, 0]]
    assert one[0] == [1, 0, 0]


def test_prototype_cosines_equal_those_of_explicit_prototypes():
    values, query_values = as_tuples(features(2, 3, 4, 5, 8)), as_tuples(features(2, 6, 5, 8, seed=1))
    class_mix, query_mix = features(2, 3, 5, 4, 5, seed=2), features(2, 3, 6, 5, 4, 5, seed=3)
    found = prototype_cosines(class_mix, query_mix, values, query_values)
    queries = query_values.mix @ query_values.rows
    for cosines, mix in zip(found, (class_mix[:, :, None], query_mix), strict=True):
        prototypes = mix.flatten(-2) @ values.rows.flatten(2, 3)[:, :, None]  # (B, K, Q, M, E)
        expected = torch.nn.functional.cosine_similarity(prototypes, queries[:, None], dim=-1).mean(dim=-1).mT
        torch.testing.assert_close(cosines, expected, **EXACT)


def test_a_query_of_nothing_has_cosine_zero_and_a_finite_gradient():
    values, query_values = (
        as_tuples(features(1, 3, 4, 5, 8)),
        Tuples(features(1, 2, 5, 5), torch.zeros(1, 2, 5, 8).double()),
    )
    query_values.rows.requires_grad_()
    cosines = prototype_cosines(features(1, 3, 5, 4, 5), features(1, 3, 2, 5, 4, 5), values, query_values)
    assert not torch.stack(cosines).any()
    (gradient,) = torch.autograd.grad(torch.stack(cosines).sum(), query_values.rows)
    assert gradient.isfinite().all()


@pytest.mark.parametrize(("log_temperature", "expected"), [(-9.0, 0.02), (math.log(0.3), 0.3), (9.0, 1.0)])
def test_the_temperature_of_shot_weights_stays_within_its_range(log_temperature, expected):
    head, case = build("--method", "dual_prototypes", "--temp_set", "2"), episode(SHOTS["unequal"])
    outputs = []
    for value in (log_temperature, math.log(expected)):
        head.branches[0].log_temperature.data.fill_(value)
        outputs.append(classify(head, *case)["shot_weights"])
    torch.testing.assert_close(*outputs)


@pytest.mark.parametrize("variant", ["robust", "code"])
def test_dual_prototypes_of_one_shot_are_finite_with_their_gradients(variant):
    head = build("--method", "dual_prototypes", "--dp_variant", variant)
    outputs = classify(head, *episode(SHOTS["one shot"]))
    head.loss({"target_labels": torch.tensor([0, 1, 2])}, outputs).backward()
    assert outputs["logits"].isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in head.parameters())


@pytest.mark.parametrize(
    ("flags", "weight"), [([], 0.5), (["--dp_dual_weight", "0.2"], 0.2), (["--dp_variant", "code"], 0.0)]
)
def test_dual_loss_adds_the_mean_loss_of_the_single_scores(flags, weight):
    head = build("--method", "dual_prototypes", *flags)
    outputs, labels = classify(head, *episode(SHOTS["unequal"])), torch.tensor([0, 1, 2])
    terms = {name: torch.nn.functional.cross_entropy(outputs[name], labels) for name in outputs if "logits" in name}
    expected = terms["logits"] + weight * (terms["class_logits"] + terms["query_logits"]) / 2
    torch.testing.assert_close(head.loss({"target_labels": labels}, outputs), expected)


@pytest.mark.parametrize("variant", ["robust", "code"])
def test_the_scale_of_dual_prototypes_can_be_chosen(variant):
    case = episode(SHOTS["unequal"])
    chosen, usual = (
        classify(build("--method", "dual_prototypes", "--dp_variant", variant, *flags), *case)["logits"]
        for flags in (["--dp_scale", "5"], [])
    )
    torch.testing.assert_close(usual, chosen * ({"robust": 20, "code": 1000}[variant] / 5), rtol=1e-6, atol=0)


@pytest.mark.parametrize(("feature_dim", "parameters"), [(2048, 163_600_384), (512, 10_233_856)])
def test_code_variant_has_as_many_parameters_as_the_published_one(feature_dim, parameters):
    backbone = {2048: "resnet50", 512: "resnet18"}[feature_dim]
    head = on_meta("--method", "dual_prototypes", "--dp_variant", "code", "--backbone", backbone)
    # The published class has a second layer norm, which it does not use.
    unused = 2 * feature_dim * (2 + 3)
    assert sum(p.numel() for p in head.branches.parameters()) + unused == pytest.approx(parameters, rel=1e-3)


@pytest.mark.parametrize("variant", ["robust", "code"])
def test_dual_prototypes_explain_themselves_by_their_shots(variant):
    support, labels, target = episode(SHOTS["unequal"])
    shown = build("--method", "dual_prototypes", "--dp_variant", variant).explain(
        support[None], labels[None], target[None]
    )
    assert {name: tuple(value.shape) for name, value in shown.items()} == {
        "logits": (1, 3, 3), "class_logits": (1, 3, 3), "query_logits": (1, 3, 3), "shot_weights": (1, 3, 4),
    }  # fmt: skip
    torch.testing.assert_close(shown["shot_weights"].sum(dim=-1), torch.ones(1, 3).to(shown["shot_weights"]))
    four_shots = shown["shot_weights"][0, 2]
    assert torch.equal(four_shots, torch.full_like(four_shots, 0.25)) == (variant == "code")


def test_dual_prototypes_refuse_tuples_longer_than_the_clip():
    with pytest.raises(UserError, match=f"--temp_set 2 6 needs tuples of 1 to {STEPS} steps"):
        build("--method", "dual_prototypes", "--temp_set", "2", "6")


# ---------------------------------------------------------------------------------------------------------------------
# PAL


def test_pal_equals_its_attention_written_out(labels):
    head, case = stir(build("--method", "pal")), episode(labels)
    outputs = classify(head, *case)
    torch.testing.assert_close(outputs["cosines"], literal.pal(head, *case), **EXACT)
    torch.testing.assert_close(outputs["logits"], outputs["cosines"] * head.scale.log_scale.exp(), **EXACT)


@pytest.mark.parametrize("targets", [[0, 1, 2, 1, 0], [0, 1, 1, 1, 0], [2, 2, 2, 2, 2]])
@pytest.mark.parametrize("floor", [0.0, 0.1])
def test_prototype_loss_equals_its_ratio_and_skips_classes_without_queries(targets, floor):
    logits, labels = (5 * features(2, 5, 3)).requires_grad_(), torch.tensor([targets, [0, 1, 2, 0, 1]])
    loss = prototype_centred_loss(logits, labels, floor)
    expected = sum(literal.prototype_centred(logits[b].exp(), labels[b], floor) for b in range(2)) / 2
    torch.testing.assert_close(loss, expected)
    found, wanted = (torch.autograd.grad(value, logits)[0] for value in (loss, expected))
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("form", ["softmax", "sigmoid"])
@pytest.mark.parametrize(("reduction", "factor"), [("mean", 1), ("sum", 4)])
def test_pal_adds_the_loss_of_the_prototypes_to_that_of_the_queries(form, reduction, factor):
    head = build("--method", "pal", "--pal_prototype_loss", form, "--pal_lambda", "0.3", "--loss_reduction", reduction)
    outputs, labels = classify(head, *episode(SHOTS["unequal"], queries=4)), torch.tensor([0, 1, 1, 0])
    if form == "softmax":
        second = literal.prototype_centred(outputs["logits"].exp(), labels)
    else:
        second = literal.prototype_centred(outputs["cosines"].sigmoid(), labels, floor=0.1)
    expected = factor * (torch.nn.functional.cross_entropy(outputs["logits"], labels) + 0.3 * second)
    torch.testing.assert_close(head.loss({"target_labels": labels}, outputs), expected)


# ---------------------------------------------------------------------------------------------------------------------
# CMN-lite


def test_cmn_equals_its_descriptors_written_out(labels):
    head, case = stir(build("--method", "cmn")), episode(labels)
    torch.testing.assert_close(classify(head, *case)["logits"], literal.cmn(head, *case), **EXACT)


def test_slots_of_cmn_learn_different_things():
    head = build("--method", "cmn")
    outputs = classify(head, *episode(SHOTS["unequal"]))
    head.loss({"target_labels": torch.tensor([0, 1, 2])}, outputs).backward()
    gradients = torch.nn.functional.normalize(head.descriptor.slots.grad, dim=-1)
    assert (gradients @ gradients.mT - torch.eye(3, dtype=torch.float64)).abs().max() < 0.9999
