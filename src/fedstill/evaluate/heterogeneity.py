"""How unequal clients are, from who holds what alone: no image is looked at, and torch is not imported.

A client's images a class are a histogram; divided by its sum, a distribution p over classes. An empty client has none, and
what would be said of it is None.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Heterogeneity", "evenness", "heterogeneity", "histogram_distance", "label_entropy"]

Counts = Sequence[int] | NDArray[np.integer]


@dataclass(frozen=True)
class Heterogeneity:
    """Who holds what, in figures; all but ``entropy`` lie in 0 … 1.

    Attributes:
        entropy: bits, by client; see :func:`label_entropy`.
        evenness: by client; see :func:`evenness`.
        distance: by client, from the histogram of all clients' images together; see :func:`histogram_distance`.
        mean_distance: of all pairs of clients that hold images; None where there are not two.
    """

    entropy: Mapping[str, float | None]
    evenness: Mapping[str, float | None]
    distance: Mapping[str, float | None]
    mean_distance: float | None


def heterogeneity(histogram: Mapping[str, Counts]) -> Heterogeneity:
    """Every figure of a partition.

    Args:
        histogram: images a class, by client; the same classes in the same order for each.
    """
    pooled = np.sum([np.asarray(counts) for counts in histogram.values()], axis=0)
    return Heterogeneity(
        entropy={client: label_entropy(counts) for client, counts in histogram.items()},
        evenness={client: evenness(counts) for client, counts in histogram.items()},
        distance={client: histogram_distance(counts, pooled) for client, counts in histogram.items()},
        mean_distance=_mean_distance(list(histogram.values())),
    )


def label_entropy(counts: Counts) -> float | None:
    """Shannon's entropy −Σ p log₂ p of a client's classes, in bits.

    0 where it holds one class, log₂ of the number of classes where it holds all alike; 2 to its power is the number of
    equally large classes that would be as varied. None for an empty client.
    """
    shares = _shares(counts)
    if shares is None:
        return None
    held = shares[shares > 0]
    return float(max(0.0, -np.sum(held * np.log2(held))))  # a sum of one term is -0.0


def evenness(counts: Counts) -> float | None:
    """:func:`label_entropy` as a share of the largest that so many classes allow: 0 one class, 1 all alike.

    None for an empty client, and where the data have one class only: then there is nothing to be even about.
    """
    entropy = label_entropy(counts)
    return None if entropy is None or len(counts) < 2 else entropy / float(np.log2(len(counts)))


def histogram_distance(a: Counts, b: Counts) -> float | None:
    """Total variation ½ Σ |p − q| of two clients' classes: the share of images that would have to change class.

    It is also the earth mover's distance where any class is as far from any other (ground cost 0 or 1). 0 for equal
    distributions, 1 where no class is shared; None where one of the two is empty.
    """
    first, second = _shares(a), _shares(b)
    return None if first is None or second is None else float(np.abs(first - second).sum() / 2)


def _shares(counts: Counts) -> NDArray[np.float64] | None:
    values = np.asarray(counts, np.float64)
    total = values.sum()
    return values / total if total > 0 else None


def _mean_distance(histograms: Sequence[Counts]) -> float | None:
    shares = [share for counts in histograms if (share := _shares(counts)) is not None]
    if len(shares) < 2:
        return None
    rows = np.stack(shares)
    # one client against all after it at a time: all pairs at once would need clients² × classes numbers
    total = sum(float(np.abs(rows[index + 1 :] - rows[index]).sum()) / 2 for index in range(len(rows) - 1))
    return total / (len(rows) * (len(rows) - 1) / 2)
