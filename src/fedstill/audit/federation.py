"""A federation once more, and what an attacker gets to see of it.

final       the networks that the run is for, as ``Algorithm.models`` gives them
surrogate   the network in what one client sent in one round (any network that clients train is a surrogate of their images)
distilled   a fresh network that learnt from the distilled images alone
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from fedstill.algorithms.union import join_sets
from fedstill.bundle import Bundle
from fedstill.data.shard import Shard
from fedstill.engines.client import LOCAL
from fedstill.engines.local import LocalEngine
from fedstill.errors import InputError, RunError
from fedstill.models.architecture import Architecture
from fedstill.rounds import Algorithm, Desk, Engine, Failure, Reply, Site, Trained, World, opened, rounds
from fedstill.seeds import Seed
from fedstill.train import Recipe, fit

__all__ = [
    "DISTILLED",
    "FINAL",
    "SURROGATE",
    "VIEWS",
    "Exchange",
    "Federation",
    "View",
    "Wanted",
    "Watched",
    "run_federation",
    "sent_network",
    "views",
]

FINAL, SURROGATE, DISTILLED = VIEWS = ("final", "surrogate", "distilled")


@dataclass(frozen=True, kw_only=True)
class Federation:
    """What is run.

    Attributes:
        algorithm: the method.
        world: network, classes, normalisation.
        rounds: number of the last one.
        cohort, quorum, farthest, cohorts: as :func:`fedstill.rounds.rounds` takes them. With the run's ``cohorts`` another
            federation asks the same clients in each round as the run did, which its server knows.
    """

    algorithm: Algorithm
    world: World
    rounds: int
    cohort: float | int
    quorum: int
    farthest: float
    cohorts: Seed | None = None


@dataclass(frozen=True)
class Exchange:
    """What went to a client in round ``number`` (``down``), and what came back (``up``)."""

    number: int
    down: Bundle
    up: Bundle

    def read_by(self, algorithm: Algorithm) -> Exchange:
        """The same with what came back as a server of this method reads it, where clients send in a code.

        Raises:
            InputError: it cannot be read.
        """
        try:
            return replace(self, up=opened(algorithm, lambda: self.down, self.up))
        except InputError as error:
            raise InputError(f"the client's message of round {self.number} tells nothing: {error}") from error


@dataclass(frozen=True)
class Watched:
    """What came of a federation.

    Attributes:
        state: the server's, after the last round.
        exchanges: the last with each client that was listened to; one that sent nothing has none.
        memories: what these clients remember at the end; one that remembers nothing has an empty one.
    """

    state: Bundle
    exchanges: Mapping[str, Exchange]
    memories: Mapping[str, Bundle] = field(default_factory=dict)


@dataclass(frozen=True)
class View:
    """A network that is attacked.

    Attributes:
        name: ``final:global``, ``surrogate:c04``, ``distilled:convnet``.
        trained: the network.
        client: whose images alone it was trained on in the end; None: all clients'.
    """

    name: str
    trained: Trained
    client: str | None = None


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What is to be attacked.

    Attributes:
        final: the networks that the run is for.
        client: whose messages; None: no surrogate.
        round: the last round whose message counts.
        recipe: how a network learns from the distilled images; None: no such view.
    """

    final: bool
    client: str | None
    round: int
    recipe: Recipe | None


@dataclass(frozen=True)
class _Listening:
    """An engine that keeps what some clients last sent to be trained with, up to round ``until``."""

    inner: Engine
    listened: frozenset[str]
    until: int
    heard: dict[str, Exchange] = field(default_factory=dict)

    def clients(self) -> Sequence[str]:
        return self.inner.clients()

    def work(self, number: int, outbox: Mapping[str, Bundle], task: str) -> Iterator[Reply | Failure]:
        for answer in self.inner.work(number, outbox, task):
            if task == LOCAL and isinstance(answer, Reply) and answer.client in self.listened and number <= self.until:
                self.heard[answer.client] = Exchange(number, outbox[answer.client], answer.bundle)
            yield answer


def run_federation(
    federation: Federation,
    sites: Mapping[str, Site],
    *,
    start: Bundle,
    desk: Desk,
    listened: Collection[str] = (),
    until: int = 0,
    progress: Callable[[int], None] = lambda number: None,
) -> Watched:
    """All rounds, in this process or where ``desk.map`` spreads clients' work; clients' memories are kept in this one.

    Args:
        federation: what.
        sites: data by client.
        start: the server's state before the first round.
        desk: as a run has it: with the run's own seed it gives the run's own bits.
        listened: clients whose messages are kept.
        until: the last round in which that is done.
        progress: hears of every round that is done.

    Raises:
        RunError: in some round no client gave a usable reply.
    """
    local = LocalEngine(federation.algorithm, sites, desk)
    engine = _Listening(local, frozenset(listened), until)
    state = start
    for each in rounds(
        federation.algorithm,
        engine,
        desk=desk,
        until=federation.rounds,
        cohort=federation.cohort,
        quorum=federation.quorum,
        farthest=federation.farthest,
        cohorts=federation.cohorts,
        state=start,
    ):
        unable = [failure for failure in each.failures if not failure.able]
        if not each.aggregated and {failure.client for failure in unable} >= set(each.cohort):  # where a run ends, too
            raise RunError(
                f"no client gave a usable reply in round {each.number}: '{unable[0].client}': {unable[0].reason}"
            )
        state = each.state
        progress(each.number)
    memories = {client: local.memory.read(client, federation.rounds + 1) for client in listened}
    heard = {client: each.read_by(federation.algorithm) for client, each in engine.heard.items()}
    return Watched(state, heard, memories)


def sent_network(sent: Bundle, architecture: Architecture) -> Trained | str:
    """The network in what a client sent, or why there is none."""
    model = sent.groups.get("model")
    if model is None:
        held = ", ".join(sorted(sent.groups)) or "nothing but numbers"
        return f"clients of this method send no network: {held}"
    whole = architecture.build(Seed(("unused",))).state_dict()
    if missing := sorted(whole.keys() - model.keys()):
        return f"clients of this run send no whole network: '{missing[0]}' stays with them"
    for name, tensor in whole.items():
        if model[name].shape != tensor.shape:
            return (
                f"clients of this method send another network than the run's: its '{name}' is {list(model[name].shape)} and "
                f"not {list(tensor.shape)}"
            )
    return Trained(architecture, {name: model[name] for name in whole})


def views(watched: Watched, federation: Federation, wanted: Wanted, desk: Desk) -> tuple[list[View], dict[str, str]]:
    """The networks that are attacked, and for each kind of ``wanted`` that there is not, why.

    Args:
        watched: of the federation.
        federation: which.
        wanted: what of it.
        desk: its seed decides the fresh network.

    Raises:
        RunError: that network's training diverged.
    """
    found: list[View] = []
    missing: dict[str, str] = {}
    world = federation.world
    if wanted.final:
        models = federation.algorithm.models(watched.state)
        found += [View(f"{FINAL}:{name}", trained) for name, trained in models.items()]
        if not models:
            missing[FINAL] = "no network is the server's"
    if wanted.client is not None:
        exchange = watched.exchanges.get(wanted.client)
        network = (
            f"'{wanted.client}' sent nothing up to round {wanted.round}"
            if exchange is None
            else sent_network(exchange.up, world.architecture)
        )
        if isinstance(network, str):
            missing[SURROGATE] = network
        else:
            found.append(View(f"{SURROGATE}:{wanted.client}", network, wanted.client))
    if wanted.recipe is not None:
        sets = dict(sorted(watched.state.members("synthetic").items()))
        if not sets:
            missing[DISTILLED] = "the server's state holds no distilled images"
        else:
            found.append(
                View(
                    f"{DISTILLED}:{world.architecture.name}",
                    _taught(join_sets(sets, world), wanted.recipe, world, desk),
                )
            )
    return found, missing


def _taught(lesson: Shard, recipe: Recipe, world: World, desk: Desk) -> Trained:
    """A fresh network that learnt from ``lesson``."""
    seed = desk.seed.at("distilled")
    try:
        fitted = fit(
            world.architecture.build(seed.at("model")), lesson, recipe, seed=seed.at("train"), device=desk.device
        )
    except RunError as error:
        raise RunError(f"the network on distilled images: {error}") from error
    return Trained(world.architecture, {name: tensor.cpu() for name, tensor in fitted.tensors.items()})
