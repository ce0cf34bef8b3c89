"""Figures as inline SVG: the same numbers give the same text, byte for byte.

Colours are not written into the SVG but refer to the page's CSS variables, so that a figure follows light and dark;
every variable has the light colour as its fall-back, so that a figure cut out of the page still shows. Series differ in
dash and marker as well as in colour, so that they can be told apart in grey.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

from markupsafe import Markup, escape
from matplotlib import style as styles
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from fedstill.report.words import duration, size

__all__ = ["PALETTE", "Line", "Style", "curves", "stacks", "swatch"]

PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Okabe and Ito's colours that hold against white, strongest first."""

_DASHES = ((), (5, 2), (1, 1.6), (6, 2, 1, 2), (3, 1.5, 3, 1.5, 1, 1.5))  # in line widths
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_SHAPES = {
    "o": '<circle cx="17" cy="6" r="3.2"/>',
    "s": '<rect x="14.2" y="3.2" width="5.6" height="5.6"/>',
    "^": '<path d="M17 2.2 20.6 9H13.4Z"/>',
    "D": '<path d="M17 2 21 6 17 10 13 6Z"/>',
    "v": '<path d="M17 9.8 20.6 3H13.4Z"/>',
    "P": '<path d="M15.7 2.4h2.6v2.3h2.3v2.6h-2.3v2.3h-2.6V7.3h-2.3V4.7h2.3Z"/>',
    "X": '<path d="M14 4.6 15.6 3 17 4.5 18.4 3 20 4.6 18.6 6 20 7.4 18.4 9 17 7.5 15.6 9 14 7.4 15.4 6Z"/>',
}
_HATCHES = ("", "////", "....", "\\\\\\\\", "xxxx", "----")

# stand-ins, because matplotlib knows no currentColor; no series has one of these
_INK, _RULE, _PAPER = "#010203", "#040506", "#070809"
_LEAST = 0.1  # of accuracy, that a vertical axis spans
_WIDTH = 4.6  # inches: text keeps a readable size when a telephone shrinks the figure


@dataclass(frozen=True)
class Style:
    """How one series looks: ``colour`` (and marker) number the method, ``dash`` numbers its model."""

    colour: int
    dash: int

    @property
    def hue(self) -> str:
        return PALETTE[self.colour % len(PALETTE)]

    @property
    def dashes(self) -> tuple[float, ...]:
        # the method moves the dash on, too: in grey, two methods' first models are not both solid
        return _DASHES[(self.dash + self.colour) % len(_DASHES)]

    @property
    def marker(self) -> str:
        return _MARKERS[self.colour % len(_MARKERS)]


@dataclass(frozen=True)
class Line:
    """A series: points, and half the height of its band where there is one."""

    style: Style
    xs: Sequence[float]
    ys: Sequence[float]
    spreads: Sequence[float | None]


def swatch(of: Style) -> Markup:
    """A piece of the line, for a legend in the page's text."""
    dash = " ".join(f"{2 * length:g}" for length in of.dashes)
    colour = _variable(of.hue)
    return Markup(
        f'<svg class="swatch" viewBox="0 0 34 12" aria-hidden="true" style="color:{colour}">'
        f'<path d="M1 6H33" stroke="currentColor" stroke-width="2" stroke-dasharray="{dash}" fill="none"/>'
        f'<g fill="currentColor">{_SHAPES[of.marker]}</g></svg>'
    )


def curves(lines: Sequence[Line], *, name: str, label: str, x_label: str, x_bytes: bool = False) -> Markup:
    """Accuracy against rounds, or against bytes.

    Args:
        lines: accuracies as fractions.
        name: prefix of the ids in the SVG; differs for every figure of a page.
        label: what a screen reader says in the figure's place.
        x_label: under the horizontal axis.
        x_bytes: the horizontal axis is in bytes; else it counts rounds.
    """
    with _defaults():
        figure, axes = _sheet(height=2.9)
        for line in lines:
            look = line.style
            dashes = (0, look.dashes) if look.dashes else "solid"
            every = max(1, len(line.xs) // 12)
            axes.plot(line.xs, line.ys, color=look.hue, linestyle=dashes, linewidth=1.6)
            axes.plot(
                line.xs[::-every], line.ys[::-every], color=look.hue, linestyle="none", marker=look.marker, markersize=4
            )
            if any(line.spreads):
                below = [y - (spread or 0) for y, spread in zip(line.ys, line.spreads, strict=True)]
                above = [y + (spread or 0) for y, spread in zip(line.ys, line.spreads, strict=True)]
                axes.fill_between(line.xs, below, above, color=look.hue, alpha=0.16, linewidth=0)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f}"))
        axes.set_ylabel("test images labelled correctly, %")
        axes.set_xlabel(x_label)
        low, high = axes.get_ylim()
        slack = max(0.0, _LEAST - (high - low)) / 2  # a hair's breadth must not look like a gulf
        axes.set_ylim(max(0.0, low - slack), min(1.0, high + slack))
        if x_bytes:
            axes.xaxis.set_major_locator(MaxNLocator(5, min_n_ticks=3))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: size(value) if value else "0"))
            axes.set_xlim(left=min(0.0, axes.get_xlim()[0]))
        else:
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(True, color=_RULE, linewidth=0.6)
        return _svg(figure, name, label)


def stacks(bars: Mapping[str, Mapping[str, float]], *, phases: Sequence[str], name: str, label: str) -> Markup:
    """Seconds by phase, one bar a method; ``phases`` in the order of the legend."""
    with _defaults():
        figure, axes = _sheet(height=0.75 + 0.34 * len(bars))
        for row, seconds in enumerate(bars.values()):
            left = 0.0
            for index, phase in enumerate(phases):
                width = seconds.get(phase, 0.0)
                axes.barh(
                    row,
                    width,
                    left=left,
                    height=0.62,
                    color=PALETTE[index % len(PALETTE)],
                    hatch=_HATCHES[index % len(_HATCHES)],
                    edgecolor=_PAPER,
                    linewidth=0.8,
                )
                left += width
        axes.set_yticks(range(len(bars)), labels=[text if len(text) < 24 else text[:23] + "…" for text in bars])
        axes.invert_yaxis()
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: duration(value) if value else "0"))
        axes.grid(True, axis="x", color=_RULE, linewidth=0.6)
        return _svg(figure, name, label)


def _defaults() -> AbstractContextManager[None]:
    """Matplotlib as it was shipped: a reader's own matplotlibrc must not change the page."""
    own = {"svg.fonttype": "none", "svg.hashsalt": "fedstill", "text.parse_math": False, "hatch.linewidth": 0.7}
    return styles.context(["default", own])


def _sheet(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    axes = figure.add_subplot()
    axes.patch.set_visible(False)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(_RULE)
    axes.tick_params(colors=_INK, length=0, labelsize=8.5)
    for axis in (axes.xaxis, axes.yaxis):
        axis.label.set(color=_INK, size=8.5)
    return figure, axes


def _variable(colour: str) -> str:
    return f"var(--s{PALETTE.index(colour)}, {colour})"


def _svg(figure: Figure, name: str, label: str) -> Markup:
    figure.patch.set_visible(False)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    view = re.search(r'viewBox="[^"]+"', text)
    assert view is not None, "matplotlib writes a viewBox"
    text = text[text.index(">") + 1 :]
    # ids of two figures must not meet in one page: a clip path would cut the other's lines
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r"url\(#", f"url(#{name}-", text)
    text = re.sub(r'xlink:href="#', f'href="#{name}-', text)
    text = (
        text.replace(_INK, "currentColor").replace(_RULE, "var(--rule, #d9dcdf)").replace(_PAPER, "var(--paper, #fff)")
    )
    for colour in PALETTE:
        text = text.replace(colour, _variable(colour))
    head = f'<svg class="figure" role="img" aria-label="{escape(label)}" {view.group()}>'
    return Markup(head + text)
