"""Which function draws which chart."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedstill.report.figures.bars import draw_bars
from fedstill.report.figures.heat import draw_heat
from fedstill.report.figures.lines import draw_lines
from fedstill.report.figures.looks import Theme
from fedstill.report.figures.panels import draw_panels
from fedstill.report.figures.readouts import Readout
from fedstill.report.figures.scatter import draw_scatter
from fedstill.report.parts import Bars, Drawn, Heat, Lines, Scatter

__all__ = ["sketch"]


def sketch(chart: Drawn, theme: Theme) -> tuple[Figure, Axes, Readout]:
    """The figure, its axes, and what a pointer is told."""
    match chart:
        case Lines():
            return draw_panels(chart, chart.panels, theme) if chart.panels is not None else draw_lines(chart, theme)
        case Scatter():
            return draw_scatter(chart, theme)
        case Heat():
            return draw_heat(chart, theme)
        case Bars():
            return draw_bars(chart, theme)
