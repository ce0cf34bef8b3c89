"""Points: a Pareto plot with names beside them, or a cloud such as t-SNE's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from fedstill.report.figures.looks import (
    WIDTH,
    Theme,
    hue,
    marker,
    measure,
    say,
    series_id,
    sheet,
    shown,
)
from fedstill.report.figures.readouts import Spot, Track
from fedstill.report.figures.ticks import shortened
from fedstill.report.parts import Axis, Scatter, Trace

__all__ = ["draw_scatter"]

_MANY = 500  # points
_SIZE = 7.5  # points, of a name


_Place = tuple[float, float]


@dataclass(frozen=True)
class _Named:
    x: float
    y: float
    trace: Trace


def draw_scatter(chart: Scatter, theme: Theme) -> tuple[Figure, Axes, list[Track]]:
    """The figure, and what a pointer is told; a point that has no place on an axis is left out."""
    figure, axes = sheet(theme, width=WIDTH, height=3.0 if chart.named else 3.6)
    kept = [(trace, _points(chart, trace)) for trace in chart.traces]
    kept = [(trace, points) for trace, points in kept if points]
    size = 6.5 if chart.named else 4.0 if sum(len(points) for _, points in kept) < _MANY else 2.6
    for trace, points in kept:
        xs, ys = [x for x, *_ in points], [y for _, y, _ in points]
        colour, gid = hue(trace.style), series_id(trace.series)
        axes.plot(
            xs, ys, color=colour, linestyle="none", marker=marker(trace.style), markersize=size, gid=gid, zorder=5
        )
        bars = [(x, y, spread) for x, y, spread in points if spread]
        if bars:
            axes.vlines(
                [x for x, *_ in bars],
                [y - spread if shown(y - spread, chart.y) else y for _, y, spread in bars],
                [y + spread for _, y, spread in bars],
                colors=colour,
                linewidth=1,
                gid=gid,
                zorder=3,
            )
    front = sorted(point for point in chart.front if shown(point[0], chart.x) and shown(point[1], chart.y))
    if len(front) > 1:
        axes.step(
            [x for x, _ in front],
            [y for _, y in front],
            where="post",
            color=theme.mute,
            linewidth=0.9,
            linestyle=(0, (4, 3)),
            zorder=2,
        )
    if chart.named:
        axes.margins(0.14, 0.16)
    measure(axes, chart.x, chart.y, theme)
    if chart.named:
        named = [_Named(*max((x, y) for x, y, _ in points), trace) for trace, points in kept]
        _name(figure, axes, named, [(x, y) for _, points in kept for x, y, _ in points], front, theme)
    return figure, axes, [Track(series_id(trace.series), trace.label, _spots(chart, points)) for trace, points in kept]


def _points(chart: Scatter, trace: Trace) -> list[tuple[float, float, float | None]]:
    spreads = list(trace.spreads) or [None] * len(trace.xs)
    return [
        point
        for point in zip(trace.xs, trace.ys, spreads, strict=True)
        if shown(point[0], chart.x) and shown(point[1], chart.y)
    ]


def _spots(chart: Scatter, points: Sequence[tuple[float, float, float | None]]) -> list[Spot]:
    def said(value: float, axis: Axis, spread: float | None = None) -> str:
        return say(value, axis.unit, spread) if axis.label or axis.unit else ""

    return [Spot(x, y, said(x, chart.x), said(y, chart.y, spread)) for x, y, spread in points]


def _name(
    figure: Figure,
    axes: Axes,
    named: Sequence[_Named],
    points: Sequence[_Place],
    front: Sequence[_Place],
    theme: Theme,
) -> None:
    """Each name where, of twelve places about its point, it covers least of what stands there already."""
    layout = figure.get_layout_engine()
    assert layout is not None, "a sheet has a layout"
    layout.execute(figure)  # where points lie on the sheet is known from here on
    place = axes.transData.transform
    frame = axes.get_window_extent()
    taken = [np.array([x - 4, y - 4, x + 4, y + 4]) for x, y in place(points)]
    for (left, low), (right, high) in pairwise(place(front) if front else ()):
        taken += [np.array([left, low - 2, right, low + 2]), np.array([right - 2, low, right + 2, high])]
    for one in sorted(named, key=lambda one: -one.y):
        text = shortened(one.trace.label, 28)
        width, height = 0.54 * _SIZE * len(text), 1.2 * _SIZE
        x, y = place((one.x, one.y))
        best: tuple[float, NDArray[np.float64]] | None = None
        for cost, (dx, dy) in enumerate(_around(width, height)):
            box = np.array([x + dx, y + dy, x + dx + width, y + dy + height])
            outside = max(0, frame.x0 - box[0], box[2] - frame.x1) + max(0, frame.y0 - box[1], box[3] - frame.y1)
            total = 0.5 * cost + 20 * outside + sum(_overlap(box, other) for other in taken)
            if best is None or total < best[0]:
                best = (total, box)
        assert best is not None, "there are places"
        box = best[1]
        taken.append(box)
        axes.annotate(
            text,
            (one.x, one.y),
            xytext=(box[0] - x, box[1] - y + 0.2 * _SIZE),
            textcoords="offset points",
            size=_SIZE,
            color=theme.ink,
            gid=series_id(one.trace.series),
            in_layout=False,
            zorder=4,  # a name does not cover a point
            bbox={"facecolor": theme.paper, "edgecolor": "none", "alpha": 0.8, "pad": 0.5},
        )


def _around(width: float, height: float) -> list[tuple[float, float]]:
    """Lower left corners of a name, from the best place to the worst, relative to its point."""
    middle, left, half = -height / 2, -width, -width / 2
    near = [(7.0, middle), (left - 7, middle), (half, 6.0), (half, -height - 6)]
    corners = [(5.0, 4.0), (5.0, -height - 4), (left - 5, 4.0), (left - 5, -height - 4)]
    return [*near, *corners, (half, 15.0), (half, -height - 15), (7.0, 13.0), (7.0, -height - 13)]


def _overlap(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return float(width * height) if width > 0 and height > 0 else 0.0
