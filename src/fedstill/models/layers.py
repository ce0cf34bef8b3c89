"""What the networks share: normalisation, activation, and the class of all that end in one linear layer."""

from __future__ import annotations

from typing import Annotated, Literal, final

from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from fedstill.models.architecture import Network

__all__ = ["Activation", "Groups", "Headed", "Norm", "Width", "activation_layer", "halvings", "norm_layer"]

Activation = Literal["relu", "silu", "leaky_relu", "softplus", "gelu", "elu", "tanh"]
Norm = Literal["instance", "group", "batch", "none"]
Groups = Annotated[int, Field(ge=1, le=1024, description="groups of feature channels; norm = 'group' alone reads it")]
Width = Annotated[int, Field(ge=1, le=4096, description="feature channels of the first layer")]


@final
class Headed(Network):
    """A body that gives feature vectors, and a linear layer on them.

    Attributes:
        body: [n, c, h, w] → [n, d].
        head: [n, d] → [n, classes].
    """

    def __init__(self, body: nn.Module, head: nn.Linear) -> None:
        super().__init__()
        self.body = body
        self.head = head

    def features(self, inputs: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d"]:
        features: Tensor = self.body(inputs)
        return features

    def classify(self, features: Float[Tensor, "n d"]) -> Float[Tensor, "n classes"]:
        logits: Tensor = self.head(features)
        return logits


def activation_layer(name: Activation) -> nn.Module:
    """Softplus has β = 4: near ReLU and yet smooth. None works in place, so that all differentiate twice."""
    match name:
        case "relu":
            return nn.ReLU()
        case "silu":
            return nn.SiLU()
        case "leaky_relu":
            return nn.LeakyReLU()
        case "softplus":
            return nn.Softplus(beta=4)
        case "gelu":
            return nn.GELU()
        case "elu":
            return nn.ELU()
        case "tanh":
            return nn.Tanh()


def norm_layer(name: Norm, channels: int, groups: int) -> nn.Module:
    """``instance`` is GroupNorm with one channel a group, affine: the InstanceNorm of the distillation literature.

    Raises:
        ValueError: ``groups`` does not divide ``channels``.
    """
    match name:
        case "instance":
            return nn.GroupNorm(channels, channels)
        case "group":
            if channels % groups:
                raise ValueError(
                    f"groups = {groups} does not divide {channels} feature channels: use a divisor of them"
                )
            return nn.GroupNorm(groups, channels)
        case "batch":
            return nn.BatchNorm2d(channels)
        case "none":
            return nn.Identity()


def halvings(size: tuple[int, int]) -> int:
    """How often both sides can be halved, rounding down, with a pixel left."""
    return min(size).bit_length() - 1
