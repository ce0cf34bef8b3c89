"""Tensors in few bits: rounded at random to a grid so that the mean is right, and packed without a gap.

Stochastic rounding as in QSGD (Alistarh et al., NeurIPS 2017, Section 3.1), on a grid scaled by the tensor's largest entry as in
its experiments, not by its norm. A tensor v of d entries in b bits, with s = 2^(b−1) − 1 steps to each side of zero:

    m = max |v_i|,    q_i = ⌊s v_i / m + u_i⌋,  u_i uniform in [0, 1),    v̂_i = q_i m / s

so that E v̂_i = v_i, |v̂_i − v_i| < m / s and E ‖v̂ − v‖² ≤ d m² / 4 s². With b = 2 it is TernGrad's rounding to −m, 0, m (Wen et
al., NeurIPS 2017, Equation 3). What travels is q_i + s, from 0 to 2 s, in b bits each, highest bit first, and m as a float32: of
d entries ⌈d b / 8⌉ + 4 bytes.

Symbols: b ``bits``, m ``scale``.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Float, UInt8
from numpy.typing import NDArray
from torch import Tensor

from fedstill.errors import InputError
from fedstill.seeds import Seed

__all__ = ["LEAST", "MOST", "decode", "encode"]

LEAST, MOST = 2, 16
"""Bits an entry."""


def encode(values: Float[Tensor, "..."], bits: int, seed: Seed) -> tuple[UInt8[Tensor, " k"], Float[Tensor, " 1"]]:
    """The packed q + s, and m; ``values`` are finite.

    Raises:
        InputError: an entry is beyond the range of float32.
    """
    flat = values.detach().cpu().double().flatten()
    steps = _steps(bits)
    scale = _above(float(flat.abs().max())) if flat.numel() else torch.zeros(1)
    if not torch.isfinite(scale).all():
        raise InputError("the update holds numbers that are not finite, or too large for 32 bits")
    uniform = torch.rand(flat.shape, generator=seed.torch(), dtype=torch.float64)
    share = steps * flat / float(scale) if float(scale) else torch.zeros_like(flat)
    # u so near to 1 that the sum is rounded up would lead off the grid
    found = (share + uniform).floor().clamp(-steps, steps) + steps
    return torch.from_numpy(_packed(found.numpy().astype(np.uint16), bits)), scale


def decode(codes: Tensor, scale: Tensor, shape: torch.Size, bits: int) -> Float[Tensor, "..."]:
    """v̂ in float64. What arrived is a stranger's.

    Raises:
        InputError: it is no code of so many entries in so many bits; a clause of a sentence.
    """
    count, steps = math.prod(shape), _steps(bits)
    if codes.dtype != torch.uint8 or codes.shape != (size(count, bits),):
        raise InputError(f"it is no code of {count} entries in {bits} bits")
    if scale.dtype != torch.float32 or scale.shape != (1,) or not 0 <= float(scale) < math.inf:
        raise InputError("its scale is no finite float32 from 0 on")
    found = _unpacked(codes.cpu().numpy(), count, bits).astype(np.float64)
    if count and found.max() > 2 * steps:
        raise InputError(f"it holds a code above {2 * steps}, which {bits} bits do not stand for")
    return torch.from_numpy((found - steps) * (float(scale) / steps)).reshape(shape)


def size(count: int, bits: int) -> int:
    """Bytes of so many packed entries."""
    return -(-count * bits // 8)


def _steps(bits: int) -> int:
    assert LEAST <= bits <= MOST
    return (1 << (bits - 1)) - 1


def _above(largest: float) -> Float[Tensor, " 1"]:
    """The least float32 that is no smaller: by a smaller one, entries would lie off the grid."""
    if largest:
        largest = max(largest, torch.finfo(torch.float32).tiny)  # what is smaller, a processor may take for 0
    near = torch.tensor([largest], dtype=torch.float32)
    return near if float(near) >= largest else torch.nextafter(near, torch.tensor([math.inf]))


def _packed(values: NDArray[np.uint16], bits: int) -> NDArray[np.uint8]:
    octets = values.astype(">u2").view(np.uint8).reshape(-1, 2)
    return np.packbits(np.unpackbits(octets, axis=1)[:, 16 - bits :])


def _unpacked(octets: NDArray[np.uint8], count: int, bits: int) -> NDArray[np.uint16]:
    digits = np.zeros((count, 16), np.uint8)
    digits[:, 16 - bits :] = np.unpackbits(octets, count=count * bits).reshape(count, bits)
    return np.packbits(digits, axis=1).view(">u2").astype(np.uint16).reshape(count)
