"""The few-shot methods by name. To add one: inherit CNN_FSHead in model.py, and write a line in METHODS."""

from __future__ import annotations

import argparse
import copy

import torch

from backbones import build_backbone
from backbones.figures import print_backbones
from engine.settings import build_parser, find_method
from methods.arn import CNN_ARN
from methods.clip_fsar import CNN_CLIPFSAR, CNN_ZeroShot
from methods.cmn import CNN_CMN
from methods.foreign import adapted
from methods.hyrsm import CNN_HyRSM, CNN_HyRSMPlusPlus
from methods.molo import CNN_MoLo
from methods.otam import CNN_OTAM
from methods.pal import CNN_PAL
from methods.similarity import (
    CNN_BiMHM,
    CNN_Chamfer,
    CNN_ChamferPlusPlus,
    CNN_ChamferQuery,
    CNN_ChamferSupport,
    CNN_Diagonal,
    CNN_Linear,
    CNN_Max,
    CNN_Mean,
)
from methods.strm import CNN_STRM
from methods.team import CNN_TEAM
from model import CNN_TRX, CNN_TSN, CNN_DualPrototypes, CNN_FSHead

METHODS: dict[str, type[CNN_FSHead]] = {
    "tsn": CNN_TSN,
    "trx": CNN_TRX,
    "dual_prototypes": CNN_DualPrototypes,
    "otam": CNN_OTAM,
    "pal": CNN_PAL,
    "cmn": CNN_CMN,
    "arn": CNN_ARN,
    "mean": CNN_Mean,
    "max": CNN_Max,
    "diag": CNN_Diagonal,
    "linear": CNN_Linear,
    "chamfer_q": CNN_ChamferQuery,
    "chamfer_s": CNN_ChamferSupport,
    "chamfer": CNN_Chamfer,
    "chamfer++": CNN_ChamferPlusPlus,
    "bimhm": CNN_BiMHM,
    "hyrsm": CNN_HyRSM,
    "hyrsm++": CNN_HyRSMPlusPlus,
    "team": CNN_TEAM,
    "strm": CNN_STRM,
    "molo": CNN_MoLo,
    "clip_fsar": CNN_CLIPFSAR,
    "clip_zero_shot": CNN_ZeroShot,
}


def build_head(args: argparse.Namespace, *, load_pretrained: bool = True, num_train_classes: int = 0) -> CNN_FSHead:
    """The method that `args` name, on its own copy of them.

    The copy also holds `trans_linear_in_dim`, the backbone's feature width, where classes written for the TRX-style
    libraries look for it, and `num_train_classes`, 0 where nothing is trained. `load_pretrained=False` leaves the
    backbone's weights to a checkpoint.
    """
    own_args = argparse.Namespace(**copy.deepcopy(vars(args)), num_train_classes=num_train_classes)
    with torch.device("meta"):
        backbone = build_backbone(args.backbone, seq_len=args.seq_len, **args.backbone_options)
        own_args.trans_linear_in_dim = backbone.feature_dim
    if not load_pretrained:
        own_args.pretrained_backbone, own_args.no_pretrained = None, True
    head = find_method(args.method, METHODS)(own_args)
    return head if isinstance(head, CNN_FSHead) else adapted(head, args)


def print_list() -> None:
    """Methods with their descriptions, backbones with parameters and feature widths."""
    print("methods (--method), parameters of the head on resnet50:")
    parser = build_parser(METHODS)
    for name, head in METHODS.items():
        with torch.device("meta"):
            model = build_head(parser.parse_args(["--method", name, "--no_pretrained"]))
        parameters = sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in model.backbone.parameters())
        kinds = {"transductive": not head.inductive, "uses class names": head.uses_class_text}
        kind = "".join(f"  {name}" for name, holds in kinds.items() if holds)
        print(f"  {name:16}{parameters / 1e6:9.2f} M{kind}  {(head.__doc__ or '').splitlines()[0]}")
    print()
    print_backbones()
