"""What a run will cost, before it starts: bytes and parameters counted, time from one timed step of each phase."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from fedstill.algorithms.updates import OnUpdates
from fedstill.algorithms.virtual import OnVirtual, VirtualSettings, own_set
from fedstill.bundle import Bundle
from fedstill.errors import RunError
from fedstill.evaluate.scoring import has_own_images, score_models, scoring_message
from fedstill.evaluate.theory import mean_gradient
from fedstill.experiment import Experiment, Parts
from fedstill.rounds import Algorithm, Desk, Reply, Site, Trained, cohort_size
from fedstill.runtime import peak_memory, pick_device, prepare
from fedstill.seeds import Seed

__all__ = ["Cost", "estimate"]

TIMED_STEPS = 3
"""Distillation steps in the longer of two timed tries; what both have in common (start, end, setting up) cancels."""

MOST_TIMED_STEPS = 48
"""The same where steps are so short that what else the machine does could hide them."""

TELLING_SECONDS = 0.1
"""A difference between two tries that is long enough to be told."""

TIMED_IMAGES = 100
"""Images of a timed gradient, at most."""

_LEAST: Mapping[str, int] = {
    "epochs": 1,
    "distill_steps": 1,
    "match_steps": 1,
    "global_epochs": 1,
    "conditioning": 0,
    "retries": 0,
    "experts": 1,
    "expert_epochs": 1,
    "span": 1,
    "latest": 1,
    "judges": 1,
    "judge_epochs": 1,
    "check_every": 1_000_000,
}
"""Of an algorithm that is tried: each phase once, as short as it can be."""

TIMED_CLIENTS = 10
"""Clients whose sets make up the union of a timed epoch, at most."""


@dataclass(frozen=True)
class Cost:
    """An estimate.

    Attributes:
        histogram: images a class by client.
        classes: their names.
        parameters: trainable numbers by network.
        cohort: clients asked in a round.
        rounds: in all.
        traffic: payload of each round, down and up, without scoring.
        bytes_scoring: payload of a round's scores, there and back.
        seconds: of a round, by phase, spread over the workers; the mean over rounds, where these differ.
        seconds_once: by phase, of what a run does once.
        memory: peak of a process that did one small step of everything, in bytes; None where the system does not tell.
        workers: processes; each takes about ``memory``.
        remarks: what the method has to say of such a run.
    """

    histogram: Mapping[str, Sequence[int]]
    classes: Sequence[str]
    parameters: Mapping[str, int]
    cohort: int
    rounds: int
    traffic: Sequence[tuple[int, int]]
    bytes_scoring: int
    seconds: Mapping[str, float]
    seconds_once: Mapping[str, float]
    memory: int | None
    workers: int
    remarks: Sequence[str] = ()

    @property
    def bytes_down(self) -> int:
        """Of a round; the mean, where rounds differ."""
        return round(sum(down for down, _ in self.traffic) / self.rounds)

    @property
    def bytes_up(self) -> int:
        """Of a round; the mean, where rounds differ."""
        return round(sum(up for _, up in self.traffic) / self.rounds)

    @property
    def total_bytes(self) -> int:
        return sum(down + up for down, up in self.traffic) + self.rounds * self.bytes_scoring

    @property
    def total_seconds(self) -> float:
        return self.rounds * sum(self.seconds.values()) + sum(self.seconds_once.values())

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            **dataclasses.asdict(self),
            "bytes_down": self.bytes_down,
            "bytes_up": self.bytes_up,
            "total_bytes": self.total_bytes,
            "total_seconds": self.total_seconds,
        }


def estimate(experiment: Experiment) -> Cost:
    """Build ``experiment``, take one step of each phase, and multiply.

    Phases are shrunk by the algorithm's own fields (``epochs``, ``match_steps``, ``distill_steps``, ``global_epochs``), where it
    has them. Rounds that differ in what clients are sent are looked at one by one; initial virtual images are not distilled.

    Raises:
        InputError: the experiment cannot be run.
        RunError: its first step fails.
    """
    prepare(experiment.threads)
    device = pick_device(experiment.engine.device)
    built = experiment.build()
    parts, update = _apart(built)
    asked = cohort_size(parts.cohort, tuple(parts.sites), experiment.quorum)
    workers = experiment.engine.workers
    desk = Desk(Seed.root(experiment.seed).at("dry"), device=device)
    settings = getattr(parts.algorithm, "virtual", None)
    once = {} if settings is None else {"virtual": _timed_virtual(parts, settings, desk) / workers}
    method, sites = _opened(parts, desk)
    client, site = _middle(sites)
    algorithm = _shrunk(method, **_LEAST)
    examples = sum(len(each.train) for each in sites.values()) / len(sites) * asked
    epochs = getattr(method, "epochs", 1)
    seconds: dict[str, float] = {}
    own = hasattr(method, "virtual")  # its clients train on as many images as they make, not as they hold
    few = site if own else _small(site, batch=getattr(algorithm, "batch", len(site.train)))
    stages = _stages(parts.start, algorithm, few, client, desk, rounds=experiment.rounds)
    rounds = sum(len(stage.rounds) for stage in stages)  # a method may end before the experiment
    for stage in stages:
        matching = _per_match(algorithm, stage.inbox, site, desk) * (getattr(method, "match_steps", 1) - 1)
        if stage.task == "score":
            training = _seconds(partial(method.score, stage.inbox, site, Bundle(), desk)) * asked
        elif hasattr(method, "expert_epochs"):
            training = _timed_node(method, stage.inbox, site, desk, mean=examples / asked) * asked
        elif own:
            training = _timed_visit(algorithm, stage.inbox, site, desk, epochs=epochs) * asked
        else:
            training = _timed_visit(algorithm, stage.inbox, few, desk, epochs=1) / len(few.train) * examples * epochs
        found = {"clients": (training + asked * matching) / min(workers, asked)}
        found |= _server(sites, method, algorithm, stage, desk, asked=asked, workers=workers)
        for phase, each in found.items():
            seconds[phase] = seconds.get(phase, 0.0) + each * len(stage.rounds) / rounds
    models = parts.algorithm.models(parts.start)
    scoring = _timed_scoring(parts, algorithm, desk)
    by_round = {number: stage for stage in stages for number in stage.rounds}
    traffic = [(stage.inbox.nbytes, _sent(update, stage, desk).nbytes) for _, stage in sorted(by_round.items())]
    began = time.perf_counter()
    score_models(models, parts.data.test, device=device)
    seconds["evaluate"] = time.perf_counter() - began + scoring.seconds / workers
    if experiment.evaluate.gradients:
        ipc: int = getattr(method, "global_ipc", asked * getattr(method, "ipc", 0))
        synthetic = len(parts.world.classes) * ipc
        seconds["evaluate"] += _timed_gradients(parts, device, synthetic=synthetic)
    return Cost(
        histogram={name: each.train.histogram() for name, each in parts.sites.items()},
        classes=parts.world.classes,
        parameters={
            name: sum(parameter.numel() for parameter in trained.module().parameters())
            for name, trained in models.items()
        },
        cohort=asked,
        rounds=rounds,
        traffic=[(asked * down, asked * up) for down, up in traffic],
        bytes_scoring=scoring.nbytes,
        seconds=seconds,
        seconds_once=once,
        memory=peak_memory(),
        workers=workers,
        remarks=built.remarks(experiment.rounds),
    )


def _apart(parts: Parts) -> tuple[Parts, OnUpdates | None]:
    """The parts of a run whose clients send what they learnt as it is, and what otherwise becomes of it."""
    update = parts.algorithm
    return (
        (dataclasses.replace(parts, algorithm=update.inner), update) if isinstance(update, OnUpdates) else (parts, None)
    )


def _sent(update: OnUpdates | None, stage: _Stage, desk: Desk) -> Bundle:
    """What travels of a reply."""
    reply = stage.reply.bundle
    return reply if update is None or stage.task == "score" else update.sent(stage.inbox, reply, desk.seed.at("update"))


def _opened(parts: Parts, desk: Desk) -> tuple[Algorithm, Mapping[str, Site]]:
    """The method itself, and sites as it finds them: with the starts of their virtual images, which are as many as the images."""
    if isinstance(parts.algorithm, OnVirtual):
        start = _begun(parts.algorithm.virtual)
        return parts.algorithm.inner, {
            client: dataclasses.replace(site, train=own_set(start, site.train, Bundle(), parts.world, desk.at(client)))
            for client, site in parts.sites.items()
        }
    if hasattr(parts.algorithm, "virtual"):
        start = _begun(parts.algorithm.virtual)
        return dataclasses.replace(parts.algorithm, virtual=start), parts.sites  # type: ignore[type-var]
    return parts.algorithm, parts.sites


def _begun(settings: VirtualSettings) -> VirtualSettings:
    """With as little matching as a budget needs to be one."""
    return dataclasses.replace(settings, steps=0 if settings.privacy_epsilon is None else 1)


def _timed_virtual(parts: Parts, settings: VirtualSettings, desk: Desk) -> float:
    """Seconds in which all clients distil their initial virtual images, as if on one process."""
    _, site = _middle(parts.sites)

    def timed(steps: int) -> float:
        few = dataclasses.replace(settings, steps=steps)
        return _seconds(lambda: own_set(few, site.train, Bundle(), parts.world, desk))

    first = timed(min(1, settings.steps))
    return len(parts.sites) * (first + _per_step(timed) * max(0, settings.steps - 1))


@dataclass(frozen=True)
class _Stage:
    """Rounds in which clients do the same and are sent the same, but for values: their numbers, and the first of them."""

    rounds: list[int]
    task: str
    state: Bundle
    inbox: Bundle
    reply: Reply


def _stages(
    state: Bundle, algorithm: Algorithm, site: Site, client: str, desk: Desk, *, rounds: int
) -> Sequence[_Stage]:
    """What a run of ``rounds`` rounds is made of.

    Raises:
        RunError: the first local step gives numbers that are not finite.
    """
    stages: dict[object, _Stage] = {}
    for number in range(1, rounds + 1):
        if (task := algorithm.task(state)) is None:
            break
        state = state.put({"round": number})
        inbox = algorithm.broadcast(state, client)
        form = task, _form(inbox)
        if form in stages:
            stages[form].rounds.append(number)
            continue
        if task == "score":
            bundle = algorithm.score(inbox, site, Bundle(), desk)
        else:
            bundle, _ = algorithm.local(inbox, site, Bundle(), desk)
        if not bundle.finite():
            raise RunError("the first local step gives numbers that are not finite: use a smaller algorithm.lr")
        stages[form] = _Stage([number], task, state, inbox, Reply(client, bundle.detached()))
        if rounds > 1:
            state = algorithm.aggregate(state, [stages[form].reply], desk).state
    return list(stages.values())


def _form(bundle: Bundle) -> object:
    """All that its size depends on."""
    return (
        tuple(
            (name, tuple((key, tensor.shape, tensor.dtype) for key, tensor in group.items()))
            for name, group in bundle.groups.items()
        ),
        tuple(bundle.numbers),
    )


def _small(site: Site, *, batch: int) -> Site:
    """The site with one batch."""
    return dataclasses.replace(site, train=site.train.take(range(min(len(site.train), batch))))


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _per_step(timed: Callable[[int], float]) -> float:
    """Seconds that one more step adds to ``timed``, which is told how many to take; short steps are timed in greater number."""
    steps = TIMED_STEPS
    while (added := timed(steps) - timed(1)) < TELLING_SECONDS and 4 * steps <= MOST_TIMED_STEPS:
        steps *= 4
    return max(0.0, added) / (steps - 1)


def _timed_visit(algorithm: Algorithm, inbox: Bundle, site: Site, desk: Desk, *, epochs: int) -> float:
    """Seconds of a client's training, which has been warmed up."""

    def timed(count: int) -> float:
        return _seconds(lambda: _shrunk(algorithm, epochs=count).local(inbox, site, Bundle(), desk))

    first = timed(1)
    return first if epochs == 1 else first + max(0.0, timed(2) - first) * (epochs - 1)


def _per_match(algorithm: Algorithm, inbox: Bundle, site: Site, desk: Desk) -> float:
    """Seconds that one more distillation step of a client takes; 0 where clients do not distil."""
    if not hasattr(algorithm, "match_steps"):
        return 0.0

    def timed(steps: int) -> float:
        return _seconds(lambda: _shrunk(algorithm, match_steps=steps).local(inbox, site, Bundle(), desk))

    return _per_step(timed)


def _timed_node(method: Algorithm, inbox: Bundle, site: Site, desk: Desk, *, mean: float) -> float:
    """Seconds of a client that trains experts, distils and judges; of one with ``mean`` images."""

    def timed(**fields: int) -> float:
        shrunk = _shrunk(method, **{**_LEAST, **fields})
        return _seconds(lambda: shrunk.local(inbox, site, Bundle(), desk))

    asked: dict[str, int] = {
        name: getattr(method, name) for name in ("experts", "expert_epochs", "distill_steps", "judges", "judge_epochs")
    }
    if not asked["distill_steps"]:
        return timed()
    every: int = getattr(method, "check_every", 1)
    looks = 1 + math.ceil(asked["distill_steps"] / every)
    epoch = _per_step(lambda count: timed(expert_epochs=count)) * mean / len(site.train)
    step = _per_step(lambda count: timed(distill_steps=count))
    judging = _per_step(lambda count: timed(judge_epochs=count)) / 2  # at the start and at the end
    return (
        timed()
        + epoch * (asked["experts"] * asked["expert_epochs"] - 1)
        + step * (asked["distill_steps"] - 1)
        + judging * (looks * asked["judges"] * asked["judge_epochs"] - 2)
    )


@dataclass(frozen=True)
class _Scoring:
    nbytes: int
    seconds: float


def _timed_scoring(parts: Parts, algorithm: Algorithm, desk: Desk) -> _Scoring:
    """Of all clients: bytes counted, and seconds as if on one process."""
    message = scoring_message(parts.start)
    sites = [each for each in parts.sites.values() if has_own_images(each)]
    if message is None or not sites:
        return _Scoring(0, 0.0)
    # what a client sends depends on which kinds of images it has, not on how many; the largest of each kind is timed
    largest = {_kinds(each): each for each in sorted(sites, key=_own_images)}
    began = time.perf_counter()
    sizes = {kinds: algorithm.score(message, each, Bundle(), desk).nbytes for kinds, each in largest.items()}
    per_image = (time.perf_counter() - began) / sum(map(_own_images, largest.values()))
    return _Scoring(
        nbytes=sum(message.nbytes + sizes[_kinds(each)] for each in sites),
        seconds=per_image * sum(map(_own_images, sites)),
    )


def _kinds(site: Site) -> tuple[bool, bool]:
    return len(site.validation) > 0, len(site.test) > 0


def _own_images(site: Site) -> int:
    return len(site.validation) + len(site.test)


def _timed_gradients(parts: Parts, device: str, *, synthetic: int) -> float:
    """Seconds of a round's gradients: on all clients' images once, as the next round begins where this one ends, and twice on
    ``synthetic`` images."""
    if "model" not in parts.start.groups:
        return 0.0
    _, site = _middle(parts.sites)
    some = site.train.take(range(min(len(site.train), TIMED_IMAGES)))
    network = Trained(parts.world.architecture, parts.start.groups["model"]).module()
    mean_gradient(network, [some], device=device)
    began = time.perf_counter()
    mean_gradient(network, [some], device=device)
    per_image = (time.perf_counter() - began) / len(some)
    return per_image * (sum(len(each.train) for each in parts.sites.values()) + 2 * synthetic)


def _server(
    sites: Mapping[str, Site],
    method: Algorithm,
    algorithm: Algorithm,
    stage: _Stage,
    desk: Desk,
    *,
    asked: int,
    workers: int,
) -> dict[str, float]:
    """Seconds of aggregation: distilling and training where the algorithm reports them, else folding the replies.

    What every length has in common (setting up, scores at start and end) is told from what a step or an epoch adds.
    """
    reply = stage.reply

    def timed(replies: Sequence[Reply], **fields: int) -> Mapping[str, float]:
        present = {name: value for name, value in fields.items() if hasattr(algorithm, name)}
        shorter = dataclasses.replace(algorithm, **present)  # type: ignore[type-var]
        began = time.perf_counter()
        figures = shorter.aggregate(stage.state, replies, desk).figures
        return {"server": time.perf_counter() - began, **figures.get("seconds", {})}

    first = timed([reply])
    steps, epochs = (getattr(method, name, 0) for name in ("distill_steps", "global_epochs"))
    distil = first.get("distil", 0.0)
    if steps and "distil" in first:
        per_step = _per_step(lambda count: timed([reply], distill_steps=count)["distil"])
        distil += per_step * (steps - 1 + 2 * getattr(method, "conditioning", False))
    if "train" not in first:  # one set for all clients, or none
        fold = (first["server"] - first.get("distil", 0.0)) * asked
        return {"server": fold, "distil": distil} if "distil" in first else {"server": fold}
    # undistilled sets train as long as distilled ones, and none of them can fail
    few = [Reply(client, reply.bundle) for client in list(sites)[: min(asked, TIMED_CLIENTS)]]
    once, twice = (timed(few, distill_steps=0, global_epochs=count)["train"] for count in (1, 2))
    per_epoch = max(0.0, twice - once) * asked / len(few)
    networks = len(method.models(stage.state))
    train = {"train": (once + per_epoch * (epochs - 1)) / min(workers, networks)}
    return {"distil": distil * math.ceil(asked / workers), **train} if "distil" in first else train


def _shrunk(algorithm: Algorithm, **fields: int) -> Algorithm:
    """The same with these fields where it has them; a zero stays, for it switches a phase off."""
    present = {name: value for name, value in fields.items() if getattr(algorithm, name, 0)}
    return dataclasses.replace(algorithm, **present)  # type: ignore[type-var]


def _middle(sites: Mapping[str, Site]) -> tuple[str, Site]:
    """The client of median size."""
    return sorted(sites.items(), key=lambda item: len(item[1].train))[len(sites) // 2]
