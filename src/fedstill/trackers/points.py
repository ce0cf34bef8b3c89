"""What trackers are told: a round as named numbers, an experiment as named values."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedstill.folder import EXPERIMENT
from fedstill.settings import read_toml

__all__ = ["Value", "parameters", "points"]

Value = str | int | float | bool

_BY_MODEL = ("accuracy", "balanced_accuracy", "calibration_error", "loss")
_MEANS = ("validation", "test")


def points(row: Mapping[str, Any]) -> dict[str, float]:
    """A line of ``metrics.jsonl`` as ``group/name``: number; what is null or was not measured is left out.

    Shares are fractions, times are in seconds, sizes in bytes. ``matching/start`` and ``matching/end`` are means over the
    clients whose matching loss is known.
    """
    found = {f"{what}/{model}": value for what in _BY_MODEL for model, value in row.get(what, {}).items()}
    found |= {f"{what}/mean": row.get(what, {}).get("mean") for what in _MEANS}
    found |= {f"bytes/{way}": row.get(f"bytes_{way}") for way in ("up", "down", "scoring")}
    found |= {f"seconds/{phase}": value for phase, value in row["seconds"].items()}
    found |= {f"theory/{name}": value for name, value in (row.get("theory") or {}).items()}
    found |= {f"machine/{name}": row.get(name) for name in ("cpu_seconds", "peak_memory")}
    found["clients/failures"] = len(row["failures"])
    matchings = [client["matching"] for client in row["clients"] if client.get("matching")]
    for end in ("start", "end"):
        losses = [loss for each in matchings if (loss := each[end]) is not None]
        found[f"matching/{end}"] = sum(losses) / len(losses) if losses else None
    return {name: float(value) for name, value in found.items() if value is not None}


def parameters(out: Path) -> dict[str, Value]:
    """The experiment of the run in ``out``, every default written out, with versions: ``table.key``: value; lists as JSON."""
    return dict(_flat(read_toml(out / EXPERIMENT), ""))


def _flat(table: Mapping[str, Any], prefix: str) -> list[tuple[str, Value]]:
    found: list[tuple[str, Value]] = []
    for key, value in table.items():
        if isinstance(value, Mapping):
            found += _flat(value, f"{prefix}{key}.")
        else:
            found.append((f"{prefix}{key}", value if isinstance(value, Value) else json.dumps(value, default=str)))
    return found
