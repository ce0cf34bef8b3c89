"""A client's piece of work, the same wherever it is done: what it needs, what it gives, what it may use."""

from __future__ import annotations

import traceback
from typing import NamedTuple

from fedstill.bundle import Bundle
from fedstill.errors import FedstillError
from fedstill.rounds import Algorithm, Desk, Failure, Reply, Site

__all__ = [
    "KEYS",
    "LEAST",
    "LOCAL",
    "MASKED",
    "SCORE",
    "SHARES",
    "SUM",
    "UNMASK",
    "Done",
    "Work",
    "client_desk",
    "do",
    "done",
    "memory_before",
]

LOCAL, SCORE = "local", "score"

SUM = KEYS, SHARES, MASKED, UNMASK = "keys", "shares", "masked", "unmask"
"""The four exchanges by which sites do their ``local`` work and the server gets to know the sum alone, in order."""


LEAST = 3
"""Sites of such a sum: of two, each could take its own part away and would see the other's."""


class Work(NamedTuple):
    """What a client does its task with."""

    client: str
    site: Site
    inbox: Bundle
    memory: Bundle
    desk: Desk


class Done(NamedTuple):
    """Its answer, and what it remembers from now on; None: as before."""

    answer: Reply | Failure
    memory: Bundle | None


def memory_before(number: int, task: str) -> int:
    """Below which version a client's memory is read for its task in round ``number``.

    Work makes version n from one below it; scoring comes after the work of round n and changes nothing.
    """
    return number + 1 if task == SCORE else number


def client_desk(desk: Desk, number: int, client: str, task: str) -> Desk:
    """A client's desk within the run's: client c's work in round n draws from ``desk.seed.at("round", n, "client", c, task)``,
    and what lasts from ``desk.seed.at("client", c)``. A plain one: it spreads nothing further and reports through its result.
    """
    return Desk(
        desk.seed.at("round", number, "client", client, task),
        device=desk.device,
        home=desk.seed.at("client", client),
        scratch=None if desk.scratch is None else desk.scratch / client,
    )


def done(algorithm: Algorithm, task: str, work: Work) -> Done:
    """The task done; raises what its code raises."""
    if task == SCORE:
        scores = algorithm.score(work.inbox, work.site, work.memory, work.desk)
        return Done(Reply(work.client, scores.detached()), None)
    reply, memory = algorithm.local(work.inbox, work.site, work.memory, work.desk)
    return Done(Reply(work.client, reply.detached()), memory.detached())


def do(algorithm: Algorithm, task: str, work: Work) -> Done:
    """The task done; whatever is raised becomes a Failure, and the round goes on without this client."""
    try:
        return done(algorithm, task, work)
    except FedstillError as error:
        return Done(Failure(work.client, str(error)), None)
    except Exception as error:
        return Done(Failure(work.client, f"{type(error).__name__}: {error}", traceback.format_exc()), None)
