"""Numbers as a reader wants them. A number that is not known is a dash, never a zero."""

from __future__ import annotations

from fedstill.report.groups import Point

__all__ = ["DASH", "count", "duration", "figure", "percent", "points", "size"]

DASH = "–"
_GAP = "\N{NARROW NO-BREAK SPACE}"


def percent(value: Point | float | None) -> str:
    """``0.843`` → ``84.3 %``; with a spread, ``84.3 ± 1.2 %``."""
    if value is None:
        return DASH
    if isinstance(value, Point):
        spread = "" if value.spread is None else f"{_GAP}±{_GAP}{100 * value.spread:.1f}"
        return f"{100 * value.mean:.1f}{spread}{_GAP}%"
    return f"{100 * value:.1f}{_GAP}%"


def points(difference: float) -> str:
    """A difference of accuracies: ``0.043`` → ``4.3 points``."""
    return f"{100 * difference:.1f} points"


def figure(value: float | None) -> str:
    """Three significant digits."""
    return DASH if value is None else f"{value:.3g}"


def count(value: int | None) -> str:
    """Thousands apart."""
    return DASH if value is None else f"{value:,}".replace(",", _GAP)


def size(value: float | None) -> str:
    """Bytes in decimal units."""
    if value is None:
        return DASH
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.3g}{_GAP}{unit}"
        value /= 1000
    return f"{value:.3g}{_GAP}TB"


def duration(seconds: float | None) -> str:
    """``83`` → ``1 min 23 s``."""
    if seconds is None:
        return DASH
    if seconds < 60:
        return f"{seconds:.3g}{_GAP}s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}{_GAP}h {minutes:02}{_GAP}min" if hours else f"{minutes}{_GAP}min {rest:02}{_GAP}s"
