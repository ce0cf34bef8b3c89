"""What ``fedstill audit`` says while it is at work: lines for a log, a board for a terminal."""

from __future__ import annotations

import io

from rich.console import Console

from fedstill.cli.hearing import AuditBoard, AuditLines, hearing


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def shadows(hears, clock, *, first=0):
    hears.opening(["inversion", "membership"])
    hears.ended("inversion", {"nothing": "none"}, None)
    hears.begins("membership")
    hears.progress("shadow federations", first, 4)
    for done in range(first + 1, 5):
        clock.now += 10
        hears.progress("shadow federations", done, 4)
    clock.now += 1
    hears.ended("membership", {"nothing": "none"}, 41.0)


def test_a_log_has_a_line_a_piece_and_each_table_when_it_is_there(capsys):
    clock, said = Clock(), []
    lines = AuditLines(clock=clock)
    lines.table = lambda attack, found: said.append(attack)
    shadows(lines, clock)
    assert capsys.readouterr().err.splitlines() == [
        "inversion: was done before, with these settings",
        "membership inference (2 of 2): begins",
        "  shadow federation 1/4  10 s  (about 30 s left)",
        "  shadow federation 2/4  10 s  (about 20 s left)",
        "  shadow federation 3/4  10 s  (about 10 s left)",
        "  shadow federation 4/4  10 s",
        "membership inference: done in 41 s",
    ]
    assert said == ["inversion", "membership"]


def test_pieces_of_an_earlier_audit_are_not_timed(capsys):
    clock = Clock()
    shadows(AuditLines(clock=clock), clock, first=2)
    err = capsys.readouterr().err
    assert "  shadow federation 1 to 2 of 4: kept from an earlier audit\n" in err
    assert "  shadow federation 3/4  10 s  (about 10 s left)\n" in err


def test_a_log_shows_that_the_audit_is_alive(capsys):
    clock = Clock()
    lines = AuditLines(clock=clock)
    lines.opening(["membership"])
    lines.beat()
    lines.begins("membership")
    lines.progress("gradients of final:global", 50, 200)
    clock.now = 59
    lines.beat()
    assert capsys.readouterr().err == ""  # of one attack alone its begin is not said
    clock.now = 61
    lines.beat()
    lines.beat()
    assert capsys.readouterr().err == "  membership inference: gradients of final:global 50/200, 61 s so far\n"


def test_a_board_has_a_bar_for_the_pieces_and_one_for_what_of_them_is_at_work():
    clock = Clock()
    board = AuditBoard(Console(file=io.StringIO(), width=80), clock=clock)
    assert [bar.label for bar in board.bars()] == ["reading data, building networks"]
    board.opening(["inversion"])
    board.begins("inversion")
    board.progress("updates", 0, 3)
    clock.now = 4
    board.progress("updates", 1, 3)
    board.progress("invert 0", 100, 600)
    assert [(bar.label, bar.share, bar.text) for bar in board.bars()] == [
        ("inversion 1/1", None, "4 s"),
        ("updates 1/3", 1 / 3, "~8 s left"),
        ("invert 0 100/600", 1 / 6, ""),
    ]
    board.ended("inversion", {}, 5.0)
    assert board.bars() == []


def test_quiet_says_warnings_alone(capsys):
    with hearing(quiet=True, silent=False, say=lambda attack, found: None) as hears:
        shadows(hears, Clock())
        hears.note("a checkpoint is damaged")
    assert capsys.readouterr() == ("", "a checkpoint is damaged\n")
