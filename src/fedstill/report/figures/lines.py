"""Curves with bands over seeds, and values to compare with as rules."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedstill.report.figures.looks import (
    Theme,
    dashes,
    hue,
    marker,
    measure,
    place,
    say,
    series_id,
    sheet,
    shown,
)
from fedstill.report.figures.readouts import Spot, Track
from fedstill.report.parts import Lines, Trace

__all__ = ["curve", "draw_lines"]

_MARKERS = 12  # on a curve
_HEIGHT = 2.75  # inches


def draw_lines(chart: Lines, theme: Theme) -> tuple[Figure, Axes, list[Track]]:
    """The figure, and what a pointer is told; a point that has no place on an axis is left out."""
    figure, axes = sheet(theme, height=_HEIGHT)
    tracks = []
    for index, trace in enumerate(chart.traces):
        spots = curve(chart, trace, axes, depth=3 - index / len(chart.traces))
        if spots:
            tracks.append(Track(series_id(trace.series), trace.label, spots))
    for index, mark in enumerate(mark for mark in chart.marks if shown(mark.y, chart.y)):
        gid = series_id(mark.series)
        axes.axhline(mark.y, color=hue(mark.style), linewidth=1, linestyle=(0, (1, 3)), gid=gid)
        right = index % 2 == 1  # curves leave the left free; two marks of nearly one height do not stand on each other
        axes.annotate(
            mark.label,
            (1.0 if right else 0.0, mark.y),
            xycoords=("axes fraction", "data"),
            xytext=(0, 3),
            textcoords="offset points",
            ha="right" if right else "left",
            size=7.5,
            color=theme.mute,
            gid=gid,
            bbox={"facecolor": theme.paper, "edgecolor": "none", "alpha": 0.8, "pad": 0.5},
        )
    measure(axes, chart.x, chart.y, theme)
    return figure, axes, tracks


def _band(axes: Axes, points: Sequence[tuple[float, float, float]], colour: str, gid: str) -> None:
    """Between (x, below, above); a point that stands alone gets a bar."""
    xs, below, above = zip(*points, strict=True)
    if len(points) > 1 and any(low < high for _, low, high in points):
        axes.fill_between(xs, below, above, color=colour, alpha=0.16, linewidth=0, gid=gid, zorder=1)
    elif below[0] < above[0]:
        axes.vlines(xs, below, above, colors=colour, linewidth=1, gid=gid, zorder=1)


def curve(chart: Lines, trace: Trace, axes: Axes, *, depth: float, small: bool = False) -> list[Spot]:
    """Draw a trace and its band; its points, as far as they have a place on the axes.

    ``depth``: what is higher covers it. ``small``: a thin line with a marker at its end alone.
    """
    spreads = list(trace.spreads) or [None] * len(trace.xs)
    points = [
        (x, y, spread)
        for x, y, spread in zip(trace.xs, trace.ys, spreads, strict=True)
        if shown(x, chart.x) and shown(y, chart.y)
    ]
    if not points:
        return []
    xs, ys = [x for x, *_ in points], [y for _, y, _ in points]
    colour, gid = hue(trace.style), series_id(trace.series)
    line = (0, dashes(trace.style)) if dashes(trace.style) else "solid"
    every = len(xs) if small else max(1, len(xs) // _MARKERS)
    axes.plot(xs, ys, color=colour, linestyle=line, linewidth=1.2 if small else 1.6, gid=gid, zorder=depth)
    # from the last point backwards, so that the last one has its marker
    axes.plot(
        xs[::-every],
        ys[::-every],
        color=colour,
        linestyle="none",
        marker=marker(trace.style),
        markersize=3 if small else 4,
        gid=gid,
        zorder=depth,
    )
    floor = min(ys) if chart.y.log else float("-inf")
    # where a spread is not known there is no band: one that closes there would promise certainty
    for known, its in groupby(points, lambda point: point[2] is not None):
        if known:
            _band(axes, [(x, max(y - (s or 0), floor), y + (s or 0)) for x, y, s in its], colour, gid)
    return [Spot(x, y, place(x, chart.x), say(y, chart.y.unit, spread)) for x, y, spread in points]
