"""Train ordinary action recognition on labelled clips, and test it on any number of views of a video.

python run_supervised.py -c runs/tsm --dataset data/ucf101 --holdout 0.1                  on base classes: train, validate, test
python run_supervised.py -c runs/tsm -r                                                   go on after a stop, exactly
python run_supervised.py -c runs/tsm --test_only --num_clips 2 --num_crops 3              other views
python run_supervised.py -c runs/theirs --test_only -m TSM_kinetics_RGB_...pth ...        what others have released
python run_supervised.py @scripts/recipes/tsm_kinetics_8f.args --root DATA --train_list T --val_list V -c runs/tsm
torchrun --nproc_per_node=8 run_supervised.py -c runs/tsm ...                             on 8 GPUs, see scripts/slurm.sh
python run.py --backbone tsm_resnet50 -pt runs/tsm/checkpoint_best_val.pt ...             then few-shot, on what it learnt
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import math
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

# Read when torch starts its threads. Those that wait in a busy loop take the cores from the processes that read clips.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C during the imports ends it, without a traceback

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from backbones.figures import print_backbones
from backbones.recogniser import Recogniser
from clips.clip_dataset import ClipDataset, ViewDataset, read_batches, steps_per_epoch
from clips.labelled_videos import LabelledVideos, mirrors_by_flag
from clips.transforms import ViewCrops, mixup, training_crop
from engine.processes import RunningStatistics
from engine.program import Program
from engine.recognisers import check_untrained, is_untrained, read_recogniser, tune_from
from engine.supervised_settings import (
    build_recogniser,
    has_split,
    open_videos,
    parse_args,
    sampling_of,
)
from engine.training import Progress, Training, Validation, load_model_state
from engine.view_calls import ViewCalls
from results.marks import marks
from results.view_scores import ViewScores, in_words, save_predictions
from utils import (
    BEST,
    FINAL,
    UserError,
    is_time,
    load_checkpoint,
    seed_everything,
    versions,
    write_json,
)

COLUMNS = ("steps", "epoch", "split", "loss", "accuracy", "top5", "learning_rate")


def main(argv: Sequence[str] | None = None) -> int:
    with Program(__file__, argv) as program:
        args = parse_args(program.argv, description=__doc__)
        if args.list:
            print_backbones()
            return 0
        trainer = program.build(Trainer, args)
        if args.test_only:
            trainer.test(Path(args.test_model_name))
        elif not trainer.is_finished():
            trainer.train()
            trainer.test(trainer.save_final())
            trainer.remove_stores()
    return program.exit_code


@dataclasses.dataclass
class StepProgress(Progress):
    steps_done: int = 0
    best_steps: int = 0

    @property
    def done(self) -> int:
        return self.steps_done

    def mark_best(self) -> None:
        self.best_steps = self.steps_done


@dataclasses.dataclass(frozen=True)
class Share:
    """What one process reports of its share of a batch."""

    loss_sum: float
    right: int
    statistics: list[Any]
    bad_videos: list[str]
    terminated: bool


def learning_rate_at(step: int, per_epoch: int, args: argparse.Namespace) -> float:
    """Of optimiser step `step`, from 0: by whole epochs, after a warm-up by steps."""
    warm_steps = args.warmup_epochs * per_epoch
    if step < warm_steps:
        return args.learning_rate * min(1.0, (step + 1) / warm_steps)
    epoch = step // per_epoch
    if args.lr_type == "cosine":
        return args.learning_rate * 0.5 * (1 + math.cos(math.pi * epoch / args.epochs))
    return args.learning_rate * 0.1 ** sum(epoch >= milestone for milestone in args.lr_steps)


class Trainer(Training):
    """Trains, validates and tests one recogniser as `args` say, in the run folder."""

    unit = "step"
    length_flag = "--epochs"
    columns = COLUMNS
    stores = "scores"
    progress_type = StepProgress
    model: Recogniser
    progress: StepProgress

    # Build -----------------------------------------------------------------------------------------------------------

    def read_checkpoint(self, path: Path) -> dict[str, Any]:
        checkpoint, sentence = read_recogniser(path, self.args)
        if sentence:
            self.run.log(sentence)
        return checkpoint

    def open_splits(self) -> dict[str, LabelledVideos]:
        """The splits that will be used. A test takes its classes from the checkpoint, all others from the training."""
        args = self.args
        self.trains = args.epochs > 0 and not args.test_only
        classes = self.checkpoint["classes"] if self.checkpoint is not None else None
        videos = {}
        if self.trains:
            videos["train"] = open_videos(args, "train", self.run.log, classes)
            classes = videos["train"].classes
            if args.val_freq and has_split(args, "val"):
                videos["val"] = open_videos(args, "val", self.run.log, classes)
        self.tested = args.test_on or ("test" if has_split(args, "test") else "val")
        if self.tested not in videos:
            videos[self.tested] = open_videos(args, self.tested, self.run.log, classes)
        if self.checkpoint is not None and videos[self.tested].classes != self.checkpoint["classes"]:
            raise UserError(
                f"{args.class_names} names other classes than those of the checkpoint, or in another order: expected "
                f"{', '.join(self.checkpoint['classes'][:3])}, ...; give videos of the classes it was trained on"
            )
        self.classes = next(iter(videos.values())).classes
        if not self.classes:
            raise UserError("none of the videos has a label: a new recogniser needs some, give other lists")
        if self.trains and args.batch_size % self.processes.size:
            raise UserError(
                f"--batch_size is {args.batch_size}: expected a multiple of {self.processes.size} processes"
            )
        return videos

    def build_model(self) -> Recogniser:
        args = self.args
        model = build_recogniser(args, len(self.classes), load_pretrained=self.checkpoint is None)
        self.classifier_is_new = self.checkpoint is None or is_untrained(self.checkpoint)
        if args.tune_from and self.checkpoint is None:
            is_trained, sentence = tune_from(model, Path(args.tune_from), self.classes, args)
            self.classifier_is_new = not is_trained
            self.run.log(sentence)
        if not self.trains and self.classifier_is_new:
            check_untrained(args.test_model_name if args.test_only else "--epochs 0", args)
        elif args.untrained:
            self.run.log("warning: --untrained has no effect, as the classifier is trained")
        return model

    def prepare_data(self) -> None:
        args, size = self.args, self.input_spec.size
        self.sampling = sampling_of(args, self.model.backbone)
        self.calls = ViewCalls(
            self.model, self.input_spec, self.processes, args, folder=self.run.path / self.stores, bar=self.bar,
            log=self.run.log,
        )  # fmt: skip
        self.views(self.tested, validation=False)  # what cannot be is refused before anything long starts
        if self.trains:
            self.clips = ClipDataset(
                self.splits["train"],
                sampling=self.sampling,
                transform=training_crop(args.crop, size, tuple(args.scale_range), self.input_spec.interpolation),
                seed=args.seed,
                mirror=mirrors_by_flag(args.flip, self.classes),
                on_bad_video=args.on_bad_video,
            )
        self.per_epoch = steps_per_epoch(len(self.splits["train"]), args.batch_size) if self.trains else 0
        self.total_steps = args.epochs * self.per_epoch

    def views(self, split: str, *, validation: bool) -> ViewDataset:
        """All views of the videos of a split; in a validation one centre crop of one clip."""
        args = self.args
        return ViewDataset(
            self.splits[split],
            sampling=self.sampling,
            crops=ViewCrops(
                args.crop_size or self.input_spec.size,
                1 if validation else args.num_crops,
                args.short_side,
                self.input_spec.interpolation,
            ),
            num_clips=1 if validation else args.num_clips,
            clips="fixed" if validation else args.clips,
            seed=args.seed,
            on_bad_video=args.on_bad_video,
        )

    def distribute_model(self) -> None:
        self.model.backbone.clip_pass.devices = [torch.device("cuda", n) for n in range(self.args.num_gpus)]

    def build_optimizer(self) -> torch.optim.Optimizer:
        args = self.args
        groups = self.model.parameter_groups(args.layer_rates, args.weight_decay)
        return torch.optim.SGD(groups, lr=args.learning_rate, momentum=args.momentum, nesterov=args.nesterov)

    # Train -----------------------------------------------------------------------------------------------------------

    def train(self) -> None:
        """Trains batch by batch for --epochs, and validates after every --val_freq of them."""
        args, progress = self.args, self.progress
        self.run.open_board(resumed_at=progress.steps_done)
        if progress.steps_done < self.total_steps:
            self.retire_results()  # of a shorter training: with them, this one would pass for finished
        if not self.trains:
            return
        self.log_mirroring()
        steps = range(progress.steps_done, self.total_steps)
        batches = read_batches(
            self.clips, steps, batch_size=args.batch_size, rank=self.processes.rank,
            world_size=self.processes.size, num_workers=args.num_workers,
        )  # fmt: skip
        with closing(batches), self.stepping(self.total_steps) as bar:
            for step in steps:
                with self.profile.around_step():
                    loss = self.train_step(step, batches)
                bar.update()
                bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
                epoch, left = divmod(progress.steps_done, self.per_epoch)
                ends_epoch, is_last = left == 0, progress.steps_done == self.total_steps
                if is_time(progress.steps_done, args.print_freq) or ends_epoch:
                    self.log_window()
                self.finish_step(
                    save=is_time(progress.steps_done, args.save_freq) or ends_epoch,
                    validate="val" in self.splits and ends_epoch and (is_time(epoch, args.val_freq) or is_last),
                )

    def log_mirroring(self) -> None:
        mirror = self.clips.mirror
        if mirror is not None and self.args.flip == "auto" and None in mirror:
            self.run.log(
                f"clips of {mirror.count(None)} classes are not mirrored, as of '{self.classes[mirror.index(None)]}' "
                "(--flip label|on|off)"
            )
        if self.args.flip in ("auto", "label") and self.splits["train"].has_no_names:
            self.run.log(
                "all clips are mirrored: lists have no class names that could say left or right (--class_names, --flip)"
            )

    def train_step(self, step: int, batches: Iterator[dict[str, Any]]) -> float:
        """One optimiser step on the mean gradient of a batch's clips, each process on its share. Returns their mean loss."""
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
        return loss

    def train_call(self, clips: Tensor, labels: Tensor) -> Tensor:
        """Forward and backward of some clips, uint8 on the device. Returns [sum of losses, clips that are right]."""
        args = self.args
        clips, targets = self.input_spec.normalise(clips), labels
        if args.mixup:
            clips, targets = mixup(clips, targets, args.mixup, len(self.classes))
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

    def has_trained(self) -> bool:
        return self.progress.steps_done >= self.total_steps

    # Validate --------------------------------------------------------------------------------------------------------

    def validate(self) -> Validation:
        """On one view of each video."""
        steps_done = self.progress.steps_done
        scores = self.scores("val", {"steps": steps_done}, validation=True)
        found = scores.summary()
        epoch = steps_done // self.per_epoch
        sentence = f"validation after epoch {epoch}: {in_words(found)}  ({scores.protocol})"
        accuracy = found["mean_average_precision" if scores.multi_label else "accuracy"]
        top5 = found.get("top5", "")
        return Validation("val", accuracy, sentence, columns={"epoch": epoch - 1, "top5": top5 and repr(top5)})

    def scores(self, split: str, key: dict[str, Any], *, validation: bool) -> ViewScores:
        """The scores of all views of a split under the present weights. key: what else they depend on."""
        scores, bad_videos = self.calls.scores(self.views(split, validation=validation), key)
        self.leave_out(bad_videos)
        self.model.train()
        return scores

    # Test ------------------------------------------------------------------------------------------------------------

    def test(self, checkpoint_path: Path) -> None:
        """Tests the weights of a checkpoint; writes scores.npz, predictions.csv and results.json."""
        args = self.args
        checkpoint = self.checkpoint if self.checkpoint and args.test_only else load_checkpoint(checkpoint_path)
        if untrained := is_untrained(checkpoint):
            check_untrained(str(checkpoint_path), args)
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
            "split_fingerprint": self.splits[self.tested].fingerprint,
            "protocol": f"{scores.protocol}, mean of {args.fusion}",
            "views": scores.logits.shape[1],
            "left_out": len(self.splits[self.tested]) - len(scores.videos),
            "backbone": args.backbone,
            "checkpoint": checkpoint_path.name,
            "checkpoint_steps": steps_done,
            "selected_on": "val" if checkpoint_path.name == BEST else "nothing",
            "untrained": untrained,
            "precision": args.precision,
            "versions": versions(),
        }
        results["marks"] = marks(results)
        if self.run.writes:
            self.retire_results()
            dataclasses.replace(scores, marks=results["marks"]).save(self.run.path / "scores.npz")
            save_predictions(
                self.run.path / "predictions.csv",
                scores.videos,
                scores.classes,
                scores.labels,
                scores.fused(args.fusion),
                scores.confidence(args.fusion),
            )
            write_json(self.run.path / "results.json", results)  # last: its presence says that the test is done
        how = ", ".join([args.backbone, results["protocol"], checkpoint_path.name, *results["marks"]])
        self.run.log(f"test on {self.tested}: {in_words(found)}  ({how})")
        if chosen:
            self.run.log("this checkpoint was CHOSEN ON THESE VIDEOS: a figure to publish is that of the final one, -m")
        if untrained:
            self.run.log("the classifier is UNTRAINED (--untrained): this says nothing of the network")

    def retire_results(self) -> None:
        if (self.run.path / "results.json").exists():
            for name in ("scores.npz", "predictions.csv", "results.json"):
                self.run.retire(name)

    def test_model_by_default(self) -> str | None:
        """Validation videos test the final model, which they have not chosen."""
        return FINAL if self.tested == "val" else None

    def save(self, name: str, **more: Any) -> None:
        untrained = self.classifier_is_new and self.progress.steps_done == 0
        super().save(name, classes=self.classes, untrained=untrained, **more)


if __name__ == "__main__":
    sys.exit(main())
