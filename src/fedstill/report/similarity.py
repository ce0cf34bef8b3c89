"""How unequal the clients' images are: discrepancies between clients, and t-SNE of features; both only where asked for."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar

from fedstill.report import cells, words
from fedstill.report.costs import MOST_ROWS
from fedstill.report.distilled import before_after
from fedstill.report.evaluated import Discrepancy, Embedding, Placed
from fedstill.report.parts import Axis, Block, Chart, Folded, Grid, Heat, Scatter, Section, Style, Text, Trace
from fedstill.report.runs import Run
from fedstill.report.series import key_of

__all__ = ["similarity"]

Part = TypeVar("Part")


def similarity(runs: Sequence[Run], labels: Mapping[int, str]) -> Section | None:
    """The section; None where nobody asked for it. The first run that was asked is shown, others are folded.

    Runs that found the same, as methods on one partition do, are shown once.
    """
    found: list[tuple[Run, tuple[Block, ...]]] = []
    seen: set[str] = set()
    for number, run in enumerate(runs, start=1):
        blocks: list[Block] = []
        measured, label = run.evaluated, labels[id(run)]
        if (mmd := _new(measured.mmd, seen)) is not None:
            blocks += _mmd(f"mmd-{number}", label, mmd)
        if (virtual := _new(measured.virtual, seen)) is not None:
            blocks += before_after(f"mmd-virtual-{number}", label, virtual)
        if (tsne := _new(measured.tsne, seen)) is not None:
            blocks += _tsne(f"tsne-{number}", "Images", label, tsne)
        if (placed := _new(measured.virtual_tsne, seen)) is not None:
            blocks += _tsne(f"tsne-virtual-{number}", "Virtual images", label, placed)
        if measured.virtual_missing:
            blocks.append(Text(f"Virtual images were not measured: {measured.virtual_missing}.", "mute"))
        if blocks:
            found.append((run, tuple(blocks)))
    if not found:
        return None
    (_, first), *others = found
    folded = (Folded(labels[id(run)], its) for run, its in others)
    return Section("similarity", "How alike the clients’ images are", (*first, *folded))


def _new(part: Part | None, seen: set[str]) -> Part | None:
    """``part``, unless another run has shown the same."""
    told = repr(part)
    if told in seen:
        return None
    seen.add(told)
    return part


def _mmd(key: str, label: str, found: Discrepancy) -> Iterator[Block]:
    pairs = [
        (value, row, column)
        for row in range(len(found.clients))
        for column in range(row)
        if (value := found.squared[row][column]) is not None
    ]
    told = ""
    if pairs:
        far, one, other = max(pairs)
        told = f" Furthest apart: {found.clients[other]} and {found.clients[one]}, {words.figure(far)}."
    images = f"{found.images} images a client" if found.images is not None else "clients’ images"
    bandwidth = f", bandwidth {words.figure(found.bandwidth)}" if found.bandwidth is not None else ""
    title = f"Discrepancy between clients: {label}"
    yield Heat(
        Chart(
            key,
            title,
            f"Unbiased squared maximum mean discrepancy of {images}, features: {found.features or 'not named'}{bandwidth}. "
            "About zero where two clients’ images are alike; it may fall below zero.",
            f"{title}, {len(found.clients)} by {len(found.clients)} clients.{told}",
            _pairs(key, title, found, pairs) if len(pairs) <= MOST_ROWS else _neighbours(key, title, found),
        ),
        found.clients,
        found.clients,
        found.squared,
        "client",
        "client",
    )
    if found.halves:
        yield Grid(
            f"{key}-halves",
            "Two halves of the same client",
            ("Client", "Squared MMD", "Standard error"),
            tuple(
                (cells.word(half.client), cells.figure(half.squared), cells.figure(half.error)) for half in found.halves
            ),
            note="A check of the measure: zero, within about two standard errors.",
        )
    if found.left_out:
        reasons = "; ".join(f"{client} ({reason})" for client, reason in found.left_out)
        yield Text(f"Left out: {reasons}.", "mute")


def _pairs(key: str, title: str, found: Discrepancy, pairs: Sequence[tuple[float, int, int]]) -> Grid:
    rows = tuple(
        (
            cells.word(found.clients[other]),
            cells.word(found.clients[one]),
            cells.figure(value),
            cells.figure(found.error[one][other]),
        )
        for value, one, other in sorted(pairs, key=lambda pair: (pair[2], pair[1]))
    )
    return Grid(key, title, ("Client", "Other client", "Squared MMD", "Standard error"), rows, 2)


def _neighbours(key: str, title: str, found: Discrepancy) -> Grid:
    """Where pairs are too many to read: each client's mean to the others, and whom it is furthest from."""
    rows = []
    for index, client in enumerate(found.clients):
        others = [
            (value, other)
            for other in range(len(found.clients))
            if other != index and (value := found.squared[index][other]) is not None
        ]
        if others:
            far, other = max(others)
            rows.append(
                (
                    cells.word(client),
                    cells.word(found.clients[other]),
                    cells.figure(statistics.fmean(value for value, _ in others)),
                    cells.figure(far),
                    cells.figure(found.error[index][other]),
                )
            )
    head = ("Client", "Furthest from", "Mean to others", "Squared MMD", "Standard error")
    note = "Every pair: fedstill report … --csv writes them, as mmd.csv."
    return Grid(key, title, head, tuple(rows), 2, note)


def _tsne(key: str, what: str, label: str, found: Embedding) -> Iterator[Block]:
    perplexity = f", perplexity {words.figure(found.perplexity)}" if found.perplexity is not None else ""
    caption = (
        f"t-SNE of {found.features or 'features'}{perplexity}. Distances within a cluster tell more than those between."
    )
    readers: tuple[tuple[str, Callable[[Placed], str]], ...] = (
        ("client", lambda point: point.client),
        ("class", lambda point: point.label),
    )
    for name, read in readers:
        its: dict[str, list[Placed]] = {}
        for point in found.points:
            its.setdefault(read(point), []).append(point)
        title = f"{what} by {name}: {label}"
        order = sorted(its)
        rows = tuple(
            (
                cells.word(each),
                cells.count(len(its[each])),
                cells.figure(statistics.fmean(point.x for point in its[each])),
                cells.figure(statistics.fmean(point.y for point in its[each])),
            )
            for each in order
        )
        note = "Where the images of each lie on average; evaluation.json in the run’s folder has every point."
        drawn = Scatter(
            Chart(
                f"{key}-{name}",
                title,
                caption,
                f"{title}: {len(found.points)} images of {len(its)} {'classes' if name == 'class' else 'clients'} in the plane.",
                Grid(f"{key}-{name}", title, (name.capitalize(), "Images", "Mean x", "Mean y"), rows, note=note),
            ),
            tuple(
                Trace(
                    f"{key}-{name}-{index}",
                    each,
                    Style(index),
                    tuple(point.x for point in its[each]),
                    tuple(point.y for point in its[each]),
                )
                for index, each in enumerate(order)
            ),
            Axis(""),
            Axis(""),
        )
        yield key_of(drawn.traces, [f"{len(its[each])} images" for each in order])
        yield drawn
