"""Where a run's work is done: the engine that its ``[engine]`` table names, opened and closed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import NamedTuple

from fedstill.conduct import EngineSettings
from fedstill.engines.local import LocalEngine
from fedstill.engines.memory import Memory
from fedstill.rounds import Algorithm, Desk, Engine, Site
from fedstill.runtime import Processes, Spent

__all__ = ["Workplace", "workplace"]


class Workplace(NamedTuple):
    """Where clients work; the server's desk, whose map spreads its work; and what processes beside this one took."""

    engine: Engine
    desk: Desk
    spent: Spent


@contextmanager
def workplace(
    settings: EngineSettings,
    algorithm: Algorithm,
    sites: Mapping[str, Site],
    desk: Desk,
    memory: Memory,
    *,
    threads: int,
) -> Iterator[Workplace]:
    """The engine for the time of a run.

    Args:
        settings: which, and how many processes.
        algorithm: whose work the clients do.
        sites: data by client.
        desk: the run's, that spreads nothing yet.
        memory: what clients remember between rounds.
        threads: compute threads of a piece of work.

    Raises:
        InputError: the engine cannot be had as it is asked for.
        MissingExtra: its packages are not installed.
        RunError: it does not start.
    """
    if settings.kind == "flower":
        from fedstill.engines.flower.simulation import simulated

        with simulated(
            algorithm,
            sites,
            desk,
            memory,
            threads=threads,
            workers=settings.workers,
            cpus=settings.cpus,
            gpus=settings.gpus,
            address=settings.address,
            timeout=settings.timeout,
        ) as there:
            yield Workplace(there.engine, replace(desk, map=there.map), there.spent)
    elif settings.workers > 1:
        processes = Processes(settings.workers, threads)
        desk = replace(desk, map=processes)
        yield Workplace(LocalEngine(algorithm, sites, desk, memory), desk, processes.spent)
    else:
        yield Workplace(LocalEngine(algorithm, sites, desk, memory), desk, Spent())
