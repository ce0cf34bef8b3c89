"""The gradient-density ratio by which FedLGD's paper measures membership (Huang et al., TMLR 2024, the membership experiment).

The paper takes the gradient of the loss at each image by itself, estimates the density of members' and of non-members'
gradients by Gaussian kernels, and scores an image by the ratio of the two. It does not say what of a gradient is taken. Here it
is one number, the logarithm of its Euclidean norm over all parameters, at the image as it is and its label. Kernels need held-
out images: densities are fitted on one half of the members and one half of the others, the other halves are scored, and then
the halves change places, so that every image is scored once by densities that did not see it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor
from torch.func import functional_call, grad, vmap

from fedstill.data.shard import Shard
from fedstill.models.architecture import Network
from fedstill.seeds import Seed
from fedstill.train import classification_loss

__all__ = ["density_ratio", "gradient_norms"]

Array = NDArray[np.float64]

CHUNK = 64
_LEAST_NORM = 1e-30


def gradient_norms(
    network: Network,
    shard: Shard,
    *,
    device: str = "cpu",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Float[Array, " n"]:
    """log ‖∇_θ CE(f_θ(x), y)‖ of every image by itself, evaluation mode; a norm of 0 counts as 1e-30.

    Args:
        network: f; it is moved to ``device`` and put into evaluation mode.
        shard: hard labels.
        progress: ``progress(images done, images)``.
    """
    network.to(device).eval()
    parameters = {name: each.detach() for name, each in network.named_parameters() if each.requires_grad}
    rest = {name: each.detach() for name, each in network.state_dict().items() if name not in parameters}

    def loss(own: Mapping[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        logits = functional_call(network, {**own, **rest}, (image[None],))
        return classification_loss(logits, label[None])

    # dropout is off, but torch asks before it knows
    each_gradient = vmap(grad(loss), in_dims=(None, 0, 0), randomness="different")
    found = []
    for rows in torch.split(torch.arange(len(shard)), CHUNK):
        gradients = each_gradient(parameters, shard.inputs(rows).to(device), shard.labels[rows].to(device))
        squares = sum(each.double().flatten(1).square().sum(1) for each in gradients.values())
        found.append(torch.as_tensor(squares).cpu())
        progress(sum(map(len, found)), len(shard))
    norms = torch.cat(found).sqrt().clamp_min(_LEAST_NORM).log()
    return np.asarray(norms.numpy(), np.float64)


def density_ratio(values: Float[Array, " n"], member: Bool[NDArray[np.bool_], " n"], seed: Seed) -> Float[Array, " n"]:
    """log p_member − log p_other at each value, by Gaussian kernels (Scott's bandwidth) on the half that the value is not in.

    Args:
        values: one number an image.
        member: which are members; at least four of each side.
        seed: draws the halves.

    Returns:
        Scores; where all values of a half are equal, the kernel there has no width, and every score is 0.
    """
    from scipy.stats import gaussian_kde

    half = np.zeros(len(values), np.int64)
    for side in (True, False):
        rows = seed.at(side).numpy().permutation(np.flatnonzero(member == side))
        half[rows[len(rows) // 2 :]] = 1
    scores = np.zeros(len(values))
    for fold in (0, 1):
        fitted = [values[(half == fold) & (member == side)] for side in (True, False)]
        if any(np.ptp(each) == 0 for each in fitted):
            continue
        scored = half != fold
        inside, outside = (gaussian_kde(each).logpdf(values[scored]) for each in fitted)
        scores[scored] = np.nan_to_num(inside - outside)  # far from every kernel both are −∞, and nothing is said
    return scores
