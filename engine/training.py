"""`Training`: what every training does alike - how it starts, steps, validates, saves, resumes and ends."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from clips.transforms import InputSpec
from engine.devices import autocast, computes_in, use_channels_last, use_tf32
from engine.flags import find_checkpoint
from engine.processes import Processes, synchronise_batch_norms
from engine.steps import StepProfile, Steps
from engine.stopping import Terminated, Termination
from utils import (
    BEST,
    FINAL,
    LATEST,
    LOG_COLUMNS,
    RunFolder,
    UserError,
    load_checkpoint,
    read_json,
    save_checkpoint,
    seed_everything,
)

TRAINING_ONLY = "aux_classifier."
"""What names of weights begin with that only training needs, since they tell the training classes apart."""


def load_model_state(model: nn.Module, checkpoint: dict[str, Any], path: Path) -> None:
    """Copies a checkpoint's weights into the model; every name and shape must agree, but for what is not tested."""
    needed = model.state_dict().keys()
    weights = {
        name: tensor
        for name, tensor in checkpoint["model"].items()
        if name in needed or not name.startswith(TRAINING_ONLY)
    }
    try:
        model.load_state_dict(weights)
    except (RuntimeError, KeyError) as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise UserError(f"{path} does not fit the model: {reason}; give the settings it was trained with") from error
    broken = [name for name, tensor in weights.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
    if broken:
        raise UserError(f"{path} holds NaN or infinite weights ({broken[0]}): its training diverged, give another")


def input_spec_of(backbone: Any, args: argparse.Namespace) -> InputSpec:
    """What frames must be like: the backbone's own spec, with the size and normalisation that the flags ask for."""
    spec: InputSpec = backbone.input_spec
    if args.normalise == "none":
        spec = spec.unnormalised()
    return dataclasses.replace(spec, size=args.img_size or spec.size, frames=args.seq_len)


@dataclasses.dataclass
class Progress:
    """Where a run stands: all of it is in every checkpoint, which is written between optimiser steps.

    A subclass adds its two counters, and says which they are by `done` and `mark_best`.
    """

    window: list[list[float]] = dataclasses.field(default_factory=list)  # what the next row of log.csv is the mean of
    validations: list[list[float]] = dataclasses.field(default_factory=list)  # [done, accuracy, ...] of each
    validation_due: bool = False  # the next thing to do
    best_accuracy: float = -1.0
    rows_size: int = 0  # bytes of log.csv that belong to what is done

    @property
    def done(self) -> int:
        raise NotImplementedError

    def mark_best(self) -> None:
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Validation:
    """What a validation found. Accuracy and its interval in percent; marks: what makes them other than ordinary ones, see
    results/marks.py; columns: more of its row in log.csv."""

    split: str
    accuracy: float
    sentence: str
    ci95: float | None = None
    marks: Sequence[str] = ()
    columns: Mapping[str, Any] = dataclasses.field(default_factory=dict)


class Training:
    """A model in training, in its run folder, on this process of a job.

    A subclass says what is trained on what: `open_splits`, `build_model`, `prepare_data`, `build_optimizer`, `train`,
    `validate`, `test`. `unit` is what it counts, up to the number that `length_flag` gives; `columns` are those of its
    log.csv; `stores` is the folder for what an evaluation keeps until it is done.
    """

    unit = "task"
    length_flag = "-i"
    columns: Sequence[str] = LOG_COLUMNS
    stores = "features"
    progress_type: type[Progress] = Progress
    model: Any
    progress: Any
    splits: Mapping[str, Any]
    """Videos by role (train, val, test), each with a `fingerprint` and a `root`."""

    def __init__(
        self,
        args: argparse.Namespace,
        run: RunFolder,
        processes: Processes | None = None,
        termination: Termination | None = None,
    ) -> None:
        self.args = args
        self.run = run
        self.processes = processes or Processes()
        self.termination = termination or Termination()
        self.device = self.processes.device
        self.ending = False  # whether the processes have agreed to end after this step
        self.left_out: set[str] = set()  # messages about unreadable videos, each logged once
        self.seconds = np.zeros(2)  # spent on data and on computing since the last row
        self.checkpoint = self.starting_checkpoint()
        self.progress = self.progress_type()

        self.splits = self.open_splits()  # first: what is missing is named before weights are loaded or downloaded
        seed_everything(args.seed)
        use_tf32(not args.no_tf32)
        self.warn_of_emulation()
        self.model = self.build_model()
        self.input_spec = input_spec_of(self.model.backbone, args)
        self.prepare_data()
        self.place_model()
        self.steps = Steps(
            self.build_optimizer(), self.processes, precision=args.precision, clip_norm=args.clip_gradient
        )
        self.profile = StepProfile(run.path / "profile" if args.profile and run.writes else None)
        if self.checkpoint is not None:
            self.restore(self.checkpoint)
        self.processes.broadcast(self.model)

    # What a subclass says --------------------------------------------------------------------------------------------

    def open_splits(self) -> Mapping[str, Any]:
        raise NotImplementedError

    def build_model(self) -> nn.Module:
        """The model, with a `backbone`, on the CPU."""
        raise NotImplementedError

    def prepare_data(self) -> None:
        """Makes data sets of the splits, for the model's `input_spec`."""
        raise NotImplementedError

    def build_optimizer(self) -> torch.optim.Optimizer:
        raise NotImplementedError

    def check_equal_shares(self) -> None:
        """Raises UserError where processes whose batch norms wait for each other would make unequal numbers of calls."""

    def distribute_model(self) -> None:
        """Spreads the model over the GPUs of this process."""
        raise NotImplementedError

    def validate(self) -> Validation:
        raise NotImplementedError

    def has_trained(self) -> bool:
        """Whether the asked training is done."""
        raise NotImplementedError

    def read_checkpoint(self, path: Path) -> dict[str, Any]:
        """A checkpoint of this library. A subclass may read files of others too."""
        return load_checkpoint(path)

    # Start -----------------------------------------------------------------------------------------------------------

    def starting_checkpoint(self) -> dict[str, Any] | None:
        """What a resumed run continues from, or a test takes its weights from; None for a new run."""
        if self.args.test_only:
            return self.read_checkpoint(Path(self.args.test_model_name))
        path = self.run.path / LATEST
        if not self.args.resume_from_checkpoint:
            return None
        if not path.exists():
            self.run.log(f"the run was stopped before its first checkpoint: it starts again from {self.unit} 0")
            self.run.rewind_rows(0)
            return None
        return load_checkpoint(path)

    def warn_of_emulation(self) -> None:
        """Says what a number format costs that the device has no units for."""
        if not computes_in(self.device, self.args.precision):
            cost = (
                "2 to 10 times as slow as fp32 where it was measured"
                if self.device.type == "cpu"
                else "slower than fp32"
            )
            self.run.log(
                f"warning: this {self.device.type.upper()} has no units for {self.args.precision} and emulates it, {cost}"
            )

    def place_model(self) -> None:
        """Brings the model where and into the form in which it will be used."""
        use_channels_last(self.model)
        self.model.to(self.device)
        if self.args.num_gpus > 1:
            self.distribute_model()
        if self.args.bn == "sync":
            self.check_equal_shares()
            synchronise_batch_norms(self.model)
        if self.args.compile:
            self.model.backbone.compile_passes()

    def restore(self, checkpoint: dict[str, Any]) -> None:
        """Loads a checkpoint; only its weights are used when testing."""
        load_model_state(self.model, checkpoint, Path(self.args.test_model_name or self.run.path / LATEST))
        for reference, content in checkpoint["args"].get("own_code", {}).items():
            if self.args.own_code.get(reference) != content:
                self.run.log(
                    f"warning: the code in {reference.rpartition(':')[0]} has changed since the run was started"
                )
        if self.args.test_only:
            return
        for role in checkpoint["splits"].keys() & self.splits.keys() - {"test"}:
            if self.splits[role].fingerprint != checkpoint["splits"][role]:
                raise UserError(
                    f"the videos of {self.splits[role].root} are not those this run was started on: restore them to resume "
                    "it, or start a new run with another -c"
                )
        try:
            self.progress = self.progress_type(**checkpoint["progress"])
            self.steps.load_state_dict(checkpoint)
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{self.run.path / LATEST} is not of this run ({type(error).__name__}: {error}): expected the state of its "
                "optimiser and its counters; restore the file, or start a new run with another -c"
            ) from error
        self.run.rewind_rows(self.progress.rows_size)
        threads = checkpoint["args"].get("num_threads", self.args.num_threads)
        if threads != self.args.num_threads and self.device.type == "cpu":
            self.run.log(
                f"warning: the run was started with {threads} threads and has {self.args.num_threads} now: sums are rounded "
                "differently, so that it goes another way than unbroken; set OMP_NUM_THREADS"
            )
        self.run.log(f"resuming after {self.progress.done} {self.unit}s")

    # Steps -----------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def stepping(self, total: int) -> Iterator[tqdm[Any]]:
        """Around the loop over optimiser steps: a progress bar; a SIGTERM waits for the end of the step that it meets."""
        self.model.train()
        with self.bar(total, "train", initial=self.progress.done) as bar, self.termination.deferred():
            if self.progress.validation_due:
                self.validate_and_save()
            yield bar

    def finish_step(self, *, save: bool, validate: bool) -> None:
        """After an optimiser step: saves and validates where that is due, and ends the run where the processes agreed to.

        Before a validation nothing is saved, since it saves when it is done: a run that is killed in it does it again.
        """
        self.progress.validation_due = validate
        if self.ending or (save and not validate):
            self.save(LATEST)
        if self.ending:
            raise Terminated
        if self.profile.is_new:
            self.run.log(f"profile of one step in {self.profile.folder}:\n{self.profile.table}")
        if validate:
            self.validate_and_save()

    def validate_and_save(self) -> None:
        """Validates, keeps the model if it is the best so far, and saves."""
        try:
            with self.termination.at_once():
                found = self.validate()
        except (Terminated, UserError):
            if self.termination.asked:  # also where another process has ended before this one heard of it
                self.save(LATEST)
                raise Terminated from None
            raise
        progress, done = self.progress, self.progress.done
        progress.validation_due = False
        figures = {"accuracy": found.accuracy} | ({} if found.ci95 is None else {"ci95": found.ci95})
        progress.validations.append([done, *figures.values()])
        is_best = found.accuracy > progress.best_accuracy
        if is_best:
            progress.best_accuracy = found.accuracy
            progress.mark_best()
        exact = {name: repr(figure) for name, figure in figures.items()}
        self.run.row(**{f"{self.unit}s": done}, split=found.split, **exact, **found.columns)
        self.run.log(f"{found.sentence}{', the best so far' if is_best else ''}")
        curves = {", ".join([f"{found.split}/{name}", *found.marks]): figure for name, figure in figures.items()}
        self.run.scalars(done, **curves)
        if is_best:
            self.save(BEST)
        self.save(LATEST)
        self.model.train()

    # End -------------------------------------------------------------------------------------------------------------

    def is_finished(self) -> bool:
        """Whether a resumed run has nothing left to do, and says so."""
        is_resumed = self.args.resume_from_checkpoint and (self.run.path / FINAL).exists()
        if not (is_resumed and self.has_trained() and self.has_results()):
            return False
        self.run.log(
            f"this run is finished ({self.progress.done} {self.unit}s): raise {self.length_flag} to train on, or use "
            "--test_only"
        )
        return True

    def has_results(self) -> bool:
        """Whether a test was done; a results.json that cannot be read is none."""
        path = self.run.path / "results.json"
        if not path.exists():
            return False
        try:
            return isinstance(read_json(path), dict)
        except UserError as error:
            self.run.log(f"{error}; the test is done again")
            return False

    def save_final(self) -> Path:
        """Saves the trained model. Returns the checkpoint to test: what validation chose, or the final one."""
        self.save(LATEST)
        self.save(FINAL)
        if self.termination.asked:  # too late for the last step to see it
            raise Terminated
        self.processes.barrier()  # the files that a test needs are there
        return find_checkpoint(self.run.path, self.args.test_model_name or self.test_model_by_default())

    def test_model_by_default(self) -> str | None:
        """The checkpoint to test; None: the best on validation, else the final one."""
        return None

    def remove_stores(self) -> None:
        """Removes what an evaluation that was stopped may have left."""
        if self.run.writes:
            shutil.rmtree(self.run.path / self.stores, ignore_errors=True)

    # Throughout ------------------------------------------------------------------------------------------------------

    def save(self, name: str, **more: Any) -> None:
        """Everything that an exact continuation needs, under a name in the run folder."""
        self.progress.rows_size = self.run.rows_size()
        self.run.flush_board()
        content = {
            "args": vars(self.args),
            "progress": dataclasses.asdict(self.progress),
            "input_spec": dataclasses.asdict(self.input_spec),
            "splits": {role: videos.fingerprint for role, videos in self.splits.items()},
            "model": self.model.state_dict(),
            **self.steps.state_dict(),
            **more,
        }
        if self.run.writes:
            save_checkpoint(self.run.path / name, content)

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        return autocast(self.device, self.args.precision)

    def leave_out(self, messages: Iterable[str]) -> None:
        """Logs what was found out about videos that cannot be read, once."""
        for message in sorted(set(messages) - self.left_out):
            self.run.log(f"left out: {message}")
            self.left_out.add(message)

    def bar(self, total: int, what: str, unit: str = "", **options: Any) -> tqdm[Any]:
        """A progress bar of the first process, where there is a terminal."""
        hidden = None if self.run.writes else True
        return tqdm(total=total, desc=what, unit=unit or self.unit, disable=hidden, **options)
