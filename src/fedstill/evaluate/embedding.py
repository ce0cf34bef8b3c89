"""t-SNE (van der Maaten & Hinton, JMLR 2008): a map of features on which near means alike, and far means little.

Whoever looks at it should know that clusters' sizes, and distances between clusters, are no measurements; for those there is
:mod:`fedstill.evaluate.mmd`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedstill.errors import InputError
from fedstill.seeds import Seed

__all__ = ["FEWEST", "PERPLEXITY", "Embedding", "tsne"]

PERPLEXITY = 30.0
FEWEST = 7
"""Fewest points: of so few each has two neighbours."""

COMPONENTS = 50


@dataclass(frozen=True)
class Embedding:
    """Points on the plane.

    Attributes:
        points: [n, 2], in the rows' order; units have no meaning.
        perplexity: about how many neighbours each point has.
    """

    points: NDArray[np.float64]
    perplexity: float


def tsne(features: NDArray[np.floating], *, perplexity: float = PERPLEXITY, seed: Seed) -> Embedding:
    """Map feature vectors [n, d] to the plane; the same seed gives the same map on the same machine.

    The first 50 principal components stand for features that have more; the first two are where the map begins.
    ``perplexity`` is at most (n − 1) / 3: a point cannot have more neighbours than there are.

    Raises:
        InputError: fewer than :data:`FEWEST` points, or all are the same.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    if len(features) < FEWEST:
        raise InputError(f"t-SNE: {len(features)} images are too few for a map, which takes {FEWEST} or more")
    rows = np.array(features, np.float64)
    rows -= rows.mean(0)
    spread = float(np.sqrt(np.square(rows).sum(1).mean()))
    if spread == 0:
        raise InputError("t-SNE: all images have the same features, so there is no map of them: use other features")
    rows /= spread  # a scale of one suits the solver; the map does not depend on it
    draw = seed.number % 2**32
    kept = min(COMPONENTS, rows.shape[1], len(rows) - 1)
    rows = PCA(kept, random_state=draw).fit_transform(rows)
    clipped = min(perplexity, (len(rows) - 1) / 3)
    # the first two components, small: distances between clusters then owe less to chance (Kobak & Berens 2021)
    start = np.pad(rows[:, :2], ((0, 0), (0, max(0, 2 - kept)))) / rows[:, 0].std() * 1e-4
    points = TSNE(perplexity=clipped, init=start.astype(np.float32), random_state=draw).fit_transform(rows)
    return Embedding(np.asarray(points, np.float64), clipped)
