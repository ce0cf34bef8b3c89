"""The in-process engine: clients are Sites in this process's memory, worked one after another or over processes.

Which of the two never changes a bit: a client's work draws from its own place in the tree of seeds, threads are fixed for
each piece of work, and ``rounds`` receives in the cohort's order.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import NamedTuple

from fedstill.bundle import Bundle
from fedstill.engines.memory import Memory
from fedstill.errors import FedstillError
from fedstill.rounds import Algorithm, Desk, Failure, Reply, Site, serial

__all__ = ["LocalEngine"]


class _Work(NamedTuple):
    client: str
    site: Site
    inbox: Bundle
    memory: Bundle
    desk: Desk


class _Done(NamedTuple):
    answer: Reply | Failure
    memory: Bundle | None


@dataclass(frozen=True)
class LocalEngine:
    """All clients in this process.

    Attributes:
        algorithm: whose ``local`` and ``score`` the clients run.
        sites: data by client.
        desk: its ``map`` spreads the clients' work; client c's work in round n draws from
            ``desk.seed.at("round", n, "client", c, task)``, and what lasts from ``desk.seed.at("client", c)``.
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
            _Work(
                client,
                self.sites[client],
                inbox,
                # work makes version n from one below it; scoring comes after the work of round n and changes nothing
                self.memory.read(client, number + 1 if task == "score" else number),
                self._client_desk(number, client, task),
            )
            for client, inbox in outbox.items()
        )
        for index, done in enumerate(self.desk.map(partial(_do, self.algorithm, task), pieces)):
            if done.memory is not None:
                self.memory.write(done.answer.client, number, done.memory)
            self.desk.progress(task, index + 1, len(outbox))
            yield done.answer

    def _client_desk(self, number: int, client: str, task: str) -> Desk:
        """A plain desk: a worker process spreads nothing further and reports through its result."""
        seed, scratch = self.desk.seed, self.desk.scratch
        desk = Desk(
            seed.at("round", number, "client", client, task),
            device=self.desk.device,
            home=seed.at("client", client),
            scratch=None if scratch is None else scratch / client,
        )
        if self.desk.map is not serial:
            return desk
        # pieces are taken one after another here, each when its work begins
        self.desk.progress(f"{task} {client}", 0, 0)
        return replace(desk, progress=lambda _, done, total: self.desk.progress(f"{task} {client}", done, total))


def _do(algorithm: Algorithm, task: str, work: _Work) -> _Done:
    try:
        if task == "score":
            return _Done(
                Reply(work.client, algorithm.score(work.inbox, work.site, work.memory, work.desk).detached()), None
            )
        reply, memory = algorithm.local(work.inbox, work.site, work.memory, work.desk)
        return _Done(Reply(work.client, reply.detached()), memory.detached())
    except FedstillError as error:
        return _Done(Failure(work.client, str(error)), None)
    except Exception as error:  # a client that fails is a value: the round goes on without it
        return _Done(Failure(work.client, f"{type(error).__name__}: {error}", traceback.format_exc()), None)
