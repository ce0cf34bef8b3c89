"""A run that takes a second: digits of 8 × 8 pixels, three clients, a ConvNet of some hundred parameters."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

from fedstill.experiment import Experiment

MEASURED_ANEW = ("seconds", "cpu_seconds", "peak_memory")

FEDAVG = {"name": "fedavg", "epochs": 2, "lr": 0.1, "batch": 16}
FEDDGM = {
    "name": "feddgm",
    "epochs": 2,
    "lr": 0.1,
    "batch": 16,
    "ipc": 1,
    "distill_steps": 2,
    "student_steps": 2,
    "student_lr": 0.1,
    "lr_features": 10.0,
    "global_epochs": 2,
    "loss_limit": 10.0,
    "warm_start": True,
    "conditioning": False,
}
ONESHOT = {
    "name": "oneshot",
    "experts": 2,
    "expert_epochs": 3,
    "expert_lr": 0.1,
    "expert_batch": 8,
    "span": 1,
    "latest": 2,
    "student_steps": 2,
    "student_lr": 0.1,
    "ipc": 2,
    "distill_steps": 6,
    "check_every": 2,
    "judges": 2,
    "judge_epochs": 2,
    "keep_every": 2,
    "lr_images": 1.0,
    "retries": 0,
    "global_epochs": 3,
    "global_lr": 0.1,
}


def table(algorithm: dict[str, Any] = FEDAVG, **settings: Any) -> dict[str, Any]:
    """An experiment's table; ``settings`` are merged in, a level deep."""
    result: dict[str, Any] = {
        "name": "tiny",
        "rounds": 3,
        "data": {"size": 8, "limit": 120, "test_limit": 50},
        "partition": {"kind": "kclass", "clients": 3, "classes": 4},
        "model": {"depth": 2, "width": 4},
        "algorithm": dict(algorithm),
    }
    for key, value in settings.items():
        result[key] = {**result.get(key, {}), **value} if isinstance(value, dict) else value
    return result


def experiment(algorithm: dict[str, Any] = FEDAVG, **settings: Any) -> Experiment:
    """The same, ready to run."""
    return Experiment.from_table(table(algorithm, **settings))


def rows(out: Path) -> list[dict[str, Any]]:
    """``metrics.jsonl`` without times and memory, which alone may differ between two runs."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in MEASURED_ANEW} for line in lines]


def result(out: Path) -> dict[str, Any]:
    """Everything of a finished run that must be the same to the bit."""
    kept = ("models", "checkpoints", "synthetic")
    files = [path for folder in kept for path in sorted((out / folder).rglob("*")) if path.is_file()]
    return {"rows": rows(out)} | {str(path.relative_to(out)): path.read_bytes() for path in files}


def interrupt(process: subprocess.Popen[str]) -> str:
    """Ctrl-C as a terminal sends it, to all of the group; gives what is said on standard error.

    Pressed again after a minute: Python drops an interrupt that arrives while it is in a destructor or a callback.
    """
    for _ in range(3):
        os.killpg(process.pid, signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.communicate(timeout=60)[1]
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    raise AssertionError("it does not stop")
