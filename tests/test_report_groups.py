from __future__ import annotations

from pathlib import Path

import pytest

from fedstill.report.groups import Point, gather
from fedstill.report.runs import read_run
from fedstill.report.words import count, duration, figure, percent, rounds, signed, size
from rundirs import change, edit, write_run

GAP = "\N{NARROW NO-BREAK SPACE}"


def test_runs_that_differ_otherwise_are_told_apart(tmp_path: Path) -> None:
    plain = write_run(tmp_path / "a", settings="[extra]\nipc = 5")
    other = write_run(tmp_path / "b", settings="[extra]\nipc = 10")
    again = write_run(tmp_path / "c", settings="[extra]\nipc = 10")
    groups, notes = gather([read_run(run) for run in (plain, other, again)])
    assert [group.label for group in groups] == ["FedDGM (ipc 5)", "FedDGM (ipc 10)"]
    assert notes == ("c repeats the experiment and seed of b: it is not counted.",)


def test_namesakes_of_several_differences_go_by_the_experiments_name_then_by_settings(tmp_path: Path) -> None:
    runs = [
        change(write_run(tmp_path / f"run-{ipc}", settings=f"[extra]\nipc = {ipc}\nspace = {ipc}"), "run-", "exp-")
        for ipc in (5, 10)
    ]
    assert [group.label for group in gather([read_run(run) for run in runs])[0]] == [
        "FedDGM (5)",
        "FedDGM (10)",
    ]
    change(runs[0], "exp-5", "exp")
    assert [group.label for group in gather([read_run(run) for run in runs])[0]] == ["FedDGM", "FedDGM (10)"]
    change(runs[1], "exp-10", "exp")
    assert [group.label for group in gather([read_run(run) for run in runs])[0]] == [
        "FedDGM (ipc 5, space 5)",
        "FedDGM (ipc 10, space 10)",
    ]
    for run, rate in zip(runs, (5, 10), strict=True):
        change(run, "[data]", f"lr = {rate}\nmomentum = {rate}\n[data]")
    assert [group.label for group in gather([read_run(run) for run in runs])[0]] == [
        "FedDGM (run-5)",
        "FedDGM (run-10)",
    ]


@pytest.mark.parametrize(
    ("got", "wanted"),
    [
        (percent(0.8434), "84.3 %"),
        (percent(None), "–"),
        (size(0), "0 B"),
        (size(1_204_000), "1.2 MB"),
        (duration(83.4), "1 min 23 s"),
        (duration(7384), "2 h 03 min"),
        (duration(0.25), "0.25 s"),
        (count(1234567), "1 234 567"),
        (percent(Point(0.8434, 0.0123, 3)), "84.3 ± 1.2 %"),
        (percent(Point(0.8434, None, 1)), "84.3 %"),
        (signed(0.0432), "+4.3"),
        (signed(-0.0432), "−4.3"),
        (signed(-0.0001), "0.0"),
        (signed(Point(-0.0432, 0.01, 3)), "−4.3 ± 1.0"),
        (figure(Point(0.12345, 0.0123, 3)), "0.123 ± 0.012"),
        (rounds(Point(3.0, 0.0, 3)), "3"),
        (rounds(Point(3.333, 0.577, 3)), "3.3 ± 0.6"),
        (size(Point(9_281_234, 142_345, 3)), "9.28 ± 0.14 MB"),
        (size(Point(9_281_234, 0.0, 3)), "9.28 MB"),
        (size(999.9), "1000 B"),
        (duration(Point(25.04, 0.66, 3)), "25 ± 0.66 s"),
        (duration(Point(83.4, 0.729, 3)), "1 min 23 s ± 0.73 s"),
        (duration(Point(7384.0, 83.4, 3)), "2 h 03 min ± 1 min 23 s"),
        (duration(59.9), "59.9 s"),
    ],
)
def test_words(got: str, wanted: str) -> None:
    assert got.replace(GAP, " ") == wanted


def test_a_sum_over_rounds_ends_where_one_is_missing(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", curves={"surrogate": [0.1, 0.2, 0.3, 0.4]})
    (group,), _ = gather([read_run(run)])
    assert [point.mean for point in group.sent().values()] == [2_408_000 * number for number in (1, 2, 3, 4)]
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(lines[:2] + lines[3:]))
    (group,), _ = gather([read_run(run)])
    assert list(group.sent()) == [1, 2]
    assert list(group.curve("surrogate")) == [1, 2, 4]
    edit(run / "metrics.jsonl", bytes_up=None)
    (group,), _ = gather([read_run(run)])
    assert group.sent() == {}
    assert list(group.spent()) == [1, 2]


def test_what_changes_no_result_makes_no_group(tmp_path: Path) -> None:
    plain = write_run(tmp_path / "a")
    marked = write_run(
        tmp_path / "b", seed=1, settings="[published.accuracy]\nsurrogate = 0.7\n[evaluate]\ngradients = true"
    )
    groups, notes = gather([read_run(run) for run in (plain, marked)])
    assert [len(group.runs) for group in groups] == [2]
    assert notes == ()


def test_a_repeated_run_is_told_from_its_namesake(tmp_path: Path) -> None:
    one, other = (write_run(tmp_path / name / "run") for name in ("here", "there"))
    _, notes = gather([read_run(run) for run in (one, one, other)])
    assert notes == (
        f"{one} was given twice: it is counted once.",
        f"{other} repeats the experiment and seed of {one}: it is not counted.",
    )


def test_a_run_that_is_older_than_a_setting_is_of_the_same_experiment(tmp_path: Path) -> None:
    runs = [
        write_run(tmp_path / "old", method="fedavg", seed=0),
        write_run(tmp_path / "new", method="fedavg", seed=1, settings="farthest = 1e6"),
        write_run(tmp_path / "other", method="fedavg", seed=2, settings="farthest = 10.0"),
    ]
    change(runs[1], 'name = "fedavg"', 'name = "fedavg"\nrule = "mean"')
    groups, _ = gather([read_run(run) for run in runs])
    assert [[run.seed for run in group.runs] for group in groups] == [[0, 1], [2]]
