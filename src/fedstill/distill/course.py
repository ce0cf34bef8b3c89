"""What became of a node's distillation: its attempts, looks at the images, the choice, and whether it was well.

Epple, "On the Efficiency of Sharing Distilled Data in Federated Learning", Figure 7, shows nodes whose matching went ill. Here an
ill attempt is told by rules:

* the matching loss, averaged over 30 steps, does not fall, or ends at 1 or above (1 = as far from the expert as where it began);
* the student's step size falls below a tenth of what it was, or to 0: a frozen student matches nothing, and looks converged;
* pixels run away;
* at every check validation accuracy, with the judges' own deviation added, stays at or below what it was at the start.

:mod:`fedstill.distill.node` does the work.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, astuple, dataclass, fields
from typing import Any

import torch

from fedstill.bundle import Group
from fedstill.distill.health import LEAST_RATE, Health
from fedstill.errors import InputError

__all__ = ["WINDOW", "Attempt", "Check", "Course", "averaged", "diagnose", "hopeless"]

WINDOW = 30
"""Steps of the moving average of the matching loss."""

_ENDLESS = 1e30
"""A loss from here on is as good as infinite: sums of some would be."""

SHOWN = 100
"""Points of a loss curve in a round's figures, at most."""

FARTHEST = 10.0
"""How far from mid-grey a pixel may go, in pixel ranges. Distilled pixels leave the range by one or two; step sizes that are too
large take them to hundreds."""


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
            losses = [loss if 0 <= loss < _ENDLESS else math.inf for loss in group["losses"].tolist()]
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


def averaged(losses: Sequence[float]) -> list[float]:
    """The moving average over :data:`WINDOW` values, from the first full window on; the mean of fewer."""
    window = min(WINDOW, len(losses))
    return [statistics.fmean(losses[end - window : end]) for end in range(window, len(losses) + 1)] if window else []


def diagnose(attempt: Attempt) -> str | None:
    """Why it is ill; None where it is not."""
    if (lost := hopeless(attempt)) is not None:
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


def hopeless(attempt: Attempt) -> str | None:
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


def _thinned(count: int) -> list[int]:
    """Places of at most so many points, evenly, the last among them."""
    stride = max(1, math.ceil((count - 1) / (SHOWN - 1)))
    return sorted({*range(0, count, stride), *([count - 1] if count else [])})


def _check(step: float, accuracy: float, deviation: float, rate: float, pixel_min: float, pixel_max: float) -> Check:
    known = [None if value < 0 else value for value in (accuracy, deviation)]
    return Check(int(step), known[0], known[1], rate, pixel_min, pixel_max)
