"""Ten-class subsets of ImageNet, from a copy of the user's own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from fedstill.data.images import find_images
from fedstill.data.settings import DataSettings, existing, place
from fedstill.data.sources import Raw, Rows
from fedstill.data.subsets import SUBSETS
from fedstill.errors import InputError, unknown

__all__ = ["imagenet"]

_WANTED = "an ImageNet folder with train and val, each with a folder a class, named by WordNet id"


def imagenet(settings: DataSettings) -> Raw:
    """Ten classes of an ImageNet folder of the user's own (train/n02123045/…, val/n02123045/…): ``data.subset`` says which.

    Test images are those of ``val``. Other classes' folders are not looked into.
    """
    root = place(settings, _WANTED)
    if settings.subset is None:
        raise InputError(f"data.subset is missing: data.source = 'imagenet' needs one of {', '.join(SUBSETS)}")
    if settings.subset not in SUBSETS:
        raise unknown("data.subset", settings.subset, SUBSETS)
    classes = SUBSETS[settings.subset]
    test = (
        root / "val"
        if settings.test is None
        else existing(settings.test, "data.test", "a folder with a folder a class")
    )
    return Raw(_rows(root / "train", classes), _rows(test, classes), tuple(classes.values()))


def _rows(root: Path, classes: Mapping[str, str]) -> Rows:
    files: list[Path] = []
    labels: list[int] = []
    for label, (wnid, name) in enumerate(classes.items()):
        folder = root / wnid
        found = find_images(folder) if folder.is_dir() else []
        if not found:
            raise InputError(
                f"{folder} is missing or holds no image: class '{name}' is looked for there; it needs {_WANTED}"
            )
        files += found
        labels += [label] * len(found)
    return Rows(np.array(labels, np.int64), lambda row: files[row], lambda row: str(files[row]))
