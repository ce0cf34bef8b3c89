"""Which group stands in which row and under which setting, as the papers lay their tables out: methods × settings.

A *setting* is what a comparison was repeated at: the data, the partition, and an option of the algorithms that all methods
vary, such as images a class in an ablation. An option that only some methods vary tells those rows apart: FedDGM (ipc 5).
What goes with the network that clients train, such as a step size that was chosen for it, is neither. The network itself makes
a setting only where a method's runs with several of them would stand in one place: where they share a column.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedstill.report.families import shown, varied
from fedstill.report.groups import Group, difference, settings, title
from fedstill.report.networks import trained
from fedstill.report.roles import standing

__all__ = ["Layout", "layout"]

_NETWORK = "model"
_MOST_KEYS = 3  # settings that a heading names; with more, each group gets a row of its own


@dataclass(frozen=True)
class Layout:
    """Rows and settings in the order of the table.

    Attributes:
        rows: names of methods.
        settings: what a reader calls them; one that is empty where there is one alone.
        places: by group's label, its row and its settings: all, where it lacks what makes them.
    """

    rows: tuple[str, ...]
    settings: tuple[str, ...]
    places: Mapping[str, tuple[str, tuple[str, ...]]]

    def at(self, row: str, setting: str, groups: Sequence[Group]) -> list[Group]:
        """Those of ``groups`` that stand there; several only where they train different networks."""
        return [group for group in groups if (place := self.places[group.label])[0] == row and setting in place[1]]


def layout(groups: Sequence[Group], columns: Mapping[str, Sequence[str]]) -> Layout:
    """Methods by settings; settings and rows in the order in which they are met.

    Each group gets a row of its own where that does not fit: more than three settings, a setting that is a list, or two
    groups in one place.

    Args:
        groups: what is laid out.
        columns: by group's label, the columns that it fills: two groups of one row and setting have none in common.
    """
    found = _laid(groups, columns, {}) or _laid(groups, columns, trained(groups))
    if found is not None:
        return found
    names = {group.label: _standing(group, group.label) for group in groups}
    return Layout(tuple(names.values()), ("",), {label: (name, ("",)) for label, name in names.items()})


def _laid(groups: Sequence[Group], columns: Mapping[str, Sequence[str]], networks: Mapping[str, str]) -> Layout | None:
    """``networks``: what clients train, by group's label, where that makes a setting; None where it does not fit."""
    own = _varied_options(groups)
    competing = [set(own[group.method]) for group in groups if not group.pooled]
    everywhere = set.intersection(*competing) if competing else set()
    shared = {key for key in varied(groups) if key.partition(".")[0] not in ("algorithm", "model")}
    order = {key: None for group in groups for key in settings(group)}
    keys = tuple(key for key in order if key in shared | everywhere)
    values = {
        group.label: _values(group, [key for key in keys if key in shared or key in own[group.method]])
        | ({_NETWORK: networks[group.label]} if networks else {})
        for group in groups
    }
    if len(keys) + bool(networks) > _MOST_KEYS or any(
        isinstance(value, list) for its in values.values() for value in its.values()
    ):
        return None
    rows = {group.label: _row(group, groups, [key for key in own[group.method] if key not in keys]) for group in groups}
    settled = _settings(list(values.values()))
    places = {
        group.label: (
            rows[group.label],
            tuple(setting for setting, at in settled.items() if _matches(values[group.label], at)),
        )
        for group in groups
    }
    taken = [(row, each, name) for label, (row, its) in places.items() for each in its for name in columns[label]]
    if len(set(taken)) < len(taken):
        return None
    return Layout(tuple(dict.fromkeys(rows.values())), tuple(settled), places)


def _varied_options(groups: Sequence[Group]) -> dict[str, list[str]]:
    """By method, which of its own options it varies where the network, the data and the partition are the same."""
    found: dict[str, list[str]] = {}
    for method in {group.method: None for group in groups}:
        alike: dict[str, list[Group]] = {}
        for group in groups:
            if group.method == method:
                rest = {key: value for key, value in settings(group).items() if not key.startswith("algorithm.")}
                alike.setdefault(json.dumps(rest, sort_keys=True, default=str), []).append(group)
        keys = {key: None for its in alike.values() for key in varied(its)}
        found[method] = [key for key in keys if key.startswith("algorithm.")]
    return found


def _row(group: Group, groups: Sequence[Group], keys: Sequence[str]) -> str:
    """The method, and what tells this variant of it from its others."""
    name = title(group.runs[0])
    variants: dict[str, Group] = {}
    for other in groups:
        if other.method == group.method and title(other.runs[0]) == name:
            variants.setdefault(_variant(other, keys), other)
    first = variants[_variant(group, keys)]
    apart = difference(first, list(variants.values()), keys) if len(variants) > 1 else ""
    return _standing(group, f"{name} ({apart})" if apart else name)


def _variant(group: Group, keys: Sequence[str]) -> str:
    own = settings(group)
    return json.dumps([own.get(key) for key in keys], default=str)


def _standing(group: Group, name: str) -> str:
    return f"{name}, {told}" if (told := standing(group)) else name


def _values(group: Group, keys: Sequence[str]) -> dict[str, Any]:
    own = settings(group)
    return {key: own[key] for key in keys if own.get(key) is not None}


def _settings(found: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """What groups set, by what a reader calls it. A group that lacks a setting fits every value of it."""
    whole = [
        values for values in found if not any(len(other) > len(values) and _matches(values, other) for other in found)
    ]
    return {", ".join(_said(key, value) for key, value in values.items()): values for values in whole}


def _said(key: str, value: Any) -> str:
    return str(value) if key == _NETWORK else f"{key.rpartition('.')[2]} {shown(value)}"


def _matches(own: Mapping[str, Any], column: Mapping[str, Any]) -> bool:
    return all(column.get(key) == value for key, value in own.items())
