"""Differential privacy of a client's training images: what methods of several rounds have in common.

A client's work of a round looks at its images by steps of one mechanism (:mod:`fedstill.privacy`): s of them, each of which takes
an image with probability q. With a budget ε that is to last R rounds *of this client*, its noise is

    σ = noise_for(ε, q, steps = R s, δ)

from the first round on, and after r rounds it has spent ε_r = epsilon_of(σ, q, r s, δ) ≤ ε: the rounds compose adaptively, for
what a client gets back is made of what it sent before. It keeps in its memory how many steps it has made, and one that would go
beyond R s is not made: it answers with that sentence, round after round, and the run goes on without it. Who is drawn into few
rounds has spent less; the noise is that of the worst case, R rounds.

Symbols: ε ``privacy_epsilon``, δ ``privacy_delta``, R ``privacy_rounds``. R is no default of the run's ``rounds``: more rounds
may be added to a run that is done, and its noise cannot be made greater afterwards.

A round whose training diverged leaves no weights and is not counted; that it diverged is seen, and not covered.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Annotated, Any, Protocol

from pydantic import Field

from fedstill.bundle import Bundle
from fedstill.errors import InputError, RunError
from fedstill.models.architecture import Architecture
from fedstill.privacy import Guarantee, Look, check_network, epsilon_of, noise_for
from fedstill.rounds import Site, World
from fedstill.seeds import Seed
from fedstill.updates import MOST_DELTA

__all__ = [
    "COVERS",
    "Lasting",
    "PrivacyClip",
    "PrivacyDelta",
    "PrivacyEpsilon",
    "PrivacyRounds",
    "Protected",
    "beyond",
    "check_delta",
    "check_deltas",
    "check_descent",
    "check_gradients",
    "check_rounds",
    "claimed",
    "guarantee",
    "is_spent",
    "next_round",
    "remark",
    "remarks",
    "said",
    "so_far",
    "spent",
    "steps_of",
    "told",
    "unsaid",
]

PrivacyEpsilon = Annotated[
    float | None,
    Field(gt=0, le=1000, description="budget of all rounds of a client together, by DP-SGD; none: not private"),
]
PrivacyDelta = Annotated[
    float, Field(gt=0, le=MOST_DELTA, description="for which epsilon is told; below 1 / a client's images")
]
PrivacyClip = Annotated[float, Field(gt=0, description="largest norm of an image's gradient in DP-SGD")]
PrivacyRounds = Annotated[
    int | None, Field(ge=1, description="rounds of a client that the budget is to last; in a further one it refuses")
]

COVERS = (
    "covers each single training image of a client, not its validation images, its classes or its number of images; the noise "
    "comes of the run's seed and settings, and who knows these can take it off"
)
"""What there is to say of noise before a run begins."""

_STEPS = "private_steps"
"""In a client's memory: how many of its steps are spent."""


class Budgeted(Protocol):
    """What a server needs to know, to judge what a client says."""

    @property
    def privacy_epsilon(self) -> float | None: ...
    @property
    def privacy_delta(self) -> float: ...


class Lasting(Budgeted, Protocol):
    """A budget for several rounds."""

    @property
    def privacy_rounds(self) -> int | None: ...


class Protected(Lasting, Protocol):
    """Fields of a method whose clients can learn by DP-SGD."""

    @property
    def world(self) -> World: ...
    @property
    def privacy_clip(self) -> float: ...


# --- before a run ------------------------------------------------------------------------------------------------------


def check_rounds(method: Lasting) -> None:
    """That a budget says how long it is to last.

    Raises:
        InputError: it does not, or there is none that could.
    """
    if method.privacy_epsilon is not None and method.privacy_rounds is None:
        raise InputError(
            f"algorithm.privacy_epsilon = {method.privacy_epsilon:g}: say in algorithm.privacy_rounds how many rounds of a "
            "client it is to last; the number of rounds of the run covers every client"
        )
    if method.privacy_epsilon is None and method.privacy_rounds is not None:
        raise InputError(
            f"algorithm.privacy_rounds = {method.privacy_rounds}: there is no budget to last so long; set "
            "algorithm.privacy_epsilon, or leave it out"
        )


def check_descent(method: Protected) -> None:
    """All that can be refused before a client learns by DP-SGD; nothing, where there is no budget.

    Raises:
        MissingExtra: Opacus is not installed.
        InputError: as :func:`check_rounds` and :func:`fedstill.privacy.check_network`.
    """
    check_rounds(method)
    if method.privacy_epsilon is not None:
        check_gradients(method.world.architecture)


def check_gradients(architecture: Architecture) -> None:
    """That every image has a gradient of its own in such a network.

    Raises:
        MissingExtra, InputError: as :func:`fedstill.privacy.check_network`.
    """
    shape = (architecture.channels, *architecture.size)
    check_network(architecture.build(Seed(("check",))), shape, key=architecture.key)


def check_deltas(method: Any, sites: Mapping[str, Site]) -> None:
    """That δ is below one image at every client, before a run of it: there, :func:`check_delta` fails that client alone.

    ``method`` may be wrapped in others, and have a ``[virtual]`` table with a budget of its own.

    Raises:
        InputError: it is not.
    """
    largest = max(sites, key=lambda client: len(sites[client].train))
    images = len(sites[largest].train)
    while method is not None:
        for table, holder in (("algorithm", method), ("virtual", getattr(method, "virtual", None))):
            private = getattr(holder, "privacy_epsilon", None) is not None or getattr(holder, "privacy_noise", 0) > 0
            delta = getattr(holder, "privacy_delta", None)
            if private and delta is not None and delta * images >= 1:
                raise InputError(
                    f"{table}.privacy_delta = {delta:g} allows one of the {images} training images of '{largest}' to be shown: "
                    f"set it below 1/{images}"
                )
        method = getattr(method, "inner", None)


def remark(method: Budgeted, table: str = "algorithm") -> str | None:
    """What a user should know of a budget, which stands in ``table``, before a run begins; None without one."""
    if method.privacy_epsilon is None:
        return None
    return f"{table}.privacy_epsilon = {method.privacy_epsilon:g} {COVERS}"


def remarks(method: Lasting, rounds: int) -> Sequence[str]:
    """The same of a run of so many rounds, and whether the budget lasts."""
    found = remark(method)
    if found is None:
        return ()
    lasts = method.privacy_rounds
    if lasts is None or rounds <= lasts:
        return (found,)
    return (
        found,
        f"algorithm.privacy_rounds = {lasts} and the run has {rounds} rounds: a client that has been in {lasts} of them refuses "
        "to work in a further one",
    )


# --- at a client -------------------------------------------------------------------------------------------------------


def guarantee(
    epsilon: float, delta: float, look: Look, *, images: int, steps: int, lasting: int, table: str = "algorithm"
) -> Guarantee:
    """What ``steps`` steps spend with the noise that lets ``lasting`` of them stay within ``epsilon``.

    ``table`` of the experiment is where δ was set.

    Raises:
        RunError: δ allows one of the ``images`` to be shown, or no noise is enough.
    """
    check_delta(delta, images, table)
    noise = noise_for(epsilon, rate=look.rate, steps=lasting, delta=delta)
    return Guarantee(epsilon_of(noise=noise, rate=look.rate, steps=steps, delta=delta), delta, noise)


def check_delta(delta: float, images: int, table: str = "algorithm") -> None:
    """That δ is below one image in all.

    Raises:
        RunError: it is not.
    """
    if delta * images >= 1:
        raise RunError(
            f"{table}.privacy_delta = {delta:g} allows one of the client's {images} images to be shown: set it below "
            f"{1 / images:.1g}"
        )


_SPENT = "its budget is spent"


def beyond(epsilon: float | None, setting: str, lasting: int | None, unit: str) -> RunError:
    """Why a client does not work: its budget was to last ``setting`` = ``lasting`` of its ``unit``, and these are over."""
    return RunError(
        f"{_SPENT}: epsilon = {epsilon:g} was to last {setting} = {lasting} of its {unit}, and another would go beyond it"
    )


def is_spent(reason: str) -> bool:
    """Whether a client that gave this reason has no budget left, so that asking again is of no use."""
    return reason.startswith(_SPENT)


def next_round(method: Lasting, look: Look, *, images: int, memory: Bundle) -> Guarantee | None:
    """What a client will have spent after one more round of ``look.steps`` steps; None without a budget.

    Raises:
        RunError: the budget does not allow this round, or as :func:`guarantee`.
    """
    epsilon, rounds = method.privacy_epsilon, method.privacy_rounds
    if epsilon is None or rounds is None:
        return None
    lasting, steps = rounds * look.steps, steps_of(memory) + look.steps
    if steps > lasting:
        raise beyond(epsilon, "algorithm.privacy_rounds", rounds, "rounds")
    return guarantee(epsilon, method.privacy_delta, look, images=images, steps=steps, lasting=lasting)


def so_far(noise: float, delta: float, look: Look, *, images: int, memory: Bundle) -> Guarantee:
    """What a client will have spent after one more round of ``look.steps`` steps with noise that is given, without a budget.

    Raises:
        RunError: δ allows one of the ``images`` to be shown.
    """
    check_delta(delta, images)
    steps = steps_of(memory) + look.steps
    return Guarantee(epsilon_of(noise=noise, rate=look.rate, steps=steps, delta=delta), delta, noise)


def steps_of(memory: Bundle) -> int:
    """How many private steps the client has made."""
    return int(memory.numbers.get(_STEPS, 0))


def spent(memory: Bundle, steps: int) -> Bundle:
    """``memory`` after a round of ``steps`` steps."""
    return memory.put({_STEPS: steps_of(memory) + steps})


# --- at the server -----------------------------------------------------------------------------------------------------


def said(method: Budgeted, reply: Bundle, table: str = "algorithm") -> Guarantee | None:
    """What a stranger says that it has spent: its word, for no server can tell by what it sent. None without a budget.

    ``table`` of the experiment is where the budget was set.

    Raises:
        InputError: it says nothing of the kind, or that it went beyond the budget.
    """
    if method.privacy_epsilon is None:
        return None
    found = claimed(reply)
    if found.epsilon > method.privacy_epsilon or found.delta > method.privacy_delta:
        raise InputError(
            f"it says that it spent epsilon = {found.epsilon:g} at delta = {found.delta:g}, which is beyond "
            f"{table}.privacy_epsilon = {method.privacy_epsilon:g} at {table}.privacy_delta = {method.privacy_delta:g}"
        )
    return found


def claimed(reply: Bundle) -> Guarantee:
    """The guarantee that a reply tells of.

    Raises:
        InputError: it tells of none.
    """
    numbers = [reply.numbers.get(name, math.nan) for name in ("epsilon", "delta", "noise")]
    if not all(0 < number < math.inf for number in numbers):
        raise InputError("its reply does not say how private it is: epsilon, delta and noise are due, each above 0")
    return Guarantee(*numbers)


def unsaid(method: Budgeted, reply: Bundle, table: str = "algorithm") -> str | None:
    """Why ``reply`` cannot be used under the budget; None where it can, or there is none."""
    try:
        said(method, reply, table)
    except InputError as error:
        return str(error)
    return None


def told(found: Guarantee | None) -> dict[str, Any]:
    """For a client's line in the round's figures."""
    return {} if found is None else {"privacy": asdict(found)}
