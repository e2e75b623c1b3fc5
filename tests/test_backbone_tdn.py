"""TDN against its equations written out, what it must be by its construction, and its place under few-shot heads."""

import copy
import re

import pytest
import torch
from torch import nn

from backbones import Backbone, build_backbone
from backbones.backbone import Keep
from backbones.passes import blocks_of, recompute_blocks
from backbones.resnet2d import residual_blocks
from backbones.tdn import LearnedShift, LongTermModule, ShortTermModule
from backbones.torchvision_import import torchvision
from backbones.tsm import Shift
from backbones.weights import load_weights
from engine.settings import build_parser
from methods import METHODS, build_head
from tests.oracles import motion as literal
from utils import UserError

BATCH_NORMS = (nn.BatchNorm2d, nn.BatchNorm3d)


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


def unsettled(module: nn.Module) -> nn.Module:
    """The module in double precision for testing, with batch norms that do something, and no weight zero or one."""
    torch.manual_seed(0)
    for part in module.modules():
        if isinstance(part, BATCH_NORMS):
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.normal_(part.bias, std=0.3)
            nn.init.normal_(part.running_mean, std=0.3)
            nn.init.uniform_(part.running_var, 0.5, 1.5)
        elif isinstance(part, LearnedShift):
            nn.init.normal_(part.mix.weight)
    return module.double().eval()


def network(name: str, steps: int, **options) -> Backbone:
    """An `unsettled` network of clips whose batch norms know the statistics of `clips`, so that no gate is saturated."""
    torch.manual_seed(0)
    backbone = unsettled(build_backbone(name, seq_len=5 * steps, **options)).train()
    for module in backbone.modules():
        if isinstance(module, BATCH_NORMS):
            module.momentum = 1.0
    with torch.no_grad():
        backbone(random(2, 5 * steps, 3, 64, 64))
    return backbone.eval()


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return ((found - expected).norm() / expected.norm()).item()


# ---------------------------------------------------------------------------------------------------------------------
# Against the equations


@pytest.mark.parametrize("size", [64, 57])
def test_the_short_term_module_equals_its_equations(size):
    module = unsettled(ShortTermModule(nn.Identity()))
    frames = random(3, 5, 3, size, size)
    expected = [literal.short_term(step, module.state_dict()) for step in frames]
    torch.testing.assert_close(module(frames), torch.stack(expected))


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("size", [(4, 6), (7, 7)])
def test_the_long_term_module_equals_its_equations(steps, size):
    module = unsettled(LongTermModule(32))
    clips = random(2, steps, 32, *size)
    expected = [torch.stack(literal.long_term(list(clip), module.state_dict())) for clip in clips]
    torch.testing.assert_close(module(clips.flatten(0, 1), 2), torch.cat(expected))


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_the_learned_shift_mixes_each_channel_with_its_neighbours(steps):
    module = unsettled(LearnedShift(19))
    clips = random(2, steps, 19, 3, 4)
    expected = [torch.stack(literal.learned_shift(list(clip), module.state_dict())) for clip in clips]
    torch.testing.assert_close(module(clips.flatten(0, 1), 2), torch.cat(expected))


def test_the_network_equals_its_equations():
    backbone, clips = network("tdn_resnet50", 3), random(2, 15, 3, 64, 64)
    with torch.inference_mode():
        expected = torch.stack([literal.tdn(clip, backbone.net.state_dict(), (0.75, 0.25)) for clip in clips])
        assert relative_error(backbone(clips), expected) < 1e-10
        # Other weights of the paths, unequal ones, are seen.
        backbone.net.before = backbone.net.after = (0.6, 0.1)
        other = literal.tdn(clips[0], backbone.net.state_dict(), (0.6, 0.1))
        assert relative_error(backbone(clips[:1])[0], other) < 1e-10
    assert relative_error(other, expected[0]) > 1e-3


def test_in_training_both_directions_have_statistics_of_their_own():
    module = LongTermModule(32).double().train()
    maps = random(6, 32, 4, 4)
    seen = []
    module.fine[1].register_forward_hook(lambda norm, inputs, output: seen.append(output))
    module(maps, 2)
    assert len(seen) == 2
    for output in seen:
        torch.testing.assert_close(output.mean((0, 2, 3)), torch.zeros(2).double())


# ---------------------------------------------------------------------------------------------------------------------
# What follows from the construction


@pytest.mark.parametrize(("name", "blocks"), [("tdn_resnet50", (3, 4, 6, 3)), ("tdn_resnet101", (3, 4, 23, 3))])
def test_steps_are_linked_in_every_block_but_those_of_the_first_stage(name, blocks):
    with torch.device("meta"):
        backbone = build_backbone(name, seq_len=40)
    stages = residual_blocks(backbone)
    assert tuple(map(len, stages)) == blocks
    linked = [[not isinstance(block.middle, Keep) for block in stage] for stage in stages]
    assert linked == [[False] * blocks[0], *([True] * number for number in blocks[1:])]
    assert [module for module in backbone.modules() if getattr(module, "bias", None) is not None] == [
        module for module in backbone.modules() if isinstance(module, BATCH_NORMS)
    ]
    if name == "tdn_resnet50":
        assert sum(isinstance(module, BATCH_NORMS) for module in backbone.modules()) == 116


@pytest.mark.parametrize(
    ("size", "sides"), [(224, (112, 56, 28, 56, 28, 28, 14, 7)), (256, (128, 64, 32, 64, 32, 32, 16, 8))]
)
def test_maps_have_the_sizes_of_the_figure(size, sides):
    with torch.device("meta"), torch.inference_mode():
        backbone = build_backbone("tdn_resnet50", seq_len=40)
        shapes = {}
        for name in ("conv1", "short.conv1", "short", "layer1", "short.layer1", "layer2", "layer3", "layer4"):
            module = backbone.net.get_submodule(name)
            module.register_forward_hook(lambda module, inputs, output, name=name: shapes.update({name: output.shape}))
        assert backbone(torch.empty(2, 40, 3, size, size)).shape == (2, 8, 2048)
    widths = (64, 64, 64, 256, 256, 512, 1024, 2048)
    order = ("conv1", "short.conv1", "short", "layer1", "short.layer1", "layer2", "layer3", "layer4")
    assert [shapes[name] for name in order] == [(16, w, s, s) for w, s in zip(widths, sides, strict=True)]


def test_a_still_video_has_no_short_motion_and_equal_inner_steps():
    backbone = build_backbone("tdn_resnet50", seq_len=30).double().eval()
    link = backbone.net["layer2"]["0"].middle
    seen = {}
    backbone.net.short.conv1.register_forward_hook(lambda m, inputs, output: seen.update(short=inputs[0]))
    for name in ("difference", "shift"):
        link[name].register_forward_hook(lambda m, inputs, output, name=name: seen.update({name: output}))
    with torch.inference_mode():
        backbone(random(1, 1, 3, 64, 64).expand(1, 30, 3, 64, 64))
    assert not seen["short"].any()
    for name, reach in (("difference", 1), ("shift", 2)):  # so far the ends are felt, where differences are zero
        inner = seen[name][reach : 6 - reach]
        torch.testing.assert_close(inner, inner[:1].expand_as(inner))
        assert not torch.allclose(seen[name][0], inner[0])


def test_between_equal_steps_both_differences_are_those_of_a_step_to_its_smoothed_self():
    module = unsettled(LongTermModule(32))
    differences = []
    module.fine.register_forward_hook(lambda m, inputs, output: differences.append(inputs[0]))
    step = random(1, 32, 4, 4)
    module(step.expand(6, -1, -1, -1), 1)
    narrow = module.squeeze(step)
    expected = (module.smooth(narrow) - narrow).expand(5, -1, -1, -1)
    ahead, behind = differences
    torch.testing.assert_close(ahead[:5], expected)
    torch.testing.assert_close(behind[1:], expected)
    assert not ahead[5].any()
    assert not behind[0].any()


def test_the_long_term_module_does_not_tell_which_way_time_runs():
    """The shift behind it does."""
    steps = random(5, 32, 4, 4)
    module = unsettled(LongTermModule(32))
    torch.testing.assert_close(module(steps.flip(0), 1), module(steps, 1).flip(0))
    shift = LearnedShift(32).double()
    assert relative_error(shift(steps.flip(0), 1), shift(steps, 1).flip(0)) > 0.1


def test_the_learned_shift_starts_as_the_shift_of_tsm():
    maps = random(10, 19, 3, 4)
    assert torch.equal(LearnedShift(19).double()(maps, 2), Shift(8)(maps, 2))


def test_the_long_term_module_starts_from_normal_weights_by_fan_out():
    torch.manual_seed(0)
    module = LongTermModule(2048)
    for conv, fan_out in ((module.squeeze[0], 128), (module.smooth, 9 * 128), (module.fine[0], 9 * 128)):
        assert conv.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.1)


def test_without_its_modules_it_is_a_resnet_of_the_middle_frames():
    torch.manual_seed(0)
    resnet50 = torchvision.models.resnet50().eval()
    backbone = build_backbone("tdn_resnet50", seq_len=10, alpha=1, beta=0).eval()
    load_weights(backbone.net, resnet50.state_dict(), "images")
    for module in backbone.modules():
        if isinstance(module, LongTermModule):
            nn.init.zeros_(module.expand[1].weight)
        elif isinstance(module, LearnedShift):
            nn.init.zeros_(module.mix.weight)
            nn.init.ones_(module.mix.weight[:, :, 1])
    resnet50.fc = nn.Identity()
    clips = random(2, 10, 3, 64, 64).float()
    with torch.inference_mode():
        expected = resnet50(clips[:, [2, 7]].flatten(0, 1)).unflatten(0, (2, 2))
        assert relative_error(backbone(clips), expected) < 1e-5


@pytest.mark.parametrize("name", ["tdn_resnet50", "msn_resnet50"])
@pytest.mark.parametrize(
    ("frames", "options", "weights"),
    [
        (40, {}, (0.5, 0.5)),
        (80, {}, (0.75, 0.25)),
        (15, {}, (0.75, 0.25)),
        (40, {"alpha": 0.9, "beta": 0.2}, (0.9, 0.2)),
        (40, {"beta": 0.0}, (0.5, 0.0)),
    ],
)
def test_weights_of_the_paths_depend_on_the_number_of_steps(name, frames, options, weights):
    with torch.device("meta"):
        net = build_backbone(name, seq_len=frames, **options).net
    assert net.before == weights
    assert net.after == (weights if name.startswith("tdn") else (0.75, 0.25))


@pytest.mark.parametrize("name", ["tdn_resnet50", "msn_resnet50"])
def test_frames_come_by_fives(name):
    with torch.device("meta"), torch.inference_mode():
        backbone = build_backbone(name, seq_len=40)
        assert (backbone.frames_per_step, backbone.num_steps(40), backbone.num_steps(80)) == (5, 8, 16)
        assert backbone(torch.empty(1, 80, 3, 64, 64)).shape == (1, 16, 2048)  # built for 8 steps, tested with 16
        with pytest.raises(UserError, match="stacks of 5 frames, found 8: give a --seq_len of full stacks"):
            build_backbone(name, seq_len=8)


def test_frames_that_leave_single_cells_are_refused():
    with torch.device("meta"):
        backbone = build_backbone("tdn_resnet50", seq_len=10)
        with pytest.raises(UserError, match="give --img_size 33 or more"):
            backbone(torch.empty(1, 10, 3, 32, 32))


# ---------------------------------------------------------------------------------------------------------------------
# Released files


def test_a_released_network_computes_the_same_without_its_biases():
    """The authors' convolutions have biases, here put into a copy; its file is loaded into one that has none."""
    released, ours = network("tdn_resnet50", 2), network("tdn_resnet50", 2)
    for name, module in released.net.named_modules():
        if isinstance(module, nn.Conv2d) and not re.search(r"middle|short\.conv1", name):
            module.bias = nn.Parameter(random(module.out_channels))
    clips = random(1, 10, 3, 64, 64)
    state = {re.sub(r"^short\.layer1\.", "resnext_layer1.", name): t for name, t in released.net.state_dict().items()}
    with torch.inference_mode():
        expected = released(clips)
        assert relative_error(ours(clips), expected) > 0.01
        report = load_weights(ours.net, copy.deepcopy(state), "released")
        assert relative_error(ours(clips), expected) < 1e-10
    assert (report.missing, report.unexpected) == ([], [])


# ---------------------------------------------------------------------------------------------------------------------
# Under few-shot methods


def test_activations_may_be_computed_again():
    """Of every block, those of the path of differences too; gradients and running statistics stay as they are."""
    torch.manual_seed(0)
    kept = build_backbone("tdn_resnet50", seq_len=10).train()
    again = copy.deepcopy(kept)
    recompute_blocks(again)
    blocks = blocks_of(again)
    assert all(
        block in blocks for stage in (*residual_blocks(again), again.net.short.layer1.values()) for block in stage
    )
    clips = random(2, 10, 3, 64, 64).float()
    for backbone in (kept, again):
        backbone(clips).square().mean().backward()
    torch.testing.assert_close(dict(again.named_buffers()), dict(kept.named_buffers()))
    for (parameter, mine), theirs in zip(again.named_parameters(), kept.parameters(), strict=True):
        assert relative_error(mine.grad, theirs.grad) < 1e-3, parameter


@pytest.fixture(scope="module", params=["tdn_resnet50", "msn_resnet50"])
def backbone(request):
    torch.manual_seed(0)
    return build_backbone(request.param, seq_len=15)


@pytest.mark.parametrize("method", ["tsn", "trx", "dual_prototypes", "otam"])
def test_few_shot_methods_read_its_steps(backbone, method, monkeypatch):
    """An episode of 2-way 1-shot, three steps of five frames a clip: scores for every query, gradients down to the stems."""
    monkeypatch.setattr("model.build_backbone", lambda *args, **options: backbone)
    flags = ["-c", "unused", "--backbone", "tdn_resnet50", "--no_pretrained", "--seq_len", "15", "--method", method]
    head = build_head(build_parser(METHODS).parse_args([*flags, "--trans_linear_out_dim", "8"]))
    assert head.num_steps == 3
    support, queries = (random(2 * 15, 3, 64, 64).float() for _ in range(2))
    task = {"target_labels": torch.tensor([0, 1])}
    outputs = head(support, torch.tensor([0, 1]), queries + 1)
    assert outputs["logits"].shape == (2, 2)
    backbone.zero_grad()
    head.loss(task, outputs).backward()
    for name in ("conv1", "short.layer1.0.conv1", "layer4.2.conv1"):
        gradient = backbone.net.get_submodule(name).weight.grad
        assert gradient.isfinite().all()
        assert gradient.any()
