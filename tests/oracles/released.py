"""Recognisers of other code bases as their READMEs and papers say, on the names and shapes of their files: one clip, layer
after layer, in evaluation. The library's networks with such a file's weights are tested against these.

Letters: T frames, C channels or classes, S steps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

State = Mapping[str, Tensor]


def norm(x: Tensor, state: State, name: str, eps: float = 1e-5) -> Tensor:
    """A batch norm with its stored statistics: x (N, C, ...)."""
    shape = (1, -1) + (1,) * (x.ndim - 2)
    mean, var, weight, bias = (
        state[f"{name}.{leaf}"].reshape(shape) for leaf in ("running_mean", "running_var", "weight", "bias")
    )
    return (x - mean) / torch.sqrt(var + eps) * weight + bias


def conv(x: Tensor, weight: Tensor, stride: int | Sequence[int] = 1) -> Tensor:
    """A convolution, padded so that stride 1 keeps the size."""
    padding = [side // 2 for side in weight.shape[2:]]
    groups = x.shape[1] // weight.shape[1]
    convolve = F.conv2d if weight.ndim == 4 else F.conv3d
    return convolve(x, weight, stride=stride, padding=padding, groups=groups)


# ---------------------------------------------------------------------------------------------------------------------
# What looks across frames: maps (T, C, h, w)


def shift(x: Tensor, div: int) -> Tensor:
    """TSM: the first C/div channels of a frame are those of the next one, the second C/div those of the one before."""
    moved = torch.zeros_like(x)
    fold = x.shape[1] // div
    for t in range(len(x)):
        for c in range(x.shape[1]):
            source = t + 1 if c < fold else t - 1 if c < 2 * fold else t
            if 0 <= source < len(x):
                moved[t, c] = x[source, c]
    return moved


def aggregate(x: Tensor, taps: Sequence[Tensor]) -> Tensor:
    """TAM: a weighted sum of the frame before, the frame and the next one, each (C, 1, 1, 1), and a ReLU."""
    summed = torch.zeros_like(x)
    for t in range(len(x)):
        for offset, tap in zip((-1, 0, 1), taps, strict=True):
            if 0 <= t + offset < len(x):
                summed[t] += x[t + offset] * tap[:, 0]
    return summed.relu()


def halved(x: Tensor) -> Tensor:
    """The largest of three neighbours at every second frame."""
    return torch.stack([x[max(0, t - 1) : t + 2].amax(dim=0) for t in range(0, len(x), 2)])


# ---------------------------------------------------------------------------------------------------------------------
# Residual networks


def resnet(
    x: Tensor,
    unit: Callable[[Tensor, str, int], Tensor],
    blocks: Sequence[int],
    *,
    deep: bool = False,
    branch: Callable[[Tensor, str], Tensor] = lambda x, _: x,
    enter: Callable[[Tensor, str], Tensor] = lambda x, _: x,
    leave: Callable[[Tensor, str], Tensor] = lambda x, _: x,
    after: Mapping[int, Callable[[Tensor], Tensor]] = {},
    shortcut: Callable[[Tensor, str, int, int], Tensor] | None = None,
    pool: Callable[[Tensor], Tensor] = lambda x: F.max_pool2d(x, 3, 2, 1),
) -> Tensor:
    """Maps before the classifier. unit: convolution and norm of a name at a stride. branch, enter, leave: before a block's
    branch, before the block, after it. after: what follows a stage. shortcut: where the shape changes, to so many channels."""
    x = pool(unit(x, "conv1", 2).relu())
    for stage, number in enumerate(blocks, start=1):
        for block in range(number):
            name = f"layer{stage}.{block}"
            stride = 2 if block == 0 and stage > 1 else 1
            x = enter(x, name)
            y = branch(x, name)
            if deep:
                y = unit(unit(unit(y, f"{name}.conv1", 1).relu(), f"{name}.conv2", stride).relu(), f"{name}.conv3", 1)
            else:
                y = unit(unit(y, f"{name}.conv1", stride).relu(), f"{name}.conv2", 1)
            if x.shape != y.shape or (block == 0 and deep):
                x = shortcut(x, name, stride, y.shape[1]) if shortcut else unit(x, f"{name}.downsample", stride)
            x = leave((x + y).relu(), name)
        x = after.get(stage, lambda x: x)(x)
    return x


def mean_of_steps(maps: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Scores of every step, averaged: maps (T, C, h, w) or (1, C, S, h, w) -> (classes,)."""
    if maps.ndim == 5:
        maps = maps[0].transpose(0, 1)
    return torch.stack([weight @ frame.mean(dim=(-2, -1)) + bias for frame in maps]).mean(dim=0)


def tsm(state: State, frames: Tensor, *, div: int = 8, place: str = "blockres", pooled: bool = False) -> Tensor:
    """TSM's ResNet-18, or with `place` "" its TSN: `module.base_model.*`, frames (T, 3, H, W) -> (classes,)."""

    def unit(x: Tensor, name: str, stride: int) -> Tensor:
        layer, _, last = name.rpartition(".")
        if place == "block" and layer:
            layer = f"{layer}.net"
        if pooled and layer.startswith("layer2"):
            layer = layer.replace("layer2", "layer2.net")
        start = f"module.base_model.{layer and layer + '.'}"
        if last == "downsample":
            return norm(conv(x, state[f"{start}downsample.0.weight"], stride), state, f"{start}downsample.1")
        inside = ".net" if last == "conv1" and layer and place == "blockres" else ""
        return norm(
            conv(x, state[f"{start}{last}{inside}.weight"], stride), state, f"{start}{last.replace('conv', 'bn')}"
        )

    def moved(x: Tensor, _: str) -> Tensor:
        return shift(x, div)

    hooks = {"blockres": {"branch": moved}, "block": {"enter": moved}, "": {}}[place]
    maps = resnet(frames, unit, (2, 2, 2, 2), after={1: halved} if pooled else {}, **hooks)
    return mean_of_steps(maps, state["module.new_fc.weight"], state["module.new_fc.bias"])


def mmaction(state: State, frames: Tensor, *, div: int, place: str = "blockres", non_local: bool = False) -> Tensor:
    """MMAction2's TSM of ResNet-18, or with div 0 its TSN: `backbone.layer1.0.conv1.conv.*`, `cls_head.fc_cls`; with
    non_local its TSM of ResNet-50 with five such blocks."""

    def inside(name: str) -> str:
        block, _, layer = name.rpartition(".")
        if non_local and f"backbone.{block}.non_local_block.theta.conv.weight" in state:
            return f"{block}.block.{layer}"
        return f"{block}.net.{layer}" if block and div and place == "block" else name

    def unit(x: Tensor, name: str, stride: int) -> Tensor:
        shifted = div and place == "blockres" and name.count(".") == 2 and name.endswith("conv1")
        name = f"backbone.{inside(name)}"
        return norm(conv(x, state[f"{name}.conv{'.net' if shifted else ''}.weight"], stride), state, f"{name}.bn")

    def attended(x: Tensor, name: str) -> Tensor:
        start = f"backbone.{name}.non_local_block"
        if f"{start}.theta.conv.weight" not in state:
            return x
        clip = x.transpose(0, 1)[None]
        query, key, value = (
            F.conv3d(clip, state[f"{start}.{part}.conv.weight"], state[f"{start}.{part}.conv.bias"])
            for part in ("theta", "phi.0", "g.0")
        )
        key, value = (F.max_pool3d(part, (1, 2, 2)).flatten(2)[0] for part in (key, value))
        weights = (query.flatten(2)[0].T @ key).softmax(dim=1)
        seen = (weights @ value.T).T.reshape(query.shape)
        projected = F.conv3d(seen, state[f"{start}.conv_out.conv.weight"])
        return x + norm(projected, state, f"{start}.conv_out.bn")[0].transpose(0, 1)

    moved = lambda x, _: shift(x, div) if div else x  # noqa: E731
    maps = resnet(
        frames, unit, (3, 4, 6, 3) if non_local else (2, 2, 2, 2), deep=non_local, leave=attended,
        **{"branch" if place == "blockres" else "enter": moved},
    )  # fmt: skip
    return mean_of_steps(maps, state["cls_head.fc_cls.weight"], state["cls_head.fc_cls.bias"])


def mmaction_mobilenet(state: State, frames: Tensor, *, div: int) -> Tensor:
    """MMAction2's MobileNetV2 with shifts, or with div 0 without: `backbone.layer2.1.conv.0.net.conv.weight`."""

    def unit(x: Tensor, name: str, stride: int) -> Tensor:
        weight = next(
            state[f"{name}.{inner}conv.weight"] for inner in ("", "net.") if f"{name}.{inner}conv.weight" in state
        )
        bn = f"{name}.bn" if f"{name}.bn.weight" in state else f"{name}.net.bn"
        return norm(conv(x, weight, stride), state, bn)

    x = unit(frames, "backbone.conv1", 2).clamp(0, 6)
    for stage, (number, stride) in enumerate(((1, 1), (2, 2), (3, 2), (4, 2), (3, 1), (3, 2), (1, 1)), start=1):
        for block in range(number):
            name = f"backbone.layer{stage}.{block}.conv"
            step = stride if block == 0 else 1
            y = shift(x, div) if div and block else x  # the later blocks of a stage have a skip connection
            if stage > 1:
                y = unit(y, f"{name}.0", 1).clamp(0, 6)
            y = unit(y, f"{name}.{int(stage > 1)}", step).clamp(0, 6)
            y = unit(y, f"{name}.{1 + int(stage > 1)}", 1)
            x = x + y if block else y
    maps = unit(x, "backbone.conv2", 1).clamp(0, 6)
    return mean_of_steps(maps, state["cls_head.fc_cls.weight"], state["cls_head.fc_cls.bias"])


def mmaction_slow(state: State, frames: Tensor) -> Tensor:
    """MMAction2's SlowOnly of ResNet-50: no layer strides over time."""

    def unit(x: Tensor, name: str, stride: int) -> Tensor:
        return norm(conv(x, state[f"backbone.{name}.conv.weight"], (1, stride, stride)), state, f"backbone.{name}.bn")

    maps = resnet(
        frames.transpose(0, 1)[None], unit, (3, 4, 6, 3), deep=True,
        pool=lambda x: F.max_pool3d(x, (1, 3, 3), (1, 2, 2), (0, 1, 1)),
    )  # fmt: skip
    return mean_of_steps(maps, state["cls_head.fc_cls.weight"], state["cls_head.fc_cls.bias"])


def mmaction_r2plus1d(state: State, frames: Tensor) -> Tensor:
    """MMAction2's R(2+1)D of depth 18, its shortcuts in two halves, too: `backbone.layer1.0.conv1.conv.conv_s.weight`."""

    def unit(x: Tensor, name: str, stride: int) -> Tensor:
        name, t = f"backbone.{name}", 1 if name == "conv1" else stride
        x = norm(conv(x, state[f"{name}.conv.conv_s.weight"], (1, stride, stride)), state, f"{name}.conv.bn_s").relu()
        return norm(conv(x, state[f"{name}.conv.conv_t.weight"], (t, 1, 1)), state, f"{name}.bn", eps=1e-3)

    maps = resnet(
        frames.transpose(0, 1)[None], unit, (2, 2, 2, 2),
        pool=lambda x: F.max_pool3d(x, (1, 3, 3), (1, 2, 2), (0, 1, 1)),
    )  # fmt: skip
    return mean_of_steps(maps, state["cls_head.fc_cls.weight"], state["cls_head.fc_cls.bias"])


def mmaction_i3d(state: State, frames: Tensor) -> Tensor:
    """MMAction2's I3D of ResNet-50: its first convolution, its pool and a pool after the first stage halve time."""
    x = frames.transpose(0, 1)[None]

    def unit(x: Tensor, name: str, stride: int) -> Tensor:
        strides = (2 if name == "conv1" else 1, stride, stride)
        return norm(conv(x, state[f"backbone.{name}.conv.weight"], strides), state, f"backbone.{name}.bn")

    maps = resnet(
        x, unit, (3, 4, 6, 3), deep=True,
        pool=lambda x: F.max_pool3d(x, (1, 3, 3), (2, 2, 2), (0, 1, 1)),
        after={1: lambda x: F.max_pool3d(x, (2, 1, 1), (2, 1, 1))},
    )  # fmt: skip
    return mean_of_steps(maps, state["cls_head.fc_cls.weight"], state["cls_head.fc_cls.bias"])


def study_tam(state: State, frames: Tensor, *, strides: bool) -> Tensor:
    """The Study's ResNet-18 with TAM; strides: a pool halves time after each of three stages."""

    def unit(x: Tensor, name: str, stride: int) -> Tensor:
        if name.endswith("downsample"):
            return norm(conv(x, state[f"module.{name}.0.weight"], stride), state, f"module.{name}.1")
        return norm(conv(x, state[f"module.{name}.weight"], stride), state, f"module.{name.replace('conv', 'bn')}")

    def branch(x: Tensor, name: str) -> Tensor:
        taps = [state[f"module.{name}.tam.{tap}_se.fc1.weight"] for tap in ("prev", "curr", "next")]
        return aggregate(x, taps)

    after = {1: halved, 2: halved, 3: halved} if strides else {}
    return mean_of_steps(
        resnet(frames, unit, (2, 2, 2, 2), branch=branch, after=after),
        state["module.fc.weight"],
        state["module.fc.bias"],
    )


def study_3d(state: State, frames: Tensor, *, separable: bool, strides: bool) -> Tensor:
    """The Study's I3D or S3D of ResNet-18; strides: the last three stages halve time."""

    def unit(x: Tensor, name: str, stride: int) -> Tensor:
        t = 2 if strides and stride == 2 and name != "conv1" else 1
        if name.endswith("downsample"):
            return norm(conv(x, state[f"module.{name}.0.weight"], (t, stride, stride)), state, f"module.{name}.1")
        bn = f"module.{name.replace('conv', 'bn')}"
        if not separable or name == "conv1":
            return norm(conv(x, state[f"module.{name}.weight"], (t, stride, stride)), state, bn)
        x = norm(conv(x, state[f"module.{name}.weight"], (1, stride, stride)), state, bn).relu()
        return norm(conv(x, state[f"module.{name}_t.weight"], (t, 1, 1)), state, f"{bn}_t")

    pool = lambda x: F.max_pool3d(x, (1, 3, 3), (1, 2, 2), (0, 1, 1))  # noqa: E731
    maps = resnet(frames.transpose(0, 1)[None], unit, (2, 2, 2, 2), pool=pool)
    return mean_of_steps(maps, state["module.fc.weight"], state["module.fc.bias"])


def study_inception(state: State, frames: Tensor) -> Tensor:
    """The Study's I3D of Inception-v1 with temporal strides, as its table of layers says."""
    x = frames.transpose(0, 1)[None]

    def unit(x: Tensor, name: str, stride: Sequence[int] = (1, 1, 1)) -> Tensor:
        return norm(conv(x, state[f"module.{name}.conv.weight"], stride), state, f"module.{name}.bn", 1e-3).relu()

    x = unit(x, "conv1", (1, 2, 2))
    x = F.max_pool3d(x, (1, 3, 3), (1, 2, 2), (0, 1, 1))
    x = unit(unit(x, "conv2"), "conv3")
    for stage, blocks in {3: "ab", 4: "abcde", 5: "ab"}.items():
        x = F.max_pool3d(x, 3, 2, 1)
        for block in blocks:
            name = f"inception{stage}{block}"
            pooled = F.max_pool3d(x, 3, 1, 1)
            branches = [
                unit(x, f"{name}.branch1"),
                unit(unit(x, f"{name}.branch2.0"), f"{name}.branch2.1"),
                unit(unit(x, f"{name}.branch3.0"), f"{name}.branch3.1"),
                unit(pooled, f"{name}.branch4.1"),
            ]
            x = torch.cat(branches, dim=1)
    return mean_of_steps(x, state["module.fc.weight"], state["module.fc.bias"])


def hara(state: State, frames: Tensor, *, factored: bool, deep: bool = False) -> Tensor:
    """3D-ResNets of depth 18 (or of Wide ResNet-50): R(2+1)D, or with shortcuts without parameters."""

    def unit(x: Tensor, name: str, stride: int) -> Tensor:
        t = 1 if name == "conv1" else stride
        if name.endswith("downsample"):
            return norm(conv(x, state[f"module.{name}.0.weight"], stride), state, f"module.{name}.1")
        bn = f"module.{name.replace('conv', 'bn')}"
        if not factored:
            return norm(conv(x, state[f"module.{name}.weight"], (t, stride, stride)), state, bn)
        x = norm(conv(x, state[f"module.{name}_s.weight"], (1, stride, stride)), state, f"{bn}_s").relu()
        return norm(conv(x, state[f"module.{name}_t.weight"], (t, 1, 1)), state, f"{bn}_t")

    def subsampled(x: Tensor, name: str, stride: int, channels: int) -> Tensor:
        kept = x[:, :, ::stride, ::stride, ::stride]
        return torch.cat([kept, kept.new_zeros(1, channels - kept.shape[1], *kept.shape[2:])], dim=1)

    projects = any("downsample" in name for name in state)
    maps = resnet(
        frames.transpose(0, 1)[None], unit, (3, 4, 6, 3) if deep else (2, 2, 2, 2), deep=deep,
        pool=lambda x: F.max_pool3d(x, 3, 2, 1), shortcut=None if projects else subsampled,
    )  # fmt: skip
    features = maps[0].mean(dim=(1, 2, 3))
    return state["module.fc.weight"] @ features + state["module.fc.bias"]
