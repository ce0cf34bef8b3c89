"""A distillation with an eye on its health: what it did, whether it worked, and one more try where it did not."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, Protocol

from jaxtyping import Float, Shaped
from torch import Tensor
from torch.nn import functional as F

from fedstill.distill.canvas import Canvas, Matcher, distill
from fedstill.distill.matchers import TrajectoryMatcher
from fedstill.errors import Diverged
from fedstill.seeds import Seed

__all__ = ["Health", "Measurable", "agreement", "descend", "match"]


LEAST_RATE = 0.1
"""A student's rate below this share of its first value has collapsed; its matching loss only looks converged."""


@dataclass(frozen=True)
class Health:
    """How one client's matching went.

    Attributes:
        start: matching loss of the images at the start, and
        end: at the end, on the same draw of batches and augmentation (1 = as far from the target as doing nothing).
        best: smallest loss met on the way (draws differ from step to step).
        pixel_min: smallest and
        pixel_max: largest value at the end, in units of the pixel range (0 … 1 would be an ordinary photograph).
        rate: the student's learning rate at the end; None where there is no student.
        conditioning: cosine between the exact and the truncated gradient at the end; 1 where the two agree, near 0 where the
            student's path is so sensitive that neither is to be trusted far. None where it was not asked for.
        retries: tries beyond the first.
        sick: why the matching failed; None where it did not.
    """

    start: float
    end: float
    best: float
    pixel_min: float
    pixel_max: float
    rate: float | None
    conditioning: float | None = None
    retries: int = 0
    sick: str | None = None


class Measurable(Matcher, Protocol):
    """A matcher that can also say its loss alone, on the draws that ``pull`` would make from ``seed``."""

    def loss(
        self,
        images: Float[Tensor, "n c h w"],
        labels: Shaped[Tensor, "n *classes"],
        rate: float,
        seed: Seed,
    ) -> float: ...


def descend(
    canvas: Canvas,
    matcher: Measurable,
    *,
    steps: int,
    seed: Seed,
    measured: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> Health | None:
    """Distil ``steps`` steps with no student; ``canvas`` is moved in place.

    Args:
        canvas: the images.
        matcher: what they should agree with.
        steps: how many.
        seed: of the whole distillation; step n draws from ``seed.at("step", n)``.
        measured: whether losses are taken at both ends.
        progress: ``progress(steps done, steps)``.

    Returns:
        How it went, with losses at both ends on one draw; None where it is not to be measured.

    Raises:
        Diverged: the loss is no longer finite.
    """
    # one draw for both ends: else the draws' luck would pass for progress
    probe = seed.at("probe")
    start = best = matcher.loss(canvas.render(), canvas.labels, canvas.rate, probe) if measured else math.inf
    distilling = distill(canvas, matcher, seed=seed.at("step"))
    for number in range(steps):
        loss = next(distilling).loss
        if not math.isfinite(loss):
            raise Diverged(
                f"matching diverged, its loss is {loss} at step {number + 1}: use a smaller step size of images"
            )
        best = min(best, loss)
        if progress is not None:
            progress(number + 1, steps)
    if not measured:
        return None
    images = canvas.render()
    end = matcher.loss(images, canvas.labels, canvas.rate, probe)
    pixels = canvas.normalisation.undo(images)
    return Health(start, end, min(best, end), pixels.min().item(), pixels.max().item(), rate=None)


def match(
    paint: Callable[[float], Canvas],
    matcher: TrajectoryMatcher,
    *,
    steps: int,
    seed: Seed,
    retries: int = 1,
    retry_scale: float = 0.1,
    limit: float = 1.0,
    keep: Literal["last", "best"] = "last",
    conditioning: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Canvas, Health]:
    """Distil ``steps`` steps; where that fails, start again with smaller ones.

    Args:
        paint: a fresh canvas whose step sizes are scaled by its argument; called once a try, with the same latents each time.
        matcher: what to match.
        steps: T_d.
        seed: of the whole distillation.
        retries: tries beyond the first.
        retry_scale: factor on the step sizes at each further try.
        limit: a matching loss at or above this at the end is a failure: 1 means that a student trained on the images ends as far
            from the target as where it started.
        keep: the images after the last step, as published, or those of the smallest loss met.
        conditioning: measure it, for the cost of two more gradients.
        progress: ``progress(steps done, steps)``.
    """
    canvas, health = _attempt(paint(1.0), matcher, steps, seed, limit, keep, progress)
    tries = 0
    while health.sick is not None and tries < retries:
        tries += 1
        again, second = _attempt(paint(retry_scale**tries), matcher, steps, seed, limit, keep, progress)
        # a second failure that ends lower is still the better set to look at, and to learn from
        if second.sick is None or second.end < health.end or not math.isfinite(health.end):
            canvas, health = again, second
    cosine = agreement(canvas, matcher, seed.at("conditioning")) if conditioning else None
    return canvas, replace(health, conditioning=cosine, retries=tries)


def _attempt(
    canvas: Canvas,
    matcher: TrajectoryMatcher,
    steps: int,
    seed: Seed,
    limit: float,
    keep: str,
    progress: Callable[[int, int], None] | None,
) -> tuple[Canvas, Health]:
    # one draw for both ends: else the augmentation's luck would pass for progress
    probe, first_rate = seed.at("probe"), canvas.rate
    start = matcher.loss(canvas.render(), canvas.labels, canvas.rate, probe)
    best, kept = start, canvas.save() if keep == "best" else None
    distilling = distill(canvas, matcher, seed=seed.at("step"))
    for number in range(steps):
        before = canvas.save() if keep == "best" else None
        loss = next(distilling).loss
        if not math.isfinite(loss):
            break
        if loss < best:
            best, kept = loss, before
        if progress is not None:
            progress(number + 1, steps)
    if kept is not None:
        canvas.load(kept)
    images = canvas.render()
    end = matcher.loss(images, canvas.labels, canvas.rate, probe)
    pixels = canvas.normalisation.undo(images)
    return canvas, Health(
        start=start,
        end=end,
        best=min(best, end) if math.isfinite(end) else best,
        pixel_min=pixels.min().item(),
        pixel_max=pixels.max().item(),
        rate=canvas.rate,
        sick=_diagnose(start, end, limit, canvas.rate / first_rate),
    )


def _diagnose(start: float, end: float, limit: float, rate: float) -> str | None:
    if not math.isfinite(end):
        return "its matching loss is not finite"
    if end >= start:
        return f"its matching loss rose from {start:.3g} to {end:.3g}"
    if end >= limit:
        return f"its matching loss is {end:.3g} after all steps, not below {limit:g}"
    if rate < LEAST_RATE:
        return f"the student's learning rate fell to {rate:.2g} of what it was: a frozen student matches nothing"
    return None


def agreement(canvas: Canvas, matcher: TrajectoryMatcher, seed: Seed) -> float | None:
    """Cosine between the exact and the truncated gradient at the canvas's images; None where one is zero or not finite."""
    images = canvas.render()
    exact, truncated = (
        replace(matcher, gradient=gradient).pull(images, canvas.labels, canvas.rate, seed).d_images.flatten()
        for gradient in ("exact", "truncated")
    )
    cosine = F.cosine_similarity(exact, truncated, dim=0).item()
    return cosine if math.isfinite(cosine) else None
