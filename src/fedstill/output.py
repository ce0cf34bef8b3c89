"""Pieces of a run's folder: lines that survive a crash, distilled sets and their pictures."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from fedstill.bundle import Bundle, Group
from fedstill.data.grid import grid
from fedstill.data.shard import hard_labels
from fedstill.errors import RunError
from fedstill.files import aside, numbered, round_stem

__all__ = ["append_line", "save_pairs", "save_sheet", "save_synthetic", "thinned", "whole_lines"]


def append_line(path: Path, line: str) -> None:
    """Add a line to ``path`` and see it to the disk.

    Raises:
        RunError: the disk refuses it.
    """
    try:
        with path.open("ab") as file:
            file.write(line.encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise RunError(
            f"cannot write {path}: {error.strerror or error}; free space or choose another folder"
        ) from error


def whole_lines(path: Path) -> list[bytes]:
    """The lines of ``path`` that end as lines do; what a crash cut short is left out."""
    if not path.exists():
        return []
    return [line for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]


def save_synthetic(folder: Path, number: int, state: Bundle, *, classes: tuple[str, ...], keep: int) -> None:
    """Write the distilled sets of a round, a picture a client with a row a class; drop those of :func:`thinned` rounds.

    A state without distilled sets leaves nothing.
    """
    sets = state.members("synthetic")
    if not sets:
        return
    stem = round_stem(number)
    for client, group in sets.items():
        save_sheet(folder / stem / f"{client}.png", group, classes)
    Bundle().put(**{f"synthetic:{client}": group for client, group in sets.items()}).save(
        folder / f"{stem}.safetensors"
    )
    there = numbered(folder, ".safetensors")
    kept = thinned(there, number, keep)
    for old in there:
        if old not in kept:
            shutil.rmtree(folder / round_stem(old), ignore_errors=True)
            (folder / f"{round_stem(old)}.safetensors").unlink(missing_ok=True)


def thinned(there: Sequence[int], newest: int, keep: int) -> list[int]:
    """At most ``keep`` of the rounds ``there``: the newest, the first, and others spread evenly.

    From the first on, every s-th round and ``newest``, where s is the smallest power of two that leaves few enough. As s
    only grows, what is kept after round n was kept after round n − 1 or is round n: a run that is thinned as it goes keeps
    what its last round says, wherever it was interrupted. Rounds above ``newest`` are leftovers of a run that was set back.
    """
    if keep == 1:
        return [newest]
    first, stride = min(there), 1
    while len(kept := [*range(first, newest, stride), newest]) > keep:
        stride *= 2
    return [number for number in kept if number in there]


def save_sheet(path: Path, group: Group, classes: tuple[str, ...]) -> None:
    """A picture of labelled images, a row a class; rows that are shorter than the longest end in white."""
    images, labels = group["images"], hard_labels(group["labels"])
    white = 255 if images.dtype == torch.uint8 else 1
    present = sorted(set(labels.tolist()))
    rows = [images[labels == label] for label in present]
    columns = max(map(len, rows))
    full = [torch.cat([row, row.new_full((columns - len(row), *row.shape[1:]), white)]) for row in rows]
    sheet = grid(
        torch.cat(full),
        columns=columns,
        scale=max(1, round(48 / images.shape[-1])),
        row_labels=[classes[label] for label in present],
    )
    with aside(path) as temporary:
        sheet.save(temporary, format="PNG")


def save_pairs(
    path: Path, above: Float[Tensor, "n c h w"], below: Float[Tensor, "n c h w"], names: tuple[str, str]
) -> None:
    """A picture of n pairs of images, one above the other; ``names`` of the two rows."""
    rows = torch.tensor([0, 1]).repeat_interleave(len(above))
    save_sheet(path, {"images": torch.cat([above, below]), "labels": rows}, names)
