"""Clients that train on virtual images of their own, under any method.

FedLGD's paper gives all its methods the *initial* virtual sets: every client distils its images once, by distribution matching
with random networks (Eq. 1), and from then on trains on the result. So this is a transform of a client's Site, and the method
inside does not know of it:

    first visit of client c:   D^c ← begin(real) drawn near the real images, ``steps`` times;  kept in c's memory
    every visit:               the method's ``local`` on Site(train = D^c, validation, test)

D^c comes from the client's own place in the tree of seeds, which depends on the experiment's seed and the client's name: neither
on the round of the first visit nor on the method. All methods of one seed, data and network see the same D^c. It is made by the
client, lies in its memory (the group ``synthetic:own``) and never travels: messages are those of the method alone. Validation
and test images stay as they are.

A client's weight is then what the method makes of D^c: equal, where clients hold the same classes.

With a budget (``privacy_epsilon``) the client's images are looked at through a Gaussian mechanism alone: every step of matching,
the first ones and (FedLGD) those that move D^c on, is private as :mod:`fedstill.distill.distribution` proves, and D^c begins in
noise, not in statistics of the images. All that is trained on D^c afterwards, in however many rounds and by whatever method, is
made of D^c and of what others sent, and is as private as D^c. The noise is that of ``steps`` + ``privacy_rounds`` × m steps, m of
them in each selected round, and ε so far is that of the steps done. :mod:`fedstill.algorithms.protection` has what this does not
cover.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from fedstill.algorithms.protection import PrivacyDelta, beyond, guarantee, remark, said, told
from fedstill.algorithms.union import shard_of
from fedstill.bundle import Bundle
from fedstill.data.augment import Augmentation
from fedstill.data.shard import Shard
from fedstill.distill.distribution import DistributionMatcher, FreshNetworks, Networks, Noise
from fedstill.distill.health import descend
from fedstill.distill.virtual import Missing, Start, begin, canvas_of
from fedstill.errors import InputError, RunError
from fedstill.models.architecture import Architecture
from fedstill.privacy import Guarantee, Look, Sampling, check_installed
from fedstill.rounds import Algorithm, Desk, Failure, Outcome, Reply, Site, Trained, World, needed_replies

__all__ = ["OWN", "VIRTUAL", "OnVirtual", "VirtualSettings", "kept_set", "own_set", "remember"]

VIRTUAL = "virtual"
"""The table of a file that says how the images are made, and the field of an algorithm that reads it itself."""

OWN = "synthetic:own"
"""The group of a client's memory that holds D^c."""

_TOLD = tuple(each.name for each in fields(Guarantee))
"""The numbers of a reply that say how private it is."""


@dataclass(frozen=True, kw_only=True)
class VirtualSettings:
    """The ``[virtual]`` table: what clients distil of their own images before they train. Defaults are FedLGD's."""

    __pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)

    use: Annotated[
        bool, Field(description="false: clients train on real images, as if this table were not there; not with FedLGD")
    ] = True
    ipc: Annotated[int, Field(ge=1, description="images a class and client [FedLGD: 10 or 50]")] = 10
    start: Annotated[
        Start,
        Field(
            description="class statistics [FedLGD], noise N(0, 1), real images, which they then may show, or means of them"
        ),
    ] = "statistics"
    missing: Annotated[
        Missing,
        Field(description="of a class that a client lacks: none, or overall = images from all its classes' statistics"),
    ] = "none"
    steps: Annotated[
        int, Field(ge=0, description="of distribution matching, once a client [FedLGD's code: 10000]; 0: the start")
    ] = 10_000
    networks: Annotated[
        Literal["random", "convnet"],
        Field(
            description="matched in: random = fresh ones of the run's kind [FedLGD], convnet = always those [its code]"
        ),
    ] = "random"
    real_batch: Annotated[int, Field(ge=1, description="real images a class and step [FedLGD]")] = 256
    lr: Annotated[float, Field(gt=0, description="step size of pixels [FedLGD]")] = 1.0
    momentum: Annotated[float, Field(ge=0, lt=1, description="of SGD on pixels [FedLGD]")] = 0.5
    augmentation: Annotated[
        str,
        Field(
            description="DSA inside matching, one draw a class for real and virtual; none: off [FedLGD's code flips too]"
        ),
    ] = "color_crop_cutout_scale_rotate"
    # differential privacy
    privacy_epsilon: Annotated[
        float | None,
        Field(
            gt=0,
            le=1000,
            description="budget of all rounds of a client together, by noise in matching; none: not private",
        ),
    ] = None
    privacy_clip: Annotated[
        float | None, Field(gt=0, description="C, largest norm of an image's features; needed with a budget")
    ] = None
    privacy_delta: PrivacyDelta = 1e-5
    privacy_rounds: Annotated[
        int | None,
        Field(
            ge=0,
            description="FedLGD: selected rounds of a client that the budget is to last; in a further one it refuses",
        ),
    ] = None

    def check(self, world: World, *, moving: int = 0) -> None:
        """All that can be refused, before a client works.

        Args:
            world: of the run.
            moving: steps that move D^c on in a selected round; 0 where it stays as it was made.

        Raises:
            MissingExtra: there is a budget, and Opacus is not installed.
            InputError: an augmentation is unknown, a ConvNet does not take such images, random networks would have
                BatchNorm, or a budget cannot hold.
        """
        self.matching_augmentation()
        self.architecture(world).check()
        if self.steps:
            FreshNetworks(self.architecture(world)).check()
        self._check_budget(moving)

    def _check_budget(self, moving: int) -> None:
        if self.privacy_epsilon is None:
            for key in ("privacy_clip", "privacy_rounds"):
                if (value := getattr(self, key)) is not None:
                    raise InputError(
                        f"virtual.{key} = {value:g}: there is no budget; set virtual.privacy_epsilon, or leave it out"
                    )
            return
        check_installed()
        place = f"virtual.privacy_epsilon = {self.privacy_epsilon:g}"
        if self.privacy_clip is None:
            raise InputError(f"{place}: noise is in units of the clipping norm of features; set virtual.privacy_clip")
        if self.start != "noise":
            raise InputError(
                f"virtual.start = '{self.start}': images that start from real ones, or from their statistics, are not private "
                "whatever the noise; use virtual.start = 'noise'"
            )
        if self.missing != "none":
            raise InputError(
                f"virtual.missing = '{self.missing}': those images have statistics of the real ones, which no noise covers; use "
                "virtual.missing = 'none'"
            )
        if self.steps == 0:
            raise InputError(
                f"{place}: with virtual.steps = 0 nothing looks at the images, and there is nothing to be private"
            )
        if moving and self.privacy_rounds is None:
            raise InputError(
                f"{place}: say in virtual.privacy_rounds how many selected rounds of a client it is to last; their number covers "
                "every client"
            )
        if not moving and self.privacy_rounds is not None:
            raise InputError(
                f"virtual.privacy_rounds = {self.privacy_rounds}: virtual images stay as they were made, and no round looks at "
                "the real ones again; leave it out"
            )

    def allowed(self, real: Shard, *, steps: int, moving: int = 0) -> Guarantee | None:
        """What a client will have spent after ``steps`` steps of matching in all; None without a budget.

        Args:
            real: its training images; at least one.
            steps: those that made D^c, and those that moved it on.
            moving: as :meth:`check`.

        Raises:
            RunError: the budget does not allow so many, or δ allows an image to be shown.
        """
        if self.privacy_epsilon is None:
            return None
        lasting = self.steps + (self.privacy_rounds or 0) * moving
        if steps > lasting:
            raise beyond(self.privacy_epsilon, "virtual.privacy_rounds", self.privacy_rounds, "selected rounds")
        rate = max(Sampling(count, self.real_batch).rate for count in real.histogram() if count)
        look = Look(rate, steps)
        return guarantee(
            self.privacy_epsilon,
            self.privacy_delta,
            look,
            images=len(real),
            steps=steps,
            lasting=lasting,
            table=VIRTUAL,
        )

    def matcher(self, networks: Networks, real: Shard, spent: Guarantee | None, *, device: str) -> DistributionMatcher:
        """What virtual images are drawn to: ``real`` through ``networks``, with the noise of ``spent``."""
        noise = None
        if spent is not None:
            assert self.privacy_clip is not None  # as it was checked
            noise = Noise(self.privacy_clip, spent.noise)
        return DistributionMatcher(
            networks=networks,
            real=real.to(device).whitened(),
            batch=self.real_batch,
            augmentation=self.matching_augmentation(),
            noise=noise,
        )

    def architecture(self, world: World) -> Architecture:
        """Of the networks that are matched in."""
        return world.architecture if self.networks == "random" else world.other("convnet", {}, "virtual.networks")

    def matching_augmentation(self) -> Augmentation:
        """Of matching, parsed."""
        return Augmentation.parse(self.augmentation, key="virtual.augmentation")


def own_set(
    settings: VirtualSettings, real: Shard, memory: Bundle, world: World, desk: Desk, *, moving: int = 0
) -> Shard:
    """D^c: the one that the client remembers, else the initial one; in units of the pixel range, on the CPU.

    ``moving`` is as :meth:`VirtualSettings.check` has it.

    Raises:
        RunError: ``real`` holds no image, matching diverged, or as :meth:`VirtualSettings.allowed`.
    """
    kept = kept_set(memory, world)
    if kept is not None:
        return kept
    if len(real) == 0:
        raise RunError("the client has no training image")
    # of a visit that was interrupted after this was done, which takes hours at the published scale
    scratch = None if desk.scratch is None else desk.scratch / "virtual.safetensors"
    if scratch is not None and scratch.exists():
        return shard_of(Bundle.open(scratch).groups[OWN], world)
    own = _made(settings, real, world, desk, moving)
    if scratch is not None:
        remember(Bundle(), own).save(scratch)
    return own


def _made(settings: VirtualSettings, real: Shard, world: World, desk: Desk, moving: int) -> Shard:
    """The initial D^c."""
    seed = desk.lasting.at("virtual")
    first = begin(real, ipc=settings.ipc, start=settings.start, missing=settings.missing, seed=seed.at("start"))
    if settings.steps == 0:
        return first
    canvas = canvas_of(first, lr=settings.lr, momentum=settings.momentum, device=desk.device)
    networks = FreshNetworks(settings.architecture(world), desk.device)
    spent = settings.allowed(real, steps=settings.steps, moving=moving)
    matcher = settings.matcher(networks, real, spent, device=desk.device)
    progress = partial(desk.progress, "distil")
    descend(canvas, matcher, steps=settings.steps, seed=seed.at("match"), measured=False, progress=progress)
    return canvas.shard(world.classes)


def kept_set(memory: Bundle, world: World) -> Shard | None:
    """D^c as the client remembers it; None before its first visit."""
    group = memory.groups.get(OWN)
    return None if group is None else shard_of(group, world)


def remember(memory: Bundle, own: Shard) -> Bundle:
    """``memory`` with D^c in it."""
    return memory.put(**{OWN: {"images": own.images, "labels": own.labels}})


@dataclass(frozen=True, kw_only=True)
class OnVirtual:
    """Any method, on clients' virtual images.

    Attributes:
        inner: the method; it sees neither the real training images nor the set in its memory.
        virtual: how the images are made.
        world: what the method knows too.
    """

    inner: Algorithm
    virtual: VirtualSettings
    world: World

    def init(self, clients: Sequence[str], desk: Desk) -> Bundle:
        """The method's state.

        Raises:
            InputError: as :meth:`VirtualSettings.check` and the method's own.
        """
        self.virtual.check(self.world)
        return self.inner.init(clients, desk)

    def task(self, state: Bundle) -> str | None:
        return self.inner.task(state)

    @property
    def needs_replies(self) -> tuple[int, str]:
        """The method's own."""
        return needed_replies(self.inner)

    def broadcast(self, state: Bundle, client: str) -> Bundle:
        return self.inner.broadcast(state, client)

    def local(self, inbox: Bundle, site: Site, memory: Bundle, desk: Desk) -> tuple[Bundle, Bundle]:
        own = own_set(self.virtual, site.train, memory, self.world, desk)
        reply, kept = self.inner.local(inbox, replace(site, train=own), memory.drop(OWN), desk)
        # once made, D^c is all that is seen of the images: no round spends more
        spent = self.virtual.allowed(site.train, steps=self.virtual.steps)
        return reply if spent is None else reply.put(asdict(spent)), remember(kept, own)

    def score(self, inbox: Bundle, site: Site, memory: Bundle, desk: Desk) -> Bundle:
        return self.inner.score(inbox, site, memory.drop(OWN), desk)

    def aggregate(self, state: Bundle, replies: Iterable[Reply], desk: Desk) -> Outcome:
        if self.virtual.privacy_epsilon is None:
            return self.inner.aggregate(state, replies, desk)
        spent: dict[str, Guarantee | None] = {}
        unsaid: list[Failure] = []
        outcome = self.inner.aggregate(state, self._within(replies, spent, unsaid), desk)
        figures: dict[str, Any] = dict(outcome.figures)
        if isinstance(lines := figures.get("clients"), Mapping):
            figures["clients"] = {client: {**line, **told(spent[client])} for client, line in lines.items()}
        return Outcome(outcome.state, figures, [*outcome.failures, *unsaid])

    def _within(
        self, replies: Iterable[Reply], spent: dict[str, Guarantee | None], unsaid: list[Failure]
    ) -> Iterator[Reply]:
        """Those that say how private they are, one at a time, as the method knows them; the others are put into ``unsaid``."""
        for reply in replies:
            try:
                spent[reply.client] = said(self.virtual, reply.bundle, VIRTUAL)
            except InputError as error:
                unsaid.append(Failure(reply.client, str(error)))
                continue
            numbers = {name: value for name, value in reply.bundle.numbers.items() if name not in _TOLD}
            yield replace(reply, bundle=Bundle(reply.bundle.groups, numbers))

    def remarks(self, rounds: int) -> Sequence[str]:
        """What a user may want to know of the budget before a run begins."""
        found = remark(self.virtual)
        return () if found is None else (found,)

    def models(self, state: Bundle) -> Mapping[str, Trained]:
        return self.inner.models(state)
