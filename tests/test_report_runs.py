"""Reading: whatever can be read is, and what cannot is named on the page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedstill.errors import InputError
from fedstill.report import write_report
from fedstill.report.html import render
from fedstill.report.page import build
from fedstill.report.parts import Page, grids
from fedstill.report.runs import read_run
from rundirs import edit, write_run
from runs_fixture import Made, spoken, write_full_run

FULL = Made(distils=True, gradients=True, evaluated=True)


def page(*runs: Path) -> Page:
    return build([read_run(run) for run in runs])


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(InputError, match="is not a run"):
            write_report([folder], tmp_path / "x.html")
    with pytest.raises(InputError, match="at least one run"):
        write_report([], tmp_path / "x.html")
    assert not (tmp_path / "x.html").exists()


@pytest.mark.parametrize(
    "name", ["experiment.toml", "metrics.jsonl", "partition.json", "summary.json", "evaluation.json"]
)
@pytest.mark.parametrize("damage", ["absent", "cut", "other", "list", "bytes", "deep"])
def test_damage_gives_a_page_that_names_it(tmp_path: Path, name: str, damage: str) -> None:
    run = write_full_run(tmp_path / "a-0", FULL)
    whole = page(run)
    path = run / name
    if damage == "absent":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3 - 1])
    else:
        path.write_bytes(
            {
                "other": b'{"finished": false, "round": "three", "histogram": 3, "fresh": 7, "mmd": {"clients": [1]}}',
                "list": b"[1, 2]",
                "bytes": b"\xff\xfe\x00\x01" * 9,
                "deep": b"[" * 100_000,
            }[damage]
        )
    made = page(run)
    if name == "evaluation.json" and damage == "absent":
        assert made.notes == whole.notes == ()  # nobody asked for it
    else:
        assert any(name in note or "not finished" in note for note in made.notes), made.notes
    # what the other files say is still there
    keys = {table.key for table in grids(made)}
    assert keys or name == "metrics.jsonl"
    assert name in ("partition.json",) or "holdings-1" in keys
    assert name == "metrics.jsonl" or "numbers" in keys
    assert name in ("metrics.jsonl", "evaluation.json") or "fresh" in keys


@pytest.mark.parametrize("part", ["fresh", "mmd", "tsne"])
@pytest.mark.parametrize(
    "wrong", [7, [], {}, {"results": 3, "clients": ["a"], "squared": [[1, 2]], "points": [{"x": "one"}]}]
)
def test_a_damaged_part_of_an_evaluation_is_named_and_the_others_stay(tmp_path: Path, part: str, wrong: Any) -> None:
    run = write_full_run(tmp_path / "a-0", FULL)
    told = json.loads((run / "evaluation.json").read_text())
    (run / "evaluation.json").write_text(json.dumps(told | {part: wrong}))
    found = read_run(run)
    assert f"'{part}' in evaluation.json is damaged: it is left out" in found.missing
    assert sum(getattr(found.evaluated, other) is not None for other in ("fresh", "mmd", "tsne")) == 2


def test_a_newer_version_is_read_as_far_as_it_is_known(tmp_path: Path) -> None:
    run = write_full_run(tmp_path / "a-0", FULL)
    before = page(run)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        line |= {"energy": {"joules": 3}, "version": 9}
        line["clients"][0]["mood"] = "good"
        line["clients"][0]["matching"]["torque"] = [1, 2]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for name in ("partition.json", "summary.json", "evaluation.json"):
        told = json.loads((run / name).read_text())
        (run / name).write_text(json.dumps(told | {"version": 9, "newer": {"a": 1}}))
    assert page(run) == before


def test_an_older_run_has_a_page(tmp_path: Path) -> None:
    made = page(write_run(tmp_path / "a", matching=True))
    assert made.notes == ()
    (numbers,) = (table for table in grids(made) if table.key == "numbers")
    assert numbers.head == ("Method", "Model", "Accuracy", "Bytes", "Wall time")


def test_a_cut_line_is_said(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a")
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"round": 4, "accur')
    assert page(run).notes == ("FedDGM: the last line of metrics.jsonl is cut or damaged and was passed over.",)
    assert len(read_run(run).rows) == 3


def test_a_lost_round_and_an_absurd_number_are_survived(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", curves={"surrogate": [0.1, 0.2, 0.3]})
    edit(run / "metrics.jsonl", round=10**15, bytes_up=10**400, accuracy={"surrogate": 10**400})
    assert f"metrics.jsonl lacks rounds 4 to {10**15 - 1}" in read_run(run).missing
    assert "FedDGM: metrics.jsonl lacks round 1." in page(run).notes


def test_an_accuracy_that_cannot_be_is_none(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a")
    edit(run / "metrics.jsonl", accuracy={"surrogate": -1}, balanced_accuracy={"surrogate": 1.5}, test_examples=10)
    (row, *_) = read_run(run).rows
    assert (row.accuracy, row.balanced) == ({}, {})


def test_unknown_is_never_zero(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a")
    edit(run / "metrics.jsonl", bytes_up=None, peak_memory=None, accuracy={"surrogate": None})
    (ledger,) = (table for table in grids(page(run)) if table.key == "bytes")
    told = dict(zip(ledger.head, ledger.rows[0], strict=True))
    assert [told[name].text for name in ("Up", "Up and down")] == ["–", "–"]
    assert told["Down"].value == 3 * 1_204_000


def _json() -> st.SearchStrategy[Any]:
    leaves = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=True) | st.text(max_size=8)
    return st.recursive(
        leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    )


KEYS = (
    "accuracy",
    "balanced_accuracy",
    "calibration_error",
    "per_class",
    "confusion",
    "test_examples",
    "validation",
    "test",
    "bytes_up",
    "seconds",
    "cpu_seconds",
    "peak_memory",
    "theory",
    "clients",
    "failures",
    "aggregated",
    "newer",
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.dictionaries(st.sampled_from(KEYS), _json(), max_size=4), last=st.booleans())
def test_values_of_any_kind_give_a_page(
    tmp_path_factory: pytest.TempPathFactory, changes: dict[str, Any], last: bool
) -> None:
    run = write_full_run(tmp_path_factory.mktemp("any") / "run-0", Made(rounds=2, distils=True, gradients=True))
    lines = (run / "metrics.jsonl").read_text().splitlines()
    lines[-last] = json.dumps(json.loads(lines[-last]) | changes)
    (run / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    assert spoken(page(run))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(told=st.fixed_dictionaries({key: _json() for key in ("fresh", "mmd", "tsne")}))
def test_evaluations_of_any_kind_give_a_page(tmp_path_factory: pytest.TempPathFactory, told: dict[str, Any]) -> None:
    run = write_full_run(tmp_path_factory.mktemp("any") / "run-0", Made(rounds=1))
    (run / "evaluation.json").write_text(json.dumps(told))
    assert spoken(page(run))


@pytest.mark.parametrize("name", ["experiment.toml", "metrics.jsonl", "partition.json"])
def test_a_damaged_run_beside_whole_ones_leaves_their_page_whole(tmp_path: Path, name: str) -> None:
    runs = [write_full_run(tmp_path / f"a-{seed}", FULL, seed=seed) for seed in range(3)]
    (runs[1] / name).write_bytes(b"{")
    text = render(page(*runs))
    assert name in text
    assert "</html>" in text


def test_a_run_without_a_round_has_a_page(tmp_path: Path) -> None:
    made = page(write_run(tmp_path / "a", curves={}))
    assert "a: no round has been finished." in made.notes
    assert "there is no result to state" in made.verdict


def test_a_page_that_changes_says_when_and_that_the_run_goes_on(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a")
    (folder / "summary.json").write_text('{"finished": false}')
    run = read_run(folder)
    assert (build([run]).live, build([run], live=5).live) == (None, 5)
    assert build([run]).notes == ("FedDGM: the run was not finished: later rounds are missing.",)
    assert build([run], live=5).notes == ("FedDGM: the run goes on.",)
    (folder / "metrics.jsonl").write_text("")
    (folder / "summary.json").unlink()
    assert page(folder).notes == ("a: no round has been finished.",)


def test_many_damaged_lines_are_one_sentence(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a-0")
    with (run / "metrics.jsonl").open("a") as file:
        file.write("{\n" * 9)
    assert "9 lines of metrics.jsonl are cut or damaged and were passed over" in read_run(run).missing


@pytest.mark.parametrize("accuracy", [{"surrogate": "0.5"}, {"surrogate": 1e308}, {"surrogate": None}, 0.5])
def test_accuracies_that_are_none_are_named(tmp_path: Path, accuracy: Any) -> None:
    run = write_run(tmp_path / "a-0")
    edit(run / "metrics.jsonl", accuracy=accuracy)
    assert any("accuracies of round 1 that are no numbers" in sentence for sentence in read_run(run).missing)


def test_numbers_beyond_belief_are_not_known(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a-0", matching=True)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        row["seconds"] = dict.fromkeys(row["seconds"], 1e308)
        row["clients"][0]["matching"]["end"] = -1e308
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read_run(run).rows[0].wall is None
    assert page(run).sections


def test_an_empty_experiment_is_named(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a-0")
    (run / "experiment.toml").write_text("")
    assert any("experiment.toml is empty" in sentence for sentence in read_run(run).missing)
