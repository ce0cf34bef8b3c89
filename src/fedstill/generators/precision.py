"""Features of 16 bits: which kinds there are, and gradients of any size through them.

float16 reaches from 6e-8 to 65504, and gradients of a matching loss may lie anywhere. A vector-Jacobian product is linear in
its vector: each image's part goes in divided by its largest entry, and what comes out for that image is multiplied by that.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["HALVES", "Passage", "Precision"]

Precision = Literal["float32", "bfloat16", "float16"]
"""Of a generator's features; weights and latents stay in float32."""

HALVES: Mapping[str, torch.dtype] = MappingProxyType({"bfloat16": torch.bfloat16, "float16": torch.float16})
"""The kinds of 16 bits."""


class Passage:
    """One pass through layers of 16 bits, of images that do not look at each other.

    All that enters it, [n, …], must leave through one tensor, [n, …].
    """

    def __init__(self) -> None:
        self.sizes: Tensor | None = None  # [n]

    def enter(self, x: Tensor) -> Tensor:
        """x; its gradient gets back the sizes that :meth:`leave` took off."""
        entered: Tensor = _Enter.apply(x, self)  # type: ignore[no-untyped-call]
        return entered

    def leave(self, x: Tensor) -> Tensor:
        """x; its gradient goes on with a largest entry of 1 for each image."""
        left: Tensor = _Leave.apply(x, self)  # type: ignore[no-untyped-call]
        return left


class _Enter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, passage: Passage) -> Tensor:
        ctx.passage = passage
        return x.view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, wanted: Tensor) -> tuple[Tensor, None]:
        assert ctx.passage.sizes is not None, "gradients come from where the passage ends"
        return wanted * _like(ctx.passage.sizes, wanted), None


class _Leave(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, passage: Passage) -> Tensor:
        ctx.passage = passage
        return x.view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, wanted: Tensor) -> tuple[Tensor, None]:
        largest = wanted.abs().flatten(1).amax(1)
        ctx.passage.sizes = torch.where(largest > 0, largest, 1)
        return wanted / _like(ctx.passage.sizes, wanted), None


def _like(sizes: Tensor, x: Tensor) -> Tensor:
    """[n] → [n, 1, …], of as many axes as x has."""
    return sizes.view(-1, *[1] * (x.ndim - 1))
