"""The 19 corruptions of CIFAR-10-C at five severities (Hendrycks & Dietterich, "Benchmarking Neural Network Robustness
to Common Corruptions and Perturbations", ICLR 2019), made on the fly.

An implementation of our own at the published strengths. It follows the published set in kind and degree and not bit
by bit: random numbers are our own, and resizing, smearing and HSV arithmetic are NumPy's, SciPy's and Pillow's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from types import MappingProxyType

import numpy as np
import PIL.Image
from jaxtyping import UInt8
from numpy.random import Generator
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, map_coordinates

from fedstill.data import blurs, weather

__all__ = ["CORRUPTIONS", "FROST", "SEVERITIES", "corrupt"]

Image = NDArray[np.float64]

FROST = "frost"
SEVERITIES = (1, 2, 3, 4, 5)

_GAUSSIAN = (0.04, 0.06, 0.08, 0.09, 0.10)  # deviation
_SHOT = (500, 250, 100, 75, 50)  # photons at full brightness
_IMPULSE = (0.01, 0.02, 0.03, 0.05, 0.07)  # share of the values
_SPECKLE = (0.06, 0.1, 0.12, 0.16, 0.2)  # deviation
_BRIGHTNESS = (0.05, 0.1, 0.15, 0.2, 0.3)  # added to V
_CONTRAST = (0.75, 0.5, 0.4, 0.3, 0.15)  # factor
_SATURATE = ((0.3, 0.0), (0.1, 0.0), (1.5, 0.0), (2.0, 0.1), (2.5, 0.2))  # factor of S, added to S
_JPEG = (80, 65, 58, 50, 40)  # quality
_PIXELATE = (0.95, 0.9, 0.85, 0.75, 0.65)  # scale
# of the side: strength and sigma of the displacement, shift of the affine map's points
_ELASTIC = ((0.0, 0.0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03))


def corrupt(
    image: UInt8[np.ndarray, "h w 3"],
    name: str,
    severity: int,
    rng: Generator,
    *,
    textures: Sequence[UInt8[np.ndarray, "H W 3"]] = (),
) -> UInt8[np.ndarray, "h w 3"]:
    """One image, corrupted; ``image`` is left as it is.

    Args:
        image: the strengths are for 32 x 32 pixels; other sizes are taken too.
        name: one of :data:`CORRUPTIONS`.
        severity: 1, the weakest, to 5.
        rng: equal generators, equal results.
        textures: pictures of frost, none smaller than the image; ``frost`` alone uses them, and needs them.
    """
    assert severity in SEVERITIES
    clean = image.astype(np.float64) / 255
    if name == FROST:
        result = weather.frost(clean, severity, rng, [texture / 255 for texture in textures])
    else:
        result = _PLAIN[name](clean, severity, rng)
    pixels: NDArray[np.uint8] = np.rint(result.clip(0, 1) * 255).astype(np.uint8)
    return pixels


# --- noise -------------------------------------------------------------------------------------------------------------


def _gaussian_noise(image: Image, severity: int, rng: Generator) -> Image:
    return image + rng.normal(0, _GAUSSIAN[severity - 1], image.shape)


def _shot_noise(image: Image, severity: int, rng: Generator) -> Image:
    rate = _SHOT[severity - 1]
    return rng.poisson(image * rate) / rate


def _impulse_noise(image: Image, severity: int, rng: Generator) -> Image:
    share = _IMPULSE[severity - 1]
    drawn = rng.random(image.shape)
    return np.where(drawn < share / 2, 0.0, np.where(drawn < share, 1.0, image))


def _speckle_noise(image: Image, severity: int, rng: Generator) -> Image:
    return image + image * rng.normal(0, _SPECKLE[severity - 1], image.shape)


# --- colour ------------------------------------------------------------------------------------------------------------


def _brightness(image: Image, severity: int, rng: Generator) -> Image:
    """V of HSV raised; at equal H and S, colours are proportional to V."""
    value = image.max(2, keepdims=True)
    raised = np.minimum(value + _BRIGHTNESS[severity - 1], 1)
    result: Image = np.where(value > 0, image * raised / np.where(value > 0, value, 1), raised)
    return result


def _saturate(image: Image, severity: int, rng: Generator) -> Image:
    """S of HSV scaled and raised; at equal H and V, distances to V are proportional to S. Grey has the hue of red."""
    factor, added = _SATURATE[severity - 1]
    value = image.max(2, keepdims=True)
    distance = value - image
    widest = distance.max(2, keepdims=True)
    saturation = widest / np.where(value > 0, value, 1)
    wanted = (saturation * factor + added).clip(0, 1) * value
    direction = np.where(widest > 0, distance / np.where(widest > 0, widest, 1), np.array([0.0, 1.0, 1.0]))
    result: Image = value - wanted * direction
    return result


def _contrast(image: Image, severity: int, rng: Generator) -> Image:
    mean = image.mean((0, 1))
    result: Image = (image - mean) * _CONTRAST[severity - 1] + mean
    return result


# --- digital -----------------------------------------------------------------------------------------------------------


def _jpeg_compression(image: Image, severity: int, rng: Generator) -> Image:
    stream = BytesIO()
    _picture(image).save(stream, "JPEG", quality=_JPEG[severity - 1])
    return np.asarray(PIL.Image.open(stream, formats=("JPEG",))) / 255


def _pixelate(image: Image, severity: int, rng: Generator) -> Image:
    height, width = image.shape[:2]
    scale, box = _PIXELATE[severity - 1], PIL.Image.Resampling.BOX
    small = (max(1, int(width * scale)), max(1, int(height * scale)))
    return np.asarray(_picture(image).resize(small, box).resize((width, height), box)) / 255


def _picture(image: Image) -> PIL.Image.Image:
    return PIL.Image.fromarray(np.rint(image * 255).astype(np.uint8))


def _elastic_transform(image: Image, severity: int, rng: Generator) -> Image:
    """An affine map that moves three points at random, then a smooth random displacement."""
    height, width = image.shape[:2]
    side = min(height, width)
    alpha, sigma, shift = (side * each for each in _ELASTIC[severity - 1])
    middle, reach = np.array([height // 2, width // 2]), side // 3
    points = middle + reach * np.array([[1, 1], [1, -1], [-1, -1]])
    moved = points + rng.uniform(-shift, shift, points.shape)
    # the map from new places to old ones: three pairs of points decide it
    inverse = np.linalg.solve(np.c_[moved, np.ones(3)], points)
    grid = np.moveaxis(np.mgrid[:height, :width], 0, -1).astype(np.float64)
    mapped = _sampled(image, grid @ inverse[:2] + inverse[2])
    noise = rng.uniform(-1, 1, (height, width, 2))
    return _sampled(mapped, grid + alpha * gaussian_filter(noise, (sigma, sigma, 0), mode="reflect", truncate=3))


def _sampled(image: Image, places: Image) -> Image:
    """Values at ``places`` [h, w, 2] (row, column): bilinear, mirrored beyond the rim."""
    at = np.moveaxis(places, -1, 0)
    channels = [map_coordinates(image[..., each], at, order=1, mode="reflect") for each in range(image.shape[2])]
    return np.stack(channels, -1)


_PLAIN: Mapping[str, Callable[[Image, int, Generator], Image]] = MappingProxyType(
    {
        "gaussian_noise": _gaussian_noise,
        "shot_noise": _shot_noise,
        "impulse_noise": _impulse_noise,
        "defocus_blur": blurs.defocus_blur,
        "glass_blur": blurs.glass_blur,
        "motion_blur": blurs.motion_blur,
        "zoom_blur": blurs.zoom_blur,
        "snow": weather.snow,
        "fog": weather.fog,
        "brightness": _brightness,
        "contrast": _contrast,
        "elastic_transform": _elastic_transform,
        "pixelate": _pixelate,
        "jpeg_compression": _jpeg_compression,
        "speckle_noise": _speckle_noise,
        "gaussian_blur": blurs.gaussian_blur,
        "spatter": weather.spatter,
        "saturate": _saturate,
    }
)

CORRUPTIONS = (
    "gaussian_noise",
    "shot_noise",
    "impulse_noise",
    "defocus_blur",
    "glass_blur",
    "motion_blur",
    "zoom_blur",
    "snow",
    "frost",
    "fog",
    "brightness",
    "contrast",
    "elastic_transform",
    "pixelate",
    "jpeg_compression",
    "speckle_noise",
    "gaussian_blur",
    "spatter",
    "saturate",
)
"""Names in the order of the published set: the fifteen of the benchmark, then the four for validation."""
