"""Class names as features, against open_clip's and transformers' own text towers; display names; zero-shot scores."""

import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from backbones.optional import imported
from backbones.text import (
    ClassText,
    TextTower,
    display_names,
    normal,
    read_text_features,
    spoken,
    text_tower,
    zero_shot_logits,
)
from utils import UserError

pytest.importorskip("open_clip", reason="needs pip install -r requirements-foundation.txt")
open_clip = imported("open_clip", "these tests")

CLASSES = ["climb_stairs", "PlayingGuitar", "Pouring something into something"]
NAMES = ["climb stairs", "playing guitar", "Pouring something into something"]
SPLITS = Path(__file__).parent.parent / "splits"


def clip(*, quick_gelu: bool, heads: int = 1) -> nn.Module:
    """A small network in OpenAI's form, every weight away from zeros and ones."""
    vision = {"layers": 1, "width": 64, "patch_size": 16, "image_size": 32}
    text = {"context_length": 77, "vocab_size": 49408, "width": 64 * heads, "heads": heads, "layers": 2}
    net = open_clip.CLIP(24, vision, text, quick_gelu=quick_gelu).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return net


@pytest.fixture(scope="module")
def openai() -> nn.Module:
    return clip(quick_gelu=True)


@pytest.fixture
def weights(openai, tmp_path) -> Path:
    torch.save(openai.state_dict(), tmp_path / "ViT-B-16.pt")
    return tmp_path / "ViT-B-16.pt"


def encoded(net: nn.Module, sentences: list[str]) -> torch.Tensor:
    with torch.inference_mode():
        return net.encode_text(open_clip.get_tokenizer("ViT-B-16")(sentences))


def test_features_of_class_names_are_those_that_open_clip_computes(openai, weights, tmp_path):
    found = ClassText(weights, prompts=["a video of {}."], activation="quick_gelu").of(CLASSES)
    expected = encoded(openai, [f"a video of {name}." for name in NAMES])
    assert expected.std(0).min() > 0.01
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert text_tower(weights, "quick_gelu").scale == pytest.approx(openai.logit_scale.exp().item())
    other = ClassText(weights, prompts=["a video of {}."], activation="gelu").of(CLASSES)
    assert (other - expected).abs().max() > 1e-4


def test_features_of_transformers_files_are_those_that_transformers_computes(tmp_path):
    transformers = imported("transformers", "this test")
    text = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 1,
        "hidden_act": "gelu",
    }
    vision = {
        "hidden_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "image_size": 32,
        "hidden_act": "gelu",
    }
    config = transformers.CLIPConfig(
        text_config={**text, "projection_dim": 24}, vision_config=vision, projection_dim=24
    )
    net = transformers.CLIPModel(config).eval()
    net.save_pretrained(tmp_path)
    tokens = open_clip.get_tokenizer("ViT-B-16")(["a photo of climb stairs."])
    with torch.inference_mode():
        hidden = net.text_model(input_ids=tokens).last_hidden_state[0, tokens[0].argmax()]
        expected = net.text_projection(hidden)
    found = ClassText(tmp_path).of(["climb_stairs"])
    torch.testing.assert_close(found[0], expected, rtol=1e-5, atol=1e-5)


def test_features_are_made_once_for_the_same_name_prompts_and_weights(openai, weights, tmp_path, monkeypatch):
    cache = tmp_path / "cache"

    def opened(**options) -> ClassText:
        return ClassText(weights, folder=cache, activation="quick_gelu", **options)

    def made_anew(text: ClassText, classes: list[str]) -> torch.Tensor:
        found = text.of(classes)
        text.keep()
        return found

    first = made_anew(opened(), CLASSES[:2])
    said = []
    encode = TextTower.encode
    monkeypatch.setattr(TextTower, "encode", lambda self, names: said.append(names) or encode(self, names))
    assert torch.equal(made_anew(opened(), CLASSES[1::-1]), first.flip(0)), "in another order"
    assert said == []
    more = made_anew(opened(), CLASSES[::-1])
    assert said == [["a photo of Pouring something into something."]]
    assert torch.equal(more[1:], first.flip(0))
    together = ClassText(weights, activation="quick_gelu").of(CLASSES)
    assert torch.equal(together, more.flip(0)), "whatever they are made with"
    assert len(list(cache.iterdir())) == 1

    two = made_anew(opened(prompts=["a photo of {}.", "{}"]), CLASSES)
    torch.testing.assert_close(two, (together + encoded(openai, NAMES)) / 2, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        changed = {
            name: tensor + 0.1 if name == "ln_final.bias" else tensor for name, tensor in openai.state_dict().items()
        }
    torch.save(changed, weights)
    assert not torch.equal(made_anew(opened(), CLASSES), together)
    assert len(list(cache.iterdir())) == 3
    for file in cache.iterdir():
        file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(UserError, match="is damaged: remove it"):
        opened()


def test_ready_made_features_are_found_by_either_name(tmp_path):
    vectors = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    names = ["Climb Stairs", "playing guitar", "Pouring [something] into [something]", "another"]
    torch.save(dict(zip(names, vectors, strict=True)), tmp_path / "by_name.pt")
    torch.save({"names": names, "features": vectors}, tmp_path / "table.pt")
    from safetensors.torch import save_file

    save_file(dict(zip(names, vectors, strict=True)), tmp_path / "by_name.safetensors")
    for file in ("by_name.pt", "table.pt", "by_name.safetensors"):
        assert torch.equal(read_text_features(tmp_path / file, CLASSES[::-1]), vectors[:3].flip(0))
    with pytest.raises(UserError, match=r"has no features of class 'brush_hair'"):
        read_text_features(tmp_path / "table.pt", ["brush_hair"])
    torch.save({"a": torch.ones(2, 3)}, tmp_path / "wrong.pt")
    with pytest.raises(UserError, match=r"holds no text features: expected a dict of class names and vectors"):
        read_text_features(tmp_path / "wrong.pt", CLASSES)


def test_a_wrong_request_says_what_to_do(weights, tmp_path):
    with pytest.raises(UserError, match=r"does not say which activation it has.*activation=quick_gelu"):
        ClassText(weights).of(CLASSES)
    with pytest.raises(UserError, match=r"--prompt 'a photo': expected one \{\}"):
        ClassText(weights, prompts=["a photo"])
    with pytest.raises(UserError, match="no file"):
        ClassText(tmp_path / "none.pt")
    torch.save({"visual.proj": torch.ones(2, 2)}, tmp_path / "image_only.pt")
    with pytest.raises(UserError, match="holds no text tower of CLIP"):
        text_tower(tmp_path / "image_only.pt", "gelu")
    torch.save({"text.text_projection.weight": torch.ones(2, 2)}, tmp_path / "siglip.pt")
    with pytest.raises(
        UserError, match=r"is of SigLIP, whose tokeniser is in none of the packages.*--text_features FILE"
    ):
        text_tower(tmp_path / "siglip.pt", "gelu")


# ---------------------------------------------------------------------------------------------------------------------
# Zero-shot scores, names


def test_zero_shot_scores_are_scaled_cosines_of_the_mean_direction():
    generator = torch.Generator().manual_seed(0)
    videos, text = (
        torch.randn(2, 3, 4, 5, generator=generator).double(),
        torch.randn(2, 6, 5, generator=generator).double(),
    )
    found = zero_shot_logits(videos, text, scale=10.0)
    for episode in range(2):
        for query in range(3):
            frames = [frame / math.sqrt(float(frame @ frame)) for frame in videos[episode, query]]
            mean = sum(frames) / 4
            for label in range(6):
                words = text[episode, label]
                cosine = float(mean @ words) / math.sqrt(float(mean @ mean) * float(words @ words))
                assert float(found[episode, query, label]) == pytest.approx(10 * cosine)


def test_every_class_of_the_published_splits_has_a_readable_name():
    for folder in sorted(SPLITS.iterdir()):
        classes = json.loads((folder / "classes.json").read_text())
        names = json.loads((folder / "class_names.json").read_text())
        assert sorted(names) == sorted(name for split in classes.values() for name in split)
        assert len(set(names.values())) == len(names)
        for name, text in names.items():
            assert normal(name) == normal(text)  # the same words, put apart
            assert not set("_") & set(text)
            assert text.count("[") == text.count("]")
        if folder.name.startswith("ssv2"):
            assert all(name == spoken(text) for name, text in names.items())
            assert all("[" in text for text in names.values())


def test_names_that_no_split_knows_are_taken_apart():
    assert display_names(["MyOwnAction", "wave_hand", "already readable", "Do-si-do"]) == [
        "my own action", "wave hand", "already readable", "Do-si-do",
    ]  # fmt: skip
    assert display_names(["x1"], {"x1": "jump over a fence"}) == ["jump over a fence"]
