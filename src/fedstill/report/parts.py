"""Values that the sections of the page are made of: tables and charts, said without drawing anything.

The page, the CSV, LaTeX and picture files all read the same values, so none of them can say another number than the others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

__all__ = [
    "Album",
    "Axis",
    "Bars",
    "Block",
    "Cell",
    "Chart",
    "Drawn",
    "Facts",
    "Folded",
    "Grid",
    "Heat",
    "Key",
    "Legend",
    "Lines",
    "Mark",
    "Page",
    "Panels",
    "Scatter",
    "Section",
    "Sheet",
    "Style",
    "Text",
    "Tile",
    "Trace",
    "Unit",
    "cell",
    "charts",
    "grids",
    "walk",
]

Unit = Literal["", "share", "bytes", "seconds", "round"]
"""How a number is written: ``share`` is a fraction shown in per cent."""


@dataclass(frozen=True)
class Cell:
    """One cell of a table.

    Attributes:
        text: what the page shows.
        value: the number or word behind it, unrounded; None where there is none.
        spread: sample standard deviation over seeds; None where there is none.
        tone: ``best`` is marked, ``sick`` warned of, ``mute`` in grey (a published value); ``gain`` and ``loss`` say whether a
            client is better or worse off than with the method it is compared with.
        shade: 0 … 1, how strongly the cell is filled in a heat table; None: not at all.
    """

    text: str
    value: float | int | str | None = None
    spread: float | None = None
    tone: Literal["", "best", "sick", "mute", "gain", "loss"] = ""
    shade: float | None = None


@dataclass(frozen=True)
class Grid:
    """A table.

    Attributes:
        key: name of its file, without ending; letters, digits and hyphens; unique on a page.
        title: what it shows.
        head: names of the columns.
        rows: as long as ``head`` each.
        words: so many columns at the left are words, the others numbers.
        note: a sentence under it; may be empty.
        paper: a result as a paper prints it, which gets a LaTeX and a Markdown file too.
        grouped: rows that share their first cell stand under it as a heading where the table is drawn.
    """

    key: str
    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    words: int = 1
    note: str = ""
    paper: bool = False
    grouped: bool = False


@dataclass(frozen=True)
class Style:
    """How a series looks: ``colour`` (and marker) number the method, ``dash`` numbers its model."""

    colour: int
    dash: int = 0


@dataclass(frozen=True)
class Axis:
    """What an axis measures, in which unit, and whether it is logarithmic.

    Attributes:
        ticks: words at the places 0, 1, 2, …, where the axis has words instead of numbers.
        whole: there is nothing between two whole numbers, so no tick stands there.
    """

    label: str
    unit: Unit = ""
    log: bool = False
    ticks: tuple[str, ...] = ()
    whole: bool = False


@dataclass(frozen=True)
class Trace:
    """A series of points that a reader can switch off as one.

    Attributes:
        series: what it is switched by: the same in every chart of a page that shows the same method and model.
        label: what a reader calls it.
        spreads: half the height of its band, by point; None where it has none.
        panel: in which panel of its chart it stands; empty where the chart is one.
    """

    series: str
    label: str
    style: Style
    xs: Sequence[float]
    ys: Sequence[float]
    spreads: Sequence[float | None] = ()
    panel: str = ""


@dataclass(frozen=True)
class Mark:
    """A value to compare with, such as a published one: a horizontal rule in the colour of its series."""

    series: str
    label: str
    style: Style
    y: float
    panel: str = ""


@dataclass(frozen=True)
class Chart:
    """What every chart has. ``table`` holds its numbers, and stands under it on the page.

    Attributes:
        key: name of its file, without ending; unique on a page.
        title: a few words.
        caption: what one has to know to read it; may be empty.
        spoken: what a screen reader says in its place: what is seen in it, in a sentence.
    """

    key: str
    title: str
    caption: str
    spoken: str
    table: Grid


@dataclass(frozen=True)
class Panels:
    """Small charts of the same axes.

    Attributes:
        names: in their order.
        columns: so many stand side by side; 0: as many as there is room for.
        context: the traces of all others stand in grey behind each one's own.
    """

    names: tuple[str, ...]
    columns: int = 0
    context: bool = False


@dataclass(frozen=True)
class Lines:
    """Curves with bands: in one chart, or each in the panel that it names."""

    chart: Chart
    traces: tuple[Trace, ...]
    x: Axis
    y: Axis
    marks: tuple[Mark, ...] = ()
    panels: Panels | None = None


@dataclass(frozen=True)
class Scatter:
    """Points. With ``named``, a point has its trace's label beside it (a Pareto plot); else the legend alone (t-SNE).

    Attributes:
        front: points of a Pareto front, joined by a thin step line; empty where there is none.
    """

    chart: Chart
    traces: tuple[Trace, ...]
    x: Axis
    y: Axis
    named: bool = False
    front: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True)
class Heat:
    """A field of numbers by row and column; None where there is no number.

    Attributes:
        flags: (row, column) of cells that are marked, such as a sick client.
        unit: of the values.
        beside: values of the chart that stands beside it to be compared: both have one scale of colours.
    """

    chart: Chart
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    values: tuple[tuple[float | None, ...], ...]
    row_label: str
    column_label: str
    unit: Unit = ""
    flags: tuple[tuple[int, int], ...] = ()
    beside: tuple[tuple[float | None, ...], ...] = ()


@dataclass(frozen=True)
class Bars:
    """Stacked horizontal bars: ``parts`` of each bar in the order of the legend."""

    chart: Chart
    parts: tuple[str, ...]
    bars: tuple[tuple[str, tuple[float, ...]], ...]
    x: Axis


@dataclass(frozen=True)
class Tile:
    """One client's distilled set, a row a class.

    Attributes:
        client: whose.
        source: a ``data:`` address; None where there is no picture, and ``note`` says why.
        width, height: of the picture, in pixels.
        rows: name of each row's class, and whether the client holds it (None where that is not known).
        note: what the picture leaves out; empty where it shows everything.
        spoken: what a screen reader says in its place, where it is no client's set.
    """

    client: str
    source: str | None
    width: int
    height: int
    rows: tuple[tuple[str, bool | None], ...]
    note: str = ""
    spoken: str = ""


@dataclass(frozen=True)
class Sheet:
    """Sets that are looked at together, such as those of one round; ``problem`` says why there are none."""

    label: str
    tiles: tuple[Tile, ...]
    problem: str = ""


@dataclass(frozen=True)
class Album:
    """Sheets that a slider goes through: a run's rounds, or the spaces Fn of several runs.

    Attributes:
        by: what the slider moves along, such as ``round`` or ``space``.
        note: what was left out to keep the page small; empty where nothing was.
    """

    key: str
    title: str
    by: str
    sheets: tuple[Sheet, ...]
    note: str = ""


@dataclass(frozen=True)
class Key:
    """One series of the legend: a switch for all its traces on the page, and its last value."""

    series: str
    label: str
    model: str
    style: Style
    value: str


@dataclass(frozen=True)
class Legend:
    """The switches of all charts that share its series."""

    keys: tuple[Key, ...]


@dataclass(frozen=True)
class Facts:
    """(name, [(value, whose)]): one value with nobody's name where all runs share it."""

    items: tuple[tuple[str, tuple[tuple[str, str], ...]], ...]


@dataclass(frozen=True)
class Text:
    """A paragraph, or with ``tone = "sick"`` a warning."""

    text: str
    tone: Literal["", "mute", "sick"] = ""


@dataclass(frozen=True)
class Folded:
    """Blocks that a reader opens."""

    summary: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Section:
    """A part of the page under one heading; ``key`` is its address on the page."""

    key: str
    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Page:
    """The whole page, before it is HTML.

    Attributes:
        title: names of what is shown.
        verdict: the result in a few sentences.
        footing: on how many seeds it rests.
        notes: what a reader must know before comparing; what is missing or damaged.
        live: seconds after which a browser should read the page again; None for a page that does not change.
    """

    title: str
    verdict: str
    footing: str
    notes: tuple[str, ...]
    sections: tuple[Section, ...]
    live: int | None = None


Drawn = Lines | Scatter | Heat | Bars
Block = Drawn | Grid | Album | Legend | Facts | Text | Folded


def cell(text: str) -> Cell:
    """A cell of words."""
    return Cell(text, text)


def walk(page: Page) -> Iterator[Block]:
    """Every block of the page in its order, what is folded too."""

    def inside(blocks: Sequence[Block]) -> Iterator[Block]:
        for block in blocks:
            yield block
            if isinstance(block, Folded):
                yield from inside(block.blocks)

    for section in page.sections:
        yield from inside(section.blocks)


def charts(page: Page) -> Iterator[Drawn]:
    """Every chart of the page."""
    return (block for block in walk(page) if isinstance(block, Lines | Scatter | Heat | Bars))


def grids(page: Page) -> Iterator[Grid]:
    """Every table of the page, those under charts too."""
    for block in walk(page):
        if isinstance(block, Grid):
            yield block
        elif isinstance(block, Lines | Scatter | Heat | Bars):
            yield block.chart.table
