"""What a run says while it goes on: a live board on a terminal, plain lines elsewhere, or JSON for machines.

pace.py   where the run is and how long it will take
live.py   the board
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer

from fedstill.cli.pace import Count, Pace, round_seconds

if TYPE_CHECKING:
    from fedstill.reporter import Ending, Opening, Reporter

__all__ = [
    "Lines",
    "bytes_text",
    "count_text",
    "opening_lines",
    "percent",
    "pulse",
    "reporter",
    "round_line",
    "say_table",
    "scores_text",
    "seconds_text",
    "troubles",
]

QUIET = 60.0
"""Seconds without a line after which a log gets one."""

WORK = {
    "local": "clients train",
    "score": "clients score",
    "keys": "sites exchange keys",
    "shares": "sites exchange keys",
    "masked": "sites train",
    "unmask": "sites unmask the sum",
    "distil": "server distils",
    "check": "server compares sets",
    "train": "server trains",
    "evaluate": "evaluating",
}
UNITS = {"local": "epoch", "distil": "step", "train": "epoch"}
"""What a phase's items count, where that is known."""


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
    return "  ".join(
        [
            f"round {row['round']}/{until}",
            *scores_text(row),
            f"up {bytes_text(row['bytes_up'])}",
            f"down {bytes_text(row['bytes_down'])}",
            seconds_text(round_seconds(row)),
        ]
    )


def scores_text(row: Mapping[str, Any]) -> list[str]:
    """``surrogate 84.2 %`` for every model, and the mean of the clients' own validation where it was measured."""
    scores = [f"{name} {percent(share)}" for name, share in row["accuracy"].items()]
    mean = row.get("validation", {}).get("mean")
    return scores if mean is None else [*scores, f"validation {percent(mean)}"]


def count_text(work: Count, item: Count | None) -> tuple[str, str]:
    """``("server distils 4/10", "c05, step 37/100")``; empty where there is nothing to say."""
    name = WORK.get(work.name, work.name)
    whole = f"{name} {work.done}/{work.total}" if work.total else name
    if item is None:
        return whole, ""
    unit = f"{UNITS[work.name]} " if work.name in UNITS else ""
    return whole, f"{item.name}, {unit}{item.done}/{item.total}" if item.total else item.name


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
    """Who was left out of a round and why; whose matching needed another try; whose set disagrees and is kept."""
    lines = [f"  {failure['client']} left out: {failure['reason']}" for failure in row["failures"]]
    lines += [
        f"  {client['client']} matched with smaller steps, after {matching['retries']} failed "
        f"{'try' if matching['retries'] == 1 else 'tries'}"
        for client in row["clients"]
        if (matching := client.get("matching")) and matching["retries"] and matching["sick"] is None
    ]
    lines += [
        f"  {client['client']} disagrees with the others by what it distilled, and is kept (agreement "
        f"{percent(client['agreement'])})"
        for client in row["clients"]
        if client.get("flagged") and client["client"] not in {failure["client"] for failure in row["failures"]}
    ]
    if not row["aggregated"]:
        lines.append(f"  the model is as it was: {row.get('withheld', 'fewer clients than the quorum replied')}")
    return lines


@contextmanager
def reporter(*, as_json: bool, quiet: bool) -> Iterator[Reporter]:
    """What fits: troubles alone, JSON on stdout, a live board on a terminal, or plain lines on stderr."""
    from rich.console import Console

    console = Console(stderr=True)
    if quiet or as_json:
        yield _Machine(rows=as_json)
    elif sys.stderr.isatty() and console.is_interactive:  # which a terminal that cannot move its cursor is not
        from fedstill.cli.live import live

        with live(console) as board:
            yield board
    else:
        lines = Lines()
        with pulse(lines.beat):
            yield lines


@contextmanager
def pulse(beat: Callable[[], None], seconds: float = 5.0) -> Iterator[None]:
    """Call ``beat`` every ``seconds``, whatever else is at work."""
    over = threading.Event()

    def beats() -> None:
        while not over.wait(seconds):
            beat()

    thread = threading.Thread(target=beats, daemon=True, name="heartbeat")
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


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

    def closing(self, ending: Ending) -> None: ...


class Lines:
    """One plain line a round, and one whenever none has come for a while."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic, quiet: float = QUIET) -> None:
        self._clock = clock
        self._quiet = quiet
        self._pace = Pace()
        self._at_work = False
        self._said = clock()

    def opening(self, opening: Opening) -> None:
        for line in opening_lines(opening):
            self.note(line)
        self._pace = Pace.open(self._clock(), opening.rows, opening.until)
        self._at_work = True

    def progress(self, phase: str, done: int, total: int) -> None:
        self._pace = self._pace.tell(self._clock(), phase, done, total)

    def row(self, row: Mapping[str, Any], *, left: float) -> None:
        self._pace = self._pace.close(self._clock(), row["round"], left)
        rest = f"  ({seconds_text(left)} left)" if row["round"] < self._pace.until else ""
        self.note(round_line(row, self._pace.until) + rest)
        for line in troubles(row):
            self.note(line)

    def note(self, text: str) -> None:
        self._said = self._clock()
        typer.echo(text, err=True)

    def closing(self, ending: Ending) -> None:
        self._at_work = False

    def beat(self) -> None:
        """Say where the run is, if nothing was said for a while: a log shows that it is alive."""
        now = self._clock()
        if not self._at_work or now - self._said < self._quiet:
            return
        pace, parts = self._pace, []
        if work := pace.work:
            parts = [part for part in count_text(work, pace.item) if part]
        parts.append(f"{seconds_text(now - pace.round_began)} in this round")
        if left := pace.round_left(now):
            parts.append(f"about {seconds_text(left)} left in it")
        number = f"round {pace.number}/{pace.until}" if pace.number <= pace.until else "writing models and page"
        self.note(f"  {number}: {', '.join(parts)}")


def opening_lines(opening: Opening) -> Iterator[str]:
    done = f", continuing after round {opening.done}" if opening.done else ""
    yield f"{opening.experiment.name}: {opening.experiment.algorithm.name}, {opening.until} rounds, in {opening.out}{done}"
    if opening.skipped:
        name, reason = opening.skipped[0]
        count = len(opening.skipped)
        yield f"  {count} unreadable {'image' if count == 1 else 'images'} left out; the first: {name}: {reason}"
