"""The ``[sweep]`` table of a sweep file, and values that are varied, from files and from options."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Annotated, Any, get_args, get_type_hints

from pydantic import ConfigDict, Field

from fedstill.errors import InputError, suggestion
from fedstill.experiment import Experiment
from fedstill.settings import options, parse

__all__ = [
    "Grid",
    "SweepTable",
    "check_key",
    "check_pinned",
    "check_seeds",
    "covers",
    "grid",
    "leaves",
    "put",
    "read_vary",
    "repeated",
]

Grid = Mapping[str, tuple[Any, ...]]
"""The values of each dotted key that is varied."""

_UNVARIED = ("name", "rounds", "engine", "evaluate", "output", "published")


@dataclass(frozen=True, kw_only=True)
class SweepTable:
    """What ``[sweep]`` says.

    Attributes:
        seeds: every cell is run with each; None: the experiment's own.
        grid: as the file has it, see :func:`grid`.
        methods: what each lays over the experiment, with ``label`` and ``grid``; empty: the experiment's own.
        published: see :mod:`fedstill.sweep.published`.
    """

    __pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)

    seeds: Annotated[
        tuple[Annotated[int, Field(ge=0)], ...] | None, Field(min_length=1, description="each cell is run with each")
    ] = None
    grid: Annotated[Mapping[str, Any], Field(description="dotted keys, and a list of values for each")] = field(
        default_factory=dict
    )
    methods: Annotated[tuple[Mapping[str, Any], ...], Field(description="what is compared")] = ()
    published: Annotated[tuple[Mapping[str, Any], ...], Field(description="values to compare with")] = ()


def grid(table: Mapping[str, Any], where: str) -> Grid:
    """The values of each dotted key. A key may be written in quotes, ``"partition.alpha"``, or without.

    Raises:
        InputError: a key that no experiment has or that is not varied; values that are no list, none, or repeated.
    """
    found: dict[str, tuple[Any, ...]] = {}
    for key, values in leaves(table):
        place = f'{where} "{key}"'
        if not isinstance(values, list):
            raise InputError(f"{place} = {_shown(values)}: must be a list of values, such as [{_shown(values)}]")
        check_key(key, place)
        _check_values(values, place)
        found[key] = tuple(values)
    for key in found:
        if inner := next((other for other in found if other != key and covers(key, other)), None):
            raise InputError(f'{where} "{key}": "{inner}" is varied too, and is a part of it; write its values there')
    return found


def read_vary(texts: Sequence[str]) -> Grid:
    """``KEY=VALUE,VALUE,…`` as ``--vary`` has it: values as TOML; text needs no quotes.

    Raises:
        InputError: it has another form, or :func:`grid` would refuse it.
    """
    table: dict[str, Any] = {}
    for text in texts:
        key, equals, values = (part.strip() for part in text.partition("="))
        if not equals or not all(key.split(".")):
            raise InputError(f"--vary {text}: write it as --vary table.key=value,value")
        if key in table:
            raise InputError(f"--vary {key}: it is given twice; write all its values after one")
        table[key] = _listed(values)
    return grid(table, "--vary")


def leaves(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """``{"a": {"b": 1}}`` → ``("a.b", 1)``."""
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def covers(key: str, other: str) -> bool:
    """Whether ``other`` is ``key`` or lies in the table that ``key`` names."""
    return other == key or other.startswith(f"{key}.")


def put(table: Mapping[str, Any], key: str, value: Any) -> dict[str, Any]:
    """``table`` with the dotted ``key`` set; a table as a value takes the place of the one that stood there."""
    head, dot, rest = key.partition(".")
    if not dot:
        return {**table, head: value}
    inner = table.get(head, {})
    if not isinstance(inner, Mapping):
        raise InputError(f'"{key}": {head} is no table here')
    return {**table, head: put(inner, rest, value)}


def check_key(key: str, place: str) -> None:
    """That an experiment has ``key`` and that it may be varied, as far as that can be told without a method and a network.

    Raises:
        InputError: otherwise.
    """
    head, _, rest = key.partition(".")
    if head == "seed":
        raise InputError(f"{place}: list seeds under sweep.seeds, or after --seeds")
    if head in _UNVARIED:
        raise InputError(f"{place}: {head} changes no result that runs could be compared by, so it is not varied")
    if key == "algorithm" or key == "algorithm.name":
        raise InputError(f"{place}: give each method a [[sweep.methods]] table of its own")
    # a table that may be missing is one all the same
    kinds = {
        name: next(filter(is_dataclass, get_args(kind)), kind) for name, kind in get_type_hints(Experiment).items()
    }
    known = [each.name for each in fields(Experiment) if each.name not in (*_UNVARIED, "seed")]
    if head in known and not rest:
        return
    if (
        head in known
        and is_dataclass(kind := kinds[head])
        and isinstance(kind, type)
        and head not in ("model", "algorithm")
    ):
        known = [f"{head}.{option.name}" for option in options(kind)]
        if ".".join(key.split(".")[:2]) in known:
            return
    elif head in ("model", "algorithm"):
        return  # whose keys depend on the network and on the method
    raise InputError(f"{place}: no such key: {suggestion(key, known)}")


def check_seeds(seeds: Sequence[int] | None, place: str) -> None:
    """That there is one, and none twice or negative; None is for others to say.

    Raises:
        InputError: otherwise.
    """
    if seeds is None:
        return
    if not seeds:
        raise InputError(f"{place}: give at least one seed")
    if (twice := repeated(seeds)) is not None:
        raise InputError(f"{place}: {twice} is there twice")
    if min(seeds) < 0:
        raise InputError(f"{place}: {min(seeds)} is below 0")


def check_pinned(given: Iterable[tuple[str, Any]], varied: Grid, who: str) -> None:
    """That no key that ``who`` sets is varied too.

    Raises:
        InputError: one is.
    """
    for key, _ in given:
        if over := next((each for each in varied if covers(each, key)), None):
            raise InputError(
                f'{who} sets "{key}", which "{over}" of a grid would overwrite; take it out of one of them'
            )


def _check_values(values: Sequence[Any], place: str) -> None:
    if not values:
        raise InputError(f"{place} = []: give at least one value")
    if (twice := repeated(values)) is not None:
        raise InputError(f"{place}: {_shown(twice)} is there twice")


def repeated(values: Sequence[Any]) -> Any:
    """The first value that is there twice; None where all differ."""
    seen: list[str] = []
    for value in values:
        text = json.dumps(value, sort_keys=True, default=str)
        if text in seen:
            return value
        seen.append(text)
    return None


def _listed(text: str) -> list[Any]:
    try:
        values = tomllib.loads(f"values = [{text}]")["values"]
    except tomllib.TOMLDecodeError:  # words without quotes
        values = [parse(part.strip()) for part in re.split(r",(?![^\[{]*[\]}])", text) if part.strip()]
    return list(values)


def _shown(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else f"{text[:57]}…"
