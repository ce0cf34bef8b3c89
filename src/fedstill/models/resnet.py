"""ResNet18 and ResNet34 (He et al., *Deep Residual Learning for Image Recognition*, 2016), with basic blocks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Literal, final

from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from fedstill.models.layers import Activation, Groups, Headed, Norm, Width, activation_layer, norm_layer

__all__ = ["resnet18", "resnet34"]

Stem = Annotated[
    Literal["auto", "cifar", "imagenet"],
    Field(
        description="cifar: 3x3 convolution; imagenet: 7x7 with stride 2, then max-pooling; "
        "auto: imagenet where both sides have at least 64 pixels"
    ),
]
_IMAGENET_FROM = 64


def resnet18(
    *,
    channels: int,
    size: tuple[int, int],
    classes: int,
    width: Width = 64,
    stem: Stem = "auto",
    norm: Norm = "instance",
    groups: Groups = 8,
    activation: Activation = "relu",
) -> Headed:
    """Four stages of two basic blocks each, then the mean over the map and a linear layer. Features are [n, 8 · width].

    FedDGM's paper has ``stem = "cifar"`` at 32 pixels and ``"imagenet"`` at 128, which is what ``"auto"`` gives.

    Raises:
        ValueError: the image is too small for the norm, or ``groups`` does not divide ``width``.
    """
    return _resnet((2, 2, 2, 2), channels, size, classes, width, stem, norm, groups, activation)


def resnet34(
    *,
    channels: int,
    size: tuple[int, int],
    classes: int,
    width: Width = 64,
    stem: Stem = "auto",
    norm: Norm = "instance",
    groups: Groups = 8,
    activation: Activation = "relu",
) -> Headed:
    """Four stages of three, four, six and three basic blocks; else as :func:`resnet18`.

    FedDGM's released code has ``stem = "cifar"`` at 128 pixels too: 31 times the arithmetic of its ResNet18.

    Raises:
        ValueError: as :func:`resnet18`.
    """
    return _resnet((3, 4, 6, 3), channels, size, classes, width, stem, norm, groups, activation)


def _resnet(
    stages: Sequence[int],
    channels: int,
    size: tuple[int, int],
    classes: int,
    width: int,
    stem: Literal["auto", "cifar", "imagenet"],
    norm: Norm,
    groups: int,
    activation: Activation,
) -> Headed:
    imagenet = stem == "imagenet" or (stem == "auto" and min(size) >= _IMAGENET_FROM)
    _check_last_map(size, 2 ** (len(stages) - 1) * (4 if imagenet else 1), norm)
    entry: list[nn.Module] = [
        nn.Conv2d(channels, width, kernel_size=7, stride=2, padding=3, bias=norm == "none")
        if imagenet
        else nn.Conv2d(channels, width, kernel_size=3, padding=1, bias=norm == "none"),
        norm_layer(norm, width, groups),
        activation_layer(activation),
    ]
    if imagenet:
        entry.append(nn.MaxPool2d(kernel_size=3, stride=2, padding=1))
    body = nn.Sequential()
    body.add_module("stem", nn.Sequential(*entry))
    before = width
    for number, blocks in enumerate(stages):
        after = width * 2**number
        stage = [
            _Block(after if block else before, after, 2 if number and not block else 1, norm, groups, activation)
            for block in range(blocks)
        ]
        body.add_module(f"stage{number + 1}", nn.Sequential(*stage))
        before = after
    body.add_module("mean", nn.AdaptiveAvgPool2d(1))
    body.add_module("flatten", nn.Flatten())
    return Headed(body, nn.Linear(before, classes))


def _check_last_map(size: tuple[int, int], shrink: int, norm: Norm) -> None:
    # an instance of one pixel minus its own mean is zero: the network would not see its image
    if norm == "instance" and all(math.ceil(side / shrink) == 1 for side in size):
        raise ValueError(
            f"norm = 'instance' needs more than one pixel, and the last map of {size[0]} x {size[1]} pixels has one: "
            f"use size >= {shrink + 1} or norm = 'group'"
        )


@final
class _Block(nn.Module):
    """Two 3×3 convolutions beside a shortcut, which is a 1×1 convolution where the shape changes."""

    def __init__(self, before: int, after: int, stride: int, norm: Norm, groups: int, activation: Activation) -> None:
        super().__init__()
        bias = norm == "none"
        self.residual = nn.Sequential(
            nn.Conv2d(before, after, kernel_size=3, stride=stride, padding=1, bias=bias),
            norm_layer(norm, after, groups),
            activation_layer(activation),
            nn.Conv2d(after, after, kernel_size=3, padding=1, bias=bias),
            norm_layer(norm, after, groups),
        )
        self.shortcut: nn.Module = nn.Identity()
        if before != after or stride != 1:
            self.shortcut = nn.Sequential(
                nn.Conv2d(before, after, kernel_size=1, stride=stride, bias=bias),
                norm_layer(norm, after, groups),
            )
        self.activation = activation_layer(activation)

    def forward(self, inputs: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d h2 w2"]:
        outputs: Tensor = self.activation(self.residual(inputs) + self.shortcut(inputs))
        return outputs
