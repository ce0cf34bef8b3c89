"""Matchers: what distilled images should agree with.

Trajectory matching (Cazenavette et al., CVPR 2022; FedDGM, Eq. 2)
------------------------------------------------------------------
A student starts at θ_0 and takes T steps on the synthetic images,

    θ_{i+1} = θ_i − η g(θ_i, x_i),     g = ∂ℓ/∂θ,     x_i = A_i(images[b_i]),

and the images are to bring it to where real data brought the network, θ*:

    L = ‖θ_T − θ*‖² / ‖θ_0 − θ*‖².

The exact gradient needs no unrolled graph. Keep the visited θ_i (vectors, no graph), then walk back with
v_T = 2(θ_T − θ*) / ‖θ_0 − θ*‖². For i = T−1 … 0, with s_i = ⟨g(θ_i, x_i), v_{i+1}⟩,

    ∂L/∂images −= η ∂s_i/∂images,     ∂L/∂η −= s_i,     v_i = v_{i+1} − η ∂s_i/∂θ_i.

Memory is one student step plus T parameter vectors. Leaving out the last term (v_i = v_T for all i) holds every θ_i constant:
the *truncated* gradient, which the released code of FedDGM computes.

Symbols: θ_0 ``start``, θ* ``target``, T ``steps``, η ``rate``, A_i ``augmentation``, b_i rows of ``batch`` images.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from torch.func import functional_call

from fedstill.bundle import Group
from fedstill.data.augment import Augmentation, Drawn, apply
from fedstill.distill.canvas import Pull
from fedstill.models.architecture import Architecture
from fedstill.seeds import Seed
from fedstill.train import classification_loss

__all__ = ["TrajectoryMatcher", "preferred_gradient"]

Theta = tuple[Tensor, ...]


class _Move(NamedTuple):
    """What the student's step i is taken on; the same in the forward and in the backward pass."""

    rows: Int[Tensor, " b"] | None  # None: all of them
    drawn: Drawn
    seed: Seed  # of dropout


@dataclass(frozen=True)
class TrajectoryMatcher:
    """Pulls images so that a student trained on them goes from ``start`` to ``target``.

    Attributes:
        network: the student's architecture; its own parameters are not used.
        start: θ_0, by parameter name; buffers may be among them.
        target: θ*, likewise.
        steps: T, the student's steps.
        batch: images a step, drawn without replacement from all; None takes all at every step.
        augmentation: drawn anew at each step.
        gradient: ``exact`` or ``truncated``, as above.
    """

    network: nn.Module
    start: Group
    target: Group
    steps: int
    batch: int | None = None
    augmentation: Augmentation = Augmentation()
    gradient: Literal["exact", "truncated"] = "exact"

    def pull(
        self,
        images: Float[Tensor, "n c h w"],
        labels: Shaped[Tensor, "n *classes"],
        rate: float,
        seed: Seed,
    ) -> Pull:
        """L and its gradients at ``images`` (network inputs) and at the student's learning rate."""
        images = images.detach()
        moves = list(self._moves(images, seed))
        # room for all θ_i at once: written between the steps' big buffers, they would hold the heap's holes open
        visited = [part.new_empty(len(moves) + 1, *part.shape) for part in self._vector(self.start, images)]
        for i, theta in enumerate(self._walk(images, labels, rate, moves)):
            for room, part in zip(visited, theta, strict=True):
                room[i] = part
        loss, v = self._miss(tuple(room[-1] for room in visited))
        d_images = torch.zeros_like(images)
        d_rate = torch.zeros((), dtype=images.dtype, device=images.device)
        for i, move in reversed(list(enumerate(moves))):
            # v_0 is read by nobody, so the first step needs no gradient for θ
            walk_on = self.gradient == "exact" and i > 0
            theta = tuple(room[i].detach().requires_grad_() for room in visited)
            leaf = (images if move.rows is None else images[move.rows]).detach().requires_grad_()
            s, d_leaf, d_theta = self._step_back(theta, leaf, labels, move, v, walk_on=walk_on)
            if move.rows is None:
                d_images.sub_(d_leaf, alpha=rate)
            else:
                d_images.index_add_(0, move.rows, d_leaf, alpha=-rate)
            d_rate.sub_(s)
            for part, change in zip(v, d_theta, strict=walk_on):
                part.sub_(change, alpha=rate)
        return Pull(loss.item(), d_images, d_rate.item())

    def loss(
        self,
        images: Float[Tensor, "n c h w"],
        labels: Shaped[Tensor, "n *classes"],
        rate: float,
        seed: Seed,
    ) -> float:
        """L alone, on the draws that :meth:`pull` would make from ``seed``."""
        (end,) = deque(self._walk(images, labels, rate, self._moves(images, seed)), maxlen=1)
        return self._miss(end)[0].item()

    def _walk(self, images: Tensor, labels: Tensor, rate: float, moves: Iterable[_Move]) -> Iterator[Theta]:
        """θ_0, …, θ_T: vectors, no graph."""
        theta = self._vector(self.start, images)
        yield theta
        for move in moves:
            gradient = self._student(theta, images, labels, move, graph=False)
            theta = tuple(t - rate * g for t, g in zip(theta, gradient, strict=True))
            yield theta

    def _miss(self, end: Theta) -> tuple[Tensor, Theta]:
        """L, and v_T = ∂L/∂θ_T."""
        start, target = self._vector(self.start, end[0]), self._vector(self.target, end[0])
        distance = _square(_minus(start, target))
        miss = _minus(end, target)
        return _square(miss) / distance, tuple(2 * part / distance for part in miss)

    def _step_back(
        self, theta: Theta, leaf: Tensor, labels: Tensor, move: _Move, v: Theta, *, walk_on: bool
    ) -> tuple[Tensor, Tensor, Theta]:
        """s_i, ∂s_i/∂x_i and, to ``walk_on``, ∂s_i/∂θ_i."""
        # the one step whose graph lives: it ends with this call, before the step before it is built
        gradient = self._student(theta, leaf, labels, move, graph=True)
        s = _dot(gradient, v)
        d_leaf, *d_theta = torch.autograd.grad(s, (leaf, *theta) if walk_on else (leaf,), materialize_grads=True)
        return s.detach(), d_leaf, tuple(d_theta)

    def _student(self, theta: Theta, images: Tensor, labels: Tensor, move: _Move, *, graph: bool) -> Theta:
        """g(θ_i, x_i). With ``graph``, ``images`` are the step's own rows already, and the result can be differentiated."""
        if move.rows is not None:
            labels = labels[move.rows]
            images = images if graph else images[move.rows]
        images = apply(images, move.drawn)
        theta = theta if graph else tuple(part.detach().requires_grad_() for part in theta)
        tensors = dict(zip(self._names(), theta, strict=True)) | self._buffers(images)
        with move.seed.scope(images.device), _training(self.network):
            loss = classification_loss(functional_call(self.network, tensors, (images,)), labels)
        return torch.autograd.grad(loss, theta, create_graph=graph)

    def _moves(self, images: Tensor, seed: Seed) -> Iterator[_Move]:
        total, size = images.shape[0], (images.shape[2], images.shape[3])
        rows_from, drawn_from = seed.at("batch").torch(), seed.at("augment").torch()
        for i in range(self.steps):
            rows = None
            if self.batch is not None and self.batch < total:
                rows = torch.randperm(total, generator=rows_from)[: self.batch].to(images.device)
            drawn = self.augmentation.draw(total if rows is None else len(rows), size, drawn_from)
            yield _Move(rows, drawn, seed.at("dropout", i))

    def _names(self) -> Sequence[str]:
        return [name for name, _ in self.network.named_parameters()]

    def _vector(self, group: Group, like: Tensor) -> Theta:
        return tuple(group[name].detach().to(like) for name in self._names())

    def _buffers(self, like: Tensor) -> dict[str, Tensor]:
        # a copy each time: BatchNorm writes its running moments into them, and a pull leaves no trace
        return {
            name: (self.start.get(name, buffer)).detach().to(like.device, copy=True)
            for name, buffer in self.network.named_buffers()
        }


def preferred_gradient(architecture: Architecture) -> Literal["exact", "truncated"]:
    """Which gradient to match by where the user leaves it open: exact, but truncated for a ConvNet that is ill-conditioned.

    A ConvNet whose last normalisation sees a map of 2 × 2 or less normalises three or four numbers: the student's path is then so
    sensitive that the exact gradient is noise (docs/decisions/0003-gradient.md holds the experiment).
    """
    if architecture.name != "convnet" or architecture.options.get("norm") == "none":
        return "exact"
    depth = int(architecture.options.get("depth", 3))
    return "truncated" if min(architecture.size) // 2 ** (depth - 1) <= 2 else "exact"


@contextmanager
def _training(network: nn.Module) -> Iterator[None]:
    mode = network.training
    network.train()
    try:
        yield
    finally:
        network.train(mode)


def _minus(left: Theta, right: Theta) -> Theta:
    return tuple(a - b for a, b in zip(left, right, strict=True))


def _dot(left: Theta, right: Theta) -> Tensor:
    return torch.stack([(a * b).sum() for a, b in zip(left, right, strict=True)]).sum()


def _square(theta: Theta) -> Tensor:
    return _dot(theta, theta)
