"""ZCA whitening of images: all values of an image decorrelated, and turned as little as that allows.

Trajectory matching (Cazenavette et al., CVPR 2022) whitens CIFAR with it in part of its experiments. With μ and Σ the mean and
the covariance of the training images over all d = c·h·w values of an image, pixels in 0 … 1,

    x ↦ W (x − μ),    W = U diag(1 / √(λ + ε)) Uᵀ,    Σ = U diag(λ) Uᵀ

ε keeps what hardly varies from being blown up; 0.1 is what the published code has by way of Kornia.

μ and W are made of everybody's images: d + d(d + 1)/2 numbers of pooled data. A simulation holds all images and estimates them; a
real federation has to take them from public images or by a secure sum. They are outside every guarantee of differential privacy,
and no method's bytes count them.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Float, Float32, UInt8
from torch import Tensor

from fedstill.errors import InputError

__all__ = ["LARGEST", "TENSORS", "Whitening", "estimate", "pack", "unpack"]

LARGEST = 12288
"""Values of an image that are whitened: 64 × 64 × 3. Time grows with the cube of their number, memory with the square."""

TENSORS = ("zca_mean", "zca_matrix")
"""What :func:`pack` calls its tensors."""

_NEAR = 1e-5
"""Of the largest value, by which two estimates from the same images may differ."""

_EXACT = 1024
"""Rows whose products of bytes less 128 add up to 2²⁴ at most, so that float32 holds every sum exactly, in any order."""


@dataclass(frozen=True, eq=False)
class Whitening:
    """x ↦ W (x − μ), and back. Equal where μ, W and ε are, on whatever device.

    Attributes:
        mean: μ, float32 [d].
        matrix: W, float32 [d, d], symmetric and positive definite.
        inverse: W⁻¹, which is the root of Σ + ε I.
        epsilon: ε; what W was made with.
    """

    mean: Float32[Tensor, " d"]
    matrix: Float32[Tensor, "d d"]
    inverse: Float32[Tensor, "d d"]
    epsilon: float

    @property
    def values(self) -> int:
        """d."""
        return len(self.mean)

    def apply(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """Images → whitened images. Differentiable."""
        flat = images.flatten(1) - self.mean.to(images)
        return (flat @ self.matrix.to(images)).view_as(images)

    def undo(self, whitened: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """Whitened images → images. Differentiable."""
        flat = whitened.flatten(1) @ self.inverse.to(whitened)
        return (flat + self.mean.to(whitened)).view_as(whitened)

    def to(self, device: str | torch.device) -> Whitening:
        """The same on ``device``, where images are whitened without carrying W there each time."""
        matrix = self.matrix.to(device)
        if matrix is self.matrix:
            return self
        return replace(self, mean=self.mean.to(device), matrix=matrix, inverse=self.inverse.to(device))

    def near(self, other: Whitening) -> bool:
        """Whether both come of the same images: machines and numbers of threads differ in the last bits of W."""
        if (self.epsilon, self.values) != (other.epsilon, other.values):
            return False
        pairs = ((self.mean, other.mean), (self.matrix, other.matrix))
        return all(bool((one - two.to(one)).abs().max() <= _NEAR * one.abs().max()) for one, two in pairs)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the content."""
        told = hashlib.sha256(repr(self.epsilon).encode())
        for tensor in (self.mean, self.matrix):
            told.update(tensor.cpu().numpy().tobytes())
        return told.hexdigest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Whitening) and (self is other or self.digest == other.digest)

    def __hash__(self) -> int:
        return hash(self.digest)


def estimate(images: UInt8[Tensor, "n c h w"], epsilon: float) -> Whitening:
    """The whitening of these images; their covariance has the denominator n − 1.

    Sums are exact, as pixels are bytes, and the rest is in float64: of the machine are the last bits of the eigenvectors alone.

    Args:
        images: at least two.
        epsilon: ε, at least 1e-6, so that float32 can hold W and its inverse.

    Raises:
        InputError: there are fewer than two images, or they are larger than :data:`LARGEST`.
    """
    count, values = len(images), math.prod(images.shape[1:])
    if values > LARGEST:
        channels, height, width = images.shape[1:]
        raise InputError(
            f"data.zca = true: images of {channels} x {height} x {width} have {values:,} values, and ZCA whitening is for "
            f"{LARGEST:,} at most (64 x 64 in colour): set a smaller data.size, or data.zca = false"
        )
    if count < 2:
        raise InputError(
            f"data.zca = true: a covariance takes two training images at least, and there is {count}: raise data.limit, "
            "or set data.zca = false"
        )
    products = torch.zeros(values, values, dtype=torch.float64)
    sums = torch.zeros(values, dtype=torch.float64)
    for part in torch.split(images.flatten(1), _EXACT):
        centred = part.float() - 128
        products += centred.T @ centred
        sums += centred.sum(0)
    mean = sums / count
    covariance = (products - count * torch.outer(mean, mean)) / (count - 1) / 255**2
    spread, directions = torch.linalg.eigh(covariance)
    # rounding may leave what does not vary a little below zero
    matrix = (directions * (spread.clamp(min=0) + epsilon).rsqrt()) @ directions.T
    found = _made(((mean + 128) / 255).float(), _mirrored(matrix.float()), epsilon)
    assert found is not None  # float32 keeps W positive definite down to the least ε
    return found


def pack(whitening: Whitening) -> dict[str, Tensor]:
    """As tensors of a file, on the CPU: ``zca_mean`` [d] and ``zca_matrix`` [d(d + 1)/2], W's lower triangle row by row."""
    triangle = whitening.matrix.cpu().masked_select(_lower(whitening.values))
    return dict(zip(TENSORS, (whitening.mean.cpu().clone(), triangle), strict=True))


def unpack(tensors: Mapping[str, Tensor], *, shape: Sequence[int], epsilon: float, place: str) -> Whitening:
    """What :func:`pack` packed, checked before it is believed.

    Args:
        tensors: of a file.
        shape: channels, height and width of the images that it is for.
        epsilon: ε, as the file's card has it.
        place: the file, for errors.

    Raises:
        InputError: there is none, it is of another shape or type, is not finite, or cannot be undone.
    """
    values = math.prod(shape)
    kind = " x ".join(map(str, shape))
    if values > LARGEST:
        raise InputError(
            f"{place} is damaged: it says that ZCA whitens images of {kind}, and it takes {LARGEST:,} values at most"
        )
    wanted = {"zca_mean": values, "zca_matrix": values * (values + 1) // 2}
    for name, length in wanted.items():
        if name not in tensors:
            raise InputError(f"{place} is damaged: it says that ZCA whitens its images, and holds no {name}")
        given = tensors[name]
        if given.dtype != torch.float32 or tuple(given.shape) != (length,):
            found = f"{str(given.dtype).removeprefix('torch.')} {list(given.shape)}"
            raise InputError(f"{place} is damaged: its {name} is {found}, and images of {kind} take float32 [{length}]")
        if not bool(torch.isfinite(given).all()):
            raise InputError(f"{place} is damaged: its {name} is not finite")
    lower = torch.zeros(values, values).masked_scatter_(_lower(values), tensors["zca_matrix"])
    whitening = _made(tensors["zca_mean"].clone(), _mirrored(lower), epsilon)
    if whitening is None:
        raise InputError(
            f"{place} is damaged: its zca_matrix is not positive definite, so no image could be brought back"
        )
    return whitening


def _made(mean: Tensor, matrix: Tensor, epsilon: float) -> Whitening | None:
    """With the inverse of the matrix as it was rounded to float32, so that one undoes the other; None where it has none."""
    factor, failed = torch.linalg.cholesky_ex(matrix.double())
    if int(failed):
        return None
    inverse: Float32[Tensor, "d d"] = torch.cholesky_inverse(factor).float()
    return Whitening(mean, matrix, inverse, epsilon) if bool(torch.isfinite(inverse).all()) else None


def _lower(values: int) -> Tensor:
    return torch.ones(values, values, dtype=torch.bool).tril()


def _mirrored(matrix: Float[Tensor, "d d"]) -> Float[Tensor, "d d"]:
    """The symmetric matrix that has its lower triangle."""
    return matrix.tril() + matrix.tril(-1).T
