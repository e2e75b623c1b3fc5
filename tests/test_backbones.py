"""What holds for every backbone: shapes, clips that do not meet, gradients, the order of frames, saving, loading."""

import copy
import dataclasses
import io
from typing import Any

import pytest
import torch
from torch import nn
from torchvision.models.video import MViT as TorchvisionMViT
from torchvision.models.video import SwinTransformer3d
from torchvision.models.video.mvit import MSBlockConfig

from backbones import BACKBONES, Backbone, build_backbone
from backbones.backbone import FrameBackbone
from backbones.figures import figures
from backbones.own_code import import_from_file
from backbones.torchvision_video import MViT, VideoSwin
from clips.transforms import InputSpec
from engine.devices import use_channels_last
from utils import UserError


def tiny_mvit(*, seq_len: int) -> MViT:
    """Two blocks for 4 frames of 32 pixels; the second halves space."""
    blocks = [MSBlockConfig(1, 16, 16, [], [3, 3, 3], [], [1, 2, 2])]
    blocks += [MSBlockConfig(2, 16, 32, [3, 3, 3], [3, 3, 3], [1, 2, 2], [1, 1, 1])]
    net = TorchvisionMViT(
        (32, 32), 4, blocks, residual_pool=True, residual_with_cls_embed=False, rel_pos_embed=True, proj_after_attn=True
    )
    return MViT(net, feature_dim=32, input_spec=InputSpec(size=32, frames=4), seq_len=seq_len)


def tiny_swin(*, seq_len: int) -> VideoSwin:
    net = SwinTransformer3d([2, 4, 4], 16, [2, 2], [2, 4], [2, 4, 4])
    return VideoSwin(net, feature_dim=32, input_spec=InputSpec(size=32, frames=4), seq_len=seq_len)


@dataclasses.dataclass
class Case:
    """The smallest backbone of a family, and a clip that is small and still has something to see."""

    name: str
    frames: int
    size: int = 32
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    sees_order: bool = True

    def __str__(self) -> str:
        return "-".join([self.name, *(f"{key}={value}" for key, value in self.options.items())])

    def build(self) -> Backbone:
        torch.manual_seed(0)
        if self.name in TINY:
            backbone = TINY[self.name](seq_len=self.frames)
        else:
            backbone = build_backbone(self.name, seq_len=self.frames, **self.options)
        for module in backbone.modules():  # norms that start at zero would hide what lies behind them
            if isinstance(module, (nn.BatchNorm2d, nn.BatchNorm3d)):
                nn.init.uniform_(module.weight, 0.5, 1.5)
        return backbone.eval()

    def clips(self, number: int = 2) -> torch.Tensor:
        return torch.rand(number, self.frames, 3, self.size, self.size, generator=torch.Generator().manual_seed(1))


TINY = {"tiny_mvit": tiny_mvit, "tiny_swin": tiny_swin}
PER_FRAME = [
    Case("resnet18", 3, sees_order=False),
    Case("inception_v1", 3, sees_order=False),
    Case("mobilenet_v2", 3, sees_order=False),
    Case("conv4", 3, sees_order=False),
    Case("lsnet_resnet18", 6, options={"temporal": "none", "num_frame": 2}),
]
TEMPORAL = [
    Case("resnet18", 8, options={"temporal_pool": 3, "pooling": "avg"}),
    Case("inception_v1", 8, options={"temporal_pool": 2}),
    Case("tsm_resnet18", 3),
    Case("tsm_resnet18", 3, options={"place": "block", "online": True, "temporal_pool": 1}),
    Case("tsm_resnet50", 2, 64, options={"non_local": True}),
    Case("tsm_mobilenet_v2", 3),
    Case("tam_resnet18", 3),
    Case("tam_resnet18", 3, options={"blend": "max", "blend_frames": 5, "depthwise": False, "shortcut": "post"}),
    Case("tam_inception_v1", 3),
    Case("blvnet_tam50", 4),
    Case("lsnet_resnet18", 6),
    Case("lsnet_resnet18", 6, options={"temporal": "none", "fuse_before_net": True}),
    Case("tdn_resnet50", 10, 64),
    Case("msn_resnet50", 10, 64),
    Case("i3d", 4),
    Case("i3d", 8, options={"form": "original", "pooling": "avg"}),
    Case("i3d_resnet18", 4),
    Case("i3d_resnet50", 8, options={"kernels": "3x1x1", "temporal_stride": True}),
    Case("i3d_resnet50", 4, options={"kernels": "slow"}),
    Case("resnet2p1d18", 8, options={"form": "mmaction2"}),
    Case("resnet3d10", 8),
    Case("resnet3d10", 8, options={"shortcut": "A", "no_max_pool": True, "conv1_t_size": 3}),
    Case("c3d", 8),
    Case("c3d", 4, options={"until": "conv4b"}),
    Case("conv4_3d", 4),
    Case("s3d_inception_v1", 4),
    Case("s3d_resnet18", 4, options={"temporal_stride": True, "dw_t_conv": True}),
    Case("r3d_18", 4),
    Case("mc3_18", 4),
    Case("r2plus1d_18", 4, options={"midplanes": "paper"}),
    Case("s3d", 8),
    Case("tiny_mvit", 4),
    Case("tiny_swin", 4),
]
SMALL = [*PER_FRAME, *TEMPORAL]


@pytest.mark.parametrize("name", BACKBONES)
def test_every_backbone_keeps_its_promises(name):
    """The written figures are measured ones: the steps and width that came out."""
    entry, written = BACKBONES[name], figures()[name]
    with torch.device("meta"):
        backbone = build_backbone(name, seq_len=entry.frames)
    assert (backbone.input_spec.frames, backbone.seq_len) == (entry.frames, entry.frames)
    assert (backbone.num_steps(entry.frames), backbone.feature_dim) == (written.steps, written.feature_dim)
    assert written.steps * backbone.frames_per_step <= entry.frames


@pytest.fixture(scope="module", params=SMALL, ids=str)
def case(request):
    """Each small case in turn; tests of one case come together and share its `built`."""
    return request.param


@pytest.fixture(scope="module")
def built(case):
    return case.build()


def difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Relative, because features of random networks may be of any size."""
    assert expected.norm() > 0
    return float((found - expected).norm() / expected.norm())


def test_a_clip_sees_no_other_clip(case, built):
    clips = case.clips(3)
    with torch.inference_mode():
        features = built(clips)
        some, flattened = built(clips[[2, 0]]), built(clips.flatten(0, 1))
    assert features.shape == (3, built.num_steps(case.frames), built.feature_dim)
    assert difference(some, features[[2, 0]]) < 1e-4
    assert difference(flattened[..., 0, 0], features.flatten(0, 1)) < 1e-4
    assert difference(features[[2, 0]], features[:2]) > 1e-3
    with torch.inference_mode():
        maps = built.feature_maps(clips)
    assert maps.shape[:3] == (3, built.feature_dim, features.shape[1])
    assert difference(maps.mean((3, 4)).transpose(1, 2), features) < 1e-4


def test_every_parameter_gets_a_gradient(case, built):
    weights = torch.rand(built.feature_dim, generator=torch.Generator().manual_seed(2))
    built.zero_grad()
    (built(case.clips()) * weights).sum().backward()
    assert [name for name, p in built.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


def test_the_order_of_frames_matters_just_where_it_should(case, built):
    clips = case.clips(1)
    with torch.inference_mode():
        forward, backward = built(clips), built(clips.flip(1)).flip(1)
    if case.sees_order:
        assert difference(forward, backward) > 1e-3
    else:
        assert difference(forward, backward) < 1e-5


def test_in_either_memory_layout_it_gives_the_same(case, built):
    other = copy.deepcopy(built)
    use_channels_last(other)
    with torch.inference_mode():
        assert difference(other(case.clips(1)), built(case.clips(1))) < 1e-4


def test_saved_and_loaded_it_is_the_same(case, built):
    file = io.BytesIO()
    torch.save(built.state_dict(), file)
    file.seek(0)
    with torch.device("meta"):
        other = case.build()
    other.load_state_dict(torch.load(file, weights_only=True), assign=True)
    with torch.inference_mode():
        assert difference(other(case.clips(1)), built(case.clips(1))) == 0


@pytest.mark.parametrize(
    "name",
    [
        "tsm_resnet18",
        "tam_resnet18",
        "i3d_resnet18",
        "resnet3d18",
        "c3d",
        "conv4_3d",
        "s3d_inception_v1",
        "r2plus1d_18",
        "swin3d_t",
    ],
)
def test_the_number_of_frames_is_read_off_the_clip(name):
    """Trained with some number of frames, a network may be tested with another."""
    with torch.device("meta"), torch.inference_mode():
        backbone = build_backbone(name, seq_len=8)
        assert backbone(torch.empty(2, 21, 3, 32, 32)).shape == (2, backbone.num_steps(21), backbone.feature_dim)


@pytest.mark.parametrize(
    ("name", "options", "frames", "steps"),
    [
        ("resnet18", {"temporal_pool": 3}, 12, 2),
        ("tsm_resnet18", {"temporal_pool": 1}, 8, 4),
        ("i3d", {"temporal_stride": True}, 16, 2),
        ("i3d", {"form": "original"}, 64, 8),
        ("s3d_inception_v1", {}, 8, 7),
        ("s3d_inception_v1", {"temporal_stride": True}, 16, 2),
        ("resnet3d18", {}, 16, 1),
        ("resnet3d18", {"no_max_pool": True, "conv1_t_stride": 2}, 16, 1),
        ("s3d", {}, 14, 2),
        ("c3d", {}, 20, 2),
        ("c3d", {"until": "conv4b"}, 20, 5),
        ("c3d", {"until": "fc6"}, 24, 2),
        ("conv4_3d", {}, 20, 5),
        ("conv4_3d", {}, 15, 3),
        ("swin3d_t", {}, 7, 4),
        ("lsnet_resnet18", {"num_frame": 5}, 40, 8),
        ("tdn_resnet50", {}, 80, 16),
        ("msn_resnet50", {}, 10, 2),
    ],
)
def test_steps(name, options, frames, steps):
    with torch.device("meta"):
        assert build_backbone(name, seq_len=frames, **options).num_steps(frames) == steps


# ---------------------------------------------------------------------------------------------------------------------
# Transformers, against torchvision's own forward


@pytest.mark.parametrize("name", TINY)
def test_maps_of_a_transformer_are_its_last_normalised_tokens(name):
    case = Case(name, 4)
    backbone, clips = case.build(), case.clips()
    seen = []
    backbone.net.norm.register_forward_hook(lambda module, inputs, output: seen.append(output))
    with torch.inference_mode():
        maps = backbone.feature_maps(clips)
        backbone.net(clips.transpose(1, 2))
    tokens = seen[-1][:, 1:] if name == "tiny_mvit" else seen[-1].flatten(1, 3)
    torch.testing.assert_close(maps.flatten(2).transpose(1, 2), tokens)
    assert maps.shape[3:] == (4, 4)


# ---------------------------------------------------------------------------------------------------------------------
# What users ask for wrongly


@pytest.mark.parametrize(
    ("name", "options", "frames", "message"),
    [
        ("resnet5", {}, 8, "did you mean 'resnet50'"),
        ("resnet50", {"shift_div": 8}, 8, "no option shift_div"),
        ("s3d", {}, 4, "too short: give --seq_len 5 or more"),
        ("s3d_inception_v1", {}, 1, "too short: give --seq_len 2 or more"),
        ("tsm_resnet18", {"shift_div": 1}, 8, "shift_div of 2 or more, found 1"),
        ("resnet18", {"temporal_pool": 4}, 8, "0 to 3 times, found 4"),
        ("lsnet_resnet18", {"fuse_before_net": True}, 24, "give temporal=none"),
        ("mvit_v2_s", {}, 8, "give --seq_len 16"),
        ("blvnet_tam50", {}, 7, "give an even --seq_len"),
        ("lsnet_resnet18", {}, 8, "stacks of 3 frames, found 8"),
        ("tdn_resnet50", {}, 8, "stacks of 5 frames, found 8: give a --seq_len of full stacks"),
        ("tdn_resnet50", {"delta": 1}, 40, "no option delta"),
        ("msn_resnet50", {}, 5, "found one step: give a --seq_len of 10 or more"),
        ("msn_resnet50", {"variant": "release"}, 40, "did you mean 'released'"),
        ("msn_resnet50", {"variant": "released"}, 60, "by 8, found 12: give a --seq_len in multiples of 40"),
        ("tsm_resnet18", {"non_local": True}, 8, "give --backbone tsm_resnet50"),
        ("tsm_resnet18", {"place": "blockers"}, 8, "did you mean 'blockres'"),
        ("tam_resnet18", {"blend_frames": 4}, 8, "blend_frames 3, 5 or 7"),
        ("i3d_resnet18", {"kernels": "3x1x1"}, 8, "give --backbone i3d_resnet50"),
        ("i3d_resnet50", {"kernels": "slow", "temporal_stride": True}, 8, "leave temporal_stride=true out"),
        ("resnet2p1d50", {"form": "mmaction2"}, 8, "for depths below 50"),
        ("resnet2p1d18", {"form": "mmaction2", "no_max_pool": True}, 8, "leave the others out"),
        ("s3d", {"steps": "pairs"}, 8, "too short: give --seq_len 13 or more"),
        ("i3d", {"pooling": "median"}, 8, "unknown pooling 'median'"),
        ("c3d", {"until": "fc8"}, 16, "unknown until 'fc8'"),
        ("c3d", {}, 4, "too short: give --seq_len 8 or more"),
        ("conv4_3d", {}, 3, "too short: give --seq_len 4 or more"),
        ("resnet18", {"inflation": "mean", "pretrained": "none.pt"}, 8, "no checkpoint at none.pt"),
        ("resnet3d18", {"pretrained": True}, 8, "no pretrained weights"),
        ("resnet18", {"pretrained": "ResNet18_Weights.V9"}, 8, "torchvision has no weights 'ResNet18_Weights.V9'"),
    ],
)
def test_a_wrong_request_says_what_to_do(name, options, frames, message):
    with torch.device("meta"), pytest.raises(UserError, match=message):
        build_backbone(name, seq_len=frames, **options)


def test_a_clip_that_does_not_fit_the_positions_of_mvit_is_refused():
    with pytest.raises(UserError, match="--img_size 32"):
        Case("tiny_mvit", 4).build()(torch.rand(1, 4, 3, 64, 64))


def test_a_backbone_from_ones_own_file(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from torch import nn\n"
        "from backbones import FrameBackbone\n"
        "from clips.transforms import InputSpec\n"
        "def tiny(*, seq_len, width=5):\n"
        "    net = nn.Conv2d(3, width, 3)\n"
        "    return FrameBackbone(net, feature_dim=width, input_spec=InputSpec(size=8), seq_len=seq_len)\n"
    )
    backbone = build_backbone(f"{tmp_path}/mine.py:tiny", seq_len=2, width=7)
    assert isinstance(backbone, FrameBackbone)
    assert backbone(torch.rand(3, 2, 3, 8, 8)).shape == (3, 2, 7)
    with pytest.raises(UserError, match="did you mean 'tiny'"):
        import_from_file(f"{tmp_path}/mine.py:tinny", "backbone")
    with pytest.raises(UserError, match="no file"):
        import_from_file(f"{tmp_path}/yours.py:tiny", "backbone")
