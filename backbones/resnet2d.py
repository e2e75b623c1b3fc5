"""2D networks over frames, with slots for what looks across them.

ResNet (He et al., CVPR 2016), MobileNetV2 (Sandler et al., CVPR 2018) and Inception-v1 (Szegedy et al., CVPR 2015), all
as torchvision builds them and under its names, and Conv-4 (Vinyals et al., NeurIPS 2016), the small network of few-shot
learning. By themselves they are the backbones of TSN (Wang et al., ECCV 2016): every frame alone, scores averaged.

Every residual block has four slots, empty here; tsm.py, tam.py and others put their module there:

    x -> enter -+-> branch -> conv1 -> middle -> conv2 (-> conv3) -> + -> leave
                +---------------- (downsample) -------------------- /

Letters: N clips, T frames, C channels, D width, h w cells of a map.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from einops import rearrange
from torch import Tensor, nn

from backbones.backbone import FrameBackbone, FrameNet, Keep, OverFrames, Temporal, initialise_convs, one_of
from backbones.torchvision_import import torchvision
from clips.transforms import InputSpec
from utils import UserError

# Blocks per stage. Depth 10 and 200 are Hara's (CVPR 2018).
STAGES = {
    10: (1, 1, 1, 1),
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
    200: (3, 24, 36, 3),
}
# Those that see every frame alone, and so take clips of any length, where they do not pool time.
FRAME_BY_FRAME = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "inception_v1", "mobilenet_v2", "conv4")
HALF_RANGE = InputSpec(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


# ---------------------------------------------------------------------------------------------------------------------
# Blocks with slots


class Slots(OverFrames):
    """Mixed into a residual block of torchvision: its forward, with the four slots.

    `project_from_branch`: the shortcut's projection sees what the branch slot gives, not the block's input.
    """

    conv1: nn.Conv2d
    bn1: nn.BatchNorm2d
    conv2: nn.Conv2d
    bn2: nn.BatchNorm2d
    conv3: nn.Conv2d
    bn3: nn.BatchNorm2d
    relu: nn.ReLU
    downsample: nn.Module | None
    project_from_branch = False

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.enter: nn.Module = Keep()
        self.branch: nn.Module = Keep()
        self.middle: nn.Module = Keep()
        self.leave: nn.Module = Keep()

    def forward(self, maps: Tensor, clips: int) -> Tensor:
        return self.leave(self.relu(self.branch_and_shortcut(maps, clips)), clips)

    def branch_and_shortcut(self, maps: Tensor, clips: int) -> Tensor:
        """The block before its last ReLU."""
        maps = self.enter(maps, clips)
        inner = self.branch(maps, clips)
        out = self.middle(self.relu(self.bn1(self.conv1(inner))), clips)
        out = self.bn2(self.conv2(out))
        if hasattr(self, "conv3"):
            out = self.bn3(self.conv3(self.relu(out)))
        shortcut = maps
        if self.downsample is not None:
            shortcut = self.downsample(inner if self.project_from_branch else maps)
        out += shortcut
        return out


class BasicBlock(Slots, torchvision.models.resnet.BasicBlock):
    """Two 3x3 convolutions."""


class Bottleneck(Slots, torchvision.models.resnet.Bottleneck):
    """1x1, 3x3 with the stride, 1x1."""


class InvertedResidual(OverFrames, torchvision.models.mobilenetv2.InvertedResidual):
    """MobileNetV2's block, with the slot `branch` at the start of its branch."""

    conv: nn.Sequential

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.branch: nn.Module = Keep()

    def forward(self, maps: Tensor, clips: int) -> Tensor:
        out = self.conv(self.branch(maps, clips))
        return maps + out if self.use_res_connect else out


class TemporalPool(Temporal):
    """Halves the frames of a clip: the max or mean of three neighbours at every second frame."""

    def __init__(self, kind: str = "max") -> None:
        super().__init__()
        pool = {"max": nn.MaxPool2d, "avg": nn.AvgPool2d}[one_of("pooling", kind, ("max", "avg"))]
        self.pool = pool((3, 1), stride=(2, 1), padding=(1, 0))

    def num_steps(self, seq_len: int) -> int:
        return (seq_len + 1) // 2

    def forward(self, maps: Tensor, clips: int) -> Tensor:
        pooled = self.pool(rearrange(maps, "(n t) c h w -> n c t (h w)", n=clips))
        return rearrange(pooled, "n c t (h w) -> (n t) c h w", h=maps.shape[-2])


# ---------------------------------------------------------------------------------------------------------------------
# Backbones


def layers_of(net: nn.Module) -> dict[str, nn.Module]:
    """The layers of a network of torchvision before its head."""
    return {name: child for name, child in net.named_children() if name not in ("avgpool", "dropout", "fc")}


def resnet(depth: int, *, seq_len: int, temporal_pool: int = 0, pooling: str = "max") -> FrameBackbone:
    """ResNet-`depth` up to its last feature map: D = 512 for depths 18 and 34, 2048 for the others.

    temporal_pool: how many of the first three stages are followed by a halving of time: 3 is the pooling of the IBM
    study (Chen et al., CVPR 2021), 1 is TSM's. pooling: max or avg.
    """
    full = torchvision.models.ResNet(BasicBlock if depth < 50 else Bottleneck, STAGES[depth])
    net = FrameNet(layers_of(full))
    for stage in ("layer1", "layer2", "layer3", "layer4"):
        net[stage] = FrameNet(dict(net[stage].named_children()))
    insert_pools(net, ("layer1", "layer2", "layer3"), temporal_pool, pooling)
    return FrameBackbone(net, feature_dim=full.fc.in_features, input_spec=InputSpec(), seq_len=seq_len)


def insert_pools(net: FrameNet, places: Sequence[str], number: int, kind: str) -> None:
    """Puts temporal pools after the first `number` of the places."""
    if not 0 <= number <= len(places):
        raise UserError(f"temporal_pool halves time 0 to {len(places)} times, found {number}")
    for place in places[:number]:
        net.insert_after(place, f"pool_after_{place}", TemporalPool(kind))


def residual_blocks(backbone: FrameBackbone) -> list[list[Slots]]:
    """The blocks of a ResNet with slots, stage by stage."""
    stages = [layer.children() for layer in backbone.net.children() if isinstance(layer, FrameNet)]
    return [[block for block in stage if isinstance(block, Slots)] for stage in stages]


def inception_v1(*, seq_len: int, temporal_pool: int = 0, pooling: str = "max") -> FrameBackbone:
    """Inception-v1 (GoogLeNet with batch norm) up to its last feature map: D = 1024.

    temporal_pool: how many of the last three max pools are followed by a halving of time. pooling: max or avg.
    """
    full = torchvision.models.GoogLeNet(aux_logits=False, init_weights=False)
    initialise_convs(full)
    net = FrameNet(layers_of(full))
    insert_pools(net, ("maxpool2", "maxpool3", "maxpool4"), temporal_pool, pooling)
    return FrameBackbone(net, feature_dim=1024, input_spec=HALF_RANGE, seq_len=seq_len)


def mobilenet_v2(*, seq_len: int) -> FrameBackbone:
    """MobileNetV2 1.0 up to its last feature map: D = 1280."""
    full = torchvision.models.MobileNetV2(block=InvertedResidual)
    net = FrameNet({"features": FrameNet(dict(full.features.named_children()))})
    return FrameBackbone(net, feature_dim=full.last_channel, input_spec=InputSpec(), seq_len=seq_len)


def conv4(*, seq_len: int, width: int = 64) -> FrameBackbone:
    """Four blocks of 3x3 convolution, batch norm, ReLU and 2x2 max pooling: D = `width`. To be trained from scratch."""

    def block(channels: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2)
        )

    net = nn.Sequential(block(3), block(width), block(width), block(width))
    spec = InputSpec(size=84, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    return FrameBackbone(net, feature_dim=width, input_spec=spec, seq_len=seq_len)
