"""Replies on their way into the server's state: which can be used, and their weighted mean."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

from torch import Tensor

from fedstill.bundle import Bundle, Group
from fedstill.rounds import Failure, Reply

__all__ = ["MISFIT", "MOST", "Mean", "Sieve"]

MOST = 2.0**53
"""Largest count that is taken: float64 has every whole number up to here, and sums of weights stay finite."""

_VARIANCE = "running_var"

MISFIT = "its reply holds no {group} of the names, shapes and types that were sent"


class Mean:
    """A weighted mean of groups, folded one at a time in float64: a thousand clients need the memory of two.

    Integer tensors (BatchNorm's counters) have no mean: the first one's are kept.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._like: Group = {}
        self._weight = 0.0

    def add(self, group: Group, weight: float) -> None:
        if not self._like:
            self._like = group
        for name, tensor in group.items():
            if tensor.is_floating_point():
                term = tensor.double() * weight
                self._sums[name] = self._sums[name] + term if name in self._sums else term
        self._weight += weight

    def result(self) -> Group:
        return {
            name: (self._sums[name] / self._weight).to(tensor.dtype) if name in self._sums else tensor
            for name, tensor in self._like.items()
        }


class Sieve:
    """Replies that can be used, one at a time; of each other one ``failures`` says why.

    The only place where what a stranger sent is compared with what was asked for. Numbers that are not finite, and what is far
    too large, have been refused before (``border``).
    """

    def __init__(
        self,
        replies: Iterable[Reply],
        like: Mapping[str, Group],
        *,
        counts: Iterable[str] = ("examples",),
        wrong: Callable[[Bundle], str | None] = lambda reply: None,
    ) -> None:
        """``like``: groups that a reply must hold, each with the names, shapes and types of the one here.
        ``counts``: numbers that a reply must hold, each whole and from 1 to 2^53.
        ``wrong``: what else a method finds wrong with a reply that holds all this; None where nothing is."""
        self._replies = replies
        self._like = like
        self._counts = tuple(counts)
        self._further = wrong
        self.failures: list[Failure] = []

    def __iter__(self) -> Iterator[Reply]:
        for reply in self._replies:
            why = self._wrong(reply)
            if why is None:
                yield reply
            else:
                self.failures.append(Failure(reply.client, why))

    def _wrong(self, reply: Reply) -> str | None:
        for name in self._counts:
            count = reply.bundle.numbers.get(name)
            if count is None:
                return f"its reply does not say its number of {name}"
            if not 1 <= count <= MOST or not float(count).is_integer():
                return f"its reply says that it has {count} {name}, which is no count"
        for name, group in self._like.items():
            if not _fits(reply.bundle.groups.get(name, {}), group):
                return MISFIT.format(group=name)
            if name.partition(":")[0] == "model" and (variance := _below_zero(reply.bundle.groups[name])) is not None:
                return f"its reply's variance '{variance}' is below 0"
        return self._further(reply.bundle)


def _below_zero(group: Group) -> str | None:
    """A running variance of BatchNorm that has no root: averaged in, it would make of every output no number. (A group that is no
    network may hold differences, and these any sign.)"""
    return next(
        (name for name, tensor in group.items() if name.endswith(_VARIANCE) and tensor.numel() and tensor.min() < 0),
        None,
    )


def _fits(found: Group, wanted: Group) -> bool:
    return found.keys() == wanted.keys() and all(
        found[name].shape == tensor.shape and found[name].dtype == tensor.dtype for name, tensor in wanted.items()
    )
