"""The command that attacks a run: audit."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from fedstill.cli.imports import look_here
from fedstill.cli.leaks import say_attack

__all__ = ["audit"]

SHADOWS = 16
VIEWS = "final,surrogate,distilled"


def audit(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.", show_default=False)],
    membership: Annotated[
        bool, typer.Option("--membership", help="Membership inference. Without any attack named: all of them.")
    ] = False,
    inversion: Annotated[bool, typer.Option("--inversion", help="Images from what one client sent.")] = False,
    neighbours: Annotated[
        bool, typer.Option("--neighbours", help="Whether distilled images are copies of those they were made of.")
    ] = False,
    attributes: Annotated[
        bool, typer.Option("--attributes", help="How many images of which class each client holds.")
    ] = False,
    shadows: Annotated[
        int, typer.Option(min=2, help="Of --membership: shadow federations, each as costly as the run.")
    ] = SHADOWS,
    queries: Annotated[
        int,
        typer.Option(min=1, help="Of --membership: LiRA's of an image; beside itself shifts by a pixel, and mirrored."),
    ] = 1,
    views: Annotated[
        str,
        typer.Option(metavar="LIST", help="Of --membership: what is attacked; those that the run has not are said."),
    ] = VIEWS,
    client: Annotated[
        str | None,
        typer.Option(help="Whose message is the surrogate, and is inverted. Default: the first.", show_default=False),
    ] = None,
    number: Annotated[
        int | None,
        typer.Option("--round", help="The round that messages are of. Default: the last.", show_default=False),
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option(min=1, help="Of networks on distilled images. Default: the run's own.", show_default=False),
    ] = None,
    lr: Annotated[
        float | None, typer.Option(help="Step size of those networks. Default: the run's own.", show_default=False)
    ] = None,
    images: Annotated[int, typer.Option(min=1, help="Of --inversion: sought at a time, beside one alone.")] = 8,
    steps: Annotated[int, typer.Option(min=1, help="Of --inversion: of each search; the paper has 4800.")] = 2400,
    restarts: Annotated[int, typer.Option(min=1, help="Of --inversion: searches, of which the best is taken.")] = 1,
    again: Annotated[
        bool, typer.Option("--again", help="Make attacks anew that were made before; shadow federations are kept.")
    ] = False,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes that work. Default: the run's own.", show_default=False)
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of tables.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing unless something is wrong.")] = False,
) -> None:
    """Attack a run, and say what leaks of its images: by its networks, its messages and its distilled images.

    What is done is kept in RUN/audit.json and RUN/audit: the same command goes on where it was interrupted.
    """
    from fedstill.auditing import Asked, Attributes, Inversion, Membership, Neighbours, audit_run
    from fedstill.errors import InputError
    from fedstill.folder import AUDIT, AUDITED

    if lr is not None and not lr > 0:
        raise InputError(f"--lr {lr}: it lies above 0")
    everything = not (membership or inversion or neighbours or attributes)  # no attack is named
    members = Membership(
        shadows=shadows,
        views=tuple(dict.fromkeys(view.strip() for view in views.split(",") if view.strip())),
        client=client,
        round=number,
        epochs=epochs,
        lr=lr,
        queries=queries,
    )
    inverted = Inversion(client=client, round=number, images=images, steps=steps, restarts=restarts)
    asked = Asked(
        membership=members if membership or everything else None,
        inversion=inverted if inversion or everything else None,
        neighbours=Neighbours() if neighbours or everything else None,
        attributes=Attributes(round=number) if attributes or everything else None,
    )
    look_here()
    from fedstill.cli.hearing import hearing  # it draws, which is slow to import

    try:
        with hearing(quiet=quiet, silent=as_json, say=partial(say_attack, run)) as hears:
            found = audit_run(run, asked, workers=workers, device=device, again=again, hears=hears)
    except KeyboardInterrupt:
        typer.echo(
            f"fedstill: interrupted; what is done is kept in {run / AUDITED}: give the same command again", err=True
        )
        raise typer.Exit(130) from None
    if as_json:
        typer.echo(json.dumps(found, allow_nan=False))
    if not quiet:
        typer.echo(f"written: {run / AUDIT}; 'fedstill report {run}' shows it", err=True)
