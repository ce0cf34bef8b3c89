"""Loss terms of FedLGD's clients, who train on images of their own and on images that all share, side by side in one shard."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from fedstill.bundle import Group
from fedstill.data.shard import Shard, hard_labels
from fedstill.losses import discrepancy, supervised_contrast
from fedstill.models.architecture import Network
from fedstill.train import SCORING_BATCH, Batch, classification_loss

__all__ = ["Anchors", "Contribution"]


@dataclass(frozen=True)
class Anchors:
    """λ R: draws the features of a batch to those of the shared images.

    The batch's own shared images take part with the features that they have there; the others are added. So every image counts
    once.

    Attributes:
        shared: images that all share; in the shard that is trained on they follow ``own`` others.
        own: how many images come before them.
        kind: of R.
        features: of shared images that are not in the batch: ``exact``, from the network in training, with a gradient; ``kept``,
            as they were when the image was last in a batch, or else as ``received`` gives them, without one.
        weight: λ.
        temperature, reduction: of the contrast.
        received: the network that arrived, in evaluation mode.
    """

    shared: Shard
    own: int
    kind: Literal["contrast", "mmd"]
    features: Literal["exact", "kept"]
    weight: float
    temperature: float
    reduction: Literal["mean", "sum"]
    received: Network

    def __call__(self, batch: Batch) -> Float[Tensor, ""]:
        """λ R of a step; ``kept`` features are renewed by it."""
        places = batch.rows - self.own
        within = places >= 0
        outside = torch.ones(len(self.shared), dtype=torch.bool, device=places.device)
        outside[places[within]] = False
        others = self._features(batch, outside.nonzero()[:, 0])
        if self.features == "kept":
            self._kept[places[within]] = batch.features[within].detach()
        if self.kind == "mmd":
            mine = batch.features[~within]
            if len(mine) == 0:
                return 0.0 * batch.features.sum()
            return self.weight * discrepancy(mine, torch.cat([batch.features[within], others]))
        labels = torch.cat([hard_labels(batch.labels), self._labels[outside]])
        return self.weight * supervised_contrast(
            torch.cat([batch.features, others]), labels, temperature=self.temperature, reduction=self.reduction
        )

    def _features(self, batch: Batch, rows: Tensor) -> Tensor:
        if len(rows) == 0:
            return batch.features[:0]
        if self.features == "kept":
            return self._kept[rows]
        return batch.network.features(self.shared.inputs(rows))

    @cached_property
    def _labels(self) -> Tensor:
        return hard_labels(self.shared.labels)

    @cached_property
    def _kept(self) -> Tensor:
        """Features of every shared image, the newest that there are."""
        with torch.no_grad():
            parts = torch.split(torch.arange(len(self.shared), device=self.shared.images.device), SCORING_BATCH)
            return torch.cat([self.received.features(self.shared.inputs(part)) for part in parts])


class Contribution:
    """A term of nothing that looks on: what the first ``own`` images of the shard contribute to the gradient.

    Attributes:
        total: sum over the steps of the gradients of their share of the cross-entropy, by parameter, on the CPU.
    """

    def __init__(self, own: int) -> None:
        self._own = own
        self.total: Group = {}

    def __call__(self, batch: Batch) -> Float[Tensor, ""]:
        """Zero."""
        mine = batch.rows < self._own
        loss = classification_loss(batch.logits[mine], batch.labels[mine]) if mine.any() else 0.0 * batch.logits.sum()
        # the batch's loss is a mean over all its images
        share = loss * mine.sum() / len(mine)
        parts = torch.autograd.grad(share, tuple(batch.params.values()), retain_graph=True, materialize_grads=True)
        self.total = {
            name: part.cpu() + self.total[name] if self.total else part.cpu()
            for name, part in zip(batch.params, parts, strict=True)
        }
        return batch.logits.new_zeros(())
