"""Memory and open files of a long training and a long test, which have to stay what they are after the start.

A small network on small frames: what would grow does so with every task, whatever its size.
"""

from __future__ import annotations

import os
import shlex
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

import run
from engine.settings import parse_args
from methods import METHODS
from results.terminal import Row
from scripts.bench.timing import cached_in, write_videos
from utils import RunFolder

HEADER: Row = ["of", "done", "memory", "open files"]


def family() -> list[int]:
    """This process and those that it has started."""
    own = os.getpid()
    return [own, *map(int, Path(f"/proc/{own}/task/{own}/children").read_text().split())]


def memory_and_files() -> tuple[int, int]:
    """Bytes that lie in memory, and how many files are open, of the whole family."""
    pages = sum(int(Path(f"/proc/{process}/statm").read_text().split()[1]) for process in family())
    return pages * os.sysconf("SC_PAGE_SIZE"), sum(len(os.listdir(f"/proc/{process}/fd")) for process in family())


def growth_rows(*, quick: bool) -> Iterator[Row]:
    """Of this process and those that read frames for it, on Linux."""
    tasks, episodes, parts, workers = (4, 16, 2, 0) if quick else (3000, 10_000, 5, 2)
    rows: list[Row] = []

    def note(what: str, done: int) -> None:
        memory, files = memory_and_files()
        rows.append([what, f"{done:,}", f"{memory / 1e6:.0f} MB", str(files)])

    class Watched(run.Learner):
        def log_window(self) -> None:
            super().log_window()
            note("training tasks", self.progress.tasks_done)

    with tempfile.TemporaryDirectory() as folder, cached_in(Path(folder) / "cache"):
        for split in ("train", "test"):
            write_videos(Path(folder) / "data" / split, videos_per_class=4, side=32)
        flags = shlex.split(
            f"-c {folder}/run --dataset {folder}/data --method trx --backbone conv4 --no_pretrained --img_size 32 --shot 1 "
            f"-qpc 1 --trans_linear_out_dim 64 -i {tasks} --tasks_per_batch 2 --print_freq {tasks // parts} --val_iters 0 "
            f"--num_workers {workers} --save_freq {tasks // parts} --precision fp32"
        )
        args = parse_args(flags, METHODS)
        folder_of_run = RunFolder(args.checkpoint_dir)
        learner = Watched(args, folder_of_run)
        folder_of_run.start(vars(args), flags)
        learner.train()
        yield from rows
        rows.clear()
        calls: Any = learner.calls
        learner.model.eval()
        dataset = learner.datasets["test"]
        with torch.inference_mode(), calls.feature_store(dataset) as store:
            done = 0
            for _, logits in calls.answered(dataset, episodes, store):
                before, done = done, done + len(logits)
                if before * parts // episodes < done * parts // episodes:
                    note("test episodes", done)
        folder_of_run.close()
        yield from rows
