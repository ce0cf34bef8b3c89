"""Stacked horizontal bars, such as seconds by phase."""

from __future__ import annotations

from itertools import accumulate

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedstill.report.figures.looks import HATCHES, PALETTE, Theme, measure, say, sheet
from fedstill.report.figures.readouts import Spot, Track
from fedstill.report.figures.ticks import shortened
from fedstill.report.parts import Axis, Bars

__all__ = ["draw_bars"]


def draw_bars(chart: Bars, theme: Theme) -> tuple[Figure, Axes, list[Track]]:
    """The figure, and what a pointer is told; ``parts`` differ in hatch as well as in colour."""
    figure, axes = sheet(theme, height=0.7 + 0.34 * max(1, len(chart.bars)))
    lefts = [[0.0, *accumulate(values)] for _, values in chart.bars]
    for index in range(len(chart.parts)):
        axes.barh(
            range(len(chart.bars)),
            [values[index] for _, values in chart.bars],
            left=[left[index] for left in lefts],
            height=0.62,
            color=PALETTE[index % len(PALETTE)],
            hatch=HATCHES[index % len(HATCHES)],
            edgecolor=theme.paper,
            linewidth=0.8,
        )
    measure(axes, chart.x, Axis(""), theme)
    axes.set_yticks(range(len(chart.bars)), labels=[shortened(name) for name, _ in chart.bars])
    axes.set_ylim(len(chart.bars) - 0.5, -0.5)
    axes.grid(False, axis="y")
    tracks = []
    for row, ((name, values), left) in enumerate(zip(chart.bars, lefts, strict=True)):
        spots = [
            Spot(left[index] + value / 2, row, part, say(value, chart.x.unit), reach=value / 2)
            for index, (part, value) in enumerate(zip(chart.parts, values, strict=True))
            if value > 0
        ]
        if spots:
            tracks.append(Track("", name, spots))
    return figure, axes, tracks
