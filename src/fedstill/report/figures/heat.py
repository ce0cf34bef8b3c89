"""A field of numbers by row and column: one pixel a cell, so that thousands of cells stay small."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeGuard

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from fedstill.report import words
from fedstill.report.figures.looks import FONT, WIDE, WIDTH, Theme, say, sheet, shown
from fedstill.report.figures.readouts import Field
from fedstill.report.figures.ticks import shortened
from fedstill.report.parts import Axis, Heat

__all__ = ["Span", "draw_heat", "span"]

_WRITTEN = 12  # rows and columns at most, for each cell to have its number written in it
_MIDDLE, _DARK = 0.4, 0.6  # of the ramp, from which paper is read better than ink: on a dark page, on a light one
_LABELS = 32  # of rows
_HEIGHTS = ((14, 0.21), (30, 0.16), (60, 0.1), (10**9, 0.065))  # of a row, in inches, where there are so many at most
_TALLEST = 8.0  # inches
_ANY = Axis("")
_STEPS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)


@dataclass(frozen=True)
class Span:
    """What the colours stand for. ``beyond``: larger values than ``high`` have its colour."""

    low: float
    high: float
    beyond: bool


def span(chart: Heat) -> Span | None:
    """From the least to the largest value, of shares from 0 to 1; a few that are off by far do not set the scale.

    None where there is no number.
    """
    values = np.array([value for row in (*chart.values, *chart.beside) for value in row if _known(value)])
    if not values.size:
        return None
    low, high = float(values.min()), float(values.max())
    if chart.unit == "share" and low >= 0 and high <= 1:
        return Span(0.0, 1.0, beyond=False)
    most = float(np.quantile(values, 0.95))
    if high - low > 4 * (most - low) > 0:
        return Span(low, most, beyond=True)
    return Span(low, high if high > low else low + 1, beyond=False)


def draw_heat(chart: Heat, theme: Theme) -> tuple[Figure, Axes, Field]:
    """The figure, and what a pointer is told."""
    rows, columns = len(chart.rows), len(chart.columns)
    each = next(height for most, height in _HEIGHTS if rows <= most)
    wide = columns > 24
    figure, axes = sheet(theme, width=WIDE if wide else WIDTH, height=min(_TALLEST, 0.75 + each * max(2, rows)))
    values = np.full((max(1, rows), max(1, columns)), np.nan)  # matplotlib has no field without a cell
    for row, its in enumerate(chart.values):
        values[row, : len(its)] = [value if _known(value) else np.nan for value in its]
    scale = span(chart) or Span(0.0, 1.0, beyond=False)
    image = axes.imshow(
        np.ma.masked_invalid(values),
        cmap=theme.ramp,
        vmin=scale.low,
        vmax=scale.high,
        aspect="auto",
        interpolation="none",
        gid="heat",
    )
    if rows <= _WRITTEN and columns <= _WRITTEN:
        _write(axes, chart, values, scale, theme)
    if chart.flags:
        corner = 0.0 if wide or rows > 30 else 0.36  # where a cell has room, beside its number
        xs = [column + corner for _, column in chart.flags]
        ys = [row - 0.8 * corner for row, _ in chart.flags]
        axes.plot(xs, ys, linestyle="none", marker="o", markersize=5.5, color=theme.paper, clip_on=False)
        axes.plot(xs, ys, linestyle="none", marker="x", markersize=3.5, color=theme.ink, mew=1.1, clip_on=False)
    _label(axes, chart, most=24 if wide else 14, theme=theme)
    if not theme.page:
        bar = figure.colorbar(image, ax=axes, extend="max" if scale.beyond else "neither", pad=0.02, aspect=30)
        bar.outline.set_visible(False)
        bar.ax.tick_params(colors=theme.ink, length=0, labelsize=FONT - 1)
        bar.ax.yaxis.set_major_formatter(lambda value, _: say(value, chart.unit))
    texts = [[say(value, chart.unit) if _known(value) else words.DASH for value in row] for row in chart.values]
    head = f"{chart.column_label} " if chart.column_label else ""
    return figure, axes, Field(chart.rows, chart.columns, head, texts)


def _known(value: float | None) -> TypeGuard[float]:
    return value is not None and shown(value, _ANY)


def _write(axes: Axes, chart: Heat, values: NDArray[np.float64], scale: Span, theme: Theme) -> None:
    texts = {
        place: f"{100 * value:.0f}" if chart.unit == "share" else say(float(value), chart.unit)
        for place, value in np.ndenumerate(values)
        if not np.isnan(value)
    }
    size = 7.0 if max(map(len, texts.values()), default=0) < 5 else 5.5
    for (row, column), text in texts.items():
        along = (values[row, column] - scale.low) / (scale.high - scale.low)
        colour = theme.ink if along < _MIDDLE else theme.middle if along < _DARK else theme.paper
        axes.text(column, row, text, ha="center", va="center", size=size, color=colour, in_layout=False)


def _label(axes: Axes, chart: Heat, *, most: int, theme: Theme) -> None:
    rows, columns = _labelled(chart.rows, _LABELS), _labelled(chart.columns, most)
    size = 6.0 if len(chart.rows) > 30 else 7.5
    axes.set_yticks(rows, [shortened(chart.rows[row], 20) for row in rows], size=size)
    names = [shortened(chart.columns[column], 14) for column in columns]
    turned = max(map(len, names), default=0) * len(names) > 4.5 * most
    axes.set_xticks(
        columns,
        names,
        size=7.5,
        rotation=40 if turned else 0,
        ha="right" if turned else "center",
        rotation_mode="anchor" if turned else "default",
    )
    axes.set_xlabel(chart.column_label, color=theme.ink, size=FONT)
    if theme.page:
        axes.set_title(chart.row_label, loc="left", color=theme.ink, size=FONT, pad=6)
    else:
        axes.set_ylabel(chart.row_label, color=theme.ink, size=FONT)
    axes.spines["bottom"].set_visible(False)


def _labelled(names: Sequence[str], most: int) -> list[int]:
    """Which of ``names`` to write, at one distance; of numbers, the round ones."""
    step = next((step for step in _STEPS if len(names) <= step * most), len(names))
    if step > 1 and all(name.isdecimal() for name in names):
        return [index for index, name in enumerate(names) if int(name) % step == 0]
    return list(range(0, len(names), step))
