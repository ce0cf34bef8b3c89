"""Shadow federations: the same method, network, client sizes and classes, on other images, from other random numbers. In
each round they ask the clients that the target asked, so that a client's message of a round has as many before it.

What an attacker sees of each is scored on every image of the pool, and the scores are kept in a file as soon as they are there:
an audit that was killed goes on after the last whole one, and one with more shadows takes those that there are.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from fedstill.audit.federation import Federation, View, Wanted, run_federation, views
from fedstill.audit.lira import confidence
from fedstill.audit.pool import Pool
from fedstill.audit.queries import queries
from fedstill.bundle import Bundle
from fedstill.errors import RunError
from fedstill.files import write_bytes
from fedstill.rounds import Desk, Site
from fedstill.seeds import Seed
from fedstill.train import predict

__all__ = ["Job", "Plan", "Shadow", "confidences", "kept", "run_shadows"]

_KEY = "fedstill.audit"


@dataclass(frozen=True)
class Shadow:
    """One shadow federation's scores.

    Attributes:
        number: from 0.
        inside: images of the pool that it trained on, [n].
        confidence: φ of every image of the pool, [n], by the view's name; with several queries [n, queries].
    """

    number: int
    inside: Bool[NDArray[np.bool_], " n"]
    confidence: Mapping[str, Float[NDArray[np.float64], "n *queries"]]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What all shadow federations have in common; crosses to worker processes.

    Attributes:
        federation: what is run.
        pool: what they draw from.
        sites: the clients' validation and test images; what they train on comes of the pool.
        wanted: what is attacked of each; of messages those of just that round.
        folder: of the scores.
        identity: all that decides them, in words or as a hash.
        device: where to compute.
        queries: of an image.
    """

    federation: Federation
    pool: Pool
    sites: Mapping[str, Site]
    wanted: Wanted
    folder: Path
    identity: str
    device: str
    queries: int = 1


@dataclass(frozen=True)
class Job:
    """One shadow federation: its number, its place in the tree of seeds, the server's state before round 1."""

    number: int
    seed: Seed
    start: Bundle


def run_shadows(plan: Plan, jobs: Iterable[Job], desk: Desk) -> Iterator[Shadow]:
    """Do the jobs, where ``desk.map`` spreads them; each shadow is kept before it is given.

    Raises:
        RunError: one of them came to nothing, or the disk refuses its file.
    """
    return desk.map(partial(_shadow, plan), jobs)


def kept(folder: Path, number: int, identity: str) -> Shadow | None:
    """What an earlier audit has kept of shadow ``number``; None where there is nothing whole of that identity."""
    path = _path(folder, number)
    try:
        with safe_open(path, framework="pt") as file:
            if (file.metadata() or {}).get(_KEY) != _about(number, identity):
                return None
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
    except (OSError, SafetensorError):
        return None
    inside = tensors.pop("inside")
    return Shadow(number, inside.bool().numpy(), {name: each.numpy() for name, each in tensors.items()})


def confidences(
    found: Iterable[View], pool: Pool, device: str, count: int = 1
) -> dict[str, Float[NDArray[np.float64], "n *queries"]]:
    """φ of every image of the pool by each view's network, [n], by the view's name; of several queries [n, ``count``]."""
    told = {}
    for view in found:
        network = view.trained.module()
        each = [
            confidence(predict(network, asked, device=device), asked.labels) for asked in queries(pool.shard, count)
        ]
        told[view.name] = each[0] if count == 1 else np.stack(each, 1)
    return told


def _shadow(plan: Plan, job: Job) -> Shadow:
    inside = plan.pool.draw(job.seed.at("draw"))
    sites = {
        client: Site(plan.pool.held(inside, client), site.validation, site.test) for client, site in plan.sites.items()
    }
    desk = Desk(job.seed.at("run"), device=plan.device)
    try:
        watched = run_federation(
            plan.federation,
            sites,
            start=job.start,
            desk=desk,
            listened=() if plan.wanted.client is None else (plan.wanted.client,),
            until=plan.wanted.round,
        )
        # a message of another round, where the client's own failed here, is not compared with the target's
        heard = {client: each for client, each in watched.exchanges.items() if each.number == plan.wanted.round}
        found, _ = views(replace(watched, exchanges=heard), plan.federation, plan.wanted, desk)
    except RunError as error:
        raise RunError(f"shadow federation {job.number}: {error}") from error
    shadow = Shadow(job.number, inside, confidences(found, plan.pool, plan.device, plan.queries))
    tensors = {name: torch.from_numpy(each) for name, each in shadow.confidence.items()}
    content = save(
        tensors | {"inside": torch.from_numpy(inside).to(torch.uint8)}, {_KEY: _about(job.number, plan.identity)}
    )
    write_bytes(_path(plan.folder, job.number), content)  # by the worker: its neighbour may be killed before it is done
    return shadow


def _about(number: int, identity: str) -> str:
    return json.dumps({"shadow": number, "identity": identity})


def _path(folder: Path, number: int) -> Path:
    return folder / f"shadow-{number:04d}.safetensors"
