"""A round's messages on their way to clients, and the answers on their way back. What is in them, nobody here knows."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from fedstill.bundle import Bundle

__all__ = ["TOGETHER", "Arrivals", "Failure", "Outbox", "Reply", "first_answers"]

TOGETHER = "(together)"
"""What a reply that stands for several clients has in the place of a client's name; no client is called so."""

_AGAIN = "answered more than once: its first answer counts"


@dataclass(frozen=True)
class Reply:
    """What a client sent. The name is stated by the engine, not by the reply.

    ``numbers["examples"]`` of the Bundle is the client's weight.

    Attributes:
        client: who sent it; :data:`TOGETHER` where it is the weighted mean of several, of whom nobody here knows more.
        bundle: what it holds; of several, ``numbers["examples"]`` is their sum.
        of: the several; empty where it is one client's.
        up: bytes that came for it; None: those of the Bundle.
        down: bytes that were sent for it beside the client's message.
    """

    client: str
    bundle: Bundle
    of: tuple[str, ...] = ()
    up: int | None = None
    down: int = 0

    @property
    def clients(self) -> tuple[str, ...]:
        """Whose it is."""
        return self.of or (self.client,)

    @property
    def received(self) -> int:
        """Bytes that came for it."""
        return self.bundle.nbytes if self.up is None else self.up


@dataclass(frozen=True)
class Failure:
    """A client that gave nothing usable: counted and named, never a shorter list.

    Attributes:
        client: its name.
        reason: why, as a clause of a sentence.
        detail: a traceback, for the log.
        able: it did its part, and nothing came of it because others did not do theirs.
        up: bytes that came from it all the same.
        down: bytes that were sent to it beside its message.
    """

    client: str
    reason: str
    detail: str = ""
    able: bool = False
    up: int = 0
    down: int = 0

    @property
    def clients(self) -> tuple[str, ...]:
        """Whose it is."""
        return (self.client,)

    @property
    def received(self) -> int:
        """Bytes that came for it."""
        return self.up


class Outbox(Mapping[str, Bundle]):
    """Messages by client, each made when the engine takes it: a thousand need the memory of a few."""

    def __init__(self, broadcast: Callable[[str], Bundle], cohort: Sequence[str]) -> None:
        self._broadcast = broadcast
        self._cohort = dict.fromkeys(cohort)
        self._sizes: dict[str, int] = {}

    def __getitem__(self, client: str) -> Bundle:
        if client not in self._cohort:
            raise KeyError(client)
        message = self._broadcast(client).detached()
        self._sizes[client] = message.nbytes
        return message

    def __iter__(self) -> Iterator[str]:
        return iter(self._cohort)

    def __len__(self) -> int:
        return len(self._cohort)

    @property
    def nbytes(self) -> int:
        """Payload of the messages that were taken."""
        return sum(self._sizes.values())


class Arrivals:
    """Replies in the cohort's order, whatever order they arrive in; counts what passes through."""

    def __init__(
        self,
        cohort: Sequence[str],
        answers: Iterator[Reply | Failure],
        judge: Callable[[Reply], str | None],
    ) -> None:
        """``judge`` says why a reply cannot be used.

        While it is gone through: ``nbytes`` of answers, ``beside`` of what was sent beside the messages, ``accepted`` clients
        whose replies can be used, and which of them came ``together`` in one.
        """
        self.cohort = cohort
        self.answers = answers
        self.judge = judge
        self.failures: list[Failure] = []
        self.nbytes = 0
        self.beside = 0
        self.accepted = 0
        self.together: tuple[str, ...] = ()
        self.waited = 0.0

    def __iter__(self) -> Iterator[Reply]:
        early: dict[str, Reply | Failure] = {}
        spare: list[Failure] = []
        arriving = first_answers(self.cohort, iter(self._receive, None), spare)
        met: set[str] = set()
        for client in self.cohort:
            if client in met:  # of several clients' reply, which came with the first of them
                continue
            while client not in early and (answer := next(arriving, None)) is not None:
                early |= dict.fromkeys(answer.clients, answer)
            answer = early.get(client) or Failure(client, "gave no answer")
            met.update(answer.clients)
            for each in answer.clients:
                early.pop(each, None)
            if isinstance(answer, Failure):
                self.failures.append(answer)
            elif (why := self.judge(answer)) is not None:
                self.failures += [Failure(each, why) for each in answer.clients]
            else:
                self.accepted += len(answer.clients)
                self.together += answer.of
                yield answer
        deque(arriving, maxlen=0)  # what comes after the last that was waited for is counted, too
        self.failures += spare

    def _receive(self) -> Reply | Failure | None:
        began = time.perf_counter()
        answer = next(self.answers, None)
        self.waited += time.perf_counter() - began
        if answer is not None:
            self.nbytes += answer.received
            self.beside += answer.down
        return answer


def first_answers(
    asked: Collection[str], arrivals: Iterable[Reply | Failure], failures: list[Failure]
) -> Iterator[Reply | Failure]:
    """The first answer of each client that was asked. Any other becomes a Failure in ``failures``, and takes nothing from the
    first."""
    waited_for = set(asked)
    for answer in arrivals:
        if waited_for.issuperset(answer.clients):
            waited_for.difference_update(answer.clients)
            yield answer
        else:
            failures += [
                Failure(client, _AGAIN if client in asked else "answered, and was not asked")
                for client in answer.clients
            ]
