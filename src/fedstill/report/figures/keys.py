"""Legends in the page's text: they wrap on a telephone and can be read aloud."""

from __future__ import annotations

from markupsafe import Markup, escape

from fedstill.report.figures.heat import span
from fedstill.report.figures.looks import PALETTE, dashes, hue, marker, say
from fedstill.report.figures.svg import variable
from fedstill.report.parts import Bars, Heat, Style

__all__ = ["parts", "scale", "swatch"]

_SHAPES = {
    "o": '<circle cx="17" cy="6" r="3.2"/>',
    "s": '<rect x="14.2" y="3.2" width="5.6" height="5.6"/>',
    "^": '<path d="M17 2.2 20.6 9H13.4Z"/>',
    "D": '<path d="M17 2 21 6 17 10 13 6Z"/>',
    "v": '<path d="M17 9.8 20.6 3H13.4Z"/>',
    "P": '<path d="M15.7 2.4h2.6v2.3h2.3v2.6h-2.3v2.3h-2.6V7.3h-2.3V4.7h2.3Z"/>',
    "X": '<path d="M14 4.6 15.6 3 17 4.5 18.4 3 20 4.6 18.6 6 20 7.4 18.4 9 17 7.5 15.6 9 14 7.4 15.4 6Z"/>',
}
# as matplotlib's hatches look at this size
_STROKES = (
    "",
    "M0 14 14 0M-3 9 9-3M5 17 17 5",
    "M3.5 0V14M7 0V14M10.5 0V14",
    "M0 0 14 14M5-3 17 9M-3 5 9 17",
    "M0 14 14 0M0 0 14 14M7 0 14 7M0 7 7 14M0 7 7 0M7 14 14 7",
    "M0 3.5H14M0 7H14M0 10.5H14",
)


def swatch(of: Style, *, line: bool = True) -> Markup:
    """A piece of the line with its marker; without ``line`` the marker alone."""
    dash = " ".join(f"{2 * length:g}" for length in dashes(of))
    piece = f'<path d="M1 6H33" stroke="currentColor" stroke-width="2" stroke-dasharray="{dash}" fill="none"/>'
    return Markup(
        f'<svg class="swatch{"" if line else " point"}" viewBox="{"0 0 34 12" if line else "11 0 12 12"}" '
        f'aria-hidden="true" style="color:{variable(hue(of))}">'
        f'{piece if line else ""}<g fill="currentColor">{_SHAPES[marker(of)]}</g></svg>'
    )


def parts(chart: Bars) -> Markup:
    """The parts of the bars, in their order, with their hatches."""
    items = [f"<li>{_chip(index)}{escape(part)}</li>" for index, part in enumerate(chart.parts)]
    return Markup(f'<ul class="key">{"".join(items)}</ul>')


def scale(chart: Heat) -> Markup:
    """What the colours stand for, what an empty cell does, and what a cross does."""
    found = span(chart)
    items = []
    if found is not None:
        high = f"{say(found.high, chart.unit)}{' and more' if found.beyond else ''}"
        items.append(f'{escape(say(found.low, chart.unit))}<span class="ramp" aria-hidden="true"></span>{escape(high)}')
    if any(value is None for row in chart.values for value in row):
        items.append('<span class="none" aria-hidden="true"></span>no value')
    if chart.flags:
        items.append('<span class="cross" aria-hidden="true">×</span>marked')
    return Markup(f'<ul class="key">{"".join(f"<li>{item}</li>" for item in items)}</ul>') if items else Markup("")


def _chip(index: int) -> str:
    colour = variable(PALETTE[index % len(PALETTE)])
    strokes = _STROKES[index % len(_STROKES)]
    return (
        f'<svg class="chip" viewBox="0 0 14 14" aria-hidden="true"><rect width="14" height="14" fill="{colour}"/>'
        f'<path d="{strokes}" stroke="var(--paper)" stroke-width="1.3" stroke-linecap="round" fill="none"/></svg>'
    )
