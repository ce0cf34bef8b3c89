"""What the page says of hostile clients is what the lines say."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from fedstill.cli.console import troubles
from fedstill.report import write_markdown
from fedstill.report.export import write_csv
from fedstill.report.page import build, called
from fedstill.report.parts import Grid, Section, Text, grids
from fedstill.report.runs import read_run
from rundirs import write_run


def run(
    folder: Path, *, seed: int = 0, success: Any = None, hostile: Any = (), looked: Mapping[str, Any] | None = None
) -> Path:
    made = write_run(folder, method="feddm", seed=seed, clients=4, curves={"global": [0.5, 0.75]})
    path = made / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        if success is not None:
            row["attack"] = {"clients": list(hostile), "success": {"global": success}, "examples": 10}
        for client in row["clients"]:
            client |= (looked or {}).get(client["client"], {})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return made


def seen(agreement: float | None, *, flagged: bool = False) -> dict[str, Any]:
    where = None if agreement is None else "7"
    worst = None if agreement is None else agreement - 1
    figures = {"agreement": agreement, "agreement_worst": worst, "agreement_class": where}
    return figures | {"assessed": 0 if agreement is None else 3, "classes": 4, "flagged": flagged}


LOOKED = {"c00": seen(0.9), "c01": seen(0.8), "c02": seen(None), "c03": seen(0.125, flagged=True)}


def section(*runs: Path) -> Section | None:
    return next((each for each in build([read_run(each) for each in runs]).sections if each.key == "hostile"), None)


def table(key: str, *runs: Path) -> Grid:
    return next(each for each in grids(build([read_run(each) for each in runs])) if each.key == key)


def test_no_attack_and_no_check_is_no_section(tmp_path: Path) -> None:
    assert section(run(tmp_path / "a")) is None


def test_attack_success_stands_beside_accuracy(tmp_path: Path) -> None:
    found = table("hostile", run(tmp_path / "a", success=0.25, hostile=["c03"]))
    assert found.head == ("Method", "Model", "Accuracy", "Attack success")
    assert [cell.value for cell in found.rows[0]] == ["FedDM", "global", 0.75, 0.25]


def test_seeds_give_a_mean_and_flags_are_shares_of_looks(tmp_path: Path) -> None:
    caught = run(tmp_path / "a", success=0.1, hostile=["c03"], looked=LOOKED)
    missed = run(tmp_path / "b", seed=1, success=0.3, hostile=["c01"], looked=LOOKED)
    found = table("hostile", *(Path(each) for each in (caught, missed)))
    assert found.head[-2:] == ("Hostile flagged", "Honest flagged")
    values = {name: cell.value for name, cell in zip(found.head, found.rows[0], strict=True)}
    assert values["Attack success"] == pytest.approx(0.2)
    assert values["Hostile flagged"] == pytest.approx(0.5)
    assert values["Honest flagged"] == pytest.approx(1 / 6)


def test_what_the_server_found_is_told_by_client(tmp_path: Path) -> None:
    made = run(tmp_path / "a", looked=LOOKED)
    its = section(made)
    assert its is not None
    told = next(block.text for block in its.blocks if isinstance(block, Text))
    assert told == "FedDM: the server looked at 8 sets; flagged: c03 in round 1 and c03 in round 2."
    rows = [[cell.value for cell in row] for row in table("agreement-1", made).rows]
    assert rows[3] == ["c03", "flagged", "7", 2, 0.125, -0.875, 3, 4]
    assert rows[2] == ["c02", "", "–", 2, None, None, 0, 4]


def test_csv_and_results_have_it(tmp_path: Path) -> None:
    made = read_run(run(tmp_path / "a", success=0.25, hostile=["c03"], looked=LOOKED))
    write_csv(build([made]), called([made]), tmp_path / "csv")

    def lines(name: str) -> list[dict[str, str]]:
        with (tmp_path / "csv" / f"{name}.csv").open() as file:
            return list(csv.DictReader(file))

    assert [line["attack success"] for line in lines("accuracies")] == ["0.25", "0.25"]
    (last,) = (line for line in lines("clients") if line["round"] == "2" and line["client"] == "c03")
    assert (last["agreement"], last["worst class"], last["flagged"]) == ("0.125", "7", "1")
    write_markdown([tmp_path / "a", run(tmp_path / "b", seed=1, success=0.5)], tmp_path / "table.md")
    assert "Attack success" in (tmp_path / "table.md").read_text()


@pytest.mark.parametrize("junk", [None, 3, [], {"clients": 3, "success": {"global": 7}}, {"success": []}])
def test_what_is_damaged_is_no_attack(tmp_path: Path, junk: Any) -> None:
    made = run(tmp_path / "a")
    path = made / "metrics.jsonl"
    rows = [json.loads(line) | {"attack": junk} for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert section(made) is None


def test_who_is_flagged_and_kept_is_a_warning() -> None:
    row = {
        "aggregated": True,
        "failures": [{"client": "c02", "reason": "its images disagree"}],
        "clients": [{"client": "c01", **seen(0.5, flagged=True)}, {"client": "c02", **seen(0.1, flagged=True)}],
    }
    assert troubles(row) == [
        "  c02 left out: its images disagree",
        "  c01 disagrees with the others by what it distilled, and is kept (agreement 50.0 %)",
    ]
