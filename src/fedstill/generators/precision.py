"""Features of 16 bits: which kinds there are, and gradients of any size through them.

float16 reaches from 6e-8 to 65504, and gradients of a matching loss may lie anywhere. A vector-Jacobian product is linear in
its vector: it goes in divided by its largest entry, and what comes out is multiplied by that.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import Tensor

__all__ = ["HALVES", "Passage", "Precision"]

Precision = Literal["float32", "bfloat16", "float16"]
"""Of a generator's features; weights and latents stay in float32."""

HALVES: Mapping[str, torch.dtype] = MappingProxyType({"bfloat16": torch.bfloat16, "float16": torch.float16})
"""The kinds of 16 bits."""


class Passage:
    """One pass through layers of 16 bits. All that enters it must leave through one tensor."""

    def __init__(self) -> None:
        self.size: Tensor | None = None

    def enter(self, x: Tensor) -> Tensor:
        """x; its gradient gets back the size that :meth:`leave` took off."""
        entered: Tensor = _Enter.apply(x, self)  # type: ignore[no-untyped-call]
        return entered

    def leave(self, x: Tensor) -> Tensor:
        """x; its gradient goes on with a largest entry of 1."""
        left: Tensor = _Leave.apply(x, self)  # type: ignore[no-untyped-call]
        return left


class _Enter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, passage: Passage) -> Tensor:
        ctx.passage = passage
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, wanted: Tensor) -> tuple[Tensor, None]:
        assert ctx.passage.size is not None, "gradients come from where the passage ends"
        return wanted * ctx.passage.size, None


class _Leave(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, passage: Passage) -> Tensor:
        ctx.passage = passage
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, wanted: Tensor) -> tuple[Tensor, None]:
        largest = wanted.detach().abs().amax()
        ctx.passage.size = torch.where(largest > 0, largest, 1)
        return wanted / ctx.passage.size, None
