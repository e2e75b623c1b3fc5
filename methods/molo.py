"""MoLo, motion-augmented long-short contrastive learning: steps and motion, each with a token of the whole clip.

"MoLo: Motion-augmented long-short contrastive learning for few-shot action recognition" (Wang et al., CVPR 2023).

Letters: B episodes, K way, N support videos, J shots of a class, Q queries, V videos of an episode, T frames, S feature
steps, D feature width, C channels of motion, h w cells of a feature map.
"""

from __future__ import annotations

import argparse
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from torch import Tensor, nn

from backbones.layers3d import Conv3d
from methods.described import build_aux_classifier, training_class_loss
from methods.hyrsm import ScaledEncoding, StepAttention, check_heads, feed_forward
from methods.similarity import hausdorff_distance, matched_cells
from model import CNN_FSHead, group_by_class, mean_over_shots
from utils import UserError, cos_sim


class LongShort(nn.Module):
    """Steps of a clip, and before them a token that sums it up, after they have looked at each other."""

    def __init__(self, width: int, encoding: ScaledEncoding) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, width))
        self.encoding = encoding
        self.attention = StepAttention(width)
        self.network = feed_forward(width)

    def forward(self, steps: Tensor) -> Tensor:
        """(V, S, D) -> (V, 1 + S, D), not negative."""
        steps = torch.cat([self.token.expand(len(steps), -1, -1), steps], dim=1)
        steps = self.attention(self.encoding(steps))
        return F.relu(steps + self.network(steps))


class Motion(nn.Module):
    """What changes from each step to the next: the later map, once more convolved, minus the earlier one."""

    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        self.reduce = Conv3d(width, channels, 3, padding=1)
        self.later = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, maps: Tensor) -> Tensor:
        """(V, D, S, h, w) -> (V, S - 1, C, h, w)."""
        reduced = rearrange(self.reduce(maps), "v c s h w -> v s c h w")
        later = self.later(reduced[:, 1:].flatten(0, 1)).unflatten(0, (len(maps), -1))
        return later - reduced[:, :-1]


class MotionDecoder(nn.Module):
    """Draws the difference of two frames from the motion between them. Its task is to make motion hold what moves."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        widths = (channels, 128, 32, 16)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU())
            for before, after in zip(widths, widths[1:], strict=False)
        )
        self.draw = nn.Conv2d(widths[-1], 3, 1)

    def forward(self, motion: Tensor, size: tuple[int, int]) -> Tensor:
        """(L, C, h, w) and the size of frames H, W -> (L, 3, H, W), by way of maps 2 and 8 times as large as the first."""
        height, width = motion.shape[-2:]
        for block, wanted in zip(self.blocks, ((2 * height, 2 * width), (8 * height, 8 * width), size), strict=True):
            motion = block(F.interpolate(motion, wanted, mode="bilinear", align_corners=True))
        return self.draw(motion)


class Views(NamedTuple):
    """Of V videos: steps (V, 1 + S, D) and motion (V, S, D), each behind a token of the clip, and motion as maps."""

    steps: Tensor
    motion: Tensor
    motion_maps: Tensor


class CNN_MoLo(CNN_FSHead):
    """MoLo: steps and the motion between them, matched as sets; in training every step also has to know the whole clip.

    Motion-augmented Long-short contrastive learning (Wang et al., CVPR 2023). Logits are minus the mean Hausdorff distance
    of steps, minus `--molo_motion` times that of motion; shots are averaged first. The loss adds: which class it is by the
    distances of steps to tokens of whole clips, both ways; the training class of every clip; and the differences of frames,
    which a decoder draws from motion. A test needs neither pixels, nor decoder, nor classifier.
    """

    reads = "maps"
    condenses = True
    loss_needs_pixels = True

    def __init__(self, args: argparse.Namespace) -> None:
        super().__init__(args)
        width = self.backbone.feature_dim
        channels = width // 8
        check_heads(args, width)
        self.check_frames(args)
        encoding = ScaledEncoding(width, self.num_steps + 1, *args.molo_encoding)
        self.steps, self.motion_steps = LongShort(width, encoding), LongShort(width, encoding)
        self.motion = Motion(width, channels)
        self.expand = nn.Conv2d(channels, width, 1)
        self.motion_weight = args.molo_motion
        self.contrast_weight = args.molo_contrast
        self.contrast_scales = nn.Parameter(torch.ones(2))  # of steps and of motion
        self.reconstruction_weight = args.molo_reconstruction
        self.loss_needs_pixels = bool(args.molo_reconstruction)
        self.decoder = MotionDecoder(channels) if self.loss_needs_pixels else None
        self.aux_weight = args.molo_aux_weight
        self.aux_classifier = build_aux_classifier(args, width, self.aux_weight)

    @staticmethod
    def add_arguments(group: Any) -> None:
        ScaledEncoding.add_argument(group, "--molo_encoding")
        group.add_argument(
            "--molo_motion",
            type=float,
            least=0,
            default=0.3,
            help="weight of the distance of motion beside that of steps",
        )
        group.add_argument(
            "--molo_contrast",
            type=float,
            least=0,
            default=0.05,
            help="weight of each of the four losses of steps against tokens of whole clips; 0: none",
        )
        group.add_argument(
            "--molo_reconstruction",
            type=float,
            least=0,
            default=0.1,
            help="weight of the squared error of frame differences drawn from motion; 0: no decoder, and no pixels needed",
        )
        group.add_argument(
            "--molo_aux_weight",
            type=float,
            least=0,
            default=0.15,
            help="weight of the loss of classifying every clip of a training episode among the training classes",
        )

    def check_frames(self, args: argparse.Namespace) -> None:
        """Raises UserError where there is no motion between steps, or nothing that could be drawn of it."""
        steps = f"backbone {args.backbone} gives {self.num_steps} steps for --seq_len {args.seq_len}"
        if self.num_steps < 2:
            raise UserError(f"--method molo looks at the motion between steps: {steps}; raise it")
        if not args.molo_reconstruction:
            return
        if args.freeze_backbone:
            raise UserError(
                "--molo_reconstruction draws frames and --freeze_backbone trains on features: leave one out, or give "
                "--molo_reconstruction 0"
            )
        if self.num_steps != args.seq_len:
            raise UserError(
                f"--molo_reconstruction draws the differences of successive frames: {steps}; use a backbone that keeps every "
                "frame, or --molo_reconstruction 0"
            )

    def views(self, maps: Tensor) -> Views:
        """Maps (V, D, S, h, w) -> what is compared of each video, and its motion as maps."""
        motion_maps = self.motion(maps)
        of_motion = reduce(F.relu(self.expand(motion_maps.flatten(0, 1))), "(v s) d h w -> v s d", "mean", v=len(maps))
        of_steps = reduce(maps, "v d s h w -> v s d", "mean")
        return Views(self.steps(of_steps), self.motion_steps(of_motion), motion_maps)

    def describe(self, features: Tensor) -> Tensor:
        """Maps (V, D, S, h, w) -> steps and motion, each behind its token: (V, 1 + S + S, D)."""
        return torch.cat(self.views(features)[:2], dim=1)

    def classify(self, support_features: Tensor, support_labels: Tensor, target_features: Tensor) -> dict[str, Tensor]:
        """As of every method, and in training what `loss` needs."""
        videos = torch.cat([support_features, target_features], dim=1)
        views = self.views(videos.flatten(0, 1))
        steps, motion, motion_maps = (view.unflatten(0, videos.shape[:2]) for view in views)
        described = torch.cat([steps, motion], dim=2)
        support, target = described.split([support_features.shape[1], target_features.shape[1]], dim=1)
        outputs = self.classify_described(support, support_labels, target)
        if self.training and self.decoder is not None:
            outputs["motion_maps"] = motion_maps
        if self.training and self.aux_classifier is not None:
            outputs["class_logits"] = self.aux_classifier(steps.mean(dim=2) + motion.mean(dim=2))
        return outputs

    def classify_described(self, support: Tensor, support_labels: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Descriptions (B, N, 1 + 2S, D), labels (B, N), descriptions (B, Q, 1 + 2S, D) -> "logits" (B, Q, K).

        In training also "contrasts" (B, 4, Q, K): of steps and of motion, classes' steps to a query's token, then a query's
        steps to classes' tokens.
        """
        shots, present = group_by_class(support, support_labels)
        classes = mean_over_shots(shots, present[..., None, None], dim=2)
        first = classes.shape[2] // 2 + 1  # steps and their token; motion, behind, is one step shorter
        of_steps, of_motion = ((classes[:, :, part], target[:, :, part]) for part in (slice(first), slice(first, None)))
        steps, motion = (
            hausdorff_distance(1 - step_cosines(queries[:, :, 1:], classes[:, :, 1:]))
            for classes, queries in (of_steps, of_motion)
        )
        outputs = {"logits": -(steps + self.motion_weight * motion)}
        if self.training and self.contrast_weight:
            contrasts = torch.stack([long_short_distances(*branch) for branch in (of_steps, of_motion)], dim=1)
            outputs["contrasts"] = (-rearrange(self.contrast_scales, "n -> n 1 1 1") * contrasts).flatten(1, 2)
        return outputs

    def explain(self, support_features: Tensor, support_labels: Tensor, target_features: Tensor) -> dict[str, Tensor]:
        """ "logits" (B, Q, K) and of the steps alone, without motion, as of the similarity family, where J is 1:

        "similarities" (B, Q, K, J, S, S): cosines of a query's steps and the mean ones of a class; "cells": how often each of
        them is the best of its row or column; "shot_similarities" (B, Q, K, J): minus the distances. "target_motion"
        (B, Q, S - 1, h, w) and "support_motion" (B, K, J, S - 1, h, w), with all shots: how large motion is between steps.
        """
        support, target = self.described(support_features, target_features)
        shots, present = group_by_class(support, support_labels)
        classes = mean_over_shots(shots, present[..., None, None], dim=2)
        steps = slice(1, self.num_steps + 1)  # behind their token
        similarities = rearrange(step_cosines(target[:, :, steps], classes[:, :, steps]), "b q k l m -> b q k 1 l m")
        support_motion, target_motion = (
            self.motion(maps.flatten(0, 1)).norm(dim=2).unflatten(0, maps.shape[:2])
            for maps in (support_features, target_features)
        )
        return {
            "logits": self.classify_described(support, support_labels, target)["logits"],
            "similarities": similarities,
            "cells": matched_cells(similarities),
            "shot_similarities": -hausdorff_distance(1 - similarities),
            "target_motion": target_motion,
            "support_motion": group_by_class(support_motion, support_labels)[0],
        }

    def loss(self, task_dict: dict[str, Any], model_dict: dict[str, Tensor]) -> Tensor:
        """Cross entropy of the queries; plus `--molo_contrast` times that of each contrast of steps and tokens; plus
        `--molo_aux_weight` times that of all clips among the training classes; plus `--molo_reconstruction` times the
        squared error of the drawn differences of normalised frames.
        """
        labels = task_dict["target_labels"]
        loss = self.query_loss(model_dict["logits"], labels)
        if "contrasts" in model_dict:
            contrasts = model_dict["contrasts"]  # (..., 4, Q, K)
            repeated = labels[..., None, :].expand(contrasts.shape[:-1])
            loss = loss + self.contrast_weight * contrasts.shape[-3] * self.query_loss(contrasts, repeated)
        extra = loss.new_zeros(())
        if "class_logits" in model_dict:
            extra = extra + self.aux_weight * training_class_loss(model_dict["class_logits"], task_dict)
        if "motion_maps" in model_dict:
            extra = extra + self.reconstruction_weight * self.reconstruction_error(model_dict["motion_maps"], task_dict)
        return self.with_extra(loss, extra, labels)

    def reconstruction_error(self, motion_maps: Tensor, task_dict: dict[str, Any]) -> Tensor:
        """Mean squared error of the frame differences drawn from the motion maps of all videos (..., V, S - 1, C, h, w)."""
        assert self.decoder is not None
        frames = torch.cat(
            [
                rearrange(task_dict[name], "... (v t) c h w -> ... v t c h w", t=self.args.seq_len)
                for name in ("support_set", "target_set")
            ],
            dim=-5,
        )
        differences = frames[..., 1:, :, :, :] - frames[..., :-1, :, :, :]
        drawn = self.decoder(motion_maps.flatten(0, -4), tuple(frames.shape[-2:]))
        return F.mse_loss(drawn.to(frames.dtype), differences.flatten(0, -4))


def step_cosines(queries: Tensor, classes: Tensor) -> Tensor:
    """Of all steps of a query with all of a class: (B, Q, L, D), (B, K, M, D) -> (B, Q, K, L, M)."""
    cosines = cos_sim(rearrange(queries, "b q l d -> b (q l) d"), rearrange(classes, "b k m d -> b (k m) d"))
    return rearrange(cosines, "b (q l) (k m) -> b q k l m", q=queries.shape[1], k=classes.shape[1])


def long_short_distances(classes: Tensor, queries: Tensor) -> Tensor:
    """Clips with their token first, (B, K, 1 + S, D), (B, Q, 1 + S, D) -> (B, 2, Q, K).

    The cosine distances of the steps of a class to the token of a query, added up; and those of the steps of a query to the
    token of a class.
    """
    distances = 1 - step_cosines(queries, classes)
    return torch.stack([distances[..., 0, 1:].sum(dim=-1), distances[..., 1:, 0].sum(dim=-1)], dim=1)
