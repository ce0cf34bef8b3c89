"""Where images come from: the ``[data]`` table of an experiment, and the one function that turns it into Shards.

A *source* is a function ``DataSettings -> Raw``: it says what rows there are and how to get each picture, and decodes
nothing. :func:`load` does for all of them what they share: the test split, limits, decoding, sizes, normalisation.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import torch
from jaxtyping import UInt8
from numpy.typing import NDArray
from torch import Tensor

from fedstill.data.corrupted import CORRUPTED_SIZE, corrupted, plan_corruption
from fedstill.data.images import Decoded, Form, Picture, decode, stack
from fedstill.data.settings import DataSettings, Domain, existing, place
from fedstill.data.shard import Normalisation, Shard
from fedstill.data.split import stratified
from fedstill.data.whitening import estimate
from fedstill.errors import InputError
from fedstill.seeds import Seed
from fedstill.tables import resolve

__all__ = [
    "SOURCES",
    "DataSettings",
    "Domain",
    "Loaded",
    "Raw",
    "Rows",
    "checked_labels",
    "class_names",
    "digest",
    "existing",
    "load",
    "place",
]

SOURCES: Mapping[str, str] = MappingProxyType(
    {
        "digits": "fedstill.data.readers:digits",
        "parquet": "fedstill.data.parquet:parquet",
        "folder": "fedstill.data.readers:folder",
        "imagenet": "fedstill.data.imagenet:imagenet",
        "domains": "fedstill.data.domains:domains",
        "arrays": "fedstill.data.readers:arrays",
        "hub": "fedstill.data.parquet:hub",
    }
)


@dataclass(frozen=True)
class Rows:
    """One split as its source knows it; nothing is decoded yet.

    Attributes:
        labels: int64 [n].
        picture: row number → the picture.
        name: row number → what an error calls it (a path, or a file and a row).
        groups: domain or client of every row, where the source knows it.
    """

    labels: NDArray[np.int64]
    picture: Callable[[int], Picture]
    name: Callable[[int], str]
    groups: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Raw:
    """What a source answers; ``test`` is None where it has to be split off the training rows."""

    train: Rows
    test: Rows | None
    classes: tuple[str, ...]


@dataclass(frozen=True)
class Loaded:
    """Training and test images, ready.

    Attributes:
        train, test: uint8 Shards with the same classes, size, channels and normalisation.
        train_groups, test_groups: domain or client of every row, where the source gives it.
        skipped: (name, reason) of every picture left out because of ``skip_bad``.
    """

    train: Shard
    test: Shard
    train_groups: tuple[str, ...] | None
    test_groups: tuple[str, ...] | None
    skipped: tuple[tuple[str, str], ...]


def load(settings: DataSettings, seed: Seed, *, split: bool = True) -> Loaded:
    """Read, split, limit, decode and normalise what ``settings`` names.

    The test split is stratified by class (and group); a class of one image stays in training. With ``split = False`` only
    given test images are any: where there are none, all are training's.

    Raises:
        InputError: anything a user can get wrong: paths, files, columns, labels, pictures; one sentence names it.
        MissingExtra: ``source = "hub"`` without the package ``datasets``.
    """
    raw: Raw = resolve(SOURCES, settings.source, "data.source")(settings)
    rows, chosen = raw.train, np.arange(len(raw.train.labels))
    if len(chosen) == 0:
        raise InputError(f"data.path = '{settings.path}': there are no images in it")
    if raw.test is not None:
        test_rows, test_chosen = raw.test, np.arange(len(raw.test.labels))
        if len(test_chosen) == 0:
            raise InputError(f"data.test = '{settings.test}': there are no images in it")
    elif not split:
        test_rows, test_chosen = rows, chosen[:0]
    else:
        count = max(1, round(settings.test_fraction * len(chosen)))
        test_rows, test_chosen = rows, stratified(_strata(rows, chosen), count, seed.at("test"), keep=1)
        if len(test_chosen) == 0:
            raise InputError(
                f"data.path = '{settings.path}': {len(chosen)} images, one of each class and group: give data.test"
            )
        chosen = np.setdiff1d(chosen, test_chosen)
    chosen = _limited(rows, chosen, settings.limit, seed.at("limit"))
    test_chosen = _limited(test_rows, test_chosen, settings.test_limit, seed.at("test_limit"))

    size = (settings.size, settings.size) if isinstance(settings.size, int) else settings.size
    wanted = Form(size=size, channels=settings.channels, fit=settings.fit)
    plan = None if settings.corruptions is None else plan_corruption(settings)
    if plan is not None and len(plan.names) > 1 and rows.groups is not None:
        raise InputError(
            "data.corruptions makes a domain of each corruption, and the data name domains already: give one corruption, "
            "or take data.group_column, data.clients or data.domains away"
        )
    # the published strengths are for this size; what is wanted in the end comes after the corruption
    form = wanted if plan is None else Form(size=CORRUPTED_SIZE, channels=3, fit=settings.fit)
    train = decode(rows.picture, rows.name, chosen, form, skip_bad=settings.skip_bad)
    test = decode(test_rows.picture, test_rows.name, test_chosen, form, skip_bad=settings.skip_bad)
    for which, decoded in (("training", train), ("test", test)):
        if not decoded.pixels and decoded.skipped:
            first, reason = decoded.skipped[0]
            raise InputError(
                f"none of the {len(decoded.skipped)} {which} images can be read; the first, {first}, {reason}"
            )

    groups, test_groups = _groups(rows, train), _groups(test_rows, test)
    if plan is not None:
        train, corruptions = corrupted(train, rows.labels, plan, wanted, seed.at("corrupt", "train"))
        test, test_corruptions = corrupted(test, test_rows.labels, plan, wanted, seed.at("corrupt", "test"))
        if len(plan.names) > 1:
            groups, test_groups = corruptions, test_corruptions

    def name(position: int) -> str:
        cut = len(train.kept)
        return (
            rows.name(int(train.kept[position])) if position < cut else test_rows.name(int(test.kept[position - cut]))
        )

    # in one go, so that the two splits agree in size and channels
    images = stack(train.pixels + test.pixels, name, channels=settings.channels)
    train_images, test_images = images[: len(train.kept)], images[len(train.kept) :]
    normalisation = _normalisation(settings, train_images)
    return Loaded(
        train=Shard(train_images, torch.from_numpy(rows.labels[train.kept]), raw.classes, normalisation),
        test=Shard(test_images, torch.from_numpy(test_rows.labels[test.kept]), raw.classes, normalisation),
        train_groups=groups,
        test_groups=test_groups,
        skipped=train.skipped + test.skipped,
    )


def checked_labels(values: NDArray[np.generic], where: str) -> NDArray[np.int64]:
    """Labels as int64 [n].

    Raises:
        InputError: they are not one non-negative integer a row; ``where`` says whose.
    """
    if values.ndim != 1 or not np.issubdtype(values.dtype, np.integer):
        raise InputError(
            f"{where}: labels must be one integer a row, 0 for the first class, not {values.dtype} {values.shape}"
        )
    if len(values) and int(values.min()) < 0:
        raise InputError(f"{where}: row {int(values.argmin())} has the negative label {int(values.min())}")
    return values.astype(np.int64)


def class_names(
    settings: DataSettings, named: tuple[str, ...] | None, splits: Mapping[str, NDArray[np.int64]]
) -> tuple[str, ...]:
    """The classes that labels refer to: as the file names them, else as ``data.classes`` does, else training's numbers.

    Args:
        settings: ``data.classes`` must agree with the file's names where both are given.
        named: the file's names, if any.
        splits: labels by the name of the file they come from, the training split first.

    Raises:
        InputError: the two lists differ, or a label has no name.
    """
    if named is not None and settings.classes is not None and named != settings.classes:
        raise InputError(
            f"data.classes = {list(settings.classes)}, but {next(iter(splits))} names its classes {list(named)}"
        )
    train = next(iter(splits.values()))
    names = named or settings.classes or tuple(str(number) for number in range(int(train.max(initial=-1)) + 1))
    for where, labels in splits.items():
        beyond = np.flatnonzero(labels >= len(names))
        if len(beyond):
            raise InputError(
                f"{where}: row {int(beyond[0])} has the label {int(labels[beyond[0]])}, but there are "
                f"{len(names)} classes, with the labels 0 to {len(names) - 1}"
            )
    return names


def digest(loaded: Loaded) -> str:
    """SHA-256 of all images, labels, class names and of the normalisation: equal digests, equal data.

    Of a whitening ε is told: the training images, which are told too, decide the rest but for its last bits, which are the
    machine's.
    """
    result = hashlib.sha256()
    for shard in (loaded.train, loaded.test):
        for tensor in (shard.images, shard.labels):
            result.update(f"{tuple(tensor.shape)} {tensor.dtype}".encode())
            result.update(torch.as_tensor(tensor).contiguous().numpy().tobytes())
        result.update(json.dumps([shard.classes, shard.normalisation.to_json()]).encode())
    return result.hexdigest()


def _strata(rows: Rows, chosen: NDArray[np.int64]) -> NDArray[np.int64]:
    """A number for each pair of class and group."""
    labels = rows.labels[chosen]
    if rows.groups is None:
        return labels
    _, group = np.unique(np.asarray(rows.groups)[chosen], return_inverse=True)
    return np.asarray(group * (int(rows.labels.max()) + 1) + labels, np.int64)


def _limited(rows: Rows, chosen: NDArray[np.int64], limit: int | None, seed: Seed) -> NDArray[np.int64]:
    if limit is None or limit >= len(chosen):
        return chosen
    return chosen[stratified(_strata(rows, chosen), limit, seed)]


def _groups(rows: Rows, decoded: Decoded) -> tuple[str, ...] | None:
    return None if rows.groups is None else tuple(rows.groups[row] for row in decoded.kept)


def _normalisation(settings: DataSettings, images: UInt8[Tensor, "n c h w"]) -> Normalisation:
    channels = images.shape[1]
    if settings.zca:
        if settings.mean is not None or settings.std is not None:
            raise InputError(
                "data.zca = true stands in place of data.mean and data.std: leave those away, or set it to false"
            )
        return Normalisation((0.0,) * channels, (1.0,) * channels, estimate(images, settings.zca_epsilon))
    if settings.mean is not None or settings.std is not None:
        if settings.mean is None or settings.std is None:
            raise InputError("data.mean and data.std go together: give both, or neither to measure them")
        for key, values in (("mean", settings.mean), ("std", settings.std)):
            if len(values) != channels:
                raise InputError(f"data.{key} has {len(values)} numbers, but the images have {channels} channels")
        return Normalisation(settings.mean, settings.std)
    # from counts of the 256 values: exact, and without a float copy of the images
    levels = np.arange(256) / 255
    counts = [np.bincount(images[:, channel].numpy().ravel(), minlength=256) for channel in range(channels)]
    means = [float(np.average(levels, weights=count)) for count in counts]
    stds = [
        float(np.average((levels - mean) ** 2, weights=count) ** 0.5) for mean, count in zip(means, counts, strict=True)
    ]
    # a constant channel carries nothing; 1 keeps it at zero instead of dividing by zero
    return Normalisation(tuple(means), tuple(std if std > 1e-6 else 1.0 for std in stds))
