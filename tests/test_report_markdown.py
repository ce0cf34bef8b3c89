"""Tables as Markdown: what a reader of the rendered page sees is what the table says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from fedstill.cli import app
from fedstill.errors import InputError
from fedstill.report import write_markdown
from fedstill.report.export import write_markdown as write_each
from fedstill.report.markdown import table
from fedstill.report.page import build
from fedstill.report.parts import Cell, Grid, cell, grids
from fedstill.report.runs import read_run
from rundirs import write_run
from runs_fixture import Made, write_comparison, write_full_run

PUBLISHED = {"published": {"source": "A paper"}, "published.accuracy": {"resnet18": 0.7}}
MADE = {"feddgm": Made(settings=PUBLISHED), "fedavg": Made(method="fedavg", models=("global",))}


def rendered(text: str) -> list[list[str]]:
    """The cells of the table in ``text``, its rule left out, as GitHub shows them."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    rows = [re.split(r"(?<!\\)(?:\\\\)*\|", line)[1:-1] for line in [lines[0], *lines[2:]]]
    return [[re.sub(r"\\(.)", r"\1", part.strip()) for part in row] for row in rows]


def test_the_best_is_bold_a_published_value_in_italics_and_a_dash_neither() -> None:
    row = (cell("FedDGM"), Cell("84.3 ± 1.2 %", 0.843, 0.012, "best"), Cell("73.7 %", 0.737, tone="mute"))
    none = (cell("FedAvg"), Cell("–", None), Cell("–", None, tone="mute"))
    text = table(Grid("k", "A title", ("Method", "convnet", "convnet, published"), (row, none), note="A note."))
    assert text == (
        "**A title**\n\n"
        "| Method | convnet | convnet, published |\n"
        "| --- | ---: | ---: |\n"
        "| FedDGM | **84.3 ± 1.2 %** | *73.7 %* |\n"
        "| FedAvg | – | – |\n\n"
        "A note.\n"
    )


def test_a_heading_of_rows_stands_once() -> None:
    rows = tuple((cell(alpha), cell(name)) for alpha in ("alpha 0.5", "alpha 0.1") for name in ("a", "b"))
    text = table(Grid("k", "A title", ("Setting", "Method"), rows, 2, grouped=True))
    assert [line.split(" | ")[0] for line in text.splitlines()[4:]] == ["| alpha 0.5", "| ", "| alpha 0.1", "| "]
    assert text.splitlines()[3] == "| --- | --- |"


@pytest.mark.parametrize(
    "evil", ["a|b", "*a*", "_a_", "`a`", "[a](b)", "<b>", "a\\|b", "a&lt;b", "$x$", "~~a~~", "a\nb"]
)
def test_nothing_means_what_it_should_not(evil: str) -> None:
    text = table(Grid("k", evil, ("A", evil), ((cell(evil), cell("1")),), note=evil))
    head, row = rendered(text)
    assert (head[1], row) == (evil.replace("\n", " "), [evil.replace("\n", " "), "1"])
    assert not re.search(r"(?<!\\)[`_\[\]<>~&$]", text)
    assert len(text.splitlines()) == 7


@given(st.text(max_size=40))
def test_any_text_stays_in_its_cell(told: str) -> None:
    head, row = rendered(table(Grid("k", "t", ("A", "B"), ((cell(told), cell("1")),))))
    assert (head, row) == (["A", "B"], [" ".join(told.split()), "1"])


def test_the_tables_of_a_paper_are_files_that_say_what_the_page_says(tmp_path: Path) -> None:
    runs = write_comparison(tmp_path, MADE, seeds=(0, 1))
    page = build([read_run(run) for run in runs])
    write_each(page, tmp_path / "md")
    papers = {grid.key: grid for grid in grids(page) if grid.paper}
    assert {path.name for path in (tmp_path / "md").iterdir()} == {f"{key}.md" for key in papers}
    for key, grid in papers.items():
        head, *rows = rendered((tmp_path / "md" / f"{key}.md").read_text(encoding="utf-8"))
        assert head == list(grid.head)
        plain = [[part.strip("*") for part in row] for row in rows]
        assert plain == [[one.text.replace("\N{NARROW NO-BREAK SPACE}", " ") for one in row] for row in grid.rows]


def test_the_command_writes_markdown(tmp_path: Path) -> None:
    run = write_full_run(tmp_path / "a-0", Made(method="fedavg", models=("global",), rounds=1))
    options = ["--out", str(tmp_path / "r.html"), "--markdown", str(tmp_path / "md")]
    done = CliRunner().invoke(app, ["report", str(run), *options])
    assert done.exit_code == 0, done.output
    assert (
        (tmp_path / "md" / "numbers.md")
        .read_text(encoding="utf-8")
        .startswith("**After round 1**\n\n| Method | Model |")
    )


def test_one_file_holds_the_results_and_what_clients_reached(tmp_path: Path) -> None:
    domains = ("MNIST", "USPS")
    made = {name: Made(method=name, models=("global",), domains=domains) for name in ("fedavg", "fedprox")}
    runs = write_comparison(tmp_path, made, seeds=(0, 1))
    write_markdown(runs, tmp_path / "new" / "table.md")
    text = (tmp_path / "new" / "table.md").read_text(encoding="utf-8")
    titles = ["**Accuracy by method**", "**Accuracy on clients’ own test images**"]
    assert [line for line in text.splitlines() if line.startswith("**")] == titles
    assert "| Method | MNIST | USPS | mean |" in text
    assert "\n\nMean ± sample standard deviation over 2 seeds. 4 runs: " in text
    assert text.endswith(".\n")


def test_the_file_of_one_method_holds_its_numbers_and_of_none_says_so(tmp_path: Path) -> None:
    alone = write_full_run(tmp_path / "a-0", Made())
    write_markdown([alone], tmp_path / "one.md")
    assert (tmp_path / "one.md").read_text(encoding="utf-8").startswith("**After round 3**\n\n| Method | Model |")
    write_markdown([write_run(tmp_path / "b", curves={})], tmp_path / "none.md")
    assert (tmp_path / "none.md").read_text(
        encoding="utf-8"
    ) == "No round has been scored yet, so there is no result to state.\n"


def test_the_file_needs_a_run_and_a_place(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a report needs at least one run"):
        write_markdown([], tmp_path / "t.md")
    with pytest.raises(InputError, match=r"the table .*: it is a folder; give the file to write"):
        write_markdown([tmp_path], tmp_path)
