"""Differentiable augmentation, siamese where wanted (Zhao and Bilen, "Dataset Condensation with Differentiable Siamese
Augmentation", ICML 2021), with the operations and strengths that trajectory matching and FedDGM use.

Drawing and applying are apart: :meth:`Augmentation.draw` makes the random choices, :func:`apply` is a pure function of
images and choices. So a pass that is recomputed sees what the first pass saw, and two batches can share one choice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from fedstill.errors import InputError, unknown

__all__ = ["DSA", "OPERATIONS", "Augmentation", "Drawn", "apply"]

OPERATIONS = ("color", "crop", "cutout", "flip", "scale", "rotate")
DSA = "_".join(OPERATIONS)
"""All of them, as published; :meth:`Augmentation.parse` reads it."""

Size = tuple[int, int]


@dataclass(frozen=True)
class Drawn:
    """The random choices for one batch.

    Attributes:
        operations: names of :data:`OPERATIONS`, applied in this order.
        parameters: per operation, float32 [n, …] on the CPU; n = 1 serves a batch of any size (the siamese form).
    """

    operations: tuple[str, ...] = ()
    parameters: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Which operations, how strong, and whether a batch gets one of them or all.

    Images are meant as networks see them (normalised), as in the published code: there zero is the mean colour, and
    zeros fill what crop, cutout, scale and rotate leave blank.

    Attributes:
        operations: some of :data:`OPERATIONS`; none means off.
        mode: ``single`` applies one operation, drawn afresh for every batch; ``all`` applies all in order.
        brightness: added to all of an image: uniform in ±brightness/2.
        saturation: factor on the difference from grey: uniform in 0…saturation. Nothing happens to one channel.
        contrast: factor on the difference from the image's mean: uniform in contrast…contrast + 1.
        crop: largest shift, as a fraction of the side.
        cutout: side of the zeroed rectangle, as a fraction of the image's.
        flip: probability of mirroring left and right.
        scale: each axis is resampled with a factor uniform in 1/scale…scale.
        rotate: largest angle, in degrees.
    """

    operations: tuple[str, ...] = ()
    mode: Literal["single", "all"] = "single"
    brightness: float = 1.0
    saturation: float = 2.0
    contrast: float = 0.5
    crop: float = 0.125
    cutout: float = 0.5
    flip: float = 0.5
    scale: float = 1.2
    rotate: float = 15.0

    @property
    def text(self) -> str:
        """What :meth:`parse` reads."""
        return "_".join(self.operations) or "none"

    @classmethod
    def parse(cls, text: str, *, key: str = "augment") -> Augmentation:
        """From ``"color_crop_cutout_flip_scale_rotate"`` or any part of it; ``""`` and ``"none"`` mean off.

        Strengths are the published ones; ``dataclasses.replace`` changes them.

        Raises:
            InputError: an operation is unknown or named twice; ``key`` is where the user wrote it.
        """
        names = () if text in ("", "none") else tuple(text.split("_"))
        for name in names:
            if name not in OPERATIONS:
                raise unknown(key, name, OPERATIONS)
            if names.count(name) > 1:
                raise InputError(f"{key} = '{text}': '{name}' is named twice")
        return cls(operations=names)

    def draw(self, n: int, size: Size, generator: torch.Generator) -> Drawn:
        """Choices for ``n`` images of ``size`` (height, width), from a generator on the CPU.

        ``n = 1`` makes a choice that :func:`apply` shares among all images of any batch.
        """
        chosen = self.operations
        if self.mode == "single" and chosen:
            chosen = (chosen[int(torch.randint(len(chosen), (), generator=generator))],)
        return Drawn(chosen, {name: _DRAW[name](self, n, size, generator) for name in chosen})


def apply(images: Float[Tensor, "n c h w"], drawn: Drawn) -> Float[Tensor, "n c h w"]:
    """Augmented images: the same for the same ``drawn``, on any device and in any floating type.

    Differentiable with respect to ``images``, any number of times. No image is an answer too.
    """
    if len(images) == 0:  # which PyTorch's affine grid refuses
        return images
    for name in drawn.operations:
        images = _APPLY[name](images, drawn.parameters[name].to(images.device))
    return images


def _uniform(n: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(n, 1, generator=generator)


def _integers(n: int, low: int, high: int, generator: torch.Generator) -> Tensor:
    """From low to high, both included; float32, which holds them exactly."""
    return torch.randint(low, high + 1, (n, 1), generator=generator).float()


def _draw_color(a: Augmentation, n: int, size: Size, generator: torch.Generator) -> Tensor:
    """[n, 3]: brightness, saturation, contrast."""
    ranges = ((-a.brightness / 2, a.brightness / 2), (0.0, a.saturation), (a.contrast, a.contrast + 1))
    return torch.cat([_uniform(n, low, high, generator) for low, high in ranges], 1)


def _draw_crop(a: Augmentation, n: int, size: Size, generator: torch.Generator) -> Tensor:
    """[n, 2]: shift down and to the right, in pixels."""
    pads = [int(side * a.crop + 0.5) for side in size]
    return torch.cat([_integers(n, -pad, pad, generator) for pad in pads], 1)


def _draw_cutout(a: Augmentation, n: int, size: Size, generator: torch.Generator) -> Tensor:
    """[n, 4]: top, left, bottom, right of the rectangle; its centre lies in the image, its edges may not."""
    holes = [int(side * a.cutout + 0.5) for side in size]
    starts = [_integers(n, 0, side - hole % 2, generator) - hole // 2 for side, hole in zip(size, holes, strict=True)]
    return torch.cat([*starts, *(start + hole for start, hole in zip(starts, holes, strict=True))], 1)


def _draw_flip(a: Augmentation, n: int, size: Size, generator: torch.Generator) -> Tensor:
    """[n, 1]: 1 where mirrored."""
    return (torch.rand(n, 1, generator=generator) < a.flip).float()


def _draw_scale(a: Augmentation, n: int, size: Size, generator: torch.Generator) -> Tensor:
    """[n, 2, 3]: affine maps from output to input places, in units of half a side."""
    theta = torch.zeros(n, 2, 3)
    theta[:, 1, 1:2] = _uniform(n, 1 / a.scale, a.scale, generator)
    theta[:, 0, 0:1] = _uniform(n, 1 / a.scale, a.scale, generator)
    return theta


def _draw_rotate(a: Augmentation, n: int, size: Size, generator: torch.Generator) -> Tensor:
    """[n, 2, 3], as for scale."""
    height, width = size
    angle = _uniform(n, -a.rotate, a.rotate, generator)[:, 0] * (math.pi / 180)
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros(n)
    # half-sides differ in pixels where the image is not square; the ratios make the rotation a rigid one
    x = torch.stack([cos, -sin * (height / width), zero], 1)
    y = torch.stack([sin * (width / height), cos, zero], 1)
    return torch.stack([x, y], 1)


def _color(images: Tensor, drawn: Tensor) -> Tensor:
    brightness, saturation, contrast = drawn.to(images.dtype)[:, :, None, None, None].unbind(1)
    images = images + brightness
    if images.shape[1] > 1:
        grey = images.mean(1, keepdim=True)
        images = grey + (images - grey) * saturation
    mean = images.mean((1, 2, 3), keepdim=True)
    return mean + (images - mean) * contrast


def _crop(images: Tensor, shift: Tensor) -> Tensor:
    n, channels, height, width = images.shape
    down, right = shift.long()[:, :, None].unbind(1)
    y = torch.arange(height, device=images.device) - down
    x = torch.arange(width, device=images.device) - right
    inside = ((y >= 0) & (y < height))[:, :, None] & ((x >= 0) & (x < width))[:, None, :]
    place = y.clamp(0, height - 1)[:, :, None] * width + x.clamp(0, width - 1)[:, None, :]
    place = place.flatten(1)[:, None, :].expand(n, channels, -1)
    moved = images.flatten(2).gather(2, place).view_as(images)
    return moved * inside[:, None].to(images.dtype)


def _cutout(images: Tensor, edges: Tensor) -> Tensor:
    top, left, bottom, right = edges[:, :, None].unbind(1)
    y = torch.arange(images.shape[2], device=images.device)
    x = torch.arange(images.shape[3], device=images.device)
    hole = ((y >= top) & (y < bottom))[:, :, None] & ((x >= left) & (x < right))[:, None, :]
    return images * (~hole)[:, None].to(images.dtype)


def _flip(images: Tensor, mirrored: Tensor) -> Tensor:
    return torch.where(mirrored.bool()[:, :, None, None], images.flip(3), images)


def _affine(images: Tensor, theta: Tensor) -> Tensor:
    grid = F.affine_grid(theta.to(images.dtype).expand(images.shape[0], 2, 3), list(images.shape), align_corners=False)
    sampled: Tensor = _Sample.apply(images, grid)  # type: ignore[no-untyped-call]
    return sampled


class _Sample(torch.autograd.Function):
    """Bilinear sampling, zeros outside. It is linear in the images, and so is its transpose, :class:`_Spread`; each is
    the other's derivative. torch's own ``grid_sample`` has no second derivative."""

    generate_vmap_rule = True

    @staticmethod
    def forward(images: Tensor, grid: Tensor) -> Tensor:
        return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (grid,) = ctx.saved_tensors
        return _Spread.apply(grad, grid), None  # type: ignore[no-untyped-call]


class _Spread(torch.autograd.Function):
    """The transpose of :class:`_Sample`."""

    generate_vmap_rule = True

    @staticmethod
    def forward(grad: Tensor, grid: Tensor) -> Tensor:
        # only the shape of the images matters: the result does not depend on where the map is linearised
        images = torch.zeros_like(grad)
        wanted = [True, False]
        spread: Tensor = torch.ops.aten.grid_sampler_2d_backward(grad.contiguous(), images, grid, 0, 0, False, wanted)[
            0
        ]
        return spread

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (grid,) = ctx.saved_tensors
        return _Sample.apply(grad, grid), None  # type: ignore[no-untyped-call]


_DRAW: Mapping[str, Callable[[Augmentation, int, Size, torch.Generator], Tensor]] = MappingProxyType(
    {
        "color": _draw_color,
        "crop": _draw_crop,
        "cutout": _draw_cutout,
        "flip": _draw_flip,
        "scale": _draw_scale,
        "rotate": _draw_rotate,
    }
)
_APPLY: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = MappingProxyType(
    {"color": _color, "crop": _crop, "cutout": _cutout, "flip": _flip, "scale": _affine, "rotate": _affine}
)
