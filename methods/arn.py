"""ARN, action relation network: second-order pooling of 3D feature maps, compared by a relation network.

"Few-shot action recognition with permutation-invariant attention" (Zhang, Zhang, Qi, Li, Torr, Koniusz, ECCV 2020).

Letters: B episodes, K way, N support videos, J shots of a class, Q queries, V videos of an episode (N + Q), L any number of
clips, T frames, S feature steps, D feature width, C channels, h w cells of a feature map, P pieces of a jigsaw.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable
from itertools import permutations
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

from backbones.layers3d import Conv3d
from model import CNN_FSHead, group_by_class, mean_over_shots
from utils import UserError

CHANNELS = 64  # of the maps that are pooled: the relation network was made for descriptors of 64 x 64
VARIANTS = ("sosn", "sa", "ta", "sa_ta")


# ---------------------------------------------------------------------------------------------------------------------
# Attention


class Attention(nn.Module):
    """How much each place (`along` space) or each step (`along` time) of a clip counts, between 0 and 1 (section 3.3).

    Two 3x3x3 convolutions, each followed by a pool over the axes that go; the second pool takes all that is left of them.
    The authors' pools are of a fixed size, and fit maps of 4 or 5 steps and of 32 x 32 cells: those give the same.
    """

    def __init__(self, along: Literal["space", "time"], channels: int = CHANNELS, width: int = 16) -> None:
        super().__init__()
        self.first_pool = (2, 1, 1) if along == "space" else (1, 4, 4)
        self.pooled = (2,) if along == "space" else (3, 4)
        self.conv1 = Conv3d(channels, width, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm3d(width)
        self.conv2 = Conv3d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm3d(width)
        self.gate = nn.Conv3d(width, 1, 1)

    def forward(self, maps: Tensor) -> Tensor:
        """(L, C, S, h, w) -> (L, 1, 1, h, w) along space, (L, 1, S, 1, 1) along time."""
        hidden = F.relu(pool_up_to(self.first_pool, self.norm1(self.conv1(maps))))
        hidden = F.relu(self.norm2(self.conv2(hidden)).amax(dim=self.pooled, keepdim=True))
        return self.gate(hidden).sigmoid()


def pool_up_to(kernel: tuple[int, int, int], maps: Tensor) -> Tensor:
    """Max pooling of (L, C, S, h, w) by a kernel, or by all that there is along axes that are shorter."""
    return F.max_pool3d(maps, [min(most, size) for most, size in zip(kernel, maps.shape[2:], strict=True)])


class Attended(NamedTuple):
    """Maps (L, C, S, h, w) with attention on them, and it along space (L, 1, 1, h, w) and time (L, 1, S, 1, 1), if any."""

    maps: Tensor
    spatial: Tensor | None
    temporal: Tensor | None


class AttentionUnits(nn.Module):
    """Maps times (floor + attention), along space, time or both.

    floors: of the attention along space and time; they keep what attention does not look at. serial: attention along time
    sees what that along space has made of the maps, as the paper draws it; otherwise both see the maps, as it writes.
    """

    def __init__(self, variant: str, *, floors: tuple[float, float], serial: bool) -> None:
        super().__init__()
        self.spatial = Attention("space") if variant in ("sa", "sa_ta") else None
        self.temporal = Attention("time") if variant in ("ta", "sa_ta") else None
        self.floors = floors
        self.serial = serial

    def forward(self, maps: Tensor) -> Attended:
        spatial = temporal = None
        attended = maps
        if self.spatial is not None:
            spatial = self.spatial(maps)
            attended = (self.floors[0] + spatial) * attended
        if self.temporal is not None:
            temporal = self.temporal(attended if self.serial else maps)
            attended = (self.floors[1] + temporal) * attended
        return Attended(attended, spatial, temporal)


# ---------------------------------------------------------------------------------------------------------------------
# Pooling and comparing


def second_order(maps: Tensor) -> Tensor:
    """How often channels are active together, anywhere in a clip: (L, C, S, h, w) -> (L, C, C), symmetric, of trace 1.

    It forgets places and steps, so that clips of any length give the same size. A clip of nothing but zeros gives zeros.
    """
    cells = maps.flatten(2)
    products = cells @ cells.mT
    trace = products.diagonal(dim1=-2, dim2=-1).sum(dim=-1)
    return products / trace.clamp_min(torch.finfo(products.dtype).tiny ** 0.5)[:, None, None]


def power_normalised(descriptors: Tensor, sigma: float) -> Tensor:
    """Whether channels were active together rather than how often: 2 sigmoid(sigma x) - 1, in [0, 1) for x >= 0 (eq. 5)."""
    return torch.tanh(sigma / 2 * descriptors)


class RelationNet(nn.Module):
    """A score for every pair of a class and a query, from their descriptors as a picture of two channels.

    The 1,024 numbers that eight units score are divided by 32, their root, and the weights start as many times as large as
    the authors': the same network, whose units a step of Adam moves 32 times less. In theirs a few steps can silence all
    eight, after which nothing is learnt any more.
    """

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, width, 3, padding=1, bias=False)
        self.first_norm = nn.BatchNorm2d(width)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
            for _ in range(3)
        )
        pooled = width * (CHANNELS // 16) ** 2
        self.root = pooled**0.5
        units, score = nn.Linear(pooled, 8), nn.Linear(8, 1)
        self.score = nn.Sequential(units, nn.ReLU(), score)
        for layer, std in ((units, 0.01 * self.root), (score, 0.01)):
            nn.init.normal_(layer.weight, std=std)
            nn.init.ones_(layer.bias)

    def forward(self, classes: Tensor, queries: Tensor) -> Tensor:
        """Descriptors of classes (B, K, C, C) and queries (B, Q, C, C) -> logits (B, Q, K)."""
        batch, way, asked = len(classes), classes.shape[1], queries.shape[1]
        # The first convolution of a pair is that of the class on one channel plus that of the query on the other.
        of_class, of_query = self.first.weight.split(1, dim=1)
        class_maps = F.conv2d(rearrange(classes, "b k c e -> (b k) 1 c e"), of_class, padding=1)
        query_maps = F.conv2d(rearrange(queries, "b q c e -> (b q) 1 c e"), of_query, padding=1)
        pairs = rearrange(query_maps, "(b q) d c e -> b q 1 d c e", b=batch) + rearrange(
            class_maps, "(b k) d c e -> b 1 k d c e", b=batch
        )
        hidden = F.relu(F.max_pool2d(self.first_norm(pairs.flatten(0, 2)), 2))
        for block in self.blocks:
            hidden = F.max_pool2d(hidden + block(hidden), 2)
        return self.score(hidden.flatten(1) / self.root).reshape(batch, asked, way)


# ---------------------------------------------------------------------------------------------------------------------
# Self-supervision


class Augmentation(nn.Module):
    """A fixed list of ways to change a clip, each with a number, 0 leaving it as it is.

    Attributes: `number` of ways. `seen_by` says whose attention changes in the same way, that along space or time.
    """

    number: int
    seen_by: Literal["spatial", "temporal"]

    def forward(self, values: Tensor, labels: Tensor) -> Tensor:
        """Clips (L, T, 3, H, W), or attention on them (L, S) or (L, h, w), each changed in the way of its label (L,)."""
        raise NotImplementedError


class Jigsaw(Augmentation):
    """Pieces in another order. The orders are kept with the weights, since a network learns their numbers."""

    def __init__(self, pieces: int, number: int) -> None:
        super().__init__()
        self.orders: Tensor
        self.register_buffer("orders", torch.tensor(jigsaw_orders(pieces, number)))  # (number, P)
        self.number, self.pieces = self.orders.shape

    def ordered(self, pieces: Tensor, labels: Tensor) -> Tensor:
        """(L, P, ...) with the pieces in the order of each label."""
        return pieces[torch.arange(len(pieces), device=pieces.device)[:, None], self.orders[labels]]


class TemporalJigsaw(Jigsaw):
    """Blocks of neighbouring frames, or of steps, in another order."""

    seen_by = "temporal"

    def forward(self, values: Tensor, labels: Tensor) -> Tensor:
        return self.ordered(values.unflatten(1, (self.pieces, -1)), labels).flatten(1, 2)


class SpatialJigsaw(Jigsaw):
    """The quarters of every frame, or of a map, in another order."""

    seen_by = "spatial"

    def __init__(self, number: int) -> None:
        super().__init__(4, number)

    def forward(self, values: Tensor, labels: Tensor) -> Tensor:
        height, width = values.shape[-2:]
        if height % 2 or width % 2:
            raise UserError(
                f"a spatial jigsaw cuts {height} x {width} cells into quarters: expected even numbers of pixels and of cells "
                "of the backbone's maps, give another --img_size"
            )
        quarters = rearrange(values, "l ... (y h) (x w) -> l (y x) ... h w", y=2, x=2)
        return rearrange(self.ordered(quarters, labels), "l (y x) ... h w -> l ... (y h) (x w)", y=2, x=2)


class Rotation(Augmentation):
    """Frames, or maps, turned by 0, 90, 180 or 270 degrees, counter-clockwise."""

    seen_by = "spatial"
    number = 4

    def forward(self, values: Tensor, labels: Tensor) -> Tensor:
        turned = torch.stack([torch.rot90(values, turns, dims=(-2, -1)) for turns in range(self.number)], dim=1)
        return turned[torch.arange(len(values), device=values.device), labels]


def jigsaw_orders(pieces: int, number: int) -> list[tuple[int, ...]]:
    """Orders of `pieces`, at most `number`, as unlike each other as they come; the first is the one they have.

    Each is the one that differs in most places from the nearest of those before it. Of more than 6 pieces not all orders
    are looked at, but 1,000 that are always the same.
    """
    own = tuple(range(pieces))
    if pieces <= 6:
        candidates = list(permutations(own))
    else:
        draw = random.Random(0)
        candidates = [tuple(draw.sample(own, pieces)) for _ in range(1000)]
    chosen = [own]
    nearest = dict.fromkeys(candidates, pieces)
    while len(chosen) < number:
        for order in candidates:
            nearest[order] = min(nearest[order], sum(a != b for a, b in zip(order, chosen[-1], strict=True)))
        best = max(candidates, key=nearest.__getitem__)
        if nearest[best] == 0:
            break  # there are no others
        chosen.append(best)
    return chosen


class Discriminator(nn.Module):
    """Guesses how clips were changed from their maps, before attention and pooling: (L, C, S, h, w) -> (L, ways)."""

    def __init__(self, ways: int, channels: int = CHANNELS) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(Conv3d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm3d(channels))
            for _ in range(2)
        )
        self.score = nn.Sequential(nn.Linear(channels * 8 * 8, 1024), nn.ReLU(), nn.Linear(1024, ways))

    def forward(self, maps: Tensor) -> Tensor:
        for block in self.blocks:
            maps = F.relu(pool_up_to((2, 2, 2), block(maps)))
        return self.score(F.adaptive_max_pool3d(maps, (1, 8, 8)).flatten(1))


# ---------------------------------------------------------------------------------------------------------------------
# Losses of scores, each (..., Q, K) logits and which class is a query's own, bool of that shape -> (..., Q)


def squared_error(logits: Tensor, own: Tensor) -> Tensor:
    """Of the scores between 0 and 1, mean over the classes. A guess of 1/K everywhere has (K - 1) / K^2, 0.16 in 5 ways."""
    return (logits.sigmoid() - own.to(logits.dtype)).square().mean(dim=-1)


def balanced_squared_error(logits: Tensor, own: Tensor) -> Tensor:
    """The same with the own class counting as much as all others together."""
    errors = (logits.sigmoid() - own.to(logits.dtype)).square()
    weights = torch.where(own, max(1, own.shape[-1] - 1), 1)
    return (weights * errors).sum(dim=-1) / weights.sum(dim=-1)


def binary_cross_entropy(logits: Tensor, own: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, own.to(logits.dtype), reduction="none").mean(dim=-1)


def cross_entropy(logits: Tensor, own: Tensor) -> Tensor:
    """Of the softmax over classes."""
    return -logits.log_softmax(dim=-1).masked_fill(~own, 0.0).sum(dim=-1)


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mse": squared_error,
    "balanced_mse": balanced_squared_error,
    "bce": binary_cross_entropy,
    "cross_entropy": cross_entropy,
}


# ---------------------------------------------------------------------------------------------------------------------
# The method


class Compared(NamedTuple):
    """Logits (B, Q, K), and the maps of all videos (B * V, C, S, h, w) before and with attention."""

    logits: Tensor
    maps: Tensor
    attended: Attended


class CNN_ARN(CNN_FSHead):
    """ARN: which channels of a clip are active together, wherever and whenever, compared by a relation network.

    "Few-shot action recognition with permutation-invariant attention" (Zhang, Zhang, Qi, Li, Torr, Koniusz, ECCV 2020).
    The paper's encoder is `--backbone conv4_3d`, trained from scratch; maps of any other width are first reduced to 64
    channels. `--arn_variant sosn` is the paper's baseline without attention. With `--arn_selfsup` every training clip is
    also shown in a changed form: a discriminator guesses how it was changed, and with `--arn_gamma` attention has to change
    in the same way (attention by alignment, section 3.5). Neither takes part in a test. Batch norms of the head are trained
    whatever `--bn` says.
    """

    reads = "maps"
    works_on_features = True  # what `forward` does beside `classify` happens in training only
    takes_episodes = True
    condenses = True

    def __init__(self, args: argparse.Namespace) -> None:
        super().__init__(args)
        self.reduce: nn.Module = nn.Identity()
        if self.backbone.feature_dim != CHANNELS:
            convolution = nn.Conv3d(self.backbone.feature_dim, CHANNELS, 1, bias=False)
            self.reduce = nn.Sequential(convolution, nn.BatchNorm3d(CHANNELS), nn.ReLU())
        self.attention = AttentionUnits(
            args.arn_variant,
            floors=(args.arn_floor_space, args.arn_floor_time),
            serial=args.arn_attention == "serial",
        )
        self.relation = RelationNet()
        self.sigma = args.arn_sigma
        self.pair_loss = LOSSES[args.arn_loss]
        self.augmentation = self.build_augmentation(args)
        self.discriminator = Discriminator(self.augmentation.number) if self.augmentation is not None else None
        self.beta, self.gamma, self.tolerance = args.arn_beta, args.arn_gamma, args.arn_lambda
        self.check_alignment(args)

    @staticmethod
    def add_arguments(group: Any) -> None:
        group.add_argument(
            "--arn_variant",
            choices=VARIANTS,
            default="sa_ta",
            help="attention along space (sa), time (ta) or both; sosn has none",
        )
        group.add_argument(
            "--arn_attention",
            choices=["parallel", "serial"],
            default="parallel",
            help="both kinds of attention see the maps, or that along time what that along space made of them",
        )
        group.add_argument(
            "--arn_floor_space",
            type=float,
            least=0,
            default=1.0,
            help="what maps are kept by where spatial attention is 0",
        )
        group.add_argument(
            "--arn_floor_time",
            type=float,
            least=0,
            default=1.0,
            help="what maps are kept by where temporal attention is 0",
        )
        group.add_argument(
            "--arn_sigma",
            type=float,
            above=0,
            default=100.0,
            help="slope of power normalisation; higher: weak co-occurrences count as much as strong ones",
        )
        group.add_argument(
            "--arn_loss",
            choices=LOSSES,
            default="mse",
            help="of a query's scores: squared error, the same with the own class as heavy as all others, binary cross "
            "entropy, or cross entropy over classes",
        )
        group.add_argument(
            "--arn_selfsup",
            choices=["none", "temporal_jigsaw", "spatial_jigsaw", "rotation"],
            default="none",
            help="training clips are also seen with blocks of frames or quarters in another order, or turned; half as fast",
        )
        group.add_argument(
            "--arn_orders",
            type=int,
            least=2,
            default=10,
            help="orders of a jigsaw, as many as there are at most (24 of quarters)",
        )
        group.add_argument(
            "--arn_blocks",
            type=int,
            least=2,
            help="blocks of frames of a temporal jigsaw; unset: one for every step of the backbone's features",
        )
        group.add_argument(
            "--arn_beta",
            type=float,
            least=0,
            default=0.05,
            help="weight of the loss of guessing how a clip was changed",
        )
        group.add_argument(
            "--arn_gamma",
            type=float,
            least=0,
            default=0.0,
            help="weight of the alignment of attention, the sum of squares over a map, mean over clips; 0: none",
        )
        group.add_argument(
            "--arn_lambda",
            type=float,
            least=0,
            default=0.0,
            help="by how much attention may differ without being aligned",
        )

    def build_augmentation(self, args: argparse.Namespace) -> Augmentation | None:
        if args.arn_blocks is not None and args.arn_selfsup != "temporal_jigsaw":
            raise UserError(
                "--arn_blocks are those of --arn_selfsup temporal_jigsaw: add it, or leave --arn_blocks out"
            )
        if args.arn_selfsup == "none":
            return None
        if args.freeze_backbone:
            raise UserError(
                f"--arn_selfsup {args.arn_selfsup} changes frames and --freeze_backbone trains on features: leave one out"
            )
        if args.arn_selfsup == "rotation":
            return Rotation()
        if args.arn_selfsup == "spatial_jigsaw":
            return SpatialJigsaw(args.arn_orders)
        blocks = args.arn_blocks or self.num_steps
        if blocks < 2 or args.seq_len % blocks or self.num_steps % blocks:
            raise UserError(
                f"a temporal jigsaw of {blocks} blocks does not fit {args.seq_len} frames and {self.num_steps} feature steps: "
                "give --arn_blocks, 2 or more, that divides both"
            )
        return TemporalJigsaw(blocks, args.arn_orders)

    def check_alignment(self, args: argparse.Namespace) -> None:
        """Raises UserError where there is nothing that could be aligned."""
        if not self.gamma:
            if self.tolerance:
                raise UserError("--arn_lambda is a part of the alignment: add --arn_gamma, or leave it out")
            return
        if self.augmentation is None:
            raise UserError("--arn_gamma weighs the alignment with changed clips: add --arn_selfsup, or leave it out")
        if getattr(self.attention, self.augmentation.seen_by) is None:
            raise UserError(
                f"--arn_gamma aligns {self.augmentation.seen_by} attention with --arn_selfsup {args.arn_selfsup}, which "
                f"--arn_variant {args.arn_variant} lacks: give sa_ta, or leave --arn_gamma out"
            )

    def classify(self, support_features: Tensor, support_labels: Tensor, target_features: Tensor) -> Tensor:
        """Maps (B, N, D, S, h, w), labels (B, N), maps (B, Q, D, S, h, w) -> logits (B, Q, K); scores are their sigmoid."""
        return self.compare(support_features, support_labels, target_features).logits

    def compare(self, support_features: Tensor, support_labels: Tensor, target_features: Tensor) -> Compared:
        """`classify`, with the maps it is made from."""
        videos = torch.cat([support_features, target_features], dim=1)
        maps = self.reduce(videos.flatten(0, 1))
        attended = self.attention(maps)
        descriptors = self.pool(attended.maps).unflatten(0, videos.shape[:2])
        support, queries = descriptors.split([support_features.shape[1], target_features.shape[1]], dim=1)
        return Compared(self.classify_described(support, support_labels, queries), maps, attended)

    def pool(self, maps: Tensor) -> Tensor:
        """Maps (L, C, S, h, w) -> descriptors (L, C, C)."""
        return power_normalised(second_order(maps), self.sigma)

    def describe(self, features: Tensor) -> Tensor:
        """Maps (L, D, S, h, w) -> descriptors (L, C, C)."""
        return self.pool(self.attention(self.reduce(features)).maps)

    def classify_described(self, support: Tensor, support_labels: Tensor, target: Tensor) -> Tensor:
        """Descriptors (B, N, C, C), labels (B, N), descriptors (B, Q, C, C) -> logits (B, Q, K)."""
        shots, present = group_by_class(support, support_labels)
        classes = mean_over_shots(shots, present[..., None, None], dim=2)
        return self.relation(classes, target)

    def forward(self, support_images: Tensor, support_labels: Tensor, target_images: Tensor) -> dict[str, Tensor]:
        """As in the base class. In training with `--arn_selfsup` also, for every video of an episode, support first:

        "change_logits" (B, V, ways), "change_labels" (B, V), and where attention is aligned "misalignment" (B, V).
        """
        if self.augmentation is None or not self.training:
            return super().forward(support_images, support_labels, target_images)
        if support_labels.ndim == 1:
            outputs = self(support_images[None], support_labels[None], target_images[None])
            return {name: value[0] for name, value in outputs.items()}
        assert self.augmentation is not None
        assert self.discriminator is not None
        batch, supports = support_labels.shape
        clips = [
            rearrange(images, "b (v t) c h w -> b v t c h w", t=self.args.seq_len)
            for images in (support_images, target_images)
        ]
        videos = torch.cat(clips, dim=1).flatten(0, 1)
        # Drawn on the CPU, where it is known without waiting which clips pass through the backbone a second time: those
        # that are left as they are do not.
        labels = torch.randint(self.augmentation.number, (len(videos),))
        changed, labels = labels.nonzero()[:, 0].to(videos.device), labels.to(videos.device)
        groups = [group.flatten(0, 1) for group in clips]
        if len(changed):
            groups.append(self.augmentation(videos[changed], labels[changed]))
        features = self.encode_groups(groups)
        with torch.autocast(videos.device.type, enabled=False):
            support, target = (group.float().unflatten(0, (batch, -1)) for group in features[:2])
            compared = self.compare(support, support_labels.long(), target)
            maps = compared.maps
            if len(changed):
                maps = maps.index_copy(0, changed, self.reduce(features[2].float()))
            outputs = {"change_logits": self.discriminator(maps), "change_labels": labels}
            if self.gamma:
                outputs["misalignment"] = self.misalignment(compared.attended, maps, labels)
        return {"logits": compared.logits} | {name: value.unflatten(0, (batch, -1)) for name, value in outputs.items()}

    def misalignment(self, attended: Attended, changed_maps: Tensor, labels: Tensor) -> Tensor:
        """How far attention on changed clips is from the attention on the clips, changed as they were: (L,).

        The sum of squares over all cells or steps of what differs by more, or less, than `--arn_lambda`.
        """
        assert self.augmentation is not None
        kind = self.augmentation.seen_by
        before, after = getattr(attended, kind), getattr(self.attention, kind)(changed_maps)
        axes = "l 1 1 h w -> l h w" if kind == "spatial" else "l 1 s 1 1 -> l s"
        expected = self.augmentation(rearrange(before, axes), labels)
        differences = (expected - rearrange(after, axes)).abs() - self.tolerance
        return differences.square().flatten(1).sum(dim=1)

    def loss(self, task_dict: dict[str, Any], model_dict: dict[str, Tensor]) -> Tensor:
        """The loss of `--arn_loss`, plus `--arn_beta` times the cross entropy of how clips were changed, plus
        `--arn_gamma` times the misalignment of attention, the latter two as means over clips (section 3.5).

        With `--loss_reduction sum` all count once per query, so that their balance stays the same.
        """
        logits, labels = model_dict["logits"], task_dict["target_labels"].long()
        loss = self.over_queries(self.pair_loss(logits, F.one_hot(labels, logits.shape[-1]).bool()))
        if "change_logits" not in model_dict:
            return loss
        guesses, changes = model_dict["change_logits"], model_dict["change_labels"]
        extra = self.beta * F.cross_entropy(guesses.flatten(0, -2), changes.flatten())
        if "misalignment" in model_dict:
            extra = extra + self.gamma * model_dict["misalignment"].mean()
        return loss + extra * (labels.shape[-1] if self.loss_reduction == "sum" else 1)

    def explain(self, support_features: Tensor, support_labels: Tensor, target_features: Tensor) -> dict[str, Tensor]:
        """What the method looks at: "logits" (B, Q, K), and as far as the variant has them, attention in (0, 1).

        "support_spatial" (B, K, J, S, h, w) and "target_spatial" (B, Q, S, h, w), the same at all steps of a clip;
        "support_temporal" (B, K, J, S) and "target_temporal" (B, Q, S). What is no shot has 0.
        """
        compared = self.compare(support_features, support_labels, target_features)
        videos, steps = (len(support_features), -1), support_features.shape[3]
        parts = [support_features.shape[1], target_features.shape[1]]
        attention = {}
        if compared.attended.spatial is not None:
            attention["spatial"] = repeat(compared.attended.spatial, "l 1 1 h w -> l s h w", s=steps)
        if compared.attended.temporal is not None:
            attention["temporal"] = rearrange(compared.attended.temporal, "l 1 s 1 1 -> l s")
        shown = {"logits": compared.logits}
        for name, values in attention.items():
            of_support, shown[f"target_{name}"] = values.unflatten(0, videos).split(parts, dim=1)
            shown[f"support_{name}"], _ = group_by_class(of_support, support_labels)
        return shown
