"""A table as GitHub's Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterable

from fedstill.report.parts import Cell, Grid

__all__ = ["table"]

_GAP = "\N{NARROW NO-BREAK SPACE}"


def table(grid: Grid) -> str:
    """Its title, its rows and its note. The best of a column is bold, a published value in italics."""
    rule = ["---" if index < grid.words else "---:" for index in range(len(grid.head))]
    lines = [f"**{_plain(grid.title)}**", "", _line(map(_plain, grid.head)), _line(rule)]
    heading = None
    for first, *others in grid.rows:
        # a heading stands once, as it does in the papers
        said = "" if grid.grouped and first.text == heading else _cell(first)
        heading = first.text
        lines.append(_line([said, *map(_cell, others)]))
    return "\n".join([*lines, *(["", _plain(grid.note)] if grid.note else [])]) + "\n"


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(cell: Cell) -> str:
    text = _plain(cell.text)
    if not text or cell.value is None:
        return text
    return f"**{text}**" if cell.tone == "best" else f"*{text}*" if cell.tone == "mute" else text


def _plain(text: str) -> str:
    """On one line, and with every character that means something to Markdown made to mean itself."""
    single = " ".join(text.replace(_GAP, " ").split())
    return re.sub(r"([\\`*_\[\]<>|~#&$])", r"\\\1", single)
