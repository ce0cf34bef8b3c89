"""Sites of secure sums in one process: what each knows is its own, and every message passes through a hand that may change it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from fedstill.bundle import Bundle
from fedstill.deployment.summing import Summing
from fedstill.engines.client import SUM
from fedstill.engines.flower.calls import Call
from fedstill.rounds import Engine, Failure, Reply

RUN = "0" * 32


def call(site: str, number: int, task: str) -> Call:
    """What the server says of a message."""
    return Call(RUN, "tiny", {}, "0", site, number, task, None)


@dataclass
class Room:
    """An engine of sites whose work is another engine's.

    Attributes:
        inner: does ``local`` and ``score``.
        folder: of all sites.
        silent: by task, sites that get that message no more, nor any after it in the round.
        deaf: by task, sites whose answer to it is lost.
        hand: what becomes of an answer on its way.
        seen: every answer of the round, by task and site, as the server gets it.
    """

    inner: Engine
    folder: Path
    silent: Mapping[str, frozenset[str]] = field(default_factory=dict)
    deaf: Mapping[str, frozenset[str]] = field(default_factory=dict)
    hand: Callable[[str, str, Bundle], Bundle] = lambda task, site, answer: answer
    parts: dict[str, Summing] = field(default_factory=dict)
    seen: dict[tuple[str, str], Bundle] = field(default_factory=dict)

    def clients(self) -> Sequence[str]:
        return self.inner.clients()

    def work(self, number: int, outbox: Mapping[str, Bundle], task: str) -> Iterator[Reply | Failure]:
        if task not in SUM:
            yield from self.inner.work(number, outbox, task)
            return
        for site in reversed(list(outbox)):
            if site in self.silent.get(task, ()):
                yield Failure(site, f"was silent at {task}")
                continue
            part = self.parts.setdefault(site, Summing(site))
            place = self.folder / site
            place.mkdir(exist_ok=True)
            answer = part.answer(call(site, number, task), outbox[site], place, self.local)
            if isinstance(answer, str):
                yield Failure(site, answer)
            elif site in self.deaf.get(task, ()):
                yield Failure(site, f"was lost after {task}")
            else:
                self.seen[task, site] = answer
                yield Reply(site, self.hand(task, site, answer))

    def local(self, asked: Call, inbox: Bundle) -> Bundle | str:
        (answer,) = self.inner.work(asked.round, {asked.client: inbox}, "local")
        return answer.bundle if isinstance(answer, Reply) else answer.reason


@dataclass(frozen=True)
class Ready:
    """An engine whose clients' work is done already, whatever they are asked."""

    replies: Mapping[str, Bundle]

    def clients(self) -> Sequence[str]:
        return list(self.replies)

    def work(self, number: int, outbox: Mapping[str, Bundle], task: str) -> Iterator[Reply | Failure]:
        for client in outbox:
            yield Reply(client, replace(self.replies[client]))
