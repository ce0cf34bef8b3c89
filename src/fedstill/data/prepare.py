"""A user's downloads as Parquet in the image convention of Hugging Face: ``fedstill data prepare``.

Files are written one by one and listed in ``prepared.json``; whoever starts again goes on where it ended. The originals
are checked against the hashes that their authors or usual loaders publish, and by number of images; those without a published
hash are known again by name, size and time of change.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from io import BytesIO
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from fedstill.data import originals
from fedstill.data.imagenet import imagenet
from fedstill.data.images import Form, Picture, decode
from fedstill.data.readers import folder
from fedstill.data.settings import DataSettings
from fedstill.data.sources import Raw, Rows
from fedstill.data.subsets import SUBSETS
from fedstill.errors import InputError, unknown
from fedstill.files import aside, sweep, write_json

__all__ = ["MANIFEST", "RECIPES", "Recipe", "Written", "prepare", "recipe"]

MANIFEST = "prepared.json"
ROWS = 5000  # a file


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a data set's originals are read, and what is known of them.

    Attributes:
        read: path and severity → rows.
        wants: what ``--from`` should be.
        md5: file name → published MD5; such a file with another hash is refused.
        counts: split → number of images; other numbers are refused.
        group: column for what groups the rows, if anything does.
    """

    read: Callable[[Path, int], Raw]
    wants: str
    md5: Mapping[str, str] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)
    group: str | None = None


@dataclass(frozen=True)
class Written:
    """One Parquet file: its name, rows, and whether an earlier call had written it."""

    file: str
    rows: int
    kept: bool


def prepare(
    how: Recipe, source: Path, out: Path, *, size: int | None = None, severity: int = 3, unverified: bool = False
) -> Iterator[Written]:
    """Write ``train-….parquet`` and ``test-….parquet`` below ``out``; a :class:`Written` for each.

    Args:
        how: one of :data:`RECIPES`.
        source: file or folder with the originals.
        out: folder; what an equal call has begun there is gone on with.
        size: side in pixels that pictures are brought to, cut to the centre; without it they stay as they are.
        severity: of CIFAR-10-C.
        unverified: take originals whose hash or number of images differs from what is published.

    Raises:
        InputError: the originals are missing, damaged or others, or ``out`` holds something else.
        RunError: a file cannot be written.
    """
    if not source.exists():
        raise InputError(f"--from {source}: there is no such file or folder; it should be {how.wants}")
    hashes = _checked(how, source, unverified=unverified)
    raw = how.read(source, severity)
    splits = {"train": raw.train} | ({} if raw.test is None else {"test": raw.test})
    for name, count in {} if unverified else dict(how.counts).items():
        if len(splits[name].labels) != count:
            raise InputError(
                f"{source} has {len(splits[name].labels)} images in its split '{name}', the published set has {count}: "
                "download it again, or take it as it is with --unverified"
            )
    wanted = {
        "originals": hashes,
        "others": _traces(source, splits, set(hashes)),
        "size": size,
        "severity": severity,
        "classes": list(raw.classes),
        "images": {
            name: np.bincount(rows.labels, minlength=len(raw.classes)).tolist() for name, rows in splits.items()
        },
    }
    files = _begun(out, wanted)
    sweep(out)
    # first of all: files without it are somebody else's
    write_json(out / MANIFEST, {**wanted, "files": files})
    for name, rows in splits.items():
        starts = range(0, len(rows.labels), ROWS)
        for number, start in enumerate(starts):
            file = f"{name}-{number:05d}-of-{len(starts):05d}.parquet"
            chosen = np.arange(start, min(start + ROWS, len(rows.labels)))
            kept = file in files and (out / file).is_file() and _hash(out / file, "sha256") == files[file]
            if not kept:
                with aside(out / file) as temporary:
                    pq.write_table(_table(rows, chosen, raw.classes, how.group, size), temporary, compression="zstd")
                files[file] = _hash(out / file, "sha256")
                write_json(out / MANIFEST, {**wanted, "files": files})
            yield Written(file, len(chosen), kept)


def _checked(how: Recipe, source: Path, *, unverified: bool) -> dict[str, str]:
    """MD5 by name of the originals whose published MD5 is known."""
    found = {}
    for name, expected in how.md5.items():
        file = source / name if source.is_dir() else source
        if file.name != name or not file.is_file():
            continue
        found[name] = _hash(file, "md5")
        if found[name] != expected and not unverified:
            raise InputError(
                f"{file} has the MD5 {found[name]}, the published file {expected}: download it again, "
                "or take it as it is with --unverified"
            )
    return found


def _traces(source: Path, splits: Mapping[str, Rows], hashed: Collection[str]) -> str:
    """SHA-256 of what tells, unread, whether originals are still the same: names, sizes and times of change, in order.

    Of every picture where pictures are files, and else of the files in the source, but for those that are ``hashed``.
    """
    rows = [(each, row) for each in splits.values() for row in range(len(each.labels))]
    pictures = bool(rows) and isinstance(rows[0][0].picture(0), Path)
    if pictures:
        files = [picture for each, row in rows if isinstance(picture := each.picture(row), Path)]
    else:
        listed = [source] if source.is_file() else sorted(each for each in source.iterdir() if each.is_file())
        files = [each for each in listed if each.name not in hashed and not _ours(each.name)]
    digest = hashlib.sha256()
    for file in files:
        state = file.stat()
        digest.update(json.dumps([os.path.relpath(file, source), state.st_size, state.st_mtime_ns]).encode())
    return digest.hexdigest()


def _ours(name: str) -> bool:
    """Whether a file beside originals is no original: hidden, or written here where ``out`` is the same folder."""
    return name.startswith(".") or name == MANIFEST or name.endswith(".parquet")


def _hash(file: Path, kind: str) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, partial(hashlib.new, kind, usedforsecurity=False)).hexdigest()


def _begun(out: Path, wanted: Mapping[str, Any]) -> dict[str, str]:
    """Files that an equal call has written, with their SHA-256."""
    manifest = out / MANIFEST
    if not manifest.exists():
        if out.exists() and (not out.is_dir() or any(out.glob("*.parquet"))):
            raise InputError(f"--out {out} exists and holds files that were not prepared here: give another folder")
        return {}
    try:
        held = json.loads(manifest.read_text(encoding="utf-8"))
        files = {str(name): str(value) for name, value in held.pop("files").items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{manifest} cannot be read ({error}): remove it, or give another --out") from error
    if held == wanted:
        return files
    if {**held, "originals": wanted["originals"], "others": wanted["others"]} == wanted:
        raise InputError(f"the originals have changed since --out {out} was begun: give another folder")
    raise InputError(f"--out {out} holds another set, or one with other options: give another folder")


def _table(
    rows: Rows, chosen: NDArray[np.int64], classes: tuple[str, ...], group: str | None, size: int | None
) -> pa.Table:
    form = Form() if size is None else Form(size=(size, size), fit="crop")
    decoded = decode(rows.picture, rows.name, chosen, form, skip_bad=False)
    contents = [
        _encoded(None if size is not None else rows.picture(int(row)), pixels)
        for row, pixels in zip(chosen, decoded.pixels, strict=True)
    ]
    columns: dict[str, Any] = {
        "image": pa.array(
            [{"bytes": content, "path": None} for content in contents],
            pa.struct({"bytes": pa.binary(), "path": pa.string()}),
        ),
        "label": pa.array(rows.labels[chosen], pa.int64()),
    }
    features: dict[str, Any] = {"image": {"_type": "Image"}, "label": {"names": list(classes), "_type": "ClassLabel"}}
    if group is not None and rows.groups is not None:
        columns[group] = pa.array([rows.groups[row] for row in chosen], pa.string())
        features[group] = {"dtype": "string", "_type": "Value"}
    return pa.table(columns).replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})


def _encoded(original: Picture | None, pixels: NDArray[np.uint8]) -> bytes:
    """The file as it was, where there is one and it keeps its size; else PNG."""
    if isinstance(original, bytes):
        return original
    if isinstance(original, Path):
        return original.read_bytes()
    stream = BytesIO()
    Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(stream, "PNG")
    return stream.getvalue()


# --- recipes -----------------------------------------------------------------------------------------------------------

_IDX = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
_FASHION = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")


def _idx_recipe(classes: tuple[str, ...], *md5: str) -> Recipe:
    return Recipe(
        read=lambda path, severity: originals.idx(path, classes),
        wants="the folder with train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz and the two of t10k",
        md5={f"{name}.gz": value for name, value in zip(_IDX, md5, strict=True)},
        counts={"train": 60_000, "test": 10_000},
    )


def _subset(name: str) -> Recipe:
    return Recipe(
        read=lambda path, severity: imagenet(DataSettings(source="imagenet", path=str(path), subset=name)),
        wants="an ImageNet folder with train and val, each with a folder a class, named by WordNet id",
    )


def _folder(path: Path, *, clients: bool) -> Raw:
    return folder(DataSettings(source="folder", path=str(path), clients=clients))


RECIPES: Mapping[str, Recipe] = MappingProxyType(
    {
        "cifar10": Recipe(
            read=lambda path, severity: originals.cifar10(path),
            wants="cifar-10-binary.tar.gz, or the folder that it holds",
            md5={"cifar-10-binary.tar.gz": "c32a1d4ab5d03f1284b67883e8d87530"},
            counts={"train": 50_000, "test": 10_000},
        ),
        "cifar10c": Recipe(
            read=originals.cifar10c,
            wants="the folder with labels.npy and nineteen corruptions as .npy",
            counts={"train": 19 * 8_000, "test": 19 * 2_000},
            group="corruption",
        ),
        "mnist": _idx_recipe(
            originals.DIGITS,
            "f68b3c2dcbeaaa9fbdd348bbdeb94873",
            "d53e105ee54ea40749a09fcbcd1e9432",
            "9fb629c4189551a2d022fa330f9573f3",
            "ec29112dd5afa0611ce80d1b7f02629c",
        ),
        "fashion_mnist": _idx_recipe(
            _FASHION,
            "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            "25c81989df183df01b3e8a0aad5dffbe",
            "bef4ecab320f06d8554ea6380940ec79",
            "bb300cfdad3c16e7a12a480ee83cd310",
        ),
        "svhn": Recipe(
            read=lambda path, severity: originals.svhn(path),
            wants="the folder with train_32x32.mat and test_32x32.mat",
            md5={
                "train_32x32.mat": "e26dedcc434d2e4c54c9b2d4a06d8373",
                "test_32x32.mat": "eb5a983be6a315427106f1b164d9cef3",
            },
            counts={"train": 73_257, "test": 26_032},
        ),
        "usps": Recipe(
            read=lambda path, severity: originals.usps(path),
            wants="the folder with usps.bz2 and usps.t.bz2, as LIBSVM's collection has them",
            md5={
                "usps.bz2": "ec16c51db3855ca6c91edd34d0e9b197",
                "usps.t.bz2": "8ea070ee2aca1ac39742fdd1ef5ed118",
            },
            counts={"train": 7_291, "test": 2_007},
        ),
        **{name: _subset(name) for name in SUBSETS},
        "folder": Recipe(
            read=lambda path, severity: _folder(path, clients=False),
            wants="a folder with one folder a class, or with train and test that are laid out so",
        ),
        "sites": Recipe(
            read=lambda path, severity: _folder(path, clients=True),
            wants="a folder with one folder a site, each with one folder a class",
            group="site",
        ),
    }
)


def recipe(name: str) -> Recipe:
    """The recipe of that name.

    Raises:
        InputError: there is none.
    """
    if name not in RECIPES:
        raise unknown("data prepare", name, RECIPES)
    return RECIPES[name]
