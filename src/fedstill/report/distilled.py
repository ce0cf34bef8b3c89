"""Clients' discrepancies by their real and by their virtual images, side by side."""

from __future__ import annotations

from collections.abc import Iterator

from fedstill.report import cells, words
from fedstill.report.costs import MOST_ROWS
from fedstill.report.evaluated import Distilled, Side
from fedstill.report.parts import Block, Cell, Chart, Grid, Heat, Text

__all__ = ["before_after", "told"]


def before_after(key: str, label: str, found: Distilled) -> Iterator[Block]:
    """What distilling changed, in a sentence and a table; then every pair, real and virtual side by side."""
    virtual = _virtual(found)
    yield Text(told(found, virtual))
    yield _means(key, label, virtual, found)
    before, after = found.before, found.after
    yield _heat(f"{key}-before", f"Real images: {label}", "real images", found, before, after)
    yield _heat(f"{key}-after", f"Virtual images: {label}", virtual, found, after, before)
    if found.left_out:
        reasons = "; ".join(f"{client} ({reason})" for client, reason in found.left_out)
        yield Text(f"Left out: {reasons}.", "mute")


def told(found: Distilled, virtual: str) -> str:
    """What the interval allows to say, and no more."""
    low, high = found.change.low, found.change.high
    than = f"by {virtual} than by as many real ones, in these features"
    if low is None or high is None:
        return f"Two clients are too few to tell whether they are further apart {than}."
    if low > 0:
        return f"In the mean over pairs, clients are further apart {than}."
    if high + (found.slack or 0) < 0:
        return f"In the mean over pairs, clients are nearer to each other {than}."
    why = (
        "the interval holds zero"
        if high >= 0
        else "they seem nearer, but of distilled images the estimate may be too low"
    )
    return f"Whether clients are further apart {than}, cannot be told: {why}."


def _virtual(found: Distilled) -> str:
    if found.initial:
        return "initial virtual images"
    return "virtual images" if found.round is None else f"virtual images of round {found.round}"


def _means(key: str, label: str, virtual: str, found: Distilled) -> Grid:
    change = found.change
    ratio = _interval(change.ratio_low, change.ratio_high)
    return Grid(
        key,
        f"Clients before and after distillation: {label}",
        ("Mean over pairs", "Squared MMD", "Standard error", "95 % interval"),
        (
            (cells.word("real images"), cells.figure(change.before), cells.figure(change.before_error), cells.NONE),
            (cells.word(virtual), cells.figure(change.after), cells.figure(change.after_error), cells.NONE),
            (cells.word("difference"), cells.figure(change.difference), cells.NONE, _interval(change.low, change.high)),
            (cells.word("ratio"), cells.figure(change.ratio), cells.NONE, ratio),
        ),
        note=" ".join(_notes(found)),
    )


def _notes(found: Distilled) -> Iterator[str]:
    change = found.change
    if change.rose is not None and change.pairs is not None:
        yield f"{change.rose} of {change.pairs} pairs are further apart."
    yield "Errors and intervals are over clients, one left out at a time with all its pairs."
    images = "as many images" if found.images is None else f"{found.images} images"
    bandwidth = f", bandwidth {words.figure(found.bandwidth)}" if found.bandwidth is not None else ""
    yield f"On both sides {images} a client, as many of each class, features: {found.features or 'not named'}{bandwidth}."
    if found.draws is not None and found.draws > 1:
        yield f"{found.draws} draws of real images, averaged."
    if found.slack is not None:
        low = words.figure(found.slack)
        yield f"Distilled images are no independent draws: their estimate may be too low, by about {low} at most."


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
