"""What is heard of a search while it goes on: a sweep's listener hears of its runs, and how far the whole is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedstill.sweep.grid import Cell
from fedstill.sweep.hearing import Ended, Listener, Opening, Tally

__all__ = ["Ears"]


@dataclass(frozen=True)
class Ears:
    """Stands between a crew that knows one batch and a listener that is to hear of the whole search.

    Attributes:
        hear: the listener.
        tally: how far the search is.
    """

    hear: Listener
    tally: Callable[[], Tally]

    def measuring(self, cell: Cell) -> None:
        self.hear.measuring(cell)

    def opening(self, opening: Opening) -> None:
        """A batch's; the search has one of its own."""

    def begins(self, cell: Cell, *, done: int) -> None:
        self.hear.begins(cell, done=done)

    def rounds(self, cell: Cell, rows: Sequence[Mapping[str, Any]], until: int) -> None:
        self.hear.rounds(cell, rows, until)

    def progress(self, cell: Cell, phase: str, done: int, total: int) -> None:
        self.hear.progress(cell, phase, done, total)

    def row(self, cell: Cell, row: Mapping[str, Any], *, left: float, tally: Tally) -> None:
        self.hear.row(cell, row, left=left, tally=self.tally())

    def note(self, text: str, cell: Cell | None = None) -> None:
        self.hear.note(text, cell)

    def ended(self, ended: Ended, tally: Tally) -> None:
        """What a run's end means for its trial is the search's to tell."""
