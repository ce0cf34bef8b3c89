"""Corrupted copies of a data set, made while it is loaded: CIFAR-10 becomes CIFAR-10-C.

Several corruptions are domains: FedLGD's CIFAR10-C (Huang et al., TMLR) has three clients for each of the nineteen.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from fedstill.data.corruptions import CORRUPTIONS, FROST, corrupt
from fedstill.data.images import Decoded, Form, Picture, decode, find_images
from fedstill.data.settings import DataSettings, existing
from fedstill.errors import InputError, unknown
from fedstill.seeds import Seed

__all__ = ["CORRUPTED_SIZE", "Corruption", "corrupted", "plan_corruption"]

CORRUPTED_SIZE = (32, 32)
_ALL = "all"
_WANTED = "a Parquet file with a column image, or a folder of pictures, each at least 32 x 32 pixels"


@dataclass(frozen=True)
class Corruption:
    """What is done to all images.

    Attributes:
        names: of corruptions, distinct.
        severity: 1 to 5.
        spread: whether each image comes under every corruption, or under one of them.
        textures: pictures of frost, uint8 [h, w, 3]; empty where no corruption asks for them.
    """

    names: tuple[str, ...]
    severity: int
    spread: Literal["copies", "shares"]
    textures: tuple[NDArray[np.uint8], ...]


def plan_corruption(settings: DataSettings) -> Corruption:
    """What ``data.corruptions``, ``severity``, ``spread`` and ``frost`` ask for.

    Raises:
        InputError: a corruption is unknown or named twice, or the textures of frost are missing or unreadable.
    """
    names = settings.corruptions or ()
    if names == (_ALL,):
        names = CORRUPTIONS
    for name in names:
        if name not in CORRUPTIONS:
            raise unknown("data.corruptions", name, (*CORRUPTIONS, _ALL))
        if names.count(name) > 1:
            raise InputError(f"data.corruptions names '{name}' twice: name it once")
    textures = _textures(settings.frost) if FROST in names else ()
    return Corruption(names, settings.severity, settings.spread, textures)


def corrupted(
    decoded: Decoded, labels: NDArray[np.int64], plan: Corruption, form: Form, seed: Seed
) -> tuple[Decoded, tuple[str, ...]]:
    """The decoded pictures under their corruptions, brought to ``form``; and the name of each one's corruption.

    ``copies`` are ordered by corruption, ``shares`` as the pictures are. Shares are even in each class. What happens to
    row r under corruption c is drawn from ``seed.at(c, r)``: neither limits nor other corruptions change it.

    Args:
        decoded: pictures [32, 32, 3].
        labels: of all rows of the split, not only of the decoded ones.
        plan: which corruptions.
        form: what the result is brought to.
        seed: of the split.
    """
    count, names = len(decoded.pixels), plan.names
    if plan.spread == "copies":
        position = np.tile(np.arange(count), len(names))
        which = np.repeat(np.arange(len(names)), count)
    else:
        position = np.arange(count)
        shuffled = seed.at("shares").numpy().permutation(count)
        which = np.empty(count, np.int64)
        by_class = shuffled[np.argsort(labels[decoded.kept][shuffled], kind="stable")]
        which[by_class] = np.arange(count) % len(names)
    kept = decoded.kept[position]
    pixels = [
        corrupt(
            decoded.pixels[at],
            names[number],
            plan.severity,
            seed.at(names[number], row).numpy(),
            textures=plan.textures,
        )
        for at, number, row in zip(position.tolist(), which.tolist(), kept.tolist(), strict=True)
    ]
    ready = decode(lambda at: pixels[at], str, np.arange(len(pixels)), form, skip_bad=False)
    return Decoded(ready.pixels, kept, decoded.skipped), tuple(names[number] for number in which)


def _textures(text: str | None) -> tuple[NDArray[np.uint8], ...]:
    if text is None:
        raise InputError(
            f"data.frost is missing: the corruption 'frost' needs textures, {_WANTED}; "
            "or name the other corruptions in data.corruptions"
        )
    path = existing(text, "data.frost", _WANTED)
    pictures: list[Picture] = list(find_images(path)) if path.is_dir() else _column(path)
    if not pictures:
        raise InputError(f"data.frost = '{text}' holds no picture; it should be {_WANTED}")
    found = decode(
        lambda row: pictures[row],
        lambda row: f"data.frost = '{text}', picture {row}",
        np.arange(len(pictures)),
        Form(channels=3),
        skip_bad=False,
    )
    for row, texture in enumerate(found.pixels):
        height, width = texture.shape[:2]
        if height < CORRUPTED_SIZE[0] or width < CORRUPTED_SIZE[1]:
            raise InputError(
                f"data.frost = '{text}': picture {row} has {height} x {width} pixels; it should be {_WANTED}"
            )
    return tuple(found.pixels)


def _column(path: Path) -> list[Picture]:
    try:
        rows = pq.read_table(path, columns=["image"])["image"].to_pylist()
    except (pa.ArrowException, OSError, KeyError) as error:
        raise InputError(
            f"data.frost = '{path}' cannot be read as Parquet with a column image ({str(error).splitlines()[0]})"
        ) from error
    contents: list[Picture] = [
        content for row in rows if isinstance(content := row.get("bytes") if isinstance(row, dict) else row, bytes)
    ]
    if len(contents) < len(rows):
        raise InputError(f"data.frost = '{path}': the column image holds no pictures; it should be {_WANTED}")
    return contents
