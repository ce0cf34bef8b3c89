"""Convolutions by 3 × 3 kernels in a quarter of the multiplications, for processors whose libraries do not do so themselves.

    Y = Aᵀ ((G g Gᵀ) ⊙ (Bᵀ d B)) A                 F(4 × 4, 3 × 3) of Lavin and Gray (2016)

for tiles d of 6 × 6 pixels, which overlap by two, and 4 × 4 results of each: 36 multiplications where a direct sum takes 144.
Over channels ⊙ is one matrix product for each of the 36 places. The two-sided products are written as one with the Kronecker
square, on all tiles of all channels.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

__all__ = ["convolved", "is_worth_it"]

_OUT, _IN = 4, 6  # pixels a side of a tile's result, and of the tile
_BLOCK = 128  # channels of the result at a time
_FEW = 256  # channels, below which the transforms take what the products save

_B = (  # Bᵀ; its points are 0, 1, −1, 2, −2 and infinity
    (4, 0, -5, 0, 1, 0),
    (0, -4, -4, 1, 1, 0),
    (0, 4, -4, -1, 1, 0),
    (0, -2, -1, 2, 1, 0),
    (0, 2, -1, -2, 1, 0),
    (0, 4, 0, -5, 0, 1),
)
_G = (
    (1 / 4, 0, 0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0, 0, 1),
)
_A = (  # Aᵀ
    (1, 1, 1, 1, 1, 0),
    (0, 1, -1, 2, -2, 0),
    (0, 1, 1, 4, 4, 0),
    (0, 1, -1, 8, -8, 1),
)


def is_worth_it(x: Tensor, weight: Tensor) -> bool:
    """Whether :func:`convolved` may take the place of ``torch.nn.functional.conv2d``, and is faster."""
    return (
        x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.float64)
        and weight.shape[2:] == (3, 3)
        and min(weight.shape[:2]) >= _FEW
        and not (weight.requires_grad and torch.is_grad_enabled())
    )


def convolved(
    x: Float[Tensor, "n i h w"], weight: Float[Tensor, "o i 3 3"], *, padding: int
) -> Float[Tensor, "n o h2 w2"]:
    """``conv2d(x, weight, padding=padding)`` for a ``padding`` of 0, 1 or 2. Differentiable in x any number of times, and not
    in ``weight``."""
    made: Tensor = _Convolved.apply(x, weight, padding, False)  # type: ignore[no-untyped-call]
    return made


class _Convolved(torch.autograd.Function):
    """``is_back``: with the kernels turned over and the two channels' places exchanged, as a gradient needs it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, padding: int, is_back: bool) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.padding, ctx.is_back = padding, is_back
        return _product(x, weight, padding, is_back)

    @staticmethod
    def backward(ctx: Any, wanted: Tensor) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        pull: Tensor = _Convolved.apply(wanted, weight, 2 - ctx.padding, not ctx.is_back)  # type: ignore[no-untyped-call]
        return pull, None, None, None


def _product(x: Tensor, weight: Tensor, padding: int, is_back: bool) -> Tensor:
    height, width = (size + 2 * padding - 2 for size in x.shape[2:])
    down, across = -(-height // _OUT), -(-width // _OUT)
    right, below = (_OUT * tiles + 2 - padding - size for tiles, size in ((across, x.shape[3]), (down, x.shape[2])))
    padded = F.pad(x, [padding, right, padding, below])
    into, out = _square(_B, x), _square(_A, x)
    tiles = [_tiles(image, into) for image in padded]
    del padded
    made = x.new_empty(len(x), weight.shape[1] if is_back else weight.shape[0], height, width)
    # kernels are four times as large as weights, and results for them twice as large as images: some channels' at a time
    for first in range(0, made.shape[1], _BLOCK):
        block = slice(first, first + _BLOCK)
        kernels = _kernels(weight[:, block], True) if is_back else _kernels(weight[block], False)
        for image, result in zip(tiles, made, strict=True):
            pieces = (out @ (kernels @ image).flatten(1)).view(_OUT, _OUT, -1, down, across)
            whole = pieces.permute(2, 3, 0, 4, 1).reshape(-1, _OUT * down, _OUT * across)
            result[block] = whole[:, :height, :width]
    return made


def _tiles(image: Float[Tensor, "i h w"], transform: Tensor) -> Float[Tensor, "36 i tiles"]:
    tiles = image.unfold(1, _IN, _OUT).unfold(2, _IN, _OUT).permute(3, 4, 0, 1, 2)
    return (transform @ tiles.reshape(_IN**2, -1)).view(_IN**2, len(image), -1)


def _kernels(weight: Tensor, is_back: bool) -> Float[Tensor, "36 o i"]:
    transform = _square(_G, weight)
    made = (transform.flip(1) if is_back else transform) @ weight.reshape(-1, 9).T
    made = made.view(_IN**2, *weight.shape[:2])
    return made.transpose(1, 2) if is_back else made


def _square(matrix: tuple[tuple[float, ...], ...], like: Tensor) -> Tensor:
    """matrix ⊗ matrix: on both axes of a tile at once."""
    small = torch.tensor(matrix, dtype=torch.float64)
    return torch.kron(small, small).to(like)
