"""Some of many, evenly."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["spread"]


def spread(count: int, most: int) -> Sequence[int]:
    """At most ``most`` places of ``count``, as evenly as whole numbers are, the first and the last among them.

    With ``most`` = 1 it is the last.
    """
    if count <= most:
        return range(count)
    if most == 1:
        return [count - 1]
    return [round(index * (count - 1) / (most - 1)) for index in range(most)]
