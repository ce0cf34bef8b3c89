"""Distilled images of runs, drawn small for the page.

They are drawn from the tensors and not copied from the run's own pictures: those are labelled and enlarged to be looked at
alone, and would be white cards on a dark page and ten times the bytes.
"""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from safetensors import SafetensorError, safe_open

from fedstill.files import numbered, round_stem
from fedstill.report.parts import Album, Sheet, Tile
from fedstill.report.runs import Run
from fedstill.report.spread import spread

__all__ = ["BUDGET", "albums", "framed", "spaces"]

BUDGET = 1_800_000
"""Bytes of PNG that one page may hold; base64 makes four of three."""

_COLUMNS = 10
_FEW = 4  # columns, down to which they are given up before rounds are
_SMALL = 64  # pixels, to whose side larger images are reduced
_SIDE = 1024  # pixels; a file that claims more is damaged or not ours
_WIDEST = 8192  # pixels of an audit's picture
_PNG = 150  # bytes, of a picture with nothing in it
_DAMAGED = "the file of its images is damaged"


@dataclass(frozen=True)
class _Set:
    """What a file holds of a client: ``labels`` int [n]; ``shape`` channels, height, width."""

    client: str
    labels: NDArray[np.int64]
    shape: tuple[int, int, int]

    @property
    def classes(self) -> list[int]:
        return [int(label) for label in np.unique(self.labels)]

    @property
    def most(self) -> int:
        """Images of the class that has the most."""
        return int(np.unique(self.labels, return_counts=True)[1].max())

    @property
    def shrunk(self) -> int:
        """By how much its images are reduced."""
        return -(-max(self.shape[1:]) // _SMALL)

    def cost(self, columns: int) -> int:
        """Bytes of its picture at most: noise is not compressed."""
        channels, height, width = self.shape
        pixels = (height // self.shrunk + 1) * (width // self.shrunk + 1)
        return _PNG + len(self.classes) * min(columns, self.most) * channels * pixels


@dataclass(frozen=True)
class _File:
    """One sheet to be: ``sets`` is None where the file is damaged."""

    label: str
    path: Path
    run: Run
    sets: tuple[_Set, ...] | None

    def cost(self, columns: int) -> int:
        return sum(one.cost(columns) for one in self.sets or ())


def albums(runs: Mapping[str, Run], budget: int = BUDGET) -> list[Album]:
    """An album of each of ``runs``, by title, that distilled something, with a sheet for each round it kept.

    Together they take ``budget`` bytes at most, in fair shares. Where that does not do, columns are left out, then rounds,
    then clients, and the album's note says so.
    """
    found = [
        (
            title,
            [_file(f"round {number}", run, number) for number in numbered(run.folder / "synthetic", ".safetensors")],
        )
        for title, run in runs.items()
    ]
    found = [(title, files) for title, files in found if files]
    made: dict[str, Album] = {}
    # whoever needs little leaves the rest to the others
    for title, files in sorted(found, key=lambda item: sum(file.cost(_COLUMNS) for file in item[1])):
        share = budget // (len(found) - len(made))
        key = f"images-{[other for other, _ in found].index(title)}"
        made[title], spent = _album(key, title, "round", files, share, droppable=True)
        budget -= spent
    return [made[title] for title, _ in found]


def spaces(runs: Mapping[str, Run], budget: int = BUDGET) -> list[Album]:
    """One album whose sheets are the newest sets of ``runs``, by the name of each one's latent space: none without sets.

    (FedDGM's Figure 8.)
    """
    files = []
    for label, run in runs.items():
        if there := numbered(run.folder / "synthetic", ".safetensors"):
            files.append(_file(f"{label}, round {there[-1]}", run, there[-1]))
    if not files:
        return []
    names = "\n".join(str(file.path.resolve()) for file in files)
    key = f"spaces-{hashlib.sha256(names.encode()).hexdigest()[:8]}"
    return [_album(key, "By latent space", "space", files, budget, droppable=False)[0]]


def framed(path: Path, name: str, spoken: str) -> Tile:
    """A picture of a run's folder as it is; without one where it is not there or is none, which its note says."""
    try:
        content = path.read_bytes()
        with Image.open(io.BytesIO(content), formats=("PNG",)) as image:
            width, height = image.size
    except (OSError, ValueError, Image.DecompressionBombError):
        return Tile(name, None, 0, 0, (), "is not there, or is damaged")
    if max(width, height) > _WIDEST:
        return Tile(name, None, 0, 0, (), "is too large for a page")
    return Tile(name, f"data:image/png;base64,{base64.b64encode(content).decode()}", width, height, (), spoken=spoken)


def _album(key: str, title: str, by: str, files: Sequence[_File], share: int, *, droppable: bool) -> tuple[Album, int]:
    """The album and its bytes; ``droppable``: of the files between the first and the last, some may be left out."""
    kept, columns = _plan(files, share, droppable=droppable)
    sheets, spent = [], 0
    for file in kept:
        tiles = []
        for tile, size in _tiles(file, columns, share - spent):
            tiles.append(tile)
            spent += size
        sheets.append(Sheet(file.label, tuple(tiles), "" if file.sets else _DAMAGED))
    return Album(key, title, by, tuple(sheets), _note(files, kept, columns)), spent


def _plan(files: Sequence[_File], share: int, *, droppable: bool) -> tuple[list[_File], int]:
    """Which files, and how many images a class: the richest plan that ``share`` pays, else the poorest."""
    fewest = 1 if droppable else len(files)
    plans = [(len(files), columns) for columns in range(_COLUMNS, _FEW - 1, -1)]
    plans += [(count, _FEW) for count in range(len(files) - 1, max(2, fewest) - 1, -1)]
    plans += [(min(len(files), max(2, fewest)), columns) for columns in range(_FEW - 1, 0, -1)]
    plans.append((fewest, 1))
    for count, columns in plans:
        kept = [files[index] for index in spread(len(files), count)]
        if sum(file.cost(columns) for file in kept) <= share:
            break
    return kept, columns


def _note(files: Sequence[_File], kept: Sequence[_File], columns: int) -> str:
    """What is left out; empty where everything is shown."""
    sets = [one for file in kept for one in file.sets or ()]
    most, shrunk = max((one.most for one in sets), default=0), max((one.shrunk for one in sets), default=1)
    left = []
    if len(kept) < len(files):
        left.append(f"{len(kept)} of the {len(files)} rounds that the run kept")
    if columns < most:
        left.append(f"the first {columns} of {most} a class")
    if shrunk > 1:
        left.append(f"at 1/{shrunk} of their size")
    return f"Shown, to keep the page small: {', '.join(left)}. The run’s folder has all." if left else ""


def _file(label: str, run: Run, number: int) -> _File:
    path = run.folder / "synthetic" / f"{round_stem(number)}.safetensors"
    return _File(label, path, run, _read(path))


def _read(path: Path) -> tuple[_Set, ...] | None:
    """What the file holds, without its images; None where it is damaged, or holds something else."""
    sets = []
    try:
        with safe_open(path, framework="numpy") as tensors:
            for key in sorted(tensors.keys()):
                _, colon, rest = key.partition(":")
                client, slash, name = rest.rpartition("/")
                if not (key.startswith("synthetic:") and colon and slash and name == "images"):
                    continue
                images = tensors.get_slice(key)
                labels = _rows(tensors.get_tensor(f"synthetic:{client}/labels"))
                shape = tuple(images.get_shape())
                if labels is None or not images.get_dtype().startswith(("F", "U8")) or not _sound(shape, labels):
                    return None
                sets.append(_Set(client, labels, (shape[1], shape[2], shape[3])))
    except (SafetensorError, OSError, ValueError, TypeError):
        return None
    return tuple(sorted(sets, key=lambda one: one.client)) or None


def _rows(labels: NDArray[Any]) -> NDArray[np.int64] | None:
    """The class of each image; of soft labels, float [n, classes], the most probable one."""
    if labels.ndim == 2 and labels.shape[1] > 0 and np.issubdtype(labels.dtype, np.floating):
        return labels.argmax(1).astype(np.int64) if np.isfinite(labels).all() else None
    return labels.astype(np.int64) if labels.ndim == 1 and np.issubdtype(labels.dtype, np.integer) else None


def _sound(shape: Sequence[int], labels: NDArray[np.int64]) -> bool:
    return (
        len(shape) == 4
        and shape[1] in (1, 3)
        and 0 < shape[2] <= _SIDE
        and 0 < shape[3] <= _SIDE
        and labels.size == shape[0] > 0
    )


def _tiles(file: _File, columns: int, free: int) -> Iterator[tuple[Tile, int]]:
    """A picture a client and its bytes, while there are ``free`` bytes."""
    if not file.sets:
        return
    with safe_open(file.path, framework="numpy") as tensors:
        for one in file.sets:
            rows = tuple(_row(file.run, one.client, label) for label in one.classes)
            content = b""
            if one.cost(columns) <= free:
                images = tensors.get_tensor(f"synthetic:{one.client}/images")
                picture = _sheet([_reduced(images[one.labels == label][:columns], one) for label in one.classes])
                buffer = io.BytesIO()
                picture.save(buffer, format="PNG", compress_level=9)
                content = buffer.getvalue()
                free -= len(content)
            if content:
                source = "data:image/png;base64," + base64.b64encode(content).decode()
                yield Tile(one.client, source, *picture.size, rows), len(content)
            else:
                yield Tile(one.client, None, 0, 0, rows, "left out to keep the page small: see the run’s folder"), 0


def _row(run: Run, client: str, label: int) -> tuple[str, bool | None]:
    holding = run.holding
    if holding is None or not 0 <= label < len(holding.classes):
        return str(label), None
    held = holding.counts.get(client)
    return holding.classes[label], None if held is None else held[label] > 0


def _reduced(images: NDArray[Any], one: _Set) -> NDArray[np.uint8]:
    """[n, c, h, w], uint8, or float in 0 … 1 or beyond → uint8 [n, h', w', c]; larger ones as means of squares of pixels."""
    unit = images / 255 if images.dtype == np.uint8 else images
    pixels = np.nan_to_num(unit.astype(np.float64), nan=0.0).clip(0, 1).transpose(0, 2, 3, 1)
    by = one.shrunk
    if by > 1:
        count, height, width, channels = pixels.shape
        height, width = height // by, width // by
        squares = pixels[:, : height * by, : width * by].reshape(count, height, by, width, by, channels)
        pixels = squares.mean((2, 4))
    return np.asarray(np.rint(pixels * 255), dtype=np.uint8)


def _sheet(rows: Sequence[NDArray[np.uint8]]) -> Image.Image:
    """A row a class; the gaps, and the ends of short rows, are transparent and so of the page's colour."""
    _, height, width, channels = rows[0].shape
    columns = max(map(len, rows))
    canvas = np.zeros((len(rows) * (height + 1) - 1, columns * (width + 1) - 1, channels + 1), np.uint8)
    for row, images in enumerate(rows):
        for column, image in enumerate(images):
            top, left = row * (height + 1), column * (width + 1)
            tile = canvas[top : top + height, left : left + width]
            tile[..., :channels] = image
            tile[..., channels] = 255
    return Image.fromarray(canvas, "LA" if channels == 1 else "RGBA")
