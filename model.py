"""Few-shot heads: `CNN_FSHead`, which every method inherits, and TSN, TRX and dual prototypes. The others are in methods/.

A method of your own inherits CNN_FSHead, writes `classify`, and is added to METHODS in methods/__init__.py, or named on the
command line as path/to/file.py:Class.

Letters, used throughout: B episodes, K way, N support videos of an episode, J shots of a class, Q queries, T frames,
S feature steps, D feature width, P width of class text, W tuple cardinality, M tuples of a video, E width of projected
tuples, R rows that a video's tuples are mixed of. In patterns i and j are two shots, t and u tuples of two videos, r and s
rows of two videos.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from torch import Tensor, nn

from backbones import Backbone, build_backbone
from backbones.adapters import choose_trained
from utils import UserError, cos_sim


class CNN_FSHead(nn.Module):
    """A backbone and a way to compare videos: base class of every few-shot method.

    A subclass writes `classify`; batching, images, placement and loops are done for it. One that was written for the
    TRX-style libraries overrides `forward` instead, calling `self.get_feats` or `self.backbone` itself, and runs as it is.

    `args` are the settings of the run. A head may read them in its constructor and never writes to them; way and shot are
    read off the labels, since training and testing may differ in them.
    """

    reads: Literal["steps", "maps"] = "steps"
    """What `classify` gets for a video: feature steps (S, D), or feature maps (D, S, h, w)."""

    inductive: bool = True
    """Whether every query is scored by itself, whatever other queries there are in its episode."""

    works_on_features: bool = True
    """Whether `classify` is all that happens after the backbone in a test, so that stored features can replace images."""

    uses_class_text: bool = False
    """Whether `classify`, `classify_described` and `explain` also take `class_text` (B, K, P), float32: features of the names
    of an episode's classes, in the order of its labels. `loss` then finds "base_text" (C, P), those of all training classes."""

    class_text_width: int | None = None
    """How wide class text has to be; None: it may have any width."""

    loss_needs_pixels: bool = False
    """Whether `loss` reads the frames of an episode, "support_set" and "target_set", which stored features do not have."""

    takes_episodes: bool = True
    """Whether `forward` takes several episodes at once."""

    averages_steps: bool = False
    """Whether a video's steps count by their mean alone: then a backbone that has a feature of the whole clip gives that."""

    condenses: bool = False
    """Whether `describe` and `classify_described` together are `classify`, so that a test may store descriptions."""

    def __init_subclass__(cls, **options: Any) -> None:
        """What a class does not state is assumed to be the slow way that is always right: one that brings its own `forward`
        gets frames, one episode at a time, as classes of the TRX-style libraries expect."""
        super().__init_subclass__(**options)
        own = vars(cls)
        if {"forward", "get_feats", "classify"} & own.keys():
            cls.averages_steps = own.get("averages_steps", False)
        if "forward" in own or "get_feats" in own:
            cls.works_on_features = own.get("works_on_features", False)
            cls.takes_episodes = own.get("takes_episodes", "forward" not in own)
        if "forward" in own:
            cls.uses_class_text = own.get("uses_class_text", False)
        if {"classify", "describe", "classify_described"} & own.keys():
            cls.condenses = own.get("condenses", False)

    def __init__(self, args: argparse.Namespace) -> None:
        super().__init__()
        self.args = args
        self.backbone: Backbone = build_backbone(
            args.backbone,
            seq_len=args.seq_len,
            pretrained=args.pretrained_backbone or not args.no_pretrained,
            **args.backbone_options,
        )
        self.backbone.set_passes(frames_per_call=args.frames_per_call, recompute=args.checkpoint_activations)
        self.num_steps = self.backbone.num_steps(args.seq_len)
        self.separate_backbone_calls = args.separate_backbone_calls
        self.freeze_batch_norm = args.bn == "frozen"
        self.freeze_backbone = args.freeze_backbone
        if self.freeze_backbone:
            self.backbone.requires_grad_(False)
        choose_trained(self.backbone, args.train_layers, args.lora)
        self.loss_reduction = args.loss_reduction

    @staticmethod
    def add_arguments(group: Any) -> None:
        """Declares the method's own flags on an argparse group. They reach the constructor in `args`."""

    def encode(self, clips: Tensor) -> Tensor:
        """Clips (N, T, 3, H, W) -> what `classify` reads of each: steps (N, S, D), or maps (N, D, S, h, w)."""
        return self.backbone(clips, maps=self.reads == "maps")

    def get_feats(self, support_images: Tensor, target_images: Tensor) -> tuple[Tensor, Tensor]:
        """Frames (..., N*T, 3, H, W) and (..., Q*T, 3, H, W) -> features (..., N, S, D) and (..., Q, S, D).

        Both go through the backbone in one call, which is faster; batch norm in training then takes its statistics over
        both. With `separate_backbone_calls` they are kept apart, as in the TRX-style libraries.
        """
        episodes = support_images.shape[:-4]
        clips = [
            rearrange(images.reshape(-1, *images.shape[-3:]), "(n t) c h w -> n t c h w", t=self.args.seq_len)
            for images in (support_images, target_images)
        ]
        support, target = (group.unflatten(0, (*episodes, -1)) for group in self.encode_groups(clips))
        return support, target

    def encode_groups(self, groups: Sequence[Tensor]) -> list[Tensor]:
        """`encode` of several groups of clips, all in one call, or with `separate_backbone_calls` each in its own."""
        if self.separate_backbone_calls:
            return [self.encode(group) for group in groups]
        return list(self.encode(torch.cat(list(groups))).split([len(group) for group in groups]))

    # `*_` and `**text` stand for what a method's own may take besides: `class_text`, where it uses that.
    def classify(
        self, support_features: Tensor, support_labels: Tensor, target_features: Tensor, *_: Any, **text: Any
    ) -> Any:
        """Scores every query against every class, many episodes at once.

        support_features (B, N, S, D), support_labels int64 (B, N) in 0..K-1, target_features (B, Q, S, D), all float32
        -> logits (B, Q, K), or a dict of them under "logits" and whatever else `loss` needs, each with B in front.
        """
        if type(self).classify_described is CNN_FSHead.classify_described:
            raise NotImplementedError(f"{type(self).__name__} must define classify() or forward()")
        support, target = self.described(support_features, target_features)
        return self.classify_described(support, support_labels, target, **text)

    def describe(self, features: Tensor) -> Tensor:
        """What is compared of each video, made of its features alone: features (N, ...) -> (N, ...).

        For methods in two stages, this and `classify_described`. Weights are fixed in a test, and so are descriptions: there
        they are made once for each video, however many episodes it is in.
        """
        return features

    def described(self, support_features: Tensor, target_features: Tensor) -> tuple[Tensor, Tensor]:
        """`describe` of the videos of episodes, (B, N, ...) and (B, Q, ...), in one call.

        Large products are faster, and so is one gradient of the weights than one per group.
        """
        videos = torch.cat([support_features, target_features], dim=1)
        described = self.describe(videos.flatten(0, 1)).unflatten(0, videos.shape[:2])
        support, target = described.split([support_features.shape[1], target_features.shape[1]], dim=1)
        return support, target

    def classify_described(self, support: Tensor, support_labels: Tensor, target: Tensor, *_: Any, **text: Any) -> Any:
        """As `classify`, from what `describe` made of each video, (B, N, ...) and (B, Q, ...)."""
        return self.classify(support, support_labels, target, **text)

    def explain(
        self, support_features: Tensor, support_labels: Tensor, target_features: Tensor, *_: Any, **text: Any
    ) -> dict[str, Tensor]:
        """What `classify` compares, to be drawn: "logits" (B, Q, K) and whatever else, each with B in front.

        A method that can be explained returns more. Each of the names that results/panels.py knows gets a panel there.
        """
        outputs = self.classify_episodes(support_features, support_labels, target_features, **text)
        return {"logits": outputs["logits"]}

    def shot_logits(self, support_features: Tensor, support_labels: Tensor, target_features: Tensor) -> Tensor:
        """What logits would be with every support video as a class of its own, (B, Q, K, J), 0 where there is none."""
        alone = torch.arange(support_labels.shape[1], device=support_labels.device).expand_as(support_labels)
        outputs = self.classify(support_features, alone, target_features)
        by_shot = outputs["logits"] if isinstance(outputs, dict) else outputs  # (B, Q, N)
        shots, _ = group_by_class(rearrange(by_shot, "b q n -> b n q"), support_labels)
        return rearrange(shots, "b k j q -> b q k j")

    def classify_episodes(
        self, support: Tensor, labels: Tensor, target: Tensor, *, described: bool = False, **text: Any
    ) -> dict[str, Tensor]:
        """`classify` in float32, whatever precision the backbone ran in, with its answer as a dict.

        described: the videos come as `describe` made them. text: `class_text` (B, K, P), for a method that uses it.
        """
        classify = self.classify_described if described else self.classify
        with torch.autocast(support.device.type, enabled=False):
            outputs = classify(support.float(), labels.long(), target.float(), **text)
        return outputs if isinstance(outputs, dict) else {"logits": outputs}

    def forward(
        self, support_images: Tensor, support_labels: Tensor, target_images: Tensor, *_: Any, **text: Any
    ) -> dict[str, Tensor]:
        """One episode: frames (N*T, 3, H, W), labels (N,), frames (Q*T, 3, H, W) -> {"logits": (Q, K), ...}.

        With an axis B in front of all, that many episodes: {"logits": (B, Q, K), ...}. text: `class_text` (K, P), for a method
        that uses it.
        """
        support_features, target_features = self.get_feats(support_images, target_images)
        if support_labels.ndim == 2:
            return self.classify_episodes(support_features, support_labels, target_features, **text)
        text = {name: features[None] for name, features in text.items()}
        outputs = self.classify_episodes(support_features[None], support_labels[None], target_features[None], **text)
        return {name: value[0] for name, value in outputs.items()}

    def loss(self, task_dict: dict[str, Any], model_dict: dict[str, Tensor]) -> Tensor:
        """Cross entropy of the queries, a scalar: their mean, or with `--loss_reduction sum` their sum per episode."""
        return self.query_loss(model_dict["logits"], task_dict["target_labels"])

    def query_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Cross entropy of logits (Q, K) or (B, Q, K) with labels (Q,) or (B, Q), reduced as `--loss_reduction` says."""
        losses = F.cross_entropy(logits.flatten(0, -2), labels.long().flatten(), reduction="none").reshape(labels.shape)
        return self.over_queries(losses)

    def over_queries(self, losses: Tensor) -> Tensor:
        """Losses of queries, (Q,) or (B, Q), as one: their mean, or with `--loss_reduction sum` their sum per episode."""
        return losses.mean() if self.loss_reduction == "mean" else losses.sum(dim=-1).mean()

    def with_extra(self, query_loss: Tensor, extra: Tensor, labels: Tensor) -> Tensor:
        """The loss of queries with labels (..., Q), plus one that is no sum over queries.

        With `--loss_reduction sum` it counts once per query, so that the balance stays the same.
        """
        return query_loss + extra * (labels.shape[-1] if self.loss_reduction == "sum" else 1)

    def distribute_model(self, devices: Sequence[torch.device] = ()) -> None:
        """Spreads the backbone over `--num_gpus` GPUs by whole clips; the rest of the method stays on the first.

        Called once after the model was moved to the first GPU; override it to place more of a method. The names of saved
        weights do not change, so that a checkpoint loads on any number of GPUs. devices: others than the GPUs, the first
        of them the model's. Outputs and gradients are those of one device, but for batch norms that are being trained:
        each device takes statistics over its own clips, and the first one's are kept.
        """
        gpus = [torch.device("cuda", number) for number in range(self.args.num_gpus)]
        self.backbone.clip_pass.devices = list(devices) or gpus

    def parameter_groups(self) -> list[dict[str, Any]]:
        """What an optimiser trains: parameters, their "weight_decay" and "lr_mult", a factor on the learning rate.

        `--backbone_rate` is the factor of the backbone; with `--no_norm_decay` norms and biases, which is to say vectors
        and scalars, do not decay. Override it for a method whose parts learn at rates of their own.
        """
        args = self.args
        groups: dict[tuple[float, float], list[nn.Parameter]] = {}
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                rate = args.backbone_rate if name.startswith("backbone.") else 1.0
                decay = 0.0 if args.no_norm_decay and parameter.ndim < 2 else args.weight_decay
                groups.setdefault((rate, decay), []).append(parameter)
        return [
            {"params": parameters, "lr_mult": rate, "weight_decay": decay}
            for (rate, decay), parameters in groups.items()
        ]

    def train(self, mode: bool = True) -> CNN_FSHead:
        """As nn.Module.train; with `--bn frozen` the backbone's batch norms keep their stored statistics, with
        `--freeze_backbone` all of it stays as in testing."""
        super().train(mode)
        if self.freeze_backbone:
            self.backbone.eval()
        if mode and self.freeze_batch_norm:
            for module in self.backbone.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self


def distribute(head: CNN_FSHead) -> None:
    """Calls a method's `distribute_model`, and undoes what would change the names of its weights.

    Methods of the TRX-style libraries wrap their backbone in DataParallel there, which cuts clips apart and renames the
    weights: theirs is spread as any other's.
    """
    head.distribute_model()
    for name, module in list(head.named_children()):
        if isinstance(head, CNN_FSHead) and isinstance(module, nn.DataParallel):
            setattr(head, name, module.module)
            if name == "backbone":
                CNN_FSHead.distribute_model(head)


def group_by_class(support: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Support videos (B, N, ...) with labels (B, N) in 0..K-1 -> (B, K, J, ...) and which of them exist, bool (B, K, J).

    J is the largest number of shots in the batch; a class with fewer is filled up with zeros. Order within a class is kept.
    Raises ValueError when a class has no support video: no prototype could be made of it.
    """
    way = int(labels.max()) + 1
    is_class = F.one_hot(labels, way)  # (B, N, K)
    shots = is_class.sum(dim=1)  # (B, K)
    fewest, most = int(shots.min()), int(shots.max())
    if fewest == 0:
        episode, label = (shots == 0).nonzero()[0].tolist()
        raise ValueError(
            f"class {label} of episode {episode} has no support video: expected labels 0..{way - 1}, each once"
        )
    rank = (is_class.cumsum(dim=1) - 1).gather(2, labels[..., None])[..., 0]  # how many of the same class came before
    episode = torch.arange(len(labels), device=labels.device)[:, None]
    place = (episode * way + labels) * most + rank
    room = support.new_empty if fewest == most else support.new_zeros
    grouped = room(len(labels) * way * most, *support.shape[2:])
    # Copies whole rows; index_put_ goes number by number, and takes more than twice as long.
    grouped = grouped.index_copy_(0, place.flatten(), support.flatten(0, 1))
    present = torch.arange(most, device=labels.device) < shots[..., None]
    return grouped.unflatten(0, (len(labels), way, most)), present


def mean_over_shots(values: Tensor, present: Tensor, dim: int) -> Tensor:
    """Mean of `values` over their shot axis `dim`, counting the shots that are `present`, bool, broadcast against it."""
    weights = present.to(values.dtype)
    return (values * weights).sum(dim) / weights.sum(dim)


class LogitScale(nn.Module):
    """A learnable positive factor on bounded similarities, kept within [1, 100].

    A cosine lies in [-1, 1]: without a factor the cross entropy of five classes cannot fall below 0.9 when cosines are
    positive, and its gradient stays diffuse. The factor is learnt as its logarithm.
    """

    def __init__(self, initial: float = 10.0) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(math.log(initial)))

    def forward(self, similarities: Tensor) -> Tensor:
        return similarities * self.log_scale.exp().clamp(1.0, 100.0)


# ---------------------------------------------------------------------------------------------------------------------
# TSN


class CNN_TSN(CNN_FSHead):
    """TSN baseline: similarity of frame-averaged features, blind to the order of frames.

    Temporal Segment Networks (Wang et al., ECCV 2016) as the few-shot literature uses them: no parameters but the scale.
    """

    averages_steps = True

    def __init__(self, args: argparse.Namespace) -> None:
        super().__init__(args)
        self.distance = args.tsn_distance
        self.scale = LogitScale(args.tsn_scale)

    @staticmethod
    def add_arguments(group: Any) -> None:
        group.add_argument(
            "--tsn_distance",
            choices=["cosine", "mean_cosine", "sqeuclid"],
            default="cosine",
            help="cosine to the mean of a class's support videos; mean_cosine: mean of the cosines to each, as in the "
            "TRX-style libraries, weaker with several shots; sqeuclid: minus the squared distance per feature to the mean",
        )
        group.add_argument(
            "--tsn_scale",
            type=float,
            least=1,
            most=100,
            default=10.0,
            help="factor on TSN's similarities at the start, learnt from there within [1, 100]; larger is more confident",
        )

    def classify(self, support_features: Tensor, support_labels: Tensor, target_features: Tensor) -> Tensor:
        support, present = group_by_class(reduce(support_features, "b n s d -> b n d", "mean"), support_labels)
        target = reduce(target_features, "b q s d -> b q d", "mean")
        if self.distance == "mean_cosine":
            cosines = cos_sim(target, rearrange(support, "b k j d -> b (k j) d"))
            cosines = rearrange(cosines, "b q (k j) -> b q k j", j=support.shape[2])
            return self.scale(mean_over_shots(cosines, present[:, None], dim=-1))
        prototypes = mean_over_shots(support, present[..., None], dim=2)  # (B, K, D)
        if self.distance == "cosine":
            return self.scale(cos_sim(target, prototypes))
        # |f - p|^2 without |f|^2, which is the same for every class of a query and so changes neither loss nor answer.
        similarities = 2 * target @ prototypes.mT - rearrange(prototypes.square().sum(-1), "b k -> b 1 k")
        return self.scale(similarities / target.shape[-1])

    def explain(self, support_features: Tensor, support_labels: Tensor, target_features: Tensor) -> dict[str, Tensor]:
        """ "logits" (B, Q, K), and "shot_logits" (B, Q, K, J): what they would be by each support video alone, else 0."""
        episode = support_features, support_labels, target_features
        return {"logits": self.classify(*episode), "shot_logits": self.shot_logits(*episode)}


# ---------------------------------------------------------------------------------------------------------------------
# TRX


class PositionalEncoding(nn.Module):
    """Adds a tenth of the sinusoids of Vaswani et al. (NeurIPS 2017) to the steps of a video, then drops out."""

    def __init__(self, width: int, max_steps: int, dropout: float) -> None:
        super().__init__()
        angles = torch.arange(max_steps)[:, None] * torch.exp(torch.arange(0, width, 2) * (-math.log(10000.0) / width))
        table = torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)[:, :width]
        self.table: Tensor
        self.register_buffer("table", 0.1 * table, persistent=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, steps: Tensor) -> Tensor:
        """(..., S, D) -> (..., S, D)."""
        return self.dropout(steps + self.table[: steps.shape[-2]])


class TupleLinear(nn.Linear):
    """A linear map on concatenated tuples of steps, (W*D) -> E, without building the tuples.

    W_map [x_t1; ...; x_tW] = sum_i W_i x_ti: each step is projected once per position it can take, and a tuple is a sum of
    such projections. For 8 steps that is 3.5 times (pairs) to 7 times (triples) less work than mapping every tuple.
    """

    def __init__(self, step_width: int, cardinality: int, out_width: int, num_steps: int) -> None:
        super().__init__(step_width * cardinality, out_width)
        self.cardinality = cardinality
        tuples = torch.tensor(list(combinations(range(num_steps), cardinality)))  # (M, W), in lexicographic order
        # Position i of a tuple never holds the first i or the last W-1-i steps, so only `reach` of them are projected.
        self.reach = num_steps - cardinality + 1
        choice = F.one_hot(tuples - torch.arange(cardinality), self.reach)  # (M, W, reach)
        self.choice: Tensor
        self.register_buffer("choice", choice.flatten(1).to(torch.get_default_dtype()), persistent=False)

    def rows(self, steps: Tensor) -> Tensor:
        """Each step in each position it can take: (..., S, D) -> (..., W * reach, E), without the bias."""
        weights = self.weight.chunk(self.cardinality, dim=1)
        projected = [steps[..., i : i + self.reach, :] @ weight.mT for i, weight in enumerate(weights)]
        return torch.cat(projected, dim=-2)

    def forward(self, steps: Tensor) -> Tensor:
        """(..., S, D) -> (..., M, E)."""
        # The sum over a tuple's positions as a product with 0/1 rows: its backward is a product too, not a scatter.
        return self.choice @ self.rows(steps) + self.bias


class Tuples(NamedTuple):
    """The M tuples of a video as few rows and how each tuple mixes them: mix (..., M, R) @ rows (..., R, E).

    A linear map of a tuple of steps is a sum of one row for each of its positions and the bias. 18 rows and the bias make
    all 56 triples of 8 steps; products, layer norms and weighted means of tuples follow from those of rows, so tuples
    themselves are not built.
    """

    mix: Tensor
    rows: Tensor

    @staticmethod
    def project(linear: TupleLinear, steps: Tensor) -> Tuples:
        """The linear map of all tuples of steps (..., S, D)."""
        return Tuples.of_rows(linear, with_row(linear.rows(steps), linear.bias))

    @staticmethod
    def of_rows(linear: TupleLinear, rows: Tensor) -> Tuples:
        """What `project` gave, by its rows alone: all videos are mixed alike."""
        return Tuples(F.pad(linear.choice, (0, 1), value=1.0).expand(*rows.shape[:-2], -1, -1), rows)

    def layer_norm(self, norm: nn.LayerNorm) -> Tuples:
        """The layer norm of every tuple: its centred rows by its own deviation, and one more row for the norm's bias."""
        centred = Tuples(self.mix, self.rows - self.rows.mean(dim=-1, keepdim=True))
        deviation = (centred.squares() / self.rows.shape[-1] + norm.eps).sqrt()
        mix = F.pad(self.mix / deviation[..., None], (0, 1), value=1.0)
        return Tuples(mix, with_row(centred.rows * norm.weight, norm.bias))

    def squares(self) -> Tensor:
        """Squared norms of the tuples, (..., M)."""
        return (self.mix * (self.mix @ (self.rows @ self.rows.mT))).sum(dim=-1).clamp_min(0)


def with_row(rows: Tensor, row: Tensor) -> Tensor:
    """(..., R, E) and one row (E,) for all -> (..., R+1, E)."""
    return torch.cat([rows, row.expand(*rows.shape[:-2], 1, -1)], dim=-2)


def row_products(queries: Tuples, rows: Tensor) -> Tensor:
    """Products of query tuples (B, Q, M, E) with the rows of support videos (B, K, J, R, E): (B, K, Q, M, J, R)."""
    return torch.einsum("bqtr,bkqrjs->bkqtjs", queries.mix, torch.einsum("bqre,bkjse->bkqrjs", queries.rows, rows))


def attention_scores(query_keys: Tuples, keys: Tuples) -> Tensor:
    """Scaled products of all query tuples with all support tuples: (B, K, Q, M, J, M)."""
    scaled = row_products(query_keys, keys.rows) / math.sqrt(keys.rows.shape[-1])
    return torch.einsum("bkqtjr,bkjur->bkqtju", scaled, keys.mix)


def row_products_of_shots(tuples: Tuples) -> Tensor:
    """Products of the rows of all shots of a class with each other, (B, K, J, R, J, R)."""
    return torch.einsum("bkire,bkjse->bkirjs", tuples.rows, tuples.rows)


def squared_distances(mix: Tensor, values: Tuples, queries: Tuples) -> Tensor:
    """Of query tuples (B, Q, M, E) to their prototypes in each class, (B, K, Q, M), never negative.

    A prototype is a mixture p = mix @ rows of the rows of a class, mix (B, K, Q, M, J, R); it is not built either, since
    |q - p|^2 = |q|^2 - 2 mix.(rows q) + mix (rows rows') mix'.
    """
    spread = torch.einsum("bkqtir,bkirjs->bkqtjs", mix, row_products_of_shots(values))
    squares = (mix * (spread - 2 * row_products(queries, values.rows))).sum(dim=(-2, -1))
    return (squares + rearrange(queries.squares(), "b q t -> b 1 q t")).clamp_min(0)


def pack(*parts: Tensor) -> Tensor:
    """Parts of videos, (V, ...) each, as one vector for each video: (V, F)."""
    return torch.cat([part.flatten(1) for part in parts], dim=1)


def unpack(vectors: Tensor, shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
    """Undoes `pack`, by the shapes that a video's parts had: (..., F) -> (..., *shape) for each."""
    parts = vectors.split([math.prod(shape) for shape in shapes], dim=-1)
    return [part.unflatten(-1, shape) for part, shape in zip(parts, shapes, strict=True)]


def descriptions(branches: Iterable[Any], features: Tensor) -> Tensor:
    """What each of the branches of a method makes of videos (V, S, D), one after the other: (V, F)."""
    return torch.cat([branch.describe(features) for branch in branches], dim=1)


class KeysAndValues(nn.Module):
    """Maps the tuples of a video, of one cardinality, to keys with a layer norm and to values.

    A video is described by these as one vector of `size` numbers: (M, R) that mix keys, (R, E) rows of keys and of values.
    """

    def __init__(self, step_width: int, out_width: int, cardinality: int, num_steps: int, dropout: float) -> None:
        super().__init__()
        self.pe = PositionalEncoding(step_width, num_steps, dropout)
        self.k_linear = TupleLinear(step_width, cardinality, out_width, num_steps)
        self.v_linear = TupleLinear(step_width, cardinality, out_width, num_steps)
        self.norm_k = nn.LayerNorm(out_width)
        tuples, rows = self.k_linear.choice.shape
        self.shapes = [
            (tuples, rows + 2),
            (rows + 2, out_width),
            (rows + 1, out_width),
        ]  # a row per bias, and of the norm
        self.size = sum(map(math.prod, self.shapes))

    def describe(self, steps: Tensor) -> Tensor:
        """(V, S, D) -> (V, F)."""
        steps = self.pe(steps)
        keys = Tuples.project(self.k_linear, steps).layer_norm(self.norm_k)
        return pack(*keys, Tuples.project(self.v_linear, steps).rows)

    def of_videos(self, described: Tensor) -> tuple[Tuples, Tuples]:
        """Keys and values by what `describe` gave, (..., F)."""
        key_mix, key_rows, value_rows = unpack(described, self.shapes)
        return Tuples(key_mix, key_rows), Tuples.of_rows(self.v_linear, value_rows)

    def of_classes(self, described: Tensor, labels: Tensor) -> tuple[Tuples, Tuples, Tensor]:
        """As `of_videos`, of the support (B, N, F) with labels (B, N), by classes (B, K, J, ...); and which shots exist."""
        (key_mix, present), (key_rows, _), (value_rows, _) = (
            group_by_class(part, labels) for part in unpack(described, self.shapes)
        )
        return Tuples(key_mix, key_rows), Tuples.of_rows(self.v_linear, value_rows), present


class TemporalCrossTransformer(KeysAndValues):
    """TRX for tuples of one cardinality: a prototype of each class for each query, made of the tuples that match it.

    Perrett et al., CVPR 2021, section 3.
    """

    def forward(self, support: Tensor, labels: Tensor, target: Tensor) -> Tensor:
        """Described support (B, N, F), labels (B, N), described target (B, Q, F) -> logits (B, Q, K)."""
        keys, values, present = self.of_classes(support, labels)
        query_keys, query_values = self.of_videos(target)
        attention = tuple_attention(query_keys, keys, present)
        prototypes = torch.einsum("bkqtju,bkjur->bkqtjr", attention, values.mix)  # as mixtures of rows
        distances = squared_distances(prototypes, values, query_values)
        return -reduce(distances, "b k q t -> b q k", "mean")

    def attention(self, support: Tensor, labels: Tensor, target: Tensor) -> Tensor:
        """How much each query tuple looks at each support tuple of a class, as `forward` has it: (B, K, Q, M, J, M)."""
        keys, _, present = self.of_classes(support, labels)
        query_keys, _ = self.of_videos(target)
        return tuple_attention(query_keys, keys, present)


def tuple_attention(query_keys: Tuples, keys: Tuples, present: Tensor) -> Tensor:
    """Softmax of the scores over all shots and tuples of a class.

    Query tuples (B, Q, M, E), support tuples (B, K, J, M, E), which shots exist (B, K, J) -> (B, K, Q, M, J, M).
    """
    scores = attention_scores(query_keys, keys)
    scores.masked_fill_(rearrange(~present, "b k j -> b k 1 1 j 1"), -math.inf)
    return scores.flatten(-2).softmax(dim=-1).unflatten(-1, scores.shape[-2:])


def check_cardinalities(args: argparse.Namespace, num_steps: int) -> None:
    """Raises UserError when `--temp_set` asks for tuples that a clip of `num_steps` feature steps does not have, or twice."""
    if len(set(args.temp_set)) < len(args.temp_set):
        raise UserError(f"--temp_set is {' '.join(map(str, args.temp_set))}: expected each cardinality once")
    if max(args.temp_set) > num_steps or min(args.temp_set) < 1:
        raise UserError(
            f"--temp_set {' '.join(map(str, args.temp_set))} needs tuples of 1 to {num_steps} steps: backbone "
            f"{args.backbone} gives {num_steps} for --seq_len {args.seq_len}; lower it or raise --seq_len"
        )


class CNN_TRX(CNN_FSHead):
    """TRX: query-specific class prototypes from ordered frame tuples.

    Temporal-Relational CrossTransformers (Perrett, Masullo, Burghardt, Mirmehdi, Damen, CVPR 2021): logits are the mean
    over the cardinalities of `--temp_set` of minus the mean squared distance of a query's tuples to their prototypes.
    """

    condenses = True

    def __init__(self, args: argparse.Namespace) -> None:
        super().__init__(args)
        check_cardinalities(args, self.num_steps)
        self.transformers = nn.ModuleList(
            TemporalCrossTransformer(
                self.backbone.feature_dim, args.trans_linear_out_dim, cardinality, self.num_steps, args.trans_dropout
            )
            for cardinality in args.temp_set
        )

    @staticmethod
    def add_arguments(group: Any) -> None:
        group.add_argument(
            "--temp_set",
            nargs="+",
            type=int,
            least=1,
            default=[2, 3],
            help="tuple cardinalities, in frames; 2 3 is the paper's choice, larger ones cost more and gain little",
        )
        group.add_argument(
            "--trans_linear_out_dim", type=int, least=1, default=1152, help="width of the keys and values of tuples"
        )
        group.add_argument(
            "--trans_dropout",
            type=float,
            least=0,
            below=1,
            default=0.1,
            help="dropout on frame features before tuples are made, 0 to 1",
        )

    def describe(self, features: Tensor) -> Tensor:
        """Steps (V, S, D) -> keys and values of their tuples, of all cardinalities: (V, F)."""
        return descriptions(self.transformers, features)

    def classify_described(self, support: Tensor, support_labels: Tensor, target: Tensor) -> Tensor:
        logits = [
            transformer(of_support, support_labels, of_target)
            for transformer, of_support, of_target in self.by_cardinality(support, target)
        ]
        return torch.stack(logits).mean(dim=0)

    def by_cardinality(
        self, support: Tensor, target: Tensor
    ) -> Iterator[tuple[TemporalCrossTransformer, Tensor, Tensor]]:
        """Each transformer and its part of descriptions (B, N, F) and (B, Q, F)."""
        sizes = [transformer.size for transformer in self.transformers]
        yield from zip(self.transformers, support.split(sizes, dim=-1), target.split(sizes, dim=-1), strict=True)

    def explain(self, support_features: Tensor, support_labels: Tensor, target_features: Tensor) -> dict[str, Tensor]:
        """ "logits" (B, Q, K), "cardinalities" (B, C), those of `--temp_set`, and for each such W

        "tuples_W" (B, M, W): their steps, from 0; "attention_W" (B, Q, K, M, J, M): how much a query's tuple looks at each
        tuple of a class, 1 in all for a query tuple and a class.
        """
        support, target = self.described(support_features, target_features)
        shown = {
            "logits": self.classify_described(support, support_labels, target),
            "cardinalities": torch.tensor(self.args.temp_set).expand(len(support), -1),
        }
        for transformer, of_support, of_target in self.by_cardinality(support, target):
            cardinality = transformer.k_linear.cardinality
            attention = transformer.attention(of_support, support_labels, of_target)
            shown[f"attention_{cardinality}"] = rearrange(attention, "b k q t j u -> b q k t j u")
            tuples = torch.tensor(list(combinations(range(self.num_steps), cardinality)))
            shown[f"tuples_{cardinality}"] = tuples.expand(len(support), -1, -1)
        return shown


# ---------------------------------------------------------------------------------------------------------------------
# Dual prototypes


def peer_weights(present: Tensor, dtype: torch.dtype) -> Tensor:
    """The mean of the other shots of its class, for each shot, as weights: bool (B, K, J) -> (B, K, J, J).

    A lone shot stands for its missing peers itself.
    """
    itself = torch.eye(present.shape[-1], dtype=torch.bool, device=present.device)
    are_alone = rearrange(present.sum(dim=-1) == 1, "b k -> b k 1 1")
    are_peers = (present[..., None, :] & (itself == are_alone)).to(dtype)
    return are_peers / are_peers.sum(dim=-1, keepdim=True).clamp_min(1)


def prototype_cosines(
    class_mix: Tensor, query_mix: Tensor, values: Tuples, query_values: Tuples
) -> tuple[Tensor, Tensor]:
    """Mean over tuples of a query's cosines to class-specific and to query-specific prototypes: two of (B, Q, K).

    Prototypes are mixtures of the rows of a class, (B, K, M, J, R) and (B, K, Q, M, J, R). With p = mix @ rows,
    p.u = mix.(rows u) and p.p = mix (rows rows') mix', so prototypes are not built either.
    """
    products = row_products(query_values, values.rows)
    between_rows = row_products_of_shots(values)
    query_squares = rearrange(query_values.squares(), "b q t -> b 1 q t")

    def cosines(mix: Tensor) -> Tensor:
        squares = (mix * torch.einsum("bkqtir,bkirjs->bkqtjs", mix, between_rows)).sum(dim=(-2, -1)) * query_squares
        return reduce((mix * products).sum(dim=(-2, -1)) * squares.clamp_min(1e-16).rsqrt(), "b k q t -> b q k", "mean")

    return cosines(rearrange(class_mix, "b k t j r -> b k 1 t j r")), cosines(query_mix)


class DualScores(NamedTuple):
    """What one cardinality says: three logits (B, Q, K), and how much each shot counts in its class, (B, K, J)."""

    logits: Tensor
    class_logits: Tensor
    query_logits: Tensor
    shot_weights: Tensor


class RobustDualPrototypes(KeysAndValues):
    """Prototypes in which shots that are unlike the others of their class count less, for tuples of one cardinality.

    This follows what the paper's abstract claims, not its code. Shots are weighted by their mean similarity to the other
    shots of the class, and both prototypes use the weights. With two shots these are equal by symmetry: only from three
    shots on can one be found wrong.
    """

    def __init__(
        self, step_width: int, out_width: int, cardinality: int, num_steps: int, dropout: float, scale: float
    ) -> None:
        super().__init__(step_width, out_width, cardinality, num_steps, dropout)
        self.log_temperature = nn.Parameter(torch.tensor(math.log(0.1)))  # of the softmax over shots
        self.attended = nn.Parameter(torch.tensor(0.0))  # part of attention in the class-specific prototype
        self.balance = nn.Parameter(torch.tensor(0.0))  # of the two scores; 0 is half and half
        self.scale = LogitScale(scale)

    def forward(self, support: Tensor, labels: Tensor, target: Tensor) -> DualScores:
        """Described support (B, N, F), labels (B, N), described target (B, Q, F)."""
        keys, values, present = self.of_classes(support, labels)
        query_keys, query_values = self.of_videos(target)

        log_weights = shot_log_weights(values, present, self.log_temperature.exp().clamp(0.02, 1.0))
        class_mix = self.class_mix(keys, values, present) * rearrange(log_weights.exp(), "b k j -> b k 1 j 1")
        query_mix = self.query_mix(query_keys, keys, values, log_weights)

        class_logits, query_logits = map(self.scale, prototype_cosines(class_mix, query_mix, values, query_values))
        logits = torch.lerp(query_logits, class_logits, self.balance.sigmoid())
        return DualScores(logits, class_logits, query_logits, log_weights.exp())

    def class_mix(self, keys: Tuples, values: Tuples, present: Tensor) -> Tensor:
        """Each shot's values, which may move to what its peers' keys find in it: (B, K, M, J, R)."""
        from_rows = torch.einsum("bkitr,bkirjs->bkitjs", keys.mix, row_products_of_shots(keys))
        from_peers = torch.einsum("bkji,bkitjs->bkjts", peer_weights(present, from_rows.dtype), from_rows)
        attention = (from_peers @ keys.mix.mT / math.sqrt(keys.rows.shape[-1])).softmax(dim=-1)  # (B, K, J, M, M)
        has_peers = rearrange(present.sum(dim=-1) > 1, "b k -> b k 1 1 1")
        moved = values.mix + self.attended * has_peers * (attention @ values.mix - values.mix)
        return rearrange(moved, "b k j t r -> b k t j r")

    def query_mix(self, query_keys: Tuples, keys: Tuples, values: Tuples, log_weights: Tensor) -> Tensor:
        """TRX's attention of each query tuple over all shots and tuples of a class, with a prior on shots."""
        prior = rearrange(log_weights, "b k j -> b k 1 1 j 1")  # -inf where there is no shot
        attention = (attention_scores(query_keys, keys) + prior).flatten(-2).softmax(dim=-1)
        attention = attention.unflatten(-1, (keys.mix.shape[2], -1))
        return torch.einsum("bkqtju,bkjur->bkqtjr", attention, values.mix)


def shot_log_weights(values: Tuples, present: Tensor, temperature: Tensor | float) -> Tensor:
    """Logarithm of how much each shot of a class counts, by its mean similarity to the others: (B, K, J).

    Shots are compared by the cosines of their values at equal tuples. Weights add up to 1 in each class; what is not
    `present`, bool (B, K, J), has weight 0. A high temperature makes all shots equal.
    """
    products = torch.einsum("bkitr,bkirjs,bkjts->bkijt", values.mix, row_products_of_shots(values), values.mix)
    squares = values.squares()  # (B, K, J, M)
    norms = (squares[:, :, :, None] * squares[:, :, None]).clamp_min(1e-16).sqrt()
    to_peers = (peer_weights(present, products.dtype) * (products / norms).mean(dim=-1)).sum(dim=-1)
    return (to_peers / temperature).masked_fill(~present, -math.inf).log_softmax(dim=-1)


class PublishedDualPrototypes(nn.Module):
    """The method as its authors' code computes it, for tuples of one cardinality.

    All maps are square on concatenated tuples. Each shot has its own softmax in both attentions, and shots are added up:
    every one of them counts the same, whatever it shows.
    """

    def __init__(
        self,
        step_width: int,
        cardinality: int,
        num_steps: int,
        dropout: float,
        scale: float,
        cosine_axis: Literal["feature", "tuple"],
    ) -> None:
        super().__init__()
        width = cardinality * step_width
        self.pe = PositionalEncoding(step_width, num_steps, dropout)
        self.q_linear = TupleLinear(step_width, cardinality, width, num_steps)
        self.k_linear = TupleLinear(step_width, cardinality, width, num_steps)
        self.v_linear = TupleLinear(step_width, cardinality, width, num_steps)
        self.norm = nn.LayerNorm(width)
        self.scale = scale
        self.cosine_axis = cosine_axis
        self.tuples: Tensor
        tuples = torch.tensor(list(combinations(range(num_steps), cardinality)))  # (M, W)
        self.register_buffer("tuples", tuples, persistent=False)
        mix, rows = self.k_linear.choice.shape
        normed = [(mix, rows + 2), (rows + 2, width)]  # a row for the bias, and one for that of the norm
        self.shapes = [(num_steps, step_width), *normed, *normed, (rows + 1, width)]
        self.size = sum(map(math.prod, self.shapes))

    def describe(self, steps: Tensor) -> Tensor:
        """Encoded steps, and what tuples look for, are found by and hold: (V, S, D) -> (V, F)."""
        steps = self.pe(steps)
        wanted, keys = (
            Tuples.project(linear, steps).layer_norm(self.norm) for linear in (self.q_linear, self.k_linear)
        )
        return pack(steps, *wanted, *keys, Tuples.project(self.v_linear, steps).rows)

    def of_classes(self, described: Tensor, labels: Tensor) -> tuple[Tensor, Tuples, Tuples, Tensor]:
        """Encoded steps, keys and values of the support (B, N, F) by classes (B, K, J, ...), and which shots exist."""
        steps, _, _, *tuples = unpack(described, self.shapes)
        steps, present = group_by_class(steps, labels)
        key_mix, key_rows, value_rows = (group_by_class(part, labels)[0] for part in tuples)
        values = Tuples.of_rows(self.v_linear, value_rows).layer_norm(self.norm)
        return steps, Tuples(key_mix, key_rows), values, present

    def of_queries(self, described: Tensor) -> tuple[Tuples, Tuples]:
        """What the tuples of queries (B, Q, F) look for, and what they hold."""
        _, mix, rows, _, _, value_rows = unpack(described, self.shapes)
        return Tuples(mix, rows), Tuples.of_rows(self.v_linear, value_rows)

    def forward(self, support: Tensor, labels: Tensor, target: Tensor) -> DualScores:
        """Described support (B, N, F), labels (B, N), described target (B, Q, F)."""
        steps, keys, values, present = self.of_classes(support, labels)
        wanted, query_values = self.of_queries(target)
        class_attention = self.attend_to_peers(steps, keys, present)
        query_attention = attention_scores(wanted, keys).softmax(dim=-1)

        own_mix = values.mix * rearrange(present, "b k j -> b k j 1 1")  # what is no shot adds nothing to a prototype
        class_mix = torch.einsum("bkjtu,bkjur->bktjr", class_attention, own_mix)
        query_mix = torch.einsum("bkqtju,bkjur->bkqtjr", query_attention, own_mix)

        class_score, query_score = prototype_cosines(class_mix, query_mix, values, query_values)
        if self.cosine_axis == "tuple":
            query_score = channel_cosines(query_mix, values, query_values)
        class_logits, query_logits = self.scale * class_score, self.scale * query_score
        shot_weights = present / present.sum(dim=-1, keepdim=True)
        return DualScores(class_logits + query_logits, class_logits, query_logits, shot_weights)

    def attend_to_peers(self, steps: Tensor, keys: Tuples, present: Tensor) -> Tensor:
        """How a shot's peers look at its tuples: encoded steps (B, K, J, S, D), keys (B, K, J, M, E) -> (B, K, J, M, M)."""
        peers = torch.einsum("bkji,bkisd->bkjsd", peer_weights(present, steps.dtype), steps)
        # A tuple of peers, which is not projected, times a row is a sum over positions: a step times a part of the row.
        parts = rearrange(keys.rows, "b k j r (w d) -> b k j r w d", w=self.tuples.shape[1])
        products = torch.einsum("bkjsd,bkjrwd->bkjswr", peers, parts)
        positions = torch.arange(self.tuples.shape[1], device=steps.device)
        from_peers = products[..., self.tuples, positions, :].sum(dim=-2)  # (B, K, J, M, R)
        return (from_peers @ keys.mix.mT / math.sqrt(keys.rows.shape[-1])).softmax(dim=-1)


def channel_cosines(query_mix: Tensor, values: Tuples, query_values: Tuples) -> Tensor:
    """Cosine across tuples in each channel to query-specific prototypes, its mean over channels: (B, Q, K).

    What the published code takes for its query-specific score, by the default axis of a function.
    """
    prototypes = torch.einsum("bkqtjr,bkjre->bqkte", query_mix, values.rows)
    tuples = query_values.mix @ query_values.rows
    return F.cosine_similarity(prototypes, rearrange(tuples, "b q t e -> b q 1 t e"), dim=-2).mean(dim=-1)


class CNN_DualPrototypes(CNN_FSHead):
    """Dual prototypes: class-specific and query-specific attentive prototypes over frame tuples.

    "A dual-prototype network combining query-specific and class-specific attentive learning for few-shot action
    recognition" (Jiang, Zhan, Jiang, Tang, Neurocomputing 2024). `--dp_variant robust` weights shots by within-class
    similarity, as the paper's abstract says, and trains with a loss on either score beside that on both; `code` is the
    computation of the code that its authors published. Logits are means over the cardinalities of `--temp_set`, which it
    shares with TRX, as it does `--trans_dropout` and, in the robust variant, `--trans_linear_out_dim`.
    """

    condenses = True

    def __init__(self, args: argparse.Namespace) -> None:
        super().__init__(args)
        check_cardinalities(args, self.num_steps)
        shape = {"step_width": self.backbone.feature_dim, "num_steps": self.num_steps, "dropout": args.trans_dropout}
        self.branches: nn.ModuleList
        if args.dp_variant == "robust":
            shape |= {"out_width": args.trans_linear_out_dim, "scale": args.dp_scale or 20.0}
            self.branches = nn.ModuleList(RobustDualPrototypes(cardinality=w, **shape) for w in args.temp_set)
        else:
            shape |= {"cosine_axis": args.dp_cosine_axis, "scale": args.dp_scale or 1000.0}
            self.branches = nn.ModuleList(PublishedDualPrototypes(cardinality=w, **shape) for w in args.temp_set)
        self.dual_weight = args.dp_dual_weight if args.dp_variant == "robust" else 0.0

    @staticmethod
    def add_arguments(group: Any) -> None:
        group.add_argument(
            "--dp_variant",
            choices=["robust", "code"],
            default="robust",
            help="robust: shots unlike the others of their class count less, needs 3 shots to have an effect; code: as the "
            "authors' code computes it, with square maps (164 M parameters on resnet50)",
        )
        group.add_argument(
            "--dp_cosine_axis",
            choices=["tuple", "feature"],
            default="tuple",
            help="of the code variant's query-specific score; tuple: across tuples in each channel, as the released code; "
            "feature: across channels, as of its other score",
        )
        group.add_argument(
            "--dp_scale",
            type=float,
            above=0,
            help="factor on cosines; unset: 20, learnt from there within [1, 100] (robust), 1000, fixed (code)",
        )
        group.add_argument(
            "--dp_dual_weight",
            type=float,
            least=0,
            default=0.5,
            help="weight of the loss on either score alone, beside that on both; the code variant has none",
        )

    def describe(self, features: Tensor) -> Tensor:
        """Steps (V, S, D) -> what is made of their tuples, of all cardinalities: (V, F)."""
        return descriptions(self.branches, features)

    def classify_described(self, support: Tensor, support_labels: Tensor, target: Tensor) -> dict[str, Tensor]:
        sizes = [branch.size for branch in self.branches]
        parts = zip(self.branches, support.split(sizes, dim=-1), target.split(sizes, dim=-1), strict=True)
        branches = [branch(of_support, support_labels, of_target) for branch, of_support, of_target in parts]
        means = (torch.stack(scores).mean(dim=0) for scores in zip(*branches, strict=True))
        return DualScores(*means)._asdict()

    def loss(self, task_dict: dict[str, Any], model_dict: dict[str, Tensor]) -> Tensor:
        """Cross entropy of the queries by both scores, plus `--dp_dual_weight` times its mean over the single scores."""
        labels = task_dict["target_labels"]
        loss = self.query_loss(model_dict["logits"], labels)
        if self.dual_weight == 0:
            return loss
        single = self.query_loss(model_dict["class_logits"], labels) + self.query_loss(
            model_dict["query_logits"], labels
        )
        return loss + self.dual_weight * single / 2

    def explain(self, support_features: Tensor, support_labels: Tensor, target_features: Tensor) -> dict[str, Tensor]:
        """Means over cardinalities: "logits", "class_logits" and "query_logits" (B, Q, K), "shot_weights" (B, K, J).

        Shots are in the order of `group_by_class`; the weights of a class add up to 1.
        """
        return self.classify(support_features, support_labels, target_features)
