"""The series of all charts: one a method and model, with the same look wherever it is drawn.

A method has a colour and a marker, its networks and settings a dash. More than eight curves cannot be told apart in one chart,
so they are spread over small ones of the same axes: one a method, with the others in grey behind it; or, where methods were
compared at several settings, one a setting and network.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from fedstill.report import words
from fedstill.report.groups import Group, Point
from fedstill.report.parts import Key, Legend, Panels, Style, Trace
from fedstill.report.results import Stand, Stands, stands

__all__ = ["MOST_TOGETHER", "Series", "key_of", "legend", "panelled", "series", "styles"]

MOST_TOGETHER = 8
"""Curves that are told apart in one chart."""

_COLUMNS = range(2, 7)
_MOST_PANELS = 48  # more small charts are no overview
_MOST_SWITCHES = 24  # of more series, a method's are switched as one


@dataclass(frozen=True)
class Series:
    """One method's model.

    Attributes:
        key: what it is switched by on the page; where series are many, its method's others share it.
        curve: accuracy by round; not empty.
        stand: its method and its places, as the table of results calls them.
        panels: small charts over which all series are spread; None where one chart holds them.
    """

    key: str
    group: Group
    model: str
    style: Style
    curve: Mapping[int, Point]
    stand: Stand
    panels: Panels | None = None

    @property
    def own(self) -> tuple[str, ...]:
        """Its panels; one without a name where there are none."""
        names = (self.stand.method, *self.stand.places)
        return tuple(name for name in self.panels.names if name in names) if self.panels is not None else ("",)

    @property
    def label(self) -> str:
        return f"{self.group.label}, {self.model}"

    @property
    def last(self) -> int:
        """The last round in which every seed was scored."""
        return max(self.curve)


def series(groups: Sequence[Group]) -> tuple[Series, ...]:
    """One a model that was scored, in the order of the groups."""
    table = stands(groups)
    panels = _panels(table)
    as_one = panels is not None and len(table.where) > _MOST_SWITCHES
    turns: dict[str, int] = {}
    made = []
    for index, group in enumerate(groups):
        for number, model in enumerate(group.models):
            if (stand := table.where.get((group.label, model))) is None:
                continue
            colour = table.methods.index(stand.method)
            turns[stand.method] = dash = turns.get(stand.method, -1) + 1
            if as_one:  # a network has one dash in every panel, so what a method's colour adds to it is taken off
                dash = (table.places.index(stand.places[-1]) if panels and panels.context else 0) - colour
            key = f"m{colour}" if as_one else f"g{index}-m{number}"
            made.append(Series(key, group, model, Style(colour, dash), group.curve(model), stand, panels))
    return tuple(made)


def styles(groups: Sequence[Group]) -> dict[str, Style]:
    """By group's label, the look of a curve that is the group's and no model's."""
    table = stands(groups)
    methods: dict[str, int] = {}
    for (label, _), stand in table.where.items():
        methods.setdefault(label, table.methods.index(stand.method))
    turns: dict[int, int] = {}
    found = {}
    for index, group in enumerate(groups):
        colour = methods.get(group.label, len(table.methods) + index)
        turns[colour] = turns.get(colour, -1) + 1
        found[group.label] = Style(colour, turns[colour])
    return found


def _panels(table: Stands) -> Panels | None:
    several = len(table.places) > table.networks
    names = table.places if several else table.methods
    if len(table.where) <= MOST_TOGETHER or not 1 < len(names) <= _MOST_PANELS:
        return None
    # a row for each setting, where its networks fill one
    columns = table.networks if several and table.networks in _COLUMNS else 0
    return Panels(names, columns, context=not several or len(table.methods) == 1)


def panelled(traces: Sequence[Trace], names: Sequence[str]) -> tuple[tuple[Trace, ...], Panels | None]:
    """``traces``, each in the panel of that name where they are too many for one chart."""
    found = tuple(dict.fromkeys(names))
    if len(traces) <= MOST_TOGETHER or not 1 < len(found) <= _MOST_PANELS:
        return tuple(traces), None
    there = tuple(replace(trace, panel=name) for trace, name in zip(traces, names, strict=True))
    return there, Panels(found, context=True)


def legend(lines: Sequence[Series]) -> Legend:
    """One switch a series, with its last accuracy; where a method's series are switched as one, its name alone."""
    by_key: dict[str, list[Series]] = {}
    for each in lines:
        by_key.setdefault(each.key, []).append(each)
    return Legend(
        tuple(
            Key(key, first.group.label, first.model, first.style, words.percent(first.curve[first.last]))
            if len(its) == 1
            else Key(key, first.stand.method, "", first.style, "")
            for key, its in by_key.items()
            for first in its[:1]
        )
    )


def key_of(traces: Sequence[Trace], values: Sequence[str]) -> Legend:
    """The switches of a chart that has series of its own; ``values`` in the order of its traces."""
    return Legend(
        tuple(
            Key(trace.series, trace.label, "", trace.style, value) for trace, value in zip(traces, values, strict=True)
        )
    )
