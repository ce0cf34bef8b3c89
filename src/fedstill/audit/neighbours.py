"""Are distilled images nearer to the images they were made of than to others of the same class?

For a client and a class there are distilled images s, members M (the client's training images) and held-out images H,
which had no part in it. Of a distilled image let

    d_M(s) = E min_{x ∈ M'} ‖φ(s) − φ(x)‖,    d_H(s) likewise,    gap(s) = d_H(s) − d_M(s)

where M' and H' have n = min(|M|, |H|) images each: the nearest of more images is nearer. The smaller side is taken
whole, and the expectation over all draws of n from the larger one is exact, with no draw: of its m distances in rising
order the i-th is the least of a draw with probability C(m − i, n − 1) / C(m, n). A copy has d_M = 0; images that owe
nothing to M rather than H have gaps about zero.

*About*: all distilled images of a class are compared with one M and one H, so how far the mean gap strays by chance is
not told by how gaps differ among them. It is told by dealing the images anew, at random, into sides of the same sizes
(:mod:`fedstill.audit.dealing`), those of all clients that share held-out images at once: ``chance`` is the middle 95 % of
the mean gaps so found, and p = (1 + deals with as large a gap) / (1 + deals). That test is exact where members and
held-out images come from one distribution, and that is what it assumes. ``interval`` is the bootstrap's, over the distilled
images: how well the mean gap is known for this M and this H.

The *nearest* pair of all has a small distance by chance, too, the smaller the more pairs there are: so beside the least ratio of
a distance to d_H stands the middle 95 % of what it is in the same deals. A copy has 0; within that range, and far from 0, the
nearest pair shows nothing.

The idea of such a comparison is that of distances to closest records, training against hold-out (Platzer & Reutterer,
"Holdout-based empirical assessment of mixed-type synthetic data", Frontiers in Big Data 2021); the expectation and the
test are ours.

Symbols: φ a :class:`~fedstill.evaluate.features.Space`; in ``pixels`` it is the normalised image itself, as networks
see it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from fedstill.audit.dealing import Dealt, Seat, dealt, ratio
from fedstill.audit.likeness import pixels_of
from fedstill.audit.resampling import mean_interval, middle
from fedstill.data.shard import Shard, hard_labels
from fedstill.errors import InputError
from fedstill.evaluate.features import Space
from fedstill.rounds import Desk

__all__ = ["ASSUMPTIONS", "CITATION", "Owned", "neighbours", "pair_images"]

CITATION = (
    "after Platzer & Reutterer, Holdout-based empirical assessment of mixed-type synthetic data, Front. Big Data 2021"
)
ASSUMPTIONS = (
    "Held-out images are drawn from the same distribution as the client's training images of the class and had no part in "
    "the run, and so are those of all clients that share held-out images; nothing is assumed of how images were distilled."
)

DEALS = 1000
FEWEST = 2
"""Members and held-out images of a class, below which there is nothing to deal."""
WORST = 12

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Owned:
    """One client's images.

    Attributes:
        distilled: what it sent or what was distilled for it; soft labels count for their largest entry.
        members: what it trained on.
        held_out: images of the same kind that had no part in the run, and with which no other client is compared.
        shares: name of held-out images with which others are compared, too; None: there are none.
    """

    distilled: Shard
    members: Shard
    held_out: Shard
    shares: str | None = None


class _Side(NamedTuple):
    """Images of one kind: what they are in the space, and their classes."""

    features: Floats
    labels: NDArray[np.int64]

    def of(self, number: int) -> NDArray[np.int64]:
        """Rows of a class."""
        return np.flatnonzero(self.labels == number)


class _Cell(NamedTuple):
    """One client's images of one class: distances of its distilled images, and how these come out by chance."""

    client: str
    number: int
    rows: NDArray[np.int64]
    """Of the distilled images in the client's set."""
    members: NDArray[np.int64]
    size: int
    distances: Floats
    """[distilled, members]"""
    dealt: Dealt


def neighbours(
    clients: Mapping[str, Owned],
    spaces: Sequence[Space],
    *,
    desk: Desk,
    shared: Mapping[str, Shard] = MappingProxyType({}),
    deals: int = DEALS,
    worst: int = WORST,
) -> dict[str, Any]:
    """Gaps by space, client and class, and the pairs that are nearest to being copies.

    Args:
        clients: by name.
        spaces: in which distances are taken.
        desk: its seed decides how images are dealt.
        shared: held-out images of several clients, by the name that is their ``shares``.
        deals: how often.
        worst: pairs that are named.

    Returns:
        By space's name: ``images`` (distilled ones that were compared), ``gap`` (their mean), ``relative`` (in units of the
        mean d_H), ``interval``, ``chance``, ``p``; ``closer``, the share of images with d_M < d_H (half by chance); ``cells``,
        the same by ``client`` and ``class``, with ``size`` (n) and the mean ``distance`` (d_M) and ``held_out`` (d_H);
        ``worst``, pairs by rising ``ratio`` of the distance to the nearest of all members and d_H: ``client``, ``class``, rows
        ``distilled`` and ``member``; ``nearest``, the least ``ratio`` with its ``chance``. ``left_out`` counts
        distilled images of classes with fewer than :data:`FEWEST` images on a side.

    Raises:
        InputError: nothing at all can be compared.
    """
    found: dict[str, Any] = {}
    for done, space in enumerate(spaces):
        cells: list[_Cell] = []
        left_out = 0
        for name, together in _tables(clients):
            common = None if together[0][1].shares is None else shared[together[0][1].shares]
            mine, missed = _cells(together, common, space, desk=desk.at(space.name, *name), deals=deals)
            cells += mine
            left_out += missed
        if not cells:
            raise InputError(
                f"neighbours: no class of any client has a distilled image, {FEWEST} images to train on and {FEWEST} that were "
                "held out, so nothing can be compared"
            )
        order = {client: place for place, client in enumerate(clients)}
        cells.sort(key=lambda cell: (order[cell.client], cell.number))
        found[space.name] = _summary(cells, desk=desk.at(space.name), worst=worst) | {"left_out": left_out}
        desk.progress("neighbours", done + 1, len(spaces))
    return found


def pair_images(clients: Mapping[str, Owned], worst: Sequence[Mapping[str, Any]]) -> Float[Tensor, "pairs 2 c h w"]:
    """The images of the pairs that :func:`neighbours` names as ``worst``: distilled and nearest member, pixels in 0 … 1.

    Raises:
        InputError: there is none.
    """
    if not worst:
        raise InputError("neighbours: there is no pair to show")
    pairs = [
        torch.stack(
            [
                pixels_of(owned.distilled.images[pair["distilled"]][None])[0],
                pixels_of(owned.members.images[pair["member"]][None])[0],
            ]
        )
        for pair in worst
        for owned in [clients[pair["client"]]]
    ]
    return torch.stack(pairs)


def _tables(clients: Mapping[str, Owned]) -> Iterator[tuple[tuple[str, str], list[tuple[str, Owned]]]]:
    """Clients that are dealt together, and a name of theirs: those that share held-out images, and every other by itself."""
    tables: dict[tuple[str, str], list[tuple[str, Owned]]] = {}
    for client, owned in clients.items():
        if len(owned.distilled):
            name = ("client", client) if owned.shares is None else ("shared", owned.shares)
            tables.setdefault(name, []).append((client, owned))
    yield from tables.items()


def _cells(
    together: Sequence[tuple[str, Owned]], common: Shard | None, space: Space, *, desk: Desk, deals: int
) -> tuple[list[_Cell], int]:
    """Those that can be compared, and how many distilled images belong to none."""
    sides = {
        client: [_side(each, space) for each in (owned.distilled, owned.members, owned.held_out)]
        for client, owned in together
    }
    of_all = None if common is None else _side(common, space)
    cells, left_out = [], 0
    for number in range(len(together[0][1].distilled.classes)):
        table = [] if of_all is None else [of_all.features[of_all.of(number)]]
        shared = np.arange(sum(map(len, table)))
        width, seated = len(shared), []
        for client, (distilled, members, held) in sides.items():
            rows, mine, own = distilled.of(number), members.of(number), held.of(number)
            if not len(rows):
                continue
            if min(len(mine), len(own) + len(shared)) < FEWEST:
                left_out += len(rows)
                continue
            columns = width + np.arange(len(mine) + len(own))
            width += len(columns)
            table += [members.features[mine], held.features[own]]
            others = np.concatenate([shared, columns[len(mine) :]])
            seated.append((client, rows, mine, columns[: len(mine)], others))
        if seated:
            cells += _dealt(sides, np.concatenate([each for each in table if len(each)]), number, seated, deals, desk)
    return cells, left_out


def _dealt(
    sides: Mapping[str, Sequence[_Side]],
    table: Floats,
    number: int,
    seated: Sequence[tuple[str, NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]],
    deals: int,
    desk: Desk,
) -> list[_Cell]:
    """``seated``: client, its distilled rows and member rows of the class, and columns of its members and of the others."""
    from scipy.spatial.distance import cdist

    seats = [
        Seat(cdist(sides[client][0].features[rows], table), members, others)
        for client, rows, _, members, others in seated
    ]
    found = dealt(seats, deals, desk.seed.at(number).numpy())
    return [
        _Cell(client, number, rows, mine, min(len(members), len(others)), seat.distances[:, members], each)
        for (client, rows, mine, members, others), seat, each in zip(seated, seats, found, strict=True)
    ]


def _side(shard: Shard, space: Space) -> _Side:
    labels = hard_labels(shard.labels).cpu().numpy()
    if not len(shard):
        return _Side(np.empty((0, 0)), labels)
    return _Side(space.features(shard).astype(np.float64), labels)


def _summary(cells: Sequence[_Cell], *, desk: Desk, worst: int) -> dict[str, Any]:
    counts = np.array([len(cell.rows) for cell in cells], np.float64)
    # what is dealt together has one deal in the same place; what is not is dealt independently, so any place will do
    gaps = np.stack([cell.dealt.gaps for cell in cells], 1) @ counts / counts.sum()
    ratios = np.stack([cell.dealt.ratios for cell in cells], 1).min(1)
    near, far = (np.concatenate([getattr(cell.dealt, side) for cell in cells]) for side in ("near", "far"))
    pairs = _pairs(cells)
    return _figures(near, far, gaps, desk) | {
        "cells": [
            {
                "client": cell.client,
                "class": cell.number,
                "size": cell.size,
                "distance": float(cell.dealt.near.mean()),
                "held_out": float(cell.dealt.far.mean()),
            }
            | _figures(cell.dealt.near, cell.dealt.far, cell.dealt.gaps, desk.at(cell.client, cell.number))
            for cell in cells
        ],
        "worst": pairs[:worst],
        "nearest": {
            "ratio": pairs[0]["ratio"],
            "chance": middle(ratios) if len(ratios) else None,
        },
    }


def _figures(near: Floats, far: Floats, dealt: Floats, desk: Desk) -> dict[str, Any]:
    gaps = far - near
    gap = float(gaps.mean())
    slack = 1e-12 * float(np.abs(far).mean())  # a deal that is the truth again may differ by rounding
    return {
        "images": len(gaps),
        "gap": gap,
        "relative": gap / float(far.mean()) if far.mean() > 0 else None,
        "interval": mean_interval(gaps, seed=desk.seed.at("interval")),
        "chance": middle(dealt) if len(dealt) else None,
        "p": (1 + int((dealt >= gap - slack).sum())) / (1 + len(dealt)) if len(dealt) else None,
        "closer": float((gaps > 0).mean() + (gaps == 0).mean() / 2),
    }


def _pairs(cells: Sequence[_Cell]) -> list[dict[str, Any]]:
    """Every distilled image with the nearest member, by rising ratio."""
    pairs: list[dict[str, Any]] = []
    for cell in cells:
        nearest = cell.distances.argmin(1)
        distances = cell.distances.min(1)
        ratios = ratio(distances, cell.dealt.far)
        pairs += [
            {
                "client": cell.client,
                "class": cell.number,
                "distilled": int(row),
                "member": int(cell.members[column]),
                "distance": float(distance),
                "ratio": float(each),
            }
            for row, column, distance, each in zip(cell.rows, nearest, distances, ratios, strict=True)
        ]
    return sorted(pairs, key=lambda pair: pair["ratio"])
