"""What a sweep says while it goes on: a live board on a terminal, plain lines elsewhere, or JSON for machines."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from fedstill.cli.console import QUIET, bytes_text, count_text, percent, pulse, seconds_text, troubles
from fedstill.cli.live import Bar, bar_table, left_text, ticking
from fedstill.cli.pace import Pace

if TYPE_CHECKING:
    from fedstill.sweep.grid import Cell
    from fedstill.sweep.hearing import Ended, Listener, Opening, Tally
    from fedstill.sweep.machine import Plan

__all__ = ["CellBoard", "CellLines", "listener", "plan_text"]


def plan_text(plan: Plan) -> str:
    """``2 cells at a time: the machine has 2 cores``."""
    memory = ""
    if plan.need is not None and plan.free is not None:
        memory = f"a cell takes about {bytes_text(plan.need)}, and {bytes_text(plan.free)} are free"
    threads = "" if plan.threads == 1 else f", and a cell has {plan.threads} threads"
    why = {
        "asked": "as asked",
        "cells": "there are no more",
        "cores": f"the machine has {plan.cores} {'core' if plan.cores == 1 else 'cores'}{threads}",
        "memory": memory,
        "device": "more would share one device; --jobs lets them",
    }[plan.limit]
    more = f"; {memory}" if memory and plan.limit != "memory" else ""
    return f"{plan.jobs} {'cell' if plan.jobs == 1 else 'cells'} at a time: {why}{more}"


@contextmanager
def listener(*, as_json: bool, quiet: bool, noun: str = "cells") -> Iterator[Listener]:
    """What fits: troubles alone, JSON on stdout, a live board on a terminal, or plain lines on stderr.

    ``noun``: what the board calls what it counts.
    """
    console = Console(stderr=True)
    if quiet or as_json:
        yield _Machine(as_json=as_json)
    elif sys.stderr.isatty() and console.is_interactive:  # which a terminal that cannot move its cursor is not
        board = CellBoard(console, noun=noun)
        drawn = Live(
            get_renderable=lambda: board.draw(console.width, console.height),
            console=console,
            refresh_per_second=2,
            transient=True,
        )
        with drawn:
            yield board
    else:
        lines = CellLines()
        with pulse(lines.beat):
            yield lines


class _Words:
    """What lines and board have in common: a line for whatever is worth one."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._paces: dict[str, Pace] = {}
        self._tally: Tally | None = None
        self._told = clock()  # when the tally was
        self._began = clock()

    def say(self, text: str) -> None:
        typer.echo(text, err=True)

    def measuring(self, cell: Cell) -> None:
        self.say(f"estimating the memory of a cell, from {cell.name}")

    def opening(self, opening: Opening) -> None:
        self._count(opening.tally)
        kept = f", {len(opening.kept)} of them finished before" if opening.kept else ""
        self.say(f"{len(opening.cells)} {_cells(len(opening.cells))}{kept}, in {opening.out}")
        if len(opening.kept) < len(opening.cells):
            self.say(plan_text(opening.plan))

    def begins(self, cell: Cell, *, done: int) -> None:
        rounds = cell.experiment.rounds
        self._paces[cell.name] = Pace()
        after = f"goes on after round {done} of {rounds}" if done else f"begins, {rounds} {_rounds(rounds)}"
        self.say(f"{cell.name} {after}")

    def rounds(self, cell: Cell, rows: Sequence[Mapping[str, Any]], until: int) -> None:
        self._paces[cell.name] = Pace.open(self._clock(), rows, until)

    def progress(self, cell: Cell, phase: str, done: int, total: int) -> None:
        self._paces[cell.name] = self._paces[cell.name].tell(self._clock(), phase, done, total)

    def row(self, cell: Cell, row: Mapping[str, Any], *, left: float, tally: Tally) -> None:
        self._count(tally)
        for line in troubles(row):
            self.say(f"{cell.name}, round {row['round']}: {line.strip()}")
        self._paces[cell.name] = self._paces[cell.name].close(self._clock(), row["round"], left)

    def note(self, text: str, cell: Cell | None = None) -> None:
        self.say(text if cell is None else f"{cell.name}: {text}")

    def ended(self, ended: Ended, tally: Tally) -> None:
        self._count(tally)
        self._paces.pop(ended.cell.name, None)
        over = tally.finished + tally.failed
        rest = (
            ""
            if over == tally.total or not tally.left or tally.left < 1
            else f"  (about {seconds_text(tally.left)} left)"
        )
        self.say(f"{over}/{tally.total}  {_end(ended)}{rest}")

    def _count(self, tally: Tally) -> None:
        self._tally, self._told = tally, self._clock()

    def _left(self, now: float) -> float | None:
        if self._tally is None or self._tally.left is None:
            return None
        return max(0.0, self._tally.left - (now - self._told))


class CellLines(_Words):
    """One plain line whenever a cell begins or ends, and one whenever none has come for a while."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic, quiet: float = QUIET) -> None:
        super().__init__(clock)
        self._quiet = quiet
        self._said = clock()

    def say(self, text: str) -> None:
        self._said = self._clock()
        super().say(text)

    def beat(self) -> None:
        """Say what is at work, if nothing was said for a while: a log shows that it is alive."""
        now = self._clock()
        if not self._paces or now - self._said < self._quiet:
            return
        at_work = [f"{name} {_at_work(pace)}" for name, pace in dict(self._paces).items()]
        left = self._left(now)
        self.say(f"  at work: {', '.join(at_work)}" + (f"  (about {seconds_text(left)} left)" if left else ""))


class CellBoard(_Words):
    """Lines above, and at the foot how far the sweep is and every cell at work."""

    def __init__(self, console: Console, *, clock: Callable[[], float] = time.monotonic, noun: str = "cells") -> None:
        super().__init__(clock)
        self._console = console
        self._noun = noun

    def say(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def draw(self, width: int, height: int) -> Group:
        """The board as it is now, so many columns wide and at most so many lines high."""
        bars = self.bars()
        if not bars:
            return Group()
        room = max(1, height - 3)
        more = [Text(f"and {len(bars) - room} more")] if len(bars) > room else []
        return Group(bar_table(bars[:room], width), *more)

    def bars(self) -> list[Bar]:
        """A line for the sweep, and one a cell at work."""
        now, tally = self._clock(), self._tally
        if tally is None:
            return []
        paces = dict(self._paces)  # the board is drawn by another thread
        if not paces:
            return [Bar("writing the page", None, "")] if tally.finished + tally.failed == tally.total else []
        over, parts = tally.finished + tally.failed, sum(map(_share, paces.values()))
        left = left_text(self._left(now))
        spent = ticking(now - self._began)
        lines = [
            Bar(
                f"{over}/{tally.total} {self._noun}",
                (over + parts) / tally.total,
                f"{spent}, {left}" if left else spent,
            )
        ]
        for name, pace in paces.items():
            left = left_text(pace.left(now)) if pace.number <= pace.until else ""
            words = [_at_work(pace), left] if left else [_at_work(pace)]
            lines.append(Bar(name, _share(pace), ", ".join(words)))
        return lines


class _Machine:
    """One object a finished cell as JSON, or nothing; what went wrong is said in either case, on stderr."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json

    def measuring(self, cell: Cell) -> None: ...

    def opening(self, opening: Opening) -> None:
        for ended in opening.kept:
            self._say(ended)

    def begins(self, cell: Cell, *, done: int) -> None: ...

    def rounds(self, cell: Cell, rows: Sequence[Mapping[str, Any]], until: int) -> None: ...

    def progress(self, cell: Cell, phase: str, done: int, total: int) -> None: ...

    def row(self, cell: Cell, row: Mapping[str, Any], *, left: float, tally: Tally) -> None:
        for line in troubles(row):
            self.note(f"round {row['round']}: {line.strip()}", cell)

    def note(self, text: str, cell: Cell | None = None) -> None:
        typer.echo(text if cell is None else f"{cell.name}: {text}", err=True)

    def ended(self, ended: Ended, tally: Tally) -> None:
        self._say(ended)

    def _say(self, ended: Ended) -> None:
        if self._as_json:
            typer.echo(json.dumps(_object(ended)))


def _object(ended: Ended) -> dict[str, Any]:
    return {
        "cell": ended.cell.name,
        "label": ended.cell.label,
        "setting": dict(ended.cell.setting),
        "seed": ended.cell.seed,
        "state": ended.state,
        "kept": ended.kept,
        "rounds": ended.rounds,
        "accuracy": dict(ended.accuracy),
        "seconds": ended.seconds,
        "cpu_seconds": ended.cpu_seconds,
        "out": str(ended.out),
        "failure": ended.why,
        "log": None if ended.log is None else str(ended.log),
    }


def _end(ended: Ended) -> str:
    if ended.state == "failed":
        return f"{ended.cell.name} failed: {ended.why}"
    scores = [f"{name} {percent(share)}" for name, share in ended.accuracy.items()]
    pruned = [f"pruned after round {ended.rounds}"] if ended.state == "pruned" else []
    return "  ".join([ended.cell.name, *pruned, *scores, seconds_text(ended.seconds)])


def _share(pace: Pace) -> float:
    return min(1.0, (pace.number - 1) / pace.until) if pace.until else 0.0


def _at_work(pace: Pace) -> str:
    if not pace.until:
        return "reading data, building networks"
    if pace.number > pace.until:
        return "writing models and page"
    words = f"round {pace.number}/{pace.until}"
    return f"{words}, {count_text(pace.work, None)[0]}" if pace.work is not None else words


def _cells(count: int) -> str:
    return "cell" if count == 1 else "cells"


def _rounds(count: int) -> str:
    return "round" if count == 1 else "rounds"
