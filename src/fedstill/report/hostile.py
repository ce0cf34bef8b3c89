"""How far a study's hostile clients got, and whose sets the server found to disagree."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from fedstill.report import cells, words
from fedstill.report.costs import MOST_ROWS
from fedstill.report.groups import Group, Point, summarise
from fedstill.report.parts import Block, Cell, Folded, Grid, Section, Text
from fedstill.report.rows import Agreement
from fedstill.report.runs import Run

__all__ = ["TABLE", "hostile"]

TABLE = "hostile"
"""Key of the table of methods."""

_NOTE = (
    "Accuracy: on clean test images. Attack success: share of the test images that the attack is about which are labelled as the "
    "attacker wants; without an attack it is what the network gets wrong by itself. Flagged: how often the server found that a "
    "hostile or an honest client’s set disagrees with the others’, of the times that it looked at one, all rounds together. The "
    "rest is after the last round; mean ± sample standard deviation over seeds."
)
_SAY = (
    "Agreement: how alike a client’s set and the others’ are read by networks that learned of the one or the others, over "
    "classes that enough others have (assessed). Worst: how far its worst class lies behind the same class of others, in "
    "points. Who is flagged may be honest: its images may look like nobody else’s."
)


def hostile(groups: Sequence[Group], labels: Mapping[int, str]) -> Section | None:
    """The section; None where nobody was poisoned in a study and no server looked. ``labels`` by a run's identity."""
    table = _table(groups)
    blocks: list[Block] = [] if table is None else [table]
    looked = [(run, its) for group in groups for run in group.runs if (its := _latest(run))]
    for index, (run, its) in enumerate(looked, start=1):
        blocks.append(Text(_told(labels[id(run)], run)))
        blocks += _listed(f"agreement-{index}", f"Agreement of the sets of {labels[id(run)]}", its)
    if looked:
        blocks.append(Text(_SAY, "mute"))
    return Section(TABLE, "Hostile clients", tuple(blocks)) if blocks else None


# --- a study's attack --------------------------------------------------------------------------------------------------


def _table(groups: Sequence[Group]) -> Grid | None:
    rows = tuple(row for group in groups for row in _rows(group))
    if not rows:
        return None
    head = ("Method", "Model", "Accuracy", "Attack success", "Hostile flagged", "Honest flagged")
    shown = [column for column in range(len(head)) if column < 4 or any(row[column].value is not None for row in rows)]
    return Grid(
        TABLE,
        "How far the attack got",
        tuple(head[column] for column in shown),
        tuple(tuple(row[column] for column in shown) for row in rows),
        2,
        _NOTE,
        paper=True,
    )


def _rows(group: Group) -> Iterator[tuple[Cell, ...]]:
    for model in group.models:
        success = group.over(lambda row, model=model: row.attack.get(model))  # type: ignore[misc]
        if not success:
            continue
        last = max(success)
        yield (
            cells.word(group.label),
            cells.word(model),
            cells.percent(group.curve(model).get(last)),
            cells.percent(success[last]),
            cells.percent(_flagged(group, among_hostile=True)),
            cells.percent(_flagged(group, among_hostile=False)),
        )


def _flagged(group: Group, *, among_hostile: bool) -> Point | None:
    """Of the sets of hostile, or of honest, clients that the server looked at, the share that it flagged; over seeds."""
    shares = []
    for run in group.runs:
        seen = [
            client.agreement.flagged
            for row in run.rows
            for client in row.clients
            if client.agreement is not None and (client.client in row.hostile) == among_hostile
        ]
        if seen:
            shares.append(sum(seen) / len(seen))
    return summarise(shares) if shares else None


# --- the check ---------------------------------------------------------------------------------------------------------


def _latest(run: Run) -> dict[str, tuple[int, Agreement]]:
    """By client: the last round in which the server looked at its set, and what it found."""
    return {
        client.client: (row.number, client.agreement)
        for row in run.rows
        for client in row.clients
        if client.agreement is not None
    }


def _told(label: str, run: Run) -> str:
    found = [(row.number, each.client) for row in run.rows for each in row.clients if each.agreement is not None]
    flagged = [
        f"{each.client} in round {row.number}"
        for row in run.rows
        for each in row.clients
        if each.agreement is not None and each.agreement.flagged
    ]
    looked = f"{label}: the server looked at {words.count(len(found))} sets"
    return f"{looked}; flagged: {words.listed(flagged)}." if flagged else f"{looked} and flagged none."


def _listed(key: str, title: str, its: Mapping[str, tuple[int, Agreement]]) -> Iterator[Block]:
    rows = tuple(
        (
            cells.word(client),
            cells.word("flagged" if each.flagged else "", tone="sick" if each.flagged else ""),
            cells.word(each.where or words.DASH),
            cells.count(number),
            cells.percent(each.agreement),
            cells.signed(each.worst),
            cells.count(each.assessed),
            cells.count(each.classes),
        )
        for client, (number, each) in list(its.items())[:MOST_ROWS]
    )
    head = ("Client", "State", "Worst class", "Last round", "Agreement", "Worst", "Classes assessed", "Classes")
    yield Folded(title, (Grid(key, title, head, rows, 3),))
    if len(its) > MOST_ROWS:
        yield Text(f"{len(its) - MOST_ROWS} more are in clients.csv, which fedstill report … --csv writes.", "mute")
