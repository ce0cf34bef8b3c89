"""What a pointer over a figure is told: points in the coordinates of the SVG, and their values in words."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedstill.report.spread import spread

__all__ = ["Field", "Readout", "Spot", "Track", "script"]

_MOST = 200  # points of a series: nobody points more finely than that


@dataclass(frozen=True)
class Spot:
    """A point at ``x``, ``y`` of the axes; ``reach``: half the width of what it stands for, along x."""

    x: float
    y: float
    where: str
    text: str
    reach: float = 0.0


@dataclass(frozen=True)
class Track:
    """The points of one series, whose ``name`` stands above each; ``series`` is empty where it cannot be switched off.

    ``axes``: on which it is drawn, where a figure has several.
    """

    series: str
    name: str
    spots: Sequence[Spot]
    axes: Axes | None = None


@dataclass(frozen=True)
class Field:
    """Cells by row and column: cell (i, j) is centred at y = i, x = j of the axes."""

    rows: Sequence[str]
    columns: Sequence[str]
    column_label: str
    texts: Sequence[Sequence[str]]


Readout = Field | Sequence[Track]


def script(readout: Readout, figure: Figure, axes: Axes) -> Markup:
    """The readout as a block of JSON for ``page.js``; ``figure`` must have its final layout.

    ``{"t": [[series, name, [[x, y, where, text, reach?], …]], …]}`` or
    ``{"f": [left, top, right, bottom], "rows": […], "columns": […], "column": "round", "texts": [[…], …]}``.
    """
    height = 72 * float(figure.get_size_inches()[1])
    place = axes.transData.transform
    if isinstance(readout, Field):
        (left, top), (right, bottom) = place(
            [(-0.5, -0.5), (len(readout.columns) - 0.5, len(readout.rows) - 0.5)]
        ).tolist()
        value: object = {
            "f": [round(number, 1) for number in (left, height - top, right, height - bottom)],
            "rows": list(readout.rows),
            "columns": list(readout.columns),
            "column": readout.column_label,
            "texts": [list(row) for row in readout.texts],
        }
    else:
        tracks = []
        for track in readout:
            spots = [track.spots[index] for index in spread(len(track.spots), _MOST)]
            ends = (track.axes or axes).transData.transform(
                [(spot.x, spot.y) for spot in spots] + [(spot.x + spot.reach, spot.y) for spot in spots]
            )
            points = []
            for spot, (x, y), (far, _) in zip(spots, ends[: len(spots)], ends[len(spots) :], strict=True):
                reach = [round(float(far - x), 1)] if spot.reach else []
                points.append([round(float(x), 1), round(float(height - y), 1), spot.where, spot.text, *reach])
            tracks.append([track.series, track.name, points])
        value = {"t": tracks}
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    # within a script element only its end tag and a comment's start would be read as HTML
    text = text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
    return Markup(f'<script type="application/json">{text}</script>')
