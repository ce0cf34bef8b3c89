"""How the clients' own distillations went, as Figure 7 of Epple, "On the Efficiency of Sharing Distilled Data in Federated
Learning", shows them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from fedstill.report import cells, words
from fedstill.report.accuracy import line_table
from fedstill.report.costs import MOST_ROWS
from fedstill.report.courses import Attempt, Course
from fedstill.report.groups import Group, Point, summarise
from fedstill.report.parts import (
    Axis,
    Block,
    Cell,
    Chart,
    Folded,
    Grid,
    Key,
    Legend,
    Lines,
    Panels,
    Section,
    Style,
    Text,
    Trace,
)
from fedstill.report.runs import Run

__all__ = ["nodes"]

MOST_DRAWN = 24
"""Nodes whose curves are drawn; of more, small charts are no overview."""

_TOGETHER = 6  # curves in one chart: as many as there are colours, for dashes tell attempts apart
_BEHIND = 20  # curves that others can stand out from; more are a smear
_OPEN = 30  # rows of a table that a reader sees without opening it

_SAY = (
    "Loss: the matching loss under a moving average of 30 steps; at 1 the student ends as far from the expert’s weights as "
    "it began. Accuracy: on the node’s own validation images, of fresh networks trained on its images; ± in the charts’ "
    "numbers is one sample standard deviation over these networks. Rate: the student’s learning rate. Pixels: smallest and "
    "largest value of the chosen images, where 0 to 1 is an ordinary photograph. An ill node begins again with smaller steps of "
    "its images; losses and accuracies in the table are of the attempt that was chosen from. In the legend: the gain, in points; "
    "its check was chosen as the highest by the same validation images, which flatters it a little."
)

_Curve = Sequence[tuple[int, Point]]


@dataclass(frozen=True)
class _Node:
    """A course and what the page calls it; ``number`` tells its look."""

    name: str
    series: str
    number: int
    course: Course


def nodes(groups: Sequence[Group], labels: Mapping[int, str]) -> Section | None:
    """The section; None where no client tells of a distillation of its own. ``labels`` by a run's identity."""
    blocks: list[Block] = []
    for index, group in enumerate(groups):
        found = [(run, its) for run in group.runs if (its := _nodes(f"g{index}", run))]
        for run, its in found:
            blocks.append(Text(_told(labels[id(run)], [node.course for node in its])))
        for run, its in found[:1]:
            blocks += _shown(str(index + 1), labels[id(run)], its)
        if len(found) > 1:
            blocks.append(Text("The other seeds’ nodes: fedstill report … --csv writes them, as nodes.csv.", "mute"))
    return Section("nodes", "Nodes", (*blocks, Text(_SAY, "mute"))) if blocks else None


def _nodes(key: str, run: Run) -> list[_Node]:
    """By round and client; rounds are named where there are several."""
    found = [
        (row.number, each.client, each.course) for row in run.rows for each in row.clients if each.course is not None
    ]
    several = len({number for number, _, _ in found}) > 1
    return [
        _Node(f"{client}, round {number}" if several else client, f"{key}-node{index}", index, course)
        for index, (number, client, course) in enumerate(found)
    ]


def _told(label: str, courses: Sequence[Course]) -> str:
    """What came of it, in two sentences."""
    ill, unknown = sum(each.ill for each in courses), sum(each.taken.state is None for each in courses)
    parts = [f"{_many(len(courses), 'node')}, {ill or 'none'} ill"]
    if unknown:
        parts.append(f"of {unknown} that is not known")
    restarts = sum(len(each.attempts) - 1 for each in courses)
    if not restarts:
        parts.append("no restart")
    else:
        again, steps = ([getattr(each, name) for each in courses] for name in ("again", "steps"))
        cost = (
            "whose steps are not known"
            if None in again or None in steps
            else f"which took {words.count(sum(again))} of all {words.count(sum(steps))} steps"
        )
        parts.append(f"{_many(restarts, 'restart')}, {cost}")
    gains = [each.gain for each in courses if each.gain is not None]
    return f"{label}: {'; '.join(parts)}. Gain in validation accuracy over the images that they began with: " + (
        f"{_gain(gains, len(courses))}." if gains else "not known."
    )


def _gain(gains: Sequence[float], count: int) -> str:
    text = f"{words.signed(summarise(gains))} points"
    if len(gains) > 1:
        text += f", the mean ± sample standard deviation over {len(gains)} nodes"
    elif count > 1:
        text += ", of one node"
    return text + (f"; of the other {count - len(gains)} it is not known" if len(gains) < count else "")


def _many(count: int, thing: str) -> str:
    return f"{words.count(count)} {thing}{'' if count == 1 else 's'}"


def _shown(key: str, label: str, its: Sequence[_Node]) -> Iterator[Block]:
    """A line a node, and both charts."""
    table = _table(f"nodes-{key}", f"Nodes of {label}", its[:MOST_ROWS])
    yield Folded(table.title, (table,)) if len(table.rows) > _OPEN else table
    if len(its) > MOST_ROWS:
        yield Text(f"{len(its) - MOST_ROWS} more are in nodes.csv, which fedstill report … --csv writes.", "mute")
    drawn = its
    if len(its) > MOST_DRAWN:
        # sorting keeps the order of equals
        first = sorted(its, key=lambda node: (not node.course.ill, len(node.course.attempts) == 1))[:MOST_DRAWN]
        drawn = sorted(first, key=lambda node: node.number)
        yield Text(
            f"Drawn: {MOST_DRAWN} of {len(its)} nodes, the ill ones first, then those that began again: "
            f"{words.listed([node.name for node in drawn])}.",
            "mute",
        )
    charts = [
        chart
        for chart in (
            _lines(
                f"node-losses-{key}",
                f"Matching loss of {label}",
                drawn,
                _losses,
                Axis("matching loss, moving average", log=True),
            ),
            _lines(
                f"node-accuracies-{key}",
                f"Validation accuracy of {label}",
                drawn,
                _accuracies,
                Axis("validation images labelled correctly", "share"),
            ),
        )
        if chart is not None
    ]
    if charts:
        yield Legend(
            tuple(Key(node.series, node.name, "", _style(node, 0), words.signed(node.course.gain)) for node in drawn)
        )
    yield from charts


def _table(key: str, title: str, its: Sequence[_Node]) -> Grid:
    head = (
        "Node",
        "State",
        "Images",
        "Attempts",
        "Steps in all",
        "First loss",
        "Last loss",
        "Accuracy at the start",
        "Chosen",
        "Gain",
        "At step",
        "First rate",
        "Chosen rate",
        "Lowest pixel",
        "Highest pixel",
    )
    return Grid(key, title, head, tuple((cells.word(node.name), *_line(node.course)) for node in its), 2)


def _line(course: Course) -> tuple[Cell, ...]:
    taken, begun, chosen = course.taken, course.begun, course.chosen
    losses = [loss for _, loss in taken.loss] or [None]
    return (
        cells.word(taken.state or words.DASH, tone="sick" if course.ill else ""),
        cells.count(course.images),
        cells.count(len(course.attempts)),
        cells.count(course.steps),
        cells.figure(losses[0]),
        cells.figure(losses[-1]),
        cells.percent(begun.accuracy if begun is not None else None),
        cells.percent(chosen.accuracy if chosen is not None else None),
        cells.signed(course.gain),
        cells.count(chosen.step if chosen is not None else None),
        cells.figure(begun.rate if begun is not None else None),
        *map(
            cells.figure,
            (chosen.rate, chosen.pixel_min, chosen.pixel_max) if chosen is not None else (None, None, None),
        ),
    )


def _losses(attempt: Attempt) -> _Curve:
    return [(step, Point(loss, None, 1)) for step, loss in attempt.loss if loss is not None]


def _accuracies(attempt: Attempt) -> _Curve:
    return [
        (each.step, Point(each.accuracy, each.deviation, 1))
        for each in attempt.checks
        if each.step is not None and each.accuracy is not None
    ]


def _lines(key: str, title: str, its: Sequence[_Node], read: Callable[[Attempt], _Curve], y: Axis) -> Lines | None:
    """A trace an attempt; None where there is nothing to draw. Bands would hide curves: its table has them."""
    attempts = sum(len(node.course.attempts) for node in its)
    names = tuple(dict.fromkeys(node.name for node in its))
    panels = Panels(names, context=attempts <= _BEHIND) if attempts > _TOGETHER and len(names) > 1 else None
    found = [
        (node, number, curve)
        for node in its
        for number, attempt in enumerate(node.course.attempts)
        if (curve := read(attempt))
    ]
    if not found:
        return None
    labels = [node.name + (f", attempt {number + 1}" if number else "") for node, number, _ in found]
    say, write = (cells.percent, words.percent) if y.unit == "share" else (cells.figure, words.figure)
    traces = [
        Trace(
            node.series,
            label,
            _style(node, number),
            tuple(step for step, _ in curve),
            tuple(point.mean for _, point in curve),
            panel=node.name if panels is not None else "",
        )
        for label, (node, number, curve) in zip(labels, found, strict=True)
    ]
    columns = {
        label: {step: say(point) for step, point in curve} for label, (_, _, curve) in zip(labels, found, strict=True)
    }
    told = "; ".join(
        f"{label}: {write(curve[0][1].mean)} to {write(curve[-1][1].mean)}"
        for label, (_, _, curve) in zip(labels, found, strict=True)
    )
    dashed = "Solid: the first attempt; dashed or dotted: those after it. " if any(n for _, n, _ in found) else ""
    caption = dashed + ("In grey: the other nodes." if panels is not None and panels.context else "")
    return Lines(
        Chart(key, title, caption.strip(), f"{title}, by step. {told}.", line_table(key, title, columns, first="Step")),
        tuple(traces),
        Axis("step", whole=True),
        y,
        panels=panels,
    )


def _style(node: _Node, attempt: int) -> Style:
    # a first attempt is solid, whatever a colour adds to its dash: here the dash tells attempts apart
    return Style(node.number, attempt - node.number)
