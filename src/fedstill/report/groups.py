"""Runs that differ in their seed alone are one group: a mean and a spread instead of several lines."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import Any

from fedstill.algorithms import ALGORITHMS
from fedstill.report.rows import Row
from fedstill.report.runs import Run
from fedstill.settings import earlier

__all__ = [
    "APART",
    "Group",
    "Point",
    "difference",
    "flatten",
    "gather",
    "labelled",
    "running",
    "settings",
    "summarise",
    "title",
]


APART = ("seed", "name", "rounds", "engine", "output", "evaluate", "published")
"""What may differ between two runs of one group: none of it changes what is computed, but the seed."""

_TELLING = 3  # settings that a label may name
_NETWORK = "model."  # what begins the settings of the network that clients train


@dataclass(frozen=True)
class Point:
    """A figure over seeds: ``mean``; ``spread``, the sample standard deviation, None for one; ``count`` of seeds."""

    mean: float
    spread: float | None
    count: int


@dataclass(frozen=True)
class Group:
    """Runs of one experiment with different seeds.

    Attributes:
        label: what a reader calls it; differs from every other group's.
        method: name in the table of algorithms.
        runs: those with at least one round, one a seed.
    """

    label: str
    method: str
    runs: tuple[Run, ...]

    @property
    def pooled(self) -> bool:
        """All data on one site: a ceiling, not a federated method."""
        return self.method in ALGORITHMS and ALGORITHMS[self.method].pooled

    @property
    def models(self) -> tuple[str, ...]:
        """Names of models that every run has scored at least once, in the order of the first run."""
        scored = [{name: None for row in run.rows for name in row.accuracy} for run in self.runs]
        return tuple(name for name in scored[0] if all(name in other for other in scored[1:]))

    @property
    def first(self) -> str:
        """What the first run is called where its images or distillations stand for all seeds'."""
        return self.label + (f", seed {self.runs[0].seed}" if len(self.runs) > 1 else "")

    def over(self, read: Callable[[Row], float | None]) -> dict[int, Point]:
        """``read`` by round, for the rounds in which every run has a value."""
        curves = [{row.number: value for row in run.rows if (value := read(row)) is not None} for run in self.runs]
        common = sorted(set(curves[0]).intersection(*curves[1:]))
        return {number: summarise([curve[number] for curve in curves]) for number in common}

    @cached_property
    def curves(self) -> Mapping[str, Mapping[int, Point]]:
        """Accuracy by model and round; a model that no round has scored in every run is absent."""
        found = {model: self.over(_accuracy(model)) for model in self.models}
        return {model: curve for model, curve in found.items() if curve}

    def curve(self, model: str) -> Mapping[int, Point]:
        """Accuracy by round, for the rounds in which every run has scored ``model``."""
        return self.curves.get(model, {})

    def summed(self, read: Callable[[Row], float | None]) -> dict[int, Point]:
        """``read``, cumulative, by round. A round that is missing or lacks a value ends the curve."""
        sums: dict[int, list[float]] = {}
        for run in self.runs:
            for number, total in running(run, read):
                sums.setdefault(number, []).append(total)
        return {number: summarise(values) for number, values in sums.items() if len(values) == len(self.runs)}

    def sent(self) -> dict[int, Point]:
        """Bytes up and down, cumulative, by round."""
        return self.summed(lambda row: row.sent)

    def spent(self) -> dict[int, Point]:
        """Wall seconds, cumulative, by round."""
        return self.summed(lambda row: row.wall)

    def worked(self) -> dict[int, Point]:
        """CPU seconds of all processes, cumulative, by round."""
        return self.summed(lambda row: row.cpu_seconds)


def _accuracy(model: str) -> Callable[[Row], float | None]:
    return lambda row: row.accuracy.get(model)


def running(run: Run, read: Callable[[Row], float | None]) -> Iterator[tuple[int, float]]:
    """(round, sum so far), as long as no round is missing: a sum over what is known would pass for the whole."""
    total: float = 0
    for index, row in enumerate(run.rows, start=1):
        value = read(row)
        if row.number != index or value is None:
            return
        total += value
        yield index, total


def gather(runs: Sequence[Run]) -> tuple[tuple[Group, ...], tuple[str, ...]]:
    """Groups in the order in which the runs were given, and a sentence for each run that could not be counted."""
    notes: list[str] = []
    members: dict[str, dict[int | None, Run]] = {}
    for run in runs:
        if not run.rows:
            continue
        shared = {key: value for key, value in run.settings.items() if key not in APART}
        identity = json.dumps(shared, sort_keys=True, default=str) if run.settings else str(run.folder)
        seeds = members.setdefault(identity, {})
        if run.seed in seeds:
            notes.append(_repeated(run.folder, seeds[run.seed].folder))
        else:
            seeds[run.seed] = run
    groups = [Group("", group[0].method, group) for group in (tuple(seeds.values()) for seeds in members.values())]
    return labelled(groups), tuple(notes)


def _repeated(again: Path, first: Path) -> str:
    if again.resolve() == first.resolve():
        return f"{again} was given twice: it is counted once."
    # two folders of one name would seem to be the same
    one, other = (again, first) if again.name == first.name else (again.name, first.name)
    return f"{one} repeats the experiment and seed of {other}: it is not counted."


def title(run: Run) -> str:
    """The method's name as a reader knows it; the run's own where the experiment cannot be read."""
    known = ALGORITHMS.get(run.method)
    return (known.title if known else run.method.rpartition(":")[2]) or run.name


def summarise(values: Sequence[float]) -> Point:
    """Mean and sample standard deviation."""
    spread = statistics.stdev(values) if len(values) > 1 else None
    return Point(statistics.fmean(values), spread, len(values))


def flatten(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """``{"a": {"b": 1}}`` → ``("a.b", 1)``."""
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def settings(group: Group) -> dict[str, Any]:
    """What makes the group's experiment what it is, by dotted key."""
    return {key: value for key, value in flatten(group.runs[0].settings) if key.partition(".")[0] not in APART}


def difference(group: Group, alike: Sequence[Group], keys: Sequence[str] | None = None) -> str:
    """What tells ``group`` from the others of ``alike``: the one setting that does, else the experiment's name, else a few
    settings, else the folder's name.

    The network that clients train is one setting, by its name, where names tell networks apart. Of experiments' names, what
    all begin with is left out: ``digits-feddgm`` and ``digits-feddgm-hard`` are called by nothing and ``hard``.

    Args:
        group: one of ``alike``.
        alike: groups of one title.
        keys: settings that count; None: all.
    """
    tables = _told(alike, keys)
    own = tables[alike.index(group)]
    apart = [key for key in {key: None for table in tables for key in table} if len({t.get(key) for t in tables}) > 1]
    names = [other.runs[0].name for other in alike]
    if len(apart) == 1 or (len(apart) <= _TELLING and len(set(names)) < len(names)):
        was = earlier(group.runs[0].method)
        return ", ".join(
            own[key] if key == _NETWORK else f"{key.rpartition('.')[2]} {own.get(key, was.get(key, 'unset'))}"
            for key in apart
        )
    if len(set(names)) < len(names):
        return group.runs[0].folder.resolve().name
    parts = [name.split("-") for name in names]
    shared = sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, zip(*parts, strict=False)))
    return "-".join(parts[alike.index(group)][shared:])


def _told(groups: Sequence[Group], keys: Sequence[str] | None) -> list[dict[str, str]]:
    """Settings as text; the network's as one, where its name says it all."""
    tables = [
        {key: str(value) for key, value in settings(group).items() if keys is None or key in keys} for group in groups
    ]
    networks = [{key: value for key, value in table.items() if key.startswith(_NETWORK)} for table in tables]
    titles = [network.get("model.label") or network.get("model.name", "") for network in networks]
    if len({str(network) for network in networks}) != len(set(titles)) or not all(titles):
        return tables
    return [
        {key: value for key, value in table.items() if key not in network} | {_NETWORK: title}
        for table, network, title in zip(tables, networks, titles, strict=True)
    ]


def labelled(groups: Sequence[Group]) -> tuple[Group, ...]:
    """The groups, each called by its method and by what tells it from those of the same method."""
    names = [title(group.runs[0]) for group in groups]
    found = []
    for group, name in zip(groups, names, strict=True):
        alike = [other for other, its in zip(groups, names, strict=True) if its == name]
        apart = difference(group, alike) if len(alike) > 1 else ""
        found.append(replace(group, label=f"{name} ({apart})" if apart else name))
    return tuple(found)
