"""Gradient matching: images on which the loss has the gradient that other images have.

FedLGD (Huang et al., TMLR, Eq. 5–6), after Zhao et al., "Dataset Condensation with Gradient Matching" (ICLR 2021, Eq. 8):

    L = Σ_layers Σ_rows  1 − ⟨g_r, ḡ_r⟩ / (‖g_r‖ ‖ḡ_r‖),      g = ∂CE(images; θ) / ∂θ

A layer is a parameter of two or more dimensions, a row what leads to one of its outputs (a filter of a convolution, a row of a
matrix); parameters of one dimension (biases, scales of norms) are not matched. A row without direction, in g or in ḡ, adds 1 and
pulls at nothing. Only directions are compared, so ḡ may be in any unit.

Symbols: θ the ``network``'s parameters, ḡ ``target``.

The gradient of L is exact, by a double backward pass: g with a graph, then ∂L/∂images through it. Nothing else is formed: no
gradient for a parameter that is not matched, and none of L for θ. The network is in evaluation mode, so that g is a sum over
images. More than ``chunk`` of them are taken in two passes: g without a graph, and v = ∂L/∂g; then,
a chunk at a time, ∂⟨g, v⟩/∂images. Memory is then one chunk's, for a third more time.

θ and ḡ stay, the images move, and g has to be taken anew at every step: the mathematics allows nothing to be kept from step to
step.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.func import functional_call

from fedstill.bundle import Group
from fedstill.distill.canvas import Pull
from fedstill.models.architecture import Network
from fedstill.seeds import Seed
from fedstill.train import classification_loss

__all__ = ["GradientMatcher"]

LEAST = 1e-12
"""A row whose norm is not above this has no direction."""


@dataclass(frozen=True)
class GradientMatcher:
    """Pulls images so that the gradient of their mean cross-entropy has the direction of ``target``, row by row.

    Attributes:
        network: with parameters θ, on the device where the images are; not changed.
        target: ḡ, by parameter name; a parameter that it does not hold is not matched.
        chunk: images whose graph is built at a time; None: all.
    """

    network: Network
    target: Group
    chunk: int | None = None

    @property
    def rows(self) -> int:
        """Rows that are compared."""
        return sum(len(self.target[name]) for name in self._names)

    @property
    def parameters(self) -> int:
        """Trainable numbers of the network, matched or not."""
        return sum(parameter.numel() for parameter in self.network.parameters())

    def pull(
        self,
        images: Float[Tensor, "n c h w"],
        labels: Shaped[Tensor, "n *classes"],
        rate: float,
        seed: Seed,
    ) -> Pull:
        """L and its gradient at ``images`` (network inputs); ``rate`` and ``seed`` are not used: nothing is drawn."""
        leaves = [part.clone().requires_grad_() for part in self._split(images.detach())]
        if len(leaves) == 1:
            loss = self._distance(next(self._gradients(leaves, labels, graph=True)))
            return Pull(loss.item(), torch.autograd.grad(loss, leaves)[0])
        total = tuple(part.requires_grad_() for part in _total(self._gradients(leaves, labels, graph=False)))
        loss = self._distance(total)
        v = torch.autograd.grad(loss, total)
        pulls = [
            torch.autograd.grad(gradient, leaf, v)[0]
            for leaf, gradient in zip(leaves, self._gradients(leaves, labels, graph=True), strict=True)
        ]
        return Pull(loss.item(), torch.cat(pulls))

    def loss(
        self,
        images: Float[Tensor, "n c h w"],
        labels: Shaped[Tensor, "n *classes"],
        rate: float,
        seed: Seed,
    ) -> float:
        """L alone."""
        return self._distance(_total(self._gradients(self._split(images.detach()), labels, graph=False))).item()

    def _gradients(self, parts: Sequence[Tensor], labels: Tensor, *, graph: bool) -> Iterator[tuple[Tensor, ...]]:
        """What each part of the images adds to g, by matched parameter."""
        total = len(labels)
        for images, mine in zip(parts, torch.split(labels, self.chunk or total), strict=True):
            theta = {name: self._theta[name].detach().requires_grad_() for name in self._names}
            logits = functional_call(self._student, theta, (images,))
            loss = classification_loss(logits, mine) * (len(mine) / total)
            yield torch.autograd.grad(loss, tuple(theta.values()), create_graph=graph, materialize_grads=True)

    def _distance(self, gradient: Sequence[Tensor]) -> Float[Tensor, ""]:
        terms = []
        for name, mine in zip(self._names, gradient, strict=True):
            g, wanted = mine.flatten(1), self.target[name].to(mine).flatten(1)
            lengths = [torch.linalg.vector_norm(rows, dim=1) for rows in (g, wanted)]
            directed = (lengths[0] > LEAST) & (lengths[1] > LEAST)
            product = torch.where(directed, lengths[0] * lengths[1], 1.0)
            terms.append((1 - torch.where(directed, (g * wanted).sum(1) / product, 0.0)).sum())
        return torch.stack(terms).sum()

    def _split(self, images: Tensor) -> Sequence[Tensor]:
        return torch.split(images, self.chunk or len(images))

    @cached_property
    def _student(self) -> Network:
        return copy.deepcopy(self.network).requires_grad_(False).eval()

    @cached_property
    def _theta(self) -> dict[str, Tensor]:
        return dict(self._student.named_parameters())

    @cached_property
    def _names(self) -> tuple[str, ...]:
        """Parameters that are matched."""
        held = self.network.named_parameters()
        return tuple(name for name, tensor in held if tensor.dim() > 1 and name in self.target)


def _total(parts: Iterator[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    total = next(parts)
    for part in parts:
        total = tuple(a + b for a, b in zip(total, part, strict=True))
    return total
