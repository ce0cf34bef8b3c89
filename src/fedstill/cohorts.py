"""Who is asked in a round: how many clients, and which."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from fedstill.errors import InputError
from fedstill.seeds import Seed

__all__ = ["CLIENT_NAME", "cohort_size", "sample"]

CLIENT_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}")  # no leading dot: names become files


def cohort_size(cohort: float | int, clients: Sequence[str], quorum: int) -> int:
    """How many clients a round asks.

    Raises:
        InputError: a client's name, the cohort or the quorum cannot be used.
    """
    for client in clients:
        if not CLIENT_NAME.fullmatch(client):
            raise InputError(
                f"client name {client!r}: use 1 to 64 letters, digits, '.', '_' or '-', and no dot in front"
            )
    if len(set(clients)) != len(clients):
        raise InputError("two clients have the same name: names must differ")
    if isinstance(cohort, float):
        if not 0 < cohort <= 1:
            raise InputError(
                f"cohort = {cohort}: a fraction lies above 0 and at most at 1.0; write an integer for a number"
            )
        # round half up, not half to even: cohort = 0.5 of 5 clients is 3 in every Python version
        size = max(1, math.floor(cohort * len(clients) + 0.5))
    else:
        size = cohort
    if not 1 <= size <= len(clients):
        raise InputError(f"cohort = {cohort}: there are {len(clients)} clients")
    if not 1 <= quorum <= size:
        raise InputError(f"quorum = {quorum}: it lies between 1 and the cohort's {size} clients")
    return size


def sample(clients: tuple[str, ...], size: int, seed: Seed) -> tuple[str, ...]:
    """``size`` of ``clients``, in their order."""
    if size == len(clients):
        return clients
    chosen = seed.numpy().choice(len(clients), size=size, replace=False)
    return tuple(clients[index] for index in sorted(chosen.tolist()))
