"""Loading weights into a backbone: others' names, weights of image networks, and what became of every tensor."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path

import torch
from einops import rearrange, repeat
from torch import Tensor, nn

from backbones.backbone import Added, one_of
from backbones.weight_files import WeightsFile, read_weights
from backbones.weight_files import state_dict_in as state_dict_in
from utils import UserError

# What belongs to the classifiers on top of a backbone.
CLASSIFIERS = ("fc.", "cls_head.", "classifier.", "new_fc.", "head.", "aux1.", "aux2.", "fc6.", "fc7.", "fc8.")

# What a network is called inside what it was trained in.
PREFIXES = r"^((module|backbone|net|base_model|resnet)\.)+"

# C3D's layers in its conversions: numbered as torchvision numbers VGG's, or the first two without their letter.
C3D_LAYERS = {
    "features.0": "conv1a", "features.3": "conv2a", "features.6": "conv3a", "features.8": "conv3b", "features.11": "conv4a",
    "features.13": "conv4b", "features.16": "conv5a", "features.18": "conv5b",
    "classifier.0": "fc6", "classifier.3": "fc7", "classifier.6": "fc8",
    "conv1": "conv1a", "conv2": "conv2a",
}  # fmt: skip

# How others name what is in our networks. A name that a network lacks goes through these until it has it.
RENAMES = (
    (r"^0\.", "conv1."),  # TRX-style libraries: a ResNet's layers in one row
    (r"^1\.", "bn1."),
    (r"^4\.", "layer1."),
    (r"^5\.", "layer2."),
    (r"^6\.", "layer3."),
    (r"^7\.", "layer4."),
    (r"\bconv(\d)_s\.", r"conv\1.spatial."),  # Hara: the halves of R(2+1)D's convolutions
    (r"\bbn(\d)_s\.", r"conv\1.bn."),
    (r"\.block\.", "."),  # TSM: a block with a non-local block behind it
    (r"\.nl\.", ".leave."),
    (r"\.net\.", "."),  # TSM: what a shift or a pool was put before
    (r"\.tam\.", ".branch."),  # IBM: in a residual block
    (r"^tam\.", "layer0.tam."),  # bLVNet-TAM and bLResNet: the first fork
    (r"^b_conv0\.", "layer0.big.0."),
    (r"^bn_b0\.", "layer0.big.1."),
    (r"^l_conv0\.", "layer0.little.0."),
    (r"^bn_l0\.", "layer0.little.1."),
    (r"^l_conv1\.", "layer0.little.3."),
    (r"^bn_l1\.", "layer0.little.4."),
    (r"^l_conv2\.", "layer0.little_e.0."),
    (r"^bn_l2\.", "layer0.little_e.1."),
    (r"^bl_init\.", "layer0.fusion.0."),
    (r"^bn_bl_init\.", "layer0.fusion.1."),
    (r"^conv1_5\.0\.", "short.conv1."),  # TDN: its path of differences
    (r"^conv1_5\.1\.", "short.bn1."),
    (r"^resnext_layer1\.", "short.layer1."),
    (r"^(layer\d)_bak\.", r"\1."),
    (r"\.shift\.conv\.", ".middle.shift.mix."),  # TDN: between steps
    (r"\.mse\.conv1\.", ".middle.difference.squeeze.0."),
    (r"\.mse\.bn1\.", ".middle.difference.squeeze.1."),
    (r"\.mse\.conv2\.", ".middle.difference.smooth."),
    (r"\.mse\.conv3_smallscale2\.", ".middle.difference.coarse.1."),
    (r"\.mse\.bn3_smallscale2\.", ".middle.difference.coarse.2."),
    (r"\.mse\.conv3_smallscale4\.", ".middle.difference.fine.0."),
    (r"\.mse\.bn3_smallscale4\.", ".middle.difference.fine.1."),
    (r"\.mse\.conv3\.", ".middle.difference.expand.0."),
    (r"\.mse\.bn3\.", ".middle.difference.expand.1."),
    (r"\bconv(\d?)_t\.", r"conv\1.temporal.conv."),  # IBM: the halves of S3D's convolutions
    (r"\bbn(\d?)_t\.", r"conv\1.temporal.bn."),
    (r"\.temporal\.conv\.", ".temporal."),  # Hara: the second halves
    (r"\bconv(\d)\.temporal\.bn\.", r"bn\1."),
    (r"\bconv(\d?)\.weight$", r"conv\1.spatial.weight"),  # image networks and IBM: the first half
    (r"\bbn(\d?)\.", r"conv\1.bn."),
)

# MMAction2's ResNets, in this order.
MMACTION = (
    (r"\bconv(\d)\.bn\.", r"bn\1."),
    (r"\bconv(\d)\.conv\.", r"conv\1."),
    (r"\bdownsample\.conv\.", "downsample.0."),
    (r"\bdownsample\.bn\.", "downsample.1."),
    (r"\.conv_s\.", ".spatial."),
    (r"\.bn_s\.", ".bn."),
    (r"\.conv_t\.", ".temporal."),
    (r"\.non_local_block\.", ".nl."),
    (r"\.nl\.conv_out\.conv\.", ".nl.W.0."),
    (r"\.nl\.conv_out\.bn\.", ".nl.W.1."),
    (r"(\.nl\.(?:g\.0|phi\.0|theta))\.conv\.", r"\1."),
)
INFLATIONS = ("mean", "repeat", "center")


@dataclasses.dataclass(frozen=True)
class LoadReport:
    """What became of a network's tensors: `loaded` from a file, `missing` in it; and what it held beside, `unexpected`."""

    source: str
    loaded: list[str]
    missing: list[str]
    unexpected: list[str]

    def __str__(self) -> str:
        def some(names: list[str]) -> str:
            return f"{len(names)}" + (f" ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})" if names else "")

        return (
            f"weights from {self.source}: {len(self.loaded)} tensors loaded, {some(self.missing)} missing, "
            f"{some(self.unexpected)} unexpected"
        )


def load_weights(net: nn.Module, state: dict[str, Tensor], source: str, inflation: str = "mean") -> LoadReport:
    """Copies `state` into `net` by name; classifier tensors of the file may be left over.

    Weights of an image network fit the video networks made from it: 2D kernels are spread over time, and what these
    networks add (see `backbone.Added`) starts with copies of the image's weights or may be missing, which is reported.
    inflation: 'mean' divides by the kernel's frames, so that a still clip gives what the image gave; 'repeat' does not;
    'center' puts the image's weights into the middle frame.

    Raises UserError when a tensor has another shape, or when the file lacks any other weight: a backbone that is half
    pretrained is never what was wanted.
    """
    one_of("inflation", inflation, INFLATIONS)
    own = net.state_dict()
    state = folded_biases(named_layers(plain_blocks(joined_taps(featured_stages(parted_modules(state))))))
    found = with_copies({own_name(name, own): tensor for name, tensor in state.items()}, net)
    matched = {name: fitted(found[name], own[name], inflation) for name in own if name in found}
    for name, tensor in matched.items():
        if own[name].shape != tensor.shape:
            raise UserError(
                f"{source} does not fit: {name} is {tuple(tensor.shape)}, expected {tuple(own[name].shape)}; "
                "give weights of the same --backbone"
            )
    report = LoadReport(
        source,
        loaded=sorted(matched),
        missing=sorted(name for name in own.keys() - matched.keys() if not name.endswith("num_batches_tracked")),
        unexpected=sorted(name for name in found.keys() - own.keys() if not name.startswith(CLASSIFIERS)),
    )
    added = tuple(f"{name}." for name, module in net.named_modules() if isinstance(module, Added))
    if not matched or not all(name.startswith(added) for name in report.missing):
        raise UserError(f"{report}; expected every weight of the backbone, give weights of the same --backbone")
    net.load_state_dict(matched, strict=False)
    return report


def load_weights_file(
    net: nn.Module,
    path: str | Path,
    inflation: str = "mean",
    translate: Callable[[WeightsFile], dict[str, Tensor]] = lambda file: file.state,
) -> LoadReport:
    """`load_weights` from a file of any kind that `read_weights` knows.

    translate: gives its tensors under the network's names, where these are not ours to list (see `Backbone.translate`).
    """
    return load_weights(net, translate(read_weights(path)), str(path), inflation)


# ---------------------------------------------------------------------------------------------------------------------
# From others' names and shapes to ours


def own_name(name: str, own: dict[str, Tensor]) -> str:
    """The name in `own` of what others call `name`; without what it was trained inside, where there is none."""
    bare = renamed = name if name in own else re.sub(PREFIXES, "", name)
    for pattern, replacement in RENAMES:
        if renamed in own:
            return renamed
        renamed = re.sub(pattern, replacement, renamed)
    return renamed if renamed in own else bare


def parted_modules(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A ResNet as MMAction2 keeps it, a convolution and its norm in one module, under torchvision's names; the halves of its
    R(2+1)D and its non-local blocks as here and in TSM."""
    if not any(re.search(r"\blayer1\.0\.(net\.|block\.)?conv1\.conv\.", name) for name in state):
        return state

    def parted(name: str) -> str:
        for pattern, replacement in MMACTION:
            name = re.sub(pattern, replacement, name)
        return name

    named = {parted(name): tensor for name, tensor in state.items()}
    for name in [name for name in named if name.endswith(".nl.W.0.weight")]:
        named.setdefault(name.replace("weight", "bias"), torch.zeros(len(named[name])))
    return named


def joined_taps(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """TAM as IBM keeps it, a 2D convolution for each of three frames (C, 1, 1, 1), as one over time (C, 1, 3, 1)."""
    joined = dict(state)
    for name in state:
        if current := re.fullmatch(r"(.*\.|)curr((_se\.fc1)?\.weight)", name):
            taps = [joined.pop(f"{current[1]}{tap}{current[2]}") for tap in ("prev", "curr", "next")]
            joined[f"{current[1]}mix.weight"] = torch.cat(taps, dim=2)
    return joined


def plain_blocks(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """MobileNetV2 as TSM's authors keep it, a block's layers in one row, nested as torchvision has them."""
    if not any(re.search(r"features\.2\.conv\.7\.", name) for name in state):
        return state
    expanding = {"0": "0.0", "1": "0.1", "3": "1.0", "4": "1.1", "6": "2", "7": "3"}
    first = {"0": "0.0", "1": "0.1", "3": "1", "4": "2"}

    def nested(match: re.Match[str]) -> str:
        rows = first if match[1] == "1" else expanding
        return f"features.{match[1]}.conv.{rows[match[2]]}."

    return {re.sub(r"features\.(\d+)\.conv\.(\d)\.", nested, name): tensor for name, tensor in state.items()}


def featured_stages(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """MobileNetV2 as MMAction2 keeps it, in stages, in one row as torchvision has it."""
    if not any(re.search(r"\blayer1\.0\.conv\.0\.(net\.)?conv\.", name) for name in state):
        return state
    stages = [1, 2, 3, 4, 3, 3, 1]  # blocks in each

    def block(match: re.Match[str]) -> str:
        stage, number, layer, part = int(match[1]), int(match[2]), int(match[3]), match[4]
        feature = 1 + sum(stages[: stage - 1]) + number
        if layer == (1 if stage == 1 else 2):  # the last convolution of a block is in no module with its norm
            return f"features.{feature}.conv.{layer + (part == 'bn')}."
        return f"features.{feature}.conv.{layer}.{int(part == 'bn')}."

    def named(name: str) -> str:
        name = re.sub(r"^(backbone\.)?layer(?=\d)", "layer", name).replace(".net.", ".")
        name = re.sub(r"^layer(\d)\.(\d)\.conv\.(\d)\.(conv|bn)\.", block, name)
        for number, feature in ((1, 0), (2, 18)):
            name = re.sub(rf"^(backbone\.)?conv{number}\.conv\.", f"features.{feature}.0.", name)
            name = re.sub(rf"^(backbone\.)?conv{number}\.bn\.", f"features.{feature}.1.", name)
        return name

    return {named(name): tensor for name, tensor in state.items()}


def named_layers(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """C3D as its conversions for PyTorch keep it, with the layers named as in the authors' network."""
    bare = {re.sub(PREFIXES, "", name).replace(".conv.", "."): tensor for name, tensor in state.items()}
    marks = [bare[name] for name in ("features.8.weight", "conv3b.weight") if name in bare]
    if not any(mark.ndim == 5 for mark in marks):
        return state
    named = {}
    for name, tensor in bare.items():
        layer, _, leaf = name.rpartition(".")
        named[f"{C3D_LAYERS.get(layer, layer)}.{leaf}"] = tensor
    return named


def folded_biases(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """TDN as its authors keep it, without the biases of its convolutions and without a first one that never ran.

    A batch norm follows each of these convolutions: less bias is a smaller running mean.
    """
    if not any("resnext_layer1." in name for name in state):
        return state
    folded = {name: tensor for name, tensor in state.items() if "conv1_temp." not in name}
    for name in state:
        if conv := re.fullmatch(r"(.*\.|)(?:conv(\d)|downsample\.0)\.bias", name):
            mean = f"{conv[1]}bn{conv[2]}.running_mean" if conv[2] else f"{conv[1]}downsample.1.running_mean"
            if mean in folded:
                folded[mean] = folded[mean] - folded.pop(name)
    return folded


def with_copies(found: dict[str, Tensor], net: nn.Module) -> dict[str, Tensor]:
    """`found`, and what parts of the network start with that are not in it at all (see `backbone.Added`)."""
    copies: dict[str, Tensor] = {}
    for part, module in net.named_modules():
        if isinstance(module, Added) and not any(name.startswith(f"{part}.") for name in found):
            layers = tuple(f"{layer}." for layer in module.starts_as)
            copies |= {f"{part}.{name}": tensor for name, tensor in found.items() if name.startswith(layers)}
    return found | copies


def fitted(weight: Tensor, like: Tensor, inflation: str) -> Tensor:
    """A convolution's weight in the shape of `like`, where that is the same one over time or over other input channels."""
    if weight.ndim == 4 and like.ndim == 5:
        weight = over_time(weight, like.shape[2], inflation)
    if weight.ndim == 5 and like.ndim == 4 and weight.shape[2] == 1:
        weight = weight[:, :, 0]
    if weight.ndim == 3 and like.ndim == 4:
        weight = rearrange(weight, "o i t -> o i t 1")
    if weight.ndim == 2 and like.ndim == 5 and weight.shape[1] == like[0].numel():
        weight = weight.reshape(like.shape)  # a fully connected layer, over a volume in the order (I, t, h, w)
    if weight.ndim >= 4 and weight.shape[1] == 3 and like.shape[1] != 3:
        weight = repeat(weight.mean(dim=1), "o ... -> o i ...", i=like.shape[1])
    return weight


def over_time(weight: Tensor, frames: int, inflation: str) -> Tensor:
    """A 2D kernel (O, I, h, w) as a 3D one (O, I, frames, h, w); see `load_weights`."""
    if inflation == "center":
        kernel = weight.new_zeros(*weight.shape[:2], frames, *weight.shape[2:])
        kernel[:, :, frames // 2] = weight
        return kernel
    kernel = repeat(weight, "o i h w -> o i t h w", t=frames)
    return kernel / frames if inflation == "mean" else kernel
