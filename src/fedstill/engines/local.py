"""The in-process engine: clients are Sites in this process's memory, worked one after another or over processes.

Which of the two never changes a bit: a client's work draws from its own place in the tree of seeds, threads are fixed for
each piece of work, and ``rounds`` receives in the cohort's order.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from fedstill.bundle import Bundle
from fedstill.engines.client import Work, client_desk, do, memory_before
from fedstill.engines.memory import Memory
from fedstill.rounds import Algorithm, Desk, Failure, Reply, Site, serial

__all__ = ["LocalEngine"]


@dataclass(frozen=True)
class LocalEngine:
    """All clients in this process.

    Attributes:
        algorithm: whose ``local`` and ``score`` the clients run.
        sites: data by client.
        desk: its ``map`` spreads the clients' work; where a client draws from, :func:`~fedstill.engines.client.client_desk` says.
        memory: what clients remember between rounds.
    """

    algorithm: Algorithm
    sites: Mapping[str, Site]
    desk: Desk
    memory: Memory = field(default_factory=Memory)

    def clients(self) -> Sequence[str]:
        return list(self.sites)

    def work(self, number: int, outbox: Mapping[str, Bundle], task: str) -> Iterator[Reply | Failure]:
        self.desk.progress(task, 0, len(outbox))
        pieces = (
            Work(
                client,
                self.sites[client],
                inbox,
                self.memory.read(client, memory_before(number, task)),
                self._client_desk(number, client, task),
            )
            for client, inbox in outbox.items()
        )
        for index, done in enumerate(self.desk.map(partial(do, self.algorithm, task), pieces)):
            if done.memory is not None:
                self.memory.write(done.answer.client, number, done.memory)
            self.desk.progress(task, index + 1, len(outbox))
            yield done.answer

    def _client_desk(self, number: int, client: str, task: str) -> Desk:
        desk = client_desk(self.desk, number, client, task)
        if self.desk.map is not serial:
            return desk
        # pieces are taken one after another here, each when its work begins
        self.desk.progress(f"{task} {client}", 0, 0)
        return replace(desk, progress=lambda _, done, total: self.desk.progress(f"{task} {client}", done, total))
