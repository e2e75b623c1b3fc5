"""MSN against its equations written out, deformable convolution tap by tap, and what its two variants train."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import run
from backbones import build_backbone
from backbones.msn import (
    DeformConv2d,
    PyramidModule,
    VariableScaleModule,
    deform_conv2d,
    sampled_deform_conv2d,
    torchvision_deform_conv2d,
)
from backbones.torchvision_import import HAS_OPERATORS
from engine.settings import build_parser
from methods import METHODS, build_head
from tests.oracles import motion as literal
from tests.test_backbone_tdn import network, random, relative_error, unsettled

# ---------------------------------------------------------------------------------------------------------------------
# Deformable convolution


def deform_inputs(taps: int, h: int, w: int, reach: float) -> list[torch.Tensor]:
    """Maps, offsets of some `reach` in cells, weight, bias."""
    maps, offsets = random(2, 3, h, w), reach * random(2, 2 * taps**2, h, w)
    return [tensor.requires_grad_() for tensor in (maps, offsets, random(4, 3, taps, taps), random(4))]


@pytest.mark.parametrize("taps", [3, 5])
@pytest.mark.parametrize(("h", "w"), [(3, 4), (1, 1)])
@pytest.mark.parametrize("reach", [0.0, 0.5, 3.0])
def test_deformable_convolution_equals_its_definition_and_so_do_its_gradients(taps, h, w, reach):
    """Taps outside the map too; where an offset is zero, the gradient is the one towards the next cell."""
    inputs = deform_inputs(taps, h, w, reach)
    maps, offsets, weight, bias = inputs
    found = deform_conv2d(*inputs)
    expected = torch.stack([literal.deform_conv(x, o, weight, bias) for x, o in zip(maps, offsets, strict=True)])
    torch.testing.assert_close(found, expected)
    gradients = [
        torch.autograd.grad(result, inputs, random(*result.shape), materialize_grads=True)
        for result in (found, expected)
    ]
    for mine, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.skipif(not HAS_OPERATORS, reason="torchvision's compiled operators did not load")
@pytest.mark.parametrize("reach", [0.0, 0.5, 3.0])
def test_both_forms_of_deformable_convolution_are_the_same(reach):
    inputs = deform_inputs(5, 7, 6, reach)
    results = [form(*inputs) for form in (sampled_deform_conv2d, torchvision_deform_conv2d)]
    torch.testing.assert_close(*results)
    gradients = [torch.autograd.grad(result, inputs, random(*result.shape)) for result in results]
    for mine, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_half_precision_offsets_keep_their_fractions_far_from_the_origin():
    maps = torch.arange(200.0).expand(1, 1, 1, 200).bfloat16()
    offsets = torch.zeros(1, 18, 1, 200).bfloat16()
    offsets[:, 9] = 0.25  # of the middle tap, to the right
    weight = torch.zeros(1, 1, 3, 3).bfloat16()
    weight[..., 1, 1] = 1
    found = deform_conv2d(maps, offsets, weight, torch.zeros(1).bfloat16())
    assert found.dtype == torch.bfloat16
    assert torch.equal(
        found[..., 100:150].float(), (torch.arange(100, 150) + 0.25).bfloat16().float().view(1, 1, 1, 50)
    )


def test_it_starts_as_a_plain_convolution_whose_offsets_can_learn():
    torch.manual_seed(0)
    module, maps = DeformConv2d(4, 5).double(), random(2, 4, 6, 5)
    found = module(maps)
    torch.testing.assert_close(found, F.conv2d(maps, module.weight, module.bias, padding=2))
    (found * random(*found.shape)).sum().backward()
    assert module.offset.weight.grad.any()
    assert module.offset.bias.grad.any()


# ---------------------------------------------------------------------------------------------------------------------
# Against the equations


@pytest.mark.parametrize("size", [64, 57])
def test_the_pyramid_module_equals_its_equations(size):
    """There its convolutions of single frames have biases, which differences cancel."""
    module = unsettled(PyramidModule(nn.Identity()))
    frames = random(2, 5, 3, size, size)
    state = module.state_dict() | {"frame.bias": random(16), "over_four.bias": random(64)}
    expected = [literal.pyramid(step, state) for step in frames]
    torch.testing.assert_close(module(frames), torch.stack(expected))


def moving(module: nn.Module) -> nn.Module:
    """With offsets that move taps by about half a cell."""
    for part in module.modules():
        if isinstance(part, DeformConv2d):
            nn.init.normal_(part.offset.bias, std=0.5)
            nn.init.normal_(part.offset.weight, std=0.01)
    return module


@pytest.mark.parametrize("steps", [2, 5])
def test_the_variable_scale_module_equals_its_equations(steps):
    module = moving(unsettled(VariableScaleModule(16)))
    clips = random(2, steps, 16, 3, 4)
    with torch.no_grad():
        expected = [torch.stack(literal.variable_scale(list(clip), module.state_dict())) for clip in clips]
        torch.testing.assert_close(module(clips.flatten(0, 1), 2), torch.cat(expected))


def test_the_network_equals_its_equations():
    backbone, clips = moving(network("msn_resnet50", 2, alpha=0.6, beta=0.3)), random(1, 10, 3, 32, 32)
    with torch.inference_mode():
        expected = literal.msn(clips[0], backbone.net.state_dict(), (0.6, 0.3))
        assert relative_error(backbone(clips)[0], expected) < 1e-10


# ---------------------------------------------------------------------------------------------------------------------
# The variants


def deformable(name: str, **options) -> list[DeformConv2d]:
    return [module for module in build_backbone(name, **options).modules() if isinstance(module, DeformConv2d)]


def test_the_pyramid_starts_from_pytorchs_uniform_weights():
    torch.manual_seed(0)
    module = PyramidModule(nn.Identity())
    for conv in (module.over_one, module.frame, module.over_two, module.over_four):
        bound = conv.weight[0].numel() ** -0.5
        assert conv.weight.abs().max().item() == pytest.approx(bound, rel=0.02)
        assert conv.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)


def test_offsets_start_at_zero_or_in_the_released_form_at_random():
    torch.manual_seed(0)
    repaired = deformable("msn_resnet50", seq_len=40)
    assert len(repaired) == 2 * 13
    assert not any(parameter.any() for module in repaired for parameter in module.offset.parameters())
    for module in deformable("msn_resnet50", seq_len=40, variant="released"):
        expected = {3: 0.111, 5: 0.040}[module.kernel_size[0]]
        assert module.offset.weight.std().item() == pytest.approx(expected, rel=0.05)
        assert not module.offset.bias.any()


@pytest.mark.parametrize(("name", "frozen"), [("msn_resnet50", 2_647_808), ("msn_resnet101", 5_017_472)])
def test_the_released_form_freezes_every_deformable_kernel_and_nothing_else(name, frozen):
    with torch.device("meta"):
        repaired, released = (build_backbone(name, seq_len=40, variant=v) for v in ("repaired", "released"))
    assert all(parameter.requires_grad for parameter in repaired.parameters())
    assert sum(p.numel() for p in released.parameters() if not p.requires_grad) == frozen
    assert {key: p.shape for key, p in released.named_parameters()} == {
        key: p.shape for key, p in repaired.named_parameters()
    }


@pytest.mark.parametrize("variant", ["repaired", "released"])
def test_a_step_of_training_moves_every_weight_that_is_to_be_trained(variant):
    """With the optimiser of the training program; no parameter is outside it, none without a gradient."""
    torch.manual_seed(0)
    steps = 2 if variant == "repaired" else 8
    flags = ["-c", "unused", "--backbone", "msn_resnet50", "--no_pretrained", "--seq_len", str(5 * steps)]
    options = ["--method", "tsn", "--opt", "sgd", "-lr", "0.1", "--backbone_options", f"variant={variant}"]
    args = build_parser(METHODS).parse_args([*flags, *options])
    head = build_head(args).train()
    optimiser = run.build_optimizer(head, args)
    before = {name: parameter.detach().clone() for name, parameter in head.backbone.named_parameters()}
    frames = random(2 * 5 * steps, 3, 32, 32).float()
    outputs = head(frames, torch.tensor([0, 1]), frames.flip(-1))
    head.loss({"target_labels": torch.tensor([1, 0])}, outputs).backward()
    optimiser.step()
    kept = {name for name, parameter in head.backbone.named_parameters() if torch.equal(parameter, before[name])}
    kernels = {name for name in before if ".small." in name or ".large." in name} - {
        name for name in before if ".offset." in name
    }
    assert len(kernels) == 2 * 2 * 13
    assert kept == (set() if variant == "repaired" else kernels)


def test_the_released_form_takes_eight_steps_for_a_clip():
    torch.manual_seed(0)
    module = moving(unsettled(VariableScaleModule(16)))
    grouped = VariableScaleModule(16, group=8).double().eval()
    grouped.load_state_dict(module.state_dict())
    maps = random(2 * 16, 16, 3, 3)
    with torch.inference_mode():
        torch.testing.assert_close(grouped(maps, 2), module(maps, 4))
        assert relative_error(grouped(maps, 2), module(maps, 2)) > 1e-3
    with torch.device("meta"):
        released = build_backbone("msn_resnet50", seq_len=80, variant="released")
    groups = {module.group for module in released.modules() if isinstance(module, VariableScaleModule)}
    assert groups == {8}
