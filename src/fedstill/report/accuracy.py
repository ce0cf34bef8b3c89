"""Accuracy by round, by bytes and by seconds, and how soon a method gets there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fedstill.evaluate.convergence import SHARES, Reached, reached, targets
from fedstill.report import cells, words
from fedstill.report.groups import Group, Point, running, summarise
from fedstill.report.parts import Axis, Block, Cell, Chart, Folded, Grid, Lines, Mark, Section, Text, Trace
from fedstill.report.roles import published
from fedstill.report.runs import Run
from fedstill.report.series import Series, legend

__all__ = ["ACCURACY", "accuracy", "convergence", "line_table", "spoken"]

ACCURACY = Axis("test images labelled correctly", "share")

_DASHES = ("solid", "dashed", "dotted", "dashes and dots")
_OPEN = 16  # rows of a table that a reader sees without opening it


def accuracy(lines: Sequence[Series]) -> Section | None:
    """The section; None where nothing was scored."""
    if not lines:
        return None
    table = convergence(lines)
    by_cost = _by_cost(lines)
    blocks: list[Block] = [legend(lines), _by_round(lines)]
    # of small charts that fill the page, one kind at a time
    blocks += [Folded(each.chart.title, (each,)) if each.panels is not None else each for each in by_cost]
    blocks.append(
        Text(
            "On clean test images. Bands are ± one sample standard deviation over seeds, where there are several."
            + _panels_note(lines)
            + _published_note(lines),
            "mute",
        )
    )
    blocks.append(table if len(table.rows) <= _OPEN else Folded(table.title, (table,)))
    return Section("accuracy", "Accuracy", tuple(blocks))


def spoken(what: str, lines: Sequence[Series]) -> str:
    """What a screen reader says of a chart of accuracies."""
    ends = "; ".join(f"{each.label}: {words.percent(each.curve[each.last])} after round {each.last}" for each in lines)
    return f"{what}, {len(lines)} {'curve' if len(lines) == 1 else 'curves'}. {ends}."


def line_table(
    key: str, title: str, columns: Mapping[str, Mapping[int, Cell]], *, first: str = "Round", note: str = ""
) -> Grid:
    """A row a round, a column a curve; a dash where a curve has no value."""
    numbers = sorted({number for column in columns.values() for number in column})
    return Grid(
        key,
        title,
        (first, *columns),
        tuple(
            (cells.count(number), *(column.get(number, cells.percent(None)) for column in columns.values()))
            for number in numbers
        ),
        note=note,
    )


def _panels_note(lines: Sequence[Series]) -> str:
    context = lines[0].panels is not None and lines[0].panels.context
    note = " In grey: the other methods." if context else ""
    if len({each.key for each in lines}) == len(lines):
        return f"{note} In the legend: the last round."
    places = dict.fromkeys(each.stand.places[-1] for each in lines)
    if not context or not 1 < len(places) <= len(_DASHES):
        return note
    told = "; ".join(f"{dash}: {name}" for dash, name in zip(_DASHES, places, strict=False))
    return f"{note} {told[0].upper()}{told[1:]}."


def _published_note(lines: Sequence[Series]) -> str:
    sources = {
        str(source)
        for each in lines
        for run in each.group.runs
        if isinstance(table := run.settings.get("published"), Mapping) and (source := table.get("source"))
    }
    if not any(published(each.group, each.model) is not None for each in lines):
        return ""
    return f" Rules across: published values{f' ({words.listed(sorted(sources))})' if sources else ''}."


def _marks(lines: Sequence[Series]) -> tuple[Mark, ...]:
    return tuple(
        Mark(each.key, f"{each.label}: published {words.percent(value)}", each.style, value, panel)
        for each in lines
        if (value := published(each.group, each.model)) is not None
        for panel in each.own
    )


def _traces(each: Series, xs: Sequence[float], points: Sequence[Point]) -> list[Trace]:
    return [
        Trace(
            each.key,
            each.label,
            each.style,
            tuple(xs),
            tuple(point.mean for point in points),
            tuple(point.spread for point in points),
            panel,
        )
        for panel in each.own
    ]


def _accuracies(lines: Sequence[Series]) -> dict[str, dict[int, Cell]]:
    return {each.label: {number: cells.percent(point) for number, point in each.curve.items()} for each in lines}


def _by_round(lines: Sequence[Series]) -> Lines:
    key, title = "accuracy-by-round", "By round"
    return Lines(
        Chart(key, title, "", spoken("Accuracy by round", lines), line_table(key, title, _accuracies(lines))),
        tuple(trace for each in lines for trace in _traces(each, list(each.curve), list(each.curve.values()))),
        Axis("round", "round"),
        ACCURACY,
        _marks(lines),
        lines[0].panels,
    )


_WALL = "Wall time of clients, server and evaluation on the machine that simulated them all."
_WALL_OF_SITES = "Wall time at the server; real sites work side by side, and the way to them and back is part of it."


def _by_cost(lines: Sequence[Series]) -> list[Lines]:
    pooled = list({each.group.label: None for each in lines if each.group.pooled})
    federated = [each for each in lines if not each.group.pooled]
    left_out = f"{', '.join(pooled)} is not shown: it moves the data themselves, not models." if pooled else ""
    made = [
        _cumulative(
            "accuracy-by-bytes",
            "By bytes sent",
            left_out,
            federated,
            {each.group.label: each.group.sent() for each in federated},
            Axis("bytes up and down, all clients, cumulative", "bytes"),
        ),
        _cumulative(
            "accuracy-by-seconds",
            "By time",
            _WALL_OF_SITES if any(run.sites for each in lines for run in each.group.runs) else _WALL,
            lines,
            {each.group.label: each.group.spent() for each in lines},
            Axis("wall time, cumulative", "seconds"),
        ),
    ]
    return [chart for chart in made if chart.traces]


def _cumulative(
    key: str,
    title: str,
    caption: str,
    lines: Sequence[Series],
    spent: Mapping[str, Mapping[int, Point]],
    x: Axis,
) -> Lines:
    say = cells.size if x.unit == "bytes" else cells.duration
    drawn, traces = [], []
    for each in lines:
        common = [number for number in spent[each.group.label] if number in each.curve]
        if common:
            drawn.append(each)
            xs = [spent[each.group.label][number].mean for number in common]
            traces += _traces(each, xs, [each.curve[number] for number in common])
    columns = {
        f"{label}: {x.unit}": {number: say(point) for number, point in spent[label].items()}
        for label in {each.group.label: None for each in drawn}
    }
    table = line_table(key, title, {**columns, **_accuracies(drawn)})
    return Lines(
        Chart(key, title, caption, spoken(f"Accuracy against {x.label}", drawn), table),
        tuple(traces),
        x,
        ACCURACY,
        _marks(drawn),
        lines[0].panels if lines else None,
    )


def convergence(lines: Sequence[Series]) -> Grid:
    """Rounds, bytes and seconds to reach shares of the ceiling's last accuracy or, without a ceiling, of the best method's.

    Every seed is asked for itself; the mean stands where all of them got there.
    """
    ceilings = [each for each in lines if each.group.pooled]
    best = max(each.curve[each.last].mean for each in ceilings or lines)
    of = "the ceiling’s" if ceilings else "the best"
    rows = []
    for target in targets(best):
        for each in lines:
            found = [_reached(run, each.model, target) for run in each.group.runs]
            names = (cells.word(each.group.label), cells.word(each.model))
            rows.append((cells.percent(target), *names, *_cells(each.group, found)))
    told = ", ".join(f"{100 * share:.0f}" for share in SHARES)
    return Grid(
        "convergence",
        "How soon an accuracy is reached",
        ("Accuracy", "Method", "Model", "Reached by", "Rounds", "Bytes", "Wall time"),
        tuple(rows),
        4,
        f"{told} % of {of} last accuracy ({words.percent(best)}). Mean ± sample standard deviation over seeds, where every "
        "seed reached it.",
        paper=True,
    )


def _reached(run: Run, model: str, target: float) -> Reached | None:
    return reached(
        {row.number: row.accuracy[model] for row in run.rows if model in row.accuracy},
        target,
        sent=dict(running(run, lambda row: row.sent)),
        seconds=dict(running(run, lambda row: row.wall)),
    )


def _cells(group: Group, found: Sequence[Reached | None]) -> tuple[Cell, ...]:
    there = [each for each in found if each is not None]
    # a mean over those that got there would flatter a method that often does not
    every = there if len(there) == len(found) else []
    sent = [each.sent for each in every if each.sent is not None and not group.pooled]
    seconds = [each.seconds for each in every if each.seconds is not None]
    return (
        cells.word(f"{len(there)} of {len(found)} seeds"),
        cells.rounds(summarise([each.round for each in every]) if every else None),
        cells.size(summarise(sent) if sent and len(sent) == len(every) else None),
        cells.duration(summarise(seconds) if seconds and len(seconds) == len(every) else None),
    )
