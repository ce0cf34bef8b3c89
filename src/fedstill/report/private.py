"""How private clients' training images are, by what the clients say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from fedstill.report import cells, words
from fedstill.report.costs import MOST_ROWS
from fedstill.report.groups import Group
from fedstill.report.parts import Block, Folded, Grid, Section, Text
from fedstill.report.rows import Private
from fedstill.report.runs import Run

__all__ = ["private"]

_SAY = (
    "ε and δ: of all that the client has sent up to that round together, for each single one of its training images, which "
    "counts or does not; noise σ: in units of the length to which what an image adds was cut. Not covered: validation and test "
    "images, how many images a client holds and of which classes, what all images of one person have in common; nor anything "
    "against who knows the run’s seed, from which the noise comes."
)


def private(groups: Sequence[Group], labels: Mapping[int, str]) -> Section | None:
    """The section; None where no client says that it is. ``labels`` by a run's identity."""
    found = [(run, its) for group in groups for run in group.runs if (its := _latest(run))]
    if not found:
        return None
    blocks: list[Block] = []
    for index, (run, its) in enumerate(found, start=1):
        blocks.append(Text(_told(labels[id(run)], run, its)))
        blocks += _listed(f"privacy-{index}", f"Privacy of the clients of {labels[id(run)]}", its)
    return Section("privacy", "Privacy", (*blocks, Text(_SAY, "mute")))


def _latest(run: Run) -> dict[str, tuple[int, Private]]:
    """By client: the last round in which it said what it had spent, and that."""
    return {
        client.client: (row.number, client.private)
        for row in run.rows
        for client in row.clients
        if client.private is not None
    }


def _told(label: str, run: Run, its: Mapping[str, tuple[int, Private]]) -> str:
    known = [each for _, each in its.values()]
    epsilon, delta = (max(getattr(each, name) for each in known) for name in ("epsilon", "delta"))
    noises = sorted({words.figure(each.noise): each.noise for each in known}.items(), key=lambda pair: pair[1])
    sigma = " to ".join(dict.fromkeys((noises[0][0], noises[-1][0])))
    rest = len({client.client for row in run.rows for client in row.clients} - its.keys())
    return (
        f"{label}: by the clients’ own word their training images are differentially private: ε = {words.figure(epsilon)} at "
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
