"""Clients' images compared and mapped, as ``evaluation.json`` holds it.

All images that a client holds count, those too that it keeps from training: what is asked is how unlike the owners are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedstill.data.shard import Shard
from fedstill.errors import InputError
from fedstill.evaluate.embedding import tsne
from fedstill.evaluate.features import Space
from fedstill.evaluate.mmd import FEWEST, discrepancies
from fedstill.rounds import Desk

__all__ = ["ENOUGH", "Held", "compare", "features_of", "place", "table_of"]

MOST_COMPARED, ENOUGH = 250, 20
"""Where nobody says how many: images of each client that are compared at most; and fewest that a client must hold."""

MOST_PLACED, MOST_POINTS = 100, 3000
"""Where nobody says how many: images of each client, and of all together, that are placed on a map."""

Held = Mapping[str, Sequence[int]]


def compare(train: Shard, held: Held, space: Space, *, images: int | None, desk: Desk) -> dict[str, Any]:
    """MMD² of every pair of clients, by equally many images of each; clients that hold fewer are left out and named.

    Args:
        train: everybody's images.
        held: rows of it, by client.
        space: in which they are compared.
        images: of each client; None: as many as all clients have that hold at least :data:`ENOUGH`.
        desk: ``desk.seed`` decides which images.

    Raises:
        InputError: too few images or clients, all images alike, or features that are not finite.
    """
    least = ENOUGH if images is None else images
    if least < FEWEST:
        raise InputError(f"--images {images}: MMD takes {FEWEST} images of a client or more")
    taken = [client for client, rows in held.items() if len(rows) >= least]
    if len(taken) < 2:
        raise InputError(
            f"--mmd: {len(taken)} of {len(held)} clients hold {least} images or more, and two are needed: "
            f"give a smaller --images, {FEWEST} at least"
        )
    each = min(MOST_COMPARED, *(len(held[client]) for client in taken)) if images is None else images
    samples = features_of(train, space, _drawn(held, taken, each, desk), desk)
    found = discrepancies(samples, progress=lambda done, total: desk.progress("compare clients", done, total))
    return {
        "features": space.name,
        "images": found.n,
        "bandwidth": found.bandwidth,
        "clients": list(found.clients),
        "squared": table_of(found.squared),
        "error": table_of(found.error),
        "halves": [
            {"client": client, "squared": half.squared, "error": half.error, "images": half.n}
            for client, half in zip(found.clients, found.halves, strict=False)
        ],
        "left_out": [
            {"client": client, "reason": f"holds {len(rows)} images, and {least} are needed"}
            for client, rows in held.items()
            if client not in taken
        ],
    }


def place(train: Shard, held: Held, space: Space, *, images: int | None, desk: Desk) -> dict[str, Any]:
    """A map of clients' images; each point with its client and class.

    Args:
        train, held, space: as in :func:`compare`.
        images: of each client, which may have fewer; None: 100, and fewer where there are many clients.
        desk: ``desk.seed`` decides which images, and the map.

    Raises:
        InputError: too few images, all alike, or features that are not finite.
    """
    each = max(1, min(MOST_PLACED, MOST_POINTS // len(held))) if images is None else images
    rows = _drawn(held, list(held), each, desk)
    samples = features_of(train, space, rows, desk)
    desk.progress("t-SNE", 0, 1)
    found = tsne(np.concatenate(list(samples.values())), seed=desk.seed.at("tsne"))
    desk.progress("t-SNE", 1, 1)
    owners = [(client, train.classes[int(train.labels[row])]) for client, chosen in rows.items() for row in chosen]
    return {
        "features": space.name,
        "perplexity": found.perplexity,
        "points": [
            {"client": client, "class": name, "x": round(x, 3), "y": round(y, 3)}
            for (client, name), (x, y) in zip(owners, found.points.tolist(), strict=True)
        ],
    }


def _drawn(held: Held, clients: Sequence[str], each: int, desk: Desk) -> dict[str, list[int]]:
    """``each`` of every client's rows, or all where it has fewer, in random order; fewer are the first of more."""
    return {
        client: desk.seed.at("rows", client).numpy().permutation(np.asarray(held[client], np.int64))[:each].tolist()
        for client in clients
    }


def features_of(train: Shard, space: Space, rows: Held, desk: Desk) -> dict[str, NDArray[np.float32]]:
    """Feature vectors by client, [n, d].

    Raises:
        InputError: some are not finite.
    """
    found = {}
    for client, chosen in rows.items():
        found[client] = space.features(train.take(chosen))
        if not np.isfinite(found[client]).all():
            raise InputError(
                f"{space.name}: features of images of '{client}' are not finite: take others, by --features"
            )
        desk.progress("features", len(found), len(rows))
    return found


def table_of(values: NDArray[np.float64]) -> list[list[float | None]]:
    """Plain numbers; null on the diagonal."""
    return [[value if math.isfinite(value) else None for value in row] for row in values.tolist()]
