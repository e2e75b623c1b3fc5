"""What can only be measured and checked on a machine with a GPU, one part after the other until the time is up.

Run by scripts/gpu_check.sh, which says more.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import json
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from engine.devices import default_device, use_tf32
from engine.settings import build_parser
from methods import METHODS, build_head
from results.terminal import Row
from scripts.bench import files, floors, memory, stored_tests
from scripts.bench.timing import peak_bytes, write_videos
from utils import write_json

SECONDS = 9 * 60
ROOT = Path(__file__).resolve().parents[2]
NETWORKS = (("resnet50", 224), ("clip_vit_b16", 224))


@dataclasses.dataclass(frozen=True)
class Part:
    """Rows that are measured one by one, so that it can be left between them."""

    title: str
    header: Row
    rows: Callable[[], Iterator[Row]]


@dataclasses.dataclass
class Outcome:
    title: str
    header: Row
    rows: list[Row] = dataclasses.field(default_factory=list)
    failure: str = ""
    complete: bool = False
    seconds: float = 0.0


# ---------------------------------------------------------------------------------------------------------------------
# Checks


def equal_to_cpu(backbone: str = "resnet18") -> Iterator[Row]:
    """Logits and gradients of every method on the GPU, beside those on the CPU, in float32 without rounding."""
    use_tf32(False)
    for method in METHODS:
        torch.manual_seed(0)
        flags = f"-c unused --no_pretrained --method {method} --backbone {backbone} --seq_len 8"
        on_cpu = build_head(build_parser(METHODS).parse_args(shlex.split(flags))).eval()
        on_gpu = copy.deepcopy(on_cpu).to(default_device())
        size = on_cpu.backbone.input_spec.size
        with torch.no_grad():
            like = on_cpu.encode(torch.zeros(1, 8, 3, size, size))
        features = torch.randn(1, 15, *like.shape[1:]).relu()
        labels, found = torch.arange(5).repeat(2)[None], []
        text = {"class_text": torch.randn(1, 5, on_cpu.class_text_width or 512)} if on_cpu.uses_class_text else {}
        for head in (on_cpu, on_gpu):
            given = features.to(next(head.parameters()).device).requires_grad_()
            there: dict[str, Any] = {name: of_classes.to(given.device) for name, of_classes in text.items()}
            logits = head.classify_episodes(given[:, :10], labels.to(given.device), given[:, 10:], **there)["logits"]
            (gradient,) = torch.autograd.grad(logits.logsumexp(dim=-1).sum(), given)
            found.append([logits.detach().cpu(), gradient.cpu()])
        apart = [((a - b).abs().max() / a.abs().max().clamp_min(1e-12)).item() for a, b in zip(*found, strict=True)]
        if apart[0] > 1e-3 or apart[1] > 1e-2:  # a best step that is one by a hair may be another
            raise AssertionError(
                f"{method}: logits are {apart[0]:.1e} and gradients {apart[1]:.1e} apart, at most 1e-3 and 1e-2"
            )
        yield [method, f"{apart[0]:.1e}", f"{apart[1]:.1e}"]


def tests() -> Iterator[Row]:
    """Those that train, encode and store on whatever device there is."""
    for name in ("test_feature_store.py", "test_passes.py", "test_training.py"):
        done = command([sys.executable, "-m", "pytest", "-q", f"tests/{name}"], seconds=120)
        yield [name, done.strip().splitlines()[-1]]


def programs() -> Iterator[Row]:
    """A training that torchrun starts as a job of one process, with NCCL; and one with --num_gpus 1."""
    with tempfile.TemporaryDirectory() as folder:
        for split in ("train", "test"):
            write_videos(Path(folder) / "data" / split, videos_per_class=3, side=64)
        flags = (
            f"--dataset {folder}/data --method trx --backbone resnet18 --no_pretrained --img_size 64 --shot 1 -qpc 1 -i 8 "
            "--tasks_per_batch 4 --val_iters 0 --num_test_tasks 20 --num_workers 2 --print_freq 4"
        )
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=1"]
        for name, launcher, more in (
            ("torchrun, NCCL, one process", torchrun, "--bn sync"),
            ("--num_gpus 1", [sys.executable], "--num_gpus 1"),
        ):
            run = [*launcher, "run.py", "-c", f"{folder}/{len(more)}", *shlex.split(f"{flags} {more}")]
            lines = command(run, seconds=120).strip().splitlines()
            yield [name, next(line for line in reversed(lines) if "s compute" in line).strip()]


def command(words: Sequence[str], *, seconds: float) -> str:
    """What it prints. Raises AssertionError with its last lines where it fails."""
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=seconds, check=False)
    if done.returncode:
        raise AssertionError(f"{shlex.join(words)} ended with {done.returncode}: {(done.stdout + done.stderr)[-500:]}")
    return done.stdout


# ---------------------------------------------------------------------------------------------------------------------
# Measurements


def training_steps(*, compile: bool) -> Iterator[Row]:
    formats = ("bf16",) if compile else ("fp32", "tf32", "bf16")
    for backbone, size in NETWORKS:
        for name in formats:
            yield floors.floor_row(backbone, size, 1, name, 5, compile=compile)


def stored_features() -> Iterator[Row]:
    return stored_tests.stored_test_rows(quick=False, backbones=("resnet50",), methods=("trx", "hyrsm", "otam"))


def reading() -> Iterator[Row]:
    """Clips that one process reads in a second, beside those that a training step in bf16 takes."""
    step = floors.TrainingStep("resnet50", 224, 1, "bf16")
    for _ in range(5):
        step()
    taken = len(step.frames) / sum(step.seconds.values())
    for form, ours, _, share in files.file_rows(quick=False):
        yield [form, ours, share, f"{taken:.0f}", f"{taken / float(ours):.1f}"]


PARTS = [
    Part("Answers and gradients, GPU beside CPU", ["method", "logits apart", "gradients apart"], equal_to_cpu),
    Part("Programs", ["what", "last row"], programs),
    Part("Training steps", floors.HEADER, functools.partial(training_steps, compile=False)),
    Part("Memory of a training task", memory.HEADER, functools.partial(memory.memory_rows, peak_bytes, quick=False)),
    Part(
        "Reading", ["form", "clips a second", "of decoding alone", "a step takes", "processes to keep up"], reading
    ),
    Part("Tests on stored features", stored_tests.HEADER, stored_features),
    Part("Training steps, compiled", floors.HEADER, functools.partial(training_steps, compile=True)),
    Part("Tests of the library", ["file", "outcome"], tests),
]  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------------
# Report


def measured(parts: Sequence[Part], deadline: float, show: Callable[[str], None] = print) -> Iterator[Outcome]:
    """Each part as far as it comes until `deadline`, on the clock of time.monotonic. One that fails does not end the others."""
    for part in parts:
        outcome, started = Outcome(part.title, part.header), time.monotonic()
        show(f"{part.title} ...")
        try:
            rows = part.rows()
            while time.monotonic() < deadline and not outcome.complete:
                row = next(rows, None)
                if row is None:
                    outcome.complete = True
                else:
                    outcome.rows.append(row)
                    show("   ".join(row))
        except Exception as error:  # whatever it is, the report says it, and the other parts are worth having
            outcome.failure = f"{type(error).__name__}: {error}"
            show(outcome.failure)
        outcome.seconds = round(time.monotonic() - started, 1)
        yield outcome


def markdown(machine: dict[str, Any], outcomes: Sequence[Outcome]) -> str:
    lines = [f"# {machine['device']}", "", ", ".join(f"{name} {value}" for name, value in machine.items()), ""]
    for outcome in outcomes:
        lines += [f"## {outcome.title}", ""]
        if outcome.rows:
            cells = [outcome.header, ["---"] * len(outcome.header), *outcome.rows]
            lines += [f"| {' | '.join(row)} |" for row in cells] + [""]
        if outcome.failure:
            lines += [f"**Failed**: {outcome.failure}", ""]
        elif not outcome.complete:
            lines += ["The time was up before the end.", ""]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    (folder,) = sys.argv[1:] if argv is None else argv
    if not torch.cuda.is_available():
        print("no GPU that torch can use is in this machine: run this on one that has one", file=sys.stderr)
        return 2
    started = time.monotonic()
    machine = {
        "device": torch.cuda.get_device_name(), "memory": f"{torch.cuda.get_device_properties(0).total_memory / 2**30:.0f} GiB",
        "torch": torch.__version__, "CUDA": torch.version.cuda, "cuDNN": torch.backends.cudnn.version(),
    }  # fmt: skip
    outcomes = []
    for outcome in measured(PARTS, started + SECONDS - 30):  # a row that has begun is waited for
        outcomes.append(outcome)
        # After every part, so that a machine that is taken away leaves what was measured.
        (Path(folder) / "gpu_check.md").write_text(markdown(machine, outcomes), encoding="utf-8")
        parts = [dataclasses.asdict(done) for done in outcomes]
        write_json(Path(folder) / "gpu_check.json", json.loads(json.dumps({"machine": machine, "parts": parts})))
    return 1 if any(outcome.failure for outcome in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
