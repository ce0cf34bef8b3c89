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
from fedstill.report.rows import ClientRow
from fedstill.report.runs import Holding, Run

__all__ = ["holdings"]

_WIDE = 30  # classes that stand side by side
_FEW = 4  # methods that have room beside who held what
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


@dataclass(frozen=True)
class _Reached:
    """What clients reached.

    Attributes:
        outcomes: by method.
        source: by client, which of its own images it was scored on.
        base: what the others are compared with.
    """

    outcomes: Sequence[_Outcome]
    source: Mapping[str, str]
    base: _Outcome | None

    @property
    def mixed(self) -> bool:
        """Whether that differs by client; else a note says it once."""
        return len(set(self.source.values())) > 1


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
    reached = _outcomes(dealt)
    wide = len(holding.classes) > _WIDE
    long = len(holding.counts) > _LONG
    made = [_table(key, dealt, unequal, reached, wide=wide)]
    if len(reached.outcomes) > _FEW:
        made.append(_beside(f"{key}-reached", dealt, reached))
    blocks: list[Block] = [Folded(table.title, (table,)) if long else table for table in made]
    if wide:
        blocks.insert(1, _tall(f"{key}-classes", holding))
    if reached.outcomes:
        # above a long table: what it comes to
        blocks.insert(0 if long else len(blocks), _spread(f"{key}-outcomes", reached))
    if unequal.mean_distance is not None:
        distance = words.percent(unequal.mean_distance)
        told = f"Between two clients, {distance} of the images would have to change class, on average over all pairs."
        blocks.append(Text(told, "mute"))
    return blocks


def _table(key: str, dealt: _Dealt, unequal: Heterogeneity, reached: _Reached, *, wide: bool) -> Grid:
    """Who held what; and beside it what came of it, where methods are few."""
    holding = dealt.holding
    largest = max(map(max, holding.counts.values()), default=0)
    few = 0 < len(reached.outcomes) <= _FEW
    others = [each for each in reached.outcomes if each is not reached.base]
    head = ["Client", *(["Classes held", "Largest share"] if wide else holding.classes), "All", "Entropy", "Distance"]
    if few:
        head += _head(reached)
        head += [f"{each.group.label} − {reached.base.group.label}" for each in others if reached.base is not None]
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
        if few:
            row += [cells.word(reached.source.get(client, words.DASH))] if reached.mixed else []
            row += [cells.percent(each.shares.get(client)) for each in reached.outcomes]
            row += [_gain(each, reached.base, client) for each in others if reached.base is not None]
        rows.append(tuple(row))
    note = _source_note(reached) if few else ""
    if few and reached.base is not None and others:
        note += f" On the right: points gained or lost against {reached.base.group.label}. {_beyond(reached.outcomes)}"
    title = f"Clients and classes: {dealt.owners}" if dealt.owners else "Clients and classes"
    return Grid(key, title, tuple(head), tuple(rows), note=note)


def _beside(key: str, dealt: _Dealt, reached: _Reached) -> Grid:
    """What came of it, method by method; who gains and who loses is marked in place."""
    rows = []
    for client in dealt.holding.counts:
        row = [cells.word(client)]
        row += [cells.word(reached.source.get(client, words.DASH))] if reached.mixed else []
        for each in reached.outcomes:
            gained = _gain(each, reached.base, client).tone if each is not reached.base else ""
            row.append(cells.percent(each.shares.get(client), tone=gained))
        rows.append(tuple(row))
    note = _source_note(reached)
    if reached.base is not None:
        note += f" Marked against {reached.base.group.label}. {_beyond(reached.outcomes)}"
    title = "What each client reached" + (f": {dealt.owners}" if dealt.owners else "")
    return Grid(key, title, ("Client", *_head(reached)), tuple(rows), 2 if reached.mixed else 1, note)


def _head(reached: _Reached) -> list[str]:
    return [*(["Scored on"] if reached.mixed else []), *(each.group.label for each in reached.outcomes)]


def _source_note(reached: _Reached) -> str:
    images = "test or validation" if reached.mixed else next(iter(reached.source.values()))
    return (
        f"Under a method’s name: accuracy after its last round, of the model that a client received, on its own {images} "
        "images, which take no part in training."
    )


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


def _outcomes(dealt: _Dealt) -> _Reached:
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
    base = baseline([each.group for each in outcomes])
    return _Reached(outcomes, source, next((each for each in outcomes if each.group is base), None))


def _share(row: ClientRow | None, *, test: bool) -> float | None:
    if row is None:
        return None
    if test:
        return row.test.accuracy if row.test is not None else None
    return row.validation


def _gain(each: _Outcome, base: _Outcome | None, client: str) -> Cell:
    one, other = each.shares.get(client), base.shares.get(client) if base is not None else None
    if one is None or other is None:
        return cells.signed(None)
    difference = one.mean - other.mean
    if not differ(one, other):
        return cells.signed(difference)
    return cells.signed(difference, tone="gain" if difference > 0 else "loss")


def _beyond(outcomes: Sequence[_Outcome]) -> str:
    """What it takes to be marked."""
    if any(point.spread is None for each in outcomes for point in each.shares.values()):
        return "▲ better, ▼ worse: any difference counts where there is one seed, and a client’s own images are few."
    return "▲ better, ▼ worse: by more than both standard deviations over seeds together."


def _spread(key: str, reached: _Reached) -> Grid:
    """What the clients' outcomes come to: a mean may hide those who lose."""
    of = reached.base
    compared = of is not None and len(reached.outcomes) > 1
    rows = []
    for each in reached.outcomes:
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
            gains = [_gain(each, of, client).tone for client in both]
            row += [cells.count(None if each is of else gains.count(tone)) for tone in ("gain", "loss")]
        rows.append(tuple(row))
    head = ["Method", "Worst client", "Clients", "Mean", "Median", "Worst"]
    note = "Mean ± sample standard deviation over clients."
    if compared and of is not None:
        head += ["Better", "Worse"]
        note += f" Better, worse: number of clients marked ▲ and ▼ against {of.group.label}."
    return Grid(key, "Clients’ own accuracy, by method", tuple(head), tuple(rows), 2, note)
