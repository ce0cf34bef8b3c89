"""``evaluation.json``: what ``fedstill evaluate`` measured after a run. It is absent unless it was asked for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedstill.report.reading import Table, as_count, as_figure, as_list, as_share, as_table, as_text, read_json

__all__ = [
    "Change",
    "Discrepancy",
    "Distilled",
    "Embedding",
    "Evaluated",
    "Fresh",
    "FreshScore",
    "Half",
    "Matrix",
    "Placed",
    "Side",
    "read_evaluated",
]

Matrix = tuple[tuple[float | None, ...], ...]


@dataclass(frozen=True)
class FreshScore:
    """One fresh network, trained on the saved synthetic set alone."""

    model: str
    seed: int | None
    accuracy: float
    balanced: float | None
    calibration: float | None


@dataclass(frozen=True)
class Fresh:
    """Fresh networks trained on the synthetic set of ``round``, which holds ``images`` images."""

    round: int | None
    images: int | None
    scores: tuple[FreshScore, ...]


@dataclass(frozen=True)
class Half:
    """Squared discrepancy between two halves of one client's images: zero, up to ``error``, if the estimate is sound."""

    client: str
    squared: float | None
    error: float | None


@dataclass(frozen=True)
class Discrepancy:
    """Unbiased squared maximum mean discrepancy between clients' images in a fixed feature space.

    Attributes:
        features: which space.
        images: how many of each client's images were compared.
        bandwidth: of the Gaussian kernel.
        clients: rows and columns.
        squared, error: estimate and its standard error; None where there is none. An unbiased estimate may be below zero.
        left_out: (client, reason).
    """

    features: str
    images: int | None
    bandwidth: float | None
    clients: tuple[str, ...]
    squared: Matrix
    error: Matrix
    halves: tuple[Half, ...]
    left_out: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Placed:
    """One image in a t-SNE plot."""

    client: str
    label: str
    x: float
    y: float


@dataclass(frozen=True)
class Embedding:
    """t-SNE of images' features."""

    features: str
    perplexity: float | None
    points: tuple[Placed, ...]


@dataclass(frozen=True)
class Side:
    """Squared discrepancies of clients and their standard errors, by real or by virtual images."""

    squared: Matrix
    error: Matrix


@dataclass(frozen=True)
class Change:
    """Means over pairs and what changed; fields as in :class:`fedstill.evaluate.distilled.Change`."""

    before: float
    before_error: float | None
    after: float
    after_error: float | None
    difference: float
    low: float | None
    high: float | None
    ratio: float | None
    ratio_low: float | None
    ratio_high: float | None
    rose: int | None
    pairs: int | None


@dataclass(frozen=True)
class Distilled:
    """Clients' discrepancies by as many real images (``before``) as virtual ones (``after``), with one kernel.

    Attributes:
        features, images, bandwidth, clients, left_out: as in :class:`Discrepancy`.
        draws: of real images, over which ``before`` is a mean.
        round: after which the virtual images are these.
        initial: clients began with them; else the method has moved them.
        slack: by how much ``after`` may be too low, as distilled images are no independent draws.
    """

    features: str
    images: int | None
    draws: int | None
    round: int | None
    initial: bool
    bandwidth: float | None
    clients: tuple[str, ...]
    before: Side
    after: Side
    change: Change
    slack: float | None
    left_out: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Evaluated:
    """Each part is None where it was not asked for, those of virtual images also where clients have none.

    ``virtual_missing`` says why virtual images that there are were not measured; empty where they were.
    """

    fresh: Fresh | None = None
    mmd: Discrepancy | None = None
    tsne: Embedding | None = None
    virtual: Distilled | None = None
    virtual_tsne: Embedding | None = None
    virtual_missing: str = ""


def read_evaluated(path: Path, missing: list[str]) -> Evaluated:
    """What ``path`` holds. That it is not there is no damage; what is there and cannot be read is named in ``missing``."""
    if not path.exists():
        return Evaluated()
    value = read_json(path, missing)
    if value is None:
        return Evaluated()
    fresh, mmd, tsne = (as_table(value.get(key)) for key in ("fresh", "mmd", "tsne"))
    virtual, placed = (as_table(table.get("virtual")) for table in (mmd, tsne))
    why = [as_text(table.get("missing")) for table in (virtual, placed)]
    found = Evaluated(
        _fresh(fresh), _mmd(mmd), _tsne(tsne), _distilled(virtual), _tsne(placed), next(filter(None, why), "")
    )
    parts = [
        ("fresh", value.get("fresh"), found.fresh),
        ("mmd", value.get("mmd"), found.mmd),
        ("tsne", value.get("tsne"), found.tsne),
        ("mmd.virtual", None if why[0] else mmd.get("virtual"), found.virtual),
        ("tsne.virtual", None if why[1] else tsne.get("virtual"), found.virtual_tsne),
    ]
    lost = [key for key, given, part in parts if given is not None and part is None]
    missing.extend(f"'{key}' in {path.name} is damaged: it is left out" for key in lost)
    return found


def _fresh(table: Table) -> Fresh | None:
    scores = tuple(
        FreshScore(
            model=as_text(item.get("model")),
            seed=as_count(item.get("seed")),
            accuracy=accuracy,
            balanced=as_share(item.get("balanced_accuracy")),
            calibration=as_share(item.get("calibration_error")),
        )
        for item in map(as_table, as_list(table.get("results")))
        if as_text(item.get("model")) and (accuracy := as_share(item.get("accuracy"))) is not None
    )
    return Fresh(as_count(table.get("round")), as_count(table.get("images")), scores) if scores else None


def _mmd(table: Table) -> Discrepancy | None:
    clients = tuple(map(str, as_list(table.get("clients"))))
    squared, error = (_square(table.get(key), len(clients)) for key in ("squared", "error"))
    if not clients or squared is None:
        return None
    return Discrepancy(
        features=as_text(table.get("features")),
        images=as_count(table.get("images")),
        bandwidth=as_figure(table.get("bandwidth")),
        clients=clients,
        squared=squared,
        error=error or tuple((None,) * len(clients) for _ in clients),
        halves=tuple(
            Half(as_text(item.get("client")), as_figure(item.get("squared")), as_figure(item.get("error")))
            for item in map(as_table, as_list(table.get("halves")))
        ),
        left_out=_left_out(table),
    )


def _distilled(table: Table) -> Distilled | None:
    clients = tuple(map(str, as_list(table.get("clients"))))
    before, after = (_side(as_table(table.get(key)), len(clients)) for key in ("before", "after"))
    change = _change(as_table(table.get("change")))
    if not clients or before is None or after is None or change is None:
        return None
    return Distilled(
        features=as_text(table.get("features")),
        images=as_count(table.get("images")),
        draws=as_count(table.get("draws")),
        round=as_count(table.get("round")),
        initial=table.get("initial") is True,
        bandwidth=as_figure(table.get("bandwidth")),
        clients=clients,
        before=before,
        after=after,
        change=change,
        slack=as_figure(table.get("slack")),
        left_out=_left_out(table),
    )


def _side(table: Table, size: int) -> Side | None:
    squared, error = (_square(table.get(key), size) for key in ("squared", "error"))
    return None if squared is None or error is None else Side(squared, error)


def _change(table: Table) -> Change | None:
    before, after, apart = (as_figure(table.get(key)) for key in ("before", "after", "difference"))
    if before is None or after is None or apart is None:
        return None
    return Change(
        before=before,
        before_error=as_figure(table.get("before_error")),
        after=after,
        after_error=as_figure(table.get("after_error")),
        difference=apart,
        low=as_figure(table.get("low")),
        high=as_figure(table.get("high")),
        ratio=as_figure(table.get("ratio")),
        ratio_low=as_figure(table.get("ratio_low")),
        ratio_high=as_figure(table.get("ratio_high")),
        rose=as_count(table.get("rose")),
        pairs=as_count(table.get("pairs")),
    )


def _left_out(table: Table) -> tuple[tuple[str, str], ...]:
    return tuple(
        (as_text(item.get("client")), as_text(item.get("reason")))
        for item in map(as_table, as_list(table.get("left_out")))
    )


def _square(value: Any, size: int) -> Matrix | None:
    rows = tuple(tuple(map(as_figure, as_list(row))) for row in as_list(value))
    return rows if len(rows) == size and all(len(row) == size for row in rows) else None


def _tsne(table: Table) -> Embedding | None:
    points = tuple(_placed(as_list(table.get("points"))))
    return Embedding(as_text(table.get("features")), as_figure(table.get("perplexity")), points) if points else None


def _placed(items: list[Any]) -> Iterator[Placed]:
    for item in map(as_table, items):
        x, y = as_figure(item.get("x")), as_figure(item.get("y"))
        if x is not None and y is not None:
            yield Placed(str(item.get("client", "")), str(item.get("class", "")), x, y)
