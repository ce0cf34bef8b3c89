"""Fresh networks trained on a saved synthetic set alone: does the set teach, or only the network that it was made for?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from fedstill.report import cells
from fedstill.report.evaluated import FreshScore
from fedstill.report.groups import Group, Point, summarise
from fedstill.report.parts import Grid, Section, Text
from fedstill.report.ranking import marked

__all__ = ["fresh"]


def fresh(groups: Sequence[Group]) -> Section | None:
    """The section; None where nobody asked for it."""
    found = {group.label: scores for group in groups if (scores := _scores(group))}
    if not found:
        return None
    several = len(found) > 1
    blocks = [_long(found), *([_matrix(found)] if several else [])]
    rounds = "; ".join(
        f"{group.label}: the set of round {its.round}, {its.images} images"
        for group in groups
        if (its := next((run.evaluated.fresh for run in group.runs if run.evaluated.fresh), None)) is not None
    )
    return Section("fresh", "Fresh networks on the synthetic set", (*blocks, Text(f"{rounds}.", "mute")))


def _scores(group: Group) -> dict[str, list[FreshScore]]:
    """Scores by network, of all runs of the group."""
    found: dict[str, list[FreshScore]] = {}
    for run in group.runs:
        for score in run.evaluated.fresh.scores if run.evaluated.fresh is not None else ():
            found.setdefault(score.model, []).append(score)
    return found


def _point(scores: Sequence[FreshScore], read: Callable[[FreshScore], float | None]) -> Point | None:
    values = [value for score in scores if (value := read(score)) is not None]
    return summarise(values) if values and len(values) == len(scores) else None


def _long(found: Mapping[str, Mapping[str, Sequence[FreshScore]]]) -> Grid:
    rows = tuple(
        (
            cells.word(label),
            cells.word(model),
            cells.count(len(scores)),
            cells.percent(_point(scores, lambda score: score.accuracy)),
            cells.percent(_point(scores, lambda score: score.balanced)),
            cells.figure(_point(scores, lambda score: score.calibration)),
        )
        for label, its in found.items()
        for model, scores in its.items()
    )
    return Grid(
        "fresh",
        "Networks that saw the synthetic set alone",
        ("Method", "Network", "Trained", "Accuracy", "Balanced accuracy", "Calibration error"),
        rows,
        2,
        "On clean test images; mean ± sample standard deviation over the networks trained: seeds of the run and of the network.",
        paper=True,
    )


def _matrix(found: Mapping[str, Mapping[str, Sequence[FreshScore]]]) -> Grid:
    models = list({model: None for its in found.values() for model in its})
    columns = [
        marked([_point(its[model], lambda score: score.accuracy) if model in its else None for its in found.values()])
        for model in models
    ]
    return Grid(
        "fresh-networks",
        "By network",
        ("Method", *models),
        tuple((cells.word(label), *row) for label, row in zip(found, zip(*columns, strict=True), strict=True)),
        note="Best of a column marked where it is ahead of the second by more than their spread.",
        paper=True,
    )
