"""One self-contained HTML page of one or more runs: no network, one file to keep or to send.

finding.py                              folders → the runs that they stand for
reading.py  rows.py  runs.py  evaluated.py  audited.py leakage.py  a run's folder → frozen values; what cannot be read is named
groups.py  roles.py                     runs that differ in their seed alone → one group; what groups are to each other
networks.py  layout.py                  which network a figure is of, and where it stands in a table
series.py                               the look of every curve
parts.py  cells.py  words.py            the values that sections are made of, and numbers as a reader wants them
intervals.py  ranking.py                95 % intervals; the best of a column
verdict.py                              the result in a few sentences
results.py  domains.py  summary.py  facts.py  accuracy.py …     the sections, each a value made of parts.py
page.py                                 runs → the page as a value
html.py  figures/  pictures.py  templates/      the page as HTML and SVG
export.py  latex.py  markdown.py        the same values as CSV, LaTeX, Markdown, PNG and SVG files
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fedstill.errors import InputError
from fedstill.files import write_text
from fedstill.report import export
from fedstill.report.finding import find
from fedstill.report.page import build, called
from fedstill.report.runs import read_run

__all__ = ["write_markdown", "write_report"]


def write_report(
    runs: Sequence[Path],
    out: Path,
    *,
    live: int | None = None,
    csv: Path | None = None,
    latex: Path | None = None,
    markdown: Path | None = None,
    png: Path | None = None,
    svg: Path | None = None,
    audit_pictures: bool = False,
) -> None:
    """Write the page of ``runs`` to ``out``, whole or not at all; and its tables and charts as files, where folders are given.

    Every number comes from the runs' ``metrics.jsonl``, ``experiment.toml``, ``partition.json``, ``summary.json`` and
    ``evaluation.json`` and ``audit.json``, and what a prior was trained on from its file's card; the same files give the same
    page, byte for byte. Runs whose settings differ in the seed alone are shown as one, with mean and sample standard deviation.
    What is damaged or missing is named on the page.

    Args:
        runs: folders that ``fedstill run`` wrote, or that hold such, as a sweep's; the page keeps their order.
        out: the HTML file.
        live: seconds after which a browser reads the page again; None for a page that does not change.
        csv: folder for every table, see :func:`fedstill.report.export.write_csv`.
        latex, markdown: folders for the tables that a paper prints, as booktabs tabulars and as Markdown.
        png, svg: folders for the charts.
        audit_pictures: whether the page has the pictures of audits, which show training images.

    Raises:
        InputError: no folder is given, one is not a run and holds none, or a file stands where a folder is to be, or a folder
            where a file.
        RunError: a file cannot be written.
    """
    from fedstill.report.html import render  # it draws, which is slow to import

    folders = {"--csv": csv, "--latex": latex, "--markdown": markdown, "--png": png, "--svg": svg}
    _check(runs, out, "--out")
    for option, folder in folders.items():
        if folder is not None:
            export.check(folder, option)
    read = [read_run(folder) for folder in find(runs)]
    page = build(read, live=live, audit_pictures=audit_pictures)
    write_text(out, render(page))
    if csv is not None:
        export.write_csv(page, called(read), csv)
    if latex is not None:
        export.write_latex(page, latex)
    if markdown is not None:
        export.write_markdown(page, markdown)
    if png is not None:
        export.write_figures(page, png, "png")
    if svg is not None:
        export.write_figures(page, svg, "svg")


def write_markdown(runs: Sequence[Path], path: Path) -> None:
    """Write the tables of results of ``runs`` into one Markdown file: accuracies in % as mean ± standard deviation with what is
    published beside them; averages over networks; and accuracies by client where clients are domains.

    Args:
        runs: as in :func:`write_report`.
        path: the file.

    Raises:
        InputError: no folder is given, one is not a run and holds none, or ``path`` is a folder.
        RunError: the file cannot be written.
    """
    _check(runs, path, "the table")
    export.write_results(build([read_run(folder) for folder in find(runs)]), path)


def _check(runs: Sequence[Path], file: Path, what: str) -> None:
    if not runs:
        raise InputError("a report needs at least one run: give the folder that 'fedstill run' wrote")
    if file.is_dir():
        kind = "HTML file" if what == "--out" else "file"
        raise InputError(f"{what} {file}: it is a folder; give the {kind} to write")
    export.check(file.parent, f"the folder of {what}")
