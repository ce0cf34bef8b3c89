"""Loss terms on features that several methods share: contrastive terms, prototypes, maximum mean discrepancy.

All are plain functions of features [n, d], differentiable with respect to them, in any floating type.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

__all__ = ["discrepancy", "model_contrast", "prototype_distance", "supervised_contrast"]


def supervised_contrast(
    features: Float[Tensor, "n d"],
    labels: Int[Tensor, " n"],
    *,
    temperature: float,
    reduction: Literal["mean", "sum"] = "mean",
) -> Float[Tensor, ""]:
    """Supervised contrastive loss (Khosla et al., NeurIPS 2020, Eq. 2, L_out), the mean or the sum over anchors.

    L_i = −1 / |P(i)| Σ_{p ∈ P(i)} log( exp(z_i · z_p / τ) / Σ_{a ≠ i} exp(z_i · z_a / τ) )

    Symbols: z the ``features``, scaled to length 1 here; P(i) the other rows of i's label; τ ``temperature``.

    A row that is alone with its label is no anchor, only a negative. Where no row is an anchor the loss is 0.
    """
    positive = labels.unsqueeze(0) == labels.unsqueeze(1)
    positive.fill_diagonal_(False)
    anchors = positive.any(1)
    if not anchors.any():
        return 0.0 * features.sum()
    z = F.normalize(features, dim=1)
    itself = torch.eye(len(z), dtype=torch.bool, device=z.device)[anchors]
    similar = (z[anchors] @ z.T / temperature).masked_fill(itself, -torch.inf)
    negative_log = similar.logsumexp(1, keepdim=True) - similar
    positive = positive[anchors]
    losses = negative_log.masked_fill(~positive, 0.0).sum(1) / positive.sum(1)
    return losses.mean() if reduction == "mean" else losses.sum()


def model_contrast(
    features: Float[Tensor, "n d"],
    received: Float[Tensor, "n d"],
    previous: Float[Tensor, "n d"],
    *,
    temperature: float,
) -> Float[Tensor, ""]:
    """Model-contrastive loss (Li et al., CVPR 2021, Eq. 3), the mean over images.

    −log( exp(cos(z, z_glob) / τ) / (exp(cos(z, z_glob) / τ) + exp(cos(z, z_prev) / τ)) )

    Symbols: z ``features``, z_glob ``received``, z_prev ``previous``: of the same images, by three networks; τ
    ``temperature``.
    """
    nearer = F.cosine_similarity(features, received) - F.cosine_similarity(features, previous)
    return F.softplus(-nearer / temperature).mean()


def prototype_distance(
    features: Float[Tensor, "n d"],
    labels: Int[Tensor, " n"],
    prototypes: Float[Tensor, "classes d"],
    known: Bool[Tensor, " classes"],
) -> Float[Tensor, ""]:
    """Mean squared difference, a coordinate, between features and the prototypes of their classes.

    An image whose class has no prototype (``known`` is false) adds nothing, and is counted in the mean.
    """
    squares = (features - prototypes[labels]).square().mean(1)
    return squares.masked_fill(~known[labels], 0.0).mean()


def discrepancy(
    x: Float[Tensor, "n d"], y: Float[Tensor, "m d"], *, bandwidth: float | None = None
) -> Float[Tensor, ""]:
    """Squared maximum mean discrepancy (Gretton et al., JMLR 2012, Eq. 5) of two samples of at least one row each.

    mean k(x, x') + mean k(y, y') − 2 mean k(x, y),   k(a, b) = exp(−‖a − b‖² / 2σ²)

    This is the biased estimate: never negative, so that it can be minimised.

    Args:
        x, y: features.
        bandwidth: σ in units of the features; None takes the median distance of two rows of both samples together, without
            a gradient.
    """
    rows = torch.cat([x, y])
    # by differences: products cancel where rows are close
    squares = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist").square()
    scale = 2 * bandwidth**2 if bandwidth is not None else 2 * _median_square(squares.detach())
    kernel = torch.exp(-squares / scale)
    n = len(x)
    return kernel[:n, :n].mean() + kernel[n:, n:].mean() - 2 * kernel[:n, n:].mean()


def _median_square(squares: Float[Tensor, "k k"]) -> Float[Tensor, ""]:
    """Of two different rows; of rows that are all alike it is the smallest number, so that the kernel stays 1."""
    row, column = torch.triu_indices(len(squares), len(squares), offset=1, device=squares.device)
    return squares[row, column].median().clamp_min(torch.finfo(squares.dtype).tiny)
