"""Membership inference on a run: its networks, shadow federations beside it, and plain values."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

from fedstill.attacked import Heard, Nothing, Target, exchange_of, pool_of
from fedstill.attacks.claims import claim_of, claims_of
from fedstill.attacks.updates import again
from fedstill.audit.bounds import CITATION, RATES, Claim
from fedstill.audit.density import gradient_norms
from fedstill.audit.federation import DISTILLED, FINAL, SURROGATE, VIEWS, View, Wanted, Watched, views
from fedstill.audit.membership import ATTACKS, attack_view
from fedstill.audit.pool import Pool
from fedstill.audit.queries import MOST
from fedstill.audit.shadows import Job, Plan, Shadow, confidences, kept, run_shadows
from fedstill.cohorts import cohort_size
from fedstill.errors import InputError, unknown
from fedstill.evaluate.fresh import rates_of, recipe_json, recipe_of
from fedstill.folder import AUDITED
from fedstill.kept import training_fields
from fedstill.rounds import Desk, Site
from fedstill.scores import score
from fedstill.seeds import Seed
from fedstill.train import Recipe

__all__ = ["Membership", "membership"]

VERSION = 1
"""Of the shadow federations' scores."""

LEAST_SHADOWS = 2


@dataclass(frozen=True, kw_only=True)
class Membership:
    """Membership inference.

    Attributes:
        shadows: federations to run beside the target.
        views: what is attacked, of :data:`fedstill.audit.federation.VIEWS`.
        client: whose message the surrogate is; None: the first client's.
        round: the round it is of, or the last one before in which the client sent one; None: the last.
        epochs, lr: of the networks on distilled images, instead of the run's own.
        queries: of an image by LiRA, as :func:`fedstill.audit.queries.queries` makes them.
    """

    shadows: int = 16
    views: tuple[str, ...] = VIEWS
    client: str | None = None
    round: int | None = None
    epochs: int | None = None
    lr: float | None = None
    queries: int = 1

    def check(self) -> None:
        """All that can be refused before the run is opened.

        Raises:
            InputError: a view is unknown, there is none, the shadows are too few, or there are no such queries.
        """
        for view in self.views:
            if view not in VIEWS:
                raise unknown("--views", view, VIEWS)
        if not self.views:
            raise InputError(f"--views: name at least one of {', '.join(VIEWS)}")
        if self.shadows < LEAST_SHADOWS:
            raise InputError(
                f"--shadows {self.shadows}: a likelihood ratio needs {LEAST_SHADOWS} shadow federations at least"
            )
        if not 1 <= self.queries <= MOST:
            raise InputError(f"--queries {self.queries}: an image has 1 to {MOST} of them")


def membership(asked: Membership, target: Target, desk: Desk) -> dict[str, Any]:
    """What the attacks find, as ``audit.json`` holds it. Scores of shadow federations are kept as they are done.

    Raises:
        Nothing: of what is asked for the run has nothing.
        InputError: the client or the round is unknown.
        RunError: a shadow federation came to nothing, or the disk refuses a file.
    """
    client = target.client(asked.client) if SURROGATE in asked.views else None
    number = target.number(asked.round)
    pool = pool_of(target, desk.seed.at("pool"))
    heard = None
    if client is not None:
        heard = exchange_of(target, client, number, desk, partial(again, desk))
    recipe = _recipe(target, asked) if DISTILLED in asked.views else None
    missing = {} if recipe is not None or DISTILLED not in asked.views else {DISTILLED: _no_images(target)}
    wanted = Wanted(final=FINAL in asked.views, client=client, round=number, recipe=recipe)
    exchanges = {} if client is None or heard is None or heard.exchange is None else {client: heard.exchange}
    found, lacking = views(Watched(target.state, exchanges), target.federation(), wanted, desk.at("target"))
    missing |= lacking
    if not found:
        raise Nothing(f"{target.run}: there is nothing to attack: {'; '.join(missing.values())}")
    # of shadow federations what there is to compare with
    wanted = replace(
        wanted,
        final=wanted.final and FINAL not in missing,
        client=None if SURROGATE in missing else client,
        round=number if heard is None or heard.exchange is None else heard.exchange.number,
    )
    shadows = _shadows(target, asked, pool, wanted, desk)
    claims = {view.name: _claim(target, view, wanted.round) for view in found}
    looks = len(RATES) * len(ATTACKS) * sum(claim is not None for claim in claims.values())
    return {
        "method": target.experiment.algorithm.name,
        "round": target.rounds,
        "shadows": len(shadows),
        "queries": asked.queries,
        "pool": _pool_json(pool),
        "surrogate": None if SURROGATE in missing or heard is None else _heard_json(heard, client),
        "recipe": None if recipe is None or DISTILLED in missing else recipe_json(recipe),
        "about": {name: about.to_json() for name, about in ATTACKS.items()},
        "privacy": {"citation": CITATION, "looks": looks} if looks else None,
        "views": [
            _attacked(target, view, pool, shadows, claims[view.name], looks, asked.queries, desk) for view in found
        ],
        "missing": missing,
    }


def _recipe(target: Target, asked: Membership) -> Recipe | None:
    """How the attacker trains on the distilled images; None where there are none."""
    sets = target.state.members("synthetic")
    if not sets:
        return None
    fields = training_fields(target.run, target.experiment)
    return recipe_of(fields, epochs=asked.epochs, lr=asked.lr, rates=rates_of(sets))


def _no_images(target: Target) -> str:
    if not target.experiment.algorithm.may_distil:
        return f"'{target.experiment.algorithm.name}' distils no images"
    return f"after round {target.rounds} the server holds no distilled images"


def _shadows(target: Target, asked: Membership, pool: Pool, wanted: Wanted, desk: Desk) -> list[Shadow]:
    """Of the shadow federations those that are kept, and the others, which are run."""
    count, identity = asked.shadows, _identity(target, pool, wanted, asked.queries)
    plan = Plan(
        federation=target.federation(),
        pool=pool,
        sites={
            client: Site(site.train.take([]), site.validation, site.test) for client, site in target.parts.sites.items()
        },
        wanted=wanted,
        folder=target.run / AUDITED / f"membership-{identity[:12]}",
        identity=identity,
        device=desk.device,
        queries=asked.queries,
    )
    found = {number: shadow for number in range(count) if (shadow := kept(plan.folder, number, identity)) is not None}
    due = [number for number in range(count) if number not in found]
    done = len(found)
    desk.progress("shadow federations", done, count)
    for shadow in run_shadows(plan, _jobs(target, due, desk.seed.at("shadow")), desk):
        found[shadow.number] = shadow
        done += 1
        desk.progress("shadow federations", done, count)
    return [found[number] for number in range(count)]


def _jobs(target: Target, numbers: Sequence[int], seed: Seed) -> Iterator[Job]:
    """Made when they are taken: a start may hold several large networks."""
    parts = target.parts
    for number in numbers:
        own = seed.at(number)
        another = replace(target.experiment, seed=own.at("start").number)
        yield Job(number, own, another.beginning(parts.algorithm, parts.world, tuple(parts.sites), parts.cohort))


def _identity(target: Target, pool: Pool, wanted: Wanted, queries: int) -> str:
    """A hash of all that decides the scores of shadow federations but their numbers."""
    images = hashlib.sha256(pool.shard.images.numpy().tobytes())
    for array in (pool.shard.labels.numpy(), pool.owner, pool.strata, pool.member, pool.played):
        images.update(array.tobytes())
    plain = {
        "version": VERSION,
        "run": dict(target.parts.identity),
        "rounds": target.rounds,
        "pool": images.hexdigest(),
        "final": wanted.final,
        "client": wanted.client,
        "round": None if wanted.client is None else wanted.round,
        "recipe": None if wanted.recipe is None else asdict(wanted.recipe),
        **({} if queries == 1 else {"queries": queries}),
        **({} if _all_asked(target) else {"cohorts": "the run's"}),
    }
    return hashlib.sha256(json.dumps(plain, sort_keys=True, default=str).encode()).hexdigest()


def _all_asked(target: Target) -> bool:
    clients = tuple(target.parts.sites)
    return cohort_size(target.parts.cohort, clients, target.experiment.quorum) == len(clients)


def _claim(target: Target, view: View, heard: int) -> Claim | None:
    """Of a client's message as of its round, of what the server has as of the last."""
    return claim_of(claims_of(target, target.rounds if view.client is None else heard), view.client)


def _attacked(
    target: Target,
    view: View,
    pool: Pool,
    shadows: Sequence[Shadow],
    claim: Claim | None,
    looks: int,
    queries: int,
    desk: Desk,
) -> dict[str, Any]:
    rows = pool.of(view.client)
    network = view.trained.module()
    in_play = pool.shard.take(rows.nonzero()[0].tolist())
    gradients: Any
    try:
        gradients = gradient_norms(
            network,
            in_play,
            device=desk.device,
            progress=lambda done, total: desk.progress(f"gradients of {view.name}", done, total),
        )
    except (RuntimeError, NotImplementedError) as error:  # of a user's own network
        gradients = f"gradients of single images cannot be taken of this network ({str(error).splitlines()[0][:200]})"
    member = pool.member
    sides = {"member_accuracy": rows & member, "other_accuracy": rows & ~member}
    accuracies = {
        name: score(network, pool.shard.take(side.nonzero()[0].tolist()), device=desk.device).accuracy
        for name, side in sides.items()
    }
    phi = confidences([view], pool, desk.device, queries)[view.name]
    seed = desk.seed.at("density", view.name)
    return {
        "view": view.name,
        "client": view.client,
        "accuracy": score(network, target.parts.data.test, device=desk.device).accuracy,
        **accuracies,
        "claim": None if claim is None else asdict(claim),
        **attack_view(phi, shadows, view.name, member, rows, gradients=gradients, seed=seed, claim=claim, looks=looks),
    }


def _pool_json(pool: Pool) -> dict[str, int]:
    return {
        "members": int((pool.played & pool.member).sum()),
        "others": int((pool.played & ~pool.member).sum()),
        "not_in_play": int((~pool.played).sum()),
    }


def _heard_json(heard: Heard, client: str | None) -> dict[str, Any]:
    return {
        "client": client,
        "round": None if heard.exchange is None else heard.exchange.number,
        "source": heard.source,
        "same_bits": heard.same_bits,
    }
