"""The critic of adversarial training: a projection discriminator of packs of images.

Miyato and Koyama, *cGANs with Projection Discriminator* (2018), on equalised layers. It judges several images of one
class together, so that it notices where a class has lost its variety: the aim of Lin et al., *PacGAN* (2018), by the
means of Karras et al., *Progressive Growing of GANs* (2018), the spread of features over images. Packs are judged by
themselves, without batch statistics: :mod:`fedstill.generators.train` relies on that.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from fedstill.generators.style import Dense, leaky

__all__ = ["Discriminator"]

_EPS = 1e-8


class Discriminator(nn.Module):
    """Images [n · pack, channels, size, size] → logits [n]: positive where it holds a pack for real.

    A pack is ``pack`` images in a row, of one class: ``labels`` [n] has a label a pack. A vector φ of features votes
    a(φ) + ⟨e(y), φ⟩ / √d: whether it is real, and whether it is of its class. There is one vector an image, whose votes
    are averaged, and one for the standard deviation of all features over the pack.
    """

    def __init__(self, channels: int, size: int, classes: int, *, width: int, pack: int) -> None:
        super().__init__()
        self.pack = pack
        self.trunk = nn.ModuleList(
            [
                Convolution(channels, width),
                Convolution(width, width),
                Convolution(width, 2 * width, down=True),
                Convolution(2 * width, 2 * width),
                Convolution(2 * width, 3 * width, down=True),
                Convolution(3 * width, 3 * width),
            ]
        )
        inputs = 3 * width * (size // 4) ** 2
        self.image = Vote(inputs, 4 * width, classes)
        self.spread = Vote(inputs, 4 * width, classes) if pack > 1 else None

    def forward(self, images: Float[Tensor, "n_pack c h w"], labels: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        x = images
        for layer in self.trunk:
            x = layer(x)
        packs = x.reshape(len(labels), self.pack, -1)
        votes = self.image(packs.flatten(0, 1), labels.repeat_interleave(self.pack)).view(-1, self.pack)
        logits: Tensor = votes.mean(1)
        if self.spread is not None:
            deviation = (packs.var(1, correction=0) + _EPS).sqrt()
            logits = logits + self.spread(deviation, labels)
        return logits


class Vote(nn.Module):
    """x [n, inputs] → φ [n, features] → a(φ) + ⟨e(y), φ⟩ / √features, [n]."""

    def __init__(self, inputs: int, features: int, classes: int) -> None:
        super().__init__()
        self.dense = Dense(inputs, features)
        self.realness = Dense(features, 1)
        self.embedding = nn.Embedding(classes, features)

    def forward(self, x: Float[Tensor, "n i"], labels: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        features = leaky(self.dense(x))
        projection = (self.embedding(labels) * features).sum(1) / math.sqrt(features.shape[1])
        vote: Tensor = self.realness(features)[:, 0] + projection
        return vote


class Convolution(nn.Module):
    """An equalised 3 × 3 convolution and leaky ReLU; ``down`` halves the size before it."""

    def __init__(self, inputs: int, outputs: int, *, down: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, 3, 3))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.gain = 1 / math.sqrt(9 * inputs)
        self.down = down

    def forward(self, x: Float[Tensor, "n i h w"]) -> Float[Tensor, "n o h2 w2"]:
        if self.down:
            x = F.avg_pool2d(x, 2)
        return leaky(F.conv2d(x, self.weight * self.gain, self.bias, padding=1))
