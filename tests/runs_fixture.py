"""Runs' folders with every key that ``fedstill run`` and ``fedstill evaluate`` write, filled with random numbers.

Tests of the page recompute what it shows from these files; benchmarks/report_page.py times it on many of them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fedstill.report.parts import Facts, Folded, Page, Text, charts, grids, walk

Settings = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Made:
    """What to make up.

    Attributes:
        method: name in the table of algorithms.
        models: what it scores; the first is the network that clients train.
        settings: tables of the experiment, over the defaults here.
        distils: clients have matching figures.
        tested: every third client keeps no test images; without it, none does.
        evaluated: ``evaluation.json`` is there.
        skill: about how much accuracy a run gains, over 0.2 at its start.
        domains: names of clients that hold a domain each, all of which are tested; empty: ``clients`` are numbered.
    """

    method: str = "feddgm"
    models: tuple[str, ...] = ("surrogate", "resnet18")
    settings: Settings = field(default_factory=dict)
    rounds: int = 3
    clients: int = 6
    classes: int = 4
    examples: int = 200
    distils: bool = False
    gradients: bool = False
    tested: bool = True
    evaluated: bool = False
    skill: float = 0.6
    domains: tuple[str, ...] = ()

    @property
    def names(self) -> list[str]:
        return list(self.domains) or [f"c{number:02}" for number in range(self.clients)]


def write_full_run(folder: Path, made: Made, *, seed: int = 0) -> Path:
    """A finished run."""
    draw = np.random.default_rng([seed, *folder.name.encode()])
    clients = made.names
    folder.mkdir(parents=True)
    (folder / "experiment.toml").write_text(_toml(folder.name, made, seed))
    rows = [_row(number, made, clients, draw) for number in range(1, made.rounds + 1)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "partition.json").write_text(json.dumps(_partition(made, clients, seed)))
    wall = sum(row["seconds"][phase] for row in rows for phase in ("clients", "server", "evaluate"))
    summary = {"finished": True, "rounds": made.rounds, "wall_seconds": wall, "selected_round": made.rounds}
    (folder / "summary.json").write_text(json.dumps(summary))
    if made.evaluated:
        (folder / "evaluation.json").write_text(json.dumps(_evaluation(made, clients, draw)))
    return folder


def write_comparison(folder: Path, made: Mapping[str, Made], *, seeds: Sequence[int] = (0, 1, 2)) -> list[Path]:
    """Every one of ``made``, by name, with every seed."""
    return [write_full_run(folder / f"{name}-{seed}", each, seed=seed) for name, each in made.items() for seed in seeds]


def spoken(page: Page) -> str:
    """All that the page says, a line a thing."""
    lines = [page.title, page.verdict, page.footing, *page.notes, *(section.title for section in page.sections)]
    for block in walk(page):
        if isinstance(block, Text):
            lines.append(block.text)
        elif isinstance(block, Facts):
            lines += [f"{name}: {value} {whose}" for name, values in block.items for value, whose in values]
        elif isinstance(block, Folded):
            lines.append(block.summary)
    for chart in charts(page):
        lines += [chart.chart.title, chart.chart.caption, chart.chart.spoken]
    for table in grids(page):
        lines += [
            table.title,
            " | ".join(table.head),
            *(" | ".join(cell.text for cell in row) for row in table.rows),
            table.note,
        ]
    return "\n".join(lines).replace("\N{NARROW NO-BREAK SPACE}", " ")


def _toml(name: str, made: Made, seed: int) -> str:
    tables: dict[str, dict[str, Any]] = {
        "data": {"source": "digits", "size": 16},
        "partition": {
            "kind": "domain" if made.domains else "dirichlet",
            "clients": made.clients,
            "alpha": 0.5,
            "validation": 0.1,
            "test": 0.1,
        },
        "model": {"name": "convnet", "depth": 3, "width": 32},
        "algorithm": {"name": made.method},
        "provenance": {"fedstill": "0.1.0", "torch": "2.13.0", "system": "Linux x86_64", "cpu": "Some CPU, 2 cores"},
    }
    for table, values in made.settings.items():
        if table == "model" and values.get("name", "convnet") != "convnet":
            tables[table] = {}  # another network has other options
        tables.setdefault(table, {}).update(values)
    # seeds of one experiment have its name
    own = name.rpartition("-")[0] or name
    lines = [f"name = {json.dumps(own)}", f"seed = {seed}", f"rounds = {made.rounds}"]
    for table, values in tables.items():
        lines += [f"[{table}]", *(f"{key} = {_value(value)}" for key, value in values.items())]
    return "\n".join(lines) + "\n"


def _value(value: Any) -> str:
    """As TOML has it."""
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{json.dumps(key)} = {_value(inner)}' for key, inner in value.items())}}}"
    return f"[{', '.join(map(_value, value))}]" if isinstance(value, list) else json.dumps(value)


def _row(number: int, made: Made, clients: Sequence[str], draw: np.random.Generator) -> dict[str, Any]:
    skill = {model: min(0.97, 0.2 + made.skill * number / made.rounds + 0.15 * draw.random()) for model in made.models}
    confusion = {model: _confusion(made, skill[model], draw) for model in made.models}
    row: dict[str, Any] = {
        "round": number,
        "accuracy": {model: float(np.trace(matrix) / matrix.sum()) for model, matrix in confusion.items()},
        "balanced_accuracy": {model: float(draw.random()) for model in made.models},
        "calibration_error": {model: float(draw.random() / 5) for model in made.models},
        "per_class": {
            model: [float(share) for share in np.diag(matrix) / matrix.sum(1)] for model, matrix in confusion.items()
        },
        "confusion": {model: matrix.tolist() for model, matrix in confusion.items()},
        "test_examples": made.examples,
        "loss": {model: float(draw.random()) for model in made.models},
        "validation": {"correct": 80, "examples": 100, "mean": float(draw.random())},
        "test": {"correct": 70, "examples": 100, "mean": float(draw.random()) if made.tested else None},
        "bytes_up": int(draw.integers(1_000_000, 2_000_000)),
        "bytes_down": int(draw.integers(1_000_000, 2_000_000)),
        "bytes_scoring": int(draw.integers(100, 1000)),
        "seconds": {
            "clients": float(1 + draw.random()),
            "server": float(6 + draw.random()),
            "distil": float(3 + draw.random()),
            "train": float(1 + draw.random()),
            "evaluate": float(draw.random()),
        },
        "cpu_seconds": float(20 + draw.random()),
        "peak_memory": int(draw.integers(400_000_000, 500_000_000)),
        "cohort": list(clients),
        "aggregated": True,
        "clients": [_client(index, client, made, draw) for index, client in enumerate(clients)],
        "failures": [],
    }
    if made.gradients:
        names = ("cosine_before", "norm_real_before", "norm_union_before")
        names += ("cosine_after", "norm_real_after", "norm_union_after")
        row["theory"] = {name: float(draw.random()) for name in names}
    return row


def _confusion(made: Made, skill: float, draw: np.random.Generator) -> np.ndarray[Any, Any]:
    each = made.examples // made.classes
    shares = np.full((made.classes, made.classes), (1 - skill) / (made.classes - 1))
    np.fill_diagonal(shares, skill)
    return np.stack([draw.multinomial(each, row) for row in shares])


def _client(index: int, client: str, made: Made, draw: np.random.Generator) -> dict[str, Any]:
    tested = made.tested and (bool(made.domains) or index % 3 != 2)
    found: dict[str, Any] = {
        "client": client,
        "examples": int(draw.integers(50, 200)),
        "loss": float(draw.random()),
        "validation": float(draw.random()),
        "test": {
            "correct": 10,
            "examples": 20,
            "accuracy": float(draw.random()),
            "balanced_accuracy": float(draw.random()),
            "calibration_error": float(draw.random() / 5),
            "per_class": [float(share) for share in draw.random(made.classes)],
        }
        if tested
        else None,
    }
    if made.distils:
        sick = draw.random() < 0.1
        found["matching"] = {
            "start": float(0.9 + 0.1 * draw.random()),
            "end": float(0.2 + 0.2 * draw.random()),
            "best": float(0.1 + 0.1 * draw.random()),
            "pixel_min": -0.2,
            "pixel_max": float(1 + draw.random()),
            "rate": 0.011,
            "conditioning": float(draw.random()),
            "retries": int(draw.integers(0, 3)),
            "sick": "its loss rose" if sick else None,
        }
    return found


def _partition(made: Made, clients: Sequence[str], seed: int) -> dict[str, Any]:
    # the same for every method of a seed, as it is in runs
    size = (len(clients), made.classes)
    draw = np.random.default_rng([seed, *size])
    counts = draw.integers(0, 60, size) * (draw.random(size) < 0.6)
    counts[:, 0] += 1
    return {
        "kind": "domain" if made.domains else "dirichlet",
        "options": {} if made.domains else {"alpha": 0.5},
        "clients": {client: [] for client in clients},
        "histogram": {client: row.tolist() for client, row in zip(clients, counts, strict=True)},
        "hash": f"{seed:02}{len(clients):04}{made.classes:04}5e884898da28047151d0e56f8dc6",
        "figures": {},
        "classes": [f"class {number}" for number in range(made.classes)],
    }


def _evaluation(made: Made, clients: Sequence[str], draw: np.random.Generator) -> dict[str, Any]:
    size = len(clients)
    squared = draw.random((size, size)) - 0.1
    squared = (squared + squared.T) / 2
    error = draw.random((size, size)) / 10
    error = (error + error.T) / 2
    matrix = [[None if row == column else float(squared[row, column]) for column in range(size)] for row in range(size)]
    return {
        "version": 1,
        "fresh": {
            "round": made.rounds,
            "file": f"synthetic/round-{made.rounds:04}.safetensors",
            "sha256": "0" * 64,
            "images": 120,
            "recipe": {"epochs": 10, "lr": 0.01, "batch": 32, "momentum": 0.9, "decay": 0.0, "augmentation": True},
            "results": [
                {
                    "model": model,
                    "seed": seed,
                    "accuracy": float(draw.random()),
                    "balanced_accuracy": float(draw.random()),
                    "calibration_error": float(draw.random() / 5),
                }
                for model in ("convnet", "vgg11")
                for seed in (0, 1)
            ],
        },
        "mmd": {
            "features": "a fixed random network",
            "images": 25,
            "bandwidth": 2.5,
            "clients": list(clients),
            "squared": matrix,
            "error": [[float(value) for value in row] for row in error],
            "halves": [{"client": clients[0], "squared": float(draw.normal() / 100), "error": 0.02}],
            "left_out": [{"client": clients[-1], "reason": "it holds 7 images, fewer than 25"}],
        },
        "tsne": {
            "features": "of the global model",
            "perplexity": 30.0,
            "points": [
                {
                    "client": clients[index % size],
                    "class": f"class {index % made.classes}",
                    "x": float(draw.normal()),
                    "y": float(draw.normal()),
                }
                for index in range(60)
            ],
        },
    }
