"""3D networks: inflation, separable and factored convolutions, shortcuts without parameters."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from backbones import build_backbone
from backbones.inflate import conv3d, inflate
from backbones.resnet3d import ShortcutA
from backbones.s3d import SeparableConv
from backbones.torchvision_import import torchvision
from backbones.weights import load_weights, over_time


def image_network(name: str) -> dict[str, torch.Tensor]:
    """The state dict of a torchvision network whose batch norms have seen something."""
    torch.manual_seed(0)
    net = getattr(torchvision.models, name)(weights=None)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.running_var, 0.8, 1.2)
    return net.state_dict()


# ---------------------------------------------------------------------------------------------------------------------
# Inflation


def test_a_still_clip_gives_what_the_image_gave_away_from_the_ends():
    """22 frames of a still: convolutions over three frames, one after another, see no end from the middle."""
    state = image_network("resnet18")
    flat, inflated = build_backbone("resnet18", seq_len=1), build_backbone("i3d_resnet18", seq_len=1)
    load_weights(flat.net, state, "images")
    load_weights(inflated.net, state, "images")
    frame = torch.rand(1, 1, 3, 32, 32)
    frames = 2 * 17 + 3  # one per convolution that looks around, on both sides
    with torch.inference_mode():
        expected = flat.eval()(frame)[:, 0]
        features = inflated.eval()(frame.expand(-1, frames, -1, -1, -1))
    torch.testing.assert_close(features[:, frames // 2], expected, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(features[:, 0], expected, rtol=1e-2, atol=1e-2)  # zeros came in from the end


def test_weights_in_the_middle_frame_see_each_frame_alone():
    state = image_network("resnet18")
    flat, inflated = build_backbone("resnet18", seq_len=3), build_backbone("i3d_resnet18", seq_len=3)
    load_weights(flat.net, state, "images")
    load_weights(inflated.net, state, "images", "center")
    clips = torch.rand(1, 3, 3, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(inflated.eval()(clips), flat.eval()(clips), rtol=1e-4, atol=1e-4)


def test_a_kernel_over_time_is_the_image_kernel_divided_repeated_or_in_the_middle():
    kernel = torch.rand(4, 2, 3, 3)
    mean, repeated, center = (over_time(kernel, 5, how) for how in ("mean", "repeat", "center"))
    assert mean.shape == (4, 2, 5, 3, 3)
    torch.testing.assert_close(mean.sum(2), kernel)
    torch.testing.assert_close(repeated, 5 * mean)
    assert torch.equal(center[:, :, 2], kernel)
    assert center.abs().sum() == kernel.abs().sum()


def test_inflation_keeps_every_name():
    with torch.device("meta"):
        net = inflate(torchvision.models.resnet50(), lambda name, conv: conv3d(conv, 3))
        names = [name for name in torchvision.models.resnet50().state_dict() if not name.startswith("fc.")]
    assert list(net.state_dict()) == names


def test_the_temporal_kernels_and_strides_of_i3d():
    with torch.device("meta"):
        study = build_backbone("i3d_resnet50", seq_len=8, temporal_stride=True).net
        small = build_backbone("i3d_resnet50", seq_len=8, kernels="3x1x1").net
        inception = build_backbone("i3d", seq_len=8, form="original").net
    assert (study.conv1.kernel_size, study.conv1.stride) == ((3, 7, 7), (1, 2, 2))
    assert (study.layer2[0].conv2.kernel_size, study.layer2[0].conv2.stride) == ((3, 3, 3), (2, 2, 2))
    assert study.layer2[0].downsample[0].stride == (2, 2, 2)
    stages = [small.layer1, small.layer2, small.layer3, small.layer4]
    assert [[block.conv1.kernel_size[0] for block in stage] for stage in stages] == [
        [3, 3, 3],
        [3, 1, 3, 1],
        [3, 1, 3, 1, 3, 1],
        [1, 3, 1],
    ]
    assert {block.conv2.kernel_size for stage in stages for block in stage} == {(1, 3, 3)}
    assert (inception.conv1.conv.stride, inception.maxpool4.kernel_size) == ((2, 2, 2), (2, 2, 2))
    assert inception.inception3a.branch4[0].kernel_size == 3


# ---------------------------------------------------------------------------------------------------------------------
# Factored convolutions


def test_a_separable_convolution_is_space_then_time():
    torch.manual_seed(0)
    plain = nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=False)
    both = SeparableConv(plain, stride=2, depthwise=True).eval()
    x = torch.rand(2, 4, 5, 8, 8)
    space = torch.stack(
        [F.conv2d(frame, both.spatial.weight[:, :, 0], stride=2, padding=1) for frame in x.unbind(2)], 2
    )
    space = (space / (1 + 1e-5) ** 0.5).relu()
    padded = F.pad(space, (0, 0, 0, 0, 1, 1))
    taps = both.temporal.conv.weight[:, 0, :, 0, 0]
    time = [sum(taps[:, k, None, None] * padded[:, :, t + k] for k in range(3)) for t in (0, 2, 4)]
    torch.testing.assert_close(both(x), torch.stack(time, 2) / (1 + 1e-5) ** 0.5, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("rule", "widths"),
    [
        ("paper", {(64, 64): 144, (64, 128): 230, (128, 128): 288, (128, 256): 460, (256, 512): 921, (512, 512): 1152}),
        ("torchvision", {(64, 64): 144, (64, 128): 230, (128, 128): 230, (128, 256): 460, (256, 512): 921}),
    ],
)
def test_the_width_between_the_halves_of_r2plus1d(rule, widths):
    with torch.device("meta"):
        net = build_backbone("r2plus1d_18", seq_len=8, midplanes=rule).net
    firsts = [net.layer1[0].conv1[0], net.layer2[0].conv1[0], net.layer2[0].conv2[0], net.layer3[0].conv1[0]]
    firsts += [net.layer4[0].conv1[0], net.layer4[1].conv1[0]]
    found = {(conv[0].in_channels, conv[3].out_channels): conv[0].out_channels for conv in firsts}
    assert found | widths == found


# ---------------------------------------------------------------------------------------------------------------------
# Shortcut A


def test_shortcut_a_takes_every_second_cell_adds_zeros_and_passes_the_gradient():
    x = torch.rand(2, 3, 5, 4, 7, requires_grad=True)
    out = ShortcutA(stride=2, new_channels=2)(x)
    assert torch.equal(out[:, :3], F.avg_pool3d(x, kernel_size=1, stride=2))
    assert out.shape == (2, 5, 3, 2, 4)
    assert not out[:, 3:].any()
    out.sum().backward()
    expected = torch.zeros_like(x)
    expected[:, :, ::2, ::2, ::2] = 1
    assert torch.equal(x.grad, expected)


def test_shortcut_a_stands_where_the_shape_changes():
    with torch.device("meta"):
        net = build_backbone("resnet3d50", seq_len=16, shortcut="A").net
    shortcuts = {name: module for name, module in net.named_modules() if isinstance(module, ShortcutA)}
    assert {name: (s.stride, s.new_channels) for name, s in shortcuts.items()} == {
        "layer1.0.downsample": (1, 192),
        "layer2.0.downsample": (2, 256),
        "layer3.0.downsample": (2, 512),
        "layer4.0.downsample": (2, 1024),
    }
