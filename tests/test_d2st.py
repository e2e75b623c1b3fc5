"""D2ST-Adapter in a transformer and in a ResNet: against a literal form, against the networks it is put into, and in runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import test_foundation_images
import torch
from conftest import tiny_run
from jobs import learnt, nth, quietly
from run_folders import weights
from small_heads import features, on_meta
from test_resume import killed_when
from torch import Tensor, nn

from backbones import build_backbone
from backbones.backbone import Backbone
from backbones.d2st import OF_STAGES, OF_TRANSFORMER, Adapter, MapAdapter, TokenAdapter
from tests.oracles import d2st as literal
from utils import BEST, FINAL, LATEST, UserError

timm = pytest.importorskip("timm", reason="needs pip install -r requirements-foundation.txt")
SIZE, PATCH, FRAMES = 32, 4, 4
# CLIP's transformer, smaller: 8 x 8 patches, two blocks of width 64.
SMALLER = {"embed_dim": 64, "depth": 2, "num_heads": 2, "img_size": SIZE, "patch_size": PATCH}
TRAINED = ("temporal.", "adapters.", "cls_token", "norm.", "aux_classifier.")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    create = timm.create_model
    overlay = {"input_size": (3, SIZE, SIZE)}
    monkeypatch.setattr(
        timm,
        "create_model",
        lambda name, **options: create(name, pretrained_cfg_overlay=overlay, **{**options, **SMALLER}),
    )


def built(name: str = "d2st_clip_vit_b16", **options: Any) -> Backbone:
    torch.manual_seed(0)
    return build_backbone(name, seq_len=FRAMES, **options).eval()


def clips(count: int = 2, size: int = SIZE) -> Tensor:
    return torch.rand(count, FRAMES, 3, size, size, generator=torch.Generator().manual_seed(1)) * 4 - 2


def stirred(net: nn.Module) -> nn.Module:
    """With weights of adapters far from those they start with, so that points move and what is mapped up is not zero."""
    generator = torch.Generator().manual_seed(2)
    for parameter in net.parameters():
        if parameter.requires_grad:
            fan = parameter[0].numel() if parameter.ndim > 1 else 4
            parameter.data += torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype) / fan**0.5
    return net


# ---------------------------------------------------------------------------------------------------------------------
# Against the equations


@pytest.mark.parametrize("kind", ["transformer", "last stage"])
def test_an_adapter_is_what_its_equations_say(kind: str) -> None:
    tokens = features(2, FRAMES, 50, 16)
    if kind == "transformer":
        windows, activated = OF_TRANSFORMER, True
        fast = stirred(TokenAdapter(16, 2, (FRAMES, 7, 7), windows, activated=True).double())
        found = fast(tokens.flatten(0, 1), 2).unflatten(0, (2, FRAMES))
    else:
        windows, activated, tokens = OF_STAGES[3], False, tokens[:, :, 1:]
        fast = stirred(MapAdapter(16, 2, (FRAMES, 7, 7), windows, activated=False).double())
        maps = tokens.unflatten(2, (7, 7)).permute(0, 1, 4, 2, 3)
        found = fast(maps.flatten(0, 1), 2).unflatten(0, (2, FRAMES)).permute(0, 1, 3, 4, 2).flatten(2, 3)
    with torch.inference_mode():
        expected = torch.stack([literal.adapter(fast, clip, windows, activated=activated) for clip in tokens])
    assert (expected - tokens).std() > 0.1
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_points_move_as_far_as_their_neighbours_stand_and_no_further() -> None:
    """32 points of 8 frames of 14 x 14 patches on either path."""
    paths = Adapter(16, 2, (8, 14, 14), OF_TRANSFORMER, activated=True).paths
    for path, points in zip(paths, [(2, 4, 4), (8, 2, 2)], strict=True):
        assert path.reference.shape == (*points, 3)
        at_rest = path.reference[0, 0, 0]
        torch.testing.assert_close(at_rest, torch.tensor([1 / n - 1 for n in points]))
        path.offset.weight.data *= 1e6
        moved = path.places(torch.randn(3, 8, 197, 4)) - path.reference
        assert moved.shape == (6, *points, 3)
        torch.testing.assert_close(moved.abs().amax(dim=(0, 1, 2, 3)), torch.tensor([min(1, 2 / n) for n in points]))


# ---------------------------------------------------------------------------------------------------------------------
# In networks


def test_adapters_are_as_large_as_published() -> None:
    """And with the classifier of 64 classes, all that is trained."""
    published = {
        "clip_vit_b16": (12 * [606_192], 7_331_968),
        "resnet50": ([94_272, 293_760, 1_070_400, 4_225_344], 5_814_912),
    }
    for name, (adapters, trained) in published.items():
        head = on_meta("--method", "bimhm", "--bimhm_aux_weight", "1", "--backbone", f"d2st_{name}")
        found = [module for module in head.modules() if isinstance(module, Adapter)]
        assert [sum(p.numel() for p in module.parameters()) for module in found] == adapters
        assert sum(p.numel() for p in head.parameters() if p.requires_grad) == trained


def test_it_starts_as_clip_from_a_file_of_clip(small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of OpenAI's names; and again from what was trained."""
    monkeypatch.setattr(test_foundation_images, "PATCH", PATCH)
    torch.save(test_foundation_images.clip(2, size=SIZE).state_dict(), tmp_path / "clip.pt")
    options = {"activation": "quick_gelu"}
    plain = built("clip_vit_b16", pretrained=str(tmp_path / "clip.pt"), **options)
    adapted = built(pretrained=str(tmp_path / "clip.pt"), **options)
    with torch.inference_mode():
        expected = plain(clips())
        assert expected.std() > 0.01
        assert torch.equal(adapted(clips()), expected)
        assert torch.equal(adapted(clips(), maps=True), plain(clips(), maps=True))
        torch.save(stirred(adapted).state_dict(), tmp_path / "trained.pt")
        again = built(pretrained=str(tmp_path / "trained.pt"), **options)
        assert torch.equal(again(clips()), adapted(clips()))
        assert (adapted(clips()) - expected).std() > 0.01


def test_it_starts_as_the_resnet_and_its_norms_never_learn() -> None:
    adapted = built("d2st_resnet50").train()
    net, clip = adapted.net, clips(1, 224)
    assert net["adapter1"].training
    with torch.inference_mode():
        maps = adapted(clip, maps=True)
        for number in range(1, 5):
            assert all(parameter.requires_grad for parameter in net.pop(f"adapter{number}").parameters())
        torch.testing.assert_close(maps, adapted(clip, maps=True), rtol=1e-6, atol=1e-6)
    assert int(net["bn1"].num_batches_tracked) == 0
    assert not any(parameter.requires_grad for parameter in adapted.parameters())


def test_gradients_reach_what_is_trained_and_nothing_else_in_whatever_portions(small: None) -> None:
    """Frames of a clip stay together: portions, and what is computed again, change nothing."""

    def trained(**passes: Any) -> tuple[Tensor, dict[str, Tensor]]:
        backbone = stirred(built()).train()
        backbone.set_passes(**passes)
        features = backbone(clips(3))
        (features * torch.linspace(-1, 1, features.shape[-1])).sum().backward()
        return features, {n: p.grad for n, p in backbone.named_parameters() if p.grad is not None}

    features, gradients = trained()
    names = {name for name, _ in built().named_parameters() if name.removeprefix("net.").startswith(TRAINED)}
    assert gradients.keys() == names
    assert [name for name, gradient in gradients.items() if not gradient.any()] == []
    for passes in ({"frames_per_call": FRAMES}, {"recompute": True}, {"frames_per_call": FRAMES, "recompute": True}):
        again, others = trained(**passes)
        torch.testing.assert_close(again, features)
        for name, gradient in gradients.items():
            torch.testing.assert_close(others[name], gradient, rtol=1e-3, atol=1e-4)


def test_a_frame_sees_the_others_of_its_clip_and_of_no_other(small: None) -> None:
    backbone = stirred(built())
    with torch.inference_mode():
        before = backbone(clips())
        changed = clips()
        changed[0, -1] = 0
        after = backbone(changed)
    assert ((after - before)[0].abs().amax(dim=-1) > 1e-3).all()
    assert torch.equal(after[1], before[1])


@pytest.mark.parametrize("name", ["d2st_clip_vit_b16", "d2st_resnet50"])
def test_clips_that_it_cannot_take_are_refused(small: None, name: str) -> None:
    with torch.device("meta"):
        with pytest.raises(UserError, match="--seq_len is 6: expected a multiple of 4"):
            build_backbone(name, seq_len=6)
        backbone = build_backbone(name, seq_len=FRAMES)
        size = backbone.input_spec.size
        with pytest.raises(UserError, match="made for clips of 4 frames, found 8: give --seq_len 4"):
            backbone(torch.empty(1, 8, 3, size, size))
        with pytest.raises(UserError, match=f"found 48x48: give --img_size {size}"):
            backbone(torch.empty(1, FRAMES, 3, 48, 48))


# ---------------------------------------------------------------------------------------------------------------------
# In runs


def test_a_run_trains_adapters_alone_and_resumes_to_the_bit(small: None, dataset: Path, tmp_path: Path) -> None:
    flags = ["--backbone", "d2st_clip_vit_b16", "--img_size", SIZE, "--seq_len", FRAMES, "--method", "bimhm"]
    flags += ["--bimhm_aux_weight", 0.5, "--opt", "adam", "-lr", 0.01, "--save_freq", 2, "--val_iters", 4, "--direct"]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert quietly(tiny_run(dataset, whole, *flags)) == 0
    assert killed_when(nth(4, "train_call"), tiny_run(dataset, stopped, *flags))
    before, after = weights(stopped, LATEST), weights(whole)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {name for name in before if name.removeprefix("backbone.net.").startswith(TRAINED)}

    assert quietly(["-c", stopped, "-r", "--num_workers", 0]) == 0
    for name in (LATEST, BEST, FINAL):
        assert learnt(stopped / name) == learnt(whole / name)
    again = built(pretrained=str(whole / FINAL))  # as the backbone of another run
    assert all(torch.equal(tensor, after[f"backbone.{name}"]) for name, tensor in again.state_dict().items())
