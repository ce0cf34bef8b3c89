"""What a party changed in a network that it was sent: cut to a length, noised, and what that guarantees.

With Δ = after − before over all tensors of the network (client-level differential privacy as of McMahan et al., ICLR 2018,
without their trusted server):

    Δ' = Δ · min(1, S / ‖Δ‖) + N(0, (z S)² I)

Whatever the party's images are, two such Δ lie at most 2 S apart, so T answers are μ-Gaussian differentially private with
μ = 2 √T / z, however each depends on those before it, and ε and δ follow exactly (Dong, Roth, Su, JRSS B 2022, Corollary 2.13):

    δ = Φ(−ε/μ + μ/2) − e^ε Φ(−ε/μ − μ/2)

Symbols: S ``clip``, z ``noise``, T ``answers``. Noise of floating-point numbers is not quite a Gaussian's (Mironov, CCS 2012), of
which the formulas know nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping

import torch
from scipy.optimize import brentq
from scipy.special import log_ndtr
from torch import Tensor

from fedstill.bundle import Group
from fedstill.errors import InputError

__all__ = [
    "MOST_DELTA",
    "Change",
    "beside",
    "change_of",
    "cut",
    "epsilon",
    "fits",
    "hidden",
    "moved",
    "noise_for",
    "noised",
]

Change = Mapping[str, Tensor]
"""Δ by tensor, in float64, in which the difference of two float32 numbers of like size is exact."""

MOST_DELTA = 1e-2
"""Largest δ that is taken: a δ near 1 promises nothing, whatever ε beside it, and ε at it is 0."""

_STATISTICS = ("running_mean", "running_var")


def beside(group: Group) -> list[str]:
    """Tensors of a network that training does not move by gradients: BatchNorm's statistics of images, and counters."""
    return [name for name, tensor in group.items() if not tensor.is_floating_point() or name.endswith(_STATISTICS)]


def fits(found: Group, wanted: Group) -> bool:
    """Whether ``found`` is a network of the names and shapes of ``wanted``, which has some."""
    return bool(wanted) and {name: each.shape for name, each in found.items()} == {
        name: each.shape for name, each in wanted.items()
    }


def change_of(before: Group, after: Group, left_out: Collection[str] = ()) -> Change:
    """Δ, of all tensors but those ``left_out``; :func:`fits` holds."""
    return {
        name: after[name].detach().cpu().double() - before[name].detach().cpu().double()
        for name in after
        if name not in left_out
    }


def cut(change: Change, clip: float) -> Change:
    """Δ · min(1, S / ‖Δ‖).

    Raises:
        InputError: Δ is not finite.
    """
    length = math.sqrt(sum(float(each.square().sum()) for each in change.values()))
    if not math.isfinite(length):
        raise InputError("the answer is not finite")
    scale = min(1.0, clip / length) if length else 1.0
    return {name: scale * each for name, each in change.items()}


def noised(change: Change, deviation: float, draw: Callable[[str, torch.Size], Tensor]) -> Change:
    """Δ with noise of standard deviation z S. ``draw`` gives standard normal numbers for the tensor of that name and shape."""
    return {name: each + deviation * draw(name, each.shape) for name, each in change.items()}


def hidden(change: Change, clip: float, noise: float, draw: Callable[[str, torch.Size], Tensor]) -> Change:
    """Δ'. A Δ that is not finite counts as 0: that it is not may hang on one image, and a refusal would tell it whatever z is."""
    finite = all(bool(each.isfinite().all()) for each in change.values())
    short = cut(change, clip) if finite else {name: torch.zeros_like(each) for name, each in change.items()}
    return noised(short, noise * clip, draw)


def moved(before: Group, change: Change) -> Group:
    """``before`` + Δ, in the types of ``before``."""
    # what is added is whole by now: in a sum with what the server chose, the change's own last bits would come before its noise
    return {name: (before[name].detach().cpu().double() + each).to(before[name].dtype) for name, each in change.items()}


# --- accounting --------------------------------------------------------------------------------------------------------


def epsilon(answers: int, noise: float, delta: float) -> float:
    """ε of so many answers: what the module's last formula gives for ``delta``."""
    mu = 2 * math.sqrt(answers) / noise
    most = mu * mu / 2 + mu * 40  # beyond the normal distribution's tail
    if _delta(0.0, mu) <= delta:
        return 0.0
    return float(brentq(lambda found: _delta(found, mu) - delta, 0.0, most, xtol=1e-10, rtol=1e-12))


def noise_for(wanted: float, answers: int, delta: float) -> float:
    """The least z with which so many answers stay within ε = ``wanted``."""
    # δ grows with μ from 0 to 1: the bounds are where it is surely below and above any that is asked for
    least, most = math.log(1e-14), math.log(math.sqrt(2 * wanted) + 80)
    found = brentq(lambda power: _delta(wanted, math.exp(power)) - delta, least, most, xtol=1e-13)
    # a hair more, so that the root's own error is not spent
    return 2 * math.sqrt(answers) / math.exp(float(found)) * (1 + 1e-9)


def _delta(epsilon: float, mu: float) -> float:
    return math.exp(log_ndtr(-epsilon / mu + mu / 2)) - math.exp(epsilon + log_ndtr(-epsilon / mu - mu / 2))
