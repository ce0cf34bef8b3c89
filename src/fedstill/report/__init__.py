"""One self-contained HTML page of one or more runs: no network, no script, one file to keep or to send.

runs.py      a run's folder → frozen values; what cannot be read is named
groups.py    runs that differ in their seed alone → one group with a spread
verdict.py   the result in at most three sentences
figures.py   inline SVG
pictures.py  distilled images
facts.py  accuracy.py  matching.py  costs.py    the page's sections as values, made of parts.py
page.py      all of it → the template, templates/page.html.j2
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fedstill.errors import InputError
from fedstill.files import write_text
from fedstill.report.page import render
from fedstill.report.runs import read_run

__all__ = ["write_report"]


def write_report(runs: Sequence[Path], out: Path) -> None:
    """Write the page of ``runs`` to ``out``, whole or not at all.

    Every number comes from the runs' ``metrics.jsonl``, ``experiment.toml``, ``partition.json`` and
    ``summary.json``, and what a prior was trained on from its file's card; the same files give the same page, byte for
    byte. Runs whose settings differ in the seed alone are
    shown as one, with mean and sample standard deviation. What is damaged or missing is named on the page.

    Args:
        runs: folders that ``fedstill run`` wrote; the page keeps their order.
        out: the HTML file.

    Raises:
        InputError: no folder is given, or one is not a run.
        RunError: the page cannot be written.
    """
    if not runs:
        raise InputError("a report needs at least one run: give the folder that 'fedstill run' wrote")
    write_text(out, render([read_run(folder) for folder in runs]))
