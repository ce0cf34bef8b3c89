"""Tables as papers print them.

With several settings *and* several networks, rows are methods under a heading for each setting, and columns are networks and
their average (FedDGM's Table 1); the averages then have a table of their own, methods × settings (its Tables 2 and 3). With
one of either, rows are methods and columns are settings or networks; so many columns that they do not read as a table are
laid out the first way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from fedstill.report import cells, words
from fedstill.report.groups import Group, summarise
from fedstill.report.layout import Layout, layout
from fedstill.report.networks import Scored, scored
from fedstill.report.parts import Grid
from fedstill.report.ranking import RANKED, UNEVEN, Column, Figure, lay, uneven
from fedstill.report.roles import AVERAGE, client_model, published, published_average, standing

__all__ = ["Stand", "Stands", "results", "standings", "stands"]

_AVERAGES = "results-averages"
_MOST_COLUMNS = 12  # more do not read as a table

_NOTE = f"Accuracy after the last round, mean ± sample standard deviation over seeds. {RANKED}"


def results(groups: Sequence[Group]) -> tuple[Grid, ...]:
    """The table, and one of averages over networks where there are several settings; none where there is one group alone, or
    nothing was scored.
    """
    there = [group for group in groups if client_model(group)]
    if len(there) < 2:
        return ()
    table = _Table.of(there)
    columns = len(table.layout.settings) * len(table.networks)
    if len(table.layout.settings) == 1 or (len(table.networks) == 1 and columns <= _MOST_COLUMNS):
        return (table.compact(),)
    return (table.by_setting(), *table.averages())


def standings(groups: Sequence[Group]) -> str:
    """What is said under a table of rows that are no methods of their own."""
    told = {standing(group) for group in groups}
    control = " Control: what the generator gives with no client’s data." if "control" in told else ""
    return control + (" Ceiling: all data in one place." if "ceiling" in told else "")


@dataclass(frozen=True)
class Stand:
    """Where a figure stands: ``method``, the row; ``places``, the settings and networks at which it was reached."""

    method: str
    places: tuple[str, ...]


@dataclass(frozen=True)
class Stands:
    """The table's order, for what else is drawn of the same figures.

    Attributes:
        methods: rows that have a figure.
        places: settings and networks as a reader calls them, setting by setting.
        networks: how many places there are of a setting.
        where: by group's label and model.
    """

    methods: tuple[str, ...] = ()
    places: tuple[str, ...] = ()
    networks: int = 1
    where: Mapping[tuple[str, str], Stand] = field(default_factory=dict)


def stands(groups: Sequence[Group]) -> Stands:
    """Where each model that was scored stands in the table, in the order of the groups."""
    there = [group for group in groups if client_model(group)]
    if not there:
        return Stands()
    table = _Table.of(there)
    found = {}
    for group in there:
        row, settings = table.layout.places[group.label]
        by_model = {one.model: one for one in table.found[group.label]}
        for model in (model for model in group.models if group.curve(model)):
            one = by_model[model]
            places = tuple(table.called(setting, name) for setting in settings for name in one.names)
            found[group.label, model] = Stand(_said((row, one.reading)), places)
    taken = {name for stand in found.values() for name in stand.places}
    every = (table.called(setting, name) for setting in table.layout.settings for name in table.networks)
    methods = {stand.method for stand in found.values()}
    return Stands(
        tuple(name for name in map(_said, table.rows) if name in methods),
        tuple(name for name in every if name in taken),
        len(table.networks),
        found,
    )


_Row = tuple[str, str]
"""A method, and which reading of its network: empty, or such as ``prototypes``."""


@dataclass(frozen=True)
class _Table:
    """What stands where.

    Attributes:
        groups: those that were scored.
        layout: where they stand.
        found: by group's label, what it scores.
        rows: in their order.
        networks: columns, in their order.
        averaged: networks that the average is over; none where they are fewer than two.
    """

    groups: Sequence[Group]
    layout: Layout
    found: Mapping[str, Sequence[Scored]]
    rows: Sequence[_Row]
    networks: Sequence[str]
    averaged: Sequence[str]

    @classmethod
    def of(cls, groups: Sequence[Group]) -> _Table:
        found = scored(groups)
        every = [(group, one) for group in groups for one in found[group.label]]
        laid = layout(
            groups,
            {label: [f"{one.reading}/{name}" for one in its for name in one.names] for label, its in found.items()},
        )
        rows = {(laid.places[group.label][0], one.reading): None for group, one in every}
        networks = list({name: None for _, one in every for name in one.names})
        counted = {one.names[-1] for _, one in every if one.named}
        averaged = [name for name in networks if name in counted]
        return cls(
            groups,
            laid,
            found,
            sorted(rows, key=lambda row: (laid.rows.index(row[0]), row[1])),  # a method's readings stand below it
            networks,
            averaged if len(averaged) > 1 else [],
        )

    def called(self, setting: str, name: str) -> str:
        """A setting's network; where all settings have the same one, the setting alone."""
        return ": ".join(filter(None, (setting, name if len(self.networks) > 1 else ""))) or name

    def _scored(self, row: _Row, setting: str, name: str) -> tuple[Group, Scored] | None:
        return next(
            (
                (group, one)
                for group in self.layout.at(row[0], setting, self.groups)
                for one in self.found[group.label]
                if one.reading == row[1] and name in one.names
            ),
            None,
        )

    def _column(self, rows: Sequence[_Row], setting: str, name: str) -> Column:
        read = self._mean if name == AVERAGE else self._one
        return [read(row, setting, name) for row in rows]

    def _one(self, row: _Row, setting: str, name: str) -> Figure | None:
        if (found := self._scored(row, setting, name)) is None:
            return None
        group, one = found
        curve = group.curve(one.model)
        last = max(curve)
        # of a figure that stands in two columns, the published one is the server network's
        known = published(group, one.model) if name == one.names[-1] else None
        return Figure(curve[last], frozenset([last]), not group.pooled, known)

    def _mean(self, row: _Row, setting: str, name: str) -> Figure | None:
        """The mean over networks of each seed, then over seeds: where all networks were scored with the same seeds."""
        its = [found for each in self.averaged if (found := self._scored(row, setting, each)) is not None]
        if not its or row[1]:
            return None
        known = next((value for group, _ in its if (value := published_average(group)) is not None), None)
        ends = [max(group.curve(one.model)) for group, one in its]
        by_seed = [
            {run.seed: run.by_round[last].accuracy[one.model] for run in group.runs}
            for (group, one), last in zip(its, ends, strict=True)
        ]
        complete = len(its) == len(self.averaged) and all(each.keys() == by_seed[0].keys() for each in by_seed)
        point = summarise([fmean(each[seed] for each in by_seed) for seed in by_seed[0]]) if complete else None
        return Figure(point, frozenset(ends), not its[0][0].pooled, known)

    def compact(self) -> Grid:
        """A column for each setting and network."""
        names = [*self.networks, *([AVERAGE] if self.averaged else [])]
        places = [(setting, name) for setting in self.layout.settings for name in names]
        columns = [self._column(self.rows, *place) for place in places]
        heads = [self.called(*place) for place in places]
        by = "setting" if len(self.layout.settings) > 1 else "network" if len(self.networks) > 1 else ""
        title = f"Accuracy by method{f' and {by}' if by else ''}"
        return self._grid("results", title, heads, {"": (self.rows, columns)})

    def by_setting(self) -> Grid:
        """Rows by setting, and a column for each network."""
        names = [*self.networks, *([AVERAGE] if self.averaged else [])]
        blocks = {}
        for setting in self.layout.settings:
            rows = [row for row in self.rows if any(self._scored(row, setting, name) for name in self.networks)]
            blocks[setting] = (rows, [self._column(rows, setting, name) for name in names])
        return self._grid("results", "Accuracy by setting and method", names, blocks)

    def averages(self) -> tuple[Grid, ...]:
        """A column for each setting; none where there is no average."""
        rows = [row for row in self.rows if not row[1]]
        columns = [self._column(rows, setting, AVERAGE) for setting in self.layout.settings]
        if not any(figure is not None and figure.point is not None for column in columns for figure in column):
            return ()
        title = "Average over networks, by method and setting"
        return (self._grid(_AVERAGES, title, self.layout.settings, {"": (rows, columns)}),)

    def _grid(
        self, key: str, title: str, names: Sequence[str], blocks: Mapping[str, tuple[Sequence[_Row], Sequence[Column]]]
    ) -> Grid:
        head, drawn = lay(names, [columns for _, columns in blocks.values()])
        grouped = "" not in blocks
        lines = [
            (*([cells.word(setting)] if grouped else []), cells.word(_said(row)), *line)
            for (setting, (rows, _)), its in zip(blocks.items(), drawn, strict=True)
            for row, line in zip(rows, its, strict=True)
        ]
        every = [column for _, columns in blocks.values() for column in columns]
        return Grid(
            key,
            title,
            (*(["Setting"] if grouped else []), "Method", *head),
            tuple(lines),
            2 if grouped else 1,
            self._note(key, head, every),
            paper=True,
            grouped=grouped,
        )

    def _note(self, key: str, head: Sequence[str], columns: Sequence[Column]) -> str:
        note = _NOTE + standings(self.groups)
        if any(map(uneven, columns)):
            note += f" {UNEVEN}"
        for name in self.networks:
            if name in head and f"clients’ {name}" in head:
                note += (
                    f" Clients’ {name}: what clients train; {name}: what the server trains on synthetic images. A method "
                    "whose server trains none stands in both with its clients’."
                )
        if AVERAGE in head or key == _AVERAGES:
            over = words.listed(list(self.averaged))
            note += f" Average: over {over}, first of each seed, where all were run with the same seeds."
        return note + (" In grey: published values." if any(name.endswith(", published") for name in head) else "")


def _said(row: _Row) -> str:
    return ", ".join(filter(None, row))
