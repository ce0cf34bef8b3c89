"""The board at the foot of a terminal: a few lines that are drawn anew twice a second and gone when the run is over."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from rich.cells import cell_len
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from fedstill.cli.console import count_text, opening_lines, round_line, scores_text, seconds_text, troubles
from fedstill.cli.pace import Pace

if TYPE_CHECKING:
    from fedstill.reporter import Ending, Opening

__all__ = ["Bar", "Board", "bar_table", "left_text", "live", "ticking"]

WIDTHS = (40, 24, 16, 8)
"""Columns of a bar, the widest that fits: steps, so that no bar grows and shrinks with the digits beside it."""


class Bar(NamedTuple):
    """A line with a bar: ``share`` of it is full; None: no bar, as nothing is counted."""

    label: str
    share: float | None
    text: str


@contextmanager
def live(console: Console) -> Iterator[Board]:
    """A board at the foot of ``console``. Lines are printed above it; it leaves none of its own."""
    board = Board(console)
    with Live(get_renderable=lambda: board.draw(console.width), console=console, refresh_per_second=2, transient=True):
        yield board


class Board:
    """A reporter whose rounds are lines above, and whose present is the board."""

    def __init__(self, console: Console, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._clock = clock
        self._pace = Pace()
        self._words = "reading data, building networks"
        self._scores = ""
        self._trouble = ""

    def opening(self, opening: Opening) -> None:
        for line in opening_lines(opening):
            self.note(line)
        self._pace = Pace.open(self._clock(), opening.rows, opening.until)
        if opening.rows:
            self._remember(opening.rows[-1])
        self._words = ""

    def progress(self, phase: str, done: int, total: int) -> None:
        self._pace = self._pace.tell(self._clock(), phase, done, total)

    def row(self, row: Mapping[str, Any], *, left: float) -> None:
        self.note(round_line(row, self._pace.until))
        for line in troubles(row):
            self.note(line)
        self._remember(row)
        self._pace = self._pace.close(self._clock(), row["round"], left)
        if row["round"] == self._pace.until:
            self._words = "writing models and page"

    def note(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def closing(self, ending: Ending) -> None: ...

    def draw(self, width: int) -> Group:
        """The board as it is now, ``width`` columns wide."""
        lines = [Text(line) for line in (self._words, self._scores) if line]
        if self._trouble:
            lines.append(Text(self._trouble, no_wrap=True, overflow="ellipsis"))
        bars = self.bars()
        return Group(bar_table(bars, width), *lines) if bars else Group(*lines)

    def bars(self) -> list[Bar]:
        """A line for the run, one for the phase at work and one for what of it is at work."""
        if self._words:
            return []
        now, pace = self._clock(), self._pace
        spent, left = ticking(pace.elapsed(now)), left_text(pace.left(now))
        finished = (pace.number - 1) / pace.until
        lines = [Bar(f"round {pace.number}/{pace.until}", finished, f"{spent}, {left}" if left else spent)]
        if pace.work is None:
            return lines
        whole, item = count_text(pace.work, pace.item)
        of, rest = "round", pace.round_left(now)
        if rest is None:
            of, rest = "phase", pace.phase_left(now)
        text = f"{of}: {left}" if (left := left_text(rest)) else ""
        lines.append(Bar(whole, pace.work.share if pace.work.total else None, text))
        if pace.item is not None:
            lines.append(Bar(item, pace.item.share if pace.item.total else None, ""))
        return lines

    def _remember(self, row: Mapping[str, Any]) -> None:
        self._scores = f"after round {row['round']}: {', '.join(scores_text(row))}"
        if row["failures"]:
            last = row["failures"][-1]
            self._trouble = f"last failure, in round {row['round']}: {last['client']}: {last['reason']}"


def left_text(seconds: float | None) -> str:
    return f"~{ticking(seconds)} left" if seconds and seconds >= 1 else ""


def ticking(seconds: float) -> str:
    """Whole seconds: tenths would flicker."""
    return f"{int(seconds)} s" if seconds < 10 else seconds_text(seconds)


def bar_table(bars: Sequence[Bar], width: int) -> Table:
    """Label, bar, text in columns; without bars where there is no room for them."""
    taken = max(cell_len(bar.label) for bar in bars) + max(cell_len(bar.text) for bar in bars) + 2
    size = next((each for each in WIDTHS if each <= width - taken), 0)
    table = Table.grid(padding=(0, 1))
    table.add_column(no_wrap=True, overflow="ellipsis")
    if size:
        table.add_column(width=size)
    table.add_column(no_wrap=True, overflow="ellipsis")
    for bar in bars:
        drawn = "" if bar.share is None else ProgressBar(total=1.0, completed=bar.share)
        table.add_row(bar.label, *([drawn] if size else []), bar.text)
    return table
