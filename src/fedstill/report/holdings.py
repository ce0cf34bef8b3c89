"""Who held what, and what each client got out of it."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fedstill.evaluate.heterogeneity import Heterogeneity, heterogeneity
from fedstill.report import cells, words
from fedstill.report.facts import owners
from fedstill.report.groups import Group, Point, summarise
from fedstill.report.parts import Block, Cell, Folded, Grid, Section, Text
from fedstill.report.roles import baseline, differ
from fedstill.report.runs import ClientRow, Holding, Run

__all__ = ["holdings"]

_WIDE = 30  # classes that stand side by side
_LONG = 30  # clients that a reader sees without opening a table
_SAY = (
    "Images by client and class, before each client keeps its own validation and test images apart. Entropy: of the client’s "
    "classes, in bits; 0 where it holds one class. Distance: share of its images that would have to change class to be like "
    "all clients’ together."
)


@dataclass(frozen=True)
class _Dealt:
    """One partition, and the runs that had it, by group."""

    holding: Holding
    members: tuple[tuple[Group, tuple[Run, ...]], ...]
    owners: str


@dataclass(frozen=True)
class _Outcome:
    """What clients reached with one method: accuracy on their own images."""

    group: Group
    shares: Mapping[str, Point]


def holdings(runs: Sequence[Run], groups: Sequence[Group], labels: Mapping[int, str]) -> Section | None:
    """The section; None where no run says who held what. ``labels`` by a run's identity."""
    dealt = _dealt(runs, groups, labels)
    if not dealt:
        return None
    first, *others = ((each, _blocks(f"holdings-{number}", each)) for number, each in enumerate(dealt, start=1))
    blocks: list[Block] = [*first[1]]
    blocks += [Folded(f"Another seed or partition: {each.owners}", tuple(its)) for each, its in others]
    return Section("holdings", "Who held what", (*blocks, Text(_SAY, "mute")))


def _dealt(runs: Sequence[Run], groups: Sequence[Group], labels: Mapping[int, str]) -> list[_Dealt]:
    found: dict[str, list[Run]] = {}
    for run in runs:
        if run.holding is not None and run.holding.classes:
            found.setdefault(run.holding.key, []).append(run)
    made = []
    for its in found.values():
        holding = its[0].holding
        assert holding is not None, "only runs with one are found"
        members = [(group, tuple(run for run in group.runs if any(run is each for each in its))) for group in groups]
        told = owners(its, runs, labels) if len(found) > 1 else ""
        made.append(_Dealt(holding, tuple((group, those) for group, those in members if those), told))
    return made


def _blocks(key: str, dealt: _Dealt) -> list[Block]:
    holding = dealt.holding
    unequal = heterogeneity(holding.counts)
    outcomes, source = _outcomes(dealt)
    base = baseline([each.group for each in outcomes])
    wide = len(holding.classes) > _WIDE
    table = _table(key, dealt, unequal, outcomes, source, base, wide=wide)
    blocks: list[Block] = [table if len(table.rows) <= _LONG else Folded(table.title, (table,))]
    if wide:
        blocks.append(_tall(f"{key}-classes", holding))
    if outcomes:
        # above a long table: what it comes to
        blocks.insert(0 if len(table.rows) > _LONG else len(blocks), _spread(f"{key}-outcomes", outcomes, base))
    if unequal.mean_distance is not None:
        distance = words.percent(unequal.mean_distance)
        told = f"Between two clients, {distance} of the images would have to change class, on average over all pairs."
        blocks.append(Text(told, "mute"))
    return blocks


def _table(
    key: str,
    dealt: _Dealt,
    unequal: Heterogeneity,
    outcomes: Sequence[_Outcome],
    source: Mapping[str, str],
    base: Group | None,
    *,
    wide: bool,
) -> Grid:
    holding = dealt.holding
    largest = max(map(max, holding.counts.values()), default=0)
    of = next((each for each in outcomes if each.group is base), None)
    others = [each for each in outcomes if each is not of]
    head = ["Client", *(["Classes held", "Largest share"] if wide else holding.classes), "All", "Entropy", "Distance"]
    mixed = len(set(source.values())) > 1  # else the note says it once
    if outcomes:
        head += ["Scored on"] if mixed else []
        head += [each.group.label for each in outcomes]
        head += [f"{each.group.label} − {of.group.label}" for each in others if of is not None]
    rows = []
    for client, counts in holding.counts.items():
        row = [cells.word(client)]
        if wide:
            row.append(cells.count(sum(count > 0 for count in counts)))
            row.append(cells.percent(max(counts) / sum(counts) if sum(counts) else None))
        else:
            row += [_held(count, largest) for count in counts]
        row += [
            cells.count(sum(counts)),
            cells.figure(unequal.entropy[client]),
            cells.percent(unequal.distance[client]),
        ]
        if outcomes:
            row += [cells.word(source.get(client, words.DASH))] if mixed else []
            row += [cells.percent(each.shares.get(client)) for each in outcomes]
            row += [_gain(each.shares.get(client), of.shares.get(client)) for each in others if of is not None]
        rows.append(tuple(row))
    note = ""
    if outcomes:
        images = "test or validation" if mixed else next(iter(source.values()))
        note = (
            f"Under a method’s name: accuracy after its last round, of the model that a client received, on its own {images} "
            "images, which take no part in training."
        )
    if of is not None and others:
        note += f" On the right: points gained or lost against {of.group.label}. {_beyond(outcomes)}"
    title = f"Clients and classes: {dealt.owners}" if dealt.owners else "Clients and classes"
    return Grid(key, title, tuple(head), tuple(rows), note=note)


def _held(count: int, largest: int) -> Cell:
    return Cell("", 0) if not count else cells.count(count, shade=count / largest)


def _tall(key: str, holding: Holding) -> Folded:
    """Many classes: a row each."""
    largest = max(map(max, holding.counts.values()), default=0)
    rows = tuple(
        (cells.word(name), *(_held(counts[index], largest) for counts in holding.counts.values()))
        for index, name in enumerate(holding.classes)
    )
    table = Grid(key, "Images by class and client", ("Class", *holding.counts), rows)
    return Folded(f"All {len(holding.classes)} classes", (table,))


def _outcomes(dealt: _Dealt) -> tuple[list[_Outcome], dict[str, str]]:
    """What clients reached after the last round, and which of their own images they were scored on."""
    last = {id(run): {row.client: row for row in run.rows[-1].clients} for _, runs in dealt.members for run in runs}
    tested = {
        client
        for rows in last.values()
        for client, row in rows.items()
        if row.test is not None and row.test.accuracy is not None
    }
    source: dict[str, str] = {}
    outcomes = []
    for group, runs in dealt.members:
        shares = {}
        for client in dealt.holding.counts:
            # the same images for every method, or the columns could not be compared
            found = [_share(last[id(run)].get(client), test=client in tested) for run in runs]
            known = [share for share in found if share is not None]
            if known and len(known) == len(found):
                shares[client] = summarise(known)
                source[client] = "test" if client in tested else "validation"
        if shares:
            outcomes.append(_Outcome(group, shares))
    return outcomes, source


def _share(row: ClientRow | None, *, test: bool) -> float | None:
    if row is None:
        return None
    if test:
        return row.test.accuracy if row.test is not None else None
    return row.validation


def _gain(one: Point | None, base: Point | None) -> Cell:
    if one is None or base is None:
        return cells.signed(None)
    difference = one.mean - base.mean
    if not differ(one, base):
        return cells.signed(difference)
    return cells.signed(difference, tone="gain" if difference > 0 else "loss")


def _beyond(outcomes: Sequence[_Outcome]) -> str:
    """What it takes to be marked."""
    if any(point.spread is None for each in outcomes for point in each.shares.values()):
        return "▲ better, ▼ worse: any difference counts where there is one seed, and a client’s own images are few."
    return "▲ better, ▼ worse: by more than both standard deviations over seeds together."


def _spread(key: str, outcomes: Sequence[_Outcome], base: Group | None) -> Grid:
    """What the clients' outcomes come to: a mean may hide those who lose."""
    of = next((each for each in outcomes if each.group is base), None)
    compared = of is not None and len(outcomes) > 1
    rows = []
    for each in outcomes:
        means = {client: point.mean for client, point in each.shares.items()}
        worst = min(means, key=lambda client: (means[client], client))
        row = [
            cells.word(each.group.label),
            cells.word(worst),
            cells.count(len(means)),
            cells.percent(summarise(list(means.values()))),
            cells.percent(statistics.median(means.values())),
            cells.percent(means[worst]),
        ]
        if compared and of is not None:
            both = [client for client in means if client in of.shares]
            gains = [_gain(each.shares[client], of.shares[client]).tone for client in both]
            row += [cells.count(None if each is of else gains.count(tone)) for tone in ("gain", "loss")]
        rows.append(tuple(row))
    head = ["Method", "Worst client", "Clients", "Mean", "Median", "Worst"]
    note = "Mean ± sample standard deviation over clients."
    if compared and of is not None:
        head += ["Better", "Worse"]
        note += f" Better, worse: number of clients marked ▲ and ▼ against {of.group.label}."
    return Grid(key, "Clients’ own accuracy, by method", tuple(head), tuple(rows), 2, note)
