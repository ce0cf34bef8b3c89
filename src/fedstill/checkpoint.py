"""Checkpoints: server state, number of metrics rows, list of memory versions; written atomically after every round.

    checkpoints/round-0005.safetensors     the state, a Bundle
    checkpoints/round-0005.json            the rest, and the state's SHA-256; written second: without it there is no checkpoint
    checkpoints/best.safetensors, .json    the same of the round that is best on the clients' own validation images

The newest two are kept, so that one damaged file costs one round.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from fedstill.bundle import Bundle
from fedstill.errors import InputError
from fedstill.files import numbered, round_stem, write_bytes, write_json
from fedstill.settings import differences

__all__ = ["Best", "Record", "best", "best_state", "newest", "save"]

KEPT = 2
BEST = "best"


@dataclass(frozen=True, kw_only=True)
class Record:
    """What stands in a checkpoint's JSON.

    Attributes:
        round: number of the last round in it.
        rows: lines of ``metrics.jsonl`` up to it.
        validation: mean accuracy over the clients' validation images; None where there are none.
        memory: versions of every client's memory.
        identity: of the experiment, see :class:`fedstill.experiment.Parts`.
        sha256: of the state's file.
    """

    round: int
    rows: int
    validation: float | None
    memory: dict[str, list[int]]
    identity: dict[str, Any]
    sha256: str = ""


@dataclass(frozen=True)
class Best:
    """The round that is best by mean client validation; the earliest of equals."""

    round: int
    validation: float


def save(folder: Path, record: Record, state: Bundle) -> None:
    """Write a checkpoint; then, if it is better than the best so far, the best; then drop what is too old.

    Raises:
        RunError: the disk refuses the file. The checkpoints before it stand.
    """
    content = state.to_bytes()
    values = vars(record) | {"sha256": hashlib.sha256(content).hexdigest()}
    leader = best(folder)
    if record.validation is not None and (leader is None or record.validation > leader.validation):
        _write(folder, BEST, content, values)
    _write(folder, round_stem(record.round), content, values)
    kept = numbered(folder, ".json")[-KEPT:]
    for suffix in (".json", ".safetensors"):
        for number in numbered(folder, suffix):
            if number not in kept:
                (folder / f"{round_stem(number)}{suffix}").unlink(missing_ok=True)


def best(folder: Path) -> Best | None:
    """The best round so far; None where clients have no validation images."""
    found = _read(folder, BEST)
    if isinstance(found, str) or found[0].validation is None:
        return None
    return Best(found[0].round, found[0].validation)


def best_state(folder: Path) -> Bundle | None:
    """The server's state after the best round; None where :func:`best` is."""
    found = _read(folder, BEST)
    return None if isinstance(found, str) else found[1]


def newest(folder: Path, identity: Mapping[str, Any], *, note: Callable[[str], None]) -> tuple[Record, Bundle] | None:
    """The newest checkpoint that is whole; None where there is none. ``note`` hears of damaged ones.

    Raises:
        InputError: it is of another experiment; or there are checkpoints, and all are damaged.
    """
    damage: list[str] = []
    for number in reversed(numbered(folder, ".json")):
        found = _read(folder, round_stem(number))
        if isinstance(found, str):
            damage.append(found)
            continue
        record, state = found
        _check(record.identity, identity, folder)
        for reason in damage:
            note(f"{reason}: going back to the checkpoint of round {record.round}")
        return record, state
    if damage:
        raise InputError(f"{damage[0]}, and no other checkpoint is whole: start the run anew in another folder")
    return None


def _write(folder: Path, stem: str, content: bytes, values: Mapping[str, Any]) -> None:
    write_bytes(folder / f"{stem}.safetensors", content)
    write_json(folder / f"{stem}.json", values)


def _read(folder: Path, stem: str) -> tuple[Record, Bundle] | str:
    """The checkpoint, or why it cannot be used."""
    about, path = folder / f"{stem}.json", folder / f"{stem}.safetensors"
    try:
        record = TypeAdapter(Record).validate_json(about.read_bytes())
        content = path.read_bytes()
    except OSError as error:
        return f"{error.filename} cannot be read ({error.strerror})"
    except ValidationError:
        return f"{about} is damaged"
    if hashlib.sha256(content).hexdigest() != record.sha256:
        return f"{path} is damaged"
    return record, Bundle.from_bytes(content, source=str(path))


def _check(found: Mapping[str, Any], wanted: Mapping[str, Any], folder: Path) -> None:
    wanted = json.loads(json.dumps(dict(wanted)))
    if told := differences(found, wanted):
        raise InputError(
            f"{folder} holds the checkpoint of another experiment: {told} differ; "
            "put it back, or start the changed experiment in another folder"
        )
