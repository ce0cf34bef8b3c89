"""What a run will cost, before it starts: bytes and parameters counted, time from one timed step of each phase."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

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

TIMED_IMAGES = 100
"""Images of a timed gradient, at most."""

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
        bytes_down, bytes_up: payload of a round, without scoring.
        bytes_scoring: payload of a round's scores, there and back.
        seconds: of a round, by phase, spread over the workers.
        memory: peak of a process that did one small step of everything, in bytes; None where the system does not tell.
        workers: processes; each takes about ``memory``.
    """

    histogram: Mapping[str, Sequence[int]]
    classes: Sequence[str]
    parameters: Mapping[str, int]
    cohort: int
    rounds: int
    bytes_down: int
    bytes_up: int
    bytes_scoring: int
    seconds: Mapping[str, float]
    memory: int | None
    workers: int

    @property
    def total_bytes(self) -> int:
        return self.rounds * (self.bytes_down + self.bytes_up + self.bytes_scoring)

    @property
    def total_seconds(self) -> float:
        return self.rounds * sum(self.seconds.values())

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            **dataclasses.asdict(self),
            "total_bytes": self.total_bytes,
            "total_seconds": self.total_seconds,
        }


def estimate(experiment: Experiment) -> Cost:
    """Build ``experiment``, take one step of each phase, and multiply.

    Phases are shrunk by the algorithm's own fields (``epochs``, ``match_steps``, ``distill_steps``, ``global_epochs``), where it
    has them.

    Raises:
        InputError: the experiment cannot be run.
        RunError: its first step fails.
    """
    prepare(experiment.threads)
    device = pick_device(experiment.engine.device)
    parts = experiment.build()
    asked = cohort_size(parts.cohort, tuple(parts.sites), experiment.quorum)
    workers = experiment.engine.workers
    desk = Desk(Seed.root(experiment.seed).at("dry"), device=device)
    client, site = _middle(parts.sites)
    algorithm = _shrunk(
        parts.algorithm, epochs=1, distill_steps=1, match_steps=1, global_epochs=1, conditioning=False, retries=0
    )
    inbox = algorithm.broadcast(parts.start, client)

    local = _timed_local(algorithm, inbox, site, client, desk)
    examples = sum(len(each.train) for each in parts.sites.values()) / len(parts.sites) * asked
    epochs = getattr(parts.algorithm, "epochs", 1)
    matching = _per_match(algorithm, inbox, site, desk) * (getattr(parts.algorithm, "match_steps", 1) - 1)
    seconds = {"clients": (local.per_image * examples * epochs + asked * matching) / min(workers, asked)}
    seconds |= _server(parts, algorithm, local.reply, desk, asked=asked, workers=workers)
    models = parts.algorithm.models(parts.start)
    scoring = _timed_scoring(parts, algorithm, desk)
    began = time.perf_counter()
    score_models(models, parts.data.test, device=device)
    seconds["evaluate"] = time.perf_counter() - began + scoring.seconds / workers
    if experiment.evaluate.gradients:
        synthetic = asked * len(parts.world.classes) * getattr(parts.algorithm, "ipc", 0)
        seconds["evaluate"] += _timed_gradients(parts, device, synthetic=synthetic)
    return Cost(
        histogram={name: each.train.histogram() for name, each in parts.sites.items()},
        classes=parts.world.classes,
        parameters={
            name: sum(parameter.numel() for parameter in trained.module().parameters())
            for name, trained in models.items()
        },
        cohort=asked,
        rounds=experiment.rounds,
        bytes_down=asked * inbox.nbytes,
        bytes_up=asked * local.reply.bundle.nbytes,
        bytes_scoring=scoring.nbytes,
        seconds=seconds,
        memory=peak_memory(),
        workers=workers,
    )


@dataclass(frozen=True)
class _Local:
    reply: Reply
    per_image: float


def _timed_local(algorithm: Algorithm, inbox: Bundle, site: Site, client: str, desk: Desk) -> _Local:
    """One epoch over one batch, after one that warms up."""
    batch = min(len(site.train), getattr(algorithm, "batch", len(site.train)))
    small = dataclasses.replace(site, train=site.train.take(range(batch)))
    algorithm.local(inbox, small, Bundle(), desk)
    began = time.perf_counter()
    bundle, _ = algorithm.local(inbox, small, Bundle(), desk)
    seconds = time.perf_counter() - began
    if not bundle.finite():
        raise RunError("the first local step gives numbers that are not finite: use a smaller algorithm.lr")
    return _Local(Reply(client, bundle.detached()), seconds / batch)


def _per_match(algorithm: Algorithm, inbox: Bundle, site: Site, desk: Desk) -> float:
    """Seconds that one more distillation step of a client takes; 0 where clients do not distil."""
    if not hasattr(algorithm, "match_steps"):
        return 0.0

    def timed(steps: int) -> float:
        longer = _shrunk(algorithm, match_steps=steps)
        began = time.perf_counter()
        longer.local(inbox, site, Bundle(), desk)
        return time.perf_counter() - began

    return max(0.0, timed(TIMED_STEPS) - timed(1)) / (TIMED_STEPS - 1)


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
    parts: Parts, algorithm: Algorithm, reply: Reply, desk: Desk, *, asked: int, workers: int
) -> dict[str, float]:
    """Seconds of aggregation: distilling and training where the algorithm reports them, else folding the replies.

    What every length has in common (setting up, scores at start and end) is told from what a step or an epoch adds.
    """

    def timed(replies: Sequence[Reply], **fields: int) -> Mapping[str, float]:
        present = {name: value for name, value in fields.items() if hasattr(algorithm, name)}
        shorter = dataclasses.replace(algorithm, **present)  # type: ignore[type-var]
        began = time.perf_counter()
        figures = shorter.aggregate(parts.start, replies, desk).figures
        return {"server": time.perf_counter() - began, **figures.get("seconds", {})}

    first = timed([reply])
    if "train" not in first:
        return {"server": first["server"] * asked}
    steps, epochs = (getattr(parts.algorithm, name, 0) for name in ("distill_steps", "global_epochs"))
    distil = first.get("distil", 0.0)
    if steps:
        per_step = max(0.0, timed([reply], distill_steps=TIMED_STEPS)["distil"] - distil) / (TIMED_STEPS - 1)
        distil += per_step * (steps - 1 + 2 * getattr(parts.algorithm, "conditioning", False))
    # undistilled sets train as long as distilled ones, and none of them can fail
    few = [Reply(client, reply.bundle) for client in list(parts.sites)[: min(asked, TIMED_CLIENTS)]]
    once, twice = (timed(few, distill_steps=0, global_epochs=count)["train"] for count in (1, 2))
    per_epoch = max(0.0, twice - once) * asked / len(few)
    networks = len(parts.algorithm.models(parts.start))
    train = {"train": (once + per_epoch * (epochs - 1)) / min(workers, networks)}
    return {"distil": distil * math.ceil(asked / workers), **train} if "distil" in first else train


def _shrunk(algorithm: Algorithm, **fields: int) -> Algorithm:
    """The same with these fields where it has them; a zero stays, for it switches a phase off."""
    present = {name: value for name, value in fields.items() if getattr(algorithm, name, 0)}
    return dataclasses.replace(algorithm, **present)  # type: ignore[type-var]


def _middle(sites: Mapping[str, Site]) -> tuple[str, Site]:
    """The client of median size."""
    return sorted(sites.items(), key=lambda item: len(item[1].train))[len(sites) // 2]
