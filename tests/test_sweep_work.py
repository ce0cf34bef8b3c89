"""A sweep at work: processes, resuming, failing, stopping; each cell is the run that ``fedstill run`` makes of it."""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import tiny
from fedstill.cli import invoke
from fedstill.cli.cells import CellBoard, CellLines, plan_text
from fedstill.errors import InputError
from fedstill.experiment import Experiment
from fedstill.folder import locked
from fedstill.run import drive
from fedstill.sweep import read, work
from fedstill.sweep.crew import Crew, outcome
from fedstill.sweep.estimate import bill
from fedstill.sweep.grid import Cell
from fedstill.sweep.hearing import Deaf, Ended, Opening, Tally
from fedstill.sweep.machine import Plan
from fedstill.sweep.process import Process, why
from fedstill.sweep.record import Spent
from fedstill.sweep.state import Held, look, refresh

SWEEP = """
name = "tiny"
rounds = 3
[data]
size = 8
limit = 120
test_limit = 50
[partition]
kind = "kclass"
clients = 3
classes = 4
[model]
depth = 2
width = 4
[algorithm]
epochs = 2
lr = 0.1
batch = 16
[sweep]
seeds = [0]
[[sweep.methods]]
algorithm = { name = "fedavg" }
[[sweep.methods]]
algorithm = { name = "fedprox", mu = 0.1 }
"""

NAMES = ("fedavg-0", "fedprox-0")

FEDAVG = SWEEP.partition("[[sweep")[0].replace("[algorithm]", '[algorithm]\nname = "fedavg"')
"""The first method alone."""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.toml"
    path.write_text(SWEEP)
    return path


class Ears(Deaf):
    """A listener that remembers."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.begun: list[tuple[str, int]] = []
        self.rows: list[tuple[str, int]] = []
        self.plan: Plan | None = None
        self.tallies: list[Tally] = []

    def opening(self, opening: Opening) -> None:
        self.plan = opening.plan

    def begins(self, cell: Cell, *, done: int) -> None:
        self.begun.append((cell.name, done))

    def row(self, cell, row, *, left, tally) -> None:
        self.rows.append((cell.name, row["round"]))

    def note(self, text: str, cell: Cell | None = None) -> None:
        self.notes.append(text)

    def ended(self, ended: Ended, tally: Tally) -> None:
        self.tallies.append(tally)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """What every cell comes to when it is run by itself."""
    folder = tmp_path_factory.mktemp("straight")
    (folder / "tiny.toml").write_text(SWEEP)
    for cell in read([folder / "tiny.toml"]):
        drive(cell.experiment, out=folder / cell.name)
    return {name: tiny.result(folder / name) for name in NAMES}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder with a sweep of one cell, whose run was made in this process."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "tiny.toml").write_text(SWEEP)
    cell, _ = read([folder / "tiny.toml"])
    drive(cell.experiment, out=folder / "out" / cell.name)
    return folder / "out", cell


# --- what a folder holds ------------------------------------------------------------------------------------------------


def test_what_a_folder_holds_is_told_without_its_data(finished, tmp_path, monkeypatch):
    out, cell = finished
    monkeypatch.setattr("fedstill.experiment.load", None)
    assert look(tmp_path / "nothing", cell.experiment) == Held()
    held = look(out / cell.name, cell.experiment)
    assert (held.begun, held.finished, held.rounds) == (True, True, 3)
    assert held.accuracy == tiny.rows(out / cell.name)[-1]["accuracy"]
    assert held.seconds > 0
    assert held.cpu_seconds > 0
    assert held.peak_memory > 10_000_000
    more = Experiment.from_table({**tomlled(cell), "rounds": 5})
    assert (look(out / cell.name, more).finished, look(out / cell.name, more).rounds) == (False, 3)


@pytest.mark.parametrize("line", [b"{{", b"[]", b"{}", b'{"accuracy": {}, "seconds": 3}'])
def test_damaged_rows_are_said(line, finished, tmp_path):
    out, cell = finished
    run = shutil.copytree(out / cell.name, tmp_path / "run")
    (run / "summary.json").write_text('{"finished": true, "rounds": null}')
    assert not look(run, cell.experiment).finished
    with (run / "metrics.jsonl").open("ab") as rows:
        rows.write(line + b"\n")
    with pytest.raises(InputError, match=rf"^{run / 'metrics.jsonl'} is damaged: remove {run} to run it anew, or give"):
        look(run, cell.experiment)


def tomlled(cell: Cell, **changes) -> dict:
    import tomllib

    return {**tomllib.loads(cell.experiment.to_toml()), **changes}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"seed": 5}, r"holds a run of other settings: seed \(there 0, here 5\) differ; give another --out, or remove"),
        ({"data": {"size": 9}}, r"data\.size \(there 8, here 9\)"),
        ({"rounds": 2}, "has 3 rounds behind it, and 2 are asked for: ask for 3 or more"),
    ],
)
def test_a_run_of_other_settings_is_refused(changes, sentence, finished):
    out, cell = finished
    table = tomlled(cell)
    for key, value in changes.items():
        table[key] = {**table[key], **value} if isinstance(value, dict) else value
    with pytest.raises(InputError, match=sentence) as caught:
        look(out / cell.name, Experiment.from_table(table))
    assert str(out / cell.name) in str(caught.value)


def test_name_engine_evaluation_and_output_are_no_other_settings(finished):
    out, cell = finished
    changed = Experiment.from_table(
        tomlled(cell, name="other", engine={"workers": 2}, output={"keep_synthetic": 2}, published={"source": "a"})
    )
    assert look(out / cell.name, changed).finished


def test_what_is_published_is_written_anew_and_nothing_else(tmp_path):
    experiment = tiny.experiment(rounds=1)
    drive(experiment, out=tmp_path / "run")
    before = (tmp_path / "run" / "experiment.toml").read_text()
    changed = tiny.experiment(rounds=1, published={"source": "A", "accuracy": {"convnet": 0.7}})
    refresh(tmp_path / "run", changed, note=pytest.fail)
    now = Experiment.read(tmp_path / "run" / "experiment.toml")
    assert now.published == changed.published
    refresh(tmp_path / "run", experiment, note=pytest.fail)
    assert (tmp_path / "run" / "experiment.toml").read_text() == before


def test_a_missing_file_is_said_once_and_before_anything_is_made(file, tmp_path):
    for settings, sentence in (
        (
            ["data.source=parquet", "data.path=no.parquet"],
            r"fedavg-0: data\.path = 'no\.parquet': there is no such file",
        ),
        (["data.source=folder", "data.path=.", "data.test=no"], r"data\.test = 'no': there is no such file"),
    ):
        with pytest.raises(InputError, match=sentence):
            work(read([file], settings=settings), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_missing_prior_stops_only_the_cells_that_need_it(file, tmp_path, monkeypatch):
    file.write_text(SWEEP + '[[sweep.methods]]\nalgorithm = { name = "feddgm", generator = "no.safetensors" }\n')
    cells = read([file], seeds=[0, 1])
    sentence = "algorithm.generator = 'no.safetensors': there is no such file"
    with pytest.raises(InputError, match=f"feddgm-0: {sentence}"):
        bill(cells, tmp_path / "out", jobs=1, told=pytest.fail)
    ears = Ears()
    monkeypatch.setattr(Crew, "_start", lambda self, cell: ears.begun.append((cell.name, 0)) or _stopped())
    with pytest.raises(KeyboardInterrupt):
        work(cells, tmp_path / "out", jobs=1, hear=ears)
    assert ears.begun == [("fedavg-0", 0)]
    (note,) = ears.notes
    assert note.startswith(sentence)
    assert note.endswith("cells that need it fail until it is there, the others are run")


def _stopped():
    raise KeyboardInterrupt


def test_a_folder_that_is_none_for_a_sweep(finished, file, tmp_path):
    out, cell = finished
    (tmp_path / "a file").write_text("")
    for folder, sentence in (
        (tmp_path / "a file", "is a file: give a folder with --out"),
        (tmp_path / ("x" * 300), r"cannot be a folder \(File name too long\): give another --out"),
        (out / cell.name, "holds a run, and a sweep's folder holds a folder a run"),
    ):
        with pytest.raises(InputError, match=sentence):
            work(read([file]), folder)


def test_one_folder_of_other_settings_refuses_the_whole_sweep(finished, tmp_path, capsys):
    out, cell = finished
    file = tmp_path / "tiny.toml"
    file.write_text(SWEEP)
    there = sorted(path.name for path in out.iterdir())
    assert invoke(["sweep", str(file), "--out", str(out), "--set", "algorithm.lr=0.2"]) == 2
    said = capsys.readouterr().err
    assert said == (
        f"fedstill: {out / cell.name} holds a run of other settings: algorithm.lr (there 0.1, here 0.2) differ; "
        "give another --out, or remove that folder\n"
    )
    assert {path.name for path in out.iterdir()} - set(there) <= {".lock", ".cells"}


def test_two_sweeps_do_not_share_a_folder(file, tmp_path, capsys):
    pytest.importorskip("fcntl")
    out = tmp_path / "out"
    with locked(out, note=pytest.fail, who="sweep"):
        assert invoke(["sweep", str(file), "--out", str(out)]) == 2
    assert capsys.readouterr().err == (
        f"fedstill: another sweep is at work in {out}: wait for it, or give another folder\n"
    )


# --- at work ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_cell_is_the_run_of_its_experiment_to_the_bit(file, straight, tmp_path, capsys):
    out = tmp_path / "out"
    assert invoke(["sweep", str(file), "--out", str(out), "--jobs", "2", "--json"]) == 0
    heard = capsys.readouterr()
    assert heard.err == ""
    lines = [json.loads(line) for line in heard.out.splitlines()]
    assert sorted(line["cell"] for line in lines) == sorted(NAMES)
    assert {line["state"] for line in lines} == {"finished"}
    assert {name: tiny.result(out / name) for name in NAMES} == straight
    assert not any((out / "logs").iterdir())
    record = json.loads((out / "sweep.json").read_text())
    assert [line["name"] for line in record["cells"]] == list(NAMES)
    assert all(line["state"] == "finished" and line["rounds"] == 3 for line in record["cells"])
    assert record["wall_seconds"] > 0
    assert record["cpu_seconds"] > sum(line["cpu_seconds"] for line in record["cells"])
    page = (out / "report.html").read_text()
    assert "FedProx" in page
    table = (out / "table.md").read_text()
    assert table.startswith("**Accuracy by method**\n\n| Method | convnet |\n| --- | ---: |\n| FedAvg | ")
    assert table.count("\n| FedProx | ") == 1

    # again: nothing is run
    metrics = {name: (out / name / "metrics.jsonl").read_bytes() for name in NAMES}
    assert invoke(["sweep", str(file), "--out", str(out)]) == 0
    heard = capsys.readouterr()
    assert heard.err.splitlines()[0] == f"2 cells, 2 of them finished before, in {out}"
    assert heard.err.splitlines()[1].startswith("done: 2 cells in ")
    assert heard.err.endswith(f"; page and table: {out / 'report.html'}, {out / 'table.md'}\n")
    assert metrics == {name: (out / name / "metrics.jsonl").read_bytes() for name in NAMES}
    again = json.loads((out / "sweep.json").read_text())
    assert again["wall_seconds"] > record["wall_seconds"]


@pytest.mark.slow
def test_cells_that_fail_stop_no_other(file, tmp_path, monkeypatch, capsys):
    (tmp_path / "broken.py").write_text(
        "from dataclasses import dataclass\nfrom fedstill.rounds import World\n"
        "@dataclass(frozen=True, kw_only=True)\nclass Broken:\n    world: World\n"
        "    def init(self, clients, desk):\n        print('a word')\n        raise KeyError('no')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    file.write_text(
        SWEEP.partition("[[sweep")[0]
        + '[[sweep.methods]]\nlabel = "diverges"\nalgorithm = { name = "fedavg", lr = 1e30 }\n'
        + '[[sweep.methods]]\nalgorithm = { name = "broken:Broken" }\n'
        + '[[sweep.methods]]\nalgorithm = { name = "fedavg" }\n'
    )
    out = tmp_path / "out"
    assert invoke(["sweep", str(file), "--out", str(out), "--jobs", "2", "--set", "rounds=1"]) == 1
    *_, diverges, broken, last = capsys.readouterr().err.splitlines()
    log = out / "logs" / "diverges-0.log"
    assert diverges.startswith("fedstill: diverges-0: no client gave a usable reply in round 1")
    assert diverges.endswith(f"its log is {log}")
    assert "no client gave a usable reply" in log.read_text()
    log = out / "logs" / "Broken-0.log"
    assert broken == f"fedstill: Broken-0: KeyError: 'no'; its log is {log}"
    assert "a word" in log.read_text()  # what is printed does not come between the process's words
    assert "Traceback" in log.read_text()
    assert last == "fedstill: 2 of 3 cells failed; the others are kept, and the same command tries them again"
    record = json.loads((out / "sweep.json").read_text())
    assert [line["state"] for line in record["cells"]] == ["failed", "failed", "finished"]
    assert (out / "report.html").exists()


@pytest.mark.slow
def test_a_killed_cell_is_said_and_goes_on_the_next_time_to_more_rounds(file, tmp_path, monkeypatch):
    children: list[Process] = []
    begin = Process.__init__

    def remembered(self, *args, **kwargs) -> None:
        begin(self, *args, **kwargs)
        children.append(self)

    monkeypatch.setattr(Process, "__init__", remembered)

    class Killer(Ears):
        def row(self, cell, row, *, left, tally) -> None:
            super().row(cell, row, left=left, tally=tally)
            if (cell.name, row["round"]) == ("fedavg-0", 1):
                (child,) = [each for each in children if each.name == cell.name]
                os.kill(child._child.pid, signal.SIGKILL)

    out = tmp_path / "out"
    file.write_text(FEDAVG)
    (failed,) = work(read([file]), out, jobs=2, hear=Killer()).failed
    assert failed.cell.name == "fedavg-0"
    assert failed.why == "the system killed it, most likely for want of memory: use fewer --jobs"
    assert failed.log is None
    ears = Ears()
    (cell,) = read([file], settings=["rounds=5"])
    assert work([cell], out, hear=ears).failed == ()
    ((_, done),) = ears.begun
    assert 1 <= done <= 3
    assert ears.rows == [("fedavg-0", number) for number in range(done + 1, 6)]
    assert ears.plan.need > 10_000_000  # from the run before
    drive(cell.experiment, out=tmp_path / "straight")
    assert tiny.result(out / cell.name) == tiny.result(tmp_path / "straight")


def command(file: Path, out: Path, rounds: int) -> list[str]:
    words = ["sweep", str(file), "--out", str(out), "--jobs", "2", "--set", f"rounds={rounds}"]
    return [sys.executable, "-m", "fedstill", *words]


def at_work(out: Path) -> bool:
    """Whether a process holds the lock of the sweep's cells."""
    try:
        with locked(out, note=pytest.fail, name=".cells"):
            return False
    except InputError:
        return True


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_kill_9_then_ctrl_c_at_any_moment_then_the_same_command(file, tmp_path):
    out = tmp_path / "out"
    file.write_text(FEDAVG)
    endless = command(file, out, 100_000)
    process = subprocess.Popen(endless, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 120
    while not (out / "fedavg-0" / "summary.json").exists():  # the last that is written of a round
        assert process.poll() is None
        assert time.monotonic() < until
        time.sleep(0.01)
    process.kill()
    process.wait()

    # at once: its cell, which would never end, is waited for and stops by itself; it hears no Ctrl-C of the terminal
    process = subprocess.Popen(endless, stderr=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stderr.readline() == f"1 cell, in {out}\n"
    heard = [process.stderr.readline().rstrip("\n") for _ in range(2)]  # on a busy machine they take their time
    time.sleep(random.uniform(0, 5))
    said = [*heard, *tiny.interrupt(process).splitlines()]
    assert process.returncode == 130
    assert said[1].startswith("fedavg-0 goes on after round ")
    assert said[-1] == (
        "fedstill: interrupted; finished cells and whole rounds are kept: continue with the same command"
    )
    assert not any("Traceback" in line for line in said)
    assert not at_work(out)
    (line,) = json.loads((out / "sweep.json").read_text())["cells"]
    assert line["state"] == "begun"

    rounds = len(tiny.rows(out / "fedavg-0")) + 1
    subprocess.run([*command(file, out, rounds), "--quiet"], check=True, timeout=300)
    (cell,) = read([file], settings=[f"rounds={rounds}"])
    drive(cell.experiment, out=tmp_path / "straight")
    assert tiny.result(out / cell.name) == tiny.result(tmp_path / "straight")


@pytest.mark.slow
def test_dry_run_tells_and_writes_nothing(file, tmp_path, capsys):
    out = tmp_path / "out"
    file.write_text(FEDAVG)
    assert invoke(["sweep", str(file), "--out", str(out), "--seeds", "0,1", "--dry-run", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["cells"], told["finished"]) == (2, 0)
    assert [(item["name"], item["cells"], item["rounds"]) for item in told["items"]] == [("fedavg", 2, 6)]
    assert 0 < told["longest"] <= told["seconds"]
    assert told["plan"]["need"] == max(item["memory"] for item in told["items"]) > 10_000_000
    assert not out.exists()


@pytest.mark.slow
def test_dry_run_says_what_cannot_be_run(file, tmp_path):
    with pytest.raises(InputError, match=r"fedavg-0: .*classes"):
        bill(read([file], settings=["partition.classes=11"]), tmp_path, jobs=None, told=lambda name: None)


# --- words --------------------------------------------------------------------------------------------------------------


def test_a_process_that_ended_without_a_word():
    assert why(-9) == "the system killed it, most likely for want of memory: use fewer --jobs"
    assert why(-11) == "it was ended by signal 11"
    assert why(3) == "it ended with exit code 3 and without a word"


def test_why_so_many_at_a_time():
    assert plan_text(Plan(2, "cores", 2, 1)) == "2 cells at a time: the machine has 2 cores"
    assert plan_text(Plan(1, "memory", 8, 1, 3 * 10**9, 5 * 10**9)) == (
        "1 cell at a time: a cell takes about 3.0 GB, and 5.0 GB are free"
    )
    assert plan_text(Plan(2, "cores", 8, 4, 10**9, 5 * 10**9)) == (
        "2 cells at a time: the machine has 8 cores, and a cell has 4 threads; "
        "a cell takes about 1.0 GB, and 5.0 GB are free"
    )


def test_lines_and_board_tell_how_far_a_sweep_is(file, tmp_path, capsys):
    from rich.console import Console

    now = 0.0
    first, second, *_ = cells = read([file], seeds=[0, 1])
    lines = CellLines(clock=lambda: now)
    console = Console(width=80, force_terminal=True)
    board = CellBoard(console, clock=lambda: now)
    kept = outcome(second, tmp_path, Held(begun=True, finished=True, rounds=3), kept=True)
    row = {"round": 1, "accuracy": {}, "seconds": {"clients": 2.0}, "failures": [], "clients": [], "aggregated": True}
    for each in (lines, board):
        now = 0.0
        each.opening(Opening(tmp_path, cells, [kept], Plan(2, "cores", 2, 1), Tally(1, 0, 4, None)))
        each.begins(first, done=0)
        each.rounds(first, [], 3)
        each.progress(first, "local", 1, 3)
        each.row(first, row, left=60.0, tally=Tally(1, 0, 4, 100.0))
        now = 61.0
    lines.beat()
    said = capsys.readouterr().err.splitlines()
    assert said == [
        f"4 cells, 1 of them finished before, in {tmp_path}",
        "2 cells at a time: the machine has 2 cores",
        "fedavg-0 begins, 3 rounds",
        "  at work: fedavg-0 round 2/3  (about 39 s left)",
    ]
    whole, cell = board.bars()
    assert (whole.label, whole.text) == ("1/4 cells", "61 s, ~39 s left")
    assert whole.share == pytest.approx((1 + 1 / 3) / 4)
    assert (cell.label, cell.share, cell.text) == ("fedavg-0", pytest.approx(1 / 3), "round 2/3, ~30 s left")
    lines.ended(outcome(first, tmp_path, Held(rounds=3, accuracy={"global": 0.5}, seconds=62)), Tally(2, 0, 4, 30.0))
    lines.ended(outcome(first, tmp_path, Held(), failure="it broke"), Tally(2, 1, 4, 0.0))
    assert capsys.readouterr().err.splitlines() == [
        "2/4  fedavg-0  global 50.0 %  62 s  (about 30 s left)",
        "3/4  fedavg-0 failed: it broke",
    ]


def test_a_crowd_of_cells_fits_a_terminal(file, tmp_path):
    from rich.console import Console

    cells = read([file], seeds=range(20))
    console = Console(width=80, height=10, force_terminal=True, record=True, file=io.StringIO())
    board = CellBoard(console)
    board.opening(Opening(tmp_path, cells, [], Plan(40, "cores", 40, 1), Tally(0, 0, 40, None)))
    for cell in cells:
        board.begins(cell, done=0)
    console.print(board.draw(80, 10))
    drawn = console.export_text().splitlines()[2 + len(cells) :]
    assert len(drawn) == 8
    assert drawn[-1].strip() == "and 34 more"


def test_memory_that_lacks_lets_no_further_cell_begin(file, tmp_path, monkeypatch):
    cells = read([file])
    ears = Ears()
    held = dict.fromkeys((cell.name for cell in cells), Held())
    crew = Crew(tmp_path, cells, held, Plan(4, "cores", 4, 1, need=60), ears, (), {})
    monkeypatch.setattr("fedstill.sweep.crew.available_memory", lambda: 100)
    started: list[str] = []

    def start(self: Crew, cell: Cell) -> None:
        started.append(cell.name)
        self._at_work[cell.name] = type("Begun", (), {"peak": 0, "cell": cell})()

    monkeypatch.setattr(Crew, "_start", start)
    crew._begin(cells)
    assert started == ["fedavg-0"]
    crew._begin(cells)
    assert len(ears.notes) == 1
    assert ears.notes[0].startswith("no further cell for now: one takes ")


def test_what_was_spent_adds_up():
    begin, end = Spent(10.0, 4.0), Spent(15.0, 7.0)
    assert Spent(1.0, 2.0).plus(begin, end) == Spent(6.0, 5.0)
    assert Spent(1.0, None).plus(begin, end) == Spent(6.0, None)
