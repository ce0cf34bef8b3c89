"""The command that attacks a run: audit."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from fedstill.cli.console import percent, say_table
from fedstill.cli.evaluation import progress_bar
from fedstill.cli.imports import look_here

__all__ = ["audit"]

SHADOWS = 16
VIEWS = "final,surrogate,distilled"


def audit(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.", show_default=False)],
    membership: Annotated[
        bool, typer.Option("--membership", help="Membership inference. Without any attack named: all of them.")
    ] = False,
    shadows: Annotated[
        int, typer.Option(min=2, help="Of --membership: shadow federations, each as costly as the run.")
    ] = SHADOWS,
    views: Annotated[
        str,
        typer.Option(metavar="LIST", help="Of --membership: what is attacked; those that the run has not are said."),
    ] = VIEWS,
    client: Annotated[
        str | None, typer.Option(help="Whose message is the surrogate. Default: the first.", show_default=False)
    ] = None,
    number: Annotated[
        int | None, typer.Option("--round", help="The round that message is of. Default: the last.", show_default=False)
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option(min=1, help="Of networks on distilled images. Default: the run's own.", show_default=False),
    ] = None,
    lr: Annotated[
        float | None, typer.Option(help="Step size of those networks. Default: the run's own.", show_default=False)
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes that work. Default: the run's own.", show_default=False)
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of tables.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing unless something is wrong.")] = False,
) -> None:
    """Attack a run, and say what leaks: whether an image was trained on can be told from its networks and its distilled images.

    Shadow federations are kept in RUN/audit as they are done: the same command goes on where it was interrupted.
    """
    from fedstill.auditing import Asked, Membership, audit_run
    from fedstill.errors import InputError
    from fedstill.folder import AUDITED

    if lr is not None and not lr > 0:
        raise InputError(f"--lr {lr}: it lies above 0")
    everything = not membership  # no attack is named
    wanted = Membership(
        shadows=shadows,
        views=tuple(dict.fromkeys(view.strip() for view in views.split(",") if view.strip())),
        client=client,
        round=number,
        epochs=epochs,
        lr=lr,
    )
    look_here()
    try:
        with progress_bar(quiet=quiet) as progress:
            found = audit_run(
                run,
                Asked(membership=wanted if membership or everything else None),
                workers=workers,
                device=device,
                progress=progress,
                note=lambda text: typer.echo(text, err=True),
            )
    except KeyboardInterrupt:
        typer.echo(
            f"fedstill: interrupted; what is done is kept in {run / AUDITED}: give the same command again", err=True
        )
        raise typer.Exit(130) from None
    if as_json:
        typer.echo(json.dumps(found, allow_nan=False))
    elif not quiet:
        _say(run, found)


def _say(run: Path, found: Mapping[str, Any]) -> None:
    from fedstill.folder import AUDIT

    _say_membership(found["membership"])
    typer.echo(f"written: {run / AUDIT}", err=True)


def _say_membership(found: Mapping[str, Any]) -> None:
    pool = found["pool"]
    typer.echo(
        f"membership inference: {found['method']} after round {found['round']}, {found['shadows']} shadow federations, "
        f"{pool['members']} members and {pool['others']} others"
    )
    for view in found["views"]:
        _say_view(view, found["about"])
    typer.echo("")
    for why in found["missing"].values():
        typer.echo(f"not attacked: {why}")
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
    if told := [f"{title} {_estimate(rate)}" for title, rate in rare.items() if "missing" not in rate]:
        typer.echo(f"TPR at 0.1 % FPR: {'; '.join(told)}")


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
