"""``sweep.json``: the cells of a sweep with their state, and what the whole has taken so far."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedstill.files import write_json
from fedstill.sweep.grid import Cell
from fedstill.sweep.hearing import Ended
from fedstill.sweep.state import Held

__all__ = ["SWEEP", "Spent", "behind", "write"]

SWEEP = "sweep.json"


@dataclass(frozen=True)
class Spent:
    """What a sweep has taken: wall time while it was at work, and CPU time of its cells' processes, failed ones too.

    Attributes:
        wall: seconds.
        cpu: seconds; None where the system does not tell.
    """

    wall: float
    cpu: float | None

    @classmethod
    def now(cls) -> Spent:
        """What two of these differ by was spent between them."""
        try:
            import resource
        except ImportError:
            return cls(time.monotonic(), None)
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return cls(time.monotonic(), used.ru_utime + used.ru_stime)

    def plus(self, begin: Spent, end: Spent) -> Spent:
        """This and what was spent between the two."""
        known = None not in (self.cpu, begin.cpu, end.cpu)
        cpu = (self.cpu or 0.0) + (end.cpu or 0.0) - (begin.cpu or 0.0) if known else None
        return Spent(self.wall + end.wall - begin.wall, cpu)


def behind(out: Path, *, note: Callable[[str], None]) -> Spent:
    """What earlier sittings have taken; nothing where there were none."""
    path = out / SWEEP
    if not path.exists():
        return Spent(0.0, 0.0)
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        return Spent(
            float(table["wall_seconds"]), None if table["cpu_seconds"] is None else float(table["cpu_seconds"])
        )
    except (OSError, ValueError, KeyError, TypeError):
        note(f"{path} is damaged: the time that the sweep took before is not known, and is counted from now")
        return Spent(0.0, 0.0)


def write(
    out: Path, cells: Sequence[Cell], held: Mapping[str, Held], ended: Mapping[str, Ended], spent: Spent, *, jobs: int
) -> None:
    """Write ``sweep.json``.

    Raises:
        RunError: the disk refuses it.
    """
    write_json(
        out / SWEEP,
        {
            "cells": [_line(cell, held[cell.name], ended.get(cell.name)) for cell in cells],
            "jobs": jobs,
            "wall_seconds": spent.wall,
            "cpu_seconds": spent.cpu,
        },
    )


def _line(cell: Cell, held: Held, ended: Ended | None) -> dict[str, Any]:
    return {
        "name": cell.name,
        "label": cell.label,
        "setting": dict(cell.setting),
        "seed": cell.seed,
        "state": ended.state if ended is not None else "begun" if held.begun else "waiting",
        "rounds": held.rounds,
        "accuracy": dict(held.accuracy),
        "seconds": held.seconds,
        "cpu_seconds": held.cpu_seconds,
        "failure": ended.why if ended is not None else None,
    }
