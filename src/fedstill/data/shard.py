"""A Shard: images of one owner, their labels, and how they are normalised."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

__all__ = ["Normalisation", "Shard", "hard_labels"]


def hard_labels(labels: Shaped[Tensor, "n *classes"]) -> Int[Tensor, " n"]:
    """Classes: labels that are hard already, or the largest entry of soft ones, [n, classes]."""
    return labels if labels.dim() == 1 else labels.argmax(1)


@dataclass(frozen=True)
class Normalisation:
    """Per-channel affine map of pixel values in [0, 1]: (x − mean) / std.

    Attributes:
        mean: one number a channel.
        std: one positive number a channel.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def channels(self) -> int:
        return len(self.mean)

    def apply(self, pixels: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """Pixels in [0, 1] → network inputs."""
        mean, std = self._columns(pixels)
        return (pixels - mean) / std

    def undo(self, inputs: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """Network inputs → pixels in [0, 1]."""
        mean, std = self._columns(inputs)
        return inputs * std + mean

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
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))

    def inputs(self, rows: Tensor | slice = slice(None)) -> Float[Tensor, "n c h w"]:
        """Normalised float32 network inputs of ``rows``; the one place where pixels become inputs."""
        images = self.images[rows]
        pixels = images.float() / 255 if images.dtype == torch.uint8 else images
        return self.normalisation.apply(pixels)

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
