"""README.md and docs/ say what is true of the project: links, commands, flags, names of files and tables."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import re
import shlex
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
from torch.distributed.run import get_args_parser as torchrun_parser

from engine import settings, supervised_settings
from engine.command_line import Parser
from methods import METHODS
from utils import UserError

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
MOST_LINES = 200  # of the README

CODE_BLOCK = re.compile(r"^```.*?^```\n", re.MULTILINE | re.DOTALL)
CODE_SPAN = re.compile(r"`([^`\n]+)`")
FOLDERS = ("backbones", "clips", "data_prep", "docs", "engine", "methods", "results", "scripts", "splits", "tests")
PLACEHOLDERS = {"my_file.py"}  # files of the reader's own
SLURM = re.compile(r"^sbatch( --\S+)* scripts/slurm\.sh ")


# ---------------------------------------------------------------------------------------------------------------------
# Reading a page


def prose(text: str) -> str:
    return CODE_BLOCK.sub("", text)


def ours(text: str) -> str:
    """A page without headings that name other code bases' files, and without what tables say is theirs."""
    rows = []
    their_column = None
    for line in prose(text).splitlines():
        if not line.startswith("|"):
            their_column = None
        cells = cells_of(line)
        if "theirs" in cells:
            their_column = cells.index("theirs")
        if their_column is not None:
            cells.pop(their_column)
        rows.append("" if line.startswith("#") else " | ".join(cells))
    return "\n".join(rows)


def cells_of(row: str) -> list[str]:
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", row.strip().removeprefix("|").removesuffix("|"))]


def commands_of(text: str) -> Iterator[str]:
    """The commands of bash blocks and of code spans, with continued lines joined."""
    for block in re.findall(r"^```bash\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        yield from filter(None, re.sub(r"\\\n\s*", "", block).splitlines())
    for span in CODE_SPAN.findall(prose(text)):
        if re.match(r"(python|bash|torchrun|sbatch|pip) ", span):
            yield span


# ---------------------------------------------------------------------------------------------------------------------
# Parsers of the programs


class Parsed(BaseException):
    """Ends a program once its command line is parsed."""


@contextlib.contextmanager
def only_parsing(check: Callable[[argparse.ArgumentParser, list[str]], None]) -> Iterator[None]:
    """In the block `parse_args` of every parser gives its words to `check` and ends the program."""

    def parse_args(parser: argparse.ArgumentParser, words: list[str] | None = None, _: object = None) -> None:
        check(parser, words or [])
        raise Parsed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
        with contextlib.suppress(Parsed):
            yield


def parse(parser: argparse.ArgumentParser, words: list[str]) -> None:
    """Raises UserError or SystemExit where the parser refuses the words; an ellipsis among them stands for more flags."""
    if "..." in words:
        for action in parser._actions:
            action.required = False
    args, unknown = parser.parse_known_args([word for word in words if word != "..."])
    if unknown:
        raise UserError(f"unknown arguments {unknown}")
    if isinstance(parser, Parser):
        parser.check_ranges(args)


def main_of(script: str) -> Callable[[list[str]], object]:
    """The `main` of a file such as scripts/compare.py."""
    if not (ROOT / script).is_file():
        raise UserError(f"there is no {script}")
    return importlib.import_module(script.removesuffix(".py").replace("/", ".")).main


def program_parser(program: str, words: list[str]) -> Parser:
    """The parser of run.py or run_supervised.py, with the flags of an own method that the words name."""
    if program == "run_supervised.py":
        return supervised_settings.build_parser()
    own = words[words.index("--method") + 1] if "--method" in words else ""
    head = settings.find_method(own, METHODS) if own and own.partition(":")[0] not in PLACEHOLDERS else None
    return settings.build_parser(METHODS, head)


def check_command(command: str) -> None:
    """Raises UserError or SystemExit with a code where a command could not be run as it is written."""
    command = SLURM.sub("python run.py ", command)
    tool, *words = shlex.split(command, comments=True)
    if tool == "pip":
        of_file = words[:2] == ["install", "-r"] and (ROOT / " ".join(words[2:])).is_file()
        if words != ["install", "-e", "."] and not of_file:
            raise UserError(f"not a command of ours: {command}")
    elif tool == "bash":
        if not (ROOT / words[0]).is_file():
            raise UserError(f"there is no {words[0]}")
        if words[0] == "scripts/slurm.sh":
            check_python("run.py", words[1:])
    elif tool == "torchrun":
        job = torchrun_parser().parse_args(words)
        check_python(job.training_script, job.training_script_args)
    elif tool == "python":
        check_python(words[0], words[1:])
    else:
        raise UserError(f"unknown program {tool}")


def check_python(program: str, words: list[str]) -> None:
    if program == "-m":
        if not (ROOT / f"{words[0].replace('.', '/')}.py").is_file():
            raise UserError(f"there is no module {words[0]}")
    elif program in ("run.py", "run_supervised.py"):
        parse(program_parser(program, words), words)
        if not {"-c", "--checkpoint_dir", "--list", "--help", "..."} & set(words):
            raise UserError("a run folder is needed")
    else:
        with only_parsing(parse):
            raise UserError(f"{program} ended with {main_of(program)(words)} before it parsed its command line")


@cache
def known_flags() -> set[str]:
    """Of all programs, and of torchrun and sbatch as they are shown."""
    parsers = [settings.build_parser(METHODS), supervised_settings.build_parser(), torchrun_parser()]
    for folder in ("scripts", "data_prep"):
        for path in sorted((ROOT / folder).glob("*.py")):
            if "def main(" in path.read_text(encoding="utf-8") and path.name != "extract.py":
                with only_parsing(lambda parser, _: parsers.append(parser)):
                    main_of(f"{folder}/{path.name}")([])
    flags: set[str] = set()
    for parser in parsers:  # grows by the parsers of subcommands
        for action in parser._actions:
            flags.update(action.option_strings)
            if isinstance(action, argparse._SubParsersAction):
                parsers.extend(action.choices.values())
    return flags


# ---------------------------------------------------------------------------------------------------------------------
# What is wrong with a page: a sentence for each mistake


def wrong_commands(text: str, _: Path) -> Iterator[str]:
    for command in commands_of(text):
        try:
            check_command(command)
        except (UserError, OSError) as error:
            yield f"{command}: {error}"
        except SystemExit as end:
            if end.code:
                yield f"{command}: exit code {end.code}"


def wrong_flags(text: str, _: Path) -> Iterator[str]:
    for span in CODE_SPAN.findall(ours(text)):
        for flag in re.findall(r"(?<!\S)--?[A-Za-z][\w-]*", span):
            if flag not in known_flags() and not re.match(r"(pip|bash|sbatch|apt) ", span):
                yield f"{span}: no program has the flag {flag}"


def wrong_files(text: str, _: Path) -> Iterator[str]:
    """Names in backticks that begin with a folder of the project, or end like a file of it."""
    folders = [ROOT / name for name in FOLDERS]
    for span in CODE_SPAN.findall(ours(text)):
        for word in re.findall(r"[@\w.*/-]+", span):
            name = word.removeprefix("@").rstrip("/")
            if "/" in word and name.partition("/")[0] in FOLDERS:
                places = [ROOT]
            elif re.search(r"\w\.(py|md|sh|args)$", name) and name not in PLACEHOLDERS:
                places = [ROOT, *folders]
            else:
                continue
            if not any(any(place.glob(name)) for place in places):
                yield f"{span}: there is no {name}"


def wrong_links(text: str, page: Path) -> Iterator[str]:
    for target in re.findall(r"\]\(([^)\s]+)\)", CODE_SPAN.sub("", prose(text))):
        if re.match(r"https?:", target):
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        if not path.is_file():
            yield f"{target}: there is no {path.name}"
        elif anchor and anchor not in anchors(path.read_text(encoding="utf-8") if name else text):
            yield f"{target}: {path.name} has no such heading"


def anchors(text: str) -> set[str]:
    """What a heading is called in links: lower case, words joined by dashes, without punctuation."""
    headings = re.findall(r"^#+ (.+)$", prose(text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def wrong_tables(text: str, _: Path) -> Iterator[str]:
    for table in re.findall(r"(?:^\|.*\n?)+", prose(text), re.MULTILINE):
        header, *rows = map(cells_of, table.splitlines())
        if not rows or not all(re.fullmatch(r":?-+:?", cell) for cell in rows[0]):
            yield f"{header}: rows without a header"
        for row in [header, *rows]:
            if len(row) != len(header) or not all(row):
                yield f"{row}: expected {len(header)} cells that say something"


def too_long(text: str, page: Path) -> Iterator[str]:
    lines = text.count("\n")
    if page.name == "README.md" and lines > MOST_LINES:
        yield f"{lines} lines: expected {MOST_LINES} at most, move some to docs/"


CHECKS = [wrong_commands, wrong_flags, wrong_files, wrong_links, wrong_tables, too_long]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_is_right(page: Path, check: Callable[..., Iterator[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)  # where recipes are named from
    assert list(check(page.read_text(encoding="utf-8"), page)) == []


def test_pages_are_read_as_they_are_written() -> None:
    """So that the test above tests something."""
    readme, migrate = (path.read_text(encoding="utf-8") for path in (ROOT / "README.md", ROOT / "docs" / "migrate.md"))
    commands = list(commands_of(readme))
    assert "python run.py -c runs/trx -r" in [command.split("  ")[0] for command in commands]
    assert "python run.py --method my_file.py:OrderedMean ..." in commands
    assert len(commands) > 10
    assert {"--dataset", "--flip", "--against", "--videos_per_class", "--nproc_per_node", "--names"} <= known_flags()
    assert "--frames_per_group" in migrate
    assert "--dw_t_conv" not in ours(migrate)
    assert "`--backbone_options dw_t_conv=true`" in ours(migrate)


@pytest.mark.parametrize(
    ("system", "number"),
    [("Weights trained there", 6), ("Commands of TSM", 12), ("Commands of TDN", 6), ("Commands of the Action", 6),
     ("Commands of 3D-ResNets", 5), ("Commands of MMAction2", 6)],
)  # fmt: skip
def test_commands_of_other_readmes_have_one_here(system: str, number: int) -> None:
    """As many as their READMEs have, each in a row with theirs; test_a_page_is_right parses them."""
    text = (ROOT / "docs" / "migrate.md").read_text(encoding="utf-8")
    (section,) = (part for part in re.split(r"^### ", text, flags=re.MULTILINE) if part.startswith(system))
    rows = [line for line in section.splitlines() if line.startswith("| ") and not line.startswith("| theirs")]
    assert sum(bool(list(commands_of(row))) for row in rows) == number
    assert all(list(commands_of(row)) or "`results.json`" in row for row in rows)


BROKEN = [
    (wrong_commands, "```bash\npython run.py -c runs/x --shots 5\n```\n"),
    (wrong_commands, "```bash\npython run.py --dataset DATA\n```\n"),
    (wrong_commands, "```bash\npython run.py -c runs/x \\\n    --sampling middle\n```\n"),
    (wrong_commands, "```bash\npython run.py -c runs/x --way 1\n```\n"),
    (wrong_commands, "```bash\npython run.py -c runs/x --method scripts/own_method.py:Missing\n```\n"),
    (wrong_commands, "```bash\npython run.py @scripts/recipes/missing.args -c runs/x\n```\n"),
    (wrong_commands, "```bash\npython run_supervised.py -c runs/x --way 5\n```\n"),
    (wrong_commands, "```bash\npython scripts/compare.py runs/a --versus runs/b  # two runs\n```\n"),
    (wrong_commands, "```bash\npython scripts/missing.py\n```\n"),
    (wrong_commands, "Try `python data_prep/extract_ucf101.py --src UCF-101`."),
    (wrong_commands, "Try `python data_prep/annotate.py write --src a --dst b --format lines`."),
    (wrong_commands, "Try `python -m backbones.missing`."),
    (wrong_commands, "```bash\nbash scripts/missing.sh\n```\n"),
    (wrong_commands, "```bash\ntorchrun --nproc 4 run.py -c runs/x --shots 5\n```\n"),
    (wrong_commands, "```bash\ntorchrun --processes 4 run.py -c runs/x\n```\n"),
    (wrong_commands, "```bash\nsbatch --nodes=2 scripts/slurm.sh -c runs/x --shots 5\n```\n"),
    (wrong_commands, "```bash\npip install few-shot\n```\n"),
    (wrong_commands, "```bash\nmake all\n```\n"),
    (wrong_flags, "Use `--shots 5`."),
    (wrong_flags, "| theirs | here |\n|---|---|\n| `--shots` | `--shots` |\n"),
    (wrong_files, "See `engine/missing.py`."),
    (wrong_files, "See `methods/tsn.py`."),
    (wrong_files, "Recipes are `scripts/recipes/missing_*.args`."),
    (wrong_files, "It is in `missing.py`."),
    (wrong_links, "[data](docs/missing.md)"),
    (wrong_links, "![a picture](docs/missing.png)"),
    (wrong_links, "[data](docs/data.md#no-such-heading)"),
    (wrong_links, "# One\n[two](#two)"),
    (wrong_tables, "| a | b |\n|---|---|\n| 1 |\n"),
    (wrong_tables, "| a | b |\n|---|---|\n| 1 | |\n"),
    (wrong_tables, "| a | b |\n|---|---|\n| 1 | 2 |\n\n| 3 | 4 |\n"),
    (wrong_tables, "| a | b |\n|---|---|\n| `x|y` | 2 |\n"),
    (too_long, "a line\n" * 201),
]


@pytest.mark.parametrize(("check", "text"), BROKEN)
def test_a_broken_page_is_found(
    check: Callable[..., Iterator[str]], text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    assert list(check(text, ROOT / "README.md"))


@pytest.mark.parametrize(
    ("check", "text"),
    [
        (
            wrong_commands,
            "```bash\npython run.py @scripts/quickstart.args -c runs/x --method trx ...  # --shots\n```\n",
        ),
        (
            wrong_commands,
            "```bash\npython run.py -c runs/x --method scripts/own_method.py:OrderedMean --start_weight 2\n```\n",
        ),
        (wrong_commands, "Try `python data_prep/extract_ucf101.py --help` and `python run.py --list`."),
        (wrong_flags, "| theirs | here |\n|---|---|\n| `--shots` | `--shot` |\n"),
        (
            wrong_files,
            "`results.json` of `runs/x`, `scripts/recipes/*.args`, `predict.py`, `methods/`, `my_file.py:build`",
        ),
        (wrong_links, "# One `two`, three!\n[one](#one-two-three), [data](docs/data.md#data), `[a](b)`"),
        (wrong_tables, "| a | b |\n|---|---|\n| 1 | – |\n"),
        (too_long, "a line\n" * 200),
    ],
)
def test_what_is_right_passes(check: Callable[..., Iterator[str]], text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert list(check(text, ROOT / "README.md")) == []
