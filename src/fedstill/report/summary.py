"""The numbers that matter: one line a method and model, after its last round."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from fedstill.report import cells
from fedstill.report.groups import Point
from fedstill.report.intervals import Interval, student, wilson
from fedstill.report.parts import Cell, Grid
from fedstill.report.rows import Row
from fedstill.report.series import Series

__all__ = ["numbers"]

_HEAD = (
    "Method",
    "Model",
    "Interval of",
    "Round",
    "Accuracy",
    "95 % from",
    "95 % to",
    "Balanced",
    "Calibration error",
    "Bytes",
    "Wall time",
    "CPU time",
)
_INTERVAL, _ROUND = 2, 3
_NOTE = (
    "Mean ± sample standard deviation over seeds. 95 %: where there are several seeds, Student’s interval of their mean, cut to "
    "0 … 100 %; with one seed, Wilson’s interval of this one model over images of the same kind, which says nothing about other "
    "seeds. Balanced: the mean of the accuracies by class. Calibration error: how far confidence and accuracy lie apart, in 15 "
    "bins. Bytes: up and down, all clients, until that round, without what scoring sends. CPU time: of all processes."
)


_MODELS = {
    "global": "global: the network that clients train, averaged over them; where they send images, trained on the union of "
    "these; at the ceiling, trained on all data.",
    "surrogate": "surrogate: the network that clients train, trained by the server on distilled images.",
}


def numbers(lines: Sequence[Series]) -> Grid:
    """A row a series. A column of which nothing is known is left out; a round that all share stands in the title, and what all
    intervals are of in the note.
    """
    rows = [_row(each) for each in lines]
    rounds, intervals = ({row[column].text for row in rows} for column in (_ROUND, _INTERVAL))
    said = {_ROUND} if len(rounds) == 1 else set()
    said |= {_INTERVAL} if len(intervals) == 1 else set()
    shown = [
        column
        for column in range(len(_HEAD))
        if column not in said and (column <= _ROUND or any(row[column].value is not None for row in rows))
    ]
    notes = [_NOTE]
    known = {each.model for each in lines}
    notes += [told for model, told in _MODELS.items() if model in known]
    if _INTERVAL in said:
        notes.append(f"Here: {', '.join(intervals)}.")
    if any(each.group.pooled for each in lines):
        notes.append("– : what moves there is the data themselves.")
    return Grid(
        key="numbers",
        title=f"After round {', '.join(rounds)}" if _ROUND in said else "After the last round",
        head=tuple(_HEAD[column] for column in shown),
        rows=tuple(tuple(row[column] for column in shown) for row in rows),
        words=2 if _INTERVAL in said else 3,
        note=" ".join(notes),
        paper=True,
    )


def _row(each: Series) -> tuple[Cell, ...]:
    group, model, last = each.group, each.model, each.last
    point = each.curve[last]
    interval, of = _interval(each)

    def by_model(read: Callable[[Row], Mapping[str, float]]) -> Point | None:
        return group.over(lambda row: read(row).get(model)).get(last)

    return (
        cells.word(group.label),
        cells.word(model),
        cells.word(of),
        cells.count(last),
        cells.percent(point),
        cells.percent(interval.low if interval else None),
        cells.percent(interval.high if interval else None),
        cells.percent(by_model(lambda row: row.balanced)),
        cells.figure(by_model(lambda row: row.calibration)),
        cells.size(None if group.pooled else group.sent().get(last)),
        cells.duration(group.spent().get(last)),
        cells.duration(group.worked().get(last)),
    )


def _interval(each: Series) -> tuple[Interval | None, str]:
    point = each.curve[each.last]
    if point.spread is not None:
        low, high = student(point.mean, point.spread, point.count)
        return Interval(max(0.0, low), min(1.0, high)), f"mean of {point.count} seeds"
    examples = each.group.runs[0].by_round[each.last].examples
    if not examples or examples < 0:
        return None, "one seed"
    return wilson(round(point.mean * examples), examples), f"one seed, {examples} test images"
