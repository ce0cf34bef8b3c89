"""A run: the loop body that evaluates, checkpoints and records each round. The command line and Python share it.

from fedstill import Experiment, drive

done = drive(Experiment.read("experiment.toml"), out="runs/first")
print(done.accuracy)
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from fedstill import checkpoint, folder
from fedstill.algorithms.protection import is_spent
from fedstill.bundle import Bundle
from fedstill.engines.memory import Memory
from fedstill.engines.recording import Recording, set_back
from fedstill.errors import InputError, RunError
from fedstill.experiment import PROVENANCE, Experiment, Parts
from fedstill.files import sweep, write_bytes, write_json, write_text
from fedstill.folder import EXPERIMENT, FAILURES, FEDERATION, METRICS, PARTITION, REPORT, SUMMARY, resume_command
from fedstill.metrics import Measured, measure, reason
from fedstill.models.files import save_model
from fedstill.output import append_line, save_synthetic, whole_lines
from fedstill.reporter import Ending, Opening, Reporter, Silent
from fedstill.rounds import Desk, Failure, Round, rounds
from fedstill.runtime import describe, interrupts, pick_device, prepared, ran_out
from fedstill.settings import read_toml
from fedstill.trackers import tracked
from fedstill.workplace import Here, Venue, Workplace

__all__ = ["Finished", "drive"]

MODELS, BEST = "models", "best"


class _Spent(RunError):
    """No client that was asked has any budget left."""


@dataclass(frozen=True)
class Finished:
    """What a run came to.

    Attributes:
        out: folder of the run.
        rounds: number of the last round.
        selected_round: best by mean client validation; the last one where clients have no validation images.
        accuracy: of every model on the test images after the last round; ``models/best`` holds the selected round's
            models where it is another.
        report: the page.
    """

    out: Path
    rounds: int
    selected_round: int
    accuracy: Mapping[str, float | None]
    report: Path


def drive(
    experiment: Experiment,
    *,
    out: str | Path,
    resume: bool = False,
    overwrite: bool = False,
    reporter: Reporter | None = None,
    venue: Venue | None = None,
) -> Finished:
    """Run ``experiment`` and leave everything in ``out``.

    Args:
        experiment: what to run.
        out: folder of the run.
        resume: continue the run that ``out`` holds, to ``experiment.rounds``; to the same bits as if never interrupted.
        overwrite: remove the run that ``out`` holds, and nothing else in there.
        reporter: hears how it goes, beside the trackers that the experiment names; None: nobody.
        venue: where the clients are; None: on this machine.

    Raises:
        InputError: the experiment cannot be run, a tracker's package is missing, ``out`` holds another run, or, to resume, a
            run of another experiment, or a run is at work there.
        RunError: no client replied, memory ran out, or the disk refuses a file; what is kept and how to go on is said. Where all
            have spent their budgets there is no going on: the run is finished at the round before.
    """
    out = Path(out)
    folder.check(out, resume=resume, overwrite=overwrite)
    with prepared(experiment.threads):
        hear = tracked(reporter or Silent(), experiment.output.trackers)
        device = pick_device(experiment.engine.device)
        venue = venue or Here()
        parts = venue.parts(experiment)
        with folder.locked(out, note=hear.note):
            # once more: a run may have begun and ended here while the data were read
            folder.check(out, resume=resume, overwrite=overwrite)
            record = _Record(out, experiment, parts, device)
            # the engine first: where it cannot be had, a run that would be overwritten is still there
            with (
                interrupts() as check,
                venue.open(
                    experiment,
                    parts,
                    _desk(record, hear, check),
                    record.memory,
                    kept=out if resume else None,
                    note=hear.note,
                ) as there,
            ):
                return _recorded(record, there, hear, resume=resume, overwrite=overwrite)


def _recorded(record: _Record, there: Workplace, hear: Reporter, *, resume: bool, overwrite: bool) -> Finished:
    """The rounds that are left, each kept as it ends; whatever stops them, how to go on is said."""
    out, experiment = record.out, record.experiment
    state, done = record.restore(hear) if resume else record.begin(overwrite=overwrite)
    if there.record is not None:
        write_json(out / FEDERATION, dict(there.record))
    for remark in (*experiment.engine.remarks(), *record.parts.remarks(experiment.rounds)):
        hear.note(remark)
    hear.opening(Opening(experiment, out, tuple(record.rows), experiment.rounds, record.parts.data.skipped))
    ending: Ending = "failed"
    try:
        for row, left in _work(record, there, state, done, hear):
            done = row["round"]
            hear.row(row, left=left)
        finished = record.finish()
        ending = "finished"
        return finished
    except KeyboardInterrupt:
        ending = "interrupted"
        raise
    except (RunError, MemoryError, RuntimeError) as error:
        if isinstance(error, _Spent) and done:
            record.finish_at(done)
            raise RunError(
                f"{error}; no budget is left for it, so the run ends at round {done} and is kept in {out} as finished: a longer "
                "one begins anew, with a budget that lasts as long"
            ) from error
        why = str(error) if isinstance(error, RunError) else _exhausted(error)
        if why is None:
            raise
        kept = f"{done} {'round is' if done == 1 else 'rounds are'} kept in {out}"
        raise RunError(f"{why}; {kept}: continue with  {resume_command(out)}") from error
    finally:
        hear.closing(ending)


def _exhausted(error: MemoryError | RuntimeError) -> str | None:
    """What the machine lacked; None where it is the code that failed."""
    from joblib.externals.loky.process_executor import TerminatedWorkerError

    if isinstance(error, TerminatedWorkerError):
        return "the system ended a worker process, most likely for want of memory: use fewer --workers"
    if ran_out(error):
        return "memory ran out: free some, or use fewer --workers"
    return None


def _desk(record: _Record, hear: Reporter, check: Callable[[], None]) -> Desk:
    """The run's desk; ``check`` is called at every sign of progress."""

    def progress(phase: str, done: int, total: int) -> None:
        check()
        hear.progress(phase, done, total)

    return Desk(
        record.parts.seed,
        device=record.device,
        scratch=record.out / folder.SCRATCH,
        progress=progress,
    )


def _work(
    record: _Record, there: Workplace, state: Bundle, done: int, hear: Reporter
) -> Iterator[tuple[dict[str, Any], float]]:
    """Each round's line, and the seconds left."""
    experiment, parts = record.experiment, record.parts
    pace = _Pace(experiment.rounds)
    worked = rounds(
        parts.algorithm,
        Recording(there.engine, record.out / folder.MESSAGES) if experiment.output.keep_messages else there.engine,
        desk=there.desk,
        until=experiment.rounds,
        cohort=parts.cohort,
        quorum=experiment.quorum,
        farthest=experiment.farthest,
        start=done,
        state=state,
    )
    for measured in measure(
        _usable(record, worked, hear),
        parts,
        there.engine,
        scored=there.scored,
        state=state,
        device=record.device,
        gradients=experiment.evaluate.gradients,
        spent=there.spent,
        note=hear.note,
    ):
        number = measured.round.number
        record.log(number, measured.clients.failures)
        record.add(measured)
        over = parts.algorithm.task(measured.round.state) is None
        yield measured.row, 0.0 if over else pace.left(number)


class _Pace:
    """What is left of a run, in seconds, by the rounds since the first of this sitting, which may have done what is done once."""

    def __init__(self, rounds: int) -> None:
        self._rounds = rounds
        self._began = time.perf_counter()
        self._first: tuple[int, float] | None = None

    def left(self, number: int) -> float:
        """After round ``number``."""
        now = time.perf_counter()
        if self._first is None:
            self._first = number, now
            return (now - self._began) * (self._rounds - number)
        before, then = self._first
        return (now - then) / (number - before) * (self._rounds - number)


def _other_sets(before: Bundle, after: Bundle) -> bool:
    """Whether the distilled sets are not those of the round before."""
    old, new = before.members("synthetic"), after.members("synthetic")
    return old.keys() != new.keys() or any(
        not torch.equal(old[client][name], tensor) for client, group in new.items() for name, tensor in group.items()
    )


def _usable(record: _Record, worked: Iterator[Round], hear: Reporter) -> Iterator[Round]:
    """The same rounds, their failures kept; each is evaluated next.

    Raises:
        RunError: no client gave a usable reply; :class:`_Spent` where a budget is why, with each of them.
    """
    for each in worked:
        record.log(each.number, each.failures)
        unable = [failure for failure in each.failures if not failure.able]
        if not each.aggregated and {failure.client for failure in unable} >= set(each.cohort):
            failure = unable[0]
            over = all(is_spent(each.reason) for each in unable)
            raise (_Spent if over else RunError)(
                f"no client gave a usable reply in round {each.number}: '{failure.client}': {reason(failure)}"
            )
        hear.progress("evaluate", 0, 0)
        yield each


class _Record:
    """The run's folder: what is written there, and in which order."""

    def __init__(self, out: Path, experiment: Experiment, parts: Parts, device: str) -> None:
        self.out = out
        self.experiment = experiment
        self.parts = parts
        self.device = device
        self.memory = Memory(out / "memory")
        self.rows: list[dict[str, Any]] = []
        self.state = parts.start

    def begin(self, *, overwrite: bool) -> tuple[Bundle, int]:
        """A new run: the state before round 1."""
        if overwrite:
            folder.clear(self.out)
        self._describe()
        write_bytes(self.out / METRICS, b"")
        return self.parts.start, 0

    def restore(self, hear: Reporter) -> tuple[Bundle, int]:
        """The newest whole checkpoint's state and round; metrics and memories are cut back to it."""
        found = checkpoint.newest(self.out / "checkpoints", self.parts.identity, note=hear.note)
        rows, done = (found[0].rows, found[0].round) if found else (0, 0)
        if done > self.experiment.rounds:
            raise InputError(f"rounds = {self.experiment.rounds}: {self.out} has {done} behind it; give {done} or more")
        lines = whole_lines(self.out / METRICS)
        if len(lines) < rows:
            raise InputError(
                f"{self.out / METRICS} has {len(lines)} whole lines, and the checkpoint was written after {rows}: "
                "it was changed by hand; start the run anew in another folder"
            )
        for name in folder.OURS:
            sweep(self.out / name)
        if not found:
            # an overwriting that was cut short may have left the best round of the run before
            folder.remove(self.out / "checkpoints")
        set_back(self.out / folder.MESSAGES, done)
        self._compare_versions(hear)
        self._describe()
        write_bytes(self.out / METRICS, b"".join(lines[:rows]))
        self.rows = [json.loads(line) for line in lines[:rows]]
        self.memory.restore(found[0].memory if found else {})
        self.state = found[1] if found else self.parts.start
        if self.rows:
            self._summarise(finished=False)  # who watches a run that is extended must not take it for finished
        return self.state, done

    def add(self, measured: Measured) -> None:
        """Keep a round. The checkpoint comes last: what is before it in the folder is redone if it is missing."""
        each, row = measured.round, measured.row
        before, self.state = self.state, each.state
        self.rows.append(row)
        if _other_sets(before, each.state):  # a method may leave them as they were
            save_synthetic(
                self.out / "synthetic",
                each.number,
                each.state,
                classes=self.parts.world.classes,
                keep=self.experiment.output.keep_synthetic,
            )
        append_line(self.out / METRICS, json.dumps(row, allow_nan=False))
        checkpoint.save(
            self.out / "checkpoints",
            checkpoint.Record(
                round=each.number,
                rows=len(self.rows),
                validation=measured.clients.validation.mean,
                memory=self.memory.listing(),
                identity=dict(self.parts.identity),
            ),
            each.state,
        )
        self._summarise(finished=False)

    def log(self, number: int, failures: Sequence[Failure]) -> None:
        """Keep the tracebacks of clients that failed by a defect."""
        for failure in failures:
            if failure.detail:
                head = f"round {number}, client {failure.client}: {failure.reason}"
                append_line(self.out / FAILURES, f"{head}\n{failure.detail}")

    def finish(self) -> Finished:
        """Model files of the last round and, where it is another, of the selected one; summary and page."""
        from fedstill.report import write_report  # it draws: matplotlib is slow to import

        if not self.rows:
            raise RunError("the algorithm asked for no round: nothing was done")
        last, selected = self.rows[-1], self._selected()
        self._save_models(self.out / MODELS, self.state, last)
        folder.remove(self.out / MODELS / BEST)  # of the run before it was extended
        best = checkpoint.best_state(self.out / "checkpoints")
        if selected != last["round"] and best is not None:
            row = next(row for row in self.rows if row["round"] == selected)
            self._save_models(self.out / MODELS / BEST, best, row)
        folder.remove(self.out / folder.SCRATCH)  # what was begun is done
        self._summarise(finished=True)
        write_report([self.out], self.out / REPORT)
        return Finished(self.out, last["round"], selected, last["accuracy"], self.out / REPORT)

    def finish_at(self, done: int) -> Finished:
        """As :meth:`finish`, of a run that was to have more rounds than ``done`` and can have no other."""
        self.experiment = replace(self.experiment, rounds=done)
        set_back(self.out / folder.MESSAGES, done)
        self._describe()
        return self.finish()

    def _save_models(self, place: Path, state: Bundle, row: Mapping[str, Any]) -> None:
        for name, trained in self.parts.algorithm.models(state).items():
            save_model(
                place / f"{name}.safetensors",
                trained.tensors,
                architecture=trained.architecture,
                classes=self.parts.world.classes,
                normalisation=self.parts.world.normalisation,
                fit=self.experiment.data.fit,
                notes={
                    "experiment": self.experiment.name,
                    "algorithm": self.experiment.algorithm.name,
                    "round": float(row["round"]),
                    "accuracy": row["accuracy"][name],
                    "validation": row["validation"]["mean"],
                },
            )

    def _compare_versions(self, hear: Reporter) -> None:
        """Say where a run goes on with other software than it began with: its last bits may differ."""
        before, now = read_toml(self.out / EXPERIMENT).get(PROVENANCE, {}), describe(self.device)
        for name in ("fedstill", "torch"):
            if (was := before.get(name)) is not None and was != now[name]:
                hear.note(
                    f"{name} is {now[name]} and was {was} before: the last bits may not be those of a straight run"
                )

    def _describe(self) -> None:
        write_text(self.out / EXPERIMENT, self.experiment.anchored().to_toml(describe(self.device)))
        more = {"classes": list(self.parts.world.classes), **self.parts.uses.to_json()}
        write_json(self.out / PARTITION, self.parts.partition.to_json() | more)

    def _summarise(self, *, finished: bool) -> None:
        described = describe(self.device)
        write_json(
            self.out / SUMMARY,
            {
                "finished": finished,
                "complete": finished and self.parts.algorithm.task(self.state) is None,
                "rounds": self.rows[-1]["round"],
                "wall_seconds": sum(
                    row["seconds"][phase] for row in self.rows for phase in ("clients", "server", "evaluate")
                ),
                "command_version": described["fedstill"],
                "hardware": described,
                "selected_round": self._selected(),
            },
        )

    def _selected(self) -> int:
        leader = checkpoint.best(self.out / "checkpoints")
        return leader.round if leader else int(self.rows[-1]["round"])
