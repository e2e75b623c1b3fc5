"""D2ST-Adapter: adapters that look along space and along time in a pretrained image network (ICCV 2025, arXiv 2312.01431).

Behind every block of CLIP's ViT, or every stage of a ResNet, a bottleneck looks along space and along time: each token of a
clip attends to a few points of the clip, which move to where it matters. Only what is added is trained, and of CLIP the class
token and the last norm. It starts as the image network. Frames of a clip see each other, so that S = T.

Letters: N clips, T frames, L tokens of a frame, P points, D width, C width of the bottleneck, G groups of channels, h w cells
of a map, z y x points along time, height and width.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from backbones.backbone import Added, FrameBackbone, FrameNet, Temporal
from backbones.layers3d import Conv3d
from backbones.resnet2d import resnet
from backbones.timm_models import ImageModel, timm_model
from backbones.weight_files import Activation
from utils import UserError

FRAMES = 4  # that the windows of the spatial path see at a time

Volume = tuple[int, int, int]
"""Frames, height and width."""


class Window(NamedTuple):
    """What decides where a point moves: a part of the clip, and the step to that of the next point."""

    size: Volume
    step: Volume

    def points(self, cells: Volume) -> list[int]:
        return [(whole - part) // step + 1 for whole, part, step in zip(cells, self.size, self.step, strict=True)]


def apart(frames: int, height: int, width: int) -> Window:
    """A window that begins where the one before it ends."""
    return Window((frames, height, width), (frames, height, width))


# Of the spatial and of the temporal path. The first sees few points in time and many in a frame, the second all frames.
OF_TRANSFORMER = (Window((FRAMES, 5, 5), (FRAMES, 3, 3)), apart(1, 7, 7))
OF_STAGES = (
    (apart(FRAMES, 7, 7), apart(1, 14, 14)),
    (apart(FRAMES, 7, 7), apart(1, 14, 14)),
    (Window((FRAMES, 5, 5), (FRAMES, 3, 3)), apart(1, 7, 7)),
    (Window((FRAMES, 4, 4), (FRAMES, 3, 3)), apart(1, 7, 7)),
)


class DeformableAttention(nn.Module):
    """All tokens of a clip look at a few points of it, which its patches move; every group of channels has its own.

    The grid of points is that of cells with an area, and is read as one of cells without (align_corners), as in the authors'
    code: at rest, points stand a little closer to the middle than the windows they belong to.
    """

    def __init__(self, width: int, groups: int, cells: Volume, window: Window) -> None:
        super().__init__()
        self.groups, self.cells = groups, cells
        own = width // groups
        self.q_linear, self.k_linear, self.v_linear, self.out = (nn.Linear(width, width) for _ in range(4))
        self.gather = Conv3d(own, own, window.size, window.step, groups=own)
        self.norm = nn.LayerNorm(own)
        self.offset = nn.Linear(own, 3, bias=False)
        points = window.points(cells)
        axes = [(torch.arange(count) + 0.5) / count * 2 - 1 for count in points]
        self.reference: Tensor
        self.reach: Tensor
        self.register_buffer("reference", torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1), persistent=False)
        self.register_buffer("reach", torch.tensor([min(1.0, 2 / count) for count in points]), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """(N, T, L, C) -> (N, T, L, C). The last h w tokens of a frame are its patches."""
        query = self.q_linear(tokens)
        points = self.sample(tokens, self.places(query))
        heads = [
            rearrange(query, "n t l (g c) -> n g (t l) c", g=self.groups),
            *(
                rearrange(linear(points), "n p (g c) -> n g p c", g=self.groups)
                for linear in (self.k_linear, self.v_linear)
            ),
        ]
        seen = F.scaled_dot_product_attention(*heads)
        return self.out(rearrange(seen, "n g (t l) c -> n t l (g c)", t=tokens.shape[1]))

    def volumes(self, tokens: Tensor) -> Tensor:
        """The patches of each group of channels, (N, T, L, C) -> (N G, c, T, h, w)."""
        _, h, w = self.cells
        return rearrange(tokens[:, :, -h * w :], "n t (h w) (g c) -> (n g) c t h w", h=h, g=self.groups)

    def places(self, query: Tensor) -> Tensor:
        """Where each point has moved, as (time, height, width) from -1 to 1: queries (N, T, L, C) -> (N G, z, y, x, 3)."""
        around = rearrange(self.gather(self.volumes(query)), "n c z y x -> n z y x c")
        moved = torch.tanh(self.offset(F.gelu(self.norm(around))))
        return self.reference + self.reach * moved.to(self.reach.dtype)  # also under autocast as exact as weights are

    def sample(self, tokens: Tensor, places: Tensor) -> Tensor:
        """What is at these places, between cells in proportion and beyond the clip nothing: (N, T, L, C) -> (N, P, C)."""
        volumes = self.volumes(tokens).to(places.dtype)
        found = F.grid_sample(volumes, places.flip(-1), align_corners=True)  # which wants width, height, time
        return rearrange(found, "(n g) c z y x -> n (z y x) (g c)", g=self.groups)


class Adapter(Added):
    """A bottleneck around two paths of deformable attention, along space and along time; it starts as the identity.

    activated: GELU follows the maps into and out of the bottleneck as well.
    """

    def __init__(
        self, width: int, groups: int, cells: Volume, windows: tuple[Window, Window], *, activated: bool
    ) -> None:
        super().__init__()
        inner = width // 4
        self.cells = cells
        self.down, self.up = nn.Linear(width, inner), nn.Linear(inner, width)
        self.local = Conv3d(inner, inner, 3, padding=1, groups=inner)
        self.norms = nn.ModuleList(nn.LayerNorm(inner) for _ in windows)
        self.paths = nn.ModuleList(DeformableAttention(inner, groups, cells, window) for window in windows)
        self.activation = nn.GELU() if activated else nn.Identity()
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def adapted(self, tokens: Tensor) -> Tensor:
        """Of N clips (N, T, L, D) -> (N, T, L, D). The last h w tokens of a frame are its patches."""
        inner = self.with_neighbours(self.activation(self.down(tokens)))
        spatial, temporal = (inner + path(norm(inner)) for norm, path in zip(self.norms, self.paths, strict=True))
        return tokens + self.activation(self.up(F.gelu((spatial + temporal) / 2)))

    def with_neighbours(self, tokens: Tensor) -> Tensor:
        """Each patch, plus a mixture of it and the 26 around it, in each channel by itself."""
        _, h, w = self.cells
        others, patches = tokens.split([tokens.shape[2] - h * w, h * w], dim=2)
        around = self.local(rearrange(patches, "n t (h w) c -> n c t h w", h=h))
        return torch.cat([others, patches + rearrange(around, "n c t h w -> n t (h w) c")], dim=2)


def check_frames(seq_len: int, made_for: int | None = None) -> int:
    """`seq_len`, when it is a length that adapters take, or the one they are made for. Raises UserError otherwise."""
    if made_for not in (None, seq_len):
        raise UserError(
            f"D2ST-Adapter was made for clips of {made_for} frames, found {seq_len}: give --seq_len {made_for}"
        )
    if seq_len % FRAMES:
        raise UserError(
            f"D2ST-Adapter looks at {FRAMES} frames at a time and --seq_len is {seq_len}: expected a multiple of {FRAMES}"
        )
    return seq_len


# ---------------------------------------------------------------------------------------------------------------------
# In a transformer


class TemporalEmbedding(Added):
    """What all tokens of a frame are told of its place in the clip; nothing at the start."""

    def __init__(self, frames: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.zeros(frames, 1, width))

    def forward(self, tokens: Tensor) -> Tensor:
        """(N, T, L, D) -> (N, T, L, D)."""
        return tokens + self.embedding


class TokenAdapter(Adapter):
    """Behind a block of a transformer, whose first token of a frame stands for the frame."""

    def forward(self, tokens: Tensor, clips: int) -> Tensor:
        """Of N clips, (N T, L, D) -> (N T, L, D)."""
        return self.adapted(tokens.unflatten(0, (clips, -1))).flatten(0, 1)


class D2STTransformer(ImageModel):
    """A transformer of timm that sees clips by adapters between its blocks: its class token of every frame."""

    def __init__(self, net: Any, *, seq_len: int, **image: Any) -> None:
        """image: see `ImageModel`."""
        super().__init__(net, seq_len=check_frames(seq_len), **{**image, "fixed": True})
        width, cells = self.feature_dim, (seq_len, *net.patch_embed.grid_size)
        net.temporal = TemporalEmbedding(seq_len, width)
        net.adapters = nn.ModuleList(TokenAdapter(width, 4, cells, OF_TRANSFORMER, activated=True) for _ in net.blocks)
        net.requires_grad_(False)
        for trained in (net.temporal, net.adapters, net.norm):
            trained.requires_grad_(True)
        net.cls_token.requires_grad_(True)

    def num_steps(self, seq_len: int) -> int:
        return check_frames(seq_len, self.seq_len)

    def tokens_of(self, clips: Tensor) -> Tensor:
        net, count = self.net, len(clips)
        self.num_steps(clips.shape[1])
        embedded = net._pos_embed(net.patch_embed(self.frames_of(clips)))
        tokens = net.norm_pre(net.temporal(embedded.unflatten(0, (count, -1))).flatten(0, 1))
        for block, adapter in zip(net.blocks, net.adapters, strict=True):
            tokens = adapter(block(tokens), count)
        normed: Tensor = net.norm(tokens)
        return normed


def clip_vit(name: str, /, *, seq_len: int, activation: Activation = "") -> D2STTransformer:
    """CLIP's image tower `name` of timm with adapters, for clips of `seq_len` frames, a multiple of 4.

    activation: quick_gelu or gelu in its blocks; unset: as `name` says.
    """
    backbone = timm_model(name, None, D2STTransformer, seq_len=seq_len, activation=activation)
    assert isinstance(backbone, D2STTransformer)
    return backbone


# ---------------------------------------------------------------------------------------------------------------------
# In a ResNet


class MapAdapter(Adapter, Temporal):
    """Behind a stage of a ResNet, whose cells are the tokens of a frame."""

    def forward(self, maps: Tensor, clips: int) -> Tensor:
        tokens = rearrange(maps, "(n t) d h w -> n t (h w) d", n=clips)
        return rearrange(self.adapted(tokens), "n t (h w) d -> (n t) d h w", h=maps.shape[-2])


class D2STResNet(FrameBackbone):
    """A ResNet that sees clips by adapters between its stages. Its batch norms always have their stored statistics."""

    def num_steps(self, seq_len: int) -> int:
        return check_frames(seq_len, self.seq_len)

    def feature_maps(self, clips: Tensor) -> Tensor:
        self.num_steps(clips.shape[1])
        size, (height, width) = self.input_spec.size, clips.shape[-2:]
        if (height, width) != (size, size):
            raise UserError(
                f"D2ST-Adapter was made for frames of {size}x{size} pixels, found {height}x{width}: give --img_size {size}"
            )
        return super().feature_maps(clips)

    def train(self, mode: bool = True) -> D2STResNet:
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self


def resnet50(*, seq_len: int) -> D2STResNet:
    """ResNet-50 with adapters, for clips of `seq_len` frames, a multiple of 4."""
    plain = resnet(50, seq_len=check_frames(seq_len))
    net, size = plain.net, plain.input_spec.size
    assert isinstance(net, FrameNet)
    net.requires_grad_(False)
    for number, windows in enumerate(OF_STAGES, start=1):
        width, side = 128 * 2**number, size // 2 ** (number + 1)
        adapter = MapAdapter(width, width // 256, (seq_len, side, side), windows, activated=False)
        net.insert_after(f"layer{number}", f"adapter{number}", adapter)
    return D2STResNet(net, feature_dim=plain.feature_dim, input_spec=plain.input_spec, seq_len=seq_len)
