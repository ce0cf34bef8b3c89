"""What clients send of a network, cut, noised and in few bits, under any method whose clients send a network and numbers alone.

    client:  Δ = reply − sent;  Δ' = Δ · min(1, S / ‖Δ‖) + N(0, (z S)² I)      (fedstill.updates)
             sends sent + Δ', or Δ' in b bits an entry                         (fedstill.codes)
    server:  reply' = sent + Δ̂', which is all that the method sees

A transform of a client's reply: the method inside knows nothing of it. Each of the three is there where its option is; rounding
comes last, of what is noised already, and costs no privacy.

**Noise** makes the client private as a whole, whatever its images are, against everybody who sees what it sends, the server too:
it is added before anything leaves. T answers of a client are (ε, δ)-differentially private with ε = epsilon(T, z, δ); a client
that was in fewer rounds has spent less. It counts its answers in its memory and says their number. With a budget ε for
``rounds`` answers, z is found (:func:`fedstill.updates.noise_for`), and a client that has given as many refuses a further one.
Of its reply's numbers those are left that say nothing but counts of images; losses are not. Of a method that is not fedstill's
``examples`` alone is left, for nobody knows what its other numbers say.

A Δ that is not finite, and a training that diverged, count as Δ = 0: noised, sent and counted, or a failure would tell of the
images whatever z is. Where the server needs more of a reply than a network and ``examples`` (FedNova's steps, FedLGD's own
weights, a budget's ε, the number of virtual images) none can be made up for a training that diverged, and it stays a failure
that is seen.

The noise is of the run's seed, so that a run that was killed goes on to the same bits, and who knows that can take it off: it is
for studies, as :mod:`fedstill.privacy` says of DP-SGD. A real site has a secret of its own for it (``[privacy]``).

BatchNorm's statistics are of images themselves: noise does not cover them and is refused. Without noise they and integer
counters travel as they are, and are no part of Δ.

Symbols: S ``clip``, z ``noise``, b ``bits``, T ``answers``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Annotated, Any

import torch
from pydantic import ConfigDict, Field

from fedstill import codes
from fedstill.algorithms import ALGORITHMS
from fedstill.algorithms.fednova import FedNova
from fedstill.algorithms.protection import beyond
from fedstill.algorithms.replies import MOST
from fedstill.algorithms.virtual import OnVirtual
from fedstill.bundle import GROUPS, Bundle, Group
from fedstill.errors import Diverged, InputError
from fedstill.rounds import Algorithm, Desk, Failure, Outcome, Reply, Site, Trained, needed_replies
from fedstill.seeds import Seed
from fedstill.updates import MOST_DELTA, beside, change_of, cut, epsilon, fits, hidden, moved, noise_for

__all__ = ["CODES", "SCALES", "OnUpdates", "UpdateSettings", "uncovered"]

MODEL = "model"
CODES, SCALES = "model:codes", "model:scales"
"""Groups of a reply in few bits; its ``model`` holds what is sent as it is, if anything is."""

ANSWERS = "answers"
_GIVEN = "update_answers"
"""In a client's memory: how many noised answers it has given."""

EXAMPLES = "examples"
_GUARANTEE = frozenset(("epsilon", "delta", "noise"))
_COUNTS = frozenset((EXAMPLES, "steps", "virtual")) | _GUARANTEE
"""Numbers of fedstill's methods that follow from how many images there are, and from settings."""


@dataclass(frozen=True, kw_only=True)
class UpdateSettings:
    """The ``[update]`` table: what becomes of what clients learnt, before it is sent."""

    __pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)

    clip: Annotated[
        float | None,
        Field(gt=0, description="S, longest change of the network that is sent; a longer one is cut to it"),
    ] = None
    noise: Annotated[
        float | None,
        Field(ge=1e-3, le=1e6, description="z, standard deviation of noise added to it, in units of clip; for studies"),
    ] = None
    epsilon: Annotated[
        float | None,
        Field(gt=0, le=1000, description="budget of all answers of a client together, for which the noise is found"),
    ] = None
    delta: Annotated[float, Field(ge=1e-12, le=MOST_DELTA, description="for which epsilon is told")] = 1e-5
    rounds: Annotated[
        int | None, Field(ge=1, description="answers of a client that the budget is to last; it refuses a further one")
    ] = None
    bits: Annotated[
        int | None,
        Field(
            ge=codes.LEAST,
            le=codes.MOST,
            description="an entry of the change, rounded at random so that the mean is right; without it, 32",
        ),
    ] = None

    @property
    def acts(self) -> bool:
        """Whether it changes anything."""
        return self.plain() != {}

    @property
    def private(self) -> bool:
        """Whether noise is added."""
        return self.noise is not None or self.epsilon is not None

    @property
    def multiplier(self) -> float:
        """z, given or found; 0 without noise."""
        if self.epsilon is not None and self.rounds is not None:
            return noise_for(self.epsilon, self.rounds, self.delta)
        return self.noise or 0.0

    def plain(self) -> dict[str, Any]:
        """What is set, as plain values; nothing where nothing is done."""
        given = {key: value for key, value in asdict(self).items() if value is not None}
        if not self.private:
            del given["delta"]  # of nothing
        return given

    def check(self) -> None:
        """That the options go together.

        Raises:
            InputError: they do not.
        """
        if self.private and self.clip is None:
            key = "noise" if self.noise is not None else "epsilon"
            raise InputError(f"update.{key}: noise hides a change of a known length alone; set update.clip, too")
        if self.noise is not None and self.epsilon is not None:
            raise InputError(
                f"update.noise = {self.noise:g}: it is found for update.epsilon = {self.epsilon:g}; leave one of them out"
            )
        if self.epsilon is not None and self.rounds is None:
            raise InputError(
                f"update.epsilon = {self.epsilon:g}: say in update.rounds how many answers of a client it is to last; the "
                "number of rounds of the run covers every client"
            )
        if self.epsilon is None and self.rounds is not None:
            raise InputError(
                f"update.rounds = {self.rounds}: there is no budget to last so long; set update.epsilon, or leave it out"
            )


@dataclass(frozen=True, kw_only=True)
class OnUpdates:
    """Any method, on clients' updates as these settings make them.

    Attributes:
        inner: the method.
        update: what becomes of an update.
    """

    inner: Algorithm
    update: UpdateSettings

    def init(self, clients: Sequence[str], desk: Desk) -> Bundle:
        """The method's state.

        Raises:
            InputError: as :meth:`UpdateSettings.check`, the network has what noise does not cover, and the method's own.
        """
        self.update.check()
        state = self.inner.init(clients, desk)
        for client in clients[:1] if self.update.private else ():
            for name in beside(self.inner.broadcast(state, client).groups.get(MODEL, {})):
                raise InputError(
                    f"update.noise does not cover statistics of the images such as '{name}': use a network without BatchNorm "
                    "(model.norm = 'instance', 'group' or 'none')"
                )
        return state

    def task(self, state: Bundle) -> str | None:
        return self.inner.task(state)

    @property
    def needs_replies(self) -> tuple[int, str]:
        """The method's own."""
        return needed_replies(self.inner)

    def broadcast(self, state: Bundle, client: str) -> Bundle:
        return self.inner.broadcast(state, client)

    def local(self, inbox: Bundle, site: Site, memory: Bundle, desk: Desk) -> tuple[Bundle, Bundle]:
        given = int(memory.numbers.get(_GIVEN, 0)) + 1
        lasts = self.update.rounds
        if lasts is not None and given > lasts:
            raise beyond(self.update.epsilon, "update.rounds", lasts, "answers")
        reply, kept = self._learnt(inbox, site, memory, desk)
        reply = self.sent(inbox, reply, desk.seed.at("update"))
        if not self.update.private:
            return reply, kept
        return reply.put({ANSWERS: given}), kept.put({_GIVEN: given})

    def _learnt(self, inbox: Bundle, site: Site, memory: Bundle, desk: Desk) -> tuple[Bundle, Bundle]:
        """The method's work; of private training that diverged the network as it was sent, where such a reply will do.

        Raises:
            Diverged: it will not, or nothing is private.
        """
        try:
            return self.inner.local(inbox, site, memory, desk)
        except Diverged:
            if not self.update.private or _says_more(self.inner):
                raise
            return Bundle({MODEL: inbox.groups[MODEL]}, {EXAMPLES: len(site.train)}), memory

    def score(self, inbox: Bundle, site: Site, memory: Bundle, desk: Desk) -> Bundle:
        return self.inner.score(inbox, site, memory, desk)

    def aggregate(self, state: Bundle, replies: Iterable[Reply], desk: Desk) -> Outcome:
        """Figures: with noise each client's ``update``: ε and δ of all its ``answers`` so far, and z."""
        if self.task(state) != "local":
            return self.inner.aggregate(state, replies, desk)
        reader = _Reader(self, state, replies)
        outcome = self.inner.aggregate(state, reader, desk)
        clients = {
            client: {**line, **reader.said.get(client, {})}
            for client, line in outcome.figures.get("clients", {}).items()
        }
        figures = {**outcome.figures, "clients": clients} if reader.said else outcome.figures
        return replace(outcome, figures=figures, failures=(*reader.failures, *outcome.failures))

    def models(self, state: Bundle) -> Mapping[str, Trained]:
        return self.inner.models(state)

    def remarks(self, rounds: int) -> Sequence[str]:
        """What noise covers, and what it comes to."""
        if not self.update.private:
            return ()
        delta, lasts, z = self.update.delta, self.update.rounds, self.update.multiplier
        most = rounds if lasts is None else min(lasts, rounds)
        spent = epsilon(most, z, delta)
        found = (
            f"[update]: with noise = {z:.4g} a client of {most} round{_s(most)} has spent epsilon = {spent:.4g} at delta = "
            f"{delta:g}, of all its training images at once, not of its validation images or their number; the noise comes of "
            "the run's seed, and who knows that can take it off"
        )
        if lasts is None or rounds <= lasts:
            return (found,)
        return (
            found,
            f"update.rounds = {lasts} and the run has {rounds} rounds: a client that has given {lasts} answer{_s(lasts)} refuses "
            "to work in a further one",
        )

    # --- what travels ------------------------------------------------------------------------------------------------

    def sent(self, inbox: Bundle, reply: Bundle, seed: Seed) -> Bundle:
        """What a client sends for the method's ``reply``.

        Raises:
            InputError: the reply holds what this does not cover, is no change of what was sent, or, without noise, is not finite.
        """
        before, after = inbox.groups.get(MODEL, {}), reply.groups.get(MODEL, {})
        if other := sorted(reply.groups.keys() - {MODEL}):
            raise InputError(f"[update] covers a network alone, and the reply holds '{other[0]}'")
        if not fits(after, before):
            raise InputError("[update] covers a network that was sent and comes back, and the reply is no such")
        kept = beside(after)
        change = change_of(before, after, kept)
        if self.update.clip is not None:
            if self.update.private:
                z = self.update.multiplier
                change = hidden(change, self.update.clip, z, lambda name, shape: _normal(seed.at("noise", name), shape))
                counts = _counts(self.inner)
                numbers = {name: number for name, number in reply.numbers.items() if name in counts}
                reply = Bundle(reply.groups, numbers)
            else:
                change = cut(change, self.update.clip)
        as_is = {name: after[name] for name in kept}
        if self.update.bits is None:
            return reply.put(model={**moved(before, change), **as_is})
        coded = {name: codes.encode(each, self.update.bits, seed.at("bits", name)) for name, each in change.items()}
        groups = {
            CODES: {name: code for name, (code, _) in coded.items()},
            SCALES: {name: scale for name, (_, scale) in coded.items()},
        }
        return reply.drop(MODEL).put(**({MODEL: as_is} if as_is else {}), **groups)

    def opened(self, sent: Bundle, reply: Bundle) -> Bundle:
        """The reply as the method has it, of what arrived, which is a stranger's.

        Raises:
            InputError: it is no such reply; a clause of a sentence.
        """
        if self.update.private:
            self._answers(reply)
        if self.update.bits is None:
            return reply
        before = sent.groups.get(MODEL, {})
        kept = set(beside(before))
        due = before.keys() - kept
        found, scales, as_is = (reply.groups.get(name, {}) for name in (CODES, SCALES, MODEL))
        if found.keys() != due or scales.keys() != due or as_is.keys() != kept:
            raise InputError("its reply holds no change, in codes and scales, of the network that was sent")
        change = {}
        for name in due:
            try:
                change[name] = codes.decode(found[name], scales[name], before[name].shape, self.update.bits)
            except InputError as error:
                raise InputError(f"its reply cannot be read as to '{name}': {error}") from error
        return reply.drop(CODES, SCALES).put(model=_in_order(before, {**moved(before, change), **as_is}))

    def _answers(self, reply: Bundle) -> int:
        """T, by its own word."""
        number = reply.numbers.get(ANSWERS, math.nan)
        if not (isinstance(number, int | float) and 1 <= number <= MOST and float(number).is_integer()):
            raise InputError(
                f"its reply does not say how many noised answers it has given: {ANSWERS} is due, 1 or more"
            )
        if self.update.rounds is not None and number > self.update.rounds:
            raise InputError(
                f"it says that it has given {number:g} noised answers, which is beyond update.rounds = {self.update.rounds}"
            )
        return int(number)

    def told(self, reply: Bundle) -> dict[str, Any]:
        """For a client's line in the round's figures; nothing without noise."""
        if not self.update.private:
            return {}
        answers, noise, delta = self._answers(reply), self.update.multiplier, self.update.delta
        spent = {"epsilon": epsilon(answers, noise, delta), "delta": delta, "noise": noise, "answers": answers}
        return {"update": spent}


@dataclass
class _Reader:
    """Replies as the method has them; ``failures`` says of each other one why, ``said`` what a client says of its privacy."""

    method: OnUpdates
    state: Bundle
    replies: Iterable[Reply]
    failures: list[Failure] = field(default_factory=list)
    said: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Reply]:
        for reply in self.replies:
            try:
                sent = self.method.broadcast(self.state, reply.clients[0])
                found = self.method.opened(sent, reply.bundle)
            except InputError as error:
                self.failures.append(Failure(reply.client, str(error)))
                continue
            if told := self.method.told(reply.bundle):
                self.said[reply.client] = told
            yield replace(reply, bundle=found)


def uncovered(sends: Sequence[str], options: Any) -> str:
    """Why clients of a method send what ``[update]`` does not cover; empty where they send a network alone.

    Args:
        sends: groups of its replies, as the table of methods has them.
        options: the method's own.
    """
    if not sends:
        return "its clients send nothing that they learnt"
    if MODEL not in sends:
        return f"its clients send {GROUPS[sends[0]]} and no network"
    if other := [group for group in sends if group != MODEL]:
        return f"its clients send {GROUPS[other[0]]} beside their networks, which it does not cover"
    for key, value in (("average", "gradients"), ("selected_training", "both")):
        if getattr(options, key, None) == value:
            return f"with algorithm.{key} = '{value}' its clients send {GROUPS['gradient']}, which it does not cover"
    return ""


def _counts(method: Algorithm) -> frozenset[str]:
    """Numbers that a reply keeps."""
    if isinstance(method, OnVirtual):  # which says itself what its images have cost
        inner = _counts(method.inner)
        return inner if method.virtual.privacy_epsilon is None else inner | _GUARANTEE
    return _COUNTS if _is_ours(method) else frozenset((EXAMPLES,))


def _is_ours(method: Algorithm) -> bool:
    """Whether it is a method of fedstill's, no class of the user's."""
    place = f"{type(method).__module__}:{type(method).__qualname__}"
    return any(entry.factory == place for entry in ALGORITHMS.values())


def _says_more(method: Any) -> bool:
    """Whether a server needs more of a reply than a network and the number of training images."""
    budgets = (method, getattr(method, "virtual", None))
    return (
        isinstance(method, FedNova | OnVirtual)
        or any(getattr(each, "privacy_epsilon", None) is not None for each in budgets)
        or getattr(method, "weighting", None) == "own"
    )


def _s(count: int) -> str:
    return "" if count == 1 else "s"


def _normal(seed: Seed, shape: torch.Size) -> torch.Tensor:
    return torch.randn(shape, generator=seed.torch(), dtype=torch.float64)


def _in_order(like: Group, found: Group) -> Group:
    """``found`` in the order of ``like``, so that a decoded network is one like any other."""
    return {name: found[name] for name in like}
