"""A node distils its own images: thousands of steps that are judged, looked after, and lose little when they are interrupted.

Epple, "On the Efficiency of Sharing Distilled Data in Federated Learning": every k steps fresh networks are trained on the images
as they are and scored on the node's *validation* images, and the best images are what counts, not the last. Its Figure 7 shows
nodes whose matching went ill. Here an ill node is told by rules, begins again with smaller steps of the images, and what that
cost is counted:

* the matching loss, averaged over 30 steps, does not fall, or ends at 1 or above (1 = as far from the expert as where it began);
* the student's step size falls below a tenth of what it was, or to 0: a frozen student matches nothing, and looks converged;
* pixels run away;
* no check sees more validation accuracy than the images that it began with.

Real images may be what a node begins with, so the images of step 0 are judged but never chosen.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, astuple, dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch

from fedstill.bundle import Bundle, Group
from fedstill.data.shard import Shard
from fedstill.distill.canvas import Canvas, Matcher, distill
from fedstill.distill.health import LEAST_RATE, Health
from fedstill.errors import InputError, RunError
from fedstill.models.architecture import Architecture
from fedstill.rounds import Trained
from fedstill.scores import score
from fedstill.seeds import Seed
from fedstill.train import Recipe, fit

__all__ = ["WINDOW", "Attempt", "Check", "Course", "Judge", "averaged", "diagnose", "judged", "tend"]

WINDOW = 30
"""Steps of the moving average of the matching loss."""

SHOWN = 100
"""Points of a loss curve in a round's figures, at most."""

FARTHEST = 10.0
"""How far from mid-grey a pixel may go, in pixel ranges. Distilled pixels leave the range by one or two; step sizes that are too
large take them to hundreds."""

Judge = Callable[[Canvas, Seed], Sequence[float]]
"""Validation accuracies, 0 … 1, of fresh networks trained on the images as they are; empty where there are none to judge by."""


@dataclass(frozen=True)
class Check:
    """A look at the images.

    Attributes:
        step: steps done in this attempt.
        accuracy: mean validation accuracy of the judges; None where there was nothing to judge by.
        deviation: its sample standard deviation over the judges; None of fewer than two.
        rate: the student's step size.
        pixel_min, pixel_max: in units of the pixel range.
    """

    step: int
    accuracy: float | None
    deviation: float | None
    rate: float
    pixel_min: float
    pixel_max: float


@dataclass(frozen=True)
class Attempt:
    """From the start to the last step, or to where it was given up: the loss before each step, and the checks."""

    losses: tuple[float, ...] = ()
    checks: tuple[Check, ...] = ()


@dataclass(frozen=True)
class Course:
    """All attempts, and whose images were chosen.

    Attributes:
        attempts: in order.
        chosen: (attempt, check), both from 0; None before there is one.
    """

    attempts: tuple[Attempt, ...] = (Attempt(),)
    chosen: tuple[int, int] | None = None

    @property
    def steps(self) -> int:
        """In all attempts."""
        return sum(len(each.losses) for each in self.attempts)

    @property
    def sick(self) -> str | None:
        """Why the attempt that was chosen from is ill; None where it is not."""
        return diagnose(self.attempts[self.chosen[0] if self.chosen else -1])

    def health(self) -> Health:
        """Of the attempt that was chosen from; losses are averaged over :data:`WINDOW` steps."""
        attempt, index = self.chosen or (len(self.attempts) - 1, -1)
        taken = self.attempts[attempt]
        smooth, check = averaged(taken.losses), taken.checks[index]
        return Health(
            start=smooth[0] if smooth else math.inf,
            end=smooth[-1] if smooth else math.inf,
            best=min(smooth, default=math.inf),
            pixel_min=check.pixel_min,
            pixel_max=check.pixel_max,
            rate=check.rate,
            retries=len(self.attempts) - 1,
            sick=self.sick,
        )

    def figures(self) -> dict[str, Any]:
        """For a client's line of a round: every attempt with its averaged loss, thinned, and its checks."""
        chosen = None if self.chosen is None else {"attempt": self.chosen[0], "check": self.chosen[1]}
        attempts = []
        for each in self.attempts:
            smooth = averaged(each.losses)
            first = len(each.losses) - len(smooth) + 1  # steps done when the first average is whole
            attempts.append(
                {
                    "steps": len(each.losses),
                    "loss": [[first + at, smooth[at]] for at in _thinned(len(smooth))],
                    "checks": [asdict(check) for check in each.checks],
                    "ill": diagnose(each),
                }
            )
        return {"attempts": attempts, "chosen": chosen, "distill_steps": self.steps}

    def group(self) -> Group:
        """As finite tensors, which travel and are kept: -1 stands for what is missing and for a loss that is not finite."""
        attempts = self.attempts
        return {
            "lengths": torch.tensor([(len(each.losses), len(each.checks)) for each in attempts]),
            "losses": torch.tensor(
                [loss if math.isfinite(loss) else -1.0 for each in attempts for loss in each.losses],
                dtype=torch.float64,
            ),
            "checks": torch.tensor(
                [
                    [-1.0 if value is None else value for value in astuple(check)]
                    for each in attempts
                    for check in each.checks
                ],
                dtype=torch.float64,
            ).reshape(-1, len(fields(Check))),
            "chosen": torch.tensor(self.chosen or (), dtype=torch.int64),
        }

    @classmethod
    def of(cls, group: Group) -> Course:
        """What :meth:`group` gave.

        Raises:
            InputError: it gave no such thing.
        """
        try:
            lengths = [(int(steps), int(looks)) for steps, looks in group["lengths"].tolist()]
            losses = [loss if loss >= 0 else math.inf for loss in group["losses"].tolist()]
            checks = [_check(*row) for row in group["checks"].tolist()]
            chosen = group["chosen"].tolist()
            if min(map(min, lengths)) < 0 or (len(losses), len(checks)) != (
                sum(each[0] for each in lengths),
                sum(each[1] for each in lengths),
            ):
                raise ValueError
            attempts = []
            for steps, looks in lengths:
                attempts.append(Attempt(tuple(losses[:steps]), tuple(checks[:looks])))
                losses, checks = losses[steps:], checks[looks:]
            if not chosen:
                return cls(tuple(attempts))
            attempt, index = map(int, chosen)
            if not (0 <= attempt < len(attempts) and 0 <= index < len(attempts[attempt].checks)):
                raise ValueError
            return cls(tuple(attempts), (attempt, index))
        except (KeyError, TypeError, ValueError) as error:
            raise InputError("a node's record of its distillation is damaged") from error


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


def _thinned(count: int) -> list[int]:
    """Places of at most so many points, evenly, the last among them."""
    stride = max(1, math.ceil((count - 1) / (SHOWN - 1)))
    return sorted({*range(0, count, stride), *([count - 1] if count else [])})


def _worth(accuracy: float | None) -> float:
    return -1.0 if accuracy is None else accuracy


def averaged(losses: Sequence[float]) -> list[float]:
    """The moving average over :data:`WINDOW` values, from the first full window on; the mean of fewer."""
    window = min(WINDOW, len(losses))
    return [statistics.fmean(losses[end - window : end]) for end in range(window, len(losses) + 1)] if window else []


def diagnose(attempt: Attempt) -> str | None:
    """Why it is ill; None where it is not."""
    if (lost := _lost(attempt)) is not None:
        return lost
    losses, checks = attempt.losses, attempt.checks
    window = min(WINDOW, len(losses) // 2)
    if window:
        start, end = statistics.fmean(losses[:window]), statistics.fmean(losses[-window:])
        if end >= start:
            return f"its matching loss does not fall: {start:.3g} in the first {window} steps, {end:.3g} in the last"
        if end >= 1:
            return f"its matching loss is {end:.3g} in the last {window} steps, not below 1"
    if checks and checks[-1].rate < LEAST_RATE * checks[0].rate:
        was, now = checks[0].rate, checks[-1].rate
        return f"the student's step size fell from {was:.2g} to {now:.2g}: a frozen student matches nothing"
    first = checks[0].accuracy if checks else None
    # within the judges' own spread a check counts as higher, and above 100 % there is nothing
    judged = [check.accuracy + (check.deviation or 0.0) for check in checks[1:] if check.accuracy is not None]
    if judged and first is not None and max(judged) <= first < 1:
        return f"validation accuracy never rose above the {100 * first:.1f} % of the images that it began with"
    return None


def _lost(attempt: Attempt) -> str | None:
    """Why there is no use in going on with it."""
    if attempt.losses and not math.isfinite(attempt.losses[-1]):
        return f"its matching loss is not finite at step {len(attempt.losses)}"
    if not attempt.checks:
        return None
    last = attempt.checks[-1]
    if not last.rate > 0:
        return f"the student's step size fell to {last.rate:.2g}"
    if not max(0.5 - last.pixel_min, last.pixel_max - 0.5) <= FARTHEST:
        return f"pixels run away: {last.pixel_min:.3g} to {last.pixel_max:.3g} after {last.step} steps, where 0 to 1 is usual"
    return None


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
    if len(attempt.losses) >= steps or _lost(attempt) is not None:
        return
    distilling = distill(canvas, ready(), seed=seed.at("step"), start=len(attempt.losses))
    while len(attempt.losses) < steps and _lost(attempt) is None:
        attempt = replace(attempt, losses=(*attempt.losses, next(distilling).loss))
        done = len(attempt.losses)
        if (done % check_every == 0 or done == steps) and _lost(attempt) is None:
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
    found = judge(canvas, seed.at("judge")) if _lost(replace(attempt, checks=(check,))) is None else ()
    if found:
        check = replace(check, accuracy=statistics.fmean(found))
    if len(found) > 1:
        check = replace(check, deviation=statistics.stdev(found))
    return replace(attempt, checks=(*attempt.checks, check))


def _rate(kept: _Kept, chosen: _Choice) -> float:
    """The student's step size when these images were looked at."""
    attempt, check = chosen.place
    return kept.attempts[attempt].checks[check].rate


def _check(step: float, accuracy: float, deviation: float, rate: float, pixel_min: float, pixel_max: float) -> Check:
    known = [None if value < 0 else value for value in (accuracy, deviation)]
    return Check(int(step), known[0], known[1], rate, pixel_min, pixel_max)
