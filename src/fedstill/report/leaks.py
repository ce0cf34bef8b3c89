"""What leaks: what ``fedstill audit`` found, by attack, with who the attacker is; several runs beside each other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from fedstill.audit.roc import dp_bound
from fedstill.report import cells, words
from fedstill.report.groups import Group
from fedstill.report.leakage import About, Attack, Estimate, Inverted, Likeness, Members, Near, Readings, View
from fedstill.report.leaking import compared
from fedstill.report.parts import (
    Album,
    Axis,
    Block,
    Cell,
    Chart,
    Folded,
    Grid,
    Lines,
    Section,
    Sheet,
    Style,
    Text,
    Trace,
)
from fedstill.report.pictures import framed
from fedstill.report.runs import Run

__all__ = ["READINGS", "leaks"]

_TITLES = {
    "membership": "Membership inference",
    "inversion": "Inversion",
    "neighbours": "Nearest neighbours",
    "attributes": "Class histograms",
}
_CASES = {
    "first": "one step on one image, round 1",
    "one": "one step on one image",
    "few": "one step on a few",
    "sent": "as sent",
}
_MEASURES = {"psnr": "PSNR", "ssim": "SSIM", "lpips": "LPIPS, a distance", "correlation": "correlation"}
READINGS = {
    "signs": "update: signs (LLG)",
    "bias": "update: bias",
    "hard": "distilled labels",
    "soft": "distilled soft labels",
    "counts": "counts told",
}
"""What a class histogram was read off."""
_RATES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3)
_SAY = (
    "Attacks that are known, made by fedstill audit with what it could afford: what they find is there, and what they do not "
    "find may be there all the same. Intervals: 95 %, over images, for this one run."
)
_BOUND = (
    "By their own word clients’ images are (ε, δ)-differentially private, each of an image that counts or does not. Then no "
    "attack has a TPR above e^ε · FPR + δ. Here images are exchanged and not taken out, which is two such changes: what is "
    "allowed is so for 2 ε. ‘Shows’: a smaller ε is refuted by the attack, by limits that hold with 95 % for all attacks of the "
    "audit together (Kairouz et al., ICML 2015)."
)


def leaks(groups: Sequence[Group], labels: Mapping[int, str], *, pictures: bool) -> Section | None:
    """The section; None where no run was audited.

    Args:
        groups: of the page.
        labels: by a run's identity.
        pictures: whether those of an audit are shown, which have training images on them.
    """
    runs = [run for group in groups for run in group.runs]
    found = [run for run in runs if run.audited.there]
    if not found:
        return None
    blocks: list[Block] = [Text(_SAY, "mute")]
    if len(runs) > 1:
        blocks += compared(runs, labels)
    for index, run in enumerate(found, start=1):
        own = tuple(_of_run(f"leaks-{index}", run, labels[id(run)], pictures=pictures))
        blocks += own if len(found) == 1 else [Folded(f"Attacks on {labels[id(run)]}", own)]
    return Section("leaks", "What leaks", tuple(blocks))


def _of_run(key: str, run: Run, label: str, *, pictures: bool) -> Iterator[Block]:
    its = run.audited
    if its.membership is not None:
        yield from _membership(f"{key}-membership", its.membership, label)
    if its.inversion is not None:
        yield from _inversion(f"{key}-inversion", its.inversion, label)
        yield from _shown(f"{key}-inversion-pictures", run, its.inversion.pictures, "Inversion", pictures=pictures)
    if its.neighbours is not None:
        yield from _neighbours(f"{key}-neighbours", its.neighbours, label)
        yield from _shown(
            f"{key}-neighbours-pictures", run, its.neighbours.pictures, "Nearest neighbours", pictures=pictures
        )
    if its.attributes is not None:
        yield from _attributes(f"{key}-attributes", its.attributes, label)
    for name, why in (its.nothing or {}).items():
        yield Text(f"{_TITLES[name]}: not attacked: {why}.", "mute")


def _who(key: str, about: Sequence[About]) -> Folded:
    """Whose the attacks are, and what is assumed of the attacker."""
    rows = tuple((cells.word(each.title), cells.word(each.citation), cells.word(each.assumptions)) for each in about)
    head = ("Attack", "From", "What its attacker has")
    return Folded("Who attacks", (Grid(f"{key}-who", "Whose the attacks are, and what is assumed", head, rows, 3),))


# --- membership --------------------------------------------------------------------------------------------------------


def _membership(key: str, found: Members, label: str) -> Iterator[Block]:
    yield Grid(
        key,
        f"Membership inference on {label}: was this image trained on?",
        ("Network", "Attack", "AUC", "TPR at 1 % FPR", "TPR at 0.1 % FPR", "AUC on other targets"),
        tuple(_row(view, attack) for view in found.views for attack in view.attacks),
        2,
        f"After round {words.count(found.round)}, by {words.count(found.shadows)} shadow federations; "
        f"{words.count(found.members)} members, {words.count(found.others)} others. Guessing has an AUC of 0.5 and a TPR of the "
        "FPR. " + " ".join(f"Not attacked: {why}." for why in found.missing),
        grouped=True,
    )
    for number, view in enumerate(found.views, start=1):
        if (drawn := _roc(f"{key}-roc-{number}", view, label)) is not None:
            yield drawn
    if any(view.claim is not None for view in found.views):
        yield from _bounds(f"{key}-bounds", found)
    unable = {attack.missing: attack.title for view in found.views for attack in view.attacks if attack.missing}
    for why, title in unable.items():
        yield Text(f"No {title}: {why}.", "mute")
    yield _who(key, found.about)


def _row(view: View, attack: Attack) -> tuple[Cell, ...]:
    targets = attack.targets
    return (
        cells.word(_network(view)),
        cells.word(attack.title),
        _estimate(attack.auc),
        _estimate(attack.tpr.get("0.01"), share=True),
        _estimate(attack.tpr.get("0.001"), share=True),
        Cell(words.DASH) if targets is None else Cell(f"{targets[0]:.3f} ± {targets[1] or 0:.3f}", *targets),
    )


def _network(view: View) -> str:
    right = ((view.accuracy, "test"), (view.member_accuracy, "members"), (view.other_accuracy, "others"))
    return f"{view.name}: right of {', '.join(f'{name} {words.percent(value)}' for value, name in right)}"


def _estimate(found: Estimate | None, *, share: bool = False) -> Cell:
    if found is None:
        return Cell(words.DASH)
    value, low, high = (
        f"{100 * each:.1f}" if share else f"{each:.3f}" for each in (found.value, found.low, found.high)
    )
    return Cell(f"{value}{' %' if share else ''} ({low} to {high})", found.value)


def _roc(key: str, view: View, label: str) -> Lines | None:
    """Both axes logarithmic, as Carlini et al. draw it: what counts is the left end."""
    attacks = [attack for attack in view.attacks if len(attack.roc) > 1]
    if not attacks:
        return None
    least = min(fpr for attack in attacks for fpr, tpr in attack.roc if fpr > 0)
    traces = [
        Trace(f"leak-{attack.name}", attack.title, Style(place), *_steps(attack))
        for place, attack in enumerate(attacks)
    ]
    straight = [least * (1 / least) ** (step / 40) for step in range(41)]
    traces.append(Trace("leak-chance", "guessing", Style(len(attacks), 1), straight, straight))
    if (claim := view.claim) is not None:
        bound = [dp_bound(fpr, *claim.exchanged) for fpr in straight]
        name = f"allowed by ε = {words.figure(claim.epsilon)}, images exchanged"
        traces.append(Trace("leak-bound", name, Style(len(attacks) + 1, 2), straight, bound))
    strongest = max(attacks, key=lambda attack: attack.auc.value if attack.auc else 0.0)
    title = f"ROC on {view.name}" + (f" of {label}" if label else "")
    return Lines(
        Chart(
            key,
            title,
            f"Right of test images {words.percent(view.accuracy)}, of members {words.percent(view.member_accuracy)}, of others "
            f"{words.percent(view.other_accuracy)}. A curve begins where the attack first accuses an image wrongly.",
            f"{title}: true against false positives of {len(attacks)} attacks, both logarithmic. The strongest is "
            f"{strongest.title}" + (f", AUC {strongest.auc.value:.3f}." if strongest.auc else "."),
            Grid(
                key,
                title,
                ("FPR", *(attack.title for attack in attacks)),
                tuple(
                    (Cell(f"{100 * rate:g} %", rate), *(cells.percent(_at(attack, rate)) for attack in attacks))
                    for rate in _RATES
                    if rate >= least
                ),
            ),
        ),
        tuple(traces),
        Axis("false-positive rate", "share", log=True),
        Axis("true-positive rate", "share", log=True),
    )


def _steps(attack: Attack) -> tuple[list[float], list[float]]:
    """Points that a logarithmic axis has a place for."""
    shown = [(fpr, tpr) for fpr, tpr in attack.roc if fpr > 0 and tpr > 0]
    return [fpr for fpr, _ in shown], [tpr for _, tpr in shown]


def _at(attack: Attack, rate: float) -> float:
    """The highest TPR at no more than that FPR."""
    return max((tpr for fpr, tpr in attack.roc if fpr <= rate), default=0.0)


def _bounds(key: str, found: Members) -> Iterator[Block]:
    rows = tuple(
        (
            cells.word(view.name),
            cells.word(attack.title),
            cells.figure(view.claim.epsilon),
            cells.figure(view.claim.delta),
            *(_tried(attack, rate) for rate in ("0.01", "0.1")),
            Cell(words.DASH) if bound.shown is None else Cell(f"≥ {bound.shown:.2f}", bound.shown),
            cells.word("yes", tone="sick")
            if bound.exceeds
            else cells.word("no" if bound.exceeds is False else words.DASH),
        )
        for view in found.views
        if view.claim is not None
        for attack in view.attacks
        if (bound := attack.bound) is not None
    )
    head = (
        "Network",
        "Attack",
        "ε",
        "δ",
        "TPR of allowed, 1 % FPR",
        "TPR of allowed, 10 % FPR",
        "Shows ε",
        "More than guaranteed",
    )
    yield Grid(key, "What attacks show against the guarantee", head, rows, 2, _BOUND)


def _tried(attack: Attack, rate: str) -> Cell:
    if attack.bound is None or rate not in attack.bound.rates:
        return Cell(words.DASH)
    tpr, _, _, exchanged = attack.bound.rates[rate]
    return Cell(f"{words.percent(tpr)} of {words.percent(exchanged)}", tpr)


# --- the others --------------------------------------------------------------------------------------------------------


def _inversion(key: str, found: Inverted, label: str) -> Iterator[Block]:
    rows = tuple(
        (
            cells.word(_CASES.get(each.case, each.case)),
            cells.word(f"{words.count(each.images)} of {words.count(each.behind)}"),
            cells.word(f"{_MEASURES.get(each.measure, each.measure)}, {each.kind}"),
            *(_likeness(each, value) for value in (each.found, each.others, each.best, each.class_mean)),
            Cell(words.DASH if each.p is None else f"{each.p:.3f}", each.p),
        )
        for each in found.lines
    )
    protected = (
        ""
        if found.protection is None
        else f" Gradients are clipped to {words.figure(found.protection[1])} and have noise of σ = "
        f"{words.figure(found.protection[0])}, as the client’s have."
    )
    head = ("Update", "Images", "Likeness to", "Found", "Others", "Their best", "Class mean", "p")
    yield Grid(
        key,
        f"Inversion on {label}: what does a client’s update show?",
        head,
        rows,
        3,
        f"{found.client} in round {words.count(found.round)} ({found.source}), {words.count(found.steps)} steps, "
        f"{words.count(found.restarts)} {'search' if found.restarts == 1 else 'searches'}.{protected} Others, class mean: "
        "held-out images of the same classes, which an attacker has without the update."
        + "".join(f" {why[0].upper()}{why[1:]}." for why in found.missing),
    )
    yield _who(key, found.about)


def _likeness(line: Likeness, value: float | None) -> Cell:
    if value is None:
        return Cell(words.DASH)
    text = f"{value:.1f} dB" if line.measure == "psnr" else f"{value:.3f}"
    return Cell(text.replace("-", "−"), value)


def _neighbours(key: str, found: Near, label: str) -> Iterator[Block]:
    rows = tuple(
        (
            cells.word(each.name.partition(",")[0]),
            cells.count(each.images),
            Cell(f"{each.gap:.3f}", each.gap),
            Cell(words.DASH if each.chance is None else f"{each.chance[0]:.3f} to {each.chance[1]:.3f}"),
            Cell(words.DASH if each.p is None else f"{each.p:.3f}", each.p),
            cells.percent(each.closer),
            Cell(words.DASH if each.nearest is None else f"{each.nearest:.2f}", each.nearest),
            Cell(words.DASH if each.usual is None else f"{each.usual[0]:.2f} to {each.usual[1]:.2f}"),
        )
        for each in found.spaces
    )
    yield Grid(
        key,
        f"Nearest neighbours of {label}: are distilled images copies?",
        ("Distance in", "Images", "Gap", "By chance", "p", "Nearer", "Nearest", "By chance"),
        rows,
        1,
        f"After round {words.count(found.round)}, distilled images of {words.count(found.clients)} clients. Gap: by how much "
        "held-out images are farther than training images. Nearest: least ratio of the distance to any training image and the "
        "one to held-out images; a copy has 0, and by chance it lies in the range beside it.",
    )
    yield _who(key, found.about)


def _attributes(key: str, found: Readings, label: str) -> Iterator[Block]:
    rows = tuple(
        (
            cells.word(READINGS.get(each.name, each.name)),
            cells.count(each.clients),
            Cell(f"{each.distance:.3f}", each.distance),
            Cell(words.DASH if each.guess is None else f"{each.guess:.3f}", each.guess),
            Cell(
                words.DASH
                if each.gain is None
                else _signed(each.gain)
                + ("" if each.interval is None else f" ({_signed(each.interval[0])} to {_signed(each.interval[1])})"),
                each.gain,
            ),
        )
        for each in found.readings
    )
    yield Grid(
        key,
        f"Class histograms of {label}: how many images of which class does a client hold?",
        ("Read off", "Clients", "Distance", "Of a guess", "Gain"),
        rows,
        1,
        f"Up to round {words.count(found.round)}. Distance: total variation to the true histogram; 0 is the histogram itself. A "
        "guess takes every client for the mean of all." + "".join(f" Not read: {why}." for why in found.missing),
    )
    yield _who(
        key,
        tuple(About(READINGS.get(each.title, each.title), each.citation, each.assumptions) for each in found.about),
    )


def _signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", "−")


# --- pictures ----------------------------------------------------------------------------------------------------------


def _shown(key: str, run: Run, names: Sequence[str], title: str, *, pictures: bool) -> Iterator[Block]:
    """They show training images: a page that is handed on has them only where that was asked for."""
    if not names:
        return
    if not pictures:
        where = ", ".join(str(run.folder / name) for name in names)
        yield Text(f"Pictures of it show training images, and are not on this page: {where}.", "mute")
        return
    tiles = tuple(framed(run.folder / name, name.rpartition("/")[2], f"{title}: pairs of images") for name in names)
    yield Album(key, f"{title}: pictures, which show training images", "picture", (Sheet("pictures", tiles),))
