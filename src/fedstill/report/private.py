"""How private clients' training images are, by what the clients say."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from fedstill.report import cells, words
from fedstill.report.costs import MOST_ROWS
from fedstill.report.groups import Group
from fedstill.report.parts import Block, Folded, Grid, Section, Text
from fedstill.report.rows import ClientRow, Private
from fedstill.report.runs import Run

__all__ = ["private"]


@dataclass(frozen=True)
class _Kind:
    """One sort of guarantee: where a client's line has it, and how it is told."""

    key: str
    told_by: Callable[[ClientRow], Private | None]
    title: str
    what: str
    say: str


_KINDS = (
    _Kind(
        key="privacy",
        told_by=lambda client: client.private,
        title="Privacy of the clients of {label}",
        what="their training images are differentially private",
        say="ε and δ: of all that the client has sent up to that round together, for each single one of its training images, "
        "which counts or does not; noise σ: in units of the length to which what an image adds was cut. Not covered: validation "
        "and test images, how many images a client holds and of which classes, what all images of one person have in common; nor "
        "anything against who knows the run’s seed, from which the noise comes.",
    ),
    _Kind(
        key="update",
        told_by=lambda client: client.update,
        title="Privacy of the updates of {label}",
        what="their updates are differentially private",
        say="Of updates ε and δ are of all noised answers of the client together, for all its training images at once, whatever "
        "they are; noise σ: in units of the length to which its update was cut. Not covered: validation and test images, and how "
        "many images a client holds; nor anything against who knows the run’s seed.",
    ),
)


def private(groups: Sequence[Group], labels: Mapping[int, str]) -> Section | None:
    """The section; None where no client says that it is. ``labels`` by a run's identity."""
    blocks: list[Block] = []
    for kind in _KINDS:
        found = [(run, its) for group in groups for run in group.runs if (its := _latest(run, kind))]
        for index, (run, its) in enumerate(found, start=1):
            blocks.append(Text(_told(labels[id(run)], run, kind, its)))
            blocks += _listed(f"{kind.key}-{index}", kind.title.format(label=labels[id(run)]), its)
        if found:
            blocks.append(Text(kind.say, "mute"))
    return Section("privacy", "Privacy", tuple(blocks)) if blocks else None


def _latest(run: Run, kind: _Kind) -> dict[str, tuple[int, Private]]:
    """By client: the last round in which it said what it had spent, and that."""
    return {
        client.client: (row.number, its)
        for row in run.rows
        for client in row.clients
        if (its := kind.told_by(client)) is not None
    }


def _told(label: str, run: Run, kind: _Kind, its: Mapping[str, tuple[int, Private]]) -> str:
    known = [each for _, each in its.values()]
    epsilon, delta = (max(getattr(each, name) for each in known) for name in ("epsilon", "delta"))
    noises = sorted({words.figure(each.noise): each.noise for each in known}.items(), key=lambda pair: pair[1])
    sigma = " to ".join(dict.fromkeys((noises[0][0], noises[-1][0])))
    rest = len({client.client for row in run.rows for client in row.clients} - its.keys())
    return (
        f"{label}: by the clients’ own word {kind.what}: ε = {words.figure(epsilon)} at "
        f"most, δ = {words.figure(delta)}, noise σ = {sigma}"
        + (f"; {words.count(rest)} client{' says' if rest == 1 else 's say'} nothing of it." if rest else ".")
    )


def _listed(key: str, title: str, its: Mapping[str, tuple[int, Private]]) -> Iterator[Block]:
    """A line a client, folded away: most say the same."""
    rows = tuple(
        (
            cells.word(client),
            cells.count(number),
            cells.figure(each.epsilon),
            cells.figure(each.delta),
            cells.figure(each.noise),
        )
        for client, (number, each) in list(its.items())[:MOST_ROWS]
    )
    table = Grid(key, title, ("Client", "Last round", "ε", "δ", "Noise σ"), rows)
    yield Folded(table.title, (table,))
    if len(its) > MOST_ROWS:
        yield Text(f"{len(its) - MOST_ROWS} more are in clients.csv, which fedstill report … --csv writes.", "mute")
