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
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from fedstill.algorithms.union import shard_of
from fedstill.bundle import Bundle
from fedstill.data.augment import Augmentation
from fedstill.data.shard import Shard
from fedstill.distill.distribution import DistributionMatcher, FreshNetworks
from fedstill.distill.health import descend
from fedstill.distill.virtual import Missing, Start, begin, canvas_of
from fedstill.errors import RunError
from fedstill.models.architecture import Architecture
from fedstill.rounds import Algorithm, Desk, Outcome, Reply, Site, Trained, World, needed_replies

__all__ = ["OWN", "OnVirtual", "VirtualSettings", "kept_set", "own_set", "remember"]

OWN = "synthetic:own"
"""The group of a client's memory that holds D^c."""


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

    def check(self, world: World) -> None:
        """All that can be refused, before a client works.

        Raises:
            InputError: an augmentation is unknown, a ConvNet does not take such images, or random networks would have
                BatchNorm.
        """
        self.matching_augmentation()
        self.architecture(world).check()
        if self.steps:
            FreshNetworks(self.architecture(world)).check()

    def architecture(self, world: World) -> Architecture:
        """Of the networks that are matched in."""
        return world.architecture if self.networks == "random" else world.other("convnet", {}, "virtual.networks")

    def matching_augmentation(self) -> Augmentation:
        """Of matching, parsed."""
        return Augmentation.parse(self.augmentation, key="virtual.augmentation")


def own_set(settings: VirtualSettings, real: Shard, memory: Bundle, world: World, desk: Desk) -> Shard:
    """D^c: the one that the client remembers, else the initial one; in units of the pixel range, on the CPU.

    Raises:
        RunError: ``real`` holds no image, or matching diverged.
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
    own = _made(settings, real, world, desk)
    if scratch is not None:
        remember(Bundle(), own).save(scratch)
    return own


def _made(settings: VirtualSettings, real: Shard, world: World, desk: Desk) -> Shard:
    """The initial D^c."""
    seed = desk.lasting.at("virtual")
    first = begin(real, ipc=settings.ipc, start=settings.start, missing=settings.missing, seed=seed.at("start"))
    if settings.steps == 0:
        return first
    canvas = canvas_of(first, lr=settings.lr, momentum=settings.momentum, device=desk.device)
    matcher = DistributionMatcher(
        networks=FreshNetworks(settings.architecture(world), desk.device),
        real=real.to(desk.device).whitened(),
        batch=settings.real_batch,
        augmentation=settings.matching_augmentation(),
    )
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
        return reply, remember(kept, own)

    def score(self, inbox: Bundle, site: Site, memory: Bundle, desk: Desk) -> Bundle:
        return self.inner.score(inbox, site, memory.drop(OWN), desk)

    def aggregate(self, state: Bundle, replies: Iterable[Reply], desk: Desk) -> Outcome:
        return self.inner.aggregate(state, replies, desk)

    def models(self, state: Bundle) -> Mapping[str, Trained]:
        return self.inner.models(state)
