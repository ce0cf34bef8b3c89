"""Inversion on a run: images sought behind a client's update, one that is made of one image or of few, and the one it sent.

An attack that fails on what a client sent says little by itself. So it is made first where it should work: on what the
client would send after a single step on one image, and on a few, from the network that it received; and, where that has learnt
already, from the one with which the run began, for a network that knows its images well moves little. A client that protects its
gradients (:mod:`fedstill.privacy`) would clip them and add its noise in that step too, with the σ that it told: so does the
audit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fedstill.algorithms.updates import ANSWERS, OnUpdates
from fedstill.algorithms.virtual import kept_set
from fedstill.attacked import Nothing, Target, exchange_of, held_out, memory_of
from fedstill.attacks.updates import again, no_updates, update_seen
from fedstill.audit import likeness as alike
from fedstill.audit.attributes import by_signs, label_of_one, labels_of
from fedstill.audit.federation import Exchange, sent_network
from fedstill.audit.inversion import ASSUMPTIONS, CITATION, Inverted, Inverting, invert
from fedstill.audit.seen import Seen, update_of
from fedstill.bundle import Bundle
from fedstill.data.shard import Shard, hard_labels
from fedstill.errors import Diverged, InputError
from fedstill.folder import AUDITED
from fedstill.kept import training_fields, virtual_sets
from fedstill.output import save_pairs
from fedstill.privacy import Privacy
from fedstill.rounds import Desk, Trained
from fedstill.seeds import Seed
from fedstill.train import Recipe

__all__ = ["Inversion", "inversion"]

REAL, VIRTUAL = "real", "virtual"
_LR = 0.01  # of a re-made step, where the method has no step size of its own; the attack compares directions only
_TOLD = {"matching_pixel_min", "matching_pixel_max"}


@dataclass(frozen=True, kw_only=True)
class Inversion:
    """Inversion of one client's update.

    Attributes:
        client: whose; None: the first client's.
        round: the round it is of, or the last one before in which the client sent one; None: the last.
        images: that are sought at a time, but for the attack on one.
        steps, restarts: of the search.
    """

    client: str | None = None
    round: int | None = None
    images: int = 8
    steps: int = 2400
    restarts: int = 1

    def check(self) -> None:
        """All that can be refused before the run is opened.

        Raises:
            InputError: a number is below 1.
        """
        if self.images < 1:
            raise InputError(f"--images {self.images}: at least one image is sought")
        Inverting(steps=self.steps, restarts=self.restarts)


class _Case(NamedTuple):
    """An update that is inverted, the labels with which images are sought, and the images that are really behind it."""

    what: Seen
    labels: Tensor
    behind: Shard


class _Own(NamedTuple):
    """What a client trains on, between which values its pixels lie, and by whom the attacker is told."""

    kind: str
    images: Shard
    pixels: tuple[float, float]
    told: str


def inversion(asked: Inversion, target: Target, desk: Desk) -> dict[str, Any]:
    """Images that were found, how alike they are to the true ones, and pictures of both.

    Raises:
        Nothing: the client sent no update that could be inverted.
        InputError: the client or the round is unknown, or a kept message is damaged.
        RunError: a round that is done again fails, or the disk refuses a picture.
    """
    client, number = target.client(asked.client), target.number(asked.round)
    if (why := no_updates(target)) is not None:
        raise Nothing(why)
    heard = exchange_of(target, client, number, desk, partial(again, desk))
    if heard.exchange is None:
        raise Nothing(f"'{client}' sent nothing up to round {number}")
    sent = update_seen(heard.exchange, target)
    own = _own(target, client, heard.exchange, desk)
    cases: dict[str, Any] = {}
    privacy = _privacy(target, heard.exchange)
    first = _first(target, client) if heard.exchange.number > 1 else None
    made_of = _cases(target, own, first, sent, asked.images, privacy, desk)
    for name, case in made_of.items():
        desk.progress("updates", len(cases), len(made_of))
        try:
            made = case()
            # here, as images of one grey alone leave no range to seek in
            attack = Inverting(steps=asked.steps, restarts=asked.restarts, pixels=own.pixels)
            found = invert(made.what, made.labels, made.behind.normalisation, attack=attack, desk=desk.at(name))
        # the latter two are torch's, of a user's own network
        except (InputError, Diverged, RuntimeError, ValueError) as error:
            cases[name] = {"missing": (str(error).splitlines() or [type(error).__name__])[0][:200]}
            continue
        against = _against(target, client, own, made.behind, found, desk.at(name, "likeness"))
        picture = f"{AUDITED}/inversion-{name}.png"
        match = against[own.kind]["match"]
        true, sought = (alike.pixels_of(images) for images in (made.behind.images, found.images))
        save_pairs(target.run / picture, true[match["true"]], sought[match["found"]], ("true", "found"))
        cases[name] = found.to_json() | {"behind": len(made.behind), "against": against, "picture": picture}
    desk.progress("updates", len(cases), len(made_of))
    return {
        "method": target.experiment.algorithm.name,
        "client": client,
        "round": heard.exchange.number,
        "source": heard.source,
        "same_bits": heard.same_bits,
        "kind": own.kind,
        "pixels": list(own.pixels),
        "pixels_told": own.told,
        "steps": asked.steps,
        "restarts": asked.restarts,
        "protection": None if privacy is None else asdict(privacy),
        "citation": CITATION,
        "assumptions": ASSUMPTIONS,
        "likeness": {"citation": alike.CITATION, "assumptions": alike.ASSUMPTIONS},
        "cases": cases,
        "pictures": [case["picture"] for case in cases.values() if "picture" in case],
    }


def _privacy(target: Target, exchange: Exchange) -> Privacy | None:
    """How the client made the update private, by its own word; None where it did not."""
    noise = exchange.up.numbers.get("noise")
    fields = training_fields(target.run, target.experiment)
    # a budget of virtual images is spent before any step on them
    if noise is None or fields.get("privacy_epsilon") is None:
        return None
    return Privacy(float(noise), float(fields["privacy_clip"]))


def _first(target: Target, client: str) -> Trained | str:
    """The network that the client was sent in round 1, or why it is not had."""
    start = target.parts.start.put({"round": 1})
    return sent_network(target.parts.algorithm.broadcast(start, client), target.parts.world.architecture)


def _cases(
    target: Target,
    own: _Own,
    first: Trained | str | None,
    sent: Seen,
    images: int,
    privacy: Privacy | None,
    desk: Desk,
) -> dict[str, Callable[[], _Case]]:
    """By name; each is made when it is attacked. ``first``: another network than the one that was received; None: none."""
    rows = desk.seed.at("rows").numpy().permutation(len(own.images))[:images].tolist()
    lr = training_fields(target.run, target.experiment).get("lr", _LR)

    def one(received: Trained | str) -> _Case:
        if isinstance(received, str):
            raise InputError(received)
        step = _step(target, received, own.images.take(rows[:1]), lr, privacy, desk)
        return step._replace(labels=torch.tensor([label_of_one(step.what)]))

    def really() -> _Case:
        shares = by_signs(sent, images=len(own.images))
        return _Case(sent, labels_of(shares, min(images, len(own.images))), own.images)

    return {
        **({} if first is None else {"first": lambda: one(first)}),
        "one": lambda: one(sent.received),
        "few": lambda: _step(target, sent.received, own.images.take(rows), lr, privacy, desk),
        "sent": really,
    }


def _step(target: Target, received: Trained, behind: Shard, lr: float, privacy: Privacy | None, desk: Desk) -> _Case:
    """What the client would send, were these its images, after one step on them all."""
    recipe = Recipe(epochs=1, lr=lr, batch=len(behind))
    desk = desk.at("step", len(behind))
    leaves = partial(_leaves, target, received, desk.seed.at("update"))
    made = update_of(received, behind, recipe, privacy=privacy, leaves=leaves, desk=desk)
    return _Case(made, hard_labels(behind.labels), behind)


def _leaves(target: Target, received: Trained, seed: Seed, reply: Bundle) -> Bundle:
    """What an attacker reads of a reply: with ``[update]`` its change cut, noised and coded, as the client's own are."""
    algorithm = target.parts.algorithm
    if not isinstance(algorithm, OnUpdates):
        return reply
    inbox = Bundle().put(model=received.tensors)
    sent = algorithm.sent(inbox, reply, seed).put({ANSWERS: 1})
    return Exchange(1, inbox, sent).read_by(algorithm).up


def _against(
    target: Target, client: str, own: _Own, behind: Shard, found: Inverted, desk: Desk
) -> dict[str, dict[str, Any]]:
    """How alike found images are to those behind the update; where these are virtual, to the client's real ones, too."""
    true = {own.kind: behind} | ({REAL: target.parts.sites[client].train} if own.kind == VIRTUAL else {})
    others = held_out(target, client)
    return {
        kind: alike.likeness(found.images, found.labels, images, others, seed=desk.seed)
        for kind, images in true.items()
    }


def _own(target: Target, client: str, exchange: Exchange, desk: Desk) -> _Own:
    """The client's training images, which with virtual ones are those of the exchange's round.

    Raises:
        Nothing: they are not to be had.
    """
    virtual = virtual_sets(target.run, target.experiment, target.parts)
    if virtual is None:
        return _Own(REAL, target.parts.sites[client].train, (0.0, 1.0), "photographs")
    images = virtual.own.get(client)
    if not virtual.initial and exchange.number != virtual.round:  # the method moves them from round to round
        memory = memory_of(target, client, exchange.number, desk, partial(again, desk))
        images = kept_set(memory, target.parts.world)
    if images is None:
        raise Nothing(virtual.missing or f"the memory of '{client}' holds no virtual images")
    if exchange.up.numbers.keys() >= _TOLD:
        low, high = (exchange.up.numbers[name] for name in sorted(_TOLD, reverse=True))
        return _Own(VIRTUAL, images, (low, high), "the reply")
    return _Own(VIRTUAL, images, (images.images.min().item(), images.images.max().item()), "the images")
