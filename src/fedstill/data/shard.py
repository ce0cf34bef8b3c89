"""A Shard: images of one owner, their labels, and how they are normalised."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float, Int, Shaped, UInt8
from torch import Tensor

from fedstill.data.whitening import Whitening

__all__ = ["Normalisation", "Shard", "hard_labels", "quantised"]

_WHITENED = 1000  # rows in one product of matrices


def hard_labels(labels: Shaped[Tensor, "n *classes"]) -> Int[Tensor, " n"]:
    """Classes: labels that are hard already, or the largest entry of soft ones, [n, classes]."""
    return labels if labels.dim() == 1 else labels.argmax(1)


@dataclass(frozen=True)
class Normalisation:
    """How pixel values in [0, 1] become network inputs: (x − mean) / std by channel, and then whitening where there is one.

    Attributes:
        mean: one number a channel.
        std: one positive number a channel.
        whitening: of whole images; None as a rule. Where there is one, mean and std are 0 and 1 by custom.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    whitening: Whitening | None = field(default=None, repr=False)

    @property
    def channels(self) -> int:
        return len(self.mean)

    def apply(self, pixels: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """Pixels in [0, 1] → network inputs."""
        mean, std = self._columns(pixels)
        inputs = (pixels - mean) / std
        return inputs if self.whitening is None else self.whitening.apply(inputs)

    def undo(self, inputs: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """Network inputs → pixels in [0, 1]."""
        mean, std = self._columns(inputs)
        return (inputs if self.whitening is None else self.whitening.undo(inputs)) * std + mean

    def to(self, device: str | torch.device) -> Normalisation:
        """The same; a whitening's matrix lies on ``device`` then, instead of being carried there for every batch."""
        return self if self.whitening is None else replace(self, whitening=self.whitening.to(device))

    def agrees(self, other: Normalisation) -> bool:
        """Whether the two give a network the same inputs, but for the last bits of a whitening that was estimated anew."""
        mine, theirs = self.whitening, other.whitening
        if (self.mean, self.std) != (other.mean, other.std) or mine is None or theirs is None:
            return self == other
        return mine.near(theirs)

    def to_json(self) -> dict[str, Any]:
        """Plain values; of a whitening its ε alone."""
        plain = {"mean": list(self.mean), "std": list(self.std)}
        return plain if self.whitening is None else plain | {"zca_epsilon": self.whitening.epsilon}

    def _columns(self, like: Tensor) -> tuple[Tensor, Tensor]:
        return (like.new_tensor(self.mean).view(1, -1, 1, 1), like.new_tensor(self.std).view(1, -1, 1, 1))


@dataclass(frozen=True)
class Shard:
    """Images of one owner.

    Attributes:
        images: uint8 [n, c, h, w] in 0 … 255, as photographs come; or float [n, c, h, w] in units of the pixel range,
            0 … 1, as distilled images come (these may leave the range).
        labels: int64 [n], or float [n, classes] where labels are soft.
        classes: names of the classes; ``len(classes)`` is their number, whether all occur here or not.
        normalisation: travels with the images; nothing asks for a data set by name later on.
    """

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    normalisation: Normalisation

    def __len__(self) -> int:
        return self.images.shape[0]

    @property
    def channels(self) -> int:
        return self.images.shape[1]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.images.shape[2], self.images.shape[3]

    def take(self, indices: Sequence[int] | Int[Tensor, " k"]) -> Shard:
        """The rows at ``indices``, in that order."""
        rows = torch.as_tensor(indices, dtype=torch.long, device=self.images.device)
        return replace(self, images=self.images[rows], labels=self.labels[rows])

    def to(self, device: str | torch.device) -> Shard:
        """The same rows on ``device``."""
        return replace(
            self,
            images=self.images.to(device),
            labels=self.labels.to(device),
            normalisation=self.normalisation.to(device),
        )

    def inputs(self, rows: Tensor | slice = slice(None)) -> Float[Tensor, "n c h w"]:
        """Normalised float32 network inputs of ``rows``; the one place where pixels become inputs."""
        images = self.images[rows]
        pixels = images.float() / 255 if images.dtype == torch.uint8 else images
        return self.normalisation.apply(pixels)

    def whitened(self) -> Shard:
        """The same rows with a whitening done once, for whoever asks for their inputs again and again: float images that are
        network inputs already, four times the room of bytes. Itself where nothing whitens.
        """
        if self.normalisation.whitening is None:
            return self
        kind = self.images.dtype if self.images.is_floating_point() else torch.float32
        images = torch.empty(self.images.shape, dtype=kind, device=self.images.device)
        for start in range(0, len(self), _WHITENED):
            rows = slice(start, start + _WHITENED)
            images[rows] = self.inputs(rows)
        channels = self.normalisation.channels
        return replace(self, images=images, normalisation=Normalisation((0.0,) * channels, (1.0,) * channels))

    def histogram(self) -> list[int]:
        """Images a class (soft labels count for their largest entry)."""
        return torch.bincount(hard_labels(self.labels), minlength=len(self.classes)).tolist()

    @staticmethod
    def join(shards: Sequence[Shard]) -> Shard:
        """The rows of all, in order; classes and normalisation are the first one's and must agree."""
        first = shards[0]
        assert all(s.classes == first.classes and s.normalisation == first.normalisation for s in shards)
        return replace(
            first,
            images=torch.cat([shard.images for shard in shards]),
            labels=torch.cat([shard.labels for shard in shards]),
        )


def quantised(images: Float[Tensor, "n c h w"]) -> tuple[UInt8[Tensor, "n c h w"], int]:
    """Images in units of the pixel range → the nearest of 256 levels, and how many values lay beyond the first or the last."""
    levels = (images * 255).round()
    clipped = int(((levels < 0) | (levels > 255)).sum())
    return levels.clamp(0, 255).to(torch.uint8), clipped
