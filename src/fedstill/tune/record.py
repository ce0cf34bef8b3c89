"""``tune.json``: every trial, and what the whole has taken so far; ``best.toml``: the experiment with the best values."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from fedstill import search
from fedstill.errors import InputError
from fedstill.files import write_json, write_text
from fedstill.folder import check_place, remove
from fedstill.settings import differences
from fedstill.sweep.record import Spent
from fedstill.tune.judge import Tried
from fedstill.tune.plan import Search

__all__ = ["BEST", "TUNE", "behind", "best", "runs_of", "write"]

TUNE = "tune.json"
BEST = "best.toml"


def runs_of(wanted: Search, tried: Tried) -> list[str]:
    """Names of the folders of a trial's runs, one a seed."""
    return [tried.name if len(wanted.seeds) == 1 else f"{tried.name}-{seed}" for seed in wanted.seeds]


def behind(out: Path, wanted: Search) -> tuple[list[Tried], Spent]:
    """The trials that ``out`` holds, and what they took. One that failed and has no folder is to be tried again.

    Raises:
        InputError: it holds another search, or ``tune.json`` is damaged.
    """
    check_place(out)
    path = out / TUNE
    if not path.exists():
        return [], Spent(0.0, 0.0)
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        there = dict(table["search"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(path) from error
    if told := differences(there, wanted.identity()):
        raise InputError(f"{out} holds a search of other settings: {told} differ; give another --out")
    try:
        tried = [Tried.from_json(line, wanted.space) for line in table["trials"]]
        cpu = table["cpu_seconds"]
        spent = Spent(float(table["wall_seconds"]), None if cpu is None else float(cpu))
        if [each.number for each in tried] != list(range(len(tried))):
            raise ValueError("trials are missing")
    except (InputError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(path) from error
    return [_again(out, wanted, each) for each in tried], spent


def write(out: Path, wanted: Search, tried: Sequence[Tried], spent: Spent, *, jobs: int) -> None:
    """Write ``tune.json``, and ``best.toml`` where a trial is finished.

    Raises:
        RunError: the disk refuses it.
    """
    leader = best(wanted, tried)
    if leader is None:
        remove(out / BEST)
    else:
        write_text(out / BEST, _best_text(wanted, leader, tried))
    write_json(
        out / TUNE,
        {
            "search": wanted.identity(),
            "trials": [each.to_json(runs_of(wanted, each)) for each in tried],
            "best": leader.name if leader else None,
            "jobs": jobs,
            "wall_seconds": spent.wall,
            "cpu_seconds": spent.cpu,
        },
    )


def best(wanted: Search, tried: Sequence[Tried]) -> Tried | None:
    """The best of the finished trials, the earliest of equals; None where none is."""
    finished = [each for each in tried if each.state == "finished"]
    if not finished:
        return None
    trials = [each.trial(wanted.experiment.rounds) for each in finished]
    leader = search.best(trials)
    return next(each for each, trial in zip(finished, trials, strict=True) if trial is leader)


def _best_text(wanted: Search, leader: Tried, tried: Sequence[Tried]) -> str:
    experiment = replace(wanted.trial(leader.params, wanted.seeds[0]), name=wanted.experiment.name)
    over = sum(each.state != "begun" for each in tried)
    values = [f"#   {key} = {json.dumps(value)}" for key, value in leader.params.items()]
    head = [
        f"# {leader.name}, the best of {over}: {leader.value:.4f} is the mean of the clients' accuracies on validation images.",
        "# What was varied:",
        *values,
    ]
    return "\n".join(head) + "\n\n" + experiment.anchored().to_toml()


def _again(out: Path, wanted: Search, tried: Tried) -> Tried:
    if tried.state != "failed" or any((out / name).exists() for name in runs_of(wanted, tried)):
        return tried
    return Tried(tried.number, tried.batch, tried.params)


def _damaged(path: Path) -> InputError:
    return InputError(f"{path} is damaged: remove it and the trials beside it, or give another --out")
