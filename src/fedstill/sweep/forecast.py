"""How long a sweep will take: what is known of a cell's time, and the time of all of them at so many at a time."""

from __future__ import annotations

import heapq
import statistics
from collections.abc import Mapping, Sequence

from fedstill.sweep.grid import Cell

__all__ = ["expected", "makespan"]


def expected(cell: Cell, took: Mapping[str, tuple[Cell, float]]) -> float | None:
    """Seconds that a round of ``cell`` takes, from what rounds of others took: of the same but another seed, else of the same
    method, else of any; None where there are none.
    """
    known = [(other, seconds) for other, seconds in took.values()]
    for alike in (
        [seconds for other, seconds in known if other.group == cell.group],
        [seconds for other, seconds in known if other.label == cell.label],
        [seconds for _, seconds in known],
    ):
        if alike:
            return statistics.fmean(alike)
    return None


def makespan(at_work: Sequence[float], waiting: Sequence[float], jobs: int) -> float:
    """Seconds until all cells are done, if each begins, in order, as soon as there is a place.

    Args:
        at_work: seconds left of the cells that have begun.
        waiting: seconds of those that have not.
        jobs: places.
    """
    places = [*at_work, *([0.0] * (jobs - len(at_work)))]
    heapq.heapify(places)
    for seconds in waiting:
        heapq.heapreplace(places, places[0] + seconds)
    return max(places, default=0.0)
