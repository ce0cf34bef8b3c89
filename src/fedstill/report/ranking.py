"""Columns of figures that compete: the best of each marked, and what is published beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fedstill.report import cells
from fedstill.report.groups import Point
from fedstill.report.parts import Cell
from fedstill.report.roles import differ

__all__ = ["RANKED", "UNEVEN", "Figure", "lay", "marked", "uneven"]

RANKED = (
    "The best of a column is marked where both it and the second have several seeds and it is ahead by more than their standard "
    "deviations together, which is no test of significance; a ceiling does not compete."
)
UNEVEN = "Where methods have not come to the same round, none is marked."


@dataclass(frozen=True)
class Figure:
    """A figure of one method.

    Attributes:
        point: None where it is not known.
        rounds: after which it was scored; several where it is a mean over networks that were trained apart.
        competes: whether it may be marked as the best, which a ceiling may not.
        published: to compare with.
    """

    point: Point | None
    rounds: frozenset[int] = frozenset()
    competes: bool = True
    published: float | None = None


Column = Sequence[Figure | None]


def lay(names: Sequence[str], blocks: Sequence[Sequence[Column]]) -> tuple[list[str], list[list[tuple[Cell, ...]]]]:
    """Headings, and by block its rows.

    Figures are ranked within a block. A column of which nothing is known is left out; one of which something is published is
    followed by that.

    Args:
        names: of the columns.
        blocks: by block and column, a figure for each of the block's rows; None where a method has none there.
    """
    head: list[str] = []
    rows: list[list[list[Cell]]] = [[[] for _ in block[0]] for block in blocks if block]
    for index, name in enumerate(names):
        its = [block[index] for block in blocks]
        if not any(figure is not None and figure.point is not None for column in its for figure in column):
            continue
        known = any(figure is not None and figure.published is not None for column in its for figure in column)
        head += [name, f"{name}, published"] if known else [name]
        for column, block in zip(its, rows, strict=True):
            for cell, figure, row in zip(_marked(column), column, block, strict=True):
                row.append(cell)
                if known:
                    row.append(cells.percent(figure.published if figure is not None else None, tone="mute"))
    return head, [[tuple(row) for row in block] for block in rows]


def uneven(column: Column) -> bool:
    """Whether those that compete have not all come to the same round: who is still at work is not behind yet."""
    return len(frozenset[int]().union(*(each.rounds for each in column if each is not None and each.competes))) > 1


def _marked(column: Column) -> list[Cell]:
    level = not uneven(column)
    return marked(
        [figure.point if figure is not None else None for figure in column],
        ranked=[figure is not None and figure.competes and level for figure in column],
    )


def marked(column: Sequence[Point | None], *, ranked: Sequence[bool] | None = None) -> list[Cell]:
    """A column of accuracies, its best marked if it is ahead of the second by more than their spread, which needs seeds.

    ``ranked``: which of them compete; the others, such as a ceiling, are neither best nor second.
    """
    among = ranked if ranked is not None else [True] * len(column)
    competing = sorted(
        (point for point, competes in zip(column, among, strict=True) if competes and point is not None),
        key=lambda point: -point.mean,
    )
    # with one seed the spread is not known, so that no lead can exceed it
    ahead = (
        len(competing) > 1
        and all(point.spread is not None for point in competing[:2])
        and differ(competing[0], competing[1])
    )
    return [
        cells.percent(point, tone="best" if ahead and competes and point is competing[0] else "")
        for point, competes in zip(column, among, strict=True)
    ]
