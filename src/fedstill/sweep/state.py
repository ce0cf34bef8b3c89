"""What the folder of a cell holds already: nothing, a part of its run, the whole of it, or a run of other settings."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fedstill import folder
from fedstill.data.settings import DataSettings, Domain, existing
from fedstill.errors import InputError
from fedstill.experiment import PROVENANCE, Experiment, by_content
from fedstill.files import write_text
from fedstill.folder import EXPERIMENT, METRICS, SUMMARY, locked
from fedstill.output import whole_lines
from fedstill.settings import differences, read_toml

__all__ = ["Held", "check_files", "check_prior", "look", "refresh"]

_PHASES = ("clients", "server", "evaluate")  # whose times make up a round's
_NOT_FILES = ("hub", "digits")
"""Sources whose ``path`` is no file."""


@dataclass(frozen=True)
class Held:
    """What a folder holds of a cell's run.

    Attributes:
        begun: whether there is a run.
        finished: whether it has all its rounds, and its models and page.
        rounds: number of the last whole round.
        accuracy: of every model after it.
        validation: after each round, the mean of the clients' accuracies on their validation images; None where none has any.
        seconds: of all rounds, as they were worked at.
        cpu_seconds: of all rounds and processes; None where a round does not tell.
        peak_memory: largest of all rounds, in bytes; None where no round tells.
    """

    begun: bool = False
    finished: bool = False
    rounds: int = 0
    accuracy: Mapping[str, float | None] = field(default_factory=dict)
    validation: tuple[float | None, ...] = ()
    seconds: float = 0.0
    cpu_seconds: float | None = None
    peak_memory: int | None = None


def look(out: Path, experiment: Experiment) -> Held:
    """What ``out`` holds of the run of ``experiment``, by its files alone: no data are loaded.

    Raises:
        InputError: it holds a run of other settings, one of more rounds, one whose ``metrics.jsonl`` is damaged, or something
            that is no run.
    """
    if not (out / EXPERIMENT).exists():
        folder.check(out, resume=False, overwrite=False)
        return Held()
    _compare(out, Experiment.read(out / EXPERIMENT), experiment)
    summary, rows = _summary(out), _rows(out)
    rounds = summary.get("rounds", 0)
    if rounds > experiment.rounds:
        raise InputError(
            f"{out} has {rounds} rounds behind it, and {experiment.rounds} are asked for: ask for {rounds} or more, or give "
            "another --out"
        )
    spent = [row["cpu_seconds"] for row in rows]
    return Held(
        begun=True,
        # a method may ask for fewer rounds than it is given
        finished=summary.get("finished") is True and (rounds == experiment.rounds or summary.get("complete") is True),
        rounds=rounds,
        accuracy=rows[-1]["accuracy"] if rows else {},
        validation=tuple(row["validation"] for row in rows),
        seconds=sum(row["seconds"] for row in rows),
        cpu_seconds=None if None in spent else sum(spent),
        peak_memory=max((row["peak_memory"] for row in rows if row["peak_memory"]), default=None),
    )


def refresh(out: Path, experiment: Experiment, *, note: Callable[[str], None]) -> None:
    """Let the run in ``out`` say what is published now. Its results do not hang on it, so it is not run again.

    Raises:
        InputError: a run is at work there.
        RunError: the file cannot be written.
    """
    file = out / EXPERIMENT
    held = Experiment.read(file)
    if held.published != experiment.published:
        with locked(out, note=note):
            write_text(file, replace(held, published=experiment.published).to_toml(read_toml(file).get(PROVENANCE)))


def check_files(experiment: Experiment) -> None:
    """That the files of its data are there, so that not every cell has to say so.

    Raises:
        InputError: one is missing.
    """
    data = experiment.data
    places: list[DataSettings | Domain] = [data, *(data.domains or ())]
    for place in places:
        for key in ("path", "test"):
            text = getattr(place, key)
            if text is not None and place.source not in _NOT_FILES and ":" not in place.source:
                where = f"data.{key}" if place is data else f"data.domains '{getattr(place, 'name', '')}': {key}"
                existing(text, where, f"what data.source = '{place.source}' reads")


def check_prior(experiment: Experiment) -> None:
    """That the file of its prior is there, if it has one.

    Raises:
        InputError: it is missing.
    """
    generator = getattr(experiment.algorithm.options, "generator", None)
    if isinstance(generator, str) and generator.endswith(".safetensors"):
        existing(generator, "algorithm.generator", "a prior, such as 'fedstill prior train' makes")


def _compare(out: Path, held: Experiment, wanted: Experiment) -> None:
    there, here = held.settings(), wanted.anchored().settings()
    if there == here:
        return
    # the same prior may lie elsewhere now
    if told := differences(by_content(there), by_content(here)):
        raise InputError(
            f"{out} holds a run of other settings: {told} differ; give another --out, or remove that folder"
        )


def _summary(out: Path) -> Mapping[str, Any]:
    try:
        summary = json.loads((out / SUMMARY).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        summary = None
    # it is written after every round: without it, the run goes on from its checkpoint
    return summary if isinstance(summary, Mapping) and isinstance(summary.get("rounds"), int) else {}


def _rows(out: Path) -> list[dict[str, Any]]:
    """What is asked for of every round."""
    try:
        return [
            {
                "accuracy": row["accuracy"],
                "validation": row.get("validation", {}).get("mean"),
                "seconds": sum(row["seconds"].get(phase, 0.0) for phase in _PHASES),
                "cpu_seconds": row.get("cpu_seconds"),
                "peak_memory": row.get("peak_memory"),
            }
            for row in map(json.loads, whole_lines(out / METRICS))
        ]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{out / METRICS} is damaged: remove {out} to run it anew, or give another --out") from error
