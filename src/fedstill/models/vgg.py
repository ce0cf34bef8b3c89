"""VGG11 with normalisation and one linear layer (Simonyan & Zisserman 2015, configuration A, as used on CIFAR)."""

from __future__ import annotations

from torch import nn

from fedstill.models.layers import Activation, Groups, Headed, Norm, Width, activation_layer, halvings, norm_layer

__all__ = ["vgg11"]

# feature channels of the convolutions before each pooling, in units of the width
_STAGES = ((1,), (2,), (4, 4), (8, 8), (8, 8))


def vgg11(
    *,
    channels: int,
    size: tuple[int, int],
    classes: int,
    width: Width = 64,
    norm: Norm = "instance",
    groups: Groups = 8,
    activation: Activation = "relu",
) -> Headed:
    """Eight 3×3 convolutions with norm and activation, in five stages that end in 2×2 max-pooling; a linear layer.

    Features are [n, 8 · width · ⌊h / 32⌋ · ⌊w / 32⌋].

    Raises:
        ValueError: the image has fewer than 32 pixels on a side, or ``groups`` does not divide ``width``.
    """
    smallest = 2 ** len(_STAGES)
    if halvings(size) < len(_STAGES):
        raise ValueError(
            f"it halves the image {len(_STAGES)} times, and {size[0]} x {size[1]} pixels are too few for that: "
            f"use size >= {smallest}"
        )
    body = nn.Sequential()
    before = channels
    for number, stage in enumerate(_STAGES, start=1):
        layers: list[nn.Module] = []
        for multiple in stage:
            after = multiple * width
            layers += [
                nn.Conv2d(before, after, kernel_size=3, padding=1),
                norm_layer(norm, after, groups),
                activation_layer(activation),
            ]
            before = after
        body.add_module(f"stage{number}", nn.Sequential(*layers, nn.MaxPool2d(2)))
    body.add_module("flatten", nn.Flatten())
    return Headed(body, nn.Linear(before * (size[0] // smallest) * (size[1] // smallest), classes))
