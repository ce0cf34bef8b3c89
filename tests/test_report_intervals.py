"""Intervals are those of SciPy."""

from __future__ import annotations

import statistics
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from fedstill.report.intervals import student, wilson
from fedstill.report.page import build
from fedstill.report.parts import Grid, grids
from fedstill.report.runs import read_run
from rundirs import edit, write_run


@given(
    st.lists(st.integers(0, 1000).map(lambda n: n / 1000), min_size=2, max_size=12), st.sampled_from([0.5, 0.95, 0.99])
)
def test_student_is_that_of_scipy(values: list[float], level: float) -> None:
    found = student(statistics.fmean(values), statistics.stdev(values), len(values), level=level)
    if len(set(values)) == 1:
        assert found.low == found.high == pytest.approx(values[0])
    else:
        theirs = stats.t.interval(level, len(values) - 1, loc=statistics.fmean(values), scale=stats.sem(values))
        assert tuple(found) == pytest.approx(theirs, rel=1e-9, abs=1e-12)


@given(st.data(), st.integers(1, 100_000), st.sampled_from([0.5, 0.95, 0.99]))
def test_wilson_is_that_of_scipy(data: st.DataObject, examples: int, level: float) -> None:
    correct = data.draw(st.integers(0, examples))
    theirs = stats.binomtest(correct, examples).proportion_ci(confidence_level=level, method="wilson")
    assert tuple(wilson(correct, examples, level=level)) == pytest.approx(tuple(theirs), rel=1e-9, abs=1e-12)


def numbers(*runs: Path) -> dict[str, object]:
    (table,) = (table for table in grids(build([read_run(run) for run in runs])) if table.key == "numbers")
    assert isinstance(table, Grid)
    return {"note": table.note} | {name: cell.value for name, cell in zip(table.head, table.rows[0], strict=True)}


def test_one_seed_has_the_interval_of_its_test_images(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", curves={"surrogate": [301 / 360]})
    edit(run / "metrics.jsonl", test_examples=360)
    found = numbers(run)
    low, high = stats.binomtest(301, 360).proportion_ci(method="wilson")
    assert str(found["note"]).endswith("Here: one seed, 360 test images.")
    assert (found["95 % from"], found["95 % to"]) == (pytest.approx(low), pytest.approx(high))


def test_seeds_have_the_interval_of_their_mean_within_what_an_accuracy_can_be(tmp_path: Path) -> None:
    shares = (0.9, 0.99, 0.995)
    runs = [write_run(tmp_path / f"{n}", seed=n, curves={"surrogate": [share]}) for n, share in enumerate(shares)]
    found = numbers(*runs)
    low, high = stats.t.interval(0.95, 2, loc=statistics.fmean(shares), scale=stats.sem(shares))
    assert high > 1
    assert str(found["note"]).endswith("Here: mean of 3 seeds.")
    assert (found["95 % from"], found["95 % to"]) == (pytest.approx(low), 1.0)


def test_an_interval_needs_to_know_how_many_images(tmp_path: Path) -> None:
    assert "95 % from" not in numbers(write_run(tmp_path / "a"))
