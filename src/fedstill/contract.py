"""What every algorithm promises, as one table that any algorithm can be run through.

    check_algorithm(FedAvg, {"epochs": 1})

The house's own tests run every method of the table through it; a user's ``package.module:factory`` goes the same way with
``fedstill check``.
"""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import torch

from fedstill.bundle import Bundle
from fedstill.data.shard import Normalisation, Shard
from fedstill.engines.local import LocalEngine
from fedstill.engines.memory import Memory
from fedstill.evaluate.scoring import score_clients, scoring_message
from fedstill.generators.pixels import Pixels
from fedstill.models.architecture import Architecture
from fedstill.rounds import Algorithm, Desk, Failure, Reply, Round, Site, World, needed_replies, rounds
from fedstill.seeds import Seed
from fedstill.spoilt import ABSURD, SPOILT

__all__ = ["check_algorithm", "tiny_prior", "tiny_sites", "tiny_world"]

ROUNDS = 3
SIZE = 8


def tiny_world() -> World:
    """Three classes of 8 × 8 grey images, and a ConvNet of some hundred parameters."""
    architecture = Architecture(
        name="convnet", channels=1, size=(SIZE, SIZE), classes=3, options={"depth": 2, "width": 4}
    )
    return World(architecture, ("bar", "dot", "edge"), Normalisation((0.5,), (0.25,)))


def tiny_sites(clients: int = 4, images: int = 18) -> dict[str, Site]:
    """Unequal clients: client k holds ``images`` + k, of two classes more than of the third."""
    return {f"c{k:02d}": _tiny_site(k, images + k) for k in range(clients)}


def _tiny_site(index: int, images: int) -> Site:
    world = tiny_world()
    seed = Seed.root(0).at("tiny", index)
    labels = torch.tensor([(index + (row % 3 > 0) * (1 + row % 2)) % 3 for row in range(images)])
    noise = torch.randint(0, 120, (images, 1, SIZE, SIZE), generator=seed.torch())
    for row, label in enumerate(labels.tolist()):
        noise[row, :, 2 * label : 2 * label + 3, :] += 120
    shard = Shard(noise.to(torch.uint8), labels, world.classes, world.normalisation)
    return Site(shard, shard.take(range(0, images, 3)), shard.take(range(1, images, 3)))


def tiny_prior(*, channels: int, size: tuple[int, int], normalisation: Normalisation, classes: int) -> Pixels:
    """Stands in for a prior, ``generator = "fedstill.contract:tiny_prior"``: the shipped ones do not go down to 8 pixels."""
    return Pixels(channels, size, normalisation)


@dataclass(frozen=True)
class _Shuffled:
    """An engine whose answers arrive in reverse, and of whose clients one may be missing."""

    inner: LocalEngine
    absent: str | None = None

    def clients(self) -> Sequence[str]:
        return self.inner.clients()

    def work(self, number: int, outbox: Mapping[str, Bundle], task: str) -> Iterator[Reply | Failure]:
        for answer in reversed(list(self.inner.work(number, outbox, task))):
            yield Failure(answer.client, "was absent") if answer.client == self.absent else answer


@dataclass(frozen=True)
class _Answering:
    """An engine whose clients have answered already."""

    answers: Sequence[Reply | Failure]

    def clients(self) -> Sequence[str]:
        return [answer.client for answer in self.answers]

    def work(self, number: int, outbox: Mapping[str, Bundle], task: str) -> Iterator[Reply | Failure]:
        yield from self.answers


@dataclass(frozen=True)
class _Recorded:
    """An engine whose answers are put down, by round."""

    inner: LocalEngine
    answers: dict[int, list[Reply | Failure]] = field(default_factory=dict)

    def clients(self) -> Sequence[str]:
        return self.inner.clients()

    def work(self, number: int, outbox: Mapping[str, Bundle], task: str) -> Iterator[Reply | Failure]:
        self.answers[number] = list(self.inner.work(number, outbox, task))
        yield from self.answers[number]


def check_algorithm(factory: Callable[..., Algorithm], options: Mapping[str, Any] | None = None) -> list[str]:
    """Run an algorithm through the contract, in a tiny world, in seconds.

    Args:
        factory: called as ``factory(world=…, **options)``.
        options: its other fields; choose small ones.

    Returns:
        The clauses it kept, as sentences.

    Raises:
        AssertionError: the first clause it broke, as a sentence.
    """
    algorithm = factory(world=tiny_world(), **(options or {}))
    kept: list[str] = []
    for clause, check in CLAUSES.items():
        broken = check(algorithm)
        if broken is not None:
            raise AssertionError(f"{clause}: {broken}")
        kept.append(clause)
    return kept


def _engine(algorithm: Algorithm, memory: Memory | None = None) -> LocalEngine:
    return LocalEngine(algorithm, _sites(algorithm), _desk(), memory or Memory())


def _sites(algorithm: Algorithm) -> dict[str, Site]:
    """Enough for a round in which one is missing."""
    return tiny_sites(max(4, needed_replies(algorithm)[0] + 1))


def _desk(seed: int = 0) -> Desk:
    return Desk(Seed.root(seed))


def _run(algorithm: Algorithm, engine: Any, *, until: int = ROUNDS, seed: int = 0, **more: Any) -> list[Round]:
    return list(rounds(algorithm, engine, desk=_desk(seed), until=until, **more))


def _digest(bundle: Bundle) -> str:
    return hashlib.sha256(bundle.to_bytes()).hexdigest()


def _final(run: list[Round]) -> str:
    return _digest(run[-1].state)


def _inputs_stay(algorithm: Algorithm) -> str | None:
    sites = _sites(algorithm)
    state = algorithm.init(list(sites), _desk())
    task = algorithm.task(state) or "local"
    before = _digest(state)
    replies = []
    for client, site in sites.items():
        inbox = algorithm.broadcast(state, client).detached()
        images, held = site.train.images.clone(), _digest(inbox)
        work = algorithm.score if task == "score" else algorithm.local
        result = work(inbox, site, Bundle(), _desk().at(client))
        replies.append(Reply(client, (result if isinstance(result, Bundle) else result[0]).detached()))
        if _digest(inbox) != held:
            return f"client work for '{client}' changed its inbox"
        if not torch.equal(site.train.images, images):
            return f"client work for '{client}' changed its images"
    sent = [_digest(reply.bundle) for reply in replies]
    algorithm.aggregate(state, replies, _desk())
    if sent != [_digest(reply.bundle) for reply in replies]:
        return "aggregate changed a reply"
    return None if _digest(state) == before else "broadcast or aggregate changed the state it was given"


def _weights(algorithm: Algorithm) -> str | None:
    sites = tiny_sites()
    state = algorithm.init(list(sites), _desk())
    client, site = next(iter(sites.items()))
    reply, _ = algorithm.local(algorithm.broadcast(state, client), site, Bundle(), _desk())
    if reply.numbers.get("examples") != len(site.train):
        return f"the reply's numbers['examples'] is {reply.numbers.get('examples')}, the client holds {len(site.train)}"
    return None


def _order(algorithm: Algorithm) -> str | None:
    straight = _run(algorithm, _engine(algorithm))
    return None if _final(_run(algorithm, _Shuffled(_engine(algorithm)))) == _final(straight) else "the bits differ"


def _same_bits(algorithm: Algorithm) -> str | None:
    first, second = (_final(_run(algorithm, _engine(algorithm))) for _ in range(2))
    return None if first == second else "two runs differ"


def _seeded(algorithm: Algorithm) -> str | None:
    first, second = (_final(_run(algorithm, _engine(algorithm), seed=seed)) for seed in (0, 1))
    return None if first != second else "the seed changes nothing"


def _resume(algorithm: Algorithm) -> str | None:
    straight = _run(algorithm, _engine(algorithm))
    if (last := len(straight)) == 1:  # it asks for one round alone, and before that there is nothing to go on from
        return None
    memory = Memory()
    part = _run(algorithm, _engine(algorithm, memory), until=last - 1)
    stored = Bundle.from_bytes(part[-1].state.to_bytes())
    rest = _run(algorithm, _engine(algorithm, memory), start=last - 1, state=stored)
    return (
        None if _final(rest) == _final(straight) else f"rounds 1 to {last - 1} and then {last} differ from 1 to {last}"
    )


def _repeat(algorithm: Algorithm) -> str | None:
    memory = Memory()
    engine = _engine(algorithm, memory)
    first = _run(algorithm, engine, until=2)
    last = len(first)  # it may ask for one round alone
    before = _run(algorithm, _engine(algorithm), until=1)[-1].state if last == 2 else None
    again = _run(algorithm, engine, until=last, start=last - 1, state=before)
    return None if _final(again) == _final(first) else f"doing round {last} again, after a crash, gave other bits"


def _absent(algorithm: Algorithm) -> str | None:
    run = _run(algorithm, _Shuffled(_engine(algorithm), absent="c01"), until=1)
    named = [failure.client for failure in run[0].failures]
    return None if "c01" in named and run[0].aggregated else f"failures of the round: {named}"


def _cohorts(algorithm: Algorithm) -> str | None:
    size = max(2, needed_replies(algorithm)[0])
    run = _run(algorithm, _engine(algorithm), cohort=size)
    return None if all(len(part.cohort) == size for part in run) else f"a cohort of {size} was not {size}"


def _scarce(algorithm: Algorithm) -> str | None:
    sites = _sites(algorithm)
    whole = sites["c00"].train
    one_class = (whole.labels == whole.labels[0]).nonzero().flatten().tolist()
    held = {"c01": whole.take([0]), "c02": whole.take(one_class), "c03": whole.take([])}
    little = sites | {client: replace(sites[client], train=shard) for client, shard in held.items()}
    run = _run(algorithm, LocalEngine(algorithm, little, _desk(), Memory()), until=2)
    for part in run:
        failed = {failure.client: failure.reason for failure in part.failures}
        if why := next(
            (f"{client} failed: {failed[client]}" for client in ("c00", "c01", "c02") if client in failed), None
        ):
            return why
        if not part.aggregated:
            return f"nothing came of round {part.number}"
    return None


def _hostile(algorithm: Algorithm) -> str | None:
    engine = _Recorded(_engine(algorithm))
    run = _run(algorithm, engine)
    number, needed = run[-1].number, needed_replies(algorithm)[0]
    before = run[-2].state if len(run) > 1 else algorithm.init(engine.clients(), _desk().at("init")).detached()
    first, *others = engine.answers[number]
    assert isinstance(first, Reply)  # what clients answer other clauses ask

    def after(*answers: Reply | Failure) -> Round:
        return _run(algorithm, _Answering(answers), until=number, start=number - 1, state=before)[0]

    # with the fewest others that there may be every spoilt reply, which costs little; with one more, the first of each kind
    for rest, most in ((others[: needed - 1], None), (others[:needed], 1)):
        absent = _digest(after(Failure(first.client, "was absent"), *rest).state)
        honest = _digest(after(first, *rest).state)
        for what, spoil in SPOILT.items():
            for bundle in islice(spoil(first.bundle), most):
                try:
                    found = after(Reply(first.client, bundle), *rest)
                except Exception as error:
                    return f"a reply with {what} ends the run ({type(error).__name__}: {error})"
                refused = first.client in {failure.client for failure in found.failures}
                if what not in ABSURD and _digest(found.state) != (absent if refused else honest):
                    return f"a reply with {what} is {'refused, and yet' if refused else 'not refused, and'} changes the state"
    return None


def _safetensors(algorithm: Algorithm) -> str | None:
    state = _run(algorithm, _engine(algorithm), until=1)[-1].state
    for name, bundle in {"the state": state, "a broadcast": algorithm.broadcast(state, "c00")}.items():
        if _digest(Bundle.from_bytes(bundle.to_bytes())) != _digest(bundle):
            return f"{name} does not survive being written and read"
    return None


def _models(algorithm: Algorithm) -> str | None:
    state = _run(algorithm, _engine(algorithm), until=1)[-1].state
    shard = tiny_sites()["c00"].test
    for name, trained in algorithm.models(state).items():
        logits = trained.module().eval()(shard.inputs())
        if logits.shape != (len(shard), len(shard.classes)) or not torch.isfinite(logits).all():
            return f"model '{name}' gives logits of shape {tuple(logits.shape)}, or not finite ones"
    return None


def _scores(algorithm: Algorithm) -> str | None:
    state = _run(algorithm, _engine(algorithm), until=1)[-1].state
    message = scoring_message(state)
    if message is None:
        return None
    whole = tiny_sites()["c00"]
    none = whole.test.take([])
    for site in (whole, replace(whole, validation=none), replace(whole, test=none)):
        reply = algorithm.score(message, site, Bundle(), _desk())
        if foreign := [name for name in reply.groups if name.partition(":")[0] != "statistics"]:
            return f"score sends the group '{foreign[0]}', and only groups of the kind 'statistics' hold counts"
        engine = _Answering([Reply("c00", reply)])
        found = score_clients(engine, 1, state, ["c00"], classes=len(whole.test.classes))
        if found.failures:
            return f"the reply of score is refused: {found.failures[0].reason}"
        if found.validation.examples != len(site.validation):
            return f"score counts {found.validation.examples} validation images, there are {len(site.validation)}"
        if found.test.examples != len(site.test):
            return f"score counts {found.test.examples} test images, there are {len(site.test)}"
    return None


def _pickles(algorithm: Algorithm) -> str | None:
    # to worker processes of this machine; nothing that came from outside is ever unpickled
    try:
        pickle.loads(pickle.dumps(algorithm))
    except (pickle.PicklingError, TypeError, AttributeError) as error:
        return f"cannot go to a worker process ({error})"
    return None


CLAUSES: Mapping[str, Callable[[Algorithm], str | None]] = {
    "inputs are not mutated": _inputs_stay,
    "a reply carries its weight": _weights,
    "the order of arrival changes nothing": _order,
    "same seed, same bits": _same_bits,
    "another seed, other bits": _seeded,
    "resumed equals straight": _resume,
    "a repeated round is harmless": _repeat,
    "a missing client is a counted Failure": _absent,
    "a cohort may be a part of the clients": _cohorts,
    "one image or one class is enough, and no image stops no other client": _scarce,
    "a spoilt reply is refused or without effect, and ends no run": _hostile,
    "every Bundle survives safetensors": _safetensors,
    "models classify": _models,
    "scores are counts": _scores,
    "the algorithm survives pickling": _pickles,
}
