"""Labelled images to be tested on, for what was learnt elsewhere: found by path, matched by the names of their classes."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Literal, cast

import numpy as np
import torch

from fedstill.data.images import Form, decode, stack
from fedstill.data.settings import DataSettings
from fedstill.data.shard import Shard, hard_labels
from fedstill.data.sources import SOURCES, Raw
from fedstill.errors import InputError
from fedstill.tables import resolve

__all__ = ["fingerprint", "formed", "match_classes", "read_labelled"]


def formed(settings: DataSettings, like: Shard, *, fit: Literal["stretch", "crop"], what: str) -> DataSettings:
    """``settings`` whose images come as ``like`` has them: size, channels, mean and deviation. A whitening is no setting: whoever
    loads by these puts ``like.normalisation`` in.

    Raises:
        InputError: pictures have not so many channels; ``what`` is called by this name.
    """
    if like.channels not in (1, 3):
        raise InputError(f"{what} has images of {like.channels} channels: test images have 1 or 3")
    channels = cast(Literal[1, 3], like.channels)
    mean, std = like.normalisation.mean, like.normalisation.std
    return replace(settings, size=like.size, channels=channels, fit=fit, mean=mean, std=std, zca=False)


def read_labelled(path: Path, like: Shard, *, fit: Literal["stretch", "crop"], what: str) -> Shard:
    """The labelled images at ``path`` in the form of ``like``, with class names of their own.

    ``path`` is a Parquet file, a .npz file, or a folder: of one folder a class, of .npy files, or of Parquet files. Where there
    are a training and a test split, the test split is taken.

    Raises:
        InputError: nothing of that kind is there, or a label or a picture is bad; as :func:`formed`.
    """
    settings = formed(DataSettings(source=_source(path), path=str(path)), like, fit=fit, what=what)
    raw: Raw = resolve(SOURCES, settings.source, "data.source")(settings)
    rows = raw.train if raw.test is None else raw.test
    if len(rows.labels) == 0:
        raise InputError(f"{path}: there are no images in it")
    form = Form(size=like.size, channels=settings.channels, fit=fit)
    decoded = decode(rows.picture, rows.name, np.arange(len(rows.labels)), form, skip_bad=False)
    images = stack(decoded.pixels, rows.name, channels=settings.channels)
    return Shard(images, torch.from_numpy(rows.labels), raw.classes, like.normalisation)


def _source(path: Path) -> str:
    """Which source reads ``path``."""
    if not path.exists():
        raise InputError(f"{path}: there is no such file or folder; give labelled test images")
    names = [each.name for each in path.iterdir()] if path.is_dir() else [path.name]
    if any(name.endswith(".parquet") for name in names):
        return "parquet"
    if any(name.endswith(".npz" if path.is_file() else ".npy") for name in names):
        return "arrays"
    if path.is_dir():
        return "folder"
    raise InputError(f"{path} is neither Parquet nor .npz nor a folder: give test images in one of these forms")


def match_classes(shard: Shard, classes: tuple[str, ...], *, where: str) -> Shard:
    """``shard`` with its labels counted as ``classes`` are, by name. Classes without an image may be of any name.

    Raises:
        InputError: images are of a class that is not among ``classes``; ``where`` says whose.
    """
    labels = hard_labels(shard.labels)
    number = {name: at for at, name in enumerate(classes)}
    held = sorted(set(labels.tolist()))
    if strange := [shard.classes[label] for label in held if shard.classes[label] not in number]:
        raise InputError(
            f"{where} has images of the class {strange[0]!r}, and the classes that were learnt are "
            f"{_listed(classes)}: their names must agree (data.classes of an experiment file gives names)"
        )
    table = torch.full((len(shard.classes),), -1)
    for label in held:
        table[label] = number[shard.classes[label]]
    return replace(shard, labels=table[labels], classes=classes)


def fingerprint(shard: Shard) -> str:
    """SHA-256 of test images and the names of their classes, whatever their order: equal hashes, equal accuracy.

    Args:
        shard: uint8 images.
    """
    images = shard.images.contiguous().numpy()
    rows = (
        hashlib.sha256(shard.classes[label].encode() + b"\0" + image.tobytes()).digest()
        for image, label in zip(images, hard_labels(shard.labels).tolist(), strict=True)
    )
    whole = hashlib.sha256(str(tuple(images.shape)).encode())
    for row in sorted(rows):
        whole.update(row)
    return whole.hexdigest()


def _listed(names: tuple[str, ...]) -> str:
    shown = ", ".join(names[:12])
    return shown if len(names) <= 12 else f"{shown} and {len(names) - 12} more"
