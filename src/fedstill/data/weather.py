"""Weather of the published corruption benchmark (Hendrycks & Dietterich, ICLR 2019) at its strengths for 32 px.

Each is a function ``(image, severity, rng) -> image`` over floats [h, w, 3] in 0 … 1; frost takes its textures besides.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from scipy.ndimage import binary_erosion, convolve, distance_transform_edt, uniform_filter

from fedstill.data.blurs import centre_zoom, smeared, soften

__all__ = ["fog", "frost", "snow", "spatter"]

Image = NDArray[np.float64]

# mean and deviation of the flakes, zoom, threshold, radius and sigma of the smear, share of the image that keeps its colour
_SNOW = (
    (0.1, 0.2, 1.0, 0.6, 8, 3.0, 0.95),
    (0.1, 0.2, 1.0, 0.5, 10, 4.0, 0.9),
    (0.15, 0.3, 1.75, 0.55, 10, 4.0, 0.9),
    (0.25, 0.3, 2.25, 0.6, 12, 6.0, 0.85),
    (0.3, 0.3, 1.25, 0.65, 14, 12.0, 0.8),
)
_FROST = ((1.0, 0.2), (1.0, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45))  # weights of image and texture
_TEXTURES = 5  # the published set draws from the first five of its six pictures
_FOG = ((0.2, 3.0), (0.5, 3.0), (0.75, 2.5), (1.0, 2.0), (1.5, 1.75))  # amount, decay of the fractal
# mean and deviation of the noise, its sigma, threshold, and intensity of water or sigma of mud
_SPATTER = (
    (0.62, 0.1, 0.7, 0.7, 0.5),
    (0.65, 0.1, 0.8, 0.7, 0.5),
    (0.65, 0.3, 1.0, 0.69, 0.5),
    (0.65, 0.1, 0.7, 0.69, 0.6),
    (0.65, 0.1, 0.5, 0.68, 0.6),
)
_MUD_FROM = 4
_WATER = np.array([175, 238, 238]) / 255
_MUD = np.array([63, 42, 20]) / 255
_RELIEF = np.array([[-2.0, -1.0, 0.0], [-1.0, 1.0, 1.0], [0.0, 1.0, 2.0]])  # lit from the lower right
_DEEPEST = 20.0  # pixels


def snow(image: Image, severity: int, rng: Generator) -> Image:
    """Smeared flakes, also turned by 180 degrees, on a whitened image."""
    mean, deviation, zoom, threshold, radius, sigma, keep = _SNOW[severity - 1]
    flakes = centre_zoom(rng.normal(mean, deviation, image.shape[:2]), zoom)
    flakes = np.where(flakes < threshold, 0.0, flakes).clip(0, 1)
    flakes = smeared(flakes, int(radius), sigma, degrees=float(rng.uniform(-135, -45)))[..., None]
    grey = image @ np.array([0.299, 0.587, 0.114])
    whitened = keep * image + (1 - keep) * np.maximum(image, 1.5 * grey[..., None] + 0.5)
    result: Image = whitened + flakes + flakes[::-1, ::-1]
    return result


def frost(image: Image, severity: int, rng: Generator, textures: Sequence[Image]) -> Image:
    """A random window of one of the first five ``textures`` ([h, w, 3] in 0 … 1, no smaller than the image) added."""
    ours, theirs = _FROST[severity - 1]
    texture = textures[int(rng.integers(min(len(textures), _TEXTURES)))]
    height, width = image.shape[:2]
    top = int(rng.integers(texture.shape[0] - height + 1))
    left = int(rng.integers(texture.shape[1] - width + 1))
    return ours * image + theirs * texture[top : top + height, left : left + width]


def fog(image: Image, severity: int, rng: Generator) -> Image:
    """A plasma fractal added, then the whole scaled down to the old range."""
    amount, decay = _FOG[severity - 1]
    height, width = image.shape[:2]
    brightest = float(image.max())
    side = 1 << max(height - 1, width - 1, 1).bit_length()
    plasma = _plasma(side, decay, rng)[:height, :width, None]
    return (image + amount * plasma) * brightest / (brightest + amount)


def _plasma(side: int, decay: float, rng: Generator) -> Image:
    """Diamond-square fractal [side, side] on a torus, from 0 to 1; ``side`` is a power of two.

    The published noise is a product of two factors that both fall by ``decay`` a level.
    """
    field = np.zeros((1, 1))
    amplitude = 1.0
    while len(field) < side:
        centres = (field + np.roll(field, -1, 0) + np.roll(field, -1, 1) + np.roll(field, -1, (0, 1))) / 4
        centres += rng.uniform(-amplitude, amplitude, field.shape)
        # an edge's middle has two corners and two centres around it
        sideways = (field + np.roll(field, -1, 1) + centres + np.roll(centres, 1, 0)) / 4
        upright = (field + np.roll(field, -1, 0) + centres + np.roll(centres, 1, 1)) / 4
        finer = np.empty((2 * len(field), 2 * len(field)))
        finer[::2, ::2], finer[1::2, 1::2] = field, centres
        finer[::2, 1::2] = sideways + rng.uniform(-amplitude, amplitude, field.shape)
        finer[1::2, ::2] = upright + rng.uniform(-amplitude, amplitude, field.shape)
        field = finer
        amplitude /= decay**2
    field -= field.min()
    result: Image = field / field.max()
    return result


def spatter(image: Image, severity: int, rng: Generator) -> Image:
    """Drops on the lens: water up to severity 3, mud from 4 on."""
    mean, deviation, sigma, threshold, strength = _SPATTER[severity - 1]
    liquid = soften(rng.normal(mean, deviation, image.shape[:2]), sigma)
    if severity >= _MUD_FROM:
        cover = soften((liquid > threshold).astype(np.float64), strength)
        cover = np.where(cover < 0.8, 0.0, cover)[..., None]
        return image * (1 - cover) + cover * _MUD
    drops = np.where(liquid < threshold, 0.0, liquid.clip(0, 1))
    shade = drops * _relief(drops > 0)
    highest = float(shade.max())
    return image if highest <= 0 else image + strength * (shade / highest)[..., None] * _WATER


def _relief(drops: NDArray[np.bool_]) -> Image:
    """Light and shade [h, w] by the distance from the drops' rims.

    The published one finds rims by Canny's detector, in 8 bits; here a rim is what erosion takes away.
    """
    rims = drops & ~binary_erosion(drops, border_value=1)
    distance = distance_transform_edt(~rims) if rims.any() else np.full(drops.shape, _DEEPEST)
    levels = np.rint(uniform_filter(np.minimum(distance, _DEEPEST), 3, mode="mirror")).astype(int)
    # equalised: a level becomes the share of pixels that are no deeper
    shares = np.bincount(levels.ravel()).cumsum() / levels.size
    relief: Image = uniform_filter(convolve(shares[levels], _RELIEF, mode="mirror"), 3, mode="mirror")
    return relief
