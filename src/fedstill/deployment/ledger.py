"""The ledger: a line for every message that a site got or answered with, in the site's own folder.

A line is written, and on the disk, before its message goes on: what cannot be written down does not leave. Lines are only ever
added. A line that a crash cut short is no JSON, and is counted and passed over.

    {"time": "2026-11-22T01:38:00.123Z", "run": "skin", "round": 3, "task": "local", "direction": "out", "bytes": 21064,
     "groups": {"model": {"tensors": 8, "elements": 5130, "bytes": 20520, "types": ["float32"]}},
     "numbers": {"examples": 312.0, "loss": 0.41}, "sha256": "…", "refused": null}
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from fedstill.deployment.messages import Facts, GroupFacts
from fedstill.deployment.policy import NUMBERS, word_of
from fedstill.errors import RunError, printable
from fedstill.files import PRIVATE, private_folder
from fedstill.output import append_line, whole_lines

__all__ = ["LEDGER", "Direction", "Entry", "Ledger", "Total", "alone", "now", "record", "totals"]

LEDGER = "ledger.jsonl"
"""Its name in the site's folder."""

Direction = Literal["in", "out"]

MOST_NAMES, MOST_LETTERS = 1000, 80
"""Groups, and numbers, of a message that are written down by name, and letters of each: a stranger could send millions."""

OTHERS = "(others)"
"""What stands for the rest of them."""

UNKNOWN = "unknown"
"""The word for groups that fedstill does not know; they never leave."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One message.

    Attributes:
        time: when, UTC, to the millisecond; ``now()``.
        run: the run's name, as the server states it.
        round: its number.
        task: what the server asked for.
        direction: ``in`` arrived, ``out`` left.
        facts: what it holds. ``numbers`` may hold what is not finite.
        refused: why it was not worked on, or did not leave; None where it did.
    """

    time: str
    run: str
    round: int
    task: str
    direction: Direction
    facts: Facts
    refused: str | None = None

    def line(self) -> str:
        """As the ledger has it: ASCII, names of a stranger's cut to what can be read."""
        return json.dumps(
            {
                "time": self.time,
                "run": printable(self.run, 64),
                "round": self.round,
                "task": printable(self.task),
                "direction": self.direction,
                "bytes": self.facts.bytes,
                "groups": _groups(self.facts.groups),
                "numbers": _numbers(self.facts.numbers),
                "sha256": self.facts.sha256,
                "refused": None if self.refused is None else printable(self.refused, 200),
            },
            allow_nan=False,
        )

    @classmethod
    def read(cls, line: bytes) -> Entry | None:
        """What :meth:`line` wrote; None where it did not."""
        try:
            found = json.loads(line)
            facts = {key: found.pop(key) for key in ("bytes", "sha256", "groups", "numbers")}
            facts["numbers"] = {name: float(value) for name, value in facts["numbers"].items()}
            return _ENTRY.validate_python({**found, "facts": facts})
        except (ValueError, ValidationError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
            return None


@dataclass(frozen=True)
class Ledger:
    """All that a ledger says: its entries in order, and how many lines could not be read."""

    entries: tuple[Entry, ...] = ()
    damaged: int = 0

    @classmethod
    def open(cls, path: Path) -> Ledger:
        """Read ``path``; where there is none, nothing was ever sent.

        Raises:
            RunError: the system refuses.
        """
        try:
            found = [Entry.read(line) for line in whole_lines(path)]
        except OSError as error:
            raise RunError(f"cannot read {path}: {error.strerror or error}") from error
        entries = tuple(entry for entry in found if entry is not None)
        return cls(entries, len(found) - len(entries))


@dataclass(frozen=True)
class Total:
    """What there was of one word in all messages that went one way; ``names`` of its groups, or of the numbers, sorted."""

    messages: int = 0
    tensors: int = 0
    elements: int = 0
    bytes: int = 0
    names: tuple[str, ...] = ()

    def plus(self, groups: Mapping[str, GroupFacts]) -> Total:
        """With one more message."""
        return Total(
            messages=self.messages + 1,
            tensors=self.tensors + sum(group.tensors for group in groups.values()),
            elements=self.elements + sum(group.elements for group in groups.values()),
            bytes=self.bytes + sum(group.bytes for group in groups.values()),
            names=tuple(sorted({*self.names, *groups})),
        )


def now() -> str:
    """This moment, as entries have it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def record(path: Path, entry: Entry) -> None:
    """Add ``entry`` to the ledger at ``path`` and see it to the disk; several processes may do so at once.

    Raises:
        InputError: its folder lets other users in.
        RunError: the system refuses; the message must not go on then.
    """
    private_folder(path.parent)
    with alone(path) as torn:
        # what a crash cut short gets an end of its own, or it would take this line with it
        append_line(path, ("\n" if torn else "") + entry.line())


def totals(entries: Iterable[Entry], direction: Direction) -> dict[str, Total]:
    """By word, what went ``direction``: of the answers those that did leave, of the messages that came all, refused ones too."""
    result: dict[str, Total] = {}
    for entry in entries:
        if entry.direction != direction or (direction == "out" and entry.refused is not None):
            continue
        by_word: dict[str, dict[str, GroupFacts]] = {}
        for name, group in entry.facts.groups.items():
            by_word.setdefault(word_of(name) or UNKNOWN, {})[name] = group
        if entry.facts.numbers:
            by_word[NUMBERS] = dict.fromkeys(entry.facts.numbers, _A_NUMBER)
        for word, groups in by_word.items():
            result[word] = result.get(word, Total()).plus(groups)
    return result


@contextmanager
def alone(path: Path) -> Iterator[bool]:
    """Keep other writers of ``path`` out; gives whether its last line was cut short.

    Raises:
        RunError: the system refuses.
    """
    try:
        # opened here first, so that the file is private from the start
        handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, PRIVATE)
    except OSError as error:
        raise RunError(
            f"cannot write {path}: {error.strerror or error}; free space or choose another folder"
        ) from error
    with os.fdopen(handle, "rb") as file:
        _lock(handle)
        size = file.seek(0, os.SEEK_END)
        file.seek(max(size - 1, 0))
        yield size > 0 and file.read(1) != b"\n"


def _lock(handle: int) -> None:
    """Wait for the others; the lock ends with the file, also by a kill."""
    try:
        import fcntl
    except ImportError:  # as on Windows, where a line is one write and has to do
        return
    fcntl.flock(handle, fcntl.LOCK_EX)


def _groups(groups: Mapping[str, GroupFacts]) -> dict[str, Any]:
    """By names that can be read; what is beyond the first thousand goes under one."""
    told = {printable(name, MOST_LETTERS): asdict(group) for name, group in list(groups.items())[:MOST_NAMES]}
    if rest := list(groups.values())[MOST_NAMES:]:
        told[OTHERS] = asdict(
            GroupFacts(
                tensors=sum(group.tensors for group in rest),
                elements=sum(group.elements for group in rest),
                bytes=sum(group.bytes for group in rest),
                types=(),
            )
        )
    return told


def _numbers(numbers: Mapping[str, float]) -> dict[str, Any]:
    """Likewise; of what is beyond the first thousand, how many there are."""
    told = {printable(name, MOST_LETTERS): _number(value) for name, value in list(numbers.items())[:MOST_NAMES]}
    return told | ({OTHERS: len(numbers) - MOST_NAMES} if len(numbers) > MOST_NAMES else {})


def _number(value: float) -> float | str:
    """JSON has no other numbers than finite ones."""
    return float(value) if math.isfinite(value) else str(float(value))


_A_NUMBER = GroupFacts(tensors=0, elements=1, bytes=8, types=("number",))
_ENTRY = TypeAdapter(Entry)
