"""What a classifier gets right and how far its probabilities can be trusted: counts, from which every figure follows.

Counts of several owners add up to the counts of all their images. So one type is what a client sends of its own images and
what the server finds on the common test images. They are no rows; but a matrix's row sums are how many test images of each
class a client holds, and where a class or a bin has one image, what is counted there is that image's guess or probability. A
client sends them where it has test images of its own, and only then.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float64, Int64
from torch import Tensor, nn

from fedstill.bundle import Group
from fedstill.data.shard import Shard, hard_labels
from fedstill.errors import InputError
from fedstill.train import predict

__all__ = ["BINS", "MOST", "OWN_TEST", "Scores", "score"]

BINS = 15
"""Of the calibration error, as Guo et al. (2017) use them."""

OWN_TEST = "statistics:test"
"""Group in which a client sends the scores of its own test images."""

MOST = 2**40
"""Images that a message may claim: sums of many such claims stay exact."""

_ROUNDING = 1e-9  # of a sum of confidences, relative


@dataclass(frozen=True)
class Scores:
    """Counts of a classifier's predictions.

    Figures are None where there is no image to take them from.

    Attributes:
        confusion: images by true class (row) and predicted class (column).
        bins: by interval of the largest probability, ((m − 1) / 15, m / 15]: images, sum of their largest probabilities,
            images that are labelled correctly.
    """

    confusion: Int64[Tensor, "classes classes"]
    bins: Float64[Tensor, "15 3"]

    @classmethod
    def read(cls, group: Group, *, classes: int) -> Scores:
        """What :meth:`group` wrote, as it may come from a stranger.

        Raises:
            InputError: these are no counts over ``classes`` classes: names, shapes, types, signs or sums are wrong.
        """
        confusion, bins = group.get("confusion"), group.get("bins")
        if confusion is None or bins is None or len(group) != 2:
            raise InputError(f"its scores hold {sorted(group)} where 'bins' and 'confusion' are due")
        for name, tensor, shape, kind in (
            ("confusion", confusion, (classes, classes), torch.int64),
            ("bins", bins, (BINS, 3), torch.float64),
        ):
            if tuple(tensor.shape) != shape or tensor.dtype != kind:
                raise InputError(
                    f"its scores' '{name}' is {tensor.dtype} {list(tensor.shape)} where {kind} {list(shape)} is due"
                )
        scores = cls(confusion, bins)
        if (wrong := scores._wrong()) is not None:
            raise InputError(f"its scores are no counts: {wrong}")
        return scores

    def _wrong(self) -> str | None:
        """Why these cannot be counts; None where they can."""
        count, confidence, right = self.bins.unbind(1)
        if not torch.isfinite(self.bins).all():
            return "they hold numbers that are not finite"
        if self.confusion.min() < 0 or self.bins.min() < 0:
            return "some are negative"
        if max(self.confusion.double().sum(), count.sum()) > MOST:
            return f"they claim more than {MOST} images"
        if not (torch.equal(count, count.round()) and torch.equal(right, right.round())) or (right > count).any():
            return "a bin's images are no whole number, or more of them are right than there are"
        if int(count.sum()) != self.examples or int(right.sum()) != self.correct:
            return "the bins and the confusion matrix do not agree"
        upper = torch.arange(1, BINS + 1, dtype=torch.float64) / BINS
        slack = _ROUNDING * count
        if ((confidence > upper * count + slack) | (confidence < (upper - 1 / BINS) * count - slack)).any():
            return "a bin's confidence lies outside the bin"
        return None

    def group(self) -> Group:
        """As a message carries them; :meth:`read` reads it."""
        return {"confusion": self.confusion, "bins": self.bins}

    def __add__(self, other: Scores) -> Scores:
        """The counts of both."""
        return Scores(self.confusion + other.confusion, self.bins + other.bins)

    @property
    def examples(self) -> int:
        return int(self.confusion.sum())

    @property
    def correct(self) -> int:
        return int(self.confusion.trace())

    @property
    def accuracy(self) -> float | None:
        """Share of images labelled correctly."""
        return self.correct / self.examples if self.examples else None

    @property
    def per_class(self) -> tuple[float | None, ...]:
        """Recall by class: the share of its images labelled correctly; None for a class without images."""
        held = self.confusion.sum(1).tolist()
        right = self.confusion.diagonal().tolist()
        return tuple(hits / images if images else None for hits, images in zip(right, held, strict=True))

    @property
    def balanced_accuracy(self) -> float | None:
        """Mean recall over the classes that occur."""
        recalls = [recall for recall in self.per_class if recall is not None]
        return sum(recalls) / len(recalls) if recalls else None

    @property
    def calibration_error(self) -> float | None:
        """Expected calibration error, 0 … 1: Σ_m |B_m| / n · |acc(B_m) − conf(B_m)| over 15 equal-width bins B_m of the
        largest probability (Guo et al., "On Calibration of Modern Neural Networks", 2017, eq. 3)."""
        count, confidence, right = self.bins.unbind(1)
        total = count.sum().item()
        return (right - confidence).abs().sum().item() / total if total else None


def score(network: nn.Module, shard: Shard, *, device: str = "cpu") -> Scores:
    """Counts over ``shard``: clean images, evaluation mode; a soft label counts for its largest entry.

    A probability that is no number, of a network whose weights are no longer usable, makes the calibration error NaN.
    """
    logits = predict(network, shard, device=device).double()
    labels = hard_labels(shard.labels).cpu()
    classes = len(shard.classes)
    guesses = logits.argmax(1)
    confidence = logits.softmax(1).amax(1)
    edges = torch.arange(1, BINS, dtype=torch.float64) / BINS
    places = torch.bucketize(confidence, edges)  # edges[m - 1] < confidence <= edges[m]
    right = (guesses == labels).double()
    bins = torch.zeros(BINS, 3, dtype=torch.float64)
    bins.index_add_(0, places, torch.stack([torch.ones_like(confidence), confidence, right], 1))
    confusion = torch.bincount(labels * classes + guesses, minlength=classes**2).view(classes, classes)
    return Scores(confusion, bins)
