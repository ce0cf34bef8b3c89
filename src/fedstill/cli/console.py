"""What a run says while it goes on: one line a round, a live bar on a terminal, or JSON for machines."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from rich.progress import Progress

    from fedstill.run import Opening, Reporter

__all__ = ["bytes_text", "percent", "reporter", "round_line", "say_table", "seconds_text"]


def bytes_text(count: float) -> str:
    """``1.2 MB``; units of 1000."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5 or unit == "GB":
            break
        count /= 1000
    return f"{count:.0f} {unit}" if unit == "B" or count >= 99.5 else f"{count:.1f} {unit}"


def seconds_text(seconds: float) -> str:
    """``12 s``, ``3 min 20 s``, ``2 h 05 min``."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 100:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def percent(share: float | None) -> str:
    """``84.2 %``; a dash where there is none."""
    return "–" if share is None else f"{100 * share:.1f} %"


def round_line(row: Mapping[str, Any], until: int) -> str:
    """``round 3/5  surrogate 84.2 %  up 1.2 MB  down 1.2 MB  12 s``."""
    seconds = sum(row["seconds"].get(phase, 0.0) for phase in ("clients", "server", "evaluate"))
    return "  ".join(
        [
            f"round {row['round']}/{until}",
            *(f"{name} {percent(share)}" for name, share in row["accuracy"].items()),
            f"up {bytes_text(row['bytes_up'])}",
            f"down {bytes_text(row['bytes_down'])}",
            seconds_text(seconds),
        ]
    )


def say_table(title: str, head: Sequence[str], lines: Sequence[Sequence[str]]) -> None:
    """A titled table on standard output; the first two columns are text, the others numbers."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for column, name in enumerate(head):
        table.add_column(name, justify="right" if column > 1 else "left", no_wrap=True)
    for line in lines:
        table.add_row(*line)
    Console(markup=False, highlight=False).print(table)


def troubles(row: Mapping[str, Any]) -> list[str]:
    """Who was left out of a round and why; whose matching needed another try."""
    lines = [f"  {failure['client']} left out: {failure['reason']}" for failure in row["failures"]]
    lines += [
        f"  {client['client']} matched with smaller steps, after {matching['retries']} failed "
        f"{'try' if matching['retries'] == 1 else 'tries'}"
        for client in row["clients"]
        if (matching := client.get("matching")) and matching["retries"] and matching["sick"] is None
    ]
    if not row["aggregated"]:
        lines.append("  fewer clients than the quorum replied: the model is as it was")
    return lines


@contextmanager
def reporter(*, as_json: bool, quiet: bool) -> Iterator[Reporter]:
    """What fits: troubles alone, JSON on stdout, a live bar on a terminal, or plain lines on stderr."""
    if quiet or as_json:
        yield _Machine(rows=as_json)
    elif sys.stderr.isatty():
        with _bar() as bar:
            yield _Live(bar)
    else:
        yield _Lines()


class _Machine:
    """Rows as JSON, or nothing; what went wrong is said in either case, on stderr."""

    def __init__(self, *, rows: bool) -> None:
        self.rows = rows

    def opening(self, opening: Opening) -> None: ...

    def progress(self, phase: str, done: int, total: int) -> None: ...

    def row(self, row: Mapping[str, Any], *, left: float) -> None:
        if self.rows:
            typer.echo(json.dumps(row))
        for line in troubles(row):
            self.note(f"round {row['round']}: {line.strip()}")

    def note(self, text: str) -> None:
        typer.echo(text, err=True)


class _Lines:
    """One plain line a round."""

    def __init__(self) -> None:
        self.until = 0

    def opening(self, opening: Opening) -> None:
        self.until = opening.until
        for line in _opening_lines(opening):
            self.note(line)

    def progress(self, phase: str, done: int, total: int) -> None: ...

    def row(self, row: Mapping[str, Any], *, left: float) -> None:
        rest = f"  ({seconds_text(left)} left)" if row["round"] < self.until else ""
        self.note(round_line(row, self.until) + rest)
        for line in troubles(row):
            self.note(line)

    def note(self, text: str) -> None:
        typer.echo(text, err=True)


class _Live:
    """The same lines above a bar of rounds and a bar of the phase at work."""

    def __init__(self, bar: Progress) -> None:
        self.bar = bar
        self.rounds = bar.add_task("starting", total=None, left="")
        self.phase = bar.add_task("", total=None, left="", visible=False)
        self.name = ""
        self.until = 0
        self.ends: float | None = None

    def opening(self, opening: Opening) -> None:
        self.until = opening.until
        for line in _opening_lines(opening):
            self.note(line)
        self.bar.update(self.rounds, description="rounds", total=opening.until, completed=opening.done)

    def progress(self, phase: str, done: int, total: int) -> None:
        if phase != self.name:
            self.name = phase
            self.bar.reset(self.phase, description=phase, total=total, visible=True)
        self.bar.update(self.phase, completed=done, total=total)
        if self.ends is not None:
            self.bar.update(self.rounds, left=f"{seconds_text(max(0.0, self.ends - time.monotonic()))} left")

    def row(self, row: Mapping[str, Any], *, left: float) -> None:
        self.note(round_line(row, self.until))
        for line in troubles(row):
            self.note(line)
        self.ends = time.monotonic() + left
        self.bar.update(self.rounds, completed=row["round"], left=f"{seconds_text(left)} left" if left else "")

    def note(self, text: str) -> None:
        self.bar.console.print(text, markup=False, highlight=False, soft_wrap=True)


def _opening_lines(opening: Opening) -> Iterator[str]:
    done = f", continuing after round {opening.done}" if opening.done else ""
    yield f"{opening.experiment.name}: {opening.experiment.algorithm.name}, {opening.until} rounds, in {opening.out}{done}"
    if opening.skipped:
        name, reason = opening.skipped[0]
        count = len(opening.skipped)
        yield f"  {count} unreadable {'image' if count == 1 else 'images'} left out; the first: {name}: {reason}"


def _bar() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[left]}", markup=False),
        console=Console(stderr=True),
        transient=True,
    )
