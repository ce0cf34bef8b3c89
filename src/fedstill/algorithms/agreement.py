"""Do clients' distilled sets agree with each other? A server's check, before it trains on them.

Of the sets S_1 … S_n of a round, each with the classes that it has:

    f_d        a network that learned S_d alone by the method's own recipe, from the same start for all d; p_d(x) are its
               probabilities of an image x
    read       of c and k: the share of the images of class k in S_c that the vote of the others labels k, which is the largest
               entry of the mean of p_d(x) over all d ≠ c that have class k
    reading    of c and k: the share of the images of class k in all other sets that f_c labels k
    r(c,k)     the mean of the two
    agreement  of c: the mean of r(c,k) over its classes that are assessed, which are those that ``OTHERS`` other sets have
    worst      of c: the least of r(c,k) − median over i of r(i,k): its class that falls most behind others' sets of it

c is *flagged* where its agreement or its worst lies below that figure's median over clients by more than the larger of a floor
(``FLOOR``, ``WORST_FLOOR``) and ``MADS`` times 1.4826 · MAD, the median distance from the median. The agreement finds sets that
are wrong all over, such as those of labels that were all changed; the worst finds one class that means something else, such as
a backdoor's target. Medians and votes are over the others: a hostile minority neither hides nor accuses.

A class that fewer others have is not assessed, and says nothing for or against a client: ``assessed`` of ``classes`` in its
figures. Who has no class that is assessed is not flagged, and nobody is where ``OTHERS`` clients or fewer have one.

It costs about as much as training the network on the union once more: n networks, each on an n-th of it.

What it does not catch: hostile clients that are half of those who hold a class, or more, for they are its median; images that
others' networks read as labelled, though they teach something beside; a pattern in few of a class's images; whoever knows this
check and distils against it. Whom it flags may be honest: a client whose images of a class look like nobody else's, as with
another scanner, disagrees in truth. docs/results/poisoning.md has how often either happened.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Annotated, Any, Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from fedstill.algorithms.union import DistilledSet
from fedstill.data.shard import Shard
from fedstill.errors import Diverged
from fedstill.models.architecture import Architecture
from fedstill.rounds import Desk, Failure, Trained
from fedstill.train import Recipe, fit, predict

__all__ = ["Agreement", "Disagreeing", "Looked", "accusations", "agreements", "anew", "look"]

OTHERS = 3
"""Sets beside a client's own that must have a class for it to be assessed: a median of fewer is one client's word."""

MADS = 3.0
"""Deviations (1.4826 · MAD, the standard deviation of a normal distribution) below the median that are still unremarkable."""

FLOOR = 0.3
"""What an agreement may lie below the median in any case: where all agree to a hair, the next hair is no accusation."""

WORST_FLOOR = 0.55
"""The same of a client's worst class, which is a figure of few images and scatters more."""

_NORMAL = 1.4826  # a normal distribution's standard deviation in units of its MAD

Disagreeing = Annotated[
    Literal["keep", "flag", "drop"],
    Field(
        description="sets that disagree with the others': keep = not looked for; flag = told; drop = left out of the round"
    ),
]


class Agreement(NamedTuple):
    """How far one client's set agrees with the others'.

    Attributes:
        agreement: over all classes that are assessed; None where none is.
        worst: of the class that falls most behind others' sets of it, by how much; None where none is assessed.
        where: that class.
        assessed, classes: classes that were assessed, and that the set has.
    """

    agreement: float | None
    worst: float | None
    where: int | None
    assessed: int
    classes: int


class Looked(NamedTuple):
    """What the check found.

    Attributes:
        kept: sets to learn from, in the order given.
        figures: by client, for its line in the round's figures.
        failures: who was left out, and why.
    """

    kept: list[DistilledSet]
    figures: Mapping[str, dict[str, Any]]
    failures: list[Failure]


def look(
    disagreeing: Literal["keep", "flag", "drop"],
    sets: Sequence[DistilledSet],
    start: Trained,
    recipe: Recipe,
    desk: Desk,
) -> Looked:
    """Ask whether the sets agree, and do with those that do not as ``disagreeing`` says.

    Args:
        disagreeing: ``keep`` asks nothing.
        sets: one a client, each with an image at least.
        start: where each f_d begins, see :func:`anew`.
        recipe: by which it learns.
        desk: f_d draws from ``desk.seed.at("set", d)``; ``desk.map`` spreads them.
    """
    if disagreeing == "keep" or not sets:
        return Looked(list(sets), {}, [])
    names = sets[0].synthetic.classes
    union = Shard.join([each.synthetic for each in sets])
    owner = torch.arange(len(sets)).repeat_interleave(torch.tensor([len(each.synthetic) for each in sets]))
    found = agreements(torch.stack(_guesses(union, sets, start, recipe, desk)), owner, union.labels)
    why = {each.client: reason for each, reason in zip(sets, accusations(found, names), strict=True)}
    figures = {
        each.client: _figures(its, names) | {"flagged": why[each.client] is not None}
        for each, its in zip(sets, found, strict=True)
    }
    if disagreeing == "flag":
        return Looked(list(sets), figures, [])
    failures = [Failure(client, reason) for client, reason in why.items() if reason is not None]
    return Looked([each for each in sets if why[each.client] is None], figures, failures)


def anew(architecture: Architecture, desk: Desk) -> Trained:
    """Random weights, as a start for sets that any network can learn from.

    A network that has been trained on a hostile client's images before reads these as that client wants: in FedDM's second round
    a backdoor's worst class then lies little further behind than honest ones (docs/results/poisoning.md). FedDGM's sets begin at
    the network that was sent all the same, for that one's steps are what they are made to repeat: others learn little of them.
    """
    return Trained(architecture, architecture.build(desk.seed.at("start")).state_dict())


def agreements(guesses: Float[Tensor, "n m K"], owner: Int[Tensor, " m"], labels: Int[Tensor, " m"]) -> list[Agreement]:
    """Of every client.

    Args:
        guesses: p_d(x), by d, for all images of all sets; NaN where nothing could be learned of S_d.
        owner: of each image.
        labels: of each image.
    """
    count, _, classes = guesses.shape
    learned = ~guesses.isnan().flatten(1).any(1)
    holds = torch.zeros(count, classes, dtype=torch.bool)
    holds[owner, labels] = True
    both = torch.full((count, classes), torch.nan, dtype=torch.float64)
    for c, k in torch.nonzero(holds).tolist():
        others = holds[:, k] & learned & (torch.arange(count) != c)
        if others.sum() < OTHERS:
            continue
        mine, theirs = (labels == k) & (owner == c), (labels == k) & (owner != c)
        shares = [_share(guesses[others][:, mine].mean(0), k)]
        if learned[c]:
            shares.append(_share(guesses[c, theirs], k))
        both[c, k] = statistics.fmean(shares)
    behind = both - both.nanquantile(0.5, dim=0)
    found = []
    for own, less, held in zip(both, behind, holds.sum(1).tolist(), strict=True):
        known = torch.nonzero(~own.isnan()).flatten()
        if not len(known):
            found.append(Agreement(None, None, None, 0, held))
            continue
        place = int(known[less[known].argmin()])
        found.append(Agreement(own[known].mean().item(), less[place].item(), place, len(known), held))
    return found


def _share(guesses: Float[Tensor, "m K"], label: int) -> float:
    return (guesses.argmax(1) == label).double().mean().item()


def accusations(found: Sequence[Agreement], names: Sequence[str]) -> list[str | None]:
    """For each client why it is flagged, in one sentence; None: it is not. ``names`` are of the classes."""
    overall = _least([each.agreement for each in found], FLOOR)
    worst = _least([each.worst for each in found], WORST_FLOOR)
    told: list[str | None] = []
    for each in found:
        if each.agreement is None or each.worst is None or each.where is None:
            told.append(None)
        elif each.agreement < overall:
            told.append(
                f"its images disagree with the others': {each.agreement:.0%} are read alike, below {overall:.0%}"
            )
        elif each.worst < worst:
            told.append(
                f"its images of class '{names[each.where]}' disagree with the others': they are read alike "
                f"{-100 * each.worst:.0f} points less often, beyond {-100 * worst:.0f}"
            )
        else:
            told.append(None)
    return told


def _least(values: Sequence[float | None], floor: float) -> float:
    """Below which a figure is remarkable; minus infinity where too few are known to say."""
    known = [value for value in values if value is not None]
    if len(known) <= OTHERS:
        return -math.inf
    middle = statistics.median(known)
    spread = _NORMAL * statistics.median(abs(value - middle) for value in known)
    return middle - max(floor, MADS * spread)


def _guesses(union: Shard, sets: Sequence[DistilledSet], start: Trained, recipe: Recipe, desk: Desk) -> list[Tensor]:
    """p_d(x), by d."""
    pupils = [
        _Pupil(each.synthetic, Desk(desk.seed.at("set", each.client), device=desk.device, progress=desk.steps))
        for each in sets
    ]
    desk.progress("check", 0, len(sets))
    found: list[Tensor] = []
    for guesses in desk.map(partial(_taught, union, start, recipe), pupils):
        found.append(guesses)
        desk.progress("check", len(found), len(sets))
    return found


class _Pupil(NamedTuple):
    """What one network learns; crosses to a worker process."""

    lesson: Shard
    desk: Desk


def _taught(union: Shard, start: Trained, recipe: Recipe, pupil: _Pupil) -> Float[Tensor, "m K"]:
    """What the network that learned ``pupil.lesson`` makes of all images; NaN where nothing could be learned."""
    device = pupil.desk.device
    try:
        fitted = fit(start.module(), pupil.lesson, recipe, seed=pupil.desk.seed, device=device)
    except Diverged:
        return torch.full((len(union), len(union.classes)), torch.nan, dtype=torch.float64)
    tensors = {name: tensor.cpu() for name, tensor in fitted.tensors.items()}
    return predict(Trained(start.architecture, tensors).module(), union, device=device).double().softmax(1)


def _figures(its: Agreement, names: Sequence[str]) -> dict[str, Any]:
    return {
        "agreement": its.agreement,
        "agreement_worst": its.worst,
        "agreement_class": None if its.where is None else names[its.where],
        "assessed": its.assessed,
        "classes": its.classes,
    }
