"""Frames of Kinetics: the few-shot split of CMN, or the whole of it by the official csv files.

    python data_prep/extract_kinetics.py --src k400 --dst data/kinetics_cmn --list lists     # a folder: train.list, ...
    python data_prep/extract_kinetics.py --src k400 --dst data/k400 --split official --list train.csv val.csv

Videos are looked up by name anywhere below --src: YOUTUBEID_SSSSSS_EEEEEE (start and end second), or the id alone.
splits/kinetics_cmn/SOURCE.md says where the public lists of CMN are.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the project, wherever this is run from
from data_prep import extract
from utils import UserError

ID_LETTERS = 11  # an id may hold '-' and '_', so no separator marks its end

PLAN = """
The whole of Kinetics-400, 240,000 videos of 10 seconds, on many machines with one file system:

1. See what it takes: the command above with --estimate extracts 8 videos and says how many GB and hours the rest needs.
   A video gives about 3.5 MB of frames in 256x256, five times its own size: 800 GB and 70 million files in all. --fps 10
   or a higher --quality number make them fewer or smaller; so does data_prep/shrink.py, which keeps 8 or 16 per video.
2. Run the same command with --shard I/N as an array of N jobs, I from 0 to N-1, for instance with Slurm
       #SBATCH --array=0-63 --cpus-per-task=8
       python data_prep/extract_kinetics.py ... --jobs 8 --shard $SLURM_ARRAY_TASK_ID/64
   A video's part depends on its name alone. A job that was killed is just started again.
3. python data_prep/merge_manifests.py DST joins the manifests and names all that is missing or failed.

Machines with disks of their own extract to those; copy their folders into one (rsync -a) before step 3.
"""


def official_rows(files: dict[str, Path]) -> extract.Rows:
    """Rows of csv files with the columns label, youtube_id, time_start, time_end."""
    rows: extract.Rows = {}
    for split, path in files.items():
        with open(path, newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
            table = csv.DictReader(file)
            lacking = {"label", "youtube_id", "time_start", "time_end"} - set(table.fieldnames or ())
            if lacking:
                raise UserError(f"{path} has no column {', '.join(sorted(lacking))}: expected an official csv file")
            rows[split] = []
            for row in table:
                times = [row["time_start"], row["time_end"]]
                if not (row["label"] and row["youtube_id"] and all(time and time.isdecimal() for time in times)):
                    raise UserError(
                        f"{path}, line {table.line_num}: expected a label, a YouTube id and whole seconds, found {row}"
                    )
                start, end = map(int, times)
                rows[split].append((row["label"], f"{row['youtube_id']}_{start:06d}_{end:06d}"))
    return rows


def finder(src: Path) -> Callable[[str, str], Path | None]:
    """Looks a clip up by its whole name; a file that is called by its id alone will do, one of other seconds will not."""
    paths = {extract.stem(path.name): path for path in extract.find_videos(src)}
    return lambda label, name: paths.get(name) or paths.get(name[:ID_LETTERS])


def wanted(args: argparse.Namespace) -> list[extract.Video]:
    if args.split == "official":
        return extract.by_list(official_rows(extract.list_files(args.list, (".csv",))), None, finder(args.src))
    return extract.by_list(extract.read_rows(args.list), extract.read_classes("kinetics_cmn"), finder(args.src))


def main(argv: Sequence[str] | None = None) -> int:
    parser = extract.build_parser(__doc__, epilog=PLAN)
    splits = parser.add_argument_group("split")
    splits.add_argument("--split", choices=("cmn", "official"), default="cmn")
    splits.add_argument(
        "--list",
        type=Path,
        nargs="+",
        required=True,
        metavar="PATH",
        help="list files whose names say train, val or test, or their folder; with --split official the csv files",
    )
    return extract.main(parser, wanted, argv)


if __name__ == "__main__":
    sys.exit(main())
