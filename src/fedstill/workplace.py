"""Where a run's work is done: the engine that its ``[engine]`` table names, opened and closed; and the venue around it, for a run
whose clients are elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from fedstill.conduct import EngineSettings
from fedstill.engines.local import LocalEngine
from fedstill.engines.memory import Memory
from fedstill.errors import InputError
from fedstill.evaluate.scoring import has_own_images
from fedstill.experiment import Experiment, Parts
from fedstill.rounds import Algorithm, Desk, Engine, Site
from fedstill.runtime import Processes, Spent

__all__ = ["Here", "Venue", "Workplace", "workplace"]


class Workplace(NamedTuple):
    """Where clients work.

    Attributes:
        engine: how they are reached.
        desk: the server's, whose map spreads its work.
        spent: what processes beside this one took.
        scored: clients that have images of their own to score on.
        record: what of this belongs into the run's folder; None: nothing.
    """

    engine: Engine
    desk: Desk
    spent: Spent
    scored: tuple[str, ...]
    record: Mapping[str, Any] | None = None


class Venue(Protocol):
    """Where a run takes place."""

    def parts(self, experiment: Experiment) -> Parts:
        """What the run is made of.

        Raises:
            InputError: it cannot be run there.
        """
        ...

    def open(
        self,
        experiment: Experiment,
        parts: Parts,
        desk: Desk,
        memory: Memory,
        *,
        kept: Path | None,
        note: Callable[[str], None],
    ) -> AbstractContextManager[Workplace]:
        """The workplace, for the time of the run.

        Args:
            experiment: what is run.
            parts: by :meth:`parts`.
            desk: the run's, that spreads nothing yet.
            memory: what clients remember between rounds, where that lies with the run.
            kept: folder of the run that is gone on with; None begins one.
            note: hears what a user may want to know.

        Raises:
            InputError: it cannot be had as it is asked for.
            MissingExtra: its packages are not installed.
            RunError: it does not start.
        """
        ...


@dataclass(frozen=True)
class Here:
    """All clients' data are on this machine: in this process, in others, or in a simulation."""

    def parts(self, experiment: Experiment) -> Parts:
        """See :class:`Venue`."""
        if experiment.engine.kind == "sites":
            raise InputError("engine.kind = 'sites': real sites are served with  fedstill server")
        if experiment.engine.secure:
            raise InputError(
                "engine.secure = true: secure aggregation is for real sites, served with  fedstill server; set it to false"
            )
        return experiment.build()

    @contextmanager
    def open(
        self,
        experiment: Experiment,
        parts: Parts,
        desk: Desk,
        memory: Memory,
        *,
        kept: Path | None,
        note: Callable[[str], None],
    ) -> Iterator[Workplace]:
        """See :class:`Venue`."""
        with workplace(
            experiment.engine, parts.algorithm, parts.sites, desk, memory, threads=experiment.threads
        ) as there:
            yield there


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
    """The engine for clients whose data are on this machine.

    Args:
        settings: which, and how many processes.
        algorithm: whose work the clients do.
        sites: data by client.
        desk: the run's, that spreads nothing yet.
        memory: what clients remember between rounds.
        threads: compute threads of a piece of work.

    Raises:
        InputError, MissingExtra, RunError: as :meth:`Venue.open`.
    """
    scored = tuple(client for client, site in sites.items() if has_own_images(site))
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
            yield Workplace(there.engine, replace(desk, map=there.map), there.spent, scored)
        return
    spent = Spent()
    if settings.workers > 1:
        processes = Processes(settings.workers, threads)
        desk, spent = replace(desk, map=processes), processes.spent
    yield Workplace(LocalEngine(algorithm, sites, desk, memory), desk, spent, scored)
