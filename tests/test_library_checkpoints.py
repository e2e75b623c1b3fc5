"""Checkpoints of TRX-style libraries, in files made here with their names, tested as they are and taken as backbones."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from itertools import combinations
from math import comb
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Program, tiny_run
from run_folders import results
from script_runs import Script
from torch import Tensor, nn

import run
from backbones.torchvision_import import torchvision
from engine.settings import parse_args
from methods import METHODS, build_head
from methods.checkpoints import load_head, read_head, settings_in
from model import CNN_FSHead
from scripts import explain_episode, predict
from tests.oracles import heads, trx_tsn
from utils import UserError

State = dict[str, Tensor]
FRAMES, WIDTH = 4, 12
SETTINGS = ["--backbone", "resnet18", "--no_pretrained", "--seq_len", str(FRAMES)]


def in_a_row(seed: int = 0) -> nn.Sequential:
    """Their backbone: torchvision's ResNet-18 without its classifier, its layers in one row."""
    torch.manual_seed(seed)
    net = torchvision.models.resnet18()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return nn.Sequential(*list(net.children())[:-1]).eval()


def head_of(method: str, *flags: object) -> CNN_FSHead:
    torch.manual_seed(1)
    return build_head(parse_args(["-c", "unused", "--method", method, *SETTINGS, *map(str, flags)], METHODS)).eval()


def own_tensors(head: CNN_FSHead) -> State:
    return {name: tensor for name, tensor in head.state_dict().items() if not name.startswith("backbone.")}


def positions(branch: str, width: int = 512) -> State:
    return {f"{branch}.pe.pe": torch.zeros(1, FRAMES * 3 // 2, width)}


def as_trx(head: CNN_FSHead) -> State:
    """With their tables of positions and tuples, and the norm of values that is never used."""
    named = own_tensors(head)
    for number, cardinality in enumerate((2, 3)):
        branch = f"transformers.{number}"
        named |= positions(branch)
        named |= {f"{branch}.norm_v.weight": torch.ones(WIDTH), f"{branch}.norm_v.bias": torch.zeros(WIDTH)}
        chosen = list(combinations(range(FRAMES), cardinality))
        assert len(chosen) == comb(FRAMES, cardinality)
        named |= {f"{branch}.tuples.{row}": torch.tensor(frames) for row, frames in enumerate(chosen)}
    return named


def as_dual_prototypes(head: CNN_FSHead) -> State:
    named = {}
    for name, tensor in own_tensors(head).items():
        name = re.sub(r"^branches\.", "model.", name).replace(".norm.", ".norm_k.")
        name = re.sub(r"\.([qkv])_linear\.", lambda match: f".W_{match[1].upper()}.", name)
        named[name] = tensor
        named |= positions(name[:7])
        if ".norm_k." in name:
            named[name.replace("norm_k", "norm_v")] = torch.ones_like(tensor)
    return named


def as_pal(head: CNN_FSHead) -> State:
    return {name.replace("attention.", "mha."): t for name, t in own_tensors(head).items() if t.ndim}


def as_otam(head: CNN_FSHead) -> State:
    assert not own_tensors(head)
    return {}


def dual_prototypes(head: CNN_FSHead, support: Tensor, labels: Tensor, target: Tensor) -> Tensor:
    scores = [heads.dual_prototypes_code(branch, support, labels, target) for branch in head.branches]
    return torch.stack(scores).mean(dim=0)


CASES: dict[str, tuple[Callable[[CNN_FSHead], State], list[object], Callable[..., Tensor]]] = {
    "trx": (as_trx, ["--trans_linear_out_dim", WIDTH], trx_tsn.trx),
    "dual_prototypes": (as_dual_prototypes, ["--dp_variant", "code", "--temp_set", 2], dual_prototypes),
    "pal": (as_pal, [], heads.pal),
    "otam": (as_otam, [], lambda _, *episode: heads.otam(*episode)),
}


def write(method: str, path: Path, *, wrapped: str = "backbone") -> tuple[nn.Sequential, CNN_FSHead]:
    """A file of the library. Returns what is in it."""
    names, flags, _ = CASES[method]
    net, head = in_a_row(), head_of(method, *flags)
    state = {f"{wrapped}.{name}": tensor for name, tensor in net.state_dict().items()} | names(head)
    torch.save({"iteration": 75000, "model_state_dict": state, "optimizer_state_dict": {}, "scheduler": {}}, path)
    return net, head


@pytest.fixture
def few_shot(capsys: pytest.CaptureFixture[str]) -> Program:
    return Program(capsys)


@pytest.mark.parametrize("method", CASES)
def test_a_library_checkpoint_is_tested_and_gives_its_own_logits(
    method: str, dataset: Path, tmp_path: Path, few_shot: Program
) -> None:
    path = tmp_path / "checkpoint_best_val.pt"
    net, head = write(method, path, wrapped="resnet.module" if method == "trx" else "backbone")
    told = [] if method in ("trx", "dual_prototypes") else ["--seq_len", FRAMES]
    test = ["--test_only", "-m", path, "--dataset", dataset, "--method", method, *told, "--img_size", 32, "--way", 2]
    small = ["--shot", 2, "--num_test_tasks", 2, "--num_workers", 0]
    out = few_shot("-c", tmp_path / "test", *test, *small)
    assert f"{method} over resnet18 of a TRX-style library" in out
    found = results(tmp_path / "test")
    assert (found["method"], found["backbone"], found["untrained"]) == (method, "resnet18", False)
    assert (found["checkpoint_tasks"], found["selected_on"]) == (75000, "unknown")

    args = parse_args([str(flag) for flag in ["-c", "unused", *test, *small]], METHODS, settings_in=settings_in)
    assert (args.normalise, args.seq_len) == ("none", FRAMES)
    checkpoint, _ = read_head(path, args)
    ours = build_head(args, load_pretrained=False)
    ours.load_state_dict(checkpoint["model"])
    support, target = torch.rand(4 * FRAMES, 3, 32, 32), torch.rand(3 * FRAMES, 3, 32, 32)
    labels = torch.tensor([0, 1, 0, 1])
    with torch.inference_mode():
        logits = ours.eval()(support, labels, target)["logits"]
        steps = [net(images).flatten(1).unflatten(0, (-1, FRAMES)) for images in (support, target)]
        expected: Any = CASES[method][2](head, steps[0], labels, steps[1])
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    assert float(expected.std()) > 0


def test_a_library_backbone_goes_under_another_head(dataset: Path, tmp_path: Path, capsys: Any) -> None:
    net, _ = write("pal", tmp_path / "pal.pt")
    argv = [
        flag
        for flag in tiny_run(dataset, tmp_path / "run", "-i", 0, "--backbone", "resnet18")
        if flag != "--no_pretrained"
    ]
    assert run.main([*argv, "-pt", str(tmp_path / "pal.pt"), "--img_size", "32"]) == 0
    assert "120 tensors loaded, 0 missing" in capsys.readouterr().err
    saved = torch.load(tmp_path / "run" / "checkpoint_final.pt")["model"]
    assert torch.equal(saved["backbone.net.layer4.1.bn2.running_var"], net[7][1].bn2.running_var)


def test_what_does_not_fit_is_one_sentence(dataset: Path, tmp_path: Path, few_shot: Program) -> None:
    write("trx", tmp_path / "trx.pt")
    write("otam", tmp_path / "otam.pt")
    content = torch.load(tmp_path / "trx.pt")
    del content["model_state_dict"]["transformers.1.norm_k.bias"]
    torch.save(content, tmp_path / "half.pt")
    content = torch.load(tmp_path / "otam.pt")
    content["model_state_dict"]["l_norm.weight"] = torch.ones(512)
    torch.save(content, tmp_path / "tsn.pt")
    torch.save({"iteration": 3, "optimizer_state_dict": {"state": {}}}, tmp_path / "optimiser.pt")
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "image.pt")
    for name, flags, sentence in [
        ("trx.pt", ["--method", "pal"], "was trained with --method trx, not pal"),
        ("trx.pt", ["--backbone", "resnet50"], "was trained with --backbone resnet18, not resnet50"),
        ("trx.pt", ["--seq_len", 8], "was trained with --seq_len 4, not 8"),
        ("half.pt", [], "1 tensors are not of both, the first is transformers.1.norm_k.bias"),
        ("otam.pt", ["--seq_len", 4], "holds a backbone and no head: give a --method without weights"),
        ("otam.pt", ["--method", "otam"], "does not tell how many frames .*: give --seq_len"),
        ("tsn.pt", ["--method", "tsn", "--seq_len", 4], "has l_norm.weight beside its backbone"),
        ("optimiser.pt", ["--method", "trx"], "holds no weights"),
        ("image.pt", ["--method", "otam"], "nor of a TRX-style library, whose backbone begins with backbone.0.weight"),
    ]:
        argv = ["-c", tmp_path / "test", "--test_only", "-m", tmp_path / name, "--dataset", dataset, "--way", 2, *flags]
        assert re.search(sentence, few_shot.fails(*argv, "--shot", 1, "--num_workers", 0))
        assert not (tmp_path / "test").exists()


def test_a_head_that_is_not_there_is_not_made_up(tmp_path: Path) -> None:
    write("otam", tmp_path / "otam.pt")
    args = parse_args(["-c", "unused", "--method", "pal", *SETTINGS], METHODS)
    with pytest.raises(UserError, match="does not fit --method pal"):
        read_head(tmp_path / "otam.pt", args)


def test_predict_and_explain_answer_with_a_library_checkpoint(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "otam.pt"
    write("otam", path)
    answer, show = Script(predict.main, capsys), Script(explain_episode.main, capsys)
    first, second = sorted((dataset / "test").iterdir())[:2]
    for label in (first, second):
        shutil.copytree(sorted(label.iterdir())[0], tmp_path / "support" / label.name / "a")
    query = sorted(first.iterdir())[1]
    asked = ["--checkpoint", path, "--support", tmp_path / "support", "--query", query]
    told = ["--method", "otam", "--seq_len", FRAMES]
    assert "give a --method without weights" in answer.fails(*asked)
    assert "give --seq_len" in answer.fails(*asked, "--method", "otam")
    assert "otam on resnet18" in answer(*asked, *told)
    model, settings, _, _ = load_head(path, method="otam", seq_len=FRAMES)
    assert settings.normalise == "none"
    assert not model.training
    episode = ["--checkpoint", path, *told, "--way", 2, "--shot", 1, "--out", tmp_path / "episode.png"]
    show(*episode, "--dataset", dataset)
    assert (tmp_path / "episode.png").stat().st_size > 1000
    write("trx", tmp_path / "trx.pt")
    wrong = ["--checkpoint", tmp_path / "trx.pt", "--method", "otam", *asked[2:]]
    assert "of --method trx, not otam" in answer.fails(*wrong)
