"""Distribution matching: images whose class means, in the feature space of many networks, are those of real images.

Zhao and Bilen, "Dataset Condensation with Distribution Matching" (WACV 2023), Eq. 4 and Algorithm 1; FedDM and FedLGD (Eq. 1)
build on it. At every step one network ψ is drawn and, for each class k, real images and one augmentation A_k:

    L = Σ_k ‖ mean_{x ∈ B_k} ψ(A_k(x))  −  mean_{s ∈ S_k} ψ(A_k(s)) ‖²

Symbols: ψ from ``networks``, B_k at most ``batch`` real images without replacement, S_k all synthetic images of class k, A_k from
``augmentation``: one choice of operation and strength for all images of a class, real and synthetic. With ``logits``, ψ(x) is the
features and the logits side by side, so that both differences are squared and added (FedDM). A class that has no real image or
no synthetic one adds nothing.

Networks are in evaluation mode and their parameters are fixed: ψ is a function of one image, whatever else is in the batch, and
no gradient for it is ever formed. Real images leave no graph. All classes go through ψ together, in chunks that suit the device.

Differential privacy
--------------------
With ``noise``, the real images are looked at through one Gaussian mechanism a class and step, and through nothing else:

    ψ(x) ← ψ(x) min(1, C / ‖ψ(x)‖)        for real and synthetic images alike
    mean over B_k ← ( Σ_{x ∈ B_k} ψ(A_k(x)) + N(0, σ² C² I) ) / min(batch, n_k)

where each of the n_k real images of the class joins B_k by itself with probability q_k = min(1, batch / n_k). Symbols: C
``clip``, σ ``multiplier``. Between two data sets of which one image's ψ is or is not replaced by zero, all that T steps give is
as private as T steps of DP-SGD with noise σ and sampling rate q = max_k q_k (:meth:`DistributionMatcher.look`), which is what
:func:`fedstill.privacy.epsilon_of` tells of:

1.  The image x that differs is in one class, k(x), of which n_k(x), and so q_k(x) and the divisor, are the same in both sets.
2.  Step t draws ψ and A_k from the seed, without a look at images; ψ may also hang on what earlier steps and rounds gave. Given
    all that, the sums of the other classes have the same distribution in both sets and are independent of that of k(x): they
    tell the two sets apart no better than nothing. Classes compose in parallel.
3.  Given the same, the sum of k(x) is a sum of vectors of length C at most over a Poisson sample of rate q_k(x), plus
    N(0, σ² C² I): the sampled Gaussian mechanism (Mironov, Talwar and Zhang 2019). Its Rényi divergences grow with the rate, so
    they are at most those at q.
4.  Steps compose adaptively: the divergences add up over T (Mironov, CSF 2017, Proposition 1).

Everything computed from these means is as private as they are. What it does not cover:

* n_k itself, which classes there are, and their number of images;
* what else is taken from the real images: a start from real images, :meth:`DistributionMatcher.loss`;
* whoever knows the seed: the noise is drawn from it so that a run can be repeated, and who can repeat it can take it off. A
  deployment gives each client a seed of its own that nobody else knows;
* floating-point attacks on the sampler (Mironov 2012).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Protocol

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from fedstill.data.augment import Augmentation, Drawn, apply
from fedstill.data.shard import Shard, hard_labels
from fedstill.distill.canvas import Canvas, Pull
from fedstill.distill.health import Health, descend
from fedstill.errors import InputError
from fedstill.models.architecture import Architecture, Network
from fedstill.models.layers import BATCH_NORMS, best_layout
from fedstill.privacy import Look, Sampling
from fedstill.seeds import Seed

__all__ = [
    "DistributionMatcher",
    "FreshNetworks",
    "NearbyNetworks",
    "Networks",
    "Noise",
    "draw_near",
    "has_batch_norm",
]

_CPU_CHUNK, _DEVICE_CHUNK = 32, 1024
"""Images that go through a network at a time: on a CPU few, so that a layer's output is still in the cache for the next one and
the allocator does not give it back to the system in between; elsewhere many."""


class Networks(Protocol):
    """Where ψ comes from."""

    def draw(self, seed: Seed) -> Network:
        """A network in evaluation mode whose parameters need no gradient; it is not changed by who gets it."""


@dataclass(frozen=True)
class FreshNetworks:
    """A network with random weights at every step, as in distribution matching's own paper.

    Not one with BatchNorm: its running statistics are of no image, so in evaluation mode it would normalise nothing; and by
    the statistics of a batch ψ were a function of the whole batch.
    """

    architecture: Architecture
    device: str = "cpu"

    def check(self) -> None:
        """Refuse BatchNorm, before a client works.

        Raises:
            InputError: the network has some; or as :meth:`Architecture.build`.
        """
        if has_batch_norm(self.architecture):
            raise InputError(
                f"matching with random networks: '{self.architecture.name}' has BatchNorm, which has seen no image there and "
                "normalises nothing; use another model.norm, or match with other networks (FedDM: algorithm.networks = "
                "'ball'; virtual images: virtual.networks = 'convnet')"
            )

    def draw(self, seed: Seed) -> Network:
        return _frozen(self.architecture.build(seed).to(self.device))


def has_batch_norm(architecture: Architecture) -> bool:
    """Whether any of its layers is BatchNorm."""
    return any(isinstance(layer, BATCH_NORMS) for layer in architecture.build(Seed.root(0)).modules())


@dataclass(frozen=True)
class NearbyNetworks:
    """A network in the ball of radius ρ around a given one: w = w_r + δ min(1, ρ / ‖δ‖), δ ~ N(0, I) over all parameters.

    Buffers are the centre's; so BatchNorm normalises as the centre does, and not at all where the centre has never been trained.
    In more than ρ² dimensions ‖δ‖ is practically always above ρ: the draw then lies on the sphere.

    Attributes:
        centre: the network with weights w_r, on the device where it is to work; not changed.
        radius: ρ; 0 is the centre itself.
    """

    centre: Network
    radius: float = 0.0

    def draw(self, seed: Seed) -> Network:
        network = _frozen(copy.deepcopy(self.centre))
        if self.radius == 0:
            return network
        generator = seed.torch()
        parameters = list(network.parameters())
        # drawn on the CPU: the same draw on every device
        noise = [torch.randn(parameter.shape, generator=generator) for parameter in parameters]
        length = math.sqrt(sum(part.square().sum(dtype=torch.float64).item() for part in noise))
        for parameter, part in zip(parameters, noise, strict=True):
            parameter.add_(part.to(parameter), alpha=min(1.0, self.radius / length))
        return network


@dataclass(frozen=True)
class Noise:
    """The Gaussian mechanism on what real images give.

    Attributes:
        clip: C, the largest norm of ψ(x).
        multiplier: σ, standard deviation of the noise in units of C.
    """

    clip: float
    multiplier: float


class _Part(NamedTuple):
    """Some classes of the synthetic images, and what they are to agree with."""

    network: Network
    rows: Int[Tensor, " n"]  # class by class
    counts: list[int]
    drawn: list[Drawn]
    wanted: Float[Tensor, "classes d"]


@dataclass(frozen=True)
class DistributionMatcher:
    """Pulls images so that their class means in feature space become those of ``real``.

    Images' labels may be soft: an image belongs to the class of its largest entry.

    Attributes:
        networks: where ψ is drawn from, one a step.
        real: real images; best on the device where the networks are.
        batch: real images a class and step; a class with fewer gives all it has.
        augmentation: A; drawn anew for each class and step.
        logits: match them beside the features.
        noise: makes each look at the real images differentially private; None looks at them as they are.
        chunk: images that go through a network at a time, synthetic ones by whole classes; None suits the device.
    """

    networks: Networks
    real: Shard
    batch: int = 256
    augmentation: Augmentation = Augmentation()
    logits: bool = False
    noise: Noise | None = None
    chunk: int | None = None

    def look(self, classes: Iterable[int], steps: int) -> Look:
        """How ``steps`` steps with noise look at the real images of ``classes``, one at least: at the worst class's rate."""
        return Look(max(Sampling(len(self._real[k]), self.batch).rate for k in classes), steps)

    def pull(
        self,
        images: Float[Tensor, "n c h w"],
        labels: Shaped[Tensor, "n *classes"],
        rate: float,
        seed: Seed,
    ) -> Pull:
        """L and its gradient at ``images`` (network inputs); ``rate`` is not used, there is no student."""
        images = images.detach()
        d_images = torch.zeros_like(images)
        losses: list[float] = []
        for part in self._parts(images, labels, seed):
            leaf = images[part.rows].requires_grad_()
            loss = self._miss(leaf, part)
            d_images[part.rows] = torch.autograd.grad(loss, leaf)[0]
            losses.append(loss.item())
        return Pull(sum(losses), d_images)

    @torch.no_grad()
    def loss(
        self,
        images: Float[Tensor, "n c h w"],
        labels: Shaped[Tensor, "n *classes"],
        rate: float,
        seed: Seed,
    ) -> float:
        """L alone, on the draws that :meth:`pull` would make from ``seed``."""
        return sum(self._miss(images[part.rows], part).item() for part in self._parts(images, labels, seed))

    def _parts(self, images: Tensor, labels: Tensor, seed: Seed) -> Iterator[_Part]:
        synthetic = _rows(labels)
        classes = [label for label in synthetic if label in self._real]
        if not classes:
            return
        network = self.networks.draw(seed.at("network"))
        size = (images.shape[2], images.shape[3])
        # the siamese form: one choice for all images of a class, on both sides
        drawn = {k: self.augmentation.draw(1, size, seed.at("augment", k).torch()) for k in classes}
        wanted = self._wanted(network, drawn, images, seed)
        for group in _groups({k: len(synthetic[k]) for k in classes}, self._chunk(images)):
            yield _Part(
                network=network,
                rows=torch.cat([synthetic[k] for k in group]),
                counts=[len(synthetic[k]) for k in group],
                drawn=[drawn[k] for k in group],
                wanted=torch.stack([wanted[k] for k in group]),
            )

    def _miss(self, images: Tensor, part: _Part) -> Tensor:
        """What the classes of ``part`` add to L, as a function of their images."""
        by_class = zip(torch.split(images, part.counts), part.drawn, strict=True)
        vectors = self._vectors(part.network, torch.cat([apply(mine, drawn) for mine, drawn in by_class]))
        found = torch.stack([mine.mean(0) for mine in torch.split(vectors, part.counts)])
        return (part.wanted - found).square().sum()

    @torch.no_grad()
    def _wanted(
        self, network: Network, drawn: Mapping[int, Drawn], like: Tensor, seed: Seed
    ) -> dict[int, Float[Tensor, " d"]]:
        """The real side of L, by class."""
        rows = {k: self._batch_rows(k, seed.at("real", k)) for k in drawn}
        batches = [apply(self.real.inputs(rows[k]).to(like), draw) for k, draw in drawn.items()]
        layout = best_layout(network, like.device)
        parts = torch.split(torch.cat(batches).contiguous(memory_format=layout), self._chunk(like))
        vectors = torch.cat([self._vectors(network, part) for part in parts])
        if self.noise is not None:
            # clipping cannot make it short: whether a sum is a number would tell of a single image, whatever the noise
            vectors[~vectors.isfinite().all(1)] = 0
        wanted: dict[int, Tensor] = {}
        for k, mine in zip(drawn, torch.split(vectors, [len(batch) for batch in batches]), strict=True):
            total = mine.sum(0)
            if self.noise is not None:
                draw = torch.randn(total.shape, generator=seed.at("noise", k).torch())
                total = total + self.noise.multiplier * self.noise.clip * draw.to(total)
            wanted[k] = total / min(self.batch, len(self._real[k]))
        return wanted

    def _batch_rows(self, label: int, seed: Seed) -> Int[Tensor, " b"]:
        rows = self._real[label]
        generator = seed.torch()
        if self.noise is None:
            chosen = torch.randperm(len(rows), generator=generator)[: self.batch]
        else:
            chosen = Sampling(len(rows), self.batch).draw(generator)
        return rows[chosen.to(rows.device)]

    def _vectors(self, network: Network, inputs: Tensor) -> Float[Tensor, "n d"]:
        """ψ."""
        vectors = network.features(inputs)
        if self.logits:
            vectors = torch.cat([vectors, network.classify(vectors)], 1)
        if self.noise is None:
            return vectors
        lengths = vectors.norm(dim=1, keepdim=True)
        # the synthetic side too: else equal images would not match
        scales: Tensor = self.noise.clip / lengths.clamp(min=self.noise.clip)
        return vectors * scales

    def _chunk(self, like: Tensor) -> int:
        return self.chunk or (_CPU_CHUNK if like.device.type == "cpu" else _DEVICE_CHUNK)

    @cached_property
    def _real(self) -> Mapping[int, Tensor]:
        return _rows(self.real.labels)


def draw_near(
    canvas: Canvas,
    matcher: DistributionMatcher,
    *,
    steps: int,
    seed: Seed,
    progress: Callable[[int, int], None] | None = None,
) -> Health | None:
    """Distil ``steps`` steps; ``canvas`` is moved in place.

    Args:
        canvas: the images.
        matcher: what they should agree with.
        steps: how many.
        seed: of the whole distillation; step n draws from ``seed.at("step", n)``.
        progress: ``progress(steps done, steps)``.

    Returns:
        How it went, with losses at both ends on one draw; None where the matcher is private, for a loss is one more look at the
        real images.

    Raises:
        RunError: the loss is no longer finite.
    """
    return descend(canvas, matcher, steps=steps, seed=seed, measured=matcher.noise is None, progress=progress)


def _rows(labels: Shaped[Tensor, "n *classes"]) -> dict[int, Tensor]:
    """Rows of each class that occurs, classes in order."""
    hard = hard_labels(labels)
    return {label: (hard == label).nonzero().flatten() for label in torch.unique(hard).tolist()}


def _groups(counts: Mapping[int, int], limit: int) -> Iterator[list[int]]:
    """Classes in order, as many together as have at most ``limit`` images; one with more stands alone."""
    group: list[int] = []
    for label, count in counts.items():
        if group and sum(counts[k] for k in group) + count > limit:
            yield group
            group = []
        group.append(label)
    yield group


def _frozen(network: Network) -> Network:
    return network.requires_grad_(False).eval()
