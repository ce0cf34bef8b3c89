"""The command line. Reading it imports neither torch nor anything else that is slow: commands import what they need.

experiments.py   init, run, resume, demo
sweeping.py      sweep; cells.py is what it says while it goes on
tuning.py        tune
models.py        predict, export
priors.py        prior train, prior sample
inspection.py    data inspect, list, report, check
evaluation.py    evaluate
auditing.py      audit
pack.py          pack
watch.py         watch
federation.py    server, client
certs.py         certs
site.py          site init, site check, site ledger
console.py       what a run says while it goes on; pace.py and live.py are parts of it
imports.py       where code of the user's own is looked for
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Annotated

import typer

import fedstill
from fedstill.cli import (
    auditing,
    certs,
    evaluation,
    experiments,
    federation,
    inspection,
    models,
    pack,
    priors,
    site,
    sweeping,
    tuning,
)
from fedstill.cli import watch as watching
from fedstill.errors import FedstillError
from fedstill.runtime import leave

__all__ = ["app", "invoke", "main"]

INTERRUPTED = 130

app = typer.Typer(
    name="fedstill",
    help="Train one good model from many private, unequal image sets.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("init")(experiments.init)
app.command("run")(experiments.run)
app.command("resume")(experiments.resume)
app.command("sweep")(sweeping.sweep)
app.command("tune")(tuning.tune)
app.command("demo")(experiments.demo)
app.command("predict")(models.predict)
app.command("export")(models.export)
app.command("evaluate")(evaluation.evaluate)
app.command("audit")(auditing.audit)
app.command("pack")(pack.pack)
app.command("report")(inspection.report)
app.command("watch")(watching.watch)
app.command("list")(inspection.list_choices)
app.command("check")(inspection.check)
app.command("server")(federation.server)
app.command("client")(federation.client)
app.command("certs")(certs.certs)
app.add_typer(priors.app, name="prior")
app.add_typer(inspection.data_app, name="data")
app.add_typer(site.app, name="site")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(fedstill.__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """The console script."""
    leave(invoke(sys.argv[1:]))


def invoke(arguments: Sequence[str]) -> int:
    """Run one command; its exit code: 0 done, 1 the run failed, 2 the input is wrong, 130 interrupted."""
    try:
        return app(args=list(arguments) or ["--help"], prog_name="fedstill", standalone_mode=False) or 0
    except FedstillError as error:
        _complain(str(error))
        return error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        _complain("interrupted")
        return INTERRUPTED
    except Exception as error:
        # Typer's own errors; it has brought them from Click and from its copy of Click, so the class is no help
        if not hasattr(error, "format_message"):
            raise
        _complain(_usage(error, arguments))
        return 2


def _usage(error: Exception, arguments: Sequence[str]) -> str:
    """Typer's usage error as one sentence, with a suggestion where it has one."""
    message = str(error.format_message()).strip().rstrip(".")  # type: ignore[attr-defined]
    possibilities = sorted(getattr(error, "possibilities", None) or ())
    if unknown := getattr(error, "option_name", None):
        close = get_close_matches(str(unknown), possibilities, n=1, cutoff=0.0)
        message = f"there is no option {unknown}" + (f": did you mean {close[0]}?" if close else "")
    message = re.sub(r"^No such command '(.*?)'\.?", r"there is no command '\1':", message).replace("Did", "did")
    # Typer's releases differ in how they write an argument's name
    message = re.sub(r"^Missing argument '\w+'", lambda found: f"Missing argument{found[0][16:].lower()}", message)
    message = message.rstrip(":")
    command = " ".join(["fedstill", *(each for each in list(arguments)[:1] if each in _commands())])
    return message if message.endswith("?") else f"{message}; see  {command} --help"


def _commands() -> set[str]:
    named = (command.name for command in app.registered_commands)
    return {name for name in (*named, *(group.name for group in app.registered_groups)) if name}


def _complain(message: str) -> None:
    typer.echo(f"fedstill: {message}", err=True)
