"""The last layer of a network, where it is a linear one: to give it other classes, or more of them.

classify(f) = f Wᵀ + b,    W [classes, d], b [classes]
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fedstill.bundle import Group
from fedstill.errors import InputError
from fedstill.models.architecture import Architecture
from fedstill.seeds import Seed

__all__ = ["LinearHead", "linear_head"]

_PROBE = Seed(("probe",))


@dataclass(frozen=True)
class LinearHead:
    """Where a network's state holds its linear head.

    Attributes:
        weight: name of W.
        bias: name of b.
        width: d, the length of a feature vector.
    """

    weight: str
    bias: str
    width: int

    def put(self, tensors: Group, weight: Float[Tensor, "k d"], bias: Float[Tensor, " k"]) -> dict[str, Tensor]:
        """``tensors`` with another head."""
        return {**tensors, self.weight: weight, self.bias: bias}

    def split(self, tensors: Group, classes: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """``tensors`` with the head of the first ``classes`` classes, and the other classes' rows as ``weight`` and ``bias``."""
        weight, bias = tensors[self.weight], tensors[self.bias]
        return self.put(tensors, weight[:classes], bias[:classes]), {"weight": weight[classes:], "bias": bias[classes:]}

    def join(self, tensors: Group, rows: Group) -> dict[str, Tensor]:
        """What :meth:`split` took apart."""
        return self.put(
            tensors,
            torch.cat([tensors[self.weight], rows["weight"]]),
            torch.cat([tensors[self.bias], rows["bias"]]),
        )


@lru_cache(maxsize=8)
def linear_head(architecture: Architecture, *, wanted_for: str) -> LinearHead:
    """The head of a network's ``classify``.

    Every network of the table has one. A user's own is tried out: the layer counts that gives what ``classify`` gives.

    Args:
        architecture: of the network.
        wanted_for: who needs it, for the error.

    Raises:
        InputError: ``classify`` is something else than one ``torch.nn.Linear`` with a bias; or as
            :meth:`Architecture.build`.
    """
    network = architecture.build(_PROBE).eval()
    with torch.inference_mode():
        width = network.features(torch.zeros(1, architecture.channels, *architecture.size)).shape[1]
        features = torch.randn(2, width, generator=_PROBE.torch())
        logits = network.classify(features)
        for name, layer in network.named_modules():
            fits = isinstance(layer, nn.Linear) and layer.bias is not None and layer.in_features == width
            if fits and torch.equal(layer(features), logits):
                place = f"{name}." if name else ""
                return LinearHead(f"{place}weight", f"{place}bias", width)
    raise InputError(
        f"{architecture.key}.name = '{architecture.name}': {wanted_for} needs a network whose classify is one "
        "torch.nn.Linear with a bias, and this one's is not; choose another network"
    )
