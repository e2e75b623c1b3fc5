"""Episodes through a method: from frames, or from features of videos that are encoded once.

A call is one forward pass over B episodes, a dict of tensors and lists with B in front.

Letters: B episodes, N support videos, Q queries, K way, T frames, S feature steps, D feature width.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import functools
import itertools
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from clips.transforms import InputSpec
from engine.class_text import RunText
from engine.devices import autocast
from engine.feature_store import FeatureStore, fingerprint, planned_ahead, stored_episodes
from engine.processes import Batch, Processes
from engine.row_store import UNKNOWN
from engine.side_by_side import MOST, side_by_side, twin
from utils import locked
from video_reader import VideoDataset, read_episodes

MOST_DESCRIBED = 16 * 2**30  # bytes on disk that descriptions of a split may take where features take less
MOST_IN_MEMORY = 2**31  # bytes, with a frozen backbone, whose features are what is stored
EPISODES_PER_CALL = 8  # on stored features: enough to fill a CPU's cores or a GPU, little enough for TRX's tuples


def collate(tasks: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Several tasks of a VideoDataset as one call; frames stay channels-last."""
    call: dict[str, Any] = {"bad_videos": [message for task in tasks for message in task["bad_videos"]]}
    for name in tasks[0].keys() - {"bad_videos"}:
        values = [task[name] for task in tasks]
        if name in {"support_set", "target_set"}:
            pixels = torch.stack([rearrange(value, "f c h w -> f h w c") for value in values])
            call[name] = rearrange(pixels, "b f h w c -> b f c h w")
        else:
            call[name] = torch.stack(values) if isinstance(values[0], Tensor) else values
    return call


def episode_of(call: dict[str, Any], b: int) -> dict[str, Tensor]:
    """The tensors of one episode of a call."""
    return {name: value[b] for name, value in call.items() if isinstance(value, Tensor)}


class EpisodeCalls:
    """The calls that this process makes of a method, and the method's answers.

    What goes in is frames where it has to be - in training, with `--direct`, for a method that does not work on features
    - and else stored features, or what the method's `describe` makes of them.
    """

    def __init__(
        self,
        model: Any,
        input_spec: InputSpec,
        processes: Processes,
        args: argparse.Namespace,
        folder: Path,
        log: Callable[[str], None] = print,
        text: RunText | None = None,
    ) -> None:
        """folder: for features that are kept no longer than an evaluation takes. log: is told of damaged ones. text: for a
        method that uses class text."""
        self.model = model
        self.input_spec = input_spec
        self.processes = processes
        self.device = processes.device
        self.args = args
        self.folder = folder
        self.log = log
        self.text = text

    # What goes in ----------------------------------------------------------------------------------------------------

    def of_training(self, dataset: VideoDataset, batches: Sequence[Batch]) -> Generator[dict[str, Any]]:
        """The calls of training batches: on stored features where the backbone is frozen, else on frames."""
        if not self.args.freeze_backbone:
            yield from self.with_text(self.on_frames(dataset, batches), dataset, training=True)
            return
        with self.feature_store(dataset) as store:
            self.model.train()
            yield from self.with_text(self.on_videos(dataset, batches, store), dataset, training=True)

    def of_evaluation(
        self, dataset: VideoDataset, num_tasks: int, store: FeatureStore | None
    ) -> Iterator[dict[str, Any]]:
        """The calls of the first `num_tasks` episodes."""
        return itertools.chain.from_iterable(self.portions(dataset, num_tasks, store))

    def portions(
        self, dataset: VideoDataset, num_tasks: int, store: FeatureStore | None
    ) -> Iterator[Generator[dict[str, Any]]]:
        """The same, as many at a time as are planned together: once the first of them is there, all videos are encoded."""
        per_call = 1 if store is None else EPISODES_PER_CALL
        batches = self.processes.shard(range(num_tasks), per_call * self.processes.size, per_call)
        for ahead in planned_ahead(batches):
            yield self.with_text(self.on_videos(dataset, ahead, store, describe=True), dataset)

    def with_text(
        self, calls: Generator[dict[str, Any]], dataset: VideoDataset, *, training: bool = False
    ) -> Generator[dict[str, Any]]:
        """The calls with class text, for a method that uses it."""
        return calls if self.text is None else self.text.added_to(calls, dataset.split, training=training)

    def on_videos(
        self, dataset: VideoDataset, batches: Sequence[Batch], store: FeatureStore | None, *, describe: bool = False
    ) -> Generator[dict[str, Any]]:
        """From stored features, or from frames if there is no store. describe: where features are stored of a method that
        condenses them, as they are with a frozen backbone, gives descriptions if they fit into memory."""
        if store is None:
            return self.on_frames(dataset, batches)
        describes = describe and not store.described and self.model.condenses and self.fits_in_memory(store)
        encode = self.encoder(store, dataset)
        return stored_episodes(store, dataset, batches, encode, self.describe if describes else None)

    def fits_in_memory(self, store: FeatureStore) -> bool:
        """Whether descriptions of all videos of a store do."""
        one = self.describe(torch.zeros(1, *store.shape[1:]))
        return store.shape[0] * one.nbytes <= MOST_IN_MEMORY

    def describe(self, features: Tensor) -> Tensor:
        """What the method makes of each video alone: features (V, *shape) -> (V, ...), in float32 on the CPU."""
        with torch.inference_mode():
            return self.model.describe(features.to(self.device).float()).cpu()

    def on_frames(self, dataset: VideoDataset, batches: Sequence[Batch]) -> Generator[dict[str, Any]]:
        calls = [call for batch in batches for call in batch.own_calls]
        tasks = read_episodes(dataset, [index for call in calls for index in call], self.args.num_workers)
        for call in calls:
            yield collate([next(tasks) for _ in call])

    def prepare(self, call: dict[str, Any]) -> dict[str, Any]:
        """Moves a call to the device; frames travel as uint8 and become normalised floats there."""
        moved = {k: v.to(self.device, non_blocking=True) if isinstance(v, Tensor) else v for k, v in call.items()}
        for frames in {"support_set", "target_set"} & moved.keys():
            moved[frames] = self.input_spec.normalise(moved[frames])
        return moved

    # What comes out --------------------------------------------------------------------------------------------------

    def answers(self, call: dict[str, Any]) -> list[dict[str, Tensor]]:
        """The model's outputs for each episode of a prepared call."""
        text = {"class_text": call["class_text"]} if self.text else {}
        if "support_features" in call:
            features = (call["support_features"], call["support_labels"], call["target_features"])
            outputs = self.model.classify_episodes(*features, described=call["described"], **text)
        else:
            images = (call["support_set"], call["support_labels"], call["target_set"])
            with autocast(self.device, self.args.precision):
                if len(call["target_labels"]) == 1:
                    own_text = {name: features[0] for name, features in text.items()}
                    return [self.model(*(image[0] for image in images), **own_text)]
                outputs = self.model(*images, **text)
        return [episode_of(outputs, b) for b in range(len(call["target_labels"]))]

    def logits(self, call: dict[str, Any]) -> Tensor:
        """Of a call of an evaluation, (B, Q, K)."""
        answers = self.answers(self.prepare(call))
        return torch.stack([answer["logits"] for answer in answers])

    def answered(
        self, dataset: VideoDataset, num_tasks: int, store: FeatureStore | None
    ) -> Generator[tuple[dict[str, Any], Tensor]]:
        """The calls of an evaluation with their logits, in their order; on stored features and a CPU, several at a time."""
        cores = torch.get_num_threads() if store is not None and self.device.type == "cpu" else 1
        for calls in self.portions(dataset, num_tasks, store):
            if cores == 1:
                yield from ((call, self.logits(call)) for call in calls)
            else:
                yield from side_by_side([self.twin().logits for _ in range(min(cores, MOST))], calls)

    def twin(self) -> EpisodeCalls:
        """These calls of the same weights, for another thread."""
        own = copy.copy(self)
        own.model = twin(self.model)
        return own

    # Stored features -------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def feature_store(self, dataset: VideoDataset) -> Iterator[FeatureStore | None]:
        """Features of a split under the present weights; None where frames have to be seen each time."""
        if self.args.direct or not self.model.works_on_features:
            yield None
            return
        self.model.eval()
        described, shape = self.what_is_stored(sum(map(len, dataset.split.videos)))
        settings = {"reads": self.model.reads, "precision": self.args.precision, "device": self.device.type}
        encoder = self.model if described else self.model.backbone
        key = fingerprint(encoder, self.input_spec, dataset, **settings)
        parent = Path(self.args.features or self.folder)
        with self.processes.shared_store(
            lambda: FeatureStore(parent, key, dataset.split, shape, self.log, described=described),
            keep=self.args.features is not None,
        ) as store:
            yield store

    def what_is_stored(self, videos: int) -> tuple[bool, torch.Size]:
        """Of a split of so many videos: whether descriptions rather than features, and the shape of one.

        Features, for a method that is trained on them, since its weights change; and where descriptions are the larger ones
        and more than MOST_DESCRIBED bytes.
        """
        size = self.input_spec.size
        features = self.encode(torch.zeros(1, self.args.seq_len, 3, size, size, dtype=torch.uint8), describe=False)
        if not self.model.condenses or self.args.freeze_backbone:
            return False, features.shape[1:]
        description = self.describe(features)
        if description.numel() > features.numel() and videos * description.nbytes > MOST_DESCRIBED:
            return False, features.shape[1:]
        return True, description.shape[1:]

    def encode(self, clips: Tensor, *, describe: bool) -> Tensor:
        """uint8 clips (N, T, 3, H, W) -> what is stored of each: steps (N, S, D), maps (N, D, S, h, w), or a description."""
        with torch.inference_mode(), autocast(self.device, self.args.precision):
            features = self.model.encode(self.input_spec.normalise(clips.to(self.device)))
        return self.describe(features) if describe else features

    def encoder(self, store: FeatureStore, dataset: VideoDataset) -> Callable[[list[int]], bool]:
        """What fills those rows of a store that any process lacks, each process its share. Says whether there were any."""
        encode_clips = functools.partial(self.encode, describe=store.described)

        def encode(rows: list[int]) -> bool:
            if not self.lacking(rows, store):
                return False
            with self.alone_in(store):
                lacking = self.lacking(rows, store)
                store.known[lacking] = UNKNOWN
                own = self.processes.share(rows if lacking else [])
                store.encode(own, dataset, encode_clips, num_workers=self.args.num_workers)
                store.merge(self.processes.gather({row: store.bad[row] for row in own if row in store.bad}))
            return True

        return encode

    def lacking(self, rows: list[int], store: FeatureStore) -> list[int]:
        """Those rows of a store that any process lacks."""
        own = [row for row in rows if store.known[row] == UNKNOWN]
        return sorted(set().union(*self.processes.gather(own)))  # none writes before all have looked

    @contextlib.contextmanager
    def alone_in(self, store: FeatureStore) -> Iterator[None]:
        """Keeps other runs from writing to a store that is kept: what they wrote until then is taken over."""
        if not self.args.features:
            yield
            return
        with contextlib.ExitStack() as stack:
            if self.processes.is_first:
                stack.enter_context(locked(store.folder / "lock", wait=True))
            self.processes.barrier()
            store.take_over()
            yield
