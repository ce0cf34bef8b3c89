"""The page that follows runs: written anew when they got on, and no more when they are finished."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

import fedstill.report
import fedstill.reporter
import tiny
from fedstill.cli import invoke
from fedstill.cli.watch import follow
from fedstill.run import drive
from rundirs import write_run


class Written:
    """``write_report`` without drawing: what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[list[str], int | None]] = []

    def __call__(self, runs, out: Path, *, live: int | None = None) -> None:
        self.asked.append(([run.name for run in runs], live))
        out.write_text("page")


@pytest.fixture
def written(monkeypatch):
    made = Written()
    monkeypatch.setattr(fedstill.report, "write_report", made)
    return made


def unfinished(folder: Path) -> Path:
    """A run of three rounds that has one more to do."""
    write_run(folder)
    finish(folder, finished=False)
    return folder


def finish(folder: Path, *, finished: bool = True) -> None:
    summary = json.loads((folder / "summary.json").read_text())
    (folder / "summary.json").write_text(json.dumps({**summary, "finished": finished}))


def grow(folder: Path) -> None:
    with (folder / "metrics.jsonl").open("a") as file:
        file.write("{}\n")


def steps(*acts):
    """A sleep in which, one after another, things happen; it notes how long each was to last."""
    left = list(acts)
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        left.pop(0)()

    return sleep, slept


def test_the_page_is_written_when_a_run_got_on_and_only_then(written, tmp_path):
    run = unfinished(tmp_path / "a")
    sleep, slept = steps(
        lambda: None,
        lambda: grow(run),
        lambda: None,
        lambda: (run / "evaluation.json").write_text("{}"),
        lambda: finish(run),
    )
    said: list[str] = []
    follow([run], tmp_path / "page.html", every=7, sleep=sleep, say=said.append)
    assert written.asked == [(["a"], 7), (["a"], 7), (["a"], 7), (["a"], None)]
    assert slept == [7] * 5
    assert [re.sub(r"^\d\d:\d\d:\d\d  ", "", line) for line in said] == ["a 3/3", "a 4/3", "a 4/3", "a finished"]


def test_runs_join_as_they_begin_and_all_must_finish(written, tmp_path):
    first, second = write_run(tmp_path / "a"), tmp_path / "b"
    sleep, _ = steps(lambda: unfinished(second), lambda: finish(second))
    said: list[str] = []
    follow([first, second], tmp_path / "page.html", every=5, sleep=sleep, say=said.append)
    assert written.asked == [(["a"], 5), (["a", "b"], 5), (["a", "b"], None)]
    assert said[1].endswith("a finished, b 3/3")


def test_a_finished_run_is_one_page(written, tmp_path, capsys):
    run, page = write_run(tmp_path / "a"), tmp_path / "page.html"
    assert invoke(["watch", str(run), "--out", str(page)]) == 0
    assert written.asked == [(["a"], None)]
    first, second = capsys.readouterr().err.splitlines()
    assert first == f"page: {page}"
    assert second.endswith("  a finished")


def test_a_damaged_summary_is_no_end(written, tmp_path):
    run = write_run(tmp_path / "a")
    (run / "summary.json").write_text('{"finis')
    sleep, _ = steps(lambda: (run / "summary.json").write_text('{"finished": true}'))
    follow([run], tmp_path / "page.html", every=5, sleep=sleep, say=lambda _: None)
    assert [live for _, live in written.asked] == [5, None]


def test_a_folder_without_a_run_is_refused_unless_it_is_to_be_waited_for(written, tmp_path, capsys, monkeypatch):
    run = tmp_path / "a"
    assert invoke(["watch", str(run)]) == 2
    assert capsys.readouterr().err == (
        f"fedstill: {run} holds no run: there is no experiment.toml in it, nor in a folder there; --wait waits for it to begin\n"
    )
    sleep, _ = steps(lambda: None, lambda: write_run(run))
    monkeypatch.setattr(time, "sleep", sleep)
    assert invoke(["watch", str(run), "--out", str(tmp_path / "page.html"), "--wait"]) == 0
    assert capsys.readouterr().err.startswith(f"waiting for {run}\n")
    assert len(written.asked) == 1


def record(folder: Path, **states: str) -> None:
    cells = [{"name": name, "state": state} for name, state in states.items()]
    (folder / "sweep.json").write_text(json.dumps({"cells": cells}))


def test_a_sweep_is_followed_until_all_its_cells_are_finished_that_do_not_fail(written, tmp_path):
    out = tmp_path / "out"
    write_run(out / "b")
    record(out, b="finished", a="waiting", c="running")

    def begins() -> None:
        unfinished(out / "a")
        unfinished(out / "c")

    def fails() -> None:
        record(out, b="finished", a="running", c="failed")
        grow(out / "a")

    sleep, _ = steps(begins, fails, lambda: finish(out / "a"))
    follow([out], tmp_path / "page.html", every=5, sleep=sleep, say=lambda _: None)
    assert written.asked == [(["b"], 5), (["b", "a", "c"], 5), (["b", "a", "c"], 5), (["b", "a", "c"], None)]


def test_a_folder_of_runs_is_followed_until_they_are_finished(written, tmp_path):
    runs = [unfinished(tmp_path / "out" / name) for name in ("a", "b")]
    sleep, _ = steps(lambda: finish(runs[0]), lambda: finish(runs[1]))
    follow([tmp_path / "out"], tmp_path / "page.html", every=5, sleep=sleep, say=lambda _: None)
    assert [live for _, live in written.asked] == [5, 5, None]


def test_of_many_runs_the_finished_ones_are_counted(written, tmp_path):
    runs = [write_run(tmp_path / "out" / f"r{number}") for number in range(7)]
    finish(runs[3], finished=False)
    said: list[str] = []
    sleep, _ = steps(lambda: finish(runs[3]))
    follow([tmp_path / "out"], tmp_path / "page.html", every=5, sleep=sleep, say=said.append)
    assert [line.partition("  ")[2] for line in said] == [
        "6 of the 7 runs that have begun are finished",
        "7 of the 7 runs that have begun are finished",
    ]


def test_ctrl_c_leaves_a_page_that_reloads_no_more(written, tmp_path, capsys, monkeypatch):
    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", interrupt)
    assert invoke(["watch", str(unfinished(tmp_path / "a")), "--out", str(tmp_path / "page.html")]) == 0
    assert written.asked == [(["a"], 10), (["a"], None)]
    assert capsys.readouterr().err.endswith("no longer watching; the runs go on\n")


def test_a_run_that_is_extended_is_not_finished(tmp_path):
    drive(tiny.experiment(rounds=1), out=tmp_path)
    seen: list[bool] = []

    class Looks(fedstill.reporter.Silent):
        def opening(self, opening) -> None:
            seen.append(json.loads((tmp_path / "summary.json").read_text())["finished"])

    drive(tiny.experiment(rounds=2), out=tmp_path, resume=True, reporter=Looks())
    assert seen == [False]


@pytest.mark.slow
def test_a_real_run_is_watched_to_its_end(tmp_path):
    file, out, page = tmp_path / "tiny.toml", tmp_path / "run", tmp_path / "page.html"
    file.write_text(tiny.experiment(rounds=2).to_toml())
    fedstill_ = [sys.executable, "-m", "fedstill"]
    watching = subprocess.Popen(
        [*fedstill_, "watch", str(out), "--wait", "--every", "1", "--out", str(page)], stderr=subprocess.PIPE, text=True
    )
    try:
        subprocess.run([*fedstill_, "run", str(file), "--out", str(out), "--quiet"], check=True)
        said = watching.communicate(timeout=60)[1].splitlines()
    finally:
        watching.kill()
    assert watching.returncode == 0
    assert said[:2] == [f"waiting for {out}", f"page: {page}"]
    assert said[-1].endswith("  run finished")
    assert 'http-equiv="refresh"' not in page.read_text()


@pytest.mark.slow
def test_ctrl_c_from_a_terminal_is_the_normal_end(tmp_path):
    run, page = unfinished(tmp_path / "a"), tmp_path / "page.html"
    process = subprocess.Popen(
        [sys.executable, "-m", "fedstill", "watch", str(run), "--out", str(page)],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while not page.exists():
        assert process.poll() is None
        time.sleep(0.05)
    assert 'http-equiv="refresh"' in page.read_text()
    time.sleep(0.5)  # it sleeps by then
    said = tiny.interrupt(process)
    assert (process.returncode, said.splitlines()[-1]) == (0, "no longer watching; the runs go on")
    assert 'http-equiv="refresh"' not in page.read_text()
