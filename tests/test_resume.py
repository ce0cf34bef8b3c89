"""A run that is cut short and resumed is, to the bit, the run that was not."""

from __future__ import annotations

import errno
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import tiny
from fedstill.errors import InputError, RunError
from fedstill.run import drive


class Crash(BaseException):
    """As sudden as a kill, for code that catches Exception."""


def crash_at_write(patch: pytest.MonkeyPatch, number: int) -> None:
    """The process ends just before its ``number``-th file would take its name."""
    rename, count = Path.replace, 0

    def replace(self: Path, target: Path) -> Path:
        nonlocal count
        count += 1
        if count == number:
            raise Crash
        return rename(self, target)

    patch.setattr(Path, "replace", replace)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    folder = tmp_path_factory.mktemp("straight")
    for algorithm in (tiny.FEDAVG, tiny.FEDDGM):
        drive(tiny.experiment(algorithm), out=folder / algorithm["name"])
    return {name: tiny.result(folder / name) for name in ("fedavg", "feddgm")}


@pytest.mark.slow
@pytest.mark.parametrize(("algorithm", "stride"), [(tiny.FEDAVG, 1), (tiny.FEDDGM, 5)], ids=["fedavg", "feddgm"])
def test_a_run_interrupted_at_a_write_continues_to_the_same_bits(algorithm, stride, straight, tmp_path, monkeypatch):
    # write 1 is the experiment itself: before it, there is nothing to resume
    for number in itertools.count(2, stride):
        out = tmp_path / str(number)
        with monkeypatch.context() as patch:
            crash_at_write(patch, number)
            try:
                drive(tiny.experiment(algorithm), out=out)
            except Crash:
                pass
            else:
                break
        drive(tiny.experiment(algorithm), out=out, resume=True)
        assert tiny.result(out) == straight[algorithm["name"]], f"interrupted at write {number}"
    assert number > 12


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("algorithm", [tiny.FEDAVG, tiny.FEDDGM], ids=lambda options: options["name"])
def test_kill_9_then_resume_continues_to_the_same_bits(algorithm, workers, straight, tmp_path):
    out = tmp_path / "run"
    file = tmp_path / "tiny.toml"
    file.write_text(tiny.experiment(algorithm).to_toml())
    fedstill = [sys.executable, "-m", "fedstill"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [*fedstill, "run", str(file), "--out", str(out), "--workers", str(workers), "--quiet"]
    process = subprocess.Popen(command, env=environment, start_new_session=True)
    metrics = out / "metrics.jsonl"
    # killed as the second round is at work, or just after it: either must do
    while not (metrics.exists() and metrics.read_bytes().count(b"\n") >= 1):
        assert process.poll() is None
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert metrics.read_bytes().count(b"\n") < 3
    again = [*fedstill, "resume", str(out), "--workers", str(workers), "--quiet"]
    subprocess.run(again, env=environment, check=True)
    assert tiny.result(out) == straight[algorithm["name"]]


def test_a_half_written_last_line_is_dropped(straight, tmp_path, monkeypatch):
    out = tmp_path / "run"
    drive(tiny.experiment(rounds=2), out=out)
    with (out / "metrics.jsonl").open("ab") as file:
        file.write(b'{"round": 3, "accura')
    (out / "checkpoints" / ".round-0003.json.ab_cd_12").write_text("what a killed process leaves")
    drive(tiny.experiment(rounds=3), out=out, resume=True)
    assert tiny.result(out) == straight["fedavg"]


def test_a_damaged_newest_checkpoint_costs_one_round_and_is_named(straight, tmp_path):
    out = tmp_path / "run"
    drive(tiny.experiment(rounds=2), out=out)
    damaged = out / "checkpoints" / "round-0002.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    heard = Listener()
    drive(tiny.experiment(rounds=3), out=out, resume=True, reporter=heard)
    assert "round-0002.safetensors is damaged: going back to the checkpoint of round 1" in heard.notes[0]
    assert tiny.result(out) == straight["fedavg"]


def test_copies_that_a_user_made_are_neither_read_nor_removed(straight, tmp_path):
    out = tmp_path / "run"
    drive(tiny.experiment(rounds=2), out=out)
    memory = out / "memory" / "c00"
    memory.mkdir(parents=True, exist_ok=True)
    copies = [out / "checkpoints" / f"round-0001 (copy).{end}" for end in ("json", "safetensors")]
    copies.append(memory / "round-0001 (copy).safetensors")
    for copy in copies:
        copy.write_bytes(b"kept")
    drive(tiny.experiment(rounds=3), out=out, resume=True)
    assert [copy.read_bytes() for copy in copies] == [b"kept"] * 3
    for copy in copies:
        copy.unlink()
    assert tiny.result(out) == straight["fedavg"]


def test_other_software_than_a_run_began_with_is_noted(tmp_path):
    drive(tiny.experiment(rounds=1), out=tmp_path)
    file = tmp_path / "experiment.toml"
    file.write_text(re.sub('\ntorch = ".*"', '\ntorch = "1.0"', file.read_text()))
    heard = Listener()
    drive(tiny.experiment(rounds=2), out=tmp_path, resume=True, reporter=heard)
    (note,) = heard.notes
    assert re.match(r"torch is \S+ and was 1\.0 before", note)


def test_checkpoints_that_are_all_damaged_are_refused(tmp_path):
    out = tmp_path / "run"
    drive(tiny.experiment(rounds=1), out=out)
    (out / "checkpoints" / "round-0001.json").write_text("{")
    with pytest.raises(InputError, match=r"round-0001\.json is damaged, and no other checkpoint is whole"):
        drive(tiny.experiment(rounds=2), out=out, resume=True)


def test_more_rounds_extend_a_finished_run(straight, tmp_path):
    drive(tiny.experiment(rounds=1), out=tmp_path / "run")
    drive(tiny.experiment(rounds=3), out=tmp_path / "run", resume=True)
    assert tiny.result(tmp_path / "run") == straight["fedavg"]


def test_fewer_rounds_than_done_are_refused_and_nothing_is_changed(tmp_path):
    drive(tiny.experiment(rounds=2), out=tmp_path / "run")
    before = (tmp_path / "run" / "experiment.toml").read_bytes()
    with pytest.raises(InputError, match="has 2 behind it"):
        drive(tiny.experiment(rounds=1), out=tmp_path / "run", resume=True)
    assert (tmp_path / "run" / "experiment.toml").read_bytes() == before


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"algorithm": {**tiny.FEDAVG, "lr": 0.2}}, r"algorithm\.lr \(there 0\.1, here 0\.2\)"),
        ({"seed": 1}, "seed"),
        ({"data": {"limit": 110}}, "images and labels"),
        ({"partition": {"classes": 3}}, r"partition\.classes"),
    ],
)
def test_a_checkpoint_of_another_experiment_is_refused_and_named(change, named, tmp_path):
    drive(tiny.experiment(rounds=1), out=tmp_path / "run")
    with pytest.raises(InputError, match=f"checkpoint of another experiment.*{named}"):
        drive(tiny.experiment(**{"rounds": 2, **change}), out=tmp_path / "run", resume=True)


def test_engine_name_and_output_are_no_part_of_the_experiment(tmp_path):
    drive(tiny.experiment(rounds=1), out=tmp_path / "run")
    changed = tiny.experiment(rounds=2, name="other", engine={"device": "cpu"}, output={"keep_synthetic": 5})
    assert drive(changed, out=tmp_path / "run", resume=True).rounds == 2


@pytest.mark.parametrize("failing", [6, 9, 11])
def test_a_full_disk_is_said_with_what_is_kept_and_how_to_go_on(failing, straight, tmp_path, monkeypatch):
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        sync, count = os.fsync, 0

        def full(handle: int) -> None:
            nonlocal count
            count += 1
            if count >= failing:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            sync(handle)

        patch.setattr(os, "fsync", full)
        with pytest.raises(RunError, match=r"No space left on device.*kept in.*fedstill resume") as caught:
            drive(tiny.experiment(), out=out)
    assert caught.value.exit_code == 1
    drive(tiny.experiment(), out=out, resume=True)
    assert tiny.result(out) == straight["fedavg"]


def test_the_best_round_is_the_earliest_of_equals(tmp_path):
    out = tmp_path / "run"
    done = drive(tiny.experiment(rounds=4), out=out)
    means = [row["validation"]["mean"] for row in tiny.rows(out)]
    assert done.selected_round == means.index(max(means)) + 1
    assert json.loads((out / "checkpoints" / "best.json").read_text())["round"] == done.selected_round


class Listener:
    """A reporter that remembers."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def opening(self, opening) -> None: ...

    def progress(self, phase, done, total) -> None: ...

    def row(self, row, *, left) -> None: ...

    def note(self, text) -> None:
        self.notes.append(text)

    def closing(self, ending) -> None: ...
