"""fuse_scores.py against its definitions one number at a time: views, fusions, weights, order, files, what it refuses."""

from __future__ import annotations

import csv
import dataclasses
import json
import re
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from script_runs import Script

import run_supervised
from results.view_scores import FUSIONS, ViewScores, fuse
from scripts import fuse_scores
from scripts.fuse_scores import read_ensemble
from tests.oracles import scores as literal
from utils import UserError

CLASSES = ["run", "sit", "wave", "jump", "fall", "dive", "hug"]
CROPS, CLIPS = 3, 2


def random_scores(
    seed: int,
    videos: int = 12,
    *,
    crops: int = CROPS,
    clips: int = CLIPS,
    labels: Sequence[Sequence[int]] | None = None,
) -> ViewScores:
    """Views of videos with one label each, of all classes but the last."""
    rng = np.random.default_rng(seed)
    if labels is None:
        labels = [[video % (len(CLASSES) - 1)] for video in range(videos)]
    return ViewScores(
        videos=[f"v{video}" for video in range(videos)],
        classes=CLASSES,
        labels=np.array(labels),
        logits=rng.normal(scale=2, size=(videos, crops * clips, len(CLASSES))).astype(np.float32),
        protocol=f"test {seed}",
        num_crops=crops,
        num_clips=clips,
    )


def saved(scores: ViewScores, path: Path) -> Path:
    scores.save(path)
    return path


def reordered(scores: ViewScores, order: Sequence[int] | np.ndarray) -> ViewScores:
    return dataclasses.replace(
        scores,
        videos=[scores.videos[video] for video in order],
        labels=scores.labels[order],
        logits=scores.logits[order],
    )


def expected(models: Sequence[ViewScores], weights: Sequence[float], fusion: str) -> list[list[float]]:
    """[video][class], by the oracle."""
    videos = range(len(models[0].videos))
    return [literal.ensemble([model.logits[v].tolist() for model in models], weights, fusion) for v in videos]


@pytest.fixture
def script(capsys: pytest.CaptureFixture[str]) -> Script:
    return Script(fuse_scores.main, capsys)


# ---------------------------------------------------------------------------------------------------------------------
# Numbers


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("weights", [[1.0, 1.0], [0.5, 2.0]])
def test_two_models_are_fused_as_defined(tmp_path: Path, fusion: str, weights: list[float]) -> None:
    """Numbers of views differ: the views of a model are fused before the models."""
    models = [random_scores(1), random_scores(2, clips=4)]
    paths = [saved(model, tmp_path / f"{number}.npz") for number, model in enumerate(models)]
    found = read_ensemble(paths, weights, fusion).scores
    if fusion == "probabilities":
        found = np.exp(found)
    np.testing.assert_allclose(found, expected(models, weights, fusion), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_one_models_views_are_fused_as_defined(fusion: str) -> None:
    scores = random_scores(3)
    found = scores.fused(fusion)
    found = np.exp(found) if fusion == "probabilities" else found
    np.testing.assert_allclose(found, expected([scores], [1], fusion), rtol=1e-5, atol=1e-6)


def test_probabilities_stay_apart_where_they_round_to_zero() -> None:
    """Differences of logits that a softmax in float32 loses still rank the classes."""
    logits = np.array([[[300.0, 0.0, 10.0], [250.0, 5.0, 0.0]]], dtype=np.float32)
    found = fuse(logits, "probabilities")[0]
    assert np.isfinite(found).all()
    # The views' largest shares decide: exp(5 - 250) of class 1, exp(0 - 250) of class 2.
    np.testing.assert_allclose(found, [0, -245 - np.log(2), -250 - np.log(2)], rtol=1e-6)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_what_was_fused_stays_as_it_is(fusion: str) -> None:
    once = random_scores(4).fused(fusion)
    np.testing.assert_allclose(fuse(once[:, None], fusion), once, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("crops", "clips"), [([2], None), (None, [1]), ([1, 0], [1]), ([2, 2], [0]), (None, None)])
def test_chosen_views_are_crop_after_crop_and_of_each_clip_after_clip(
    crops: list[int] | None, clips: list[int] | None
) -> None:
    scores = random_scores(5)
    table = {place: scores.logits[:, view] for view, place in enumerate(product(range(CROPS), range(CLIPS)))}
    wanted = {(c, k) for c in crops or range(CROPS) for k in clips or range(CLIPS)}
    found = scores.views(crops, clips)
    assert found.logits.shape[1] == len(wanted) == found.num_crops * found.num_clips
    mean = sum(table[place] for place in wanted) / len(wanted)
    np.testing.assert_allclose(found.fused(), mean, rtol=1e-5, atol=1e-6)


def test_accuracies_agree_with_hand_counts(tmp_path: Path, script: Script) -> None:
    models, weights = [random_scores(6), random_scores(7)], [1.0, 3.0]
    paths = [saved(model, tmp_path / f"{number}.npz") for number, model in enumerate(models)]
    script(*paths, "--weights", 1, 3, "--json", tmp_path / "fused.json", "--csv", tmp_path / "classes.csv")
    found = json.loads((tmp_path / "fused.json").read_text())
    labels = models[0].labels[:, 0].tolist()
    cases = [(found["fused"], models, weights)]
    cases += [(found["members"][number], [model], [1]) for number, model in enumerate(models)]
    for numbers, members, shares in cases:
        scores = expected(members, shares, "logits")
        assert numbers["accuracy"] == pytest.approx(literal.top(scores, labels, 1))
        assert numbers["top5"] == pytest.approx(literal.top(scores, labels, 5))
        classes = [literal.class_accuracy(scores, labels, c) for c in range(len(CLASSES))]
        present = [accuracy for accuracy in classes if accuracy is not None]
        assert numbers["mean_class_accuracy"] == pytest.approx(sum(present) / len(present))

    scores = expected(models, weights, "logits")
    with open(tmp_path / "classes.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["class"] for row in rows] == CLASSES
    for c, row in enumerate(rows):
        own = [video for video, label in enumerate(labels) if label == c]
        assert int(row["videos"]) == len(own)
        if not own:
            assert row["accuracy"] == row["top5"] == row["taken_for"] == ""
            continue
        assert float(row["accuracy"]) == pytest.approx(literal.class_accuracy(scores, labels, c), abs=1e-4)
        assert float(row["top5"]) == pytest.approx(literal.top([scores[v] for v in own], [c] * len(own), 5), abs=1e-4)
        answers = [literal.ranking(scores[video])[0] for video in own]
        wrong = [answer for answer in answers if answer != c]
        most = max(map(wrong.count, wrong), default=0)
        if most:
            assert wrong.count(CLASSES.index(row["taken_for"])) == most
            assert float(row["taken_for_it"]) == pytest.approx(100 * most / len(own), abs=1e-4)
        else:
            assert row["taken_for"] == ""


def test_videos_with_several_labels_are_judged_by_average_precision(tmp_path: Path, script: Script) -> None:
    labels = [[video % 3, 3 + video % 2 if video % 4 else -1] for video in range(12)]
    models = [dataclasses.replace(random_scores(seed, labels=labels), multi_label=True) for seed in (8, 9)]
    paths = [saved(model, tmp_path / f"{number}.npz") for number, model in enumerate(models)]
    out = script(*paths, "--json", tmp_path / "fused.json", "--csv", tmp_path / "classes.csv")
    assert "mean average precision, %" in out
    scores = expected(models, [1, 1], "logits")
    precisions = [literal.average_precision(scores, labels, c) for c in range(len(CLASSES))]
    present = [precision for precision in precisions if precision is not None]
    found = json.loads((tmp_path / "fused.json").read_text())["fused"]["mean_average_precision"]
    assert found == pytest.approx(sum(present) / len(present))
    with open(tmp_path / "classes.csv", newline="", encoding="utf-8") as file:
        for row, precision in zip(csv.DictReader(file), precisions, strict=True):
            found = float(row["average_precision"]) if row["average_precision"] else None
            assert found == pytest.approx(precision, abs=1e-4)
    assert "leave out --fusion" in script.fails(*paths, "--fusion", "probabilities")


# ---------------------------------------------------------------------------------------------------------------------
# Files


def test_videos_are_matched_by_name_whatever_their_order(tmp_path: Path) -> None:
    first, second = random_scores(1), random_scores(2)
    order = np.random.default_rng(0).permutation(len(second.videos))
    plain = [saved(first, tmp_path / "a.npz"), saved(second, tmp_path / "b.npz")]
    mixed = [plain[0], saved(reordered(second, order), tmp_path / "c.npz")]
    np.testing.assert_array_equal(
        read_ensemble(mixed, [1, 1], "logits").scores, read_ensemble(plain, [1, 1], "logits").scores
    )


def test_labels_may_stand_in_wider_rows_and_another_order(tmp_path: Path) -> None:
    one = dataclasses.replace(random_scores(1, 2, labels=[[0, 1], [2, -1]]), multi_label=True)
    same = dataclasses.replace(random_scores(2, 2, labels=[[1, 0, -1], [-1, 2, -1]]), multi_label=True)
    paths = [saved(one, tmp_path / "one.npz"), saved(same, tmp_path / "same.npz")]
    assert len(read_ensemble(paths, [1, 1], "logits").members) == 2
    assert len(read_ensemble(paths[::-1], [1, 1], "logits").members) == 2


def test_table_has_a_row_for_each_file_and_one_for_all(tmp_path: Path, script: Script) -> None:
    paths = [saved(random_scores(seed), tmp_path / f"{name}.npz") for seed, name in ((1, "rgb"), (2, "grey"))]
    out = script(*paths, "--weights", 1, 0.5, "--crops", "0-1", "--clips", 1).splitlines()
    assert out[0] == "12 videos of 7 classes, mean of logits"
    assert out[2].split(maxsplit=3) == ["scores", "weight", "views", "top-1, %   top-5, %   mean over classes, %"]
    names = [line.split()[0] for line in out[4:7]]
    assert names == ["rgb.npz", "grey.npz", "fused"]
    assert out[4].split()[1:5] == ["1", "2", "of", "6"]
    assert out[5].split()[1] == "0.5"
    assert out[8:] == ["rgb.npz: test 1", "grey.npz: test 2"]
    alone = script(paths[0], "--crops", "0-1", "--clips", 1).splitlines()
    assert alone[4].split()[5:] == out[4].split()[5:]
    assert not any(line.startswith("fused") for line in alone)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_fused_scores_are_a_file_like_others(tmp_path: Path, script: Script, fusion: str) -> None:
    """A third model joins two that were fused before, with the weight of two."""
    paths = [saved(random_scores(seed), tmp_path / f"{seed}.npz") for seed in (1, 2, 3)]
    script(*paths[:2], "--fusion", fusion, "--out", tmp_path / "pair.npz")
    pair = ViewScores.load(tmp_path / "pair.npz")
    assert pair.logits.shape == (12, 1, 7)
    assert "1.npz (6 of 6 views: test 1)" in pair.protocol
    at_once = read_ensemble(paths, [1, 1, 1], fusion).scores
    later = read_ensemble([tmp_path / "pair.npz", paths[2]], [2, 1], fusion).scores
    np.testing.assert_allclose(later, at_once, rtol=1e-5, atol=1e-6)


def test_marks_of_members_are_kept(tmp_path: Path, script: Script) -> None:
    marked = dataclasses.replace(random_scores(1), marks=["chosen on these videos", "bf16"])
    paths = [saved(marked, tmp_path / "a.npz"), saved(random_scores(2), tmp_path / "b.npz")]
    out = script(*paths, "--out", tmp_path / "ab.npz", "--json", tmp_path / "ab.json")
    for line in ("a.npz (chosen on these videos, bf16)", "fused (chosen on these videos, bf16)"):
        assert sum(words.startswith(line) for words in out.splitlines()) == 2, "in both parts of the table"
    assert "a.npz: test 1, chosen on these videos, bf16" in out
    assert "b.npz: test 2\n" in out
    assert "chosen on these videos: too good" in out
    found = json.loads((tmp_path / "ab.json").read_text())
    assert [member["marks"] for member in found["members"]] == [["chosen on these videos", "bf16"], []]
    assert found["marks"] == ["chosen on these videos", "bf16"]
    again = script(tmp_path / "ab.npz", "--crops", 0)
    assert "ab.npz (chosen on these videos, bf16)" in again
    assert "chosen" not in script(paths[1])


def test_a_file_of_before_there_were_marks_says_nothing(tmp_path: Path, script: Script) -> None:
    path = saved(random_scores(1), tmp_path / "a.npz")
    with np.load(path) as file:
        np.savez(tmp_path / "old.npz", **{name: file[name] for name in file.files if name != "marks"})
    assert ViewScores.load(tmp_path / "old.npz").marks == ()
    assert "old.npz: test 1" in script(tmp_path / "old.npz").splitlines()


def test_a_video_that_is_there_twice_cannot_be_matched(tmp_path: Path, script: Script) -> None:
    twice = dataclasses.replace(random_scores(1), videos=[*random_scores(1).videos[:-1], "v0"])
    paths = [saved(twice, tmp_path / "a.npz"), saved(random_scores(2), tmp_path / "b.npz")]
    assert "a.npz has a video twice" in script.fails(*paths)
    script(paths[0])


def test_a_run_folder_stands_for_its_scores(tmp_path: Path, script: Script) -> None:
    for name, seed in (("a", 1), ("b", 2)):
        (tmp_path / name).mkdir()
        saved(random_scores(seed), tmp_path / name / "scores.npz")
    out = script(tmp_path / "a", tmp_path / "b", "--predictions", tmp_path / "answers.csv")
    assert [line.split()[0] for line in out.splitlines()[4:7]] == ["a", "b", "fused"]
    with open(tmp_path / "answers.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    scores = expected([random_scores(1), random_scores(2)], [1, 1], "logits")
    assert [row["predicted"] for row in rows] == [CLASSES[literal.ranking(own)[0]] for own in scores]


def test_fewer_views_of_a_test_are_a_test_of_fewer_views(dataset: Path, tmp_path: Path, script: Script) -> None:
    """The centre crop of the first clip, of all that were tested, is what a test of one view sees."""
    labels = sorted(path.name for path in (dataset / "train").iterdir())
    lines = [
        f"{v.parent.name}/{v.name} 6 {labels.index(v.parent.name)}" for v in (dataset / "train").glob("*/*_00[01]")
    ]
    (tmp_path / "val.txt").write_text("\n".join(lines), encoding="utf-8")
    flags = [
        "--backbone", "conv4", "--no_pretrained", "--epochs", "0", "--untrained", "--seq_len", "2",
            "--img_size", "16", "--short_side", "20", "--num_workers", "0",
        "--val_list", str(tmp_path / "val.txt"), "--root", str(dataset / "train"),
    ]  # fmt: skip
    assert run_supervised.main([*flags, "-c", str(tmp_path / "all"), "--num_clips", "2", "--num_crops", "3"]) == 0
    checkpoint = str(tmp_path / "all" / "checkpoint_final.pt")
    one_view = ["--num_clips", "1", "--num_crops", "1"]
    assert (
        run_supervised.main(["--test_only", "--untrained", "-m", checkpoint, "-c", str(tmp_path / "one"), *one_view])
        == 0
    )
    many, one = (ViewScores.load(tmp_path / name / "scores.npz") for name in ("all", "one"))
    assert many.logits.shape[1] == 6
    np.testing.assert_allclose(many.views([2], [0]).logits, one.logits, rtol=1e-5, atol=1e-7)
    assert not np.allclose(many.views([0], [0]).logits, one.logits, rtol=1e-3, atol=1e-6)
    script(tmp_path / "all", "--json", tmp_path / "all.json")
    found = json.loads((tmp_path / "all.json").read_text())["fused"]
    results = json.loads((tmp_path / "all" / "results.json").read_text())
    assert found == {name: results[name] for name in found}


def test_confidence_is_the_mean_probability(tmp_path: Path, script: Script) -> None:
    scores = random_scores(1)
    script(saved(scores, tmp_path / "a.npz"), "--fusion", "probabilities", "--predictions", tmp_path / "answers.csv")
    with open(tmp_path / "answers.csv", newline="", encoding="utf-8") as file:
        found = [float(row["confidence"]) for row in csv.DictReader(file)]
    assert found == pytest.approx([max(own) for own in expected([scores], [1], "probabilities")], abs=1e-5)


def test_videos_without_labels_have_answers_but_no_accuracy(tmp_path: Path, script: Script) -> None:
    unlabelled = random_scores(1, labels=[[-1]] * 12)
    out = script(saved(unlabelled, tmp_path / "a.npz"), "--predictions", tmp_path / "answers.csv")
    assert "none of them has a label" in out
    assert "top-1" not in out
    assert (tmp_path / "answers.csv").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: reordered(s, range(11)), r"lacks 1 video\(s\) of .*a\.npz and has 0 others \('v11' is only in"),
        (lambda s: dataclasses.replace(s, videos=["x", *s.videos[1:]]), r"lacks 1 video.*has 1 others \('v0' is only"),
        (lambda s: random_scores(2, 13), r"lacks 0 video\(s\) .* has 1 others \('v12' is only in .*b\.npz\)"),
        (lambda s: dataclasses.replace(s, classes=["run", "walk", *CLASSES[2:]]), "'walk' in the place of 'sit'"),
        (lambda s: dataclasses.replace(s, labels=np.roll(s.labels, 1)), "12 video.* other labels .*'v0' is dive, and run"),
        (lambda s: dataclasses.replace(s, labels=-np.ones_like(s.labels)), "'v0' is without one, and run there"),
    ],
)  # fmt: skip
def test_what_does_not_belong_together_is_refused_by_name(
    tmp_path: Path, script: Script, change: object, message: str
) -> None:
    paths = [saved(random_scores(1), tmp_path / "a.npz"), saved(change(random_scores(2)), tmp_path / "b.npz")]
    sentence = script.fails(*paths)
    assert re.search(message, sentence), sentence
    assert "b.npz" in sentence


def test_wrong_flags_are_refused_before_anything_is_read(tmp_path: Path, script: Script) -> None:
    path = saved(random_scores(1), tmp_path / "a.npz")
    assert "2 numbers for 1 files" in script.fails(path, "--weights", 1, 2)
    for weight in ("0", "-1", "nan", "inf"):
        assert "expected more than 0" in script.fails(path, f"--weights={weight}")
    assert "clip 2 was asked for, and there are 2 clips" in script.fails(path, "--clips", "1-2")
    assert "crop 3" in script.fails(path, "--crops", 3)
    assert "ends in .json" in script.fails(path, "--json", tmp_path / "x.txt")
    assert "named twice" in script.fails(path, path)
    assert "'a-b' is no number and no range" in script.fails(path, "--crops", "a-b")


def test_other_files_are_refused(tmp_path: Path, script: Script) -> None:
    assert "expected scores.npz" in script.fails(tmp_path / "none.npz")
    (tmp_path / "text.npz").write_text("no scores")
    assert "expected scores.npz" in script.fails(tmp_path / "text.npz")
    path = saved(random_scores(1), tmp_path / "a.npz")
    with np.load(path) as file:
        content = dict(file)
    np.savez(tmp_path / "b.npz", **{**content, "num_clips": np.array(7)})
    assert "expected (12, 21, 7)" in script.fails(tmp_path / "b.npz")
    with pytest.raises(UserError):
        ViewScores.load(tmp_path)
