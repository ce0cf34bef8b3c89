"""Who hears how a run goes: the terminal, a tracker, a user's own code. One protocol for all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from fedstill.experiment import Experiment

__all__ = ["Ending", "Opening", "Reporter", "Silent"]

Ending = Literal["finished", "interrupted", "failed"]
"""How a run ended: ``interrupted`` by Ctrl-C, ``failed`` by anything else that stopped it."""


@dataclass(frozen=True)
class Opening:
    """What a reporter hears before the first round.

    Attributes:
        out: folder of the run; its ``experiment.toml`` is written by then.
        rows: lines of ``metrics.jsonl`` that a resumed run has behind it.
        until: number of the last round.
        skipped: (name, reason) of pictures left out of the data.
    """

    experiment: Experiment
    out: Path
    rows: Sequence[Mapping[str, Any]]
    until: int
    skipped: Sequence[tuple[str, str]]

    @property
    def done(self) -> int:
        """Number of the last round that a resumed run has behind it; 0 for a new run."""
        return int(self.rows[-1]["round"]) if self.rows else 0


class Reporter(Protocol):
    """Hears how a run goes. It must not raise.

    ``note`` and ``progress`` may come at any time; ``opening`` comes once, then a ``row`` a round, then ``closing`` once,
    whatever stopped the run.
    """

    def opening(self, opening: Opening) -> None: ...

    def progress(self, phase: str, done: int, total: int) -> None:
        """How far a phase of the round is; :class:`fedstill.rounds.Desk` says how phases are called."""

    def row(self, row: Mapping[str, Any], *, left: float) -> None:
        """A line of ``metrics.jsonl``, and an estimate of the seconds left."""

    def note(self, text: str) -> None:
        """Something worth a line of the log."""

    def closing(self, ending: Ending) -> None:
        """The run is over: nothing more will be heard."""


class Silent:
    """The reporter that nobody hears."""

    def opening(self, opening: Opening) -> None: ...

    def progress(self, phase: str, done: int, total: int) -> None: ...

    def row(self, row: Mapping[str, Any], *, left: float) -> None: ...

    def note(self, text: str) -> None: ...

    def closing(self, ending: Ending) -> None: ...
