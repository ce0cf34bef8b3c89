"""Run folders in the format that ``fedstill run`` writes, made up: for tests of what reads them."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

CLASSES = tuple("0123456789")


def metrics_row(
    number: int, accuracy: Mapping[str, float], *, clients: Sequence[str], draw: random.Random, matching: bool
) -> dict[str, Any]:
    """One line of ``metrics.jsonl``."""
    return {
        "round": number,
        "accuracy": dict(accuracy),
        "loss": dict.fromkeys(accuracy, 0.3 / number),
        "validation": {"correct": 90 + number, "examples": 140, "mean": 0.6 + 0.02 * number},
        "bytes_up": 1_204_000 if accuracy else 80,
        "bytes_down": 1_204_000,
        "bytes_scoring": 160,
        "seconds": {"clients": 2.1, "server": 5.0, "distil": 3.5, "train": 1.25, "evaluate": 0.2},
        "peak_memory": 412_000_000 + number,
        "cohort": list(clients),
        "aggregated": True,
        "union": 1000,
        "clients": [
            {
                "client": client,
                "examples": 128,
                "loss": 0.02,
                "validation": None if index == 3 else 0.7,
                **({"matching": _matching(draw)} if matching else {}),
            }
            for index, client in enumerate(clients)
        ],
        "failures": [],
    }


def _matching(draw: random.Random) -> dict[str, Any]:
    return {
        "start": 0.9 + 0.1 * draw.random(),
        "end": 0.2 + 0.2 * draw.random(),
        "best": 0.19,
        "pixel_min": -0.21,
        "pixel_max": 1.3,
        "rate": 0.011,
        "conditioning": 0.97,
        "retries": 0,
        "sick": None,
    }


def write_run(
    folder: Path,
    *,
    method: str = "feddgm",
    seed: int = 0,
    curves: Mapping[str, Sequence[float]] | None = None,
    clients: int = 10,
    images: bool = False,
    matching: bool = False,
    settings: str = "",
) -> Path:
    """A finished run of ``method``; ``curves`` is accuracy by round, by model."""
    curves = curves if curves is not None else {"surrogate": [0.5, 0.7, 0.8]}
    draw = random.Random(f"{folder.name}/{seed}")
    names = [f"c{number:02}" for number in range(clients)]
    folder.mkdir(parents=True)
    (folder / "experiment.toml").write_text(
        f'name = "{folder.name}"\nseed = {seed}\nrounds = 3\n{settings}\n'
        '[data]\nsource = "digits"\nsize = 16\n[partition]\nkind = "kclass"\nclients = 10\nclasses = 2\nalpha = 0.5\n'
        f'[model]\nname = "convnet"\ndepth = 3\nwidth = 32\n[algorithm]\nname = "{method}"\n'
        '[provenance]\nfedstill = "0.1.0"\npython = "3.11.7"\ntorch = "2.13.0"\nsystem = "Linux x86_64"\n'
        'cpu = "Some CPU, 2 cores"\n'
    )
    rounds = max(map(len, curves.values()), default=0)
    rows = [
        metrics_row(
            number + 1,
            {name: curve[number] for name, curve in curves.items()},
            clients=names,
            draw=draw,
            matching=matching,
        )
        for number in range(rounds)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    histogram = {
        name: [60 + 7 * i if label in (i % 10, (i + 1) % 10) else 0 for label in range(10)]
        for i, name in enumerate(names)
    }
    partition = {
        "kind": "kclass",
        "options": {"classes": 2},
        "clients": {name: [] for name in names},
        "histogram": histogram,
        "hash": f"{seed:02}5e884898da28047151d0e56f8dc62927",
        "figures": {},
        "classes": list(CLASSES),
    }
    (folder / "partition.json").write_text(json.dumps(partition))
    (folder / "summary.json").write_text(
        json.dumps({"finished": True, "rounds": rounds, "wall_seconds": 83.4, "selected_round": rounds})
    )
    if images:
        for number in (1, rounds):
            write_synthetic(folder / "synthetic" / f"round-{number:04}.safetensors", names, seed=number)
    return folder


def write_synthetic(
    path: Path, clients: Sequence[str], *, seed: int = 0, ipc: int = 10, size: int = 16, channels: int = 1
) -> None:
    """Noise for every client, ``ipc`` images for each of ten classes, as ``Bundle.save`` writes it."""
    draw = np.random.default_rng(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for client in clients:
        noise = draw.random((10 * ipc, channels, size, size), dtype=np.float32)
        tensors[f"synthetic:{client}/images"] = 1.4 * noise - 0.2
        tensors[f"synthetic:{client}/labels"] = np.repeat(np.arange(10), ipc)
    save_file(tensors, path)


def edit(path: Path, **changes: Any) -> None:
    """Change the first line of a metrics file."""
    first, *rest = path.read_text().splitlines(keepends=True)
    path.write_text(json.dumps(json.loads(first) | changes) + "\n" + "".join(rest))


def change(run: Path, old: str, new: str) -> Path:
    """Alter the experiment of a run's folder."""
    toml = run / "experiment.toml"
    text = toml.read_text()
    assert old in text
    toml.write_text(text.replace(old, new))
    return run


def write_four_methods(place: Path) -> list[Path]:
    """Three seeds each of FedDGM, which leads, FedAvg and both controls."""
    runs = []
    for seed, shift in enumerate((-0.01, 0.0, 0.01)):
        curves = {
            "feddgm": {"surrogate": [0.5, 0.7, 0.84], "resnet18": [0.4, 0.6, 0.7]},
            "fedavg": {"global": [0.3, 0.5, 0.64]},
            "prioronly": {"surrogate": [0.5, 0.5, 0.5], "resnet18": [0.69, 0.69, 0.69]},
            "centralised": {"global": [0.9, 0.95, 0.97]},
        }
        for method, its in curves.items():
            moved = {name: [value + shift for value in curve] for name, curve in its.items()}
            folder = place / f"{method}-{seed}"
            runs.append(write_run(folder, method=method, seed=seed, curves=moved, matching=method == "feddgm"))
    return runs
