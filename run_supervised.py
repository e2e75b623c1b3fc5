"""Train ordinary action recognition on labelled clips, and test it on any number of views of a video.

python run_supervised.py -c runs/tsm --dataset data/ucf101 --backbone tsm_resnet50        train, validate, test
python run_supervised.py -c runs/tsm -r                                                   go on after a stop, exactly
python run_supervised.py -c runs/tsm --test_only --num_clips 2 --num_crops 3              other views
python run_supervised.py @scripts/tsm_kinetics_8f.args --root DATA --train_list T --val_list V -c runs/tsm
torchrun --nproc_per_node=8 run_supervised.py -c runs/tsm ...                             on 8 GPUs, see scripts/slurm.sh
python run.py --backbone tsm_resnet50 -pt runs/tsm/checkpoint_best_val.pt ...             then few-shot, on what it learnt
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import itertools
import math
import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

# Read when torch starts its threads. Those that wait in a busy loop take the cores from the processes that read clips.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from backbones.recogniser import Recogniser
from backbones.weights import load_weights, state_dict_in
from clips.clip_dataset import ClipDataset, ViewDataset, read_batches, read_views, steps_per_epoch
from clips.labelled_videos import LabelledVideos, mirrored_classes
from clips.transforms import ClipTransform, MultiScaleCrop, ScaleJitterCrop, ViewCrops
from engine.flags import find_checkpoint, run_program
from engine.processes import Processes, RunningStatistics, synchronise_batch_norms
from engine.row_store import UNKNOWN, RowStore, weights_hash
from engine.settings import print_backbones
from engine.supervised_settings import build_parser, build_recogniser, has_split, open_videos, parse_args, sampling_of
from engine.training import (
    StepProfile,
    Steps,
    Terminated,
    Termination,
    Training,
    load_model_state,
    use_channels_last,
    use_tf32,
)
from results.view_scores import ViewScores, save_predictions
from utils import (
    BEST,
    FINAL,
    LATEST,
    RunFolder,
    UserError,
    is_time,
    load_checkpoint,
    load_tensors,
    seed_everything,
    versions,
    write_json,
)

COLUMNS = ("steps", "epoch", "split", "loss", "accuracy", "top5", "learning_rate")


# ---------------------------------------------------------------------------------------------------------------------
# Settings that become numbers


def learning_rate_at(step: int, per_epoch: int, args: argparse.Namespace) -> float:
    """Of optimiser step `step`, from 0: by whole epochs, after a warm-up by steps."""
    warm_steps = args.warmup_epochs * per_epoch
    if step < warm_steps:
        return args.learning_rate * min(1.0, (step + 1) / warm_steps)
    epoch = step // per_epoch
    if args.lr_type == "cosine":
        return args.learning_rate * 0.5 * (1 + math.cos(math.pi * epoch / args.epochs))
    return args.learning_rate * 0.1 ** sum(epoch >= milestone for milestone in args.lr_steps)


def mirror_of(flip: str, classes: Sequence[str]) -> list[int | None] | None:
    """The class of each class's mirrored clips, None where they are not to be mirrored; None for all: none is."""
    if flip == "off":
        return None
    if flip == "on":
        return list(range(len(classes)))
    mirrored = mirrored_classes(classes)
    return mirrored if flip == "label" else [image if image == own else None for own, image in enumerate(mirrored)]


def training_crop(args: argparse.Namespace, size: int) -> ClipTransform | MultiScaleCrop | ScaleJitterCrop:
    if args.crop == "multi_scale":
        return MultiScaleCrop(size)
    if args.crop == "scale_jitter":
        return ScaleJitterCrop(size, tuple(args.scale_range))
    return ClipTransform(size, train=True)


def mixed(clips: Tensor, targets: Tensor, alpha: float, num_classes: int) -> tuple[Tensor, Tensor]:
    """Each clip with a share of another one, and so its target; the share is drawn once for all (mixup)."""
    share = float(np.random.beta(alpha, alpha))
    other = torch.randperm(len(clips), device=clips.device)
    if targets.ndim == 1:
        targets = F.one_hot(targets, num_classes).float()
    return torch.lerp(clips[other], clips, share), torch.lerp(targets[other], targets, share)


# ---------------------------------------------------------------------------------------------------------------------
# The loops


@dataclasses.dataclass
class Progress:
    """Where a run stands: all of it is in every checkpoint, which is written between optimiser steps."""

    steps_done: int = 0
    window: list[list[float]] = dataclasses.field(default_factory=list)  # [loss, clips right, clips] since the last row
    validations: list[list[float]] = dataclasses.field(default_factory=list)  # [steps_done, accuracy]
    validation_due: bool = False  # the next thing to do
    best_accuracy: float = -1.0
    best_steps: int = 0
    rows_size: int = 0  # bytes of log.csv that belong to these steps


@dataclasses.dataclass(frozen=True)
class Share:
    """What one process has to say about its part of a batch."""

    loss_sum: float
    right: int
    statistics: list[Any]
    bad_videos: list[str]
    terminated: bool


class Trainer(Training):
    """Trains, validates and tests one recogniser as `args` say, in the run folder."""

    unit = "step"
    columns = COLUMNS
    model: Recogniser

    def __init__(
        self,
        args: argparse.Namespace,
        run: RunFolder,
        processes: Processes | None = None,
        termination: Termination | None = None,
    ) -> None:
        super().__init__(args, run, processes, termination)
        self.progress = Progress()

        self.trains = args.epochs > 0 and not args.test_only
        self.videos = self.open_videos()
        self.classes = next(iter(self.videos.values())).classes
        if not self.classes:
            raise UserError("none of the videos has a label: a new recogniser needs some, give other lists")
        if self.trains and args.batch_size % self.processes.size:
            raise UserError(
                f"--batch_size is {args.batch_size}: expected a multiple of {self.processes.size} processes"
            )
        seed_everything(args.seed)
        use_tf32(not args.no_tf32)
        self.model = build_recogniser(args, len(self.classes), load_pretrained=self.checkpoint is None)
        if args.tune_from and self.checkpoint is None:
            self.tune_from(Path(args.tune_from))
        spec = self.model.backbone.input_spec
        spec = spec.unnormalised() if args.normalise == "none" else spec
        self.input_spec = dataclasses.replace(spec, size=args.img_size or spec.size, frames=args.seq_len)
        self.sampling = sampling_of(args, self.model.backbone)
        self.test_views(self.tested, validation=False)  # what cannot be is refused before anything long starts
        if self.trains:
            self.clips = self.training_clips()
        use_channels_last(self.model)
        self.model.to(self.device)
        if args.bn == "sync":
            synchronise_batch_norms(self.model)
        if args.compile:
            self.model.backbone.compile_passes()
        self.per_epoch = steps_per_epoch(len(self.videos["train"]), args.batch_size) if self.trains else 0
        self.total_steps = args.epochs * self.per_epoch
        groups = self.model.parameter_groups(args.layer_rates, args.weight_decay)
        optimizer = torch.optim.SGD(groups, lr=args.learning_rate, momentum=args.momentum, nesterov=args.nesterov)
        self.steps = Steps(optimizer, self.processes, precision=args.precision, clip_norm=args.clip_gradient)
        if self.checkpoint is not None:
            self.restore(self.checkpoint)
        self.processes.align(self.model)

    # Data ------------------------------------------------------------------------------------------------------------

    def open_videos(self) -> dict[str, LabelledVideos]:
        """The splits that will be used. A test takes its classes from the checkpoint, all others from the training."""
        args = self.args
        classes = self.checkpoint["classes"] if self.checkpoint is not None else None
        videos = {}
        if self.trains:
            videos["train"] = open_videos(args, "train", classes)
            classes = videos["train"].classes
            if args.val_freq and has_split(args, "val"):
                videos["val"] = open_videos(args, "val", classes)
        self.tested = args.test_on or ("test" if has_split(args, "test") else "val")
        if self.tested not in videos:
            videos[self.tested] = open_videos(args, self.tested, classes)
        if self.checkpoint is not None and videos[self.tested].classes != self.checkpoint["classes"]:
            raise UserError(
                f"{args.class_names} names other classes than those of the checkpoint, or in another order: expected "
                f"{', '.join(self.checkpoint['classes'][:3])}, ...; give videos of the classes it was trained on"
            )
        return videos

    def training_clips(self) -> ClipDataset:
        args = self.args
        return ClipDataset(
            self.videos["train"],
            sampling=self.sampling,
            transform=training_crop(args, self.input_spec.size),
            seed=args.seed,
            mirror=mirror_of(args.flip, self.classes),
            on_bad_video=args.on_bad_video,
        )

    def view_crops(self, num_crops: int | None = None) -> ViewCrops:
        size = self.args.crop_size or self.input_spec.size
        return ViewCrops(size, num_crops or self.args.num_crops, self.args.short_side)

    def test_views(self, split: str, *, validation: bool) -> ViewDataset:
        """All views of the videos of a split; in a validation one centre crop of one clip."""
        args = self.args
        return ViewDataset(
            self.videos[split],
            sampling=self.sampling,
            crops=self.view_crops(1 if validation else None),
            num_clips=1 if validation else args.num_clips,
            clips="fixed" if validation else args.clips,
            seed=args.seed,
            on_bad_video=args.on_bad_video,
        )

    # Training --------------------------------------------------------------------------------------------------------

    def train(self) -> None:
        args, progress = self.args, self.progress
        mirror = self.clips.mirror
        if mirror is not None and args.flip == "auto" and None in mirror:
            self.run.log(
                f"clips of {mirror.count(None)} classes are not mirrored, as of '{self.classes[mirror.index(None)]}' "
                "(--flip label|on|off)"
            )
        if args.flip in ("auto", "label") and self.videos["train"].has_no_names:
            self.run.log(
                "all clips are mirrored: lists have no class names that could say left or right (--class_names, --flip)"
            )
        self.model.train()
        steps = range(progress.steps_done, self.total_steps)
        batches = read_batches(
            self.clips, steps, batch_size=args.batch_size, rank=self.processes.rank,
            world_size=self.processes.size, num_workers=args.num_workers,
        )  # fmt: skip
        profile = StepProfile(self.run.path / "profile" if args.profile and self.run.writes else None)
        bar = self.bar(self.total_steps, "train", "step", initial=progress.steps_done)
        with bar, closing(batches), self.termination.deferred():
            if progress.validation_due:
                self.validate()
            for step in steps:
                with profile.around_step():
                    self.train_step(step, batches)
                bar.update()
                bar.set_postfix(loss=f"{progress.window[-1][0]:.3f}", refresh=False)
                self.log_and_save()
                if self.ending:
                    raise Terminated
                if profile.is_new:
                    self.run.log(f"profile of one step in {profile.folder}:\n{profile.table}")
                if progress.validation_due:
                    self.validate()

    def train_step(self, step: int, batches: Iterator[dict[str, Any]]) -> None:
        """One optimiser step on the mean gradient of a batch's clips, of which each process has its share."""
        args = self.args
        started = time.perf_counter()
        batch = next(batches)
        data_seconds = time.perf_counter() - started
        seed_everything(args.seed, step + 1, self.processes.rank)
        statistics = RunningStatistics(self.model) if self.processes.size > 1 else None
        clips, labels = (batch[name].to(self.device, non_blocking=True) for name in ("clips", "labels"))
        calls = math.ceil(len(clips) / (args.clips_per_call or len(clips)))
        outcomes = []
        for call in range(calls):  # each takes what one of so many processes would take
            with statistics.collect() if statistics else contextlib.nullcontext():
                outcomes.append(self.train_call(clips[call::calls], labels[call::calls]))
        losses, right = torch.stack(outcomes).sum(dim=0).tolist()
        share = Share(
            loss_sum=losses,
            right=int(right),
            statistics=statistics.passes if statistics else [],
            bad_videos=batch["bad_videos"],
            terminated=self.termination.asked,
        )
        shares = self.processes.gather(share)
        self.leave_out([message for share in shares for message in share.bad_videos])
        self.ending = any(share.terminated for share in shares)
        loss = sum(share.loss_sum for share in shares) / args.batch_size
        if not math.isfinite(loss):
            raise UserError(
                f"the loss became {loss} in step {step} (videos {', '.join(batch['videos'][:3])}, ...): lower "
                "--learning_rate or use --precision fp32; the last checkpoint is kept"
            )
        if statistics:
            statistics.merge(self.processes.in_order([share.statistics for share in shares]))
        self.steps.take(learning_rate_at(step, self.per_epoch, args))
        self.progress.steps_done += 1
        self.progress.window.append([loss, sum(share.right for share in shares), args.batch_size])
        self.seconds += (data_seconds, time.perf_counter() - started - data_seconds)

    def train_call(self, clips: Tensor, labels: Tensor) -> Tensor:
        """Forward and backward of some clips, uint8 on the device. Returns [sum of losses, clips that are right]."""
        args = self.args
        clips, targets = self.input_spec.normalise(clips), labels
        if args.mixup:
            clips, targets = mixed(clips, targets, args.mixup, len(self.classes))
        with self.autocast():
            logits = self.model(clips)
        if args.multi_label:
            losses = F.binary_cross_entropy_with_logits(logits, targets, reduction="none").sum(dim=1)
            right = labels.gather(1, logits.argmax(dim=1, keepdim=True)).sum()
        else:
            losses = F.cross_entropy(logits, targets, reduction="none", label_smoothing=args.label_smoothing)
            right = (logits.argmax(dim=1) == labels).sum()
        self.steps.backward(losses.sum() / args.batch_size)
        return torch.stack([losses.detach().sum().float(), right.float()])

    def log_and_save(self) -> None:
        """Writes the row that is due, and the checkpoint, but not before a validation, which saves when it is done."""
        progress, args = self.progress, self.args
        done = progress.steps_done
        ends_epoch = done % self.per_epoch == 0
        if is_time(done, args.print_freq) or ends_epoch:
            self.log_window()
        progress.validation_due = (
            "val" in self.videos
            and ends_epoch
            and (is_time(done // self.per_epoch, args.val_freq) or done == self.total_steps)
        )
        if self.ending or ((is_time(done, args.save_freq) or ends_epoch) and not progress.validation_due):
            self.save(LATEST)

    def log_window(self) -> None:
        progress = self.progress
        losses, right, clips = np.array(progress.window).T
        loss, accuracy = float(losses.mean()), float(100 * right.sum() / clips.sum())
        data_seconds, compute_seconds = self.seconds / len(losses)
        self.seconds[:] = 0
        progress.window.clear()
        done = progress.steps_done
        rate = learning_rate_at(done - 1, self.per_epoch, self.args)
        epoch = (done - 1) // self.per_epoch
        self.run.row(
            steps=done, epoch=epoch, split="train", loss=repr(loss), accuracy=repr(accuracy), learning_rate=rate
        )
        self.run.log(
            f"step {done}/{self.total_steps}, epoch {epoch + 1}/{self.args.epochs}  loss {loss:.4f}  accuracy "
            f"{accuracy:.2f} %  {data_seconds:.3f} s data + {compute_seconds:.3f} s compute per step"
        )
        self.run.scalars(
            done, train__loss=loss, train__accuracy=accuracy, train__learning_rate=rate,
            seconds_per_step__data=data_seconds, seconds_per_step__compute=compute_seconds,
        )  # fmt: skip

    # Evaluation ------------------------------------------------------------------------------------------------------

    def view_logits(self, dataset: ViewDataset, store: RowStore) -> set[int]:
        """Fills a store (V, A, C) with the logits of all views that it lacks. Returns the videos that cannot be read."""
        self.model.eval()
        per_call = self.args.views_per_call
        own = list(self.processes.share(range(len(dataset))))
        together = max(1, per_call // store.shape[1])
        groups = [own[first : first + together] for first in range(0, len(own), together)]
        # Whole groups, so that a test that was stopped computes the rest in the same company, to the same bits.
        groups = [group for group in groups if UNKNOWN in store.known[group]]
        missing = [index for group in groups for index in group]
        bad: dict[int, str] = {}
        with self.bar(len(missing), dataset.videos.name, "video", leave=False) as bar, torch.inference_mode():
            reading = read_views(dataset, missing, num_workers=self.args.num_workers, device=self.device)
            for group in groups:
                read = list(itertools.islice(reading, len(group)))
                bad |= {video["index"]: video["bad_videos"][0] for video in read if video["bad_videos"]}
                if good := [video for video in read if not video["bad_videos"]]:
                    views = torch.cat([video["views"] for video in good])
                    logits = torch.cat([self.logits_of(part) for part in views.split(per_call)])
                    store.write([video["index"] for video in good], logits.view(len(good), *store.shape[1:]).numpy())
                bar.update(len(group))
        bad = {index: message for messages in self.processes.gather(bad) for index, message in messages.items()}
        self.leave_out(list(bad.values()))
        if len(bad) == len(dataset):
            raise UserError(f"none of the {len(bad)} videos of {dataset.videos.root} could be read: see the log")
        store.refresh()
        self.model.train()
        return set(bad)

    def logits_of(self, views: Tensor) -> Tensor:
        """uint8 views (A, T, 3, H, W) on the device -> float32 (A, C) in memory."""
        with self.autocast():
            return self.model(self.input_spec.normalise(views)).float().cpu()

    def scores(self, split: str, key: dict[str, Any], *, validation: bool) -> ViewScores:
        """The scores of all views of a split under the present weights, each process its share of the videos.

        key: what they depend on, beside weights, views and number format. A test that was stopped is gone on with.
        """
        dataset = self.test_views(split, validation=validation)
        videos, crops = dataset.videos, dataset.crops
        views = dataset.num_clips * crops.num_crops
        protocol = (
            f"{self.args.seq_len} frames by {self.args.sampling} sampling, {dataset.num_clips} {dataset.clips} clip(s) x "
            f"{crops.num_crops} crop(s) of {crops.size} px from a shorter side of {crops.resized_side} px"
        )
        key = {
            **key,
            "weights": weights_hash(self.model),
            "videos": videos.fingerprint,
            "protocol": protocol,
            "sampling": dataclasses.asdict(self.sampling),
            "input_spec": dataclasses.asdict(self.input_spec),
            "precision": self.args.precision,
            "seed": self.args.seed,
        }
        key = self.processes.gather(key)[0]  # on unlike machines weights may differ in a last bit
        if not self.processes.is_first:
            self.processes.meet()  # the first makes its files
        store = RowStore(self.run.path / "scores", key, (len(videos), views, len(self.classes)))
        if self.processes.is_first:
            self.processes.meet()
        self.processes.meet()  # none writes before all have seen the same rows
        try:
            bad = self.view_logits(dataset, store)
            kept = [index for index in range(len(videos)) if index not in bad]
            result = ViewScores(
                videos=[videos.video_name(index) for index in kept],
                classes=self.classes,
                labels=videos.labels[kept],
                logits=store.read(kept).numpy(),
                protocol=protocol,
                num_crops=crops.num_crops,
                num_clips=dataset.num_clips,
                multi_label=videos.multi_label,
            )
        except BaseException:
            store.close(keep=True)
            raise
        if not self.processes.is_first:
            store.close(keep=True)
        self.processes.meet()  # nobody reads any more
        if self.processes.is_first:
            store.close(keep=False)
        return result

    def validate(self) -> None:
        """Validates on one view of each video, keeps the model if it is the best so far, and saves."""
        progress = self.progress
        try:
            with self.termination.at_once():
                scores = self.scores("val", {"steps": progress.steps_done}, validation=True)
        except (Terminated, UserError):
            if self.termination.asked:  # also where another process has ended before this one heard of it
                self.save(LATEST)
                raise Terminated from None
            raise
        progress.validation_due = False
        found = scores.summary()
        main = found["mean_average_precision" if scores.multi_label else "accuracy"]
        progress.validations.append([progress.steps_done, main])
        is_best = main > progress.best_accuracy
        if is_best:
            progress.best_accuracy, progress.best_steps = main, progress.steps_done
        epoch = progress.steps_done // self.per_epoch
        top5 = found.get("top5", "")
        self.run.row(
            steps=progress.steps_done, epoch=epoch - 1, split="val", accuracy=repr(main), top5=top5 and repr(top5)
        )
        self.run.log(
            f"validation after epoch {epoch}: {said(found)}{', the best so far' if is_best else ''}  "
            f"({scores.protocol})"
        )
        self.run.scalars(progress.steps_done, val__accuracy=main)
        if is_best:
            self.save(BEST)
        self.save(LATEST)
        self.model.train()

    def test(self, checkpoint_path: Path) -> None:
        """Tests the weights of a checkpoint; writes scores.npz, predictions.csv and results.json."""
        args = self.args
        checkpoint = load_checkpoint(checkpoint_path)
        load_model_state(self.model, checkpoint, checkpoint_path)
        steps_done = checkpoint["progress"]["steps_done"]
        key = {"checkpoint": checkpoint_path.name, "steps": steps_done}
        scores = self.scores(self.tested, key, validation=False)
        found = scores.summary(args.fusion)
        chosen = checkpoint_path.name == BEST and self.tested == "val"
        results = {
            **found,
            "seed": args.seed,
            "split": self.tested,
            "dataset": args.dataset or getattr(args, f"{self.tested}_list"),
            "split_fingerprint": self.videos[self.tested].fingerprint,
            "protocol": f"{scores.protocol}, mean of {args.fusion}",
            "views": scores.logits.shape[1],
            "left_out": len(self.videos[self.tested]) - len(scores.videos),
            "backbone": args.backbone,
            "checkpoint": checkpoint_path.name,
            "checkpoint_steps": steps_done,
            "selected_on": "val" if checkpoint_path.name == BEST else "nothing",
            "precision": args.precision,
            "versions": versions(),
        }
        if self.run.writes:
            self.retire_results()
            scores.save(self.run.path / "scores.npz")
            save_predictions(
                self.run.path / "predictions.csv",
                scores.videos,
                scores.classes,
                scores.labels,
                scores.fused(args.fusion),
                scores.confidence(args.fusion),
            )
            write_json(self.run.path / "results.json", results)  # last: its presence says that the test is done
        self.run.log(
            f"test on {self.tested}: {said(found)}  ({args.backbone}, {results['protocol']}, {checkpoint_path.name})"
        )
        if chosen:
            self.run.log("this checkpoint was CHOSEN ON THESE VIDEOS: a figure to publish is that of the final one, -m")

    def retire_results(self) -> None:
        if (self.run.path / "results.json").exists():
            for name in ("scores.npz", "predictions.csv", "results.json"):
                self.run.retire(name)

    # Checkpoints -----------------------------------------------------------------------------------------------------

    def tune_from(self, path: Path) -> None:
        """Takes the backbone of another recogniser, and its classifier where the classes are the same."""
        content = load_tensors(path)
        state = state_dict_in(content, str(path))
        backbone = self.model.backbone
        report = load_weights(getattr(backbone, "net", backbone), state, str(path))
        same = isinstance(content, dict) and content.get("classes") == self.classes
        if same:
            self.model.classifier.load_state_dict(
                {name: state[f"classifier.{name}"] for name in self.model.classifier.state_dict()}
            )
        self.run.log(f"{report}; {'with its classifier' if same else 'with a new classifier'}")

    def opened(self) -> dict[str, LabelledVideos]:
        return self.videos

    def save(self, name: str, **more: Any) -> None:
        super().save(name, classes=self.classes, **more)

    def restore(self, checkpoint: dict[str, Any]) -> None:
        super().restore(checkpoint)
        if not self.args.test_only:
            self.run.log(f"going on after {self.progress.steps_done} steps")

    # All of it -------------------------------------------------------------------------------------------------------

    def learn(self) -> None:
        """Train, then test: on test videos what validation chose, on validation videos the final model."""
        args = self.args
        if args.test_only:
            self.test(Path(args.test_model_name))
            return
        finished = self.progress.steps_done >= self.total_steps and (self.run.path / "results.json").exists()
        if args.resume_from_checkpoint and (self.run.path / FINAL).exists() and finished:
            self.run.log(f"this run is finished ({args.epochs} epochs): raise --epochs to train on, or use --test_only")
            return
        self.run.open_board(self.progress.steps_done)
        if self.progress.steps_done < self.total_steps:
            self.retire_results()  # of a shorter training: with them, this one would pass for finished
        if self.trains:
            self.train()
        self.save(LATEST)
        self.save(FINAL)
        if self.termination.asked:  # too late for the last step to take note
            raise Terminated
        self.processes.meet()  # the files that a test needs are there
        default = FINAL if self.tested == "val" else None
        self.test(find_checkpoint(self.run.path, args.test_model_name or default))
        if self.run.writes:
            shutil.rmtree(self.run.path / "scores", ignore_errors=True)  # what an interrupted validation may have left


def said(found: dict[str, Any]) -> str:
    """A summary in words."""
    if not found:
        return "videos without labels, no accuracy"
    if "mean_average_precision" in found:
        return f"mean average precision {found['mean_average_precision']:.2f} %, {found['videos']} videos"
    return (
        f"top-1 {found['accuracy']:.2f} +/- {found['ci95']:.2f} %, top-5 {found['top5']:.2f} %, mean over classes "
        f"{found['mean_class_accuracy']:.2f} %, {found['videos']} videos"
    )


def main(argv: Sequence[str] | None = None) -> int:
    return run_program(
        list(sys.argv[1:] if argv is None else argv),
        name=Path(__file__).name,
        first_look=build_parser(add_help=False),
        parse=partial(parse_args, description=__doc__),
        print_list=print_backbones,
        training=Trainer,
    )


if __name__ == "__main__":
    sys.exit(main())
