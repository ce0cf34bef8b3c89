"""Figures for a paper: the page's drawing, in a file that needs nothing else."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Literal

from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from fedstill.files import write_bytes
from fedstill.report.figures.looks import (
    FONT,
    HATCHES,
    PALETTE,
    PAPER,
    dashes,
    defaults,
    hue,
    marker,
)
from fedstill.report.figures.sketch import sketch
from fedstill.report.figures.ticks import shortened
from fedstill.report.parts import Bars, Drawn, Heat, Lines, Scatter, Trace

__all__ = ["Kind", "save"]

Kind = Literal["png", "svg"]

_DPI = 300
_NO_DATES: dict[Kind, dict[str, None]] = {"png": {"Software": None}, "svg": {"Date": None, "Creator": None}}
_ENTRY = 0.17  # inches, of a line of the legend


def save(chart: Drawn, path: Path, kind: Kind) -> None:
    """Write ``chart`` in light colours with its legend, as PNG of 300 dots an inch or as SVG without fonts.

    The same numbers give the same bytes.

    Raises:
        RunError: the file cannot be written.
    """
    with defaults(page=False):
        figure, *_ = sketch(chart, PAPER)
        _legend(figure, chart)
        buffer = io.BytesIO()
        figure.savefig(buffer, format=kind, dpi=_DPI, metadata=_NO_DATES[kind])
    write_bytes(path, buffer.getvalue())


def _legend(figure: Figure, chart: Drawn) -> None:
    handles: list[Artist]
    match chart:
        case Lines():
            handles = [_line(trace, joined=True) for trace in {each.series: each for each in chart.traces}.values()]
        case Scatter(named=False):
            handles = [_line(trace, joined=False) for trace in chart.traces]
        case Bars():
            handles = [_chip(index, part) for index, part in enumerate(chart.parts)]
        case Scatter() | Heat():  # names stand beside the points; the colour bar is drawn already
            return
    columns = 2 if max((len(str(handle.get_label())) for handle in handles), default=0) > 16 else 3
    width, height = figure.get_size_inches()
    figure.set_size_inches(width, height + _ENTRY * -(-len(handles) // columns))
    figure.legend(
        handles=handles,
        loc="outside lower left",
        ncols=columns,
        frameon=False,
        fontsize=FONT - 1,
        labelcolor=PAPER.ink,
        handlelength=2.6,
    )


def _line(trace: Trace, *, joined: bool) -> Line2D:
    return Line2D(
        [],
        [],
        color=hue(trace.style),
        linestyle=((0, dashes(trace.style)) if dashes(trace.style) else "solid") if joined else "none",
        linewidth=1.6,
        marker=marker(trace.style),
        markersize=4,
        label=shortened(trace.label, 34),
    )


def _chip(index: int, part: str) -> Patch:
    return Patch(
        facecolor=PALETTE[index % len(PALETTE)],
        hatch=HATCHES[index % len(HATCHES)],
        edgecolor=PAPER.paper,
        label=shortened(part, 34),
    )
