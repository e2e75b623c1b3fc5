"""What looks across frames, against its definition written out: shift, aggregation, pooling, attention, streams."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from backbones import build_backbone
from backbones.backbone import Keep, Temporal
from backbones.blvnet import Fork, OpenBottleneck
from backbones.resnet2d import Bottleneck, TemporalPool, residual_blocks
from backbones.tam import TAM
from backbones.tsm import NonLocal, Shift, StreamingRecogniser
from utils import UserError

N, T, C, H, W = 2, 5, 19, 3, 4


@pytest.fixture
def maps():
    return torch.randn(N * T, C, H, W, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def clips_of(maps: torch.Tensor) -> torch.Tensor:
    """Maps (N*T, C, H, W) -> (N, T, C, H, W)."""
    return maps.unflatten(0, (N, -1))


# ---------------------------------------------------------------------------------------------------------------------
# Shift


@pytest.mark.parametrize("channels_last", [False, True])
def test_shift_takes_some_channels_from_the_next_frame_and_some_from_the_one_before(maps, channels_last):
    given = maps.to(memory_format=torch.channels_last) if channels_last else maps
    shifted = Shift(div=8)(given, N)
    x, y = clips_of(maps), clips_of(shifted)
    fold = 19 // 8
    for t in range(T):
        future = x[:, t + 1, :fold] if t + 1 < T else torch.zeros(N, fold, H, W)
        past = x[:, t - 1, fold : 2 * fold] if t > 0 else torch.zeros(N, fold, H, W)
        assert torch.equal(y[:, t, :fold], future.to(y))
        assert torch.equal(y[:, t, fold : 2 * fold], past.to(y))
        assert torch.equal(y[:, t, 2 * fold :], x[:, t, 2 * fold :])
    assert not channels_last or shifted.is_contiguous(memory_format=torch.channels_last)


def test_shift_is_a_fixed_convolution_and_so_is_its_gradient(maps):
    taps = torch.zeros(C, 1, 3, 1, 1, dtype=torch.float64)
    taps[:4, 0, 2], taps[4:8, 0, 0], taps[8:, 0, 1] = 1, 1, 1
    gradients = []
    for run in (
        lambda x: clips_of(Shift(div=4)(x, N)),
        lambda x: F.conv3d(clips_of(x).transpose(1, 2), taps, padding=(1, 0, 0), groups=C).transpose(1, 2),
    ):
        x = maps.clone().requires_grad_()
        (run(x) * clips_of(maps).sin()).sum().backward()
        gradients.append(x.grad)
    assert torch.equal(*gradients)


def test_the_online_shift_takes_from_the_past_alone(maps):
    x, y = clips_of(maps), clips_of(Shift(div=8, online=True)(maps, N))
    assert torch.equal(y[:, 1:, :2], x[:, :-1, :2])
    assert torch.equal(y[:, 0, :2], torch.zeros(N, 2, H, W).to(y))
    assert torch.equal(y[:, :, 2:], x[:, :, 2:])


def shifts_by_stage(name: str, **options) -> list[list[str]]:
    with torch.device("meta"):
        backbone = build_backbone(name, seq_len=8, **options)
    slots = ("enter", "branch", "middle", "leave")
    return [
        ["+".join(slot for slot in slots if not isinstance(getattr(block, slot), Keep)) for block in stage]
        for stage in residual_blocks(backbone)
    ]


def test_where_shifts_and_attention_are_put():
    assert shifts_by_stage("tsm_resnet50") == [["branch"] * depth for depth in (3, 4, 6, 3)]
    assert shifts_by_stage("tsm_resnet50", place="block") == [["enter"] * depth for depth in (3, 4, 6, 3)]
    deep = shifts_by_stage("tsm_resnet101")
    assert deep == [
        ["branch", "", "branch"],
        ["branch", ""] * 2,
        ["branch", ""] * 11 + ["branch"],
        ["branch", "", "branch"],
    ]
    both, one = "branch+leave", "branch"
    assert shifts_by_stage("tsm_resnet50", non_local=True) == [
        [one] * 3,
        [both, one, both, one],
        [both, one, both, one, both, one],
        [one] * 3,
    ]
    mobile = build_backbone("tsm_mobilenet_v2", seq_len=8).net["features"]
    shifted = [name for name, block in mobile.items() if isinstance(getattr(block, "branch", None), Shift)]
    assert shifted == [str(number) for number in (3, 5, 6, 8, 9, 10, 12, 13, 15, 16)]


# ---------------------------------------------------------------------------------------------------------------------
# TAM


@pytest.mark.parametrize("frames", [3, 5, 7])
@pytest.mark.parametrize("blend", ["sum", "max"])
@pytest.mark.parametrize("depthwise", [True, False])
def test_tam_mixes_weighted_neighbours(maps, frames, blend, depthwise):
    torch.manual_seed(1)
    tam = TAM(C, frames, blend, depthwise).double()
    x, reach = clips_of(maps), frames // 2
    weight = tam.mix.weight[..., 0]  # (C, 1 or C, frames)
    expected = torch.zeros_like(x)
    for t in range(T):
        weighted = []
        for tap in range(frames):
            source = t + tap - reach
            frame = x[:, source] if 0 <= source < T else torch.zeros_like(x[:, 0])
            if depthwise:
                weighted.append(frame * weight[:, 0, tap, None, None])
            else:
                weighted.append(torch.einsum("oi,nihw->nohw", weight[:, :, tap], frame))
        stacked = torch.stack(weighted)
        expected[:, t] = (stacked.sum(0) if blend == "sum" else stacked.amax(0)).relu()
    torch.testing.assert_close(clips_of(tam(maps, N)), expected)


def test_tam_starts_like_a_convolution_of_one_frame():
    torch.manual_seed(0)
    assert TAM(2048).mix.weight.std().item() == pytest.approx((2 / 2048) ** 0.5, rel=0.05)


def test_the_projection_sees_the_input_of_a_block_or_what_tam_gives():
    torch.manual_seed(0)
    shortcut = nn.Conv2d(8, 8, 1, bias=False)
    block = Bottleneck(8, 2, 1, shortcut).eval()
    block.branch = TAM(8)
    nn.init.zeros_(block.bn3.weight)  # so that the shortcut is all that comes out
    x = torch.randn(3, 8, 4, 4)
    torch.testing.assert_close(block(x, 1), shortcut(x).relu())
    block.project_from_branch = True
    torch.testing.assert_close(block(x, 1), shortcut(block.branch(x, 1)).relu())


@pytest.mark.parametrize("slot", ["enter", "branch", "middle", "leave"])
def test_slots_sit_where_the_figure_shows_them(slot):
    class Double(Temporal):
        def forward(self, maps, clips):
            return 2 * maps

    torch.manual_seed(0)
    block = Bottleneck(8, 2).eval()
    x = torch.rand(3, 8, 4, 4)
    conv1, conv2, conv3 = (
        nn.Sequential(*pair) for pair in ((block.conv1, block.bn1), (block.conv2, block.bn2), (block.conv3, block.bn3))
    )

    def branch(x, factor=1.0):
        return conv3(conv2(factor * conv1(x).relu()).relu())

    setattr(block, slot, Double())
    expected = {
        "enter": (branch(2 * x) + 2 * x).relu(),
        "branch": (branch(2 * x) + x).relu(),
        "middle": (branch(x, 2.0) + x).relu(),
        "leave": 2 * (branch(x) + x).relu(),
    }
    torch.testing.assert_close(block(x, 1), expected[slot])


# ---------------------------------------------------------------------------------------------------------------------
# Pooling and attention


@pytest.mark.parametrize("kind", ["max", "avg"])
@pytest.mark.parametrize("frames", [1, 2, 5, 6])
def test_temporal_pool_takes_three_neighbours_at_every_second_frame(kind, frames):
    x = torch.rand(N, frames, C, H, W)
    pool = TemporalPool(kind)
    pooled = pool(x.flatten(0, 1), N).unflatten(0, (N, -1))
    assert pooled.shape[1] == pool.num_steps(frames) == (frames + 1) // 2
    for step in range(pooled.shape[1]):
        near = x[:, max(0, 2 * step - 1) : 2 * step + 2]
        expected = near.amax(1) if kind == "max" else near.sum(1) / 3
        torch.testing.assert_close(pooled[:, step], expected)


def test_non_local_adds_what_every_cell_sees_in_the_whole_clip(maps):
    torch.manual_seed(0)
    block = NonLocal(C).double().eval()
    assert torch.equal(block(maps, N), maps)  # at first
    nn.init.normal_(block.W[1].weight)
    theta, phi, g = (clips_of(project(maps)).transpose(1, 2) for project in (block.theta, block.phi, block.g))
    seen = torch.zeros_like(theta)
    for n in range(N):
        for t in range(T):
            for h in range(H):
                for w in range(W):
                    scores = torch.einsum("c,ctij->tij", theta[n, :, t, h, w], phi[n])
                    attention = scores.flatten().softmax(0).view_as(scores)
                    seen[n, :, t, h, w] = torch.einsum("tij,ctij->c", attention, g[n])
    expected = maps + block.W(seen.transpose(1, 2).flatten(0, 1))
    torch.testing.assert_close(block(maps, N), expected)


# ---------------------------------------------------------------------------------------------------------------------
# Streams


@pytest.mark.parametrize(("name", "options"), [("tsm_resnet18", {"place": "block"}), ("tsm_mobilenet_v2", {})])
def test_a_stream_gives_frame_by_frame_what_the_clip_gives(name, options):
    torch.manual_seed(0)
    backbone = build_backbone(name, seq_len=4, online=True, **options).eval()
    classifier = nn.Linear(backbone.feature_dim, 3, bias=False)
    recogniser = StreamingRecogniser(backbone, classifier)
    clips = torch.rand(2, 4, 3, 32, 32)
    with torch.inference_mode():
        expected = classifier(backbone(clips))
        near = 1e-4 * float(expected.abs().max())
        for _ in range(2):
            recogniser.reset()
            streamed = torch.stack([recogniser(frame) for frame in clips.unbind(1)], dim=1)
            torch.testing.assert_close(streamed, expected, rtol=0, atol=near)
        assert not torch.allclose(recogniser(clips[:, 0]), expected[:, 0], atol=near)  # it remembers the last clip


@pytest.mark.parametrize(
    ("name", "options"),
    [("tsm_resnet18", {}), ("resnet18", {}), ("tsm_resnet18", {"online": True, "temporal_pool": 1})],
)
def test_only_one_directional_networks_run_on_a_stream(name, options):
    with pytest.raises(UserError, match="online=True"):
        StreamingRecogniser(build_backbone(name, seq_len=4, **options))


# ---------------------------------------------------------------------------------------------------------------------
# bLVNet-TAM and LSNet


def test_a_fork_shows_one_frame_of_a_pair_small_and_the_other_large_and_gives_both_the_sum():
    class Times(nn.Module):
        def __init__(self, factor):
            super().__init__()
            self.factor = factor

        def forward(self, maps):
            return self.factor * maps

    fork = Fork(big=nn.AvgPool2d(2), little=Times(10), widen=Times(-1), fuse=Times(3))
    maps = torch.rand(6, 2, 4, 4)
    out = fork(maps, 1)
    for pair in range(3):
        big = F.avg_pool2d(maps[2 * pair + 1], 2).repeat_interleave(2, 1).repeat_interleave(2, 2)
        expected = 3 * (big - 10 * maps[2 * pair]).relu()
        torch.testing.assert_close(out[2 * pair], expected)
        torch.testing.assert_close(out[2 * pair + 1], expected)


def test_blvnet_links_frames_before_every_fork_and_in_its_last_stage():
    with torch.device("meta"):
        net = build_backbone("blvnet_tam50", seq_len=4).net
    widths = [net[f"layer{number}"].tam.mix.in_channels for number in range(4)]
    assert widths == [64, 64, 256, 512]
    assert [block.branch.mix.in_channels for block in net["layer4"].values()] == [1024, 2048, 2048]
    assert all(block.project_from_branch for block in net["layer4"].values())
    big = net["layer1"].big
    assert [isinstance(block, OpenBottleneck) for block in big.values()] == [False, True]


def test_residual_branches_of_blvnet_start_at_zero():
    net = build_backbone("blvnet_tam50", seq_len=2).net
    assert not any(block.bn3.weight.any() for block in net.modules() if isinstance(block, Bottleneck))


def test_lsnet_reads_the_luma_of_neighbouring_frames_as_channels():
    torch.manual_seed(0)
    backbone = build_backbone("lsnet_resnet18", seq_len=6, num_frame=3, temporal="none").eval()
    assert backbone.frames_per_step == 3
    frames = torch.randint(0, 256, (2 * 6, 3, 32, 32), dtype=torch.uint8)
    luma = 0.299 * frames[:, 0] + 0.587 * frames[:, 1] + 0.114 * frames[:, 2]
    stacks = ((luma / 255 - 0.449) / 0.226).view(2 * 2, 3, 32, 32)
    with torch.inference_mode():
        expected = backbone.net(stacks, 2).mean((2, 3)).view(2, 2, 512)
        found = backbone(backbone.input_spec.normalise(frames).view(2, 6, 3, 32, 32))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_lsnet_may_read_all_frames_of_a_clip_as_one_stack():
    backbone = build_backbone("lsnet_resnet18", seq_len=6, num_frame=2, temporal="none", fuse_before_net=True)
    assert (backbone.net["conv1"].in_channels, backbone.num_steps(6), backbone.frames_per_step) == (6, 1, 2)
