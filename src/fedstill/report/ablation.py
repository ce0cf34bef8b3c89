"""Accuracy against one setting, where all else was left alone."""

from __future__ import annotations

import re
from collections.abc import Sequence

from fedstill.report import cells, words
from fedstill.report.accuracy import ACCURACY
from fedstill.report.families import Family, families, shown, varied
from fedstill.report.groups import Group, settings, title
from fedstill.report.parts import Axis, Cell, Chart, Grid, Legend, Lines, Section, Text, Trace
from fedstill.report.series import Series, key_of

__all__ = ["ablation"]

_WIDE = 20  # largest by smallest value, from which a logarithmic axis reads better


def ablation(groups: Sequence[Group], lines: Sequence[Series]) -> Section | None:
    """The section; None where no setting was varied alone."""
    by_key: dict[str, list[Family]] = {}
    for family in families(groups):
        by_key.setdefault(family.key, []).append(family)
    charts = [chart for key, its in by_key.items() if (chart := _chart(key, its, lines)) is not None]
    if not charts:
        return None
    rounds = {number for _, drawn in charts for number in _rounds(drawn)}
    told = (
        f" Not all have come to the same round ({min(rounds)} to {max(rounds)}): the tables say which."
        if len(rounds) > 1
        else ""
    )
    note = Text(
        "Accuracy after each method’s last round; every other setting is the same along a line. Bands: ± one sample "
        f"standard deviation over seeds.{told}",
        "mute",
    )
    return Section("ablation", "One setting at a time", (*(block for pair in charts for block in pair), note))


def _chart(key: str, its: Sequence[Family], lines: Sequence[Series]) -> tuple[Legend, Lines] | None:
    name = key.rpartition(".")[2]
    file = f"ablation-{re.sub('[^A-Za-z0-9]+', '-', key)}"
    numeric = all(family.numeric for family in its)
    values = [value for family in its for value, _ in family.members]
    ticks = () if numeric else tuple(dict.fromkeys(map(shown, values)))
    traces, rows, bests = [], [], []
    for number, family in enumerate(its):
        models = {model: None for _, group in family.members for model in group.models}
        for model in models:
            found = [
                (value, each) for value, group in family.members if (each := _line(lines, group, model)) is not None
            ]
            if len(found) < 2:
                continue
            points = [each.curve[each.last] for _, each in found]
            first = found[0][1]
            label = _label(family, its, model)
            traces.append(
                Trace(
                    f"{file}-{number}-{model}",
                    label,
                    first.style,
                    tuple(float(value) if numeric else float(ticks.index(shown(value))) for value, _ in found),
                    tuple(point.mean for point in points),
                    tuple(point.spread for point in points),
                )
            )
            rows += [
                (cells.word(label), _value(value, numeric=numeric), cells.count(each.last), cells.percent(point))
                for (value, each), point in zip(found, points, strict=True)
            ]
            best = max(zip(points, found, strict=True), key=lambda pair: pair[0].mean)
            bests.append(f"best at {shown(best[1][0])}, {words.percent(best[0])}")
    if not traces:
        return None
    low, high = (min(values), max(values)) if numeric else (0, 0)
    title = f"Accuracy against {name}"
    told = "; ".join(f"{trace.label}: {best}" for trace, best in zip(traces, bests, strict=True))
    drawn = Lines(
        Chart(
            file,
            title,
            "",
            f"{title}, {len(traces)} {'line' if len(traces) == 1 else 'lines'}. {told}.",
            Grid(
                file,
                title,
                ("Line", name, "Round", "Accuracy"),
                tuple(rows),
                paper=True,
            ),
        ),
        tuple(traces),
        Axis(
            key,
            log=bool(low > 0 and high / low >= _WIDE),
            ticks=ticks,
            whole=numeric and all(isinstance(value, int) for value in values),
        ),
        ACCURACY,
    )
    return key_of(traces, bests), drawn


def _rounds(drawn: Lines) -> list[int]:
    """Rounds after which the values of the chart's table were reached."""
    table = drawn.chart.table
    values = (row[table.head.index("Round")].value for row in table.rows)
    return [value for value in values if isinstance(value, int)]


def _line(lines: Sequence[Series], group: Group, model: str) -> Series | None:
    return next((each for each in lines if each.group is group and each.model == model), None)


def _label(family: Family, its: Sequence[Family], model: str) -> str:
    """The method and model; where several families vary the same setting, what tells this one from the others too."""
    group = family.members[0][1]
    namesakes = [other.members[0][1] for other in its if other.members[0][1].method == group.method]
    own = settings(group)
    told = [f"{key.rpartition('.')[2]} {shown(own.get(key))}" for key in varied(namesakes) if key != family.key]
    apart = f" ({', '.join(told)})" if told else ""
    return f"{title(group.runs[0])}{apart}, {model}"


def _value(value: object, *, numeric: bool) -> Cell:
    if numeric and isinstance(value, int):
        return cells.count(value)
    return cells.figure(value) if numeric and isinstance(value, float) else cells.word(shown(value))
