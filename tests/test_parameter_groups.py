"""What an optimiser is given of a recogniser: every trained parameter once, with the factors of its kind."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from backbones import build_backbone
from backbones.recogniser import LAYER_RATES, Recogniser

DECAY = 5e-4


def recogniser(backbone: str, *, seq_len: int = 8, bn: str = "train", **options: Any) -> Recogniser:
    with torch.device("meta"):
        return Recogniser(build_backbone(backbone, seq_len=seq_len, **options), num_classes=5, bn=bn)


def factors(model: Recogniser, layer_rates: str) -> dict[str, tuple[float, float]]:
    """(factor on the learning rate, weight decay) of every parameter, by name."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    found: dict[str, tuple[float, float]] = {}
    for group in model.parameter_groups(layer_rates, DECAY):
        for parameter in group["params"]:
            assert names[parameter] not in found, "it would be updated twice"
            found[names[parameter]] = (group["lr_mult"], group["weight_decay"])
    return found


def by_hand(model: Recogniser, layer_rates: str, name: str) -> tuple[float, float]:
    """As TSM's code sorts them, by the type of the layer."""
    layer_name, _, kind = name.rpartition(".")
    layer = model.get_submodule(layer_name)
    if layer_rates == "uniform":
        return 1.0, DECAY
    if isinstance(layer, _BatchNorm):
        return 1.0, 0.0
    if isinstance(layer, nn.Linear) and layer_rates == "tsm_fc5":
        return (5.0, DECAY) if kind == "weight" else (10.0, 0.0)
    return (1.0, DECAY) if kind == "weight" else (2.0, 0.0)


@pytest.mark.parametrize("layer_rates", LAYER_RATES)
@pytest.mark.parametrize("bn", ["train", "partial"])
@pytest.mark.parametrize(("backbone", "options"), [("tsm_resnet50", {"non_local": True}), ("s3d_inception_v1", {})])
def test_every_trained_parameter_has_the_factors_of_its_kind(
    backbone: str, options: dict[str, Any], bn: str, layer_rates: str
) -> None:
    model = recogniser(backbone, bn=bn, **options)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert factors(model, layer_rates) == {name: by_hand(model, layer_rates, name) for name in trained}


@pytest.mark.parametrize("layer_rates", LAYER_RATES)
def test_offsets_of_deformable_kernels_learn_at_a_tenth_of_the_rate(layer_rates: str) -> None:
    model = recogniser("msn_resnet50", seq_len=40)
    found = factors(model, layer_rates)
    offsets = {name for name in found if ".offset." in name}
    assert len(offsets) == 13 * 2 * 2  # blocks, kernels of each, and a weight and a bias of each
    assert {found[name] for name in offsets} == {(0.1, DECAY)}
    others = found.keys() - offsets
    assert {name: found[name] for name in others} == {name: by_hand(model, layer_rates, name) for name in others}
    assert found.keys() == {name for name, _ in model.named_parameters()}


def test_the_released_msn_learns_offsets_at_the_full_rate_and_no_kernel() -> None:
    """Its authors' code sets the factor where nothing reads it."""
    found = factors(recogniser("msn_resnet50", seq_len=40, variant="released"), "uniform")
    assert any(".offset." in name for name in found)
    assert set(found.values()) == {(1.0, DECAY)}
    assert not any(name.endswith(("small.weight", "large.weight")) for name in found)
