"""Who holds what: schemes that deal the rows of a labelled set out to clients.

A *scheme* is a pure function ``(Labels, PartitionSettings, Seed) -> Dealt``; :func:`partition` runs one by name and
records the result, so that two runs can be shown to have used the same split.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from types import MappingProxyType
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from fedstill.data.shard import Shard
from fedstill.data.split import stratified
from fedstill.errors import InputError, MissingExtra
from fedstill.seeds import Seed
from fedstill.tables import resolve

__all__ = [
    "PARTITIONS",
    "Dealt",
    "Held",
    "Labels",
    "Partition",
    "PartitionSettings",
    "from_flwr",
    "hold_out",
    "partition",
]

PARTITIONS: Mapping[str, str] = MappingProxyType(
    {name: f"fedstill.data.schemes:{name}" for name in ("iid", "dirichlet", "kshard", "kclass", "domain")}
)

_FLOWER = "fedstill.data.schemes:flower"
FLOWER = "flwr:"
"""What ``partition.kind`` begins with where a class of ``flwr_datasets.partitioner`` deals."""

LABEL_COLUMN, GROUP_COLUMN = "label", "group"

Scalar = bool | int | float | str


@dataclass(frozen=True, kw_only=True)
class PartitionSettings:
    """The ``[partition]`` table of an experiment file.

    Raises:
        InputError: ``options`` are given to a scheme that reads none, or nothing is left to train on.
    """

    __pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)

    kind: Annotated[
        str,
        Field(
            description="iid | dirichlet | kshard | kclass | domain | flwr:NameOfPartitioner, or package.module:factory"
        ),
    ] = "dirichlet"
    clients: Annotated[
        int, Field(description="number of clients; domain and flwr's natural ids have one a group instead", ge=1)
    ] = 10
    alpha: Annotated[
        float, Field(description="dirichlet: concentration; the smaller, the more unequal the clients", gt=0)
    ] = 0.5
    parts: Annotated[
        int,
        Field(description="domain: clients a domain; more than one share it by dirichlet, alpha and min_size", ge=1),
    ] = 1
    min_size: Annotated[int, Field(description="dirichlet: fewest images a client may hold", ge=1)] = 10
    shards: Annotated[int, Field(description="kshard: runs of the class-sorted list that a client gets", ge=1)] = 2
    classes: Annotated[int, Field(description="kclass: classes that a client holds", ge=1)] = 2
    validation: Annotated[
        float, Field(description="share of its images that a client keeps out of training, to choose by", ge=0, lt=1)
    ] = 0.1
    test: Annotated[
        float,
        Field(
            description="share of its images that a client keeps to be tested on; domain: beside its domain's test images",
            ge=0,
            lt=1,
        ),
    ] = 0.0
    options: Annotated[
        Mapping[str, Scalar] | None,
        Field(description="flwr: arguments of its partitioner beside clients and seed, such as {alpha = 0.1}"),
    ] = None

    def __post_init__(self) -> None:
        if self.options and not self.kind.startswith(FLOWER):
            raise InputError(
                f"partition.options is for kinds that begin with '{FLOWER}', not for '{self.kind}': remove it, "
                "or write the scheme's own keys under [partition]"
            )
        if self.validation + self.test >= 1:
            raise InputError(
                f"partition.validation = {self.validation} and partition.test = {self.test} leave a client nothing to "
                "train on: their sum must be below 1"
            )


@dataclass(frozen=True)
class Labels:
    """What a scheme may look at.

    Attributes:
        values: int64 [n].
        classes: their names.
        groups: domain or client of every row, where the data say.
    """

    values: NDArray[np.int64]
    classes: tuple[str, ...]
    groups: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Dealt:
    """What a scheme answers: row numbers by client, and figures worth recording (tries, images moved)."""

    clients: Mapping[str, Sequence[int] | NDArray[np.int64]]
    figures: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Partition:
    """Rows by client, recorded.

    Attributes:
        kind: the scheme.
        options: the settings it ran with.
        clients: name ([A-Za-z0-9._-]{1,64}) → row numbers of the training set, ascending.
        histogram: name → images a class.
        hash: SHA-256 of rows and their labels; equal hashes, equal data a client.
        figures: what the scheme reports of itself.
    """

    kind: str
    options: Mapping[str, Scalar]
    clients: Mapping[str, tuple[int, ...]]
    histogram: Mapping[str, tuple[int, ...]]
    hash: str
    figures: Mapping[str, int] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON; :meth:`from_json` reads it."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: object, *, source: str = "the partition") -> Partition:
        """Read what :meth:`to_json` wrote.

        Raises:
            InputError: ``content`` is something else; ``source`` names it.
        """
        try:
            return TypeAdapter(cls).validate_python(content)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(step) for step in first["loc"]) or "its top"
            raise InputError(f"{source} is no partition that fedstill wrote: {where}: {first['msg']}") from error

    def check(self, shard: Shard) -> None:
        """That this partition was dealt from ``shard``.

        Raises:
            InputError: rows are missing or other labels stand there.
        """
        values = np.asarray(shard.labels)
        rows = [row for held in self.clients.values() for row in held]
        if any(not 0 <= row < len(values) for row in rows) or _hash(self.clients, values) != self.hash:
            raise InputError(
                f"the partition {self.hash[:12]} was dealt from other data: the data settings or the seed have changed"
            )


def partition(settings: PartitionSettings, shard: Shard, groups: tuple[str, ...] | None, seed: Seed) -> Partition:
    """Deal the rows of ``shard`` (hard labels) to clients.

    Raises:
        InputError: the scheme is unknown, or the data cannot be dealt as asked; one sentence says why.
    """
    own = settings.kind.startswith(FLOWER)
    scheme = resolve({settings.kind: _FLOWER} if own else PARTITIONS, settings.kind, "partition.kind")
    dealt: Dealt = scheme(Labels(np.asarray(shard.labels), shard.classes, groups), settings, seed)
    options = {key: value for key, value in asdict(settings).items() if key not in ("kind", "options")}
    if own:
        options = {key: options[key] for key in ("clients", "validation", "test")} | dict(settings.options or {})
    return _record(settings.kind, options, dealt, shard)


def from_flwr(
    partitioner: Any,
    shard: Shard,
    *,
    groups: tuple[str, ...] | None = None,
    label_column: str = LABEL_COLUMN,
    group_column: str = GROUP_COLUMN,
) -> Partition:
    """Deal the rows of ``shard`` by any partitioner of flwr-datasets; its own seed applies.

    Args:
        partitioner: fresh, without a data set of its own; ``partition_by`` must be one of the two columns.
        shard: hard labels.
        groups: domain or client of every row, for partitioners by a natural id.
        label_column, group_column: what ``partitioner`` calls labels and groups.

    Raises:
        MissingExtra: ``datasets`` is not installed.
        InputError: the partitioner refuses the data.
    """
    labels = Labels(np.asarray(shard.labels), shard.classes, groups)
    dealt = deal_by_flwr(partitioner, labels, label_column=label_column, group_column=group_column)
    return _record(type(partitioner).__name__, {}, dealt, shard)


def deal_by_flwr(
    partitioner: Any, labels: Labels, *, label_column: str = LABEL_COLUMN, group_column: str = GROUP_COLUMN
) -> Dealt:
    """What ``partitioner`` makes of a table of labels and groups; as :func:`from_flwr`.

    Raises:
        MissingExtra: ``datasets`` is not installed.
        InputError: the partitioner refuses the data.
    """
    try:
        import datasets
    except ImportError as error:
        raise MissingExtra("datasets", extra="flower", wanted_for="a flwr-datasets partitioner") from error
    row_column = "fedstill_row"
    columns: dict[str, list[Any]] = {label_column: labels.values.tolist(), row_column: list(range(len(labels.values)))}
    if labels.groups is not None:
        columns[group_column] = list(labels.groups)
    datasets.disable_progress_bars()  # nothing below the command line prints
    try:
        with warnings.catch_warnings():
            # of datasets about pyarrow's next version: nobody here can mend them
            warnings.simplefilter("ignore", FutureWarning)
            partitioner.dataset = datasets.Dataset.from_dict(columns)
            held = [partitioner.load_partition(number)[row_column] for number in range(partitioner.num_partitions)]
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"{type(partitioner).__name__} cannot deal {len(labels.values)} rows with the columns "
            f"{', '.join(columns)}: {reason}"
        ) from error
    rows = [np.asarray(each, np.int64) for each in held]
    return Dealt(dict(zip(client_names(len(rows)), rows, strict=True)))


@dataclass(frozen=True)
class Held:
    """What a client uses its rows for; ascending, disjoint, together all that it holds.

    Attributes:
        train: to train on.
        validation: to choose by.
        test: to be tested on.
    """

    train: tuple[int, ...]
    validation: tuple[int, ...]
    test: tuple[int, ...]


def hold_out(shard: Shard, rows: Sequence[int], *, validation: float, test: float, seed: Seed) -> Held:
    """Set shares of a client's ``rows`` aside, by class shares as far as they go.

    With a share above 0, at least one row is set aside where a class has two; the last row of a class always stays in
    training. Rows for validation are chosen first: ``test`` changes none of them.
    """
    labels, held = np.asarray(shard.labels), np.asarray(rows, np.int64)

    def apart(left: NDArray[np.int64], share: float, seed: Seed) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        count = max(1, round(share * len(held))) if share > 0 else 0
        chosen = stratified(labels[left], count, seed, keep=1)
        return np.delete(left, chosen), left[chosen]

    left, for_validation = apart(held, validation, seed)
    left, for_test = apart(left, test, seed.at("test"))
    return Held(*(tuple(each.tolist()) for each in (left, for_validation, for_test)))


def client_names(count: int) -> list[str]:
    """``c00``, ``c01``, …: as many digits as the last needs, two at least, so that order by name is order by number."""
    digits = max(2, len(str(count - 1)))
    return [f"c{number:0{digits}d}" for number in range(count)]


def safe_names(groups: Sequence[str]) -> dict[str, str]:
    """Group → client name of [A-Za-z0-9._-]{1,64}, also distinct where case does not count; in sorted order."""
    names: dict[str, str] = {}
    used: set[str] = set()
    for group in sorted(set(groups)):
        plain = unicodedata.normalize("NFKD", group).encode("ascii", "ignore").decode()
        # no dot in front: the name becomes a file's
        base = re.sub(r"[^A-Za-z0-9._-]+", "-", plain).lstrip(".")[:56].strip("-") or "client"
        name, number = base, 1
        while name.lower() in used:
            number += 1
            name = f"{base}-{number}"
        used.add(name.lower())
        names[group] = name
    return names


def _record(kind: str, options: Mapping[str, Scalar], dealt: Dealt, shard: Shard) -> Partition:
    values = np.asarray(shard.labels)
    clients = {name: tuple(sorted(int(row) for row in rows)) for name, rows in dealt.clients.items()}
    histogram = {
        name: tuple(np.bincount(values[list(rows)], minlength=len(shard.classes)).tolist())
        for name, rows in clients.items()
    }
    return Partition(kind, options, clients, histogram, _hash(clients, values), dealt.figures)


def _hash(clients: Mapping[str, Sequence[int]], labels: NDArray[np.int64]) -> str:
    content = {name: [list(rows), labels[list(rows)].tolist()] for name, rows in clients.items()}
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
