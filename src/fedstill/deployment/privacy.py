"""Differential privacy that a site gives itself: what its training changed in the model is cut to a length, and noise is added,
before it leaves.

What is done, and what it guarantees, is :mod:`fedstill.updates`, with Δ = reply − sent over all tensors of the model, and
reply' = sent + Δ'. An experiment's ``[update]`` table does the same for studies (:mod:`fedstill.algorithms.updates`).

Flower's mods do the same to messages of one array record; here it is done before the policy and the ledger look at the answer,
with noise of the system's own randomness, never of the run's seed, which the server knows.

An answer counts whether it was asked for in a new round, again, or by another run, so a site counts them (:func:`spend`).
"""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from pydantic import ConfigDict, Field

from fedstill.bundle import Bundle
from fedstill.deployment.ledger import alone
from fedstill.errors import InputError
from fedstill.files import private_folder, write_json
from fedstill.updates import MOST_DELTA, beside, change_of, fits, hidden, moved

__all__ = ["SPENT", "PrivacySettings", "privatised", "spend", "unmoved"]

SPENT = "privacy.json"
"""In the site's folder: how many noised answers have left."""

MODEL, EXAMPLES = "model", "examples"


@dataclass(frozen=True, kw_only=True)
class PrivacySettings:
    """The ``[privacy]`` table of a site."""

    __pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)

    clip: Annotated[
        float | None,
        Field(
            gt=0,
            description="longest change of the model that leaves, as a norm; without it nothing is cut and no noise added",
        ),
    ] = None
    noise: Annotated[
        float, Field(ge=1e-3, le=1e6, description="standard deviation of the noise added to it, in units of clip")
    ] = 1.0
    answers: Annotated[
        int, Field(ge=1, description="noised answers that may leave in all, of all runs; after so many none does")
    ] = 100
    delta: Annotated[float, Field(ge=1e-12, le=MOST_DELTA, description="δ for which 'fedstill site check' gives ε")] = (
        1e-5
    )


def privatised(sent: Bundle, reply: Bundle, settings: PrivacySettings) -> Bundle:
    """``reply`` with its model cut and noised; of its numbers ``examples`` alone is left, and is not covered. A model that is not
    finite counts as the one that was sent.

    Raises:
        InputError: the reply holds what this does not cover, or is no change of what was sent.
    """
    assert settings.clip is not None
    if other := sorted(reply.groups.keys() - {MODEL}):
        raise InputError(f"privacy covers model weights alone, and the answer holds '{other[0]}'")
    before, after = sent.groups.get(MODEL, {}), reply.groups.get(MODEL, {})
    if not fits(after, before):
        raise InputError("privacy covers a model that was sent and comes back, and the answer is no such")
    for name in beside(after):
        raise InputError(
            f"privacy does not cover statistics of the images such as '{name}': use a network without BatchNorm"
        )
    # fresh for every answer, so that nobody who knows the run's seed can take it off again
    secret = np.random.default_rng(secrets.randbits(128))
    change = hidden(
        change_of(before, after),
        settings.clip,
        settings.noise,
        lambda _, shape: torch.from_numpy(secret.standard_normal(tuple(shape))),
    )
    model = moved(before, change)
    numbers = {EXAMPLES: reply.numbers[EXAMPLES]} if EXAMPLES in reply.numbers else {}
    return Bundle({MODEL: model}, numbers)


def unmoved(sent: Bundle, examples: int) -> Bundle:
    """The answer of a training that changed nothing, which one that diverged counts as."""
    return Bundle({MODEL: sent.groups.get(MODEL, {})}, {EXAMPLES: examples})


def spend(path: Path, most: int) -> None:
    """Count one more noised answer in the file ``path``, before it leaves; several processes may do so at once.

    Raises:
        InputError: ``most`` have left already, the file cannot be read, or its folder lets other users in.
        RunError: it cannot be written.
    """
    private_folder(path.parent)
    # a file of its own for the lock: this one is replaced, and who waited for the old one would read what is no longer there
    with alone(path.with_suffix(".lock")):
        _spend(path, most)


def _spend(path: Path, most: int) -> None:
    try:
        spent = int(json.loads(path.read_text(encoding="utf-8"))["answers"]) if path.exists() else 0
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} cannot be read ({error}): nothing leaves until it is put back") from error
    if spent >= most:
        raise InputError(f"{spent} noised answers have left, and privacy.answers = {most}: no other does")
    write_json(path, {"answers": spent + 1})
