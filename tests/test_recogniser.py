"""The classifier on a backbone, which of its parameters learn how fast, and batch norms that stay as they are."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbones import build_backbone
from backbones.recogniser import LAYER_RATES, Recogniser
from clips.transforms import InputSpec
from engine.processes import Processes
from engine.steps import Steps

SGD = {"momentum": 0.9, "nesterov": False}


class Ones(nn.Module):
    """Stands in for a backbone: features (N, 2, D) of ones."""

    feature_dim = 64
    input_spec = InputSpec()

    def forward(self, clips: Tensor) -> Tensor:
        return torch.ones(len(clips), 2, self.feature_dim)


def tiny(
    backbone: str = "conv4", *, classes: int = 3, bn: str = "train", seq_len: int = 2, **options: Any
) -> Recogniser:
    torch.manual_seed(0)
    if backbone == "conv4":
        options = {"width": 4, **options}
    return Recogniser(build_backbone(backbone, seq_len=seq_len, **options), classes, dropout=0.0, bn=bn)


def clips(number: int = 4, frames: int = 2, size: int = 16) -> Tensor:
    return torch.randn(number, frames, 3, size, size, generator=torch.Generator().manual_seed(1))


# Logits --------------------------------------------------------------------------------------------------------------


def test_logits_are_the_mean_of_the_linear_map_of_every_step() -> None:
    model = tiny(seq_len=3).double().eval().requires_grad_(False)
    given = clips(2, 3).double()
    features = model.backbone(given)
    weight, bias = model.classifier.weight, model.classifier.bias
    for n, logits in enumerate(model(given)):
        for c, logit in enumerate(logits.tolist()):
            steps = [float(features[n, s] @ weight[c] + bias[c]) for s in range(3)]
            assert logit == pytest.approx(sum(steps) / 3)


def test_every_step_has_a_dropout_of_its_own() -> None:
    """Of two steps of ones, half of each dropped and the rest doubled, the mean is 0, 1 or 2."""
    model = Recogniser(Ones(), 64, dropout=0.5)
    nn.init.eye_(model.classifier.weight)
    torch.manual_seed(0)
    assert set(model.train()(torch.zeros(50, 1)).unique().tolist()) == {0, 1, 2}
    assert (model.eval()(torch.zeros(1, 1)) == 1).all()


def test_the_classifier_starts_near_zero() -> None:
    torch.manual_seed(0)
    classifier = Recogniser(Ones(), 2000).classifier
    assert float(classifier.weight.detach().std()) == pytest.approx(0.001, rel=0.02)
    assert (classifier.bias == 0).all()


def test_the_classifier_computes_in_full_precision() -> None:
    model = tiny().eval()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits, features = model(clips()), model.backbone(clips())
    assert (features.dtype, logits.dtype) == (torch.bfloat16, torch.float32)
    torch.testing.assert_close(logits, model.classifier(features.float()).mean(dim=1), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("backbone", "options", "classes", "parameters"),
    [
        ("tsm_resnet50", {}, 400, 24_327_632),
        ("tsm_resnet50", {}, 174, 23_864_558),
        ("tam_resnet50", {}, 400, 24_366_992),
        ("i3d_resnet50", {}, 400, 46_980_944),
        ("s3d_inception_v1", {}, 400, 8_313_328),
        ("tsm_mobilenet_v2", {}, 400, 2_736_272),
    ],
)
def test_recognisers_have_the_published_number_of_parameters(
    backbone: str, options: dict[str, Any], classes: int, parameters: int
) -> None:
    """Of the Action Recognition Study's models (Chen et al., CVPR 2021) and of TSM's (Lin et al., ICCV 2019)."""
    with torch.device("meta"):
        model = tiny(backbone, classes=classes, seq_len=8, **options)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


@pytest.mark.parametrize(("backbone", "frames"), [("tsm_resnet18", 4), ("s3d_resnet18", 8), ("resnet3d10", 8)])
def test_every_parameter_of_a_family_learns(backbone: str, frames: int) -> None:
    model = tiny(backbone, seq_len=frames).train()
    # Through a classifier that starts near zero gradients would be near zero too.
    nn.init.normal_(model.classifier.weight)
    F.cross_entropy(model(clips(2, frames, 32)), torch.tensor([0, 2])).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


# Parameter groups ----------------------------------------------------------------------------------------------------

# Tensors of TSM on ResNet-50: 53 convolutions (the first one among them), 53 batch norms, the classifier.
GROUPS = {
    "uniform": {"all": (53 + 2 * 53 + 2, 1, 1)},
    "tsm": {"weights": (53 + 1, 1, 1), "biases": (1, 2, 0), "norms": (106, 1, 0)},
    "tsm_fc5": {"weights": (53, 1, 1), "norms": (106, 1, 0), "classifier weight": (1, 5, 1), "classifier bias": (1, 10, 0)},
}  # fmt: skip


@pytest.mark.parametrize("layer_rates", LAYER_RATES)
def test_parameter_groups_are_those_of_tsm(layer_rates: str) -> None:
    with torch.device("meta"):
        model = tiny("tsm_resnet50", classes=400, seq_len=8)
    groups = model.parameter_groups(layer_rates, 0.5)
    found = {group["name"]: (len(group["params"]), group["lr_mult"], group["weight_decay"] / 0.5) for group in groups}
    assert found == GROUPS[layer_rates]
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == {id(parameter) for parameter in model.parameters()}


@pytest.mark.parametrize("layer_rates", LAYER_RATES)
def test_norms_that_are_not_trained_are_in_no_group(layer_rates: str) -> None:
    with torch.device("meta"):
        model = tiny("tsm_resnet50", seq_len=8, bn="partial")
    grouped = [parameter for group in model.parameter_groups(layer_rates, 0.1) for parameter in group["params"]]
    assert len(grouped) == 53 + 2 + 2
    assert all(parameter.requires_grad for parameter in grouped)


def test_convolutions_with_biases_are_told_apart_by_name() -> None:
    """TSM's non-local blocks have four convolutions with a bias and a batch norm each."""
    with torch.device("meta"):
        model = tiny("tsm_resnet50", seq_len=8, non_local=True)
    found = {group["name"]: len(group["params"]) for group in model.parameter_groups("tsm", 0.1)}
    assert found == {"weights": 54 + 5 * 4, "biases": 1 + 5 * 4, "norms": 106 + 5 * 2}


# Steps ---------------------------------------------------------------------------------------------------------------


def literal_sgd(
    weights: dict[str, Tensor], gradients: list[dict[str, Tensor]], factors: dict[str, tuple[float, float]], rate: float,
    *, decay: float, momentum: float, nesterov: bool, clip: float = 0.0,
) -> dict[str, Tensor]:  # fmt: skip
    """Steps of SGD with L2 penalty and momentum (Sutskever et al., ICML 2013, in torch's form), tensor by tensor."""
    weights = {name: weight.clone() for name, weight in weights.items()}
    velocity: dict[str, Tensor] = {}
    for gradient in gradients:
        norm = math.sqrt(sum(float(g.square().sum()) for g in gradient.values()))
        shrink = min(1.0, clip / (norm + 1e-6)) if clip else 1.0
        for name, (rate_factor, decay_factor) in factors.items():
            slope = gradient[name] * shrink + decay * decay_factor * weights[name]
            velocity[name] = momentum * velocity[name] + slope if name in velocity else slope
            move = slope + momentum * velocity[name] if nesterov else velocity[name]
            weights[name] = weights[name] - rate * rate_factor * move
    return weights


def factors_of(layer_rates: str, name: str) -> tuple[float, float]:
    """Of learning rate and decay, by the names of Conv-4's parameters: in a block 0 is the convolution, 1 the norm."""
    if layer_rates == "uniform":
        return 1, 1
    if name.startswith("classifier") and layer_rates == "tsm_fc5":
        return (5, 1) if name.endswith("weight") else (10, 0)
    if name.split(".")[-2] == "1":
        return 1, 0
    return (1, 1) if name.endswith("weight") else (2, 0)


@pytest.mark.parametrize("layer_rates", LAYER_RATES)
@pytest.mark.parametrize(("clip", "nesterov"), [(0.0, False), (0.05, False), (0.05, True), (1e9, False)])
def test_rates_decay_and_clipping_reach_the_steps(layer_rates: str, clip: float, nesterov: bool) -> None:
    model = tiny().double().train()
    factors = {name: factors_of(layer_rates, name) for name, _ in model.named_parameters()}
    groups = model.parameter_groups(layer_rates, 0.3)
    optimizer = torch.optim.SGD(groups, lr=1.0, momentum=0.9, nesterov=nesterov)
    steps = Steps(optimizer, Processes(), precision="fp32", clip_norm=clip)
    start = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    gradients = []
    for number in range(3):
        loss = F.cross_entropy(model(clips(4).double() + number), torch.tensor([0, 1, 2, 0]))
        steps.backward(loss)
        gradients.append({name: parameter.grad.clone() for name, parameter in model.named_parameters()})
        steps.take(0.1)
        assert all(parameter.grad is None for parameter in model.parameters())
    expected = literal_sgd(start, gradients, factors, 0.1, decay=0.3, momentum=0.9, nesterov=nesterov, clip=clip)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach(), expected[name], rtol=1e-9, atol=1e-12)


# Batch norms that stay -----------------------------------------------------------------------------------------------


def norms_of(model: nn.Module) -> list[nn.BatchNorm2d]:
    return [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]


@pytest.mark.parametrize(
    ("bn", "learning", "trained"),
    [
        ("train", [True, True, True, True], [True, True, True, True]),
        ("sync", [True, True, True, True], [True, True, True, True]),
        ("partial", [True, False, False, False], [True, False, False, False]),
        ("frozen", [False, False, False, False], [True, True, True, True]),
    ],
)
def test_which_norms_take_statistics_and_which_are_trained(bn: str, learning: list[bool], trained: list[bool]) -> None:
    model = tiny(bn=bn)
    optimizer = torch.optim.SGD(model.parameter_groups("uniform", 0.1), lr=0.1)
    nn.init.normal_(model.classifier.weight)
    for _ in range(2):
        model.eval()(clips())  # a validation between the steps
        model.train()
        before = [
            (norm.running_mean.clone(), norm.running_var.clone(), norm.weight.detach().clone())
            for norm in norms_of(model)
        ]
        F.cross_entropy(model(clips() + 1), torch.tensor([0, 1, 2, 0])).backward()
        assert [norm.weight.grad is not None for norm in norms_of(model)] == trained
        assert [norm.bias.grad is not None for norm in norms_of(model)] == trained
        optimizer.step()
        optimizer.zero_grad()
        for norm, (mean, variance, weight), learns, trains in zip(
            norms_of(model), before, learning, trained, strict=True
        ):
            assert torch.equal(norm.running_mean, mean) != learns
            assert torch.equal(norm.running_var, variance) != learns
            assert torch.equal(norm.weight, weight) != trains


def test_frozen_norms_make_clips_independent_of_each_other() -> None:
    given = clips(6)
    for bn, independent in [("train", False), ("frozen", True)]:
        model = tiny(bn=bn).train()
        nn.init.normal_(model.classifier.weight)
        assert torch.allclose(model(given)[:2], model(given[:2]), atol=1e-5) == independent


def test_partial_norms_of_one_recogniser_are_trained_in_the_next() -> None:
    """Its weights go on in another one, which is not partial any more."""
    model = tiny()
    model.load_state_dict(tiny(bn="partial").state_dict())
    assert all(parameter.requires_grad for parameter in model.parameters())
    model.train()
    assert all(norm.training for norm in norms_of(model))
