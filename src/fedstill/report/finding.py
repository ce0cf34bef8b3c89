"""Which runs a folder stands for: itself, where it is one, else those that lie in it, as those of a sweep do."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from fedstill.errors import InputError
from fedstill.report.reading import as_list, as_table, as_text, read_json

__all__ = ["SWEEP", "awaited", "find", "runs_in"]

SWEEP = "sweep.json"
"""In which ``fedstill sweep`` names its cells, each a folder beside it."""


def find(folders: Sequence[Path]) -> list[Path]:
    """The runs that ``folders`` stand for, in their order.

    Raises:
        InputError: one is no run and holds none.
    """
    found = []
    for folder in folders:
        if not (its := runs_in(folder)):
            raise InputError(
                f"{folder} is not a run and holds none: give a folder that 'fedstill run' or 'fedstill sweep' wrote"
            )
        found += its
    return found


def runs_in(folder: Path) -> list[Path]:
    """``folder`` itself, or the runs that have begun in it: a sweep's in the sweep's order, then any others by name."""
    if _is_run(folder):
        return [folder]
    if not folder.is_dir():
        return []
    order = {name: place for place, (name, _) in enumerate(_cells(folder))}
    its = [each for each in folder.iterdir() if each.is_dir() and _is_run(each)]
    return sorted(its, key=lambda each: (order.get(each.name, len(order)), _natural(each.name)))


def awaited(folder: Path) -> list[Path]:
    """Runs of the sweep in ``folder`` that are to be finished: all but those that failed; none where it is no sweep's."""
    return [folder / name for name, state in _cells(folder) if state != "failed"]


def _is_run(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("metrics.jsonl", "experiment.toml"))


def _cells(folder: Path) -> Iterator[tuple[str, str]]:
    """Names and states; nothing where the file is missing or damaged, which is told of nobody: the runs speak for themselves."""
    table = read_json(folder / SWEEP, []) or {}
    for cell in map(as_table, as_list(table.get("cells"))):
        if name := as_text(cell.get("name")):
            yield name, as_text(cell.get("state"))


def _natural(name: str) -> list[tuple[int, str]]:
    """``run-2`` before ``run-10``."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name) if part]
