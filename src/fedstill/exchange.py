"""A round's messages on their way to clients, and the answers on their way back. What is in them, nobody here knows."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from fedstill.bundle import Bundle

__all__ = ["Arrivals", "Failure", "Outbox", "Reply", "first_answers"]

_AGAIN = "answered more than once: its first answer counts"


@dataclass(frozen=True)
class Reply:
    """What a client sent. The name is stated by the engine, not by the reply.

    ``numbers["examples"]`` of the Bundle is the client's weight.
    """

    client: str
    bundle: Bundle


@dataclass(frozen=True)
class Failure:
    """A client that gave nothing usable: counted and named, never a shorter list."""

    client: str
    reason: str
    detail: str = ""  # a traceback, for the log


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
        """``judge`` says why a reply cannot be used."""
        self.cohort = cohort
        self.answers = answers
        self.judge = judge
        self.failures: list[Failure] = []
        self.nbytes = 0
        self.accepted = 0
        self.waited = 0.0

    def __iter__(self) -> Iterator[Reply]:
        early: dict[str, Reply | Failure] = {}
        spare: list[Failure] = []
        arriving = first_answers(self.cohort, iter(self._receive, None), spare)
        for client in self.cohort:
            while client not in early and (answer := next(arriving, None)) is not None:
                early[answer.client] = answer
            answer = early.pop(client, None) or Failure(client, "gave no answer")
            if isinstance(answer, Reply) and (why := self.judge(answer)) is not None:
                answer = Failure(client, why)
            if isinstance(answer, Failure):
                self.failures.append(answer)
            else:
                self.accepted += 1
                yield answer
        deque(arriving, maxlen=0)  # what comes after the last that was waited for is counted, too
        self.failures += spare

    def _receive(self) -> Reply | Failure | None:
        began = time.perf_counter()
        answer = next(self.answers, None)
        self.waited += time.perf_counter() - began
        if isinstance(answer, Reply):
            self.nbytes += answer.bundle.nbytes
        return answer


def first_answers(
    asked: Collection[str], arrivals: Iterable[Reply | Failure], failures: list[Failure]
) -> Iterator[Reply | Failure]:
    """The first answer of each client that was asked. Any other becomes a Failure in ``failures``, and takes nothing from the
    first."""
    waited_for = set(asked)
    for answer in arrivals:
        if answer.client in waited_for:
            waited_for.remove(answer.client)
            yield answer
        else:
            again = answer.client in asked
            failures.append(Failure(answer.client, _AGAIN if again else "answered, and was not asked"))
