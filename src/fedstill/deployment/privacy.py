"""Differential privacy that a site gives itself: what its training changed in the model is cut to a length, and noise is added,
before it leaves.

With Δ = reply − sent over all tensors of the model (client-level differential privacy as of McMahan et al., ICLR 2018, without
their trusted server):

    Δ' = Δ · min(1, S / ‖Δ‖) + N(0, (z S)² I),      reply' = sent + Δ'

S is ``clip`` and z is ``noise``. Whatever the site's images are, two such Δ lie at most 2 S apart, so T answers are μ-Gaussian
differentially private with μ = 2 √T / z, and ε and δ follow exactly (Dong, Roth, Su, JRSS B 2022, Corollary 2.13):

    δ = Φ(−ε/μ + μ/2) − e^ε Φ(−ε/μ − μ/2)

Flower's mods do the same to messages of one array record; here it is done before the policy and the ledger look at the answer,
with noise of the system's own randomness, never of the run's seed, which the server knows.

An answer counts whether it was asked for in a new round, again, or by another run, so a site counts them (:func:`spend`).
Noise of floating-point numbers is not quite a Gaussian's (Mironov, CCS 2012), of which the formulas know nothing.
"""

from __future__ import annotations

import json
import math
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from pydantic import ConfigDict, Field
from scipy.optimize import brentq
from scipy.special import log_ndtr

from fedstill.bundle import Bundle
from fedstill.errors import InputError
from fedstill.files import write_json

__all__ = ["SPENT", "PrivacySettings", "epsilon", "privatised", "spend"]

SPENT = "privacy.json"
"""In the site's folder: how many noised answers have left."""

MODEL, EXAMPLES = "model", "examples"
_STATISTICS = ("running_mean", "running_var")


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
    delta: Annotated[float, Field(ge=1e-12, lt=1, description="δ for which 'fedstill site check' gives ε")] = 1e-5


def privatised(sent: Bundle, reply: Bundle, settings: PrivacySettings) -> Bundle:
    """``reply`` with its model cut and noised; of its numbers ``examples`` alone is left, and is not covered.

    Raises:
        InputError: the reply holds what this does not cover, or is no change of what was sent.
    """
    assert settings.clip is not None
    if other := sorted(reply.groups.keys() - {MODEL}):
        raise InputError(f"privacy covers model weights alone, and the answer holds '{other[0]}'")
    before, after = sent.groups.get(MODEL, {}), reply.groups.get(MODEL, {})
    if not after or {name: each.shape for name, each in before.items()} != {
        name: each.shape for name, each in after.items()
    }:
        raise InputError("privacy covers a model that was sent and comes back, and the answer is no such")
    for name, tensor in after.items():
        if not tensor.is_floating_point() or name.endswith(_STATISTICS):
            raise InputError(
                f"privacy does not cover statistics of the images such as '{name}': use a network without BatchNorm"
            )
    changes = {name: after[name].double() - before[name].double() for name in after}
    length = math.sqrt(sum(float(change.square().sum()) for change in changes.values()))
    if not math.isfinite(length):
        raise InputError("the answer is not finite")
    scale = min(1.0, settings.clip / length) if length else 1.0
    # fresh for every answer, so that nobody who knows the run's seed can take it off again
    draw = np.random.default_rng(secrets.randbits(128))
    model = {
        name: (
            before[name].double()
            # the change and its noise first: in a sum with what the server chose, the change's own last bits would come before
            + (scale * change + torch.from_numpy(draw.normal(0.0, settings.noise * settings.clip, tuple(change.shape))))
        ).to(after[name].dtype)
        for name, change in changes.items()
    }
    numbers = {EXAMPLES: reply.numbers[EXAMPLES]} if EXAMPLES in reply.numbers else {}
    return Bundle({MODEL: model}, numbers)


def epsilon(answers: int, noise: float, delta: float) -> float:
    """ε of so many answers: what the module's second formula gives for ``delta``."""
    mu = 2 * math.sqrt(answers) / noise
    most = mu * mu / 2 + mu * 40  # beyond the normal distribution's tail
    if _delta(0.0, mu) <= delta:
        return 0.0
    return float(brentq(lambda found: _delta(found, mu) - delta, 0.0, most, xtol=1e-10, rtol=1e-12))


def _delta(epsilon: float, mu: float) -> float:
    return math.exp(log_ndtr(-epsilon / mu + mu / 2)) - math.exp(epsilon + log_ndtr(-epsilon / mu - mu / 2))


def spend(path: Path, most: int) -> None:
    """Count one more noised answer in the file ``path``, before it leaves.

    Raises:
        InputError: ``most`` have left already, or the file cannot be read.
        RunError: it cannot be written.
    """
    try:
        spent = int(json.loads(path.read_text(encoding="utf-8"))["answers"]) if path.exists() else 0
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} cannot be read ({error}): nothing leaves until it is put back") from error
    if spent >= most:
        raise InputError(f"{spent} noised answers have left, and privacy.answers = {most}: no other does")
    write_json(path, {"answers": spent + 1})
