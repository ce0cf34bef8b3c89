"""The page's tables and charts as files: the numbers of the page, unrounded."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from fedstill.cli import app
from fedstill.errors import InputError
from fedstill.report import write_report
from fedstill.report.export import write_csv, write_figures, write_latex
from fedstill.report.latex import escape, tabular
from fedstill.report.page import build, called
from fedstill.report.parts import Cell, Grid, Page, cell, charts, grids
from fedstill.report.runs import Run, read_run
from runs_fixture import Made, write_comparison, write_full_run

PUBLISHED = {"published": {"source": "A paper"}, "published.accuracy": {"resnet18": 0.7}}
MADE = {
    "feddgm": Made(distils=True, gradients=True, evaluated=True, settings=PUBLISHED),
    "fedavg": Made(method="fedavg", models=("global",)),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_comparison(tmp_path_factory.mktemp("runs"), MADE, seeds=(0, 1))


@pytest.fixture(scope="module")
def runs(folders: list[Path]) -> list[Run]:
    return [read_run(folder) for folder in folders]


@pytest.fixture(scope="module")
def page(runs: list[Run]) -> Page:
    return build(runs)


def read(path: Path) -> list[list[str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


def test_every_table_is_a_csv_of_its_own_numbers(tmp_path: Path, page: Page, runs: list[Run]) -> None:
    write_csv(page, called(runs), tmp_path / "new" / "tables")
    for table in grids(page):
        head, *lines = read(tmp_path / "new" / "tables" / f"{table.key}.csv")
        assert len(lines) == len(table.rows)
        for line, row in zip(lines, table.rows, strict=True):
            told = iter(zip(head, line, strict=True))
            for name, one in zip(table.head, row, strict=True):
                shown, text = next(told)
                assert shown == name
                if isinstance(one.value, float):
                    assert float(text) == one.value  # to the last bit
                else:
                    assert text.removeprefix("'") == ("" if one.value is None else str(one.value))
                if any(other[table.head.index(name)].spread is not None for other in table.rows):
                    shown, text = next(told)
                    assert shown == f"{name}, sd"
                    assert text == ("" if one.spread is None else repr(one.spread))
            assert next(told, None) is None


def test_long_tables_hold_a_line_for_each_thing_measured(
    tmp_path: Path, page: Page, runs: list[Run], folders: list[Path]
) -> None:
    write_csv(page, called(runs), tmp_path)
    names = {"feddgm-0": "FedDGM, seed 0", "feddgm-1": "FedDGM, seed 1", "fedavg-0": "FedAvg, seed 0"}
    names["fedavg-1"] = "FedAvg, seed 1"
    told = {
        (names[folder.name], row["round"]): row
        for folder in folders
        for row in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    }
    head, *lines = read(tmp_path / "rounds.csv")
    assert len(lines) == len(told)
    for line in lines:
        found = dict(zip(head, line, strict=True))
        row = told[found["run"], int(found["round"])]
        assert float(found["cpu seconds"]) == row["cpu_seconds"]
        assert int(found["bytes up"]) == row["bytes_up"]
        assert float(found["seconds server"]) == row["seconds"]["server"]
        assert found["cosine after"] == (repr(row["theory"]["cosine_after"]) if "theory" in row else "")
    head, *lines = read(tmp_path / "matching.csv")
    wanted = {
        (run, str(number), client["client"]): client["matching"]
        for (run, number), row in told.items()
        for client in row["clients"]
        if "matching" in client
    }
    found = {tuple(line[:3]): dict(zip(head, line, strict=True)) for line in lines}
    assert found.keys() == wanted.keys()
    for place, m in wanted.items():
        assert float(found[place]["end"]) == m["end"]
        assert found[place]["sick"] == (m["sick"] or "")
    head, *lines = read(tmp_path / "clients.csv")
    assert len(lines) == sum(len(row["clients"]) for row in told.values())
    head, *lines = read(tmp_path / "accuracies.csv")
    assert sorted(float(dict(zip(head, line, strict=True))["accuracy"]) for line in lines) == sorted(
        share for row in told.values() for share in row["accuracy"].values()
    )
    assert len(read(tmp_path / "tsne.csv")) == 1 + 2 * 60
    assert len(read(tmp_path / "mmd.csv")) == 1 + 2 * (6 * 5 // 2 + 1)


def test_what_was_not_asked_for_leaves_no_file(tmp_path: Path) -> None:
    runs = [read_run(write_full_run(tmp_path / "a-0", Made(method="fedavg", models=("global",))))]
    write_csv(build(runs), called(runs), tmp_path / "csv")
    there = {path.name for path in (tmp_path / "csv").iterdir()}
    assert {"rounds.csv", "clients.csv", "numbers.csv"} <= there
    assert not there & {"matching.csv", "mmd.csv", "tsne.csv"}


def test_words_that_a_spreadsheet_would_run_are_quoted(tmp_path: Path) -> None:
    run = write_full_run(tmp_path / "a-0", Made(rounds=1))
    row = json.loads((run / "metrics.jsonl").read_text())
    evil = '=cmd|"/c calc"!A1'
    row["failures"] = [{"client": "c00", "reason": evil}, {"client": "c01", "reason": "-1"}]
    (run / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    runs = [read_run(run)]
    write_csv(build(runs), called(runs), tmp_path / "csv")
    lines = read(tmp_path / "csv" / "failures.csv")
    assert [line[3] for line in lines[1:]] == [f"'{evil}", "'-1"]
    gaps = read(tmp_path / "csv" / "bytes.csv")
    assert not any(text.startswith("'") for line in gaps for text in line)


def test_tables_of_a_paper_are_tabulars(tmp_path: Path, page: Page) -> None:
    write_latex(page, tmp_path)
    assert {path.stem for path in tmp_path.iterdir()} == {table.key for table in grids(page) if table.paper}
    text = (tmp_path / "results.tex").read_text()
    assert text.count(r"\begin{tabular}{lrrr}") == text.count(r"\end{tabular}") == 1
    for rule in (r"\toprule", r"\midrule", r"\bottomrule"):
        assert text.count(rule + "\n") == 1
    assert r"\fedstillpublished{70.0\,\%}" in text
    table = next(table for table in grids(page) if table.key == "results")
    body = text.partition("\\midrule\n")[2].partition("\\bottomrule")[0].splitlines()
    assert len(body) == len(table.rows)
    for line, row in zip(body, table.rows, strict=True):
        assert line.endswith(r" \\")
        assert line.count(" & ") == len(row) - 1


def test_the_best_is_bold_and_nothing_means_what_it_should_not() -> None:
    cells = (cell("a_b & 100% #1 {x} $y$ \\z ~ ^"), Cell("84.3 ± 1.2 %", 0.843, 0.012, "best"))
    text = tabular(Grid("k", "A % title\nof two lines", ("A", "B"), (cells,), note="50 % of it"))
    assert r"a\_b \& 100\% \#1 \{x\} \$y\$ \textbackslash{}z \textasciitilde{} \textasciicircum{}" in text
    assert r"\fedstillbest{84.3 $\pm$ 1.2 \%}" in text
    assert escape('a "b"') == "a ''b''"  # in every font encoding
    assert text.startswith("% A % title of two lines. Needs")
    assert r"\providecommand{\fedstillbest}[1]{\textbf{#1}}" in text


@given(st.text(max_size=40))
def test_escaped_text_is_plain_and_on_one_line(text: str) -> None:
    plain = escape(text)
    bare = re.sub(r"\\text\w+\{\}|\\dots\{\}|\\[{}$&#_%,]|\$\\pm\$|\$-\$|^\{\[\}", "", plain)
    assert not set(bare) & set("\\{}$&#_%~^\n\r")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["png", "svg"])
def test_every_chart_is_a_picture(tmp_path: Path, page: Page, kind: str) -> None:
    write_figures(page, tmp_path, "png" if kind == "png" else "svg")
    there = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert there.keys() == {f"{each.chart.key}.{kind}" for each in charts(page)}
    begins = b"\x89PNG" if kind == "png" else b"<?xml"
    assert all(content.startswith(begins) for content in there.values())


@pytest.mark.parametrize("option", ["csv", "latex", "markdown", "png", "svg"])
def test_a_file_in_a_folders_place_is_refused_before_anything_is_written(
    tmp_path: Path, folders: list[Path], option: str
) -> None:
    taken = tmp_path / "taken"
    taken.write_text("mine")
    with pytest.raises(InputError, match=f"--{option} .*taken: it is a file; give a folder"):
        write_report(folders, tmp_path / "report.html", **{option: taken})
    assert taken.read_text() == "mine"
    assert not (tmp_path / "report.html").exists()


def test_what_stands_in_the_way_is_named_before_anything_is_written(tmp_path: Path, folders: list[Path]) -> None:
    taken = tmp_path / "taken"
    taken.write_text("mine")
    with pytest.raises(InputError, match=r"--png .*taken/figures: .*taken is a file; give a folder"):
        write_report(folders, tmp_path / "report.html", png=taken / "figures")
    with pytest.raises(InputError, match=r"--out .*: it is a folder; give the HTML file to write"):
        write_report(folders, tmp_path)
    with pytest.raises(InputError, match="taken: it is a file; give a folder"):
        write_report(folders, taken / "report.html")
    assert list(tmp_path.iterdir()) == [taken]


def test_the_command_writes_what_it_is_asked_for(tmp_path: Path) -> None:
    run = write_full_run(tmp_path / "a-0", Made(method="fedavg", models=("global",), rounds=1, tested=False))
    folders = {name: tmp_path / name for name in ("csv", "latex", "svg")}
    options = [text for name, folder in folders.items() for text in (f"--{name}", str(folder))]
    done = CliRunner().invoke(app, ["report", str(run), "--out", str(tmp_path / "r.html"), *options])
    assert done.exit_code == 0, done.output
    assert "</html>" in (tmp_path / "r.html").read_text()
    assert (folders["csv"] / "numbers.csv").exists()
    assert (folders["latex"] / "numbers.tex").exists()
    assert (folders["svg"] / "accuracy-by-round.svg").exists()
