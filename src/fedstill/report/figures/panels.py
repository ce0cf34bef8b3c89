"""Curves in small charts of the same axes, for those that are too many to be told apart in one."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedstill.report.figures.lines import curve
from fedstill.report.figures.looks import FONT, WIDE, Theme, blank, dress, hue, named, scale, series_id, shown
from fedstill.report.figures.readouts import Track
from fedstill.report.figures.ticks import shortened
from fedstill.report.parts import Lines, Panels

__all__ = ["draw_panels"]

_LETTERS = 100  # of titles, side by side across the figure


def draw_panels(chart: Lines, panels: Panels, theme: Theme) -> tuple[Figure, Axes, list[Track]]:
    """The figure, its first axes, and what a pointer is told."""
    names = panels.names
    columns = panels.columns or (2 if len(names) <= 4 else 3 if len(names) <= 9 else 4)
    rows = -(-len(names) // columns)
    # a setting above its network, where they have no room on one line
    titles = [name.replace(": ", "\n", 1) if len(name) > _LETTERS // columns else name for name in names]
    lines = max(title.count("\n") for title in titles)
    figure = blank(theme, width=WIDE, height=0.7 + rows * (0.3 + 0.14 * lines + WIDE / columns * 0.64))
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flatten().tolist()
    every, spare = grid[: len(names)], grid[len(names) :]
    tracks: list[Track] = []
    for name, title, axes in zip(names, titles, every, strict=True):
        dress(axes, theme)
        if panels.context:
            _context(chart, name, axes, theme)
        tracks += _panel(chart, name, axes)
        text = "\n".join(shortened(line, _LETTERS // columns) for line in title.split("\n"))
        axes.set_title(text, loc="left", color=theme.ink, size=FONT, pad=4)
    for axes in every:  # axes are shared, so that limits are known when all is drawn
        scale(axes, chart.x, chart.y, theme)
        axes.tick_params(labelsize=FONT - 1)
    for axes in spare:
        axes.set_visible(False)
    for axes in every[max(0, len(names) - columns) :]:  # also above a spare one
        axes.tick_params(labelbottom=True)
    figure.suptitle(named(chart.y), x=0.005, ha="left", color=theme.ink, size=FONT)
    figure.supxlabel(named(chart.x), color=theme.ink, size=FONT)
    return figure, every[0], tracks


def _context(chart: Lines, name: str, axes: Axes, theme: Theme) -> None:
    """The traces of other panels."""
    for trace in chart.traces:
        places = [(x, y) for x, y in zip(trace.xs, trace.ys, strict=True) if shown(x, chart.x) and shown(y, chart.y)]
        if places and trace.panel != name:
            axes.plot(*zip(*places, strict=True), color=theme.rule, linewidth=0.9, zorder=0.5)


def _panel(chart: Lines, name: str, axes: Axes) -> list[Track]:
    tracks = []
    own = [trace for trace in chart.traces if trace.panel == name]
    for index, trace in enumerate(own):
        spots = curve(chart, trace, axes, depth=3 - index / len(own), small=True)
        if spots:
            tracks.append(Track(series_id(trace.series), trace.label, spots, axes))
    for mark in chart.marks:
        if mark.panel == name and shown(mark.y, chart.y):
            axes.axhline(mark.y, color=hue(mark.style), linewidth=1, linestyle=(0, (1, 3)), gid=series_id(mark.series))
    return tracks
