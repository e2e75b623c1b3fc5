"""report.html and results.csv: what they say, that they need nothing else, and that they survive odd names and numbers."""

from __future__ import annotations

import csv
import dataclasses
import fnmatch
import json
import os
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import CLASSES, Program, tiny_run, write_split
from jinja2 import UndefinedError

from results.evaluation import Predictions
from results.pages import page_environment
from results.report import RESULT_COLUMNS, write_report
from results.style import DARK, LIGHT
from utils import read_json

ROOT = Path(__file__).parent.parent
LATIN = os.fsdecode(b"caf\xe9")  # the name of a file that an old system has written: no UTF-8

VOID = {"meta", "br", "link", "img", "hr", "input"}


class Page(HTMLParser):
    """A page's tags, attributes and text; fails where tags are not closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip() and self.open[-1] != "style":
            self.text.append(" ".join(data.split()))


def predictions_of(classes: list[str], episodes: int = 6) -> Predictions:
    """Two queries an episode, of the classes in turn; every third answer is the next class."""
    count = len(classes)
    true = np.arange(2 * episodes).reshape(episodes, 2) % count
    wrong = np.arange(2 * episodes).reshape(episodes, 2) % 3 == 0
    predicted = np.where(wrong, (true + 1) % count, true)
    return Predictions(classes, true, predicted, np.where(wrong, 0.55, 0.9), np.full((episodes, 2), "video"))


def results_of(predictions: Predictions, **changes: Any) -> dict[str, Any]:
    size = {"way": 2, "shot": 1, **predictions.summary(), "episodes": "abc"}
    return {
        **size, "tasks": len(predictions.true), "seed": 3, "queries_per_class": 1, "noisy_support": 0, "split": "test",
        "dataset": "data/small", "split_fingerprint": "def", "sealed_episodes": None, "method": "trx",
        "backbone": "resnet18", "checkpoint": "checkpoint_best_val.pt", "checkpoint_tasks": 1000, "selected_on": "val",
        "precision": "fp32", "sizes": [size], "versions": {"python": "3.10", "torch": "2.13"}, **changes,
    }  # fmt: skip


def page_of(folder: Path, predictions: Predictions, **changes: Any) -> str:
    write_report(folder, results_of(predictions, **changes), predictions)
    return (folder / "report.html").read_text(encoding="utf-8")


def test_the_page_says_what_was_measured(tmp_path: Path) -> None:
    text = Page(page_of(tmp_path, predictions_of(["jump", "run", "sit"]))).text
    assert "trx on resnet18" in text
    assert "66.67" in text  # two of three answers are right
    assert "2-way 1-shot action recognition on small/test, 6 episodes of 2 queries" in text
    assert "Classes" in text
    assert "Confusion" in text
    assert any("calibration error (ECE) 25.0 %" in words for words in text)  # (2 * |0.9 - 1| + |0.55 - 0|) / 3
    assert "Ways and shots" not in text


def test_bars_show_the_best_class_on_top(tmp_path: Path) -> None:
    predictions = predictions_of(["jump", "run", "sit"])  # every third answer: only jumps are missed, all of them
    page = page_of(tmp_path, predictions)
    drawing = page[page.index("<h2>Classes") : page.index("<h2>Confusion")]
    heights = {name: float(y) for y, name in re.findall(r'<text [^>]*y="([\d.]+)"[^>]*>(\w+)</text>', drawing)}
    assert heights["run"] < heights["jump"]
    assert heights["sit"] < heights["jump"]
    assert re.search(r">100</text>", drawing)
    assert re.search(r">0</text>", drawing)


def test_the_page_needs_no_other_file(tmp_path: Path) -> None:
    html = page_of(tmp_path, predictions_of(["jump", "run", "sit"]))
    page = Page(html)
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    for name, value in page.attributes:
        if name in ("src", "href", "xlink:href"):
            assert value.startswith(("#", "data:")), value
        if name.startswith("xmlns"):
            assert value in ("http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink")
        else:
            assert "//" not in value.partition(",")[0]
    assert set(re.findall(r"url\((.)", html)) <= {"#"}
    assert "@import" not in html


def test_figures_follow_the_theme(tmp_path: Path) -> None:
    html = page_of(tmp_path, predictions_of(["jump", "run", "sit"]))
    drawings = re.findall(r"<svg.*?</svg>", html, flags=re.DOTALL)
    assert len(drawings) == 4
    for drawing in drawings:
        assert "var(--ink)" in drawing or "var(--quiet)" in drawing
        assert not [colour for colour in LIGHT.values() if colour in drawing]
        assert "#000000" not in drawing
    assert LIGHT.keys() == DARK.keys()
    for colours in (LIGHT, DARK):
        for name, colour in colours.items():
            assert f"--{name}: {colour};" in html


def test_a_checkpoint_chosen_on_test_is_stamped(tmp_path: Path) -> None:
    predictions = predictions_of(["jump", "run"])
    for honest in ("val", "nothing"):
        assert "Chosen on the test split" not in page_of(tmp_path, predictions, selected_on=honest)
    assert "Chosen on the test split" in page_of(tmp_path, predictions, selected_on="test")


def test_what_is_to_be_known_of_the_figures_stands_by_them(tmp_path: Path) -> None:
    predictions = predictions_of(["jump", "run"])
    page = Page(page_of(tmp_path, predictions, noisy_support=2, checkpoint_tasks=0, precision="bf16"))
    place = page.text.index("2 noisy shots")
    assert page.text[place : place + 3] == ["2 noisy shots", "untrained", "bf16"]
    assert page.text[place - 3].startswith("66.67") or page.text[place - 2].startswith("66.67")  # the accuracy is above
    assert page.text[0] == "trx on resnet18: 66.67 % (2 noisy shots, untrained, bf16)"  # the page's title
    with open(tmp_path / "results.csv", newline="", encoding="utf-8") as file:
        assert [row["marks"] for row in csv.DictReader(file)] == ["2 noisy shots; untrained; bf16"]
    ordinary = Page(page_of(tmp_path, predictions))
    assert "untrained" not in " ".join(ordinary.text)
    assert ("class", "marks") not in ordinary.attributes


def test_names_are_text_and_not_markup(tmp_path: Path) -> None:
    classes = ["<script>alert(1)</script>", 'Pushing $x_1$ & "co"', "überholen 走る"]
    page = Page(page_of(tmp_path, predictions_of(classes), dataset="<i>data</i>", method="my<u>.py:Head"))
    assert not {"script", "i", "u"} & set(page.tags)
    assert "my<u>.py:Head" in page.text
    for name in classes:
        assert name in page.text


def test_whatever_is_shown_is_escaped(tmp_path: Path) -> None:
    def evil(place: str) -> str:
        return f"<script>alert('{place}')&amp;"

    shown = ["method", "backbone", "dataset", "split", "split_fingerprint", "sealed_episodes", "episodes", "checkpoint",
             "precision"]  # fmt: skip
    (tmp_path / "args.json").write_text(json.dumps({evil("flag"): evil("value")}))
    (tmp_path / "command.txt").write_text(f"python run.py --method {evil('command')}\n")
    predictions = predictions_of([evil("class"), "run"])
    changes = {**{place: evil(place) for place in shown}, "versions": {evil("package"): evil("version")}}
    page = Page(page_of(tmp_path, predictions, **changes))
    assert "script" not in page.tags
    text = " ".join(page.text)
    for place in [*shown, "flag", "value", "command", "class", "package", "version"]:
        assert evil(place) in text


@pytest.mark.parametrize("classes", [2, 40])
def test_one_episode_and_many_classes_can_be_reported(tmp_path: Path, classes: int) -> None:
    predictions = predictions_of([f"class {c}" for c in range(classes)], episodes=1 if classes == 2 else 40)
    assert Page(page_of(tmp_path, predictions)).tags.count("svg") == 4


def test_the_table_has_a_row_for_every_size(tmp_path: Path) -> None:
    predictions = predictions_of(["jump", "run", "sit"])
    first = results_of(predictions)["sizes"][0]
    sizes = [first, {**first, "shot": 5, "accuracy": 71.5}, {**first, "way": 3, "accuracy": 50.25}]
    text = Page(page_of(tmp_path, predictions, sizes=sizes)).text
    with open(tmp_path / "results.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == list(RESULT_COLUMNS)
    assert [(row["way"], row["shot"], float(row["accuracy"])) for row in rows] == [
        ("2", "1", pytest.approx(200 / 3)),
        ("2", "5", 71.5),
        ("3", "1", 50.25),
    ]
    assert {row["seed"] for row in rows} == {"3"}
    assert "Ways and shots" in text
    assert any(words.startswith("71.50") for words in text)


def test_a_run_writes_both(dataset: Path, tmp_path: Path, program: Program) -> None:
    program(*tiny_run(dataset, tmp_path / "run", "-i", 0, "--shot_test", 2, 1))
    with open(tmp_path / "run" / "results.csv", newline="", encoding="utf-8") as file:
        assert [row["shot"] for row in csv.DictReader(file)] == ["2", "1"]
    page = Page((tmp_path / "run" / "report.html").read_text(encoding="utf-8"))
    assert "tsn on conv4" in page.text
    assert "--shot_test 2 1" in " ".join(page.text)  # the command
    assert "--learning_rate" in page.text  # all flags


def test_a_name_that_the_template_is_not_given_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UndefinedError, match="'accuracies' is undefined"):
        page_environment().from_string("{{ accuracies }}").render(accuracy=1)
    predictions = predictions_of(["jump", "run"])
    results = results_of(predictions)
    del results["precision"]
    with pytest.raises(UndefinedError, match="precision"):
        write_report(tmp_path, results, predictions)
    assert [path.name for path in tmp_path.iterdir()] == ["results.csv"]  # numbers come first, and no half a page


def test_what_the_page_is_made_of_is_shipped() -> None:
    tomllib = pytest.importorskip("tomllib")  # of Python 3.11
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    for room, patterns in project["tool"]["setuptools"]["package-data"].items():
        data = [path.name for path in (ROOT / room).iterdir() if path.is_file() and path.suffix != ".py"]
        assert data
        for name in data:
            assert any(fnmatch.fnmatch(name, pattern) for pattern in patterns), name


def test_names_that_are_not_utf_8_are_shown_and_kept(tmp_path: Path) -> None:
    predictions = predictions_of([LATIN, "run"])
    predictions = dataclasses.replace(predictions, videos=np.full(predictions.true.shape, f"{LATIN}/{LATIN}_1"))
    (tmp_path / "args.json").write_text(json.dumps({"dataset": f"data/{LATIN}"}))
    (tmp_path / "command.txt").write_bytes(b"python run.py --dataset data/caf\xe9\n")
    text = " ".join(Page(page_of(tmp_path, predictions, dataset=f"data/{LATIN}", method=f"{LATIN}.py:Head")).text)
    assert text.count("caf\N{REPLACEMENT CHARACTER}") >= 6  # heading, data set, both figures, flags and command
    assert b"caf\xe9.py:Head" in (tmp_path / "results.csv").read_bytes()


def test_a_run_on_names_that_are_not_utf_8_writes_everything(tmp_path: Path, program: Program) -> None:
    data, folder = tmp_path / "data", tmp_path / "run"
    for split in ("train", "val", "test"):
        try:
            write_split(data / split, [LATIN, *CLASSES[split][:2]], videos=3, frames=3)
        except OSError:
            pytest.skip("this file system takes UTF-8 names only")
    program(*tiny_run(data, folder, "-i", 0, "--way", 3))
    assert "caf\N{REPLACEMENT CHARACTER}" in " ".join(Page((folder / "report.html").read_text(encoding="utf-8")).text)
    with open(folder / "predictions.csv", newline="", encoding="utf-8", errors="surrogateescape") as file:
        assert LATIN in {row["true"] for row in csv.DictReader(file)}
    assert b"caf\xe9/caf\xe9_" in (folder / "predictions.csv").read_bytes()
    assert read_json(folder / "results.json")["tasks"] == 3
