"""The command line of run_supervised.py: its flags, and the data and recogniser that they name."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from backbones import Backbone, build_backbone
from backbones.adapters import choose_trained
from backbones.recogniser import LAYER_RATES, Recogniser
from backbones.released import CODE_BASES, Released, released
from backbones.resnet2d import FRAME_BY_FRAME
from backbones.weight_files import read_content
from clips.frame_sampling import CLIP_SAMPLINGS, ClipSampling, clip_sampling
from clips.labelled_videos import LabelledVideos, ListedVideos, SplitVideos, held_out
from clips.list_files import FORMS, read_class_names
from clips.transforms import NUM_CROPS
from clips.video_split import FORMATS, Split
from engine.command_line import Parser
from engine.flags import (
    PIXELS,
    add_backbone_flags,
    add_clip_flags,
    add_optimiser_flags,
    add_run_flags,
    add_speed_flags,
    check_common,
    check_test_model,
    parse_run,
)
from utils import UserError, checked_checkpoint, is_checkpoint

CROPS = ("multi_scale", "scale_jitter", "random")
FLIPS = ("auto", "label", "on", "off")
SCHEDULES = ("step", "cosine")
FUSIONS = ("logits", "probabilities")

DATASET_FLAGS = ("dataset", "format")
LIST_FLAGS = ("train_list", "val_list", "test_list", "root", "list_form", "list_separator", "first_label", "multi_label",
              "class_names")  # fmt: skip


def build_parser(*, description: str | None = None) -> Parser:
    parser = Parser(description, recipes=True)
    add_run_flags(parser, unit="step", print_freq=20, save_freq=1000)

    group = add_speed_flags(parser)
    group.add_argument(
        "--clips_per_call", type=int, default=0, least=0, resumable=True,
        help="pass no more of a batch's clips than these through the network at a time, and add up their gradients: the same "
        "as with so many more processes, also for batch norms in training, which see one portion. 0: a process's whole share",
    )  # fmt: skip
    group.add_argument(
        "--views_per_call", type=int, default=32, least=1, resumable=True,
        help="test views that pass through the network at a time, of any videos",
    )  # fmt: skip

    group = parser.add_argument_group("data")
    group.add_argument(
        "--dataset", resumable=True, help="folder with {train,val,test}/<class>/<video>, as run.py takes it"
    )
    group.add_argument(
        "--format", choices=["auto", *FORMATS], default="auto", resumable=True,
        help="how the data set is stored; auto: looks",
    )  # fmt: skip
    group.add_argument(
        "--holdout", type=float, default=0.0, least=0, below=1, metavar="FRACTION",
        help="of a few-shot data set train on the base classes, train, but for this part of each class's videos, and validate "
        "and test on that; val and test are not opened",
    )  # fmt: skip
    for split in ("train", "val", "test"):
        group.add_argument(
            f"--{split}_list", metavar="FILE", resumable=True, help=f"a list of {split} videos, in place of --dataset"
        )
    group.add_argument("--root", resumable=True, help="the folder that the paths in lists start from")
    group.add_argument(
        "--list_form", choices=FORMS, default="frames",
        help="of a list's lines: frames: folder, number of frames, label; video: file, label; ranges: folder, first frame, "
        "last frame, label; unlabelled: folder, first frame, last frame",
    )  # fmt: skip
    group.add_argument("--list_separator", default=" ", metavar="S", help="between a line's columns; ' ': any blanks")
    group.add_argument("--first_label", type=int, default=0, least=0, help="the number that lists give the first class")
    group.add_argument("--multi_label", action="store_true", help="videos have any number of labels in lists")
    group.add_argument(
        "--class_names", "--classes", metavar="FILE",
        help="names of the classes of lists, or of a released recogniser in -m or --tune_from, one per line in their order",
    )  # fmt: skip
    add_clip_flags(
        group,
        seq_len="frames of a clip, with the neighbours that LSNet, TDN and MSN take: TDN with 8 segments has 40",
        skip="take another in training and leave it out in tests",
    )
    group.add_argument(
        "--sampling", choices=CLIP_SAMPLINGS, default="tsm",
        help="which frames: tsm: one of each segment; study: the same frames of each segment; tdn: windows that stay in the "
        "video; tsm_dense, study_dense: a run of frames",
    )  # fmt: skip
    group.add_argument(
        "--interval", type=int, default=0, least=0, help="frames left out between neighbours (LSNet, TDN, MSN)"
    )
    group.add_argument(
        "--frames_per_group", type=int, default=1, least=1, help="frames of a segment, with --sampling study"
    )
    group.add_argument(
        "--stride", type=int, default=1, least=1, help="frames from one to the next, with --sampling study_dense"
    )
    group.add_argument(
        "--crop", choices=CROPS, default="multi_scale",
        help="of training clips: multi_scale: a random part, resized (TSN, TSM, study v1); scale_jitter: resized at random, "
        "then cropped (study v2); random: as run.py's",
    )  # fmt: skip
    group.add_argument(
        "--scale_range", nargs=2, default=[256, 320], metavar=("LOW", "HIGH"), **PIXELS,
        help="pixels of the shorter side, with --crop scale_jitter",
    )  # fmt: skip
    group.add_argument(
        "--flip", choices=FLIPS, default="auto",
        help="mirror training clips half of the time; auto: only classes whose name has no left or right in it; label: also "
        "those, with the label of their mirror image",
    )  # fmt: skip

    group = parser.add_argument_group("training")
    group.add_argument("--epochs", type=int, default=50, least=0, resumable=True, help="0: test without training")
    group.add_argument(
        "--batch_size", "-b", type=int, default=64, least=1, help="clips of an optimiser step, of all processes"
    )
    add_optimiser_flags(group, learning_rate=0.01, momentum=0.9, weight_decay=5e-4)
    group.add_argument("--lr_type", choices=SCHEDULES, default="step", help="how the rate falls from epoch to epoch")
    group.add_argument(
        "--lr_steps", type=float, nargs="+", default=[20, 40], above=0,
        help="epochs after which it falls to a tenth, with step",
    )  # fmt: skip
    group.add_argument(
        "--warmup_epochs", type=float, default=0, least=0, help="in which it rises evenly from 0, step by step"
    )
    group.add_argument(
        "--layer_rates", choices=LAYER_RATES, default="uniform",
        help="uniform; tsm: biases learn twice as fast, they and batch norms do not decay; tsm_fc5: and the classifier "
        "learns five times as fast",
    )  # fmt: skip
    group.add_argument(
        "--bn", choices=["train", "partial", "frozen", "sync"], default="train",
        help="batch norms: statistics of each process's clips; only the first is trained (TSN's fine-tuning); the stored "
        "ones throughout; or of the clips of all processes",
    )  # fmt: skip
    group.add_argument("--dropout", type=float, default=0.5, least=0, below=1, help="before the classifier")
    group.add_argument(
        "--label_smoothing", type=float, default=0.0, least=0, below=1,
        help="share of the target spread over all classes",
    )  # fmt: skip
    group.add_argument(
        "--mixup", type=float, default=0.0, least=0, metavar="ALPHA",
        help="mix pairs of clips, share by Beta(ALPHA, ALPHA) (Zhang et al., ICLR 2018); 0: never",
    )  # fmt: skip
    group.add_argument(
        "--tune_from", metavar="CHECKPOINT",
        help="start from this recogniser, with a new classifier where its classes are others",
    )  # fmt: skip
    group.add_argument(
        "--val_freq", type=int, default=1, least=0, resumable=True, help="validate every so many epochs; 0: never"
    )

    group = parser.add_argument_group("test")
    group.add_argument(
        "--test_on", choices=["test", "val"], resumable=True,
        help="unset: the test videos where there are any, else val, and then the final model, which val has not chosen",
    )  # fmt: skip
    group.add_argument(
        "--num_clips", type=int, default=1, least=1, most=1000, resumable=True,
        help="clips of a test video, at different times",
    )  # fmt: skip
    group.add_argument(
        "--num_crops", type=int, choices=NUM_CROPS, default=1, resumable=True,
        help="of each: 1 centre, 3 along the longer side, 5 corners and centre, 10 with their mirror images",
    )  # fmt: skip
    group.add_argument(
        "--clips", choices=["fixed", "random"], default="fixed", resumable=True,
        help="of tests: always the same, or drawn as in training, the same again with the same seed",
    )  # fmt: skip
    group.add_argument(
        "--untrained", action="store_true", per_start=True,
        help="test a classifier that nothing has trained, which is refused otherwise; results are marked so",
    )  # fmt: skip
    group.add_argument("--crop_size", resumable=True, **PIXELS, help="side of test crops, pixels; unset: as --img_size")
    group.add_argument(
        "--short_side", resumable=True, **PIXELS, help="frames are resized to this before; unset: 8/7 of the crop"
    )
    group.add_argument(
        "--fusion", choices=FUSIONS, default="logits", resumable=True,
        help="what is averaged over the views of a video",
    )  # fmt: skip

    group = parser.add_argument_group("model")
    add_backbone_flags(group, default="tsm_resnet50")
    return parser


def parse_args(argv: Sequence[str], *, description: str | None = None) -> argparse.Namespace:
    """The settings of a run: defaults, below those of the run or checkpoint it inherits from, below the given flags."""

    def parser_of(early: argparse.Namespace, saved: dict[str, Any]) -> Parser:
        if saved and "lr_type" not in saved:
            raise UserError("that run or checkpoint is of run.py, few-shot: expected one of run_supervised.py")
        lists_given = any(getattr(early, f"{split}_list") for split in ("train", "val", "test"))
        # What is given replaces where the saved run had its videos; a test has the names of classes from the checkpoint.
        replaced = [*(DATASET_FLAGS if lists_given else LIST_FLAGS if early.dataset else ())]
        if early.test_only:
            replaced += ["class_names"]
            if replaced[:-1] or early.test_on == "test":
                replaced += ["holdout"]
            if early.seq_len and sees_single_frames(saved):
                replaced += ["seq_len"]
        for name in replaced:
            saved.pop(name, None)
        parser = build_parser(description=description)
        unset.update({action.dest: action.default for action in parser.flags()})
        return parser

    unset: dict[str, Any] = {}
    decisive = ["--dataset", "--train_list", "--val_list", "--test_list", "--test_on"]
    args = parse_run(argv, parser_of, decisive=decisive, settings_in=settings_in)
    if not args.list:
        check_args(args, unset)
    return args


def sees_single_frames(settings: dict[str, Any]) -> bool:
    """Whether the network takes clips of any length, as it sees each frame alone: TSN may be tested on more frames."""
    return settings["backbone"] in FRAME_BY_FRAME and not settings["backbone_options"].get("temporal_pool")


def check_args(args: argparse.Namespace, unset: Mapping[str, Any]) -> None:
    """Raises UserError for flags that contradict each other. unset: what flags are that nobody gave."""
    check_common(args)
    if args.warmup_epochs > args.epochs > 0:
        raise UserError(f"--warmup_epochs is {args.warmup_epochs}, of {args.epochs} epochs: give fewer")
    if args.multi_label and (args.label_smoothing or args.fusion != "logits"):
        raise UserError("--multi_label has neither --label_smoothing nor --fusion probabilities: leave them out")
    if args.frames_per_call and args.bn in ("train", "sync") and args.epochs and not args.test_only:
        raise UserError("--frames_per_call changes what batch norms in training take their statistics over: use "
                        "--clips_per_call, or add --bn frozen or partial")  # fmt: skip
    if args.tune_from and args.pretrained_backbone:
        raise UserError("--tune_from and --pretrained_backbone both give the backbone its weights: give one of them")
    for name, sampling in (("stride", "study_dense"), ("frames_per_group", "study")):
        if getattr(args, name) != 1 and args.sampling != sampling:
            raise UserError(f"--{name} is for --sampling {sampling}, not {args.sampling}: leave it out")
    if args.crop != "scale_jitter" and args.scale_range != [256, 320]:
        raise UserError(f"--scale_range is for --crop scale_jitter, not {args.crop}: leave it out")
    has_lists = any(getattr(args, f"{split}_list") for split in ("train", "val", "test"))
    if bool(args.dataset) == has_lists:
        raise UserError("expected either --dataset, a folder of classes, or --train_list, --val_list and --test_list")
    if args.holdout and args.test_on == "test":
        raise UserError("--holdout leaves val and test alone, which hold other classes: leave --test_on test out")
    if has_lists and not args.root:
        raise UserError("lists name videos from a folder on: give it with --root")
    takes_names = args.test_only or args.tune_from  # of the classes in a file of another code base
    for name in ("format", "holdout") if has_lists else LIST_FLAGS:
        if name == "class_names" and takes_names:
            continue
        if getattr(args, name) != unset[name]:
            raise UserError(f"--{name} is for {'--dataset' if has_lists else 'lists of videos'}: leave it out")
    check_test_model(args, validates=bool(args.epochs and args.val_freq and has_split(args, "val")))


# ---------------------------------------------------------------------------------------------------------------------
# Recognisers of other code bases


def settings_in(path: Path, early: argparse.Namespace) -> dict[str, Any]:
    """Those in a checkpoint of this library; of a released recogniser those that it decides, and else the defaults."""
    content = read_content(path)
    found = recogniser_in(content, path)
    if found is None:
        return checked_checkpoint(content, path)["args"]
    return {**vars(build_parser().parse_args([])), **found.settings(early)}


def recogniser_in(content: Any, path: Path) -> Released | None:
    """The released recogniser in what a file held; None where that is a checkpoint of this library."""
    if is_checkpoint(content):
        return None
    if found := released(content, path):
        return found
    raise UserError(
        f"{path} is not a checkpoint of this library, nor a recogniser of {', '.join(CODE_BASES)}: give another; a backbone "
        "is given with --pretrained_backbone"
    )


def read_names(args: argparse.Namespace) -> list[str] | None:
    """Those of --class_names."""
    return read_class_names(Path(args.class_names)) if args.class_names else None


def class_names_of(found: Released, args: argparse.Namespace) -> list[str]:
    """The names of a released recogniser's classes: those of --class_names; of lists, which number them, their numbers.

    Raises UserError where there are none or they are not as many.
    """
    if names := read_names(args):
        if len(names) != found.num_classes:
            raise UserError(
                f"{args.class_names} names {len(names)} classes, {found.file.path} has {found.num_classes}: give the list that "
                "it was trained with"
            )
        return names
    if args.dataset:
        raise UserError(
            f"{found.file.path} does not tell the names of its {found.num_classes} classes: give them with --class_names FILE, "
            "one per line in the order of its training"
        )
    return [str(number) for number in range(found.num_classes)]


# ---------------------------------------------------------------------------------------------------------------------
# What the settings name


def has_split(args: argparse.Namespace, name: str) -> bool:
    """Whether there are videos of a split."""
    if args.holdout:
        return name != "test"
    if args.dataset:
        return (Path(args.dataset) / name).exists() or (Path(args.dataset) / f"{name}.lmdb").exists()
    return getattr(args, f"{name}_list") is not None


def open_videos(
    args: argparse.Namespace, name: str, log: Callable[[str], None], classes: Sequence[str] | None = None
) -> LabelledVideos:
    """The videos of a split. log: is told what is left out. classes: those of the training, whose numbers are to be used."""
    if args.holdout:
        split = Split.open(args.dataset, "train", format=args.format, on_bad_video=args.on_bad_video, note=log)
        train, val = held_out(SplitVideos(split, classes), args.holdout)
        return train if name == "train" else val
    if args.dataset:
        split = Split.open(args.dataset, name, format=args.format, on_bad_video=args.on_bad_video, note=log)
        return SplitVideos(split, classes)
    path = getattr(args, f"{name}_list")
    if path is None:
        raise UserError(f"there are no {name} videos: give --{name}_list")
    return ListedVideos.open(
        path,
        args.root,
        form=args.list_form,
        separator=args.list_separator,
        first_label=args.first_label,
        multi_label=args.multi_label,
        classes=read_names(args) or classes,
        on_bad_video=args.on_bad_video,
        note=log,
    )


def sampling_of(args: argparse.Namespace, backbone: Backbone) -> ClipSampling:
    options = {"study": {"frames_per_group": args.frames_per_group}, "study_dense": {"stride": args.stride}}
    return clip_sampling(
        args.sampling,
        seq_len=args.seq_len,
        frames_per_step=backbone.frames_per_step,
        interval=args.interval,
        **options.get(args.sampling, {}),
    )


def build_recogniser(args: argparse.Namespace, num_classes: int, *, load_pretrained: bool = True) -> Recogniser:
    """The backbone and classifier that `args` name. load_pretrained=False leaves all weights to a checkpoint."""
    backbone = build_backbone(
        args.backbone,
        seq_len=args.seq_len,
        pretrained=load_pretrained and not args.tune_from and (args.pretrained_backbone or not args.no_pretrained),
        **args.backbone_options,
    )
    backbone.set_passes(frames_per_call=args.frames_per_call, recompute=args.checkpoint_activations)
    choose_trained(backbone, args.train_layers, args.lora)
    return Recogniser(backbone, num_classes, dropout=args.dropout, bn=args.bn)
