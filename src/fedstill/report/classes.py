"""Which classes a method knows, and which it takes for which."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from fedstill.report import cells
from fedstill.report.groups import Group, Point, summarise
from fedstill.report.parts import Block, Cell, Chart, Folded, Grid, Heat, Section
from fedstill.report.runs import Run
from fedstill.report.series import Series

__all__ = ["classes"]

_WIDE = 30  # classes that stand side by side
_MATRIX = 40  # classes whose confusion is drawn; of more, the pairs most often confused are named
_PAIRS = 20
_MANY = 6  # folds that a reader finds at a glance


def classes(lines: Sequence[Series]) -> Section | None:
    """The section; None where no class was scored for itself."""
    scored = [each for each in lines if _shares(each)]
    blocks: list[Block] = []
    if scored:
        table = _per_class(scored)
        blocks.append(table if len(table.rows) <= _WIDE else Folded(table.title, (table,)))
    confusions = [
        block for number, each in enumerate(lines, start=1) for block in _confusion(f"confusion-{number}", each)
    ]
    many = len(confusions) > _MANY
    blocks += (
        [Folded(f"What each of {len(confusions)} models takes for what", tuple(confusions))] if many else confusions
    )
    return Section("classes", "By class", tuple(blocks)) if blocks else None


def _names(group: Group, count: int) -> tuple[str, ...]:
    known = next((run.classes for run in group.runs if len(run.classes) == count), ())
    return known or tuple(map(str, range(count)))


def _shares(each: Series) -> dict[str, Point]:
    """Accuracy by class after the last round, over seeds; a class that some seed has no test image of is left out."""
    found = [run.by_round[each.last].per_class.get(each.model, ()) for run in each.group.runs]
    if not found[0] or len({len(shares) for shares in found}) > 1:
        return {}
    by_class = {}
    for name, shares in zip(_names(each.group, len(found[0])), zip(*found, strict=True), strict=True):
        known = [share for share in shares if share is not None]
        if len(known) == len(shares):
            by_class[name] = summarise(known)
    return by_class


def _per_class(lines: Sequence[Series]) -> Grid:
    """Few classes: a row a method; many: a row a class."""
    shares = [(each, _shares(each)) for each in lines]
    names = list({name: None for _, found in shares for name in found})

    title = "Accuracy by class, after the last round"
    note = "On clean test images; mean ± sample standard deviation over seeds."
    if len(names) <= _WIDE:
        rows = tuple(
            (cells.word(each.group.label), cells.word(each.model), *(_shaded(found.get(name)) for name in names))
            for each, found in shares
        )
        return Grid("per-class", title, ("Method", "Model", *names), rows, 2, note)
    by_class = tuple((cells.word(name), *(_shaded(found.get(name)) for _, found in shares)) for name in names)
    return Grid("per-class", title, ("Class", *(each.label for each, _ in shares)), by_class, 1, note)


def _shaded(point: Point | None) -> Cell:
    return cells.percent(point, shade=None if point is None else min(1.0, max(0.0, point.mean)))


def _confusion(key: str, each: Series) -> Iterator[Block]:
    """Of the first seed: counts of several seeds would mix partitions."""
    run: Run = each.group.runs[0]
    counts = run.by_round[each.last].confusion.get(each.model)
    if not counts:
        return
    names = _names(each.group, len(counts))
    title = f"What {each.group.first}, {each.model} takes for what"
    pairs = sorted(
        (
            (count, true, said)
            for true, row in enumerate(counts)
            for said, count in enumerate(row)
            if true != said and count
        ),
        key=lambda pair: (-pair[0], pair[1], pair[2]),
    )
    often = Grid(
        f"{key}-pairs" if len(counts) <= _MATRIX else key,
        f"{title}: most often confused",
        ("True class", "Taken for", "Images", "Share of the class"),
        tuple(
            (
                cells.word(names[true]),
                cells.word(names[said]),
                cells.count(count),
                cells.percent(count / sum(counts[true])),
            )
            for count, true, said in pairs[:_PAIRS]
        ),
        2,
    )
    if len(counts) > _MATRIX:
        yield Folded(title, (often,))
        return
    told = "Nothing is confused."
    if pairs:
        count, true, said = pairs[0]
        told = f"Most often, {names[true]} is taken for {names[said]}: {count} of {sum(counts[true])} images."
    table = Grid(
        key,
        title,
        ("True class", *names),
        tuple((cells.word(name), *map(cells.count, row)) for name, row in zip(names, counts, strict=True)),
    )
    heat = Heat(
        Chart(
            key,
            title,
            f"Share of each true class after round {each.last}; the table has the numbers of images.",
            f"{title}, {len(names)} by {len(names)} classes. {told}",
            table,
        ),
        names,
        names,
        tuple(tuple(count / sum(row) if sum(row) else None for count in row) for row in counts),
        "true class",
        "taken for",
        "share",
    )
    yield Folded(title, (heat, often) if often.rows else (heat,))
