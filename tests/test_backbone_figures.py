"""Parameters and multiply-accumulates of every published form, on the meta device: nothing is computed."""

import pytest
import torch
from torch import nn

from backbones import BACKBONES, build_backbone
from backbones.figures import Figures, figures, measure


def count(name: str, frames: int, size: int, **options) -> tuple[int, int]:
    """Parameters without a classifier, and multiply-accumulates of one clip."""
    written = figures()[name]
    if not options and (frames, size) == (written.frames, written.size):
        return written.parameters, written.macs  # another test measures these
    found = measure(name, frames=frames, size=size, **options)
    return found.parameters, found.macs


def classifier(width: int, classes: int = 400) -> int:
    return (width + 1) * classes


# Of Chen et al. (CVPR 2021) and the TSM paper's code: 400 classes, 8 frames of 224 pixels.
# Name, width of the classifier, parameters with it, MACs with time kept whole, MACs with time halved three times.
STUDY = [
    ("resnet18", 512, 11_381_712, 14_508_490_752, 7_520_780_288),
    ("resnet34", 512, 21_489_872, 29_305_995_264, 13_301_055_488),
    ("resnet50", 2048, 24_327_632, 32_697_090_048, 14_135_984_128),
    ("resnet101", 2048, 43_319_760, 62_394_859_520, 21_560_426_496),
    ("inception_v1", 1024, 6_009_904, 11_978_817_536, 6_521_725_952),
    ("tsm_resnet50", 2048, 24_327_632, 32_697_090_048, 14_135_984_128),
    ("tsm_resnet101", 2048, 43_319_760, 62_394_859_520, 21_560_426_496),
    ("tam_resnet18", 512, 11_386_128, 14_530_768_896, 7_535_155_712),
    ("tam_resnet34", 512, 21_499_856, 29_343_326_208, 13_323_935_744),
    ("tam_resnet50", 2048, 24_366_992, 32_831_963_136, 14_213_054_464),
    ("tam_resnet101", 2048, 43_411_344, 62_611_619_840, 21_657_968_640),
    ("tam_inception_v1", 1024, 6_027_328, 12_047_006_720, 6_570_863_936),
    ("i3d", 1024, 12_697_264, 33_806_581_760, 21_411_353_600),
    ("s3d_inception_v1", 1024, 8_313_328, 19_778_626_560, 12_264_670_208),
    ("i3d_resnet18", 512, 33_371_472, 43_217_190_912, 22_472_425_472),
    ("i3d_resnet34", 512, 63_681_104, 87_609_704_448, 39_813_251_072),
    ("i3d_resnet50", 2048, 46_980_944, 64_180_322_304, 29_460_135_936),
    ("i3d_resnet101", 2048, 86_027_088, 125_322_788_864, 44_745_752_576),
    ("s3d_resnet18", 512, 15_586_128, 21_329_215_488, 12_125_732_864),
    ("s3d_resnet34", 512, 29_068_624, 41_059_221_504, 19_832_766_464),
    ("s3d_resnet50", 2048, 28_126_416, 39_517_814_784, 19_672_203_264),
    ("s3d_resnet101", 2048, 50_469_584, 74_456_367_104, 28_406_841_344),
]


@pytest.mark.parametrize(("name", "width", "parameters", "whole", "halved"), STUDY, ids=[row[0] for row in STUDY])
def test_the_studys_networks_have_its_figures(name, width, parameters, whole, halved):
    halving = {"temporal_stride": True} if "3d" in name else {"temporal_pool": 3}
    assert count(name, 8, 224) == (parameters - classifier(width), whole)
    assert count(name, 8, 224, **halving) == (parameters - classifier(width), halved)


OTHERS = [
    ("tsm_mobilenet_v2", {}, 8, 224, 2_736_272 - classifier(1280), 2_395_954_176),
    ("tsm_resnet50", {"non_local": True}, 8, 224, 31_686_096 - classifier(2048), 49_138_761_728 + 11_958_747_136),
    ("tsm_resnet50", {"temporal_pool": 1}, 8, 224, 24_327_632 - classifier(2048), 19_492_372_480),
    ("tsm_resnet50", {}, 8, 256, 24_327_632 - classifier(2048), 42_706_403_328),
    ("tam_resnet50", {}, 16, 224, 24_366_992 - classifier(2048), 2 * 32_831_963_136),
    ("s3d_inception_v1", {"dw_t_conv": True}, 8, 224, 6_048_304 - classifier(1024), 13_784_987_328),
    ("s3d_inception_v1", {"dw_t_conv": True}, 16, 224, 6_048_304 - classifier(1024), 27_683_864_768),
    (
        "s3d_inception_v1",
        {"dw_t_conv": True, "temporal_stride": True},
        8,
        224,
        6_048_304 - classifier(1024),
        8_430_712_640,
    ),
    ("s3d_inception_v1", {}, 16, 224, 8_313_328 - classifier(1024), 39_712_547_840),
    ("s3d_inception_v1", {}, 32, 224, 8_313_328 - classifier(1024), 79_580_390_400),
    ("s3d_resnet50", {"dw_t_conv": True}, 8, 224, 24_365_328 - classifier(2048), 34_618_429_440),
    (
        "s3d_resnet50",
        {"dw_t_conv": True, "temporal_stride": True},
        8,
        224,
        24_365_328 - classifier(2048),
        17_574_068_736,
    ),
    ("blvnet_tam50", {}, 16, 224, 25_020_142 - classifier(2048, 174), 23_848_452_096),
    ("blvnet_tam50", {}, 32, 224, 25_020_142 - classifier(2048, 174), 47_696_904_192),
    ("blvnet_tam101", {}, 16, 224, 40_177_134 - classifier(2048, 174), 32_146_358_272),
    ("blvnet_tam101", {}, 64, 224, 40_177_134 - classifier(2048, 174), 128_585_433_088),
    ("lsnet_resnet50", {}, 24, 224, 24_327_632 - classifier(2048), 32_697_090_048),
    ("lsnet_resnet50", {"num_frame": 5}, 40, 224, 24_333_904 - classifier(2048), 32_697_090_048 + 629_407_744),
    ("i3d", {"form": "original"}, 16, 224, 12_697_264 - classifier(1024), 27_787_569_152),
    ("i3d", {"form": "original"}, 64, 224, 12_697_264 - classifier(1024), 111_150_276_608),
    ("resnet3d18", {}, 16, 112, 33_409_104 - classifier(512), 8_307_802_112),
    ("resnet3d18", {}, 8, 224, 33_409_104 - classifier(512), 17_038_966_784),
    ("resnet3d18", {}, 16, 224, 33_409_104 - classifier(512), 32_857_653_248),
    ("resnet3d34", {}, 16, 112, 63_718_736 - classifier(512), 12_696_092_672),
    ("resnet3d34", {}, 16, 224, 63_718_736 - classifier(512), 50_198_478_848),
    ("resnet3d50", {}, 16, 112, 47_018_576 - classifier(2048), 10_068_492_288),
    ("resnet3d50", {}, 8, 224, 47_018_576 - classifier(2048), 20_622_737_408),
    ("resnet3d101", {}, 16, 112, 86_064_720 - classifier(2048), 13_889_896_448),
    ("resnet3d101", {}, 16, 224, 86_064_720 - classifier(2048), 55_130_980_352),
    # C3D's parameters are those of the authors' network without its classifier; Conv-4-64's, less four biases of 64.
    ("c3d", {}, 16, 112, 27_655_936, 38_496_632_832),
    ("c3d", {"until": "fc6"}, 16, 112, 61_214_464, 38_496_632_832 + 8192 * 4096),
    ("c3d", {"until": "fc7"}, 16, 112, 79_991_015 - classifier(4096, 487), 38_496_632_832 + 8192 * 4096 + 4096**2),
    ("conv4_3d", {}, 20, 128, 337_728 - 4 * 64, 7_361_003_520),
    ("conv4_3d", {}, 16, 128, 337_728 - 4 * 64, 5_888_802_816),
    ("r3d_18", {}, 16, 112, 33_371_472 - classifier(512), 40_696_348_672),
    ("r3d_18", {}, 8, 224, 33_371_472 - classifier(512), 81_392_697_344),
    ("mc3_18", {}, 16, 112, 11_695_440 - classifier(512), 43_342_430_208),
    ("r2plus1d_18", {}, 16, 112, 31_505_325 - classifier(512), 40_518_876_160),
    ("r2plus1d_18", {"midplanes": "paper"}, 8, 112, 33_370_839 - classifier(512), 20_748_051_968),
    ("r2plus1d_18", {"midplanes": "paper"}, 16, 112, 33_370_839 - classifier(512), 41_496_103_936),
    ("r2plus1d_34", {}, 8, 112, 63_697_175 - classifier(512), 38_088_877_568),
    ("r2plus1d_34", {}, 32, 112, 63_697_175 - classifier(512), 152_355_510_272),
    # The published count of S3D holds its classifier, a convolution over S - 1 steps.
    ("s3d", {}, 16, 224, 8_320_048 - classifier(1024), 17_978_771_456 - 1 * 1024 * 400),
    ("s3d", {}, 64, 224, 8_320_048 - classifier(1024), 71_916_314_624 - 7 * 1024 * 400),
    ("s3d", {}, 128, 224, 8_320_048 - classifier(1024), 143_833_038_848 - 15 * 1024 * 400),
]


@pytest.mark.parametrize(("name", "options", "frames", "size", "parameters", "macs"), OTHERS)
def test_other_published_forms_have_their_figures(name, options, frames, size, parameters, macs):
    assert count(name, frames, size, **options) == (parameters, macs)


# TDN, and MSN without what its batch norms and differences cancel: classes of the classifier, parameters with it, and
# multiply-accumulates in units of 10^9 as the authors' networks have them.
DIFFERENCES = [
    ("tdn_resnet50", {}, 40, 224, 174, 24_382_606, 35.64),
    ("tdn_resnet50", {}, 40, 224, 400, 24_845_680, 35.64),
    ("tdn_resnet50", {}, 80, 224, 174, 24_382_606, 71.28),
    ("tdn_resnet50", {}, 40, 256, 174, 24_382_606, 46.55),
    ("tdn_resnet101", {}, 40, 224, 174, 43_618_174, 65.84),
    ("tdn_resnet101", {}, 80, 224, 174, 43_618_174, 131.7),
    ("msn_resnet50", {}, 40, 224, 174, 30_936_210, 58.08),
    ("msn_resnet50", {"variant": "released"}, 80, 224, 174, 30_936_210, 116.17),
    ("msn_resnet101", {}, 40, 224, 400, 56_833_528, 96.64),
]


@pytest.mark.parametrize(("name", "options", "frames", "size", "classes", "parameters", "gigamacs"), DIFFERENCES)
def test_networks_of_differences_have_the_authors_figures(name, options, frames, size, classes, parameters, gigamacs):
    found, macs = count(name, frames, size, **options)
    assert found + classifier(2048, classes) == parameters
    if name.startswith("msn"):  # the authors convolve three frames and then two of them, here it is two and one
        macs += frames // 5 * 112**2 * (7**2 * 3 * 16 + 5**2 * 16 * 64)
    assert macs / 1e9 == pytest.approx(gigamacs, rel=2e-4)


@pytest.mark.parametrize(
    ("name", "classes", "released"), [("msn_resnet50", 174, 31_017_762), ("msn_resnet101", 400, 56_948_808)]
)
def test_the_released_msn_has_these_parameters_beside_biases_without_effect_and_two_layers_that_never_run(
    name, classes, released
):
    with torch.device("meta"):
        net = build_backbone(name, seq_len=40, variant="released").net
    cancelled = sum(
        module.out_channels
        for module in net.modules()
        if isinstance(module, (nn.Conv2d, nn.Conv3d)) and module.bias is None and module.groups == 1
    )
    cancelled -= net.short.over_one.out_channels + net.short.over_two.out_channels  # they have none there either
    stem, inflated_stem = 64 * (3 * 7**2 + 1), 64 * (12 * 7**2 + 2)
    found = sum(parameter.numel() for parameter in net.parameters())
    assert found + cancelled + stem + inflated_stem + classifier(2048, classes) == released


def test_shortcut_a_saves_the_parameters_of_the_projections():
    assert count("resnet3d18", 16, 112, shortcut="A")[0] == 33_235_280 - classifier(512)
    assert count("resnet3d34", 16, 112, shortcut="A")[0] == 63_544_912 - classifier(512)


def test_the_alternately_inflated_i3d_is_the_small_one():
    parameters, macs = count("i3d_resnet50", 32, 256, kernels="3x1x1", temporal_stride=True)
    assert round((parameters + classifier(2048)) / 1e6, 1) == 28.0
    assert round(macs / 1e9, 1) == 43.3


@pytest.mark.parametrize(
    ("name", "parameters", "gigamacs"),
    [("mvit_v1_b", 36_610_672, 70.599), ("mvit_v2_s", 34_537_744, 64.224), ("swin3d_t", 28_158_070, 2 * 43.882)],
)
def test_transformers_have_torchvisions_figures(name, parameters, gigamacs):
    """torchvision counts the classifier, and a clip of 16 frames for the Swin transformers."""
    found = measure(name)
    assert found.parameters + classifier(found.feature_dim) == parameters
    assert (found.macs + found.feature_dim * 400) / 1e9 == pytest.approx(gigamacs, rel=1e-5)


@pytest.mark.parametrize("name", BACKBONES)
def test_the_written_figures_are_the_measured_ones(name):
    assert figures()[name] == measure(name), "run: python -m backbones.figures"


def test_figures_of_the_whole_table_need_no_network(monkeypatch):
    monkeypatch.setattr("backbones.figures.measure", lambda name: pytest.fail(f"{name} is not in figures.csv"))
    table = figures()
    assert list(table) == list(BACKBONES)
    assert table["conv4"] == Figures(frames=8, size=84, parameters=112_832, macs=777_314_304, steps=8, feature_dim=64)
