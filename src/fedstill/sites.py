"""What every client trains, chooses and is tested on: rows by use, and from them Sites."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedstill.data.partition import Held, Partition, PartitionSettings, hold_out
from fedstill.data.shard import Shard
from fedstill.data.sources import Loaded
from fedstill.errors import InputError
from fedstill.rounds import Site
from fedstill.seeds import Seed

__all__ = ["POOLED", "Uses", "build_sites", "plan_uses"]

POOLED = "pooled"


@dataclass(frozen=True)
class Uses:
    """Which rows a client uses for what.

    A client's own test images are those that it keeps (``partition.test``) *and* those of its domain among the common
    test images. The latter stay common test images too, and a domain that nobody trains on is no client's. Clients that
    share a domain (``partition.parts``) share its test images by the shares that they have of each class.

    Attributes:
        held: rows of the training set, by client.
        domain: rows of the common test set, by client; empty unless the partition is by domain and the data name the
            domains of their test images.
    """

    held: Mapping[str, Held]
    domain: Mapping[str, tuple[int, ...]]

    def to_json(self) -> dict[str, Any]:
        """Plain values, for a run's record: what is not listed is trained on."""
        return {
            "validation": {client: list(held.validation) for client, held in self.held.items()},
            "test": {client: list(held.test) for client, held in self.held.items()},
            "domain_test": {client: list(rows) for client, rows in self.domain.items()},
        }


def plan_uses(settings: PartitionSettings, loaded: Loaded, dealt: Partition, seed: Seed) -> Uses:
    """Set rows aside for every client; client c's are drawn from ``seed.at(c)``.

    Raises:
        InputError: a client has nothing to train on.
    """
    held = {
        client: hold_out(loaded.train, rows, validation=settings.validation, test=settings.test, seed=seed.at(client))
        for client, rows in dealt.clients.items()
    }
    for client, uses in held.items():
        if not uses.train:
            raise InputError(f"partition: client '{client}' has no training image; give fewer clients or more data")
    domain: Mapping[str, tuple[int, ...]] = {}
    if settings.kind == "domain" and loaded.train_groups is not None and loaded.test_groups is not None:
        domain = _domain_tests(loaded, loaded.train_groups, loaded.test_groups, dealt, seed.at("domain"))
    return Uses(held, domain)


def _domain_tests(
    loaded: Loaded, train_groups: Sequence[str], test_groups: Sequence[str], dealt: Partition, seed: Seed
) -> Mapping[str, tuple[int, ...]]:
    """Test rows of each client: its domain's; clients that share a domain share each class of it as they do in training."""
    groups, labels = np.asarray(test_groups), np.asarray(loaded.test.labels)
    sharers: dict[str, list[str]] = {}
    for client, rows in dealt.clients.items():
        sharers.setdefault(train_groups[rows[0]], []).append(client)
    result: dict[str, tuple[int, ...]] = {}
    for group, clients in sharers.items():
        of_group = np.flatnonzero(groups == group)
        if len(clients) == 1:
            result[clients[0]] = tuple(of_group.tolist())
            continue
        parts: dict[str, list[int]] = {client: [] for client in clients}
        for label in np.unique(labels[of_group]):
            alike = seed.at(group, label).numpy().permutation(of_group[labels[of_group] == label])
            counts = np.array([dealt.histogram[client][label] for client in clients], np.float64)
            # a class that no one trains on is shared evenly
            shares = counts / counts.sum() if counts.any() else np.full(len(clients), 1 / len(clients))
            cuts = np.rint(np.cumsum(shares)[:-1] * len(alike)).astype(np.int64)
            for client, part in zip(clients, np.split(alike, cuts), strict=True):
                parts[client] += part.tolist()
        result.update({client: tuple(sorted(own)) for client, own in parts.items()})
    return result


def build_sites(uses: Uses, loaded: Loaded, *, pooled: bool) -> dict[str, Site]:
    """Sites by client; ``pooled`` gives one, with everybody's images for each use."""
    if not pooled:
        return {client: _site(loaded, [client], uses) for client in uses.held}
    return {POOLED: _site(loaded, list(uses.held), uses)}


def _site(loaded: Loaded, clients: Sequence[str], uses: Uses) -> Site:
    held = [uses.held[client] for client in clients]

    def take(rows: Sequence[tuple[int, ...]], shard: Shard) -> Shard:
        return shard.take(sorted(row for each in rows for row in each))

    kept = take([each.test for each in held], loaded.train)
    of_domain = take([uses.domain.get(client, ()) for client in clients], loaded.test)
    return Site(
        train=take([each.train for each in held], loaded.train),
        validation=take([each.validation for each in held], loaded.train),
        test=Shard.join([kept, of_domain]),
    )
