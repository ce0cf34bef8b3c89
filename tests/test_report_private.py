"""What the page says of clients' privacy is what their lines say."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from fedstill.report.export import write_csv
from fedstill.report.page import build, called
from fedstill.report.parts import Text, grids
from fedstill.report.runs import read_run
from rundirs import write_run

JUNK: Sequence[Any] = (None, 3, "x", [], {}, {"epsilon": "much"}, {"epsilon": 1.0, "delta": -1.0, "noise": 1.0})


def private(epsilon: float, noise: float) -> dict[str, float]:
    return {"epsilon": epsilon, "delta": 1e-5, "noise": noise}


def run(folder: Path, *rounds: Sequence[Any], key: str = "privacy") -> Path:
    """Of each round: what each client says of its privacy, or with ``key`` "update" of that of its updates."""
    made = write_run(folder, method="fedavg", clients=len(rounds[0]), curves={"global": [0.5] * len(rounds)})
    path = made / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row, each in zip(rows, rounds, strict=True):
        for client, told in zip(row["clients"], each, strict=True):
            client[key] = told
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return made


def said(*runs: Path) -> list[str]:
    made = build([read_run(each) for each in runs])
    return [
        block.text
        for each in made.sections
        if each.key == "privacy"
        for block in each.blocks
        if isinstance(block, Text)
    ]


def test_the_last_word_of_each_client_counts(tmp_path: Path) -> None:
    made = run(
        tmp_path / "a",
        [private(4.0, 1.234), private(3.0, 0.5)],
        [private(7.9961, 1.234), None],
        [None, private(5.0, 0.5)],
    )
    told, _ = said(made)
    assert told == (
        "FedAvg: by the clients’ own word their training images are differentially private: ε = 8 at most, δ = 1e-05, noise "
        "σ = 0.5 to 1.23."
    )
    (table,) = (each for each in grids(build([read_run(made)])) if each.key == "privacy-1")
    assert [[cell.text for cell in row] for row in table.rows] == [
        ["c00", "2", "8", "1e-05", "1.23"],
        ["c01", "3", "5", "1e-05", "0.5"],
    ]


def test_who_says_nothing_is_counted(tmp_path: Path) -> None:
    told, _ = said(run(tmp_path / "a", [private(2.0, 0.5), private(2.0, 0.5), None]))
    assert told.endswith("ε = 2 at most, δ = 1e-05, noise σ = 0.5; 1 client says nothing of it.")
    told, _ = said(run(tmp_path / "b", [private(2.0, 0.5), None, None]))
    assert told.endswith("; 2 clients say nothing of it.")


@pytest.mark.parametrize("junk", JUNK)
def test_what_is_none_is_no_section(tmp_path: Path, junk: Any) -> None:
    assert not said(run(tmp_path / "a", [junk, junk]))


def test_updates_are_told_apart_from_images(tmp_path: Path) -> None:
    made = run(tmp_path / "a", [private(311.0, 0.3), private(0.0, 1e6)], key="update")
    told, say = said(made)
    assert told == (
        "FedAvg: by the clients’ own word their updates are differentially private: ε = 311 at most, δ = 1e-05, noise "
        "σ = 0.3 to 1e+06."
    )
    assert "for all its training images at once" in say
    (table,) = (each for each in grids(build([read_run(made)])) if each.key == "update-1")
    assert [row[0].text for row in table.rows] == ["c00", "c01"]
    runs = [read_run(made)]
    write_csv(build(runs), called(runs), tmp_path / "csv")
    with (tmp_path / "csv" / "clients.csv").open(encoding="utf-8") as file:
        first, _ = csv.DictReader(file)
    assert (first["epsilon"], first["update epsilon"]) == ("", "311.0")


def test_csv_has_it_unrounded(tmp_path: Path) -> None:
    made = run(tmp_path / "a", [private(1.23456789, 2.5), None])
    runs = [read_run(made)]
    write_csv(build(runs), called(runs), tmp_path / "csv")
    with (tmp_path / "csv" / "clients.csv").open(encoding="utf-8") as file:
        first, second = csv.DictReader(file)
    assert (first["epsilon"], first["delta"], first["noise"]) == ("1.23456789", "1e-05", "2.5")
    assert second["epsilon"] == ""
