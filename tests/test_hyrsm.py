"""HyRSM and HyRSM++ against their equations written out, in which every query has its own copy of the support."""

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

from methods.hyrsm import Fuse, ScaledEncoding, ShiftedSteps
from model import CNN_FSHead
from tests.oracles import hyrsm as literal
from utils import UserError

WIDTH = 16
FORMS = ["mean_first", "mean_distance"]


def head_of(*flags: str, method: str = "hyrsm", num_train_classes: int = 0) -> CNN_FSHead:
    options = ["--backbone_options", f"width={WIDTH}", "--method", method]
    return stir(build(*options, *flags, num_train_classes=num_train_classes))


def episode(labels: Tensor, queries: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    return features(len(labels), STEPS, WIDTH), labels, features(queries, STEPS, WIDTH, seed=1)


@pytest.fixture(params=SHOTS)
def labels(request) -> Tensor:
    return SHOTS[request.param]


@pytest.mark.parametrize("shots", FORMS)
def test_hyrsm_equals_its_equations(shots, labels):
    head, case = head_of("--hyrsm_shots", shots), episode(labels)
    torch.testing.assert_close(outputs_of(head, *case)["logits"], literal.hyrsm(head, *case), **EXACT)


@pytest.mark.parametrize("shots", FORMS)
def test_hyrsm_has_the_gradients_of_its_equations(shots):
    head, (support, labels, target) = head_of("--hyrsm_shots", shots), episode(SHOTS["unequal"])
    learnt = [support.requires_grad_(), target.requires_grad_()]
    learnt += [p for name, p in head.named_parameters() if not name.startswith("backbone.")]
    fast, slow = outputs_of(head, support, labels, target)["logits"], literal.hyrsm(head, support, labels, target)
    cotangent = torch.randn_like(fast)
    found, expected = (torch.autograd.grad(logits, learnt, cotangent) for logits in (fast, slow))
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-9)


def test_both_ways_with_shots_agree_at_one_shot_and_differ_at_two():
    for shots, alike in (("one shot", True), ("two shots", False)):
        case = episode(SHOTS[shots])
        first, distance = (outputs_of(head_of("--hyrsm_shots", form), *case)["logits"] for form in FORMS)
        # In the former, classes are in order and videos are not: which of them comes first does not matter.
        assert torch.allclose(first, distance, **EXACT) == alike


def test_single_precision_holds_where_a_shift_all_but_undoes_a_step():
    generator = torch.Generator().manual_seed(0)
    steps = torch.randn(1, 2, 3, 8, generator=generator, dtype=torch.float64)
    shifts = -steps[:, None, :, 0].repeat(1, 4, 1, 1)  # of every item, the first step is gone
    queries = torch.randn(1, 4, 5, 8, generator=generator, dtype=torch.float64)
    cosines = ShiftedSteps(steps.float(), shifts.float()).cosines(queries.float()).double()
    assert cosines.abs().max() < 1.001
    shifted = F.normalize(steps[:, None] + shifts[:, :, :, None], dim=-1)
    expected = torch.einsum("bqld,bqimd->bqilm", F.normalize(queries, dim=-1), shifted)
    torch.testing.assert_close(cosines[..., 1:], expected[..., 1:], rtol=0, atol=1e-5)


def test_fused_steps_are_a_map_of_both_parts_together():
    fuse = Fuse(WIDTH).double()
    steps, tokens = features(3, WIDTH), features(3, WIDTH, seed=1)
    together = torch.nn.Linear.forward(fuse, torch.cat([steps, tokens], dim=-1))
    torch.testing.assert_close(fuse.of_steps(steps) + fuse.of_tokens(tokens), together, **EXACT)


def test_encoding_is_the_authors():
    encoding = ScaledEncoding(WIDTH, 20, divisor=4.0, amplitude=0.5).double().eval()
    steps = features(2, 20, WIDTH)
    expected = 2 * steps + 0.5 * literal.sinusoids(20, WIDTH)
    torch.testing.assert_close(encoding(steps), expected, rtol=0, atol=1e-6)
    assert literal.sinusoids(3, 4)[2].tolist() == pytest.approx([0.9092974, 0.9998000, 0.0002, 1.0], abs=1e-6)


@pytest.mark.parametrize(("classes", "expected"), [(64, 42_088_512), (0, 42_088_512 - 131_136)])
def test_hyrsm_has_the_parameters_of_the_release(classes, expected):
    assert num_parameters(on_meta("--method", "hyrsm", num_train_classes=classes)) == expected


def test_every_step_is_classified_among_the_training_classes():
    head = head_of("--hyrsm_aux_weight", "0.4", num_train_classes=6)
    support, labels, target = episode(SHOTS["unequal"])
    classes = {
        "real_support_labels": torch.tensor([3, 5, 0, 3, 5, 5, 3, 5]),
        "real_target_labels": torch.tensor([0, 5, 3]),
    }
    task = {"target_labels": torch.tensor([1, 2, 0]), **classes}
    assert "class_logits" not in outputs_of(head, support, labels, target)
    outputs = outputs_of(without_dropout(head), support, labels, target)

    losses = []
    for clips, of_clips in ((support, classes["real_support_labels"]), (target, classes["real_target_labels"])):
        for steps, label in zip(literal.encode(head.encoding, head.step_attention, clips), of_clips, strict=True):
            losses += [F.cross_entropy(head.aux_classifier(step), label) for step in steps]
    episodic = F.cross_entropy(literal.hyrsm(head, support, labels, target), task["target_labels"])
    expected = episodic + 0.4 * torch.stack(losses).mean()
    torch.testing.assert_close(head.loss(task, outputs), expected, **EXACT)


def test_no_classifier_without_weight_or_classes():
    assert head_of("--hyrsm_aux_weight", "0", num_train_classes=6).aux_classifier is None
    assert head_of().aux_classifier is None


@pytest.mark.parametrize("shots", FORMS)
@pytest.mark.parametrize(("window", "push"), [(1, 10.0), (2, 3.0)])
def test_coherence_is_that_of_every_pair_of_steps(shots, window, push):
    flags = f"--hyrsm_shots {shots} --hyrsm_window {window} --hyrsm_push {push} --hyrsm_coherence_weight 0.3"
    head, case = head_of(*flags.split(), "--hyrsm_slope", "5", method="hyrsm++"), episode(SHOTS["unequal"])
    logits, task = outputs_of(head, *case)["logits"], {"target_labels": torch.tensor([1, 2, 0])}
    outputs = outputs_of(without_dropout(head), *case)
    torch.testing.assert_close(outputs["logits"], logits, **EXACT)
    expected = literal.incoherence(head, *case)
    torch.testing.assert_close(outputs["incoherence"], expected, **EXACT)
    plain = F.cross_entropy(logits, task["target_labels"])
    torch.testing.assert_close(head.loss(task, outputs), plain + 0.3 * expected, **EXACT)


def test_steps_that_are_coherent_cost_nothing_more():
    """Equal neighbours, and far steps that point away from each other, beyond every margin."""
    head = head_of("--hyrsm_window", "1", method="hyrsm++")
    distances = torch.tensor([[0.0, 0, 2, 2], [0, 0, 0, 2], [2, 0, 0, 0], [2, 2, 0, 0]], dtype=torch.float64)
    assert head.incoherence(distances) == 0
    assert head.incoherence(2 - distances) > 1


def test_a_width_that_heads_cannot_share_is_refused():
    with pytest.raises(UserError, match="gives 12 features, expected a multiple of 8"):
        build("--method", "hyrsm", "--backbone_options", "width=12")


@pytest.mark.parametrize("shots", FORMS)
def test_hyrsm_explains_logits_by_the_best_cells_of_each_shot(shots):
    head, (support, labels, target) = head_of("--hyrsm_shots", shots), episode(SHOTS["two shots"])
    shown = {name: value[0] for name, value in head.explain(support[None], labels[None], target[None]).items()}
    torch.testing.assert_close(shown["logits"], literal.hyrsm(head, support, labels, target), **EXACT)
    torch.testing.assert_close(shown["shot_similarities"].mean(dim=-1), shown["logits"], **EXACT)
    by_cells = -(shown["cells"] * (1 - shown["similarities"])).sum(dim=(-2, -1))
    torch.testing.assert_close(by_cells, shown["shot_similarities"], **EXACT)

    def encoded(clips: Tensor) -> Tensor:
        return literal.encode(head.encoding, head.step_attention, clips)

    items, classes = encoded(support), labels
    if shots == "mean_first":
        classes = torch.arange(3)
        items = torch.stack([items[labels == k].mean(dim=0) for k in classes])
    assert torch.equal(shown["relation_classes"], classes)
    attention = head.task_attention
    for query, relation in zip(encoded(target), shown["relation"], strict=True):
        tokens = torch.cat([items, query[None]]).mean(dim=1)
        looking, seen = (
            (tokens @ linear.weight.T).chunk(8, dim=1) for linear in (attention.q_linear, attention.k_linear)
        )
        heads = [(q @ k.T / q.shape[1] ** 0.5).softmax(dim=1) for q, k in zip(looking, seen, strict=True)]
        torch.testing.assert_close(relation, torch.stack(heads).mean(dim=0), **EXACT)
