"""What leaks from several runs, one line a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from fedstill.report import cells, words
from fedstill.report.leakage import Attack, Inverted, Likeness, View
from fedstill.report.parts import Block, Cell, Grid, Text
from fedstill.report.runs import Run

__all__ = ["compared"]

_CASES = {"one": ("first", "one"), "sent": ("sent",)}
"""Updates by column: a step on one image is made from the network of the last round and from that of the first."""
_FINAL, _PIXELS = "final", "pixels"
_SAY = (
    "AUC and TPR: of the attack with the highest AUC on the run’s final network, which is named; the best of several looks "
    "stronger than it is. SSIM: found images against those behind the update, 1 is the same. Neighbours’ gap: distance to "
    "held-out images less that to training images, of normalised pixels. ε: the largest of any client, by its own word."
)


def compared(runs: Sequence[Run], labels: Mapping[int, str]) -> Iterator[Block]:
    """The table, and why a dash stands where it does."""
    rows, whys = [], []
    for run in runs:
        cells_of, lacking = _line(run)
        rows.append((cells.word(labels[id(run)]), *cells_of))
        whys += [f"{labels[id(run)]}, {name}: {why}." for name, why in lacking]
    head = (
        "Run",
        "Strongest attack",
        "Accuracy",
        "AUC",
        "TPR at 1 % FPR",
        "SSIM, one image",
        "SSIM, as sent",
        "Neighbours’ gap",
        "ε",
        "Bytes up",
    )
    yield Grid("leaks", "What leaks, and what was had for it", head, tuple(rows), 2, _SAY, paper=True)
    if whys:
        yield Text(" ".join(whys), "mute")


def _line(run: Run) -> tuple[tuple[Cell, ...], list[tuple[str, str]]]:
    """Cells, and what of the run there is not, with the reason."""
    its, dash = run.audited, Cell(words.DASH)
    lacking: list[tuple[str, str]] = []
    strongest = _strongest(run)
    if strongest is None:
        lacking.append(("membership", its.why_not("membership") if its.membership is None else "no final network"))
    elif "0.01" not in strongest.tpr:
        lacking.append(("TPR", "fewer than 100 images that nobody trained on"))
    likeness = {case: _found(its.inversion, case) for case in _CASES}
    if its.inversion is None:
        lacking.append(("inversion", its.why_not("inversion")))
    else:
        lacking += [("inversion", f"'{case}' was not inverted") for case, each in likeness.items() if each is None]
    gap = next((each for each in its.neighbours.spaces if each.name == _PIXELS), None) if its.neighbours else None
    if gap is None:
        lacking.append(("neighbours", its.why_not("neighbours")))
    if not its.there:
        lacking = [("all", "not audited")]
    ups = [row.bytes_up for row in run.rows]
    last = run.rows[-1].accuracy if run.rows else {}
    epsilon = [client.private.epsilon for row in run.rows for client in row.clients if client.private is not None]
    auc = strongest.auc if strongest is not None else None
    tpr = strongest.tpr.get("0.01") if strongest is not None else None
    return (
        cells.word(words.DASH if strongest is None else strongest.title),
        cells.percent(next(iter(last.values()), None)),
        dash if auc is None else Cell(f"{auc.value:.3f} ({auc.low:.3f} to {auc.high:.3f})", auc.value),
        dash if tpr is None else Cell(words.percent(tpr.value), tpr.value),
        *(
            dash if each is None else Cell(f"{each.found:.3f}".replace("-", "−"), each.found)
            for each in likeness.values()
        ),
        dash if gap is None else Cell(f"{gap.gap:.3f}", gap.gap),
        cells.figure(max(epsilon)) if epsilon else cells.word("none"),
        cells.size(sum(each or 0 for each in ups)) if ups and None not in ups else dash,
    ), lacking


def _found(inverted: Inverted | None, case: str) -> Likeness | None:
    """The highest SSIM of the updates that stand for ``case``."""
    if inverted is None:
        return None
    known = [each for name in _CASES[case] if (each := inverted.of(name, "ssim")) is not None]
    return max(known, key=lambda each: each.found, default=None)


def _strongest(run: Run) -> Attack | None:
    views = run.audited.membership.views if run.audited.membership is not None else ()
    final: View | None = next((view for view in views if view.name.partition(":")[0] == _FINAL), None)
    known = [attack for attack in final.attacks if attack.auc is not None] if final is not None else []
    return max(known, key=lambda attack: attack.auc.value if attack.auc else 0.0, default=None)
