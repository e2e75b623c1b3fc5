"""Recognisers that other code bases have released: whose a file is, which network of ours is in it, and its classifier.

CODE_BASES holds a rule for each code base: how its files are known, and how its network is read off the names and shapes
of the tensors, and off the name that it was trained under (in the file, or of the file and its folder). What neither
tells is asked for by the name of its flag; where they contradict each other, or a flag, the file is refused with both.

Names and containers: mit-han-lab/temporal-shift-module, MCG-NJU/TDN, IBM/action-recognition-pytorch and its version of
2020, kenshohara/3D-ResNets-PyTorch, open-mmlab/mmaction2, and torchvision.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from backbones import BACKBONES, build_backbone
from backbones.recogniser import Recogniser
from backbones.resnet2d import STAGES
from backbones.weight_files import state_dict_in
from backbones.weights import LoadReport, load_weights
from utils import UserError

Facts = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class File:
    """A file of another code base: its tensors, under names without `module.`, what it was called in training, and the text
    of the training's configuration, where it is kept."""

    path: Path
    state: Mapping[str, Tensor]
    arch: str
    config: str = ""

    @property
    def title(self) -> str:
        """The name of the training: in the file, as the Study keeps it, or else the names of the network, folder and file."""
        return self.arch if "-" in self.arch else f"{self.arch} {self.path.parent.name}/{self.path.name}".strip()

    @property
    def is_3d(self) -> bool:
        return len(self.shape(r"^conv1(\.conv)?\.weight$")) == 5

    def has(self, pattern: str) -> bool:
        """Whether a tensor's name matches."""
        return any(re.search(pattern, name) for name in self.state)

    def shape(self, pattern: str) -> tuple[int, ...]:
        """Of the first tensor whose name matches; () where there is none."""
        return next((tuple(tensor.shape) for name, tensor in self.state.items() if re.search(pattern, name)), ())

    def told(self, pattern: str) -> str | None:
        """What the title says in the group of a pattern; None where it says nothing."""
        found = re.search(pattern, self.title, re.IGNORECASE)
        return found[1] if found else None

    def agreed(self, what: str, seen: Any, told: Any) -> Any:
        """What tensors and title say, each None where it is silent. Raises UserError where they contradict each other."""
        if None not in (seen, told) and seen != told:
            raise UserError(
                f"{self.path} is called {what} {told} ({self.title}), and its tensors are of {what} {seen}: expected the "
                "same, give the file back its name"
            )
        return told if seen is None else seen

    def resnet_depth(self) -> int:
        """The depth of the ResNet whose blocks the tensors are."""
        places = [re.match(rf"{INSIDE}layer([1-4])(?:_bak)?\.(?:net\.)?(\d+)\.(.*)", name) for name in self.state]
        blocks = {(int(place[1]), int(place[2])) for place in places if place}
        deep = any(place and re.match(r"(?:block\.|net\.)*conv3\b", place[3]) for place in places)
        found = tuple(sum(stage == number for stage, _ in blocks) for number in (1, 2, 3, 4))
        for depth, stages in STAGES.items():
            if stages == found and (depth >= 50) == deep:
                return depth
        raise UserError(
            f"{self.path} has {', '.join(map(str, found))} blocks in its stages: expected those of a ResNet, of "
            f"{', '.join(map(str, STAGES))} layers"
        )


LEFT_OUT = r"(base_model\.conv1_temp|aux[12])\."  # what serves training only, or nothing
INSIDE = r"(?:base_model\.|backbone\.)?"  # what a network is called inside a recogniser


@dataclasses.dataclass(frozen=True)
class Network:
    """What a file tells of its network. options: of the backbone's builder, None for those that it does not tell.
    frames: of a clip, None where it does not tell. usual: the code base's defaults of options that no file tells."""

    backbone: str
    options: Facts
    frames: int | None = None
    sampling: str = "tsm"
    usual: str = ""


@dataclasses.dataclass(frozen=True)
class CodeBase:
    """The rule for a code base. classifier: patterns of its linear layer's name, with the weight's ending left out."""

    holds: Callable[[File], bool]
    network: Callable[[File], Network]
    classifier: str


# ---------------------------------------------------------------------------------------------------------------------
# How the network is read, by code base


def tsm(file: File) -> Network:
    """TSM and its TSN: TSM_<data>_RGB_<arch>[_shift8_blockres][_tpool]_avg_segment8_e50[_dense][_nl].pth."""
    if file.has(r"base_model\.conv1_7x7_s2\.|base_model\.inception_"):
        raise UserError(f"{file.path} is a BNInception: no network of this library, give a ResNet or MobileNetV2")
    only_rgb(file, r"base_model\.(conv1|features\.0\.0)\.weight$")
    mobile = file.has(r"base_model\.features\.")
    place = "block" if file.has(r"layer\d\.(net\.)?\d+\.(block\.)?net\.") else None
    place = "blockres" if file.has(r"\bconv1\.net\.|\bconv\.0\.net\.") else place
    told_place = file.told(r"_shift\d+_(block(?:res)?)_")
    file.agreed("shift_place", place or "none", told_place or ("none" if is_tsm_title(file) else None))
    options: Facts = {}
    if place:
        told_div = file.told(r"_shift(\d+)_")
        options["shift_div"] = int(told_div) if told_div else None
    if mobile:
        return Network("tsm_mobilenet_v2" if place else "mobilenet_v2", options, told_segments(file), dense(file))
    depth = file.agreed("depth", file.resnet_depth(), number(file.told(r"resnet(\d+)")))
    if place:
        options["place"] = place
    if file.has(r"\.nl\."):
        options["non_local"] = True
    if file.has(r"layer2\.net\."):
        options["temporal_pool"] = 1
    return Network(f"{'tsm_' if place else ''}resnet{depth}", options, told_segments(file), dense(file))


def is_tsm_title(file: File) -> bool:
    return file.told(r"(TSM_\w+_avg_segment)") is not None


def told_segments(file: File) -> int | None:
    return number(file.told(r"_segment(\d+)"))


def dense(file: File) -> str:
    return "tsm_dense" if file.told(r"(_dense)\b|_dense_") or "_dense" in file.title else "tsm"


def number(text: str | None) -> int | None:
    return int(text) if text else None


def only_rgb(file: File, first: str) -> None:
    shape = file.shape(first)
    if shape and shape[1] != 3:
        raise UserError(
            f"{file.path} takes {shape[1]} channels, optical flow or differences of frames: expected 3, for RGB frames"
        )


def tdn(file: File) -> Network:
    """TDN_<data>_RGB_resnet50_avg_segment8_e60/best.pth.tar; five frames for each segment."""
    depth = file.agreed("depth", file.resnet_depth(), number(file.told(r"resnet(\d+)")))
    segments = told_segments(file)
    return Network(f"tdn_resnet{depth}", {}, segments and 5 * segments, "tdn")


def study(file: File) -> Network:
    """<data>-rgb-<network>[-ts[-max]]-f32-...: the Action Recognition Study, of IBM."""
    told_frames = number(file.told(r"-f(\d+)\b"))
    strides = None if told_frames is None else file.told(r"(-ts)\b") is not None
    pooling = file.told(r"-ts-(max|avg)\b")
    has_pools = strides is not False
    flat = len(file.shape(r"^conv1(\.conv)?\.weight$")) == 4
    inception = file.has(r"^inception3a\.")
    depth = None if inception else file.agreed("depth", file.resnet_depth(), number(file.told(r"resnet-(\d+)")))
    options: Facts = {}
    usual = ""
    aggregates = file.has(r"\btam\w*\.")
    if flat:
        options["temporal_pool"] = None if strides is None else 3 if strides else 0
        if has_pools:
            options["pooling"] = pooling
        if aggregates:
            options["depthwise"] = file.shape(r"curr(_se\.fc1)?\.weight$")[1] == 1
            options["blend"] = file.told(r"TAM-b\d+-(sum|max)") or None
            if not inception:
                options["shortcut"] = None
                usual = "shortcut=pre in the release of 2021"
        name = "inception_v1" if inception else f"resnet{depth}"
        return Network(f"tam_{name}" if aggregates else name, options, told_frames, "study", usual)
    options["temporal_stride"] = strides
    separable = file.shape(r"\bconv\d?_t\.weight$")
    if separable:
        options["dw_t_conv"] = separable[1] == 1
    if inception:
        options["pooling"] = pooling or file.told(r"(max|avg)") or (None if has_pools else "max")
        if not separable:
            options["form"] = "study" if file.told(r"(i3d_v2)") else None
        return Network("s3d_inception_v1" if separable else "i3d", options, told_frames, "study")
    return Network(f"{'s3d' if separable else 'i3d'}_resnet{depth}", options, told_frames, "study")


def resnets_3d(file: File) -> Network:
    """Hara's: {"arch": "resnet-50", "state_dict": ...}."""
    depth = file.agreed("depth", file.resnet_depth(), number(file.told(r"resnet\w*-(\d+)|r3d(\d+)")))
    factored = file.has(r"^conv1_s\.")
    kernel = file.shape(r"^conv1(_t)?\.weight$")
    options: Facts = {
        "shortcut": "B" if file.has(r"\.downsample\.") else "A",
        "conv1_t_size": kernel[2],
        "conv1_t_stride": None,
        "no_max_pool": None,
    }
    width = file.shape(r"^layer1\.0\.conv1\.weight$")[:1]
    if depth >= 50 and not factored and width != (64,):
        options["width"] = width[0]
    name = f"resnet2p1d{depth}" if factored else f"resnet3d{depth}"
    return Network(name, options, None, "study_dense", "conv1_t_stride=1 no_max_pool=false in all released files")


def mmaction(file: File) -> Network:
    """MMAction2's recognisers: tsm_..-r50_8xb16-1x1x8-50e_kinetics400-rgb_<date>-<hash>.pth, {"state_dict": ...}."""
    clip = re.search(r"(\d+)x(\d+)x(\d+)", file.path.name)
    if file.has(r"^backbone\.layer1\.0\.conv\.0\."):
        only_rgb(file, r"^backbone\.conv1\.conv\.weight$")
        frames = int(clip[1]) * int(clip[3]) if clip else None
        if not file.has(r"\.conv\.0\.net\."):
            return Network("mobilenet_v2", {}, frames)
        return Network("tsm_mobilenet_v2", {"shift_div": shift_div(file)}, frames, usual="shift_div=8")
    if file.has(r"^backbone\.conv1\.conv\.conv_s\.") and (depth := file.resnet_depth()) < 50:
        only_rgb(file, r"^backbone\.conv1\.conv\.conv_s\.weight$")
        return Network(f"resnet2p1d{depth}", {"form": "mmaction2"}, clip and int(clip[1]), "study_dense")
    shape = file.shape(r"^backbone\.conv1\.conv\.weight$")
    if len(shape) not in (4, 5):
        raise UserError(f"{file.path} {NOT_OF_MMACTION}")
    only_rgb(file, r"^backbone\.conv1\.conv\.weight$")
    depth = file.resnet_depth()
    if len(shape) == 5:
        inflated = [file.shape(rf"layer{stage}\.0\.conv1\.conv\.weight$")[2] for stage in (1, 2, 3, 4)]
        forms: dict[tuple[int, ...], Facts] = {
            (5, 3, 3, 3, 1): {"kernels": "3x1x1", "temporal_stride": True},
            (1, 1, 1, 3, 3): {"kernels": "slow"},
        }
        options = forms.get((shape[2], *inflated), {})
        if not options or depth < 50 or file.has(r"non_local_block"):
            raise UserError(f"{file.path} {NOT_OF_MMACTION}")
        return Network(f"i3d_resnet{depth}", options, clip and int(clip[1]), "study_dense")
    frames = int(clip[1]) * int(clip[3]) if clip else None
    place = "block" if file.has(r"layer1\.0\.net\.") else "blockres" if file.has(r"conv1\.conv\.net\.") else None
    if place is None:
        return Network(f"resnet{depth}", {}, frames)
    options = {"place": place, "shift_div": shift_div(file)}
    if file.has(r"layer2\.net\."):
        options["temporal_pool"] = 1
    if file.has(r"non_local_block"):
        options["non_local"] = True
        if not re.search(r"nl-embedded-gaussian|mode\s*=\s*.embedded_gaussian", f"{file.path.name} {file.config}"):
            raise UserError(
                f"{file.path} does not tell that its non-local blocks are embedded Gaussian, as those of this library: give "
                "the file back its name (..._nl-embedded-gaussian_...)"
            )
    return Network(f"tsm_resnet{depth}", options, frames, usual="shift_div=8")


def shift_div(file: File) -> int | None:
    """Of MMAction2's TSM, which its configuration tells."""
    found = re.search(r"shift_div\s*=\s*(\d+)", file.config)
    return int(found[1]) if found else None


NOT_OF_MMACTION = (
    "holds a network of MMAction2 that this library does not have: expected TSN or TSM of ResNets or MobileNetV2, I3D or "
    "SlowOnly of ResNets of 50 layers or more, or R(2+1)D of fewer"
)


def video_of_torchvision(file: File) -> Network:
    if file.has(r"^stem\."):
        if not file.has(r"^layer1\.0\.conv1\.0\.0\."):
            flat = file.shape(r"^layer2\.0\.conv1\.0\.weight$")[2] == 1
            return Network("mc3_18" if flat else "r3d_18", {})
        depth = file.resnet_depth()
        paper = file.shape(r"^layer2\.0\.conv2\.0\.0\.weight$")[0] == 288
        return Network(f"r2plus1d_{depth}", {"midplanes": "paper"} if paper else {})
    if file.has(r"^patch_embed\."):
        deep = file.has(r"^features\.4\.17\.")
        wide = file.shape(r"^patch_embed\.proj\.weight$")[0] == 128
        return Network(f"swin3d_{'b' if wide else 's' if deep else 't'}", {})
    if file.has(r"^conv_proj\."):
        relative = file.has(r"\.rel_pos_h$")
        return Network("mvit_v2_s" if relative else "mvit_v1_b", {"token": "class"}, 16)
    return Network("s3d", {"steps": "pairs"})


def images_of_torchvision(file: File) -> Network:
    if file.has(r"^inception3a\."):
        return Network("inception_v1", {})
    if file.has(r"^features\.18\."):
        return Network("mobilenet_v2", {})
    return Network(f"resnet{file.resnet_depth()}", {})


CODE_BASES: dict[str, CodeBase] = {
    "TDN": CodeBase(lambda file: file.has(r"^base_model\.resnext_layer1\."), tdn, r"new_fc"),
    "TSM": CodeBase(lambda file: file.has(r"^base_model\.") and file.has(r"^new_fc\."), tsm, r"new_fc"),
    "MMAction2": CodeBase(lambda file: file.has(r"^cls_head\."), mmaction, r"cls_head\.fc_cls"),
    "torchvision (videos)": CodeBase(
        lambda file: file.has(r"^(stem\.0|patch_embed\.proj|conv_proj|features\.0\.0\.0)\.weight$"),
        video_of_torchvision,
        r"fc|head(\.1)?|classifier\.1",
    ),
    "3D-ResNets": CodeBase(
        lambda file: file.has(r"^conv1_s\.") or file.shape(r"^conv1\.weight$")[2:3] == (7,) and file.is_3d
        or bool(re.fullmatch(r"(wide)?resnet\w*-\d+", file.arch)),
        resnets_3d,
        r"fc",
    ),
    "Action Recognition Study": CodeBase(
        lambda file: file.is_3d or file.has(r"\btam\w*\.") or "-rgb-" in file.arch, study, r"fc"
    ),
    "torchvision (images)": CodeBase(
        lambda file: file.has(r"^(layer4\.0|inception3a|features\.18)\."), images_of_torchvision, r"fc|classifier\.1"
    ),
}  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------------
# From a file to a recogniser of ours


@dataclasses.dataclass(frozen=True)
class Released:
    """A recogniser in a file of another code base. weight (C, D) and bias (C,) are its classifier's."""

    code_base: str
    file: File
    network: Network
    weight: Tensor
    bias: Tensor

    @property
    def num_classes(self) -> int:
        return len(self.weight)

    def settings(self, given: argparse.Namespace) -> Facts:
        """The flags of run_supervised.py that the file decides, and those that it needs beside, as `given` has them.

        Raises UserError that names the flag for what the file does not tell and `given` does not have.
        """
        path, network = self.file.path, self.network
        asked = given.backbone_options or {}
        options = {name: value for name, value in network.options.items() if value is not None}
        if unknown := [name for name in network.options if name not in options and name not in asked]:
            usual = f" ({network.usual})" if network.usual else ""
            raise UserError(
                f"{path} does not tell {' and '.join(unknown)} of its {network.backbone}: give --backbone_options "
                f"{' '.join(f'{name}=...' for name in unknown)}{usual}"
            )
        frames = network.frames or given.seq_len
        if frames is None:
            raise UserError(f"{path} does not tell how many frames its clips had in training: give --seq_len")
        untold = {name: value for name, value in asked.items() if name not in options}
        return {
            "backbone": network.backbone,
            "backbone_options": options | untold,
            "seq_len": frames,
            "sampling": network.sampling,
        }

    def check(self, backbone: str, options: Facts) -> None:
        """Raises UserError where these are of the file's network, with another value of what the file tells."""
        if backbone != self.network.backbone:
            return
        assert backbone in BACKBONES
        defaults = {name: p.default for name, p in inspect.signature(BACKBONES[backbone].build).parameters.items()}
        for name, value in self.network.options.items():
            now = options.get(name, defaults[name])
            if value is not None and now != value:
                raise UserError(
                    f"{self.file.path} is of {backbone} with {name}={value}, not {now}: give --backbone_options {name}={value}"
                )

    def fits(self, classifier: nn.Linear) -> bool:
        """Whether the file's classifier can be this one's."""
        return self.weight.shape == classifier.weight.shape

    def recogniser(self, settings: Mapping[str, Any]) -> tuple[Recogniser, LoadReport]:
        """The network of `settings` with the file's weights and classifier. Raises UserError where any tensor is left."""
        backbone = build_backbone(settings["backbone"], seq_len=settings["seq_len"], **settings["backbone_options"])
        report = load_weights(getattr(backbone, "net", backbone), dict(self.file.state), str(self.file.path))
        if report.missing or report.unexpected:
            raise UserError(
                f"{report}; expected every tensor of {settings['backbone']} and no others, give a whole file"
            )
        model = Recogniser(backbone, self.num_classes)
        if not self.fits(model.classifier):
            raise UserError(
                f"{self.file.path} has a classifier of {self.weight.shape[1]} features, {settings['backbone']} gives "
                f"{backbone.feature_dim}: expected the same, give a whole file"
            )
        model.classifier.load_state_dict({"weight": self.weight, "bias": self.bias})
        return model, report

    def sentence(self, report: LoadReport) -> str:
        """What was taken of the file, under other names or left out."""
        options = " ".join(f"{name}={value}" for name, value in self.network.options.items() if value is not None)
        renamed = sum(name not in self.file.state for name in report.loaded)
        left_out = [name for name in self.file.state if re.match(LEFT_OUT, name)]
        return (
            f"{self.file.path}: {self.network.backbone}{options and f' with {options}'} of {self.code_base}, "
            f"{self.num_classes} classes; {len(report.loaded)} tensors taken, {renamed} of them under other names, "
            f"{len(left_out)} left out"
        )


def released(content: Any, path: Path) -> Released | None:
    """The recogniser in what a file held, or None where it is of no code base that is known.

    Raises UserError for one whose network this library does not have, and for a file without weights.
    """
    state = {re.sub(r"^(module\.)+", "", name): tensor for name, tensor in state_dict_in(content, str(path)).items()}
    arch, meta = (content.get(name) if isinstance(content, dict) else None for name in ("arch", "meta"))
    config = meta.get("cfg", meta.get("config")) if isinstance(meta, dict) else None
    file = File(path, state, arch if isinstance(arch, str) else "", config if isinstance(config, str) else "")
    for name, rule in CODE_BASES.items():
        if not rule.holds(file):
            continue
        classifier = next((n for n in state if re.fullmatch(rf"({rule.classifier})\.weight", n)), None)
        if classifier is None:
            return None  # a backbone alone
        weight, bias = state[classifier], state.get(classifier.removesuffix("weight") + "bias")
        if weight.shape[2:] == (1, 1, 1):
            weight = weight.flatten(1)  # a convolution of single cells
        if bias is None or weight.ndim != 2:
            raise UserError(f"{path} has a classifier {tuple(weight.shape)}: expected (C, D), and a bias (C,)")
        return Released(name, file, rule.network(file), weight, bias)
    return None
