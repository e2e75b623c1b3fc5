"""Which weights of a backbone are trained, and low-rank sums to its attention."""

import copy

import pytest
import torch
from test_backbones import tiny_mvit
from torch import nn

from backbones import build_backbone
from backbones.adapters import NORMS, add_lora, attention_maps, main_blocks, merged, train_layers
from engine.settings import build_parser
from methods import METHODS, build_head
from utils import UserError

pytest.importorskip("timm", reason="needs pip install -r requirements-foundation.txt")
SIZE = 64


def transformer():
    torch.manual_seed(0)
    return build_backbone("timm:test_vit", seq_len=2).eval()


def clips() -> torch.Tensor:
    return torch.rand(2, 2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


def trained_names(backbone: nn.Module) -> set[str]:
    return {name for name, parameter in backbone.named_parameters() if parameter.requires_grad}


def test_layers_to_train_are_chosen_by_place_or_kind():
    everything = trained_names(transformer())
    for which, expected in {
        "all": everything,
        "none": set(),
        "norm": {name for name in everything if "norm" in name},
        "last:2": {name for name in everything if name.startswith(("net.blocks.4.", "net.blocks.5.", "net.norm."))},
        "last:6": {name for name in everything if name.startswith(("net.blocks.", "net.norm."))},
    }.items():
        backbone = transformer()
        train_layers(backbone, which)
        assert trained_names(backbone) == expected, which
    assert 0 < len({name for name in everything if "norm" in name}) < len(everything)


@pytest.mark.parametrize(
    ("name", "kind", "number"), [("resnet18", "BasicBlock", 8), ("mobilenet_v2", "InvertedResidual", 17)]
)
def test_convolutional_networks_have_blocks_too(name, kind, number):
    with torch.device("meta"):
        backbone = build_backbone(name, seq_len=2)
    blocks = main_blocks(backbone)
    assert (type(blocks[0]).__name__, len(blocks)) == (kind, number)
    train_layers(backbone, "last:1")
    last = {id(parameter) for parameter in blocks[-1].parameters()}
    assert last <= {id(parameter) for parameter in backbone.parameters() if parameter.requires_grad}
    assert not any(parameter.requires_grad for parameter in blocks[-2].parameters())


@pytest.mark.parametrize(
    ("which", "message"),
    [
        ("last:0", "expected all, none, norm or last:N"),
        ("half", "unknown layers"),
        ("last:7", "has 6 blocks: give last:6 or all"),
    ],
)
def test_a_wrong_choice_says_what_to_do(which, message):
    with pytest.raises(UserError, match=message):
        train_layers(transformer(), which)


def test_low_rank_sums_start_as_nothing_are_trained_alone_and_can_be_merged():
    backbone, plain = transformer(), transformer()
    train_layers(backbone, "none")
    add_lora(backbone, 2, alpha=6)
    with torch.inference_mode():
        assert torch.equal(backbone(clips()), plain(clips()))
    trained = trained_names(backbone)
    assert len(trained) == 2 * len(attention_maps(backbone)) == 2 * 6 * 2
    assert all(name.endswith((".up", ".down")) for name in trained)
    optimiser = torch.optim.SGD([p for p in backbone.parameters() if p.requires_grad], lr=1.0)
    for _ in range(2):
        optimiser.zero_grad()
        (backbone(clips()) * torch.linspace(0, 1, backbone.feature_dim)).sum().backward()
        optimiser.step()
    weight = plain.net.blocks[3].attn.qkv.weight
    parts = backbone.net.blocks[3].attn.qkv.parametrizations.weight
    assert torch.equal(parts.original, weight)
    assert parts[0].up.abs().sum() > 0
    expected = weight + 3.0 * parts[0].up @ parts[0].down
    torch.testing.assert_close(backbone.net.blocks[3].attn.qkv.weight, expected, rtol=1e-4, atol=1e-3)
    with torch.inference_mode():
        before = backbone(clips())
        assert (before - plain(clips())).abs().max() > 1e-3
        merged(backbone)
        torch.testing.assert_close(backbone(clips()), before)
    assert backbone.state_dict().keys() == plain.state_dict().keys()


def test_low_rank_sums_reach_networks_that_read_their_weights_themselves():
    """torchvision's and timm's other transformers too: whoever asks for the weight gets the sum."""
    with torch.device("meta"):
        backbone = build_backbone("timm:vit_small_patch16_dinov3_qkvb", seq_len=1)
        add_lora(backbone, 4)
    assert len(attention_maps(backbone)) == 24
    video = tiny_mvit(seq_len=4)
    add_lora(video, 2)
    generator = torch.Generator().manual_seed(0)
    untouched = copy.deepcopy(video)
    with torch.inference_mode():
        for name, parameter in video.named_parameters():
            if name.endswith(".up"):
                parameter.normal_(generator=generator)
        frames = torch.rand(1, 4, 3, 32, 32, generator=generator)
        assert (video(frames) - untouched(frames)).abs().max() > 1e-3


def test_lora_needs_attention_and_a_rank():
    with torch.device("meta"):
        with pytest.raises(UserError, match="this backbone has none"):
            add_lora(build_backbone("resnet18", seq_len=2), 8)
        with pytest.raises(UserError, match="expected a rank of 1 or more"):
            add_lora(build_backbone("timm:test_vit", seq_len=2), 0)


@pytest.mark.parametrize(
    ("flags", "trained"),
    [
        ([], {"backbone", "head"}),
        (["--train_layers", "none"], {"head"}),
        (["--train_layers", "norm"], {"norm", "head"}),
        (["--lora", "2"], {"low rank", "head"}),
        (["--lora", "2", "--train_layers", "norm"], {"norm", "low rank", "head"}),
    ],
)
def test_flags_choose_what_is_trained_under_a_head(flags: list[str], trained: set[str]) -> None:
    network = "--backbone timm:vit_tiny_patch16_224 --no_pretrained --img_size 32 --seq_len 2"
    argv = ["-c", "unused", "--method", "pal", *network.split()]
    with torch.device("meta"):
        head = build_head(build_parser(METHODS).parse_args([*argv, *flags]))
    norms = {id(p) for module in head.backbone.modules() if isinstance(module, NORMS) for p in module.parameters()}
    found = set()
    for name, parameter in head.named_parameters():
        if parameter.requires_grad:
            kind = "norm" if id(parameter) in norms else "low rank" if "parametrizations" in name else "backbone"
            found.add(kind if name.startswith("backbone.") else "head")
    assert found - ({"norm"} if not flags else set()) == trained
