"""How the distillations went, and which clients gave nothing usable."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fedstill.report import words
from fedstill.report.parts import Grid
from fedstill.report.runs import Matching, Run

__all__ = ["Health", "failures", "health"]


@dataclass(frozen=True)
class Health:
    """The distillations of one run."""

    run: str
    summary: str
    sick: tuple[str, ...]
    table: Grid


def health(run: Run, label: str) -> Health | None:
    """None where the run distilled nothing."""
    matched = [
        (row.number, client.client, client.matching)
        for row in run.rows
        for client in row.clients
        if client.matching is not None
    ]
    if not matched:
        return None
    sick = tuple(f"{name} in round {number}: {m.sick}" for number, name, m in matched if m.sick is not None)
    ends = [m.end for *_, m in matched if m.end is not None]
    starts = [m.start for *_, m in matched if m.start is not None]
    retried = sum(1 for *_, m in matched if m.retries)
    summary = f"{len(matched)} distillations, {len(sick)} failed, {retried} tried again."
    if starts and ends:
        summary += (
            f" Median matching loss {words.figure(statistics.median(starts))} at the start, "
            f"{words.figure(statistics.median(ends))} at the end (1: no nearer to the client than doing nothing)."
        )
    head = ("Round", "Client", "Start", "End", "Best", "Pixels", "Rate", "Agreement", "Retries", "State")
    return Health(label, summary, sick, Grid(head, tuple(_matching_row(*item) for item in matched), 2))


def _matching_row(number: int, client: str, m: Matching) -> tuple[str, ...]:
    losses = (words.figure(m.start), words.figure(m.end), words.figure(m.best))
    pixels = f"{words.figure(m.pixel_min)} … {words.figure(m.pixel_max)}"
    state = "well" if m.sick is None else "sick"
    return (
        str(number),
        client,
        *losses,
        pixels,
        words.figure(m.rate),
        words.figure(m.conditioning),
        words.count(m.retries),
        state,
    )


def failures(runs: Sequence[Run], labels: Mapping[int, str]) -> Grid:
    """Every failed client, and every round under its quorum; ``labels`` by a run's identity."""
    rows = []
    for run in runs:
        for row in run.rows:
            rows += [(labels[id(run)], str(row.number), client, reason) for client, reason in row.failures]
            if not row.aggregated:
                rows.append(
                    (
                        labels[id(run)],
                        str(row.number),
                        words.DASH,
                        "too few clients replied: the state is the one before",
                    )
                )
    return Grid(("Run", "Round", "Client", "Reason"), tuple(rows), 4)
