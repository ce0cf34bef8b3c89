"""Pixels as the simplest generator: one space, F0, whose latent is the image itself."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from fedstill.data.shard import Normalisation
from fedstill.errors import InputError
from fedstill.seeds import Seed

__all__ = ["Latent", "Pixels", "at_a_time"]

Latent = Mapping[str, Tensor]
"""A point in a latent space.

``"f"``: the feature map there, [n, c, h, w]. ``"w"``: the style vectors that are still ahead of it, [n, k, d]; absent
where none is.
"""


def at_a_time(generator: object, wanted: int) -> int:
    """Images that go through ``generator`` at a time: as many as ``wanted``, and no more than its ``chunk``, if it has one."""
    return min(wanted, int(getattr(generator, "chunk", wanted)))


class Pixels(nn.Module):
    """Images without a prior.

    A latent's ``"f"`` is in normalised units, as a network reads it: it starts as N(0, 1) there (FedDGM's released
    code), and a gradient with respect to it is one with respect to network inputs once the canvas has normalised again.

    Attributes:
        depth: 0, the only space.
        channels: channels of an image.
        size: height and width in pixels.
        classes: None, any number of classes.
    """

    def __init__(self, channels: int, size: tuple[int, int], normalisation: Normalisation) -> None:
        super().__init__()
        if normalisation.channels != channels:
            raise InputError(
                f"data.channels = {channels}, but the normalisation is for {normalisation.channels}: "
                "give one mean and one standard deviation a channel"
            )
        self.depth = 0
        self.classes: int | None = None
        self.channels = channels
        self.size = size
        self.normalisation = normalisation

    def draw(self, labels: Int[Tensor, " n"], seed: Seed) -> Latent:
        """Noise N(0, 1), drawn on the CPU and put where the labels are; the labels do not shape it."""
        noise = torch.randn(len(labels), self.channels, *self.size, generator=seed.torch())
        return {"f": noise.to(labels.device)}

    def lift(self, latent: Latent, space: int) -> Latent:
        """The latent itself: there is one space."""
        assert space == 0
        return latent

    def render(self, latent: Latent, space: int) -> Float[Tensor, "n c h w"]:
        """Images; 0 … 1 in pixel units becomes −1 … 1. Differentiable, not clamped."""
        assert space == 0
        return 2 * self.normalisation.undo(latent["f"]) - 1
