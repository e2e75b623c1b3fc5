"""Video transformers in Hugging Face folders as backbones, against transformers' own networks."""

import json

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from backbones import build_backbone
from backbones.huggingface import interpolated
from backbones.optional import imported
from clips.transforms import IMAGENET_MEAN, IMAGENET_STD
from utils import UserError

pytest.importorskip("transformers", reason="needs pip install -r requirements-foundation.txt")
transformers = imported("transformers", "these tests")
transformers.logging.disable_progress_bar()

FRAMES, SIZE, PATCH, WIDTH = 4, 32, 16, 32
COMMON = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
IMAGES = {"image_size": SIZE, "num_frames": FRAMES}


def video_mae(**options) -> nn.Module:
    config = transformers.VideoMAEConfig(**COMMON, **IMAGES, patch_size=PATCH, **options)
    kind = "VideoMAEForVideoClassification" if config.use_mean_pooling else "VideoMAEModel"
    return shaken(getattr(transformers, kind)(config))


def vjepa2() -> nn.Module:
    layers = {name: value for name, value in COMMON.items() if name != "intermediate_size"}
    predictor = {"pred_hidden_size": 32, "pred_num_hidden_layers": 1, "pred_num_attention_heads": 2}
    config = transformers.VJEPA2Config(**layers, **predictor, mlp_ratio=2.0, crop_size=SIZE, frames_per_clip=FRAMES)
    return shaken(transformers.VJEPA2Model(config))


def timesformer(**options) -> nn.Module:
    config = transformers.TimesformerConfig(**COMMON, **IMAGES, patch_size=PATCH, **options)
    return shaken(transformers.TimesformerModel(config))


def vivit() -> nn.Module:
    config = transformers.VivitConfig(**COMMON, **IMAGES, tubelet_size=[2, PATCH, PATCH])
    return shaken(transformers.VivitModel(config))


def x_clip() -> nn.Module:
    mit = {"mit_hidden_size": 32, "mit_intermediate_size": 64, "mit_num_hidden_layers": 1, "mit_num_attention_heads": 2}
    vision = {**COMMON, **IMAGES, **mit, "patch_size": PATCH}
    text = {**COMMON, "vocab_size": 50, "max_position_embeddings": 8}
    config = transformers.XCLIPConfig(
        text_config=text, vision_config=vision, projection_dim=32, prompt_num_attention_heads=2
    )
    return shaken(transformers.XCLIPModel(config))


NETWORKS = {"videomae": video_mae, "vjepa2": vjepa2, "timesformer": timesformer, "vivit": vivit, "xclip": x_clip}


def shaken(net: nn.Module) -> nn.Module:
    """With every weight away from zeros and ones, which would hide what is left out or swapped."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return net.eval()


def clips(frames: int = FRAMES, size: int = SIZE) -> torch.Tensor:
    return torch.rand(2, frames, 3, size, size, generator=torch.Generator().manual_seed(1)) * 4 - 2


def built(folder, frames: int = FRAMES, **options):
    torch.manual_seed(0)
    return build_backbone(f"hf:{folder}", seq_len=frames, pretrained=options.pop("pretrained", True), **options).eval()


def assert_same(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert expected.std() > 0.01
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module", params=NETWORKS)
def family(request, tmp_path_factory):
    """A network of every family and the folder that it was saved in."""
    net, folder = NETWORKS[request.param](), tmp_path_factory.mktemp(request.param)
    net.save_pretrained(folder)
    return request.param, net, folder


def reference(kind: str, net: nn.Module, video: torch.Tensor) -> torch.Tensor:
    """Steps (N, S, D) out of transformers' own forward pass."""
    if kind == "xclip":
        frames = rearrange(video, "n t c h w -> (n t) c h w")
        return rearrange(net.vision_model(pixel_values=frames).pooler_output, "(n t) d -> n t d", n=len(video))
    if kind == "videomae":
        tokens = net.videomae(video).last_hidden_state
        return net.fc_norm(rearrange(tokens, "n (s p) d -> n s p d", p=4).mean(2))
    if kind == "vjepa2":
        return rearrange(net(video, skip_predictor=True).last_hidden_state, "n (s p) d -> n s p d", p=4).mean(2)
    tokens = net(pixel_values=video).last_hidden_state[:, 1:]
    pattern = "n (p s) d -> n s p d" if kind == "timesformer" else "n (s p) d -> n s p d"
    return rearrange(tokens, pattern, p=4).mean(2)


def test_features_are_those_that_transformers_computes(family):
    kind, net, folder = family
    backbone = built(folder)
    with torch.inference_mode():
        found = backbone(clips())
        assert_same(found, reference(kind, net, clips()))
        maps = (built(folder, pool="mean") if kind == "xclip" else backbone).feature_maps(clips())
    steps = FRAMES if kind in ("timesformer", "xclip") else FRAMES // 2
    assert found.shape == (2, steps, backbone.feature_dim) == (2, backbone.num_steps(FRAMES), WIDTH)
    assert maps.shape == (2, WIDTH, steps, 2, 2)
    if kind not in ("xclip", "videomae"):  # whose features are not the mean of the maps, but a norm of it or a token
        torch.testing.assert_close(rearrange(maps.mean((3, 4)), "n d s -> n s d"), found)


def test_other_frames_and_sizes_are_taken_and_the_clip_decides(family):
    """A clip of the trained form gives the same whatever came before it, and nothing is left behind in the network."""
    kind, net, folder = family
    backbone = built(folder)
    with torch.inference_mode():
        before = backbone(clips())
        larger, longer = backbone(clips(size=64)), backbone(clips(frames=8))
        assert torch.equal(backbone(clips()), before)
        maps = (built(folder, pool="mean") if kind == "xclip" else backbone).feature_maps(clips(size=64))
    assert maps.shape[3:] == (4, 4)
    assert larger.shape == before.shape
    assert longer.shape == (2, backbone.num_steps(8), WIDTH)
    assert longer.std() > 0.01


def test_v_jepa_2_rotates_by_places_in_the_clip_that_it_gets(tmp_path):
    """Its weights know no size: at another one features are those of a network that was configured for that."""
    net = vjepa2()
    net.save_pretrained(tmp_path)
    larger = transformers.VJEPA2Model(type(net.config)(**{**net.config.to_dict(), "crop_size": 64}))
    larger.load_state_dict(net.state_dict())
    with torch.inference_mode():
        tokens = larger.eval()(clips(size=64), skip_predictor=True).last_hidden_state
        assert_same(built(tmp_path)(clips(size=64)), rearrange(tokens, "n (s p) d -> n s p d", p=16).mean(2))


def test_every_parameter_gets_a_gradient_also_where_activations_are_computed_again(family):
    _, _, folder = family
    gradients = []
    for recompute in (False, True):
        backbone = built(folder)
        backbone.set_passes(recompute=recompute)
        weights = torch.rand(backbone.feature_dim, generator=torch.Generator().manual_seed(2))
        (backbone(clips()) * weights).sum().backward()
        assert [name for name, p in backbone.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []
        gradients.append(torch.cat([p.grad.flatten() for p in backbone.parameters()]))
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


def test_a_clip_sees_no_other_clip_and_weights_are_needed_once(family, tmp_path):
    """A checkpoint of this library is loaded by names of ours, beside a folder that holds the configuration alone."""
    _, _, folder = family
    backbone = built(folder)
    with torch.inference_mode():
        both = backbone(clips())
        torch.testing.assert_close(backbone(clips()[1:]), both[1:], rtol=1e-4, atol=1e-5)
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    state = {f"backbone.{name}": tensor for name, tensor in backbone.state_dict().items()}
    torch.save({"model": state}, tmp_path / "trained.pt")
    other = built(tmp_path, pretrained=str(tmp_path / "trained.pt"))
    with torch.inference_mode():
        assert torch.equal(other(clips()), both)
    with pytest.raises(UserError, match="no weights in"):
        built(tmp_path)


def test_the_mean_over_steps_is_x_clips_embedding_of_a_video(tmp_path):
    net = x_clip()
    net.save_pretrained(tmp_path)
    with torch.inference_mode():
        expected = net.get_video_features(clips()).pooler_output
        assert_same(built(tmp_path, pool="proj")(clips()).mean(1), expected)


@pytest.mark.parametrize("attention", ["space_only", "joint_space_time"])
def test_timesformers_other_forms_of_attention(attention, tmp_path):
    net = timesformer(attention_type=attention)
    net.save_pretrained(tmp_path)
    with torch.inference_mode():
        tokens = net(pixel_values=clips()).last_hidden_state
        if attention == "space_only":
            expected = rearrange(tokens[:, 1:], "(n t) p d -> n t p d", n=2).mean(2)
        else:
            expected = rearrange(tokens[:, 1:], "n (p t) d -> n t p d", p=4).mean(2)
        assert_same(built(tmp_path)(clips()), expected)


def test_the_class_token_is_one_step(tmp_path):
    net = timesformer()
    net.save_pretrained(tmp_path)
    backbone = built(tmp_path, pool="cls")
    with torch.inference_mode():
        assert_same(backbone(clips()), net(pixel_values=clips()).last_hidden_state[:, :1])
    assert backbone.num_steps(FRAMES) == 1
    with pytest.raises(UserError, match="needs --backbone_options pool=mean"):
        backbone(clips(), maps=True)


# ---------------------------------------------------------------------------------------------------------------------
# VideoMAE, v1 and v2


def authors_names(net: nn.Module, prefix: str) -> dict:
    """transformers' VideoMAE as its authors name it."""
    named = {}
    for name, tensor in net.state_dict().items():
        name = name.replace("videomae.", "").replace("encoder.layer.", "blocks.").replace("layernorm_before", "norm1")
        name = name.replace("layernorm_after", "norm2").replace("attention.output.dense", "attn.proj")
        name = name.replace("intermediate.dense", "mlp.fc1").replace("output.dense", "mlp.fc2")
        name = name.replace("embeddings.patch_embeddings.projection", "patch_embed.proj").replace("layernorm.", "norm.")
        name = name.replace("attention.attention.query.bias", "attn.q_bias")
        name = name.replace("attention.attention.value.bias", "attn.v_bias")
        named[f"{prefix}{name}"] = tensor
    for name in [name for name in named if name.endswith("query.weight")]:
        parts = [named.pop(name.replace("query", part)) for part in ("query", "key", "value")]
        named[name.replace("attention.attention.query.", "attn.qkv.")] = torch.cat(parts)
    return named


@pytest.mark.parametrize(("fine_tuned", "prefix"), [(True, ""), (False, "encoder."), (False, "")])
def test_the_files_of_videomaes_authors(fine_tuned, prefix, tmp_path):
    net = video_mae(use_mean_pooling=fine_tuned)
    (tmp_path / "config.json").write_text(json.dumps(net.config.to_dict() | {"architectures": [type(net).__name__]}))
    torch.save({"module": authors_names(net, prefix)}, tmp_path / "vit_b_k710.pth")
    found = built(tmp_path, pretrained=str(tmp_path / "vit_b_k710.pth"))
    expected = reference("videomae", net, clips()) if fine_tuned else net(clips()).last_hidden_state
    with torch.inference_mode():
        assert_same(
            found(clips()), expected if fine_tuned else rearrange(expected, "n (s p) d -> n s p d", p=4).mean(2)
        )


def test_the_folders_of_videomae_v2_whose_code_is_not_run(tmp_path):
    net = video_mae(layer_norm_eps=1e-6)
    model = {
        "img_size": SIZE, "patch_size": PATCH, "embed_dim": WIDTH, "depth": 2, "num_heads": 2, "mlp_ratio": 2,
        "num_frames": FRAMES, "tubelet_size": 2, "layer_norm_eps": 1e-6, "use_mean_pooling": True,
    }  # fmt: skip
    config = {"model_type": "VideoMAEv2_Base", "auto_map": {"AutoModel": "modeling.Model"}, "model_config": model}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "modeling.py").write_text("raise SystemExit('this code was run')")
    torch.save(authors_names(net, "model."), tmp_path / "pytorch_model.bin")
    with torch.inference_mode():
        assert_same(built(tmp_path)(clips()), reference("videomae", net, clips()))


# ---------------------------------------------------------------------------------------------------------------------
# Positions, pixels


def test_positions_are_interpolated_over_space_and_then_over_time():
    positions = torch.randn(1, 3 * 2 * 2, 5, generator=torch.Generator().manual_seed(0))
    assert interpolated(positions, (3, 2, 2), (3, 2, 2)) is positions
    found = rearrange(interpolated(positions, (3, 2, 2), (6, 4, 4)), "1 (s h w) d -> s d h w", s=6, h=4)
    space = F.interpolate(
        rearrange(positions, "1 (s h w) d -> s d h w", s=3, h=2), size=(4, 4), mode="bicubic", antialias=True
    )
    for step in range(6):
        at = min(max((step + 0.5) / 2 - 0.5, 0), 2)  # the middle of this step, in steps of the trained grid
        low, share = int(at), at - int(at)
        expected = space[low] * (1 - share) + space[min(low + 1, 2)] * share
        torch.testing.assert_close(found[step], expected)


@pytest.mark.parametrize(
    ("kind", "processor", "mean", "std", "value_range"),
    [
        ("videomae", None, IMAGENET_MEAN, IMAGENET_STD, 1.0),
        ("timesformer", None, (0.45, 0.45, 0.45), (0.225, 0.225, 0.225), 1.0),
        (
            "timesformer",
            {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]},
            (0.1, 0.2, 0.3),
            (0.4, 0.5, 0.6),
            1.0,
        ),
        ("vjepa2", {"do_normalize": False, "resample": 3}, (0, 0, 0), (1, 1, 1), 1.0),
        ("vjepa2", {"do_rescale": False, "do_normalize": False}, (0, 0, 0), (1, 1, 1), 255.0),
    ],
)
def test_pixels_are_what_the_folder_says(kind, processor, mean, std, value_range, tmp_path):
    NETWORKS[kind]().config.save_pretrained(tmp_path)
    if processor:
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    spec = built(tmp_path, pretrained=False).input_spec
    assert (spec.mean, spec.std, spec.value_range) == (mean, std, pytest.approx(value_range))
    assert (spec.size, spec.frames) == (SIZE, FRAMES)
    assert spec.interpolation == ("bicubic" if processor and processor.get("resample") == 3 else "bilinear")


@pytest.mark.parametrize("with_file", [True, False])
def test_vivits_pixels_are_scaled_to_minus_one_and_one_before_its_mean(with_file, tmp_path):
    NETWORKS["vivit"]().config.save_pretrained(tmp_path)
    if with_file:
        content = {"rescale_factor": 1 / 127.5, "offset": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(content))
    frames = torch.randint(256, (4, 3, 2, 2), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    expected = ((frames.float() / 127.5 - 1) - 0.5) / 0.5
    torch.testing.assert_close(built(tmp_path, pretrained=False).input_spec.normalise(frames), expected)


# ---------------------------------------------------------------------------------------------------------------------
# What users ask for wrongly


def test_a_wrong_request_says_what_to_do(tmp_path):
    video_mae().save_pretrained(tmp_path)
    with pytest.raises(UserError, match="takes frames by 2, found 3: give a --seq_len of a multiple of 2"):
        built(tmp_path, 3)
    with pytest.raises(UserError, match="unknown pool of videomae 'cls'"):
        built(tmp_path, pool="cls")
    with pytest.raises(UserError, match="multiples of its patches of 16 pixels, found 40x40: give --img_size 32"):
        built(tmp_path)(clips(size=40))
    torch.save({"other.weight": torch.ones(2)}, tmp_path.parent / "other.pt")
    with pytest.raises(UserError, match="put it into that folder as model.safetensors"):
        built(tmp_path, pretrained=str(tmp_path.parent / "other.pt"))
    (tmp_path / "model.safetensors").write_bytes(b"\0" * 100)
    with pytest.raises(UserError, match="model.safetensors is truncated or no safetensors file"):
        built(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(UserError, match="unknown model_type in .*config.json 'bert': expected one of"):
        built(tmp_path)
    with pytest.raises(UserError, match=r"expected --backbone hf:FOLDER"):
        built(tmp_path / "none")
