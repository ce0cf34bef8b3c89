"""Work through the cells of a sweep, several at a time, and leave one page of all of them.

What is left in the folder of a sweep:

    <cell>/            the run of each, as ``fedstill run`` leaves it
    logs/<cell>.log    what a cell wrote that is no result: the traceback of a failure, warnings
    report.html        the page of all runs
    sweep.json         the cells with their state, and what the whole has taken
    table.md           the table of results
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from fedstill.errors import FedstillError, InputError
from fedstill.folder import EXPERIMENT, REPORT, check_place, locked
from fedstill.sweep import record
from fedstill.sweep.crew import Crew, outcome
from fedstill.sweep.estimate import as_run, estimate
from fedstill.sweep.grid import Cell
from fedstill.sweep.hearing import Deaf, Ended, Listener, Opening
from fedstill.sweep.machine import Plan, plan_for
from fedstill.sweep.state import Held, check_files, check_prior, look, refresh

__all__ = ["Done", "work"]

TABLE = "table.md"
CELLS = ".cells"
"""The lock that every cell's process holds until it ends: those of a killed sweep are waited for."""

_PATIENCE = 30.0


@dataclass(frozen=True)
class Done:
    """What a sweep came to.

    Attributes:
        out: its folder.
        ended: its cells, in order.
        report, table: the page of all runs, and its table of results as Markdown; None where no run has begun.
        wall_seconds: that it took, earlier sittings included.
        cpu_seconds: of its cells' processes; None where the system does not tell.
    """

    out: Path
    ended: tuple[Ended, ...]
    report: Path | None
    table: Path | None
    wall_seconds: float
    cpu_seconds: float | None

    @property
    def failed(self) -> tuple[Ended, ...]:
        return tuple(each for each in self.ended if each.state == "failed")


def work(cells: Sequence[Cell], out: str | Path, *, jobs: int | None = None, hear: Listener | None = None) -> Done:
    """Run all cells that are not finished, each in a process of its own and a folder of its own in ``out``.

    A cell that is finished is not run again: only what is published of it is written anew. One that was interrupted goes on,
    and so does one of which more rounds are asked for. A cell that fails does not stop the others; the same call tries it again.
    One whose prior is missing fails so, which is said before.

    Args:
        cells: of :func:`fedstill.sweep.read`.
        out: folder of the sweep.
        jobs: cells at a time; None: as cores and memory allow, see :func:`fedstill.sweep.machine.plan`. A cell beside others
            works in one process; one at a time has as many as its experiment says.
        hear: hears how it goes.

    Raises:
        InputError: before anything is run: ``out`` is no folder for a sweep, or another one is at work there; a cell's folder
            holds a run of other settings; data or a device are missing.
        RunError: the disk refuses a file, or the system a process. What was run is kept.
    """
    out, hear = Path(out), hear or Deaf()
    _check(cells, out)
    if not out.exists():  # so that it is not made for nothing
        _check_all_files(cells)
    begin = record.Spent.now()
    with (
        locked(out, note=hear.note, who="sweep"),
        locked(out, note=hear.note, name=CELLS, who="sweep's cell", patience=_PATIENCE) as lock,
    ):
        before = record.behind(out, note=hear.note)
        held = {cell.name: look(out / cell.name, cell.experiment) for cell in cells}
        todo = [cell for cell in cells if not held[cell.name].finished]
        _check_all_files(todo)
        _tell_missing_priors(todo, hear)
        kept = [outcome(cell, out, held[cell.name], kept=True) for cell in cells if held[cell.name].finished]
        for each in kept:
            refresh(each.out, each.cell.experiment, note=hear.note)
        chosen = _plan(todo, held, jobs, hear)
        crew = Crew(
            out=out,
            cells=cells,
            held=held,
            plan=chosen,
            hear=hear,
            keeps=() if lock is None else (lock,),
            ended={each.cell.name: each for each in kept},
        )
        hear.opening(Opening(out, cells, kept, chosen, crew.tally()))

        def write() -> record.Spent:
            spent = before.plus(begin, record.Spent.now())
            record.write(out, cells, held, crew.ended, spent, jobs=chosen.jobs)
            return spent

        try:
            with closing(crew.work()) as ending:
                for _ in ending:
                    write()
            begun = _publish(cells, out)
        finally:
            spent = write()
    ended = tuple(crew.ended[cell.name] for cell in cells)
    page, table = (out / REPORT, out / TABLE) if begun else (None, None)
    return Done(out, ended, page, table, spent.wall, spent.cpu)


def _check(cells: Sequence[Cell], out: Path) -> None:
    if not cells:
        raise InputError("a sweep needs at least one cell")
    check_place(out)
    if (out / EXPERIMENT).exists():
        raise InputError(f"{out} holds a run, and a sweep's folder holds a folder a run: give another --out")


def _check_all_files(cells: Sequence[Cell]) -> None:
    for cell in cells:
        try:
            check_files(cell.experiment)
        except InputError as error:
            raise InputError(f"{cell.name}: {error}") from error


def _tell_missing_priors(cells: Sequence[Cell], hear: Listener) -> None:
    told: set[str] = set()
    for cell in cells:
        try:
            check_prior(cell.experiment)
        except InputError as error:
            if str(error) not in told:
                told.add(str(error))
                hear.note(f"{error}; cells that need it fail until it is there, the others are run", cell)


def _plan(todo: Sequence[Cell], held: dict[str, Held], jobs: int | None, hear: Listener) -> Plan:
    """What a cell takes is known from those that were run before, or else estimated from the first."""
    need = max((each.peak_memory for each in held.values() if each.peak_memory), default=None)
    chosen = plan_for(todo, jobs=jobs, need=need)
    if need is not None or jobs is not None or chosen.jobs == 1:
        return chosen
    hear.measuring(todo[0])
    try:
        need = estimate(as_run(todo[0].experiment, chosen.jobs))["memory"]
    except FedstillError as error:
        hear.note(f"the memory of a cell is not known, as {todo[0].name} cannot be estimated: {error}")
        return chosen
    return plan_for(todo, jobs=jobs, need=need)


def _publish(cells: Sequence[Cell], out: Path) -> bool:
    """The page and the table of all runs that have begun; whether there is one."""
    from fedstill.report import write_markdown, write_report  # they draw: matplotlib is slow to import

    runs = [out / cell.name for cell in cells if (out / cell.name / EXPERIMENT).exists()]
    if runs:
        write_report(runs, out / REPORT)
        write_markdown(runs, out / TABLE)
    return bool(runs)
