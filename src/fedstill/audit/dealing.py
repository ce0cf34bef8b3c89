"""Dealing images anew into sides of the same sizes, and the expected least distance to a side.

Clients that are compared with the *same* held-out images are dealt together. Of one class let client i have members M_i and
held-out images T_i of its own, and let H be held-out images of all: the images of M_1 ∪ T_1 ∪ … ∪ M_K ∪ T_K ∪ H are
shuffled, each of these parts gets as many as it had, and client i is compared with its new M_i on one side, its new T_i and
the new H on the other. Were every client dealt by itself, the H that all share would be another for each, and the mean over
clients would seem to vary less by chance than it does.

That members and held-out images of each client come from one distribution, which the test takes for granted, makes the images
of all of these clients exchangeable, since all share H. So the test is exact for any number of clients.

The same deals tell how near the nearest member is by chance. An image that was copied is on the members' side in some of
them, the more the larger that side is, and there the pair is as near as it is: copies stretch the range downwards, to themselves.
(Deals of the held-out images alone would not, but their nearest is the same few images over and over, and the range is far
too narrow.)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln

__all__ = ["Dealt", "Seat", "dealt", "ratio", "weights"]

_DEALT = 2**22  # distances of dealt sides that are held at a time

Floats = NDArray[np.float64]
Columns = NDArray[np.int64]


class Seat(NamedTuple):
    """One client's distilled images of a class, and which of the images on the table are its own.

    Attributes:
        distances: [distilled, images on the table].
        members, held_out: columns.
    """

    distances: Floats
    members: Columns
    held_out: Columns


class Dealt(NamedTuple):
    """Of one seat: distances as they are, and what comes of deals.

    Attributes:
        near, far: d_M and d_H of each distilled image.
        gaps: [deals], mean gaps.
        ratios: [deals], the least distance to any image in the members' place, in units of d_H, of all distilled images.
    """

    near: Floats
    far: Floats
    gaps: Floats
    ratios: Floats


def dealt(seats: Sequence[Seat], deals: int, draw: np.random.Generator) -> list[Dealt]:
    """Of each seat at one table, whose images are dealt ``deals`` times; the k-th deal is the same one for all seats."""
    total = seats[0].distances.shape[1]
    largest = max([total, *(len(seat.distances) * max(len(seat.members), len(seat.held_out)) for seat in seats)])
    at_once = max(1, _DEALT // largest)
    gaps: list[list[Floats]] = [[] for _ in seats]
    ratios: list[list[Floats]] = [[] for _ in seats]
    for start in range(0, deals, at_once):
        orders = draw.permuted(np.tile(np.arange(total), (min(at_once, deals - start), 1)), axis=1)
        for place, seat in enumerate(seats):
            near, far, nearest = _sides(seat.distances, orders[:, seat.members], orders[:, seat.held_out])
            gaps[place].append((far - near).mean(1))
            ratios[place].append(ratio(nearest, far).min(1))
    truth = [_sides(seat.distances, seat.members[None], seat.held_out[None]) for seat in seats]
    return [
        Dealt(near[0], far[0], _joined(gaps[place]), _joined(ratios[place]))
        for place, (near, far, _) in enumerate(truth)
    ]


def ratio(distance: Floats, far: Floats) -> Floats:
    """Distances in units of d_H; 1 where that is 0, as nothing is nearer than anything there."""
    return np.divide(distance, far, out=np.ones_like(far), where=far > 0)


def weights(count: int, size: int) -> Floats:
    """[count]: the probability that the i-th least of ``count`` is the least of ``size`` drawn without replacement."""
    i = np.arange(1, count + 1)
    with np.errstate(divide="ignore"):
        ways = _log_binomial(count - i, size - 1) - _log_binomial(np.array([count]), size)
    return np.exp(ways)


def _sides(distances: Floats, members: Columns, held_out: Columns) -> tuple[Floats, Floats, Floats]:
    """Of deals [deals, images]: d_M, d_H, and the distance to the nearest of all members, each [deals, distilled]."""
    size = min(members.shape[1], held_out.shape[1])
    near, nearest = _least(distances, members, size)
    far, _ = _least(distances, held_out, size)
    return near, far, nearest


def _least(distances: Floats, sides: Columns, size: int) -> tuple[Floats, Floats]:
    """[deals, distilled]: the expected least of ``size`` of the distances to each side [deals, images], and the least of all."""
    found = distances[:, sides]  # [distilled, deals, images]
    if sides.shape[1] == size:
        least = found.min(2).T
        return least, least
    found.sort(axis=2)
    return (found @ weights(sides.shape[1], size)).T, found[:, :, 0].T


def _joined(pieces: Sequence[Floats]) -> Floats:
    return np.concatenate(pieces) if pieces else np.empty(0)


def _log_binomial(n: NDArray[np.int64], k: int) -> Floats:
    possible = n >= k
    safe = np.where(possible, n, k)
    value: Floats = np.where(possible, gammaln(safe + 1) - gammaln(k + 1) - gammaln(safe - k + 1), -np.inf)
    return value
