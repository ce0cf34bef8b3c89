"""From runs to the page: each section is a value that the template lays out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jinja2 import Environment, PackageLoader, StrictUndefined

from fedstill.report import accuracy, costs, facts, matching
from fedstill.report.groups import Group, gather, title
from fedstill.report.pictures import albums
from fedstill.report.runs import Holding, Run
from fedstill.report.verdict import verdict

__all__ = ["render"]

_OPEN_TILES = 4


@dataclass(frozen=True)
class HeatMap:
    """Who held what: a heat table. ``shade`` is 0 … 1 of the largest count."""

    runs: str
    holding: Holding
    largest: int


def render(runs: Sequence[Run]) -> str:
    """The whole page as HTML."""
    groups, notes = gather(runs)
    counted = [run for group in groups for run in group.runs]
    labels = _run_labels(groups, runs)
    environment = Environment(
        loader=PackageLoader("fedstill.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.j2").render(
        title=", ".join(group.label for group in groups) or ", ".join(title(run) for run in runs),
        verdict=verdict(groups),
        footing=_footing(groups),
        notes=[*facts.mismatch(counted), *notes],
        missing=[(labels[id(run)], run.missing) for run in runs if run.missing],
        facts=facts.facts(runs, labels),
        settings=[(group.label, facts.settings(group.runs[0])) for group in groups],
        legend=accuracy.legend(groups),
        plots=accuracy.plots(groups),
        maps=_maps(counted or runs, labels),
        albums=albums(_pictured(groups)),
        open_tiles=_OPEN_TILES,
        health=[found for run in runs if (found := matching.health(run, labels[id(run)])) is not None],
        failures=matching.failures(runs, labels),
        ledger=costs.ledger(groups),
        time=costs.time(groups),
    )


def _run_labels(groups: Sequence[Group], runs: Sequence[Run]) -> dict[int, str]:
    """A name for every run, by identity: its group's, and its seed where the group has several."""
    names = {id(run): run.folder.resolve().name for run in runs}
    for group in groups:
        for run in group.runs:
            names[id(run)] = group.label if len(group.runs) == 1 else f"{group.label}, seed {run.seed}"
    return names


def _footing(groups: Sequence[Group]) -> str:
    counts = sorted({len(group.runs) for group in groups})
    if not counts:
        return ""
    if counts == [1]:
        return "One seed: how much of this is luck is not known."
    several = "some methods with one seed alone, whose spread is not known" if counts[0] == 1 else ""
    seeds = " to ".join(map(str, sorted({counts[0], counts[-1]})))
    return f"Mean ± sample standard deviation over {seeds} seeds" + (f"; {several}." if several else ".")


def _maps(runs: Sequence[Run], labels: Mapping[int, str]) -> list[HeatMap]:
    found: dict[str, tuple[Holding, list[Run]]] = {}
    for run in runs:
        if run.holding is not None and run.holding.classes:
            key = run.holding.hash or repr(run.holding.counts)
            found.setdefault(key, (run.holding, []))[1].append(run)
    return [
        HeatMap(
            facts.owners(its, runs, labels) if len(found) > 1 else "",
            holding,
            max(map(max, holding.counts.values()), default=0),
        )
        for holding, its in found.values()
    ]


def _pictured(groups: Sequence[Group]) -> dict[str, Run]:
    """One run a group: one seed's images tell as much as all the seeds' do."""
    return {
        group.label + (f", seed {group.runs[0].seed}" if len(group.runs) > 1 else ""): group.runs[0] for group in groups
    }
