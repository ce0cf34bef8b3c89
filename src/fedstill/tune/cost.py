"""What a search will cost, before it starts: a step of its first trial, timed in a process of its own."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fedstill.search import propose
from fedstill.sweep.estimate import as_run, estimate
from fedstill.sweep.state import check_files, check_prior
from fedstill.tune import record
from fedstill.tune.plan import Search

__all__ = ["Bill", "bill"]


@dataclass(frozen=True)
class Bill:
    """An estimate, in which every trial runs as long as the first and none is pruned.

    Attributes:
        trials: of the search.
        over: of them, before.
        run: seconds of a run.
        memory: of its process in bytes; None where the system does not tell.
        seconds: of all that is left.
    """

    trials: int
    over: int
    run: float
    memory: int | None
    seconds: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def bill(wanted: Search, out: Path, *, trials: int, jobs: int) -> Bill:
    """Estimate what is left of a search. Nothing is written.

    Raises:
        InputError: ``out`` holds another search, or the first trial cannot be run.
        RunError: its first step fails.
    """
    tried, _ = record.behind(out, wanted)
    if wanted.space.size is not None:
        trials = min(trials, wanted.space.size)
    (params,) = propose(wanted.space, [], 1, wanted.seed)
    first = wanted.trial(params, wanted.seeds[0])
    check_files(first)
    check_prior(first)
    cost = estimate(as_run(first, jobs))
    over = sum(each.state != "begun" for each in tried)
    batches = math.ceil(max(0, trials - over) / jobs)
    return Bill(
        trials, over, cost["total_seconds"], cost["memory"], cost["total_seconds"] * batches * len(wanted.seeds)
    )
