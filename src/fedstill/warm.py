"""A warm start: the network that a federation begins with comes from a model file instead of at random.

Such as the one that a OneShot run leaves: clients send distilled images once, a network learns from their union, and FedAvg goes
on from there (``start = "runs/oneshot/models/global.safetensors"``).
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from fedstill.bundle import Bundle
from fedstill.data.shard import Normalisation
from fedstill.errors import InputError
from fedstill.models import MODELS
from fedstill.models.architecture import Architecture
from fedstill.models.files import load_model
from fedstill.rounds import World
from fedstill.settings import differences

__all__ = ["file_hash", "started_from"]

MODEL = "model"
"""The group of a method's state that clients receive and train."""


def started_from(state: Bundle, path: str, world: World, *, from_scratch: bool = False) -> Bundle:
    """``state`` with the weights of the file in place of those of the network that clients train.

    What it begins with beside them, such as larger networks of the server, stays. A method may say of itself that it trains
    from scratch (``from_scratch``), as OneShot does.

    Raises:
        InputError: the file is missing or no model file; its network, classes or normalisation are not the experiment's; the
            method has no network that clients are sent.
    """
    place = f"start = '{path}'"
    if from_scratch or MODEL not in state.groups:
        raise InputError(f"{place}: this method sends clients no network that could begin so; leave start out")
    if not Path(path).is_file():
        raise InputError(f"{place}: there is no such file; give a model file, as a run leaves in its folder models/")
    wanted = world.architecture
    # a factory of the user's own is code that this experiment runs anyway
    found = load_model(path, allow_import=wanted.name not in MODELS)
    if told := differences(_flat(found.architecture), _flat(wanted)):
        raise InputError(
            f"{place}: its network is not the one that clients train: {told} differ; change [model], or the file"
        )
    if found.classes != world.classes:
        raise InputError(
            f"{place}: it tells apart other classes than the data have, or in another order: {_some(found.classes)} "
            f"there, {_some(world.classes)} here"
        )
    if not found.normalisation.agrees(world.normalisation):
        raise InputError(
            f"{place}: it learnt from images that were normalised otherwise: {_asked(found.normalisation)}"
        )
    return state.put(**{MODEL: found.network.state_dict()})


def file_hash(path: str) -> str:
    """SHA-256 of the file's bytes.

    Raises:
        InputError: it cannot be read.
    """
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError as error:
        raise InputError(f"start = '{path}': {error.strerror or error}") from error


def _asked(normalisation: Normalisation) -> str:
    """What the user can do to have it."""
    whitening = normalisation.whitening
    if whitening is None:
        return f"set data.mean = {list(normalisation.mean)} and data.std = {list(normalisation.std)}"
    return f"they were whitened: set data.zca = true and data.zca_epsilon = {whitening.epsilon} on the same images"


def _flat(architecture: Architecture) -> dict[str, Any]:
    plain = architecture.resolved().to_json()
    options = plain.pop("options")
    return {f"model.{key}": value for key, value in {**plain, **options}.items()}


def _some(classes: tuple[str, ...]) -> str:
    return ", ".join(classes[:5]) + (f" and {len(classes) - 5} more" if len(classes) > 5 else "")
