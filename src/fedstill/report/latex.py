"""A table as a LaTeX ``tabular`` with booktabs' rules."""

from __future__ import annotations

import re

from fedstill.report.parts import Cell, Grid

__all__ = ["escape", "tabular"]

_SPECIAL = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "_": r"\_",
    "%": r"\%",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "''",  # \\textquotedbl is unknown to the default font encoding
    "±": r"$\pm$",
    "−": "$-$",
    "–": "--",
    "’": "'",
    "…": r"\dots{}",
    "\N{NARROW NO-BREAK SPACE}": r"\,",
}


def tabular(table: Grid) -> str:
    """The table alone, to be ``\\input`` in a paper's own ``table``.

    The best of a column is bold, a published value grey; both by commands that a paper may define otherwise before.
    """
    first = 1 if table.grouped else 0
    columns = len(table.head) - first
    words = table.words - first
    lines = [
        f"% {_line(table.title)}. Needs \\usepackage{{booktabs}} and \\usepackage{{xcolor}}.",
        *([f"% {_line(table.note)}"] if table.note else []),
        r"\providecommand{\fedstillbest}[1]{\textbf{#1}}",
        r"\providecommand{\fedstillpublished}[1]{\textcolor{gray}{#1}}",
        f"\\begin{{tabular}}{{{'l' * words}{'r' * (columns - words)}}}",
        r"\toprule",
        " & ".join(map(escape, table.head[first:])) + r" \\",
    ]
    heading = None
    for index, row in enumerate(table.rows):
        if index == 0 or (first and row[0].text != heading):
            lines.append(r"\midrule")
        if first and row[0].text != heading:
            heading = row[0].text
            lines.append(rf"\multicolumn{{{columns}}}{{l}}{{\textit{{{escape(heading)}}}}} \\")
        lines.append(" & ".join(map(_cell, row[first:])) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def escape(text: str) -> str:
    """``text`` with every character that means something to LaTeX made to mean itself."""
    plain = "".join(_SPECIAL.get(letter, letter) for letter in _line(text))
    # at the start of a row it would be read as an argument of the line break before it
    return f"{{[}}{plain[1:]}" if plain.startswith("[") else plain


def _cell(cell: Cell) -> str:
    text = escape(cell.text)
    if cell.tone == "best":
        return rf"\fedstillbest{{{text}}}"
    return rf"\fedstillpublished{{{text}}}" if cell.tone == "mute" else text


def _line(text: str) -> str:
    """One line: a comment or a row must not end early."""
    return re.sub(r"[\x00-\x1f\x7f\x85\u2028\u2029]+", " ", text)
