"""A matplotlib figure as SVG inside the page: short, in the page's colours, with classes for what can be switched off."""

from __future__ import annotations

import io
import re

from markupsafe import Markup, escape
from matplotlib.figure import Figure

from fedstill.report.figures.looks import PAGE, PALETTE

__all__ = ["inline", "variable"]

_NO_DATES = dict.fromkeys(("Date", "Creator", "Format", "Type"))
_COLOURS = {
    PAGE.ink: "currentColor",
    PAGE.mute: "var(--mute, #5a6169)",
    PAGE.rule: "var(--rule, #d9dcdf)",
    PAGE.paper: "var(--paper, #fff)",
    PAGE.middle: "var(--heat-text, #1c1e21)",
    **{colour: f"var(--s{index}, {colour})" for index, colour in enumerate(PALETTE)},
}
_COLOUR = re.compile("|".join(_COLOURS))
_STYLE = re.compile(r' style="([^"]*)"')
_PLACES = re.compile(r' (d|x|y|transform)="([^"]*)"')
_NUMBER = re.compile(r"-?\d+\.\d+(?:e-\d+)?")
_COMMAND = re.compile(" ?([MLCQzZ]) ?")
_USES = re.compile(r"<g([^>]*)>((?:<use [^>]*/>)+)</g>")
_IMAGE = re.compile(r'<image ([^>]*?)xlink:href="([^"]*)"\s+id="heat"([^>]*)/>')


def variable(colour: str) -> str:
    """``colour`` as the page's variable, with the light colour as its fall-back."""
    return _COLOURS[colour]


def inline(figure: Figure, key: str, spoken: str) -> Markup:
    """``figure`` as an element of the page, named ``spoken`` to a screen reader. Ids begin with ``key``.

    The figure has its final layout afterwards.
    """
    layout = figure.get_layout_engine()
    if layout is not None:
        # once, by hand: savefig would draw everything twice for it
        layout.execute(figure)
        figure.set_layout_engine(None)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata=_NO_DATES)
    text = buffer.getvalue()
    width, height = (72 * float(side) for side in figure.get_size_inches())
    start = text.index(">", text.index("<svg")) + 1
    # the style element's rule would hold for the whole page; page.css has it for figures
    body = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", text[start:], flags=re.DOTALL)
    body = re.sub(r"\s*\n\s*", " ", body).replace("> <", "><")
    body = _PLACES.sub(_rounded, body)
    body = _STYLE.sub(_styled, body)
    body = body.replace("<defs></defs>", "").replace("<g></g>", "")
    body = re.sub(r'<g id="(series-[0-9a-f]{8})"', r'<g class="\1"', body)
    body = re.sub(r'<g id="[^"]*"', "<g", body)
    body = re.sub(r' transform="rotate\(-?0 [^"]*"', "", body)
    body = _IMAGE.sub(lambda found: _mask(found, key), body)
    # ids of two figures must not meet in one page: a clip path would cut the other's lines
    body = re.sub(r'\bid="(?!heat-)', f'id="{key}-', body)
    body = re.sub(r"url\(#(?!heat-)", f"url(#{key}-", body)
    body = re.sub(r'xlink:href="#', f'href="#{key}-', body)
    body = _USES.sub(_hoisted, body)
    head = (
        f'<svg class="figure" role="img" aria-label="{escape(spoken)}" viewBox="0 0 {width:g} {height:g}" '
        f'style="--width:{width:g}">'
    )
    return Markup(head + body.strip())


def _rounded(found: re.Match[str]) -> str:
    """A tenth of a point: no eye and no printer of papers sees more; a matrix keeps its factors."""
    name, value = found.groups()
    if value.startswith("matrix"):
        return found.group()
    short = _NUMBER.sub(lambda number: f"{float(number.group()):.1f}".removesuffix(".0"), value.strip())
    short = _COMMAND.sub(r"\1", short)
    return f' {name}="{short}"'


def _styled(found: re.Match[str]) -> str:
    kept = [part for part in found.group(1).split("; ") if not part.startswith("font-family")]
    return f' style="{_COLOUR.sub(lambda colour: _COLOURS[colour.group()], ";".join(kept)).replace(": ", ":")}"'


def _mask(found: re.Match[str], key: str) -> str:
    """The picture says how much of the page's colour for heat covers each cell."""
    before, source, after = found.groups()
    image = f'<image {before}href="{source.replace(" ", "")}"{after}/>'
    return (
        f'<mask id="heat-{key}" style="mask-type:luminance">{image}</mask>'
        f'<rect width="100%" height="100%" fill="var(--heat, #0a3c80)" mask="url(#heat-{key})"/>'
    ).replace("xlink:href", "href")


def _hoisted(found: re.Match[str]) -> str:
    """A hundred markers of one look say so once."""
    attributes, uses = found.groups()
    looks = set(_STYLE.findall(uses))
    if len(looks) != 1 or "style=" in attributes:
        return found.group()
    return f'<g{attributes} style="{looks.pop()}">{_STYLE.sub("", uses)}</g>'
