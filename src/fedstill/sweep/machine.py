"""How many cells a machine runs at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from fedstill.runtime import available_memory, pick_device
from fedstill.sweep.grid import Cell

__all__ = ["Plan", "cores", "has_room", "plan", "plan_for"]


@dataclass(frozen=True)
class Plan:
    """How many cells are at work at a time, and why.

    Attributes:
        jobs: so many.
        limit: what no more are because of: they were ``asked`` for, the ``cells`` there are, ``cores``, ``memory``, or a
            ``device`` that they would share.
        cores: that this process may use.
        threads: compute threads of a cell, the largest of all.
        need: memory of a cell in bytes, the largest that is known; None where none is.
        free: memory in bytes; None where the system does not tell.
    """

    jobs: int
    limit: Literal["asked", "cells", "cores", "memory", "device"]
    cores: int
    threads: int
    need: int | None = None
    free: int | None = None


def plan(
    *, cells: int, threads: int, jobs: int | None, shared: bool, cores: int, need: int | None, free: int | None
) -> Plan:
    """The number of cells at a time: ``jobs`` where it is given, else what cores and memory allow, and at least 1.

    Args:
        cells: that are left to run.
        threads: of a cell.
        jobs: as asked for.
        shared: whether cells would share one device other than the CPU.
        cores: of the machine.
        need: bytes that a cell takes.
        free: bytes that there are.
    """
    if jobs is not None:
        return Plan(jobs, "asked", cores, threads, need, free)
    if shared:
        return Plan(1, "device", cores, threads, need, free)
    limits: dict[Literal["cells", "cores", "memory"], int] = {"cells": cells, "cores": max(1, cores // threads)}
    if need and free is not None:
        limits["memory"] = max(1, free // need)
    limit = min(limits, key=lambda each: limits[each])
    return Plan(max(1, limits[limit]), limit, cores, threads, need, free)


def plan_for(cells: Sequence[Cell], *, jobs: int | None, need: int | None) -> Plan:
    """:func:`plan` for ``cells`` on this machine as it is now.

    Raises:
        InputError: a device that a cell asks for is not there.
    """
    return plan(
        cells=len(cells),
        threads=max((cell.experiment.threads for cell in cells), default=1),
        jobs=jobs,
        shared=any(pick_device(name) != "cpu" for name in {cell.experiment.engine.device for cell in cells}),
        cores=cores(),
        need=need,
        free=available_memory(),
    )


def has_room(free: int | None, need: int | None, held: Sequence[int]) -> bool:
    """Whether a cell that takes ``need`` bytes may begin beside those that hold ``held`` so far and may yet grow to as much.

    Where one of the numbers is not known, it may.
    """
    if free is None or need is None:
        return True
    return free - sum(max(0, need - each) for each in held) >= need


def cores() -> int:
    """Cores that this process may use; a container's share of them counts."""
    from joblib import cpu_count

    return max(1, int(cpu_count()))
