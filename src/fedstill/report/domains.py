"""Clients that are domains, such as data sets or corruptions: accuracy on each one's own test images, as in FedLGD's Table 1."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from fedstill.report import cells
from fedstill.report.groups import Group, summarise
from fedstill.report.layout import layout
from fedstill.report.parts import Grid
from fedstill.report.ranking import RANKED, UNEVEN, Column, Figure, lay, uneven
from fedstill.report.results import standings
from fedstill.report.roles import AVERAGE, published_of_clients, table
from fedstill.report.runs import Run

__all__ = ["domains"]

_MOST = 12  # clients that have a column each; of more, the mean alone is shown

_MEAN = "mean"

_NOTE = (
    "Accuracy of what a client has after the last round, on its own test images, mean ± sample standard deviation over seeds. "
    "Mean: over clients, unweighted, first of each seed; where one was not tested, it is not known."
)


@dataclass(frozen=True)
class _Tested:
    """What a group's clients reached.

    Attributes:
        last: the last round in which every seed's clients were tested.
        shares: of each seed, accuracy by client; None for a client that was not tested.
    """

    group: Group
    last: int
    shares: Sequence[Mapping[str, float | None]]

    def figure(self, name: str) -> Figure:
        values = [self._mean(each) if name == _MEAN else each.get(name) for each in self.shares]
        known = [value for value in values if value is not None]
        point = summarise(known) if len(known) == len(values) else None
        told = published_of_clients(self.group).get(AVERAGE if name == _MEAN else name)
        return Figure(point, frozenset([self.last]), published=told)

    @staticmethod
    def _mean(shares: Mapping[str, float | None]) -> float | None:
        known = [share for share in shares.values() if share is not None]
        return fmean(known) if known and len(known) == len(shares) else None


def domains(groups: Sequence[Group]) -> Grid | None:
    """Methods × clients, under a heading for each setting and network that clients train, where there are several.

    None where no client is a domain with test images. A ceiling has no clients to be tested.
    """
    found = {group.label: tested for group in groups if (tested := _tested(group)) is not None}
    shown = [group for group in groups if group.label in found]
    if not shown:
        return None
    clients = list({client: None for each in found.values() for shares in each.shares for client in shares})
    names = [*(clients if len(clients) <= _MOST else []), _MEAN]
    laid = layout(shown, {group.label: ["own"] for group in shown})
    blocks: dict[str, tuple[list[str], list[Column]]] = {}
    for setting in laid.settings:
        its = {row: group for row in laid.rows for group in laid.at(row, setting, shown)}
        blocks[setting] = list(its), [[found[group.label].figure(name) for group in its.values()] for name in names]
    head, drawn = lay(names, [columns for _, columns in blocks.values()])
    grouped = len(blocks) > 1
    lines = [
        (*([cells.word(setting)] if grouped else []), cells.word(row), *line)
        for (setting, (rows, _)), block in zip(blocks.items(), drawn, strict=True)
        for row, line in zip(rows, block, strict=True)
    ]
    note = _NOTE + f" {RANKED.partition(';')[0]}." + standings(shown)
    if any(uneven(column) for _, columns in blocks.values() for column in columns):
        note += f" {UNEVEN}"
    if len(clients) > _MOST:
        note += f" Of {len(clients)} clients, each is in clients.csv, which --csv writes."
    if any(name.endswith(", published") for name in head):
        note += " In grey: published values."
    return Grid(
        "domains",
        "Accuracy on clients’ own test images",
        (*(["Setting"] if grouped else []), "Method", *head),
        tuple(lines),
        2 if grouped else 1,
        note,
        paper=True,
        grouped=grouped,
    )


def _tested(group: Group) -> _Tested | None:
    if table(group, "partition").get("kind") != "domain" or group.pooled:
        return None
    rounds = [
        {row.number for row in run.rows if any(each.test is not None for each in row.clients)} for run in group.runs
    ]
    common = set.intersection(*rounds)
    if not common:
        return None
    return _Tested(group, max(common), [_shares(run, max(common)) for run in group.runs])


def _shares(run: Run, number: int) -> dict[str, float | None]:
    told = {row.client: row.test.accuracy for row in run.by_round[number].clients if row.test is not None}
    return dict.fromkeys(run.holding.counts if run.holding is not None else told) | told
