"""Data poisoning in a study: what a hostile client trains on, and how far its attack gets.

A hostile client runs the method as everybody does, on images that it has spoilt first. So one change of its training images works
with every method. Validation and test images stay as they are.

    labels     y ← (y + shift) mod K for all of its images; or, where ``source`` is named, ``source`` ← ``target`` alone
    backdoor   BadNets (Gu, Dolan-Gavitt, Garg, "BadNets: Identifying Vulnerabilities in the Machine Learning Model Supply Chain",
               2017), one target for all classes: in ``share`` of its images, drawn at random, a square of ``patch`` pixels at the
               side in a corner becomes as bright as can be, and their label ``target``

How far it gets is the share of common test images that a network labels as the attacker wants (*attack success*):

    labels     every test image, wanted as (y + shift) mod K; or those of ``source``, wanted as ``target``
    backdoor   the test images of all classes but ``target``, with the square, wanted as ``target``

Without an attack it is not 0 but what a network gets wrong by itself: ``clients = 0`` measures that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import torch
from jaxtyping import Bool, Int, Shaped
from pydantic import ConfigDict, Field
from torch import Tensor

from fedstill.data.shard import Shard, hard_labels
from fedstill.errors import InputError, unknown
from fedstill.seeds import Seed

__all__ = ["Attack", "PoisonSettings", "Poisoned", "plan_attack", "poison", "stamped"]

PATCH = 3 / 28
"""Side of BadNets' square, as a share of an image's: 3 pixels of MNIST's 28."""

Corner = Literal["bottom-right", "bottom-left", "top-right", "top-left"]
Name = Annotated[int, Field(ge=0)] | str


@dataclass(frozen=True, kw_only=True)
class PoisonSettings:
    """The ``[poison]`` table: who is hostile, and how. For studies alone."""

    __pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)

    kind: Annotated[
        Literal["labels", "backdoor"],
        Field(description="labels are changed, or a pattern is to mean a class [BadNets]"),
    ] = "labels"
    clients: Annotated[
        Annotated[int, Field(ge=0)] | tuple[str, ...],
        Field(
            description="who is hostile: the last so many clients, or their names; 0: nobody, success is measured alone"
        ),
    ] = 1
    shift: Annotated[int, Field(ge=1, description="labels: y becomes (y + shift) mod K, where no source is named")] = 1
    source: Annotated[
        Name | None, Field(description="labels: the one class that is changed, by name or number from 0; none: all are")
    ] = None
    target: Annotated[
        Name,
        Field(description="class that stamped images are labelled as, or those of source; by name or number from 0"),
    ] = 0
    share: Annotated[float, Field(gt=0, le=1, description="backdoor: of the client's training images")] = 0.5
    patch: Annotated[
        int | None, Field(ge=1, description="backdoor: side of the square in pixels; none: 3 of 28 pixels [BadNets]")
    ] = None
    corner: Annotated[Corner, Field(description="backdoor: where the square is")] = "bottom-right"


@dataclass(frozen=True)
class Attack:
    """Settings, made out for one set of images.

    Attributes:
        kind: ``labels`` or ``backdoor``.
        clients: who is hostile.
        wanted: for each class the one that the attacker wants it taken for, int64 [K]; its own: it is left alone.
        share: of a hostile client's images of such classes that are poisoned.
        rows, columns: of the square; both empty without one.
    """

    kind: Literal["labels", "backdoor"]
    clients: tuple[str, ...]
    wanted: Int[Tensor, " K"]
    share: float
    rows: slice
    columns: slice

    def aimed(self, labels: Int[Tensor, " n"]) -> Bool[Tensor, " n"]:
        """Which images are of a class that is to be taken for another."""
        return self.wanted[labels] != labels

    def stamp(self, images: Shaped[Tensor, "n c h w"]) -> Shaped[Tensor, "n c h w"]:
        """A copy with the square; as they are, where there is none."""
        return stamped(images, self.rows, self.columns)

    def probe(self, test: Shard) -> Shard:
        """Common test images as a success of the attack would have them: with the square, labelled as the attacker wants."""
        labels = hard_labels(test.labels)
        aimed = test.take(torch.nonzero(self.aimed(labels)).flatten())
        return replace(aimed, images=self.stamp(aimed.images), labels=self.wanted[hard_labels(aimed.labels)])


@dataclass(frozen=True)
class Poisoned:
    """A study's attack, carried out.

    Attributes:
        train: all training images, those of hostile clients poisoned.
        clients: the hostile ones.
        probe: see :meth:`Attack.probe`.
    """

    train: Shard
    clients: tuple[str, ...]
    probe: Shard


def plan_attack(settings: PoisonSettings, like: Shard, clients: Sequence[str]) -> Attack:
    """What the settings mean for images like these, and these clients.

    Raises:
        InputError: a client or a class is unknown, the square is larger than the images, or nothing would change.
    """
    count = len(like.classes)
    hostile = _hostile(settings.clients, clients)
    target, wanted = _class(settings.target, like.classes, "target"), torch.arange(count)
    if settings.kind == "backdoor":
        if settings.source is not None:
            raise InputError(
                f"poison.source = {settings.source!r}: a backdoor is for images of all classes; leave it out, or set "
                "poison.kind = 'labels'"
            )
        side = settings.patch or max(1, round(PATCH * min(like.size)))
        if side > min(like.size):
            raise InputError(f"poison.patch = {side}: images have {like.size[0]} x {like.size[1]} pixels; give fewer")
        rows, columns = _square(settings.corner, side)
        return Attack("backdoor", hostile, torch.full((count,), target), settings.share, rows, columns)
    if settings.source is None:
        wanted = (wanted + settings.shift) % count
        if settings.shift % count == 0:
            raise InputError(f"poison.shift = {settings.shift}: of {count} classes it changes no label; use another")
    else:
        source = _class(settings.source, like.classes, "source")
        if source == target:
            raise InputError(
                f"poison.source = {settings.source!r}: it is poison.target too, so no label would change; name two classes"
            )
        wanted[source] = target
    return Attack("labels", hostile, wanted, 1.0, slice(0, 0), slice(0, 0))


def poison(attack: Attack, train: Shard, held: Mapping[str, Sequence[int]], test: Shard, seed: Seed) -> Poisoned:
    """Carry it out; nothing that is given is changed.

    Args:
        attack: by :func:`plan_attack`.
        train: all training images, with hard labels.
        held: rows that each client trains on.
        test: common test images.
        seed: which images of a hostile client are stamped; client c's are drawn from ``seed.at(c)``.
    """
    images, labels = train.images.clone(), train.labels.clone()
    for client in attack.clients:
        rows = torch.as_tensor(held[client], dtype=torch.long)
        if attack.kind == "labels":
            rows = rows[attack.aimed(labels[rows])]
        else:
            order = torch.randperm(len(rows), generator=seed.at(client).torch())
            rows = rows[order[: max(1, round(attack.share * len(rows)))]].sort().values
        images[rows] = attack.stamp(images[rows])
        labels[rows] = attack.wanted[labels[rows]]
    return Poisoned(replace(train, images=images, labels=labels), attack.clients, attack.probe(test))


def stamped(images: Shaped[Tensor, "n c h w"], rows: slice, columns: slice) -> Shaped[Tensor, "n c h w"]:
    """A copy with these rows and columns of pixels as bright as can be: 255 of bytes, 1 of units of the pixel range."""
    copy = images.clone()
    copy[:, :, rows, columns] = 255 if images.dtype == torch.uint8 else 1
    return copy


def _square(corner: Corner, side: int) -> tuple[slice, slice]:
    near, far = slice(None, side), slice(-side, None)
    return (near if corner.startswith("top") else far, near if corner.endswith("left") else far)


def _hostile(wanted: int | tuple[str, ...], clients: Sequence[str]) -> tuple[str, ...]:
    if isinstance(wanted, int):
        if wanted > len(clients):
            raise InputError(f"poison.clients = {wanted}: there are {len(clients)} clients; give fewer")
        return tuple(clients[len(clients) - wanted :])
    for name in wanted:
        if name not in clients:
            raise unknown("poison.clients", name, clients)
    return tuple(client for client in clients if client in wanted)


def _class(wanted: int | str, classes: Sequence[str], key: str) -> int:
    if isinstance(wanted, str):
        if wanted not in classes:
            raise unknown(f"poison.{key}", wanted, classes)
        return classes.index(wanted)
    if wanted >= len(classes):
        raise InputError(f"poison.{key} = {wanted}: classes are numbered from 0 to {len(classes) - 1}")
    return wanted
