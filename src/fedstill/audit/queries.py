"""Several questions about one image: the image, its shifts by a pixel, and these mirrored.

Carlini et al. (IEEE S&P 2022) ask a network about augmented copies of an image, too, as it may have been trained on such. Here
pixels that a shift uncovers repeat the edge. A network that trains without augmentation has never seen the copies: they then tell
less.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product

import torch
from jaxtyping import Shaped
from torch import Tensor

from fedstill.data.shard import Shard

__all__ = ["MOST", "queries"]

_SHIFTS = ((0, 0), (0, 1), (0, -1), (1, 0), (-1, 0))  # rows, columns
_ALL = tuple((mirrored, *shift) for mirrored, shift in product((False, True), _SHIFTS))

MOST = len(_ALL)


def queries(shard: Shard, count: int) -> Iterator[Shard]:
    """The images as they are, and ``count`` − 1 copies of all of them; :data:`MOST` at most."""
    for mirrored, down, across in _ALL[:count]:
        images = shard.images.flip(3) if mirrored else shard.images
        yield replace(shard, images=_shifted(_shifted(images, 2, down), 3, across))


def _shifted(images: Shaped[Tensor, "n c h w"], axis: int, by: int) -> Shaped[Tensor, "n c h w"]:
    if not by:
        return images
    size = images.shape[axis]
    return images.index_select(axis, (torch.arange(size) - by).clamp(0, size - 1))
