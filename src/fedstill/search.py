"""A search over settings: what to try next, given what was tried, by the tree-structured Parzen estimator (Bergstra et al.,
"Algorithms for hyper-parameter optimization", 2011) as Optuna has it.

    space = Space({"optimiser": Choice(("sgd", "adam")), "lr": Range(1e-4, 1.0, log=True)})
    done: list[Trial] = []
    for params in propose(space, done, 4, seed.at("search")):
        done.append(Trial(params, "finished", score(**params)))
    print(best(done).params)

Nothing is kept between calls: Optuna's study is built anew from ``done`` each time, so that a caller's own state is the only
one there is. Equal inputs give equal outputs, to the bit, with one version of Optuna.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from fedstill.errors import MissingExtra, RunError
from fedstill.seeds import Seed
from fedstill.spaces import Choice, Integers, Params, Part, Range, Space

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.samplers import BaseSampler
    from optuna.study import Study
    from optuna.trial import FrozenTrial

__all__ = ["Choice", "Integers", "Params", "Part", "Pruner", "Range", "Space", "State", "Trial", "best", "propose"]

State = Literal["finished", "pruned", "failed"]

STARTUP = 10
"""Trials that are drawn at random before the estimator is asked; Optuna's default."""

_TURNS = 8
"""Draws of the estimator, after which one that was never tried is drawn at random."""


@dataclass(frozen=True)
class Trial:
    """Something that was tried.

    Attributes:
        params: with which parameters.
        state: ``finished`` has a value; ``pruned`` was given up early; ``failed`` has diverged or the like, and counts as worse
            than all others.
        value: the higher, the better; finite.
        steps: values on the way, by step (0, 1, …); what pruned trials are judged by.
    """

    params: Mapping[str, Any]
    state: State
    value: float | None = None
    steps: Mapping[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.state == "finished" and (self.value is None or not math.isfinite(self.value)):
            raise ValueError(f"a finished trial has a finite value, not {self.value}: such a one has failed")


def propose(
    space: Space, done: Sequence[Trial], count: int, seed: Seed, *, first: Params | None = None
) -> list[Params]:
    """The next ``count`` parameters to try, none of which was tried before.

    Those of one call are proposed one after another, each as if those before it had come to little, so that they differ (the
    *constant liar*). The n-th trial of a search draws from ``seed.at(n)``. Numbers of a range have four digits.

    Args:
        space: what is searched.
        done: all that was tried, in order.
        count: how many; fewer are returned where a space has no more that were not tried.
        seed: of the search.
        first: what is tried before all else, to the same four digits; passed over where the space has no such parameters.

    Raises:
        MissingExtra: Optuna is not installed.
        InputError: a trial is of another space.
    """
    tried = {tuple(space.encode(trial.params)) for trial in done}
    with _quiet():
        distributions = {name: _distribution(part) for name, part in space.parts.items()}
        study = _study([_frozen(trial, space, distributions) for trial in done])
        if first is not None and not done and space.holds(first):
            study.enqueue_trial({name: _inner(part, first[name]) for name, part in space.parts.items()})
        found: list[Params] = []
        for number in range(len(done), len(done) + count):
            if space.size is not None and len(tried) >= space.size:
                break
            found.append(_untried(study, space, distributions, tried, seed.at(number)))
            tried.add(tuple(space.encode(found[-1])))
    return found


def best(done: Sequence[Trial]) -> Trial:
    """The finished trial with the highest value; the earliest of equals.

    Raises:
        RunError: none is finished.
    """
    finished = [trial for trial in done if trial.state == "finished"]
    if not finished:
        raise RunError(f"none of {len(done)} trials finished: there is no best" if done else "there is no trial yet")
    return max(finished, key=lambda trial: trial.value if trial.value is not None else -math.inf)


@dataclass(frozen=True)
class Pruner:
    """Gives up a trial whose best value up to a step is below the median of what finished trials had at that step.

    Attributes:
        startup: so many trials must have finished before one is given up; Optuna's default.
        warmup: steps below this one are not looked at.
    """

    startup: int = 5
    warmup: int = 0

    def cut(self, steps: Mapping[int, float], done: Sequence[Trial]) -> int | None:
        """The first of ``steps`` at which a trial with these values is given up; None: it goes on.

        Raises:
            MissingExtra: Optuna is not installed.
        """
        with _quiet():
            from optuna.pruners import MedianPruner
            from optuna.trial import TrialState, create_trial

            finished = [trial for trial in done if trial.state == "finished"]
            study = _study(
                [create_trial(value=trial.value, intermediate_values=dict(trial.steps)) for trial in finished]
            )
            pruner = MedianPruner(n_startup_trials=self.startup, n_warmup_steps=self.warmup)
            for step in sorted(steps):
                so_far = {each: value for each, value in steps.items() if each <= step}
                if pruner.prune(study, create_trial(state=TrialState.RUNNING, intermediate_values=so_far)):
                    return step
        return None


# --- Optuna ------------------------------------------------------------------------------------------------------------


@contextmanager
def _quiet() -> Iterator[None]:
    """Optuna says nothing within.

    Raises:
        MissingExtra: Optuna is not installed.
    """
    try:
        from optuna import logging
        from optuna.exceptions import ExperimentalWarning
    except ImportError as error:
        raise MissingExtra("optuna", extra="tune", wanted_for="a search over settings") from error
    held = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        with warnings.catch_warnings():
            # which Optuna 4 calls the estimator's options that are used here
            warnings.simplefilter("ignore", ExperimentalWarning)
            yield
    finally:
        logging.set_verbosity(held)


def _study(trials: Sequence[FrozenTrial]) -> Study:
    """In memory."""
    from optuna import create_study

    study = create_study(direction="maximize")
    study.add_trials(trials)
    return study


def _frozen(trial: Trial, space: Space, distributions: Mapping[str, BaseDistribution]) -> FrozenTrial:
    from optuna.trial import TrialState, create_trial

    pruned = trial.state == "pruned"
    return create_trial(
        # Optuna passes over trials in its own state FAIL, and would try the like again
        state=TrialState.PRUNED if pruned else TrialState.COMPLETE,
        value=None if pruned else trial.value if trial.state == "finished" else -math.inf,
        params={name: _inner(part, trial.params[name]) for name, part in space.parts.items()},
        distributions=dict(distributions),
        intermediate_values=dict(trial.steps) if trial.state != "failed" else {},
    )


def _untried(
    study: Study,
    space: Space,
    distributions: Mapping[str, BaseDistribution],
    tried: set[tuple[float, ...]],
    seed: Seed,
) -> Params:
    """Ask ``study``, in which the answer stands as at work afterwards. There must be one that is not in ``tried``."""
    from optuna.trial import TrialState

    turn = 0
    while True:
        study.sampler = _sampler(seed.at(turn), guided=turn < _TURNS)
        asked = study.ask(dict(distributions))
        params = {name: _outer(part, asked.params[name]) for name, part in space.parts.items()}
        if tuple(space.encode(params)) not in tried:
            return params
        study.tell(asked, state=TrialState.FAIL)  # which the estimator passes over
        turn += 1


def _sampler(seed: Seed, *, guided: bool) -> BaseSampler:
    from optuna.samplers import RandomSampler, TPESampler

    number = seed.number % 2**32  # NumPy's older generators take no more
    if not guided:
        return RandomSampler(seed=number)
    # multivariate: a step size is good or bad together with its optimiser
    return TPESampler(n_startup_trials=STARTUP, multivariate=True, constant_liar=True, seed=number)


def _distribution(part: Part) -> BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    match part:
        case Choice():
            return CategoricalDistribution(tuple(range(len(part.values))))  # Optuna takes no tables as values
        case Range():
            return FloatDistribution(part.low, part.high, log=part.log)
        case Integers():
            return IntDistribution(part.low, part.high, log=part.log)


def _inner(part: Part, value: Any) -> Any:
    """``value`` as Optuna has it."""
    return int(part.encode(value)) if isinstance(part, Choice) else value


def _outer(part: Part, value: Any) -> Any:
    return part.near(value) if isinstance(part, Range) else part.decode(value)
