"""Networks of timm as backbones: their features against those of the packages that the files come from."""

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from einops import rearrange
from torch import nn

from backbones import BACKBONES, build_backbone
from backbones.backbone import Backbone
from backbones.figures import figures, print_backbones
from backbones.optional import imported
from backbones.weight_files import read_weights
from clips.transforms import IMAGENET_MEAN
from utils import UserError

timm = pytest.importorskip("timm", reason="needs pip install -r requirements-foundation.txt")
open_clip = imported("open_clip", "these tests")
transformers = imported("transformers", "these tests")

WIDTH, DEPTH, SIZE, PATCH = 64, 2, 32, 16

# What is smaller than in the published networks, which are built by their real names.
TRANSFORMER = {"embed_dim": WIDTH, "depth": DEPTH, "num_heads": 2, "img_size": SIZE}
SMALLER = {
    "vit_base_patch16_clip_quickgelu_224.openai": TRANSFORMER,
    "vit_base_patch16_clip_224": TRANSFORMER,
    "vit_small_patch14_dinov2.lvd142m": {**TRANSFORMER, "patch_size": PATCH},
    "vit_small_patch14_reg4_dinov2": {**TRANSFORMER, "patch_size": PATCH},
    "vit_small_patch16_dinov3.lvd1689m": TRANSFORMER,
    "vit_base_patch16_siglip_224.webli": TRANSFORMER,
    "vit_base_patch16_224": TRANSFORMER,
    "resnet50_clip.openai": {"img_size": 64},
}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, **kw: create(name, **{**kw, **SMALLER.get(name, {})}))
    byobnet = timm.models.byobnet
    blocks = tuple(byobnet.ByoBlockCfg(type="bottle", d=1, c=32 << i, s=min(2, i + 1), br=0.25) for i in range(4))
    narrow = byobnet.model_cfgs["resnet50_clip"]
    monkeypatch.setitem(
        byobnet.model_cfgs, "resnet50_clip", type(narrow)(**{**vars(narrow), "blocks": blocks, "stem_chs": (4, 4, 8)})
    )


def built(name: str, path: Path | str | bool = False, **options) -> Backbone:
    torch.manual_seed(0)
    return build_backbone(name, seq_len=2, pretrained=path and str(path), **options).eval()


def clips(size: int = SIZE) -> torch.Tensor:
    return torch.rand(2, 2, 3, size, size, generator=torch.Generator().manual_seed(1)) * 4 - 2


def shaken(net: nn.Module, seed: int = 3) -> nn.Module:
    """With every tensor away from zeros and ones, which would hide what is left out or swapped."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in net.state_dict().items():
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 1.5, generator=generator)
            elif tensor.is_floating_point() and tensor.ndim:
                tensor.normal_(0, 0.2 if tensor.ndim < 2 else tensor[0].numel() ** -0.5, generator=generator)
                if name.endswith("weight") and tensor.ndim == 1:
                    tensor.add_(1)
    return net.eval()


def of_frames(function, size: int = SIZE) -> torch.Tensor:
    """What a reference gives for every frame of `clips`: (N, T, D)."""
    with torch.inference_mode():
        return rearrange(function(rearrange(clips(size), "n t c h w -> (n t) c h w")), "(n t) d -> n t d", n=2)


def features(backbone: Backbone, size: int = SIZE) -> torch.Tensor:
    with torch.inference_mode():
        return backbone(clips(size))


def assert_same(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert expected.std() > 0.01  # a network that gives the same whatever it sees would pass anything
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


# ---------------------------------------------------------------------------------------------------------------------
# CLIP


def clip(layers, *, quick_gelu: bool = True, size: int = SIZE, projection: int = 512) -> nn.Module:
    """open_clip's network in OpenAI's form: a transformer of so many layers, or a ResNet with a list of them."""
    vision = {"layers": layers, "width": WIDTH, "head_width": WIDTH // 2, "patch_size": PATCH, "image_size": size}
    if isinstance(layers, list):
        vision = {"layers": layers, "width": 8, "head_width": 64, "image_size": size}
    text = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1}
    return shaken(open_clip.CLIP(projection, vision, text, quick_gelu=quick_gelu))


@pytest.fixture(scope="module")
def openai() -> nn.Module:
    return clip(DEPTH)


@pytest.fixture(scope="module")
def archive(openai, tmp_path_factory) -> Path:
    """The network as OpenAI hands its own out: in half precision, as a TorchScript archive."""
    path = tmp_path_factory.mktemp("archive") / "ViT-B-16.pt"
    image, tokens = torch.rand(1, 3, SIZE, SIZE), torch.ones(1, 77, dtype=torch.long)
    half = clip(DEPTH)
    for tensor in half.state_dict().values():
        tensor.copy_(tensor.half())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing tells what it takes as constant, and that its days are numbered
        traced = torch.jit.trace_module(half, {"encode_image": image, "encode_text": tokens}, check_trace=False)
    traced.half().save(path)
    return path


@pytest.mark.filterwarnings("ignore:.*torch.jit.load.*")
def test_an_archive_holds_the_tensors_that_torch_finds_in_it(archive):
    expected = torch.jit.load(archive).state_dict()
    found = read_weights(archive)
    assert found.activation == "quick_gelu"
    assert found.state.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found.state[name].dtype == tensor.dtype
        assert torch.equal(found.state[name], tensor)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*")
def test_tensors_in_an_archive_may_be_views_of_others(tmp_path):
    module, whole = nn.Module(), torch.arange(12.0)
    module.register_buffer("tail", whole[5:])
    module.register_buffer("columns", whole.reshape(3, 4).T)
    torch.jit.script(module).save(tmp_path / "views.pt")
    state = read_weights(tmp_path / "views.pt").state
    assert torch.equal(state["tail"], whole[5:])
    assert torch.equal(state["columns"], whole.reshape(3, 4).T)


def test_features_of_openais_archive_are_those_that_open_clip_computes(archive):
    reference = clip(DEPTH)
    for tensor in reference.state_dict().values():
        tensor.copy_(tensor.half())
    projected = built("clip_vit_b16", archive, pool="proj")
    assert_same(features(projected), of_frames(reference.encode_image))
    assert projected.feature_dim == 512
    reference.visual.proj = None
    assert_same(features(built("clip_vit_b16", archive)), of_frames(reference.encode_image))


def test_features_of_clips_resnet_are_those_that_open_clip_computes(tmp_path):
    reference = clip([1, 1, 1, 1], size=64, projection=1024)
    torch.save(reference.state_dict(), tmp_path / "RN50.pt")
    projected = built("clip_rn50", tmp_path / "RN50.pt", pool="proj")
    assert_same(features(projected, 64), of_frames(reference.encode_image, 64))
    reference.visual.attnpool = nn.AdaptiveAvgPool2d(1)
    averaged = built("clip_rn50", tmp_path / "RN50.pt", pool="mean")
    assert_same(features(averaged, 64), of_frames(lambda frames: reference.visual(frames).flatten(1), 64))
    with pytest.raises(UserError, match="maps 256: a method that reads maps needs --backbone_options pool=mean"):
        projected(clips(64), maps=True)


def test_patch_tokens_become_maps(archive):
    backbone = built("clip_vit_b16", archive)
    seen = []
    backbone.net.norm.register_forward_hook(lambda module, inputs, output: seen.append(output))
    with torch.inference_mode():
        maps = backbone.feature_maps(clips(48))
    assert maps.shape == (2, WIDTH, 2, 3, 3)
    torch.testing.assert_close(rearrange(maps, "n d t h w -> (n t) (h w) d"), seen[0][:, 1:])
    assert_same(
        features(built("clip_vit_b16", archive, pool="mean"), 48), rearrange(maps.mean((3, 4)), "n d t -> n t d")
    )
    assert_same(features(backbone, 48), rearrange(seen[0][:, 0], "(n t) d -> n t d", n=2))


def test_maps_of_the_projection_are_projected(archive):
    backbone, plain = built("clip_vit_b16", archive, pool="proj"), built("clip_vit_b16", archive)
    with torch.inference_mode():
        maps, before = backbone.feature_maps(clips()), plain.feature_maps(clips())
    assert_same(maps, torch.einsum("ndthw,pd->npthw", before, backbone.net.head.weight))


@pytest.mark.parametrize("quick", [True, False])
@pytest.mark.parametrize("kind", ["open_clip", "transformers"])
def test_the_activation_is_read_beside_the_file(kind, quick, tmp_path):
    """open_clip's and transformers' folders say it; features are those of the network that was saved."""
    activation, name = ("quick_gelu", "clip_vit_b16") if quick else ("gelu", "timm:vit_base_patch16_clip_224")
    if kind == "open_clip":
        net = clip(DEPTH, quick_gelu=quick)
        save_safetensors(net.state_dict(), tmp_path / "open_clip_model.safetensors")
        config = {"model_cfg": {"embed_dim": 512, "vision_cfg": {}, **({"quick_gelu": True} if quick else {})}}
        (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
        expected = of_frames(net.encode_image)
    else:
        net = transformers_clip(activation)
        net.save_pretrained(tmp_path)
        expected = of_frames(lambda frames: net(pixel_values=frames).image_embeds)
    assert_same(features(built(name, tmp_path, pool="proj")), expected)
    other, wrong = ("timm:vit_base_patch16_clip_224", "quick_gelu") if quick else ("clip_vit_b16", "gelu")
    with pytest.raises(
        UserError, match=f"network with {wrong}, expected .*: add --backbone_options activation={wrong}"
    ):
        built(other, tmp_path)
    assert_same(features(built(other, tmp_path, pool="proj", activation=activation)), expected)


def save_safetensors(state: dict, path: Path) -> None:
    from safetensors.torch import save_file

    save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)


def transformers_clip(activation: str) -> nn.Module:
    config = transformers.CLIPVisionConfig(
        hidden_size=WIDTH, intermediate_size=4 * WIDTH, num_hidden_layers=DEPTH, num_attention_heads=2, image_size=SIZE,
        patch_size=PATCH, projection_dim=512, hidden_act=activation,
    )  # fmt: skip
    return shaken(transformers.CLIPVisionModelWithProjection(config))


def test_a_file_that_does_not_say_its_activation_is_refused_until_the_user_does(openai, tmp_path):
    path = tmp_path / "clip.pt"
    torch.save(openai.state_dict(), path)
    with pytest.raises(UserError, match=r"does not say whether its network has QuickGELU .* activation=quick_gelu or"):
        built("clip_vit_b16", path)
    loaded = built("clip_vit_b16", path, activation="quick_gelu", pool="proj")
    assert_same(features(loaded), of_frames(openai.encode_image))


def test_a_checkpoint_of_this_library_is_taken_by_the_same_backbone(archive, tmp_path):
    trained = built("clip_vit_b16", archive)
    state = {f"backbone.{name}": tensor for name, tensor in trained.state_dict().items()}
    args = {"backbone": "clip_vit_b16", "backbone_options": {}}
    torch.save({"format": "few-shot-action-recognition/1", "args": args, "model": state}, tmp_path / "trained.pt")
    assert_same(features(built("clip_vit_b16", tmp_path / "trained.pt")), features(trained))
    with pytest.raises(UserError, match="is of a network with quick_gelu, expected gelu"):
        built("timm:vit_base_patch16_clip_224", tmp_path / "trained.pt")


# ---------------------------------------------------------------------------------------------------------------------
# DINO and SigLIP


def dinov2(registers: int) -> nn.Module:
    kind = ("Dinov2WithRegisters", {"num_register_tokens": registers}) if registers else ("Dinov2", {})
    config = getattr(transformers, f"{kind[0]}Config")(
        hidden_size=WIDTH, num_hidden_layers=DEPTH, num_attention_heads=2, image_size=SIZE, patch_size=PATCH, **kind[1]
    )
    return shaken(getattr(transformers, f"{kind[0]}Model")(config))


def authors_names(state: dict) -> dict:
    """transformers' DINOv2 as its authors name it."""
    named = {}
    for name, tensor in state.items():
        name = name.replace("embeddings.patch_embeddings.projection.", "patch_embed.proj.").replace(
            "layernorm.", "norm."
        )
        name = name.replace("encoder.layer.", "blocks.").replace("attention.o_proj.", "attn.proj.")
        name = name.replace("embeddings.position_embeddings", "pos_embed").replace("embeddings.", "")
        name = name.replace("layer_scale1.lambda1", "ls1.gamma").replace("layer_scale2.lambda1", "ls2.gamma")
        named[name] = tensor
    for name in [name for name in named if "attention.q_proj." in name]:
        parts = [named.pop(name.replace("q_proj", f"{part}_proj")) for part in "qkv"]
        named[name.replace("attention.q_proj.", "attn.qkv.")] = torch.cat(parts)
    return named


@pytest.mark.parametrize("registers", [0, 4])
@pytest.mark.parametrize("kind", ["authors", "transformers"])
def test_features_of_dinov2_are_those_that_transformers_computes(kind, registers, tmp_path):
    net = dinov2(registers)
    if kind == "authors":
        torch.save(authors_names(net.state_dict()), tmp_path / "dinov2_vits14_pretrain.pth")
    else:
        net.save_pretrained(tmp_path)
    path = tmp_path / "dinov2_vits14_pretrain.pth" if kind == "authors" else tmp_path
    name = "timm:vit_small_patch14_reg4_dinov2" if registers else "dinov2_vit_s14"
    backbone = built(name, path)
    assert_same(features(backbone), of_frames(lambda frames: net(pixel_values=frames).pooler_output))
    with torch.inference_mode():
        maps = backbone.feature_maps(clips())
    tokens = of_frames(lambda frames: net(pixel_values=frames).last_hidden_state[:, 1 + registers :].flatten(1))
    assert_same(rearrange(maps, "n d t h w -> n t (h w d)"), tokens)


def test_features_of_dinov3_are_those_that_transformers_computes(tmp_path):
    config = transformers.DINOv3ViTConfig(
        hidden_size=WIDTH, intermediate_size=4 * WIDTH, num_hidden_layers=DEPTH, num_attention_heads=2, image_size=SIZE,
        patch_size=PATCH, num_register_tokens=4, query_bias=False, value_bias=False,
    )  # fmt: skip
    net = shaken(transformers.DINOv3ViTModel(config))
    net.save_pretrained(tmp_path)
    backbone = built("dinov3_vit_s16", tmp_path, pool="cls")
    assert_same(features(backbone, 64), of_frames(lambda frames: net(pixel_values=frames).pooler_output, 64))


def test_dinov3s_own_file_has_biases_that_are_zero(tmp_path):
    """Its attention has a bias in three parts, of which a mask keeps the middle one at zero; the distilled ones' are zero."""
    backbone = built("dinov3_vit_s16")
    shaken(backbone.net)
    state = dict(backbone.net.state_dict())
    state["storage_tokens"] = state.pop("reg_token")
    for name in [name for name in state if ".gamma_" in name]:
        state[name.replace("gamma_", "ls") + ".gamma"] = state.pop(name)
    state |= {"mask_token": torch.zeros(1, WIDTH), "rope_embed.periods": torch.ones(8)}
    for block in range(DEPTH):
        state[f"blocks.{block}.attn.qkv.bias"] = torch.zeros(3 * WIDTH)
        state[f"blocks.{block}.attn.qkv.bias_mask"] = torch.ones(3 * WIDTH)
    torch.save(state, tmp_path / "dinov3.pth")
    assert_same(features(built("dinov3_vit_s16", tmp_path / "dinov3.pth")), features(backbone))
    state["blocks.1.attn.qkv.bias"] += 0.1
    torch.save(state, tmp_path / "dinov3.pth")
    with pytest.raises(UserError, match=r"have biases in blocks.1.attn.qkv.bias, which this network lacks"):
        built("dinov3_vit_s16", tmp_path / "dinov3.pth")


def test_features_of_siglip_are_those_that_transformers_computes(tmp_path):
    config = transformers.SiglipVisionConfig(
        hidden_size=WIDTH, intermediate_size=4 * WIDTH, num_hidden_layers=DEPTH, num_attention_heads=2, image_size=SIZE,
        patch_size=PATCH,
    )  # fmt: skip
    net = shaken(transformers.SiglipVisionModel(config))
    net.save_pretrained(tmp_path)
    expected = of_frames(lambda frames: net(pixel_values=frames).pooler_output)
    for pool in ("own", "proj"):
        assert_same(features(built("siglip_b16", tmp_path, pool=pool)), expected)
    tokens = of_frames(lambda frames: net(pixel_values=frames).last_hidden_state.mean(1))
    assert_same(features(built("siglip_b16", tmp_path, pool="mean")), tokens)


def test_big_visions_arrays_fill_every_weight(tmp_path):
    reference = built("siglip_b16")
    shaken(reference.net)
    arrays = jax_arrays(dict(reference.net.state_dict()))
    np.savez(tmp_path / "siglip.npz", **arrays)
    assert_same(features(built("siglip_b16", tmp_path / "siglip.npz")), features(reference))
    np.savez(
        tmp_path / "siglip.npz", **{name: array for name, array in arrays.items() if "encoder_norm/scale" not in name}
    )
    with pytest.raises(UserError, match="encoder_norm/scale"):
        built("siglip_b16", tmp_path / "siglip.npz")
    np.savez(tmp_path / "siglip.npz", anything=np.array([{}], dtype=object))
    with pytest.raises(UserError, match="holds more than numbers"):
        built("siglip_b16", tmp_path / "siglip.npz")


def jax_arrays(state: dict) -> dict:
    """timm's SigLIP as big_vision lays it out: maps with their input first, heads on an axis of their own."""
    heads, arrays = 2, {}

    def put(name: str, tensor: torch.Tensor) -> None:
        arrays[f"params/img/{name}"] = tensor.numpy()

    def put_attention(prefix: str, maps: list, biases: list, out: str) -> None:
        for part, weight, bias in zip(("query", "key", "value"), maps, biases, strict=True):
            put(f"{prefix}/{part}/kernel", rearrange(weight, "(heads e) d -> d heads e", heads=heads))
            put(f"{prefix}/{part}/bias", rearrange(bias, "(heads e) -> heads e", heads=heads))
        put(f"{prefix}/out/kernel", rearrange(state[f"{out}.weight"], "d (heads e) -> heads e d", heads=heads))
        put(f"{prefix}/out/bias", state[f"{out}.bias"])

    def put_rest(prefix: str, norms: dict, mlp: str, timms: str) -> None:
        for number, norm in norms.items():
            put(f"{prefix}/{number}/scale", state[f"{timms}.{norm}.weight"])
            put(f"{prefix}/{number}/bias", state[f"{timms}.{norm}.bias"])
        for number in (0, 1):
            put(f"{prefix}/{mlp}/Dense_{number}/kernel", state[f"{timms}.mlp.fc{number + 1}.weight"].T)
            put(f"{prefix}/{mlp}/Dense_{number}/bias", state[f"{timms}.mlp.fc{number + 1}.bias"])

    put("embedding/kernel", rearrange(state["patch_embed.proj.weight"], "o i h w -> h w i o"))
    put("embedding/bias", state["patch_embed.proj.bias"])
    put("pos_embedding", state["pos_embed"])
    put("Transformer/encoder_norm/scale", state["norm.weight"])
    put("Transformer/encoder_norm/bias", state["norm.bias"])
    for block in range(DEPTH):
        prefix, timms = f"Transformer/encoderblock_{block}", f"blocks.{block}"
        qkv = [state[f"{timms}.attn.qkv.{kind}"].chunk(3) for kind in ("weight", "bias")]
        put_attention(f"{prefix}/MultiHeadDotProductAttention_0", *qkv, f"{timms}.attn.proj")
        put_rest(prefix, {"LayerNorm_0": "norm1", "LayerNorm_1": "norm2"}, "MlpBlock_0", timms)
    put("MAPHead_0/probe", state["attn_pool.latent"])
    both = [
        [state[f"attn_pool.q.{kind}"], *state[f"attn_pool.kv.{kind}"].chunk(2)] for kind in ("weight", "bias")
    ]  # fmt: skip
    put_attention("MAPHead_0/MultiHeadDotProductAttention_0", *both, "attn_pool.proj")
    put_rest("MAPHead_0", {"LayerNorm_0": "norm"}, "MlpBlock_0", "attn_pool")
    return arrays


# ---------------------------------------------------------------------------------------------------------------------
# Any network of timm


@pytest.mark.parametrize(
    "name", ["test_efficientnet", "test_vit", "test_convnext", "test_nfnet", "vit_base_patch16_224"]
)
def test_features_are_what_timm_gives_to_its_classifier(name, tmp_path):
    size = SIZE if name in SMALLER else 64
    torch.manual_seed(1)
    net = shaken(timm.create_model(name, num_classes=5))
    torch.save(net.state_dict(), tmp_path / "net.pth")
    backbone = built(f"timm:{name}", tmp_path / "net.pth")
    reference = build_backbone(f"timm:{name}", seq_len=2).net.eval()
    reference.load_state_dict(net.state_dict(), strict=False)
    assert_same(features(backbone, size), of_frames(reference, size))
    assert backbone.feature_dim == features(backbone, size).shape[-1]
    assert (backbone.input_spec.mean, backbone.input_spec.std) == (
        net.pretrained_cfg["mean"],
        net.pretrained_cfg["std"],
    )
    with torch.inference_mode():
        assert backbone.feature_maps(clips(size)).shape[:3] == (2, backbone.feature_dim, 2)


@pytest.mark.parametrize("pool", ["own", "cls", "mean", "proj"])
@pytest.mark.parametrize("name", ["clip_vit_b16", "clip_rn50", "dinov2_vit_s14", "dinov3_vit_s16", "siglip_b16"])
def test_every_parameter_gets_a_gradient_also_where_activations_are_computed_again(name, pool):
    can_pool = {
        "proj": ("clip_vit_b16", "clip_rn50", "siglip_b16"),
        "cls": ("clip_vit_b16", "dinov2_vit_s14", "dinov3_vit_s16"),
    }
    if name not in can_pool.get(pool, name):
        with pytest.raises(UserError, match=r"no class token|no projection"):
            built(name, pool=pool)
        return
    gradients = []
    for recompute in (False, True):
        backbone = built(name, pool=pool)
        shaken(backbone.net)
        backbone.set_passes(recompute=recompute)
        weights = torch.rand(backbone.feature_dim, generator=torch.Generator().manual_seed(2))
        (backbone(clips(64)) * weights).sum().backward()
        assert [name for name, p in backbone.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []
        gradients.append(torch.cat([p.grad.flatten() for p in backbone.parameters()]))
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)


def test_a_network_says_what_pixels_it_wants():
    specs = {
        name: built(name).input_spec for name in ("clip_vit_b16", "siglip_b16", "dinov2_vit_s14", "dinov3_vit_s16")
    }
    assert specs["clip_vit_b16"].mean == (0.48145466, 0.4578275, 0.40821073)
    assert specs["clip_vit_b16"].std == (0.26862954, 0.26130258, 0.27577711)
    assert specs["siglip_b16"].mean == specs["siglip_b16"].std == (0.5, 0.5, 0.5)
    assert specs["dinov2_vit_s14"].mean == IMAGENET_MEAN
    assert {spec.interpolation for spec in specs.values()} == {"bicubic"}
    assert {name: spec.size for name, spec in specs.items()} == {
        "clip_vit_b16": 224, "siglip_b16": 224, "dinov2_vit_s14": 224, "dinov3_vit_s16": 256,
    }  # fmt: skip


# Of timm's own networks without a classifier.
PARAMETERS = {
    "clip_vit_b16": 85_799_424, "clip_rn50": 36_218_720, "dinov2_vit_b14": 86_579_712, "dinov3_vit_s16": 21_586_944,
    "siglip_b16": 92_884_224,
}  # fmt: skip


def test_parameters_are_those_of_timms_networks():
    """The table's figures, which another test compares with measured ones."""
    assert {name: figures()[name].parameters for name in PARAMETERS} == PARAMETERS


# ---------------------------------------------------------------------------------------------------------------------
# What users ask for wrongly


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("timm:vit_base_patch16_clip_22", {}, "unknown network of timm .* did you mean 'vit_base_patch16_clip_224'"),
        ("timm:", {}, "unknown network of timm ''"),
        ("timm:vit_base_patch16_224", {"activation": "gelu"}, "no activation to choose"),
        ("clip_vit_b16", {"activation": "relu"}, "unknown activation 'relu'"),
        ("clip_vit_b16", {"pool": "max"}, "unknown pool 'max'"),
        ("clip_vit_b16", {"size": 224}, "no option size"),
        ("timm:vit_base_patch16_224", {"pool": "proj"}, "has no projection, which is for CLIP"),
        (
            "timm:test_efficientnet",
            {"pool": "cls"},
            "has no class token: give --backbone_options pool=own or pool=mean",
        ),
        (
            "clip_vit_b16",
            {"pretrained": True},
            "has no pretrained weights: add --no_pretrained or give a file with -pt",
        ),
        ("clip_vit_b16", {"pretrained": "none.safetensors"}, "no file none.safetensors"),
    ],
)
def test_a_wrong_request_says_what_to_do(name, options, message):
    with torch.device("meta"), pytest.raises(UserError, match=message):
        build_backbone(name, seq_len=2, **options)


def test_frames_of_a_size_that_does_not_fit_are_refused():
    with pytest.raises(UserError, match=r"multiples of its patches of 16 pixels, found 40x40: give --img_size 32"):
        built("clip_vit_b16")(clips(40))
    with torch.device("meta"):
        mixer = build_backbone("timm:mixer_s16_224", seq_len=2)
    with pytest.raises(UserError, match=r"takes frames of 224x224 pixels, found 32x32: give --img_size 224"):
        mixer(clips())


def test_without_the_packages_names_are_listed_and_asking_for_one_is_a_sentence(monkeypatch, capsys):
    monkeypatch.setattr("backbones.is_installed", lambda package: False)
    for name in ("clip_vit_b16", "timm:resnet50"):
        with pytest.raises(
            UserError, match=rf"--backbone {name} needs timm, which is not installed: pip install -r req"
        ):
            build_backbone(name, seq_len=2)
    print_backbones()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if "needs pip install -r requirements-foundation.txt" in line] == [
        name for name, entry in BACKBONES.items() if entry.package
    ]


def test_damaged_files_are_refused(archive, tmp_path):
    whole = archive.read_bytes()
    for name, content in {
        "cut.pt": whole[: len(whole) // 2],
        "cut.safetensors": b"\0" * 40,
        "cut.npz": b"PK\3\4",
    }.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=name):
            built("clip_vit_b16", tmp_path / name)
    with pytest.raises(UserError, match="no weights in"):
        built("clip_vit_b16", tmp_path)
