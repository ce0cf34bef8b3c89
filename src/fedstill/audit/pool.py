"""Which images a shadow federation may train on, and which it draws.

Every client has a pool of its own: its training images, and others of the same classes (and domains) that nobody trained on. Of
each class as many of both are *in play*; a shadow federation draws half of these for the client. So

* whether an image in play was trained on is a fair coin, in every shadow federation and, as the others are drawn at random, in
  the target: members and others are balanced by client and class;
* an image that a client did not draw is in no other client's hands: what another client sends says nothing of it directly;
* client sizes and class histograms are those of the target.

Training images for which there is no counterpart are not in play: every shadow federation trains on them. That is an attacker
who knows them; the fewer images there are that nobody trained on, the more of these.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Int
from numpy.typing import NDArray

from fedstill.data.shard import Shard
from fedstill.seeds import Seed

__all__ = ["Labelled", "Pool", "build_pool"]

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Labelled:
    """Images, and the stratum (class, or class and domain) of each, [n]."""

    shard: Shard
    strata: Rows


@dataclass(frozen=True)
class Pool:
    """All images of all clients' pools.

    Attributes:
        clients: names.
        shard: the images, hard labels.
        owner: position in ``clients`` of the one whose pool each image is in, [n].
        strata: of each image, [n].
        member: the target trained on it, [n].
        played: it is in play, [n].
    """

    clients: tuple[str, ...]
    shard: Shard
    owner: Int[Rows, " n"]
    strata: Int[Rows, " n"]
    member: Bool[NDArray[np.bool_], " n"]
    played: Bool[NDArray[np.bool_], " n"]

    def draw(self, seed: Seed) -> Bool[NDArray[np.bool_], " n"]:
        """Which images a federation trains on: of every client's images in play half in each stratum, and those not in play."""
        draw = seed.numpy()
        inside = ~self.played
        for owner in range(len(self.clients)):
            mine = self.played & (self.owner == owner)
            for stratum in np.unique(self.strata[mine]):
                rows = draw.permutation(np.flatnonzero(mine & (self.strata == stratum)))
                inside[rows[: len(rows) // 2]] = True
        return inside

    def held(self, inside: Bool[NDArray[np.bool_], " n"], client: str) -> Shard:
        """What ``client`` trains on in a federation that trains on ``inside``."""
        rows = np.flatnonzero(inside & (self.owner == self.clients.index(client)))
        return self.shard.take(torch.from_numpy(rows))

    def of(self, client: str | None) -> Bool[NDArray[np.bool_], " n"]:
        """Images in play of ``client``'s pool, or of all."""
        return self.played if client is None else self.played & (self.owner == self.clients.index(client))


def build_pool(held: Mapping[str, Labelled], spare: Sequence[Labelled], seed: Seed) -> Pool:
    """Pools by client.

    Args:
        held: what each client trains on.
        spare: images that nobody trains on; those of the first are taken first.
        seed: which of them become whose, and which training images are in play where the spare ones do not suffice.
    """
    clients = tuple(held)
    strata = np.concatenate([each.strata for each in held.values()])
    owner = np.repeat(np.arange(len(clients)), [len(each.strata) for each in held.values()])
    spare_strata = np.concatenate([each.strata for each in spare])
    rank = np.repeat(np.arange(len(spare)), [len(each.strata) for each in spare])
    spare_owner = np.full(len(spare_strata), -1)
    played = np.zeros(len(strata), np.bool_)
    for stratum in np.unique(strata):
        at = seed.at(stratum)
        free = at.at("spare").numpy().permutation(np.flatnonzero(spare_strata == stratum))
        free = free[np.argsort(rank[free], kind="stable")]
        wanted = np.bincount(owner[strata == stratum], minlength=len(clients))
        shares = _shared(wanted, len(free))
        spare_owner[free[: shares.sum()]] = np.repeat(np.arange(len(clients)), shares)
        for position, share in enumerate(shares):
            mine = np.flatnonzero((strata == stratum) & (owner == position))
            played[at.at("played", clients[position]).numpy().permutation(mine)[:share]] = True
    taken = spare_owner >= 0
    shard = Shard.join([*(each.shard for each in held.values()), *(each.shard for each in spare)])
    rows = np.concatenate([np.arange(len(strata)), len(strata) + np.flatnonzero(taken)])
    return Pool(
        clients=clients,
        shard=shard.take(torch.from_numpy(rows)),
        owner=np.concatenate([owner, spare_owner[taken]]).astype(np.int64),
        strata=np.concatenate([strata, spare_strata[taken]]).astype(np.int64),
        member=np.concatenate([np.ones(len(strata), np.bool_), np.zeros(taken.sum(), np.bool_)]),
        played=np.concatenate([played, np.ones(taken.sum(), np.bool_)]),
    )


def _shared(wanted: Rows, there: int) -> Rows:
    """``wanted`` for each, or shares of ``there`` in proportion to it where that is less; largest remainders, then order."""
    if wanted.sum() <= there:
        return wanted.astype(np.int64)
    ideal: NDArray[np.float64] = wanted * (there / wanted.sum())
    shares: Rows = np.floor(ideal).astype(np.int64)
    left = there - int(shares.sum())
    shares[np.argsort(shares - ideal, kind="stable")[:left]] += 1
    return shares
