"""The tables of docs/results/heterogeneity.md, from the runs of heterogeneity.toml: does distilling make clients less alike?

    python experiments/fedlgd/heterogeneity.py runs/heterogeneity/*-[0-9]

A row for each feature space, setting (a folder's name without its seed) and estimator: the squared MMD of clients, mean over
pairs, by real and by virtual images; their ratio; its intervals of 95 % over seeds and over clients, by the jackknife.

* ``unbiased``: what ``fedstill evaluate --mmd`` reports: n images a client on both sides, one kernel;
* ``other seeds``: the same, but each kernel mean, a client's with itself too, is between images of two seeds. Images of one
  distillation are no independent draws, those of two are: nothing has to be subtracted, and nothing is left over;
* ``real σ``, ``virtual σ``: as that, with the median distance of one side's images as σ instead of both sides';
* ``biased``: with the terms i = j;
* ``unequal``: biased, a thousand real images of a client against its n virtual ones, each side with a σ of its own.

Below the table, a line for each setting:

* ``alike``: unbiased MMD² of virtual images that one client made from two seeds, mean over clients, and its interval over them:
  zero, were images of one distillation independent draws;
* ``slack``: by how much they can push ``unbiased`` down;
* ``loss``: of distribution matching (Eq. 1) against 256 real images a class, mean over clients: how far it got;
* ``n37``: images of a client of which ``unequal`` would show 37 % more by its bias alone, by real images' kernel.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedstill.algorithms.virtual import VirtualSettings, kept_set
from fedstill.data.shard import Shard, hard_labels
from fedstill.distill.distribution import DistributionMatcher, FreshNetworks
from fedstill.engines.memory import Memory
from fedstill.evaluate.distilled import change, compare_distilled, interval
from fedstill.evaluate.features import Space, pixel_space, random_space
from fedstill.evaluate.mmd import median_distance
from fedstill.experiment import Experiment, Parts
from fedstill.rounds import Desk
from fedstill.runtime import prepared
from fedstill.seeds import Seed

DESK = Desk(Seed(("evaluate",))).at("images")
MANY = 1000
"""Real images of a client in ``unequal``."""

Floats = NDArray[np.float64]
Features = Sequence[Floats]
"""By client."""


@dataclass(frozen=True)
class Measured:
    """Of one run in one feature space: what ``evaluate`` says, features of each client's images, and Eq. 1's loss."""

    found: Mapping[str, Any]
    real: Features
    many: Features
    virtual: Features
    loss: float


def main(folders: Sequence[str]) -> None:
    settings: dict[tuple[str, str], list[Measured]] = {}
    known: dict[bytes, NDArray[np.float32]] = {}
    for folder in sorted(map(Path, folders)):
        for space, measured in _measured(folder, known).items():
            settings.setdefault((space, folder.name.rpartition("-")[0]), []).append(measured)
    print("| features | setting | estimator | real | virtual | ratio | over seeds | over clients |")
    print("|---|---|---|---|---|---|---|---|")
    for (space, label), runs in settings.items():
        for name, sides in _estimates(runs).items():
            print("| " + " | ".join((space, label, name, *_row(sides))) + " |")
    for (space, label), runs in settings.items():
        print(json.dumps({"features": space, "setting": label, "seeds": len(runs), **_checks(runs)}))


# --- of a run -----------------------------------------------------------------------------------------------------------


def _measured(folder: Path, known: dict[bytes, NDArray[np.float32]]) -> dict[str, Measured]:
    experiment = Experiment.read(folder / "experiment.toml")
    with prepared(experiment.threads):
        parts = experiment.build()
        train, held = parts.data.train, parts.partition.clients
        kept = {client: kept_set(Memory(folder / "memory").read(client, 2), parts.world) for client in held}
        own = {client: shard for client, shard in kept.items() if shard is not None}
        labels = hard_labels(train.labels).numpy()
        many = {client: np.random.default_rng(0).permutation(rows)[:MANY] for client, rows in held.items()}
        real = {client: _balanced(rows, labels, len(own[client])) for client, rows in held.items()}
        loss = _loss(experiment.virtual or VirtualSettings(), parts, own)
        untrained = random_space(channels=train.channels, size=train.size)
        spaces = {"random": _kept(untrained, known), "pixels": pixel_space()}
        return {
            name: Measured(
                compare_distilled(train, held, own, space, images=None, desk=DESK),
                [_features(space, train.take(rows)) for rows in real.values()],
                [_features(space, train.take(rows.tolist())) for rows in many.values()],
                [_features(space, own[client]) for client in held],
                loss,
            )
            for name, space in spaces.items()
        }


def _balanced(rows: Sequence[int], labels: NDArray[np.int64], n: int) -> list[int]:
    """``n`` rows, equally many of each class."""
    mixed = np.random.default_rng(1).permutation(rows)
    classes = np.unique(labels[mixed])
    return [int(row) for k in classes for row in mixed[labels[mixed] == k][: n // len(classes)]]


def _features(space: Space, shard: Shard) -> Floats:
    # in random order, as the median distance takes the first of them
    rows = space.features(shard).astype(np.float64)
    return rows[np.random.default_rng(2).permutation(len(rows))]


def _kept(space: Space, known: dict[bytes, NDArray[np.float32]]) -> Space:
    """The same, each shard's features taken once: settings of one seed share their real images."""

    def features(shard: Shard) -> NDArray[np.float32]:
        key = hashlib.sha256(shard.images.contiguous().numpy().tobytes()).digest()
        if key not in known:
            known[key] = space.features(shard)
        return known[key]

    return Space(space.name, features)


def _loss(settings: VirtualSettings, parts: Parts, own: Mapping[str, Shard]) -> float:
    found = []
    for client, shard in own.items():
        matcher = DistributionMatcher(
            networks=FreshNetworks(settings.architecture(parts.world)),
            real=parts.sites[client].train,
            batch=256,
            augmentation=settings.matching_augmentation(),
        )
        found.append(matcher.loss(shard.inputs(), shard.labels, 0.0, DESK.seed.at("loss")))
    return float(np.mean(found))


# --- of a setting -------------------------------------------------------------------------------------------------------


def _estimates(runs: Sequence[Measured]) -> dict[str, tuple[Floats, Floats]]:
    """By estimator: [1 + seeds, clients, clients] by real and by virtual images, of all seeds and with each left out."""
    real, virtual = [run.real for run in runs], [run.virtual for run in runs]
    widths = {"real σ": _width(real), "virtual σ": _width(virtual)}
    before, after = (np.array([run.found[side]["squared"] for run in runs], np.float64) for side in ("before", "after"))
    found = {"unbiased": (_left(before), _left(after))}
    if len(runs) > 1:
        for name, width in {"other seeds": _width([*real, *virtual]), **widths}.items():
            found[name] = _between(_kernel(real, width)), _between(_kernel(virtual, width))
    both = _width([*real, *virtual])
    found["biased"] = _left(_biased(_kernel(real, both))), _left(_biased(_kernel(virtual, both)))
    many = [run.many for run in runs]
    found["unequal"] = (
        _left(_biased(_kernel(many, _width(many), apart=False))),
        _left(_biased(_kernel(virtual, widths["virtual σ"], apart=False))),
    )
    return found


def _width(samples: Sequence[Features]) -> float:
    return median_distance(
        {f"{run} {client}": rows for run, its in enumerate(samples) for client, rows in enumerate(its)}
    )


def _kernel(samples: Sequence[Features], width: float, *, apart: bool = True) -> Floats:
    """Mean kernel, terms i = j included, [seeds, clients, seeds, clients]; NaN between seeds unless ``apart``."""
    seeds, clients = len(samples), len(samples[0])
    found = np.full((seeds, clients, seeds, clients), np.nan)
    for s, c, t, d in np.ndindex(*found.shape):
        if (s, c) <= (t, d) and (apart or s == t):
            x, y = samples[s][c], samples[t][d]
            squared = np.square(x).sum(1)[:, None] + np.square(y).sum(1) - 2 * x @ y.T
            found[s, c, t, d] = found[t, d, s, c] = np.exp(squared / (-2 * width**2)).mean()
    return found


def _biased(kernel: Floats) -> Floats:
    """MMD² of each seed's clients, [seeds, clients, clients]."""
    return np.array([_squared(kernel[s, :, s]) for s in range(len(kernel))])


def _between(kernel: Floats) -> Floats:
    """MMD² by kernel means between two seeds: of all seeds, then with each left out."""
    seeds = range(len(kernel))
    chosen = [list(seeds), *([s for s in seeds if s != out] for out in seeds if len(seeds) > 2)]
    return np.array(
        [_squared(np.mean([kernel[s, :, t] for s in its for t in its if s != t], axis=0)) for its in chosen]
    )


def _squared(means: Floats) -> Floats:
    own = np.diag(means)
    found = own[:, None] + own - means - means.T
    np.fill_diagonal(found, np.nan)
    return found


def _left(tables: Floats) -> Floats:
    """Mean over seeds, then with each left out."""
    left = [np.delete(tables, s, 0).mean(0) for s in range(len(tables)) if len(tables) > 2]
    return np.array([tables.mean(0), *left])


def _row(sides: tuple[Floats, Floats]) -> list[str]:
    before, after = sides
    over = change(before[0], after[0])
    means = np.nanmean(after, axis=(1, 2)) / np.nanmean(before, axis=(1, 2))
    seeds = interval(np.log(means)) if means.min() > 0 else (None, None)
    low, high = (None if end is None else math.exp(end) for end in seeds)
    return [
        f"{over.before:.4f}",
        f"{over.after:.4f}",
        "–" if over.ratio is None else f"{over.ratio:.2f}",
        _told(low, high),
        _told(over.ratio_low, over.ratio_high),
    ]


def _told(low: float | None, high: float | None) -> str:
    return "–" if low is None or high is None else f"{low:.2f} to {high:.2f}"


def _checks(runs: Sequence[Measured]) -> dict[str, Any]:
    real, virtual = [run.real for run in runs], [run.virtual for run in runs]
    width = _width([*real, *virtual])
    n = len(virtual[0][0])
    kernel = _kernel(virtual, width)
    own = np.array([(n * np.diag(kernel[s, :, s]) - 1) / (n - 1) for s in range(len(runs))])
    told: dict[str, Any] = {"n": n, "loss": round(float(np.mean([run.loss for run in runs])), 2)}
    if len(runs) > 1:
        pairs = [(s, t) for t in range(len(runs)) for s in range(t)]
        alike = np.mean([own[s] + own[t] - 2 * np.diag(kernel[s, :, t]) for s, t in pairs], axis=0)
        ends = interval(np.array([alike.mean(), *(np.delete(alike, c).mean() for c in range(len(alike)))]))
        told["alike"] = [round(value, 4) for value in (alike.mean(), *(end for end in ends if end is not None))]
    told["slack"] = round(2 * (1 - own.mean()) / n, 4)
    many = _kernel([run.many for run in runs], _width([run.many for run in runs]), apart=False)
    squared = np.nanmean(_biased(many))
    within = np.mean([np.diag(many[s, :, s]).mean() for s in range(len(runs))])
    told["n37"] = round(2 * (1 - within) / (0.37 * squared))
    return told


if __name__ == "__main__":
    main(sys.argv[1:])
