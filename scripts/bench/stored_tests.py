"""What a test of 10,000 episodes takes once the videos of its split are encoded, for every method.

A split of UCF101's shape, 2,745 test videos of 21 classes, whose frames are never read: features are made up, since time
does not depend on them. Episodes are planned, read from the store and answered as run.py does it.

Letters: V videos.
"""

from __future__ import annotations

import contextlib
import shlex
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from clips.transforms import ClipTransform
from clips.video_split import Split
from engine.class_text import open_run_text
from engine.devices import default_device, use_channels_last
from engine.episode_calls import EPISODES_PER_CALL, EpisodeCalls
from engine.feature_store import FeatureStore
from engine.processes import Processes
from engine.settings import build_parser
from methods import METHODS, build_head
from results.terminal import Row
from scripts.bench.timing import cached_in, clock, peak_flops
from video_reader import VideoDataset

WAY, SHOT, EPISODES = 5, 5, 10_000
HEADER: Row = [
    "method",
    "width",
    "per video",
    "encoding a video",
    "store",
    "GFLOP",
    "an episode",
    "of peak",
    "10,000 episodes",
]
DIFFERENT = 16  # made-up videos; the rows of a store repeat them
VARIANTS = ("dual_prototypes --dp_variant code",)


def stored_test_rows(
    *,
    quick: bool,
    backbones: Sequence[str] = ("resnet50", "clip_vit_b16"),
    methods: Sequence[str] = (*METHODS, *VARIANTS),
) -> Iterator[Row]:
    """Per method and width of features: kB, milliseconds and GB of its descriptions, and what an episode takes.

    Encoding a video: what the method makes of its features, beside the backbone.
    """
    classes, videos, seconds = (6, 6, 0.05) if quick else (21, 131, 2.0)
    if quick:
        backbones, methods = ("conv4",), methods[:2]
    with tempfile.TemporaryDirectory() as folder, cached_in(Path(folder) / "cache"):
        for label in range(classes):
            for video in range(videos - (label < 6 and not quick)):  # 2,745 in all
                path = Path(folder) / "data" / "test" / f"class{label:02d}" / f"video{video:03d}"
                path.mkdir(parents=True)
                (path / "00001.jpg").write_bytes(b"x")
        split = Split.open(Path(folder) / "data", "test")
        for backbone in backbones:
            for name in methods:
                yield stored_test(name, backbone, split, Path(folder) / "features", 64 if quick else EPISODES, seconds)


def stored_test(method: str, backbone: str, split: Split, folder: Path, most: int, seconds: float) -> Row:
    torch.manual_seed(0)
    flags = f"-c unused --no_pretrained --precision fp32 --seq_len 8 --method {method} --backbone {backbone}"
    args = build_parser(METHODS).parse_args(shlex.split(flags))
    head = build_head(args).eval().requires_grad_(False)
    use_channels_last(head)
    head.to(default_device())
    if head.uses_class_text:
        args.text_features = str(folder.with_name("names.pt"))
        width = head.class_text_width or head.backbone.feature_dim
        torch.save({name: torch.randn(width) for name in split.classes}, args.text_features)
    text = open_run_text(args, head, {"test": split}, Processes(), folder)
    size = head.backbone.input_spec.size
    dataset = VideoDataset(
        split, way=WAY, shot=SHOT, queries=1, seq_len=args.seq_len, transform=ClipTransform(size), seed=0
    )
    calls = EpisodeCalls(head, head.backbone.input_spec, Processes(), args, folder, text=text)
    with torch.inference_mode(), calls.feature_store(dataset) as store:
        assert store is not None
        per_video = fill(store, calls)
        with FlopCounterMode(display=False) as counter:
            calls.logits(next(calls.of_evaluation(dataset, EPISODES_PER_CALL, store)))
        peak = peak_flops()
        with contextlib.closing(calls.answered(dataset, most, store)) as episodes:
            started = clock()
            next(episodes)  # all episodes are planned
            planning = clock() - started
            answered, started = 0, clock()
            for _, logits in episodes:
                answered += len(logits)
                if clock() - started > seconds:
                    break
            episode = (clock() - started) / answered
        flops = counter.get_total_flops() / EPISODES_PER_CALL
        row_bytes = store.read([0]).nbytes
    return [
        method, str(head.backbone.feature_dim), f"{row_bytes / 1e3:.0f} kB", f"{1e3 * per_video:.1f} ms",
        f"{len(store.known) * row_bytes / 1e9:.2f} GB", f"{flops / 1e9:.2f}", f"{1e3 * episode:.1f} ms",
        f"{flops / episode / peak:.0%}", f"{(planning + EPISODES * episode) / 60:.1f} min",
    ]  # fmt: skip


def fill(store: FeatureStore, calls: EpisodeCalls) -> float:
    """Writes every row of the store. Returns the seconds that the method's own part takes for each video."""
    clips = torch.zeros(1, calls.args.seq_len, 3, *2 * [calls.input_spec.size], dtype=torch.uint8)
    features = torch.randn(DIFFERENT, *calls.encode(clips, describe=False).shape[1:], device=calls.device).relu()
    started = clock()
    parts = [calls.model.describe(part) if store.described else part for part in features.split(8)]
    taken = (clock() - started) / DIFFERENT
    rows = torch.cat(parts).cpu().numpy()
    for first in range(0, len(store.known), DIFFERENT):
        numbers = range(first, min(first + DIFFERENT, len(store.known)))
        store.write(numbers, rows[: len(numbers)])
    store.refresh()
    return taken
