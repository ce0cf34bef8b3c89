"""Numbers as a reader wants them. A number that is not known is a dash, never a zero."""

from __future__ import annotations

from fedstill.report.groups import Point

__all__ = ["DASH", "count", "duration", "figure", "listed", "percent", "points", "rounds", "signed", "size"]

DASH = "–"
_GAP = "\N{NARROW NO-BREAK SPACE}"
_PM = f"{_GAP}±{_GAP}"

Known = Point | float | None


def percent(value: Known) -> str:
    """``0.843`` → ``84.3 %``; with a spread, ``84.3 ± 1.2 %``."""
    if value is None:
        return DASH
    if isinstance(value, Point):
        spread = "" if value.spread is None else f"{_PM}{100 * value.spread:.1f}"
        return f"{100 * value.mean:.1f}{spread}{_GAP}%"
    return f"{100 * value:.1f}{_GAP}%"


def points(difference: float) -> str:
    """A difference of accuracies: ``0.043`` → ``4.3 points``."""
    return f"{100 * difference:.1f} points"


def signed(difference: Known) -> str:
    """A difference of accuracies in points, with its sign: ``0.043`` → ``+4.3``; with a spread, ``+4.3 ± 1.2``."""
    if difference is None:
        return DASH
    mean, spread = (difference.mean, difference.spread) if isinstance(difference, Point) else (difference, None)
    text = f"{100 * mean:+.1f}".replace("-", "−")
    text = "0.0" if text in ("+0.0", "−0.0") else text
    return text if spread is None else f"{text}{_PM}{100 * spread:.1f}"


def figure(value: Known) -> str:
    """Three significant digits; with a spread, ``0.843 ± 0.012``."""
    if value is None:
        return DASH
    if isinstance(value, Point):
        return f"{value.mean:.3g}" + ("" if value.spread is None else f"{_PM}{value.spread:.2g}")
    return f"{value:.3g}"


def count(value: int | None) -> str:
    """Thousands apart."""
    return DASH if value is None else f"{value:,}".replace(",", _GAP)


def rounds(value: Known) -> str:
    """A number of rounds; over seeds it need not be whole: ``3``, ``3.3 ± 0.6``."""
    if value is None:
        return DASH
    if isinstance(value, Point):
        return f"{value.mean:.3g}" if not value.spread else f"{value.mean:.1f}{_PM}{value.spread:.1f}"
    return f"{value:.3g}"


def size(value: Known) -> str:
    """Bytes in decimal units: ``1.2 MB``; with a spread that is not zero, ``9.28 ± 0.14 MB``."""
    if value is None:
        return DASH
    mean, spread = (value.mean, value.spread) if isinstance(value, Point) else (value, None)
    power = next((power for power in range(4) if mean < 1000 ** (power + 1)), 4)
    return _measured(mean, spread, 1000**power, ("B", "kB", "MB", "GB", "TB")[power])


def duration(seconds: Known) -> str:
    """``83`` → ``1 min 23 s``; with a spread that is not zero, ``25 ± 0.7 s`` or ``1 min 23 s ± 4 s``."""
    if seconds is None:
        return DASH
    mean, spread = (seconds.mean, seconds.spread) if isinstance(seconds, Point) else (seconds, None)
    if mean < 60:
        return _measured(mean, spread, 1, "s")
    minutes, rest = divmod(round(mean), 60)
    hours, minutes = divmod(minutes, 60)
    text = f"{hours}{_GAP}h {minutes:02}{_GAP}min" if hours else f"{minutes}{_GAP}min {rest:02}{_GAP}s"
    if not spread:
        return text
    return f"{text}{_PM}{duration(spread) if spread >= 60 else _measured(spread, None, 1, 's', digits=2)}"


def _measured(mean: float, spread: float | None, unit: float, name: str, *, digits: int = 3) -> str:
    band = f"{_PM}{_plain(spread / unit, 2)}" if spread else ""
    return f"{_plain(mean / unit, digits)}{band}{_GAP}{name}"


def _plain(value: float, digits: int) -> str:
    """So many significant digits, and never an exponent for what is large."""
    return f"{value:.{digits}g}" if abs(value) < 10**digits - 0.5 else f"{value:.0f}"


def listed(texts: list[str] | tuple[str, ...]) -> str:
    """``a, b and c``."""
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} and {texts[-1]}"
