"""What a hostile or broken client may send: an honest reply, spoilt. The contract runs every method through this table.

Each entry takes a reply and gives spoilt ones; none, where there is nothing of the kind to spoil.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from fedstill.bundle import Bundle

__all__ = ["ABSURD", "SPOILT", "Spoil"]

Spoil = Callable[[Bundle], Iterator[Bundle]]

_TYPES = (torch.float16, torch.float8_e4m3fn, torch.complex64, torch.int64)
_NUMBERS: tuple[Any, ...] = (math.nan, math.inf, "many", 10**400)  # an engine may hand over what it was sent
_COUNTS = (-1.0, 0.0, 0.5, 1e300)


def _each(change: Callable[[Tensor], Tensor | None], reply: Bundle) -> Iterator[Bundle]:
    """With one tensor changed: the first of each group, and the last. None: nothing of this tensor can be spoilt so."""
    for group, tensors in reply.groups.items():
        for name in dict.fromkeys([*list(tensors)[:1], *list(tensors)[-1:]]):
            if (tensor := change(tensors[name])) is not None:
                yield Bundle({**reply.groups, group: {**tensors, name: tensor}}, reply.numbers)


def _all(change: Callable[[Tensor], Tensor], reply: Bundle) -> Iterator[Bundle]:
    """With every floating tensor changed."""
    groups = {
        group: {name: change(tensor) if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
        for group, tensors in reply.groups.items()
    }
    if any(tensor.is_floating_point() for tensors in groups.values() for tensor in tensors.values()):
        yield Bundle(groups, reply.numbers)


def _filled(value: float, reply: Bundle) -> Iterator[Bundle]:
    return _each(lambda tensor: torch.full_like(tensor, value) if tensor.is_floating_point() else None, reply)


def _typed(reply: Bundle) -> Iterator[Bundle]:
    for kind in _TYPES:
        yield from _each(partial(_to, kind), reply)


def _to(kind: torch.dtype, tensor: Tensor) -> Tensor | None:
    return None if tensor.dtype == kind else tensor.to(kind)


def _lacking(reply: Bundle) -> Iterator[Bundle]:
    for group, tensors in reply.groups.items():
        for name in dict.fromkeys([*list(tensors)[:1], *list(tensors)[-1:]]):
            rest = {other: tensor for other, tensor in tensors.items() if other != name}
            yield Bundle({**reply.groups, group: rest}, reply.numbers)


def _without_group(reply: Bundle) -> Iterator[Bundle]:
    for group in reply.groups:
        yield reply.drop(group)
        yield Bundle({**reply.groups, group: {}}, reply.numbers)


def _more_tensors(reply: Bundle) -> Iterator[Bundle]:
    for group, tensors in reply.groups.items():
        yield Bundle({**reply.groups, group: {**tensors, "more": torch.ones(2)}}, reply.numbers)


def _more_groups(reply: Bundle) -> Iterator[Bundle]:
    more = {"more": torch.ones(2)}
    yield Bundle({**reply.groups, "model:more": more, "no such kind": more}, {**reply.numbers, "more": 1e300})


def _without_number(reply: Bundle) -> Iterator[Bundle]:
    for name in reply.numbers:
        yield Bundle(reply.groups, {other: number for other, number in reply.numbers.items() if other != name})


def _numbers(values: tuple[Any, ...], names: Callable[[Bundle], Iterator[str]], reply: Bundle) -> Iterator[Bundle]:
    for name in names(reply):
        for value in values:
            yield Bundle(reply.groups, {**reply.numbers, name: cast(float, value)})


def _examples(reply: Bundle) -> Iterator[str]:
    return (name for name in reply.numbers if name == "examples")


SPOILT: Mapping[str, Spoil] = {
    "a tensor of NaN": partial(_filled, math.nan),
    "a tensor of infinities": partial(_filled, -math.inf),
    "a tensor with a dimension more": partial(_each, lambda tensor: tensor.unsqueeze(0)),
    "a tensor with no entry": partial(_each, lambda tensor: tensor.flatten()[:0] if tensor.numel() else None),
    "a tensor of another type": _typed,
    "a tensor too few": _lacking,
    "a tensor too many": _more_tensors,
    "a group too few, or an empty one": _without_group,
    "groups and numbers that nobody asked for": _more_groups,
    "nothing at all": lambda reply: iter([Bundle()]),
    "a number too few": _without_number,
    "a number that is none": partial(_numbers, _NUMBERS, lambda reply: iter(reply.numbers)),
    "a number of examples that is no count": partial(_numbers, _COUNTS, _examples),
    "numbers far too large": partial(_all, lambda tensor: torch.full_like(tensor, 1e30)),
    "numbers far too large, with both signs": partial(_all, lambda tensor: 3e37 * tensor.sign()),
    "numbers below zero": partial(_all, lambda tensor: torch.full_like(tensor, -1.0)),
}
"""By what is wrong."""

ABSURD = frozenset({"numbers far too large", "numbers far too large, with both signs", "numbers below zero"})
"""Entries that are in the form of a reply, so that a method may take them for one: it must survive them."""
