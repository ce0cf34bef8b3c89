"""LiRA, the likelihood-ratio attack (Carlini et al., "Membership Inference Attacks From First Principles", IEEE S&P 2022).

    φ(p) = log(p_y / (1 − p_y))                          a network's confidence in an image's label, nearly Gaussian
    OUT  = {φ of shadow networks that did not train on the image},   IN = {φ of those that did}
    offline   Λ = Pr[N(μ_out, σ²_out) < φ_target]        one-sided: Eq. 4
    online    Λ = log N(φ_target; μ_in, σ²_in) − log N(φ_target; μ_out, σ²_out)             Algorithm 1, Eq. 2

Here ``offline`` gives (φ_target − μ_out) / σ_out, of which Λ is a monotone function that float64 cannot tell from 1 in its tail.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["ENOUGH", "confidence", "offline", "online"]

Array = NDArray[np.float64]

ENOUGH = 64
"""Shadow networks from which on each image has a variance of its own; with fewer all share one (their section VI-C)."""

_LEAST_DEVIATION = 1e-6  # of images on which all shadow networks agree to the bit


def confidence(logits: Float[Tensor, "n classes"], labels: Int[Tensor, " n"]) -> Array:
    """φ, [n]: z_y − log Σ_{y' ≠ y} exp z_{y'}, in float64.

    The paper's stable form, log p_y − log Σ_{y' ≠ y} p_{y'}, less the normalisation that both terms share.
    """
    logits = logits.double()
    own = logits.gather(1, labels[:, None]).squeeze(1)
    others = logits.scatter(1, labels[:, None], -torch.inf)
    return np.asarray((own - others.logsumexp(1)).numpy(), np.float64)


def offline(
    target: Float[Array, " n"],
    shadows: Float[Array, "s n"],
    out: Bool[NDArray[np.bool_], "s n"],
    *,
    own_variance: bool,
) -> Array:
    """How far above its OUT shadows the target's confidence lies, in their standard deviations, [n].

    Args:
        target: φ of the attacked network.
        shadows: φ of each shadow network.
        out: where that network had nothing of the image.
        own_variance: of each image, by at least two OUT shadows; else one for all images.

    Returns:
        Scores; NaN for an image with too few OUT shadows.
    """
    mean, deviation = _gaussian(shadows, out, own_variance=own_variance)
    return np.asarray((target - mean) / deviation, np.float64)


def online(
    target: Float[Array, " n"],
    shadows: Float[Array, "s n"],
    inside: Bool[NDArray[np.bool_], "s n"],
    out: Bool[NDArray[np.bool_], "s n"],
    *,
    own_variance: bool,
) -> Array:
    """The log-likelihood ratio, [n]; arguments as :func:`offline`, and ``inside`` where a network trained on the image.

    Returns:
        Scores; NaN for an image with too few IN or OUT shadows.
    """
    mean_in, deviation_in = _gaussian(shadows, inside, own_variance=own_variance)
    mean_out, deviation_out = _gaussian(shadows, out, own_variance=own_variance)
    return np.asarray(
        np.log(deviation_out / deviation_in)
        + ((target - mean_out) / deviation_out) ** 2 / 2
        - ((target - mean_in) / deviation_in) ** 2 / 2,
        np.float64,
    )


def _gaussian(shadows: Array, chosen: NDArray[np.bool_], *, own_variance: bool) -> tuple[Array, Array]:
    """Mean and standard deviation of each image's chosen shadows; NaN where there are too few."""
    count = chosen.sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.where(count > 0, np.where(chosen, shadows, 0.0).sum(0) / count, np.nan)
        squares = np.where(chosen, (shadows - mean) ** 2, 0.0).sum(0)
        if own_variance:
            variance = np.where(count > 1, squares / (count - 1), np.nan)
        else:
            # about each image's own mean: how images differ from each other is no part of it
            freedom = int((count - 1)[count > 0].sum())
            variance = np.full(shadows.shape[1], squares.sum() / freedom if freedom > 0 else np.nan)
    return mean, np.maximum(np.sqrt(variance), _LEAST_DEVIATION)
