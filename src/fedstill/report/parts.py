"""Values that several sections of the page are made of."""

from __future__ import annotations

from dataclasses import dataclass

from markupsafe import Markup

__all__ = ["Grid", "Plot"]


@dataclass(frozen=True)
class Grid:
    """A table of text: ``head`` names the columns; the first ``words`` of them are words, the others numbers."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    words: int = 1


@dataclass(frozen=True)
class Plot:
    """A figure and the table under it."""

    title: str
    caption: str
    svg: Markup
    table: Grid
