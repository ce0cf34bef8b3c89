"""A finished run, opened to be attacked: its federation, its last state, what clients sent, and its images."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from fedstill import checkpoint
from fedstill.audit.federation import Exchange, Federation, run_federation
from fedstill.audit.pool import Labelled, Pool, build_pool
from fedstill.bundle import Bundle
from fedstill.data.shard import Shard
from fedstill.data.sources import load
from fedstill.data.testing import formed
from fedstill.engines.memory import Memory
from fedstill.engines.recording import message_path
from fedstill.errors import InputError, unknown
from fedstill.experiment import Experiment, Parts
from fedstill.files import numbered, write_json
from fedstill.folder import AUDITED, MESSAGES
from fedstill.kept import check_data
from fedstill.rounds import Algorithm, Desk
from fedstill.seeds import Seed

__all__ = [
    "Heard",
    "Nothing",
    "Target",
    "exchange_of",
    "exchanges_of",
    "forget_again",
    "held_out",
    "memory_of",
    "open_target",
    "pool_of",
]

_AGAIN, _DONE = "again", "done.json"


class Nothing(InputError):
    """Of this run there is nothing that the attack could be made on; others may go on."""


@dataclass(frozen=True)
class Target:
    """What is attacked.

    Attributes:
        run: its folder.
        experiment, parts: of the run, its data as they were.
        rounds: that are done.
        state: the server's, after the last of them.
    """

    run: Path
    experiment: Experiment
    parts: Parts
    rounds: int
    state: Bundle

    def federation(self, rounds: int | None = None) -> Federation:
        """The run's; up to another round than its last where one is given."""
        return Federation(
            algorithm=self.parts.algorithm,
            world=self.parts.world,
            rounds=self.rounds if rounds is None else rounds,
            cohort=self.parts.cohort,
            quorum=self.experiment.quorum,
            farthest=self.experiment.farthest,
            cohorts=Seed.root(self.experiment.seed).at("run"),
        )

    def client(self, name: str | None) -> str:
        """``name``, or the first client.

        Raises:
            InputError: there is none of that name.
        """
        if name is None:
            return next(iter(self.parts.sites))
        if name not in self.parts.sites:
            raise unknown("--client", name, self.parts.sites)
        return name

    def number(self, wanted: int | None) -> int:
        """``wanted``, or the last round.

        Raises:
            InputError: it is not done.
        """
        if wanted is not None and not 1 <= wanted <= self.rounds:
            raise InputError(f"--round {wanted}: {self.run} has the rounds 1 to {self.rounds}")
        return self.rounds if wanted is None else wanted


class Heard(NamedTuple):
    """An exchange with a client, and how it is known.

    Attributes:
        exchange: None where the client sent nothing.
        source: ``kept`` by the run, or ``re-run``.
        same_bits: whether the run's last state came again to the bit; None where that was not looked at.
    """

    exchange: Exchange | None
    source: str
    same_bits: bool | None


def open_target(run: Path, experiment: Experiment, note: Callable[[str], None]) -> Target:
    """The run in ``run``, which may have been interrupted: what is attacked is its newest checkpoint.

    Args:
        run: its folder.
        experiment: as it stands there.
        note: hears of damaged checkpoints.

    Raises:
        InputError: the folder holds no round, or the data are no longer what they were; one sentence.
    """
    if experiment.engine.kind == "sites":
        raise InputError(f"{run}: its clients' images lie at their sites, and an audit from here needs them")
    parts = experiment.build()
    check_data(run, parts)
    found = checkpoint.newest(run / "checkpoints", parts.identity, note=note)
    if found is None:
        raise InputError(f"{run} has no checkpoint, so no round is done that could be attacked")
    return Target(run, experiment, parts, found[0].round, found[1])


def exchange_of(target: Target, client: str, number: int, desk: Desk, progress: Callable[[int, int], None]) -> Heard:
    """:func:`exchanges_of` one client."""
    return exchanges_of(target, (client,), number, desk, progress)[client]


def exchanges_of(
    target: Target, clients: Sequence[str], number: int, desk: Desk, progress: Callable[[int, int], None]
) -> dict[str, Heard]:
    """The last exchange with each client up to round ``number``: as the run kept it, else its rounds are done again.

    What was heard then is kept until :func:`forget_again`, so that the attacks of one audit share it.

    Args:
        target: the run.
        clients: who.
        number: the last round that counts.
        desk: device and map; the seed is the run's own.
        progress: ``progress(rounds done again, rounds)``.

    Raises:
        InputError: a kept message is damaged.
        RunError: a round that is done again fails, or the disk refuses a message.
    """
    folder = target.run / MESSAGES
    kept = [each for each in numbered(folder, "") if each <= number]
    algorithm = target.parts.algorithm
    found = {client: Heard(_kept(folder, kept, client, algorithm), "kept", None) for client in clients}
    due = [client for client in clients if found[client].exchange is None]
    if not due or len(kept) == number:  # of a round that is kept whole, who is not there sent nothing
        return found
    place = _place_again(target, number)
    if not (done := _done_again(place)).keys() >= set(due):
        done = _listen_again(target, place, due, number, desk, progress)
    there = numbered(place, "")
    return found | {client: Heard(_kept(place, there, client), "re-run", done[client]) for client in due}


def memory_of(target: Target, client: str, number: int, desk: Desk, progress: Callable[[int, int], None]) -> Bundle:
    """What a client remembered after round ``number``: as the run kept it, else its rounds are done again.

    Raises:
        InputError: what is kept is damaged.
        RunError: as :func:`exchanges_of`.
    """
    kept = Memory(target.run / "memory")
    if number in kept.versions(client):
        return kept.read(client, number + 1)
    place = _place_again(target, number)
    if client not in _done_again(place):
        _listen_again(target, place, (client,), number, desk, progress)
    return Bundle.open(_memory_again(place, client))


def forget_again(run: Path) -> None:
    """Remove what was heard in rounds that were done again."""
    shutil.rmtree(run / AUDITED / _AGAIN, ignore_errors=True)


def _place_again(target: Target, number: int) -> Path:
    """Another run, or more rounds of it, have another: whether its last state came again is said with it."""
    plain = json.dumps([dict(target.parts.identity), target.rounds], sort_keys=True, default=str)
    return target.run / AUDITED / _AGAIN / f"{hashlib.sha256(plain.encode()).hexdigest()[:12]}-{number}"


def _memory_again(place: Path, client: str) -> Path:
    return place / "memory" / f"{client}.safetensors"


def _done_again(place: Path) -> dict[str, bool | None]:
    """By client that was listened to, whether the run's last state came again; empty where nothing whole lies there."""
    try:
        found = json.loads((place / _DONE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return dict(found)


def _listen_again(
    target: Target, place: Path, clients: Sequence[str], number: int, desk: Desk, progress: Callable[[int, int], None]
) -> dict[str, bool | None]:
    """Do the rounds again, and keep in ``place`` what these clients sent; by client as :func:`_done_again`."""
    progress(0, number)
    watched = run_federation(
        target.federation(number),
        target.parts.sites,
        start=target.parts.start,
        desk=Desk(target.parts.seed, device=desk.device, map=desk.map),
        listened=clients,
        until=number,
        progress=lambda done: progress(done, number),
    )
    same = watched.state.to_bytes() == target.state.to_bytes() if number == target.rounds else None
    shutil.rmtree(place, ignore_errors=True)
    for client, exchange in watched.exchanges.items():
        exchange.down.save(message_path(place, exchange.number, client, "down"))
        exchange.up.save(message_path(place, exchange.number, client, "up"))
    for client, memory in watched.memories.items():
        memory.save(_memory_again(place, client))
    done: dict[str, bool | None] = dict.fromkeys(clients, same)
    write_json(place / _DONE, done)  # last: a folder without it is not whole
    return done


def _kept(folder: Path, rounds: Sequence[int], client: str, algorithm: Algorithm | None = None) -> Exchange | None:
    """The last of the exchanges with ``client`` that lie in ``folder``; ``algorithm``: whose server has not read them yet."""
    for number in reversed(rounds):
        down, up = (message_path(folder, number, client, way) for way in ("down", "up"))
        if up.is_file():
            exchange = Exchange(number, Bundle.open(down), Bundle.open(up))
            return exchange if algorithm is None else exchange.read_by(algorithm)
    return None


# --- images ------------------------------------------------------------------------------------------------------------


def held_out(target: Target, client: str) -> Shard:
    """Images of the kind of a client's that nobody trained on, if there are any: its own test images and, unless the partition is
    by domain and it has some of its own, the common ones.
    """
    own, common = target.parts.sites[client].test, target.parts.data.test
    if len(own) and target.experiment.partition.kind == "domain":
        return own
    return Shard.join([own, common])


# --- the pool ----------------------------------------------------------------------------------------------------------


def pool_of(target: Target, seed: Seed) -> Pool:
    """The pool of the run's images: what clients train on, and images that nobody trains on.

    The latter are training images that ``data.limit`` left aside, which come from where the clients' come from, and then the
    common test images. Where the partition is by domain, and the test images name theirs, a client's pool is of its own domain.

    Raises:
        Nothing: there is no image that nobody trained on.
    """
    parts = target.parts
    data = parts.data
    by_domain = target.experiment.partition.kind == "domain" and None not in (data.train_groups, data.test_groups)
    left, groups = _left_aside(target)
    domains = sorted({*(data.train_groups or ()), *(data.test_groups or ()), *(groups or ())}) if by_domain else []

    def strata(labels: torch.Tensor, groups: tuple[str, ...] | None) -> NDArray[np.int64]:
        found = np.asarray(labels, np.int64)
        if not by_domain or groups is None:
            return found
        return found + len(data.train.classes) * np.array([domains.index(group) for group in groups], np.int64)

    train_strata = strata(data.train.labels, data.train_groups)
    held = {
        client: Labelled(data.train.take(rows), train_strata[rows]) for client, rows in _training_rows(parts).items()
    }
    test = Labelled(data.test, strata(data.test.labels, data.test_groups))
    aside = Labelled(left, strata(left.labels, groups))
    pool = build_pool(held, (aside, test), seed)
    if not pool.played.any():
        raise Nothing(
            f"{target.run}: of the classes that clients hold there is no image that nobody trained on, so there is nothing to "
            "tell members from"
        )
    return pool


def _training_rows(parts: Parts) -> dict[str, list[int]]:
    """Rows that each client trains on; of a pooled site those of all."""
    held = parts.uses.held
    if parts.sites.keys() == held.keys():
        return {client: list(held[client].train) for client in parts.sites}
    (pooled,) = parts.sites
    return {pooled: sorted(row for each in held.values() for row in each.train)}


def _left_aside(target: Target) -> tuple[Shard, tuple[str, ...] | None]:
    """Training images that ``data.limit`` kept from the run, about as many as it has, and their groups; none without a limit.

    An image that looks exactly like one of the run's is none of them. Corrupted images are drawn anew, so there are none either.
    """
    settings, data = target.experiment.data, target.parts.data
    nothing = data.train.take([]), None if data.train_groups is None else ()
    if settings.limit is None or settings.corruptions is not None:
        return nothing
    more = replace(
        formed(settings, data.train, fit=settings.fit, what=str(target.run)), limit=2 * settings.limit, test_limit=1
    )
    found = load(more, Seed.root(target.experiment.seed).at("data"))
    known = {image.tobytes() for shard in (data.train, data.test) for image in shard.images.numpy()}
    rows = [row for row, image in enumerate(found.train.images.numpy()) if image.tobytes() not in known]
    groups = None if found.train_groups is None else tuple(found.train_groups[row] for row in rows)
    return replace(found.train.take(rows), normalisation=data.train.normalisation), groups
