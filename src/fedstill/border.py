"""The border: what a client's reply must be, whatever the method, before the method reads it.

    finite:  every number, and every entry of every tensor of floating numbers
    near:    ‖reply − sent‖ ≤ farthest · max(1, ‖sent‖)

``sent`` are the networks of the message that the client got (groups ``model``). Networks of the reply are measured from these,
by name; what else is in a network's units (gradients, control variates, prototypes, an optimiser's state) by its own size. All
of it together is one vector. Images and statistics have no such measure: methods judge these themselves.

The bound is a guard against what is broken: bits that fell over, memory that was never written, a training that exploded and did
not notice. Its default, :data:`FARTHEST`, refuses no training that is of any use: such training moves a network by up to some
times its own norm (docs/hostile.md), and running variances of wild features by some thousands. It is no guard against who means
harm, for a step of ten times the norm ruins a mean. Who knows how far honest clients move may set it to a few times that;
:mod:`fedstill.algorithms.robust` has rules that withstand what is below any bound.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from fedstill.bundle import Bundle, Group

__all__ = ["FARTHEST", "refusal"]

FARTHEST = 1e6
"""In norms of what was sent."""

_NETWORK = "model"
_UNITS = (_NETWORK, "optimiser", "control", "gradient", "prototypes")


def refusal(reply: Bundle, sent: Callable[[], Bundle], *, farthest: float) -> str | None:
    """Why ``reply`` cannot be used, as a clause of a sentence; None where it can. ``sent`` makes the message that it answers."""
    if not reply.finite():
        return "its reply holds numbers that are not finite"
    # what is so near to nothing is near to all that may have been sent; to make that anew, and measure it, would cost time
    if _rough(reply) <= farthest / 2 - 1:
        return None
    networks = _groups(sent(), (_NETWORK,))
    size = _norm(*(_size(group, {}) for group in networks.values()))
    moved = _norm(*(_size(group, networks.get(name, {})) for name, group in _groups(reply, _UNITS).items()))
    if moved <= farthest * max(1.0, size):
        return None
    return (
        f"its reply lies {moved:.3g} from what it was sent, whose norm is {size:.3g}: that is more than farthest = {farthest:g} "
        "times as far"
    )


def _groups(bundle: Bundle, kinds: tuple[str, ...]) -> dict[str, Group]:
    return {name: group for name, group in bundle.groups.items() if name.partition(":")[0] in kinds}


def _rough(reply: Bundle) -> float:
    """‖reply‖ in its own types, to some digits; infinite where these are too small for it."""
    tensors = (tensor for group in _groups(reply, _UNITS).values() for tensor in group.values())
    return _norm(
        *(
            # there is no norm of numbers of 8 bits
            float(torch.linalg.vector_norm(tensor if tensor.element_size() > 1 else tensor.float()))
            for tensor in tensors
            if tensor.is_floating_point()
        )
    )


def _size(group: Group, start: Group) -> float:
    """‖group − start‖ over floating tensors; what has no like in ``start`` is taken as it is."""
    return _norm(*(_length(tensor, start.get(name)) for name, tensor in group.items() if tensor.is_floating_point()))


def _length(tensor: Tensor, start: Tensor | None) -> float:
    # in float64 throughout: the difference of two float32 numbers may be none
    end = tensor.double()
    if start is not None and start.shape == tensor.shape and start.dtype == tensor.dtype:
        end = end - start.to(end.device).double()
    return float(torch.linalg.vector_norm(end))


def _norm(*lengths: float) -> float:
    return math.hypot(*lengths)
