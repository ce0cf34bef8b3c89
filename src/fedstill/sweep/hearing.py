"""Who hears how a sweep goes, and what is heard."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from fedstill.sweep.grid import Cell
from fedstill.sweep.machine import Plan

__all__ = ["Deaf", "Ended", "Listener", "Opening", "Tally"]


@dataclass(frozen=True)
class Ended:
    """How a cell ended.

    Attributes:
        cell: which.
        out: its folder.
        state: ``finished`` has all its rounds; ``failed`` is tried again by the same sweep; ``pruned`` was told to stop, see
            :class:`fedstill.sweep.crew.Crew`.
        kept: it was finished before, and not run again.
        rounds: number of the last whole round.
        accuracy: of every model after it.
        seconds: of all its rounds.
        cpu_seconds: of all its rounds; None where it is not known.
        why: it failed; one sentence.
        log: what was written while it failed; None where nothing was.
    """

    cell: Cell
    out: Path
    state: Literal["finished", "failed", "pruned"]
    kept: bool = False
    rounds: int = 0
    accuracy: Mapping[str, float | None] = field(default_factory=dict)
    seconds: float = 0.0
    cpu_seconds: float | None = None
    why: str | None = None
    log: Path | None = None


@dataclass(frozen=True)
class Tally:
    """How far the sweep is.

    Attributes:
        finished, failed, total: cells; those that were pruned count as finished.
        left: seconds until the last will have ended; None where nothing tells.
    """

    finished: int
    failed: int
    total: int
    left: float | None


@dataclass(frozen=True)
class Opening:
    """What is heard before the first cell begins.

    Attributes:
        out: folder of the sweep.
        cells: all of them.
        kept: those that are finished already.
        plan: how many are run at a time.
        tally: how far the sweep is.
    """

    out: Path
    cells: Sequence[Cell]
    kept: Sequence[Ended]
    plan: Plan
    tally: Tally


class Listener(Protocol):
    """Hears how a sweep goes; all of it in the thread that runs the sweep. It must not raise."""

    def measuring(self, cell: Cell) -> None:
        """How much memory a cell takes is estimated, from this one; before the opening, where it is not known."""

    def opening(self, opening: Opening) -> None: ...

    def begins(self, cell: Cell, *, done: int) -> None:
        """A cell begins, or goes on after round ``done``."""

    def rounds(self, cell: Cell, rows: Sequence[Mapping[str, Any]], until: int) -> None:
        """Its data are read; ``rows`` (``round``, ``seconds``) are behind it."""

    def progress(self, cell: Cell, phase: str, done: int, total: int) -> None:
        """As :meth:`fedstill.reporter.Reporter.progress`, some times a second at most."""

    def row(self, cell: Cell, row: Mapping[str, Any], *, left: float, tally: Tally) -> None:
        """A round is over; ``row`` has the main keys of its line in ``metrics.jsonl``."""

    def note(self, text: str, cell: Cell | None = None) -> None:
        """Something worth a line of the log."""

    def ended(self, ended: Ended, tally: Tally) -> None: ...


class Deaf:
    """The listener that hears nothing."""

    def measuring(self, cell: Cell) -> None: ...

    def opening(self, opening: Opening) -> None: ...

    def begins(self, cell: Cell, *, done: int) -> None: ...

    def rounds(self, cell: Cell, rows: Sequence[Mapping[str, Any]], until: int) -> None: ...

    def progress(self, cell: Cell, phase: str, done: int, total: int) -> None: ...

    def row(self, cell: Cell, row: Mapping[str, Any], *, left: float, tally: Tally) -> None: ...

    def note(self, text: str, cell: Cell | None = None) -> None: ...

    def ended(self, ended: Ended, tally: Tally) -> None: ...
