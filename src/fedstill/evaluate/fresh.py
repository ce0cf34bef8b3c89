"""What a distilled set is worth to networks that had no part in making it.

Networks begin anew, learn from the saved synthetic set alone and are scored on the clean test images, several times each.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import torch

from fedstill.bundle import Bundle, Group
from fedstill.data.augment import DSA, Augmentation
from fedstill.data.shard import Shard
from fedstill.errors import InputError, RunError
from fedstill.models.architecture import Architecture
from fedstill.rounds import Desk, Trained, World
from fedstill.scores import Scores, score
from fedstill.seeds import Seed
from fedstill.train import Recipe, fit

__all__ = [
    "PLACE",
    "FreshScore",
    "rates_of",
    "read_sets",
    "recipe_json",
    "recipe_of",
    "results_json",
    "train_fresh",
]

PLACE = Seed(("evaluate",))
"""Of what is measured after a run. It belongs to no experiment: runs of one partition compare the same images, and fresh networks
are the same ones, whatever they learn from."""

_RECIPE: Mapping[str, Any] = {
    "epochs": 1000,
    "lr": 0.01,
    "batch": 256,
    "momentum": 0.9,
    "decay": 1e-5,
    "augmentation": DSA,
}
"""FedDGM's for a global model, for algorithms that train none."""


class FreshScore(NamedTuple):
    """How one fresh network did on the test images."""

    model: str
    seed: int
    scores: Scores


@dataclass(frozen=True)
class _Job:
    """One network's training; crosses to a worker process."""

    model: str
    number: int
    architecture: Architecture
    seed: Seed
    device: str


def recipe_of(
    fields: Mapping[str, Any], *, epochs: int | None = None, lr: float | None = None, rates: Sequence[float] = ()
) -> Recipe:
    """How a run trains its global models on the union of synthetic sets.

    Args:
        fields: of the run's algorithm; ``global_epochs``, ``global_lr`` and so on count, and FedDGM's defaults stand for those
            that the algorithm has not.
        epochs, lr: instead of the run's own.
        rates: step sizes that were learnt with the images, whose mean is meant where ``global_lr`` is ``"learned"``.

    Raises:
        InputError: the step size was learnt, and neither it nor another is given.
    """
    usual: dict[str, Any] = {each.name: each.default for each in dataclasses.fields(Recipe)}
    usual.update(_RECIPE)
    values = {name: fields.get(f"global_{name}", default) for name, default in usual.items()}
    values["augmentation"] = Augmentation.parse(values["augmentation"], key="algorithm.global_augmentation")
    values["temperature"] = fields.get("temperature", values["temperature"])
    if epochs is not None:
        values["epochs"] = epochs
    if lr is not None or values["lr"] != "learned":
        return Recipe(**values if lr is None else values | {"lr": lr})
    if not rates:
        raise InputError("the run learnt its step size, and keeps none with its synthetic sets: give --lr")
    return Recipe(**values | {"lr": fmean(rates)})


def recipe_json(recipe: Recipe) -> dict[str, Any]:
    """Plain values: what every recipe has, and of the rest what is not as usual."""
    plain = {name: getattr(recipe, name) for name in _RECIPE}
    shown = {*_RECIPE, "temperature"}  # soft labels alone have use for the latter
    rest = {each.name: each.default for each in dataclasses.fields(Recipe) if each.name not in shown}
    return (
        plain
        | {"augmentation": recipe.augmentation.text}
        | {name: value for name, usual in rest.items() if (value := getattr(recipe, name)) != usual}
    )


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def results_json(results: Sequence[FreshScore]) -> list[dict[str, Any]]:
    """Plain values, a table a network."""
    return [
        {
            "model": each.model,
            "seed": each.seed,
            "accuracy": each.scores.accuracy,
            "balanced_accuracy": each.scores.balanced_accuracy,
            "calibration_error": _finite(each.scores.calibration_error),
        }
        for each in results
    ]


def read_sets(path: Path, world: World) -> dict[str, Group]:
    """Each client's synthetic images of one round, as a run keeps them in ``synthetic/round-0004.safetensors``, by its name.

    Beside ``images`` and ``labels`` a set may have a ``rate``, the student's step size that was learnt with them.

    Raises:
        InputError: the file cannot be read, is damaged, or holds images of another shape than the run's.
    """
    sets = dict(sorted(Bundle.open(path).members("synthetic").items()))
    wanted = (world.architecture.channels, *world.architecture.size)
    for client, group in sets.items():
        if (wrong := _wrong(group, wanted, len(world.classes))) is not None:
            raise InputError(f"{path} is damaged: the set of '{client}' {wrong}")
    if not sets:
        raise InputError(f"{path} is damaged: it holds no set")
    for what in ("images", "labels"):
        if len({(group[what].dtype, group[what].dim()) for group in sets.values()}) != 1:
            raise InputError(f"{path} is damaged: its sets have {what} of several kinds")
    return sets


def rates_of(sets: Mapping[str, Group]) -> list[float]:
    """The students' step sizes that were learnt, of the sets that have one."""
    return [group["rate"].item() for group in sets.values() if "rate" in group]


def _wrong(group: Group, wanted: tuple[int, ...], classes: int) -> str | None:
    """Why a client's set is none; None where it is one."""
    if group.keys() - {"rate"} != {"images", "labels"}:
        return f"holds {', '.join(sorted(group)) or 'nothing'} where images and labels are due"
    images, labels = group["images"], group["labels"]
    if tuple(images.shape[1:]) != wanted or not (images.is_floating_point() or images.dtype == torch.uint8):
        return f"holds {images.dtype} {list(images.shape)} where floats or uint8 [n, {', '.join(map(str, wanted))}] are due"
    hard = labels.dim() == 1 and labels.dtype == torch.int64
    soft = labels.dim() == 2 and labels.shape[1] == classes and labels.is_floating_point()
    if len(labels) != len(images) or not (hard or soft):
        return f"has labels {labels.dtype} {list(labels.shape)} for {len(images)} images of {classes} classes"
    if hard and bool(((labels < 0) | (labels >= classes)).any()):
        return f"has labels outside 0 to {classes - 1}"
    rate = group.get("rate")
    if rate is not None and (rate.numel() != 1 or not (math.isfinite(rate.item()) and rate.item() > 0)):
        return "has a student's step size that is not one number above 0"
    return None


def train_fresh(
    lesson: Shard,
    test: Shard,
    networks: Mapping[str, Architecture],
    recipe: Recipe,
    *,
    seeds: int,
    desk: Desk,
) -> list[FreshScore]:
    """Train and score ``seeds`` networks of each architecture; side by side where ``desk.map`` can.

    Nothing is chosen by the test images: every network is scored once, after its last epoch.

    Args:
        lesson: what they learn from; hard or soft labels.
        test: clean images.
        networks: by the name that their scores bear.
        recipe: of all of them.
        seeds: how many of each; they are numbered from 0.
        desk: where; its seed decides the networks' first weights and the order of their lessons.

    Raises:
        InputError: a network cannot be built for these images.
        RunError: a training diverged.
    """
    for architecture in networks.values():
        architecture.check()
    jobs = [
        _Job(model, number, architecture, desk.seed.at(number), desk.device)
        for model, architecture in networks.items()
        for number in range(seeds)
    ]
    found: list[FreshScore] = []
    for done in desk.map(partial(_take, lesson, test, recipe), jobs):
        found.append(done)
        desk.progress("train fresh networks", len(found), len(jobs))
    return found


def _take(lesson: Shard, test: Shard, recipe: Recipe, job: _Job) -> FreshScore:
    # scored where it was trained: scores are small, networks are not
    network = job.architecture.build(job.seed.at("model"))
    try:
        fitted = fit(network, lesson, recipe, seed=job.seed.at("train"), device=job.device)
    except RunError as error:
        raise RunError(f"fresh network '{job.model}', seed {job.number}: {error}") from error
    trained = Trained(job.architecture, fitted.tensors).module()
    return FreshScore(job.model, job.number, score(trained, test, device=job.device))
