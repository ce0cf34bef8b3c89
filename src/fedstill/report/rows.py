"""The lines of ``metrics.jsonl``, read into frozen values. A line that cannot be read is passed over and named."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from fedstill.report.courses import Course, read_course
from fedstill.report.reading import (
    Table,
    as_count,
    as_counts,
    as_figure,
    as_figures,
    as_list,
    as_share,
    as_shares,
    as_table,
    as_text,
    read_text,
)

__all__ = ["Agreement", "ClientRow", "Matching", "Own", "Private", "Row", "Theory", "read_rows"]

WALL = ("clients", "server", "evaluate")
"""Phases that make up a round's wall time; others (``distil``, ``train``) are parts of these."""

_MOST = 3  # damaged lines, or gaps, that are named one by one


@dataclass(frozen=True)
class Matching:
    """How the distillation for one client went; fields as in :class:`fedstill.distill.health.Health`."""

    start: float | None
    end: float | None
    best: float | None
    pixel_min: float | None
    pixel_max: float | None
    rate: float | None
    conditioning: float | None
    retries: int | None
    sick: str | None


@dataclass(frozen=True)
class Own:
    """The received model on one client's own test images."""

    correct: int | None
    examples: int | None
    accuracy: float | None
    balanced: float | None
    calibration: float | None


@dataclass(frozen=True)
class Private:
    """What a client says of its differential privacy; fields as in :class:`fedstill.privacy.Guarantee`, all above 0 but ε, which
    so much noise may round to 0."""

    epsilon: float
    delta: float
    noise: float


@dataclass(frozen=True)
class Agreement:
    """How far the server found a client's set to agree with the others'; see :mod:`fedstill.algorithms.agreement`."""

    agreement: float | None
    worst: float | None
    where: str
    assessed: int | None
    classes: int | None
    flagged: bool


@dataclass(frozen=True)
class ClientRow:
    """One client in one round; ``validation`` is the accuracy of the model it received on its validation split.

    ``course`` is how the distillation went that it did itself; None where it did none. ``private`` is what it says of single
    images, ``update`` of all its images at once; None where it says nothing. ``agreement`` is None where the server
    did not look.
    """

    client: str
    examples: int | None
    loss: float | None
    validation: float | None
    test: Own | None
    matching: Matching | None
    course: Course | None
    private: Private | None
    update: Private | None
    agreement: Agreement | None


@dataclass(frozen=True)
class Theory:
    """Cosine between the gradients on the synthetic union and on all real images, at a round's first and last weights."""

    before: float | None
    after: float | None


@dataclass(frozen=True)
class Row:
    """One line of ``metrics.jsonl``; accuracies are fractions, sizes bytes, times seconds.

    Attributes:
        accuracy, balanced, calibration: by model, on the clean test images: share of them labelled correctly, its mean over
            classes, and the expected calibration error.
        per_class: by model, the share of each class labelled correctly; None where the test set has none of the class.
        confusion: by model, counts: rows are true classes, columns what the model said.
        examples: number of test images.
        withheld: why nothing came of the round's replies; empty where something did, or nothing is said.
        validation, test: unweighted mean over the clients' own validation and test images.
        hostile: clients that a study poisoned.
        attack: by model, how far these got; empty where there was nothing to measure.
    """

    number: int
    accuracy: Mapping[str, float]
    balanced: Mapping[str, float]
    calibration: Mapping[str, float]
    per_class: Mapping[str, tuple[float | None, ...]]
    confusion: Mapping[str, tuple[tuple[int, ...], ...]]
    examples: int | None
    validation: float | None
    test: float | None
    bytes_up: int | None
    bytes_down: int | None
    bytes_scoring: int | None
    seconds: Mapping[str, float]
    cpu_seconds: float | None
    peak_memory: int | None
    aggregated: bool
    withheld: str
    union: int | None
    theory: Theory | None
    clients: tuple[ClientRow, ...]
    failures: tuple[tuple[str, str], ...]
    hostile: tuple[str, ...]
    attack: Mapping[str, float]

    @property
    def sent(self) -> int | None:
        """Bytes up and down; None where one of them is not known."""
        return None if self.bytes_up is None or self.bytes_down is None else self.bytes_up + self.bytes_down

    @property
    def wall(self) -> float | None:
        """Wall seconds: clients, server and evaluation, as ``summary.json`` adds them up; None where one is not known."""
        return sum(self.seconds[phase] for phase in WALL) if all(phase in self.seconds for phase in WALL) else None


def read_rows(path: Path, missing: list[str]) -> tuple[Row, ...]:
    """By round, ascending; what was passed over, and which rounds are missing, is said in ``missing``."""
    lines = (read_text(path, missing) or "").splitlines()
    rows: dict[int, Row] = {}
    damaged: list[str] = []
    misread: list[int] = []
    for index, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            value = as_table(json.loads(line))
            row = _row(value)
        except (ValueError, RecursionError):
            row = None
        if row is None:
            where = "the last line" if index == len(lines) else f"line {index}"
            damaged.append(f"{where} of metrics.jsonl is cut or damaged and was passed over")
        else:
            rows[row.number] = row
            given = value.get("accuracy")
            if len(row.accuracy) < len(as_table(given)) or (given and not isinstance(given, dict)):
                misread.append(row.number)
    if len(damaged) > _MOST:
        damaged = [f"{len(damaged)} lines of metrics.jsonl are cut or damaged and were passed over"]
    missing += damaged
    if misread:
        of = f"round {misread[0]}" if len(misread) == 1 else f"{len(misread)} rounds"
        missing.append(f"metrics.jsonl has accuracies of {of} that are no numbers of 0 to 1: they were passed over")
    if not rows:
        missing.append("no round has been finished")
    missing += _gaps(sorted(rows))
    return tuple(rows[number] for number in sorted(rows))


def _gaps(numbers: Sequence[int]) -> list[str]:
    """A sentence for each gap; where they are many, one for all."""
    found = [(before + 1, after - 1) for before, after in pairwise((0, *numbers)) if after - before > 1]
    if len(found) > _MOST:
        return [
            f"metrics.jsonl lacks {sum(last - first + 1 for first, last in found)} rounds before round {numbers[-1]}"
        ]
    return [
        "metrics.jsonl lacks " + (f"round {first}" if first == last else f"rounds {first} to {last}")
        for first, last in found
    ]


def _row(value: Any) -> Row | None:
    table = as_table(value)
    number = as_count(table.get("round"))
    if number is None or number < 1:
        return None
    confusion = {str(name): as_counts(matrix) for name, matrix in as_table(table.get("confusion")).items()}
    return Row(
        number=number,
        accuracy=as_shares(table.get("accuracy")),
        balanced=as_shares(table.get("balanced_accuracy")),
        calibration=as_shares(table.get("calibration_error")),
        per_class={
            str(name): tuple(map(as_share, as_list(shares)))
            for name, shares in as_table(table.get("per_class")).items()
        },
        confusion={name: matrix for name, matrix in confusion.items() if matrix},
        examples=as_count(table.get("test_examples")),
        validation=as_share(as_table(table.get("validation")).get("mean")),
        test=as_share(as_table(table.get("test")).get("mean")),
        bytes_up=as_count(table.get("bytes_up")),
        bytes_down=as_count(table.get("bytes_down")),
        bytes_scoring=as_count(table.get("bytes_scoring")),
        seconds=as_figures(table.get("seconds")),
        cpu_seconds=as_figure(table.get("cpu_seconds")),
        peak_memory=as_count(table.get("peak_memory")),
        aggregated=table.get("aggregated") is not False,
        withheld=as_text(table.get("withheld")),
        union=as_count(table.get("union")),
        theory=_theory(as_table(table.get("theory"))),
        clients=tuple(
            _client(item) for item in map(as_table, as_list(table.get("clients"))) if as_text(item.get("client"))
        ),
        failures=tuple(
            (as_text(item.get("client")) or "unknown client", as_text(item.get("reason")) or "no reason given")
            for item in map(as_table, as_list(table.get("failures")))
        ),
        hostile=tuple(filter(None, map(as_text, as_list(as_table(table.get("attack")).get("clients"))))),
        attack=as_shares(as_table(table.get("attack")).get("success")),
    )


def _theory(table: Table) -> Theory | None:
    if not table:
        return None
    return Theory(as_figure(table.get("cosine_before")), as_figure(table.get("cosine_after")))


def _client(table: Table) -> ClientRow:
    matching, test = as_table(table.get("matching")), as_table(table.get("test"))
    return ClientRow(
        client=as_text(table.get("client")),
        examples=as_count(table.get("examples")),
        loss=as_figure(table.get("loss")),
        validation=as_share(table.get("validation")),
        test=_own(test) if test else None,
        matching=_matching(matching) if matching else None,
        course=read_course(table),
        private=_private(as_table(table.get("privacy"))),
        update=_private(as_table(table.get("update"))),
        agreement=_agreement(table),
    )


def _agreement(table: Table) -> Agreement | None:
    flagged = table.get("flagged")
    if not isinstance(flagged, bool):
        return None
    return Agreement(
        as_share(table.get("agreement")),
        as_figure(table.get("agreement_worst")),
        as_text(table.get("agreement_class")),
        as_count(table.get("assessed")),
        as_count(table.get("classes")),
        flagged,
    )


def _private(table: Table) -> Private | None:
    epsilon, delta, noise = (as_figure(table.get(name)) for name in ("epsilon", "delta", "noise"))
    if epsilon is None or delta is None or noise is None or min(delta, noise) <= 0 or epsilon < 0:
        return None
    return Private(epsilon, delta, noise)


def _own(table: Table) -> Own:
    return Own(
        correct=as_count(table.get("correct")),
        examples=as_count(table.get("examples")),
        accuracy=as_share(table.get("accuracy")),
        balanced=as_share(table.get("balanced_accuracy")),
        calibration=as_share(table.get("calibration_error")),
    )


def _matching(table: Table) -> Matching:
    return Matching(
        start=as_figure(table.get("start")),
        end=as_figure(table.get("end")),
        best=as_figure(table.get("best")),
        pixel_min=as_figure(table.get("pixel_min")),
        pixel_max=as_figure(table.get("pixel_max")),
        rate=as_figure(table.get("rate")),
        conditioning=as_figure(table.get("conditioning")),
        retries=as_count(table.get("retries")),
        sick=as_text(table.get("sick")) or None,
    )
