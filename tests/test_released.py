"""Files of other code bases, with random weights in their real containers, through tests, tuning and few-shot learning."""

from __future__ import annotations

import argparse
import dataclasses
import pickle
import re
import shlex
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import LABELS, Program, tiny_run
from run_folders import results
from supervised_runs import TINY
from test_backbone_weights import as_hara, as_ibm, as_tdn, as_tsm, as_tsm_mobilenet
from torch import Tensor, nn

import run
import run_supervised
from backbones import build_backbone
from backbones.released import CODE_BASES, released
from backbones.torchvision_import import torchvision
from engine import supervised_settings
from engine.command_line import KeyValues
from engine.settings import parse_args
from methods import METHODS
from results.view_scores import ViewScores
from tests.oracles import motion
from tests.oracles import released as literal
from utils import read_json

State = dict[str, Tensor]
CLASSIFIERS = {"TSM": "module.new_fc", "TDN": "module.new_fc", "MMAction2": "cls_head.fc_cls"}


def as_pooled_tsm(state: State) -> State:
    """Whole blocks shifted, and a pool before the second stage."""
    named = {re.sub(r"^(layer\d\.\d\.)", r"\1net.", name): tensor for name, tensor in state.items()}
    return {f"module.base_model.{name.replace('layer2.', 'layer2.net.')}": tensor for name, tensor in named.items()}


def as_plain_tsn(state: State) -> State:
    return {f"module.base_model.{name}": tensor for name, tensor in state.items()}


def shifted(name: str) -> str:
    """The first convolution of a block, held by its shift."""
    return re.sub(r"^(layer\d\.\d+\.conv1\.)", r"\1net.", name)


def as_shifted_tsm(state: State) -> State:
    """Convolutions shifted."""
    return {f"module.base_model.{shifted(name)}": tensor for name, tensor in state.items()}


def as_mmaction(state: State, *, tsm: str = "") -> State:
    """A convolution and its norm in one module; tsm: the place of shifts."""
    behind = {name[: name.index(".leave.")] for name in state if ".leave." in name}
    named = {}
    for name, tensor in state.items():
        block = ".".join(name.split(".")[:2])
        name = shifted(name) if tsm == "blockres" else name
        if ".leave." in name:
            if name.endswith("W.0.bias"):
                tensor.zero_()  # a norm follows: there is none in the file
                continue
            name = name.replace(".leave.", ".non_local_block.").replace(".W.0.", ".conv_out.conv.")
            name = re.sub(r"\.(g\.0|phi\.0|theta)\.", r".\1.conv.", name.replace(".W.1.", ".conv_out.bn."))
            named[f"backbone.{name}"] = tensor[:, :, None] if tensor.ndim == 4 else tensor
            continue
        name = re.sub(r"\bconv(\d)\.", r"conv\1.conv.", name)
        name = re.sub(r"\bbn(\d)\.", r"conv\1.bn.", name)
        name = name.replace("downsample.0.", "downsample.conv.").replace("downsample.1.", "downsample.bn.")
        name = (
            name.replace(".spatial.", ".conv_s.").replace(".conv.bn.", ".conv.bn_s.").replace(".temporal.", ".conv_t.")
        )
        if block in behind:
            name = name.replace(f"{block}.", f"{block}.block.", 1)
        if tsm == "block":
            name = re.sub(r"^(layer\d\.\d\.)", r"\1net.", name)
        named[f"backbone.{name}"] = tensor
    return named


def as_mmaction_mobilenet(state: State, *, tsm: bool = False) -> State:
    """MobileNetV2 in stages, every convolution and its norm in one module."""
    stages = [1, 2, 3, 4, 3, 3, 1]
    places = [(stage, block) for stage, number in enumerate(stages, start=1) for block in range(number)]
    named = {}
    for name, tensor in state.items():
        _, feature, *rest = name.split(".")
        if feature in ("0", "18"):
            place = f"conv{1 if feature == '0' else 2}.{('conv', 'bn')[int(rest[0])]}"
            leaf = rest[1]
        else:
            stage, block = places[int(feature) - 1]
            last = 1 if stage == 1 else 2
            layer, inner = (int(rest[1]), rest[2]) if int(rest[1]) < last else (last, str(int(rest[1]) - last))
            net = "net." if tsm and layer == 0 and block else ""
            place = f"layer{stage}.{block}.conv.{layer}.{net}{('conv', 'bn')[int(inner)]}"
            leaf = rest[-1]
        named[f"backbone.{place}.{leaf}"] = tensor
    return named


def as_factored(state: State) -> State:
    """R(2+1)D of 3D-ResNets."""
    named = {}
    for name, tensor in state.items():
        name = re.sub(r"\bconv(\d)\.spatial\.", r"conv\1_s.", name)
        name = re.sub(r"\bbn(\d)\.", r"bn\1_t.", name)
        name = re.sub(r"\bconv(\d)\.bn\.", r"bn\1_s.", name)
        name = re.sub(r"\bconv(\d)\.temporal\.", r"conv\1_t.", name)
        named[f"module.{name}"] = tensor
    return named


def as_torchvision(state: State) -> State:
    return state


def bare(named: Any) -> State:
    """The tensors of what the tests of backbones make, without classifiers of other sizes."""
    state = named.get("state_dict", named)
    return {name: tensor for name, tensor in state.items() if not re.search(r"(^|\.)(new_)?fc\.", name)}


def torchvision_logits(name: str, state: State, frames: Tensor) -> Tensor:
    """torchvision's own network: images by their mean score, videos whole."""
    if hasattr(torchvision.models.video, name):
        net = getattr(torchvision.models.video, name)(num_classes=len(LABELS))
        clips = frames.transpose(0, 1)[None]
    else:
        options = {"aux_logits": False, "init_weights": False} if name == "googlenet" else {}
        net = getattr(torchvision.models, name)(num_classes=len(LABELS), **options)
        clips = frames
    net.load_state_dict(state)
    with torch.inference_mode():
        return net.eval()(clips).mean(dim=0)


@dataclasses.dataclass(frozen=True)
class Case:
    """A file of a code base. backbone and options: what is to be found in it. given: what it does not tell. frames: of a
    clip; names: of its tensors, of ours; container: what it is put into; logits: of the frames of a clip, by the file."""

    code_base: str
    file: str
    backbone: str
    options: dict[str, Any]
    frames: int
    names: Callable[[State], Any]
    logits: Callable[[State, Tensor], Tensor] | None
    given: str = ""
    container: dict[str, Any] = dataclasses.field(default_factory=dict)
    size: int = 32

    def __str__(self) -> str:
        return f"{self.code_base}: {self.backbone}"

    def told(self) -> argparse.Namespace:
        parser = argparse.ArgumentParser()
        parser.add_argument("--backbone_options", nargs="+", action=KeyValues, default={})
        parser.add_argument("--seq_len", type=int)
        return parser.parse_args(self.given.split())

    def content(self) -> tuple[Any, State, State]:
        """What the file holds; its tensors; and those of our backbone, before they were renamed."""
        torch.manual_seed(0)
        backbone = build_backbone(self.backbone, seq_len=self.frames, **self.options)
        for module in backbone.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                nn.init.uniform_(module.weight, 0.5, 1.0)
                nn.init.normal_(module.bias, std=0.1)
                nn.init.normal_(module.running_mean, std=0.1)
                nn.init.uniform_(module.running_var, 0.5, 1.5)
        ours = getattr(backbone, "net", backbone).state_dict()
        state = bare(self.names(ours))
        name = CLASSIFIERS.get(self.code_base, "fc" if "torchvision" in self.code_base else "module.fc")
        if "torchvision" in self.code_base:
            name = {"mobilenet_v2": "classifier.1", "s3d": "classifier.1", "swin3d_t": "head"}.get(self.backbone, name)
        weight = torch.randn(len(LABELS), backbone.feature_dim) / backbone.feature_dim**0.5
        state |= {f"{name}.weight": weight[..., None, None, None] if self.backbone == "s3d" else weight}
        state |= {f"{name}.bias": torch.randn(len(LABELS))}
        plain = not self.container and "torchvision" in self.code_base
        return state if plain else {"epoch": 3, **self.container, "state_dict": state, "best_prec1": 50.0}, state, ours

    def write(self, folder: Path) -> Path:
        path = folder / self.file
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(self.content()[0], path)
        return path


SHIFTED = {"shift_div": 4, "place": "blockres"}
HARA = {"conv1_t_stride": 1, "no_max_pool": False}
IBM = "kinetics400-rgb-{}-f{}-cosine-bs72-e75"
CASES = [
    Case("TSM", "TSM_kinetics_RGB_resnet18_shift4_blockres_avg_segment4_e50.pth", "tsm_resnet18", SHIFTED, 4,
         as_shifted_tsm, partial(literal.tsm, div=4)),
    Case("TSM", "TSM_something_RGB_resnet18_shift8_block_tpool_avg_segment4_e45/ckpt.best.pth.tar", "tsm_resnet18",
         {"shift_div": 8, "place": "block", "temporal_pool": 1}, 4, as_pooled_tsm,
         partial(literal.tsm, place="block", pooled=True), container={"arch": "resnet18", "optimizer": {"state": {}}}),
    Case("TSM", "TSM_kinetics_RGB_resnet18_avg_segment5_e50.pth", "resnet18", {}, 3, as_plain_tsn,
         partial(literal.tsm, place=""), given="--seq_len 3"),
    Case("TDN", "TDN__somethingv2_RGB_resnet50_avg_segment2_e60/best.pth.tar", "tdn_resnet50", {}, 10, as_tdn, None,
         size=64),
    Case("Action Recognition Study", "checkpoint.pth.tar", "tam_resnet18",
         {"temporal_pool": 3, "pooling": "max", "blend": "sum", "depthwise": True, "shortcut": "pre"}, 8,
         as_ibm, partial(literal.study_tam, strides=True), given="--backbone_options shortcut=pre",
         container={"arch": IBM.format("TAM-b3-sum-resnet-18-ts-max", 8)}),
    Case("Action Recognition Study", "K400-I3D-ResNet-18-f4", "i3d_resnet18", {"temporal_stride": False}, 4, as_ibm,
         partial(literal.study_3d, separable=False, strides=False)),
    Case("Action Recognition Study", "model_best.pth.tar", "s3d_resnet18", {"temporal_stride": True, "dw_t_conv": True}, 8,
         as_ibm, partial(literal.study_3d, separable=True, strides=True),
         container={"arch": IBM.format("s3d-resnet-18-dw-t-conv-ts", 8)}),
    Case("Action Recognition Study", "i3d.pth.tar", "i3d", {"temporal_stride": True, "pooling": "max", "form": "study"}, 8,
         as_ibm, literal.study_inception, container={"arch": IBM.format("i3d_v2-ts-max", 8)}),
    Case("3D-ResNets", "resnet-18-kinetics.pth", "resnet3d18", {"shortcut": "A", "conv1_t_size": 7, **HARA}, 8, as_hara,
         partial(literal.hara, factored=False), given="--backbone_options conv1_t_stride=1 no_max_pool=false --seq_len 8",
         container={"arch": "resnet-18"}),
    Case("3D-ResNets", "r2p1d18_K_200ep.pth", "resnet2p1d18", {"shortcut": "B", "conv1_t_size": 7, **HARA}, 8, as_factored,
         partial(literal.hara, factored=True), given="--backbone_options conv1_t_stride=1 no_max_pool=false --seq_len 8",
         container={"arch": "resnet2p1d-18"}),
    Case("MMAction2", "tsm_imagenet-pretrained-r18_8xb16-1x1x4-50e_kinetics400-rgb.pth", "tsm_resnet18",
         {"place": "blockres", "shift_div": 8}, 4, partial(as_mmaction, tsm="blockres"), partial(literal.mmaction, div=8),
         given="--backbone_options shift_div=8", container={"meta": {"version": "1.0"}}),
    Case("MMAction2", "tsm_r18_block_8xb16-1x1x4-50e_kinetics400-rgb.pth", "tsm_resnet18",
         {"place": "block", "shift_div": 4}, 4, partial(as_mmaction, tsm="block"),
         partial(literal.mmaction, div=4, place="block"),
         container={"meta": {"cfg": "model = dict(backbone=dict(depth=18, shift_div=4, shift_place='block'))"}}),
    Case("MMAction2", "tsm_imagenet-pretrained-r50-nl-embedded-gaussian_8xb16-1x1x2-50e_kinetics400-rgb.pth",
         "tsm_resnet50", {"place": "blockres", "shift_div": 8, "non_local": True}, 2,
         partial(as_mmaction, tsm="blockres"), partial(literal.mmaction, div=8, non_local=True),
         container={"meta": {"config": "backbone=dict(type='ResNetTSM', shift_div=8)"}}),
    Case("MMAction2", "tsm_imagenet-pretrained-mobilenetv2_8xb16-1x1x3-100e_kinetics400-rgb.pth", "tsm_mobilenet_v2",
         {"shift_div": 8}, 3, partial(as_mmaction_mobilenet, tsm=True), partial(literal.mmaction_mobilenet, div=8),
         given="--backbone_options shift_div=8"),
    Case("MMAction2", "tsn_mobilenetv2_1x1x3.pth", "mobilenet_v2", {}, 3, as_mmaction_mobilenet,
         partial(literal.mmaction_mobilenet, div=0)),
    Case("MMAction2", "slowonly_r50_8xb16-4x16x1-256e_kinetics400-rgb.pth", "i3d_resnet50", {"kernels": "slow"}, 4,
         as_mmaction, literal.mmaction_slow),
    Case("MMAction2", "r2plus1d_r18_8xb8-8x8x1-180e_kinetics400-rgb.pth", "resnet2p1d18", {"form": "mmaction2"}, 8,
         as_mmaction, literal.mmaction_r2plus1d),
    Case("MMAction2", "tsn_imagenet-pretrained-r18_8xb32-1x1x3-100e_kinetics400-rgb.pth", "resnet18", {}, 3, as_mmaction,
         partial(literal.mmaction, div=0), container={"meta": {"version": "1.0"}}),
    Case("MMAction2", "i3d_imagenet-pretrained-r50_8xb8-8x2x1-100e_kinetics400-rgb.pth", "i3d_resnet50",
         {"kernels": "3x1x1", "temporal_stride": True}, 8, as_mmaction, literal.mmaction_i3d,
         container={"meta": {"version": "1.0"}}),
    Case("torchvision (videos)", "mc3_18.pth", "mc3_18", {}, 4, as_torchvision, partial(torchvision_logits, "mc3_18"),
         given="--seq_len 4"),
    Case("torchvision (videos)", "s3d.pth", "s3d", {"steps": "pairs"}, 16, as_torchvision,
         partial(torchvision_logits, "s3d"), given="--seq_len 16", size=224),
    Case("torchvision (videos)", "swin3d_t.pth", "swin3d_t", {}, 4, as_torchvision,
         partial(torchvision_logits, "swin3d_t"), given="--seq_len 4"),
    Case("torchvision (images)", "resnet18.pth", "resnet18", {}, 3, as_torchvision,
         partial(torchvision_logits, "resnet18"), given="--seq_len 3"),
    Case("torchvision (images)", "mobilenet_v2.pth", "mobilenet_v2", {}, 3, as_torchvision,
         partial(torchvision_logits, "mobilenet_v2"), given="--seq_len 3"),
]  # fmt: skip


@pytest.fixture
def program(capsys: pytest.CaptureFixture[str]) -> Program:
    return Program(capsys, run_supervised.main)


@pytest.fixture
def few_shot(capsys: pytest.CaptureFixture[str]) -> Program:
    return Program(capsys)


@pytest.fixture
def classes(tmp_path: Path) -> Path:
    (tmp_path / "classes.txt").write_text("\n".join(LABELS))
    return tmp_path / "classes.txt"


def test_every_code_base_has_a_case() -> None:
    assert {case.code_base for case in CASES} == set(CODE_BASES)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_released_recogniser_is_read_and_gives_its_own_logits(case: Case, tmp_path: Path) -> None:
    content, state, ours = case.content()
    found = released(content, tmp_path / case.file)
    assert found is not None
    assert found.code_base == case.code_base
    settings = found.settings(case.told())
    wanted = 5 if "segment5" in case.file else case.frames
    assert (settings["backbone"], settings["backbone_options"]) == (case.backbone, case.options)
    assert settings["seq_len"] == wanted
    model, report = found.recogniser({**settings, "seq_len": case.frames})
    assert f"{len(report.loaded)} tensors taken" in found.sentence(report)
    clip = torch.rand(case.frames, 3, case.size, case.size)
    with torch.inference_mode():
        if case.logits:
            expected = case.logits(state, clip)
        else:
            features = motion.tdn(clip, ours, (0.75, 0.25)).mean(dim=0)
            expected = state["module.new_fc.weight"] @ features + state["module.new_fc.bias"]
        logits = model.eval()(clip[None])[0]
    assert float(expected.std()) > 0.01, "scores differ, so that the comparison says something"
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)


SMALLEST = [next(case for case in CASES if case.code_base == name) for name in CODE_BASES]


@pytest.mark.parametrize("case", SMALLEST, ids=str)
def test_a_file_goes_through_test_tuning_and_few_shot_learning(
    case: Case, classes: Path, labelled: Path, dataset: Path, tmp_path: Path, program: Program,
    few_shot: Program, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    path = case.write(tmp_path)
    data = ["--dataset", labelled, "--img_size", case.size, "--num_workers", 0, "--views_per_call", 3]
    frames = shlex.split(case.given)
    out = program("--test_only", "-m", path, "-c", tmp_path / "test", *data, "--classes", classes, *frames)
    assert f"{path}: {case.backbone}" in out
    tested = results(tmp_path / "test")
    assert (tested["backbone"], tested["untrained"], tested["checkpoint"]) == (case.backbone, False, path.name)

    flags = [flag for flag in TINY if flag != "--no_pretrained"]
    options = [f"{name}={value}" for name, value in case.options.items()]
    network = [
        "--backbone",
        case.backbone,
        *(["--backbone_options", *options] if options else []),
        "--seq_len",
        case.frames,
    ]
    flags = [*flags[flags.index("--img_size") :], *data, *network, "--sampling", sampling_in(tmp_path / "test")]
    out = program(*flags, "-c", tmp_path / "tuned", "--epochs", 0, "--tune_from", path, "--classes", classes)
    assert "with its classifier" in out
    logits = [ViewScores.load(tmp_path / run / "scores.npz").logits for run in ("test", "tuned")]
    torch.testing.assert_close(*map(torch.as_tensor, logits), rtol=1e-5, atol=1e-5)

    argv = [flag for flag in tiny_run(dataset, tmp_path / "few", "-i", 0, "-pt", path) if flag != "--no_pretrained"]
    if not options:
        place = argv.index("--backbone")
        argv[place : place + 2] = []
    capsys.readouterr()
    assert run.main([*map(str, [*argv, *network, "--img_size", case.size])]) == 0
    assert "0 missing, 0 unexpected" in capsys.readouterr().err
    assert results(tmp_path / "few")["untrained"] is False


def sampling_in(folder: Path) -> str:
    return str(read_json(folder / "args.json")["sampling"])


# ---------------------------------------------------------------------------------------------------------------------
# What is refused, and what is asked for


def a_tsm(folder: Path, name: str = "TSM_kinetics_RGB_resnet18_shift4_blockres_avg_segment4_e50.pth") -> Path:
    return dataclasses.replace(CASES[0], file=name).write(folder)


def changed(path: Path, change: Callable[[State], object]) -> Path:
    """The file with other tensors."""
    content = torch.load(path)
    change(content["state_dict"])
    torch.save(content, path)
    return path


def only_first_stage(state: State) -> None:
    for name in [name for name in state if re.search("layer[234]", name)]:
        del state[name]


def half_of_the_norms(state: State) -> None:
    for name in [name for name in state if "layer4.1.bn" in name]:
        del state[name]


def as_flow(state: State) -> None:
    state["module.base_model.conv1.weight"] = torch.zeros(64, 10, 7, 7)


def as_bn_inception(state: State) -> None:
    state["module.base_model.conv1_7x7_s2.weight"] = torch.zeros(64, 3, 7, 7)


def with_wider_classifier(state: State) -> None:
    state["module.new_fc.weight"] = torch.zeros(3, 1024)


NAME = "TSM_kinetics_RGB_resnet{}_shift{}_{}_avg_segment4_e50.pth"


@pytest.mark.parametrize(
    ("name", "change", "flags", "sentence"),
    [
        (NAME.format(50, 4, "blockres"), None, "", "is called depth 50 .*its tensors are of depth 18"),
        (NAME.format(18, 4, "block"), None, "", "is called shift_place block .*of shift_place blockres"),
        (
            "TSM_kinetics_RGB_resnet18_avg_segment4_e50.pth",
            None,
            "",
            "called shift_place none .*of shift_place blockres",
        ),
        (
            "renamed.pth",
            None,
            "--seq_len 4",
            "does not tell shift_div of its tsm_resnet18: give --backbone_options shift_div=",
        ),
        ("renamed.pth", None, "--backbone_options shift_div=4", "does not tell how many frames .*: give --seq_len"),
        (NAME.format(18, 4, "blockres"), None, "--backbone resnet18", "with --backbone tsm_resnet18, not resnet18"),
        (
            NAME.format(18, 4, "blockres"),
            None,
            "--backbone_options shift_div=8",
            "'shift_div': 4, .*not .*'shift_div': 8",
        ),
        (NAME.format(18, 4, "blockres"), None, "--seq_len 8", "with --seq_len 4, not 8"),
        (NAME.format(18, 4, "blockres"), only_first_stage, "", "has 2, 0, 0, 0 blocks in its stages"),
        (NAME.format(18, 4, "blockres"), half_of_the_norms, "", r"8 \(.*missing.*expected every"),
        (NAME.format(18, 4, "blockres"), as_flow, "", "takes 10 channels"),
        (NAME.format(18, 4, "blockres"), as_bn_inception, "", "is a BNInception: no network of this library"),
        (NAME.format(18, 4, "blockres"), with_wider_classifier, "", "a classifier of 1024 features, .*gives 512"),
    ],
)
def test_what_a_file_does_not_tell_or_contradicts_is_one_sentence(
    name: str, change: Callable[[State], object] | None, flags: str, sentence: str, classes: Path, labelled: Path,
    tmp_path: Path, program: Program,
) -> None:  # fmt: skip
    path = a_tsm(tmp_path, name)
    if change:
        changed(path, change)
    test = [
        "--test_only",
        "-m",
        path,
        "-c",
        tmp_path / "test",
        "--dataset",
        labelled,
        "--classes",
        classes,
        "--num_workers",
        0,
    ]
    assert re.search(sentence, program.fails(*test, *shlex.split(flags)))
    assert not (tmp_path / "test").exists()


def test_a_file_that_tells_nothing_is_tested_once_it_is_told(
    classes: Path, labelled: Path, tmp_path: Path, program: Program
) -> None:
    path = a_tsm(tmp_path, "renamed.pth")
    test = [
        "--test_only",
        "-m",
        path,
        "--dataset",
        labelled,
        "--classes",
        classes,
        "--num_workers",
        0,
        "--img_size",
        32,
    ]
    program(*test, "-c", tmp_path / "told", "--seq_len", 4, "--backbone_options", "shift_div=4")
    program(*map(str, ["-c", tmp_path / "named", *test[:2], a_tsm(tmp_path), *test[3:]]))
    told, named = (ViewScores.load(tmp_path / run / "scores.npz").logits for run in ("told", "named"))
    assert (told == named).all()


class Opened:
    """Runs a command where it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.trace,)


def test_files_that_hold_no_recogniser_are_one_sentence(
    classes: Path, labelled: Path, tmp_path: Path, program: Program
) -> None:
    whole = a_tsm(tmp_path)
    half = tmp_path / "half.pth"
    half.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    code = tmp_path / "code.pth"
    code.write_bytes(pickle.dumps({"state_dict": Opened(tmp_path / "trace")}))
    zipped = tmp_path / "zipped.pth"
    torch.save({"state_dict": {}, "epoch": Opened(tmp_path / "trace")}, zipped)
    optimiser = tmp_path / "optimiser.pth"
    torch.save(
        {"epoch": 3, "optimizer": {"state": {0: {"momentum_buffer": torch.zeros(3)}}, "param_groups": []}}, optimiser
    )
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(b"12345")
    backbone = tmp_path / "backbone.pth"
    torch.save(torchvision.models.resnet18().state_dict() | {"fc.weight": torch.zeros(1)}, backbone)
    for path, sentence in {
        half: "is truncated or no PyTorch file", code: "was refused", zipped: "was refused",
        optimiser: "holds no weights: expected", cut: "is truncated or no safetensors file",
        backbone: r"has a classifier \(1,\)",
    }.items():  # fmt: skip
        for use in (["--test_only", "-m"], ["--epochs", 0, "--backbone", "tsm_resnet18", "--tune_from"]):
            argv = ["-c", tmp_path / "test", "--dataset", labelled, "--classes", classes, *use, path]
            assert re.search(sentence, program.fails(*argv, "--seq_len", 4, "--num_workers", 0))
            assert not (tmp_path / "test").exists()
    assert not (tmp_path / "trace").exists()


def test_classes_are_named_and_counted(labelled: Path, classes: Path, tmp_path: Path, program: Program) -> None:
    path = a_tsm(tmp_path)
    test = ["--test_only", "-m", path, "--num_workers", 0, "--img_size", 32, "--dataset", labelled]
    assert "give them with --class_names FILE" in program.fails(*test, "-c", tmp_path / "run")
    (tmp_path / "more.txt").write_text("\n".join([*LABELS, "walk"]))
    sentence = program.fails(*test, "-c", tmp_path / "run", "--classes", tmp_path / "more.txt")
    assert re.search(r"more.txt names 4 classes, .* has 3", sentence)
    (tmp_path / "other.txt").write_text("\n".join([*LABELS[:2], "walk"]))
    sentence = program.fails(*test, "-c", tmp_path / "run", "--classes", tmp_path / "other.txt")
    assert "a class(es) that the training does not have" in sentence or "the first is 'wave'" in sentence
    videos = [
        f"{video.relative_to(labelled)} 6 {n}"
        for n, c in enumerate(LABELS)
        for video in (labelled / "val" / c).iterdir()
    ]
    (tmp_path / "list.txt").write_text("\n".join(videos))
    lists = ["--root", labelled, "--test_list", tmp_path / "list.txt"]
    program(*test[:-2], *lists, "-c", tmp_path / "lists")
    assert list(ViewScores.load(tmp_path / "lists" / "scores.npz").classes) == ["0", "1", "2"]
    tuned = ["--epochs", 0, "--tune_from", path, *lists, "--backbone", "tsm_resnet18", "--seq_len", 4]
    other = program.fails(*tuned, "--backbone_options", "shift_div=8", "-c", tmp_path / "run")
    assert "is of tsm_resnet18 with shift_div=4, not 8" in other
    assert "nothing has trained" in program.fails(*tuned, "--backbone_options", "shift_div=4", "-c", tmp_path / "run")


def test_safetensors_are_read(classes: Path, labelled: Path, tmp_path: Path, program: Program) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    path = a_tsm(tmp_path)
    safe = path.with_suffix(".safetensors")
    safetensors.save_file(torch.load(path)["state_dict"], safe)
    test = ["--test_only", "--dataset", labelled, "--classes", classes, "--num_workers", 0, "--img_size", 32]
    for number, file in enumerate((path, safe)):
        program(*test, "-m", file, "-c", tmp_path / str(number))
    a, b = (ViewScores.load(tmp_path / run / "scores.npz").logits for run in ("0", "1"))
    assert (a == b).all()


def test_an_mvit_is_read_by_its_class_token(tmp_path: Path) -> None:
    """At the full size, for which its positions are."""
    torch.manual_seed(0)
    net = torchvision.models.video.mvit_v2_s(num_classes=3).eval()
    found = released(net.state_dict(), tmp_path / "video.pth")
    assert found is not None
    settings = found.settings(argparse.Namespace(backbone_options={}, seq_len=None))
    assert (settings["backbone"], settings["backbone_options"], settings["seq_len"]) == (
        "mvit_v2_s",
        {"token": "class"},
        16,
    )
    model, _ = found.recogniser(settings)
    clip = torch.rand(1, 16, 3, 224, 224)
    with torch.inference_mode():
        torch.testing.assert_close(model.eval()(clip), net(clip.transpose(1, 2)), rtol=1e-5, atol=1e-5)
    with torch.device("meta"):
        state = torchvision.models.video.mvit_v1_b().state_dict()
    assert released(state, tmp_path / "video.pth").network.backbone == "mvit_v1_b"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("backbone", "options", "names", "file"),
    [
        ("resnet3d50", {"width": 128}, as_hara, "wideresnet-50-kinetics.pth"),
        ("resnet3d34", {"shortcut": "A"}, as_hara, "resnet-34-kinetics.pth"),
        ("tam_inception_v1", {}, as_ibm, "kinetics400-rgb-TAM-b3-sum-inception-v1-f8-cosine-bs72-e75"),
        ("s3d_inception_v1", {"temporal_stride": True}, as_ibm, "mini-rgb-s3d-ts-max-f8-cosine-bs72-e75"),
        ("i3d_resnet101", {}, as_ibm, "K400-I3D-ResNet-101-f32"),
        (
            "tsm_mobilenet_v2",
            {},
            as_tsm_mobilenet,
            "TSM_kinetics_RGB_mobilenetv2_shift8_blockres_avg_segment8_e100_dense.pth",
        ),
        (
            "tsm_resnet50",
            {"non_local": True},
            as_tsm,
            "TSM_kinetics_RGB_resnet50_shift8_blockres_avg_segment8_e100_dense_nl.pth",
        ),
        ("tsm_resnet101", {}, as_shifted_tsm, "TSM_something_RGB_resnet101_shift8_blockres_avg_segment8_e45.pth"),
    ],
)
def test_networks_too_large_for_a_test_are_read_by_name_and_shape(
    backbone: str, options: dict[str, Any], names: Callable[[State], Any], file: str, tmp_path: Path
) -> None:
    """On the meta device; in these networks each tensor of the file finds its place."""
    with torch.device("meta"):
        net = build_backbone(backbone, seq_len=16, **options)
        state = bare(names(net.net.state_dict()))
        prefix = "module.new_fc" if "TSM" in file else "module.fc"
        state |= {f"{prefix}.weight": torch.empty(5, net.feature_dim), f"{prefix}.bias": torch.empty(5)}
        found = released({"state_dict": state}, tmp_path / file)
        assert found is not None
        given = {"conv1_t_stride": 1, "no_max_pool": False} if found.code_base == "3D-ResNets" else {}
        settings = found.settings(argparse.Namespace(backbone_options=given, seq_len=16))
        assert settings["backbone"] == backbone
        assert options.items() <= settings["backbone_options"].items()
        assert settings["sampling"] == ("tsm_dense" if "_dense" in file else found.network.sampling)
        _, report = found.recogniser({**settings, "seq_len": 16})
    assert len(report.loaded) == len(net.net.state_dict())


def test_what_averages_the_steps_of_a_clip_reads_the_class_token_of_an_mvit(tmp_path: Path) -> None:
    network = ["--backbone", "mvit_v2_s", "--seq_len", "16", "-c", str(tmp_path / "run"), "--dataset", "DATA"]

    def options(*flags: str) -> dict[str, Any]:
        return dict(parse_args([*network, *flags], METHODS).backbone_options)

    assert options("--method", "tsn") == {"token": "class"}
    assert options("--method", "tsn", "--backbone_options", "token=patches") == {"token": "patches"}
    assert options("--method", "otam") == {}
    assert supervised_settings.parse_args(network).backbone_options == {"token": "class"}
