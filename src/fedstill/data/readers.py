"""Sources that need no table format: the embedded digits, folders of pictures, NumPy arrays."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedstill.data.images import SUFFIXES, find_images
from fedstill.data.sources import DataSettings, Raw, Rows, checked_labels, class_names, existing, place
from fedstill.data.split import stratified
from fedstill.errors import InputError
from fedstill.seeds import Seed

__all__ = ["arrays", "digits", "folder"]

Array = NDArray[np.generic]
Reader = Callable[[], Array]
_LOOKED_FOR = f"(looked for {' '.join(SUFFIXES)})"


def digits(settings: DataSettings) -> Raw:
    """scikit-learn's 1,797 handwritten digits: 8x8 pixels, 17 grey levels. Its test split depends on no seed."""
    from sklearn.datasets import load_digits

    found = load_digits()
    levels = np.asarray(found.images)
    pixels = np.round(levels * (255 / 16)).astype(np.uint8)[..., None]
    labels = np.asarray(found.target, np.int64)
    count = round(settings.test_fraction * len(labels))
    test = stratified(labels, count, Seed(("digits", "test")))
    train = np.setdiff1d(np.arange(len(labels)), test)

    def split(rows: NDArray[np.int64]) -> Rows:
        return Rows(labels[rows], lambda row: pixels[rows[row]], lambda row: f"digits image {rows[row]}")

    return Raw(split(train), split(test), tuple(str(digit) for digit in range(10)))


@dataclass(frozen=True)
class _Listing:
    """Picture files of one split, with the class and client folder that each lies in."""

    files: tuple[Path, ...]
    classes: tuple[str, ...]
    clients: tuple[str, ...] | None


def folder(settings: DataSettings) -> Raw:
    """One folder a class (``clients = false``), or one a client with class folders inside.

    Where ``path`` holds both a folder ``train`` and a folder ``test``, these are the splits and nothing beside them is
    read. Classes are ``data.classes``, or the sorted names of all class folders, over all clients.
    """
    wanted = "a folder with one folder a client" if settings.clients else "a folder with one folder a class"
    root = place(settings, wanted)
    if not root.is_dir():
        raise InputError(f"data.path = '{settings.path}' is a file; data.source = 'folder' needs {wanted}")
    test_root = existing(settings.test, "data.test", wanted) if settings.test is not None else None
    if (root / "train").is_dir() and (root / "test").is_dir():
        root, test_root = root / "train", test_root or root / "test"
    train = _by_client(root) if settings.clients else _by_class(root)
    classes = settings.classes or tuple(sorted(set(train.classes)))
    _known(train, classes, "data.classes")
    if test_root is None:
        return Raw(_rows(train, classes), None, classes)
    # a server's test set is often laid out by class alone, though training is laid out by client
    by_client = settings.clients and not {each.name for each in _subfolders(test_root)} <= set(classes)
    test = _by_client(test_root) if by_client else _by_class(test_root)
    _known(test, classes, f"the training classes of {root}")
    return Raw(_rows(train, classes), _rows(test, classes), classes)


def _rows(listing: _Listing, classes: tuple[str, ...]) -> Rows:
    number = {name: at for at, name in enumerate(classes)}
    labels = np.array([number[name] for name in listing.classes], np.int64)
    return Rows(labels, lambda row: listing.files[row], lambda row: str(listing.files[row]), listing.clients)


def _known(listing: _Listing, classes: tuple[str, ...], whose: str) -> None:
    for file, name in zip(listing.files, listing.classes, strict=True):
        if name not in classes:
            raise InputError(f"{file} lies in a class folder '{name}' that is not among {whose}: {', '.join(classes)}")


def _subfolders(root: Path) -> list[Path]:
    try:
        return sorted(each for each in root.iterdir() if each.is_dir() and not each.name.startswith("."))
    except OSError as error:
        raise InputError(f"cannot list {root}: {error.strerror}") from error


def _by_class(root: Path) -> _Listing:
    found = [(file, each.name) for each in _subfolders(root) for file in find_images(each)]
    if not found:
        hint = (
            "; pictures lie in it directly" if any(each.suffix.lower() in SUFFIXES for each in root.iterdir()) else ""
        )
        raise InputError(f"{root} holds no class folder with an image in it {_LOOKED_FOR}{hint}")
    return _Listing(tuple(file for file, _ in found), tuple(name for _, name in found), None)


def _by_client(root: Path) -> _Listing:
    clients = _subfolders(root)
    if not clients:
        raise InputError(
            f"{root} holds no client folder; with data.clients = true it is laid out as client/class/image"
        )
    listings = [(each.name, _by_class(each)) for each in clients]
    return _Listing(
        tuple(file for _, listing in listings for file in listing.files),
        tuple(name for _, listing in listings for name in listing.classes),
        tuple(client for client, listing in listings for _ in listing.files),
    )


def arrays(settings: DataSettings) -> Raw:
    """A ``.npz`` file, or a folder of ``.npy`` files.

    It holds ``x_train``, ``y_train`` and perhaps ``x_test``, ``y_test``; or ``images`` and ``labels``. Images are
    [n, h, w], [n, h, w, c] or [n, c, h, w], uint8 or floats in 0…1 (rounded to 256 levels); labels are integers [n].
    ``data.group_column = "site"`` reads ``site_train`` (or ``site``) and ``site_test``. Pickled arrays are refused.
    """
    wanted = "a .npz file, or a folder of .npy files, with arrays x_train and y_train, or images and labels"
    path = place(settings, wanted)
    members = _members(path)
    train = _split(members, ("train", ""), settings, path)
    if train is None:
        raise InputError(f"{path} holds {', '.join(sorted(members)) or 'no array'}; it should be {wanted}")
    test = _split(members, ("test",), settings, path)
    if settings.test is not None:
        test_path = existing(settings.test, "data.test", wanted.replace("train", "test"))
        members = _members(test_path)
        test = _split(members, ("test", ""), settings, test_path)
        if test is None:
            raise InputError(
                f"{test_path} holds {', '.join(sorted(members)) or 'no array'}; x_test and y_test are missing"
            )
    splits = {str(path): train.labels}
    if test is not None:
        splits[f"{settings.test or path} (test)"] = test.labels
    return Raw(train, test, class_names(settings, None, splits))


def _members(path: Path) -> Mapping[str, Reader]:
    """The arrays of a .npz file or a folder of .npy files, by name, unread."""
    if path.is_dir():
        return {each.stem: partial(_numpy, each, None) for each in sorted(path.glob("*.npy"))}
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name.removesuffix(".npy") for name in archive.namelist()]
    except (OSError, zipfile.BadZipFile) as error:
        raise InputError(
            f"{path} is not a .npz file ({error}); a .npy file goes in by the folder that holds it"
        ) from error
    return {name: partial(_numpy, path, name) for name in names}


def _numpy(path: Path, member: str | None) -> Array:
    try:
        found = np.load(path, allow_pickle=False)
        if member is None:
            return np.asarray(found)
        with found:
            return np.asarray(found[member])
    except (OSError, ValueError, EOFError, MemoryError, KeyError, zipfile.BadZipFile) as error:
        which = path if member is None else f"{path}, array '{member}'"
        raise InputError(f"{which} cannot be read as plain numbers ({error})") from error


def _split(members: Mapping[str, Reader], suffixes: Iterable[str], settings: DataSettings, path: Path) -> Rows | None:
    """The first pair of arrays that is there: x_train and y_train for "train", images and labels for ""."""
    pairs = {suffix: (f"x_{suffix}", f"y_{suffix}") if suffix else ("images", "labels") for suffix in suffixes}
    suffix = next((suffix for suffix, names in pairs.items() if all(name in members for name in names)), None)
    if suffix is None:
        return None
    x, y = pairs[suffix]
    pixels = _to_uint8(members[x](), f"{path}, array '{x}'")
    labels = checked_labels(members[y](), f"{path}, array '{y}'")
    if len(pixels) != len(labels):
        raise InputError(f"{path}: '{x}' has {len(pixels)} images and '{y}' {len(labels)} labels")
    groups = _array_groups(members, suffix, settings, path, len(labels))
    return Rows(labels, lambda row: pixels[row], lambda row: f"{path}, '{x}' row {row}", groups)


def _array_groups(
    members: Mapping[str, Reader], suffix: str, settings: DataSettings, path: Path, count: int
) -> tuple[str, ...] | None:
    if settings.group_column is None:
        return None
    names = [name for name in (f"{settings.group_column}_{suffix}", settings.group_column) if name in members]
    if not names:
        raise InputError(
            f"{path}: data.group_column = '{settings.group_column}' names no array; known: {', '.join(members)}"
        )
    values = members[names[0]]()
    if values.shape != (count,):
        raise InputError(f"{path}, array '{names[0]}' has the shape {values.shape} and should have ({count},)")
    return tuple(str(value) for value in values.tolist())


def _to_uint8(values: Array, where: str) -> NDArray[np.uint8]:
    """uint8 [n, h, w, c]."""
    if values.ndim == 3:
        values = values[..., None]
    if values.ndim != 4:
        raise InputError(
            f"{where}: images must be [n, h, w], [n, h, w, c] or [n, c, h, w], not of shape {values.shape}"
        )
    first, last = values.shape[1] in (1, 3), values.shape[3] in (1, 3)
    if first == last:
        raise InputError(
            f"{where}: which axis of {values.shape} is the channel? exactly one of the 2nd and 4th must be 1 or 3"
        )
    if first:
        values = values.transpose(0, 2, 3, 1)
    if 0 in values.shape[1:]:
        raise InputError(f"{where}: the images have no pixels (shape {values.shape})")
    if values.dtype == np.uint8:
        return values.astype(np.uint8, copy=False)
    if not np.issubdtype(values.dtype, np.floating):
        raise InputError(f"{where}: pixels must be uint8 in 0…255 or floats in 0…1, not {values.dtype}")
    pixels = np.empty(values.shape, np.uint8)
    for row, image in enumerate(values):
        low, high = float(image.min()), float(image.max())
        if not (np.isfinite(low) and np.isfinite(high)):
            raise InputError(f"{where}: row {row} holds NaN or infinity")
        if low < 0 or high > 1:
            raise InputError(f"{where}: row {row} holds floats from {low:g} to {high:g}; floats must lie in 0…1")
        pixels[row] = np.round(image * 255)
    return pixels
