"""A run's folder, read into frozen values. Whatever can be read is; whatever cannot is named in ``Run.missing``.

A page must be had of a run that was killed, that a newer fedstill wrote, or whose disk was full. So unknown keys are
passed over, a value of the wrong type counts as absent, and only a folder that is no run at all is refused.
"""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from fedstill.errors import InputError

__all__ = ["ClientRow", "Holding", "Matching", "Row", "Run", "read_run"]

Table = Mapping[str, Any]


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
class ClientRow:
    """One client in one round; ``validation`` is the accuracy of the model it received on its validation split."""

    client: str
    examples: int | None
    loss: float | None
    validation: float | None
    matching: Matching | None


@dataclass(frozen=True)
class Row:
    """One line of ``metrics.jsonl``; accuracies are fractions, sizes bytes, times seconds."""

    number: int
    accuracy: Mapping[str, float]
    validation: float | None
    bytes_up: int | None
    bytes_down: int | None
    bytes_scoring: int | None
    seconds: Mapping[str, float]
    peak_memory: int | None
    aggregated: bool
    union: int | None
    clients: tuple[ClientRow, ...]
    failures: tuple[tuple[str, str], ...]


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
        missing: one sentence for each thing that could not be read.
    """

    folder: Path
    settings: Table
    provenance: Table
    holding: Holding | None
    rows: tuple[Row, ...]
    summary: Table
    missing: tuple[str, ...]

    @property
    def name(self) -> str:
        return _text(self.settings.get("name")) or self.folder.resolve().name

    @property
    def method(self) -> str:
        """Name in the table of algorithms; empty where the experiment cannot be read."""
        return _text(_table(self.settings.get("algorithm")).get("name"))

    @property
    def seed(self) -> int | None:
        return _count(self.settings.get("seed"))

    @property
    def wall_seconds(self) -> float | None:
        return _figure(self.summary.get("wall_seconds"))


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
    experiment = _read_toml(folder / "experiment.toml", missing)
    rows = _read_rows(folder / "metrics.jsonl", missing)
    holding = _read_holding(folder / "partition.json", missing)
    summary = _table(_read_json(folder / "summary.json", missing))
    if summary and summary.get("finished") is not True:
        missing.append("the run was not finished: later rounds are missing")
    return Run(
        folder=folder,
        settings={key: value for key, value in experiment.items() if key != "provenance"},
        provenance=_table(experiment.get("provenance")),
        holding=holding,
        rows=rows,
        summary=summary,
        missing=tuple(missing),
    )


def _read_text(path: Path, missing: list[str]) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        missing.append(f"{path.name} cannot be read ({error.strerror or error})")
        return None


def _read_toml(path: Path, missing: list[str]) -> Table:
    text = _read_text(path, missing)
    try:
        return tomllib.loads(text) if text is not None else {}
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        missing.append(f"{path.name} is damaged ({error}): settings and versions are not known")
        return {}


def _read_json(path: Path, missing: list[str]) -> Any:
    text = _read_text(path, missing)
    try:
        return json.loads(text) if text is not None else None
    except (ValueError, RecursionError) as error:
        missing.append(f"{path.name} is damaged ({error})")
        return None


def _read_rows(path: Path, missing: list[str]) -> tuple[Row, ...]:
    lines = (_read_text(path, missing) or "").splitlines()
    rows: dict[int, Row] = {}
    for index, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = _row(json.loads(line))
        except (ValueError, RecursionError):
            row = None
        if row is None:
            where = "the last line" if index == len(lines) else f"line {index}"
            missing.append(f"{where} of metrics.jsonl is cut or damaged and was passed over")
        else:
            rows[row.number] = row
    if not rows:
        missing.append("no round has been finished")
    for before, after in pairwise((0, *sorted(rows))):
        if after - before == 2:
            missing.append(f"metrics.jsonl lacks round {after - 1}")
        elif after - before > 2:
            missing.append(f"metrics.jsonl lacks rounds {before + 1} to {after - 1}")
    return tuple(rows[number] for number in sorted(rows))


def _row(value: Any) -> Row | None:
    table = _table(value)
    number = _count(table.get("round"))
    if number is None or number < 1:
        return None
    return Row(
        number=number,
        accuracy=_figures(table.get("accuracy")),
        validation=_figure(_table(table.get("validation")).get("mean")),
        bytes_up=_count(table.get("bytes_up")),
        bytes_down=_count(table.get("bytes_down")),
        bytes_scoring=_count(table.get("bytes_scoring")),
        seconds=_figures(table.get("seconds")),
        peak_memory=_count(table.get("peak_memory")),
        aggregated=table.get("aggregated") is not False,
        union=_count(table.get("union")),
        clients=tuple(_client(item) for item in map(_table, _list(table.get("clients"))) if _text(item.get("client"))),
        failures=tuple(
            (_text(item.get("client")) or "unknown client", _text(item.get("reason")) or "no reason given")
            for item in map(_table, _list(table.get("failures")))
        ),
    )


def _client(table: Table) -> ClientRow:
    matching = _table(table.get("matching"))
    return ClientRow(
        client=_text(table.get("client")),
        examples=_count(table.get("examples")),
        loss=_figure(table.get("loss")),
        validation=_figure(table.get("validation")),
        matching=_matching(matching) if matching else None,
    )


def _matching(table: Table) -> Matching:
    return Matching(
        start=_figure(table.get("start")),
        end=_figure(table.get("end")),
        best=_figure(table.get("best")),
        pixel_min=_figure(table.get("pixel_min")),
        pixel_max=_figure(table.get("pixel_max")),
        rate=_figure(table.get("rate")),
        conditioning=_figure(table.get("conditioning")),
        retries=_count(table.get("retries")),
        sick=_text(table.get("sick")) or None,
    )


def _read_holding(path: Path, missing: list[str]) -> Holding | None:
    table = _table(_read_json(path, missing))
    if not table:
        return None
    counts = {
        str(client): tuple(max(0, _count(count) or 0) for count in _list(row))
        for client, row in _table(table.get("histogram")).items()
    }
    width = max(map(len, counts.values()), default=0)
    names = [str(name) for name in _list(table.get("classes"))]
    if not counts:
        missing.append("partition.json holds no class histogram: who held what is not known")
    return Holding(
        kind=_text(table.get("kind")),
        hash=_text(table.get("hash")),
        classes=tuple(names) if len(names) == width else tuple(map(str, range(width))),
        counts={client: (*row, *(0,) * (width - len(row))) for client, row in counts.items()},
    )


def _table(value: Any) -> Table:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _figure(value: Any) -> float | None:
    if isinstance(value, int):
        value = _count(value)
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _count(value: Any) -> int | None:
    # 63 bits, as every count of ours; a longer number would not even go through float
    return value if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63 else None


def _figures(value: Any) -> dict[str, float]:
    found = {str(name): _figure(item) for name, item in _table(value).items()}
    return {name: figure for name, figure in found.items() if figure is not None}
