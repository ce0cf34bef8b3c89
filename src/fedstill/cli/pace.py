"""Where a run is, and how long it will still take. Nothing here reads a clock or writes a line: the time is an argument."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

__all__ = ["Count", "Pace", "round_seconds"]

PARTS = ("clients", "server", "evaluate")  # their times make up a round's; other phases are parts of these

Spans = Mapping[str, tuple[float, float]]


def round_seconds(row: Mapping[str, Any]) -> float:
    """Wall time of a round, from its line of ``metrics.jsonl``."""
    return float(sum(row["seconds"].get(part, 0.0) for part in PARTS))


@dataclass(frozen=True)
class Count:
    """``done`` of ``total``; a total of 0 is one that is not known."""

    name: str
    done: int = 0
    total: int = 0

    @property
    def share(self) -> float:
        """0 … 1; 0 where the total is not known."""
        return min(1.0, self.done / self.total) if self.total else 0.0


@dataclass(frozen=True)
class Pace:
    """One run at one moment. A value: what is drawn from another thread never sees half a change.

    The time left in a round comes from the round before: where in it each phase began and ended. Before there is such a
    round it comes from the mean of the rounds that a resumed run has behind it; in a run's first round it is not known.
    Moments are seconds on a clock of the caller's, durations are seconds.

    Attributes:
        number: of the round at work.
        until: of the last round; 0 before the run began.
        work: the phase at work and its own count; None between rounds.
        item: what of the phase is at work, such as a client and its steps; None where that is not told.
        began, round_began, phase_began, told: moments of the first round's begin, this round's, this phase's, the last news.
        typical: duration of a round; None where it is not known.
        spans: begin and end of each phase of this round, in seconds from its begin; a phase that comes twice is two.
        before: those of the round before.
        lasted: duration of the round before.
        key: the phase at work, as ``spans`` calls it.
    """

    number: int = 1
    until: int = 0
    work: Count | None = None
    item: Count | None = None
    began: float = 0.0
    round_began: float = 0.0
    phase_began: float = 0.0
    told: float = 0.0
    typical: float | None = None
    spans: Spans = field(default_factory=dict)
    before: Spans = field(default_factory=dict)
    lasted: float = 0.0
    key: str = ""

    @classmethod
    def open(cls, now: float, rows: Sequence[Mapping[str, Any]], until: int) -> Pace:
        """At the begin of the first round after those of ``rows``."""
        number = int(rows[-1]["round"]) + 1 if rows else 1
        typical = sum(map(round_seconds, rows)) / len(rows) if rows else None
        return cls(number, until, began=now, round_began=now, phase_began=now, told=now, typical=typical)

    def tell(self, now: float, phase: str, done: int, total: int) -> Pace:
        """A phase got on; see :class:`fedstill.rounds.Desk` for how phases are called."""
        name, _, item = phase.partition(" ")
        pace = self if self.work is not None and self.work.name == name else self._next_phase(now, name)
        if item:
            return replace(pace, item=Count(item, done, total), told=now)
        return replace(pace, work=Count(name, done, total), item=None, told=now)

    def close(self, now: float, number: int, left: float) -> Pace:
        """Round ``number`` is over, and the run believes that ``left`` seconds remain."""
        return Pace(
            number + 1,
            self.until,
            began=self.began,
            round_began=now,
            phase_began=now,
            told=now,
            typical=left / (self.until - number) if self.until > number else self.typical,
            before=self._ended(now),
            lasted=now - self.round_began,
        )

    @property
    def share(self) -> float:
        """How far the phase is, 0 … 1, the item at work included."""
        if self.work is None:
            return 0.0
        item = self.item.share if self.item else 0.0
        return min(1.0, (self.work.done + item) / self.work.total) if self.work.total else item

    def elapsed(self, now: float) -> float:
        """Seconds since the first round of this sitting began."""
        return now - self.began

    def round_left(self, now: float) -> float | None:
        """Seconds left in this round; None where nothing tells."""
        if self.key in self.before:
            begin, end = self.before[self.key]
            here = begin + self.share * (end - begin)
            return max(0.0, self.lasted - here - (now - self.told))
        return None if self.typical is None else max(0.0, self.typical - (now - self.round_began))

    def left(self, now: float) -> float | None:
        """Seconds left in the run; None where nothing tells."""
        rest = self.round_left(now)
        if rest is None or self.typical is None:
            return None
        return rest + self.typical * max(0, self.until - self.number)

    def phase_left(self, now: float) -> float | None:
        """Seconds left in the phase if it goes on as it did; None before it got on."""
        if not self.share:
            return None
        return max(0.0, (self.told - self.phase_began) * (1 - self.share) / self.share - (now - self.told))

    def _next_phase(self, now: float, name: str) -> Pace:
        ended = self._ended(now)
        key = f"{name}#{sum(each.partition('#')[0] == name for each in ended)}"
        spans = {**ended, key: (now - self.round_began, now - self.round_began)}
        return replace(self, work=Count(name), item=None, phase_began=now, spans=spans, key=key)

    def _ended(self, now: float) -> Spans:
        """The spans, the phase at work ending now."""
        if not self.key:
            return self.spans
        return {**self.spans, self.key: (self.spans[self.key][0], now - self.round_began)}
