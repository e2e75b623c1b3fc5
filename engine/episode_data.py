"""The episodes of a run: its splits, and a data set of episodes of each."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from clips.episodes import seal_episodes, unseal_episodes
from clips.transforms import ClipTransform, InputSpec
from clips.video_split import Split
from engine.settings import will_validate
from utils import UserError
from video_reader import VideoDataset

Log = Callable[[str], None]


def ways_and_shots(args: argparse.Namespace) -> tuple[list[int], list[int]]:
    """Those of validation and test; the first of each is the one that counts."""
    return args.way_test or [args.way], args.shot_test or [args.shot]


def test_dataset(args: argparse.Namespace) -> str:
    """The data set whose test split is answered."""
    dataset: str = args.test_dataset or args.dataset
    return dataset


def open_splits(args: argparse.Namespace, log: Log) -> dict[str, Split]:
    """The splits that will be used, by role, each checked for enough classes and videos. log: is told what is left out."""
    ways, shots = ways_and_shots(args)
    sizes = {"test": (max(ways), max(shots), args.query_per_class_test)}
    names = {"test": "test"}
    if not args.test_only and args.training_iterations:
        sizes["train"], names["train"] = (args.way, args.shot, args.query_per_class), "train"
        if will_validate(args):
            sizes["val"] = (ways[0], shots[0], args.query_per_class_test)
            names["val"] = "test" if args.val_on_test else "val"
    splits: dict[str, Split] = {}
    for role in [role for role in ("train", "val", "test") if role in sizes]:
        dataset = test_dataset(args) if names[role] == "test" else args.dataset
        splits[role] = Split.open(dataset, names[role], format=args.format, on_bad_video=args.on_bad_video, note=log)
        splits[role].check_episodes(*sizes[role])
    return splits


def open_episodes(
    splits: Mapping[str, Split], args: argparse.Namespace, model: Any, input_spec: InputSpec, log: Log
) -> dict[str, VideoDataset]:
    """The episodes of each split, by role, for a model's input."""
    ways, shots = ways_and_shots(args)
    options: dict[str, Any] = {
        "seq_len": args.seq_len,
        "frames_per_step": model.backbone.frames_per_step,
        "seed": args.seed,
        "sampling": args.sampling,
        "on_bad_video": args.on_bad_video,
    }
    datasets = {}
    for role, split in splits.items():
        if role == "train":
            sizes = {"way": args.way, "shot": args.shot, "queries": args.query_per_class}
            transform = training_transform(split, args, model, input_spec, log)
        else:
            way, shot = (max(ways), max(shots)) if role == "test" else (ways[0], shots[0])
            sizes = {"way": way, "shot": shot, "queries": args.query_per_class_test, "noisy": args.noisy_support}
            transform = ClipTransform(input_spec.size, interpolation=input_spec.interpolation, train=False, flip=False)
        support = dataclasses.replace(transform, flip=transform.flip and args.flip != "queries")
        datasets[role] = VideoDataset(split, transform=transform, support_transform=support, **sizes, **options)
    if args.episodes:
        use_sealed_episodes(datasets["test"], Path(args.episodes), args.num_test_tasks, log)
    return datasets


def training_transform(
    split: Split, args: argparse.Namespace, model: Any, input_spec: InputSpec, log: Log
) -> ClipTransform:
    """Random crops and mirror images, but not of videos that are encoded once, nor where a class names a direction."""
    if args.freeze_backbone and model.works_on_features:
        log("the backbone is frozen: each training video is encoded once, from its middle crop, never mirrored")
        return ClipTransform(input_spec.size, interpolation=input_spec.interpolation, train=False, flip=False)
    directed = split.direction_classes()
    if args.flip == "auto" and directed:
        log(f"training clips are not mirrored: class '{directed[0]}' names a direction (--flip on|off)")
    flip = args.flip in ("on", "queries") or (args.flip == "auto" and not directed)
    return ClipTransform(input_spec.size, interpolation=input_spec.interpolation, train=True, flip=flip)


def use_sealed_episodes(dataset: VideoDataset, path: Path, num_tasks: int, log: Log) -> None:
    """Tests on the episodes that a file holds; draws and writes them where there is no such file."""
    if not path.exists():
        seal_episodes(path, dataset.split, [dataset.plan(i) for i in range(num_tasks)], dataset.seed)
        log(f"sealed {num_tasks} episodes in {path}")
    sealed, plans = unseal_episodes(path, dataset.split)
    wanted = {
        "way": (sealed["way"], dataset.way, sealed["way"] >= dataset.way),
        "shot": (sealed["shot"], dataset.shot, sealed["shot"] >= dataset.shot),
        "queries_per_class": (sealed["queries_per_class"], dataset.queries, None),
        "noisy_support": (sealed["noisy_support"], dataset.noisy, None),
        "number of tasks": (len(plans), num_tasks, len(plans) >= num_tasks),
    }
    for name, (found, asked, enough) in wanted.items():
        if not (found == asked if enough is None else enough):
            raise UserError(
                f"{path} holds episodes with {name} {found}, the flags ask for {asked}: change the flags, or name another "
                "file to seal new episodes"
            )
    dataset.plans = [plan.narrowed(dataset.way, dataset.shot) for plan in plans]
