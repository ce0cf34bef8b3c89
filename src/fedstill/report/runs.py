"""A run's folder, read into frozen values. Whatever can be read is; whatever cannot is named in ``Run.missing``.

Unknown keys are passed over, so that a newer fedstill's run has a page too; only a folder that is no run at all is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from fedstill.errors import InputError
from fedstill.report.audited import read_audited
from fedstill.report.evaluated import Evaluated, read_evaluated
from fedstill.report.leakage import Audited
from fedstill.report.reading import (
    Table,
    as_count,
    as_list,
    as_shares,
    as_table,
    as_text,
    read_json,
    read_toml,
)
from fedstill.report.rows import Row, read_rows
from fedstill.settings import told

__all__ = ["UNFINISHED", "Holding", "Run", "read_run"]

UNFINISHED = "the run was not finished: later rounds are missing"
"""What ``Run.missing`` says of a run that was interrupted, or is still at work."""


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
        audited: what ``fedstill audit`` found afterwards.
        missing: one sentence for each thing that could not be read.
    """

    folder: Path
    settings: Table
    provenance: Table
    holding: Holding | None
    rows: tuple[Row, ...]
    summary: Table
    evaluated: Evaluated
    audited: Audited
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
    def sites(self) -> tuple[str, ...]:
        """Names of the real sites that took part; empty where clients were simulated."""
        if as_table(self.settings.get("engine")).get("kind") != "sites":
            return ()
        return tuple(dict.fromkeys(each.client for row in self.rows for each in row.clients))

    @property
    def wall_seconds(self) -> float | None:
        """Over all rounds; None where one of them is missing or does not tell."""
        known = [row.wall for row in self.rows if row.wall is not None]
        return sum(known) if known and self.whole and len(known) == len(self.rows) else None

    @property
    def cpu_seconds(self) -> float | None:
        """Of all processes, over all rounds; None where one of them is missing or does not tell."""
        known = [row.cpu_seconds for row in self.rows if row.cpu_seconds is not None]
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

    @property
    def published_of_clients(self) -> Mapping[str, float]:
        """The same on clients' own test images, by client."""
        return as_shares(as_table(self.settings.get("published")).get("clients"))

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
    rows = read_rows(folder / "metrics.jsonl", missing)
    served = as_table(experiment.get("engine")).get("kind") == "sites"
    holding = _read_holding(folder / "partition.json", missing, known=not served)
    path = folder / "summary.json"
    # it is first written after round 1: where there is no round, that says it all
    summary = read_json(path, missing) if rows or path.exists() else None
    if summary is not None and summary.get("finished") is not True:
        missing.append(UNFINISHED)
    return Run(
        folder=folder,
        settings=_settings(experiment),
        provenance=as_table(experiment.get("provenance")),
        holding=holding,
        rows=rows,
        summary=summary or {},
        evaluated=read_evaluated(folder / "evaluation.json", missing),
        audited=read_audited(folder / "audit.json", missing),
        missing=tuple(missing),
    )


def _settings(experiment: Table) -> Table:
    """Without what older runs do not say, where a newer one has what they had: their settings are the same."""
    settings = {key: value for key, value in experiment.items() if key != "provenance"}
    if isinstance(data := settings.get("data"), Mapping) and data.get("zca") is False:
        settings["data"] = {key: value for key, value in data.items() if key not in ("zca", "zca_epsilon")}
    tables = {name: as_table(settings[name]) for name in ("algorithm", "virtual") if name in settings}
    within = {f"{name}.{key}": value for name, table in tables.items() for key, value in table.items()}
    kept = told(settings | within)
    settings = {key: value for key, value in settings.items() if key in kept}
    for name, table in tables.items():
        settings[name] = {key: value for key, value in table.items() if f"{name}.{key}" in kept}
    return settings


def _read_holding(path: Path, missing: list[str], *, known: bool) -> Holding | None:
    """``known``: whether the run could know who holds what, which of real sites the sites alone do."""
    table = read_json(path, missing)
    if table is None:
        return None
    counts = {
        str(client): tuple(max(0, as_count(count) or 0) for count in as_list(row))
        for client, row in as_table(table.get("histogram")).items()
    }
    width = max(map(len, counts.values()), default=0)
    names = [str(name) for name in as_list(table.get("classes"))]
    if known and not counts:
        missing.append("partition.json holds no class histogram: who held what is not known")
    return Holding(
        kind=as_text(table.get("kind")),
        hash=as_text(table.get("hash")),
        classes=tuple(names) if len(names) == width else tuple(map(str, range(width))),
        counts={client: (*row, *(0,) * (width - len(row))) for client, row in counts.items()},
    )
