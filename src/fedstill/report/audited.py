"""``audit.json``: what ``fedstill audit`` found in a run. It is absent unless it was asked for.

Files of earlier audits lack what was measured later (``claim``, ``bound``, ``protection``): that is absent, and no damage.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fedstill.audit.bounds import Claim
from fedstill.report.leakage import (
    About,
    Attack,
    Audited,
    Bound,
    Estimate,
    Inverted,
    Likeness,
    Members,
    Near,
    Reading,
    Readings,
    Space,
    View,
)
from fedstill.report.reading import Table, as_count, as_figure, as_list, as_share, as_table, as_text, read_json

__all__ = ["ATTACKS", "read_audited"]

VERSION = 1
"""Of ``audit.json``, as :mod:`fedstill.auditing` has it, which this floor does not import."""

ATTACKS = ("membership", "inversion", "neighbours", "attributes")


def read_audited(path: Path, missing: list[str]) -> Audited:
    """What ``path`` holds. That it is not there is no damage; what is there and cannot be read is named in ``missing``."""
    if not path.exists():
        return Audited()
    value = read_json(path, missing)
    if value is None:
        return Audited()
    if (version := as_count(value.get("version"))) is None or version > VERSION:
        missing.append(
            f"{path.name} is of a format that this fedstill does not know ({value.get('version')}): left out"
        )
        return Audited()
    tables = {name: as_table(value.get(name)) for name in ATTACKS}
    nothing = {name: why for name, table in tables.items() if (why := as_text(table.get("nothing")))}
    found = Audited(
        _membership(tables["membership"]),
        _inversion(tables["inversion"]),
        _neighbours(tables["neighbours"]),
        _attributes(tables["attributes"]),
        nothing,
    )
    missing.extend(
        f"'{name}' in {path.name} is damaged: it is left out"
        for name in ATTACKS
        if value.get(name) is not None and name not in nothing and getattr(found, name) is None
    )
    return found


# --- membership --------------------------------------------------------------------------------------------------------


def _membership(table: Table) -> Members | None:
    about = {
        name: About(as_text(each.get("title")) or name, as_text(each.get("citation")), as_text(each.get("assumptions")))
        for name, each in _tables(table.get("about"))
    }
    views = tuple(_view(as_table(each), about) for each in as_list(table.get("views")))
    pool = as_table(table.get("pool"))
    if not any(attack.auc for view in views for attack in view.attacks):
        return None
    return Members(
        round=as_count(table.get("round")),
        shadows=as_count(table.get("shadows")),
        members=as_count(pool.get("members")),
        others=as_count(pool.get("others")),
        views=views,
        missing=_texts(table.get("missing")),
        about=tuple(about.values()),
        looks=as_count(as_table(table.get("privacy")).get("looks")),
    )


def _view(table: Table, about: Mapping[str, About]) -> View:
    claim = as_table(table.get("claim"))
    epsilon, delta = as_figure(claim.get("epsilon")), as_figure(claim.get("delta"))
    return View(
        name=as_text(table.get("view")),
        accuracy=as_share(table.get("accuracy")),
        member_accuracy=as_share(table.get("member_accuracy")),
        other_accuracy=as_share(table.get("other_accuracy")),
        claim=None if epsilon is None or delta is None else Claim(epsilon, delta),
        attacks=tuple(
            _attack(name, about[name].title if name in about else name, each)
            for name, each in _tables(table.get("attacks"))
        ),
    )


def _attack(name: str, title: str, table: Table) -> Attack:
    roc = as_table(table.get("roc"))
    points = zip(as_list(roc.get("fpr")), as_list(roc.get("tpr")), strict=False)
    known = ((as_share(fpr), as_share(tpr)) for fpr, tpr in points)
    tpr = {rate: _estimate(each) for rate, each in _tables(table.get("tpr"))}
    auc = _estimate(as_table(table.get("auc")))
    return Attack(
        name=name,
        title=title,
        auc=auc,
        tpr={rate: each for rate, each in tpr.items() if each is not None},
        targets=_targets(as_table(as_table(table.get("targets")).get("auc"))),
        roc=tuple((fpr, tpr) for fpr, tpr in known if fpr is not None and tpr is not None),
        bound=_bound(as_table(table.get("bound"))),
        missing=as_text(table.get("missing")) or ("" if auc else "its figures are damaged"),
    )


def _targets(table: Table) -> tuple[float, float | None] | None:
    mean = as_share(table.get("mean"))
    return None if mean is None else (mean, as_figure(table.get("deviation")))


def _bound(table: Table) -> Bound | None:
    if not table:
        return None
    exceeds = table.get("exceeds")
    rates = {
        rate: tuple(as_share(each.get(key)) for key in ("tpr", "tpr_low", "allowed", "allowed_exchanged"))
        for rate, each in _tables(table.get("rates"))
    }
    known = {rate: (a, b, c, d) for rate, (a, b, c, d) in rates.items() if None not in (a, b, c, d)}
    return Bound(as_figure(table.get("shown")), exceeds if isinstance(exceeds, bool) else None, known)  # type: ignore[arg-type]


def _estimate(table: Table) -> Estimate | None:
    value, low, high = (as_share(table.get(key)) for key in ("value", "low", "high"))
    return None if value is None or low is None or high is None else Estimate(value, low, high)


# --- the others --------------------------------------------------------------------------------------------------------


def _inversion(table: Table) -> Inverted | None:
    cases = dict(_tables(table.get("cases")))
    own = as_table(table.get("protection"))
    noise, clip = as_figure(own.get("noise")), as_figure(own.get("clip"))
    if not cases:
        return None
    absent = [
        f"no {name if name == 'others' else name.upper()}: {why}"
        for case in cases.values()
        for _, of in _tables(case.get("against"))
        for name, why in as_table(of.get("absent")).items()
        if isinstance(why, str)
    ]
    kinds = as_text(table.get("kind"))
    return Inverted(
        client=as_text(table.get("client")),
        round=as_count(table.get("round")),
        source=as_text(table.get("source")),
        steps=as_count(table.get("steps")),
        restarts=as_count(table.get("restarts")),
        protection=None if noise is None or clip is None else (noise, clip),
        # those of the images that the client trains on first
        lines=tuple(sorted(_likenesses(cases), key=lambda each: each.kind != kinds)),
        missing=(
            *(
                f"not inverted, {name}: {as_text(case.get('missing'))}"
                for name, case in cases.items()
                if "missing" in case
            ),
            *dict.fromkeys(absent),
        ),
        about=_about("Inversion", table),
        pictures=_pictures(table),
    )


def _likenesses(cases: Mapping[str, Table]) -> Iterator[Likeness]:
    for name, case in cases.items():
        for kind, of in _tables(case.get("against")):
            for measure, each in _tables(of.get("measures")):
                if (found := as_figure(each.get("mean"))) is not None:
                    yield Likeness(
                        case=name,
                        kind=kind,
                        measure=measure,
                        images=as_count(case.get("images")),
                        behind=as_count(case.get("behind")),
                        found=found,
                        others=as_figure(each.get("others")),
                        best=as_figure(each.get("others_best")),
                        class_mean=as_figure(each.get("class_mean")),
                        p=as_share(each.get("p")),
                    )


def _neighbours(table: Table) -> Near | None:
    spaces = tuple(
        Space(
            name=name,
            images=as_count(of.get("images")),
            gap=gap,
            chance=_pair(of.get("chance")),
            p=as_share(of.get("p")),
            closer=as_share(of.get("closer")),
            nearest=next((as_figure(as_table(pair).get("ratio")) for pair in as_list(of.get("worst"))), None),
            usual=_pair(as_table(of.get("nearest")).get("chance")),
        )
        for name, of in _tables(table.get("spaces"))
        if (gap := as_figure(of.get("gap"))) is not None
    )
    if not spaces:
        return None
    about, pictures = _about("Nearest neighbours", table), _pictures(table)
    return Near(as_count(table.get("round")), as_count(table.get("clients")), spaces, about, pictures)


def _attributes(table: Table) -> Readings | None:
    found = dict(_tables(table.get("readings")))
    readings = tuple(
        Reading(
            name=name,
            clients=len(as_table(of.get("clients"))) or len(as_list(of.get("clients"))),
            distance=distance,
            guess=as_share(of.get("guess")),
            gain=as_figure(of.get("gain")),
            interval=_pair(of.get("interval")),
        )
        for name, of in found.items()
        if (distance := as_share(of.get("distance"))) is not None
    )
    if not readings:
        return None
    about = tuple(
        About(name, as_text(of.get("citation")), as_text(of.get("assumptions"))) for name, of in found.items()
    )
    return Readings(as_count(table.get("round")), readings, _texts(table.get("missing")), about)


def _about(title: str, table: Table) -> tuple[About, ...]:
    return (About(title, as_text(table.get("citation")), as_text(table.get("assumptions"))),)


def _pictures(table: Table) -> tuple[str, ...]:
    """Paths below the run's folder; what leads out of it is none of ours."""
    return tuple(
        each for each in map(as_text, as_list(table.get("pictures"))) if each.startswith("audit/") and ".." not in each
    )


def _tables(value: Any) -> Iterator[tuple[str, Table]]:
    return ((str(name), as_table(each)) for name, each in as_table(value).items())


def _texts(value: Any) -> tuple[str, ...]:
    return tuple(dict.fromkeys(each for each in as_table(value).values() if isinstance(each, str)))


def _pair(value: Any) -> tuple[float, float] | None:
    low, high = ([*map(as_figure, as_list(value)), None, None])[:2]
    return None if low is None or high is None else (low, high)
