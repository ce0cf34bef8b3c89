"""A folder that holds runs, such as a sweep's, stands for its runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fedstill.cli import invoke
from fedstill.errors import InputError
from fedstill.report.finding import awaited, find, runs_in
from rundirs import write_run


def sweep(folder: Path, *cells: tuple[str, str]) -> Path:
    """``sweep.json`` of ``cells``, each a name and a state."""
    folder.mkdir(exist_ok=True)
    table = {"cells": [{"name": name, "state": state} for name, state in cells]}
    (folder / "sweep.json").write_text(json.dumps(table))
    return folder


def test_a_run_stands_for_itself_and_a_folder_for_its_runs_by_name(tmp_path: Path) -> None:
    for name in ("a-10", "a-2", "b", "A"):
        write_run(tmp_path / "runs" / name)
    write_run(tmp_path / "runs" / "b" / "inner")  # of a run, nothing else is looked for
    (tmp_path / "runs" / "logs").mkdir()
    (tmp_path / "runs" / "note.txt").write_text("mine")
    assert [run.name for run in runs_in(tmp_path / "runs")] == ["A", "a-2", "a-10", "b"]
    assert find([tmp_path / "runs" / "b", tmp_path / "runs" / "a-2"]) == [
        tmp_path / "runs" / "b",
        tmp_path / "runs" / "a-2",
    ]


def test_a_sweeps_runs_are_in_its_order_then_any_others(tmp_path: Path) -> None:
    for name in ("feddgm-0", "fedavg-0", "another"):
        write_run(tmp_path / name)
    sweep(tmp_path, ("feddgm-0", "finished"), ("moon-0", "waiting"), ("fedavg-0", "failed"))
    assert [run.name for run in runs_in(tmp_path)] == ["feddgm-0", "fedavg-0", "another"]
    assert [run.name for run in awaited(tmp_path)] == ["feddgm-0", "moon-0"]


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"cells": 1}', '{"cells": [1, {"name": 2}]}'])
def test_a_damaged_record_of_a_sweep_costs_its_order_alone(tmp_path: Path, damage: str) -> None:
    for name in ("b", "a"):
        write_run(tmp_path / name)
    (tmp_path / "sweep.json").write_text(damage)
    assert [run.name for run in runs_in(tmp_path)] == ["a", "b"]
    assert awaited(tmp_path) == []


def test_a_folder_with_neither_is_refused_in_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    run = write_run(tmp_path / "a")
    for folder in (empty, tmp_path / "absent", run / "metrics.jsonl"):
        assert runs_in(folder) == []
        assert invoke(["report", str(run), str(folder), "--out", str(tmp_path / "r.html")]) == 2
        assert capsys.readouterr().err == (
            f"fedstill: {folder} is not a run and holds none: give a folder that 'fedstill run' or 'fedstill sweep' wrote\n"
        )
    assert not (tmp_path / "r.html").exists()
    with pytest.raises(InputError, match="is not a run and holds none"):
        find([empty])


def test_report_of_a_folder_is_the_page_of_its_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in (0, 1):
        write_run(tmp_path / "runs" / f"feddgm-{seed}", seed=seed)
        write_run(tmp_path / "runs" / f"fedavg-{seed}", method="fedavg", seed=seed)
    sweep(tmp_path / "runs", *((f"{method}-{seed}", "finished") for seed in (0, 1) for method in ("feddgm", "fedavg")))
    assert invoke(["report", str(tmp_path / "runs"), "--out", str(tmp_path / "r.html")]) == 0
    one_by_one = [str(tmp_path / "runs" / f"{method}-{seed}") for seed in (0, 1) for method in ("feddgm", "fedavg")]
    assert invoke(["report", *one_by_one, "--out", str(tmp_path / "s.html")]) == 0
    capsys.readouterr()
    assert (tmp_path / "r.html").read_bytes() == (tmp_path / "s.html").read_bytes()
