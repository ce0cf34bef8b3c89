"""Trials at work: a batch is proposed, its runs are worked on as a sweep's cells are, and what they came to decides the next.

What is left in the folder of a search:

    trial-000/         the run of each, as ``fedstill run`` leaves it; with several seeds ``trial-000-<seed>``
    logs/<run>.log     what a run wrote that is no result: the traceback of a failure, warnings
    tune.json          every trial: parameters, score, state, rounds, seconds
    best.toml          the experiment with the best parameters
    report.html        the page of the finished trials' runs
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fedstill.errors import InputError, RunError
from fedstill.folder import EXPERIMENT, REPORT, locked
from fedstill.search import propose
from fedstill.sweep.crew import Crew
from fedstill.sweep.grid import Cell
from fedstill.sweep.hearing import Deaf, Ended, Listener, Tally
from fedstill.sweep.machine import plan_for
from fedstill.sweep.record import SWEEP, Spent
from fedstill.sweep.state import check_files, check_prior, look
from fedstill.sweep.work import CELLS
from fedstill.tune import record
from fedstill.tune.hearing import Ears
from fedstill.tune.judge import Judge, Tried
from fedstill.tune.plan import Search

__all__ = ["Done", "work"]

_PATIENCE = 30.0


@dataclass(frozen=True)
class Done:
    """What a search came to.

    Attributes:
        out: its folder.
        tried: its trials, in order.
        best: the best of those that are finished.
        file: the experiment with its values.
        report: the page of the finished trials.
        exhausted: there was nothing more to try.
        wall_seconds: that it took, earlier sittings included.
        cpu_seconds: of its runs' processes; None where the system does not tell.
    """

    out: Path
    tried: tuple[Tried, ...]
    best: Tried
    file: Path
    report: Path
    exhausted: bool
    wall_seconds: float
    cpu_seconds: float | None


def work(
    wanted: Search,
    out: str | Path,
    *,
    trials: int = 20,
    jobs: int = 1,
    hear: Listener | None = None,
    told: Callable[[Tried], None] | None = None,
) -> Done:
    """Try parameters until there are so many trials. Those that ``out`` holds are kept; one that was interrupted goes on.

    Trials are proposed ``jobs`` at a time, from what the batches before came to, and pruned by them: with the same ``jobs`` the
    same trials, whichever of a batch ends first and however often the search was stopped. A trial that fails counts as worse
    than all others; it is tried again when its folder is removed.

    Args:
        wanted: of :func:`fedstill.tune.read`.
        out: folder of the search.
        trials: how many, those before included.
        jobs: runs at a time.
        hear: hears how it goes, as a sweep's cells.
        told: hears of each trial when it begins and when it is over, and first of those that are over already.

    Raises:
        InputError: before anything is run: ``out`` is no folder for a search, or holds one of other settings, or another one is
            at work there; data are missing. Later: the method has no validation scores.
        RunError: no trial finished; the disk refuses a file, or the system a process.
    """
    out, hear, told = Path(out), hear or Deaf(), told or (lambda tried: None)
    _check(wanted, out)
    begin = Spent.now()
    with (
        locked(out, note=hear.note, who="search"),
        locked(out, note=hear.note, name=CELLS, who="search's run", patience=_PATIENCE) as lock,
    ):
        tried, before = record.behind(out, wanted)
        keeps = () if lock is None else (lock,)
        sitting = _Sitting(wanted, out, trials, jobs, hear, told, keeps, begin, before, tried)
        for each in tried:
            if each.state != "begun":
                told(each)
        try:
            sitting.work()
        finally:
            sitting.write()
        report = _publish(wanted, out, sitting.tried)
        sitting.write()  # the page took its time too
    spent = sitting.spent()
    leader = record.best(wanted, sitting.tried)
    if leader is None or report is None:
        first = next(each for each in sitting.tried if each.state != "finished")
        count = len(sitting.tried)
        raise RunError(
            f"{'the trial failed' if count == 1 else f'all {count} trials failed'}; {first.name}: {first.failure}"
        )
    return Done(
        out,
        tuple(sitting.tried),
        leader,
        out / record.BEST,
        report,
        exhausted=len(sitting.tried) < trials,
        wall_seconds=spent.wall,
        cpu_seconds=spent.cpu,
    )


def _check(wanted: Search, out: Path) -> None:
    record.behind(out, wanted)
    for name, what in ((EXPERIMENT, "a run"), (SWEEP, "a sweep")):
        if (out / name).exists():
            raise InputError(f"{out} holds {what}, and a search's folder holds a folder a trial: give another --out")
    check_files(wanted.experiment)
    if not any(key == "algorithm.generator" for key in wanted.space.parts):
        check_prior(wanted.experiment)


@dataclass
class _Sitting:
    """A search from where it is found to its end, or to where it is stopped."""

    wanted: Search
    out: Path
    trials: int
    jobs: int
    hear: Listener
    told: Callable[[Tried], None]
    keeps: tuple[int, ...]
    begin: Spent
    before: Spent
    tried: list[Tried]
    _runs: int = 0  # that have ended in this sitting
    _took: float = 0.0  # seconds, until the last of them had
    _began: float = field(default_factory=time.monotonic)

    def work(self) -> None:
        while batch := self._batch():
            for place in range(len(self.wanted.seeds)):
                self._work_on(batch, place)

    def spent(self) -> Spent:
        return self.before.plus(self.begin, Spent.now())

    def write(self) -> None:
        record.write(self.out, self.wanted, self.tried, self.spent(), jobs=self.jobs)

    def _batch(self) -> list[int]:
        """Numbers of the trials that are worked on next: those that are not over, else new ones."""
        begun = [each for each in self.tried if each.state == "begun"]
        if begun:
            return [each.number for each in begun if each.batch == begun[0].batch]
        done = [each.trial(self.wanted.experiment.rounds) for each in self.tried]
        count = min(self.jobs, self.trials - len(done))
        if count <= 0:
            return []
        number = self.tried[-1].batch + 1 if self.tried else 0
        proposed = propose(self.wanted.space, done, count, self.wanted.seed)
        new = [Tried(len(done) + place, number, params) for place, params in enumerate(proposed)]
        self.tried += new
        self.write()
        return [each.number for each in new]

    def _work_on(self, batch: Sequence[int], place: int) -> None:
        """Work on a batch's runs of one seed, as far as its trials are not over."""
        first = self.tried[batch[0]].batch
        rounds, seeds = self.wanted.experiment.rounds, len(self.wanted.seeds)
        earlier = [each.trial(rounds) for each in self.tried if each.batch < first]
        judge = Judge(earlier, rounds, seeds, self.wanted.prune)
        cells = {cell.name: cell for number in batch if (cell := self._begun(number, place, judge)) is not None}
        numbers = {self._names(number)[place]: number for number in batch}
        held = {name: look(self.out / name, cell.experiment) for name, cell in cells.items()}
        todo = [cell for name, cell in cells.items() if not held[name].finished]
        if not todo:
            return
        curves = {name: dict(enumerate(each.validation, 1)) for name, each in held.items()}

        def enough(cell: Cell, row: Mapping[str, Any]) -> bool:
            curve = curves[cell.name]
            curve[row["round"]] = row["validation"]["mean"]
            return judge.cut(tuple(curve[number] for number in sorted(curve)), place) is not None

        crew = Crew(
            out=self.out,
            cells=todo,
            held=held,
            plan=plan_for(todo, jobs=self.jobs, need=None),
            hear=Ears(self.hear, self._tally),
            keeps=self.keeps,
            ended={},
            enough=enough,
        )
        with closing(crew.work()) as ending:
            for ended in ending:
                self._end(ended, numbers[ended.cell.name], place, judge)

    def _begun(self, number: int, place: int, judge: Judge) -> Cell | None:
        """The trial's run of a seed; None where the trial is over, which what its runs hold may tell only now."""
        if self.tried[number].state != "begun":
            return None
        try:
            cells = self._cells(number)
        except InputError as error:
            self._over(replace(self.tried[number], state="failed", failure=str(error)))
            return None
        if place == 0:
            self.told(self.tried[number])
        self._settle(number, judge)
        return cells[place] if self.tried[number].state == "begun" else None

    def _end(self, ended: Ended, number: int, place: int, judge: Judge) -> None:
        self._runs += 1
        self._took = time.monotonic() - self._began
        self._settle(number, judge)
        if self.tried[number].state == "begun" and ended.state == "failed":
            self._over(replace(self.tried[number], state="failed", failure=ended.why))
        tried = self.tried[number]
        known = [value for value in (tried.curves[place] if len(tried.curves) > place else ()) if value is not None]
        told = replace(ended, accuracy={"validation": max(known)} if known else {}, state="finished", why=tried.failure)
        if tried.state in ("pruned", "failed"):
            told = replace(told, state=tried.state, rounds=len(tried.curves[-1]) if tried.curves else 0)
        self.hear.ended(told, self._tally())

    def _settle(self, number: int, judge: Judge) -> None:
        """Let the trial be what its runs' folders make of it."""
        runs = [look(self.out / cell.name, cell.experiment) for cell in self._cells(number)]
        settled = judge.settled(self.tried[number], runs)
        self.tried[number] = settled
        if settled.state != "begun":
            self._over(settled)

    def _over(self, tried: Tried) -> None:
        self.tried[tried.number] = tried
        self.write()
        self.told(tried)

    def _cells(self, number: int) -> list[Cell]:
        tried = self.tried[number]
        return [
            Cell(name, tried.name, self.wanted.trial(tried.params, seed), tried.params, seed)
            for name, seed in zip(self._names(number), self.wanted.seeds, strict=True)
        ]

    def _names(self, number: int) -> list[str]:
        return record.runs_of(self.wanted, self.tried[number])

    def _tally(self) -> Tally:
        over = [each for each in self.tried if each.state != "begun"]
        failed = sum(each.state == "failed" for each in over)
        total = max(self.trials, len(self.tried))
        left = None
        if self._runs:
            since = time.monotonic() - self._began - self._took
            left = max(0.0, self._took / self._runs * (total - len(over)) * len(self.wanted.seeds) - since)
        return Tally(len(over) - failed, failed, total, left)


def _publish(wanted: Search, out: Path, tried: Sequence[Tried]) -> Path | None:
    """The page of the finished trials' runs, best first; None where there is none."""
    from fedstill.report import write_report  # it draws: matplotlib is slow to import

    finished = [each for each in tried if each.value is not None]
    if not finished:
        return None
    finished.sort(key=lambda each: -(each.value or 0.0))
    write_report([out / name for each in finished for name in record.runs_of(wanted, each)], out / REPORT)
    return out / REPORT
