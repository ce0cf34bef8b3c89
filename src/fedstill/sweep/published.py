"""Published values: which cells a ``[[sweep.published]]`` entry fits, and what is said of those.

source = "FedDGM, Table 1"
method = "fedavg"                       # a label; without it, every method
when = { "partition.alpha" = 0.9 }      # settings that a cell must have; without it, every cell
accuracy = { resnet18 = 0.621 }         # as in [published] of an experiment
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol

from fedstill.algorithms import ALGORITHMS
from fedstill.conduct import PublishedSettings
from fedstill.errors import InputError, suggestion
from fedstill.experiment import Experiment
from fedstill.models.choice import Choice
from fedstill.settings import options, validated
from fedstill.sweep.table import leaves

__all__ = ["Entry", "check", "entries", "published"]

AVERAGE = "average"
_ROLES = (AVERAGE, "global", "surrogate", "prototypes")
"""Names under which methods of the table score a network that has a name of its own, and the mean over networks."""


class Fitted(Protocol):
    """What an entry looks at."""

    @property
    def label(self) -> str: ...

    @property
    def experiment(self) -> Experiment: ...

    @property
    def settings(self) -> Mapping[str, Any]:
        """The experiment's, see :meth:`fedstill.experiment.Experiment.settings`."""


@dataclass(frozen=True)
class Entry:
    """One ``[[sweep.published]]``.

    Attributes:
        place: where it stands, for errors.
        method: label of the method that it is about; None: all.
        when: what a cell's settings must be, by dotted key.
        values: what it says.
    """

    place: str
    method: str | None
    when: Mapping[str, Any]
    values: PublishedSettings

    def fits(self, cell: Fitted) -> bool:
        return self.method in (None, cell.label) and all(
            _same(cell.settings.get(key), value) for key, value in self.when.items()
        )


def entries(tables: Sequence[Mapping[str, Any]]) -> tuple[Entry, ...]:
    """The entries of a file.

    Raises:
        InputError: an unknown key, or a value that cannot be.
    """
    return tuple(_entry(table, f"sweep.published[{index}]") for index, table in enumerate(tables))


def published(found: Sequence[Entry], cells: Sequence[Fitted]) -> list[PublishedSettings]:
    """What is published of each cell: the experiment's own ``[published]``, and every entry that fits it.

    Raises:
        InputError: two entries say different things of one cell.
    """
    return [_joined(cell, [entry for entry in found if entry.fits(cell)]) for cell in cells]


def check(found: Sequence[Entry], cells: Sequence[Fitted]) -> None:
    """That every entry is about something.

    Raises:
        InputError: it fits no cell, or names a network that no cell has that it fits.
    """
    for entry in found:
        fitted = [cell for cell in cells if entry.fits(cell)]
        if not fitted:
            raise InputError(f"{entry.place} {_astray(entry, cells)}")
        known = [name for cell in fitted for name in _networks(cell.experiment)]
        if all(cell.experiment.algorithm.name in ALGORITHMS for cell in fitted):  # whose networks are known
            for name in entry.values.accuracy:
                if name not in known:
                    raise InputError(f"{entry.place}.accuracy.{name}: no such network: {suggestion(name, set(known))}")


def _entry(table: Mapping[str, Any], place: str) -> Entry:
    known = ["method", "when", *(option.name for option in options(PublishedSettings))]
    for key in table:
        if key not in known:
            raise InputError(f"{place}.{key}: no such key: {suggestion(key, known)}")
    method, when = table.get("method"), table.get("when", {})
    if method is not None and not isinstance(method, str):
        raise InputError(f"{place}.method = {method!r}: must be a label in quotes")
    if not isinstance(when, Mapping):
        raise InputError(f'{place}.when = {when!r}: must be a table, such as {{ "partition.alpha" = 0.1 }}')
    values = {key: value for key, value in table.items() if key not in ("method", "when")}
    return Entry(place, method, dict(leaves(when)), validated(PublishedSettings, values, where=place))


def _same(found: Any, wanted: Any) -> bool:
    return bool(found == wanted) and isinstance(found, bool) == isinstance(wanted, bool)


def _astray(entry: Entry, cells: Sequence[Fitted]) -> str:
    """Why an entry fits nothing."""
    labels = {cell.label for cell in cells}
    if entry.method is not None and entry.method not in labels:
        return f"fits no cell: method = '{entry.method}': {suggestion(entry.method, labels)}"
    of = [cell.settings for cell in cells if entry.method in (None, cell.label)]
    for key, value in entry.when.items():
        there = list({repr(settings[key]): settings[key] for settings in of if key in settings}.values())
        if not there:
            return f'fits no cell: when "{key}": no such setting: {suggestion(key, {k for each in of for k in each})}'
        if not any(_same(each, value) for each in there):
            return f'fits no cell: when "{key}" = {value!r}: cells have {", ".join(map(repr, there))}'
    return "fits no cell: none has all that its 'when' asks for"


def _joined(cell: Fitted, entries: Sequence[Entry]) -> PublishedSettings:
    result, places = cell.experiment.published, dict[tuple[str, str], str]()
    for entry in entries:
        changes: dict[str, Any] = {}
        for each in fields(PublishedSettings):
            old, new = getattr(result, each.name), getattr(entry.values, each.name)
            if isinstance(new, Mapping):
                for name in new:
                    before = places.setdefault((each.name, name), entry.place)
                    if old.get(name, new[name]) != new[name] and before != entry.place:
                        raise InputError(
                            f"{entry.place}.{each.name}.{name} = {new[name]}: {before} says {old[name]} of the same cells"
                        )
                changes[each.name] = {**old, **new}
            elif new and new not in old.split("; "):
                changes[each.name] = f"{old}; {new}" if old else new
        result = replace(result, **changes)
    return result


def _networks(experiment: Experiment) -> set[str]:
    """Names under which networks of a method of the table may be published."""
    chosen = getattr(experiment.algorithm.options, "global_models", ())
    more = {choice.title for choice in chosen if isinstance(choice, Choice)}
    return {*_ROLES, experiment.model.title, *more}
