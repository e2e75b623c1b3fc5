"""Train, validate and test few-shot action recognition on episodes.

python run.py -c runs/first --dataset demo --method trx --backbone resnet18    a run: train, validate, test
python run.py -c runs/first -r                                                 resume it after a stop, exactly
python run.py -c runs/first --test_only --shot_test 1                          test its best checkpoint another way
python run.py @scripts/recipes/trx_ssv2_otam_5shot.args --dataset DATA -c runs/trx     a recipe of a published row
python run.py --list                                                           methods and backbones
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

# Read when torch starts its threads. Those that wait in a busy loop take the cores from the processes that read episodes.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C during the imports ends it, without a traceback

import numpy as np
import torch
from torch import Tensor

from backbones import BACKBONES
from clips.episodes import episodes_fingerprint
from clips.video_split import Split
from engine.class_text import open_run_text
from engine.episode_calls import EpisodeCalls, episode_of
from engine.episode_data import open_episodes, open_splits, test_dataset, ways_and_shots
from engine.feature_store import FeatureStore
from engine.processes import Batch, RunningStatistics
from engine.program import Program
from engine.settings import parse_args
from engine.training import Progress, Training, Validation, load_model_state
from methods import METHODS, build_head, print_list
from methods.checkpoints import read_head, settings_in
from model import CNN_FSHead, distribute
from results.drawing import episode_picture
from results.evaluation import Predictions, Tally
from results.marks import marks, origin
from results.report import write_report
from utils import UserError, accuracy_interval, is_time, load_checkpoint, seed_everything, versions, write_json
from video_reader import VideoDataset


def main(argv: Sequence[str] | None = None) -> int:
    with Program(__file__, argv) as program:
        args = parse_args(program.argv, METHODS, description=__doc__, settings_in=settings_in)
        if args.list:
            print_list()
            return 0
        learner = program.build(Learner, args)
        if args.test_only:
            learner.test(Path(args.test_model_name))
        elif not learner.is_finished():
            learner.train()
            learner.test(learner.save_final())
            learner.remove_stores()
    return program.exit_code


@dataclasses.dataclass
class TaskProgress(Progress):
    tasks_done: int = 0
    best_tasks: int = 0

    @property
    def done(self) -> int:
        return self.tasks_done

    def mark_best(self) -> None:
        self.best_tasks = self.tasks_done


@dataclasses.dataclass(frozen=True)
class Share:
    """What one process reports of its share of a batch."""

    results: list[list[list[float]]]  # of each call, of each task: [loss, accuracy]
    statistics: list[Any]  # what each call adds to running statistics
    bad_videos: set[str]
    terminated: bool
    data_seconds: float
    compute_seconds: float


def build_optimizer(model: CNN_FSHead, args: argparse.Namespace) -> torch.optim.Optimizer:
    groups = model.parameter_groups()
    if not groups:
        raise UserError(
            f"nothing is left to train of --method {args.method}, which is all backbone: leave out --freeze_backbone and "
            "--train_layers none"
        )
    if args.opt == "sgd":
        return torch.optim.SGD(groups, lr=args.learning_rate, momentum=args.momentum, nesterov=args.nesterov)
    return {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[args.opt](groups, lr=args.learning_rate)


class Learner(Training):
    """Trains, validates and tests one method as `args` say, in the run folder."""

    progress_type = TaskProgress
    model: CNN_FSHead
    progress: TaskProgress

    # Build -----------------------------------------------------------------------------------------------------------

    def open_splits(self) -> dict[str, Split]:
        return open_splits(self.args, self.run.log)

    def read_checkpoint(self, path: Path) -> dict[str, Any]:
        """A checkpoint of this library, or in its form one of a TRX-style library."""
        checkpoint, sentence = read_head(path, self.args)
        if sentence:
            self.run.log(sentence)
        return checkpoint

    def build_model(self) -> CNN_FSHead:
        args = self.args
        classes = len(self.splits["train"].classes) if "train" in self.splits else 0
        model = build_head(args, load_pretrained=self.checkpoint is None, num_train_classes=classes)
        if args.tasks_per_call > 1 and not model.takes_episodes:
            raise UserError(
                f"--tasks_per_call is {args.tasks_per_call}, but {args.method} takes one episode at a time: leave it out"
            )
        if args.freeze_backbone and model.works_on_features and model.loss_needs_pixels:
            raise UserError(
                f"--freeze_backbone trains on stored features, and the loss of --method {args.method} sees frames: leave it "
                "out, or see the method's flags"
            )
        return model

    def prepare_data(self) -> None:
        args, kept = self.args, Path(self.args.features or self.run.path)
        self.datasets = open_episodes(self.splits, args, self.model, self.input_spec, self.run.log)
        self.calls = EpisodeCalls(
            self.model, self.input_spec, self.processes, args, folder=self.run.path / self.stores, log=self.run.log,
            text=open_run_text(args, self.model, self.splits, self.processes, kept),
        )  # fmt: skip

    def distribute_model(self) -> None:
        distribute(self.model)

    def check_equal_shares(self) -> None:
        args, at_once = self.args, self.processes.size * self.args.tasks_per_call
        for name in ("tasks_per_batch", "training_iterations"):
            if getattr(args, name) % at_once:
                raise UserError(
                    f"--{name} is {getattr(args, name)}: with --bn sync on {self.processes.size} processes, "
                    f"{args.tasks_per_call} task(s) per call, expected a multiple of {at_once}"
                )

    def build_optimizer(self) -> torch.optim.Optimizer:
        return build_optimizer(self.model, self.args)

    def learning_rate_at(self, tasks_done: int) -> float:
        """The base rate, lower at every milestone of --sch that has passed, after a rise over --warmup_tasks."""
        args = self.args
        if tasks_done < args.warmup_tasks:
            risen = (tasks_done + 1) / args.warmup_tasks
            return args.learning_rate * (args.warmup_from + (1 - args.warmup_from) * risen)
        passed = sum(tasks_done >= milestone for milestone in args.sch)
        return args.learning_rate * ([1.0, *args.lr_factors][passed] if args.lr_factors else 0.1**passed)

    # Train -----------------------------------------------------------------------------------------------------------

    def train(self) -> None:
        """Trains batch by batch until -i tasks are done, and validates at --val_iters."""
        args, progress, dataset = self.args, self.progress, self.datasets.get("train")
        self.run.open_board(resumed_at=progress.tasks_done)
        if args.training_iterations and "val" not in self.datasets:
            self.run.log("no validation: none of --val_iters lies within -i, so the final model will be tested")
        if dataset is None:
            return
        if progress.tasks_done == 0:
            self.run.picture(0, "first training episode", episode_picture(dataset[0]))
        left = range(progress.tasks_done, args.training_iterations)
        batches = list(self.processes.shard(left, args.tasks_per_batch, args.tasks_per_call))
        with self.stepping(args.training_iterations) as bar, closing(self.calls.of_training(dataset, batches)) as calls:
            if self.out_of_patience():
                return
            for batch in batches:
                with self.profile.around_step():
                    results = self.train_batch(batch, calls)
                for loss, accuracy in results:
                    progress.tasks_done += 1
                    progress.window.append([loss, accuracy])
                    if is_time(progress.tasks_done, args.print_freq) or progress.tasks_done == args.training_iterations:
                        self.log_window()
                bar.update(len(results))
                bar.set_postfix(loss=f"{loss:.3f}", accuracy=f"{100 * accuracy:.0f}%", refresh=False)
                self.finish_step(
                    save=any(is_time(tasks + 1, args.save_freq) for tasks in batch.tasks),
                    validate=any(tasks + 1 in args.val_iters for tasks in batch.tasks),
                )
                if self.out_of_patience():
                    self.run.log(f"no new best in {args.patience} validations: stopped at {progress.tasks_done} tasks")
                    break

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
                outcomes.append(self.train_call(self.calls.prepare(call), len(batch.tasks)))
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
        self.steps.take(self.learning_rate_at(batch.tasks.stop - 1))
        return tasks

    def train_call(self, call: dict[str, Any], batch_size: int) -> Tensor:
        """Forward and backward of some tasks. Returns [loss, accuracy] of each, on the device."""
        tasks = [episode_of(call, b) for b in range(len(call["target_labels"]))]
        answers = self.calls.answers(call)
        with self.autocast():
            losses = torch.stack([self.model.loss(task, answer) for task, answer in zip(tasks, answers, strict=True)])
        self.steps.backward(losses.sum() / batch_size)
        right = [
            answer["logits"].argmax(-1) == task["target_labels"] for task, answer in zip(tasks, answers, strict=True)
        ]
        accuracies = torch.stack([queries.float().mean() for queries in right])
        return torch.stack([losses.detach().float(), accuracies], dim=1)

    def check_finite(self, batch: Batch, results: Sequence[Sequence[float]]) -> None:
        """Raises UserError that names the first task whose loss is NaN or infinite."""
        for index, (loss, _) in zip(batch.tasks, results, strict=True):
            if not math.isfinite(loss):
                dataset = self.datasets["train"]
                names = ", ".join(dataset.split.classes[label] for label in dataset.plan(index).labels)
                raise UserError(
                    f"the loss became {loss} in training task {index} (classes {names}): lower --learning_rate or use "
                    "--precision fp32; the last checkpoint is kept"
                )

    def log_window(self) -> None:
        """A row for the tasks since the last one."""
        progress, args = self.progress, self.args
        loss, accuracy = (float(mean) for mean in np.mean(progress.window, axis=0))
        data_seconds, compute_seconds = self.seconds / len(progress.window)
        self.seconds[:] = 0
        progress.window.clear()
        rate = self.learning_rate_at(progress.tasks_done - 1)
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

    def out_of_patience(self) -> bool:
        later = [tasks for tasks, *_ in self.progress.validations if tasks > self.progress.best_tasks]
        return 0 < self.args.patience <= len(later)

    def has_trained(self) -> bool:
        return self.progress.tasks_done >= self.args.training_iterations or self.out_of_patience()

    # Validate --------------------------------------------------------------------------------------------------------

    def validate(self) -> Validation:
        dataset = self.datasets["val"]
        with self.calls.feature_store(dataset) as store:
            predictions = self.evaluate(dataset, self.args.num_val_tasks, store)
        accuracy, ci95 = accuracy_interval(predictions.episode_accuracies)
        args, split = self.args, dataset.split.name
        seen = {"inductive": self.model.inductive, "uses_class_text": self.model.uses_class_text}
        labels = marks({**vars(args), **seen, "selected_on": "test" if args.val_on_test else "nothing"})
        how = [f"{args.num_val_tasks} tasks", *labels]
        warning = "; on the TEST split: not comparable" if args.val_on_test else ""
        sentence = (
            f"validation after {self.progress.tasks_done} tasks: {accuracy:.2f} +/- {ci95:.2f} % on {split}  "
            f"({', '.join(how)}{warning})"
        )
        return Validation(split, accuracy, sentence, ci95, labels)

    def evaluate(self, dataset: VideoDataset, num_tasks: int, store: FeatureStore | None) -> Predictions:
        """Answers the first `num_tasks` episodes, each process its share, and merges the answers."""
        self.model.eval()
        tally = Tally(dataset.split.classes)
        answered = contextlib.closing(self.calls.answered(dataset, num_tasks, store))
        with self.bar(num_tasks, dataset.split.name, leave=False) as bar, torch.inference_mode(), answered as answers:
            for call, logits in answers:
                if not torch.isfinite(logits).all():
                    raise UserError(
                        f"NaN or infinite logits in episode {call['index'][0]} of {dataset.split.name}: the weights or batch "
                        "norm statistics are broken; use --precision fp32, or other weights"
                    )
                tally.add(logits.cpu(), call)
                bar.update(len(logits) * self.processes.size)
                bar.set_postfix(accuracy=f"{100 * tally.right / tally.asked:.1f}%", refresh=False)
        tally.merge(self.processes.gather(tally))
        self.leave_out(tally.bad_videos)
        self.model.train()
        return tally.predictions()

    # Test ------------------------------------------------------------------------------------------------------------

    def test(self, checkpoint_path: Path) -> None:
        """Tests the weights of a checkpoint at every asked way and shot; writes results.json and predictions.csv."""
        args, dataset = self.args, self.datasets["test"]
        checkpoint = self.checkpoint if self.checkpoint and args.test_only else load_checkpoint(checkpoint_path)
        load_model_state(self.model, checkpoint, checkpoint_path)
        tasks_done = checkpoint["progress"]["tasks_done"]
        ways, shots = ways_and_shots(args)
        about = {
            "tasks": args.num_test_tasks,
            "seed": args.seed,
            "queries_per_class": args.query_per_class_test,
            "noisy_support": args.noisy_support,
            "split": dataset.split.name,
            "dataset": test_dataset(args),
            "trained_on": args.dataset if args.test_dataset and tasks_done else None,
            "split_fingerprint": dataset.split.fingerprint,
            "sealed_episodes": args.episodes,
            "method": args.method,
            "inductive": self.model.inductive,
            "uses_class_text": self.model.uses_class_text,
            "prompt": args.prompt,
            "text_features": args.text_features,
            "trained_parameters": sum(p.numel() for p in self.model.parameters() if p.requires_grad and tasks_done),
            "backbone": args.backbone,
            "checkpoint": checkpoint_path.name,
            **origin(checkpoint),
            "untrained": self.is_untrained(checkpoint),
            "precision": args.precision,
        }
        sizes: list[dict[str, Any]] = []
        predictions: list[Predictions] = []
        with self.calls.feature_store(dataset) as store:
            for way, shot in [(way, shot) for way in ways for shot in shots]:
                sized = dataset.narrowed(way, shot)
                predictions.append(self.evaluate(sized, args.num_test_tasks, store))
                plans = (sized.plan(index) for index in range(args.num_test_tasks))
                size = {
                    "way": way, "shot": shot, **predictions[-1].summary(), "episodes": episodes_fingerprint(plans)
                }  # fmt: skip
                sizes.append(size)
                about["left_out"] = len(frozenset().union(*(tested.bad_videos for tested in predictions)))
                labels = marks(about)
                how = [
                    f"{way}-way {shot}-shot", f"{args.num_test_tasks} tasks", f"{args.method} on {args.backbone}",
                    f"{checkpoint_path.name} after {tasks_done} tasks", *labels,
                ]  # fmt: skip
                self.run.log(f"test: {size['accuracy']:.2f} +/- {size['ci95']:.2f} %  ({', '.join(how)})")
        results = {**sizes[0], **about, "marks": labels, "sizes": sizes, "versions": versions()}
        self.write_results(results, predictions[0])
        if results["untrained"]:
            self.run.log(
                "UNTRAINED: weights of this model have only ever been random, which says nothing of the method"
            )
        if results["selected_on"] == "test":
            self.run.log("this checkpoint was CHOSEN ON THE TEST SPLIT (--val_on_test): comparable with nothing")
        chance = 100 / ways[0]
        if results["accuracy"] - results["ci95"] < chance + 5:
            hint = ", or start from pretrained weights" if args.no_pretrained else ""
            self.run.log(
                f"this is close to chance ({chance:.0f} %), as one expects after few tasks: train longer{hint}"
            )

    def is_untrained(self, checkpoint: dict[str, Any]) -> bool:
        """Whether weights of the backbone or of the head have only ever been random. A head's factor on its logits, a
        single number, does not count: it changes no answer."""
        if checkpoint.get("untrained", checkpoint["progress"]["tasks_done"] == 0):
            names = [name for name, weight in self.model.named_parameters() if weight.ndim]
            random_backbone = self.args.no_pretrained and self.args.backbone in BACKBONES
            return random_backbone or not all(name.startswith("backbone.") for name in names)
        return False

    def write_results(self, results: dict[str, Any], predictions: Predictions) -> None:
        if not self.run.writes:
            return
        if (self.run.path / "results.json").exists():
            for name in ("results.csv", "predictions.csv", "report.html", "results.json"):
                self.run.retire(name)
        predictions.save(self.run.path / "predictions.csv")
        write_json(self.run.path / "results.json", results)  # its presence says that the test is done
        for size in results["sizes"]:  # a curve of its own for each kind of number
            kind = ", ".join([f"{size['way']}-way {size['shot']}-shot", f"{results['tasks']} tasks", *results["marks"]])
            curves = {f"test/{name}, {kind}": float(size[name]) for name in ("accuracy", "ci95")}
            self.run.scalars(results["checkpoint_tasks"], **curves)
        self.run.flush_board()  # with the file: a run that is killed now does not test again
        try:
            write_report(self.run.path, results, predictions)
        except Exception as error:  # a page that fails must not cost the numbers
            self.run.log(
                f"warning: report.html was not written ({type(error).__name__}: {error}); the numbers are in results.json "
                "and predictions.csv"
            )


if __name__ == "__main__":
    sys.exit(main())
