"""What an accuracy costs: accuracy against bytes and against CPU time, one point a method and model."""

from __future__ import annotations

from collections.abc import Sequence

from fedstill.report import cells, words
from fedstill.report.accuracy import ACCURACY
from fedstill.report.groups import Point
from fedstill.report.parts import Axis, Chart, Grid, Scatter, Section, Trace
from fedstill.report.roles import commonest, stage, where
from fedstill.report.series import Series, legend

__all__ = ["front", "pareto"]

_NAMED = (
    8  # points whose names have room beside them; of more, which crowd where methods are alike, a legend names them
)


def pareto(lines: Sequence[Series]) -> Section | None:
    """The section; None where there are not two methods to compare: one run’s models share its cost.

    Of several data sets or partitions, it shows the one that most runs share: across them, accuracies are not comparable.
    """
    groups = list({each.group.label: each.group for each in lines}.values())
    shared = commonest(groups, stage)
    told = where(shared[0], groups) if shared else ""
    lines = [each for each in lines if any(each.group is group for group in shared)]
    federated = [each for each in lines if not each.group.pooled]
    charts = [
        _chart(
            "pareto-bytes",
            "Accuracy against bytes",
            [(each, point) for each in federated if (point := each.group.sent().get(each.last)) is not None],
            Axis("bytes up and down, all clients, until the last round", "bytes", log=True),
            told,
        ),
        _chart(
            "pareto-cpu",
            "Accuracy against CPU time",
            [(each, point) for each in lines if (point := each.group.worked().get(each.last)) is not None],
            Axis("CPU time of all processes, until the last round", "seconds", log=True),
            told,
        ),
    ]
    shown = tuple(chart for chart, methods in charts if methods > 1)
    named = all(chart.named for chart in shown)
    return Section("pareto", "What an accuracy costs", shown if named else (legend(lines), *shown)) if shown else None


def front(points: Sequence[tuple[float, float]]) -> tuple[tuple[float, float], ...]:
    """Those (cost, accuracy) that no other reaches for as little or less, by rising cost."""
    found: list[tuple[float, float]] = []
    for cost, accuracy in sorted(set(points), key=lambda point: (point[0], -point[1])):
        if not found or accuracy > found[-1][1]:
            found.append((cost, accuracy))
    return tuple(found)


def _chart(key: str, title: str, found: Sequence[tuple[Series, Point]], x: Axis, told: str) -> tuple[Scatter, int]:
    """The chart, and how many methods have a place on it; ``told``: of which data, where there are others."""
    # a cost of nothing has no place on a logarithmic axis
    placed = [(each, cost, each.curve[each.last]) for each, cost in found if cost.mean > 0]
    best = front([(cost.mean, accuracy.mean) for _, cost, accuracy in placed])
    on_front = [each.label for each, cost, accuracy in placed if (cost.mean, accuracy.mean) in best]
    say, unit = (cells.size, "Bytes") if x.unit == "bytes" else (cells.duration, "CPU time")
    rows = tuple(
        (
            cells.word(each.group.label),
            cells.word(each.model),
            cells.word("yes" if each.label in on_front else "no"),
            say(cost),
            cells.percent(accuracy),
        )
        for each, cost, accuracy in placed
    )
    methods = {each.group.label for each, *_ in placed}
    drawn = Scatter(
        Chart(
            key,
            title,
            (f"At {told}, after" if told else "After")
            + " each method’s last round. The line joins those whose mean nothing cheaper reaches."
            + (" Models of one method share the cost of its run." if len(placed) > len(methods) else ""),
            f"{title}, {len(placed)} points. On the front: {words.listed(on_front) if on_front else 'none'}.",
            Grid(key, title, ("Method", "Model", "On the front", unit, "Accuracy"), rows, 3),
        ),
        tuple(
            Trace(each.key, each.label, each.style, (cost.mean,), (accuracy.mean,), (accuracy.spread,))
            for each, cost, accuracy in placed
        ),
        x,
        ACCURACY,
        named=len(placed) <= _NAMED,
        front=best,
    )
    return drawn, len(methods)
