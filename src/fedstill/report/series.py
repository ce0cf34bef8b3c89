"""The series of all charts: one a method and model, with the same look wherever it is drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fedstill.report import words
from fedstill.report.groups import Group, Point
from fedstill.report.parts import Key, Legend, Style, Trace

__all__ = ["Series", "key_of", "legend", "series"]


@dataclass(frozen=True)
class Series:
    """One method's model.

    Attributes:
        key: what it is switched by on the page.
        curve: accuracy by round; not empty.
    """

    key: str
    group: Group
    model: str
    style: Style
    curve: Mapping[int, Point]

    @property
    def label(self) -> str:
        return f"{self.group.label}, {self.model}"

    @property
    def last(self) -> int:
        """The last round in which every seed was scored."""
        return max(self.curve)


def series(groups: Sequence[Group]) -> tuple[Series, ...]:
    """One a model that was scored, in the order of the groups."""
    return tuple(
        Series(f"g{index}-m{number}", group, model, Style(index, number), curve)
        for index, group in enumerate(groups)
        for number, model in enumerate(group.models)
        if (curve := group.curve(model))
    )


def legend(lines: Sequence[Series]) -> Legend:
    """One switch a series, with its last accuracy."""
    return Legend(
        tuple(
            Key(each.key, each.group.label, each.model, each.style, words.percent(each.curve[each.last]))
            for each in lines
        )
    )


def key_of(traces: Sequence[Trace], values: Sequence[str]) -> Legend:
    """The switches of a chart that has series of its own; ``values`` in the order of its traces."""
    return Legend(
        tuple(
            Key(trace.series, trace.label, "", trace.style, value) for trace, value in zip(traces, values, strict=True)
        )
    )
