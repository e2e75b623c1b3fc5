"""Tells which of your own actions a video shows, from a few example videos of each.

    python scripts/predict.py --checkpoint runs/trx/checkpoint_best_val.pt --support my_actions --query new.mp4
    python scripts/predict.py --checkpoint C --support my_actions --query a.mp4 b.mp4 --json answers.json --picture answers.png
    python scripts/predict.py --checkpoint C --support my_actions --query new.mp4 --picture new.mp4_answer.gif

my_actions holds a folder for each action, named after it, with one example video or more: video files, or folders of
frames. Nothing is trained; one example is enough, five are better, and actions may have different numbers of them. A
probability is a share among these actions: of a video that shows none of them, it says which one is the least unlike it.
A method that uses class names takes those of the folders.
A query that cannot be read is named at the end, with exit code 2; the others are answered all the same.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import av
import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

# Python puts the folder of a script on its path, not the project's.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from clips.frame_sampling import sample_frames
from clips.frame_sources import VIDEO_SUFFIXES, BadVideo, FrameFolder, FrameSource, VideoFile
from clips.listing import first_few
from clips.transforms import ClipTransform, InputSpec
from engine.class_text import add_text_flags, text_of_episode
from engine.command_line import Parser, arguments, check_output, exit_code
from methods.checkpoints import add_library_flags, load_head
from model import CNN_FSHead
from results.drawing import class_colour, draw_probabilities, draw_strip, heading, save_picture, wrapped
from results.marks import after, marks
from results.style import LIGHT, house_style
from results.terminal import terminal_table
from utils import UserError, atomic_write, print_note, printable, write_json

PICTURE_SUFFIXES = (".png", ".gif", ".mp4")

# An annotated film: the video at the left, the probabilities at the right. Even numbers, as MP4 wants.
FILM_SIZE, FRAME_BOX = (760, 360), (400, 340)
FILM_RATE = 12  # frames per second at most
MAX_FILM_FRAMES = {".gif": 60, ".mp4": 360}  # a GIF of more is too large to be shown anywhere
FOLDER_RATE = 12  # frames per second of a folder of frames, as Something-Something is distributed


class Actions:
    """The classes of a folder of examples, in alphabetical order, and the videos of each."""

    def __init__(self, root: Path) -> None:
        layout = f"expected {root}/<action>/<video file or folder of frames>"
        if not root.is_dir():
            raise UserError(f"no folder {root}: {layout}")
        folders = sorted(path for path in root.iterdir() if path.is_dir() and path.name[0] != ".")
        if len(folders) < 2:
            raise UserError(f"{root} holds {len(folders)} action folder(s), and a choice needs two or more: {layout}")
        self.names = [folder.name for folder in folders]
        self.videos = [[open_video(path) for path in example_paths(folder)] for folder in folders]
        for folder, videos in zip(folders, self.videos, strict=True):
            if not videos:
                raise UserError(
                    f"{folder} holds no video: {layout}, the file's name ending in {', '.join(VIDEO_SUFFIXES)}"
                )

    @property
    def shots(self) -> list[int]:
        return [len(videos) for videos in self.videos]


def example_paths(folder: Path) -> list[Path]:
    """The videos in the folder of an action: video files, and folders of frames. A note names what else is in it."""
    entries = sorted(path for path in folder.iterdir() if path.name[0] != ".")
    videos = [path for path in entries if path.is_dir() or path.suffix.lower() in VIDEO_SUFFIXES]
    if others := [path.name for path in entries if path not in videos]:
        print_note(f"{folder}: {len(others):,} passed over, being no videos: {first_few(others)}")
    return videos


def open_video(path: Path) -> FrameSource:
    """A video file or a folder of frames. Raises UserError when it is neither."""
    if path.is_dir():
        folder = FrameFolder(path)
        if not folder.num_frames:
            raise UserError(f"{path} holds no frame: expected *.jpg or *.png, or a video file instead of a folder")
        return folder
    if not path.exists():
        raise UserError(f"no video {path}: expected a video file or a folder of frames")
    return VideoFile(path)


def read_clip(source: FrameSource, args: argparse.Namespace, spec: InputSpec, frames_per_step: int = 1) -> Tensor:
    """The frames that the model sees of a video, uint8 (T, 3, H, W)."""
    places = sample_frames(source.num_frames, args.seq_len, args.sampling, frames_per_step=frames_per_step)
    frames = source.read(places)
    return ClipTransform(spec.size, interpolation=spec.interpolation)(frames, np.random.default_rng())


@torch.inference_mode()
def probabilities(
    model: CNN_FSHead,
    spec: InputSpec,
    support: Sequence[Tensor],
    labels: Tensor,
    queries: Sequence[Tensor],
    text: dict[str, Any],
) -> np.ndarray:
    """Clips uint8 (T, 3, H, W) and the labels of the support -> (Q, K), rows that add up to 1.

    text: "class_text" (1, K, P) where the method uses it.
    """
    device = next(model.parameters()).device

    def frames(clips: Sequence[Tensor]) -> Tensor:
        return spec.normalise(torch.cat(list(clips)).to(device))

    def features(clips: Sequence[Tensor]) -> Tensor:
        return torch.cat([model.encode(frames([clip])[None]) for clip in clips])[None]  # one by one: little memory

    labels = labels.to(device)
    if model.works_on_features:
        logits = model.classify_episodes(features(support), labels[None], features(queries), **text)["logits"][0]
    else:
        own_text = {name: features[0] for name, features in text.items()}
        answers = [model(frames(support), labels, frames([query]), **own_text) for query in queries]
        logits = torch.cat([answer["logits"] for answer in answers])
    return logits.float().softmax(dim=-1).cpu().numpy()


# ---------------------------------------------------------------------------------------------------------------------
# Showing the answers


def answers_table(names: Sequence[str], actions: Sequence[str], answers: np.ndarray, top: int) -> str:
    """The likeliest actions of each query, with bars."""
    table = [["video", "action", "probability", ""]]
    for name, row in zip(names, answers, strict=True):
        for place, k in enumerate(np.argsort(-row, kind="stable")[:top]):
            table.append([name if place == 0 else "", actions[k], f"{100 * row[k]:.1f} %", bar(row[k])])
    return terminal_table(table, text_columns=(0, 1, 3))


def bar(share: float, width: int = 20) -> str:
    """A share as a bar of text, exact to an eighth of a letter."""
    whole, eighths = divmod(round(8 * width * share), 8)
    return ("█" * whole + " ▏▎▍▌▋▊▉"[eighths]).rstrip()


def draw_answers(
    names: Sequence[str],
    actions: Sequence[str],
    clips: Sequence[Tensor],
    answers: np.ndarray,
    path: Path,
    *,
    answered_by: str,
) -> None:
    """Each query as a film strip of what the model saw, with its probabilities beside it."""
    from matplotlib.figure import Figure

    height = max(1.25, 0.34 * len(actions))
    with house_style():
        figure = Figure((13, (height + 0.3) * len(clips) + 0.3), layout="constrained")
        heading(figure, f"Answers of {answered_by}")
        rows = figure.subplots(len(clips), 2, width_ratios=[8, 4], squeeze=False)
        for (left, right), name, clip, row in zip(rows, names, clips, answers, strict=True):
            draw_strip(left, clip.permute(0, 2, 3, 1).numpy())
            left.set_title(name)
            draw_probabilities(right, actions, row, colours=[class_colour(k) for k in range(len(actions))])
        save_picture(figure, path)


def film_frames(source: FrameSource, background: Image.Image, count: int) -> Iterator[Image.Image]:
    """`count` frames of a video, evenly spaced, each fitted into its box on the background."""
    places = np.linspace(0, source.num_frames - 1, count).round().astype(int)
    for some in np.array_split(places, -(-count // 16)):  # large frames of a long video would not fit into memory
        for frame in source.read(some):
            fitted = ImageOps.contain(Image.fromarray(frame), FRAME_BOX)
            film = background.copy()
            film.paste(fitted, (10 + (FRAME_BOX[0] - fitted.width) // 2, (FILM_SIZE[1] - fitted.height) // 2))
            yield film


def film_background(
    name: str, actions: Sequence[str], answer: np.ndarray, top: int, *, answered_by: str
) -> Image.Image:
    """The video's name, its likeliest actions and who says so, with room for the video at the left."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    order = np.argsort(-answer, kind="stable")[:top]
    with house_style():
        figure = Figure((FILM_SIZE[0] / 100, FILM_SIZE[1] / 100), dpi=100)
        left = (FRAME_BOX[0] + 160) / FILM_SIZE[0]
        height = min(0.8, 0.15 * len(order))
        axes = figure.add_axes((left, 0.86 - height, 0.99 - left, height))
        draw_probabilities(axes, [actions[k] for k in order], answer[order], colours=[class_colour(k) for k in order])
        beside = (FRAME_BOX[0] + 30) / FILM_SIZE[0]
        figure.text(beside, 0.9, wrapped(name, 44, 1), fontweight="bold")
        figure.text(beside, 0.015, wrapped(answered_by, 58, 1), color=LIGHT["quiet"], fontsize=7)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3])


def seconds(source: FrameSource) -> float:
    """How long a video lasts; of a folder of frames, at FOLDER_RATE."""
    return (source.seconds if isinstance(source, VideoFile) else 0) or source.num_frames / FOLDER_RATE


def write_film(path: Path, source: FrameSource, background: Image.Image) -> None:
    """A GIF or MP4 of the video, at its own speed, on the background."""
    duration = seconds(source)
    count = int(np.clip(round(duration * FILM_RATE), 1, min(source.num_frames, MAX_FILM_FRAMES[path.suffix.lower()])))
    rate = Fraction(count / duration).limit_denominator(1000)
    frames = film_frames(source, background, count)
    with atomic_write(path) as file:
        if path.suffix.lower() == ".gif":
            first, *others = frames
            first.save(file, format="GIF", save_all=True, append_images=others, duration=round(1000 / rate), loop=0)
            return
        with av.open(file, mode="w", format="mp4") as container:
            stream = container.add_stream("libx264", rate=rate, options={"crf": "20"})
            stream.width, stream.height = FILM_SIZE
            stream.pix_fmt = "yuv420p"
            for frame in frames:
                container.mux(stream.encode(av.VideoFrame.from_image(frame)))
            container.mux(stream.encode())


# ---------------------------------------------------------------------------------------------------------------------
# The program


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument("--checkpoint", required=True, type=Path, help="a checkpoint that run.py has written")
    parser.add_argument("--trust_checkpoint", action="store_true", help="run code from files that the checkpoint names")
    add_library_flags(parser)
    parser.add_argument("--support", required=True, metavar="DIR", type=Path,
                        help="folder of examples: DIR/<action>/<video file or folder of frames>")  # fmt: skip
    parser.add_argument("--query", required=True, nargs="+", metavar="VIDEO", type=Path,
                        help="videos to recognise: files or folders of frames")  # fmt: skip
    add_text_flags(parser)
    parser.add_argument("--top", type=int, default=5, least=1, help="so many of the likeliest actions are shown")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write all probabilities to this file")
    parser.add_argument("--picture", metavar="FILE", type=Path,
                        help=".png: what the model saw of each query, with probabilities; .gif, .mp4: the query as a film "
                        "with its likeliest actions (one query)")  # fmt: skip
    return parser.parse_args(argv)


def predict(args: argparse.Namespace) -> None:
    if args.json is not None:
        check_output(args.json, "--json", (".json",))
    if args.picture is not None:
        check_output(args.picture, "--picture", PICTURE_SUFFIXES)
        if args.picture.suffix.lower() != ".png" and len(args.query) > 1:
            raise UserError(
                f"a film shows one query and {len(args.query)} are given: name one, or a .png with --picture"
            )
    actions = Actions(args.support)
    bad: list[str] = []
    sources = readable([(path, partial(open_video, path)) for path in args.query], bad)
    model, settings, spec, about = load_head(
        args.checkpoint, trusted=args.trust_checkpoint, method=args.method, seq_len=args.seq_len
    )

    text = text_of_episode(args, settings, model, actions.names)

    def clip_of(source: FrameSource) -> Tensor:
        return read_clip(source, settings, spec, model.backbone.frames_per_step)

    support = [clip_of(video) for videos in actions.videos for video in videos]
    labels = torch.repeat_interleave(torch.tensor(actions.shots))
    clips = readable([(path, partial(clip_of, source)) for path, source in sources], bad)
    if not clips:
        raise UserError(f"none of the queries could be read: {'; '.join(bad)}")
    paths, queries = [path for path, _ in clips], [clip for _, clip in clips]
    names = [printable(path.name) for path in paths]
    answers = probabilities(model, spec, support, labels, queries, text)

    examples = ", ".join(f"{name} {shots}" for name, shots in zip(actions.names, actions.shots, strict=True))
    seen = {"inductive": model.inductive, "uses_class_text": model.uses_class_text}
    worth = marks({**about, **seen})
    answered_by = after(f"{settings.method} on {settings.backbone}", worth)
    print(f"{answered_by}; examples: {examples}\n")
    print(answers_table(names, actions.names, answers, args.top))
    if args.json is not None:
        write_json(args.json, {
            "checkpoint": str(args.checkpoint),
            "marks": worth,
            "examples": dict(zip(actions.names, actions.shots, strict=True)),
            "queries": [
                {
                    "video": str(path),
                    "answer": actions.names[row.argmax()],
                    "probabilities": dict(zip(actions.names, row.tolist(), strict=True)),
                }
                for path, row in zip(paths, answers, strict=True)
            ],
        })  # fmt: skip
    if args.picture is not None:
        if args.picture.suffix.lower() == ".png":
            draw_answers(names, actions.names, queries, answers, args.picture, answered_by=answered_by)
        else:
            background = film_background(names[0], actions.names, answers[0], args.top, answered_by=answered_by)
            write_film(args.picture, sources[0][1], background)
        print(f"\nwrote {args.picture}")
    if bad:
        raise UserError(f"{len(bad)} of {len(args.query)} queries could not be read: {'; '.join(bad)}")


Item = TypeVar("Item")


def readable(reads: Sequence[tuple[Path, Callable[[], Item]]], bad: list[str]) -> list[tuple[Path, Item]]:
    """What is read of each path; of videos that cannot be read, `bad` gets what is wrong with them."""
    items = []
    for path, read in reads:
        try:
            items.append((path, read()))
        except BadVideo as error:
            bad.append(without_advice(error))
    return items


def without_advice(error: BadVideo) -> str:
    """What is wrong with a video; what follows in the sentence is about training."""
    return str(error).partition(";")[0]


def program(args: argparse.Namespace) -> None:
    try:
        predict(args)
    except BadVideo as error:
        raise UserError(
            f"a video could not be read: {without_advice(error)}; encode it again, or leave it out"
        ) from error


def main(argv: Sequence[str] | None = None) -> int:
    return exit_code(lambda: program(parse_args(arguments(argv))))


if __name__ == "__main__":
    sys.exit(main())
