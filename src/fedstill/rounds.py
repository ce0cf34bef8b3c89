"""The heart: what an algorithm is, what an engine is, and the loop between them.

    An algorithm is a few pure functions over Bundles. An engine brings Bundles to the clients and their answers
    back. A run is an iterator of rounds.

Neither knows the other: an algorithm runs unchanged in process, over processes, or over a network.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Protocol, TypeVar

from fedstill.border import FARTHEST, refusal
from fedstill.bundle import Bundle, Group
from fedstill.cohorts import CLIENT_NAME, cohort_size, sample
from fedstill.data.shard import Normalisation, Shard
from fedstill.errors import InputError
from fedstill.exchange import TOGETHER, Arrivals, Failure, Outbox, Reply, first_answers
from fedstill.models.architecture import Architecture, Network
from fedstill.seeds import Seed

__all__ = [
    "CLIENT_NAME",
    "FARTHEST",
    "Algorithm",
    "Desk",
    "Engine",
    "Failure",
    "Outcome",
    "Reply",
    "Round",
    "Site",
    "Trained",
    "World",
    "check_replies",
    "cohort_size",
    "first_answers",
    "needed_replies",
    "opened",
    "rounds",
    "serial",
]

A = TypeVar("A")
B = TypeVar("B")


class Map(Protocol):
    """``map`` that keeps order; may be processes or a cluster, so function and items must survive pickling."""

    def __call__(self, function: Callable[[A], B], items: Iterable[A], /) -> Iterator[B]: ...


def serial(function: Callable[[A], B], items: Iterable[A], /) -> Iterator[B]:
    """The plainest :class:`Map`: one after another, here."""
    return map(function, items)


def _silent(phase: str, done: int, total: int) -> None:
    """Progress that nobody watches."""


@dataclass(frozen=True)
class World:
    """What every party of a run knows before it starts.

    Attributes:
        architecture: what clients train.
        classes: names of the classes.
        normalisation: how pixels become network inputs.
    """

    architecture: Architecture
    classes: tuple[str, ...]
    normalisation: Normalisation

    def other(self, name: str, options: Mapping[str, Any], key: str) -> Architecture:
        """Another network for the same images and classes; ``key`` is where the user wrote it."""
        architecture = self.architecture
        return Architecture(
            name=name,
            channels=architecture.channels,
            size=architecture.size,
            classes=architecture.classes,
            options=options,
            key=key,
        )


@dataclass(frozen=True)
class Site:
    """One client's data: to train on, to choose by, and its own to be tested on; the latter two may be empty."""

    train: Shard
    validation: Shard
    test: Shard


@dataclass(frozen=True)
class Desk:
    """What work may use that never changes a result.

    Attributes:
        seed: this piece of work's own place in the tree of streams.
        device: where tensors are computed on.
        map: keeps order; spreads independent pieces.
        home: a client's own place in the tree, the same in every round and under every method: for what is made once and kept.
            None: the desk is no client's.
        scratch: a folder for what is large and can be made again, so that work that was interrupted goes on where it was;
            None: there is none, and it begins anew.
        progress: ``progress(phase, done, total)``. A phase is one word (``local``, ``score``, ``distil``, ``train``,
            ``evaluate``), counted in clients or networks. A second word is what of it is at work, with a count of its own:
            ``distil c04`` in steps, ``train resnet18`` in epochs. A total of 0 is one that is not known.
    """

    seed: Seed
    device: str = "cpu"
    map: Map = serial
    home: Seed | None = None
    scratch: Path | None = None
    progress: Callable[[str, int, int], None] = _silent

    @property
    def lasting(self) -> Seed:
        """``home``; of a desk that is no client's, its own place."""
        return self.home or self.seed

    @property
    def steps(self) -> Callable[[str, int, int], None]:
        """``progress`` for pieces of work that ``map`` spreads: a worker process cannot call back, so there it is silent."""
        return self.progress if self.map is serial else _silent

    def at(self, *names: object) -> Desk:
        """The same desk at a place further down the tree."""
        return replace(self, seed=self.seed.at(*names))


@dataclass(frozen=True)
class Outcome:
    """What ``aggregate`` gives: the new state, figures of the round, and clients it had to leave out.

    ``withheld`` is why no new state comes of the others' replies, though there are some; None where one does.
    """

    state: Bundle
    figures: Mapping[str, Any] = field(default_factory=dict)
    failures: Sequence[Failure] = ()
    withheld: str | None = None


@dataclass(frozen=True)
class Trained:
    """A network as a value: its architecture and its tensors."""

    architecture: Architecture
    tensors: Group

    def module(self) -> Network:
        """A fresh module that holds a copy of the tensors."""
        network = self.architecture.build(Seed(("unused",)))  # every tensor is overwritten below
        network.load_state_dict(dict(self.tensors))
        return network


@dataclass(frozen=True)
class Round:
    """One round, done.

    Attributes:
        number: from 1.
        state: the server's state after it.
        cohort: the clients that were asked, in order.
        figures: what the algorithm measured. Of clients whose replies came as one sum nothing is known one by one: ``together``
            has their names, and how many images they hold.
        failures: clients that gave nothing usable, with reasons.
        bytes_down: payload of all messages to clients.
        bytes_up: payload of all replies that arrived, refused ones too.
        seconds: wall time by phase: ``clients`` (waiting for replies), ``server`` (the rest).
        aggregated: false where nothing came of the replies; the state is then the one before.
        withheld: why nothing came of them: fewer than the quorum can be used, fewer than the method needs, or the new state
            would not be finite. None where something did.
    """

    number: int
    state: Bundle
    cohort: tuple[str, ...]
    figures: Mapping[str, Any]
    failures: tuple[Failure, ...]
    bytes_down: int
    bytes_up: int
    seconds: Mapping[str, float]
    aggregated: bool
    withheld: str | None = None


class Algorithm(Protocol):
    """A few pure functions over Bundles. Nothing is kept on ``self`` between calls."""

    def init(self, clients: Sequence[str], desk: Desk) -> Bundle:
        """The server's state before the first round."""

    def task(self, state: Bundle) -> str | None:
        """What clients do next: ``"local"``, ``"score"``, or None when the method is finished."""

    def broadcast(self, state: Bundle, client: str) -> Bundle:
        """What the server sends to ``client``."""

    def local(self, inbox: Bundle, site: Site, memory: Bundle, desk: Desk) -> tuple[Bundle, Bundle]:
        """A client's work: (reply, new memory). The reply carries ``numbers["examples"]``."""

    def score(self, inbox: Bundle, site: Site, memory: Bundle, desk: Desk) -> Bundle:
        """A client's scores of what it received: counts, never rows. ``memory`` is what its last work left."""

    def aggregate(self, state: Bundle, replies: Iterable[Reply], desk: Desk) -> Outcome:
        """The server's work. ``replies`` come once, in the cohort's order, and may be folded."""

    def models(self, state: Bundle) -> Mapping[str, Trained]:
        """What to score and save, by name; may be empty."""


class Engine(Protocol):
    """Brings Bundles to clients and answers back."""

    def clients(self) -> Sequence[str]:
        """Names, in an order that does not change during a run."""

    def work(self, number: int, outbox: Mapping[str, Bundle], task: str) -> Iterator[Reply | Failure]:
        """Send ``outbox[client]`` to each client, let it do ``task`` for round ``number``, yield as answers arrive."""


def rounds(
    algorithm: Algorithm,
    engine: Engine,
    *,
    desk: Desk,
    until: int,
    cohort: float | int = 1.0,
    quorum: int = 1,
    farthest: float = FARTHEST,
    cohorts: Seed | None = None,
    start: int = 0,
    state: Bundle | None = None,
) -> Iterator[Round]:
    """Run ``algorithm`` over ``engine`` and yield each round as it ends.

    Args:
        algorithm: what is done.
        engine: where it is done.
        desk: the run's own desk; round n's server works at ``desk.at("round", n, "server")``.
        until: number of the last round.
        cohort: clients asked in a round: a float in (0, 1] is a fraction (at least one client), an int ≥ 1 a number.
        quorum: fewer usable replies than this leave the state as it was (``aggregated=False``); clients that ``aggregate``
            had to leave out are not counted.
        farthest: a reply that lies farther from what its client was sent, in norms of that, is refused: :mod:`fedstill.border`.
        cohorts: who is asked in a round is drawn from it; None: from the desk's own seed.
        start: number of the last round already done; with ``state``, to resume.
        state: the server's state after round ``start``; None starts anew.

    Raises:
        InputError: a client's name, the cohort or the quorum cannot be used, or the method needs more clients a round.
    """
    clients = tuple(engine.clients())
    size = cohort_size(cohort, clients, quorum)
    check_replies(algorithm, size)
    if state is None:
        state = algorithm.init(clients, desk.at("init")).detached()
    for number in range(start + 1, until + 1):
        task = algorithm.task(state)
        if task is None:
            return
        state = state.put({"round": number})
        chosen = sample(clients, size, (cohorts or desk.seed).at("cohort", number))
        began = time.perf_counter()
        outbox = Outbox(partial(algorithm.broadcast, state), chosen)
        judge = partial(_judged, algorithm, state, task, farthest)
        arrivals = Arrivals(chosen, engine.work(number, outbox, task), judge)
        replies = iter(arrivals)
        # the quorum first: what will not be used is not computed
        enough = _first(replies, quorum)
        outcome = Outcome(state)
        if arrivals.accepted >= quorum:
            outcome = algorithm.aggregate(state, chain(enough, replies), desk.at("round", number, "server"))
            deque(replies, maxlen=0)  # an algorithm may stop early; every answer is still counted
            outcome = _of_each(outcome, arrivals.together)
        withheld = _withheld(outcome, arrivals.accepted - len(outcome.failures), quorum)
        seconds = time.perf_counter() - began
        state = outcome.state.detached() if withheld is None else state
        yield Round(
            number=number,
            state=state,
            cohort=chosen,
            figures=outcome.figures,
            failures=(*arrivals.failures, *outcome.failures),
            bytes_down=outbox.nbytes + arrivals.beside,
            bytes_up=arrivals.nbytes,
            seconds={"clients": arrivals.waited, "server": seconds - arrivals.waited},
            aggregated=withheld is None,
            withheld=withheld,
        )


def _first(replies: Iterator[Reply], quorum: int) -> list[Reply]:
    """As many replies as are of ``quorum`` clients."""
    found: list[Reply] = []
    while sum(len(reply.clients) for reply in found) < quorum and (reply := next(replies, None)) is not None:
        found.append(reply)
    return found


def _of_each(outcome: Outcome, together: tuple[str, ...]) -> Outcome:
    """What the method says of several clients' one reply, where there is one: a failure is that of each, figures are of all."""
    if not together:
        return outcome
    failures = [
        replace(failure, client=client)
        for failure in outcome.failures
        for client in (together if failure.client == TOGETHER else (failure.client,))
    ]
    clients = dict(outcome.figures.get("clients", {}))
    figures = {**outcome.figures, "clients": clients, "together": {"clients": together, **clients.pop(TOGETHER, {})}}
    return replace(outcome, figures=figures, failures=failures)


def check_replies(algorithm: Algorithm, asked: int) -> None:
    """That as many clients are asked as the method needs replies to a round.

    Raises:
        InputError: fewer are.
    """
    needed, setting = needed_replies(algorithm)
    if asked < needed:
        raise InputError(
            f"{setting} needs {needed} clients a round, and {asked} are asked: raise cohort, or change that setting"
        )


def needed_replies(algorithm: Algorithm) -> tuple[int, str]:
    """How many replies a round of the method comes of at least, and by which setting: its ``needs_replies``, if it has any."""
    needed: tuple[int, str] = getattr(algorithm, "needs_replies", (1, ""))
    return needed


def opened(algorithm: Algorithm, sent: Callable[[], Bundle], reply: Bundle) -> Bundle:
    """What a client's answer to ``local`` stands for: itself, unless the method's clients send in a code, which its ``opened``
    reads. ``sent`` makes the message that it answers.

    Raises:
        InputError: it cannot be read; a clause of a sentence.
    """
    read: Callable[[Bundle, Bundle], Bundle] | None = getattr(algorithm, "opened", None)
    return reply if read is None else read(sent(), reply)


def _judged(algorithm: Algorithm, state: Bundle, task: str, farthest: float, reply: Reply) -> str | None:
    sent = partial(algorithm.broadcast, state, reply.clients[0])
    try:
        bundle = opened(algorithm, sent, reply.bundle) if task == "local" else reply.bundle
    except InputError as error:
        return str(error)
    return refusal(bundle, sent, farthest=farthest)


def _withheld(outcome: Outcome, usable: int, quorum: int) -> str | None:
    """Why the state stays as it was; None where it does not."""
    if usable < quorum:
        return f"{usable} of the replies can be used, and the quorum is {quorum}"
    if outcome.withheld is None and not Bundle(outcome.state.groups).finite():
        return "the new state would hold numbers that are not finite"
    return outcome.withheld
