"""A page as HTML: one file that asks for nothing, whole without its script.

The script adds readouts and the slider; which script may run is said by its hash in the page's policy, so that nothing that
a run's file holds can run. Switching a series off is CSS alone.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Collection, Iterator, Sequence
from functools import cache, partial
from itertools import groupby

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from fedstill.report.figures import draw, series_id, swatch
from fedstill.report.parts import (
    Album,
    Bars,
    Block,
    Cell,
    Drawn,
    Facts,
    Folded,
    Grid,
    Heat,
    Legend,
    Lines,
    Page,
    Scatter,
    Text,
    Trace,
    charts,
    walk,
)

__all__ = ["render"]

_SHADES = 10
_CONTENTS = 4  # sections, from which a page has a table of contents
_OPEN_TILES = 8
_LONG = 40  # letters, from which a cell of words is wrapped
_MARKS = {
    "best": ("★", "best"),
    "sick": ("!", "sick"),
    "gain": ("▲", "better"),
    "loss": ("▼", "worse"),
}


def render(page: Page) -> str:
    """The whole page; the same ``page`` gives the same text."""
    environment = _environment()
    script = _source(environment, "page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template("page.html.j2").render(
        page=page,
        style=Markup(_source(environment, "page.css") + "\n" + "\n".join(_switches(page))),
        script=Markup(script),
        policy=(
            f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{digest}'; "
            "base-uri 'none'; form-action 'none'"
        ),
        contents=len(page.sections) >= _CONTENTS,
        strangers=partial(_strangers, frozenset(_legends(page))),
    )


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("fedstill.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(
        rows=_rows,
        kind=_kind,
        runs=_runs,
        draw=draw,
        joined=_joined,
        swatch=swatch,
        series_id=series_id,
        open_tiles=_OPEN_TILES,
    )
    return environment


def _source(environment: Environment, name: str) -> str:
    assert environment.loader is not None, "the environment is ours"
    return environment.loader.get_source(environment, name)[0].strip()


def _kind(block: Block) -> str:
    """Which macro lays ``block`` out."""
    match block:
        case Lines() | Scatter() | Heat() | Bars():
            return "chart"
        case Grid() | Album() | Legend() | Facts() | Text() | Folded():
            return type(block).__name__.lower()


def _joined(chart: Drawn) -> bool:
    return isinstance(chart, Lines)


def _runs(blocks: Sequence[Block]) -> Iterator[tuple[bool, list[Block]]]:
    """Blocks in their order; charts that follow one another stand side by side where there is room."""
    for side_by_side, its in groupby(blocks, lambda block: isinstance(block, Lines | Scatter | Heat | Bars)):
        yield side_by_side, list(its)


def _legends(page: Page) -> Iterator[str]:
    """Series that a legend switches."""
    return (key.series for block in walk(page) if isinstance(block, Legend) for key in block.keys)


def _strangers(legends: Collection[str], chart: Drawn) -> list[Trace]:
    """Traces of ``chart`` that no legend of the page holds, such as classes: the chart gets switches of its own."""
    if not isinstance(chart, Lines | Scatter) or (isinstance(chart, Scatter) and chart.named):
        return []
    return [trace for trace in chart.traces if trace.series not in legends]


def _switches(page: Page) -> Iterator[str]:
    """Rules for each series: without its tick, in whichever legend, it is not drawn; pointed at there, it stands out."""
    known = dict.fromkeys(_legends(page))
    for chart in charts(page):
        known |= dict.fromkeys(trace.series for trace in _strangers(known, chart))
    for name in map(series_id, known):
        yield f"body:has(.switch-{name}:not(:checked)) .{name} {{ display: none; }}"
        pointed = f"label:hover > .switch-{name}, .switch-{name}:focus-visible"
        yield f"body:has({pointed}) svg.figure:has(.{name}) g[class^=series-]:not(.{name}) {{ opacity: .15; }}"


def _rows(table: Grid) -> Markup:
    """The body of a table. Here and not in the template: a page may have a hundred thousand cells."""
    lines = []
    heading = None
    for row in table.rows:
        if table.grouped and row[0].text != heading:
            heading = row[0].text
            width = len(table.head) - 1
            lines.append(
                f'<tr class="group"><th scope="rowgroup" colspan="{width}"><span>{escape(heading)}</span></th></tr>'
            )
        own = row[1:] if table.grouped else row
        words = table.words - 1 if table.grouped else table.words
        cells = [_cell(cell, words=index < words, head=index == 0) for index, cell in enumerate(own)]
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return Markup("\n".join(lines))


def _cell(cell: Cell, *, words: bool, head: bool) -> str:
    text = str(escape(cell.text))
    classes = []
    if words:
        classes.append("word")
        if len(cell.text) > _LONG:
            classes.append("long")
    if cell.tone:
        classes.append(cell.tone)
        if cell.tone in _MARKS and text:
            text = _marked(text, *_MARKS[cell.tone])
    if cell.shade is not None:
        classes.append(f"shade v{round(_SHADES * min(1.0, max(0.0, cell.shade)))}")
    look = f' class="{" ".join(classes)}"' if classes else ""
    return f'<th scope="row"{look}>{text}</th>' if head else f"<td{look}>{text}</td>"


def _marked(text: str, sign: str, word: str) -> str:
    """Nothing is said by colour alone: a sign for the eye, a word for the ear."""
    said = "" if word in text.lower() else f'<span class="aside"> {word}</span>'
    return f'<span class="mark" aria-hidden="true">{sign}</span>{text}{said}'
