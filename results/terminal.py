"""Tables for a terminal."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

WIDTH = 80  # columns of a terminal

Row = list[str]


def shown_width(text: str) -> int:
    """Columns of a terminal that a text takes: two for wide letters of East Asian scripts."""
    return sum(
        2 if unicodedata.east_asian_width(letter) in "WF" else not unicodedata.combining(letter) for letter in text
    )


def terminal_table(table: Sequence[Row], text_columns: Sequence[int] = (0,)) -> str:
    """Columns under a rule, those of text aligned left; what does not fit beside the first column is continued below."""
    widths = [max(map(shown_width, column)) for column in zip(*table, strict=True)]
    blocks, chosen = [], [0]
    for column in range(1, len(widths)):
        if len(chosen) > 1 and sum(widths[c] + 3 for c in [*chosen, column]) - 3 > WIDTH:
            blocks.append(chosen)
            chosen = [0]
        chosen.append(column)
    blocks.append(chosen)
    return "\n\n".join(_terminal_block(table, columns, widths, text_columns) for columns in blocks)


def _terminal_block(
    table: Sequence[Row], columns: Sequence[int], widths: Sequence[int], text_columns: Sequence[int]
) -> str:
    lines = []
    for row in table:
        padding = [" " * (widths[c] - shown_width(row[c])) for c in columns]
        cells = [row[c] + pad if c in text_columns else pad + row[c] for c, pad in zip(columns, padding, strict=True)]
        lines.append("   ".join(cells).rstrip())
    lines.insert(1, "─" * (sum(widths[c] + 3 for c in columns) - 3))
    return "\n".join(lines)
