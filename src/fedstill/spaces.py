"""Spaces that a search goes through: named choices and ranges, and their parameters as plain values or as numbers."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from fedstill.errors import InputError

__all__ = ["Choice", "Integers", "Params", "Part", "Range", "Space"]

Params = dict[str, Any]
"""One value for each part of a space."""

_DIGITS = 4
"""Of a number that is proposed: no trial could tell more of them apart."""


@dataclass(frozen=True)
class Choice:
    """One of ``values``, which have no order; any that JSON has.

    Raises:
        InputError: there are none, or one is there twice.
    """

    values: tuple[Any, ...]

    def __post_init__(self) -> None:
        if not self.values:
            raise InputError("a choice needs at least one value")
        if len({_text(value) for value in self.values}) < len(self.values):
            raise InputError(f"{_text(self.values)}: a value is there twice")

    @property
    def size(self) -> int | None:
        return len(self.values)

    def encode(self, value: Any) -> float:
        """Its place."""
        places = [place for place, each in enumerate(self.values) if _text(each) == _text(value)]
        if not places:
            raise InputError(f"{_text(value)} is none of {_text(self.values)}")
        return float(places[0])

    def decode(self, number: float) -> Any:
        if not (0 <= number < len(self.values) and float(number).is_integer()):
            raise InputError(f"{number} is no place among {len(self.values)} values")
        return self.values[int(number)]

    def to_json(self) -> dict[str, Any]:
        return {"kind": "choice", "values": list(self.values)}


@dataclass(frozen=True)
class Range:
    """A number from ``low`` to ``high``; with ``log``, its logarithm is what is drawn evenly.

    Raises:
        InputError: an end is not finite, the range is empty or the wrong way round, or its logarithm does not exist.
    """

    low: float
    high: float
    log: bool = False

    def __post_init__(self) -> None:
        _check_ends(self.low, self.high, log=self.log)

    @property
    def size(self) -> int | None:
        return None

    def encode(self, value: Any) -> float:
        return float(_inside(value, self.low, self.high))

    def decode(self, number: float) -> float:
        return float(_inside(number, self.low, self.high))

    def near(self, value: float) -> float:
        """``value`` to so many digits that the range has ten thousand such numbers or so: it is to be read, too."""
        more = max(0, math.floor(math.log10(max(abs(self.low), abs(self.high)) / (self.high - self.low))))
        return min(max(float(f"{value:.{_DIGITS + more}g}"), self.low), self.high)

    def to_json(self) -> dict[str, Any]:
        return {"kind": "range", **asdict(self)}


@dataclass(frozen=True)
class Integers:
    """A whole number from ``low`` to ``high``, both included; with ``log``, its logarithm is what is drawn evenly.

    Raises:
        InputError: as :class:`Range`.
    """

    low: int
    high: int
    log: bool = False

    def __post_init__(self) -> None:
        _check_ends(self.low, self.high, log=self.log)

    @property
    def size(self) -> int | None:
        return self.high - self.low + 1

    def encode(self, value: Any) -> float:
        return float(self.decode(value))

    def decode(self, number: float) -> int:
        if not float(_inside(number, self.low, self.high)).is_integer():
            raise InputError(f"{number} is no whole number")
        return int(number)

    def to_json(self) -> dict[str, Any]:
        return {"kind": "integers", **asdict(self)}


Part = Choice | Range | Integers


@dataclass(frozen=True)
class Space:
    """What is searched, by name, in an order that :meth:`encode` keeps.

    Raises:
        InputError: it is empty.
    """

    parts: Mapping[str, Part]

    def __post_init__(self) -> None:
        if not self.parts:
            raise InputError("a search needs something to vary")

    @property
    def size(self) -> int | None:
        """How many different parameters there are; None where they are not to be counted."""
        sizes = [part.size for part in self.parts.values()]
        return None if None in sizes else math.prod(size for size in sizes if size is not None)

    def holds(self, params: Params) -> bool:
        """Whether these are parameters of it."""
        try:
            self.encode(params)
        except InputError:
            return False
        return True

    def encode(self, params: Mapping[str, Any]) -> list[float]:
        """A number for each part: a choice's place, a range's value. Kept as float64, :meth:`decode` gives the same back.

        Raises:
            InputError: a part is missing, or there are others, or a value lies outside.
        """
        if set(params) != set(self.parts):
            raise InputError(f"parameters are of {', '.join(params) or 'nothing'}, not of {', '.join(self.parts)}")
        return [self._said(name, part.encode, params[name]) for name, part in self.parts.items()]

    def decode(self, numbers: Sequence[float]) -> Params:
        """What :meth:`encode` wrote.

        Raises:
            InputError: their number is another, or a value lies outside.
        """
        if len(numbers) != len(self.parts):
            raise InputError(f"{len(numbers)} numbers where {len(self.parts)} are due")
        return {
            name: self._said(name, part.decode, number)
            for (name, part), number in zip(self.parts.items(), numbers, strict=True)
        }

    def to_json(self) -> dict[str, Any]:
        """Plain values that tell one space from another."""
        return {name: part.to_json() for name, part in self.parts.items()}

    @staticmethod
    def _said(name: str, convert: Callable[[Any], Any], value: Any) -> Any:
        try:
            return convert(value)
        except InputError as error:
            raise InputError(f"{name}: {error}") from error


def _check_ends(low: float, high: float, *, log: bool) -> None:
    told = f"{low}..{high}"
    if not (math.isfinite(low) and math.isfinite(high)):
        raise InputError(f"{told}: the ends of a range are finite numbers")
    if low > high:
        raise InputError(f"{told}: the range is the wrong way round; write {high}..{low}")
    if low == high:
        raise InputError(f"{told}: the range holds one value only; set it, or give two ends that differ")
    if log and low <= 0:
        raise InputError(f"{told}: {low} has no logarithm; begin a logarithmic range above 0")


def _inside(value: Any, low: float, high: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise InputError(f"{value} does not lie in {low}..{high}")
    return value


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)
