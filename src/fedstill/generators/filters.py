"""Low-pass filters of alias-free synthesis, and resampling along an axis as a matrix.

After Karras et al., *Alias-Free Generative Adversarial Networks* (2021), appendix C: Kaiser windows; a sinc for filters
that work along the axes one by one, a jinc for those that are the same in every direction.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from scipy.signal import firwin, kaiser_atten, kaiser_beta
from scipy.special import j1
from torch import Tensor

__all__ = ["lowpass", "taps_matrix"]


def lowpass(
    taps: int, *, cutoff: float, half_width: float, rate: float, radial: bool = False
) -> Float[Tensor, " t"] | Float[Tensor, "t t"]:
    """A filter of gain 1 at frequency 0, in float64: [taps], or [taps, taps] where it is ``radial``.

    Args:
        taps: its length a side; even where it is radial.
        cutoff: where it has fallen to a half, in periods a unit of length.
        half_width: half of the band over which it falls, in the same unit.
        rate: samples a unit of length, at which it runs.
        radial: the same in every direction, instead of separable.
    """
    if not radial:
        return torch.from_numpy(firwin(taps, cutoff=cutoff, width=2 * half_width, fs=rate))
    assert taps % 2 == 0, "a radial filter has no tap at its centre, where its formula divides 0 by 0"
    places = (np.arange(taps) - (taps - 1) / 2) / rate
    radius = np.hypot(places[:, None], places)
    window = np.kaiser(taps, kaiser_beta(kaiser_atten(taps, 2 * half_width / (rate / 2))))
    values = j1(2 * np.pi * cutoff * radius) / (np.pi * radius) * window[:, None] * window
    return torch.from_numpy(values / values.sum())


def taps_matrix(
    kernel: Float[Tensor, " t"], *, rows: int, columns: int, row_step: int, column_step: int, offset: int
) -> Float[Tensor, "rows columns"]:
    """Entry (r, c) is ``kernel[r · row_step − c · column_step + offset]``, and 0 beyond the kernel's ends.

    Spreading by ``column_step`` and filtering, or filtering and keeping one of ``row_step``, is this matrix.
    """
    device = kernel.device
    places = (
        torch.arange(rows, device=device)[:, None] * row_step
        - torch.arange(columns, device=device) * column_step
        + offset
    )
    inside = (places >= 0) & (places < len(kernel))
    return torch.where(inside, kernel[places.clamp(0, len(kernel) - 1)], 0)
