"""The numbers of docs/results/heterogeneity.md, from the runs of heterogeneity.toml: does distilling make clients less alike?

    python experiments/fedlgd/heterogeneity.py runs/heterogeneity/*-[0-9]

A line a run and feature space: the mean over pairs of clients of the squared MMD by real and by virtual images, five times.

* ``equal``: what ``fedstill evaluate --mmd`` reports: unbiased, equal n, σ the median distance of both sides' images together;
* ``real σ``, ``virtual σ``: one draw of real images, with the median distance of one side's images;
* ``biased``: with the terms i = j, still of equal n;
* ``unequal``: biased, a thousand real images against the few virtual ones, each side with a median distance of its own.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Mapping
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import cdist

from fedstill.algorithms.virtual import kept_set
from fedstill.data.shard import Shard
from fedstill.engines.memory import Memory
from fedstill.evaluate.distilled import compare_distilled
from fedstill.evaluate.features import Space, pixel_space, random_space
from fedstill.evaluate.mmd import discrepancies, median_distance
from fedstill.experiment import Experiment
from fedstill.rounds import Desk
from fedstill.runtime import prepared
from fedstill.seeds import Seed

DESK = Desk(Seed(("evaluate",))).at("images")
MOST = 1000
"""Real images of a client in ``unequal``: what more of them would change lies below 1 / MOST."""

Features = Mapping[str, NDArray[np.float32]]


def main(folders: list[str]) -> None:
    spaces: dict[str, Space] = {}
    for folder in map(Path, folders):
        experiment = Experiment.read(folder / "experiment.toml")
        with prepared(experiment.threads):
            parts = experiment.build()
            train, held = parts.data.train, parts.partition.clients
            kept = {client: kept_set(Memory(folder / "memory").read(client, 2), parts.world) for client in held}
            own = {client: shard for client, shard in kept.items() if shard is not None}
            if not spaces:
                spaces = {
                    "random": _kept(random_space(channels=train.channels, size=train.size)),
                    "pixels": pixel_space(),
                }
            for name, space in spaces.items():
                found = compare_distilled(train, held, own, space, images=None, desk=DESK)
                line = {"run": folder.name, "features": name, "images": found["images"], "equal": found["change"]}
                print(json.dumps(line | _others(train, held, own, space, found["bandwidth"])), flush=True)


def _others(
    train: Shard, held: Mapping[str, Any], own: Mapping[str, Shard], space: Space, both: float
) -> dict[str, tuple[float, float]]:
    real = {
        client: space.features(train.take(np.random.default_rng(0).permutation(rows)[:MOST].tolist()))
        for client, rows in held.items()
    }
    virtual = {client: space.features(shard) for client, shard in own.items()}
    mix = np.random.default_rng(1)
    virtual = {client: rows[mix.permutation(len(rows))] for client, rows in virtual.items()}
    as_many = {client: rows[: len(virtual[client])] for client, rows in real.items()}

    def two(
        first: Features, second: Features, estimate: Callable[[Features, float], float], σ: tuple[float, float]
    ) -> Any:
        return estimate(first, σ[0]), estimate(second, σ[1])

    widths = median_distance(as_many), median_distance(virtual)
    return {
        "real σ": two(as_many, virtual, _unbiased, (widths[0], widths[0])),
        "virtual σ": two(as_many, virtual, _unbiased, (widths[1], widths[1])),
        "biased": two(as_many, virtual, _biased, (both, both)),
        "unequal": two(real, virtual, _biased, (median_distance(real), widths[1])),
    }


def _unbiased(samples: Features, bandwidth: float) -> float:
    return float(np.nanmean(discrepancies(samples, bandwidth=bandwidth).squared))


def _biased(samples: Features, bandwidth: float) -> float:
    """Mean over pairs of the V-statistic, which keeps the terms i = j."""

    def mean(x: NDArray[np.float32], y: NDArray[np.float32]) -> float:
        return float(np.exp(cdist(x, y, "sqeuclidean") / (-2 * bandwidth**2)).mean())

    own = {client: mean(rows, rows) for client, rows in samples.items()}
    return float(np.mean([own[a] + own[b] - 2 * mean(samples[a], samples[b]) for a, b in combinations(samples, 2)]))


def _kept(space: Space) -> Space:
    """The same, each shard's features taken once: settings of one seed share their real images."""
    known: dict[bytes, NDArray[np.float32]] = {}

    def features(shard: Shard) -> NDArray[np.float32]:
        key = hashlib.sha256(shard.images.contiguous().numpy().tobytes()).digest()
        if key not in known:
            known[key] = space.features(shard)
        return known[key]

    return Space(space.name, features)


if __name__ == "__main__":
    main(sys.argv[1:])
