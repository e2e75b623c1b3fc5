"""Views of test videos through a recogniser.

Letters: V videos, A views of each, T frames, C classes.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from clips.clip_dataset import ViewDataset, read_views
from clips.transforms import InputSpec
from engine.devices import autocast
from engine.processes import Processes
from engine.row_store import UNKNOWN, RowStore, weights_hash
from results.view_scores import ViewScores
from utils import UserError


class ViewCalls:
    """The calls that this process makes of a recogniser to test it, and their logits."""

    def __init__(
        self,
        model: nn.Module,
        input_spec: InputSpec,
        processes: Processes,
        args: argparse.Namespace,
        *,
        folder: Path,
        bar: Callable[..., Any],
        log: Callable[[str], None] = print,
    ) -> None:
        """folder: for logits, which are kept until a test is done. bar: makes a progress bar. log: is told of damaged ones."""
        self.model = model
        self.input_spec = input_spec
        self.processes = processes
        self.device = processes.device
        self.args = args
        self.folder = folder
        self.bar = bar
        self.log = log

    def scores(self, dataset: ViewDataset, key: dict[str, Any]) -> tuple[ViewScores, list[str]]:
        """The scores of all views under the present weights, each process its share of the videos, and messages about
        those that cannot be read. A test that was stopped is resumed.

        key: what the scores depend on, beside weights, views and number format.
        """
        videos, crops = dataset.videos, dataset.crops
        num_views = dataset.num_clips * crops.num_crops
        protocol = (
            f"{self.args.seq_len} frames by {self.args.sampling} sampling, {dataset.num_clips} {dataset.clips} clip(s) x "
            f"{crops.num_crops} crop(s) of {crops.size} px from a shorter side of {crops.resized_side} px"
        )
        key = {
            **key,
            "weights": weights_hash(self.model),
            "videos": videos.fingerprint,
            "protocol": protocol,
            "sampling": dataclasses.asdict(dataset.sampling),
            "input_spec": dataclasses.asdict(self.input_spec),
            "precision": self.args.precision,
            "seed": self.args.seed,
        }
        key = self.processes.gather(key)[0]  # on unlike machines weights may differ in a last bit
        shape = (len(videos), num_views, len(videos.classes))
        with self.processes.shared_store(lambda: RowStore(self.folder, key, shape, self.log)) as store:
            bad = self.fill(store, dataset)
            kept = [index for index in range(len(videos)) if index not in bad]
            scores = ViewScores(
                videos=[videos.video_name(index) for index in kept],
                classes=list(videos.classes),
                labels=videos.labels[kept],
                logits=store.read(kept).numpy(),
                protocol=protocol,
                num_crops=crops.num_crops,
                num_clips=dataset.num_clips,
                multi_label=videos.multi_label,
            )
        return scores, list(bad.values())

    def fill(self, store: RowStore, dataset: ViewDataset) -> dict[int, str]:
        """Fills a store (V, A, C) with the logits that it lacks. Returns messages about videos that cannot be read."""
        self.model.eval()
        per_call = self.args.views_per_call
        own = list(self.processes.share(range(len(dataset))))
        size = max(1, per_call // store.shape[1])
        groups = [own[first : first + size] for first in range(0, len(own), size)]
        store.check(own)
        # Whole groups, so that a test that was stopped computes the rest in the same batches, to the same bits.
        groups = [group for group in groups if UNKNOWN in store.known[group]]
        missing = [index for group in groups for index in group]
        bad: dict[int, str] = {}
        with self.bar(len(missing), dataset.videos.name, "video", leave=False) as bar, torch.inference_mode():
            reading = read_views(dataset, missing, num_workers=self.args.num_workers, device=self.device)
            for group in groups:
                read = list(itertools.islice(reading, len(group)))
                bad |= {video["index"]: video["bad_videos"][0] for video in read if video["bad_videos"]}
                if good := [video for video in read if not video["bad_videos"]]:
                    views = torch.cat([video["views"] for video in good])
                    logits = torch.cat([self.logits_of(some) for some in views.split(per_call)])
                    store.write([video["index"] for video in good], logits.view(len(good), *store.shape[1:]).numpy())
                bar.update(len(group))
        bad = {index: message for messages in self.processes.gather(bad) for index, message in messages.items()}
        if len(bad) == len(dataset):
            raise UserError(
                f"none of the {len(bad)} videos of {dataset.videos.root} could be read: {next(iter(bad.values()))}"
            )
        store.refresh()
        return bad

    def logits_of(self, views: Tensor) -> Tensor:
        """uint8 views (A, T, 3, H, W) on the device -> float32 (A, C) in memory."""
        with autocast(self.device, self.args.precision):
            logits: Tensor = self.model(self.input_spec.normalise(views)).float()
        return logits.cpu()
