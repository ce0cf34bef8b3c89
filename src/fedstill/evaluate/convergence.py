"""How soon a run reaches an accuracy: in rounds, in bytes, in seconds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["SHARES", "Reached", "reached", "targets"]

SHARES = (0.5, 0.8, 0.9, 0.95)
"""Of a reference accuracy; what lies near it tells methods apart, what lies lower tells how fast each begins."""


@dataclass(frozen=True)
class Reached:
    """When an accuracy was reached.

    Attributes:
        round: the first round that reached it.
        sent: bytes up and down until then; None where they are not known.
        seconds: wall seconds until then; None where they are not known.
    """

    round: int
    sent: float | None
    seconds: float | None


def targets(reference: float, shares: tuple[float, ...] = SHARES) -> tuple[float, ...]:
    """The accuracies to reach: ``shares`` of ``reference``, such as the ceiling's or the best method's last accuracy."""
    return tuple(share * reference for share in shares)


def reached(
    accuracy: Mapping[int, float], target: float, *, sent: Mapping[int, float], seconds: Mapping[int, float]
) -> Reached | None:
    """The first round with at least ``target``, and what it had cost by then; None where no round reaches it.

    An accuracy that is lost again later still counts as reached.

    Args:
        accuracy: by round; rounds that were not scored are absent.
        target: a fraction.
        sent, seconds: cumulative, by round.
    """
    first = min((number for number, value in accuracy.items() if value >= target), default=None)
    return None if first is None else Reached(first, sent.get(first), seconds.get(first))
