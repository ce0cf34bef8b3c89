"""A table as papers print it: rows are methods, columns are settings and networks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedstill.report import cells
from fedstill.report.families import shown, varied
from fedstill.report.groups import Group, Point, settings, title
from fedstill.report.parts import Cell, Grid
from fedstill.report.roles import client_model, differ, network, network_title, published, table

__all__ = ["marked", "networks", "results"]

_MOST_KEYS, _MOST_COLUMNS = 3, 12  # more do not read as a table: each group gets a row of its own instead

_NOTE = (
    "Accuracy after the last round, mean ± sample standard deviation over seeds. The best of a column is marked where both it "
    "and the second have several seeds and it is ahead by more than their standard deviations together, which is no test of "
    "significance; a ceiling does not compete."
)


@dataclass(frozen=True)
class _Layout:
    """Which group and model stand in which row, setting and network; ``columns``: what a setting is called."""

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    places: Mapping[tuple[str, str, str], tuple[Group, str]]


def results(groups: Sequence[Group]) -> Grid | None:
    """None where there is one group alone, or nothing was scored."""
    scored = [group for group in groups if client_model(group)]
    if len(scored) < 2:
        return None
    names = networks(scored)
    layout = _layout(scored, names)
    found = list({name: None for group in scored for name in names[group.label]})
    head, columns, drawn, uneven = [], [], False, False
    for setting in layout.columns:
        for name in found:
            its = [layout.places.get((row, setting, name)) for row in layout.rows]
            points = [_last(*place) if place is not None else None for place in its]
            if not any(points):
                continue
            heading = ": ".join(text for text in (setting, name if len(found) > 1 else "") if text) or name
            head.append(heading)
            ranked = [place is not None and not place[0].pooled for place in its]
            ends = {
                max(place[0].curve(place[1])) for place, competes in zip(its, ranked, strict=True) if place and competes
            }
            # a method that is still at work, or was stopped, is not behind yet
            uneven = uneven or len(ends) > 1
            columns.append(marked(points, ranked=ranked if len(ends) == 1 else [False] * len(its)))
            known = [published(*place) if place is not None else None for place in its]
            if any(value is not None for value in known):
                drawn = True
                head.append(f"{heading}, published")
                columns.append([cells.percent(value, tone="mute") for value in known])
    rows = tuple(
        (cells.word(row), *values) for row, values in zip(layout.rows, zip(*columns, strict=True), strict=True)
    )
    note = _NOTE + (" Where methods have not come to the same round, none is marked." if uneven else "")
    note += " In grey: published values." if drawn else ""
    return Grid("results", "Accuracy by method and setting", ("Method", *head), rows, note=note, paper=True)


def marked(column: Sequence[Point | None], *, ranked: Sequence[bool] | None = None) -> list[Cell]:
    """A column of accuracies, its best marked if it is ahead of the second by more than their spread, which needs seeds.

    ``ranked``: which of them compete; the others, such as a ceiling, are neither best nor second.
    """
    among = ranked if ranked is not None else [True] * len(column)
    competing = sorted(
        (point for point, competes in zip(column, among, strict=True) if competes and point is not None),
        key=lambda point: -point.mean,
    )
    # with one seed the spread is not known, so that no lead can exceed it
    ahead = (
        len(competing) > 1
        and all(point.spread is not None for point in competing[:2])
        and differ(competing[0], competing[1])
    )
    return [
        cells.percent(point, tone="best" if ahead and competes and point is competing[0] else "")
        for point, competes in zip(column, among, strict=True)
    ]


def networks(groups: Sequence[Group]) -> dict[str, dict[str, str]]:
    """By group's label, the name of each network and the model that it is scored as.

    What clients train is scored as ``global`` by one method and as ``surrogate`` by another; here it goes by the experiment's
    name for it, with what tells it from its namesakes. Where a server trains a network of that name too, which may be of
    another size, it is called the clients', unless a label of the user's says that the two are one.
    """
    by_title: dict[str, dict[str, Group]] = {}
    for group in groups:
        by_title.setdefault(network_title(group), {}).setdefault(network(group), group)
    others = {model for group in groups for model in group.models if model != client_model(group)}
    found = {}
    for group in groups:
        own = client_model(group)
        name = network_title(group) or own
        name += _apart(group, list(by_title[network_title(group)].values()))
        if name in others and "label" not in table(group, "model"):
            name = f"clients’ {name}"
        found[group.label] = {(name if model == own else model): model for model in group.models}
    return found


def _apart(group: Group, alike: Sequence[Group]) -> str:
    """What tells the group's network from others of its name: `` (depth 3, width 32)``; empty where there are none."""
    own = table(group, "model")
    tables = [table(other, "model") for other in alike]
    keys = [
        key
        for key in dict.fromkeys(key for each in tables for key in each)
        if key != "label" and len({str(each.get(key)) for each in tables}) > 1
    ]
    return f" ({', '.join(f'{key} {shown(own.get(key))}' for key in keys)})" if keys else ""


def _last(group: Group, model: str) -> Point | None:
    curve = group.curve(model)
    return curve[max(curve)] if curve else None


def _layout(groups: Sequence[Group], names: Mapping[str, Mapping[str, str]]) -> _Layout:
    keys = _keys(groups)
    columns = _columns(groups, keys)
    fits = len(keys) <= _MOST_KEYS and len(columns) <= _MOST_COLUMNS and not _unwieldy(groups, keys)
    places: dict[tuple[str, str, str], tuple[Group, str]] = {}
    for group in groups if fits else ():
        for setting, values in columns.items():
            if _matches(_values(group, keys), values):
                for name, model in names[group.label].items():
                    place = (title(group.runs[0]), setting, name)
                    fits = fits and place not in places
                    places[place] = (group, model)
    if fits:
        return _Layout(tuple(dict.fromkeys(title(group.runs[0]) for group in groups)), tuple(columns), places)
    return _Layout(
        tuple(group.label for group in groups),
        ("",),
        {(group.label, "", name): (group, model) for group in groups for name, model in names[group.label].items()},
    )


def _keys(groups: Sequence[Group]) -> tuple[str, ...]:
    """Settings that make a column: data and partition wherever they differ, an algorithm's own where a method varies them.

    The network that clients train makes a column by its name.
    """
    shared = {key for key in varied(groups) if key.partition(".")[0] not in ("algorithm", "model")}
    own = {
        key
        for method in {group.method for group in groups}
        for key in varied([group for group in groups if group.method == method])
        if key.startswith("algorithm.")
    }
    order = {key: None for group in groups for key in settings(group)}
    return tuple(key for key in order if key in shared | own)


def _values(group: Group, keys: Sequence[str]) -> dict[str, Any]:
    own = settings(group)
    return {key: own[key] for key in keys if own.get(key) is not None}


def _columns(groups: Sequence[Group], keys: Sequence[str]) -> dict[str, dict[str, Any]]:
    """What groups set, by what a reader calls it. A group that lacks a setting fits every value of it."""
    found = [_values(group, keys) for group in groups]
    whole = [
        values for values in found if not any(len(other) > len(values) and _matches(values, other) for other in found)
    ]
    named = {
        ", ".join(f"{key.rpartition('.')[2]} {shown(value)}" for key, value in values.items()): values
        for values in whole
    }
    return dict(sorted(named.items(), key=lambda item: [_order(item[1].get(key)) for key in keys]))


def _matches(own: Mapping[str, Any], column: Mapping[str, Any]) -> bool:
    return all(column.get(key) == value for key, value in own.items())


def _order(value: Any) -> tuple[int, float, str]:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return (0, value, "") if number else (1, 0.0, shown(value))


def _unwieldy(groups: Sequence[Group], keys: Sequence[str]) -> bool:
    """Whether a list is among the values: it does not read as the head of a column."""
    return any(isinstance(value, list) for group in groups for value in _values(group, keys).values())
