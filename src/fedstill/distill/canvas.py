"""The Canvas: all that is optimised when images are distilled, and the loop that does it.

    pull = matcher.pull(canvas.render(), canvas.labels, canvas.rate, seed)     # ends at the images
    canvas.push(pull)                                                          # begins there

so the generator's graph and the student's never live at the same time.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from fedstill.bundle import Bundle, Group
from fedstill.data.shard import Normalisation, Shard
from fedstill.generators.pixels import at_a_time
from fedstill.seeds import Seed

__all__ = ["Canvas", "Generator", "Latent", "Matcher", "Pull", "Step", "Strokes", "distill"]

_INFINITE = 5.0  # what an infinite feature starts from [FedDGM's released code]

Latent = Mapping[str, Tensor]
"""``"f"``: feature map [n, c, h, w] at some space; ``"w"``: style vectors [n, k, d] of the layers still ahead, if any."""


class Generator(Protocol):
    """A map from latents to images in [-1, 1]. Pixels are the deepest latent space, so there is one Canvas.

    Attributes:
        depth: the spaces are F0 … F_depth; at F_depth a latent is the image itself.

    It may have a ``chunk``: the most images it takes at a time, for the memory that its graph needs.
    """

    depth: int

    def draw(self, labels: Int[Tensor, " n"], seed: Seed) -> Latent:
        """Latents at F0: z ~ N(0, I) and the label through the mapping network."""

    def lift(self, latent: Latent, space: int) -> Latent:
        """F0 → F_space: run the layers before ``space``."""

    def render(self, latent: Latent, space: int) -> Float[Tensor, "n c h w"]:
        """F_space → images: run the layers after it. Differentiable."""


@dataclass(frozen=True)
class Pull:
    """What a matcher wants of the images.

    Attributes:
        loss: the matching loss before the step.
        d_images: its gradient with respect to the network inputs [n, c, h, w].
        d_rate: its gradient with respect to the student's learning rate; None where there is no student.
    """

    loss: float
    d_images: Float[Tensor, "n c h w"]
    d_rate: float | None = None


class Matcher(Protocol):
    """Says how well images match something, and which way is better. Constant between calls."""

    def pull(
        self,
        images: Float[Tensor, "n c h w"],
        labels: Shaped[Tensor, "n *classes"],
        rate: float,
        seed: Seed,
    ) -> Pull: ...


@dataclass(frozen=True)
class Strokes:
    """Step sizes of a Canvas.

    Attributes:
        features: of feature maps, pixels among them (``lr_img`` in released code).
        styles: of style vectors (``lr_w``).
        rate: of the student's learning rate (``lr_lr``); 0 keeps it fixed.
        momentum: of SGD, for all three.
        optimiser: ``sgd``, as published, or ``adam`` for features and styles.
    """

    features: float
    styles: float
    rate: float
    momentum: float = 0.5
    optimiser: Literal["sgd", "adam"] = "sgd"

    def scaled(self, factor: float) -> Strokes:
        """The same, every step size times ``factor``."""
        return Strokes(self.features * factor, self.styles * factor, self.rate * factor, self.momentum, self.optimiser)


class Canvas:
    """Latents of some space, their labels, and the student's learning rate.

    It alone knows how images are made, and applies the Shard's normalisation.

    Attributes:
        labels: int64 [n] or float [n, classes].
        rate: the student's learning rate.
    """

    def __init__(
        self,
        generator: Generator,
        space: int,
        latent: Latent,
        labels: Tensor,
        *,
        normalisation: Normalisation,
        strokes: Strokes,
        rate: float,
        chunk: int = 100,
    ) -> None:
        """``chunk`` images at most go through the generator at a time: memory is one chunk's graph."""
        self.generator = generator
        self.space = space
        self.labels = labels
        self.normalisation = normalisation.to(labels.device)
        self.strokes = strokes
        self.chunk = at_a_time(generator, chunk)
        self._latent = {name: tensor.detach().clone().requires_grad_() for name, tensor in latent.items()}
        self._rate = torch.tensor(rate, dtype=torch.float64)
        self._optimisers = self._make_optimisers()

    @classmethod
    def draw(
        cls,
        generator: Generator,
        space: int,
        labels: Int[Tensor, " n"],
        *,
        normalisation: Normalisation,
        strokes: Strokes,
        rate: float,
        seed: Seed,
        chunk: int = 100,
        latent: Latent | None = None,
        limit: float | None = None,
    ) -> Canvas:
        """Fresh latents from the prior, lifted to ``space``; or ``latent``, where there is one to start from.

        With a ``limit``, fresh features lie within ± it: what is no number becomes 0, what is infinite ± 5, and the rest is cut.
        """
        if latent is None:
            with torch.no_grad():
                start = generator.draw(labels, seed)
                parts = [generator.lift(part, space) for part in _split(start, at_a_time(generator, chunk))]
            latent = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
            if limit is not None:
                tame = torch.nan_to_num(latent["f"], nan=0.0, posinf=_INFINITE, neginf=-_INFINITE).clamp(-limit, limit)
                latent["f"] = tame
        return cls(
            generator, space, latent, labels, normalisation=normalisation, strokes=strokes, rate=rate, chunk=chunk
        )

    @property
    def rate(self) -> float:
        return self._rate.item()

    @property
    def latent(self) -> Latent:
        """The latents as they are now, detached."""
        return {name: tensor.detach() for name, tensor in self._latent.items()}

    def render(self) -> Float[Tensor, "n c h w"]:
        """Network inputs; no graph, in chunks."""
        with torch.no_grad():
            return torch.cat([self._inputs(part) for part in _split(self._latent, self.chunk)])

    def shard(self, classes: tuple[str, ...]) -> Shard:
        """The images in units of the pixel range, not clamped, as a Shard on the CPU."""
        pixels = self.normalisation.undo(self.render())
        return Shard(pixels, self.labels, classes, self.normalisation).to("cpu")

    def push(self, pull: Pull) -> None:
        """Carry the pull through the generator, chunk by chunk, and take one step."""
        gradients: list[tuple[Tensor, ...]] = []
        for part, wanted in zip(_split(self._latent, self.chunk), torch.split(pull.d_images, self.chunk), strict=True):
            leaves = {name: tensor.detach().requires_grad_() for name, tensor in part.items()}
            gradients.append(torch.autograd.grad(self._inputs(leaves), list(leaves.values()), wanted))
        for tensor, parts in zip(self._latent.values(), zip(*gradients, strict=True), strict=True):
            tensor.grad = torch.cat(parts)
        if pull.d_rate is not None:
            self._rate.grad = torch.tensor(pull.d_rate, dtype=torch.float64)
        for optimiser in self._optimisers:
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)

    def save(self) -> Bundle:
        """All that :meth:`load` needs to go on as if nothing had happened."""
        state: dict[str, Tensor] = {}
        for index, optimiser in enumerate(self._optimisers):
            for parameter, slots in optimiser.state_dict()["state"].items():
                for slot, value in slots.items():
                    if value is not None:
                        state[f"{index}.{parameter}.{slot}"] = torch.as_tensor(value)
        latents: Group = {**self.latent, "rate": self._rate.detach()}
        return Bundle().put(latents=latents, optimiser=state).detached()  # a copy: the next step writes in place

    def load(self, saved: Bundle) -> None:
        """Continue from what :meth:`save` gave, on a Canvas made with the same arguments."""
        latents = saved.groups["latents"]
        with torch.no_grad():
            for name, tensor in self._latent.items():
                tensor.copy_(latents[name])
            self._rate.copy_(latents["rate"])
        self._optimisers = self._make_optimisers()
        for index, optimiser in enumerate(self._optimisers):
            fresh = optimiser.state_dict()
            for key, value in saved.groups["optimiser"].items():
                place, parameter, slot = key.split(".")
                if int(place) == index:
                    fresh["state"].setdefault(int(parameter), {})[slot] = value.clone()
            optimiser.load_state_dict(fresh)

    def _inputs(self, latent: Latent) -> Tensor:
        return self.normalisation.apply((self.generator.render(latent, self.space) + 1) / 2)

    def _make_optimisers(self) -> Sequence[torch.optim.Optimizer]:
        strokes = self.strokes
        sizes = {"f": strokes.features, "w": strokes.styles}
        groups = [{"params": [tensor], "lr": sizes[name]} for name, tensor in self._latent.items()]
        latents: torch.optim.Optimizer = (
            torch.optim.SGD(groups, momentum=strokes.momentum)
            if strokes.optimiser == "sgd"
            else torch.optim.Adam(groups)
        )
        return latents, torch.optim.SGD([self._rate], lr=strokes.rate, momentum=strokes.momentum)


@dataclass(frozen=True)
class Step:
    """One step of a distillation: its number from 0, and the matching loss *before* it."""

    number: int
    loss: float


def distill(canvas: Canvas, matcher: Matcher, *, seed: Seed, start: int = 0) -> Iterator[Step]:
    """Pull and push for ever; best, health and stopping are the caller's loop body.

    Args:
        canvas: moved in place.
        matcher: says where to.
        seed: step n draws from ``seed.at(n)``, so a resumed distillation draws what the straight one would.
        start: number of the first step.
    """
    for number in itertools.count(start):
        pull = matcher.pull(canvas.render(), canvas.labels, canvas.rate, seed.at(number))
        canvas.push(pull)
        yield Step(number, pull.loss)


def _split(latent: Latent, size: int) -> Iterator[dict[str, Tensor]]:
    total = next(iter(latent.values())).shape[0]
    for first in range(0, total, size):
        yield {name: tensor[first : first + size] for name, tensor in latent.items()}
