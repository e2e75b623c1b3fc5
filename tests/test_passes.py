"""How clips go through a backbone changes nothing about what comes out, or about what is learnt."""

from __future__ import annotations

import pytest
import torch
from test_model import EQUAL_SHOTS, STEPS, build, frames
from torch import Tensor, nn

from backbones import BACKBONES, build_backbone
from backbones.figures import figures
from backbones.passes import blocks_of
from model import CNN_FSHead
from utils import UserError


def spread_over(head: CNN_FSHead, parts: int) -> list[int]:
    """Deals its clips out to so many stand-ins for GPUs; notes the numbers of clips that each call then sees."""
    seen: list[int] = []

    def noting(clips: Tensor) -> Tensor:
        seen.append(len(clips))
        assert clips.shape[1] == STEPS, "a clip was cut"
        return type(head.backbone).features(head.backbone, clips)

    head.backbone.features = noting
    head.distribute_model([torch.device("cpu")] * parts)
    return seen


def answer_and_gradients(head: CNN_FSHead) -> dict[str, Tensor]:
    head.zero_grad()
    torch.manual_seed(1)  # of dropout
    outputs = head(frames(6), EQUAL_SHOTS, frames(4))
    head.loss({"target_labels": torch.tensor([0, 1, 2, 0])}, outputs).backward()
    return {"logits": outputs["logits"].detach()} | {name: p.grad.clone() for name, p in head.named_parameters()}


@pytest.mark.parametrize("method", ["trx", "otam", "tsn"])
def test_spread_over_devices_it_answers_and_learns_as_on_one(method):
    head = build("--method", method, "--num_gpus", "3", "--bn", "frozen").train()
    names, expected = list(head.state_dict()), answer_and_gradients(head)
    seen = spread_over(head, 3)
    torch.testing.assert_close(answer_and_gradients(head), expected)
    assert seen == [4, 4, 2]
    assert list(head.state_dict()) == names


def test_each_device_takes_batch_statistics_over_its_own_clips_and_the_firsts_are_kept():
    head = build("--method", "tsn", "--num_gpus", "2").train()
    alone = build("--method", "tsn").train()
    alone.load_state_dict(head.state_dict())
    spread_over(head, 2)
    clips = frames(10).reshape(10, STEPS, 3, 16, 16)
    both = torch.cat([alone.backbone(clips[:5]), alone.backbone(clips[5:])])
    alone.load_state_dict(head.state_dict())
    alone.backbone(clips[:5])
    torch.testing.assert_close(head.backbone(clips), both)
    torch.testing.assert_close(head.state_dict(), alone.state_dict())


@pytest.mark.parametrize("flags", [["--frames_per_call", str(2 * STEPS)], ["--frames_per_call", "1"]])
@pytest.mark.parametrize("again", [[], ["--checkpoint_activations"]])
def test_portions_change_nothing(flags, again):
    expected = answer_and_gradients(build("--method", "trx", "--bn", "frozen").train())
    head = build("--method", "trx", "--bn", "frozen", *flags, *again).train()
    seen = []
    original = head.backbone.features
    head.backbone.features = lambda clips: seen.append(len(clips)) or original(clips)
    torch.testing.assert_close(answer_and_gradients(head), expected)
    assert set(seen) == ({2} if flags[1] != "1" else {1})
    assert len(seen) == (5 if flags[1] != "1" else 10) * (2 if again else 1), (
        "computed again in the backward pass, or not"
    )


def test_activations_computed_again_change_nothing_and_statistics_are_updated_once():
    kept, again = (build("--method", "trx", *flags).train() for flags in ([], ["--checkpoint_activations"]))
    assert list(kept.state_dict()) == list(again.state_dict())
    norm = next(module for module in again.modules() if isinstance(module, nn.BatchNorm2d))
    calls = []
    norm.register_forward_hook(lambda *_: calls.append(1))
    torch.testing.assert_close(answer_and_gradients(again), answer_and_gradients(kept))
    torch.testing.assert_close(again.state_dict(), kept.state_dict())
    assert len(calls) == 2
    assert int(norm.num_batches_tracked) == 1
    with torch.no_grad():
        again(frames(6), EQUAL_SHOTS, frames(4))
    assert len(calls) == 3


def test_activations_computed_again_are_not_kept():
    def kept_bytes(head):
        stored: dict[int, int] = {}

        def note(tensor):
            stored[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            features = head.backbone(frames(8).reshape(8, STEPS, 3, 16, 16))
        assert features.requires_grad
        return sum(stored.values())

    flags = ["--method", "tsn", "--backbone", "resnet18", "--img_size", "16"]
    assert kept_bytes(build(*flags, "--checkpoint_activations").train()) < 0.6 * kept_bytes(build(*flags).train())


def test_a_backbone_without_blocks_says_so():
    with pytest.raises(UserError, match="finds no blocks"):
        build("--method", "tsn", "--backbone", "c3d", "--seq_len", "16", "--checkpoint_activations")


@pytest.mark.parametrize("name", sorted(set(BACKBONES) - {"c3d"}))
def test_every_backbone_is_a_sequence_of_blocks_that_hold_its_weights(name):
    with torch.device("meta"):
        backbone = build_backbone(name, seq_len=figures()[name].frames)
    blocks = blocks_of(backbone)
    inside = [id(parameter) for block in blocks for parameter in block.parameters()]
    assert len(inside) == len(set(inside)), "blocks overlap"
    # Tables of positions are added before the first block; DINOv2's of 37 x 37 places is 2.4 % of its smallest network.
    weights = {name: p.numel() for name, p in backbone.named_parameters() if not name.endswith("pos_embed")}
    assert sum(p.numel() for block in blocks for p in block.parameters()) > 0.98 * sum(weights.values())
    assert len(blocks) >= 4


def test_several_episodes_in_one_call_answer_as_one_after_the_other():
    head = build("--method", "trx").eval()
    support, target = frames(12).unflatten(0, (2, -1)), frames(8).unflatten(0, (2, -1))
    both = head(support, torch.stack([EQUAL_SHOTS, EQUAL_SHOTS]), target)["logits"]
    single = [head(support[i], EQUAL_SHOTS, target[i])["logits"] for i in range(2)]
    torch.testing.assert_close(both, torch.stack(single))


@pytest.mark.filterwarnings("ignore:Guards may run slower on Python 3.13.0")
def test_compiled_it_answers_the_same_under_the_same_names(monkeypatch):
    compiled = []

    def quickly(function):
        compiled.append(function.__name__)
        return torch._dynamo.optimize("eager")(function)

    monkeypatch.setattr(torch, "compile", quickly)
    head = build("--method", "tsn", "--bn", "frozen").train()
    names, expected = list(head.state_dict()), answer_and_gradients(head)
    head.backbone.compile_passes()
    torch.testing.assert_close(answer_and_gradients(head), expected)
    assert compiled == ["features", "feature_maps"]
    assert list(head.state_dict()) == names
