"""A trial, and what its runs make of it. A trial's result follows from its runs' validation scores and from the trials of earlier
batches alone: not from when a process was stopped, nor from which of a batch came first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any, Literal

from fedstill.errors import InputError
from fedstill.search import Params, Pruner, Space, Trial
from fedstill.sweep.state import Held

__all__ = ["Curve", "Judge", "Tried"]

Curve = tuple[float | None, ...]
"""Of a run: after each round, the mean of the clients' accuracies on their validation images; None where there was none."""


@dataclass(frozen=True)
class Tried:
    """A trial.

    Attributes:
        number: 0, 1, …, in the order in which they were proposed.
        batch: number of its batch: those of one are proposed together, and judged by those of earlier ones.
        params: what is varied, by dotted key.
        state: ``begun`` is not over.
        value: mean over its runs of the score after the round that each would select, its best; None unless it is finished.
        curves: of its runs, one a seed that was run. A pruned trial's last one ends where it was given up.
        seconds: of its runs' rounds.
        failure: why it failed.
    """

    number: int
    batch: int
    params: Params
    state: Literal["begun", "finished", "pruned", "failed"] = "begun"
    value: float | None = None
    curves: tuple[Curve, ...] = ()
    seconds: float = 0.0
    failure: str | None = None

    @property
    def name(self) -> str:
        return f"trial-{self.number:03d}"

    @property
    def selected(self) -> list[int]:
        """For each run, the number of the round that it would select; 0 where it has none."""
        return [_best_round(curve) for curve in self.curves]

    def trial(self, rounds: int) -> Trial:
        """For :mod:`fedstill.search`; it must be over.

        Args:
            rounds: of a whole run.
        """
        if self.state == "begun":
            raise ValueError(f"{self.name} is not over")
        steps = {
            step: value
            for place, curve in enumerate(self.curves)
            for step, value in _steps(curve, place, rounds).items()
        }
        return Trial(self.params, self.state, self.value, steps)

    def to_json(self, runs: Sequence[str]) -> dict[str, Any]:
        """A line of ``tune.json``; ``runs``: names of their folders, one a seed."""
        return {
            "trial": self.name,
            "number": self.number,
            "batch": self.batch,
            "parameters": dict(self.params),
            "state": self.state,
            "value": self.value,
            "rounds": [len(curve) for curve in self.curves],
            "selected_rounds": self.selected,
            "validation": [list(curve) for curve in self.curves],
            "seconds": self.seconds,
            "runs": list(runs)[: len(self.curves)],
            "failure": self.failure,
        }

    @classmethod
    def from_json(cls, line: Mapping[str, Any], space: Space) -> Tried:
        """What :meth:`to_json` wrote.

        Raises:
            InputError, KeyError, TypeError, ValueError: it is something else.
        """
        space.encode(line["parameters"])
        state = line["state"]
        if state not in ("begun", "finished", "pruned", "failed") or (state == "finished") != (
            line["value"] is not None
        ):
            raise ValueError(f"{state} with the value {line['value']}")
        return cls(
            number=int(line["number"]),
            batch=int(line["batch"]),
            params=dict(line["parameters"]),
            state=state,
            value=None if line["value"] is None else float(line["value"]),
            curves=tuple(
                tuple(None if value is None else float(value) for value in curve) for curve in line["validation"]
            ),
            seconds=float(line["seconds"]),
            failure=line["failure"],
        )


@dataclass(frozen=True)
class Judge:
    """What trials of a batch are judged by.

    Attributes:
        earlier: the trials of earlier batches.
        rounds: of a whole run.
        seeds: how many runs a trial has.
        prune: trials that fall behind are given up, by :class:`fedstill.search.Pruner`; not in the first quarter of a run's
            rounds, which tell little of the last.
    """

    earlier: Sequence[Trial]
    rounds: int
    seeds: int
    prune: bool

    def cut(self, curve: Curve, place: int) -> int | None:
        """The round after which a run is given up; None: it goes on.

        Args:
            curve: of the run so far.
            place: of its seed, 0 for the first: runs of one seed are compared.
        """
        if not self.prune:
            return None
        begin = place * self.rounds
        steps = _steps(curve, place, self.rounds)
        steps.pop(self.seeds * self.rounds - 1, None)  # after its last round there is nothing to give up
        found = Pruner(warmup=begin + self.rounds // 4).cut(steps, self.earlier)
        return None if found is None else found - begin + 1

    def settled(self, tried: Tried, runs: Sequence[Held]) -> Tried:
        """What a trial's runs, one a seed, make of it by now.

        Raises:
            InputError: a run is finished, and no client scored a validation image in it.
        """
        curves: list[Curve] = []
        over = replace(tried, seconds=sum(run.seconds for run in runs))
        for place, run in enumerate(runs):
            if (end := self.cut(run.validation, place)) is not None:
                return replace(over, state="pruned", curves=(*curves, run.validation[:end]))
            if not run.finished:
                return replace(over, curves=(*curves, run.validation) if run.rounds else tuple(curves))
            if not _known(run.validation):
                raise InputError(
                    f"{tried.name} has no score to be judged by: its method sends clients no model to try on their images"
                )
            curves.append(run.validation)
        return replace(
            over, state="finished", curves=tuple(curves), value=fmean(max(_known(curve)) for curve in curves)
        )


def _steps(curve: Curve, place: int, rounds: int) -> dict[int, float]:
    """Scores of the run of the seed at ``place``, by step of its trial: 0 … ``rounds`` − 1 for the first seed, and on."""
    return {place * rounds + index: value for index, value in enumerate(curve) if value is not None}


def _known(curve: Curve) -> list[float]:
    return [value for value in curve if value is not None]


def _best_round(curve: Curve) -> int:
    """The earliest of equals, as a run selects it."""
    known = _known(curve)
    return curve.index(max(known)) + 1 if known else 0
