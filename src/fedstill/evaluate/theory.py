"""FedDGM's theory (Jia et al., ECCV 2024, section 4) as a measurement: does training on the union pull where the data pull?

The claim is that descent on the union of the distilled sets has the minimisers of descent on all clients' data, where a
common one exists. What can be seen of it along a run is the cosine between two gradients of the mean loss at the same
weights: on the round's synthetic union, and on all clients' training images.

Both are taken with hard labels on clean images, without the augmentation and the soft labels that training may use, in
evaluation mode (BatchNorm by its running statistics, no dropout), so that each is a mean over images and no draw enters it.

It needs every client's images in one place. So it is for simulations; a deployment, whose data stay where they are, refuses it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float64
from torch import Tensor
from torch.nn import functional as F

from fedstill.bundle import Bundle, Group
from fedstill.data.shard import Shard, hard_labels
from fedstill.models.architecture import Network
from fedstill.rounds import Trained, World

__all__ = ["Pull", "Theory", "compare", "mean_gradient"]

ROWS = 100
"""Images whose graph is held at a time."""


@dataclass(frozen=True)
class Theory:
    """Two gradients of the mean loss at two weights: *before* and *after* the server's training of the round.

    A cosine is None where a gradient is zero, or not finite.

    Attributes:
        cosine_before, cosine_after: between the union's gradient and that of all clients' training images.
        norm_real_before, norm_real_after: Euclidean norm of the latter.
        norm_union_before, norm_union_after: Euclidean norm of the former.
    """

    cosine_before: float | None
    cosine_after: float | None
    norm_real_before: float
    norm_union_before: float
    norm_real_after: float
    norm_union_after: float


@dataclass(frozen=True)
class Pull:
    """A gradient, and the weights at which it was taken. A round ends where the next begins: the real data's serves twice."""

    weights: Group
    gradient: Float64[Tensor, " parameters"]

    def holds(self, weights: Group) -> bool:
        """Whether it was taken at ``weights``."""
        return weights.keys() == self.weights.keys() and all(
            torch.equal(tensor, self.weights[name]) for name, tensor in weights.items()
        )


def compare(
    world: World, before: Bundle, after: Bundle, real: Sequence[Shard], *, device: str, known: Pull | None = None
) -> tuple[Theory | None, Pull | None]:
    """The two gradients at the weights that a round began and ended with: the ``model`` group's.

    Args:
        world: network, classes and normalisation, with which the algorithm trains on the union too.
        before, after: the server's state; the latter with the round's synthetic sets.
        real: all clients' training images.
        device: where to compute.
        known: what the round before gave, to take no gradient twice.

    Returns:
        The figures, None where the state has no ``model`` or no synthetic set; and the real data's gradient at ``after``.
    """
    union = _union(after, world)
    if union is None or "model" not in before.groups or "model" not in after.groups:
        return None, known
    ends = before.groups["model"], after.groups["model"]
    start = known if known is not None and known.holds(ends[0]) else _pull(world, ends[0], real, device)
    end = start if start.holds(ends[1]) else _pull(world, ends[1], real, device)
    (cosine_before, norm_real_before, norm_union_before), (cosine_after, norm_real_after, norm_union_after) = (
        _angle(pull.gradient, _pull(world, pull.weights, [union], device).gradient) for pull in (start, end)
    )
    theory = Theory(
        cosine_before=cosine_before,
        cosine_after=cosine_after,
        norm_real_before=norm_real_before,
        norm_union_before=norm_union_before,
        norm_real_after=norm_real_after,
        norm_union_after=norm_union_after,
    )
    return theory, end


def mean_gradient(network: Network, shards: Iterable[Shard], *, device: str) -> Float64[Tensor, " parameters"]:
    """Gradient of the mean cross-entropy over all rows of ``shards``, as one vector on the CPU.

    Sums are kept in float64, so that a million images lose nothing.
    """
    network = network.to(device).eval()
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    total = torch.zeros(sum(parameter.numel() for parameter in parameters), dtype=torch.float64)
    images = 0
    for shard in map(_hard, shards):
        for rows in torch.split(torch.arange(len(shard)), ROWS):
            labels = shard.labels[rows].to(device)
            loss = F.cross_entropy(network(shard.inputs(rows).to(device)), labels, reduction="sum")
            parts = torch.autograd.grad(loss, parameters, materialize_grads=True)
            # float64 is on the CPU: some accelerators have none
            total += torch.cat([part.flatten().cpu().double() for part in parts])
            images += len(rows)
    return total / max(1, images)


def _union(state: Bundle, world: World) -> Shard | None:
    """The round's synthetic sets as one; None where there are none."""
    # by name: a state that was written and read may hold them in another order, which would change the last bits
    sets = [group for _, group in sorted(state.members("synthetic").items())]
    shards = [_hard(Shard(each["images"], each["labels"], world.classes, world.normalisation)) for each in sets]
    return Shard.join(shards) if shards else None


def _pull(world: World, weights: Group, shards: Sequence[Shard], device: str) -> Pull:
    return Pull(weights, mean_gradient(Trained(world.architecture, weights).module(), shards, device=device))


def _hard(shard: Shard) -> Shard:
    return replace(shard, labels=hard_labels(shard.labels))


def _angle(one: Tensor, other: Tensor) -> tuple[float | None, float, float]:
    """Cosine, and both norms."""
    norms = one.norm().item(), other.norm().item()
    product = norms[0] * norms[1]
    cosine = torch.dot(one, other).item() / product if math.isfinite(product) and product > 0 else None
    return cosine, *norms
