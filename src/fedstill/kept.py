"""What a run left behind, found again: its folder, the round whose synthetic set is meant, clients' virtual images, whether its
data are still there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedstill.algorithms.virtual import kept_set
from fedstill.data.shard import Shard
from fedstill.engines.memory import Memory
from fedstill.errors import InputError
from fedstill.experiment import Experiment, Parts
from fedstill.files import numbered, round_stem
from fedstill.folder import EXPERIMENT, METRICS, PARTITION
from fedstill.output import whole_lines

__all__ = [
    "DATA",
    "DEALT",
    "VirtualSets",
    "check_data",
    "check_run",
    "kept_round",
    "read_measured",
    "training_fields",
    "virtual_sets",
]

DATA, DEALT = "images and labels", "who holds what"
"""What of a run's identity its data are."""


def check_run(run: Path) -> None:
    """That a run lies there.

    Raises:
        InputError: none does.
    """
    if not (run / EXPERIMENT).is_file():
        raise InputError(f"{run} is no run: there is no {EXPERIMENT} in it; give the folder that 'fedstill run' wrote")


def kept_round(run: Path, experiment: Experiment, wanted: int | None) -> int:
    """The round whose synthetic set is meant: ``wanted``, or the newest that is kept.

    Raises:
        InputError: there is none.
    """
    kept = numbered(run / "synthetic", ".safetensors")
    if not kept:
        raise InputError(
            f"{run} keeps no synthetic set: "
            + (
                "no round is done yet"
                if experiment.algorithm.may_distil
                else f"'{experiment.algorithm.name}' makes none; choose a run of a method that distils"
            )
        )
    if wanted is not None and wanted not in kept:
        listed = ", ".join(map(str, kept))
        raise InputError(
            f"--round {wanted}: {run} keeps the synthetic sets of "
            + (f"round {listed} only" if len(kept) == 1 else f"rounds {listed}")
            + "; output.keep_synthetic says how many a run keeps"
        )
    return kept[-1] if wanted is None else wanted


def training_fields(run: Path, experiment: Experiment) -> dict[str, Any]:
    """The algorithm's fields, those that the run searched as it found them (``recipe`` in the newest row that has one)."""
    rows = [json.loads(line) for line in whole_lines(run / METRICS)]
    found: dict[str, Any] = next((row["recipe"] for row in reversed(rows) if isinstance(row.get("recipe"), dict)), {})
    return {**experiment.algorithm.fields(), **found}


@dataclass(frozen=True, kw_only=True)
class VirtualSets:
    """Clients' own virtual images as their memory holds them after ``round``.

    Attributes:
        own: by client.
        round: of the newest checkpoint.
        initial: they are those that clients began with; else the method has moved them since.
        missing: why there are none; empty where there are some.
    """

    own: Mapping[str, Shard]
    round: int | None
    initial: bool
    missing: str


def virtual_sets(run: Path, experiment: Experiment, parts: Parts) -> VirtualSets | None:
    """None where clients train on their own images as they are."""
    settings = experiment.virtual
    if not (experiment.algorithm.makes_virtual or (settings is not None and settings.use)):
        return None
    done = numbered(run / "checkpoints", ".json")
    memory = Memory(run / "memory")
    own: dict[str, Shard] = {}
    if not done:
        missing = "no round is done yet, so no client has virtual images"
    elif not (run / "memory").is_dir():
        missing = f"{run} holds no memory of its clients, so their virtual images stay where the clients are"
    else:
        kept = {client: kept_set(memory.read(client, done[-1] + 1), parts.world) for client in parts.partition.clients}
        own = {client: shard for client, shard in kept.items() if shard is not None}
        missing = "" if own else "no client's memory holds virtual images"
    return VirtualSets(
        own=own,
        round=done[-1] if done else None,
        initial=not experiment.algorithm.makes_virtual,
        missing=missing,
    )


def read_measured(path: Path, version: int) -> dict[str, Any]:
    """What was measured of a run before, as ``path`` holds it; empty where there is no such file.

    Raises:
        InputError: the file cannot be added to: it is damaged, not ours, or of a format above ``version``.
    """
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read ({error}), so nothing is added to it: remove it") from error
    written = content.get("version") if isinstance(content, dict) else None
    if not isinstance(written, int):
        raise InputError(f"{path} was not written by fedstill, so nothing is added to it: remove it")
    if written > version:
        raise InputError(f"{path} was written by a newer fedstill (format {written}): upgrade fedstill")
    return dict(content)


def check_data(run: Path, parts: Parts) -> None:
    """That what was built now is what the run worked on.

    Raises:
        InputError: it is not, or nobody knows.
    """
    for what, known in _known_data(run).items():
        if known != parts.identity.get(what):
            raise InputError(f"{run}: the data are no longer those of the run ({what} differs): put them back")


def _known_data(run: Path) -> dict[str, Any]:
    """What the run says of its data: its newest checkpoint knows every pixel, ``partition.json`` who holds what."""
    checkpoints = run / "checkpoints"
    for number in numbered(checkpoints, ".json")[-1:]:
        identity = _json(checkpoints / f"{round_stem(number)}.json").get("identity")
        if isinstance(identity, dict):
            return {name: identity.get(name) for name in (DATA, DEALT)}
    if (known := _json(run / PARTITION).get("hash")) is not None:
        return {DEALT: known}
    raise InputError(f"{run}: neither a checkpoint nor {PARTITION} can be read, so nobody knows what the run worked on")


def _json(path: Path) -> dict[str, Any]:
    """A table; empty where there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
