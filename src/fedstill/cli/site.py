"""Commands of a site's administrator: site init, site check, site ledger."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedstill.cli.console import bytes_text, say_table
from fedstill.cli.imports import look_here

if TYPE_CHECKING:
    from fedstill.deployment.checks import Checked
    from fedstill.deployment.federation import Federation
    from fedstill.deployment.ledger import Direction, Entry, Ledger
    from fedstill.deployment.privacy import PrivacySettings
    from fedstill.deployment.site import SiteSettings

__all__ = ["app", "check", "init", "ledger"]

app = typer.Typer(help="What a site has in a federation: its description, whether it is ready, what left it.")

File = Annotated[Path, typer.Argument(help="The site's description; 'fedstill site init' writes one.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object.")]


@app.command("init")
def init(
    name: Annotated[str, typer.Option(help="Of the site, as the federation is to know it.")] = "site",
    out: Annotated[Path | None, typer.Option(help="Write to this file instead of standard output.")] = None,
) -> None:
    """Print a site's description with every key, its default and its meaning."""
    from fedstill.deployment.site import starter
    from fedstill.errors import InputError
    from fedstill.files import write_text

    text = starter(name).to_toml()
    if out is None:
        typer.echo(text, nl=False)
        return
    if out.exists():
        raise InputError(f"{out} exists already: give another --out")
    write_text(out, text)


@app.command("check")
def check(
    file: File,
    experiment: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The federation's experiment file.", show_default=False)
    ] = None,
    classes: Annotated[
        str | None,
        typer.Option(metavar="A,B,…", help="The federation's classes, where there is no file yet.", show_default=False),
    ] = None,
    as_json: Json = False,
) -> None:
    """Load the site's images and say what is there, what the policy lets leave, and every problem."""
    from fedstill.deployment.checks import check_site
    from fedstill.deployment.site import SiteSettings
    from fedstill.seeds import Seed

    look_here()
    settings = SiteSettings.read(file)
    federation = _federation(experiment, classes)
    found = check_site(settings, federation, Seed.root(0).at("data"))
    if as_json:
        typer.echo(json.dumps(_facts(settings, federation, found)))
    else:
        _say(settings, federation, found)
    if found.problems:
        raise typer.Exit(2)


@app.command("ledger")
def ledger(
    file: File,
    last: Annotated[int, typer.Option(min=0, help="List so many messages, the newest; the totals count all.")] = 20,
    as_json: Json = False,
) -> None:
    """List the messages that reached and left the site, and what was in them."""
    from fedstill.deployment.ledger import Ledger, totals
    from fedstill.deployment.site import SiteSettings

    settings = SiteSettings.read(file)
    found = Ledger.open(settings.ledger)
    if as_json:
        sums = {way: {word: asdict(total) for word, total in totals(found.entries, way).items()} for way in _WAYS}
        entries = [json.loads(entry.line()) for entry in _newest(found.entries, last)]
        typer.echo(json.dumps({"site": settings.name, "messages": entries, "totals": sums, "damaged": found.damaged}))
        return
    _say_ledger(settings, found, last)


def _federation(experiment: Path | None, classes: str | None) -> Federation | None:
    from fedstill.deployment.federation import Federation
    from fedstill.errors import InputError
    from fedstill.experiment import Experiment

    if experiment is not None and classes is not None:
        raise InputError("--experiment names the classes: leave --classes out")
    if experiment is not None:
        read = Experiment.read(experiment)
        try:
            return Federation.of(read)
        except InputError as error:
            raise InputError(f"{experiment}: {error}") from error
    if classes is None:
        return None
    named = tuple(name for each in classes.split(",") if (name := each.strip()))
    if not named:
        raise InputError("--classes names none: write --classes cat,dog")
    return Federation(classes=named)


def _facts(settings: SiteSettings, federation: Federation | None, found: Checked) -> dict[str, Any]:
    return {
        "site": settings.name,
        **asdict(found),
        "allow": list(settings.policy.allow),
        "largest": settings.policy.largest,
        "secure": settings.policy.secure,
        "experiments": list(settings.policy.experiments),
        "experiment": None if federation is None else federation.identity,
    }


def _say(settings: SiteSettings, federation: Federation | None, found: Checked) -> None:
    from fedstill.deployment.policy import WORDS
    from fedstill.deployment.sizes import size_text

    policy = settings.policy
    if found.held:
        height, width = found.size or (0, 0)
        kind = "grey" if found.channels == 1 else "colour"
        also = f", and {found.given} test images" if found.given else ""
        typer.echo(f"site {settings.name}: {sum(found.held.values())} images{also}, {kind}, {height} x {width} pixels")
        if found.skipped:
            name, reason = found.skipped[0]
            typer.echo(f"left out: {len(found.skipped)} unreadable, the first: {name}: {reason}")
        say_table("images a class", ["class", "", "images"], _by_class(settings, federation, found.held))
    typer.echo("may leave:")
    for word in policy.allow:
        typer.echo(f"  {word}: {WORDS[word].meaning}")
    typer.echo(
        f"may not leave: {', '.join(word for word in WORDS if word not in policy.allow) or 'nothing is kept back'}"
    )
    typer.echo(f"largest message, either way: {size_text(policy.largest)}")
    if policy.secure:
        typer.echo("model weights: in a sum of several sites' alone")
    count = len(policy.experiments)
    typer.echo(f"experiments: {f'{count} by identity' if count else 'any'}")
    if settings.privacy.clip is not None:
        typer.echo(f"privacy: {_privacy(settings.privacy)}")
    if federation is not None and federation.identity is not None:
        typer.echo(f"identity of this experiment: {federation.identity}")
    for remark in found.remarks:
        typer.echo(f"note: {remark}")
    for problem in found.problems:
        typer.echo(f"problem: {problem}", err=True)
    if not found.problems:
        typer.echo(
            "no problem found" if federation else "no problem found; --experiment FILE compares with a federation"
        )


def _privacy(settings: PrivacySettings) -> str:
    from fedstill.updates import epsilon

    counts = sorted({1, min(10, settings.answers), settings.answers})
    told = ", ".join(f"{epsilon(count, settings.noise, settings.delta):.3g} after {count}" for count in counts)
    return (
        f"changes of the model are cut to a norm of {settings.clip:g}, with noise of {settings.noise:g} times that; "
        f"at delta = {settings.delta:g}, epsilon is {told} answers, and then no other leaves"
    )


def _by_class(
    settings: SiteSettings, federation: Federation | None, held: Mapping[str, int]
) -> Sequence[Sequence[str]]:
    """The federation's classes in its order, and what the site has beside them."""
    from fedstill.data.classes import places

    if federation is None:
        return [[name, "", str(count)] for name, count in held.items()]
    found, lacking = (places(list(names), federation.classes) for names in (held, settings.lacks))
    lines = []
    for number, name in enumerate(federation.classes):
        count = sum(held[own] for own, place in found.items() if place == number)
        note = "" if count else "lacked" if number in lacking.values() else "missing"
        lines.append([name, note, str(count)])
    return lines + [[own, "not the federation's", str(held[own])] for own, place in found.items() if place is None]


_WAYS: tuple[Direction, ...] = ("in", "out")


def _say_ledger(settings: SiteSettings, found: Ledger, last: int) -> None:
    from fedstill.deployment.ledger import totals

    entries = found.entries
    if not entries:
        typer.echo(f"site {settings.name}: nothing was sent and nothing arrived ({settings.ledger} has no entry)")
        return
    for entry in _newest(entries, last):
        typer.echo(_line(entry))
    for way, title in zip(_WAYS, ("arrived", "left the site"), strict=True):
        of_way = [entry for entry in entries if entry.direction == way and (way == "in" or entry.refused is None)]
        typer.echo(
            f"{title}: {_count(len(of_way), 'message')}, {bytes_text(sum(entry.facts.bytes for entry in of_way))}"
        )
        for word, total in totals(entries, way).items():
            tensors = f"{_count(total.tensors, 'tensor')} of " if total.tensors else ""
            values = _count(total.elements, "value")
            typer.echo(
                f"  {word}: in {_count(total.messages, 'message')}, {tensors}{values}, {bytes_text(total.bytes)}"
            )
    refused = [entry for entry in entries if entry.refused is not None]
    if refused:
        typer.echo(f"refused: {_count(len(refused), 'message')}; the newest: {refused[-1].refused}")
    if found.damaged:
        typer.echo(f"{_count(found.damaged, 'line')} of {settings.ledger} cannot be read, as after a crash", err=True)


def _newest(entries: Sequence[Entry], count: int) -> Sequence[Entry]:
    return entries[max(len(entries) - count, 0) :]


def _line(entry: Entry) -> str:
    """``2026-11-22 01:38:00  out  skin, round 3, local: 21 kB of model weights, numbers``"""
    from fedstill.deployment.ledger import totals
    from fedstill.errors import printable

    words = ", ".join(totals([entry], entry.direction)) or "nothing"
    what = f"{entry.run}, round {entry.round}, {entry.task}: {bytes_text(entry.facts.bytes)}"
    told = f" of {words}" if entry.refused is None else f", refused: {entry.refused}"
    return printable(f"{entry.time[:19].replace('T', ' ')}  {entry.direction:<3}  {what}{told}", 400)


def _count(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
