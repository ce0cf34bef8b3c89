"""The theory as a measurement: does the synthetic union pull where the real images pull, and how far off is the ceiling?

FedDGM's section 4 claims that, as distillation and training converge, training on the union has the minimisers of training on
all the clients' images. Testable: the cosine of the two gradients along the run, and the gap to Centralised.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from fedstill.report import cells, words
from fedstill.report.accuracy import line_table
from fedstill.report.groups import Group, Point, summarise
from fedstill.report.parts import Axis, Chart, Legend, Lines, Section, Style, Trace
from fedstill.report.roles import ceiling, client_model
from fedstill.report.rows import Row
from fedstill.report.series import key_of, panelled, styles

__all__ = ["theory"]

_Curve = tuple[str, str, str, Style, dict[int, Point]]
"""Series, whose it is, which of the owner's, and its look."""


def theory(groups: Sequence[Group]) -> Section | None:
    """The section; None where nothing of it was measured."""
    charts = [chart for chart in (_cosines(groups), _gaps(groups)) if chart is not None]
    blocks = tuple(block for pair in charts for block in pair)
    return Section("theory", "Synthetic against real", blocks) if blocks else None


def _cosines(groups: Sequence[Group]) -> tuple[Legend, Lines] | None:
    readers: tuple[tuple[str, Callable[[Row], float | None]], ...] = (
        ("at the round’s first weights", lambda row: row.theory.before if row.theory is not None else None),
        ("at its last weights", lambda row: row.theory.after if row.theory is not None else None),
    )
    look = styles(groups)
    found = [
        (
            f"g{index}-cosine{dash}",
            group.label,
            name,
            Style(look[group.label].colour, len(readers) * look[group.label].dash + dash),
            curve,
        )
        for index, group in enumerate(groups)
        for dash, (name, read) in enumerate(readers)
        if (curve := group.over(read))
    ]
    return _lines(
        "gradient-cosine",
        "Gradient on the synthetic union beside that on all real images",
        "Cosine of the two: 1, the union pulls where the real images do; 0, it pulls elsewhere.",
        found,
        Axis("cosine"),
    )


def _gaps(groups: Sequence[Group]) -> tuple[Legend, Lines] | None:
    return _lines(
        "ceiling-gap",
        "Gap to training on all the data in one place",
        "Accuracy of Centralised less that of the network that clients train, same round, same seeds; below zero: it is better.",
        list(_gap_curves(groups)),
        Axis("points of accuracy below the ceiling", "share"),
    )


def _gap_curves(groups: Sequence[Group]) -> Iterator[_Curve]:
    look = styles(groups)
    for index, group in enumerate(groups):
        pooled_group = ceiling(group, groups)
        if group.pooled or pooled_group is None or not (model := client_model(group)):
            continue
        above = {run.seed: run for run in pooled_group.runs}
        pairs = [(run, above[run.seed]) for run in group.runs if run.seed in above]
        top = client_model(pooled_group)
        gaps = [
            {
                row.number: pooled.by_round[row.number].accuracy[top] - row.accuracy[model]
                for row in run.rows
                if model in row.accuracy
                and row.number in pooled.by_round
                and top in pooled.by_round[row.number].accuracy
            }
            for run, pooled in pairs
        ]
        if gaps and (common := sorted(set(gaps[0]).intersection(*gaps[1:]))):
            curve = {number: summarise([gap[number] for gap in gaps]) for number in common}
            yield f"g{index}-gap", group.label, "", look[group.label], curve


def _lines(key: str, title: str, caption: str, found: Sequence[_Curve], y: Axis) -> tuple[Legend, Lines] | None:
    if not found:
        return None
    say, write = (cells.signed, words.signed) if y.unit == "share" else (cells.figure, words.figure)
    labels = [", ".join(filter(None, (owner, which))) for _, owner, which, _, _ in found]
    columns = {
        label: {number: say(point) for number, point in curve.items()}
        for label, (*_, curve) in zip(labels, found, strict=True)
    }
    ends = [write(curve[max(curve)]) for *_, curve in found]
    told = "; ".join(f"{label}: {end}" for label, end in zip(labels, ends, strict=True))
    traces = [
        Trace(
            series,
            label,
            style,
            tuple(curve),
            tuple(point.mean for point in curve.values()),
            tuple(point.spread for point in curve.values()),
        )
        for label, (series, _, _, style, curve) in zip(labels, found, strict=True)
    ]
    spread, panels = panelled(traces, [owner for _, owner, *_ in found])
    drawn = Lines(
        Chart(
            key, title, caption, f"{title}, by round. After the last round: {told}.", line_table(key, title, columns)
        ),
        spread,
        Axis("round", "round"),
        y,
        panels=panels,
    )
    return key_of(drawn.traces, ends), drawn
