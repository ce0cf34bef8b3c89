"""What an audit found, as tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import typer

from fedstill.cli.console import percent, say_table

__all__ = ["TITLES", "say_attack"]


def say_attack(run: Path, name: str, found: Mapping[str, Any]) -> None:
    """One attack's findings, as ``audit.json`` has them, on standard output."""
    if "nothing" in found:
        typer.echo(f"{TITLES[name]}: not attacked: {found['nothing']}")
        return
    {
        "membership": _say_membership,
        "inversion": _say_inversion,
        "neighbours": _say_neighbours,
        "attributes": _say_attributes,
    }[name](found)
    for picture in found.get("pictures", ()):
        typer.echo(f"picture: {run / picture}")


TITLES = {
    "membership": "membership inference",
    "inversion": "inversion",
    "neighbours": "nearest neighbours",
    "attributes": "class histograms",
}
_CASES = {
    "first": "round 1, {}",
    "one": "one step, {}",
    "few": "one step, {}",
    "sent": "sent, {} of {}",
}
_MEASURES = {"psnr": "PSNR", "ssim": "SSIM", "lpips": "LPIPS", "correlation": "correl."}


# --- inversion ---------------------------------------------------------------------------------------------------------


def _say_inversion(found: Mapping[str, Any]) -> None:
    typer.echo(
        f"{TITLES['inversion']}: {found['method']}, {found['client']} in round {found['round']} ({found['source']}), "
        f"{found['steps']} steps, {found['restarts']} {'search' if found['restarts'] == 1 else 'searches'}"
    )
    if (own := found.get("protection")) is not None:
        typer.echo(
            f"gradients are clipped to {own['clip']:g} and have noise of {own['noise']:.2f} of that, as the client's have"
        )
    lines = []
    for name, case in found["cases"].items():
        if "missing" in case:
            continue
        title = _CASES[name].format(case["images"], case["behind"])
        for kind, of in case["against"].items():
            for measure, each in of["measures"].items():
                lines.append([title, f"{_MEASURES.get(measure, measure)}, {kind}", *_likeness(each)])
    if lines:
        head = ["images", "likeness to", "found", "others", "their best", "class mean", "p"]
        say_table("", head, lines)
    for name, case in found["cases"].items():
        if "missing" in case:
            typer.echo(f"not inverted, {name}: {case['missing']}")
    absent = [
        why
        for case in found["cases"].values()
        for of in case.get("against", {}).values()
        for why in of["absent"].items()
    ]
    for name, why in dict(absent).items():
        typer.echo(f"no {name if name == 'others' else name.upper()}: {why}")


def _likeness(of: Mapping[str, Any]) -> list[str]:
    digits = 3 if abs(of["mean"]) < 1.5 else 1

    def text(value: float | None, places: int = digits) -> str:
        return "–" if value is None else f"{value:.{places}f}"

    return [*(text(of[name]) for name in ("mean", "others", "others_best", "class_mean")), text(of["p"], 3)]


# --- nearest neighbours ------------------------------------------------------------------------------------------------


def _say_neighbours(found: Mapping[str, Any]) -> None:
    whose = "as the server holds them" if found["source"] == "server" else "virtual ones, which stay with them"
    typer.echo(
        f"{TITLES['neighbours']}: {found['method']} after round {found['round']}, distilled images of {found['clients']} "
        f"{'client' if found['clients'] == 1 else 'clients'}, {whose}"
    )
    lines: list[list[str]] = []
    usual: list[str] = []
    for name, of in found["spaces"].items():
        chance, nearest = of["chance"], of["nearest"]
        if nearest["chance"] is not None:
            usual.append("{:.2f} to {:.2f} in {}".format(*nearest["chance"], name.partition(",")[0]))
        lines.append(
            [
                name.partition(",")[0],
                str(of["images"]),
                f"{of['gap']:.3f}",
                "–" if chance is None else f"{chance[0]:.3f} to {chance[1]:.3f}",
                "–" if of["p"] is None else f"{of['p']:.3f}",
                percent(of["closer"]),
                f"{nearest['ratio']:.2f}",
            ]
        )
    say_table("", ["distance in", "images", "gap", "by chance", "p", "nearer", "nearest"], lines)
    if usual:
        typer.echo(f"nearest: a copy has 0; by chance it is {', '.join(usual)}")
    if left := max(of["left_out"] for of in found["spaces"].values()):
        typer.echo(f"{left} distilled images of classes with too few images to compare with are left out")


# --- class histograms --------------------------------------------------------------------------------------------------


def _say_attributes(found: Mapping[str, Any]) -> None:
    from fedstill.report.leaks import READINGS

    typer.echo(f"{TITLES['attributes']}: {found['method']}, {found['clients']} clients, up to round {found['round']}")
    lines = [
        [
            READINGS[name],
            str(len(of["clients"])),
            f"{of['distance']:.3f}",
            f"{of['guess']:.3f}",
            f"{of['gain']:+.3f}" + ("" if (span := of["interval"]) is None else f" ({span[0]:+.3f} to {span[1]:+.3f})"),
        ]
        for name, of in found["readings"].items()
    ]
    say_table("", ["read off", "clients", "distance", "of a guess", "gain"], lines)
    for why in dict.fromkeys(found["missing"].values()):
        typer.echo(f"not read: {why}")


# --- membership --------------------------------------------------------------------------------------------------------


def _say_membership(found: Mapping[str, Any]) -> None:
    pool = found["pool"]
    typer.echo(
        f"{TITLES['membership']}: {found['method']} after round {found['round']}, {found['shadows']} shadow federations, "
        f"{pool['members']} members and {pool['others']} others"
        + (f", {count} queries an image" if (count := found.get("queries", 1)) > 1 else "")
    )
    for view in found["views"]:
        _say_view(view, found["about"])
    typer.echo("")
    for why in found["missing"].values():
        typer.echo(f"not attacked: {why}")
    for view in found["views"]:
        if view["shadows"] < found["shadows"]:
            typer.echo(
                f"{view['view']}: by {view['shadows']} of the shadow federations; in the others there is none of that round"
            )
    if (heard := found["surrogate"]) is not None:
        typer.echo(
            f"surrogate: what {heard['client']} sent in round {heard['round']}, {heard['source']}"
            + (", but the run's last state did not come again to the bit" if heard["same_bits"] is False else "")
        )
    for line in dict.fromkeys(_whys(found)):
        typer.echo(line)


def _say_view(view: Mapping[str, Any], about: Mapping[str, Any]) -> None:
    # not as the table's title, which is wrapped at the table's width
    typer.echo(
        f"\n{view['view']}: {percent(view['accuracy'])} of test images right, {percent(view['member_accuracy'])} of members, "
        f"{percent(view['other_accuracy'])} of others"
    )
    attacks = {about[name]["title"]: each for name, each in view["attacks"].items()}
    say_table("", ["attack", "AUC", "TPR at 1 % FPR", "other targets"], [_line(*each) for each in attacks.items()])
    rare = {title: each["tpr"]["0.001"] for title, each in attacks.items() if "missing" not in each}
    _say_bounds(view, attacks)
    if told := [f"{title} {_estimate(rate)}" for title, rate in rare.items() if "missing" not in rate]:
        typer.echo(f"TPR at 0.1 % FPR: {'; '.join(told)}")


def _say_bounds(view: Mapping[str, Any], attacks: Mapping[str, Mapping[str, Any]]) -> None:
    """Whether attacks show more than the guarantee that the network is under, where there is one."""
    if (claim := view.get("claim")) is None:
        return
    typer.echo(
        f"guaranteed: epsilon = {claim['epsilon']:.3g} at delta = {claim['delta']:g}, of an image that counts or does not"
    )
    lines = []
    for title, each in attacks.items():
        bound = each.get("bound", {"rates": {}, "shown": None, "exceeds": None})
        lines.append([title, _shown(bound), *(_allowed(bound["rates"].get(rate)) for rate in ("0.01", "0.1"))])
    say_table("", ["attack", "shows epsilon", "TPR at 1 % FPR", "at 10 % FPR"], lines)


def _shown(bound: Mapping[str, Any]) -> str:
    if bound["shown"] is None:
        return "–"
    return f"≥ {bound['shown']:.2f}, {'MORE THAN GUARANTEED' if bound['exceeds'] else 'not more'}"


def _allowed(rate: Mapping[str, Any] | None) -> str:
    """The rate found, and what the guarantee allows where images are exchanged, as they are in an audit."""
    if rate is None or "missing" in rate:
        return "–"
    return f"{percent(rate['tpr'])} of {percent(rate['allowed_exchanged'])}"


def _line(title: str, found: Mapping[str, Any]) -> list[str]:
    if "missing" in found:
        return [title, "–", "–", "–"]
    area, others = found["auc"], found.get("targets", {}).get("auc")
    return [
        title,
        f"{area['value']:.3f} ({area['low']:.3f} to {area['high']:.3f})",
        _estimate(found["tpr"]["0.01"]),
        "–" if others is None else f"{others['mean']:.3f} ± {others['deviation'] or 0:.3f}",
    ]


def _estimate(found: Mapping[str, Any]) -> str:
    if "missing" in found:
        return "–"
    return f"{percent(found['value'])} ({100 * found['low']:.1f} to {100 * found['high']:.1f})"


def _whys(found: Mapping[str, Any]) -> Iterator[str]:
    """Why a dash stands where it does."""
    for view in found["views"]:
        for name, each in view["attacks"].items():
            if "missing" in each:
                yield f"no {found['about'][name]['title']} on {view['view']}: {each['missing']}"
            else:
                yield from (f"no TPR: {rate['missing']}" for rate in each["tpr"].values() if "missing" in rate)
