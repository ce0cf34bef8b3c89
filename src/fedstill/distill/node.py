"""A node distils its own images: thousands of steps that are judged, looked after, and lose little when they are interrupted.

Epple, "On the Efficiency of Sharing Distilled Data in Federated Learning": every k steps fresh networks are trained on the images
as they are and scored on the node's *validation* images, and the best images are what counts, not the last. Here a node that is
ill (:mod:`fedstill.distill.course` says when) begins again with smaller steps of the images, and what that cost is counted.

Real images may be what a node begins with, so the images of step 0 are judged but never chosen.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch

from fedstill.bundle import Bundle, Group
from fedstill.data.shard import Shard
from fedstill.distill.canvas import Canvas, Matcher, distill
from fedstill.distill.course import Attempt, Check, Course, diagnose, hopeless
from fedstill.errors import RunError
from fedstill.models.architecture import Architecture
from fedstill.rounds import Trained
from fedstill.scores import score
from fedstill.seeds import Seed
from fedstill.train import Recipe, fit

__all__ = ["Judge", "judged", "tend"]

Judge = Callable[[Canvas, Seed], Sequence[float]]
"""Validation accuracies, 0 … 1, of fresh networks trained on the images as they are; empty where there are none to judge by."""


@dataclass(frozen=True)
class _Choice:
    """Images worth keeping: of which attempt and check, and their latents."""

    place: tuple[int, int]
    accuracy: float | None
    latents: Group


@dataclass(frozen=True)
class _Kept:
    """All that a killed distillation needs to go on.

    Attributes:
        attempts: what was done.
        canvas: its state; None where the attempt has not begun.
        mine: the best of the attempt at work; ``before``: of those before it.
    """

    attempts: tuple[Attempt, ...] = (Attempt(),)
    canvas: Bundle | None = None
    mine: _Choice | None = None
    before: _Choice | None = None

    def noted(self, attempt: Attempt, canvas: Canvas) -> _Kept:
        """With ``attempt`` in place of the one at work."""
        kept = replace(self, attempts=(*self.attempts[:-1], attempt))
        check = attempt.checks[-1]
        seen = len(self.attempts[-1].checks) == len(attempt.checks)
        if seen or not check.step:
            return kept
        # with nothing to judge by the later one; what was not judged beside others that were, cannot go on
        if (
            self.mine is not None
            and _worth(check.accuracy) <= _worth(self.mine.accuracy)
            and self.mine.accuracy is not None
        ):
            return kept
        latents = {name: tensor.clone() for name, tensor in canvas.latent.items()}
        return replace(kept, mine=_Choice((len(self.attempts) - 1, len(attempt.checks) - 1), check.accuracy, latents))

    def anew(self) -> _Kept:
        """Before another attempt."""
        return _Kept((*self.attempts, Attempt()), before=self.choice())

    def choice(self) -> _Choice | None:
        """The best of a healthy attempt, which is the last one; else of all."""
        mine, before = self.mine, self.before
        if mine is None or before is None or diagnose(self.attempts[-1]) is None:
            return mine or before
        return before if before.accuracy is not None and _worth(mine.accuracy) <= before.accuracy else mine

    def save(self, path: Path) -> None:
        groups: dict[str, Group] = {"statistics": Course(self.attempts).group()}
        numbers: dict[str, float] = {}
        if self.canvas is not None:
            groups |= self.canvas.groups
        for name, choice in (("mine", self.mine), ("before", self.before)):
            if choice is not None:
                groups[f"latents:{name}"] = choice.latents
                numbers |= {f"{name}.attempt": choice.place[0], f"{name}.check": choice.place[1]}
        Bundle(groups, numbers).save(path)

    @classmethod
    def open(cls, path: Path) -> _Kept:
        kept = Bundle.open(path)
        attempts = Course.of(kept.groups.get("statistics", {})).attempts

        def choice(name: str) -> _Choice | None:
            if f"latents:{name}" not in kept.groups:
                return None
            attempt, check = (int(kept.numbers[f"{name}.{part}"]) for part in ("attempt", "check"))
            return _Choice((attempt, check), attempts[attempt].checks[check].accuracy, kept.groups[f"latents:{name}"])

        canvas = Bundle({name: kept.groups[name] for name in ("latents", "optimiser") if name in kept.groups})
        return cls(attempts, canvas if canvas.groups else None, choice("mine"), choice("before"))


def tend(
    paint: Callable[[float], Canvas],
    ready: Callable[[], Matcher],
    judge: Judge,
    *,
    steps: int,
    check_every: int,
    keep_every: int,
    retries: int,
    retry_scale: float,
    seed: Seed,
    file: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Canvas, Course]:
    """Distil ``steps`` steps, and choose; where that goes ill, begin again with smaller steps of the images.

    Args:
        paint: a fresh canvas whose step size of images is scaled by its argument; the same latents each time.
        ready: makes what to match, when the first step is due: experts may have to be trained for it.
        judge: validation accuracies of fresh networks.
        steps: of an attempt, 1 at least.
        check_every: steps between two looks; the last step is looked at, too.
        keep_every: steps between two savings: what a kill loses at most.
        retries: attempts beyond the first.
        retry_scale: factor on the step size of images at each further attempt.
        seed: step n draws from ``seed.at("step", n)``, in every attempt alike.
        file: where what is done is kept, and where it goes on from, to the same bits; None: nowhere.
        progress: ``progress(steps done in this attempt, steps)``.

    Returns:
        A canvas of the images with the highest mean validation accuracy, the earliest of equal ones, of the attempt that went
        well or, where none did, of all; with nothing to judge by, those of the last check. And what happened.

    Raises:
        InputError: ``file`` is damaged.
        RunError: the disk refuses it.
    """
    kept = _Kept.open(file) if file is not None and file.exists() else _Kept()
    ready = cache(ready)
    while True:
        number = len(kept.attempts) - 1
        canvas = paint(retry_scale**number)
        if kept.canvas is not None:
            canvas.load(kept.canvas)
        for attempt in _work(canvas, ready, judge, kept.attempts[-1], steps=steps, check_every=check_every, seed=seed):
            kept, done = kept.noted(attempt, canvas), len(attempt.losses)
            if progress is not None and done:
                progress(done, steps)
            if file is not None and (done % keep_every == 0 or done == steps):
                kept = replace(kept, canvas=canvas.save())
                kept.save(file)
        if number == retries or diagnose(kept.attempts[-1]) is None:
            break
        kept = kept.anew()
    chosen = kept.choice()
    if chosen is not None:
        canvas.load(
            Bundle().put(
                latents={**chosen.latents, "rate": torch.tensor(_rate(kept, chosen), dtype=torch.float64)}, optimiser={}
            )
        )
    return canvas, Course(kept.attempts, None if chosen is None else chosen.place)


def _work(
    canvas: Canvas,
    ready: Callable[[], Matcher],
    judge: Judge,
    attempt: Attempt,
    *,
    steps: int,
    check_every: int,
    seed: Seed,
) -> Iterator[Attempt]:
    """The attempt as it grows: after a look at the start, and after each step."""
    if not attempt.checks:
        attempt = _looked(attempt, canvas, judge, seed)
        yield attempt
    if len(attempt.losses) >= steps or hopeless(attempt) is not None:
        return
    distilling = distill(canvas, ready(), seed=seed.at("step"), start=len(attempt.losses))
    while len(attempt.losses) < steps and hopeless(attempt) is None:
        attempt = replace(attempt, losses=(*attempt.losses, next(distilling).loss))
        done = len(attempt.losses)
        if (done % check_every == 0 or done == steps) and hopeless(attempt) is None:
            attempt = _looked(attempt, canvas, judge, seed)
        yield attempt


def judged(
    architecture: Architecture,
    lesson: Shard,
    validation: Shard,
    recipe: Recipe,
    *,
    count: int,
    seed: Seed,
    device: str = "cpu",
) -> list[float]:
    """Accuracies on ``validation`` of ``count`` networks that learned from ``lesson`` alone; of none, where there is no image.

    A training that diverges is worth 0.
    """
    found = []
    for k in range(count if len(validation) else 0):
        network = architecture.build(seed.at(k, "model"))
        try:
            fitted = fit(network, lesson, recipe, seed=seed.at(k, "train"), device=device)
        except RunError:
            found.append(0.0)
            continue
        found.append(score(Trained(architecture, fitted.tensors).module(), validation, device=device).accuracy or 0.0)
    return found


def _looked(attempt: Attempt, canvas: Canvas, judge: Judge, seed: Seed) -> Attempt:
    step = len(attempt.losses)
    pixels = canvas.normalisation.undo(canvas.render())
    check = Check(step, None, None, canvas.rate, pixels.min().item(), pixels.max().item())
    # what cannot go on need not be judged, and no network learns at a rate of 0 or below
    found = judge(canvas, seed.at("judge")) if hopeless(replace(attempt, checks=(check,))) is None else ()
    if found:
        check = replace(check, accuracy=statistics.fmean(found))
    if len(found) > 1:
        check = replace(check, deviation=statistics.stdev(found))
    return replace(attempt, checks=(*attempt.checks, check))


def _rate(kept: _Kept, chosen: _Choice) -> float:
    """The student's step size when these images were looked at."""
    attempt, check = chosen.place
    return kept.attempts[attempt].checks[check].rate


def _worth(accuracy: float | None) -> float:
    return -1.0 if accuracy is None else accuracy
