"""bLVNet-TAM: "More Is Less" (Fan et al., NeurIPS 2019), on bLResNet (Chen et al., ICLR 2019).

Frames come in pairs: one of a pair goes through a big branch at half the resolution, the other through a little branch,
narrower and shallower, at full resolution; both leave with the sum. TAM links the frames before every such fork.

Letters: N clips, T frames, P pairs of all clips, C channels, D width, h w cells of a map.
"""

from __future__ import annotations

import torch.nn.functional as F
from einops import repeat
from torch import Tensor, nn

from backbones.backbone import FrameBackbone, FrameNet, Keep, OverFrames, Temporal, initialise_convs, over_frames
from backbones.resnet2d import Bottleneck
from backbones.tam import TAM
from clips.transforms import InputSpec
from utils import UserError

STAGES = {50: (3, 4, 6, 3), 101: (4, 8, 18, 3), 152: (5, 12, 30, 3)}
ALPHA, BETA = 2, 4  # the little branch is so many times narrower, and so many times shallower


class OpenBottleneck(Bottleneck):
    """A bottleneck without its last ReLU."""

    forward = Bottleneck.branch_and_shortcut


class Fork(OverFrames):
    """One resolution of the network: maps (2P, C, h, w) of all frames -> (2P, C', h', w')."""

    def __init__(self, big: nn.Module, little: nn.Module, widen: nn.Module, fuse: nn.Module) -> None:
        super().__init__()
        self.tam: nn.Module = Keep()
        self.big = big
        self.little = little
        self.little_e = widen
        self.fusion = fuse

    def forward(self, maps: Tensor, clips: int) -> Tensor:
        maps = self.tam(maps, clips)
        little = self.little_e(over_frames(self.little, maps[0::2], clips))
        big = F.interpolate(over_frames(self.big, maps[1::2], clips), little.shape[-2:])
        pairs = over_frames(self.fusion, (big + little).relu(), clips)
        return repeat(pairs, "p c h w -> (p two) c h w", two=2)


class OneOfPair(Temporal):
    """Every second frame: after a fork both frames of a pair are the same."""

    def num_steps(self, seq_len: int) -> int:
        if seq_len % 2:
            raise UserError(f"bLVNet-TAM takes frames in pairs, found {seq_len}: give an even --seq_len")
        return seq_len // 2

    def forward(self, maps: Tensor, clips: int) -> Tensor:
        return maps[1::2]


def conv(width_in: int, width: int, kernel: int, stride: int = 1) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
    return nn.Conv2d(width_in, width, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(width)


def bottlenecks(
    width_in: int, width: int, count: int, stride: int = 1, last: type[Bottleneck] = Bottleneck
) -> FrameNet:
    """`count` blocks; the first has the stride and, where the shape changes, a shortcut that pools and projects."""
    shortcut: list[nn.Module] = [nn.AvgPool2d(3, stride=2, padding=1)] if stride == 2 else []
    if width_in != width:
        shortcut += conv(width_in, width, 1)
    first = Bottleneck(width_in, width // 4, stride, nn.Sequential(*shortcut) if shortcut else None)
    rest = [(last if number == count - 1 else Bottleneck)(width, width // 4) for number in range(1, count)]
    return FrameNet({str(number): block for number, block in enumerate([first, *rest])})


def fork(width_in: int, width: int, blocks: int, stride: int) -> Fork:
    """The fork of a stage; its fusion has the stride."""
    little = width // ALPHA
    return Fork(
        big=bottlenecks(width_in, width, blocks - 1, stride=2, last=OpenBottleneck),
        little=bottlenecks(width_in, little, max(1, blocks // BETA - 1)),
        widen=nn.Sequential(*conv(little, width, 1)),
        fuse=bottlenecks(width, width, 1, stride),
    )


def blvnet_tam(depth: int, *, seq_len: int) -> FrameBackbone:
    """bLVNet-TAM of depth 50, 101 or 152: D = 2048, S = T/2; the paper's f8x2 is a `seq_len` of 16."""
    blocks = STAGES[depth]
    little = 64 // ALPHA
    relu = nn.ReLU(inplace=True)
    net = FrameNet(
        {
            **dict(zip(("conv1", "bn1"), conv(3, 64, 7, 2), strict=True)),
            "relu": relu,
            "layer0": Fork(
                big=nn.Sequential(*conv(64, 64, 3, 2)),
                little=nn.Sequential(*conv(64, little, 3), relu, *conv(little, little, 3, 2), relu),
                widen=nn.Sequential(*conv(little, 64, 1)),
                fuse=nn.Sequential(*conv(64, 64, 1), relu),
            ),
            "layer1": fork(64, 256, blocks[0], stride=2),
            "layer2": fork(256, 512, blocks[1], stride=2),
            "layer3": fork(512, 1024, blocks[2], stride=1),
            "one_of_pair": OneOfPair(),
            "layer4": bottlenecks(1024, 2048, blocks[3], stride=2),
        }
    )
    initialise_convs(net)
    for module in net.modules():
        if isinstance(module, Bottleneck):
            nn.init.zeros_(module.bn3.weight)
    for name, width in {"layer0": 64, "layer1": 64, "layer2": 256, "layer3": 512}.items():
        net.get_submodule(name).tam = TAM(width)
    for block in net.get_submodule("layer4").children():
        assert isinstance(block, Bottleneck)
        block.branch = TAM(block.conv1.in_channels)
        block.project_from_branch = True
    return FrameBackbone(net, feature_dim=2048, input_spec=InputSpec(frames=16), seq_len=seq_len)
