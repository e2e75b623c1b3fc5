"""Methods x backbones x sets x seeds under one budget: trains, tests, compares, and writes leaderboard.html.

    python scripts/leaderboard.py scripts/leaderboard_quick.toml                     made-up sets, minutes on 2 cores
    python scripts/leaderboard.py scripts/leaderboard_real.toml --set ssv2small=data/ssv2small
    python scripts/leaderboard.py my_board.toml --list                               what it would run, and what is done
    python scripts/leaderboard.py my_board.toml --page                               the page of what is done so far
    python scripts/leaderboard.py my_board.toml --shard 2/8                          one of eight jobs on one folder

The file says all: sets (made-up ones are drawn), backbones, methods, seeds, the budget, and the learning rates that every
method is tried at. The rate is chosen by validation accuracy at the first seed and then used for all of them; no test split
has a part in it. Each run is an ordinary run folder of run.py. What is finished is passed over, what was stopped is gone on
with, what fails is named on the page and the others go on. docs/leaderboard.md describes the file.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

# Python puts the folder of a script on its path, not the project's.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import run_supervised
from engine.command_line import Parser, arguments, exit_code
from engine.stopping import Terminated, Termination
from results.leaderboard import write_board
from scripts.board.page import board_of
from scripts.board.plan import DataSet, read_plan, with_places
from scripts.board.runs import Cell, Runs, is_done, reason
from scripts.board.workers import Job, Workers, visible_gpus
from utils import BEST, FINAL, UserError, locked, unknown_name

ROOT = Path(__file__).resolve().parents[1]


# ---------------------------------------------------------------------------------------------------------------------
# The words


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument("file", type=Path, metavar="FILE.toml", help="the plan; see docs/leaderboard.md")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of the board; unset: runs/ and the file's name")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=PATH", help="where a set of the file lies; may be repeated"
    )
    parser.add_argument(
        "--weights", action="append", default=[], metavar="NAME=FILE",
        help="weights of a backbone of the file, as -pt of run.py; may be repeated",
    )  # fmt: skip
    parser.add_argument("--shard", default="1/1", metavar="I/N", help="do the I-th of N parts, each a job of its own")
    parser.add_argument("--jobs", type=int, least=1, help="runs at a time; unset: one for each GPU, or else each core")
    parser.add_argument("--num_workers", type=int, default=0, least=0, help="processes that read ahead, for each run")
    parser.add_argument("--list", action="store_true", help="print all runs and how they stand, and stop")
    parser.add_argument("--page", action="store_true", help="write the page of what is finished, and stop")
    return parser.parse_args(argv)


def shard_of(text: str) -> tuple[int, int]:
    """(i, n) of 'i/n'."""
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise UserError(f"--shard is {text}: expected I/N with I from 1 to N, such as 2/8")
    return int(found[1]), int(found[2])


def places_of(flag: str, words: Sequence[str]) -> dict[str, str]:
    """Paths by name, of words such as NAME=PATH."""
    pairs = [word.partition("=") for word in words]
    if wrong := [word for word, (_, equals, path) in zip(words, pairs, strict=True) if not equals or not path]:
        raise UserError(f"{flag} is {wrong[0]}: expected NAME=PATH")
    return {name: path for name, _, path in pairs}


# ---------------------------------------------------------------------------------------------------------------------
# The stages


def make_sets(runs: Runs, sets: Iterable[DataSet], jobs: int) -> None:
    """Draws the made-up sets that are not there yet."""
    for data in sets:
        if data.path is not None:
            continue
        path = runs.path_of(data)
        command = [sys.executable, str(ROOT / "data_prep" / "make_demo_set.py"), str(path), "--jobs", str(jobs)]
        with locked(path.with_name(f".{path.name}.lock"), wait=True):
            code = subprocess.run([*command, *shlex.split(data.make or "")], check=False).returncode
        if code < 0:
            raise Terminated
        if code:
            raise UserError(f"the set {data.name} could not be made, for the reason above: mend its 'make'")


def base_jobs(runs: Runs, cells: Iterable[Cell]) -> list[Job]:
    trained = {runs.base_folder(cell.data, cell.backbone): cell for cell in cells if cell.backbone.base is not None}
    return [
        Job(
            f"base training of {cell.backbone.name} on {runs.base_set(cell.data, cell.backbone).name}",
            runs.base_folder(cell.data, cell.backbone),
            runs.base_argv(cell.data, cell.backbone),
            run_supervised.main,
            lambda folder: (folder / FINAL).exists(),
            [*shlex.split(cell.backbone.flags), *shlex.split(cell.backbone.base or "")],
        )
        for cell in trained.values()
    ]


def job_of(runs: Runs, cell: Cell, rate: float | None, seed: int) -> Job:
    at = "" if rate is None else f" at rate {rate:g}"
    asked = runs.asked(cell, rate, seed)
    return Job(
        f"{cell}, seed {seed}{at}", runs.folder(cell, rate, seed), runs.argv(cell, rate, seed),
        asked=asked, keeps_checkpoint=runs.plan.keep_checkpoints,
    )  # fmt: skip


def tuning_jobs(runs: Runs, cells: Iterable[Cell]) -> list[Job]:
    return [job_of(runs, cell, rate, runs.plan.seeds[0]) for cell in cells for rate in runs.rates(cell)]


def leaders(runs: Runs, cells: Iterable[Cell]) -> list[Job]:
    """A run for each set and backbone, which stores the features that the others read."""
    first = {(cell.data.name, cell.backbone.name): cell for cell in reversed(list(cells)) if cell.backbone.frozen}
    return [tuning_jobs(runs, [cell])[0] for cell in first.values()]


def seed_jobs(runs: Runs, cells: Iterable[Cell]) -> list[Job]:
    """All seeds at the chosen rate; none where no rate could be chosen."""
    return [
        job_of(runs, cell, runs.chosen(cell), seed)
        for cell in cells
        if runs.validations(cell)
        for seed in runs.plan.seeds
    ]


def cross_jobs(runs: Runs, cells: Iterable[Cell]) -> list[Job]:
    """Tests of finished runs on the test split of another set."""
    jobs = []
    for name, both in runs.plan.cross_domain.items():
        other = runs.plan.set_named[both["test"]]
        where = ["--test_dataset", str(runs.path_of(other)), *shlex.split(other.flags)]
        for cell in cells:
            if cell.data.name != both["train"] or not runs.validations(cell):
                continue
            for seed in runs.plan.seeds:
                trained = runs.folder(cell, runs.chosen(cell), seed)
                checkpoint = next((trained / n for n in (BEST, FINAL) if (trained / n).exists()), None)
                if checkpoint is not None and is_done(trained):
                    folder = runs.cross_folder(name, cell, seed)
                    argv = ["-c", str(folder), "--test_only", "-m", str(checkpoint), *where, *runs.reading]
                    jobs.append(Job(f"{name}: {cell}, seed {seed}", folder, argv))
    return jobs


def missing(runs: Runs) -> dict[str, str]:
    """Why each run that is not finished is not."""
    cells = runs.cells()
    wanted = [job for cell in cells for job in [*tuning_jobs(runs, [cell]), *seed_jobs(runs, [cell])]]
    return {job.name: reason(job.folder) for job in [*wanted, *cross_jobs(runs, cells)] if not is_done(job.folder)}


# ---------------------------------------------------------------------------------------------------------------------
# The board


def make_board(args: argparse.Namespace, words: Sequence[str]) -> int:
    plan = with_places(read_plan(args.file, places_of("--set", args.set)))
    weights = places_of("--weights", args.weights)
    if unknown := weights.keys() - {backbone.name for backbone in plan.backbones}:
        raise unknown_name("backbone", min(unknown), [backbone.name for backbone in plan.backbones])
    runs = Runs(plan, args.out or Path("runs") / args.file.stem, weights, args.num_workers)
    index, count = shard_of(args.shard)
    cells = runs.cells()
    own = cells[index - 1 :: count]
    if args.list:
        print_list(runs, own)
        return 0
    gpus = visible_gpus()
    workers = Workers(args.jobs or len(gpus) or os.cpu_count() or 1, gpus)
    with Termination():
        if not args.page:
            make_runs(runs, own, workers)
        command = shlex.join(["python", "scripts/leaderboard.py", *(word for word in words if word != "--page")])
        pages = write_board(board_of(runs, missing(runs), command), runs.out)
    print(
        f"{workers.finished} runs made, {workers.failed} of them failed; wrote {', '.join(p.name for p in pages)} to {runs.out}"
    )
    return 0


def make_runs(runs: Runs, cells: Sequence[Cell], workers: Workers) -> None:
    """Makes all that is missing of the cells, stage by stage: each needs what those before it have left."""
    plan = runs.plan
    tested_on = {both["test"] for both in plan.cross_domain.values() if both["train"] in {c.data.name for c in cells}}
    needed = {cell.data.name for cell in cells} | tested_on
    needed |= {runs.base_set(cell.data, cell.backbone).name for cell in cells if cell.backbone.base is not None}
    make_sets(runs, [data for data in plan.sets if data.name in needed], workers.slots)
    stages: list[Callable[[Runs, Sequence[Cell]], list[Job]]]
    stages = [base_jobs, leaders, tuning_jobs, seed_jobs, cross_jobs]
    for stage in stages:
        workers.do(stage(runs, cells))


def print_list(runs: Runs, cells: Sequence[Cell]) -> None:
    jobs = [*base_jobs(runs, cells), *tuning_jobs(runs, cells), *seed_jobs(runs, cells), *cross_jobs(runs, cells)]
    for job in {job.folder: job for job in jobs}.values():
        begun = (job.folder / "args.json").exists()
        state = "done" if job.done(job.folder) else f"{'begun' if begun else 'to do'}: {reason(job.folder)}"
        print(f"{job.name}  {state}")
    untuned = [cell for cell in cells if not runs.validations(cell)]
    print(f"and {len(runs.plan.seeds) - 1} more seeds of {len(untuned)} methods whose rate is not chosen yet")


def main(argv: Sequence[str] | None = None) -> int:
    words = arguments(argv)
    return exit_code(lambda: make_board(parse_args(words), words), resume="; start it again to go on")


if __name__ == "__main__":
    sys.exit(main())
