"""The command tune: an experiment's best settings, by trials that are judged by the clients' validation images."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedstill.cli.console import bytes_text, percent, say_table, seconds_text
from fedstill.cli.imports import look_here
from fedstill.cli.sweeping import INTERRUPTED, seed_list

if TYPE_CHECKING:
    from fedstill.search import Part
    from fedstill.tune.judge import Tried
    from fedstill.tune.plan import Search
    from fedstill.tune.work import Done

__all__ = ["tune"]


def tune(
    file: Annotated[Path, typer.Argument(help="An experiment file.", show_default=False)],
    vary: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=LOW..HIGH[:log] | KEY=V,V,...",
            help="What to search: algorithm.lr=0.001..0.1:log, or algorithm.momentum=0,0.9. Repeatable.",
        ),
    ] = None,
    trials: Annotated[int, typer.Option(min=1, help="How many, those of earlier sittings included.")] = 20,
    seeds: Annotated[
        str | None,
        typer.Option(
            metavar="N,N,...", help="Of each trial's runs; it is judged by their mean.", show_default="the file's"
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a key in every trial: rounds=2. Repeatable."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the search.", show_default="runs/NAME-tune")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Trials at a time; they are proposed together.")] = 1,
    prune: Annotated[bool, typer.Option("--prune/--no-prune", help="Give up trials that fall behind.")] = True,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what the search would cost, and do not start it.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a trial on standard output.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing unless something is wrong.")] = False,
) -> None:
    """Search an experiment's best settings, judged by the clients' validation images and never by test images.

    The same command goes on where it was stopped, and runs nothing twice; with more --trials it goes further.
    """
    from fedstill.tune.plan import read

    look_here()
    wanted = read(file, vary=vary or (), settings=settings or (), seeds=seed_list(seeds), prune=prune)
    place = out or Path("runs") / f"{wanted.experiment.name}-tune"
    if dry_run:
        _dry_run(wanted, place, trials=trials, jobs=jobs, as_json=as_json)
        return
    done = _work(wanted, place, trials=trials, jobs=jobs, as_json=as_json, quiet=quiet)
    if not (quiet or as_json):
        _say_done(wanted, done)


def _work(wanted: Search, out: Path, *, trials: int, jobs: int, as_json: bool, quiet: bool) -> Done:
    from fedstill.cli.cells import listener
    from fedstill.tune.record import runs_of
    from fedstill.tune.work import work

    try:
        # a trial is told here, not each of its runs there
        with listener(as_json=False, quiet=quiet or as_json, noun="trials") as hears:

            def told(tried: Tried) -> None:
                if as_json and tried.state != "begun":
                    typer.echo(json.dumps(tried.to_json(runs_of(wanted, tried))))
                elif tried.state == "begun" and not (quiet or as_json):
                    hears.note(f"{tried.name}: {_values(tried.params)}")

            if not (quiet or as_json):
                hears.note(f"{trials} {'trial' if trials == 1 else 'trials'} of {_names(wanted)}, in {out}")
            return work(wanted, out, trials=trials, jobs=jobs, hear=hears, told=told)
    except KeyboardInterrupt:
        typer.echo(
            "fedstill: interrupted; finished trials and whole rounds are kept: continue with the same command", err=True
        )
        raise typer.Exit(INTERRUPTED) from None


def _say_done(wanted: Search, done: Done) -> None:
    over = sorted(done.tried, key=lambda each: (-(each.value if each.value is not None else -1.0), each.number))
    say_table(
        "trials, best first",
        ["trial", "", *_short(list(wanted.space.parts)), "validation", "round", "time"],
        [
            [
                each.name,
                "" if each.state == "finished" else each.state,
                *(_value(each.params[key]) for key in wanted.space.parts),
                percent(each.value),
                ", ".join(map(str, each.selected)) if each.state == "finished" else str(sum(map(len, each.curves))),
                seconds_text(each.seconds),
            ]
            for each in over
        ],
    )
    if done.exhausted:
        typer.echo(f"there are no more than these {len(done.tried)} to try")
    typer.echo(f"best: {done.best.name}, validation {percent(done.best.value)}: {_values(done.best.params)}")
    cpu = "" if done.cpu_seconds is None else f", {seconds_text(done.cpu_seconds)} of CPU"
    typer.echo(f"done in {seconds_text(done.wall_seconds)}{cpu}; experiment {done.file}, page {done.report}", err=True)


def _short(keys: Sequence[str]) -> list[str]:
    """The last parts of dotted keys, where that tells them apart: a terminal is narrow."""
    last = [key.rpartition(".")[2] for key in keys]
    return [word if last.count(word) == 1 else key for word, key in zip(last, keys, strict=True)]


def _names(wanted: Search) -> str:
    return ", ".join(f"{key} in {_part_text(part)}" for key, part in wanted.space.parts.items())


def _part_text(part: Part) -> str:
    from fedstill.search import Choice

    if isinstance(part, Choice):
        return ", ".join(map(_value, part.values)).join("{}")
    return f"{_value(part.low)} … {_value(part.high)}{' (log)' if part.log else ''}"


def _values(params: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} = {_value(value)}" for key, value in params.items())


def _value(value: Any) -> str:
    """Four digits of a number: the whole of it is in tune.json."""
    return f"{value:.4g}" if isinstance(value, float) else value if isinstance(value, str) else json.dumps(value)


# --- tune --dry-run ----------------------------------------------------------------------------------------------------


def _dry_run(wanted: Search, out: Path, *, trials: int, jobs: int, as_json: bool) -> None:
    from fedstill.tune.cost import bill

    found = bill(wanted, out, trials=trials, jobs=jobs)
    if as_json:
        typer.echo(json.dumps(found.to_json()))
        return
    say_table(
        "what is varied", ["key", "values"], [[key, _part_text(part)] for key, part in wanted.space.parts.items()]
    )
    before = f", {found.over} of them over" if found.over else ""
    seeds = len(wanted.seeds)
    typer.echo(
        f"{found.trials} {'trial' if found.trials == 1 else 'trials'}{before}; "
        f"{seeds} {'run' if seeds == 1 else 'runs'} each, of {wanted.experiment.rounds} rounds; {jobs} at a time"
    )
    memory = "" if found.memory is None else f", with about {bytes_text(found.memory)}"
    less = "; pruning makes it less" if wanted.prune else ""
    typer.echo(f"a run about {seconds_text(found.run)}{memory}; all about {seconds_text(found.seconds)}{less}")
