"""Attribute leakage on a run: what its clients sent last, and what was distilled of them, read for their class histograms."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor

from fedstill.attacked import Heard, Nothing, Target, exchanges_of
from fedstill.attacks.neighbours import server_sets
from fedstill.attacks.updates import again, no_updates, update_seen
from fedstill.audit.attributes import ASSUMPTIONS, CITATIONS, by_bias, by_labels, by_signs, counts_told
from fedstill.audit.attributes import attributes as compare
from fedstill.audit.federation import Exchange
from fedstill.errors import InputError
from fedstill.kept import training_fields
from fedstill.rounds import Desk
from fedstill.train import Recipe

__all__ = ["Attributes", "attributes"]

_MOVED = {
    "fedprox": ("terms that hold clients near what they received", "mu"),
    "scaffold": ("control variates", ""),
    "vhl": ("virtual images of the method's own", "virtual_weight"),
}
"""By method, what else moves the last layer's bias, and the option that is 0 where it does not. The terms of MOON and FedProto
are of features before that layer, and leave its bias alone."""


@dataclass(frozen=True, kw_only=True)
class Attributes:
    """Attribute leakage.

    Attributes:
        round: the last whose messages count; None: the last.
    """

    round: int | None = None

    def check(self) -> None:
        """Nothing can be refused before the run is opened."""


class _Readings(NamedTuple):
    """By reading's name: shares by client, and why there are none of a client."""

    shares: dict[str, dict[str, Tensor]]
    missing: dict[str, dict[str, str]]

    def take(self, name: str, client: str, read: Callable[[], Tensor]) -> None:
        """Add one, or why it fails."""
        try:
            self.shares.setdefault(name, {})[client] = read()
        except InputError as error:
            self.missing.setdefault(name, {})[client] = str(error)


def attributes(asked: Attributes, target: Target, desk: Desk) -> dict[str, Any]:
    """How near each reading comes to clients' histograms, as :func:`fedstill.audit.attributes.attributes` gives it.

    Raises:
        Nothing: there is one client alone, or nothing that could be read.
        InputError: the round is unknown, or a kept message is damaged.
        RunError: a round that is done again fails.
    """
    sites = target.parts.sites
    if len(sites) < 2:
        raise Nothing("the run has one client alone, and guessing the mean histogram of all is to know its own")
    number = target.number(asked.round)
    heard, silent = _heard(target, number, desk)
    readings = _Readings({}, {})
    recipe = _recipe(target)
    for client, each in heard.items():
        if each.exchange is None:
            readings.missing.setdefault("updates", {})[client] = f"'{client}' sent nothing up to round {number}"
        else:
            _read_update(target, client, each.exchange, recipe, readings, desk)
    for client, distilled in server_sets(target).items():
        readings.take("hard", client, lambda: by_labels(distilled, soft=False))  # noqa: B023 - called at once
        if distilled.labels.dim() == 2:
            readings.take("soft", client, lambda: by_labels(distilled, soft=True))  # noqa: B023 - called at once
    read = {name: shares for name, shares in readings.shares.items() if shares}
    # one sentence a reading: what is the matter with one client is so with most
    missing = silent | {name: next(iter(whys.values())) for name, whys in readings.missing.items() if name not in read}
    if not read:
        raise Nothing(f"no histogram can be read: {'; '.join(dict.fromkeys(missing.values()))}")
    true = {client: site.train.histogram() for client, site in sites.items()}
    found = compare(read, true, desk=desk)
    return {
        "method": target.experiment.algorithm.name,
        "round": number,
        "clients": len(sites),
        "re_run": any(each.source == "re-run" for each in heard.values()),
        "readings": {
            name: {"citation": CITATIONS[name], "assumptions": ASSUMPTIONS[name]} | each for name, each in found.items()
        },
        "missing": missing,
    }


def _heard(target: Target, number: int, desk: Desk) -> tuple[Mapping[str, Heard], dict[str, str]]:
    """Clients' last exchanges; none, and why, where the method's messages can tell nothing, so that no round is done again."""
    if (why := no_updates(target)) is not None:
        return {}, {"updates": why}
    clients = tuple(target.parts.sites)
    return exchanges_of(target, clients, number, desk, partial(again, desk)), {}


def _read_update(
    target: Target, client: str, exchange: Exchange, recipe: Recipe | str, readings: _Readings, desk: Desk
) -> None:
    told = counts_told(exchange.up, len(target.parts.world.classes))
    if told is not None:
        readings.take("counts", client, lambda: told)
    images = int(exchange.up.numbers["examples"])
    try:
        what = update_seen(exchange, target)
    except Nothing as error:
        readings.missing.setdefault("updates", {})[client] = str(error)
        return
    readings.take("signs", client, lambda: by_signs(what, images=images))
    if isinstance(recipe, str):
        readings.missing.setdefault("bias", {})[client] = recipe
        return
    probe = target.parts.data.test
    readings.take("bias", client, lambda: by_bias(what, images=images, local=recipe, probe=probe, desk=desk))


def _recipe(target: Target) -> Recipe | str:
    """How clients train, or why the bias cannot be solved for the labels."""
    experiment = target.experiment
    if experiment.algorithm.makes_virtual or (experiment.virtual is not None and experiment.virtual.use):
        return "clients train on virtual images, whose number and whose other loss the message does not tell"
    if not len(target.parts.data.test):
        return "there are no common test images, which stand for the attacker's own"
    fields = training_fields(target.run, experiment)
    moved, weight = _MOVED.get(experiment.algorithm.name, ("", ""))
    if moved and fields.get(weight) != 0:
        return f"{moved} move the last layer's bias beside the classification loss"
    if fields.get("privacy_epsilon") is not None:
        return "clients cut each image's gradient and add noise, so the bias does not move by their mean"
    names = ("epochs", "lr", "batch", "momentum", "decay")
    if absent := [name for name in names if name not in fields]:
        return f"the method has no setting '{absent[0]}', so the local steps are not known"
    return Recipe(**{name: fields[name] for name in names})
