"""A chart as it stands in the page."""

from __future__ import annotations

from dataclasses import dataclass

from markupsafe import Markup

from fedstill.report.figures import keys
from fedstill.report.figures.looks import PAGE, WIDTH, defaults
from fedstill.report.figures.readouts import script
from fedstill.report.figures.sketch import sketch
from fedstill.report.figures.svg import inline
from fedstill.report.parts import Bars, Drawn, Heat

__all__ = ["Drawing", "draw"]


@dataclass(frozen=True)
class Drawing:
    """A chart for the page.

    Attributes:
        svg: the figure.
        readout: what a pointer over it is told, for ``page.js``.
        key: its own legend, above it; empty where the page's switches are its legend.
        wide: it needs more than half of the page's width, and scrolls on a telephone.
    """

    svg: Markup
    readout: Markup
    key: Markup
    wide: bool


def draw(chart: Drawn) -> Drawing:
    """Colours refer to the page's CSS variables, so that the figure follows light and dark.

    Every trace and mark is a group of class :func:`series_id`.
    """
    with defaults(page=True):
        figure, axes, readout = sketch(chart, PAGE)
        svg = inline(figure, chart.chart.key, chart.chart.spoken)
        wide = float(figure.get_size_inches()[0]) > WIDTH
        return Drawing(svg, script(readout, figure, axes), _key(chart), wide)


def _key(chart: Drawn) -> Markup:
    if isinstance(chart, Bars):
        return keys.parts(chart)
    return keys.scale(chart) if isinstance(chart, Heat) else Markup("")
