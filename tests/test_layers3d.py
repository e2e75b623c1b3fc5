"""3D layers under autocast on a CPU, beside float32 and beside the layers that they stand for."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from backbones import build_backbone
from backbones.layers3d import Conv3d, MaxPool3d, with_right_gradients


@pytest.mark.parametrize(
    ("frames", "kernel", "stride"), [(1, 3, 1), (2, 3, 1), (3, 3, 2), (2, 5, 1), (4, 5, 2), (5, 5, 1), (9, 5, 2)]
)
def test_gradients_in_bfloat16_are_those_of_float32(frames, kernel, stride):
    """With a kernel as long as the clip, memory that held something else got into the weights' gradients."""
    torch.manual_seed(0)
    conv = Conv3d(32, 16, (kernel, 3, 3), stride=(stride, 1, 1), padding=(kernel // 2, 1, 1))
    plain = nn.Conv3d(32, 16, (kernel, 3, 3), stride=(stride, 1, 1), padding=(kernel // 2, 1, 1))
    plain.load_state_dict(conv.state_dict())
    maps = torch.randn(2, 32, frames, 5, 5).bfloat16().float()
    ours, theirs = maps.clone().requires_grad_(), maps.clone().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = conv(ours)
    expected = plain(theirs)
    assert found.dtype == torch.bfloat16
    cotangent = torch.randn_like(expected)
    expected.backward(cotangent)
    # Freed memory that is unlike any gradient: what follows is given it.
    for size in (conv.weight.numel(), maps.numel()):
        _ = [torch.full((size,), 1e4) for _ in range(4)]
    found.backward(cotangent.to(found.dtype))
    for one, other in [(found, expected), (ours.grad, theirs.grad), (conv.weight.grad, plain.weight.grad)]:
        assert (one.float() - other).norm() < 0.02 * other.norm()


@pytest.mark.parametrize("backbone", ["conv4_3d", "i3d_resnet50", "resnet3d18", "s3d", "r3d_18", "r2plus1d_18"])
def test_every_3d_network_has_these_convolutions(backbone):
    net = build_backbone(backbone, seq_len=16)
    over_time = [layer for layer in net.modules() if isinstance(layer, nn.Conv3d) and layer.kernel_size[0] > 1]
    assert over_time
    assert all(isinstance(layer, Conv3d) for layer in over_time)


@pytest.mark.parametrize("padding", [{"padding": "same"}, {"padding": 1, "padding_mode": "circular"}])
def test_convolutions_that_pad_in_other_ways_do_as_before(padding):
    torch.manual_seed(0)
    plain = nn.Conv3d(4, 4, 3, **padding)
    maps = torch.randn(1, 4, 2, 5, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        expected = plain(maps)
        assert torch.equal(with_right_gradients(plain)(maps), expected)
    assert isinstance(plain, Conv3d)


def test_pools_keep_the_number_format_of_their_maps_and_round_nothing():
    """Autocast would pool in float32, with the same values and gradients, for several times as long."""
    given = torch.randn(2, 3, 5, 7, 7, generator=torch.Generator().manual_seed(0)).bfloat16()
    ours, widened = given.clone().requires_grad_(), given.float().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = MaxPool3d(2, ceil_mode=True)(ours)
    expected = F.max_pool3d(widened, 2, ceil_mode=True)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found.float(), expected)
    for pooled in (found, expected):
        pooled.square().sum().backward()
    torch.testing.assert_close(ours.grad.float(), widened.grad, rtol=1e-2, atol=0)
