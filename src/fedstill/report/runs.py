"""A run's folder, read into frozen values. Whatever can be read is; whatever cannot is named in ``Run.missing``.

Unknown keys are passed over, so that a newer fedstill's run has a page too; only a folder that is no run at all is refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

from fedstill.errors import InputError
from fedstill.report.evaluated import Evaluated, read_evaluated
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
    read_json,
    read_text,
    read_toml,
)

__all__ = ["UNFINISHED", "ClientRow", "Holding", "Matching", "Own", "Row", "Run", "Theory", "read_run"]

WALL = ("clients", "server", "evaluate")
"""Phases that make up a round's wall time; others (``distil``, ``train``) are parts of these."""


_MOST = 3  # damaged lines, or gaps, that are named one by one

UNFINISHED = "the run was not finished: later rounds are missing"
"""What ``Run.missing`` says of a run that was interrupted, or is still at work."""


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
class ClientRow:
    """One client in one round; ``validation`` is the accuracy of the model it received on its validation split."""

    client: str
    examples: int | None
    loss: float | None
    validation: float | None
    test: Own | None
    matching: Matching | None


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
        validation, test: unweighted mean over the clients' own validation and test images.
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
    union: int | None
    theory: Theory | None
    clients: tuple[ClientRow, ...]
    failures: tuple[tuple[str, str], ...]

    @property
    def sent(self) -> int | None:
        """Bytes up and down; None where one of them is not known."""
        return None if self.bytes_up is None or self.bytes_down is None else self.bytes_up + self.bytes_down

    @property
    def wall(self) -> float | None:
        """Wall seconds: clients, server and evaluation, as ``summary.json`` adds them up; None where one is not known."""
        return sum(self.seconds[phase] for phase in WALL) if all(phase in self.seconds for phase in WALL) else None


@dataclass(frozen=True)
class Holding:
    """Who held what.

    Attributes:
        kind: how the data were partitioned; empty where the file does not say.
        hash: identity of the partition; empty where the file does not say.
        classes: names of the classes.
        counts: images a class, by client.
    """

    kind: str
    hash: str
    classes: tuple[str, ...]
    counts: Mapping[str, tuple[int, ...]]

    @property
    def key(self) -> str:
        """The same for two runs whose clients hold the same."""
        return self.hash or repr(self.counts)


@dataclass(frozen=True)
class Run:
    """One run's folder.

    Attributes:
        folder: where it lies.
        settings: the experiment as resolved, without ``[provenance]``.
        provenance: versions and hardware.
        holding: None where ``partition.json`` cannot be read.
        rows: by round, ascending.
        summary: as ``summary.json`` holds it; empty where it cannot be read.
        evaluated: what ``fedstill evaluate`` measured afterwards.
        missing: one sentence for each thing that could not be read.
    """

    folder: Path
    settings: Table
    provenance: Table
    holding: Holding | None
    rows: tuple[Row, ...]
    summary: Table
    evaluated: Evaluated
    missing: tuple[str, ...]

    @property
    def name(self) -> str:
        return as_text(self.settings.get("name")) or self.folder.resolve().name

    @property
    def method(self) -> str:
        """Name in the table of algorithms; empty where the experiment cannot be read."""
        return as_text(as_table(self.settings.get("algorithm")).get("name"))

    @property
    def seed(self) -> int | None:
        return as_count(self.settings.get("seed"))

    @property
    def wall_seconds(self) -> float | None:
        """Over all rounds; None where one of them is missing or does not tell."""
        known = [row.wall for row in self.rows if row.wall is not None]
        return sum(known) if known and self.whole and len(known) == len(self.rows) else None

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes; empty where ``partition.json`` cannot be read."""
        return self.holding.classes if self.holding is not None else ()

    @property
    def whole(self) -> bool:
        """Whether its rows are those of rounds 1, 2, 3 …: only then are sums over them sums over the run."""
        return all(row.number == index for index, row in enumerate(self.rows, start=1))

    @property
    def published(self) -> Mapping[str, float]:
        """Published accuracies by the name of a model, as the experiment gives them to compare with."""
        return as_shares(as_table(self.settings.get("published")).get("accuracy"))

    @cached_property
    def by_round(self) -> Mapping[int, Row]:
        return {row.number: row for row in self.rows}


def read_run(folder: Path) -> Run:
    """Read what there is.

    Raises:
        InputError: ``folder`` is no run: it holds neither ``metrics.jsonl`` nor ``experiment.toml``.
    """
    if not any((folder / name).is_file() for name in ("metrics.jsonl", "experiment.toml")):
        raise InputError(
            f"{folder} is not a run: it holds neither metrics.jsonl nor experiment.toml; "
            "give the folder that 'fedstill run' wrote"
        )
    missing: list[str] = []
    experiment = read_toml(folder / "experiment.toml", missing, lost="settings and versions are not known")
    rows = _read_rows(folder / "metrics.jsonl", missing)
    holding = _read_holding(folder / "partition.json", missing)
    path = folder / "summary.json"
    # it is first written after round 1: where there is no round, that says it all
    summary = read_json(path, missing) if rows or path.exists() else None
    if summary is not None and summary.get("finished") is not True:
        missing.append(UNFINISHED)
    return Run(
        folder=folder,
        settings={key: value for key, value in experiment.items() if key != "provenance"},
        provenance=as_table(experiment.get("provenance")),
        holding=holding,
        rows=rows,
        summary=summary or {},
        evaluated=read_evaluated(folder / "evaluation.json", missing),
        missing=tuple(missing),
    )


def _read_rows(path: Path, missing: list[str]) -> tuple[Row, ...]:
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
        union=as_count(table.get("union")),
        theory=_theory(as_table(table.get("theory"))),
        clients=tuple(
            _client(item) for item in map(as_table, as_list(table.get("clients"))) if as_text(item.get("client"))
        ),
        failures=tuple(
            (as_text(item.get("client")) or "unknown client", as_text(item.get("reason")) or "no reason given")
            for item in map(as_table, as_list(table.get("failures")))
        ),
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
    )


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


def _read_holding(path: Path, missing: list[str]) -> Holding | None:
    table = read_json(path, missing)
    if table is None:
        return None
    counts = {
        str(client): tuple(max(0, as_count(count) or 0) for count in as_list(row))
        for client, row in as_table(table.get("histogram")).items()
    }
    width = max(map(len, counts.values()), default=0)
    names = [str(name) for name in as_list(table.get("classes"))]
    if not counts:
        missing.append("partition.json holds no class histogram: who held what is not known")
    return Holding(
        kind=as_text(table.get("kind")),
        hash=as_text(table.get("hash")),
        classes=tuple(names) if len(names) == width else tuple(map(str, range(width))),
        counts={client: (*row, *(0,) * (width - len(row))) for client, row in counts.items()},
    )
