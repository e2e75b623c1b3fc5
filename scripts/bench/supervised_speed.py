"""Ordinary recognition beside the way in which the code bases of TSM and of the Action Recognition Study do it.

Theirs: each frame a Pillow picture that is cropped, resized, mirrored and made a float tensor; networks in float32, channel
by channel; in tests one view of a video after the other, each decoded anew.

Letters: N clips, T frames, A views of a video.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from backbones import build_backbone
from backbones.recogniser import Recogniser
from clips.clip_dataset import ClipDataset, ViewDataset
from clips.frame_sampling import clip_sampling
from clips.labelled_videos import SplitVideos
from clips.transforms import InputSpec, MultiScaleCrop, ViewCrops
from clips.video_split import Split
from engine.devices import autocast, default_device, use_channels_last
from scripts.bench.timing import PRECISION, SEQ_LEN, WAY, Comparison, cached_in, race, write_videos

Box = tuple[int, int, int, int]  # left, top, right, bottom


def pillow_clip(paths: Sequence[Path], box: Box, size: int, spec: InputSpec) -> Tensor:
    """Frames cropped to `box` and resized: float32 (T, 3, size, size)."""
    pictures = [Image.open(path).convert("RGB").crop(box).resize((size, size)) for path in paths]
    frames = [
        torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous().float().div(255) for picture in pictures
    ]
    mean, std = (torch.tensor(values)[:, None, None] for values in (spec.mean, spec.std))
    return torch.stack([(frame - mean) / std for frame in frames])


def recogniser(quick: bool, *, plain: bool) -> Recogniser:
    torch.manual_seed(0)
    model = Recogniser(build_backbone("tsm_resnet18" if quick else "tsm_resnet50", seq_len=SEQ_LEN), WAY)
    if not plain:
        use_channels_last(model)
    return model.to(default_device())


def supervised_training(quick: bool) -> Iterator[Comparison]:
    """A step of TSM on ResNet-50, 4 clips of 8 frames of 224 px, from JPEG files to the optimiser."""
    clips, size, side = (2, 32, 48) if quick else (4, 224, 256)
    models = [recogniser(quick, plain=plain) for plain in (False, True)]
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9) for model in models]
    spec, device = models[0].backbone.input_spec, default_device()
    labels = torch.arange(clips, device=device) % WAY
    with tempfile.TemporaryDirectory() as folder, cached_in(Path(folder) / "cache"):
        write_videos(Path(folder) / "train", videos_per_class=1, side=side)
        videos = SplitVideos(Split.open(folder, "train"))
        dataset = ClipDataset(
            videos, sampling=clip_sampling("tsm", seq_len=SEQ_LEN), transform=MultiScaleCrop(size), seed=0
        )
        folders = sorted((Path(folder) / "train").glob("*/*"))[:clips]
        crop = MultiScaleCrop(size)
        height, width = crop.shapes(side, side)[2]

        def step(number: int, batch: Tensor) -> None:
            F.cross_entropy(models[number](batch), labels).backward()
            optimizers[number].step()
            optimizers[number].zero_grad(set_to_none=True)
            if device.type == "cuda":
                torch.cuda.synchronize()

        def ours() -> None:
            batch = dataset.batch(0, range(clips))["clips"].to(device)
            with autocast(device, PRECISION):
                step(0, spec.normalise(batch))

        def plainly() -> None:
            box = (0, 0, width, height)
            batch = [pillow_clip(sorted(video.glob("*.jpg")), box, size, spec) for video in folders]
            step(1, torch.stack(batch).to(device))

        yield race(
            f"supervised training step, {PRECISION}", "Pillow, float32, plainly", ours, plainly, 1 if quick else 3
        )


def supervised_test(quick: bool) -> Iterator[Comparison]:
    """All views of one video: 10 clips x 3 crops of 8 frames of 224 px, by TSM on ResNet-50."""
    num_clips, size, side, frames = (2, 32, 36, 16) if quick else (10, 224, 256, 80)
    models = [recogniser(quick, plain=plain).eval() for plain in (False, True)]
    spec, device = models[0].backbone.input_spec, default_device()
    with tempfile.TemporaryDirectory() as folder, cached_in(Path(folder) / "cache"):
        write_videos(Path(folder) / "test", videos_per_class=1, side=side, frames=frames)
        videos = SplitVideos(Split.open(folder, "test"))
        sampling, crops = clip_sampling("study_dense", seq_len=SEQ_LEN, stride=4), ViewCrops(size, 3, short_side=side)
        dataset = ViewDataset(videos, sampling=sampling, crops=crops, num_clips=num_clips)
        paths = sorted(next((Path(folder) / "test").glob("*/*")).glob("*.jpg"))
        places = crops.places(side, side)

        @torch.inference_mode()
        def ours() -> Tensor:
            item = dataset.with_views(dataset.frames(0), device)
            with autocast(device, PRECISION):
                return torch.cat([models[0](spec.normalise(part)) for part in item["views"].split(10)]).cpu()

        @torch.inference_mode()
        def plainly() -> Tensor:
            logits = []
            for place in places:
                for clip in dataset.clip_frames(0):
                    box = (place.left, place.top, place.left + size, place.top + size)
                    view = pillow_clip([paths[frame] for frame in clip], box, size, spec)
                    logits.append(models[1](view[None].to(device)))
            return torch.cat(logits).cpu()

        what = f"test of a video, {len(places) * num_clips} views, {PRECISION}"
        yield race(what, "view by view, Pillow, float32", ours, plainly, 1)
