"""leaderboard.py: a small board is made, stopped, gone on with and shared out; its numbers are those of its runs."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import re
import shutil
from collections.abc import Callable
from fractions import Fraction
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from script_runs import Script, write_run

import run
from engine.stopping import Terminated
from results.leaderboard import Backbone, Board, Entry, Place, markdown, profile_figure, trust_table
from results.runs import read_run, read_test
from results.statistics import holm, mean_interval, p_value, t_quantile, t_share
from scripts import leaderboard
from scripts.board.plan import read_plan
from scripts.board.runs import Runs
from scripts.board.workers import Workers

pytest.importorskip("tomllib")

PLAN = """
title = "A small board"
note = "Of <textures>."
methods = ["tsn", "bimhm", "trx"]
seeds = [0, 3]
learning_rates = [0.001, 0.1]
budget = "--way 2 --shot 1 -qpc 1 --seq_len 3 --img_size 16 -i 2 --val_iters 2 --num_val_tasks 2 --num_test_tasks 5 --opt adam"

[method_flags]
trx = "--temp_set 9"

[backbones.conv4]
flags = "--backbone conv4 --no_pretrained"
frozen = true

[sets.textures]
"""


@pytest.fixture
def script(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Script:
    monkeypatch.setattr(run, "write_report", lambda *_: None)  # a page for each run, which has its own tests
    return Script(leaderboard.main, capsys)


@pytest.fixture
def plan(tmp_path: Path) -> Callable[..., Path]:
    """plan(old, new) writes PLAN with something replaced."""

    def write(old: str = "", new: str = "") -> Path:
        assert old in PLAN
        path = tmp_path / "plan.toml"
        path.write_text(PLAN.replace(old, new) if old else PLAN)
        return path

    return write


# ---------------------------------------------------------------------------------------------------------------------
# A board


def test_a_board_is_stopped_gone_on_with_and_says_what_its_runs_say(
    dataset: Path, tmp_path: Path, plan: Callable[..., Path], script: Script, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    out = tmp_path / "board"
    words = [plan(), "--set", f"textures={dataset}", "--out", out, "--jobs", 2]
    listed = [script(*words, "--list", "--shard", f"{i}/2").splitlines()[:-1] for i in (1, 2)]
    assert not out.exists()
    assert sorted(sum(listed, [])) == sorted(script(*words, "--list").splitlines()[:-1])
    assert not set(listed[0]) & set(listed[1])

    # Stopped from outside when one run is done.
    told = Workers.tell

    def tell(self: Workers, *how: Any) -> None:
        told(self, *how)
        raise Terminated

    with monkeypatch.context() as patch:
        patch.setattr(Workers, "tell", tell)
        assert leaderboard.main([str(word) for word in words]) == 143
    assert "start it again to go on" in capsys.readouterr().err
    first = {path: path.stat().st_mtime_ns for path in out.rglob("results.json")}
    assert len(first) == 1
    assert not (out / "leaderboard.html").exists()
    assert "0 runs made" in script(*words, "--page")
    assert len(list(out.rglob("results.json"))) == 1
    assert "not run yet" in (out / "leaderboard.html").read_text()

    said = script(*words, "--shard", "1/2")
    assert "trx" in said
    assert "bimhm" not in said
    said = script(*words)
    assert all(path.stat().st_mtime_ns == time for path, time in first.items())
    assert said.count("FAILED") == 2  # trx at both rates: nothing is made of it, and the others go on
    again = script(*words)
    assert re.findall(r"(\d+) runs made, (\d+) of them failed", again) == [("2", "2")]

    folders = {path.parent.relative_to(out / "runs/textures/conv4") for path in out.rglob("results.json")}
    rate = chosen_literally(out / "runs/textures/conv4/tsn")
    assert {str(folder) for folder in folders} == {
        "bimhm/seed_0", "bimhm/seed_3", "tsn/rate_0.001-seed_0", "tsn/rate_0.1-seed_0", f"tsn/{rate}-seed_3"
    }  # fmt: skip
    found = {
        f"{folder}": json.loads((out / "runs/textures/conv4" / folder / "results.json").read_text())
        for folder in folders
    }
    assert {results["tasks"] for results in found.values()} == {5}
    for folder, results in found.items():
        kept = [path.name for path in (out / "runs/textures/conv4" / folder).glob("checkpoint*")]
        assert kept == [results["checkpoint"]], "the one that was tested, and no other"

    rows = {row["method"]: row for row in csv.DictReader((out / "leaderboard.csv").open())}
    assert rows.keys() == {"tsn", "bimhm"}
    for method, names in {"tsn": (f"{rate}-seed_0", f"{rate}-seed_3"), "bimhm": ("seed_0", "seed_3")}.items():
        low, high = (found[f"{method}/{name}"]["accuracy"] for name in names)
        assert float(rows[method]["accuracy"]) == pytest.approx((low + high) / 2)
        assert float(rows[method]["seeds_ci95"]) == pytest.approx(12.7062 * abs(high - low) / 2, abs=1e-3)
    assert rows["tsn"]["learning_rate"] == rate.removeprefix("rate_")
    assert rows["tsn"]["trained_parameters"] == "1"
    assert rows["bimhm"]["trained_parameters"] == "0"
    assert float(rows["tsn"]["seconds"]) > 0

    page = (out / "leaderboard.html").read_text()
    assert "Of &lt;textures&gt;." in page
    for text in (page, (out / "leaderboard.md").read_text()):
        assert "trx, seed 0 at rate 0.1" in text
        assert "temp_set" in text
        assert f"{float(rows['bimhm']['accuracy']):.1f}" in text
    assert rf"{float(rows['tsn']['accuracy']):.1f} $\pm$" in (out / "leaderboard.tex").read_text()

    changed = script.fails(*words[1:], plan("-i 2", "-i 4"))
    assert "holds a run with other settings" in changed


def test_a_method_from_a_file_of_ones_own_and_no_checkpoints(
    dataset: Path, tmp_path: Path, plan: Callable[..., Path], script: Script
) -> None:
    (tmp_path / "mine.py").write_text("from model import CNN_TSN\n\n\nclass Mine(CNN_TSN):\n    pass\n")
    path = plan('methods = ["tsn", "bimhm", "trx"]\nseeds = [0, 3]', f"""
methods = ["tsn", "mine", "trx"]
own_methods.mine = "{tmp_path}/mine.py:Mine"
seeds = [0]
keep_checkpoints = false
""")  # fmt: skip
    out = tmp_path / "board"
    assert "6 runs made, 2 of them failed" in script(path, "--set", f"textures={dataset}", "--out", out)
    rows = {row["method"]: row for row in csv.DictReader((out / "leaderboard.csv").open())}
    assert rows["mine"]["accuracy"] == rows["tsn"]["accuracy"]
    assert "mine.py:Mine" in (out / "leaderboard.md").read_text()
    assert rows.keys() == {"tsn", "mine"}
    assert not list(out.rglob("runs/**/checkpoint*"))


def test_what_was_trained_on_a_set_is_tested_on_another_with_its_flags(
    dataset: Path, tmp_path: Path, plan: Callable[..., Path], script: Script
) -> None:
    path = plan('methods = ["tsn", "bimhm", "trx"]\nseeds = [0, 3]', """
methods = ["tsn", "trx"]
seeds = [0]
sets.other = { flags = "--num_test_tasks 3 --shot_test 2 1", test_only = true }
cross_domain.across = { train = "textures", test = "other" }
""")  # fmt: skip
    out, other = tmp_path / "board", shutil.copytree(dataset, tmp_path / "other")
    script(path, "--set", f"textures={dataset}", "--set", f"other={other}", "--out", out)
    rows = list(csv.DictReader((out / "leaderboard.csv").open()))
    assert [(row["set"], row["tasks"], row["shot"], row["trained_on"]) for row in rows] == [
        ("textures", "5", "1", ""), ("across", "3", "2", "textures"), ("across", "3", "1", "textures")
    ]  # fmt: skip
    two, one = (f"{float(row['accuracy']):.1f}" for row in rows[1:])
    page = (out / "leaderboard.md").read_text()
    assert "| method | 2-way 2-shot, % | 2-way 1-shot, % | over classes, % |" in page
    assert f"| tsn | {two} | {one} |" in page


def chosen_literally(folder: Path) -> str:
    """Of the runs of seed 0, the one with the best validation in its log; the lower rate where they are equal."""
    best: tuple[float, str] = (-1, "")
    for rate in ("rate_0.001", "rate_0.1"):
        rows = csv.DictReader((folder / f"{rate}-seed_0" / "log.csv").open())
        (accuracy,) = [float(row["accuracy"]) for row in rows if row["split"] == "val"]
        best = (accuracy, rate) if accuracy > best[0] else best
    return best[1]


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ('title = "A small board"', "", "lacks 'title'"),
        ("seeds = [0, 3]", "seeds = 3", "'seeds' is 3, expected list[int]"),
        ("note", "notes", "unknown entry of PLAN 'notes'"),
        ('"trx"]', '"trxx"]', "unknown method"),
        ("[sets.textures]", '[sets.textures]\nmaker = "--seed 1"', "unknown entry of PLAN 'maker'"),
        ("-i 2 ", "-i 2 --nonsense 3 ", "--nonsense"),
        ("[sets.textures]", "[sets.textures", "as TOML"),
        ("seeds = [0, 3]", 'seeds = [0, 3]\ncontrol = "otam"', "unknown method of PLAN 'otam'"),
        ("[sets.textures]", '[sets.textures]\n[cross_domain]\nx = { train = "textures", test = "y" }', "unknown set"),
        ("[sets.textures]", "[sets.textures]\n[suite]\naxes = ['speed']\nlevels = [0]", "levels above 0"),
        ("[method_flags]", "[own_methods]\nmine = 'mine.py:Mine'\n[method_flags]", "unknown method of PLAN 'mine'"),
        (
            "seeds = [0, 3]",
            "seeds = [0, 3]\nkeep_checkpoints = false\ncross_domain.x = { train = 'textures', test = 'textures' }",
            "cannot be false",
        ),
        (
            "[sets.textures]",
            "[sets.textures]\ntest_only = true\n[cross_domain]\nx = { train = 'textures', test = 'textures' }",
            "which is test_only",
        ),
    ],
)
def test_a_wrong_plan_is_one_sentence_before_anything_is_written(
    old: str, new: str, sentence: str, dataset: Path, tmp_path: Path, plan: Callable[..., Path], script: Script
) -> None:
    path = plan(old, new)
    assert sentence in script.fails(path, "--set", f"textures={dataset}", "--out", tmp_path / "out").replace(
        str(path), "PLAN"
    )
    assert not (tmp_path / "out").exists()


def test_wrong_words_are_one_sentence(dataset: Path, plan: Callable[..., Path], script: Script) -> None:
    assert "no set has a path" in script.fails(plan())
    assert "expected NAME=PATH" in script.fails(plan(), "--set", "textures")
    assert "unknown set 'texture'" in script.fails(plan(), "--set", f"texture={dataset}")
    assert "expected I/N" in script.fails(plan(), "--set", f"textures={dataset}", "--shard", "3/2")


@pytest.mark.parametrize(
    ("validations", "chosen"),
    [
        ({0.001: [60.0, 40.0], 0.1: [50.0, 61.0]}, 0.1),
        ({0.001: [60.0], 0.1: [60.0]}, 0.001),
        ({0.1: [20.0]}, 0.1),
    ],
)
def test_the_rate_is_chosen_by_validation_alone(
    validations: dict[float, list[float]], chosen: float, tmp_path: Path, plan: Callable[..., Path]
) -> None:
    """The best of any of a run's validations, the lower rate where they are equal; a run that failed has no part in it."""
    runs = Runs(read_plan(plan(), {"textures": "somewhere"}), tmp_path, {})
    cell = next(cell for cell in runs.cells() if cell.method == "tsn")
    for rate, accuracies in validations.items():
        folder = write_run(runs.folder(cell, rate, 0), [[1, 1] if rate < 0.01 else [0, 0]] * 2)
        rows = [f"2,train,99.0,{rate}", *(f"2,val,{accuracy},{rate}" for accuracy in accuracies)]
        (folder / "log.csv").write_text("\n".join(["tasks,split,accuracy,learning_rate", *rows]) + "\n")
    assert runs.chosen(cell) == chosen


def test_a_suite_is_the_plain_set_and_each_axis_at_each_level(tmp_path: Path, plan: Callable[..., Path]) -> None:
    """One base training serves them all, and what was trained on one is tested on another."""
    suite = """[suite]
axes = ["speed", "order"]
levels = [1, 3]
make = "--size 32"
[cross_domain]
harder = { train = "base", test = "speed_3" }
[backbones.net]
flags = "--backbone conv4 --no_pretrained"
base = "--epochs 1"
base_set = "base"
"""
    read = read_plan(plan("[sets.textures]", suite), {})
    assert {data.name: data.make for data in read.sets} == {
        "base": "--size 32",
        "speed_1": "--axis speed --level 1 --size 32", "speed_3": "--axis speed --level 3 --size 32",
        "order_1": "--axis order --level 1 --size 32", "order_3": "--axis order --level 3 --size 32",
    }  # fmt: skip
    runs = Runs(read, tmp_path, {})
    cells = runs.cells()
    assert len(cells) == len(set(cells)) == 5 * 2 * 3
    (base,) = leaderboard.base_jobs(runs, cells)
    assert base.argv[:4] == ["-c", f"{tmp_path}/base/base/net", "--dataset", f"{tmp_path}/sets/base"]
    trained = [cell for cell in cells if cell.backbone.name == "net" and cell.data.name == "order_3"]
    argv = runs.argv(trained[0], 0.1, 3)
    assert argv[argv.index("-pt") + 1] == f"{tmp_path}/base/base/net/checkpoint_final.pt"
    assert "--no_pretrained" not in argv
    assert "--freeze_backbone" not in argv


# ---------------------------------------------------------------------------------------------------------------------
# What is made of the runs' numbers


def entry(folder: Path, method: str, right: dict[int, list[list[int]]]) -> Entry:
    runs = {
        seed: read_run(
            read_test(write_run(folder / method / str(seed), hits, episodes=f"of {seed}") / "results.json"), method
        )
        for seed, hits in right.items()
    }
    return Entry("real", "net", method, runs, 0.1, {0.1: 50.0}, [1.0], 1)


def board(entries: list[Entry], places: list[Place]) -> Board:
    backbones = [Backbone("net", "", "kinetics400", frozen=True)]
    methods = list(dict.fromkeys(found.method for found in entries))
    return Board("T", "", "", "tsn", [0.1], [0, 1], places, backbones, methods, {}, entries, {}, "", {})


def test_differences_are_paired_corrected_and_need_one_sign(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    control, better, mixed = (rng.random((2, 60, 4)) < share for share in (0.4, 0.8, 0.4))
    mixed[0], mixed[1] = control[0], control[1]
    mixed[0, :, 0], mixed[1, :1] = True, False
    entries = [
        entry(tmp_path, name, dict(enumerate(hits.astype(int).tolist())))
        for name, hits in {"tsn": control, "trx": better, "pal": mixed}.items()
    ]
    found = board(entries, [Place("real")]).against_control
    assert found.keys() == {("net", "real", "trx"), ("net", "real", "pal")}
    paired = 100 * (better.mean(axis=2) - control.mean(axis=2)).ravel()
    trx, pal = found["net", "real", "trx"], found["net", "real", "pal"]
    assert trx.difference.points == pytest.approx(paired.mean())
    z = abs(paired.mean()) / (paired.std(ddof=1) / np.sqrt(120))
    assert trx.p == pytest.approx(2 * 2 * normal_tail(z), rel=1e-4, abs=1e-12)  # the smaller of two: times 2
    assert (trx.mark, pal.p < 0.05, pal.same_sign, pal.mark) == ("▲", True, False, "")


def normal_tail(z: float) -> float:
    """P(N > z), by sums."""
    x = np.linspace(z, z + 12, 400_001)
    return float(np.trapezoid(np.exp(-x * x / 2), x) / math.sqrt(2 * math.pi))


def test_accuracy_without_known_classes_is_over_the_queries_of_others(tmp_path: Path) -> None:
    """Written runs ask for class 'run' alone; here half of the queries become 'Sit_down'."""
    made = entry(tmp_path, "tsn", {0: [[1, 0], [1, 1]], 1: [[0, 0], [1, 0]]})
    for found in made.runs.values():
        found.answers.true[:, 1] = "sit"
    assert made.by_class == {"run": (4, 3), "sit": (4, 1)}
    assert made.without(["Sit"]) == 75
    assert math.isnan(made.without(["Sit", "R u n"]))
    place = Place(
        "real", classes=["Sit", "Run!", "fly"], overlap={"kinetics400": {"Sit": ["sitting"], "fly": ["flying"]}}
    )
    (row,) = trust_table(board([made], [place]))[1:]
    assert row == ["net", "real", "Kinetics-400", "1 of 2", "50.0 / 75.0", "tsn: 50.0 / 75.0"]
    (other,) = trust_table(board([made], [dataclasses.replace(place, classes=["Sit", "fly"])]))[1:]
    assert other[3] == "its classes have other names"
    assert "| net | real | Kinetics-400 | 1 of 2 |" in markdown(board([made], [place]))


def test_methods_change_their_order_where_they_clearly_do(tmp_path: Path) -> None:
    good, bad = [[1, 1]] * 30 + [[1, 0]] * 30, [[0, 0]] * 30 + [[1, 0]] * 30
    entries = []
    for axis, (first, second) in {"speed": (good, bad), "scale": (bad, good), "order": (good, good)}.items():
        for method, hits in {"tsn": first, "trx": second}.items():
            made = entry(tmp_path / axis, method, {0: hits, 1: hits})
            entries.append(dataclasses.replace(made, place=axis))
    places = [Place("base", made_up=True)] + [Place(axis, True, axis, 2) for axis in ("speed", "scale", "order")]
    (reversal,) = board(entries, places).reversals("net")
    assert reversal == ("tsn", "trx", "speed", 50, "scale", -50)


def test_the_profile_has_a_line_of_its_own_for_every_method(tmp_path: Path) -> None:
    entries = []
    for number in range(12):
        hits = [[1, 0]] * number + [[0, 0]] * (12 - number)
        name = f"m{number}" if number else "tsn"
        made = [
            dataclasses.replace(entry(tmp_path / place, name, {0: hits}), place=place) for place in ("base", "hard")
        ]
        entries += made
    figure = profile_figure(board(entries, [Place("base", True), Place("hard", True, "speed", 3)]), "net")
    (panel,) = [axes for axes in figure.axes if axes.get_visible()]
    lines = {bars.get_label(): bars.lines[0] for bars in panel.containers}
    assert len(lines) == len({(line.get_color(), line.get_marker()) for line in lines.values()}) == 12
    for number, line in enumerate(lines.values()):
        assert list(line.get_ydata()) == pytest.approx([100 * number / 24] * 2)
        assert [round(x) for x in line.get_xdata()] == [0, 3]


# ---------------------------------------------------------------------------------------------------------------------
# Statistics


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 7, 10, 31])
def test_students_t_agrees_with_its_density_summed(freedom: int) -> None:
    t = np.linspace(0, 3, 300_001)
    scale = math.gamma((freedom + 1) / 2) / math.gamma(freedom / 2) / math.sqrt(freedom * math.pi)
    within = 2 * np.trapezoid(scale * (1 + t * t / freedom) ** (-(freedom + 1) / 2), t)
    assert t_share(3, freedom) == pytest.approx(within, abs=1e-9)
    assert t_share(t_quantile(freedom), freedom) == pytest.approx(0.95, abs=1e-12)


def test_intervals_agree_with_published_quantiles() -> None:
    assert [round(t_quantile(n), 3) for n in (1, 2, 4, 9, 29)] == [12.706, 4.303, 2.776, 2.262, 2.045]
    assert t_quantile(2000) == pytest.approx(1.9611, abs=1e-4)
    mean, error = mean_interval([50, 53, 56])
    assert (mean, error) == (53, pytest.approx(4.302653 * 3 / math.sqrt(3)))
    assert mean_interval([50]) == (50, math.inf)
    assert (p_value(np.zeros(9)), p_value(np.ones(9))) == (1, 0)


def test_holm_rejects_as_its_closed_test_does() -> None:
    """A hypothesis is rejected by Holm at a level where every set of hypotheses that holds it has a member of p <= level /
    size: the corrected p is the largest over these sets of size * smallest p."""
    for values in permutations([Fraction(1, 100), Fraction(1, 25), Fraction(3, 100), Fraction(1, 25), Fraction(2, 5)]):
        literal = []
        for place in range(5):
            sets = [[p for n, p in enumerate(values) if mask >> n & 1] for mask in range(32) if mask >> place & 1]
            literal.append(float(min(1, max(len(chosen) * min(chosen) for chosen in sets))))
        assert holm([float(p) for p in values]) == pytest.approx(literal)
    assert holm([]) == []
