"""Heads that know nothing of this library: classes of TRX-style files as they were released, with a base class of their own."""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

from torch import nn

from clips.transforms import InputSpec
from utils import UserError

NEEDS = ("forward", "loss", "distribute_model")

# Flags whose work is done by backbones of this library, at the values that ask for nothing.
WITHOUT_EFFECT = {
    "freeze_backbone": False, "checkpoint_activations": False, "frames_per_call": 0, "compile": False, "bn": "train",
    "separate_backbone_calls": False, "backbone_options": {}, "pretrained_backbone": None, "loss_reduction": "mean",
    "backbone_rate": 1.0, "train_layers": None, "lora": 0, "no_norm_decay": False,
}  # fmt: skip


def parameter_groups(head: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    trained = [parameter for parameter in head.parameters() if parameter.requires_grad]
    return [{"params": trained, "weight_decay": weight_decay}] if trained else []


def adapted(head: Any, args: argparse.Namespace) -> Any:
    """The same module, with what the loops ask of every head where it does not say it itself.

    It gets one episode at a time, as frames (N*T, 3, H, W), labels and frames (Q*T, 3, H, W), and answers {"logits":
    (Q, K)}. Pixels are normalised as ImageNet weights expect them, unless `--normalise none` leaves them in 0..1, as the
    TRX-style libraries do. Raises UserError for a class that cannot be trained, and for flags that it would ignore.
    """
    missing = [name for name in NEEDS if not callable(getattr(head, name, None))]
    if not isinstance(head, nn.Module) or missing:
        raise UserError(
            f"--method {args.method} makes a {type(head).__name__} without {', '.join(missing) or 'weights'}: expected an "
            "nn.Module with forward, loss and distribute_model, such as a subclass of model.CNN_FSHead"
        )
    ignored = [name for name, unset in WITHOUT_EFFECT.items() if getattr(args, name) != unset]
    if ignored:
        raise UserError(
            f"--{ignored[0]} has no effect on {args.method}, which does not extend model.CNN_FSHead: leave it out"
        )
    stated = {
        "works_on_features": False, "takes_episodes": False, "condenses": False, "reads": "steps", "inductive": None,
        "uses_class_text": False, "class_text_width": None, "loss_needs_pixels": False,
        "parameter_groups": partial(parameter_groups, head, args.weight_decay),
    }  # fmt: skip
    for name, value in stated.items():
        if not hasattr(head, name):
            setattr(head, name, value)
    backbone: Any = getattr(head, "backbone", None) or nn.Identity()
    backbone.input_spec, backbone.frames_per_step = InputSpec(), 1
    head.backbone = backbone
    return head
