"""`Recogniser`: a backbone with a linear classifier on top, for ordinary action recognition.

Letters: N clips, T frames, S feature steps, D feature width, C classes.
"""

from __future__ import annotations

from typing import Any

import torch
from einops import reduce
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from backbones import Backbone
from backbones.msn import DeformConv2d

# Factors on learning rate and weight decay, as the TSN and TSM code bases set them: biases learn twice as fast, neither
# they nor batch norms decay; with `tsm_fc5` the classifier learns five times as fast.
LAYER_RATES = ("uniform", "tsm", "tsm_fc5")


class Recogniser(nn.Module):
    """Clips (N, T, 3, H, W) -> logits (N, C): features of each step, dropout, a linear map, and the mean over steps.

    The consensus of TSN (Wang et al., ECCV 2016), which TSM, TAM, I3D and the others have kept. bn: train; partial: all
    batch norms but the first keep their stored statistics and are not trained, as TSN fine-tunes; frozen: all keep their
    statistics, and their weights are trained.
    """

    def __init__(self, backbone: Backbone, num_classes: int, *, dropout: float = 0.5, bn: str = "train") -> None:
        super().__init__()
        self.backbone = backbone
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(backbone.feature_dim, num_classes)
        nn.init.normal_(self.classifier.weight, std=0.001)
        nn.init.zeros_(self.classifier.bias)
        norms = [module for module in backbone.modules() if isinstance(module, _BatchNorm)]
        self.frozen_norms = {"partial": norms[1:], "frozen": norms}.get(bn, [])
        if bn == "partial":
            for norm in self.frozen_norms:
                norm.requires_grad_(False)

    def forward(self, clips: Tensor) -> Tensor:
        features = self.dropout(self.backbone(clips))
        with torch.autocast(features.device.type, enabled=False):
            return reduce(self.classifier(features.to(self.classifier.weight.dtype)), "n s c -> n c", "mean")

    def train(self, mode: bool = True) -> Recogniser:
        super().train(mode)
        for norm in self.frozen_norms:
            norm.eval()
        return self

    def parameter_groups(self, layer_rates: str, weight_decay: float) -> list[dict[str, Any]]:
        """What an optimiser takes: trained parameters with their "weight_decay" and "lr_mult". See LAYER_RATES.

        What predicts the offsets of deformable kernels learns at a tenth of the rate under any of them, as MSN's authors
        meant it to: their code sets that factor where nothing reads it. Where it does not train the kernels either (MSN's
        variant `released`) it has no effect here as well.
        """
        trained = {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}
        modules = dict(self.named_modules())
        norms = {name for name, module in modules.items() if isinstance(module, _BatchNorm)}
        offsets = {
            f"{name}.offset"
            for name, module in modules.items()
            if isinstance(module, DeformConv2d) and module.weight.requires_grad
        }
        groups: dict[str, list[nn.Parameter]] = {}
        for name, parameter in trained.items():
            owner = name.rpartition(".")[0]
            if owner in offsets:
                kind = "offsets"
            elif layer_rates == "uniform":
                kind = "all"
            elif owner in norms:
                kind = "norms"
            elif name.startswith("classifier.") and layer_rates == "tsm_fc5":
                kind = "classifier weight" if name.endswith("weight") else "classifier bias"
            else:
                kind = "biases" if name.endswith("bias") else "weights"
            groups.setdefault(kind, []).append(parameter)
        factors = {  # on learning rate and on weight decay
            "all": (1.0, 1.0), "weights": (1.0, 1.0), "biases": (2.0, 0.0), "norms": (1.0, 0.0),
            "classifier weight": (5.0, 1.0), "classifier bias": (10.0, 0.0), "offsets": (0.1, 1.0),
        }  # fmt: skip
        return [
            {
                "params": parameters,
                "name": kind,
                "lr_mult": factors[kind][0],
                "weight_decay": weight_decay * factors[kind][1],
            }
            for kind, parameters in groups.items()
        ]
