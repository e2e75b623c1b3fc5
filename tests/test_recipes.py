"""Every recipe parses, and says on top what it is, what it takes and what to expect."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import run
from utils import UserError

RECIPES = sorted((Path(__file__).parent.parent / "scripts").glob("*.args"))

# What the comments on top must say, and how it is found there.
HEADER = {
    "the command": r"python run\.py @",
    "the hardware": r"(?i)\b(hardware|GPUs?|CPUs?)\b",
    "the expected accuracy": r"\d+(\.\d+)? ?%",
    "its source": r"(?i)(https?://|arxiv|cvpr|iccv|eccv|aaai|neurips|tpami|table)",
    "whether we ran it": r"(?i)\bnot run by us\b|\brun by us\b",
}


def header(text: str) -> str:
    """The comment lines before the first flag."""
    lines = text.splitlines()
    first_flag = next((n for n, line in enumerate(lines) if line.strip() and not line.startswith("#")), len(lines))
    return "\n".join(lines[:first_flag])


def missing_in(text: str) -> list[str]:
    return [what for what, pattern in HEADER.items() if not re.search(pattern, header(text))]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.name)
def test_a_recipe_parses_and_its_header_is_complete(recipe: Path, tmp_path: Path) -> None:
    args = run.parse_args([f"@{recipe}", "--dataset", "DATA", "-c", str(tmp_path / "run")])
    assert args.dataset == "DATA"
    assert any(0 < tasks <= args.training_iterations for tasks in args.val_iters), "it never validates"
    assert missing_in(recipe.read_text(encoding="utf-8")) == []
    assert recipe.name in header(recipe.read_text(encoding="utf-8")), "the command names this very file"


def test_a_header_that_lacks_something_is_found() -> None:
    whole = "# python run.py @scripts/x.args\n# 4 GPUs, 12 h; expected 64.6 % (CVPR 2021, table 1); not run by us\n\n--way 5"
    assert missing_in(whole) == []
    for line in range(2):
        assert missing_in("\n".join(text for n, text in enumerate(whole.splitlines()) if n != line))
    assert missing_in("--way 5  # python run.py @x, 1 GPU, 60 %, CVPR, not run by us") == list(HEADER)


def test_a_recipe_takes_several_flags_to_a_line_and_comments(tmp_path: Path) -> None:
    recipe = tmp_path / "own recipe.args"
    recipe.write_text(
        "# what it is\n\n--way 3 --shot 2  # small\n--dataset 'a b'\n--val_iters 10 20\n", encoding="utf-8"
    )
    args = run.parse_args([f"@{recipe}", "-c", str(tmp_path / "run"), "--shot", "4"])
    assert (args.way, args.shot, args.dataset, args.val_iters) == (3, 4, "a b", [10, 20])


@pytest.mark.parametrize(
    ("content", "message"),
    [("--wya 3\n", "--wya"), ("--way three\n", "--way"), ("--dataset 'a b\n", "quotation"), (None, "No such file")],
)
def test_a_recipe_that_is_wrong_or_missing_is_one_sentence(content: str | None, message: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "x.args").write_text(content)
    with pytest.raises(UserError, match=message):
        run.parse_args([f"@{tmp_path}/x.args", "-c", str(tmp_path / "run")])
