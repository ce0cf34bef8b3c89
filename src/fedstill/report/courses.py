"""How a client's own distillation went, read from its line of a round: attempts, checks, and what was chosen.

Attempts and checks are called by their places, so what is damaged among them keeps its place, with nothing known of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fedstill.report.reading import Table, as_count, as_figure, as_list, as_share, as_table, as_text

__all__ = ["WELL", "Attempt", "Check", "Course", "read_course"]

WELL = "well"
"""State of an attempt that is not ill."""


@dataclass(frozen=True)
class Check:
    """A look at the images; fields as in :class:`fedstill.distill.course.Check`."""

    step: int | None
    accuracy: float | None
    deviation: float | None
    rate: float | None
    pixel_min: float | None
    pixel_max: float | None


@dataclass(frozen=True)
class Attempt:
    """From the start to the last step, or to where it was given up.

    Attributes:
        steps: that were done.
        loss: (step, matching loss under a moving average); a loss that was not finite is None.
        checks: the first is of the images that it began with.
        state: :data:`WELL`, or why it is ill; None where that is not known.
    """

    steps: int | None
    loss: tuple[tuple[int, float | None], ...]
    checks: tuple[Check, ...]
    state: str | None


@dataclass(frozen=True)
class Course:
    """All attempts of one client, in order, one at least.

    Attributes:
        images: that it sent.
        place: attempt and check, from 0, whose images were chosen; None where there are none or it is not known.
    """

    images: int | None
    attempts: tuple[Attempt, ...]
    place: tuple[int, int] | None

    @property
    def taken(self) -> Attempt:
        """The attempt that was chosen from; where nothing was chosen, the last."""
        return self.attempts[self.place[0] if self.place is not None else -1]

    @property
    def chosen(self) -> Check | None:
        return self.taken.checks[self.place[1]] if self.place is not None else None

    @property
    def begun(self) -> Check | None:
        """The look at the images that the attempt began with."""
        first = self.taken.checks[0] if self.taken.checks else None
        return first if first is not None and first.step == 0 else None

    @property
    def gain(self) -> float | None:
        """Validation accuracy of the chosen images less that of those that it began with."""
        chosen, begun = self.chosen, self.begun
        if chosen is None or begun is None or chosen.accuracy is None or begun.accuracy is None:
            return None
        return chosen.accuracy - begun.accuracy

    @property
    def ill(self) -> bool:
        return self.taken.state not in (WELL, None)

    @property
    def steps(self) -> int | None:
        """In all attempts; None where one of them does not tell."""
        return _sum(self.attempts)

    @property
    def again(self) -> int | None:
        """Steps of the attempts beyond the first: what restarts cost."""
        return _sum(self.attempts[1:])


def _sum(attempts: tuple[Attempt, ...]) -> int | None:
    known = [each.steps for each in attempts if each.steps is not None]
    return sum(known) if len(known) == len(attempts) else None


def read_course(client: Table) -> Course | None:
    """Of a client's line; None where it does not tell of any attempt."""
    attempts = tuple(_attempt(as_table(item)) for item in as_list(client.get("attempts")))
    if not any(each.loss or each.checks for each in attempts):
        return None
    chosen = as_table(client.get("chosen"))
    attempt, check = (_natural(chosen.get(name)) for name in ("attempt", "check"))
    place = None if attempt is None or check is None else (attempt, check)
    if place is not None and not (place[0] < len(attempts) and place[1] < len(attempts[place[0]].checks)):
        place = None
    return Course(_natural(client.get("synthetic")), attempts, place)


def _attempt(table: Table) -> Attempt:
    ill = table.get("ill", "")
    return Attempt(
        steps=_natural(table.get("steps")),
        loss=tuple(
            (step, as_figure(pair[1]))
            for pair in map(as_list, as_list(table.get("loss")))
            if len(pair) == 2 and (step := _natural(pair[0])) is not None
        ),
        checks=tuple(_check(as_table(item)) for item in as_list(table.get("checks"))),
        state=WELL if ill is None else as_text(ill) or None,
    )


def _check(table: Table) -> Check:
    return Check(
        step=_natural(table.get("step")),
        accuracy=as_share(table.get("accuracy")),
        deviation=as_share(table.get("deviation")),
        rate=as_figure(table.get("rate")),
        pixel_min=as_figure(table.get("pixel_min")),
        pixel_max=as_figure(table.get("pixel_max")),
    )


def _natural(value: Any) -> int | None:
    count = as_count(value)
    return count if count is not None and count >= 0 else None
