"""Nearest neighbours on a run: each client's distilled images, its training images, and images that nobody trained on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fedstill.algorithms.union import shard_of
from fedstill.attacked import Nothing, Target
from fedstill.audit.neighbours import ASSUMPTIONS, CITATION, Owned, pair_images
from fedstill.audit.neighbours import neighbours as compare
from fedstill.data.shard import Shard
from fedstill.errors import InputError
from fedstill.evaluate.features import pixel_space, random_space
from fedstill.folder import AUDITED
from fedstill.kept import virtual_sets
from fedstill.output import save_pairs
from fedstill.rounds import Desk

__all__ = ["Neighbours", "neighbours", "server_sets"]

_COMMON = "common"


@dataclass(frozen=True, kw_only=True)
class Neighbours:
    """Nearest-neighbour leakage.

    Attributes:
        worst: pairs that are named and shown, in each feature space.
    """

    worst: int = 12

    def check(self) -> None:
        """All that can be refused before the run is opened.

        Raises:
            InputError: no pair is to be shown.
        """
        if self.worst < 1:
            raise InputError(f"neighbours: worst = {self.worst}: at least one pair is shown")


def neighbours(asked: Neighbours, target: Target, desk: Desk) -> dict[str, Any]:
    """Gaps as :func:`fedstill.audit.neighbours.neighbours` gives them, by feature space, and pictures of the worst pairs.

    Raises:
        Nothing: no client has distilled images, or they can be compared with nothing.
        RunError: the disk refuses a picture.
    """
    distilled, source = _distilled(target)
    like = target.parts.data.train
    owned = {client: _owned(target, client, each) for client, each in distilled.items()}
    spaces = {
        "pixels": pixel_space(),
        "random": random_space(channels=like.channels, size=like.size, device=desk.device),
    }
    try:
        found = compare(
            owned, list(spaces.values()), shared={_COMMON: target.parts.data.test}, desk=desk, worst=asked.worst
        )
    except InputError as error:
        raise Nothing(str(error)) from error
    pictures = []
    for short, space in spaces.items():
        pairs = pair_images(owned, found[space.name]["worst"])
        pictures.append(f"{AUDITED}/neighbours-{short}.png")
        save_pairs(target.run / pictures[-1], pairs[:, 0], pairs[:, 1], ("distilled", "nearest"))
    return {
        "method": target.experiment.algorithm.name,
        "round": target.rounds,
        "source": source,
        "clients": len(owned),
        "citation": CITATION,
        "assumptions": ASSUMPTIONS,
        "spaces": found,
        "pictures": pictures,
    }


def server_sets(target: Target) -> dict[str, Shard]:
    """Clients' distilled images as the server's last state holds them; a set that is of no single client is left out."""
    sets = target.state.members("synthetic")
    return {client: shard_of(sets[client], target.parts.world) for client in target.parts.sites if client in sets}


def _owned(target: Target, client: str, distilled: Shard) -> Owned:
    """A client's images. Held-out are those that :func:`fedstill.attacked.held_out` has: the common ones are shared."""
    site = target.parts.sites[client]
    alone = len(site.test) and target.experiment.partition.kind == "domain"
    return Owned(distilled, site.train, site.test, None if alone else _COMMON)


def _distilled(target: Target) -> tuple[Mapping[str, Shard], str]:
    """By client, and who holds them."""
    if sets := server_sets(target):
        return sets, "server"
    virtual = virtual_sets(target.run, target.experiment, target.parts)
    if virtual is None:
        name = target.experiment.algorithm.name
        if not target.experiment.algorithm.may_distil:
            raise Nothing(f"'{name}' distils no images")
        raise Nothing(f"after round {target.rounds} the server holds no client's distilled images")
    if virtual.missing:
        raise Nothing(virtual.missing)
    return virtual.own, "clients"
