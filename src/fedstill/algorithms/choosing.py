"""How a server chooses the way it trains on the union of distilled sets: {SGD, Adam} × step size, by Optuna, and never by test
images (Epple's report does not say by which).

Trials of a search by clients are plain values in the server's state, a row of numbers each: an interrupted one goes on after its
last round, to the same bits. A search by held-out images is a part of one round, and begins anew with it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from fedstill.algorithms.replies import MOST, Sieve
from fedstill.bundle import Bundle, Group
from fedstill.data.augment import Augmentation
from fedstill.data.shard import Shard, hard_labels
from fedstill.errors import Diverged, InputError, MissingExtra, RunError
from fedstill.models.architecture import Architecture
from fedstill.rounds import Desk, Failure, Reply, Trained
from fedstill.scores import score
from fedstill.search import Choice, Integers, Pruner, Range, Space, State, Trial, best, propose
from fedstill.seeds import Seed
from fedstill.train import Fitted, Recipe, fit

__all__ = [
    "TRIAL",
    "Searched",
    "ask",
    "check_search",
    "choose",
    "counted",
    "foremost",
    "hear",
    "networks",
    "recipe_of",
    "shown",
    "too_few",
]

Searched = Literal["optimiser", "lr", "epochs", "augmentation"]
"""What of a recipe may be searched."""

TRIAL = "trial-"
"""How networks of a search by clients are called."""

DONE, AT_WORK = "statistics:done", "statistics:at_work"
"""Groups of the state: trials with their values, and those whose networks clients score now."""

LOOKS = 5
"""Scores of a trial on its way, by which it may be given up."""

_STATES: tuple[State, ...] = ("finished", "pruned", "failed")


def space_of(keys: Sequence[Searched], base: Recipe) -> Space:
    """Optimiser: sgd or adam. Step size: 1e-4 to 1, by its logarithm. Epochs: a tenth of the recipe's up to all.
    Augmentation: the recipe's or none."""
    parts: dict[Searched, Any] = {
        "optimiser": Choice(("sgd", "adam")),
        "lr": Range(1e-4, 1.0, log=True),
        "epochs": Integers(max(1, base.epochs // 10), max(2, base.epochs), log=True),
        "augmentation": Choice((True, False)),
    }
    return Space({key: parts[key] for key in keys})


def own(keys: Sequence[Searched], base: Recipe) -> dict[str, Any]:
    """The parameters of ``base`` itself, which are tried first: by its own measure, no search ends below what was there."""
    all_of_it = {"optimiser": base.optimiser, "lr": base.lr, "epochs": base.epochs, "augmentation": True}
    return {key: all_of_it[key] for key in keys}


def recipe_of(base: Recipe, params: Mapping[str, Any]) -> Recipe:
    """``base`` with these parameters in it."""
    changes = {key: value for key, value in params.items() if key != "augmentation"}
    if params.get("augmentation") is False:
        changes["augmentation"] = Augmentation()
    return replace(base, **changes)


def held_out(union: Shard, share: float, seed: Seed) -> tuple[Shard, Shard]:
    """(to train on, to choose by): ``share`` of each class, one image at least, of classes that have two.

    Raises:
        RunError: no class has two images.
    """
    labels = hard_labels(union.labels)
    kept: list[Tensor] = []
    held: list[Tensor] = []
    for k in range(len(union.classes)):
        rows = (labels == k).nonzero().flatten()
        rows = rows[torch.randperm(len(rows), generator=seed.at(k).torch())]
        count = max(1, round(share * len(rows))) if len(rows) > 1 else 0
        held.append(rows[:count])
        kept.append(rows[count:])
    if not sum(map(len, held)):
        raise RunError(
            "algorithm.search = 'union': no class of the union has two images, so none can be held out to choose by; send more "
            "images, or search by the clients' validation images (algorithm.search = 'clients')"
        )
    return union.take(torch.cat(kept)), union.take(torch.cat(held))


@dataclass(frozen=True)
class _Job:
    """One trial; crosses to a worker process."""

    params: Mapping[str, Any]
    recipe: Recipe
    seed: Seed
    device: str


class _Pruned(Exception):
    """A trial was given up."""


def choose(
    start: Trained,
    union: Shard,
    base: Recipe,
    keys: Sequence[Searched],
    *,
    trials: int,
    at_once: int,
    share: float,
    desk: Desk,
) -> list[Trial]:
    """Train ``start`` on a part of the union in ``trials`` ways, and score each on the rest; what falls behind is given up.

    Trials of one batch (``at_once``) run side by side where ``desk.map`` can, and know those before the batch alone.

    Raises:
        MissingExtra: Optuna is not installed.
        RunError: no class of the union has two images.
    """
    lesson, held = held_out(union, share, desk.seed.at("held out"))
    space, first = space_of(keys, base), own(keys, base)
    done: list[Trial] = []
    while len(done) < trials:
        found = propose(space, done, min(at_once, trials - len(done)), desk.seed, first=first)
        if not found:
            break
        jobs = [
            _Job(params, recipe_of(base, params), desk.seed.at("trial", len(done) + index), desk.device)
            for index, params in enumerate(found)
        ]
        for trial in desk.map(partial(_tried, start, lesson, held, tuple(done)), jobs):
            done.append(trial)
            desk.progress("search", len(done), trials)
    return done


def _tried(start: Trained, lesson: Shard, held: Shard, before: Sequence[Trial], job: _Job) -> Trial:
    steps: dict[int, float] = {}
    stride = max(1, math.ceil(job.recipe.epochs / LOOKS))
    epochs = 0

    def watch(tensors: Mapping[str, Tensor]) -> None:
        nonlocal epochs
        # shown at the start, too, when nothing has been learned
        if epochs and (epochs % stride == 0 or epochs == job.recipe.epochs):
            found = score(Trained(start.architecture, tensors).module(), held, device=job.device).accuracy
            steps[len(steps)] = found or 0.0
            if epochs < job.recipe.epochs and Pruner().cut(steps, before) is not None:
                raise _Pruned
        epochs += 1

    try:
        fit(start.module(), lesson, job.recipe, seed=job.seed, device=job.device, watch=watch)
    except _Pruned:
        return Trial(job.params, "pruned", None, steps)
    except RunError:  # it diverged
        return Trial(job.params, "failed")
    return Trial(job.params, "finished", steps[len(steps) - 1], steps)


def foremost(done: Sequence[Trial]) -> Trial:
    """The best trial.

    Raises:
        Diverged: in all of them training diverged.
    """
    if done and all(trial.state == "failed" for trial in done):
        raise Diverged(f"training on the union diverged in all {len(done)} trials of the search")
    return best(done)


def train_all(start: Trained, union: Shard, recipes: Sequence[Recipe], desk: Desk) -> list[Fitted | None]:
    """``start`` trained in each of these ways; None where it diverged."""
    jobs = [_Job({}, recipe, desk.seed.at(index), desk.device) for index, recipe in enumerate(recipes)]
    found: list[Fitted | None] = []
    for fitted in desk.map(partial(_trained, start, union), jobs):
        found.append(fitted)
        desk.progress("search", len(found), len(jobs))
    return found


def _trained(start: Trained, union: Shard, job: _Job) -> Fitted | None:
    try:
        fitted = fit(start.module(), union, job.recipe, seed=job.seed, device=job.device)
    except RunError:
        return None
    return replace(fitted, tensors={name: tensor.cpu() for name, tensor in fitted.tensors.items()})


def encoded(space: Space, trials: Sequence[Trial]) -> Tensor:
    """A row a trial, [n, parts + 2] in float64: its parameters, its state, its value (0 where it has none)."""
    rows = [
        [
            *space.encode(trial.params),
            float(_STATES.index(trial.state)),
            trial.value if trial.value is not None else 0.0,
        ]
        for trial in trials
    ]
    return torch.tensor(rows, dtype=torch.float64).reshape(len(rows), len(space.parts) + 2)


def decoded(space: Space, rows: Tensor) -> list[Trial]:
    """What :func:`encoded` gave, less the values on the way."""
    found = []
    for *numbers, state, value in rows.tolist():
        name = _STATES[int(state)]
        found.append(Trial(space.decode(numbers), name, value if name == "finished" else None))
    return found


def shown(trials: Sequence[Trial]) -> list[dict[str, Any]]:
    """For a round's figures."""
    return [{"params": dict(trial.params), "state": trial.state, "value": trial.value} for trial in trials]


# --- by clients --------------------------------------------------------------------------------------------------------


def too_few(rounds: int, trials: int, at_once: int) -> str | None:
    """What to say of a run of so many rounds; None where they are enough."""
    wanted = 1 + math.ceil(trials / at_once)
    if rounds >= wanted:
        return None
    return (
        f"algorithm.search = 'clients' needs {wanted} rounds for {trials} trials, {at_once} a round, and the run has {rounds}: "
        f"it ends with the best network so far, and goes on with  fedstill resume RUN --rounds {wanted}"
    )


class Heard(NamedTuple):
    """What clients said of some trials.

    Attributes:
        state: with the best network so far in the group ``model``.
        done: all trials so far.
        scored: those of this round; none where no client has validation images.
        failures: clients whose counts are none.
    """

    state: Bundle
    done: list[Trial]
    scored: list[Trial]
    failures: Sequence[Failure]


def ask(
    state: Bundle,
    done: Sequence[Trial],
    start: Trained,
    union: Shard,
    base: Recipe,
    keys: Sequence[Searched],
    *,
    trials: int,
    at_once: int,
    desk: Desk,
) -> tuple[Bundle, dict[str, float]]:
    """``state`` with the networks of the next trials, if the search goes on, and their training losses.

    Raises:
        Diverged: it is over, and no training has come to anything.
    """
    space, first = space_of(keys, base), own(keys, base)
    state = state.drop(*(f"model:{name}" for name in networks(state)))
    done, at_work = list(done), list[Trial]()
    trained: dict[str, Group] = {}
    losses: dict[str, float] = {}
    while not trained and len(done) < trials:
        found = propose(space, done, min(at_once, trials - len(done)), desk.seed, first=first)
        if not found:
            break
        recipes = [recipe_of(base, params) for params in found]
        tried = train_all(start, union, recipes, desk.at("trial", len(done)))
        for params, fitted in zip(found, tried, strict=True):
            if fitted is None:
                done.append(Trial(params, "failed"))
                continue
            name = f"{TRIAL}{len(trained):02d}"
            trained[f"model:{name}"], losses[name] = fitted.tensors, fitted.losses[-1]
            at_work.append(Trial(params, "failed"))  # until it is scored
    if not trained:
        foremost(done)
    return state.put(
        **trained, **{DONE: {"trials": encoded(space, done)}, AT_WORK: {"trials": encoded(space, at_work)}}
    ), losses


def hear(state: Bundle, replies: Iterable[Reply], base: Recipe, keys: Sequence[Searched]) -> Heard:
    """Value the trials at work by the clients' counts, all images alike."""
    space, sent = space_of(keys, base), networks(state)
    counts = {f"correct:{name}": 0.0 for name in sent}
    examples = 0.0
    sieve = Sieve(replies, {}, counts=(), wrong=partial(_miscounted, counts))
    for reply in sieve:
        examples += reply.bundle.numbers["validation_examples"]
        counts = {name: total + reply.bundle.numbers[name] for name, total in counts.items()}
    before = decoded(space, state.groups[DONE]["trials"])
    if not examples:
        return Heard(state, before, [], sieve.failures)
    at_work = decoded(space, state.groups[AT_WORK]["trials"])
    scored = [
        Trial(trial.params, "finished", correct / examples)
        for trial, correct in zip(at_work, counts.values(), strict=True)
    ]
    done = [*before, *scored]
    leader = best(done)
    if leader in scored:
        state = state.put(model=list(sent.values())[scored.index(leader)])
    return Heard(state, done, scored, sieve.failures)


def counted(inbox: Bundle, architecture: Architecture, validation: Shard, *, device: str) -> Bundle:
    """A client's answer: how many of its validation images each network that arrived gets right."""
    correct = {
        f"correct:{name}": score(Trained(architecture, group).module(), validation, device=device).correct
        for name, group in networks(inbox).items()
    }
    return Bundle().put({"validation_examples": len(validation), **correct})


def networks(bundle: Bundle) -> dict[str, Group]:
    """Of trials, by name, in order."""
    found = bundle.members("model")
    return {name: found[name] for name in sorted(found) if name.startswith(TRIAL)}


def _miscounted(names: Iterable[str], reply: Bundle) -> str | None:
    examples = reply.numbers.get("validation_examples", -1.0)
    counts = [reply.numbers.get(name, -1.0) for name in names]
    if not 0 <= examples <= MOST or not all(0 <= count <= examples for count in counts):
        return f"its counts of right answers, {counts}, are none of {examples:g} validation images"
    return (
        None if all(float(count).is_integer() for count in (examples, *counts)) else "its counts are no whole numbers"
    )


def check_search(keys: Sequence[Searched], where: str) -> None:
    """All that can be refused before a client works.

    Raises:
        InputError: there is nothing to search, or something twice.
        MissingExtra: Optuna is not installed.
    """
    if not keys or len(set(keys)) < len(keys):
        raise InputError(f"algorithm.search_over = {list(keys)}: name at least one, and none twice")
    if find_spec("optuna") is None:
        raise MissingExtra("optuna", extra="tune", wanted_for=where)
