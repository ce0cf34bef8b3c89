"""How figures look: colours, dashes, markers, the empty sheet, axes in their unit.

Series differ in dash and marker as well as in colour, so that they can be told apart in grey. A figure of the page is drawn
in stand-in colours that become the page's CSS variables; one for a paper in the light colours themselves.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from hashlib import sha256

from matplotlib import style as styles
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, LinearSegmentedColormap
from matplotlib.figure import Figure

from fedstill.report import words
from fedstill.report.figures.ticks import tick
from fedstill.report.groups import Point
from fedstill.report.parts import Axis, Style, Unit

__all__ = [
    "FONT",
    "HATCHES",
    "PAGE",
    "PALETTE",
    "PAPER",
    "WIDE",
    "WIDTH",
    "Theme",
    "blank",
    "dashes",
    "defaults",
    "dress",
    "hue",
    "marker",
    "measure",
    "named",
    "place",
    "say",
    "scale",
    "series_id",
    "sheet",
    "shown",
]

PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Okabe and Ito's colours that hold against white, strongest first."""

HATCHES = ("", "////", "||||", "\\\\\\\\", "xxxx", "----")

WIDTH, WIDE = 4.2, 6.6
"""Inches: text keeps a readable size when a telephone shrinks the narrow one; the wide one scrolls there."""

FONT = 8.5  # points
_DASHES = ((), (5, 2), (1, 1.6), (6, 2, 1, 2), (3, 1.5, 3, 1.5, 1, 1.5))  # in line widths
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_LEAST = 0.1  # of a share, that a vertical axis spans
_HUGE = 1e100  # what is larger is damage, and margins about it are no numbers


@dataclass(frozen=True)
class Theme:
    """Colours other than those of series.

    Attributes:
        ramp: from the least value of a heat figure to the largest.
        middle: of numbers on the middle of the ramp, which are dark on the light page and on the dark one.
        page: a figure of the page; else one that stands alone in a paper.
    """

    ink: str
    mute: str
    rule: str
    paper: str
    middle: str
    ramp: Colormap
    page: bool


def _ramp(name: str, least: str, most: str) -> Colormap:
    # nothing at all is drawn where there is no value
    return LinearSegmentedColormap.from_list(name, [least, most]).with_extremes(bad=(0, 0, 0, 0))


# Stand-ins, because matplotlib knows no currentColor; no series has one of these. The ramp is the share of the page's
# colour for heat that covers the paper: a grey, which becomes a mask.
PAGE = Theme("#010203", "#0a0b0c", "#040506", "#070809", "#0b0c0d", _ramp("mask", "#1c1c1c", "#ffffff"), page=True)
PAPER = Theme("#1c1e21", "#5a6169", "#d9dcdf", "#ffffff", "#1c1e21", _ramp("blues", "#e4ecf4", "#08306b"), page=False)


def hue(style: Style) -> str:
    return PALETTE[style.colour % len(PALETTE)]


def dashes(style: Style) -> tuple[float, ...]:
    """In line widths; empty is a solid line."""
    # the method moves the dash on, too: in grey, two methods' first models are not both solid
    return _DASHES[(style.dash + style.colour) % len(_DASHES)]


def marker(style: Style) -> str:
    return _MARKERS[style.colour % len(_MARKERS)]


def series_id(series: str) -> str:
    """A name that is safe as a class of HTML, whatever a series is called."""
    return f"series-{sha256(series.encode()).hexdigest()[:8]}"


def defaults(*, page: bool) -> AbstractContextManager[None]:
    """Matplotlib as it was shipped: a reader's own matplotlibrc must not change a figure."""
    own = {
        # in a paper nobody can tell which fonts there are, so letters are drawn as shapes
        "svg.fonttype": "none" if page else "path",
        "svg.hashsalt": "fedstill",
        "text.parse_math": False,
        "hatch.linewidth": 0.7,
    }
    return styles.context(["default", own])


def sheet(theme: Theme, *, width: float = WIDTH, height: float) -> tuple[Figure, Axes]:
    """An empty figure of so many inches, at a dot a point, so that display coordinates are those of the SVG."""
    figure = blank(theme, width=width, height=height)
    axes = figure.add_subplot()
    dress(axes, theme)
    return figure, axes


def blank(theme: Theme, *, width: float, height: float) -> Figure:
    """A figure without axes."""
    figure = Figure(figsize=(width, height), dpi=72, layout="constrained")
    figure.patch.set(visible=not theme.page, facecolor=theme.paper)
    return figure


def dress(axes: Axes, theme: Theme) -> None:
    """Axes without a frame."""
    axes.patch.set_visible(False)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(theme.rule)
    axes.tick_params(colors=theme.ink, length=0, labelsize=FONT)


def measure(axes: Axes, x: Axis, y: Axis, theme: Theme) -> None:
    """Scales, ticks and labels of both axes, once everything is drawn."""
    scale(axes, x, y, theme)
    axes.set_xlabel(named(x), color=theme.ink, size=FONT)
    if theme.page:  # read without turning one's head, and the plot keeps its width on a telephone
        axes.set_title(named(y), loc="left", color=theme.ink, size=FONT, pad=8)
    else:
        axes.set_ylabel(named(y), color=theme.ink, size=FONT)


def named(axis: Axis) -> str:
    """An axis's label, and its unit where the ticks do not say it."""
    return axis.label + (", %" if axis.unit == "share" else "")


def scale(axes: Axes, x: Axis, y: Axis, theme: Theme) -> None:
    """Scales and ticks of both axes, once everything is drawn."""
    for own, axis, limits in ((axes.xaxis, x, axes.set_xlim), (axes.yaxis, y, axes.set_ylim)):
        low, high = own.get_view_interval()
        if axis.log:
            (axes.set_xscale if own is axes.xaxis else axes.set_yscale)("log")
        elif own is axes.xaxis and axis.unit in ("bytes", "seconds"):
            limits(min(0.0, low), high)
        elif own is axes.yaxis and axis.unit == "share":
            slack = max(0.0, _LEAST - (high - low)) / 2  # a hair's breadth must not look like a gulf
            limits(max(min(0.0, low + slack), low - slack), min(max(1.0, high - slack), high + slack))
        tick(own, axis)
    axes.grid(True, color=theme.rule, linewidth=0.6)


def say(value: float, unit: Unit, spread: float | None = None) -> str:
    """A value as the tables write it: ``84.3 ± 1.2 %``."""
    if unit == "round" and value == int(value):
        return f"{value:.0f}"
    known = value if spread is None else Point(value, spread, 2)
    if unit == "" and spread is None and value == int(value):
        return words.count(int(value))
    return {"share": words.percent, "bytes": words.size, "seconds": words.duration, "round": words.rounds}.get(
        unit, words.figure
    )(known)


def place(value: float, axis: Axis) -> str:
    """Where on ``axis`` a point lies, in words."""
    text = axis.ticks[round(value)] if axis.ticks else say(value, axis.unit)
    return f"{axis.label} {text}" if axis.unit in ("round", "") else text


def shown(value: float, axis: Axis) -> bool:
    """Whether ``value`` has a place on ``axis``."""
    return abs(value) < _HUGE and (value > 1 / _HUGE or not axis.log)
