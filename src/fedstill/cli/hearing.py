"""What an audit says while it goes on: a board on a terminal, plain lines elsewhere; the table of each attack when it is done."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console, Group
from rich.live import Live

from fedstill.cli.console import QUIET, pulse, seconds_text
from fedstill.cli.leaks import TITLES
from fedstill.cli.live import Bar, bar_table, left_text, ticking

if TYPE_CHECKING:
    from fedstill.auditing import Hearing

__all__ = ["AuditBoard", "AuditLines", "hearing"]

PIECES = {
    "shadow federations": "shadow federation",
    "rounds again": "round done again",
    "updates": "update inverted",
}
"""Phases of which each piece is worth a line; the others take seconds, or are parts of a piece."""

Say = Callable[[str, Mapping[str, Any]], None]


@contextmanager
def hearing(*, quiet: bool, silent: bool, say: Say) -> Iterator[Hearing]:
    """What fits: warnings alone, a board on a terminal, or plain lines on stderr.

    Args:
        quiet: nothing but warnings is said.
        silent: no table is said.
        say: says one attack's tables on standard output.
    """
    console = Console(stderr=True)
    if quiet:
        yield _Warnings()
    elif sys.stderr.isatty() and console.is_interactive:  # which a terminal that cannot move its cursor is not
        board = AuditBoard(console)
        live = Live(
            get_renderable=lambda: board.draw(console.width),
            console=console,
            refresh_per_second=2,
            transient=True,
            redirect_stdout=False,  # tables go to standard output, wherever that leads
        )

        def above(attack: str, found: Mapping[str, Any]) -> None:
            live.stop()
            say(attack, found)
            live.start(refresh=True)

        board.table = None if silent else above
        with live:
            yield board
    else:
        lines = AuditLines()
        lines.table = None if silent else say
        with pulse(lines.beat):
            yield lines


@dataclass(frozen=True)
class _Place:
    """Where an audit is: one moment of it, for another thread to read.

    Attributes:
        attack: at work; empty between two.
        number, of: which of how many it is; attacks that stood in the file are counted.
        began: moment at which it began.
        phase: of it, and ``done`` of ``total`` pieces.
        first: pieces that were done when the phase began: those of an earlier audit.
        phase_began, told: moments of the phase's begin and of the last piece.
    """

    attack: str = ""
    number: int = 0
    of: int = 0
    began: float = 0.0
    phase: str = ""
    done: int = 0
    total: int = 0
    first: int = 0
    phase_began: float = 0.0
    told: float = 0.0

    def tell(self, now: float, phase: str, done: int, total: int) -> _Place:
        if phase != self.phase or done < self.done or total != self.total:
            return replace(self, phase=phase, done=done, total=total, first=done, phase_began=now, told=now)
        return replace(self, done=done, told=now)

    @property
    def share(self) -> float | None:
        return self.done / self.total if self.total else None

    def left(self, now: float) -> float | None:
        """Seconds left in the phase if pieces go on to take what they took; None before one is done."""
        made = self.done - self.first
        if made < 1:
            return None
        each = (self.told - self.phase_began) / made
        return max(0.0, each * (self.total - self.done) - (now - self.told))


class _Words:
    """What lines and board have in common: a line whenever an attack begins or ends, and one a piece of work."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._place = _Place()
        self._pieces: dict[str, _Place] = {}  # counted phases go on while parts of their pieces are told
        self.table: Say | None = None

    def say(self, text: str) -> None:
        typer.echo(text, err=True)

    def opening(self, attacks: Sequence[str]) -> None:
        self._place = _Place(of=len(attacks))

    def begins(self, attack: str) -> None:
        now, place = self._clock(), self._place
        self._pieces = {}
        self._place = _Place(attack, place.number + 1, place.of, began=now, phase_began=now, told=now)
        if place.of > 1:  # of one alone the table says it all
            self.say(f"{TITLES[attack]} ({self._place.number} of {place.of}): begins")

    def progress(self, phase: str, done: int, total: int) -> None:
        now = self._clock()
        self._place = self._place.tell(now, phase, done, total)
        if phase not in PIECES:
            return
        before = self._pieces.get(phase)
        own = (before or self._place).tell(now, phase, done, total)
        self._pieces[phase] = own
        if before is None or own.done <= before.done:
            if before is None and own.done:
                self.say(f"  {PIECES[phase]} 1 to {own.done} of {own.total}: kept from an earlier audit")
            return
        left = own.left(now)
        rest = f"  (about {seconds_text(left)} left)" if left and own.done < own.total else ""
        self.say(f"  {PIECES[phase]} {own.done}/{own.total}  {seconds_text(now - before.told)}{rest}")

    def ended(self, attack: str, found: Mapping[str, Any], seconds: float | None) -> None:
        if seconds is None:
            self._place = replace(self._place, number=self._place.number + 1)
            self.say(f"{TITLES[attack]}: was done before, with these settings")
        else:
            self.say(f"{TITLES[attack]}: done in {seconds_text(seconds)}")
        self._place = replace(self._place, attack="")
        if self.table is not None:
            self.table(attack, found)

    def note(self, text: str) -> None:
        self.say(text)


class AuditLines(_Words):
    """Plain lines, and one whenever none has come for a while."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic, quiet: float = QUIET) -> None:
        super().__init__(clock)
        self._quiet = quiet
        self._said = clock()

    def say(self, text: str) -> None:
        self._said = self._clock()
        super().say(text)

    def beat(self) -> None:
        """Say what is at work, if nothing was said for a while: a log shows that it is alive."""
        now, place = self._clock(), self._place
        if not place.attack or now - self._said < self._quiet:
            return
        parts = [f"{place.phase} {place.done}/{place.total}"] if place.total else []
        parts.append(f"{seconds_text(now - place.began)} so far")
        self.say(f"  {TITLES[place.attack]}: {', '.join(parts)}")


class AuditBoard(_Words):
    """Lines above, and at the foot the attack and the phase at work."""

    def __init__(self, console: Console, *, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(clock)
        self._console = console

    def say(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def draw(self, width: int) -> Group:
        """The board as it is now, ``width`` columns wide."""
        bars = self.bars()
        return Group(bar_table(bars, width)) if bars else Group()

    def bars(self) -> list[Bar]:
        """A line for the attack, one for the pieces that it is counted in, and one for what of them is at work."""
        now, place = self._clock(), self._place
        if not place.attack:
            return [Bar("reading data, building networks", None, "")] if not place.number else []
        counted = list(dict(self._pieces).values())[-1:]
        lines = [Bar(f"{TITLES[place.attack]} {place.number}/{place.of}", None, ticking(now - place.began))]
        for each in [*counted, *([place] if place.phase not in PIECES and place.phase else [])]:
            text = f"{each.phase} {each.done}/{each.total}" if each.total else each.phase
            lines.append(Bar(text, each.share, left_text(each.left(now))))
        return lines


class _Warnings:
    """Nothing but what may be wrong."""

    def opening(self, attacks: Sequence[str]) -> None: ...

    def begins(self, attack: str) -> None: ...

    def progress(self, phase: str, done: int, total: int) -> None: ...

    def ended(self, attack: str, found: Mapping[str, Any], seconds: float | None) -> None: ...

    def note(self, text: str) -> None:
        typer.echo(text, err=True)
