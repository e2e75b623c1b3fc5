"""Prints how fast the library is beside plain ways of doing the same, and how much memory either takes.

    python scripts/benchmark.py                      everything; a quarter of an hour on 2 cores
    python scripts/benchmark.py --only reading trx   some of it
    python scripts/benchmark.py --table memory       what a training task takes per setting, and which GPU that fits
    python scripts/benchmark.py --table floors tests files growth
                                                     training steps beside the machine's peak, tests on stored features,
                                                     reading beside decoding, memory and files over thousands of tasks
    python scripts/benchmark.py --busy ...           where others are at work: processor time of one thread, not the wall's
    python scripts/benchmark.py --quick              tiny sizes, to see that it runs; the figures mean nothing

Seconds depend on the machine, ratios much less: in every row both ways run in turn, in one process, and the ratio is taken
of each pair of runs. Nothing else should run meanwhile, or --busy tell it.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

# Read when torch starts its threads. One that waits in a busy loop slows down whatever else wants its core.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
import simplejpeg
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

# Python puts the folder of a script on its path, not the project's.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import methods
import run
from clips.transforms import ClipTransform
from clips.video_split import Split
from engine.command_line import Parser, arguments, exit_code
from engine.devices import autocast, default_device, keep_freed_memory, use_channels_last
from engine.episode_calls import EPISODES_PER_CALL
from engine.settings import build_parser
from methods import METHODS
from methods.otam import alignment_cost
from model import CNN_DualPrototypes, CNN_FSHead
from results.terminal import Row, terminal_table
from scripts.bench import files, floors, growth, stored_tests
from scripts.bench import memory as step_memory
from scripts.bench.supervised_speed import supervised_test, supervised_training
from scripts.bench.timing import (
    HEADER,
    PRECISION,
    SEQ_LEN,
    WAY,
    Comparison,
    cached_in,
    clock,
    memory,
    one_thread,
    peak_bytes,
    race,
    write_videos,
)
from tests.oracles import arn as literal_arn
from tests.oracles import heads as literal_heads
from tests.oracles import hyrsm as literal_hyrsm
from tests.oracles import team as literal_team
from tests.oracles import trx_tsn as literal
from video_reader import VideoDataset

# ---------------------------------------------------------------------------------------------------------------------
# Reading


def read_with_pillow(folders: Sequence[Path], size: int) -> Tensor:
    """Frames as the TRX-style libraries read them: each a Pillow picture, then a float tensor, then stacked."""
    rng = np.random.default_rng(0)
    clips = []
    for folder in folders:
        pictures = [Image.open(path).convert("RGB") for path in sorted(folder.glob("*.jpg"))]
        scale = size * 8 // 7 / min(pictures[0].size)
        width, height = (round(side * scale) for side in pictures[0].size)
        pictures = [p if p.size == (width, height) else p.resize((width, height)) for p in pictures]
        left, top = int(rng.integers(width - size + 1)), int(rng.integers(height - size + 1))
        pictures = [picture.crop((left, top, left + size, top + size)) for picture in pictures]
        if rng.random() < 0.5:
            pictures = [picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for picture in pictures]
        tensors = [torch.from_numpy(np.array(p)).permute(2, 0, 1).contiguous().float().div(255) for p in pictures]
        clips.append(torch.stack(tensors))
    return torch.cat(clips)


def reading(quick: bool) -> Iterator[Comparison]:
    """A training episode of 30 videos, 5-way 1-shot with 5 queries a class, into memory."""
    side, size, queries = (64, 56, 1) if quick else (256, 224, 5)
    with tempfile.TemporaryDirectory() as folder, cached_in(Path(folder) / "cache"), one_thread():
        write_videos(Path(folder) / "train", videos_per_class=1 + queries, side=side)
        folders = sorted((Path(folder) / "train").glob("*/*"))
        images = [path.read_bytes() for video in folders for path in sorted(video.iterdir())]
        dataset = VideoDataset(
            Split.open(folder, "train"),
            way=WAY,
            shot=1,
            queries=queries,
            seq_len=SEQ_LEN,
            transform=ClipTransform(size, train=True, flip=True),
            seed=0,
        )

        def decode_only() -> None:
            room = np.empty((side, side, 3), dtype=np.uint8)
            for image in images:
                simplejpeg.decode_jpeg(image, buffer=room)

        episode, repetitions = f"episode of {len(images)} frames", 1 if quick else 15
        yield race(
            episode, "Pillow and floats", lambda: dataset[0], lambda: read_with_pillow(folders, size), repetitions
        )
        yield race(episode, "decoding alone", lambda: dataset[0], decode_only, repetitions)


# ---------------------------------------------------------------------------------------------------------------------
# Heads


def dual_prototypes_literally(head: CNN_DualPrototypes, support: Tensor, labels: Tensor, target: Tensor) -> Tensor:
    branches = [literal_heads.dual_prototypes_code(branch, support, labels, target) for branch in head.branches]
    return torch.stack(branches).mean(dim=0)


@dataclasses.dataclass(frozen=True)
class LiteralForm:
    """A method by its flags, and its literal form: (head, support (N, S, D), labels (N,), target (Q, S, D)) -> (Q, K)."""

    flags: str
    logits: Callable[..., Tensor]
    repetitions: int = 5


# A method that is listed here is measured.
LITERAL_FORMS = {
    "tsn": LiteralForm("tsn", literal.tsn),
    "trx": LiteralForm("trx", literal.trx),
    "otam": LiteralForm("otam", lambda head, *episode: literal_heads.otam(*episode)),
    "dual_prototypes": LiteralForm("dual_prototypes --dp_variant code", dual_prototypes_literally, repetitions=1),
    "hyrsm": LiteralForm("hyrsm", literal_hyrsm.hyrsm),
    "hyrsm_mean_distance": LiteralForm("hyrsm --hyrsm_shots mean_distance", literal_hyrsm.hyrsm, repetitions=3),
    "team": LiteralForm("team", literal_team.team, repetitions=3),
}


def build_head(flags: str) -> CNN_FSHead:
    """A method on a backbone, with random weights, always the same ones."""
    torch.manual_seed(0)
    return methods.build_head(build_parser(METHODS).parse_args(["-c", "unused", "--no_pretrained", *flags.split()]))


def against_literal_form(literal_form: LiteralForm, quick: bool) -> Iterator[Comparison]:
    """5-way 5-shot with 25 queries, on features as wide as ResNet-50's."""
    shot, queries, backbone = (2, 5, "conv4") if quick else (5, 25, "resnet50")
    repetitions = 1 if quick else literal_form.repetitions
    head = build_head(f"--method {literal_form.flags} --backbone {backbone} --seq_len {SEQ_LEN}").train()
    features = [
        torch.randn(clips, SEQ_LEN, head.backbone.feature_dim).relu().requires_grad_()
        for clips in (WAY * shot, queries)
    ]
    labels, target_labels = torch.arange(WAY).repeat(shot), torch.arange(WAY).repeat(queries // WAY)

    def ours() -> Tensor:
        support, target = (part[None] for part in features)
        return head.classify_episodes(support, labels[None], target)["logits"][0]

    def other() -> Tensor:
        return literal_form.logits(head, features[0], labels, features[1])

    def forward(form: Callable[[], Tensor]) -> Callable[[], object]:
        return torch.no_grad()(form)

    def training(form: Callable[[], Tensor]) -> Callable[[], object]:
        return lambda: F.cross_entropy(form(), target_labels).backward()

    method, form = f"{literal_form.flags} head", "its literal form"
    yield race(f"{method}, forward", form, forward(ours), forward(other), repetitions)
    yield race(f"{method}, training", form, training(ours), training(other), repetitions)
    yield memory(f"{method}, forward, memory", form, forward(ours), forward(other))
    yield memory(f"{method}, training, memory", form, training(ours), training(other))


def alignment(quick: bool) -> Iterator[Comparison]:
    """OTAM's scan alone, of 25 queries with 25 support videos both ways, at 8 and 16 steps."""

    def train(form: Callable[[Tensor, float], Tensor], costs: Tensor) -> None:
        form(costs, 0.1).sum().backward()

    for steps in (3,) if quick else (8, 16):
        costs = torch.rand(2, 25, 25, steps, steps, requires_grad=True)
        ours = functools.partial(train, alignment_cost, costs)
        other = functools.partial(train, literal_heads.otam_cell_by_cell, costs)
        yield race(f"alignment of {steps} steps, training", "cell by cell", ours, other, 1 if quick else 10)


# ---------------------------------------------------------------------------------------------------------------------
# Whole steps


def arn_training(quick: bool) -> Iterator[Comparison]:
    """A training step of ARN on its own encoder, 5-way 1-shot with 3 queries a class, from normalised frames.

    The literal form goes channel by channel in float32, pools one clip after the other, and writes out every pair.
    """
    seq_len, size, queries = (8, 16, 1) if quick else (20, 128, 3)
    flags = f"--method arn --backbone conv4_3d --seq_len {seq_len}"
    ours, plain = (build_head(flags).train() for _ in range(2))
    use_channels_last(ours)
    clips = torch.randn(WAY * (1 + queries), seq_len, size, size, 3).permute(0, 1, 4, 2, 3)
    support, target = clips.flatten(0, 1).split([WAY * seq_len, WAY * queries * seq_len])
    planes, labels, target_labels = clips.contiguous(), torch.arange(WAY), torch.arange(WAY).repeat(queries)

    def train() -> None:
        with autocast(clips.device, PRECISION):
            outputs = ours(support, labels, target)
        ours.loss({"target_labels": target_labels}, outputs).backward()

    def train_plainly() -> None:
        maps = literal_arn.encode(plain.backbone.get_submodule("net"), planes)
        logits = literal_arn.arn(plain, maps[:WAY], labels, maps[WAY:])
        literal_arn.squared_error(logits, target_labels).backward()

    against = "its literal form, float32"
    yield race(f"ARN's training step, {PRECISION} channels-last", against, train, train_plainly, 1)


@dataclasses.dataclass
class Episode:
    """Frames of support (N*T, 3, H, W) and target (Q*T, 3, H, W), and their labels."""

    support: Tensor
    labels: Tensor
    target: Tensor
    target_labels: Tensor


class Step:
    """What is done with an episode, by run.py with --precision auto or plainly, on a GPU where there is one.

    Plainly: float32 frames and weights channel by channel, support and query through the backbone one after the other.
    """

    device = default_device()

    def __init__(self, *, plain: bool, backbone: str, size: int, seq_len: int) -> None:
        calls = "--separate_backbone_calls" if plain else ""
        self.head = build_head(f"--method trx --backbone {backbone} --seq_len {seq_len} {calls}")
        self.size, self.seq_len, self.plain = size, seq_len, plain
        if not plain:
            use_channels_last(self.head)
        self.head.to(self.device)
        self.optimizer = torch.optim.SGD(self.head.parameters(), lr=0.001)

    def random_episode(self, queries: int) -> Episode:
        """As it is read: uint8 and channels-last, as VideoDataset gives it; plainly, float32 and channel by channel."""
        support, target = (
            torch.randint(0, 256, (clips * self.seq_len, 3, self.size, self.size), dtype=torch.uint8).contiguous(
                memory_format=torch.channels_last
            )
            for clips in (WAY, WAY * queries)
        )
        if self.plain:
            support, target = (frames.contiguous().float().div(255) for frames in (support, target))
        parts = (support, torch.arange(WAY), target, torch.arange(WAY).repeat(queries))
        return Episode(*(part.to(self.device) for part in parts))

    def logits(self, episode: Episode) -> dict[str, Tensor]:
        if self.plain:
            return self.head(episode.support, episode.labels, episode.target)
        support, target = map(self.head.backbone.input_spec.normalise, (episode.support, episode.target))
        with autocast(self.device, PRECISION):
            return self.head(support, episode.labels, target)

    def train(self, episode: Episode) -> None:
        loss = self.head.loss({"target_labels": episode.target_labels}, self.logits(episode))
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.wait()

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def test(self, episode: Episode) -> None:
        with torch.inference_mode():
            self.logits(episode)
        self.wait()


def steps(quick: bool, size: int = 224) -> tuple[Step, Step]:
    """Ours and plainly: TRX on ResNet-18, 5-way 1-shot."""
    backbone, size, seq_len = ("conv4", 32, 3) if quick else ("resnet18", size, SEQ_LEN)
    ours, plain = (Step(plain=plain, backbone=backbone, size=size, seq_len=seq_len) for plain in (False, True))
    return ours, plain


def training_step(quick: bool) -> Iterator[Comparison]:
    """With 5 queries a class; and how much faster bfloat16 is in nothing but a matrix product, for which it was made."""
    against, queries = "float32, plainly", 1 if quick else 5
    for size in (84, 224):
        ours, plain = (functools.partial(step.train, step.random_episode(queries)) for step in steps(quick, size))
        yield race(f"training step, {size} px, {PRECISION} channels-last", against, ours, plain, 1 if quick else 3)
        yield memory(f"training step, {size} px, memory", against, ours, plain)
    matrix = torch.randn(2, 128, 128) if quick else torch.randn(2, 2048, 2048)
    halved = matrix.bfloat16()
    yield race("matrix product, bf16", "in float32", lambda: halved[0] @ halved[1], lambda: matrix[0] @ matrix[1], 5)


def test_episode(quick: bool) -> Iterator[Comparison]:
    """With 1 query a class: from frames, and from features that are stored once the split's videos are encoded."""
    against = "float32, plainly"
    ours, plain = steps(quick)
    for step in (ours, plain):
        step.head.eval()
    ours_call, plain_call = (functools.partial(step.test, step.random_episode(queries=1)) for step in (ours, plain))
    yield race(f"test episode, {PRECISION} channels-last", against, ours_call, plain_call, 1 if quick else 5)
    episodes, head = EPISODES_PER_CALL, plain.head
    features = [torch.randn(episodes, WAY, head.num_steps, head.backbone.feature_dim).relu() for _ in range(2)]
    labels = torch.arange(WAY).expand(episodes, -1)

    def on_features() -> None:
        with torch.inference_mode():
            head.classify_episodes(features[0], labels, features[1])

    def on_frames() -> None:
        for _ in range(episodes):
            plain_call()

    yield race(f"{episodes} test episodes, stored features", against, on_features, on_frames, 1)


# ---------------------------------------------------------------------------------------------------------------------
# Starting up


def start_up(quick: bool) -> Iterator[Comparison]:
    """Opening a split of 100,000 videos that was listed before, and one that was not."""
    classes, videos = (3, 20) if quick else (100, 1000)
    yesterday = time.time() - 86400  # a folder that was just changed would not be trusted
    with tempfile.TemporaryDirectory() as folder:
        for label in range(classes):
            for video in range(videos):
                path = Path(folder) / "train" / f"class{label:03d}" / f"video{video:04d}"
                path.mkdir(parents=True)
                (path / "00001.jpg").write_bytes(b"x")
                os.utime(path, (yesterday, yesterday))
        fresh_caches = (Path(folder) / f"cache{number}" for number in range(100))

        def open_with(cache: Path) -> None:
            with cached_in(cache):
                Split.open(folder, "train")

        yield race(
            f"opening {classes * videos:,} videos, listed before", "for the first time",
            lambda: open_with(Path(folder) / "cache"), lambda: open_with(next(fresh_caches)), 1 if quick else 3,
        )  # fmt: skip


def seconds_per_task(launcher: Sequence[str], dataset: Path, flags: str) -> float:
    """Of a training by run.py, by its own last row, which leaves out the start."""
    with tempfile.TemporaryDirectory() as folder:
        command = [*launcher, "run.py", "-c", f"{folder}/run", "--dataset", str(dataset), *flags.split()]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        subprocess.run(command, cwd=Path(run.__file__).parent, env=environment, check=True, capture_output=True)
        rows = re.findall(r"([\d.]+) s data \+ ([\d.]+) s compute", Path(f"{folder}/run/log.txt").read_text())
    return sum(map(float, rows[-1]))


def two_processes(quick: bool) -> Iterator[Comparison]:
    """Training by torchrun with two processes of one thread each, beside one process of one thread."""
    size, tasks = (32, 4) if quick else (64, 8)
    flags = (
        f"--method trx --backbone {'conv4' if quick else 'resnet18'} --no_pretrained --shot 1 -qpc 2 --img_size {size} "
        f"-i {2 * tasks} --tasks_per_batch {tasks // 2} --print_freq {tasks} --val_iters 9999 --num_test_tasks 1 "
        "--num_workers 0 --save_freq 0"
    )
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    with tempfile.TemporaryDirectory() as folder, cached_in(Path(folder) / "cache"):
        for split in ("train", "test"):
            write_videos(Path(folder) / "data" / split, videos_per_class=4, side=size)
        seconds = [
            [seconds_per_task(launcher, Path(folder) / "data", flags) for launcher in (torchrun, [sys.executable])]
            for _ in range(1 if quick else 2)
        ]
    ours, other = map(list, zip(*seconds, strict=True))
    yield Comparison("training task, 2 processes", "1 process, 1 thread", ours, other)


# ---------------------------------------------------------------------------------------------------------------------
# The program

SECTIONS: dict[str, Callable[[bool], Iterator[Comparison]]] = {
    "reading": reading,
    **{name: functools.partial(against_literal_form, form) for name, form in LITERAL_FORMS.items()},
    "alignment": alignment,
    "arn": arn_training,
    "training_step": training_step,
    "test_episode": test_episode,
    "supervised_training": supervised_training,
    "supervised_test": supervised_test,
    "start_up": start_up,
    "two_processes": two_processes,
}


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows that are no comparison of two ways. text_columns: those that are aligned left."""

    title: str
    header: Row
    rows: Callable[..., Iterator[Row]]
    text_columns: Sequence[int] = (0,)


TABLES = {
    "memory": Table(
        "one training task, 5-way 5-shot, 25 queries, 8 frames of 224 px",
        step_memory.HEADER,
        functools.partial(step_memory.memory_rows, peak_bytes),
        (0, 2),
    ),
    "floors": Table(
        "a training step of TRX, 5-way with a query a class, 8 frames", floors.HEADER, floors.floor_rows, (0, 3)
    ),
    "tests": Table(
        "a test of 5-way 5-shot episodes on the stored features of 2,745 videos",
        stored_tests.HEADER,
        stored_tests.stored_test_rows,
    ),
    "files": Table("videos of 10 s and 256 px, clips of 8 frames, one process", files.HEADER, files.file_rows),
    "growth": Table("training and test of a small TRX, with 2 processes that read", growth.HEADER, growth.growth_rows),
}


def machine() -> str:
    """What the figures were measured on."""
    processor = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        processor = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    gpu = f"{torch.cuda.get_device_name()}, " if torch.cuda.is_available() else ""
    return (
        f"{processor}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, "
        f"{torch.backends.cpu.get_cpu_capability()}, {gpu}torch {torch.__version__}, Python {platform.python_version()}"
    )


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS), help="measure just these")
    parser.add_argument("--table", nargs="+", choices=TABLES, default=[], help="nothing but these tables")
    parser.add_argument(
        "--busy", action="store_true", help="count the processor time of one thread, since other programs are running"
    )
    parser.add_argument("--quick", action="store_true", help="tiny sizes and one repetition, to see that it runs")
    return parser.parse_args(argv)


def benchmark(args: argparse.Namespace) -> None:
    print(machine())
    busy = os.getloadavg()[0]
    if busy > 0.3 * (os.cpu_count() or 1) and not args.busy:
        print(f"other programs are running (load {busy:.1f}): the figures will be rough; see --busy")
    if args.busy:
        clock.count_processor_time()
    for chosen in (TABLES[name] for name in args.table):
        rows = [chosen.header]
        for row in chosen.rows(quick=args.quick):
            rows.append(row)
            print("   ".join(row), file=sys.stderr, flush=True)
        print(f"\n{chosen.title}\n\n{terminal_table(rows, chosen.text_columns)}")
    if args.table:
        return
    print(
        "ratio: how many times as fast ours is, or how many times as little memory it takes, median of the pairs of runs\n"
    )
    table = [HEADER]
    for name in args.only:
        for comparison in SECTIONS[name](args.quick):
            table.append(comparison.row())
            print("   ".join(filter(None, comparison.row())), file=sys.stderr)  # the table comes at the end
    print(f"\n{terminal_table(table, text_columns=(0, 1))}")


def main(argv: Sequence[str] | None = None) -> int:
    keep_freed_memory()  # as the programs do; what they are compared with has the good of it too
    return exit_code(lambda: benchmark(parse_args(arguments(argv))))


if __name__ == "__main__":
    sys.exit(main())
