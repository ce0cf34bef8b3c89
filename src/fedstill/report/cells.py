"""Cells of numbers: what the page shows, and the number itself for the files."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from fedstill.report import words
from fedstill.report.groups import Point
from fedstill.report.parts import Cell, cell

__all__ = ["NONE", "count", "duration", "figure", "percent", "rounds", "signed", "size", "word"]

Tone = Literal["", "best", "sick", "mute", "gain", "loss"]
Known = Point | float | None

NONE = cell("")
"""An empty cell."""


def word(text: str, *, tone: Tone = "") -> Cell:
    """Words."""
    return Cell(text, text, tone=tone)


def percent(value: Known, *, tone: Tone = "", shade: float | None = None) -> Cell:
    """A fraction, shown in per cent."""
    return _cell(value, words.percent, tone, shade)


def signed(value: Known, *, tone: Tone = "") -> Cell:
    """A difference of fractions, shown in points."""
    return _cell(value, words.signed, tone, None)


def figure(value: Known, *, tone: Tone = "", shade: float | None = None) -> Cell:
    """A number of any kind."""
    return _cell(value, words.figure, tone, shade)


def rounds(value: Known) -> Cell:
    """A number of rounds."""
    return _cell(value, words.rounds, "", None)


def size(value: Known) -> Cell:
    """Bytes."""
    return _cell(value, words.size, "", None)


def duration(value: Known) -> Cell:
    """Seconds."""
    return _cell(value, words.duration, "", None)


def count(value: int | None, *, shade: float | None = None, tone: Tone = "") -> Cell:
    """A whole number."""
    return Cell(words.count(value), value, tone=tone, shade=shade)


def _cell(value: Known, say: Callable[[Known], str], tone: Tone, shade: float | None) -> Cell:
    if isinstance(value, Point):
        return Cell(say(value), value.mean, value.spread, tone, shade)
    return Cell(say(value), value, None, tone, shade)
