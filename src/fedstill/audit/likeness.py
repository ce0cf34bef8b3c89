"""How alike two images are, and which of the found images are which of the true ones.

PSNR = −10 log₁₀ MSE in dB, of pixels in 0 … 1: 20 is a blurred likeness, 30 a good copy.

SSIM (Wang et al., "Image quality assessment: from error visibility to structural similarity", IEEE TIP 2004, eq. 13),
the mean over places of

    (2 μ_x μ_y + c₁) (2 σ_xy + c₂) / ((μ_x² + μ_y² + c₁) (σ_x² + σ_y² + c₂)),    c₁ = 0.01², c₂ = 0.03²

with moments under a Gaussian window of 11 × 11 pixels, σ = 1.5, at all places where it lies within the image; 1 is
equality, 0 no likeness. On images with a side below 11 the window is the largest odd one that fits. Colour: the mean
over channels. The numbers are those of scikit-image's ``structural_similarity`` (``gaussian_weights=True,
use_sample_covariance=False``), for all pairs at a time.

Correlation (Pearson's, of all pixels of the pair) does not ask for the right brightness or contrast, nor minds noise on a flat
ground as SSIM does: of digits that an eye reads at once, found in grey noise, it alone may be high. 1 is equality up to those
two, 0 no likeness.

LPIPS (Zhang et al., CVPR 2018) is a distance: a LOWER one means MORE alike. :mod:`fedstill.audit.perceptual` has it.

No number says anything without what it is of images that are not the true ones: :func:`likeness` gives the same
numbers of other images of the same classes, and of their mean.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor
from torch.nn import functional as F

from fedstill.audit import perceptual
from fedstill.data.shard import Shard, hard_labels
from fedstill.errors import InputError
from fedstill.seeds import Seed

__all__ = ["ASSUMPTIONS", "CITATION", "Match", "best_match", "correlation", "likeness", "pixels_of", "psnr", "ssim"]

CITATION = "Wang et al., Image quality assessment: from error visibility to structural similarity, IEEE TIP 2004"
ASSUMPTIONS = (
    "Each found image is compared with the true image that an assignment of least total squared error gives it; beside it "
    "stand other images of the same classes and their mean, assigned alike: what somebody without the message could show."
)

WINDOW, SPREAD = 11, 1.5
C1, C2 = 0.01**2, 0.03**2
LEAST_ERROR = 1e-10
"""A mean squared error below it counts as this: 100 dB."""
DRAWS = 100
"""Draws of other images."""


class Match(NamedTuple):
    """Which found image is taken for which true one: pairs, in the order of the found ones; the larger side leaves some out."""

    found: tuple[int, ...]
    true: tuple[int, ...]


def pixels_of(images: Shaped[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
    """Pixels in 0 … 1, as a picture shows them: bytes are divided by 255, floats are cut to the range; on the CPU."""
    images = images.detach().cpu()
    return images.float() / 255 if images.dtype == torch.uint8 else images.float().clamp(0, 1)


def psnr(found: Shaped[Tensor, "n c h w"], true: Shaped[Tensor, "n c h w"]) -> Float[Tensor, " n"]:
    """Peak signal-to-noise ratio in dB of each pair, 100 at most."""
    error = (pixels_of(found) - pixels_of(true)).square().mean((1, 2, 3))
    return -10 * error.clamp(min=LEAST_ERROR).log10()


def ssim(found: Shaped[Tensor, "n c h w"], true: Shaped[Tensor, "n c h w"]) -> Float[Tensor, " n"]:
    """Structural similarity of each pair, −1 … 1."""
    x, y = pixels_of(found).double(), pixels_of(true).double()
    n, channels, height, width = x.shape
    side = min(WINDOW, *(size if size % 2 else size - 1 for size in (height, width)))
    at = torch.arange(max(side, 1), dtype=torch.float64) - max(side, 1) // 2
    line = torch.exp(-at.square() / (2 * SPREAD**2))
    line = line / line.sum()
    window = torch.outer(line, line)[None, None]

    def blurred(maps: Tensor) -> Tensor:
        return F.conv2d(maps.reshape(n * channels, 1, height, width), window)

    mx, my = blurred(x), blurred(y)
    vx, vy, vxy = blurred(x * x) - mx * mx, blurred(y * y) - my * my, blurred(x * y) - mx * my
    places = (2 * mx * my + C1) * (2 * vxy + C2) / ((mx * mx + my * my + C1) * (vx + vy + C2))
    return places.reshape(n, -1).mean(1).float()


def correlation(found: Shaped[Tensor, "n c h w"], true: Shaped[Tensor, "n c h w"]) -> Float[Tensor, " n"]:
    """Pearson's correlation of each pair's pixels, −1 … 1; 0 where an image has one colour alone."""
    x, y = (pixels_of(images).flatten(1).double() for images in (found, true))
    x, y = x - x.mean(1, keepdim=True), y - y.mean(1, keepdim=True)
    lengths = x.norm(dim=1) * y.norm(dim=1)
    return torch.where(lengths > 0, (x * y).sum(1) / lengths.clamp(min=1e-12), torch.zeros_like(lengths)).float()


def best_match(found: Shaped[Tensor, "n c h w"], true: Shaped[Tensor, "m c h w"]) -> Match:
    """The assignment of least total squared error; min(n, m) pairs.

    Raises:
        InputError: a side is empty, or images are of two shapes.
    """
    from scipy.optimize import linear_sum_assignment

    if not len(found) or not len(true) or found.shape[1:] != true.shape[1:]:
        raise InputError(
            f"likeness: images {list(found.shape)} cannot be matched to images {list(true.shape)}: there must be one or more on "
            "each side, all of one shape"
        )
    x, y = (pixels_of(images).flatten(1).double() for images in (found, true))
    rows, columns = linear_sum_assignment(torch.cdist(x, y).square().numpy())
    return Match(tuple(rows.tolist()), tuple(columns.tolist()))


def likeness(
    found: Shaped[Tensor, "n c h w"],
    labels: Int[Tensor, " n"],
    true: Shard,
    others: Shard,
    *,
    seed: Seed,
    draws: int = DRAWS,
) -> dict[str, Any]:
    """How alike found images are to the true ones, and what other images of the same classes score.

    Args:
        found: what an attack gives.
        labels: their classes: others are drawn of the same.
        true: the images that it was after.
        others: images of the same kind that had no part in it; a class that has fewer there than ``labels`` is drawn with
            replacement.
        seed: of the draws.
        draws: how many.

    Returns:
        ``match``: ``found`` and ``true``, rows of each, pair by pair. ``measures``: by name (``psnr``, ``ssim``, ``lpips``) each
        with ``pairs``, their ``mean``, whether ``higher`` means more alike, and beside it ``others`` (mean over draws),
        ``others_best`` (what the best twentieth of the draws reach), ``class_mean`` (of the mean images of the classes) and ``p``
        = (1 + draws that do as well) / (1 + draws). ``absent``: by name, why there is no ``lpips``, or no ``others``: these are
        None then.

    Raises:
        InputError: as :func:`best_match`.
    """
    missing = {"lpips": why} if (why := perceptual.absent()) is not None else {}
    measures = {name: each for name, each in _MEASURES.items() if name not in missing}
    match = best_match(found, true.images)
    scores = _scores(measures, found, true.images, match)
    means = (
        {name: [] for name in measures}
        if (lack := _lacking(labels, others))
        else _of_others(measures, labels, true, others, seed=seed, draws=draws)
    )
    if lack:
        missing["others"] = lack
    blurred = None if lack else _class_means(labels, others)
    of_means = {} if blurred is None else _scores(measures, blurred, true.images, best_match(blurred, true.images))
    return {
        "match": {"found": list(match.found), "true": list(match.true)},
        "measures": {
            name: _line(scores[name], means[name], fmean(of_means[name]) if of_means else None, measure.higher)
            for name, measure in measures.items()
        },
        "absent": missing,
    }


class _Measure(NamedTuple):
    of: Callable[[Tensor, Tensor], Tensor]
    higher: bool
    """Whether a higher number means more alike."""


_MEASURES = {
    "psnr": _Measure(psnr, True),
    "ssim": _Measure(ssim, True),
    "correlation": _Measure(correlation, True),
    "lpips": _Measure(lambda x, y: perceptual.perceptual(pixels_of(x), pixels_of(y)), False),
}


def _scores(measures: Mapping[str, _Measure], found: Tensor, true: Tensor, match: Match) -> dict[str, list[float]]:
    x, y = found.cpu()[list(match.found)], true.cpu()[list(match.true)]
    return {name: measure.of(x, y).tolist() for name, measure in measures.items()}


def _line(pairs: list[float], others: list[float], class_mean: float | None, higher: bool) -> dict[str, Any]:
    mean, sign = fmean(pairs), 1 if higher else -1
    line: dict[str, Any] = {"pairs": pairs, "mean": mean, "higher": higher, "class_mean": class_mean}
    if not others:
        return line | {"others": None, "others_best": None, "p": None}
    signed = torch.tensor(others, dtype=torch.float64) * sign
    as_good = int((signed >= mean * sign).sum())
    best = sign * signed.quantile(0.95).item()
    return line | {"others": fmean(others), "others_best": best, "p": (1 + as_good) / (1 + len(others))}


def _lacking(labels: Tensor, others: Shard) -> str | None:
    """Why there is nothing to compare with."""
    held = others.histogram()
    empty = sorted({k for k in labels.tolist() if not held[k]})
    return f"there is no other image of class {others.classes[empty[0]]}" if empty else None


def _of_others(
    measures: Mapping[str, _Measure], labels: Tensor, true: Shard, others: Shard, *, seed: Seed, draws: int
) -> dict[str, list[float]]:
    """The mean score of each draw, by measure."""
    rows = {k: (hard_labels(others.labels) == k).nonzero().flatten() for k in set(labels.tolist())}
    wanted = Counter(labels.tolist())
    means: dict[str, list[float]] = {name: [] for name in measures}
    for number in range(draws):
        draw = seed.at("others", number).numpy()
        taken = [draw.choice(rows[k].numpy(), count, replace=len(rows[k]) < count) for k, count in wanted.items()]
        drawn = others.images[torch.from_numpy(np.concatenate(taken))]
        for name, scores in _scores(measures, drawn, true.images, best_match(drawn, true.images)).items():
            means[name].append(fmean(scores))
    return means


def _class_means(labels: Tensor, others: Shard) -> Float[Tensor, "n c h w"]:
    """For each label the mean of all other images of the class."""
    held, pixels = hard_labels(others.labels), pixels_of(others.images)
    means = {k: pixels[held == k].mean(0) for k in set(labels.tolist())}
    return torch.stack([means[k] for k in labels.tolist()])
