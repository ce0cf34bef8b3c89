"""The page of a run whose clients distil themselves says what their lines say, and is there whatever these hold."""

from __future__ import annotations

import csv
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from fedstill.distill.course import WINDOW, Attempt, Check, Course
from fedstill.report import nodes as section
from fedstill.report.export import write_csv
from fedstill.report.html import render
from fedstill.report.nodes import MOST_DRAWN
from fedstill.report.page import build, called
from fedstill.report.parts import Grid, Legend, Lines, Page, Text, charts, grids, walk
from fedstill.report.runs import read_run
from rundirs import write_run

ILL = "its matching loss does not fall: 1.2 in the first 30 steps, 1.3 in the last"


def attempt(start: float, end: float, accuracies: Sequence[float | None], *, steps: int = 60) -> Attempt:
    """Its loss goes straight from ``start`` to ``end``; checks stand evenly over its steps."""
    losses = tuple(start + (end - start) * step / (steps - 1) for step in range(steps))
    looks = tuple(
        Check(
            steps * place // (len(accuracies) - 1),
            accuracy,
            None if accuracy is None else 0.01 * (place + 1),
            0.01 + 0.001 * place,
            -0.1 * place,
            1 + 0.2 * place,
        )
        for place, accuracy in enumerate(accuracies)
    )
    return Attempt(losses, looks)


WELL = Course((attempt(0.9, 0.3, (0.5, 0.7, 0.65)),), (0, 1))
CURED = Course((attempt(1.2, 1.4, (0.6, 0.5, 0.4), steps=40), attempt(0.8, 0.5, (0.6, 0.625, 0.75))), (1, 2))
SICK = Course((attempt(1.2, 1.4, (0.4, 0.45, 0.3)), attempt(1.1, 1.3, (0.4, 0.41, 0.3))), (0, 1))
UNJUDGED = Course((attempt(0.9, 0.3, (None, None)),), (0, 1))


def oneshot(folder: Path, courses: Sequence[Course | dict[str, Any]], *, rounds: int = 1, seed: int = 0) -> Path:
    """A run of a client a course; a table in the place of one is what its line holds."""
    curves = {"global": [0.5] * rounds}
    run = write_run(folder, method="oneshot", clients=len(courses), curves=curves, matching=True, seed=seed)
    path = run / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for client, course in zip(rows[0]["clients"], courses, strict=True):
        client |= {"synthetic": 4, **(course if isinstance(course, dict) else course.figures())}
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return run


def page(*runs: Path) -> Page:
    return build([read_run(run) for run in runs])


def table(made: Page, key: str = "nodes-1") -> Grid:
    (found,) = (each for each in grids(made) if each.key == key)
    return found


def lines(made: Page, key: str) -> Lines:
    (found,) = (each for each in charts(made) if each.chart.key == key)
    assert isinstance(found, Lines)
    return found


def said(made: Page) -> list[str]:
    (found,) = (each for each in made.sections if each.key == "nodes")
    return [block.text for block in found.blocks if isinstance(block, Text)]


def values(made: Page) -> list[dict[str, Any]]:
    grid = table(made)
    return [{name: cell.value for name, cell in zip(grid.head, row, strict=True)} for row in grid.rows]


def test_the_table_has_what_the_lines_have(tmp_path: Path) -> None:
    courses = (WELL, CURED, SICK)
    made = page(oneshot(tmp_path / "a", courses))
    for number, (course, found) in enumerate(zip(courses, values(made), strict=True)):
        assert course.chosen is not None
        taken = course.attempts[course.chosen[0]]
        first, chosen = taken.checks[0], taken.checks[course.chosen[1]]
        assert chosen.accuracy is not None
        assert first.accuracy is not None
        assert found == {
            "Node": f"c{number:02}",
            "State": course.sick or "well",
            "Images": 4,
            "Attempts": len(course.attempts),
            "Steps in all": course.steps,
            "First loss": pytest.approx(statistics.fmean(taken.losses[:WINDOW])),
            "Last loss": pytest.approx(statistics.fmean(taken.losses[-WINDOW:])),
            "Accuracy at the start": first.accuracy,
            "Chosen": chosen.accuracy,
            "Gain": chosen.accuracy - first.accuracy,
            "At step": chosen.step,
            "First rate": first.rate,
            "Chosen rate": chosen.rate,
            "Lowest pixel": chosen.pixel_min,
            "Highest pixel": chosen.pixel_max,
        }
    assert [row[1].tone for row in table(made).rows] == ["", "", "sick"]


def test_the_sentence_counts_and_averages(tmp_path: Path) -> None:
    told, *_ = said(page(oneshot(tmp_path / "a", (WELL, CURED, SICK, UNJUDGED))))
    gains = [100 * gain for gain in (0.2, 0.15, 0.05)]
    assert told == (
        "OneShot: 4 nodes, 1 ill; 2 restarts, which took 120 of all 340 steps. "
        "Gain in validation accuracy over the images that they began with: "
        f"+{statistics.fmean(gains):.1f}\u202f±\u202f{statistics.stdev(gains):.1f} points, "
        "the mean ± sample standard deviation over 3 nodes; of the other 1 it is not known."
    )
    told, *_ = said(page(oneshot(tmp_path / "b", (WELL, UNJUDGED))))
    assert told.startswith("OneShot: 2 nodes, none ill; no restart.")
    assert told.endswith("began with: +20.0 points, of one node; of the other 1 it is not known.")
    told, *_ = said(page(oneshot(tmp_path / "c", (UNJUDGED,))))
    assert told.startswith("OneShot: 1 node, none ill; no restart.")
    assert told.endswith("began with: not known.")


def test_the_charts_draw_every_attempt(tmp_path: Path) -> None:
    made = page(oneshot(tmp_path / "a", (WELL, CURED, UNJUDGED)))
    losses, accuracies = lines(made, "node-losses-1"), lines(made, "node-accuracies-1")
    labels = ["c00", "c01", "c01, attempt 2", "c02"]
    assert [trace.label for trace in losses.traces] == labels
    assert [trace.label for trace in accuracies.traces] == labels[:-1]  # the last was judged by nothing
    attempts = [each for course in (WELL, CURED, UNJUDGED) for each in course.attempts]
    figures = [each for course in (WELL, CURED, UNJUDGED) for each in course.figures()["attempts"]]
    for trace, told in zip(losses.traces, figures, strict=True):
        assert list(zip(trace.xs, trace.ys, strict=True)) == [tuple(pair) for pair in told["loss"]]
    for trace, each in zip(accuracies.traces, attempts, strict=False):
        assert list(zip(trace.xs, trace.ys, strict=True)) == [(check.step, check.accuracy) for check in each.checks]
    assert losses.panels is None
    assert losses.traces[1].series == losses.traces[2].series == accuracies.traces[2].series  # one switch a node
    assert losses.chart.caption.startswith("Solid: the first attempt")
    assert [(trace.style.colour + trace.style.dash) % 5 for trace in losses.traces] == [0, 0, 1, 0]
    (legend,) = (
        block for block in walk(made) if isinstance(block, Legend) and block.keys[0].series == losses.traces[0].series
    )
    assert [(key.label, key.value) for key in legend.keys] == [("c00", "+20.0"), ("c01", "+15.0"), ("c02", "–")]
    shown = {row[0].value: [cell.value for cell in row[1:]] for row in accuracies.chart.table.rows}
    assert shown[0] == [0.5, 0.6, 0.6]
    assert shown[20] == [None, 0.5, None]
    assert shown[60] == [0.65, None, 0.75]
    assert [row[1].spread for row in accuracies.chart.table.rows if row[1].value is not None] == [0.01, 0.02, 0.03]


def test_many_nodes_get_small_charts_and_too_many_are_named(tmp_path: Path) -> None:
    few = lines(page(oneshot(tmp_path / "few", [WELL] * 7)), "node-losses-1")
    assert few.panels is not None
    assert few.panels.context
    assert few.panels.names == tuple(trace.panel for trace in few.traces)
    made = page(oneshot(tmp_path / "many", [WELL] * MOST_DRAWN + [CURED, SICK]))
    many = lines(made, "node-losses-1")
    assert many.panels is not None
    assert not many.panels.context
    assert len(many.panels.names) == MOST_DRAWN
    assert many.panels.names[-3:] == ("c21", "c24", "c25")  # neither the ill one nor the cured one is left out
    (told,) = (text for text in said(made) if text.startswith("Drawn"))
    assert told.startswith("Drawn: 24 of 26 nodes, the ill ones first, then those that began again: c00, ")
    assert len(table(made).rows) == 26


def test_every_check_is_exported(tmp_path: Path) -> None:
    runs = [read_run(oneshot(tmp_path / f"a-{seed}", (WELL, CURED), seed=seed)) for seed in (0, 1)]
    write_csv(build(runs), called(runs), tmp_path / "csv")
    found = list(csv.DictReader((tmp_path / "csv" / "nodes.csv").read_text().splitlines()))
    wanted = [
        (f"OneShot, seed {seed}", f"c{number:02}", str(place), check, course.chosen == (place - 1, at))
        for seed in (0, 1)
        for number, course in enumerate((WELL, CURED))
        for place, each in enumerate(course.attempts, start=1)
        for at, check in enumerate(each.checks)
    ]
    for line, (run, client, place, check, chosen) in zip(found, wanted, strict=True):
        assert (line["run"], line["round"], line["client"], line["attempt"]) == (run, "1", client, place)
        assert int(line["step"]) == check.step
        names = ("validation accuracy", "validation accuracy, sd", "rate", "lowest pixel", "highest pixel")
        assert [float(line[name]) for name in names] == [
            check.accuracy,
            check.deviation,
            check.rate,
            check.pixel_min,
            check.pixel_max,
        ]
        assert line["chosen"] == str(int(chosen))
    assert [line["state of the attempt"][:4] for line in found[3:9]] == [*["its "] * 3, *["well"] * 3]


def test_no_section_where_no_client_tells(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / "a", matching=True), oneshot(tmp_path / "b", [{"attempts": [], "chosen": None}])]
    for run in runs:
        read = [read_run(run)]
        made = build(read)
        keys = [each.key for each in made.sections]
        assert "nodes" not in keys
        assert "matching" in keys
        write_csv(made, called(read), tmp_path / "csv")
        assert not (tmp_path / "csv" / "nodes.csv").exists()


def test_what_clients_distilled_themselves_is_told_once(tmp_path: Path) -> None:
    keys = [each.key for each in page(oneshot(tmp_path / "a", (WELL, SICK))).sections]
    assert "nodes" in keys
    assert "matching" not in keys


def test_seeds_and_rounds_are_kept_apart(tmp_path: Path) -> None:
    made = page(*(oneshot(tmp_path / f"a-{seed}", (WELL, CURED), seed=seed) for seed in (0, 1)))
    first, second, *_, last, _ = said(made)
    assert first.startswith("OneShot, seed 0: 2 nodes")
    assert second.startswith("OneShot, seed 1: 2 nodes")
    assert "nodes.csv" in last
    assert table(made).title == "Nodes of OneShot, seed 0"
    run = oneshot(tmp_path / "b", (WELL, CURED), rounds=2)
    first_row, second_row = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    second_row["clients"][0] |= CURED.figures()
    (run / "metrics.jsonl").write_text(f"{json.dumps(first_row)}\n{json.dumps(second_row)}\n")
    assert [row["Node"] for row in values(page(run))] == ["c00, round 1", "c01, round 1", "c00, round 2"]


JUNK: list[Any] = [None, True, -1, 0.5, 10**400, 1e308, "<b>", [], [[]], [7], {}, {"attempt": 0}, [{"step": "x"}]]


def test_places_outlast_what_is_damaged_before_them(tmp_path: Path) -> None:
    line = CURED.figures()
    line["attempts"][0] = "lost"
    line["attempts"][1]["checks"][1] = [1, 2]
    (found,) = values(page(oneshot(tmp_path / "a", [line])))
    assert (found["Attempts"], found["Chosen"], found["At step"], found["Steps in all"]) == (2, 0.75, 60, None)
    assert "1 restart, whose steps are not known" in said(page(tmp_path / "a"))[0]


@pytest.mark.parametrize("name", ["attempts", "chosen", "synthetic", "distill_steps"])
def test_a_damaged_client_is_survived(tmp_path: Path, name: str) -> None:
    made = page(oneshot(tmp_path / "a", [CURED, *(CURED.figures() | {name: junk} for junk in JUNK)]))
    whole, *others = values(made)
    assert whole["Chosen"] == 0.75
    if name == "attempts":
        assert others == []  # none of these is an attempt
        return
    assert len(others) == len(JUNK)
    for found in others:
        lost = {column for column, value in found.items() if value != whole[column]} - {"Node"}
        if name == "chosen":
            assert not lost & {"State", "Attempts", "Steps in all", "First loss", "Last loss"}
            assert found["Chosen"] is None
        else:
            assert lost <= {"Images"}


def changed(name: str, value: Any) -> dict[str, Any]:
    """CURED, with something else in a place of its second attempt or of that one's last check."""
    line = CURED.figures()
    second = line["attempts"][1]
    (second if name in second else second["checks"][2])[name] = value
    return line


@pytest.mark.parametrize(
    "name", ["steps", "loss", "checks", "ill", "step", "accuracy", "deviation", "rate", "pixel_max"]
)
def test_a_damaged_attempt_is_survived(tmp_path: Path, name: str) -> None:
    made = page(oneshot(tmp_path / "a", [CURED, *(changed(name, junk) for junk in JUNK)]))
    whole, *others = values(made)
    assert whole["Chosen"] == 0.75
    assert len(others) == len(JUNK)
    if name == "ill":
        assert [each["State"] for each in others] == [
            "well" if junk is None else junk if isinstance(junk, str) else "–" for junk in JUNK
        ]
        assert f"14 nodes, 1 ill; of {len(JUNK) - 2} that is not known" in said(made)[0]


def test_a_damaged_page_is_drawn(tmp_path: Path) -> None:
    damage = [("loss", [[0, -1.0], [1, 0.0], [2, 1e99]]), ("accuracy", -1), ("ill", "<i>cold</i>")]
    made = page(oneshot(tmp_path / "a", [changed(name, value) for name, value in damage]))
    written = render(made)
    assert 'id="chart-node-losses-1"' in written
    assert "&lt;i&gt;cold" in written
    assert "<i>" not in written


def test_a_loss_that_was_not_finite_is_a_dash(tmp_path: Path) -> None:
    line = WELL.figures()
    line["attempts"][0]["loss"][-1][1] = None
    made = page(oneshot(tmp_path / "a", [line]))
    assert values(made)[0]["Last loss"] is None
    assert len(lines(made, "node-losses-1").traces[0].xs) == len(line["attempts"][0]["loss"]) - 1


def test_the_window_that_is_named_is_the_one_that_is_used() -> None:
    assert f"moving average of {WINDOW} steps" in section._SAY
