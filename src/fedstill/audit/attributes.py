"""How many images of which class a client holds, read off what it sent.

Of the mean cross-entropy the last layer's bias has the gradient

    ∂L/∂b_k = mean_i p_k(x_i) − h_k,    h_k the share of class k among the images

so a bias that rises is that of a class that the client holds. Two readings of an update, both from the last layer
alone:

* ``signs``: LLG (Wainakh et al., "User-level label leakage from gradients in federated learning", PoPETs 2022,
  Algorithm 1), on the change of the last layer's weights, each class's summed over features. Classes whose gradient is
  below zero count one image each; then the lowest counts one more, and rises by the impact of one image, until as many
  images are counted as the client has. It takes features at or above zero (after a ReLU), and needs neither step size
  nor steps. For a class or two that is held alone (iDLG, Zhao et al., arXiv 2001.02610) it is exact.
* ``bias``: the equation above, solved for h. Let P_ck be the mean prediction of class k for images of class c, so that
  p̄ = Pᵀ h; then (I − Pᵀ) h = −ḡ, by least squares with h ≥ 0 and Σ h = 1. ḡ is the mean gradient of the local steps,
  −Δb / (η Σ_t (1 − μ^t) / (1 − μ)) for T steps of size η with momentum μ; P comes of labelled images that the attacker has
  (LLG's authors use such, too), halfway between the network that was sent and the one that came back. It needs the client's
  training settings.

A distilled set shows its labels: the largest entry of each (``hard``) or their sum (``soft``). A message may carry
counts openly (``counts``), as FedProto's prototypes do.

What is read is measured by its total variation distance to the truth, ½ Σ_k |ĥ_k − h_k|: 0 is the histogram itself, 1
none of its classes. Beside it stands what guessing the mean histogram of all clients would give, which tells of no
client.

Symbols: η ``lr``, μ ``momentum``, h shares.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64, Int
from numpy.typing import NDArray
from scipy.optimize import nnls
from torch import Tensor

from fedstill.audit.resampling import mean_interval
from fedstill.audit.seen import Seen
from fedstill.bundle import Bundle
from fedstill.data.shard import Shard, hard_labels
from fedstill.errors import InputError
from fedstill.models.heads import linear_head
from fedstill.rounds import Desk, Trained
from fedstill.train import Recipe, predict

__all__ = [
    "ASSUMPTIONS",
    "CITATIONS",
    "attributes",
    "by_bias",
    "by_labels",
    "by_signs",
    "counts_told",
    "label_of_one",
    "labels_of",
]

CITATIONS = {
    "signs": "Wainakh et al., User-level label leakage from gradients in federated learning, PoPETs 2022",
    "bias": "the gradient of cross-entropy solved for the labels; with the attacker's own images as Wainakh et al., PoPETs 2022",
    "hard": "labels of the distilled set",
    "soft": "soft labels of the distilled set",
    "counts": "counts in the message",
}
ASSUMPTIONS = {
    "signs": "The attacker knows what was sent and received and how many images the client has, and the features before "
    "the last layer are not negative.",
    "bias": "The attacker knows what was sent and received, how the client trains and how many images it has; nothing but "
    "cross-entropy on these images moves the last layer's bias; and the attacker has "
    "labelled images of its own, which the network predicts on average as it does the client's of the same class.",
    "hard": "The attacker has the client's distilled set and takes its classes to be as frequent as the client's.",
    "soft": "The attacker has the client's distilled set and takes its soft labels to sum up as the client's classes do.",
    "counts": "The attacker reads the message.",
}

_HEAVY = 100.0
Shares = Float64[Tensor, " classes"]


def by_signs(what: Seen, *, images: int) -> Shares:
    """LLG.

    Args:
        what: the client's message.
        images: how many the client has.

    Raises:
        InputError: the message moves no last layer, or the network has no linear one.
    """
    _, weights = _last(what)
    slopes = -weights.sum(1)
    found = torch.zeros_like(slopes)
    negative = slopes < 0
    impact = slopes[negative].sum() * (1 + 1 / len(slopes)) / images
    found[negative] = 1
    slopes = torch.where(negative, slopes - impact, slopes)
    for _ in range(images - int(negative.sum())):
        lowest = slopes.argmin()
        found[lowest] += 1
        slopes[lowest] -= impact
    return found / found.sum()


def by_bias(what: Seen, *, images: int, local: Recipe, probe: Shard, desk: Desk) -> Shares:
    """The histogram that explains by how much the last layer's bias moved.

    Args:
        what: the client's message.
        images: how many the client has.
        local: how it trains.
        probe: labelled images that the attacker has; for a class that has none, P is the mean over all.
        desk: where to compute; nothing is drawn.

    Raises:
        InputError: as :func:`by_signs`.
    """
    bias, _ = _last(what)
    steps = local.epochs * -(-images // local.batch)
    t = torch.arange(1, steps + 1, dtype=torch.float64)
    reach = local.lr * ((1 - local.momentum**t) / (1 - local.momentum)).sum()
    before = what.received.tensors
    halfway = {
        name: tensor + what.change[name].to(tensor) / 2 if name in what.change else tensor
        for name, tensor in before.items()
    }
    network = Trained(what.received.architecture, halfway).module()
    means = _class_means(predict(network, probe, device=desk.device).double().softmax(1), hard_labels(probe.labels))
    rows = torch.eye(len(bias), dtype=torch.float64) - means.T
    # the last row is the sum, heavy enough to hold beside the others
    system = torch.cat([rows, torch.full((1, len(bias)), _HEAVY, dtype=torch.float64)])
    wanted = torch.cat([bias / reach, torch.tensor([_HEAVY], dtype=torch.float64)])
    shares = torch.from_numpy(nnls(system.numpy(), wanted.numpy())[0])
    return shares / shares.sum()


def by_labels(distilled: Shard, *, soft: bool) -> Shares:
    """Of a distilled set: the sum of its soft labels, or how many have which as their largest entry.

    Raises:
        InputError: the set is empty.
    """
    if not len(distilled):
        raise InputError("attributes: the distilled set is empty, so its labels tell nothing")
    labels = distilled.labels.cpu()
    if soft and labels.dim() == 2:
        found = labels.double().clamp(min=0).sum(0)
    else:
        found = torch.bincount(hard_labels(labels), minlength=len(distilled.classes)).double()
    return found / found.sum()


def counts_told(reply: Bundle, classes: int) -> Shares | None:
    """The histogram that a message carries openly, as counts by class in a group; None where it carries none."""
    for group in reply.groups.values():
        counts = group.get("counts")
        if counts is not None and tuple(counts.shape) == (classes,) and counts.sum() > 0:
            return counts.double() / counts.sum()
    return None


def label_of_one(what: Seen) -> int:
    """The label of the only image behind an update: the class whose bias rose most (iDLG).

    Raises:
        InputError: as :func:`by_signs`.
    """
    return int(_last(what)[0].argmax())


def labels_of(shares: Shares, images: int) -> Int[Tensor, " images"]:
    """So many labels in these shares, by largest remainder, rising."""
    wanted = shares * images
    counts = wanted.floor().long()
    rest = (wanted - counts).argsort(descending=True, stable=True)[: images - int(counts.sum())]
    counts[rest] += 1
    return torch.arange(len(shares)).repeat_interleave(counts)


def attributes(
    read: Mapping[str, Mapping[str, Shares]], true: Mapping[str, Sequence[int]], *, desk: Desk
) -> dict[str, Any]:
    """How near the readings come to the truth.

    Args:
        read: by reading's name, then client: shares.
        true: images by class of each client, of all that take part.
        desk: its seed is the intervals'.

    Returns:
        By reading: ``clients`` (each with its ``distance``, and that of the ``guess``), ``distance`` and ``guess`` (means),
        ``gain`` (mean of guess − distance: above zero, the reading tells more than nothing), its ``interval`` over clients,
        and the shares that were ``read`` beside the ``true`` ones.

    Raises:
        InputError: a client has no image.
    """
    if empty := [client for client, counts in true.items() if not sum(counts)]:
        raise InputError(f"attributes: client '{empty[0]}' has no image, so it has no histogram to be read")
    truth = {client: np.asarray(counts, np.float64) / sum(counts) for client, counts in true.items()}
    guess = np.mean(list(truth.values()), axis=0)
    found: dict[str, Any] = {}
    for done, (name, shares) in enumerate(read.items()):
        told = {client: each.numpy() for client, each in shares.items()}
        distances = np.array([_distance(told[client], truth[client]) for client in told])
        guesses = np.array([_distance(guess, truth[client]) for client in told])
        found[name] = {
            "clients": {
                client: {"distance": float(near), "guess": float(far)}
                for client, near, far in zip(told, distances, guesses, strict=True)
            },
            "distance": float(distances.mean()),
            "guess": float(guesses.mean()),
            "gain": float((guesses - distances).mean()),
            "interval": mean_interval(guesses - distances, seed=desk.seed.at(name)),
            "read": {client: each.tolist() for client, each in told.items()},
            "true": {client: truth[client].tolist() for client in told},
        }
        desk.progress("attributes", done + 1, len(read))
    return found


def _class_means(predicted: Tensor, labels: Tensor) -> Tensor:
    """P, [classes, classes]."""
    held = [predicted[labels.cpu() == k] for k in range(predicted.shape[1])]
    return torch.stack([rows.mean(0) if len(rows) else predicted.mean(0) for rows in held])


def _distance(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    return float(np.abs(a - b).sum() / 2)


def _last(what: Seen) -> tuple[Tensor, Tensor]:
    """By how much the last layer's bias and weights moved, in float64."""
    head = linear_head(what.received.architecture, wanted_for="reading classes off an update")
    if not {head.weight, head.bias} <= what.change.keys():
        raise InputError("attributes: the message holds no last layer, so no class can be read off it")
    bias, weight = what.change[head.bias].double(), what.change[head.weight].double()
    if not bool(bias.any()):
        raise InputError("attributes: the message leaves the last layer as it was, so no class can be read off it")
    return bias, weight
