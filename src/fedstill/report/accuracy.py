"""Accuracy by round and by bytes, with the legend that both share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from fedstill.report import words
from fedstill.report.figures import Line, Style, curves, swatch
from fedstill.report.groups import Group, Point
from fedstill.report.parts import Grid, Plot

__all__ = ["Key", "legend", "plots"]


@dataclass(frozen=True)
class Key:
    """One entry of the legend, with the last value."""

    swatch: Markup
    label: str
    model: str
    last: str
    number: int


def _series(groups: Sequence[Group]) -> Iterator[tuple[Group, str, Style, dict[int, Point]]]:
    for index, group in enumerate(groups):
        for number, model in enumerate(group.models):
            if curve := group.curve(model):
                yield group, model, Style(index, number), curve


def legend(groups: Sequence[Group]) -> list[Key]:
    """One entry a line of the figures."""
    return [
        Key(swatch(look), group.label, model, words.percent(curve[max(curve)]), max(curve))
        for group, model, look, curve in _series(groups)
    ]


def plots(groups: Sequence[Group]) -> list[Plot]:
    """The figures; none where nothing was scored."""
    series = list(_series(groups))
    if not series:
        return []
    by_round = [
        Line(look, list(curve), [point.mean for point in curve.values()], [point.spread for point in curve.values()])
        for _, _, look, curve in series
    ]
    made = [
        Plot(
            "By round",
            "",
            curves(by_round, name="round", label="Accuracy by round; the table below has its numbers", x_label="round"),
            _round_table(groups, series),
        )
    ]
    by_bytes, rows = [], []
    for group, model, look, curve in series:
        sent = {number: total for number, total in group.sent().items() if number in curve}
        if group.pooled or not sent:
            continue
        points = [curve[number] for number in sent]
        by_bytes.append(Line(look, list(sent.values()), [p.mean for p in points], [p.spread for p in points]))
        rows += [(group.label, model, str(n), words.size(sent[n]), words.percent(curve[n])) for n in sent]
    if by_bytes:
        pooled = [group.label for group in groups if group.pooled]
        made.append(
            Plot(
                "By bytes sent",
                f"{', '.join(pooled)} is not shown: it moves the data themselves, not models." if pooled else "",
                curves(
                    by_bytes,
                    name="bytes",
                    label="Accuracy by bytes; the table below has its numbers",
                    x_label="bytes up and down, all clients, cumulative",
                    x_bytes=True,
                ),
                Grid(("Method", "Model", "Round", "Bytes so far", "Accuracy"), tuple(rows), 2),
            )
        )
    return made


def _round_table(groups: Sequence[Group], series: Sequence[tuple[Group, str, Style, dict[int, Point]]]) -> Grid:
    several = len(groups) > 1
    head = ["Round", *(f"{group.label}, {model}" if several else model for group, model, _, _ in series)]
    numbers = sorted({number for *_, curve in series for number in curve})
    rows = [(str(number), *(words.percent(curve.get(number)) for *_, curve in series)) for number in numbers]
    return Grid(tuple(head), tuple(rows))
