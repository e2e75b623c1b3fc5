"""How much do methods lose when support videos are of the wrong class? Trains and tests on the demo set, prints a table.

    python scripts/noisy_support.py                                    what docs/results.md shows
    python scripts/noisy_support.py --methods trx otam --noise 0 2     other methods and numbers of wrong videos

Every method is trained on clean episodes, by scripts/quickstart.args, and tested at 5-way 5-shot on the same episodes, in
which NOISE of the 5 support videos of each class come from other classes. What is finished is not done again.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

# Python puts the folder of a script on its path, not the project's.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import run
from engine.command_line import Parser, arguments, exit_code
from results.terminal import terminal_table
from utils import BEST, UserError, read_json

RECIPE = Path(__file__).with_name("quickstart.args")
METHODS = ("tsn", "trx", "dual_prototypes", "dual_prototypes --dp_variant code")


def accuracy_under_noise(method: str, noise: int, dataset: str, runs: Path) -> str:
    """Trains `method`, a name with its flags, unless that is done; tests it with `noise` wrong videos of 5 per class."""
    name = method.replace(" --", "-").replace(" ", "-")
    trained, tested = runs / name, runs / f"{name}-{noise}_of_5"
    if not (trained / "results.json").exists():
        goes_on = ["-r"] if (trained / "args.json").exists() else ["--method", *shlex.split(method), f"@{RECIPE}"]
        check(run.main(["-c", str(trained), *goes_on, "--dataset", dataset]), trained)
    if not (tested / "results.json").exists():
        checkpoint = trained / BEST
        test = ["--test_only", "-m", str(checkpoint), "--shot_test", "5", "--noisy_support", str(noise)]
        check(run.main(["-c", str(tested), *test, "--dataset", dataset]), tested)
    results = read_json(tested / "results.json")
    return f"{results['accuracy']:.1f} ± {results['ci95']:.1f}"


def check(code: int, folder: Path) -> None:
    if code:
        raise UserError(f"the run in {folder} stopped with the error above; mend it and start this again")


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument("--methods", nargs="+", default=METHODS, help="names with their flags, each quoted as one word")
    parser.add_argument("--noise", nargs="+", type=int, default=[0, 1, 2], help="wrong support videos of 5 per class")
    parser.add_argument("--dataset", default="demo", help="made by data_prep/make_demo_set.py, or any other")
    parser.add_argument("--runs", type=Path, default=Path("runs/noisy_support"), help="folder of the runs")
    return parser.parse_args(argv)


def print_table(args: argparse.Namespace) -> None:
    rows = [
        [method, *(accuracy_under_noise(method, noise, args.dataset, args.runs) for noise in args.noise)]
        for method in args.methods
    ]
    print(terminal_table([["method", *(f"{noise} of 5 wrong" for noise in args.noise)], *rows]))


def main(argv: Sequence[str] | None = None) -> int:
    return exit_code(lambda: print_table(parse_args(arguments(argv))))


if __name__ == "__main__":
    sys.exit(main())
