"""95 % intervals of an accuracy: over seeds where there are several, over the test images where there is one seed.

They answer different questions. Student's says where the mean over *seeds* (partition, initial weights, order of images) would
lie; Wilson's where this one model's accuracy on *images* of the same kind would lie, and knows nothing of seeds.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from scipy.special import ndtri, stdtrit

__all__ = ["Interval", "student", "wilson"]


class Interval(NamedTuple):
    """Its two ends."""

    low: float
    high: float


def student(mean: float, spread: float, count: int, *, level: float = 0.95) -> Interval:
    """Student's t interval of a mean of ``count`` values with sample standard deviation ``spread``.

    ``count`` is at least 2. With few seeds it is wide: 2.5 sample standard deviations to either side with three.
    """
    reach = float(stdtrit(count - 1, (1 + level) / 2)) * spread / math.sqrt(count)
    return Interval(mean - reach, mean + reach)


def wilson(correct: int, examples: int, *, level: float = 0.95) -> Interval:
    """Wilson's score interval of a share (Wilson 1927, without continuity correction); ``examples`` is at least 1."""
    z = float(ndtri((1 + level) / 2))
    share = correct / examples
    middle = (share + z**2 / (2 * examples)) / (1 + z**2 / examples)
    reach = z / (1 + z**2 / examples) * math.sqrt(share * (1 - share) / examples + z**2 / (4 * examples**2))
    return Interval(middle - reach, middle + reach)
