"""Seeded choices of rows that keep the proportions of their strata."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedstill.seeds import Seed

__all__ = ["stratified"]


def stratified(strata: NDArray[np.int64], count: int, seed: Seed, *, keep: int = 0) -> NDArray[np.int64]:
    """Choose ``count`` rows so that every stratum gives its share, rounded by largest remainders.

    Args:
        strata: the stratum of every row, [n].
        count: how many rows to choose.
        seed: ties between remainders, and the rows within a stratum, are drawn from here.
        keep: rows of each stratum that stay behind in any case; then fewer than ``count`` may be chosen.

    Returns:
        Row numbers, ascending.
    """
    draw = seed.numpy()
    names, rows_of = np.unique(strata, return_inverse=True)
    sizes = np.bincount(rows_of, minlength=len(names))
    room = np.maximum(sizes - keep, 0)
    ideal = sizes * (count / max(len(strata), 1))
    taken = np.minimum(np.floor(ideal).astype(np.int64), room)
    shuffled = draw.permutation(len(names))
    by_remainder = shuffled[np.argsort(taken[shuffled] - ideal[shuffled], kind="stable")]
    left = min(count, int(room.sum())) - int(taken.sum())
    while left > 0:
        # a full stratum passes its turn, so the caps cost no rows while others have room
        turn = by_remainder[taken[by_remainder] < room[by_remainder]][:left]
        taken[turn] += 1
        left -= len(turn)
    order = draw.permutation(len(strata))
    within = [order[rows_of[order] == stratum][: taken[stratum]] for stratum in range(len(names))]
    return np.sort(np.concatenate(within)) if within else np.zeros(0, np.int64)
