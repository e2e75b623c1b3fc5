"""C3D layer by layer, ARN's encoder block by block, and either under heads."""

from __future__ import annotations

import shlex

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode

from backbones import build_backbone
from backbones.c3d import STAGES
from engine.settings import build_parser
from methods import METHODS, build_head
from tests.oracles import arn as literal


def clips(number: int, frames: int, size: int) -> Tensor:
    return torch.rand(number, frames, 3, size, size, generator=torch.Generator().manual_seed(1))


def layer_by_layer(net: nn.Module, maps: Tensor, until: str) -> Tensor:
    """C3D as the authors' prototxt files list it, for clips of 16 frames of 112 pixels where it goes on to fc6 and fc7."""
    for stage, (names, _, pool) in STAGES.items():
        for name in names:
            maps = F.relu(F.conv3d(maps, getattr(net, name).weight, getattr(net, name).bias, padding=1))
        if until in names:
            return maps
        if stage == "5":  # Caffe rounds up: a pool over the last row and column alone
            maps = F.pad(maps, (0, 1, 0, 1), value=-torch.inf)
        maps = F.max_pool3d(maps, pool)
    hidden = F.relu(F.linear(maps.flatten(1), net.fc6.weight.flatten(1), net.fc6.bias))
    if until == "fc7":
        hidden = F.relu(F.linear(hidden, net.fc7.weight.flatten(1), net.fc7.bias))
    return hidden[:, :, None, None, None]


@pytest.mark.parametrize("until", ["conv4b", "conv5b"])
def test_c3d_equals_its_layers_written_out(until):
    torch.manual_seed(0)
    backbone = build_backbone("c3d", seq_len=9, until=until).eval()
    with torch.inference_mode():
        found = backbone(clips(2, 9, 48), maps=True)
        expected = layer_by_layer(backbone.net, clips(2, 9, 48).transpose(1, 2), until)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_fully_connected_layers_see_the_clip_as_the_authors_layers_do():
    """From the last pool on, which has to leave 4 x 4 of 7 x 7 cells."""
    torch.manual_seed(0)
    net = build_backbone("c3d", seq_len=16, until="fc7").eval().net
    stage5 = torch.rand(2, 512, 2, 7, 7, generator=torch.Generator().manual_seed(1))
    layers = [layer for name, layer in net.named_children() if name.endswith(("5", "6", "7"))]
    with torch.inference_mode():
        found = nn.Sequential(*layers)(stage5)
        pooled = F.max_pool3d(F.pad(stage5, (0, 1, 0, 1), value=-torch.inf), 2)
        hidden = F.relu(F.linear(pooled.flatten(1), net.fc6.weight.flatten(1), net.fc6.bias))
        expected = F.relu(F.linear(hidden, net.fc7.weight.flatten(1), net.fc7.bias))
    assert pooled.shape == (2, 512, 1, 4, 4)
    torch.testing.assert_close(found, expected[:, :, None, None, None], rtol=1e-4, atol=1e-4)


def test_longer_clips_and_larger_frames_give_more_steps_of_fc6():
    with torch.device("meta"):
        backbone = build_backbone("c3d", seq_len=24, until="fc6")
        assert backbone(torch.empty(1, 24, 3, 144, 144), maps=True).shape == (1, 4096, 2, 1 + 1, 1 + 1)


def test_c3d_takes_blue_first_frames_from_0_to_255():
    spec = build_backbone("c3d", seq_len=16).input_spec
    red = torch.tensor([255, 0, 0], dtype=torch.uint8)[:, None, None]
    assert spec.normalise(red).flatten().tolist() == pytest.approx([-90.0, -98.0, 255 - 102.0])


@pytest.mark.parametrize("training", [False, True])
def test_conv4_3d_equals_its_blocks_written_out(training):
    """Its pools come before its ReLUs: same values, same gradients."""
    torch.manual_seed(0)
    backbone = build_backbone("conv4_3d", seq_len=6).double().train(training)
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm3d):
            nn.init.uniform_(module.weight, -1, 1)  # also where a pool finds what a norm has turned over
            nn.init.uniform_(module.bias, -0.5, 0.5)
    given = clips(2, 6, 16).double()
    found, expected = backbone(given, maps=True), literal.encode(backbone.net, given)
    assert found.shape == (2, 64, 1, 4, 4)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    weights = list(backbone.parameters())
    cotangent = torch.randn_like(found)
    gradients = (torch.autograd.grad(maps, weights, cotangent) for maps in (found, expected))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("backbone", ["c3d", "conv4_3d"])
def test_under_autocast_every_layer_is_in_half_precision(backbone):
    """By tensors that have a format and no content: to emulate bf16 would take half a minute."""
    formats = {}
    with FakeTensorMode(), torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        net = build_backbone(backbone, seq_len=16).eval()
        for name, module in net.named_modules():
            module.register_forward_hook(lambda _, inputs, maps, name=name: formats.update({name: maps.dtype}))
        net(torch.rand(1, 16, 3, 32, 32), maps=True)
    assert len(formats) > 10
    assert {name: kind for name, kind in formats.items() if kind != torch.bfloat16} == {}


@pytest.mark.parametrize("method", ["tsn", "trx", "otam", "arn"])
@pytest.mark.parametrize("backbone", ["c3d", "conv4_3d"])
def test_either_works_under_other_heads(backbone, method):
    flags = f"-c unused --no_pretrained --backbone {backbone} --method {method} --seq_len 16 --temp_set 2"
    torch.manual_seed(0)
    head = build_head(build_parser(METHODS).parse_args(shlex.split(flags))).train()
    support, target = (clips(number, 16, 32).flatten(0, 1) for number in (2, 3))
    outputs = head(support, torch.arange(2), target)
    assert outputs["logits"].shape == (3, 2)
    head.loss({"target_labels": torch.tensor([0, 1, 1])}, outputs).backward()
    first = next(head.backbone.parameters())
    assert first.grad.isfinite().all()
    assert first.grad.any()
