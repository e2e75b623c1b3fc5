"""Tables for pages and papers: Markdown and LaTeX."""

from __future__ import annotations

from collections.abc import Sequence

from results.terminal import Row


def markdown_table(table: Sequence[Row]) -> str:
    cells = [[cell.strip().replace("|", "\\|").replace("*", "\\*") for cell in row] for row in table]
    rule = ["---", *["---:"] * (len(table[0]) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in [cells[0], rule, *cells[1:]])


def latex_table(table: Sequence[Row], foot: Sequence[str] = ()) -> str:
    """A tabular with the rules of booktabs, for a paper. foot: lines that stay with the numbers."""
    lines = [" & ".join(latex(cell.strip()) for cell in row) + r" \\" for row in table]
    below = [rf"\multicolumn{{{len(table[0])}}}{{l}}{{\footnotesize {latex(line)}}} \\" for line in foot]
    body = "\n".join([r"\toprule", lines[0], r"\midrule", *lines[1:], r"\bottomrule", *below])
    return f"\\begin{{tabular}}{{l{'r' * (len(table[0]) - 1)}}}\n{body}\n\\end{{tabular}}"


def latex(text: str) -> str:
    special = {
        "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$",
        "†": r"$\dagger$", "−": "$-$",
        **{letter: f"\\{letter}" for letter in "&%$#_{}"},
    }  # fmt: skip
    return "".join(special.get(letter, letter) for letter in text)
