"""Reading what may be damaged: a value of the wrong type counts as absent, and a file that cannot be read is named.

A page must be had of a run that was killed, that a newer fedstill wrote, or whose disk was full.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

__all__ = [
    "Table",
    "as_count",
    "as_counts",
    "as_figure",
    "as_figures",
    "as_list",
    "as_share",
    "as_shares",
    "as_table",
    "as_text",
    "read_json",
    "read_text",
    "read_toml",
]

Table = Mapping[str, Any]

_HUGE = 1e100


def read_text(path: Path, missing: list[str]) -> str | None:
    """The text of a file; None, and a sentence in ``missing``, where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        missing.append(f"{path.name} cannot be read ({error.strerror or error})")
        return None


def read_toml(path: Path, missing: list[str], *, lost: str) -> Table:
    """A TOML file's table; empty, and a sentence in ``missing``, where it cannot be read. ``lost``: what is not known then."""
    text = read_text(path, missing)
    if text is not None and not text.strip():
        missing.append(f"{path.name} is empty: {lost}")
    try:
        return tomllib.loads(text) if text is not None else {}
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        missing.append(f"{path.name} is damaged ({error}): {lost}")
        return {}


def read_json(path: Path, missing: list[str]) -> Table | None:
    """A JSON file's table; None, and a sentence in ``missing``, where it cannot be read or holds something else."""
    text = read_text(path, missing)
    try:
        value = json.loads(text) if text is not None else None
    except (ValueError, RecursionError) as error:
        missing.append(f"{path.name} is damaged ({error})")
        return None
    if text is not None and not isinstance(value, dict):
        missing.append(f"{path.name} is damaged (it holds no table)")
    return value if isinstance(value, dict) else None


def as_table(value: Any) -> Table:
    return value if isinstance(value, dict) else {}


def as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def as_text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def as_figure(value: Any) -> float | None:
    """A number; what is not finite, or so large that a sum over a run might not be, is damage."""
    if type(value) is float:
        return value if abs(value) < _HUGE else None
    count = as_count(value)
    return None if count is None else float(count)


def as_count(value: Any) -> int | None:
    # 63 bits, as every count of ours; a longer number would not even go through float
    return value if type(value) is int and abs(value) < 2**63 else None


def as_share(value: Any) -> float | None:
    """A number of 0 … 1."""
    figure = as_figure(value)
    return figure if figure is not None and 0 <= figure <= 1 else None


def as_figures(value: Any) -> dict[str, float]:
    """A table's finite numbers by name; its other values are left out."""
    return _known(value, as_figure)


def as_shares(value: Any) -> dict[str, float]:
    """A table's numbers of 0 … 1 by name; its other values are left out."""
    return _known(value, as_share)


def _known(value: Any, read: Callable[[Any], float | None]) -> dict[str, float]:
    found = {str(name): read(item) for name, item in as_table(value).items()}
    return {name: figure for name, figure in found.items() if figure is not None}


def as_counts(value: Any) -> tuple[tuple[int, ...], ...]:
    """A square matrix of counts; empty where it is not one."""
    rows = tuple(tuple(as_count(item) for item in as_list(row)) for row in as_list(value))
    if any(len(row) != len(rows) or any(item is None or item < 0 for item in row) for row in rows):
        return ()
    return tuple(tuple(item for item in row if item is not None) for row in rows)
