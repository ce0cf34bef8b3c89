"""From runs to the page: sections as values, in the order in which a reader meets them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from fedstill.report import facts
from fedstill.report.ablation import ablation
from fedstill.report.accuracy import accuracy
from fedstill.report.classes import classes
from fedstill.report.costs import costs, total
from fedstill.report.domains import domains
from fedstill.report.fresh import fresh
from fedstill.report.groups import Group, gather, title
from fedstill.report.holdings import holdings
from fedstill.report.hostile import hostile
from fedstill.report.images import images
from fedstill.report.leaks import leaks
from fedstill.report.matching import failures, matching
from fedstill.report.nodes import nodes
from fedstill.report.pareto import pareto
from fedstill.report.parts import Block, Folded, Page, Section
from fedstill.report.private import private
from fedstill.report.results import results
from fedstill.report.runs import UNFINISHED, Run
from fedstill.report.series import series
from fedstill.report.similarity import similarity
from fedstill.report.summary import numbers
from fedstill.report.theory import theory
from fedstill.report.verdict import verdict

__all__ = ["build", "called"]

_LONG = 30  # rows of a table that a reader sees without opening it
_NAMES = 5  # groups that the title names one by one; of more, it names their methods
_MOST_NAMES = 8


def build(runs: Sequence[Run], *, live: int | None = None, audit_pictures: bool = False) -> Page:
    """The page of ``runs``.

    Args:
        runs: in their order.
        live: seconds after which a browser should read it again.
        audit_pictures: whether pictures of audits are on it, which show training images.
    """
    groups, notes = gather(runs)
    counted = [run for group in groups for run in group.runs]
    labels = _run_labels(groups, runs)
    missing = (
        f"{labels[id(run)]}: {'the run goes on' if sentence == UNFINISHED and live is not None else sentence}."
        for run in runs
        for sentence in run.missing
    )
    return Page(
        title=_title(groups, runs),
        verdict=verdict(groups),
        footing=" ".join(filter(None, (_footing(groups), total(counted, labels)))),
        notes=(*facts.mismatch(counted), *_seeds(groups), *notes, *missing),
        sections=tuple(_sections(runs, groups, labels, audit_pictures=audit_pictures)),
        live=live,
    )


def called(runs: Sequence[Run]) -> list[tuple[str, Run]]:
    """Each run beside what the page calls it."""
    labels = _run_labels(gather(runs)[0], runs)
    return [(labels[id(run)], run) for run in runs]


def _title(groups: Sequence[Group], runs: Sequence[Run]) -> str:
    names = [group.label for group in groups] or [title(run) for run in runs]
    if len(names) > _NAMES:
        names = list(dict.fromkeys(title(group.runs[0]) for group in groups))
    more = len(names) - _MOST_NAMES
    return ", ".join(names) if more < 2 else f"{', '.join(names[:_MOST_NAMES])} and {more} more"


def _sections(
    runs: Sequence[Run], groups: Sequence[Group], labels: Mapping[int, str], *, audit_pictures: bool
) -> Iterator[Section]:
    lines = series(groups)
    counted = [run for group in groups for run in group.runs]
    own = domains(groups)
    tables: list[Block] = [*results(groups), *([own] if own is not None else [])]
    if lines:
        every = numbers(lines)
        tables.append(Folded(every.title, (every,)) if len(every.rows) > _LONG else every)
    if tables:
        yield Section("numbers", "The numbers", tuple(tables))
    yield facts.facts(runs, groups, labels)
    made = (
        accuracy(lines),
        ablation(groups, lines),
        pareto(lines),
        holdings(counted or runs, groups, labels),
        similarity(counted or runs, labels),
        classes(lines),
        images(groups),
        matching(groups, labels),
        nodes(groups, labels),
        private(groups, labels),
        leaks(groups, labels, pictures=audit_pictures),
        hostile(groups, labels),
        theory(groups),
        fresh(groups),
    )
    yield from (section for section in made if section is not None)
    yield failures(runs, labels)
    if (section := costs(groups)) is not None:
        yield section


def _run_labels(groups: Sequence[Group], runs: Sequence[Run]) -> dict[int, str]:
    """A name for every run, by identity: its group's, and its seed where the group has several."""
    names = {id(run): run.folder.resolve().name for run in runs}
    for group in groups:
        for run in group.runs:
            names[id(run)] = group.label if len(group.runs) == 1 else f"{group.label}, seed {run.seed}"
    return names


def _seeds(groups: Sequence[Group]) -> Iterator[str]:
    """Another seed is another partition and other first weights: means over other seeds are not of the same thing."""
    if len({frozenset(run.seed for run in group.runs) for group in groups}) > 1:
        yield "Not all methods were run with the same seeds: part of what tells them apart may be the seeds’."


def _footing(groups: Sequence[Group]) -> str:
    counts = sorted({len(group.runs) for group in groups})
    if not counts:
        return ""
    if counts == [1]:
        return "One seed: how much of this is luck is not known."
    several = "some methods with one seed alone, whose spread is not known" if counts[0] == 1 else ""
    seeds = " to ".join(map(str, sorted({counts[0], counts[-1]})))
    return f"Mean ± sample standard deviation over {seeds} seeds" + (f"; {several}." if several else ".")
