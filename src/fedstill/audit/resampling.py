"""Intervals by resampling (Efron & Tibshirani, "An introduction to the bootstrap", 1993)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedstill.seeds import Seed

__all__ = ["FEWEST", "mean_interval", "middle"]

FEWEST = 5
"""Values, below which resampling them tells too little of how they vary."""
DRAWS = 2000
LEVEL = 0.95


def mean_interval(values: NDArray[np.float64], *, seed: Seed, draws: int = DRAWS) -> list[float] | None:
    """The middle 95 % of the means of ``draws`` samples with replacement; None of fewer values than :data:`FEWEST`."""
    if len(values) < FEWEST:
        return None
    rows = seed.numpy().integers(len(values), size=(draws, len(values)))
    return middle(values[rows].mean(1))


def middle(values: NDArray[np.float64]) -> list[float]:
    """The two ends of the middle 95 %."""
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return [float(low), float(high)]
