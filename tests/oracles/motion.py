"""TDN and MSN as their equations read: one clip, step after step, tap after tap, from a state dict of weights.

The networks in backbones/ are tested against these. Batch norm uses its stored statistics.

Letters: S steps of a clip, F = 5 frames of a step, C channels, h w cells of a map, K taps along a side of a kernel.
Maps of a step are (C, h, w).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

State = dict[str, Tensor]
Steps = list[Tensor]
Link = Callable[[Steps, State], Steps]


def part(state: State, name: str) -> State:
    """The weights of a part, by their names in it."""
    return {key.removeprefix(f"{name}."): value for key, value in state.items() if key.startswith(f"{name}.")}


def conv(x: Tensor, state: State, stride: int = 1, groups: int = 1) -> Tensor:
    weight = state["weight"]
    return F.conv2d(x[None], weight, state.get("bias"), stride, weight.shape[-1] // 2, groups=groups)[0]


def norm(x: Tensor, state: State) -> Tensor:
    mean, var, weight, bias = (state[name] for name in ("running_mean", "running_var", "weight", "bias"))
    shape = (-1, *[1] * (x.ndim - 1))
    return (x - mean.view(shape)) / (var.view(shape) + 1e-5).sqrt() * weight.view(shape) + bias.view(shape)


def conv_norm(x: Tensor, state: State, first: int = 0, stride: int = 1) -> Tensor:
    """Layers `first` and the one behind it of a sequence: a convolution and its batch norm."""
    return norm(conv(x, part(state, str(first)), stride), part(state, str(first + 1)))


def max_pool(x: Tensor, stride: int = 2) -> Tensor:
    return F.max_pool2d(x[None], 3, stride, 1)[0]


def half(x: Tensor) -> Tensor:
    """The mean of every 2x2 cells; a last odd row or column is left out."""
    height, width = x.shape[-2] // 2, x.shape[-1] // 2
    cells = [x[:, i : 2 * height : 2, j : 2 * width : 2] for i in (0, 1) for j in (0, 1)]
    return sum(cells) / 4


def enlarged(x: Tensor, like: Tensor) -> Tensor:
    """Nearest neighbours: cell i of n is cell floor(i * m / n) of m."""
    (small_h, small_w), (h, w) = x.shape[-2:], like.shape[-2:]
    rows, columns = [i * small_h // h for i in range(h)], [j * small_w // w for j in range(w)]
    return x[:, rows][:, :, columns]


# ---------------------------------------------------------------------------------------------------------------------
# TDN's modules


def short_term(frames: Tensor, state: State) -> Tensor:
    """S-TDM: frames (F, 3, H, W) -> maps (64, H/8, W/8)."""
    differences = [frames[k + 1] - frames[k] for k in range(4)]
    z = half(torch.cat(differences))
    return max_pool(norm(conv(z, part(state, "conv1"), stride=2), part(state, "bn1")).relu())


def long_term(steps: Steps, state: State) -> Steps:
    """L-TDM."""
    p = [conv_norm(x, part(state, "squeeze")) for x in steps]
    q = [conv(x, part(state, "smooth"), groups=len(x)) for x in p]

    def gate(d: Tensor) -> Tensor:
        a = enlarged(conv_norm(half(d), part(state, "coarse"), first=1), d)
        k = conv_norm(d, part(state, "fine"))
        u = (d + a + k) / 3
        return torch.sigmoid(conv_norm(u, part(state, "expand"))) - 0.5

    out = []
    for t, x in enumerate(steps):
        forward = q[t + 1] - p[t] if t + 1 < len(steps) else torch.zeros_like(p[t])
        backward = q[t - 1] - p[t] if t > 0 else torch.zeros_like(p[t])
        out.append(x + x * (gate(forward) + gate(backward)) / 2)
    return out


def learned_shift(steps: Steps, state: State) -> Steps:
    """y_t = w0 x_{t-1} + w1 x_t + w2 x_{t+1}, for each channel."""
    w0, w1, w2 = state["mix.weight"][:, 0, :, 0].T[:, :, None, None]
    zero = torch.zeros_like(steps[0])
    padded = [zero, *steps, zero]
    return [w0 * padded[t] + w1 * padded[t + 1] + w2 * padded[t + 2] for t in range(len(steps))]


# ---------------------------------------------------------------------------------------------------------------------
# MSN's modules


def value_at(x: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """The channels (C,) of maps (C, h, w) at a place between cells, bilinearly; zeros lie around them."""
    value = torch.zeros(len(x), dtype=x.dtype)
    top, left = int(row.detach().floor()), int(column.detach().floor())
    for i in (top, top + 1):
        for j in (left, left + 1):
            if 0 <= i < x.shape[1] and 0 <= j < x.shape[2]:
                down = row - top if i > top else 1 - (row - top)
                right = column - left if j > left else 1 - (column - left)
                value = value + x[:, i, j] * down * right
    return value


def deform_conv(x: Tensor, offsets: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Deformable convolution: maps (C, h, w), offsets (K*K*2, h, w) -> (C', h, w)."""
    taps, (h, w) = weight.shape[-1], x.shape[-2:]
    rows = []
    for i in range(h):
        cells = []
        for j in range(w):
            total = bias
            for a in range(taps):
                for b in range(taps):
                    down, right = offsets[2 * (a * taps + b) : 2 * (a * taps + b) + 2, i, j]
                    total = total + weight[:, :, a, b] @ value_at(
                        x, i + a - taps // 2 + down, j + b - taps // 2 + right
                    )
            cells.append(total)
        rows.append(torch.stack(cells, dim=-1))
    return torch.stack(rows, dim=-2)


def pyramid(frames: Tensor, state: State) -> Tensor:
    """STP-ME: frames (F, 3, H, W) -> maps (64, H/4, W/4). Convolutions of single frames may have biases."""
    i1, i2, i3, i4, i5 = frames
    one = torch.cat([i2 - i1, i3 - i2, i4 - i3, i5 - i4])
    p1 = norm(conv(max_pool(one), part(state, "over_one"), stride=2), part(state, "norm_one")).relu()
    e1, e3, e5 = (conv(x, part(state, "frame"), stride=2) for x in (i1, i3, i5))
    two = torch.cat([e5 - e3, e3 - e1])
    p2 = norm(conv(max_pool(two), part(state, "over_two")), part(state, "norm_two")).relu()
    g1, g5 = (conv(x, part(state, "over_four")) for x in (e1, e5))
    p3 = max_pool(g5 - g1)
    return p1 + p2 + p3


def variable_scale(steps: Steps, state: State) -> Steps:
    """VS-ME."""
    z = [conv_norm(x, part(state, "squeeze")) for x in steps]
    summary = part(state, "summary")
    volume = F.conv3d(torch.stack(z, dim=1)[None], summary["0.weight"], padding=1)[0]
    motion_of_last = norm(volume, part(summary, "1")).mean(dim=1)

    def moved(x: Tensor, name: str) -> Tensor:
        kernel = part(state, name)
        return deform_conv(x, conv(x, part(kernel, "offset")), kernel["weight"], kernel["bias"])

    out = []
    for t, x in enumerate(steps):
        if t + 1 < len(steps):
            a = moved(z[t + 1], "small") - z[t]
            b = moved(z[t + 1], "large") - z[t]
            c = conv_norm(max_pool(z[t + 1], stride=1), part(state, "still"), first=1) - z[t]
            motion = (a + b + c).abs()
        else:
            motion = motion_of_last
        pooled = motion.mean(dim=(1, 2), keepdim=True)
        w = torch.sigmoid(conv_norm(pooled, part(state, "expand"))) - 0.5
        out.append(x + x * w)
    return out


# ---------------------------------------------------------------------------------------------------------------------
# Networks


def bottleneck(steps: Steps, state: State, stride: int, link: Link | None) -> Steps:
    out = [norm(conv(x, part(state, "conv1")), part(state, "bn1")).relu() for x in steps]
    if link is not None:
        out = link(out, part(state, "middle.difference"))
        out = learned_shift(out, part(state, "middle.shift"))
    out = [norm(conv(x, part(state, "conv2"), stride), part(state, "bn2")).relu() for x in out]
    out = [norm(conv(x, part(state, "conv3")), part(state, "bn3")) for x in out]
    if "downsample.0.weight" in state:
        steps = [conv_norm(x, part(state, "downsample"), stride=stride) for x in steps]
    return [(x + y).relu() for x, y in zip(out, steps, strict=True)]


def stage(steps: Steps, state: State, stride: int, link: Link | None = None) -> Steps:
    blocks = 1 + max(int(name.split(".")[0]) for name in state)
    for number in range(blocks):
        steps = bottleneck(steps, part(state, str(number)), stride if number == 0 else 1, link)
    return steps


def network(
    clip: Tensor,
    state: State,
    short: Callable[[Tensor, State], Tensor],
    link: Link,
    before: Sequence[float],
    after: Sequence[float],
) -> Tensor:
    """Frames (S*5, 3, H, W) -> features (S, D). before, after: weights of frames and differences around layer1."""
    frames = clip.unflatten(0, (-1, 5))
    stem = [norm(conv(step[2], part(state, "conv1"), stride=2), part(state, "bn1")) for step in frames]
    x0 = [max_pool(x.relu()) for x in stem]
    s0 = [short(step, part(state, "short")) for step in frames]
    x0 = [before[0] * x + before[1] * enlarged(s, x) for x, s in zip(x0, s0, strict=True)]
    x1, s1 = stage(x0, part(state, "layer1"), 1), stage(s0, part(state, "short.layer1"), 1)
    steps = [after[0] * x + after[1] * enlarged(s, x) for x, s in zip(x1, s1, strict=True)]
    for name in ("layer2", "layer3", "layer4"):
        steps = stage(steps, part(state, name), 2, link)
    return torch.stack([x.mean(dim=(1, 2)) for x in steps])


def tdn(clip: Tensor, state: State, weights: Sequence[float]) -> Tensor:
    return network(clip, state, short_term, long_term, weights, weights)


def msn(clip: Tensor, state: State, before: Sequence[float]) -> Tensor:
    return network(clip, state, pyramid, variable_scale, before, (0.75, 0.25))
