"""Commands of a federation of real sites: server, client."""

from __future__ import annotations

import math
import re
import shlex
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedstill.cli.experiments import Device, Json, Quiet, Rounds, Workers, drive_and_say, overrides_of
from fedstill.cli.imports import look_here

if TYPE_CHECKING:
    from fedstill.deployment.site import SiteSettings

__all__ = ["client", "server"]

LISTEN = "0.0.0.0:9092"
MARGIN = 2**20
"""Bytes that a message may take on the way beside its content, for which a site's policy has a limit."""


def server(
    file: Annotated[Path, typer.Argument(help="The federation's experiment file.")],
    keys: Annotated[
        Path,
        typer.Option(help="Folder that 'fedstill certs' made, or one like it: server.pem, server.key, sites/NAME.pub."),
    ] = Path("federation-keys"),
    listen: Annotated[str, typer.Option(metavar="HOST:PORT", help="Where sites call.")] = LISTEN,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a key: algorithm.ipc=5. Repeatable."),
    ] = None,
    rounds: Rounds = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the run.", show_default="runs/NAME")] = None,
    wait: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Seconds after which to begin with the sites that are ready, if they are the quorum.",
            show_default="until all are",
        ),
    ] = None,
    largest: Annotated[str, typer.Option(help="Largest answer of a site that is taken: 50 MB, 1.5 GiB.")] = "1 GB",
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run that the folder holds; begin it where it holds none.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Remove the run that the folder holds.")] = False,
    workers: Workers = None,
    device: Device = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Run an experiment with real sites, which call this server over TLS and sign with their keys."""
    from fedstill.deployment.hosting import KINDS, Served, site_keys
    from fedstill.deployment.sizes import parse_size
    from fedstill.errors import InputError
    from fedstill.experiment import Experiment
    from fedstill.folder import EXPERIMENT
    from fedstill.runtime import heed_termination

    look_here()
    heed_termination()
    if resume and overwrite:
        raise InputError("--resume goes on with what --overwrite removes: give one of them")
    if wait is not None and not math.isfinite(wait):
        raise InputError(f"--wait {wait}: give a number of seconds, or leave it out to wait for all sites")
    try:
        most = int(parse_size(largest))
    except ValueError as error:
        raise InputError(f"--largest {largest}: write it as {error}") from error
    host, port = _address(listen, f"--listen {listen}")
    given = {"rounds": rounds, "engine.workers": workers, "engine.device": device, "engine.kind": KINDS}
    experiment = Experiment.read(file, [*(settings or ()), *overrides_of(given)])
    venue = Served(
        keys=site_keys(keys / "sites"),
        certificate=keys / "server.pem",
        key=keys / "server.key",
        host=host,
        port=port,
        largest=most,
        wait=wait,
        command=shlex.join(["--keys", str(keys), "--listen", listen]),
    )
    folder = out or Path("runs") / experiment.name
    drive_and_say(
        experiment,
        folder,
        as_json=as_json,
        quiet=quiet,
        resume=resume and (folder / EXPERIMENT).exists(),
        overwrite=overwrite,
        venue=venue,
    )


def client(
    file: Annotated[Path, typer.Argument(help="The site's description; 'fedstill site init' writes one.")],
    patience: Annotated[
        float | None,
        typer.Option(
            min=0, help="Seconds without a connection after which to give up.", show_default="never: it tries again"
        ),
    ] = None,
) -> None:
    """Take part in a federation as the site that FILE describes, until interrupted."""
    from fedstill.deployment.checks import place_problems
    from fedstill.deployment.site import SiteSettings
    from fedstill.errors import InputError, printable
    from fedstill.files import private_folder
    from fedstill.folder import locked

    look_here()

    def say(text: str) -> None:
        # a server's words are among it: none of them makes a line that looks like one of ours
        first, *rest = (printable(line, 500) for line in text.splitlines() or [""])
        typer.echo("\n    ".join([f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {first}", *rest]), err=True)

    settings = SiteSettings.read(file)
    for key in ("address", "key"):
        if getattr(settings.server, key) is None:
            raise InputError(f"{file}: server.{key} is missing: the server's administrator says what it is")
    # images are looked at when the server says what form they are to have
    if problems := place_problems(settings):
        raise InputError(f"{file}: {problems[0]}")
    kept = Path(settings.folder)
    private_folder(kept)
    with locked(kept, note=say, who="client of this site"):
        _attend(settings, say, patience)


def _attend(settings: SiteSettings, say: Callable[[str], None], patience: float | None) -> None:
    from fedstill.deployment.attendant import SiteAttendant
    from fedstill.engines.flower.calls import answering
    from fedstill.engines.flower.node import Door, private_key, serve
    from fedstill.runtime import heed_termination, prepare

    address, authority, key = settings.server.address, settings.server.authority, settings.server.key
    assert address is not None
    assert key is not None
    _address(address, f"server.address = '{address}'")
    door = Door(address, None if authority is None else Path(authority), private_key(Path(key)))
    prepare()
    heed_termination()
    serve(
        door,
        answering(SiteAttendant(settings, say)),
        largest=settings.policy.largest + MARGIN,
        note=say,
        patience=patience,
    )


def _address(text: str, where: str) -> tuple[str, int]:
    """Host and port.

    Raises:
        InputError: it is no such thing; ``where`` says whose.
    """
    from fedstill.errors import InputError

    found = re.fullmatch(r"([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]):([0-9]{1,5})", text, re.ASCII)
    if found is None or int(found[2]) > 65535:
        raise InputError(f"{where}: write it as HOST:PORT, such as fed.example.org:9092")
    return found[1].strip("[]"), int(found[2])
