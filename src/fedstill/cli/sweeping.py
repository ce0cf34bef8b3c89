"""The command sweep: methods × settings × seeds, and one page of them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedstill.cli.console import bytes_text, say_table, seconds_text
from fedstill.cli.imports import look_here
from fedstill.errors import InputError, RunError

if TYPE_CHECKING:
    from fedstill.sweep.estimate import Bill
    from fedstill.sweep.grid import Cell
    from fedstill.sweep.work import Done

__all__ = ["sweep"]

INTERRUPTED = 130


def sweep(
    files: Annotated[
        list[Path],
        typer.Argument(help="A file with a [sweep], or experiment files, each a method.", show_default=False),
    ],
    out: Annotated[Path | None, typer.Option(help="Folder of the sweep.", show_default="runs/NAME")] = None,
    seeds: Annotated[
        str | None, typer.Option(metavar="N,N,...", help="In place of the file's.", show_default=False)
    ] = None,
    vary: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=V,V,...", help="Run everything with each value: algorithm.ipc=1,5,10. Repeatable."),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a key in every cell: rounds=2. Repeatable."),
    ] = None,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Cells at a time.", show_default="as cores and memory allow")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what the sweep would cost, and do not start it.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object a finished cell on standard output.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing unless something is wrong.")] = False,
) -> None:
    """Run methods, settings and seeds, several at a time, and compare them on one page.

    The same command goes on where it was stopped, tries again what failed, and runs nothing twice.
    """
    from fedstill.sweep.grid import read, title

    look_here()
    cells = read(files, seeds=_numbers(seeds), vary=vary or (), settings=settings or ())
    place = out or Path("runs") / title(files)
    if dry_run:
        _dry_run(cells, place, jobs=jobs, as_json=as_json, quiet=quiet)
        return
    done = _work(cells, place, jobs=jobs, as_json=as_json, quiet=quiet)
    for each in done.failed:
        log = f"; its log is {each.log}" if each.log is not None else ""
        typer.echo(f"fedstill: {each.cell.name}: {each.why}{log}", err=True)
    if done.failed:
        count, of = len(done.failed), len(done.ended)
        them = "it" if count == 1 else "them"
        raise RunError(f"{count} of {of} cells failed; the others are kept, and the same command tries {them} again")
    if not quiet and not as_json:
        _say_done(done)


def _work(cells: Sequence[Cell], out: Path, *, jobs: int | None, as_json: bool, quiet: bool) -> Done:
    from fedstill.cli.cells import listener
    from fedstill.sweep.work import work

    try:
        with listener(as_json=as_json, quiet=quiet) as hears:
            return work(cells, out, jobs=jobs, hear=hears)
    except KeyboardInterrupt:
        typer.echo(
            "fedstill: interrupted; finished cells and whole rounds are kept: continue with the same command", err=True
        )
        raise typer.Exit(INTERRUPTED) from None


def _numbers(text: str | None) -> list[int] | None:
    if text is None:
        return None
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise InputError(f"--seeds {text}: write it as --seeds 0,1,2") from error


def _say_done(done: Done) -> None:
    pages = ", ".join(str(page) for page in (done.report, done.table) if page is not None)
    cpu = "" if done.cpu_seconds is None else f", {seconds_text(done.cpu_seconds)} of CPU"
    count = len(done.ended)
    typer.echo(
        f"done: {count} {'cell' if count == 1 else 'cells'} in {seconds_text(done.wall_seconds)}{cpu}; page and table: {pages}",
        err=True,
    )


def _dry_run(cells: Sequence[Cell], out: Path, *, jobs: int | None, as_json: bool, quiet: bool) -> None:
    from fedstill.sweep.estimate import bill

    def told(name: str) -> None:
        if not (quiet or as_json):
            typer.echo(f"estimating {name}", err=True)

    found = bill(cells, out, jobs=jobs, told=told)
    if as_json:
        typer.echo(json.dumps(dataclasses.asdict(found)))
        return
    _say_bill(found)


def _say_bill(found: Bill) -> None:
    from fedstill.cli.cells import plan_text

    cells = f"{found.cells} {'cell' if found.cells == 1 else 'cells'}"
    if not found.items:
        typer.echo(f"{cells}, all finished")
        return
    say_table(
        "what is left",
        ["setting", "", "cells", "rounds", "a cell", "memory"],
        [
            [
                item.name,
                "",
                str(item.cells),
                str(item.rounds),
                seconds_text(item.seconds),
                "–" if item.memory is None else bytes_text(item.memory),
            ]
            for item in found.items
        ],
    )
    before = f", {found.finished} of them finished" if found.finished else ""
    rounds = sum(item.rounds for item in found.items)
    typer.echo(f"{cells}{before}; {rounds} rounds left")
    typer.echo(plan_text(found.plan))
    typer.echo(f"longest cell about {seconds_text(found.longest)}; all about {seconds_text(found.seconds)}")
