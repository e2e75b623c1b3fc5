"""Train, validate and test few-shot action recognition on episodes.

python run.py -c runs/first --dataset demo --method trx --backbone resnet18    a run: train, validate, test
python run.py -c runs/first -r                                                 go on after a stop, exactly
python run.py -c runs/first --test_only --shot_test 1                          test its best checkpoint another way
python run.py @scripts/trx_ssv2_otam_5shot.args --dataset DATA -c runs/trx     a recipe of a published row
python run.py --list                                                           methods and backbones
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

# Read when torch starts its threads. Those that wait in a busy loop take the cores from the processes that read episodes.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
import torch
from einops import rearrange
from torch import Tensor
from tqdm import tqdm

from clips.episodes import episodes_fingerprint, seal_episodes, unseal_episodes
from clips.transforms import ClipTransform, InputSpec
from clips.video_split import Split
from engine.feature_store import FeatureStore, fingerprint, stored_episodes
from engine.flags import find_checkpoint, run_program
from engine.processes import Batch, Processes, RunningStatistics, synchronise_batch_norms
from engine.settings import METHODS, build_head, build_parser, find_method, parse_args, print_list
from engine.training import (
    StepProfile,
    Steps,
    Terminated,
    Termination,
    Training,
    default_device,
    load_model_state,
    use_channels_last,
    use_tf32,
)
from model import CNN_FSHead, distribute
from results.evaluation import Predictions, Tally
from results.report import write_report
from utils import (
    BEST,
    FINAL,
    LATEST,
    RunFolder,
    UserError,
    accuracy_interval,
    is_time,
    load_checkpoint,
    seed_everything,
    versions,
    write_json,
)
from video_reader import VideoDataset, read_episodes

EPISODES_PER_CALL = 8  # on stored features: enough to fill a CPU's cores or a GPU, little enough for TRX's tuples

__all__ = ["METHODS", "Learner", "build_head", "build_parser", "find_method", "load_head", "main", "parse_args"]


def input_spec_of(model: CNN_FSHead, args: argparse.Namespace) -> InputSpec:
    """What frames must be like: the backbone's own spec, with the size and normalisation that the flags ask for."""
    spec = model.backbone.input_spec
    if args.normalise == "none":
        spec = spec.unnormalised()
    return dataclasses.replace(spec, size=args.img_size or spec.size, frames=args.seq_len)


def load_head(path: Path) -> tuple[CNN_FSHead, argparse.Namespace, InputSpec]:
    """The method in a checkpoint, ready to answer: (model in eval mode on this machine's device, its settings, its input)."""
    checkpoint = load_checkpoint(path)
    saved = checkpoint["args"]
    parser = build_parser(find_method(saved["method"]))
    args = argparse.Namespace(
        **{**vars(parser.parse_args([])), **saved}
    )  # flags that are newer than it: their defaults
    model = build_head(args, load_pretrained=False)
    load_model_state(model, checkpoint, path)
    use_channels_last(model)
    return model.to(default_device()).eval(), args, input_spec_of(model, args)


def learning_rate_at(tasks_done: int, args: argparse.Namespace) -> float:
    """The base rate, divided by ten at every milestone of --sch that has passed."""
    return args.learning_rate * 0.1 ** sum(tasks_done >= milestone for milestone in args.sch)


def build_optimizer(model: torch.nn.Module, args: argparse.Namespace) -> torch.optim.Optimizer:
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise UserError(
            f"--freeze_backbone leaves nothing to train of --method {args.method}, which is all backbone: leave it out"
        )
    if args.opt == "sgd":
        return torch.optim.SGD(
            parameters, lr=args.learning_rate, momentum=args.momentum, weight_decay=args.weight_decay
        )
    optimizer = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[args.opt]
    return optimizer(parameters, lr=args.learning_rate, weight_decay=args.weight_decay)


def accuracy_of(logits: Tensor, labels: Tensor) -> Tensor:
    """Share of the queries (..., Q) whose largest logit (..., Q, K) is their label's, as a tensor."""
    return (logits.argmax(dim=-1) == labels).float().mean()


def episode_picture(task: dict[str, Any], clips: int = 6) -> Tensor:
    """The first support and target clips as film strips, one a row: uint8 (3, height, width)."""
    frames = len(task["support_set"]) // len(task["support_labels"])
    strips = torch.cat([task["support_set"][: clips // 2 * frames], task["target_set"][: clips // 2 * frames]])
    rows, columns = len(strips) // frames, frames
    return strips.unflatten(0, (rows, columns)).permute(2, 0, 3, 1, 4).flatten(3, 4).flatten(1, 2)


# ---------------------------------------------------------------------------------------------------------------------
# The loops


@dataclasses.dataclass
class Progress:
    """Where a run stands: all of it is in every checkpoint, which is written between optimiser steps."""

    tasks_done: int = 0
    window: list[list[float]] = dataclasses.field(default_factory=list)  # [loss, accuracy] of tasks since the last row
    validations: list[list[float]] = dataclasses.field(default_factory=list)  # [tasks_done, accuracy, ci95]
    validation_due: bool = False  # the next thing to do
    best_accuracy: float = -1.0
    best_tasks: int = 0
    rows_size: int = 0  # bytes of log.csv that belong to these tasks


@dataclasses.dataclass(frozen=True)
class Share:
    """What one process has to say about its part of a batch."""

    results: list[list[list[float]]]  # of each call, of each task: [loss, accuracy]
    statistics: list[Any]  # what each call adds to running statistics
    bad_videos: set[str]
    terminated: bool
    data_seconds: float
    compute_seconds: float


def together(tasks: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Several tasks of a VideoDataset as one, with B in front of tensors and lists; frames stay channels-last."""
    merged: dict[str, Any] = {"bad_videos": [message for task in tasks for message in task["bad_videos"]]}
    for name in tasks[0].keys() - {"bad_videos"}:
        values = [task[name] for task in tasks]
        if name in {"support_set", "target_set"}:
            pixels = torch.stack([rearrange(value, "f c h w -> f h w c") for value in values])
            merged[name] = rearrange(pixels, "b f h w c -> b f c h w")
        else:
            merged[name] = torch.stack(values) if isinstance(values[0], Tensor) else values
    return merged


def part(values: dict[str, Any], place: int) -> dict[str, Any]:
    """One task of several that are together."""
    return {name: value[place] for name, value in values.items() if isinstance(value, Tensor)}


class Learner(Training):
    """Trains, validates and tests one method as `args` say, in the run folder."""

    model: CNN_FSHead

    def __init__(
        self,
        args: argparse.Namespace,
        run: RunFolder,
        processes: Processes | None = None,
        termination: Termination | None = None,
    ) -> None:
        super().__init__(args, run, processes, termination)
        self.ways_test = args.way_test or [args.way]
        self.shots_test = args.shot_test or [args.shot]
        self.progress = Progress()

        seed_everything(args.seed)
        use_tf32(not args.no_tf32)
        self.model = self.build_model()
        self.datasets = self.open_datasets()
        self.steps = Steps(build_optimizer(self.model, args), self.processes, precision=args.precision)
        if self.checkpoint is not None:
            self.restore(self.checkpoint)
        self.processes.align(self.model)

    def build_model(self) -> CNN_FSHead:
        """The method, where and how it will be used."""
        args = self.args
        model = build_head(args, load_pretrained=self.checkpoint is None)
        if args.tasks_per_call > 1 and not model.takes_episodes:
            raise UserError(
                f"--tasks_per_call is {args.tasks_per_call}, but {args.method} takes one episode at a time: leave it out"
            )
        self.input_spec = input_spec_of(model, args)
        use_channels_last(model)
        model.to(self.device)
        if args.num_gpus > 1:
            distribute(model)
        if args.bn == "sync":
            self.check_equal_shares()
            synchronise_batch_norms(model)
        if args.compile:
            model.backbone.compile_passes()
        return model

    def check_equal_shares(self) -> None:
        """Processes whose batch norms wait for each other must make the same number of calls."""
        args, at_once = self.args, self.processes.size * self.args.tasks_per_call
        for name in ("tasks_per_batch", "training_iterations"):
            if getattr(args, name) % at_once:
                raise UserError(
                    f"--{name} is {getattr(args, name)}: with --bn sync on {self.processes.size} processes, "
                    f"{args.tasks_per_call} task(s) per call, expected a multiple of {at_once}"
                )

    # Data ------------------------------------------------------------------------------------------------------------

    def open_datasets(self) -> dict[str, VideoDataset]:
        """The splits that will be used, each checked for enough classes and videos before anything long starts."""
        args = self.args
        validates = any(0 < tasks <= args.training_iterations for tasks in args.val_iters)
        datasets = {}
        if not args.test_only and args.training_iterations:
            datasets["train"] = self.open_dataset("train", args.way, args.shot, train=True)
            if validates:
                split = "test" if args.val_on_test else "val"
                datasets["val"] = self.open_dataset(split, self.ways_test[0], self.shots_test[0])
        datasets["test"] = self.open_dataset("test", max(self.ways_test), max(self.shots_test))
        if args.episodes:
            self.use_sealed_episodes(datasets["test"], Path(args.episodes))
        return datasets

    def open_dataset(self, split_name: str, way: int, shot: int, *, train: bool = False) -> VideoDataset:
        args = self.args
        split = Split.open(args.dataset, split_name, format=args.format, on_bad_video=args.on_bad_video)
        augment = train and not (args.freeze_backbone and self.model.works_on_features)
        if train and not augment:
            self.run.log(
                "the backbone is frozen: each training video is encoded once, from its middle crop, never mirrored"
            )
        flip = args.flip == "on" or (args.flip == "auto" and not split.direction_classes())
        if augment and args.flip == "auto" and not flip:
            self.run.log(
                f"training clips are not mirrored: class '{split.direction_classes()[0]}' names a direction (--flip on|off)"
            )
        return VideoDataset(
            split,
            way=way,
            shot=shot,
            queries=args.query_per_class if train else args.query_per_class_test,
            seq_len=args.seq_len,
            frames_per_step=self.model.backbone.frames_per_step,
            transform=ClipTransform(self.input_spec.size, train=augment, flip=flip),
            seed=args.seed,
            sampling=args.sampling,
            noisy=0 if train else args.noisy_support,
            on_bad_video=args.on_bad_video,
        )

    def use_sealed_episodes(self, dataset: VideoDataset, path: Path) -> None:
        """Tests on the episodes that a file holds; draws and writes them where there is no such file."""
        num_tasks = self.args.num_test_tasks
        if not path.exists():
            seal_episodes(path, dataset.split, [dataset.plan(i) for i in range(num_tasks)], dataset.seed)
            self.run.log(f"sealed {num_tasks} episodes in {path}")
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

    def prepare_task(self, task: dict[str, Any]) -> dict[str, Any]:
        """Moves a task to the device; frames travel as uint8 and become normalised floats there."""
        moved = {k: v.to(self.device, non_blocking=True) if isinstance(v, Tensor) else v for k, v in task.items()}
        for frames in {"support_set", "target_set"} & moved.keys():
            moved[frames] = self.input_spec.normalise(moved[frames])
        return moved

    # Training --------------------------------------------------------------------------------------------------------

    def train(self) -> None:
        args, progress = self.args, self.progress
        self.model.train()
        if progress.validation_due:
            with self.termination.deferred():
                self.validate()
        if progress.tasks_done >= args.training_iterations or self.out_of_patience():
            return
        if progress.tasks_done == 0:
            self.run.picture(0, "first training episode", episode_picture(self.datasets["train"][0]))
        left = range(progress.tasks_done, args.training_iterations)
        batches = list(self.processes.deal(left, args.tasks_per_batch, args.tasks_per_call))
        calls = self.training_calls(batches)
        profile = StepProfile(self.run.path / "profile" if args.profile and self.run.writes else None)
        bar = self.bar(args.training_iterations, "train", initial=progress.tasks_done)
        with bar, closing(calls), self.termination.deferred():
            for batch in batches:
                with profile.around_step():
                    results = self.train_batch(batch, calls)
                self.take_note(results, bar)
                self.save_if_due(batch.tasks)
                if self.ending:
                    raise Terminated
                if profile.is_new:
                    self.run.log(f"profile of one step in {profile.folder}:\n{profile.table}")
                if progress.validation_due:
                    self.validate()
                if self.out_of_patience():
                    self.run.log(f"no new best in {args.patience} validations: stopped at {progress.tasks_done} tasks")
                    break

    def training_calls(self, batches: Sequence[Batch]) -> Generator[dict[str, Any]]:
        """The calls of this process: on stored features where the backbone is frozen, else on frames."""
        dataset = self.datasets["train"]
        if not self.args.freeze_backbone:
            yield from self.calls_on_frames(dataset, batches)
            return
        with self.feature_store(dataset) as store:
            self.model.train()
            if store is None:
                yield from self.calls_on_frames(dataset, batches)
            else:
                yield from stored_episodes(store, dataset, batches, self.encoder(store, dataset))

    def calls_on_frames(self, dataset: VideoDataset, batches: Sequence[Batch]) -> Iterator[dict[str, Any]]:
        calls = [call for batch in batches for call in batch.own_calls]
        tasks = read_episodes(dataset, [index for call in calls for index in call], self.args.num_workers)
        for call in calls:
            yield together([next(tasks) for _ in call])

    def answer(self, call: dict[str, Any], *, described: bool = False) -> list[dict[str, Tensor]]:
        """What the model says of each task of a call, be it on frames, on stored features, or on what describes videos."""
        if "support_features" in call:
            outputs = self.model.classify_episodes(
                call["support_features"], call["support_labels"], call["target_features"], described=described
            )
        else:
            images = (call["support_set"], call["support_labels"], call["target_set"])
            with self.autocast():
                if len(call["target_labels"]) == 1:
                    return [self.model(*(image[0] for image in images))]
                outputs = self.model(*images)
        return [part(outputs, place) for place in range(len(call["target_labels"]))]

    def train_batch(self, batch: Batch, calls: Iterator[dict[str, Any]]) -> list[list[float]]:
        """One optimiser step on the mean gradient of a batch's tasks. Returns [loss, accuracy] of each, in order."""
        started, data_seconds = time.perf_counter(), 0.0
        statistics = RunningStatistics(self.model) if self.processes.size > 1 else None
        outcomes, bad_videos = [], set()
        for own in batch.own_calls:
            waiting_since = time.perf_counter()
            call = next(calls)
            data_seconds += time.perf_counter() - waiting_since
            bad_videos.update(call["bad_videos"])
            seed_everything(self.args.seed, own.start + 1)  # 0 would be the stream of the initial weights
            with statistics.collect() if statistics else contextlib.nullcontext():
                outcomes.append(self.train_call(self.prepare_task(call), len(batch.tasks)))
        results = [outcome.tolist() for outcome in outcomes]  # the device is waited for here, not after each task
        share = Share(
            results=results,
            statistics=statistics.passes if statistics else [],
            bad_videos=bad_videos,
            terminated=self.termination.asked,
            data_seconds=data_seconds,
            compute_seconds=time.perf_counter() - started - data_seconds,
        )
        shares = self.processes.gather(share)
        self.leave_out(message for share in shares for message in share.bad_videos)
        self.ending = any(share.terminated for share in shares)
        self.seconds += np.mean([(share.data_seconds, share.compute_seconds) for share in shares], axis=0)
        in_order = self.processes.in_order([share.results for share in shares])
        tasks = [result for call in in_order for result in call]
        self.check_finite(batch, tasks)
        if statistics:
            statistics.merge(self.processes.in_order([share.statistics for share in shares]))
        self.steps.take(learning_rate_at(batch.tasks.stop - 1, self.args))
        return tasks

    def train_call(self, call: dict[str, Any], batch_size: int) -> Tensor:
        """Forward and backward of some tasks. Returns [loss, accuracy] of each, on the device."""
        tasks = [part(call, place) for place in range(len(call["target_labels"]))]
        answers = self.answer(call)
        with self.autocast():
            losses = torch.stack([self.model.loss(task, answer) for task, answer in zip(tasks, answers, strict=True)])
        self.steps.backward(losses.sum() / batch_size)
        accuracies = [accuracy_of(a["logits"], task["target_labels"]) for task, a in zip(tasks, answers, strict=True)]
        return torch.stack([losses.detach().float(), torch.stack(accuracies)], dim=1)

    def check_finite(self, batch: Batch, results: Sequence[Sequence[float]]) -> None:
        """Raises UserError that names the first task whose loss is no number."""
        for index, (loss, _) in zip(batch.tasks, results, strict=True):
            if not math.isfinite(loss):
                dataset = self.datasets["train"]
                names = ", ".join(dataset.split.classes[label] for label in dataset.plan(index).labels)
                raise UserError(
                    f"the loss became {loss} in training task {index} (classes {names}): lower --learning_rate or use "
                    "--precision fp32; the last checkpoint is kept"
                )

    def take_note(self, results: Sequence[list[float]], bar: tqdm[Any]) -> None:
        """Counts finished tasks and writes the rows that are due."""
        for loss, accuracy in results:
            self.progress.tasks_done += 1
            self.progress.window.append([loss, accuracy])
            is_last = self.progress.tasks_done == self.args.training_iterations
            if is_time(self.progress.tasks_done, self.args.print_freq) or is_last:
                self.log_window()
        bar.update(len(results))
        bar.set_postfix(loss=f"{loss:.3f}", accuracy=f"{100 * accuracy:.0f}%", refresh=False)

    def log_window(self) -> None:
        """A row for the tasks since the last one."""
        progress, args = self.progress, self.args
        loss, accuracy = (float(mean) for mean in np.mean(progress.window, axis=0))
        data_seconds, compute_seconds = self.seconds / len(progress.window)
        self.seconds[:] = 0
        progress.window.clear()
        rate = learning_rate_at(progress.tasks_done - 1, args)
        self.run.row(
            tasks=progress.tasks_done, split="train", loss=repr(loss), accuracy=repr(100 * accuracy), learning_rate=rate
        )
        self.run.log(
            f"task {progress.tasks_done}/{args.training_iterations}  loss {loss:.4f}  accuracy {100 * accuracy:.2f} %  "
            f"{data_seconds:.3f} s data + {compute_seconds:.3f} s compute per task"
        )
        self.run.scalars(
            progress.tasks_done, train__loss=loss, train__accuracy=100 * accuracy, train__learning_rate=rate,
            seconds_per_task__data=data_seconds, seconds_per_task__compute=compute_seconds,
        )  # fmt: skip

    def save_if_due(self, tasks: range) -> None:
        """Saves after a batch in which a save became due, or when the machine is wanted for something else.

        Not before a validation, which saves when it is done: a run that is killed in it does it again.
        """
        frequency = self.args.save_freq
        is_due = frequency > 0 and tasks.stop // frequency > tasks.start // frequency
        self.progress.validation_due = any(tasks.start < wanted <= tasks.stop for wanted in self.args.val_iters)
        if self.ending or (is_due and not self.progress.validation_due):
            self.save(LATEST)

    def out_of_patience(self) -> bool:
        later = [tasks for tasks, *_ in self.progress.validations if tasks > self.progress.best_tasks]
        return 0 < self.args.patience <= len(later)

    # Evaluation ------------------------------------------------------------------------------------------------------

    def evaluate(self, dataset: VideoDataset, num_tasks: int, store: FeatureStore | None) -> Predictions:
        """Answers the first `num_tasks` episodes, each process its share, and puts the answers together."""
        self.model.eval()
        tally, bad_videos = Tally(dataset.split.classes), set()
        with self.bar(num_tasks, dataset.split.name, leave=False) as bar, torch.inference_mode():
            for logits, call in self.answers(dataset, num_tasks, store):
                bad_videos.update(call["bad_videos"])
                if not torch.isfinite(logits).all():
                    raise UserError(
                        f"the model answers episode {call['index'][0]} of {dataset.split.name} with what is no number: its "
                        "weights or batch norm statistics are broken; use --precision fp32, or other weights"
                    )
                tally.add(logits.cpu(), call)
                bar.update(len(logits) * self.processes.size)
                bar.set_postfix(accuracy=f"{100 * tally.right / tally.asked:.1f}%", refresh=False)
        for answers, messages in self.processes.gather((tally.answers, bad_videos)):
            tally.answers.update(answers)
            self.leave_out(messages)
        self.model.train()
        return tally.predictions()

    def answers(
        self, dataset: VideoDataset, num_tasks: int, store: FeatureStore | None
    ) -> Iterator[tuple[Tensor, dict[str, Any]]]:
        """Logits (B, Q, K) of this process's calls: from stored features, or from frames if there is no store."""
        per_call = 1 if store is None else EPISODES_PER_CALL
        batches = list(self.processes.deal(range(num_tasks), per_call * self.processes.size, per_call))
        if store is None:
            calls = self.calls_on_frames(dataset, batches)
        else:
            calls = stored_episodes(store, dataset, batches, self.encoder(store, dataset))
        for call in calls:
            answers = self.answer(self.prepare_task(call), described=self.stores_descriptions)
            yield torch.stack([answer["logits"] for answer in answers]), call

    def encoder(self, store: FeatureStore, dataset: VideoDataset) -> Callable[[list[int]], None]:
        """What fills rows of a store, each process its share of them."""

        def encode(rows: list[int]) -> None:
            own = self.processes.share(sorted(rows))
            store.encode(own, dataset, self.stored_of, num_workers=self.args.num_workers)
            store.take_up(self.processes.gather({row: store.bad[row] for row in own if row in store.bad}))

        return encode

    @property
    def stores_descriptions(self) -> bool:
        """Whether a store holds what the method makes of features: not where the method is trained on stored features."""
        return self.model.condenses and not self.args.freeze_backbone

    def stored_of(self, clips: Tensor) -> Tensor:
        """uint8 clips (N, T, 3, H, W) -> what is stored of each: steps (N, S, D), maps (N, D, S, h, w), or a description."""
        with torch.inference_mode():
            with self.autocast():
                features = self.model.encode(self.input_spec.normalise(clips.to(self.device)))
            return self.model.describe(features.float()) if self.stores_descriptions else features

    @contextlib.contextmanager
    def feature_store(self, dataset: VideoDataset) -> Iterator[FeatureStore | None]:
        """Features of a split under the present weights; None where frames have to be seen each time."""
        if self.args.direct or not self.model.works_on_features:
            yield None
            return
        self.model.eval()
        size = self.input_spec.size
        shape = self.stored_of(torch.zeros(1, self.args.seq_len, 3, size, size, dtype=torch.uint8)).shape[1:]
        settings = {"reads": self.model.reads, "precision": self.args.precision, "device": self.device.type}
        encoder = self.model if self.stores_descriptions else self.model.backbone
        key = fingerprint(encoder, self.input_spec, dataset, **settings)
        parent = Path(self.args.features or self.run.path / "features")
        if not self.processes.is_first:
            self.processes.meet()  # the first makes its files
        store = FeatureStore(parent, key, dataset.split, shape)
        if self.processes.is_first:
            self.processes.meet()
        self.processes.meet()  # none writes before all have seen the same rows
        try:
            yield store
        except (Exception, KeyboardInterrupt):
            store.close(keep=True)  # what was encoded is taken up when the run goes on
            raise
        except GeneratorExit:
            pass  # training ended before its tasks did
        self.processes.meet()  # nobody reads any more
        store.close(keep=self.args.features is not None or not self.processes.is_first)

    def validate(self) -> None:
        """Validates, keeps the model if it is the best so far, and saves."""
        progress, split = self.progress, self.datasets["val"].split.name
        try:
            with self.termination.at_once(), self.feature_store(self.datasets["val"]) as store:
                predictions = self.evaluate(self.datasets["val"], self.args.num_val_tasks, store)
        except (Terminated, UserError):
            if self.termination.asked:  # also where another process has ended before this one heard of it
                self.save(LATEST)
                raise Terminated from None
            raise
        progress.validation_due = False
        self.take_validation(split, predictions)

    def take_validation(self, split: str, predictions: Predictions) -> None:
        progress = self.progress
        accuracy, ci95 = accuracy_interval(predictions.episode_accuracies)
        progress.validations.append([progress.tasks_done, accuracy, ci95])
        is_best = accuracy > progress.best_accuracy
        if is_best:
            progress.best_accuracy, progress.best_tasks = accuracy, progress.tasks_done
        self.run.row(tasks=progress.tasks_done, split=split, accuracy=repr(accuracy), ci95=repr(ci95))
        warning = "  (on the TEST split: not comparable)" if self.args.val_on_test else ""
        self.run.log(
            f"validation after {progress.tasks_done} tasks: {accuracy:.2f} +/- {ci95:.2f} % on {split}{warning}"
            f"{', the best so far' if is_best else ''}"
        )
        self.run.scalars(progress.tasks_done, **{f"{split}__accuracy": accuracy, f"{split}__ci95": ci95})
        if is_best:
            self.save(BEST)
        self.save(LATEST)

    def test(self, checkpoint_path: Path) -> None:
        """Tests the weights of a checkpoint at every asked way and shot; writes results.json and predictions.csv."""
        args, dataset = self.args, self.datasets["test"]
        checkpoint = load_checkpoint(checkpoint_path)
        load_model_state(self.model, checkpoint, checkpoint_path)
        validations = checkpoint["progress"]["validations"]
        selected_on = "nothing" if not validations else "test" if checkpoint["args"]["val_on_test"] else "val"
        tasks_done = checkpoint["progress"]["tasks_done"]
        sizes: list[dict[str, Any]] = []
        first: Predictions | None = None
        with self.feature_store(dataset) as store:
            for way in self.ways_test:
                for shot in self.shots_test:
                    sized = dataset.narrowed(way, shot)
                    predictions = self.evaluate(sized, args.num_test_tasks, store)
                    first = first or predictions
                    plans = (sized.plan(index) for index in range(args.num_test_tasks))
                    sizes.append(
                        {"way": way, "shot": shot, **predictions.summary(), "episodes": episodes_fingerprint(plans)}
                    )
                    self.run.log(
                        f"test: {sizes[-1]['accuracy']:.2f} +/- {sizes[-1]['ci95']:.2f} %  ({way}-way {shot}-shot, "
                        f"{args.num_test_tasks} tasks, {args.method} on {args.backbone}, {checkpoint_path.name} after "
                        f"{tasks_done} tasks)"
                    )
        assert first is not None
        results = {
            **sizes[0],
            "tasks": args.num_test_tasks,
            "seed": args.seed,
            "queries_per_class": args.query_per_class_test,
            "noisy_support": args.noisy_support,
            "split": dataset.split.name,
            "dataset": args.dataset,
            "split_fingerprint": dataset.split.fingerprint,
            "sealed_episodes": args.episodes,
            "method": args.method,
            "backbone": args.backbone,
            "checkpoint": checkpoint_path.name,
            "checkpoint_tasks": tasks_done,
            "selected_on": selected_on,
            "precision": args.precision,
            "sizes": sizes,
            "versions": versions(),
        }
        if self.run.writes:
            if (self.run.path / "results.json").exists():
                for name in ("results.csv", "predictions.csv", "report.html", "results.json"):
                    self.run.retire(name)
            first.save(self.run.path / "predictions.csv")
            write_report(self.run.path, results, first)
            write_json(self.run.path / "results.json", results)  # last: its presence says that the test is done
        if selected_on == "test":
            self.run.log("this checkpoint was CHOSEN ON THE TEST SPLIT (--val_on_test): comparable with nothing")
        chance = 100 / self.ways_test[0]
        if results["accuracy"] - results["ci95"] < chance + 5:
            self.run.log(
                f"this is close to chance ({chance:.0f} %): expected after few tasks from random weights; train longer, or "
                "start from pretrained weights"
            )
        self.run.scalars(tasks_done, test__accuracy=results["accuracy"], test__ci95=results["ci95"])

    # Checkpoints -----------------------------------------------------------------------------------------------------

    def opened(self) -> dict[str, Split]:
        return {role: dataset.split for role, dataset in self.datasets.items()}

    def restore(self, checkpoint: dict[str, Any]) -> None:
        super().restore(checkpoint)
        if not self.args.test_only:
            self.run.log(f"going on after {self.progress.tasks_done} tasks")

    # All of it -------------------------------------------------------------------------------------------------------

    def learn(self) -> None:
        """Train, then test the checkpoint that validation chose (the final one if there was no validation)."""
        args = self.args
        if args.test_only:
            self.test(Path(args.test_model_name))
            return
        if args.resume_from_checkpoint and (self.run.path / FINAL).exists() and self.is_finished():
            self.run.log(
                f"this run is finished ({self.progress.tasks_done} tasks): raise -i to train on, or use --test_only"
            )
            return
        self.run.open_board(self.progress.tasks_done)
        if args.training_iterations and "val" not in self.datasets:
            self.run.log("no validation: none of --val_iters lies within -i, so the final model will be tested")
        self.train()
        self.save(LATEST)
        self.save(FINAL)
        if self.termination.asked:  # too late for the last step to take note
            raise Terminated
        self.processes.meet()  # the files that a test needs are there
        self.test(find_checkpoint(self.run.path, args.test_model_name))
        if self.run.writes:
            shutil.rmtree(
                self.run.path / "features", ignore_errors=True
            )  # what an interrupted validation may have left

    def is_finished(self) -> bool:
        reached_end = self.progress.tasks_done >= self.args.training_iterations or self.out_of_patience()
        return reached_end and (self.run.path / "results.json").exists()


def main(argv: Sequence[str] | None = None) -> int:
    return run_program(
        list(sys.argv[1:] if argv is None else argv),
        name=Path(__file__).name,
        first_look=build_parser(add_help=False),
        parse=partial(parse_args, description=__doc__),
        print_list=print_list,
        training=Learner,
    )


if __name__ == "__main__":
    sys.exit(main())
