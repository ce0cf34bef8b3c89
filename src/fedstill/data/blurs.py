"""Blurs of the published corruption benchmark (Hendrycks & Dietterich, ICLR 2019) at their strengths for 32 px.

Each is a function ``(image, severity, rng) -> image`` over floats [h, w, 3] in 0 … 1; :mod:`fedstill.data.corruptions`
names them, and brings pixels there and back.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from scipy.ndimage import convolve, gaussian_filter

__all__ = [
    "centre_zoom",
    "defocus_blur",
    "gaussian_blur",
    "glass_blur",
    "motion_blur",
    "smeared",
    "soften",
    "zoom_blur",
]

Image = NDArray[np.float64]

_GAUSSIAN = (0.4, 0.6, 0.7, 0.8, 1.0)  # sigma
_DEFOCUS = ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1.0, 0.2), (1.5, 0.1))  # radius, sigma of the rim
_GLASS = ((0.05, 1), (0.25, 1), (0.4, 1), (0.25, 2), (0.4, 2))  # sigma, rounds of scattering
_MOTION = ((6, 1.0), (6, 1.5), (6, 2.0), (8, 2.0), (9, 2.5))  # radius, sigma
# zooms by 1.00, 1.01, …: as many as the published ranges have, of which rounding lengthens the first two by one
_ZOOM = (7, 12, 16, 21, 26)


def soften(image: Image, sigma: float) -> Image:
    """Gaussian of each channel; beyond the rim the image goes on as it ends."""
    result: Image = gaussian_filter(image, (sigma, sigma) + (0,) * (image.ndim - 2), mode="nearest")
    return result


def gaussian_blur(image: Image, severity: int, rng: Generator) -> Image:
    """A Gaussian."""
    return soften(image, _GAUSSIAN[severity - 1])


def defocus_blur(image: Image, severity: int, rng: Generator) -> Image:
    """A disk, its rim smoothed: a lens out of focus."""
    result: Image = convolve(image, _disk(*_DEFOCUS[severity - 1])[..., None], mode="mirror")
    return result


@cache
def _disk(radius: float, rim: float) -> Image:
    """Kernel [5, 5], which sums to 1: the disk is at most 3 pixels wide, and smoothing adds one on each side."""
    y, x = np.mgrid[-2:3, -2:3]
    disk = (x**2 + y**2 <= radius**2).astype(np.float64)
    taps = np.exp(-(np.array([-1.0, 0.0, 1.0]) ** 2) / (2 * rim**2))
    kernel: Image = convolve(disk / disk.sum(), np.outer(taps, taps) / taps.sum() ** 2, mode="constant")
    return kernel


def glass_blur(image: Image, severity: int, rng: Generator) -> Image:
    """Frosted glass: a Gaussian, each pixel taken from a close one above or to the left, the Gaussian again.

    The benchmark speaks of exchanging pixels. In its arrays the second of a pair keeps its value, and so it does here.
    """
    sigma, rounds = _GLASS[severity - 1]
    mixed = soften(image, sigma)
    height, width = image.shape[:2]
    rows, columns = np.mgrid[2:height, 2:width]
    for _ in range(rounds):
        up, left = rng.integers(0, 2, size=(2, *rows.shape))
        # the right side is read whole before it is written: pixels above and to the left are still the round's first
        mixed[2:, 2:] = mixed[rows - up, columns - left]
    return soften(mixed, sigma)


def motion_blur(image: Image, severity: int, rng: Generator) -> Image:
    """A smear in one direction within 45 degrees of the horizontal."""
    return smeared(image, *_MOTION[severity - 1], degrees=float(rng.uniform(-45, 45)))


def smeared(image: Image, radius: int, sigma: float, *, degrees: float) -> Image:
    """Mean of ``2 radius + 1`` copies, each a pixel further along a direction, with half a Gaussian as weights.

    Args:
        image: [h, w] or [h, w, channels].
        radius: pixels; it cuts the Gaussian's tail.
        sigma: of the Gaussian, in pixels.
        degrees: 0 = copies move to the left, so that edges smear to the left.
    """
    count = 2 * radius + 1
    weights = np.exp(-(np.arange(count) ** 2) / (2 * sigma**2))
    weights /= weights.sum()
    down = np.rint(np.arange(count) * np.sin(np.deg2rad(degrees))).astype(int)
    right = np.rint(np.arange(count) * np.cos(np.deg2rad(degrees))).astype(int)
    height, width = image.shape[:2]
    padded = np.pad(image, [(count, count)] * 2 + [(0, 0)] * (image.ndim - 2), mode="edge")
    result = np.zeros_like(image)
    for weight, dy, dx in zip(weights, down, right, strict=True):
        result += weight * padded[count + dy : count + dy + height, count + dx : count + dx + width]
    return result


def zoom_blur(image: Image, severity: int, rng: Generator) -> Image:
    """Mean of the image and of its zooms by 1.00, 1.01, …: a camera that moves forward."""
    factors = 1 + np.arange(_ZOOM[severity - 1]) / 100
    return (image + sum(centre_zoom(image, float(factor)) for factor in factors)) / (len(factors) + 1)


def centre_zoom(image: Image, factor: float) -> Image:
    """The middle of ``image`` [h, w] or [h, w, channels], enlarged ``factor`` times to the old size; bilinear."""
    down, right = _enlarge(image.shape[0], factor), _enlarge(image.shape[1], factor)
    if image.ndim == 2:
        flat: Image = down @ image @ right.T
        return flat
    return np.moveaxis(down @ np.moveaxis(image, 2, 0) @ right.T, 0, 2)


@cache
def _enlarge(side: int, factor: float) -> Image:
    """Matrix [side, side] of linear interpolation along one axis."""
    middle = (side - 1) / 2
    at = middle + (np.arange(side) - middle) / factor
    low = np.minimum(np.floor(at).astype(int), max(side - 2, 0))
    matrix = np.zeros((side, side))
    matrix[np.arange(side), low] += 1 - (at - low)
    matrix[np.arange(side), np.minimum(low + 1, side - 1)] += at - low
    return matrix
