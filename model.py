"""Few-shot heads: `CNN_FSHead`, the base class, and the methods.

A method of one's own subclasses CNN_FSHead and writes `classify`; see the base class.

Letters: B episodes, K way, N support videos of an episode, J shots of a class, Q queries, T frames, S feature steps,
D feature width, W tuple cardinality, M tuples of a video, E width of projected tuples.
"""

from __future__ import annotations

import argparse
import math
from itertools import combinations
from typing import Any, Literal

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from torch import Tensor, nn

from backbones import Backbone, build_backbone
from utils import UserError, cos_sim


def group_by_class(support: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Support videos (B, N, ...) with labels (B, N) in 0..K-1 -> (B, K, J, ...) and which of them exist, bool (B, K, J).

    J is the largest number of shots in the batch; a class with fewer is filled up with zeros. Order within a class is kept.
    Raises ValueError when a class has no support video: no prototype could be made of it.
    """
    way = int(labels.max()) + 1
    is_class = F.one_hot(labels, way)  # (B, N, K)
    shots = is_class.sum(dim=1)  # (B, K)
    if int(shots.min()) == 0:
        episode, label = (shots == 0).nonzero()[0].tolist()
        raise ValueError(
            f"class {label} of episode {episode} has no support video: expected labels 0..{way - 1}, each once"
        )
    rank = (is_class.cumsum(dim=1) - 1).gather(2, labels[..., None])[..., 0]  # how many of the same class came before
    episode = torch.arange(len(labels), device=labels.device)[:, None].expand_as(labels)
    grouped = support.new_zeros(len(labels), way, int(shots.max()), *support.shape[2:])
    grouped = grouped.index_put((episode, labels, rank), support)
    present = torch.arange(int(shots.max()), device=labels.device) < shots[..., None]
    return grouped, present


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


class CNN_FSHead(nn.Module):
    """A backbone and a way to compare videos: base class of every few-shot method.

    A subclass writes `classify`; batching, images, placement and loops are done for it. One that was written for the
    TRX-style libraries overrides `forward` instead, calling `self.get_feats` or `self.backbone` itself, and runs as it is.

    `args` are the settings of the run. A head may read them in its constructor and never writes to them; way and shot are
    read off the labels, since training and testing may differ in them.
    """

    reads: Literal["steps", "maps"] = "steps"
    """What `classify` gets for a video: feature steps (S, D), or feature maps (D, S, h, w)."""

    def __init__(self, args: argparse.Namespace) -> None:
        super().__init__()
        self.args = args
        self.backbone: Backbone = build_backbone(
            args.backbone,
            seq_len=args.seq_len,
            pretrained=args.pretrained_backbone or not args.no_pretrained,
        )
        self.spread_backbone: list[nn.Module] = [self.backbone]
        self.num_steps = self.backbone.num_steps(args.seq_len)
        self.separate_backbone_calls = args.separate_backbone_calls
        self.freeze_batch_norm = args.bn == "frozen"
        self.loss_reduction = args.loss_reduction

    @staticmethod
    def add_arguments(group: Any) -> None:
        """Declares the method's own flags on an argparse group. They reach the constructor in `args`."""

    def get_feats(self, support_images: Tensor, target_images: Tensor) -> tuple[Tensor, Tensor]:
        """Frames (..., N*T, 3, H, W) and (..., Q*T, 3, H, W) -> features (..., N, S, D) and (..., Q, S, D).

        Both go through the backbone in one call, which is faster; batch norm in training then takes its statistics over
        both. With `separate_backbone_calls` they are kept apart, as in the TRX-style libraries.
        """
        extract = self.backbone.feature_maps if self.reads == "maps" else self.spread_backbone[0]
        episodes = support_images.shape[:-4]
        clips = [
            rearrange(images.reshape(-1, *images.shape[-3:]), "(n t) c h w -> n t c h w", t=self.args.seq_len)
            for images in (support_images, target_images)
        ]
        if self.separate_backbone_calls:
            features = [extract(group) for group in clips]
        else:
            features = list(extract(torch.cat(clips)).split([len(group) for group in clips]))
        support, target = (group.unflatten(0, (*episodes, -1)) for group in features)
        return support, target

    def classify(self, support_features: Tensor, support_labels: Tensor, target_features: Tensor) -> Any:
        """Scores every query against every class, many episodes at once.

        support_features (B, N, S, D), support_labels int64 (B, N) in 0..K-1, target_features (B, Q, S, D), all float32
        -> logits (B, Q, K), or a dict of them under "logits" and whatever else `loss` needs, each with B in front.
        """
        raise NotImplementedError(f"{type(self).__name__} must define classify() or forward()")

    def classify_episodes(self, support: Tensor, labels: Tensor, target: Tensor) -> dict[str, Tensor]:
        """`classify` in float32, whatever precision the backbone ran in, with its answer as a dict."""
        with torch.autocast(support.device.type, enabled=False):
            outputs = self.classify(support.float(), labels.long(), target.float())
        return outputs if isinstance(outputs, dict) else {"logits": outputs}

    def forward(self, support_images: Tensor, support_labels: Tensor, target_images: Tensor) -> dict[str, Tensor]:
        """One episode: frames (N*T, 3, H, W), labels (N,), frames (Q*T, 3, H, W) -> {"logits": (Q, K), ...}.

        With an axis B in front of all three, that many episodes: {"logits": (B, Q, K), ...}.
        """
        support_features, target_features = self.get_feats(support_images, target_images)
        if support_labels.ndim == 2:
            return self.classify_episodes(support_features, support_labels, target_features)
        outputs = self.classify_episodes(support_features[None], support_labels[None], target_features[None])
        return {name: value[0] for name, value in outputs.items()}

    def loss(self, task_dict: dict[str, Any], model_dict: dict[str, Tensor]) -> Tensor:
        """Cross entropy of the queries, a scalar: their mean, or with `--loss_reduction sum` their sum per episode."""
        return self.query_loss(model_dict["logits"], task_dict["target_labels"])

    def query_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Cross entropy of logits (Q, K) or (B, Q, K) with labels (Q,) or (B, Q), reduced as `--loss_reduction` says."""
        losses = F.cross_entropy(logits.flatten(0, -2), labels.long().flatten(), reduction="none").reshape(labels.shape)
        return losses.mean() if self.loss_reduction == "mean" else losses.sum(dim=-1).mean()

    def distribute_model(self) -> None:
        """Spreads the backbone over `--num_gpus` GPUs by whole clips; the rest of the method stays on the first.

        Called once after the model was moved to the first GPU; override it to place more of a method. The names of saved
        weights do not change, so that a checkpoint loads on any number of GPUs.
        """
        # In a list, so that the wrapper is no submodule and does not change the names of the weights.
        self.spread_backbone = [nn.DataParallel(self.backbone, device_ids=list(range(self.args.num_gpus)))]

    def train(self, mode: bool = True) -> CNN_FSHead:
        """As nn.Module.train; with `--bn frozen` the backbone's batch norms keep their stored statistics."""
        super().train(mode)
        if mode and self.freeze_batch_norm:
            for module in self.backbone.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self


class CNN_TSN(CNN_FSHead):
    """TSN baseline: similarity of frame-averaged features, blind to the order of frames.

    Temporal Segment Networks (Wang et al., ECCV 2016) as the few-shot literature uses them: no parameters but the scale.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        super().__init__(args)
        self.distance = args.tsn_distance
        self.scale = LogitScale(args.tsn_scale)

    @staticmethod
    def add_arguments(group: Any) -> None:
        group.add_argument(
            "--tsn_distance",
            choices=["cosine", "sqeuclid"],
            default="cosine",
            help="cosine: mean cosine to the support videos of a class; sqeuclid: minus the squared distance per feature to "
            "their mean",
        )
        group.add_argument(
            "--tsn_scale",
            type=float,
            default=10.0,
            help="factor on TSN's similarities at the start, learnt from there within [1, 100]; larger is more confident",
        )

    def classify(self, support_features: Tensor, support_labels: Tensor, target_features: Tensor) -> Tensor:
        support, present = group_by_class(reduce(support_features, "b n s d -> b n d", "mean"), support_labels)
        target = reduce(target_features, "b q s d -> b q d", "mean")
        if self.distance == "cosine":
            cosines = cos_sim(target, rearrange(support, "b k j d -> b (k j) d"))
            cosines = rearrange(cosines, "b q (k j) -> b q k j", j=support.shape[2])
            return self.scale(mean_over_shots(cosines, present[:, None], dim=-1))
        prototypes = mean_over_shots(support, present[..., None], dim=2)  # (B, K, D)
        # |f - p|^2 without |f|^2, which is the same for every class of a query and so changes neither loss nor answer.
        similarities = 2 * target @ prototypes.mT - rearrange(prototypes.square().sum(-1), "b k -> b 1 k")
        return self.scale(similarities / target.shape[-1])


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

    def forward(self, steps: Tensor) -> Tensor:
        """(..., S, D) -> (..., M, E)."""
        weights = self.weight.chunk(self.cardinality, dim=1)
        projected = [steps[..., i : i + self.reach, :] @ weight.mT for i, weight in enumerate(weights)]
        # The sum over a tuple's positions as a product with 0/1 rows: its backward is a product too, not a scatter.
        return self.choice @ torch.cat(projected, dim=-2) + self.bias


class TemporalCrossTransformer(nn.Module):
    """TRX for tuples of one cardinality: a prototype of each class for each query, made of the tuples that match it.

    Equations 1 to 7 of Perrett et al., CVPR 2021.
    """

    def __init__(self, step_width: int, out_width: int, cardinality: int, num_steps: int, dropout: float) -> None:
        super().__init__()
        self.pe = PositionalEncoding(step_width, num_steps, dropout)
        self.k_linear = TupleLinear(step_width, cardinality, out_width, num_steps)
        self.v_linear = TupleLinear(step_width, cardinality, out_width, num_steps)
        self.norm_k = nn.LayerNorm(out_width)

    def attention(self, query_keys: Tensor, class_keys: Tensor, present: Tensor) -> Tensor:
        """How much each query tuple looks at each support tuple of a class: softmax over all its shots and tuples.

        (B, Q, M, E), (B, K, J, M, E), bool (B, K, J) -> (B, K, Q*M, J*M).
        """
        scores = torch.einsum(
            "bqe,bkse->bkqs",
            rearrange(query_keys, "b q m e -> b (q m) e") / math.sqrt(query_keys.shape[-1]),
            rearrange(class_keys, "b k j m e -> b k (j m) e"),
        )
        if not bool(present.all()):
            missing = ~present.repeat_interleave(class_keys.shape[3], dim=-1)  # (B, K, J*M)
            scores = scores.masked_fill(missing[:, :, None], -math.inf)
        return scores.softmax(dim=-1)

    def forward(self, support: Tensor, present: Tensor, target: Tensor) -> Tensor:
        """Support (B, K, J, S, D), which of it exists (B, K, J), target (B, Q, S, D) -> logits (B, Q, K)."""
        support, target = self.pe(support), self.pe(target)
        class_values, query_values = self.v_linear(support), self.v_linear(target)
        weights = self.attention(self.norm_k(self.k_linear(target)), self.norm_k(self.k_linear(support)), present)
        values = rearrange(class_values, "b k j m e -> b k (j m) e")
        queries = rearrange(query_values, "b q m e -> b (q m) e")
        distances = prototype_distances(weights, values, queries)  # (B, K, Q*M)
        return -reduce(distances, "b k (q m) -> b q k", "mean", q=target.shape[1])


def prototype_distances(weights: Tensor, values: Tensor, queries: Tensor) -> Tensor:
    """Squared distances of queries (B, R, E) to their own prototypes `weights @ values`: (B, K, R), never negative.

    weights (B, K, R, U) mix a class's values (B, K, U, E). |q - wV|^2 = |q|^2 - 2 w(Vq) + w(VV')w' needs U numbers for
    each query and class where the prototype has E, so it is used where U is the smaller.
    """
    if values.shape[2] >= values.shape[3]:
        return (queries[:, None] - weights @ values).square().sum(-1)
    agreement = torch.einsum("bre,bkue->bkru", queries, values)
    spread = weights @ (values @ values.mT)
    squared = (weights * (spread - 2 * agreement)).sum(-1) + rearrange(queries.square().sum(-1), "b r -> b 1 r")
    return squared.clamp_min(0)


class CNN_TRX(CNN_FSHead):
    """TRX: query-specific class prototypes from ordered frame tuples.

    Temporal-Relational CrossTransformers (Perrett, Masullo, Burghardt, Mirmehdi, Damen, CVPR 2021): logits are the mean
    over the cardinalities of `--temp_set` of minus the mean squared distance of a query's tuples to their prototypes.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        super().__init__(args)
        if max(args.temp_set) > self.num_steps or min(args.temp_set) < 1:
            raise UserError(
                f"--temp_set {' '.join(map(str, args.temp_set))} needs tuples of 1 to {self.num_steps} steps: backbone "
                f"{args.backbone} gives {self.num_steps} for --seq_len {args.seq_len}; lower it or raise --seq_len"
            )
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
            default=[2, 3],
            help="tuple cardinalities, in frames; 2 3 is the paper's choice, larger ones cost more and gain little",
        )
        group.add_argument(
            "--trans_linear_out_dim", type=int, default=1152, help="width of the keys and values of tuples"
        )
        group.add_argument(
            "--trans_dropout", type=float, default=0.1, help="dropout on frame features before tuples are made, 0 to 1"
        )

    def classify(self, support_features: Tensor, support_labels: Tensor, target_features: Tensor) -> Tensor:
        support, present = group_by_class(support_features, support_labels)
        logits = [transformer(support, present, target_features) for transformer in self.transformers]
        return torch.stack(logits).mean(dim=0)
