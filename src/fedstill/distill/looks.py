"""Distribution matching with one network, whose real images are looked at a few times only.

Where ψ is the same at every step and images are augmented, the real images' means differ with the draw of batch and augmentation,
and nothing exact can be kept from step to step. What can be had is another stochastic form of the same objective: ``count``
draws take turns, and the real means of each are taken once. In expectation over the draws L is the same. But the images meet
these draws alone: the fewer there are, the more of what is met is their chance.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from fedstill.distill.canvas import Pull
from fedstill.distill.distribution import DistributionMatcher, Look
from fedstill.seeds import Seed

__all__ = ["RepeatedLooks"]


@dataclass(frozen=True)
class RepeatedLooks:
    """A distribution matcher whose draws repeat: the real images are looked at ``count`` times in all.

    Attributes:
        matcher: with :class:`NearbyNetworks` of radius 0; images come with the same labels at every step.
        count: different draws; each step takes one of them by chance.
        seed: they are drawn from ``seed.at("look", number)``.
    """

    matcher: DistributionMatcher
    count: int
    seed: Seed

    def pull(
        self,
        images: Float[Tensor, "n c h w"],
        labels: Shaped[Tensor, "n *classes"],
        rate: float,
        seed: Seed,
    ) -> Pull:
        """As :meth:`DistributionMatcher.pull`, on the draw that ``seed`` chooses."""
        number = int(torch.randint(self.count, (), generator=seed.torch()))
        if number not in self._looks:
            self._looks[number] = self.matcher.look(images, labels, self.seed.at("look", number))
        return self.matcher.toward(self._looks[number], images, labels)

    def loss(
        self,
        images: Float[Tensor, "n c h w"],
        labels: Shaped[Tensor, "n *classes"],
        rate: float,
        seed: Seed,
    ) -> float:
        """L on a draw of its own, which is none of the ``count``."""
        return self.matcher.loss(images, labels, rate, seed)

    @cached_property
    def _looks(self) -> dict[int, Look | None]:
        return {}
