"""Distilled images of a run, drawn small for the page.

They are drawn from the tensors and not copied from the run's own pictures: those are labelled and enlarged to be looked at
alone, and would be white cards on a dark page and ten times the bytes.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from safetensors import SafetensorError, safe_open

from fedstill.report.runs import Run

__all__ = ["BUDGET", "Album", "Sheet", "Tile", "albums"]

BUDGET = 1_800_000
"""Bytes of PNG that one page may hold; base64 makes four of three."""

_COLUMNS = 10
_SIDE = 1024  # pixels; a file that claims more is damaged or not ours


@dataclass(frozen=True)
class Tile:
    """One client's set, a row a class.

    Attributes:
        client: whose.
        source: a ``data:`` address; None where there is no picture, and ``note`` says why.
        width, height: of the picture, in pixels.
        rows: name of each row's class, and whether the client holds it (None where that is not known).
        note: what the picture leaves out; empty where it shows everything.
    """

    client: str
    source: str | None
    width: int
    height: int
    rows: tuple[tuple[str, bool | None], ...]
    note: str = ""


@dataclass(frozen=True)
class Sheet:
    """The sets of one round, by client; ``problem`` says why there are none."""

    number: int
    tiles: tuple[Tile, ...]
    problem: str = ""


@dataclass(frozen=True)
class Album:
    """First and last round that a run kept."""

    title: str
    sheets: tuple[Sheet, ...]


@dataclass(frozen=True)
class _Set:
    client: str
    images: NDArray[Any]  # float [n, c, h, w], 0 … 1, may leave it
    labels: NDArray[np.int64]


def albums(runs: Mapping[str, Run], budget: int = BUDGET) -> list[Album]:
    """Albums of those ``runs``, by title, that distilled something; together they take ``budget`` bytes at most."""
    found = {
        title: {number: _read(file) for number, file in _ends(run.folder / "synthetic").items()}
        for title, run in runs.items()
    }
    tiles = sum(len(sets or ()) for rounds in found.values() for sets in rounds.values())
    share = budget // max(1, tiles)
    made = []
    for title, rounds in found.items():
        sheets = []
        for number, sets in rounds.items():
            drawn = []
            for one in sets or ():
                tile = _draw(one, runs[title], share, budget)
                budget -= len(tile.source or "") * 3 // 4
                drawn.append(tile)
            sheets.append(Sheet(number, tuple(drawn), "" if sets else "the file of its images is damaged"))
        if sheets:
            made.append(Album(title, tuple(sheets)))
    return made


def _ends(folder: Path) -> dict[int, Path]:
    files = {
        int(match.group(1)): file
        for file in folder.glob("round-*.safetensors")
        if (match := re.fullmatch(r"round-(\d{1,9})", file.stem))
    }
    return {number: files[number] for number in sorted({min(files), max(files)})} if files else {}


def _read(file: Path) -> list[_Set] | None:
    """None where the file is damaged, or holds something else."""
    sets = []
    try:
        with safe_open(file, framework="numpy") as tensors:
            for key in sorted(tensors.keys()):
                if match := re.fullmatch(r"synthetic:([^/]+)/images", key):
                    images, labels = tensors.get_tensor(key), tensors.get_tensor(f"synthetic:{match.group(1)}/labels")
                    if not _sound(images, labels):
                        return None
                    sets.append(_Set(match.group(1), images, labels))
    except (SafetensorError, OSError, ValueError, TypeError):
        return None
    return sets or None


def _sound(images: NDArray[Any], labels: NDArray[Any]) -> bool:
    return (
        images.ndim == 4
        and np.issubdtype(images.dtype, np.floating)
        and images.shape[1] in (1, 3)
        and 0 < images.shape[2] <= _SIDE
        and 0 < images.shape[3] <= _SIDE
        and np.issubdtype(labels.dtype, np.integer)
        and labels.shape == images.shape[:1]
        and labels.size > 0
    )


def _draw(one: _Set, run: Run, share: int, free: int) -> Tile:
    present = [int(label) for label in np.unique(one.labels)]
    rows = tuple(_row(run, one.client, label) for label in present)
    _, channels, height, width = one.images.shape
    most = max(int((one.labels == label).sum()) for label in present)
    room = share // (len(present) * channels * height * width)
    columns = max(1, min(most, _COLUMNS, room))
    picture = _sheet([one.images[one.labels == label][:columns] for label in present], columns)
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    content = buffer.getvalue()
    if len(content) > free:
        return Tile(one.client, None, *picture.size, rows, "left out to keep the page small: see the run’s folder")
    source = "data:image/png;base64," + base64.b64encode(content).decode()
    note = f"first {columns} of {most} a class" if columns < most else ""
    return Tile(one.client, source, *picture.size, rows, note)


def _row(run: Run, client: str, label: int) -> tuple[str, bool | None]:
    holding = run.holding
    if holding is None or not 0 <= label < len(holding.classes):
        return str(label), None
    held = holding.counts.get(client)
    return holding.classes[label], None if held is None else held[label] > 0


def _sheet(rows: Sequence[NDArray[Any]], columns: int) -> Image.Image:
    """A pixel a pixel; the gaps, and the ends of short rows, are transparent and so of the page's colour."""
    _, channels, height, width = rows[0].shape
    canvas = np.zeros((len(rows) * (height + 1) - 1, columns * (width + 1) - 1, channels + 1), np.uint8)
    for row, images in enumerate(rows):
        pixels = np.rint(np.nan_to_num(images.astype(np.float64), nan=0.0).clip(0, 1) * 255).astype(np.uint8)
        for column, image in enumerate(pixels):
            top, left = row * (height + 1), column * (width + 1)
            tile = canvas[top : top + height, left : left + width]
            tile[..., :channels] = image.transpose(1, 2, 0)
            tile[..., channels] = 255
    return Image.fromarray(canvas, "LA" if channels == 1 else "RGBA")
