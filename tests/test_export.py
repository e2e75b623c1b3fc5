"""scripts/export.py: what it writes is loaded by the other library, and comes back equal in every bit."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tiny_run
from script_runs import Script
from supervised_runs import same_weights, supervised_run
from torch import Tensor

import run
import run_supervised
from backbones.released import released
from backbones.torchvision_import import torchvision
from scripts import export
from tests.oracles import released as literal
from utils import FINAL, load_checkpoint


@pytest.fixture
def script(capsys: pytest.CaptureFixture[str]) -> Script:
    return Script(export.main, capsys)


def a_run(labelled: Path, folder: Path, backbone: str, *options: str, size: int = 32) -> dict[str, Any]:
    """The checkpoint of a recogniser that nothing has trained."""
    argv = supervised_run(labelled, folder, "--backbone", backbone, "--epochs", 0, "--untrained", "--img_size", size)
    place = argv.index("--backbone_options")
    argv[place : place + 2] = ["--backbone_options", *options] if options else []
    assert run_supervised.main(argv) == 0
    return load_checkpoint(folder / FINAL)


def back(content: Any, path: Path, frames: int) -> dict[str, Tensor]:
    """The recogniser of ours that is read from it."""
    found = released(content, path)
    assert found is not None
    model, _ = found.recogniser(found.settings(Namespace(backbone_options={}, seq_len=frames)))
    return dict(model.state_dict())


@pytest.mark.parametrize(
    ("backbone", "options", "file", "hooks"),
    [
        ("tsm_resnet18", ["shift_div=4"], "TSM_labelled0_RGB_resnet18_shift4_blockres_avg_segment3_e0.pth", {"div": 4}),
        ("tsm_resnet18", ["place=block", "temporal_pool=1"],
         "TSM_labelled0_RGB_resnet18_shift8_block_tpool_avg_segment3_e0.pth", {"place": "block", "pooled": True}),
        ("resnet18", [], "TSM_labelled0_RGB_resnet18_avg_segment3_e0.pth", {"place": ""}),
    ],
)  # fmt: skip
def test_tsm_gets_its_names_container_and_file_name(
    backbone: str, options: list[str], file: str, hooks: dict[str, Any], labelled: Path, tmp_path: Path, script: Script
) -> None:
    checkpoint = a_run(labelled, tmp_path / "run", backbone, *options)
    assert "under the names of tsm" in script(tmp_path / "run", "--to", "tsm")
    content = torch.load(tmp_path / "run" / file)
    assert (content["epoch"], content["arch"]) == (0, "resnet18")
    assert same_weights(back(content, tmp_path / file, 3), checkpoint["model"])
    clip = torch.rand(3, 3, 32, 32)
    assert literal.tsm(content["state_dict"], clip, **hooks).shape == (3,)  # by its names alone


@pytest.mark.parametrize(("backbone", "size"), [("resnet18", 32), ("mobilenet_v2", 32), ("mc3_18", 32)])
def test_torchvision_loads_its_own(backbone: str, size: int, labelled: Path, tmp_path: Path, script: Script) -> None:
    checkpoint = a_run(labelled, tmp_path / "run", backbone, size=size)
    script(tmp_path / "run" / FINAL, "--to", "torchvision", "--out", tmp_path / "net.pth")
    state = torch.load(tmp_path / "net.pth")
    models = torchvision.models.video if hasattr(torchvision.models.video, backbone) else torchvision.models
    net = getattr(models, backbone)(num_classes=3)
    net.load_state_dict(state)  # strictly
    assert same_weights(back(state, tmp_path / "net.pth", 3), checkpoint["model"])


def test_safetensors_hold_every_tensor_and_the_settings(labelled: Path, tmp_path: Path, script: Script) -> None:
    safetensors = pytest.importorskip("safetensors")
    from safetensors.torch import load_file

    checkpoint = a_run(labelled, tmp_path / "run", "conv4", "width=8", size=16)
    script(tmp_path / "run", "--to", "safetensors")
    path = tmp_path / "run" / "weights.safetensors"
    assert same_weights(load_file(path), checkpoint["model"])
    with safetensors.safe_open(path, "pt") as file:
        told = file.metadata()
    assert json.loads(told["args"])["backbone_options"] == {"width": 8}
    assert json.loads(told["classes"]) == checkpoint["classes"]
    assert "weights.safetensors exists" in script.fails(tmp_path / "run", "--to", "safetensors")


def test_a_few_shot_run_gives_its_backbone(dataset: Path, tmp_path: Path, script: Script) -> None:
    flags = ["--backbone", "resnet18", "--img_size", 32]
    assert run.main(tiny_run(dataset, tmp_path / "run", "-i", 0, *flags)) == 0
    script(tmp_path / "run", "--to", "torchvision")
    state = torch.load(tmp_path / "run" / "resnet18.pth")
    net = torchvision.models.resnet18()
    assert net.load_state_dict(state, strict=False).missing_keys == ["fc.weight", "fc.bias"]


def test_what_another_library_does_not_have_is_refused(labelled: Path, tmp_path: Path, script: Script) -> None:
    a_run(labelled, tmp_path / "run", "conv4", "width=8", size=16)
    assert "which torchvision does not have" in script.fails(tmp_path / "run", "--to", "torchvision")
    assert "expected a ResNet of TSM or TSN" in script.fails(tmp_path / "run", "--to", "tsm")
    assert "expected a name that ends in" in script.fails(
        tmp_path / "run", "--to", "safetensors", "--out", "weights.pth"
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]
    assert not list((tmp_path / "run").glob("*.pth"))
