"""What a sweep will cost, before it starts: a step of each of its settings, timed in a process of its own."""

from __future__ import annotations

import queue
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from fedstill.errors import InputError, RunError
from fedstill.experiment import Experiment
from fedstill.sweep.forecast import makespan
from fedstill.sweep.grid import Cell
from fedstill.sweep.machine import Plan, plan_for
from fedstill.sweep.process import Heard, Process, job, stop, why
from fedstill.sweep.state import Held, check_files, check_prior, look

__all__ = ["Bill", "Item", "as_run", "bill", "estimate"]


@dataclass(frozen=True)
class Item:
    """Cells that differ in their seed alone.

    Attributes:
        name: of the cells, without the seed.
        cells: so many are left to run.
        rounds: that are left of all of them.
        seconds: of a whole cell.
        memory: of its process in bytes; None where the system does not tell.
    """

    name: str
    cells: int
    rounds: int
    seconds: float
    memory: int | None


@dataclass(frozen=True)
class Bill:
    """An estimate.

    Attributes:
        cells: of the sweep.
        finished: of them, before.
        items: what is left.
        plan: how many cells are run at a time.
        longest: seconds of the longest cell.
        seconds: of all that is left, with these jobs.
    """

    cells: int
    finished: int
    items: Sequence[Item]
    plan: Plan
    longest: float
    seconds: float


def as_run(experiment: Experiment, jobs: int) -> Experiment:
    """``experiment`` as its cell runs it: beside others it has one process. No result hangs on that."""
    return experiment if jobs == 1 else replace(experiment, engine=replace(experiment.engine, workers=1))


def bill(cells: Sequence[Cell], out: Path, *, jobs: int | None, told: Callable[[str], None]) -> Bill:
    """Estimate what is left of a sweep. Nothing is written.

    Args:
        cells: of the sweep.
        out: its folder.
        jobs: cells at a time; None: as :func:`fedstill.sweep.work` chooses.
        told: hears the name of each item before it is estimated.

    Raises:
        InputError: a cell cannot be run, or its folder holds another run; it is named.
        RunError: its first step fails.
    """
    held = {cell.name: look(out / cell.name, cell.experiment) for cell in cells}
    todo = [cell for cell in cells if not held[cell.name].finished]
    _check_files(todo)  # before minutes are spent on those that have theirs
    alone = plan_for(todo, jobs=jobs, need=None)  # what a cell takes is not known yet
    items: dict[str, Item] = {}
    for group, its in _groups(todo).items():
        told(group)
        try:
            cost = estimate(as_run(its[0].experiment, alone.jobs))
        except InputError as error:
            raise InputError(f"{its[0].name}: {error}") from error
        except RunError as error:
            raise RunError(f"{its[0].name}: {error}") from error
        rounds = sum(_left(cell, held) for cell in its)
        items[group] = Item(group, len(its), rounds, cost["total_seconds"], cost["memory"])
    need = max((item.memory for item in items.values() if item.memory), default=None)
    chosen = plan_for(todo, jobs=jobs, need=need)
    seconds = [items[cell.group].seconds * _left(cell, held) / cell.experiment.rounds for cell in todo]
    return Bill(
        cells=len(cells),
        finished=len(cells) - len(todo),
        items=tuple(items.values()),
        plan=chosen,
        longest=max(seconds, default=0.0),
        seconds=makespan([], seconds, chosen.jobs),
    )


def estimate(experiment: Experiment) -> dict[str, Any]:
    """:class:`fedstill.cost.Cost` as plain values, from a process that did nothing else: its memory is a cell's.

    Raises:
        InputError: the experiment cannot be run.
        RunError: its first step fails.
    """
    heard: queue.SimpleQueue[Heard] = queue.SimpleQueue()
    found: dict[str, Any] = {}
    with TemporaryDirectory() as place:
        process = Process("estimate", job("estimate", experiment), log=Path(place) / "log", hear=heard)
        try:
            while (message := heard.get().message)["event"] != "ended":
                found[message["event"]] = message
        finally:
            stop([process])
    if "cost" in found:
        cost: dict[str, Any] = found["cost"]["cost"]
        return cost
    if "failed" in found:
        raise (InputError if message["code"] == InputError.exit_code else RunError)(found["failed"]["why"])
    raise RunError(why(message["code"]))


def _check_files(cells: Sequence[Cell]) -> None:
    for cell in cells:
        try:
            check_files(cell.experiment)
            check_prior(cell.experiment)
        except InputError as error:
            raise InputError(f"{cell.name}: {error}") from error


def _groups(cells: Sequence[Cell]) -> dict[str, list[Cell]]:
    found: dict[str, list[Cell]] = {}
    for cell in cells:
        found.setdefault(cell.group, []).append(cell)
    return found


def _left(cell: Cell, held: dict[str, Held]) -> int:
    return cell.experiment.rounds - held[cell.name].rounds
