"""A distilled file tried again, here: fresh networks learn from its images alone and are scored on test images of the user's own.

from fedstill.retrial import Trial, evaluate_file

found = evaluate_file("first.safetensors", Trial(models=("resnet18",), test="data/test.parquet"))
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from fedstill.data.shard import Shard
from fedstill.data.sources import load
from fedstill.data.testing import fingerprint, formed, match_classes, read_labelled
from fedstill.distilled import Distilled, Score, read
from fedstill.errors import InputError
from fedstill.evaluate.fresh import PLACE, FreshScore, recipe_json, results_json, train_fresh
from fedstill.evaluate.networks import named, read_choice
from fedstill.experiment import Experiment
from fedstill.models import MODELS
from fedstill.models.architecture import Architecture
from fedstill.rounds import Desk, World, serial
from fedstill.runtime import Processes, pick_device, prepared
from fedstill.seeds import Seed

__all__ = ["Trial", "compared", "evaluate_file"]


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What is to be tried.

    Attributes:
        test: labelled test images, as :func:`fedstill.data.testing.read_labelled` finds them.
        experiment: an experiment file, whose ``[data]`` has the test images; one of the two is given.
        models: as :func:`fedstill.evaluate.networks.read_choice` reads them; none: those that the file's scores are of.
        seeds: how many of each.
        epochs, lr: instead of the file's own.
        allow_import: whether the file may name a user's own network, whose code is then run.
    """

    test: str | Path | None = None
    experiment: str | Path | None = None
    models: tuple[str, ...] = ()
    seeds: int = 3
    epochs: int | None = None
    lr: float | None = None
    allow_import: bool = False


def evaluate_file(
    path: str | Path,
    trial: Trial,
    *,
    workers: int = 1,
    device: str = "auto",
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, Any]:
    """Train and score fresh networks. Networks of one seed are the same in every file and run, and begin alike.

    Args:
        path: a distilled file.
        trial: what to try.
        workers: processes that train.
        device: where to compute.
        progress: ``progress(phase, done, total)``.

    Returns:
        Plain values: ``file`` (what it is), ``recipe``, ``test``, ``results`` (a table a network), ``networks`` (a table a kind,
        with mean, sample standard deviation, what the file says, and whether they agree).

    Raises:
        InputError: the file is none or is damaged; there are no test images, or theirs are other classes; a network is unknown.
        RunError: a training diverged.
    """
    path = Path(path)
    distilled = read(path)
    if (trial.test is None) == (trial.experiment is None):
        raise InputError(
            f"{path} holds no test images: give them with --test PATH or by --experiment FILE, one of the two"
        )
    networks = _networks(path, distilled, trial)
    recipe = replace(
        distilled.recipe,
        epochs=distilled.recipe.epochs if trial.epochs is None else trial.epochs,
        lr=distilled.recipe.lr if trial.lr is None else trial.lr,
    )
    with prepared(distilled.threads):
        test = _test(path, distilled, trial)
        desk = Desk(
            PLACE.at("fresh"),
            device=pick_device(device),
            map=Processes(workers, distilled.threads) if workers > 1 else serial,
            progress=progress or (lambda phase, done, total: None),
        )
        results = train_fresh(distilled.shard, test, networks, recipe, seeds=trial.seeds, desk=desk)
    digest = fingerprint(test)
    return {
        "file": _file_json(path, distilled),
        "recipe": recipe_json(recipe) | {"temperature": recipe.temperature},
        "test": {"images": len(test), "sha256": digest},
        "results": results_json(results),
        "networks": [
            _network_json(name, architecture, results, distilled, digest, same_recipe=recipe == distilled.recipe)
            for name, architecture in networks.items()
        ],
    }


# --- what is trained, and what it is tested on -----------------------------------------------------------------------


def _networks(path: Path, distilled: Distilled, trial: Trial) -> Mapping[str, Architecture]:
    shard = distilled.shard
    if trial.models:
        # of a world, the form of its images alone is asked for here
        like = Architecture("convnet", shard.channels, shard.size, len(shard.classes))
        world = World(like, shard.classes, shard.normalisation)
        return named([read_choice(text) for text in trial.models], world)
    if not distilled.scores:
        raise InputError(f"{path} has no scores that name networks: say which to train, as in --model resnet18")
    for score in distilled.scores:
        if score.architecture.name not in MODELS and not trial.allow_import:
            raise InputError(
                f"{path} names the network {score.architecture.name!a}, which is not fedstill's own, and training it would run "
                "that code: give --allow-import if you trust the file and have the code, or --model"
            )
    return {score.name: replace(score.architecture, key="--model") for score in distilled.scores}


def _test(path: Path, distilled: Distilled, trial: Trial) -> Shard:
    if trial.test is not None:
        where = Path(trial.test)
        found = read_labelled(where, distilled.shard, fit=distilled.fit, what=str(path))
    else:
        where = Path(trial.experiment or "")
        experiment = Experiment.read(where)
        settings = formed(experiment.data, distilled.shard, fit=distilled.fit, what=str(path))
        found = load(settings, Seed.root(experiment.seed).at("data")).test
        found = replace(found, normalisation=distilled.shard.normalisation)
    return match_classes(found, distilled.shard.classes, where=str(where))


# --- what is said of it ----------------------------------------------------------------------------------------------


def _file_json(path: Path, distilled: Distilled) -> dict[str, Any]:
    return {
        "name": path.name,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "images": len(distilled.shard),
        "makers": len(distilled.makers),
        **asdict(distilled.provenance),
    }


def _network_json(
    name: str,
    architecture: Architecture,
    results: Sequence[FreshScore],
    distilled: Distilled,
    test: str,
    *,
    same_recipe: bool,
) -> dict[str, Any]:
    accuracies = [each.scores.correct / each.scores.examples for each in results if each.model == name]
    recorded = next((each for each in distilled.scores if each.architecture == architecture), None)
    verdict, words = compared(accuracies, recorded, test=test, same_recipe=same_recipe)
    return {
        "model": name,
        "seeds": len(accuracies),
        "accuracy": mean(accuracies),
        "deviation": stdev(accuracies) if len(accuracies) > 1 else None,
        "recorded": None
        if recorded is None
        else {"accuracies": list(recorded.accuracies), "images": recorded.images, "test": recorded.test},
        "verdict": verdict,
        "words": words,
    }


def compared(
    accuracies: Sequence[float], recorded: Score | None, *, test: str, same_recipe: bool
) -> tuple[str | None, str]:
    """Whether networks came to what the file says: ``same``, ``agrees``, ``differs``, or None where that cannot be said; and a
    sentence.

    They agree where the means are no farther apart than the recorded sample standard deviation (of one recorded network: the
    measured one).
    """
    if recorded is None:
        return None, "the file has no score of this network"
    before = recorded.accuracies
    said = f"the recorded {_spread(before)}"
    if test != recorded.test:
        return None, f"{said} is of other test images ({recorded.images:,} of them), so it is not compared"
    if not same_recipe:
        return None, f"{said} is by the file's own recipe, so it is not compared"
    both = min(len(before), len(accuracies))
    if tuple(accuracies[:both]) == tuple(before[:both]):
        which = "equal" if len(before) == len(accuracies) else f"of seeds 0 to {both - 1}, equal"
        return "same", f"{which} to {said}, seed by seed"
    spread = next((stdev(each) for each in (before, accuracies) if len(each) > 1), None)
    off = abs(mean(accuracies) - mean(before))
    if spread is None:
        return None, f"{100 * off:.1f} points from {said}; one network has no deviation: give more --seeds"
    if off <= spread:
        return "agrees", f"agrees with {said}: {100 * off:.1f} points apart, within its deviation"
    return "differs", f"differs from {said} by {100 * off:.1f} points, more than its deviation of {100 * spread:.1f}"


def _spread(values: Sequence[float]) -> str:
    if len(values) < 2:
        return f"{100 * values[0]:.1f} %"
    return f"{100 * mean(values):.1f} ± {100 * stdev(values):.1f} % of {len(values)} networks"
