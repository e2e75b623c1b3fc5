"""Frames of Jester (20bn-jester-v1/<id>/00001.jpg ... and the csv files).

    python data_prep/extract_jester.py --src 20bn-jester-v1 --dst data/jester --annotations labels
    python data_prep/extract_jester.py ... --split mine.json        # a few-shot split of your own

The download holds frames 100 pixels high, laid out and labelled as those of Something-Something V1. They are copied as
they are unless --size or --short_side asks for more.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the project, wherever this is run from
from data_prep import extract_ssv1


def main(argv: Sequence[str] | None = None) -> int:
    return extract_ssv1.main(argv, doc=__doc__)


if __name__ == "__main__":
    sys.exit(main())
