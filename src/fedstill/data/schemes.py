"""The schemes of :mod:`fedstill.data.partition`: pure functions from labels to rows by client."""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedstill.data.partition import (
    FLOWER,
    GROUP_COLUMN,
    LABEL_COLUMN,
    Dealt,
    Labels,
    PartitionSettings,
    client_names,
    deal_by_flwr,
    safe_names,
)
from fedstill.errors import InputError, MissingExtra, suggestion, unknown
from fedstill.seeds import Seed

__all__ = ["dirichlet", "domain", "flower", "iid", "kclass", "kshard"]

Rows = NDArray[np.int64]
_TRIES = 100  # a draw that meets min_size comes within a few tries, or at very small alpha hardly ever


def iid(labels: Labels, settings: PartitionSettings, seed: Seed) -> Dealt:
    """All rows, shuffled and cut evenly: sizes differ by one at most."""
    _enough(labels, settings.clients, 1)
    shuffled = seed.numpy().permutation(len(labels.values))
    return Dealt(dict(zip(client_names(settings.clients), np.array_split(shuffled, settings.clients), strict=True)))


def dirichlet(labels: Labels, settings: PartitionSettings, seed: Seed) -> Dealt:
    """All rows; each class is shared by proportions from Dirichlet(alpha) over the clients, as FedDGM deals them
    (after Hsu et al., "Measuring the Effects of Non-Identical Data Distribution", 2019).

    Clients that already hold an even share N/M get nothing more, and the others' proportions are scaled up to one. The
    whole is drawn again until every client holds ``min_size`` images. After 100 tries the last draw is mended: the
    richest client gives random images to the poorest until all hold ``min_size``. ``figures`` says how many tries
    there were and how many images moved.
    """
    if settings.alpha <= 0:
        raise InputError(f"partition.alpha = {settings.alpha}: it must be above 0")
    _enough(labels, settings.clients, settings.min_size)
    draw = seed.numpy()
    held, tries = _dirichlet_once(labels.values, settings.clients, settings.alpha, draw), 1
    while min(map(len, held)) < settings.min_size and tries < _TRIES:
        held, tries = _dirichlet_once(labels.values, settings.clients, settings.alpha, draw), tries + 1
    moved = _even_out(held, settings.min_size, draw)
    return Dealt(dict(zip(client_names(settings.clients), held, strict=True)), {"tries": tries, "moved": moved})


def _dirichlet_once(values: Rows, clients: int, alpha: float, draw: np.random.Generator) -> list[Rows]:
    parts: list[list[Rows]] = [[] for _ in range(clients)]
    sizes = np.zeros(clients, np.int64)
    for label in np.unique(values):
        rows = draw.permutation(np.flatnonzero(values == label))
        shares = draw.dirichlet(np.full(clients, alpha))
        # below the even share there is always someone: rows are left
        open_clients = sizes < len(values) / clients
        shares[~open_clients] = 0
        if shares.sum() < 1e-12:
            # at a small alpha all of a class may go to clients that are full; then those that are not draw anew
            shares[open_clients] = draw.dirichlet(np.full(int(open_clients.sum()), alpha))
        # rounded, not cut off: a sum of 0.999… would hand a row to the last client, though it be full
        cuts = np.rint(np.cumsum(shares / shares.sum())[:-1] * len(rows)).astype(np.int64)
        for client, part in enumerate(np.split(rows, cuts)):
            parts[client].append(part)
            sizes[client] += len(part)
    return [np.concatenate(each) for each in parts]


def _even_out(held: list[Rows], min_size: int, draw: np.random.Generator) -> int:
    """Move random rows from the richest to the poorest, in place, until all have ``min_size``; how many moved."""
    moved = 0
    while True:
        sizes = [len(rows) for rows in held]
        poorest, richest = int(np.argmin(sizes)), int(np.argmax(sizes))
        if sizes[poorest] >= min_size:
            return moved
        # the giver keeps min_size; it has more, because the mean is at least that
        count = min(min_size - sizes[poorest], sizes[richest] - min_size)
        shuffled = draw.permutation(held[richest])
        held[richest] = shuffled[count:]
        held[poorest] = np.concatenate([held[poorest], shuffled[:count]])
        moved += count


def kshard(labels: Labels, settings: PartitionSettings, seed: Seed) -> Dealt:
    """DecentralizePy's scheme: each client in turn takes ``shards`` random runs of the list sorted by class.

    A run is ⌊⌊N/clients⌋ / shards⌋ consecutive rows of those that *remain*, and wraps at the end. So a run often spans
    two classes, and s shards are more than s classes: 3.8 on average at s = 2 with 10 clients and 10 even classes.
    The rows that the rounding leaves over are held by nobody.
    """
    length = len(labels.values) // settings.clients // settings.shards
    if length == 0:
        raise InputError(
            f"partition.shards = {settings.shards} for partition.clients = {settings.clients}: that takes "
            f"{settings.shards * settings.clients} images at least, and there are {len(labels.values)}"
        )
    draw = seed.numpy()
    remaining = np.argsort(labels.values, kind="stable")
    clients: dict[str, Rows] = {}
    for name in client_names(settings.clients):
        runs = []
        for _ in range(settings.shards):
            place = (draw.integers(len(remaining)) + np.arange(length)) % len(remaining)
            runs.append(remaining[place])
            remaining = np.delete(remaining, place)
        clients[name] = np.concatenate(runs)
    return Dealt(clients)


def kclass(labels: Labels, settings: PartitionSettings, seed: Seed) -> Dealt:
    """Exactly ``classes`` classes a client; a class's images are shared evenly by those that hold it.

    Each client in turn takes the classes with the fewest holders so far, ties drawn at random. So numbers of holders
    differ by one at most, and every class is held, and all rows are, where clients x classes is at least the number
    of classes that occur.
    """
    present, class_of = np.unique(labels.values, return_inverse=True)
    if settings.classes > len(present):
        raise InputError(f"partition.classes = {settings.classes}: the training images have but {len(present)} classes")
    draw = seed.numpy()
    names = client_names(settings.clients)
    holders: list[list[str]] = [[] for _ in present]
    for name in draw.permutation(np.asarray(names)).tolist():
        order = draw.permutation(len(present))
        load = np.array([len(holders[each]) for each in order])
        for each in order[np.argsort(load, kind="stable")][: settings.classes]:
            holders[each].append(name)
    clients: dict[str, list[Rows]] = {name: [] for name in names}
    for each, held_by in enumerate(holders):
        if not held_by:
            continue  # fewer places than classes
        rows = draw.permutation(np.flatnonzero(class_of == each))
        if len(rows) < len(held_by):
            raise InputError(
                f"partition.kind = 'kclass': class '{labels.classes[present[each]]}' has {len(rows)} images for "
                f"{len(held_by)} clients; give fewer partition.clients or partition.classes"
            )
        for name, part in zip(held_by, np.array_split(rows, len(held_by)), strict=True):
            clients[name].append(part)
    return Dealt({name: np.concatenate(parts) for name, parts in clients.items()})


def domain(labels: Labels, settings: PartitionSettings, seed: Seed) -> Dealt:
    """All rows; one client a group of the data, under the group's name made safe. Nothing is drawn.

    With ``parts`` above 1 a group's rows are shared by so many clients as :func:`dirichlet` does, each group for itself:
    ``fog-1``, ``fog-2``, … FedLGD's 57 clients are 19 corruptions in 3 parts at alpha 2.
    """
    if labels.groups is None:
        raise _no_groups("partition.kind = 'domain'")
    groups = np.asarray(labels.groups)
    names = safe_names(labels.groups)
    if settings.parts == 1:
        return Dealt({name: np.flatnonzero(groups == group) for group, name in names.items()})
    clients: dict[str, Rows] = {}
    figures = {"tries": 0, "moved": 0}
    for group, name in names.items():
        rows = np.flatnonzero(groups == group)
        inner = replace(settings, kind="dirichlet", clients=settings.parts)
        if settings.parts * settings.min_size > len(rows):
            raise InputError(
                f"partition.parts = {settings.parts} with partition.min_size = {settings.min_size} take "
                f"{settings.parts * settings.min_size} training images of each domain, and '{group}' has {len(rows)}"
            )
        dealt = dirichlet(Labels(labels.values[rows], labels.classes), inner, seed.at(group))
        for number, held in enumerate(dealt.clients.values(), start=1):
            clients[f"{name}-{number}"] = rows[np.asarray(held)]
        figures = {key: figures[key] + dealt.figures[key] for key in figures}
    return Dealt(clients, figures)


def flower(labels: Labels, settings: PartitionSettings, seed: Seed) -> Dealt:
    """As the class of ``flwr_datasets.partitioner`` deals that ``settings.kind`` names after ``flwr:``.

    It is given ``settings.options``, and where it takes them the number of clients, a seed and the column to deal by:
    groups where its name says that it deals by natural ids, else labels.
    """
    key = f"partition.kind = '{settings.kind}'"
    try:
        import flwr_datasets.partitioner as package
    except ImportError as error:
        raise MissingExtra("flwr-datasets", extra="flower", wanted_for=key) from error
    known = {name: each for name in package.__all__ if not inspect.isabstract(each := getattr(package, name))}
    name = settings.kind.removeprefix(FLOWER)
    if name not in known:
        raise unknown("partition.kind", settings.kind, [FLOWER + each for each in known])
    options = settings.options or {}
    parameters = inspect.signature(known[name]).parameters
    column = GROUP_COLUMN if "NaturalId" in name else LABEL_COLUMN
    # numpy's older generators take 32 bits and no more
    ours = {"num_partitions": settings.clients, "seed": seed.number % 2**32}
    free = [each for each in parameters if each not in ours]
    for option in options:
        if option in ours:
            raise InputError(f"partition.options.{option}: fedstill sets it, from partition.clients or seed; remove it")
        if option not in free:
            raise InputError(f"partition.options.{option}: {name} has no such option: {suggestion(option, free)}")
    arguments: dict[str, Any] = {each: value for each, value in ours.items() if each in parameters}
    arguments |= {"partition_by": column} if "partition_by" in parameters else {}
    arguments |= options
    absent = [each for each in free if each not in arguments and parameters[each].default is inspect.Parameter.empty]
    if absent:
        raise InputError(f"partition.options.{absent[0]} is missing: {name} needs it")
    if arguments.get("partition_by") == GROUP_COLUMN and labels.groups is None:
        raise _no_groups(key)
    try:
        partitioner = known[name](**arguments)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise InputError(f"partition.options: {name} refuses them: {' '.join(str(error).split())}") from error
    return deal_by_flwr(partitioner, labels)


def _no_groups(key: str) -> InputError:
    return InputError(
        f"{key}: the data name no groups; set data.group_column (parquet, hub, arrays), data.clients = true (folder), "
        "data.domains or data.corruptions"
    )


def _enough(labels: Labels, clients: int, min_size: int) -> None:
    if clients * min_size > len(labels.values):
        each = "one image each" if min_size == 1 else f"partition.min_size = {min_size} images each"
        raise InputError(
            f"partition.clients = {clients} with {each} take {clients * min_size} training images, and there are "
            f"{len(labels.values)}"
        )
