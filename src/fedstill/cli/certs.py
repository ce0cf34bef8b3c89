"""The command certs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["certs"]

WARNING = """\
This is a test CA: whoever has ca.key can pose as the server, and whoever made the sites' keys has seen them.
Where real patients' images are behind it, let your IT issue server.pem and server.key for the server's name from the
CA that it keeps, give its certificate to the sites in the place of ca.crt, and let every site make its own key with
  ssh-keygen -t ecdsa -b 384 -N '' -f NAME
and send NAME.pub alone. The days of a certificate end; a site's key lasts until the server forgets its public half.\
"""


def certs(
    folder: Annotated[Path, typer.Argument(help="New folder for them, or one that this command made.")],
    host: Annotated[
        list[str] | None,
        typer.Option(
            help="Name or IP address by which sites reach the server. Repeatable.", show_default="localhost, 127.0.0.1"
        ),
    ] = None,
    site: Annotated[
        list[str] | None,
        typer.Option(help="Make a key pair for the site of this name. Repeatable.", show_default=False),
    ] = None,
    days: Annotated[int, typer.Option(min=1, max=3650, help="How long certificates are valid.")] = 365,
    replace: Annotated[
        bool,
        typer.Option("--replace", help="Make the keys of the sites named, and with --host the server's, anew."),
    ] = False,
) -> None:
    """Make a test CA, a certificate for the server and a key pair for each site; later, for more sites."""
    from fedstill.deployment.certs import make_certificates

    made = make_certificates(folder, hosts=host or None, sites=site or (), days=days, replace=replace)
    for each in made:
        typer.echo(f"{'written' if each.new else 'kept'}: {each.path}  {each.purpose}")
    typer.echo(WARNING, err=True)
