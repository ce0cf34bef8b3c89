"""The filtered non-linearity of alias-free synthesis, in little time and memory.

    v = U x Uᵀ         spread by ``up``, padded or cropped, filtered
    a = clamp(leaky v)
    y = D a Dᵀ         filtered, one of ``down`` kept

Along an axis each of the two resamplings is one small matrix. ``v`` is many times larger than x and y: a few channels' part is
made at a time, which stays in the processor's cache. The gradient needs all of ``a``. It is kept where an image's is small, which
saves a fifth of the time that x and the gradient take together; elsewhere it is made again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from fedstill.generators.filters import taps_matrix

__all__ = ["Resampling", "filtered", "kept"]

_CPU_TILE = 2**19  # numbers of v at a time: 2 MB, a core's cache
_DEVICE_TILE = 2**27
_KEPT = 2**24  # numbers of a that are kept for an image's gradient at most: 64 MB in float32


@dataclass(frozen=True, kw_only=True)
class Resampling:
    """Sizes of one filtered non-linearity, and what it does to a value.

    Attributes:
        inputs: pixels a side of x.
        outputs: pixels a side of y.
        up: factor of the first resampling.
        down: factor of the second one.
        up_taps: length of the first one's filter; 1 where there is none.
        down_taps: length of the second one's filter a side; 1 where there is none.
        slope: of the leaky ReLU below 0; 1 for none.
        gain: its factor.
        clamp: largest absolute value after it; None for any.
    """

    inputs: int
    outputs: int
    up: int
    down: int
    up_taps: int
    down_taps: int
    slope: float
    gain: float
    clamp: float | None

    @property
    def wide(self) -> int:
        """Pixels a side of v: what the second filter needs to make ``outputs`` of them."""
        return (self.outputs - 1) * self.down + self.down_taps

    @property
    def before(self) -> int:
        """Zeros in front of the spread pixels; below 0 so many are cut off."""
        total = self.wide + self.up_taps - 1 - self.inputs * self.up
        return (total + self.up) // 2

    def up_matrix(self, kernel: Tensor | None, like: Tensor) -> Float[Tensor, "wide inputs"] | None:
        """U; None where it would be the identity."""
        if kernel is None and self.up == 1 and self.wide == self.inputs:
            return None
        taps = like.new_ones(1) if kernel is None else kernel
        return taps_matrix(
            taps.to(like) * self.up,
            rows=self.wide,
            columns=self.inputs,
            row_step=1,
            column_step=self.up,
            offset=self.up_taps - 1 - self.before,
        )

    def down_matrix(self, kernel: Tensor | None, like: Tensor) -> Float[Tensor, "outputs wide"] | None:
        """D; None where it would be the identity."""
        if kernel is None and self.down == 1:
            return None
        taps = like.new_ones(1) if kernel is None else kernel
        return taps_matrix(
            taps.to(like),
            rows=self.outputs,
            columns=self.wide,
            row_step=self.down,
            column_step=1,
            offset=self.down_taps - 1,
        )


def kept(resampling: Resampling, channels: int) -> int:
    """Numbers that :func:`filtered` keeps of one image for its gradient, beside its arguments."""
    numbers = channels * resampling.wide**2
    return numbers if numbers <= _KEPT else 0


def filtered(
    x: Float[Tensor, "n c h w"],
    scale: Float[Tensor, "n c"],
    bias: Float[Tensor, " c"],
    up_filter: Float[Tensor, " t"] | None,
    down_filter: Float[Tensor, " s"] | Float[Tensor, "s s"] | None,
    resampling: Resampling,
) -> Float[Tensor, "n c h2 w2"]:
    """The filtered non-linearity of ``x · scale + bias``, differentiable in these three, with the bits of ``x``.

    A ``down_filter`` of two dimensions is taken as it is, one of one dimension along both axes. The first derivative takes
    little memory; a second one keeps all that is made on the way.
    """
    is_kept = (
        torch.is_grad_enabled()
        and any(each.requires_grad for each in (x, scale, bias))
        and bool(kept(resampling, x.shape[1]))
    )
    result: Tensor = _Filtered.apply(x, scale, bias, up_filter, down_filter, resampling, is_kept)  # type: ignore[no-untyped-call]
    return result


class _Filtered(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        scale: Tensor,
        bias: Tensor,
        up_filter: Tensor | None,
        down_filter: Tensor | None,
        resampling: Resampling,
        is_kept: bool,
    ) -> Tensor:
        steps = _Steps.of(x, up_filter, down_filter, resampling)
        made = x.new_empty(x.shape[0] * x.shape[1], resampling.outputs, resampling.outputs)
        bent = x.new_empty(len(made), resampling.wide, resampling.wide) if is_kept else None
        planes, scales, biases = _planes(x, scale, bias)
        for tile in _tiles(len(planes), resampling.wide**2, x.device):
            there = None if bent is None else bent[tile]
            made[tile] = steps.down(steps.bend_(steps.up(planes[tile], scales[tile], biases[tile], out=there)))
        ctx.save_for_backward(x, scale, bias, up_filter, down_filter, bent)
        ctx.resampling = resampling
        return made.view(*x.shape[:2], resampling.outputs, resampling.outputs)

    @staticmethod
    def backward(ctx: Any, wanted: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, bias, up_filter, down_filter, bent = ctx.saved_tensors
        resampling: Resampling = ctx.resampling
        steps = _Steps.of(x, up_filter, down_filter, resampling)
        if torch.is_grad_enabled():  # a derivative of the gradient is wanted too
            return (*_gradients(ctx.needs_input_grad, x, scale, bias, steps, wanted), *_NO_GRADIENTS)
        planes, scales, biases = _planes(x, scale, bias)
        pulls = wanted.reshape(len(planes), resampling.outputs, resampling.outputs)
        d_planes, d_scales, d_biases = (
            torch.empty_like(planes),
            scale.new_empty(scales.shape),
            scale.new_empty(biases.shape),
        )
        for tile in _tiles(len(planes), resampling.wide**2, x.device):
            part = bent[tile] if bent is not None else steps.bend_(steps.up(planes[tile], scales[tile], biases[tile]))
            pull = steps.up_transposed(steps.bend_transposed(part, steps.down_transposed(pulls[tile])))
            d_scales[tile] = (pull * planes[tile]).sum((1, 2), keepdim=True, dtype=scale.dtype)
            d_biases[tile] = pull.sum((1, 2), keepdim=True, dtype=scale.dtype)
            torch.mul(pull, scales[tile], out=d_planes[tile])
        return d_planes.view_as(x), d_scales.view_as(scale), d_biases.view_as(scale).sum(0), *_NO_GRADIENTS


_NO_GRADIENTS = (None,) * 4  # of the filters, the sizes, and whether a is kept


@dataclass(frozen=True)
class _Steps:
    """The three steps on [planes, h, w], and their transposes."""

    resampling: Resampling
    spread: Tensor | None
    gather: Tensor | None
    kernel: Tensor | None  # of two dimensions; then there is no ``gather``

    @classmethod
    def of(cls, like: Tensor, up_filter: Tensor | None, down_filter: Tensor | None, resampling: Resampling) -> _Steps:
        spread = resampling.up_matrix(up_filter, like)
        if down_filter is not None and down_filter.ndim == 2:
            # torch correlates: a convolution turns the filter over
            return cls(resampling, spread, None, down_filter.to(like).flip(0, 1).contiguous())
        return cls(resampling, spread, resampling.down_matrix(down_filter, like), None)

    def up(self, x: Tensor, scale: Tensor, bias: Tensor, *, out: Tensor | None = None) -> Tensor:
        # leaky ReLU commutes with a positive gain, which costs least here
        gain = self.resampling.gain
        if self.spread is None:
            return torch.addcmul(bias * gain, x, scale * gain, out=out)
        across = torch.addcmul(bias * gain, x, scale * gain) @ self.spread.T
        return torch.matmul(self.spread, across, out=out)

    def up_transposed(self, pull: Tensor) -> Tensor:
        small = pull if self.spread is None else self.spread.T @ (pull @ self.spread)
        return small * self.resampling.gain

    def bend(self, wide: Tensor) -> Tensor:
        slope, clamp = self.resampling.slope, self.resampling.clamp
        bent = wide if slope == 1 else F.leaky_relu(wide, slope)
        return bent if clamp is None else bent.clamp(-clamp, clamp)

    def bend_(self, wide: Tensor) -> Tensor:
        """In place."""
        slope, clamp = self.resampling.slope, self.resampling.clamp
        bent = wide if slope == 1 else F.leaky_relu_(wide, slope)
        return bent if clamp is None else bent.clamp_(-clamp, clamp)

    def bend_transposed(self, bent: Tensor, pull: Tensor) -> Tensor:
        slope, clamp = self.resampling.slope, self.resampling.clamp
        if clamp is not None:  # torch's own kernels: masks and torch.where take ten times as long
            pull = torch.ops.aten.hardtanh_backward(pull, bent, -clamp, clamp)
        return pull if slope == 1 else torch.ops.aten.leaky_relu_backward(pull, bent, slope, True)

    def down(self, wide: Tensor) -> Tensor:
        if self.kernel is not None:
            groups = len(wide)
            kernels = self.kernel.expand(groups, 1, -1, -1)
            return F.conv2d(wide[None], kernels, stride=self.resampling.down, groups=groups)[0]
        return wide if self.gather is None else self.gather @ (wide @ self.gather.T)

    def down_transposed(self, pull: Tensor) -> Tensor:
        if self.kernel is not None:
            groups = len(pull)
            kernels = self.kernel.expand(groups, 1, -1, -1)
            return F.conv_transpose2d(pull[None], kernels, stride=self.resampling.down, groups=groups)[0]
        return pull if self.gather is None else self.gather.T @ (pull @ self.gather)


def _gradients(
    needed: Sequence[bool], x: Tensor, scale: Tensor, bias: Tensor, steps: _Steps, wanted: Tensor
) -> Iterator[Tensor | None]:
    """The gradients for x, scale and bias with a graph, in as much memory as that takes."""
    planes, scales, biases = _planes(x, scale, bias)
    made = steps.down(steps.bend(steps.up(planes, scales, biases)))
    inputs = [tensor for tensor, is_needed in zip((x, scale, bias), needed, strict=False) if is_needed]
    found = iter(torch.autograd.grad(made, inputs, wanted.reshape(made.shape), create_graph=True))
    return (next(found) if is_needed else None for is_needed in needed[:3])


def _planes(x: Tensor, scale: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Images and channels as one axis: x [p, h, w], scale and bias [p, 1, 1]."""
    planes = x.reshape(-1, *x.shape[2:]).contiguous()
    scales, biases = (each.reshape(-1, 1, 1).to(x.dtype) for each in (scale, bias.expand_as(scale)))
    return planes, scales, biases


def _tiles(planes: int, numbers: int, device: torch.device) -> Iterator[slice]:
    size = max(1, (_CPU_TILE if device.type == "cpu" else _DEVICE_TILE) // numbers)
    for first in range(0, planes, size):
        yield slice(first, first + size)
