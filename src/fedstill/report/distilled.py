"""Clients' discrepancies by their real and by their virtual images, side by side."""

from __future__ import annotations

from collections.abc import Iterator

from fedstill.report import cells, words
from fedstill.report.costs import MOST_ROWS
from fedstill.report.evaluated import Change, Distilled, Side
from fedstill.report.parts import Block, Cell, Chart, Grid, Heat, Text

__all__ = ["before_after", "told"]


def before_after(key: str, label: str, found: Distilled) -> Iterator[Block]:
    """What distilling changed, in a sentence and a table; then every pair, real and virtual side by side."""
    virtual = _virtual(found)
    yield Text(told(found.change, virtual))
    yield _means(key, label, virtual, found)
    before, after = found.before, found.after
    yield _heat(f"{key}-before", f"Real images: {label}", "real images", found, before, after)
    yield _heat(f"{key}-after", f"Virtual images: {label}", virtual, found, after, before)
    if found.left_out:
        reasons = "; ".join(f"{client} ({reason})" for client, reason in found.left_out)
        yield Text(f"Left out: {reasons}.", "mute")


def told(change: Change, virtual: str) -> str:
    """What the interval allows to say, and no more."""
    than = f"by {virtual} than by as many real ones, in these features"
    if change.low is None or change.high is None:
        return f"Two clients are too few to tell whether they are further apart {than}."
    if change.low <= 0 <= change.high:
        return f"Whether clients are further apart {than}, cannot be told: the interval holds zero."
    return (
        f"In the mean over pairs, clients are {'further apart' if change.low > 0 else 'nearer to each other'} {than}."
    )


def _virtual(found: Distilled) -> str:
    if found.initial:
        return "initial virtual images"
    return "virtual images" if found.round is None else f"virtual images of round {found.round}"


def _means(key: str, label: str, virtual: str, found: Distilled) -> Grid:
    change = found.change
    rose = (
        ""
        if change.rose is None or change.pairs is None
        else f"{change.rose} of {change.pairs} pairs are further apart. "
    )
    return Grid(
        key,
        f"Clients before and after distillation: {label}",
        ("Mean over pairs", "Squared MMD", "Standard error", "95 % interval"),
        (
            (cells.word("real images"), cells.figure(change.before), cells.figure(change.before_error), cells.NONE),
            (cells.word(virtual), cells.figure(change.after), cells.figure(change.after_error), cells.NONE),
            (cells.word("difference"), cells.figure(change.difference), cells.NONE, _interval(change.low, change.high)),
            (
                cells.word("ratio"),
                cells.figure(change.ratio),
                cells.NONE,
                _interval(change.ratio_low, change.ratio_high),
            ),
        ),
        note=f"{rose}Errors and intervals are over clients, one left out at a time with all its pairs. {_how(found)}",
    )


def _how(found: Distilled) -> str:
    images = "as many images" if found.images is None else f"{found.images} images"
    draws = f" {found.draws} draws of real images, averaged." if found.draws is not None and found.draws > 1 else ""
    bandwidth = f", bandwidth {words.figure(found.bandwidth)}" if found.bandwidth is not None else ""
    features = f"features: {found.features or 'not named'}{bandwidth}"
    return f"On both sides {images} a client, as many of each class, {features}.{draws}"


def _interval(low: float | None, high: float | None) -> Cell:
    return cells.word(words.DASH if low is None or high is None else f"{words.figure(low)} to {words.figure(high)}")


def _heat(key: str, title: str, what: str, found: Distilled, side: Side, other: Side) -> Heat:
    count = len(found.clients)
    pairs = [(row, column) for column in range(count) for row in range(column)]
    values = [(value, row, column) for row, column in pairs if (value := side.squared[row][column]) is not None]
    far = ""
    if values:
        most, row, column = max(values)
        far = f" Furthest apart: {found.clients[row]} and {found.clients[column]}, {words.figure(most)}."
    rows = tuple(
        (
            cells.word(found.clients[row]),
            cells.word(found.clients[column]),
            cells.figure(side.squared[row][column]),
            cells.figure(side.error[row][column]),
        )
        for row, column in pairs[:MOST_ROWS]
    )
    more = (
        ""
        if len(pairs) <= MOST_ROWS
        else f"The first {MOST_ROWS} of {len(pairs)} pairs; evaluation.json in the run’s folder has all."
    )
    return Heat(
        Chart(
            key,
            title,
            f"Unbiased squared maximum mean discrepancy of {what}; both fields have one scale.",
            f"{title}, {count} by {count} clients.{far}",
            Grid(key, title, ("Client", "Other client", "Squared MMD", "Standard error"), rows, 2, more),
        ),
        found.clients,
        found.clients,
        side.squared,
        "client",
        "client",
        beside=other.squared,
    )
