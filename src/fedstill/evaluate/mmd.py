"""How unequal clients' images are: the maximum mean discrepancy of their features, unbiased and with a standard error.

Two clients' features x_1 … x_n and y_1 … y_n are compared by

    MMD²_u = 1 / (n (n − 1)) Σ_{i≠j} h_ij,    h_ij = k(x_i, x_j) + k(y_i, y_j) − k(x_i, y_j) − k(x_j, y_i)

(Gretton et al., JMLR 2012, eq. 4), with k(x, y) = exp(−‖x − y‖² / 2σ²). It is zero in the mean where both are drawn from
one distribution, so single values lie below zero too. The biased estimator, which keeps the terms i = j, does not: it grows
as n falls, and makes small clients look unlike each other.

The standard error is the root of the U-statistic's variance (Serfling 1980, section 5.2; Sutherland et al., ICLR 2017)

    4 (n − 2) / (n (n − 1)) ζ₁ + 2 / (n (n − 1)) ζ₂,    ζ₁ = Var_i E_j h_ij,    ζ₂ = Var h_ij.

The second term is not a trifle: between clients of one distribution ζ₁ is zero, and the second term is all there is. Both ζ are
estimated without bias (Sutherland, arXiv 1906.02104) and cut off at zero. Of a pair of clients nobody knows whether ζ₁ is zero;
where it is, what the cut leaves of the noise makes the error too large, in the mean by up to a quarter: on the safe side. Where
clients differ it is the spread of repeated draws. Of two halves of one client it *is* known: ζ₁ and E h are zero, and the
error is that of the second term alone, with ζ₂ = E h²; z-scores then have a standard deviation of one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedstill.errors import InputError

__all__ = ["FEWEST", "Discrepancies", "Estimate", "between", "discrepancies", "median_distance"]

FEWEST = 4
"""Fewest samples a side: ζ₁ and ζ₂ are told from E h by products of terms with four different rows."""

POOL = 2000

BLOCK = 2**24
"""Features of a group of clients that are held in float64 at a time: 128 MB. Two groups are, to be compared."""

Floats = NDArray[np.float64]
Features = NDArray[np.floating]


@dataclass(frozen=True)
class Estimate:
    """MMD² of two samples.

    Attributes:
        squared: unbiased; may lie below zero.
        error: its standard error.
        n: samples on each side.
    """

    squared: float
    error: float
    n: int


@dataclass(frozen=True)
class Discrepancies:
    """MMD² of every pair of clients, with one kernel for all, so that pairs compare.

    Attributes:
        clients: in the order of rows and columns.
        n: samples of each client.
        bandwidth: σ, in units of the features.
        squared: [clients, clients], symmetric; NaN on the diagonal.
        error: standard errors, likewise.
        within: [clients], each client's mean kernel of two different samples.
        halves: each client's first n // 2 samples against its next n // 2, with the error of samples that are alike: zero
            within it, or the samples were in no random order. Empty where n is below 2 × :data:`FEWEST`.
    """

    clients: tuple[str, ...]
    n: int
    bandwidth: float
    squared: Floats
    error: Floats
    within: Floats
    halves: tuple[Estimate, ...]


def between(x: Features, y: Features, *, bandwidth: float, alike: bool = False) -> Estimate:
    """MMD² of two samples of equal size, [n, d] each; ``alike``: both are known to be of one distribution."""
    if x.shape != y.shape:
        raise ValueError(f"samples of {x.shape} and {y.shape}: both need as many rows and columns")
    rows = _centred(np.concatenate([x, y]))
    norms = _norms(rows)
    return _estimate(*_split(_kernel(rows, rows, bandwidth, norms, norms), len(x)), alike=alike)


def median_distance(samples: Mapping[str, Features]) -> float:
    """Median Euclidean distance of two different samples of the pool: the usual bandwidth.

    The pool is the first rows of each client, equally many, about 2000 in all; samples come in random order.

    Raises:
        InputError: it is zero, as more than half of the pairs are the same.
    """
    each = max(2, POOL // len(samples))
    rows = _centred(np.concatenate([rows[:each] for rows in samples.values()]))
    norms = _norms(rows)
    distances = _squared_distances(rows, rows, norms, norms)[np.triu_indices(len(rows), 1)]
    median = math.sqrt(float(np.median(distances)))
    if median == 0:
        raise InputError(
            "MMD: most images have the same features, so no distance between them can be a unit: use others"
        )
    return median


def discrepancies(
    samples: Mapping[str, Features],
    *,
    bandwidth: float | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Discrepancies:
    """MMD² of every pair of clients.

    Args:
        samples: features by client, [n, d], with the same n of at least :data:`FEWEST` and the same d for all, in random
            order.
        bandwidth: σ; None: :func:`median_distance` of the samples.
        progress: ``progress(pairs done, pairs)``.

    Raises:
        InputError: as :func:`median_distance`.
    """
    clients = tuple(samples)
    shapes = {rows.shape for rows in samples.values()}
    if len(shapes) != 1 or len(next(iter(samples.values()))) < FEWEST:
        raise ValueError(f"samples of {sorted(shapes)}: all need as many rows, {FEWEST} at least, and as many columns")
    bandwidth = median_distance(samples) if bandwidth is None else bandwidth
    count, n = len(clients), len(samples[clients[0]])
    squared, error = (np.full((count, count), np.nan) for _ in range(2))
    blocks = _Blocks(samples)
    own = [kernel for span in blocks.spans for kernel in _own(*blocks.read(span), n, bandwidth)]
    pairs = count * (count - 1) // 2
    for done, (a, b, across) in enumerate(_across(blocks, n, bandwidth), start=1):
        found = _estimate(own[a], own[b], across)
        squared[a, b] = squared[b, a] = found.squared
        error[a, b] = error[b, a] = found.error
        if progress is not None:
            progress(done, pairs)
    half = n // 2
    halves = [_estimate(*_split(kernel[: 2 * half, : 2 * half], half), alike=True) for kernel in own if half >= FEWEST]
    within = np.array([(kernel.sum() - n) / (n * (n - 1)) for kernel in own])
    return Discrepancies(clients, n, bandwidth, squared, error, within, tuple(halves))


class _Blocks:
    """Features in groups of whole clients: all at once, as floats of 64 bits, might be more than the memory holds."""

    def __init__(self, samples: Mapping[str, Features]) -> None:
        self._samples = list(samples.values())
        self._centre = np.mean([rows.mean(0, dtype=np.float64) for rows in self._samples], axis=0)
        together = max(1, BLOCK // self._samples[0].size)
        count = len(samples)
        self.spans = [range(at, min(at + together, count)) for at in range(0, count, together)]

    def read(self, span: range) -> tuple[Floats, Floats]:
        """Rows of the clients of ``span``, centred, and their norms."""
        rows: Floats = np.concatenate(self._samples[span.start : span.stop]) - self._centre
        return rows, _norms(rows)


def _own(rows: Floats, norms: Floats, n: int, bandwidth: float) -> Iterator[Floats]:
    """Each client's kernel with itself."""
    for start in range(0, len(rows), n):
        at = slice(start, start + n)
        yield _kernel(rows[at], rows[at], bandwidth, norms[at], norms[at])


def _across(blocks: _Blocks, n: int, bandwidth: float) -> Iterator[tuple[int, int, Floats]]:
    """Clients a < b and their kernel, every pair once."""
    for index, first in enumerate(blocks.spans):
        rows, norms = blocks.read(first)
        for second in blocks.spans[index:]:
            others, other_norms = (rows, norms) if second == first else blocks.read(second)
            for a in first:
                at = slice((a - first.start) * n, (a - first.start + 1) * n)
                begin = max(a + 1, second.start)
                # one client against all after it: one large product instead of many small ones
                after = slice((begin - second.start) * n, None)
                kernel = _kernel(rows[at], others[after], bandwidth, norms[at], other_norms[after])
                for number, b in enumerate(range(begin, second.stop)):
                    yield a, b, kernel[:, number * n : (number + 1) * n]


def _centred(rows: Features) -> Floats:
    """Float64, less the mean row: distances do not change, and what cancels in them is small."""
    values: Floats = np.array(rows, np.float64)
    values -= values.mean(0)
    return values


def _norms(rows: Floats) -> Floats:
    norms: Floats = np.einsum("nd,nd->n", rows, rows)
    return norms


def _squared_distances(a: Floats, b: Floats, a_norms: Floats, b_norms: Floats) -> Floats:
    # rounding may leave a little below zero
    distances: Floats = np.maximum(a_norms[:, None] + b_norms[None] - 2 * (a @ b.T), 0)
    return distances


def _kernel(a: Floats, b: Floats, bandwidth: float, a_norms: Floats, b_norms: Floats) -> Floats:
    kernel: Floats = np.exp(_squared_distances(a, b, a_norms, b_norms) / (-2 * bandwidth**2))
    return kernel


def _split(kernel: Floats, n: int) -> tuple[Floats, Floats, Floats]:
    """The blocks of a kernel of two samples, one below the other."""
    return kernel[:n, :n], kernel[n:, n:], kernel[:n, n:]


def _estimate(xx: Floats, yy: Floats, xy: Floats, *, alike: bool = False) -> Estimate:
    """From the three blocks of the kernel, [n, n] each.

    ζ₁ and ζ₂ come from means over different rows i, j, k, l, each without bias: of h_ij², of h_ij h_ik and of h_ij h_kl. Of
    samples known to be ``alike`` the means of the latter two are known as well: zero.
    """
    n = len(xy)
    h = xx + yy - xy - xy.T
    np.fill_diagonal(h, 0)
    sums = h.sum(1)
    total = float(sums.sum())
    squares, paths = float(np.square(h).sum()), float(np.square(sums).sum())
    pairs = n * (n - 1)
    same = squares / pairs
    if alike:
        return Estimate(total / pairs, math.sqrt(2 * same / pairs), n)
    sharing = (paths - squares) / (pairs * (n - 2))
    # of all products, take those that share one row and those that share both
    apart = (total**2 - 4 * paths + 2 * squares) / (pairs * (n - 2) * (n - 3))
    # a variance estimated without bias may come out below zero
    first, second = max(sharing - apart, 0.0), max(same - apart, 0.0)
    variance = (4 * (n - 2) * first + 2 * second) / pairs
    return Estimate(total / pairs, math.sqrt(variance), n)
