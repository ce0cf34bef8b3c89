"""A run's distilled images as one file that can be used elsewhere.

from fedstill.packing import Packing, pack_run

pack_run("runs/first", "first.safetensors", Packing(quantise=True, score=True))
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from fedstill import __version__
from fedstill.algorithms.union import join_sets
from fedstill.bundle import Group
from fedstill.data.shard import Shard, quantised
from fedstill.data.testing import fingerprint
from fedstill.distilled import Distilled, Maker, Provenance, Quantised, Score, is_distilled, write
from fedstill.errors import InputError
from fedstill.evaluate.fresh import PLACE, rates_of, read_sets, recipe_of, train_fresh
from fedstill.evaluate.networks import named, read_choice
from fedstill.experiment import Experiment, Parts
from fedstill.files import round_stem
from fedstill.folder import EXPERIMENT
from fedstill.kept import DATA, DEALT, check_data, check_run, kept_round, training_fields
from fedstill.models.architecture import Architecture
from fedstill.models.choice import Choice
from fedstill.rounds import Desk, serial
from fedstill.runtime import Processes, pick_device, prepared

__all__ = ["Packing", "default_name", "pack_run"]


@dataclass(frozen=True, kw_only=True)
class Packing:
    """How a run's images are to be packed.

    Attributes:
        round: whose; None: the newest that is kept.
        epochs, lr: of the recipe; None: the run's own.
        anonymous: number the clients instead of naming them.
        quantise: round pixels to the 256 levels of a byte.
        score: train fresh networks on the images, and keep in the file what they come to.
        cost: also on the images as they were before they were quantised.
        models: which networks, as :func:`fedstill.evaluate.networks.read_choice` reads them; none: those that the run trains.
        seeds: how many of each.
    """

    round: int | None = None
    epochs: int | None = None
    lr: float | None = None
    anonymous: bool = False
    quantise: bool = False
    score: bool = False
    cost: bool = False
    models: tuple[str, ...] = ()
    seeds: int = 3


def default_name(run: str | Path, number: int | None) -> str:
    """What the file is called where nobody says: the experiment's name and the round.

    Raises:
        InputError: the folder holds no run, or not that round's set.
    """
    run = Path(run)
    check_run(run)
    experiment = Experiment.read(run / EXPERIMENT)
    return f"{experiment.name}-{round_stem(kept_round(run, experiment, number))}.safetensors"


def pack_run(
    run: str | Path,
    out: str | Path,
    packing: Packing,
    *,
    workers: int | None = None,
    device: str = "auto",
    progress: Callable[[str, int, int], None] | None = None,
) -> Distilled:
    """Write the file ``out``, whole or not at all; a distilled file that lies there is replaced. The run is not changed.

    Fresh networks are those of ``fedstill evaluate RUN --fresh``: same seeds, same numbers.

    Args:
        run: its folder.
        out: by custom ``NAME.safetensors``.
        packing: what goes into the file.
        workers: processes that train fresh networks; None: as many as the run has.
        device: where to compute.
        progress: ``progress(phase, done, total)``.

    Returns:
        What the file holds.

    Raises:
        InputError: the folder holds no run or no synthetic set, the data are no longer what they were, a network is unknown, or
            something that is no distilled file lies at ``out``.
        RunError: a fresh network's training diverged, or the disk refuses the file.
    """
    run, out = Path(run), Path(out)
    if packing.cost and not packing.quantise:
        raise InputError("cost is what quantisation costs: ask for quantise too")
    if packing.models and not (packing.score or packing.cost):
        raise InputError("networks are named, but none is to be trained: ask for score too")
    check_run(run)
    if out.exists() and not is_distilled(out):
        raise InputError(f"{out} is no distilled file, so it is not replaced: give another name")
    experiment = Experiment.read(run / EXPERIMENT)
    number = kept_round(run, experiment, packing.round)
    with prepared(experiment.threads):
        parts = experiment.build()
        check_data(run, parts)
        networks = _networks(experiment, parts, packing.models)
        packed = _packed(run, experiment, parts, packing, number)
        if packing.score or packing.cost:
            workers = experiment.engine.workers if workers is None else workers
            desk = Desk(
                PLACE,
                device=pick_device(device),
                map=Processes(workers, experiment.threads) if workers > 1 else serial,
                progress=progress or (lambda phase, done, total: None),
            )
            packed = _scored(packed, parts.data.test, networks, packing, desk.at("fresh"))
        write(out, packed.distilled)
    return packed.distilled


@dataclass(frozen=True)
class _Packed:
    """What goes into the file, and the images as they were before they were quantised."""

    distilled: Distilled
    floats: Shard


def _networks(experiment: Experiment, parts: Parts, models: Sequence[str]) -> Mapping[str, Architecture]:
    own: tuple[Choice, ...] = (experiment.model, *experiment.algorithm.fields().get("global_models", ()))
    return named([read_choice(text) for text in models] or own, parts.world)


def _packed(run: Path, experiment: Experiment, parts: Parts, packing: Packing, number: int) -> _Packed:
    sets = read_sets(run / "synthetic" / f"{round_stem(number)}.safetensors", parts.world)
    floats = _plain(join_sets(sets, parts.world))
    if packing.cost and not floats.images.is_floating_point():
        raise InputError(
            f"--cost: {run} keeps bytes already, and no floats that they could be compared with; leave it out"
        )
    lesson, clipped = floats, None
    if packing.quantise and floats.images.is_floating_point():
        images, count = quantised(floats.images)
        lesson, clipped = replace(floats, images=images), Quantised(count, images.numel())
    makers = tuple(_maker(name, group) for name, group in sets.items())
    if packing.anonymous:
        makers = tuple(replace(maker, name=str(place)) for place, maker in enumerate(makers, 1))
    recipe = recipe_of(training_fields(run, experiment), epochs=packing.epochs, lr=packing.lr, rates=rates_of(sets))
    return _Packed(
        Distilled(
            shard=lesson,
            makers=makers,
            rows=torch.repeat_interleave(torch.tensor([maker.images for maker in makers])),
            fit=experiment.data.fit,
            recipe=recipe,
            threads=experiment.threads,
            provenance=_provenance(experiment, parts, number),
            quantised=clipped,
        ),
        floats,
    )


def _plain(shard: Shard) -> Shard:
    """Images and soft labels in the one floating type that files have."""
    images, labels = (each.float() if each.is_floating_point() else each for each in (shard.images, shard.labels))
    return replace(shard, images=images, labels=labels)


def _maker(name: str, group: Group) -> Maker:
    return Maker(name, len(group["images"]), group["rate"].item() if "rate" in group else None)


def _provenance(experiment: Experiment, parts: Parts, number: int) -> Provenance:
    identity = json.dumps(dict(parts.identity), sort_keys=True, separators=(",", ":"))
    return Provenance(
        fedstill=__version__,
        torch=str(torch.__version__),
        method=experiment.algorithm.name,
        round=number,
        seed=experiment.seed,
        settings=hashlib.sha256(identity.encode()).hexdigest(),
        data=str(parts.identity[DATA]),
        partition=str(parts.identity[DEALT]),
    )


def _scored(
    packed: _Packed, test: Shard, networks: Mapping[str, Architecture], packing: Packing, desk: Desk
) -> _Packed:
    """With what fresh networks come to."""
    if len(test) == 0:
        raise InputError("the run has no common test images, so no network can be scored: pack without scores")
    distilled = packed.distilled

    def accuracies(lesson: Shard) -> dict[str, tuple[float, ...]]:
        found = train_fresh(lesson, test, networks, distilled.recipe, seeds=packing.seeds, desk=desk)
        return {
            name: tuple(each.scores.correct / each.scores.examples for each in found if each.model == name)
            for name in networks
        }

    now = accuracies(distilled.shard)
    before = accuracies(packed.floats) if packing.cost and distilled.quantised is not None else {}
    scores = tuple(
        Score(name, architecture, now[name], fingerprint(test), len(test), before.get(name, ()))
        for name, architecture in networks.items()
    )
    return replace(packed, distilled=replace(distilled, scores=scores))
