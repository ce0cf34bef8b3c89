"""Several data sets joined, each a domain: DIGITS is five of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from fedstill.data.images import Picture
from fedstill.data.settings import DataSettings, Domain
from fedstill.data.sources import SOURCES, Raw, Rows
from fedstill.data.split import stratified
from fedstill.errors import InputError
from fedstill.seeds import Seed
from fedstill.tables import resolve

__all__ = ["domains"]


def domains(settings: DataSettings) -> Raw:
    """Data sets joined, each a domain: tables [[data.domains]] with name and path, and test, rows, test_rows, source.

    Classes must agree in number, names and order. A domain that gives no test images sets some aside; that split depends
    on no seed. ``data.size`` and ``data.channels`` bring all to one form.
    """
    if not settings.domains:
        raise InputError(
            "data.domains is missing: data.source = 'domains' needs a table [[data.domains]] with name and path for each"
        )
    _distinct(settings)
    raws = [_read(settings, each) for each in settings.domains]
    for each, raw in zip(settings.domains, raws, strict=True):
        if raw.classes != raws[0].classes:
            raise InputError(
                f"data.domains: '{each.name}' has the classes {', '.join(raw.classes)}, but '{settings.domains[0].name}' "
                f"{', '.join(raws[0].classes)}; where a domain lacks classes, give all of them in data.classes"
            )
    names = [each.name for each in settings.domains]
    tests = [raw.test for raw in raws if raw.test is not None]
    return Raw(_joined([raw.train for raw in raws], names), _joined(tests, names), raws[0].classes)


def _distinct(settings: DataSettings) -> None:
    given = settings.domains or ()
    for key in ("path", "test", "group_column"):
        if getattr(settings, key) is not None:
            raise InputError(f"data.{key}: with data.source = 'domains' it belongs to no domain; remove it")
    names = [each.name for each in given]
    for each in given:
        if names.count(each.name) > 1:
            raise InputError(f"data.domains: '{each.name}' is the name of two domains; names must differ")
        if each.source in ("domains", "hub"):
            raise InputError(f"data.domains: '{each.name}' has the source '{each.source}', which cannot be joined")


def _read(settings: DataSettings, domain: Domain) -> Raw:
    """One domain, with test rows."""
    own = replace(settings, source=domain.source, path=domain.path, test=domain.test, domains=None, clients=False)
    try:
        raw: Raw = resolve(SOURCES, domain.source, "source")(own)
        train = _cut(raw.train, domain.rows, "rows")
        if raw.test is not None:
            return Raw(train, _cut(raw.test, domain.test_rows, "test_rows"), raw.classes)
        if domain.test_rows is not None:
            raise InputError("test_rows are given, but no test images")
        count = max(1, round(settings.test_fraction * len(train.labels)))
        held = stratified(train.labels, count, Seed(("domains", domain.name)), keep=1)
        if len(held) == 0:
            raise InputError(f"{len(train.labels)} images, no two of a class: give test")
        left = np.setdiff1d(np.arange(len(train.labels)), held)
        return Raw(_chosen(train, left), _chosen(train, held), raw.classes)
    except InputError as error:
        raise InputError(f"data.domains, '{domain.name}': {error}") from error


def _cut(rows: Rows, bounds: tuple[int, int] | None, key: str) -> Rows:
    count = len(rows.labels)
    first, last = bounds or (0, count - 1)
    if not first <= last < count:
        raise InputError(f"{key} = [{first}, {last}], but there are {count} rows, 0 to {count - 1}")
    return rows if bounds is None else _chosen(rows, np.arange(first, last + 1))


def _chosen(rows: Rows, chosen: NDArray[np.int64]) -> Rows:
    return Rows(
        rows.labels[chosen], lambda row: rows.picture(int(chosen[row])), lambda row: rows.name(int(chosen[row]))
    )


def _joined(parts: Sequence[Rows], names: Sequence[str]) -> Rows:
    starts = np.cumsum([0, *(len(part.labels) for part in parts)])

    def place(row: int) -> tuple[Rows, int]:
        part = int(np.searchsorted(starts, row, side="right")) - 1
        return parts[part], row - int(starts[part])

    def picture(row: int) -> Picture:
        rows, inner = place(row)
        return rows.picture(inner)

    def name(row: int) -> str:
        rows, inner = place(row)
        return rows.name(inner)

    groups = tuple(name for name, part in zip(names, parts, strict=True) for _ in part.labels)
    return Rows(np.concatenate([part.labels for part in parts]), picture, name, groups)
