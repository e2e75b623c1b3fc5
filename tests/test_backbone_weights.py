"""Weights of image networks and of published checkpoints, in files made here with their names."""

import copy
import re

import pytest
import torch
from torch import nn

from backbones import BACKBONES, build_backbone
from backbones.torchvision_import import torchvision
from backbones.weights import load_weights, load_weights_file
from utils import UserError


def trained_and_empty(name: str) -> tuple[nn.Module, nn.Module]:
    """A network with random weights, and the same with zeros."""
    torch.manual_seed(0)
    table_name, _, until = name.partition(" until ")
    options = {"until": until} if until else OPTIONS.get(name, {})
    trained = build_backbone(table_name, seq_len=BACKBONES[table_name].frames, **options).net
    empty = copy.deepcopy(trained)
    for tensor in empty.state_dict().values():
        tensor.zero_()
    return trained, empty


OPTIONS = {
    "tsm_resnet50": {"non_local": True, "temporal_pool": 1},
    "resnet3d18": {"shortcut": "A"},
    "c3d": {"until": "fc7"},
}


def as_tsm(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The names of TSM's released files: shifts and pools hold what follows them, attention what comes before."""
    named = {}
    for name, tensor in state.items():
        name = re.sub(r"(layer\d\.\d+\.conv1\.)", r"\1net.", name)
        if re.match(r"layer2\.[02]\.|layer3\.[024]\.", name):
            block, rest = name[:9], name[9:]
            name = block + (f"nl.{rest[6:]}" if rest.startswith("leave.") else f"block.{rest}")
            if ".nl." in name and tensor.ndim == 4:
                tensor = tensor[:, :, None]  # 3D convolutions there
        named[f"module.base_model.{name.replace('layer2.', 'layer2.net.')}"] = tensor
    return named | {"module.new_fc.weight": torch.zeros(400, 2048), "module.new_fc.bias": torch.zeros(400)}


def as_tsm_of_whole_blocks(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Shifts that hold blocks."""
    return {re.sub(r"^(layer\d\.\d\.)?", r"module.base_model.\1net.", name): tensor for name, tensor in state.items()}


def as_tsm_mobilenet(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """TSM's MobileNetV2 numbers the layers of a block in a row, with activations."""
    named = {}
    for name, tensor in state.items():
        block = re.match(r"features\.(\d+)\.conv\.(.*)\.(\w+)$", name)
        if block and block[1] == "1":
            row = {"0.0": "0", "0.1": "1", "1": "3", "2": "4"}[block[2]]
            name = f"features.1.conv.{row}.{block[3]}"
        elif block:
            row = {"0.0": "0", "0.1": "1", "1.0": "3", "1.1": "4", "2": "6", "3": "7"}[block[2]]
            name = f"features.{block[1]}.conv.{row}.{'net.' if row == '0' else ''}{block[3]}"
        named[f"module.base_model.{name}"] = tensor
    return named


def as_ibm(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """IBM keeps a convolution per frame in TAM, and the halves of a separable convolution side by side."""
    named = {}
    for name, tensor in state.items():
        name = name.replace(".branch.mix.", ".tam.mix.")
        if name.endswith("mix.weight"):
            for tap, kernel in zip(("prev", "curr", "next"), tensor.split(1, 2), strict=True):
                named[f"module.{name.replace('mix', tap + '_se.fc1')}"] = kernel
            continue
        first = re.match(r"(.*\bconv\d?)\.bn\.", name)
        if first and f"{first[1]}.spatial.weight" in state:
            name = re.sub(r"conv(\d?)\.bn", r"bn\1", name)
        name = re.sub(r"conv(\d?)\.spatial", r"conv\1", name)
        name = re.sub(r"conv(\d?)\.temporal\.conv", r"conv\1_t", name)
        name = re.sub(r"conv(\d?)\.temporal\.bn", r"bn\1_t", name)
        named[f"module.{name}"] = tensor
    return {"epoch": 7, "arch": "made here", "state_dict": named, "best_top1": 1.0}


def as_blvnet(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The released bLVNet-TAM names the layers of its first fork one by one, and its TAM in another way than IBM's study."""
    first = {"big.0": "b_conv0", "big.1": "bn_b0", "little.0": "l_conv0", "little.1": "bn_l0", "little.3": "l_conv1"}
    first |= {"little.4": "bn_l1", "little_e.0": "l_conv2", "little_e.1": "bn_l2", "fusion.0": "bl_init"}
    first |= {"fusion.1": "bn_bl_init", "tam.mix": "tam.mix"}
    named = {}
    for name, tensor in state.items():
        if name.startswith("layer0."):
            part, leaf = name.removeprefix("layer0.").rsplit(".", 1)
            name = f"{first[part]}.{leaf}"
        name = name.replace(".branch.mix.", ".tam.mix.")
        if name.endswith("mix.weight"):
            for tap, kernel in zip(("prev", "curr", "next"), tensor.split(1, 2), strict=True):
                named[f"module.{name.replace('mix', tap)}"] = kernel
        else:
            named[f"module.{name}"] = tensor
    return named


def as_hara(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    named = {f"module.{name}": tensor for name, tensor in state.items()}
    return {"arch": "resnet-18", "state_dict": named | {"module.fc.weight": torch.zeros(400, 512)}}


def as_tdn(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """TDN's authors give their convolutions biases, and keep a first convolution twice."""
    parts = {"squeeze.0": "conv1", "squeeze.1": "bn1", "smooth": "conv2", "expand.0": "conv3", "expand.1": "bn3"}
    parts |= {"coarse.1": "conv3_smallscale2", "coarse.2": "bn3_smallscale2"}
    parts |= {"fine.0": "conv3_smallscale4", "fine.1": "bn3_smallscale4"}
    named = {}
    for name, tensor in state.items():
        if ".middle.shift.mix." in name:
            name, tensor = name.replace("middle.shift.mix", "shift.conv"), tensor[..., 0]
        elif link := re.match(r"(.*)\.middle\.difference\.(.*)\.(\w+)$", name):
            name = f"{link[1]}.mse.{parts[link[2]]}.{link[3]}"
        elif norm := re.match(r"((?!short\.bn1).*)(bn\d|downsample\.1)\.running_mean$", name):
            conv = norm[2].replace("bn", "conv").replace(".1", ".0")
            bias = named[as_tdn_layer(f"{norm[1]}{conv}.bias")] = torch.rand(len(tensor))
            tensor = tensor + bias
        named[as_tdn_layer(name)] = tensor
    named |= {"module.base_model.conv1_temp.weight": torch.rand(64, 3, 7, 7)}
    named |= {"module.base_model.conv1_temp.bias": torch.rand(64)}
    named |= {"module.new_fc.weight": torch.zeros(174, 2048), "module.new_fc.bias": torch.zeros(174)}
    assert len(named) == 789  # as many as there are in a released file of ResNet-50
    return {"epoch": 60, "arch": "resnet50", "state_dict": named, "best_prec1": 1.0}


def as_tdn_layer(name: str) -> str:
    name = re.sub(r"^short\.conv1\.", "conv1_5.0.", name)
    name = re.sub(r"^short\.bn1\.", "conv1_5.1.", name)
    name = re.sub(r"^short\.layer1\.", "resnext_layer1.", name)
    name = re.sub(r"^(layer\d)\.", r"\1_bak.", name)
    return f"module.base_model.{name}"


def as_numbered_c3d(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """C3D of Sports-1M as it was converted for PyTorch, with layers in two numbered rows."""
    rows = {"1a": 0, "2a": 3, "3a": 6, "3b": 8, "4a": 11, "4b": 13, "5a": 16, "5b": 18}
    named = {}
    for name, tensor in state.items():
        layer, leaf = name.split(".")
        if layer.startswith("conv"):
            named[f"features.{rows[layer.removeprefix('conv')]}.{leaf}"] = tensor
        else:
            tensor = tensor.flatten(1) if leaf == "weight" else tensor
            named[f"classifier.{ {'fc6': 0, 'fc7': 3}[layer] }.{leaf}"] = tensor
    return named | {"classifier.6.weight": torch.zeros(487, 4096), "classifier.6.bias": torch.zeros(487)}


def as_named_c3d(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same with names of layers, of which the first two have lost their letter."""
    named = {re.sub(r"^conv([12])a", r"conv\1", name): tensor for name, tensor in state.items()}
    for layer, shape in {"fc6": (4096, 8192), "fc7": (4096, 4096), "fc8": (487, 4096)}.items():
        named |= {f"{layer}.weight": torch.zeros(shape), f"{layer}.bias": torch.zeros(shape[0])}
    return named


def as_wrapped_c3d(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """MMAction's: convolutions within modules."""
    return {"state_dict": {re.sub(r"^conv(..)\.", r"backbone.conv\1.conv.", name): t for name, t in state.items()}}


PUBLISHED = {
    "tsm_resnet50": as_tsm,
    "tsm_resnet18": as_tsm_of_whole_blocks,
    "tsm_mobilenet_v2": as_tsm_mobilenet,
    "tam_resnet18": as_ibm,
    "tam_inception_v1": as_ibm,
    "i3d_resnet18": as_ibm,
    "s3d_resnet18": as_ibm,
    "s3d_inception_v1": as_ibm,
    "blvnet_tam50": as_blvnet,
    "resnet3d18": as_hara,
    "tdn_resnet50": as_tdn,
    "c3d": as_numbered_c3d,
    "c3d until conv5b": as_named_c3d,
    "c3d until conv4b": as_wrapped_c3d,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_checkpoint_loads_whole(name, tmp_path):
    trained, net = trained_and_empty(name)
    torch.save(PUBLISHED[name](trained.state_dict()), tmp_path / "published.pth.tar")
    report = load_weights_file(net, tmp_path / "published.pth.tar")
    assert (report.missing, report.unexpected) == ([], [])
    assert len(report.loaded) == len(net.state_dict())
    for key, tensor in trained.state_dict().items():
        assert torch.equal(net.state_dict()[key], tensor), key


# ---------------------------------------------------------------------------------------------------------------------
# Image networks under video networks


@pytest.mark.parametrize(
    ("name", "options", "added"),
    [
        ("tsm_resnet18", {}, r"nothing"),
        ("tsm_resnet50", {"non_local": True}, r"layer[23]\.\d\.leave\.(theta|phi\.0|g\.0|W\.[01])\.\w+"),
        ("tam_resnet18", {}, r"layer\d\.\d\.branch\.mix\.weight"),
        ("tam_inception_v1", {}, r"tam\d[a-e]?\.mix\.weight"),
        ("i3d_resnet18", {}, r"nothing"),
        ("i3d", {}, r"nothing"),
        ("s3d_resnet18", {}, r"layer\d\.\d\.conv\d\.temporal\.(conv|bn)\.\w+"),
        ("s3d_inception_v1", {}, r".*\bconv\.temporal\.(conv|bn)\.\w+"),
        ("lsnet_resnet18", {"num_frame": 4}, r"nothing"),
        ("tdn_resnet50", {}, r"short\.bn1\.\w+|layer[234]\.\d\.middle\.(difference|shift)\.[.\w]+"),
        ("msn_resnet50", {}, r"short\.(over|norm|frame)[.\w]+|layer[234]\.\d\.middle\.(difference|shift)\.[.\w]+"),
    ],
)
def test_image_weights_fill_all_but_what_is_added(name, options, added):
    source = "googlenet" if "inception" in name or name == "i3d" else "resnet50" if "50" in name else "resnet18"
    torch.manual_seed(0)
    extra = {"init_weights": False, "aux_logits": True} if source == "googlenet" else {}
    state = getattr(torchvision.models, source)(weights=None, **extra).state_dict()
    net = build_backbone(name, seq_len=BACKBONES[name].frames, **options).net
    before = {key: tensor.clone() for key, tensor in net.state_dict().items()}
    report = load_weights(net, state, "images")
    assert report.unexpected == []
    assert (len(report.missing) == 0) == (added == "nothing")
    assert [key for key in report.missing if not re.fullmatch(added, key)] == []
    for key in report.missing:
        assert torch.equal(net.state_dict()[key], before[key])
    heads = ("fc.", "aux1.", "aux2.")
    copies = [key for key in report.loaded if key.startswith("short.")]
    assert len(report.loaded) - len(copies) == len([key for key in state if not key.startswith(heads)])


def test_a_first_convolution_over_other_channels_starts_from_the_mean_over_colours():
    state = torchvision.models.resnet18().state_dict()
    net = build_backbone("lsnet_resnet18", seq_len=10, num_frame=5).net
    load_weights(net, state, "images")
    for channel in range(5):
        torch.testing.assert_close(net["conv1"].weight[:, channel], state["conv1.weight"].mean(1))


@pytest.mark.parametrize("name", ["tdn_resnet50", "msn_resnet50"])
def test_the_path_of_differences_starts_with_copies_of_the_image_networks_layers(name):
    torch.manual_seed(0)
    state = torchvision.models.resnet50().state_dict()
    net = build_backbone(name, seq_len=40).net
    assert not torch.equal(net["layer1"]["0"].conv1.weight, net.short.layer1["0"].conv1.weight)
    report = load_weights(net, state, "images")
    own = net.state_dict()
    copied = {key.removeprefix("short.") for key in report.loaded if key.startswith("short.")}
    layer1 = {key for key in state if key.startswith("layer1.")}
    assert copied == layer1 | ({"conv1.weight"} if name == "tdn_resnet50" else set())
    for key in layer1:
        assert torch.equal(own[f"short.{key}"], state[key])
        assert torch.equal(own[key], state[key])
    if name == "tdn_resnet50":
        for channel in range(12):
            torch.testing.assert_close(own["short.conv1.weight"][:, channel], state["conv1.weight"].mean(1))
    # A file that has the path itself, but not all of it, is not completed with copies.
    lacking = {key: tensor + 1 for key, tensor in own.items() if not key.startswith("short.layer1.0.conv1.")}
    assert load_weights(net, lacking, "a part").missing == ["short.layer1.0.conv1.weight"]
    assert torch.equal(net.state_dict()["short.layer1.0.conv1.weight"], state["layer1.0.conv1.weight"])


def test_the_report_names_what_is_added(tmp_path, capsys):
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "images.pth")
    build_backbone("tam_resnet18", seq_len=8, pretrained=str(tmp_path / "images.pth"))
    said = capsys.readouterr().err
    assert "120 tensors loaded, 8 (layer1.0.branch.mix.weight," in said
    assert "0 unexpected" in said


# ---------------------------------------------------------------------------------------------------------------------
# What must not load


def test_weights_of_another_network_are_refused():
    with torch.device("meta"):
        net = build_backbone("resnet18", seq_len=8).net
        resnet50, googlenet = torchvision.models.resnet50(), torchvision.models.googlenet(init_weights=False)
    with pytest.raises(UserError, match="0 tensors loaded"):
        load_weights(net, {"stem.weight": torch.zeros(3)}, "elsewhere")
    with pytest.raises(UserError, match=r"layer1.0.conv1.weight is \(64, 64, 1, 1\), expected \(64, 64, 3, 3\)"):
        load_weights(net, resnet50.state_dict(), "elsewhere")
    with pytest.raises(UserError, match="give weights of the same --backbone"):
        load_weights(net, googlenet.state_dict(), "elsewhere")


@pytest.mark.parametrize("lacking", ["bn1.running_mean", "layer3.1.conv2.weight"])
def test_a_missing_weight_of_the_image_network_is_refused(lacking):
    with torch.device("meta"):
        state = torchvision.models.resnet18().state_dict()
        nets = [
            build_backbone(name, seq_len=8).net for name in ("resnet18", "tam_resnet18", "i3d_resnet18", "s3d_resnet18")
        ]
    del state[lacking]
    for net in nets:
        with pytest.raises(UserError, match="expected every weight"):
            load_weights(net, state, "a part")
