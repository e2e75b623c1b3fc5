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
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

# Read when torch starts its threads. Those that wait in a busy loop take the cores from the processes that read episodes.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from episodes import episodes_fingerprint, seal_episodes, unseal_episodes
from evaluation import Predictions, Tally
from feature_store import FeatureStore, fingerprint, stored_episodes
from frame_sources import BadVideo
from model import CNN_FSHead
from report import write_report
from settings import (
    BEST,
    FINAL,
    LATEST,
    METHODS,
    build_head,
    build_parser,
    find_checkpoint,
    find_method,
    parse_args,
    print_list,
)
from transforms import ClipTransform, InputSpec
from utils import (
    RunFolder,
    UserError,
    accuracy_interval,
    is_time,
    load_checkpoint,
    save_checkpoint,
    seed_everything,
    versions,
    write_json,
)
from video_reader import VideoDataset, read_episodes
from video_split import Split

EPISODES_PER_CALL = 8  # on stored features: enough to fill a CPU's cores or a GPU, little enough for TRX's tuples

__all__ = ["METHODS", "Learner", "build_head", "build_parser", "find_method", "load_head", "main", "parse_args"]


def load_model_state(model: CNN_FSHead, checkpoint: dict[str, Any], path: Path) -> None:
    """Copies a checkpoint's weights into the model; every name and shape must agree."""
    try:
        model.load_state_dict(checkpoint["model"])
    except (RuntimeError, KeyError) as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise UserError(f"{path} does not fit the model: {reason}; give the settings it was trained with") from error


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


def default_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def use_channels_last(model: torch.nn.Module) -> None:
    """Stores convolution weights channels-last: frames arrive that way, and convolutions are faster on it."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    for parameter in model.parameters():
        if parameter.ndim in formats:
            parameter.data = parameter.data.contiguous(memory_format=formats[parameter.ndim])


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


def accuracy_of(logits: Tensor, labels: Tensor) -> float:
    """Share of the queries (..., Q) whose largest logit (..., Q, K) is their label's."""
    return int((logits.argmax(dim=-1) == labels).sum()) / labels.numel()


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
    """Where a run stands: all of it is in every checkpoint. Counters count finished tasks."""

    tasks_done: int = 0
    in_batch: int = 0  # tasks whose gradients wait for the next optimiser step
    batch_size: int = 0  # tasks that step will be the mean of
    window: list[list[float]] = dataclasses.field(default_factory=list)  # [loss, accuracy] of tasks since the last row
    validations: list[list[float]] = dataclasses.field(default_factory=list)  # [tasks_done, accuracy, ci95]
    best_accuracy: float = -1.0
    best_tasks: int = 0
    rows_size: int = 0  # bytes of log.csv that belong to these tasks


class Learner:
    """Trains, validates and tests one method as `args` say, in the run folder."""

    def __init__(self, args: argparse.Namespace, run: RunFolder) -> None:
        self.args = args
        self.run = run
        self.device = default_device()
        self.ways_test = args.way_test or [args.way]
        self.shots_test = args.shot_test or [args.shot]
        self.progress = Progress()
        self.left_out: set[str] = set()  # messages about unreadable videos, each logged once
        self.checkpoint = self.starting_checkpoint()

        seed_everything(args.seed)
        self.model = build_head(args, load_pretrained=self.checkpoint is None)
        self.input_spec = input_spec_of(self.model, args)
        use_channels_last(self.model)
        self.model.to(self.device)
        if args.num_gpus > 1:
            self.model.distribute_model()
        self.datasets = self.open_datasets()
        self.optimizer = build_optimizer(self.model, args)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=args.precision == "fp16")
        if self.checkpoint is not None:
            self.restore(self.checkpoint)

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
        for message in set(task["bad_videos"]) - self.left_out:
            self.run.log(f"left out: {message}")
            self.left_out.add(message)
        moved = {k: v.to(self.device, non_blocking=True) if isinstance(v, Tensor) else v for k, v in task.items()}
        for frames in {"support_set", "target_set"} & moved.keys():
            moved[frames] = self.input_spec.normalise(moved[frames])
        return moved

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.args.precision)
        return torch.autocast(self.device.type, dtype=dtype) if dtype else contextlib.nullcontext()

    # Training --------------------------------------------------------------------------------------------------------

    def train(self) -> None:
        args, progress = self.args, self.progress
        if progress.tasks_done >= args.training_iterations or self.out_of_patience():
            return
        self.model.train()
        tasks = self.training_tasks()
        bar = tqdm(total=args.training_iterations, initial=progress.tasks_done, desc="train", unit="task", disable=None)
        waiting_since, data_seconds, compute_seconds = time.perf_counter(), 0.0, 0.0
        for task in tasks:
            arrived = time.perf_counter()
            data_seconds += arrived - waiting_since
            if progress.tasks_done == 0:
                self.run.picture(0, "first training episode", episode_picture(self.datasets["train"][0]))
            loss, accuracy = self.train_task(task)
            progress.window.append([loss, accuracy])
            bar.update()
            bar.set_postfix(loss=f"{loss:.3f}", accuracy=f"{100 * accuracy:.0f}%", refresh=False)
            compute_seconds += time.perf_counter() - arrived

            is_last = progress.tasks_done == args.training_iterations
            if is_time(progress.tasks_done, args.print_freq) or is_last:
                self.log_window(data_seconds, compute_seconds)
                data_seconds = compute_seconds = 0.0
            if progress.tasks_done in args.val_iters:
                self.validate()
            elif is_time(progress.tasks_done, args.save_freq):
                self.save(LATEST)
            waiting_since = time.perf_counter()
            if self.out_of_patience():
                self.run.log(f"no new best in {args.patience} validations: stopped at {progress.tasks_done} tasks")
                break
        bar.close()

    def training_tasks(self) -> Iterator[dict[str, Any]]:
        """The tasks that are left: on stored features where the backbone is frozen, else on frames."""
        dataset, left = self.datasets["train"], range(self.progress.tasks_done, self.args.training_iterations)
        if not self.args.freeze_backbone:
            yield from read_episodes(dataset, left, self.args.num_workers)
            return
        with self.feature_store(dataset) as store:
            self.model.train()
            if store is None:
                yield from read_episodes(dataset, left, self.args.num_workers)
            else:
                yield from stored_episodes(store, dataset, left, self.encoder(store, dataset), per_call=1)

    def answer(self, task: dict[str, Any]) -> dict[str, Tensor]:
        """What the model says of a task, be it on frames or on stored features."""
        if "support_features" in task:
            return self.model.classify_episodes(
                task["support_features"], task["support_labels"], task["target_features"]
            )
        with self.autocast():
            return self.model(task["support_set"], task["support_labels"], task["target_set"])

    def train_task(self, task: dict[str, Any]) -> tuple[float, float]:
        """Forward, backward, and an optimiser step when a batch of tasks is complete. Returns loss and accuracy."""
        args, progress = self.args, self.progress
        seed_everything(args.seed, task["index"] + 1)  # 0 would be the stream of the initial weights
        if progress.in_batch == 0:
            progress.batch_size = min(args.tasks_per_batch, args.training_iterations - progress.tasks_done)
        task = self.prepare_task(task)
        outputs = self.answer(task)
        with self.autocast():
            loss = self.model.loss(task, outputs)
        if not torch.isfinite(loss):
            names = [self.datasets["train"].split.classes[label] for label in task["batch_class_list"].flatten()]
            raise UserError(
                f"the loss became {float(loss.detach())} in training task {task['index']} (classes {', '.join(names)}): lower "
                "--learning_rate or use --precision fp32; the last checkpoint is kept"
            )
        self.scaler.scale(loss / progress.batch_size).backward()
        progress.tasks_done += 1
        progress.in_batch += 1
        if progress.in_batch == progress.batch_size:
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate_at(progress.tasks_done - 1, args)
            self.scaler.step(self.optimizer)
            self.scaler.update()
            self.optimizer.zero_grad(set_to_none=True)
            progress.in_batch = 0
        return float(loss.detach()), accuracy_of(outputs["logits"], task["target_labels"])

    def log_window(self, data_seconds: float, compute_seconds: float) -> None:
        """A row for the tasks since the last one."""
        progress, args = self.progress, self.args
        loss, accuracy = (float(mean) for mean in np.mean(progress.window, axis=0))
        seen = len(progress.window)
        progress.window.clear()
        rate = learning_rate_at(progress.tasks_done - 1, args)
        self.run.row(
            tasks=progress.tasks_done, split="train", loss=repr(loss), accuracy=repr(100 * accuracy), learning_rate=rate
        )
        self.run.log(
            f"task {progress.tasks_done}/{args.training_iterations}  loss {loss:.4f}  accuracy {100 * accuracy:.2f} %  "
            f"{data_seconds / seen:.3f} s data + {compute_seconds / seen:.3f} s compute per task"
        )
        self.run.scalars(
            progress.tasks_done, train__loss=loss, train__accuracy=100 * accuracy, train__learning_rate=rate,
            seconds_per_task__data=data_seconds / seen, seconds_per_task__compute=compute_seconds / seen,
        )  # fmt: skip

    def out_of_patience(self) -> bool:
        later = [tasks for tasks, *_ in self.progress.validations if tasks > self.progress.best_tasks]
        return 0 < self.args.patience <= len(later)

    # Evaluation ------------------------------------------------------------------------------------------------------

    def evaluate(self, dataset: VideoDataset, num_tasks: int, store: FeatureStore | None) -> Predictions:
        """Answers the first `num_tasks` episodes: from stored features, or from their frames if there is no store."""
        self.model.eval()
        tally = Tally(dataset.split.classes)
        bar = tqdm(total=num_tasks, desc=dataset.split.name, unit="task", disable=None, leave=False)
        answers = (
            self.direct_answers(dataset, num_tasks) if store is None else self.stored_answers(dataset, num_tasks, store)
        )
        with torch.inference_mode():
            for logits, task in answers:
                tally.add(logits.cpu(), task["real_target_labels"], task["batch_class_list"], task["target_videos"])
                bar.update(len(logits))
                bar.set_postfix(accuracy=f"{100 * tally.right / tally.asked:.1f}%", refresh=False)
        bar.close()
        self.model.train()
        return tally.predictions()

    def direct_answers(self, dataset: VideoDataset, num_tasks: int) -> Iterator[tuple[Tensor, dict[str, Any]]]:
        """Logits (1, Q, K) of one episode after the other, from its frames."""
        for raw in read_episodes(dataset, range(num_tasks), self.args.num_workers):
            task = self.prepare_task(raw)
            yield (
                self.answer(task)["logits"][None],
                {
                    "real_target_labels": raw["real_target_labels"][None],
                    "batch_class_list": raw["batch_class_list"][None],
                    "target_videos": [raw["target_videos"]],
                },
            )

    def stored_answers(
        self, dataset: VideoDataset, num_tasks: int, store: FeatureStore
    ) -> Iterator[tuple[Tensor, dict[str, Any]]]:
        """Logits (B, Q, K) of many episodes at once, from stored features."""
        encode = self.encoder(store, dataset)
        for task in stored_episodes(store, dataset, range(num_tasks), encode, EPISODES_PER_CALL):
            yield self.answer(self.prepare_task(task))["logits"], task

    def encoder(self, store: FeatureStore, dataset: VideoDataset) -> Callable[[list[int]], None]:
        """What fills rows of a store."""
        return partial(store.encode, dataset=dataset, features_of=self.features_of, num_workers=self.args.num_workers)

    def features_of(self, clips: Tensor) -> Tensor:
        """uint8 clips (N, T, 3, H, W) -> what the head reads of each: (N, S, D), or maps (N, D, S, h, w)."""
        with torch.inference_mode(), self.autocast():
            return self.model.encode(self.input_spec.normalise(clips.to(self.device)))

    @contextlib.contextmanager
    def feature_store(self, dataset: VideoDataset) -> Iterator[FeatureStore | None]:
        """Features of a split under the present weights; None where frames have to be seen each time."""
        if self.args.direct or not self.model.works_on_features:
            yield None
            return
        self.model.eval()
        size = self.input_spec.size
        shape = self.features_of(torch.zeros(1, self.args.seq_len, 3, size, size, dtype=torch.uint8)).shape[1:]
        settings = {"reads": self.model.reads, "precision": self.args.precision, "device": self.device.type}
        key = fingerprint(self.model.backbone, self.input_spec, dataset, **settings)
        store = FeatureStore(Path(self.args.features or self.run.path / "features"), key, dataset.split, shape)
        try:
            yield store
        except (Exception, KeyboardInterrupt):
            store.close(keep=True)  # what was encoded is taken up when the run goes on
            raise
        except GeneratorExit:
            pass  # training ended before its tasks did
        store.close(keep=self.args.features is not None)

    def validate(self) -> None:
        """Validates, keeps the model if it is the best so far, and saves."""
        progress, split = self.progress, self.datasets["val"].split.name
        with self.feature_store(self.datasets["val"]) as store:
            predictions = self.evaluate(self.datasets["val"], self.args.num_val_tasks, store)
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

    def starting_checkpoint(self) -> dict[str, Any] | None:
        """What a resumed run goes on from, or a test takes its weights from; None for a new run."""
        if self.args.test_only:
            return load_checkpoint(Path(self.args.test_model_name))
        path = self.run.path / LATEST
        if not self.args.resume_from_checkpoint:
            return None
        if not path.exists():
            self.run.log("the run was stopped before its first checkpoint: it starts again from task 0")
            self.run.rewind_rows(0)
            return None
        return load_checkpoint(path)

    def save(self, name: str) -> None:
        """Everything that an exact continuation needs, under a name in the run folder."""
        self.progress.rows_size = self.run.rows_size()
        self.run.flush_board()
        content = {
            "args": vars(self.args),
            "progress": dataclasses.asdict(self.progress),
            "input_spec": dataclasses.asdict(self.input_spec),
            "splits": {role: dataset.split.fingerprint for role, dataset in self.datasets.items()},
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "gradients": [p.grad for p in self.model.parameters()] if self.progress.in_batch else [],
        }
        if self.run.writes:
            save_checkpoint(self.run.path / name, content)

    def restore(self, checkpoint: dict[str, Any]) -> None:
        """Takes up a checkpoint; only its weights are used when testing."""
        source = Path(self.args.test_model_name or self.run.path / LATEST)
        load_model_state(self.model, checkpoint, source)
        if self.args.test_only:
            return
        for role in checkpoint["splits"].keys() & self.datasets.keys() - {"test"}:
            if self.datasets[role].split.fingerprint != checkpoint["splits"][role]:
                raise UserError(
                    f"the videos of {self.datasets[role].split.root} are not those this run was started on: restore them to go "
                    "on, or start a new run with another -c"
                )
        self.progress = Progress(**checkpoint["progress"])
        self.optimizer.load_state_dict(checkpoint["optimizer"])
        self.scaler.load_state_dict(checkpoint["scaler"])
        for parameter, gradient in zip(self.model.parameters(), checkpoint["gradients"]):  # noqa: B905  [] between batches
            parameter.grad = None if gradient is None else gradient.to(parameter)
        self.run.rewind_rows(self.progress.rows_size)
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
        self.test(find_checkpoint(self.run.path, args.test_model_name))
        shutil.rmtree(self.run.path / "features", ignore_errors=True)  # what an interrupted validation may have left

    def is_finished(self) -> bool:
        reached_end = self.progress.tasks_done >= self.args.training_iterations or self.out_of_patience()
        return reached_end and (self.run.path / "results.json").exists()


def main(argv: Sequence[str] | None = None) -> int:
    argv = list(sys.argv[1:] if argv is None else argv)
    run = None
    try:
        args = parse_args(argv, description=__doc__)
        if args.list:
            print_list()
            return 0
        adds_test = args.test_only and (Path(args.checkpoint_dir) / "args.json").exists()
        run = RunFolder(args.checkpoint_dir, resume=args.resume_from_checkpoint or adds_test)
        learner = Learner(args, run)
        run.start(vars(args), [Path(__file__).name, *argv], keep_settings=adds_test)
        learner.learn()
        return 0
    except (UserError, BadVideo) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; go on from the last checkpoint with -r", file=sys.stderr)
        return 130
    finally:
        if run is not None:
            run.close()


if __name__ == "__main__":
    sys.exit(main())
