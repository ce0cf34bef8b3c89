"""Clients before and after they distilled their images: how unlike they are, by their real and by their virtual images.

FedLGD's Figure 1 says that distribution matching alone makes clients less alike. Whether it does is asked here of a run, with
all else equal on both sides: the features; the kernel (σ is the median distance of real and virtual images together); the number
of images n, the same for every client; each client's images a class. Real images are drawn up to :data:`DRAWS` times, none twice,
and the estimates averaged; the standard error is that of a mean of independent estimates.

Two things to know. Images a class are equally many by design, not by chance, which takes a little from the estimates of both
sides: about 2 (a − b) / n, where a and b are the mean kernel of two images of one class and of two classes. And a client's
distilled images are no independent draws: they were moved together until their mean was right. An unbiased estimate subtracts
what the mean of n independent ones would be off by, so of virtual images it may come out low: by as much as is subtracted,
2 (1 − k̄) / n with k̄ the mean kernel of two images of a client, if their mean is exactly right (``slack``). Two halves of the set,
drawn at random, do not tell: they are alike whatever the set. Sets that one client distilled twice, from two seeds, do tell
(experiments/fedlgd/heterogeneity.py).

The mean over pairs has an interval over clients. Pairs that share a client are not independent, so the jackknife leaves out one
client at a time with all its pairs (its variance is too large in the mean, never too small: Efron and Stein 1981), with
Student's t of one degree of freedom less than clients. It is about other clients of the kind; how well each pair is known, its
own error says.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from fedstill.data.shard import Shard, hard_labels
from fedstill.errors import InputError
from fedstill.evaluate.clients import ENOUGH, Held, features_of, place, table_of
from fedstill.evaluate.features import Space
from fedstill.evaluate.mmd import FEWEST, Discrepancies, discrepancies, median_distance
from fedstill.rounds import Desk
from fedstill.seeds import Seed

__all__ = ["DRAWS", "Change", "change", "compare_distilled", "interval", "place_distilled"]

DRAWS = 5
"""Of real images, at most."""

MOST_DRAWN = 20_000
"""Real images of all clients in all draws, about: their features take the time."""

LEVEL = 0.95

Floats = NDArray[np.float64]
Rows = Mapping[int, NDArray[np.int64]]


@dataclass(frozen=True)
class Change:
    """The mean over pairs of clients, before and after; intervals of 95 % over clients, None where there are not three.

    Attributes:
        before, after: mean squared discrepancy.
        before_error, after_error: standard errors over clients.
        difference: after − before, pair by pair, in the mean; ``low`` … ``high`` its interval.
        ratio: after / before; ``ratio_low`` … ``ratio_high`` its interval. None where a mean is not above zero.
        rose, pairs: pairs whose discrepancy is larger after, of so many.
    """

    before: float
    before_error: float | None
    after: float
    after_error: float | None
    difference: float
    low: float | None
    high: float | None
    ratio: float | None
    ratio_low: float | None
    ratio_high: float | None
    rose: int
    pairs: int


def change(before: Floats, after: Floats) -> Change:
    """Of two tables of discrepancies, [clients, clients] each, symmetric, of the same two clients or more."""
    pairs = np.triu_indices(len(before), 1)
    first, second = _means(before), _means(after)
    low, high = interval(second - first)
    ratio = ratio_low = ratio_high = None
    if first[0] > 0 and second[0] > 0:
        ratio = float(second[0] / first[0])
        if min(first.min(), second.min()) > 0:  # of a logarithm, so that the interval of 1 / ratio is its own
            ratio_low, ratio_high = (end and math.exp(end) for end in interval(np.log(second / first)))
    return Change(
        before=float(first[0]),
        before_error=_error(first),
        after=float(second[0]),
        after_error=_error(second),
        difference=float(second[0] - first[0]),
        low=low,
        high=high,
        ratio=ratio,
        ratio_low=ratio_low,
        ratio_high=ratio_high,
        rose=int((after[pairs] > before[pairs]).sum()),
        pairs=len(pairs[0]),
    )


def compare_distilled(
    train: Shard, held: Held, own: Mapping[str, Shard], space: Space, *, images: int | None, desk: Desk
) -> dict[str, Any]:
    """MMD² of every pair of clients by real and by virtual images, with all else equal.

    Of each class a client's images count as often as it has both real and virtual ones. Clients with fewer than
    :data:`fedstill.evaluate.clients.ENOUGH`, or than half of the largest where that is less, are left out and named.

    Args:
        train: everybody's real images.
        held: rows of it, by client.
        own: virtual images by client; clients that have none are absent.
        space: in which they are compared.
        images: of each client, at most; None: as many as all have.
        desk: ``desk.seed`` decides which images.

    Raises:
        InputError: too few images or clients, all images alike, or features that are not finite.
    """
    labels = hard_labels(train.labels).cpu().numpy()
    real = {client: _by_class(labels[list(rows)], rows) for client, rows in held.items() if client in own}
    virtual = {
        client: _by_class(hard_labels(own[client].labels).cpu().numpy(), range(len(own[client]))) for client in real
    }
    counts, left_out = _counts(held, real, virtual, images, desk.seed.at("shares"))
    n = sum(next(iter(counts.values())).values())
    draws = min(len(real[client][k]) // count for client, its in counts.items() for k, count in its.items())
    draws = max(1, min(draws, DRAWS, MOST_DRAWN // (n * len(counts))))
    drawn = {client: _draws(real[client], its, draws, desk.seed.at(client)) for client, its in counts.items()}
    samples = [
        features_of(train, space, {client: rows[number] for client, rows in drawn.items()}, desk)
        for number in range(draws)
    ]
    joined, spans = _joined({client: own[client] for client in counts})
    chosen = {
        # by the seed that real images are drawn by, so that virtual images that are the real ones give the same
        client: [spans[client][row] for row in _draws(virtual[client], its, 1, desk.seed.at(client))[0]]
        for client, its in counts.items()
    }
    moved = features_of(joined, space, chosen, desk)
    sides = {"before": samples[0], "after": moved}
    bandwidth = median_distance(
        {f"{client} {side}": rows for side, its in sides.items() for client, rows in its.items()}
    )
    before = [_compared(each, bandwidth, desk) for each in samples]
    after = _compared(moved, bandwidth, desk)
    squared = np.mean([each.squared for each in before], axis=0)
    # no image is drawn twice, so draws are independent
    error = np.sqrt(np.sum([np.square(each.error) for each in before], axis=0)) / draws
    return {
        "features": space.name,
        "images": n,
        "draws": draws,
        "bandwidth": bandwidth,
        "clients": list(counts),
        "before": {"squared": table_of(squared), "error": table_of(error)},
        "after": {"squared": table_of(after.squared), "error": table_of(after.error)},
        "change": asdict(change(squared, after.squared)),
        "slack": 2 * (1 - float(after.within.mean())) / n,
        "left_out": left_out,
    }


def place_distilled(own: Mapping[str, Shard], space: Space, *, images: int | None, desk: Desk) -> dict[str, Any]:
    """A map of clients' virtual images, as :func:`fedstill.evaluate.clients.place` makes it of real ones.

    Raises:
        InputError: as there.
    """
    joined, spans = _joined(own)
    return place(joined, spans, space, images=images, desk=desk)


def _means(squared: Floats) -> Floats:
    """Mean over pairs: of all clients, then with each client left out in turn (not of two: nothing would be left)."""
    count = len(squared)
    filled = np.where(np.eye(count, dtype=bool), 0.0, squared)
    sums = filled.sum(1)
    total, pairs = filled.sum() / 2, count * (count - 1) / 2
    left = (total - sums) / (pairs - (count - 1)) if count > 2 else sums[:0]
    return np.array([total / pairs, *left])


def _error(values: Floats) -> float | None:
    """The jackknife's standard error; ``values`` as in :func:`interval`."""
    left = values[1:]
    if len(left) < 3:
        return None
    return math.sqrt((len(left) - 1) / len(left) * float(np.square(left - left.mean()).sum()))


def interval(values: Floats) -> tuple[float | None, float | None]:
    """Of 95 %, by the jackknife; ``values``: of all, then with each left out. None where fewer than three were left out."""
    error = _error(values)
    if error is None:
        return None, None
    half = float(stdtrit(len(values) - 2, 0.5 + LEVEL / 2)) * error
    return float(values[0]) - half, float(values[0]) + half


def _compared(samples: Mapping[str, NDArray[np.float32]], bandwidth: float, desk: Desk) -> Discrepancies:
    return discrepancies(
        samples, bandwidth=bandwidth, progress=lambda done, total: desk.progress("compare clients", done, total)
    )


def _counts(
    held: Held, real: Mapping[str, Rows], virtual: Mapping[str, Rows], images: int | None, seed: Seed
) -> tuple[dict[str, dict[int, int]], list[dict[str, str]]]:
    """Images of each class by which clients are compared, as many in all for every client; and who is left out, and why.

    Raises:
        InputError: fewer than two clients have enough.
    """
    both = {
        client: {k: min(len(rows), len(real[client][k])) for k, rows in its.items() if k in real[client]}
        for client, its in virtual.items()
    }
    sizes = {client: sum(its.values()) for client, its in both.items()}
    # small sets are compared too, and one that is much smaller than others does not make all small
    most = (max(sizes.values(), default=0) + 1) // 2
    least = max(FEWEST, min(ENOUGH if images is None else images, most))
    taken = {client: size for client, size in sizes.items() if size >= least}
    if len(taken) < 2:
        raise InputError(
            f"{len(taken)} of {len(held)} clients hold {least} virtual images or more of classes that they also have real "
            "images of, and two are needed to compare them"
        )
    n = min(taken.values())
    n = n if images is None else max(FEWEST, min(n, images))
    left_out = [
        {
            "client": client,
            "reason": f"has {sizes[client]} images to compare, and {least} are needed"
            if client in sizes
            else "has made no virtual images",
        }
        for client in held
        if client not in taken
    ]
    return {client: _share(both[client], n, seed.at(client)) for client in taken}, left_out


def _by_class(labels: NDArray[np.int64], rows: Sequence[int]) -> Rows:
    """Rows of each class that there is; ``labels`` in the order of ``rows``."""
    where = np.asarray(rows, np.int64)
    return {int(k): where[labels == k] for k in np.unique(labels)}


def _share(counts: Mapping[int, int], n: int, seed: Seed) -> dict[int, int]:
    """``n`` of so many images a class, at random; classes that none is left of are absent."""
    classes = np.repeat(list(counts), list(counts.values()))
    kept, numbers = np.unique(classes[seed.numpy().permutation(len(classes))[:n]], return_counts=True)
    return dict(zip(kept.tolist(), numbers.tolist(), strict=True))


def _draws(rows: Rows, counts: Mapping[int, int], draws: int, seed: Seed) -> list[list[int]]:
    """Rows of each draw in random order, ``counts`` of each class; none is in two draws."""
    mixed = {k: rows[k][seed.at("rows", k).numpy().permutation(len(rows[k]))] for k in counts}
    order = seed.at("order").numpy().permutation(sum(counts.values()))
    return [
        np.concatenate([mixed[k][number * count : (number + 1) * count] for k, count in counts.items()])[order].tolist()
        for number in range(draws)
    ]


def _joined(own: Mapping[str, Shard]) -> tuple[Shard, dict[str, range]]:
    """All virtual images in one shard, and whose are where."""
    ends = np.cumsum([len(shard) for shard in own.values()]).tolist()
    spans = {client: range(end - len(shard), end) for (client, shard), end in zip(own.items(), ends, strict=True)}
    return Shard.join(list(own.values())), spans
