"""What a run says while it goes on: the estimate of the time left, plain lines with a heartbeat, the board."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from rich.console import Console

import tiny
from fedstill.cli.console import Lines, count_text, pulse, reporter
from fedstill.cli.live import Board
from fedstill.cli.pace import Count, Pace
from fedstill.reporter import Opening, Silent
from fedstill.run import drive


@dataclass
class Clock:
    now: float = 0.0

    def __call__(self) -> float:
        return self.now


def row(number: int, *, seconds: float = 100.0, failures=()):
    return {
        "round": number,
        "accuracy": {"surrogate": 0.842, "resnet18": None},
        "validation": {"mean": 0.81},
        "bytes_up": 1_200_000,
        "bytes_down": 1_200_000,
        "seconds": {"clients": seconds - 1, "server": 1.0, "distil": 0.5},
        "clients": [],
        "failures": [{"client": client, "reason": reason} for client, reason in failures],
        "aggregated": True,
    }


def opening(*, rows=(), until=3) -> Opening:
    return Opening(tiny.experiment(rounds=until), Path("runs/x"), rows, until, ())


# --- the time left ------------------------------------------------------------------------------------------------------


def one_round(pace: Pace, begin: float) -> Pace:
    """40 s of four clients, 60 s of distilling four."""
    for client in range(5):
        pace = pace.tell(begin + 10 * client, "local", client, 4)
    for client in range(5):
        pace = pace.tell(begin + 40 + 15 * client, "distil", client, 4)
    return pace


def test_a_first_round_tells_only_of_its_phase():
    pace = Pace.open(1000.0, (), 3).tell(1000.0, "local", 0, 4)
    assert (pace.left(1005.0), pace.round_left(1005.0), pace.phase_left(1005.0)) == (None, None, None)
    pace = pace.tell(1010.0, "local", 1, 4)
    assert pace.phase_left(1010.0) == pytest.approx(30)
    assert pace.phase_left(1015.0) == pytest.approx(25)
    assert pace.round_left(1015.0) is None


def test_later_rounds_go_by_where_phases_lay_in_the_one_before():
    pace = one_round(Pace.open(0.0, (), 3), 0.0).close(100.0, 1, 200.0)
    pace = pace.tell(100.0, "local", 0, 4)
    assert pace.round_left(100.0) == pytest.approx(100)
    # twice as slow: half of the phase is done, so 20 s of it and 60 s of the next remain at the old pace
    pace = pace.tell(140.0, "local", 2, 4)
    assert pace.round_left(140.0) == pytest.approx(80)
    assert pace.left(140.0) == pytest.approx(180)
    pace = pace.tell(190.0, "distil", 1, 4).tell(195.0, "distil c01", 1, 3)
    assert pace.round_left(195.0) == pytest.approx(60 * (1 - (1 + 1 / 3) / 4))
    assert pace.round_left(10_000.0) == 0
    assert pace.elapsed(195.0) == 195


def test_a_resumed_run_goes_by_the_rounds_behind_it():
    pace = Pace.open(50.0, [row(1, seconds=80), row(2, seconds=120)], 5)
    assert pace.number == 3
    assert pace.round_left(60.0) == pytest.approx(90)
    assert pace.left(60.0) == pytest.approx(290)


def test_a_phase_that_comes_twice_is_two():
    pace = Pace.open(0.0, (), 2)
    for begin, phase in ((0, "score"), (10, "train"), (30, "score"), (50, "evaluate")):
        pace = pace.tell(float(begin), phase, 0, 0)
    pace = pace.close(60.0, 1, 60.0)
    for begin, phase, left in ((60, "score", 60), (70, "train", 50), (90, "score", 30), (110, "evaluate", 10)):
        pace = pace.tell(float(begin), phase, 0, 0)
        assert pace.round_left(float(begin)) == pytest.approx(left)


def test_a_new_phase_forgets_what_was_at_work():
    pace = Pace.open(0.0, (), 1).tell(1.0, "distil", 1, 4).tell(2.0, "distil c01", 5, 10)
    assert (pace.work, pace.item) == (Count("distil", 1, 4), Count("c01", 5, 10))
    assert pace.tell(3.0, "distil", 2, 4).item is None
    pace = pace.tell(3.0, "train resnet18", 1, 10)
    assert (pace.work, pace.item) == (Count("train"), Count("resnet18", 1, 10))
    assert pace.share == pytest.approx(0.1)


def test_counts_in_words():
    assert count_text(Count("local", 3, 10), None) == ("clients train 3/10", "")
    assert count_text(Count("distil", 4, 10), Count("c04", 37, 100)) == ("server distils 4/10", "c04, step 37/100")
    assert count_text(Count("evaluate"), None) == ("evaluating", "")
    assert count_text(Count("bake", 1, 2), Count("c01")) == ("bake 1/2", "c01")


class Counts(Silent):
    """Remembers the last count of every phase."""

    def __init__(self) -> None:
        self.last: dict[str, tuple[int, int]] = {}

    def progress(self, phase: str, done: int, total: int) -> None:
        assert done <= total or total == 0
        self.last[phase] = (done, total)


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_run_tells_its_phases_and_who_is_at_work(workers, tmp_path):
    counts = Counts()
    drive(tiny.experiment(tiny.FEDDGM, rounds=1, engine={"workers": workers}), out=tmp_path, reporter=counts)
    clients = ("c00", "c01", "c02")
    whole = {"local": (3, 3), "distil": (3, 3), "train": (1, 1), "evaluate": (0, 0), "score": (3, 3)}
    each = {
        **{f"local {client}": (2, 2) for client in clients},
        **{f"distil {client}": (2, 2) for client in clients},
        "train surrogate": (2, 2),
        **{f"score {client}": (0, 0) for client in clients},
    }
    # a worker process cannot call back
    assert counts.last == (whole | each if workers == 1 else whole)


# --- plain lines --------------------------------------------------------------------------------------------------------


def test_a_log_shows_life_at_most_once_a_minute(capsys):
    clock = Clock()
    lines = Lines(clock=clock)
    lines.beat()
    lines.opening(opening())
    lines.progress("distil", 1, 4)
    lines.progress("distil c01", 3, 10)
    for clock.now in range(0, 180, 5):
        lines.beat()
    assert capsys.readouterr().err.splitlines() == [
        "tiny: fedavg, 3 rounds, in runs/x",
        "  round 1/3: server distils 1/4, c01, step 3/10, 60 s in this round",
        "  round 1/3: server distils 1/4, c01, step 3/10, 2 min 00 s in this round",
    ]
    lines.row(row(1), left=400.0)
    clock.now = 300
    lines.beat()
    assert capsys.readouterr().err.splitlines() == [
        "round 1/3  surrogate 84.2 %  resnet18 –  validation 81.0 %  up 1.2 MB  down 1.2 MB  1 min 40 s  (6 min 40 s left)",
        "  round 2/3: 2 min 05 s in this round, about 75 s left in it",
    ]
    lines.closing("finished")
    clock.now = 1000
    lines.beat()
    assert capsys.readouterr().err == ""


def test_quick_rounds_are_one_line_each(capsys):
    clock = Clock()
    lines = Lines(clock=clock)
    lines.opening(opening())
    for number in (1, 2, 3):
        clock.now += 50
        lines.beat()
        lines.row(row(number), left=50.0 * (3 - number))
        lines.beat()
    said = capsys.readouterr().err.splitlines()
    assert [line.split("  ")[0] for line in said[1:]] == ["round 1/3", "round 2/3", "round 3/3"]
    assert "left" not in said[-1]


def test_the_heartbeat_beats_by_itself_and_ends_with_the_run(capsys):
    lines = Lines(quiet=0.0)
    with pulse(lines.beat, 0.01):
        lines.opening(opening())
        lines.progress("local", 1, 4)
        time.sleep(0.1)
    assert capsys.readouterr().err.count("round 1/3: clients train 1/4") >= 2
    time.sleep(0.05)
    assert capsys.readouterr().err == ""


# --- the board ----------------------------------------------------------------------------------------------------------


def board(clock: Clock, *, width: int = 60) -> tuple[Board, Console]:
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    return Board(console, clock=clock), console


def shown(made: tuple[Board, Console], width: int = 60) -> list[str]:
    """The board's lines, without what was said above it."""
    made_board, console = made
    with console.capture() as capture:
        console.print(made_board.draw(width))
    return [line.rstrip() for line in capture.get().splitlines()]


def test_the_board_of_a_first_round_and_of_a_later_one():
    clock = Clock()
    made = board(clock)
    hears, _ = made
    assert shown(made) == ["reading data, building networks"]
    hears.opening(opening())
    for client in range(3):
        clock.now = 20.0 * client
        hears.progress("distil", client, 4)
    hears.progress("distil c02", 3, 10)
    first, second, third = shown(made)
    assert re.fullmatch(r"round 1/3 +[━╸╺ ]* 40 s", first)
    assert re.fullmatch(r"server distils 2/4 [━╸╺ ]* phase: ~30 s left", second)
    assert re.fullmatch(r"c02, step 3/10 +[━╸╺ ]*", third)
    clock.now = 100.0
    hears.row(row(1, failures=[("c03", "its reply holds numbers that are not finite")]), left=200.0)
    hears.progress("local", 0, 4)
    clock.now = 110.0
    lines = shown(made)
    assert re.fullmatch(r"round 2/3 +[━╸╺ ]* 1 min 50 s, ~3 min 10 s left", lines[0])
    assert re.fullmatch(r"clients train 0/4 [━╸╺ ]* round: ~90 s left", lines[1])
    assert lines[2:] == [
        "after round 1: surrogate 84.2 %, resnet18 –, validation 81.0",
        "%",
        "last failure, in round 1: c03: its reply holds numbers that…",
    ]


@pytest.mark.parametrize("width", [20, 40, 60, 200])
def test_no_line_is_wider_than_the_terminal(width):
    clock = Clock()
    made = board(clock, width=width)
    hears, _ = made
    hears.opening(opening(rows=[row(1, seconds=40_000)], until=500))
    hears.progress("distil", 30, 57)
    hears.progress("distil " + "c" * 64, 37, 1000)
    clock.now = 10_000.0
    lines = shown(made, width)
    assert all(len(line) <= width for line in lines)
    assert len(lines) <= 3 + (6 if width < 60 else 2)
    assert (max(line.count("━") for line in lines) > 0) == (width == 200)


def test_the_board_says_when_the_rounds_are_over():
    clock = Clock()
    made = board(clock)
    made[0].opening(opening(until=1))
    made[0].row(row(1), left=0.0)
    assert shown(made)[0] == "writing models and page"


def on_a_terminal(arguments: list[str], *, columns: int, environment: dict[str, str]) -> bytes:
    """What a command writes to a terminal of so many columns."""
    import fcntl
    import pty
    import struct
    import termios

    main, side = pty.openpty()
    fcntl.ioctl(side, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    with subprocess.Popen(
        [sys.executable, "-m", "fedstill", *arguments], stdout=side, stderr=side, env=environment
    ) as process:
        os.close(side)
        said = b""
        while True:
            try:
                said += os.read(main, 65536)
            except OSError:  # the other side is closed
                break
    os.close(main)
    assert process.returncode == 0, said
    return said


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals")
@pytest.mark.parametrize("colour", [True, False])
def test_a_terminal_is_left_clean(colour, tmp_path):
    file = tmp_path / "tiny.toml"
    file.write_text(tiny.experiment(rounds=2).to_toml())
    environment = {**os.environ, "TERM": "xterm-256color", **({} if colour else {"NO_COLOR": "1"})}
    environment.pop("FORCE_COLOR", None)
    said = on_a_terminal(
        ["run", str(file), "--out", str(tmp_path / "run")], columns=60, environment=environment
    ).decode()
    assert said.count("\x1b[?25l") == said.count("\x1b[?25h") == 1  # the cursor is hidden, and shown again
    assert bool(re.search(r"\x1b\[[0-9;]*m", said)) == colour
    # after the last erasing of the board there is nothing but the last word
    rest = re.split(r"\x1b\[2K", said)[-1].replace("\x1b[?25h", "")
    assert rest.lstrip("\r\n").startswith("done: models in ")
    assert re.findall(r"round \d/2  global", said) == ["round 1/2  global", "round 2/2  global"]


def test_a_terminal_that_cannot_move_its_cursor_gets_lines(monkeypatch):
    monkeypatch.setattr(sys, "stderr", type("Terminal", (io.StringIO,), {"isatty": lambda self: True})())
    monkeypatch.setenv("TERM", "dumb")
    with reporter(as_json=False, quiet=False) as hears:
        assert isinstance(hears, Lines)
