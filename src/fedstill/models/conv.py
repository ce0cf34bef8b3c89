"""ConvNet-d, the small network of dataset distillation (Gidaris & Komodakis 2018; Zhao et al. 2021)."""

from __future__ import annotations

from collections import OrderedDict
from typing import Annotated, Literal

from pydantic import Field
from torch import nn

from fedstill.models.layers import (
    Activation,
    Groups,
    Headed,
    MeanPool,
    Norm,
    Width,
    activation_layer,
    halvings,
    norm_layer,
)

__all__ = ["convnet"]


def convnet(
    *,
    channels: int,
    size: tuple[int, int],
    classes: int,
    depth: Annotated[int, Field(ge=1, le=10, description="blocks, each of which halves the image")] = 3,
    width: Width = 128,
    norm: Norm = "instance",
    groups: Groups = 8,
    activation: Activation = "relu",
    pooling: Literal["avg", "max"] = "avg",
) -> Headed:
    """``depth`` × [3×3 convolution, norm, activation, 2×2 pooling], then a linear layer on the flattened map.

    Features are [n, width · ⌊h / 2^depth⌋ · ⌊w / 2^depth⌋].

    Raises:
        ValueError: the image is too small for ``depth``, or ``groups`` does not divide ``width``.
    """
    deepest = halvings(size)
    if depth > deepest:
        shallower = f"depth <= {deepest} or " if deepest else ""
        raise ValueError(
            f"depth = {depth} halves {size[0]} x {size[1]} pixels below one: use {shallower}size >= {2**depth}"
        )
    body = nn.Sequential()
    for number in range(1, depth + 1):
        layers: OrderedDict[str, nn.Module] = OrderedDict(
            conv=nn.Conv2d(channels if number == 1 else width, width, kernel_size=3, padding=1),
            norm=norm_layer(norm, width, groups),
            activation=activation_layer(activation),
            pool=MeanPool() if pooling == "avg" else nn.MaxPool2d(2),
        )
        body.add_module(f"block{number}", nn.Sequential(layers))
    body.add_module("flatten", nn.Flatten())
    return Headed(body, nn.Linear(width * (size[0] >> depth) * (size[1] >> depth), classes))
