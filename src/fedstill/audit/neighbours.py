"""Are distilled images nearer to the images they were made of than to others of the same class?

For a client and a class there are distilled images s, members M (the client's training images) and held-out images H,
which had no part in it. Of a distilled image let

    d_M(s) = E min_{x ∈ M'} ‖φ(s) − φ(x)‖,    d_H(s) likewise,    gap(s) = d_H(s) − d_M(s)

where M' and H' have n = min(|M|, |H|) images each: the nearest of more images is nearer. The smaller side is taken
whole, and the expectation over all draws of n from the larger one is exact, with no draw: of its m distances in rising
order the i-th is the least of a draw with probability C(m − i, n − 1) / C(m, n). A copy has d_M = 0; images that owe
nothing to M rather than H have gaps about zero.

*About*: all distilled images of a class are compared with one M and one H, so how far the mean gap strays by chance is
not told by how gaps differ among them. It is told by dealing the images of M ∪ H anew into sides of the same sizes, at
random: ``chance`` is the middle 95 % of the mean gaps so found, and p = (1 + deals with as large a gap) / (1 + deals).
That test is exact where members and held-out images come from one distribution, and that is what it assumes.
``interval`` is the bootstrap's, over the distilled images: how well the mean gap is known for this M and this H.

The idea of such a comparison is that of distances to closest records, training against hold-out (Platzer & Reutterer,
"Holdout-based empirical assessment of mixed-type synthetic data", Frontiers in Big Data 2021); the expectation and the
test are ours.

Symbols: φ a :class:`~fedstill.evaluate.features.Space`; in ``pixels`` it is the normalised image itself, as networks
see it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from scipy.special import gammaln
from torch import Tensor

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
    "the run; nothing is assumed of how images were distilled."
)

DEALS = 1000
FEWEST = 2
"""Members and held-out images of a class, below which there is nothing to deal."""
WORST = 12
_DEALT = 2**22  # distances of dealt sides that are held at a time

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Owned:
    """One client's images.

    Attributes:
        distilled: what it sent or what was distilled for it; soft labels count for their largest entry.
        members: what it trained on.
        held_out: images of the same kind that had no part in the run: its own test images where it has some.
    """

    distilled: Shard
    members: Shard
    held_out: Shard


class _Cell(NamedTuple):
    """One client's images of one class: distances of its distilled images, and how gaps come out by chance."""

    client: str
    number: int
    rows: NDArray[np.int64]
    """Of the distilled images in the client's set."""
    members: NDArray[np.int64]
    distances: Floats
    """[distilled, members + held-out]"""
    near: Floats
    far: Floats
    dealt: Floats
    """[deals], mean gaps."""


def neighbours(
    clients: Mapping[str, Owned],
    spaces: Sequence[Space],
    *,
    desk: Desk,
    deals: int = DEALS,
    worst: int = WORST,
) -> dict[str, Any]:
    """Gaps by space, client and class, and the pairs that are nearest to being copies.

    Args:
        clients: by name.
        spaces: in which distances are taken.
        desk: its seed decides how images are dealt.
        deals: how often.
        worst: pairs that are named.

    Returns:
        By space's name: ``images`` (distilled ones that were compared), ``gap`` (their mean), ``relative`` (in units of the
        mean d_H), ``interval``, ``chance``, ``p``; ``closer``, the share of images with d_M < d_H (half by chance); ``cells``,
        the same by ``client`` and ``class``, with ``size`` (n) and the mean ``distance`` (d_M) and ``held_out`` (d_H);
        ``worst``, pairs by rising ``ratio`` of the distance to the nearest of all members and d_H: ``client``, ``class``, rows
        ``distilled`` and ``member``. ``left_out`` counts distilled images of classes with fewer than :data:`FEWEST` images on
        a side.

    Raises:
        InputError: nothing at all can be compared.
    """
    found: dict[str, Any] = {}
    for done, space in enumerate(spaces):
        cells, left_out = [], 0
        for client, owned in clients.items():
            mine, missed = _cells(client, owned, space, desk=desk.at(space.name, client), deals=deals)
            cells += mine
            left_out += missed
        if not cells:
            raise InputError(
                f"neighbours: no class of any client has a distilled image, {FEWEST} images to train on and {FEWEST} that were "
                "held out, so nothing can be compared"
            )
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


def _cells(client: str, owned: Owned, space: Space, *, desk: Desk, deals: int) -> tuple[list[_Cell], int]:
    """Those that can be compared, and how many distilled images belong to none."""
    from scipy.spatial.distance import cdist

    if not len(owned.distilled) or not len(owned.members) or not len(owned.held_out):
        return [], len(owned.distilled)
    sides = (owned.distilled, owned.members, owned.held_out)
    labels = [hard_labels(side.labels).cpu().numpy() for side in sides]
    features = [space.features(side).astype(np.float64) for side in sides]
    cells, left_out = [], 0
    for number in range(len(owned.distilled.classes)):
        rows, members, held = (np.flatnonzero(each == number) for each in labels)
        if not len(rows):
            continue
        if min(len(members), len(held)) < FEWEST:
            left_out += len(rows)
            continue
        others = np.concatenate([features[1][members], features[2][held]])
        distances = cdist(features[0][rows], others)
        near, far, dealt = _dealt(distances, len(members), deals, desk.seed.at(number).numpy())
        cells.append(_Cell(client, number, rows, members, distances, near, far, dealt))
    return cells, left_out


def _dealt(distances: Floats, members: int, deals: int, draw: np.random.Generator) -> tuple[Floats, Floats, Floats]:
    """d_M and d_H of each distilled image, and the mean gap of each random deal of the columns into two sides.

    ``distances``: [distilled, members first, then held-out].
    """
    total = distances.shape[1]
    size = min(members, total - members)
    order = distances.argsort(1)
    rising = np.take_along_axis(distances, order, 1)
    weights = _weights(members, size), _weights(total - members, size)

    def expected(sides: NDArray[np.bool_]) -> tuple[Floats, Floats]:
        """Of deals [k, total] (true: a member), d_M and d_H [k, distilled]."""
        sorted_sides = sides[:, order]
        pair = []
        for mine, weight in ((sorted_sides, weights[0]), (~sorted_sides, weights[1])):
            rank = mine.cumsum(2) - 1
            pair.append(np.einsum("knt,nt->kn", np.where(mine, weight[np.maximum(rank, 0)], 0.0), rising))
        return pair[0], pair[1]

    truth = np.arange(total) < members
    near, far = (each[0] for each in expected(truth[None]))
    at_once = max(1, _DEALT // distances.size)
    gaps = []
    for start in range(0, deals, at_once):
        sides = draw.permuted(np.tile(truth, (min(at_once, deals - start), 1)), axis=1)
        mine, others = expected(sides)
        gaps.append((others - mine).mean(1))
    return near, far, np.concatenate(gaps) if gaps else np.empty(0)


def _weights(count: int, size: int) -> Floats:
    """[count]: the probability that the i-th least of ``count`` is the least of ``size`` drawn without replacement."""
    i = np.arange(1, count + 1)
    with np.errstate(divide="ignore"):
        ways = _log_binomial(count - i, size - 1) - _log_binomial(np.array([count]), size)
    return np.exp(ways)


def _log_binomial(n: NDArray[np.int64], k: int) -> Floats:
    possible = n >= k
    safe = np.where(possible, n, k)
    value: Floats = np.where(possible, gammaln(safe + 1) - gammaln(k + 1) - gammaln(safe - k + 1), -np.inf)
    return value


def _summary(cells: Sequence[_Cell], *, desk: Desk, worst: int) -> dict[str, Any]:
    counts = np.array([len(cell.rows) for cell in cells], np.float64)
    # cells are dealt independently of each other, so a deal of all is one of each
    dealt = np.stack([cell.dealt for cell in cells], 1) @ counts / counts.sum()
    near, far = (np.concatenate([getattr(cell, side) for cell in cells]) for side in ("near", "far"))
    return _figures(near, far, dealt, desk) | {
        "cells": [
            {
                "client": cell.client,
                "class": cell.number,
                "size": min(len(cell.members), cell.distances.shape[1] - len(cell.members)),
                "distance": float(cell.near.mean()),
                "held_out": float(cell.far.mean()),
            }
            | _figures(cell.near, cell.far, cell.dealt, desk.at(cell.client, cell.number))
            for cell in cells
        ],
        "worst": _worst(cells, worst),
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


def _worst(cells: Sequence[_Cell], count: int) -> list[dict[str, Any]]:
    pairs: list[dict[str, Any]] = []
    for cell in cells:
        mine = cell.distances[:, : len(cell.members)]
        nearest = mine.argmin(1)
        for row, column, far in zip(range(len(mine)), nearest, cell.far, strict=True):
            distance = float(mine[row, column])
            pairs.append(
                {
                    "client": cell.client,
                    "class": cell.number,
                    "distilled": int(cell.rows[row]),
                    "member": int(cell.members[column]),
                    "distance": distance,
                    "ratio": distance / float(far) if far > 0 else 1.0,
                }
            )
    return sorted(pairs, key=lambda pair: pair["ratio"])[:count]
