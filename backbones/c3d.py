"""C3D (Tran et al., ICCV 2015), and the small 3D encoder of ARN (Zhang et al., ECCV 2020), which that paper also calls C3D.

Letters: N clips, T frames, S steps, D width.
"""

from __future__ import annotations

from collections import OrderedDict
from itertools import pairwise

from torch import nn

from backbones.backbone import ClipBackbone, initialise_convs, one_of
from backbones.layers3d import MaxPool3d
from clips.transforms import InputSpec

# Frames in BGR from 0 to 255, less the mean of Sports-1M. The authors subtract a mean clip; this is its mean by channel.
SPORTS1M = InputSpec(
    size=112, mean=(90.0, 98.0, 102.0), std=(1.0, 1.0, 1.0), colour_order="bgr", value_range=255.0, frames=16
)
ARN = InputSpec(size=128, mean=(0.3474, 0.3474, 0.3474), std=(0.21, 0.21, 0.21), frames=20)

# Stages of C3D: the names of their convolutions, channels, and the pool that follows, of which the first keeps time.
STAGES = {
    "1": (("conv1a",), 64, (1, 2, 2)),
    "2": (("conv2a",), 128, (2, 2, 2)),
    "3": (("conv3a", "conv3b"), 256, (2, 2, 2)),
    "4": (("conv4a", "conv4b"), 512, (2, 2, 2)),
    "5": (("conv5a", "conv5b"), 512, (2, 2, 2)),
}
HALVE, HALVE_ROUNDED_UP = (2, 2, 0), (1, 2, 0)


def conv4_3d(*, seq_len: int, width: int = 64) -> ClipBackbone:
    """ARN's Conv-4-64: four 3x3x3 convolutions with batch norm and ReLU, of which the first two halve time and space.

    D = `width`; S = T/4, rounded down; maps of a quarter of the frames' height and width. To be trained from scratch.
    """
    layers: list[nn.Module] = []
    for number, (channels, out_channels) in enumerate(pairwise((3, width, width, width, width))):
        # No bias: the batch norm takes it away again. Pooling first gives the same as after the ReLU, which only grows.
        block = [nn.Conv3d(channels, out_channels, 3, padding=1, bias=False), nn.BatchNorm3d(out_channels)]
        pool = [MaxPool3d(2)] if number < 2 else []
        layers.append(nn.Sequential(*block, *pool, nn.ReLU(inplace=True)))
    return ClipBackbone(
        nn.Sequential(*layers), feature_dim=width, input_spec=ARN, seq_len=seq_len, time_path=[HALVE, HALVE]
    )


def c3d(*, seq_len: int, until: str = "conv5b") -> ClipBackbone:
    """C3D: eight 3x3x3 convolutions without batch norm; its layers have the names of the authors' network.

    until: the last layer. conv5b (D = 512, S = T/8 and maps of a 16th of the frames' height and width), conv4b (the same
    with S = T/4 and an eighth), or fc6 and fc7 (D = 4096, S = T/16 rounded up, for frames of 112 pixels and more).
    """
    last = one_of("until", until, ("conv4b", "conv5b", "fc6", "fc7"))
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    channels = 3
    for stage, (names, width, pool) in STAGES.items():
        for name in names:
            layers[name] = nn.Conv3d(channels, width, 3, padding=1)
            layers[f"relu{name.removeprefix('conv')}"] = nn.ReLU(inplace=True)
            channels = width
        if last in names:
            break
        # Rounded up: the 7 rows before the last pool give 4, as the first fully connected layer expects.
        layers[f"pool{stage}"] = MaxPool3d(pool, ceil_mode=stage == "5")
    if last.startswith("fc"):
        # As convolutions over all of what they expect, they take longer clips and larger frames as well.
        layers |= {"fc6": nn.Conv3d(512, 4096, (1, 4, 4)), "relu6": nn.ReLU(inplace=True)}
    if last == "fc7":
        layers |= {"dropout6": nn.Dropout(0.5), "fc7": nn.Conv3d(4096, 4096, 1), "relu7": nn.ReLU(inplace=True)}
    net = nn.Sequential(layers)
    initialise_convs(net)
    time_path = [HALVE] * (2 if last == "conv4b" else 3) + [HALVE_ROUNDED_UP] * last.startswith("fc")
    return ClipBackbone(
        net,
        feature_dim=512 if last.startswith("conv") else 4096,
        input_spec=SPORTS1M,
        seq_len=seq_len,
        time_path=time_path,
    )
