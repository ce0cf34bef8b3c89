"""Where an axis has its ticks, and what they say: round numbers of the unit in which a reader thinks."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

from matplotlib.axis import Axis as Scale
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from fedstill.report.parts import Axis, Unit

__all__ = ["shortened", "tick"]

_GAP = "\N{NARROW NO-BREAK SPACE}"
_FEWEST, _MOST = 3, 6  # ticks of a logarithmic axis
_STEPS = ((1.0,), (1.0, 3.0), (1.0, 2.0, 5.0), (1.0, 1.5, 2.0, 3.0, 5.0, 7.0))  # within a decade, from coarse to fine
_UNITS: dict[Unit, tuple[tuple[float, str], ...]] = {
    "seconds": ((3600.0, "h"), (60.0, "min"), (1.0, "s")),
    "bytes": ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "B")),
}


def tick(scale: Scale, axis: Axis) -> None:
    """Give ``scale``, whose limits are set, the ticks of ``axis``."""
    low, high = scale.get_view_interval()
    if not axis.label and not axis.unit:  # coordinates that mean nothing by themselves, as those of t-SNE
        scale.set_major_locator(NullLocator())
        return
    if axis.ticks:
        scale.set_ticks(range(len(axis.ticks)), labels=[shortened(word, 14) for word in axis.ticks])
        return
    if axis.log and high > 3 * low:
        ticks, of = _logarithmic(low, high, axis.unit), None
    else:
        of = _of(high - low if axis.unit == "seconds" else high, axis.unit, few=2 if axis.unit == "seconds" else 1)
        steps = (1, 2, 3, 5, 10) if axis.unit == "seconds" else None
        whole = axis.whole or axis.unit == "round"
        # with more than one tick demanded, whole numbers would be given up for them
        locator = MaxNLocator(4 if axis.log else 5, steps=steps, integer=whole, min_n_ticks=1 if whole else _FEWEST)
        ticks = [of[0] * value for value in locator.tick_values(low / of[0], high / of[0])]
    scale.set_minor_locator(NullLocator())
    scale.set_ticks([float(value) for value in ticks if low <= value <= high])
    scale.set_major_formatter(FuncFormatter(lambda value, _: _said(value, axis.unit, of)))


def shortened(text: str, most: int = 26) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def _logarithmic(low: float, high: float, unit: Unit) -> Sequence[float]:
    """The coarsest steps that give enough ticks."""
    ticks: Sequence[float] = ()
    for steps in _STEPS:
        found = _times(steps) if unit == "seconds" else LogLocator(subs=steps, numticks=_MOST).tick_values(low, high)
        ticks = [value for value in found if low <= value <= high]
        if len(ticks) >= _FEWEST:
            break
    return ticks[:: -(-len(ticks) // _MOST)] if ticks else ticks


def _times(steps: Sequence[float]) -> list[float]:
    """1, 3, 10, 30 s; 1, 3, 10, 30 min; 1, 3, 10 h …: decades of a second do not read as times."""
    seconds = [step * 10.0**power for power, step in product(range(-9, 2), steps)]
    minutes = [60 * step * 10.0**power for power, step in product(range(2), steps)]
    hours = [3600 * step * 10.0**power for power, step in product(range(9), steps)]
    return [
        *(value for value in seconds if value < 60),
        *(value for value in minutes if value < 3600),
        *hours,
    ]


def _of(value: float, unit: Unit, *, few: int = 1) -> tuple[float, str]:
    """The unit in which ``value`` is told in one number, of which there are at least ``few``."""
    units = _UNITS.get(unit, ((1.0, ""),))
    return next((each for each in units if value >= few * each[0]), units[-1])


def _said(value: float, unit: Unit, of: tuple[float, str] | None) -> str:
    if unit == "share":
        return f"{100 * value:.4g}".replace("-", "−")  # its label says per cent
    size, name = of or _of(value, unit)
    text = (f"{value / size:.6g}" if of else f"{value / size:.3g}").replace("-", "−")
    return f"{text}{_GAP}{name}" if name and value else text
