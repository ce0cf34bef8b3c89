"""The page's tables and charts as files: CSV, LaTeX, Markdown, PNG and SVG."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal

from fedstill.errors import InputError
from fedstill.files import write_text
from fedstill.report.latex import tabular
from fedstill.report.markdown import table
from fedstill.report.parts import Cell, Grid, Page, charts, grids
from fedstill.report.rows import Private
from fedstill.report.runs import Run

__all__ = ["check", "write_csv", "write_figures", "write_latex", "write_markdown", "write_results"]

_RESULTS = ("results", "results-averages", "domains", "hostile")

Value = float | int | str | None


def check(folder: Path, option: str) -> None:
    """That ``folder``, given as ``option``, can be written into.

    Raises:
        InputError: it, or a folder that it is to lie in, is a file.
    """
    for each in (folder, *folder.parents):
        if each.exists() and not each.is_dir():
            what = "it" if each == folder else str(each)
            raise InputError(f"{option} {folder}: {what} is a file; give a folder, which is made where it is missing")


def write_csv(page: Page, runs: Sequence[tuple[str, Run]], folder: Path) -> None:
    """Write every table of ``page``, folded ones too, as ``KEY.csv``, with numbers as they were computed: shares are
    fractions, sizes bytes, times seconds. A column with spreads is followed by ``NAME, sd``.

    Beside them, a line for each thing that was measured: ``rounds.csv``, ``accuracies.csv`` (by model), ``clients.csv``,
    ``matching.csv``, ``nodes.csv`` (every check of a client that distils its own images) and, where they were asked for,
    ``mmd.csv`` and ``tsne.csv``.

    Args:
        page: what to write.
        runs: those behind it, each beside what it is called.
        folder: made where it is missing.

    Raises:
        RunError: a file cannot be written.
    """
    for grid in grids(page):
        write_text(folder / f"{grid.key}.csv", _text(_flat(grid)))
    for name, (head, rows) in _long(runs).items():
        if rows:
            write_text(folder / f"{name}.csv", _text([head, *rows]))


def write_latex(page: Page, folder: Path) -> None:
    """Write those tables of ``page`` that a paper prints as ``KEY.tex``, each a ``tabular`` to be ``\\input``.

    Raises:
        RunError: a file cannot be written.
    """
    for grid in grids(page):
        if grid.paper:
            write_text(folder / f"{grid.key}.tex", tabular(grid))


def write_markdown(page: Page, folder: Path) -> None:
    """Write those tables of ``page`` that a paper prints as ``KEY.md``.

    Raises:
        RunError: a file cannot be written.
    """
    for grid in grids(page):
        if grid.paper:
            write_text(folder / f"{grid.key}.md", table(grid))


def write_results(page: Page, path: Path) -> None:
    """Write the tables of results of ``page`` into one Markdown file; where one method was run, its numbers.

    Raises:
        RunError: the file cannot be written.
    """
    by_key = {grid.key: grid for grid in grids(page)}
    found = [by_key[key] for key in _RESULTS if key in by_key] or [by_key[key] for key in ("numbers",) if key in by_key]
    parts = [table(grid) for grid in found] or [f"{page.verdict}\n"]
    write_text(path, "\n".join([*parts, f"{page.footing}\n"] if page.footing else parts))


def write_figures(page: Page, folder: Path, kind: Literal["png", "svg"]) -> None:
    """Write every chart of ``page`` as ``KEY.png`` or ``KEY.svg``.

    Raises:
        RunError: a file cannot be written.
    """
    from fedstill.report.figures import save  # it draws, which is slow to import

    for chart in charts(page):
        save(chart, folder / f"{chart.chart.key}.{kind}", kind)


def _flat(grid: Grid) -> Iterator[list[Value]]:
    """A table's lines, a spread in a column of its own."""
    spread = [any(row[column].spread is not None for row in grid.rows) for column in range(len(grid.head))]
    head: list[Value] = []
    for name, has in zip(grid.head, spread, strict=True):
        head += [name, f"{name}, sd"] if has else [name]
    yield head
    for row in grid.rows:
        yield [value for cell, has in zip(row, spread, strict=True) for value in _values(cell, spread=has)]


def _values(cell: Cell, *, spread: bool) -> Iterator[Value]:
    yield cell.value
    if spread:
        yield cell.spread


def _text(lines: Iterable[Sequence[Value]]) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    for line in lines:
        writer.writerow([_safe(value) for value in line])
    return buffer.getvalue()


def _safe(value: Value) -> Value:
    """A spreadsheet would run a word that begins as a formula does, and reasons of failure come from other sites."""
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r") else value


def _long(runs: Sequence[tuple[str, Run]]) -> dict[str, tuple[list[Value], list[list[Value]]]]:
    tables: dict[str, tuple[list[Value], Callable[[Run], Iterator[list[Value]]]]] = {
        "rounds": (_ROUNDS, _rounds),
        "accuracies": (_ACCURACIES, _accuracies),
        "clients": (_CLIENTS, _clients),
        "matching": (_MATCHING, _matching),
        "nodes": (_NODES, _nodes),
        "mmd": (_MMD, _mmd),
        "tsne": (_TSNE, _tsne),
    }
    return {
        name: (["run", *head], [[label, *line] for label, run in runs for line in read(run)])
        for name, (head, read) in tables.items()
    }


_ROUNDS: list[Value] = [
    "round",
    "validation mean",
    "test mean",
    "bytes up",
    "bytes down",
    "bytes scoring",
    "seconds clients",
    "seconds server",
    "seconds distil",
    "seconds train",
    "seconds evaluate",
    "cpu seconds",
    "peak memory",
    "aggregated",
    "failures",
    "cosine before",
    "cosine after",
]


def _rounds(run: Run) -> Iterator[list[Value]]:
    for row in run.rows:
        yield [
            row.number,
            row.validation,
            row.test,
            row.bytes_up,
            row.bytes_down,
            row.bytes_scoring,
            *(row.seconds.get(phase) for phase in ("clients", "server", "distil", "train", "evaluate")),
            row.cpu_seconds,
            row.peak_memory,
            int(row.aggregated),
            len(row.failures),
            row.theory.before if row.theory is not None else None,
            row.theory.after if row.theory is not None else None,
        ]


_ACCURACIES: list[Value] = [
    "round",
    "model",
    "accuracy",
    "balanced accuracy",
    "calibration error",
    "test images",
    "attack success",
]


def _accuracies(run: Run) -> Iterator[list[Value]]:
    for row in run.rows:
        for model, accuracy in row.accuracy.items():
            scores = [
                accuracy,
                row.balanced.get(model),
                row.calibration.get(model),
                row.examples,
                row.attack.get(model),
            ]
            yield [row.number, model, *scores]


_CLIENTS: list[Value] = [
    "round",
    "client",
    "examples",
    "loss",
    "validation accuracy",
    "test accuracy",
    "test correct",
    "test images",
    "test balanced accuracy",
    "test calibration error",
    "epsilon",
    "delta",
    "noise",
    "update epsilon",
    "update delta",
    "update noise",
    "agreement",
    "worst agreement",
    "worst class",
    "flagged",
]


def _clients(run: Run) -> Iterator[list[Value]]:
    for row in run.rows:
        for client in row.clients:
            own = client.test
            tested = (
                [own.accuracy, own.correct, own.examples, own.balanced, own.calibration]
                if own is not None
                else [None] * 5
            )
            spent = [value for its in (client.private, client.update) for value in _spent(its)]
            seen = client.agreement
            agreed: list[Value] = [None] * 4
            if seen is not None:
                agreed = [seen.agreement, seen.worst, seen.where, int(seen.flagged)]
            line: list[Value] = [row.number, client.client, client.examples, client.loss, client.validation]
            yield [*line, *tested, *spent, *agreed]


def _spent(its: Private | None) -> list[Value]:
    return [None] * 3 if its is None else [its.epsilon, its.delta, its.noise]


_MATCHING: list[Value] = [
    "round",
    "client",
    "start",
    "end",
    "best",
    "lowest pixel",
    "highest pixel",
    "rate",
    "agreement",
    "restarts",
    "sick",
]


def _matching(run: Run) -> Iterator[list[Value]]:
    for row in run.rows:
        for client in row.clients:
            if (m := client.matching) is not None:
                losses = [m.start, m.end, m.best, m.pixel_min, m.pixel_max, m.rate, m.conditioning]
                yield [row.number, client.client, *losses, m.retries, m.sick]


_NODES: list[Value] = [
    "round",
    "client",
    "attempt",
    "step",
    "validation accuracy",
    "validation accuracy, sd",
    "rate",
    "lowest pixel",
    "highest pixel",
    "chosen",
    "state of the attempt",
]


def _nodes(run: Run) -> Iterator[list[Value]]:
    for row in run.rows:
        for client in row.clients:
            if (course := client.course) is None:
                continue
            for index, attempt in enumerate(course.attempts):
                for place, c in enumerate(attempt.checks):
                    seen = [c.step, c.accuracy, c.deviation, c.rate, c.pixel_min, c.pixel_max]
                    chosen = int(course.place == (index, place))
                    yield [row.number, client.client, index + 1, *seen, chosen, attempt.state]


_MMD: list[Value] = ["features", "client", "other client", "squared mmd", "standard error"]


def _mmd(run: Run) -> Iterator[list[Value]]:
    found = run.evaluated.mmd
    if found is None:
        return
    for row, client in enumerate(found.clients):
        for column in range(row + 1, len(found.clients)):
            other = found.clients[column]
            yield [found.features, client, other, found.squared[row][column], found.error[row][column]]
    for half in found.halves:
        yield [found.features, half.client, f"{half.client}, other half", half.squared, half.error]


_TSNE: list[Value] = ["features", "client", "class", "x", "y"]


def _tsne(run: Run) -> Iterator[list[Value]]:
    found = run.evaluated.tsne
    for point in found.points if found is not None else ():
        yield [found.features if found is not None else "", point.client, point.label, point.x, point.y]
