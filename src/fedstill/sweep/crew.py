"""Cells at work, several at a time: who begins when, what is heard of them, how each ends."""

from __future__ import annotations

import queue
import statistics
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedstill.runtime import available_memory
from fedstill.sweep.estimate import as_run
from fedstill.sweep.forecast import expected, makespan
from fedstill.sweep.grid import Cell
from fedstill.sweep.hearing import Ended, Listener, Tally
from fedstill.sweep.machine import Plan, has_room
from fedstill.sweep.process import Heard, Process, job, stop, why
from fedstill.sweep.state import Held, look

__all__ = ["LOGS", "Crew", "outcome"]

LOGS = "logs"


@dataclass
class _AtWork:
    """A cell's process, and what is known of it by now."""

    cell: Cell
    process: Process
    began: float
    opened: float = 0.0  # when its data were read
    done: int = 0  # rounds of this sitting
    left: float | None = None  # seconds, as the cell saw it at ``told``
    told: float = 0.0
    peak: int = 0
    finished: bool = False
    pruned: bool = False
    failure: str | None = None


@dataclass
class Crew:
    """All cells of a sweep: those that have ended, those at work, those that wait.

    Attributes:
        out: folder of the sweep.
        cells: all of them, in order.
        held: what the folder of each holds.
        plan: how many at a time.
        hear: hears of all of it.
        keeps: descriptors that every cell's process inherits.
        ended: how each ended that has.
        enough: asked after every round, with the main keys of its line in ``metrics.jsonl``, whether the cell is to stop
            there; it may have begun another by then.
    """

    out: Path
    cells: Sequence[Cell]
    held: dict[str, Held]
    plan: Plan
    hear: Listener
    keeps: tuple[int, ...]
    ended: dict[str, Ended]
    enough: Callable[[Cell, Mapping[str, Any]], bool] = lambda cell, row: False
    _at_work: dict[str, _AtWork] = field(default_factory=dict)
    _took: dict[str, tuple[Cell, float]] = field(default_factory=dict)  # seconds a round, by cell
    _overheads: list[float] = field(default_factory=list)  # seconds from a process's begin to its first round
    _heard: queue.SimpleQueue[Heard] = field(default_factory=queue.SimpleQueue)
    _need: int | None = None
    _held_back: bool = False

    def __post_init__(self) -> None:
        self._need = self.plan.need
        for cell in self.cells:
            if (held := self.held[cell.name]).rounds:
                self._took[cell.name] = (cell, held.seconds / held.rounds)

    def work(self) -> Generator[Ended]:
        """Run what is left, and yield each cell as it ends. However this is left, no process is."""
        try:
            while waiting := self._waiting():
                self._begin(waiting)
                if (ended := self._hear(*self._heard.get())) is not None:
                    yield ended
        finally:
            stop(each.process for each in self._at_work.values())

    def tally(self) -> Tally:
        """How far all of it is."""
        states = [ended.state for ended in self.ended.values()]
        failed = states.count("failed")
        return Tally(len(states) - failed, failed, len(self.cells), self._left())

    def _waiting(self) -> list[Cell]:
        """Cells that have not ended; those at work among them."""
        return [cell for cell in self.cells if cell.name not in self.ended]

    def _begin(self, waiting: Sequence[Cell]) -> None:
        """Let as many begin as there are places, and as there is memory for."""
        for cell in waiting:
            if len(self._at_work) >= self.plan.jobs or not self._has_room():
                return
            if cell.name not in self._at_work:
                self._start(cell)

    def _has_room(self) -> bool:
        if not self._at_work or self.plan.limit == "asked":
            return True
        free = available_memory()
        room = has_room(free, self._need, [each.peak for each in self._at_work.values()])
        if not room and not self._held_back and free is not None and self._need is not None:
            self._held_back = True
            self.hear.note(
                f"no further cell for now: one takes {self._need / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free"
            )
        return room

    def _start(self, cell: Cell) -> None:
        held = self.held[cell.name]
        process = Process(
            cell.name,
            job("run", as_run(cell.experiment, self.plan.jobs), out=self.out / cell.name, resume=held.begun),
            log=self.out / LOGS / f"{cell.name}.log",
            hear=self._heard,
            keeps=self.keeps,
        )
        self._at_work[cell.name] = _AtWork(cell, process, time.monotonic())
        self.hear.begins(cell, done=held.rounds)

    def _hear(self, name: str, message: Mapping[str, Any]) -> Ended | None:
        """A word of a cell; what it ended as, if it was its last."""
        at_work = self._at_work[name]
        cell = at_work.cell
        match message["event"]:
            case "opening":
                at_work.opened = time.monotonic()
                self._overheads.append(at_work.opened - at_work.began)
                self.hear.rounds(cell, message["rows"], message["until"])
            case "progress":
                self.hear.progress(cell, message["phase"], message["done"], message["total"])
            case "note":
                self.hear.note(message["text"], cell)
            case "row":
                self._row(at_work, message["row"], message["left"])
            case "done":
                at_work.finished = True
            case "failed":
                at_work.failure = message["why"]
            case "ended":
                return self._end(at_work, message["code"])
        return None

    def _row(self, at_work: _AtWork, row: Mapping[str, Any], left: float) -> None:
        now = time.monotonic()
        at_work.done += 1
        at_work.left, at_work.told = left, now
        at_work.peak = max(at_work.peak, row["peak_memory"] or 0)
        self._need = max(self._need or 0, at_work.peak) or None
        self._took[at_work.cell.name] = (at_work.cell, (now - at_work.opened) / at_work.done)
        self.hear.row(at_work.cell, row, left=left, tally=self.tally())
        if not at_work.pruned and self.enough(at_work.cell, row):
            at_work.pruned = True
            at_work.process.stop()

    def _end(self, at_work: _AtWork, code: int) -> Ended:
        cell = at_work.cell
        del self._at_work[cell.name]
        at_work.process.stop()  # it has ended: what is left is our end of its pipe
        self.held[cell.name] = look(self.out / cell.name, cell.experiment)
        finished = at_work.finished and code == 0
        # it may have been done, or have failed, before it heard that it was to stop
        pruned = at_work.pruned and not finished and at_work.failure is None
        failure = None if finished or pruned else at_work.failure or why(code)
        log = at_work.process.log
        if log.exists() and not log.stat().st_size:
            log.unlink()
        ended = outcome(
            cell,
            self.out,
            self.held[cell.name],
            pruned=pruned,
            failure=failure,
            log=log if log.exists() else None,
        )
        self.ended[cell.name] = ended
        self.hear.ended(ended, self.tally())
        return ended

    def _left(self) -> float | None:
        now = time.monotonic()
        running = [self._rest(each, now) for each in self._at_work.values()]
        waiting = [self._whole(cell) for cell in self._waiting() if cell.name not in self._at_work]
        known = [seconds for seconds in (*running, *waiting) if seconds is not None]
        if len(known) < len(running) + len(waiting):
            return None
        return makespan(known[: len(running)], known[len(running) :], self.plan.jobs)

    def _rest(self, at_work: _AtWork, now: float) -> float | None:
        if at_work.left is not None:
            return max(0.0, at_work.left - (now - at_work.told))
        whole = self._whole(at_work.cell)
        return None if whole is None else max(0.0, whole - (now - at_work.began))

    def _whole(self, cell: Cell) -> float | None:
        """Seconds of all the rounds that are left of a cell that has not begun."""
        a_round = expected(cell, self._took)
        overhead = statistics.fmean(self._overheads) if self._overheads else 0.0
        left = cell.experiment.rounds - self.held[cell.name].rounds
        return None if a_round is None else overhead + a_round * left


def outcome(
    cell: Cell,
    out: Path,
    held: Held,
    *,
    kept: bool = False,
    pruned: bool = False,
    failure: str | None = None,
    log: Path | None = None,
) -> Ended:
    """How a cell ended, from what its folder holds and what was heard of it."""
    return Ended(
        cell,
        out / cell.name,
        "pruned" if pruned else "finished" if failure is None else "failed",
        kept=kept,
        rounds=held.rounds,
        accuracy=held.accuracy,
        seconds=held.seconds,
        cpu_seconds=held.cpu_seconds,
        why=failure,
        log=log,
    )
