"""What a run cost: time, memory, bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from fedstill.report import cells, words
from fedstill.report.accuracy import line_table
from fedstill.report.groups import Group, Point, summarise
from fedstill.report.parts import Axis, Bars, Block, Chart, Folded, Grid, Lines, Section, Text, Trace
from fedstill.report.rows import Row
from fedstill.report.runs import Run
from fedstill.report.series import key_of, panelled, styles

__all__ = ["MOST_ROWS", "costs", "total"]

MOST_ROWS = 400
"""Rows of a table on the page, at most; what is longer is in the CSV files."""

_ORDER = {"clients": 0, "distil": 1, "train": 2, "server, rest": 3, "evaluate": 4}


def costs(groups: Sequence[Group]) -> Section | None:
    """The section; None where no round was finished."""
    if not groups:
        return None
    blocks: list[Block] = []
    if (chart := _time(groups)) is not None:
        blocks.append(chart)
    blocks += _client_time(groups)
    blocks += [_ledger(groups), _by_round(groups)]
    return Section("costs", "What it cost", tuple(blocks))


def total(runs: Sequence[Run], labels: Mapping[int, str]) -> str:
    """What all runs together took, in a sentence; empty where there is one alone. ``labels`` by a run's identity.

    Wall time is added up, also where runs went on at the same time.
    """
    wall = [(run.wall_seconds, labels[id(run)]) for run in runs]
    known = [(seconds, label) for seconds, label in wall if seconds is not None]
    if len(runs) < 2 or not known:
        return ""
    longest, whose = max(known, key=lambda pair: pair[0])
    of = "" if len(known) == len(runs) else f" for {len(known)} of them"
    cpu = [run.cpu_seconds for run in runs]
    worked = [seconds for seconds in cpu if seconds is not None]
    told = f" and {words.duration(sum(worked))} of CPU time" if len(worked) == len(cpu) else ""
    took = words.duration(sum(seconds for seconds, _ in known))
    return f"{len(runs)} runs: {took} of wall time{told}{of}; the longest, {whose}, took {words.duration(longest)}."


def _time(groups: Sequence[Group]) -> Bars | None:
    """Seconds by phase: the mean over a group's runs. ``distil`` and ``train`` are parts of ``server``."""
    found = {group.label: _phases(group) for group in groups}
    names = {phase for phases in found.values() for phase in phases}
    phases = tuple(sorted(names, key=lambda phase: (_ORDER.get(phase, 9), phase)))
    if not phases:
        return None
    rows = []
    for group in groups:
        peaks = [row.peak_memory for run in group.runs for row in run.rows if row.peak_memory is not None]
        rows.append(
            (
                cells.word(group.label),
                *(cells.duration(found[group.label].get(phase)) for phase in phases),
                cells.duration(_over_runs(group, lambda row: row.wall)),
                cells.duration(_over_runs(group, lambda row: row.cpu_seconds)),
                cells.size(max(peaks, default=None)),
            )
        )
    table = Grid(
        "time",
        "Time by phase, over all rounds, and memory",
        ("Method", *phases, "Wall time", "CPU time", "Peak memory"),
        tuple(rows),
        note="Mean ± sample standard deviation over seeds; memory: the largest process of any seed. "
        "– : not recorded, or rounds are missing.",
    )
    told = {label: its for label, its in found.items() if its}
    longest = max(told, key=lambda label: sum(point.mean for point in told[label].values()))
    return Bars(
        Chart(
            "time",
            "Time by phase",
            "Summed over rounds, mean over seeds."
            + (" distil and train are what the server does." if {"distil", "train"} & names else ""),
            f"Seconds by phase of {words.listed(list(told))}; {longest} takes longest, "
            f"{words.duration(sum(point.mean for point in told[longest].values()))} in all.",
            table,
        ),
        phases,
        tuple(
            (label, tuple(its[phase].mean if phase in its else 0.0 for phase in phases)) for label, its in told.items()
        ),
        Axis("time", "seconds"),
    )


def _client_time(groups: Sequence[Group]) -> Iterator[Block]:
    """Seconds of the phase ``clients`` so far, by round; nothing where no method has two rounds of them."""
    look = styles(groups)
    found = [
        (f"g{index}-clients", group.label, curve)
        for index, group in enumerate(groups)
        if not group.pooled and len(curve := group.summed(lambda row: row.seconds.get("clients"))) > 1
    ]
    if not found:
        return
    key, title = "client-time", "Time of clients so far"
    ends = [words.duration(curve[max(curve)]) for *_, curve in found]
    told = "; ".join(f"{label}: {end}" for (_, label, _), end in zip(found, ends, strict=True))
    columns = {label: {number: cells.duration(point) for number, point in curve.items()} for _, label, curve in found}
    traces, panels = panelled(
        [
            Trace(
                series,
                label,
                look[label],
                tuple(curve),
                tuple(point.mean for point in curve.values()),
                tuple(point.spread for point in curve.values()),
            )
            for series, label, curve in found
        ],
        [label for _, label, _ in found],
    )
    drawn = Lines(
        Chart(
            key,
            title,
            "Wall time until the last reply, summed over rounds, virtual images made on the way included. Whatever else the "
            "machine does adds to it; several processes shorten it. Mean over seeds, bands: ± one sample standard deviation.",
            f"{title}, by round. After the last round: {told}.",
            line_table(key, title, columns),
        ),
        traces,
        Axis("round", "round"),
        Axis("wall time, cumulative", "seconds"),
        panels=panels,
    )
    yield key_of(drawn.traces, ends)
    yield drawn


def _phases(group: Group) -> dict[str, Point]:
    by_run = [_run_phases(run) for run in group.runs]
    if not all(by_run):
        return {}
    names = {phase: None for phases in by_run for phase in phases}
    return {phase: summarise([phases.get(phase, 0.0) for phases in by_run]) for phase in names}


def _run_phases(run: Run) -> Mapping[str, float]:
    if not run.whole:
        return {}
    sums: dict[str, float] = {}
    for row in run.rows:
        for phase, seconds in row.seconds.items():
            sums[phase] = sums.get(phase, 0.0) + seconds
    parts = sums.get("distil", 0.0) + sums.get("train", 0.0)
    if "server" in sums:
        sums["server, rest"] = max(0.0, sums.pop("server") - parts)
    return sums


def _ledger(groups: Sequence[Group]) -> Grid:
    readers: tuple[Callable[[Row], float | None], ...] = (
        lambda row: row.bytes_up,
        lambda row: row.bytes_down,
        lambda row: row.sent,
        lambda row: row.bytes_scoring,
    )
    return Grid(
        "bytes",
        "Bytes, all clients together, over all rounds",
        ("Method", "Rounds", "Up", "Down", "Up and down", "For scoring"),
        tuple(
            (
                cells.word(group.label),
                cells.rounds(summarise([len(run.rows) for run in group.runs])),
                *(cells.size(_over_runs(group, read)) for read in readers),
            )
            for group in groups
        ),
        note="Mean over seeds. – : not recorded, or rounds are missing.",
    )


def _by_round(groups: Sequence[Group]) -> Block:
    rows = [
        (
            cells.word(group.first),
            cells.count(row.number),
            cells.size(row.bytes_up),
            cells.size(row.bytes_down),
            cells.size(row.bytes_scoring),
        )
        for group in groups
        for row in group.runs[0].rows
    ]
    if len(rows) > MOST_ROWS:
        return Text(
            "Bytes by round are too many for this page: fedstill report … --csv writes them, as rounds.csv.", "mute"
        )
    head = ("Run", "Round", "Up", "Down", "For scoring")
    return Folded("Bytes by round", (Grid("bytes-by-round", "Bytes by round", head, tuple(rows)),))


def _over_runs(group: Group, read: Callable[[Row], float | None]) -> Point | None:
    """The sum over each run's rounds, over runs; None where a round or a value is missing in one of them."""
    totals = []
    for run in group.runs:
        values = [read(row) for row in run.rows]
        known = [value for value in values if value is not None]
        if not run.whole or len(known) < len(values):
            return None
        totals.append(sum(known))
    return summarise(totals)
