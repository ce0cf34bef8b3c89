"""One self-contained HTML page of one or more runs: no network, one file to keep or to send.

reading.py  runs.py  evaluated.py       a run's folder → frozen values; what cannot be read is named
groups.py  roles.py  series.py          runs that differ in their seed alone → one group; what groups are to each other
parts.py  cells.py  words.py            the values that sections are made of, and numbers as a reader wants them
intervals.py                            95 % intervals
verdict.py                              the result in a few sentences
summary.py  facts.py  accuracy.py …     the sections, each a value made of parts.py
page.py                                 runs → the page as a value
html.py  figures/  pictures.py  templates/      the page as HTML and SVG
export.py  latex.py                     the same values as CSV, LaTeX, PNG and SVG files
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fedstill.errors import InputError
from fedstill.files import write_text
from fedstill.report.export import check, write_csv, write_figures, write_latex
from fedstill.report.page import build, called
from fedstill.report.runs import read_run

__all__ = ["write_report"]


def write_report(
    runs: Sequence[Path],
    out: Path,
    *,
    live: int | None = None,
    csv: Path | None = None,
    latex: Path | None = None,
    png: Path | None = None,
    svg: Path | None = None,
) -> None:
    """Write the page of ``runs`` to ``out``, whole or not at all; and its tables and charts as files, where folders are given.

    Every number comes from the runs' ``metrics.jsonl``, ``experiment.toml``, ``partition.json``, ``summary.json`` and
    ``evaluation.json``, and what a prior was trained on from its file's card; the same files give the same page, byte for
    byte. Runs whose settings differ in the seed alone are shown as one, with mean and sample standard deviation. What is
    damaged or missing is named on the page.

    Args:
        runs: folders that ``fedstill run`` wrote; the page keeps their order.
        out: the HTML file.
        live: seconds after which a browser reads the page again; None for a page that does not change.
        csv: folder for every table, see :func:`fedstill.report.export.write_csv`.
        latex: folder for the tables that a paper prints, as booktabs tabulars.
        png, svg: folders for the charts.

    Raises:
        InputError: no folder is given, one is not a run, or a file stands where a folder is to be, or a folder where a file.
        RunError: a file cannot be written.
    """
    from fedstill.report.html import render  # it draws, which is slow to import

    if not runs:
        raise InputError("a report needs at least one run: give the folder that 'fedstill run' wrote")
    if out.is_dir():
        raise InputError(f"--out {out}: it is a folder; give the HTML file to write")
    check(out.parent, "the folder of --out")
    for option, folder in (("--csv", csv), ("--latex", latex), ("--png", png), ("--svg", svg)):
        if folder is not None:
            check(folder, option)
    read = [read_run(folder) for folder in runs]
    page = build(read, live=live)
    write_text(out, render(page))
    if csv is not None:
        write_csv(page, called(read), csv)
    if latex is not None:
        write_latex(page, latex)
    if png is not None:
        write_figures(page, png, "png")
    if svg is not None:
        write_figures(page, svg, "svg")
