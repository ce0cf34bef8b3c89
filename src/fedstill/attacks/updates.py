"""An exchange with a client, as an attacker reads it."""

from __future__ import annotations

from fedstill.algorithms import ALGORITHMS
from fedstill.attacked import Nothing, Target
from fedstill.audit.federation import Exchange, sent_network
from fedstill.audit.seen import Seen, seen
from fedstill.errors import InputError
from fedstill.rounds import Desk

__all__ = ["again", "no_updates", "update_seen"]


def no_updates(target: Target) -> str | None:
    """Why clients of the method send no update, whatever its options: known before a round is done again to look for one."""
    entry = ALGORITHMS.get(target.experiment.algorithm.name)
    if entry is None or {"model", "gradient"} & {*entry.sends, *entry.may_send}:
        return None
    return f"clients of '{target.experiment.algorithm.name}' send no update of a network"


def update_seen(exchange: Exchange, target: Target) -> Seen:
    """The network that the client received, and by how much its reply moves it.

    Raises:
        Nothing: it received no whole network of the run's, or its reply moves none.
    """
    if "model" not in exchange.down.groups:
        raise Nothing("clients of this method are sent no network, so there is no update")
    received = sent_network(exchange.down, target.parts.world.architecture)
    if isinstance(received, str):
        raise Nothing(f"{received}, so nothing can be retraced")
    try:
        return seen(received, exchange.up)
    except InputError as error:
        raise Nothing(str(error)) from error


def again(desk: Desk, done: int, all_: int) -> None:
    """Tell that ``done`` of the run's rounds were done again."""
    desk.progress("rounds again", done, all_)
