"""Which network a figure is of: so that methods which train one network each, run by run, stand beside those which train
several at once.

FedAvg trains what clients train, and is run once with each network; FedDGM's server trains several networks in one run,
beside the surrogate that clients train. What the experiments say of a network, its name and options, decides whether two
are the same.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from fedstill.errors import InputError
from fedstill.models import MODELS
from fedstill.report.families import shown
from fedstill.report.groups import Group
from fedstill.report.roles import HEADS, client_model, network_title, table

__all__ = ["Scored", "scored", "trained"]

Options = Mapping[str, Any]


@dataclass(frozen=True)
class Scored:
    """A model that a group scores, and what a table calls its network.

    Attributes:
        model: under which it is scored.
        network: name of the network.
        also: a second column in which it stands; empty where there is none. It is the server's network of the same kind
            where other methods train both.
        reading: what tells it from the clients' network itself, such as another head; empty for that network.
        named: the experiment says what network it is, so that it counts in a mean over networks. What clients train
            counts only where the server trains none of the kind.
    """

    model: str
    network: str
    also: str = ""
    reading: str = ""
    named: bool = True

    @property
    def names(self) -> tuple[str, ...]:
        """Columns in which it stands; in a mean over networks the last one counts."""
        return (self.network, self.also) if self.also else (self.network,)


@dataclass(frozen=True)
class _Network:
    """``options``: with ``name``, without ``label``; None where the experiment does not tell."""

    group: Group
    model: str
    title: str
    options: Options | None
    clients: bool

    @property
    def identity(self) -> str | None:
        return None if self.options is None else json.dumps(self.options, sort_keys=True, default=str)


def scored(groups: Sequence[Group]) -> dict[str, tuple[Scored, ...]]:
    """By group's label, what it scores.

    A network goes by the experiment's label or name for it; several of one name, by what tells them apart too. Where a
    method's server trains a network of the same kind as its clients do, or one of whose kind nothing is known but the same
    name, the clients' is called ``clients’ NAME``. A method whose server trains none stands in both columns.
    """
    known = [each for group in groups for each in _networks(group, defaults=_trained_beside(groups))]
    names = {id(each): each.title + _apart(each, known) for each in known}
    servers: dict[str, list[_Network]] = {}
    for each in known:
        if not each.clients:
            servers.setdefault(names[id(each)], []).append(each)
    # one method alone shows that the two are not the same thing
    doubled = {name for name, its in servers.items() for each in its if name in _own(each.group, known, names)}
    found: dict[str, list[Scored]] = {group.label: [] for group in groups}
    for each in known:
        name = names[id(each)]
        own = Scored(each.model, name, named=each.options is not None)
        if each.clients and name in servers:
            own = _beside(each, own, servers[name], doubled=name in doubled)
        found[each.group.label].append(own)
    for group in groups:
        first = next((each.network for each in found[group.label] if each.model == client_model(group)), "")
        found[group.label] += [
            Scored(model, first, reading=model, named=False) for model in group.models if model in HEADS
        ]
    return {label: tuple(its) for label, its in found.items()}


def trained(groups: Sequence[Group]) -> dict[str, str]:
    """By group's label, what the network is called that its clients train."""
    known = [
        _Network(group, "", network_title(group), _options(table(group, "model"), defaults=False), clients=True)
        for group in groups
    ]
    return {each.group.label: each.title + _apart(each, known) for each in known}


def _beside(each: _Network, own: Scored, servers: Sequence[_Network], *, doubled: bool) -> Scored:
    """The clients' network where servers train one of its name."""
    apart = f"clients’ {own.network}"
    alike = "label" in table(each.group, "model") or each.identity in [other.identity for other in servers]
    if not alike:
        return Scored(own.model, apart, named=own.named)
    if not doubled:
        return own
    if any(other.group is each.group for other in servers):
        return Scored(own.model, apart, named=False)
    return Scored(own.model, apart, also=own.network, named=own.named)


def _own(group: Group, known: Sequence[_Network], names: Mapping[int, str]) -> list[str]:
    return [names[id(each)] for each in known if each.clients and each.group is group]


def _trained_beside(groups: Sequence[Group]) -> bool:
    """Whether some server trains networks of its own: only then must those be compared with the clients'."""
    return any(_choices(group) for group in groups)


def _choices(group: Group) -> list[Options]:
    found = table(group, "algorithm").get("global_models")
    return [each for each in found if isinstance(each, Mapping)] if isinstance(found, list) else []


def _networks(group: Group, *, defaults: bool) -> Iterator[_Network]:
    own = client_model(group)
    servers = {_title(choice): choice for choice in _choices(group)}
    for model in group.models:
        if model == own:
            told = table(group, "model")
            yield _Network(group, model, network_title(group) or own, _options(told, defaults=defaults), clients=True)
        elif model not in HEADS:
            yield _Network(group, model, model, _options(servers.get(model), defaults=defaults), clients=False)


def _title(choice: Options) -> str:
    """As a server calls it, see :class:`fedstill.models.choice.Choice`."""
    return str(choice.get("label") or str(choice.get("name", "")).rpartition(":")[2])


def _options(told: Options | None, *, defaults: bool) -> Options | None:
    """The network's name and options; with ``defaults``, those too that are not written out."""
    if not told or not told.get("name"):
        return None
    given = {key: value for key, value in told.items() if key != "label"}
    name = str(given["name"])
    # code of a user's own is not run for a report
    return (
        {**given, **_defaults(json.dumps(given, sort_keys=True, default=str))} if defaults and name in MODELS else given
    )


@cache
def _defaults(text: str) -> Options:
    from fedstill.models.architecture import Architecture  # torch comes with it, and few pages need it

    given: dict[str, Any] = json.loads(text)
    name = given.pop("name")
    try:
        return Architecture(name, channels=3, size=(32, 32), classes=2, options=given).resolved().options
    except InputError:
        return given  # of another fedstill: its options speak for themselves


def _apart(each: _Network, known: Sequence[_Network]) -> str:
    """What tells the network from others of its name: `` (depth 3, width 32)``; empty where there are none."""
    if each.options is None:
        return ""
    tables = [other.options for other in known if other.title == each.title and other.options is not None]
    keys = [
        key
        for key in dict.fromkeys(key for table in tables for key in table)
        if len({str(table.get(key)) for table in tables}) > 1
    ]
    told = ", ".join(f"{key} {shown(each.options[key])}" for key in keys if key in each.options)
    return f" ({told})" if told else ""
