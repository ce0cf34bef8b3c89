"""A sweep file, read: the experiment that its cells share, the methods that it compares, and what it varies."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from fedstill.errors import InputError, suggestion
from fedstill.experiment import SWEEP, Experiment
from fedstill.settings import read_toml, validated
from fedstill.sweep.names import LABEL
from fedstill.sweep.table import Grid, SweepTable, check_pinned, check_seeds, covers, grid, leaves, repeated

__all__ = ["METHOD", "Sheet", "Variant", "inner", "open_sheet", "said_of"]

METHOD = "algorithm"
_OWN = ("label", "grid")
_NEVER = {"name": "cells are named after their method's label", "seed": "list seeds under sweep.seeds"}


@dataclass(frozen=True)
class Variant:
    """A method of a file.

    Attributes:
        label: what it is called.
        table: what it lays over the file's experiment.
        grid: what it alone varies.
    """

    label: str
    table: Mapping[str, Any] = field(default_factory=dict)
    grid: Grid = field(default_factory=dict)


@dataclass(frozen=True)
class Sheet:
    """A file.

    Attributes:
        path: where it lies.
        base: the experiment, without ``[sweep]``.
        sweep: ``[sweep]``; nothing where the file has none.
        grid: what all its methods vary.
        variants: its methods; of a plain file the one that it is.
        plain: it has no ``[sweep]``: an experiment like any other.
    """

    path: Path
    base: Mapping[str, Any]
    sweep: SweepTable
    grid: Grid
    variants: tuple[Variant, ...]
    plain: bool

    @property
    def shared(self) -> Mapping[str, Any]:
        """Options of ``[algorithm]`` that every method gets that has them."""
        return {key: value for key, value in inner(self.base, METHOD).items() if key != "name"}

    def algorithm(self, variant: Variant, over: Mapping[str, Any]) -> str:
        """Name of the variant's algorithm, ``over`` being what ``--set`` lays over it.

        Raises:
            InputError: there is none, or it is no text.
        """
        tables = (inner(each, METHOD) for each in (over, variant.table, self.base))
        name = next((table["name"] for table in tables if "name" in table), None)
        if name is None and self.plain:
            return Experiment().algorithm.name
        return _named(name, f"sweep.methods '{variant.label}': " if self.sweep.methods else "")


def open_sheet(path: Path) -> Sheet:
    """Read a sweep file, or an experiment file, which is one method called after the file.

    Raises:
        InputError: it cannot be read, or its ``[sweep]`` says something that none can; the file is named.
    """
    table = read_toml(path)
    base = {key: value for key, value in table.items() if key != SWEEP}
    with said_of(path):
        if SWEEP not in table:
            label = path.stem if LABEL.fullmatch(path.stem) else "experiment"
            return Sheet(path, base, SweepTable(), {}, (Variant(label),), plain=True)
        sweep = validated(SweepTable, inner(table, SWEEP), where=SWEEP)
        check_seeds(sweep.seeds, "sweep.seeds")
        common = grid(sweep.grid, "sweep.grid")
        variants = [_variant(own, base, index) for index, own in enumerate(sweep.methods)]
        variants = variants or [Variant(_label(base, ""))]
        if (twice := repeated([variant.label for variant in variants])) is not None:
            raise InputError(f"sweep.methods: two methods have the label '{twice}'; give one of them another")
        for variant in variants:
            _check(variant, common)
        return Sheet(path, base, sweep, common, tuple(variants), plain=False)


@contextmanager
def said_of(path: Path) -> Iterator[None]:
    """Mistakes are said of this file."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def inner(table: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """The table ``[key]`` in ``table``; empty where there is none.

    Raises:
        InputError: it is something else.
    """
    found = table.get(key, {})
    if not isinstance(found, Mapping):
        raise InputError(f"{key} = {found!r}: must be a table")
    return found


def _variant(own: Mapping[str, Any], base: Mapping[str, Any], index: int) -> Variant:
    place = f"sweep.methods[{index}]"
    known = [*_OWN, *(each.name for each in fields(Experiment) if each.name not in _NEVER)]
    for key, value in own.items():
        if key in _NEVER:
            raise InputError(f"{place}.{key} = {value!r}: {_NEVER[key]}")
        if key not in known:
            raise InputError(f"{place}.{key}: no such key: {suggestion(key, known)}")
        if key in ("grid", METHOD) and not isinstance(value, Mapping):
            raise InputError(f"{place}.{key} = {value!r}: must be a table")
    given = own.get("label")
    label = _label({METHOD: {**inner(base, METHOD), **inner(own, METHOD)}}, f"{place}.") if given is None else given
    if not isinstance(label, str) or not LABEL.fullmatch(label):
        raise InputError(f"{place}.label = {label!r}: must be up to 48 letters, digits, '.', '_' or '-' in quotes")
    table = {key: value for key, value in own.items() if key not in _OWN}
    return Variant(label, table, grid(own.get("grid", {}), f"sweep.methods '{label}': grid"))


def _label(table: Mapping[str, Any], place: str) -> str:
    """What a method without a label is called: after its algorithm."""
    return _named(inner(table, METHOD).get("name"), place).rpartition(":")[2]


def _named(name: object, place: str) -> str:
    if name is None:
        raise InputError(
            f"{place}algorithm.name is missing: name the method there{'' if place else ', or list [[sweep.methods]]'}"
        )
    if not isinstance(name, str):
        raise InputError(f"{place}algorithm.name = {name!r}: must be text in quotes")
    return name


def _check(variant: Variant, common: Grid) -> None:
    """That nothing is said of it twice."""
    who = f"sweep.methods '{variant.label}'"
    for key in common:
        for own in variant.grid:
            if covers(key, own) or covers(own, key):
                raise InputError(f'{who}: its grid has "{own}", and sweep.grid has "{key}"; keep one of them')
    check_pinned(leaves(variant.table), {**common, **variant.grid}, who)
