"""The base class of every few-shot method, and what several methods share.

Letters: B episodes, K way, N support videos of an episode, J shots of a class, Q queries, T frames, S feature steps,
D feature width.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from backbones import Backbone, build_backbone


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
            **args.backbone_options,
        )
        self.backbone.set_passes(frames_per_call=args.frames_per_call, recompute=args.checkpoint_activations)
        self.num_steps = self.backbone.num_steps(args.seq_len)
        self.separate_backbone_calls = args.separate_backbone_calls
        self.freeze_batch_norm = args.bn == "frozen"
        self.freeze_backbone = args.freeze_backbone
        if self.freeze_backbone:
            self.backbone.requires_grad_(False)
        self.loss_reduction = args.loss_reduction

    @staticmethod
    def add_arguments(group: Any) -> None:
        """Declares the method's own flags on an argparse group. They reach the constructor in `args`."""

    @property
    def works_on_features(self) -> bool:
        """Whether `classify` is all that happens after the backbone, so that stored features can replace images."""
        own = type(self)
        return (
            own.classify is not CNN_FSHead.classify
            and own.forward is CNN_FSHead.forward
            and own.get_feats is CNN_FSHead.get_feats
        )

    @property
    def condenses(self) -> bool:
        """Whether `describe` and `classify_described` together are `classify`, so that a test may keep descriptions."""
        return False

    @property
    def takes_episodes(self) -> bool:
        """Whether `forward` takes several episodes at once."""
        return type(self).forward is CNN_FSHead.forward

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

    def classify(self, support_features: Tensor, support_labels: Tensor, target_features: Tensor) -> Any:
        """Scores every query against every class, many episodes at once.

        support_features (B, N, S, D), support_labels int64 (B, N) in 0..K-1, target_features (B, Q, S, D), all float32
        -> logits (B, Q, K), or a dict of them under "logits" and whatever else `loss` needs, each with B in front.
        """
        raise NotImplementedError(f"{type(self).__name__} must define classify() or forward()")

    def describe(self, features: Tensor) -> Tensor:
        """What is compared of each video, made of its features alone: features (N, ...) -> (N, ...).

        For methods that make less of a video than its features are. Weights are fixed in a test, and so are these.
        """
        return features

    def classify_described(self, support: Tensor, support_labels: Tensor, target: Tensor) -> Any:
        """As `classify`, from what `describe` made of each video, (B, N, ...) and (B, Q, ...)."""
        return self.classify(support, support_labels, target)

    def classify_episodes(
        self, support: Tensor, labels: Tensor, target: Tensor, *, described: bool = False
    ) -> dict[str, Tensor]:
        """`classify` in float32, whatever precision the backbone ran in, with its answer as a dict.

        described: the videos come as `describe` made them.
        """
        classify = self.classify_described if described else self.classify
        with torch.autocast(support.device.type, enabled=False):
            outputs = classify(support.float(), labels.long(), target.float())
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
        return self.over_queries(losses)

    def over_queries(self, losses: Tensor) -> Tensor:
        """Losses of queries, (Q,) or (B, Q), as one: their mean, or with `--loss_reduction sum` their sum per episode."""
        return losses.mean() if self.loss_reduction == "mean" else losses.sum(dim=-1).mean()

    def distribute_model(self, devices: Sequence[torch.device] = ()) -> None:
        """Spreads the backbone over `--num_gpus` GPUs by whole clips; the rest of the method stays on the first.

        Called once after the model was moved to the first GPU; override it to place more of a method. The names of saved
        weights do not change, so that a checkpoint loads on any number of GPUs. devices: others than the GPUs, the first
        of them the model's. Outputs and gradients are those of one device, but for batch norms that are being trained:
        each device takes statistics over its own clips, and the first one's are kept.
        """
        gpus = [torch.device("cuda", number) for number in range(self.args.num_gpus)]
        self.backbone.clip_pass.devices = list(devices) or gpus

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
    for name, part in list(head.named_children()):
        if isinstance(part, nn.DataParallel):
            setattr(head, name, part.module)
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
