"""Charts, drawn: for the page as inline SVG with what a pointer is told, for a paper as a file of their own.

looks.py      colours, dashes, markers, axes in their unit
lines.py  panels.py  scatter.py  heat.py  bars.py    one drawing function for each type of chart
readouts.py   what a pointer over a figure is told
svg.py        a matplotlib figure → SVG inside the page
keys.py       legends in the page's text
files.py      figures for a paper

The same numbers give the same bytes.
"""

from __future__ import annotations

from fedstill.report.figures.files import Kind, save
from fedstill.report.figures.keys import swatch
from fedstill.report.figures.looks import series_id
from fedstill.report.figures.page import Drawing, draw

__all__ = ["Drawing", "Kind", "draw", "save", "series_id", "swatch"]
