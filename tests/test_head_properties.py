"""What every method keeps, on features in float64: any way and shots, no order among classes, shots, queries, episodes."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from engine.settings import build_parser
from methods import METHODS, build_head
from methods.clip_fsar import CNN_ZeroShot
from model import CNN_FSHead, group_by_class

STEPS = 4
OPTIONS = [
    "tsn --tsn_distance mean_cosine",
    "tsn --tsn_distance sqeuclid",
    "dual_prototypes --dp_variant code",
    "dual_prototypes --dp_variant code --dp_cosine_axis feature",
    "otam --otam_hard_test",
    "otam --otam_shot_reduce feature",
    "pal --pal_prototype_loss sigmoid",
    "chamfer++ --chamfer_tuples 1",
    "bimhm --bimhm_shots mean_first --bimhm_aux_weight 0.5",
    "hyrsm --hyrsm_shots mean_distance",
    "strm --strm_aux off",
    "clip_fsar --clip_fsar_merge after --clip_fsar_text 0.9",
]
UNEQUAL = torch.tensor([0, 2, 1, 0, 2, 2, 0, 2])  # 3, 1 and 4 shots
TARGET_LABELS = torch.tensor([2, 0, 1, 0, 2])
TRAINING_CLASSES = torch.tensor([4, 0, 3])  # of the three classes of an episode, among five


def build(method: str, *flags: str) -> CNN_FSHead:
    """A head whose flags say another way and shot than its episodes have, always with the same weights, in float64."""
    torch.manual_seed(0)
    settings = (
        "-c unused --backbone conv4 --no_pretrained --seq_len 4 --trans_linear_out_dim 24 --way 2 --shot 7 --method"
    )
    args = build_parser(METHODS).parse_args([*shlex.split(f"{settings} {method}"), *flags])
    return build_head(args, num_train_classes=5).double().eval()


@pytest.fixture(params=[*METHODS, *OPTIONS])
def method(request) -> str:
    return request.param


@pytest.fixture
def head(method) -> CNN_FSHead:
    return build(method)


def features(head: CNN_FSHead, videos: int, *, seed: int = 0) -> Tensor:
    """What `classify` reads of so many videos (1, videos, ...): not negative, unlike each other, as after a ReLU."""
    with torch.no_grad():
        like = head.encode(torch.zeros(1, STEPS, 3, 32, 32, dtype=torch.float64))
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, videos, *like.shape[1:], generator=generator, dtype=torch.float64).relu()


def text_of(head: CNN_FSHead, classes: Sequence[int], episodes: int = 1) -> dict[str, Tensor]:
    """Class text (episodes, classes, P) for a head that uses it: unlike each other, equal for equal numbers of classes."""
    if not head.uses_class_text:
        return {}
    every = torch.randn(8, head.class_text_width or 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return {"class_text": every.to(next(head.parameters()).dtype)[list(classes)].expand(episodes, -1, -1)}


def outputs_of(
    head: CNN_FSHead, support: Tensor, labels: Tensor, target: Tensor, classes: Sequence[int] | None = None
) -> dict[str, Tensor]:
    """classes: what the labels 0, 1, ... stand for, where that is not the same."""
    text = text_of(head, classes or range(int(labels.max()) + 1), len(support))
    outputs = head.classify(support, labels.expand(len(support), -1), target, **text)
    return outputs if isinstance(outputs, dict) else {"logits": outputs}


def logits_of(
    head: CNN_FSHead, support: Tensor, labels: Tensor, target: Tensor, classes: Sequence[int] | None = None
) -> Tensor:
    return outputs_of(head, support, labels, target, classes)["logits"]


def task_of(head: CNN_FSHead, target_labels: Tensor = TARGET_LABELS) -> dict[str, Tensor]:
    """What a method's loss may look at, of one training episode with the support `UNEQUAL`."""
    generator = torch.Generator().manual_seed(2)
    dtype = next(head.parameters()).dtype
    support_set, target_set = (
        torch.randn(1, len(labels) * STEPS, 3, 12, 12, generator=generator).to(dtype)
        for labels in (UNEQUAL, target_labels)
    )
    text = text_of(head, range(5))
    return {
        **({"base_text": text["class_text"]} if text else {}),
        "support_labels": UNEQUAL[None],
        "target_labels": target_labels[None],
        "real_support_labels": TRAINING_CLASSES[UNEQUAL][None],
        "real_target_labels": TRAINING_CLASSES[target_labels][None],
        "support_set": support_set,
        "target_set": target_set,
    }


def own_parameters(head: CNN_FSHead) -> dict[str, Tensor]:
    return {name: p for name, p in head.named_parameters() if not name.startswith("backbone.")}


@pytest.mark.parametrize("labels", [[0], [1, 0], [0, 1, 2, 3, 4, 5], [1, 0, 0, 1, 1, 0], UNEQUAL.tolist()])
def test_way_and_shots_are_those_of_the_labels(method, head, labels):
    if method == "team" and not any(labels):
        pytest.skip("TEAM needs two classes, and says so")
    logits = logits_of(head, features(head, len(labels)), torch.tensor(labels), features(head, 2, seed=1))
    assert logits.shape == (1, 2, max(labels) + 1)
    assert logits.isfinite().all()


def test_renaming_the_classes_renames_the_logits(head):
    support, target, names = features(head, 8), features(head, 4, seed=1), torch.tensor([1, 2, 0])
    logits = logits_of(head, support, UNEQUAL, target)
    renamed = logits_of(head, support, names[UNEQUAL], target, names.argsort().tolist())
    torch.testing.assert_close(renamed[..., names], logits)
    assert (renamed - logits).abs().max() > 1e-6  # so that the comparison says something


def test_the_order_of_support_videos_does_not_matter(head):
    support, target, order = features(head, 8), features(head, 4, seed=1), torch.tensor([5, 2, 7, 0, 3, 1, 6, 4])
    shuffled = logits_of(head, support[:, order], UNEQUAL[order], target)
    torch.testing.assert_close(shuffled, logits_of(head, support, UNEQUAL, target))


def test_a_method_is_inductive_if_it_scores_every_query_by_itself(head):
    """Queries in another order, most of them removed, all of them twice: an inductive method gives the same logits."""
    support, target = features(head, 8), features(head, 4, seed=1)
    logits = logits_of(head, support, UNEQUAL, target)
    assert (logits[:, 1:] - logits[:, :1]).abs().max() > 1e-6  # queries are unlike each other
    same = []
    for queries in ([2, 0, 3, 1], [2], [0, 1, 2, 3, 0, 1, 2, 3]):
        changed = logits_of(head, support, UNEQUAL, target[:, queries])
        same.append(torch.allclose(changed, logits[:, queries], rtol=1e-7, atol=1e-7))
    assert same[0], "no method may go by the order of queries"
    assert all(same) == head.inductive


def test_a_method_that_describes_clips_compares_descriptions_as_it_compares_features(head):
    assert head.condenses == (type(head).describe is not CNN_FSHead.describe)
    if not head.condenses:
        pytest.skip("this method compares features themselves")
    support, target = features(head, 8), features(head, 4, seed=1)
    described = (head.describe(clips[0])[None] for clips in (support, target))
    outputs = head.classify_described(next(described), UNEQUAL[None], next(described))
    logits = outputs["logits"] if isinstance(outputs, dict) else outputs
    torch.testing.assert_close(logits, logits_of(head, support, UNEQUAL, target))


def test_many_episodes_at_once_equal_one_after_the_other(head):
    """Also when they differ in shots, so that each is filled up by other numbers of videos."""
    labels = torch.stack([UNEQUAL, torch.tensor([1, 1, 0, 2, 0, 1, 2, 0]), torch.tensor([0, 1, 2, 2, 2, 2, 2, 2])])
    support = torch.cat([features(head, 8, seed=seed) for seed in range(3)])
    target = torch.cat([features(head, 4, seed=seed) for seed in range(3, 6)])
    together = logits_of(head, support, labels, target)
    for b in range(3):
        alone = logits_of(head, support[b : b + 1], labels[b], target[b : b + 1])
        torch.testing.assert_close(together[b : b + 1], alone)


def test_what_fills_up_a_class_is_not_looked_at(head, monkeypatch):
    """Support videos that do not exist are zeros; any other numbers must do as well."""
    case = features(head, 8), UNEQUAL, features(head, 4, seed=1)
    logits = logits_of(head, *case)
    filled = filled_with_noise(group_by_class)
    for name, module in list(sys.modules.items()):
        if name.startswith(("model", "methods.")) and hasattr(module, "group_by_class"):
            monkeypatch.setattr(module, "group_by_class", filled)
    torch.testing.assert_close(logits_of(head, *case), logits)


def filled_with_noise(group: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., tuple[Tensor, Tensor]]:
    def group_and_fill(support: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        grouped, present = group(support, labels)
        exists = present.reshape(*present.shape, *[1] * (grouped.ndim - 3))
        return torch.where(exists, grouped, 7 * torch.ones_like(grouped).cumsum(dim=-1).sin()), present

    return group_and_fill


def test_every_own_parameter_and_the_backbone_get_a_gradient(head):
    support, target = features(head, 8).requires_grad_(), features(head, 5, seed=1).requires_grad_()
    for parameter in own_parameters(head).values():
        if not parameter.any():  # where a part starts without effect, what is behind it has no gradient yet
            parameter.data += 0.1
    outputs = outputs_of(head.train(), support, UNEQUAL, target)
    head.loss(task_of(head), outputs).backward()
    learnt = {"support": support, "target": target, **own_parameters(head)}
    if isinstance(head, CNN_ZeroShot):
        assert learnt.pop("support").grad is None  # it looks at none
    assert [name for name, value in learnt.items() if value.grad is None or not value.grad.any()] == []
    assert all(value.grad.isfinite().all() for value in learnt.values())


def test_half_precision_features_give_finite_numbers_in_single_precision(head):
    """Of every scale, and of a black clip, whose features can be zero."""
    support, target = features(head, 8).bfloat16(), features(head, 5, seed=1).bfloat16()
    support[0, 1], target[0, 0] = 100 * support[0, 1], 0
    support[0, 2] = 0
    target.requires_grad_()
    head.float().train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = head.classify_episodes(support, UNEQUAL[None], target, **text_of(head, range(3)))
        head.loss(task_of(head), outputs).backward()
    assert outputs["logits"].dtype == torch.float32
    assert all(value.isfinite().all() for value in outputs.values())
    assert all(p.grad.isfinite().all() for p in [target, *own_parameters(head).values()])


def test_one_episode_can_be_learnt_by_heart(head):
    """With features that may be moved, as a backbone would."""
    support, target = (part.float().requires_grad_() for part in (features(head, 8), features(head, 5, seed=1)))
    head.float()
    optimizer = torch.optim.Adam([support, target, *own_parameters(head).values()], lr=0.02)
    task = task_of(head)
    losses = []
    for _ in range(40):
        outputs = outputs_of(head.train(), support, UNEQUAL, target)
        loss = head.loss(task, outputs)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        all_right = torch.equal(outputs["logits"][0].argmax(dim=-1), TARGET_LABELS)
        if all_right and losses[-1] < 0.5 * losses[0]:
            break
    assert losses[-1] < 0.5 * losses[0]
    assert all_right


def test_every_part_of_the_loss_counts_once_per_query_in_a_sum(method):
    losses = []
    for reduction in ("sum", "mean"):
        head = build(method, "--loss_reduction", reduction).train()
        torch.manual_seed(1)  # of dropout
        outputs = outputs_of(head, features(head, 8), UNEQUAL, features(head, 5, seed=1))
        losses.append(head.loss(task_of(head), outputs))
    torch.testing.assert_close(losses[0], 5 * losses[1])


def test_mean_over_25_queries_at_25_times_the_rate_is_their_sum(method):
    """The rate 0.001 of the TRX authors, who add up the queries of an episode, is 0.025 where the mean is taken."""
    after = []
    for reduction, rate in (("sum", 1e-3), ("mean", 25e-3)):
        head = build(method, "--loss_reduction", reduction)
        support, target = features(head, 8).requires_grad_(), features(head, 25, seed=1).requires_grad_()
        learnt = [support, target, *own_parameters(head).values()]
        before = target.detach().clone()
        task = task_of(head, torch.arange(25) % 3)
        head.loss(task, outputs_of(head, support, UNEQUAL, target)).backward()
        torch.optim.SGD(learnt, lr=rate).step()
        assert not torch.equal(target, before)
        after.append([value.detach() for value in learnt])
    torch.testing.assert_close(*after, rtol=1e-10, atol=1e-14)


def test_explanations_are_of_every_episode_finite_and_of_the_same_logits(head):
    support, target = features(head, 8).repeat(2, *[1] * (features(head, 1).ndim - 1)), features(head, 4, seed=1)
    labels = UNEQUAL.expand(2, -1)
    with torch.inference_mode():
        shown = head.explain(support, labels, target.expand(2, *target.shape[1:]), **text_of(head, range(3), 2))
        torch.testing.assert_close(shown["logits"][:1], logits_of(head, support[:1], UNEQUAL, target))
    assert len(shown) > 1
    for value in shown.values():
        assert len(value) == 2
        assert value.isfinite().all()
        torch.testing.assert_close(value[0], value[1])
