"""How the distillations went, and which clients gave nothing usable."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby

from fedstill.report import cells, words
from fedstill.report.accuracy import line_table
from fedstill.report.costs import MOST_ROWS
from fedstill.report.groups import Group
from fedstill.report.parts import Axis, Block, Cell, Chart, Folded, Grid, Heat, Lines, Section, Style, Text, Trace
from fedstill.report.rows import Matching, Row
from fedstill.report.runs import Run
from fedstill.report.series import key_of, styles

__all__ = ["failures", "matching"]

_MANY = 10  # sick clients, from which a reader opens the warnings

_SAY = (
    "End: the matching loss when the distillation ends. Where trajectories are matched it is what is left of the way from the "
    "server’s model to the client’s (1: no nearer than doing nothing); where distributions are, the squared distance between "
    "class means, which has no such scale. Agreement: cosine between the exact and the truncated gradient; near 1 both can be "
    "trusted, near 0 neither far. "
    "Rate: the student’s learning rate at the end. Pixels: smallest and largest value, where 0 to 1 is an ordinary photograph."
)


def matching(groups: Sequence[Group], labels: Mapping[int, str]) -> Section | None:
    """The section; None where nothing was distilled. ``labels`` by a run's identity."""
    distilled = [(index, group) for index, group in enumerate(groups) if any(map(_matched, group.runs))]
    if not distilled:
        return None
    blocks: list[Block] = []
    for index, group in distilled:
        for run in group.runs:
            blocks += _told(run, labels[id(run)])
        blocks += _drawn(f"matching-{index + 1}", group)
    blocks += _agreement(distilled, styles(groups))
    blocks.append(Text(_SAY, "mute"))
    return Section("matching", "Matching", tuple(blocks))


def _matched(run: Run) -> list[tuple[int, str, Matching]]:
    """By round; what clients distilled themselves has a section of its own, which tells more."""
    return [
        (row.number, client.client, client.matching)
        for row in run.rows
        for client in row.clients
        if client.matching is not None and client.course is None
    ]


def _told(run: Run, label: str) -> Iterator[Block]:
    """What came of it in a sentence or two, and every client that was sick."""
    found = [each for _, _, each in _matched(run)]
    if not found:
        return
    sick = sum(each.sick is not None for each in found)
    starts = [each.start for each in found if each.start is not None]
    ends = [each.end for each in found if each.end is not None]
    retries = sum(each.retries or 0 for each in found)
    text = f"{label}: {len(found)} distillations, {sick} failed, {retries} restarts."
    if starts and ends:
        text += (
            f" Median matching loss {words.figure(statistics.median(starts))} at the start, "
            f"{words.figure(statistics.median(ends))} at the end."
        )
    yield Text(text)
    by_client: dict[str, list[tuple[int, str]]] = {}
    for number, client, each in _matched(run):
        if each.sick is not None:
            by_client.setdefault(client, []).append((number, each.sick))
    warnings = []
    for client, times in by_client.items():
        numbers = [number for number, _ in times]
        word = "round" if len(times) == 1 else "rounds"
        reason = times[-1][1] if len(times) == 1 else f"last: {times[-1][1]}"
        warnings.append(Text(f"{client} in {word} {_spans(numbers)}: {reason}", "sick"))
    if len(warnings) < _MANY:
        yield from warnings
    else:
        yield Folded(f"{len(warnings)} clients of {label} were sick", tuple(warnings))


def _spans(numbers: Sequence[int]) -> str:
    """``1, 4 to 6``."""
    texts = []
    for _, members in groupby(enumerate(numbers), lambda pair: pair[1] - pair[0]):
        span = [number for _, number in members]
        texts.append(str(span[0]) if len(span) == 1 else f"{span[0]} to {span[-1]}")
    return ", ".join(texts)


def _drawn(key: str, group: Group) -> Iterator[Block]:
    """The field of losses with a line a client under it, and every round where they are few; of the first seed."""
    found = _matched(group.runs[0])
    if not found:
        return
    clients = sorted({client for _, client, _ in found})
    numbers = sorted({number for number, _, _ in found})
    ends = {(client, number): each.end for number, client, each in found}
    sick = {(client, number) for number, client, each in found if each.sick is not None}
    name = f"Matching loss of {group.first}"
    yield Heat(
        Chart(
            key,
            name,
            "Loss at the end of each distillation. Marked: sick, nothing of it was used.",
            f"{name}, {len(clients)} clients by {len(numbers)} rounds, {len(sick)} marked as sick. "
            "The table below has a line a client.",
            _by_client(key, name, found),
        ),
        tuple(clients),
        tuple(map(str, numbers)),
        tuple(tuple(ends.get((client, number)) for number in numbers) for client in clients),
        "client",
        "round",
        flags=tuple(
            (row, column)
            for row, client in enumerate(clients)
            for column, number in enumerate(numbers)
            if (client, number) in sick
        ),
    )
    if len(found) <= MOST_ROWS:
        yield Folded(f"Every client and round of {group.first}", (_every(f"{key}-rounds", group, found),))
    else:
        yield Text(
            "Every client and round are too many for this page: fedstill report … --csv writes them, as matching.csv.",
            "mute",
        )


def _by_client(key: str, name: str, found: Sequence[tuple[int, str, Matching]]) -> Grid:
    by_client: dict[str, list[Matching]] = {}
    for _, client, each in found:
        by_client.setdefault(client, []).append(each)
    rows = []
    for client, its in sorted(by_client.items()):
        last, sick = its[-1], sum(each.sick is not None for each in its)
        best = [each.best for each in its if each.best is not None]
        rows.append(
            (
                cells.word(client),
                cells.count(len(its)),
                *map(cells.figure, (last.start, last.end, min(best, default=None), last.conditioning)),
                cells.count(sum(each.retries or 0 for each in its)),
                cells.count(sick, tone="sick" if sick else ""),
            )
        )
    head = ("Client", "Rounds", "Last start", "Last end", "Best of all", "Last agreement", "Restarts", "Times sick")
    return Grid(key, f"{name}, by client", head, tuple(rows))


def _every(key: str, group: Group, found: Sequence[tuple[int, str, Matching]]) -> Grid:
    head = (
        "Client",
        "Round",
        "Start",
        "End",
        "Best",
        "Lowest pixel",
        "Highest pixel",
        "Rate",
        "Agreement",
        "Restarts",
        "State",
    )
    rows = tuple(
        (
            cells.word(client),
            cells.count(number),
            *map(cells.figure, (m.start, m.end, m.best, m.pixel_min, m.pixel_max, m.rate, m.conditioning)),
            cells.count(m.retries),
            cells.word("well" if m.sick is None else "sick", tone="" if m.sick is None else "sick"),
        )
        for number, client, m in found
    )
    return Grid(key, f"Matching of {group.first}", head, rows)


def _agreement(distilled: Sequence[tuple[int, Group]], look: Mapping[str, Style]) -> Iterator[Block]:
    """Agreement of the two gradients by round: the mean over clients, then over seeds."""
    curves = {(index, group.label): curve for index, group in distilled if (curve := group.over(_mean_agreement))}
    if not curves:
        return
    columns: dict[str, dict[int, Cell]] = {
        label: {number: cells.figure(point) for number, point in curve.items()} for (_, label), curve in curves.items()
    }
    key, name = "agreement", "Agreement of exact and truncated gradient"
    ends = [words.figure(curve[max(curve)]) for curve in curves.values()]
    told = "; ".join(f"{label} {end}" for (_, label), end in zip(curves, ends, strict=True))
    drawn = Lines(
        Chart(
            key,
            name,
            "Mean over clients; bands: ± one sample standard deviation over seeds.",
            f"{name} by round. After the last round: {told}.",
            line_table(key, name, columns),
        ),
        tuple(
            Trace(
                f"g{index}-agreement",
                label,
                look[label],
                tuple(curve),
                tuple(point.mean for point in curve.values()),
                tuple(point.spread for point in curve.values()),
            )
            for (index, label), curve in curves.items()
        ),
        Axis("round", "round"),
        Axis("cosine"),
    )
    yield key_of(drawn.traces, ends)
    yield drawn


def _mean_agreement(row: Row) -> float | None:
    found = [
        client.matching.conditioning
        for client in row.clients
        if client.matching is not None and client.matching.conditioning is not None
    ]
    return statistics.fmean(found) if found else None


def failures(runs: Sequence[Run], labels: Mapping[int, str]) -> Section:
    """Every failed client, and every round under its quorum; ``labels`` by a run's identity."""
    rows = []
    for run in runs:
        for row in run.rows:
            told = [*row.failures]
            if not row.aggregated:
                why = row.withheld or "too few clients replied"
                told.append((words.DASH, f"{why}: the state is the one before"))
            rows += [
                (cells.word(labels[id(run)]), cells.count(row.number), cells.word(client), cells.word(reason))
                for client, reason in told
            ]
    if not rows:
        return Section("failures", "Failures", (Text("No client failed."),))
    head = ("Run", "Round", "Client", "Reason")
    blocks: tuple[Block, ...] = (Grid("failures", "Clients left out", head, tuple(rows[:MOST_ROWS]), 4),)
    if len(rows) > MOST_ROWS:
        more = f"{len(rows) - MOST_ROWS} more failures are in the runs’ metrics.jsonl."
        blocks = (Folded(f"{len(rows)} failures, the first {MOST_ROWS}", blocks), Text(more, "mute"))
    return Section("failures", "Failures", blocks)
