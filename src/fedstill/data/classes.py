"""Classes matched by name: several owners number theirs as they like, and a federation numbers them once for all."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from fedstill.data.shard import Shard
from fedstill.errors import InputError, suggestion

__all__ = ["held", "places", "relabelled", "strange"]


def held(shard: Shard) -> dict[str, int]:
    """Images by name of the class, those of one name together; a class without images is not held."""
    counts: dict[str, int] = {}
    for name, count in zip(shard.classes, shard.histogram(), strict=True):
        if count:
            counts[name] = counts.get(name, 0) + count
    return counts


def places(names: Sequence[str], classes: Sequence[str]) -> Mapping[str, int | None]:
    """Number of each name among ``classes``; None where it is not there.

    Names are equal as text; how accents are composed does not count, for a folder's name is told decomposed by some systems.

    Raises:
        InputError: ``classes`` has a name twice.
    """
    numbers: dict[str, int] = {}
    for number, name in enumerate(classes):
        if numbers.setdefault(_composed(name), number) != number:
            raise InputError(f"the federation's classes have '{name}' twice: their names must differ")
    return {name: numbers.get(_composed(name)) for name in names}


def strange(names: Sequence[str], classes: Sequence[str], *, where: str) -> list[str]:
    """A sentence for each name that is not among ``classes``, with what may have been meant; ``where`` says whose it is."""
    return [
        f"{where} '{name}' is no class of the federation: {suggestion(name, classes)}"
        for name, number in places(names, classes).items()
        if number is None
    ]


def relabelled(shard: Shard, classes: Sequence[str]) -> Shard:
    """The same images with the numbers that ``classes`` gives to the names of their classes.

    Args:
        shard: with hard labels, int64 [n]; a name without images may be any.
        classes: the federation's names, in the federation's order.

    Raises:
        InputError: an image is of a class whose name is not among ``classes``, or these have a name twice.
    """
    assert shard.labels.dim() == 1
    if wrong := strange(list(held(shard)), classes, where="the class"):
        raise InputError(wrong[0])
    found = places(shard.classes, classes)
    # -1 stands where no label points
    numbers = [-1 if (number := found[name]) is None else number for name in shard.classes]
    labels = torch.tensor(numbers, dtype=torch.int64, device=shard.labels.device)[shard.labels]
    return replace(shard, labels=labels, classes=tuple(classes))


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)
