"""Every recipe parses, can be built, and says on top what it is, what it takes and what to expect; and the tables of other
programs' flags name only such as there are."""

from __future__ import annotations

import argparse
import inspect
import re
import shlex
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import pytest
import torch

from backbones import BACKBONES, build_backbone
from clips.transforms import ViewCrops
from engine import supervised_settings
from engine.settings import parse_args
from engine.supervised_settings import sampling_of
from methods import METHODS
from scripts import fuse_scores
from utils import UserError

ROOT = Path(__file__).parent.parent
RECIPES = sorted((ROOT / "scripts" / "recipes").glob("*.args"))
SUPERVISED = [path for path in RECIPES if "python run_supervised.py @" in path.read_text(encoding="utf-8")]
LISTS = ["--root", "DATA", "--train_list", "TRAIN", "--val_list", "VAL"]

# What the comments on top must say, and how it is found there.
HEADER = {
    "the command": r"python run(_supervised)?\.py @",
    "the hardware": r"(?i)\b(hardware|GPUs?|CPUs?)\b",
    "the expected accuracy": r"\d+(\.\d+)? ?%",
    "its source": r"(?i)(https?://|arxiv|cvpr|iccv|eccv|aaai|neurips|tpami|table)",
    "whether we ran it": r"(?i)\bnot run by us\b|\brun by us\b",
}


def header(text: str) -> str:
    """The comment lines before the first flag."""
    lines = text.splitlines()
    first_flag = next((n for n, line in enumerate(lines) if line.strip() and not line.startswith("#")), len(lines))
    return "\n".join(lines[:first_flag])


def missing_in(text: str) -> list[str]:
    return [what for what, pattern in HEADER.items() if not re.search(pattern, header(text))]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.name)
def test_a_header_is_complete(recipe: Path) -> None:
    text = recipe.read_text(encoding="utf-8")
    assert missing_in(text) == []
    assert f"@scripts/recipes/{recipe.name} " in header(text), "the command names this very file"


@pytest.mark.parametrize("recipe", [path for path in RECIPES if path not in SUPERVISED], ids=lambda path: path.name)
def test_a_few_shot_recipe_parses(recipe: Path, tmp_path: Path) -> None:
    args = parse_args([f"@{recipe}", "--dataset", "DATA", "-c", str(tmp_path / "run")], METHODS)
    assert args.dataset == "DATA"
    assert any(0 < tasks <= args.training_iterations for tasks in args.val_iters), "it never validates"
    with torch.device("meta"):
        build_backbone(args.backbone, seq_len=args.seq_len, **args.backbone_options)


# ---------------------------------------------------------------------------------------------------------------------
# Recipes of run_supervised.py


def commands(recipe: Path) -> Iterator[tuple[str, list[str]]]:
    """Program and flags of every command of a header, with all flags of the recipe where it tests its run."""
    for line in header(recipe.read_text(encoding="utf-8")).splitlines():
        if match := re.match(r"#   python (\S+\.py) (.*)", line):
            words = shlex.split(match[2])
            if "--test_only" in words:
                flags = [word for word in words if word != "--test_only"]
                words = [f"@{recipe.relative_to(ROOT)}", *LISTS, *flags]
            yield match[1], words


def changes(recipe: Path) -> Iterator[list[str]]:
    """What the rows of its tables change: flags, or the name of a backbone."""
    for line in header(recipe.read_text(encoding="utf-8")).splitlines():
        row = re.match(r"#   (\S.*?) {2,}\S", line)
        words = shlex.split(row[1]) if row else []
        if words and words[0] in BACKBONES:
            yield ["--backbone", words[0]]
        elif len(words) > 1 and words[0].startswith("--"):
            yield words


def build(args: argparse.Namespace) -> None:
    """What can only be refused when the network, its clips and its views are put together."""
    with torch.device("meta"):
        backbone = build_backbone(args.backbone, seq_len=args.seq_len, **args.backbone_options)
    sampling = sampling_of(args, backbone)
    if args.clips == "fixed":
        assert sampling.test(300, args.num_clips).shape == (args.num_clips, args.seq_len)
    ViewCrops(args.crop_size or args.img_size or backbone.input_spec.size, args.num_crops, args.short_side)


@pytest.mark.parametrize("recipe", SUPERVISED, ids=lambda path: path.name)
def test_a_supervised_recipe_parses_and_can_be_built_with_all_changes_that_it_names(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    holds_out = "--holdout" in recipe.read_text(encoding="utf-8")
    own = [
        f"@scripts/recipes/{recipe.name}",
        *(["--dataset", "DATA"] if holds_out else LISTS),
        "-c",
        str(tmp_path / "run"),
    ]
    args = supervised_settings.parse_args(own)
    assert (args.dataset if holds_out else args.train_list, args.val_freq) == ("DATA" if holds_out else "TRAIN", 1)
    build(args)
    for program, words in commands(recipe):
        if program == "run_supervised.py":
            build(supervised_settings.parse_args([*words, "-c", str(tmp_path / "run")]))
        else:
            assert program == "scripts/fuse_scores.py"
            fuse_scores.parse_args(words)
    for words in changes(recipe):
        build(supervised_settings.parse_args([*own, *words]))
    known = supervised_settings.build_parser()._option_string_actions.keys() | {"--nproc_per_node"}
    assert set(re.findall(r"(?<!\S)--\w+", header(recipe.read_text(encoding="utf-8")))) <= known


def test_headers_are_read_as_they_are_written() -> None:
    """So that the test above tests something."""
    assert len(SUPERVISED) > 10
    by_name = {path.name: path for path in SUPERVISED}
    assert [program for program, _ in commands(by_name["tdn_something_8f.args"])] == [
        "run_supervised.py",
        "run_supervised.py",
        "scripts/fuse_scores.py",
    ]
    assert ["--backbone", "tdn_resnet101", "--seq_len", "80"] in list(changes(by_name["tdn_something_8f.args"]))
    assert ["--backbone_options", "non_local=true"] in list(changes(by_name["tsm_kinetics_dense_8f.args"]))
    assert len(list(changes(by_name["study_8f.args"]))) == 12


# ---------------------------------------------------------------------------------------------------------------------
# The rules themselves


def test_a_header_that_lacks_something_is_found() -> None:
    expected = "# 4 GPUs, 12 h; expected 64.6 % (CVPR 2021, table 1); not run by us"
    whole = f"# python run.py @scripts/recipes/x.args\n{expected}\n\n--way 5"
    assert missing_in(whole) == []
    for line in range(2):
        assert missing_in("\n".join(text for n, text in enumerate(whole.splitlines()) if n != line))
    assert missing_in("--way 5  # python run.py @x, 1 GPU, 60 %, CVPR, not run by us") == list(HEADER)


def test_a_recipe_takes_several_flags_to_a_line_and_comments(tmp_path: Path) -> None:
    recipe = tmp_path / "own recipe.args"
    recipe.write_text(
        "# what it is\n\n--way 3 --shot 2  # small\n--dataset 'a b'\n--val_iters 10 20\n", encoding="utf-8"
    )
    args = parse_args([f"@{recipe}", "-c", str(tmp_path / "run"), "--shot", "4"], METHODS)
    assert (args.way, args.shot, args.dataset, args.val_iters) == (3, 4, "a b", [10, 20])


@pytest.mark.parametrize("parse_args", [partial(parse_args, methods=METHODS), supervised_settings.parse_args])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("--seq_lne 3\n", "--seq_lne"),
        ("--seq_len three\n", "--seq_len"),
        ("--dataset 'a b\n", "quotation"),
        (None, "No such file"),
    ],
)
def test_a_recipe_that_is_wrong_or_missing_is_one_sentence(
    parse_args: Callable[[Sequence[str]], argparse.Namespace], content: str | None, message: str, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / "x.args").write_text(content)
    with pytest.raises(UserError, match=message):
        parse_args([f"@{tmp_path}/x.args", "-c", str(tmp_path / "run")])


# ---------------------------------------------------------------------------------------------------------------------
# The tables of flags of other code bases

# Every flag of the programs, by the headings of docs/migrate.md.
STUDY = (
    "--backbone_net -d --depth --dropout --groups --frames_per_group --alpha --beta --fpn_dim --without_t_stride "
    "--pooling_method --dw_t_conv --temporal_module_name --blending_frames --blending_method --no_dw_conv --consensus --gpu "
    "--disable_cudnn_benchmark -b --batch-size --lr --learning-rate --lr_scheduler --lr_steps --momentum --nesterov "
    "--weight-decay --wd --epochs --resume --pretrained --start-epoch --clip_gradient --cg --label_smoothing "
    "--no_imagenet_pretrained --transfer -j --workers --datadir --dataset --threed_data --input_size --disable_scaleup "
    "--random_sampling --dense_sampling --augmentor_ver --scale_range --modality --mean --std --skip_normalization --use_lmdb "
    "--logdir --print-freq --show_model -e --evaluate --num_crops --num_clips --cpu --sync-bn --world-size --rank --dist-url "
    "--dist-backend --multiprocessing-distributed"
)
TSM_MAIN = (
    "dataset modality --train_list --val_list --root_path --arch --num_segments --consensus_type --k --dropout --do "
    "--loss_type --img_feature_dim --suffix --pretrain --tune_from --epochs -b --batch-size --lr --learning-rate --lr_type "
    "--lr_steps --momentum --weight-decay --wd --clip-gradient --gd --no_partialbn --npb --print-freq -p --eval-freq -ef -j "
    "--workers --resume -e --evaluate --snapshot_pref --start-epoch --gpus --flow_prefix --root_log --root_model --shift "
    "--shift_div --shift_place --temporal_pool --non_local --dense_sample"
)
LSNET_MAIN = "--store_name --data_type --interval --num_frame --fuse_before_net --gray"
TSM_TEST = (
    "dataset --weights --test_segments --dense_sample --twice_sample --full_res --test_crops --coeff --batch_size -j --workers "
    "--test_list --csv_file --softmax --max_num --input_size --crop_fusion_type --gpus --img_feature_dim --num_set_segments "
    "--pretrain --interval --num_frame --gray"
)
TDN_MAIN = (
    "dataset modality --train_list --val_list --root_path --store_name --decoded_type --arch --num_segments --topk "
    "--consensus_type --k --dropout --loss_type --img_feature_dim --suffix --pretrain --tune_from --experiment_name --epochs "
    "-b --batch-size --lr_scheduler --warmup_epoch --lr_decay_rate --warmup_multiplier --lr --learning-rate --lr_steps "
    "--momentum --weight-decay --wd --clip-gradient --gd --no_partialbn --npb --print-freq -p --eval-freq -j --workers "
    "--resume -e --evaluate --snapshot_pref --start-epoch --gpus --flow_prefix --root_log --root_model --dense_sample "
    "--local_rank"
)
TDN_TEST = (
    "dataset --weights --test_segments --modalities --archs --dense_sample --full_res --test_crops --coeff --batch_size -j "
    "--workers --topk --test_list --csv_file --softmax --max_num --input_size --crop_fusion_type --gpus --img_feature_dim "
    "--num_set_segments --pretrain --output_dir --clip_index --num_clips --multi_segments --output_dir1"
)
OLD_FLAGS = {
    "Action Recognition Study": STUDY,
    "TSM: `main.py`": f"{TSM_MAIN} {LSNET_MAIN}",
    "TSM: `test_models.py`": TSM_TEST,
    "TDN and MSN: `main.py`": TDN_MAIN,
    "TDN and MSN: `test_models_center_crop.py`": TDN_TEST,
}


def flag_table(heading: str) -> list[tuple[list[str], str]]:
    """The rows under a heading of docs/migrate.md: their flags, and what is said of them."""
    text = (ROOT / "docs" / "migrate.md").read_text(encoding="utf-8")
    (section,) = (part for part in re.split(r"^### ", text, flags=re.MULTILINE) if part.startswith(heading))
    rows = [line.strip("| \n").split(" | ", 1) for line in section.splitlines() if line.startswith("| `")]
    return [(re.findall(r"`([^`]+)`", theirs), here) for theirs, here in rows]


@pytest.mark.parametrize("heading", OLD_FLAGS)
def test_every_flag_of_the_other_code_bases_is_in_a_table(heading: str) -> None:
    listed = [flag for flags, _ in flag_table(heading) for flag in flags]
    assert sorted(listed) == sorted(OLD_FLAGS[heading].split())


@pytest.mark.parametrize("heading", OLD_FLAGS)
def test_flags_that_a_table_names_as_ours_exist_with_these_values(heading: str) -> None:
    for flags, here in flag_table(heading):
        told = re.findall(r"`([^`]+)`", here)
        assert here, flags
        assert re.findall(r"[Nn]ot taken over", here) == re.findall(r"([Nn]ot taken over): \w", here), "it says why"
        for words in told:
            assert_known_flags(words)


def assert_known_flags(command: str) -> None:
    """Of run_supervised.py, or of the script that the command names."""
    program, *words = shlex.split(command)
    if program == "scripts/fuse_scores.py":
        fuse_scores.parse_args(["SCORES", *words])
        return
    options = supervised_settings.build_parser()._option_string_actions
    words = words[words.index("run_supervised.py") :] if program == "torchrun" else [program, *words]
    for word, value in zip(words, [*words[1:], ""], strict=True):
        if word.startswith("-"):
            assert word in options, f"{command}: there is no {word}"
            choices = options[word].choices
            assert not (choices and value) or value in map(str, choices), command


def test_options_of_backbones_that_the_tables_name_exist() -> None:
    """Each of them is an option of a builder."""
    text = (ROOT / "docs" / "migrate.md").read_text(encoding="utf-8")
    named = {
        name for words in re.findall(r"--backbone_options ([^`]+)`", text) for name in re.findall(r"(\w+)=", words)
    }
    options = {name for entry in BACKBONES.values() for name in inspect.signature(entry.build).parameters}
    assert len(named) > 8
    assert named <= options


def test_backbones_that_the_tables_name_exist() -> None:
    text = (ROOT / "docs" / "migrate.md").read_text(encoding="utf-8")
    assert set(re.findall(r"--backbone (\w+)", text)) <= BACKBONES.keys()


@pytest.mark.parametrize(
    "command", ["--seq_lne", "--sampling middle", "-x", "scripts/fuse_scores.py --fuse", "--fusion relu_logits"]
)
def test_a_wrong_entry_of_a_table_is_found(command: str) -> None:
    with pytest.raises((AssertionError, UserError)):
        assert_known_flags(command)
