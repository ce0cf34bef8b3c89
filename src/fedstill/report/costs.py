"""What a run cost: bytes, time, memory."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from markupsafe import Markup

from fedstill.report import words
from fedstill.report.figures import PALETTE, stacks
from fedstill.report.groups import Group
from fedstill.report.parts import Grid, Plot

__all__ = ["ledger", "time"]


def ledger(groups: Sequence[Group]) -> tuple[Grid, Grid]:
    """Bytes by method over the whole run, and by round."""
    totals, by_round = [], []
    for group in groups:
        first = group.runs[0]
        ups, downs, scorings = (
            [getattr(row, name) for row in first.rows] for name in ("bytes_up", "bytes_down", "bytes_scoring")
        )
        both = [None if up is None or down is None else up + down for up, down in zip(ups, downs, strict=True)]
        cells = (words.size(_total(column)) for column in (ups, downs, both, scorings))
        totals.append((group.label, str(len(first.rows)), *cells))
        by_round += [
            (
                group.label,
                str(row.number),
                words.size(row.bytes_up),
                words.size(row.bytes_down),
                words.size(row.bytes_scoring),
            )
            for row in first.rows
        ]
    head = ("Method", "Rounds", "Up", "Down", "Up and down", "For validation")
    return Grid(head, tuple(totals)), Grid(("Method", "Round", "Up", "Down", "For validation"), tuple(by_round))


def time(groups: Sequence[Group]) -> tuple[Plot, list[tuple[Markup, str]]] | None:
    """Seconds by phase: the mean over a group's runs. ``distil`` and ``train`` are parts of ``server``."""
    bars = {group.label: _phases(group) for group in groups}
    phases = list({phase: None for seconds in bars.values() for phase in seconds})
    if not phases:
        return None
    rows = []
    for group in groups:
        seconds = bars[group.label]
        walls = [run.wall_seconds for run in group.runs if run.wall_seconds is not None]
        peaks = [row.peak_memory for run in group.runs for row in run.rows if row.peak_memory is not None]
        cells = [words.duration(seconds.get(phase)) for phase in phases]
        wall = words.duration(statistics.fmean(walls) if walls else None)
        rows.append(
            (group.label, *cells, words.duration(sum(seconds.values())), wall, words.size(max(peaks, default=None)))
        )
    head = ("Method", *phases, "All phases", "Wall time", "Peak memory")
    svg = stacks(bars, phases=phases, name="time", label="Seconds by phase; the table below has its numbers")
    marks = [(Markup(f"var(--s{index % len(PALETTE)})"), phase) for index, phase in enumerate(phases)]
    return Plot("Time by phase", "", svg, Grid(head, tuple(rows))), marks


def _phases(group: Group) -> dict[str, float]:
    sums: dict[str, float] = {}
    for run in group.runs:
        for row in run.rows:
            for phase, seconds in row.seconds.items():
                sums[phase] = sums.get(phase, 0.0) + seconds / len(group.runs)
    parts = sums.get("distil", 0.0) + sums.get("train", 0.0)
    if "server" in sums:
        sums["server, rest"] = max(0.0, sums.pop("server") - parts)
    order = {"clients": 0, "distil": 1, "train": 2, "server, rest": 3, "evaluate": 4}
    return dict(sorted(sums.items(), key=lambda item: (order.get(item[0], 9), item[0])))


def _total(column: Sequence[int | None]) -> int | None:
    # a sum over what is known would pass for the whole
    return None if None in column else sum(count for count in column if count is not None)
