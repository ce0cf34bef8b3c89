"""What is measured after a run: its folder is opened, its data are rebuilt, and what was asked for goes to ``evaluation.json``.

from fedstill.evaluation import Asked, FreshNetworks, evaluate_run

found = evaluate_run("runs/first", Asked(fresh=FreshNetworks(models=("resnet18",)), mmd=True))
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedstill.algorithms.union import join_sets
from fedstill.data.shard import Shard
from fedstill.errors import InputError, suggestion
from fedstill.evaluate.clients import compare, place
from fedstill.evaluate.distilled import compare_distilled, place_distilled
from fedstill.evaluate.features import Space, model_space, pixel_space, random_space
from fedstill.evaluate.fresh import PLACE, rates_of, read_sets, recipe_json, recipe_of, results_json, train_fresh
from fedstill.evaluate.networks import named, read_choice
from fedstill.experiment import Experiment, Parts
from fedstill.files import round_stem, write_json
from fedstill.folder import EVALUATION, EXPERIMENT
from fedstill.kept import VirtualSets, check_data, check_run, kept_round, read_measured, training_fields, virtual_sets
from fedstill.models.choice import Choice
from fedstill.rounds import Desk, serial
from fedstill.runtime import Processes, pick_device, prepared

__all__ = ["VERSION", "Asked", "FreshNetworks", "evaluate_run"]

VERSION = 1
"""Of ``evaluation.json``."""

SPACES = ("random", "pixels", "model")


@dataclass(frozen=True, kw_only=True)
class FreshNetworks:
    """Fresh networks to train on a saved synthetic set.

    Attributes:
        models: as :func:`fedstill.evaluate.networks.read_choice` reads them; none: those that the run trains.
        seeds: how many of each.
        round: whose set; None: the newest that is kept.
        epochs, lr: instead of the run's own.
    """

    models: tuple[str, ...] = ()
    seeds: int = 3
    round: int | None = None
    epochs: int | None = None
    lr: float | None = None


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is to be measured.

    Attributes:
        fresh: networks on a synthetic set; None: not asked for.
        mmd: how unlike clients' images are; where clients distilled their own, before and after that.
        tsne: a map of clients' images; where clients distilled their own, one of those too.
        features: of ``mmd`` and ``tsne``: ``random``, ``pixels``, ``model`` (the run's own), or a model's file.
        images: of each client, for ``mmd`` and ``tsne``; None: as many as are useful.
        allow_import: whether that file may name a user's own factory, whose code is then run.
    """

    fresh: FreshNetworks | None = None
    mmd: bool = False
    tsne: bool = False
    features: str = "random"
    images: int | None = None
    allow_import: bool = False


def evaluate_run(
    run: str | Path,
    asked: Asked,
    *,
    workers: int | None = None,
    device: str = "auto",
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, Any]:
    """Measure, and write the run's ``evaluation.json``: what was measured before and is not asked for now stays in it.

    The run may be at work meanwhile: nothing of it is changed.

    Args:
        run: its folder.
        asked: what to measure.
        workers: processes that train fresh networks; None: as many as the run has.
        device: where to compute.
        progress: ``progress(phase, done, total)``.

    Returns:
        What was measured now, as the file holds it: ``fresh``, ``mmd``, ``tsne``.

    Raises:
        InputError: nothing was asked for, the folder holds no run or not what is needed, the data are no longer what they
            were, a network or a feature space is unknown; one sentence.
        RunError: a fresh network's training diverged, or the disk refuses the file.
    """
    run = Path(run)
    if asked.fresh is None and not asked.mmd and not asked.tsne:
        raise InputError("nothing is asked for: give --fresh, --mmd or --tsne, or several of them")
    check_run(run)
    read_measured(run / EVALUATION, VERSION)  # what could not be merged with is refused before hours of work
    experiment = Experiment.read(run / EXPERIMENT)
    number = None if asked.fresh is None else kept_round(run, experiment, asked.fresh.round)
    with prepared(experiment.threads):
        device = pick_device(device)
        workers = experiment.engine.workers if workers is None else workers
        desk = Desk(
            PLACE,
            device=device,
            map=Processes(workers, experiment.threads) if workers > 1 else serial,
            progress=progress or (lambda phase, done, total: None),
        )
        parts = experiment.build()
        check_data(run, parts)
        found: dict[str, Any] = {}
        if asked.mmd or asked.tsne:
            space = _space(run, parts, asked, device)
            train, held = parts.data.train, parts.partition.clients
            virtual = virtual_sets(run, experiment, parts)
            at = desk.at("images")
            if asked.mmd:
                found["mmd"] = compare(train, held, space, images=asked.images, desk=at)
                if virtual is not None:
                    found["mmd"]["virtual"] = _measured(
                        virtual, lambda own: compare_distilled(train, held, own, space, images=asked.images, desk=at)
                    )
            if asked.tsne:
                found["tsne"] = place(train, held, space, images=asked.images, desk=at)
                if virtual is not None:
                    found["tsne"]["virtual"] = _measured(
                        virtual, lambda own: place_distilled(own, space, images=asked.images, desk=at)
                    )
        if asked.fresh is not None and number is not None:
            found["fresh"] = _fresh(run, experiment, parts, asked.fresh, number, desk)
    # read again: another evaluation may have ended meanwhile
    write_json(run / EVALUATION, {**read_measured(run / EVALUATION, VERSION), "version": VERSION, **found})
    return found


def _measured(virtual: VirtualSets, measure: Callable[[Mapping[str, Shard]], dict[str, Any]]) -> dict[str, Any]:
    """What ``measure`` finds, or why there is nothing: real images are compared all the same."""
    if virtual.missing:
        return {"missing": virtual.missing}
    try:
        found = measure(virtual.own)
    except InputError as error:
        return {"missing": str(error)}
    return {"round": virtual.round, "initial": virtual.initial, **found}


# --- fresh networks --------------------------------------------------------------------------------------------------


def _fresh(
    run: Path, experiment: Experiment, parts: Parts, asked: FreshNetworks, number: int, desk: Desk
) -> dict[str, Any]:
    fields = training_fields(run, experiment)
    own: tuple[Choice, ...] = (experiment.model, *fields.get("global_models", ()))
    networks = named([read_choice(text) for text in asked.models] or own, parts.world)
    file = f"synthetic/{round_stem(number)}.safetensors"
    sets = read_sets(run / file, parts.world)
    lesson = join_sets(sets, parts.world)
    # now, as a run at work may drop the file while networks train
    digest = hashlib.sha256((run / file).read_bytes()).hexdigest()
    recipe = recipe_of(fields, epochs=asked.epochs, lr=asked.lr, rates=rates_of(sets))
    if len(parts.data.test) == 0:
        raise InputError(f"{run}: there are no common test images to score fresh networks on")
    results = train_fresh(lesson, parts.data.test, networks, recipe, seeds=asked.seeds, desk=desk.at("fresh"))
    return {
        "round": number,
        "file": file,
        "sha256": digest,
        "images": len(lesson),
        "recipe": recipe_json(recipe),
        "results": results_json(results),
    }


# --- feature spaces --------------------------------------------------------------------------------------------------


def _space(run: Path, parts: Parts, asked: Asked, device: str) -> Space:
    """The feature space that ``asked.features`` names."""
    like = parts.data.train
    match asked.features:
        case "random":
            return random_space(channels=like.channels, size=like.size, device=device)
        case "pixels":
            return pixel_space()
        case "model":
            # the first is what clients train; the run's experiment was trusted with its own code already
            name = next(iter(parts.algorithm.models(parts.start)), None)
            path = run / "models" / f"{name}.safetensors"
            if name is None or not path.is_file():
                raise InputError(f"--features model: {run} holds no model: they are saved when a run ends")
            return model_space(path, like, name=f"model '{name}'", device=device, allow_import=True)
    path = Path(asked.features)
    if not path.is_file():
        hint = suggestion(asked.features, SPACES)
        raise InputError(
            f"--features {asked.features}: there is no such file, and no feature space of that name; {hint}"
        )
    return model_space(path, like, name=path.name, device=device, allow_import=asked.allow_import)
