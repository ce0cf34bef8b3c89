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
from fedstill.report.runs import Row
from fedstill.report.series import key_of

__all__ = ["theory"]


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
    found = [
        (f"g{index}-cosine{dash}", f"{group.label}, {name}", Style(index, dash), curve)
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


def _gap_curves(groups: Sequence[Group]) -> Iterator[tuple[str, str, Style, dict[int, Point]]]:
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
            yield f"g{index}-gap", group.label, Style(index), curve


def _lines(
    key: str, title: str, caption: str, found: Sequence[tuple[str, str, Style, dict[int, Point]]], y: Axis
) -> tuple[Legend, Lines] | None:
    if not found:
        return None
    say, write = (cells.signed, words.signed) if y.unit == "share" else (cells.figure, words.figure)
    columns = {label: {number: say(point) for number, point in curve.items()} for _, label, _, curve in found}
    ends = [write(curve[max(curve)]) for *_, curve in found]
    told = "; ".join(f"{label}: {end}" for (_, label, _, _), end in zip(found, ends, strict=True))
    drawn = Lines(
        Chart(
            key, title, caption, f"{title}, by round. After the last round: {told}.", line_table(key, title, columns)
        ),
        tuple(
            Trace(
                series,
                label,
                style,
                tuple(curve),
                tuple(point.mean for point in curve.values()),
                tuple(point.spread for point in curve.values()),
            )
            for series, label, style, curve in found
        ),
        Axis("round", "round"),
        y,
    )
    return key_of(drawn.traces, ends), drawn
