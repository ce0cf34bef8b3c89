"""Ablations: groups of one method whose experiments differ in exactly one setting."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedstill.report.groups import Group, settings

__all__ = ["Family", "families", "shown", "varied"]


@dataclass(frozen=True)
class Family:
    """Groups that differ in ``key`` alone.

    Attributes:
        key: the setting, dotted.
        members: (value, group), by rising value where all are numbers, else in the order of the groups.
    """

    key: str
    members: tuple[tuple[Any, Group], ...]

    @property
    def numeric(self) -> bool:
        return all(_is_number(value) for value, _ in self.members)


def varied(groups: Sequence[Group]) -> dict[str, list[Any]]:
    """Settings in which two of ``groups`` differ, and their values in the order in which they are met.

    A setting that one of them lacks differs too; the value there is None.
    """
    tables = [settings(group) for group in groups]
    found: dict[str, list[Any]] = {}
    for key in {key: None for table in tables for key in table}:
        values = list({_frozen(table.get(key)): table.get(key) for table in tables}.values())
        if len(values) > 1:
            found[key] = values
    return found


def families(groups: Sequence[Group]) -> list[Family]:
    """Every setting along which some method was varied, alone; by setting, then in the order of the groups."""
    made: list[Family] = []
    for method in {group.method: None for group in groups if group.method}:
        its = [group for group in groups if group.method == method]
        for key in varied(its):
            made += _along(key, its)
    return made


def _along(key: str, groups: Sequence[Group]) -> list[Family]:
    alike: dict[str, list[tuple[Any, Group]]] = {}
    for group in groups:
        table = settings(group)
        value = table.pop(key, None)
        if value is not None:
            alike.setdefault(_frozen(table), []).append((value, group))
    made = []
    for members in alike.values():
        if len({_frozen(value) for value, _ in members}) > 1:
            family = Family(key, tuple(members))
            ordered = sorted(members, key=lambda member: member[0]) if family.numeric else members
            made.append(Family(key, tuple(ordered)))
    return made


def shown(value: Any) -> str:
    """A setting's value as a reader writes it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return ", ".join(map(shown, value))
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {shown(inner)}" for key, inner in value.items())
    return "unset" if value is None else str(value)


def _frozen(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
