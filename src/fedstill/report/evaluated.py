"""``evaluation.json``: what ``fedstill evaluate`` measured after a run. It is absent unless it was asked for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedstill.report.reading import Table, as_count, as_figure, as_list, as_share, as_table, as_text, read_json

__all__ = ["Discrepancy", "Embedding", "Evaluated", "Fresh", "FreshScore", "Half", "Placed", "read_evaluated"]


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
    squared: tuple[tuple[float | None, ...], ...]
    error: tuple[tuple[float | None, ...], ...]
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
class Evaluated:
    """Each part is None where it was not asked for."""

    fresh: Fresh | None = None
    mmd: Discrepancy | None = None
    tsne: Embedding | None = None


def read_evaluated(path: Path, missing: list[str]) -> Evaluated:
    """What ``path`` holds. That it is not there is no damage; what is there and cannot be read is named in ``missing``."""
    if not path.exists():
        return Evaluated()
    value = read_json(path, missing)
    if value is None:
        return Evaluated()
    fresh, mmd, tsne = (as_table(value.get(key)) for key in ("fresh", "mmd", "tsne"))
    found = Evaluated(_fresh(fresh), _mmd(mmd), _tsne(tsne))
    parts = {"fresh": found.fresh, "mmd": found.mmd, "tsne": found.tsne}
    lost = [key for key, part in parts.items() if value.get(key) is not None and part is None]
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
        left_out=tuple(
            (as_text(item.get("client")), as_text(item.get("reason")))
            for item in map(as_table, as_list(table.get("left_out")))
        ),
    )


def _square(value: Any, size: int) -> tuple[tuple[float | None, ...], ...] | None:
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
