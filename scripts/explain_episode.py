"""Draws one episode and why its queries were answered as they were: for a paper, a talk, or one's own understanding.

    python scripts/explain_episode.py --checkpoint runs/otam/checkpoint_best_val.pt
    python scripts/explain_episode.py --checkpoint C --task 7 --query 2 --shot 1 -o episode.png
    python scripts/explain_episode.py --checkpoint C --dataset other_data --split val -o episode.pdf
    python scripts/explain_episode.py --checkpoint C --query 2 --gif query.gif

Support and query clips are film strips with their class's colour, then come probabilities with right and wrong marked, and
what the method compared for one query: TRX's strongest tuple matches, OTAM's alignments, the similarity matrices of the
matching methods with the cells that made the score, the shot weights and both scores of dual prototypes, TSN's and CMN's
logits by each support video, CLIP-FSAR's scores by class names, PAL's attention over the support, HyRSM's relation of clips,
CMN's saliency slots, where TEAM's tokens look in time, ARN and STRM's patches in a frame, MoLo's motion. --gif writes the query
as a film instead, or with -o beside the picture: in a green frame where the answer is right, in a red one where it is wrong.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

# Python puts the folder of a script on its path, not the project's.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from clips.transforms import ClipTransform, InputSpec
from clips.video_split import SPLITS, Split
from engine.class_text import add_text_flags, text_of_episode
from engine.command_line import Parser, arguments, check_output, exit_code
from methods.checkpoints import add_library_flags, load_head
from model import CNN_FSHead
from results.drawing import PICTURE_SUFFIXES
from results.episode_picture import draw_episode
from results.films import write_answer_film
from results.marks import after, marks
from results.panels import Episode
from utils import UserError
from video_reader import VideoDataset


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument("--checkpoint", required=True, type=Path, help="a checkpoint that run.py has written")
    parser.add_argument("--trust_checkpoint", action="store_true", help="run code from files that the checkpoint names")
    add_library_flags(parser)
    parser.add_argument("--dataset", help="another data set than the checkpoint's")
    parser.add_argument("--split", choices=SPLITS, default="test", help="of the data set")
    parser.add_argument("--task", type=int, default=0, least=0, help="number of the episode")
    parser.add_argument("--query", type=int, default=0, least=0, help="number of the query that is explained")
    parser.add_argument("--seed", type=int, least=0, help="decides the episode; unset: as the checkpoint's run")
    parser.add_argument("--way", type=int, least=2, help="classes; unset: as the checkpoint's run is tested")
    parser.add_argument(
        "--shot", type=int, least=1, help="support videos per class; unset: as the checkpoint's run is tested"
    )
    parser.add_argument(
        "--noisy_support", type=int, default=0, least=0, help="support videos of each class that are of others"
    )
    add_text_flags(parser)
    parser.add_argument("-o", "--out", metavar="FILE", type=Path,
                        help="the picture: .png, .svg or .pdf (default episode.png, none if only --gif is given)")  # fmt: skip
    parser.add_argument("--gif", metavar="FILE", type=Path, help="the query as a film, with its answer")
    args = parser.parse_args(argv)
    if args.out is None and args.gif is None:
        args.out = Path("episode.png")
    return args


def check_args(args: argparse.Namespace) -> None:
    """Raises UserError for what no episode can be drawn with."""
    if args.out:
        check_output(args.out, "--out", PICTURE_SUFFIXES)
    if args.gif:
        check_output(args.gif, "--gif", (".gif",))


def open_dataset(
    args: argparse.Namespace, settings: argparse.Namespace, model: CNN_FSHead, spec: InputSpec
) -> VideoDataset:
    """The episodes that the flags ask for, as the checkpoint's run is tested where they are silent."""
    return VideoDataset(
        Split.open(args.dataset or settings.dataset, args.split, on_bad_video=settings.on_bad_video),
        way=(settings.way_test or [settings.way])[0] if args.way is None else args.way,
        shot=(settings.shot_test or [settings.shot])[0] if args.shot is None else args.shot,
        queries=1,
        seq_len=settings.seq_len,
        transform=ClipTransform(spec.size, interpolation=spec.interpolation),
        seed=settings.seed if args.seed is None else args.seed,
        sampling=settings.sampling,
        frames_per_step=model.backbone.frames_per_step,
        noisy=args.noisy_support,
        on_bad_video=settings.on_bad_video,
    )


@torch.inference_mode()
def answer(
    model: CNN_FSHead, spec: InputSpec, task: dict[str, Any], seq_len: int, text: dict[str, Any]
) -> dict[str, np.ndarray]:
    """What the method says to a task and how it explains that: "logits" (Q, K) and more, see results/panels.py.

    text: "class_text" (1, K, P) where the method uses it.
    """
    device = next(model.parameters()).device
    labels = task["support_labels"].to(device)
    if not model.works_on_features:
        images = [spec.normalise(task[f"{part}_set"].to(device)) for part in ("support", "target")]
        own_text = {name: features[0] for name, features in text.items()}
        return {"logits": model(images[0], labels, images[1], **own_text)["logits"].float().cpu().numpy()}

    def features(frames: Tensor) -> Tensor:
        """One clip after the other, which needs little memory: uint8 (N*T, 3, H, W) -> (1, N, ...)."""
        clips = frames.unflatten(0, (-1, 1, seq_len))
        return torch.cat([model.encode(spec.normalise(clip.to(device))) for clip in clips])[None].float()

    explanation = model.explain(features(task["support_set"]), labels[None], features(task["target_set"]), **text)
    return {name: value[0].float().cpu().numpy() for name, value in explanation.items()}


def classes_of(task: dict[str, Any], dataset: VideoDataset) -> list[str]:
    """The names of a task's classes, in the order of its labels."""
    return [dataset.split.classes[label] for label in task["batch_class_list"].tolist()]


def episode_of(task: dict[str, Any], dataset: VideoDataset, explanation: dict[str, np.ndarray], title: str) -> Episode:
    """A task of the data set, with what was answered."""
    names = dataset.split.classes
    classes = classes_of(task, dataset)
    support, target = (
        list(task[f"{part}_set"].unflatten(0, (-1, dataset.seq_len)).permute(0, 1, 3, 4, 2).numpy())
        for part in ("support", "target")
    )
    shots: list[list[np.ndarray]] = [[] for _ in classes]
    impostors: list[list[str]] = [[] for _ in classes]
    labels, real_labels = task["support_labels"].tolist(), task["real_support_labels"].tolist()
    for k, real, clip in zip(labels, real_labels, support, strict=True):
        shots[k].append(clip)
        impostors[k].append("" if names[real] == classes[k] else names[real])
    probabilities = torch.from_numpy(explanation["logits"]).softmax(dim=-1).numpy()
    return Episode(title, classes, shots, impostors, target, task["target_labels"].numpy(), probabilities, explanation)


def explain(args: argparse.Namespace) -> None:
    check_args(args)
    model, settings, spec, about = load_head(
        args.checkpoint, trusted=args.trust_checkpoint, method=args.method, seq_len=args.seq_len
    )
    dataset = open_dataset(args, settings, model, spec)
    if args.query >= dataset.way:
        raise UserError(f"--query is {args.query}: expected 0 to {dataset.way - 1}, one query per class")
    source = f"{Path(args.dataset or settings.dataset).name}/{args.split}"
    title = f"task {args.task} of {source}, seed {dataset.seed}, answered by {settings.method} on {settings.backbone}"
    # The checkpoint's precision is not among the marks: an episode is always answered in float32.
    seen = {"inductive": model.inductive, "uses_class_text": model.uses_class_text}
    labels = marks({**about, **seen, "noisy_support": args.noisy_support})
    title = after(title, labels)

    task = dataset[args.task]
    text = text_of_episode(args, settings, model, classes_of(task, dataset))
    episode = episode_of(task, dataset, answer(model, spec, task, dataset.seq_len, text), title)
    if args.out:
        draw_episode(episode, args.query, args.out)
    if args.gif:
        names = (episode.classes[int(episode.labels[args.query])], episode.classes[episode.answer(args.query)])
        share = float(episode.probabilities[args.query].max())
        write_answer_film(args.gif, episode.target[args.query], true=names[0], answer=names[1], probability=share)
    right = int((episode.probabilities.argmax(axis=1) == episode.labels).sum())
    written = " and ".join(str(path) for path in (args.out, args.gif) if path)
    answers = f"{settings.method} answers {right} of {len(episode.labels)} queries of task {args.task} right"
    print(f"{after(answers, labels)}; wrote {written}")


def main(argv: Sequence[str] | None = None) -> int:
    return exit_code(lambda: explain(parse_args(arguments(argv))))


if __name__ == "__main__":
    sys.exit(main())
